package router

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	v1 "millrace/control/api/v1"
	"millrace/control/kernel"
	"millrace/fib"
	"millrace/pipeline/graph"
)

// TestKernelRules: the kernel's rules hold for forwarded packets, as they change.
func TestKernelRules(t *testing.T) {
	l := newLab(t)
	ip(t, l.client, "address add 10.0.1.3/24 dev c0")
	ip(t, l.router, "route add 10.0.2.0/24 dev r1 table 100")
	r := start(t, l.router, twoPorts)
	pings(t, l.client, "10.0.2.2", true)
	ip(t, l.router, "rule add from 10.0.1.0/24 lookup 200 pref 31000", "rule add from 10.0.1.0/24 unreachable pref 32000")
	// Table 200 has no route, so that the next rule decides.
	ip(t, l.router, "rule add from 10.0.1.2 lookup 100 pref 30000")
	pings(t, l.client, "10.0.2.2", true)
	from := func(src string, want bool) {
		t.Helper()
		wait(t, fmt.Sprintf("ping from %s to be answered: %v", src, want), func() error {
			out, err := l.client.Command("ping", "-n", "-c", "1", "-W", "1", "-I", src, "10.0.2.2").CombinedOutput()
			if (err == nil) != want {
				return fmt.Errorf("%v\n%s", err, out)
			}
			return nil
		})
	}
	from("10.0.1.3", false)
	ip(t, l.router, "route add 10.0.2.0/24 dev r1 table 200")
	from("10.0.1.3", true)
	ip(t, l.router, "route replace throw 10.0.2.0/24 table 200")
	from("10.0.1.3", false)
	ip(t, l.router, "rule del pref 32000")
	from("10.0.1.3", true)
	// By interface; rules that name others never hold.
	ip(t, l.router, "rule add iif r1 prohibit", "rule add iif nowhere prohibit")
	from("10.0.1.3", false)
	ip(t, l.router, "rule del iif r1 prohibit")
	from("10.0.1.3", true)

	// What cannot be followed is told.
	ip(t, l.router, "rule add tun_id 7 lookup 100", "route add 10.0.2.0/24 tos 0x10 dev r1")
	wait(t, "complaints", func() error {
		s, err := r.GetStatus(context.Background(), &v1.GetStatusRequest{})
		if err != nil {
			return err
		}
		if all := strings.Join(s.Reasons, "\n"); !strings.Contains(all, "tun_id is not supported") || !strings.Contains(all, "1 route of the kernel") {
			return fmt.Errorf("%q", s.Reasons)
		}
		rep, err := r.Audit(context.Background(), &v1.AuditRequest{})
		if err != nil {
			return err
		}
		if s := fmt.Sprint(rep.Differences); !strings.Contains(s, "tun_id") || !strings.Contains(s, whyUnfit) {
			return fmt.Errorf("%s", s)
		}
		return nil
	})
	rules, err := r.ListRules(context.Background(), &v1.ListRulesRequest{Family: "ipv4"})
	if err != nil {
		t.Fatal(err)
	}
	var told, marked []string
	for _, x := range rules.Rules {
		told = append(told, fmt.Sprintf("%d:\t%s", x.Pref, x.Text))
		if x.Why != "" {
			marked = append(marked, x.Text+": "+x.Why)
		}
	}
	out, err := l.router.Command("ip", "rule").Output()
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for s := range strings.Lines(string(out)) {
		want = append(want, strings.TrimSpace(strings.ReplaceAll(s, " [detached]", "")))
	}
	if !slices.Equal(told, want) {
		t.Errorf("show rules:\n%s\nip rule:\n%s", strings.Join(told, "\n"), strings.Join(want, "\n"))
	}
	if len(marked) != 1 || !strings.Contains(marked[0], "tun_id") {
		t.Errorf("marked: %q", marked)
	}
	ip(t, l.router, "rule del tun_id 7 lookup 100", "route del 10.0.2.0/24 tos 0x10 dev r1")
	wait(t, "no complaints", func() error {
		s, err := r.GetStatus(context.Background(), &v1.GetStatusRequest{})
		if err == nil && len(s.Reasons) != 0 {
			err = fmt.Errorf("%q", s.Reasons)
		}
		return err
	})
}

// TestConfigRules: rules and tables of the configuration, and what apply changes.
func TestConfigRules(t *testing.T) {
	l := newLab(t)
	r := start(t, l.router, twoPorts+`
routes: [{to: 10.0.2.0/24, dev: r1, table: 100, mtu: 1300}]
rules: ["from 10.0.1.2 lookup 100", "to 10.0.1.0/24 lookup main", "iif r0 prohibit"]
`)
	pings(t, l.client, "10.0.2.2", true)
	pings(t, l.client, "2001:db8:2::2", false) // a rule without addresses is for both families
	out, err := l.client.Command("ping", "-n", "-M", "do", "-s", "1400", "-c", "2", "-W", "1", "10.0.2.2").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "mtu = 1300") && !strings.Contains(string(out), "mtu=1300") {
		t.Errorf("no word of the route's MTU: %v\n%s", err, out)
	}
	apply(t, r, twoPorts+`rules: ["-6 iif r0 prohibit"]`+"\n", 0)
	pings(t, l.client, "2001:db8:2::2", false)
	pings(t, l.client, "10.0.2.2", true)
	apply(t, r, twoPorts, 0)
	pings(t, l.client, "2001:db8:2::2", true)
}

// TestConfigVRF: a port in a VRF of the configuration, whose routes the kernel has.
func TestConfigVRF(t *testing.T) {
	l := newLab(t)
	const blue = "vrfs: [{name: blue, table: 10}]\nports: [{name: r0, vrf: blue}, {name: r1}]\n"
	r := start(t, l.router, blue)
	pings(t, l.client, "10.0.2.2", false)
	ip(t, l.router, "route add 10.0.2.0/24 dev r1 table 10")
	pings(t, l.client, "10.0.2.2", true)
	apply(t, r, blue+"routes: [{to: 2001:db8:2::/64, dev: r1, table: blue}]\n", 0)
	pings(t, l.client, "2001:db8:2::2", true)
	ip(t, l.router, "route del 10.0.2.0/24 dev r1 table 10")
	pings(t, l.client, "10.0.2.2", false)
	apply(t, r, twoPorts, 0)
	pings(t, l.client, "10.0.2.2", true)
	if len(r.hot) != 0 {
		t.Errorf("tables %v are held still", r.hot)
	}
}

// TestKernelVRF: ports join and leave VRFs of the kernel, told by hand since not every kernel has them.
func TestKernelVRF(t *testing.T) {
	l := newLab(t)
	r := start(t, l.router, twoPorts)
	s := sink{r}
	r.mu.Lock()
	r0 := r.named("r0")
	link := r.known[r0.index]
	r.mu.Unlock()
	vrf := kernel.Link{Index: 900, Name: "blue", Kind: "vrf", Type: unix.ARPHRD_ETHER, Up: true, Ready: true, Table: 10}
	s.LinkChanged(vrf)
	in := link
	in.Master, in.Table = 900, 10
	s.LinkChanged(in)
	route := kernel.Route{RouteKey: kernel.RouteKey{Dst: netip.MustParsePrefix("198.51.100.0/24"), Table: 10}, Path: &kernel.Path{Type: kernel.Blackhole}}
	s.RouteBatch([]kernel.Route{route}, nil)
	check := func(what string, want fib.RouteType, members int) {
		t.Helper()
		r.mu.Lock()
		defer r.mu.Unlock()
		res := r.fib.Lookup(netip.MustParseAddr("198.51.100.1"))
		if id := r.tableOf(r0); id != 0 {
			res, _ = r.fib.LookupIn(id, netip.MustParseAddr("198.51.100.1"))
		}
		if res.Route.Prefix.IsValid() != (want != fib.Unicast) || res.Route.Type != want {
			t.Errorf("%s: %+v", what, res)
		}
		if n := len(r.ifacesOf("blue")); n != members {
			t.Errorf("%s: %d interfaces by the name of the VRF", what, n)
		}
		if e := r.tables.Ifaces[r0.id].Table; (e != 0) != (members != 0) {
			t.Errorf("%s: table %d in the entry", what, e)
		}
	}
	check("in the VRF", fib.Blackhole, 1)
	s.LinkChanged(link)
	check("out of it", fib.Unicast, 0)
	s.RouteBatch(nil, []kernel.RouteKey{route.RouteKey})
	s.LinkRemoved(vrf)
}

// TestRPFilter: sources are checked as the kernel's rp_filter and the configuration say.
func TestRPFilter(t *testing.T) {
	l := newLab(t)
	for _, name := range []string{"all", "default", "r0", "r1"} {
		l.router.Run(t, "sh", "-c", "echo 0 > /proc/sys/net/ipv4/conf/"+name+"/rp_filter")
	}
	ip(t, l.client, "address add 203.0.113.7/32 dev c0") // to which no route leads
	ip(t, l.client, "address add 10.0.2.9/32 dev c0")    // to which a route leads elsewhere
	r := start(t, l.router, twoPorts)
	flags := func(want uint16) {
		t.Helper()
		wait(t, fmt.Sprintf("flags %#x", want), func() error {
			r.mu.Lock()
			defer r.mu.Unlock()
			if f := r.tables.Ifaces[r.named("r0").id].Flags & ifChecks; f != want {
				return fmt.Errorf("%#x", f)
			}
			return nil
		})
	}
	drops := func(stage string) (n uint64) {
		d, err := r.ListDrops(context.Background(), &v1.ListDropsRequest{})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range d.Drops {
			if x.Stage == stage {
				n += x.Count
			}
		}
		return n
	}
	send := func(src string) {
		_ = l.client.Command("ping", "-n", "-c", "2", "-i", "0.2", "-W", "1", "-I", src, "10.0.2.2").Run()
	}
	send("203.0.113.7")
	if n := drops("rpf"); n != 0 {
		t.Errorf("%d drops without a check", n)
	}
	l.router.Run(t, "sh", "-c", "echo 2 > /proc/sys/net/ipv4/conf/r0/rp_filter")
	flags(graph.IfLoose4)
	send("203.0.113.7")
	loose := drops("rpf")
	if loose == 0 {
		t.Error("a source without a route passes a loose check")
	}
	l.router.Run(t, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/conf/r0/rp_filter")
	flags(graph.IfStrict4)
	send("10.0.2.9")
	if n := drops("rpf"); n <= loose {
		t.Error("a source behind another port passes a strict check")
	}
	ping(t, l.client, "10.0.2.2", 1)
	apply(t, r, "ports: [{name: r0, rp_filter: loose}, {name: r1}]\n", 0)
	flags(graph.IfLoose4 | graph.IfLoose6)
	apply(t, r, "ports: [{name: r0, rp_filter: off}, {name: r1}]\n", 0)
	flags(0)
	ping(t, l.client, "2001:db8:2::2", 1)
}
