/* The multiboot header, 32-bit entry and the switch to long mode. QEMU's `-kernel` starts this. */
    .section .multiboot, "a"
    .align 4
    .long 0x1BADB002                    /* magic */
    .long 0x00000003                    /* modules page-aligned, memory map */
    .long -(0x1BADB002 + 0x00000003)

    .text
    .code32
    .globl start
start:
    movl $stack_top, %esp
    pushl %ebx                          /* the multiboot information */
    pushl %eax
    call load
    /* load() returned; page tables and the kernel's entry are in these globals */
    movl cr3_value, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax                     /* PAE */
    movl %eax, %cr4
    movl $0xC0000080, %ecx              /* EFER */
    rdmsr
    orl $0x900, %eax                    /* LME, NXE */
    wrmsr
    movl %cr0, %eax
    andl $0x9FFFFFFF, %eax              /* caches on */
    orl $0x80010001, %eax               /* PG, WP, PE */
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x08, $long_mode

    .code64
long_mode:
    movl $0x10, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movl block_address, %ecx
    movq kernel_entry, %rax
    movl $stack_top - 0x28, %esp        /* the kernel's entry moves to its own stack at once */
    xorl %ebp, %ebp
    jmpq *%rax

    .data
    .align 16
gdt:
    .quad 0
    .quad 0x00AF9A000000FFFF            /* 64-bit code */
    .quad 0x00CF92000000FFFF            /* data */
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .long gdt

    .bss
    .align 16
    .skip 16384
stack_top:
