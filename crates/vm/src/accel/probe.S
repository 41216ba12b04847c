# The smallest guest that proves something: a boot sector that switches from real mode to long
# mode with paging, as every 64-bit kernel does, runs a while there, and says so by QEMU's
# isa-debug-exit device. as --32 probe.S -o p.o && objcopy -O binary -j .text p.o probe.bin
        .code16
        .globl start
start:  cli
        xorw    %ax, %ax
        movw    %ax, %ds
        movw    %ax, %es
        movw    %ax, %ss
        movw    $0x7c00, %sp
        # One page of 2 MiB, mapped to itself: tables at 0x1000, 0x2000, 0x3000.
        cld
        movw    $0x1000, %di
        movw    $0x1800, %cx
        rep stosw
        movl    $0x2003, 0x1000
        movl    $0x3003, 0x2000
        movl    $0x83, 0x3000
        movl    %cr4, %eax
        orl     $0x20, %eax
        movl    %eax, %cr4
        movl    $0x1000, %eax
        movl    %eax, %cr3
        movl    $0xc0000080, %ecx
        rdmsr
        orl     $0x100, %eax
        wrmsr
        lgdt    0x7c00 + gdt_pointer - start
        movl    %cr0, %eax
        orl     $0x80000001, %eax
        movl    %eax, %cr0
        ljmp    $8, $(0x7c00 + long_mode - start)
        .code64
long_mode:
        movl    $100000, %ecx
again:  pushq   %rcx
        popq    %rcx
        loop    again
        xorl    %eax, %eax
        cpuid
        movb    $0x10, %al
        outb    %al, $0xf4
stay:   hlt
        jmp     stay
        .balign 8
gdt:    .quad   0
        .quad   0x00209a0000000000
gdt_pointer:
        .word   15
        .long   0x7c00 + gdt - start
        .org    510
        .word   0xaa55
