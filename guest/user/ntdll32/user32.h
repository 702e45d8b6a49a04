/* What minint's 32-bit programs are compiled against: the 32-bit ntdll.dll. The types are those of kernel/nt.h with pointers of four
 * bytes; 64-bit numbers are only added and compared, so that no compiler support routine is needed. */
#ifndef USER32_H
#define USER32_H

typedef unsigned char UCHAR, BOOLEAN;
typedef char CHAR;
typedef unsigned short USHORT, WCHAR;
typedef unsigned long ULONG, ACCESS_MASK, SIZE_T;
typedef long LONG, NTSTATUS;
typedef long long LONG64;
typedef unsigned long long ULONG64;
typedef void *HANDLE;
typedef const WCHAR *PCWSTR;
#define NULL ((void *)0)
#define TRUE 1
#define FALSE 0
#define NT_SUCCESS(status) ((NTSTATUS)(status) >= 0)
#define NT_CURRENT_PROCESS ((HANDLE)-1)
#define NT_CURRENT_THREAD ((HANDLE)-2)
#define MEM_COMMIT 0x1000
#define MEM_RESERVE 0x2000
#define PAGE_READWRITE 0x04
#define NOINLINE __attribute__((noinline))
#define NTAPI __attribute__((stdcall))

typedef struct _UNICODE_STRING {
    USHORT Length, MaximumLength;
    const WCHAR *Buffer;
} UNICODE_STRING;

typedef struct _LIST_ENTRY {
    struct _LIST_ENTRY *Flink, *Blink;
} LIST_ENTRY;

typedef struct _IO_STATUS_BLOCK {
    NTSTATUS Status;
    ULONG Information;
} IO_STATUS_BLOCK;

#include "../../kernel/services.h"

/* As in 32-bit Windows of any version; names and order as in the 64-bit ones. */
typedef struct _PEB_LDR_DATA {
    ULONG Length;
    BOOLEAN Initialized;
    HANDLE SsHandle;
    LIST_ENTRY InLoadOrderModuleList, InMemoryOrderModuleList, InInitializationOrderModuleList;
} PEB_LDR_DATA;

typedef struct _LDR_DATA_TABLE_ENTRY {
    LIST_ENTRY InLoadOrderLinks, InMemoryOrderLinks, InInitializationOrderLinks;
    void *DllBase, *EntryPoint;
    ULONG SizeOfImage;
    UNICODE_STRING FullDllName, BaseDllName;
    ULONG Flags;
    USHORT LoadCount, TlsIndex;
    LIST_ENTRY HashLinks;
    ULONG TimeDateStamp;
} LDR_DATA_TABLE_ENTRY;

typedef struct _RTL_USER_PROCESS_PARAMETERS {
    ULONG Unused[9];
    UNICODE_STRING CurrentDirectory;
    HANDLE CurrentDirectoryHandle;
    UNICODE_STRING DllPath, ImagePathName, CommandLine;
} RTL_USER_PROCESS_PARAMETERS;

typedef struct _PEB {
    UCHAR Flags[4];
    HANDLE Mutant;
    UCHAR *ImageBaseAddress;
    PEB_LDR_DATA *Ldr;
    RTL_USER_PROCESS_PARAMETERS *ProcessParameters;
} PEB;

typedef void(NTAPI *THREAD_START)(void *argument);

NTSTATUS NTAPI NtClose(HANDLE handle);
NTSTATUS NTAPI NtCreateFile(HANDLE *file, ACCESS_MASK access, OBJECT_ATTRIBUTES_ARGUMENT *attributes, IO_STATUS_BLOCK *status,
                            LONG64 *allocation, ULONG file_attributes, ULONG share, ULONG disposition, ULONG options, void *ea,
                            ULONG ea_length);
NTSTATUS NTAPI NtWriteFile(HANDLE file, HANDLE event, void *apc, void *apc_context, IO_STATUS_BLOCK *status, const void *buffer,
                           ULONG length, LONG64 *offset, ULONG *key);
NTSTATUS NTAPI NtAllocateVirtualMemory(HANDLE process, void **base, ULONG zero_bits, SIZE_T *size, ULONG type, ULONG protect);
NTSTATUS NTAPI NtProtectVirtualMemory(HANDLE process, void **base, SIZE_T *size, ULONG protect, ULONG *old);
NTSTATUS NTAPI NtCreateThreadEx(HANDLE *thread, ACCESS_MASK access, OBJECT_ATTRIBUTES_ARGUMENT *attributes, HANDLE process,
                                THREAD_START start, void *argument, ULONG flags, SIZE_T zero_bits, SIZE_T commit, SIZE_T reserve,
                                void *list);
NTSTATUS NTAPI NtTerminateThread(HANDLE thread, NTSTATUS status);
NTSTATUS NTAPI NtDelayExecution(BOOLEAN alertable, LONG64 *interval); /* negative: relative, 100 ns */
NTSTATUS NTAPI NtYieldExecution(void);
NTSTATUS NTAPI NtSetSystemInformation(ULONG class, void *buffer, ULONG size);

/* ntdll's own */
void *memset(void *to, int value, SIZE_T size);
void *memcpy(void *to, const void *from, SIZE_T size);
ULONG RtlFormatText(char *buffer, ULONG size, const char *format, ...); /* %s %u %x, 0 and width */
void RtlNote(const char *format, ...);                                 /* a line in the guest's log */
ULONG NTAPI RtlArgument(const char *name, ULONG otherwise);            /* name=number in this process's command line */
void NTAPI RtlSleep(ULONG milliseconds);
HANDLE NTAPI RtlOpen(PCWSTR path, ULONG disposition); /* NULL when it cannot */
PEB *NTAPI RtlPeb(void);

#endif
