/* User processes: image and ntdll.dll mapped, PEB, process parameters, TEBs and stacks as NT lays them out. */
#include "io/io.h"
#include "ke/ki.h"
#include "psp.h"

/* ---- PEB, parameters, TEB */

NTSTATUS PspAllocate(EPROCESS *process, SIZE_T size, void **base) {
    *base = NULL;
    return MmAllocateVirtualMemory(process, base, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
}

NTSTATUS PspWrite(EPROCESS *process, void *to, const void *from, SIZE_T size) {
    return MmCopyProcess(process, to, (void *)from, size, TRUE);
}

/* Normalised RTL_USER_PROCESS_PARAMETERS: the strings behind the structure, in one allocation. */
static NTSTATUS PspMakeParameters(EPROCESS *process, PCWSTR path, PCWSTR command_line, void **parameters) {
    SIZE_T total = 0x1000;
    UCHAR *block = ExAllocatePool(total, 'rapP'), *user;
    if (!block) return STATUS_INSUFFICIENT_RESOURCES;
    NTSTATUS status = PspAllocate(process, total, (void **)&user);
    RTL_USER_PROCESS_PARAMETERS *p = (RTL_USER_PROCESS_PARAMETERS *)block;
    SIZE_T at = sizeof *p;
    const PCWSTR texts[] = {path, command_line, L"C:\\Windows\\System32\\", L"C:\\Windows\\System32"};
    UNICODE_STRING *strings[] = {&p->ImagePathName, &p->CommandLine, &p->CurrentDirectory.DosPath, &p->DllPath};
    for (ULONG i = 0; i < ARRAYSIZE(texts); i++) {
        SIZE_T bytes = wcslen(texts[i]) * 2;
        if (at + bytes + 2 > total) {
            ExFreePool(block);
            return STATUS_INVALID_PARAMETER;
        }
        memcpy(block + at, texts[i], bytes);
        strings[i]->Buffer = (void *)(user + at);
        strings[i]->Length = (USHORT)bytes;
        strings[i]->MaximumLength = (USHORT)(bytes + 2);
        at = (at + bytes + 2 + 7) & ~7ull;
    }
    p->MaximumLength = p->Length = (ULONG)at;
    p->Flags = 1; /* normalised */
    if (NT_SUCCESS(status)) status = PspWrite(process, user, block, at);
    ExFreePool(block);
    *parameters = user;
    return status;
}

static NTSTATUS PspMakePeb(EPROCESS *process, PCWSTR path, PCWSTR command_line, void *image_base) {
    PEB *peb = ExAllocatePool(sizeof(PEB), 'bePP');
    void *user, *parameters;
    if (!peb) return STATUS_INSUFFICIENT_RESOURCES;
    NTSTATUS status = PspAllocate(process, sizeof(PEB), &user);
    if (NT_SUCCESS(status)) status = PspMakeParameters(process, path, command_line, &parameters);
    if (NT_SUCCESS(status)) {
        peb->ImageBaseAddress = image_base;
        peb->ProcessParameters = parameters;
        peb->Mutant = (HANDLE)-1ll;
        peb->NumberOfProcessors = KeNumberProcessors;
        peb->OSMajorVersion = NT_LAYOUT_MAJOR;
        peb->OSMinorVersion = NT_LAYOUT_MINOR;
        peb->OSBuildNumber = NT_LAYOUT_BUILD;
        peb->OSPlatformId = 2;
        peb->ImageSubsystem = 1;
        status = PspWrite(process, user, peb, sizeof(PEB));
    }
    process->Peb = user;
    ExFreePool(peb);
    return status;
}

NTSTATUS PspMakeStack(EPROCESS *process, PSP_STACK *stack) {
    SIZE_T reserve = PSP_USER_STACK_RESERVE, commit = PSP_USER_STACK_COMMIT;
    stack->Allocation = NULL;
    NTSTATUS status = MmAllocateVirtualMemory(process, &stack->Allocation, &reserve, MEM_RESERVE, PAGE_READWRITE);
    if (!NT_SUCCESS(status)) return status;
    stack->Base = (UCHAR *)stack->Allocation + reserve;
    stack->Limit = stack->Base - commit;
    void *limit = stack->Limit;
    return MmAllocateVirtualMemory(process, &limit, &commit, MEM_COMMIT, PAGE_READWRITE);
}

NTSTATUS PspCreateUserThread(EPROCESS *process, void *start, void *argument, ETHREAD **thread) {
    PSP_STACK stack;
    void *user_teb;
    BOOLEAN wow64 = PsWow64Process(process) != NULL;
    NTSTATUS status = PspMakeStack(process, &stack);
    if (NT_SUCCESS(status)) status = PspAllocate(process, wow64 ? PS_TEB32_OFFSET + sizeof(TEB32) : sizeof(TEB), &user_teb);
    TEB *teb = ExAllocatePool(sizeof(TEB), 'beTP');
    if (!teb) status = STATUS_INSUFFICIENT_RESOURCES;
    if (!NT_SUCCESS(status)) return status;
    KTRAP_FRAME frame;
    memset(&frame, 0, sizeof frame);
    frame.Rip = (ULONG64)PspLdrInitializeThunk;
    frame.Rcx = (ULONG64)start;
    frame.Rdx = (ULONG64)argument;
    frame.Rsp = (ULONG64)stack.Base - 0x58; /* 16 n - 8; the zeroed stack gives the null return address and home space */
    frame.SegCs = KGDT64_R3_CODE | 3;
    frame.SegSs = KGDT64_R3_DATA | 3;
    frame.EFlags = 0x202;
    status = PspCreateThread(process, NULL, NULL, &frame, user_teb, thread);
    if (NT_SUCCESS(status)) {
        teb->NtTib.StackBase = stack.Base;
        teb->NtTib.StackLimit = stack.Limit;
        teb->NtTib.Self = user_teb;
        teb->ClientId = teb->RealClientId = (*thread)->Cid;
        teb->ProcessEnvironmentBlock = process->Peb;
        teb->DeallocationStack = stack.Allocation;
        if (wow64) status = PspMakeTeb32(process, *thread, teb);
        if (NT_SUCCESS(status)) status = PspWrite(process, user_teb, teb, sizeof(TEB));
        (*thread)->Win32StartAddress = start;
        ObReferenceObject(*thread); /* one for the running thread, one for the caller */
        PspStartThread(*thread);
    }
    ExFreePool(teb);
    return status;
}

/* ---- Processes */

/* \??\C:\x, C:\x, \SystemRoot\x and \x all lie on the one volume; the audit name is the object manager's. */
static void PspNameProcess(EPROCESS *process, PCWSTR path) {
    static const WCHAR volume[] = L"\\Device\\HarddiskVolume1";
    SIZE_T skip = path[0] && path[1] == ':' ? 2 : !RtlCompareWideNoCase(path, MIN(wcslen(path), 6), L"\\??\\C:", 6) ? 6 : 0;
    SIZE_T length = wcslen(path + skip), prefix = ARRAYSIZE(volume) - 1;
    OBJECT_NAME_INFORMATION *name = ExAllocatePool(sizeof *name + (prefix + length + 1) * 2, 'mNbO');
    if (!name) return;
    WCHAR *text = (WCHAR *)(name + 1);
    memcpy(text, volume, prefix * 2);
    memcpy(text + prefix, path + skip, length * 2);
    name->Name.Buffer = (void *)text;
    name->Name.Length = (USHORT)((prefix + length) * 2);
    name->Name.MaximumLength = name->Name.Length + 2;
    process->SeAuditProcessCreationInfo.ImageFileName = name;
}

static void PspBaseName(PCWSTR path, CHAR name[16]) {
    SIZE_T end = wcslen(path), start = end;
    while (start && path[start - 1] != '\\') start--;
    ULONG n = 0;
    for (; n < 14 && start < end; n++, start++) name[n] = (CHAR)path[start];
    name[n] = 0;
}

typedef struct _IMAGE_INFO { /* ntddk.h */
    ULONG Properties;
    void *ImageBase;
    ULONG ImageSelector;
    SIZE_T ImageSize;
    ULONG ImageSectionNumber;
} IMAGE_INFO;
#define IMAGE_ADDRESSING_MODE_32BIT 3
#define SYSTEM_MODE_IMAGE 0x100 /* the ninth bit of Properties */

/* Called for every image that is mapped into a process, or loaded as a driver (`pid` 0), with the file's name; NT calls the
 * registered routines here. */
NOINLINE void PsCallImageNotifyRoutines(UNICODE_STRING *name, HANDLE pid, IMAGE_INFO *info, FILE_OBJECT *file) {
    KdEvent("{\"event\":\"%s\",\"pid\":%u,\"base\":\"%p\",\"size\":\"%#llx\",\"path\":\"%ws\"}", pid ? "image" : "driver",
            (ULONG)(ULONG64)pid, info->ImageBase, (ULONG64)info->ImageSize, (PCWSTR)name->Buffer);
}

void PsNotifyImage(EPROCESS *process, void *section, void *base, SIZE_T size) {
    FILE_OBJECT *file = MmSectionImageFile(section);
    IMAGE_INFO info = {IMAGE_ADDRESSING_MODE_32BIT, base, 0, size, 0};
    if (file) PsCallImageNotifyRoutines((UNICODE_STRING *)&file->FileName, process->UniqueProcessId, &info, file);
}

void PsNotifySystemImage(UNICODE_STRING *name, void *base, SIZE_T size) {
    IMAGE_INFO info = {IMAGE_ADDRESSING_MODE_32BIT | SYSTEM_MODE_IMAGE, base, 0, size, 0};
    PsCallImageNotifyRoutines(name, NULL, &info, NULL);
}

NTSTATUS PspMapImage(EPROCESS *process, MM_SECTION *section, PSP_VIEW *view) {
    *view = (PSP_VIEW){.Section = section};
    return MmMapViewOfSection(section, process, &view->Base, 0, &view->Size, PAGE_EXECUTE_WRITECOPY);
}

/* The image, ntdll.dll and, of a 32-bit image, the 32-bit ntdll.dll; each view's Section says whether it is there. */
static NTSTATUS PspMapImages(EPROCESS *process, MM_SECTION *section, MM_IMAGE *image, PSP_VIEW views[3]) {
    NTSTATUS status = MmQueryImage(section, image);
    if (NT_SUCCESS(status)) status = PspMapImage(process, section, &views[0]);
    if (!NT_SUCCESS(status)) return status;
    image->Entry = (UCHAR *)views[0].Base + ((UCHAR *)image->Entry - (UCHAR *)image->Base);
    image->Base = views[0].Base;
    status = PspMapImage(process, PspSystemDllSection, &views[1]);
    if (NT_SUCCESS(status) && image->Machine == IMAGE_FILE_MACHINE_I386) status = PspSetupWow64Process(process, image, &views[2]);
    return status;
}

NTSTATUS PsCreateUserProcess(PCWSTR path, PCWSTR command_line, EPROCESS *parent, EPROCESS **result, ETHREAD **thread) {
    FILE_OBJECT *file;
    MM_SECTION *section = NULL;
    MM_IMAGE image;
    PSP_VIEW views[3] = {{0}};
    CHAR name[16];
    EPROCESS *process = NULL;
    NTSTATUS status = IoOpenFile(path, FILE_OPEN, &file);
    if (!NT_SUCCESS(status)) return status;
    PspBaseName(path, name);
    status = MmCreateSection(&section, file, 0, PAGE_EXECUTE, SEC_IMAGE);
    if (NT_SUCCESS(status)) process = PspCreateProcessObject(name, parent);
    if (NT_SUCCESS(status) && !process) status = STATUS_INSUFFICIENT_RESOURCES;
    if (NT_SUCCESS(status)) status = MmCreateProcessAddressSpace(process);
    if (NT_SUCCESS(status)) status = PspMapImages(process, section, &image, views);
    if (NT_SUCCESS(status)) {
        process->SectionObject = section;
        process->SectionBaseAddress = image.Base;
#ifdef HAVE__EPROCESS__ImageFilePointer
        process->ImageFilePointer = file;
#endif
        PspNameProcess(process, path);
        status = PspMakePeb(process, path, command_line, image.Base);
    }
    if (NT_SUCCESS(status)) {
        PspInsertProcess(process);
        KdEvent("{\"event\":\"process\",\"pid\":%u,\"ppid\":%u,\"name\":\"%s\",\"path\":\"%ws\",\"eprocess\":\"%p\",\"dtb\":\"%#llx\","
                "\"user_dtb\":\"%#llx\",\"base\":\"%p\",\"ntdll\":\"%p\",\"peb\":\"%p\"}",
                PsGetProcessId(process), (ULONG)(ULONG64)process->InheritedFromUniqueProcessId, process->ImageFileName, path,
                process, process->Pcb.DirectoryTableBase, process->Pcb.UserDirectoryTableBase, image.Base,
                PspLdrInitializeThunk, process->Peb);
        for (int n = 0; n < 3 && views[n].Section; n++) PsNotifyImage(process, views[n].Section, views[n].Base, views[n].Size);
        void *peb32 = PspPeb32(process);
        status = PspCreateUserThread(process, image.Entry, peb32 ? peb32 : (void *)process->Peb, thread);
    }
    if (!NT_SUCCESS(status)) {
        KdEvent("{\"event\":\"process-failed\",\"path\":\"%ws\",\"status\":\"%#x\"}", path, status);
        return status; /* what was made stays: minint's images are all there or the boot has failed */
    }
    *result = process;
    return STATUS_SUCCESS;
}
