package packet

// IP protocol numbers and IPv6 next headers.
const (
	ProtoHopByHop = 0
	ProtoICMP     = 1
	ProtoIGMP     = 2
	ProtoIPIP     = 4
	ProtoTCP      = 6
	ProtoUDP      = 17
	ProtoDCCP     = 33
	ProtoIPv6     = 41
	ProtoRouting  = 43
	ProtoFragment = 44
	ProtoGRE      = 47
	ProtoESP      = 50
	ProtoAH       = 51
	ProtoICMPv6   = 58
	ProtoNoNext   = 59
	ProtoDstOpts  = 60
	ProtoOSPF     = 89
	ProtoPIM      = 103
	ProtoVRRP     = 112
	ProtoSCTP     = 132
	ProtoMobility = 135
	ProtoUDPLite  = 136
	ProtoMPLS     = 137
)

const (
	// IPv4Size is the length of an IPv4 header without options.
	IPv4Size = 20
	// IPv6Size is the length of the IPv6 header.
	IPv6Size = 40
)

// IPv4 flags, as they stand in the 16-bit word with the fragment offset.
const (
	IPv4DF      = 0x4000
	IPv4MF      = 0x2000
	IPv4OffMask = 0x1fff // in units of 8 bytes
)

// IPv4 is a view of an IPv4 header (RFC 791): at least IPv4Size bytes.
type IPv4 []byte

func (h IPv4) Version() uint8       { return h[0] >> 4 }
func (h IPv4) HeaderLen() int       { return int(h[0]&15) * 4 }
func (h IPv4) TOS() uint8           { return h[1] }
func (h IPv4) TotalLen() int        { return int(be16(h[2:])) }
func (h IPv4) ID() uint16           { return be16(h[4:]) }
func (h IPv4) FlagsOff() uint16     { return be16(h[6:]) }
func (h IPv4) FragOff() int         { return int(be16(h[6:])&IPv4OffMask) * 8 } // bytes
func (h IPv4) IsFragment() bool     { return be16(h[6:])&(IPv4MF|IPv4OffMask) != 0 }
func (h IPv4) TTL() uint8           { return h[8] }
func (h IPv4) Proto() uint8         { return h[9] }
func (h IPv4) Src() [4]byte         { return [4]byte(h[12:16]) }
func (h IPv4) Dst() [4]byte         { return [4]byte(h[16:20]) }
func (h IPv4) SetTOS(v uint8)       { h[1] = v }
func (h IPv4) SetTotalLen(n int)    { put16(h[2:], uint16(n)) }
func (h IPv4) SetID(v uint16)       { put16(h[4:], v) }
func (h IPv4) SetFlagsOff(v uint16) { put16(h[6:], v) }
func (h IPv4) SetTTL(v uint8)       { h[8] = v }
func (h IPv4) SetSrc(a [4]byte)     { copy(h[12:16], a[:]) }
func (h IPv4) SetDst(a [4]byte)     { copy(h[16:20], a[:]) }

// Valid reports whether h holds a whole header, options included.
func (h IPv4) Valid() bool {
	return len(h) >= IPv4Size && h[0]>>4 == 4 && h[0]&15 >= 5 && len(h) >= h.HeaderLen()
}

// SumOK verifies the header's checksum.
func (h IPv4) SumOK() bool { return Fold(Sum(h[:h.HeaderLen()], 0)) == 0xffff }

// SetSum computes and stores the header's checksum.
func (h IPv4) SetSum() {
	h[10], h[11] = 0, 0
	PutSum(h[10:], Checksum(h[:h.HeaderLen()]))
}

// Pseudo is the pseudo header's partial sum for an upper-layer packet of n bytes.
func (h IPv4) Pseudo(n int) uint64 { return Pseudo4(h.Src(), h.Dst(), h.Proto(), n) }

// Init writes a header without options, with TTL 64, and leaves the checksum 0.
func (h IPv4) Init(src, dst [4]byte, proto uint8, totalLen int) {
	h[0], h[1] = 0x45, 0
	put16(h[2:], uint16(totalLen))
	put32(h[4:], 0)
	h[8], h[9] = 64, proto
	put16(h[10:], 0)
	h.SetSrc(src)
	h.SetDst(dst)
}

// IPv6 is a view of an IPv6 header (RFC 8200): at least IPv6Size bytes.
type IPv6 []byte

func (h IPv6) Version() uint8      { return h[0] >> 4 }
func (h IPv6) Class() uint8        { return h[0]<<4 | h[1]>>4 }
func (h IPv6) Label() uint32       { return be32(h) & 0xfffff }
func (h IPv6) PayloadLen() int     { return int(be16(h[4:])) }
func (h IPv6) Next() uint8         { return h[6] }
func (h IPv6) HopLimit() uint8     { return h[7] }
func (h IPv6) Src() [16]byte       { return [16]byte(h[8:24]) }
func (h IPv6) Dst() [16]byte       { return [16]byte(h[24:40]) }
func (h IPv6) SetClass(c uint8)    { put32(h, be32(h)&^(0xff<<20)|uint32(c)<<20) }
func (h IPv6) SetLabel(l uint32)   { put32(h, be32(h)&^0xfffff|l&0xfffff) }
func (h IPv6) SetPayloadLen(n int) { put16(h[4:], uint16(n)) }
func (h IPv6) SetNext(p uint8)     { h[6] = p }
func (h IPv6) SetHopLimit(v uint8) { h[7] = v }
func (h IPv6) SetSrc(a [16]byte)   { copy(h[8:24], a[:]) }
func (h IPv6) SetDst(a [16]byte)   { copy(h[24:40], a[:]) }
func (h IPv6) Valid() bool         { return len(h) >= IPv6Size && h[0]>>4 == 6 }

// Pseudo is the pseudo header's partial sum for an upper-layer packet of n bytes
// and protocol proto, which is not Next where extension headers are.
func (h IPv6) Pseudo(proto uint8, n int) uint64 { return Pseudo6(h.Src(), h.Dst(), proto, n) }

// Init writes the header with class and label 0 and hop limit 64.
func (h IPv6) Init(src, dst [16]byte, next uint8, payloadLen int) {
	put32(h, 6<<28)
	put16(h[4:], uint16(payloadLen))
	h[6], h[7] = next, 64
	h.SetSrc(src)
	h.SetDst(dst)
}

// MaxExt bounds the extension headers that WalkIPv6 passes.
const MaxExt = 16

// Walk is what WalkIPv6 found. Offsets are from the start of the packet's data.
type Walk struct {
	Proto   uint8 // upper-layer protocol; behind a non-first fragment's header, that of its original packet's next part
	Off     int   // of the upper-layer header, or of a non-first fragment's data
	NextOff int   // of the byte that holds Proto
	HasFrag bool
	FragAt  int    // of the fragment header
	FragOff int    // the fragment's offset, bytes
	More    bool   // more fragments follow
	ID      uint32 // of the fragmented packet
}

// WalkIPv6 walks the extension headers (RFC 8200 4) of the IPv6 packet at offset l3off,
// over segments, to the upper-layer header. It stops behind the header of a
// fragment that is not the first, since what follows is not a header. ok is
// false where the packet ends inside a header or has more than MaxExt.
func WalkIPv6(m *Mbuf, l3off int) (w Walk, ok bool) {
	var tmp [8]byte
	h := m.View(l3off+6, 1, tmp[:])
	if h == nil {
		return w, false
	}
	w.Proto, w.Off, w.NextOff = h[0], l3off+IPv6Size, l3off+6
	for range MaxExt {
		n := 0
		switch w.Proto {
		case ProtoHopByHop, ProtoDstOpts, ProtoRouting, ProtoAH, ProtoFragment:
		default:
			return w, w.Off <= int(m.PktLen)
		}
		if h = m.View(w.Off, 8, tmp[:]); h == nil {
			return w, false
		}
		switch w.Proto {
		case ProtoAH: // RFC 4302 2.2: in 32-bit words, less 2
			n = (int(h[1]) + 2) * 4
		case ProtoFragment:
			n = 8
			o := be16(h[2:])
			w.HasFrag, w.FragAt, w.FragOff, w.More, w.ID = true, w.Off, int(o&^7), o&1 != 0, be32(h[4:])
		default:
			n = (int(h[1]) + 1) * 8
		}
		w.NextOff, w.Proto = w.Off, h[0]
		w.Off += n
		if w.HasFrag && w.FragOff != 0 {
			return w, w.Off <= int(m.PktLen)
		}
	}
	return w, false
}
