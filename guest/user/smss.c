/* smss.exe, the first user process: creates the paging files that are configured, one NtCreatePagingFile each, then starts
 * csrss.exe and services.exe and stays. Boot options stand for the registry: PAGEFILES=n (0 to 15, default 1), PAGEFILE=megabytes
 * each, SWAPFILE=megabytes (0: none), BOOTEXECUTE=megabytes (autochk.exe runs first and makes a paging file of its own). */
#include "user.h"

#define MOST_FILES 15

typedef struct _SMP_PAGING_FILE_DESCRIPTOR {
    WCHAR Name[32];
    LONG64 Bytes;
} SMP_PAGING_FILE_DESCRIPTOR;

static SMP_PAGING_FILE_DESCRIPTOR SmpPagingFiles[MOST_FILES + 1];
static ULONG SmpNumberOfPagingFiles;

static void SmpAddPagingFile(PCWSTR name, ULONG64 megabytes) {
    SMP_PAGING_FILE_DESCRIPTOR *file = &SmpPagingFiles[SmpNumberOfPagingFiles++];
    memcpy(file->Name, name, (wcslen(name) + 1) * sizeof(WCHAR));
    file->Bytes = (LONG64)(megabytes << 20);
}

/* What Session Manager\Memory Management\PagingFiles says in Windows. */
static NOINLINE void SmpLoadDataFromRegistry(void) {
    ULONG64 files = RtlBootOption("PAGEFILES", 1), megabytes = RtlBootOption("PAGEFILE", 16), swap = RtlBootOption("SWAPFILE", 0);
    WCHAR path[] = L"\\??\\C:\\pagefile?.sys";
    for (ULONG number = 0; number < MIN(files, MOST_FILES); number++) {
        path[15] = number < 10 ? (WCHAR)('0' + number) : (WCHAR)('a' + number - 10);
        SmpAddPagingFile(number ? path : L"\\??\\C:\\pagefile.sys", megabytes);
    }
    if (swap) SmpAddPagingFile(L"\\??\\C:\\swapfile.sys", swap);
}

static void SmpCreatePagingFile(const SMP_PAGING_FILE_DESCRIPTOR *file) {
    LONG64 bytes = file->Bytes;
    UNICODE_STRING name;
    RtlInitUnicodeString(&name, file->Name);
    NTSTATUS status = NtCreatePagingFile(&name, &bytes, &bytes, 0);
    if (!NT_SUCCESS(status)) RtlNote("smss: paging file of %u bytes: %x", (ULONG64)bytes, (ULONG64)(ULONG)status);
}

void NtProcessStartup(PEB *peb) {
    (void)peb;
    if (RtlBootOption("BOOTEXECUTE", 0)) {
        RtlStartProgram(L"C:\\Windows\\System32\\autochk.exe", L"autochk.exe *");
        RtlSleep(300);
    }
    SmpLoadDataFromRegistry();
    for (ULONG number = 0; number < SmpNumberOfPagingFiles; number++) SmpCreatePagingFile(&SmpPagingFiles[number]);
    RtlStartProgram(L"C:\\Windows\\System32\\csrss.exe", L"csrss.exe ObjectDirectory=\\Windows");
    RtlStartProgram(L"C:\\Windows\\System32\\services.exe", L"services.exe");
    for (;;) RtlSleep(1000);
}
