package mem

import (
	"fmt"
	"unsafe" // addresses of mappings, which the collector does not know

	"golang.org/x/sys/unix"
)

// Lazy maps n values of T, which must be free of Go pointers: all zero, in small pages that take memory once
// they are written, each for itself. It is for large tables of which little may be used.
// Where the system lets no one have more address space than memory (vm.overcommit_memory=2), n counts in full.
func Lazy[T any](n int) ([]T, error) {
	var t T
	size := n * int(unsafe.Sizeof(t))
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mem: map %d MiB of address space: %w", size>>20, err)
	}
	unix.Madvise(unsafe.Slice((*byte)(p), size), unix.MADV_NOHUGEPAGE) // a kernel without huge pages refuses, and need not be told
	return unsafe.Slice((*T)(p), n), nil
}

// FreeLazy gives memory from Lazy back.
func FreeLazy[T any](s []T) error {
	var t T
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(s)), uintptr(len(s)*int(unsafe.Sizeof(t))))
}
