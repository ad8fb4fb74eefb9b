package mcast

import (
	"fmt"
	"slices"
)

// Verify compares what packets find with the routes that were set, and tells what differs.
func (t *Table) Verify(tell func(k Key, want, have string)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.slots.Load()
	for k, e := range t.routes {
		want, have := describe(&entry{in: e.route.In, out: e.route.Out, flags: e.route.flags()}), "nothing"
		if h := s.find(&k); h != nil && h != gone {
			have = describe(h)
		}
		if want != have {
			tell(e.route.Key, want, have)
		}
	}
	for i := range s.at {
		e := s.at[i].Load()
		if e == nil || e == gone {
			continue
		}
		if t.routes[e.key] == nil {
			tell(e.route.Key, "nothing", describe(e))
		}
	}
}

func describe(e *entry) string {
	out := slices.Clone(e.out)
	slices.SortFunc(out, func(a, b Out) int { return int(a.Iface) - int(b.Iface) })
	return fmt.Sprintf("in by %d, out by %v, flags %#x", e.in, out, e.flags)
}

// flags are those of the route's entry.
func (r *Route) flags() (n uint8) {
	for f, on := range map[uint8]bool{fKernel: r.Kernel, fLocal: r.Local, fBoundary: r.Boundary, fHost: r.Host} {
		if on {
			n |= f
		}
	}
	return n
}
