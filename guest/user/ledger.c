/* ledger.exe: keeps books on the heap, and errs. In each round two threads allocate, grow and free entries; the first thread
 * loses one entry for good and frees another one twice, and says in the guest's log which. Ends after its rounds.
 * Arguments: rounds=n, pace=milliseconds. */
#include "user.h"

#define ENTRIES 12

static volatile LONG LedgerRunning;

NOINLINE void *LgNewEntry(ULONG64 number) {
    char *entry = RtlAllocateHeap(NULL, 0, 24 + number % 7 * 40);
    if (entry) RtlFormatText(entry, 24, "entry %u", number);
    return entry;
}

NOINLINE void *LgAmend(void *entry, ULONG64 number) { return RtlReAllocateHeap(NULL, 8, entry, 400 + number % 5 * 100); }

NOINLINE void LgStrike(void *entry) { RtlFreeHeap(NULL, 0, entry); }

NOINLINE void LgForget(ULONG64 round) { /* the leak */
    void *entry = LgNewEntry(round);
    RtlNote("ledger leak %x", (ULONG64)entry);
}

NOINLINE void LgStrikeTwice(ULONG64 round) { /* the double free; nobody else allocates that size */
    void *entry = RtlAllocateHeap(NULL, 0, 9000);
    LgStrike(entry);
    RtlNote("ledger double %x", (ULONG64)entry);
    LgStrike(entry);
}

static void LgKeepBooks(ULONG64 rounds, ULONG64 pace, BOOLEAN errs) {
    for (ULONG64 round = 0; round < rounds; round++) {
        void *entries[ENTRIES];
        for (ULONG n = 0; n < ENTRIES; n++) entries[n] = LgNewEntry(round * ENTRIES + n);
        if (errs) LgForget(round);
        for (ULONG n = 0; n < ENTRIES; n += 3) entries[n] = LgAmend(entries[n], n);
        if (errs) LgStrikeTwice(round);
        for (ULONG n = 0; n < ENTRIES; n++) LgStrike(entries[n]);
        RtlSleep((ULONG)pace);
    }
    __atomic_sub_fetch(&LedgerRunning, 1, __ATOMIC_ACQ_REL);
}

static void LgSecondClerk(void *argument) { LgKeepBooks(RtlArgument("rounds", 8), RtlArgument("pace", 10), FALSE); }

void NtProcessStartup(PEB *peb) {
    HANDLE thread;
    RtlSleep((ULONG)RtlArgument("wait", 0));
    LedgerRunning = 2;
    NtCreateThreadEx(&thread, 0x1fffff, NULL, NT_CURRENT_PROCESS, LgSecondClerk, NULL, 0, 0, 0, 0, NULL);
    LgKeepBooks(RtlArgument("rounds", 8), RtlArgument("pace", 10), TRUE);
    while (LedgerRunning) RtlSleep(20);
    RtlNote("ledger closed");
    NtTerminateProcess(NT_CURRENT_PROCESS, STATUS_SUCCESS);
}
