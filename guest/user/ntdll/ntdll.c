/* ntdll.dll: what programs share; how a thread starts. The loader is ldr.c.
 *
 * Every program imports from ntdll alone. Nothing here uses floating point: minint saves general registers only. */
#include "../user.h"

static char RtlpBootOptions[1024];

PEB *RtlPeb(void) {
    PEB *peb;
    __asm__("movq %%gs:%c1, %0" : "=r"(peb) : "i"(OFF__TEB__ProcessEnvironmentBlock));
    return peb;
}

/* ---- Bytes and strings */

void *memset(void *to, int value, SIZE_T size) {
    void *start = to;
    __asm__ volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

void *memcpy(void *to, const void *from, SIZE_T size) {
    void *start = to;
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return start;
}

int strcmp(const char *a, const char *b) {
    for (; *a && *a == *b; a++, b++) {}
    return (UCHAR)*a - (UCHAR)*b;
}

SIZE_T strlen(const char *s) {
    SIZE_T n = 0;
    while (s[n]) n++;
    return n;
}

SIZE_T wcslen(PCWSTR s) {
    SIZE_T n = 0;
    while (s[n]) n++;
    return n;
}

void RtlInitUnicodeString(UNICODE_STRING *s, PCWSTR text) {
    s->Buffer = (void *)text;
    s->Length = (USHORT)(wcslen(text) * 2);
    s->MaximumLength = s->Length + 2;
}

static SIZE_T RtlpNumber(char *to, ULONG64 value, ULONG base, ULONG width, char pad) {
    char digits[24];
    ULONG n = 0, length = 0;
    do digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (n < width && n < sizeof digits) digits[n++] = pad;
    while (n) to[length++] = digits[--n];
    return length;
}

static SIZE_T RtlpFormat(char *buffer, SIZE_T size, const char *format, __builtin_va_list arguments) {
    SIZE_T n = 0;
    char digits[24];
    for (; *format && n + 1 < size; format++) {
        if (*format != '%') {
            buffer[n++] = *format;
            continue;
        }
        char pad = ' ';
        ULONG width = 0;
        const char *text = digits;
        SIZE_T length = 1;
        format++;
        if (*format == '0') pad = *format++;
        while (*format >= '0' && *format <= '9') width = width * 10 + (*format++ - '0');
        switch (*format) {
        case 'u': length = RtlpNumber(digits, __builtin_va_arg(arguments, ULONG64), 10, width, pad); break;
        case 'x': length = RtlpNumber(digits, __builtin_va_arg(arguments, ULONG64), 16, width, pad); break;
        case 's':
            text = __builtin_va_arg(arguments, const char *);
            length = strlen(text);
            break;
        case 'c': digits[0] = (char)__builtin_va_arg(arguments, int); break;
        default: digits[0] = *format;
        }
        for (SIZE_T i = 0; i < length && n + 1 < size; i++) buffer[n++] = text[i];
    }
    buffer[n] = 0;
    return n;
}

SIZE_T RtlFormatText(char *buffer, SIZE_T size, const char *format, ...) {
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    SIZE_T length = RtlpFormat(buffer, size, format, arguments);
    __builtin_va_end(arguments);
    return length;
}

void RtlNote(const char *format, ...) {
    char line[256];
    __builtin_va_list arguments;
    __builtin_va_start(arguments, format);
    SIZE_T length = RtlpFormat(line, sizeof line, format, arguments);
    __builtin_va_end(arguments);
    NtSetSystemInformation(SystemMinintNote, line, (ULONG)length);
}

/* ---- Options: NAME=number among words */

static ULONG64 RtlpOption(const char *words, const char *name, ULONG64 otherwise) {
    SIZE_T length = strlen(name);
    while (*words) {
        while (*words == ' ') words++;
        SIZE_T i = 0;
        while (i < length && words[i] == name[i]) i++;
        if (i == length && (words[i] == 0 || words[i] == ' ')) return 1;
        if (i == length && words[i] == '=') {
            ULONG64 value = 0;
            for (words += i + 1; *words >= '0' && *words <= '9'; words++) value = value * 10 + (*words - '0');
            return value;
        }
        while (*words && *words != ' ') words++;
    }
    return otherwise;
}

ULONG64 RtlBootOption(const char *name, ULONG64 otherwise) {
    if (!RtlpBootOptions[0]) {
        ULONG needed;
        if (!NT_SUCCESS(NtQuerySystemInformation(SystemMinintOptions, RtlpBootOptions, sizeof RtlpBootOptions, &needed)))
            return otherwise;
    }
    return RtlpOption(RtlpBootOptions, name, otherwise);
}

ULONG64 RtlArgument(const char *name, ULONG64 otherwise) {
    char words[256];
    UNICODE_STRING *line = &RtlPeb()->ProcessParameters->CommandLine;
    SIZE_T count = MIN(line->Length / 2, sizeof words - 1);
    for (SIZE_T i = 0; i < count; i++) words[i] = (char)((PCWSTR)line->Buffer)[i];
    words[count] = 0;
    return RtlpOption(words, name, otherwise);
}

/* ---- Services in fewer words */

void RtlSleep(ULONG milliseconds) {
    LONG64 interval = -10000ll * milliseconds;
    NtDelayExecution(FALSE, &interval);
}

HANDLE RtlOpen(PCWSTR path, ULONG disposition) {
    UNICODE_STRING name;
    RtlInitUnicodeString(&name, path);
    OBJECT_ATTRIBUTES_ARGUMENT attributes = {sizeof attributes, NULL, &name, 0x40, NULL, NULL};
    IO_STATUS_BLOCK status;
    HANDLE file = NULL;
    if (!NT_SUCCESS(NtCreateFile(&file, 0xc0100000, &attributes, &status, NULL, 0x80, 3, disposition, 0x60, NULL, 0)))
        return NULL;
    return file;
}

NTSTATUS RtlStartProgram(PCWSTR image, PCWSTR command_line) {
    RTL_USER_PROCESS_PARAMETERS parameters;
    HANDLE process, thread;
    memset(&parameters, 0, sizeof parameters);
    parameters.MaximumLength = parameters.Length = sizeof parameters;
    RtlInitUnicodeString(&parameters.ImagePathName, image);
    RtlInitUnicodeString(&parameters.CommandLine, command_line);
    NTSTATUS status = NtCreateUserProcess(&process, &thread, 0x2000000, 0x2000000, NULL, NULL, 0, 0, &parameters, NULL, NULL);
    if (NT_SUCCESS(status)) {
        NtClose(thread);
        NtClose(process);
    } else {
        RtlNote("%x: no process started", (ULONG64)(ULONG)status);
    }
    return status;
}

NOINLINE void RtlUserThreadStart(THREAD_START start, void *argument) {
    start(argument);
    NtTerminateThread(NT_CURRENT_THREAD, STATUS_SUCCESS);
}

int DllMain(void) { return 1; }
