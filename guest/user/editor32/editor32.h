/* editor32.exe's documents. */
#ifndef EDITOR32_H
#define EDITOR32_H
#include "../ntdll32/user32.h"

#define LONGEST_WRITE 800

typedef enum _FRAME_LEVEL { LevelFlush, LevelParagraph, LevelSave, LevelThread, FrameLevels } FRAME_LEVEL;

typedef struct _DOCUMENT {
    HANDLE File;
    ULONG Thread, Number; /* writes so far */
    ULONG Work, Sum;
    LONG64 Position;      /* where the next one goes */
    char *Text;
    void *Returns[FrameLevels]; /* each function's return address, as the compiler has it: what a walk of the stack should find */
} DOCUMENT;

#define NOTE_RETURN(document, level) ((document)->Returns[level] = __builtin_return_address(0))

/* The text of write `number` of thread `thread`; returns its length. */
ULONG NTAPI EdCompose(char *buffer, ULONG thread, ULONG number);
NTSTATUS NTAPI EdFlushBuffer(DOCUMENT *document, const void *buffer, ULONG length);
NTSTATUS NTAPI EdWriteParagraph(DOCUMENT *document, ULONG number); /* without a frame pointer */
#endif
