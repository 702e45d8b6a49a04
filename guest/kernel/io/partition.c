/* Where the NTFS volume lies: behind an MBR, in a GPT, or on the whole disk. */
#include "iop.h"

#define MBR_NTFS 7
#define MBR_GPT 0xEE

static BOOLEAN IsNtfs(ULONG64 offset, UCHAR *sector) {
    return NT_SUCCESS(IopDiskTransfer(offset, sector, 512, FALSE)) && memcmp(sector + 3, "NTFS    ", 8) == 0;
}

static ULONG64 Read(const UCHAR *bytes, ULONG size) {
    ULONG64 value = 0;
    while (size--) value = value << 8 | bytes[size];
    return value;
}

/* Takes a candidate when it lies on the disk and begins as an NTFS volume does. */
static BOOLEAN Take(ULONG64 first, ULONG64 count, ULONG64 disk, UCHAR *sector, ULONG64 *offset, ULONG64 *length) {
    ULONG64 sectors = disk / 512;
    if (!first || first >= sectors || !count || count > sectors - first || !IsNtfs(first * 512, sector)) return FALSE;
    *offset = first * 512;
    *length = count * 512;
    return TRUE;
}

NTSTATUS IopFindVolume(ULONG64 disk, ULONG64 *offset, ULONG64 *length) {
    UCHAR table[512], sector[512];
    NTSTATUS status = IopDiskTransfer(0, table, 512, FALSE);
    if (!NT_SUCCESS(status)) return status;
    if (memcmp(table + 3, "NTFS    ", 8) == 0) {
        *offset = 0;
        *length = disk;
        return STATUS_SUCCESS;
    }
    if (Read(table + 510, 2) != 0xAA55) return STATUS_UNRECOGNIZED_VOLUME;
    for (const UCHAR *entry = table + 446; entry < table + 510; entry += 16) {
        if (entry[4] == MBR_NTFS && Take(Read(entry + 8, 4), Read(entry + 12, 4), disk, sector, offset, length)) return STATUS_SUCCESS;
        if (entry[4] != MBR_GPT || !NT_SUCCESS(IopDiskTransfer(512, table, 512, FALSE)) || memcmp(table, "EFI PART", 8)) continue;
        ULONG64 first = Read(table + 72, 8), count = MIN(Read(table + 80, 4), 128), size = Read(table + 84, 4);
        if (size < 128 || size > 512 || 512 % size || first > disk / 512) return STATUS_UNRECOGNIZED_VOLUME;
        for (ULONG64 i = 0; i < count; i++) {
            status = IopDiskTransfer(first * 512 + i * size / 512 * 512, table, 512, FALSE);
            if (!NT_SUCCESS(status)) return status;
            const UCHAR *part = table + i * size % 512;
            ULONG64 begin = Read(part + 32, 8), end = Read(part + 40, 8);
            if (end >= begin && Take(begin, end - begin + 1, disk, sector, offset, length)) return STATUS_SUCCESS;
        }
        return STATUS_UNRECOGNIZED_VOLUME;
    }
    return STATUS_UNRECOGNIZED_VOLUME;
}
