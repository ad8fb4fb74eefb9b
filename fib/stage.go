package fib

import (
	"unsafe" // headers in the vector, which the check stages have judged; tables outside the heap

	"millrace/fib/lpm"
	"millrace/pipeline/graph"
)

// Lookup4 finds the next-hop group of IPv4 destinations: Dst4 to NH.
func Lookup4(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "lookup4", Doc: "longest-prefix match of IPv4 destinations", Lane: graph.IPv4,
		New: func(w *graph.Worker) graph.Runner {
			return &lookup4{f: f, t: f.t4, resolver: resolver[uint32]{hopper: hopper{w}, short: f.short, keys: keys4}}
		},
		Trace: traceGroup,
	}
}

// Lookup6 finds the next-hop group of IPv6 destinations.
func Lookup6(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "lookup6", Doc: "longest-prefix match of IPv6 destinations", Lane: graph.IPv6,
		New: func(w *graph.Worker) graph.Runner {
			return &lookup6{f: f, t: f.t6, resolver: resolver[[16]byte]{hopper: hopper{w}, short: f.short, keys: keys6}}
		},
		Trace: traceGroup,
	}
}

// LookupNextHop4 is Lookup4 and NextHop4 in one loop, for paths where nothing
// stands between them.
func LookupNextHop4(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "lookup4+nexthop4", Doc: "longest-prefix match of IPv4 destinations, down to the adjacency", Lane: graph.IPv4,
		Reasons: f.reasons(),
		New: func(w *graph.Worker) graph.Runner {
			return &fused4{lookup4{f: f, t: f.t4, resolver: resolver[uint32]{hopper: hopper{w}, short: f.short, keys: keys4}}}
		},
		Trace: traceAdj,
	}
}

// LookupNextHop6 is Lookup6 and NextHop6 in one loop.
func LookupNextHop6(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "lookup6+nexthop6", Doc: "longest-prefix match of IPv6 destinations, down to the adjacency", Lane: graph.IPv6,
		Reasons: f.reasons(),
		New: func(w *graph.Worker) graph.Runner {
			return &fused6{lookup6{f: f, t: f.t6, resolver: resolver[[16]byte]{hopper: hopper{w}, short: f.short, keys: keys6}}}
		},
		Trace: traceAdj,
	}
}

type lookup4 struct {
	f *FIB
	t *lpm.Table4
	resolver[uint32]
	out [graph.VectorSize]uint16
}

func (s *lookup4) find(v *graph.Vector) {
	if p := s.f.policy4.Load(); p != nil {
		s.run(p, v, &v.Lane4, v.N4, &v.Dst4, &s.out, false)
		return
	}
	s.t.Find(&v.Dst4[0], &s.out[0], v.N4)
}

func (s *lookup4) Run(v *graph.Vector) {
	n := v.N4
	s.find(v)
	for j := 0; j < n; j++ {
		v.NH[v.Lane4[uint8(j)]] = s.out[uint8(j)]
	}
}

type lookup6 struct {
	f *FIB
	t *lpm.Table6
	resolver[[16]byte]
	all [graph.VectorSize][16]byte
	out [graph.VectorSize]uint16
}

func (s *lookup6) find(v *graph.Vector) {
	dst6(v, s.w.Base, &s.all, v.N6)
	if p := s.f.policy6.Load(); p != nil {
		s.run(p, v, &v.Lane6, v.N6, &s.all, &s.out, false)
		return
	}
	s.t.Find(&s.all[0], &s.out[0], v.N6)
}

func (s *lookup6) Run(v *graph.Vector) {
	n := v.N6
	s.find(v)
	for j := 0; j < n; j++ {
		v.NH[v.Lane6[uint8(j)]] = s.out[uint8(j)]
	}
}

// dst6 collects the destinations of the IPv6 lane.
func dst6(v *graph.Vector, base unsafe.Pointer, dst *[graph.VectorSize][16]byte, n int) {
	for j := 0; j < n; j++ {
		dst[uint8(j)] = *(*[16]byte)(unsafe.Add(base, v.L3[v.Lane6[uint8(j)]]+24))
	}
}

type fused4 struct{ lookup4 }

func (s *fused4) Run(v *graph.Vector) {
	s.find(v)
	s.found4(v, &s.out)
}

type fused6 struct{ lookup6 }

func (s *fused6) Run(v *graph.Vector) {
	s.find(v)
	s.found6(v, &s.out)
}
