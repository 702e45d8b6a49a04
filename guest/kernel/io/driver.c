/* Loadable drivers: NtLoadDriver, NtUnloadDriver, and what programs ask of the loaded one.
 *
 * A service's name stands for its registry key: `...\Services\ndis` is \SystemRoot\System32\drivers\ndis.sys. A driver object
 * stays in \Driver when its driver is unloaded, empty, and is filled again by the next load. */
#include "iop.h"
#include "services.h"

#define LONGEST_NAME 64
#define LARGEST_MESSAGE (1u << 20)
#define STATUS_DRIVER_UNABLE_TO_LOAD ((NTSTATUS)0xC000026C)

static EX_PUSH_LOCK IopDriverLock;

typedef NTSTATUS (*DRIVER_INITIALIZE)(DRIVER_OBJECT *driver, UNICODE_STRING *registry_path);

/* The last part of a service's registry path, as the caller gave it. */
static NTSTATUS IopCaptureService(const UNICODE_STRING *user, WCHAR name[LONGEST_NAME]) {
    UNICODE_STRING string;
    WCHAR path[256];
    NTSTATUS status = MmCopyFromUser(&string, user, sizeof string);
    if (!NT_SUCCESS(status)) return status;
    if (!string.Length || string.Length % 2 || string.Length / 2u >= ARRAYSIZE(path)) return STATUS_OBJECT_NAME_INVALID;
    status = MmCopyFromUser(path, (void *)string.Buffer, string.Length);
    if (!NT_SUCCESS(status)) return status;
    ULONG end = string.Length / 2, start = end;
    while (start && path[start - 1] != '\\') start--;
    if (start == end || end - start >= LONGEST_NAME) return STATUS_OBJECT_NAME_INVALID;
    memcpy(name, path + start, (end - start) * sizeof(WCHAR));
    name[end - start] = 0;
    return STATUS_SUCCESS;
}

static DRIVER_OBJECT *IopFindDriver(PCWSTR name) {
    OBJECT_DIRECTORY *drivers = ObLookup(ObpRootDirectoryObject, L"Driver");
    return drivers ? ObLookup(drivers, name) : NULL;
}

static void IopClearDriver(DRIVER_OBJECT *driver) {
    driver->DriverStart = driver->DriverSection = driver->DriverInit = driver->DriverUnload = NULL;
    driver->DriverSize = 0;
    driver->FastIoDispatch = NULL;
    memset((void *)driver->MajorFunction, 0, sizeof driver->MajorFunction);
}

static DRIVER_OBJECT *IopMakeDriver(PCWSTR name) {
    WCHAR full[LONGEST_NAME + 8] = L"\\Driver\\";
    UNICODE_STRING kept, kept_full;
    memcpy(full + 8, name, (wcslen(name) + 1) * sizeof(WCHAR));
    if (!NT_SUCCESS(RtlDuplicateUnicodeString(&kept, name, wcslen(name)))) return NULL;
    if (!NT_SUCCESS(RtlDuplicateUnicodeString(&kept_full, full, wcslen(full)))) return NULL;
    return IopCreateDriver(L"Driver", (PCWSTR)kept.Buffer, (PCWSTR)kept_full.Buffer);
}

static NTSTATUS IopLoadDriver(PCWSTR name) {
    static const WCHAR folder[] = L"\\SystemRoot\\System32\\drivers\\";
    WCHAR path[ARRAYSIZE(folder) + LONGEST_NAME + 4];
    SIZE_T front = ARRAYSIZE(folder) - 1, length = wcslen(name);
    KLDR_DATA_TABLE_ENTRY *entry;
    memcpy(path, folder, front * sizeof(WCHAR));
    memcpy(path + front, name, length * sizeof(WCHAR));
    memcpy(path + front + length, L".sys", 5 * sizeof(WCHAR));
    NTSTATUS status = MmLoadSystemImage(path, &entry);
    if (!NT_SUCCESS(status)) return status;
    DRIVER_OBJECT *driver = IopFindDriver(name);
    if (!driver) driver = IopMakeDriver(name);
    if (driver) {
        IopClearDriver(driver);
        driver->DriverStart = entry->DllBase;
        driver->DriverSize = entry->SizeOfImage;
        driver->DriverSection = entry;
        driver->DriverInit = entry->EntryPoint;
        status = ((DRIVER_INITIALIZE)driver->DriverInit)(driver, (UNICODE_STRING *)&driver->DriverName);
        if (NT_SUCCESS(status)) return status;
        IopClearDriver(driver);
    } else status = STATUS_INSUFFICIENT_RESOURCES;
    MmUnloadSystemImage(entry);
    return status;
}

NTSTATUS NtLoadDriver(UNICODE_STRING *service) {
    WCHAR name[LONGEST_NAME];
    NTSTATUS status = IopCaptureService(service, name);
    if (!NT_SUCCESS(status)) return status;
    ExAcquirePushLockExclusive(&IopDriverLock);
    status = IopLoadDriver(name);
    ExReleasePushLockExclusive(&IopDriverLock);
    return status;
}

NTSTATUS NtUnloadDriver(UNICODE_STRING *service) {
    WCHAR name[LONGEST_NAME];
    NTSTATUS status = IopCaptureService(service, name);
    if (!NT_SUCCESS(status)) return status;
    ExAcquirePushLockExclusive(&IopDriverLock);
    DRIVER_OBJECT *driver = IopFindDriver(name);
    KLDR_DATA_TABLE_ENTRY *entry = driver ? driver->DriverSection : NULL;
    if (!entry) status = STATUS_OBJECT_NAME_NOT_FOUND;
    else if (!driver->DriverUnload) status = STATUS_NOT_SUPPORTED;
    else {
        ((void (*)(DRIVER_OBJECT *))driver->DriverUnload)(driver);
        IopClearDriver(driver);
        MmUnloadSystemImage(entry);
    }
    ExReleasePushLockExclusive(&IopDriverLock);
    return status;
}

/* Hands a program's bytes to the FastIoWrite of \Driver\ndis, in the program's own thread. */
NTSTATUS IoSendToNetwork(const void *user, ULONG size) {
    IO_STATUS_BLOCK block;
    if (!size || size > LARGEST_MESSAGE) return STATUS_INVALID_PARAMETER;
    void *message = ExAllocatePool(size, 'sdnI');
    if (!message) return STATUS_INSUFFICIENT_RESOURCES;
    memset(&block, 0, sizeof block);
    NTSTATUS status = MmCopyFromUser(message, user, size);
    ExAcquirePushLockExclusive(&IopDriverLock);
    DRIVER_OBJECT *driver = IopFindDriver(L"ndis");
    IO_FAST_WRITE *table = driver ? (IO_FAST_WRITE *)driver->FastIoDispatch : NULL;
    if (NT_SUCCESS(status) && !table) status = STATUS_NO_SUCH_DEVICE;
    if (NT_SUCCESS(status)) status = table->FastIoWrite(NULL, NULL, size, TRUE, 0, message, &block, NULL) ? block.Status : STATUS_NOT_SUPPORTED;
    ExReleasePushLockExclusive(&IopDriverLock);
    ExFreePool(message);
    return status;
}
