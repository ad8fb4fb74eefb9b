#include "textflag.h"

// func prefetch19(nodes unsafe.Pointer, dst *uint32, n int)
TEXT ·prefetch19(SB), NOSPLIT, $0-24
	MOVQ nodes+0(FP), BX
	MOVQ dst+8(FP), SI
	MOVQ n+16(FP), CX
	TESTQ CX, CX
	JLE  done

loop:
	MOVL (SI), AX
	SHRL $13, AX
	PREFETCHT1 (BX)(AX*8)
	ADDQ $4, SI
	DECQ CX
	JNZ  loop

done:
	RET

// func gather19(nodes, leaves unsafe.Pointer, short *[1 << shortBits]uint32, dst *uint32, out *uint16, n int, spread bool) uint32
//
// As gather24 does, 16 destinations at a time, the last step over again in part, and leaves as aligned four bytes.
TEXT ·gather19(SB), 0, $1024-60
	MOVQ nodes+0(FP), BX
	MOVQ leaves+8(FP), R9
	MOVQ short+16(FP), AX
	MOVQ dst+24(FP), SI
	MOVQ out+32(FP), DI
	MOVQ n+40(FP), CX
	VMOVDQU32 (AX), Z31
	MOVL $16, AX
	VPBROADCASTD AX, Z30
	MOVL $0xffff, AX
	VPBROADCASTD AX, Z29
	VPXORD Z28, Z28, Z28 // all
	MOVL $31, AX
	VPBROADCASTD AX, Z27
	VMOVDQU32 even<>(SB), Z26
	MOVL $1, AX
	VPBROADCASTD AX, Z25
	VPORD Z26, Z25, Z25 // odd
	LEAQ places-1024(SP), R8
	SUBQ $16, CX

	// Nodes of 16 destinations, and the places of their leaves: base + popcount(starts << (31-j)).
	XORL DX, DX

nodes:
	CMPQ DX, CX
	CMOVQGT CX, DX
	VMOVDQU32 (SI)(DX*4), Z0
	VPSRLD $13, Z0, Z1
	VEXTRACTI64X4 $1, Z1, Y2
	KXNORW K0, K0, K1
	KXNORW K0, K0, K2
	VPXORQ Z3, Z3, Z3
	VPXORQ Z4, Z4, Z4
	VPGATHERDQ (BX)(Y1*8), K1, Z3
	VPGATHERDQ (BX)(Y2*8), K2, Z4
	VPSRLD $8, Z0, Z5
	VPANDND Z27, Z5, Z5
	VMOVDQA64 Z26, Z6
	VMOVDQA64 Z25, Z7
	VPERMI2D Z4, Z3, Z6  // starts
	VPERMI2D Z4, Z3, Z7  // bases
	VPSLLVD Z5, Z6, Z6
	VPOPCNTD Z6, Z6
	VPADDD Z7, Z6, Z6
	VMOVDQU32 Z6, (R8)(DX*4)
	ADDQ $16, DX
	LEAQ 16(CX), AX
	CMPQ DX, AX
	JLT  nodes

	MOVBLZX spread+48(FP), AX
	TESTL AX, AX
	JEQ  leaves
	XORL DX, DX
	LEAQ 16(CX), R10

prefetch:
	MOVL (R8)(DX*4), AX
	PREFETCHT0 (R9)(AX*2)
	INCQ DX
	CMPQ DX, R10
	JLT  prefetch

leaves:
	XORL DX, DX

leaf:
	CMPQ DX, CX
	CMOVQGT CX, DX
	VMOVDQU32 (R8)(DX*4), Z6
	VPSRLD $1, Z6, Z1
	KXNORW K0, K0, K1
	VPXORD Z2, Z2, Z2
	VPGATHERDD (R9)(Z1*4), K1, Z2
	VPSLLD $4, Z6, Z3
	VPANDD Z30, Z3, Z3
	VPSRLVD Z3, Z2, Z2
	VPTESTNMD Z29, Z2, K2
	VPSRLD $28, (SI)(DX*4), Z4
	VPERMD Z31, Z4, K2, Z2
	VPORD Z2, Z28, Z28
	VPMOVDW Z2, (DI)(DX*2)
	ADDQ $16, DX
	LEAQ 16(CX), AX
	CMPQ DX, AX
	JLT  leaf

	MOVL $0x8000, AX
	VPBROADCASTD AX, Z0
	XORL AX, AX
	VPTESTMD Z0, Z28, K1
	KORTESTW K1, K1
	JEQ  shallow
	MOVL $0x8000, AX

shallow:
	MOVL AX, ret+56(FP)
	VZEROUPPER
	RET

DATA even<>+0(SB)/4, $0
DATA even<>+4(SB)/4, $2
DATA even<>+8(SB)/4, $4
DATA even<>+12(SB)/4, $6
DATA even<>+16(SB)/4, $8
DATA even<>+20(SB)/4, $10
DATA even<>+24(SB)/4, $12
DATA even<>+28(SB)/4, $14
DATA even<>+32(SB)/4, $16
DATA even<>+36(SB)/4, $18
DATA even<>+40(SB)/4, $20
DATA even<>+44(SB)/4, $22
DATA even<>+48(SB)/4, $24
DATA even<>+52(SB)/4, $26
DATA even<>+56(SB)/4, $28
DATA even<>+60(SB)/4, $30
GLOBL even<>(SB), RODATA|NOPTR, $64
