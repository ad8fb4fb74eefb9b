// Package icmp sends the ICMP and ICMPv6 errors that the router owes to senders of packets it
// dropped (RFC 792, RFC 1812 4.3, RFC 4443), and redirects (RFC 1812 5.2.7.2, RFC 4861 8).
//
// Which error a packet's sender is owed stands in the Reason that the packet left for. This package
// decides whether the error may be sent at all, limits the rate, and builds the
// message: a new buffer with as much of the packet, as it was received, as the RFCs want.
// Messages go on at the lookup like any packet, and are counted as created.
//
// # Rates
//
// As Linux does: HostBurst messages at once and then one a second to one host; GlobalBurst
// at once and then 1,000 a second in all, for each worker. "Too big" messages are not
// limited: without them a path does not work, and each is caused by a larger packet.
package icmp

import (
	"encoding/binary"
	"net/netip"
	"unsafe" // headers in the vector, which the check stages have judged

	"millrace/ip"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// Events that are no packet's fate.
var (
	XSent = graph.NewReason(graph.ReasonInfo{Stage: "icmp", Name: "sent", Kind: graph.Note,
		Doc: "ICMP errors and redirects sent."})
	XLimited = graph.NewReason(graph.ReasonInfo{Stage: "icmp", Name: "rate-limited", Kind: graph.Note,
		Doc: "An ICMP error was owed and not sent: more than one a second for the same host, or more than 1,000 in all."})
	XNotOwed = graph.NewReason(graph.ReasonInfo{Stage: "icmp", Name: "not-owed", Kind: graph.Note,
		Doc: "No ICMP error was sent since none may be: the packet was itself an ICMP error, not the first fragment, or its source or destination is no single host (RFC 1122 3.2.2, RFC 4443 2.4)."})
	XNoSource = graph.NewReason(graph.ReasonInfo{Stage: "icmp", Name: "no-address", Kind: graph.Note,
		Doc: "An ICMPv6 error was owed and not sent, since no interface of the router has an address to send it from."})
	XNoBuffer = graph.NewReason(graph.ReasonInfo{Stage: "icmp", Name: "no-buffer", Kind: graph.Note,
		Doc: "An ICMP error was owed and not sent, since no buffers were left or 256 errors waited."})
)

const (
	size4 = 576  // largest IPv4 error, header and all (RFC 1812 4.3.2.3)
	size6 = 1280 // largest IPv6 error (RFC 4443 2.4 (c))

	// ttl is decremented on the way out like any packet's, and leaves as 64.
	ttl = 65
	// hops255 is decremented to 255 on the way out, as neighbour discovery wants it
	// (RFC 4861 8.1).
	hops255 = 0
	// tos4 is precedence "internetwork control" (RFC 1812 4.3.2.5).
	tos4 = 0xc0

	minMTU4, minMTU6 = 68, 1280

	queueSize = graph.VectorSize // errors that wait for the next round
)

// Stage is the exit stage "icmp". Its packets go on at "lookup".
func Stage(l Limits) *graph.Stage {
	return &graph.Stage{
		Name: "icmp", Doc: "send the ICMP errors that are owed",
		Reasons: []graph.Reason{XSent, XLimited, XNotOwed, XNoSource, XNoBuffer}, Resume: "lookup",
		New: func(w *graph.Worker) graph.Runner {
			return &sender{w: w, queue: graph.NewParkQueue(queueSize), ids: ip.NewIDs(), limit: newLimiter(l)}
		},
	}
}

// sender is a worker's instance.
type sender struct {
	w     *graph.Worker
	queue *graph.ParkQueue
	ids   *ip.IDs
	limit *limiter
}

func (s *sender) Run(*graph.Vector) {}

// Take sends what is owed and frees the packets.
func (s *sender) Take(v *graph.Vector, pos []uint8, why graph.Reason) {
	x := why.Info()
	for _, i := range pos {
		switch *(*byte)(v.Header(i)) >> 4 {
		case 4:
			if x.ICMP4.Owed {
				s.error4(v, i, x)
			}
		case 6:
			if x.ICMP6.Owed {
				s.error6(v, i, x)
			}
		}
		s.w.Cache.Free1(v.Mbuf(i))
	}
}

func (s *sender) Refill(v *graph.Vector) int { return s.queue.Refill(v) }

func (s *sender) Held() int { return s.queue.Len() }

func (s *sender) Flush() {
	for p, ok := s.queue.Get(); ok; p, ok = s.queue.Get() {
		s.w.Discard(p.Idx, graph.XClosing)
	}
}

func (s *sender) note(why graph.Reason) { s.w.C.Exit[why]++ }

// put queues a finished message. It looks for its way in the routing table of the packet that it
// answers, which came in by an interface.
func (s *sender) put(m *packet.Mbuf, in uint16) {
	p := graph.ParkNew(m, 0)
	p.In = in
	if !s.queue.Put(p) {
		s.note(XNoBuffer)
		s.w.Cache.Free1(m)
		return
	}
	s.w.C.Created++
	s.note(XSent)
	s.w.Wake = true
}

// arg is the error's argument: what the reason finds, or the MTU of the packet's way out.
func (s *sender) arg(v *graph.Vector, i uint8, x *graph.ReasonInfo) uint32 {
	if x.Arg != nil {
		return x.Arg(v, i)
	}
	return uint32(s.w.Tables.Adjs[v.Adj[i]].MTU)
}

// groupFrame reports whether the frame was sent to a group of stations.
func groupFrame(v *graph.Vector, i uint8) bool {
	return v.In[i] != 0 && v.L3Off(i) >= packet.EtherSize && packet.Ethernet(v.Mbuf(i).Bytes()).IsMulticast()
}

// ---- IPv4

func (s *sender) error4(v *graph.Vector, i uint8, x *graph.ReasonInfo) {
	e := x.ICMP4
	h := packet.IPv4(unsafe.Slice((*byte)(v.Header(i)), packet.IPv4Size))
	if !s.owed4(v, i, h) {
		s.note(XNotOwed)
		return
	}
	tooBig := e.Type == packet.ICMPUnreachable && e.Code == 4
	if s.limit.none || !tooBig && !s.limit.allow(s.w.Now, netip.AddrFrom4(h.Src()), limitError) {
		s.note(XLimited)
		return
	}
	word := uint32(0)
	switch {
	case tooBig:
		if word = s.arg(v, i, x); word != 0 {
			word = max(word, minMTU4)
		}
	case e.Type == packet.ICMPParamProblem:
		word = s.arg(v, i, x) << 24
	}
	src := s.w.Tables.Addrs.Load().Source4(v.In[i])
	if !src.IsValid() {
		src = dummy4
	}
	s.send4(v, i, src.As4(), e.Type, e.Code, word)
}

// dummy4 is the source of a router without any IPv4 address (RFC 7600 4.8).
var dummy4 = netip.AddrFrom4([4]byte{192, 0, 0, 8})

// owed4 reports whether an error about the packet may be sent (RFC 1122 3.2.2,
// RFC 1812 4.3.2.7).
func (s *sender) owed4(v *graph.Vector, i uint8, h packet.IPv4) bool {
	src, dst := h.Src(), h.Dst()
	if h.FragOff() != 0 || src[0] == 0 || src[0] == 127 || src[0] >= 224 || dst[0] >= 224 || groupFrame(v, i) {
		return false
	}
	for _, p := range s.w.Tables.Addrs.Load().By[v.In[i]] {
		if p.Addr().Is4() && p.Bits() < 31 {
			if b := broadcast(p); b == src || b == dst {
				return false
			}
		}
	}
	if h.Proto() == packet.ProtoICMP {
		var tmp [1]byte
		b := v.Mbuf(i).View(v.L3Off(i)+h.HeaderLen(), 1, tmp[:])
		return b != nil && !packet.ICMP(b).IsError()
	}
	return true
}

// broadcast is a network's directed broadcast address.
func broadcast(p netip.Prefix) [4]byte {
	a := p.Addr().As4()
	binary.BigEndian.PutUint32(a[:], binary.BigEndian.Uint32(a[:])|^uint32(0)>>p.Bits())
	return a
}

// send4 queues a message about the packet at position i to its source.
func (s *sender) send4(v *graph.Vector, i uint8, src [4]byte, typ, code uint8, word uint32) {
	m := s.w.Cache.Alloc1()
	if m == nil {
		s.note(XNoBuffer)
		return
	}
	quote := min(int(v.Len[i]), size4-packet.IPv4Size-packet.ICMPSize)
	b := m.Append(packet.IPv4Size + packet.ICMPSize + quote)
	c := packet.ICMP(b[packet.IPv4Size:])
	v.Mbuf(i).CopyOut(v.L3Off(i), c[packet.ICMPSize:])
	about := packet.IPv4(c[packet.ICMPSize:])

	h := packet.IPv4(b)
	h.Init(src, about.Src(), packet.ProtoICMP, len(b))
	h.SetTOS(tos4 | about.TOS()&0x1c)
	h.SetTTL(ttl)
	h.SetID(s.ids.Next(src, about.Src(), packet.ProtoICMP))
	h.SetSum()
	c[0], c[1], c[2], c[3] = typ, code, 0, 0
	c.SetRest(word)
	packet.PutSum(c[2:], packet.Checksum(c))
	s.put(m, v.In[i])
}

// ---- IPv6

func (s *sender) error6(v *graph.Vector, i uint8, x *graph.ReasonInfo) {
	e := x.ICMP6
	h := packet.IPv6(unsafe.Slice((*byte)(v.Header(i)), packet.IPv6Size))
	tooBig := e.Type == packet.ICMP6TooBig
	// Two errors may answer multicast (RFC 4443 2.4 (e.3)).
	if !owed6(v, i, h, tooBig || e.Type == packet.ICMP6ParamProblem && e.Code == 2) {
		s.note(XNotOwed)
		return
	}
	to := netip.AddrFrom16(h.Src())
	if s.limit.none || !tooBig && !s.limit.allow(s.w.Now, to, limitError) {
		s.note(XLimited)
		return
	}
	word := uint32(0)
	switch {
	case tooBig:
		word = max(s.arg(v, i, x), minMTU6)
	case e.Type == packet.ICMP6ParamProblem:
		word = s.arg(v, i, x)
	}
	a := s.w.Tables.Addrs.Load()
	src := a.Source6(v.In[i])
	local := to.IsLinkLocalUnicast()
	if ll, ok := linkLocal(a, v.In[i]); ok && (local || !src.IsValid()) {
		src = ll
	}
	if !src.IsValid() {
		s.note(XNoSource)
		return
	}
	m := s.w.Cache.Alloc1()
	if m == nil {
		s.note(XNoBuffer)
		return
	}
	quote := min(int(v.Len[i]), size6-packet.IPv6Size-packet.ICMPSize)
	b := m.Append(packet.IPv6Size + packet.ICMPSize + quote)
	v.Mbuf(i).CopyOut(v.L3Off(i), b[packet.IPv6Size+packet.ICMPSize:])
	finish6(b, src.As16(), h.Src(), ttl, e.Type, e.Code, word)
	if local {
		s.reply(v, i, m)
	} else {
		s.put(m, v.In[i])
	}
}

// owed6 reports whether an error about the packet may be sent (RFC 4443 2.4 (e)). A fragment that
// is not the first may be answered: errors are never long enough to be fragmented.
func owed6(v *graph.Vector, i uint8, h packet.IPv6, multicast bool) bool {
	src, dst := h.Src(), h.Dst()
	if src[0] == 0xff || src == [16]byte{} || src == [16]byte{15: 1} {
		return false
	}
	if !multicast && (dst[0] == 0xff || groupFrame(v, i)) {
		return false
	}
	w, ok := packet.WalkIPv6(v.Mbuf(i), v.L3Off(i))
	if !ok || w.Proto != packet.ProtoICMPv6 || w.HasFrag && w.FragOff != 0 {
		return true
	}
	var tmp [1]byte
	b := v.Mbuf(i).View(w.Off, 1, tmp[:])
	return b != nil && !packet.ICMP(b).IsError6() && b[0] != packet.ICMP6Redirect
}

// finish6 writes the header and the ICMPv6 header of b, whose body is in place.
func finish6(b []byte, src, dst [16]byte, hops, typ, code uint8, word uint32) {
	h, c := packet.IPv6(b), packet.ICMP(b[packet.IPv6Size:])
	h.Init(src, dst, packet.ProtoICMPv6, len(c))
	h.SetHopLimit(hops)
	c[0], c[1], c[2], c[3] = typ, code, 0, 0
	c.SetRest(word)
	packet.PutSum(c[2:], ^packet.Fold(packet.Sum(c, h.Pseudo(packet.ProtoICMPv6, len(c)))))
}

// linkLocal is the interface's link-local address.
func linkLocal(a *graph.Addresses, iface uint16) (netip.Addr, bool) {
	for _, p := range a.By[iface] {
		if ad := p.Addr(); ad.Is6() && ad.IsLinkLocalUnicast() {
			return ad, true
		}
	}
	return netip.Addr{}, false
}

// reply sends a message straight back to the station that sent the packet at position i: for
// link-local addresses, which no lookup knows the way to.
func (s *sender) reply(v *graph.Vector, i uint8, m *packet.Mbuf) {
	w, l2 := s.w, v.L3Off(i)
	var e [22]byte
	if v.In[i] == 0 || l2 < packet.EtherSize || l2 > len(e) || v.Mbuf(i).CopyOut(0, e[:l2]) < l2 || e[6]&1 != 0 {
		s.note(XNotOwed)
		w.Cache.Free1(m)
		return
	}
	ifc := &w.Tables.Ifaces[v.In[i]]
	h := packet.IPv6(m.Bytes())
	h.SetHopLimit(ttl - 1)
	var mac [8]byte
	binary.NativeEndian.PutUint64(mac[:], ifc.MAC>>16)
	f := packet.Ethernet(m.Prepend(l2))
	copy(f, e[:l2])
	f.SetDst([6]byte(e[6:12]))
	f.SetSrc([6]byte(mac[:6]))
	w.C.Created++
	s.note(XSent)
	tx := &w.C.Tx[v.In[i]&(graph.MaxIfaces-1)]
	tx.Packets++
	tx.Bytes += uint64(m.PktLen)
	w.Send(ifc.Port, m.Index())
}
