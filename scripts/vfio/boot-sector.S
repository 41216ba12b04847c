# What the inner machine boots from the disk it was given: it reads sector 8 through the passed
# controller (DMA through the IOMMU), says it, and writes it to sector 9 with its first byte
# changed. Then it ends QEMU through isa-debug-exit with status 33; any trouble makes it 35.
.code16
.globl _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %es
    mov %ax, %ss
    mov $0x7000, %sp
    sti
    mov %dl, drive
    mov $booted, %si
    call say
    mov $packet, %si
    mov drive, %dl
    mov $0x42, %ah          # extended read
    int $0x13
    jc trouble
    mov $0x8000, %si
    call say
    movb $'W', 0x8000
    movw $9, packet + 8
    mov $packet, %si
    mov drive, %dl
    mov $0x4300, %ax        # extended write
    int $0x13
    jc trouble
    mov $0x10, %al
    out %al, $0xf4
halt:
    hlt
    jmp halt
trouble:
    mov $0x11, %al
    out %al, $0xf4
    jmp halt
say:                        # to the first serial port
    lodsb
    test %al, %al
    jz done
    mov $0x3f8, %dx
    out %al, %dx
    jmp say
done:
    ret
drive: .byte 0
.balign 4
packet: .byte 16, 0
    .word 1                 # sectors
    .word 0x8000, 0         # to where
    .quad 8                 # from sector
booted: .asciz "booted from the given disk\r\n"
.org 510
.word 0xaa55
