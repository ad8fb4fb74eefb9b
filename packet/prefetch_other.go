//go:build !amd64

package packet

// Prefetch does nothing on this architecture: Go has no prefetch of its own.
func Prefetch(idx []uint32) {}
