/* NTFS: files: opening, creating, reading, writing, sizes. */
#include "ntfs_private.h"

static uint64_t Reference(const NTFS_FILE *file) { return file->Number | (uint64_t)file->Sequence << 48; }

NTFS_STATUS NtfsCommit(NTFS_FILE *file) { return NtfsWriteRecord(file->Volume, file->Number, file->Record); }

/* Takes over what the record in memory says. */
NTFS_STATUS NtfsParseRecord(NTFS_FILE *file) {
    uint16_t flags = Get16(file->Record + 0x16);
    if (!(flags & RECORD_IN_USE) || Get64(file->Record + 0x20)) return NTFS_CORRUPT;
    file->Sequence = Get16(file->Record + 0x10);
    file->Directory = (flags & RECORD_DIRECTORY) != 0;
    file->Data.File = file->Bitmap.File = file;
    file->Data.Type = file->Directory ? ATTRIBUTE_INDEX_ALLOCATION : ATTRIBUTE_DATA;
    file->Data.Indexed = file->Directory;
    NTFS_STATUS status = NtfsLoadStream(&file->Data);
    if (status >= 0 && file == file->Volume->Mft) {
        file->Bitmap.Type = ATTRIBUTE_BITMAP;
        status = NtfsLoadStream(&file->Bitmap);
    }
    return status;
}

NTFS_STATUS NtfsReload(NTFS_FILE *file) {
    NTFS_STATUS status = NtfsReadRecord(file->Volume, file->Number, file->Record);
    return status < 0 ? status : NtfsParseRecord(file);
}

void NtfsReleaseFile(NTFS_FILE *file) {
    NTFS_VOLUME *volume = file->Volume;
    if (file->Data.Runs) volume->Io.Free(file->Data.Runs);
    if (file->Bitmap.Runs) volume->Io.Free(file->Bitmap.Runs);
    if (file->Record) volume->Io.Free(file->Record);
    volume->Io.Free(file);
}

/* `sequence` 0 takes any. */
NTFS_STATUS NtfsOpenRecord(NTFS_VOLUME *volume, uint64_t number, uint16_t sequence, NTFS_FILE **result) {
    NTFS_STATUS status = NTFS_NO_MEMORY;
    for (NTFS_FILE *file = volume->Files; file; file = file->Next)
        if (file->Number == number) {
            if (sequence && file->Sequence != sequence) return NTFS_CORRUPT;
            file->References++;
            *result = file;
            return NTFS_OK;
        }
    NTFS_FILE *file = volume->Io.Allocate(sizeof(*file));
    if (!file) return status;
    file->Volume = volume;
    file->Number = number;
    file->References = 1;
    file->Record = volume->Io.Allocate(volume->RecordSize);
    if (file->Record) status = NtfsReload(file);
    if (status >= 0 && sequence && file->Sequence != sequence) status = NTFS_CORRUPT;
    if (status < 0) {
        NtfsReleaseFile(file);
        return status;
    }
    file->Next = volume->Files;
    volume->Files = file;
    *result = file;
    return NTFS_OK;
}

NTFS_STATUS NtfsClose(NTFS_FILE *file) {
    NTFS_STATUS status = NTFS_OK;
    if (file->References > 1) {
        file->References--;
        return status;
    }
    status = NtfsFlush(file);
    NTFS_FILE **link = &file->Volume->Files;
    while (*link && *link != file) link = &(*link)->Next;
    if (*link) *link = file->Next;
    NtfsReleaseFile(file);
    return status;
}

bool NtfsIsDirectory(const NTFS_FILE *file) { return file->Directory; }
uint64_t NtfsFileNumber(const NTFS_FILE *file) { return file->Number; }
uint64_t NtfsSize(const NTFS_FILE *file) { return file->Directory ? 0 : file->Data.Size; }
void *NtfsGetContext(const NTFS_FILE *file) { return file->Context; }
void NtfsSetContext(NTFS_FILE *file, void *context) { file->Context = context; }

/* ---- Paths */

static bool IsSeparator(uint16_t c) { return c == '\\' || c == '/'; }

/* Opens the directory that holds the path's last name, and says which that is. */
static NTFS_STATUS OpenParent(NTFS_VOLUME *volume, const uint16_t *path, size_t characters, NTFS_FILE **parent,
                              const uint16_t **name, uint32_t *length) {
    size_t at = 0;
    NTFS_STATUS status = NtfsOpenRecord(volume, 5, 0, parent);
    if (status < 0) return status;
    for (;;) {
        while (at < characters && IsSeparator(path[at])) at++;
        size_t end = at, next;
        while (end < characters && !IsSeparator(path[end])) end++;
        for (next = end; next < characters && IsSeparator(path[next]);) next++;
        *name = path + at;
        *length = (uint32_t)(end - at);
        if (end - at > 255) status = NTFS_BAD_NAME;
        else if (!(*parent)->Directory) status = NTFS_NO_PATH;
        if (status < 0 || next >= characters) break;
        uint64_t reference = 0;
        NTFS_FILE *inner = NULL;
        status = NtfsLookup(*parent, path + at, *length, &reference);
        if (status == NTFS_NOT_FOUND) status = NTFS_NO_PATH;
        if (status >= 0) status = NtfsOpenRecord(volume, reference & 0xFFFFFFFFFFFFull, (uint16_t)(reference >> 48), &inner);
        NtfsClose(*parent);
        *parent = inner;
        if (status < 0) return status;
        at = next;
    }
    if (status < 0) NtfsClose(*parent);
    return status;
}

NTFS_STATUS NtfsOpen(NTFS_VOLUME *volume, const uint16_t *path, size_t characters, NTFS_FILE **file) {
    NTFS_FILE *parent;
    const uint16_t *name;
    uint32_t length;
    uint64_t reference = 0;
    NTFS_STATUS status = OpenParent(volume, path, characters, &parent, &name, &length);
    if (status < 0) return status;
    if (!length) { /* the root itself */
        *file = parent;
        return NTFS_OK;
    }
    status = NtfsLookup(parent, name, length, &reference);
    if (status >= 0) status = NtfsOpenRecord(volume, reference & 0xFFFFFFFFFFFFull, (uint16_t)(reference >> 48), file);
    NtfsClose(parent);
    return status;
}

/* ---- Creating */

static bool NameIsGood(const uint16_t *name, uint32_t length) {
    static const char bad[] = "\"*/:<>?\\|";
    if (!length || length > 255 || name[length - 1] == '.' || name[length - 1] == ' ') return false;
    for (uint32_t i = 0; i < length; i++) {
        if (name[i] < 32) return false;
        for (const char *c = bad; *c; c++)
            if (name[i] == *c) return false;
    }
    return true;
}

/* A record of one name: $STANDARD_INFORMATION, $FILE_NAME, and an empty $DATA or an empty index. */
static NTFS_STATUS MakeRecord(NTFS_VOLUME *volume, uint8_t *record, uint64_t number, uint16_t sequence, bool directory,
                              const uint8_t *key, uint32_t key_length) {
    uint32_t fixups = volume->RecordSize / SECTOR + 1, first = (uint32_t)RoundUp(0x30 + 2 * fixups, 8);
    Put32(record, MAGIC_FILE);
    Put16(record + 4, 0x30);
    Put16(record + 6, (uint16_t)fixups);
    Put16(record + 0x10, sequence);
    Put16(record + 0x12, 1);
    Put16(record + 0x14, (uint16_t)first);
    Put16(record + 0x16, (uint16_t)(RECORD_IN_USE | (directory ? RECORD_DIRECTORY : 0)));
    Put32(record + 0x18, first + 8);
    Put32(record + 0x1C, volume->RecordSize);
    Put32(record + 0x2C, (uint32_t)number);
    Put32(record + first, ATTRIBUTE_END);
    uint8_t *standard = NtfsInsertAttribute(record, ATTRIBUTE_STANDARD, false, true, 0x30);
    if (!standard) return NTFS_FULL;
    memcpy(standard + 0x18, key + 8, 0x20); /* the four times */
    Put32(standard + 0x18 + 0x20, directory ? 0 : 0x20); /* archive */
    uint8_t *name = NtfsInsertAttribute(record, ATTRIBUTE_FILE_NAME, false, true, key_length);
    if (!name) return NTFS_FULL;
    memcpy(name + 0x18, key, key_length);
    name[0x16] = 1; /* indexed */
    if (!directory) return NtfsInsertAttribute(record, ATTRIBUTE_DATA, false, true, 0) ? NTFS_OK : NTFS_FULL;
    uint8_t *root = NtfsInsertAttribute(record, ATTRIBUTE_INDEX_ROOT, true, true, 0x30);
    if (!root) return NTFS_FULL;
    uint8_t *value = root + Get16(root + 0x14);
    Put32(value, ATTRIBUTE_FILE_NAME);
    Put32(value + 4, 1);
    Put32(value + 8, volume->IndexSize);
    value[12] = (uint8_t)(volume->IndexSize / (volume->ClusterSize <= volume->IndexSize ? volume->ClusterSize : SECTOR));
    Put32(value + 16, 0x10);
    Put32(value + 20, 0x20);
    Put32(value + 24, 0x20);
    Put16(value + 0x20 + 8, 0x10);
    Put16(value + 0x20 + 0xC, 2);
    return NTFS_OK;
}

static NTFS_STATUS CreateIn(NTFS_FILE *parent, const uint16_t *name, uint32_t length, bool directory, NTFS_FILE **file) {
    NTFS_VOLUME *volume = parent->Volume;
    uint64_t reference = 0, number = 0, now = volume->Io.Time();
    uint16_t sequence = 0;
    uint8_t key[0x42 + 2 * 255];
    uint32_t key_length = 0x42 + 2 * length;
    if (!NameIsGood(name, length)) return NTFS_BAD_NAME;
    NTFS_STATUS status = NtfsLookup(parent, name, length, &reference);
    if (status >= 0) return NTFS_COLLISION;
    if (status != NTFS_NOT_FOUND) return status;
    status = NtfsAllocateRecord(volume, &number, &sequence);
    if (status < 0) return status;
    memset(key, 0, sizeof(key));
    Put64(key, Reference(parent));
    for (uint32_t i = 8; i < 0x28; i += 8) Put64(key + i, now);
    Put32(key + 0x38, directory ? 0x10000000 : 0x20);
    key[0x40] = (uint8_t)length;
    memcpy(key + 0x42, name, 2u * length);
    uint8_t *record = volume->Io.Allocate(volume->RecordSize);
    status = record ? MakeRecord(volume, record, number, sequence, directory, key, key_length) : NTFS_NO_MEMORY;
    if (status >= 0) status = NtfsWriteRecord(volume, number, record);
    if (status >= 0) {
        status = NtfsInsertName(parent, number | (uint64_t)sequence << 48, key, key_length);
        if (status < 0) { /* nothing names it: give it back */
            Put16(record + 0x16, 0);
            NtfsWriteRecord(volume, number, record);
        }
    }
    if (record) volume->Io.Free(record);
    if (status < 0) {
        NtfsFreeRecord(volume, number);
        return status;
    }
    return NtfsOpenRecord(volume, number, sequence, file);
}

NTFS_STATUS NtfsCreate(NTFS_VOLUME *volume, const uint16_t *path, size_t characters, bool directory, NTFS_FILE **file) {
    NTFS_FILE *parent;
    const uint16_t *name;
    uint32_t length;
    NTFS_STATUS status = OpenParent(volume, path, characters, &parent, &name, &length);
    if (status < 0) return status;
    status = length ? CreateIn(parent, name, length, directory, file) : NTFS_COLLISION;
    NtfsClose(parent);
    return status;
}

/* ---- Sizes and bytes */

static void Touch(NTFS_FILE *file) {
    uint8_t *standard = NtfsFindAttribute(file->Record, ATTRIBUTE_STANDARD, false);
    uint64_t now = file->Volume->Io.Time();
    if (standard && !standard[8] && Get32(standard + 0x10) >= 0x20) {
        Put64(standard + Get16(standard + 0x14) + 8, now);
        Put64(standard + Get16(standard + 0x14) + 0x10, now);
    }
    file->Stale = true;
}

/* Makes the data at least `size` bytes long, in memory; what is behind the initialized size reads as zeros. */
static NTFS_STATUS Grow(NTFS_FILE *file, uint64_t size) {
    NTFS_STREAM *data = &file->Data;
    NTFS_VOLUME *volume = file->Volume;
    if (size > MAXIMUM_FILE) return NTFS_FULL;
    if (data->Fixed || data->Sparse) return NTFS_NOT_SUPPORTED;
    if (data->Resident) {
        uint8_t *attribute = NtfsFindAttribute(file->Record, ATTRIBUTE_DATA, false);
        uint64_t needed = RoundUp(Get16(attribute + 0x14) + size, 8);
        uint64_t others = Get32(file->Record + 0x18) - Get32(attribute + 4);
        if (needed + others <= volume->RecordSize && NtfsResizeAttribute(file->Record, attribute, (uint32_t)needed)) {
            uint8_t *value = attribute + Get16(attribute + 0x14);
            memset(value + data->Size, 0, size - data->Size);
            Put32(attribute + 0x10, (uint32_t)size);
            data->Size = data->Initialized = data->Allocated = size;
            return NTFS_OK;
        }
        NTFS_STATUS status = NtfsMakeNonresident(data, size);
        if (status < 0) return status;
    }
    if (size > data->Allocated) {
        NTFS_STATUS status = NtfsExtend(data, (size - data->Allocated + volume->ClusterSize - 1) / volume->ClusterSize);
        if (status < 0) return status;
    }
    data->Size = size;
    return NTFS_OK;
}

static NTFS_STATUS Shrink(NTFS_FILE *file, uint64_t size) {
    NTFS_STREAM *data = &file->Data;
    NTFS_VOLUME *volume = file->Volume;
    if (data->Resident) {
        uint8_t *attribute = NtfsFindAttribute(file->Record, ATTRIBUTE_DATA, false);
        NtfsResizeAttribute(file->Record, attribute, (uint32_t)RoundUp(Get16(attribute + 0x14) + size, 8));
        Put32(attribute + 0x10, (uint32_t)size);
        data->Size = data->Initialized = data->Allocated = size;
        Touch(file);
        return NtfsCommit(file);
    }
    if (data->Fixed || data->Sparse) return NTFS_NOT_SUPPORTED;
    NTFS_RUN *freed = NULL;
    uint32_t count = 0;
    NTFS_STATUS status = NtfsTruncate(data, RoundUp(size, volume->ClusterSize) / volume->ClusterSize, &freed, &count);
    if (status < 0) return status;
    data->Size = size;
    if (data->Initialized > size) data->Initialized = size;
    status = NtfsStoreStream(data);
    Touch(file);
    if (status >= 0) status = NtfsCommit(file);
    if (status >= 0) NtfsFreeRuns(volume, freed, count);
    if (freed) volume->Io.Free(freed);
    return status;
}

static NTFS_STATUS CanChange(const NTFS_FILE *file) {
    if (file->Directory) return NTFS_IS_DIRECTORY;
    return file->Data.Opaque || !file->Data.Present || file->Number < 16 ? NTFS_NOT_SUPPORTED : NTFS_OK;
}

NTFS_STATUS NtfsSetSize(NTFS_FILE *file, uint64_t size) {
    NTFS_STATUS status = CanChange(file);
    if (status < 0 || size == file->Data.Size) return status;
    if (size < file->Data.Size) {
        status = Shrink(file, size);
    } else {
        status = Grow(file, size);
        if (status >= 0 && !file->Data.Resident) status = NtfsStoreStream(&file->Data);
        Touch(file);
        if (status >= 0) status = NtfsCommit(file);
    }
    if (status < 0) NtfsReload(file);
    return status;
}

NTFS_STATUS NtfsSetValid(NTFS_FILE *file) {
    NTFS_STATUS status = CanChange(file);
    if (status < 0 || file->Data.Resident || file->Data.Initialized == file->Data.Size) return status;
    file->Data.Initialized = file->Data.Size;
    status = NtfsStoreStream(&file->Data);
    if (status >= 0) status = NtfsCommit(file);
    if (status < 0) NtfsReload(file);
    return status;
}

NTFS_STATUS NtfsRead(NTFS_FILE *file, uint64_t offset, void *buffer, uint32_t length, uint32_t *done) {
    NTFS_STREAM *data = &file->Data;
    *done = 0;
    if (file->Directory) return NTFS_IS_DIRECTORY;
    if (data->Opaque || !data->Present) return NTFS_NOT_SUPPORTED;
    if (!length) return NTFS_OK;
    if (offset >= data->Size) return NTFS_END_OF_FILE;
    if (length > data->Size - offset) length = (uint32_t)(data->Size - offset);
    uint64_t stored = offset >= data->Initialized ? 0 : data->Initialized - offset;
    if (stored > length) stored = length;
    NTFS_STATUS status = stored ? NtfsTransfer(data, offset, buffer, stored, NTFS_READ) : NTFS_OK;
    if (status < 0) return status;
    memset((uint8_t *)buffer + stored, 0, length - stored);
    *done = length;
    return NTFS_OK;
}

NTFS_STATUS NtfsWrite(NTFS_FILE *file, uint64_t offset, const void *buffer, uint32_t length, uint32_t *done) {
    NTFS_STREAM *data = &file->Data;
    NTFS_STATUS status = CanChange(file);
    *done = 0;
    if (status < 0 || !length) return status;
    if (offset > MAXIMUM_FILE) return NTFS_FULL;
    uint64_t end = offset + length;
    bool changed = false, beyond = end >= data->Initialized; /* the rest of the last sector is nobody's */
    if (end > data->Size) {
        status = Grow(file, end);
        changed = true;
    }
    if (status >= 0 && !data->Resident && offset > data->Initialized) {
        status = NtfsTransfer(data, data->Initialized, NULL, offset - data->Initialized, NTFS_WRITE);
        changed = true;
    }
    if (status >= 0) status = NtfsTransfer(data, offset, (void *)buffer, length, beyond ? NTFS_WRITE_END : NTFS_WRITE);
    if (status >= 0 && !data->Resident && end > data->Initialized) {
        data->Initialized = end;
        changed = true;
    }
    if (status >= 0 && (changed || data->Resident)) {
        if (!data->Resident) status = NtfsStoreStream(data);
        Touch(file);
        if (status >= 0) status = NtfsCommit(file);
    }
    if (status < 0) {
        NtfsReload(file);
        return status;
    }
    *done = length;
    return NTFS_OK;
}

const NTFS_RUN *NtfsRuns(NTFS_FILE *file, uint32_t *count) {
    *count = file->Data.Resident ? 0 : file->Data.RunCount;
    return *count ? file->Data.Runs : NULL;
}

NTFS_STATUS NtfsFlush(NTFS_FILE *file) {
    NTFS_VOLUME *volume = file->Volume;
    if (!file->Stale || file->Directory) return NTFS_OK;
    uint8_t *name = NtfsFindAttribute(file->Record, ATTRIBUTE_FILE_NAME, false);
    uint8_t *standard = NtfsFindAttribute(file->Record, ATTRIBUTE_STANDARD, false);
    if (!name || name[8] || Get32(name + 0x10) < 0x44 || !standard || standard[8]) return NTFS_CORRUPT;
    uint8_t *key = name + Get16(name + 0x14);
    uint32_t length = Get32(name + 0x10);
    memcpy(key + 8, standard + Get16(standard + 0x14), Get32(standard + 0x10) < 0x20 ? 0 : 0x20);
    Put64(key + 0x28, file->Data.Resident ? RoundUp(file->Data.Size, 8) : file->Data.Allocated);
    Put64(key + 0x30, file->Data.Size);
    NTFS_FILE *parent = NULL;
    NTFS_STATUS status = NtfsOpenRecord(volume, Get64(key) & 0xFFFFFFFFFFFFull, (uint16_t)(Get64(key) >> 48), &parent);
    if (status < 0) return status;
    status = NtfsUpdateName(parent, Reference(file), key, length);
    NtfsClose(parent);
    file->Stale = false;
    return status;
}
