#include "textflag.h"

// func prefetch(base unsafe.Pointer, idx *uint32, n int)
//
// Two lines a packet: the header's first and the data's first, where a fresh
// buffer's data starts (DataStart = 256).
TEXT ·prefetch(SB), NOSPLIT, $0-24
	MOVQ base+0(FP), BX
	MOVQ idx+8(FP), SI
	MOVQ n+16(FP), CX
	TESTQ CX, CX
	JLE  done

loop:
	MOVL (SI), AX
	SHLQ $6, AX
	PREFETCHT0 (BX)(AX*1)
	PREFETCHT0 256(BX)(AX*1)
	ADDQ $4, SI
	DECQ CX
	JNZ  loop

done:
	RET
