package fib

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// member is the i-th of the next hops that these tests spread flows over.
func member(i, weight int) NextHop {
	return NextHop{Via: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Iface: 1, Weight: weight}
}

func setOf(hops []NextHop) *hopset { return &hopset{hops: hops, users: 1} }

// dealt is the table of a set that took the place of old, with all members working.
func dealt(hops []NextHop, old *hopset) *hopset {
	s := setOf(hops)
	s.share = newShare(s, old)
	s.share.repair(func(int) bool { return true })
	return s
}

// imbalance is how far the worst member is from its weight's share, relative to it.
func imbalance(s *hopset) (worst float64) {
	count := make([]int, len(s.hops))
	for _, m := range s.share.owner {
		count[m]++
	}
	sum := total(s.share.weight)
	for i, n := range count {
		want := float64(len(s.share.owner)*s.share.weight[i]) / float64(sum)
		worst = max(worst, (float64(n)-want)/want, (want-float64(n))/want)
	}
	return worst
}

// ownerOf is the next hop that a hash picks.
func ownerOf(s *hopset, hash int) netip.Addr {
	return s.hops[s.share.owner[hash&(len(s.share.owner)-1)]].Via
}

func TestSharesComeClose(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for _, k := range []int{2, 3, 4, 5, 7, 16, 31, 64, 100, 256, 500, 512, 1000, 1024} {
		for _, most := range []int{1, 3, 10} {
			var hops []NextHop
			for i := range k {
				hops = append(hops, member(i, 1+rnd.IntN(most)))
			}
			s := dealt(hops, nil)
			limit := 1.0 / closeTo
			if len(s.share.owner) == maxBuckets { // a bucket more or less, of few
				limit = float64(total(s.share.weight)) / maxBuckets
			}
			if x := imbalance(s); x > limit+1e-9 {
				t.Errorf("%d members of weights to %d in %d buckets: the worst share is %.1f %% off, want %.1f %%", k, most, len(s.share.owner), 100*x, 100*limit)
			}
		}
	}
}

// TestQuotas: against what they must be, for any weights.
func TestQuotas(t *testing.T) {
	rnd := rand.New(rand.NewPCG(2, 2))
	for range 5000 {
		k := 1 + rnd.IntN(40)
		n := 64 << rnd.IntN(4)
		weight, have := make([]int, k), make([]int, k)
		for i := range weight {
			weight[i] = []int{0, 1, 1, 2, 3, 1 + rnd.IntN(maxWeight)}[rnd.IntN(6)]
			have[i] = rnd.IntN(2 * n / k)
		}
		weight[rnd.IntN(k)] = 1
		q, sum := quotas(n, weight, have), 0
		tiny := slices.ContainsFunc(weight, func(w int) bool { return w > 0 && n*w < total(weight) })
		for i := range q {
			sum += q[i]
			low := n * weight[i] / total(weight)
			if weight[i] == 0 && q[i] != 0 || weight[i] != 0 && q[i] < 1 || !tiny && weight[i] != 0 && (q[i] < low || q[i] > low+1) {
				t.Fatalf("%d of %v buckets for weight %d of %v", q[i], n, weight[i], weight)
			}
		}
		if sum != n {
			t.Fatalf("quotas %v of weights %v are %d, want %d", q, weight, sum, n)
		}
	}
}

// TestMembersComeAndGo: whatever fails, returns, joins and leaves, only flows of those members move.
func TestMembersComeAndGo(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 3))
	for range 60 {
		k := 2 + rnd.IntN(30)
		var hops []NextHop
		for i := range k {
			hops = append(hops, member(i, 1+rnd.IntN(3)))
		}
		s := dealt(hops, nil)
		up := make([]bool, k)
		for i := range up {
			up[i] = true
		}
		even := true
		for range 20 {
			before := slices.Clone(s.share.owner)
			i := rnd.IntN(k)
			up[i] = !up[i]
			if !slices.Contains(up, true) {
				up[i] = true
				continue
			}
			s.share.repair(func(i int) bool { return up[i] })
			away, sum, count := 0, 0, make([]int, k)
			for _, m := range s.share.owner {
				count[m]++
			}
			for j, u := range up {
				if u {
					sum += s.share.weight[j]
				} else {
					away++
				}
			}
			for b, m := range s.share.owner {
				if was := before[b]; was != m && !(!up[i] && int(was) == i) && !(up[i] && int(m) == i) {
					t.Fatalf("bucket %d went from %d to %d when %d changed to %v", b, was, m, i, up[i])
				}
			}
			for j, n := range count {
				low := 0
				if up[j] {
					low = len(before) * s.share.weight[j] / sum
				}
				low, high := low-1, low+2
				if even = even && away < 2 || away == 0; !even { // some have not been evened out, since that would move flows
					low, high = low-low/4-2, high+high/4+2
				}
				if n < low || n > high || n > 0 && !up[j] || n == 0 && up[j] {
					t.Fatalf("%d of %d members are away, and one has %d buckets, want %d to %d", away, k, n, low, high)
				}
			}
		}
		for i := range up {
			up[i] = true
		}
		s.share.repair(func(int) bool { return true })
		if !slices.Equal(s.share.owner, s.share.base) {
			t.Fatal("all members work, and not all have their own buckets")
		}
	}
}

// TestSetsFollowEachOther: where one set of next hops replaces another, members of both keep their
// flows as far as their shares allow.
func TestSetsFollowEachOther(t *testing.T) {
	const flows = 1 << 16
	moved := func(a, b *hopset, spare func(from, to netip.Addr) bool) (all, extra int) {
		for h := range flows {
			if x, y := ownerOf(a, h), ownerOf(b, h); x != y {
				all++
				if !spare(x, y) {
					extra++
				}
			}
		}
		return all, extra
	}
	for _, k := range []int{1, 2, 3, 4, 5, 8, 17, 33, 64, 200} {
		var hops []NextHop
		for i := range k + 1 {
			hops = append(hops, member(i, 1))
		}
		d := hops[k/2].Via
		less := slices.Delete(slices.Clone(hops), k/2, k/2+1)
		all := dealt(hops, nil)
		one := setOf(less)
		if k > 1 {
			one = dealt(less, all)
			if _, n := moved(all, one, func(from, _ netip.Addr) bool { return from == d }); n != 0 {
				t.Errorf("%d members, one leaves: %d flows of others moved", k+1, n)
			}
			if x := imbalance(one); x > 1.0/16 {
				t.Errorf("%d members, one left: the worst share is %.1f %% off", k+1, 100*x)
			}
		} else {
			one.share = &share{owner: []uint16{0}}
		}
		again := dealt(hops, one)
		n, extra := moved(one, again, func(_, to netip.Addr) bool { return to == d })
		if want := flows / (k + 1); extra != 0 || n < want-want/8-flows/64 || n > want+want/8+flows/64 {
			t.Errorf("%d members, one joins: %d flows moved to it, want %d, and %d others", k, n, want, extra)
		}
		if k > 2 { // without a predecessor, as after deleting and adding a route
			afresh := dealt(less, nil)
			_, n := moved(all, afresh, func(from, _ netip.Addr) bool { return from == d })
			t.Logf("%d members, one leaves, dealt afresh: %.1f %% of the flows move without need", k+1, 100*float64(n)/flows)
			if n > flows/16 && len(afresh.share.owner) == len(all.share.owner) {
				t.Errorf("%d members, one leaves: %d flows of others moved though they did not have to", k+1, n)
			}
		}
	}
}

// TestRouteKeepsFlows is the same through the stages: one next hop more, one less.
func TestRouteKeepsFlows(t *testing.T) {
	r := newRig(t)
	r.iface(1, true)
	for i := range 4 {
		r.setNeigh(1, member(i, 1).Via, pmd.MAC{2, 0, 0, 0, 0, byte(i)})
	}
	p := netip.MustParsePrefix("20.0.0.0/8")
	set := func(n int) {
		t.Helper()
		var hops []NextHop
		for i := range n {
			hops = append(hops, member(i, 1))
		}
		slices.Reverse(hops) // order means nothing
		if err := r.update([]Route{{Prefix: p, NextHops: hops, Source: SourceAPI}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	l := newLane(t, r.tab, graph.VectorSize)
	set(4)
	first := ways(l, r, p.Addr().Next(), 40)
	set(3)
	second := ways(l, r, p.Addr().Next(), 40)
	for i := range first {
		if (first[i] != second[i]) != (first[i] == 3) {
			t.Fatalf("flow %d went by %d, and by %d when 3 had left", i, first[i], second[i])
		}
	}
	set(4)
	for i, w := range ways(l, r, p.Addr().Next(), 40) {
		if w != second[i] && w != 3 {
			t.Fatalf("flow %d went by %d, and by %d when 3 was back", i, second[i], w)
		}
	}
}

// ways runs vectors of 256 flows to dst and says, by flow, the last byte of the Ethernet address that it goes to.
func ways(l *lane, r *rig, dst netip.Addr, rounds int) (out []byte) {
	rs := runners(l.w, LookupNextHop4(r.FIB), LookupNextHop6(r.FIB))
	addrs := slices.Repeat([]netip.Addr{dst}, graph.VectorSize)
	for n := range rounds {
		l.fill(addrs, uint32(n)<<12)
		for _, s := range rs {
			s.Run(&l.v)
		}
		for i := range graph.VectorSize {
			out = append(out, byte(r.tab.Adjs[l.v.Adj[i]].RW0>>40))
		}
	}
	return out
}

func chi2(count []int) (x float64) {
	sum := 0
	for _, n := range count {
		sum += n
	}
	e := float64(sum) / float64(len(count))
	for _, n := range count {
		x += (float64(n) - e) * (float64(n) - e) / e
	}
	return x
}

// TestFourPaths: flows of both families spread over four paths as chance would have it; a path that is
// removed moves its own flows only; a flow has one way at a time.
func TestFourPaths(t *testing.T) {
	for _, d := range []string{"20.0.0.1", "2001:db8:1::1"} {
		dst := netip.MustParseAddr(d)
		r := newRig(t)
		var hops []NextHop
		for i := range 4 {
			r.iface(uint16(i+1), true)
			via := netip.MustParseAddr("fe80::1")
			hops = append(hops, NextHop{Via: via, Iface: uint16(i + 1)})
			r.setNeigh(uint16(i+1), via, pmd.MAC{2, 0, 0, 0, 0, byte(i)})
		}
		if err := r.update([]Route{{Prefix: netip.PrefixFrom(dst, dst.BitLen()-1).Masked(), NextHops: hops, Source: SourceAPI}}, nil); err != nil {
			t.Fatal(err)
		}
		l := newLane(t, r.tab, graph.VectorSize)
		before := ways(l, r, dst, 100)
		count := make([]int, 4)
		for _, w := range before {
			count[w]++
		}
		if x := chi2(count); x > 21.1 { // 3 degrees of freedom: chance gives more once in 10,000
			t.Errorf("%v: %v flows, chi-square %.1f", dst, count, x)
		}
		if !slices.Equal(before, ways(l, r, dst, 100)) {
			t.Errorf("%v: flows change their ways without a reason", dst)
		}
		r.iface(3, false)
		count = make([]int, 4)
		for i, w := range ways(l, r, dst, 100) {
			if w == 2 || before[i] != 2 && w != before[i] {
				t.Fatalf("%v: flow %d went by %d, and by %d when 2 was down", dst, i, before[i], w)
			}
			count[w]++
		}
		if x := chi2(slices.Delete(count, 2, 3)); x > 25 { // of 64 buckets three have 21, 21 and 22
			t.Errorf("%v: %v flows when 2 was down, chi-square %.1f", dst, count, x)
		}
		r.iface(3, true)
		if !slices.Equal(before, ways(l, r, dst, 100)) {
			t.Errorf("%v: flows did not come back", dst)
		}
	}
}

// TestPolarisation: behind a router that spreads flows over two next hops, another spreads what it gets
// evenly by a seed of its own, and not at all by the same.
func TestPolarisation(t *testing.T) {
	build := func(seed uint64) (*rig, *lane) {
		r := newRig(t)
		r.SetHash(packet.Hasher{Seed: seed})
		var hops []NextHop
		for i := range 2 {
			r.iface(uint16(i+1), true)
			hops = append(hops, NextHop{Via: netip.MustParseAddr("fe80::1"), Iface: uint16(i + 1)})
			r.setNeigh(uint16(i+1), hops[i].Via, pmd.MAC{2, 0, 0, 0, 0, byte(i)})
		}
		for _, p := range []string{"20.0.0.0/8", "2001:db8::/32"} {
			if err := r.update([]Route{{Prefix: netip.MustParsePrefix(p), NextHops: hops, Source: SourceAPI}}, nil); err != nil {
				t.Fatal(err)
			}
		}
		return r, newLane(t, r.tab, graph.VectorSize)
	}
	for _, d := range []string{"20.0.0.1", "2001:db8::1"} {
		dst := netip.MustParseAddr(d)
		r1, l1 := build(1)
		first := ways(l1, r1, dst, 100)
		for _, seed := range []uint64{1, 2, 3, 1 << 40} {
			r2, l2 := build(seed)
			count := make([]int, 2)
			for i, w := range ways(l2, r2, dst, 100) {
				if first[i] == 0 {
					count[w]++
				}
			}
			x := chi2(count)
			switch {
			case seed == 1 && count[1] != 0:
				t.Errorf("%v: by one seed the second router sends %v flows, want all one way: the test sees nothing", dst, count)
			case seed != 1 && x > 15.1: // 1 degree of freedom, 1 in 10,000
				t.Errorf("%v, seed %d: the second router sends %v flows, chi-square %.1f", dst, seed, count, x)
			}
		}
	}
}

// TestRouteMTU: routes by one neighbour with different MTUs have an adjacency each.
func TestRouteMTU(t *testing.T) {
	r := newRig(t)
	r.iface(1, true)
	a := netip.MustParseAddr("10.0.0.1")
	fresh := r.Stats()
	want := map[string]int{}
	var add []Route
	for i, mtu := range []int{0, 1400, 1300, 1400, 9000, 1 << 20, 60, 68} {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{20, byte(i), 0, 0}), 16)
		add = append(add, Route{Prefix: p, NextHops: []NextHop{{Via: a, Iface: 1, MTU: mtu}}, Source: SourceAPI})
		want[p.Addr().String()] = min(1500, max(mtu, 68))
		if mtu == 0 {
			want[p.Addr().String()] = 1500
		}
	}
	if err := r.update(add, nil); err != nil {
		t.Fatal(err)
	}
	r.setNeigh(1, a, pmd.MAC{2})
	via6 := netip.MustParseAddr("fe80::1")
	for d, mtu := range map[string]int{"2001:db8:1::": 1000, "2001:db8:4::": 60, "2001:db8:5::": 1, "2001:db8:2::": 1280, "2001:db8:3::": 1400} {
		p := netip.PrefixFrom(netip.MustParseAddr(d), 48)
		if err := r.update([]Route{{Prefix: p, NextHops: []NextHop{{Via: via6, Iface: 1, MTU: mtu}}, Source: SourceAPI}}, nil); err != nil {
			t.Fatal(err)
		}
		want[d] = max(mtu, 1280)
	}
	r.setNeigh(1, via6, pmd.MAC{2, 6})
	check := func() {
		t.Helper()
		for d, mtu := range want {
			x, ok := r.Explain(0, packet.FlowKey{Dst: netip.MustParseAddr(d)})
			if !ok || x.MTU != mtu || int(r.tab.Adjs[x.Adj].MTU) != mtu || x.Chosen != 0 {
				t.Errorf("%v: %+v, want MTU %d", d, x, mtu)
			}
		}
	}
	check()
	if n := r.Stats().Adjs - fresh.Adjs; n != 7 {
		t.Errorf("%d adjacencies for 0, 1300, 1400 and 9000 by one neighbour and 1280 and 1400 by another, want 6", n)
	}
	r.setNeigh(1, a, pmd.MAC{2, 1}) // all move
	check()
	r.tab.Ifaces[1].MTU = 1350
	if err := r.SetIface(1, IfaceOptions{}); err != nil {
		t.Fatal(err)
	}
	for d := range want {
		want[d] = min(want[d], 1350)
	}
	check()
	r.clearAll()
	r.empty(fresh)
}

// TestUnresolvedMembers: all members of a group are asked for, also while others work.
func TestUnresolvedMembers(t *testing.T) {
	r := newRig(t)
	r.iface(1, true)
	p := netip.MustParsePrefix("20.0.0.0/8")
	hops := []NextHop{member(1, 1), member(2, 1), member(3, 1)}
	r.update([]Route{{Prefix: p, NextHops: hops, Source: SourceAPI}}, nil)
	asked := func() (out []netip.Addr) {
		for _, n := range r.Unresolved() {
			out = append(out, n.Addr)
		}
		return out
	}
	want := []netip.Addr{hops[0].Via, hops[1].Via, hops[2].Via}
	for i := range hops {
		if got := asked(); !slices.Equal(got, want[i:]) {
			t.Errorf("%d resolved: asked for %v, want %v", i, got, want[i:])
		}
		x, _ := r.Explain(0, packet.FlowKey{Dst: p.Addr().Next()})
		if (x.Exit == xUnresolved) != (i == 0) || len(x.Adjs) != i {
			t.Errorf("%d resolved: %+v", i, x)
		}
		r.setNeigh(1, hops[i].Via, pmd.MAC{2, byte(i)})
	}
	if got := asked(); got != nil {
		t.Errorf("asked for %v, all are known", got)
	}
}

// TestExplain: it says what the stages do, by each hash, family and kind of flow.
func TestExplain(t *testing.T) {
	r := newRig(t)
	world(r)
	l := newLane(t, r.tab, graph.VectorSize)
	rs := runners(l.w, LookupNextHop4(r.FIB), LookupNextHop6(r.FIB))
	var addrs []netip.Addr
	for i := range graph.VectorSize {
		addrs = append(addrs, netip.MustParseAddr(destinations[i%len(destinations)].addr))
	}
	for _, h := range []packet.Hasher{{}, {Fields: packet.HashL3, Seed: 5}, {Symmetric: true, Seed: 6}, {Fields: packet.HashL3, Symmetric: true}, {Fields: packet.HashInner, Seed: 7}} {
		r.SetHash(h)
		l.fill(addrs, 77<<16)
		for _, s := range rs {
			s.Run(&l.v)
		}
		left := map[uint8]graph.Reason{}
		for x := range l.v.NX {
			left[l.v.XPos[x]] = l.v.XCode[x]
		}
		several := map[int]bool{}
		for i := range addrs {
			k, ok := packet.Key(packet.At(l.m[i]), 14)
			if !ok {
				t.Fatal("no key")
			}
			x, ok := r.Explain(0, k)
			if !ok || x.Group != l.v.NH[i] || x.Exit != left[uint8(i)] {
				t.Fatalf("%+v of %v: the stages give group %d, %v", x, k, l.v.NH[i], left[uint8(i)])
			}
			if x.Exit != 0 {
				continue
			}
			if x.Adj != l.v.Adj[i] || x.Iface != r.tab.Adjs[x.Adj].Iface || x.MTU != 1500 || x.Members[x.Chosen].Adj != x.Adj || x.Members[x.Chosen].Iface != x.Iface {
				t.Fatalf("%+v of %v: the stages give adjacency %d", x, k, l.v.Adj[i])
			}
			sum := 0
			for _, m := range x.Members {
				sum += m.Buckets
			}
			if sum != x.Buckets {
				t.Errorf("%v: members have %d of %d buckets", k.Dst, sum, x.Buckets)
			}
			if x.Buckets > 0 {
				several[x.Bucket] = true
			}
		}
		if len(several) < 2 {
			t.Errorf("%+v: the flows meet %d buckets", h, len(several))
		}
	}
	if _, ok := r.Explain(77, packet.FlowKey{Dst: addrs[0]}); ok {
		t.Error("a table that is not there is explained")
	}
}

// manyRoutes gives the rig n routes by two next hops on interfaces 1 and 2 (both), or by 1 alone with 3 as the way to fall back to.
func manyRoutes(t testing.TB, r *rig, n int, both bool) {
	t.Helper()
	via := netip.MustParseAddr("fe80::1")
	for i := range uint16(3) {
		r.iface(i+1, true)
		r.setNeigh(i+1, via, pmd.MAC{2, 0, 0, 0, 0, byte(i + 1)})
	}
	hops := []NextHop{{Via: via, Iface: 1}, {Via: via, Iface: 2}}
	if !both {
		hops = hops[:1]
	}
	var add []Route
	for i := range n {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(20 + i>>16), byte(i >> 8), byte(i), 0}), 24)
		add = append(add, Route{Prefix: p, NextHops: hops, Source: SourceKernel})
		if !both {
			add = append(add, Route{Prefix: p, NextHops: []NextHop{{Via: via, Iface: 3}}, Source: SourceKernel, Metric: 5})
		}
	}
	if err := r.Update(add, nil); err != nil {
		t.Fatal(err)
	}
}

// TestFailureUnderManyRoutes: groups are repaired when an interface goes down, and routes without any
// other next hop give way to others; up again, all is as before.
func TestFailureUnderManyRoutes(t *testing.T) {
	for _, both := range []bool{true, false} {
		r := newRig(t)
		manyRoutes(t, r, 5000, both)
		l := newLane(t, r.tab, graph.VectorSize)
		dst := netip.MustParseAddr("20.7.7.9")
		before := ways(l, r, dst, 1)
		for range 3 {
			r.iface(1, false)
			if w := ways(l, r, dst, 1); slices.Contains(w, 1) || slices.Contains(w, 0) {
				t.Fatalf("flows go by %v with 1 down", w)
			}
			r.iface(1, true)
			if !slices.Equal(before, ways(l, r, dst, 1)) {
				t.Fatal("flows did not come back")
			}
		}
		if err := r.DelIface(1); err != nil {
			t.Fatal(err)
		}
		if w := ways(l, r, dst, 1); slices.Contains(w, 1) || slices.Contains(w, 0) {
			t.Fatalf("flows go by %v without 1", w)
		}
	}
}

// TestListsOfEntriesStaySmall: sets that routes come to and leave remember few that have left.
func TestListsOfEntriesStaySmall(t *testing.T) {
	r := newRig(t)
	manyRoutes(t, r, 1000, true)
	p := netip.MustParsePrefix("20.0.7.0/24")
	for n := range 20_000 {
		hops := []NextHop{{Via: netip.MustParseAddr("fe80::1"), Iface: 1}, {Via: netip.MustParseAddr("fe80::1"), Iface: 2}}
		if err := r.Update([]Route{{Prefix: p, NextHops: hops[:1+n&1], Source: SourceKernel}}, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range r.sets {
		if len(s.entries) > 2*s.refs+32 {
			t.Errorf("a set of %d routes lists %d entries", s.refs, len(s.entries))
		}
	}
}

// BenchmarkFailure takes the interface of one of two next hops down under many routes and up again.
// µs-groups is what happens first, until all groups lead elsewhere; µs-all is the whole call.
func BenchmarkFailure(b *testing.B) {
	for _, both := range []bool{true, false} {
		b.Run(map[bool]string{true: "two-next-hops", false: "fallback"}[both], func(b *testing.B) {
			r := newRig(b)
			manyRoutes(b, r, 1_000_000, both)
			ways := r.hops[hopKey{1, netip.MustParseAddr("fe80::1")}].ways
			var groups, whole time.Duration
			for b.Loop() {
				r.mu.Lock()
				ways[0].hop.known = false
				t := time.Now()
				old, _ := r.renew(ways)
				groups += time.Since(t)
				ways[0].hop.known = true
				r.restore(old)
				r.mu.Unlock()
				t = time.Now()
				r.iface(1, false)
				whole += time.Since(t)
				r.iface(1, true)
			}
			b.ReportMetric(float64(groups.Nanoseconds())/1e3/float64(b.N), "µs-groups")
			b.ReportMetric(float64(whole.Nanoseconds())/1e3/float64(b.N), "µs-all")
		})
	}
}

// BenchmarkShare is the price of a group: dealing it, and the repair when a member fails and comes back.
func BenchmarkShare(b *testing.B) {
	for _, k := range []int{2, 16, 128, 512, 1024} {
		var hops []NextHop
		for i := range k {
			hops = append(hops, member(i, 1+i%3))
		}
		s := dealt(hops, nil)
		b.Run(fmt.Sprintf("deal/%d", k), func(b *testing.B) {
			for b.Loop() {
				dealt(hops, nil)
			}
			b.ReportMetric(float64(len(s.share.owner)), "buckets")
			b.ReportMetric(100*imbalance(s), "%-off")
		})
		b.Run(fmt.Sprintf("repair/%d", k), func(b *testing.B) {
			n := 0
			for b.Loop() {
				n++
				s.share.repair(func(i int) bool { return i != 1 || n&1 == 0 })
			}
		})
	}
}
