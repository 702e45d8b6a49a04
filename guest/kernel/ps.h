/* ps: processes and threads. Included by nt.h. */
#ifndef PS_H
#define PS_H

extern LIST_ENTRY PsActiveProcessHead;
extern LIST_ENTRY PsLoadedModuleList;
extern EPROCESS *PsInitialSystemProcess;
extern EPROCESS *PsIdleProcess;

FORCEINLINE ETHREAD *PsGetCurrentThread(void) { return (ETHREAD *)KeGetCurrentThread(); }
/* The process whose address space is current (attached or own). */
FORCEINLINE EPROCESS *PsGetCurrentProcess(void) { return (EPROCESS *)KeGetCurrentThread()->ApcState.Process; }
FORCEINLINE ULONG PsGetProcessId(EPROCESS *p) { return (ULONG)(ULONG64)p->UniqueProcessId; }

/* A kernel thread in the System process, PASSIVE_LEVEL. */
NTSTATUS PsCreateSystemThread(void (*routine)(void *), void *context);
NORETURN void PsTerminateSystemThread(NTSTATUS status);

/* Each process once, in PsActiveProcessHead's order: start with NULL. Referenced while held; the previous one is released. */
EPROCESS *PsGetNextProcess(EPROCESS *process);

/* A user process from an image on the volume, e.g. L"\\Windows\\System32\\csrss.exe", its first thread ready to run. */
NTSTATUS PsCreateUserProcess(PCWSTR path, PCWSTR command_line, EPROCESS *parent, EPROCESS **process, ETHREAD **thread);

/* To be called when a view of a section was mapped; tells the log, and whoever watches, of images. */
void PsNotifyImage(EPROCESS *process, void *section, void *base, SIZE_T size);

void PsNotifySystemImage(UNICODE_STRING *name, void *base, SIZE_T size); /* the same for a driver */

/* What EPROCESS has of a WOW64 process; NULL for any other one. */
void *PsWow64Process(EPROCESS *process);
#define PS_TEB32_OFFSET ROUND_TO_PAGES(sizeof(TEB)) /* from a WOW64 thread's TEB to its TEB32 */

void PsInitSystem(void);

/* Memory compression; STATUS_NOT_FOUND without a paging file. */
NTSTATUS SmFirstTimeInit(void);

#ifndef HAVE__KLDR_DATA_TABLE_ENTRY
typedef LDR_DATA_TABLE_ENTRY KLDR_DATA_TABLE_ENTRY; /* before Windows 10 the kernel used the user structure */
#endif

/* Loaded kernel images for those who list them: mm and io may add lines of their own. */
KLDR_DATA_TABLE_ENTRY *MiProcessLoaderEntry(PCWSTR full_name, PCWSTR base_name, void *base, ULONG size, void *entry);

/* A driver's image from the volume into system space, on PsLoadedModuleList; and out again (mm/sysload.c). PASSIVE_LEVEL. */
NTSTATUS MmLoadSystemImage(PCWSTR path, KLDR_DATA_TABLE_ENTRY **entry); /* STATUS_IMAGE_ALREADY_LOADED, by the file's name */
void MmUnloadSystemImage(KLDR_DATA_TABLE_ENTRY *entry);
#endif
