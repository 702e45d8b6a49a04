# A bare 32-bit guest for the tests: paging by 4 MB pages, one loop that calls tick(a, b, c) as stdcall functions are.
# A flat multiboot image, as tests/qemu/guest.S.
#
# The first 16 MB are mapped at 0 and again at 0x80000000, where the code runs. At fixed places in physical memory:
#   0x200000  calls of tick;  0x200008  turns of the idle loop between two calls (written by the host)
#   0x200010  address of tick;  0x200014  of middle (which calls tick);  0x200018  of the instruction behind the call
#   0x200020  timer interrupts taken
#   0x300000  page directory;  0x400000  IDT

    .equ MAGIC, 0x1BADB002
    .equ FLAGS, 0x00010000
    .equ HIGH, 0x80000000

    .text
    .code32
    .globl _start
header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long header, header, 0, 0, _start

_start:
    cli
    cld
    mov $0x200000, %edi                 # counters
    xor %eax, %eax
    mov $1024, %ecx
    rep stosl
    mov $0x300000, %edi                 # the page directory
    mov $1024, %ecx
    rep stosl
    movl $0x00000083, 0x300000          # 4 MB each, at 0 and at 0x80000000; itself at 0xC0000000
    movl $0x00400083, 0x300004
    movl $0x00800083, 0x300008
    movl $0x00C00083, 0x30000C
    movl $0x00000083, 0x300800
    movl $0x00400083, 0x300804
    movl $0x00800083, 0x300808
    movl $0x00C00083, 0x30080C
    movl $0x00300003, 0x300C00
    mov %cr4, %eax
    or $0x10, %eax                      # PSE
    mov %eax, %cr4
    mov $0x300000, %eax
    mov %eax, %cr3
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $(high + HIGH)
high:
    mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0x30, %eax
    mov %eax, %fs
    mov $(0x500000 + HIGH), %esp
    xor %ebp, %ebp
    movl $2000, 0x200008
    mov $(tick + HIGH), %eax
    mov %eax, 0x200010
    mov $(middle + HIGH), %eax
    mov %eax, 0x200014
    mov $(behind + HIGH), %eax
    mov %eax, 0x200018
    mov $(timer + HIGH), %eax           # IDT[32]: the timer
    mov %eax, %edx
    and $0xffff, %eax
    or $0x00080000, %eax
    and $0xffff0000, %edx
    or $0x8e00, %edx
    mov %eax, 0x400000 + 8 * 32
    mov %edx, 0x400004 + 8 * 32
    lidt idt_pointer
    mov $0x11, %al                      # the old controllers: vectors from 32 on, the timer alone
    out %al, $0x20
    mov $32, %al
    out %al, $0x21
    mov $4, %al
    out %al, $0x21
    mov $1, %al
    out %al, $0x21
    mov $0xfe, %al
    out %al, $0x21
    mov $0xff, %al
    out %al, $0xa1
    sti
    mov $(loop + HIGH), %eax
    jmp *%eax
loop:
    mov $(middle + HIGH), %eax
    call *%eax
    mov 0x200008, %ecx
1:  dec %ecx
    jnz 1b
    jmp loop

    .balign 16
middle:
    push %ebp
    mov %esp, %ebp
    push $0x33333333
    push $0x22222222
    push $0x11111111
    mov $(tick + HIGH), %eax
    call *%eax
behind:
    pop %ebp
    ret

    .balign 16
tick:
    push %ebp
    mov %esp, %ebp
    incl 0x200000
    mov 8(%ebp), %eax
    pop %ebp
    ret $12

    .balign 16
timer:
    push %eax
    incl 0x200020
    mov $0x20, %al
    out %al, $0x20
    pop %eax
    iret

    .balign 8
gdt:
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0, 0, 0, 0x80cf92fff0000fff
gdt_pointer:
    .word 55
    .long gdt + HIGH
idt_pointer:
    .word 0x7ff
    .long 0x400000 + HIGH
