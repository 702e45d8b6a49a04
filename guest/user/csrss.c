/* csrss.exe: its start marks the end of the boot. It keeps a little private memory and a second thread. */
#include "user.h"

static volatile ULONG64 CsrTicks;

static void CsrApiRequestThread(void *argument) {
    ULONG64 *heap = argument;
    for (ULONG i = 0;; i = (i + 1) % 512) {
        heap[i] = CsrTicks;
        RtlSleep(200);
    }
}

void NtProcessStartup(PEB *peb) {
    void *heap = NULL;
    SIZE_T size = 0x10000;
    HANDLE thread;
    (void)peb;
    NtAllocateVirtualMemory(NT_CURRENT_PROCESS, &heap, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    NtCreateThreadEx(&thread, 0x1fffff, NULL, NT_CURRENT_PROCESS, CsrApiRequestThread, heap, 0, 0, 0, 0, NULL);
    for (;; CsrTicks++) RtlSleep(100);
}
