/* ntdll.dll: starting processes and threads (the loader fills PEB.Ldr and binds imports), and what programs share.
 *
 * Every program imports from ntdll alone. Nothing here uses floating point: minint saves general registers only. */
#include "../user.h"

typedef struct _DIRECTORY_RANGE {
    ULONG Rva, Size;
} DIRECTORY_RANGE;

/* The parts of PE32+ that the loader needs; names as in the PE format's specification. */
typedef struct _PE_HEADERS {
    ULONG Signature;
    USHORT Machine, NumberOfSections;
    ULONG TimeDateStamp, PointerToSymbolTable, NumberOfSymbols;
    USHORT SizeOfOptionalHeader, Characteristics, Magic;
    UCHAR MajorLinkerVersion, MinorLinkerVersion;
    ULONG SizeOfCode, SizeOfInitializedData, SizeOfUninitializedData, AddressOfEntryPoint, BaseOfCode;
    ULONG64 ImageBase;
    ULONG SectionAlignment, FileAlignment;
    USHORT Versions[6];
    ULONG Win32VersionValue, SizeOfImage, SizeOfHeaders, CheckSum;
    USHORT Subsystem, DllCharacteristics;
    ULONG64 Reserve[4];
    ULONG LoaderFlags, NumberOfRvaAndSizes;
    DIRECTORY_RANGE Directory[16];
} PE_HEADERS;
#define DIRECTORY_EXPORT 0
#define DIRECTORY_IMPORT 1
#define DIRECTORY_EXCEPTION 3

typedef struct _EXPORT_DIRECTORY {
    ULONG Characteristics, TimeDateStamp, Version, Name, Base, NumberOfFunctions, NumberOfNames;
    ULONG AddressOfFunctions, AddressOfNames, AddressOfNameOrdinals;
} EXPORT_DIRECTORY;

typedef struct _RUNTIME_FUNCTION {
    ULONG Begin, End, UnwindInfo;
} RUNTIME_FUNCTION;

typedef struct _IMPORT_DESCRIPTOR {
    ULONG OriginalFirstThunk, TimeDateStamp, ForwarderChain, Name, FirstThunk;
} IMPORT_DESCRIPTOR;

extern UCHAR __ImageBase[];

static PEB_LDR_DATA PebLdr;
static LDR_DATA_TABLE_ENTRY LdrpEntries[2];
static char RtlpBootOptions[1024];

PEB *RtlPeb(void) {
    PEB *peb;
    __asm__("movq %%gs:%c1, %0" : "=r"(peb) : "i"(OFF__TEB__ProcessEnvironmentBlock));
    return peb;
}

/* ---- Bytes and strings */

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

int strcmp(const char *a, const char *b) {
    for (; *a && *a == *b; a++, b++) {}
    return (UCHAR)*a - (UCHAR)*b;
}

SIZE_T strlen(const char *s) {
    SIZE_T n = 0;
    while (s[n]) n++;
    return n;
}

SIZE_T wcslen(PCWSTR s) {
    SIZE_T n = 0;
    while (s[n]) n++;
    return n;
}

void RtlInitUnicodeString(UNICODE_STRING *s, PCWSTR text) {
    s->Buffer = (void *)text;
    s->Length = (USHORT)(wcslen(text) * 2);
    s->MaximumLength = s->Length + 2;
}

static SIZE_T RtlpNumber(char *to, ULONG64 value, ULONG base, ULONG width, char pad) {
    char digits[24];
    ULONG n = 0, length = 0;
    do digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (n < width && n < sizeof digits) digits[n++] = pad;
    while (n) to[length++] = digits[--n];
    return length;
}

static SIZE_T RtlpFormat(char *buffer, SIZE_T size, const char *format, __builtin_va_list arguments) {
    SIZE_T n = 0;
    char digits[24];
    for (; *format && n + 1 < size; format++) {
        if (*format != '%') {
            buffer[n++] = *format;
            continue;
        }
        char pad = ' ';
        ULONG width = 0;
        const char *text = digits;
        SIZE_T length = 1;
        format++;
        if (*format == '0') pad = *format++;
        while (*format >= '0' && *format <= '9') width = width * 10 + (*format++ - '0');
        switch (*format) {
        case 'u': length = RtlpNumber(digits, __builtin_va_arg(arguments, ULONG64), 10, width, pad); break;
        case 'x': length = RtlpNumber(digits, __builtin_va_arg(arguments, ULONG64), 16, width, pad); break;
        case 's':
            text = __builtin_va_arg(arguments, const char *);
            length = strlen(text);
            break;
        case 'c': digits[0] = (char)__builtin_va_arg(arguments, int); break;
        default: digits[0] = *format;
        }
        for (SIZE_T i = 0; i < length && n + 1 < size; i++) buffer[n++] = text[i];
    }
    buffer[n] = 0;
    return n;
}

SIZE_T RtlFormatText(char *buffer, SIZE_T size, const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    SIZE_T length = RtlpFormat(buffer, size, format, arguments);
    __builtin_va_end(arguments);
    return length;
}

void RtlNote(const char *format, ...) {
    char line[256];
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    SIZE_T length = RtlpFormat(line, sizeof line, format, arguments);
    __builtin_va_end(arguments);
    NtSetSystemInformation(SystemMinintNote, line, (ULONG)length);
}

/* ---- Options: NAME=number among words */

static ULONG64 RtlpOption(const char *words, const char *name, ULONG64 otherwise) {
    SIZE_T length = strlen(name);
    while (*words) {
        while (*words == ' ') words++;
        SIZE_T i = 0;
        while (i < length && words[i] == name[i]) i++;
        if (i == length && (words[i] == 0 || words[i] == ' ')) return 1;
        if (i == length && words[i] == '=') {
            ULONG64 value = 0;
            for (words += i + 1; *words >= '0' && *words <= '9'; words++) value = value * 10 + (*words - '0');
            return value;
        }
        while (*words && *words != ' ') words++;
    }
    return otherwise;
}

ULONG64 RtlBootOption(const char *name, ULONG64 otherwise) {
    if (!RtlpBootOptions[0]) {
        ULONG needed;
        if (!NT_SUCCESS(NtQuerySystemInformation(SystemMinintOptions, RtlpBootOptions, sizeof RtlpBootOptions, &needed)))
            return otherwise;
    }
    return RtlpOption(RtlpBootOptions, name, otherwise);
}

ULONG64 RtlArgument(const char *name, ULONG64 otherwise) {
    char words[256];
    UNICODE_STRING *line = &RtlPeb()->ProcessParameters->CommandLine;
    SIZE_T count = MIN(line->Length / 2, sizeof words - 1);
    for (SIZE_T i = 0; i < count; i++) words[i] = (char)((PCWSTR)line->Buffer)[i];
    words[count] = 0;
    return RtlpOption(words, name, otherwise);
}

/* ---- Services in fewer words */

void RtlSleep(ULONG milliseconds) {
    LONG64 interval = -10000ll * milliseconds;
    NtDelayExecution(FALSE, &interval);
}

HANDLE RtlOpen(PCWSTR path, ULONG disposition) {
    UNICODE_STRING name;
    RtlInitUnicodeString(&name, path);
    OBJECT_ATTRIBUTES_ARGUMENT attributes = {sizeof attributes, NULL, &name, 0x40, NULL, NULL};
    IO_STATUS_BLOCK status;
    HANDLE file = NULL;
    if (!NT_SUCCESS(NtCreateFile(&file, 0xc0100000, &attributes, &status, NULL, 0x80, 3, disposition, 0x60, NULL, 0)))
        return NULL;
    return file;
}

NTSTATUS RtlStartProgram(PCWSTR image, PCWSTR command_line) {
    RTL_USER_PROCESS_PARAMETERS parameters;
    HANDLE process, thread;
    memset(&parameters, 0, sizeof parameters);
    parameters.MaximumLength = parameters.Length = sizeof parameters;
    RtlInitUnicodeString(&parameters.ImagePathName, image);
    RtlInitUnicodeString(&parameters.CommandLine, command_line);
    NTSTATUS status = NtCreateUserProcess(&process, &thread, 0x2000000, 0x2000000, NULL, NULL, 0, 0, &parameters, NULL, NULL);
    if (NT_SUCCESS(status)) {
        NtClose(thread);
        NtClose(process);
    } else {
        RtlNote("%x: no process started", (ULONG64)(ULONG)status);
    }
    return status;
}

/* ---- The loader */

static PE_HEADERS *LdrpHeaders(UCHAR *base) { return (PE_HEADERS *)(base + *(ULONG *)(base + 0x3c)); }

static void *LdrpExport(UCHAR *base, const char *name) {
    EXPORT_DIRECTORY *exports = (EXPORT_DIRECTORY *)(base + LdrpHeaders(base)->Directory[DIRECTORY_EXPORT].Rva);
    ULONG *names = (ULONG *)(base + exports->AddressOfNames), *functions = (ULONG *)(base + exports->AddressOfFunctions);
    USHORT *ordinals = (USHORT *)(base + exports->AddressOfNameOrdinals);
    for (ULONG low = 0, high = exports->NumberOfNames; low < high;) { /* sorted by the linker */
        ULONG middle = (low + high) / 2;
        int order = strcmp(name, (char *)base + names[middle]);
        if (order == 0) return base + functions[ordinals[middle]];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}

static void LdrpBindImports(UCHAR *base) {
    DIRECTORY_RANGE range = LdrpHeaders(base)->Directory[DIRECTORY_IMPORT];
    if (!range.Size) return;
    for (IMPORT_DESCRIPTOR *import = (IMPORT_DESCRIPTOR *)(base + range.Rva); import->Name; import++) {
        ULONG64 *names = (ULONG64 *)(base + import->OriginalFirstThunk), *thunk = (ULONG64 *)(base + import->FirstThunk);
        void *page = thunk;
        SIZE_T size = 1;
        ULONG old;
        for (ULONG n = 0; names[n]; n++) size = (n + 1) * sizeof *thunk;
        NtProtectVirtualMemory(NT_CURRENT_PROCESS, &page, &size, PAGE_READWRITE, &old);
        for (; *names; names++, thunk++) *thunk = (ULONG64)LdrpExport(__ImageBase, (char *)base + *names + 2);
        NtProtectVirtualMemory(NT_CURRENT_PROCESS, &page, &size, old, &old);
    }
}

/* Looks through an image's unwind data once, as the table of functions is looked through for exceptions: from then on it
 * is in RAM until it is trimmed. */
static void LdrpCheckFunctionTable(UCHAR *base) {
    DIRECTORY_RANGE range = LdrpHeaders(base)->Directory[DIRECTORY_EXCEPTION];
    RUNTIME_FUNCTION *table = (RUNTIME_FUNCTION *)(base + range.Rva);
    for (ULONG n = 0; n < range.Size / sizeof *table; n++) (void)*(volatile ULONG *)(base + table[n].UnwindInfo);
}

static void LdrpInsert(LDR_DATA_TABLE_ENTRY *entry, UCHAR *base, UNICODE_STRING full_name) {
    PE_HEADERS *headers = LdrpHeaders(base);
    PWSTR text = (PWSTR)full_name.Buffer;
    ULONG start = full_name.Length / 2;
    while (start && text[start - 1] != '\\') start--;
    entry->DllBase = base;
    entry->EntryPoint = base + headers->AddressOfEntryPoint;
    entry->SizeOfImage = headers->SizeOfImage;
    entry->TimeDateStamp = headers->TimeDateStamp;
    LdrpCheckFunctionTable(base);
    entry->FullDllName = full_name;
    entry->BaseDllName.Buffer = (void *)(text + start);
    entry->BaseDllName.Length = full_name.Length - (USHORT)(start * 2);
    entry->BaseDllName.MaximumLength = entry->BaseDllName.Length + 2;
    InsertTailList(&PebLdr.InLoadOrderModuleList, &entry->InLoadOrderLinks);
    InsertTailList(&PebLdr.InMemoryOrderModuleList, &entry->InMemoryOrderLinks);
}

static void LdrpInitializeProcess(PEB *peb) {
    UNICODE_STRING name;
    PebLdr.Length = sizeof PebLdr;
    InitializeListHead(&PebLdr.InLoadOrderModuleList);
    InitializeListHead(&PebLdr.InMemoryOrderModuleList);
    InitializeListHead(&PebLdr.InInitializationOrderModuleList);
    LdrpInsert(&LdrpEntries[0], peb->ImageBaseAddress, peb->ProcessParameters->ImagePathName);
    RtlInitUnicodeString(&name, L"C:\\Windows\\System32\\ntdll.dll");
    LdrpInsert(&LdrpEntries[1], __ImageBase, name);
    InsertTailList(&PebLdr.InInitializationOrderModuleList, &LdrpEntries[1].InInitializationOrderLinks);
    LdrpBindImports(peb->ImageBaseAddress);
    PebLdr.Initialized = TRUE;
    peb->Ldr = (void *)&PebLdr;
}

/* Called first on every thread; a process's other threads are created only when its first one is past this. */
void LdrpInitialize(void) {
    PEB *peb = RtlPeb();
    if (!peb->Ldr) LdrpInitializeProcess(peb);
}

NOINLINE void RtlUserThreadStart(THREAD_START start, void *argument) {
    start(argument);
    NtTerminateThread(NT_CURRENT_THREAD, STATUS_SUCCESS);
}

int DllMain(void) { return 1; }
