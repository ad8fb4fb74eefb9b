#include "textflag.h"

// The directory: DST is the next address, in network order.
#define START(i, R, T) \
	MOVQ   (16*i)(CX), R; \
	BSWAPQ R;             \
	MOVQ   R, T;          \
	SHRQ   $12, T;        \
	SHRQ   $44, R;        \
	MOVL   T, (4*i)(R9);  \
	MOVL   (SI)(R*4), R;  \
	MOVL   R, (4*i)(R8);  \
	ORL    R, R13

// Of 16 addresses, in two registers each time, the first words and then the second words of eight.
DATA ·words6+0(SB)/8, $0x0000000400000000
DATA ·words6+8(SB)/8, $0x0000000c00000008
DATA ·words6+16(SB)/8, $0x0000001400000010
DATA ·words6+24(SB)/8, $0x0000001c00000018
DATA ·words6+32(SB)/8, $0x0000000500000001
DATA ·words6+40(SB)/8, $0x0000000d00000009
DATA ·words6+48(SB)/8, $0x0000001500000011
DATA ·words6+56(SB)/8, $0x0000001d00000019
GLOBL ·words6(SB), RODATA|NOPTR, $64

// The bytes of each word in reverse.
DATA ·swap6+0(SB)/8, $0x0405060700010203
DATA ·swap6+8(SB)/8, $0x0c0d0e0f08090a0b
GLOBL ·swap6(SB), RODATA|NOPTR, $16

#define ENTRY(i, R) \
	MOVL (4*i)(R8), R;   \
	MOVL (SI)(R*4), R;   \
	MOVL R, (4*i)(R8)

// func start6(dir unsafe.Pointer, dst *[16]byte, at, key *uint32, n int) (any uint32)
TEXT ·start6(SB), NOSPLIT, $0-44
	MOVQ  dir+0(FP), SI
	MOVQ  dst+8(FP), CX
	MOVQ  at+16(FP), R8
	MOVQ  key+24(FP), R9
	MOVQ  n+32(FP), DX
	XORL  R13, R13
	SUBQ  $16, DX
	JL    rest
	VMOVDQU32 ·words6(SB), Z10
	VBROADCASTI32X4 ·swap6(SB), Z11

sixteen:
	VMOVDQU32 (CX), Z0
	VMOVDQU32 128(CX), Z1
	VPERMT2D  64(CX), Z10, Z0
	VPERMT2D  192(CX), Z10, Z1
	VSHUFI64X2 $0x44, Z1, Z0, Z2 // first words
	VSHUFI64X2 $0xee, Z1, Z0, Z3 // second words
	VPSHUFB   Z11, Z2, Z2
	VPSHUFB   Z11, Z3, Z3
	VPSRLD    $12, Z2, Z4
	VPSLLD    $20, Z2, Z2
	VPSRLD    $12, Z3, Z3
	VPORD     Z2, Z3, Z3
	VMOVDQU32 Z4, (R8)
	VMOVDQU32 Z3, (R9)
	ENTRY(0, AX)
	ENTRY(1, BX)
	ENTRY(2, R10)
	ENTRY(3, R11)
	ENTRY(4, AX)
	ENTRY(5, BX)
	ENTRY(6, R10)
	ENTRY(7, R11)
	ENTRY(8, AX)
	ENTRY(9, BX)
	ENTRY(10, R10)
	ENTRY(11, R11)
	ENTRY(12, AX)
	ENTRY(13, BX)
	ENTRY(14, R10)
	ENTRY(15, R11)
	ADDQ $256, CX
	ADDQ $64, R8
	ADDQ $64, R9
	SUBQ $16, DX
	JGE  sixteen

rest:
	ADDQ $16, DX
	JZ   done

one:
	START(0, AX, BX)
	ADDQ $16, CX
	ADDQ $4, R8
	ADDQ $4, R9
	DECQ DX
	JNZ  one

done:
	// What was stored lane by lane is read again only here, when it has left the store buffer.
	MOVQ at+16(FP), R8
	MOVQ n+32(FP), DX
	SUBQ $16, DX
	JL   end
	VPXORD Z9, Z9, Z9

or:
	VPORD (R8), Z9, Z9
	ADDQ  $64, R8
	SUBQ  $16, DX
	JGE   or

	MOVL         $63, AX
	VPBROADCASTD AX, Z0
	VPTESTMD     Z0, Z9, K1
	KMOVW        K1, AX
	NEGL         AX
	SBBL         AX, AX
	ANDL         $1, AX
	ORL          AX, R13
	VZEROUPPER

end:
	MOVL R13, any+40(FP)
	RET

// One level of lane i: the keys of the line that are less than the lane's key say which line is next.
#define KEY(i, Z) VPBROADCASTD (4*i)(R9), Z

#define STEP(i, R, T, Z, K) \
	MOVL    (4*i)(R8), R;              \
	VPCMPUD $6, (DI)(R*1), Z, K7, K;   \
	KMOVW   K, T;                      \
	POPCNTL T, T;                      \
	SHLL    $6, T;                     \
	ADDL    60(DI)(R*1), T;            \
	MOVL    T, (4*i)(R8)

#define LAST(i, R, T, Z, K) \
	STEP(i, R, T, Z, K); \
	PREFETCHT0 (DI)(T*1)

#define LANES(DO) \
	DO(0, AX, BX, Z0, K1);    \
	DO(1, DX, R10, Z1, K2);   \
	DO(2, R11, R12, Z2, K3);  \
	DO(3, R13, SI, Z3, K4);   \
	DO(4, AX, BX, Z4, K5);    \
	DO(5, DX, R10, Z5, K1);   \
	DO(6, R11, R12, Z6, K2);  \
	DO(7, R13, SI, Z7, K3);   \
	DO(8, AX, BX, Z8, K4);    \
	DO(9, DX, R10, Z9, K5);   \
	DO(10, R11, R12, Z10, K1); \
	DO(11, R13, SI, Z11, K2); \
	DO(12, AX, BX, Z12, K3);  \
	DO(13, DX, R10, Z13, K4); \
	DO(14, R11, R12, Z14, K5); \
	DO(15, R13, SI, Z15, K1)

// func walk6(lines unsafe.Pointer, at, key *uint32, n int)
//
// Sixteen lanes side by side: their loads wait for memory together.
TEXT ·walk6(SB), NOSPLIT, $0-32
	MOVQ  lines+0(FP), DI
	MOVQ  at+8(FP), R8
	MOVQ  key+16(FP), R9
	MOVQ  n+24(FP), CX
	MOVL  $0x7fff, AX
	KMOVW AX, K7
	SUBQ  $16, CX
	JL    rest

sixteen:
	KEY(0, Z0)
	KEY(1, Z1)
	KEY(2, Z2)
	KEY(3, Z3)
	KEY(4, Z4)
	KEY(5, Z5)
	KEY(6, Z6)
	KEY(7, Z7)
	KEY(8, Z8)
	KEY(9, Z9)
	KEY(10, Z10)
	KEY(11, Z11)
	KEY(12, Z12)
	KEY(13, Z13)
	KEY(14, Z14)
	KEY(15, Z15)
	LANES(STEP)
	LANES(STEP)
	LANES(LAST)
	ADDQ $64, R8
	ADDQ $64, R9
	SUBQ $16, CX
	JGE  sixteen

rest:
	ADDQ $16, CX
	JZ   done

one:
	KEY(0, Z0)
	STEP(0, AX, BX, Z0, K1)
	STEP(0, AX, BX, Z0, K1)
	LAST(0, AX, BX, Z0, K1)
	ADDQ $4, R8
	ADDQ $4, R9
	DECQ CX
	JNZ  one

done:
	VZEROUPPER
	RET

// The value of lane i in its leaf line.
#define LEAF(i, R, T, Z, K) \
	MOVL    (4*i)(R8), R;            \
	VPBROADCASTD (4*i)(R9), Z;       \
	VPCMPUD $6, (DI)(R*1), Z, K7, K; \
	KMOVW   K, T;                    \
	POPCNTL T, T;                    \
	ADDQ    DI, R;                   \
	MOVWLZX 40(R)(T*2), T;           \
	MOVW    T, (2*i)(SI)

// func leaf6(lines unsafe.Pointer, at, key *uint32, out *uint16, n int, def uint32) (any uint32)
TEXT ·leaf6(SB), NOSPLIT, $0-52
	MOVQ  lines+0(FP), DI
	MOVQ  at+8(FP), R8
	MOVQ  key+16(FP), R9
	MOVQ  out+24(FP), SI
	MOVQ  n+32(FP), CX
	MOVL  $0x3ff, AX
	KMOVW AX, K7
	SUBQ  $4, CX
	JL    rest

four:
	LEAF(0, AX, BX, Z0, K1)
	LEAF(1, DX, R10, Z1, K2)
	LEAF(2, R11, R12, Z2, K3)
	LEAF(3, R13, R14, Z3, K4)
	ADDQ $16, R8
	ADDQ $16, R9
	ADDQ $8, SI
	SUBQ $4, CX
	JGE  four

rest:
	ADDQ $4, CX
	JZ   done

one:
	LEAF(0, AX, BX, Z0, K1)
	ADDQ $4, R8
	ADDQ $4, R9
	ADDQ $2, SI
	DECQ CX
	JNZ  one

done:
	// The default's value for 0, and deep values noted, 32 at a time.
	MOVQ         out+24(FP), SI
	MOVQ         n+32(FP), CX
	MOVL         def+40(FP), AX
	VPBROADCASTW AX, Z1
	KXORD        K4, K4, K4
	KXNORD       K3, K3, K3

values:
	CMPQ  CX, $32
	JGE   whole
	MOVL  $-1, AX
	BZHIL CX, AX, AX
	KMOVD AX, K3

whole:
	VMOVDQU16.Z (SI), K3, Z0
	VPTESTNMW   Z0, Z0, K3, K1
	VMOVDQU16   Z1, K1, (SI)
	VPMOVW2M    Z0, K2
	KORD        K2, K4, K4
	ADDQ        $64, SI
	SUBQ        $32, CX
	JG          values
	KMOVD       K4, AX
	VZEROUPPER
	MOVL        AX, any+48(FP)
	RET

// func prefetch6(lines unsafe.Pointer, at *uint32, n int)
TEXT ·prefetch6(SB), NOSPLIT, $0-24
	MOVQ  lines+0(FP), DI
	MOVQ  at+8(FP), SI
	MOVQ  n+16(FP), CX
	TESTQ CX, CX
	JLE   done

loop:
	MOVL (SI), AX
	PREFETCHT0 (DI)(AX*1)
	ADDQ $4, SI
	DECQ CX
	JNZ  loop

done:
	RET
