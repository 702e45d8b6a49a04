/* Address spaces: their page tables, the two roots of KVA shadow, tables made, faulted back and given up. */
#include "mi.h"

ULONG64 MmKernelDirectoryTableBase;
ULONG64 MiShadowPml4;
EX_PUSH_LOCK MiSystemLock;

MI_SPACE MiSpaceOf(EPROCESS *Process) {
    MI_SPACE Space;
    if (Process && (Process == PsInitialSystemProcess || Process->Pcb.DirectoryTableBase != MmKernelDirectoryTableBase)) {
        Space.Dtb = Process->Pcb.DirectoryTableBase & ~0xFFFull;
        Space.Lock = (EX_PUSH_LOCK *)&Process->AddressCreationLock;
        Space.Process = Process;
    } else {
        Space.Dtb = MmKernelDirectoryTableBase;
        Space.Lock = &MiSystemLock;
        Space.Process = NULL;
    }
    return Space;
}

PFN_NUMBER MiFrameHolding(MMPTE *Entry) {
    ULONG64 Va = (ULONG64)Entry, Physical;
    if (Va >= MiRange[MI_RANGE_PHYSMAP].Base && Va < MiRange[MI_RANGE_PHYSMAP].End) return (Va - MiPhysicalMap) >> PAGE_SHIFT;
    Physical = MiTranslate(MmKernelDirectoryTableBase, Va);
    NT_ASSERT(Physical != MI_NOFRAME);
    return Physical >> PAGE_SHIFT;
}

void MiTableGained(MMPTE *Entry) { MiShare(MiFrameHolding(Entry)); }
void MiTableLost(MMPTE *Entry) { MiUnshare(MiFrameHolding(Entry)); }

static void MiMirrorTop(MI_SPACE *Space, ULONG64 Va) {
    if (Space->Process && Space->Process->Pcb.UserDirectoryTableBase & ~0xFFFull) {
        ULONG Index = MiIndex(Va, 4);
        ULONG64 User = Space->Process->Pcb.UserDirectoryTableBase & ~0xFFFull;
        MiWrite((MMPTE *)MiP2V(User) + Index, MiRead((MMPTE *)MiP2V(Space->Dtb) + Index));
    }
}

NTSTATUS MiMakePte(MI_SPACE *Space, ULONG64 Va, ULONG Level, MMPTE **Pte) {
    ULONG64 Table = Space->Dtb;
    for (ULONG At = 4; At > Level; At--) {
        MMPTE *Entry = (MMPTE *)MiP2V(Table) + MiIndex(Va, At);
        MMPTE Value = MiRead(Entry);
        if (Value.u.Hard.Valid) {
            if (At <= 3 && Value.u.Hard.LargePage) {
                *Pte = Entry;
                return STATUS_CONFLICTING_ADDRESSES;
            }
        } else {
            KIRQL Irql = MiLockPfn();
            MMPTE Soft = MiUnswizzle(Value = MiRead(Entry));
            PFN_NUMBER Frame;
            if (MiIsTransition(Soft)) {
                Frame = MiTransFrame(Soft);
                if (MiPfn(Frame)->u3.e1.ReadInProgress) {
                    MiUnlockPfn(Irql);
                    ExReleasePushLockExclusive(Space->Lock);
                    KeYieldThread();
                    return MI_RETRY;
                }
                MiTransitionToActive(Frame);
                MiMarkModified(Frame);
                Value = MiMakeValidPte(Frame, MM_EXECUTE_READWRITE, Va < MI_USER_LIMIT, TRUE);
                MiWrite(Entry, Value);
                MiUnlockPfn(Irql);
            } else if (MiIsPagefile(Soft)) {
                return MiInPage(Space, Irql, Entry, MiEntryVa(Va, At), Value, FALSE, NULL);
            } else {
                MiUnlockPfn(Irql);
                Frame = MiGetPage(TRUE, MiMayUseReserve(Space));
                if (Frame == MI_NOFRAME) {
                    ExReleasePushLockExclusive(Space->Lock);
                    MiWaitForPages();
                    return MI_RETRY;
                }
                Irql = MiLockPfn();
                MiInitializeActive(Frame, MiEntryVa(Va, At), Table >> PAGE_SHIFT, MiMakeDemandZero(MM_EXECUTE_READWRITE, TRUE), FALSE);
                MiPfn(Frame)->u3.e1.Modified = 1;
                Value = MiMakeValidPte(Frame, MM_EXECUTE_READWRITE, Va < MI_USER_LIMIT, TRUE);
                MiWrite(Entry, Value);
                MiShare(Table >> PAGE_SHIFT);
                MiUnlockPfn(Irql);
                if (At == 4) MiMirrorTop(Space, Va);
            }
        }
        Table = MiHardFrame(Value) << PAGE_SHIFT;
    }
    *Pte = (MMPTE *)MiP2V(Table) + MiIndex(Va, Level);
    return STATUS_SUCCESS;
}

/* ---- Processes */

void MmInitializeSystemProcess(EPROCESS *Process) {
    Process->Pcb.DirectoryTableBase = MmKernelDirectoryTableBase;
    Process->Pcb.UserDirectoryTableBase = 0;
}

static PFN_NUMBER MiNewTop(void) {
    PFN_NUMBER Frame = MiGetPage(TRUE, TRUE);
    KIRQL Irql;
    if (Frame == MI_NOFRAME) return Frame;
    Irql = MiLockPfn();
    MiInitializeActive(Frame, MiEntryVa(0, 4) + MiSelfMapIndex * 8, Frame, MiMakeDemandZero(MM_READWRITE, FALSE), FALSE);
    MiPfn(Frame)->u3.e1.Modified = 1;
    MiUnlockPfn(Irql);
    return Frame;
}

NTSTATUS MmCreateProcessAddressSpace(EPROCESS *Process) {
    PFN_NUMBER Top = MiNewTop(), User = MI_NOFRAME;
    MMPTE *Table, *System = MiP2V(MmKernelDirectoryTableBase);
    MMPTE Self;
    if (Top == MI_NOFRAME) return STATUS_NO_MEMORY;
    Table = MiF2V(Top);
    for (ULONG Index = 256; Index < 512; Index++) MiWrite(Table + Index, MiRead(System + Index));
    Self = MiMakeValidPte(Top, MM_READWRITE, FALSE, TRUE);
    MiWrite(Table + MiSelfMapIndex, Self);
    if (MiShadowPml4) {
        User = MiNewTop();
        if (User == MI_NOFRAME) return STATUS_NO_MEMORY;
        memcpy((MMPTE *)MiF2V(User) + 256, (MMPTE *)MiP2V(MiShadowPml4) + 256, PAGE_SIZE / 2);
    }
    Process->Pcb.DirectoryTableBase = Top << PAGE_SHIFT;
    Process->Pcb.UserDirectoryTableBase = MiShadowPml4 ? User << PAGE_SHIFT : 0;
    memset((void *)&Process->VadRoot, 0, sizeof Process->VadRoot);
    if (!MiCreateSharedUserData(Process)) return STATUS_NO_MEMORY;
    return STATUS_SUCCESS;
}

static void MiDeleteTables(ULONG64 Table, ULONG Level) {
    ULONG Count = Level == 4 ? 256 : 512;
    for (ULONG Index = 0; Index < Count; Index++) {
        MMPTE *Entry = (MMPTE *)MiP2V(Table) + Index;
        MMPTE Value = MiRead(Entry), Soft = MiUnswizzle(Value);
        KIRQL Irql;
        if (!Value.u.Long || (Value.u.Hard.Valid && Level <= 3 && Value.u.Hard.LargePage)) continue;
        if (Level > 2 && Value.u.Hard.Valid) MiDeleteTables(MiHardFrame(Value) << PAGE_SHIFT, Level - 1);
        Irql = MiLockPfn();
        Value = MiRead(Entry);
        Soft = MiUnswizzle(Value);
        MiWrite(Entry, MiZeroPte());
        if (Value.u.Hard.Valid) {
            MiTableLost(Entry);
            MiMarkDeleted(MiHardFrame(Value));
            MiUnshare(MiHardFrame(Value));
        } else if (MiIsTransition(Soft)) {
            MiTableLost(Entry);
            MiMarkDeleted(MiTransFrame(Soft));
        } else {
            MiFreeSlot(Value);
        }
        MiUnlockPfn(Irql);
    }
}

void MmDeleteProcessAddressSpace(EPROCESS *Process) {
    ULONG64 Roots[2] = {Process->Pcb.DirectoryTableBase & ~0xFFFull, Process->Pcb.UserDirectoryTableBase & ~0xFFFull};
    if (!Roots[0] || Roots[0] == MmKernelDirectoryTableBase) return;
    MiEnter(TRUE);
    MiDeleteTables(Roots[0], 4);
    MiFlushTb(0);
    for (ULONG Index = 0; Index < 2; Index++) {
        KIRQL Irql;
        if (!Roots[Index]) continue;
        Irql = MiLockPfn();
        MiPfn(Roots[Index] >> PAGE_SHIFT)->u2.ShareCount = 1;
        MiMarkDeleted(Roots[Index] >> PAGE_SHIFT);
        MiUnshare(Roots[Index] >> PAGE_SHIFT);
        MiUnlockPfn(Irql);
    }
    Process->Pcb.UserDirectoryTableBase = 0;
    Process->Pcb.DirectoryTableBase = MmKernelDirectoryTableBase;
    MiLeave();
}

/* ---- KVA shadow: a second tree for kernel addresses, holding only what was named. Named at boot, before processes. */
void MmShadowMap(const void *Address, SIZE_T Bytes) {
    ULONG64 Va = PAGE_ALIGN(Address), End = ROUND_TO_PAGES((ULONG64)Address + Bytes);
    if (!MiShadowPml4) return;
    for (; Va < End; Va += PAGE_SIZE) {
        ULONG64 Table = MiShadowPml4, Physical = MiTranslate(MmKernelDirectoryTableBase, Va);
        MMPTE *Source = MiEntry(MmKernelDirectoryTableBase, Va, 1), *Entry, Value;
        if (Physical == MI_NOFRAME) continue;
        for (ULONG At = 4; At > 1; At--) {
            Entry = (MMPTE *)MiP2V(Table) + MiIndex(Va, At);
            if (!MiRead(Entry).u.Hard.Valid) {
                PFN_NUMBER Frame = MiGetPage(TRUE, TRUE);
                KIRQL Irql = MiLockPfn();
                MiInitializeActive(Frame, 0, Table >> PAGE_SHIFT, MiZeroPte(), FALSE);
                MiUnlockPfn(Irql);
                MiWrite(Entry, MiMakeValidPte(Frame, MM_EXECUTE_READWRITE, FALSE, TRUE));
            }
            Table = MiHardFrame(MiRead(Entry)) << PAGE_SHIFT;
        }
        Value = Source ? MiRead(Source) : MiMakeValidPte(Physical >> PAGE_SHIFT, MM_EXECUTE_READWRITE, FALSE, TRUE);
        Value.u.Hard.Global = 0;
        MiWrite((MMPTE *)MiP2V(Table) + MiIndex(Va, 1), Value);
    }
}
