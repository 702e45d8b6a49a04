/* csrss.exe: its start marks the end of the boot. It keeps a little private memory, its heap, and a second thread, which comes to
 * the heap through the PEB every time, as programs of Windows do. So the PEB is never idle long enough to be trimmed, and tools
 * that find out where EPROCESS.Peb is by looking for a PEB that is mapped (MemProcFS, in four processes) do. */
#include "user.h"

static volatile ULONG64 CsrTicks;

static void CsrApiRequestThread(void *argument) {
    volatile PEB *peb = argument;
    for (ULONG i = 0;; i = (i + 1) % 512) {
        ((ULONG64 *)peb->ProcessHeap)[i] = CsrTicks;
        RtlSleep(200);
    }
}

void NtProcessStartup(PEB *peb) {
    void *heap = NULL;
    SIZE_T size = 0x10000;
    HANDLE thread;
    NtAllocateVirtualMemory(NT_CURRENT_PROCESS, &heap, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    peb->ProcessHeap = heap;
    NtCreateThreadEx(&thread, 0x1fffff, NULL, NT_CURRENT_PROCESS, CsrApiRequestThread, peb, 0, 0, 0, 0, NULL);
    for (;; CsrTicks++) RtlSleep(100);
}
