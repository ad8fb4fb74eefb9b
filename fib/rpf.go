package fib

import (
	"math/bits"
	"slices"
	"unsafe" // headers in the vector, which the check stages have judged

	"millrace/pipeline/graph"
)

var (
	XLoose = graph.NewReason(graph.ReasonInfo{Stage: "rpf", Name: "loose",
		Doc: "No unicast route leads to the packet's source, and the interface checks that (RFC 3704, loose; rp_filter 2): the address is forged, or its route is missing."})
	XStrict = graph.NewReason(graph.ReasonInfo{Stage: "rpf", Name: "strict",
		Doc: "The route to the packet's source does not lead back to the interface it came in by, and the interface checks that (RFC 3704, strict; rp_filter 1): the address is forged, or routes are asymmetric, where loose checks are right."})
)

// RPF4 is the reverse-path check of IPv4 sources (RFC 3704), on interfaces with IfLoose4 or IfStrict4: the source is
// looked up as the destination of an answer would be, by the rules for packets made here and with the table of the
// input interface. Loose asks for any unicast route; strict for one that the input interface is a next hop of.
func RPF4(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "rpf4", Doc: "reverse-path check of IPv4 sources, where interfaces ask for it", Lane: graph.IPv4,
		Reasons: []graph.Reason{XLoose, XStrict}, Trace: traceRPF(graph.IfLoose4 | graph.IfStrict4), On: &f.checks[0],
		New: func(w *graph.Worker) graph.Runner {
			return &rpf4{rpf: rpf{f, graph.IfLoose4, graph.IfStrict4}, resolver: resolver[uint32]{hopper: hopper{w}, short: f.short, keys: keys4}}
		},
	}
}

// RPF6 is RPF4 for IPv6. Link-local sources pass: they are judged elsewhere.
func RPF6(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "rpf6", Doc: "reverse-path check of IPv6 sources, where interfaces ask for it", Lane: graph.IPv6,
		Reasons: []graph.Reason{XLoose, XStrict}, Trace: traceRPF(graph.IfLoose6 | graph.IfStrict6), On: &f.checks[1],
		New: func(w *graph.Worker) graph.Runner {
			return &rpf6{rpf: rpf{f, graph.IfLoose6, graph.IfStrict6}, resolver: resolver[[16]byte]{hopper: hopper{w}, short: f.short, keys: keys6}}
		},
	}
}

// paths are the interfaces that a unicast group's next hops are behind, whether they can be used or not.
type paths struct{ ifaces []uint16 }

// rpf judges groups of sources.
type rpf struct {
	f             *FIB
	loose, strict uint16
}

// wants: some packet of the vector came in by an interface that asks for the check.
func (s *rpf) wants(v *graph.Vector, t *graph.Tables, lane *[graph.VectorSize]uint8, n int) bool {
	if v.From != 0 {
		return t.Ifaces[v.From&(graph.MaxIfaces-1)].Flags&(s.loose|s.strict) != 0
	}
	for j := range n {
		if t.Ifaces[v.In[lane[uint8(j)]]&(graph.MaxIfaces-1)].Flags&(s.loose|s.strict) != 0 {
			return true
		}
	}
	return false
}

// judge says why a packet must leave whose source's group is g; 0 for none.
func (s *rpf) judge(t *graph.Tables, in uint16, g uint16) graph.Reason {
	flags := t.Ifaces[in&(graph.MaxIfaces-1)].Flags
	if flags&(s.loose|s.strict) == 0 {
		return 0
	}
	g &= graph.MaxGroups - 1
	p := s.f.paths[g].Load()
	switch {
	case p == nil && t.Groups[g].Exit == XLinkLocal:
		return 0
	case p == nil && flags&s.strict == 0:
		return XLoose
	case p == nil, flags&s.strict != 0 && !slices.Contains(p.ifaces, in):
		return XStrict
	}
	return 0
}

type rpf4 struct {
	rpf
	resolver[uint32]
	src [graph.VectorSize]uint32
	out [graph.VectorSize]uint16
}

func (s *rpf4) Run(v *graph.Vector) {
	if !s.wants(v, s.w.Tables, &v.Lane4, v.N4) {
		return
	}
	n := v.N4
	for j := 0; j < n; j++ {
		s.src[uint8(j)] = bits.ReverseBytes32(*(*uint32)(unsafe.Add(s.w.Base, v.L3[v.Lane4[uint8(j)]]+12)))
	}
	if p := s.f.policy4.Load(); p != nil {
		s.run(p, v, &v.Lane4, n, &s.src, &s.out, true)
	} else {
		s.f.t4.Find(&s.src[0], &s.out[0], n)
	}
	k := 0
	for j := 0; j < n; j++ {
		i := v.Lane4[uint8(j)]
		if why := s.judge(s.w.Tables, v.In[i], s.out[uint8(j)]); why != 0 {
			v.Exit(i, why)
			continue
		}
		v.Lane4[uint8(k)], v.Dst4[uint8(k)] = i, v.Dst4[uint8(j)]
		k++
	}
	v.N4 = k
}

type rpf6 struct {
	rpf
	resolver[[16]byte]
	src [graph.VectorSize][16]byte
	out [graph.VectorSize]uint16
}

func (s *rpf6) Run(v *graph.Vector) {
	if !s.wants(v, s.w.Tables, &v.Lane6, v.N6) {
		return
	}
	n := v.N6
	for j := 0; j < n; j++ {
		s.src[uint8(j)] = *(*[16]byte)(unsafe.Add(s.w.Base, v.L3[v.Lane6[uint8(j)]]+8))
	}
	if p := s.f.policy6.Load(); p != nil {
		s.run(p, v, &v.Lane6, n, &s.src, &s.out, true)
	} else {
		s.f.t6.Find(&s.src[0], &s.out[0], n)
	}
	k := 0
	for j := 0; j < n; j++ {
		i := v.Lane6[uint8(j)]
		if why := s.judge(s.w.Tables, v.In[i], s.out[uint8(j)]); why != 0 {
			v.Exit(i, why)
			continue
		}
		v.Lane6[uint8(k)] = i
		k++
	}
	v.N6 = k
}
