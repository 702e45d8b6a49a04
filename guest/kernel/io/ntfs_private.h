/* Between the NTFS files: the volume, files, streams and the on-disk words. */
#ifndef NTFS_PRIVATE_H
#define NTFS_PRIVATE_H

#include "ntfs.h"

#define SECTOR 512u
#define STAGING 65536u
#define CACHED_SECTORS 8u
#define ATTRIBUTE_STANDARD 0x10u
#define ATTRIBUTE_LIST 0x20u
#define ATTRIBUTE_FILE_NAME 0x30u
#define ATTRIBUTE_DATA 0x80u
#define ATTRIBUTE_INDEX_ROOT 0x90u
#define ATTRIBUTE_INDEX_ALLOCATION 0xA0u
#define ATTRIBUTE_BITMAP 0xB0u
#define ATTRIBUTE_END 0xFFFFFFFFu

#define MAGIC_FILE 0x454C4946u
#define MAGIC_INDEX 0x58444E49u

#define RECORD_IN_USE 1u
#define RECORD_DIRECTORY 2u
#define FIRST_USER_RECORD 24u
#define MAXIMUM_RUNS 65536u
#define MAXIMUM_FILE (1ull << 44)
#define MAXIMUM_DEPTH 12u /* of an index, and far beyond any real one */

/* An attribute's data: in the record, or in runs. */
typedef struct NTFS_STREAM {
    NTFS_FILE *File;
    uint32_t Type;
    bool Indexed;  /* its name is $I30, else it has none */
    bool Present, Resident;
    bool Fixed;    /* runs lie in several records: content may change, the allocation may not */
    bool Sparse, Opaque; /* Opaque: compressed or encrypted */
    NTFS_RUN *Runs;
    uint32_t RunCount, RunCapacity;
    uint64_t Allocated, Size, Initialized;
} NTFS_STREAM;

struct NTFS_FILE {
    NTFS_VOLUME *Volume;
    NTFS_FILE *Next;
    uint32_t References;
    uint64_t Number;
    uint16_t Sequence;
    bool Directory;
    bool Stale; /* the directory's copy of size and times is older than the record */
    void *Context;
    uint8_t *Record;
    NTFS_STREAM Data;   /* unnamed $DATA, or a directory's $INDEX_ALLOCATION */
    NTFS_STREAM Bitmap; /* of $MFT alone */
};

struct NTFS_VOLUME {
    NTFS_IO Io;
    uint32_t ClusterSize, RecordSize, IndexSize, Serial;
    uint64_t Clusters, MirrorLcn;
    uint64_t Free, Hint;
    uint32_t Fragment;
    uint8_t *Bitmap; /* $Bitmap's content */
    uint16_t *UpCase;
    uint8_t *Staging; /* where parts of sectors become whole ones */
    uint8_t *Cache;
    uint64_t CachedAt[CACHED_SECTORS];
    uint32_t CacheNext;
    uint8_t *Pairs;  /* runs while they are encoded */
    uint8_t *Block, *Spare, *Work; /* index blocks while one is read, split, built */
    NTFS_FILE *Files; /* open ones */
    NTFS_FILE *Mft, *BitmapFile;
};

static inline uint16_t Get16(const void *p) { uint16_t v; __builtin_memcpy(&v, p, 2); return v; }
static inline uint32_t Get32(const void *p) { uint32_t v; __builtin_memcpy(&v, p, 4); return v; }
static inline uint64_t Get64(const void *p) { uint64_t v; __builtin_memcpy(&v, p, 8); return v; }
static inline void Put16(void *p, uint16_t v) { __builtin_memcpy(p, &v, 2); }
static inline void Put32(void *p, uint32_t v) { __builtin_memcpy(p, &v, 4); }
static inline void Put64(void *p, uint64_t v) { __builtin_memcpy(p, &v, 8); }
static inline uint64_t RoundUp(uint64_t v, uint64_t to) { return (v + to - 1) / to * to; }

void *memcpy(void *, const void *, size_t);
void *memmove(void *, const void *, size_t);
void *memset(void *, int, size_t);
int memcmp(const void *, const void *, size_t);

/* ntfs_record.c: records, fixups, attributes inside a record */
NTFS_STATUS NtfsApplyFixups(uint8_t *block, uint32_t size, uint32_t magic);
void NtfsMakeFixups(uint8_t *block);
void NtfsUndoFixups(uint8_t *block, uint32_t size);
NTFS_STATUS NtfsReadRecord(NTFS_VOLUME *volume, uint64_t number, uint8_t *record);
NTFS_STATUS NtfsWriteRecord(NTFS_VOLUME *volume, uint64_t number, uint8_t *record);
bool NtfsRecordIsSound(const uint8_t *record, uint32_t size);
uint8_t *NtfsNextAttribute(uint8_t *record, uint8_t *after); /* NULL `after`: the first; NULL: no more */
uint8_t *NtfsFindAttribute(uint8_t *record, uint32_t type, bool indexed);
bool NtfsResizeAttribute(uint8_t *record, uint8_t *attribute, uint32_t length);
uint8_t *NtfsInsertAttribute(uint8_t *record, uint32_t type, bool indexed, bool resident, uint32_t value_or_runs);
void NtfsRemoveAttribute(uint8_t *record, uint8_t *attribute);
NTFS_STATUS NtfsAllocateRecord(NTFS_VOLUME *volume, uint64_t *number, uint16_t *sequence);
void NtfsFreeRecord(NTFS_VOLUME *volume, uint64_t number);

/* ntfs_stream.c: runs */
NTFS_STATUS NtfsLoadStream(NTFS_STREAM *stream);
NTFS_STATUS NtfsStoreStream(NTFS_STREAM *stream); /* sizes and runs into the record in memory */
typedef enum NTFS_DIRECTION {
    NTFS_READ,
    NTFS_WRITE,
    NTFS_WRITE_END /* what follows the bytes in their last sector is nobody's */
} NTFS_DIRECTION;
NTFS_STATUS NtfsTransfer(NTFS_STREAM *stream, uint64_t offset, void *buffer, uint64_t length, NTFS_DIRECTION write);
NTFS_STATUS NtfsExtend(NTFS_STREAM *stream, uint64_t clusters);
NTFS_STATUS NtfsTruncate(NTFS_STREAM *stream, uint64_t clusters, NTFS_RUN **freed, uint32_t *freed_count);
void NtfsFreeRuns(NTFS_VOLUME *volume, const NTFS_RUN *runs, uint32_t count);
NTFS_STATUS NtfsMakeNonresident(NTFS_STREAM *stream, uint64_t size);

/* ntfs_index.c: directories */
int NtfsCollate(const NTFS_VOLUME *volume, const uint16_t *a, uint32_t na, const uint8_t *b, uint32_t nb);
NTFS_STATUS NtfsLookup(NTFS_FILE *directory, const uint16_t *name, uint32_t characters, uint64_t *reference);
NTFS_STATUS NtfsInsertName(NTFS_FILE *directory, uint64_t reference, const uint8_t *key, uint32_t key_length);
NTFS_STATUS NtfsUpdateName(NTFS_FILE *directory, uint64_t reference, const uint8_t *key, uint32_t key_length);

/* ntfs_file.c */
NTFS_STATUS NtfsOpenRecord(NTFS_VOLUME *volume, uint64_t number, uint16_t sequence, NTFS_FILE **file);
NTFS_STATUS NtfsParseRecord(NTFS_FILE *file); /* takes over what the record in memory says */
NTFS_STATUS NtfsReload(NTFS_FILE *file);
void NtfsReleaseFile(NTFS_FILE *file);
NTFS_STATUS NtfsCommit(NTFS_FILE *file); /* writes the record */

#endif
