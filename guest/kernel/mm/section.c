/* Sections: image files by their PE sections, data files, memory backed by the paging files. A control area and its
 * subsections are one block of nonpaged pool, the segment and its prototype PTEs are in paged pool, as in Windows. */
#include "mi.h"
#include "../io/io.h"

static EX_PUSH_LOCK MiSectionLock;

typedef struct _MI_IMAGE_LINK {
    struct _MI_IMAGE_LINK *Next;
    CONTROL_AREA *ControlArea;
    MI_IMAGE Image;
} MI_IMAGE_LINK;
static MI_IMAGE_LINK *MiImages; /* grows only: images stay known, as unused segments do */

MI_IMAGE *MiImageOf(CONTROL_AREA *ControlArea) {
    for (MI_IMAGE_LINK *At = MiImages; At; At = At->Next)
        if (At->ControlArea == ControlArea) return &At->Image;
    return NULL;
}

FILE_OBJECT *MiFileOf(CONTROL_AREA *ControlArea) { return (FILE_OBJECT *)(ControlArea->FilePointer.Value & ~0xFull); }

static SUBSECTION *MiFirstSubsection(CONTROL_AREA *ControlArea) { return (SUBSECTION *)(ControlArea + 1); }

/* ---- Where a prototype PTE's page lies in the file. Images count in sectors of 512 bytes, data files in units of 4 KB. */

static ULONG MiUnit(SUBSECTION *Subsection) { return Subsection->ControlArea->u.Flags.Image ? 9 : 12; }

ULONG64 MiSubsectionFileOffset(SUBSECTION *Subsection, ULONG64 ProtoVa) {
    ULONG64 Index = (ProtoVa - (ULONG64)Subsection->SubsectionBase) / sizeof(MMPTE);
    return ((ULONG64)Subsection->StartingSector << MiUnit(Subsection)) + (Index << PAGE_SHIFT);
}

static ULONG64 MiBytesInPage(SUBSECTION *Subsection, ULONG64 ProtoVa) {
    ULONG64 Index = (ProtoVa - (ULONG64)Subsection->SubsectionBase) / sizeof(MMPTE);
    ULONG64 Bytes = ((ULONG64)Subsection->NumberOfFullSectors << MiUnit(Subsection)) + Subsection->u.SubsectionFlags.SectorEndOffset;
    if (Bytes <= Index << PAGE_SHIFT) return 0;
    return MIN(Bytes - (Index << PAGE_SHIFT), PAGE_SIZE);
}

/* The part of a word of Width bytes at page offset First that lies in the page. */
static void MiPutWord(UCHAR *Page, LONG First, ULONG64 Value, LONG Width) {
    for (LONG Byte = 0; Byte < Width; Byte++)
        if (First + Byte >= 0 && First + Byte < (LONG)PAGE_SIZE) Page[First + Byte] = (UCHAR)(Value >> (8 * Byte));
}

#define RELOCATION_HIGHLOW 3 /* a word of 4 bytes */
#define RELOCATION_DIR64 10  /* of 8 */

/* Base relocations of one page, as the page comes in. */
static void MiRelocatePage(CONTROL_AREA *ControlArea, MI_IMAGE *Image, ULONG64 Rva, UCHAR *Page) {
    ULONG64 Delta = Image->Base - Image->PreferredBase;
    if (!Rva && Image->NtHeaders + 56 <= PAGE_SIZE) { /* OptionalHeader.ImageBase */
        if (Image->Pe32) memcpy(Page + Image->NtHeaders + 52, &Image->Base, 4);
        else memcpy(Page + Image->NtHeaders + 48, &Image->Base, 8);
    }
    if (!Delta || !Image->Reloc) return;
    for (ULONG At = 0; At + 8 <= Image->RelocSize;) {
        ULONG Block = *(ULONG *)(Image->Reloc + At), Size = *(ULONG *)(Image->Reloc + At + 4);
        if (Size < 8 || Size > Image->RelocSize - At) return;
        if (Block + PAGE_SIZE == Rva || Block == Rva) {
            for (ULONG Entry = 8; Entry + 2 <= Size; Entry += 2) {
                USHORT Word = *(USHORT *)(Image->Reloc + At + Entry);
                LONG First = (LONG)(Word & 0xFFF) + (LONG)((LONG64)Block - (LONG64)Rva);
                LONG Width = Word >> 12 == RELOCATION_DIR64 ? 8 : Word >> 12 == RELOCATION_HIGHLOW ? 4 : 0;
                ULONG64 Value = 0;
                if (!Width || First <= -Width) continue;
                if (First >= 0 && First <= (LONG)PAGE_SIZE - Width) {
                    memcpy(&Value, Page + First, (SIZE_T)Width);
                } else { /* crosses into another page: the whole word from the file */
                    for (SUBSECTION *Sub = MiFirstSubsection(ControlArea); Sub; Sub = Sub->NextSubsection) {
                        ULONG64 Start = (ULONG64)(Sub->SubsectionBase - MiFirstSubsection(ControlArea)->SubsectionBase) << PAGE_SHIFT;
                        ULONG64 Where = Rva + First;
                        ULONG Done;
                        if (Where < Start || Where >= Start + ((ULONG64)Sub->PtesInSubsection << PAGE_SHIFT)) continue;
                        IoReadFile(MiFileOf(ControlArea), ((ULONG64)Sub->StartingSector << 9) + Where - Start, &Value, (ULONG)Width, &Done);
                    }
                }
                MiPutWord(Page, First, Value + Delta, Width);
            }
        }
        At += Size;
    }
}

NTSTATUS MiReadSubsectionPage(SUBSECTION *Subsection, ULONG64 ProtoVa, void *Buffer) {
    CONTROL_AREA *ControlArea = Subsection->ControlArea;
    ULONG64 Bytes = MiBytesInPage(Subsection, ProtoVa);
    ULONG Done = 0;
    NTSTATUS Status = STATUS_SUCCESS;
    if (Bytes) Status = IoReadFile(MiFileOf(ControlArea), MiSubsectionFileOffset(Subsection, ProtoVa), Buffer, (ULONG)Bytes, &Done);
    if (Status == STATUS_END_OF_FILE) Status = STATUS_SUCCESS;
    if (!NT_SUCCESS(Status)) return Status;
    memset((UCHAR *)Buffer + Done, 0, PAGE_SIZE - Done);
    if (ControlArea->u.Flags.Image) {
        MI_IMAGE *Image = MiImageOf(ControlArea);
        ULONG64 Rva = (ProtoVa - (ULONG64)MiFirstSubsection(ControlArea)->SubsectionBase) / sizeof(MMPTE) << PAGE_SHIFT;
        if (Image) MiRelocatePage(ControlArea, Image, Rva, Buffer);
    }
    return STATUS_SUCCESS;
}

NTSTATUS MiWriteSubsectionPage(SUBSECTION *Subsection, ULONG64 ProtoVa, const void *Buffer) {
    ULONG64 Bytes = MiBytesInPage(Subsection, ProtoVa);
    ULONG Done;
    if (!Bytes) return STATUS_SUCCESS;
    return IoWriteFile(MiFileOf(Subsection->ControlArea), MiSubsectionFileOffset(Subsection, ProtoVa), Buffer, (ULONG)Bytes, &Done);
}

/* ---- Building control areas */

static CONTROL_AREA *MiNewControlArea(ULONG Subsections, ULONG64 Ptes, FILE_OBJECT *File) {
    CONTROL_AREA *Area = ExAllocatePool(sizeof(CONTROL_AREA) + Subsections * sizeof(SUBSECTION), 'aCmM');
    SEGMENT *Segment = ExAllocatePagedPool(sizeof(SEGMENT), 'gSmM');
    MMPTE *Protos = ExAllocatePagedPool(Ptes * sizeof(MMPTE), 'tSmM');
    if (!Area || !Segment || !Protos) {
        ExFreePool(Area);
        ExFreePool(Segment);
        ExFreePool(Protos);
        return NULL;
    }
    Area->Segment = Segment;
#ifdef HAVE__CONTROL_AREA__ListHead
    InitializeListHead(&Area->ListHead);
#endif
#ifdef HAVE__CONTROL_AREA__u2_e2_NumberOfSubsections
    Area->u2.e2.NumberOfSubsections = Subsections;
#endif
    Segment->ControlArea = Area;
    Segment->TotalNumberOfPtes = (ULONG)Ptes;
    Segment->SizeOfSegment = Ptes << PAGE_SHIFT;
    Segment->PrototypePte = Protos;
    if (File) {
        ObReferenceObject(File);
        Area->FilePointer.Value = (ULONG64)File | 0xF; /* a fast reference with its cached count full */
        Area->u.Flags.File = 1;
    }
    for (ULONG Index = 0; Index < Subsections; Index++) {
        SUBSECTION *Sub = MiFirstSubsection(Area) + Index;
        Sub->ControlArea = Area;
        Sub->SubsectionBase = Protos;
        if (Index) Sub[-1].NextSubsection = Sub;
    }
    return Area;
}

static void MiSetSize(SUBSECTION *Sub, ULONG64 Bytes, ULONG Unit) {
    Sub->NumberOfFullSectors = (ULONG)(Bytes >> Unit);
    Sub->u.SubsectionFlags.SectorEndOffset = Bytes & ((1u << Unit) - 1);
}

static ULONG MiSectionProtection(ULONG Characteristics) {
    BOOLEAN Execute = Characteristics >> 29 & 1, Write = Characteristics >> 31 & 1, Shared = Characteristics >> 28 & 1;
    if (Write) return (Shared ? MM_READWRITE : MM_WRITECOPY) + (Execute ? 2 : 0);
    return Execute ? MM_EXECUTE_READ : MM_READONLY;
}

/* A step of 64 KB in the range that images of its kind are put in: 32-bit ones, and DLLs that were linked for it, below 2 GB. */
static ULONG64 MiDrawBase(MI_IMAGE *Image, BOOLEAN Dll) {
    BOOLEAN Low = Image->PreferredBase < MI_WOW64_LIMIT;
    if (Dll) return Low ? 0x6B000000ull + (MiRandom() % 0xC00 << 16) : 0x7FF800000000ull + (MiRandom() % 0x70000 << 16);
    return Low ? 0x100000ull + (MiRandom() % 0xF0 << 16) : 0x7FF600000000ull + (MiRandom() % 0x1F000 << 16);
}

static ULONG64 MiChooseBase(MI_IMAGE *Image, BOOLEAN Dll) {
    for (;;) {
        ULONG64 Base = MiDrawBase(Image, Dll);
        BOOLEAN Clash = FALSE;
        for (MI_IMAGE_LINK *At = MiImages; At; At = At->Next)
            if (Base < At->Image.Base + At->Image.Size + MI_ALLOCATION && At->Image.Base < Base + Image->Size + MI_ALLOCATION) Clash = TRUE;
        if (!Clash) return Base;
    }
}

static void MiDescribeImage(CONTROL_AREA *Area, MI_IMAGE *Image, UCHAR *Optional, USHORT Characteristics) {
    MI_SECTION_IMAGE_INFORMATION *Information = ExAllocatePagedPool(sizeof *Information, 'iSmM');
    SECTION_IMAGE_INFORMATION *Exported;
    if (!Information) return;
    Exported = &Information->ExportedImageInformation;
    Exported->TransferAddress = (void *)(Image->Base + Image->EntryRva);
    Exported->MaximumStackSize = Image->StackReserve;
    Exported->CommittedStackSize = Image->StackCommit;
    Exported->SubSystemType = *(USHORT *)(Optional + 68);
    Exported->DllCharacteristics = *(USHORT *)(Optional + 70);
    Exported->ImageCharacteristics = Characteristics;
    Exported->Machine = Image->Machine;
    Exported->ImageFileSize = Image->Size;
    Exported->CheckSum = *(ULONG *)(Optional + 64);
    Area->Segment->u2.ImageInformation = Information;
}

static void MiReadRelocations(FILE_OBJECT *File, MI_IMAGE *Image, UCHAR *Optional, UCHAR *Table, ULONG Sections) {
    UCHAR *Directory = Optional + (Image->Pe32 ? 96 : 112) + 5 * 8;
    ULONG Rva = *(ULONG *)Directory, Size = *(ULONG *)(Directory + 4), Done;
    if (!Rva || Size < 8 || Size > 0x100000) return;
    for (ULONG Index = 0; Index < Sections; Index++) {
        UCHAR *Header = Table + Index * 40;
        ULONG Start = *(ULONG *)(Header + 12), Raw = *(ULONG *)(Header + 16);
        if (Rva < Start || Rva >= Start + Raw) continue;
        Image->Reloc = ExAllocatePool(Size, 'lRmM');
        if (!Image->Reloc) return;
        if (NT_SUCCESS(IoReadFile(File, *(ULONG *)(Header + 20) + (Rva - Start), Image->Reloc, Size, &Done))) Image->RelocSize = Done;
        return;
    }
}

/* An image on a medium that may be taken away (or in a boot with MININT and INRAM, see IoIsDeviceEjectable) is read whole, its
 * pages made as if written to: they belong to the paging files from then on, and stay in RAM where there are none. */
NOINLINE NTSTATUS MiSetPagesModified(CONTROL_AREA *Area) {
    for (SUBSECTION *Sub = MiFirstSubsection(Area); Sub; Sub = Sub->NextSubsection) {
        for (ULONG Index = 0; Index < Sub->PtesInSubsection; Index++) {
            MMPTE *Proto = Sub->SubsectionBase + Index, *P;
            MMPTE Value = MiRead(Proto);
            PFN_NUMBER Frame;
            NTSTATUS Status;
            KIRQL Irql;
            if (!MiIsProto(Value)) continue;
            while ((Frame = MiGetPage(FALSE, FALSE)) == MI_NOFRAME) MiWaitForPages();
            Status = MiReadSubsectionPage(Sub, (ULONG64)Proto, MiF2V(Frame));
            for (;;) {
                (void)*(volatile PTE64 *)Proto;
                Irql = MiLockPfn();
                if ((P = MiProtoPointer(Proto))) break;
                MiUnlockPfn(Irql);
            }
            if (!NT_SUCCESS(Status)) {
                MiFreeFrame(Frame);
                MiUnlockPfn(Irql);
                return Status;
            }
            MiInitializeActive(Frame, (ULONG64)Proto, MiFrameHolding(P), MiMakeDemandZero(MiSoftProtection(Value), TRUE), TRUE);
            MiPfn(Frame)->u3.e1.Modified = 1;
            MiChargeCommit(1);
            MiTableGained(P);
            MiMarkModified(MiFrameHolding(P));
            MiUnshare(Frame); /* the prototype PTE goes to transition, the frame to the modified list */
            MiUnlockPfn(Irql);
        }
    }
    return STATUS_SUCCESS;
}

static NTSTATUS MiCreateImage(FILE_OBJECT *File, CONTROL_AREA **Result) {
    UCHAR *Page = ExAllocatePool(PAGE_SIZE, 'hPmM'), *Nt, *Optional, *Table;
    MI_IMAGE_LINK *Link = ExAllocatePool(sizeof *Link, 'lImM');
    NTSTATUS Status = STATUS_INVALID_IMAGE_FORMAT;
    CONTROL_AREA *Area = NULL;
    ULONG Done = 0, Sections, Pages;
    USHORT Characteristics;
    MI_IMAGE *Image;
    SUBSECTION *Sub;
    MMPTE *Protos;
    if (!Page || !Link) goto Out;
    Image = &Link->Image;
    Status = IoReadFile(File, 0, Page, PAGE_SIZE, &Done);
    if (!NT_SUCCESS(Status)) goto Out;
    Status = STATUS_INVALID_IMAGE_FORMAT;
    Image->NtHeaders = *(ULONG *)(Page + 0x3C);
    if (*(USHORT *)Page != 0x5A4D || Image->NtHeaders > 0x800) goto Out;
    Nt = Page + Image->NtHeaders;
    Optional = Nt + 24;
    Sections = *(USHORT *)(Nt + 6);
    Characteristics = *(USHORT *)(Nt + 22);
    Table = Optional + *(USHORT *)(Nt + 20);
    Image->Pe32 = *(USHORT *)Optional == 0x10B;
    if (*(ULONG *)Nt != 0x4550 || (*(USHORT *)Optional != 0x20B && !Image->Pe32)) goto Out;
    if (!Sections || Table + Sections * 40 > Page + PAGE_SIZE) goto Out;
    Image->Machine = *(USHORT *)(Nt + 4);
    Image->EntryRva = *(ULONG *)(Optional + 16);
    Image->PreferredBase = Image->Pe32 ? *(ULONG *)(Optional + 28) : *(ULONG64 *)(Optional + 24);
    Image->Size = (ULONG)ROUND_TO_PAGES(*(ULONG *)(Optional + 56));
    Image->HeaderSize = *(ULONG *)(Optional + 60);
    Image->StackReserve = Image->Pe32 ? *(ULONG *)(Optional + 72) : *(ULONG64 *)(Optional + 72);
    Image->StackCommit = Image->Pe32 ? *(ULONG *)(Optional + 76) : *(ULONG64 *)(Optional + 80);
    Pages = Image->Size >> PAGE_SHIFT;
    if (!Pages || Pages > 0x10000 || *(ULONG *)(Optional + 32) != PAGE_SIZE) goto Out;
    if (Characteristics & 1)
        Image->Base = Image->PreferredBase;
    else
        Image->Base = MiChooseBase(Image, Characteristics >> 13 & 1);
    Status = STATUS_INSUFFICIENT_RESOURCES;
    MiReadRelocations(File, Image, Optional, Table, Sections);
    if (!(Area = MiNewControlArea(Sections + 1, Pages, File))) goto Out;
    Area->u.Flags.Image = 1;
    Protos = Area->Segment->PrototypePte;
    Area->Segment->BasedAddress = (void *)Image->Base;
    Sub = MiFirstSubsection(Area);
    for (ULONG Index = 0; Index <= Sections; Index++, Sub++) {
        UCHAR *Header = Table + (Index - 1) * 40;
        ULONG Start = Index ? *(ULONG *)(Header + 12) >> PAGE_SHIFT : 0;
        ULONG End = Index < Sections ? *(ULONG *)(Table + Index * 40 + 12) >> PAGE_SHIFT : Pages;
        ULONG Raw = Index ? *(ULONG *)(Header + 16) : Image->HeaderSize, Backed;
        ULONG Protection = Index ? MiSectionProtection(*(ULONG *)(Header + 36)) : MM_READONLY;
        if (Start >= End || End > Pages) {
            Status = STATUS_INVALID_IMAGE_FORMAT;
            goto Out;
        }
        if (Index && !*(ULONG *)(Header + 20)) Raw = 0;
        Raw = MIN(Raw, (End - Start) << PAGE_SHIFT);
        Backed = (ULONG)(ROUND_TO_PAGES(Raw) >> PAGE_SHIFT);
        Sub->SubsectionBase = Protos + Start;
        Sub->PtesInSubsection = End - Start;
        Sub->StartingSector = Index && Raw ? *(ULONG *)(Header + 20) >> 9 : 0;
        Sub->u.SubsectionFlags.Protection = Protection;
        MiSetSize(Sub, Raw, 9);
        for (ULONG At = Start; At < End; At++)
            Protos[At] = At - Start < Backed ? MiMakeSubsection(Sub, Protection) : MiMakeDemandZero(Protection, FALSE);
    }
    MiDescribeImage(Area, Image, Optional, Characteristics);
    Link->ControlArea = Area;
    Link->Next = MiImages;
    MiImages = Link;
    Link = NULL;
    File->SectionObjectPointer->ImageSectionObject = Area;
    *Result = Area;
    Status = STATUS_SUCCESS;
    if (File->DeviceObject && IoIsDeviceEjectable(File->DeviceObject)) {
#if NT_LAYOUT_BUILD >= 14393
        Area->u.Flags.ImageControlAreaOnRemovableMedia = 1;
#endif
        Status = MiSetPagesModified(Area);
        if (!NT_SUCCESS(Status)) File->SectionObjectPointer->ImageSectionObject = NULL;
        ExFreePool(Page);
        return Status;
    }
Out:
    ExFreePool(Page);
    ExFreePool(Link);
    if (!NT_SUCCESS(Status)) ExFreePool(Area);
    return Status;
}

/* A file's data section; when the file has grown since, one more subsection with prototype PTEs of its own. */
static NTSTATUS MiCreateData(FILE_OBJECT *File, ULONG64 Size, CONTROL_AREA **Result) {
    CONTROL_AREA *Area = File->SectionObjectPointer->DataSectionObject;
    ULONG64 Pages = ROUND_TO_PAGES(Size) >> PAGE_SHIFT, Had = 0;
    SUBSECTION *Sub, *Last = NULL;
    MMPTE *Protos;
    if (!Area) {
        if (!(Area = MiNewControlArea(1, Pages, File))) return STATUS_INSUFFICIENT_RESOURCES;
        Sub = MiFirstSubsection(Area);
        Protos = Sub->SubsectionBase;
        File->SectionObjectPointer->DataSectionObject = Area;
    } else {
        for (Last = MiFirstSubsection(Area); Last->NextSubsection; Last = Last->NextSubsection) Had += Last->PtesInSubsection;
        if (Had + Last->PtesInSubsection >= Pages) {
            if (Size > (Had + Last->PtesInSubsection - 1) << PAGE_SHIFT) MiSetSize(Last, Size - (Had << PAGE_SHIFT), 12);
            *Result = Area;
            return STATUS_SUCCESS;
        }
        MiSetSize(Last, (ULONG64)Last->PtesInSubsection << PAGE_SHIFT, 12);
        Had += Last->PtesInSubsection;
        Sub = ExAllocatePool(sizeof(SUBSECTION), 'sSmM');
        Protos = ExAllocatePagedPool((Pages - Had) * sizeof(MMPTE), 'tSmM');
        if (!Sub || !Protos) {
            ExFreePool(Sub);
            ExFreePool(Protos);
            return STATUS_INSUFFICIENT_RESOURCES;
        }
        Sub->ControlArea = Area;
        Sub->SubsectionBase = Protos;
        Area->Segment->TotalNumberOfPtes = (ULONG)Pages;
        Area->Segment->SizeOfSegment = Pages << PAGE_SHIFT;
#ifdef HAVE__CONTROL_AREA__u2_e2_NumberOfSubsections
        Area->u2.e2.NumberOfSubsections++;
#endif
    }
    Sub->StartingSector = (ULONG)Had;
    Sub->PtesInSubsection = (ULONG)(Pages - Had);
    Sub->u.SubsectionFlags.Protection = MM_EXECUTE_READWRITE;
    MiSetSize(Sub, Size - (Had << PAGE_SHIFT), 12);
    for (ULONG64 At = 0; At < Pages - Had; At++) Protos[At] = MiMakeSubsection(Sub, MM_EXECUTE_READWRITE);
    if (Last) Last->NextSubsection = Sub;
    *Result = Area;
    return STATUS_SUCCESS;
}

static NTSTATUS MiCreatePagefileBacked(ULONG64 Size, ULONG Protection, CONTROL_AREA **Result) {
    ULONG64 Pages = ROUND_TO_PAGES(Size) >> PAGE_SHIFT;
    CONTROL_AREA *Area;
    SUBSECTION *Sub;
    if (!Pages || Pages > 1 << 20) return STATUS_SECTION_TOO_BIG;
    if (!(Area = MiNewControlArea(1, Pages, NULL))) return STATUS_INSUFFICIENT_RESOURCES;
    Area->u.Flags.Commit = 1;
    MiChargeCommit((LONG64)Pages);
    Sub = MiFirstSubsection(Area);
    Sub->PtesInSubsection = (ULONG)Pages;
    Sub->u.SubsectionFlags.Protection = Protection;
    for (ULONG64 At = 0; At < Pages; At++) Sub->SubsectionBase[At] = MiMakeDemandZero(Protection, At & 1);
    *Result = Area;
    return STATUS_SUCCESS;
}

CONTROL_AREA *MmSectionControlArea(MM_SECTION *Section) {
#ifdef HAVE__SECTION
    return (CONTROL_AREA *)((ULONG64)Section->u1.ControlArea & ~3ull);
#else
    return ((SEGMENT *)Section->Segment)->ControlArea;
#endif
}

FILE_OBJECT *MmSectionImageFile(MM_SECTION *Section) {
    CONTROL_AREA *Area = MmSectionControlArea(Section);
    return Area->u.Flags.Image ? MiFileOf(Area) : NULL;
}

static ULONG64 MiSectionSize(MM_SECTION *Section) {
#ifdef HAVE__SECTION
    return Section->SizeOfSection;
#else
    return ((SEGMENT *)Section->Segment)->SizeOfSegment;
#endif
}

NTSTATUS MmCreateSection(MM_SECTION **Section, FILE_OBJECT *File, ULONG64 Size, ULONG Protect, ULONG Attributes) {
    ULONG Protection = MiMakeProtectionMask(Protect);
    CONTROL_AREA *Area = NULL;
    MM_SECTION *Object;
    NTSTATUS Status;
    ULONG64 FileSize = 0;
    if (Protection == MM_INVALID_PROTECTION || Protection & 0x18) return STATUS_INVALID_PAGE_PROTECTION;
    if (File && !File->SectionObjectPointer) return STATUS_INVALID_PARAMETER;
    if (Attributes & SEC_IMAGE && !File) return STATUS_INVALID_PARAMETER;
    MiEnter(TRUE);
    ExAcquirePushLockExclusive(&MiSectionLock);
    if (Attributes & SEC_IMAGE) {
        Area = File->SectionObjectPointer->ImageSectionObject;
        Status = Area ? STATUS_SUCCESS : MiCreateImage(File, &Area);
        if (NT_SUCCESS(Status)) Size = Area->Segment->SizeOfSegment;
    } else if (File) {
        Status = IoQueryFileSize(File, &FileSize);
        if (NT_SUCCESS(Status) && Size > FileSize) {
            Status = Protection & MM_PROTECTION_WRITE_MASK ? IoSetFileSize(File, Size) : STATUS_SECTION_TOO_BIG;
            FileSize = Size;
        }
        if (!Size) Size = FileSize;
        if (NT_SUCCESS(Status)) Status = Size ? MiCreateData(File, MAX(Size, FileSize), &Area) : STATUS_INVALID_PARAMETER;
    } else {
        Status = MiCreatePagefileBacked(Size, Protection, &Area);
    }
    if (NT_SUCCESS(Status)) {
        Object = ObCreateObject(MmSectionObjectType, sizeof(MM_SECTION));
        if (Object) {
            Area->NumberOfSectionReferences++;
            Area->NumberOfUserReferences++;
#ifdef HAVE__SECTION
            Object->u1.ControlArea = Area;
            Object->SizeOfSection = Size;
            Object->u.LongFlags = Area->u.LongFlags;
            Object->InitialPageProtection = Protect & 0xFFF;
#else
            Object->Segment = (void *)Area->Segment;
#endif
            *Section = Object;
        } else {
            Status = STATUS_INSUFFICIENT_RESOURCES;
        }
    }
    ExReleasePushLockExclusive(&MiSectionLock);
    MiLeave();
    return Status;
}

NTSTATUS MmQueryImage(MM_SECTION *Section, MM_IMAGE *Result) {
    MI_IMAGE *Image = MiImageOf(MmSectionControlArea(Section));
    if (!Image) return STATUS_INVALID_IMAGE_FORMAT;
    Result->Base = (void *)Image->Base;
    Result->Entry = (void *)(Image->Base + Image->EntryRva);
    Result->Size = Image->Size;
    Result->StackReserve = Image->StackReserve;
    Result->StackCommit = Image->StackCommit;
    Result->Machine = Image->Machine;
    return STATUS_SUCCESS;
}

/* ---- The end of a control area: memory without a file goes, files' stay (unused, cached) */

static void MiDeleteSegment(CONTROL_AREA *Area) {
    SUBSECTION *Sub = MiFirstSubsection(Area);
    for (ULONG Index = 0; Index < Sub->PtesInSubsection; Index++) {
        MMPTE *Proto = Sub->SubsectionBase + Index, *P, Old, Soft;
        KIRQL Irql;
        for (;;) {
            (void)*(volatile PTE64 *)Proto;
            Irql = MiLockPfn();
            if ((P = MiProtoPointer(Proto))) break;
            MiUnlockPfn(Irql);
        }
        Old = MiExchange(P, MiZeroPte());
        Soft = MiUnswizzle(Old);
        if (MiIsTransition(Soft)) {
            MiTableLost(P);
            MiMarkDeleted(MiTransFrame(Soft));
        } else if (MiIsPagefile(Soft)) {
            MiFreeSlot(Old);
        }
        MiUnlockPfn(Irql);
    }
    MiChargeCommit(-(LONG64)Sub->PtesInSubsection);
    ExFreePool(Sub->SubsectionBase);
    ExFreePool(Area->Segment);
    ExFreePool(Area);
}

static void MiDropControlArea(CONTROL_AREA *Area, BOOLEAN View) {
    BOOLEAN Dead;
    ExAcquirePushLockExclusive(&MiSectionLock);
    if (View)
        Area->NumberOfMappedViews--;
    else
        Area->NumberOfSectionReferences--;
    Area->NumberOfUserReferences--;
    Dead = !Area->u.Flags.File && !Area->NumberOfMappedViews && !Area->NumberOfSectionReferences;
    ExReleasePushLockExclusive(&MiSectionLock);
    if (Dead) MiDeleteSegment(Area);
}

void MmSectionDelete(void *Section) {
    MiEnter(TRUE);
    MiDropControlArea(MmSectionControlArea(Section), FALSE);
    MiLeave();
}

void MiUnmapVad(EPROCESS *Process, VAD *Vad) {
    MMVAD *Mapped = (MMVAD *)Vad;
    (void)Process;
    MiDropControlArea(Mapped->Subsection->ControlArea, TRUE);
}

/* ---- Views */

static NTSTATUS MiMapView(MM_SECTION *Section, EPROCESS *Process, ULONG64 *Base, ULONG64 Offset, ULONG64 *Size, ULONG Protection) {
    CONTROL_AREA *Area = MmSectionControlArea(Section);
    MI_SPACE Space = MiSpaceOf(Process);
    MI_IMAGE *Image = Area->u.Flags.Image ? MiImageOf(Area) : NULL;
    SUBSECTION *Sub = MiFirstSubsection(Area);
    ULONG64 Start, Pages, Index = Offset >> PAGE_SHIFT;
    NTSTATUS Status = STATUS_SUCCESS;
    MMVAD *Vad = ExAllocatePool(sizeof(MMVAD), ' daV');
    if (!Vad) return STATUS_NO_MEMORY;
    if (Image) {
        Offset = Index = 0;
        *Size = Image->Size;
        Protection = MM_EXECUTE_WRITECOPY;
        if (!*Base) *Base = Image->Base;
    } else if (!*Size) {
        *Size = MiSectionSize(Section) - Offset;
    }
    Pages = ROUND_TO_PAGES(*Size) >> PAGE_SHIFT;
    for (ULONG64 Before = Index; Sub && Before >= Sub->PtesInSubsection; Sub = Sub->NextSubsection) Index = Before -= Sub->PtesInSubsection;
    ExAcquirePushLockExclusive(Space.Lock);
    Start = *Base >> PAGE_SHIFT;
    if (!Start) Start = MiFindEmpty(Process, Pages, MI_ALLOCATION >> PAGE_SHIFT, FALSE);
    if (!Sub || !Start || Start < MI_LOWEST_USER >> PAGE_SHIFT || Start + Pages > MI_USER_LIMIT >> PAGE_SHIFT) {
        Status = STATUS_INVALID_PARAMETER;
    } else if (MiConflictingVad(Process, Start, Start + Pages - 1)) {
        Status = STATUS_CONFLICTING_ADDRESSES;
    } else {
        VAD *Core = (VAD *)Vad;
        MiSetVadRange(Core, Start, Start + Pages - 1);
        Core->u.VadFlags.Protection = Protection;
        if (Image) Core->u.VadFlags.VadType = VAD_IMAGE_MAP;
        Vad->u2.VadFlags2.FileOffset = (ULONG)(Offset >> 16);
        Vad->u2.VadFlags2.Inherit = 1;
        Vad->Subsection = Sub;
        Vad->FirstPrototypePte = Sub->SubsectionBase + Index;
        Vad->LastContiguousPte = Image ? Sub->SubsectionBase + Pages - 1 : Sub->SubsectionBase + Sub->PtesInSubsection - 1;
        if (Vad->LastContiguousPte > Vad->FirstPrototypePte + Pages - 1) Vad->LastContiguousPte = Vad->FirstPrototypePte + Pages - 1;
        InitializeListHead(&Vad->ViewLinks);
        Vad->VadsProcess = Process;
        MiInsertVad(Process, Core);
        *Base = Start << PAGE_SHIFT;
        *Size = Pages << PAGE_SHIFT;
    }
    ExReleasePushLockExclusive(Space.Lock);
    if (!NT_SUCCESS(Status)) ExFreePool(Vad);
    return Status;
}

NTSTATUS MmMapViewOfSection(MM_SECTION *Section, EPROCESS *Process, void **Base, ULONG64 Offset, SIZE_T *Size, ULONG Protect) {
    CONTROL_AREA *Area = MmSectionControlArea(Section);
    ULONG Protection = MiMakeProtectionMask(Protect);
    ULONG64 At = (ULONG64)*Base & ~(MI_ALLOCATION - 1), Bytes = *Size;
    NTSTATUS Status;
    if (Protection == MM_INVALID_PROTECTION || Protection & 0x18) return STATUS_INVALID_PAGE_PROTECTION;
    if (!MiSpaceOf(Process).Process || Offset & (PAGE_SIZE - 1) || Offset >= MiSectionSize(Section)) return STATUS_INVALID_PARAMETER;
    if (Bytes > MiSectionSize(Section) - Offset + PAGE_SIZE) return STATUS_INVALID_PARAMETER;
    MiEnter(TRUE);
    ExAcquirePushLockExclusive(&MiSectionLock);
    Status = MiMapView(Section, Process, &At, Offset, &Bytes, Protection);
    if (NT_SUCCESS(Status)) {
        Area->NumberOfMappedViews++;
        Area->NumberOfUserReferences++;
        *Base = (void *)At;
        *Size = Bytes;
    }
    ExReleasePushLockExclusive(&MiSectionLock);
    MiLeave();
    return Status;
}

NTSTATUS MmUnmapViewOfSection(EPROCESS *Process, void *Base) {
    MI_SPACE Space = MiSpaceOf(Process);
    VAD *Vad;
    if (!Space.Process) return STATUS_INVALID_PARAMETER;
    MiEnter(TRUE);
    ExAcquirePushLockExclusive(Space.Lock);
    Vad = MiLocateVad(Process, (ULONG64)Base >> PAGE_SHIFT);
    if (!Vad || MiVadPrivate(Vad)) {
        ExReleasePushLockExclusive(Space.Lock);
        MiLeave();
        return STATUS_NOT_MAPPED_VIEW;
    }
    MiDeleteRange(&Space, MiVadStart(Vad), MiVadEnd(Vad), MiZeroPte(), FALSE);
    MiRemoveVad(Process, Vad);
    ExReleasePushLockExclusive(Space.Lock);
    MiUnmapVad(Process, Vad);
    ExFreePool(Vad);
    MiLeave();
    return STATUS_SUCCESS;
}
