package packet

import "net/netip"

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

// portMask has all bits for protocols whose first four bytes name the flow: those with ports, and ESP
// with its SPI.
var portMask = [256]uint32{ProtoTCP: ^uint32(0), ProtoUDP: ^uint32(0), ProtoDCCP: ^uint32(0), ProtoSCTP: ^uint32(0),
	ProtoUDPLite: ^uint32(0), ProtoESP: ^uint32(0)}
