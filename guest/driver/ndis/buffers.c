/* Frames as NET_BUFFERs over MDL chains of every kind that real drivers make: data that begins inside an MDL or behind a whole one, MDLs
 * with a mapping and MDLs with page frames alone, pieces that cross pages, more room than data. */
#include "ndis.h"

#define NDIS_TAG 'sidN'
#define BACKFILL 18

/* An MDL over `length` bytes of nonpaged pool. Without a mapping only its page frames say where they are. */
static MDL *NdisMakeMdl(void *buffer, ULONG length, BOOLEAN mapped) {
    ULONG pages = (ULONG)((BYTE_OFFSET(buffer) + length + PAGE_SIZE - 1) >> PAGE_SHIFT);
    MDL *mdl = ExAllocatePool(sizeof(MDL) + pages * sizeof(PFN_NUMBER), NDIS_TAG);
    if (!mdl) return NULL;
    mdl->Size = (SHORT)(sizeof(MDL) + pages * sizeof(PFN_NUMBER));
    mdl->MdlFlags = mapped ? MDL_SOURCE_IS_NONPAGED_POOL : MDL_PAGES_LOCKED;
    mdl->MappedSystemVa = mapped ? buffer : NULL;
    mdl->StartVa = (void *)PAGE_ALIGN(buffer);
    mdl->ByteOffset = (ULONG)BYTE_OFFSET(buffer);
    mdl->ByteCount = length;
    PFN_NUMBER *frames = (PFN_NUMBER *)(mdl + 1);
    for (ULONG n = 0; n < pages; n++) frames[n] = MmGetPhysicalAddress((UCHAR *)mdl->StartVa + n * PAGE_SIZE) >> PAGE_SHIFT;
    return mdl;
}

static UCHAR *NdisBufferOf(const MDL *mdl) { return (UCHAR *)mdl->StartVa + mdl->ByteOffset; }

/* One piece of a frame in memory of its own, `front` unused bytes before it and some behind. */
static MDL *NdisMakePiece(const UCHAR *bytes, ULONG length, ULONG front, ULONG back, BOOLEAN mapped) {
    UCHAR *buffer = ExAllocatePool(front + length + back, NDIS_TAG);
    MDL *mdl = buffer ? NdisMakeMdl(buffer, front + length + back, mapped) : NULL;
    if (!mdl && buffer) ExFreePool(buffer);
    if (mdl) {
        memset(buffer, 0xEE, front + length + back);
        memcpy(buffer + front, bytes, length);
    }
    return mdl;
}

static void NdisFreeChain(MDL *mdl) {
    while (mdl) {
        MDL *next = mdl->Next;
        ExFreePool(NdisBufferOf(mdl));
        ExFreePool(mdl);
        mdl = next;
    }
}

/* `number` chooses the shape. */
NET_BUFFER *NdisMakeNetBuffer(const UCHAR *frame, ULONG length, ULONG pieces, ULONG number) {
    NET_BUFFER *buffer = ExAllocatePool(sizeof *buffer, NDIS_TAG);
    if (!buffer) return NULL;
    ULONG front = number % 3 * BACKFILL, done = 0;
    MDL **link = &buffer->MdlChain;
    if (number % 4 == 3) { /* a whole MDL of backfill before the one that the data begins in */
        MDL *unused = NdisMakePiece(frame, 0, BACKFILL, 0, TRUE);
        if (unused) {
            *link = unused;
            link = (MDL **)&unused->Next;
            buffer->DataOffset = BACKFILL;
        }
    }
    for (ULONG piece = 0; piece < pieces; piece++) {
        ULONG part = piece + 1 == pieces ? length - done : MIN((length - done) / 2, 14 + 7 * number % 600);
        MDL *mdl = NdisMakePiece(frame + done, part, piece ? 0 : front, piece + 1 == pieces ? number % 2 * 60 : 0, (number + piece) % 3 != 0);
        if (!mdl) {
            NdisFreeChain((MDL *)buffer->MdlChain);
            ExFreePool(buffer);
            return NULL;
        }
        if (!piece) buffer->CurrentMdl = mdl;
        *link = mdl;
        link = (MDL **)&mdl->Next;
        done += part;
    }
    buffer->CurrentMdlOffset = front;
    buffer->DataOffset += front;
    buffer->stDataLength = length;
    return buffer;
}

NET_BUFFER_LIST *NdisMakeNetBufferList(void) { return ExAllocatePool(sizeof(NET_BUFFER_LIST), NDIS_TAG); }

void NdisFreeNetBufferLists(NET_BUFFER_LIST *list) {
    while (list) {
        NET_BUFFER_LIST *next = list->Next;
        for (NET_BUFFER *buffer = list->FirstNetBuffer, *after; buffer; buffer = after) {
            after = buffer->Next;
            NdisFreeChain(buffer->MdlChain);
            ExFreePool(buffer);
        }
        ExFreePool(list);
        list = next;
    }
}

ULONG NdisGather(const NET_BUFFER *buffer, UCHAR *to, ULONG room) {
    ULONG left = MIN(buffer->DataLength, room), offset = buffer->CurrentMdlOffset, done = 0;
    for (MDL *mdl = buffer->CurrentMdl; mdl && left; mdl = mdl->Next, offset = 0) {
        ULONG part = MIN(mdl->ByteCount - offset, left);
        memcpy(to + done, NdisBufferOf(mdl) + offset, part);
        done += part;
        left -= part;
    }
    return done;
}
