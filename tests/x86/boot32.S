# Takes a vCPU from multiboot's protected mode into a built 32-bit Windows: paging by its page tables, its GDT and IDT, FS
# at its KPCR, and on to its code. The numbers are at fixed places behind the header, for who builds the image to fill in.

    .equ MAGIC, 0x1BADB002
    .equ FLAGS, 0x00010000

    .text
    .code32
    .globl _start
header:
    .long MAGIC, FLAGS, -(MAGIC + FLAGS)
    .long header, header, 0, 0, _start
cr3:
    .long 0                             # at 0x20
cr4:
    .long 0
stack:
    .long 0
entry:
    .long 0
    .balign 8
gdt:                                    # at 0x30; the last one is FS, its base filled in
    .quad 0, 0x00cf9a000000ffff, 0x00cf92000000ffff, 0x00cf92000000ffff
gdt_pointer:
    .word 31
    .long gdt

_start:
    cli
    mov $stack, %edi
    mov cr3, %eax
    mov %eax, %cr3
    mov cr4, %eax
    mov %eax, %cr4
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $1f
1:  mov $0x10, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $0x18, %eax
    mov %eax, %fs
    mov stack, %esp
    xor %ebp, %ebp
    jmp *entry
