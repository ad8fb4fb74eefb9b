package mcast

import (
	"unsafe" // headers in the vector, which the check stages have judged

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// What becomes of packets for groups that are not forwarded.
var (
	XNoRoute = graph.NewReason(graph.ReasonInfo{Stage: "multicast", Name: "no-route", Kind: graph.Host, To: "host",
		Doc: "No multicast route covers the group and source: the host gets the packet. It may listen itself, and it tells its multicast routing daemon of a source that is new."})
	XKernel = graph.NewReason(graph.ReasonInfo{Stage: "multicast", Name: "for-kernel", Kind: graph.Host, To: "host",
		Doc: "A packet of one of the kernel's multicast routes that the kernel forwards instead: one a second, so that its counters rise and the routing daemon keeps the route; what may owe a daemon a message, such as a packet by a wrong interface (PIM assert); and sources whose routes are left to the kernel."})
	XLocal = graph.NewReason(graph.ReasonInfo{Stage: "multicast", Name: "local", Kind: graph.Host, To: "host",
		Doc: "The router itself listens to the group: the host gets the packet, and the outgoing interfaces replicas."})
	XWrongIface = graph.NewReason(graph.ReasonInfo{Stage: "multicast", Name: "wrong-interface",
		Doc: "The packet came in by another interface than the one that leads to its source (reverse-path check): a loop, a second router on the network, or a route that has changed. `show mroutes -s` counts them by route."})
	XBoundary = graph.NewReason(graph.ReasonInfo{Stage: "multicast", Name: "boundary",
		Doc: "The interface that the packet came in by is a boundary of the group's scope (RFC 2365)."})
	XNoInterface = graph.NewReason(graph.ReasonInfo{Stage: "multicast", Name: "no-interface",
		Doc: "The multicast route has no outgoing interface that is up, other than the one that the packet came in by: nobody wants the group."})
	XThreshold = graph.NewReason(graph.ReasonInfo{Stage: "multicast", Name: "ttl-threshold",
		Doc: "The packet's TTL is not above the threshold of any outgoing interface of its multicast route: it is not meant to go so far."})
	XNoBuffer = graph.NewReason(graph.ReasonInfo{Stage: "multicast", Name: "no-buffer",
		Doc: "No buffers were left for a replica, or 8,192 replicas waited. Make the pool larger."})
)

// queueSize is how many replicas wait for their turn: as many as the road takes on in one round.
const queueSize = 32 * graph.VectorSize

// Stage is the exit stage "multicast". Its packets go on at "options4", so that each replica records the interface
// that it leaves by.
func Stage(t *Table) *graph.Stage {
	return &graph.Stage{
		Name: "multicast", Doc: "replicate multicast packets by their multicast route",
		Reasons: []graph.Reason{XNoRoute, XKernel, XLocal, XWrongIface, XBoundary, XNoInterface, XThreshold, XNoBuffer}, Resume: "options4",
		New: func(w *graph.Worker) graph.Runner {
			return &replicator{w: w, t: t, cells: t.worker(), queue: graph.NewParkQueue(queueSize), second: clock.Hz()}
		},
	}
}

// replicator is a worker's instance.
type replicator struct {
	w      *graph.Worker
	t      *Table
	cells  []cell
	queue  *graph.ParkQueue
	second uint64 // clocks
	adjs   [MaxOut]uint16
	made   [MaxOut]uint32
}

func (s *replicator) Run(*graph.Vector) {}

func (s *replicator) Take(v *graph.Vector, pos []uint8, _ graph.Reason) {
	for _, i := range pos {
		s.one(v, i)
	}
	if s.queue.Len() != 0 {
		s.w.Wake = true
	}
}

// mapped is the upper half of an IPv4-mapped address's first 12 bytes, in memory order.
const mapped = 0xffff0000

// one decides about the packet at position i.
func (s *replicator) one(v *graph.Vector, i uint8) {
	w, p := s.w, v.Header(i)
	k := key{table: uint64(w.Tables.Ifaces[v.In[i]&(graph.MaxIfaces-1)].Table)}
	var ttl uint8
	head := packet.IPv6Size
	if b := *(*uint8)(p); b>>4 == 4 {
		k.s1 = mapped | uint64(*(*uint32)(unsafe.Add(p, 12)))<<32
		k.g1 = mapped | uint64(*(*uint32)(unsafe.Add(p, 16)))<<32
		ttl, head = *(*uint8)(unsafe.Add(p, 8)), int(b&15)*4
	} else {
		k.s0, k.s1 = *(*uint64)(unsafe.Add(p, 8)), *(*uint64)(unsafe.Add(p, 16))
		k.g0, k.g1 = *(*uint64)(unsafe.Add(p, 24)), *(*uint64)(unsafe.Add(p, 32))
		ttl = *(*uint8)(unsafe.Add(p, 7))
	}
	at := s.t.slots.Load()
	e := at.find(&k)
	if e == nil {
		k.s0, k.s1 = 0, 0
		e = at.find(&k)
	}
	if e == nil || v.In[i] == 0 { // what was made here has no interface to come in by
		w.Leave(v.Park(i), XNoRoute)
		return
	}
	c := &s.cells[e.cell&(MaxRoutes-1)]
	c.Packets++
	c.Bytes += uint64(v.Len[i])
	why := graph.Reason(0)
	switch {
	case e.flags&fHost != 0:
		why = XKernel
	case e.in != v.In[i]:
		c.Wrong++
		if why = XWrongIface; s.kernel(e, c, v.In[i], e.key.s1 == 0) {
			why = XKernel
		}
	case e.flags&fBoundary != 0:
		why = XBoundary
	case s.kernel(e, c, v.In[i], false):
		why = XKernel
	}
	if why != 0 {
		w.Leave(v.Park(i), why)
		return
	}
	n, low := 0, false
	for _, o := range e.out {
		if ttl <= o.TTL {
			low = true
			continue
		}
		if a := w.Tables.Multicast[o.Iface&(graph.MaxIfaces-1)]; a != 0 && o.Iface != v.In[i] {
			s.adjs[uint8(n)] = a
			n++
		}
	}
	switch {
	case e.flags&fLocal != 0:
		s.replicas(v, i, head, s.adjs[:n])
		w.Leave(v.Park(i), XLocal)
	case n == 0 && low:
		w.Leave(v.Park(i), XThreshold)
	case n == 0:
		w.Leave(v.Park(i), XNoInterface)
	default:
		s.replicas(v, i, head, s.adjs[:n-1])
		q := v.Park(i)
		q.Adj = s.adjs[uint8(n-1)]
		if !s.queue.Put(q) {
			w.Discard(q.Idx, XNoBuffer)
		}
	}
}

// kernel reports whether the packet goes to the kernel instead: a kernel that sees the interface by a TAP and has the
// route gets one a second, or with all each of them.
func (s *replicator) kernel(e *entry, c *cell, in uint16, all bool) bool {
	t := s.w.Tables
	if e.flags&fKernel == 0 || t.Taps[t.Ifaces[in&(graph.MaxIfaces-1)].Port&(graph.MaxPorts-1)] == 0 {
		return false
	}
	if all {
		return true
	}
	if s.w.Now < c.next {
		return false
	}
	c.next = s.w.Now + s.second
	return true
}

// replicas queues a replica of the packet at position i for each adjacency. head is the length of the IP header.
func (s *replicator) replicas(v *graph.Vector, i uint8, head int, adjs []uint16) {
	w, m := s.w, v.Mbuf(i)
	n := min(len(adjs), queueSize-s.queue.Len())
	n = w.Cache.Replicate(m, v.L3Off(i), head, int(v.Len[i]), s.made[:n])
	for j, x := range s.made[:n] {
		r := packet.At(x)
		a := adjs[j]
		if max := w.Tx[w.Tables.Adjs[a].Port&(graph.MaxPorts-1)].Segments; max != 0 && int(r.NbSegs) > max {
			r = s.flat(r)
		}
		p := graph.ParkNew(r, 0)
		p.In, p.NH, p.Adj = v.In[i], v.NH[i], a
		s.queue.Put(p)
	}
	w.C.Created += uint64(len(adjs))
	w.C.Exit[XNoBuffer] += uint64(len(adjs) - n) // as if made and dropped
}

// flat is the packet in one piece where one buffer holds it and there is one; otherwise as it is, which its port refuses.
func (s *replicator) flat(m *packet.Mbuf) *packet.Mbuf {
	if int(m.PktLen) > packet.DataRoom {
		return m
	}
	x := s.w.Cache.Alloc1()
	if x == nil {
		return m
	}
	x.Port, x.Type, x.RSS = m.Port, m.Type, m.RSS
	m.CopyOut(0, x.Append(int(m.PktLen)))
	s.w.Cache.Free1(m)
	return x
}

func (s *replicator) Refill(v *graph.Vector) int { return s.queue.Refill(v) }

func (s *replicator) Held() int { return s.queue.Len() }

func (s *replicator) Flush() {
	for p, ok := s.queue.Get(); ok; p, ok = s.queue.Get() {
		s.w.Discard(p.Idx, graph.XClosing)
	}
}
