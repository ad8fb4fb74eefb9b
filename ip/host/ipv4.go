package host

import (
	"net/netip"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// ipv4 takes one IPv4 packet, from its header on.
func (h *Host) ipv4(f frame, b []byte) graph.Reason {
	ip := packet.IPv4(b)
	if !ip.Valid() || ip.TotalLen() < ip.HeaderLen() || ip.TotalLen() > len(b) || !ip.SumOK() {
		return xMalformed
	}
	b = b[:ip.TotalLen()]
	src, dst := netip.AddrFrom4(ip.Src()), netip.AddrFrom4(ip.Dst())
	group := !h.mine(f.iface, dst)
	if group && !h.isBroadcast(f.iface, dst) && dst != allHosts4 {
		return xNotLocal
	}
	if h.mine(f.iface, src) {
		return xMalformed
	}
	f.multicast = f.multicast || group
	if ip.IsFragment() {
		if group {
			return 0
		}
		d, why := h.fragment4(b)
		if d == nil {
			return why
		}
		why = h.deliver4(f, d.packet())
		d.used = false
		return why
	}
	return h.deliver4(f, b)
}

// isBroadcast: 255.255.255.255, or the broadcast address of a subnet of the interface.
func (h *Host) isBroadcast(iface uint16, a netip.Addr) bool {
	if a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return true
	}
	for _, p := range h.w.Tables.Addrs.Load().By[iface] {
		if p.Addr().Is4() && p.Bits() < 31 && p.Contains(a) {
			x := a.As4()
			host := ^uint32(0) >> p.Bits()
			if (uint32(x[0])<<24|uint32(x[1])<<16|uint32(x[2])<<8|uint32(x[3]))&host == host {
				return true
			}
		}
	}
	return false
}

// deliver4 takes a whole datagram.
func (h *Host) deliver4(f frame, b []byte) graph.Reason {
	ip := packet.IPv4(b)
	p := b[ip.HeaderLen():]
	src := netip.AddrFrom4(ip.Src())
	switch ip.Proto() {
	case packet.ProtoICMP:
		if len(p) < packet.ICMPSize || packet.Fold(packet.Sum(p, 0)) != 0xffff {
			return xMalformed
		}
		// Echo to a group or broadcast is not answered (RFC 1122 3.2.2.6 allows it).
		if p[0] != packet.ICMPEcho || p[1] != 0 || f.multicast || !unicast4(src) {
			return 0
		}
		o := h.reply4(ip.Dst(), ip.Src(), packet.ProtoICMP, ip.TOS(), len(p))
		copy(o, p)
		o[0] = packet.ICMPEchoReply
		o[2], o[3] = 0, 0
		packet.PutSum(o[2:], packet.Checksum(o))
		h.send(f, packet.IPv4Size+len(o))
		return 0
	case packet.ProtoIGMP: // the host joins no group that is reported
		return 0
	case packet.ProtoUDP:
		if len(p) < packet.UDPSize || packet.UDP(p).Len() < packet.UDPSize || packet.UDP(p).Len() > len(p) {
			return xMalformed
		}
		p = p[:packet.UDP(p).Len()]
		if packet.GetSum(p[6:]) != 0 && packet.Fold(packet.Sum(p, ip.Pseudo(len(p)))) != 0xffff {
			return xMalformed
		}
		h.error4(f, b, packet.ICMPUnreachable, 3)
		return 0
	case packet.ProtoTCP:
		if len(p) < packet.TCPSize || packet.TCP(p).HeaderLen() < packet.TCPSize || packet.TCP(p).HeaderLen() > len(p) || packet.Fold(packet.Sum(p, ip.Pseudo(len(p)))) != 0xffff {
			return xMalformed
		}
		if f.multicast || !unicast4(src) || !h.wantsReset(p) {
			return 0
		}
		o := packet.TCP(h.reply4(ip.Dst(), ip.Src(), packet.ProtoTCP, ip.TOS()&^3, packet.TCPSize))
		reset(o, p)
		packet.PutSum(o[16:], ^packet.Fold(packet.Sum(o, packet.IPv4(h.tx).Pseudo(len(o)))))
		h.send(f, packet.IPv4Size+len(o))
		return 0
	}
	h.error4(f, b, packet.ICMPUnreachable, 2)
	return 0
}

func (h *Host) wantsReset(p packet.TCP) bool {
	return !h.s.config.NoReset && p.Flags()&packet.TCPRst == 0 && h.allow()
}

// reset writes the reset that a segment for a closed port is answered with (RFC 9293
// 3.10.7.1), with its checksum 0.
func reset(o, p packet.TCP) {
	clear(o)
	o[12] = packet.TCPSize / 4 << 4
	o.SetSrcPort(p.DstPort())
	o.SetDstPort(p.SrcPort())
	if p.Flags()&packet.TCPAck != 0 {
		o.SetSeq(p.Ack())
		o.SetFlags(packet.TCPRst)
		return
	}
	n := uint32(len(p) - p.HeaderLen())
	for _, flag := range []uint8{packet.TCPSyn, packet.TCPFin} {
		if p.Flags()&flag != 0 {
			n++
		}
	}
	o.SetAck(p.Seq() + n)
	o.SetFlags(packet.TCPRst | packet.TCPAck)
}
