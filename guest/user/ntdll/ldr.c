/* ntdll.dll's loader: it fills PEB.Ldr, binds imports, loads further DLLs. In a WOW64 process that is wow64.dll, which takes over
 * every thread; the 32-bit image and its imports are the 32-bit ntdll.dll's affair. */
#include "../user.h"

typedef struct _DIRECTORY_RANGE {
    ULONG Rva, Size;
} DIRECTORY_RANGE;

/* The parts of PE32+ that the loader needs; names as in the PE format's specification. Up to BaseOfCode and from SectionAlignment
 * to DllCharacteristics a 32-bit image has the same. */
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
static void (*LdrpWow64Initialize)(THREAD_START start, void *argument); /* in a WOW64 process */
PS_SYSTEM_DLL_INIT_BLOCK LdrSystemDllInitBlock = {sizeof LdrSystemDllInitBlock}; /* the kernel writes a WOW64 process's */

static PE_HEADERS *LdrpHeaders(UCHAR *base) { return (PE_HEADERS *)(base + *(ULONG *)(base + 0x3c)); }

static BOOLEAN LdrpIs32Bit(UCHAR *base) { return LdrpHeaders(base)->Machine == IMAGE_FILE_MACHINE_I386; }

void *LdrpExport(UCHAR *base, const char *name) {
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

/* The loaded DLL of that name, ntdll.dll when there is none. */
static UCHAR *LdrpFindDll(const char *name) {
    for (LIST_ENTRY *at = PebLdr.InLoadOrderModuleList.Flink; at != &PebLdr.InLoadOrderModuleList; at = at->Flink) {
        LDR_DATA_TABLE_ENTRY *entry = CONTAINING_RECORD(at, LDR_DATA_TABLE_ENTRY, InLoadOrderLinks);
        PWSTR text = (PWSTR)entry->BaseDllName.Buffer;
        ULONG n = 0;
        while (n < entry->BaseDllName.Length / 2u && name[n] && text[n] == (WCHAR)name[n]) n++;
        if (n == entry->BaseDllName.Length / 2u && !name[n]) return entry->DllBase;
    }
    return __ImageBase;
}

static void LdrpBindImports(UCHAR *base) {
    DIRECTORY_RANGE range = LdrpHeaders(base)->Directory[DIRECTORY_IMPORT];
    if (!range.Size) return;
    for (IMPORT_DESCRIPTOR *import = (IMPORT_DESCRIPTOR *)(base + range.Rva); import->Name; import++) {
        ULONG64 *names = (ULONG64 *)(base + import->OriginalFirstThunk), *thunk = (ULONG64 *)(base + import->FirstThunk);
        UCHAR *dll = LdrpFindDll((char *)base + import->Name);
        void *page = thunk;
        SIZE_T size = 1;
        ULONG old;
        for (ULONG n = 0; names[n]; n++) size = (n + 1) * sizeof *thunk;
        NtProtectVirtualMemory(NT_CURRENT_PROCESS, &page, &size, PAGE_READWRITE, &old);
        for (; *names; names++, thunk++) *thunk = (ULONG64)LdrpExport(dll, (char *)base + *names + 2);
        NtProtectVirtualMemory(NT_CURRENT_PROCESS, &page, &size, old, &old);
    }
}

/* Looks through an image's unwind data once, as the table of functions is looked through for exceptions: from then on it
 * is in RAM until it is trimmed. */
static void LdrpCheckFunctionTable(UCHAR *base) {
    if (LdrpIs32Bit(base)) return;
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

/* A DLL by its full path; `path` stays in use. */
NTSTATUS LdrpLoadDll(PCWSTR path, void **base) {
    UNICODE_STRING name;
    HANDLE section, file = RtlOpen(path, 1);
    LDR_DATA_TABLE_ENTRY *entry = RtlAllocateHeap(NULL, 8, sizeof *entry);
    SIZE_T size = 0;
    *base = NULL;
    if (!file || !entry) return STATUS_NOT_FOUND;
    NTSTATUS status = NtCreateSection(&section, 0xf001f, NULL, NULL, PAGE_EXECUTE, SEC_IMAGE, file);
    if (NT_SUCCESS(status))
        status = NtMapViewOfSection(section, NT_CURRENT_PROCESS, base, 0, 0, NULL, &size, VIEW_UNMAP, 0, PAGE_EXECUTE_WRITECOPY);
    if (!NT_SUCCESS(status)) return status;
    NtClose(section);
    NtClose(file);
    RtlInitUnicodeString(&name, path);
    LdrpInsert(entry, *base, name);
    InsertTailList(&PebLdr.InInitializationOrderModuleList, &entry->InInitializationOrderLinks);
    LdrpBindImports(*base);
    return status;
}

static void LdrpLoadWow64(void) {
    void *base;
    NTSTATUS status = LdrpLoadDll(L"C:\\Windows\\System32\\wow64.dll", &base);
    if (NT_SUCCESS(status)) LdrpWow64Initialize = (void (*)(THREAD_START, void *))LdrpExport(base, "Wow64LdrpInitialize");
    else NtTerminateProcess(NT_CURRENT_PROCESS, status);
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
    if (LdrpIs32Bit(peb->ImageBaseAddress)) LdrpLoadWow64();
    else LdrpBindImports(peb->ImageBaseAddress);
    PebLdr.Initialized = TRUE;
    peb->Ldr = (void *)&PebLdr;
}

/* Called first on every thread; a process's other threads are created only when its first one is past this. Does not come back
 * where wow64.dll runs the thread. */
void LdrpInitialize(THREAD_START start, void *argument) {
    PEB *peb = RtlPeb();
    if (!peb->Ldr) LdrpInitializeProcess(peb);
    if (LdrpWow64Initialize) LdrpWow64Initialize(start, argument);
}
