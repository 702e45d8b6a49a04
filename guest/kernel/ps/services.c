/* The system services on processes, threads, events and time. */
#include "psp.h"
#include "services.h"

#define LONGEST_PATH 260
#define LONGEST_COMMAND 512

static NTSTATUS PspCaptureString(const UNICODE_STRING *string, WCHAR *text, SIZE_T most) {
    if (string->Length % 2 || string->Length / 2u >= most) return STATUS_OBJECT_NAME_INVALID;
    text[string->Length / 2] = 0;
    return RtlCopyFromUser(text, (void *)string->Buffer, string->Length);
}

static NTSTATUS PspReturnHandle(void *object, HANDLE *user) {
    HANDLE handle;
    NTSTATUS status = ObOpenObjectByPointer(object, 0x1FFFFF, PsGetCurrentProcess(), &handle);
    return NT_SUCCESS(status) ? RtlCopyToUser(user, &handle, sizeof handle) : status;
}

NTSTATUS NtCreateUserProcess(HANDLE *process_handle, HANDLE *thread_handle, ACCESS_MASK process_access, ACCESS_MASK thread_access,
                             void *process_attributes, void *thread_attributes, ULONG process_flags, ULONG thread_flags,
                             RTL_USER_PROCESS_PARAMETERS *parameters, void *create, void *list) {
    RTL_USER_PROCESS_PARAMETERS captured;
    EPROCESS *process;
    ETHREAD *thread;
    WCHAR *path = ExAllocatePool((LONGEST_PATH + LONGEST_COMMAND) * 2, 'htaP'), *command = path + LONGEST_PATH;
    if (!path) return STATUS_INSUFFICIENT_RESOURCES;
    NTSTATUS status = RtlCopyFromUser(&captured, parameters, sizeof captured);
    if (NT_SUCCESS(status)) status = PspCaptureString(&captured.ImagePathName, path, LONGEST_PATH);
    if (NT_SUCCESS(status)) status = PspCaptureString(&captured.CommandLine, command, LONGEST_COMMAND);
    if (NT_SUCCESS(status)) status = PsCreateUserProcess(path, command, PsGetCurrentProcess(), &process, &thread);
    ExFreePool(path);
    if (!NT_SUCCESS(status)) return status;
    status = PspReturnHandle(process, process_handle);
    if (NT_SUCCESS(status)) status = PspReturnHandle(thread, thread_handle);
    ObDereferenceObject(thread);
    return status;
}

NTSTATUS NtCreateThreadEx(HANDLE *handle, ACCESS_MASK access, void *attributes, HANDLE process_handle, void *start, void *argument,
                          ULONG flags, SIZE_T zero_bits, SIZE_T commit, SIZE_T reserve, void *list) {
    ETHREAD *thread;
    if (process_handle != NT_CURRENT_PROCESS) return STATUS_NOT_SUPPORTED;
    NTSTATUS status = PspCreateUserThread(PsGetCurrentProcess(), start, argument, &thread);
    if (!NT_SUCCESS(status)) return status;
    status = PspReturnHandle(thread, handle);
    ObDereferenceObject(thread);
    return status;
}

NTSTATUS NtTerminateThread(HANDLE handle, NTSTATUS status) {
    if (handle && handle != NT_CURRENT_THREAD) return STATUS_NOT_SUPPORTED;
    PspExitThread(status);
}

NTSTATUS NtTerminateProcess(HANDLE handle, NTSTATUS status) {
    EPROCESS *process = PsGetCurrentProcess();
    if (handle && handle != NT_CURRENT_PROCESS) {
        NTSTATUS found = ObReferenceObjectByHandle(handle, 1, PsProcessType, (void **)&process);
        if (!NT_SUCCESS(found)) return found;
        PspTerminateProcess(process, status);
        ObDereferenceObject(process);
        return STATUS_SUCCESS;
    }
    PspTerminateProcess(process, status);
    PspExitThread(status);
}

NTSTATUS NtDelayExecution(BOOLEAN alertable, LONG64 *interval) {
    LONG64 value;
    NTSTATUS status = RtlCopyFromUser(&value, interval, sizeof value);
    if (!NT_SUCCESS(status)) return status;
    if (value > 0) value = (LONG64)KeQuerySystemTime() - value; /* an absolute time */
    if (value < 0) KeSleep((ULONG)MIN((ULONG64)-value / 10000, 0x7FFFFFFF));
    else KeYieldThread();
    return STATUS_SUCCESS;
}

NTSTATUS NtYieldExecution(void) {
    KeYieldThread();
    return STATUS_SUCCESS;
}

NTSTATUS NtWaitForSingleObject(HANDLE handle, BOOLEAN alertable, LONG64 *timeout) {
    void *object;
    LONG64 value = 0;
    NTSTATUS status = timeout ? RtlCopyFromUser(&value, timeout, sizeof value) : STATUS_SUCCESS;
    if (NT_SUCCESS(status)) status = ObReferenceObjectByHandle(handle, 0, NULL, &object);
    if (!NT_SUCCESS(status)) return status;
    OBJECT_TYPE *type = ObGetObjectType(object);
    if (type != PsProcessType && type != PsThreadType && type != ExEventObjectType) status = STATUS_OBJECT_TYPE_MISMATCH;
    else status = KeWaitForSingleObject(object, !timeout ? KE_FOREVER : value < 0 ? (ULONG64)-value / 10000 : 0);
    ObDereferenceObject(object);
    return status;
}

NTSTATUS NtCreateEvent(HANDLE *handle, ACCESS_MASK access, void *attributes, ULONG type, BOOLEAN state) {
    KEVENT *event = ObCreateObject(ExEventObjectType, sizeof(KEVENT));
    if (!event) return STATUS_INSUFFICIENT_RESOURCES;
    KeInitializeEvent(event, type, state);
    NTSTATUS status = PspReturnHandle(event, handle);
    ObDereferenceObject(event);
    return status;
}

NTSTATUS NtSetEvent(HANDLE handle, LONG *previous) {
    KEVENT *event;
    NTSTATUS status = ObReferenceObjectByHandle(handle, 2, ExEventObjectType, (void **)&event);
    if (!NT_SUCCESS(status)) return status;
    LONG before = event->Header.SignalState;
    KeSetEvent(event);
    ObDereferenceObject(event);
    return previous ? RtlCopyToUser(previous, &before, sizeof before) : STATUS_SUCCESS;
}

NTSTATUS NtQueryInformationProcess(HANDLE handle, ULONG class, void *buffer, ULONG size, ULONG *needed) {
    struct {
        ULONG64 ExitStatus;
        void *PebBaseAddress;
        ULONG64 AffinityMask, BasePriority;
        HANDLE UniqueProcessId, InheritedFromUniqueProcessId;
    } basic;
    EPROCESS *process = PsGetCurrentProcess();
    if (class) return (NTSTATUS)0xC0000003;
    if (size < sizeof basic) return STATUS_BUFFER_TOO_SMALL;
    if (handle != NT_CURRENT_PROCESS) {
        NTSTATUS status = ObReferenceObjectByHandle(handle, 0, PsProcessType, (void **)&process);
        if (!NT_SUCCESS(status)) return status;
    } else ObReferenceObject(process);
    basic.ExitStatus = (ULONG)process->ExitStatus;
    basic.PebBaseAddress = process->Peb;
    basic.AffinityMask = (1ull << KeNumberProcessors) - 1;
    basic.BasePriority = 8;
    basic.UniqueProcessId = process->UniqueProcessId;
    basic.InheritedFromUniqueProcessId = process->InheritedFromUniqueProcessId;
    ObDereferenceObject(process);
    ULONG length = sizeof basic;
    NTSTATUS status = RtlCopyToUser(buffer, &basic, sizeof basic);
    return NT_SUCCESS(status) && needed ? RtlCopyToUser(needed, &length, sizeof length) : status;
}
