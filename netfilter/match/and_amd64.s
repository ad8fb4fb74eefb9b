#include "textflag.h"

// The kernels take the packets of a lane, R13 to R14, whose rows lie at SI's offsets from R8. Which words have a bit that
// is set in all rows comes to CX, a bit for each. The first of these words is looked up again in all rows: its first bit is the
// answer. Of 0 bits the counting instructions make what is compared with none.

#define ARGS \
	MOVQ base+0(FP), R8;            \
	MOVQ off+8(FP), SI;             \
	MOVQ lane+16(FP), R13;          \
	MOVQ n+24(FP), R14;             \
	MOVQ out+32(FP), DI;            \
	ADDQ R13, R14;                  \
	MOVL $-1, R15

#define ROWS2 \
	MOVBLZX (R13), BX;              \
	MOVL (SI)(BX*4), AX;            \
	MOVL 1024(SI)(BX*4), DX;        \
	ADDQ R8, AX;                    \
	ADDQ R8, DX

#define ROWS3 \
	ROWS2;                          \
	MOVL 2048(SI)(BX*4), R12;       \
	ADDQ R8, R12

#define ROWS4 \
	ROWS3;                          \
	MOVL 3072(SI)(BX*4), R9;        \
	ADDQ R8, R9

#define LINE2(at, K) \
	VMOVDQU64 at(AX), Z0;           \
	VPTESTMQ at(DX), Z0, K

#define LINE3(at, K) \
	VMOVDQU64 at(AX), Z0;           \
	VPANDQ at(DX), Z0, Z0;          \
	VPTESTMQ at(R12), Z0, K

#define LINE4(at, K) \
	VMOVDQU64 at(AX), Z0;           \
	VPANDQ at(DX), Z0, Z0;          \
	VPANDQ at(R12), Z0, Z0;         \
	VPTESTMQ at(R9), Z0, K

#define WORDS1(LINE) \
	LINE(0, K1);                    \
	KMOVB K1, CX

#define WORDS2(LINE) \
	LINE(0, K1);                    \
	LINE(64, K2);                   \
	KUNPCKBW K1, K2, K1;            \
	KMOVW K1, CX

#define WORDS4(LINE) \
	LINE(0, K1);                    \
	LINE(64, K2);                   \
	LINE(128, K3);                  \
	LINE(192, K4);                  \
	KUNPCKBW K1, K2, K1;            \
	KUNPCKBW K3, K4, K3;            \
	KUNPCKWD K1, K3, K1;            \
	KMOVD K1, CX

#define WORDS8(LINE) \
	LINE(0, K1);                    \
	LINE(64, K2);                   \
	LINE(128, K3);                  \
	LINE(192, K4);                  \
	KUNPCKBW K1, K2, K1;            \
	KUNPCKBW K3, K4, K3;            \
	KUNPCKWD K1, K3, K1;            \
	LINE(256, K2);                  \
	LINE(320, K3);                  \
	LINE(384, K4);                  \
	LINE(448, K5);                  \
	KUNPCKBW K2, K3, K2;            \
	KUNPCKBW K4, K5, K4;            \
	KUNPCKWD K2, K4, K2;            \
	KUNPCKDQ K1, K2, K1;            \
	KMOVQ K1, CX

#define BIT2 \
	MOVQ (AX)(CX*8), AX;            \
	ANDQ (DX)(CX*8), AX

#define BIT3 \
	BIT2;                           \
	ANDQ (R12)(CX*8), AX

#define BIT4 \
	BIT3;                           \
	ANDQ (R9)(CX*8), AX

#define ANSWER(none) \
	TZCNTQ AX, AX;                  \
	SHLL $6, CX;                    \
	ADDL CX, AX;                    \
	CMPL CX, none;                  \
	CMOVLEQ R15, AX;                \
	MOVL AX, (DI)(BX*4);            \
	INCQ R13;                       \
	CMPQ R13, R14

// func and2(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int)
TEXT ·and2(SB), NOSPLIT, $0-48
	ARGS
	MOVQ lines+40(FP), AX
	CMPQ AX, $2
	JLT  one
	JEQ  two
	CMPQ AX, $4
	JEQ  four

eight:
	ROWS2
	WORDS8(LINE2)
	TZCNTQ CX, CX
	BIT2
	ANSWER($4096)
	JNE  eight
	VZEROUPPER
	RET

one:
	ROWS2
	WORDS1(LINE2)
	TZCNTL CX, CX
	BIT2
	ANSWER($2048)
	JNE  one
	VZEROUPPER
	RET

two:
	ROWS2
	WORDS2(LINE2)
	TZCNTL CX, CX
	BIT2
	ANSWER($2048)
	JNE  two
	VZEROUPPER
	RET

four:
	ROWS2
	WORDS4(LINE2)
	TZCNTL CX, CX
	BIT2
	ANSWER($2048)
	JNE  four
	VZEROUPPER
	RET

// func and3(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int)
TEXT ·and3(SB), NOSPLIT, $0-48
	ARGS
	MOVQ lines+40(FP), AX
	CMPQ AX, $2
	JLT  one
	JEQ  two
	CMPQ AX, $4
	JEQ  four

eight:
	ROWS3
	WORDS8(LINE3)
	TZCNTQ CX, CX
	BIT3
	ANSWER($4096)
	JNE  eight
	VZEROUPPER
	RET

one:
	ROWS3
	WORDS1(LINE3)
	TZCNTL CX, CX
	BIT3
	ANSWER($2048)
	JNE  one
	VZEROUPPER
	RET

two:
	ROWS3
	WORDS2(LINE3)
	TZCNTL CX, CX
	BIT3
	ANSWER($2048)
	JNE  two
	VZEROUPPER
	RET

four:
	ROWS3
	WORDS4(LINE3)
	TZCNTL CX, CX
	BIT3
	ANSWER($2048)
	JNE  four
	VZEROUPPER
	RET

// func and4(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int)
TEXT ·and4(SB), NOSPLIT, $0-48
	ARGS
	MOVQ lines+40(FP), AX
	CMPQ AX, $2
	JLT  one
	JEQ  two
	CMPQ AX, $4
	JEQ  four

eight:
	ROWS4
	WORDS8(LINE4)
	TZCNTQ CX, CX
	BIT4
	ANSWER($4096)
	JNE  eight
	VZEROUPPER
	RET

one:
	ROWS4
	WORDS1(LINE4)
	TZCNTL CX, CX
	BIT4
	ANSWER($2048)
	JNE  one
	VZEROUPPER
	RET

two:
	ROWS4
	WORDS2(LINE4)
	TZCNTL CX, CX
	BIT4
	ANSWER($2048)
	JNE  two
	VZEROUPPER
	RET

four:
	ROWS4
	WORDS4(LINE4)
	TZCNTL CX, CX
	BIT4
	ANSWER($2048)
	JNE  four
	VZEROUPPER
	RET
