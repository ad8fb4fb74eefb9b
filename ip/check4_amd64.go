package ip

import (
	"unsafe" // headers, by their offset from base, for assembly

	"golang.org/x/sys/cpu"
)

// vector4: the processor and the system have the AVX-512 instructions of plain4.
var vector4 = cpu.X86.HasAVX512F && cpu.X86.HasAVX512BW

// plain4 judges the packets of a lane, 16 at a time, and writes their destinations in host order. It goes on as long as
// all 16 stand at consecutive positions and are plain: no options, TTL above 1, length as in the header, source not in strange4 and a good checksum.
// It returns how many packets those are, and of the next 16, where done is less than n, which are plain: 0 where they stand
// apart, else their destinations are written as well. n is a multiple of 16; l3 and length are by position.
//
//go:noescape
func plain4(base unsafe.Pointer, l3 *uintptr, length *uint16, lane *uint8, dst *uint32, n int) (done int, mask uint32)
