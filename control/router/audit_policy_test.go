package router

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	v1 "millrace/control/api/v1"
	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/pipeline/graph"
)

// TestAuditPolicy: rules, the table of a VRF, the check of sources and multicast routes that are damaged behind the control plane's
// back are found, and only that.
func TestAuditPolicy(t *testing.T) {
	l := newLab(t)
	r := start(t, l.router, `
vrfs: [{name: blue, table: 10}]
ports: [{name: r0, vrf: blue, rp_filter: strict}, {name: r1}]
rules: [from 192.0.2.77 lookup blue]
routes: [{to: 203.0.113.0/24, dev: r1, table: blue}]
multicast:
  routes: [{group: 239.1.1.1, from: r0, to: [r1 ttl 16]}, {group: "ff0e::1", from: r0, to: r1}]
`)
	ip(t, l.router, "route add 198.51.100.0/24 dev r1 table 10")
	ip(t, l.router, "rule add pref 500 from 192.0.2.78 lookup 10")
	waitMroute(t, r, netip.MustParseAddr("239.1.1.1"), "forwarding")
	k4 := fib.Key{Table: 10, Prefix: netip.MustParsePrefix("198.51.100.0/24"), Source: fib.SourceKernel}
	of := func(k fib.Key) (x fib.Route, ok bool) {
		for _, i := range r.fib.Routes() {
			if i.Key() == k {
				return i.Route, true
			}
		}
		return x, false
	}
	wait(t, "a clean audit", func() error {
		if f := faults(t, r); len(f) != 0 {
			return errOf(f)
		}
		if v4, _ := r.fib.Rules(); len(v4) < 4 {
			return errOf([]string{"the rule is not there"})
		}
		if _, ok := of(k4); !ok {
			return errOf([]string{"the route is not there"})
		}
		return nil
	})
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	v4, v6 := r.fib.Rules()
	fewer := slices.DeleteFunc(slices.Clone(v4), func(x fib.Rule) bool { return x.From == netip.MustParsePrefix("192.0.2.78/32") })
	if len(fewer) != len(v4)-1 {
		t.Fatalf("rules %v", v4)
	}
	lost, _ := of(k4)
	conf, ok := of(fib.Key{Table: 10, Prefix: netip.MustParsePrefix("203.0.113.0/24"), Source: fib.SourceConfig})
	if !ok {
		t.Fatal("no route of the configuration in the VRF's table")
	}
	bent := conf
	bent.NextHops, bent.Type = nil, fib.Prohibit
	r0 := &r.tables.Ifaces[r.named("r0").id]
	table, flags := r0.Table, r0.Flags
	group, group6 := mcast.Key{Group: netip.MustParseAddr("239.1.1.1")}, mcast.Key{Group: netip.MustParseAddr("ff0e::1")}
	find := func(k mcast.Key) mcast.Route {
		x, ok := r.mcast.Find(k)
		if !ok {
			t.Fatalf("no multicast route %v", k)
		}
		return x.Route
	}
	was4, was6 := find(group), find(group6)
	low := was4
	low.Out = []mcast.Out{{Iface: was4.Out[0].Iface}}
	extra := was4
	extra.Group = netip.MustParseAddr("239.9.9.9")
	out := was4.Out[0].Iface
	adj := r.tables.Multicast[out]
	rw := r.tables.Adjs[adj].RW0
	for _, c := range []struct {
		what   string
		damage func()
		want   string
		repair func()
	}{
		{"a lost rule", func() { must(r.fib.SetRules(fewer, v6)) }, "rules of the forwarding table", func() { must(r.fib.SetRules(v4, v6)) }},
		{"a lost route of the VRF", func() { must(r.fib.Update(nil, []fib.Key{k4})) }, "route 198.51.100.0/24 table 10", func() { must(r.fib.Update([]fib.Route{lost}, nil)) }},
		{"another way in the VRF", func() { must(r.fib.Update([]fib.Route{bent}, nil)) }, "route 203.0.113.0/24 table 10", func() { must(r.fib.Update([]fib.Route{conf}, nil)) }},
		{"an interface in another table", func() { r0.Table = 0 }, "link r0 policy", func() { r0.Table = table }},
		{"sources are not checked", func() { r0.Flags &^= graph.IfStrict4 }, "link r0 policy", func() { r0.Flags = flags }},
		{"a lost multicast route", func() { r.mcast.Del(group6) }, "mroute (*, ff0e::1)", func() { must(r.mcast.Set(was6)) }},
		{"another threshold", func() { must(r.mcast.Set(low)) }, "mroute (*, 239.1.1.1)", func() { must(r.mcast.Set(was4)) }},
		{"a multicast route too many", func() { must(r.mcast.Set(extra)) }, "mroute (*, 239.9.9.9)", func() { r.mcast.Del(extra.Key) }},
		{"a multicast adjacency that is wrong", func() { r.tables.Adjs[adj].RW0 ^= 1 }, "adjacency ", func() { r.tables.Adjs[adj].RW0 = rw }},
		{"no multicast adjacency", func() { r.tables.Multicast[out] = 0 }, "adjacency of multicast", func() { r.tables.Multicast[out] = adj }},
	} {
		c.damage()
		if f := faults(t, r); len(f) != 1 || !strings.HasPrefix(f[0], c.want) {
			t.Errorf("%s: the audit finds %q, want %q", c.what, f, c.want)
		}
		c.repair()
		if f := faults(t, r); len(f) != 0 {
			t.Errorf("%s repaired: the audit finds %q", c.what, f)
		}
	}
}

// TestAuditMroutes: the kernel's multicast routes are read anew and compared with what is known of them; those that are not Millrace's are noted.
func TestAuditMroutes(t *testing.T) {
	l := newLab(t)
	r := start(t, l.router, twoPorts+"multicast: {routes: [{group: 239.1.1.9, from: r0, to: r1}]}\n")
	m := l.router.Mrouter(t, "r0", "r1")
	src, group := netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("239.1.1.1")
	m.Add(src, group, "r0", 1, "r1")
	m.Add(src, netip.MustParseAddr("239.1.1.9"), "r0", 1, "r1")
	m.Add(netip.IPv4Unspecified(), netip.MustParseAddr("239.1.1.2"), "r0", 1, "r1")
	waitMroute(t, r, group, "forwarding")
	waitMroute(t, r, netip.MustParseAddr("239.1.1.2"), "kernel")
	if f := faults(t, r); len(f) != 0 {
		t.Errorf("the audit finds %q", f)
	}
	rep, err := r.Audit(context.Background(), &v1.AuditRequest{})
	if err != nil || !slices.ContainsFunc(rep.Differences, func(d *v1.Difference) bool {
		return d.Note && d.What == "mroute" && d.Name == "(*, 239.1.1.2)" && d.Want == "from r0 to r1" && d.Why != ""
	}) {
		t.Errorf("no note of what is left to the kernel: %v, %v", rep, err)
	}
	k := mcast.Key{Group: group, Source: src}
	r.mu.Lock()
	was := r.multicast.kernel[k]
	delete(r.multicast.kernel, k)
	r.multicast.changed = true
	r.mu.Unlock()
	if f := faults(t, r); len(f) != 1 || f[0] != "mroute (10.0.1.2, 239.1.1.1)" {
		t.Errorf("a route that was not followed: the audit finds %q", f)
	}
	r.mu.Lock()
	r.multicast.kernel[k] = was
	r.multicast.changed = true
	r.mu.Unlock()
	waitMroute(t, r, group, "forwarding")
	if f := faults(t, r); len(f) != 0 {
		t.Errorf("repaired: the audit finds %q", f)
	}
}
