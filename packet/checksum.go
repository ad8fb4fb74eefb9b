package packet

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds the bytes of b to the partial Internet checksum s (RFC 1071), as 16-bit
// words in memory order, b's first byte being at an even place; an odd last byte
// counts as if a zero followed. Partial sums are added up by Add and finished by Fold.
func Sum(b []byte, s uint64) uint64 {
	var c uint64
	for len(b) >= 32 {
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b), 0)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[8:]), c)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[16:]), c)
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b[24:]), c)
		s += c
		b = b[32:]
	}
	for len(b) >= 8 {
		s, c = bits.Add64(s, binary.NativeEndian.Uint64(b), 0)
		s += c
		b = b[8:]
	}
	if len(b) == 0 {
		return s
	}
	var last [8]byte
	copy(last[:], b)
	s, c = bits.Add64(s, binary.NativeEndian.Uint64(last[:]), 0)
	return s + c
}

// Add adds two partial sums.
func Add(s, t uint64) uint64 {
	s, c := bits.Add64(s, t, 0)
	return s + c
}

// SumChain is Sum of the n bytes at offset off of the packet, over its segments; a
// packet that ends sooner counts up to its end.
func SumChain(m *Mbuf, off, n int, s uint64) uint64 {
	odd := false
	for ; m != nil && n > 0; m = m.NextSeg() {
		if off >= int(m.DataLen) {
			off -= int(m.DataLen)
			continue
		}
		b := m.Bytes()[off:]
		off = 0
		if len(b) > n {
			b = b[:n]
		}
		n -= len(b)
		t := Sum(b, 0)
		if odd { // times 256 modulo 2^64-1, and so modulo 2^16-1
			t = bits.RotateLeft64(t, 8)
		}
		s = Add(s, t)
		odd = odd != (len(b)&1 == 1)
	}
	return s
}

// Fold reduces a partial sum to 16 bits in memory order, not complemented: what a
// checksum that is right gives is 0xffff.
func Fold(s uint64) uint16 {
	s = s>>32 + s&0xffffffff
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return uint16(s)
}

// Checksum is the Internet checksum of b in memory order: a native store of it into
// the checksum field (see PutSum) finishes the header.
func Checksum(b []byte) uint16 { return ^Fold(Sum(b, 0)) }

// PutSum stores a checksum in memory order into the first two bytes of b.
func PutSum(b []byte, sum uint16) { binary.NativeEndian.PutUint16(b, sum) }

// GetSum reads a checksum in memory order.
func GetSum(b []byte) uint16 { return binary.NativeEndian.Uint16(b) }

// mem16 is the value that a native load finds where the big-endian number v lies.
func mem16(v uint16) uint64 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return uint64(binary.NativeEndian.Uint16(b[:]))
}

// Pseudo4 is the partial sum of IPv4's pseudo header for an upper-layer packet of
// n bytes (RFC 793, RFC 768).
func Pseudo4(src, dst [4]byte, proto uint8, n int) uint64 {
	return uint64(binary.NativeEndian.Uint32(src[:])) + uint64(binary.NativeEndian.Uint32(dst[:])) +
		mem16(uint16(proto)) + mem16(uint16(n))
}

// Pseudo6 is the partial sum of IPv6's pseudo header for an upper-layer packet of
// n bytes (RFC 8200 8.1).
func Pseudo6(src, dst [16]byte, proto uint8, n int) uint64 {
	return Sum(dst[:], Sum(src[:], mem16(uint16(proto))+mem16(uint16(n))+mem16(uint16(n>>16))))
}

// Update16 is the checksum after one 16-bit word under it changed (RFC 1624, equation
// 3): all three in memory order, or all three in host order. Like every
// difference it cannot tell 0 from 0xffff: where a stored 0 means that there is no
// checksum (UDP), store 0xffff for a result of 0.
func Update16(sum, from, to uint16) uint16 {
	s := uint32(^sum) + uint32(^from) + uint32(to)
	s = s>>16 + s&0xffff
	return ^uint16(s + s>>16)
}

// Update32 is Update16 for 32 bits at an even place.
func Update32(sum uint16, from, to uint32) uint16 {
	s := uint64(^sum) + uint64(^from) + uint64(to)
	return ^Fold(s)
}
