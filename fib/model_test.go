package fib

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"millrace/internal/epoch"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

var xUnresolved = graph.NewReason(graph.ReasonInfo{Stage: "fibtest", Name: "unresolved", Kind: graph.Hold, To: "neighbour"})

// rig is a FIB with its tables and the obvious model of both.
type rig struct {
	t testing.TB
	*FIB
	tab    *graph.Tables
	dom    *epoch.Domain
	routes map[Key]Route
	neigh  map[hopKey]pmd.MAC
	up     map[uint16]bool
}

func newRig(t testing.TB) *rig {
	t.Helper()
	tab, err := graph.NewTables()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, tab: tab, dom: epoch.NewDomain(), routes: map[Key]Route{}, neigh: map[hopKey]pmd.MAC{}, up: map[uint16]bool{}}
	if r.FIB, err = New(tab, r.dom, Reasons{Unresolved: xUnresolved}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		tab.Close()
	})
	return r
}

// empty fails where the tables hold more than those of a new FIB.
func (r *rig) empty(fresh Stats) {
	r.t.Helper()
	r.dom.Wait()
	if s := r.Stats(); s != fresh {
		r.t.Errorf("after removing everything:\n%+v, a new FIB has\n%+v", s, fresh)
	}
	for p, e := range r.main.rib.All() {
		if e.cands == nil || e.dirty || e.saved || e.want != nil {
			r.t.Errorf("entry %v left over: %+v", p, *e)
		}
	}
	for i, s := range r.sets {
		if s.refs == 0 || s.users == 0 || s.typ == Unicast {
			r.t.Errorf("set %q has %d references", i, s.refs)
		}
	}
}

func (r *rig) iface(i uint16, up bool) error {
	r.tab.Ifaces[i] = graph.Iface{MAC: uint64(i)<<56 | 0x02<<16, Port: i, MTU: 1500, Flags: graph.IfUp}
	if !up {
		r.tab.Ifaces[i].Flags = 0
	}
	err := r.SetIface(i, IfaceOptions{})
	if err == nil {
		r.up[i] = up
	}
	return err
}

func (r *rig) update(add []Route, del []Key) error {
	err := r.Update(add, del)
	if err == nil {
		for _, k := range del {
			delete(r.routes, k)
		}
		for _, a := range add {
			r.routes[a.Key()] = a
		}
	}
	return err
}

func (r *rig) setNeigh(i uint16, a netip.Addr, m pmd.MAC) error {
	err := r.SetNeighbour(i, a, m)
	if err == nil {
		r.neigh[hopKey{i, a}] = m
	}
	return err
}

func (r *rig) delNeigh(i uint16, a netip.Addr) error {
	err := r.DelNeighbour(i, a)
	if err == nil {
		delete(r.neigh, hopKey{i, a})
	}
	return err
}

// oracle says what should become of packets to an address, in words: by going through
// all routes.
type oracle struct {
	r    *rig
	all  []rule
	bits [2]int
}

type rule struct {
	pfx    netip.Prefix
	rank   [3]int
	typ    RouteType
	hops   []NextHop
	reason graph.Reason
}

func (r *rig) oracle() *oracle {
	o := &oracle{r: r}
	reasons := map[RouteType]graph.Reason{Martian: XMartian, LinkLocal: XLinkLocal, Multicast: XMulticast, LimitedBroadcast: XBroadcast,
		Local: XLocal, Blackhole: XBlackhole, Unreachable: XUnreachable, Prohibit: XProhibit, Broadcast: XDirectedBroadcast}
	add := func(p netip.Prefix, rank [3]int, typ RouteType, hops []NextHop) {
		if rank[0] > 0 {
			var inside RouteType
			special := -1
			for _, m := range martians {
				if mp := netip.MustParsePrefix(m.prefix); mp.Bits() <= p.Bits() && mp.Contains(p.Addr()) && mp.Bits() > special {
					special, inside = mp.Bits(), m.typ
				}
			}
			if special >= 0 && !(inside == LinkLocal && typ == Local || inside == Multicast && typ == Multicast) {
				return
			}
		}
		o.all = append(o.all, rule{p, rank, typ, hops, reasons[typ]})
	}
	for _, m := range martians {
		add(netip.MustParsePrefix(m.prefix), [3]int{}, m.typ, nil)
	}
	for k, rt := range r.routes {
		hops := slices.Clone(rt.NextHops)
		slices.SortFunc(hops, func(a, b NextHop) int { return cmp.Or(cmp.Compare(a.Iface, b.Iface), a.Via.Compare(b.Via)) })
		alive, onlink := rt.Type != Unicast, false
		for _, h := range hops {
			alive = alive || r.up[h.Iface]
			onlink = onlink || !h.Via.IsValid()
		}
		if !alive {
			continue
		}
		add(k.Prefix, [3]int{int(k.Source), int(k.Metric), 0}, rt.Type, hops)
		if n := k.Prefix.Bits(); k.Source == SourceConnected && rt.Type == Unicast && onlink && n < k.Prefix.Addr().BitLen()-1 {
			a := k.Prefix.Addr()
			rank := [3]int{int(SourceDerived), int(k.Metric), n}
			if a.Is4() {
				add(netip.PrefixFrom(a, 32), rank, Broadcast, nil)
				add(netip.PrefixFrom(last(k.Prefix), 32), rank, Broadcast, nil)
			} else {
				add(netip.PrefixFrom(a, 128), rank, Local, nil)
			}
		}
	}
	return o
}

func last(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

func (o *oracle) fate(a netip.Addr) string {
	var best *rule
	for i := range o.all {
		x := &o.all[i]
		if !x.pfx.Contains(a) {
			continue
		}
		if best == nil || x.pfx.Bits() > best.pfx.Bits() || x.pfx.Bits() == best.pfx.Bits() && slices.Compare(x.rank[:], best.rank[:]) < 0 {
			best = x
		}
	}
	switch {
	case best == nil:
		return XNoRoute.String()
	case best.typ != Unicast:
		return best.reason.String()
	}
	for _, h := range best.hops {
		if m, ok := o.r.neigh[hopKey{h.Iface, a}]; !h.Via.IsValid() && ok && o.r.up[h.Iface] {
			return fmt.Sprintf("%d/%v", h.Iface, m)
		}
	}
	var ways []string
	ask := ""
	for _, h := range best.hops {
		if !o.r.up[h.Iface] {
			continue
		}
		if m, ok := o.r.neigh[hopKey{h.Iface, h.Via}]; ok {
			ways = append(ways, fmt.Sprintf("%d/%v", h.Iface, m))
		}
		if h.Via.IsValid() && ask == "" {
			ask = fmt.Sprintf("ask %d for %v", h.Iface, h.Via)
		}
	}
	for _, h := range best.hops {
		if ask == "" && o.r.up[h.Iface] {
			ask = fmt.Sprintf("ask %d for %v", h.Iface, a)
		}
	}
	if len(ways) == 0 {
		return ask
	}
	slices.Sort(ways)
	return fmt.Sprint(slices.Compact(ways))
}

// fate is what the hot tables do.
func (r *rig) fate(a netip.Addr) string {
	var g uint16
	if a.Is4() {
		g = r.t4.Lookup(addr4(a))
	} else {
		g = r.t6.Lookup(a.As16())
	}
	gr := &r.tab.Groups[g]
	switch {
	case gr.Exit == xUnresolved:
		i, nh, ok := r.Target(g, a)
		if !ok {
			return "unresolved without a target"
		}
		return fmt.Sprintf("ask %d for %v", i, nh)
	case gr.Exit != 0:
		return gr.Exit.String()
	case gr.Mask == 0:
		return r.way(gr.Adj)
	}
	var ways []string
	for _, b := range r.tab.Buckets[gr.At:][:int(gr.Mask)+1] {
		if w := r.way(b); !slices.Contains(ways, w) {
			ways = append(ways, w)
		}
	}
	slices.Sort(ways)
	return fmt.Sprint(ways)
}

func (r *rig) way(adj uint16) string {
	a := &r.tab.Adjs[adj]
	if adj == 0 || a.Iface == 0 {
		return fmt.Sprintf("bad adjacency %d", adj)
	}
	var m [8]byte
	binary.LittleEndian.PutUint64(m[:], a.RW0)
	return fmt.Sprintf("%d/%v", a.Iface, pmd.MAC(m[:6]))
}

// same fails where tables and oracle differ at an address.
func (r *rig) same(addrs []netip.Addr) {
	r.t.Helper()
	o := r.oracle()
	for _, a := range addrs {
		want, got := o.fate(a), r.fate(a)
		if len(got) > 0 && got[0] == '[' && want[0] != '[' { // one way left of several
			want = "[" + want + "]"
		}
		if got != want && "["+got+"]" != want {
			r.t.Fatalf("%v: %s, want %s\nLookup: %+v", a, got, want, r.Lookup(a))
		}
	}
}

// edges are the addresses around a prefix.
func edges(p netip.Prefix) []netip.Addr {
	out := []netip.Addr{p.Addr(), last(p)}
	for _, a := range []netip.Addr{p.Addr().Prev(), p.Addr().Next(), last(p).Prev(), last(p).Next()} {
		if a.IsValid() {
			out = append(out, a)
		}
	}
	return out
}

// actor makes random changes in a small world, so that prefixes often nest and meet.
type actor struct {
	*rig
	rnd  *rand.Rand
	full int // changes that did not fit, of a rig with small tables; -1 where all must fit
}

func (x *actor) must(err error) {
	x.t.Helper()
	if x.full >= 0 && errors.Is(err, ErrFull) {
		x.full++
	} else if err != nil {
		x.t.Fatal(err)
	}
}

func (x *actor) addr() netip.Addr {
	n := x.rnd.Uint64()
	switch x.rnd.IntN(12) {
	case 0, 1, 2, 3:
		return netip.AddrFrom4([4]byte{10, byte(n & 1), byte(n >> 8 & 3), byte(n >> 16)})
	case 4:
		return netip.AddrFrom4([4]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
	case 5:
		return netip.AddrFrom4([4]byte{169, 254, byte(n & 1), byte(n >> 8 & 7)})
	case 6:
		return netip.MustParseAddr("fe80::").Next()
	case 7, 8, 9:
		a := netip.MustParseAddr("2001:db8::").As16()
		a[5], a[7], a[8], a[15] = byte(n&1), byte(n>>8&3), byte(n>>16&1), byte(n>>24)
		return netip.AddrFrom16(a)
	case 10:
		a := netip.MustParseAddr("2001:db8::").As16()
		binary.BigEndian.PutUint64(a[8:], n)
		return netip.AddrFrom16(a)
	}
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], n)
	return netip.AddrFrom16(a)
}

func (x *actor) prefix() netip.Prefix {
	a := x.addr()
	bits := []int{8, 16, 20, 22, 23, 24, 25, 26, 28, 29, 30, 31, 32, 32}
	if !a.Is4() {
		bits = []int{3, 15, 16, 17, 24, 32, 40, 47, 48, 56, 63, 64, 65, 72, 96, 112, 120, 126, 127, 128, 128}
	}
	n := bits[x.rnd.IntN(len(bits))]
	switch x.rnd.IntN(100) {
	case 0:
		n = 0
	case 1, 2, 3:
		n = x.rnd.IntN(a.BitLen())
	}
	p, _ := a.Prefix(n)
	return p
}

func (x *actor) route() Route {
	r := Route{Prefix: x.prefix(), Source: Source(1 + x.rnd.IntN(4)), Metric: uint32(x.rnd.IntN(2))}
	if x.rnd.IntN(4) == 0 {
		r.Type = []RouteType{Local, Local, Blackhole, Unreachable, Prohibit, Broadcast, Multicast}[x.rnd.IntN(7)]
		return r
	}
	n := 1
	if x.rnd.IntN(4) == 0 {
		n = 1 + x.rnd.IntN(5)
	}
	for range n {
		h := NextHop{Iface: uint16(1 + x.rnd.IntN(4)), Weight: x.rnd.IntN(4)}
		if x.rnd.IntN(3) > 0 {
			h.Via = x.hop(r.Prefix.Addr().Is4())
		}
		r.NextHops = append(r.NextHops, h)
	}
	return r
}

func (x *actor) hop(v4 bool) netip.Addr {
	if v4 && x.rnd.IntN(3) > 0 {
		return netip.AddrFrom4([4]byte{10, 0, 0, byte(1 + x.rnd.IntN(6))})
	}
	a := netip.MustParseAddr([]string{"fe80::", "2001:db8::"}[x.rnd.IntN(2)]).As16()
	a[15] = byte(1 + x.rnd.IntN(6))
	return netip.AddrFrom16(a)
}

// step makes one random change, or a batch, and returns addresses that it may concern.
func (x *actor) step() []netip.Addr {
	var look []netip.Addr
	switch n := x.rnd.IntN(20); {
	case n < 12:
		var add []Route
		var del []Key
		for range 1 + x.rnd.IntN(4) {
			if x.rnd.IntN(5) < 2 && len(x.routes) > 0 {
				skip := x.rnd.IntN(len(x.routes))
				keys := slices.SortedFunc(mapKeys(x.routes), compareKeys)
				del = append(del, keys[skip])
				look = append(look, edges(keys[skip].Prefix)...)
			} else {
				r := x.route()
				add = append(add, r)
				look = append(look, edges(r.Prefix)...)
			}
		}
		x.must(x.update(add, del))
	case n < 16:
		a := x.addr()
		if x.rnd.IntN(2) == 0 {
			a = x.hop(true)
		}
		if a.IsUnspecified() || a.IsMulticast() {
			break
		}
		x.must(x.setNeigh(uint16(1+x.rnd.IntN(4)), a, pmd.MAC{2, 0, 0, 0, 0, byte(x.rnd.IntN(4))}))
		look = append(look, a)
	case n < 18:
		if len(x.neigh) > 0 {
			keys := slices.SortedFunc(mapKeys(x.neigh), func(a, b hopKey) int {
				return cmp.Or(cmp.Compare(a.iface, b.iface), a.addr.Compare(b.addr))
			})
			k := keys[x.rnd.IntN(len(keys))]
			x.must(x.delNeigh(k.iface, k.addr))
			look = append(look, k.addr)
		}
	default:
		i := uint16(1 + x.rnd.IntN(4))
		x.must(x.iface(i, !x.up[i]))
	}
	return look
}

func mapKeys[K comparable, V any](m map[K]V) func(func(K) bool) {
	return func(yield func(K) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

func compareKeys(a, b Key) int {
	return cmp.Or(a.Prefix.Addr().Compare(b.Prefix.Addr()), cmp.Compare(a.Prefix.Bits(), b.Prefix.Bits()),
		cmp.Compare(a.Source, b.Source), cmp.Compare(a.Metric, b.Metric))
}

// clearAll removes everything that the rig added.
func (r *rig) clearAll() {
	r.t.Helper()
	var del []Key
	for k := range r.routes {
		del = append(del, k)
	}
	if err := r.update(nil, del); err != nil {
		r.t.Fatal(err)
	}
	for k := range r.neigh {
		if err := r.delNeigh(k.iface, k.addr); err != nil {
			r.t.Fatal(err)
		}
	}
	for i := range r.up {
		if err := r.DelIface(i); err != nil {
			r.t.Fatal(err)
		}
	}
	clear(r.up)
}

func TestRandomChanges(t *testing.T) {
	r := newRig(t)
	fresh := r.Stats()
	steps := 1000
	if testing.Short() {
		steps = 200
	}
	x := &actor{r, rand.New(rand.NewPCG(1, 2)), -1}
	for i := range uint16(3) {
		r.iface(i+1, true)
	}
	for n := range steps {
		look := x.step()
		for range 10 {
			look = append(look, x.addr())
		}
		if n%50 == 0 {
			for k := range r.routes {
				look = append(look, edges(k.Prefix)...)
			}
		}
		r.same(look)
		if n == steps/2 {
			r.clearAll()
			r.empty(fresh)
			r.iface(1, true)
		}
	}
	if s := r.Stats(); !testing.Short() && (s.Blocks4 < 3 || s.Prefixes6 < 10 || s.Buckets == 0 || s.Adjs == 0) {
		t.Errorf("the random changes did not reach all of the tables: %+v", s)
	}
	r.clearAll()
	r.same([]netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("255.255.255.255")})
	r.empty(fresh)
}

// shrink leaves little room in all tables.
func (r *rig) shrink() {
	r.groups.Bound(24)
	r.adjs.Bound(10)
	r.t4.Blocks().Bound(5)
	r.t6.Prefixes().Bound(12)
	r.runs.size = r.runs.next + 256
}

// TestRandomChangesInSmallTables: what does not fit leaves everything as the model has it.
func TestRandomChangesInSmallTables(t *testing.T) {
	r := newRig(t)
	fresh := r.Stats()
	r.shrink()
	x := &actor{r, rand.New(rand.NewPCG(9, 9)), 0}
	for range 1000 {
		look := x.step()
		for range 10 {
			look = append(look, x.addr())
		}
		r.same(look)
		if len(r.routes) > 60 {
			r.clearAll()
			r.empty(fresh)
		}
	}
	if x.full < 50 {
		t.Errorf("only %d changes did not fit", x.full)
	}
	r.clearAll()
	r.empty(fresh)
}

func FuzzChanges(f *testing.F) {
	f.Add(uint64(1), uint64(1), uint8(60))
	f.Add(uint64(7), uint64(3), uint8(255))
	f.Fuzz(func(t *testing.T, a, b uint64, steps uint8) {
		r := newRig(t)
		fresh := r.Stats()
		x := &actor{r, rand.New(rand.NewPCG(a, b)), -1}
		if a&1 != 0 {
			x.full = 0
			r.shrink()
		}
		for range steps {
			r.same(append(x.step(), x.addr(), x.addr(), x.addr()))
		}
		r.clearAll()
		r.empty(fresh)
	})
}
