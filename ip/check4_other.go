//go:build !amd64

package ip

import "unsafe" // the signature of the assembly

const vector4 = false

func plain4(base unsafe.Pointer, l3 *uintptr, length *uint16, lane *uint8, dst *uint32, n int) (done int, mask uint32) {
	panic("ip: no vectors")
}
