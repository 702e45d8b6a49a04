/* spawner.exe: starts brief.exe again and again, so that processes, threads and images come and go.
 * Arguments: count=n in all, threads=n (1 to 8) that start them, pace=milliseconds between two of a thread,
 * wait=milliseconds before the first. Boot option SPAWNEACH=n: what each has of threads beside its first one. */
#include "user.h"

#define MOST_THREADS 8

static volatile LONG64 SpLeft;
static volatile LONG SpRunning;

static void SpStartPrograms(void *argument) {
    char words[40];
    WCHAR line[40];
    SIZE_T length = RtlFormatText(words, sizeof words, "brief.exe threads=%u", RtlBootOption("SPAWNEACH", 2));
    (void)argument;
    for (SIZE_T n = 0; n <= length; n++) line[n] = (WCHAR)words[n];
    while (__atomic_sub_fetch(&SpLeft, 1, __ATOMIC_ACQ_REL) >= 0) {
        RtlStartProgram(L"C:\\Windows\\System32\\brief.exe", line);
        RtlSleep((ULONG)RtlArgument("pace", 20));
    }
    __atomic_sub_fetch(&SpRunning, 1, __ATOMIC_ACQ_REL);
}

void NtProcessStartup(PEB *peb) {
    HANDLE handle;
    (void)peb;
    SpLeft = (LONG64)RtlArgument("count", 10);
    SpRunning = (LONG)MIN(MAX(RtlArgument("threads", 1), 1), MOST_THREADS);
    RtlNote("spawner waits");
    RtlSleep((ULONG)RtlArgument("wait", 0));
    for (LONG more = SpRunning - 1; more; more--)
        NtCreateThreadEx(&handle, 0x1fffff, NULL, NT_CURRENT_PROCESS, SpStartPrograms, NULL, 0, 0, 0, 0, NULL);
    SpStartPrograms(NULL);
    while (SpRunning) RtlSleep(20);
    RtlSleep(200);
    RtlNote("spawner done");
    NtTerminateProcess(NT_CURRENT_PROCESS, STATUS_SUCCESS);
}
