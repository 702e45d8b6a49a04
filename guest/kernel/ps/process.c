/* Processes and threads as the kernel's lists show them: EPROCESS, ETHREAD, ids in PspCidTable. */
#include "io/io.h"
#include "ke/ki.h"
#include "psp.h"

LIST_ENTRY PsActiveProcessHead = {&PsActiveProcessHead, &PsActiveProcessHead};
EPROCESS *PsInitialSystemProcess, *PsIdleProcess;
EX_PUSH_LOCK PspActiveProcessLock;
HANDLE_TABLE *PspCidTable;
extern EPROCESS KiInitialProcess;
extern ETHREAD KiInitialThread;
static KEVENT PspReaperEvent;
static ETHREAD *PspReaperList;
static KSPIN_LOCK PspReaperLock;

/* ---- Ids: PspCidTable is a real HANDLE_TABLE of one page, its entries point at the objects' bodies */

#define CID_ENTRIES (PAGE_SIZE / sizeof(HANDLE_TABLE_ENTRY))
static EX_PUSH_LOCK PspCidLock;
static ULONG PspCidNext = 1;

static BOOLEAN PspCidFree(HANDLE_TABLE_ENTRY *entry) { return *(ULONG64 *)entry == 0; }

HANDLE PspAllocateCid(void *object) {
    HANDLE_TABLE_ENTRY *entries = (HANDLE_TABLE_ENTRY *)(PspCidTable->TableCode & ~3ull);
    HANDLE id = NULL;
    ExAcquirePushLockExclusive(&PspCidLock);
    for (ULONG tried = 0; tried < CID_ENTRIES && !id; tried++) {
        ULONG index = PspCidNext;
        PspCidNext = PspCidNext + 1 < CID_ENTRIES ? PspCidNext + 1 : 1;
        if (!PspCidFree(&entries[index])) continue;
#ifdef HAVE__HANDLE_TABLE_ENTRY__ObjectPointerBits
        entries[index].ObjectPointerBits = (ULONG64)object >> 4 & 0xFFFFFFFFFFF;
        entries[index].Unlocked = 1;
#else
        entries[index].Object = (void *)((ULONG64)object | 1);
#endif
        id = (HANDLE)(ULONG64)(index * 4);
    }
    ExReleasePushLockExclusive(&PspCidLock);
    return id;
}

void PspFreeCid(HANDLE id) {
    HANDLE_TABLE_ENTRY *entries = (HANDLE_TABLE_ENTRY *)(PspCidTable->TableCode & ~3ull);
    memset(&entries[(ULONG64)id / 4], 0, sizeof *entries);
}

static void PspMakeCidTable(void) {
    PspCidTable = ExAllocatePool(sizeof(HANDLE_TABLE), 'btbO');
    PspCidTable->TableCode = (ULONG64)ExAllocatePool(PAGE_SIZE, 'btbO');
    PspCidTable->NextHandleNeedingPool = (ULONG)(CID_ENTRIES * 4);
    InitializeListHead((LIST_ENTRY *)&PspCidTable->HandleTableList);
#ifdef HAVE__HANDLE_TABLE__StrictFIFO
    PspCidTable->StrictFIFO = 1;
#endif
}

/* ---- Processes */

static void PspFillProcess(EPROCESS *process, const CHAR *name) {
    process->Pcb.Header.Type = 3;
    process->Pcb.Header.Size = (UCHAR)(sizeof(KPROCESS) / 4);
    InitializeListHead((LIST_ENTRY *)&process->Pcb.Header.WaitListHead);
    InitializeListHead((LIST_ENTRY *)&process->Pcb.ThreadListHead);
    InitializeListHead((LIST_ENTRY *)&process->Pcb.ReadyListHead);
    InitializeListHead((LIST_ENTRY *)&process->Pcb.ProfileListHead);
    InitializeListHead((LIST_ENTRY *)&process->ThreadListHead);
    InitializeListHead((LIST_ENTRY *)&process->ActiveProcessLinks);
    InitializeListHead((LIST_ENTRY *)&process->SessionProcessLinks);
    InitializeListHead((LIST_ENTRY *)&process->JobLinks);
    process->Pcb.BasePriority = 8;
    process->Pcb.QuantumReset = KI_QUANTUM_TICKS;
    process->PriorityClass = 2;
    process->CreateTime.QuadPart = (LONG64)KeQuerySystemTime();
    process->ExitStatus = STATUS_PENDING;
    process->Cookie = (ULONG)RtlRandom64();
    for (ULONG i = 0; i < 14 && name[i]; i++) process->ImageFileName[i] = (UCHAR)name[i];
}

EPROCESS *PspCreateProcessObject(const CHAR *name, EPROCESS *parent) {
    EPROCESS *process = ObCreateObject(PsProcessType, sizeof(EPROCESS));
    if (!process) return NULL;
    PspFillProcess(process, name);
    process->UniqueProcessId = PspAllocateCid(process);
    process->InheritedFromUniqueProcessId = parent ? parent->UniqueProcessId : NULL;
    process->ObjectTable = ObCreateHandleTable(process);
    if (process->UniqueProcessId && process->ObjectTable) return process;
    ObDereferenceObject(process);
    return NULL;
}

NOINLINE void PspInsertProcess(EPROCESS *process) {
    ExAcquirePushLockExclusive(&PspActiveProcessLock);
    InsertTailList(&PsActiveProcessHead, (LIST_ENTRY *)&process->ActiveProcessLinks);
    ExReleasePushLockExclusive(&PspActiveProcessLock);
}

EPROCESS *PsGetNextProcess(EPROCESS *process) {
    ExAcquirePushLockExclusive(&PspActiveProcessLock);
    LIST_ENTRY *at = process ? process->ActiveProcessLinks.Flink : PsActiveProcessHead.Flink;
    EPROCESS *next = at == &PsActiveProcessHead ? NULL : CONTAINING_RECORD(at, EPROCESS, ActiveProcessLinks);
    if (next) ObReferenceObject(next);
    ExReleasePushLockExclusive(&PspActiveProcessLock);
    if (process) ObDereferenceObject(process);
    return next;
}

/* ---- Threads */

NOINLINE void PspInsertThread(ETHREAD *thread, EPROCESS *process) {
    ObReferenceObject(process);
    ObReferenceObject(thread); /* until it is reaped, whatever its creator does */
    ExAcquirePushLockExclusive(&process->ProcessLock);
    InsertTailList((LIST_ENTRY *)&process->ThreadListHead, (LIST_ENTRY *)&thread->ThreadListEntry);
    InsertTailList((LIST_ENTRY *)&process->Pcb.ThreadListHead, (LIST_ENTRY *)&thread->Tcb.ThreadListEntry);
    process->ActiveThreads++;
    ExReleasePushLockExclusive(&process->ProcessLock);
    KdEvent("{\"event\":\"thread\",\"pid\":%u,\"tid\":%u}", PsGetProcessId(process), (ULONG)(ULONG64)thread->Cid.UniqueThread);
}

NTSTATUS PspCreateThread(EPROCESS *process, void *routine, void *context, const KTRAP_FRAME *frame, void *teb, ETHREAD **result) {
    ETHREAD *thread = ObCreateObject(PsThreadType, sizeof(ETHREAD));
    if (!thread) return STATUS_INSUFFICIENT_RESOURCES;
    void *stack = MmCreateKernelStack(PSP_STACK_SIZE);
    HANDLE id = stack ? PspAllocateCid(thread) : NULL;
    if (!id) {
        if (stack) MmDeleteKernelStack(stack, PSP_STACK_SIZE);
        ObDereferenceObject(thread);
        return STATUS_INSUFFICIENT_RESOURCES;
    }
    KiInitializeThread(&thread->Tcb, &process->Pcb, stack, PSP_STACK_SIZE, routine, context, frame);
    thread->Cid.UniqueProcess = process->UniqueProcessId;
    thread->Cid.UniqueThread = id;
    thread->Tcb.Teb = teb;
    thread->Tcb.SystemThread = frame == NULL;
    thread->CreateTime.QuadPart = (LONG64)KeQuerySystemTime();
    thread->StartAddress = frame ? (void *)frame->Rip : routine;
    thread->Win32StartAddress = frame ? (void *)frame->Rcx : routine;
    thread->ExitStatus = STATUS_PENDING;
    InitializeListHead((LIST_ENTRY *)&thread->IrpList);
    PspInsertThread(thread, process);
    *result = thread;
    return STATUS_SUCCESS;
}

void PspStartThread(ETHREAD *thread) { KiReadyThread(&thread->Tcb); }

/* A thread's first C code (called by KiStartSystemThread). A user thread returns from here into user mode. */
void PspThreadStartup(void (*routine)(void *), void *context) {
    if (!routine) return;
    routine(context);
    PspExitThread(STATUS_SUCCESS);
}

NTSTATUS PsCreateSystemThread(void (*routine)(void *), void *context) {
    ETHREAD *thread;
    NTSTATUS status = PspCreateThread(PsInitialSystemProcess, (void *)routine, context, NULL, NULL, &thread);
    if (!NT_SUCCESS(status)) return status;
    PspStartThread(thread);
    ObDereferenceObject(thread);
    return status;
}

void PsTerminateSystemThread(NTSTATUS status) { PspExitThread(status); }

/* ---- Exit */

void PspTerminateProcess(EPROCESS *process, NTSTATUS status) {
    ExAcquirePushLockExclusive(&process->ProcessLock);
    process->ExitStatus = status;
    for (LIST_ENTRY *e = process->ThreadListHead.Flink; e != (LIST_ENTRY *)&process->ThreadListHead; e = e->Flink)
        CONTAINING_RECORD(e, ETHREAD, ThreadListEntry)->Terminated = 1;
    ExReleasePushLockExclusive(&process->ProcessLock);
    KiTerminationPending = 1;
}

/* `trim` is NT's: give the working set back at once. */
NOINLINE void PspExitProcess(BOOLEAN trim, EPROCESS *process) {
    KdEvent("{\"event\":\"process-exit\",\"pid\":%u,\"name\":\"%s\",\"status\":\"%#x\"}", PsGetProcessId(process),
            process->ImageFileName, process->ExitStatus);
    process->ExitTime.QuadPart = (LONG64)KeQuerySystemTime();
    ObKillProcess(process);
    MmCleanProcessAddressSpace(process);
    PspDeleteWow64Process(process);
    ExAcquirePushLockExclusive(&PspActiveProcessLock);
    RemoveEntryList((LIST_ENTRY *)&process->ActiveProcessLinks);
    ExReleasePushLockExclusive(&PspActiveProcessLock);
}

NORETURN void PspExitThread(NTSTATUS status) {
    ETHREAD *thread = PsGetCurrentThread();
    EPROCESS *process = (EPROCESS *)thread->Tcb.Process;
    KdEvent("{\"event\":\"thread-exit\",\"pid\":%u,\"tid\":%u}", PsGetProcessId(process),
            (ULONG)(ULONG64)thread->Cid.UniqueThread);
    thread->ExitStatus = status;
    thread->ExitTime.QuadPart = (LONG64)KeQuerySystemTime();
    ExAcquirePushLockExclusive(&process->ProcessLock);
    RemoveEntryList((LIST_ENTRY *)&thread->ThreadListEntry);
    RemoveEntryList((LIST_ENTRY *)&thread->Tcb.ThreadListEntry);
    BOOLEAN last = IsListEmpty((LIST_ENTRY *)&process->ThreadListHead);
    ExReleasePushLockExclusive(&process->ProcessLock);
    if (last) PspExitProcess(TRUE, process);
    PspFreeCid(thread->Cid.UniqueThread);
    KIRQL old = KeAcquireSpinLock(&PspReaperLock);
    thread->Tcb.QueueListEntry.Flink = (void *)PspReaperList;
    PspReaperList = thread;
    KeReleaseSpinLock(&PspReaperLock, old);
    KeSetEvent(&PspReaperEvent);
    KiTerminateCurrent();
}

/* Gives back what a thread cannot give back itself: its stack and, with the last one, its process's page tables. */
static void PspReaper(void *context) {
    for (;;) {
        KeWaitForSingleObject(&PspReaperEvent, KE_FOREVER);
        KIRQL old = KeAcquireSpinLock(&PspReaperLock);
        ETHREAD *thread = PspReaperList;
        PspReaperList = NULL;
        KeReleaseSpinLock(&PspReaperLock, old);
        while (thread) {
            ETHREAD *next = (ETHREAD *)thread->Tcb.QueueListEntry.Flink;
            EPROCESS *process = (EPROCESS *)thread->Tcb.Process;
            while (*(volatile UCHAR *)&thread->Tcb.State != 4 || *(volatile UCHAR *)&thread->Tcb.Running) KeSleep(10);
            MmDeleteKernelStack(thread->Tcb.StackBase, PSP_STACK_SIZE);
            /* Counted here and not in PspExitThread: a thread on its way out still runs on its process's page tables. */
            if (!__atomic_sub_fetch(&process->ActiveThreads, 1, __ATOMIC_ACQ_REL) && process != PsInitialSystemProcess) {
                KiSignalProcess(&process->Pcb);
                MmDeleteProcessAddressSpace(process);
                PspFreeCid(process->UniqueProcessId);
                ObDereferenceObject(process); /* the creator's */
            }
            ObDereferenceObject(process);
            ObDereferenceObject(thread);
            thread = next;
        }
    }
}

/* On the way out of every system service, once any thread has been marked. */
void KiCheckTermination(void) {
    if (PsGetCurrentThread()->Terminated) PspExitThread(PsGetCurrentProcess()->ExitStatus);
}

/* An exception of user mode that nobody inside will handle: the process ends, as a debugger-less NT would end it. */
void KiUserException(KTRAP_FRAME *frame, NTSTATUS status, ULONG64 information) {
    EPROCESS *process = PsGetCurrentProcess();
    KdEvent("{\"event\":\"exception\",\"pid\":%u,\"tid\":%u,\"name\":\"%s\",\"status\":\"%#x\",\"rip\":\"%#llx\",\"rsp\":\"%#llx\","
            "\"address\":\"%#llx\"}",
            PsGetProcessId(process), (ULONG)(ULONG64)PsGetCurrentThread()->Cid.UniqueThread, process->ImageFileName, status,
            frame->Rip, frame->Rsp, information);
    PspTerminateProcess(process, status);
    PspExitThread(status);
}

/* ---- Processes without user code */

static NTSTATUS PspCreateMinimalProcess(const CHAR *name, void (*routine)(void *), EPROCESS **result) {
    EPROCESS *process = PspCreateProcessObject(name, PsInitialSystemProcess);
    ETHREAD *thread;
    if (!process) return STATUS_INSUFFICIENT_RESOURCES;
    NTSTATUS status = MmCreateProcessAddressSpace(process);
    if (NT_SUCCESS(status)) status = PspCreateThread(process, (void *)routine, NULL, NULL, NULL, &thread);
    if (!NT_SUCCESS(status)) {
        ObDereferenceObject(process);
        return status;
    }
    PspInsertProcess(process);
    KdEvent("{\"event\":\"process\",\"pid\":%u,\"ppid\":%u,\"name\":\"%s\",\"eprocess\":\"%p\",\"dtb\":\"%#llx\",\"user_dtb\":\"%#llx\"}",
            PsGetProcessId(process), PsGetProcessId(PsInitialSystemProcess), process->ImageFileName, process,
            process->Pcb.DirectoryTableBase, process->Pcb.UserDirectoryTableBase);
    PspStartThread(thread);
    *result = process;
    return STATUS_SUCCESS;
}

/* The process whose address space holds compressed pages. It is made, as in NT, when somebody asks for a store (SysMain, by
 * NtSetSystemInformation) and a paging file exists. */
NTSTATUS SmFirstTimeInit(void) {
    static EX_PUSH_LOCK lock;
    static EPROCESS *process;
    NTSTATUS status = MmStoreCheckPagefiles();
    if (!NT_SUCCESS(status)) return status;
    ExAcquirePushLockExclusive(&lock);
    if (!process) status = PspCreateMinimalProcess("MemCompression", SmKmStoreWorker, &process);
    ExReleasePushLockExclusive(&lock);
    return NT_SUCCESS(status) ? SmWaitForStore() : status;
}

/* ---- Start */

void PsInitSystem(void) {
    PspMakeCidTable();
    KeInitializeEvent(&PspReaperEvent, SynchronizationEvent, FALSE);
    PspFillProcess(&KiInitialProcess, "Idle");
    KiInitialProcess.Pcb.DirectoryTableBase = MmKernelDirectoryTableBase;
    PsIdleProcess = &KiInitialProcess;
    EPROCESS *system = PspCreateProcessObject("System", NULL);
    if (!system) KeBugCheckEx(0x32, 0, 0, 0, 0);
    MmInitializeSystemProcess(system);
    PsInitialSystemProcess = system;
    ObpKernelHandleTable = (HANDLE_TABLE *)system->ObjectTable;
    PspInsertProcess(system);
    KdEvent("{\"event\":\"process\",\"pid\":%u,\"ppid\":0,\"name\":\"System\",\"eprocess\":\"%p\",\"dtb\":\"%#llx\"}",
            PsGetProcessId(system), system, system->Pcb.DirectoryTableBase);
    PsCreateSystemThread(PspReaper, NULL);
}
