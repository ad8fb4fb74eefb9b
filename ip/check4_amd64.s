#include "textflag.h"

DATA iota16<>+0(SB)/8, $0x0706050403020100
DATA iota16<>+8(SB)/8, $0x0f0e0d0c0b0a0908
GLOBL iota16<>(SB), RODATA|NOPTR, $16

// Bytes of a 32-bit word in reverse order, and those of its upper half with zeros above.
DATA swap32<>+0(SB)/8, $0x0405060700010203
DATA swap32<>+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL swap32<>(SB), RODATA|NOPTR, $16
DATA upper16<>+0(SB)/8, $0x8080060780800203
DATA upper16<>+8(SB)/8, $0x80800e0f80800a0b
GLOBL upper16<>(SB), RODATA|NOPTR, $16

// Packets i, i+4, i+8 and i+12: bytes 0 to 15 of each header in a quarter of Z.
#define ROW(i, X, Z) \
	MOVQ (8*(i))(R9), AX;                     \
	MOVQ (8*((i)+4))(R9), DX;                 \
	MOVQ (8*((i)+8))(R9), R12;                \
	MOVQ (8*((i)+12))(R9), R13;               \
	VMOVDQU (BX)(AX*1), X;                    \
	VINSERTI32X4 $1, (BX)(DX*1), Z, Z;        \
	VINSERTI32X4 $2, (BX)(R12*1), Z, Z;       \
	VINSERTI32X4 $3, (BX)(R13*1), Z, Z

// Packets i to i+3: their destinations in X.
#define DST(i, X) \
	MOVQ (8*(i))(R9), AX;                     \
	MOVQ (8*((i)+1))(R9), DX;                 \
	MOVQ (8*((i)+2))(R9), R12;                \
	MOVQ (8*((i)+3))(R9), R13;                \
	VMOVD 16(BX)(AX*1), X;                    \
	VPINSRD $1, 16(BX)(DX*1), X, X;           \
	VPINSRD $2, 16(BX)(R12*1), X, X;          \
	VPINSRD $3, 16(BX)(R13*1), X, X

// Adds the halves of the words in W to Z8.
#define ADD16(W) \
	VPANDD W, Z31, Z10;                       \
	VPSRLD $16, W, Z11;                       \
	VPADDD Z10, Z8, Z8;                       \
	VPADDD Z11, Z8, Z8

#define SPREAD(VALUE, Z) \
	MOVL VALUE, AX;                           \
	VPBROADCASTD AX, Z

// func plain4(base unsafe.Pointer, l3 *uintptr, length *uint16, lane *uint8, dst *uint32, n int) (done int, mask uint32)
TEXT ·plain4(SB), NOSPLIT, $0-60
	MOVQ base+0(FP), BX
	MOVQ l3+8(FP), R8
	MOVQ length+16(FP), R10
	MOVQ lane+24(FP), SI
	MOVQ dst+32(FP), DI
	MOVQ n+40(FP), CX
	SPREAD($0xffff, Z31)
	SPREAD($0xff, Z30)
	SPREAD($0x45, Z29)
	SPREAD($1, Z28)
	SPREAD($127, Z27)
	SPREAD($169, Z26)
	SPREAD($224, Z25)
	VPXORD Z24, Z24, Z24
	VBROADCASTI32X4 swap32<>(SB), Z23
	VBROADCASTI32X4 upper16<>(SB), Z22
	VMOVDQU iota16<>(SB), X15
	XORL R11, R11

sixteen:
	XORL AX, AX
	CMPQ R11, CX
	JGE  done

	// Consecutive positions, the last of which exists.
	VMOVDQU (SI)(R11*1), X0
	VPBROADCASTB X0, X1
	VPADDB X15, X1, X1
	VPXOR X0, X1, X1
	VPTEST X1, X1
	JNE  done
	MOVBLZX (SI)(R11*1), R14
	CMPQ R14, $240
	JGT  done
	LEAQ (R8)(R14*8), R9

	ROW(0, X0, Z0)
	ROW(1, X1, Z1)
	ROW(2, X2, Z2)
	ROW(3, X3, Z3)
	DST(0, X4)
	DST(4, X5)
	DST(8, X6)
	DST(12, X7)
	VINSERTI32X4 $1, X5, Z4, Z4
	VINSERTI32X4 $2, X6, Z4, Z4
	VINSERTI32X4 $3, X7, Z4, Z4

	// Rows to columns: Z0 to Z3 are the first to fourth words of all 16.
	VPUNPCKLDQ Z1, Z0, Z8
	VPUNPCKHDQ Z1, Z0, Z9
	VPUNPCKLDQ Z3, Z2, Z10
	VPUNPCKHDQ Z3, Z2, Z11
	VPUNPCKLQDQ Z10, Z8, Z0
	VPUNPCKHQDQ Z10, Z8, Z1
	VPUNPCKLQDQ Z11, Z9, Z2
	VPUNPCKHQDQ Z11, Z9, Z3

	// The sum of ten 16-bit numbers is 0xffff in ones' complement where its halves add up to it.
	VPANDD Z0, Z31, Z8
	VPSRLD $16, Z0, Z9
	VPADDD Z9, Z8, Z8
	ADD16(Z1)
	ADD16(Z2)
	ADD16(Z3)
	ADD16(Z4)
	VPANDD Z8, Z31, Z9
	VPSRLD $16, Z8, Z8
	VPADDD Z9, Z8, Z8
	VPCMPEQD Z31, Z8, K1

	VPANDD Z0, Z30, Z8
	VPCMPEQD Z29, Z8, K1, K1
	VPANDD Z2, Z30, Z8
	VPCMPUD $6, Z28, Z8, K1, K1
	VPANDD Z3, Z30, Z8
	VPCMPUD $4, Z24, Z8, K1, K1
	VPCMPUD $4, Z27, Z8, K1, K1
	VPCMPUD $4, Z26, Z8, K1, K1
	VPCMPUD $1, Z25, Z8, K1, K1
	VPMOVZXWD (R10)(R14*2), Z8
	VPSHUFB Z22, Z0, Z9
	VPCMPEQD Z9, Z8, K1, K1

	VPSHUFB Z23, Z4, Z4
	VMOVDQU32 Z4, (DI)(R11*4)
	KMOVW K1, AX
	CMPL AX, $0xffff
	JNE  done
	ADDQ $16, R11
	JMP  sixteen

done:
	MOVQ R11, done+48(FP)
	MOVL AX, mask+56(FP)
	VZEROUPPER
	RET
