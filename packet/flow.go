package packet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"unsafe" // headers, no further than the n bytes that a caller vouches for
)

// FlowKey names a flow: comparable, so that it serves as a map key. Ports are 0 for
// protocols without any and for fragments.
type FlowKey struct {
	Src, Dst         netip.Addr
	SrcPort, DstPort uint16
	Proto            uint8
	Label            uint32 // IPv6 flow label (RFC 6437); not part of the 5-tuple
}

// Reverse is the key of the opposite direction; labels are each direction's own.
func (k FlowKey) Reverse() FlowKey {
	return FlowKey{Src: k.Dst, Dst: k.Src, SrcPort: k.DstPort, DstPort: k.SrcPort, Proto: k.Proto}
}

// Key is the flow of the IP packet at offset l3off, over segments: for cold users.
// ok is false where there is no whole IP header; a packet without its upper-layer
// header has ports 0.
func Key(m *Mbuf, l3off int) (k FlowKey, ok bool) {
	var tmp [IPv6Size]byte
	b := m.View(l3off, 1, tmp[:])
	if b == nil {
		return k, false
	}
	off, first := 0, true
	switch b[0] >> 4 {
	case 4:
		b = m.View(l3off, IPv4Size, tmp[:])
		if b == nil || b[0]&15 < 5 {
			return k, false
		}
		h := IPv4(b)
		k.Src, k.Dst, k.Proto = netip.AddrFrom4(h.Src()), netip.AddrFrom4(h.Dst()), h.Proto()
		off, first = l3off+h.HeaderLen(), !h.IsFragment()
	case 6:
		b = m.View(l3off, IPv6Size, tmp[:])
		if b == nil {
			return k, false
		}
		h := IPv6(b)
		k.Src, k.Dst, k.Label = netip.AddrFrom16(h.Src()), netip.AddrFrom16(h.Dst()), h.Label()
		w, whole := WalkIPv6(m, l3off)
		k.Proto = w.Proto
		off, first = w.Off, whole && !w.HasFrag
	default:
		return k, false
	}
	if first && hasPorts(k.Proto) {
		if b = m.View(off, 4, tmp[:]); b != nil {
			k.SrcPort, k.DstPort = be16(b), be16(b[2:])
		}
	}
	return k, true
}

// hasPorts: protocols that start with two 16-bit ports.
func hasPorts(proto uint8) bool {
	switch proto {
	case ProtoTCP, ProtoUDP, ProtoDCCP, ProtoSCTP, ProtoUDPLite:
		return true
	}
	return false
}

// Protocols whose first four bytes name the flow, a bit each: those with ports, and ESP
// with its SPI. portsLow has 0 to 63, portsHigh 128 to 191.
const (
	portsLow  = 1<<ProtoTCP | 1<<ProtoUDP | 1<<ProtoDCCP | 1<<ProtoESP
	portsHigh = 1<<(ProtoSCTP-128) | 1<<(ProtoUDPLite-128)
)

// ported is 1 for protocols of portsLow and portsHigh: shifts of 64 and more give 0.
func ported(proto uint8) uint64 {
	return (uint64(portsLow)>>proto | uint64(portsHigh)>>(proto-128)) & 1
}

// FlowSeed enters every flow hash: routers in a row with equal seeds would all
// take the same turn (polarisation). It is set once, before the first packet.
var FlowSeed uint64 = 0x2d358dccaa6c78a5

const (
	mix0 = 0x8bb84b93962eacc9
	mix1 = 0x4b33a62ed433d4a3
)

// Mix hashes two words by two folded 64x64-bit multiplications, as wyhash does.
func Mix(a, b uint64) uint32 {
	hi, lo := bits.Mul64(a^FlowSeed, b^mix0)
	hi, lo = bits.Mul64(hi^mix1, lo^FlowSeed)
	return uint32(hi ^ lo)
}

// FlowHash4 hashes the flow of the IPv4 packet at p, of which n bytes lie in one piece:
// addresses and protocol, and ports (or ESP's SPI) where the packet is
// no fragment and its header has no options. The directions of a flow hash differently.
//
// A loop that must not call writes it as Mix(*(*uint64)(unsafe.Add(p, 12)), Ports4(p, n)):
// both parts are inlined, the whole is too large to be.
func FlowHash4(p unsafe.Pointer, n uint16) uint32 {
	return Mix(*(*uint64)(unsafe.Add(p, 12)), Ports4(p, n))
}

// Ports4 is what of a flow is not addresses: see FlowHash4.
func Ports4(p unsafe.Pointer, n uint16) uint64 {
	proto := *(*uint8)(unsafe.Add(p, 9))
	x := uint64(proto)
	if n >= 24 && *(*uint8)(p) == 0x45 && *(*uint16)(unsafe.Add(p, 6))&notFrag4 == 0 && ported(proto) != 0 {
		x |= uint64(*(*uint32)(unsafe.Add(p, 20))) << 32
	}
	return x
}

// notFrag4 is MF and the offset, as a native load sees them.
var notFrag4 = uint16(mem16(IPv4MF | IPv4OffMask))

// label6 is the flow label, as a native load of the first word sees it.
var label6 = binary.NativeEndian.Uint32([]byte{0, 0x0f, 0xff, 0xff})

// FlowHash6 is FlowHash4 for IPv6: addresses and flow label where the sender has set one
// (RFC 6438), which keeps fragments and headers with extensions on the way of their
// flow; else addresses, next header and ports. Its inlined form is Mix6(p, Ports6(p, n)).
func FlowHash6(p unsafe.Pointer, n uint16) uint32 { return Mix6(p, Ports6(p, n)) }

// Ports6 is what of a flow is not addresses: see FlowHash6.
func Ports6(p unsafe.Pointer, n uint16) uint64 {
	x := uint64(*(*uint32)(p) & label6)
	if x == 0 {
		x = uint64(*(*uint8)(unsafe.Add(p, 6)))
		if n >= 44 && ported(uint8(x)) != 0 {
			x |= uint64(*(*uint32)(unsafe.Add(p, 40))) << 32
		}
	}
	return x
}

// Mix6 hashes the addresses of the IPv6 header at p with x.
func Mix6(p unsafe.Pointer, x uint64) uint32 {
	hi, lo := bits.Mul64(*(*uint64)(unsafe.Add(p, 8))^FlowSeed, *(*uint64)(unsafe.Add(p, 16))^mix0)
	h2, l2 := bits.Mul64(*(*uint64)(unsafe.Add(p, 24))^mix1, *(*uint64)(unsafe.Add(p, 32))^FlowSeed)
	hi, lo = bits.Mul64(hi^lo^x, h2^l2^x<<17^mix0)
	return uint32(hi ^ lo)
}

// SymHash4 is FlowHash4 without direction: both directions of a flow hash
// alike, for spreading connections over cores.
func SymHash4(p unsafe.Pointer, n uint16) uint32 {
	s, d := *(*uint32)(unsafe.Add(p, 12)), *(*uint32)(unsafe.Add(p, 16))
	proto := *(*uint8)(unsafe.Add(p, 9))
	x, y := uint64(proto), uint64(0)
	if n >= 24 && *(*uint8)(p) == 0x45 && *(*uint16)(unsafe.Add(p, 6))&notFrag4 == 0 && hasPorts(proto) {
		x, y = symPorts(x, unsafe.Add(p, 20))
	}
	return Mix(uint64(min(s, d))<<32|uint64(max(s, d)), x^y<<40)
}

// SymHash6 is SymHash4 for IPv6. It leaves out flow labels, which differ by direction.
func SymHash6(p unsafe.Pointer, n uint16) uint32 {
	x, y := uint64(*(*uint8)(unsafe.Add(p, 6))), uint64(0)
	if n >= 44 && hasPorts(uint8(x)) {
		x, y = symPorts(x, unsafe.Add(p, 40))
	}
	hi, lo := bits.Mul64(*(*uint64)(unsafe.Add(p, 8))^FlowSeed, *(*uint64)(unsafe.Add(p, 16))^mix0)
	h2, l2 := bits.Mul64(*(*uint64)(unsafe.Add(p, 24))^FlowSeed, *(*uint64)(unsafe.Add(p, 32))^mix0)
	s, d := hi^lo, h2^l2
	return Mix(min(s, d)^x, max(s, d)^y<<40)
}

func symPorts(x uint64, p unsafe.Pointer) (uint64, uint64) {
	s, d := *(*uint16)(p), *(*uint16)(unsafe.Add(p, 2))
	return x | uint64(s^d)<<16, uint64(s) + uint64(d)
}
