#include "textflag.h"

DATA iota32<>+0(SB)/8, $0x0000000100000000
DATA iota32<>+8(SB)/8, $0x0000000300000002
DATA iota32<>+16(SB)/8, $0x0000000500000004
DATA iota32<>+24(SB)/8, $0x0000000700000006
DATA iota32<>+32(SB)/8, $0x0000000900000008
DATA iota32<>+40(SB)/8, $0x0000000b0000000a
DATA iota32<>+48(SB)/8, $0x0000000d0000000c
DATA iota32<>+56(SB)/8, $0x0000000f0000000e
GLOBL iota32<>(SB), RODATA|NOPTR, $64

// The packet of index i of the 16 that R8 points to, an offset from BX in AX: its L3 header's place is noted, DX is where its frame is.
#define PACKET(i) \
	MOVL (4*(i))(R8), AX;           \
	SHLQ $6, AX;                    \
	MOVWLZX 16(BX)(AX*1), DX;       \
	ADDQ (BX)(AX*1), DX;            \
	LEAQ (DX)(CX*1), R12;           \
	MOVQ R12, (8*(i))(R9)

// Two packets: the first 16 bytes of their frames come to a quarter of ZA and of ZB; X8 is their lengths.
#define PAIR0(i, XA, XB, X) \
	PACKET(i);                      \
	VMOVDQU (DX), XA;               \
	VMOVQ 36(BX)(AX*1), X;          \
	PACKET((i)+1);                  \
	VMOVDQU (DX), XB;               \
	VPINSRQ $1, 36(BX)(AX*1), X, X

#define PAIR(i, q, ZA, ZB, X) \
	PACKET(i);                      \
	VINSERTI32X4 q, (DX), ZA, ZA;   \
	VMOVQ 36(BX)(AX*1), X;          \
	PACKET((i)+1);                  \
	VINSERTI32X4 q, (DX), ZB, ZB;   \
	VPINSRQ $1, 36(BX)(AX*1), X, X

#define AHEAD(i) \
	MOVL (4*(i))(R11), AX;          \
	MOVL (4*(i)+4)(R11), DX;        \
	SHLQ $6, AX;                    \
	SHLQ $6, DX;                    \
	PREFETCHT0 (BX)(AX*1);          \
	PREFETCHT0 256(BX)(AX*1);       \
	PREFETCHT0 (BX)(DX*1);          \
	PREFETCHT0 256(BX)(DX*1)

#define SPREAD(VALUE, Z) \
	MOVL VALUE, AX;                 \
	VPBROADCASTD AX, Z

// Appends the positions in Z30 that K selects to the list at (L)(N*1).
#define LIST(K, L, N) \
	VPCOMPRESSD.Z Z30, K, Z8;       \
	VPMOVDB Z8, X8;                 \
	VMOVDQU X8, (L)(N*1);           \
	KMOVW K, AX;                    \
	POPCNTL AX, AX;                 \
	ADDQ AX, N

// func demux16(base unsafe.Pointer, mac uint64, idx *uint32, l3 *uintptr, length *uint16, lane4, lane6, odd *uint8, n, ahead int) (n4, n6, x int, bytes uint64)
TEXT ·demux16(SB), NOSPLIT, $0-112
	MOVQ base+0(FP), BX
	MOVQ mac+8(FP), DX
	MOVQ idx+16(FP), R8
	MOVQ l3+24(FP), R9
	MOVQ length+32(FP), R10
	SHRQ $16, DX
	VPBROADCASTD DX, Z29
	SHRQ $32, DX
	VPBROADCASTD DX, Z28
	SPREAD($0xffff, Z27)
	SPREAD($0x0008, Z26)
	SPREAD($0xdd86, Z25)
	SPREAD($34, Z24)
	SPREAD($54, Z23)
	SPREAD($14, Z22)
	SPREAD($16, Z21)
	VMOVDQU32 iota32<>(SB), Z30
	VPADDD Z30, Z30, Z20            // even words of two registers
	SPREAD($1, Z19)
	VPORD Z19, Z20, Z19             // odd ones
	VPXORQ Z18, Z18, Z18            // bytes
	MOVL $14, CX
	SUBQ BX, CX
	XORL SI, SI                     // in lane 4
	XORL DI, DI                     // in lane 6
	XORL R13, R13                   // aside
	MOVQ ahead+72(FP), R11
	LEAQ (R8)(R11*4), R11           // to be loaded into the cache
	MOVQ n+64(FP), R14
	LEAQ (R8)(R14*4), R15           // their end
	SHRQ $4, R14

sixteen:
	CMPQ R11, R15
	JGE  loaded
	AHEAD(0)
	AHEAD(2)
	AHEAD(4)
	AHEAD(6)
	AHEAD(8)
	AHEAD(10)
	AHEAD(12)
	AHEAD(14)
	ADDQ $64, R11

loaded:
	PAIR0(0, X0, X1, X4)
	PAIR0(2, X2, X3, X5)
	PAIR(4, $1, Z0, Z1, X6)
	PAIR(6, $1, Z2, Z3, X7)
	VINSERTI32X4 $1, X5, Z4, Z4
	VINSERTI32X4 $2, X6, Z4, Z4
	VINSERTI32X4 $3, X7, Z4, Z4
	PAIR(8, $2, Z0, Z1, X5)
	PAIR(10, $2, Z2, Z3, X6)
	PAIR(12, $3, Z0, Z1, X7)
	PAIR(14, $3, Z2, Z3, X8)
	VINSERTI32X4 $1, X6, Z5, Z5
	VINSERTI32X4 $2, X7, Z5, Z5
	VINSERTI32X4 $3, X8, Z5, Z5

	// Rows to columns: Z9, Z10 and Z11 are the frames' first, second and fourth words.
	VPUNPCKLDQ Z1, Z0, Z8
	VPUNPCKLDQ Z3, Z2, Z10
	VPUNPCKHDQ Z1, Z0, Z0
	VPUNPCKHDQ Z3, Z2, Z2
	VPUNPCKLQDQ Z10, Z8, Z9
	VPUNPCKHQDQ Z10, Z8, Z10
	VPUNPCKHQDQ Z2, Z0, Z11

	// Z6: length of the packet, Z7: of its first segment.
	VMOVDQA32 Z20, Z6
	VPERMI2D Z5, Z4, Z6
	VMOVDQA32 Z19, Z7
	VPERMI2D Z5, Z4, Z7
	VPANDD Z27, Z7, Z7
	VPSUBD Z22, Z6, Z8
	VPMOVDW Z8, Y8
	VMOVDQU Y8, (R10)
	VPMOVZXDQ Y6, Z8
	VPADDQ Z8, Z18, Z18
	VEXTRACTI64X4 $1, Z6, Y8
	VPMOVZXDQ Y8, Z8
	VPADDQ Z8, Z18, Z18

	VPANDD Z27, Z10, Z10
	VPANDD Z27, Z11, Z11
	VPCMPEQD Z29, Z9, K1
	VPCMPEQD Z28, Z10, K1, K1
	VPCMPUD $2, Z27, Z6, K1, K1
	VPCMPEQD Z26, Z11, K1, K2
	VPCMPUD $5, Z24, Z7, K2, K2
	VPCMPEQD Z25, Z11, K1, K3
	VPCMPUD $5, Z23, Z7, K3, K3
	KORW K2, K3, K4

	MOVQ lane4+40(FP), DX
	LIST(K2, DX, SI)
	MOVQ lane6+48(FP), DX
	LIST(K3, DX, DI)
	KORTESTW K4, K4
	JCS  next
	KNOTW K4, K4
	MOVQ odd+56(FP), DX
	LIST(K4, DX, R13)

next:
	VPADDD Z21, Z30, Z30
	ADDQ $64, R8
	ADDQ $128, R9
	ADDQ $32, R10
	DECQ R14
	JNE  sixteen

	VEXTRACTI64X4 $1, Z18, Y0
	VPADDQ Y0, Y18, Y0
	VEXTRACTI128 $1, Y0, X1
	VPADDQ X1, X0, X0
	VPSRLDQ $8, X0, X1
	VPADDQ X1, X0, X0
	VMOVQ X0, AX
	MOVQ SI, n4+80(FP)
	MOVQ DI, n6+88(FP)
	MOVQ R13, x+96(FP)
	MOVQ AX, bytes+104(FP)
	VZEROUPPER
	RET
