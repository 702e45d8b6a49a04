/* Ways into the kernel and out of it: exceptions, interrupts, system calls, thread start, context switch.
 *
 * Every entry builds a KTRAP_FRAME as NT does (error code or 8 bytes, rbp, 0x158 bytes, rbp = frame + 0x80), so that the
 * unwind data of the real kernel's shape describes it: machine frame, allocations, rbp as frame register. The frame's
 * first 0x28 bytes are the called function's home space.
 *
 * KVASCODE holds what runs on user page tables with KVA shadow. Its stubs bring the machine frame from the transition stack
 * to the kernel stack, undo their swapgs, and go on at the plain entry. */
#include "nt.h"
#include "ki.h"

#define FRAME(field) OFF__KTRAP_FRAME__##field
#define GS_THREAD OFF__KPCR__Prcb_CurrentThread
#define GS_RSP_BASE OFF__KPCR__Prcb_RspBase
#define GS_KERNEL_CR3 OFF__KPCR__Prcb_KernelDirectoryTableBase
#define GS_SHADOW_RSP_BASE OFF__KPCR__Prcb_RspBaseShadow
#define GS_SHADOW_USER_RSP OFF__KPCR__Prcb_UserRspShadow

/* ---- Frames */

.macro SAVE_VOLATILES
    movq %rax, FRAME(Rax)(%rsp)
    movq %rcx, FRAME(Rcx)(%rsp)
    movq %rdx, FRAME(Rdx)(%rsp)
    movq %r8, FRAME(R8)(%rsp)
    movq %r9, FRAME(R9)(%rsp)
    movq %r10, FRAME(R10)(%rsp)
    movq %r11, FRAME(R11)(%rsp)
    cld
    testb $1, FRAME(SegCs)(%rsp)
    jz 1f
    swapgs
1:
.endm

.macro TRAP_BEGIN name, code
    .text
    .globl \name
    .p2align 6
    .def \name; .scl 2; .type 32; .endef
    .seh_proc \name
\name:
    .if \code
    .seh_pushframe @code
    .else
    .seh_pushframe
    subq $8, %rsp
    .seh_stackalloc 8
    .endif
    pushq %rbp
    .seh_pushreg %rbp
    subq $FRAME(Rbp), %rsp
    .seh_stackalloc FRAME(Rbp)
    leaq 0x80(%rsp), %rbp
    .seh_setframe %rbp, 0x80
    .seh_endprologue
    SAVE_VOLATILES
.endm

.macro TRAP_SHADOW name, code
    .section KVASCODE, "xr"
    .globl \name\()Shadow
    .p2align 6
    .def \name\()Shadow; .scl 2; .type 32; .endef
    .seh_proc \name\()Shadow
\name\()Shadow:
    .if \code
    .seh_pushframe @code
    testb $1, 16(%rsp)
    .else
    .seh_pushframe
    testb $1, 8(%rsp)
    .endif
    jz \name
    swapgs
    pushq %rsi
    .seh_pushreg %rsi
    movq %gs:GS_KERNEL_CR3, %rsi
    movq %rsi, %cr3
    movq %rsp, %rsi
    .seh_setframe %rsi, 0
    .seh_endprologue
    movq %gs:GS_SHADOW_RSP_BASE, %rsp
    .if \code
    pushq 48(%rsi)
    .endif
    pushq 40(%rsi)
    pushq 32(%rsi)
    pushq 24(%rsi)
    pushq 16(%rsi)
    pushq 8(%rsi)
    movq (%rsi), %rsi
    swapgs
    jmp \name
    .seh_endproc
    .text
.endm

.macro EXCEPTION name, vector, code
    TRAP_BEGIN \name, \code
    movq %rsp, %rcx
    movl $\vector, %edx
    callq KiDispatchException
    jmp KiExceptionExit
    .seh_endproc
    TRAP_SHADOW \name, \code
.endm

.macro INTERRUPT name, vector
    TRAP_BEGIN \name, 0
    movq %rsp, %rcx
    movl $\vector, %edx
    callq KiHandleInterrupt
    jmp KiExceptionExit
    .seh_endproc
    TRAP_SHADOW \name, 0
.endm

    EXCEPTION KiDivideErrorFault, 0, 0
    EXCEPTION KiDebugTrapOrFault, 1, 0
    EXCEPTION KiNmiInterrupt, 2, 0
    EXCEPTION KiBreakpointTrap, 3, 0
    EXCEPTION KiOverflowTrap, 4, 0
    EXCEPTION KiBoundFault, 5, 0
    EXCEPTION KiInvalidOpcodeFault, 6, 0
    EXCEPTION KiNpxNotAvailableFault, 7, 0
    EXCEPTION KiDoubleFaultAbort, 8, 1
    EXCEPTION KiInvalidTssFault, 10, 1
    EXCEPTION KiSegmentNotPresentFault, 11, 1
    EXCEPTION KiStackFault, 12, 1
    EXCEPTION KiGeneralProtectionFault, 13, 1
    EXCEPTION KiFloatingErrorFault, 16, 0
    EXCEPTION KiAlignmentFault, 17, 1
    EXCEPTION KiXmmException, 19, 0

    INTERRUPT KiDpcInterrupt, 0x2F
    INTERRUPT KiDeviceInterrupt0, 0x50
    INTERRUPT KiDeviceInterrupt1, 0x51
    INTERRUPT KiDeviceInterrupt2, 0x52
    INTERRUPT KiDeviceInterrupt3, 0x53
    INTERRUPT HalpTimerClockInterrupt, 0xD1
    INTERRUPT KiIpiInterrupt, 0xE1
    INTERRUPT KiSpuriousInterrupt, 0xDF

    TRAP_BEGIN KiPageFault, 1
    movq %cr2, %rax
    movq %rax, FRAME(FaultAddress)(%rsp)
    movq %rsp, %rcx
    callq KiHandlePageFault
    jmp KiExceptionExit
    .seh_endproc
    TRAP_SHADOW KiPageFault, 1

/* A frame at rsp (home space first) -> back to where it came from. */
    .globl KiExceptionExit
    .p2align 6
    .def KiExceptionExit; .scl 2; .type 32; .endef
    .seh_proc KiExceptionExit
KiExceptionExit:
    .seh_pushframe
    .seh_stackalloc 8
    .seh_pushreg %rbp
    .seh_stackalloc FRAME(Rbp)
    .seh_endprologue
    cli
    testb $1, FRAME(SegCs)(%rsp)
    jz 1f
    cmpb $0, KiKvaShadow(%rip)
    jne 2f
    swapgs
1:
    movq FRAME(Rax)(%rsp), %rax
    movq FRAME(Rcx)(%rsp), %rcx
    movq FRAME(Rdx)(%rsp), %rdx
    movq FRAME(R8)(%rsp), %r8
    movq FRAME(R9)(%rsp), %r9
    movq FRAME(R10)(%rsp), %r10
    movq FRAME(R11)(%rsp), %r11
    movq FRAME(Rbp)(%rsp), %rbp
    addq $FRAME(Rip), %rsp
    iretq
2:  /* to user mode with KVA shadow: the machine frame goes to the transition stack, which both page tables map */
    movq %gs:OFF__KPCR__TssBase, %rcx
    movq OFF__KTSS64__Rsp0(%rcx), %rcx
    movq FRAME(SegSs)(%rsp), %rax
    movq %rax, -8(%rcx)
    movq FRAME(Rsp)(%rsp), %rax
    movq %rax, -16(%rcx)
    movl FRAME(EFlags)(%rsp), %eax
    movq %rax, -24(%rcx)
    movzwl FRAME(SegCs)(%rsp), %eax
    movq %rax, -32(%rcx)
    movq FRAME(Rip)(%rsp), %rax
    movq %rax, -40(%rcx)
    movq FRAME(Rax)(%rsp), %rax
    movq %rax, -48(%rcx)
    movq FRAME(Rcx)(%rsp), %rax
    movq %rax, -56(%rcx)
    movq FRAME(Rdx)(%rsp), %rdx
    movq FRAME(R8)(%rsp), %r8
    movq FRAME(R9)(%rsp), %r9
    movq FRAME(R10)(%rsp), %r10
    movq FRAME(R11)(%rsp), %r11
    movq FRAME(Rbp)(%rsp), %rbp
    movq %gs:GS_THREAD, %rax
    movq OFF__KTHREAD__ApcState_Process(%rax), %rax
    movq OFF__KPROCESS__UserDirectoryTableBase(%rax), %rax
    jmp KiKernelIretExit
    .seh_endproc

    .section KVASCODE, "xr"
    .globl KiKernelIretExit
KiKernelIretExit:
    leaq -56(%rcx), %rsp
    movq %rax, %cr3
    popq %rcx
    popq %rax
    swapgs
    iretq
    .text

/* ---- System calls */

    .section KVASCODE, "xr"
    .globl KiSystemCall64Shadow
    .p2align 6
KiSystemCall64Shadow:
    swapgs
    movq %rsp, %gs:GS_SHADOW_USER_RSP
    movq %gs:GS_KERNEL_CR3, %rsp
    movq %rsp, %cr3
    movq %gs:GS_SHADOW_USER_RSP, %rsp
    movq %rsp, %gs:OFF__KPCR__UserRsp
    jmp KiSystemServiceShadowEntry
    .text

    .globl KiSystemCall64
    .p2align 6
    .def KiSystemCall64; .scl 2; .type 32; .endef
    .seh_proc KiSystemCall64
KiSystemCall64:
    .seh_pushframe
    swapgs
    movq %rsp, %gs:OFF__KPCR__UserRsp
KiSystemServiceShadowEntry:
    movq %gs:GS_RSP_BASE, %rsp
    pushq $0x2B
    pushq %gs:OFF__KPCR__UserRsp
    pushq %r11
    pushq $0x33
    pushq %rcx
    movq %r10, %rcx
    subq $8, %rsp
    .seh_stackalloc 8
    pushq %rbp
    .seh_pushreg %rbp
    subq $FRAME(Rbp), %rsp
    .seh_stackalloc FRAME(Rbp)
    leaq 0x80(%rsp), %rbp
    .seh_setframe %rbp, 0x80
    .seh_endprologue
    .globl KiSystemServiceUser
KiSystemServiceUser:
    movb $2, FRAME(ExceptionActive)(%rsp)
    movq %rbx, FRAME(Rbx)(%rsp)
    movq %rdi, FRAME(Rdi)(%rsp)
    movq %rsi, FRAME(Rsi)(%rsp)
    movq %gs:GS_THREAD, %rbx
    movq %rcx, OFF__KTHREAD__FirstArgument(%rbx)
    movl %eax, OFF__KTHREAD__SystemCallNumber(%rbx)
    movq %rax, FRAME(Rax)(%rsp)
    movq %rcx, FRAME(Rcx)(%rsp)
    movq %rdx, FRAME(Rdx)(%rsp)
    movq %r8, FRAME(R8)(%rsp)
    movq %r9, FRAME(R9)(%rsp)
    movq %rsp, OFF__KTHREAD__TrapFrame(%rbx)
    cld
    sti
    .globl KiSystemServiceStart
KiSystemServiceStart:
    movl %eax, %edi
    andl $0xFFF, %edi
    .globl KiSystemServiceRepeat
KiSystemServiceRepeat:
    leaq KeServiceDescriptorTable(%rip), %r10
    cmpl 16(%r10), %edi
    jae KiBadSystemService
    movq (%r10), %r10
    movslq (%r10, %rdi, 4), %rsi
    movl %esi, %edi
    andl $15, %edi                      /* arguments on the stack */
    sarq $4, %rsi
    addq %r10, %rsi                     /* the service */
    subq $0x80, %rsp
    testl %edi, %edi
    jz KiSystemServiceCopyStart
    leaq 0x20(%rsp), %rcx
    movq 0x100(%rbp), %rdx              /* frame's Rsp: 0x180 - 0x80 */
    addq $0x28, %rdx
    leaq (, %rdi, 8), %r8
    callq MmCopyFromUser
    testl %eax, %eax
    js KiSystemServiceExit
    .globl KiSystemServiceCopyStart
KiSystemServiceCopyStart:
    movq FRAME(Rcx)-0x80(%rbp), %rcx
    movq FRAME(Rdx)-0x80(%rbp), %rdx
    movq FRAME(R8)-0x80(%rbp), %r8
    movq FRAME(R9)-0x80(%rbp), %r9
    callq *%rsi
    .globl KiSystemServiceCopyEnd
KiSystemServiceCopyEnd:
    incl %gs:OFF__KPCR__Prcb + OFF__KPRCB__KeSystemCalls
    .globl KiSystemServiceExit
KiSystemServiceExit:
    leaq -0x80(%rbp), %rsp
    cli
    testb $1, KiTerminationPending(%rip)
    jnz KiSystemServiceCheck
KiSystemServiceLeave:
    movq FRAME(Rbx)(%rsp), %rbx
    movq FRAME(Rdi)(%rsp), %rdi
    movq FRAME(Rsi)(%rsp), %rsi
    movq FRAME(Rsp)(%rsp), %r8
    movq FRAME(Rbp)(%rsp), %r9
    movq FRAME(Rip)(%rsp), %rcx
    movl FRAME(EFlags)(%rsp), %r11d
    xorl %r10d, %r10d
    cmpb $0, KiKvaShadow(%rip)
    jne 1f
    xorl %edx, %edx
    movq %r9, %rbp
    movq %r8, %rsp
    swapgs
    sysretq
1:
    movq %gs:GS_THREAD, %rdx
    movq OFF__KTHREAD__ApcState_Process(%rdx), %rdx
    movq OFF__KPROCESS__UserDirectoryTableBase(%rdx), %rdx
    jmp KiKernelSysretExit
KiBadSystemService:
    movl $0xC000001C, %eax
    jmp KiSystemServiceExit
KiSystemServiceCheck:
    movq %rax, FRAME(Rax)(%rsp)
    sti
    callq KiCheckTermination
    cli
    movq FRAME(Rax)(%rsp), %rax
    jmp KiSystemServiceLeave
    .seh_endproc

    .section KVASCODE, "xr"
    .globl KiKernelSysretExit
KiKernelSysretExit:
    movq %rdx, %cr3
    xorl %edx, %edx
    movq %r9, %rbp
    movq %r8, %rsp
    swapgs
    sysretq
    .text

/* ---- Threads. void KiSwapContext(KTHREAD *old, KTHREAD *new): saves a KEXCEPTION_FRAME, then a KSWITCH_FRAME. */

#define EXCEPTION(field) OFF__KEXCEPTION_FRAME__##field
    .globl KiSwapContext
    .p2align 6
    .def KiSwapContext; .scl 2; .type 32; .endef
    .seh_proc KiSwapContext
KiSwapContext:
    subq $EXCEPTION(Return), %rsp
    .seh_stackalloc EXCEPTION(Return)
    movq %rbp, EXCEPTION(Rbp)(%rsp)
    .seh_savereg %rbp, EXCEPTION(Rbp)
    movq %rbx, EXCEPTION(Rbx)(%rsp)
    .seh_savereg %rbx, EXCEPTION(Rbx)
    movq %rdi, EXCEPTION(Rdi)(%rsp)
    .seh_savereg %rdi, EXCEPTION(Rdi)
    movq %rsi, EXCEPTION(Rsi)(%rsp)
    .seh_savereg %rsi, EXCEPTION(Rsi)
    movq %r12, EXCEPTION(R12)(%rsp)
    .seh_savereg %r12, EXCEPTION(R12)
    movq %r13, EXCEPTION(R13)(%rsp)
    .seh_savereg %r13, EXCEPTION(R13)
    movq %r14, EXCEPTION(R14)(%rsp)
    .seh_savereg %r14, EXCEPTION(R14)
    movq %r15, EXCEPTION(R15)(%rsp)
    .seh_savereg %r15, EXCEPTION(R15)
    .seh_endprologue
    callq SwapContext
    movq EXCEPTION(Rbp)(%rsp), %rbp
    movq EXCEPTION(Rbx)(%rsp), %rbx
    movq EXCEPTION(Rdi)(%rsp), %rdi
    movq EXCEPTION(Rsi)(%rsp), %rsi
    movq EXCEPTION(R12)(%rsp), %r12
    movq EXCEPTION(R13)(%rsp), %r13
    movq EXCEPTION(R14)(%rsp), %r14
    movq EXCEPTION(R15)(%rsp), %r15
    addq $EXCEPTION(Return), %rsp
    retq
    .seh_endproc

    .globl SwapContext
    .p2align 6
    .def SwapContext; .scl 2; .type 32; .endef
    .seh_proc SwapContext
SwapContext:
    subq $0x38, %rsp
    .seh_stackalloc 0x38
    movq %rbp, 0x30(%rsp)
    .seh_savereg %rbp, 0x30
    .seh_endprologue
    movq %rsp, OFF__KTHREAD__KernelStack(%rcx)
    movq OFF__KTHREAD__KernelStack(%rdx), %rsp
    movq 0x30(%rsp), %rbp
    addq $0x38, %rsp
    retq
    .seh_endproc

/* A thread's first instructions: above rsp lie home space, routine (0x20), context (0x28), a null return address (0x38)
 * and, for a user thread, its KTRAP_FRAME. A user thread's routine returns and the frame is left for user mode. */
    .globl KiStartSystemThread
    .p2align 6
    .def KiStartSystemThread; .scl 2; .type 32; .endef
    .seh_proc KiStartSystemThread
KiStartSystemThread:
    .seh_stackalloc 0x38
    .seh_endprologue
    callq KiFinishSwap
    movq 0x20(%rsp), %rcx
    movq 0x28(%rsp), %rdx
    callq PspThreadStartup
    addq $0x40, %rsp
    jmp KiExceptionExit
    .seh_endproc

/* ---- Processor start. KiSystemStartup(LOADER_BLOCK *): from the loader to a stack of the kernel's own. */
    .globl KiSystemStartup
    .def KiSystemStartup; .scl 2; .type 32; .endef
    .seh_proc KiSystemStartup
KiSystemStartup:
    .seh_endprologue
    leaq KiInitialStack + KI_INITIAL_STACK_SIZE - 0x40(%rip), %rsp
    movq $0, 0x38(%rsp)
    callq KiInitializeBootProcessor
    hlt
    .seh_endproc

/* The end of the low stub's way (HalpLMStub on NT): rbx = the PROCESSOR_START_BLOCK at its identity address. */
    .globl HalpLMStub
    .def HalpLMStub; .scl 2; .type 32; .endef
    .seh_proc HalpLMStub
    .p2align 4                          /* tools tell a low stub by this address, aligned as any function's */
HalpLMStub:
    .seh_endprologue
#define STATE(field) 0x90 + OFF__KPROCESSOR_STATE__##field
    movq 0x78(%rbx), %rdi               /* SelfMap */
    movq STATE(SpecialRegisters) + OFF__KSPECIAL_REGISTERS__Cr4(%rbx), %rax
    movq %rax, %cr4
    movq STATE(SpecialRegisters) + OFF__KSPECIAL_REGISTERS__Cr3(%rbx), %rax
    movq %rax, %cr3
    movq STATE(SpecialRegisters) + OFF__KSPECIAL_REGISTERS__Cr0(%rdi), %rax
    movq %rax, %cr0
    lgdt STATE(SpecialRegisters) + OFF__KSPECIAL_REGISTERS__Gdtr + OFF__KDESCRIPTOR__Limit(%rdi)
    lidt STATE(SpecialRegisters) + OFF__KSPECIAL_REGISTERS__Idtr + OFF__KDESCRIPTOR__Limit(%rdi)
    movl $0x2B, %eax
    movl %eax, %ds
    movl %eax, %es
    movl $0x18, %eax
    movl %eax, %ss
    movq STATE(ContextFrame) + OFF__CONTEXT__Rsp(%rdi), %rsp
    movq STATE(ContextFrame) + OFF__CONTEXT__Rcx(%rdi), %rcx
    movq STATE(ContextFrame) + OFF__CONTEXT__Rip(%rdi), %rax
    pushq $0x10
    pushq %rax
    lretq
    .seh_endproc

/* The low stub's code, copied behind the PROCESSOR_START_BLOCK; position-independent. */
    .section .rdata, "dr"
    .globl HalpLowStub, HalpLowStubProtected, HalpLowStubLong, HalpLowStubEnd
    .p2align 4
    .code16
HalpLowStub:
    cli
    xorl %ebx, %ebx
    movw %cs, %bx
    movw %bx, %ds
    shll $4, %ebx
    lgdtl 0x08
    movl %cr0, %eax
    orl $1, %eax
    movl %eax, %cr0
    ljmpl *0x60
    .code32
HalpLowStubProtected:
    movl $0x20, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %cr4, %eax
    orl $0x20, %eax
    movl %eax, %cr4
    movl 0x58(%ebx), %eax               /* TiledMemoryMap */
    movl %eax, %cr3
    movl $0xC0000080, %ecx
    movl 0x88(%ebx), %eax               /* MsrEFER */
    xorl %edx, %edx
    wrmsr
    movl %cr0, %eax
    andl $0x9FFFFFFF, %eax
    orl $0x80010001, %eax
    movl %eax, %cr0
    ljmpl *0x68(%ebx)
    .code64
HalpLowStubLong:
    movq 0x70(%rbx), %rax               /* LmTarget */
    jmpq *%rax
HalpLowStubEnd:
    .text
