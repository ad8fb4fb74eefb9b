//go:build !amd64

package pipeline

import "unsafe" // the signature of the assembly

const vectors = false

func demux16(base unsafe.Pointer, mac uint64, idx *uint32, l3 *uintptr, length *uint16, lane4, lane6, odd *uint8, n, ahead int) (n4, n6, x int, bytes uint64) {
	panic("pipeline: no vectors")
}
