/* Starting the memory manager on the loader's identity map: address layout, new page tables, the frame database. */
#include "mi.h"

ULONG64 MmPteBase, MmPdeBase, MmPfnDatabaseBase;
MMPFN *MmPfnDatabase;
PFN_NUMBER MmHighestPhysicalPage, MmLowestPhysicalPage, MmNumberOfPhysicalPages;
PHYSICAL_MEMORY_DESCRIPTOR *MmPhysicalMemoryBlock;
ULONG64 MmSystemRangeStart = 0xFFFF800000000000ull;
ULONG64 MmHighestUserAddress = 0x7FFFFFFEFFFFull, MmUserProbeAddress = 0x7FFFFFFF0000ull;
ULONG64 MiPhysicalMap; /* 0 while the loader's identity map is in use */
ULONG64 MiInvalidPteMaskValue, MiSelfMapIndex, MiSharedUserFrame;
BOOLEAN MiGlobalPages, MiGigabytePages;
MI_RANGE MiRange[MI_RANGE_COUNT];
#ifdef HAVE__MI_PARTITION
MI_PARTITION MiSystemPartition;
#else
PFN_NUMBER MmAvailablePages;
#endif
#ifdef HAVE__MI_SYSTEM_INFORMATION
MI_SYSTEM_INFORMATION MiState;
#else
ULONG64 MiInvalidPteMask;
#endif
#ifdef HAVE__MI_PARTITION_PAGE_LISTS
#define MI_LISTS MiSystemPartition.PageLists
MMPFNLIST *MiList[4] = {&MI_LISTS.ZeroedPageListHead, &MI_LISTS.FreePageListHead, &MI_LISTS.StandbyPageListHead,
                        &MiSystemPartition.Vp.ModifiedPageListHead};
#else
MMPFNLIST MmZeroedPageListHead, MmFreePageListHead, MmStandbyPageListHead, MmModifiedPageListHead;
MMPFNLIST *MiList[4] = {&MmZeroedPageListHead, &MmFreePageListHead, &MmStandbyPageListHead, &MmModifiedPageListHead};
#endif

ULONG64 *MiAvailablePages(void) {
#ifdef HAVE__MI_PARTITION
    return (ULONG64 *)&MiSystemPartition.Vp.AvailablePages;
#else
    return &MmAvailablePages;
#endif
}

/* ---- The early allocator: whole pages off the runs' tops, never given back */
static LOADER_RUN MiFreeRuns[64];
static ULONG MiFreeRunCount;
static LOADER_RUN MiRuns[32];
static ULONG MiRunCount;

static void MiCollectRuns(LOADER_BLOCK *Block) {
    MiRunCount = MIN(Block->MemoryRunCount, 32);
    for (ULONG Index = 0; Index < MiRunCount; Index++) MiFreeRuns[MiFreeRunCount++] = MiRuns[Index] = Block->MemoryRuns[Index];
    for (ULONG Index = 0; Index < Block->ReservedRunCount; Index++) {
        ULONG64 Start = Block->ReservedRuns[Index].BasePage, End = Start + Block->ReservedRuns[Index].PageCount;
        for (ULONG At = 0; At < MiFreeRunCount; At++) {
            ULONG64 First = MiFreeRuns[At].BasePage, Last = First + MiFreeRuns[At].PageCount;
            if (End <= First || Start >= Last) continue;
            MiFreeRuns[At].PageCount = Start > First ? Start - First : 0;
            if (End < Last && MiFreeRunCount < 64) {
                MiFreeRuns[MiFreeRunCount].BasePage = MAX(End, First);
                MiFreeRuns[MiFreeRunCount++].PageCount = Last - MAX(End, First);
            }
        }
    }
}

static PFN_NUMBER MiEarlyPages(ULONG64 Pages, ULONG64 Align) {
    ULONG64 Best = 0, BestAt = 0;
    ULONG Run = 0;
    for (ULONG Index = 0; Index < MiFreeRunCount; Index++) {
        ULONG64 First = MiFreeRuns[Index].BasePage, Count = MiFreeRuns[Index].PageCount, At;
        if (Count < Pages || First + Count > 0x100000) continue; /* below 4 GB: the loader's identity map */
        At = (First + Count - Pages) & ~(Align - 1);
        if (At < First || At < 0x100 || At < BestAt) continue;
        BestAt = At;
        Best = 1;
        Run = Index;
    }
    if (!Best) KeBugCheckEx(0x7D, Pages, MiFreeRunCount, 0, 0); /* INSTALL_MORE_MEMORY */
    /* what lies above stays a run of its own */
    if (BestAt + Pages < MiFreeRuns[Run].BasePage + MiFreeRuns[Run].PageCount && MiFreeRunCount < 64) {
        MiFreeRuns[MiFreeRunCount].BasePage = BestAt + Pages;
        MiFreeRuns[MiFreeRunCount++].PageCount = MiFreeRuns[Run].BasePage + MiFreeRuns[Run].PageCount - BestAt - Pages;
    }
    MiFreeRuns[Run].PageCount = BestAt - MiFreeRuns[Run].BasePage;
    for (ULONG64 Page = 0; Page < Pages; Page++) memset(MiP2V((BestAt + Page) << PAGE_SHIFT), 0, PAGE_SIZE);
    return BestAt;
}

/* The lowest free page above 1 MB, zeroed: where winload puts System's page directory, so tools look for it there first. */
static PFN_NUMBER MiEarlyLowPage(void) {
    LOADER_RUN *Lowest = NULL;
    for (ULONG Index = 0; Index < MiFreeRunCount; Index++) {
        LOADER_RUN *Run = &MiFreeRuns[Index];
        if (Run->PageCount && Run->BasePage >= 0x100 && (!Lowest || Run->BasePage < Lowest->BasePage)) Lowest = Run;
    }
    if (!Lowest) KeBugCheckEx(0x7D, 1, MiFreeRunCount, 0, 0); /* INSTALL_MORE_MEMORY */
    memset(MiP2V(Lowest->BasePage << PAGE_SHIFT), 0, PAGE_SIZE);
    Lowest->PageCount--;
    return Lowest->BasePage++;
}

static MMPTE *MiEarlyEntry(ULONG64 Va, ULONG Level) {
    ULONG64 Table = MmKernelDirectoryTableBase;
    for (ULONG At = 4; At > Level; At--) {
        MMPTE *Entry = (MMPTE *)MiP2V(Table) + MiIndex(Va, At);
        if (!MiRead(Entry).u.Hard.Valid) MiWrite(Entry, MiMakeValidPte(MiEarlyPages(1, 1), MM_EXECUTE_READWRITE, FALSE, TRUE));
        Table = MiHardFrame(MiRead(Entry)) << PAGE_SHIFT;
    }
    return (MMPTE *)MiP2V(Table) + MiIndex(Va, Level);
}

static void MiEarlyMap(ULONG64 Va, PFN_NUMBER Frame, ULONG Level, ULONG Protection) {
    MMPTE Pte = MiMakeValidPte(Frame, Protection, FALSE, TRUE);
    Pte.u.Hard.Global = MiGlobalPages;
    if (Level > 1) Pte.u.Hard.LargePage = 1;
    MiWrite(MiEarlyEntry(Va, Level), Pte);
}

/* ---- Where things go: each range a PML4 slot of its own, chosen at random where the build's kernel does so */
static ULONG64 MiSlot(ULONG64 *Taken, ULONG64 Fixed) {
    ULONG64 Index;
#if NT_LAYOUT_BUILD < 14393
    Index = Fixed;
#else
    (void)Fixed;
    do Index = 0x100 + MiRandom() % 0xEF;
    while (Taken[Index / 64] >> Index % 64 & 1);
#endif
    Taken[Index / 64] |= 1ull << Index % 64;
    return Index;
}

static ULONG64 MiSlotVa(ULONG64 Index) { return (ULONG64)((LONG64)(Index << 55) >> 16); }

static void MiSetRange(ULONG Which, const char *Name, ULONG64 Base, ULONG64 Bytes, BOOLEAN Paged) {
    MI_RANGE Range = {Name, Base, Base + Bytes, Paged};
    MiRange[Which] = Range;
}

static void MiSetVaType(ULONG64 Va, UCHAR Type) {
#ifdef HAVE__MI_VISIBLE_STATE__SystemVaType
    MiState.Vs.SystemVaType[(Va >> 39 & 0x1FF) - 256] = (__typeof__(MiState.Vs.SystemVaType[0]))Type;
#else
    (void)Va, (void)Type;
#endif
}

static void MiLayOut(LOADER_BLOCK *Block) {
    ULONG64 Taken[8] = {0};
    Taken[Block->KernelBase >> 39 >> 6 & 7] |= 1ull << (Block->KernelBase >> 39 & 63);
    Taken[0x1EF / 64] |= 1ull << 0x1EF % 64; /* KUSER_SHARED_DATA */
    MiSelfMapIndex = MiSlot(Taken, 0x1ED);
    MmPteBase = MiSlotVa(MiSelfMapIndex);
    MmPdeBase = MiEntryVa(MmPteBase, 1);
    MiSetRange(MI_RANGE_PFN, "pfn-database", MiSlotVa(MiSlot(Taken, 0x1F5)), (MmHighestPhysicalPage + 1) * sizeof(MMPFN), FALSE);
    MiSetRange(MI_RANGE_PHYSMAP, "physical-map", MiSlotVa(MiSlot(Taken, 0x1E0)), (MmHighestPhysicalPage + 1) << PAGE_SHIFT, FALSE);
    MiSetRange(MI_RANGE_NONPAGED, "nonpaged-pool", MiSlotVa(MiSlot(Taken, 0x1F4)), 256ull << 20, FALSE);
    MiSetRange(MI_RANGE_PAGED, "paged-pool", MiSlotVa(MiSlot(Taken, 0x1F1)), 128ull << 20, TRUE);
    MiSetRange(MI_RANGE_SYSPTE, "system-ptes", MiSlotVa(MiSlot(Taken, 0x1F2)), 256ull << 20, FALSE);
    MiSetRange(MI_RANGE_IMAGE, "kernel-image", Block->KernelBase, ROUND_TO_PAGES(Block->KernelSize), FALSE);
    MiSetRange(MI_RANGE_SHARED, "shared-user-data", KI_USER_SHARED_DATA, PAGE_SIZE, FALSE);
#if NT_LAYOUT_BUILD >= 14393
    for (ULONG Index = MI_RANGE_NONPAGED; Index <= MI_RANGE_SYSPTE; Index++) { /* not at the slot's very start */
        ULONG64 Shift = (MiRandom() & 0x3F) << 30;
        MiRange[Index].Base += Shift;
        MiRange[Index].End += Shift;
    }
#endif
    MiSetVaType(MmPteBase, 2);
    MiSetVaType(MiRange[MI_RANGE_PFN].Base, 4);
    MiSetVaType(MiRange[MI_RANGE_NONPAGED].Base, 5);
    MiSetVaType(MiRange[MI_RANGE_PAGED].Base, 6);
    MiSetVaType(MiRange[MI_RANGE_SYSPTE].Base, 9);
    MiSetVaType(Block->KernelBase, 3);
}

/* The kernel's image with its sections' protections, 4 KB pages. */
static void MiMapImage(LOADER_BLOCK *Block) {
    UCHAR *Image = MiP2V(Block->KernelPhysicalBase);
    ULONG Nt = *(ULONG *)(Image + 0x3C), Sections = *(USHORT *)(Image + Nt + 6);
    UCHAR *Table = Image + Nt + 24 + *(USHORT *)(Image + Nt + 20);
    for (ULONG64 Rva = 0; Rva < Block->KernelSize; Rva += PAGE_SIZE) {
        ULONG Protection = MM_READONLY;
        for (ULONG Index = 0; Index < Sections; Index++) {
            UCHAR *Section = Table + Index * 40;
            ULONG Start = *(ULONG *)(Section + 12), Flags = *(ULONG *)(Section + 36);
            ULONG Size = MAX(*(ULONG *)(Section + 8), *(ULONG *)(Section + 16));
            if (Rva < Start || Rva >= Start + ROUND_TO_PAGES(Size)) continue;
            Protection = Flags & 0x80000000 ? Flags & 0x20000000 ? MM_EXECUTE_READWRITE : MM_READWRITE
                         : Flags & 0x20000000 ? MM_EXECUTE_READ : MM_READONLY;
        }
        MiEarlyMap(Block->KernelBase + Rva, (Block->KernelPhysicalBase + Rva) >> PAGE_SHIFT, 1, Protection);
    }
}

BOOLEAN MiHasPfn(PFN_NUMBER Frame) {
    for (ULONG Index = 0; Index < MiRunCount; Index++)
        if (Frame - MiRuns[Index].BasePage < MiRuns[Index].PageCount) return TRUE;
    return FALSE;
}

/* Every table's frame gets its entry in the database, with its share count; leaves theirs. */
static void MiDescribeTables(ULONG64 Table, ULONG Level, ULONG64 Va, PFN_NUMBER Parent) {
    PFN_NUMBER Frame = Table >> PAGE_SHIFT;
    ULONG64 Valid = 0;
    for (ULONG Index = 0; Index < 512; Index++) {
        MMPTE Entry = MiRead((MMPTE *)MiP2V(Table) + Index);
        ULONG64 At = Va + ((ULONG64)Index << (3 + 9 * Level));
        if (Level == 4) At = MiSlotVa(Index);
        if (!Entry.u.Hard.Valid || (Level == 4 && (Index == MiSelfMapIndex || Index < 256))) continue;
        Valid++;
        if (Level > 1 && !Entry.u.Hard.LargePage) {
            MiDescribeTables(MiHardFrame(Entry) << PAGE_SHIFT, Level - 1, At, Frame);
        } else if (Level == 1 && MiHasPfn(MiHardFrame(Entry))) {
            MiInitializeActive(MiHardFrame(Entry), MiEntryVa(At, 1), Frame, MiMakeDemandZero(MM_READWRITE, FALSE), FALSE);
        }
    }
    MiInitializeActive(Frame, Level == 4 ? MiEntryVa(MmPteBase, 4) : MiEntryVa(Va, Level + 1), Level == 4 ? Frame : Parent,
                       MiMakeDemandZero(MM_READWRITE, FALSE), FALSE);
    MiPfn(Frame)->u2.ShareCount = 1 + Valid;
    MiPfn(Frame)->u3.e1.Modified = 1;
}

static void MiFillDatabase(void) {
    for (ULONG Index = 0; Index < 4; Index++) MiList[Index]->Flink = MiList[Index]->Blink = MM_EMPTY_LIST;
    for (ULONG Run = 0; Run < MiRunCount; Run++) {
        for (ULONG64 Page = 0; Page < MiRuns[Run].PageCount; Page++) {
            PFN_NUMBER Frame = MiRuns[Run].BasePage + Page;
            MiInitializeActive(Frame, 0, 0, MiZeroPte(), FALSE);
#ifdef HAVE__MMPFN__u4_PfnExists
            MiPfn(Frame)->u4.PfnExists = 1;
#endif
        }
        MmNumberOfPhysicalPages += MiRuns[Run].PageCount;
    }
    MiDescribeTables(MmKernelDirectoryTableBase, 4, 0, 0);
    for (ULONG Run = 0; Run < MiFreeRunCount; Run++) {
        for (ULONG64 Page = 0; Page < MiFreeRuns[Run].PageCount; Page++) {
            MMPFN *Pfn = MiPfn(MiFreeRuns[Run].BasePage + Page);
            Pfn->u2.ShareCount = 0;
            Pfn->u3.e2.ReferenceCount = 0;
            MiInsertList(MiFrameOf(Pfn), LOC_FREE, FALSE);
        }
    }
    MiFreeRunCount = 0;
}

static void MiMapDatabaseAndRam(void) {
    ULONG64 Step = MiGigabytePages ? 1ull << 30 : MI_LARGE;
    for (ULONG Run = 0; Run < MiRunCount; Run++) {
        ULONG64 First = MiRuns[Run].BasePage, Last = First + MiRuns[Run].PageCount;
        ULONG64 Base = MiRange[MI_RANGE_PFN].Base, Physical;
        for (ULONG64 Va = (Base + First * sizeof(MMPFN)) & ~(MI_LARGE - 1); Va < Base + Last * sizeof(MMPFN); Va += MI_LARGE)
            if (!MiRead(MiEarlyEntry(Va, 2)).u.Hard.Valid) MiEarlyMap(Va, MiEarlyPages(512, 512), 2, MM_READWRITE);
        for (Physical = (First << PAGE_SHIFT) & ~(Step - 1); Physical < Last << PAGE_SHIFT; Physical += Step)
            MiEarlyMap(MiRange[MI_RANGE_PHYSMAP].Base + Physical, Physical >> PAGE_SHIFT, MiGigabytePages ? 3 : 2, MM_READWRITE);
    }
}

static void MiReadProcessor(void) {
    ULONG Leaf[4];
    ULONG Bits = 36;
    __cpu(0x80000000, 0, Leaf);
    if (Leaf[0] >= 0x80000008) {
        __cpu(0x80000008, 0, Leaf);
        Bits = Leaf[0] & 0xFF;
    }
    __cpu(0x80000001, 0, Leaf);
    MiGigabytePages = (Leaf[3] >> 26 & 1) && !KeOption("NO1GB", 0);
    if (KeOption("NOL1TF", 0)) {
        KiImplementedPhysicalBits = 0;
        MiInvalidPteMaskValue = 0;
    } else {
        KiImplementedPhysicalBits = (UCHAR)Bits;
        MiInvalidPteMaskValue = 1ull << (Bits - 1);
    }
#ifdef HAVE__MI_SYSTEM_INFORMATION
    MiState.Hardware.InvalidPteMask = MiInvalidPteMaskValue;
    MiState.Hardware.PhysicalAddressBits = Bits;
#else
    MiInvalidPteMask = MiInvalidPteMaskValue;
#endif
    MiGlobalPages = !(KiKvaShadow || KeOption("KVASHADOW", 0));
    __set_msr(0xC0000080, __msr(0xC0000080) | 0x800); /* EFER.NXE */
    __set_cr0(__cr0() | 0x10000);                     /* WP */
}

static void MiDescribeMemory(void) {
    SIZE_T Size = sizeof(PHYSICAL_MEMORY_DESCRIPTOR) + MiRunCount * sizeof(PHYSICAL_MEMORY_RUN);
    MmPhysicalMemoryBlock = ExAllocatePool(Size, 'lBmM');
    MmPhysicalMemoryBlock->NumberOfRuns = MiRunCount;
    MmPhysicalMemoryBlock->NumberOfPages = MmNumberOfPhysicalPages;
    for (ULONG Index = 0; Index < MiRunCount; Index++) {
        (&MmPhysicalMemoryBlock->Run[0])[Index].BasePage = MiRuns[Index].BasePage;
        (&MmPhysicalMemoryBlock->Run[0])[Index].PageCount = MiRuns[Index].PageCount;
    }
#ifdef HAVE__MI_PARTITION
    MiSystemPartition.Core.MemoryRuns = MmPhysicalMemoryBlock;
    MiSystemPartition.Vp.LowestPhysicalPage = MmLowestPhysicalPage;
    MiSystemPartition.Vp.HighestPhysicalPage = MmHighestPhysicalPage;
    MiSystemPartition.Vp.NumberOfPhysicalPages = MmNumberOfPhysicalPages;
#endif
}

void MmInitSystem(LOADER_BLOCK *Block) {
    MiCollectRuns(Block);
    for (ULONG Index = 0; Index < MiRunCount; Index++)
        MmHighestPhysicalPage = MAX(MmHighestPhysicalPage, MiRuns[Index].BasePage + MiRuns[Index].PageCount - 1);
    MmLowestPhysicalPage = MiRunCount ? MiRuns[0].BasePage : 0;
    MiReadProcessor();
    MiLayOut(Block);
    MmKernelDirectoryTableBase = MiEarlyLowPage() << PAGE_SHIFT;
    MiWrite((MMPTE *)MiP2V(MmKernelDirectoryTableBase) + MiSelfMapIndex,
            MiMakeValidPte(MmKernelDirectoryTableBase >> PAGE_SHIFT, MM_READWRITE, FALSE, TRUE));
    MiMapDatabaseAndRam();
    MiMapImage(Block);
    MiSharedUserFrame = MiEarlyPages(1, 1);
    MiEarlyMap(KI_USER_SHARED_DATA, MiSharedUserFrame, 1, MM_READWRITE);
    for (ULONG Index = MI_RANGE_NONPAGED; Index <= MI_RANGE_SYSPTE; Index++) MiEarlyEntry(MiRange[Index].Base, 3);
    /* until phase 1: the boot stack, the loader block and what starts other processors lie in the identity map */
    MiWrite((MMPTE *)MiP2V(MmKernelDirectoryTableBase), MiRead((MMPTE *)MiP2V(Block->Cr3 & ~0xFFFull)));
    __set_cr3(MmKernelDirectoryTableBase);
    if (MiGlobalPages) __set_cr4(__cr4() | 0x80);

    MiPhysicalMap = MiRange[MI_RANGE_PHYSMAP].Base;
    MmPfnDatabase = (MMPFN *)(MmPfnDatabaseBase = MiRange[MI_RANGE_PFN].Base);
    MiFillDatabase();
    MiInitializePool();
    if (!MiGlobalPages) MiShadowPml4 = MiGetPage(TRUE, TRUE) << PAGE_SHIFT;
    MiDescribeMemory();
}

ULONG64 MmGetPhysicalAddress(const void *Address) {
    ULONG64 Physical = MiTranslate(__cr3(), (ULONG64)Address);
    return Physical == MI_NOFRAME ? 0 : Physical;
}

BOOLEAN MmIsAddressValid(const void *Address) { return MiTranslate(__cr3(), (ULONG64)Address) != MI_NOFRAME; }
void *MmPhysicalToVirtual(ULONG64 Physical) { return MiP2V(Physical); }
