package host

import (
	"net/netip"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// ipv6 takes one IPv6 packet, from its header on.
func (h *Host) ipv6(f frame, b []byte) graph.Reason {
	ip := packet.IPv6(b)
	if !ip.Valid() || packet.IPv6Size+ip.PayloadLen() > len(b) {
		return xMalformed
	}
	b = b[:packet.IPv6Size+ip.PayloadLen()]
	src, dst := netip.AddrFrom16(ip.Src()), netip.AddrFrom16(ip.Dst())
	if src.IsMulticast() || src.IsLoopback() || h.mine(f.iface, src) {
		return xMalformed
	}
	if dst.IsMulticast() {
		if !h.joined(f.iface, dst) {
			return xNotLocal
		}
	} else if !h.mine(f.iface, dst) {
		return xNotLocal
	}
	return h.headers6(f, b, false)
}

// headers6 walks the extension headers in their order (RFC 8200 4) and takes what is behind them.
// whole is set for a datagram that was put together from fragments.
func (h *Host) headers6(f frame, b []byte, whole bool) graph.Reason {
	nextAt, off := 6, packet.IPv6Size
	for range packet.MaxExt {
		proto := b[nextAt]
		switch proto {
		case packet.ProtoHopByHop, packet.ProtoDstOpts, packet.ProtoRouting, packet.ProtoFragment:
		default:
			return h.deliver6(f, b, proto, nextAt, off)
		}
		if proto == packet.ProtoHopByHop && nextAt != 6 {
			h.unknownNext(f, b, nextAt)
			return 0
		}
		if off+8 > len(b) {
			return xMalformed
		}
		n := (int(b[off+1]) + 1) * 8
		switch proto {
		case packet.ProtoFragment:
			n = 8
			if b[off+2] == 0 && b[off+3]&^6 == 0 { // all in one (RFC 6946)
				break
			}
			if whole {
				return xMalformed
			}
			d, why := h.fragment6in(f, b, nextAt, off)
			if d == nil {
				return why
			}
			why = h.headers6(f, d.packet(), true)
			d.used = false
			return why
		case packet.ProtoRouting:
			if off+n > len(b) {
				return xMalformed
			}
			if b[off+3] != 0 { // segments left: no type is known here (RFC 8200 4.4, RFC 5095)
				h.error6(f, b, packet.ICMP6ParamProblem, 0, uint32(off+2))
				return 0
			}
		default:
			if off+n > len(b) {
				return xMalformed
			}
			if why, done := h.options6(f, b, off, n); done {
				return why
			}
		}
		nextAt = off
		off += n
		if off > len(b) {
			return xMalformed
		}
	}
	return xMalformed
}

// unknownNext reports a next header that is not known, named at offset at.
func (h *Host) unknownNext(f frame, b []byte, at int) {
	h.error6(f, b, packet.ICMP6ParamProblem, 1, uint32(at))
}

// options6 reads the n bytes of an options header; done tells that the packet ends here.
func (h *Host) options6(f frame, b []byte, off, n int) (why graph.Reason, done bool) {
	for i := off + 2; i < off+n; {
		typ := b[i]
		if typ == 0 { // Pad1
			i++
			continue
		}
		if i+2 > off+n || i+2+int(b[i+1]) > off+n {
			return xMalformed, true
		}
		const padN, alert = 1, 5
		if typ != padN && typ != alert {
			switch typ >> 6 { // what to do with an unknown option (RFC 8200 4.2)
			case 1:
				return xOption, true
			case 3:
				if b[24] == 0xff || f.multicast {
					return xOption, true
				}
				fallthrough
			case 2:
				h.error6(f, b, packet.ICMP6ParamProblem, 2, uint32(i))
				return xOption, true
			}
		}
		i += 2 + int(b[i+1])
	}
	return 0, false
}

// deliver6 takes the upper layer of a whole packet.
func (h *Host) deliver6(f frame, b []byte, proto uint8, nextAt, off int) graph.Reason {
	ip := packet.IPv6(b)
	p := b[off:]
	src, dst := netip.AddrFrom16(ip.Src()), netip.AddrFrom16(ip.Dst())
	sumOK := func() bool { return packet.Fold(packet.Sum(p, ip.Pseudo(proto, len(p)))) == 0xffff }
	quiet := f.multicast || dst.IsMulticast() || src.IsUnspecified()
	switch proto {
	case packet.ProtoNoNext:
		return 0
	case packet.ProtoICMPv6:
		if len(p) < 4 || !sumOK() {
			return xMalformed
		}
		return h.icmp6(f, b, p)
	case packet.ProtoUDP:
		if len(p) < packet.UDPSize || packet.UDP(p).Len() < packet.UDPSize || packet.UDP(p).Len() > len(p) || packet.GetSum(p[6:]) == 0 {
			return xMalformed
		}
		p = p[:packet.UDP(p).Len()]
		if !sumOK() {
			return xMalformed
		}
		h.error6(f, b, packet.ICMP6Unreachable, 4, 0)
		return 0
	case packet.ProtoTCP:
		if len(p) < packet.TCPSize || packet.TCP(p).HeaderLen() < packet.TCPSize || packet.TCP(p).HeaderLen() > len(p) || !sumOK() {
			return xMalformed
		}
		if quiet || !h.wantsReset(p) {
			return 0
		}
		o := packet.TCP(h.reply6(dst, src, packet.ProtoTCP, 64, packet.TCPSize))
		reset(o, p)
		h.sum6(packet.ProtoTCP, 16, len(o))
		h.send(f, packet.IPv6Size+len(o))
		return 0
	}
	h.unknownNext(f, b, nextAt)
	return 0
}

func (h *Host) icmp6(f frame, b, p []byte) graph.Reason {
	ip := packet.IPv6(b)
	src, dst := netip.AddrFrom16(ip.Src()), netip.AddrFrom16(ip.Dst())
	switch p[0] {
	case packet.ICMP6Echo:
		if len(p) < packet.ICMPSize || p[1] != 0 {
			return xMalformed
		}
		if src.IsUnspecified() {
			return 0
		}
		if dst.IsMulticast() {
			dst = h.source6(f.iface, src)
		}
		o := h.reply6(dst, src, packet.ProtoICMPv6, 64, len(p))
		packet.IPv6(h.tx).SetClass(ip.Class())
		copy(o, p)
		o[0] = packet.ICMP6EchoReply
		h.sum6(packet.ProtoICMPv6, 2, len(o))
		h.send(f, packet.IPv6Size+len(o))
	case packet.ICMP6NS:
		return h.solicitation(f, b, p)
	case packet.ICMP6NA:
		return h.advertisement(f, b, p)
	case packet.ICMP6MLDQuery:
		return h.query(f, b, p)
	}
	return 0
}
