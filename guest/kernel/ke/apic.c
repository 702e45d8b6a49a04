/* ACPI's processor table, the local APIC, the I/O APIC, the clock. */
#include "nt.h"
#include "ki.h"

static volatile ULONG *HalpLocalApic;
static volatile ULONG *HalpIoApic;
static ULONG HalpApicIds[KI_MAXIMUM_PROCESSORS], HalpApicCount;
static ULONG64 HalpLocalApicAddress = 0xFEE00000, HalpIoApicAddress = 0xFEC00000;
static ULONG HalpIsaOverride[16], HalpIsaFlags[16];
static ULONG HalpTicksPerMillisecond, HalpClockCount;
ULONG64 HalpTscPerMillisecond;

static void (*HalpDeviceRoutine[4])(void *);
static void *HalpDeviceContext[4];
static ULONG HalpDeviceCount;

static void HalpReadMadt(const UCHAR *madt) {
    ULONG length = *(const ULONG *)(madt + 4);
    HalpLocalApicAddress = *(const ULONG *)(madt + 36);
    for (ULONG at = 44; at + 2 <= length && madt[at + 1]; at += madt[at + 1]) {
        const UCHAR *entry = madt + at;
        if (entry[0] == 0 && (*(const ULONG *)(entry + 4) & 1) && HalpApicCount < KI_MAXIMUM_PROCESSORS)
            HalpApicIds[HalpApicCount++] = entry[3];
        if (entry[0] == 1) HalpIoApicAddress = *(const ULONG *)(entry + 4);
        if (entry[0] == 2 && entry[3] < 16) {
            HalpIsaOverride[entry[3]] = *(const ULONG *)(entry + 4);
            HalpIsaFlags[entry[3]] = *(const USHORT *)(entry + 8);
        }
    }
}

static void HalpFindMadt(void) {
    if (!KeLoaderBlock->Rsdp) return;
    const UCHAR *rsdp = MmPhysicalToVirtual(KeLoaderBlock->Rsdp);
    const UCHAR *rsdt = MmPhysicalToVirtual(*(const ULONG *)(rsdp + 16));
    ULONG length = *(const ULONG *)(rsdt + 4);
    for (ULONG at = 36; at + 4 <= length; at += 4) {
        const UCHAR *table = MmPhysicalToVirtual(*(const ULONG *)(rsdt + at));
        if (!strncmp((const char *)table, "APIC", 4)) HalpReadMadt(table);
    }
}

static ULONG HalpReadIoApic(ULONG index) {
    HalpIoApic[0] = index;
    return HalpIoApic[4];
}

static void HalpWriteIoApic(ULONG index, ULONG value) {
    HalpIoApic[0] = index;
    HalpIoApic[4] = value;
}

void HalpInitializeApic(void) {
    for (ULONG i = 0; i < 16; i++) HalpIsaOverride[i] = i;
    HalpFindMadt();
    if (!HalpApicCount) HalpApicIds[HalpApicCount++] = 0;
    HalpLocalApic = MmMapIoSpace(HalpLocalApicAddress, 0x1000);
    HalpIoApic = MmMapIoSpace(HalpIoApicAddress, 0x1000);
    __out8(0x21, 0xFF); /* the old interrupt controllers stay silent */
    __out8(0xA1, 0xFF);
    for (ULONG i = 0, n = HalpReadIoApic(1) >> 16 & 0xFF; i <= n; i++) HalpWriteIoApic(0x10 + 2 * i, 0x10000);
}

ULONG HalpProcessorApicIds(ULONG ids[KI_MAXIMUM_PROCESSORS]) {
    ULONG self = HalpLocalApic[0x20 / 4] >> 24, count = 0;
    ids[count++] = self;
    for (ULONG i = 0; i < HalpApicCount; i++)
        if (HalpApicIds[i] != self) ids[count++] = HalpApicIds[i];
    return count;
}

void HalpEnableLocalApic(void) {
    HalpLocalApic[0x80 / 4] = 0;
    HalpLocalApic[0x320 / 4] = 0x10000;
    HalpLocalApic[0x350 / 4] = 0x10000;
    HalpLocalApic[0x360 / 4] = 0x10000;
    HalpLocalApic[0x370 / 4] = 0x10000;
    HalpLocalApic[0xF0 / 4] = 0x100 | VECTOR_SPURIOUS;
}

void HalpEndInterrupt(void) { HalpLocalApic[0xB0 / 4] = 0; }

static void HalpCommand(ULONG apic_id, ULONG low) {
    BOOLEAN bits = (__flags() & 0x200) != 0;
    __cli();
    HalpLocalApic[0x310 / 4] = apic_id << 24;
    HalpLocalApic[0x300 / 4] = low;
    while (HalpLocalApic[0x300 / 4] & 0x1000) __relax();
    if (bits) __sti();
}

void HalpSendIpi(ULONG apic_id, ULONG vector) { HalpCommand(apic_id, 0x4000 | vector); }
void HalpSendInit(ULONG apic_id) { HalpCommand(apic_id, 0x4500); }
void HalpSendStartup(ULONG apic_id, ULONG page) { HalpCommand(apic_id, 0x4600 | page); }

/* Waits on the PIT's channel 2. */
static void HalpWaitPit(ULONG counts) {
    UCHAR gate = __in8(0x61);
    __out8(0x61, (gate & ~2) | 1);
    __out8(0x43, 0xB0);
    __out8(0x42, (UCHAR)counts);
    __out8(0x42, (UCHAR)(counts >> 8));
    gate = __in8(0x61) & ~1;
    __out8(0x61, gate);
    __out8(0x61, gate | 1);
    while (!(__in8(0x61) & 0x20)) __relax();
}

static void HalpCalibrate(void) {
    HalpLocalApic[0x3E0 / 4] = 3; /* divide by 16 */
    HalpLocalApic[0x320 / 4] = 0x10000;
    HalpLocalApic[0x380 / 4] = ~0u;
    ULONG64 before = __tsc();
    HalpWaitPit(11932); /* 10 ms */
    HalpTscPerMillisecond = (__tsc() - before) / 10;
    HalpTicksPerMillisecond = (~0u - HalpLocalApic[0x390 / 4]) / 10;
    HalpClockCount = HalpTicksPerMillisecond * KI_TICK_MILLISECONDS;
}

void HalpStall(ULONG microseconds) {
    ULONG64 end = __tsc() + HalpTscPerMillisecond * microseconds / 1000;
    while (__tsc() < end) __relax();
}

/* Periodic; calibrates on the first call. */
void HalpStartClock(void) {
    if (!HalpClockCount) HalpCalibrate();
    HalpLocalApic[0x3E0 / 4] = 3;
    HalpLocalApic[0x320 / 4] = 0x20000 | VECTOR_CLOCK;
    HalpLocalApic[0x380 / 4] = HalpClockCount;
}

NTSTATUS KeConnectInterrupt(ULONG gsi, BOOLEAN level_triggered, void (*routine)(void *), void *context) {
    if (HalpDeviceCount >= ARRAYSIZE(HalpDeviceRoutine)) return STATUS_INSUFFICIENT_RESOURCES;
    ULONG slot = HalpDeviceCount++;
    HalpDeviceRoutine[slot] = routine;
    HalpDeviceContext[slot] = context;
    ULONG low = VECTOR_DEVICE + slot;
    if (level_triggered) low |= 0x8000;
    if (gsi < 16) gsi = HalpIsaOverride[gsi];
    HalpWriteIoApic(0x11 + 2 * gsi, KiCpu[0].ApicId << 24);
    HalpWriteIoApic(0x10 + 2 * gsi, low);
    return STATUS_SUCCESS;
}

void HalpDispatchDevice(ULONG vector) {
    ULONG slot = vector - VECTOR_DEVICE;
    if (slot < HalpDeviceCount) HalpDeviceRoutine[slot](HalpDeviceContext[slot]);
}
