/* io: the disk, the NTFS volume, files. */
#ifndef IO_H
#define IO_H

#include "../nt.h"

/* Once, on the boot processor at PASSIVE_LEVEL, after the object manager: finds the virtio disk, mounts its NTFS volume as
 * \Device\HarddiskVolume1 with real DRIVER_OBJECT, DEVICE_OBJECT and VPB. Without a disk it says why and file calls fail. */
NTSTATUS IoInitSystem(void);

/* Dispositions of NtCreateFile. */
#define FILE_SUPERSEDE 0
#define FILE_OPEN 1
#define FILE_CREATE 2
#define FILE_OPEN_IF 3
#define FILE_OVERWRITE 4
#define FILE_OVERWRITE_IF 5

/* Opens or creates `path` (terminated): \Windows\a.txt, \??\C:\..., C:\..., \SystemRoot\... or \Device\HarddiskVolume1\...
 * The FILE_OBJECT is real: FileName, DeviceObject, Vpb, FsContext, and the SectionObjectPointer all opens of one file share.
 * One reference belongs to the caller (ObDereferenceObject). PASSIVE_LEVEL. */
NTSTATUS IoOpenFile(const WCHAR *path, ULONG disposition, FILE_OBJECT **file);
NTSTATUS IoCreateDirectory(const WCHAR *path);

/* `buffer` is memory that cannot fault (nonpaged, locked or a stack); PASSIVE or APC level; never faults itself, so the page
 * fault path calls it. A read that starts at or behind the end is STATUS_END_OF_FILE; one that crosses it is short. A write
 * behind the end extends the file, the gap reading as zeros. */
NTSTATUS IoReadFile(FILE_OBJECT *file, ULONG64 offset, void *buffer, ULONG length, ULONG *done);
NTSTATUS IoWriteFile(FILE_OBJECT *file, ULONG64 offset, const void *buffer, ULONG length, ULONG *done);
NTSTATUS IoQueryFileSize(FILE_OBJECT *file, ULONG64 *size);
NTSTATUS IoSetFileSize(FILE_OBJECT *file, ULONG64 size); /* longer: the rest reads as zeros; shorter: clusters go free */
/* For a paging file: `size` bytes that are allocated and whose content is the disk's own, not zeros (no zeroing is done). */
NTSTATUS IoSetPagingFileSize(FILE_OBJECT *file, ULONG64 size);
NTSTATUS IoFlushFile(FILE_OBJECT *file); /* sizes and times into the directory's entry too; data is never held back */

/* Where the file's bytes lie: runs of clusters in file order. Returns STATUS_BUFFER_TOO_SMALL with the needed count. */
typedef struct _IO_RUN {
    ULONG64 FileOffset, DiskOffset, Length; /* bytes; DiskOffset from the start of the whole disk, ~0 for a hole */
} IO_RUN;
NTSTATUS IoGetFileRuns(FILE_OBJECT *file, IO_RUN *runs, ULONG *count);

/* Between the two no other thread is inside the file system or the disk driver, and the caller may still read: called before
 * the other processors are stopped, so that none is stopped while it holds the volume. */
void IoFreeze(void);
void IoThaw(void);

/* TRUE for removable media, and for every device in a boot with MININT and INRAM (bit 31 of InitWinPEModeType). */
BOOLEAN IoIsDeviceEjectable(DEVICE_OBJECT *device);
extern ULONG InitWinPEModeType;

/* The start of FAST_IO_DISPATCH (ntddk.h), as far as minint calls it. */
typedef struct _IO_FAST_WRITE {
    ULONG SizeOfFastIoDispatch;
    void *FastIoCheckIfPossible, *FastIoRead;
    BOOLEAN (*FastIoWrite)(FILE_OBJECT *file, LONG64 *offset, ULONG length, BOOLEAN wait, ULONG key, void *buffer,
                           IO_STATUS_BLOCK *status, DEVICE_OBJECT *device);
} IO_FAST_WRITE;
NTSTATUS IoSendToNetwork(const void *user, ULONG size); /* what SystemMinintSend asks; size at most 1 MB */

/* The page-sized transfers and their time so far, for boot figures. */
typedef struct _IO_COUNTERS {
    ULONG64 Reads, Writes, BytesRead, BytesWritten, Ticks;
} IO_COUNTERS;
extern IO_COUNTERS IopCounters;

#endif
