package fib

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// inTable puts an interface into a routing table.
func (r *rig) inTable(i uint16, table uint32) {
	r.t.Helper()
	hot, err := r.Table(table)
	if err != nil {
		r.t.Fatal(err)
	}
	r.tab.Ifaces[i].Table = hot
	if err := r.SetIface(i, IfaceOptions{}); err != nil {
		r.t.Fatal(err)
	}
	r.FreeTable(table)
}

// ways sends one packet to each address from an interface and says what becomes of them.
func (r *rig) ways(l *lane, in uint16, dsts ...string) string {
	r.t.Helper()
	rs := runners(l.w, RPF4(r.FIB), RPF6(r.FIB), LookupNextHop4(r.FIB), LookupNextHop6(r.FIB))
	var ps []pkt
	for _, d := range dsts {
		p := pkt{in: in, dst: netip.MustParseAddr(d), src: netip.MustParseAddr("192.0.2.1"), proto: packet.ProtoUDP}
		if !p.dst.Is4() {
			p.src = netip.MustParseAddr("2001:db8:ffff::1")
		}
		ps = append(ps, p)
	}
	l.fillRuled(ps)
	return strings.Join(l.fates(r.t, r, rs), " ")
}

// TestVRFs: two customers with the same addresses, a leak from one into the main table, and neighbours of their own.
func TestVRFs(t *testing.T) {
	r := newRig(t)
	fresh := r.Stats()
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	for i := range uint16(5) {
		r.iface(i+1, true)
	}
	l := newLane(t, r.tab, graph.VectorSize)
	add := []Route{
		// 1 and 2 are red's, 3 and 4 blue's, 5 is main's.
		{Table: 10, Prefix: p("10.0.0.0/24"), NextHops: []NextHop{{Iface: 1}}, Source: SourceConnected},
		{Table: 10, Prefix: p("10.0.0.1/32"), Type: Local, Source: SourceConnected},
		{Table: 10, Prefix: p("0.0.0.0/0"), NextHops: []NextHop{{Via: a("10.0.0.9"), Iface: 1}}, Source: SourceKernel},
		{Table: 20, Prefix: p("10.0.0.0/24"), NextHops: []NextHop{{Iface: 3}}, Source: SourceConnected},
		{Table: 20, Prefix: p("2001:db8::/64"), NextHops: []NextHop{{Iface: 4}}, Source: SourceConnected},
		{Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("10.5.0.9"), Iface: 5}}, Source: SourceKernel},
		// Leaks: main reaches red's network, and blue reaches 20/8 by main's router.
		{Prefix: p("10.0.0.0/24"), NextHops: []NextHop{{Iface: 1}}, Source: SourceConfig},
		{Table: 20, Prefix: p("20.0.0.0/8"), NextHops: []NextHop{{Via: a("10.5.0.9"), Iface: 5}}, Source: SourceKernel},
	}
	if err := r.Update(add, nil); err != nil {
		t.Fatal(err)
	}
	for i, n := range []struct {
		iface uint16
		addr  string
	}{{1, "10.0.0.9"}, {3, "10.0.0.9"}, {5, "10.5.0.9"}, {4, "2001:db8::9"}, {1, "10.0.0.7"}} {
		if err := r.SetNeighbour(n.iface, a(n.addr), pmd.MAC{2, 0, 0, 0, 0, byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	check := func(in uint16, want string, dsts ...string) {
		t.Helper()
		if got := r.ways(l, in, dsts...); got != want {
			t.Errorf("from %d to %v: %s, want %s", in, dsts, got, want)
		}
	}
	all := []string{"10.0.0.9", "10.0.0.1", "10.0.0.255", "20.1.1.1", "30.1.1.1", "127.0.0.1", "2001:db8::9"}
	const inMain = "1/02:00:00:00:00:00 ask 1 for 10.0.0.1 ask 1 for 10.0.0.255 5/02:00:00:00:00:02 lookup/no-route lookup/martian-destination lookup/no-route"
	check(5, inMain, all...)
	check(1, inMain, all...) // not yet in a VRF
	if s := r.Stats(); s.Tables != 3 || s.Mapped != 2 {
		t.Errorf("tables nobody looks into are mapped: %+v", s)
	}
	for i, table := range []uint32{10, 10, 20, 20} {
		r.inTable(uint16(i+1), table)
	}
	const red = "1/02:00:00:00:00:00 lookup/local lookup/directed-broadcast 1/02:00:00:00:00:00 1/02:00:00:00:00:00 lookup/martian-destination lookup/no-route"
	check(1, red, all...)
	check(2, red, all...)
	check(3, "3/02:00:00:00:00:01 ask 3 for 10.0.0.1 lookup/directed-broadcast 5/02:00:00:00:00:02 lookup/no-route lookup/martian-destination 4/02:00:00:00:00:03", all...)
	check(5, inMain, all...)
	for table, want := range map[uint32]string{0: "5", 10: "1", 20: "5"} {
		x, ok := r.LookupIn(table, a("20.1.1.1"))
		if !ok || len(x.Adjs) != 1 || r.way(x.Adjs[0])[:1] != want || x.Route.Table != table {
			t.Errorf("table %d: %+v", table, x)
		}
	}
	if x, ok := r.LookupIn(99, a("20.1.1.1")); ok {
		t.Errorf("table 99 is there: %+v", x)
	}
	// A neighbour that comes and goes shows in all tables with its network.
	check(5, "1/02:00:00:00:00:04", "10.0.0.7")
	if err := r.DelNeighbour(1, a("10.0.0.7")); err != nil {
		t.Fatal(err)
	}
	check(5, "ask 1 for 10.0.0.7", "10.0.0.7")
	check(2, "ask 1 for 10.0.0.7", "10.0.0.7")
	var active int
	for _, x := range r.Routes() {
		if x.Active && x.Source != SourceMartian {
			active++
		}
	}
	if active != len(add)+2+3 { // two directed broadcasts for each, and an anycast address
		t.Errorf("%d routes are active", active)
	}
	for i := range uint16(4) {
		r.tab.Ifaces[i+1].Table = 0
		r.SetIface(i+1, IfaceOptions{})
	}
	check(1, "1/02:00:00:00:00:00 ask 1 for 10.0.0.1 ask 1 for 10.0.0.255 5/02:00:00:00:00:02 lookup/no-route lookup/martian-destination lookup/no-route", all...)
	if r.policy4.Load() != nil {
		t.Error("main alone has a policy")
	}
	var del []Key
	for i := range add {
		del = append(del, add[i].Key())
	}
	if err := r.Update(nil, del); err != nil {
		t.Fatal(err)
	}
	for i := range uint16(5) {
		r.DelIface(i + 1)
	}
	r.dom.Wait()
	s := r.Stats()
	s.Mapped -= 2 // bare stays
	if s != fresh {
		t.Errorf("left over: %+v, want %+v", s, fresh)
	}
}

// TestSuppress is what wg-quick sets up: all but the tunnel's own packets go by the tunnel, except where main has more
// than a default route.
func TestSuppress(t *testing.T) {
	r := newRig(t)
	p, via := netip.MustParsePrefix, netip.MustParseAddr("fe80::1")
	for i := range uint16(3) {
		r.iface(i+1, true)
		r.SetNeighbour(i+1, via, pmd.MAC{2, 0, 0, 0, 0, byte(i + 1)})
	}
	route := func(table uint32, pfx string, iface uint16) Route {
		return Route{Table: table, Prefix: p(pfx), NextHops: []NextHop{{Via: via, Iface: iface}}, Source: SourceKernel}
	}
	if err := r.Update([]Route{route(0, "0.0.0.0/0", 1), route(0, "10.0.0.0/8", 1), route(51820, "0.0.0.0/0", 2),
		{Table: TableLocal, Prefix: p("10.0.0.1/32"), Type: Local, Source: SourceKernel}}, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.SetRules([]Rule{{Table: TableLocal}, {Pref: 32764, MinBits: 1}, {Pref: 32765, Not: true, Mark: 0xca6c, Mask: ^uint32(0), Table: 51820}, {Pref: 32766}}, nil); err != nil {
		t.Fatal(err)
	}
	l := newLane(t, r.tab, graph.VectorSize)
	rs := runners(l.w, LookupNextHop4(r.FIB))
	a := netip.MustParseAddr
	l.fillRuled([]pkt{{in: 3, src: a("192.0.2.1"), dst: a("9.9.9.9")}, {in: 3, src: a("192.0.2.1"), dst: a("10.0.0.1")},
		{in: 3, src: a("192.0.2.1"), dst: a("10.0.0.2")}, {in: 3, src: a("192.0.2.1"), dst: a("9.9.9.9"), mark: 0xca6c}})
	want := []string{"2/02:00:00:00:00:02", "lookup/local", "1/02:00:00:00:00:01", "1/02:00:00:00:00:01"}
	if got := l.fates(t, r, rs); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for _, x := range r.Routes() {
		if x.Source == SourceKernel && !x.Active {
			t.Errorf("%+v is not active", x)
		}
	}
}

func TestRulesRefused(t *testing.T) {
	r := newRig(t)
	before := r.Stats()
	p := netip.MustParsePrefix
	local := Rule{Table: TableLocal}
	for what, rules := range map[string][]Rule{
		"main without local":  {{Pref: 32766}},
		"main before local":   {{Pref: 1, From: p("10.0.0.0/8")}, {Pref: 2, Table: TableLocal}},
		"local for some":      {{Table: TableLocal, To: p("10.0.0.0/8")}, {Pref: 1}},
		"goto over local":     {{Pref: 0, Action: Goto, Goto: 10}, {Pref: 1, Table: TableLocal}, {Pref: 10}},
		"goto backward":       {local, {Pref: 5, Action: Goto, Goto: 5}},
		"family":              {local, {Pref: 5, From: p("2001:db8::/32")}},
		"action":              {local, {Pref: 5, Action: numActions}},
		"ports":               {local, {Pref: 5, SPorts: Ports{5, 4}}},
		"port 0":              {local, {Pref: 5, DPorts: Ports{0, 4}}},
		"mark":                {local, {Pref: 5, Mark: 4, Mask: 3}},
		"tos":                 {local, {Pref: 5, TOS: 4}},
		"bits":                {local, {Pref: 5, MinBits: 33}},
		"bits without lookup": {local, {Pref: 5, MinBits: 3, Action: Nop}},
		"vrf without lookup":  {local, {Pref: 5, L3mdev: true, Action: RuleBlackhole}},
		"no such interface":   {local, {Pref: 5, In: []uint16{graph.MaxIfaces}}},
		"too many":            make([]Rule, maxRules),
	} {
		if err := r.SetRules(rules, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if v4, v6 := r.Rules(); v4 != nil || v6 != nil || r.Stats() != before {
		t.Errorf("rules that were refused left something: %+v %+v", v4, v6)
	}
	r.tab.Ifaces[1].Table = 7
	if err := r.SetIface(1, IfaceOptions{}); !errors.Is(err, ErrInvalid) {
		t.Errorf("a table without a number: %v", err)
	}
	if err := r.Update([]Route{{Prefix: p("10.0.0.0/8"), Type: Throw, NextHops: []NextHop{{Iface: 1}}, Source: SourceAPI}}, nil); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

// TestTablesFull: an update of a table that does not fit changes nothing, nor do rules and interfaces.
func TestTablesFull(t *testing.T) {
	r := newRig(t)
	r.iface(1, true)
	p := netip.MustParsePrefix
	r.numbers.Bound(2)
	route := func(table uint32) []Route {
		return []Route{{Prefix: p("30.0.0.0/8"), Type: Blackhole, Source: SourceAPI}, {Table: table, Prefix: p("20.0.0.0/8"), Type: Prohibit, Source: SourceAPI}}
	}
	if err := errors.Join(r.Update(route(1), nil), r.Update(route(2), nil)); err != nil {
		t.Fatal(err)
	}
	if err := r.Update(nil, []Key{route(1)[0].Key()}); err != nil {
		t.Fatal(err)
	}
	r.dom.Wait()
	before := r.Stats()
	if err := r.Update(route(3), nil); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if err := r.SetRules([]Rule{{Table: TableLocal}, {Pref: 5, Table: 1}, {Pref: 6, Table: 3}}, nil); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if _, err := r.Table(3); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	if s := r.Stats(); s != before || r.policy4.Load() != nil {
		t.Errorf("%+v, before %+v", s, before)
	}
	// No group is left for the table that an interface leads to.
	hot, _ := r.Table(1)
	r.groups.Bound(0)
	if err := r.Update([]Route{{Table: 1, Prefix: p("40.0.0.0/8"), Type: Unreachable, Source: SourceAPI}}, nil); err != nil {
		t.Fatal(err)
	}
	before = r.Stats()
	r.tab.Ifaces[1].Table = hot
	if err := r.SetIface(1, IfaceOptions{}); !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	r.dom.Wait()
	if s := r.Stats(); s.Mapped != before.Mapped && s.Mapped != before.Mapped+2 || s.Installed != before.Installed {
		t.Errorf("%+v, before %+v", s, before)
	}
	if r.policy4.Load() != nil {
		t.Error("the interface is in the table that did not fit")
	}
}

// TestManyVRFs: tables with few routes take little memory, and each answers for itself.
func TestManyVRFs(t *testing.T) {
	const vrfs, routes = 100, 10
	r := newRig(t)
	via := netip.MustParseAddr("fe80::1")
	for i := range uint16(2) {
		r.iface(i+1, true)
		r.setNeigh(i+1, via, pmd.MAC{2, 0, 0, 0, 0, byte(i + 1)})
	}
	before := resident(t)
	rules := []Rule{{Table: TableLocal}}
	var add []Route
	for id := uint32(1); id <= vrfs; id++ {
		for i := range byte(routes) {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, i, byte(id), 0}), 16+2*int(i)%9)
			if i == 9 {
				p = netip.PrefixFrom(netip.AddrFrom4([4]byte{20, 0, 0, byte(id)}), 32)
			}
			add = append(add, Route{Table: id, Prefix: p.Masked(), NextHops: []NextHop{{Via: via, Iface: uint16(id&1) + 1}}, Source: SourceKernel})
		}
		rules = append(rules, Rule{Pref: id, Mark: id, Mask: ^uint32(0), Table: id})
	}
	if err := r.Update(add, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.SetRules(append(rules, Rule{Pref: 1000}), nil); err != nil {
		t.Fatal(err)
	}
	grown, counted := resident(t)-before, 0
	for id := uint32(1); id <= vrfs; id++ {
		hot, shadow := r.tables[id].v4.Bytes()
		counted += hot + shadow
		for i := range uint32(vrfs) {
			want := i+1 == id
			if got := r.tables[id].lookup(netip.AddrFrom4([4]byte{20, 0, 0, byte(i + 1)})) != 0; got != want {
				t.Errorf("table %d has an address of table %d: %v", id, i+1, got)
			}
		}
	}
	t.Logf("%d KiB in the tables of a VRF, %d KiB resident", counted/vrfs>>10, grown/vrfs>>10)
	if most := vrfs << 19; counted > most || grown > most {
		t.Errorf("%d VRFs of %d routes take %d MiB, of which %d MiB are in tables", vrfs, routes, grown>>20, counted>>20)
	}
}

// resident is how much memory the process has, in bytes.
func resident(t *testing.T) int {
	t.Helper()
	runtime.GC()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(b))[1])
	if err != nil {
		t.Fatal(err)
	}
	return n * os.Getpagesize()
}
