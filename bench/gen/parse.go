package gen

import (
	"encoding/binary"

	"millrace/packet"
)

// heads is where the innermost upper-layer header of a frame is.
type heads struct {
	l3, l4 int
	size   int // bytes of layer 4
	v6     bool
	frag   bool // a fragment: its checksum covers more than is here
	bad    bool // an IPv4 header with a wrong checksum
	proto  uint8
}

// maxTunnels bounds the headers of layer 3 in one frame.
const maxTunnels = 4

// parse walks a frame's headers over segments: tags, MPLS labels, and IP in IP, GRE and VXLAN, to the innermost
// layer 4. ok is false where it is not IP, or cut short.
func parse(m *packet.Mbuf) (l heads, ok bool) {
	off, kind, ok := ether(m, 0)
	if !ok {
		return l, false
	}
	for range maxTunnels {
		if kind == packet.EtherMPLS || kind == packet.EtherMPLSM {
			if off, kind, ok = labels(m, off); !ok {
				return l, false
			}
		}
		if ok = l.ip(m, off, kind); !ok || l.frag || l.bad {
			return l, ok
		}
		var tmp [16]byte
		switch l.proto {
		case packet.ProtoIPIP:
			off, kind = l.l4, packet.EtherIPv4
		case packet.ProtoIPv6:
			off, kind = l.l4, packet.EtherIPv6
		case packet.ProtoMPLS:
			off, kind = l.l4, packet.EtherMPLS
		case packet.ProtoGRE: // RFC 2784, 2890
			h := m.View(l.l4, 4, tmp[:])
			if h == nil {
				return l, false
			}
			off, kind = l.l4+4, binary.BigEndian.Uint16(h[2:])
			for _, flag := range []uint8{0x80, 0x20, 0x10} {
				if h[0]&flag != 0 {
					off += 4
				}
			}
			if kind == 0x6558 { // transparent Ethernet bridging
				if off, kind, ok = ether(m, off); !ok {
					return l, false
				}
			}
		case packet.ProtoUDP:
			h := m.View(l.l4, 16, tmp[:])
			if h == nil || packet.UDP(h).DstPort() != 4789 || h[8] != 0x08 { // RFC 7348
				return l, true
			}
			inner, t, isEther := ether(m, l.l4+16)
			if !isEther {
				return l, true
			}
			keep := l
			if !l.ip(m, inner, t) { // something else on VXLAN's port
				return keep, true
			}
			return l, true
		default:
			return l, true
		}
	}
	return l, false
}

// ether is ParseEther of the frame at an offset, behind any number of tags.
func ether(m *packet.Mbuf, at int) (off int, kind uint16, ok bool) {
	var tmp [packet.EtherSize + 8]byte
	b := m.View(at, len(tmp), tmp[:])
	if b == nil {
		if b = m.View(at, packet.EtherSize, tmp[:]); b == nil {
			return 0, 0, false
		}
	}
	off, kind, _, _, ok = packet.ParseEther(b)
	off += at
	for ok && (kind == packet.EtherVLAN || kind == packet.EtherQinQ || kind == packet.EtherQinQ2) {
		if b = m.View(off, 4, tmp[:]); b == nil {
			return 0, 0, false
		}
		off, kind = off+4, binary.BigEndian.Uint16(b[2:])
	}
	return off, kind, ok
}

// labels walks a stack of MPLS labels (RFC 3032); what is below is IP, as its first half byte says.
func labels(m *packet.Mbuf, off int) (int, uint16, bool) {
	var tmp [4]byte
	for range 16 {
		h := m.View(off, 4, tmp[:])
		if h == nil {
			return 0, 0, false
		}
		off += 4
		if h[2]&1 == 0 {
			continue
		}
		if h = m.View(off, 1, tmp[:]); h == nil {
			return 0, 0, false
		}
		switch h[0] >> 4 {
		case 4:
			return off, packet.EtherIPv4, true
		case 6:
			return off, packet.EtherIPv6, true
		}
		return 0, 0, false
	}
	return 0, 0, false
}

// ip reads the IP header at off.
func (l *heads) ip(m *packet.Mbuf, off int, kind uint16) bool {
	*l = heads{l3: off}
	var tmp [60]byte
	switch kind {
	case packet.EtherIPv4:
		b := m.View(off, packet.IPv4Size, tmp[:])
		if b == nil || b[0]>>4 != 4 || b[0]&15 < 5 {
			return false
		}
		if b = m.View(off, packet.IPv4(b).HeaderLen(), tmp[:]); b == nil {
			return false
		}
		h := packet.IPv4(b)
		if off+h.TotalLen() > int(m.PktLen) || h.TotalLen() < h.HeaderLen() {
			return false
		}
		l.bad = !h.SumOK()
		l.l4, l.size, l.proto, l.frag = off+h.HeaderLen(), h.TotalLen()-h.HeaderLen(), h.Proto(), h.IsFragment()
	case packet.EtherIPv6:
		b := m.View(off, packet.IPv6Size, tmp[:])
		if b == nil || b[0]>>4 != 6 {
			return false
		}
		end := off + packet.IPv6Size + packet.IPv6(b).PayloadLen()
		w, ok := packet.WalkIPv6(m, off)
		if !ok || end > int(m.PktLen) || w.Off > end {
			return false
		}
		l.v6, l.l4, l.size, l.proto, l.frag = true, w.Off, end-w.Off, w.Proto, w.HasFrag
	default:
		return false
	}
	return true
}

// verify sums layer 4 of a protocol, 0xffff being right; ok is false where there is no checksum to verify.
func (l *heads) verify(m *packet.Mbuf, kind sumKind) (s uint16, ok bool) {
	if kind == sumNone || l.frag || l.size < 8 {
		return 0, false
	}
	var tmp [packet.IPv6Size]byte
	var part uint64
	switch {
	case kind == sumPlain:
	case l.v6:
		part = packet.IPv6(m.View(l.l3, packet.IPv6Size, tmp[:])).Pseudo(l.proto, l.size)
	default:
		if b := m.View(l.l4+6, 2, tmp[:]); kind == sumUDP && b[0]|b[1] == 0 {
			return 0, false
		}
		part = packet.IPv4(m.View(l.l3, packet.IPv4Size, tmp[:])).Pseudo(l.size)
	}
	return packet.Fold(packet.SumChain(m, l.l4, l.size, part)), true
}
