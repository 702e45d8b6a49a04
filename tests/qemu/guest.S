# A bare 64-bit guest for the tests: every vCPU loops over tick() and counts its own calls; a timer interrupts it.
# A flat multiboot image (address fields in the header), so that `qemu -kernel` loads it as it is at 1 MB.
#
# What the host finds at fixed places in physical memory:
#   0x200000 + 64 * n   calls of tick by vCPU n (APIC id n), counted by tick's first instruction
#   0x201000 + 64 * n   timer interrupts taken by vCPU n
#   0x202000            turns of the idle loop between two calls (written by the host; 64 bits)
#   0x202008            vCPUs that came up
#   0x202010            address of tick;  0x202018  of tock;  0x202020  of repeat;  0x202028  of faulty;  0x202030 shutdown
#   0x203000 + 64 * n   calls of tock;    0x204000 + 64 * n  calls of repeat;   0x205000 + 64 * n  calls of faulty
#   0x206000 + 64 * n   page faults that faulty's first instruction caused

    .equ MAGIC, 0x1BADB002
    .equ FLAGS, 0x00010000
    .equ APIC, 0xFEE00000

    .text
    .globl _start
header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long header, header, 0, 0, _start

    .code32
_start:
    cli
    cld
    mov $0x500000, %esp
    mov $0xff, %al                      # the old interrupt controllers stay silent
    out %al, $0x21
    out %al, $0xa1
    mov $0x300000, %edi                 # page tables: PML4, PDPT, four PDs of 2 MB pages: the first 4 GB, identical
    xor %eax, %eax
    mov $(7 * 1024), %ecx
    rep stosl
    movl $0x301003, 0x300000
    movl $0x302003, 0x301000
    movl $0x303003, 0x301008
    movl $0x304003, 0x301010
    movl $0x305003, 0x301018
    xor %ecx, %ecx
1:  mov %ecx, %eax
    shl $21, %eax
    or $0x83, %eax
    mov %eax, 0x302000(,%ecx,8)
    inc %ecx
    cmp $2048, %ecx
    jne 1b
    movl $0x306003, 0x302000 + 8 * 8    # 16 to 18 MB by 4 KB pages, of which faulty's pages are not present at first
    mov $0x1000003, %eax
    xor %ecx, %ecx
2:  mov %eax, 0x306000(,%ecx,8)
    movl $0, 0x306004(,%ecx,8)
    add $0x1000, %eax
    inc %ecx
    cmp $512, %ecx
    jne 2b
    mov $0x200000, %edi                 # counters
    xor %eax, %eax
    mov $(7 * 1024), %ecx
    rep stosl
    movl $2000, 0x202000
    movl $tick, 0x202010
    movl $tock, 0x202018
    movl $repeat, 0x202020
    movl $faulty, 0x202028
    movl $shutdown, 0x202030
    mov $trampoline, %esi               # the other vCPUs start in real mode below 1 MB
    mov $0x8000, %edi
    mov $(trampoline_end - trampoline), %ecx
    rep movsb
    mov $(0x400000 + 14 * 16), %edi     # IDT: the page fault, the timer
    mov $fault, %eax
    call set_gate
    mov $(0x400000 + 32 * 16), %edi
    mov $timer, %eax
    call set_gate
    movl $1, %ebx                       # the boot processor
    jmp enter

set_gate:
    mov %eax, %edx
    and $0xffff, %eax
    or $0x00080000, %eax
    and $0xffff0000, %edx
    or $0x8e00, %edx
    mov %eax, (%edi)
    mov %edx, 4(%edi)
    movl $0, 8(%edi)
    movl $0, 12(%edi)
    ret

enter:
    mov $0x300000, %eax
    mov %eax, %cr3
    mov %cr4, %eax
    or $0x20, %eax
    mov %eax, %cr4
    mov $0xC0000080, %ecx
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $long

    .code64
long:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    lidt idt_pointer
    mov $APIC, %r15d
    mov 0x20(%r15), %r14d               # APIC id
    shr $24, %r14d
    mov %r14d, %eax
    shl $12, %eax
    lea 0x501000(%rax), %rsp
    shl $6, %r14
    lock incq 0x202008
    movl $0x1ff, 0xf0(%r15)             # APIC on; a periodic timer on vector 32
    movl $0x3, 0x3e0(%r15)
    movl $0x20020, 0x320(%r15)
    movl $2000000, 0x380(%r15)
    test %ebx, %ebx
    jz loop
    movl $0x000c4500, 0x300(%r15)       # INIT, then STARTUP at 0x8000, to all others
    mov $1000, %ecx
1:  dec %ecx
    jnz 1b
    movl $0x000c4608, 0x300(%r15)
loop:
    sti
    lea 0x200000(%r14), %rdi
    call tick
    lea 0x203000(%r14), %rdi
    call tock
    mov 0x202000, %rcx
    jrcxz loop
1:  dec %rcx
    jnz 1b
    incl %r13d
    test $63, %r13d
    jnz loop
    call slow
    jmp loop

slow:
    lea 0x204000(%r14), %rdi
    lock incq (%rdi)
    lea 0x1100000(%r14), %rdi
    mov $5, %ecx
    xor %eax, %eax
    call repeat
    mov %r14d, %eax                     # this vCPU's page at 0x1000000 is taken away, so that faulty's first
    shl $6, %eax                        # instruction faults, as a function does that grows the stack
    lea 0x1000000(%rax), %rdi
    shl $3, %r14
    mov %r14, %rdx
    shr $6, %rdx                        # 8 * id
    shr $3, %r14
    andq $~1, 0x306000(%rdx)
    invlpg (%rdi)
    call faulty
    lea 0x205000(%r14), %rdi
    lock incq (%rdi)
    ret

    .balign 16
tick:
    lock incq (%rdi)
    ret

    .balign 16
tock:
    incq (%rdi)
    nop
    ret

    .balign 16
repeat:
    rep stosb
    ret

    .balign 16
faulty:
    mov %rsp, (%rdi)
    ret

    .balign 16
shutdown:                               # the host sets rip to here: ACPI power off by the debug exit of PIIX4 is long; triple
    lidt null_pointer                   # fault instead (QEMU with -no-reboot ends)
    ud2

    .balign 16
timer:
    push %rax
    lea 0x201000(%r14), %rax
    cmp $0x4000, %r14
    ja 1f
    lock incq (%rax)
1:  mov $APIC, %eax
    movl $0, 0xb0(%rax)
    pop %rax
    iretq

    .balign 16
fault:
    push %rax
    push %rdx
    mov %cr2, %rax
    sub $0x1000000, %rax
    shr $12, %rax
    orq $1, 0x306000(,%rax,8)
    lea 0x206000(%r14), %rdx
    lock incq (%rdx)
    pop %rdx
    pop %rax
    add $8, %rsp
    iretq

    .code16
trampoline:
    cli
    xor %ax, %ax
    mov %ax, %ds
    lgdtl (gdt32_pointer - trampoline + 0x8000)
    mov %cr0, %eax
    or $1, %al
    mov %eax, %cr0
    ljmpl $0x18, $(trampoline32 - trampoline + 0x8000)
    .code32
trampoline32:
    mov $0x10, %ax
    mov %ax, %ds
    xor %ebx, %ebx
    mov $enter, %eax
    jmp *%eax
    .balign 8
gdt32:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff, 0x00cf9a000000ffff
gdt32_pointer:
    .word 31
    .long gdt32 - trampoline + 0x8000
trampoline_end:

    .balign 8
gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff, 0x00cf9a000000ffff
gdt_pointer:
    .word 31
    .quad gdt
idt_pointer:
    .word 0x20f
    .quad 0x400000
null_pointer:
    .word 0
    .quad 0
