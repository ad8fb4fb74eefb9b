#include "textflag.h"

// func prefetch24(tbl unsafe.Pointer, dst *uint32, n int)
//
// Starts loading tbl[dst[j]>>8], of two bytes each, for all j: two destinations by one load. The lines are asked into the second-level
// cache: the first level's few miss buffers hold the pass up where many lines come from memory. Measured on an AMD EPYC with a
// million prefixes against PREFETCHT0: addresses under them +6 to +15 %, uniform ones +3 to +57 %, with polluted caches both 1.8 to 2.1 times as
// fast, but there 13 to 32 % slower where most lines are in the third level (Zipf); the whole road shows no difference beyond its noise.
TEXT ·prefetch24(SB), NOSPLIT, $0-24
	MOVQ tbl+0(FP), BX
	MOVQ dst+8(FP), SI
	MOVQ n+16(FP), CX

	CMPQ CX, $16
	JLT  tail
	MOVL (SI), AX      // 16 times the same: nothing to win
	MOVL AX, DX
	SHLQ $32, DX
	ORQ  DX, AX
	MOVQ (SI), DX
	MOVQ 8(SI), R8
	XORQ AX, DX
	XORQ AX, R8
	ORQ  R8, DX
	JNE  eight
	MOVQ 16(SI), DX
	MOVQ 24(SI), R8
	XORQ AX, DX
	XORQ AX, R8
	ORQ  R8, DX
	MOVQ 32(SI), R8
	MOVQ 40(SI), R9
	XORQ AX, R8
	XORQ AX, R9
	ORQ  R8, DX
	ORQ  R9, DX
	MOVQ 48(SI), R8
	MOVQ 56(SI), R9
	XORQ AX, R8
	XORQ AX, R9
	ORQ  R8, DX
	ORQ  R9, DX
	JEQ  done

#define TWO(OFF, A, B) \
	MOVQ OFF(SI), A \
	MOVL A, B \
	SHRQ $40, A \
	SHRL $8, B \
	PREFETCHT1 (BX)(B*2) \
	PREFETCHT1 (BX)(A*2)

eight:
	TWO(0, AX, DX)
	TWO(8, R8, R9)
	TWO(16, R10, R11)
	TWO(24, R12, R13)
	ADDQ $32, SI
	SUBQ $8, CX
	CMPQ CX, $8
	JGE  eight

tail:
	TESTQ CX, CX
	JLE   done

one:
	MOVL (SI), AX
	SHRL $8, AX
	PREFETCHT1 (BX)(AX*2)
	ADDQ $4, SI
	DECQ CX
	JNZ  one

done:
	RET

// Of 16 destinations at a time. The last step begins 16 before the end and may do some again.
//
// Entries of two bytes are gathered as the aligned four bytes around them, and shifted: four bytes from an
// entry's place on would reach into the next cache line for one of 32, which nobody has prefetched, and past the table's end.

// func gather24(tbl unsafe.Pointer, short *[1 << shortBits]uint32, dst *uint32, out *uint16, n int) uint32
TEXT ·gather24(SB), NOSPLIT, $0-44
	MOVQ tbl+0(FP), BX
	MOVQ short+8(FP), AX
	MOVQ dst+16(FP), SI
	MOVQ out+24(FP), DI
	MOVQ n+32(FP), CX
	VMOVDQU32 (AX), Z31
	MOVL $16, AX
	VPBROADCASTD AX, Z30
	MOVL $0xffff, AX
	VPBROADCASTD AX, Z29
	VPXORD Z28, Z28, Z28 // all
	SUBQ $16, CX         // place of the last step
	XORL DX, DX
	TESTQ CX, CX
	JEQ  last

step:
#define STEP24 \
	VMOVDQU32 (SI)(DX*4), Z0       \
	VPSRLD $9, Z0, Z1              \
	KXNORW K0, K0, K1              \
	VPXORD Z2, Z2, Z2              \
	VPGATHERDD (BX)(Z1*4), K1, Z2  \
	VPSRLD $4, Z0, Z3              \
	VPANDD Z30, Z3, Z3             \
	VPSRLVD Z3, Z2, Z2             \
	VPTESTNMD Z29, Z2, K2          \
	VPSRLD $28, Z0, Z4             \
	VPERMD Z31, Z4, K2, Z2         \
	VPORD Z2, Z28, Z28             \
	VPMOVDW Z2, (DI)(DX*2)
	STEP24
	ADDQ $16, DX
	CMPQ DX, CX
	JLT  step

last:
	MOVQ CX, DX
	STEP24

	MOVL $0x8000, AX
	VPBROADCASTD AX, Z0
	XORL AX, AX
	VPTESTMD Z0, Z28, K1
	KORTESTW K1, K1
	JEQ  shallow
	MOVL $0x8000, AX

shallow:
	MOVL AX, ret+40(FP)
	VZEROUPPER
	RET
