/* Base types of minint's kernel. Every kernel file includes this first.
 *
 * Structures of the real kernel come from the generated layout header (guest/layouts/nt_BUILD.h, made by
 * guest/layout.py from guest/layouts/fields.txt); what is minint's own is defined in these headers. */
#ifndef NT_H
#define NT_H

#ifndef NT_LAYOUT_HEADER
#define NT_LAYOUT_HEADER "../layouts/nt_19041.h"
#endif

#ifndef __ASSEMBLER__

typedef void VOID, *PVOID, *HANDLE;
typedef unsigned char UCHAR, BOOLEAN, *PUCHAR;
typedef char CHAR;
typedef unsigned short USHORT, WCHAR, *PWSTR;
typedef const WCHAR *PCWSTR;
typedef short SHORT;
typedef unsigned long ULONG, *PULONG; /* 4 bytes on this target */
typedef long LONG, NTSTATUS;
typedef unsigned long long ULONG64, ULONG_PTR, SIZE_T, *PSIZE_T, PFN_NUMBER, KSPIN_LOCK;
typedef long long LONG64, LONG_PTR;
typedef UCHAR KIRQL;
typedef ULONG ACCESS_MASK;

#include NT_LAYOUT_HEADER

#define NULL ((void *)0)
#define TRUE 1
#define FALSE 0
#define PAGE_SIZE 0x1000ull
#define PAGE_SHIFT 12
#define PAGE_ALIGN(a) ((ULONG64)(a) & ~(PAGE_SIZE - 1))
#define ROUND_TO_PAGES(a) (((ULONG64)(a) + PAGE_SIZE - 1) & ~(PAGE_SIZE - 1))
#define BYTE_OFFSET(a) ((ULONG64)(a) & (PAGE_SIZE - 1))
#define CONTAINING_RECORD(address, type, field) ((type *)((UCHAR *)(address) - __builtin_offsetof(type, field)))
#define FIELD_OFFSET(type, field) __builtin_offsetof(type, field)
#define ARRAYSIZE(a) (sizeof(a) / sizeof((a)[0]))
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))
#define NOINLINE __attribute__((noinline))
#define NORETURN __attribute__((noreturn))
#define FORCEINLINE static inline __attribute__((always_inline, unused))
#define C_ASSERT(x) _Static_assert(x, #x)

/* NTSTATUS */
#define NT_SUCCESS(s) ((NTSTATUS)(s) >= 0)
#define STATUS_SUCCESS ((NTSTATUS)0x00000000)
#define STATUS_TIMEOUT ((NTSTATUS)0x00000102)
#define STATUS_PENDING ((NTSTATUS)0x00000103)
#define STATUS_IMAGE_NOT_AT_BASE ((NTSTATUS)0x40000003)
#define STATUS_GUARD_PAGE_VIOLATION ((NTSTATUS)0x80000001)
#define STATUS_NO_MORE_ENTRIES ((NTSTATUS)0x8000001A)
#define STATUS_UNSUCCESSFUL ((NTSTATUS)0xC0000001)
#define STATUS_NOT_IMPLEMENTED ((NTSTATUS)0xC0000002)
#define STATUS_ACCESS_VIOLATION ((NTSTATUS)0xC0000005)
#define STATUS_IN_PAGE_ERROR ((NTSTATUS)0xC0000006)
#define STATUS_INVALID_HANDLE ((NTSTATUS)0xC0000008)
#define STATUS_INVALID_PARAMETER ((NTSTATUS)0xC000000D)
#define STATUS_NO_SUCH_FILE ((NTSTATUS)0xC000000F)
#define STATUS_END_OF_FILE ((NTSTATUS)0xC0000011)
#define STATUS_NO_MEMORY ((NTSTATUS)0xC0000017)
#define STATUS_CONFLICTING_ADDRESSES ((NTSTATUS)0xC0000018)
#define STATUS_NOT_MAPPED_VIEW ((NTSTATUS)0xC0000019)
#define STATUS_INVALID_SYSTEM_SERVICE ((NTSTATUS)0xC000001C)
#define STATUS_ACCESS_DENIED ((NTSTATUS)0xC0000022)
#define STATUS_BUFFER_TOO_SMALL ((NTSTATUS)0xC0000023)
#define STATUS_OBJECT_TYPE_MISMATCH ((NTSTATUS)0xC0000024)
#define STATUS_OBJECT_NAME_INVALID ((NTSTATUS)0xC0000033)
#define STATUS_OBJECT_NAME_NOT_FOUND ((NTSTATUS)0xC0000034)
#define STATUS_OBJECT_NAME_COLLISION ((NTSTATUS)0xC0000035)
#define STATUS_INVALID_PAGE_PROTECTION ((NTSTATUS)0xC0000045)
#define STATUS_SECTION_TOO_BIG ((NTSTATUS)0xC0000040)
#define STATUS_INVALID_IMAGE_FORMAT ((NTSTATUS)0xC000007B)
#define STATUS_DISK_FULL ((NTSTATUS)0xC000007F)
#define STATUS_INSUFFICIENT_RESOURCES ((NTSTATUS)0xC000009A)
#define STATUS_MEMORY_NOT_ALLOCATED ((NTSTATUS)0xC00000A0)
#define STATUS_FILE_CORRUPT_ERROR ((NTSTATUS)0xC0000102)
#define STATUS_NOT_FOUND ((NTSTATUS)0xC0000225)
#define STATUS_COMMITMENT_LIMIT ((NTSTATUS)0xC000012D)
#define STATUS_IO_DEVICE_ERROR ((NTSTATUS)0xC0000185)
#define STATUS_NOT_SUPPORTED ((NTSTATUS)0xC00000BB)
#define STATUS_IMAGE_ALREADY_LOADED ((NTSTATUS)0xC000010E)
#define STATUS_PROCESS_IS_TERMINATING ((NTSTATUS)0xC000010A)

/* Protection, allocation and section words of the Win32/NT interfaces */
#define PAGE_NOACCESS 0x01
#define PAGE_READONLY 0x02
#define PAGE_READWRITE 0x04
#define PAGE_WRITECOPY 0x08
#define PAGE_EXECUTE 0x10
#define PAGE_EXECUTE_READ 0x20
#define PAGE_EXECUTE_READWRITE 0x40
#define PAGE_EXECUTE_WRITECOPY 0x80
#define PAGE_GUARD 0x100
#define PAGE_NOCACHE 0x200
#define MEM_COMMIT 0x1000
#define MEM_RESERVE 0x2000
#define MEM_DECOMMIT 0x4000
#define MEM_RELEASE 0x8000
#define MEM_FREE 0x10000
#define MEM_PRIVATE 0x20000
#define MEM_MAPPED 0x40000
#define MEM_RESET 0x80000
#define MEM_TOP_DOWN 0x100000
#define MEM_IMAGE 0x1000000
#define MEM_LARGE_PAGES 0x20000000
#define IMAGE_FILE_MACHINE_I386 0x14C
#define SEC_FILE 0x800000
#define SEC_IMAGE 0x1000000
#define SEC_RESERVE 0x4000000
#define SEC_COMMIT 0x8000000
#define SEC_LARGE_PAGES 0x80000000
#define VIEW_SHARE 1
#define VIEW_UNMAP 2
#define NT_CURRENT_PROCESS ((HANDLE)-1ll)
#define NT_CURRENT_THREAD ((HANDLE)-2ll)

/* What the loader hands to the kernel. Addresses are guest-physical unless they say otherwise; pages are 4 KB.
 *
 * On entry: long mode, interrupts off, Cr3 maps all RAM at identity (virtual = physical, large pages, PML4[0]) and the
 * kernel image (4 KB pages, all writable) at KernelBase. MmInitSystem builds what comes after. */
typedef struct _LOADER_RUN {
    ULONG64 BasePage, PageCount;
} LOADER_RUN;

typedef struct _LOADER_BLOCK {
    ULONG64 Cr3;
    ULONG64 KernelBase; /* virtual, randomised by the loader */
    ULONG64 KernelPhysicalBase, KernelSize; /* bytes, contiguous, sections at their RVAs, relocated */
    ULONG64 LowStub; /* page below 1 MB for the PROCESSOR_START_BLOCK */
    ULONG64 Rsdp; /* ACPI's root, 0 when there is none */
    ULONG64 Random; /* seed */
    ULONG64 LoadTicks; /* TSC when the loader began */
    ULONG MemoryRunCount, ReservedRunCount;
    LOADER_RUN MemoryRuns[32]; /* usable RAM, ascending; includes what the loader itself occupies */
    LOADER_RUN ReservedRuns[8]; /* not to be reused: the first megabyte, kernel image, loader's tables and this block */
    CHAR *Options; /* the -append string at an identity-mapped address, e.g. "KVASHADOW WRITES=1000" */
    CHAR OptionsText[1024];
} LOADER_BLOCK;
extern LOADER_BLOCK *KeLoaderBlock;

/* Boot options: `KeOption("WRITES", 1000)` is the number behind WRITES= (decimal or 0x), 1 for a bare word, else the
 * default. KeOptionText returns the text behind NAME= (up to a blank) or NULL. */
ULONG64 KeOption(const char *name, ULONG64 otherwise);
const char *KeOptionText(const char *name, ULONG *length);

/* Lists */
FORCEINLINE void InitializeListHead(LIST_ENTRY *head) { head->Flink = head->Blink = head; }
FORCEINLINE BOOLEAN IsListEmpty(const LIST_ENTRY *head) { return head->Flink == head; }
FORCEINLINE void InsertTailList(LIST_ENTRY *head, LIST_ENTRY *entry) {
    LIST_ENTRY *last = head->Blink;
    entry->Flink = head;
    entry->Blink = last;
    last->Flink = entry;
    head->Blink = entry;
}
FORCEINLINE void InsertHeadList(LIST_ENTRY *head, LIST_ENTRY *entry) {
    LIST_ENTRY *first = head->Flink;
    entry->Flink = first;
    entry->Blink = head;
    first->Blink = entry;
    head->Flink = entry;
}
FORCEINLINE void RemoveEntryList(LIST_ENTRY *entry) {
    entry->Flink->Blink = entry->Blink;
    entry->Blink->Flink = entry->Flink;
}
FORCEINLINE LIST_ENTRY *RemoveHeadList(LIST_ENTRY *head) {
    LIST_ENTRY *entry = head->Flink;
    RemoveEntryList(entry);
    return entry;
}

/* rtl: bytes, strings, hashes, random numbers */
void *memcpy(void *to, const void *from, SIZE_T size);
void *memmove(void *to, const void *from, SIZE_T size);
void *memset(void *to, int value, SIZE_T size);
int memcmp(const void *a, const void *b, SIZE_T size);
SIZE_T strlen(const char *s);
int strcmp(const char *a, const char *b);
int strncmp(const char *a, const char *b, SIZE_T n);
SIZE_T wcslen(PCWSTR s);
int RtlCompareWideNoCase(PCWSTR a, SIZE_T a_length, PCWSTR b, SIZE_T b_length); /* lengths in characters */
WCHAR RtlUpcaseUnicodeChar(WCHAR c);
void RtlInitUnicodeString(UNICODE_STRING *s, PCWSTR text); /* points at text */
NTSTATUS RtlDuplicateUnicodeString(UNICODE_STRING *to, PCWSTR text, SIZE_T characters); /* pool copy, terminated */
ULONG64 RtlRandom64(void);

typedef struct _SHA256 {
    ULONG State[8];
    ULONG64 Bytes;
    UCHAR Block[64];
} SHA256;
void RtlSha256Begin(SHA256 *hash);
void RtlSha256Add(SHA256 *hash, const void *data, SIZE_T size);
void RtlSha256End(SHA256 *hash, UCHAR digest[32]);
/* Xpress (plain LZ77); the compressor: bytes written, 0 when they are more than `room`; its table has RTL_XPRESS_TABLE entries. */
#define RTL_XPRESS_TABLE 2048
ULONG RtlCompressXpress(const UCHAR *from, ULONG size, UCHAR *to, ULONG room, USHORT *table);
BOOLEAN RtlDecompressXpress(const UCHAR *from, ULONG length, UCHAR *to, ULONG size);
void RtlSha256Hex(const void *data, SIZE_T size, CHAR hex[65]); /* all at once, lower-case hex, terminated */

/* Formatting (`#` writes 0x): %d %i %u %x %X %c %s %p, `l`/`ll`/`I64`/`z` sizes, `0`, width, `-`, `.*s`; %ws a WCHAR string and %wZ a
 * UNICODE_STRING*, both written as UTF-8 and escaped for JSON. Returns the characters written, without the terminator. */
SIZE_T RtlFormat(CHAR *buffer, SIZE_T size, const char *format, ...);
SIZE_T RtlFormatV(CHAR *buffer, SIZE_T size, const char *format, __builtin_va_list arguments);

/* The serial log: one JSON object a line, e.g. KdEvent("{\"event\":\"process\",\"pid\":%u}", pid). Whole lines, any IRQL. */
void KdEvent(const char *format, ...);
void KdWrite(const char *text, SIZE_T length); /* raw bytes, for long listings; the caller adds the line ends */
void KdPrint(const char *format, ...); /* {"event":"debug","text":"..."}; %s text must need no escaping */
NORETURN void KeBugCheckEx(ULONG code, ULONG64 p1, ULONG64 p2, ULONG64 p3, ULONG64 p4);
#define NT_ASSERT(x) ((x) ? (void)0 : KeBugCheckEx(0xdead, (ULONG64)(__FILE__ ""), __LINE__, 0, 0))

#ifndef NT_USER_MODE /* guest/user has the types above and none of the kernel */
#include "ke.h"
#include "ob.h"
#include "ps.h"
#endif

#else
#include NT_LAYOUT_HEADER
#endif
#endif
