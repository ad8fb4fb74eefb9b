package host

import (
	"net/netip"

	"millrace/packet"
	"millrace/pipeline/graph"
)

var (
	allNodes  = netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 15: 1})
	allHosts4 = netip.AddrFrom4([4]byte{224, 0, 0, 1})
	broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

// groupMAC is the Ethernet group of an IPv6 multicast address (RFC 2464 7).
func groupMAC(a netip.Addr) [6]byte {
	b := a.As16()
	return [6]byte{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// solicitedNode is the solicited-node group of an address (RFC 4291 2.7.1).
func solicitedNode(a netip.Addr) netip.Addr {
	b := a.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// build makes a packet of the bytes behind l2 bytes for an Ethernet header; nil
// where the pool is empty.
func (h *Host) build(l2 int, b []byte) *packet.Mbuf {
	head := h.w.Cache.Alloc1()
	if head == nil {
		h.w.C.Exit[nBuffer]++
		return nil
	}
	head.Append(l2)
	tail := head
	for {
		k := min(len(b), tail.TailSpace())
		tail.DataLen += uint16(k)
		copy(tail.Bytes()[int(tail.DataLen)-k:], b)
		head.PktLen += uint32(k)
		if b = b[k:]; len(b) == 0 {
			h.w.C.Created++
			return head
		}
		s := h.w.Cache.Alloc1()
		if s == nil {
			h.w.C.Exit[nBuffer]++
			h.w.Cache.Free1(head)
			return nil
		}
		tail.SetNext(s)
		tail = s
		head.NbSegs++
	}
}

// frame makes a frame of an interface, tags included, whose destination is open.
func (h *Host) frame(iface, etherType uint16, b []byte) *packet.Mbuf {
	ifc := &h.w.Tables.Ifaces[iface&(graph.MaxIfaces-1)]
	var tags [8]byte
	n := 0
	tag := func(typ, id uint16) {
		tags[n], tags[n+1], tags[n+2], tags[n+3] = byte(typ>>8), byte(typ), byte(id>>8), byte(id)
		n += 4
	}
	if ifc.Outer != 0 {
		if ifc.Inner != 0 {
			tag(packet.EtherQinQ, ifc.Outer)
			tag(packet.EtherVLAN, ifc.Inner)
		} else {
			tag(packet.EtherVLAN, ifc.Outer)
		}
	}
	m := h.build(packet.EtherSize+n, b)
	if m == nil {
		return nil
	}
	e := packet.Ethernet(m.Bytes())
	e.SetDst([6]byte{})
	e.SetSrc(h.mac(iface))
	copy(e[12:], tags[:n])
	e[12+n], e[13+n] = byte(etherType>>8), byte(etherType)
	return m
}

// sendTo completes a frame's destination and sends it.
func (h *Host) sendTo(iface uint16, dst [6]byte, m *packet.Mbuf) {
	packet.Ethernet(m.Bytes()).SetDst(dst)
	c := &h.w.C.Tx[iface&(graph.MaxIfaces-1)]
	c.Packets++
	c.Bytes += uint64(m.PktLen)
	h.w.Send(h.w.Tables.Ifaces[iface&(graph.MaxIfaces-1)].Port, m.Index())
}

// send sends a whole IP packet in h.tx[:n], checksums done: link-local ones by the
// interface, all others by the road. An IPv6 packet longer than the interface's
// MTU is fragmented.
func (h *Host) send(f frame, n int) {
	b := h.tx[:n]
	if b[0]>>4 == 4 {
		ip := packet.IPv4(b)
		ip.SetTTL(ip.TTL() + 1)
		ip.SetSum()
		h.park(b)
		return
	}
	mtu := int(h.w.Tables.Ifaces[f.iface&(graph.MaxIfaces-1)].MTU)
	if mtu < 1280 {
		mtu = 1280
	}
	if n > mtu {
		h.fragment6(f, b, mtu)
		return
	}
	h.send6(f, b)
}

func (h *Host) send6(f frame, b []byte) {
	ip := packet.IPv6(b)
	dst := netip.AddrFrom16(ip.Dst())
	if !dst.IsLinkLocalUnicast() && !dst.IsMulticast() {
		ip.SetHopLimit(ip.HopLimit() + 1)
		h.park(b)
		return
	}
	m := h.frame(f.iface, packet.EtherIPv6, b)
	switch {
	case m == nil:
	case dst.IsMulticast():
		h.sendTo(f.iface, groupMAC(dst), m)
	default:
		h.toNeighbour(f.iface, dst, m)
	}
}

// park lets a packet wait for the road.
func (h *Host) park(b []byte) {
	m := h.build(packet.EtherSize, b)
	if m == nil {
		return
	}
	clear(m.Bytes()[:packet.EtherSize])
	if !h.parked.Put(graph.ParkNew(m, packet.EtherSize)) {
		h.w.Discard(m.Index(), xQueue)
		return
	}
	h.w.Wake = true
}

// fragment6 sends an IPv6 packet without extension headers in fragments (RFC 8200 4.5).
func (h *Host) fragment6(f frame, b []byte, mtu int) {
	const unfrag = packet.IPv6Size + 8
	step := (mtu - unfrag) &^ 7
	id := h.rand.Uint32()
	ip := packet.IPv6(b)
	hops := ip.HopLimit()
	body := b[packet.IPv6Size:]
	for off := 0; off < len(body); off += step {
		k := min(step, len(body)-off)
		o := packet.IPv6(h.cut[:unfrag+k])
		copy(o, b[:packet.IPv6Size])
		o.SetNext(packet.ProtoFragment)
		o.SetHopLimit(hops)
		o.SetPayloadLen(8 + k)
		more := 0
		if off+k < len(body) {
			more = 1
		}
		word := off | more
		copy(o[packet.IPv6Size:], []byte{ip.Next(), 0, byte(word >> 8), byte(word), byte(id >> 24), byte(id >> 16), byte(id >> 8), byte(id)})
		copy(o[unfrag:], body[off:off+k])
		h.send6(f, o)
	}
}

// reply6 starts an IPv6 packet in h.tx and returns its payload of n bytes.
func (h *Host) reply6(src, dst netip.Addr, next uint8, hops uint8, n int) []byte {
	o := packet.IPv6(h.tx)
	o.Init(src.As16(), dst.As16(), next, n)
	o.SetHopLimit(hops)
	return h.tx[packet.IPv6Size : packet.IPv6Size+n]
}

// sum6 completes the checksum of the payload of n bytes, which lies at off in it.
func (h *Host) sum6(next uint8, off, n int) {
	p := h.tx[packet.IPv6Size : packet.IPv6Size+n]
	p[off], p[off+1] = 0, 0
	packet.PutSum(p[off:], ^packet.Fold(packet.Sum(p, packet.IPv6(h.tx).Pseudo(next, n))))
}

// source6 is the address to answer dst from, where the packet was not sent to an
// address of the host.
func (h *Host) source6(iface uint16, dst netip.Addr) netip.Addr {
	if !dst.IsLinkLocalUnicast() {
		if a := h.w.Tables.Addrs.Load().Source6(iface); a.IsValid() {
			return a
		}
	}
	return h.linkLocal(iface)
}

// minMTU6 and maxError4 bound errors: RFC 4443 2.4 (c), RFC 1812 4.3.2.3.
const (
	minMTU6   = 1280
	maxError4 = 576
)

// error6 sends an ICMPv6 error about the packet b, unless RFC 4443 2.4 (e) forbids it.
func (h *Host) error6(f frame, b []byte, typ, code uint8, arg uint32) {
	ip := packet.IPv6(b)
	src, dst := netip.AddrFrom16(ip.Src()), netip.AddrFrom16(ip.Dst())
	if src.IsUnspecified() || src.IsMulticast() {
		return
	}
	if (dst.IsMulticast() || f.multicast) && !(typ == packet.ICMP6ParamProblem && code == 2) {
		return
	}
	if quietAbout(b) || !h.allow() {
		return
	}
	if dst.IsMulticast() || !h.mine(f.iface, dst) {
		dst = h.source6(f.iface, src)
	}
	k := min(len(b), minMTU6-packet.IPv6Size-packet.ICMPSize)
	p := h.reply6(dst, src, packet.ProtoICMPv6, 64, packet.ICMPSize+k)
	p[0], p[1] = typ, code
	packet.ICMP(p).SetRest(arg)
	copy(p[packet.ICMPSize:], b[:k])
	h.sum6(packet.ProtoICMPv6, 2, len(p))
	h.send(f, packet.IPv6Size+len(p))
}

// quietAbout reports whether the IPv6 packet is, or may be, an ICMPv6 error or a redirect.
func quietAbout(b []byte) bool {
	proto, off := b[6], packet.IPv6Size
	for range packet.MaxExt {
		switch proto {
		case packet.ProtoHopByHop, packet.ProtoDstOpts, packet.ProtoRouting:
			if off+8 > len(b) {
				return false
			}
			proto, off = b[off], off+(int(b[off+1])+1)*8
		case packet.ProtoFragment:
			if off+8 > len(b) {
				return false
			}
			if b[off+2] != 0 || b[off+3]&^7 != 0 {
				// Not the first: what an ICMPv6 message it belongs to cannot be known.
				return b[off] == packet.ProtoICMPv6 || b[off] == packet.ProtoDstOpts
			}
			proto, off = b[off], off+8
		case packet.ProtoICMPv6:
			return off >= len(b) || packet.ICMP(b[off:]).IsError6() || b[off] == packet.ICMP6Redirect
		default:
			return false
		}
	}
	return true
}

// reply4 starts an IPv4 packet in h.tx and returns its payload of n bytes.
func (h *Host) reply4(src, dst [4]byte, proto, tos uint8, n int) []byte {
	o := packet.IPv4(h.tx)
	o.Init(src, dst, proto, packet.IPv4Size+n)
	o.SetTOS(tos)
	o.SetID(h.ids.Next(src, dst, proto))
	return h.tx[packet.IPv4Size : packet.IPv4Size+n]
}

// Errors have precedence internetwork control and the packet's own type of service
// (RFC 1812 4.3.2.5).
const (
	tosControl = 0xc0
	tosKept    = 0x1e
)

// error4 sends an ICMP error about the packet b, unless RFC 1122 3.2.2 forbids it.
func (h *Host) error4(f frame, b []byte, typ, code uint8) {
	ip := packet.IPv4(b)
	src, dst := netip.AddrFrom4(ip.Src()), netip.AddrFrom4(ip.Dst())
	if f.multicast || !unicast4(src) || !h.mine(f.iface, dst) || ip.FragOff() != 0 {
		return
	}
	hl := ip.HeaderLen()
	if ip.Proto() == packet.ProtoICMP && (len(b) <= hl || packet.ICMP(b[hl:]).IsError()) {
		return
	}
	if !h.allow() {
		return
	}
	k := min(len(b), maxError4-packet.IPv4Size-packet.ICMPSize)
	p := h.reply4(ip.Dst(), ip.Src(), packet.ProtoICMP, tosControl|ip.TOS()&tosKept, packet.ICMPSize+k)
	p[0], p[1] = typ, code
	packet.ICMP(p).SetRest(0)
	copy(p[packet.ICMPSize:], b[:k])
	p[2], p[3] = 0, 0
	packet.PutSum(p[2:], packet.Checksum(p))
	h.send(f, packet.IPv4Size+len(p))
}

// unicast4 reports whether an answer may be sent to the address.
func unicast4(a netip.Addr) bool {
	b := a.As4()
	return b[0] != 0 && b[0] != 127 && b[0] < 224
}
