/* notepad.exe: writes to its documents for ever, through three nested functions of its own, from buffers of every kind.
 *
 * Command line: threads=n (1 to 8), writes=n in all (0: without end), pace=milliseconds between the writes of a thread.
 * Thread t appends to \Users\minint\Documents\notes-t.txt; at DOCUMENT_SIZE it starts over. What it writes is a function of
 * the thread and the number of the write alone: a line that names both, then text from a generator seeded with both. */
#include "user.h"

#define MOST_THREADS 8
#define DOCUMENT_SIZE (4ll << 20)
#define LONGEST_WRITE 12000
#define VIEW_SIZE 0x10000

typedef enum _BUFFER_KIND {
    BufferHeap,           /* private, valid */
    BufferTrimmed,        /* private, trimmed just before the call: transition */
    BufferSection,        /* a view of a section backed by the paging file: prototype PTEs */
    BufferSectionTrimmed, /* the same, trimmed */
    BufferStack,
    BufferImage,          /* a written page of notepad.exe itself: copied on write */
    BufferKinds
} BUFFER_KIND;

static const char *const BufferNames[BufferKinds] = {"heap", "trimmed", "section", "section-trimmed", "stack", "image"};

typedef struct _DOCUMENT {
    HANDLE File;
    ULONG Thread;
    ULONG64 Number;  /* writes so far */
    LONG64 Position; /* where the next one goes */
    UCHAR *Heap, *View;
} DOCUMENT;

static UCHAR ImageBuffers[MOST_THREADS][LONGEST_WRITE] = {{1}}; /* initialised, so that it lies in .data of the file */
static ULONG64 WritesLeft;
static BOOLEAN Endless;

/* The text of write `number` of thread `thread`; returns its length. */
static ULONG Compose(char *buffer, ULONG thread, ULONG64 number, BUFFER_KIND kind) {
    ULONG64 seed = (number + 1) * 0x9e3779b97f4a7c15ull ^ (ULONG64)(thread + 1) << 56;
    ULONG length = 80 + (ULONG)(seed >> 40) % (number % 8 == 7 ? LONGEST_WRITE - 80 : 700);
    ULONG n = (ULONG)RtlFormatText(buffer, 80, "[notes-%u #%06u %s] ", (ULONG64)thread, number, BufferNames[kind]);
    for (; n < length - 1; n++) {
        seed = seed * 6364136223846793005ull + 1442695040888963407ull;
        buffer[n] = "etaoin shrdlu cmfwyp vbgkjq xz.\n"[seed >> 59];
    }
    buffer[n++] = '\n';
    return n;
}

static void Trim(void *buffer, ULONG length) {
    void *base = buffer;
    SIZE_T size = length;
    NtUnlockVirtualMemory(NT_CURRENT_PROCESS, &base, &size, 1);
}

NOINLINE NTSTATUS NpFlushBuffer(DOCUMENT *document, const void *buffer, ULONG length) {
    IO_STATUS_BLOCK status;
    LONG64 offset = document->Position;
    NTSTATUS result = NtWriteFile(document->File, NULL, NULL, NULL, &status, buffer, length, &offset, NULL);
    document->Position += length;
    return result;
}

NOINLINE NTSTATUS NpWriteParagraph(DOCUMENT *document, BUFFER_KIND kind) {
    char stack[1024];
    ULONG odd = (ULONG)(document->Number * 397 % 3000); /* so that buffers cross pages at all places */
    char *buffer = kind == BufferStack ? stack
                   : kind == BufferImage ? (char *)ImageBuffers[document->Thread]
                   : kind >= BufferSection ? (char *)document->View + odd
                                           : (char *)document->Heap + odd;
    ULONG length = Compose(buffer, document->Thread, document->Number, kind);
    if (kind == BufferTrimmed || kind == BufferSectionTrimmed) Trim(buffer, length);
    NTSTATUS status = NpFlushBuffer(document, buffer, length);
    document->Number++;
    return status;
}

NOINLINE NTSTATUS NpSaveDocument(DOCUMENT *document) {
    BUFFER_KIND kind = (BUFFER_KIND)(document->Number % BufferKinds);
    if (kind == BufferStack && document->Number % 8 == 7) kind = BufferHeap; /* the long ones do not fit there */
    if (document->Position >= DOCUMENT_SIZE) document->Position = 0;
    NTSTATUS status = NpWriteParagraph(document, kind);
    if (!NT_SUCCESS(status)) RtlNote("notepad: write %u: %x", document->Number, (ULONG64)(ULONG)status);
    return status;
}

static void EditorThread(void *argument) {
    DOCUMENT document;
    WCHAR path[] = L"C:\\Users\\minint\\Documents\\notes-?.txt";
    SIZE_T size = VIEW_SIZE;
    LONG64 section_size = VIEW_SIZE;
    HANDLE section;
    ULONG pace = (ULONG)RtlArgument("pace", 20);
    memset(&document, 0, sizeof document);
    document.Thread = (ULONG)(ULONG64)argument;
    path[32] = (WCHAR)('0' + document.Thread);
    document.File = RtlOpen(path, 5); /* FILE_OVERWRITE_IF */
    NtAllocateVirtualMemory(NT_CURRENT_PROCESS, (void **)&document.Heap, 0, &size, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE);
    NtCreateSection(&section, 0xf001f, NULL, &section_size, PAGE_READWRITE, SEC_COMMIT, NULL);
    size = 0;
    NtMapViewOfSection(section, NT_CURRENT_PROCESS, (void **)&document.View, 0, 0, NULL, &size, VIEW_UNMAP, 0, PAGE_READWRITE);
    if (!document.File || !document.Heap || !document.View) {
        RtlNote("notepad: thread %u cannot start: file %x heap %x view %x", (ULONG64)document.Thread, (ULONG64)document.File,
                (ULONG64)document.Heap, (ULONG64)document.View);
        return;
    }
    while (Endless || (LONG64)__atomic_fetch_sub(&WritesLeft, 1, __ATOMIC_RELAXED) > 0) {
        NpSaveDocument(&document);
        if (pace) RtlSleep(pace);
    }
    RtlNote("notepad: thread %u wrote %u", (ULONG64)document.Thread, document.Number);
    for (;;) RtlSleep(1000);
}

void NtProcessStartup(PEB *peb) {
    ULONG threads = (ULONG)RtlArgument("threads", 3);
    HANDLE thread;
    (void)peb;
    WritesLeft = RtlArgument("writes", 0);
    Endless = WritesLeft == 0;
    for (ULONG64 n = 0; n < MIN(MAX(threads, 1), MOST_THREADS); n++)
        NtCreateThreadEx(&thread, 0x1fffff, NULL, NT_CURRENT_PROCESS, EditorThread, (void *)n, 0, 0, 0, 0, NULL);
    for (;;) RtlSleep(1000);
}
