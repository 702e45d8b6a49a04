/* brief.exe: lives for a moment: two threads beside its first one, then the end. spawner.exe starts it over and over. */
#include "user.h"

static volatile LONG BriefRunning = 2;

static void BrWork(void *argument) {
    RtlSleep(1);
    __atomic_sub_fetch(&BriefRunning, 1, __ATOMIC_ACQ_REL);
}

void NtProcessStartup(PEB *peb) {
    HANDLE thread;
    for (int n = 0; n < 2; n++) {
        NtCreateThreadEx(&thread, 0x1fffff, NULL, NT_CURRENT_PROCESS, BrWork, NULL, 0, 0, 0, 0, NULL);
        NtClose(thread);
    }
    while (BriefRunning) RtlSleep(1);
    NtTerminateProcess(NT_CURRENT_PROCESS, STATUS_SUCCESS);
}
