/* ntdll.dll's system-service stubs, in the shape that Windows 10's have, and where every thread starts.
 *
 * A stub loads its service's number from the list in kernel/services.h: the assembler numbers them in order. */
#include "../../kernel/services.h"

    .text
    .set service, 0

    .macro stub name
    .globl \name
    .p2align 4
    .def \name
    .scl 2
    .type 32
    .endef
    .seh_proc \name
    .seh_endprologue
\name:
    movq %rcx, %r10
    movl $service, %eax
    testb $1, 0x7ffe0308        /* KUSER_SHARED_DATA.SystemCall: 1 asks for int 2e */
    jne 1f
    syscall
    ret
1:  int $0x2e
    ret
    .seh_endproc
    .set service, service + 1
    .endm

#define SERVICE(name, arguments) stub name;
SYSTEM_SERVICES(SERVICE)

/* The kernel starts each user thread here: rcx = start routine, rdx = its argument, rsp as after a call, return address 0.
 * The first thread of a process initialises it; then the thread goes on in RtlUserThreadStart, as if that had been called. */
    .globl LdrInitializeThunk
    .def LdrInitializeThunk
    .scl 2
    .type 32
    .endef
    .p2align 4
    .seh_proc LdrInitializeThunk
LdrInitializeThunk:
    subq $0x38, %rsp
    .seh_stackalloc 0x38
    .seh_endprologue
    movq %rcx, 0x20(%rsp)
    movq %rdx, 0x28(%rsp)
    call LdrpInitialize
    movq 0x20(%rsp), %rcx
    movq 0x28(%rsp), %rdx
    addq $0x38, %rsp
    jmp RtlUserThreadStart
    .seh_endproc
