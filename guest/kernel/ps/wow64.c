/* WOW64: what the kernel makes for a process whose image is 32-bit. Its memory lies below 2 GB; it has a second ntdll.dll, a PEB32
 * and, right behind each TEB, a TEB32 with a stack of its own. Everything else is done by the 64-bit DLLs in user mode: the
 * kernel sees system calls of 64-bit code only. */
#include "ke/ki.h"
#include "psp.h"
#include "services.h"

#define PSP_HIGHEST_USER_ADDRESS32 0x7FFEFFFFull /* of a program that is not made for large addresses */

static MM_SECTION *PspWow64DllSection;
static void *PspWow64DllBase, *PspWow64LdrInitializeThunk;
static EX_PUSH_LOCK PspWow64Lock;

/* The 32-bit ntdll.dll, found when the first process wants it. */
static NTSTATUS PspLocateWow64Dll(void) {
    const PSP_EXPORT exports[] = {{"LdrInitializeThunk", &PspWow64LdrInitializeThunk}};
    NTSTATUS status = STATUS_SUCCESS;
    ExAcquirePushLockExclusive(&PspWow64Lock);
    if (!PspWow64DllSection)
        status = PspLoadSystemDll(L"\\Windows\\SysWOW64\\ntdll.dll", &PspWow64DllSection, &PspWow64DllBase, exports, ARRAYSIZE(exports));
    ExReleasePushLockExclusive(&PspWow64Lock);
    return status;
}

void *PsWow64Process(EPROCESS *process) {
#ifdef HAVE__EPROCESS__WoW64Process
    return (void *)process->WoW64Process;
#else
    return process->Wow64Process;
#endif
}

void *PspPeb32(EPROCESS *process) {
    if (!PsWow64Process(process)) return NULL;
#ifdef HAVE__EWOW64PROCESS
    return ((EWOW64PROCESS *)PsWow64Process(process))->Peb;
#else
    return PsWow64Process(process);
#endif
}

static NTSTATUS PspSetPeb32(EPROCESS *process, void *peb) {
#ifdef HAVE__EWOW64PROCESS
    EWOW64PROCESS *wow64 = ExAllocatePool(sizeof *wow64, 'WowP');
    if (!wow64) return STATUS_INSUFFICIENT_RESOURCES;
    wow64->Peb = peb;
#ifdef HAVE__EWOW64PROCESS__Machine
    wow64->Machine = IMAGE_FILE_MACHINE_I386;
#endif
#ifdef HAVE__EWOW64PROCESS__NtdllType
    wow64->NtdllType = PsWowX86SystemDll;
#endif
    process->WoW64Process = wow64;
#else
    process->Wow64Process = peb;
#endif
    return STATUS_SUCCESS;
}

void PspDeleteWow64Process(EPROCESS *process) {
#ifdef HAVE__EWOW64PROCESS
    ExFreePool(process->WoW64Process);
    process->WoW64Process = NULL;
#else
    process->Wow64Process = NULL;
#endif
}

static NTSTATUS PspMakePeb32(EPROCESS *process, void *image_base) {
    PEB32 *peb = ExAllocatePool(sizeof *peb, 'bePP');
    void *user;
    if (!peb) return STATUS_INSUFFICIENT_RESOURCES;
    NTSTATUS status = PspAllocate(process, sizeof *peb, &user);
    if (NT_SUCCESS(status)) {
        peb->ImageBaseAddress = (ULONG)(ULONG64)image_base;
        peb->Mutant = ~0u;
        peb->NumberOfProcessors = KeNumberProcessors;
        peb->OSMajorVersion = NT_LAYOUT_MAJOR;
        peb->OSMinorVersion = NT_LAYOUT_MINOR;
        peb->OSBuildNumber = NT_LAYOUT_BUILD;
        peb->OSPlatformId = 2;
        peb->ImageSubsystem = 1;
        status = PspWrite(process, user, peb, sizeof *peb);
    }
    if (NT_SUCCESS(status)) status = PspSetPeb32(process, user);
    ExFreePool(peb);
    return status;
}

/* Tells the 64-bit ntdll.dll in the process where the 32-bit one is. */
static NTSTATUS PspFillInitBlock(EPROCESS *process) {
    PS_SYSTEM_DLL_INIT_BLOCK block = {.Size = sizeof block};
    block.Wow64SharedInformation[SharedNtdll32LdrInitializeThunk] = (ULONG64)PspWow64LdrInitializeThunk;
    block.Wow64SharedInformation[SharedNtdll32BaseAddress] = (ULONG64)PspWow64DllBase;
    return PspWrite(process, PspLdrSystemDllInitBlock, &block, sizeof block);
}

NTSTATUS PspSetupWow64Process(EPROCESS *process, const MM_IMAGE *image, PSP_VIEW *view) {
    NTSTATUS status = PspLocateWow64Dll();
    process->HighestUserAddress = (void *)PSP_HIGHEST_USER_ADDRESS32;
    if (NT_SUCCESS(status)) status = PspMapImage(process, PspWow64DllSection, view);
    if (NT_SUCCESS(status)) status = PspMakePeb32(process, image->Base);
    return NT_SUCCESS(status) ? PspFillInitBlock(process) : status;
}

NTSTATUS PspMakeTeb32(EPROCESS *process, ETHREAD *thread, TEB *teb) {
    PSP_STACK stack;
    ULONG64 user = (ULONG64)thread->Tcb.Teb + PS_TEB32_OFFSET;
    NTSTATUS status = PspMakeStack(process, &stack);
    TEB32 *narrow = ExAllocatePool(sizeof *narrow, 'beTP');
    if (!narrow) return STATUS_INSUFFICIENT_RESOURCES;
    if (NT_SUCCESS(status)) {
        narrow->NtTib.ExceptionList = ~0u;
        narrow->NtTib.StackBase = (ULONG)(ULONG64)stack.Base;
        narrow->NtTib.StackLimit = (ULONG)(ULONG64)stack.Limit;
        narrow->NtTib.Self = (ULONG)user;
        narrow->DeallocationStack = (ULONG)(ULONG64)stack.Allocation;
        narrow->ProcessEnvironmentBlock = (ULONG)(ULONG64)PspPeb32(process);
        narrow->ClientId.UniqueProcess = (ULONG)(ULONG64)thread->Cid.UniqueProcess;
        narrow->ClientId.UniqueThread = (ULONG)(ULONG64)thread->Cid.UniqueThread;
        narrow->RealClientId = narrow->ClientId;
        status = PspWrite(process, (void *)user, narrow, sizeof *narrow);
        teb->NtTib.ExceptionList = (void *)user; /* so user mode finds it */
#ifdef HAVE__TEB__WowTebOffset
        teb->WowTebOffset = PS_TEB32_OFFSET;
#endif
    }
    ExFreePool(narrow);
    return status;
}
