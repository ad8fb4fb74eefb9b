package lpm

import "unsafe"

// prefetch16 starts loading the entries of a table of 16-bit values that the upper 24 bits of
// n destinations pick.
//
//go:noescape
func prefetch16(tbl unsafe.Pointer, dst *uint32, n int)
