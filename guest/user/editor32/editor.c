/* editor32.exe, a 32-bit program: writes to its documents for ever, through three nested functions of its own.
 *
 * Command line: threads=n (1 to 8), writes=n of each thread (0: without end), pace=milliseconds between the writes of a thread,
 * work=n times that a text is read through before it is written, in 32-bit code all the while.
 * Thread t appends to \Users\minint\Documents\wow-t.txt; at DOCUMENT_SIZE it starts over. What it writes is a function of the
 * thread and the number of the write alone. Each thread notes once where its functions return to. */
#include "editor32.h"

#define MOST_THREADS 8
#define DOCUMENT_SIZE (1l << 20)
#define TEXT_SIZE 0x2000

NOINLINE ULONG NTAPI EdCompose(char *buffer, ULONG thread, ULONG number) {
    ULONG seed = (number + 1) * 0x9e3779b9ul ^ (thread + 1) << 24;
    ULONG length = 80 + (seed >> 8) % (LONGEST_WRITE - 80), n = RtlFormatText(buffer, 60, "[wow-%u #%06u] ", thread, number);
    for (; n < length - 1; n++) {
        seed = seed * 1664525ul + 1013904223ul;
        buffer[n] = "etaoin shrdlu cmfwyp vbgkjq xz.\n"[seed >> 27];
    }
    buffer[n++] = '\n';
    return n;
}

/* A sum over the text, `rounds` times. */
NOINLINE static ULONG NTAPI EdProofread(const char *text, ULONG length, ULONG rounds) {
    ULONG sum = length;
    for (; rounds; rounds--)
        for (ULONG n = 0; n < length; n++) sum = sum * 33 ^ (UCHAR)text[n];
    return sum;
}

static void EdNoteFrames(DOCUMENT *document) {
    RtlNote("editor32: thread %u returns to %x %x %x %x", document->Thread, (ULONG)document->Returns[LevelFlush],
            (ULONG)document->Returns[LevelParagraph], (ULONG)document->Returns[LevelSave], (ULONG)document->Returns[LevelThread]);
}

NOINLINE NTSTATUS NTAPI EdFlushBuffer(DOCUMENT *document, const void *buffer, ULONG length) {
    IO_STATUS_BLOCK status;
    LONG64 offset = document->Position;
    NOTE_RETURN(document, LevelFlush);
    if (!document->Number) EdNoteFrames(document);
    document->Sum = EdProofread(buffer, length, document->Work);
    NTSTATUS result = NtWriteFile(document->File, NULL, NULL, NULL, &status, buffer, length, &offset, NULL);
    return NT_SUCCESS(result) && status.Information != length ? (NTSTATUS)0xC0000011 : result;
}

NOINLINE NTSTATUS NTAPI EdSaveDocument(DOCUMENT *document) {
    NOTE_RETURN(document, LevelSave);
    if (document->Position >= DOCUMENT_SIZE) document->Position = 0;
    NTSTATUS status = EdWriteParagraph(document, document->Number);
    if (!NT_SUCCESS(status)) RtlNote("editor32: write %u: %x", document->Number, (ULONG)status);
    document->Number++;
    return status;
}

NOINLINE static void NTAPI EditorThread(void *argument) {
    static const WCHAR pattern[] = L"C:\\Users\\minint\\Documents\\wow-?.txt";
    WCHAR path[sizeof pattern / sizeof *pattern];
    DOCUMENT document;
    SIZE_T size = TEXT_SIZE;
    ULONG pace = RtlArgument("pace", 20), writes = RtlArgument("writes", 0);
    void *text = NULL;
    memset(&document, 0, sizeof document);
    NOTE_RETURN(&document, LevelThread);
    memcpy(path, pattern, sizeof pattern);
    document.Thread = (ULONG)argument;
    document.Work = RtlArgument("work", 1);
    path[30] = (WCHAR)('0' + document.Thread);
    document.File = RtlOpen(path, 5); /* FILE_OVERWRITE_IF */
    NtAllocateVirtualMemory(NT_CURRENT_PROCESS, &text, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    document.Text = text;
    if (!document.File || !text) {
        RtlNote("editor32: thread %u cannot start: file %x text %x", document.Thread, (ULONG)document.File, (ULONG)text);
        return;
    }
    while (!writes || document.Number < writes) {
        EdSaveDocument(&document);
        if (pace) RtlSleep(pace);
        else NtYieldExecution();
    }
    RtlNote("editor32: thread %u wrote %u", document.Thread, document.Number);
    for (;;) RtlSleep(1000);
}

void NTAPI NtProcessStartup(PEB *peb) {
    ULONG threads = RtlArgument("threads", 1);
    HANDLE thread;
    (void)peb;
    if (threads > MOST_THREADS) threads = MOST_THREADS;
    for (ULONG n = 0; n < threads; n++)
        NtCreateThreadEx(&thread, 0x1fffff, NULL, NT_CURRENT_PROCESS, EditorThread, (void *)n, 0, 0, 0, 0, NULL);
    for (;;) RtlSleep(1000);
}
