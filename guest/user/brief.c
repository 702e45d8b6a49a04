/* brief.exe: lives for a moment: some threads beside its first one, then the end. spawner.exe starts it over and over.
 * Arguments: threads=n (2). */
#include "user.h"

static volatile LONG BriefRunning;

static void BrWork(void *argument) {
    RtlSleep(1);
    __atomic_sub_fetch(&BriefRunning, 1, __ATOMIC_ACQ_REL);
}

void NtProcessStartup(PEB *peb) {
    HANDLE thread;
    (void)peb;
    for (ULONG64 more = RtlArgument("threads", 2); more; more--) {
        __atomic_add_fetch(&BriefRunning, 1, __ATOMIC_ACQ_REL);
        if (NT_SUCCESS(NtCreateThreadEx(&thread, 0x1fffff, NULL, NT_CURRENT_PROCESS, BrWork, NULL, 0, 0, 0, 0, NULL))) NtClose(thread);
        else __atomic_sub_fetch(&BriefRunning, 1, __ATOMIC_ACQ_REL);
    }
    while (BriefRunning) RtlSleep(1);
    NtTerminateProcess(NT_CURRENT_PROCESS, STATUS_SUCCESS);
}
