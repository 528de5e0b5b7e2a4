/* The boot sector of a disk: loads the sectors behind it, enters long mode with AVX-512 enabled,
   and calls boot(). */
    .section .boot, "ax"
    .code16
    .globl _start
_start:
    ljmp $0, $1f
1:  xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    mov $image_chunks, %cx
2:  pusha
    mov $packet, %si
    mov $0x42, %ah          /* read, from the drive in %dl that the BIOS booted from */
    int $0x13
    popa
    jc stop
    addw $0x800, segment
    addw $64, sector
    loop 2b

    cli
    in $0x92, %al           /* the address line 20 */
    or $2, %al
    out %al, $0x92
    lgdt descriptors
    mov $0x40620, %eax      /* PAE, OSFXSR, OSXMMEXCPT, OSXSAVE */
    mov %eax, %cr4
    mov $tables, %eax
    mov %eax, %cr3
    mov $0xc0000080, %ecx   /* EFER: long mode */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov $0x80000003, %eax   /* paging, FPU, protection */
    mov %eax, %cr0
    ljmpl $8, $long
stop:
    hlt
    jmp stop

    .balign 4
packet:                     /* 64 sectors a time */
    .byte 16, 0
    .word 64, 0
segment:
    .word 0x7e0
sector:
    .quad 1
descriptors:
    .word 23
    .long table
    .balign 8
table:
    .quad 0, 0x00209a0000000000, 0x0000920000000000

    .code64
long:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_end, %esp
    xor %ecx, %ecx          /* XCR0: the registers of SSE, AVX and AVX-512 */
    xor %edx, %edx
    mov $0xe7, %eax
    xsetbv
    mov $bss_start, %edi
    mov $bss_size, %ecx
    xor %eax, %eax
    rep stosb
    call boot
    .org 510
    .word 0xaa55

    .data
    .balign 4096
tables:                     /* the first GB, as it is */
    .quad next + 3
    .fill 511, 8, 0
next:
    .quad 0x83
    .fill 511, 8, 0

    .section .note.GNU-stack, "", @progbits
