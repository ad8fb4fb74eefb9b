//go:build !amd64

package lpm

import "unsafe" // the signatures of the assembly

const gather4 = false

// prefetch24 does nothing on this architecture: Go has no prefetch of its own.
func prefetch24(tbl unsafe.Pointer, dst *uint32, n int) {}

func gather24(tbl unsafe.Pointer, short *[1 << shortBits]uint32, dst *uint32, out *uint16, n int) uint32 {
	panic("lpm: no gather")
}
