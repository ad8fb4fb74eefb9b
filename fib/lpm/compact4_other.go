//go:build !amd64

package lpm

import "unsafe" // the signatures of the assembly

func gather19(nodes, leaves unsafe.Pointer, short *[1 << shortBits]uint32, dst *uint32, out *uint16, n int, spread bool) uint32 {
	panic("lpm: no gather")
}

// prefetch19 does nothing on this architecture: Go has no prefetch of its own.
func prefetch19(nodes unsafe.Pointer, dst *uint32, n int) {}
