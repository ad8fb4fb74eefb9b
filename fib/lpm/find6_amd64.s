#include "textflag.h"

DATA even<>+0(SB)/8, $0
DATA even<>+8(SB)/8, $2
DATA even<>+16(SB)/8, $4
DATA even<>+24(SB)/8, $6
DATA even<>+32(SB)/8, $8
DATA even<>+40(SB)/8, $10
DATA even<>+48(SB)/8, $12
DATA even<>+56(SB)/8, $14
GLOBL even<>(SB), RODATA|NOPTR, $64

DATA swap<>+0(SB)/8, $0x0001020304050607
DATA swap<>+8(SB)/8, $0x08090a0b0c0d0e0f
GLOBL swap<>(SB), RODATA|NOPTR, $16

// func keys6(dst *[16]byte, place, key *uint32, n int)
TEXT ·keys6(SB), NOSPLIT, $0-32
	MOVQ           dst+0(FP), SI
	MOVQ           place+8(FP), R8
	MOVQ           key+16(FP), R9
	MOVQ           n+24(FP), CX
	VMOVDQU64      even<>(SB), Z7
	VBROADCASTI32X4 swap<>(SB), Z6
	SUBQ           $8, CX
	JL             rest

eight:
	VMOVDQU64 Z7, Z0
	VMOVDQU64 (SI), Z1
	VPERMI2Q  64(SI), Z1, Z0
	VPSHUFB   Z6, Z0, Z0
	VPSRLQ    $12, Z0, Z1
	VPSRLQ    $44, Z0, Z0
	VPMOVQD   Z1, (R9)
	VPMOVQD   Z0, (R8)
	ADDQ      $128, SI
	ADDQ      $32, R8
	ADDQ      $32, R9
	SUBQ      $8, CX
	JGE       eight

rest:
	ADDQ $8, CX
	JZ   done

one:
	MOVBEQ (SI), AX
	RORXQ  $12, AX, BX
	MOVL   BX, (R9)
	SHRQ   $44, AX
	MOVL   AX, (R8)
	ADDQ   $16, SI
	ADDQ   $4, R8
	ADDQ   $4, R9
	DECQ   CX
	JNZ    one

done:
	VZEROUPPER
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

// The root of the tree of lane i's place in the directory.
#define ROOT(i, R, Z) \
	LANE(i, R, Z); \
	MOVL (SI)(R*4), R

// func down6(dir, lines unsafe.Pointer, at, key *uint32, n int) (left int)
//
// Eight lanes side by side, in registers: their loads wait for memory together.
TEXT ·down6(SB), NOSPLIT, $0-48
	MOVQ  dir+0(FP), SI
	MOVQ  lines+8(FP), DI
	MOVQ  at+16(FP), R8
	MOVQ  key+24(FP), R9
	MOVQ  n+32(FP), CX
	MOVL  $0x7fff, AX
	KMOVW AX, K7
	SUBQ  $8, CX
	JL    rest

eight:
	ROOT(0, AX, Z0)
	ROOT(1, BX, Z1)
	ROOT(2, R10, Z2)
	ROOT(3, R11, Z3)
	ROOT(4, R12, Z4)
	ROOT(5, R13, Z5)
	ROOT(6, R14, Z6)
	ROOT(7, R15, Z7)
	MOVL AX, DX
	ORL BX, DX
	ORL R10, DX
	ORL R11, DX
	ORL R12, DX
	ORL R13, DX
	ORL R14, DX
	ORL R15, DX
	TESTL $63, DX
	JNZ tall
	STEP(1, AX, DX, Z0, K1)
	STEP(1, BX, DX, Z1, K2)
	STEP(1, R10, DX, Z2, K3)
	STEP(1, R11, DX, Z3, K4)
	STEP(1, R12, DX, Z4, K5)
	STEP(1, R13, DX, Z5, K6)
	STEP(1, R14, DX, Z6, K1)
	STEP(1, R15, DX, Z7, K2)
	STEP(8, AX, DX, Z0, K1)
	STEP(8, BX, DX, Z1, K2)
	STEP(8, R10, DX, Z2, K3)
	STEP(8, R11, DX, Z3, K4)
	STEP(8, R12, DX, Z4, K5)
	STEP(8, R13, DX, Z5, K6)
	STEP(8, R14, DX, Z6, K1)
	STEP(8, R15, DX, Z7, K2)
	STEP(8, AX, DX, Z0, K1)
	STEP(8, BX, DX, Z1, K2)
	STEP(8, R10, DX, Z2, K3)
	STEP(8, R11, DX, Z3, K4)
	STEP(8, R12, DX, Z4, K5)
	STEP(8, R13, DX, Z5, K6)
	STEP(8, R14, DX, Z6, K1)
	STEP(8, R15, DX, Z7, K2)
	LEAVE(0, AX)
	LEAVE(1, BX)
	LEAVE(2, R10)
	LEAVE(3, R11)
	LEAVE(4, R12)
	LEAVE(5, R13)
	LEAVE(6, R14)
	LEAVE(7, R15)
	ADDQ $32, R8
	ADDQ $32, R9
	SUBQ $8, CX
	JGE  eight

rest:
	ADDQ $8, CX
	JZ   done

one:
	ROOT(0, AX, Z0)
	TESTL $63, AX
	JNZ   done
	STEP(1, AX, DX, Z0, K1)
	STEP(8, AX, DX, Z0, K2)
	STEP(8, AX, DX, Z0, K3)
	LEAVE(0, AX)
	ADDQ $4, R8
	ADDQ $4, R9
	DECQ CX
	JNZ  one

done:
	MOVQ CX, left+40(FP)
	VZEROUPPER
	RET

tall:
	ADDQ $8, CX
	JMP  done

// func walk6(lines unsafe.Pointer, at, key *uint32, n int)
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
