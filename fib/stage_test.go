package fib

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// lane is a vector of packets to addresses, made of real buffers, and the worker to run it on.
type lane struct {
	w *graph.Worker
	v graph.Vector
	m []uint32
}

func newLane(t testing.TB, tab *graph.Tables, n int) *lane {
	t.Helper()
	pool, err := packet.NewPool("fib-test", n)
	if err != nil {
		t.Fatal(err)
	}
	l := &lane{w: &graph.Worker{Base: packet.Base(), Tables: tab, Cache: pool.NewCache()}}
	for range n {
		m := l.w.Cache.Alloc1()
		if m.Append(64) == nil {
			t.Fatal("no room")
		}
		l.m = append(l.m, m.Index())
	}
	t.Cleanup(func() {
		l.w.Cache.Free(l.m)
		l.w.Cache.Close()
		if pool.Free() != pool.Size() {
			t.Errorf("%d of %d buffers came back", pool.Free(), pool.Size())
		}
		pool.Close()
	})
	return l
}

// fill makes the vector one of packets to the addresses, each of a flow of its own.
func (l *lane) fill(addrs []netip.Addr, flow uint32) {
	v := &l.v
	v.Reset()
	for i, a := range addrs {
		m := packet.At(l.m[i])
		b := m.Bytes()[14:]
		if a.Is4() {
			h := packet.IPv4(b)
			h.Init([4]byte{192, 0, 2, 1}, a.As4(), packet.ProtoUDP, 50)
			binary.BigEndian.PutUint32(b[20:], flow+uint32(i))
		} else {
			h := packet.IPv6(b)
			h.Init(netip.MustParseAddr("2001:db8:ffff::1").As16(), a.As16(), packet.ProtoUDP, 10)
			binary.BigEndian.PutUint32(b[40:], flow+uint32(i))
		}
		v.Idx[i] = l.m[i]
		v.SetL3(uint8(i), 14)
		v.N++
		v.Join(uint8(i))
	}
}

// fates runs the stages and says what became of each packet, in the words of rig.fate.
func (l *lane) fates(t testing.TB, r *rig, stages []graph.Runner) []string {
	t.Helper()
	v := &l.v
	for _, s := range stages {
		s.Run(v)
	}
	out := make([]string, v.N)
	leave := func(i uint8, fate string) {
		if out[i] != "" {
			t.Errorf("position %d is in two places", i)
		}
		out[i] = fate
	}
	for _, i := range append(append([]uint8{}, v.Lane4[:v.N4]...), v.Lane6[:v.N6]...) {
		leave(i, r.way(v.Adj[i]))
	}
	for x := range v.NX {
		leave(v.XPos[x], v.XCode[x].String())
		if v.XCode[x] == xUnresolved {
			if i, nh, ok := r.Target(v.NH[v.XPos[x]], addrOf(v, v.XPos[x])); ok {
				out[v.XPos[x]] = fmt.Sprintf("ask %d for %v", i, nh)
			}
		}
	}
	return out
}

func addrOf(v *graph.Vector, i uint8) netip.Addr {
	b := packet.At(v.Idx[i]).Bytes()[14:]
	if b[0]>>4 == 4 {
		a, _ := netip.AddrFromSlice(b[16:20])
		return a
	}
	a, _ := netip.AddrFromSlice(b[24:40])
	return a
}

func runners(w *graph.Worker, l ...*graph.Stage) (out []graph.Runner) {
	for _, s := range l {
		out = append(out, s.New(w))
	}
	return out
}

// world gives the rig routes of each kind.
func world(r *rig) {
	r.t.Helper()
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	for i := range uint16(3) {
		if err := r.iface(i+1, true); err != nil {
			r.t.Fatal(err)
		}
	}
	routes := []Route{
		{Prefix: p("10.0.0.0/24"), NextHops: []NextHop{{Iface: 1}}, Source: SourceConnected},
		{Prefix: p("10.0.0.1/32"), Type: Local, Source: SourceConnected},
		{Prefix: p("2001:db8::/64"), NextHops: []NextHop{{Iface: 2}}, Source: SourceConnected},
		{Prefix: p("2001:db8::1/128"), Type: Local, Source: SourceConnected},
		{Prefix: p("0.0.0.0/0"), NextHops: []NextHop{{Via: a("10.0.0.2"), Iface: 1}}, Source: SourceKernel},
		{Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("fe80::2"), Iface: 2}, {Via: a("fe80::3"), Iface: 3, Weight: 3}}, Source: SourceConfig},
		{Prefix: p("20.1.2.128/25"), NextHops: []NextHop{{Via: a("10.0.0.9"), Iface: 1}}, Source: SourceAPI},
		{Prefix: p("20.2.0.0/16"), Type: Blackhole, Source: SourceConfig},
		{Prefix: p("20.3.0.0/16"), Type: Prohibit, Source: SourceConfig},
		{Prefix: p("20.4.0.0/16"), Type: Unreachable, Source: SourceConfig},
		{Prefix: p("2000::/4"), NextHops: []NextHop{{Via: a("fe80::2"), Iface: 2}}, Source: SourceKernel},
		{Prefix: p("2001:db8:8000::/33"), NextHops: []NextHop{{Via: a("fe80::2"), Iface: 2}, {Via: a("fe80::3"), Iface: 3}}, Source: SourceKernel},
		{Prefix: p("2001:db8:1::/48"), Type: Prohibit, Source: SourceConfig},
	}
	if err := r.update(routes, nil); err != nil {
		r.t.Fatal(err)
	}
	for i, n := range []struct {
		iface uint16
		addr  string
	}{{1, "10.0.0.2"}, {1, "10.0.0.7"}, {2, "fe80::2"}, {3, "fe80::3"}, {2, "2001:db8::7"}} {
		if err := r.setNeigh(n.iface, a(n.addr), pmd.MAC{2, 0, 0, 0, 1, byte(i)}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// destinations of world, one of each kind, with what becomes of them.
var destinations = []struct{ addr, fate string }{
	{"10.0.0.1", "lookup/local"}, {"10.0.0.2", "1/02:00:00:00:01:00"}, {"10.0.0.7", "1/02:00:00:00:01:01"},
	{"10.0.0.8", "ask 1 for 10.0.0.8"}, {"10.0.0.255", "lookup/directed-broadcast"}, {"10.0.0.0", "lookup/directed-broadcast"},
	{"8.8.8.8", "1/02:00:00:00:01:00"}, {"20.1.2.127", "[2/02:00:00:00:01:02 3/02:00:00:00:01:03]"}, {"20.1.2.128", "ask 1 for 10.0.0.9"},
	{"20.2.0.1", "lookup/blackhole"}, {"20.3.0.1", "lookup/prohibit"}, {"20.4.0.1", "lookup/unreachable"},
	{"0.1.2.3", "lookup/martian-destination"}, {"127.0.0.1", "lookup/martian-destination"}, {"224.0.0.1", "lookup/multicast"},
	{"240.0.0.1", "lookup/martian-destination"}, {"255.255.255.255", "lookup/limited-broadcast"}, {"169.254.3.4", "lookup/link-local-destination"},
	{"::", "lookup/martian-destination"}, {"::1", "lookup/martian-destination"}, {"::2", "lookup/no-route"}, {"::ffff:8.8.8.8", "lookup/martian-destination"},
	{"fe80::2", "lookup/link-local-destination"}, {"ff02::1", "lookup/multicast"},
	{"2001:db8::", "lookup/local"}, {"2001:db8::1", "lookup/local"}, {"2001:db8::7", "2/02:00:00:00:01:04"}, {"2001:db8::8", "ask 2 for 2001:db8::8"},
	{"2001:4860::1", "2/02:00:00:00:01:02"}, {"2001:db8:1::1", "lookup/prohibit"}, {"2001:db8:8000::1", "[2/02:00:00:00:01:02 3/02:00:00:00:01:03]"},
	{"3000::1", "lookup/no-route"},
}

func TestWorld(t *testing.T) {
	r := newRig(t)
	world(r)
	for _, d := range destinations {
		a := netip.MustParseAddr(d.addr)
		if got := r.fate(a); got != d.fate {
			t.Errorf("%s: %s, want %s", a, got, d.fate)
		}
		r.same([]netip.Addr{a})
	}
}

// TestStages: separate and fused stages do with every mix of packets what the tables say.
func TestStages(t *testing.T) {
	r := newRig(t)
	world(r)
	l := newLane(t, r.tab, graph.VectorSize)
	for name, st := range map[string][]*graph.Stage{
		"separate": {Lookup4(r.FIB), Lookup6(r.FIB), NextHop4(r.FIB), NextHop6(r.FIB)},
		"fused":    {LookupNextHop4(r.FIB), LookupNextHop6(r.FIB)},
	} {
		rs := runners(l.w, st...)
		gives := map[string]bool{}
		for _, s := range st {
			for _, why := range s.Reasons {
				gives[why.String()] = true
			}
		}
		rnd := rand.New(rand.NewPCG(3, 4))
		for _, n := range []int{0, 1, 2, 3, 4, 5, 7, 8, 31, 255, 256} {
			for range 2 {
				var addrs []netip.Addr
				for range n {
					addrs = append(addrs, netip.MustParseAddr(destinations[rnd.IntN(len(destinations))].addr))
				}
				l.fill(addrs, uint32(n))
				for i, got := range l.fates(t, r, rs) {
					want := r.fate(addrs[i])
					if got != want && !(want[0] == '[' && strings.Contains(want, got)) {
						t.Fatalf("%s, %d packets, position %d: %v: %q, want %q", name, n, i, addrs[i], got, want)
					}
				}
				for x := range l.v.NX {
					if !gives[l.v.XCode[x].String()] {
						t.Errorf("%s: reason %v is not in the stage's list", name, l.v.XCode[x])
					}
				}
			}
		}
	}
}

// TestShares: flows spread by weight, stay on one way, and only those of a failed neighbour move.
func TestShares(t *testing.T) {
	r := newRig(t)
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	hops := []NextHop{}
	for i := range 5 {
		r.iface(uint16(i+1), true)
		via := netip.AddrFrom4([4]byte{10, 0, byte(i), 1})
		hops = append(hops, NextHop{Via: via, Iface: uint16(i + 1), Weight: []int{1, 1, 2, 3, 4}[i]})
		r.setNeigh(uint16(i+1), via, pmd.MAC{2, 0, 0, 0, 0, byte(i)})
	}
	if err := r.update([]Route{{Prefix: p("20.0.0.0/8"), NextHops: hops, Source: SourceConfig},
		{Prefix: p("2001:db8::/32"), NextHops: hops5(hops), Source: SourceConfig}}, nil); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		r.setNeigh(uint16(i+1), netip.MustParseAddr("fe80::1"), pmd.MAC{2, 0, 0, 0, 0, byte(i)})
	}
	l := newLane(t, r.tab, graph.VectorSize)
	rs := runners(l.w, LookupNextHop4(r.FIB), LookupNextHop6(r.FIB))
	const rounds = 100
	run := func(dst netip.Addr) (ways []uint16) {
		addrs := make([]netip.Addr, 256)
		for i := range addrs {
			addrs[i] = dst
		}
		for n := range rounds {
			l.fill(addrs, uint32(n)<<12)
			for _, s := range rs {
				s.Run(&l.v)
			}
			for i := range 256 {
				ways = append(ways, r.tab.Adjs[l.v.Adj[i]].Iface)
			}
		}
		return ways
	}
	for _, dst := range []netip.Addr{a("20.1.2.3"), a("2001:db8::5")} {
		before := run(dst)
		count := map[uint16]float64{}
		for _, w := range before {
			count[w] += 1.0 / float64(len(before))
		}
		for i, want := range []float64{1. / 11, 1. / 11, 2. / 11, 3. / 11, 4. / 11} {
			if d := count[uint16(i+1)] - want; d > 0.02 || d < -0.02 {
				t.Errorf("%v: next hop %d has %.3f of the flows, want %.3f", dst, i+1, count[uint16(i+1)], want)
			}
		}
		for i, w := range run(dst) {
			if w != before[i] {
				t.Fatalf("%v: flow %d changed its way without a reason", dst, i)
			}
		}
		via := a("fe80::1")
		if dst.Is4() {
			via = hops[3].Via
		}
		mac := r.neigh[hopKey{4, via}]
		r.delNeigh(4, via)
		took := map[uint16]int{}
		for i, w := range run(dst) {
			if w == 4 || before[i] != 4 && w != before[i] {
				t.Fatalf("%v: flow %d went by %d, and by %d after 4 failed", dst, i, before[i], w)
			}
			if before[i] == 4 {
				took[w]++
			}
		}
		if len(took) != 4 {
			t.Errorf("%v: the failed next hop's flows went to %v, want all others", dst, took)
		}
		r.setNeigh(4, via, mac)
		for i, w := range run(dst) {
			if w != before[i] {
				t.Fatalf("%v: flow %d did not come back", dst, i)
			}
		}
	}
}

// hops5 is the same ways by link-local next hops.
func hops5(hops []NextHop) (out []NextHop) {
	for _, h := range hops {
		h.Via = netip.MustParseAddr("fe80::1")
		out = append(out, h)
	}
	return out
}

func TestStagesDoNotAllocate(t *testing.T) {
	r := newRig(t)
	world(r)
	l := newLane(t, r.tab, graph.VectorSize)
	var addrs []netip.Addr
	for i := range 256 {
		addrs = append(addrs, netip.MustParseAddr(destinations[i%len(destinations)].addr))
	}
	for _, st := range [][]*graph.Stage{
		{Lookup4(r.FIB), Lookup6(r.FIB), NextHop4(r.FIB), NextHop6(r.FIB)},
		{LookupNextHop4(r.FIB), LookupNextHop6(r.FIB)},
	} {
		rs := runners(l.w, st...)
		l.fill(addrs, 0)
		start := l.v
		if n := testing.AllocsPerRun(20, func() {
			l.v = start
			for _, s := range rs {
				s.Run(&l.v)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations a vector", st[0].Name, n)
		}
	}
	if n := testing.AllocsPerRun(20, func() { r.Target(3, addrs[0]) }); n != 0 {
		t.Errorf("Target: %v allocations", n)
	}
}

// TestReadersBesideWriter: while routes and neighbours change, every packet goes by the old or the
// new state, never by something else.
func TestReadersBesideWriter(t *testing.T) {
	r := newRig(t)
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	for i := range uint16(3) {
		r.iface(i+1, true)
		r.setNeigh(i+1, a("fe80::1"), pmd.MAC{2, 0, 0, 0, 0, byte(i + 1)})
	}
	via := func(i uint16) []NextHop { return []NextHop{{Via: a("fe80::1"), Iface: i}} }
	// Interface 1 for everything, always; in the area that changes 2, or 3 by multipath with 2.
	base := []Route{
		{Prefix: p("0.0.0.0/0"), NextHops: via(1), Source: SourceConfig},
		{Prefix: p("::/0"), NextHops: via(1), Source: SourceConfig},
	}
	if err := r.Update(base, nil); err != nil {
		t.Fatal(err)
	}
	area := []netip.Prefix{p("20.0.0.0/15"), p("20.0.0.0/25"), p("20.0.0.64/26"), p("20.0.0.65/32"),
		p("2001:db8::/32"), p("2001:db8::/49"), p("2001:db8::/67"), p("2001:db8::5/128")}
	dsts := []netip.Addr{a("20.0.0.65"), a("20.0.0.66"), a("20.0.0.127"), a("20.0.0.128"), a("20.1.0.1"), a("9.9.9.9"),
		a("2001:db8::5"), a("2001:db8::6"), a("2001:db8:0:8000::1"), a("2001:db8:1::1"), a("2001:db9::1")}
	outside := map[int]bool{5: true, 10: true}

	var stop atomic.Bool
	var wg sync.WaitGroup
	var vectors atomic.Int64
	for id := range 2 {
		l := newLane(t, r.tab, graph.VectorSize)
		st := []*graph.Stage{Lookup4(r.FIB), Lookup6(r.FIB), NextHop4(r.FIB), NextHop6(r.FIB)}
		if id == 1 {
			st = []*graph.Stage{LookupNextHop4(r.FIB), LookupNextHop6(r.FIB)}
		}
		rs := runners(l.w, st...)
		var addrs []netip.Addr
		for i := range 256 {
			addrs = append(addrs, dsts[i%len(dsts)])
		}
		slot := r.dom.NewSlot()
		wg.Go(func() {
			slot.Online()
			defer slot.Close()
			l.fill(addrs, 0)
			start := l.v
			for !stop.Load() {
				slot.Quiesce()
				l.v = start
				v := &l.v
				for _, s := range rs {
					s.Run(v)
				}
				if v.N4+v.N6+v.NX != 256 {
					t.Errorf("%d packets of 256 left", v.N4+v.N6+v.NX)
					return
				}
				for x := range v.NX {
					if why := v.XCode[x]; why != xUnresolved || outside[int(v.XPos[x])%len(dsts)] {
						t.Errorf("%v: left for %v", addrs[v.XPos[x]], why)
						return
					}
				}
				for _, i := range append(append([]uint8{}, v.Lane4[:v.N4]...), v.Lane6[:v.N6]...) {
					adj := &r.tab.Adjs[v.Adj[i]]
					w := adj.Iface
					if v.Adj[i] == 0 || w < 1 || w > 3 || outside[int(i)%len(dsts)] && w != 1 || uint16(adj.RW0>>40&0xff) != w {
						t.Errorf("%v: went by adjacency %d of interface %d with %x", addrs[i], v.Adj[i], w, adj.RW0)
						return
					}
				}
				vectors.Add(1)
			}
		})
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	fresh := r.Stats()
	for n := 0; n < 3000 || vectors.Load() < 2000; n++ {
		pfx := area[rnd.IntN(len(area))]
		var err error
		switch rnd.IntN(8) {
		case 0, 1:
			err = r.Update([]Route{{Prefix: pfx, NextHops: via(2), Source: SourceConfig}}, nil)
		case 2:
			err = r.Update([]Route{{Prefix: pfx, NextHops: append(via(2), via(3)...), Source: SourceConfig}}, nil)
		case 3, 4, 5:
			err = r.Update(nil, []Key{{Prefix: pfx, Source: SourceConfig}})
		case 6:
			err = r.DelNeighbour(uint16(2+rnd.IntN(2)), a("fe80::1"))
		case 7:
			i := uint16(2 + rnd.IntN(2))
			err = r.SetNeighbour(i, a("fe80::1"), pmd.MAC{2, 0, 0, byte(n), 0, byte(i)})
		}
		if err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			break
		}
	}
	var all []Key
	for _, x := range area {
		all = append(all, Key{Prefix: x, Source: SourceConfig})
	}
	if err := r.Update(nil, all); err != nil {
		t.Fatal(err)
	}
	r.DelNeighbour(2, a("fe80::1"))
	r.DelNeighbour(3, a("fe80::1"))
	r.dom.Wait()
	fresh.Neighbours -= 2
	if s := r.Stats(); s != fresh {
		t.Errorf("left over: %+v, want %+v", s, fresh)
	}
	stop.Store(true)
	wg.Wait()
}

// bgp reads up to n prefixes of a real table; it skips the test where there is none.
func bgp(t testing.TB, name string, n int) (out []netip.Prefix) {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "shared", "data", "bgp", name))
	if err != nil {
		t.Skip("no table of prefixes: ", err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(z); s.Scan() && len(out) < n; {
		out = append(out, netip.MustParsePrefix(s.Text()))
	}
	return out
}

func TestRealTable(t *testing.T) {
	for _, c := range []struct {
		file string
		n    int
	}{{"v4.txt.gz", 80_000}, {"v6.txt.gz", 20_000}} {
		t.Run(c.file, func(t *testing.T) {
			pfx := bgp(t, c.file, c.n)
			r := newRig(t)
			fresh := r.Stats()
			var add []Route
			var del []Key
			group := map[netip.Prefix]int{}
			for i := range uint16(4) {
				r.iface(i+1, true)
			}
			for i, p := range pfx {
				x := Route{Prefix: p, NextHops: []NextHop{{Via: netip.MustParseAddr("fe80::1"), Iface: uint16(i%4 + 1)}}, Source: SourceKernel}
				add = append(add, x)
				del = append(del, x.Key())
				group[p] = i%4 + 1
			}
			if err := r.Update(add, nil); err != nil {
				t.Fatal(err)
			}
			if s := r.Stats(); s.Installed != len(pfx)+len(martians) || c.file[1] == '4' && !s.Prefetch {
				t.Errorf("%+v", s)
			}
			rnd := rand.New(rand.NewPCG(7, 8))
			check := func() {
				t.Helper()
				for range 4_000 {
					for _, a := range edges(pfx[rnd.IntN(len(pfx))]) {
						want := 0
						for n := a.BitLen(); n > 0 && want == 0; n-- {
							q, _ := a.Prefix(n)
							want = group[q]
						}
						if hidden(netip.PrefixFrom(a, a.BitLen()), Unicast) {
							continue
						}
						got, _, _ := r.Target(r.Lookup(a).Group, a)
						if int(got) != want {
							t.Fatalf("%v: interface %d, want %d", a, got, want)
						}
					}
				}
			}
			check()
			half := len(del) / 2
			if err := r.Update(nil, del[:half]); err != nil {
				t.Fatal(err)
			}
			for _, k := range del[:half] {
				delete(group, k.Prefix)
			}
			check()
			if err := r.Update(nil, del[half:]); err != nil {
				t.Fatal(err)
			}
			for i := range uint16(4) {
				r.DelIface(i + 1)
			}
			r.empty(fresh)
		})
	}
}

func TestNewIsSmall(t *testing.T) {
	r := newRig(t)
	if s := r.Stats(); s.Prefetch || s.Installed != len(martians) || s.Blocks4 != 1 {
		t.Errorf("%+v", s)
	}
}
