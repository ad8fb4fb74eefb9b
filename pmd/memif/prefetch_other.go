//go:build !amd64

package memif

import "unsafe"

// prefetch does nothing: Go has no prefetch of its own.
func prefetch(desc unsafe.Pointer, pos, mask uint64, n int, base unsafe.Pointer, write bool) {}
