package packet

import (
	"encoding/binary"
	"math/bits"
	"unsafe" // headers, no further than the n bytes that a caller vouches for
)

// FlowSeed is the seed of Mix, and of a Hasher without one of its own. It is set once, before the
// first packet.
var FlowSeed uint64 = 0x2d358dccaa6c78a5

const (
	mix0 = 0x8bb84b93962eacc9
	mix1 = 0x4b33a62ed433d4a3
)

// Mix hashes two words by two folded 64x64-bit multiplications, as wyhash does.
func Mix(a, b uint64) uint32 { return MixBy(FlowSeed, a, b) }

// MixBy is Mix with a seed. Routers in a row must have different seeds: by equal ones each would see
// only flows that hash alike, and send all of them the same way (polarisation).
func MixBy(seed, a, b uint64) uint32 {
	hi, lo := bits.Mul64(a^seed, b^mix0)
	hi, lo = bits.Mul64(hi^mix1, lo^seed)
	return uint32(hi ^ lo)
}

// FlowHash4 hashes the flow of the IPv4 packet at p, of which n bytes lie in one piece:
// addresses and protocol, and ports (or ESP's SPI) where the packet is
// no fragment and its header has no options. The directions of a flow hash differently.
//
// A loop that must not call writes it as MixBy(seed, *(*uint64)(unsafe.Add(p, 12)), Ports4(p, n)):
// both parts are inlined, the whole is too large to be.
func FlowHash4(seed uint64, p unsafe.Pointer, n uint16) uint32 {
	return MixBy(seed, *(*uint64)(unsafe.Add(p, 12)), Ports4(p, n))
}

// Ports4 is what of a flow is not addresses: see FlowHash4.
func Ports4(p unsafe.Pointer, n uint16) uint64 {
	proto := *(*uint8)(unsafe.Add(p, 9))
	x := uint64(proto)
	if n >= 24 && *(*uint8)(p) == 0x45 && *(*uint16)(unsafe.Add(p, 6))&notFrag4 == 0 {
		x |= uint64(*(*uint32)(unsafe.Add(p, 20))&portMask[proto]) << 32
	}
	return x
}

// notFrag4 is MF and the offset, as a native load sees them.
var notFrag4 = uint16(mem16(IPv4MF | IPv4OffMask))

// label6 is the flow label, as a native load of the first word sees it.
var label6 = binary.NativeEndian.Uint32([]byte{0, 0x0f, 0xff, 0xff})

// FlowHash6 is FlowHash4 for IPv6: addresses and flow label where the sender has set one
// (RFC 6438), which keeps fragments and headers with extensions on the way of their
// flow; else addresses, next header and ports. Its inlined form is Mix6(seed, p, Ports6(p, n)).
func FlowHash6(seed uint64, p unsafe.Pointer, n uint16) uint32 { return Mix6(seed, p, Ports6(p, n)) }

// Ports6 is what of a flow is not addresses: see FlowHash6.
func Ports6(p unsafe.Pointer, n uint16) uint64 {
	x := uint64(*(*uint32)(p) & label6)
	if x == 0 {
		x = uint64(*(*uint8)(unsafe.Add(p, 6)))
		if n >= 44 {
			x |= uint64(*(*uint32)(unsafe.Add(p, 40))&portMask[uint8(x)]) << 32
		}
	}
	return x
}

// Mix6 hashes the addresses of the IPv6 header at p with x.
func Mix6(seed uint64, p unsafe.Pointer, x uint64) uint32 {
	hi, lo := bits.Mul64(*(*uint64)(unsafe.Add(p, 8))^seed, *(*uint64)(unsafe.Add(p, 16))^mix0)
	h2, l2 := bits.Mul64(*(*uint64)(unsafe.Add(p, 24))^mix1, *(*uint64)(unsafe.Add(p, 32))^seed)
	hi, lo = bits.Mul64(hi^lo^x, h2^l2^x<<17^mix0)
	return uint32(hi ^ lo)
}

// SymHash4 is FlowHash4 without direction: both directions of a flow hash
// alike, for ways and cores that are to see whole connections.
func SymHash4(seed uint64, p unsafe.Pointer, n uint16) uint32 {
	proto := *(*uint8)(unsafe.Add(p, 9))
	x, y := uint64(proto), uint64(0)
	if n >= 24 && *(*uint8)(p) == 0x45 && *(*uint16)(unsafe.Add(p, 6))&notFrag4 == 0 && hasPorts(proto) {
		x, y = symPorts(x, unsafe.Add(p, 20))
	}
	return symMix4(seed, p, x, y)
}

func symMix4(seed uint64, p unsafe.Pointer, x, y uint64) uint32 {
	s, d := *(*uint32)(unsafe.Add(p, 12)), *(*uint32)(unsafe.Add(p, 16))
	return MixBy(seed, uint64(min(s, d))<<32|uint64(max(s, d)), x^y<<40)
}

// SymHash6 is SymHash4 for IPv6. It leaves out flow labels, which differ by direction.
func SymHash6(seed uint64, p unsafe.Pointer, n uint16) uint32 {
	x, y := uint64(*(*uint8)(unsafe.Add(p, 6))), uint64(0)
	if n >= 44 && hasPorts(uint8(x)) {
		x, y = symPorts(x, unsafe.Add(p, 40))
	}
	return symMix6(seed, p, x, y)
}

func symMix6(seed uint64, p unsafe.Pointer, x, y uint64) uint32 {
	hi, lo := bits.Mul64(*(*uint64)(unsafe.Add(p, 8))^seed, *(*uint64)(unsafe.Add(p, 16))^mix0)
	h2, l2 := bits.Mul64(*(*uint64)(unsafe.Add(p, 24))^seed, *(*uint64)(unsafe.Add(p, 32))^mix0)
	s, d := hi^lo, h2^l2
	return MixBy(seed, min(s, d)^x, max(s, d)^y<<40)
}

func symPorts(x uint64, p unsafe.Pointer) (uint64, uint64) {
	s, d := *(*uint16)(p), *(*uint16)(unsafe.Add(p, 2))
	return x | uint64(s^d)<<16, uint64(s) + uint64(d)
}

// HashFields says what of a packet names its flow.
type HashFields uint8

const (
	HashL4    HashFields = iota // addresses, protocol and ports, or IPv6's flow label: FlowHash4, FlowHash6
	HashL3                      // addresses
	HashInner                   // as HashL4, of the packet in a tunnel where there is one: see Inner
)

// Hasher hashes flows by what the operator chose.
type Hasher struct {
	Fields    HashFields
	Symmetric bool // both directions of a flow hash alike
	Seed      uint64
}

// Hash4 hashes the IPv4 packet at p, of which n bytes lie in one piece: the header at least.
func (h *Hasher) Hash4(p unsafe.Pointer, n uint16) uint32 {
	if h.Fields == HashInner {
		var v6 bool
		if p, n, v6 = Inner(p, n, false); v6 {
			return h.flow6(p, n)
		}
	}
	return h.flow4(p, n)
}

// Hash6 is Hash4 for IPv6.
func (h *Hasher) Hash6(p unsafe.Pointer, n uint16) uint32 {
	if h.Fields == HashInner {
		var v6 bool
		if p, n, v6 = Inner(p, n, true); !v6 {
			return h.flow4(p, n)
		}
	}
	return h.flow6(p, n)
}

func (h *Hasher) flow4(p unsafe.Pointer, n uint16) uint32 {
	switch {
	case h.Fields == HashL3 && h.Symmetric:
		return symMix4(h.Seed, p, 0, 0)
	case h.Fields == HashL3:
		return MixBy(h.Seed, *(*uint64)(unsafe.Add(p, 12)), 0)
	case h.Symmetric:
		return SymHash4(h.Seed, p, n)
	}
	return FlowHash4(h.Seed, p, n)
}

func (h *Hasher) flow6(p unsafe.Pointer, n uint16) uint32 {
	switch {
	case h.Fields == HashL3 && h.Symmetric:
		return symMix6(h.Seed, p, 0, 0)
	case h.Fields == HashL3:
		return Mix6(h.Seed, p, 0)
	case h.Symmetric:
		return SymHash6(h.Seed, p, n)
	}
	return FlowHash6(h.Seed, p, n)
}

// Key hashes the flow that a key names, as its packets without tunnel and extension headers hash.
// Addresses of different families are none's.
func (h *Hasher) Key(k FlowKey) uint32 {
	var b [IPv6Size + 4]byte
	if k.Dst.Is4() {
		IPv4(b[:]).Init(k.Src.As4(), k.Dst.As4(), k.Proto, 4)
		binary.BigEndian.PutUint16(b[IPv4Size:], k.SrcPort)
		binary.BigEndian.PutUint16(b[IPv4Size+2:], k.DstPort)
		return h.flow4(unsafe.Pointer(&b), IPv4Size+4)
	}
	IPv6(b[:]).Init(k.Src.As16(), k.Dst.As16(), k.Proto, 4)
	binary.BigEndian.PutUint32(b[:], 6<<28|k.Label&0xfffff)
	binary.BigEndian.PutUint16(b[IPv6Size:], k.SrcPort)
	binary.BigEndian.PutUint16(b[IPv6Size+2:], k.DstPort)
	return h.flow6(unsafe.Pointer(&b), IPv6Size+4)
}

const (
	vxlanPort  = 4789
	greBits    = 0xb0 // of the first byte: checksum, key, sequence number
	greOthers  = 0x4f // routing, source route, recursion: RFC 1701 only
	etherIPv4  = 0x0800
	etherIPv6  = 0x86dd
	etherBits  = 0x6558 // GRE: transparent Ethernet bridging
	vxlanFlagI = 0x08
)

// Inner is the IP packet that the one at p, of which n bytes lie in one piece, carries: in
// IP (RFC 2003, 2473, 4213), GRE (RFC 2784, 2890) or VXLAN (RFC 7348); untagged inside the last two. It is
// the packet itself where there is none, where the inner header is not in the piece, and for
// fragments, whose later ones have nothing of it. IPv4 options and IPv6 extension headers end the search.
func Inner(p unsafe.Pointer, n uint16, v6 bool) (q unsafe.Pointer, m uint16, is6 bool) {
	b := unsafe.Slice((*byte)(p), n)
	var proto uint8
	switch {
	case !v6 && n >= IPv4Size && b[0] == 0x45 && be16(b[6:])&(IPv4MF|IPv4OffMask) == 0:
		proto, b = b[9], b[IPv4Size:]
	case v6 && n >= IPv6Size:
		proto, b = b[6], b[IPv6Size:]
	default:
		return p, n, v6
	}
	ether := uint16(0)
	switch proto {
	case ProtoIPIP:
		ether = etherIPv4
	case ProtoIPv6:
		ether = etherIPv6
	case ProtoGRE:
		if len(b) < 4 || b[0]&greOthers != 0 || b[1]&7 != 0 {
			return p, n, v6
		}
		ether = be16(b[2:])
		skip := 4 + 4*bits.OnesCount8(b[0]&greBits)
		b = b[min(skip, len(b)):]
	case ProtoUDP:
		if len(b) < 16 || be16(b[2:]) != vxlanPort || b[8]&vxlanFlagI == 0 {
			return p, n, v6
		}
		ether, b = etherBits, b[16:]
	}
	if ether == etherBits && len(b) >= EtherSize {
		ether, b = be16(b[12:]), b[EtherSize:]
	}
	switch {
	case ether == etherIPv4 && len(b) >= IPv4Size && b[0]>>4 == 4:
		return unsafe.Pointer(&b[0]), uint16(len(b)), false
	case ether == etherIPv6 && len(b) >= IPv6Size && b[0]>>4 == 6:
		return unsafe.Pointer(&b[0]), uint16(len(b)), true
	}
	return p, n, v6
}
