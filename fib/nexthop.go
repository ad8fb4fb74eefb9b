package fib

import (
	"unsafe" // headers in the vector, which the check stages have judged; tables outside the heap

	"millrace/packet"
	"millrace/pipeline/graph"
)

// reasons are those that the next-hop stages give.
func (f *FIB) reasons() []graph.Reason {
	return []graph.Reason{XNoRoute, XBlackhole, XUnreachable, XProhibit, XLocal, XMulticast, XBroadcast,
		XDirectedBroadcast, XMartian, XLinkLocal,
		XRuleBlackhole, XRuleUnreachable, XRuleProhibit, f.why.Unresolved}
}

// NextHop4 follows next-hop groups of IPv4 packets to adjacencies: NH to Adj.
func NextHop4(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "nexthop4", Doc: "next-hop group to adjacency, by flow hash among several", Lane: graph.IPv4,
		Reasons: f.reasons(),
		New:     func(w *graph.Worker) graph.Runner { return &nexthop4{hopper{w}} },
		Trace:   traceAdj,
	}
}

// NextHop6 is NextHop4 for IPv6 packets.
func NextHop6(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "nexthop6", Doc: "next-hop group to adjacency, by flow hash among several", Lane: graph.IPv6,
		Reasons: f.reasons(),
		New:     func(w *graph.Worker) graph.Runner { return &nexthop6{hopper{w}} },
		Trace:   traceAdj,
	}
}

// hopper follows groups.
type hopper struct{ w *graph.Worker }

// groupWord loads a group but for At, at once: see word.
func groupWord(groups *[graph.MaxGroups]graph.Group, g uint16) uint64 {
	return *(*uint64)(unsafe.Pointer(&groups[g&(graph.MaxGroups-1)]))
}

func (s hopper) groups() *[graph.MaxGroups]graph.Group {
	return (*[graph.MaxGroups]graph.Group)(s.w.Tables.Groups)
}

// piece is how many bytes from the L3 header of position i on lie in the first segment.
func piece(v *graph.Vector, base unsafe.Pointer, i uint8) uint16 {
	m := (*packet.Mbuf)(unsafe.Add(base, uintptr(v.Idx[i])<<6))
	if uint32(m.DataLen) == m.PktLen {
		return v.Len[i]
	}
	return min(v.Len[i], uint16(m.BufAddr-uintptr(base)-v.L3[i])+m.DataOff+m.DataLen)
}

type nexthop4 struct{ hopper }

func (s *nexthop4) Run(v *graph.Vector) {
	if s.follow(v, &v.Lane4, v.N4) {
		s.rest4(v)
	}
}

type nexthop6 struct{ hopper }

func (s *nexthop6) Run(v *graph.Vector) {
	if s.follow(v, &v.Lane6, v.N6) {
		s.rest6(v)
	}
}

// follow gives the packets of a lane the adjacencies of their groups, and reports whether some group has no single
// one. Most vectors hold nothing else and are done after this one short loop.
func (s hopper) follow(v *graph.Vector, lane *[graph.VectorSize]uint8, n int) (rest bool) {
	groups, all := s.groups(), uint64(0)
	for j := 0; j < n; j++ {
		i := lane[uint8(j)]
		w := groupWord(groups, v.NH[i])
		v.Adj[i] = uint16(w)
		all |= w
	}
	return all>>16 != 0
}

// found4 follows the groups in out, which a lookup gave for the IPv4 lane. It and rest4 are written once for each family: with
// the lane as an argument the loop takes half a clock a packet longer.
func (s hopper) found4(v *graph.Vector, out *[graph.VectorSize]uint16) {
	groups, n := s.groups(), v.N4
	all := uint64(0)
	for j := 0; j < n; j++ {
		i, e := v.Lane4[uint8(j)], out[uint8(j)]
		w := groupWord(groups, e)
		all |= w
		v.NH[i], v.Adj[i] = e, uint16(w)
	}
	if all>>16 != 0 {
		s.rest4(v)
	}
}

// found6 is found4 for the IPv6 lane.
func (s hopper) found6(v *graph.Vector, out *[graph.VectorSize]uint16) {
	groups, n := s.groups(), v.N6
	all := uint64(0)
	for j := 0; j < n; j++ {
		i, e := v.Lane6[uint8(j)], out[uint8(j)]
		w := groupWord(groups, e)
		all |= w
		v.NH[i], v.Adj[i] = e, uint16(w)
	}
	if all>>16 != 0 {
		s.rest6(v)
	}
}

// rest4 follows the groups of the IPv4 lane where some lead to several adjacencies or to a reason
// to leave. Groups may have changed since they were looked at: each is judged by one load.
// The place and size of a group's buckets stay the same as long as any worker may lead packets there.
func (s hopper) rest4(v *graph.Vector) {
	t := s.w.Tables
	h := t.Hash.Load()
	if h.Fields != packet.HashL4 || h.Symmetric {
		v.N4 = s.chosen(v, &v.Lane4, v.N4, h, false)
		return
	}
	groups, buckets, seed, base := s.groups(), (*[graph.MaxBuckets]uint16)(t.Buckets), h.Seed, s.w.Base
	k, x := 0, 0
	for j, n := 0, v.N4; j < n; j++ {
		i := v.Lane4[uint8(j)]
		g := &groups[v.NH[i]&(graph.MaxGroups-1)]
		w := *(*uint64)(unsafe.Pointer(g))
		if why := uint16(w >> 16); why != 0 {
			v.Adj[i], v.Odd[uint8(x)] = why, i
			x++
			continue
		}
		v.Lane4[uint8(k)] = i
		k++
		adj := uint16(w)
		if mask := uint32(w >> 32); mask != 0 {
			p := unsafe.Add(base, v.L3[i])
			hash := packet.MixBy(seed, *(*uint64)(unsafe.Add(p, 12)), packet.Ports4(p, piece(v, base, i)))
			adj = buckets[(g.At+hash&mask)&(graph.MaxBuckets-1)]
		}
		v.Adj[i] = adj
	}
	v.N4 = k
	leave(v, x)
}

// rest6 is rest4 for the IPv6 lane.
func (s hopper) rest6(v *graph.Vector) {
	t := s.w.Tables
	h := t.Hash.Load()
	if h.Fields != packet.HashL4 || h.Symmetric {
		v.N6 = s.chosen(v, &v.Lane6, v.N6, h, true)
		return
	}
	groups, buckets, seed, base := s.groups(), (*[graph.MaxBuckets]uint16)(t.Buckets), h.Seed, s.w.Base
	k, x := 0, 0
	for j, n := 0, v.N6; j < n; j++ {
		i := v.Lane6[uint8(j)]
		g := &groups[v.NH[i]&(graph.MaxGroups-1)]
		w := *(*uint64)(unsafe.Pointer(g))
		if why := uint16(w >> 16); why != 0 {
			v.Adj[i], v.Odd[uint8(x)] = why, i
			x++
			continue
		}
		v.Lane6[uint8(k)] = i
		k++
		adj := uint16(w)
		if mask := uint32(w >> 32); mask != 0 {
			p := unsafe.Add(base, v.L3[i])
			hash := packet.Mix6(seed, p, packet.Ports6(p, piece(v, base, i)))
			adj = buckets[(g.At+hash&mask)&(graph.MaxBuckets-1)]
		}
		v.Adj[i] = adj
	}
	v.N6 = k
	leave(v, x)
}

// leave lets the first n packets in v.Odd leave for the reasons in Adj.
func leave(v *graph.Vector, n int) {
	for j := 0; j < n; j++ {
		i := v.Odd[uint8(j)]
		v.Exit(i, graph.Reason(v.Adj[i]))
	}
}

// chosen is rest4 and rest6 by a hash that the operator chose. It returns the lane's new length.
func (s hopper) chosen(v *graph.Vector, lane *[graph.VectorSize]uint8, n int, h *packet.Hasher, v6 bool) int {
	k, x := 0, 0
	for j := 0; j < n; j++ {
		i := lane[uint8(j)]
		w := groupWord(s.groups(), v.NH[i])
		if why := uint16(w >> 16); why != 0 {
			v.Adj[i], v.Odd[uint8(x)] = why, i
			x++
			continue
		}
		lane[uint8(k)] = i
		k++
		v.Adj[i] = uint16(w)
		if mask := uint16(w >> 32); mask != 0 {
			p, in := unsafe.Add(s.w.Base, v.L3[i]), piece(v, s.w.Base, i)
			var hash uint32
			if v6 {
				hash = h.Hash6(p, in)
			} else {
				hash = h.Hash4(p, in)
			}
			v.Adj[i] = s.pick(v.NH[i], mask, hash)
		}
	}
	leave(v, x)
	return k
}

// pick is the adjacency of a flow in a group of several next hops.
func (s hopper) pick(g, mask uint16, hash uint32) uint16 {
	at := s.w.Tables.Groups[g&(graph.MaxGroups-1)].At
	return s.w.Tables.Buckets[(at+hash&uint32(mask))&(graph.MaxBuckets-1)]
}
