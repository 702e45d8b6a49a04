/* Ground truth: for every page what a fault on it would do, and the SHA-256 of the bytes it would bring in, without doing it. */
#include "mi.h"
#include "../io/io.h"

#define VIA_LARGE 1
#define VIA_TRANSITION_TABLE 2
#define VIA_PAGED_TABLE 4
#define VIA_VAD 8
#define VIA_PROTOTYPE 16
static const char *const MiViaNames[5] = {"large-page", "transition-table", "paged-table", "vad", "prototype"};

typedef struct _MI_TRUTH {
    const char *State;
    ULONG Via;
    BOOLEAN InRam, OnDisk, Failed;
    ULONG64 Physical;  /* of the page; InRam */
    MMPTE Backing;     /* unswizzled; OnDisk: a paging-file or subsection PTE */
    ULONG64 ProtoVa;
    BOOLEAN TablePaged;
    ULONG TableNumber;
    ULONG64 TableSlot;
} MI_TRUTH;

static UCHAR *MiTable, *MiBounce, *MiProtoBounce, *MiPeekBounce;
static PTE64 MiTableHolds; /* the paging-file PTE whose page MiTable has: nothing changes while this runs */
static CHAR MiZeroHash[65];
static char MiLine[1536];
static ULONG MiLines;

/* The leaf PTE of Va, through tables in whatever state; TRUE when there is one (it may be zero). */
static BOOLEAN MiLeaf(ULONG64 Dtb, ULONG64 Va, UCHAR *Bounce, MI_TRUTH *Truth, MMPTE *Leaf) {
    MMPTE *Table = MiP2V(Dtb);
    for (ULONG At = 4;; At--) {
        MMPTE Value = MiRead(Table + MiIndex(Va, At)), Soft = MiUnswizzle(Value);
        ULONG64 Below = (1ull << (3 + 9 * At)) - 1;
        if (At == 1) {
            *Leaf = Value;
            return TRUE;
        }
        if (Value.u.Hard.Valid) {
            if (At <= 3 && Value.u.Hard.LargePage) {
                Truth->State = "valid";
                Truth->Via |= VIA_LARGE;
                Truth->InRam = TRUE;
                Truth->Physical = ((MiHardFrame(Value) << PAGE_SHIFT) & ~Below) | (Va & Below & ~0xFFFull);
                return FALSE;
            }
            Table = MiF2V(MiHardFrame(Value));
        } else if (MiIsTransition(Soft)) {
            Truth->Via |= VIA_TRANSITION_TABLE;
            Table = MiF2V(MiTransFrame(Soft));
        } else if (MiIsPagefile(Soft)) {
            Truth->Via |= VIA_PAGED_TABLE;
            Truth->TablePaged = TRUE;
            Truth->TableNumber = Soft.u.Soft.PageFileLow;
            Truth->TableSlot = Soft.u.Soft.PageFileHigh;
            if (MiTableHolds != Soft.u.Long && !NT_SUCCESS(MiReadBacking(Soft, 0, Bounce))) Truth->Failed = TRUE;
            MiTableHolds = Truth->Failed ? 0 : Soft.u.Long;
            Table = (MMPTE *)Bounce;
        } else {
            *Leaf = MiZeroPte();
            return TRUE;
        }
    }
}

/* What transition, paging-file and demand-zero entries have in common. */
static void MiSoftTruth(MMPTE Soft, MI_TRUTH *Truth) {
    if (MiIsTransition(Soft)) {
        Truth->State = "transition";
        Truth->InRam = TRUE;
        Truth->Physical = MiTransFrame(Soft) << PAGE_SHIFT;
    } else if (MiIsPagefile(Soft)) {
        Truth->State = MiIsStoreNumber(Soft.u.Soft.PageFileLow) ? "compressed" : "pagefile";
        Truth->OnDisk = TRUE;
        Truth->Backing = Soft;
    } else {
        Truth->State = (MiSoftProtection(Soft) & 0x1F) == MM_DECOMMIT ? "unmapped" : "demand-zero";
    }
}

static void MiDescribeKernel(ULONG64 Va, MI_TRUTH *Truth) {
    MMPTE Leaf, Soft;
    if (!MiLeaf(MmKernelDirectoryTableBase, Va, MiTable, Truth, &Leaf)) return;
    Soft = MiUnswizzle(Leaf);
    if (Leaf.u.Hard.Valid) {
        Truth->State = "valid";
        Truth->InRam = TRUE;
        Truth->Physical = MiHardFrame(Leaf) << PAGE_SHIFT;
    } else if (Leaf.u.Long) {
        MiSoftTruth(Soft, Truth);
    } else {
        Truth->State = "unmapped";
    }
}

static void MiProtoTruth(MMPTE *Proto, MI_TRUTH *Truth) {
    MI_TRUTH Holder = {0};
    MMPTE Value, Soft;
    Truth->Via |= VIA_PROTOTYPE;
    Truth->ProtoVa = (ULONG64)Proto;
    MiDescribeKernel(PAGE_ALIGN(Proto), &Holder); /* the prototype PTE's own page may be anywhere too */
    if (Holder.InRam) {
        Value = MiRead((MMPTE *)MiP2V(Holder.Physical + BYTE_OFFSET(Proto)));
    } else {
        if (!Holder.OnDisk || !NT_SUCCESS(MiReadBacking(Holder.Backing, 0, MiProtoBounce))) Truth->Failed = TRUE;
        Value = MiRead((MMPTE *)(MiProtoBounce + BYTE_OFFSET(Proto)));
    }
    Soft = MiUnswizzle(Value);
    if (Value.u.Hard.Valid) {
        Truth->State = "valid";
        Truth->InRam = TRUE;
        Truth->Physical = MiHardFrame(Value) << PAGE_SHIFT;
    } else if (MiIsProto(Soft)) {
        Truth->State = "subsection";
        Truth->OnDisk = TRUE;
        Truth->Backing = Soft;
    } else if (Value.u.Long) {
        MiSoftTruth(Soft, Truth);
    } else {
        Truth->State = "unmapped";
    }
}

static void MiDescribeUser(ULONG64 Dtb, VAD *Vad, ULONG64 Va, MI_TRUTH *Truth) {
    MMPTE Leaf, Soft, *Proto;
    if (!MiLeaf(Dtb, Va, MiTable, Truth, &Leaf)) return;
    Soft = MiUnswizzle(Leaf);
    if (Leaf.u.Hard.Valid) {
        Truth->State = "valid";
        Truth->InRam = TRUE;
        Truth->Physical = MiHardFrame(Leaf) << PAGE_SHIFT;
        return;
    }
    if (Leaf.u.Long && !MiIsProto(Soft)) {
        MiSoftTruth(Soft, Truth);
        return;
    }
    if (MiIsProto(Soft) && MiProtoAddress(Soft) != MI_PROTO_LOOKUP) {
        MiProtoTruth((MMPTE *)MiProtoAddress(Soft), Truth);
        return;
    }
    if (MiVadPrivate(Vad)) {
        Truth->State = MiVadCommitted(Vad) ? "demand-zero" : "unmapped";
        if (MiVadCommitted(Vad)) Truth->Via |= VIA_VAD;
        return;
    }
    Truth->Via |= VIA_VAD;
    Proto = MiProtoForVad(Vad, Va >> PAGE_SHIFT);
    if (Proto)
        MiProtoTruth(Proto, Truth);
    else
        Truth->State = "unmapped";
}

/* Private memory only, which is all that the store's process has; and none of it is in the store itself. */
NTSTATUS MiPeek(EPROCESS *Process, ULONG64 Va, void *Buffer, SIZE_T Bytes) {
    while (Bytes) {
        SIZE_T Part = MIN(PAGE_SIZE - BYTE_OFFSET(Va), Bytes);
        VAD *Vad = MiLocateVad(Process, Va >> PAGE_SHIFT);
        MI_TRUTH Truth = {0};
        UCHAR *Page = MiPeekBounce;
        if (!Vad) return STATUS_IN_PAGE_ERROR;
        MiDescribeUser(Process->Pcb.DirectoryTableBase & ~0xFFFull, Vad, PAGE_ALIGN(Va), &Truth);
        if (Truth.InRam)
            Page = MiP2V(Truth.Physical);
        else if (!Truth.OnDisk)
            memset(Page, 0, PAGE_SIZE);
        else if (!NT_SUCCESS(MiReadBacking(Truth.Backing, 0, Page)))
            return STATUS_IN_PAGE_ERROR;
        memcpy(Buffer, Page + BYTE_OFFSET(Va), Part);
        Va += Part, Buffer = (UCHAR *)Buffer + Part, Bytes -= Part;
    }
    return STATUS_SUCCESS;
}

static SIZE_T MiAppend(SIZE_T At, const char *Format, ...) {
    __builtin_va_list Arguments;
    __builtin_va_start(Arguments, Format);
    At += RtlFormatV(MiLine + At, sizeof MiLine - At, Format, Arguments);
    __builtin_va_end(Arguments);
    return At;
}

static void MiEmit(ULONG Pid, const char *Range, ULONG64 Va, MI_TRUTH *Truth, BOOLEAN Hash) {
    SIZE_T At = MiAppend(0, "{\"event\":\"page\",\"pid\":%u,\"va\":\"0x%llx\",\"state\":\"%s\",\"via\":[", Pid, Va, Truth->State);
    const void *Bytes = NULL;
    const char *Comma = "";
    CHAR Hex[65];
    if (Truth->State[0] == 'u') return; /* reserved, decommitted: there is no page */
    if (Truth->InRam && !MiHasPfn(Truth->Physical >> PAGE_SHIFT)) return; /* a device's memory */
    for (ULONG Index = 0; Index < 5; Index++) {
        if (!(Truth->Via >> Index & 1)) continue;
        At = MiAppend(At, "%s\"%s\"", Comma, MiViaNames[Index]);
        Comma = ",";
    }
    At = MiAppend(At, "]");
    if (Range) At = MiAppend(At, ",\"range\":\"%s\"", Range);
    if (Truth->ProtoVa) At = MiAppend(At, ",\"prototype\":\"0x%llx\"", Truth->ProtoVa);
    if (Truth->TablePaged) At = MiAppend(At, ",\"table\":{\"number\":%u,\"offset\":\"0x%llx\"}", Truth->TableNumber, Truth->TableSlot << PAGE_SHIFT);
    if (Truth->InRam) {
        At = MiAppend(At, ",\"pa\":\"0x%llx\"", Truth->Physical);
        if (MiHasPfn(Truth->Physical >> PAGE_SHIFT)) Bytes = MiP2V(Truth->Physical);
    } else if (Truth->OnDisk) {
        if (MiIsPagefile(Truth->Backing)) {
            At = MiAppend(At, ",\"pagefile\":{\"number\":%u,\"offset\":\"0x%llx\"}", (ULONG)Truth->Backing.u.Soft.PageFileLow,
                          (ULONG64)Truth->Backing.u.Soft.PageFileHigh << PAGE_SHIFT);
        } else {
            SUBSECTION *Subsection = (SUBSECTION *)MiProtoAddress(Truth->Backing);
            At = MiAppend(At, ",\"subsection\":\"0x%llx\",\"file\":\"%wZ\",\"file_offset\":\"0x%llx\"", (ULONG64)Subsection,
                          &MiFileOf(Subsection->ControlArea)->FileName, MiSubsectionFileOffset(Subsection, Truth->ProtoVa));
        }
        if (Hash && NT_SUCCESS(MiReadBacking(Truth->Backing, Truth->ProtoVa, MiBounce))) Bytes = MiBounce;
    } else if (Truth->State[0] == 'd') {
        At = MiAppend(At, ",\"sha256\":\"%s\"", MiZeroHash);
    }
    if (Hash && Bytes && !Truth->Failed) {
        RtlSha256Hex(Bytes, PAGE_SIZE, Hex);
        At = MiAppend(At, ",\"sha256\":\"%s\"", Hex);
    }
    At = MiAppend(At, "}\n");
    KdWrite(MiLine, At);
    MiLines++;
}

/* A committed range that was never touched is long and says nothing: its first pages stand for all. */
static void MiEmitProcess(EPROCESS *Process) {
    ULONG64 Dtb = Process->Pcb.DirectoryTableBase & ~0xFFFull;
    for (VAD *Vad = MiFirstVad(Process); Vad; Vad = MiNextVad(Vad)) {
        ULONG Promised = 0;
        for (ULONG64 Vpn = MiVadStart(Vad); Vpn <= MiVadEnd(Vad); Vpn++) {
            MI_TRUTH Truth = {0};
            MiDescribeUser(Dtb, Vad, Vpn << PAGE_SHIFT, &Truth);
            if (Truth.State[0] == 'd' && Truth.Via == VIA_VAD && ++Promised > 64) continue;
            if (Truth.Via & VIA_LARGE && Vpn & 0x3F) continue; /* every 64th page of a large one */
            MiEmit(PsGetProcessId(Process), NULL, Vpn << PAGE_SHIFT, &Truth, Vpn << PAGE_SHIFT != MM_SHARED_USER_DATA_VA);
        }
    }
}

/* Kernel ranges; a hash only where nothing changes while this runs: read-only image pages and paged pool. */
static void MiEmitKernel(ULONG Pid) {
    for (ULONG Which = 0; Which < MI_RANGE_COUNT; Which++) {
        MI_RANGE *Range = &MiRange[Which];
        for (ULONG64 Va = PAGE_ALIGN(Range->Base); Va < Range->End;) {
            MI_TRUTH Truth = {0};
            BOOLEAN Hash = Range->Paged;
            MMPTE *Pte;
            MiDescribeKernel(Va, &Truth);
            if (Truth.State[0] == 'u') { /* over the hole in one step */
                ULONG64 Step = MiEntry(MmKernelDirectoryTableBase, Va, 1) ? PAGE_SIZE
                               : MiEntry(MmKernelDirectoryTableBase, Va, 2) ? MI_LARGE : 1ull << 30;
                Va = (Va & ~(Step - 1)) + Step;
                continue;
            }
            if (Truth.Via & VIA_LARGE) {
                ULONG64 Step = MiEntry(MmKernelDirectoryTableBase, Va, 2) ? MI_LARGE / 2 : 1ull << 28;
                MiEmit(Pid, Range->Name, Va, &Truth, FALSE);
                Va = (Va & ~(Step - 1)) + Step;
                continue;
            }
            Pte = MiEntry(MmKernelDirectoryTableBase, Va, 1);
            if (Which == MI_RANGE_IMAGE && Pte && !MiRead(Pte).u.Hard.Write) Hash = TRUE;
            MiEmit(Pid, Range->Name, Va, &Truth, Hash);
            Va += PAGE_SIZE;
        }
    }
}

ULONG MmEmitTruth(EPROCESS *Process) {
    if (!MiTable) {
        MiTable = ExAllocatePool(PAGE_SIZE, 'tTmM');
        MiBounce = ExAllocatePool(PAGE_SIZE, 'tTmM');
        MiProtoBounce = ExAllocatePool(PAGE_SIZE, 'tTmM');
        MiPeekBounce = ExAllocatePool(PAGE_SIZE, 'tTmM');
    }
    MiLines = 0;
    MiTableHolds = 0;
    memset(MiBounce, 0, PAGE_SIZE);
    RtlSha256Hex(MiBounce, PAGE_SIZE, MiZeroHash);
    if (Process && Process != PsInitialSystemProcess) {
        MiEmitProcess(Process);
    } else if (Process) {
        MiEmitKernel(PsGetProcessId(Process));
    } else {
        MiEmitKernel(PsGetProcessId(PsInitialSystemProcess));
        for (LIST_ENTRY *At = PsActiveProcessHead.Flink; At != &PsActiveProcessHead; At = At->Flink) {
            Process = CONTAINING_RECORD(At, EPROCESS, ActiveProcessLinks);
            if (MiSpaceOf(Process).Process) MiEmitProcess(Process);
        }
    }
    return MiLines;
}
