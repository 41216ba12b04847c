# What a machine of the runner's boots from its own disk: it says at the first serial port what
# displays and sound devices it finds on its PCI buses, a line "VVVV:DDDD class CC" each, then
# "that is all", and stays.
.code16
.globl _start
_start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7000, %sp
    mov $0x80000000, %ebp   # bus, slot and function, as the configuration port takes them
next:
    xor %bl, %bl
    call read               # vendor and device
    cmp $0xffff, %ax
    je skip
    mov %eax, %esi
    mov $8, %bl
    call read               # class
    shr $24, %eax
    cmp $3, %al
    je show
    cmp $4, %al
    jne skip
show:
    mov %al, %cl
    mov %si, %ax
    call word
    mov $':', %al
    call put
    mov %esi, %eax
    shr $16, %eax
    call word
    mov $class, %di
    call say
    mov %cl, %al
    call byte
    mov $line, %di
    call say
skip:
    add $0x100, %ebp
    test $0x00100000, %ebp  # sixteen buses are enough
    jz next
    mov $all, %di
    call say
halt:
    hlt
    jmp halt
read:                       # the register %bl of the function %ebp to %eax
    mov %ebp, %eax
    mov %bl, %al
    mov $0xcf8, %dx
    out %eax, %dx
    mov $0xcfc, %dx
    in %dx, %eax
    ret
word:                       # %ax in hexadecimal digits
    push %ax
    mov %ah, %al
    call byte
    pop %ax
byte:
    push %ax
    shr $4, %al
    call digit
    pop %ax
    and $15, %al
digit:
    add $'0', %al
    cmp $'9', %al
    jbe put
    add $('a' - '9' - 1), %al
put:
    mov $0x3f8, %dx
    out %al, %dx
    ret
say:
    mov (%di), %al
    inc %di
    test %al, %al
    jz done
    call put
    jmp say
done:
    ret
class: .asciz " class "
all: .ascii "that is all"
line: .asciz "\r\n"
.org 510
.word 0xaa55
