/* The 32-bit system calls, each carried over to the 64-bit one of the same name: pointers and handles widened, structures that
 * have pointers in them or are written back copied. */
#include "wow64.h"

typedef struct _IO_STATUS_BLOCK32 {
    ULONG Status, Information;
} IO_STATUS_BLOCK32;

typedef struct _OBJECT_ATTRIBUTES32 {
    ULONG Length, RootDirectory, ObjectName, Attributes, SecurityDescriptor, SecurityQualityOfService;
} OBJECT_ATTRIBUTES32;

static void *Pointer(ULONG value) { return (void *)(ULONG_PTR)value; }
static HANDLE Handle(ULONG value) { return (HANDLE)(LONG64)(LONG)value; } /* -1 and -2 mean the same in both */

static NTSTATUS Finish(NTSTATUS result, ULONG user, const IO_STATUS_BLOCK *status) {
    IO_STATUS_BLOCK32 *narrow = Pointer(user);
    if (NT_SUCCESS(result) && narrow) *narrow = (IO_STATUS_BLOCK32){(ULONG)status->Status, (ULONG)status->Information};
    return result;
}

static NTSTATUS whNtClose(const ULONG *a) { return NtClose(Handle(a[0])); }

static NTSTATUS whNtCreateFile(const ULONG *a) {
    const OBJECT_ATTRIBUTES32 *narrow = Pointer(a[2]);
    const UNICODE_STRING32 *path = Pointer(narrow->ObjectName);
    UNICODE_STRING name;
    OBJECT_ATTRIBUTES_ARGUMENT attributes = {sizeof attributes, Handle(narrow->RootDirectory), &name, narrow->Attributes, NULL, NULL};
    IO_STATUS_BLOCK status;
    HANDLE file = NULL;
    name.Length = path->Length;
    name.MaximumLength = path->MaximumLength;
    name.Buffer = Pointer(path->Buffer);
    NTSTATUS result = NtCreateFile(&file, a[1], &attributes, &status, Pointer(a[4]), a[5], a[6], a[7], a[8], Pointer(a[9]), a[10]);
    *(ULONG *)Pointer(a[0]) = (ULONG)(ULONG_PTR)file;
    return Finish(result, a[3], &status);
}

static NTSTATUS whNtReadFile(const ULONG *a) {
    IO_STATUS_BLOCK status;
    NTSTATUS result = NtReadFile(Handle(a[0]), Handle(a[1]), Pointer(a[2]), Pointer(a[3]), &status, Pointer(a[5]), a[6],
                                 Pointer(a[7]), Pointer(a[8]));
    return Finish(result, a[4], &status);
}

static NTSTATUS whNtWriteFile(const ULONG *a) {
    IO_STATUS_BLOCK status;
    NTSTATUS result = NtWriteFile(Handle(a[0]), Handle(a[1]), Pointer(a[2]), Pointer(a[3]), &status, Pointer(a[5]), a[6],
                                  Pointer(a[7]), Pointer(a[8]));
    return Finish(result, a[4], &status);
}

static NTSTATUS whNtFlushBuffersFile(const ULONG *a) {
    IO_STATUS_BLOCK status;
    return Finish(NtFlushBuffersFile(Handle(a[0]), &status), a[1], &status);
}

/* The services on a range of memory: base and size go in and come out. */
typedef struct _RANGE {
    void *Base;
    SIZE_T Size;
} RANGE;

static RANGE Widen(ULONG base, ULONG size) { return (RANGE){Pointer(*(ULONG *)Pointer(base)), *(ULONG *)Pointer(size)}; }

static NTSTATUS Narrow(NTSTATUS result, const RANGE *range, ULONG base, ULONG size) {
    *(ULONG *)Pointer(base) = (ULONG)(ULONG_PTR)range->Base;
    *(ULONG *)Pointer(size) = (ULONG)range->Size;
    return result;
}

static NTSTATUS whNtAllocateVirtualMemory(const ULONG *a) {
    RANGE range = Widen(a[1], a[3]);
    NTSTATUS result = NtAllocateVirtualMemory(Handle(a[0]), &range.Base, a[2], &range.Size, a[4], a[5]);
    return Narrow(result, &range, a[1], a[3]);
}

static NTSTATUS whNtFreeVirtualMemory(const ULONG *a) {
    RANGE range = Widen(a[1], a[2]);
    return Narrow(NtFreeVirtualMemory(Handle(a[0]), &range.Base, &range.Size, a[3]), &range, a[1], a[2]);
}

static NTSTATUS whNtProtectVirtualMemory(const ULONG *a) {
    RANGE range = Widen(a[1], a[2]);
    return Narrow(NtProtectVirtualMemory(Handle(a[0]), &range.Base, &range.Size, a[3], Pointer(a[4])), &range, a[1], a[2]);
}

static NTSTATUS whNtUnlockVirtualMemory(const ULONG *a) {
    RANGE range = Widen(a[1], a[2]);
    return Narrow(NtUnlockVirtualMemory(Handle(a[0]), &range.Base, &range.Size, a[3]), &range, a[1], a[2]);
}

static NTSTATUS whNtCreateThreadEx(const ULONG *a) {
    HANDLE thread = NULL;
    NTSTATUS result = NtCreateThreadEx(&thread, a[1], NULL, Handle(a[3]), (THREAD_START)(ULONG_PTR)a[4], Pointer(a[5]), a[6], a[7],
                                       a[8], a[9], NULL);
    *(ULONG *)Pointer(a[0]) = (ULONG)(ULONG_PTR)thread;
    return result;
}

static NTSTATUS whNtTerminateThread(const ULONG *a) { return NtTerminateThread(Handle(a[0]), (NTSTATUS)a[1]); }

static NTSTATUS whNtTerminateProcess(const ULONG *a) { return NtTerminateProcess(Handle(a[0]), (NTSTATUS)a[1]); }

static NTSTATUS whNtDelayExecution(const ULONG *a) { return NtDelayExecution((BOOLEAN)a[0], Pointer(a[1])); }

/* The information has no pointers in the classes that 32-bit programs use. */
static NTSTATUS whNtQuerySystemInformation(const ULONG *a) {
    return NtQuerySystemInformation(a[0], Pointer(a[1]), a[2], Pointer(a[3]));
}

static NTSTATUS whNtSetSystemInformation(const ULONG *a) {
    return a[0] == SystemMinintTrim ? STATUS_INVALID_PARAMETER : NtSetSystemInformation(a[0], Pointer(a[1]), a[2]);
}

enum { /* the services' numbers */
#define SERVICE(name, arguments) Number##name,
    SYSTEM_SERVICES(SERVICE) NumberOfServices
#undef SERVICE
};

/* What the 32-bit ntdll.dll's programs call; of those without arguments wow64cpu.dll makes the call itself. */
static NTSTATUS (*const sdwhnt32JumpTable[NumberOfServices])(const ULONG *arguments) = {
#define CARRIED(name) [Number##name] = wh##name
    CARRIED(NtClose),
    CARRIED(NtCreateFile),
    CARRIED(NtReadFile),
    CARRIED(NtWriteFile),
    CARRIED(NtFlushBuffersFile),
    CARRIED(NtAllocateVirtualMemory),
    CARRIED(NtFreeVirtualMemory),
    CARRIED(NtProtectVirtualMemory),
    CARRIED(NtUnlockVirtualMemory),
    CARRIED(NtCreateThreadEx),
    CARRIED(NtTerminateThread),
    CARRIED(NtTerminateProcess),
    CARRIED(NtDelayExecution),
    CARRIED(NtQuerySystemInformation),
    CARRIED(NtSetSystemInformation),
};

NOINLINE NTSTATUS Wow64SystemServiceEx(ULONG number, const ULONG *arguments) {
    NTSTATUS (*service)(const ULONG *) = number < NumberOfServices ? sdwhnt32JumpTable[number] : NULL;
    if (!service) return STATUS_INVALID_SYSTEM_SERVICE;
    NTSTATUS status = service(arguments);
    __asm__ volatile("" : "+r"(status)); /* a frame of its own: no jump to the service */
    return status;
}
