package lpm

import (
	"unsafe" // tables, for assembly

	"golang.org/x/sys/cpu"
)

// gather4: the processor and the system have the AVX-512 instructions of the IPv4 kernels.
var gather4 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasAVX512VPOPCNTDQ

// prefetch24 starts loading the entries of n destinations in tbl24. It does nothing where the first 16 are the same: a
// stream to one destination needs none.
//
//go:noescape
func prefetch24(tbl unsafe.Pointer, dst *uint32, n int)

// gather24 writes the entries in tbl24 of n destinations, at least 16, and short prefixes' values where they are 0. It returns all
// of them OR-ed.
//
//go:noescape
func gather24(tbl unsafe.Pointer, short *[1 << shortBits]uint32, dst *uint32, out *uint16, n int) uint32
