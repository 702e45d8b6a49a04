/* NDIS 6's lists of network buffers, as ndis.h lays them out for x64. Sources: the documentation of ndis.h (NET_BUFFER_LIST, NET_BUFFER),
 * and the offsets in ndis.sys's own PDBs from Windows 7 to 11, which agree in what stands here. MDL is the kernel's own type. */
#ifndef NDIS_H
#define NDIS_H
#include "nt.h"
#include "mm/mm.h"

typedef void *NDIS_HANDLE;
typedef ULONG NDIS_PORT_NUMBER;

typedef struct _NET_BUFFER { /* one frame */
    struct _NET_BUFFER *Next;
    MDL *CurrentMdl; /* where the frame's data begins, */
    ULONG CurrentMdlOffset; /* this far into it */
    union {
        ULONG DataLength;
        SIZE_T stDataLength;
    };
    MDL *MdlChain;
    ULONG DataOffset; /* from the chain's start: the bytes in front are for headers of lower layers */
    USHORT ChecksumBias __attribute__((aligned(16))), Reserved; /* the header above shares its place with an SLIST_HEADER */
    NDIS_HANDLE NdisPoolHandle;
    void *NdisReserved[2] __attribute__((aligned(16)));
    void *ProtocolReserved[6] __attribute__((aligned(16)));
    void *MiniportReserved[4] __attribute__((aligned(16)));
    ULONG64 DataPhysicalAddress;
    void *SharedMemoryInfo;
} NET_BUFFER;
C_ASSERT(FIELD_OFFSET(NET_BUFFER, DataLength) == 0x18 && FIELD_OFFSET(NET_BUFFER, MdlChain) == 0x20);
C_ASSERT(FIELD_OFFSET(NET_BUFFER, DataOffset) == 0x28 && FIELD_OFFSET(NET_BUFFER, NdisPoolHandle) == 0x38);
C_ASSERT(FIELD_OFFSET(NET_BUFFER, MiniportReserved) == 0x80 && sizeof(NET_BUFFER) == 0xB0);

typedef struct _NET_BUFFER_LIST { /* frames that belong together */
    struct _NET_BUFFER_LIST *Next;
    NET_BUFFER *FirstNetBuffer;
    void *Context;
    struct _NET_BUFFER_LIST *ParentNetBufferList;
    NDIS_HANDLE NdisPoolHandle;
    void *NdisReserved[2] __attribute__((aligned(16)));
    void *ProtocolReserved[4] __attribute__((aligned(16)));
    void *MiniportReserved[2] __attribute__((aligned(16)));
    void *Scratch;
    NDIS_HANDLE SourceHandle;
    ULONG NblFlags;
    LONG ChildRefCount;
    ULONG Flags;
    NTSTATUS Status;
    void *NetBufferListInfo[29];
} NET_BUFFER_LIST;
C_ASSERT(FIELD_OFFSET(NET_BUFFER_LIST, NdisReserved) == 0x30 && FIELD_OFFSET(NET_BUFFER_LIST, Scratch) == 0x70);
C_ASSERT(FIELD_OFFSET(NET_BUFFER_LIST, NetBufferListInfo) == 0x90);

#define MDL_MAPPED_TO_SYSTEM_VA 1
#define MDL_PAGES_LOCKED 2
#define MDL_SOURCE_IS_NONPAGED_POOL 4

void NdisSendNetBufferLists(NDIS_HANDLE binding, NET_BUFFER_LIST *lists, NDIS_PORT_NUMBER port, ULONG flags);
void NdisMIndicateReceiveNetBufferLists(NDIS_HANDLE adapter, NET_BUFFER_LIST *lists, NDIS_PORT_NUMBER port, ULONG count, ULONG flags);

/* buffers.c */
NET_BUFFER *NdisMakeNetBuffer(const UCHAR *frame, ULONG length, ULONG pieces, ULONG number);
NET_BUFFER_LIST *NdisMakeNetBufferList(void);
void NdisFreeNetBufferLists(NET_BUFFER_LIST *lists);
ULONG NdisGather(const NET_BUFFER *buffer, UCHAR *to, ULONG room); /* the frame's bytes; how many */
#endif
