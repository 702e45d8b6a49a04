/* ticker.exe: threads that call the same three functions at the same moment, each call with its thread's number and its own.
 * When all are through, the log has how often each thread called each function, as the functions counted it.
 * Arguments: threads=n (1 to 8), count=n calls of each function by each thread, wait=milliseconds before the first. */
#include "user.h"

#define MOST_THREADS 8
#define SPINS 500
#define NO_HANDLE 0x40000000ull /* so high that no process has such a handle */

static ULONG64 TkThreads, TkCount;
static volatile ULONG64 TkArrived;
static volatile LONG TkRunning;
static struct {
    volatile ULONG64 Ticks, Tocks, Closes;
} TkCounts[MOST_THREADS];
static volatile ULONG64 TkLast[MOST_THREADS];

NOINLINE void TkTick(ULONG64 thread, ULONG64 number) {
    TkCounts[thread].Ticks++;
    TkLast[thread] = number; /* or the compiler would not pass it */
}

NOINLINE void TkTock(ULONG64 thread, ULONG64 number) {
    volatile ULONG64 told = number; /* a stack of its own */
    TkCounts[thread].Tocks += told == number;
}

/* Waits until every thread is in the same round. */
static void TkMeet(ULONG64 round) {
    __atomic_add_fetch(&TkArrived, 1, __ATOMIC_ACQ_REL);
    for (ULONG spins = 1; TkArrived < (round + 1) * TkThreads; spins++) {
        if (spins % SPINS) __builtin_ia32_pause();
        else NtYieldExecution();
    }
}

static void TkRun(void *argument) {
    ULONG64 thread = (ULONG64)argument;
    for (ULONG64 number = 0; number < TkCount; number++) {
        TkMeet(number);
        TkTick(thread, number);
        TkTock(thread, number);
        TkCounts[thread].Closes += NtClose((HANDLE)(NO_HANDLE | thread << 24 | number)) != STATUS_SUCCESS;
    }
    __atomic_sub_fetch(&TkRunning, 1, __ATOMIC_ACQ_REL);
}

void NtProcessStartup(PEB *peb) {
    HANDLE handle;
    (void)peb;
    TkThreads = MIN(MAX(RtlArgument("threads", 4), 1), MOST_THREADS);
    TkCount = RtlArgument("count", 100);
    TkRunning = (LONG)TkThreads;
    RtlNote("ticker waits");
    RtlSleep((ULONG)RtlArgument("wait", 0));
    for (ULONG64 thread = 0; thread < TkThreads; thread++)
        NtCreateThreadEx(&handle, 0x1fffff, NULL, NT_CURRENT_PROCESS, TkRun, (void *)thread, 0, 0, 0, 0, NULL);
    while (TkRunning) RtlSleep(20);
    for (ULONG64 thread = 0; thread < TkThreads; thread++)
        RtlNote("ticker thread %u: %u %u %u", thread, TkCounts[thread].Ticks, TkCounts[thread].Tocks, TkCounts[thread].Closes);
    RtlNote("ticker done");
    NtTerminateProcess(NT_CURRENT_PROCESS, STATUS_SUCCESS);
}
