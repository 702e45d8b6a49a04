/* COM1: the event log (one JSON object a line). The host's command lines come on COM1 or, so that the log can go to a plain
 * file, on COM2; nothing is written to that one. */
#include "nt.h"

#define COM1 0x3F8
#define COM2 0x2F8
static KSPIN_LOCK KdpLock;

void KdInitSerial(void) {
    __out8(COM1 + 1, 0);
    __out8(COM1 + 3, 0x80);
    __out8(COM1 + 0, 1); /* 115200 baud; QEMU does not wait for it */
    __out8(COM1 + 1, 0);
    __out8(COM1 + 3, 3);
    __out8(COM1 + 2, 0xC7);
    __out8(COM1 + 4, 3);
}

static void KdpPut(const char *text, SIZE_T length) {
    for (SIZE_T i = 0; i < length; i++) {
        while (!(__in8(COM1 + 5) & 0x20)) __relax();
        __out8(COM1, (UCHAR)text[i]);
    }
}

/* Interrupts stay as they are; the processor does not change hands meanwhile, and a crash inside may still print. */
void KdWrite(const char *text, SIZE_T length) {
    KIRQL old = KeGetCurrentIrql();
    if (old < DISPATCH_LEVEL) KeRaiseIrql(DISPATCH_LEVEL);
    BOOLEAN bits = (__flags() & 0x200) != 0;
    if (bits && old >= CLOCK_LEVEL) __cli();
    KiSpin(&KdpLock);
    KdpPut(text, length);
    KiUnspin(&KdpLock);
    if (bits && old >= CLOCK_LEVEL) __sti();
    KeLowerIrql(old);
}

void KdEvent(const char *format, ...) {
    CHAR line[1024];
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    SIZE_T used = RtlFormatV(line, sizeof line - 1, format, arguments);
    __builtin_va_end(arguments);
    line[used++] = '\n';
    KdWrite(line, used);
}

void KdPrint(const char *format, ...) {
    CHAR line[1024];
    SIZE_T used = RtlFormat(line, sizeof line, "{\"event\":\"debug\",\"text\":\"");
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    used += RtlFormatV(line + used, sizeof line - used - 4, format, arguments);
    __builtin_va_end(arguments);
    while (used && line[used - 1] == '\n') used--;
    memcpy(line + used, "\"}\n", 3);
    KdWrite(line, used + 3);
}

/* The next byte that the host sent, or -1. */
int KdReadByte(void) {
    static const USHORT ports[] = {COM1, COM2};
    for (ULONG i = 0; i < ARRAYSIZE(ports); i++) {
        UCHAR status = __in8(ports[i] + 5);
        if (status != 0xFF && status & 1) return __in8(ports[i]); /* 0xFF: no such port */
    }
    return -1;
}

static ULONG KiBugChecked;

NORETURN void KeBugCheckEx(ULONG code, ULONG64 p1, ULONG64 p2, ULONG64 p3, ULONG64 p4) {
    __cli();
    if (!__atomic_exchange_n(&KiBugChecked, 1, __ATOMIC_SEQ_CST)) {
        CHAR line[512];
        SIZE_T used = RtlFormat(line, sizeof line,
                                "\n{\"event\":\"bugcheck\",\"code\":\"%#x\",\"parameters\":[\"%#llx\",\"%#llx\",\"%#llx\",\"%#llx\"],"
                                "\"processor\":%u,\"kernel\":\"%p\"}\n",
                                code, p1, p2, p3, p4, KeGetCurrentProcessorNumber(), (void *)KeLoaderBlock->KernelBase);
        KdpPut(line, used);
    }
    for (;;) __hlt();
}
