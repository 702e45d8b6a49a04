/* What minint's user programs are compiled against: ntdll's services and the few routines that it offers. */
#ifndef USER_H
#define USER_H

#define NT_USER_MODE
#include "../kernel/nt.h"
#include "../kernel/services.h"

typedef void (*THREAD_START)(void *argument);

NTSTATUS NtClose(HANDLE handle);
NTSTATUS NtCreateFile(HANDLE *file, ACCESS_MASK access, OBJECT_ATTRIBUTES_ARGUMENT *attributes, IO_STATUS_BLOCK *status,
                      LONG64 *allocation, ULONG file_attributes, ULONG share, ULONG disposition, ULONG options, void *ea,
                      ULONG ea_length);
NTSTATUS NtReadFile(HANDLE file, HANDLE event, void *apc, void *apc_context, IO_STATUS_BLOCK *status, void *buffer,
                    ULONG length, LONG64 *offset, ULONG *key);
NTSTATUS NtWriteFile(HANDLE file, HANDLE event, void *apc, void *apc_context, IO_STATUS_BLOCK *status, const void *buffer,
                     ULONG length, LONG64 *offset, ULONG *key);
NTSTATUS NtFlushBuffersFile(HANDLE file, IO_STATUS_BLOCK *status);
NTSTATUS NtAllocateVirtualMemory(HANDLE process, void **base, ULONG_PTR zero_bits, SIZE_T *size, ULONG type, ULONG protect);
NTSTATUS NtFreeVirtualMemory(HANDLE process, void **base, SIZE_T *size, ULONG type);
NTSTATUS NtProtectVirtualMemory(HANDLE process, void **base, SIZE_T *size, ULONG protect, ULONG *old);
NTSTATUS NtUnlockVirtualMemory(HANDLE process, void **base, SIZE_T *size, ULONG type);
NTSTATUS NtCreateSection(HANDLE *section, ACCESS_MASK access, OBJECT_ATTRIBUTES_ARGUMENT *attributes, LONG64 *size,
                         ULONG protect, ULONG allocation, HANDLE file);
NTSTATUS NtMapViewOfSection(HANDLE section, HANDLE process, void **base, ULONG_PTR zero_bits, SIZE_T commit, LONG64 *offset,
                            SIZE_T *size, ULONG inherit, ULONG type, ULONG protect);
NTSTATUS NtUnmapViewOfSection(HANDLE process, void *base);
NTSTATUS NtCreateThreadEx(HANDLE *thread, ACCESS_MASK access, OBJECT_ATTRIBUTES_ARGUMENT *attributes, HANDLE process,
                          THREAD_START start, void *argument, ULONG flags, SIZE_T zero_bits, SIZE_T commit, SIZE_T reserve,
                          void *list);
NTSTATUS NtTerminateThread(HANDLE thread, NTSTATUS status);
NTSTATUS NtCreateUserProcess(HANDLE *process, HANDLE *thread, ACCESS_MASK process_access, ACCESS_MASK thread_access,
                             OBJECT_ATTRIBUTES_ARGUMENT *process_attributes, OBJECT_ATTRIBUTES_ARGUMENT *thread_attributes,
                             ULONG process_flags, ULONG thread_flags, RTL_USER_PROCESS_PARAMETERS *parameters, void *create,
                             void *list);
NTSTATUS NtTerminateProcess(HANDLE process, NTSTATUS status);
NTSTATUS NtCreatePagingFile(UNICODE_STRING *name, LONG64 *minimum, LONG64 *maximum, ULONG priority);
NTSTATUS NtDelayExecution(BOOLEAN alertable, LONG64 *interval); /* negative: relative, 100 ns */
NTSTATUS NtYieldExecution(void);
NTSTATUS NtQuerySystemInformation(ULONG class, void *buffer, ULONG size, ULONG *needed);
NTSTATUS NtSetSystemInformation(ULONG class, void *buffer, ULONG size);
NTSTATUS NtLoadDriver(UNICODE_STRING *service);
NTSTATUS NtUnloadDriver(UNICODE_STRING *service);

/* ntdll's own */
void *RtlAllocateHeap(HANDLE heap, ULONG flags, SIZE_T size);
void *RtlReAllocateHeap(HANDLE heap, ULONG flags, void *address, SIZE_T size);
BOOLEAN RtlFreeHeap(HANDLE heap, ULONG flags, void *address); /* FALSE for what is not allocated */
SIZE_T RtlFormatText(char *buffer, SIZE_T size, const char *format, ...); /* %s %u %x %c, 0 and width */
void RtlSleep(ULONG milliseconds);
ULONG64 RtlBootOption(const char *name, ULONG64 otherwise); /* NAME=number in the boot options; 1 for a bare NAME */
ULONG64 RtlArgument(const char *name, ULONG64 otherwise);   /* name=number in this process's command line */
NTSTATUS RtlStartProgram(PCWSTR image, PCWSTR command_line); /* waits for nothing */
void RtlNote(const char *format, ...); /* a line in the guest's log */
HANDLE RtlOpen(PCWSTR path, ULONG disposition); /* NULL when it cannot */
PEB *RtlPeb(void);

/* ntdll's loader, for wow64.dll */
NTSTATUS LdrpLoadDll(PCWSTR path, void **base); /* `path` stays in use */
void *LdrpExport(UCHAR *base, const char *name);

#endif
