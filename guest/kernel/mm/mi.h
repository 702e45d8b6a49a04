/* The memory manager's private side.
 *
 * Locks, in order: a process's AddressCreationLock (VADs and working set; held across nothing that waits for the disk),
 * MiSystemLock (the same for paged pool), the PFN lock (spin; every PTE that leaves or enters a valid or transition state
 * changes under it). The world lock (MiEnter) is outermost: MmFreeze waits for it.
 *
 * Page tables are reached through the physical map, so any process's without attaching. A frame's ShareCount counts valid
 * PTEs; a table's frame (and a paged-pool frame holding prototype PTEs) counts one for its own mapping and one for each
 * valid or transition entry in it.
 */
#ifndef MI_H
#define MI_H

#include "mm.h"

/* ---- Protection codes of PTEs and VADs (MM_READONLY...) */
#define MM_ZERO_ACCESS 0
#define MM_READONLY 1
#define MM_EXECUTE 2
#define MM_EXECUTE_READ 3
#define MM_READWRITE 4
#define MM_WRITECOPY 5
#define MM_EXECUTE_READWRITE 6
#define MM_EXECUTE_WRITECOPY 7
#define MM_NOCACHE 8
#define MM_GUARD_PAGE 0x10
#define MM_DECOMMIT 0x10 /* guard of nothing */
#define MM_NOACCESS 0x18
#define MM_PROTECTION_WRITE_MASK 4
#define MM_PROTECTION_COPY_MASK 1
#define MM_INVALID_PROTECTION (~0u)

/* VadType */
#define VAD_NONE 0
#define VAD_IMAGE_MAP 2
#define VAD_LARGE_PAGES 5

/* PageLocation (_MMLISTS) */
#define LOC_ZEROED 0
#define LOC_FREE 1
#define LOC_STANDBY 2
#define LOC_MODIFIED 3
#define LOC_ACTIVE 6
#define LOC_TRANSITION 7

#define MM_EMPTY_LIST 0xFFFFFFFFFull /* 36 ones: the narrowest Flink */
#define MI_PROTO_LOOKUP 0xFFFFFFFF0000ull
#define MI_RETRY ((NTSTATUS)0x00000107) /* locks were dropped: look again */

#define MI_USER_LIMIT 0x7FFFFFFF0000ull /* first address no user VAD may hold */
#define MI_WOW64_LIMIT 0x7FFF0000ull    /* the same for a 32-bit process's own memory */
#define MI_LOWEST_USER 0x10000ull
#define MI_ALLOCATION 0x10000ull
#define MM_SHARED_USER_DATA_VA 0x7FFE0000ull
#define KI_USER_SHARED_DATA 0xFFFFF78000000000ull
#define MI_LARGE 0x200000ull
#define MI_NOFRAME (~0ull)

typedef unsigned long long PTE64;

/* ---- Address spaces */
typedef struct _MI_SPACE {
    ULONG64 Dtb;
    EX_PUSH_LOCK *Lock;
    EPROCESS *Process; /* NULL: the kernel's paged ranges */
} MI_SPACE;

/* ---- Globals with NT's names are in init.c */
extern ULONG64 MmPteBase;
extern MMPFN *MmPfnDatabase;
extern PFN_NUMBER MmHighestPhysicalPage, MmLowestPhysicalPage, MmNumberOfPhysicalPages;
extern PHYSICAL_MEMORY_DESCRIPTOR *MmPhysicalMemoryBlock;
extern ULONG64 MiPhysicalMap, MiInvalidPteMaskValue;
extern ULONG64 MiSelfMapIndex;
extern BOOLEAN MiGlobalPages, MiGigabytePages;
extern ULONG64 MiSharedUserFrame;
extern EX_PUSH_LOCK MiSystemLock;
extern ULONG64 MiShadowPml4; /* frame of the template, 0 without KVA shadow */
extern const char *MiKernelRangeNames[];

typedef struct _MI_RANGE {
    const char *Name;
    ULONG64 Base, End;
    BOOLEAN Paged;
} MI_RANGE;
enum { MI_RANGE_PFN, MI_RANGE_PHYSMAP, MI_RANGE_NONPAGED, MI_RANGE_PAGED, MI_RANGE_SYSPTE, MI_RANGE_IMAGE, MI_RANGE_SHARED, MI_RANGE_COUNT };
extern MI_RANGE MiRange[MI_RANGE_COUNT];

#ifdef HAVE__MI_PARTITION
extern MI_PARTITION MiSystemPartition;
#define MI_VP MiSystemPartition.Vp
#endif
#ifdef HAVE__MI_SYSTEM_INFORMATION
extern MI_SYSTEM_INFORMATION MiState;
#endif
extern MMPFNLIST *MiList[4]; /* by PageLocation */
ULONG64 *MiAvailablePages(void);

/* ---- Random numbers, platform's generator */
#define MiRandom() RtlRandom64()

FORCEINLINE void *MiP2V(ULONG64 Physical) { return (void *)(MiPhysicalMap + Physical); }
FORCEINLINE void *MiF2V(PFN_NUMBER Frame) { return (void *)(MiPhysicalMap + (Frame << PAGE_SHIFT)); }
FORCEINLINE MMPFN *MiPfn(PFN_NUMBER Frame) { return &MmPfnDatabase[Frame]; }
FORCEINLINE PFN_NUMBER MiFrameOf(MMPFN *Pfn) { return (PFN_NUMBER)(Pfn - MmPfnDatabase); }
BOOLEAN MiHasPfn(PFN_NUMBER Frame); /* RAM that the database describes */

/* Self-map addresses: level 1 = PTE of Va, 2 = its PDE, 3 = PDPTE, 4 = PML4E. */
FORCEINLINE ULONG64 MiEntryVa(ULONG64 Va, ULONG Level) {
    while (Level--) Va = MmPteBase + ((Va >> 9) & 0x7FFFFFFFF8ull);
    return Va;
}
FORCEINLINE ULONG MiIndex(ULONG64 Va, ULONG Level) { return (ULONG)(Va >> (3 + 9 * Level)) & 0x1FF; }
/* The page-table base that maps what PTE-address `PteVa` stands for, e.g. level 1: the page whose PTE it is. */
FORCEINLINE ULONG64 MiVaMappedBy(ULONG64 PteVa) { return (ULONG64)((LONG64)(PteVa << 25) >> 16); }

/* ---- pte.c */
MMPTE MiSwizzleInvalidPte(MMPTE Pte);
MMPTE MiUnswizzle(MMPTE Pte);
extern const ULONG MmProtectToPteMask[8];
MMPTE MiMakeValidPte(PFN_NUMBER Frame, ULONG Protection, BOOLEAN User, BOOLEAN Dirty);
MMPTE MiMakeDemandZero(ULONG Protection, BOOLEAN Swizzle);
MMPTE MiMakeTransition(PFN_NUMBER Frame, ULONG Protection);
MMPTE MiMakeProto(MMPTE *Proto, BOOLEAN ReadOnly);
MMPTE MiMakeProtoLookup(ULONG Protection);
MMPTE MiMakeSubsection(SUBSECTION *Subsection, ULONG Protection);
MMPTE MiMakePagefile(MMPTE Original, ULONG Number, ULONG64 Slot);
BOOLEAN MiIsPagefile(MMPTE Unswizzled);
FORCEINLINE ULONG MiSoftProtection(MMPTE Pte) { return (ULONG)Pte.u.Soft.Protection; }
ULONG MiValidProtection(MMPTE Pte); /* MM_ code of a valid leaf */
ULONG MiMakeProtectionMask(ULONG Win32Protect);
ULONG MiConvertFromMask(ULONG Mask);
ULONG64 MiProtoAddress(MMPTE Unswizzled);
FORCEINLINE PFN_NUMBER MiHardFrame(MMPTE Pte) { return (PFN_NUMBER)Pte.u.Hard.PageFrameNumber; }
FORCEINLINE PFN_NUMBER MiTransFrame(MMPTE Unswizzled) { return (PFN_NUMBER)Unswizzled.u.Trans.PageFrameNumber; }
FORCEINLINE BOOLEAN MiIsTransition(MMPTE p) { return !p.u.Hard.Valid && !p.u.Trans.Prototype && p.u.Trans.Transition; }
FORCEINLINE BOOLEAN MiIsProto(MMPTE p) { return !p.u.Hard.Valid && p.u.Proto.Prototype; }
FORCEINLINE MMPTE MiRead(volatile MMPTE *p) { MMPTE v; v.u.Long = *(volatile PTE64 *)p; return v; }
FORCEINLINE void MiWrite(MMPTE *p, MMPTE v) { *(volatile PTE64 *)p = v.u.Long; }
FORCEINLINE MMPTE MiExchange(MMPTE *p, MMPTE v) { MMPTE o; o.u.Long = __atomic_exchange_n((PTE64 *)p, v.u.Long, __ATOMIC_SEQ_CST); return o; }
FORCEINLINE MMPTE MiZeroPte(void) { MMPTE v; v.u.Long = 0; return v; }
/* The entry of Va at Level, through the physical map; NULL when a table above is not valid (or is a large page). */
MMPTE *MiEntry(ULONG64 Dtb, ULONG64 Va, ULONG Level);
/* Physical address behind Va by valid entries only (large ones too), or MI_NOFRAME. */
ULONG64 MiTranslate(ULONG64 Dtb, ULONG64 Va);

/* ---- pfn.c */
KIRQL MiLockPfn(void);
void MiUnlockPfn(KIRQL Irql);
void MiInsertList(PFN_NUMBER Frame, ULONG Location, BOOLEAN AtHead);
void MiUnlink(PFN_NUMBER Frame);
PFN_NUMBER MiRemovePage(BOOLEAN Zeroed, BOOLEAN Reserve); /* PFN lock held; MI_NOFRAME when there is none. Location becomes LOC_ACTIVE-less: caller fills in */
PFN_NUMBER MiGetPage(BOOLEAN Zeroed, BOOLEAN Reserve);    /* takes the lock itself and zeroes outside it */
void MiFreeFrame(PFN_NUMBER Frame);                       /* one never given to a PTE, or done with; PFN lock held */
void MiInitializeActive(PFN_NUMBER Frame, ULONG64 PteVa, PFN_NUMBER PteFrame, MMPTE Original, BOOLEAN Prototype);
void MiShare(PFN_NUMBER Frame);   /* one more */
void MiUnshare(PFN_NUMBER Frame); /* one fewer; at zero to the modified, standby or free list */
void MiReference(PFN_NUMBER Frame);
void MiDereference(PFN_NUMBER Frame);
void MiTransitionToActive(PFN_NUMBER Frame); /* ShareCount+1, off its list */
void MiMarkDeleted(PFN_NUMBER Frame);
void MiMarkModified(PFN_NUMBER Frame); /* and gives its paging-file slot back */
BOOLEAN MiRepurposeStandby(PFN_NUMBER Frame); /* a given standby frame -> free list */
MMPTE *MiPteOfPfn(MMPFN *Pfn); /* through the physical map */
void MiWaitForPages(void);
void MiZeroFrame(PFN_NUMBER Frame);

/* ---- flush.c */
void MiFlushTb(ULONG64 Va); /* on all processors; 0: all but global entries */
void MiFlushPagesTb(ULONG64 Va, ULONG64 Pages);
void MiFlushSpaceTb(ULONG64 Dtb);
void MiPollFlush(void);

/* ---- world lock (flush.c) */
void MiEnter(BOOLEAN Outermost);
void MiLeave(void);

/* ---- space.c */
MI_SPACE MiSpaceOf(EPROCESS *Process); /* NULL: kernel */
/* The PTE of Va with all tables above made resident. Space locked. MI_RETRY: lock was dropped (and is NOT held on return). */
NTSTATUS MiMakePte(MI_SPACE *Space, ULONG64 Va, ULONG Level, MMPTE **Pte);
void MiTableGained(MMPTE *Entry);  /* PFN lock held: the table holding this entry has one more valid/transition entry */
void MiTableLost(MMPTE *Entry);
PFN_NUMBER MiFrameHolding(MMPTE *Entry); /* of an entry seen through the physical map */

/* ---- fault.c */
NTSTATUS MiFault(MI_SPACE *Space, ULONG64 Va, BOOLEAN Write, BOOLEAN Execute, BOOLEAN User);
/* Starts the read of an invalid entry's page; PFN lock held on entry (released), Space locked (released). Returns MI_RETRY or an error. */
NTSTATUS MiInPage(MI_SPACE *Space, KIRQL Irql, MMPTE *Entry, ULONG64 EntryVa, MMPTE Value, BOOLEAN Prototype, SUBSECTION *Subsection);
/* Fetches the bytes of a page-out page into Buffer without changing anything; nothing else runs. */
NTSTATUS MiReadBacking(MMPTE Unswizzled, ULONG64 ProtoVa, void *Buffer);
/* A prototype PTE through the physical map; NULL when its page is out. PFN lock held. */
MMPTE *MiProtoPointer(MMPTE *Proto);
/* Frame behind a user or paged address, faulted in and referenced; MiDereference it under the PFN lock. */
NTSTATUS MiPin(MI_SPACE *Space, ULONG64 Va, BOOLEAN Write, PFN_NUMBER *Frame);

/* ---- vad.c. A VAD is handled as MMVAD_SHORT; mapped ones are MMVAD. */
typedef MMVAD_SHORT VAD;
ULONG64 MiVadStart(VAD *Vad); /* page numbers */
ULONG64 MiVadEnd(VAD *Vad);   /* inclusive */
void MiSetVadRange(VAD *Vad, ULONG64 Start, ULONG64 End);
VAD *MiLocateVad(EPROCESS *Process, ULONG64 Vpn);
VAD *MiFirstVad(EPROCESS *Process);
VAD *MiNextVad(VAD *Vad);
VAD *MiConflictingVad(EPROCESS *Process, ULONG64 Start, ULONG64 End);
void MiInsertVad(EPROCESS *Process, VAD *Vad);
void MiRemoveVad(EPROCESS *Process, VAD *Vad);
ULONG64 MiFindEmpty(EPROCESS *Process, ULONG64 Pages, ULONG64 Align, BOOLEAN Large); /* VPN or 0 */
FORCEINLINE BOOLEAN MiVadPrivate(VAD *v) { return (BOOLEAN)v->u.VadFlags.PrivateMemory; }
FORCEINLINE ULONG MiVadProtection(VAD *v) { return (ULONG)v->u.VadFlags.Protection; }
BOOLEAN MiVadCommitted(VAD *v);
MMPTE *MiProtoForVad(VAD *Vad, ULONG64 Vpn); /* NULL beyond the section's end */

/* ---- commit.c */
void MiChargeCommit(LONG64 Pages);
void MiRaiseCommitLimit(LONG64 Pages);
LONG64 MiVadCommit(VAD *Vad);
void MiChargeVad(VAD *Vad, LONG64 Pages);

/* ---- virtual.c */
void MiDeleteRange(MI_SPACE *Space, ULONG64 Start, ULONG64 End, MMPTE Fill, BOOLEAN FillAll); /* VPNs, inclusive; locked */

/* ---- section.c */
typedef struct _MI_IMAGE {
    ULONG64 Base, PreferredBase;
    ULONG Size, EntryRva, HeaderSize;
    ULONG RelocSize;
    UCHAR *Reloc; /* .reloc as in the file, nonpaged; NULL: none */
    ULONG64 StackReserve, StackCommit;
    ULONG NtHeaders;
    USHORT Machine;
    BOOLEAN Pe32; /* 32-bit optional header: addresses of four bytes */
} MI_IMAGE;
MI_IMAGE *MiImageOf(CONTROL_AREA *ControlArea);
SUBSECTION *MiSubsectionOfProto(CONTROL_AREA *ControlArea, MMPTE *Proto);
NTSTATUS MiReadSubsectionPage(SUBSECTION *Subsection, ULONG64 ProtoVa, void *Buffer);
NTSTATUS MiWriteSubsectionPage(SUBSECTION *Subsection, ULONG64 ProtoVa, const void *Buffer);
ULONG64 MiSubsectionFileOffset(SUBSECTION *Subsection, ULONG64 ProtoVa);
FILE_OBJECT *MiFileOf(CONTROL_AREA *ControlArea);
void MiUnmapVad(EPROCESS *Process, VAD *Vad); /* drops the control area's references */
BOOLEAN MiCreateSharedUserData(EPROCESS *Process);

/* ---- pool.c */
void MiInitializePool(void);
PFN_NUMBER MiKernelPage(ULONG64 Va, ULONG Protection); /* maps one zeroed page of a nonpaged range */
ULONG64 MiReserveSystemPtes(ULONG Pages);
void MiReleaseSystemPtes(ULONG64 Va, ULONG Pages);
void MiUnmapKernelPages(ULONG64 Va, ULONG Pages);
MMPTE *MiKernelPte(ULONG64 Va, BOOLEAN Make);
PFN_NUMBER MiTakeContiguous(ULONG64 Pages, ULONG64 Align, PFN_NUMBER Limit);

/* ---- pagefile.c */
extern ULONG MiPagingFiles;
MMPAGING_FILE *MiPagingFile(ULONG Number);
void MiFreeSlot(MMPTE Original); /* PFN lock held */
BOOLEAN MiAllocateSlot(ULONG *Number, ULONG64 *Slot);
NTSTATUS MiReadSlot(ULONG Number, ULONG64 Slot, void *Buffer);
NTSTATUS MiCreateStorePagefile(ULONG64 Pages, MMPAGING_FILE **File); /* one without a file, for the compressed store */
BOOLEAN MiTakeSlot(MMPAGING_FILE *File, ULONG64 *Slot);              /* PFN lock held; and the other way */
void MiGiveSlot(MMPAGING_FILE *File, ULONG64 Slot);
SUBSECTION *MiMappedFile(MMPFN *Pfn); /* of a page that goes back to its file; NULL for all others */
void MiBeginWrite(PFN_NUMBER Frame);  /* PFN lock held: off the modified list; then to standby as Written, or back to the list */
void MiFinishWrite(PFN_NUMBER Frame, BOOLEAN Success, MMPTE Written);
ULONG MiWriteModified(PFN_NUMBER Only); /* one round (or that frame alone); pages written */
void MiModifiedPageWriter(void *Context);
extern KEVENT MiModifiedEvent;

/* ---- store.c: the compressed store, a paging file of its own number */
BOOLEAN MiIsStoreNumber(ULONG Number);
BOOLEAN MiIsStoreSpace(const MI_SPACE *Space); /* its process's: gets the last free pages, so that storing frees others */
FORCEINLINE BOOLEAN MiMayUseReserve(const MI_SPACE *Space) { return !Space->Process || MiIsStoreSpace(Space); }
BOOLEAN MiStoreWanted(void);                   /* modified pages should go there first */
ULONG MiStoreWriteModifiedPages(PFN_NUMBER Only);
NTSTATUS MiReadStored(ULONG64 Slot, void *Buffer, BOOLEAN AtRest);
void MiForgetStored(ULONG64 Slot); /* PFN lock held */

/* ---- truth.c */
NTSTATUS MiPeek(EPROCESS *Process, ULONG64 Va, void *Buffer, SIZE_T Bytes); /* user bytes wherever they are; nothing runs */
extern volatile LONG MiWriterActive;

#endif
