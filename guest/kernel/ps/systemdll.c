/* The DLLs that the kernel knows: ntdll.dll, and the 32-bit one for WOW64 processes. What it calls or fills in them it finds by
 * their export tables (of the file: RVAs go through the section headers). */
#include "io/io.h"
#include "psp.h"

MM_SECTION *PspSystemDllSection;
void *PspLdrInitializeThunk, *PspLdrSystemDllInitBlock;

typedef struct _PSP_IMAGE {
    UCHAR *Bytes;
    ULONG Size;
} PSP_IMAGE;

static void *PspAtRva(const PSP_IMAGE *image, ULONG rva, ULONG size) {
    UCHAR *header = image->Bytes + *(ULONG *)(image->Bytes + 0x3C);
    UCHAR *section = header + 24 + *(USHORT *)(header + 20);
    for (ULONG i = 0; i < *(USHORT *)(header + 6); i++, section += 40) {
        ULONG start = *(ULONG *)(section + 12), raw = *(ULONG *)(section + 16), offset = *(ULONG *)(section + 20);
        if (rva < start || rva - start >= raw || size > raw - (rva - start)) continue;
        return offset + raw <= image->Size ? image->Bytes + offset + (rva - start) : NULL;
    }
    return NULL;
}

static ULONG PspExportRva(const PSP_IMAGE *image, const char *name) {
    UCHAR *optional = image->Bytes + *(ULONG *)(image->Bytes + 0x3C) + 24;
    ULONG *exports = PspAtRva(image, *(ULONG *)(optional + (*(USHORT *)optional == 0x10B ? 96 : 112)), 40);
    if (!exports) return 0;
    ULONG count = exports[6];
    ULONG *functions = PspAtRva(image, exports[7], exports[5] * 4), *names = PspAtRva(image, exports[8], count * 4);
    USHORT *ordinals = PspAtRva(image, exports[9], count * 2);
    if (!functions || !names || !ordinals) return 0;
    for (ULONG i = 0; i < count; i++) {
        const char *text = PspAtRva(image, names[i], 1);
        if (text && !strcmp(text, name)) return functions[ordinals[i]];
    }
    return 0;
}

static NTSTATUS PspReadWhole(FILE_OBJECT *file, PSP_IMAGE *image) {
    ULONG64 size;
    ULONG done;
    NTSTATUS status = IoQueryFileSize(file, &size);
    if (!NT_SUCCESS(status)) return status;
    image->Size = (ULONG)size;
    image->Bytes = ExAllocatePool(size, 'lldP');
    return image->Bytes ? IoReadFile(file, 0, image->Bytes, image->Size, &done) : STATUS_INSUFFICIENT_RESOURCES;
}

NTSTATUS PspLoadSystemDll(PCWSTR path, MM_SECTION **section, void **base, const PSP_EXPORT *exports, ULONG count) {
    FILE_OBJECT *file;
    MM_IMAGE information;
    PSP_IMAGE image = {NULL, 0};
    NTSTATUS status = IoOpenFile(path, FILE_OPEN, &file);
    if (!NT_SUCCESS(status)) return status;
    status = PspReadWhole(file, &image);
    if (NT_SUCCESS(status)) status = MmCreateSection(section, file, 0, PAGE_EXECUTE, SEC_IMAGE);
    if (NT_SUCCESS(status)) status = MmQueryImage(*section, &information);
    if (NT_SUCCESS(status)) *base = information.Base;
    for (ULONG i = 0; NT_SUCCESS(status) && i < count; i++) {
        ULONG rva = PspExportRva(&image, exports[i].Name);
        *exports[i].Address = (UCHAR *)information.Base + rva;
        if (!rva) status = STATUS_INVALID_IMAGE_FORMAT;
    }
    ExFreePool(image.Bytes);
    ObDereferenceObject(file);
    return status;
}

NTSTATUS PspLocateSystemDll(void) {
    const PSP_EXPORT exports[] = {{"LdrInitializeThunk", &PspLdrInitializeThunk}, {"LdrSystemDllInitBlock", &PspLdrSystemDllInitBlock}};
    void *base;
    PSP_VIEW view;
    NTSTATUS status =
        PspLoadSystemDll(L"\\Windows\\System32\\ntdll.dll", &PspSystemDllSection, &base, exports, ARRAYSIZE(exports));
    /* NT maps it into System too: the one VAD that System has */
    return NT_SUCCESS(status) ? PspMapImage(PsInitialSystemProcess, PspSystemDllSection, &view) : status;
}
