package lpm

import (
	"unsafe" // the table's memory, and arrays of n elements, none of which the kernels keep

	"golang.org/x/sys/cpu"
)

// vector6 says that lines are looked through by AVX-512.
var vector6 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW && cpu.X86.HasBMI2 && cpu.X86.HasPOPCNT

// start6 writes the directory's entries and the first keys of n destinations to at and key; any is the entries or-ed.
//
//go:noescape
func start6(dir unsafe.Pointer, dst *[16]byte, at, key *uint32, n int) (any uint32)

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
