/* The system services that ask and tell: NtQuerySystemInformation and NtSetSystemInformation with minint's own classes (see
 * services.h), NtDisplayString, NtQueryPerformanceCounter. */
#include "nt.h"
#include "services.h"
#include "io/io.h"
#include "mm/mm.h"

#define STATUS_INVALID_INFO_CLASS ((NTSTATUS)0xC0000003)
#define LONGEST_NOTE 255

NTSTATUS NtQuerySystemInformation(ULONG class, void *buffer, ULONG size, ULONG *needed) {
    if (class != SystemMinintOptions) return STATUS_INVALID_INFO_CLASS;
    ULONG length = (ULONG)strlen(KeLoaderBlock->OptionsText) + 1;
    NTSTATUS status = needed ? MmCopyToUser(needed, &length, sizeof length) : STATUS_SUCCESS;
    if (!NT_SUCCESS(status)) return status;
    return size < length ? STATUS_BUFFER_TOO_SMALL : MmCopyToUser(buffer, KeLoaderBlock->OptionsText, length);
}

static NTSTATUS ExpNote(const char *user, ULONG size) {
    CHAR text[LONGEST_NOTE + 1];
    if (size > LONGEST_NOTE) return STATUS_INVALID_PARAMETER;
    NTSTATUS status = MmCopyFromUser(text, user, size);
    if (!NT_SUCCESS(status)) return status;
    for (ULONG i = 0; i < size; i++) /* what JSON would want escaped */
        if (text[i] < ' ' || text[i] > '~' || text[i] == '"' || text[i] == '\\') text[i] = '?';
    text[size] = 0;
    KdEvent("{\"event\":\"note\",\"pid\":%u,\"text\":\"%s\"}", PsGetProcessId(PsGetCurrentProcess()), text);
    return STATUS_SUCCESS;
}

static NTSTATUS ExpTrim(SYSTEM_MININT_TRIM *user) {
    SYSTEM_MININT_TRIM trim;
    NTSTATUS status = MmCopyFromUser(&trim, user, sizeof trim);
    if (NT_SUCCESS(status)) MmTrimProcess(PsGetCurrentProcess(), trim.Base, trim.Size, trim.Policy);
    return status;
}

NTSTATUS NtSetSystemInformation(ULONG class, void *buffer, ULONG size) {
    if (class == SystemMinintNote) return ExpNote(buffer, size);
    if (class == SystemMinintSend) return IoSendToNetwork(buffer, size);
    if (class == SystemStoreInformation && NT_LAYOUT_BUILD >= 14393) return SmFirstTimeInit();
    if (class != SystemMinintTrim) return STATUS_INVALID_INFO_CLASS;
    return size == sizeof(SYSTEM_MININT_TRIM) ? ExpTrim(buffer) : STATUS_INVALID_PARAMETER;
}

/* A UNICODE_STRING onto the log, as a note. */
NTSTATUS NtDisplayString(UNICODE_STRING *user) {
    UNICODE_STRING string;
    WCHAR wide[LONGEST_NOTE];
    CHAR text[LONGEST_NOTE + 1];
    NTSTATUS status = MmCopyFromUser(&string, user, sizeof string);
    if (!NT_SUCCESS(status)) return status;
    ULONG count = MIN(string.Length / 2, LONGEST_NOTE);
    status = MmCopyFromUser(wide, (void *)string.Buffer, count * 2);
    if (!NT_SUCCESS(status)) return status;
    for (ULONG i = 0; i < count; i++) text[i] = wide[i] < ' ' || wide[i] > '~' || wide[i] == '"' || wide[i] == '\\' ? '?' : (CHAR)wide[i];
    text[count] = 0;
    KdEvent("{\"event\":\"note\",\"pid\":%u,\"text\":\"%s\"}", PsGetProcessId(PsGetCurrentProcess()), text);
    return STATUS_SUCCESS;
}

NTSTATUS NtQueryPerformanceCounter(LONG64 *counter, LONG64 *frequency) {
    LONG64 now = (LONG64)KeQueryInterruptTime(), rate = 10000000;
    NTSTATUS status = MmCopyToUser(counter, &now, sizeof now);
    return NT_SUCCESS(status) && frequency ? MmCopyToUser(frequency, &rate, sizeof rate) : status;
}
