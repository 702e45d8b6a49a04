/* Threads on processors: one ready queue for all under one lock, preemption by the clock, waiting on dispatcher objects.
 *
 * The dispatcher lock is held across a context switch: the thread that is switched to releases it. So no processor can
 * run a thread whose registers another one is still saving. */
#include "nt.h"
#include "ki.h"

#define KI_INITIALIZED 0
#define KI_READY 1
#define KI_RUNNING 2
#define KI_STANDBY 3
#define KI_TERMINATED 4
#define KI_WAITING 5
#define THREAD_OBJECT 6
#define EVENT_NOTIFICATION 0
#define EVENT_SYNCHRONIZATION 1

static KSPIN_LOCK KiDispatcherLock;
static LIST_ENTRY KiReadyQueue[32]; /* threads by WaitListEntry */
static LIST_ENTRY KiTimerList; /* waiting threads by Timer.TimerListEntry */
static BOOLEAN KiQueuesMade;
static volatile ULONG64 KiIdleMask; /* processors in their idle threads */
static volatile ULONG64 KiFlushOnWake; /* those of them whose TLBs are stale */
ULONG64 KiTicks;
UCHAR KiTerminationPending;
BOOLEAN KiSchedulerRuns;
KTHREAD *volatile KiPinnedThread; /* on the boot processor */
void KiStartSystemThread(void);
void KiSwapContext(KTHREAD *from, KTHREAD *to);
void KiUpdateTime(void);

static KIRQL KiLockDispatcher(void) {
    KIRQL old = KeRaiseIrql(DISPATCH_LEVEL);
    KiSpin(&KiDispatcherLock);
    return old;
}

static void KiUnlockDispatcher(KIRQL old) {
    KiUnspin(&KiDispatcherLock);
    KeLowerIrql(old);
}

static void KiMakeQueues(void) {
    if (KiQueuesMade) return;
    KiQueuesMade = TRUE;
    for (ULONG i = 0; i < 32; i++) InitializeListHead(&KiReadyQueue[i]);
    InitializeListHead(&KiTimerList);
}

/* ---- Making threads */

static void KiFillThread(KTHREAD *thread, KPROCESS *process, void *stack_base, ULONG stack_size) {
    KiMakeQueues();
    thread->Header.Type = THREAD_OBJECT;
    thread->Header.Size = (UCHAR)(sizeof(KTHREAD) / 4);
    InitializeListHead(&thread->Header.WaitListHead);
    InitializeListHead(&thread->MutantListHead);
    thread->StackBase = stack_base;
    thread->StackLimit = (UCHAR *)stack_base - stack_size;
    thread->InitialStack = stack_base;
    thread->KernelStackResident = 1;
    thread->Process = process;
    thread->ApcState.Process = process;
    InitializeListHead((LIST_ENTRY *)&thread->ApcState.ApcListHead[0]);
    InitializeListHead((LIST_ENTRY *)&thread->ApcState.ApcListHead[1]);
    thread->BasePriority = thread->Priority = 8;
    thread->QuantumReset = KI_QUANTUM_TICKS;
    thread->State = KI_INITIALIZED;
}

/* A thread that will begin in PspThreadStartup(routine, context); with `user_frame` it then goes to user mode there. */
void KiInitializeThread(KTHREAD *thread, KPROCESS *process, void *stack_base, ULONG stack_size, void *routine, void *context,
                        const KTRAP_FRAME *user_frame) {
    KiFillThread(thread, process, stack_base, stack_size);
    UCHAR *top = stack_base;
    top -= sizeof(KTRAP_FRAME);
    if (user_frame) memcpy(top, user_frame, sizeof *user_frame);
    thread->TrapFrame = user_frame ? (KTRAP_FRAME *)top : NULL;
    thread->PreviousMode = user_frame != NULL;
    ULONG64 *start = (ULONG64 *)(top - 0x40);
    start[4] = (ULONG64)routine;
    start[5] = (ULONG64)context;
    start[7] = 0;
    ULONG64 *swap = start - 8; /* KSWITCH_FRAME: rbp at 0x30, return address at 0x38 */
    swap[6] = 0;
    swap[7] = (ULONG64)KiStartSystemThread;
    thread->KernelStack = swap;
}

/* What runs on `number` from now on, or will when it starts, is this thread. */
void KiAdoptIdleThread(ULONG number, KTHREAD *thread, void *stack_base, ULONG stack_size) {
    KPRCB *prcb = &KiCpu[number].Pcr->Prcb;
    extern EPROCESS KiInitialProcess;
    KiFillThread(thread, &KiInitialProcess.Pcb, stack_base, stack_size);
    thread->Priority = thread->BasePriority = 0;
    thread->State = KI_RUNNING;
    thread->Running = 1;
    thread->NextProcessor = number;
    prcb->CurrentThread = prcb->IdleThread = thread;
    prcb->RspBase = (ULONG64)stack_base;
    prcb->RspBaseShadow = (ULONG64)stack_base;
    KiCpu[number].Tss->Rsp0 = (ULONG64)(KiKvaShadow ? KiCpu[number].TransitionStack : stack_base);
}

/* ---- Switching. The dispatcher lock is held throughout. */

static void KiQueueReady(KTHREAD *thread, BOOLEAN first) {
    thread->State = KI_READY;
    LIST_ENTRY *queue = &KiReadyQueue[thread->Priority & 31];
    if (first) InsertHeadList(queue, &thread->WaitListEntry);
    else InsertTailList(queue, &thread->WaitListEntry);
}

static BOOLEAN KiMayRun(const KTHREAD *thread, ULONG number) { return thread != KiPinnedThread || !number; }

static KTHREAD *KiTakeReady(ULONG number, int at_least) {
    if (KiFreezeLevel) {
        KTHREAD *owner = KiFreezeOwner;
        if (number || !owner || owner->State != KI_READY) return NULL;
        RemoveEntryList(&owner->WaitListEntry);
        return owner;
    }
    for (int priority = 31; priority >= at_least; priority--)
        for (LIST_ENTRY *e = KiReadyQueue[priority].Flink; e != &KiReadyQueue[priority]; e = e->Flink) {
            KTHREAD *thread = CONTAINING_RECORD(e, KTHREAD, WaitListEntry);
            if (!KiMayRun(thread, number)) continue;
            RemoveEntryList(e);
            return thread;
        }
    return NULL;
}

/* An idle processor runs on nothing that is ever unmapped, so its TLB may stay stale until it leaves its idle thread: then it
 * finds its bit here. Returns the processors that have to be told at once. The boot processor, to which timers come, always is. */
ULONG64 KiDeferFlush(ULONG64 processors) {
    __atomic_or_fetch(&KiFlushOnWake, processors & ~1ull, __ATOMIC_SEQ_CST);
    return processors & ~(__atomic_load_n(&KiIdleMask, __ATOMIC_SEQ_CST) & ~1ull);
}

static void KiFlushDeferred(ULONG number) {
    if (!(KiFlushOnWake >> number & 1)) return;
    __atomic_and_fetch(&KiFlushOnWake, ~(1ull << number), __ATOMIC_SEQ_CST);
    ULONG64 cr4 = __cr4();
    __set_cr4(cr4 & ~0x80ull); /* global entries too */
    __set_cr4(cr4);
}

/* The processors that are on an address space. One that is not, and comes to it, reads its PTEs as they are now: it says
 * where it goes before it goes. */
ULONG64 KiProcessorsOn(ULONG64 directory) {
    ULONG64 processors = 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    for (ULONG number = 0; number < KeNumberProcessors; number++) {
        ULONG64 cr3 = *(volatile ULONG64 *)&KiCpu[number].Pcr->Prcb.KernelDirectoryTableBase;
        if ((cr3 & ~0xFFFull) == directory) processors |= 1ull << number;
    }
    return processors;
}

void KiSetProcess(KPROCESS *process) {
    KPRCB *prcb = KeGetCurrentPrcb();
    ULONG64 cr3 = process->DirectoryTableBase;
    prcb->KernelDirectoryTableBase = cr3;
    if (__cr3() != cr3) __set_cr3(cr3);
}

/* 32-bit code has its TEB32 at FS, by a descriptor of this processor's GDT. Reloads of FS have 64-bit code lose nothing: it uses GS. */
static void KiSetTeb32(KTHREAD *thread, ULONG number) {
    if (!thread->Teb || !PsWow64Process((EPROCESS *)thread->Process)) return;
    ULONG64 base = (ULONG64)thread->Teb + PS_TEB32_OFFSET;
    ULONG64 *entry = (ULONG64 *)((UCHAR *)KiCpu[number].Gdt + KGDT64_R3_CMTEB);
    *entry = (*entry & 0x00FFFF000000FFFF) | (base & 0xFFFFFF) << 16 | (base >> 24 & 0xFF) << 56;
    __asm__ volatile("movl %0, %%fs" : : "r"(KGDT64_R3_CMTEB | 3) : "memory");
}

static void KiSwitchTo(KTHREAD *to) {
    KPRCB *prcb = KeGetCurrentPrcb();
    KTHREAD *from = prcb->CurrentThread;
    ULONG number = prcb->Number;
    from->Running = 0;
    to->State = KI_RUNNING;
    to->Running = 1;
    to->NextProcessor = number;
    to->ContextSwitches++;
    if (!to->QuantumTarget) to->QuantumTarget = to->QuantumReset;
    prcb->KeContextSwitches++;
    prcb->CurrentThread = to;
    prcb->RspBase = prcb->RspBaseShadow = (ULONG64)to->InitialStack;
    if (!KiKvaShadow) KiCpu[number].Tss->Rsp0 = (ULONG64)to->InitialStack;
    if (to == prcb->IdleThread) __atomic_or_fetch(&KiIdleMask, 1ull << number, __ATOMIC_SEQ_CST);
    else __atomic_and_fetch(&KiIdleMask, ~(1ull << number), __ATOMIC_SEQ_CST);
    if (from == prcb->IdleThread) KiFlushDeferred(number);
    /* the idle threads stay on whatever page tables they find: all map the kernel alike */
    if (to->ApcState.Process->DirectoryTableBase) KiSetProcess(to->ApcState.Process);
    __set_msr(0xC0000102, (ULONG64)to->Teb);
    KiSetTeb32(to, number);
    KiSwapContext(from, to);
}

/* A new thread's first act, in place of the return from KiSwitchTo. */
void KiFinishSwap(void) {
    KiUnspin(&KiDispatcherLock);
    KeLowerIrql(PASSIVE_LEVEL);
    __sti();
}

/* The current thread no longer runs (its State says why); something else does. Returns when it runs again. */
static void KiSwapThread(void) {
    KPRCB *prcb = KeGetCurrentPrcb();
    KTHREAD *next = KiTakeReady(prcb->Number, 0);
    if (!next) next = prcb->IdleThread;
    if (next == prcb->CurrentThread) next->State = KI_RUNNING;
    else KiSwitchTo(next);
}

static void KiWakeIdle(KTHREAD *thread) {
    ULONG64 idle = KiIdleMask & ((1ull << KeNumberProcessors) - 1);
    ULONG self = KeGetCurrentProcessorNumber();
    if (thread == KiPinnedThread) idle &= 1;
    if (idle >> self & 1) idle = 1ull << self;
    if (idle) {
        ULONG target = (ULONG)__builtin_ctzll(idle);
        __atomic_and_fetch(&KiIdleMask, ~(1ull << target), __ATOMIC_SEQ_CST);
        HalpSendIpi(KiCpu[target].ApicId, VECTOR_DPC);
        return;
    }
    KPRCB *prcb = KeGetCurrentPrcb();
    if (thread->Priority > prcb->CurrentThread->Priority && KiMayRun(thread, self)) {
        KiCpu[self].QuantumEnd = TRUE;
        HalpSendIpi(KiCpu[self].ApicId, VECTOR_DPC);
    }
}

static void KiMakeReady(KTHREAD *thread) {
    KiQueueReady(thread, FALSE);
    KiWakeIdle(thread);
}

void KiReadyThread(KTHREAD *thread) {
    KIRQL old = KiLockDispatcher();
    KiMakeReady(thread);
    KiUnlockDispatcher(old);
}

/* ---- The clock */

void KiClockTick(void) { /* CLOCK_LEVEL: takes no lock, asks for the rest at DISPATCH_LEVEL */
    KPRCB *prcb = KeGetCurrentPrcb();
    KI_CPU *cpu = &KiCpu[prcb->Number];
    if (!prcb->Number) KiTimerTicks++;
    if (KiFreezeLevel) {
        if (!prcb->Number) HalpSendIpi(cpu->ApicId, VECTOR_DPC);
        return;
    }
    KTHREAD *thread = prcb->CurrentThread;
    if (!prcb->Number) KiUpdateTime();
    thread->KernelTime++;
    if (thread->QuantumTarget && !--thread->QuantumTarget) cpu->QuantumEnd = TRUE;
    if (!prcb->Number || cpu->QuantumEnd) HalpSendIpi(cpu->ApicId, VECTOR_DPC);
}

static void KiUnwait(KTHREAD *thread, NTSTATUS status) {
    if (thread->WaitBlock[0].Object) RemoveEntryList((LIST_ENTRY *)&thread->WaitBlock[0].WaitListEntry);
    thread->WaitBlock[0].Object = NULL;
    if (thread->Timer.Header.Lock) RemoveEntryList((LIST_ENTRY *)&thread->Timer.TimerListEntry);
    thread->Timer.Header.Lock = 0;
    thread->WaitStatus = status;
    KiMakeReady(thread);
}

static void KiExpireTimers(void) {
    ULONG64 now = KiTimerTicks;
    for (LIST_ENTRY *e = KiTimerList.Flink, *next; e != &KiTimerList; e = next) {
        next = e->Flink;
        KTHREAD *thread = CONTAINING_RECORD(e, KTHREAD, Timer.TimerListEntry);
        if ((ULONG64)thread->Timer.DueTime.QuadPart <= now) KiUnwait(thread, STATUS_TIMEOUT);
    }
}

void KiRetireDpcs(void) {
    KPRCB *prcb = KeGetCurrentPrcb();
    KI_CPU *cpu = &KiCpu[prcb->Number];
    KiStayFrozen();
    KiSpin(&KiDispatcherLock);
    KiFlushDeferred(prcb->Number); /* before any thread of the queues is looked at */
    if (!prcb->Number && KiSchedulerRuns) KiExpireTimers();
    KTHREAD *thread = prcb->CurrentThread;
    BOOLEAN idle = thread == prcb->IdleThread;
    BOOLEAN end = cpu->QuantumEnd;
    cpu->QuantumEnd = FALSE;
    if (KiSchedulerRuns && cpu->Dispatching) {
        KTHREAD *next = KiTakeReady(prcb->Number, idle ? 0 : end ? thread->Priority : thread->Priority + 1);
        if (next) {
            if (idle) thread->State = KI_READY; /* never queued */
            else KiQueueReady(thread, !end);
            KiSwitchTo(next);
        } else {
            if (end) thread->QuantumTarget = thread->QuantumReset;
            if (idle) __atomic_or_fetch(&KiIdleMask, 1ull << prcb->Number, __ATOMIC_SEQ_CST);
        }
    }
    KiUnspin(&KiDispatcherLock);
}

NORETURN void KiIdleLoop(void) {
    ULONG number = KeGetCurrentProcessorNumber();
    KiCpu[number].Dispatching = TRUE;
    __atomic_or_fetch(&KiIdleMask, 1ull << number, __ATOMIC_SEQ_CST);
    KeLowerIrql(PASSIVE_LEVEL);
    HalpSendIpi(KiCpu[number].ApicId, VECTOR_DPC);
    for (;;) {
        __sti();
        __hlt();
    }
}

/* ---- Waiting */

static BOOLEAN KiTakeSignal(DISPATCHER_HEADER *object) {
    if (object->SignalState <= 0) return FALSE;
    if (object->Type == EVENT_SYNCHRONIZATION) object->SignalState = 0;
    else if (object->Type == 5 || object->Type == 2) object->SignalState--; /* semaphore, mutant */
    return TRUE;
}

static void KiStartTimer(KTHREAD *thread, ULONG64 milliseconds) {
    thread->Timer.DueTime.QuadPart = (LONG64)(KiTimerTicks + (milliseconds + KI_TICK_MILLISECONDS - 1) / KI_TICK_MILLISECONDS);
    thread->Timer.Header.Lock = 8; /* TimerNotificationObject; nonzero while queued */
    InsertTailList(&KiTimerList, (LIST_ENTRY *)&thread->Timer.TimerListEntry);
}

NTSTATUS KeWaitForSingleObject(void *object, ULONG64 milliseconds) {
    DISPATCHER_HEADER *header = object;
    KTHREAD *thread = KeGetCurrentThread();
    KIRQL old = KiLockDispatcher();
    NTSTATUS status = STATUS_SUCCESS;
    if (KiTakeSignal(header)) goto done;
    status = STATUS_TIMEOUT;
    if (!milliseconds) goto done;
    thread->WaitBlock[0].Thread = thread;
    thread->WaitBlock[0].Object = object;
    thread->WaitBlock[0].WaitType = 1;
    thread->WaitBlockList = &thread->WaitBlock[0];
    InsertTailList((LIST_ENTRY *)&header->WaitListHead, (LIST_ENTRY *)&thread->WaitBlock[0].WaitListEntry);
    if (milliseconds != KE_FOREVER) KiStartTimer(thread, milliseconds);
    thread->State = KI_WAITING;
    thread->WaitIrql = old;
    thread->WaitReason = 0;
    KiSwapThread();
    status = (NTSTATUS)thread->WaitStatus;
done:
    KiUnlockDispatcher(old);
    return status;
}

void KeSleep(ULONG milliseconds) {
    KTHREAD *thread = KeGetCurrentThread();
    if (!milliseconds || !KiSchedulerRuns) {
        KeYieldThread();
        return;
    }
    KIRQL old = KiLockDispatcher();
    KiStartTimer(thread, milliseconds);
    thread->State = KI_WAITING;
    thread->WaitReason = 4; /* DelayExecution */
    KiSwapThread();
    KiUnlockDispatcher(old);
}

void KeYieldThread(void) {
    KTHREAD *thread = KeGetCurrentThread(); /* in one instruction: between two this thread may go to another processor */
    if (!KiSchedulerRuns || thread == KeGetCurrentPrcb()->IdleThread) {
        __relax();
        return;
    }
    KIRQL old = KiLockDispatcher();
    KTHREAD *next = KiTakeReady(KeGetCurrentProcessorNumber(), 0);
    if (next || !KiMayRun(thread, KeGetCurrentProcessorNumber())) {
        KiQueueReady(thread, FALSE);
        if (!next) next = KeGetCurrentPrcb()->IdleThread;
        if (!KiMayRun(thread, KeGetCurrentProcessorNumber())) KiWakeIdle(thread);
        KiSwitchTo(next);
    }
    KiUnlockDispatcher(old);
}

void KeInitializeEvent(KEVENT *event, ULONG type, BOOLEAN signalled) {
    event->Header.Type = (UCHAR)type;
    event->Header.Size = sizeof(KEVENT) / 4;
    event->Header.SignalState = signalled;
    InitializeListHead((LIST_ENTRY *)&event->Header.WaitListHead);
}

/* Wakes those who wait on an object that has just been signalled. */
static void KiSignal(DISPATCHER_HEADER *header) {
    LIST_ENTRY *head = (LIST_ENTRY *)&header->WaitListHead;
    while (!IsListEmpty(head) && KiTakeSignal(header)) {
        KWAIT_BLOCK *block = CONTAINING_RECORD(head->Flink, KWAIT_BLOCK, WaitListEntry);
        KiUnwait(block->Thread, STATUS_SUCCESS);
    }
}

void KeSetEvent(KEVENT *event) {
    KIRQL old = KiLockDispatcher();
    event->Header.SignalState = 1;
    KiSignal(&event->Header);
    KiUnlockDispatcher(old);
}

void KeResetEvent(KEVENT *event) { event->Header.SignalState = 0; }

/* ---- Push locks: bit 0 taken, bit 1 somebody waits. Who waits gives its processor away: spinning would keep it from the
 * owner, or from QEMU. */

#define PUSH_LOCK_TAKEN 1
#define PUSH_LOCK_WAITED 2
static LIST_ENTRY KiPushLockWaiters = {&KiPushLockWaiters, &KiPushLockWaiters}; /* threads by WaitListEntry; dispatcher lock */

BOOLEAN ExTryAcquirePushLockExclusive(EX_PUSH_LOCK *lock) {
    ULONG64 expected = 0;
    return __atomic_compare_exchange_n((ULONG64 *)lock, &expected, PUSH_LOCK_TAKEN, FALSE, __ATOMIC_ACQUIRE, __ATOMIC_RELAXED);
}

void ExAcquirePushLockExclusive(EX_PUSH_LOCK *lock) {
    ULONG64 *value = (ULONG64 *)lock;
    while (!ExTryAcquirePushLockExclusive(lock)) {
        KTHREAD *thread = KeGetCurrentThread();
        if (!KiSchedulerRuns || thread == KeGetCurrentPrcb()->IdleThread) {
            __relax();
            continue;
        }
        KIRQL old = KiLockDispatcher();
        ULONG64 seen = PUSH_LOCK_TAKEN;
        BOOLEAN waits = __atomic_compare_exchange_n(value, &seen, PUSH_LOCK_TAKEN | PUSH_LOCK_WAITED, FALSE, __ATOMIC_RELAXED,
                                                    __ATOMIC_RELAXED) || seen == (PUSH_LOCK_TAKEN | PUSH_LOCK_WAITED);
        if (waits) {
            thread->WaitBlock[1].Object = lock;
            thread->State = KI_WAITING;
            thread->WaitReason = WrExecutive;
            InsertTailList(&KiPushLockWaiters, &thread->WaitListEntry);
            KiSwapThread();
        }
        KiUnlockDispatcher(old);
    }
}

void ExReleasePushLockExclusive(EX_PUSH_LOCK *lock) {
    ULONG64 expected = PUSH_LOCK_TAKEN;
    if (__atomic_compare_exchange_n((ULONG64 *)lock, &expected, 0, FALSE, __ATOMIC_RELEASE, __ATOMIC_RELAXED)) return;
    KIRQL old = KiLockDispatcher();
    __atomic_store_n((ULONG64 *)lock, 0, __ATOMIC_RELEASE);
    for (LIST_ENTRY *e = KiPushLockWaiters.Flink, *next; e != &KiPushLockWaiters; e = next) {
        next = e->Flink;
        KTHREAD *thread = CONTAINING_RECORD(e, KTHREAD, WaitListEntry);
        if (thread->WaitBlock[1].Object != lock) continue;
        RemoveEntryList(e);
        KiMakeReady(thread);
    }
    KiUnlockDispatcher(old);
}

/* ---- The end of a thread. Its stack is given back by the reaper (ps), once it has left it for good. */
NORETURN void KiTerminateCurrent(void) {
    KTHREAD *thread = KeGetCurrentThread();
    KiLockDispatcher();
    thread->State = KI_TERMINATED;
    thread->Header.SignalState = 1;
    KiSignal(&thread->Header);
    KiSwapThread();
    KeBugCheckEx(0x4B, (ULONG64)thread, 0, 0, 0);
}

/* A process, once its last thread has ended. */
void KiSignalProcess(KPROCESS *process) {
    KIRQL old = KiLockDispatcher();
    process->Header.SignalState = 1;
    KiSignal(&process->Header);
    KiUnlockDispatcher(old);
}

/* ---- Attaching */

void KeStackAttachProcess(KPROCESS *process) {
    KTHREAD *thread = KeGetCurrentThread();
    KIRQL old = KiLockDispatcher();
    thread->SavedApcState.Process = thread->ApcState.Process;
    thread->ApcState.Process = process;
    thread->ApcStateIndex = 1;
    KiSetProcess(process);
    KiUnlockDispatcher(old);
}

void KeUnstackDetachProcess(void) {
    KTHREAD *thread = KeGetCurrentThread();
    KIRQL old = KiLockDispatcher();
    thread->ApcState.Process = thread->SavedApcState.Process;
    thread->ApcStateIndex = 0;
    KiSetProcess(thread->ApcState.Process);
    KiUnlockDispatcher(old);
}
