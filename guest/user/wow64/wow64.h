/* What wow64.dll and wow64cpu.dll share: where a thread's 32-bit registers are kept while it runs 64-bit code.
 *
 * WOW64_CONTEXT is winnt.h's (the Windows SDK); WOW64_CPURESERVED has flags and machine in front of it, and TEB.TlsSlots[1]
 * (WOW64_TLS_CPURESERVED) points to it, as in Windows 10. */
#ifndef WOW64_H
#define WOW64_H

#define WOW64_TLS_CPURESERVED 1
#define WOW64_CPURESERVED_FLAG_RESET_STATE 1 /* load all of the registers when 32-bit code is entered next */

#ifndef __ASSEMBLER__
#include "../user.h"

typedef struct _UNICODE_STRING32 {
    USHORT Length, MaximumLength;
    ULONG Buffer;
} UNICODE_STRING32;

typedef struct _WOW64_CONTEXT {
    ULONG ContextFlags, Dr0, Dr1, Dr2, Dr3, Dr6, Dr7;
    UCHAR FloatSave[112];
    ULONG SegGs, SegFs, SegEs, SegDs, Edi, Esi, Ebx, Edx, Ecx, Eax, Ebp, Eip, SegCs, EFlags, Esp, SegSs;
    UCHAR ExtendedRegisters[512];
} WOW64_CONTEXT;

typedef struct _WOW64_CPURESERVED {
    USHORT Flags, Machine;
    WOW64_CONTEXT Context;
} WOW64_CPURESERVED;
_Static_assert(sizeof(WOW64_CONTEXT) == 0x2CC && __builtin_offsetof(WOW64_CONTEXT, Eip) == 0xB8, "WOW64_CONTEXT");

extern __declspec(dllimport) PS_SYSTEM_DLL_INIT_BLOCK LdrSystemDllInitBlock;

/* wow64cpu.dll */
NTSTATUS BTCpuProcessInit(void);
void *BTCpuGetBopCode(void); /* where 32-bit code leaves for 64-bit code: what TEB32.WOW32Reserved holds */
void BTCpuSimulate(void);    /* runs this thread's 32-bit code */

/* wow64.dll: a 32-bit system call, its arguments four bytes each. */
NTSTATUS Wow64SystemServiceEx(ULONG number, const ULONG *arguments);
#endif
#endif
