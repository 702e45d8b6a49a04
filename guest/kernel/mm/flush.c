/* Flushing TLBs on several processors, and the world lock that lets MmFreeze find everything at rest. */
#include "mi.h"

static volatile ULONG64 MiFlushPending, MiFlushAddress, MiFlushPages;
static KSPIN_LOCK MiFlushLock;
static volatile LONG MiWorld; /* entries; bit 30: a freeze waits, bit 31: frozen */
#define MI_FREEZING 0x40000000
#define MI_FROZEN ((LONG)0x80000000)

static void MiFlushHere(ULONG64 Va, ULONG64 Pages) {
    if (!Va) __set_cr3(__cr3());
    else
        for (ULONG64 Page = 0; Page < Pages; Page++) __invalidate((void *)(Va + (Page << PAGE_SHIFT)));
}

/* Answers a flush that another processor asked for; also called while spinning. */
void MiPollFlush(void) {
    ULONG64 Me = 1ull << KeGetCurrentProcessorNumber();
    if (!(MiFlushPending & Me)) return;
    MiFlushHere(MiFlushAddress, MiFlushPages);
    __atomic_and_fetch(&MiFlushPending, ~Me, __ATOMIC_SEQ_CST);
}

void MmFlushInterrupt(void) { MiPollFlush(); }

/* On this processor and on Others. */
static void MiFlushOn(ULONG64 Others, ULONG64 Va, ULONG64 Pages) {
    MiFlushHere(Va, Pages);
    Others &= ((1ull << KeNumberProcessors) - 1) & ~(1ull << KeGetCurrentProcessorNumber());
    if (Others) Others = KiDeferFlush(Others);
    if (!Others) return;
    while (__atomic_exchange_n(&MiFlushLock, 1, __ATOMIC_ACQUIRE)) {
        __relax();
        MiPollFlush();
    }
    MiFlushAddress = Va;
    MiFlushPages = Pages;
    __atomic_store_n(&MiFlushPending, Others, __ATOMIC_SEQ_CST);
    KiRequestFlush(Others);
    while (MiFlushPending) __relax();
    __atomic_store_n(&MiFlushLock, 0, __ATOMIC_RELEASE);
}

/* All processors, whatever address space they are on: user entries have no global bit, and neither has paged pool. */
void MiFlushPagesTb(ULONG64 Va, ULONG64 Pages) {
    KIRQL Irql = KeRaiseIrql(DISPATCH_LEVEL);
    MiFlushOn(~0ull, Va, Pages);
    KeLowerIrql(Irql);
}

void MiFlushTb(ULONG64 Va) { MiFlushPagesTb(Va, 1); }

/* The user half of one address space, whose PTEs have been changed: on the processors that are on it. */
void MiFlushSpaceTb(ULONG64 Dtb) {
    KIRQL Irql = KeRaiseIrql(DISPATCH_LEVEL);
    MiFlushOn(Dtb == MmKernelDirectoryTableBase ? ~0ull : KiProcessorsOn(Dtb), 0, 0);
    KeLowerIrql(Irql);
}

/* Outermost entries (from user mode, from the trimmer, from system services) wait as soon as a freeze is wanted; faults inside
 * the kernel may nest in one, so they wait only for a freeze that stands, when nothing can be nested. */
void MiEnter(BOOLEAN Outermost) {
    for (;;) {
        LONG Seen = MiWorld;
        if (Seen & (Outermost ? MI_FROZEN | MI_FREEZING : MI_FROZEN)) {
            KeYieldThread();
            if (KeGetCurrentIrql() == PASSIVE_LEVEL) KeSleep(1);
            continue;
        }
        if (__atomic_compare_exchange_n(&MiWorld, &Seen, Seen + 1, FALSE, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return;
    }
}

void MiLeave(void) { __atomic_sub_fetch(&MiWorld, 1, __ATOMIC_SEQ_CST); }

void MmFreeze(void) {
    __atomic_or_fetch(&MiWorld, MI_FREEZING, __ATOMIC_SEQ_CST);
    for (;;) {
        LONG Seen = MI_FREEZING;
        if (__atomic_compare_exchange_n(&MiWorld, &Seen, MI_FREEZING | MI_FROZEN, FALSE, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) break;
        KeYieldThread();
        KeSleep(1);
    }
}

void MmThaw(void) { __atomic_and_fetch(&MiWorld, ~(MI_FREEZING | MI_FROZEN), __ATOMIC_SEQ_CST); }
