package pipeline

import (
	"unsafe"

	"millrace/pipeline/graph"
)

// Rewrite decrements TTL or hop limit, writes the new Ethernet header and collects the packets
// by port. Packets larger than the adjacency's MTU leave for fragmentation, or for the
// ICMP error that they owe.
func Rewrite(x MTUReasons, redirect Redirector) *graph.Stage {
	return &graph.Stage{
		Name: "rewrite", Doc: "TTL, checksum, Ethernet header", Lane: graph.Any,
		Reasons: []graph.Reason{x.Fragment, x.DontFragment, x.TooBig6, xHeadroom},
		New: func(w *graph.Worker) graph.Runner {
			r := &rewrite{w: w, x: x}
			if redirect != nil {
				r.redirect = redirect(w)
			}
			return r
		},
		Trace: traceRewrite,
	}
}

// MTUReasons are given to packets larger than the MTU of their adjacency.
type MTUReasons struct {
	Fragment     graph.Reason // IPv4 without DF
	DontFragment graph.Reason // IPv4 with DF
	TooBig6      graph.Reason
}

// Redirector makes the function that sends an ICMP redirect about position i, which goes
// on all the same. The packet is shown as it was received.
type Redirector func(w *graph.Worker) func(v *graph.Vector, i uint8)

var xHeadroom = graph.NewReason(graph.ReasonInfo{Stage: "rewrite", Name: "no-headroom",
	Doc: "The buffer has too little room before the packet for the Ethernet header: the port that received it should ask for more headroom."})

type rewrite struct {
	w        *graph.Worker
	x        MTUReasons
	redirect func(v *graph.Vector, i uint8)
}

func (s *rewrite) Run(v *graph.Vector) {
	w := s.w
	if v.N4 != 0 {
		var back, tagged bool
		if inRuns(v, &v.Lane4, v.N4) {
			back, tagged = rewrite4(w, v)
		} else {
			heads4(w, v)
			back, tagged = collect(w, v, &v.Lane4, v.N4)
		}
		if tagged {
			s.fixData(v, &v.Lane4, v.N4)
		}
		s.odd(v, s.x.Fragment)
		if back && s.redirect != nil {
			s.redirects(v, &v.Lane4, v.N4)
		}
	}
	if v.N6 != 0 {
		var back, tagged bool
		if inRuns(v, &v.Lane6, v.N6) {
			back, tagged = rewrite6(w, v)
		} else {
			heads6(w, v)
			back, tagged = collect(w, v, &v.Lane6, v.N6)
		}
		if tagged {
			s.fixData(v, &v.Lane6, v.N6)
		}
		s.odd(v, s.x.TooBig6)
		if back && s.redirect != nil {
			s.redirects(v, &v.Lane6, v.N6)
		}
	}
}

// Transmit gives the ports what was collected for them, one burst each.
var Transmit = &graph.Stage{
	Name: "tx", Doc: "transmit, one burst a port", Lane: graph.Any,
	Reasons: []graph.Reason{graph.XTxFull, graph.XNoPort},
	New:     func(w *graph.Worker) graph.Runner { return transmit{w} },
	Trace:   traceTransmit,
}

type transmit struct{ w *graph.Worker }

func (s transmit) Run(*graph.Vector) { s.w.Flush() }

// rewrite4 handles the IPv4 lane by runs of one adjacency, for lanes that are inRuns. Packets that do not fit go to
// v.Odd. It reports whether any goes out by the interface that it came in by, and
// whether any frame's Ethernet header changes length.
func rewrite4(w *graph.Worker, v *graph.Vector) (back, tagged bool) {
	base, n, odd := w.Base, v.N4, 0
	adjs := (*[graph.MaxAdjs]graph.Adj)(w.Tables.Adjs)
	owed, moved := uint32(0), uint8(0) // summed up without branches, which neighbours in no order would mispredict
	for j := 0; j < n; {
		cur := v.Adj[v.Lane4[uint8(j)]]
		a := &adjs[cur]
		q := w.Tx[a.Port&(graph.MaxPorts-1)]
		qn, by := q.N, uint64(0)
		mtu, rw0, rw1 := a.MTU, a.RW0, a.RW4
		for ; j < n; j++ {
			i := v.Lane4[uint8(j)]
			if v.Adj[i] != cur {
				break
			}
			l := v.Len[i]
			if l > mtu {
				v.Odd[uint8(odd)] = i
				odd++
				continue
			}
			p := unsafe.Add(base, v.L3[i])
			*(*uint64)(unsafe.Add(p, -14)) = rw0
			*(*uint64)(unsafe.Add(p, -8)) = rw1
			ttlDown(p)
			by += uint64(l)
			q.Buf[uint8(qn)] = v.Idx[i]
			qn++
		}
		k := uint64(qn - q.N)
		if q.N == 0 && k != 0 {
			w.Dirty[w.ND&(graph.MaxPorts-1)] = a.Port
			w.ND++
		}
		by += uint64(a.L2) * k
		c := &w.C.Tx[a.Iface&(graph.MaxIfaces-1)]
		c.Packets += k
		c.Bytes += by
		q.N = qn
		owed |= uint32(a.Flags) & ((uint32(a.Iface^v.From) - 1) >> 31)
		moved |= a.L2 ^ 14 | a.Flags&graph.AdjMulticast
	}
	v.NOdd = odd
	return owed&graph.AdjRedirect != 0, moved != 0 || v.Moved
}

// rewrite6 is rewrite4 for the IPv6 lane.
func rewrite6(w *graph.Worker, v *graph.Vector) (back, tagged bool) {
	base, n, odd := w.Base, v.N6, 0
	adjs := (*[graph.MaxAdjs]graph.Adj)(w.Tables.Adjs)
	owed, moved := uint32(0), uint8(0)
	for j := 0; j < n; {
		cur := v.Adj[v.Lane6[uint8(j)]]
		a := &adjs[cur]
		q := w.Tx[a.Port&(graph.MaxPorts-1)]
		qn, by := q.N, uint64(0)
		mtu, rw0, rw1 := a.MTU, a.RW0, a.RW6
		for ; j < n; j++ {
			i := v.Lane6[uint8(j)]
			if v.Adj[i] != cur {
				break
			}
			l := v.Len[i]
			if l > mtu {
				v.Odd[uint8(odd)] = i
				odd++
				continue
			}
			p := unsafe.Add(base, v.L3[i])
			*(*uint64)(unsafe.Add(p, -14)) = rw0
			*(*uint64)(unsafe.Add(p, -8)) = rw1
			*(*uint8)(unsafe.Add(p, 7))--
			by += uint64(l)
			q.Buf[uint8(qn)] = v.Idx[i]
			qn++
		}
		k := uint64(qn - q.N)
		if q.N == 0 && k != 0 {
			w.Dirty[w.ND&(graph.MaxPorts-1)] = a.Port
			w.ND++
		}
		by += uint64(a.L2) * k
		c := &w.C.Tx[a.Iface&(graph.MaxIfaces-1)]
		c.Packets += k
		c.Bytes += by
		q.N = qn
		owed |= uint32(a.Flags) & ((uint32(a.Iface^v.From) - 1) >> 31)
		moved |= a.L2 ^ 14 | a.Flags&graph.AdjMulticast
	}
	v.NOdd = odd
	return owed&graph.AdjRedirect != 0, moved != 0 || v.Moved
}

// inRuns reports whether packets that follow each other in a lane mostly go to the same neighbour, as a few of them
// show. The frames are right either way: by runs is 8 clocks a packet faster with one neighbour, and 9 slower with many.
func inRuns(v *graph.Vector, lane *[graph.VectorSize]uint8, n int) bool {
	same, step := 0, n/8
	if step < 2 {
		return true
	}
	for k, j := 0, 0; k < 8; k, j = k+1, j+step {
		same += b2i(v.Adj[lane[uint8(j)]] == v.Adj[lane[uint8(j+1)]])
	}
	return same >= 6
}

// These hold for the one load of collect.
const (
	_ = -(unsafe.Offsetof(graph.Adj{}.Iface) - unsafe.Offsetof(graph.Adj{}.Port) ^ 2)
	_ = -(unsafe.Offsetof(graph.Adj{}.MTU) - unsafe.Offsetof(graph.Adj{}.Port) ^ 4)
	_ = -(unsafe.Offsetof(graph.Adj{}.L2) - unsafe.Offsetof(graph.Adj{}.Port) ^ 6)
	_ = -(unsafe.Offsetof(graph.Adj{}.Flags) - unsafe.Offsetof(graph.Adj{}.Port) ^ 7)
)

// heads4 and collect are rewrite4 for neighbours in no order: packet by packet, without a branch that depends on which
// neighbour it is. Each run of rewrite4 ends in a mispredicted branch; here counts go through memory instead.
func heads4(w *graph.Worker, v *graph.Vector) {
	base, n, odd := w.Base, v.N4, 0
	adjs := (*[graph.MaxAdjs]graph.Adj)(w.Tables.Adjs)
	for j := 0; j < n; j++ {
		i := v.Lane4[uint8(j)]
		a := &adjs[v.Adj[i]]
		if v.Len[i] > a.MTU {
			v.Odd[uint8(odd)] = i
			odd++
			continue
		}
		p := unsafe.Add(base, v.L3[i])
		*(*uint64)(unsafe.Add(p, -14)) = a.RW0
		*(*uint64)(unsafe.Add(p, -8)) = a.RW4
		ttlDown(p)
	}
	v.NOdd = odd
}

// heads6 is heads4 for the IPv6 lane.
func heads6(w *graph.Worker, v *graph.Vector) {
	base, n, odd := w.Base, v.N6, 0
	adjs := (*[graph.MaxAdjs]graph.Adj)(w.Tables.Adjs)
	for j := 0; j < n; j++ {
		i := v.Lane6[uint8(j)]
		a := &adjs[v.Adj[i]]
		if v.Len[i] > a.MTU {
			v.Odd[uint8(odd)] = i
			odd++
			continue
		}
		p := unsafe.Add(base, v.L3[i])
		*(*uint64)(unsafe.Add(p, -14)) = a.RW0
		*(*uint64)(unsafe.Add(p, -8)) = a.RW6
		*(*uint8)(unsafe.Add(p, 7))--
	}
	v.NOdd = odd
}

// collect puts the packets of a lane that fit into the TxBufs of their ports.
func collect(w *graph.Worker, v *graph.Vector, lane *[graph.VectorSize]uint8, n int) (back, tagged bool) {
	adjs := (*[graph.MaxAdjs]graph.Adj)(w.Tables.Adjs)
	tx := &w.C.Tx
	owed, moved, from := uint64(0), uint64(0), v.From
	for j := 0; j < n; j++ {
		i := lane[uint8(j)]
		x := *(*uint64)(unsafe.Pointer(&adjs[v.Adj[i]].Port)) // and Iface, MTU, L2, Flags
		moved |= x ^ 14<<48
		l, flags := uint64(v.Len[i]), x
		if uint16(x>>16) != from {
			flags = 0
		}
		owed |= flags
		if l > x>>32&0xffff {
			continue
		}
		q := w.Tx[x&(graph.MaxPorts-1)]
		k := q.N
		if k == 0 {
			w.Dirty[w.ND&(graph.MaxPorts-1)] = uint16(x)
			w.ND++
		}
		q.Buf[uint8(k)] = v.Idx[i]
		q.N = k + 1
		c := &tx[x>>16&(graph.MaxIfaces-1)]
		c.Packets++
		c.Bytes += l + x>>48&0xff
	}
	return owed>>56&graph.AdjRedirect != 0, moved&(0xff<<48|graph.AdjMulticast<<56) != 0 || v.Moved
}

// ttlDown decrements an IPv4 TTL and mends the checksum (RFC 1624): both stand in
// one 32-bit word, in which TTL-1 is +0xffff with end-around carry.
func ttlDown(p unsafe.Pointer) {
	t := (*uint32)(unsafe.Add(p, 8))
	y := uint64(*t) + 0xffff
	y += (y >> 32) << 16
	*t = uint32(y)
}

// ttlUp undoes ttlDown.
func ttlUp(p unsafe.Pointer) {
	t := (*uint32)(unsafe.Add(p, 8))
	y := uint64(*t) + 0xffff0000
	y += y >> 32
	*t = uint32(y)
}

// odd judges what was larger than its MTU.
func (s *rewrite) odd(v *graph.Vector, why graph.Reason) {
	for j := 0; j < v.NOdd; j++ {
		i := v.Odd[uint8(j)]
		x := why
		if p := v.Header(i); why == s.x.Fragment && *(*uint8)(unsafe.Add(p, 6))&0x40 != 0 {
			x = s.x.DontFragment
		}
		v.Exit(i, x)
	}
	v.NOdd = 0
}

// redirects tells senders of packets that go back where they came from of the
// better way. The packets wait in their TxBufs, rewritten: each is shown as it came.
func (s *rewrite) redirects(v *graph.Vector, lane *[graph.VectorSize]uint8, n int) {
	for j := range n {
		i := lane[uint8(j)]
		a := &s.w.Tables.Adjs[v.Adj[i]]
		if a.Iface != v.From || a.Flags&graph.AdjRedirect == 0 || v.Len[i] > a.MTU {
			continue
		}
		p := v.Header(i)
		if *(*uint8)(p)>>4 == 4 {
			ttlUp(p)
			s.redirect(v, i)
			ttlDown(p)
		} else {
			*(*uint8)(unsafe.Add(p, 7))++
			s.redirect(v, i)
			*(*uint8)(unsafe.Add(p, 7))--
		}
	}
}

// fixData finishes frames whose Ethernet header changes length, or that are for a group, which wait in their TxBufs: it
// sets the start of the data and writes the tags before the last 14 bytes, and groups' MAC addresses.
func (s *rewrite) fixData(v *graph.Vector, lane *[graph.VectorSize]uint8, n int) {
	w := s.w
	for j := range n {
		i := lane[uint8(j)]
		a := &w.Tables.Adjs[v.Adj[i]]
		if v.Len[i] > a.MTU {
			continue // leaves as it came
		}
		m := v.Mbuf(i)
		grow := int(a.L2) - v.L3Off(i)
		if grow > int(m.DataOff) {
			unsend(w.Tx[a.Port&(graph.MaxPorts-1)], v.Idx[i])
			v.Exit(i, xHeadroom)
			continue
		}
		m.DataOff -= uint16(grow)
		m.DataLen += uint16(grow)
		m.PktLen += uint32(grow)
		l3 := unsafe.Add(w.Base, v.L3[i])
		if a.L2 != 14 {
			copy(unsafe.Slice((*byte)(unsafe.Add(l3, -int(a.L2))), a.L2-2), a.Head[:])
		}
		if a.Flags&graph.AdjMulticast != 0 {
			groupMAC(unsafe.Add(l3, -int(a.L2)), l3)
		}
	}
}

// groupMAC writes at eth the MAC address of the group that the packet at l3 is for: 01:00:5e and the
// last 23 bits of an IPv4 group (RFC 1112 6.4), 33:33 and the last 32 of an IPv6 group (RFC 2464 7).
func groupMAC(eth, l3 unsafe.Pointer) {
	if *(*uint8)(l3)>>4 == 4 {
		*(*[3]byte)(eth) = [3]byte{0x01, 0x00, 0x5e}
		*(*[3]byte)(unsafe.Add(eth, 3)) = *(*[3]byte)(unsafe.Add(l3, 17))
		*(*uint8)(unsafe.Add(eth, 3)) &= 0x7f
		return
	}
	*(*[2]byte)(eth) = [2]byte{0x33, 0x33}
	*(*[4]byte)(unsafe.Add(eth, 2)) = *(*[4]byte)(unsafe.Add(l3, 36))
}

// unsend takes one packet out of a TxBuf again.
func unsend(b *graph.TxBuf, idx uint32) {
	for k := range b.N {
		if b.Buf[k] == idx {
			copy(b.Buf[k:b.N], b.Buf[k+1:b.N])
			b.N--
			return
		}
	}
}
