/* The 32-bit ntdll.dll: its loader, which fills PEB32.Ldr and binds the program's imports, and what programs share. */
#include "user32.h"

typedef struct _PE_HEADERS { /* the parts of PE32 that the loader needs */
    ULONG Signature;
    USHORT Machine, NumberOfSections;
    ULONG TimeDateStamp, Unused[2];
    USHORT SizeOfOptionalHeader, Characteristics, Magic;
    USHORT LinkerVersion;
    ULONG Sizes[3], AddressOfEntryPoint, BaseOfCode, BaseOfData, ImageBase, Alignments[2];
    USHORT Versions[6];
    ULONG Win32VersionValue, SizeOfImage, SizeOfHeaders, CheckSum, Subsystem, Reserve[4], LoaderFlags, NumberOfRvaAndSizes;
    struct {
        ULONG Rva, Size;
    } Directory[16];
} PE_HEADERS;
#define DIRECTORY_EXPORT 0
#define DIRECTORY_IMPORT 1

typedef struct _EXPORT_DIRECTORY {
    ULONG Characteristics, TimeDateStamp, Version, Name, Base, NumberOfFunctions, NumberOfNames;
    ULONG AddressOfFunctions, AddressOfNames, AddressOfNameOrdinals;
} EXPORT_DIRECTORY;

typedef struct _IMPORT_DESCRIPTOR {
    ULONG OriginalFirstThunk, TimeDateStamp, ForwarderChain, Name, FirstThunk;
} IMPORT_DESCRIPTOR;

extern UCHAR __ImageBase[];

static PEB_LDR_DATA PebLdr;
static LDR_DATA_TABLE_ENTRY LdrpEntries[2];

PEB *NTAPI RtlPeb(void) {
    PEB *peb;
    __asm__("movl %%fs:0x30, %0" : "=r"(peb)); /* TEB32.ProcessEnvironmentBlock */
    return peb;
}

/* ---- Bytes and text */

void *memset(void *to, int value, SIZE_T size) {
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, SIZE_T size) {
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return start;
}

static BOOLEAN RtlpEqual(const char *a, const char *b) {
    for (; *a && *a == *b; a++, b++) {}
    return *a == *b;
}

static void RtlpInitUnicodeString(UNICODE_STRING *s, PCWSTR text) {
    ULONG n = 0;
    while (text[n]) n++;
    *s = (UNICODE_STRING){(USHORT)(n * 2), (USHORT)(n * 2 + 2), text};
}

static ULONG RtlpNumber(char *to, ULONG value, ULONG base, ULONG width, char pad) {
    char digits[24];
    ULONG n = 0, length = 0;
    do digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (n < width && n < sizeof digits) digits[n++] = pad;
    while (n) to[length++] = digits[--n];
    return length;
}

static ULONG RtlpFormat(char *buffer, ULONG size, const char *format, __builtin_va_list arguments) {
    ULONG n = 0;
    char digits[24];
    for (; *format && n + 1 < size; format++) {
        if (*format != '%') {
            buffer[n++] = *format;
            continue;
        }
        char pad = ' ';
        ULONG width = 0, length = 1;
        const char *text = digits;
        format++;
        if (*format == '0') pad = *format++;
        while (*format >= '0' && *format <= '9') width = width * 10 + (ULONG)(*format++ - '0');
        switch (*format) {
        case 'u': length = RtlpNumber(digits, __builtin_va_arg(arguments, ULONG), 10, width, pad); break;
        case 'x': length = RtlpNumber(digits, __builtin_va_arg(arguments, ULONG), 16, width, pad); break;
        case 's':
            text = __builtin_va_arg(arguments, const char *);
            for (length = 0; text[length];) length++;
            break;
        default: digits[0] = *format;
        }
        for (ULONG i = 0; i < length && n + 1 < size; i++) buffer[n++] = text[i];
    }
    buffer[n] = 0;
    return n;
}

ULONG RtlFormatText(char *buffer, ULONG size, const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    ULONG length = RtlpFormat(buffer, size, format, arguments);
    __builtin_va_end(arguments);
    return length;
}

void RtlNote(const char *format, ...) {
    char line[256];
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    ULONG length = RtlpFormat(line, sizeof line, format, arguments);
    __builtin_va_end(arguments);
    NtSetSystemInformation(SystemMinintNote, line, length);
}

ULONG NTAPI RtlArgument(const char *name, ULONG otherwise) {
    const UNICODE_STRING *line = &RtlPeb()->ProcessParameters->CommandLine;
    const WCHAR *at = line->Buffer, *end = at + line->Length / 2;
    while (at < end) {
        const char *expected = name;
        while (at < end && *expected && *at == (WCHAR)*expected) at++, expected++;
        if (!*expected && at < end && *at == '=') {
            ULONG value = 0;
            for (at++; at < end && *at >= '0' && *at <= '9'; at++) value = value * 10 + (ULONG)(*at - '0');
            return value;
        }
        while (at < end && *at != ' ') at++;
        while (at < end && *at == ' ') at++;
    }
    return otherwise;
}

/* ---- Services in fewer words */

void NTAPI RtlSleep(ULONG milliseconds) {
    LONG64 interval = -(LONG64)(10000ul * milliseconds);
    NtDelayExecution(FALSE, &interval);
}

HANDLE NTAPI RtlOpen(PCWSTR path, ULONG disposition) {
    UNICODE_STRING name;
    RtlpInitUnicodeString(&name, path);
    OBJECT_ATTRIBUTES_ARGUMENT attributes = {sizeof attributes, NULL, &name, 0x40, NULL, NULL};
    IO_STATUS_BLOCK status;
    HANDLE file = NULL;
    if (!NT_SUCCESS(NtCreateFile(&file, 0xc0100000, &attributes, &status, NULL, 0x80, 3, disposition, 0x60, NULL, 0)))
        return NULL;
    return file;
}

/* ---- The loader */

static PE_HEADERS *LdrpHeaders(UCHAR *base) { return (PE_HEADERS *)(base + *(ULONG *)(base + 0x3c)); }

static void *LdrpExport(UCHAR *base, const char *name) {
    EXPORT_DIRECTORY *exports = (EXPORT_DIRECTORY *)(base + LdrpHeaders(base)->Directory[DIRECTORY_EXPORT].Rva);
    ULONG *names = (ULONG *)(base + exports->AddressOfNames), *functions = (ULONG *)(base + exports->AddressOfFunctions);
    USHORT *ordinals = (USHORT *)(base + exports->AddressOfNameOrdinals);
    for (ULONG n = 0; n < exports->NumberOfNames; n++)
        if (RtlpEqual(name, (char *)base + names[n])) return base + functions[ordinals[n]];
    return NULL;
}

static void LdrpBindImports(UCHAR *base) { /* all from this DLL */
    IMPORT_DESCRIPTOR *import = (IMPORT_DESCRIPTOR *)(base + LdrpHeaders(base)->Directory[DIRECTORY_IMPORT].Rva);
    for (; import->Name; import++) {
        ULONG *names = (ULONG *)(base + import->OriginalFirstThunk), *thunk = (ULONG *)(base + import->FirstThunk), old;
        void *page = thunk;
        SIZE_T size = 1;
        for (ULONG n = 0; names[n]; n++) size = (n + 1) * sizeof *thunk;
        NtProtectVirtualMemory(NT_CURRENT_PROCESS, &page, &size, PAGE_READWRITE, &old);
        for (; *names; names++, thunk++) *thunk = (ULONG)LdrpExport(__ImageBase, (char *)base + *names + 2);
        NtProtectVirtualMemory(NT_CURRENT_PROCESS, &page, &size, old, &old);
    }
}

static void LdrpAppend(LIST_ENTRY *list, LIST_ENTRY *entry) {
    entry->Flink = list;
    entry->Blink = list->Blink;
    list->Blink->Flink = entry;
    list->Blink = entry;
}

static void LdrpInsert(LDR_DATA_TABLE_ENTRY *entry, UCHAR *base, UNICODE_STRING full_name) {
    PE_HEADERS *headers = LdrpHeaders(base);
    ULONG start = full_name.Length / 2;
    while (start && full_name.Buffer[start - 1] != '\\') start--;
    entry->DllBase = base;
    entry->EntryPoint = base + headers->AddressOfEntryPoint;
    entry->SizeOfImage = headers->SizeOfImage;
    entry->TimeDateStamp = headers->TimeDateStamp;
    entry->FullDllName = full_name;
    entry->BaseDllName.Buffer = full_name.Buffer + start;
    entry->BaseDllName.Length = full_name.Length - (USHORT)(start * 2);
    entry->BaseDllName.MaximumLength = entry->BaseDllName.Length + 2;
    LdrpAppend(&PebLdr.InLoadOrderModuleList, &entry->InLoadOrderLinks);
    LdrpAppend(&PebLdr.InMemoryOrderModuleList, &entry->InMemoryOrderLinks);
}

static void LdrpInitializeProcess(PEB *peb) {
    UNICODE_STRING name;
    LIST_ENTRY *lists = &PebLdr.InLoadOrderModuleList;
    for (ULONG n = 0; n < 3; n++) lists[n].Flink = lists[n].Blink = &lists[n];
    PebLdr.Length = sizeof PebLdr;
    LdrpInsert(&LdrpEntries[0], peb->ImageBaseAddress, peb->ProcessParameters->ImagePathName);
    RtlpInitUnicodeString(&name, L"C:\\Windows\\SysWOW64\\ntdll.dll");
    LdrpInsert(&LdrpEntries[1], __ImageBase, name);
    LdrpAppend(&PebLdr.InInitializationOrderModuleList, &LdrpEntries[1].InInitializationOrderLinks);
    LdrpBindImports(peb->ImageBaseAddress);
    PebLdr.Initialized = TRUE;
    peb->Ldr = &PebLdr;
}

/* Called first on every thread; a process's other threads are created only when its first one is past this. */
void NTAPI LdrpInitialize(void) {
    PEB *peb = RtlPeb();
    if (!peb->Ldr) LdrpInitializeProcess(peb);
}

NOINLINE void NTAPI RtlUserThreadStart(THREAD_START start, void *argument) {
    start(argument);
    NtTerminateThread(NT_CURRENT_THREAD, 0);
}

int NTAPI DllMain(void) { return 1; }
