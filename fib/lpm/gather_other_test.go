//go:build !amd64

package lpm

func noGather() func() { return func() {} }
