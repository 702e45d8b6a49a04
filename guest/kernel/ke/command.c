/* The host's commands, one a line on COM1 or COM2:
 *   truth [PID]  stop everything else, print every page's state, stay stopped
 *   go           go on
 *   trim [PID]   take every page out of the working sets (policy: `trim PID POLICY`, MM_TRIM's bits)
 *   ping         answer
 *   quit         power off */
#include "nt.h"
#include "io/io.h"
#include "ki.h"

static BOOLEAN KiStopped;

static ULONG64 KiNumber(const CHAR **at) {
    ULONG64 value = 0;
    while (**at == ' ') ++*at;
    for (; **at >= '0' && **at <= '9'; ++*at) value = value * 10 + (ULONG64)(**at - '0');
    return value;
}

static EPROCESS *KiFindProcess(ULONG64 pid) {
    EPROCESS *process = NULL;
    while (pid && (process = PsGetNextProcess(process)))
        if (PsGetProcessId(process) == pid) break;
    return process;
}

static void KiTruth(const CHAR *rest) {
    ULONG64 pid = KiNumber(&rest);
    EPROCESS *process = KiFindProcess(pid);
    if (pid && !process) {
        KdEvent("{\"event\":\"error\",\"text\":\"no process %llu\"}", pid);
        return;
    }
    if (!KiStopped) {
        MmFreeze();
        IoFreeze();
        KeFreezeExecution();
        KiStopped = TRUE;
    }
    ULONG pages = MmEmitTruth(process);
    KdEvent("{\"event\":\"truth-end\",\"pages\":%u}", pages);
    if (process) ObDereferenceObject(process);
}

static void KiGo(void) {
    if (KiStopped) {
        KiStopped = FALSE;
        KeThawExecution();
        IoThaw();
        MmThaw();
    }
    KdEvent("{\"event\":\"running\"}");
}

static void KiTrim(const CHAR *rest) {
    ULONG64 pid = KiNumber(&rest), policy = KiNumber(&rest);
    ULONG changed = 0;
    for (EPROCESS *process = PsGetNextProcess(NULL); process; process = PsGetNextProcess(process)) {
        if (pid ? PsGetProcessId(process) != pid : process == PsInitialSystemProcess) continue;
        changed += MmTrimProcess(process, NULL, 0, policy ? (ULONG)policy : MmTrimToTransition);
    }
    KdEvent("{\"event\":\"trimmed\",\"pages\":%u}", changed);
}

static void KiPowerOff(void) {
    KdEvent("{\"event\":\"quit\"}");
    __out16(0x604, 0x2000); /* ACPI's PM1a control on QEMU's q35 */
    __out8(0xF4, 0);
}

static void KiCommand(const CHAR *line) {
    if (!strncmp(line, "truth", 5)) KiTruth(line + 5);
    else if (!strcmp(line, "go")) KiGo();
    else if (!strncmp(line, "trim", 4)) KiTrim(line + 4);
    else if (!strcmp(line, "ping")) KdEvent("{\"event\":\"pong\",\"milliseconds\":%llu}", KeQueryInterruptTime() / 10000);
    else if (!strcmp(line, "quit")) KiPowerOff();
    else if (*line) KdEvent("{\"event\":\"error\",\"text\":\"unknown command\"}");
}

void KiCommandThread(void *context) {
    CHAR line[128];
    ULONG length = 0;
    for (;;) {
        int byte = KdReadByte();
        if (byte < 0) {
            KeSleep(10);
            continue;
        }
        if (byte == '\r') continue;
        if (byte != '\n') {
            if (length + 1 < sizeof line) line[length++] = (CHAR)byte;
            continue;
        }
        line[length] = 0;
        length = 0;
        KiCommand(line);
    }
}
