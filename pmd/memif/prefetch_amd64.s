#include "textflag.h"

// func prefetch(desc unsafe.Pointer, pos, mask uint64, n int, base unsafe.Pointer, write bool)
TEXT ·prefetch(SB), NOSPLIT, $0-41
	MOVQ desc+0(FP), SI
	MOVQ pos+8(FP), AX
	MOVQ mask+16(FP), DX
	MOVQ n+24(FP), CX
	MOVQ base+32(FP), BX
	MOVBLZX write+40(FP), DI
	TESTQ DI, DI
	JNZ  write

read:
	MOVQ AX, R8
	ANDQ DX, R8
	SHLQ $4, R8
	MOVL 8(SI)(R8*1), R9
	PREFETCHT0 (BX)(R9*1)
	INCQ AX
	DECQ CX
	JNZ  read
	RET

write:
	MOVQ AX, R8
	ANDQ DX, R8
	SHLQ $4, R8
	MOVL 8(SI)(R8*1), R9
	BYTE $0x42; BYTE $0x0f; BYTE $0x0d; BYTE $0x0c; BYTE $0x0b // PREFETCHW (BX)(R9*1)
	INCQ AX
	DECQ CX
	JNZ  write
	RET
