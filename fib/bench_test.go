package fib

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/clock"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// benchStages runs vectors of IPv4 packets to dsts in turn and reports clocks a packet. Between two
// vectors, other goes through the cache, as packets do.
func benchStages(b *testing.B, r *rig, dsts []uint32, other []byte, stages ...*graph.Stage) {
	l := newLane(b, r.tab, graph.VectorSize)
	rs := runners(l.w, stages...)
	l.fill(slices.Repeat([]netip.Addr{netip.MustParseAddr("11.0.0.9")}, 256), 0)
	v, whole := &l.v, l.v.Lane4
	n := 0
	var spent uint64
	for b.Loop() {
		v.N4, v.NX, v.Lane4 = 256, 0, whole
		copy(v.Dst4[:], dsts[n*256%len(dsts):])
		n++
		for i := 0; i < len(other); i += 64 {
			other[i]++
		}
		t := clock.Ticks()
		for _, s := range rs {
			s.Run(v)
		}
		spent += clock.Ticks() - t
		if v.N4 != 256 {
			b.Fatal(v.N4, v.NX)
		}
	}
	b.ReportMetric(float64(spent)/float64(n)/256, "clocks/packet")
}

// BenchmarkRoad measures lookup and next hop: one destination, destinations all over a real table, several next hops.
func BenchmarkRoad(b *testing.B) {
	r := newRig(b)
	via := netip.MustParseAddr("fe80::1")
	for i := range uint16(4) {
		r.iface(i+1, true)
		r.setNeigh(i+1, via, pmd.MAC{2, 0, 0, 0, 0, byte(i)})
	}
	rnd := rand.New(rand.NewPCG(1, 1))
	add := []Route{{Prefix: netip.MustParsePrefix("11.0.0.0/24"), Source: SourceAPI, NextHops: []NextHop{{Via: via, Iface: 1}, {Via: via, Iface: 2}}}}
	pfx := bgp(b, "v4.txt.gz", 1<<20)
	for i, p := range pfx {
		add = append(add, Route{Prefix: p, NextHops: []NextHop{{Via: via, Iface: uint16(i%4 + 1)}}, Source: SourceKernel})
	}
	if err := r.Update(add, nil); err != nil {
		b.Fatal(err)
	}
	table := make([]uint32, 1<<20)
	for i := range table {
		p := pfx[rnd.IntN(len(pfx))]
		table[i] = addr4(p.Addr()) | rnd.Uint32()>>p.Bits()
	}
	for _, c := range []struct {
		name  string
		dsts  []uint32
		other int
	}{
		{"hot", slices.Repeat(table[:1], 256), 0},
		{"multipath", slices.Repeat([]uint32{11<<24 | 9}, 256), 0},
		{"table", table, 0},
		{"table-cold", table, 1 << 20},
	} {
		for name, st := range map[string][]*graph.Stage{
			"lookup":   {Lookup4(r.FIB)},
			"separate": {Lookup4(r.FIB), NextHop4(r.FIB)},
			"fused":    {LookupNextHop4(r.FIB)},
		} {
			b.Run(fmt.Sprintf("%s/%s", c.name, name), func(b *testing.B) { benchStages(b, r, c.dsts, make([]byte, c.other), st...) })
		}
	}
}

// BenchmarkUpdate replaces the next hop of one prefix of a real table at a time.
func BenchmarkUpdate(b *testing.B) {
	for _, file := range []string{"v4.txt.gz", "v6.txt.gz"} {
		b.Run(file[:2], func(b *testing.B) {
			r := newRig(b)
			r.iface(1, true)
			var routes []Route
			for _, p := range bgp(b, file, 1<<20) {
				routes = append(routes, Route{Prefix: p, NextHops: []NextHop{{Via: netip.MustParseAddr("fe80::1"), Iface: 1}}, Source: SourceKernel})
			}
			if err := r.Update(routes, nil); err != nil {
				b.Fatal(err)
			}
			hops := [][]NextHop{routes[0].NextHops, {{Via: netip.MustParseAddr("fe80::2"), Iface: 1}}}
			n := 0
			for b.Loop() {
				x := routes[n*7919%len(routes)]
				x.NextHops = hops[n&1]
				if err := r.Update([]Route{x}, nil); err != nil {
					b.Fatal(err)
				}
				n++
			}
		})
	}
}

// BenchmarkLoad gives a FIB a real table at once, with 256 next hops.
func BenchmarkLoad(b *testing.B) {
	for _, file := range []string{"v4.txt.gz", "v6.txt.gz"} {
		b.Run(file[:2], func(b *testing.B) {
			routes := benchRoutes(b, file)
			for b.Loop() {
				b.StopTimer()
				r := newRig(b)
				r.iface(1, true)
				var before, after runtime.MemStats
				runtime.GC()
				runtime.ReadMemStats(&before)
				runtime.LockOSThread()
				b.StartTimer()
				t := threadCPU()
				if err := r.Update(routes, nil); err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				b.ReportMetric((threadCPU() - t).Seconds(), "cpu-s")
				runtime.UnlockOSThread()
				runtime.GC()
				runtime.ReadMemStats(&after)
				b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/float64(len(routes)), "heap-bytes/route")
				b.StartTimer()
			}
			b.ReportMetric(float64(len(routes))*float64(b.N)/b.Elapsed().Seconds(), "routes/s")
		})
	}
}

// threadCPU is the time that this thread has run: on a machine shared with others the clock says little.
func threadCPU() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func benchRoutes(b *testing.B, file string) (routes []Route) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, p := range bgp(b, file, 1<<20) {
		routes = append(routes, Route{Prefix: p, NextHops: []NextHop{{Via: netip.AddrFrom16([16]byte{0xfe, 0x80, 15: byte(rnd.IntN(256))}), Iface: 1}}, Source: SourceKernel})
	}
	return routes
}

// BenchmarkStream is updates in batches: other next hops, withdrawals, and routes that come back.
func BenchmarkStream(b *testing.B) {
	for _, file := range []string{"v4.txt.gz", "v6.txt.gz"} {
		b.Run(file[:2], func(b *testing.B) {
			r := newRig(b)
			r.iface(1, true)
			routes := benchRoutes(b, file)
			if err := r.Update(routes, nil); err != nil {
				b.Fatal(err)
			}
			rnd := rand.New(rand.NewPCG(2, 2))
			const batch = 256
			add, gone := make([]Route, 0, batch), make([]Key, 0, batch)
			var back []Route
			n, spent := 0, time.Duration(0)
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			for i := range 1000 { // neighbours, as a router has
				r.setNeigh(1, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), pmd.MAC{2})
			}
			for b.Loop() {
				add, gone = append(add[:0], back...), gone[:0]
				back = back[:0]
				for len(add)+len(gone) < batch {
					x := routes[rnd.IntN(len(routes))]
					if rnd.IntN(4) == 0 {
						gone, back = append(gone, x.Key()), append(back, x)
					} else {
						x.NextHops = routes[rnd.IntN(len(routes))].NextHops
						add = append(add, x)
					}
				}
				t := threadCPU()
				if err := r.Update(add, gone); err != nil {
					b.Fatal(err)
				}
				spent += threadCPU() - t
				n += batch
			}
			b.ReportMetric(float64(n)/spent.Seconds(), "updates/cpu-s")
		})
	}
}

// BenchmarkPolicy is what VRFs, rules and the check of sources cost: 256 packets to one destination.
func BenchmarkPolicy(b *testing.B) {
	via := netip.MustParseAddr("fe80::1")
	p := netip.MustParsePrefix
	for _, c := range []struct {
		name         string
		vrf, mixed   bool
		rules, flags int // flags of the interface, for the check of sources
	}{
		{"main", false, false, 0, 0}, {"vrf", true, false, 0, 0}, {"vrf-mixed", true, true, 0, 0},
		{"rules-1", false, false, 1, 0}, {"rules-10", false, false, 10, 0}, {"strict", false, false, 0, graph.IfStrict4},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newRig(b)
			for i := range uint16(2) {
				r.iface(i+1, true)
				r.setNeigh(i+1, via, pmd.MAC{2})
			}
			r.update([]Route{{Prefix: p("11.0.0.0/24"), NextHops: []NextHop{{Via: via, Iface: 1}}, Source: SourceAPI},
				{Table: 10, Prefix: p("11.0.0.0/24"), NextHops: []NextHop{{Via: via, Iface: 1}}, Source: SourceAPI},
				{Prefix: p("192.0.2.0/24"), NextHops: []NextHop{{Via: via, Iface: 1}}, Source: SourceAPI}}, nil)
			r.tab.Ifaces[1].Flags |= uint16(c.flags)
			r.SetIface(1, IfaceOptions{})
			if c.vrf {
				r.inTable(1, 10)
			}
			rules := []Rule{{Table: TableLocal}, {Pref: 32766}}
			for i := range c.rules {
				rules = append(rules, Rule{Pref: uint32(i + 1), From: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i)}), 16), Table: 10})
			}
			if c.rules > 0 {
				if err := r.SetRules(rules, nil); err != nil {
					b.Fatal(err)
				}
			}
			l := newLane(b, r.tab, graph.VectorSize)
			rs := runners(l.w, RPF4(r.FIB), LookupNextHop4(r.FIB))
			l.fill(slices.Repeat([]netip.Addr{netip.MustParseAddr("11.0.0.9")}, 256), 0)
			v := &l.v
			for i := range v.In {
				v.In[i] = 1
				if c.mixed {
					v.In[i] += uint16(i & 1)
				}
			}
			if !c.mixed {
				v.From = 1
			}
			start := *v
			n, spent, best := 0, uint64(0), ^uint64(0)
			for b.Loop() {
				v.N4, v.NX, v.Lane4 = 256, 0, start.Lane4
				t := clock.Ticks()
				for _, s := range rs {
					s.Run(v)
				}
				t = clock.Ticks() - t
				spent, best = spent+t, min(best, t)
				n++
				if v.N4 != 256 {
					b.Fatal(v.N4, v.NX)
				}
			}
			b.ReportMetric(float64(spent)/float64(n)/256, "clocks/packet")
			b.ReportMetric(float64(best)/256, "best-clocks/packet")
		})
	}
}
