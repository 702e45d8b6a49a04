/* NTFS: records, their fixups, and the attributes inside a record. */
#include "ntfs_private.h"

/* ---- Fixups: the last two bytes of each 512 are replaced by a sequence number, so that a torn write shows. */

NTFS_STATUS NtfsApplyFixups(uint8_t *block, uint32_t size, uint32_t magic) {
    uint32_t offset = Get16(block + 4), count = Get16(block + 6);
    if (Get32(block) != magic || count != size / SECTOR + 1 || offset < 8 || offset % 2 || offset + 2 * count > SECTOR - 2)
        return NTFS_CORRUPT;
    uint16_t sequence = Get16(block + offset);
    for (uint32_t i = 1; i < count; i++)
        if (Get16(block + i * SECTOR - 2) != sequence) return NTFS_CORRUPT;
    for (uint32_t i = 1; i < count; i++) memcpy(block + i * SECTOR - 2, block + offset + 2 * i, 2);
    return NTFS_OK;
}

void NtfsMakeFixups(uint8_t *block) {
    uint32_t offset = Get16(block + 4), count = Get16(block + 6);
    uint16_t sequence = (uint16_t)(Get16(block + offset) + 1);
    if (sequence == 0 || sequence == 0xFFFF) sequence = 1;
    Put16(block + offset, sequence);
    for (uint32_t i = 1; i < count; i++) {
        memcpy(block + offset + 2 * i, block + i * SECTOR - 2, 2);
        Put16(block + i * SECTOR - 2, sequence);
    }
}

void NtfsUndoFixups(uint8_t *block, uint32_t size) {
    uint32_t offset = Get16(block + 4);
    for (uint32_t i = 1; i <= size / SECTOR; i++) memcpy(block + i * SECTOR - 2, block + offset + 2 * i, 2);
}

/* ---- Attributes: every record is checked whole before any is looked at, so the rest needs no further checks. */

static bool AttributeIsSound(const uint8_t *at, uint32_t left) {
    uint32_t length = left < 24 ? 0 : Get32(at + 4), names = length ? at[9] * 2u : 0;
    if (length < 24 || length % 8 || length > left || at[8] > 1) return false;
    if (names && (Get16(at + 0xA) < 24 || Get16(at + 0xA) + names > length)) return false;
    if (at[8] == 0) {
        uint32_t size = Get32(at + 0x10), offset = Get16(at + 0x14);
        return offset >= 24 && offset % 8 == 0 && offset <= length && size <= length - offset;
    }
    return length >= 0x48 && Get16(at + 0x20) >= 0x40 && Get16(at + 0x20) < length;
}

bool NtfsRecordIsSound(const uint8_t *record, uint32_t size) {
    uint32_t first = Get16(record + 0x14), used = Get32(record + 0x18), allocated = Get32(record + 0x1C);
    if (allocated != size || used > size || used < 0x38 || used % 8 || first % 8 || first < 0x28) return false;
    if (first < Get16(record + 4) + 2u * Get16(record + 6)) return false;
    for (uint32_t at = first, last = 0; at + 4 <= used;) {
        uint32_t type = Get32(record + at);
        if (type == ATTRIBUTE_END) return at + 8 == used;
        if (type < last || !AttributeIsSound(record + at, used - at)) return false;
        last = type;
        at += Get32(record + at + 4);
    }
    return false;
}

uint8_t *NtfsNextAttribute(uint8_t *record, uint8_t *after) {
    uint8_t *at = after ? after + Get32(after + 4) : record + Get16(record + 0x14);
    return Get32(at) == ATTRIBUTE_END ? NULL : at;
}

static const uint8_t IndexName[8] = {'$', 0, 'I', 0, '3', 0, '0', 0};

uint8_t *NtfsFindAttribute(uint8_t *record, uint32_t type, bool indexed) {
    for (uint8_t *at = NtfsNextAttribute(record, NULL); at; at = NtfsNextAttribute(record, at)) {
        if (Get32(at) != type) continue;
        if (!indexed && at[9] == 0) return at;
        if (indexed && at[9] == 4 && memcmp(at + Get16(at + 0xA), IndexName, 8) == 0) return at;
    }
    return NULL;
}

/* Makes the attribute `length` bytes long, moving what follows; false where the record has no room. */
bool NtfsResizeAttribute(uint8_t *record, uint8_t *attribute, uint32_t length) {
    uint32_t old = Get32(attribute + 4), used = Get32(record + 0x18), tail = used - (uint32_t)(attribute - record) - old;
    if (length > old && length - old > Get32(record + 0x1C) - used) return false;
    memmove(attribute + length, attribute + old, tail);
    if (length > old) memset(attribute + old, 0, length - old);
    Put32(attribute + 4, length);
    Put32(record + 0x18, used - old + length);
    return true;
}

/* A new attribute at its place in the order of types: resident with `bytes` of zeroed value, or with room for `bytes` of
 * mapping pairs. NULL where the record has no room. */
uint8_t *NtfsInsertAttribute(uint8_t *record, uint32_t type, bool indexed, bool resident, uint32_t bytes) {
    uint32_t name = indexed ? 8 : 0, header = resident ? 0x18 : 0x40;
    uint32_t length = (uint32_t)RoundUp(header + name + bytes, 8), used = Get32(record + 0x18);
    if (length > Get32(record + 0x1C) - used) return NULL;
    uint8_t *at = record + Get16(record + 0x14);
    while (Get32(at) != ATTRIBUTE_END && Get32(at) <= type) at += Get32(at + 4);
    memmove(at + length, at, used - (uint32_t)(at - record));
    memset(at, 0, length);
    Put32(at, type);
    Put32(at + 4, length);
    at[8] = !resident;
    at[9] = (uint8_t)(name / 2);
    Put16(at + 0xA, (uint16_t)header);
    Put16(at + 0xE, Get16(record + 0x28));
    Put16(record + 0x28, (uint16_t)(Get16(record + 0x28) + 1));
    if (name) memcpy(at + header, IndexName, 8);
    if (resident) {
        Put32(at + 0x10, bytes);
        Put16(at + 0x14, (uint16_t)(header + name));
    } else {
        Put16(at + 0x20, (uint16_t)(header + name));
        Put64(at + 0x18, ~0ull);
    }
    Put32(record + 0x18, used + length);
    return at;
}

void NtfsRemoveAttribute(uint8_t *record, uint8_t *attribute) {
    uint32_t length = Get32(attribute + 4), used = Get32(record + 0x18);
    memmove(attribute, attribute + length, used - (uint32_t)(attribute - record) - length);
    Put32(record + 0x18, used - length);
}

/* ---- Records of $MFT */

NTFS_STATUS NtfsReadRecord(NTFS_VOLUME *volume, uint64_t number, uint8_t *record) {
    NTFS_STREAM *mft = &volume->Mft->Data;
    if (number >= mft->Initialized / volume->RecordSize) return NTFS_CORRUPT;
    NTFS_STATUS status = NtfsTransfer(mft, number * volume->RecordSize, record, volume->RecordSize, NTFS_READ);
    if (status < 0) return status;
    if (NtfsApplyFixups(record, volume->RecordSize, MAGIC_FILE) < 0) return NTFS_CORRUPT;
    return NtfsRecordIsSound(record, volume->RecordSize) ? NTFS_OK : NTFS_CORRUPT;
}

/* The first records are kept twice: $MFTMirr holds as many as fit a cluster, four at least. */
NTFS_STATUS NtfsWriteRecord(NTFS_VOLUME *volume, uint64_t number, uint8_t *record) {
    uint32_t size = volume->RecordSize;
    uint64_t mirrored = size * 4 > volume->ClusterSize ? 4 : volume->ClusterSize / size;
    NtfsMakeFixups(record);
    NTFS_STATUS status = NtfsTransfer(&volume->Mft->Data, number * size, record, size, NTFS_WRITE);
    if (status >= 0 && number < mirrored) {
        uint64_t place = volume->MirrorLcn * volume->ClusterSize + number * size;
        status = volume->Io.Write(volume->Io.Context, place, record, size);
    }
    NtfsUndoFixups(record, size);
    return status;
}

/* $MFT's own bitmap, a bit a record. */
static NTFS_STATUS MftBitmapBit(NTFS_VOLUME *volume, uint64_t number, int set) {
    NTFS_STREAM *bitmap = &volume->Mft->Bitmap;
    uint8_t bits = 0;
    NTFS_STATUS status = NtfsTransfer(bitmap, number / 8, &bits, 1, NTFS_READ);
    if (status < 0) return status;
    bits = set ? (uint8_t)(bits | 1u << number % 8) : (uint8_t)(bits & ~(1u << number % 8));
    return NtfsTransfer(bitmap, number / 8, &bits, 1, NTFS_WRITE);
}

static NTFS_STATUS GrowMft(NTFS_VOLUME *volume) {
    NTFS_STREAM *mft = &volume->Mft->Data, *bitmap = &volume->Mft->Bitmap;
    uint32_t size = volume->RecordSize, step = size < volume->ClusterSize ? volume->ClusterSize : size;
    step = step < 16 * 1024 ? 16 * 1024 : step;
    uint64_t old = mft->Initialized, fresh = old + step, records = fresh / size;
    NTFS_STATUS status = NTFS_OK;
    if (fresh > mft->Allocated) status = NtfsExtend(mft, (fresh - mft->Allocated + volume->ClusterSize - 1) / volume->ClusterSize);
    if (status >= 0 && RoundUp(records, 64) / 8 > bitmap->Size) {
        uint64_t bytes = RoundUp(records, 64) / 8, before = bitmap->Size;
        if (bitmap->Resident || bitmap->Fixed) status = NTFS_FULL;
        if (status >= 0 && bytes > bitmap->Allocated) status = NtfsExtend(bitmap, 1);
        bitmap->Size = bitmap->Initialized = bytes;
        for (uint64_t at = before; status >= 0 && at < bytes; at += 8) {
            uint64_t zero = 0;
            status = NtfsTransfer(bitmap, at, &zero, 8, NTFS_WRITE);
        }
        if (status >= 0) status = NtfsStoreStream(bitmap);
    }
    uint8_t *blank = status < 0 ? NULL : volume->Io.Allocate(size);
    if (status >= 0 && !blank) status = NTFS_NO_MEMORY;
    for (uint64_t at = old; status >= 0 && at < fresh; at += size) {
        memset(blank, 0, size);
        uint32_t fixups = size / SECTOR + 1, first = (uint32_t)RoundUp(0x30 + 2 * fixups, 8);
        Put32(blank, MAGIC_FILE);
        Put16(blank + 4, 0x30);
        Put16(blank + 6, (uint16_t)fixups);
        Put16(blank + 0x10, 1);
        Put16(blank + 0x14, (uint16_t)first);
        Put32(blank + 0x18, first + 8);
        Put32(blank + 0x1C, size);
        Put32(blank + 0x2C, (uint32_t)(at / size));
        Put32(blank + first, ATTRIBUTE_END);
        NtfsMakeFixups(blank);
        status = NtfsTransfer(mft, at, blank, size, NTFS_WRITE);
    }
    if (blank) volume->Io.Free(blank);
    if (status >= 0) {
        mft->Size = mft->Initialized = fresh;
        status = NtfsStoreStream(mft);
    }
    if (status >= 0) status = NtfsWriteRecord(volume, 0, volume->Mft->Record);
    if (status < 0) NtfsReload(volume->Mft);
    return status;
}

/* Finds a free record, marks it used in $MFT's bitmap and gives the sequence number its next use has. */
NTFS_STATUS NtfsAllocateRecord(NTFS_VOLUME *volume, uint64_t *number, uint16_t *sequence) {
    for (int attempt = 0; attempt < 2; attempt++) {
        NTFS_STREAM *mft = &volume->Mft->Data, *bitmap = &volume->Mft->Bitmap;
        uint64_t records = mft->Initialized / volume->RecordSize;
        for (uint64_t at = FIRST_USER_RECORD; at < records && at / 8 < bitmap->Initialized; at++) {
            uint8_t bits = 0;
            NTFS_STATUS status = NtfsTransfer(bitmap, at / 8, &bits, 1, NTFS_READ);
            if (status < 0) return status;
            if (bits == 0xFF) { at |= 7; continue; }
            if (bits >> at % 8 & 1) continue;
            uint8_t *record = volume->Io.Allocate(volume->RecordSize);
            if (!record) return NTFS_NO_MEMORY;
            status = NtfsReadRecord(volume, at, record);
            bool used = status >= 0 && (Get16(record + 0x16) & RECORD_IN_USE);
            *sequence = status >= 0 && Get16(record + 0x10) ? Get16(record + 0x10) : 1;
            volume->Io.Free(record);
            if (used) continue; /* the bitmap is older than the record: leave both alone */
            *number = at;
            return MftBitmapBit(volume, at, 1);
        }
        NTFS_STATUS status = attempt ? NTFS_FULL : GrowMft(volume);
        if (status < 0) return status;
    }
    return NTFS_FULL;
}

void NtfsFreeRecord(NTFS_VOLUME *volume, uint64_t number) { MftBitmapBit(volume, number, 0); }
