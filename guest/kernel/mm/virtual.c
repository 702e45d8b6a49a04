/* Private memory: reserving, committing, protecting and freeing it; emptying an address space. */
#include "mi.h"

#define BATCH 64

/* First page at or after Vpn whose tables exist (valid or not), or End + 1. */
static ULONG64 MiSkipHoles(ULONG64 Dtb, ULONG64 Vpn, ULONG64 End) {
    while (Vpn <= End) {
        ULONG64 Table = Dtb;
        ULONG At;
        for (At = 4; At > 1; At--) {
            MMPTE Entry = MiRead((MMPTE *)MiP2V(Table) + MiIndex(Vpn << PAGE_SHIFT, At));
            if (!Entry.u.Long) break;
            if (!Entry.u.Hard.Valid || (At <= 3 && Entry.u.Hard.LargePage)) return Vpn;
            Table = MiHardFrame(Entry) << PAGE_SHIFT;
        }
        if (At == 1) return Vpn;
        Vpn = ((Vpn >> (9 * (At - 1))) + 1) << (9 * (At - 1));
    }
    return End + 1;
}

/* A page table that holds nothing any more goes. Space locked. */
static void MiDropEmptyTable(MI_SPACE *Space, ULONG64 Vpn) {
    MMPTE *Pde = MiEntry(Space->Dtb, Vpn << PAGE_SHIFT, 2), *Table;
    PFN_NUMBER Frame;
    KIRQL Irql;
    if (!Pde || !MiRead(Pde).u.Hard.Valid || MiRead(Pde).u.Hard.LargePage) return;
    Frame = MiHardFrame(MiRead(Pde));
    Table = MiF2V(Frame);
    for (ULONG Index = 0; Index < 512; Index++)
        if (MiRead(Table + Index).u.Long) return;
    Irql = MiLockPfn();
    if (MiPfn(Frame)->u2.ShareCount == 1) {
        MiWrite(Pde, MiZeroPte());
        MiTableLost(Pde);
        MiFlushSpaceTb(Space->Dtb);
        MiMarkDeleted(Frame);
        MiUnshare(Frame);
    }
    MiUnlockPfn(Irql);
}

static void MiDeleteLargePage(MI_SPACE *Space, ULONG64 Vpn) {
    MMPTE *Pde = MiEntry(Space->Dtb, Vpn << PAGE_SHIFT, 2);
    PFN_NUMBER Frame = MiHardFrame(MiRead(Pde));
    KIRQL Irql = MiLockPfn();
    MiWrite(Pde, MiZeroPte());
    MiTableLost(Pde);
    MiFlushTb(0);
    for (ULONG Page = 0; Page < 512; Page++) {
        MiMarkDeleted(Frame + Page);
        MiUnshare(Frame + Page);
    }
    MiUnlockPfn(Irql);
}

/* PFN lock held. Clears one PTE; the frame to let go of after the flush, or MI_NOFRAME. */
static PFN_NUMBER MiClearPte(MMPTE *Pte, ULONG64 Vpn, MMPTE Fill) {
    MMPTE Old = MiExchange(Pte, Fill), Soft = MiUnswizzle(Old);
    PFN_NUMBER Frame;
    if (Old.u.Hard.Valid) {
        Frame = MiHardFrame(Old);
        MiTableLost(Pte);
        if (MiPfn(Frame)->u4.PrototypePte) return Frame;
        if (MiPfn(Frame)->PteLong != MiEntryVa(Vpn << PAGE_SHIFT, 1)) return MI_NOFRAME; /* the shared user data page */
        MiMarkDeleted(Frame);
        return Frame;
    }
    if (MiIsTransition(Soft)) {
        MiTableLost(Pte);
        MiMarkDeleted(MiTransFrame(Soft));
    } else if (MiIsPagefile(Soft)) {
        MiFreeSlot(Old);
    }
    return MI_NOFRAME;
}

/* Takes the pages of a range away, leaving Fill in their PTEs (FillAll: also where there was no page table). The space is
 * locked, though the lock may be dropped on the way when a page table has to be read from disk. */
void MiDeleteRange(MI_SPACE *Space, ULONG64 Start, ULONG64 End, MMPTE Fill, BOOLEAN FillAll) {
    PFN_NUMBER Gone[BATCH];
    ULONG64 Vpn = Start;
    while (Vpn <= End) {
        ULONG64 Last;
        ULONG Count = 0;
        MMPTE *Pte;
        NTSTATUS Status;
        KIRQL Irql;
        if (!FillAll && (Vpn = MiSkipHoles(Space->Dtb, Vpn, End)) > End) break;
        Status = MiMakePte(Space, Vpn << PAGE_SHIFT, 1, &Pte);
        if (Status == MI_RETRY) {
            ExAcquirePushLockExclusive(Space->Lock);
            continue;
        }
        if (Status == STATUS_CONFLICTING_ADDRESSES) {
            MiDeleteLargePage(Space, Vpn);
            Vpn = (Vpn | 511) + 1;
            continue;
        }
        if (Status != STATUS_SUCCESS) { /* the page table cannot be read: what it held is lost */
            ExAcquirePushLockExclusive(Space->Lock);
            Vpn = (Vpn | 511) + 1;
            continue;
        }
        Last = MIN(End, Vpn | 511);
        Last = MIN(Last, Vpn + BATCH - 1);
        Irql = MiLockPfn();
        for (ULONG64 At = Vpn; At <= Last; At++) {
            PFN_NUMBER Frame = MiClearPte(Pte + (At - Vpn), At, Fill);
            if (Frame != MI_NOFRAME) Gone[Count++] = Frame;
        }
        if (Count) MiFlushSpaceTb(Space->Dtb);
        for (ULONG Index = 0; Index < Count; Index++) MiUnshare(Gone[Index]);
        MiUnlockPfn(Irql);
        if ((Last & 511) == 511 || Last == End)
            if (!Fill.u.Long) MiDropEmptyTable(Space, Last);
        Vpn = Last + 1;
    }
}

/* ---- VADs of private memory */

static VAD *MiNewPrivateVad(ULONG64 Start, ULONG64 End, ULONG Protection, BOOLEAN Commit) {
    VAD *Vad = ExAllocatePool(sizeof(MMVAD_SHORT), 'SdaV');
    if (!Vad) return NULL;
    MiSetVadRange(Vad, Start, End);
    Vad->u.VadFlags.PrivateMemory = 1;
    Vad->u.VadFlags.Protection = Protection;
#ifdef HAVE__MMVAD_SHORT__u1_VadFlags1
    Vad->u1.VadFlags1.MemCommit = Commit;
#else
    Vad->u.VadFlags.MemCommit = Commit;
#endif
    if (Commit) MiChargeVad(Vad, (LONG64)(End - Start + 1));
    return Vad;
}

BOOLEAN MiCreateSharedUserData(EPROCESS *Process) {
    ULONG64 Vpn = MM_SHARED_USER_DATA_VA >> PAGE_SHIFT;
    VAD *Vad = MiNewPrivateVad(Vpn, Vpn, MM_READONLY, TRUE);
    MI_SPACE Space = MiSpaceOf(Process);
    NTSTATUS Status;
    MMPTE *Pte;
    KIRQL Irql;
    if (!Vad) return FALSE;
    Vad->u.VadFlags.NoChange = 1;
    do {
        ExAcquirePushLockExclusive(Space.Lock);
        Status = MiMakePte(&Space, MM_SHARED_USER_DATA_VA, 1, &Pte);
    } while (Status == MI_RETRY);
    MiInsertVad(Process, Vad);
    Irql = MiLockPfn();
    MiWrite(Pte, MiMakeValidPte(MiSharedUserFrame, MM_READONLY, TRUE, FALSE));
    MiTableGained(Pte);
    MiUnlockPfn(Irql);
    ExReleasePushLockExclusive(Space.Lock);
    return TRUE;
}

static NTSTATUS MiFillLargePages(MI_SPACE *Space, ULONG64 Start, ULONG64 End, ULONG Protection) {
    for (ULONG64 Vpn = Start; Vpn <= End; Vpn += 512) {
        PFN_NUMBER Frame = MiTakeContiguous(512, 512, ~0ull);
        MMPTE *Pde, New;
        NTSTATUS Status;
        KIRQL Irql;
        if (Frame == MI_NOFRAME) return STATUS_INSUFFICIENT_RESOURCES;
        for (ULONG Page = 0; Page < 512; Page++) MiZeroFrame(Frame + Page);
        do {
            ExAcquirePushLockExclusive(Space->Lock);
            Status = MiMakePte(Space, Vpn << PAGE_SHIFT, 2, &Pde);
        } while (Status == MI_RETRY);
        Irql = MiLockPfn();
        for (ULONG Page = 0; Page < 512; Page++) {
            MiPfn(Frame + Page)->PteLong = MiEntryVa(Vpn << PAGE_SHIFT, 2);
            MiPfn(Frame + Page)->u4.PteFrame = MiFrameHolding(Pde);
            MiPfn(Frame + Page)->u3.e1.Modified = 1;
        }
        New = MiMakeValidPte(Frame, Protection, TRUE, TRUE);
        New.u.Hard.LargePage = 1;
        MiWrite(Pde, New);
        MiTableGained(Pde);
        MiUnlockPfn(Irql);
        ExReleasePushLockExclusive(Space->Lock);
    }
    return STATUS_SUCCESS;
}

static NTSTATUS MiReserve(EPROCESS *Process, ULONG64 *Base, ULONG64 Pages, ULONG Type, ULONG Protection) {
    MI_SPACE Space = MiSpaceOf(Process);
    BOOLEAN Large = (Type & MEM_LARGE_PAGES) != 0;
    ULONG64 Start = *Base >> PAGE_SHIFT;
    NTSTATUS Status = STATUS_SUCCESS;
    VAD *Vad;
    ExAcquirePushLockExclusive(Space.Lock);
    if (!Start) Start = MiFindEmpty(Process, Pages, Large ? 512 : MI_ALLOCATION >> PAGE_SHIFT, Large);
    if (!Start || Start < MI_LOWEST_USER >> PAGE_SHIFT || Start + Pages > MI_USER_LIMIT >> PAGE_SHIFT) {
        Status = STATUS_INVALID_PARAMETER;
    } else if (MiConflictingVad(Process, Start, Start + Pages - 1) || (Large && Start & 511)) {
        Status = STATUS_CONFLICTING_ADDRESSES;
    } else if (!(Vad = MiNewPrivateVad(Start, Start + Pages - 1, Protection, (Type & MEM_COMMIT) != 0))) {
        Status = STATUS_NO_MEMORY;
    } else {
        if (Large) Vad->u.VadFlags.VadType = VAD_LARGE_PAGES;
        MiInsertVad(Process, Vad);
        *Base = Start << PAGE_SHIFT;
    }
    ExReleasePushLockExclusive(Space.Lock);
    if (NT_SUCCESS(Status) && Large) {
        Status = MiFillLargePages(&Space, Start, Start + Pages - 1, Protection);
        if (!NT_SUCCESS(Status)) {
            ExAcquirePushLockExclusive(Space.Lock);
            MiDeleteRange(&Space, Start, Start + Pages - 1, MiZeroPte(), FALSE);
            MiRemoveVad(Process, Vad);
            ExReleasePushLockExclusive(Space.Lock);
            ExFreePool(Vad);
        }
    }
    return Status;
}

/* Walks the PTEs of a range inside one VAD, tables made; Change runs under the PFN lock. */
typedef void (*MI_CHANGE)(MMPTE *Pte, ULONG64 Vpn, VAD *Vad, ULONG Protection);

static NTSTATUS MiChangeRange(MI_SPACE *Space, ULONG64 Start, ULONG64 End, MI_CHANGE Change, ULONG Protection) {
    for (ULONG64 Vpn = Start; Vpn <= End;) {
        VAD *Vad;
        MMPTE *Pte;
        NTSTATUS Status;
        KIRQL Irql;
        ExAcquirePushLockExclusive(Space->Lock);
        Vad = MiLocateVad(Space->Process, Vpn);
        if (!Vad || MiVadEnd(Vad) < End) {
            ExReleasePushLockExclusive(Space->Lock);
            return STATUS_CONFLICTING_ADDRESSES;
        }
        Status = MiMakePte(Space, Vpn << PAGE_SHIFT, 1, &Pte);
        if (Status == MI_RETRY) continue;
        if (Status != STATUS_SUCCESS) {
            if (Status == STATUS_CONFLICTING_ADDRESSES) ExReleasePushLockExclusive(Space->Lock);
            return Status;
        }
        Irql = MiLockPfn();
        do Change(Pte++, Vpn, Vad, Protection);
        while (Vpn++ < End && Vpn & 511);
        MiUnlockPfn(Irql);
        ExReleasePushLockExclusive(Space->Lock);
    }
    MiFlushSpaceTb(Space->Dtb);
    return STATUS_SUCCESS;
}

static void MiCommitPte(MMPTE *Pte, ULONG64 Vpn, VAD *Vad, ULONG Protection) {
    MMPTE Soft = MiUnswizzle(MiRead(Pte));
    (void)Vpn;
    if (!MiVadPrivate(Vad) || Soft.u.Hard.Valid || MiIsTransition(Soft) || MiIsPagefile(Soft)) return;
    if (Soft.u.Long && MiSoftProtection(Soft) != MM_DECOMMIT) return;
    if (!Soft.u.Long && MiVadCommitted(Vad)) return;
    MiChargeVad(Vad, 1);
    MiWrite(Pte, MiMakeDemandZero(Protection, TRUE));
}

NTSTATUS MmAllocateVirtualMemory(EPROCESS *Process, void **Base, SIZE_T *Size, ULONG Type, ULONG Protect) {
    MI_SPACE Space = MiSpaceOf(Process);
    ULONG Protection = MiMakeProtectionMask(Protect);
    ULONG64 Start = (ULONG64)*Base, End = Start + *Size;
    NTSTATUS Status;
    if (!Space.Process || !*Size || *Size > MI_USER_LIMIT || Start > MI_USER_LIMIT) return STATUS_INVALID_PARAMETER;
    if (Protection == MM_INVALID_PROTECTION || (Protect & (PAGE_WRITECOPY | PAGE_EXECUTE_WRITECOPY))) return STATUS_INVALID_PAGE_PROTECTION;
    if (!(Type & (MEM_COMMIT | MEM_RESERVE))) return STATUS_INVALID_PARAMETER;
    if (Type & MEM_LARGE_PAGES) {
        End = (End + MI_LARGE - 1) & ~(MI_LARGE - 1);
        Type |= MEM_COMMIT | MEM_RESERVE;
    }
    MiEnter(TRUE);
    if (Type & MEM_RESERVE || !Start) {
        Start &= ~(MI_ALLOCATION - 1);
        End = ROUND_TO_PAGES(End);
        *Size = End - Start;
        Status = MiReserve(Process, &Start, *Size >> PAGE_SHIFT, Type, Protection);
    } else {
        Start = PAGE_ALIGN(Start);
        End = ROUND_TO_PAGES(End);
        *Size = End - Start;
        Status = MiChangeRange(&Space, Start >> PAGE_SHIFT, (End >> PAGE_SHIFT) - 1, MiCommitPte, Protection);
    }
    MiLeave();
    if (NT_SUCCESS(Status)) *Base = (void *)Start;
    return Status;
}

NTSTATUS MmFreeVirtualMemory(EPROCESS *Process, void **Base, SIZE_T *Size, ULONG Type) {
    MI_SPACE Space = MiSpaceOf(Process);
    ULONG64 Start = PAGE_ALIGN(*Base) >> PAGE_SHIFT, End = (ROUND_TO_PAGES((ULONG64)*Base + *Size) >> PAGE_SHIFT) - 1;
    NTSTATUS Status = STATUS_SUCCESS;
    VAD *Vad, *Dead = NULL;
    if (!Space.Process || (Type != MEM_RELEASE && Type != MEM_DECOMMIT)) return STATUS_INVALID_PARAMETER;
    MiEnter(TRUE);
    ExAcquirePushLockExclusive(Space.Lock);
    Vad = MiLocateVad(Process, Start);
    if (!Vad || !MiVadPrivate(Vad) || Vad->u.VadFlags.NoChange) {
        Status = Vad ? STATUS_INVALID_PARAMETER : STATUS_MEMORY_NOT_ALLOCATED;
    } else {
        if (!*Size) End = MiVadEnd(Vad);
        if (End > MiVadEnd(Vad) || (Type == MEM_RELEASE && (Start != MiVadStart(Vad) || End != MiVadEnd(Vad)))) {
            Status = STATUS_INVALID_PARAMETER;
        } else if (Type == MEM_RELEASE) {
            Vad->u.VadFlags.Protection = MM_NOACCESS; /* no page comes in while the lock is dropped */
            MiDeleteRange(&Space, Start, End, MiZeroPte(), FALSE);
            MiRemoveVad(Process, Vad);
            MiChargeCommit(-MiVadCommit(Vad));
            Dead = Vad;
        } else {
            MiChargeVad(Vad, -(LONG64)(End - Start + 1)); /* as if every page of the range had been committed */
            MiDeleteRange(&Space, Start, End, MiMakeDemandZero(MM_DECOMMIT, TRUE), TRUE);
        }
    }
    ExReleasePushLockExclusive(Space.Lock);
    MiLeave();
    if (Dead) ExFreePool(Dead);
    if (NT_SUCCESS(Status)) {
        *Base = (void *)(Start << PAGE_SHIFT);
        *Size = (End - Start + 1) << PAGE_SHIFT;
    }
    return Status;
}

/* ---- Protection */

static void MiProtectPte(MMPTE *Pte, ULONG64 Vpn, VAD *Vad, ULONG Protection) {
    MMPTE Old = MiRead(Pte), Soft = MiUnswizzle(Old);
    BOOLEAN Hidden = (Protection & 0x18) == MM_NOACCESS || Protection & MM_GUARD_PAGE;
    if (Old.u.Hard.Valid) {
        PFN_NUMBER Frame = MiHardFrame(Old);
        MMPFN *Pfn = MiPfn(Frame);
        if (!Pfn->u4.PrototypePte) {
            if ((Protection & 5) == 5) Protection &= ~1u; /* a private page has nothing to copy from */
            Pfn->OriginalPte.u.Soft.Protection = Protection;
            if (Hidden) { /* out of the working set, so that the next touch faults */
                MiExchange(Pte, MiMakeTransition(Frame, Protection));
                MiFlushTb(Vpn << PAGE_SHIFT);
                MiUnshare(Frame);
            } else {
                MiWrite(Pte, MiMakeValidPte(Frame, Protection, TRUE, (BOOLEAN)Old.u.Hard.Dirty));
            }
        } else if (Hidden) {
            MiExchange(Pte, MiMakeProtoLookup(Protection));
            MiFlushTb(Vpn << PAGE_SHIFT);
            MiTableLost(Pte);
            MiUnshare(Frame);
        } else {
            MiWrite(Pte, MiMakeValidPte(Frame, Protection, TRUE, FALSE));
        }
    } else if (!Soft.u.Long || MiIsProto(Soft)) {
        if (MiVadPrivate(Vad) && !MiVadCommitted(Vad)) return;
        MiWrite(Pte, MiVadPrivate(Vad) ? MiMakeDemandZero(Protection, TRUE) : MiMakeProtoLookup(Protection));
    } else {
        if (MiSoftProtection(Soft) == MM_DECOMMIT && !MiIsTransition(Soft) && !MiIsPagefile(Soft)) return;
        if (MiIsTransition(Soft)) MiPfn(MiTransFrame(Soft))->OriginalPte.u.Soft.Protection = Protection;
        Old.u.Soft.Protection = (Protection & 5) == 5 ? Protection & ~1u : Protection;
        MiWrite(Pte, Old);
    }
}

static ULONG MiProtectionOf(MI_SPACE *Space, ULONG64 Vpn, VAD *Vad) {
    MMPTE *Pte = MiEntry(Space->Dtb, Vpn << PAGE_SHIFT, 1), Value, *Proto;
    if (Pte && (Value = MiRead(Pte)).u.Long) {
        if (Value.u.Hard.Valid) return MiValidProtection(Value);
        if (!MiIsProto(Value) || MiProtoAddress(MiUnswizzle(Value)) == MI_PROTO_LOOKUP) return MiSoftProtection(Value);
    }
    if (!MiVadPrivate(Vad) && Vad->u.VadFlags.VadType == VAD_IMAGE_MAP && (Proto = MiProtoForVad(Vad, Vpn))) {
        MMPTE Own = MiRead(Proto); /* paged pool: may fault, no spin lock is held */
        if (Own.u.Hard.Valid) return MiSoftProtection(MiPfn(MiHardFrame(Own))->OriginalPte);
        return MiSoftProtection(Own);
    }
    return MiVadProtection(Vad);
}

NTSTATUS MmProtectVirtualMemory(EPROCESS *Process, void **Base, SIZE_T *Size, ULONG Protect, ULONG *OldProtect) {
    MI_SPACE Space = MiSpaceOf(Process);
    ULONG Protection = MiMakeProtectionMask(Protect);
    ULONG64 Start = PAGE_ALIGN(*Base) >> PAGE_SHIFT, End = (ROUND_TO_PAGES((ULONG64)*Base + *Size) >> PAGE_SHIFT) - 1;
    NTSTATUS Status = STATUS_CONFLICTING_ADDRESSES;
    VAD *Vad;
    if (!Space.Process || !*Size || *Size > MI_USER_LIMIT) return STATUS_INVALID_PARAMETER;
    if (Protection == MM_INVALID_PROTECTION) return STATUS_INVALID_PAGE_PROTECTION;
    MiEnter(TRUE);
    ExAcquirePushLockExclusive(Space.Lock);
    if ((Vad = MiLocateVad(Process, Start)) && MiVadEnd(Vad) >= End) {
        *OldProtect = MiConvertFromMask(MiProtectionOf(&Space, Start, Vad));
        Status = Vad->u.VadFlags.NoChange ? STATUS_INVALID_PAGE_PROTECTION : STATUS_SUCCESS;
        if (Vad->u.VadFlags.VadType == VAD_IMAGE_MAP && (Protection & 5) == MM_READWRITE) Protection |= 1; /* copy on write */
    }
    ExReleasePushLockExclusive(Space.Lock);
    if (NT_SUCCESS(Status)) Status = MiChangeRange(&Space, Start, End, MiProtectPte, Protection);
    MiLeave();
    if (NT_SUCCESS(Status)) {
        *Base = (void *)(Start << PAGE_SHIFT);
        *Size = (End - Start + 1) << PAGE_SHIFT;
    }
    return Status;
}

/* ---- The end of a process */

void MmCleanProcessAddressSpace(EPROCESS *Process) {
    MI_SPACE Space = MiSpaceOf(Process);
    VAD *Vad;
    if (!Space.Process) return;
    MiEnter(TRUE);
    for (;;) {
        ExAcquirePushLockExclusive(Space.Lock);
        Vad = MiFirstVad(Process);
        if (!Vad) break;
        MiRemoveVad(Process, Vad);
        MiDeleteRange(&Space, MiVadStart(Vad), MiVadEnd(Vad), MiZeroPte(), FALSE);
        MiChargeCommit(-MiVadCommit(Vad));
        ExReleasePushLockExclusive(Space.Lock);
        if (!MiVadPrivate(Vad)) MiUnmapVad(Process, Vad);
        ExFreePool(Vad);
    }
    ExReleasePushLockExclusive(Space.Lock);
    MiLeave();
}
