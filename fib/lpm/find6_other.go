//go:build !amd64

package lpm

import "unsafe"

var vector6 = false

func keys6(dst *[16]byte, place, key *uint32, n int) { panic("unreachable") }

func down6(dir, lines unsafe.Pointer, at, key *uint32, n int) (left int) { panic("unreachable") }

func walk6(lines unsafe.Pointer, at, key *uint32, n int) { panic("unreachable") }

func leaf6(lines unsafe.Pointer, at, key *uint32, out *uint16, n int, def uint32) (any uint32) {
	panic("unreachable")
}

func prefetch6(lines unsafe.Pointer, at *uint32, n int) {}
