/* Compiled without a frame pointer: EBP is a register like any other here, and the way to the caller is in the PDB alone. */
#include "editor32.h"

NOINLINE NTSTATUS NTAPI EdWriteParagraph(DOCUMENT *document, ULONG number) {
    char text[LONGEST_WRITE];
    char *buffer = number % 2 ? document->Text + number * 397 % 3000 : text; /* so that buffers cross pages at all places */
    NOTE_RETURN(document, LevelParagraph);
    ULONG length = EdCompose(buffer, document->Thread, number);
    NTSTATUS status = EdFlushBuffer(document, buffer, length);
    if (NT_SUCCESS(status)) document->Position += length;
    return status;
}
