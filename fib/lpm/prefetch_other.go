//go:build !amd64

package lpm

import "unsafe"

// prefetch16 does nothing on this architecture: Go has no prefetch of its own.
func prefetch16(tbl unsafe.Pointer, dst *uint32, n int) {}
