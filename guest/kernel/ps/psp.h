/* ps's private side. */
#ifndef PSP_H
#define PSP_H
#include "nt.h"
#include "mm/mm.h"

#define PSP_STACK_SIZE 0x6000
#define PSP_USER_STACK_RESERVE 0x40000
#define PSP_USER_STACK_COMMIT 0x10000

extern EX_PUSH_LOCK PspActiveProcessLock;
extern HANDLE_TABLE *PspCidTable;

HANDLE PspAllocateCid(void *object);
void PspFreeCid(HANDLE id);

/* Fills what every process has; then the caller gives it an address space and inserts it. */
EPROCESS *PspCreateProcessObject(const CHAR *name, EPROCESS *parent);
void PspInsertProcess(EPROCESS *process);

/* `frame`: where user mode begins; NULL for a system thread, which begins in `routine(context)`. */
NTSTATUS PspCreateThread(EPROCESS *process, void *routine, void *context, const KTRAP_FRAME *frame, void *teb, ETHREAD **thread);
void PspStartThread(ETHREAD *thread);
NTSTATUS PspCreateUserThread(EPROCESS *process, void *start, void *argument, ETHREAD **thread);
void PspInsertThread(ETHREAD *thread, EPROCESS *process);
NORETURN void PspExitThread(NTSTATUS status);
void PspExitProcess(BOOLEAN trim, EPROCESS *process);
void PspTerminateProcess(EPROCESS *process, NTSTATUS status); /* marks its threads */

/* Memory of a process: committed, and written from a nonpaged buffer. */
NTSTATUS PspAllocate(EPROCESS *process, SIZE_T size, void **base);
NTSTATUS PspWrite(EPROCESS *process, void *to, const void *from, SIZE_T size);

typedef struct _PSP_STACK { /* a user stack; it grows down from Base */
    UCHAR *Base, *Limit;
    void *Allocation;
} PSP_STACK;
NTSTATUS PspMakeStack(EPROCESS *process, PSP_STACK *stack);

typedef struct _PSP_VIEW {
    MM_SECTION *Section;
    void *Base;
    SIZE_T Size;
} PSP_VIEW;
NTSTATUS PspMapImage(EPROCESS *process, MM_SECTION *section, PSP_VIEW *view);

/* System DLLs: a section that every view of has at one address, and the addresses of some exports. */
typedef struct _PSP_EXPORT {
    const char *Name;
    void **Address;
} PSP_EXPORT;
NTSTATUS PspLoadSystemDll(PCWSTR path, MM_SECTION **section, void **base, const PSP_EXPORT *exports, ULONG count);
NTSTATUS PspLocateSystemDll(void);
extern MM_SECTION *PspSystemDllSection;
extern void *PspLdrInitializeThunk;    /* where every user thread begins */
extern void *PspLdrSystemDllInitBlock; /* in ntdll.dll: PS_SYSTEM_DLL_INIT_BLOCK */

/* WOW64 */
NTSTATUS PspSetupWow64Process(EPROCESS *process, const MM_IMAGE *image, PSP_VIEW *view); /* maps the 32-bit ntdll.dll */
NTSTATUS PspMakeTeb32(EPROCESS *process, ETHREAD *thread, TEB *teb); /* and its stack; `teb` gets what tells of it */
void *PspPeb32(EPROCESS *process); /* NULL for any other process */
void PspDeleteWow64Process(EPROCESS *process);
#endif
