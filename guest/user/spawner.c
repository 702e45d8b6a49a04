/* spawner.exe: starts brief.exe again and again, so that processes, threads and images come and go.
 * Arguments: count=n, pace=milliseconds between two, wait=milliseconds before the first. */
#include "user.h"

void NtProcessStartup(PEB *peb) {
    RtlSleep((ULONG)RtlArgument("wait", 0));
    for (ULONG64 n = RtlArgument("count", 10); n; n--) {
        RtlStartProgram(L"C:\\Windows\\System32\\brief.exe", L"brief.exe");
        RtlSleep((ULONG)RtlArgument("pace", 20));
    }
    RtlSleep(200);
    RtlNote("spawner done");
    NtTerminateProcess(NT_CURRENT_PROCESS, STATUS_SUCCESS);
}
