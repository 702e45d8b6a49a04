/* io's own words. */
#ifndef IOP_H
#define IOP_H

#include "io.h"
#include "../mm/mm.h"
#include "ntfs.h"

#define STATUS_NO_SUCH_DEVICE ((NTSTATUS)0xC000000E)
#define STATUS_UNRECOGNIZED_VOLUME ((NTSTATUS)0xC000014F)
#define STATUS_IO_TIMEOUT ((NTSTATUS)0xC00000B5)
#define STATUS_USER_MAPPED_FILE ((NTSTATUS)0xC0000243)

/* virtio_blk.c: the whole disk; offsets and lengths in bytes, multiples of 512 */
NTSTATUS IopDiskInitialize(ULONG64 *bytes);
NTSTATUS IopDiskTransfer(ULONG64 offset, void *buffer, ULONG length, BOOLEAN write);

/* partition.c */
NTSTATUS IopFindVolume(ULONG64 disk_bytes, ULONG64 *offset, ULONG64 *length);

/* device.c: the driver and device objects between a FILE_OBJECT and the disk */
extern DEVICE_OBJECT *IopVolumeDevice; /* \Device\HarddiskVolume1 */
NTSTATUS IopCreateDevices(NTFS_VOLUME *volume);
DRIVER_OBJECT *IopCreateDriver(PCWSTR folder, PCWSTR name, PCWSTR full_name); /* named \folder\name; keeps the texts */

#endif
