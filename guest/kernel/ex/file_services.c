/* The system services on files: capture the caller's arguments, do the work through io, log what was written. */
#include "nt.h"
#include "services.h"
#include "io/io.h"
#include "mm/mm.h"

#define LONGEST_TRANSFER (1u << 20)
#define LONGEST_NAME 260

/* A UNICODE_STRING of the caller, copied and terminated. */
static NTSTATUS ExpCaptureName(UNICODE_STRING *user, WCHAR name[LONGEST_NAME]) {
    UNICODE_STRING string;
    NTSTATUS status = MmCopyFromUser(&string, user, sizeof string);
    if (!NT_SUCCESS(status)) return status;
    if (string.Length == 0 || string.Length % 2 || string.Length / 2 >= LONGEST_NAME) return STATUS_OBJECT_NAME_INVALID;
    status = MmCopyFromUser(name, (void *)string.Buffer, string.Length);
    name[string.Length / 2] = 0;
    return status;
}

static NTSTATUS ExpStatus(IO_STATUS_BLOCK *user, NTSTATUS status, ULONG64 information) {
    IO_STATUS_BLOCK block;
    memset(&block, 0, sizeof block);
    block.Status = status;
    block.Information = information;
    NTSTATUS copied = MmCopyToUser(user, &block, sizeof block);
    return NT_SUCCESS(copied) ? status : copied;
}

NTSTATUS NtClose(HANDLE handle) { return ObCloseHandle(handle); }

NTSTATUS NtCreateFile(HANDLE *handle, ACCESS_MASK access, OBJECT_ATTRIBUTES_ARGUMENT *attributes, IO_STATUS_BLOCK *result,
                      LONG64 *allocation, ULONG file_attributes, ULONG share, ULONG disposition, ULONG options, void *ea,
                      ULONG ea_length) {
    OBJECT_ATTRIBUTES_ARGUMENT captured;
    WCHAR name[LONGEST_NAME];
    FILE_OBJECT *file;
    HANDLE opened;
    NTSTATUS status = MmCopyFromUser(&captured, attributes, sizeof captured);
    if (NT_SUCCESS(status)) status = ExpCaptureName(captured.ObjectName, name);
    if (NT_SUCCESS(status)) status = IoOpenFile(name, disposition, &file);
    if (!NT_SUCCESS(status)) return status;
    status = ObOpenObjectByPointer(file, access, PsGetCurrentProcess(), &opened);
    ObDereferenceObject(file);
    if (NT_SUCCESS(status)) status = MmCopyToUser(handle, &opened, sizeof opened);
    return NT_SUCCESS(status) ? ExpStatus(result, STATUS_SUCCESS, 1) : status;
}

/* Where a transfer starts: the caller's ByteOffset, or where the last one ended. */
static NTSTATUS ExpOffset(FILE_OBJECT *file, LONG64 *user, ULONG64 *offset) {
    LONG64 given = 0;
    if (!user) {
        *offset = (ULONG64)file->CurrentByteOffset.QuadPart;
        return STATUS_SUCCESS;
    }
    NTSTATUS status = MmCopyFromUser(&given, user, sizeof given);
    if (NT_SUCCESS(status) && given < 0) return STATUS_INVALID_PARAMETER;
    *offset = (ULONG64)given;
    return status;
}

static void ExpLogWrite(FILE_OBJECT *file, ULONG64 offset, const void *data, ULONG length) {
    CHAR hash[65];
    ETHREAD *thread = PsGetCurrentThread();
    RtlSha256Hex(data, length, hash);
    KdEvent("{\"event\":\"write\",\"pid\":%u,\"tid\":%u,\"file\":\"%wZ\",\"offset\":%llu,\"length\":%u,\"sha256\":\"%s\"}",
            PsGetProcessId(PsGetCurrentProcess()), (ULONG)(ULONG64)thread->Cid.UniqueThread, &file->FileName, offset, length,
            hash);
}

NTSTATUS NtWriteFile(HANDLE handle, HANDLE event, void *apc, void *apc_context, IO_STATUS_BLOCK *result, const void *buffer,
                     ULONG length, LONG64 *byte_offset, ULONG *key) {
    FILE_OBJECT *file;
    ULONG64 offset;
    ULONG done = 0;
    if (length > LONGEST_TRANSFER) return STATUS_INVALID_PARAMETER;
    NTSTATUS status = ObReferenceObjectByHandle(handle, 2, IoFileObjectType, (void **)&file);
    if (!NT_SUCCESS(status)) return status;
    void *data = ExAllocatePool(length ? length : 1, 'tirW');
    status = data ? ExpOffset(file, byte_offset, &offset) : STATUS_INSUFFICIENT_RESOURCES;
    if (NT_SUCCESS(status)) status = MmCopyFromUser(data, buffer, length);
    if (NT_SUCCESS(status)) status = IoWriteFile(file, offset, data, length, &done);
    if (NT_SUCCESS(status)) {
        file->CurrentByteOffset.QuadPart = (LONG64)(offset + done);
        ExpLogWrite(file, offset, data, done);
        status = ExpStatus(result, STATUS_SUCCESS, done);
    }
    if (data) ExFreePool(data);
    ObDereferenceObject(file);
    return status;
}

NTSTATUS NtReadFile(HANDLE handle, HANDLE event, void *apc, void *apc_context, IO_STATUS_BLOCK *result, void *buffer,
                    ULONG length, LONG64 *byte_offset, ULONG *key) {
    FILE_OBJECT *file;
    ULONG64 offset;
    ULONG done = 0;
    if (length > LONGEST_TRANSFER) return STATUS_INVALID_PARAMETER;
    NTSTATUS status = ObReferenceObjectByHandle(handle, 1, IoFileObjectType, (void **)&file);
    if (!NT_SUCCESS(status)) return status;
    void *data = ExAllocatePool(length ? length : 1, 'daeR');
    status = data ? ExpOffset(file, byte_offset, &offset) : STATUS_INSUFFICIENT_RESOURCES;
    if (NT_SUCCESS(status)) status = IoReadFile(file, offset, data, length, &done);
    if (NT_SUCCESS(status)) status = MmCopyToUser(buffer, data, done);
    if (NT_SUCCESS(status)) {
        file->CurrentByteOffset.QuadPart = (LONG64)(offset + done);
        status = ExpStatus(result, STATUS_SUCCESS, done);
    }
    if (data) ExFreePool(data);
    ObDereferenceObject(file);
    return status;
}

NTSTATUS NtFlushBuffersFile(HANDLE handle, IO_STATUS_BLOCK *result) {
    FILE_OBJECT *file;
    NTSTATUS status = ObReferenceObjectByHandle(handle, 2, IoFileObjectType, (void **)&file);
    if (!NT_SUCCESS(status)) return status;
    status = IoFlushFile(file);
    ObDereferenceObject(file);
    return NT_SUCCESS(status) ? ExpStatus(result, status, 0) : status;
}

/* FileStandardInformation (5) only: allocation size, end of file, links, delete pending, directory. */
NTSTATUS NtQueryInformationFile(HANDLE handle, IO_STATUS_BLOCK *result, void *buffer, ULONG length, ULONG class) {
    struct {
        ULONG64 AllocationSize, EndOfFile;
        ULONG NumberOfLinks;
        UCHAR DeletePending, Directory, Padding[2];
    } standard;
    FILE_OBJECT *file;
    if (class != 5) return STATUS_NOT_SUPPORTED;
    if (length < sizeof standard) return STATUS_BUFFER_TOO_SMALL;
    NTSTATUS status = ObReferenceObjectByHandle(handle, 0, IoFileObjectType, (void **)&file);
    if (!NT_SUCCESS(status)) return status;
    memset(&standard, 0, sizeof standard);
    standard.NumberOfLinks = 1;
    status = IoQueryFileSize(file, &standard.EndOfFile);
    standard.AllocationSize = ROUND_TO_PAGES(standard.EndOfFile);
    ObDereferenceObject(file);
    if (NT_SUCCESS(status)) status = MmCopyToUser(buffer, &standard, sizeof standard);
    return NT_SUCCESS(status) ? ExpStatus(result, status, sizeof standard) : status;
}

NTSTATUS NtCreatePagingFile(UNICODE_STRING *name, LONG64 *minimum, LONG64 *maximum, ULONG priority) {
    WCHAR captured[LONGEST_NAME];
    LONG64 least, most;
    UNICODE_STRING string;
    NTSTATUS status = ExpCaptureName(name, captured);
    if (NT_SUCCESS(status)) status = MmCopyFromUser(&least, minimum, sizeof least);
    if (NT_SUCCESS(status)) status = MmCopyFromUser(&most, maximum, sizeof most);
    if (!NT_SUCCESS(status)) return status;
    RtlInitUnicodeString(&string, captured);
    status = MmCreatePagingFile(&string, (ULONG64)least, (ULONG64)most);
    KdEvent("{\"event\":\"paging-file\",\"file\":\"%ws\",\"bytes\":%llu,\"status\":\"%#x\"}", captured, (ULONG64)least, status);
    return status;
}
