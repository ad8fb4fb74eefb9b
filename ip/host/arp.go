package host

import (
	"net/netip"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// arp answers requests and learns from whom it hears (RFC 826). Probes (RFC 5227), whose sender
// address is 0, are answered and teach nothing.
func (h *Host) arp(f frame, b []byte) graph.Reason {
	a := packet.ARP(b)
	if !a.Valid() {
		return xMalformed
	}
	op := a.Op()
	if op != packet.ARPRequest && op != packet.ARPReply {
		return xMalformed
	}
	from, target, mac := netip.AddrFrom4(a.SenderIP()), netip.AddrFrom4(a.TargetIP()), a.SenderMAC()
	isProbe := from.IsUnspecified()
	if mac[0]&1 != 0 || !isProbe && !unicast4(from) {
		return xMalformed
	}
	if h.mine(f.iface, from) {
		h.w.C.Exit[nConflict]++
		return 0
	}
	ours := h.mine(f.iface, target)
	if !isProbe {
		e := event{iface: f.iface, addr: from, mac: mac, hasLL: true, flags: naOverride}
		switch {
		case op == packet.ARPReply && ours:
			e.kind, e.flags = evAdvertise, naOverride|naSolicited
			h.advertised(e, true)
		case ours:
			e.kind = evSource
			h.heard(e, true)
		default: // an announcement: it changes what is known, and makes nothing known
			e.kind = evAdvertise
			h.advertised(e, true)
		}
	}
	if op != packet.ARPRequest || !ours {
		return 0
	}
	h.sendARP(f.iface, packet.ARPReply, target, mac, from, mac)
	return 0
}

func (h *Host) sendARP(iface, op uint16, from netip.Addr, tmac [6]byte, target netip.Addr, dst [6]byte) {
	var b [packet.ARPSize]byte
	packet.ARP(b[:]).Set(op, h.mac(iface), from.As4(), tmac, target.As4())
	if m := h.frame(iface, packet.EtherARP, b[:]); m != nil {
		h.sendTo(iface, dst, m)
	}
}

// sendARPRequest asks for a neighbour, or asks it itself whether it is still there.
func (h *Host) sendARPRequest(n *neighbour, direct bool) {
	from := h.source4(n.iface, n.addr)
	if !from.IsValid() {
		return
	}
	dst, tmac := broadcast, [6]byte{}
	if direct {
		dst, tmac = n.mac, n.mac
	}
	h.sendARP(n.iface, packet.ARPRequest, from, tmac, n.addr, dst)
}

// source4 is the host's address in the neighbour's subnet, else any.
func (h *Host) source4(iface uint16, a netip.Addr) netip.Addr {
	addrs := h.w.Tables.Addrs.Load()
	for _, p := range addrs.By[iface] {
		if p.Addr().Is4() && p.Contains(a) {
			return p.Addr()
		}
	}
	return addrs.Source4(iface)
}
