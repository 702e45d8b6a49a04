/* The system services on memory and sections: capture the caller's arguments, call mm with kernel copies, hand back results. */
#include "nt.h"
#include "services.h"
#include "io/io.h"
#include "mm/mm.h"

#define STATUS_NOT_LOCKED ((NTSTATUS)0xC000002A)

/* The process a handle means, referenced. */
static NTSTATUS ExpProcess(HANDLE handle, EPROCESS **process) {
    if (handle != NT_CURRENT_PROCESS) return ObReferenceObjectByHandle(handle, 0, PsProcessType, (void **)process);
    *process = PsGetCurrentProcess();
    ObReferenceObject(*process);
    return STATUS_SUCCESS;
}

typedef struct _EXP_RANGE {
    EPROCESS *Process;
    void *Base;
    SIZE_T Size;
} EXP_RANGE;

static NTSTATUS ExpCaptureRange(EXP_RANGE *range, HANDLE process, void **base, SIZE_T *size) {
    NTSTATUS status = MmCopyFromUser(&range->Base, base, sizeof *base);
    if (NT_SUCCESS(status)) status = MmCopyFromUser(&range->Size, size, sizeof *size);
    return NT_SUCCESS(status) ? ExpProcess(process, &range->Process) : status;
}

/* Hands base and size back after a call that ended with `status`, and drops the process. */
static NTSTATUS ExpReturnRange(EXP_RANGE *range, NTSTATUS status, void **base, SIZE_T *size) {
    ObDereferenceObject(range->Process);
    if (!NT_SUCCESS(status)) return status;
    NTSTATUS copied = MmCopyToUser(base, &range->Base, sizeof *base);
    if (NT_SUCCESS(copied)) copied = MmCopyToUser(size, &range->Size, sizeof *size);
    return NT_SUCCESS(copied) ? status : copied;
}

NTSTATUS NtAllocateVirtualMemory(HANDLE process, void **base, ULONG_PTR zero_bits, SIZE_T *size, ULONG type, ULONG protect) {
    EXP_RANGE range;
    NTSTATUS status = ExpCaptureRange(&range, process, base, size);
    if (!NT_SUCCESS(status)) return status;
    status = MmAllocateVirtualMemory(range.Process, &range.Base, &range.Size, type, protect);
    return ExpReturnRange(&range, status, base, size);
}

NTSTATUS NtFreeVirtualMemory(HANDLE process, void **base, SIZE_T *size, ULONG type) {
    EXP_RANGE range;
    NTSTATUS status = ExpCaptureRange(&range, process, base, size);
    if (!NT_SUCCESS(status)) return status;
    status = MmFreeVirtualMemory(range.Process, &range.Base, &range.Size, type);
    return ExpReturnRange(&range, status, base, size);
}

NTSTATUS NtProtectVirtualMemory(HANDLE process, void **base, SIZE_T *size, ULONG protect, ULONG *old) {
    EXP_RANGE range;
    ULONG before = 0;
    NTSTATUS status = ExpCaptureRange(&range, process, base, size);
    if (!NT_SUCCESS(status)) return status;
    status = MmProtectVirtualMemory(range.Process, &range.Base, &range.Size, protect, &before);
    status = ExpReturnRange(&range, status, base, size);
    return NT_SUCCESS(status) ? MmCopyToUser(old, &before, sizeof before) : status;
}

/* On pages that are not locked NT takes them out of the working set and says STATUS_NOT_LOCKED; minint locks none. */
NTSTATUS NtUnlockVirtualMemory(HANDLE process, void **base, SIZE_T *size, ULONG type) {
    EXP_RANGE range;
    NTSTATUS status = ExpCaptureRange(&range, process, base, size);
    if (!NT_SUCCESS(status)) return status;
    ULONG64 start = PAGE_ALIGN(range.Base), end = ROUND_TO_PAGES((ULONG64)range.Base + range.Size);
    if (end > start) MmTrimProcess(range.Process, (void *)start, end - start, MmTrimToTransition);
    ObDereferenceObject(range.Process);
    return STATUS_NOT_LOCKED;
}

NTSTATUS NtCreateSection(HANDLE *handle, ACCESS_MASK access, void *attributes, LONG64 *size, ULONG protect, ULONG allocation,
                         HANDLE file_handle) {
    FILE_OBJECT *file = NULL;
    MM_SECTION *section;
    HANDLE opened;
    LONG64 bytes = 0;
    NTSTATUS status = STATUS_SUCCESS;
    if (size) status = MmCopyFromUser(&bytes, size, sizeof bytes);
    if (NT_SUCCESS(status) && bytes < 0) status = STATUS_SECTION_TOO_BIG;
    if (NT_SUCCESS(status) && file_handle)
        status = ObReferenceObjectByHandle(file_handle, 1, IoFileObjectType, (void **)&file);
    if (!NT_SUCCESS(status)) return status;
    status = MmCreateSection(&section, file, (ULONG64)bytes, protect, allocation);
    if (file) ObDereferenceObject(file);
    if (!NT_SUCCESS(status)) return status;
    status = ObOpenObjectByPointer(section, access, PsGetCurrentProcess(), &opened);
    ObDereferenceObject(section);
    return NT_SUCCESS(status) ? MmCopyToUser(handle, &opened, sizeof opened) : status;
}

NTSTATUS NtMapViewOfSection(HANDLE handle, HANDLE process, void **base, ULONG_PTR zero_bits, SIZE_T commit,
                            LONG64 *section_offset, SIZE_T *size, ULONG inherit, ULONG type, ULONG protect) {
    EXP_RANGE range;
    MM_SECTION *section;
    LONG64 offset = 0;
    NTSTATUS status = STATUS_SUCCESS;
    if (section_offset) status = MmCopyFromUser(&offset, section_offset, sizeof offset);
    if (NT_SUCCESS(status) && offset < 0) status = STATUS_INVALID_PARAMETER;
    if (NT_SUCCESS(status)) status = ExpCaptureRange(&range, process, base, size);
    if (!NT_SUCCESS(status)) return status;
    status = ObReferenceObjectByHandle(handle, 4, MmSectionObjectType, (void **)&section);
    if (NT_SUCCESS(status)) {
        status = MmMapViewOfSection(section, range.Process, &range.Base, (ULONG64)offset, &range.Size, protect);
        if (NT_SUCCESS(status)) PsNotifyImage(range.Process, section, range.Base, range.Size);
        ObDereferenceObject(section);
    }
    return ExpReturnRange(&range, status, base, size);
}

NTSTATUS NtUnmapViewOfSection(HANDLE handle, void *base) {
    EPROCESS *process;
    NTSTATUS status = ExpProcess(handle, &process);
    if (!NT_SUCCESS(status)) return status;
    status = MmUnmapViewOfSection(process, base);
    ObDereferenceObject(process);
    return status;
}
