/* autochk.exe: what smss.exe runs before all else, when told to (BOOTEXECUTE=megabytes). It makes a paging file, as no Windows
 * program but smss.exe does at that time, says so, and ends. */
#include "user.h"

void NtProcessStartup(PEB *peb) {
    LONG64 bytes = (LONG64)(RtlBootOption("BOOTEXECUTE", 4) << 20);
    UNICODE_STRING name;
    (void)peb;
    RtlInitUnicodeString(&name, L"\\??\\C:\\autochk.sys");
    RtlNote("autochk: paging file: %x", (ULONG64)(ULONG)NtCreatePagingFile(&name, &bytes, &bytes, 0));
    NtTerminateProcess(NT_CURRENT_PROCESS, 0);
}
