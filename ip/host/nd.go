package host

import (
	"net/netip"

	"millrace/packet"
	"millrace/pipeline/graph"
)

const (
	optSourceLL = 1
	optTargetLL = 2
	ndSize      = 24 // of NS and NA, without options
)

// ndCheck verifies what every ND message must be (RFC 4861 7.1) and finds its
// link-layer address option of a type; target is the address asked for.
func ndCheck(b, p []byte, opt uint8) (target netip.Addr, mac [6]byte, has, ok bool) {
	if b[7] != 255 || p[1] != 0 || len(p) < ndSize {
		return
	}
	target = netip.AddrFrom16([16]byte(p[8:24]))
	if target.IsMulticast() {
		return
	}
	for o := p[ndSize:]; len(o) > 0; {
		if len(o) < 8 || o[1] == 0 || int(o[1])*8 > len(o) {
			return
		}
		if o[0] == opt && o[1] == 1 {
			mac, has = [6]byte(o[2:8]), true
		}
		o = o[int(o[1])*8:]
	}
	return target, mac, has, true
}

// solicitation answers a neighbour solicitation (RFC 4861 7.2.3, 7.2.4).
func (h *Host) solicitation(f frame, b, p []byte) graph.Reason {
	ip := packet.IPv6(b)
	src, dst := netip.AddrFrom16(ip.Src()), netip.AddrFrom16(ip.Dst())
	target, mac, has, ok := ndCheck(b, p, optSourceLL)
	isDAD := src.IsUnspecified()
	if !ok || isDAD && (has || !isSolicitedNode(dst)) {
		return xMalformed
	}
	if !h.mine(f.iface, target) {
		return 0
	}
	if isDAD {
		h.sendNA(f, target, allNodes, naRouter|naOverride)
		return 0
	}
	if has {
		h.heard(event{kind: evSource, iface: f.iface, addr: src, mac: mac, hasLL: true}, true)
	}
	h.sendNA(f, target, src, naRouter|naOverride|naSolicited)
	return 0
}

func isSolicitedNode(a netip.Addr) bool { return a.Is6() && solicitedNode(a) == a }

// advertisement takes a neighbour advertisement (RFC 4861 7.2.5).
func (h *Host) advertisement(f frame, b, p []byte) graph.Reason {
	target, mac, has, ok := ndCheck(b, p, optTargetLL)
	if !ok || b[24] == 0xff && p[4]&naSolicited != 0 {
		return xMalformed
	}
	if h.mine(f.iface, target) {
		h.w.C.Exit[nConflict]++
		return 0
	}
	h.advertised(event{kind: evAdvertise, iface: f.iface, addr: target, mac: mac, hasLL: has, flags: p[4]}, true)
	return 0
}

// ndBody writes an NS or NA with its link-layer address option.
func (h *Host) ndBody(p []byte, typ, flags uint8, target netip.Addr, opt uint8, iface uint16) {
	clear(p)
	p[0], p[4] = typ, flags
	t, mac := target.As16(), h.mac(iface)
	copy(p[8:], t[:])
	p[24], p[25] = opt, 1
	copy(p[26:], mac[:])
	h.sum6(packet.ProtoICMPv6, 2, len(p))
}

func (h *Host) sendNA(f frame, target, dst netip.Addr, flags uint8) {
	p := h.reply6(target, dst, packet.ProtoICMPv6, 255, ndSize+8)
	h.ndBody(p, packet.ICMP6NA, flags, target, optTargetLL, f.iface)
	m := h.frame(f.iface, packet.EtherIPv6, h.tx[:packet.IPv6Size+len(p)])
	switch {
	case m == nil:
	case dst.IsMulticast():
		h.sendTo(f.iface, groupMAC(dst), m)
	default:
		h.toNeighbour(f.iface, dst, m)
	}
}

// sendNS asks for a neighbour, or asks it itself whether it is still there.
func (h *Host) sendNS(n *neighbour, direct bool) {
	dst, mac := solicitedNode(n.addr), groupMAC(solicitedNode(n.addr))
	if direct {
		dst, mac = n.addr, n.mac
	}
	p := h.reply6(h.linkLocal(n.iface), dst, packet.ProtoICMPv6, 255, ndSize+8)
	h.ndBody(p, packet.ICMP6NS, 0, n.addr, optSourceLL, n.iface)
	if m := h.frame(n.iface, packet.EtherIPv6, h.tx[:packet.IPv6Size+len(p)]); m != nil {
		h.sendTo(n.iface, mac, m)
	}
}
