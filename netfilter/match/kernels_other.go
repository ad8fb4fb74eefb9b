//go:build !amd64

package match

import "unsafe" // the signatures of the assembly

var wide512 = false

func few32(col, sum, out *Column, keys unsafe.Pointer, nkeys int, vals unsafe.Pointer, n int) {
	panic(noKernel)
}

func tree32(col, sum, out *Column, lane *uint8, n int, level *unsafe.Pointer, levels int, vals unsafe.Pointer) {
	panic(noKernel)
}

func wide64(hi, lo, out *Column, lane *uint8, n int, level *unsafe.Pointer, levels int) {
	panic(noKernel)
}

func combine32(combo unsafe.Pointer, off *Column, lane *uint8, n int) { panic(noKernel) }

func and2(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int) {
	panic(noKernel)
}

func and3(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int) {
	panic(noKernel)
}

func and4(base unsafe.Pointer, off *Column, lane *uint8, n int, out *Column, lines int) {
	panic(noKernel)
}

const noKernel = "match: no kernels"
