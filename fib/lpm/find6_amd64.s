#include "textflag.h"

// The directory, of one address in network order.
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

// func start6(dir unsafe.Pointer, dst *[16]byte, at, key *uint32, n int) (any uint32)
TEXT ·start6(SB), NOSPLIT, $0-44
	MOVQ dir+0(FP), SI
	MOVQ dst+8(FP), CX
	MOVQ at+16(FP), R8
	MOVQ key+24(FP), R9
	MOVQ n+32(FP), DX
	XORL R13, R13
	SUBQ $4, DX
	JL   rest

four:
	START(0, AX, BX)
	START(1, R10, R11)
	START(2, AX, BX)
	START(3, R10, R11)
	ADDQ $64, CX
	ADDQ $16, R8
	ADDQ $16, R9
	SUBQ $4, DX
	JGE  four

rest:
	ADDQ $4, DX
	JZ   done

one:
	START(0, AX, BX)
	ADDQ $16, CX
	ADDQ $4, R8
	ADDQ $4, R9
	DECQ DX
	JNZ  one

done:
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

// The value of lane i in its leaf line; that of ::/0 for 0.
#define LEAF(i, R, T, Z, K) \
	MOVL    (4*i)(R8), R;            \
	VPBROADCASTD (4*i)(R9), Z;       \
	VPCMPUD $6, (DI)(R*1), Z, K7, K; \
	KMOVW   K, T;                    \
	POPCNTL T, T;                    \
	ADDQ    DI, R;                   \
	MOVWLZX 40(R)(T*2), T;           \
	TESTL   T, T;                    \
	CMOVLEQ R12, T;                  \
	MOVW    T, (2*i)(SI);            \
	ORL     T, R13

// func leaf6(lines unsafe.Pointer, at, key *uint32, out *uint16, n int, def uint32) (any uint32)
TEXT ·leaf6(SB), NOSPLIT, $0-52
	MOVQ  lines+0(FP), DI
	MOVQ  at+8(FP), R8
	MOVQ  key+16(FP), R9
	MOVQ  out+24(FP), SI
	MOVQ  n+32(FP), CX
	MOVL  def+40(FP), R12
	MOVL  $0x3ff, AX
	KMOVW AX, K7
	XORL  R13, R13
	SUBQ  $4, CX
	JL    rest

four:
	LEAF(0, AX, BX, Z0, K1)
	LEAF(1, DX, R10, Z1, K2)
	LEAF(2, AX, BX, Z2, K3)
	LEAF(3, DX, R10, Z3, K4)
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
	VZEROUPPER
	MOVL R13, any+48(FP)
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
