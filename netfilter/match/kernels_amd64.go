package match

import (
	"unsafe" // tables outside the heap, for assembly

	"golang.org/x/sys/cpu"
)

// wide512: the processor and the system have the AVX-512 instructions of the kernels.
var wide512 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512DQ && cpu.X86.HasBMI1 && cpu.X86.HasPOPCNT

// few32 writes to out, for positions 0 to n-1 and some beyond, the sum of what stands for the interval of the value in col and of sum.
//
//go:noescape
func few32(col, sum, out *Column, keys unsafe.Pointer, nkeys int, vals unsafe.Pointer, n int)

// tree32 does it for the n positions of a lane by a tree of two levels or more.
//
//go:noescape
func tree32(col, sum, out *Column, lane *uint8, n int, level *unsafe.Pointer, levels int, vals unsafe.Pointer)

// wide64 writes to out how many keys of a tree are below values of 64 bits.
//
//go:noescape
func wide64(hi, lo, out *Column, lane *uint8, n int, level *unsafe.Pointer, levels int)

// combine32 replaces places in combo by what stands there.
//
//go:noescape
func combine32(combo unsafe.Pointer, off *Column, lane *uint8, n int)

// and2, and3 and and4 write the first bit that is set in as many rows of 1, 2, 4 or 8 lines, at offsets in consecutive columns.
//
//go:noescape
func and2(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int)

//go:noescape
func and3(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int)

//go:noescape
func and4(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int)
