#include "textflag.h"

// What stands in a tree's node is compared with a value in Z0: how many of its keys are below comes to CX.
#define BELOW32(node) \
	VPCMPUD $6, node, Z0, K1;       \
	KMOVW K1, CX;                   \
	POPCNTL CX, CX

// From byte AX of a level to that of the child CX in the next: 64 * (17*i + c).
#define CHILD17 \
	MOVL AX, DX;                    \
	SHLL $4, DX;                    \
	ADDL DX, AX;                    \
	SHLL $6, CX;                    \
	ADDL CX, AX

// func few32(col, sum, out *Column, keys unsafe.Pointer, nkeys int, vals unsafe.Pointer, n int)
TEXT ·few32(SB), NOSPLIT, $0-56
	MOVQ col+0(FP), SI
	MOVQ sum+8(FP), BX
	MOVQ out+16(FP), DI
	MOVQ keys+24(FP), R8
	MOVQ nkeys+32(FP), R9
	MOVQ vals+40(FP), R10
	MOVQ n+48(FP), R11
	VMOVDQU32 (R10), Z30
	VMOVDQU32 64(R10), Z31
	VPTERNLOGD $0xff, Z29, Z29, Z29 // -1
	LEAQ (R8)(R9*4), R9
	XORL DX, DX

group:
	VMOVDQU32 (SI)(DX*4), Z0
	VMOVDQU32 64(SI)(DX*4), Z1
	VPXORD Z2, Z2, Z2
	VPXORD Z3, Z3, Z3
	MOVQ R8, AX
	CMPQ AX, R9
	JEQ  ranked

key:
	VPCMPUD.BCST $6, (AX), Z0, K1
	VPCMPUD.BCST $6, (AX), Z1, K2
	VPSUBD Z29, Z2, K1, Z2
	VPSUBD Z29, Z3, K2, Z3
	ADDQ $4, AX
	CMPQ AX, R9
	JNE  key

ranked:
	VPERMI2D Z31, Z30, Z2
	VPERMI2D Z31, Z30, Z3
	VPADDD (BX)(DX*4), Z2, Z2
	VPADDD 64(BX)(DX*4), Z3, Z3
	VMOVDQU32 Z2, (DI)(DX*4)
	VMOVDQU32 Z3, 64(DI)(DX*4)
	ADDQ $32, DX
	CMPQ DX, R11
	JLT  group
	VZEROUPPER
	RET

// func tree32(col, sum, out *Column, lane *uint8, n int, level *unsafe.Pointer, levels int, vals unsafe.Pointer)
TEXT ·tree32(SB), NOSPLIT, $0-64
	MOVQ col+0(FP), SI
	MOVQ sum+8(FP), R15
	MOVQ out+16(FP), DI
	MOVQ lane+24(FP), R13
	MOVQ n+32(FP), R14
	MOVQ level+40(FP), R8
	MOVQ levels+48(FP), R9
	MOVQ vals+56(FP), R10
	ADDQ R13, R14                   // the lane's end
	MOVQ (R8), AX
	VMOVDQU32 (AX), Z31             // the root
	MOVQ -8(R8)(R9*8), R11          // leaves
	CMPQ R9, $2
	JEQ  two
	MOVQ 8(R8), R12
	CMPQ R9, $3
	JEQ  three
	LEAQ -8(R8)(R9*8), R9           // the last level but the leaves ends here
	ADDQ $8, R8

more:
	MOVBLZX (R13), BX
	VPBROADCASTD (SI)(BX*4), Z0
	BELOW32(Z31)
	SHLL $6, CX
	MOVL CX, AX
	MOVQ R8, R12

level:
	MOVQ (R12), DX
	BELOW32((DX)(AX*1))
	CHILD17
	ADDQ $8, R12
	CMPQ R12, R9
	JNE  level
	BELOW32((R11)(AX*1))
	SHRL $2, AX
	ADDL CX, AX
	MOVL (R10)(AX*4), AX
	ADDL (R15)(BX*4), AX
	MOVL AX, (DI)(BX*4)
	INCQ R13
	CMPQ R13, R14
	JNE  more
	VZEROUPPER
	RET

two:
	MOVBLZX (R13), BX
	VPBROADCASTD (SI)(BX*4), Z0
	BELOW32(Z31)
	MOVL CX, AX
	SHLL $6, CX
	SHLL $4, AX
	BELOW32((R11)(CX*1))
	ADDL CX, AX
	MOVL (R10)(AX*4), AX
	ADDL (R15)(BX*4), AX
	MOVL AX, (DI)(BX*4)
	INCQ R13
	CMPQ R13, R14
	JNE  two
	VZEROUPPER
	RET

three:
	MOVBLZX (R13), BX
	VPBROADCASTD (SI)(BX*4), Z0
	BELOW32(Z31)
	SHLL $6, CX
	MOVL CX, AX
	BELOW32((R12)(AX*1))
	CHILD17
	BELOW32((R11)(AX*1))
	SHRL $2, AX
	ADDL CX, AX
	MOVL (R10)(AX*4), AX
	ADDL (R15)(BX*4), AX
	MOVL AX, (DI)(BX*4)
	INCQ R13
	CMPQ R13, R14
	JNE  three
	VZEROUPPER
	RET

// func wide64(hi, lo, out *Column, lane *uint8, n int, level *unsafe.Pointer, levels int)
TEXT ·wide64(SB), NOSPLIT, $0-56
	MOVQ hi+0(FP), SI
	MOVQ lo+8(FP), R15
	MOVQ out+16(FP), DI
	MOVQ lane+24(FP), R13
	MOVQ n+32(FP), R14
	MOVQ level+40(FP), R8
	MOVQ levels+48(FP), R9
	ADDQ R13, R14
	LEAQ (R8)(R9*8), R9

packet:
	MOVBLZX (R13), BX
	MOVL (SI)(BX*4), AX
	MOVL (R15)(BX*4), DX
	SHLQ $32, AX
	ORQ  DX, AX
	VPBROADCASTQ AX, Z0
	XORL AX, AX                     // 8 * the node's number
	MOVQ R8, R12

down:
	MOVQ (R12), DX
	VPCMPUQ $6, (DX)(AX*8), Z0, K1
	KMOVB K1, CX
	POPCNTL CX, CX
	LEAQ (AX)(CX*1), DX             // at the leaves
	SHLL $3, CX
	LEAQ (AX)(AX*8), AX
	ADDQ CX, AX
	ADDQ $8, R12
	CMPQ R12, R9
	JNE  down
	MOVL DX, (DI)(BX*4)
	INCQ R13
	CMPQ R13, R14
	JNE  packet
	VZEROUPPER
	RET

// func combine32(combo unsafe.Pointer, off *Column, lane *uint8, n int)
TEXT ·combine32(SB), NOSPLIT, $0-32
	MOVQ combo+0(FP), R8
	MOVQ off+8(FP), SI
	MOVQ lane+16(FP), R13
	MOVQ n+24(FP), R14
	ADDQ R13, R14

one:
	MOVBLZX (R13), BX
	MOVL (SI)(BX*4), AX
	MOVL (R8)(AX*4), AX
	MOVL AX, (SI)(BX*4)
	INCQ R13
	CMPQ R13, R14
	JNE  one
	RET
