/* Bringing up the boot processor and then the others. */
#include "nt.h"
#include "io/io.h"
#include "ki.h"

LOADER_BLOCK *KeLoaderBlock;
ULONG KeNumberProcessors;
KPCR KiInitialPCR __attribute__((aligned(4096)));
UCHAR KiInitialStack[KI_INITIAL_STACK_SIZE] __attribute__((aligned(4096)));
static UCHAR KiInitialArea[KI_AREA_SIZE] __attribute__((aligned(4096)));
EPROCESS KiInitialProcess; /* Idle */
ETHREAD KiInitialThread;
UCHAR KiImplementedPhysicalBits;
LOADER_BLOCK KiLoaderBlockCopy;
void Phase1Initialization(void *context);
void KiInitializeDebuggerData(void);
void KiInitializeServices(void);
void HalpLMStub(void);
extern UCHAR HalpLowStub[], HalpLowStubProtected[], HalpLowStubLong[], HalpLowStubEnd[];

typedef struct _PROCESSOR_START_BLOCK {
    UCHAR Jump[4]; /* 16-bit near jump to the code behind the block */
    ULONG CompletionFlag;
    USHORT GdtLimit;
    ULONG GdtBase __attribute__((packed));
    USHORT Idt[5];
    KGDTENTRY64 Gdt[4];
    ULONG64 TiledMemoryMap; /* CR3 with which the switch to long mode is made */
    ULONG PmTarget[2], LmIdentityTarget[2]; /* offset, selector */
    void *LmTarget;
    struct _PROCESSOR_START_BLOCK *SelfMap;
    ULONG64 MsrPat, MsrEFER;
    KPROCESSOR_STATE ProcessorState;
} PROCESSOR_START_BLOCK;
C_ASSERT(FIELD_OFFSET(PROCESSOR_START_BLOCK, Gdt) == 0x18 && FIELD_OFFSET(PROCESSOR_START_BLOCK, TiledMemoryMap) == 0x58);
C_ASSERT(FIELD_OFFSET(PROCESSOR_START_BLOCK, PmTarget) == 0x60 && FIELD_OFFSET(PROCESSOR_START_BLOCK, LmTarget) == 0x70);
C_ASSERT(FIELD_OFFSET(PROCESSOR_START_BLOCK, ProcessorState) == 0x90 && sizeof(PROCESSOR_START_BLOCK) <= 0x680);
#define LOW_STUB_CODE 0x680

static PROCESSOR_START_BLOCK *HalpLowStubBlock;

/* The block that every processor starts on; NT leaves its own in low memory, filled, for as long as it runs. */
static void HalpBuildLowStub(void) {
    ULONG physical = (ULONG)KeLoaderBlock->LowStub;
    PROCESSOR_START_BLOCK *block = MmPhysicalToVirtual(physical);
    memset(block, 0, PAGE_SIZE);
    memcpy((UCHAR *)block + LOW_STUB_CODE, HalpLowStub, (SIZE_T)(HalpLowStubEnd - HalpLowStub));
    block->Jump[0] = 0xE9;
    block->Jump[1] = (UCHAR)(LOW_STUB_CODE - 3);
    block->Jump[2] = (UCHAR)((LOW_STUB_CODE - 3) >> 8);
    block->CompletionFlag = 1;
    block->GdtLimit = sizeof block->Gdt - 1;
    block->GdtBase = physical + FIELD_OFFSET(PROCESSOR_START_BLOCK, Gdt);
    *(ULONG64 *)&block->Gdt[1] = 0x00209B0000000000; /* 0x10: 64-bit code */
    *(ULONG64 *)&block->Gdt[2] = 0x00CF93000000FFFF; /* 0x20: data */
    *(ULONG64 *)&block->Gdt[3] = 0x00CF9B000000FFFF; /* 0x30: 32-bit code */
    block->TiledMemoryMap = KeLoaderBlock->Cr3;
    block->PmTarget[0] = physical + LOW_STUB_CODE + (ULONG)(HalpLowStubProtected - HalpLowStub);
    block->PmTarget[1] = 0x30;
    block->LmIdentityTarget[0] = physical + LOW_STUB_CODE + (ULONG)(HalpLowStubLong - HalpLowStub);
    block->LmIdentityTarget[1] = 0x10;
    block->LmTarget = (void *)HalpLMStub;
    block->SelfMap = block;
    block->MsrPat = __msr(0x277);
    block->MsrEFER = 0x900;
    KSPECIAL_REGISTERS *special = &block->ProcessorState.SpecialRegisters;
    special->Cr0 = __cr0();
    special->Cr3 = MmKernelDirectoryTableBase;
    special->Cr4 = __cr4();
    HalpLowStubBlock = block;
}

/* An application processor's first C code, on its idle thread's stack. */
static void KiInitializeApplicationProcessor(ULONG64 number) {
    KiLoadProcessorTables((ULONG)number);
    KeRaiseIrql(DISPATCH_LEVEL);
    HalpEnableLocalApic();
    HalpStartClock();
    KiCpu[number].Started = TRUE;
    __sti();
    while (KeNumberProcessors <= number) __relax();
    KiIdleLoop();
}

static BOOLEAN KiStartProcessor(ULONG number, ULONG apic_id) {
    UCHAR *area = ExAllocatePool(KI_AREA_SIZE, 'rcpK');
    KPCR *pcr = ExAllocatePool(ROUND_TO_PAGES(sizeof(KPCR)), 'rcpK');
    ETHREAD *idle = ExAllocatePool(sizeof(ETHREAD), 'dhtK');
    UCHAR *stack = MmCreateKernelStack(KI_STACK_SIZE);
    KI_CPU *cpu = &KiCpu[number];
    if (!area || !pcr || !idle || !stack) return FALSE;
    cpu->ApicId = apic_id;
    KiInitializeProcessorTables(number, pcr, area);
    KiSetIstStacks(number);
    KiAdoptIdleThread(number, &idle->Tcb, stack, KI_STACK_SIZE);
    if (KiKvaShadow) KiEnableShadow(number);
    KPROCESSOR_STATE *state = &HalpLowStubBlock->ProcessorState;
    state->SpecialRegisters.Gdtr.Limit = 0x6F;
    state->SpecialRegisters.Gdtr.Base = pcr->GdtBase;
    state->SpecialRegisters.Idtr.Limit = 0xFFF;
    state->SpecialRegisters.Idtr.Base = pcr->IdtBase;
    state->ContextFrame.Rsp = (ULONG64)stack - 0x40;
    *(ULONG64 *)(stack - 0x48) = 0;
    state->ContextFrame.Rsp -= 8;
    state->ContextFrame.Rcx = number;
    state->ContextFrame.Rip = (ULONG64)KiInitializeApplicationProcessor;
    HalpSendInit(apic_id);
    HalpStall(1000);
    for (ULONG attempt = 0; attempt < 2 && !cpu->Started; attempt++) {
        HalpSendStartup(apic_id, (ULONG)(KeLoaderBlock->LowStub >> 12));
        for (ULONG wait = 0; wait < 2000 && !cpu->Started; wait++) HalpStall(100);
    }
    return cpu->Started;
}

/* In Phase 1; the others enter their idle loops at once. */
void KiStartAllProcessors(void) {
    ULONG ids[KI_MAXIMUM_PROCESSORS], count = HalpProcessorApicIds(ids), limit = (ULONG)KeOption("NUMPROC", KI_MAXIMUM_PROCESSORS);
    HalpBuildLowStub();
    for (ULONG i = 1; i < count && i < limit; i++) {
        if (!KiStartProcessor(KeNumberProcessors, ids[i])) {
            KdEvent("{\"event\":\"processor-failed\",\"apic\":%u}", ids[i]);
            return;
        }
        __atomic_add_fetch(&KeNumberProcessors, 1, __ATOMIC_SEQ_CST);
    }
}

/* Called by KiSystemStartup on KiInitialStack. The memory manager first, then all that makes this thread the idle thread. */
void KiInitializeBootProcessor(LOADER_BLOCK *block) {
    ULONG r[4];
    memcpy(&KiLoaderBlockCopy, block, sizeof KiLoaderBlockCopy);
    KeLoaderBlock = &KiLoaderBlockCopy;
    KeLoaderBlock->Options = KeLoaderBlock->OptionsText;
    KdInitSerial();
    KiKvaShadow = KeOption("KVASHADOW", 0) != 0;
    __cpu(0x80000008, 0, r);
    KiImplementedPhysicalBits = (UCHAR)r[0];
    KiInitializeProcessorTables(0, &KiInitialPCR, KiInitialArea);
    KiAdoptIdleThread(0, &KiInitialThread.Tcb, KiInitialStack + KI_INITIAL_STACK_SIZE, KI_INITIAL_STACK_SIZE);
    KiLoadProcessorTables(0);
    KeRaiseIrql(DISPATCH_LEVEL);
    KeNumberProcessors = 1;
    KdEvent("{\"event\":\"kernel\",\"base\":\"%p\",\"size\":%llu,\"physical\":\"%#llx\",\"build\":%u,\"layout\":\"%s\",\"options\":\"%s\"}",
            (void *)KeLoaderBlock->KernelBase, KeLoaderBlock->KernelSize, KeLoaderBlock->KernelPhysicalBase, NT_LAYOUT_BUILD,
            NT_LAYOUT_NAME, KeLoaderBlock->OptionsText);
    MmInitSystem(KeLoaderBlock);
    KiInitialPCR.Prcb.KernelDirectoryTableBase = KiInitialPCR.Prcb.ProcessorState.SpecialRegisters.Cr3 = __cr3();
    KiSetIstStacks(0);
    if (KiKvaShadow) KiEnableShadow(0);
    KiSetProcessorFeatures();
    KiInitializeTime();
    HalpInitializeApic();
    HalpEnableLocalApic();
    ULONG ids[KI_MAXIMUM_PROCESSORS];
    HalpProcessorApicIds(ids);
    KiCpu[0].ApicId = ids[0];
    KiInitializeServices();
    KiInitializeDebuggerData();
    ObInitSystem();
    PsInitSystem();
    HalpStartClock();
    __sti();
    KiSchedulerRuns = TRUE;
    PsCreateSystemThread(Phase1Initialization, NULL);
    KiIdleLoop();
}
