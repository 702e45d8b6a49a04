/* Pools with real POOL_HEADERs, kernel stacks, mappings of device memory, physically contiguous memory.
 *
 * A block of less than a page has a POOL_HEADER (sizes in 16-byte units, neighbours found through PreviousSize and
 * BlockSize, 0 in PoolType: free); larger ones are whole pages. Both pools are the same code: nonpaged under a spin lock,
 * paged under a push lock because touching it may fault.
 */
#include "mi.h"

#define UNIT 16
#define UNITS (PAGE_SIZE / UNIT) /* a whole page: 256, kept as 0 in the 8-bit BlockSize of an unsplit page's only block */
#define CLASSES 33
#define UNMAP_BATCH 16u /* pages for one flush */

typedef struct _MI_POOL {
    ULONG Range;
    BOOLEAN Paged;
    KSPIN_LOCK Spin;
    EX_PUSH_LOCK Push;
    ULONG Pages, Hint;
    ULONG64 *Used;    /* bit a page */
    ULONG *RunLength; /* of a large block, at its first page; 0 for a page of small blocks */
    LIST_ENTRY Free[CLASSES];
} MI_POOL;

#define NONPAGED_PAGES (256u << 8)
#define PAGED_PAGES (128u << 8)
#define SYSPTE_PAGES (256u << 8)
static ULONG64 NonPagedUsed[NONPAGED_PAGES / 64], PagedUsed[PAGED_PAGES / 64], SysPteUsed[SYSPTE_PAGES / 64];
static ULONG NonPagedRuns[NONPAGED_PAGES], PagedRuns[PAGED_PAGES];
static MI_POOL NonPaged = {.Range = MI_RANGE_NONPAGED, .Pages = NONPAGED_PAGES, .Used = NonPagedUsed, .RunLength = NonPagedRuns};
static MI_POOL Paged = {.Range = MI_RANGE_PAGED, .Paged = TRUE, .Pages = PAGED_PAGES, .Used = PagedUsed, .RunLength = PagedRuns};
static KSPIN_LOCK SysPteLock;
static ULONG SysPteHint;

/* ---- Page ranges */

static ULONG MiFindClear(ULONG64 *Bits, ULONG Total, ULONG Count, ULONG *Hint) {
    for (ULONG Pass = 0; Pass < 2; Pass++) {
        ULONG Run = 0;
        for (ULONG Index = Pass ? 0 : *Hint; Index < Total; Index++) {
            Run = Bits[Index / 64] >> Index % 64 & 1 ? 0 : Run + 1;
            if (Run < Count) continue;
            for (ULONG At = Index + 1 - Count; At <= Index; At++) Bits[At / 64] |= 1ull << At % 64;
            *Hint = Index + 1;
            return Index + 1 - Count;
        }
    }
    return ~0u;
}

static void MiClear(ULONG64 *Bits, ULONG First, ULONG Count, ULONG *Hint) {
    for (ULONG At = First; At < First + Count; At++) Bits[At / 64] &= ~(1ull << At % 64);
    if (First < *Hint) *Hint = First;
}

/* The kernel's PTE of a range's page, its table made when asked. Kernel tables are never trimmed. */
MMPTE *MiKernelPte(ULONG64 Va, BOOLEAN Make) {
    for (ULONG At = 3; At >= 2 && Make; At--) {
        MMPTE *Entry = MiEntry(MmKernelDirectoryTableBase, Va, At);
        PFN_NUMBER Frame;
        KIRQL Irql;
        if (MiRead(Entry).u.Hard.Valid) continue;
        Frame = MiGetPage(TRUE, TRUE);
        if (Frame == MI_NOFRAME) return NULL;
        Irql = MiLockPfn();
        if (MiRead(Entry).u.Hard.Valid) {
            MiFreeFrame(Frame);
        } else {
            MiInitializeActive(Frame, MiEntryVa(Va, At), MiFrameHolding(Entry), MiMakeDemandZero(MM_EXECUTE_READWRITE, FALSE), FALSE);
            MiPfn(Frame)->u3.e1.Modified = 1;
            MiWrite(Entry, MiMakeValidPte(Frame, MM_EXECUTE_READWRITE, FALSE, TRUE));
            MiTableGained(Entry);
        }
        MiUnlockPfn(Irql);
    }
    return MiEntry(MmKernelDirectoryTableBase, Va, 1);
}

PFN_NUMBER MiKernelPage(ULONG64 Va, ULONG Protection) {
    MMPTE *Pte = MiKernelPte(Va, TRUE), New;
    PFN_NUMBER Frame = Pte ? MiGetPage(TRUE, TRUE) : MI_NOFRAME;
    KIRQL Irql;
    if (Frame == MI_NOFRAME) return Frame;
    Irql = MiLockPfn();
    MiInitializeActive(Frame, MiEntryVa(Va, 1), MiFrameHolding(Pte), MiMakeDemandZero(Protection, FALSE), FALSE);
    MiPfn(Frame)->u3.e1.Modified = 1;
    New = MiMakeValidPte(Frame, Protection, FALSE, TRUE);
    MiWrite(Pte, New);
    MiTableGained(Pte);
    MiUnlockPfn(Irql);
    return Frame;
}

/* Takes what is mapped at Va out of its PTE; returns the frame of a valid page, which may still be in TLBs. PFN lock held. */
static PFN_NUMBER MiClearKernelPte(ULONG64 Va) {
    MMPTE *Pte = MiKernelPte(Va, FALSE), Old, Soft;
    if (!Pte) return MI_NOFRAME;
    Old = MiExchange(Pte, MiZeroPte());
    Soft = MiUnswizzle(Old);
    if (Old.u.Hard.Valid) {
        PFN_NUMBER Frame = MiHardFrame(Old);
        MiTableLost(Pte);
        return MiHasPfn(Frame) && MiPfn(Frame)->PteLong == MiEntryVa(Va, 1) ? Frame : MI_NOFRAME;
    }
    if (MiIsTransition(Soft)) {
        MiTableLost(Pte);
        MiMarkDeleted(MiTransFrame(Soft));
    } else {
        MiFreeSlot(Old);
    }
    return MI_NOFRAME;
}

void MiUnmapKernelPages(ULONG64 Va, ULONG Pages) {
    PFN_NUMBER Gone[UNMAP_BATCH];
    for (ULONG Count; Pages; Va += (ULONG64)Count << PAGE_SHIFT, Pages -= Count) {
        KIRQL Irql = MiLockPfn();
        Count = MIN(Pages, UNMAP_BATCH);
        for (ULONG Page = 0; Page < Count; Page++) Gone[Page] = MiClearKernelPte(Va + ((ULONG64)Page << PAGE_SHIFT));
        MiFlushPagesTb(Va, Count);
        for (ULONG Page = 0; Page < Count; Page++) {
            if (Gone[Page] == MI_NOFRAME) continue;
            MiMarkDeleted(Gone[Page]);
            MiUnshare(Gone[Page]);
        }
        MiUnlockPfn(Irql);
    }
}

ULONG64 MiReserveSystemPtes(ULONG Pages) {
    KIRQL Irql = KeAcquireSpinLock(&SysPteLock);
    ULONG At = MiFindClear(SysPteUsed, SYSPTE_PAGES, Pages, &SysPteHint);
    KeReleaseSpinLock(&SysPteLock, Irql);
    return At == ~0u ? 0 : MiRange[MI_RANGE_SYSPTE].Base + ((ULONG64)At << PAGE_SHIFT);
}

void MiReleaseSystemPtes(ULONG64 Va, ULONG Pages) {
    KIRQL Irql = KeAcquireSpinLock(&SysPteLock);
    MiClear(SysPteUsed, (ULONG)((Va - MiRange[MI_RANGE_SYSPTE].Base) >> PAGE_SHIFT), Pages, &SysPteHint);
    KeReleaseSpinLock(&SysPteLock, Irql);
}

/* ---- The allocator */

static KIRQL MiLockPool(MI_POOL *Pool) {
    if (!Pool->Paged) return KeAcquireSpinLock(&Pool->Spin);
    ExAcquirePushLockExclusive(&Pool->Push);
    return 0;
}

static void MiUnlockPool(MI_POOL *Pool, KIRQL Irql) {
    if (!Pool->Paged)
        KeReleaseSpinLock(&Pool->Spin, Irql);
    else
        ExReleasePushLockExclusive(&Pool->Push);
}

static ULONG64 MiPoolPages(MI_POOL *Pool, ULONG Count) {
    ULONG At = MiFindClear(Pool->Used, Pool->Pages, Count, &Pool->Hint);
    ULONG64 Va = MiRange[Pool->Range].Base + ((ULONG64)At << PAGE_SHIFT);
    if (At == ~0u) return 0;
    for (ULONG Page = 0; Page < Count; Page++) {
        ULONG64 This = Va + ((ULONG64)Page << PAGE_SHIFT);
        if (Pool->Paged) {
            MMPTE *Pte = MiKernelPte(This, TRUE);
            if (Pte) {
                MiWrite(Pte, MiMakeDemandZero(MM_READWRITE, TRUE));
                continue;
            }
        } else if (MiKernelPage(This, MM_READWRITE) != MI_NOFRAME) {
            continue;
        }
        MiUnmapKernelPages(Va, Page);
        MiClear(Pool->Used, At, Count, &Pool->Hint);
        return 0;
    }
    return Va;
}

static void MiFreePoolPages(MI_POOL *Pool, ULONG64 Va, ULONG Count) {
    MiUnmapKernelPages(Va, Count);
    MiClear(Pool->Used, (ULONG)((Va - MiRange[Pool->Range].Base) >> PAGE_SHIFT), Count, &Pool->Hint);
}

static ULONG MiClass(ULONG Units) { return Units <= 24 ? Units : MIN(24 + (Units - 17) / 8 - 0, CLASSES - 1); }
static LIST_ENTRY *MiLinks(POOL_HEADER *Header) { return (LIST_ENTRY *)(Header + 1); }
static POOL_HEADER *MiAfter(POOL_HEADER *Header) {
    POOL_HEADER *Next = Header + Header->BlockSize;
    return BYTE_OFFSET(Next) ? Next : NULL;
}

static void MiPutFree(MI_POOL *Pool, POOL_HEADER *Header) {
    Header->PoolType = 0;
    InsertHeadList(&Pool->Free[MiClass(Header->BlockSize)], MiLinks(Header));
}

static void *MiAllocateSmall(MI_POOL *Pool, ULONG Units, ULONG Tag) {
    POOL_HEADER *Found = NULL, *Rest, *Next;
    for (ULONG Class = MiClass(Units); Class < CLASSES && !Found; Class++) {
        LIST_ENTRY *Head = &Pool->Free[Class];
        for (LIST_ENTRY *At = Head->Flink; At != Head; At = At->Flink) {
            POOL_HEADER *Header = (POOL_HEADER *)At - 1;
            if (Header->BlockSize < Units) continue;
            Found = Header;
            RemoveEntryList(At);
            break;
        }
    }
    if (!Found) {
        ULONG64 Page = MiPoolPages(Pool, 1);
        if (!Page) return NULL;
        /* two blocks at once, so that no block needs 256 units */
        Found = (POOL_HEADER *)Page;
        Found->PreviousSize = 0;
        Found->BlockSize = UNITS - 2;
        Rest = Found + (UNITS - 2);
        Rest->PreviousSize = UNITS - 2;
        Rest->BlockSize = 2;
        Rest->PoolTag = 'dnEP';
        Rest->PoolType = 2; /* the page's end: in use for ever */
    }
    if (Found->BlockSize >= Units + 2) {
        Rest = Found + Units;
        Rest->BlockSize = Found->BlockSize - Units;
        Rest->PreviousSize = Units;
        Rest->PoolTag = 'eerF';
        Found->BlockSize = Units;
        if ((Next = MiAfter(Rest))) Next->PreviousSize = Rest->BlockSize;
        MiPutFree(Pool, Rest);
    }
    Found->PoolType = (Pool->Paged ? 1 : 0) | 2;
    Found->PoolTag = Tag;
    memset(Found + 1, 0, (Found->BlockSize - 1) * UNIT);
    return Found + 1;
}

static void *MiAllocatePool(MI_POOL *Pool, SIZE_T Bytes, ULONG Tag) {
    ULONG Units = (ULONG)((Bytes + UNIT - 1) / UNIT) + 1;
    void *Block;
    KIRQL Irql;
    if (Bytes > 64ull << 20) return NULL;
    if (Units < 2) Units = 2;
    Irql = MiLockPool(Pool);
    if (Units <= UNITS - 2) {
        Block = MiAllocateSmall(Pool, Units, Tag);
    } else {
        ULONG Pages = (ULONG)(ROUND_TO_PAGES(Bytes) >> PAGE_SHIFT);
        ULONG64 Va = MiPoolPages(Pool, Pages);
        if (Va) Pool->RunLength[(Va - MiRange[Pool->Range].Base) >> PAGE_SHIFT] = Pages;
        Block = (void *)Va;
    }
    MiUnlockPool(Pool, Irql);
    return Block;
}

__attribute__((section("POOLCODE"))) /* the section that tools know the kernel by */
void *ExAllocatePool(SIZE_T Bytes, ULONG Tag) { return MiAllocatePool(&NonPaged, Bytes, Tag); }
void *ExAllocatePagedPool(SIZE_T Bytes, ULONG Tag) { return MiAllocatePool(&Paged, Bytes, Tag); }

void ExFreePool(void *Block) {
    ULONG64 Va = (ULONG64)Block;
    MI_POOL *Pool = Va >= MiRange[MI_RANGE_PAGED].Base && Va < MiRange[MI_RANGE_PAGED].End ? &Paged : &NonPaged;
    ULONG Page = (ULONG)((Va - MiRange[Pool->Range].Base) >> PAGE_SHIFT);
    POOL_HEADER *Header = (POOL_HEADER *)Block - 1, *Next;
    KIRQL Irql;
    if (!Block) return;
    Irql = MiLockPool(Pool);
    if (!BYTE_OFFSET(Block)) {
        ULONG Count = Pool->RunLength[Page];
        Pool->RunLength[Page] = 0;
        MiFreePoolPages(Pool, Va, Count);
        MiUnlockPool(Pool, Irql);
        return;
    }
    if (!(Header->PoolType & 2)) KeBugCheckEx(0xC2, 7, Va, Header->PoolTag, 0); /* BAD_POOL_CALLER: freed already */
    Next = MiAfter(Header);
    if (Next && !(Next->PoolType & 2)) {
        RemoveEntryList(MiLinks(Next));
        Header->BlockSize += Next->BlockSize;
    }
    if (Header->PreviousSize && !((Header - Header->PreviousSize)->PoolType & 2)) {
        POOL_HEADER *Before = Header - Header->PreviousSize;
        RemoveEntryList(MiLinks(Before));
        Before->BlockSize += Header->BlockSize;
        Header = Before;
    }
    if ((Next = MiAfter(Header))) Next->PreviousSize = Header->BlockSize;
    if (Header->BlockSize == UNITS - 2 && Pool->Paged) {
        MiFreePoolPages(Pool, (ULONG64)Header, 1);
    } else {
        Header->PoolTag = 'eerF';
        MiPutFree(Pool, Header);
    }
    MiUnlockPool(Pool, Irql);
}

void MiInitializePool(void) {
    for (ULONG Class = 0; Class < CLASSES; Class++) {
        InitializeListHead(&NonPaged.Free[Class]);
        InitializeListHead(&Paged.Free[Class]);
    }
}

/* ---- Stacks, device memory, contiguous memory */

void *MmCreateKernelStack(ULONG Bytes) {
    ULONG Pages = (ULONG)(ROUND_TO_PAGES(Bytes) >> PAGE_SHIFT);
    ULONG64 Va = MiReserveSystemPtes(Pages + 1);
    if (!Va) return NULL;
    for (ULONG Page = 1; Page <= Pages; Page++) {
        if (MiKernelPage(Va + ((ULONG64)Page << PAGE_SHIFT), MM_READWRITE) != MI_NOFRAME) continue;
        MmDeleteKernelStack((void *)(Va + ((ULONG64)(Pages + 1) << PAGE_SHIFT)), Bytes);
        return NULL;
    }
    return (void *)(Va + ((ULONG64)(Pages + 1) << PAGE_SHIFT));
}

void MmDeleteKernelStack(void *StackBase, ULONG Bytes) {
    ULONG Pages = (ULONG)(ROUND_TO_PAGES(Bytes) >> PAGE_SHIFT);
    ULONG64 Va = (ULONG64)StackBase - ((ULONG64)(Pages + 1) << PAGE_SHIFT);
    MiUnmapKernelPages(Va + PAGE_SIZE, Pages);
    MiReleaseSystemPtes(Va, Pages + 1);
}

void *MmMapIoSpace(ULONG64 Physical, SIZE_T Bytes) {
    ULONG Pages = (ULONG)(ROUND_TO_PAGES(BYTE_OFFSET(Physical) + Bytes) >> PAGE_SHIFT);
    ULONG64 Va = MiReserveSystemPtes(Pages);
    if (!Va) return NULL;
    for (ULONG Page = 0; Page < Pages; Page++) {
        MMPTE *Pte = MiKernelPte(Va + ((ULONG64)Page << PAGE_SHIFT), TRUE), New;
        KIRQL Irql = MiLockPfn();
        New = MiMakeValidPte((Physical >> PAGE_SHIFT) + Page, MM_READWRITE, FALSE, TRUE);
        New.u.Hard.CacheDisable = 1;
        New.u.Hard.WriteThrough = 1;
        MiWrite(Pte, New);
        MiTableGained(Pte);
        MiUnlockPfn(Irql);
    }
    return (void *)(Va + BYTE_OFFSET(Physical));
}

/* A run of free or zeroed frames, aligned to Align pages, below Limit; taken off the lists as active, unmapped. */
PFN_NUMBER MiTakeContiguous(ULONG64 Pages, ULONG64 Align, PFN_NUMBER Limit) {
    KIRQL Irql = MiLockPfn();
    PFN_NUMBER Highest = MIN(MmHighestPhysicalPage + 1, Limit);
    for (PFN_NUMBER End = Highest & ~(Align - 1); End >= Pages + 0x100; End -= Align) {
        PFN_NUMBER First = End - Pages, At = First;
        while (At < End && MiHasPfn(At) && MiPfn(At)->u3.e1.PageLocation <= LOC_FREE && !MiPfn(At)->u3.e2.ReferenceCount) At++;
        if (At < End) continue;
        for (At = First; At < End; At++) {
            MiUnlink(At);
            MiInitializeActive(At, 0, 0, MiMakeDemandZero(MM_READWRITE, FALSE), FALSE);
        }
        MiUnlockPfn(Irql);
        return First;
    }
    MiUnlockPfn(Irql);
    return MI_NOFRAME;
}

ULONG64 MmAllocateContiguous(ULONG Pages) {
    PFN_NUMBER First = MiTakeContiguous(Pages, 1, 0x100000);
    if (First == MI_NOFRAME) return 0;
    for (ULONG Page = 0; Page < Pages; Page++) MiZeroFrame(First + Page);
    return First << PAGE_SHIFT;
}
