/* The compressed store: modified pages go, compressed, into the memory of a process of their own instead of to a paging file,
 * and come back from there on fault. To the rest of the memory manager it is one more paging file, without a file.
 *
 * SmLock is held while a page is stored or fetched. It comes after a process's AddressCreationLock and before that of the store's
 * own process (whose pages never go into the store): with it held, pages of that process are faulted in. Slots are given back
 * under the PFN lock, so that only marks them; whoever stores a page next takes their records out of the trees. */
#include "mi.h"
#include "store_layout.h"

#define REGION_SHIFT 13 /* of 16-byte units: 128 KB, as in Windows */
#define REGION_UNITS (1u << REGION_SHIFT)
#define REGION_SIZE (REGION_UNITS * 16ull)
#define MOST_REGIONS 256
#define CHUNK_SHIFT 8
#define CHUNK_HEADER 0x20
#define PER_CHUNK ((ULONG)((PAGE_SIZE - CHUNK_HEADER) / sizeof(ST_PAGE_RECORD)))
#define MOST_COMPRESSED 0xFF0 /* more is stored as it is: StDmpSinglePageAdd */
#define STORE_INDEX 1
#define BATCH 16

/* Where the real kernel has it, under the name that it has in the real kernel's PDB. */
static __attribute__((section("CACHEALI"), aligned(64), used)) UCHAR SmGlobals[SM_GLOBALS_SIZE] __asm__("?SmGlobals@@3U_SM_GLOBALS@@A") = {0};
#define SM(type, offset) (*(type *)(SmGlobals + (offset)))
#define ST(type, offset) (*(type *)(SmStore + (offset)))
#define KEY_TREE (&SM(B_TREE *, SMKM_STORE_MGR__KeyToStoreTree))
#define PAGES_TREE (&ST(B_TREE *, ST_DATA_MGR__PagesTree))
#define CHUNKS(offset) (ST_DATA_MGR__ChunkMetaData + SMHP_CHUNK_METADATA__##offset)

static struct {
    ULONG64 *Address; /* what CompressedRegionPtrArray points to */
    ULONG Used[MOST_REGIONS], Live[MOST_REGIONS]; /* units from the region's start; units that records still need */
    ULONG Count, Limit, Current;
} SmRegions;

static UCHAR *SmStore; /* the SMKM_STORE; NULL: no store */
static EPROCESS *SmProcess;
static PFN_NUMBER SmTop;
static EX_PUSH_LOCK SmLock;
static MMPAGING_FILE *SmFile;
static ULONG64 *SmGone; /* bit a slot: given back, its record still there */
static volatile ULONG SmGoneCount;
static ULONG SmNextRecord = 1 << CHUNK_SHIFT, SmFreeRecord; /* numbers; records without a page are chained by their Key */
static UCHAR *SmBuffer, *SmLast; /* compressed bytes; the page stored last, and its record */
static ULONG SmLastRecord;
static USHORT *SmTable;
static KEVENT SmRegionsWanted;
static volatile NTSTATUS SmState = STATUS_PENDING;

BOOLEAN MiIsStoreNumber(ULONG Number) { return SmFile && Number == SmFile->PageFileNumber; }
static ULONG SmKey(ULONG64 Slot) { return SmFile->PageFileNumber << 28 | (ULONG)Slot; }

/* ---- Page records */

static ST_PAGE_RECORD *SmRecord(ULONG Number) {
    ULONG Chunk = Number >> CHUNK_SHIFT, Array = 31 - (ULONG)__builtin_clz(Chunk);
    UCHAR *Entries = ((UCHAR **)(SmStore + CHUNKS(ChunkPtrArray)))[Array];
    UCHAR *Page = *(UCHAR **)(Entries + (Chunk ^ 1u << Array) * SMHP_CHUNK_ENTRY);
    return (ST_PAGE_RECORD *)(Page + CHUNK_HEADER) + (Number & ((1 << CHUNK_SHIFT) - 1));
}

static BOOLEAN SmMakeChunk(ULONG Chunk) {
    ULONG Array = 31 - (ULONG)__builtin_clz(Chunk);
    UCHAR **Entries = (UCHAR **)(SmStore + CHUNKS(ChunkPtrArray)) + Array, *Page;
    if (!*Entries && !(*Entries = ExAllocatePool((SIZE_T)SMHP_CHUNK_ENTRY << Array, 'ABms'))) return FALSE;
    if (!(Page = ExAllocatePool(PAGE_SIZE, 'pHms'))) return FALSE;
    *(ULONG *)(Page + 0x10) = Chunk;
    *(UCHAR **)(*Entries + (Chunk ^ 1u << Array) * SMHP_CHUNK_ENTRY) = Page;
    return TRUE;
}

static ULONG SmTakeRecord(void) {
    ULONG Number = SmFreeRecord;
    if (Number) {
        SmFreeRecord = SmRecord(Number)->Key;
        return Number;
    }
    Number = SmNextRecord;
    if (!(Number & ((1 << CHUNK_SHIFT) - 1)) && !SmMakeChunk(Number >> CHUNK_SHIFT)) return 0;
    SmNextRecord++;
    if ((SmNextRecord & ((1 << CHUNK_SHIFT) - 1)) == PER_CHUNK) SmNextRecord = (SmNextRecord | ((1 << CHUNK_SHIFT) - 1)) + 1;
    return Number;
}

static void SmGiveRecord(ULONG Number) {
    ST_PAGE_RECORD *Record = SmRecord(Number);
    Record->Key = SmFreeRecord;
    Record->CompressedSize = 0;
    SmFreeRecord = Number;
}

static ULONG SmSize(const ST_PAGE_RECORD *Record) { return Record->CompressedSize & 0xFFF ? Record->CompressedSize & 0xFFF : (ULONG)PAGE_SIZE; }
static ULONG SmUnits(ULONG Size) { return (Size + 15) / 16; }

/* One sharer fewer of a record; with the last its bytes are nobody's. */
static void SmReleaseRecord(ULONG Number) {
    for (;;) {
        ST_PAGE_RECORD *Record = SmRecord(Number);
        ULONG Next = Record->CompressedSize;
        if (Record->Key == SM_COMBINED) {
            SmGiveRecord(Number);
            Number = Next;
            continue;
        }
        if (Record->CompressedSize >> 16 > 1) {
            Record->CompressedSize -= 1 << 16;
            return;
        }
        SmRegions.Live[Record->Key >> REGION_SHIFT] -= SmUnits(SmSize(Record));
        if (SmLastRecord == Number) SmLastRecord = 0;
        SmGiveRecord(Number);
        return;
    }
}

/* ---- The owner's memory. In the owner's space, faulting as its own threads would. */

static NTSTATUS SmCopyRegion(ULONG64 Va, UCHAR *Mine, ULONG Bytes, BOOLEAN Store) {
    MI_SPACE Space = MiSpaceOf(SmProcess);
    while (Bytes) {
        ULONG Part = MIN((ULONG)(PAGE_SIZE - BYTE_OFFSET(Va)), Bytes);
        PFN_NUMBER Frame;
        NTSTATUS Status = MiPin(&Space, Va, Store, &Frame);
        UCHAR *Theirs;
        KIRQL Irql;
        if (!NT_SUCCESS(Status)) return Status;
        Theirs = (UCHAR *)MiF2V(Frame) + BYTE_OFFSET(Va);
        memcpy(Store ? Theirs : Mine, Store ? Mine : Theirs, Part);
        Irql = MiLockPfn();
        if (Store) MiMarkModified(Frame);
        MiDereference(Frame);
        MiUnlockPfn(Irql);
        Va += Part, Mine += Part, Bytes -= Part;
    }
    return STATUS_SUCCESS;
}

/* Room for so many units: the record's Key, or SM_COMBINED when the committed regions are full. */
static ULONG SmFindSpace(ULONG Units) {
    for (ULONG Tried = 0; Tried <= SmRegions.Count; Tried++) {
        ULONG Region = SmRegions.Current;
        if (Region < SmRegions.Count && SmRegions.Used[Region] + Units <= REGION_UNITS) {
            ULONG Key = Region << REGION_SHIFT | SmRegions.Used[Region];
            SmRegions.Used[Region] += Units;
            return Key;
        }
        for (Region = 0; Region < SmRegions.Count && SmRegions.Live[Region]; Region++) {}
        if (Region == SmRegions.Count) break;
        SmRegions.Current = Region;
        SmRegions.Used[Region] = 0;
    }
    KeSetEvent(&SmRegionsWanted);
    return SM_COMBINED;
}

/* ---- Storing and fetching; SmLock held */

static void SmForgetGone(void) {
    for (ULONG64 Word = 0; SmGoneCount && Word < (SmFile->Size + 63) / 64; Word++) {
        while (SmGone[Word]) {
            ULONG64 Slot = Word * 64 + (ULONG)__builtin_ctzll(SmGone[Word]);
            ULONG Number;
            KIRQL Irql;
            if (BTreeSearch(*PAGES_TREE, SmKey(Slot), &Number)) {
                BTreeRemove(*PAGES_TREE, SmKey(Slot));
                BTreeRemove(*KEY_TREE, SmKey(Slot));
                SmReleaseRecord(Number);
            }
            Irql = MiLockPfn();
            SmGone[Word] &= ~(1ull << Slot % 64);
            SmGoneCount--;
            MiGiveSlot(SmFile, Slot);
            MiUnlockPfn(Irql);
        }
    }
}

static BOOLEAN SmInsert(ULONG Key, ULONG Record) {
    if (BTreeInsert(KEY_TREE, Key, STORE_INDEX) && BTreeInsert(PAGES_TREE, Key, Record)) return TRUE;
    BTreeRemove(*KEY_TREE, Key);
    return FALSE;
}

/* A page that equals the one stored last shares its record: the way StDmCombinePageRecords leaves it. */
static BOOLEAN SmCombine(ULONG Key, ULONG Number) {
    ST_PAGE_RECORD *Record = SmRecord(Number), *Shared = SmRecord(SmLastRecord);
    if (Shared->CompressedSize >> 16 == 0xFFFF) return FALSE;
    Record->Key = SM_COMBINED;
    Record->CompressedSize = SmLastRecord;
    if (!SmInsert(Key, Number)) return FALSE;
    Shared->CompressedSize += 1 << 16;
    return TRUE;
}

static BOOLEAN SmPageAdd(ULONG Key, const UCHAR *Page) {
    ULONG Number = SmTakeRecord(), Size, Place;
    ST_PAGE_RECORD *Record;
    if (!Number) return FALSE;
    Record = SmRecord(Number);
    if (SmLastRecord && !memcmp(SmLast, Page, PAGE_SIZE) && SmCombine(Key, Number)) return TRUE;
    Size = RtlCompressXpress(Page, PAGE_SIZE, SmBuffer, MOST_COMPRESSED, SmTable);
    if (!Size) memcpy(SmBuffer, Page, Size = PAGE_SIZE);
    Place = SmFindSpace(SmUnits(Size));
    if (Place == SM_COMBINED) goto No;
    if (!NT_SUCCESS(SmCopyRegion(SmRegions.Address[Place >> REGION_SHIFT] + (Place & (REGION_UNITS - 1)) * 16ull, SmBuffer, Size, TRUE))) goto No;
    Record->Key = Place;
    Record->CompressedSize = (Size & 0xFFF) | 1 << 16;
    if (!SmInsert(Key, Number)) goto No;
    SmRegions.Live[Place >> REGION_SHIFT] += SmUnits(Size);
    memcpy(SmLast, Page, PAGE_SIZE);
    SmLastRecord = Number;
    return TRUE;
No:
    SmGiveRecord(Number);
    return FALSE;
}

/* The page of a slot. AtRest: nothing runs, so nothing is locked and nothing is brought in to look at it. */
NTSTATUS MiReadStored(ULONG64 Slot, void *Buffer, BOOLEAN AtRest) {
    ULONG Number = 0, Size;
    ST_PAGE_RECORD *Record;
    ULONG64 Va;
    NTSTATUS Status = STATUS_IN_PAGE_ERROR;
    if (!AtRest) ExAcquirePushLockExclusive(&SmLock);
    if (!BTreeSearch(*PAGES_TREE, SmKey(Slot), &Number)) goto Done;
    while ((Record = SmRecord(Number))->Key == SM_COMBINED) Number = Record->CompressedSize;
    Size = SmSize(Record);
    Va = SmRegions.Address[Record->Key >> REGION_SHIFT] + (Record->Key & (REGION_UNITS - 1)) * 16ull;
    Status = AtRest ? MiPeek(SmProcess, Va, SmBuffer, Size) : SmCopyRegion(Va, SmBuffer, Size, FALSE);
    if (!NT_SUCCESS(Status)) goto Done;
    if (Size == PAGE_SIZE)
        memcpy(Buffer, SmBuffer, PAGE_SIZE);
    else if (!RtlDecompressXpress(SmBuffer, Size, Buffer, PAGE_SIZE))
        Status = STATUS_IN_PAGE_ERROR;
Done:
    if (!AtRest) ExReleasePushLockExclusive(&SmLock);
    return Status;
}

/* PFN lock held: the slot is nobody's any more. */
void MiForgetStored(ULONG64 Slot) {
    NT_ASSERT(!(SmGone[Slot / 64] >> Slot % 64 & 1));
    SmGone[Slot / 64] |= 1ull << Slot % 64;
    SmGoneCount++;
}

/* ---- Modified pages */

/* The top page table that a frame hangs from, and so whose it is. */
static PFN_NUMBER MiTopOf(PFN_NUMBER Frame) {
    for (ULONG Level = 0; Level < 4; Level++) Frame = MiPfn(Frame)->u4.PteFrame;
    return Frame;
}

static BOOLEAN MiStorable(PFN_NUMBER Frame) { return !MiMappedFile(MiPfn(Frame)) && MiTopOf(Frame) != SmTop; }

static BOOLEAN MiIsModified(PFN_NUMBER Frame) {
    return MiList[LOC_MODIFIED]->Total && Frame != MM_EMPTY_LIST && MiPfn(Frame)->u3.e1.PageLocation == LOC_MODIFIED;
}

/* Stores one round of modified pages, or that frame alone; pages stored. What it leaves goes to a paging file. */
ULONG MiStoreWriteModifiedPages(PFN_NUMBER Only) {
    PFN_NUMBER Frames[BATCH];
    ULONG64 Slots[BATCH];
    ULONG Count = 0, Stored = 0;
    KIRQL Irql;
    if (!SmStore) return 0;
    if (Only != MI_NOFRAME)
        ExAcquirePushLockExclusive(&SmLock);
    else if (!ExTryAcquirePushLockExclusive(&SmLock)) /* whoever has it may wait for the pages that only the writer frees */
        return 0;
    SmForgetGone();
    Irql = MiLockPfn();
    for (PFN_NUMBER At = Only != MI_NOFRAME ? Only : MiList[LOC_MODIFIED]->Flink, Next; MiIsModified(At) && Count < BATCH; At = Next) {
        Next = Only != MI_NOFRAME ? MM_EMPTY_LIST : MiPfn(At)->u1.Flink;
        if (!MiStorable(At)) continue;
        if (!MiTakeSlot(SmFile, &Slots[Count])) break;
        MiBeginWrite(At);
        Frames[Count++] = At;
    }
    MiUnlockPfn(Irql);
    for (ULONG Index = 0; Index < Count; Index++) {
        BOOLEAN Added = SmPageAdd(SmKey(Slots[Index]), MiF2V(Frames[Index]));
        Irql = MiLockPfn();
        MiFinishWrite(Frames[Index], Added, MiMakePagefile(MiPfn(Frames[Index])->OriginalPte, SmFile->PageFileNumber, Slots[Index]));
        MiUnlockPfn(Irql);
        Stored += Added;
    }
    ExReleasePushLockExclusive(&SmLock);
    return Stored;
}

BOOLEAN MiStoreWanted(void) { return SmStore && (MmMemoryIsShort() || !(MiRandom() & 3)); }
BOOLEAN MiIsStoreSpace(const MI_SPACE *Space) { return Space->Process && Space->Process == SmProcess; }

/* ---- Start */

/* A store in Process's memory. Boot option STORE=megabytes (default 8, 0: none). */
static NTSTATUS SmKmStoreCreate(EPROCESS *Process) {
    UCHAR *Store = ExAllocatePool(SMKM_STORE_SIZE, 'tSms'), *MetaData = ExAllocatePool(32 * SMKM_STORE_METADATA_SIZE, 'aSms');
    ULONG64 Slots = MmNumberOfPhysicalPages;
    NTSTATUS Status;
    KeInitializeEvent(&SmRegionsWanted, SynchronizationEvent, FALSE);
    SmRegions.Limit = (ULONG)MIN((KeOption("STORE", 8) << 20) / REGION_SIZE, MOST_REGIONS);
    SmRegions.Address = ExAllocatePool(MOST_REGIONS * sizeof(ULONG64), 'rSms');
    SmGone = ExAllocatePool((Slots + 63) / 64 * 8, 'bSms');
    SmBuffer = ExAllocatePool(PAGE_SIZE, 'cSms');
    SmLast = ExAllocatePool(PAGE_SIZE, 'cSms');
    SmTable = ExAllocatePool(RTL_XPRESS_TABLE * sizeof *SmTable, 'cSms');
    if (!SmRegions.Limit) return STATUS_NOT_SUPPORTED;
    if (!Store || !MetaData || !SmRegions.Address || !SmGone || !SmBuffer || !SmLast || !SmTable) return STATUS_NO_MEMORY;
    Status = MiCreateStorePagefile(Slots, &SmFile);
    if (!NT_SUCCESS(Status)) return Status;
    SmProcess = Process;
    SmTop = (PFN_NUMBER)(Process->Pcb.DirectoryTableBase >> PAGE_SHIFT);
    SM(UCHAR *, SMKM_STORE_MGR__SmkmMetaData + STORE_INDEX / 32 * 8) = MetaData;
    *(UCHAR **)(MetaData + STORE_INDEX % 32 * SMKM_STORE_METADATA_SIZE) = Store;
    *(UCHAR **)(Store + ST_DATA_MGR__SmkmStore) = Store;
    *(ULONG *)(Store + ST_DATA_MGR__RegionSizeMask) = REGION_UNITS - 1;
    *(ULONG *)(Store + ST_DATA_MGR__RegionIndexMask) = REGION_SHIFT;
    *(USHORT *)(Store + ST_DATA_MGR__CompressionAlgorithm) = COMPRESSION_FORMAT_XPRESS;
    *(ULONG64 **)(Store + SMKM_STORE__CompressedRegionPtrArray) = SmRegions.Address;
    *(EPROCESS **)(Store + SMKM_STORE__OwnerProcess) = Process;
    *(ULONG *)(Store + CHUNKS(BitValue)) = CHUNK_SHIFT;
    *(ULONG *)(Store + CHUNKS(PageRecordsPerChunkMask)) = (1 << CHUNK_SHIFT) - 1;
    *(ULONG *)(Store + CHUNKS(PageRecordSize)) = sizeof(ST_PAGE_RECORD);
    *(ULONG *)(Store + CHUNKS(ChunkPageHeaderSize)) = CHUNK_HEADER;
    __atomic_store_n(&SmStore, Store, __ATOMIC_RELEASE);
    KdEvent("{\"event\":\"store\",\"number\":%u,\"pid\":%u,\"megabytes\":%u}", SmFile->PageFileNumber, PsGetProcessId(Process),
            (ULONG)(SmRegions.Limit * REGION_SIZE >> 20));
    return STATUS_SUCCESS;
}

/* The store process's own thread: keeps two regions ready. */
void SmKmStoreWorker(void *Context) {
    (void)Context;
    SmState = SmKmStoreCreate(PsGetCurrentProcess());
    while (NT_SUCCESS(SmState)) {
        ULONG Ready = 0;
        for (ULONG Region = 0; Region < SmRegions.Count; Region++) Ready += !SmRegions.Live[Region];
        for (; Ready < 2 && SmRegions.Count < SmRegions.Limit; Ready++) {
            void *Base = NULL;
            SIZE_T Size = REGION_SIZE;
            if (!NT_SUCCESS(MmAllocateVirtualMemory(SmProcess, &Base, &Size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE))) break;
            SmRegions.Address[SmRegions.Count] = (ULONG64)Base;
            __atomic_store_n(&SmRegions.Count, SmRegions.Count + 1, __ATOMIC_RELEASE);
        }
        KeWaitForSingleObject(&SmRegionsWanted, 1000);
    }
    for (;;) KeSleep(1000);
}

NTSTATUS SmWaitForStore(void) {
    while (SmState == STATUS_PENDING) KeSleep(1);
    return SmState;
}
