/* Paging files: creation, slots, and the modified page writer. */
#include "mi.h"
#include "../io/io.h"

#define CLUSTER 16

ULONG MiPagingFiles;
KEVENT MiModifiedEvent;
static EX_PUSH_LOCK MiWriterLock, MiCreateLock;
static UCHAR *MiWriteBuffer;
#ifndef HAVE__MI_PARTITION
MMPAGING_FILE *MmPagingFile[16];
ULONG MmNumberOfPagingFiles;
#endif

MMPAGING_FILE *MiPagingFile(ULONG Number) {
    if (Number >= 16) return NULL;
#ifdef HAVE__MI_PARTITION
    return (MMPAGING_FILE *)(&MiSystemPartition.Vp.PagingFile[0])[Number];
#else
    return MmPagingFile[Number];
#endif
}

ULONG MmNumberOfPagingFilesInUse(void) { return MiPagingFiles; }

/* Asked before a store of compressed pages is made: without a paging file behind it there is none. */
NOINLINE NTSTATUS MmStoreCheckPagefiles(void) { return MiPagingFiles ? STATUS_SUCCESS : STATUS_NOT_FOUND; }

static RTL_BITMAP *MiBitmap(MMPAGING_FILE *File) {
#ifdef HAVE__MMPAGING_FILE__Bitmaps
    return &File->Bitmaps->AllocationBitmap;
#else
    return File->Bitmap;
#endif
}

static BOOLEAN MiBit(RTL_BITMAP *Bitmap, ULONG64 At) { return ((UCHAR *)Bitmap->Buffer)[At / 8] >> At % 8 & 1; }
static void MiSetBit(RTL_BITMAP *Bitmap, ULONG64 At, BOOLEAN To) {
    UCHAR *Byte = (UCHAR *)Bitmap->Buffer + At / 8;
    *Byte = (UCHAR)(To ? *Byte | 1 << At % 8 : *Byte & ~(1 << At % 8));
}

/* ---- The tree of paging files by FILE_OBJECT: at most 16 nodes, so it is laid out afresh, perfectly balanced */
#if defined(HAVE__MMPAGING_FILE__FileObjectNode) && defined(HAVE__MI_SYSTEM_INFORMATION__PagingIo)
static RTL_BALANCED_NODE *MiLayTree(RTL_BALANCED_NODE **Nodes, LONG Count, RTL_BALANCED_NODE *Parent, LONG *Height) {
    LONG Middle = Count / 2, Left = 0, Right = 0;
    RTL_BALANCED_NODE *Node;
    *Height = 0;
    if (!Count) return NULL;
    Node = Nodes[Middle];
    Node->Left = MiLayTree(Nodes, Middle, Node, &Left);
    Node->Right = MiLayTree(Nodes + Middle + 1, Count - Middle - 1, Node, &Right);
    Node->ParentValue = (ULONG64)Parent | ((Right - Left) & 3);
    *Height = 1 + MAX(Left, Right);
    return Node;
}

static void MiInsertInTree(void) {
    RTL_BALANCED_NODE *Nodes[16];
    LONG Count = 0, Height;
    for (ULONG Number = 0; Number < MiPagingFiles; Number++) {
        MMPAGING_FILE *File = MiPagingFile(Number);
        LONG At = Count;
        if (!File->File) continue; /* the compressed store's */
        Count++;
        for (; At && CONTAINING_RECORD(Nodes[At - 1], MMPAGING_FILE, FileObjectNode)->File > File->File; At--) Nodes[At] = Nodes[At - 1];
        Nodes[At] = &File->FileObjectNode;
#ifdef HAVE__MMPAGING_FILE__NodeInserted
        File->NodeInserted = 1;
#endif
    }
    MiState.PagingIo.PageFileHead.Root = MiLayTree(Nodes, Count, NULL, &Height);
}
#else
static void MiInsertInTree(void) {}
#endif

static NTSTATUS MiMakeBitmap(MMPAGING_FILE *File, ULONG64 Pages) {
    RTL_BITMAP *Bitmap;
#ifdef HAVE__MMPAGING_FILE__Bitmaps
    File->Bitmaps = ExAllocatePool(sizeof *File->Bitmaps, 'bPmM');
    if (!File->Bitmaps) return STATUS_NO_MEMORY;
#else
    File->Bitmap = ExAllocatePool(sizeof *File->Bitmap, 'bPmM');
    if (!File->Bitmap) return STATUS_NO_MEMORY;
#endif
    Bitmap = MiBitmap(File);
    Bitmap->SizeOfBitMap = (ULONG)Pages;
    Bitmap->Buffer = ExAllocatePool((Pages + 63) / 64 * 8, 'bPmM');
    if (!Bitmap->Buffer) return STATUS_NO_MEMORY;
    MiSetBit(Bitmap, 0, TRUE); /* PageFileHigh 0 means no page */
    return STATUS_SUCCESS;
}

static NTSTATUS MiInsertPageFileInList(MMPAGING_FILE *File) {
    NTSTATUS Status = STATUS_SUCCESS;
    KIRQL Irql;
    ExAcquirePushLockExclusive(&MiCreateLock);
    if (MiPagingFiles >= 16) {
        Status = STATUS_INSUFFICIENT_RESOURCES;
    } else {
        File->PageFileNumber = MiPagingFiles;
#ifdef HAVE__MMPAGING_FILE__Partition
        File->Partition = &MiSystemPartition;
#endif
        Irql = MiLockPfn();
#ifdef HAVE__MI_PARTITION
        (&MiSystemPartition.Vp.PagingFile[0])[MiPagingFiles] = File;
        MiSystemPartition.Vp.NumberOfPagingFiles = ++MiPagingFiles;
#else
        MmPagingFile[MiPagingFiles] = File;
        MmNumberOfPagingFiles = ++MiPagingFiles;
#endif
        MiInsertInTree();
        MiUnlockPfn(Irql);
        if (File->File) MiRaiseCommitLimit((LONG64)File->Size);
    }
    ExReleasePushLockExclusive(&MiCreateLock);
    return Status;
}

NTSTATUS MiCreateStorePagefile(ULONG64 Pages, MMPAGING_FILE **Result) {
#ifdef HAVE__MMPAGING_FILE__VirtualStorePagefile
    MMPAGING_FILE *File = ExAllocatePool(sizeof *File, '  mM'); /* the real one's tag */
    NTSTATUS Status = File ? MiMakeBitmap(File, Pages) : STATUS_NO_MEMORY;
    if (!NT_SUCCESS(Status)) return Status;
    File->Size = File->MinimumSize = File->MaximumSize = Pages;
    File->FreeSpace = Pages - 1;
    File->VirtualStorePagefile = 1;
    *Result = File;
    return MiInsertPageFileInList(File);
#else
    return STATUS_NOT_SUPPORTED;
#endif
}

NTSTATUS MmCreatePagingFile(const UNICODE_STRING *Name, ULONG64 MinimumSize, ULONG64 MaximumSize) {
    MMPAGING_FILE *File;
    UNICODE_STRING Path;
    FILE_OBJECT *Object;
    ULONG64 Pages = ROUND_TO_PAGES(MinimumSize) >> PAGE_SHIFT;
    NTSTATUS Status;
    if (Pages < 16 || MaximumSize < MinimumSize || MaximumSize >> PAGE_SHIFT > 0xFFFFFFF0ull) return STATUS_INVALID_PARAMETER;
    Status = RtlDuplicateUnicodeString(&Path, Name->Buffer, Name->Length / 2);
    if (!NT_SUCCESS(Status)) return Status;
    Status = IoOpenFile(Path.Buffer, FILE_OPEN_IF, &Object);
    if (!NT_SUCCESS(Status)) {
        ExFreePool(Path.Buffer);
        return Status;
    }
    Status = IoSetPagingFileSize(Object, Pages << PAGE_SHIFT);
    File = ExAllocatePool(sizeof *File, 'fPmM');
    if (NT_SUCCESS(Status)) Status = File ? MiMakeBitmap(File, Pages) : STATUS_NO_MEMORY;
    if (NT_SUCCESS(Status)) {
        File->Size = File->MinimumSize = Pages;
        File->MaximumSize = ROUND_TO_PAGES(MaximumSize) >> PAGE_SHIFT;
        File->FreeSpace = Pages - 1;
        File->File = Object;
        File->PageFileName = Path;
        Status = MiInsertPageFileInList(File);
    }
    if (!NT_SUCCESS(Status)) ObDereferenceObject(Object);
    return Status;
}

/* ---- Slots; PFN lock held */

void MiFreeSlot(MMPTE Original) {
    MMPTE Soft = MiUnswizzle(Original);
    MMPAGING_FILE *File;
    if (!MiIsPagefile(Soft) || !(File = MiPagingFile(Soft.u.Soft.PageFileLow))) return;
    NT_ASSERT(MiBit(MiBitmap(File), Soft.u.Soft.PageFileHigh));
    if (!File->File)
        MiForgetStored(Soft.u.Soft.PageFileHigh);
    else
        MiGiveSlot(File, Soft.u.Soft.PageFileHigh);
}

void MiGiveSlot(MMPAGING_FILE *File, ULONG64 Slot) {
    MiSetBit(MiBitmap(File), Slot, FALSE);
    File->FreeSpace++;
}

BOOLEAN MiTakeSlot(MMPAGING_FILE *File, ULONG64 *Slot) {
    ULONG64 At = 1 + MiRandom() % (File->Size - 1);
    if (!File->FreeSpace) return FALSE;
    while (MiBit(MiBitmap(File), At))
        if (++At >= File->Size) At = 1;
    MiSetBit(MiBitmap(File), At, TRUE);
    File->FreeSpace--;
    *Slot = At;
    return TRUE;
}

/* A run of up to `*Count` neighbouring slots; starts looking at random, so that files fill without order. */
static BOOLEAN MiAllocateCluster(ULONG *Number, ULONG64 *Slot, ULONG *Count) {
    ULONG First = (ULONG)MiRandom();
    for (ULONG Index = 0; Index < MiPagingFiles; Index++) {
        MMPAGING_FILE *File = MiPagingFile((First + Index) % MiPagingFiles);
        RTL_BITMAP *Bitmap = MiBitmap(File);
        ULONG64 At, Looked;
        ULONG Got = 0;
        if (!File->FreeSpace || !File->File) continue;
        At = 1 + MiRandom() % (File->Size - 1);
        for (Looked = 0; Looked < File->Size && MiBit(Bitmap, At); Looked++)
            if (++At >= File->Size) At = 1;
        if (MiBit(Bitmap, At)) continue;
        *Slot = At;
        while (Got < *Count && At < File->Size && !MiBit(Bitmap, At)) {
            MiSetBit(Bitmap, At++, TRUE);
            Got++;
        }
        File->FreeSpace -= Got;
        if (File->Size - File->FreeSpace > File->PeakUsage) File->PeakUsage = File->Size - File->FreeSpace;
        *Number = File->PageFileNumber;
        *Count = Got;
        return TRUE;
    }
    return FALSE;
}

NTSTATUS MiReadSlot(ULONG Number, ULONG64 Slot, void *Buffer) {
    MMPAGING_FILE *File = MiPagingFile(Number);
    ULONG Done = 0;
    NTSTATUS Status;
    if (!File || Slot >= File->Size) return STATUS_IN_PAGE_ERROR;
    if (!File->File) return MiReadStored(Slot, Buffer, FALSE);
    Status = IoReadFile(File->File, Slot << PAGE_SHIFT, Buffer, PAGE_SIZE, &Done);
    return NT_SUCCESS(Status) && Done != PAGE_SIZE ? STATUS_IN_PAGE_ERROR : Status;
}

/* ---- Writing modified pages */

SUBSECTION *MiMappedFile(MMPFN *Pfn) { /* a data file's page goes back to its file; images' pages and all else to paging files */
    MMPTE Soft = MiUnswizzle(Pfn->OriginalPte);
    SUBSECTION *Subsection = (SUBSECTION *)MiProtoAddress(Soft);
    return MiIsProto(Soft) && !Subsection->ControlArea->u.Flags.Image ? Subsection : NULL;
}

void MiBeginWrite(PFN_NUMBER Frame) {
    MiUnlink(Frame);
    MiPfn(Frame)->u3.e2.ReferenceCount = 1;
    MiPfn(Frame)->u3.e1.WriteInProgress = 1;
    MiPfn(Frame)->u3.e1.Modified = 0;
}

/* Written: what its PTE will say; zero for a page of a mapped file. */
void MiFinishWrite(PFN_NUMBER Frame, BOOLEAN Success, MMPTE Written) {
    MMPFN *Pfn = MiPfn(Frame);
    Pfn->u3.e1.WriteInProgress = 0;
    if (!Success) Pfn->u3.e1.Modified = 1;
    if (Written.u.Long) {
        if (Pfn->u3.e1.Modified || Pfn->PteLong & 1) /* written to meanwhile, or gone */
            MiFreeSlot(Written);
        else
            Pfn->OriginalPte = Written;
    }
    MiDereference(Frame);
}

ULONG MiWriteModified(PFN_NUMBER Only) {
    PFN_NUMBER Frames[CLUSTER];
    SUBSECTION *Mapped = NULL;
    ULONG64 Slot = 0, ProtoVa = 0;
    ULONG Count = 0, Number = 0, Done = 0;
    NTSTATUS Status;
    KIRQL Irql;
    if (!MiWriteBuffer) return 0;
    ExAcquirePushLockExclusive(&MiWriterLock);
    Irql = MiLockPfn();
    for (PFN_NUMBER At = MiList[LOC_MODIFIED]->Flink; MiList[LOC_MODIFIED]->Total && At != MM_EMPTY_LIST && Count < CLUSTER; At = MiPfn(At)->u1.Flink) {
        SUBSECTION *Sub;
        if (Only != MI_NOFRAME && At != Only) continue;
        Sub = MiMappedFile(MiPfn(At));
        if (Sub && Count) continue;
        if (!Sub && !MiPagingFiles) continue;
        Frames[Count++] = At;
        if ((Mapped = Sub)) break;
    }
    if (Count && !Mapped && !MiAllocateCluster(&Number, &Slot, &Count)) Count = 0;
    for (ULONG Index = 0; Index < Count; Index++) MiBeginWrite(Frames[Index]);
    if (Mapped) ProtoVa = MiPfn(Frames[0])->PteLong;
    MiUnlockPfn(Irql);
    if (!Count) {
        ExReleasePushLockExclusive(&MiWriterLock);
        return 0;
    }
    for (ULONG Index = 0; Index < Count; Index++) memcpy(MiWriteBuffer + Index * PAGE_SIZE, MiF2V(Frames[Index]), PAGE_SIZE);
    if (Mapped) {
        Status = MiWriteSubsectionPage(Mapped, ProtoVa & ~1ull, MiWriteBuffer);
        Mapped->ControlArea->ModifiedWriteCount++;
    } else {
        Status = IoWriteFile(MiPagingFile(Number)->File, Slot << PAGE_SHIFT, MiWriteBuffer, Count * PAGE_SIZE, &Done);
    }
    Irql = MiLockPfn();
    for (ULONG Index = 0; Index < Count; Index++) {
        MMPTE Written = Mapped ? MiZeroPte() : MiMakePagefile(MiPfn(Frames[Index])->OriginalPte, Number, Slot + Index);
        MiFinishWrite(Frames[Index], NT_SUCCESS(Status), Written);
    }
    MiUnlockPfn(Irql);
    ExReleasePushLockExclusive(&MiWriterLock);
    if (!NT_SUCCESS(Status)) KdPrint("page write failed: %x", (ULONG)Status);
    return NT_SUCCESS(Status) ? Count : 0;
}

/* Its own thread. Writes lazily, a cluster at a time, faster as memory gets short. */
void MiModifiedPageWriter(void *Context) {
    KTHREAD *Thread = KeGetCurrentThread();
    (void)Context;
    Thread->Priority = Thread->BasePriority = 17;
    for (;;) {
        KeWaitForSingleObject(&MiModifiedEvent, 500);
        for (ULONG Round = 0; Round < 4 || MmMemoryIsShort(); Round++) {
            ULONG Written;
            MiEnter(TRUE);
            Written = MiStoreWanted() ? MiStoreWriteModifiedPages(MI_NOFRAME) : 0;
            if (!Written) Written = MiWriteModified(MI_NOFRAME);
            MiLeave();
            if (!Written) break;
        }
    }
}

void MmInitSystemPhase1(void) {
    MiWriteBuffer = ExAllocatePool(CLUSTER * PAGE_SIZE, 'wPmM');
    KeInitializeEvent(&MiModifiedEvent, SynchronizationEvent, FALSE);
    MiRaiseCommitLimit((LONG64)MmNumberOfPhysicalPages);
    MiChargeCommit((LONG64)(MmNumberOfPhysicalPages - *MiAvailablePages()));
    if (MmSectionObjectType) ObpDeleteRoutine[MmSectionObjectType->Index] = MmSectionDelete;
    /* the loader's identity map is done with */
    MiWrite((MMPTE *)MiP2V(MmKernelDirectoryTableBase), MiZeroPte());
    MiFlushTb(0);
    PsCreateSystemThread(MiModifiedPageWriter, NULL);
}
