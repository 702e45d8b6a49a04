/* packets.exe: loads ndis.sys and sends Ethernet frames through it. Arguments: count=n, pace=milliseconds between two calls,
 * wait=milliseconds before the first, reload=n times that the driver is unloaded and loaded again before that.
 *
 * Frames are IPv4 with UDP, of 60 to 9000 bytes, one to four a call, over one to five MDLs each, in one list or in several. */
#include "user.h"

#define MOST_TOGETHER 4
#define LARGEST 9000
#define HEADERS 42 /* Ethernet, IPv4, UDP */

static UCHAR PktMessage[MOST_TOGETHER * (LARGEST + sizeof(MININT_FRAME))];

static void PktPut16(UCHAR *at, ULONG value) {
    at[0] = (UCHAR)(value >> 8);
    at[1] = (UCHAR)value;
}

static ULONG PktChecksum(const UCHAR *header) {
    ULONG sum = 0;
    for (ULONG i = 0; i < 20; i += 2) sum += (ULONG)header[i] << 8 | header[i + 1];
    sum = (sum & 0xFFFF) + (sum >> 16);
    return ~(sum + (sum >> 16)) & 0xFFFF;
}

static void PktCompose(UCHAR *frame, ULONG length, ULONG number) {
    static const UCHAR ethernet[14] = {2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0};
    static const UCHAR ip[20] = {0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2}; /* TEST-NET-1 */
    memcpy(frame, ethernet, sizeof ethernet);
    memcpy(frame + 14, ip, sizeof ip);
    PktPut16(frame + 16, length - 14);
    PktPut16(frame + 18, number);
    PktPut16(frame + 24, PktChecksum(frame + 14));
    PktPut16(frame + 34, 4000 + number % 100);
    PktPut16(frame + 36, 4242);
    PktPut16(frame + 38, length - 34);
    PktPut16(frame + 40, 0); /* no checksum */
    ULONG n = HEADERS + (ULONG)RtlFormatText((char *)frame + HEADERS, 18, "packet %u ", (ULONG64)number);
    for (ULONG64 seed = number; n < length; n++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        frame[n] = (UCHAR)(seed >> 56);
    }
}

static ULONG PktLength(ULONG number) { return number % 11 == 10 ? 1600 + number * 977 % (LARGEST - 1600) : 60 + number * 353 % 1455; }

NOINLINE static NTSTATUS PktSend(ULONG first, ULONG count) {
    ULONG size = 0;
    for (ULONG number = first; number < first + count; number++) {
        MININT_FRAME *frame = (MININT_FRAME *)(PktMessage + size);
        ULONG length = PktLength(number);
        frame->Length = (USHORT)length;
        frame->Pieces = (UCHAR)(1 + number % 5);
        frame->NewList = number % 3 == 0;
        PktCompose((UCHAR *)(frame + 1), length, number);
        size += (ULONG)sizeof *frame + length;
    }
    NTSTATUS status = NtSetSystemInformation(SystemMinintSend, PktMessage, size);
    if (!NT_SUCCESS(status)) RtlNote("packets: send %u: %x", (ULONG64)first, (ULONG64)(ULONG)status);
    return status;
}

static void PktDriver(const char *does, NTSTATUS status) {
    if (!NT_SUCCESS(status)) RtlNote("packets: %s: %x", does, (ULONG64)(ULONG)status);
}

void NtProcessStartup(PEB *peb) {
    ULONG count = (ULONG)RtlArgument("count", 20), pace = (ULONG)RtlArgument("pace", 20);
    UNICODE_STRING service;
    RtlInitUnicodeString(&service, L"\\Registry\\Machine\\System\\CurrentControlSet\\Services\\ndis");
    PktDriver("load", NtLoadDriver(&service));
    RtlNote("packets wait");
    RtlSleep((ULONG)RtlArgument("wait", 0));
    for (ULONG64 n = RtlArgument("reload", 0); n; n--) {
        PktDriver("unload", NtUnloadDriver(&service));
        PktDriver("load again", NtLoadDriver(&service));
    }
    for (ULONG number = 0, together; number < count; number += together) {
        together = 1 + number / 3 % MOST_TOGETHER;
        if (together > count - number) together = count - number;
        PktSend(number, together);
        if (pace) RtlSleep(pace);
    }
    RtlSleep(200);
    RtlNote("packets: sent %u", (ULONG64)count);
    for (;;) RtlSleep(1000);
}
