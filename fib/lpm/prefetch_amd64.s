#include "textflag.h"

// func prefetch16(tbl unsafe.Pointer, dst *uint32, n int)
//
// Starts loading tbl[dst[j]>>8], of two bytes each, for all j.
TEXT ·prefetch16(SB), NOSPLIT, $0-24
	MOVQ tbl+0(FP), BX
	MOVQ dst+8(FP), SI
	MOVQ n+16(FP), CX
	TESTQ CX, CX
	JLE  done

loop:
	MOVL (SI), AX
	SHRL $8, AX
	PREFETCHT0 (BX)(AX*2)
	ADDQ $4, SI
	DECQ CX
	JNZ  loop

done:
	RET
