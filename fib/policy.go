package fib

import (
	"math/bits"
	"unsafe" // headers in the vector, which the check stages have judged

	"millrace/packet"
	"millrace/pipeline/graph"
)

// policy says in which tables packets are looked up, by the interface they came in by: what rules and the
// interfaces' tables come to. A is an address as tables take it. It is immutable; where there
// is none, all packets are looked up in the main table.
type policy[A any] struct {
	by     [graph.MaxIfaces]uint16 // chain of packets that came in by an interface
	back   [graph.MaxIfaces]uint16 // chain of the reverse-path check of those
	chains []chain[A]
}

// chain is what is left of the rules for an interface's packets.
type chain[A any] struct {
	one   finder[A] // all packets are looked up here and nowhere else
	keyed bool      // some step looks at more than the destination
	steps []step[A]
}

// step is a rule. Packets that it does not decide go on to the next.
type step[A any] struct {
	sel     *selector // nil for all packets
	table   finder[A] // nil for other actions
	minBits uint8     // matches of shorter prefixes do not count
	skip    uint16    // step to go on with; 0 for none
	verdict uint16    // group of all packets; 0 for none
}

type finder[A any] interface {
	Find(dst *A, out *uint16, n int)
}

// selector is the conditions of a rule that depend on the packet.
type selector struct {
	src, srcMask, dst, dstMask [2]uint64
	mark, mask                 uint32
	sports, dports             Ports
	proto, tos, tosMask        uint8
	not                        bool
}

// flow is what selectors look at. IPv4 addresses stand in the upper half of the first word.
type flow struct {
	src, dst     [2]uint64
	mark         uint32
	sport, dport uint16 // 0 for fragments and protocols without
	proto, tos   uint8
}

func (s *selector) match(k *flow) bool {
	ok := (k.src[0]^s.src[0])&s.srcMask[0]|(k.src[1]^s.src[1])&s.srcMask[1] == 0 &&
		(k.dst[0]^s.dst[0])&s.dstMask[0]|(k.dst[1]^s.dst[1])&s.dstMask[1] == 0 &&
		(k.mark^s.mark)&s.mask == 0 && (k.tos^s.tos)&s.tosMask == 0 &&
		(s.proto == 0 || s.proto == k.proto) && s.sports.has(k.sport) && s.dports.has(k.dport)
	return ok != s.not
}

func (p Ports) has(n uint16) bool { return p.Hi == 0 || p.Lo <= n && n <= p.Hi }

// decided is the place in a chain of packets that have a group.
const decided = 1<<16 - 1

// resolver is a worker's, for one family: it takes packets down the chains.
type resolver[A any] struct {
	hopper
	short []uint8
	keys  func(v *graph.Vector, lane *[graph.VectorSize]uint8, places []uint8, back bool, out *[graph.VectorSize]flow)
	todo  [graph.VectorSize]uint8  // places in the lane that are not decided
	own   [graph.VectorSize]uint8  // of these, those of one chain
	pick  [graph.VectorSize]uint8  // of these, those that the step is for
	at    [graph.VectorSize]uint16 // by place: first step that the packet may meet
	dst   [graph.VectorSize]A
	found [graph.VectorSize]uint16
	flow  [graph.VectorSize]flow // by place
}

// run finds the groups of the n addresses in dst, of the packets of the lane; both dst and out go by place in the
// lane. back is for the check of sources: flows are taken in the other direction.
func (r *resolver[A]) run(p *policy[A], v *graph.Vector, lane *[graph.VectorSize]uint8, n int, dst *[graph.VectorSize]A, out *[graph.VectorSize]uint16, back bool) {
	by := &p.by
	if back {
		by = &p.back
	}
	first := by[v.In[lane[0]]&(graph.MaxIfaces-1)]
	same := true
	if v.From == 0 {
		for j := 1; j < n; j++ {
			same = same && by[v.In[lane[uint8(j)]]&(graph.MaxIfaces-1)] == first
		}
	}
	if c := &p.chains[first]; same && c.one != nil {
		c.one.Find(&dst[0], &out[0], n)
		return
	}
	for j := range n {
		r.todo[uint8(j)] = uint8(j)
	}
	for n > 0 {
		// Packets of the first one's chain, and the others.
		first = by[v.In[lane[r.todo[0]]]&(graph.MaxIfaces-1)]
		k, rest := 0, 0
		for j := 0; j < n; j++ {
			at := r.todo[uint8(j)]
			if by[v.In[lane[at]]&(graph.MaxIfaces-1)] == first {
				r.own[uint8(k)] = at
				k++
			} else {
				r.todo[uint8(rest)] = at
				rest++
			}
		}
		n = rest
		r.chain(&p.chains[first], v, lane, k, dst, out, back)
	}
}

// chain takes the first n packets of own down a chain.
func (r *resolver[A]) chain(c *chain[A], v *graph.Vector, lane *[graph.VectorSize]uint8, n int, dst *[graph.VectorSize]A, out *[graph.VectorSize]uint16, back bool) {
	if c.keyed {
		r.keys(v, lane, r.own[:n], back, &r.flow)
	}
	for j := range n {
		r.at[r.own[uint8(j)]] = 0
		out[r.own[uint8(j)]] = 0
	}
	groups := r.groups()
	for si := 0; si < len(c.steps) && n > 0; si++ {
		s := &c.steps[si]
		k := 0
		for j := 0; j < n; j++ {
			at := r.own[uint8(j)]
			if int(r.at[at]) <= si && (s.sel == nil || s.sel.match(&r.flow[at])) {
				r.pick[uint8(k)] = at
				k++
			}
		}
		switch {
		case k == 0:
			continue
		case s.skip != 0:
			for j := range k {
				r.at[r.pick[uint8(j)]] = s.skip
			}
			continue
		case s.verdict != 0:
			for j := range k {
				out[r.pick[uint8(j)]] = s.verdict
				r.at[r.pick[uint8(j)]] = decided
			}
		default:
			for j := range k {
				r.dst[uint8(j)] = dst[r.pick[uint8(j)]]
			}
			s.table.Find(&r.dst[0], &r.found[0], k)
			for j := range k {
				at, g := r.pick[uint8(j)], r.found[uint8(j)]&(graph.MaxGroups-1)
				if short := r.short[g]; short != 0 && short <= s.minBits || graph.Reason(groupWord(groups, g)>>16) == XNoRoute {
					continue
				}
				out[at] = g
				r.at[at] = decided
			}
		}
		k = 0
		for j := 0; j < n; j++ {
			if at := r.own[uint8(j)]; r.at[at] != decided {
				r.own[uint8(k)] = at
				k++
			}
		}
		n = k
	}
}

// keys4 fills in the flows of IPv4 packets at some places of the lane.
func keys4(v *graph.Vector, lane *[graph.VectorSize]uint8, places []uint8, back bool, out *[graph.VectorSize]flow) {
	for _, at := range places {
		i, k := lane[at], &out[at]
		p := v.Header(i)
		*k = flow{proto: *(*uint8)(unsafe.Add(p, 9)), tos: *(*uint8)(unsafe.Add(p, 1))}
		k.src[0] = uint64(bits.ReverseBytes32(*(*uint32)(unsafe.Add(p, 12)))) << 32
		k.dst[0] = uint64(bits.ReverseBytes32(*(*uint32)(unsafe.Add(p, 16)))) << 32
		if piece(v, packet.Base(), i) >= packet.IPv4Size+4 && *(*uint8)(p) == 0x45 {
			if *(*uint16)(unsafe.Add(p, 6))&fragment4 == 0 && ported(k.proto) {
				k.ports(unsafe.Add(p, packet.IPv4Size))
			}
		} else {
			k.far(v, i)
		}
		k.finish(v, i, back)
	}
}

// fragment4 is MF and the offset of an IPv4 header, as a native load sees them.
const fragment4 = 0xff3f

// keys6 is keys4 for IPv6.
func keys6(v *graph.Vector, lane *[graph.VectorSize]uint8, places []uint8, back bool, out *[graph.VectorSize]flow) {
	for _, at := range places {
		i, k := lane[at], &out[at]
		p := v.Header(i)
		*k = flow{proto: *(*uint8)(unsafe.Add(p, 6)), tos: uint8(bits.ReverseBytes16(*(*uint16)(p)) >> 4)}
		for w := range 2 {
			k.src[w] = bits.ReverseBytes64(*(*uint64)(unsafe.Add(p, 8+8*w)))
			k.dst[w] = bits.ReverseBytes64(*(*uint64)(unsafe.Add(p, 24+8*w)))
		}
		if piece(v, packet.Base(), i) >= packet.IPv6Size+4 && ported(k.proto) {
			k.ports(unsafe.Add(p, packet.IPv6Size))
		} else {
			k.far(v, i)
		}
		k.finish(v, i, back)
	}
}

// ported: protocols with two ports at the start of their header.
func ported(proto uint8) bool {
	switch proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoDCCP, packet.ProtoSCTP, packet.ProtoUDPLite:
		return true
	}
	return false
}

func (k *flow) ports(p unsafe.Pointer) {
	k.sport = bits.ReverseBytes16(*(*uint16)(p))
	k.dport = bits.ReverseBytes16(*(*uint16)(unsafe.Add(p, 2)))
}

// far finds protocol and ports behind options and extension headers, and in later segments.
func (k *flow) far(v *graph.Vector, i uint8) {
	if f, ok := packet.Key(v.Mbuf(i), v.L3Off(i)); ok {
		k.proto, k.sport, k.dport = f.Proto, f.SrcPort, f.DstPort
	}
}

func (k *flow) finish(v *graph.Vector, i uint8, back bool) {
	if back {
		// Linux checks sources without the mark (src_valid_mark is 0).
		k.src, k.dst, k.sport, k.dport = k.dst, k.src, k.dport, k.sport
	} else if v.Marks {
		k.mark = v.Mark[i]
	}
}
