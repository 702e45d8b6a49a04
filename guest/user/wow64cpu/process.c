/* wow64cpu.dll, once a process: where 32-bit code leaves through. */
#include "../wow64/wow64.h"

extern UCHAR KiFastSystemCall[], KiFastSystemCall2[], KiFastSystemCallTarget[];

/* The far jump names its target by 32 bits, which no relocation of a 64-bit image writes: it is put in here. */
NTSTATUS BTCpuProcessInit(void) {
    void *base = KiFastSystemCallTarget;
    SIZE_T size = sizeof(ULONG);
    ULONG old;
    NTSTATUS status = NtProtectVirtualMemory(NT_CURRENT_PROCESS, &base, &size, PAGE_EXECUTE_READWRITE, &old);
    if (!NT_SUCCESS(status)) return status;
    *(volatile ULONG *)KiFastSystemCallTarget = (ULONG)(ULONG_PTR)KiFastSystemCall2;
    return NtProtectVirtualMemory(NT_CURRENT_PROCESS, &base, &size, old, &old);
}

void *BTCpuGetBopCode(void) { return KiFastSystemCall; }

int DllMain(void) { return 1; }
