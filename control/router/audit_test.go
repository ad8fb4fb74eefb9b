package router

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	v1 "millrace/control/api/v1"
	"millrace/fib"
)

// faults are the names of what an audit finds wrong.
func faults(t *testing.T, r *Router) []string {
	t.Helper()
	rep, err := r.Audit(context.Background(), &v1.AuditRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var l []string
	for _, d := range rep.Differences {
		if !d.Note {
			l = append(l, d.What+" "+d.Name)
		}
	}
	if len(l) != int(rep.Faults) {
		t.Errorf("%d faults and %q", rep.Faults, l)
	}
	return l
}

// TestAudit: everything that is damaged behind the control plane's back is found, and only that.
func TestAudit(t *testing.T) {
	l := newLab(t)
	r := start(t, l.router, twoPorts+"routes: [{to: 203.0.113.0/25, via: 10.0.2.9}, {to: 203.0.113.128/25, via: 192.0.2.77}]\n")
	ip(t, l.router, "route add 198.51.100.0/24 nexthop via 10.0.2.7 nexthop via 10.0.2.8")
	ip(t, l.router, "-6 route add 2001:db8:77::/48 via 2001:db8:2::7")
	for _, a := range []string{"10.0.2.7", "10.0.2.8", "10.0.2.9", "2001:db8:2::7"} {
		ip(t, l.router, "neigh replace "+a+" lladdr 02:00:00:00:00:77 dev r1")
	}
	ping(t, l.client, "10.0.2.2", 1)
	p := netip.MustParsePrefix
	key := func(to string) fib.Key { return fib.Key{Prefix: p(to), Source: fib.SourceKernel} }
	wait(t, "a clean audit", func() error {
		if f := faults(t, r); len(f) != 0 {
			return errOf(f)
		}
		if r.fib.Lookup(netip.MustParseAddr("198.51.100.1")).Exit != 0 {
			return errOf([]string{"the route is not there"})
		}
		return nil
	})
	rep, err := r.Audit(context.Background(), &v1.AuditRequest{})
	if err != nil || rep.KernelRoutes < 8 || rep.TableEntries < 10 || rep.Groups == 0 || rep.Neighbours < 4 || rep.CleanUnixNs == 0 {
		t.Errorf("%v, %v", rep, err)
	}
	if i := slices.IndexFunc(rep.Differences, func(d *v1.Difference) bool { return strings.Contains(d.Name, "203.0.113.128/25") && d.Note }); i < 0 {
		t.Errorf("nothing about the route whose gateway is in no network: %v", rep.Differences)
	}
	update := func(add []fib.Route, del ...fib.Key) {
		t.Helper()
		if err := r.fib.Update(add, del); err != nil {
			t.Fatal(err)
		}
	}
	get := func(to string) fib.Route { return r.fib.Lookup(netip.MustParseAddr(to)).Route }
	lost, other, conf := get("198.51.100.1"), get("2001:db8:77::1"), get("203.0.113.1")
	changed := other
	changed.NextHops, changed.Type = nil, fib.Blackhole
	extra := fib.Route{Prefix: p("192.0.2.0/24"), Type: fib.Blackhole, Source: fib.SourceKernel}
	g := r.fib.Lookup(netip.MustParseAddr("10.0.2.9")).Group
	word := r.tables.Groups[g]
	adj := r.fib.Lookup(netip.MustParseAddr("10.0.2.7")).Adjs[0]
	rw := r.tables.Adjs[adj].RW0
	for _, c := range []struct {
		what   string
		damage func()
		want   string
		repair func()
	}{
		{"a lost route", func() { update(nil, lost.Key()) }, "route 198.51.100.0/24", func() { update([]fib.Route{lost}) }},
		{"another way", func() { update([]fib.Route{changed}) }, "route 2001:db8:77::/48", func() { update([]fib.Route{other}) }},
		{"a route too many", func() { update([]fib.Route{extra}) }, "route 192.0.2.0/24", func() { update(nil, key("192.0.2.0/24")) }},
		{"a lost static route", func() { update(nil, conf.Key()) }, "route 203.0.113.0/25", func() { update([]fib.Route{conf}) }},
		{"a group that drops", func() { r.tables.Groups[g].Exit = fib.XBlackhole }, "group ", func() { r.tables.Groups[g] = word }},
		{"a wrong MAC address", func() { r.tables.Adjs[adj].RW0 ^= 1 }, "adjacency ", func() { r.tables.Adjs[adj].RW0 = rw }},
	} {
		c.damage()
		f := faults(t, r)
		if len(f) == 0 || slices.ContainsFunc(f, func(s string) bool { return !strings.HasPrefix(s, c.want) }) {
			t.Errorf("%s: the audit finds %q", c.what, f)
		}
		c.repair()
		if f := faults(t, r); len(f) != 0 {
			t.Errorf("%s repaired: the audit finds %q", c.what, f)
		}
	}
	// A neighbour with another address than the kernel's.
	id, via := conf.NextHops[0].Iface, netip.MustParseAddr("10.0.2.9")
	if err := r.fib.SetNeighbour(id, via, [6]byte{2, 0, 0, 0, 0, 0x66}); err != nil {
		t.Fatal(err)
	}
	first, err := r.Audit(context.Background(), &v1.AuditRequest{})
	if err != nil || first.Faults != 1 || first.Differences[0].What != "neighbour" || first.Differences[0].Have != "02:00:00:00:00:66" {
		t.Errorf("%v, %v", first, err)
	}
	if again, err := r.Audit(context.Background(), &v1.AuditRequest{}); err != nil || again.Differences[0].SinceUnixNs != first.Differences[0].SinceUnixNs {
		t.Errorf("the age of a difference is not kept: %v, %v", again, err)
	}
	if err := r.fib.SetNeighbour(id, via, [6]byte{2, 0, 0, 0, 0, 0x77}); err != nil {
		t.Fatal(err)
	}
}

// TestAuditBesideChanges: an audit that finds routes too many and changes of the table do not wait for each other.
func TestAuditBesideChanges(t *testing.T) {
	r := start(t, newLab(t).router, twoPorts)
	var surplus []fib.Route
	for i := range 2000 {
		surplus = append(surplus, fib.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32), Type: fib.Blackhole, Source: fib.SourceConnected})
	}
	if err := r.fib.Update(surplus, nil); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		x := fib.Route{Prefix: netip.MustParsePrefix("203.0.113.0/24"), Type: fib.Blackhole, Source: fib.SourceAPI}
		for !stop.Load() {
			r.mu.Lock()
			r.update([]fib.Route{x}, nil)
			r.update(nil, []fib.Key{x.Key()})
			r.mu.Unlock()
		}
	}()
	for range 20 {
		r.auditor.mu.Lock()
		s, err := r.auditor.pass()
		r.auditor.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
		if s.diffs[diffKey{"route", surplus[len(surplus)-1].Prefix.String(), "kernel"}] == nil {
			t.Fatalf("%d differences, and none of them the last route too many", len(s.diffs))
		}
	}
	stop.Store(true)
	<-done
	var keys []fib.Key
	for _, x := range surplus {
		keys = append(keys, x.Key())
	}
	if err := r.fib.Update(nil, keys); err != nil {
		t.Fatal(err)
	}
}

type errOf []string

func (e errOf) Error() string { return strings.Join(e, ", ") }
