/* ndis.sys: sends what programs ask it to send, and receives it again, as a loopback adapter does: on a thread of System, later.
 *
 * Each frame is logged as {"event":"packet"} with its SHA-256: a sent one from the program's bytes, before any NET_BUFFER is made;
 * a received one from its MDLs, as this driver gathers them. */
#include "ndis.h"
#include "services.h"
#include "io/io.h"

#define LARGEST_FRAME 0x4000

static struct {
    NET_BUFFER_LIST *First, *Last; /* sent, not received yet */
    KSPIN_LOCK Lock;
    KEVENT Arrived;
    ETHREAD *Worker;
    BOOLEAN Stopping;
    ULONG Sent, Received;
} NdisLoopback;
static UCHAR NdisFrame[LARGEST_FRAME]; /* the worker's */
static IO_FAST_WRITE NdisFastIoDispatch;

static void NdisLog(const char *direction, const UCHAR *frame, ULONG length, ULONG number) {
    CHAR hash[65];
    RtlSha256Hex(frame, length, hash);
    KdEvent("{\"event\":\"packet\",\"direction\":\"%s\",\"number\":%u,\"pid\":%u,\"tid\":%u,\"size\":%u,\"sha256\":\"%s\"}", direction, number,
            (ULONG)(ULONG64)PsGetCurrentThread()->Cid.UniqueProcess, (ULONG)(ULONG64)PsGetCurrentThread()->Cid.UniqueThread, length, hash);
}

/* What protocols call to send a chain of lists. */
NOINLINE void NdisSendNetBufferLists(NDIS_HANDLE binding, NET_BUFFER_LIST *lists, NDIS_PORT_NUMBER port, ULONG flags) {
    NET_BUFFER_LIST *last = lists;
    while (last->Next) last = last->Next;
    KIRQL irql = KeAcquireSpinLock(&NdisLoopback.Lock);
    if (NdisLoopback.Last) NdisLoopback.Last->Next = lists;
    else NdisLoopback.First = lists;
    NdisLoopback.Last = last;
    KeReleaseSpinLock(&NdisLoopback.Lock, irql);
    KeSetEvent(&NdisLoopback.Arrived);
}

/* What adapters call when a chain of `count` lists has come in. */
NOINLINE void NdisMIndicateReceiveNetBufferLists(NDIS_HANDLE adapter, NET_BUFFER_LIST *lists, NDIS_PORT_NUMBER port, ULONG count, ULONG flags) {
    for (NET_BUFFER_LIST *list = lists; list; list = list->Next)
        for (NET_BUFFER *buffer = list->FirstNetBuffer; buffer; buffer = buffer->Next)
            NdisLog("receive", NdisFrame, NdisGather(buffer, NdisFrame, LARGEST_FRAME), NdisLoopback.Received++);
}

static void NdisReceive(void) {
    KIRQL irql = KeAcquireSpinLock(&NdisLoopback.Lock);
    NET_BUFFER_LIST *lists = NdisLoopback.First;
    NdisLoopback.First = NdisLoopback.Last = NULL;
    KeReleaseSpinLock(&NdisLoopback.Lock, irql);
    ULONG count = 0;
    for (NET_BUFFER_LIST *list = lists; list; list = list->Next) count++;
    if (!lists) return;
    NdisMIndicateReceiveNetBufferLists(&NdisLoopback, lists, 0, count, 0);
    NdisFreeNetBufferLists(lists);
}

static void NdisWorker(void *context) {
    NdisLoopback.Worker = PsGetCurrentThread();
    ObReferenceObject(NdisLoopback.Worker); /* for NdisUnload, which waits for this thread's end */
    KeSetEvent(context);
    while (!__atomic_load_n(&NdisLoopback.Stopping, __ATOMIC_ACQUIRE)) {
        KeWaitForSingleObject(&NdisLoopback.Arrived, KE_FOREVER);
        NdisReceive();
    }
    PsTerminateSystemThread(STATUS_SUCCESS);
}

/* The lists that a program's message asks for, chained; NULL where it is malformed or memory is short. */
static NET_BUFFER_LIST *NdisListsOf(const UCHAR *message, ULONG size) {
    NET_BUFFER_LIST *first = NULL, *list = NULL;
    NET_BUFFER *last = NULL;
    for (ULONG at = 0; at < size;) {
        const MININT_FRAME *frame = (const MININT_FRAME *)(message + at);
        const UCHAR *bytes = (const UCHAR *)(frame + 1);
        if (size - at < sizeof *frame || frame->Length > size - at - sizeof *frame || frame->Length > LARGEST_FRAME || !frame->Pieces) break;
        NET_BUFFER_LIST *fresh = !list || frame->NewList ? NdisMakeNetBufferList() : NULL;
        NET_BUFFER *buffer = NdisMakeNetBuffer(bytes, frame->Length, frame->Pieces, NdisLoopback.Sent);
        if (fresh) {
            if (list) list->Next = fresh;
            else first = fresh;
            list = fresh;
            last = NULL;
        }
        if (!list || !buffer) break;
        if (last) last->Next = buffer;
        else list->FirstNetBuffer = buffer;
        last = buffer;
        NdisLog("send", bytes, frame->Length, NdisLoopback.Sent++);
        at += sizeof *frame + frame->Length;
    }
    return first;
}

NOINLINE static BOOLEAN NdisWrite(FILE_OBJECT *file, LONG64 *offset, ULONG length, BOOLEAN wait, ULONG key, void *buffer,
                                  IO_STATUS_BLOCK *status, DEVICE_OBJECT *device) {
    NET_BUFFER_LIST *lists = NdisListsOf(buffer, length);
    status->Status = lists ? STATUS_SUCCESS : STATUS_INVALID_PARAMETER;
    if (lists) NdisSendNetBufferLists(&NdisLoopback, lists, 0, 0);
    __barrier(); /* so that this function, not its caller, is on the stack while it sends */
    return TRUE;
}

static void NdisUnload(DRIVER_OBJECT *driver) {
    __atomic_store_n(&NdisLoopback.Stopping, TRUE, __ATOMIC_RELEASE);
    KeSetEvent(&NdisLoopback.Arrived);
    KeWaitForSingleObject(NdisLoopback.Worker, KE_FOREVER);
    ObDereferenceObject(NdisLoopback.Worker);
    NdisReceive();
}

NTSTATUS DriverEntry(DRIVER_OBJECT *driver, UNICODE_STRING *registry_path) {
    KEVENT started;
    KeInitializeEvent(&started, NotificationEvent, FALSE);
    KeInitializeEvent(&NdisLoopback.Arrived, SynchronizationEvent, FALSE);
    NTSTATUS status = PsCreateSystemThread(NdisWorker, &started);
    if (!NT_SUCCESS(status)) return status;
    KeWaitForSingleObject(&started, KE_FOREVER);
    NdisFastIoDispatch.SizeOfFastIoDispatch = sizeof NdisFastIoDispatch;
    NdisFastIoDispatch.FastIoWrite = NdisWrite;
    driver->FastIoDispatch = (void *)&NdisFastIoDispatch;
    driver->DriverUnload = (void *)NdisUnload;
    return STATUS_SUCCESS;
}
