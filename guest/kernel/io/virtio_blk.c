/* The disk: a legacy (transitional) virtio block device on PCI, polled. Facts: virtio 1.1, sections 2.6, 4.1.4.8, 5.2.
 *
 * One request at a time, under the volume's lock; data goes through a buffer of physically contiguous pages below 4 GB, so
 * that callers' buffers may lie anywhere. No interrupts: the caller may be a page fault with nothing to switch to. */
#include "iop.h"

#define PCI_ADDRESS 0xCF8
#define PCI_DATA 0xCFC
#define VENDOR_VIRTIO 0x1AF4
#define DEVICE_BLOCK_LEGACY 0x1001

/* The legacy header in the device's I/O ports */
#define PORT_GUEST_FEATURES 4
#define PORT_QUEUE_PFN 8
#define PORT_QUEUE_SIZE 12
#define PORT_QUEUE_SELECT 14
#define PORT_QUEUE_NOTIFY 16
#define PORT_STATUS 18
#define PORT_CAPACITY 20

#define STATUS_ACKNOWLEDGE 1
#define STATUS_DRIVER 2
#define STATUS_DRIVER_OK 4

#define DESCRIPTOR_NEXT 1
#define DESCRIPTOR_WRITE 2 /* the device writes it */
#define AVAILABLE_NO_INTERRUPT 1

#define BUFFER_PAGES 16
#define TIMEOUT_TICKS 60000000000ull /* 20 s or more on any clock that QEMU gives */

typedef struct _DESCRIPTOR {
    ULONG64 Address;
    ULONG Length;
    USHORT Flags, Next;
} DESCRIPTOR;

typedef struct _REQUEST {
    ULONG Type, Reserved;
    ULONG64 Sector;
    UCHAR Status;
} REQUEST;

static struct {
    USHORT Port, QueueSize, Next, Seen;
    BOOLEAN Broken;
    ULONG64 Sectors, RequestPhysical, BufferPhysical;
    volatile DESCRIPTOR *Descriptors;
    volatile USHORT *Available, *Used; /* flags, index, ring */
    volatile REQUEST *Request;
    UCHAR *Buffer;
} Disk;

IO_COUNTERS IopCounters;

static ULONG PciRead(ULONG function, ULONG offset) {
    __out32(PCI_ADDRESS, 0x80000000u | function << 8 | offset);
    return __in32(PCI_DATA);
}

static void PciWrite(ULONG function, ULONG offset, ULONG value) {
    __out32(PCI_ADDRESS, 0x80000000u | function << 8 | offset);
    __out32(PCI_DATA, value);
}

/* Bus, device and function of the first disk; bus 0 first of all, where QEMU puts it. */
static BOOLEAN FindDisk(ULONG *found) {
    for (ULONG function = 0; function < 0x10000; function++) {
        ULONG identity = PciRead(function, 0);
        if (identity == (DEVICE_BLOCK_LEGACY << 16 | VENDOR_VIRTIO)) {
            *found = function;
            return TRUE;
        }
        if (!(function & 7) && (identity == 0xFFFFFFFF || !(PciRead(function, 0xC) >> 16 & 0x80))) function |= 7;
    }
    return FALSE;
}

NTSTATUS IopDiskInitialize(ULONG64 *bytes) {
    ULONG function, bar, size;
    if (!FindDisk(&function)) return STATUS_NO_SUCH_DEVICE;
    bar = PciRead(function, 0x10);
    if (!(bar & 1)) return STATUS_NO_SUCH_DEVICE;
    PciWrite(function, 4, (PciRead(function, 4) & 0xFFFF) | 0x405); /* I/O ports, bus master, no interrupt line */
    Disk.Port = (USHORT)(bar & 0xFFFC);
    __out8(Disk.Port + PORT_STATUS, 0);
    __out8(Disk.Port + PORT_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER);
    __out32(Disk.Port + PORT_GUEST_FEATURES, 0);
    __out16(Disk.Port + PORT_QUEUE_SELECT, 0);
    Disk.QueueSize = __in16(Disk.Port + PORT_QUEUE_SIZE);
    if (Disk.QueueSize < 4) return STATUS_NO_SUCH_DEVICE;
    ULONG ring = (ULONG)ROUND_TO_PAGES(sizeof(DESCRIPTOR) * Disk.QueueSize + 6 + 2 * Disk.QueueSize);
    size = ring + (ULONG)ROUND_TO_PAGES(6 + 8 * Disk.QueueSize);
    ULONG64 physical = MmAllocateContiguous((ULONG)(size / PAGE_SIZE) + 1 + BUFFER_PAGES);
    if (!physical) return STATUS_INSUFFICIENT_RESOURCES;
    UCHAR *base = MmPhysicalToVirtual(physical);
    Disk.Descriptors = (volatile DESCRIPTOR *)base;
    Disk.Available = (volatile USHORT *)(base + sizeof(DESCRIPTOR) * Disk.QueueSize);
    Disk.Used = (volatile USHORT *)(base + ring);
    Disk.Request = (volatile REQUEST *)(base + size);
    Disk.RequestPhysical = physical + size;
    Disk.Buffer = base + size + PAGE_SIZE;
    Disk.BufferPhysical = physical + size + PAGE_SIZE;
    Disk.Available[0] = AVAILABLE_NO_INTERRUPT;
    __out32(Disk.Port + PORT_QUEUE_PFN, (ULONG)(physical / PAGE_SIZE));
    __out8(Disk.Port + PORT_STATUS, STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_DRIVER_OK);
    Disk.Sectors = __in32(Disk.Port + PORT_CAPACITY) | (ULONG64)__in32(Disk.Port + PORT_CAPACITY + 4) << 32;
    *bytes = Disk.Sectors * 512;
    return STATUS_SUCCESS;
}

static void Describe(USHORT index, ULONG64 address, ULONG length, USHORT flags) {
    Disk.Descriptors[index].Address = address;
    Disk.Descriptors[index].Length = length;
    Disk.Descriptors[index].Flags = flags;
    Disk.Descriptors[index].Next = index + 1;
}

/* One request through the buffer, at most BUFFER_PAGES long. */
static NTSTATUS Transfer(ULONG64 sector, ULONG length, BOOLEAN write) {
    Disk.Request->Type = write;
    Disk.Request->Reserved = 0;
    Disk.Request->Sector = sector;
    Disk.Request->Status = 0xFF;
    Describe(0, Disk.RequestPhysical, 16, DESCRIPTOR_NEXT);
    Describe(1, Disk.BufferPhysical, length, DESCRIPTOR_NEXT | (write ? 0 : DESCRIPTOR_WRITE));
    Describe(2, Disk.RequestPhysical + FIELD_OFFSET(REQUEST, Status), 1, DESCRIPTOR_WRITE);
    Disk.Available[2 + Disk.Next % Disk.QueueSize] = 0;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    Disk.Available[1] = ++Disk.Next;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    __out16(Disk.Port + PORT_QUEUE_NOTIFY, 0);
    ULONG64 start = __tsc();
    /* Few PAUSEs: under TCG each takes QEMU's global lock, which is what the device model needs to answer. */
    for (ULONG spins = 1; Disk.Used[1] == Disk.Seen; spins++) {
        if (spins % 4096) continue;
        __relax();
        if (__tsc() - start > TIMEOUT_TICKS) {
            Disk.Broken = TRUE; /* the device may still write the buffer: it is never used again */
            return STATUS_IO_TIMEOUT;
        }
    }
    Disk.Seen = Disk.Used[1];
    __atomic_thread_fence(__ATOMIC_ACQUIRE);
    return Disk.Request->Status == 0 ? STATUS_SUCCESS : STATUS_IO_DEVICE_ERROR;
}

NTSTATUS IopDiskTransfer(ULONG64 offset, void *buffer, ULONG length, BOOLEAN write) {
    ULONG64 start = __tsc();
    NTSTATUS status = STATUS_SUCCESS;
    if (offset % 512 || length % 512 || offset / 512 > Disk.Sectors || length / 512 > Disk.Sectors - offset / 512)
        return STATUS_INVALID_PARAMETER;
    if (write) IopCounters.Writes++, IopCounters.BytesWritten += length;
    else IopCounters.Reads++, IopCounters.BytesRead += length;
    while (length && NT_SUCCESS(status)) {
        ULONG step = MIN(length, BUFFER_PAGES * (ULONG)PAGE_SIZE);
        if (Disk.Broken) return STATUS_IO_DEVICE_ERROR;
        if (write) memcpy(Disk.Buffer, buffer, step);
        status = Transfer(offset / 512, step, write);
        if (!write && NT_SUCCESS(status)) memcpy(buffer, Disk.Buffer, step);
        offset += step;
        buffer = (UCHAR *)buffer + step;
        length -= step;
    }
    IopCounters.Ticks += __tsc() - start;
    return status;
}
