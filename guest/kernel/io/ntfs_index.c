/* NTFS: directories. A directory is a B-tree of names: its root in the record ($INDEX_ROOT), its other nodes in blocks of
 * $INDEX_ALLOCATION, which a resident $BITMAP marks as used. A node is a header and entries in the order of the names; the
 * last entry is empty. In a node that is no leaf each entry names the block of what sorts before it. */
#include "ntfs_private.h"

#define ENTRY_HAS_CHILD 1u
#define ENTRY_IS_LAST 2u
#define NODE_HEADER 16u
#define BLOCK_NODE 0x18u /* where the node's header lies in a block */

int NtfsCollate(const NTFS_VOLUME *volume, const uint16_t *a, uint32_t na, const uint8_t *b, uint32_t nb) {
    for (uint32_t i = 0; i < na && i < nb; i++) {
        uint16_t x = volume->UpCase[a[i]], y = volume->UpCase[Get16(b + 2 * i)];
        if (x != y) return x < y ? -1 : 1;
    }
    return na == nb ? 0 : na < nb ? -1 : 1;
}

static uint32_t EntryLength(const uint8_t *entry) { return Get16(entry + 8); }
static bool IsLast(const uint8_t *entry) { return (Get16(entry + 0xC) & ENTRY_IS_LAST) != 0; }
static uint64_t Child(const uint8_t *entry) { return Get64(entry + EntryLength(entry) - 8); }

/* Checks a node whose header is at `node` and which has `room` bytes from there. */
static bool NodeIsSound(const uint8_t *node, uint32_t room) {
    if (room < NODE_HEADER) return false;
    uint32_t at = Get32(node), end = Get32(node + 4);
    if (end > room || end > Get32(node + 8) || Get32(node + 8) > room || at < NODE_HEADER || at % 8) return false;
    while (at + 16 <= end) {
        const uint8_t *entry = node + at;
        uint32_t length = EntryLength(entry), key = Get16(entry + 0xA), child = Get16(entry + 0xC) & ENTRY_HAS_CHILD ? 8 : 0;
        if (length < 16 + child || length % 8 || length > end - at) return false;
        if ((child != 0) != ((node[12] & 1) != 0)) return false;
        if (IsLast(entry)) return at + length == end;
        if (key < 0x44 || key > length - 16 - child || 0x42u + 2 * entry[16 + 0x40] > key || !entry[16 + 0x40]) return false;
        at += length;
    }
    return false;
}

static uint8_t *Root(NTFS_FILE *directory, uint32_t *room) {
    uint8_t *attribute = NtfsFindAttribute(directory->Record, ATTRIBUTE_INDEX_ROOT, true);
    if (!attribute || attribute[8]) return NULL;
    uint8_t *value = attribute + Get16(attribute + 0x14);
    uint32_t size = Get32(attribute + 0x10);
    if (size < 0x20 || Get32(value) != ATTRIBUTE_FILE_NAME || Get32(value + 4) != 1) return NULL;
    if (Get32(value + 8) != directory->Volume->IndexSize || !NodeIsSound(value + 16, size - 16)) return NULL;
    *room = size - 16;
    return value + 16;
}

static uint64_t BlockOffset(const NTFS_VOLUME *volume, uint64_t vcn) {
    return vcn * (volume->ClusterSize <= volume->IndexSize ? volume->ClusterSize : SECTOR);
}

static NTFS_STATUS ReadBlock(NTFS_FILE *directory, uint64_t vcn, uint8_t *block) {
    NTFS_VOLUME *volume = directory->Volume;
    uint64_t offset = BlockOffset(volume, vcn);
    if (vcn > MAXIMUM_FILE / SECTOR || !directory->Data.Present || directory->Data.Resident) return NTFS_CORRUPT;
    if (offset % volume->IndexSize || offset + volume->IndexSize > directory->Data.Initialized) return NTFS_CORRUPT;
    NTFS_STATUS status = NtfsTransfer(&directory->Data, offset, block, volume->IndexSize, NTFS_READ);
    if (status >= 0) status = NtfsApplyFixups(block, volume->IndexSize, MAGIC_INDEX);
    if (status >= 0 && (Get64(block + 0x10) != vcn || !NodeIsSound(block + BLOCK_NODE, volume->IndexSize - BLOCK_NODE)))
        status = NTFS_CORRUPT;
    if (status >= 0 && BLOCK_NODE + Get32(block + BLOCK_NODE) < Get16(block + 4) + 2u * Get16(block + 6)) status = NTFS_CORRUPT;
    return status;
}

static NTFS_STATUS WriteBlock(NTFS_FILE *directory, uint64_t vcn, uint8_t *block) {
    NTFS_VOLUME *volume = directory->Volume;
    NtfsMakeFixups(block);
    return NtfsTransfer(&directory->Data, BlockOffset(volume, vcn), block, volume->IndexSize, NTFS_WRITE);
}

/* A way from the root to where a name is or would be: for each level its block (the root has none) and the entry taken. */
typedef struct PATH {
    uint32_t Depth; /* of the last level */
    uint64_t Vcn[MAXIMUM_DEPTH];
    uint32_t Entry[MAXIMUM_DEPTH]; /* offset from the first entry */
    bool Found;
} PATH;

/* On return *node is the last level's: in the record, or in volume->Block. */
static NTFS_STATUS Descend(NTFS_FILE *directory, const uint16_t *name, uint32_t characters, PATH *path, uint8_t **node) {
    NTFS_VOLUME *volume = directory->Volume;
    uint32_t room;
    *node = Root(directory, &room);
    if (!*node) return NTFS_CORRUPT;
    for (path->Depth = 0; path->Depth < MAXIMUM_DEPTH; path->Depth++) {
        uint8_t *first = *node + Get32(*node), *entry = first;
        int order = 1;
        for (; !IsLast(entry); entry += EntryLength(entry)) {
            order = NtfsCollate(volume, name, characters, entry + 16 + 0x42, entry[16 + 0x40]);
            if (order <= 0) break;
        }
        path->Entry[path->Depth] = (uint32_t)(entry - first);
        path->Found = !IsLast(entry) && order == 0;
        if (path->Found || !(Get16(entry + 0xC) & ENTRY_HAS_CHILD)) return NTFS_OK;
        uint64_t vcn = Child(entry);
        if (path->Depth + 1 == MAXIMUM_DEPTH) break;
        path->Vcn[path->Depth + 1] = vcn;
        NTFS_STATUS status = ReadBlock(directory, vcn, volume->Block);
        if (status < 0) return status;
        *node = volume->Block + BLOCK_NODE;
    }
    return NTFS_CORRUPT;
}

NTFS_STATUS NtfsLookup(NTFS_FILE *directory, const uint16_t *name, uint32_t characters, uint64_t *reference) {
    PATH path;
    uint8_t *node;
    NTFS_STATUS status = Descend(directory, name, characters, &path, &node);
    if (status < 0) return status;
    if (!path.Found) return NTFS_NOT_FOUND;
    *reference = Get64(node + Get32(node) + path.Entry[path.Depth]);
    return NTFS_OK;
}

/* Replaces what a name's entry says of its file (times, sizes): the key's first 0x40 bytes. */
NTFS_STATUS NtfsUpdateName(NTFS_FILE *directory, uint64_t reference, const uint8_t *key, uint32_t key_length) {
    PATH path;
    uint8_t *node;
    uint16_t name[255];
    if (key_length < 0x42 || key_length < 0x42u + 2 * key[0x40]) return NTFS_CORRUPT;
    memcpy(name, key + 0x42, 2u * key[0x40]);
    NTFS_STATUS status = Descend(directory, name, key[0x40], &path, &node);
    if (status < 0) return status;
    if (!path.Found) return NTFS_NOT_FOUND;
    uint8_t *entry = node + Get32(node) + path.Entry[path.Depth];
    if (Get64(entry) != reference) return NTFS_NOT_FOUND;
    memcpy(entry + 16, key, 0x40);
    if (path.Depth == 0) return NtfsCommit(directory);
    return WriteBlock(directory, path.Vcn[path.Depth], directory->Volume->Block);
}

/* ---- Inserting */

/* A free block of $INDEX_ALLOCATION, marked used; the caller writes the record. */
static NTFS_STATUS AllocateBlock(NTFS_FILE *directory, uint64_t *vcn) {
    NTFS_VOLUME *volume = directory->Volume;
    NTFS_STREAM *blocks = &directory->Data;
    uint8_t *record = directory->Record;
    if (!blocks->Present) {
        if (!NtfsInsertAttribute(record, ATTRIBUTE_INDEX_ALLOCATION, true, false, 8)) return NTFS_FULL;
        blocks->Present = true;
        blocks->Resident = false;
    }
    uint8_t *bitmap = NtfsFindAttribute(record, ATTRIBUTE_BITMAP, true);
    if (!bitmap) bitmap = NtfsInsertAttribute(record, ATTRIBUTE_BITMAP, true, true, 8);
    if (!bitmap || bitmap[8]) return NTFS_FULL;
    uint32_t size = Get32(bitmap + 0x10), index = 0;
    uint8_t *bits = bitmap + Get16(bitmap + 0x14);
    while (index < size * 8 && bits[index / 8] >> index % 8 & 1) index++;
    if (index == size * 8) {
        if (!NtfsResizeAttribute(record, bitmap, Get32(bitmap + 4) + 8)) return NTFS_FULL;
        Put32(bitmap + 0x10, size + 8);
        memset(bits + size, 0, 8);
    }
    bits[index / 8] |= (uint8_t)(1u << index % 8);
    uint64_t end = ((uint64_t)index + 1) * volume->IndexSize;
    NTFS_STATUS status = NTFS_OK;
    if (end > blocks->Allocated)
        status = NtfsExtend(blocks, RoundUp(end - blocks->Allocated, volume->ClusterSize) / volume->ClusterSize);
    if (status >= 0 && end > blocks->Size) {
        blocks->Size = blocks->Initialized = end;
        status = NtfsStoreStream(blocks);
    }
    *vcn = (end - volume->IndexSize) / BlockOffset(volume, 1);
    return status;
}

/* Writes `block` as a node of the given entries. */
static void MakeBlock(const NTFS_VOLUME *volume, uint8_t *block, uint64_t vcn, const uint8_t *entries, uint32_t size, bool inner) {
    uint32_t fixups = volume->IndexSize / SECTOR + 1, first = (uint32_t)RoundUp(0x28 + 2 * fixups, 8) - BLOCK_NODE;
    memset(block, 0, volume->IndexSize);
    Put32(block, MAGIC_INDEX);
    Put16(block + 4, 0x28);
    Put16(block + 6, (uint16_t)fixups);
    Put64(block + 0x10, vcn);
    Put32(block + BLOCK_NODE, first);
    Put32(block + BLOCK_NODE + 4, first + size);
    Put32(block + BLOCK_NODE + 8, volume->IndexSize - BLOCK_NODE);
    block[BLOCK_NODE + 12] = inner;
    memcpy(block + BLOCK_NODE + first, entries, size);
}

static uint32_t BlockRoom(const NTFS_VOLUME *volume) {
    return volume->IndexSize - (uint32_t)RoundUp(0x28 + 2 * (volume->IndexSize / SECTOR + 1), 8);
}

static void PutLast(uint8_t *entry, bool inner, uint64_t child) {
    memset(entry, 0, 24);
    Put16(entry + 8, inner ? 24 : 16);
    Put16(entry + 0xC, (uint16_t)(ENTRY_IS_LAST | (inner ? ENTRY_HAS_CHILD : 0)));
    if (inner) Put64(entry + 16, child);
}

/* Inserts `entry` (its child, if the level is no leaf, already in it) before the entry that `path` takes at `level`; that one
 * gets the child `right` when the insertion comes from a split below. */
static NTFS_STATUS InsertAt(NTFS_FILE *directory, PATH *path, uint32_t level, const uint8_t *entry, uint64_t right) {
    NTFS_VOLUME *volume = directory->Volume;
    uint32_t room = 0, length = EntryLength(entry), taken = path->Entry[level];
    uint8_t *node, *work = volume->Work + level * (volume->IndexSize + 1024u);
    NTFS_STATUS status = NTFS_OK;
    if (level) status = ReadBlock(directory, path->Vcn[level], volume->Block);
    if (status < 0) return status;
    node = level ? volume->Block + BLOCK_NODE : Root(directory, &room);
    if (!node) return NTFS_CORRUPT;
    uint32_t first = Get32(node), held = Get32(node + 4) - first;
    bool inner = (node[12] & 1) != 0;
    if (taken > held || length > 1024) return NTFS_CORRUPT;
    memcpy(work, node + first, taken);
    memcpy(work + taken, entry, length);
    memcpy(work + taken + length, node + first + taken, held - taken);
    uint8_t *next = work + taken + length;
    if (inner) Put64(next + EntryLength(next) - 8, right);
    held += length;

    if (level == 0) {
        uint8_t *attribute = NtfsFindAttribute(directory->Record, ATTRIBUTE_INDEX_ROOT, true);
        uint32_t header = Get16(attribute + 0x14) + 16u + NODE_HEADER;
        /* The record keeps room for $INDEX_ALLOCATION, $BITMAP and longer runs: a leaf root that would eat it moves out. */
        bool fits = Get32(directory->Record + 0x18) - Get32(attribute + 4) + header + held + (inner ? 64 : 160) <= volume->RecordSize;
        uint64_t vcn = 0;
        bool moved = !fits;
        if (moved) {
            if (!NtfsResizeAttribute(directory->Record, attribute, header + 24)) return NTFS_FULL;
            status = AllocateBlock(directory, &vcn);
            if (status < 0) return status;
            if (held > BlockRoom(volume)) return NTFS_FULL;
            MakeBlock(volume, volume->Block, vcn, work, held, inner);
            status = WriteBlock(directory, vcn, volume->Block);
            if (status < 0) return status;
            PutLast(work, true, vcn);
            held = 24;
            inner = true;
            attribute = NtfsFindAttribute(directory->Record, ATTRIBUTE_INDEX_ROOT, true);
        } else if (!NtfsResizeAttribute(directory->Record, attribute, header + held)) {
            return NTFS_FULL;
        }
        uint8_t *value = attribute + Get16(attribute + 0x14);
        Put32(attribute + 0x10, 16 + NODE_HEADER + held);
        Put32(value + 16, NODE_HEADER);
        Put32(value + 20, NODE_HEADER + held);
        Put32(value + 24, NODE_HEADER + held);
        value[28] = inner;
        memcpy(value + 16 + NODE_HEADER, work, held);
        return NtfsCommit(directory);
    }

    if (held <= BlockRoom(volume)) {
        MakeBlock(volume, volume->Block, path->Vcn[level], work, held, inner);
        return WriteBlock(directory, path->Vcn[level], volume->Block);
    }

    /* Split: what follows the middle entry goes to a new block, the middle entry up, its child being the block that stays. */
    uint8_t *middle = work, *up = volume->Spare + level * 1024u;
    while ((uint32_t)(middle - work) + EntryLength(middle) < held / 2) middle += EntryLength(middle);
    if (IsLast(middle) || EntryLength(middle) + 8 > 1024) return NTFS_CORRUPT;
    uint32_t left = (uint32_t)(middle - work), size = EntryLength(middle), grown = inner ? size : size + 8;
    uint64_t vcn = 0, middle_child = inner ? Child(middle) : 0;
    memcpy(up, middle, size);
    Put16(up + 8, (uint16_t)grown);
    Put16(up + 0xC, ENTRY_HAS_CHILD);
    Put64(up + grown - 8, path->Vcn[level]);
    status = AllocateBlock(directory, &vcn);
    if (status < 0) return status;
    MakeBlock(volume, volume->Block, vcn, middle + size, held - left - size, inner);
    status = WriteBlock(directory, vcn, volume->Block);
    if (status >= 0 && level > 1) status = NtfsCommit(directory);
    if (status >= 0) status = InsertAt(directory, path, level - 1, up, vcn);
    if (status < 0) return status;
    uint8_t last[24];
    PutLast(last, inner, middle_child);
    memcpy(work + left, last, inner ? 24 : 16);
    MakeBlock(volume, volume->Block, path->Vcn[level], work, left + (inner ? 24 : 16), inner);
    return WriteBlock(directory, path->Vcn[level], volume->Block);
}

NTFS_STATUS NtfsInsertName(NTFS_FILE *directory, uint64_t reference, const uint8_t *key, uint32_t key_length) {
    uint8_t entry[16 + 0x42 + 2 * 255 + 8], *node;
    uint16_t name[255];
    PATH path;
    uint32_t length = (uint32_t)RoundUp(16 + key_length, 8);
    if (key_length < 0x44 || length > sizeof(entry)) return NTFS_INVALID;
    memset(entry, 0, sizeof(entry));
    Put64(entry, reference);
    Put16(entry + 8, (uint16_t)length);
    Put16(entry + 0xA, (uint16_t)key_length);
    memcpy(entry + 16, key, key_length);
    memcpy(name, key + 0x42, 2u * key[0x40]);
    NTFS_STATUS status = Descend(directory, name, key[0x40], &path, &node);
    if (status < 0) return status;
    if (path.Found) return NTFS_COLLISION;
    status = InsertAt(directory, &path, path.Depth, entry, 0);
    if (status < 0) NtfsReload(directory);
    return status;
}

/* ---- Listing, in the order of the names */

typedef void EACH(void *, const uint16_t *, uint32_t, uint64_t, bool);

static NTFS_STATUS List(NTFS_FILE *directory, const uint8_t *node, uint32_t depth, uint64_t *budget, EACH *each, void *context) {
    NTFS_VOLUME *volume = directory->Volume;
    for (const uint8_t *entry = node + Get32(node);; entry += EntryLength(entry)) {
        NTFS_STATUS status = NTFS_OK;
        if (!(*budget)--) return NTFS_CORRUPT;
        if (Get16(entry + 0xC) & ENTRY_HAS_CHILD) {
            uint8_t *block = depth + 1 < MAXIMUM_DEPTH ? volume->Io.Allocate(volume->IndexSize) : NULL;
            status = block ? ReadBlock(directory, Child(entry), block) : NTFS_CORRUPT;
            if (status >= 0) status = List(directory, block + BLOCK_NODE, depth + 1, budget, each, context);
            if (block) volume->Io.Free(block);
        }
        if (status < 0 || IsLast(entry)) return status;
        uint16_t name[255];
        uint32_t characters = entry[16 + 0x40];
        memcpy(name, entry + 16 + 0x42, 2 * characters);
        if (entry[16 + 0x41] != 2)
            each(context, name, characters, Get64(entry) & 0xFFFFFFFFFFFFull, (Get32(entry + 16 + 0x38) & 0x10000000) != 0);
    }
}

NTFS_STATUS NtfsEnumerate(NTFS_FILE *directory, EACH *each, void *context) {
    uint32_t room;
    uint64_t budget = directory->Volume->Mft->Data.Size / directory->Volume->RecordSize * 4 + 1024;
    uint8_t *root = directory->Directory ? Root(directory, &room) : NULL;
    return root ? List(directory, root, 0, &budget, each, context) : NTFS_CORRUPT;
}
