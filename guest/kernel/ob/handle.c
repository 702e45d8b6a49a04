/* Handles: real HANDLE_TABLEs of one or two levels, entries encoded as the layout's build does, one table a process and
 * System's as ObpKernelHandleTable. A handle's value is 4 times its entry's number; the first entry of each page is no
 * handle. */
#include "nt.h"
#include "mm/mm.h"

#define ENTRIES (PAGE_SIZE / sizeof(HANDLE_TABLE_ENTRY))
#define POINTERS (PAGE_SIZE / sizeof(void *))
#define STEP 4

HANDLE_TABLE *ObpKernelHandleTable;
static LIST_ENTRY HandleTableListHead = {&HandleTableListHead, &HandleTableListHead};
static EX_PUSH_LOCK HandleTableListLock;

#ifdef HAVE__HANDLE_TABLE__HandleTableLock
#define TABLE_LOCK(table) (&(table)->HandleTableLock)
#else
#define TABLE_LOCK(table) (&(table)->HandleLock)
#endif

/* The entry of a handle's value; NULL where the table has none. */
static HANDLE_TABLE_ENTRY *ExpEntry(HANDLE_TABLE *table, ULONG64 value) {
    ULONG64 code = table->TableCode, index = value / STEP;
    if (value >= table->NextHandleNeedingPool || index % ENTRIES == 0) return NULL;
    if ((code & 3) == 0) return (HANDLE_TABLE_ENTRY *)code + index;
    return ((HANDLE_TABLE_ENTRY **)(code & ~3ull))[index / ENTRIES] + index % ENTRIES;
}

#ifdef HAVE__HANDLE_TABLE_ENTRY__ObjectPointerBits
static BOOLEAN ExpIsFree(HANDLE_TABLE_ENTRY *entry) { return entry->ObjectPointerBits == 0; }
static OBJECT_HEADER *ExpHeader(HANDLE_TABLE_ENTRY *entry) {
    return (OBJECT_HEADER *)(0xffff000000000000ull | (ULONG64)entry->ObjectPointerBits << 4);
}
static void ExpFill(HANDLE_TABLE_ENTRY *entry, OBJECT_HEADER *header, ACCESS_MASK access) {
    memset(entry, 0, sizeof *entry);
    entry->GrantedAccessBits = access & 0x1ffffff;
    entry->ObjectPointerBits = (ULONG64)header >> 4 & 0xfffffffffffull;
    entry->Unlocked = 1;
}
static ACCESS_MASK ExpAccess(HANDLE_TABLE_ENTRY *entry) { return entry->GrantedAccessBits; }
#else
static BOOLEAN ExpIsFree(HANDLE_TABLE_ENTRY *entry) { return entry->Object == NULL; }
static OBJECT_HEADER *ExpHeader(HANDLE_TABLE_ENTRY *entry) { return (OBJECT_HEADER *)((ULONG64)entry->Object & ~7ull); }
static void ExpFill(HANDLE_TABLE_ENTRY *entry, OBJECT_HEADER *header, ACCESS_MASK access) {
    memset(entry, 0, sizeof *entry);
    entry->Object = (void *)((ULONG64)header | 1); /* bit 0: not locked */
    entry->GrantedAccess = access;
}
static ACCESS_MASK ExpAccess(HANDLE_TABLE_ENTRY *entry) { return entry->GrantedAccess; }
#endif

/* One page more, the second of them under a new top level. Called with the table's lock. */
static BOOLEAN ExpGrow(HANDLE_TABLE *table) {
    ULONG64 pages = table->NextHandleNeedingPool / STEP / ENTRIES;
    HANDLE_TABLE_ENTRY *page = ExAllocatePool(PAGE_SIZE, 'btbO');
    if (!page || pages >= POINTERS) {
        if (page) ExFreePool(page);
        return FALSE;
    }
    if (pages == 0) {
        table->TableCode = (ULONG64)page;
    } else {
        if ((table->TableCode & 3) == 0) {
            void **top = ExAllocatePool(PAGE_SIZE, 'btbO');
            if (!top) {
                ExFreePool(page);
                return FALSE;
            }
            top[0] = (void *)table->TableCode;
            table->TableCode = (ULONG64)top | 1;
        }
        ((void **)(table->TableCode & ~3ull))[pages] = page;
    }
    table->NextHandleNeedingPool += (ULONG)(ENTRIES * STEP);
    return TRUE;
}

/* An empty handle table for a process (EPROCESS.ObjectTable); NULL when there is no memory. */
HANDLE_TABLE *ObCreateHandleTable(EPROCESS *process) {
    HANDLE_TABLE *table = ExAllocatePool(sizeof *table, 'btbO');
    if (!table) return NULL;
    table->QuotaProcess = process;
#ifdef HAVE__HANDLE_TABLE__FreeLists
    table->UniqueProcessId = PsGetProcessId(process);
#else
    table->UniqueProcessId = process->UniqueProcessId;
#endif
    if (!ExpGrow(table)) {
        ExFreePool(table);
        return NULL;
    }
    ExAcquirePushLockExclusive(&HandleTableListLock);
    InsertTailList(&HandleTableListHead, &table->HandleTableList);
    ExReleasePushLockExclusive(&HandleTableListLock);
    return table;
}

NTSTATUS ObOpenObjectByPointer(void *object, ACCESS_MASK access, EPROCESS *process, HANDLE *handle) {
    HANDLE_TABLE *table = (HANDLE_TABLE *)process->ObjectTable;
    OBJECT_HEADER *header = CONTAINING_RECORD(object, OBJECT_HEADER, Body);
    NTSTATUS status = STATUS_INSUFFICIENT_RESOURCES;
    ExAcquirePushLockExclusive(TABLE_LOCK(table));
    for (ULONG64 value = STEP;; value += STEP) {
        if (value >= table->NextHandleNeedingPool && !ExpGrow(table)) break;
        HANDLE_TABLE_ENTRY *entry = ExpEntry(table, value);
        if (!entry || !ExpIsFree(entry)) continue;
        ObReferenceObject(object);
        __atomic_add_fetch(&header->HandleCount, 1, __ATOMIC_RELAXED);
        ExpFill(entry, header, access);
        *handle = (HANDLE)value;
        status = STATUS_SUCCESS;
        break;
    }
    ExReleasePushLockExclusive(TABLE_LOCK(table));
    return status;
}

NTSTATUS ObReferenceObjectByHandle(HANDLE handle, ACCESS_MASK access, OBJECT_TYPE *type, void **object) {
    HANDLE_TABLE *table = (HANDLE_TABLE *)PsGetCurrentProcess()->ObjectTable;
    NTSTATUS status = STATUS_INVALID_HANDLE;
    ExAcquirePushLockExclusive(TABLE_LOCK(table));
    HANDLE_TABLE_ENTRY *entry = ExpEntry(table, (ULONG64)handle & ~3ull);
    if (entry && !ExpIsFree(entry)) {
        void *body = &ExpHeader(entry)->Body;
        if (type && ObGetObjectType(body) != type) {
            status = STATUS_OBJECT_TYPE_MISMATCH;
        } else if (access & ~(ExpAccess(entry) | 0xffff) && !(ExpAccess(entry) & 0x10000000)) {
            status = STATUS_ACCESS_DENIED;
        } else {
            ObReferenceObject(body);
            *object = body;
            status = STATUS_SUCCESS;
        }
    }
    ExReleasePushLockExclusive(TABLE_LOCK(table));
    return status;
}

static void ObpCloseEntry(HANDLE_TABLE_ENTRY *entry) {
    OBJECT_HEADER *header = ExpHeader(entry);
    memset(entry, 0, sizeof *entry);
    __atomic_sub_fetch(&header->HandleCount, 1, __ATOMIC_RELAXED);
    ObDereferenceObject(&header->Body);
}

NTSTATUS ObCloseHandle(HANDLE handle) {
    HANDLE_TABLE *table = (HANDLE_TABLE *)PsGetCurrentProcess()->ObjectTable;
    HANDLE_TABLE_ENTRY closed;
    ExAcquirePushLockExclusive(TABLE_LOCK(table));
    HANDLE_TABLE_ENTRY *entry = ExpEntry(table, (ULONG64)handle & ~3ull);
    BOOLEAN found = entry && !ExpIsFree(entry);
    if (found) {
        closed = *entry;
        memset(entry, 0, sizeof *entry);
    }
    ExReleasePushLockExclusive(TABLE_LOCK(table));
    if (!found) return STATUS_INVALID_HANDLE;
    ObpCloseEntry(&closed); /* outside the lock: a delete routine may write files */
    return STATUS_SUCCESS;
}

/* Closes every handle and frees the table; at process exit, when none of its threads runs any more. */
void ObKillProcess(EPROCESS *process) {
    HANDLE_TABLE *table = (HANDLE_TABLE *)process->ObjectTable;
    if (!table) return;
    for (ULONG64 value = STEP; value < table->NextHandleNeedingPool; value += STEP) {
        HANDLE_TABLE_ENTRY *entry = ExpEntry(table, value);
        if (entry && !ExpIsFree(entry)) ObpCloseEntry(entry);
    }
    ExAcquirePushLockExclusive(&HandleTableListLock);
    RemoveEntryList(&table->HandleTableList);
    ExReleasePushLockExclusive(&HandleTableListLock);
    process->ObjectTable = NULL;
    if (table->TableCode & 3) {
        void **top = (void **)(table->TableCode & ~3ull);
        for (ULONG n = 0; n < POINTERS && top[n]; n++) ExFreePool(top[n]);
        ExFreePool(top);
    } else {
        ExFreePool((void *)table->TableCode);
    }
    ExFreePool(table);
}
