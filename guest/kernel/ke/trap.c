/* What the entries of trap.S call. */
#include "nt.h"
#include "ki.h"

void KiUserException(KTRAP_FRAME *frame, NTSTATUS status, ULONG64 information);

static BOOLEAN KiFromUser(const KTRAP_FRAME *frame) { return frame->SegCs & 1; }

void KiDispatchException(KTRAP_FRAME *frame, ULONG vector) {
    if (vector == 1 || vector == 3) { /* nobody debugs from inside; a debugger outside takes these itself */
        if (vector == 3) return;
        frame->EFlags &= ~0x100u;
        return;
    }
    if (vector != 2 && KiFromUser(frame)) {
        static const NTSTATUS codes[20] = {[0] = (NTSTATUS)0xC0000094, [4] = (NTSTATUS)0xC0000095, [5] = (NTSTATUS)0xC000008C,
                                           [6] = (NTSTATUS)0xC000001D, [17] = (NTSTATUS)0x80000002};
        __sti();
        KiUserException(frame, vector < 20 && codes[vector] ? codes[vector] : STATUS_ACCESS_VIOLATION, frame->Rip);
        return;
    }
    KdEvent("{\"event\":\"trap\",\"vector\":%u,\"rip\":\"%#llx\",\"rsp\":\"%#llx\",\"error\":\"%#llx\",\"cr2\":\"%#llx\"}", vector,
            frame->Rip, frame->Rsp, frame->ErrorCode, __cr2());
    KeBugCheckEx(vector == 8 ? 0x7F : 0x1E, vector, frame->Rip, frame->Rsp, frame->ErrorCode);
}

/* A nested KVM without hardware help may carry SYSCALL out and yet leave the processor in ring 3: then LSTAR's first instruction
 * faults, with interrupts off as no program can have them. It is SWAPGS, which this fault's entry has done: go on behind it
 * in ring 0. */
static BOOLEAN KiRepairSystemCall(KTRAP_FRAME *frame) {
    if (!KiFromUser(frame) || frame->EFlags & 0x200 || frame->FaultAddress != frame->Rip || frame->Rip != __msr(0xC0000082)) return FALSE;
    frame->Rip += 3;
    frame->SegCs = KGDT64_R0_CODE;
    frame->SegSs = KGDT64_R0_DATA;
    return TRUE;
}

void KiHandlePageFault(KTRAP_FRAME *frame) {
    void *address = (void *)frame->FaultAddress;
    ULONG64 error = frame->ErrorCode;
    if (KiRepairSystemCall(frame)) return;
    if (KeGetCurrentIrql() >= DISPATCH_LEVEL || !(frame->EFlags & 0x200))
        KeBugCheckEx(0xA, (ULONG64)address, KeGetCurrentIrql(), error, frame->Rip); /* IRQL_NOT_LESS_OR_EQUAL */
    __sti();
    NTSTATUS status = MmAccessFault(error, address, KiFromUser(frame), frame);
    if (NT_SUCCESS(status)) return;
    if (!KiFromUser(frame)) KeBugCheckEx(0x50, (ULONG64)address, error, frame->Rip, (ULONG64)(ULONG)status); /* PAGE_FAULT_IN_NONPAGED_AREA */
    KiUserException(frame, status, (ULONG64)address);
}

/* ---- Interrupts */

static void (*volatile KiCallRoutine)(void *);
static void *volatile KiCallContext;
static volatile LONG KiCallLeft;
static KSPIN_LOCK KiCallLock;
volatile LONG KiFreezeLevel;
KTHREAD *volatile KiFreezeOwner;

static void KiAnswerIpi(void) {
    KI_CPU *cpu = &KiCpu[KeGetCurrentProcessorNumber()];
    ULONG64 request = __atomic_exchange_n(&cpu->IpiRequest, 0, __ATOMIC_SEQ_CST);
    if (request & KI_IPI_FLUSH) MmFlushInterrupt();
    if (request & KI_IPI_CALL) {
        KiCallRoutine(KiCallContext);
        __atomic_sub_fetch(&KiCallLeft, 1, __ATOMIC_SEQ_CST);
    }
}

/* At DISPATCH_LEVEL, from the DPC interrupt: no spin lock is held here. Only IPIs still come, so nothing of this processor
 * changes memory until it is let go. */
void KiStayFrozen(void) {
    KI_CPU *cpu = &KiCpu[KeGetCurrentProcessorNumber()];
    if (!KiFreezeLevel || !KeGetCurrentProcessorNumber()) return; /* the owner is on the boot processor */
    KIRQL old = KeRaiseIrql(CLOCK_LEVEL);
    cpu->Frozen = TRUE;
    for (;;) {
        __cli();
        if (!KiFreezeLevel) break;
        __asm__ volatile("sti; hlt" : : : "memory");
    }
    cpu->Frozen = FALSE;
    __sti();
    KeLowerIrql(old);
}

void KiHandleInterrupt(KTRAP_FRAME *frame, ULONG vector) {
    KIRQL old = KeGetCurrentIrql(), level = (KIRQL)(vector >> 4);
    if (vector == VECTOR_SPURIOUS) return;
    frame->PreviousIrql = old;
    if (level > old) KeRaiseIrql(level);
    KeGetCurrentPrcb()->InterruptCount++;
    switch (vector) {
    case VECTOR_DPC:
        HalpEndInterrupt();
        __sti();
        KiRetireDpcs();
        break;
    case VECTOR_CLOCK:
        KiClockTick();
        HalpEndInterrupt();
        break;
    case VECTOR_IPI:
        HalpEndInterrupt();
        KiAnswerIpi();
        break;
    default:
        HalpDispatchDevice(vector);
        HalpEndInterrupt();
    }
    __cli();
    if (level > old) KeLowerIrql(old);
}

void KiRequestFlush(ULONG64 processors) {
    for (ULONG i = 0; i < KeNumberProcessors; i++) {
        if (!(processors >> i & 1)) continue;
        __atomic_or_fetch(&KiCpu[i].IpiRequest, KI_IPI_FLUSH, __ATOMIC_SEQ_CST);
        HalpSendIpi(KiCpu[i].ApicId, VECTOR_IPI);
    }
}

void KeIpiGenericCall(void (*routine)(void *), void *context) {
    KIRQL old = KeAcquireSpinLock(&KiCallLock);
    ULONG self = KeGetCurrentProcessorNumber();
    KiCallRoutine = routine;
    KiCallContext = context;
    KiCallLeft = (LONG)KeNumberProcessors - 1;
    for (ULONG i = 0; i < KeNumberProcessors; i++) {
        if (i == self) continue;
        __atomic_or_fetch(&KiCpu[i].IpiRequest, KI_IPI_CALL, __ATOMIC_SEQ_CST);
        HalpSendIpi(KiCpu[i].ApicId, VECTOR_IPI);
    }
    routine(context);
    while (KiCallLeft) __relax();
    KeReleaseSpinLock(&KiCallLock, old);
}

void KeFreezeExecution(void) {
    KTHREAD *thread = KeGetCurrentThread();
    KiPinnedThread = thread; /* device interrupts come to the boot processor */
    while (KeGetCurrentProcessorNumber()) KeYieldThread();
    KiFreezeOwner = thread;
    __atomic_store_n(&KiFreezeLevel, 1, __ATOMIC_SEQ_CST);
    for (ULONG i = 1; i < KeNumberProcessors; i++) HalpSendIpi(KiCpu[i].ApicId, VECTOR_DPC);
    for (ULONG i = 1; i < KeNumberProcessors; i++)
        while (!KiCpu[i].Frozen) __relax();
}

void KeThawExecution(void) {
    __atomic_store_n(&KiFreezeLevel, 0, __ATOMIC_SEQ_CST);
    KiFreezeOwner = NULL;
    for (ULONG i = 1; i < KeNumberProcessors; i++) HalpSendIpi(KiCpu[i].ApicId, VECTOR_IPI);
    for (ULONG i = 1; i < KeNumberProcessors; i++)
        while (KiCpu[i].Frozen) __relax();
    KiPinnedThread = NULL;
}
