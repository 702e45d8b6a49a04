/* What debuggers look for by name: the debugger data block, the module list, the build's strings. */
#include "nt.h"
#include "ki.h"

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
ULONG NtBuildNumber = 0xF0000000 | NT_LAYOUT_BUILD;
CHAR NtBuildLab[] = TEXT(NT_LAYOUT_BUILD) ".1.amd64fre.minint";
CHAR NtBuildLabEx[] = TEXT(NT_LAYOUT_BUILD) ".1.amd64fre.minint.coldframe";
LIST_ENTRY PsLoadedModuleList = {&PsLoadedModuleList, &PsLoadedModuleList};
extern HANDLE_TABLE *PspCidTable;
extern ULONG64 MmHighestUserAddress, MmSystemRangeStart, MmUserProbeAddress;
extern MMPFN *MmPfnDatabase;
extern PFN_NUMBER MmHighestPhysicalPage, MmLowestPhysicalPage, MmNumberOfPhysicalPages;
extern PHYSICAL_MEMORY_DESCRIPTOR *MmPhysicalMemoryBlock;
extern ULONG64 MmPteBase;

/* KDDEBUGGER_DATA64 of the SDK's wdbgexts.h; the kernel's own types do not have it. */
typedef struct _KDDEBUGGER_DATA64 {
    LIST_ENTRY List;
    ULONG OwnerTag, Size;
    ULONG64 KernBase, BreakpointWithStatus, SavedContext;
    USHORT ThCallbackStack, NextCallback, FramePointer, PaeEnabled;
    ULONG64 KiCallUserMode, KeUserCallbackDispatcher, PsLoadedModuleList, PsActiveProcessHead, PspCidTable;
    ULONG64 ExpSystemResourcesList, ExpPagedPoolDescriptor, ExpNumberOfPagedPools, KeTimeIncrement, KeBugCheckCallbackListHead;
    ULONG64 KiBugcheckData, IopErrorLogListHead, ObpRootDirectoryObject, ObpTypeObjectType;
    ULONG64 MmSystemCacheStart, MmSystemCacheEnd, MmSystemCacheWs, MmPfnDatabase, MmSystemPtesStart, MmSystemPtesEnd;
    ULONG64 MmSubsectionBase, MmNumberOfPagingFiles, MmLowestPhysicalPage, MmHighestPhysicalPage, MmNumberOfPhysicalPages;
    ULONG64 MmMaximumNonPagedPoolInBytes, MmNonPagedSystemStart, MmNonPagedPoolStart, MmNonPagedPoolEnd, MmPagedPoolStart;
    ULONG64 MmPagedPoolEnd, MmPagedPoolInformation, MmPageSize, MmSizeOfPagedPoolInBytes, MmTotalCommitLimit;
    ULONG64 MmTotalCommittedPages, MmSharedCommit, MmDriverCommit, MmProcessCommit, MmPagedPoolCommit, MmExtendedCommit;
    ULONG64 MmZeroedPageListHead, MmFreePageListHead, MmStandbyPageListHead, MmModifiedPageListHead;
    ULONG64 MmModifiedNoWritePageListHead, MmAvailablePages, MmResidentAvailablePages, PoolTrackTable, NonPagedPoolDescriptor;
    ULONG64 MmHighestUserAddress, MmSystemRangeStart, MmUserProbeAddress, KdPrintCircularBuffer, KdPrintCircularBufferEnd;
    ULONG64 KdPrintWritePointer, KdPrintRolloverCount, MmLoadedUserImageList, NtBuildLab, KiNormalSystemCall;
    ULONG64 KiProcessorBlock, MmUnloadedDrivers, MmLastUnloadedDriver, MmTriageActionTaken, MmSpecialPoolTag, KernelVerifier;
    ULONG64 MmVerifierData, MmAllocatedNonPagedPool, MmPeakCommitment, MmTotalCommitLimitMaximum, CmNtCSDVersion;
    ULONG64 MmPhysicalMemoryBlock, MmSessionBase, MmSessionSize, MmSystemParentTablePage, MmVirtualTranslationBase;
    USHORT OffsetKThreadNextProcessor, OffsetKThreadTeb, OffsetKThreadKernelStack, OffsetKThreadInitialStack;
    USHORT OffsetKThreadApcProcess, OffsetKThreadState, OffsetKThreadBStore, OffsetKThreadBStoreLimit, SizeEProcess;
    USHORT OffsetEprocessPeb, OffsetEprocessParentCID, OffsetEprocessDirectoryTableBase, SizePrcb, OffsetPrcbDpcRoutine;
    USHORT OffsetPrcbCurrentThread, OffsetPrcbMhz, OffsetPrcbCpuType, OffsetPrcbVendorString, OffsetPrcbProcStateContext;
    USHORT OffsetPrcbNumber, SizeEThread;
    ULONG64 KdPrintCircularBufferPtr, KdPrintBufferSize, KeLoaderBlock;
    USHORT SizePcr, OffsetPcrSelfPcr, OffsetPcrCurrentPrcb, OffsetPcrContainedPrcb, OffsetPcrInitialBStore;
    USHORT OffsetPcrBStoreLimit, OffsetPcrInitialStack, OffsetPcrStackLimit, OffsetPrcbPcrPage, OffsetPrcbProcStateSpecialReg;
    USHORT Gdt[8];
} KDDEBUGGER_DATA64;
C_ASSERT(FIELD_OFFSET(KDDEBUGGER_DATA64, KiProcessorBlock) == 0x218);
KDDEBUGGER_DATA64 KdDebuggerDataBlock;
ULONG CmNtCSDVersion; /* no service pack */
DBGKD_GET_VERSION64 KdVersionBlock;
static LIST_ENTRY KdpDebuggerDataListHead;

KLDR_DATA_TABLE_ENTRY *MiProcessLoaderEntry(PCWSTR full_name, PCWSTR base_name, void *base, ULONG size, void *entry) {
    KLDR_DATA_TABLE_ENTRY *module = ExAllocatePool(sizeof *module, 'dLmM');
    if (!module) return NULL;
    module->DllBase = base;
    module->SizeOfImage = size;
    module->EntryPoint = entry;
    module->Flags = 0x08804000;
#ifdef HAVE__KLDR_DATA_TABLE_ENTRY
    const UCHAR *header = (const UCHAR *)base + *(const ULONG *)((const UCHAR *)base + 0x3C);
    module->LoadCount = 1;
    module->SizeOfImageNotRounded = size;
    module->TimeDateStamp = *(const ULONG *)(header + 8);
    module->ExceptionTable = (UCHAR *)base + *(const ULONG *)(header + 24 + 112 + 3 * 8);
    module->ExceptionTableSize = *(const ULONG *)(header + 24 + 112 + 3 * 8 + 4);
#endif
    RtlDuplicateUnicodeString(&module->FullDllName, full_name, wcslen(full_name));
    RtlDuplicateUnicodeString(&module->BaseDllName, base_name, wcslen(base_name));
    InsertTailList(&PsLoadedModuleList, (LIST_ENTRY *)&module->InLoadOrderLinks);
    return module;
}

void KiSystemStartup(void);

__attribute__((section("INITKDBG"))) void KiInitializeDebuggerData(void) {
    KDDEBUGGER_DATA64 *d = &KdDebuggerDataBlock;
    InitializeListHead(&KdpDebuggerDataListHead);
    InsertTailList(&KdpDebuggerDataListHead, &d->List);
    d->OwnerTag = 0x4742444B; /* KDBG */
    d->Size = sizeof *d;
    d->KernBase = KeLoaderBlock->KernelBase;
    d->PsLoadedModuleList = (ULONG64)&PsLoadedModuleList;
    d->PsActiveProcessHead = (ULONG64)&PsActiveProcessHead;
    d->PspCidTable = (ULONG64)&PspCidTable;
    d->ObpRootDirectoryObject = (ULONG64)&ObpRootDirectoryObject;
    d->ObpTypeObjectType = (ULONG64)&ObpTypeObjectType;
    d->MmPfnDatabase = (ULONG64)&MmPfnDatabase;
    d->MmLowestPhysicalPage = (ULONG64)&MmLowestPhysicalPage;
    d->MmHighestPhysicalPage = (ULONG64)&MmHighestPhysicalPage;
    d->MmNumberOfPhysicalPages = (ULONG64)&MmNumberOfPhysicalPages;
    d->MmHighestUserAddress = (ULONG64)&MmHighestUserAddress;
    d->MmSystemRangeStart = (ULONG64)&MmSystemRangeStart;
    d->MmUserProbeAddress = (ULONG64)&MmUserProbeAddress;
    d->MmPhysicalMemoryBlock = (ULONG64)&MmPhysicalMemoryBlock;
    d->CmNtCSDVersion = (ULONG64)&CmNtCSDVersion;
    d->MmPageSize = PAGE_SIZE;
    d->MmVirtualTranslationBase = MmPteBase;
    d->NtBuildLab = (ULONG64)NtBuildLab;
    d->KiProcessorBlock = (ULONG64)KiProcessorBlock;
    d->KeLoaderBlock = (ULONG64)&KeLoaderBlock;
    d->OffsetKThreadTeb = OFF__KTHREAD__Teb;
    d->OffsetKThreadKernelStack = OFF__KTHREAD__KernelStack;
    d->OffsetKThreadInitialStack = OFF__KTHREAD__InitialStack;
    d->OffsetKThreadApcProcess = OFF__KTHREAD__ApcState_Process;
    d->OffsetKThreadState = OFF__KTHREAD__State;
    d->SizeEProcess = sizeof(EPROCESS);
    d->OffsetEprocessPeb = OFF__EPROCESS__Peb;
    d->OffsetEprocessParentCID = OFF__EPROCESS__InheritedFromUniqueProcessId;
    d->OffsetEprocessDirectoryTableBase = OFF__KPROCESS__DirectoryTableBase;
    d->SizePrcb = sizeof(KPRCB);
    d->OffsetPrcbCurrentThread = OFF__KPRCB__CurrentThread;
    d->OffsetPrcbNumber = OFF__KPRCB__Number;
    d->SizeEThread = sizeof(ETHREAD);
    d->SizePcr = (USHORT)sizeof(KPCR);
    d->OffsetPcrSelfPcr = OFF__KPCR__Self;
    d->OffsetPcrCurrentPrcb = OFF__KPCR__CurrentPrcb;
    d->OffsetPcrContainedPrcb = OFF__KPCR__Prcb;
    KdVersionBlock.MajorVersion = 15;
    KdVersionBlock.MinorVersion = NT_LAYOUT_BUILD;
    KdVersionBlock.MachineType = 0x8664;
    KdVersionBlock.KernBase = KeLoaderBlock->KernelBase;
    KdVersionBlock.PsLoadedModuleList = (ULONG64)&PsLoadedModuleList;
    KdVersionBlock.DebuggerDataList = (ULONG64)&KdpDebuggerDataListHead;
    MiProcessLoaderEntry(L"\\SystemRoot\\system32\\ntoskrnl.exe", L"ntoskrnl.exe", (void *)KeLoaderBlock->KernelBase,
                         (ULONG)KeLoaderBlock->KernelSize, (void *)KiSystemStartup);
}
