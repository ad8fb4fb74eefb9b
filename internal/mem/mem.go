// Package mem maps memory outside the Go heap for packets, tables and
// counters, in the largest pages that the machine gives.
//
// Memory from here holds no Go pointers, is never moved and is invisible to
// the garbage collector and to the race detector: what is shared in it must be
// synchronised by its owner's stated rule.
package mem

import (
	"fmt"
	"os"
	"unsafe" // addresses of mappings, which the collector does not know

	"golang.org/x/sys/unix"
)

// Pages says what kind of pages back a mapping.
type Pages uint8

const (
	Plain Pages = iota // 4 KiB pages
	THP                // transparent huge pages were asked for
	Huge               // 2 MiB pages from the kernel's pool (vm.nr_hugepages)
)

func (p Pages) String() string {
	return [...]string{"4 KiB pages", "transparent huge pages", "2 MiB huge pages"}[p]
}

// HugeSize is the size of a huge page, and the granularity of Map.
const HugeSize = 2 << 20

// Map returns n bytes, rounded up to HugeSize, of zeroed memory: from the huge
// page pool where it has room, else as transparent huge pages, else plain.
// The memory is shared with the kernel as AF_XDP needs it, not with children.
func Map(n int) ([]byte, Pages, error) { return MapAt(nil, n) }

// MapAt is Map at a fixed address, which must lie inside a mapping made by
// Reserve and be a multiple of HugeSize; nil lets the kernel choose.
func MapAt(at unsafe.Pointer, n int) ([]byte, Pages, error) {
	n = (n + HugeSize - 1) &^ (HugeSize - 1)
	flags := unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
	// A fixed mapping that fails for lack of huge pages leaves a hole in the
	// reservation, into which any other thread may map, Go's runtime included. So huge
	// pages are asked for elsewhere first, and what fails in spite of that never goes over another's memory.
	fixed, again := 0, 0
	if at != nil {
		fixed, again = unix.MAP_FIXED, unix.MAP_FIXED
	}
	if at == nil || hugeLeft(n) {
		if p, err := mmap(at, n, flags|fixed|unix.MAP_HUGETLB|unix.MAP_POPULATE); err == nil {
			return unsafe.Slice((*byte)(p), n), Huge, nil
		}
		if at != nil {
			again = unix.MAP_FIXED_NOREPLACE
		}
	}
	p, err := mmap(at, n, flags|again)
	if err != nil {
		return nil, Plain, fmt.Errorf("mem: map %d MiB: %w", n>>20, err)
	}
	b := unsafe.Slice((*byte)(p), n)
	if unix.Madvise(b, unix.MADV_HUGEPAGE) == nil && thpAllowed() {
		return b, THP, nil
	}
	return b, Plain, nil
}

// hugeLeft reports whether the kernel's pool has n bytes in huge pages at the moment.
func hugeLeft(n int) bool {
	p, err := mmap(nil, n, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_HUGETLB)
	return err == nil && unix.MunmapPtr(p, uintptr(n)) == nil
}

// Reserve takes n bytes of address space without memory behind it, aligned to
// HugeSize, for MapAt.
func Reserve(n int) (unsafe.Pointer, error) {
	p, err := unix.MmapPtr(-1, 0, nil, uintptr(n+HugeSize), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("mem: reserve %d GiB of address space: %w", n>>30, err)
	}
	return unsafe.Add(p, -uintptr(p)&(HugeSize-1)), nil
}

// Unmap gives memory from Map back.
func Unmap(b []byte) error {
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(b)), uintptr(len(b)))
}

// Of maps memory for n values of T, which must be free of Go pointers.
func Of[T any](n int) ([]T, error) {
	var t T
	b, _, err := Map(n * int(unsafe.Sizeof(t)))
	if err != nil {
		return nil, err
	}
	return unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n), nil
}

// Free gives memory from Of back.
func Free[T any](s []T) error {
	var t T
	n := (len(s)*int(unsafe.Sizeof(t)) + HugeSize - 1) &^ (HugeSize - 1)
	return unix.MunmapPtr(unsafe.Pointer(unsafe.SliceData(s)), uintptr(n))
}

func mmap(at unsafe.Pointer, n, flags int) (unsafe.Pointer, error) {
	return unix.MmapPtr(-1, 0, at, uintptr(n), unix.PROT_READ|unix.PROT_WRITE, flags)
}

func thpAllowed() bool {
	b, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	return err == nil && string(b) != "always madvise [never]\n"
}

// Release gives the memory of a MapAt back and keeps its address space reserved.
func Release(at unsafe.Pointer, n int) error {
	_, err := unix.MmapPtr(-1, 0, at, uintptr(n), unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED)
	return err
}

// SmallAt is MapAt for memory of which little may be used: n bytes in plain pages, each of which takes
// memory when it is first written to.
func SmallAt(at unsafe.Pointer, n int) error {
	p, err := mmap(at, n, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE|unix.MAP_FIXED)
	if err != nil {
		return fmt.Errorf("mem: map %d KiB: %w", n>>10, err)
	}
	unix.Madvise(unsafe.Slice((*byte)(p), n), unix.MADV_NOHUGEPAGE) // where the kernel has none there is nothing to refuse
	return nil
}
