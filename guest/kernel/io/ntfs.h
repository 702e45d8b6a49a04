/* An NTFS volume: reading, writing, extending and creating files and directories.
 *
 * Knows nothing of the kernel: it reads and writes through NTFS_IO, so the same code runs on the host under a test (the
 * facts are those of ntfs-3g's layout.h and the volume itself). Nothing here is safe on two processors at once: the caller
 * holds one lock a volume. What the volume says is checked before it is used; a value out of bounds is
 * NTFS_CORRUPT, and no loop is longer than what the volume's size allows.
 *
 * Order of writes: clusters are marked used, then filled, then the file's record points at them (one record write is the
 * moment of truth); going free, the other way about. A volume left in the middle has at worst used clusters or a record that
 * nothing names. $LogFile is left as mkntfs leaves it: clean and empty. */
#ifndef NTFS_H
#define NTFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* NTSTATUS values, so that the kernel passes them on. */
typedef int32_t NTFS_STATUS;
#define NTFS_OK 0
#define NTFS_INVALID ((NTFS_STATUS)0xC000000D)
#define NTFS_END_OF_FILE ((NTFS_STATUS)0xC0000011)
#define NTFS_NO_MEMORY ((NTFS_STATUS)0xC000009A)
#define NTFS_BAD_NAME ((NTFS_STATUS)0xC0000033)
#define NTFS_NOT_FOUND ((NTFS_STATUS)0xC0000034)
#define NTFS_NO_PATH ((NTFS_STATUS)0xC000003A)
#define NTFS_COLLISION ((NTFS_STATUS)0xC0000035)
#define NTFS_FULL ((NTFS_STATUS)0xC000007F)
#define NTFS_IS_DIRECTORY ((NTFS_STATUS)0xC00000BA)
#define NTFS_NOT_SUPPORTED ((NTFS_STATUS)0xC00000BB)
#define NTFS_CORRUPT ((NTFS_STATUS)0xC0000102)
#define NTFS_NOT_DIRECTORY ((NTFS_STATUS)0xC0000103)
#define NTFS_UNRECOGNIZED ((NTFS_STATUS)0xC000014F)

/* Offsets from the volume's first byte; offsets and lengths are multiples of 512. */
typedef struct NTFS_IO {
    void *Context;
    NTFS_STATUS (*Read)(void *context, uint64_t offset, void *buffer, uint32_t length);
    NTFS_STATUS (*Write)(void *context, uint64_t offset, const void *buffer, uint32_t length);
    void *(*Allocate)(size_t size); /* zeroed; NULL when there is none */
    void (*Free)(void *block);
    uint64_t (*Time)(void); /* 100 ns since 1601 */
} NTFS_IO;

typedef struct NTFS_VOLUME NTFS_VOLUME;
typedef struct NTFS_FILE NTFS_FILE;

#define NTFS_HOLE (~0ull)
typedef struct NTFS_RUN {
    uint64_t Vcn, Lcn, Count; /* clusters; Lcn is NTFS_HOLE where nothing is allocated */
} NTFS_RUN;

NTFS_STATUS NtfsMount(const NTFS_IO *io, NTFS_VOLUME **volume);
void NtfsDismount(NTFS_VOLUME *volume); /* all files closed before */
uint32_t NtfsClusterSize(const NTFS_VOLUME *volume);
uint64_t NtfsFreeClusters(const NTFS_VOLUME *volume);
uint32_t NtfsSerialNumber(const NTFS_VOLUME *volume);
void NtfsFragment(NTFS_VOLUME *volume, uint32_t clusters); /* from now on no run longer than this, with gaps; 0: off */

/* Paths are UTF-16 without terminator, `\` or `/` between names, compared through the volume's $UpCase. Opening one file
 * twice gives the same NTFS_FILE with one more reference. */
NTFS_STATUS NtfsOpen(NTFS_VOLUME *volume, const uint16_t *path, size_t characters, NTFS_FILE **file);
NTFS_STATUS NtfsCreate(NTFS_VOLUME *volume, const uint16_t *path, size_t characters, bool directory, NTFS_FILE **file);
NTFS_STATUS NtfsClose(NTFS_FILE *file);
NTFS_STATUS NtfsFlush(NTFS_FILE *file); /* sizes and times into the directory's entry */
bool NtfsIsDirectory(const NTFS_FILE *file);
uint64_t NtfsFileNumber(const NTFS_FILE *file); /* the number of its MFT record */
uint64_t NtfsSize(const NTFS_FILE *file);
void *NtfsGetContext(const NTFS_FILE *file); /* one pointer for the caller, NULL at first */
void NtfsSetContext(NTFS_FILE *file, void *context);

NTFS_STATUS NtfsRead(NTFS_FILE *file, uint64_t offset, void *buffer, uint32_t length, uint32_t *done);
NTFS_STATUS NtfsWrite(NTFS_FILE *file, uint64_t offset, const void *buffer, uint32_t length, uint32_t *done);
NTFS_STATUS NtfsSetSize(NTFS_FILE *file, uint64_t size);
NTFS_STATUS NtfsSetValid(NTFS_FILE *file); /* what is allocated counts as written: its content is the disk's own */
const NTFS_RUN *NtfsRuns(NTFS_FILE *file, uint32_t *count); /* NULL and 0 when the data lies in the record */

/* Names in a directory in its order; `cookie` 0 starts, NTFS_NOT_FOUND ends. DOS names are left out. */
NTFS_STATUS NtfsEnumerate(NTFS_FILE *directory, void (*each)(void *, const uint16_t *name, uint32_t characters,
                          uint64_t record, bool is_directory), void *context);

#endif
