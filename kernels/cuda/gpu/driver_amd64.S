//go:build gpu

#include "functions.h"

#define X(name) .hidden name; .globl name; .type name, @function; name: jmp *ssr_to_##name(%rip); .size name, .-name;

	.text
DRIVER_FUNCTIONS
NVRTC_FUNCTIONS
	.section .note.GNU-stack, "", @progbits
