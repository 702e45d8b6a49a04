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

/* ntdll.dll */
extern MM_SECTION *PspSystemDllSection;
extern void *PspLdrInitializeThunk; /* where every user thread begins */
NTSTATUS PspLocateSystemDll(void);
#endif
