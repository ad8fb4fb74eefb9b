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

// lane follows the groups of a lane and returns its new length. Most vectors hold
// nothing odd and are done after one short loop.
func (s hopper) lane(v *graph.Vector, lane *[graph.VectorSize]uint8, n int) int {
	groups := s.groups()
	all := uint64(0)
	for j := 0; j < n; j++ {
		i := lane[uint8(j)]
		w := groupWord(groups, v.NH[i])
		v.Adj[i] = uint16(w)
		all |= w
	}
	v.NOdd = 0
	if all>>16 != 0 {
		n = s.sift(v, lane, n)
	}
	return n
}

// sift sets aside in v.Odd what does not lead to one adjacency, and returns the new
// length of the lane.
func (s hopper) sift(v *graph.Vector, lane *[graph.VectorSize]uint8, n int) int {
	groups := s.groups()
	k, x := 0, 0
	for j := 0; j < n; j++ {
		i := lane[uint8(j)]
		w := groupWord(groups, v.NH[i])
		v.Adj[i] = uint16(w) // the group may have changed since
		if w>>16 != 0 {
			v.Odd[uint8(x)] = i
			x++
			continue
		}
		lane[uint8(k)] = i
		k++
	}
	v.NOdd = x
	return k
}

// exits marks the packets in v.Odd that leave, puts those whose group has come to have one adjacency in the meantime on
// the lane, and keeps those with several next hops in v.Odd, with the group's Mask in Adj. It
// returns the new length of the lane.
func (s hopper) exits(v *graph.Vector, lane *[graph.VectorSize]uint8, n int) int {
	groups := s.groups()
	k := 0
	for j, x := 0, v.NOdd; j < x; j++ {
		i := v.Odd[uint8(j)]
		w := groupWord(groups, v.NH[i])
		if why := graph.Reason(w >> 16); why != 0 {
			v.Exit(i, why)
			continue
		}
		if mask := uint16(w >> 32); mask != 0 {
			v.Adj[i] = mask
			v.Odd[uint8(k)] = i
			k++
			continue
		}
		v.Adj[i] = uint16(w)
		lane[uint8(n)] = i
		n++
	}
	v.NOdd = k
	return n
}

// pick is the adjacency of a flow in a group of several next hops. The place and size of the group's
// buckets are the same as long as any worker may lead packets there.
func (s hopper) pick(g, mask uint16, hash uint32) uint16 {
	at := s.w.Tables.Groups[g&(graph.MaxGroups-1)].At
	return s.w.Tables.Buckets[(at+hash&uint32(mask))&(graph.MaxBuckets-1)]
}

// piece is how many bytes from the L3 header on lie in the first segment.
func piece(v *graph.Vector, i uint8) uint16 {
	m := packet.At(v.Idx[i])
	end := m.BufAddr + uintptr(m.DataOff) + uintptr(m.DataLen) - uintptr(packet.Base())
	return uint16(min(end-v.L3[i], uintptr(v.Len[i])))
}

type nexthop4 struct{ hopper }

func (s *nexthop4) Run(v *graph.Vector) {
	v.N4 = s.lane(v, &v.Lane4, v.N4)
	if v.NOdd != 0 {
		s.odd4(v)
	}
}

// odd4 judges IPv4 packets set aside: they leave, or go the way of their flow.
func (s hopper) odd4(v *graph.Vector) {
	v.N4 = s.exits(v, &v.Lane4, v.N4)
	for j, n := 0, v.NOdd; j < n; j++ {
		i := v.Odd[uint8(j)]
		p := unsafe.Add(s.w.Base, v.L3[i])
		v.Adj[i] = s.pick(v.NH[i], v.Adj[i], packet.FlowHash4(p, piece(v, i)))
		v.Lane4[uint8(v.N4)] = i
		v.N4++
	}
}

type nexthop6 struct{ hopper }

func (s *nexthop6) Run(v *graph.Vector) {
	v.N6 = s.lane(v, &v.Lane6, v.N6)
	if v.NOdd != 0 {
		s.odd6(v)
	}
}

// odd6 is odd4 for IPv6 packets.
func (s hopper) odd6(v *graph.Vector) {
	v.N6 = s.exits(v, &v.Lane6, v.N6)
	for j, n := 0, v.NOdd; j < n; j++ {
		i := v.Odd[uint8(j)]
		p := unsafe.Add(s.w.Base, v.L3[i])
		v.Adj[i] = s.pick(v.NH[i], v.Adj[i], packet.FlowHash6(p, piece(v, i)))
		v.Lane6[uint8(v.N6)] = i
		v.N6++
	}
}

// found4 follows the groups in out, which a lookup gave for the IPv4 lane.
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
		v.N4 = s.sift(v, &v.Lane4, n)
		s.odd4(v)
	}
}

// found6 follows the groups in out, which a lookup gave for the IPv6 lane.
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
		v.N6 = s.sift(v, &v.Lane6, n)
		s.odd6(v)
	}
}
