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
		New:   func(w *graph.Worker) graph.Runner { return &lookup4{t: f.t4} },
		Trace: traceGroup,
	}
}

// Lookup6 finds the next-hop group of IPv6 destinations.
func Lookup6(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "lookup6", Doc: "longest-prefix match of IPv6 destinations", Lane: graph.IPv6,
		New:   func(w *graph.Worker) graph.Runner { return &lookup6{t: f.t6, base: w.Base} },
		Trace: traceGroup,
	}
}

// LookupNextHop4 is Lookup4 and NextHop4 in one loop, for paths where nothing
// stands between them.
func LookupNextHop4(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "lookup4+nexthop4", Doc: "longest-prefix match of IPv4 destinations, down to the adjacency", Lane: graph.IPv4,
		Reasons: f.reasons(),
		New:     func(w *graph.Worker) graph.Runner { return &fused4{t: f.t4, hopper: hopper{w}} },
		Trace:   traceAdj,
	}
}

// LookupNextHop6 is Lookup6 and NextHop6 in one loop.
func LookupNextHop6(f *FIB) *graph.Stage {
	return &graph.Stage{
		Name: "lookup6+nexthop6", Doc: "longest-prefix match of IPv6 destinations, down to the adjacency", Lane: graph.IPv6,
		Reasons: f.reasons(),
		New:     func(w *graph.Worker) graph.Runner { return &fused6{t: f.t6, hopper: hopper{w}} },
		Trace:   traceAdj,
	}
}

type lookup4 struct {
	t   *lpm.Table4
	out [graph.VectorSize]uint16
}

func (s *lookup4) Run(v *graph.Vector) {
	n := v.N4
	s.t.Find(&v.Dst4[0], &s.out[0], n)
	for j := 0; j < n; j++ {
		v.NH[v.Lane4[uint8(j)]] = s.out[uint8(j)]
	}
}

type lookup6 struct {
	t    *lpm.Table6
	base unsafe.Pointer
	dst  [graph.VectorSize][16]byte
	out  [graph.VectorSize]uint16
}

func (s *lookup6) Run(v *graph.Vector) {
	n := v.N6
	dst6(v, s.base, &s.dst, n)
	s.t.Find(&s.dst[0], &s.out[0], n)
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

type fused4 struct {
	t *lpm.Table4
	hopper
	out [graph.VectorSize]uint16
}

func (s *fused4) Run(v *graph.Vector) {
	s.t.Find(&v.Dst4[0], &s.out[0], v.N4)
	s.found4(v, &s.out)
}

type fused6 struct {
	t *lpm.Table6
	hopper
	dst [graph.VectorSize][16]byte
	out [graph.VectorSize]uint16
}

func (s *fused6) Run(v *graph.Vector) {
	dst6(v, s.w.Base, &s.dst, v.N6)
	s.t.Find(&s.dst[0], &s.out[0], v.N6)
	s.found6(v, &s.out)
}
