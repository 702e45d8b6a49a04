/* svchost.exe: a process that makes lists long: some heap that it touches now and then, the rest of it growing cold. */
#include "user.h"

#define HEAP_PAGES 64

void NtProcessStartup(PEB *peb) {
    UCHAR *heap = NULL;
    SIZE_T size = HEAP_PAGES * PAGE_SIZE;
    (void)peb;
    NtAllocateVirtualMemory(NT_CURRENT_PROCESS, (void **)&heap, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    for (ULONG page = 0; heap && page < HEAP_PAGES / 2; page++) /* the other half stays demand-zero */
        RtlFormatText((char *)heap + page * PAGE_SIZE, PAGE_SIZE, "service heap page %u", (ULONG64)page);
    for (ULONG64 tick = 0;; tick++) {
        if (heap) heap[tick % 4 * PAGE_SIZE + 0x800] = (UCHAR)tick;
        RtlSleep(250);
    }
}
