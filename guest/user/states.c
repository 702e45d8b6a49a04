/* states.exe: brings pages of its own into every state that Windows has, through every indirection, and leaves them there. Then it
 * sleeps and touches none of them. With STRESS=n (megabytes) in the boot options it instead fills that much memory from several
 * threads (STRESSTHREADS, default 3) again and again and checks each page's content: more than there is RAM makes it paging. With
 * SPAWN=n it starts itself every n milliseconds, SPAWNS times, each time to make all those states and exit.
 *
 * Each region lies in a gigabyte of its own, so that its page table and page directory hold nothing else. */
#include "user.h"
#include "../kernel/mm/mm.h"

#define PAGES 12
#define GIGABYTE 0x40000000ull
#define FIRST_REGION 0x20000000000ull

static ULONG64 NextRegion = FIRST_REGION;

/* Pages of the image itself, for image sections' states: relocated pointers, constants, copy-on-write data, zeros. */
#define EIGHT(x) x, x, x, x, x, x, x, x
#define PAGE_OF(x) EIGHT(EIGHT(EIGHT(x)))
static const ULONG64 Constants[8 * 512] = {EIGHT(PAGE_OF(0x1122334455667788))};
static const void *const Relocated[8 * 512] = {EIGHT(PAGE_OF(&Constants[77]))};
static ULONG64 Written[8 * 512] = {EIGHT(PAGE_OF(0x99AABBCCDDEEFF00))};
static void *Pointers[4 * 512] = {PAGE_OF(&Written[5]), PAGE_OF(&Written[6]), PAGE_OF(&Written[7]), PAGE_OF(&Written[8])};
static ULONG64 Zeros[8 * 512];

static volatile ULONG64 Sink;

static void Trim(void *base, SIZE_T pages, ULONG policy) {
    SYSTEM_MININT_TRIM trim = {base, pages * PAGE_SIZE, policy};
    NtSetSystemInformation(SystemMinintTrim, &trim, sizeof trim);
}

static void Fill(UCHAR *page) {
    ULONG64 seed = (ULONG64)page * 0x9E3779B97F4A7C15ull + 1;
    for (ULONG i = 0; i < 512; i++) ((ULONG64 *)page)[i] = seed += 0xD1B54A32D192ED03ull;
}

static void Read(UCHAR *base, ULONG first, ULONG count) {
    for (ULONG i = first; i < first + count; i++) Sink += *(volatile ULONG64 *)(base + i * PAGE_SIZE);
}

static UCHAR *Region(void) {
    ULONG64 base = NextRegion;
    NextRegion += GIGABYTE;
    return (UCHAR *)base;
}

static UCHAR *Private(UCHAR *base, ULONG pages, ULONG type) {
    SIZE_T size = pages * PAGE_SIZE;
    void *at = base;
    NTSTATUS status = NtAllocateVirtualMemory(NT_CURRENT_PROCESS, &at, 0, &size, type, PAGE_READWRITE);
    if (!NT_SUCCESS(status)) RtlNote("states: no memory at %x: %x", (ULONG64)base, (ULONG64)(ULONG)status);
    return NT_SUCCESS(status) ? at : NULL;
}

static void Protect(UCHAR *base, ULONG pages, ULONG protect) {
    void *at = base;
    SIZE_T size = pages * PAGE_SIZE;
    ULONG old;
    NTSTATUS status = NtProtectVirtualMemory(NT_CURRENT_PROCESS, &at, &size, protect, &old);
    if (!NT_SUCCESS(status)) RtlNote("states: cannot protect %x: %x", (ULONG64)base, (ULONG64)(ULONG)status);
}

/* Pages 0-1 valid (if wished), 2-3 transition, 4-5 paging file, 6-7 demand-zero with a PTE, 8-9 demand-zero by the VAD, 10
 * no access, 11 decommitted. `keeper`: a valid page in the next page table keeps the page directory. */
static UCHAR *PrivateStates(BOOLEAN valid, BOOLEAN transition, BOOLEAN keeper) {
    UCHAR *base = Private(Region(), 2 * PAGES, MEM_RESERVE | MEM_COMMIT);
    void *at;
    SIZE_T size = PAGE_SIZE;
    if (!base) return NULL;
    for (ULONG i = valid ? 0 : 2; i < 6; i++) Fill(base + i * PAGE_SIZE);
    Protect(base + 6 * PAGE_SIZE, 2, PAGE_READONLY);
    Protect(base + 10 * PAGE_SIZE, 1, PAGE_NOACCESS);
    at = base + 11 * PAGE_SIZE;
    NtFreeVirtualMemory(NT_CURRENT_PROCESS, &at, &size, MEM_DECOMMIT);
    if (keeper) Fill(Private(base + 512 * PAGE_SIZE, 1, MEM_RESERVE | MEM_COMMIT));
    Trim(base + 2 * PAGE_SIZE, 2, transition ? MmTrimToTransition : MmTrimToBacking);
    Trim(base + 4 * PAGE_SIZE, 2, MmTrimToBacking);
    return base;
}

static void PrivateRegions(void) {
    UCHAR *base = PrivateStates(TRUE, TRUE, TRUE);             /* everything behind a valid page table */
    Trim(base + 2 * PAGE_SIZE, 1, MmTrimWrite);                /* one on standby, one perhaps still modified */
    base = PrivateStates(FALSE, TRUE, TRUE);                   /* page table in transition, held by transition pages */
    Trim(base, PAGES, MmTrimTables);
    base = PrivateStates(FALSE, FALSE, TRUE);                  /* page table in transition, on a list */
    Trim(base, PAGES, MmTrimTables);
    base = PrivateStates(FALSE, TRUE, FALSE);                  /* page directory in transition too */
    Trim(base, PAGES, MmTrimTables);
    base = PrivateStates(FALSE, FALSE, TRUE);                  /* page table in the paging file */
    Trim(base, PAGES, MmTrimTablesToBacking);
    base = PrivateStates(FALSE, FALSE, FALSE);                 /* page directory in the paging file too */
    Trim(base, PAGES, MmTrimTablesToBacking);
    base = Private(Region(), 64, MEM_RESERVE);                 /* reserved, two pages committed, one of them written */
    Private(base + 2 * PAGE_SIZE, 2, MEM_COMMIT);
    Fill(base + 2 * PAGE_SIZE);
    base = Private(Region(), 512, MEM_RESERVE | MEM_COMMIT | MEM_LARGE_PAGES);
    for (ULONG i = 0; base && i < 512; i += 64) Fill(base + i * PAGE_SIZE);
}

static UCHAR *Map(HANDLE section, ULONG64 pages, ULONG protect) {
    UCHAR *base = Region();
    SIZE_T size = pages * PAGE_SIZE;
    NTSTATUS status = NtMapViewOfSection(section, NT_CURRENT_PROCESS, (void **)&base, 0, 0, NULL, &size, VIEW_UNMAP, 0, protect);
    if (!NT_SUCCESS(status)) RtlNote("states: no view: %x", (ULONG64)(ULONG)status);
    return NT_SUCCESS(status) ? base : NULL;
}

static HANDLE Section(HANDLE file, ULONG64 pages, ULONG protect) {
    LONG64 size = (LONG64)(pages * PAGE_SIZE);
    HANDLE section = NULL;
    NTSTATUS status = NtCreateSection(&section, 0xF001F, NULL, &size, protect, SEC_COMMIT, file);
    if (!NT_SUCCESS(status)) RtlNote("states: no section: %x", (ULONG64)(ULONG)status);
    return section;
}

/* Prototype PTEs: pages 0-2 valid, 3-5 transition, 6-8 paging file, 9-11 demand-zero; seen through views whose own PTEs give the
 * prototype's address (same protection), the VAD marker (another protection), nothing, and through trimmed page tables. */
static void SharedRegion(void) {
    HANDLE section = Section(NULL, PAGES, PAGE_READWRITE);
    UCHAR *holder = Map(section, PAGES, PAGE_READWRITE), *direct = Map(section, PAGES, PAGE_READWRITE);
    UCHAR *marker = Map(section, PAGES, PAGE_READONLY), *tables[4];
    Map(section, PAGES, PAGE_READWRITE); /* never touched: null PTEs, no page table */
    for (ULONG i = 0; i < 9; i++) Fill(holder + i * PAGE_SIZE);
    for (ULONG i = 0; i < 4; i++) {
        tables[i] = Map(section, PAGES, i & 1 ? PAGE_READONLY : PAGE_READWRITE);
        Read(tables[i], 0, 9);
        Trim(tables[i], PAGES, MmTrimToTransition);
    }
    Read(direct, 0, 9);
    Read(marker, 0, 9);
    Trim(direct, PAGES, MmTrimToTransition);
    Trim(marker, PAGES, MmTrimToTransition);
    Protect(marker + 9 * PAGE_SIZE, 2, PAGE_READWRITE); /* markers over demand-zero prototypes */
    Trim(holder + 3 * PAGE_SIZE, 6, MmTrimToTransition);
    Trim(holder + 6 * PAGE_SIZE, 3, MmTrimProtosToBacking);
    Trim(tables[0], PAGES, MmTrimTables);
    Trim(tables[1], PAGES, MmTrimTables);
    Trim(tables[2], PAGES, MmTrimTablesToBacking);
    Trim(tables[3], PAGES, MmTrimTablesToBacking);
}

/* A data file: pages 0-2 valid (2 dirty), 3-5 transition (5 dirty), 6-8 brought in and given back, 9-11 never touched; then the file
 * grows and a second subsection follows, seen through one view of both. */
static void FileRegion(void) {
    static UCHAR page[PAGE_SIZE];
    HANDLE file = RtlOpen(L"C:\\Users\\minint\\Documents\\states.dat", 5), section;
    IO_STATUS_BLOCK status;
    UCHAR *direct, *marker, *table, *tables[4], *both;
    if (!file) {
        RtlNote("states: no file");
        return;
    }
    for (ULONG i = 0; i < PAGES; i++) {
        LONG64 offset = (LONG64)(i * PAGE_SIZE);
        for (ULONG j = 0; j < 512; j++) ((ULONG64 *)page)[j] = 0x5354415445530000ull + i * 512 + j;
        NtWriteFile(file, NULL, NULL, NULL, &status, page, i == PAGES - 1 ? 0x765 : PAGE_SIZE, &offset, NULL);
    }
    section = Section(file, 0, PAGE_READWRITE);
    direct = Map(section, PAGES, PAGE_EXECUTE_READWRITE);
    marker = Map(section, PAGES, PAGE_READONLY);
    table = Map(section, PAGES, PAGE_READONLY);
    Map(section, PAGES, PAGE_READONLY); /* never touched */
    if (!direct || !marker || !table) return;
    for (ULONG i = 0; i < 4; i++) {
        tables[i] = Map(section, PAGES, i & 1 ? PAGE_READONLY : PAGE_EXECUTE_READWRITE);
        Read(tables[i], 0, 9);
        Trim(tables[i], PAGES, MmTrimToTransition);
    }
    Read(direct, 0, 9);
    Read(marker, 0, 9);
    Read(table, 0, 9);
    Fill(direct + 2 * PAGE_SIZE);
    Fill(direct + 5 * PAGE_SIZE);
    Trim(table, PAGES, MmTrimToTransition);
    Trim(table, PAGES, MmTrimTables);
    Trim(marker, PAGES, MmTrimToTransition);
    Trim(direct + 3 * PAGE_SIZE, 6, MmTrimToTransition);
    Trim(direct + 6 * PAGE_SIZE, 3, MmTrimProtosToBacking);
    Trim(tables[0], PAGES, MmTrimTables);
    Trim(tables[1], PAGES, MmTrimTables);
    Trim(tables[2], PAGES, MmTrimTablesToBacking);
    Trim(tables[3], PAGES, MmTrimTablesToBacking);
    both = Map(Section(file, PAGES + 8, PAGE_READWRITE), PAGES + 8, PAGE_READWRITE);
    if (!both) return;
    Fill(both + (PAGES + 2) * PAGE_SIZE);
    Read(both, PAGES + 4, 1);
    Trim(both + (PAGES + 4) * PAGE_SIZE, 1, MmTrimToTransition);
}

/* The program's own image: constants trimmed, given back and never touched; data copied on write, then trimmed and paged out. */
static void ImageRegion(void) {
    UCHAR *constants = (UCHAR *)(((ULONG64)Constants + 0xFFF) & ~0xFFFull), *relocated = (UCHAR *)(((ULONG64)Relocated + 0xFFF) & ~0xFFFull);
    UCHAR *written = (UCHAR *)(((ULONG64)Written + 0xFFF) & ~0xFFFull), *zeros = (UCHAR *)(((ULONG64)Zeros + 0xFFF) & ~0xFFFull);
    UCHAR *pointers = (UCHAR *)(((ULONG64)Pointers + 0xFFF) & ~0xFFFull);
    Read(constants, 0, 5);
    Trim(constants + PAGE_SIZE, 4, MmTrimToTransition);
    Trim(constants + 3 * PAGE_SIZE, 2, MmTrimProtosToBacking);
    Read(relocated, 0, 5);
    Trim(relocated + PAGE_SIZE, 4, MmTrimToTransition);
    Trim(relocated + 3 * PAGE_SIZE, 2, MmTrimProtosToBacking);
    for (ULONG i = 0; i < 3; i++) written[i * PAGE_SIZE] = (UCHAR)i;
    Read(written, 3, 2);
    Trim(written + PAGE_SIZE, 1, MmTrimToTransition);
    Trim(written + 2 * PAGE_SIZE, 1, MmTrimToBacking);
    Trim(written + 4 * PAGE_SIZE, 1, MmTrimToTransition);
    Read(pointers, 0, 2);
    Trim(pointers, 1, MmTrimToTransition | MmTrimProtosToBacking);
    Read(zeros, 0, 2);
    zeros[2 * PAGE_SIZE] = 1;
    Trim(zeros + PAGE_SIZE, 1, MmTrimToTransition);
}

/* Content that compresses, more or less: the same few words again and again, numbers that count, and `noise` random ones. */
static void FillText(UCHAR *page, ULONG kind, ULONG noise) {
    static const char words[] = "the page is where the memory manager put it, and what it held it holds, ";
    ULONG64 seed = (ULONG64)page ^ kind;
    for (ULONG i = 0; i < PAGE_SIZE; i++) page[i] = (UCHAR)words[(i + kind) % (sizeof words - 1)];
    for (ULONG i = 0; i < 512; i += 1 + kind % 29) ((ULONG64 *)page)[i] = kind + i / 8;
    for (ULONG i = 0; i < noise; i++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        ((ULONG64 *)page)[(seed >> 33) % 512] = seed;
    }
}

/* The compressed store: pages that compress well, hardly, not at all, to nothing; pages that equal another; page tables; and shared
 * pages behind their prototype PTEs. Without a store they are in the paging file. */
static void CompressedRegion(void) {
    UCHAR *base = Private(Region(), 8 * PAGES, MEM_RESERVE | MEM_COMMIT), *view;
    ULONG policy = MmTrimToBacking | MmTrimCompress;
    if (!base) return;
    for (ULONG i = 0; i < 8 * PAGES; i++) {
        UCHAR *page = base + i * PAGE_SIZE;
        if (i % 8 == 7) Fill(page);
        else if (i % 8 == 6) page[0] = 1, page[0] = 0;
        else if (i % 8 == 5) memcpy(page, page - PAGE_SIZE, PAGE_SIZE);
        else FillText(page, i, i % 8 * i);
    }
    Trim(base, 8 * PAGES, policy);
    Read(base, 3, 2);                                          /* two of them come back, one is then changed */
    base[3 * PAGE_SIZE] ^= 0xFF;
    base = PrivateStates(FALSE, FALSE, TRUE);                  /* a page table in the store */
    Trim(base, PAGES, MmTrimTablesToBacking | MmTrimCompress);
    view = Map(Section(NULL, PAGES, PAGE_READWRITE), PAGES, PAGE_READWRITE);
    if (!view) return;
    for (ULONG i = 0; i < PAGES; i++) FillText(view + i * PAGE_SIZE, i, i);
    Trim(view, PAGES, MmTrimProtosToBacking | MmTrimToTransition | MmTrimCompress);
}

/* ---- Stress: every page's content is a function of its address and of how often it was written */

static ULONG64 StressPages;
static volatile LONG StressErrors;

static ULONG64 Word(UCHAR *page, ULONG64 round) { return ((ULONG64)page ^ round * 0x9E3779B97F4A7C15ull) * 0xD1B54A32D192ED03ull; }

static void StressThread(void *argument) {
    UCHAR *base = Private(NULL, (ULONG)StressPages, MEM_RESERVE | MEM_COMMIT), *rounds;
    ULONG64 random = (ULONG64)argument * 77 + 1, checks = 0, most = RtlBootOption("STRESSCHECKS", ~0ull);
    if (!base) return;
    rounds = Private(NULL, (ULONG)(StressPages / PAGE_SIZE + 1), MEM_RESERVE | MEM_COMMIT);
    for (; checks < most; checks++) {
        ULONG64 index;
        UCHAR *page;
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        index = checks < StressPages ? checks : (random >> 20) % StressPages;
        page = base + index * PAGE_SIZE;
        for (ULONG i = 0; i < 512; i += 73) {
            ULONG64 found = ((volatile ULONG64 *)page)[i], expected = rounds[index] ? Word(page, rounds[index]) + i : 0;
            if (found != expected && __atomic_add_fetch(&StressErrors, 1, __ATOMIC_SEQ_CST) < 10)
                RtlNote("stress: page %x word %u round %u: %x, expected %x", (ULONG64)page, (ULONG64)i, (ULONG64)rounds[index], found, expected);
        }
        if (random >> 60 < 12) {
            rounds[index] = (UCHAR)(rounds[index] % 250 + 1);
            for (ULONG i = 0; i < 512; i += 73) ((volatile ULONG64 *)page)[i] = Word(page, rounds[index]) + i;
        }
        if (checks % 20000 == 19999) RtlNote("stress: thread %u: %u pages checked, %u errors", (ULONG64)argument, checks + 1, (ULONG64)StressErrors);
    }
    RtlNote("stress: thread %u rests", (ULONG64)argument);
    for (;;) RtlSleep(1000);
}

void NtProcessStartup(PEB *peb) {
    ULONG64 megabytes = RtlBootOption("STRESS", 0), threads = RtlBootOption("STRESSTHREADS", 3);
    (void)peb;
    if (megabytes) {
        StressPages = (megabytes << 20) / PAGE_SIZE / threads;
        for (ULONG64 i = 0; i < threads; i++) {
            HANDLE thread;
            NtCreateThreadEx(&thread, 0x1FFFFF, NULL, NT_CURRENT_PROCESS, StressThread, (void *)i, 0, 0, 0, 0, NULL);
        }
        for (;;) RtlSleep(1000);
    }
    if (RtlBootOption("SPAWN", 0) && !RtlArgument("once", 0)) {
        for (ULONG64 i = 1; i <= RtlBootOption("SPAWNS", 1000000); i++) {
            RtlStartProgram(L"C:\\Windows\\System32\\states.exe", L"states.exe once=1");
            RtlSleep((ULONG)RtlBootOption("SPAWN", 0));
            if (i % 20 == 0) RtlNote("states: %u programs came and went", i);
        }
        for (;;) RtlSleep(1000);
    }
    Trim(NULL, 1, MmTrimKeep);
    PrivateRegions();
    SharedRegion();
    FileRegion();
    ImageRegion();
    CompressedRegion();
    if (RtlArgument("once", 0)) NtTerminateProcess(NT_CURRENT_PROCESS, 0);
    RtlNote("states: all pages are where they shall be");
    for (;;) RtlSleep(1000);
}
