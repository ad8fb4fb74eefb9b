package memif

import "unsafe"

// prefetch loads the first line of the buffers of n descriptors from pos on, as if all
// were in the region at base.
//
//go:noescape
func prefetch(desc unsafe.Pointer, pos, mask uint64, n int, base unsafe.Pointer, write bool)
