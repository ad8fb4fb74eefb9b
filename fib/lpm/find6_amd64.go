package lpm

import (
	"unsafe" // the table's memory, and arrays of n elements, none of which the kernels keep

	"golang.org/x/sys/cpu"
)

// vector6 says that lines are looked through by AVX-512.
var vector6 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasBMI2 && cpu.X86.HasPOPCNT

// keys6 writes the places in the directory and the first keys of n destinations.
//
//go:noescape
func keys6(dst *[16]byte, place, key *uint32, n int)

// down6 takes n lanes from their places in the directory, in at, down three levels of fan-out lines, to offsets in units; it
// stops before a tall tree, and says how many lanes are left.
//
//go:noescape
func down6(dir, lines unsafe.Pointer, at, key *uint32, n int) (left int)

// walk6 takes n lanes down three levels of fan-out lines; at is in bytes before and in units behind.
//
//go:noescape
func walk6(lines unsafe.Pointer, at, key *uint32, n int)

// leaf6 writes the values of n lanes, def for 0; any is not 0 where some are deep.
//
//go:noescape
func leaf6(lines unsafe.Pointer, at, key *uint32, out *uint16, n int, def uint32) (any uint32)

// prefetch6 starts loading the lines at n offsets.
//
//go:noescape
func prefetch6(lines unsafe.Pointer, at *uint32, n int)
