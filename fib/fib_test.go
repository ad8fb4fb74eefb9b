package fib

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"millrace/pipeline/graph"
	"millrace/pmd"
)

func TestAdjacency(t *testing.T) {
	mac := pmd.MAC{0x02, 0xaa, 0xbb, 0xcc, 0xdd, 0xee}
	for _, c := range []struct {
		name         string
		outer, inner uint16
		head         string
	}{
		{"untagged", 0, 0, "02aabbccddee 021122334455 0800"},
		{"tagged", 100, 0, "02aabbccddee 021122334455 81000064 0800"},
		{"double", 100, 200, "02aabbccddee 021122334455 88a80064 810000c8 0800"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t)
			own := []byte{0, 0, 0x02, 0x11, 0x22, 0x33, 0x44, 0x55}
			r.tab.Ifaces[7] = graph.Iface{MAC: binary.LittleEndian.Uint64(own), Port: 3, MTU: 1400, Flags: graph.IfUp, Outer: c.outer, Inner: c.inner}
			if err := r.SetIface(7, IfaceOptions{Redirect: true}); err != nil {
				t.Fatal(err)
			}
			via := netip.MustParseAddr("10.0.0.9")
			if err := r.Update([]Route{{Prefix: netip.MustParsePrefix("20.0.0.0/8"), NextHops: []NextHop{{Via: via, Iface: 7}}, Source: SourceAPI}}, nil); err != nil {
				t.Fatal(err)
			}
			if err := r.SetNeighbour(7, via, mac); err != nil {
				t.Fatal(err)
			}
			res := r.Lookup(netip.MustParseAddr("20.1.1.1"))
			if len(res.Adjs) != 1 || res.Exit != 0 {
				t.Fatalf("%+v", res)
			}
			a := r.tab.Adjs[res.Adjs[0]]
			want := unhex(t, c.head)
			if a.Port != 3 || a.Iface != 7 || a.MTU != 1400 || a.Flags != graph.AdjRedirect || int(a.L2) != len(want) {
				t.Errorf("%+v", a)
			}
			for _, v := range []struct {
				word uint64
				typ  []byte
			}{{a.RW4, []byte{8, 0}}, {a.RW6, []byte{0x86, 0xdd}}} {
				var b [14]byte // as the rewrite writes it: the first word, then the second over it
				binary.LittleEndian.PutUint64(b[:], a.RW0)
				binary.LittleEndian.PutUint64(b[6:], v.word)
				end := append(slices.Clone(want[len(want)-14:len(want)-2]), v.typ...)
				if !bytes.Equal(b[:], end) {
					t.Errorf("words give %x, want %x", b, end)
				}
			}
			if !bytes.Equal(a.Head[:a.L2], want) {
				t.Errorf("head %x, want %x", a.Head[:a.L2], want)
			}

			r.tab.Ifaces[7].MTU = 9000
			if err := r.SetIface(7, IfaceOptions{}); err != nil {
				t.Fatal(err)
			}
			now := r.Lookup(netip.MustParseAddr("20.1.1.1")).Adjs[0]
			if now == res.Adjs[0] || r.tab.Adjs[now].MTU != 9000 || r.tab.Adjs[now].Flags != 0 {
				t.Errorf("after the change of MTU: adjacency %d, was %d: %+v", now, res.Adjs[0], r.tab.Adjs[now])
			}
			r.dom.Wait()
			if n := r.Stats().Adjs; n != 1 {
				t.Errorf("%d adjacencies, want 1", n)
			}
		})
	}
}

func unhex(t *testing.T, s string) []byte {
	var b []byte
	if _, err := fmt.Sscanf(string(bytes.ReplaceAll([]byte(s), []byte(" "), nil)), "%x", &b); err != nil {
		t.Fatal(err)
	}
	return b
}

func TestInvalid(t *testing.T) {
	r := newRig(t)
	r.iface(1, true)
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	hop := []NextHop{{Via: a("10.0.0.1"), Iface: 1}}
	good := Route{Prefix: p("10.0.0.0/8"), NextHops: hop, Source: SourceAPI}
	before := r.Stats()
	for name, x := range map[string]Route{
		"no prefix":         {NextHops: hop, Source: SourceAPI},
		"no next hop":       {Prefix: p("20.0.0.0/8"), Source: SourceAPI},
		"martian source":    {Prefix: p("20.0.0.0/8"), NextHops: hop},
		"derived source":    {Prefix: p("20.0.0.0/8"), NextHops: hop, Source: SourceDerived},
		"inner type":        {Prefix: p("20.0.0.0/8"), Type: Martian, Source: SourceAPI},
		"local with hops":   {Prefix: p("20.0.0.0/8"), Type: Local, NextHops: hop, Source: SourceAPI},
		"interface 0":       {Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("10.0.0.1")}}, Source: SourceAPI},
		"interface 4096":    {Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("10.0.0.1"), Iface: 4096}}, Source: SourceAPI},
		"negative weight":   {Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("10.0.0.1"), Iface: 1, Weight: -1}}, Source: SourceAPI},
		"IPv6 by IPv4":      {Prefix: p("2001:db8::/32"), NextHops: hop, Source: SourceAPI},
		"via unspecified":   {Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("0.0.0.0"), Iface: 1}}, Source: SourceAPI},
		"via multicast":     {Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("ff02::1"), Iface: 1}}, Source: SourceAPI},
		"too many to count": {Prefix: p("20.0.0.0/8"), NextHops: make([]NextHop, 1025), Source: SourceAPI},
	} {
		if err := r.Update([]Route{good, x}, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := r.Update(nil, []Key{{Prefix: p("127.0.0.0/8"), Source: SourceMartian}}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a martian was deleted: %v", err)
	}
	for _, bad := range []netip.Addr{{}, a("::"), a("224.0.0.1")} {
		if err := r.SetNeighbour(1, bad, pmd.MAC{2}); !errors.Is(err, ErrInvalid) {
			t.Errorf("neighbour %v: %v", bad, err)
		}
	}
	if err := errors.Join(r.SetIface(0, IfaceOptions{}), r.DelIface(graph.MaxIfaces)); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
	if s := r.Stats(); s != before {
		t.Errorf("invalid updates left something: %+v, before %+v", s, before)
	}
}

// TestFull: an update that does not fit leaves everything as it was, and the tables work on.
func TestFull(t *testing.T) {
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	via := func(n int) []NextHop {
		return []NextHop{{Via: netip.AddrFrom4([4]byte{10, 0, byte(n >> 8), byte(n)}), Iface: 1}}
	}
	look := []netip.Addr{a("20.0.0.1"), a("20.0.0.9"), a("20.0.1.1"), a("20.0.3.1"), a("30.0.0.1"), a("2001:db8::1"), a("2001:db8:0:1::1"), a("10.0.0.1"), a("10.0.0.77")}
	for name, limit := range map[string]func(r *rig){
		"groups":      func(r *rig) { r.groups.Bound(1) },
		"adjacencies": func(r *rig) { r.adjs.Bound(1) },
		"blocks":      func(r *rig) { r.t4.Blocks().Bound(1) },
		"prefixes":    func(r *rig) { r.t6.Prefixes().Bound(0) },
		"buckets":     func(r *rig) { r.runs.size = r.runs.next }, // one run is free
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			fresh := r.Stats()
			r.iface(1, true)
			r.iface(2, false)
			if err := r.update([]Route{
				{Prefix: p("20.0.0.0/16"), NextHops: via(1), Source: SourceAPI},
				{Prefix: p("20.0.0.8/29"), NextHops: via(2), Source: SourceAPI},
				{Prefix: p("30.0.0.0/8"), NextHops: append(via(1), via(2)...), Source: SourceAPI},
				{Prefix: p("2001:db8::/32"), NextHops: []NextHop{{Via: a("fe80::1"), Iface: 1}}, Source: SourceAPI},
				{Prefix: p("10.0.0.0/16"), NextHops: []NextHop{{Iface: 1}}, Source: SourceConnected},
				{Prefix: p("10.0.0.77/32"), NextHops: []NextHop{{Iface: 1}, {Iface: 1, Via: a("fe80::9")}}, Source: SourceConnected},
				{Prefix: p("40.0.0.0/8"), NextHops: []NextHop{{Via: a("fe80::1"), Iface: 2}}, Source: SourceAPI},
				{Prefix: p("40.0.0.0/9"), NextHops: []NextHop{{Via: a("fe80::2"), Iface: 2}}, Source: SourceAPI},
				{Prefix: p("40.0.0.0/30"), NextHops: []NextHop{{Via: a("fe80::3"), Iface: 2}}, Source: SourceAPI},
				{Prefix: p("40.0.1.0/30"), NextHops: []NextHop{{Via: a("fe80::1"), Iface: 2}, {Via: a("fe80::2"), Iface: 2}}, Source: SourceAPI},
				{Prefix: p("40.0.2.0/30"), NextHops: []NextHop{{Via: a("fe80::3"), Iface: 2}, {Via: a("fe80::2"), Iface: 2}}, Source: SourceAPI},
				{Prefix: p("2001:db8:3::/64"), NextHops: []NextHop{{Via: a("fe80::1"), Iface: 2}}, Source: SourceAPI},
			}, nil); err != nil {
				t.Fatal(err)
			}
			for i := range 100 {
				r.setNeigh(1, via(i + 1)[0].Via, pmd.MAC{2, 0, 0, 0, 0, byte(i)})
				r.setNeigh(1, netip.AddrFrom16([16]byte{0xfe, 0x80, 15: byte(i)}), pmd.MAC{2, 0, 0, 0, 2, byte(i)})
				r.setNeigh(2, netip.AddrFrom16([16]byte{0xfe, 0x80, 15: byte(i)}), pmd.MAC{2, 0, 0, 0, 1, byte(i)})
			}
			r.same(look)
			r.dom.Wait()
			before, routes := r.Stats(), r.Routes()
			limit(r)
			var add []Route
			for i := range 40 {
				b := byte(i)
				add = append(add,
					Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, 0, b, 0}), 28), NextHops: via(200 + i), Source: SourceAPI},
					Route{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 7: b}), 64), NextHops: []NextHop{{Via: a("fe80::1"), Iface: 1}}, Source: SourceAPI},
					Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{21, b, 0, 0}), 16), NextHops: append(via(i+10), via(i+11)...), Source: SourceAPI},
					Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{22, b, 0, 0}), 16), NextHops: []NextHop{{Via: netip.AddrFrom16([16]byte{0xfe, 0x80, 15: b + 50}), Iface: 1}}, Source: SourceAPI})
			}
			del := []Key{{Prefix: p("20.0.0.0/16"), Source: SourceAPI}, {Prefix: p("20.0.0.8/29"), Source: SourceAPI},
				{Prefix: p("30.0.0.0/8"), Source: SourceAPI}, {Prefix: p("10.0.0.0/16"), Source: SourceConnected}}
			check := func(what string, err error) {
				t.Helper()
				if !errors.Is(err, ErrFull) {
					t.Fatalf("%s: %v", what, err)
				}
				r.same(look)
				r.dom.Wait()
				if s := r.Stats(); s != before {
					t.Errorf("%s: %+v, before\n%+v", what, s, before)
				}
				now := r.Routes()
				if len(now) != len(routes) {
					t.Errorf("%s: %d routes, before %d", what, len(now), len(routes))
				}
				for i := range now {
					if now[i].Active != routes[i].Active || now[i].Key() != routes[i].Key() {
						t.Errorf("%s: %+v, before %+v", what, now[i], routes[i])
					}
				}
			}
			check("update", r.update(add, del))
			check("again", r.update(add, del))
			check("interface up", r.iface(2, true))
			r.tab.Ifaces[2].Flags = 0
			if name == "adjacencies" {
				r.tab.Ifaces[1].MTU = 1400
				check("other MTU", r.SetIface(1, IfaceOptions{}))
			}
			if name == "groups" {
				var all []uint32
				for g, err := r.groups.Get(); err == nil; g, err = r.groups.Get() {
					all = append(all, g)
				}
				before.Groups = r.Stats().Groups
				check("neighbour gone", r.DelNeighbour(1, a("10.0.0.77")))
				r.groups.Put(all...)
			}
			if err := r.update(nil, del); err != nil {
				t.Fatal(err)
			}
			r.same(look)
			r.clearAll()
			r.empty(fresh)
		})
	}
}

func TestCandidates(t *testing.T) {
	r := newRig(t)
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	pfx, dst := p("20.0.0.0/8"), a("20.1.1.1")
	route := func(s Source, metric uint32, iface uint16) Route {
		return Route{Prefix: pfx, NextHops: []NextHop{{Via: a("10.0.0.1"), Iface: iface}}, Source: s, Metric: metric}
	}
	active := func() string {
		var act string
		for _, x := range r.Routes() {
			if x.Prefix == pfx && x.Active {
				act += fmt.Sprintf("%v %d by %d", x.Source, x.Metric, x.NextHops[0].Iface)
			}
		}
		if l := r.Lookup(dst).Route; l.Prefix.IsValid() && act != fmt.Sprintf("%v %d by %d", l.Source, l.Metric, l.NextHops[0].Iface) {
			t.Errorf("Lookup gives %+v, Routes %s", l, act)
		}
		return act
	}
	for i := range uint16(5) {
		r.iface(i+1, true)
	}
	for i, c := range []struct {
		do   func() error
		want string
	}{
		{func() error { return r.Update([]Route{route(SourceKernel, 20, 1)}, nil) }, "kernel 20 by 1"},
		{func() error { return r.Update([]Route{route(SourceKernel, 10, 2)}, nil) }, "kernel 10 by 2"},
		{func() error { return r.Update([]Route{route(SourceAPI, 500, 3)}, nil) }, "api 500 by 3"},
		{func() error { return r.Update([]Route{route(SourceConfig, 501, 4)}, nil) }, "config 501 by 4"},
		{func() error { return r.iface(4, false) }, "api 500 by 3"},
		{func() error { return r.Update([]Route{route(SourceConfig, 501, 5)}, nil) }, "config 501 by 5"},
		{func() error {
			return r.Update(nil, []Key{{Prefix: pfx, Source: SourceConfig, Metric: 501}, {Prefix: pfx, Source: SourceAPI, Metric: 500}})
		}, "kernel 10 by 2"},
		{func() error { return r.iface(2, false) }, "kernel 20 by 1"},
		{func() error { return r.iface(2, true) }, "kernel 10 by 2"},
		{func() error {
			return r.Update(nil, []Key{{Prefix: pfx, Source: SourceKernel, Metric: 10}, {Prefix: pfx, Source: SourceKernel, Metric: 20}})
		}, ""},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if got := active(); got != c.want {
			t.Errorf("step %d: %q is active, want %q", i, got, c.want)
		}
	}
}

// TestGeneration: it moves with every change that packets can notice, and only then.
func TestGeneration(t *testing.T) {
	r := newRig(t)
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	route := []Route{{Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("10.0.0.1"), Iface: 1}}, Source: SourceAPI}}
	for i, c := range []struct {
		do    func() error
		moves bool
	}{
		{func() error { return r.Update(route, nil) }, false}, // its interface is not there
		{func() error { return r.iface(1, true) }, true},
		{func() error { return r.iface(1, true) }, false},
		{func() error { return r.Update(route, nil) }, false},
		{func() error { return r.SetNeighbour(1, a("10.0.0.1"), pmd.MAC{2}) }, true},
		{func() error { return r.SetNeighbour(1, a("10.0.0.1"), pmd.MAC{2}) }, false},
		{func() error { return r.SetNeighbour(1, a("10.0.0.1"), pmd.MAC{2, 1}) }, true},
		{func() error { return r.SetNeighbour(1, a("10.0.0.2"), pmd.MAC{2, 1}) }, false}, // nobody's next hop
		{func() error { return r.DelNeighbour(1, a("10.0.0.1")) }, true},
		{func() error { return r.DelNeighbour(1, a("10.0.0.1")) }, false},
		{func() error { return r.Update(nil, []Key{route[0].Key()}) }, true},
		{func() error { return r.Update(nil, []Key{route[0].Key()}) }, false},
	} {
		before := r.Generation()
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		if moved := before != r.Generation(); moved != c.moves {
			t.Errorf("step %d: generation moved %v, want %v", i, moved, c.moves)
		}
	}
}

// TestConcurrentUse is for the race detector.
func TestConcurrentUse(t *testing.T) {
	r := newRig(t)
	fresh := r.Stats()
	for i := range uint16(4) {
		r.tab.Ifaces[i+1] = graph.Iface{Port: i, MTU: 1500, Flags: graph.IfUp}
	}
	var wg sync.WaitGroup
	for id := range 4 {
		wg.Go(func() {
			iface := uint16(id + 1)
			via := netip.AddrFrom4([4]byte{10, 0, byte(id), 1})
			x := Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(id), 0, 0}), 27), NextHops: []NextHop{{Via: via, Iface: iface}}, Source: SourceAPI}
			for range 100 {
				err := errors.Join(r.SetIface(iface, IfaceOptions{}), r.Update([]Route{x}, nil), r.SetNeighbour(iface, via, pmd.MAC{2, byte(id)}))
				if res := r.Lookup(x.Prefix.Addr()); err != nil || len(res.Adjs) != 1 {
					t.Errorf("%v %+v", err, res)
				}
				r.Routes()
				r.Neighbours()
				r.Target(uint16(id), via)
				if err := errors.Join(r.DelNeighbour(iface, via), r.Update(nil, []Key{x.Key()}), r.DelIface(iface)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	r.empty(fresh)
}

func TestBucketRuns(t *testing.T) {
	r := runs{size: 256}
	var got []run
	owner := map[uint32]int{}
	for i, n := range []int{16, 32, 16, 64, 128} {
		x, err := r.get(n)
		if err != nil {
			t.Fatal(err)
		}
		for b := x.at; b < x.at+uint32(n); b++ {
			if o, taken := owner[b]; taken {
				t.Fatalf("bucket %d is given out to %d and %d", b, o, i)
			}
			owner[b] = i
		}
		got = append(got, x)
	}
	if _, err := r.get(16); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	r.put(got[4])
	seen := map[uint32]bool{}
	for range 8 { // out of the longer piece
		x, err := r.get(16)
		if err != nil || seen[x.at] || owner[x.at] != 4 {
			t.Fatal(x, err)
		}
		seen[x.at] = true
	}
	if r.used() != 256 {
		t.Errorf("%d used", r.used())
	}
}

// TestTag: the FIB keeps a source's tag, of each route of a prefix and through replacement.
func TestTag(t *testing.T) {
	r := newRig(t)
	p := netip.MustParsePrefix("20.0.0.0/8")
	for _, tag := range []uint32{7, 8} {
		if err := r.Update([]Route{{Prefix: p, Type: Blackhole, Source: SourceAPI, Tag: 5}, {Prefix: p, Type: Prohibit, Source: SourceKernel, Metric: 3, Tag: tag}}, nil); err != nil {
			t.Fatal(err)
		}
		got := map[Source]uint32{}
		for _, x := range r.Routes() {
			if x.Prefix == p {
				got[x.Source] = x.Tag
			}
		}
		if got[SourceAPI] != 5 || got[SourceKernel] != tag {
			t.Errorf("tags %v, want 5 and %d", got, tag)
		}
	}
}
