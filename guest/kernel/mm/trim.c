/* Trimming: pages out of working sets, page tables out of memory, on demand and by the working-set manager. */
#include "mi.h"

#define BATCH 64

static BOOLEAN MiKeeps(EPROCESS *Process) {
#ifdef HAVE__MMSUPPORT_FULL
    return (BOOLEAN)Process->Vm.Instance.Flags.MinimumWorkingSetHard;
#else
    return (BOOLEAN)Process->Vm.Flags.MinimumWorkingSetHard;
#endif
}

static void MiKeep(EPROCESS *Process) {
#ifdef HAVE__MMSUPPORT_FULL
    Process->Vm.Instance.Flags.MinimumWorkingSetHard = 1;
#else
    Process->Vm.Flags.MinimumWorkingSetHard = 1;
#endif
}

static ULONG64 MiLowWater(void) { return MAX(MmNumberOfPhysicalPages / 32, 128); }
BOOLEAN MmMemoryIsShort(void) { return *MiAvailablePages() < MiLowWater(); }

/* What a valid PTE of a shared page turns into: the prototype PTE's address where the page's protection is the prototype's own,
 * else the marker with the protection, which sends the next fault through the VAD. */
static MMPTE MiSharedTrimmed(MMPTE Valid, MMPFN *Pfn) {
    ULONG Own = MiSoftProtection(Pfn->OriginalPte), Here = MiValidProtection(Valid);
    if (Own == MM_EXECUTE) Own = MM_EXECUTE_READ;
    if (Here == Own) return MiMakeProto((MMPTE *)Pfn->PteLong, (Here & 4) == 0);
    return MiMakeProtoLookup(Here);
}

/* One page table's stretch of pages, space locked. Aged: only what was not accessed since the last time. */
static ULONG MiTrimPtes(MI_SPACE *Space, ULONG64 Vpn, ULONG64 Last, BOOLEAN Aged) {
    PFN_NUMBER Frames[BATCH];
    ULONG Total = 0;
    while (Vpn <= Last) {
        ULONG64 Stop = MIN(Last, Vpn + BATCH - 1);
        ULONG Count = 0;
        MMPTE *Pte = MiEntry(Space->Dtb, Vpn << PAGE_SHIFT, 1);
        KIRQL Irql;
        if (!Pte) return Total;
        Irql = MiLockPfn();
        for (; Vpn <= Stop; Vpn++, Pte++) {
            MMPTE Value = MiRead(Pte);
            PFN_NUMBER Frame;
            MMPFN *Pfn;
            if (!Value.u.Hard.Valid) continue;
            Frame = MiHardFrame(Value);
            if (!MiHasPfn(Frame)) continue;
            Pfn = MiPfn(Frame);
            if (Pfn->u3.e2.ReferenceCount != 1) continue; /* locked for I/O or a copy */
            if (!Pfn->u4.PrototypePte && Pfn->PteLong != MiEntryVa(Vpn << PAGE_SHIFT, 1)) continue;
            if (!Space->Process && Pfn->u2.ShareCount != 1) continue; /* paged pool with prototype PTEs in use */
            if (Aged && Value.u.Hard.Accessed) {
                __atomic_and_fetch((PTE64 *)Pte, ~0x20ull, __ATOMIC_SEQ_CST);
                continue;
            }
            if (Pfn->u4.PrototypePte) {
                MiExchange(Pte, MiSharedTrimmed(Value, Pfn));
                MiTableLost(Pte);
            } else {
                MiExchange(Pte, MiMakeTransition(Frame, MiSoftProtection(Pfn->OriginalPte)));
            }
            Frames[Count++] = Frame;
        }
        if (Count) MiFlushTb(0);
        for (ULONG Index = 0; Index < Count; Index++) MiUnshare(Frames[Index]);
        MiUnlockPfn(Irql);
        Total += Count;
    }
    return Total;
}

/* The frame of the page that Va's PTE (or its prototype PTE) has in transition, else MI_NOFRAME. Space locked. */
static PFN_NUMBER MiTransitionFrame(MI_SPACE *Space, VAD *Vad, ULONG64 Vpn, BOOLEAN Protos) {
    MMPTE *Pte = MiEntry(Space->Dtb, Vpn << PAGE_SHIFT, 1), Soft = MiZeroPte(), *Proto = NULL, *P;
    PFN_NUMBER Frame = MI_NOFRAME;
    KIRQL Irql;
    if (Pte) Soft = MiUnswizzle(MiRead(Pte));
    if (Soft.u.Hard.Valid) return MI_NOFRAME;
    if (MiIsTransition(Soft)) return MiTransFrame(Soft);
    if (!Protos || !Vad || MiVadPrivate(Vad) || (Soft.u.Long && !MiIsProto(Soft)) || !(Proto = MiProtoForVad(Vad, Vpn))) return MI_NOFRAME;
    (void)*(volatile PTE64 *)Proto;
    Irql = MiLockPfn();
    if ((P = MiProtoPointer(Proto)) && MiIsTransition(Soft = MiUnswizzle(MiRead(P)))) Frame = MiTransFrame(Soft);
    MiUnlockPfn(Irql);
    return Frame;
}

static BOOLEAN MiTakeAway(PFN_NUMBER Frame, BOOLEAN FromMemory, BOOLEAN Compress) {
    KIRQL Irql;
    BOOLEAN Done = FALSE;
    if (Frame == MI_NOFRAME) return FALSE;
    if (MiPfn(Frame)->u3.e1.PageLocation == LOC_MODIFIED)
        Done = (Compress && MiStoreWriteModifiedPages(Frame)) || MiWriteModified(Frame);
    if (!FromMemory) return Done;
    Irql = MiLockPfn();
    Done = MiRepurposeStandby(Frame);
    MiUnlockPfn(Irql);
    return Done;
}

/* A table without valid entries goes to transition (it stays resident while it holds transition entries), Level 2: a page
 * table by its PDE, 3: a page directory. Space locked. */
static BOOLEAN MiTrimTable(MI_SPACE *Space, ULONG64 Va, ULONG Level, PFN_NUMBER *Frame) {
    MMPTE *Entry = MiEntry(Space->Dtb, Va, Level), Value, *Table;
    KIRQL Irql;
    if (!Entry) return FALSE;
    Irql = MiLockPfn();
    Value = MiRead(Entry);
    *Frame = MiHardFrame(Value);
    if (!Value.u.Hard.Valid || Value.u.Hard.LargePage) goto No;
    Table = MiF2V(*Frame);
    for (ULONG Index = 0; Index < 512; Index++)
        if (MiRead(Table + Index).u.Hard.Valid) goto No;
    MiExchange(Entry, MiMakeTransition(*Frame, MM_EXECUTE_READWRITE));
    MiFlushTb(0);
    MiUnshare(*Frame);
    MiUnlockPfn(Irql);
    return TRUE;
No:
    MiUnlockPfn(Irql);
    if (!Value.u.Hard.Valid && MiIsTransition(MiUnswizzle(Value)))
        *Frame = MiTransFrame(MiUnswizzle(Value));
    else
        *Frame = MI_NOFRAME;
    return FALSE;
}

ULONG MmTrimProcess(EPROCESS *Process, void *Base, SIZE_T Size, ULONG Policy) {
    MI_SPACE Space = MiSpaceOf(Process);
    ULONG64 Start = PAGE_ALIGN(Base) >> PAGE_SHIFT, End = Size ? (ROUND_TO_PAGES((ULONG64)Base + Size) >> PAGE_SHIFT) - 1 : (MI_USER_LIMIT >> PAGE_SHIFT) - 1;
    BOOLEAN Compress = Policy & MmTrimCompress && !MiIsStoreSpace(&Space);
    ULONG Changed = 0;
    if (!Space.Process) return 0;
    if (Policy & MmTrimKeep) MiKeep(Process);
    if (Policy & MmTrimTablesToBacking) Policy |= MmTrimTables;
    MiEnter(TRUE);
    for (ULONG64 Vpn = Start; Vpn <= End;) {
        VAD *Vad;
        ULONG64 Last;
        ExAcquirePushLockExclusive(Space.Lock);
        Vad = MiLocateVad(Process, Vpn);
        if (!Vad) { /* to the next one */
            for (Vad = MiFirstVad(Process); Vad && MiVadStart(Vad) < Vpn; Vad = MiNextVad(Vad)) {}
            if (Vad) Vpn = MiVadStart(Vad);
            ExReleasePushLockExclusive(Space.Lock);
            if (!Vad || Vpn > End) break;
            continue;
        }
        Last = MIN(MIN(End, MiVadEnd(Vad)), Vpn | 511);
        if (MiEntry(Space.Dtb, Vpn << PAGE_SHIFT, 1) && Policy & (MmTrimToTransition | MmTrimToBacking | MmTrimWrite))
            Changed += MiTrimPtes(&Space, Vpn, Last, FALSE);
        if (Policy & (MmTrimWrite | MmTrimToBacking | MmTrimProtosToBacking)) {
            for (ULONG64 At = Vpn; At <= Last; At++) {
                PFN_NUMBER Frame = MiTransitionFrame(&Space, Vad, At, (Policy & MmTrimProtosToBacking) != 0);
                if (MiTakeAway(Frame, (Policy & (MmTrimToBacking | MmTrimProtosToBacking)) != 0, Compress)) Changed++;
            }
        }
        if (Policy & MmTrimTables) {
            PFN_NUMBER Frame;
            for (ULONG Level = 2; Level <= 3; Level++) {
                if (MiTrimTable(&Space, Vpn << PAGE_SHIFT, Level, &Frame)) Changed++;
                if (Policy & MmTrimTablesToBacking && Frame != MI_NOFRAME && MiTakeAway(Frame, TRUE, Compress)) Changed++;
            }
        }
        ExReleasePushLockExclusive(Space.Lock);
        Vpn = Last + 1;
    }
    MiLeave();
    return Changed;
}

/* ---- The working-set manager */

static ULONG MiAgeProcess(EPROCESS *Process, BOOLEAN Aged) {
    MI_SPACE Space = MiSpaceOf(Process);
    ULONG Count = 0;
    if (!Space.Process || MiKeeps(Process) || !ExTryAcquirePushLockExclusive(Space.Lock)) return 0;
    for (VAD *Vad = MiFirstVad(Process); Vad; Vad = MiNextVad(Vad)) {
        for (ULONG64 Vpn = MiVadStart(Vad), Last; Vpn <= MiVadEnd(Vad); Vpn = Last + 1) {
            PFN_NUMBER Table;
            Last = MIN(MiVadEnd(Vad), Vpn | 511);
            Count += MiTrimPtes(&Space, Vpn, Last, Aged);
            if (MiTrimTable(&Space, Vpn << PAGE_SHIFT, 2, &Table)) Count++; /* nothing valid in it any more */
        }
    }
    ExReleasePushLockExclusive(Space.Lock);
    return Count;
}

static ULONG MiAgePagedPool(BOOLEAN Aged) {
    MI_SPACE Space = MiSpaceOf(NULL);
    ULONG Count = 0;
    if (!ExTryAcquirePushLockExclusive(Space.Lock)) return 0;
    for (ULONG64 Vpn = MiRange[MI_RANGE_PAGED].Base >> PAGE_SHIFT; Vpn < MiRange[MI_RANGE_PAGED].End >> PAGE_SHIFT; Vpn += 512)
        Count += MiTrimPtes(&Space, Vpn, Vpn | 511, Aged);
    ExReleasePushLockExclusive(Space.Lock);
    return Count;
}

static void MiZeroFreePages(ULONG Count) {
    while (Count-- && MiList[LOC_FREE]->Total > 64) {
        KIRQL Irql = MiLockPfn();
        PFN_NUMBER Frame = MiList[LOC_FREE]->Total ? MiList[LOC_FREE]->Flink : MI_NOFRAME;
        if (Frame != MI_NOFRAME) MiUnlink(Frame);
        MiUnlockPfn(Irql);
        if (Frame == MI_NOFRAME) return;
        MiZeroFrame(Frame);
        Irql = MiLockPfn();
        MiInsertList(Frame, LOC_ZEROED, FALSE);
        MiUnlockPfn(Irql);
    }
}

void MmWorkingSetManager(void) {
    static ULONG64 Next;
    ULONG64 Period = KeOption("TRIM", 3000), Now = KeQueryInterruptTime();
    BOOLEAN Short = MmMemoryIsShort();
    EPROCESS *Process = NULL;
    KTHREAD *Thread = KeGetCurrentThread();
    Thread->Priority = Thread->BasePriority = 16; /* the balance set manager's */
    if (Short && MiList[LOC_MODIFIED]->Total > 2 * MiLowWater()) { /* enough is on its way out */
        KeSetEvent(&MiModifiedEvent);
        return;
    }
    if (!Short && (!Period || Now < Next)) {
        MiEnter(TRUE);
        MiZeroFreePages(128);
        MiLeave();
        return;
    }
    Next = Now + Period * 10000;
    while ((Process = PsGetNextProcess(Process))) {
        MiEnter(TRUE);
        MiAgeProcess(Process, TRUE);
        if (Short && *MiAvailablePages() + MiList[LOC_MODIFIED]->Total < MiLowWater()) MiAgeProcess(Process, FALSE);
        MiLeave();
    }
    MiEnter(TRUE);
    MiAgePagedPool(TRUE);
    MiLeave();
    if (Short) KeSetEvent(&MiModifiedEvent);
}
