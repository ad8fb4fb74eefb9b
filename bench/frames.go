package bench

import (
	"encoding/binary"
	"math/rand/v2"
	"strings"

	"millrace/bench/bgp"
	"millrace/packet"
)

// ether4 is an IPv4 frame of size bytes to the router.
func ether4(mac [6]byte, size int, src, dst uint32) []byte {
	f := make([]byte, size)
	copy(f, mac[:])
	copy(f[6:], []byte{2, 0, 0, 0, 9, 9, 8, 0})
	h := packet.IPv4(f[14:34])
	var s, d [4]byte
	binary.BigEndian.PutUint32(s[:], src)
	binary.BigEndian.PutUint32(d[:], dst)
	h.Init(s, d, packet.ProtoUDP, size-14)
	h.SetTTL(255)
	h.SetSum()
	binary.BigEndian.PutUint16(f[34:], uint16(src))
	binary.BigEndian.PutUint16(f[36:], uint16(dst))
	return f
}

func ether6(mac [6]byte, size int, src, dst [16]byte) []byte {
	f := make([]byte, size)
	copy(f, mac[:])
	copy(f[6:], []byte{2, 0, 0, 0, 9, 9, 0x86, 0xdd})
	h := packet.IPv6(f[14:54])
	h.Init(src, dst, packet.ProtoUDP, size-54)
	h.SetHopLimit(255)
	return f
}

func source4(r *rand.Rand) uint32 { return 0x14000000 | r.Uint32()&0x3ffffff }

func size4(b *roadBed, r *rand.Rand, size int) []byte {
	return ether4(b.mac, size, source4(r), 0x0a010200|r.Uint32()&0xff)
}

func plain4(b *roadBed, r *rand.Rand) []byte { return size4(b, r, 64) }

func plain6(b *roadBed, r *rand.Rand) []byte {
	src, dst := [16]byte{0x20, 1, 0x0d, 0xb8, 0, 9}, [16]byte{0x20, 1, 0x0d, 0xb8, 0, 1}
	binary.BigEndian.PutUint64(src[8:], r.Uint64())
	binary.BigEndian.PutUint64(dst[8:], r.Uint64())
	return ether6(b.mac, 64, src, dst)
}

func mixed(b *roadBed, r *rand.Rand) []byte {
	if r.IntN(2) == 0 {
		return plain6(b, r)
	}
	return plain4(b, r)
}

// imix is the simple IMIX: 64, 594 and 1518 bytes, seven to four to one (with FCS).
func imix(b *roadBed, r *rand.Rand) []byte {
	switch n := r.IntN(12); {
	case n < 7:
		return size4(b, r, 64)
	case n < 11:
		return size4(b, r, 590)
	}
	return size4(b, r, 1514)
}

// exits is plain IPv4 of which 5 % leave the road: a third each with a bad checksum, with TTL 1, and
// without a route.
func exits(b *roadBed, r *rand.Rand) []byte {
	f := plain4(b, r)
	if r.IntN(20) == 0 {
		h := packet.IPv4(f[14:34])
		switch r.IntN(3) {
		case 0:
			f[24] ^= 0x55
		case 1:
			h.SetTTL(1)
			h.SetSum()
		case 2:
			h.SetDst([4]byte{203, 0, 113, byte(r.Uint32())})
			h.SetSum()
		}
	}
	return f
}

// full4 goes to random addresses within the prefixes of the table.
func full4(b *roadBed, r *rand.Rand) []byte {
	return ether4(b.mac, 64, source4(r), bgp.From[uint32](bgp.Inside(b.table[r.IntN(len(b.table))], r)))
}

// full6 is full4 for IPv6.
func full6(b *roadBed, r *rand.Rand) []byte {
	src := [16]byte{0x20, 1, 0x0d, 0xb8, 0, 9}
	binary.BigEndian.PutUint64(src[8:], r.Uint64())
	return ether6(b.mac, 64, src, bgp.Inside(b.table[r.IntN(len(b.table))], r).As16())
}

func match(name, filter string) bool { return strings.Contains(name, filter) }

func scale(v []float64, by float64) []float64 {
	o := make([]float64, len(v))
	for i := range v {
		o[i] = v[i] * by
	}
	return o
}
