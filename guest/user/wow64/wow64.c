/* wow64.dll: starts 32-bit threads, and carries their system calls over. */
#include "wow64.h"

#define CONTEXT_FULL32 0x10007

static void (*CpuSimulate)(void);
static void *CpuBopCode;

static TEB *Wow64Teb(void) {
    TEB *teb;
    __asm__("movq %%gs:%c1, %0" : "=r"(teb) : "i"(OFF__TEB__NtTib_Self));
    return teb;
}

static TEB32 *Wow64Teb32(void) { return (TEB32 *)Wow64Teb()->NtTib.ExceptionList; }

/* ---- The process */

typedef struct _RTL_USER_PROCESS_PARAMETERS32 { /* up to CommandLine, as RTL_USER_PROCESS_PARAMETERS */
    ULONG MaximumLength, Length, Flags, DebugFlags, ConsoleHandle, ConsoleFlags, StandardInput, StandardOutput, StandardError;
    UNICODE_STRING32 CurrentDirectory;
    ULONG CurrentDirectoryHandle;
    UNICODE_STRING32 DllPath, ImagePathName, CommandLine;
} RTL_USER_PROCESS_PARAMETERS32;

static UNICODE_STRING32 Wow64NarrowString(const UNICODE_STRING *wide) { /* the text lies below 4 GB, as all that the kernel made */
    return (UNICODE_STRING32){wide->Length, wide->MaximumLength, (ULONG)(ULONG_PTR)wide->Buffer};
}

static NTSTATUS Wow64MakeParameters(PEB32 *peb) {
    const RTL_USER_PROCESS_PARAMETERS *wide = RtlPeb()->ProcessParameters;
    void *base = NULL;
    SIZE_T size = sizeof(RTL_USER_PROCESS_PARAMETERS32);
    NTSTATUS status = NtAllocateVirtualMemory(NT_CURRENT_PROCESS, &base, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    if (!NT_SUCCESS(status)) return status;
    RTL_USER_PROCESS_PARAMETERS32 *narrow = base;
    narrow->MaximumLength = narrow->Length = sizeof *narrow;
    narrow->Flags = wide->Flags;
    narrow->CurrentDirectory = Wow64NarrowString(&wide->CurrentDirectory.DosPath);
    narrow->DllPath = Wow64NarrowString(&wide->DllPath);
    narrow->ImagePathName = Wow64NarrowString(&wide->ImagePathName);
    narrow->CommandLine = Wow64NarrowString(&wide->CommandLine);
    peb->ProcessParameters = (ULONG)(ULONG_PTR)narrow;
    return status;
}

static NTSTATUS Wow64ProcessInit(void) {
    void *cpu;
    NTSTATUS status = LdrpLoadDll(L"C:\\Windows\\System32\\wow64cpu.dll", &cpu);
    if (!NT_SUCCESS(status)) return status;
    NTSTATUS (*init)(void) = (NTSTATUS(*)(void))LdrpExport(cpu, "BTCpuProcessInit");
    void *(*bop)(void) = (void *(*)(void))LdrpExport(cpu, "BTCpuGetBopCode");
    CpuSimulate = (void (*)(void))LdrpExport(cpu, "BTCpuSimulate");
    status = init();
    CpuBopCode = bop();
    return NT_SUCCESS(status) ? Wow64MakeParameters((PEB32 *)(ULONG_PTR)Wow64Teb32()->ProcessEnvironmentBlock) : status;
}

/* ---- Threads */

NOINLINE void RunCpuSimulation(void) {
    for (;;) CpuSimulate();
}

/* ntdll.dll hands every thread over to this. The 32-bit ntdll.dll's LdrInitializeThunk(start, argument) comes first there too. */
NOINLINE void Wow64LdrpInitialize(THREAD_START start, void *argument) {
    WOW64_CPURESERVED cpu;
    TEB32 *teb32 = Wow64Teb32();
    if (!CpuSimulate) {
        NTSTATUS status = Wow64ProcessInit();
        if (!NT_SUCCESS(status)) NtTerminateProcess(NT_CURRENT_PROCESS, status);
    }
    ULONG *stack = (ULONG *)(ULONG_PTR)teb32->NtTib.StackBase - 16;
    stack[0] = 0; /* no return address */
    stack[1] = (ULONG)(ULONG_PTR)start;
    stack[2] = (ULONG)(ULONG_PTR)argument;
    memset(&cpu, 0, sizeof cpu);
    cpu.Flags = WOW64_CPURESERVED_FLAG_RESET_STATE;
    cpu.Machine = IMAGE_FILE_MACHINE_I386;
    cpu.Context.ContextFlags = CONTEXT_FULL32;
    cpu.Context.SegCs = 0x23;
    cpu.Context.SegSs = cpu.Context.SegDs = cpu.Context.SegEs = cpu.Context.SegGs = 0x2B;
    cpu.Context.SegFs = 0x53;
    cpu.Context.EFlags = 0x202;
    cpu.Context.Esp = (ULONG)(ULONG_PTR)stack;
    cpu.Context.Eip = (ULONG)LdrSystemDllInitBlock.Wow64SharedInformation[SharedNtdll32LdrInitializeThunk];
    teb32->WOW32Reserved = (ULONG)(ULONG_PTR)CpuBopCode;
    Wow64Teb()->TlsSlots[WOW64_TLS_CPURESERVED] = &cpu;
    RunCpuSimulation();
}
