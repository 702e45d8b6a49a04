/* Time: interrupt time from the boot processor's ticks, system time from the real-time clock, both in KUSER_SHARED_DATA. */
#include "nt.h"
#include "ki.h"

#define KI_USER_SHARED_DATA ((KUSER_SHARED_DATA *)0xFFFFF78000000000ull)
static ULONG64 KiBootTime;
volatile ULONG64 KiTimerTicks; /* go on in a freeze, so that its owner can sleep; KiTicks and what users see do not */

static UCHAR KiClockByte(UCHAR index) {
    __out8(0x70, index);
    UCHAR v = __in8(0x71);
    return (UCHAR)((v >> 4) * 10 + (v & 15)); /* BCD, as QEMU keeps it */
}

static void KiSetTime(KSYSTEM_TIME *to, ULONG64 value) { /* High2 first, so that a reader sees a torn value */
    to->High2Time = (LONG)(value >> 32);
    to->LowPart = (ULONG)value;
    to->High1Time = (LONG)(value >> 32);
}

ULONG64 KeQueryInterruptTime(void) { return KiTicks * KI_TICK_MILLISECONDS * 10000; }
ULONG64 KeQuerySystemTime(void) { return KiBootTime + KeQueryInterruptTime(); }

void KiUpdateTime(void) {
    KUSER_SHARED_DATA *shared = KI_USER_SHARED_DATA;
    KiTicks++;
    KiSetTime(&shared->InterruptTime, KeQueryInterruptTime());
    KiSetTime(&shared->SystemTime, KeQuerySystemTime());
    shared->TickCountQuad = KiTicks;
}

/* What user mode may use of the processor, as KiInitializeKernel of NT writes it: before there is any process. */
void KiSetProcessorFeatures(void) {
    static const UCHAR always[] = {2 /* cmpxchg8b */, 3 /* MMX */, 6 /* SSE */, 8 /* RDTSC */, 9 /* PAE */, 10 /* SSE2 */, 12 /* NX */};
    for (ULONG i = 0; i < ARRAYSIZE(always); i++) KI_USER_SHARED_DATA->ProcessorFeatures[always[i]] = 1;
}

void KiInitializeTime(void) {
    KUSER_SHARED_DATA *shared = KI_USER_SHARED_DATA;
    static const USHORT before[] = {0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334};
    ULONG64 year = 2000u + KiClockByte(9), month = KiClockByte(8), day = KiClockByte(7);
    ULONG64 days = (year - 1601) * 365 + (year - 1601) / 4 - (year - 1601) / 100 + (year - 1601) / 400;
    days += before[(month - 1) % 12] + (month > 2 && year % 4 == 0) + day - 1;
    KiBootTime = (((days * 24 + KiClockByte(4)) * 60 + KiClockByte(2)) * 60 + KiClockByte(0)) * 10000000;
    shared->TickCountMultiplier = KI_TICK_MILLISECONDS << 24;
    shared->NtMajorVersion = NT_LAYOUT_MAJOR;
    shared->NtMinorVersion = NT_LAYOUT_MINOR;
#ifdef HAVE__KUSER_SHARED_DATA__NtBuildNumber
    shared->NtBuildNumber = NT_LAYOUT_BUILD;
#endif
    shared->NtProductType = 1;
    shared->ProductTypeIsValid = 1;
    shared->ImageNumberLow = shared->ImageNumberHigh = 0x8664;
    shared->NumberOfPhysicalPages = 0;
    for (ULONG i = 0; i < KeLoaderBlock->MemoryRunCount; i++)
        shared->NumberOfPhysicalPages += (ULONG)KeLoaderBlock->MemoryRuns[i].PageCount;
    shared->SuiteMask = 0x110;
    shared->Cookie = (ULONG)RtlRandom64();
    shared->ActiveProcessorCount = 1;
    shared->ActiveGroupCount = 1;
    shared->LargePageMinimum = 0x200000;
    shared->TestRetInstruction = 0xC3;
    static const WCHAR root[] = L"C:\\Windows";
    memcpy(shared->NtSystemRoot, root, sizeof root);
    KiSetTime(&shared->SystemTime, KiBootTime);
}
