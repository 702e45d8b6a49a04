/* Files: FILE_OBJECTs over the NTFS volume. All opens of one file share an IOP_FILE, and through it the section pointers. */
#include "iop.h"

#define IO_TYPE_FILE 5
#define FO_SYNCHRONOUS_IO 2
#define FO_CACHE_SUPPORTED 0x40

typedef struct _IOP_FILE { /* FILE_OBJECT.FsContext */
    NTFS_FILE *File;
    ULONG Opens;
    SECTION_OBJECT_POINTERS Sections;
} IOP_FILE;

static NTFS_VOLUME *Volume;
static ULONG64 VolumeOffset;
static EX_PUSH_LOCK VolumeLock;
static KTHREAD *VolumeOwner; /* who froze it and may enter again */

static BOOLEAN Acquire(void) {
    if (__atomic_load_n(&VolumeOwner, __ATOMIC_RELAXED) == KeGetCurrentThread()) return FALSE;
    ExAcquirePushLockExclusive(&VolumeLock);
    return TRUE;
}

static void Release(BOOLEAN acquired) {
    if (acquired) ExReleasePushLockExclusive(&VolumeLock);
}

void IoFreeze(void) {
    if (Acquire()) __atomic_store_n(&VolumeOwner, KeGetCurrentThread(), __ATOMIC_RELAXED);
}

void IoThaw(void) {
    if (__atomic_load_n(&VolumeOwner, __ATOMIC_RELAXED) != KeGetCurrentThread()) return;
    __atomic_store_n(&VolumeOwner, NULL, __ATOMIC_RELAXED);
    ExReleasePushLockExclusive(&VolumeLock);
}

/* ---- What NTFS asks for */

static NTFS_STATUS ReadVolume(void *context, uint64_t offset, void *buffer, uint32_t length) {
    return IopDiskTransfer(VolumeOffset + offset, buffer, length, FALSE);
}
static NTFS_STATUS WriteVolume(void *context, uint64_t offset, const void *buffer, uint32_t length) {
    return IopDiskTransfer(VolumeOffset + offset, (void *)buffer, length, TRUE);
}
static void *AllocateForNtfs(size_t size) { return ExAllocatePool(size, 'sftN'); }
static uint64_t SystemTime(void) { return KeQuerySystemTime(); }

static void DeleteFile(void *object);

NTSTATUS IoInitSystem(void) {
    static const NTFS_IO io = {NULL, ReadVolume, WriteVolume, AllocateForNtfs, ExFreePool, SystemTime};
    ULONG64 bytes = 0, length = 0;
    NTSTATUS status = IopDiskInitialize(&bytes);
    if (NT_SUCCESS(status)) status = IopFindVolume(bytes, &VolumeOffset, &length);
    if (NT_SUCCESS(status)) status = NtfsMount(&io, &Volume);
    if (NT_SUCCESS(status)) status = IopCreateDevices(Volume);
    if (!NT_SUCCESS(status)) {
        KdEvent("{\"event\":\"volume\",\"status\":\"%#x\"}", status);
        return status;
    }
    ObpDeleteRoutine[IoFileObjectType->Index] = DeleteFile;
    KdEvent("{\"event\":\"volume\",\"name\":\"\\\\Device\\\\HarddiskVolume1\",\"offset\":%llu,\"length\":%llu,\"cluster\":%u,"
            "\"free\":%llu}", VolumeOffset, length, NtfsClusterSize(Volume), NtfsFreeClusters(Volume) * NtfsClusterSize(Volume));
    return STATUS_SUCCESS;
}

/* ---- Names */

/* Takes one of the volume's names off a path; what stays starts at the root of the volume. `windows` says that the root is
 * \Windows. */
static PCWSTR StripVolume(PCWSTR path, BOOLEAN *windows) {
    static const PCWSTR names[] = {L"\\??\\C:", L"\\DosDevices\\C:", L"\\GLOBAL??\\C:", L"C:", L"\\Device\\HarddiskVolume1", L"\\SystemRoot"};
    SIZE_T length = wcslen(path);
    *windows = FALSE;
    for (ULONG i = 0; i < ARRAYSIZE(names); i++) {
        SIZE_T n = wcslen(names[i]);
        if (length < n || RtlCompareWideNoCase(path, n, names[i], n) != 0 || (path[n] && path[n] != '\\')) continue;
        *windows = i == ARRAYSIZE(names) - 1;
        return path + n;
    }
    return path;
}

/* The path inside the volume as a pool copy, \ first. */
static NTSTATUS VolumePath(PCWSTR path, UNICODE_STRING *name) {
    BOOLEAN windows;
    PCWSTR rest = StripVolume(path, &windows);
    SIZE_T length = wcslen(rest), front = windows ? 8 : 0;
    if (length && rest[0] != '\\') return STATUS_OBJECT_NAME_INVALID;
    if (length + front > 1024) return STATUS_OBJECT_NAME_INVALID;
    WCHAR *buffer = ExAllocatePool((length + front + 1) * sizeof(WCHAR), 'eliF');
    if (!buffer) return STATUS_INSUFFICIENT_RESOURCES;
    memcpy(buffer, L"\\Windows", front * sizeof(WCHAR));
    memcpy(buffer + front, rest, length * sizeof(WCHAR));
    name->Buffer = buffer;
    name->Length = (USHORT)((length + front) * sizeof(WCHAR));
    name->MaximumLength = (USHORT)(name->Length + sizeof(WCHAR));
    return STATUS_SUCCESS;
}

/* ---- Opening and closing */

static NTSTATUS OpenOnVolume(const UNICODE_STRING *name, ULONG disposition, NTFS_FILE **file) {
    SIZE_T characters = name->Length / sizeof(WCHAR);
    NTSTATUS status;
    if (disposition == FILE_CREATE) return NtfsCreate(Volume, name->Buffer, characters, FALSE, file);
    if (disposition > FILE_OVERWRITE_IF) return STATUS_INVALID_PARAMETER;
    status = NtfsOpen(Volume, name->Buffer, characters, file);
    BOOLEAN create = disposition == FILE_OPEN_IF || disposition == FILE_OVERWRITE_IF || disposition == FILE_SUPERSEDE;
    if (status == STATUS_OBJECT_NAME_NOT_FOUND && create) return NtfsCreate(Volume, name->Buffer, characters, FALSE, file);
    if (!NT_SUCCESS(status) || disposition == FILE_OPEN || disposition == FILE_OPEN_IF) return status;
    IOP_FILE *shared = NtfsGetContext(*file);
    status = shared && (shared->Sections.ImageSectionObject || shared->Sections.DataSectionObject) ? STATUS_USER_MAPPED_FILE
                                                                                                  : NtfsSetSize(*file, 0);
    if (!NT_SUCCESS(status)) NtfsClose(*file);
    return status;
}

static NTSTATUS Share(NTFS_FILE *file, IOP_FILE **result) {
    IOP_FILE *shared = NtfsGetContext(file);
    if (!shared) {
        shared = ExAllocatePool(sizeof(*shared), 'fNtI');
        if (!shared) return STATUS_INSUFFICIENT_RESOURCES;
        shared->File = file;
        NtfsSetContext(file, shared);
    }
    shared->Opens++;
    *result = shared;
    return STATUS_SUCCESS;
}

NTSTATUS IoOpenFile(const WCHAR *path, ULONG disposition, FILE_OBJECT **result) {
    UNICODE_STRING name;
    NTFS_FILE *file = NULL;
    IOP_FILE *shared = NULL;
    if (!Volume) return STATUS_NO_SUCH_DEVICE;
    NTSTATUS status = VolumePath(path, &name);
    if (!NT_SUCCESS(status)) return status;
    FILE_OBJECT *object = ObCreateObject(IoFileObjectType, sizeof(FILE_OBJECT));
    if (!object) {
        ExFreePool(name.Buffer);
        return STATUS_INSUFFICIENT_RESOURCES;
    }
    BOOLEAN acquired = Acquire();
    status = OpenOnVolume(&name, disposition, &file);
    if (NT_SUCCESS(status)) {
        status = Share(file, &shared);
        if (!NT_SUCCESS(status)) NtfsClose(file);
    }
    Release(acquired);
    object->Type = IO_TYPE_FILE;
    object->Size = sizeof(*object);
    object->FileName = name;
    if (!NT_SUCCESS(status)) {
        ObDereferenceObject(object);
        return status;
    }
    object->DeviceObject = IopVolumeDevice;
    object->Vpb = IopVolumeDevice->Vpb;
    object->FsContext = shared;
    object->SectionObjectPointer = &shared->Sections;
    object->Flags = FO_SYNCHRONOUS_IO | FO_CACHE_SUPPORTED;
    object->ReadAccess = object->WriteAccess = object->SharedRead = object->SharedWrite = TRUE;
    KeInitializeEvent(&object->Lock, SynchronizationEvent, FALSE);
    KeInitializeEvent(&object->Event, NotificationEvent, FALSE);
    InitializeListHead(&object->IrpList);
    __atomic_add_fetch(&IopVolumeDevice->Vpb->ReferenceCount, 1, __ATOMIC_RELAXED);
    *result = object;
    return STATUS_SUCCESS;
}

static void DeleteFile(void *body) {
    FILE_OBJECT *object = body;
    IOP_FILE *shared = object->FsContext;
    if (shared) {
        BOOLEAN acquired = Acquire();
        NTFS_FILE *file = shared->File;
        if (--shared->Opens == 0) {
            NtfsSetContext(file, NULL);
            ExFreePool(shared);
        }
        NtfsClose(file);
        Release(acquired);
        __atomic_sub_fetch(&object->Vpb->ReferenceCount, 1, __ATOMIC_RELAXED);
    }
    if (object->FileName.Buffer) ExFreePool((void *)object->FileName.Buffer);
}

NTSTATUS IoCreateDirectory(const WCHAR *path) {
    UNICODE_STRING name;
    NTFS_FILE *file = NULL;
    if (!Volume) return STATUS_NO_SUCH_DEVICE;
    NTSTATUS status = VolumePath(path, &name);
    if (!NT_SUCCESS(status)) return status;
    BOOLEAN acquired = Acquire();
    status = NtfsCreate(Volume, name.Buffer, name.Length / sizeof(WCHAR), TRUE, &file);
    if (NT_SUCCESS(status)) status = NtfsClose(file);
    Release(acquired);
    ExFreePool(name.Buffer);
    return status;
}

/* ---- Bytes */

static NTFS_FILE *FileOf(FILE_OBJECT *object) { return ((IOP_FILE *)object->FsContext)->File; }

NTSTATUS IoReadFile(FILE_OBJECT *file, ULONG64 offset, void *buffer, ULONG length, ULONG *done) {
    uint32_t read = 0;
    BOOLEAN acquired = Acquire();
    NTSTATUS status = NtfsRead(FileOf(file), offset, buffer, length, &read);
    Release(acquired);
    if (done) *done = read;
    return status;
}

NTSTATUS IoWriteFile(FILE_OBJECT *file, ULONG64 offset, const void *buffer, ULONG length, ULONG *done) {
    uint32_t written = 0;
    BOOLEAN acquired = Acquire();
    NTSTATUS status = NtfsWrite(FileOf(file), offset, buffer, length, &written);
    Release(acquired);
    if (done) *done = written;
    return status;
}

NTSTATUS IoQueryFileSize(FILE_OBJECT *file, ULONG64 *size) {
    BOOLEAN acquired = Acquire();
    *size = NtfsSize(FileOf(file));
    Release(acquired);
    return STATUS_SUCCESS;
}

NTSTATUS IoSetFileSize(FILE_OBJECT *file, ULONG64 size) {
    BOOLEAN acquired = Acquire();
    NTSTATUS status = NtfsSetSize(FileOf(file), size);
    Release(acquired);
    return status;
}

NTSTATUS IoSetPagingFileSize(FILE_OBJECT *file, ULONG64 size) {
    BOOLEAN acquired = Acquire();
    NTSTATUS status = NtfsSetSize(FileOf(file), size);
    if (NT_SUCCESS(status)) status = NtfsSetValid(FileOf(file));
    Release(acquired);
    return status;
}

NTSTATUS IoFlushFile(FILE_OBJECT *file) {
    BOOLEAN acquired = Acquire();
    NTSTATUS status = NtfsFlush(FileOf(file));
    Release(acquired);
    return status;
}

NTSTATUS IoGetFileRuns(FILE_OBJECT *file, IO_RUN *runs, ULONG *count) {
    uint32_t needed = 0, cluster = NtfsClusterSize(Volume);
    BOOLEAN acquired = Acquire();
    const NTFS_RUN *held = NtfsRuns(FileOf(file), &needed);
    for (uint32_t i = 0; i < needed && i < *count; i++) {
        runs[i].FileOffset = held[i].Vcn * cluster;
        runs[i].DiskOffset = held[i].Lcn == NTFS_HOLE ? ~0ull : VolumeOffset + held[i].Lcn * cluster;
        runs[i].Length = held[i].Count * cluster;
    }
    Release(acquired);
    NTSTATUS status = needed > *count ? STATUS_BUFFER_TOO_SMALL : STATUS_SUCCESS;
    *count = needed;
    return status;
}
