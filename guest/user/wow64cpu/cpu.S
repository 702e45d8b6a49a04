/* wow64cpu.dll: from 64-bit code to 32-bit code of the same thread, and back for its system calls. Registers as in Windows 10's:
 * r12 the TEB, r13 the thread's WOW64_CPURESERVED + 0x80, r14 the stack of the side that does not run, r15 the table of turbo
 * thunks. 32-bit code cannot touch these. */
#include NT_LAYOUT_HEADER
#include "../wow64/wow64.h"

#define RESERVED(offset) (offset - 0x80)(%r13)
#define CPU(offset) RESERVED(4 + offset) /* of WOW64_CONTEXT */
#define EDI 0x9C
#define ESI 0xA0
#define EBX 0xA4
#define EDX 0xA8
#define ECX 0xAC
#define EAX 0xB0
#define EBP 0xB4
#define EIP 0xB8
#define EFLAGS 0xC0
#define ESP 0xC4

#define CS32 0x23
#define CS64 0x33
#define SS32 0x2B
#define FAR_POINTER 0x20 /* on RunSimulatedCode's stack, above the home space */
#define IRET_FRAME 0x28
#define TURBO_RETURN 31 /* the entry that KiFastSystemCall2 goes through */

.macro FUNCTION name
    .globl \name
    .p2align 4
    .def \name; .scl 2; .type 32; .endef
    .seh_proc \name
\name:
.endm

    .text
    FUNCTION BTCpuSimulate
    subq $0x28, %rsp
    .seh_stackalloc 0x28
    .seh_endprologue
1:  callq RunSimulatedCode
    jmp 1b
    .seh_endproc

    FUNCTION RunSimulatedCode
    pushq %r15
    .seh_pushreg %r15
    pushq %r14
    .seh_pushreg %r14
    pushq %r13
    .seh_pushreg %r13
    pushq %r12
    .seh_pushreg %r12
    pushq %rbx
    .seh_pushreg %rbx
    pushq %rsi
    .seh_pushreg %rsi
    pushq %rdi
    .seh_pushreg %rdi
    pushq %rbp
    .seh_pushreg %rbp
    subq $0x68, %rsp
    .seh_stackalloc 0x68
    .seh_endprologue
    movq %gs:OFF__TEB__NtTib_Self, %r12
    movq OFF__TEB__TlsSlots + 8 * WOW64_TLS_CPURESERVED(%r12), %r13
    addq $0x80, %r13
    leaq TurboThunkDispatch(%rip), %r15

    .globl CpupSimulateReload
CpupSimulateReload:
    movl CPU(EDI), %edi
    movl CPU(ESI), %esi
    movl CPU(EBX), %ebx
    movl CPU(EBP), %ebp
    movl CPU(EAX), %eax
    movq %rsp, %r14
    btrl $0, RESERVED(0)                /* WOW64_CPURESERVED_FLAG_RESET_STATE */
    jc 1f
    movl CPU(EIP), %ecx
    movl %ecx, FAR_POINTER(%rsp)
    movw $CS32, FAR_POINTER + 4(%rsp)
    movl CPU(ESP), %esp
    ljmpl *FAR_POINTER(%r14)
1:  movl CPU(EIP), %ecx
    movq %rcx, IRET_FRAME(%rsp)
    movq $CS32, IRET_FRAME + 8(%rsp)
    movl CPU(EFLAGS), %ecx
    movq %rcx, IRET_FRAME + 0x10(%rsp)
    movl CPU(ESP), %ecx
    movq %rcx, IRET_FRAME + 0x18(%rsp)
    movq $SS32, IRET_FRAME + 0x20(%rsp)
    movl CPU(ECX), %ecx
    movl CPU(EDX), %edx
    leaq IRET_FRAME(%rsp), %rsp
    iretq

/* A 32-bit stub has called KiFastSystemCall: eax = the service's number and, above it, its turbo thunk's; on the 32-bit stack the
 * return into the stub, the return into its caller, the arguments. */
    .globl CpupReturnFromSimulatedCode
CpupReturnFromSimulatedCode:
    xchgq %rsp, %r14
    movl (%r14), %r8d
    addq $4, %r14
    movl %r8d, CPU(EIP)
    movl %r14d, CPU(ESP)
    leaq 4(%r14), %r11
    movl %edi, CPU(EDI)
    movl %esi, CPU(ESI)
    movl %ebx, CPU(EBX)
    movl %ebp, CPU(EBP)
    movl %eax, %ecx
    shrl $16, %ecx
    jmpq *(%r15, %rcx, 8)

    .globl ServiceNoTurbo
ServiceNoTurbo:
    movzwl %ax, %ecx
    movq %r11, %rdx
    callq *__imp_Wow64SystemServiceEx(%rip)
    movl %eax, CPU(EAX)
    jmp CpupSimulateReload

/* A service without arguments needs none carried over. */
    .globl Thunk0Arg
Thunk0Arg:
    movzwl %ax, %eax
    callq CpupSyscallStub
    movl %eax, CPU(EAX)
    jmp CpupSimulateReload
    .seh_endproc

    FUNCTION CpupSyscallStub
    .seh_endprologue
    movq %rcx, %r10
    syscall
    retq
    .seh_endproc

/* What TEB32.WOW32Reserved points to: 32-bit code in a 64-bit image below 4 GB, then 64-bit code again. */
    .globl KiFastSystemCall, KiFastSystemCall2, KiFastSystemCallTarget
    .p2align 4
    .def KiFastSystemCall; .scl 2; .type 32; .endef
KiFastSystemCall:
    .byte 0xEA                          /* ljmp $CS64, $KiFastSystemCall2 */
KiFastSystemCallTarget:
    .long 0                             /* see BTCpuProcessInit */
    .word CS64
    .def KiFastSystemCall2; .scl 2; .type 32; .endef
KiFastSystemCall2:
    jmpq *TURBO_RETURN * 8(%r15)

    .section .rdata, "dr"
    .p2align 3
    .globl TurboThunkDispatch
TurboThunkDispatch:
    .quad ServiceNoTurbo
    .quad Thunk0Arg
    .rept TURBO_RETURN - 2
    .quad ServiceNoTurbo
    .endr
    .quad CpupReturnFromSimulatedCode
