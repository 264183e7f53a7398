/* embed.S - the launcher's executable as bytes in ours. LAUNCHER_PATH comes from the build. */
    .section .rodata
    .globl dirigent_launcher_begin
    .globl dirigent_launcher_end
    .balign 16
dirigent_launcher_begin:
    .incbin LAUNCHER_PATH
dirigent_launcher_end:
    .byte 0
    .section .note.GNU-stack,"",@progbits
