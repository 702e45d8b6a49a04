/* Kernel images from the volume: laid out, relocated, bound to what ntoskrnl.exe exports, mapped with each section's own
 * protection, announced; and taken out again. Facts: the PE format's specification.
 *
 * Nothing of a driver is paged or thrown away: NT's PAGE and INIT sections stay here. */
#include "io/io.h"
#include "mi.h"

#define LARGEST_IMAGE (16u << 20)
#define MACHINE_AMD64 0x8664
#define MAGIC_PE32_PLUS 0x20B
#define DIRECTORY_EXPORT 0
#define DIRECTORY_IMPORT 1
#define DIRECTORY_RELOCATION 5
#define SECTION_EXECUTE 0x20000000
#define SECTION_WRITE 0x80000000
#define RELOCATION_ABSOLUTE 0
#define RELOCATION_DIR64 10

typedef struct _MI_PE_HEADERS {
    ULONG Signature;
    USHORT Machine, NumberOfSections;
    ULONG TimeDateStamp, PointerToSymbolTable, NumberOfSymbols;
    USHORT SizeOfOptionalHeader, Characteristics, Magic, LinkerVersion;
    ULONG SizeOfCode, SizeOfInitializedData, SizeOfUninitializedData, AddressOfEntryPoint, BaseOfCode;
    ULONG64 ImageBase;
    ULONG SectionAlignment, FileAlignment;
    USHORT Versions[6];
    ULONG Win32VersionValue, SizeOfImage, SizeOfHeaders, CheckSum;
    USHORT Subsystem, DllCharacteristics;
    ULONG64 Reserve[4];
    ULONG LoaderFlags, NumberOfRvaAndSizes;
    struct {
        ULONG Rva, Size;
    } Directory[16];
} MI_PE_HEADERS;

typedef struct _MI_PE_SECTION {
    CHAR Name[8];
    ULONG VirtualSize, VirtualAddress, SizeOfRawData, PointerToRawData, Unused[3], Characteristics;
} MI_PE_SECTION;

/* An image being loaded: a copy in pool as it will be in memory, `Size` bytes in whole pages, to be mapped at `Base`. */
typedef struct _MI_LOADING {
    UCHAR *Bytes;
    ULONG Size;
    ULONG64 Base;
    MI_PE_HEADERS *Headers;
    MI_PE_SECTION *Sections;
} MI_LOADING;

static EX_PUSH_LOCK MmSystemLoadLock;

/* `size` bytes at `rva` of the image, NULL when they are not all inside. */
static void *MiAtRva(const MI_LOADING *image, ULONG rva, ULONG size) {
    return rva <= image->Size && size <= image->Size - rva ? image->Bytes + rva : NULL;
}

static const char *MiTextAtRva(const MI_LOADING *image, ULONG rva) {
    for (ULONG end = rva; end < image->Size; end++)
        if (!image->Bytes[end]) return (const char *)image->Bytes + rva;
    return NULL;
}

static NTSTATUS MiReadWholeFile(PCWSTR path, UCHAR **bytes, ULONG *size) {
    FILE_OBJECT *file;
    ULONG64 length;
    ULONG done = 0;
    NTSTATUS status = IoOpenFile(path, FILE_OPEN, &file);
    if (!NT_SUCCESS(status)) return status;
    status = IoQueryFileSize(file, &length);
    if (NT_SUCCESS(status) && (length < PAGE_SIZE / 4 || length > LARGEST_IMAGE)) status = STATUS_INVALID_IMAGE_FORMAT;
    *bytes = NT_SUCCESS(status) ? ExAllocatePool(length, 'dLmM') : NULL;
    if (NT_SUCCESS(status)) status = *bytes ? IoReadFile(file, 0, *bytes, (ULONG)length, &done) : STATUS_INSUFFICIENT_RESOURCES;
    ObDereferenceObject(file);
    if (!NT_SUCCESS(status) && *bytes) ExFreePool(*bytes);
    *size = done;
    return status;
}

static NTSTATUS MiLayOutImage(const UCHAR *file, ULONG size, MI_LOADING *image) {
    ULONG at = *(const ULONG *)(file + 0x3C);
    const MI_PE_HEADERS *headers = (const MI_PE_HEADERS *)(file + at);
    if (*(const USHORT *)file != 0x5A4D || at > size - sizeof *headers) return STATUS_INVALID_IMAGE_FORMAT;
    ULONG sections = at + 24 + headers->SizeOfOptionalHeader, count = headers->NumberOfSections;
    if (headers->Signature != 0x4550 || headers->Machine != MACHINE_AMD64 || headers->Magic != MAGIC_PE32_PLUS ||
        headers->NumberOfRvaAndSizes != 16 || headers->SizeOfImage > LARGEST_IMAGE || headers->SizeOfHeaders > size ||
        headers->SizeOfHeaders > headers->SizeOfImage || sections + count * sizeof(MI_PE_SECTION) > headers->SizeOfHeaders)
        return STATUS_INVALID_IMAGE_FORMAT;
    image->Size = (ULONG)ROUND_TO_PAGES(headers->SizeOfImage);
    image->Bytes = ExAllocatePool(image->Size, 'dLmM');
    if (!image->Bytes) return STATUS_INSUFFICIENT_RESOURCES;
    memcpy(image->Bytes, file, headers->SizeOfHeaders);
    image->Headers = (MI_PE_HEADERS *)(image->Bytes + at);
    image->Sections = (MI_PE_SECTION *)(image->Bytes + sections);
    for (MI_PE_SECTION *section = image->Sections; section < image->Sections + count; section++) {
        ULONG raw = MIN(section->SizeOfRawData, (ULONG)ROUND_TO_PAGES(section->VirtualSize));
        void *to = MiAtRva(image, section->VirtualAddress, raw);
        if (!to || section->PointerToRawData > size || raw > size - section->PointerToRawData) return STATUS_INVALID_IMAGE_FORMAT;
        memcpy(to, file + section->PointerToRawData, raw);
    }
    return STATUS_SUCCESS;
}

static NTSTATUS MiRelocateImage(MI_LOADING *image) {
    ULONG64 delta = image->Base - image->Headers->ImageBase;
    ULONG at = image->Headers->Directory[DIRECTORY_RELOCATION].Rva, end = at + image->Headers->Directory[DIRECTORY_RELOCATION].Size;
    while (at < end) {
        ULONG *block = MiAtRva(image, at, 8);
        if (!block || block[1] < 8 || !MiAtRva(image, at, block[1])) return STATUS_INVALID_IMAGE_FORMAT;
        for (USHORT *entry = (USHORT *)(block + 2); entry < (USHORT *)((UCHAR *)block + block[1]); entry++) {
            ULONG64 *place = MiAtRva(image, block[0] + (*entry & 0xFFF), 8);
            if (*entry >> 12 == RELOCATION_ABSOLUTE) continue;
            if (*entry >> 12 != RELOCATION_DIR64 || !place) return STATUS_INVALID_IMAGE_FORMAT;
            *place += delta;
        }
        at += block[1];
    }
    image->Headers->ImageBase = image->Base;
    return STATUS_SUCCESS;
}

/* The address of what ntoskrnl.exe exports under `name`; 0 for what it does not. */
static ULONG64 MiKernelExport(const char *name) {
    UCHAR *base = (UCHAR *)KeLoaderBlock->KernelBase;
    MI_PE_HEADERS *headers = (MI_PE_HEADERS *)(base + *(ULONG *)(base + 0x3C));
    ULONG *exports = (ULONG *)(base + headers->Directory[DIRECTORY_EXPORT].Rva);
    ULONG *functions = (ULONG *)(base + exports[7]), *names = (ULONG *)(base + exports[8]);
    USHORT *ordinals = (USHORT *)(base + exports[9]);
    for (ULONG n = 0; n < exports[6]; n++)
        if (!strcmp((const char *)base + names[n], name)) return (ULONG64)(base + functions[ordinals[n]]);
    return 0;
}

static NTSTATUS MiBindImports(MI_LOADING *image) {
    ULONG at = image->Headers->Directory[DIRECTORY_IMPORT].Rva;
    for (ULONG *import; at && (import = MiAtRva(image, at, 20)) && import[3]; at += 20) {
        const char *library = MiTextAtRva(image, import[3]);
        if (!library || strcmp(library, "ntoskrnl.exe")) return STATUS_OBJECT_NAME_NOT_FOUND;
        for (ULONG n = 0;; n++) {
            ULONG64 *name = MiAtRva(image, import[0] + 8 * n, 8), *thunk = MiAtRva(image, import[4] + 8 * n, 8);
            if (!name || !thunk) return STATUS_INVALID_IMAGE_FORMAT;
            if (!*name) break;
            const char *text = *name >> 63 ? NULL : MiTextAtRva(image, (ULONG)*name + 2);
            *thunk = text ? MiKernelExport(text) : 0;
            if (!*thunk) {
                KdEvent("{\"event\":\"import-failed\",\"name\":\"%s\"}", text ? text : "(by ordinal)");
                return STATUS_NOT_FOUND;
            }
        }
    }
    return STATUS_SUCCESS;
}

static ULONG MiProtectionAt(const MI_LOADING *image, ULONG rva) {
    for (MI_PE_SECTION *section = image->Sections; section < image->Sections + image->Headers->NumberOfSections; section++) {
        if (rva < section->VirtualAddress || rva - section->VirtualAddress >= ROUND_TO_PAGES(section->VirtualSize)) continue;
        if (section->Characteristics & SECTION_WRITE) return MM_READWRITE;
        return section->Characteristics & SECTION_EXECUTE ? MM_EXECUTE_READ : MM_READONLY;
    }
    return MM_READONLY;
}

static void MiUnmapImage(ULONG64 base, ULONG size) {
    MiUnmapKernelPages(base, size >> PAGE_SHIFT);
    MiReleaseSystemPtes(base, size >> PAGE_SHIFT);
}

static NTSTATUS MiMapImage(const MI_LOADING *image) {
    for (ULONG rva = 0; rva < image->Size; rva += PAGE_SIZE) {
        PFN_NUMBER frame = MiKernelPage(image->Base + rva, MiProtectionAt(image, rva));
        if (frame == MI_NOFRAME) {
            MiUnmapImage(image->Base, image->Size);
            return STATUS_INSUFFICIENT_RESOURCES;
        }
        memcpy(MiF2V(frame), image->Bytes + rva, PAGE_SIZE);
    }
    return STATUS_SUCCESS;
}

static PCWSTR MiBaseName(PCWSTR path) {
    PCWSTR name = path;
    for (; *path; path++)
        if (*path == '\\') name = path + 1;
    return name;
}

static KLDR_DATA_TABLE_ENTRY *MiLoadedModule(PCWSTR name) {
    for (LIST_ENTRY *e = PsLoadedModuleList.Flink; e != &PsLoadedModuleList; e = e->Flink) {
        KLDR_DATA_TABLE_ENTRY *entry = CONTAINING_RECORD(e, KLDR_DATA_TABLE_ENTRY, InLoadOrderLinks);
        if (!RtlCompareWideNoCase((PCWSTR)entry->BaseDllName.Buffer, entry->BaseDllName.Length / 2, name, wcslen(name))) return entry;
    }
    return NULL;
}

/* Under MmSystemLoadLock. */
static NTSTATUS MiLoadSystemImage(PCWSTR path, KLDR_DATA_TABLE_ENTRY **result) {
    MI_LOADING image = {0};
    UCHAR *file;
    ULONG size;
    if (MiLoadedModule(MiBaseName(path))) return STATUS_IMAGE_ALREADY_LOADED;
    NTSTATUS status = MiReadWholeFile(path, &file, &size);
    if (!NT_SUCCESS(status)) return status;
    status = MiLayOutImage(file, size, &image);
    ExFreePool(file);
    if (NT_SUCCESS(status) && !(image.Base = MiReserveSystemPtes(image.Size >> PAGE_SHIFT))) status = STATUS_INSUFFICIENT_RESOURCES;
    if (NT_SUCCESS(status)) status = MiRelocateImage(&image);
    if (NT_SUCCESS(status)) status = MiBindImports(&image);
    if (NT_SUCCESS(status)) status = MiMapImage(&image);
    else if (image.Base) MiReleaseSystemPtes(image.Base, image.Size >> PAGE_SHIFT);
    if (NT_SUCCESS(status)) {
        void *entry = (void *)(image.Base + image.Headers->AddressOfEntryPoint);
        *result = MiProcessLoaderEntry(path, MiBaseName(path), (void *)image.Base, image.Size, entry);
        if (!*result) {
            MiUnmapImage(image.Base, image.Size);
            status = STATUS_INSUFFICIENT_RESOURCES;
        }
    }
    if (image.Bytes) ExFreePool(image.Bytes);
    return status;
}

NTSTATUS MmLoadSystemImage(PCWSTR Path, KLDR_DATA_TABLE_ENTRY **Entry) {
    ExAcquirePushLockExclusive(&MmSystemLoadLock);
    NTSTATUS status = MiLoadSystemImage(Path, Entry);
    ExReleasePushLockExclusive(&MmSystemLoadLock);
    if (NT_SUCCESS(status)) PsNotifySystemImage((UNICODE_STRING *)&(*Entry)->FullDllName, (*Entry)->DllBase, (*Entry)->SizeOfImage);
    return status;
}

/* Where NT takes an image out whose last reference is gone. */
NOINLINE void MiUnloadSystemImage(KLDR_DATA_TABLE_ENTRY *Entry) {
    KdEvent("{\"event\":\"driver-unload\",\"base\":\"%p\",\"size\":\"%#x\",\"path\":\"%ws\"}", Entry->DllBase, Entry->SizeOfImage,
            (PCWSTR)Entry->FullDllName.Buffer);
    RemoveEntryList((LIST_ENTRY *)&Entry->InLoadOrderLinks);
    MiUnmapImage((ULONG64)Entry->DllBase, Entry->SizeOfImage);
    ExFreePool((void *)Entry->FullDllName.Buffer);
    ExFreePool((void *)Entry->BaseDllName.Buffer);
    ExFreePool(Entry);
}

void MmUnloadSystemImage(KLDR_DATA_TABLE_ENTRY *Entry) {
    ExAcquirePushLockExclusive(&MmSystemLoadLock);
    MiUnloadSystemImage(Entry);
    ExReleasePushLockExclusive(&MmSystemLoadLock);
}
