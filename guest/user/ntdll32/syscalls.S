/* The 32-bit ntdll.dll's system-service stubs: eax = the service's number, with the number of wow64cpu.dll's turbo thunk above it, and
 * out through TEB32.WOW32Reserved (Wow64Transition), as in Windows 8. Services without arguments have a thunk of their own. */
#include "../../kernel/services.h"

#define WOW32_RESERVED 0xC0 /* TEB32 */
#define TURBO_NONE 0
#define TURBO_0_ARGUMENTS 1

    .text
    .set service, 0

    .macro stub name, bytes
    .globl "_\name@\bytes"
    .p2align 4
    .def "_\name@\bytes"
    .scl 2
    .type 32
    .endef
"_\name@\bytes":
    .if \bytes
    movl $service, %eax
    .else
    movl $(service + (TURBO_0_ARGUMENTS << 16)), %eax
    .endif
    calll *%fs:WOW32_RESERVED
    .if \bytes
    retl $\bytes
    .else
    retl
    .endif
    .set service, service + 1
    .endm

#define BYTES_0 0
#define BYTES_1 4
#define BYTES_2 8
#define BYTES_3 12
#define BYTES_4 16
#define BYTES_5 20
#define BYTES_6 24
#define BYTES_7 28
#define BYTES_8 32
#define BYTES_9 36
#define BYTES_10 40
#define BYTES_11 44
#define SERVICE(name, arguments) stub name, BYTES_##arguments;
SYSTEM_SERVICES(SERVICE)

/* wow64.dll has each thread start here: above esp lie a return address of 0, the start routine, its argument. The thread goes on in
 * RtlUserThreadStart as if that had been called. */
    .globl "_LdrInitializeThunk@8"
    .def "_LdrInitializeThunk@8"
    .scl 2
    .type 32
    .endef
    .p2align 4
"_LdrInitializeThunk@8":
    calll "_LdrpInitialize@0"
    jmp "_RtlUserThreadStart@8"
