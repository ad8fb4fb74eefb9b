package host

import (
	"net/netip"
	"slices"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// mld is what the first worker's host knows of group membership. Groups are those of
// the addresses: the solicited-node ones. All-nodes is never reported (RFC 3810 6).
type mld struct {
	addrs *graph.Addresses // whose groups have been reported
	links []mldLink
	next  uint64                       // earliest deadline
	in    [graph.MaxIfaces / 64]uint64 // interfaces of links
	scan  uint16                       // next interface to look at
}

// mldLink is an interface with groups.
type mldLink struct {
	iface  uint16
	groups []netip.Addr
	at     uint64 // when the next report is due
	left   int    // unsolicited reports still to send
	old    bool   // a querier of version 1 has asked
}

const (
	// mldRobust is how often a new membership is reported, mldInterval seconds apart
	// (RFC 3810 9.1, 9.11).
	mldRobust   = 2
	mldInterval = 1

	mldReport2     = packet.ICMP6MLDv2Report
	recordExclude  = 2 // MODE_IS_EXCLUDE
	recordToExcl   = 4 // CHANGE_TO_EXCLUDE_MODE
	recordSize     = 20
	maxMLDGroups   = 50 // a report stays below 1280 bytes
	mldRoutersLast = 0x16
)

var mldRouters = netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: mldRoutersLast})

// joined reports whether the interface's host hears the group.
func (h *Host) joined(iface uint16, g netip.Addr) bool {
	b := g.As16()
	if scope := b[1]; scope == 1 || scope == 2 { // all nodes, all routers
		if g == netip.AddrFrom16([16]byte{0: 0xff, 1: scope, 15: 1}) || g == netip.AddrFrom16([16]byte{0: 0xff, 1: scope, 15: 2}) {
			return true
		}
	}
	if solicitedNode(g) != g {
		return false
	}
	if solicitedNode(h.linkLocal(iface)) == g {
		return true
	}
	return slices.ContainsFunc(h.w.Tables.Addrs.Load().By[iface], func(p netip.Prefix) bool {
		return p.Addr().Is6() && solicitedNode(p.Addr()) == g
	})
}

// mldTick reports memberships: those of new addresses, and those asked for.
func (h *Host) mldTick() {
	if h.w.ID != 0 || h.s.config.NoReports {
		return
	}
	for range 32 { // an interface that came up or went down shows within MaxIfaces/32 ticks
		i := h.mld.scan % graph.MaxIfaces
		h.mld.scan++
		if h.reports(i) != (h.mld.in[i/64]>>(i%64)&1 != 0) {
			h.mld.addrs = nil
		}
	}
	if a := h.w.Tables.Addrs.Load(); a != h.mld.addrs {
		h.mld.addrs = a
		h.rejoin(a)
	}
	if h.w.Now < h.mld.next {
		return
	}
	h.mld.next = never
	for i := range h.mld.links {
		l := &h.mld.links[i]
		if h.w.Now >= l.at {
			record := uint8(recordExclude)
			if l.left > 0 {
				l.left--
				record = recordToExcl
			}
			l.at = never
			if l.left > 0 {
				l.at = h.w.Now + mldInterval*h.hz
			}
			h.report(l, record)
		}
		h.mld.next = min(h.mld.next, l.at)
	}
}

// reports says whether the host is the interface's, and so its groups are its to report.
func (h *Host) reports(i uint16) bool {
	ifc := &h.w.Tables.Ifaces[i]
	return i != 0 && ifc.Flags&(graph.IfUp|graph.IfKernel) == graph.IfUp && h.w.Tables.Taps[ifc.Port&(graph.MaxPorts-1)] == 0
}

// rejoin reads the interfaces' groups again. Addresses change rarely: this may allocate.
func (h *Host) rejoin(a *graph.Addresses) {
	old := h.mld.links
	h.mld.links = nil
	clear(h.mld.in[:])
	for i := uint16(1); i < graph.MaxIfaces; i++ {
		if !h.reports(i) {
			continue
		}
		h.mld.in[i/64] |= 1 << (i % 64)
		l := mldLink{iface: i, at: never}
		add := func(x netip.Addr) {
			if g := solicitedNode(x); !slices.Contains(l.groups, g) && len(l.groups) < maxMLDGroups {
				l.groups = append(l.groups, g)
			}
		}
		add(h.linkLocal(i))
		for _, p := range a.By[i] {
			if p.Addr().Is6() {
				add(p.Addr())
			}
		}
		k := slices.IndexFunc(old, func(o mldLink) bool { return o.iface == i })
		if k < 0 || !slices.Equal(old[k].groups, l.groups) {
			l.at, l.left = h.w.Now, mldRobust
			h.mld.next = h.w.Now
		} else {
			l.at, l.left, l.old = old[k].at, old[k].left, old[k].old
		}
		h.mld.links = append(h.mld.links, l)
	}
}

// query takes an MLD query and answers it within its maximum response delay.
func (h *Host) query(f frame, b, p []byte) graph.Reason {
	src := netip.AddrFrom16(packet.IPv6(b).Src())
	if len(p) < 24 || b[7] != 1 || !src.IsLinkLocalUnicast() || b[6] != packet.ProtoHopByHop {
		return xMalformed
	}
	wait := uint64(p[4])<<8 | uint64(p[5]) // milliseconds
	if len(p) >= 28 && wait >= 1<<15 {     // RFC 3810 5.1.3
		wait = (wait&0xfff | 0x1000) << (wait>>12&7 + 3)
	}
	e := event{kind: evQuery, iface: f.iface, old: len(p) == 24, wait: wait}
	h.tell(e)
	h.queried(e)
	return 0
}

// queried lets the first worker's host answer a query that any worker has received.
func (h *Host) queried(e event) {
	if h.w.ID != 0 {
		return
	}
	for i := range h.mld.links {
		if l := &h.mld.links[i]; l.iface == e.iface {
			l.old = e.old
			l.at = min(l.at, h.w.Now+h.rand.Uint64N(e.wait*h.hz/1000+1))
			h.mld.next = min(h.mld.next, l.at)
		}
	}
}

// report sends an interface's memberships: one message of version 2, or one of version 1 for
// each group.
func (h *Host) report(l *mldLink, record uint8) {
	if l.old {
		for _, g := range l.groups {
			p := h.mldStart(l.iface, g, 24)
			p[0] = packet.ICMP6MLDReport
			a := g.As16()
			copy(p[8:], a[:])
			h.mldSend(l.iface, g, len(p))
		}
		return
	}
	p := h.mldStart(l.iface, mldRouters, 8+recordSize*len(l.groups))
	p[0], p[7] = mldReport2, byte(len(l.groups))
	for i, g := range l.groups {
		r := p[8+recordSize*i:]
		r[0] = record
		a := g.As16()
		copy(r[4:], a[:])
	}
	h.mldSend(l.iface, mldRouters, len(p))
}

// mldStart starts a message of n zero bytes behind a router alert, to be sent with hop limit 1.
func (h *Host) mldStart(iface uint16, dst netip.Addr, n int) []byte {
	p := h.reply6(h.linkLocal(iface), dst, packet.ProtoHopByHop, 1, 8+n)
	clear(p)
	copy(p, []byte{packet.ProtoICMPv6, 0, 5, 2, 0, 0, 1, 0})
	return p[8:]
}

func (h *Host) mldSend(iface uint16, dst netip.Addr, n int) {
	p := h.tx[packet.IPv6Size+8 : packet.IPv6Size+8+n]
	packet.PutSum(p[2:], ^packet.Fold(packet.Sum(p, packet.IPv6(h.tx).Pseudo(packet.ProtoICMPv6, n))))
	if m := h.frame(iface, packet.EtherIPv6, h.tx[:packet.IPv6Size+8+n]); m != nil {
		h.sendTo(iface, groupMAC(dst), m)
	}
}
