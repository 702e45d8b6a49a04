/* The second half of the boot, on a thread of System: processors, devices, memory manager's threads, smss.exe. */
#include "nt.h"
#include "io/io.h"
#include "ki.h"

NTSTATUS PspLocateSystemDll(void);
void KiCommandThread(void *context);

/* As in NT: MININT alone makes WinPE mode, INRAM beside it says that the system runs from memory. */
NOINLINE void Phase1InitializationDiscard(void) {
    if (!KeOptionText("MININT", NULL)) return;
    InitWinPEModeType |= 1;
    if (KeOptionText("INRAM", NULL)) InitWinPEModeType |= 0x80000000;
}

static void KeBalanceSetManager(void *context) {
    ULONG64 period = KeOption("BALANCE", 1000);
    for (;;) {
        for (ULONG64 slept = 0; slept < period && !MmMemoryIsShort(); slept += 50) KeSleep(50);
        MmWorkingSetManager();
    }
}

void Phase1Initialization(void *context) {
    EPROCESS *process;
    ETHREAD *thread;
    Phase1InitializationDiscard();
    KiStartAllProcessors();
    ((KUSER_SHARED_DATA *)0xFFFFF78000000000ull)->ActiveProcessorCount = KeNumberProcessors;
    KdEvent("{\"event\":\"processors\",\"count\":%u}", KeNumberProcessors);
    NTSTATUS status = IoInitSystem();
    KdEvent("{\"event\":\"io\",\"status\":\"%#x\"}", status);
    MmInitSystemPhase1();
    PsCreateSystemThread(KiCommandThread, NULL);
    if (KeOption("BALANCE", 1)) PsCreateSystemThread(KeBalanceSetManager, NULL);
    status = PspLocateSystemDll();
    if (!NT_SUCCESS(status)) KeBugCheckEx(0x6B, (ULONG64)(ULONG)status, 1, 0, 0); /* PROCESS1_INITIALIZATION_FAILED */
    status = PsCreateUserProcess(L"\\SystemRoot\\System32\\smss.exe", L"\\SystemRoot\\System32\\smss.exe", PsInitialSystemProcess,
                                 &process, &thread);
    if (!NT_SUCCESS(status)) KeBugCheckEx(0x6F, (ULONG64)(ULONG)status, 0, 0, 0); /* SESSION3_INITIALIZATION_FAILED */
    ObDereferenceObject(thread);
    KdEvent("{\"event\":\"phase1-done\",\"milliseconds\":%llu}", KeQueryInterruptTime() / 10000);
}
