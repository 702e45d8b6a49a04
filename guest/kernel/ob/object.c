/* Objects: a real OBJECT_HEADER before each body, the type's index in it encoded as the layout's build does, optional name
 * headers found through ObpInfoMaskToOffset, types in ObTypeIndexTable, names in directories of 37 hash buckets. */
#include "nt.h"
#include "mm/mm.h"

#define INFO_NAME 2
#define MOST_TYPES 64
#define BUCKETS ARRAYSIZE(((OBJECT_DIRECTORY *)0)->HashBuckets)

OBJECT_TYPE *ObTypeIndexTable[MOST_TYPES];
UCHAR ObpInfoMaskToOffset[256];
#if NT_LAYOUT_BUILD >= 10240 /* Windows 10 mixes type indexes with a cookie */
UCHAR ObHeaderCookie;
#endif
OBJECT_TYPE *PsProcessType, *PsThreadType, *MmSectionObjectType, *IoFileObjectType, *IoDriverObjectType,
    *IoDeviceObjectType, *ExEventObjectType, *ObpDirectoryObjectType, *ObpTypeObjectType;
OBJECT_DIRECTORY *ObpRootDirectoryObject;
void (*ObpDeleteRoutine[MOST_TYPES])(void *object);
static OBJECT_DIRECTORY *ObpTypeDirectory;
static ULONG ObpTypeCount = 2; /* 0 and 1 name no type, as in NT */

static OBJECT_HEADER *ObpHeader(void *object) { return CONTAINING_RECORD(object, OBJECT_HEADER, Body); }

/* The encoding is its own inverse. */
static UCHAR ObpMixTypeIndex(OBJECT_HEADER *header, UCHAR index) {
#if NT_LAYOUT_BUILD >= 10240
    return index ^ ObHeaderCookie ^ (UCHAR)((ULONG64)header >> 8);
#else
    return index;
#endif
}

static UCHAR ObpTypeIndex(OBJECT_HEADER *header) { return ObpMixTypeIndex(header, header->TypeIndex); }

OBJECT_TYPE *ObGetObjectType(void *object) { return ObTypeIndexTable[ObpTypeIndex(ObpHeader(object)) % MOST_TYPES]; }

static OBJECT_HEADER_NAME_INFO *ObpNameInfo(OBJECT_HEADER *header) {
    if (!(header->InfoMask & INFO_NAME)) return NULL;
    return (OBJECT_HEADER_NAME_INFO *)((UCHAR *)header - ObpInfoMaskToOffset[header->InfoMask & (2 * INFO_NAME - 1)]);
}

static void *ObpAllocate(UCHAR index, SIZE_T size, PCWSTR name, ULONG tag) {
    ULONG before = name ? sizeof(OBJECT_HEADER_NAME_INFO) : 0;
    UCHAR *block = ExAllocatePool(before + FIELD_OFFSET(OBJECT_HEADER, Body) + size, tag);
    if (!block) return NULL;
    OBJECT_HEADER *header = (OBJECT_HEADER *)(block + before);
    header->PointerCount = 1;
    header->TypeIndex = ObpMixTypeIndex(header, index);
    if (name) {
        header->InfoMask = INFO_NAME;
        OBJECT_HEADER_NAME_INFO *info = ObpNameInfo(header);
        info->ReferenceCount = 1;
        if (!NT_SUCCESS(RtlDuplicateUnicodeString(&info->Name, name, wcslen(name)))) {
            ExFreePool(block);
            return NULL;
        }
    }
    if (ObTypeIndexTable[index]) __atomic_add_fetch(&ObTypeIndexTable[index]->TotalNumberOfObjects, 1, __ATOMIC_RELAXED);
    return &header->Body;
}

static ULONG ObpHash(PCWSTR name, SIZE_T characters) {
    ULONG hash = 0;
    for (SIZE_T i = 0; i < characters; i++) hash += (hash << 1) + (hash >> 1) + RtlUpcaseUnicodeChar(name[i]);
    return hash;
}

static BOOLEAN ObpInsert(OBJECT_DIRECTORY *directory, PCWSTR name, void *object) {
    OBJECT_DIRECTORY_ENTRY *entry = ExAllocatePool(sizeof *entry, 'riDO');
    if (!entry) return FALSE;
    ULONG hash = ObpHash(name, wcslen(name));
    entry->Object = object;
    entry->HashValue = hash;
    ExAcquirePushLockExclusive(&directory->Lock);
    entry->ChainLink = directory->HashBuckets[hash % BUCKETS];
    directory->HashBuckets[hash % BUCKETS] = entry;
    ExReleasePushLockExclusive(&directory->Lock);
    ObpNameInfo(ObpHeader(object))->Directory = directory;
    return TRUE;
}

void *ObLookup(OBJECT_DIRECTORY *directory, PCWSTR name) {
    SIZE_T length = wcslen(name);
    ULONG hash = ObpHash(name, length);
    void *found = NULL;
    ExAcquirePushLockExclusive(&directory->Lock);
    for (OBJECT_DIRECTORY_ENTRY *entry = directory->HashBuckets[hash % BUCKETS]; entry && !found; entry = entry->ChainLink) {
        UNICODE_STRING *other = &ObpNameInfo(ObpHeader(entry->Object))->Name;
        if (entry->HashValue == hash && RtlCompareWideNoCase((PCWSTR)other->Buffer, other->Length / 2, name, length) == 0)
            found = entry->Object;
    }
    ExReleasePushLockExclusive(&directory->Lock);
    return found;
}

void *ObCreateObject(OBJECT_TYPE *type, SIZE_T size) { return ObpAllocate(type->Index, size, NULL, type->Key); }

void *ObCreateNamedObject(OBJECT_TYPE *type, SIZE_T size, PCWSTR name, OBJECT_DIRECTORY *directory) {
    void *object = ObpAllocate(type->Index, size, name, type->Key);
    if (object && directory && !ObpInsert(directory, name, object)) {
        ObDereferenceObject(object);
        return NULL;
    }
    return object;
}

OBJECT_DIRECTORY *ObCreateDirectory(PCWSTR name, OBJECT_DIRECTORY *parent) {
    return ObCreateNamedObject(ObpDirectoryObjectType, sizeof(OBJECT_DIRECTORY), name, parent);
}

void ObReferenceObject(void *object) { __atomic_add_fetch(&ObpHeader(object)->PointerCount, 1, __ATOMIC_RELAXED); }

void ObDereferenceObject(void *object) {
    OBJECT_HEADER *header = ObpHeader(object);
    long long left = __atomic_sub_fetch(&header->PointerCount, 1, __ATOMIC_ACQ_REL);
    NT_ASSERT(left >= 0);
    if (left) return;
    UCHAR index = ObpTypeIndex(header);
    OBJECT_HEADER_NAME_INFO *info = ObpNameInfo(header);
    if (ObpDeleteRoutine[index]) ObpDeleteRoutine[index](object);
    __atomic_sub_fetch(&ObTypeIndexTable[index]->TotalNumberOfObjects, 1, __ATOMIC_RELAXED);
    if (info && info->Name.Buffer) ExFreePool((void *)info->Name.Buffer);
    ExFreePool(info ? (void *)info : (void *)header);
}

static OBJECT_TYPE *ObpCreateType(PCWSTR name, ULONG tag) { /* tag: of its objects' pool blocks */
    UCHAR index = (UCHAR)ObpTypeCount++;
    OBJECT_TYPE *type = ObpAllocate(2, sizeof *type, name, 'TjbO'); /* the first type, "Type", has index 2 and is its own type */
    NT_ASSERT(type && index < MOST_TYPES);
    RtlInitUnicodeString(&type->Name, name);
    InitializeListHead(&type->TypeList);
    InitializeListHead(&type->CallbackList);
    type->Index = index;
    type->Key = tag;
    ObTypeIndexTable[index] = type;
    if (ObpTypeDirectory) ObpInsert(ObpTypeDirectory, name, type);
    return type;
}

void ObInitSystem(void) {
    for (ULONG mask = 0; mask < ARRAYSIZE(ObpInfoMaskToOffset); mask++) { /* headers lie in the order of their bits, the first nearest */
        ULONG offset = 0;
        if (mask & 1) offset += sizeof(OBJECT_HEADER_CREATOR_INFO);
        if (mask & 2) offset += sizeof(OBJECT_HEADER_NAME_INFO);
        ObpInfoMaskToOffset[mask] = (UCHAR)offset;
    }
#if NT_LAYOUT_BUILD >= 10240
    ObHeaderCookie = (UCHAR)RtlRandom64();
#endif
    ObpTypeObjectType = ObpCreateType(L"Type", 'TjbO');
    ObpDirectoryObjectType = ObpCreateType(L"Directory", 'eriD');
    ObpRootDirectoryObject = ObCreateDirectory(L"\\", NULL);
    ObpTypeDirectory = ObCreateDirectory(L"ObjectTypes", ObpRootDirectoryObject);
    ObpInsert(ObpTypeDirectory, L"Type", ObpTypeObjectType);
    ObpInsert(ObpTypeDirectory, L"Directory", ObpDirectoryObjectType);
    PsProcessType = ObpCreateType(L"Process", 'corP');
    PsThreadType = ObpCreateType(L"Thread", 'erhT');
    ExEventObjectType = ObpCreateType(L"Event", 'nevE');
    MmSectionObjectType = ObpCreateType(L"Section", 'tceS');
    IoDriverObjectType = ObpCreateType(L"Driver", 'virD');
    IoDeviceObjectType = ObpCreateType(L"Device", 'iveD');
    IoFileObjectType = ObpCreateType(L"File", 'eliF');
}
