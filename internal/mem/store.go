package mem

import (
	"sync/atomic"
	"unsafe" // two neighbouring 16-bit entries stored as one aligned word
)

// Store16 publishes a 16-bit entry of a table outside the heap: what was written before is seen first. The other half of its
// aligned 32-bit word must belong to the same writer.
func Store16(p *uint16, v uint16) {
	at := uintptr(unsafe.Pointer(p))
	shift := (at & 2) * 8
	w := (*uint32)(unsafe.Add(unsafe.Pointer(p), -int(at&2)))
	atomic.StoreUint32(w, atomic.LoadUint32(w)&^(0xffff<<shift)|uint32(v)<<shift)
}
