/* Frames: the lists, share and reference counts, and what happens when they reach zero. */
#include "mi.h"

static KSPIN_LOCK MmPfnLock;
#define MI_RESERVE_PAGES 24 /* kept for the kernel's own allocations and for paging I/O */

KIRQL MiLockPfn(void) {
    KIRQL Irql = KeRaiseIrql(DISPATCH_LEVEL);
    while (__atomic_exchange_n(&MmPfnLock, 1, __ATOMIC_ACQUIRE)) {
        __relax();
        MiPollFlush();
    }
    return Irql;
}

void MiUnlockPfn(KIRQL Irql) {
    __atomic_store_n(&MmPfnLock, 0, __ATOMIC_RELEASE);
    KeLowerIrql(Irql);
}

static BOOLEAN MiCountsAsAvailable(ULONG Location) { return Location <= LOC_STANDBY; }

void MiInsertList(PFN_NUMBER Frame, ULONG Location, BOOLEAN AtHead) {
    MMPFNLIST *List = MiList[Location];
    MMPFN *Pfn = MiPfn(Frame);
    Pfn->u3.e1.PageLocation = Location;
    if (!List->Total) {
        List->Flink = List->Blink = Frame;
        Pfn->u1.Flink = MM_EMPTY_LIST;
        Pfn->u2.Blink = MM_EMPTY_LIST;
    } else if (AtHead) {
        Pfn->u1.Flink = List->Flink;
        Pfn->u2.Blink = MM_EMPTY_LIST;
        MiPfn(List->Flink)->u2.Blink = Frame;
        List->Flink = Frame;
    } else {
        Pfn->u1.Flink = MM_EMPTY_LIST;
        Pfn->u2.Blink = List->Blink;
        MiPfn(List->Blink)->u1.Flink = Frame;
        List->Blink = Frame;
    }
    List->Total++;
    if (MiCountsAsAvailable(Location)) ++*MiAvailablePages();
}

void MiUnlink(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    ULONG Location = Pfn->u3.e1.PageLocation;
    MMPFNLIST *List = MiList[Location];
    PFN_NUMBER Next = Pfn->u1.Flink, Previous = Pfn->u2.Blink;
    if (Previous == MM_EMPTY_LIST)
        List->Flink = Next;
    else
        MiPfn(Previous)->u1.Flink = Next;
    if (Next == MM_EMPTY_LIST)
        List->Blink = Previous;
    else
        MiPfn(Next)->u2.Blink = Previous;
    List->Total--;
    if (MiCountsAsAvailable(Location)) --*MiAvailablePages();
    Pfn->u1.Flink = 0;
    Pfn->u2.ShareCount = 0;
    Pfn->u3.e1.PageLocation = LOC_TRANSITION;
}

MMPTE *MiPteOfPfn(MMPFN *Pfn) { return (MMPTE *)((UCHAR *)MiF2V(Pfn->u4.PteFrame) + (Pfn->PteLong & 0xFF8)); }

/* Gives a standby frame's PTE back what it held before the page came in, and the frame to nobody. */
static void MiRestoreTransitionPte(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    PFN_NUMBER Holder = Pfn->u4.PteFrame;
    MiWrite(MiPteOfPfn(Pfn), Pfn->OriginalPte);
    MiPfn(Holder)->u3.e1.Modified = 1;
    MiUnshare(Holder);
}

BOOLEAN MiRepurposeStandby(PFN_NUMBER Frame) {
    if (MiPfn(Frame)->u3.e1.PageLocation != LOC_STANDBY) return FALSE;
    MiUnlink(Frame);
    MiRestoreTransitionPte(Frame);
    MiPfn(Frame)->OriginalPte = MiZeroPte(); /* its slot lives on in the PTE */
    MiFreeFrame(Frame);
    return TRUE;
}

void MiZeroFrame(PFN_NUMBER Frame) {
    ULONG64 Count = PAGE_SIZE / 8;
    void *To = MiF2V(Frame);
    __asm__ volatile("rep stosq" : "+D"(To), "+c"(Count) : "a"(0ull) : "memory");
}

/* PFN lock held. The frame comes with ReferenceCount 0, on no list; *WasZeroed says whether it holds zeros. */
static PFN_NUMBER MiTake(BOOLEAN WantZeroed, BOOLEAN Reserve, BOOLEAN *WasZeroed) {
    static const UCHAR Zeroed[3] = {LOC_ZEROED, LOC_FREE, LOC_STANDBY}, Any[3] = {LOC_FREE, LOC_ZEROED, LOC_STANDBY};
    if (!Reserve && *MiAvailablePages() <= MI_RESERVE_PAGES) return MI_NOFRAME;
    for (ULONG Index = 0; Index < 3; Index++) {
        ULONG Location = (WantZeroed ? Zeroed : Any)[Index];
        PFN_NUMBER Frame;
        if (!MiList[Location]->Total) continue;
        Frame = MiList[Location]->Flink;
        MiUnlink(Frame);
        *WasZeroed = Location == LOC_ZEROED;
        if (Location == LOC_STANDBY) MiRestoreTransitionPte(Frame);
        MiPfn(Frame)->OriginalPte = MiZeroPte();
        MiPfn(Frame)->PteLong = 0;
        return Frame;
    }
    return MI_NOFRAME;
}

PFN_NUMBER MiRemovePage(BOOLEAN Zeroed, BOOLEAN Reserve) {
    BOOLEAN WasZeroed;
    PFN_NUMBER Frame = MiTake(Zeroed, Reserve, &WasZeroed);
    if (Frame != MI_NOFRAME && Zeroed && !WasZeroed) MiZeroFrame(Frame);
    return Frame;
}

PFN_NUMBER MiGetPage(BOOLEAN Zeroed, BOOLEAN Reserve) {
    BOOLEAN WasZeroed = FALSE;
    KIRQL Irql = MiLockPfn();
    PFN_NUMBER Frame = MiTake(Zeroed, Reserve, &WasZeroed);
    MiUnlockPfn(Irql);
    if (Frame != MI_NOFRAME && Zeroed && !WasZeroed) MiZeroFrame(Frame);
    return Frame;
}

void MiFreeFrame(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    MiFreeSlot(Pfn->OriginalPte);
    Pfn->OriginalPte = MiZeroPte();
    Pfn->PteLong = 0;
    Pfn->u4.PteFrame = 0;
    Pfn->u4.PrototypePte = 0;
    Pfn->u3.e1.Modified = 0;
    MiInsertList(Frame, LOC_FREE, FALSE);
}

void MiInitializeActive(PFN_NUMBER Frame, ULONG64 PteVa, PFN_NUMBER PteFrame, MMPTE Original, BOOLEAN Prototype) {
    MMPFN *Pfn = MiPfn(Frame);
    Pfn->u1.Flink = 0;
    Pfn->u2.ShareCount = 1;
    Pfn->u3.e2.ReferenceCount = 1;
    Pfn->u3.e1.PageLocation = LOC_ACTIVE;
    Pfn->u3.e1.Modified = 0;
    Pfn->u3.e1.ReadInProgress = 0;
    Pfn->u3.e1.WriteInProgress = 0;
    Pfn->PteLong = PteVa;
    Pfn->OriginalPte = Original;
    Pfn->u4.PteFrame = PteFrame;
    Pfn->u4.PrototypePte = Prototype;
}

/* Frame with no references and no sharers: to where its content belongs. */
static void MiSettle(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    if (Pfn->PteLong & 1) {
        MiFreeFrame(Frame);
    } else if (Pfn->u3.e1.Modified) {
        MiInsertList(Frame, LOC_MODIFIED, FALSE);
    } else {
        MiInsertList(Frame, LOC_STANDBY, FALSE);
    }
}

void MiReference(PFN_NUMBER Frame) { MiPfn(Frame)->u3.e2.ReferenceCount++; }

void MiDereference(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    if (--Pfn->u3.e2.ReferenceCount == 0) MiSettle(Frame);
}

void MiShare(PFN_NUMBER Frame) { MiPfn(Frame)->u2.ShareCount++; }

void MiUnshare(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    NT_ASSERT(Pfn->u3.e1.PageLocation == LOC_ACTIVE && Pfn->u2.ShareCount);
    if (--Pfn->u2.ShareCount) return;
    if (Pfn->u4.PrototypePte && !(Pfn->PteLong & 1)) {
        /* the last valid PTE on a shared page is gone: its prototype PTE goes from valid to transition */
        MiWrite(MiPteOfPfn(Pfn), MiMakeTransition(Frame, MiSoftProtection(Pfn->OriginalPte)));
        MiPfn(Pfn->u4.PteFrame)->u3.e1.Modified = 1;
    }
    Pfn->u3.e1.PageLocation = LOC_TRANSITION;
    MiDereference(Frame);
}

void MiTransitionToActive(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    if (Pfn->u3.e1.PageLocation == LOC_ACTIVE) { /* a table whose own entry was trimmed, kept by what it holds */
        Pfn->u2.ShareCount++;
        return;
    }
    if (Pfn->u3.e1.PageLocation != LOC_TRANSITION) MiUnlink(Frame);
    Pfn->u3.e1.PageLocation = LOC_ACTIVE;
    Pfn->u2.ShareCount = 1;
    Pfn->u3.e2.ReferenceCount++;
}

/* Its PTE is gone: free it as soon as nobody needs it. */
void MiMarkDeleted(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    Pfn->PteLong |= 1;
    if (Pfn->u3.e1.PageLocation == LOC_STANDBY || Pfn->u3.e1.PageLocation == LOC_MODIFIED) {
        MiUnlink(Frame);
        MiFreeFrame(Frame);
    }
}

void MiMarkModified(PFN_NUMBER Frame) {
    MMPFN *Pfn = MiPfn(Frame);
    Pfn->u3.e1.Modified = 1;
    if (MiIsPagefile(MiUnswizzle(Pfn->OriginalPte))) {
        MiFreeSlot(Pfn->OriginalPte);
        Pfn->OriginalPte = MiMakeDemandZero(MiSoftProtection(Pfn->OriginalPte), TRUE);
    }
}

/* Nothing to be had: let the writer and the trimmer work. Not under any lock. */
void MiWaitForPages(void) {
    KeSetEvent(&MiModifiedEvent);
    if (KeGetCurrentIrql() <= APC_LEVEL) {
        KeYieldThread();
        KeSleep(2);
    }
}
