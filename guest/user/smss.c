/* smss.exe, the first user process: creates the paging files that are configured, one NtCreatePagingFile each, then starts
 * csrss.exe and services.exe and stays. Boot options: PAGEFILES=n (0 to 15, default 1), PAGEFILE=megabytes each. */
#include "user.h"

static void SmpCreatePagingFile(ULONG number, LONG64 bytes) {
    WCHAR path[] = L"\\??\\C:\\pagefile?.sys";
    WCHAR first[] = L"\\??\\C:\\pagefile.sys";
    UNICODE_STRING name;
    path[15] = number < 10 ? (WCHAR)('0' + number) : (WCHAR)('a' + number - 10);
    RtlInitUnicodeString(&name, number == 0 ? first : path);
    NTSTATUS status = NtCreatePagingFile(&name, &bytes, &bytes, 0);
    if (!NT_SUCCESS(status)) RtlNote("smss: paging file %u: %x", (ULONG64)number, (ULONG64)(ULONG)status);
}

void NtProcessStartup(PEB *peb) {
    ULONG64 files = RtlBootOption("PAGEFILES", 1), megabytes = RtlBootOption("PAGEFILE", 16);
    (void)peb;
    for (ULONG number = 0; number < MIN(files, 15); number++) SmpCreatePagingFile(number, (LONG64)(megabytes << 20));
    RtlStartProgram(L"C:\\Windows\\System32\\csrss.exe", L"csrss.exe ObjectDirectory=\\Windows");
    RtlStartProgram(L"C:\\Windows\\System32\\services.exe", L"services.exe");
    for (;;) RtlSleep(1000);
}
