/* NTFS: the runs of an attribute: decoding, transferring, extending, truncating, encoding. */
#include "ntfs_private.h"

/* ---- $Bitmap: a bit a cluster, kept in memory, written through in sectors. */

static bool ClusterIsUsed(const NTFS_VOLUME *volume, uint64_t lcn) { return volume->Bitmap[lcn / 8] >> lcn % 8 & 1; }

static NTFS_STATUS MarkClusters(NTFS_VOLUME *volume, uint64_t lcn, uint64_t count, bool used) {
    for (uint64_t at = lcn; at < lcn + count; at++) {
        if (used) volume->Bitmap[at / 8] |= (uint8_t)(1u << at % 8);
        else volume->Bitmap[at / 8] &= (uint8_t)~(1u << at % 8);
    }
    volume->Free = used ? volume->Free - count : volume->Free + count;
    uint64_t first = lcn / 8 / SECTOR * SECTOR, end = (lcn + count - 1) / 8 + 1;
    NTFS_STREAM *bitmap = &volume->BitmapFile->Data;
    if (end > bitmap->Size) end = bitmap->Size;
    return NtfsTransfer(bitmap, first, volume->Bitmap + first, end - first, NTFS_WRITE);
}

/* The free run of at most `wanted` clusters that starts at or behind `from`, once around. Bits are set here and on disk. */
static NTFS_STATUS AllocateClusters(NTFS_VOLUME *volume, uint64_t from, uint64_t wanted, uint64_t *lcn, uint64_t *count) {
    uint64_t total = volume->Clusters, at = from < total ? from : 0;
    for (uint64_t seen = 0; seen < total; seen++, at = at + 1 < total ? at + 1 : 0) {
        if (at % 8 == 0 && at + 8 <= total && volume->Bitmap[at / 8] == 0xFF) {
            seen += 7;
            at += 7;
            continue;
        }
        if (ClusterIsUsed(volume, at)) continue;
        uint64_t end = at;
        while (end < total && end - at < wanted && !ClusterIsUsed(volume, end)) end++;
        *lcn = at;
        *count = end - at;
        return MarkClusters(volume, at, end - at, true);
    }
    return NTFS_FULL;
}

void NtfsFreeRuns(NTFS_VOLUME *volume, const NTFS_RUN *runs, uint32_t count) {
    for (uint32_t i = 0; i < count; i++)
        if (runs[i].Lcn != NTFS_HOLE && runs[i].Count) MarkClusters(volume, runs[i].Lcn, runs[i].Count, false);
}

/* ---- Mapping pairs */

static NTFS_STATUS AddRun(NTFS_STREAM *stream, uint64_t vcn, uint64_t lcn, uint64_t count) {
    NTFS_VOLUME *volume = stream->File->Volume;
    NTFS_RUN *last = stream->RunCount ? &stream->Runs[stream->RunCount - 1] : NULL;
    if (last && (lcn == NTFS_HOLE ? last->Lcn == NTFS_HOLE : last->Lcn != NTFS_HOLE && last->Lcn + last->Count == lcn)) {
        last->Count += count;
        return NTFS_OK;
    }
    if (stream->RunCount == stream->RunCapacity) {
        uint32_t capacity = stream->RunCapacity ? stream->RunCapacity * 2 : 8;
        if (capacity > MAXIMUM_RUNS) return NTFS_NOT_SUPPORTED;
        NTFS_RUN *larger = volume->Io.Allocate(capacity * sizeof(NTFS_RUN));
        if (!larger) return NTFS_NO_MEMORY;
        if (stream->Runs) {
            memcpy(larger, stream->Runs, stream->RunCount * sizeof(NTFS_RUN));
            volume->Io.Free(stream->Runs);
        }
        stream->Runs = larger;
        stream->RunCapacity = capacity;
    }
    stream->Runs[stream->RunCount++] = (NTFS_RUN){vcn, lcn, count};
    return NTFS_OK;
}

static uint64_t Signed(const uint8_t *p, uint32_t size) {
    uint64_t value = size && p[size - 1] & 0x80 ? ~0ull : 0;
    for (uint32_t i = size; i--;) value = value << 8 | p[i];
    return value;
}

static uint64_t StreamClusters(const NTFS_STREAM *stream) {
    const NTFS_RUN *last = stream->RunCount ? &stream->Runs[stream->RunCount - 1] : NULL;
    return last ? last->Vcn + last->Count : 0;
}

/* Adds what one attribute record maps; it must go on where the last one ended. */
static NTFS_STATUS DecodeRuns(NTFS_STREAM *stream, const uint8_t *attribute) {
    uint64_t clusters = stream->File->Volume->Clusters, vcn = StreamClusters(stream), lcn = 0;
    const uint8_t *at = attribute + Get16(attribute + 0x20), *end = attribute + Get32(attribute + 4);
    if (Get64(attribute + 0x10) != vcn) return NTFS_CORRUPT;
    for (; at < end && *at; ) {
        uint32_t bytes = *at & 15, offsets = *at >> 4;
        if (!bytes || bytes > 8 || offsets > 8 || (uint32_t)(end - at) < 1 + bytes + offsets) return NTFS_CORRUPT;
        uint64_t count = Signed(at + 1, bytes);
        if (!count || count > MAXIMUM_FILE / SECTOR || vcn + count > MAXIMUM_FILE / SECTOR) return NTFS_CORRUPT;
        if (offsets) lcn += Signed(at + 1 + bytes, offsets);
        if (offsets && (lcn >= clusters || count > clusters - lcn)) return NTFS_CORRUPT;
        NTFS_STATUS status = AddRun(stream, vcn, offsets ? lcn : NTFS_HOLE, count);
        if (status < 0) return status;
        vcn += count;
        at += 1 + bytes + offsets;
    }
    return Get64(attribute + 0x18) + 1 == vcn ? NTFS_OK : NTFS_CORRUPT;
}

static uint32_t PutSigned(uint8_t *p, uint64_t value) {
    uint32_t size = 0;
    for (int64_t left = (int64_t)value;; left >>= 8) {
        p[size++] = (uint8_t)left;
        if ((left >> 7) == 0 || (left >> 7) == -1) return size;
    }
}

/* Returns the bytes written, the closing zero included; 0 where `room` is too small. */
static uint32_t EncodeRuns(const NTFS_STREAM *stream, uint8_t *to, uint32_t room) {
    uint32_t at = 0;
    uint64_t lcn = 0;
    for (uint32_t i = 0; i < stream->RunCount; i++) {
        const NTFS_RUN *run = &stream->Runs[i];
        uint8_t pair[17];
        uint32_t bytes = PutSigned(pair + 1, run->Count), offsets = 0;
        if (run->Lcn != NTFS_HOLE) {
            offsets = PutSigned(pair + 1 + bytes, run->Lcn - lcn);
            lcn = run->Lcn;
        }
        pair[0] = (uint8_t)(bytes | offsets << 4);
        if (at + 1 + bytes + offsets + 1 > room) return 0;
        memcpy(to + at, pair, 1 + bytes + offsets);
        at += 1 + bytes + offsets;
    }
    if (at + 1 > room) return 0;
    to[at] = 0;
    return at + 1;
}

/* ---- Loading and storing */

/* The parts of an attribute that an $ATTRIBUTE_LIST spreads over other records. */
static NTFS_STATUS LoadList(NTFS_STREAM *stream, uint8_t *list) {
    NTFS_FILE *file = stream->File;
    NTFS_VOLUME *volume = file->Volume;
    NTFS_STREAM whole = {.File = file, .Type = ATTRIBUTE_LIST};
    uint64_t size = list[8] ? Get64(list + 0x30) : Get32(list + 0x10);
    if (size > 256 * 1024) return NTFS_CORRUPT;
    uint8_t *bytes = volume->Io.Allocate(RoundUp(size, volume->ClusterSize)), *record = volume->Io.Allocate(volume->RecordSize);
    NTFS_STATUS status = bytes && record ? NTFS_OK : NTFS_NO_MEMORY;
    if (status >= 0 && !list[8]) memcpy(bytes, list + Get16(list + 0x14), size);
    else if (status >= 0) status = DecodeRuns(&whole, list);
    if (status >= 0 && list[8]) {
        whole.Initialized = whole.Size = size;
        whole.Allocated = StreamClusters(&whole) * volume->ClusterSize;
        status = size > whole.Allocated ? NTFS_CORRUPT : NtfsTransfer(&whole, 0, bytes, size, NTFS_READ);
    }
    for (uint64_t at = 0; status >= 0 && at + 0x1A <= size;) {
        const uint8_t *entry = bytes + at;
        uint32_t length = Get16(entry + 4), names = entry[6];
        if (length < 0x1A || at + length > size || entry[7] + names * 2 > length) { status = NTFS_CORRUPT; break; }
        at += length;
        if (Get32(entry) != stream->Type || names != (stream->Indexed ? 4u : 0u)) continue;
        uint64_t number = Get64(entry + 0x10) & 0xFFFFFFFFFFFFull;
        uint8_t *source = file->Record;
        if (number != file->Number) {
            status = NtfsReadRecord(volume, number, record);
            if (status < 0 || (Get64(record + 0x20) & 0xFFFFFFFFFFFFull) != file->Number) { status = NTFS_CORRUPT; break; }
            source = record;
        }
        uint8_t *part = NULL;
        for (uint8_t *a = NtfsNextAttribute(source, NULL); a && !part; a = NtfsNextAttribute(source, a))
            if (Get32(a) == stream->Type && Get16(a + 0xE) == Get16(entry + 0x18)) part = a;
        if (!part || !part[8]) { status = NTFS_CORRUPT; break; }
        if (Get64(part + 0x10) == 0) {
            stream->Present = true;
            stream->Allocated = Get64(part + 0x28);
            stream->Size = Get64(part + 0x30);
            stream->Initialized = Get64(part + 0x38);
            stream->Opaque = (Get16(part + 0xC) & 0x40FF) != 0;
            stream->Sparse = (Get16(part + 0xC) & 0x8000) != 0;
        }
        status = DecodeRuns(stream, part);
    }
    stream->Fixed = true;
    if (whole.Runs) volume->Io.Free(whole.Runs);
    if (bytes) volume->Io.Free(bytes);
    if (record) volume->Io.Free(record);
    return status;
}

/* Reads the stream's sizes and runs out of the file's record. File, Type and Indexed are set by the caller. */
NTFS_STATUS NtfsLoadStream(NTFS_STREAM *stream) {
    NTFS_FILE *file = stream->File;
    uint8_t *attribute = NtfsFindAttribute(file->Record, stream->Type, stream->Indexed);
    uint8_t *list = NtfsFindAttribute(file->Record, ATTRIBUTE_LIST, false);
    NTFS_STATUS status = NTFS_OK;
    stream->RunCount = 0;
    stream->Present = stream->Resident = stream->Fixed = stream->Sparse = stream->Opaque = false;
    stream->Allocated = stream->Size = stream->Initialized = 0;
    if (list && (!attribute || attribute[8])) {
        status = LoadList(stream, list);
    } else if (attribute) {
        stream->Present = true;
        stream->Resident = !attribute[8];
        stream->Opaque = (Get16(attribute + 0xC) & 0x40FF) != 0;
        stream->Sparse = (Get16(attribute + 0xC) & 0x8000) != 0;
        stream->Allocated = attribute[8] ? Get64(attribute + 0x28) : Get32(attribute + 0x10);
        stream->Size = attribute[8] ? Get64(attribute + 0x30) : Get32(attribute + 0x10);
        stream->Initialized = attribute[8] ? Get64(attribute + 0x38) : Get32(attribute + 0x10);
        if (attribute[8]) status = DecodeRuns(stream, attribute);
    }
    if (status < 0 || !stream->Present || stream->Resident) return status;
    bool whole = stream->Allocated == StreamClusters(stream) * file->Volume->ClusterSize;
    if (!whole || stream->Size > stream->Allocated || stream->Initialized > stream->Size) return NTFS_CORRUPT;
    return NTFS_OK;
}

/* Writes the stream's sizes and runs into its attribute of the record in memory; NTFS_FULL where the record has no room. */
NTFS_STATUS NtfsStoreStream(NTFS_STREAM *stream) {
    uint8_t *record = stream->File->Record, *attribute = NtfsFindAttribute(record, stream->Type, stream->Indexed);
    uint8_t *pairs = stream->File->Volume->Pairs;
    if (!attribute || !attribute[8] || stream->Fixed) return NTFS_FULL;
    uint32_t offset = Get16(attribute + 0x20), bytes = EncodeRuns(stream, pairs, stream->File->Volume->RecordSize);
    if (!bytes || !NtfsResizeAttribute(record, attribute, (uint32_t)RoundUp(offset + bytes, 8))) return NTFS_FULL;
    memset(attribute + offset, 0, Get32(attribute + 4) - offset);
    memcpy(attribute + offset, pairs, bytes);
    Put64(attribute + 0x18, StreamClusters(stream) - 1);
    Put64(attribute + 0x28, stream->Allocated);
    Put64(attribute + 0x30, stream->Size);
    Put64(attribute + 0x38, stream->Initialized);
    return NTFS_OK;
}

/* ---- Bytes */

/* The few sectors last written or read in part are kept: who appends meets the same one again. */
static uint8_t *CachedSector(NTFS_VOLUME *volume, uint64_t at) {
    for (uint32_t i = 0; i < CACHED_SECTORS; i++)
        if (volume->CachedAt[i] == at) return volume->Cache + i * SECTOR;
    return NULL;
}

static void CacheSector(NTFS_VOLUME *volume, uint64_t at, const uint8_t *bytes) {
    uint8_t *slot = CachedSector(volume, at);
    if (!slot) {
        uint32_t i = volume->CacheNext++ % CACHED_SECTORS;
        volume->CachedAt[i] = at;
        slot = volume->Cache + i * SECTOR;
    }
    memcpy(slot, bytes, SECTOR);
}

static NTFS_STATUS ReadSector(NTFS_VOLUME *volume, uint64_t at, uint8_t *bytes) {
    const uint8_t *held = CachedSector(volume, at);
    if (held) {
        memcpy(bytes, held, SECTOR);
        return NTFS_OK;
    }
    NTFS_STATUS status = volume->Io.Read(volume->Io.Context, at, bytes, SECTOR);
    if (status >= 0) CacheSector(volume, at, bytes);
    return status;
}

/* Whole sectors. */
static NTFS_STATUS Whole(NTFS_VOLUME *volume, uint64_t at, uint8_t *buffer, uint32_t length, bool write) {
    if (!write) return volume->Io.Read(volume->Io.Context, at, buffer, length);
    for (uint32_t i = 0; i < CACHED_SECTORS; i++)
        if (volume->CachedAt[i] >= at && volume->CachedAt[i] < at + length) volume->CachedAt[i] = NTFS_HOLE;
    return volume->Io.Write(volume->Io.Context, at, buffer, length);
}

/* Bytes of the volume, in as few transfers as their ends allow. */
static NTFS_STATUS Piece(NTFS_VOLUME *volume, uint64_t at, uint8_t *buffer, uint64_t length, NTFS_DIRECTION direction) {
    NTFS_STATUS status = NTFS_OK;
    while (length && status >= 0) {
        uint32_t inside = (uint32_t)(at % SECTOR), step;
        if (!inside && (length % SECTOR == 0 || (length >= STAGING && direction == NTFS_READ))) {
            step = length < 1u << 30 ? (uint32_t)(length / SECTOR * SECTOR) : 1u << 30;
            status = Whole(volume, at, buffer, step, direction != NTFS_READ);
        } else {
            step = length < STAGING - inside ? (uint32_t)length : STAGING - inside;
            uint32_t whole = (uint32_t)RoundUp(inside + step, SECTOR);
            uint8_t *last = volume->Staging + whole - SECTOR;
            if (direction == NTFS_READ) {
                if (whole == SECTOR) status = ReadSector(volume, at - inside, volume->Staging);
                else status = Whole(volume, at - inside, volume->Staging, whole, false);
                if (status >= 0) memcpy(buffer, volume->Staging + inside, step);
            } else {
                bool end = (inside + step) % SECTOR != 0, fresh = direction == NTFS_WRITE_END && step == length;
                if (inside) status = ReadSector(volume, at - inside, volume->Staging);
                if (fresh) memset(volume->Staging + inside + step, 0, whole - inside - step);
                else if (status >= 0 && end && (!inside || whole > SECTOR))
                    status = ReadSector(volume, at - inside + whole - SECTOR, last);
                if (status >= 0) {
                    memcpy(volume->Staging + inside, buffer, step);
                    status = Whole(volume, at - inside, volume->Staging, whole, true);
                    if (status >= 0 && end) CacheSector(volume, at - inside + whole - SECTOR, last);
                }
            }
        }
        at += step;
        buffer += step;
        length -= step;
    }
    return status;
}

/* Bytes of the runs, whatever the sizes say; must lie inside them. `buffer` NULL writes zeros. */
NTFS_STATUS NtfsTransfer(NTFS_STREAM *stream, uint64_t offset, void *buffer, uint64_t length, NTFS_DIRECTION write) {
    static const uint8_t zeros[4096];
    NTFS_VOLUME *volume = stream->File->Volume;
    uint32_t size = volume->ClusterSize, low = 0, high = stream->RunCount;
    uint8_t *to = buffer;
    if (stream->Resident) {
        uint8_t *attribute = NtfsFindAttribute(stream->File->Record, stream->Type, stream->Indexed);
        if (!attribute || offset > stream->Size || length > stream->Size - offset || !buffer) return NTFS_CORRUPT;
        uint8_t *value = attribute + Get16(attribute + 0x14) + offset;
        if (write) memcpy(value, buffer, length);
        else memcpy(buffer, value, length);
        return NTFS_OK;
    }
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (offset / size >= stream->Runs[middle].Vcn + stream->Runs[middle].Count) low = middle + 1;
        else high = middle;
    }
    for (; length; low++) {
        if (low >= stream->RunCount) return NTFS_CORRUPT;
        const NTFS_RUN *run = &stream->Runs[low];
        uint64_t inside = offset - run->Vcn * size, step = run->Count * size - inside;
        if (step > length) step = length;
        if (!buffer && step > sizeof(zeros)) step = sizeof(zeros);
        NTFS_STATUS status = NTFS_OK;
        if (run->Lcn != NTFS_HOLE)
            status = Piece(volume, run->Lcn * size + inside, buffer ? to : (uint8_t *)zeros, step,
                           write == NTFS_WRITE_END && step < length ? NTFS_WRITE : write);
        else if (write)
            status = NTFS_NOT_SUPPORTED;
        else
            memset(to, 0, step);
        if (status < 0) return status;
        if (offset + step < (run->Vcn + run->Count) * size) low--;
        offset += step;
        length -= step;
        to = buffer ? to + step : to;
    }
    return NTFS_OK;
}

/* ---- Allocation */

/* Adds clusters behind the stream's last one and stores the runs in the record in memory (the caller writes the record).
 * On failure the stream is as it was. */
NTFS_STATUS NtfsExtend(NTFS_STREAM *stream, uint64_t clusters) {
    NTFS_VOLUME *volume = stream->File->Volume;
    uint64_t before = StreamClusters(stream), allocated = stream->Allocated;
    if (stream->Resident || stream->Fixed) return NTFS_FULL;
    if (clusters > volume->Free) return NTFS_FULL;
    NTFS_STATUS status = NTFS_OK;
    while (clusters && status >= 0) {
        const NTFS_RUN *last = stream->RunCount ? &stream->Runs[stream->RunCount - 1] : NULL;
        uint64_t lcn = 0, count = 0, wanted = clusters;
        uint64_t hint = last && last->Lcn != NTFS_HOLE ? last->Lcn + last->Count : volume->Hint;
        if (volume->Fragment) {
            hint += 1 + volume->Fragment / 2;
            if (wanted > volume->Fragment) wanted = volume->Fragment;
        }
        status = AllocateClusters(volume, hint, wanted, &lcn, &count);
        if (status < 0) break;
        status = AddRun(stream, StreamClusters(stream), lcn, count);
        if (status < 0) {
            MarkClusters(volume, lcn, count, false);
            break;
        }
        clusters -= count;
        if (stream->File != volume->Mft) volume->Hint = lcn + count;
        stream->Allocated += count * volume->ClusterSize;
    }
    if (status >= 0) status = NtfsStoreStream(stream);
    if (status < 0) {
        NTFS_RUN *freed = NULL;
        uint32_t freed_count = 0;
        if (NtfsTruncate(stream, before, &freed, &freed_count) >= 0) NtfsFreeRuns(volume, freed, freed_count);
        if (freed) volume->Io.Free(freed);
        stream->Allocated = allocated;
    }
    return status;
}

/* Cuts the stream to `clusters` in memory; what it no longer uses is for the caller to free once the record is written. */
NTFS_STATUS NtfsTruncate(NTFS_STREAM *stream, uint64_t clusters, NTFS_RUN **freed, uint32_t *freed_count) {
    NTFS_VOLUME *volume = stream->File->Volume;
    uint32_t kept = 0;
    *freed = NULL;
    *freed_count = 0;
    while (kept < stream->RunCount && stream->Runs[kept].Vcn + stream->Runs[kept].Count <= clusters) kept++;
    if (kept == stream->RunCount) return NTFS_OK;
    *freed = volume->Io.Allocate((stream->RunCount - kept) * sizeof(NTFS_RUN));
    if (!*freed) return NTFS_NO_MEMORY;
    for (uint32_t i = kept; i < stream->RunCount; i++) {
        NTFS_RUN run = stream->Runs[i];
        uint64_t inside = run.Vcn < clusters ? clusters - run.Vcn : 0;
        if (inside) {
            stream->Runs[i].Count = inside;
            kept = i + 1;
            run.Count -= inside;
            run.Lcn = run.Lcn == NTFS_HOLE ? NTFS_HOLE : run.Lcn + inside;
        }
        (*freed)[(*freed_count)++] = run;
    }
    stream->RunCount = kept;
    stream->Allocated = clusters * volume->ClusterSize;
    return NTFS_OK;
}

/* Moves resident data out into clusters enough for `size` bytes; the record in memory then maps them. */
NTFS_STATUS NtfsMakeNonresident(NTFS_STREAM *stream, uint64_t size) {
    NTFS_FILE *file = stream->File;
    NTFS_VOLUME *volume = file->Volume;
    uint8_t *attribute = NtfsFindAttribute(file->Record, stream->Type, stream->Indexed);
    uint32_t held = (uint32_t)stream->Size;
    uint8_t *copy = volume->Io.Allocate(volume->RecordSize);
    if (!copy) return NTFS_NO_MEMORY;
    memcpy(copy, attribute + Get16(attribute + 0x14), held);
    NtfsRemoveAttribute(file->Record, attribute);
    attribute = NtfsInsertAttribute(file->Record, stream->Type, stream->Indexed, false, 8);
    NTFS_STATUS status = attribute ? NTFS_OK : NTFS_FULL;
    stream->Resident = false;
    stream->Allocated = stream->Size = stream->Initialized = 0;
    stream->RunCount = 0;
    uint64_t clusters = RoundUp(size, volume->ClusterSize) / volume->ClusterSize;
    if (status >= 0 && clusters) status = NtfsExtend(stream, clusters);
    if (status >= 0 && held) status = NtfsTransfer(stream, 0, copy, held, NTFS_WRITE);
    if (status >= 0) {
        stream->Size = stream->Initialized = held;
        status = NtfsStoreStream(stream);
    }
    volume->Io.Free(copy);
    return status;
}
