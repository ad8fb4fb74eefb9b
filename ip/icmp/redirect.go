package icmp

import (
	"encoding/binary"
	"net/netip"
	"unsafe" // headers in the vector, which the check stages have judged

	"millrace/packet"
	"millrace/pipeline/graph"
)

// nextHops is what the neighbour stage knows: whom a packet that was routed to a group
// goes to.
type nextHops interface {
	Target(group uint16, dst netip.Addr) (iface uint16, nh netip.Addr, ok bool)
}

// Redirector makes the function that tells the sender of the packet at position i, which goes
// out by the interface that it came in by, of the better way, if it is owed that. It
// only reads the packet, whose IP header must be as it was received, and must not be called before
// all exits are made.
func Redirector(w *graph.Worker) func(v *graph.Vector, i uint8) {
	return func(v *graph.Vector, i uint8) {
		s, _ := w.Instances["icmp"].(*sender)
		hops, _ := w.Instances["neighbour"].(nextHops)
		if s == nil || hops == nil || v.In[i] == 0 || w.Tables.Adjs[v.Adj[i]].Iface != v.In[i] {
			return
		}
		if w.Tables.Groups[v.NH[i]&(graph.MaxGroups-1)].Mask != 0 {
			return // one of several ways: the sender would take only this one
		}
		if *(*byte)(v.Header(i))>>4 == 4 {
			s.redirect4(v, i, hops)
		} else {
			s.redirect6(v, i, hops)
		}
	}
}

// redirect4 follows RFC 1812 5.2.7.2: sender and next hop on one network of the
// interface, no source route, and never anything but redirects for a host.
func (s *sender) redirect4(v *graph.Vector, i uint8, hops nextHops) {
	h := packet.IPv4(unsafe.Slice((*byte)(v.Header(i)), packet.IPv4Size))
	src := netip.AddrFrom4(h.Src())
	iface, nh, ok := hops.Target(v.NH[i], netip.AddrFrom4(h.Dst()))
	if !ok || iface != v.In[i] || nh == src || !nh.Is4() {
		return
	}
	for _, p := range s.w.Tables.Addrs.Load().By[iface] {
		if !p.Contains(src) || !p.Contains(nh) {
			continue
		}
		h = unsafe.Slice((*byte)(v.Header(i)), h.HeaderLen())
		if sourceRouted(h) || !s.owed4(v, i, h) {
			return
		}
		if !s.limit.allow(s.w.Now, src, limitRedirect) {
			s.note(XLimited)
			return
		}
		gw := nh.As4()
		s.send4(v, i, p.Addr().As4(), packet.ICMPRedirect, 1, binary.BigEndian.Uint32(gw[:]))
		return
	}
}

// sourceRouted reports whether a header has a source route option (LSRR or SSRR); its
// options have been judged before.
func sourceRouted(h packet.IPv4) bool {
	for i := packet.IPv4Size; i < len(h) && h[i] != 0; {
		switch {
		case h[i] == 1:
			i++
			continue
		case h[i] == 131 || h[i] == 137:
			return true
		case i+1 >= len(h) || h[i+1] < 2:
			return false
		}
		i += int(h[i+1])
	}
	return false
}

const (
	optTargetMAC = 2 // target link-layer address (RFC 4861 4.6.1)
	optQuoted    = 4 // redirected header (RFC 4861 4.6.3)
	redirectHead = packet.IPv6Size + packet.ICMPSize + 32 + 8
)

// redirect6 follows RFC 4861 8.2: the sender is a neighbour, and the better way is the
// destination itself or a router's link-local address.
func (s *sender) redirect6(v *graph.Vector, i uint8, hops nextHops) {
	h := packet.IPv6(unsafe.Slice((*byte)(v.Header(i)), packet.IPv6Size))
	src, dst := netip.AddrFrom16(h.Src()), netip.AddrFrom16(h.Dst())
	iface, nh, ok := hops.Target(v.NH[i], dst)
	if !ok || iface != v.In[i] || nh == src || nh != dst && !nh.IsLinkLocalUnicast() || !owed6(v, i, h, false) {
		return
	}
	a := s.w.Tables.Addrs.Load()
	from, ok := linkLocal(a, iface)
	if !ok || !onLink(a, iface, src) {
		return
	}
	if !s.limit.allow(s.w.Now, src, limitRedirect) {
		s.note(XLimited)
		return
	}
	m := s.w.Cache.Alloc1()
	if m == nil {
		s.note(XNoBuffer)
		return
	}
	quote := min(int(v.Len[i]), size6-redirectHead-8) &^ 7
	b := m.Append(redirectHead + 8 + quote)
	clear(b)
	t := b[packet.IPv6Size+packet.ICMPSize:]
	target := nh.As16()
	copy(t, target[:])
	copy(t[16:], h[24:40])
	o := t[32:]
	o[0], o[1] = optTargetMAC, 1
	mac := targetMAC(&s.w.Tables.Adjs[v.Adj[i]])
	copy(o[2:], mac[:])
	o = o[8:]
	o[0], o[1] = optQuoted, uint8(1+quote/8)
	v.Mbuf(i).CopyOut(v.L3Off(i), o[8:])
	finish6(b, from.As16(), h.Src(), hops255, packet.ICMP6Redirect, 0, 0)
	s.put(m, v.In[i])
}

func onLink(a *graph.Addresses, iface uint16, x netip.Addr) bool {
	for _, p := range a.By[iface] {
		if p.Contains(x) {
			return true
		}
	}
	return false
}

// targetMAC is the link-layer address that an adjacency leads to.
func targetMAC(a *graph.Adj) (mac [6]byte) {
	if a.L2 > packet.EtherSize {
		return [6]byte(a.Head[:6])
	}
	var w [8]byte
	binary.NativeEndian.PutUint64(w[:], a.RW0)
	return [6]byte(w[:6])
}
