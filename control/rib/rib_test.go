package rib

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"millrace/fib"
)

// fakeFIB is a FIB with room for so many routes.
type fakeFIB struct {
	t      *testing.T
	room   int
	routes map[fib.Key]fib.Route
	calls  int
}

func (f *fakeFIB) update(add []fib.Route, del []fib.Key) error {
	f.calls++
	next := map[fib.Key]fib.Route{}
	for k, r := range f.routes {
		next[k] = r
	}
	for _, k := range del {
		if _, ok := next[k]; !ok && f.room > 1<<20 {
			f.t.Errorf("%v is to be deleted and is not there", k)
		}
		delete(next, k)
	}
	for _, r := range add {
		next[r.Key()] = r
	}
	if len(next) > f.room {
		return fib.ErrFull
	}
	f.routes = next
	return nil
}

// resolve knows the interfaces 1 to 9, which are up or not.
type world struct{ down map[int]bool }

func (w *world) resolve(p *Path) (fib.RouteType, []fib.NextHop, bool) {
	if p.Type != fib.Unicast {
		return p.Type, nil, true
	}
	var hops []fib.NextHop
	for _, h := range p.Hops {
		if !w.down[h.Index] {
			hops = append(hops, fib.NextHop{Via: h.Via, Iface: uint16(h.Index), Weight: h.Weight})
		}
	}
	if len(hops) == 0 {
		return fib.Unreachable, nil, p.Metric%2 == 0
	}
	return fib.Unicast, hops, true
}

func flush(t *Table, w *world, f *fakeFIB) {
	for t.Flush(w.resolve, f.update) {
	}
}

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func hop(i int) []Hop {
	return []Hop{{Via: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), Index: i, Weight: 1}}
}

// oracle is the same as a Table, obviously.
type oracle struct {
	sets []*oracleSet
}

type oracleSet struct {
	serial, goneAt, ended int
	stale                 bool
	routes                map[netip.Prefix]oracleRoute
	objects               map[uint32][]Hop
}

type oracleRoute struct {
	a      Attrs
	hops   []Hop
	object uint32
}

func (o *oracle) want(w *world) map[fib.Key]fib.Route {
	out := map[fib.Key]fib.Route{}
	best := map[netip.Prefix]*oracleSet{}
	for _, s := range o.sets {
		for p, r := range s.routes {
			b := best[p]
			if b == nil || b.stale && !s.stale || b.stale && s.stale && s.ended > b.ended || !b.stale && !s.stale && (r.a.Metric < b.routes[p].a.Metric || r.a.Metric == b.routes[p].a.Metric && s.serial < b.serial) {
				best[p] = s
			}
		}
	}
	for p, s := range best {
		r := s.routes[p]
		if typ, hops, ok := w.resolve(&Path{Attrs: r.a, Hops: r.hops}); ok {
			x := fib.Route{Prefix: p, Source: fib.SourceFPM, Metric: r.a.Metric, Type: typ, NextHops: hops}
			out[x.Key()] = x
		}
	}
	return out
}

// Random changes by several sets, connections that end, objects that change and interfaces that fail leave the
// FIB with what the oracle says.
func TestModel(t *testing.T) {
	for seed := range uint64(30) {
		rng := rand.New(rand.NewPCG(seed, 1))
		tab := New(fib.SourceFPM, 1<<20)
		w := &world{map[int]bool{}}
		f := &fakeFIB{t: t, room: 1 << 30, routes: map[fib.Key]fib.Route{}}
		o := &oracle{}
		var sets []*Set
		serial, ended := 0, 0
		for step := range 600 {
			if len(sets) == 0 || rng.IntN(60) == 0 && len(sets) < 5 {
				serial++
				sets = append(sets, tab.NewSet("x"))
				o.sets = append(o.sets, &oracleSet{serial: serial, routes: map[netip.Prefix]oracleRoute{}, objects: map[uint32][]Hop{}})
			}
			i := rng.IntN(len(sets))
			s, m := sets[i], o.sets[i]
			switch n := rng.IntN(100); {
			case n < 80 && !m.stale:
				var cs []Change
				for range 1 + rng.IntN(4) {
					c := Change{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(rng.IntN(12))}), 16)}
					if rng.IntN(3) == 0 {
						delete(m.routes, c.Prefix)
					} else {
						r := oracleRoute{a: Attrs{Metric: uint32(rng.IntN(3))}, hops: hop(1 + rng.IntN(5))}
						if rng.IntN(2) == 0 {
							r.object = uint32(1 + rng.IntN(3))
							if m.objects[r.object] == nil {
								m.objects[r.object] = r.hops
							}
							r.hops = m.objects[r.object]
							c.Path = s.Object(r.a, r.object, func() []Hop { return r.hops })
						} else {
							c.Path = s.Path(r.a, r.hops)
						}
						if rng.IntN(10) == 0 { // and may be let go before it is used
							s.Path(Attrs{Metric: 9}, nil)
						}
						m.routes[c.Prefix] = r
					}
					for _, other := range o.sets {
						if other.stale && m.serial > other.goneAt {
							delete(other.routes, c.Prefix)
						}
					}
					cs = append(cs, c)
				}
				if n := s.Apply(cs); n != 0 {
					t.Fatalf("%d refused", n)
				}
			case n < 85 && !m.stale:
				id, hops := uint32(1+rng.IntN(3)), hop(1+rng.IntN(5))
				s.SetObject(id, hops, false)
				m.objects[id] = hops
				for p, r := range m.routes {
					if r.object == id {
						r.hops = hops
						m.routes[p] = r
					}
				}
			case n < 90:
				k := 1 + rng.IntN(5)
				w.down[k] = !w.down[k]
				tab.Recheck()
			case n < 93 && !m.stale:
				s.Retain(time.Hour, time.Hour)
				ended++
				m.stale, m.goneAt, m.ended = true, serial, ended
			case n < 95:
				s.Remove()
				sets, o.sets = slices.Delete(sets, i, i+1), slices.Delete(o.sets, i, i+1)
			}
			if rng.IntN(3) != 0 {
				continue
			}
			flush(tab, w, f)
			want := o.want(w)
			if len(want) != len(f.routes) {
				t.Fatalf("seed %d step %d: %d routes, want %d", seed, step, len(f.routes), len(want))
			}
			for k, x := range want {
				if fmt.Sprint(f.routes[k]) != fmt.Sprint(x) {
					t.Fatalf("seed %d step %d: %v, want %v", seed, step, f.routes[k], x)
				}
			}
			for j, s := range sets {
				if s.Len() != len(o.sets[j].routes) {
					t.Fatalf("seed %d step %d: set %d has %d routes, want %d", seed, step, j, s.Len(), len(o.sets[j].routes))
				}
			}
		}
		for _, s := range sets {
			s.Remove()
		}
		flush(tab, w, f)
		if st := tab.Stats(); st.Prefixes != 0 || len(f.routes) != 0 {
			t.Fatalf("seed %d: %d prefixes and %d routes are left", seed, st.Prefixes, len(f.routes))
		}
	}
}

// A daemon that comes back and says the same costs the FIB nothing; what it does not say again goes.
func TestRestart(t *testing.T) {
	tab := New(fib.SourceFPM, 1000)
	w, f := &world{}, &fakeFIB{t: t, room: 1 << 30, routes: map[fib.Key]fib.Route{}}
	a := tab.NewSet("a")
	for i := range 10 {
		a.Apply([]Change{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), Path: a.Object(Attrs{}, 7, func() []Hop { return hop(1) })}})
	}
	flush(tab, w, f)
	a.Retain(100*time.Second, 10*time.Second)
	flush(tab, w, f)
	if len(f.routes) != 10 {
		t.Fatalf("%d routes when the daemon is gone", len(f.routes))
	}
	if _, stale, _ := tab.Find(0, pfx("10.0.0.0/16")); !stale {
		t.Error("not marked stale")
	}
	calls := f.calls
	b := tab.NewSet("b")
	for i := range 9 {
		b.Apply([]Change{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), Path: b.Object(Attrs{}, 9, func() []Hop { return hop(1) })}})
	}
	flush(tab, w, f)
	if f.calls != calls {
		t.Errorf("the FIB was changed %d times by routes that are the same", f.calls-calls)
	}
	if _, stale, set := tab.Find(0, pfx("10.0.0.0/16")); stale || set != "b" {
		t.Errorf("stale %v, set %s", stale, set)
	}
	now := time.Now()
	if n := tab.Expire(now.Add(9 * time.Second)); n != 0 {
		t.Errorf("%d routes went too early", n)
	}
	if n := tab.Expire(now.Add(11 * time.Second)); n != 1 {
		t.Errorf("%d routes went, want 1", n)
	}
	flush(tab, w, f)
	if len(f.routes) != 9 || len(tab.Sets()) != 1 {
		t.Errorf("%d routes, sets %v", len(f.routes), tab.Sets())
	}
}

func TestNobodyComesBack(t *testing.T) {
	tab := New(fib.SourceFPM, 1000)
	w, f := &world{}, &fakeFIB{t: t, room: 1 << 30, routes: map[fib.Key]fib.Route{}}
	a := tab.NewSet("a")
	a.Apply([]Change{{Prefix: pfx("10.0.0.0/8"), Path: a.Path(Attrs{}, hop(1))}})
	a.Retain(100*time.Second, 10*time.Second)
	if n := tab.Expire(time.Now().Add(99 * time.Second)); n != 0 {
		t.Error("went too early")
	}
	if n := tab.Expire(time.Now().Add(101 * time.Second)); n != 1 {
		t.Error("stays for ever")
	}
	flush(tab, w, f)
	if len(f.routes) != 0 {
		t.Error("still in the FIB")
	}
}

// What the FIB has no room for is counted, is not left as it was, and gets in when there is room.
func TestFull(t *testing.T) {
	tab := New(fib.SourceFPM, 20)
	w, f := &world{}, &fakeFIB{t: t, room: 6, routes: map[fib.Key]fib.Route{}}
	a := tab.NewSet("a")
	put := func(i, h int) int {
		return a.Apply([]Change{{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), Path: a.Path(Attrs{}, hop(h))}})
	}
	for i := range 10 {
		put(i, 1)
	}
	flush(tab, w, f)
	if st := tab.Stats(); st.Refused != 4 || !errors.Is(st.Err, fib.ErrFull) || len(f.routes) != 6 {
		t.Fatalf("%+v with %d routes", st, len(f.routes))
	}
	f.room = 10
	tab.Retry()
	flush(tab, w, f)
	tab.Retry()
	if st := tab.Stats(); st.Refused != 0 || st.Err != nil || len(f.routes) != 10 {
		t.Fatalf("%+v with %d routes", st, len(f.routes))
	}
	f.room = 0 // no change fits any more
	put(3, 2)
	flush(tab, w, f)
	if _, there := f.routes[fib.Key{Prefix: pfx("10.3.0.0/16"), Source: fib.SourceFPM}]; there && f.room > 0 {
		t.Error("the old route passes for the new one")
	}
	f.room = 100
	for i := range 20 {
		put(i, 1)
	}
	if put(20, 1) != 1 {
		t.Error("more prefixes than the limit")
	}
	flush(tab, w, f)
	if len(f.routes) != 20 {
		t.Errorf("%d routes", len(f.routes))
	}
}
