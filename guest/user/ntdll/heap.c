/* The process heap: blocks in power-of-two classes out of one region, most recently freed first.
 *
 * Each block has a header in front of it that tells its class and whether it is in use, so that freeing one twice is seen
 * and refused. RtlAllocateHeap and its like take NT's arguments; there is one heap, so that its handle is not looked at. */
#include "../user.h"

#define HEAP_SIZE (4ull << 20)
#define SMALLEST 5 /* 32 bytes, header included */
#define LARGEST 20
#define IN_USE 0xa110ca7edull

typedef struct _HEAP_BLOCK {
    ULONG64 Mark; /* IN_USE, or 0 */
    USHORT Class;
    USHORT Unused;
    ULONG Size; /* as asked for */
} HEAP_BLOCK;

static UCHAR *RtlpHeap;
static SIZE_T RtlpHeapUsed;
static HEAP_BLOCK *RtlpFree[LARGEST + 1]; /* linked through the block's first bytes */
static volatile LONG RtlpHeapLock;

static void RtlpLockHeap(void) {
    while (__atomic_exchange_n(&RtlpHeapLock, 1, __ATOMIC_ACQUIRE)) NtYieldExecution();
}

static void RtlpUnlockHeap(void) { __atomic_store_n(&RtlpHeapLock, 0, __ATOMIC_RELEASE); }

static HEAP_BLOCK *RtlpTake(ULONG class) {
    HEAP_BLOCK *block = RtlpFree[class];
    if (block) {
        RtlpFree[class] = *(HEAP_BLOCK **)(block + 1);
        return block;
    }
    if (!RtlpHeap) {
        void *base = NULL;
        SIZE_T size = HEAP_SIZE;
        if (!NT_SUCCESS(NtAllocateVirtualMemory(NT_CURRENT_PROCESS, &base, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE)))
            return NULL;
        RtlpHeap = base;
    }
    if (RtlpHeapUsed + (1ull << class) > HEAP_SIZE) return NULL;
    block = (HEAP_BLOCK *)(RtlpHeap + RtlpHeapUsed);
    RtlpHeapUsed += 1ull << class;
    return block;
}

NOINLINE void *RtlAllocateHeap(HANDLE heap, ULONG flags, SIZE_T size) {
    ULONG class = SMALLEST;
    while (class <= LARGEST && (1ull << class) < size + sizeof(HEAP_BLOCK)) class++;
    if (class > LARGEST) return NULL;
    RtlpLockHeap();
    HEAP_BLOCK *block = RtlpTake(class);
    if (block) {
        block->Mark = IN_USE;
        block->Class = (USHORT)class;
        block->Size = (ULONG)size;
    }
    RtlpUnlockHeap();
    if (block && flags & 8) memset(block + 1, 0, size); /* HEAP_ZERO_MEMORY */
    return block ? block + 1 : NULL;
}

NOINLINE BOOLEAN RtlFreeHeap(HANDLE heap, ULONG flags, void *address) {
    if (!address) return TRUE;
    HEAP_BLOCK *block = (HEAP_BLOCK *)address - 1;
    RtlpLockHeap();
    BOOLEAN in_use = block->Mark == IN_USE;
    if (in_use) {
        block->Mark = 0;
        *(HEAP_BLOCK **)(block + 1) = RtlpFree[block->Class];
        RtlpFree[block->Class] = block;
    }
    RtlpUnlockHeap();
    return in_use;
}

NOINLINE void *RtlReAllocateHeap(HANDLE heap, ULONG flags, void *address, SIZE_T size) {
    HEAP_BLOCK *block = (HEAP_BLOCK *)address - 1;
    void *larger = RtlAllocateHeap(heap, flags, size);
    if (!larger) return NULL;
    memcpy(larger, address, MIN((SIZE_T)block->Size, size));
    RtlFreeHeap(heap, flags, address);
    return larger;
}
