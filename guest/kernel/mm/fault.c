/* Page faults: every invalid form of a PTE to a valid one. Reads from disk run with no lock held: the PTE is in transition to a
 * frame that says ReadInProgress, and whoever meets it waits and looks again. */
#include "mi.h"

#define MI_UNKNOWN 0xFFu /* protection: whatever the prototype PTE says */

static BOOLEAN MiAllowed(ULONG Protection, BOOLEAN Write, BOOLEAN Execute) {
    if ((Protection & 0x18) == MM_NOACCESS || !(Protection & 7)) return FALSE;
    if (Write && !(Protection & MM_PROTECTION_WRITE_MASK)) return FALSE;
    return !Execute || (Protection & 2);
}

static ULONG MiPrivateProtection(ULONG Protection) { /* a private page has nothing to copy from */
    return (Protection & 5) == 5 ? Protection & ~1u : Protection;
}

MMPTE *MiProtoPointer(MMPTE *Proto) {
    ULONG64 Physical = MiTranslate(MmKernelDirectoryTableBase, (ULONG64)Proto);
    return Physical == MI_NOFRAME ? NULL : MiP2V(Physical);
}

static NTSTATUS MiRetry(MI_SPACE *Space) {
    ExReleasePushLockExclusive(Space->Lock);
    KeYieldThread();
    return MI_RETRY;
}

static NTSTATUS MiRetryForPage(MI_SPACE *Space) {
    ExReleasePushLockExclusive(Space->Lock);
    MiWaitForPages();
    return MI_RETRY;
}

NTSTATUS MiInPage(MI_SPACE *Space, KIRQL Irql, MMPTE *Entry, ULONG64 EntryVa, MMPTE Value, BOOLEAN Prototype, SUBSECTION *Subsection) {
    MMPTE Soft = MiUnswizzle(Value);
    PFN_NUMBER Frame = MiRemovePage(FALSE, MiMayUseReserve(Space)), Holder = MiFrameHolding(Entry);
    NTSTATUS Status;
    MMPFN *Pfn;
    if (Frame == MI_NOFRAME) {
        MiUnlockPfn(Irql);
        return MiRetryForPage(Space);
    }
    Pfn = MiPfn(Frame);
    MiInitializeActive(Frame, EntryVa, Holder, Value, Prototype);
    Pfn->u2.ShareCount = 0;
    Pfn->u3.e1.PageLocation = LOC_TRANSITION; /* one reference: the read's */
    Pfn->u3.e1.ReadInProgress = 1;
    MiWrite(Entry, MiMakeTransition(Frame, MiSoftProtection(Value)));
    MiShare(Holder);
    if (Prototype) MiMarkModified(Holder);
    MiUnlockPfn(Irql);
    ExReleasePushLockExclusive(Space->Lock);

    Status = Subsection ? MiReadSubsectionPage(Subsection, EntryVa, MiF2V(Frame))
                        : MiReadSlot(Soft.u.Soft.PageFileLow, Soft.u.Soft.PageFileHigh, MiF2V(Frame));

    Irql = MiLockPfn();
    Pfn->u3.e1.ReadInProgress = 0;
    if (!NT_SUCCESS(Status) && !(Pfn->PteLong & 1)) {
        MiWrite(MiPteOfPfn(Pfn), Pfn->OriginalPte);
        MiUnshare(Pfn->u4.PteFrame);
        Pfn->OriginalPte = MiZeroPte();
        Pfn->PteLong |= 1;
    }
    MiDereference(Frame); /* to the standby list; the next look takes it from there */
    MiUnlockPfn(Irql);
#ifdef HAVE__MMSUPPORT_FULL
    if (Space->Process) Space->Process->Vm.Instance.HardFaultCount++;
#endif
    return NT_SUCCESS(Status) ? MI_RETRY : STATUS_IN_PAGE_ERROR;
}

/* ---- Valid PTEs: writes to clean or copy-on-write pages, else nothing was wrong (another processor was first) */

static NTSTATUS MiCopyOnWrite(MI_SPACE *Space, ULONG64 Va, MMPTE *Pte, MMPTE Value) {
    PFN_NUMBER Old = MiHardFrame(Value), New = MiGetPage(FALSE, FALSE);
    ULONG Protection = MiPrivateProtection(MiValidProtection(Value));
    KIRQL Irql;
    if (New == MI_NOFRAME) return MiRetryForPage(Space);
    memcpy(MiF2V(New), MiF2V(Old), PAGE_SIZE);
    Irql = MiLockPfn();
    MiInitializeActive(New, MiEntryVa(Va, 1), MiFrameHolding(Pte), MiMakeDemandZero(Protection, TRUE), FALSE);
    MiPfn(New)->u3.e1.Modified = 1;
    MiWrite(Pte, MiMakeValidPte(New, Protection, TRUE, TRUE));
    MiFlushTb(Va);
    MiUnshare(Old);
    MiUnlockPfn(Irql);
    ExReleasePushLockExclusive(Space->Lock);
    return STATUS_SUCCESS;
}

static NTSTATUS MiValidFault(MI_SPACE *Space, ULONG64 Va, MMPTE *Pte, MMPTE Value, BOOLEAN Write, BOOLEAN Execute, BOOLEAN User) {
    NTSTATUS Status = STATUS_SUCCESS;
    if ((User && !Value.u.Hard.Owner) || (Execute && Value.u.Hard.NoExecute)) {
        Status = STATUS_ACCESS_VIOLATION;
    } else if (Write && !Value.u.Hard.Dirty1) {
        if (Value.u.Hard.CopyOnWrite) return MiCopyOnWrite(Space, Va, Pte, Value);
        if (Value.u.Hard.Write) {
            KIRQL Irql = MiLockPfn();
            Value.u.Hard.Dirty = Value.u.Hard.Dirty1 = 1;
            if (MiHasPfn(MiHardFrame(Value))) MiMarkModified(MiHardFrame(Value));
            MiWrite(Pte, Value);
            MiUnlockPfn(Irql);
        } else {
            Status = STATUS_ACCESS_VIOLATION;
        }
    }
    __invalidate((void *)Va);
    ExReleasePushLockExclusive(Space->Lock);
    return Status;
}

/* ---- Private pages */

static NTSTATUS MiDemandZeroFault(MI_SPACE *Space, ULONG64 Va, MMPTE *Pte, ULONG Protection, BOOLEAN Write) {
    PFN_NUMBER Frame = MiGetPage(TRUE, MiMayUseReserve(Space));
    KIRQL Irql;
    if (Frame == MI_NOFRAME) return MiRetryForPage(Space);
    Protection = MiPrivateProtection(Protection);
    Irql = MiLockPfn();
    MiInitializeActive(Frame, MiEntryVa(Va, 1), MiFrameHolding(Pte), MiMakeDemandZero(Protection, TRUE), FALSE);
    MiPfn(Frame)->u3.e1.Modified = Write;
    MiWrite(Pte, MiMakeValidPte(Frame, Protection, Space->Process != NULL, Write));
    MiTableGained(Pte);
    MiUnlockPfn(Irql);
    ExReleasePushLockExclusive(Space->Lock);
    return STATUS_SUCCESS;
}

static NTSTATUS MiTransitionFault(MI_SPACE *Space, MMPTE *Pte, BOOLEAN Write) {
    KIRQL Irql = MiLockPfn();
    MMPTE Soft = MiUnswizzle(MiRead(Pte));
    PFN_NUMBER Frame;
    MMPFN *Pfn;
    if (!MiIsTransition(Soft)) {
        MiUnlockPfn(Irql);
        return MiRetry(Space);
    }
    Frame = MiTransFrame(Soft);
    Pfn = MiPfn(Frame);
    if (Pfn->u3.e1.ReadInProgress) {
        MiUnlockPfn(Irql);
        return MiRetry(Space);
    }
    MiTransitionToActive(Frame);
    if (Write) MiMarkModified(Frame);
    MiWrite(Pte, MiMakeValidPte(Frame, MiPrivateProtection(MiSoftProtection(Soft)), Space->Process != NULL, Write || Pfn->u3.e1.Modified));
    MiUnlockPfn(Irql);
    ExReleasePushLockExclusive(Space->Lock);
    return STATUS_SUCCESS;
}

/* ---- Shared pages */

static NTSTATUS MiProtoFault(MI_SPACE *Space, MMPTE *Pte, MMPTE *Proto, ULONG Protection, BOOLEAN Write, BOOLEAN Execute) {
    MMPTE *P, Value, Soft;
    PFN_NUMBER Frame;
    ULONG Own;
    KIRQL Irql;
    BOOLEAN Copy;
    for (;;) { /* the prototype PTE's own page may be out: touching it is a fault of its own */
        (void)*(volatile PTE64 *)Proto;
        Irql = MiLockPfn();
        if ((P = MiProtoPointer(Proto))) break;
        MiUnlockPfn(Irql);
    }
    Value = MiRead(P);
    Soft = MiUnswizzle(Value);
    Own = Value.u.Hard.Valid ? MiSoftProtection(MiPfn(MiHardFrame(Value))->OriginalPte) : MiSoftProtection(Soft);
    if (Protection == MI_UNKNOWN) Protection = Own;
    Copy = (Protection & 5) == 5;
    if (!Value.u.Long || !MiAllowed(Protection, Write, Execute)) {
        MiUnlockPfn(Irql);
        ExReleasePushLockExclusive(Space->Lock);
        return STATUS_ACCESS_VIOLATION;
    }
    if (Value.u.Hard.Valid) {
        Frame = MiHardFrame(Value);
        MiShare(Frame);
    } else if (MiIsTransition(Soft)) {
        Frame = MiTransFrame(Soft);
        if (MiPfn(Frame)->u3.e1.ReadInProgress) {
            MiUnlockPfn(Irql);
            return MiRetry(Space);
        }
        MiTransitionToActive(Frame);
        MiMarkModified(MiFrameHolding(P));
        MiWrite(P, MiMakeValidPte(Frame, Own, FALSE, FALSE));
    } else if (MiIsProto(Soft)) {
        return MiInPage(Space, Irql, P, (ULONG64)Proto, Value, TRUE, (SUBSECTION *)MiProtoAddress(Soft));
    } else if (MiIsPagefile(Soft)) {
        return MiInPage(Space, Irql, P, (ULONG64)Proto, Value, TRUE, NULL);
    } else {
        MiUnlockPfn(Irql);
        Frame = MiGetPage(TRUE, FALSE);
        if (Frame == MI_NOFRAME) return MiRetryForPage(Space);
        Irql = MiLockPfn();
        P = MiProtoPointer(Proto);
        if (!P || MiRead(P).u.Long != Value.u.Long) {
            MiFreeFrame(Frame);
            MiUnlockPfn(Irql);
            return MiRetry(Space);
        }
        MiInitializeActive(Frame, (ULONG64)Proto, MiFrameHolding(P), Value, TRUE);
        MiTableGained(P);
        MiMarkModified(MiFrameHolding(P));
        MiWrite(P, MiMakeValidPte(Frame, Own, FALSE, FALSE));
    }
    if (Write && !Copy) MiMarkModified(Frame);
    MiWrite(Pte, MiMakeValidPte(Frame, Protection, TRUE, Write && !Copy));
    MiTableGained(Pte);
    MiUnlockPfn(Irql);
    ExReleasePushLockExclusive(Space->Lock);
    return Write && Copy ? MI_RETRY : STATUS_SUCCESS;
}

/* ---- One look at the PTE. The space's lock is taken and released. */
static NTSTATUS MiFaultOnce(MI_SPACE *Space, ULONG64 Va, BOOLEAN Write, BOOLEAN Execute, BOOLEAN User) {
    VAD *Vad = NULL;
    MMPTE *Pte, Value, Soft, *Proto = NULL;
    NTSTATUS Status;
    ULONG Protection = MM_READWRITE;
    ExAcquirePushLockExclusive(Space->Lock);
    if (Space->Process && !(Vad = MiLocateVad(Space->Process, Va >> PAGE_SHIFT))) goto Violation;
    Status = MiMakePte(Space, Va, 1, &Pte);
    if (Status == STATUS_CONFLICTING_ADDRESSES) { /* a large page */
        Value = MiRead(Pte);
        if ((Write && !Value.u.Hard.Dirty1) || (Execute && Value.u.Hard.NoExecute)) goto Violation;
        ExReleasePushLockExclusive(Space->Lock);
        return STATUS_SUCCESS;
    }
    if (Status != STATUS_SUCCESS) return Status;
    Value = MiRead(Pte);
    if (Value.u.Hard.Valid) return MiValidFault(Space, Va, Pte, Value, Write, Execute, User);
    Soft = MiUnswizzle(Value);

    if (!Value.u.Long) {
        if (!Vad) goto Violation;
        Protection = MiVadProtection(Vad);
        if (MiVadPrivate(Vad)) {
            if (!MiVadCommitted(Vad) || !MiAllowed(Protection, Write, Execute)) goto Violation;
            if (Protection & MM_GUARD_PAGE) {
                MiWrite(Pte, MiMakeDemandZero(Protection & 7, TRUE));
                ExReleasePushLockExclusive(Space->Lock);
                return STATUS_GUARD_PAGE_VIOLATION;
            }
            return MiDemandZeroFault(Space, Va, Pte, Protection, Write);
        }
        if (!(Proto = MiProtoForVad(Vad, Va >> PAGE_SHIFT))) goto Violation;
        if (Vad->u.VadFlags.VadType == VAD_IMAGE_MAP) Protection = MI_UNKNOWN;
        return MiProtoFault(Space, Pte, Proto, Protection, Write, Execute);
    }
    Protection = MiSoftProtection(Soft);
    if (MiIsProto(Soft)) {
        ULONG64 Address = MiProtoAddress(Soft);
        if (Address != MI_PROTO_LOOKUP) return MiProtoFault(Space, Pte, (MMPTE *)Address, MI_UNKNOWN, Write, Execute);
        if (!Vad || !(Proto = MiProtoForVad(Vad, Va >> PAGE_SHIFT))) goto Violation;
        return MiProtoFault(Space, Pte, Proto, Protection, Write, Execute);
    }
    if (!MiAllowed(Protection, Write, Execute)) goto Violation;
    if (Protection & MM_GUARD_PAGE) { /* once; the page itself stays where it is */
        KIRQL Irql = MiLockPfn();
        Soft = MiRead(Pte);
        if (!Soft.u.Hard.Valid) {
            Soft.u.Soft.Protection = Protection & 7;
            MiWrite(Pte, Soft);
        }
        MiUnlockPfn(Irql);
        ExReleasePushLockExclusive(Space->Lock);
        return STATUS_GUARD_PAGE_VIOLATION;
    }
    if (MiIsTransition(Soft)) return MiTransitionFault(Space, Pte, Write);
    if (MiIsPagefile(Soft)) {
        KIRQL Irql = MiLockPfn();
        if (MiRead(Pte).u.Long == Value.u.Long) return MiInPage(Space, Irql, Pte, MiEntryVa(Va, 1), Value, FALSE, NULL);
        MiUnlockPfn(Irql);
        return MiRetry(Space);
    }
    return MiDemandZeroFault(Space, Va, Pte, Protection, Write);
Violation:
    ExReleasePushLockExclusive(Space->Lock);
    return STATUS_ACCESS_VIOLATION;
}

NTSTATUS MiFault(MI_SPACE *Space, ULONG64 Va, BOOLEAN Write, BOOLEAN Execute, BOOLEAN User) {
    NTSTATUS Status;
#ifdef HAVE__MMSUPPORT_FULL
    if (Space->Process) Space->Process->Vm.Instance.PageFaultCount++;
#else
    if (Space->Process) Space->Process->Vm.PageFaultCount++;
#endif
    do Status = MiFaultOnce(Space, Va, Write, Execute, User);
    while (Status == MI_RETRY);
    return Status;
}

NTSTATUS MmAccessFault(ULONG64 ErrorCode, void *Address, BOOLEAN UserMode, KTRAP_FRAME *TrapFrame) {
    ULONG64 Va = (ULONG64)Address;
    EPROCESS *Process = PsGetCurrentProcess();
    MI_SPACE Space;
    NTSTATUS Status;
    BOOLEAN Write = ErrorCode >> 1 & 1, Execute = ErrorCode >> 4 & 1;
    (void)TrapFrame;
    if (KeGetCurrentIrql() >= DISPATCH_LEVEL) return STATUS_ACCESS_VIOLATION;
    if (Va >= 0x800000000000ull) {
        if (UserMode || Va < MiRange[MI_RANGE_PAGED].Base || Va >= MiRange[MI_RANGE_PAGED].End) return STATUS_ACCESS_VIOLATION;
        Space = MiSpaceOf(NULL);
    } else {
        if (Va >= MI_USER_LIMIT || !Process) return STATUS_ACCESS_VIOLATION;
        Space = MiSpaceOf(Process);
        if (!Space.Process) return STATUS_ACCESS_VIOLATION;
    }
    MiEnter(UserMode);
    Status = MiFault(&Space, Va, Write, Execute, UserMode);
    MiLeave();
    return Status;
}

/* ---- Copies that never fault */

NTSTATUS MiPin(MI_SPACE *Space, ULONG64 Va, BOOLEAN Write, PFN_NUMBER *Frame) {
    for (;;) {
        NTSTATUS Status = MiFault(Space, Va, Write, FALSE, FALSE);
        ULONG64 Physical;
        MMPTE *Pte;
        KIRQL Irql;
        if (!NT_SUCCESS(Status)) return Status;
        ExAcquirePushLockExclusive(Space->Lock);
        Irql = MiLockPfn();
        Physical = MiTranslate(Space->Dtb, Va);
        Pte = MiEntry(Space->Dtb, Va, 1);
        if (Physical != MI_NOFRAME && Pte && Write && !MiRead(Pte).u.Hard.Dirty1) Physical = MI_NOFRAME;
        if (Physical != MI_NOFRAME) MiReference(Physical >> PAGE_SHIFT);
        MiUnlockPfn(Irql);
        ExReleasePushLockExclusive(Space->Lock);
        if (Physical == MI_NOFRAME) continue;
        *Frame = Physical >> PAGE_SHIFT;
        return STATUS_SUCCESS;
    }
}

NTSTATUS MmCopyProcess(EPROCESS *Process, void *UserAddress, void *Buffer, SIZE_T Bytes, BOOLEAN ToProcess) {
    MI_SPACE Space = MiSpaceOf(Process);
    ULONG64 Va = (ULONG64)UserAddress;
    UCHAR *Mine = Buffer;
    if (!Space.Process || Va >= MI_USER_LIMIT || Bytes > MI_USER_LIMIT - Va) return STATUS_ACCESS_VIOLATION;
    while (Bytes) {
        SIZE_T Part = MIN(PAGE_SIZE - BYTE_OFFSET(Va), Bytes);
        PFN_NUMBER Frame;
        NTSTATUS Status;
        KIRQL Irql;
        MiEnter(TRUE);
        Status = MiPin(&Space, Va, ToProcess, &Frame);
        if (NT_SUCCESS(Status)) {
            UCHAR *Theirs = (UCHAR *)MiF2V(Frame) + BYTE_OFFSET(Va);
            memcpy(ToProcess ? Theirs : Mine, ToProcess ? Mine : Theirs, Part); /* Buffer: nonpaged */
            Irql = MiLockPfn();
            if (ToProcess) MiMarkModified(Frame);
            MiDereference(Frame);
            MiUnlockPfn(Irql);
        }
        MiLeave();
        if (!NT_SUCCESS(Status)) return Status;
        Va += Part, Mine += Part, Bytes -= Part;
    }
    return STATUS_SUCCESS;
}

NTSTATUS MmCopyFromUser(void *To, const void *UserFrom, SIZE_T Bytes) {
    return MmCopyProcess(PsGetCurrentProcess(), (void *)UserFrom, To, Bytes, FALSE);
}

NTSTATUS MmCopyToUser(void *UserTo, const void *From, SIZE_T Bytes) {
    return MmCopyProcess(PsGetCurrentProcess(), UserTo, (void *)From, Bytes, TRUE);
}

NTSTATUS MiReadBacking(MMPTE Soft, ULONG64 ProtoVa, void *Buffer) {
    if (MiIsPagefile(Soft) && MiIsStoreNumber(Soft.u.Soft.PageFileLow)) return MiReadStored(Soft.u.Soft.PageFileHigh, Buffer, TRUE);
    if (MiIsPagefile(Soft)) return MiReadSlot(Soft.u.Soft.PageFileLow, Soft.u.Soft.PageFileHigh, Buffer);
    if (MiIsProto(Soft)) return MiReadSubsectionPage((SUBSECTION *)MiProtoAddress(Soft), ProtoVa, Buffer);
    memset(Buffer, 0, PAGE_SIZE);
    return STATUS_SUCCESS;
}
