#include "textflag.h"

// The reference and the first key of one address in network order.
#define START(i, R, T) \
	MOVBEQ (16*i)(CX), R;  \
	RORXQ  $12, R, T;      \
	MOVL   T, (4*i)(R9);   \
	SHRQ   $44, R;         \
	MOVL   (SI)(R*4), R;   \
	MOVL   R, (4*i)(R8);   \
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

// Lane i of a group: its line's offset in R, its key in Z.
#define LANE(i, R, Z) \
	MOVL (4*i)(R8), R; \
	VPBROADCASTD (4*i)(R9), Z

// One level of a lane: as many keys of its line as are less than the lane's key, so many lines behind the
// first it goes on. R is the line's offset, in units of scale bytes before and of 8 behind.
#define STEP(scale, R, T, Z, K) \
	VPCMPUD $6, (DI)(R*scale), Z, K7, K; \
	MOVL    60(DI)(R*scale), R;          \
	KMOVW   K, T;                        \
	POPCNTL T, T;                        \
	LEAL    (R)(T*8), R

#define LEAVE(i, R) \
	MOVL       R, (4*i)(R8); \
	PREFETCHT0 (DI)(R*8)

// func walk6(lines unsafe.Pointer, at, key *uint32, n int)
//
// Eight lanes side by side, in registers: their loads wait for memory together.
TEXT ·walk6(SB), NOSPLIT, $0-32
	MOVQ  lines+0(FP), DI
	MOVQ  at+8(FP), R8
	MOVQ  key+16(FP), R9
	MOVQ  n+24(FP), CX
	MOVL  $0x7fff, AX
	KMOVW AX, K7
	SUBQ  $8, CX
	JL    rest

eight:
	LANE(0, AX, Z0)
	LANE(1, BX, Z1)
	LANE(2, DX, Z2)
	LANE(3, SI, Z3)
	LANE(4, R10, Z4)
	LANE(5, R11, Z5)
	LANE(6, R12, Z6)
	LANE(7, R13, Z7)
	STEP(1, AX, R14, Z0, K1)
	STEP(1, BX, R15, Z1, K2)
	STEP(1, DX, R14, Z2, K3)
	STEP(1, SI, R15, Z3, K4)
	STEP(1, R10, R14, Z4, K5)
	STEP(1, R11, R15, Z5, K6)
	STEP(1, R12, R14, Z6, K1)
	STEP(1, R13, R15, Z7, K2)
	STEP(8, AX, R14, Z0, K1)
	STEP(8, BX, R15, Z1, K2)
	STEP(8, DX, R14, Z2, K3)
	STEP(8, SI, R15, Z3, K4)
	STEP(8, R10, R14, Z4, K5)
	STEP(8, R11, R15, Z5, K6)
	STEP(8, R12, R14, Z6, K1)
	STEP(8, R13, R15, Z7, K2)
	STEP(8, AX, R14, Z0, K1)
	STEP(8, BX, R15, Z1, K2)
	STEP(8, DX, R14, Z2, K3)
	STEP(8, SI, R15, Z3, K4)
	STEP(8, R10, R14, Z4, K5)
	STEP(8, R11, R15, Z5, K6)
	STEP(8, R12, R14, Z6, K1)
	STEP(8, R13, R15, Z7, K2)
	LEAVE(0, AX)
	LEAVE(1, BX)
	LEAVE(2, DX)
	LEAVE(3, SI)
	LEAVE(4, R10)
	LEAVE(5, R11)
	LEAVE(6, R12)
	LEAVE(7, R13)
	ADDQ $32, R8
	ADDQ $32, R9
	SUBQ $8, CX
	JGE  eight

rest:
	ADDQ $8, CX
	JZ   done

one:
	LANE(0, AX, Z0)
	STEP(1, AX, R14, Z0, K1)
	STEP(8, AX, R14, Z0, K2)
	STEP(8, AX, R14, Z0, K3)
	LEAVE(0, AX)
	ADDQ $4, R8
	ADDQ $4, R9
	DECQ CX
	JNZ  one

done:
	VZEROUPPER
	RET

// The value of lane i in its leaf line.
#define LEAF(i, R, T, Z, K) \
	MOVL         (4*i)(R8), R;     \
	VPBROADCASTD (4*i)(R9), Z;     \
	LEAQ         (DI)(R*8), R;     \
	VPCMPUD      $6, (R), Z, K7, K; \
	KMOVW        K, T;             \
	POPCNTL      T, T;             \
	MOVWLZX      40(R)(T*2), T;    \
	MOVW         T, (2*i)(SI)

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
	JZ   values

one:
	LEAF(0, AX, BX, Z0, K1)
	ADDQ $4, R8
	ADDQ $4, R9
	ADDQ $2, SI
	DECQ CX
	JNZ  one

	// All values at once: def for 0, and whether any is deep.
values:
	MOVQ         out+24(FP), SI
	MOVQ         n+32(FP), CX
	MOVL         def+40(FP), AX
	VPBROADCASTW AX, Z1
	XORL         R13, R13
	MOVL         $-1, BX

some:
	CMPQ        CX, $32
	JGE         whole
	BZHIL       CX, BX, BX

whole:
	KMOVD       BX, K1
	VMOVDQU16.Z (SI), K1, Z0
	VPTESTNMW   Z0, Z0, K1, K2
	VMOVDQU16   Z1, K2, (SI)
	VPMOVW2M    Z0, K3
	KMOVD       K3, AX
	ORL         AX, R13
	ADDQ        $64, SI
	SUBQ        $32, CX
	JG          some
	VZEROUPPER
	MOVL        R13, any+48(FP)
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
