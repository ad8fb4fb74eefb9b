package kernel

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/control/rule"
	"millrace/internal/testnet"
)

// view is a Sink that keeps what it was told.
type view struct {
	mu      sync.Mutex
	links   map[string]Link
	addrs   map[Addr]bool
	neighs  map[netip.Addr]Neigh
	routes  map[RouteKey]Route
	rules   []rule.Rule
	synced  int
	batches int
	wrong   []string // calls that contradict earlier ones
}

func newView() *view {
	return &view{links: map[string]Link{}, addrs: map[Addr]bool{}, neighs: map[netip.Addr]Neigh{}, routes: map[RouteKey]Route{}}
}

func (v *view) do(f func()) { v.mu.Lock(); defer v.mu.Unlock(); f() }

func (v *view) LinkChanged(l Link) {
	v.do(func() {
		maps.DeleteFunc(v.links, func(_ string, o Link) bool { return o.Index == l.Index })
		v.links[l.Name] = l
	})
}

func (v *view) LinkRemoved(l Link) {
	v.do(func() {
		delete(v.links, l.Name)
		for a := range v.addrs {
			if a.Index == l.Index {
				v.wrong = append(v.wrong, fmt.Sprintf("%s gone before its address %v", l.Name, a.Prefix))
			}
		}
	})
}

func (v *view) AddrAdded(a Addr)   { v.do(func() { v.addrs[a] = true }) }
func (v *view) AddrRemoved(a Addr) { v.do(func() { delete(v.addrs, a) }) }
func (v *view) NeighChanged(n Neigh) {
	v.do(func() { v.neighs[n.Addr] = n })
}
func (v *view) NeighRemoved(n Neigh)       { v.do(func() { delete(v.neighs, n.Addr) }) }
func (v *view) RulesChanged(r []rule.Rule) { v.do(func() { v.rules = slices.Clone(r) }) }
func (v *view) Synced()                    { v.do(func() { v.synced++ }) }

func (v *view) RouteBatch(set []Route, del []RouteKey) {
	v.do(func() {
		v.batches++
		for _, k := range del {
			if _, ok := v.routes[k]; !ok {
				v.wrong = append(v.wrong, fmt.Sprintf("delete of unknown %v", k))
			}
			delete(v.routes, k)
		}
		for _, r := range set {
			v.routes[r.RouteKey] = r
		}
	})
}

// wait waits until f holds.
func (v *view) wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	end := time.Now().Add(10 * time.Second)
	for {
		ok := false
		v.do(func() { ok = f() })
		if ok {
			return
		}
		if time.Now().After(end) {
			v.do(func() {
				for _, r := range v.routes {
					if len(v.routes) < 50 && r.Table == TableMain {
						t.Logf("%+v", r)
					}
				}
				t.Fatalf("%s did not come; synced %d, %d routes, links %v addrs %v neighbours %v", what, v.synced, len(v.routes), v.links, v.addrs, v.neighs)
			})
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (v *view) route(dst string, metric uint32) (Route, bool) {
	r, ok := v.routes[RouteKey{Dst: netip.MustParsePrefix(dst), Table: TableMain, Metric: metric}]
	return r, ok
}

func follow(t *testing.T, ns *testnet.NS, o Options) (*view, *Follower) {
	t.Helper()
	v := newView()
	var f *Follower
	var err error
	ns.Do(func() { f, err = New(v, o) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		for _, w := range v.wrong {
			t.Error(w)
		}
	})
	v.wait(t, "first dump", func() bool { return v.synced > 0 })
	return v, f
}

// ip runs an ip command given as one string.
func ip(t *testing.T, ns *testnet.NS, cmd string) {
	t.Helper()
	ns.Run(t, "ip", strings.Fields(cmd)...)
}

func pair(t *testing.T) (r, peer *testnet.NS) {
	r, peer = testnet.New(t), testnet.New(t)
	testnet.Veth(t, r, "a0", peer, "b0")
	testnet.Veth(t, r, "a1", peer, "b1")
	return r, peer
}

func TestLinks(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	v, _ := follow(t, ns, Options{})
	v.wait(t, "a0", func() bool { l := v.links["a0"]; return l.Up && l.Ready && l.Kind == "veth" && l.MTU == 1500 })
	var first int
	v.do(func() { first = v.links["a0"].Index })
	ip(t, ns, "link set a0 mtu 1400 address 02:00:00:00:00:07")
	v.wait(t, "MTU and MAC", func() bool {
		l := v.links["a0"]
		return l.MTU == 1400 && l.MAC == [6]byte{2, 0, 0, 0, 0, 7}
	})
	ip(t, ns, "link set a0 down")
	v.wait(t, "down", func() bool { return !v.links["a0"].Up })
	ip(t, ns, "link set a0 name lan")
	v.wait(t, "rename", func() bool { _, old := v.links["a0"]; return !old && v.links["lan"].Index == first })
	ip(t, ns, "link set lan up")
	ip(t, ns, "address add 192.0.2.1/24 dev lan")
	v.wait(t, "address", func() bool { return len(v.routes) > 0 && v.links["lan"].Up })
	ip(t, ns, "link del lan")
	v.wait(t, "removal", func() bool {
		_, a := v.links["lan"]
		_, c := v.route("192.0.2.0/24", 0)
		return !a && !c
	})
	ip(t, ns, "link add lan type veth peer name far")
	v.wait(t, "its return", func() bool { return v.links["lan"].Kind == "veth" && v.links["lan"].Index != first })
}

func TestVLANs(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	if out, err := ns.Command("ip", strings.Fields("link add link a0 name a0.7 type vlan id 7")...).CombinedOutput(); err != nil {
		t.Skipf("no VLANs in this kernel: %s", out)
	}
	v, _ := follow(t, ns, Options{})
	ip(t, ns, "link add link a0 name svc type vlan proto 802.1ad id 100")
	ip(t, ns, "link add link svc name cus type vlan id 12")
	v.wait(t, "VLANs", func() bool {
		a, s, c := v.links["a0.7"], v.links["svc"], v.links["cus"]
		return a.VLAN == 7 && a.VLANProto == 0x8100 && a.Parent == v.links["a0"].Index && s.VLAN == 100 && s.VLANProto == 0x88a8 &&
			c.VLAN == 12 && c.Parent == s.Index && s.Index != 0
	})
}

// TestParseVLAN reads what the kernel announces for `ip link add link eth0 name svc type vlan proto 802.1ad id 100`.
func TestParseVLAN(t *testing.T) {
	id, proto := native.AppendUint16(nil, 100), []byte{0x88, 0xa8}
	data := putAttr(putAttr(nil, unix.IFLA_VLAN_ID, id), unix.IFLA_VLAN_PROTOCOL, proto)
	info := putAttr(putAttr(nil, unix.IFLA_INFO_KIND, []byte("vlan\x00")), unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, data)
	b := make([]byte, unix.SizeofIfInfomsg)
	native.PutUint32(b[4:], 9)
	native.PutUint32(b[8:], unix.IFF_UP|unix.IFF_RUNNING)
	b = putAttr(b, unix.IFLA_IFNAME, []byte("svc\x00"))
	b = putAttr(b, unix.IFLA_LINK, native.AppendUint32(nil, 3))
	b = putAttr(b, unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)
	want := Link{Index: 9, Name: "svc", Kind: "vlan", Up: true, Ready: true, Parent: 3, VLAN: 100, VLANProto: 0x88a8}
	if l, ok := parseLink(b); !ok || l != want {
		t.Errorf("%+v, want %+v", l, want)
	}
	b = putAttr(b, unix.IFLA_LINK_NETNSID, make([]byte, 4))
	if l, _ := parseLink(b); l.Parent != 0 {
		t.Error("a parent in another namespace is taken for one of this")
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	ip(t, ns, "address add 192.0.2.1/24 dev a0")
	v, _ := follow(t, ns, Options{})
	var index int
	v.do(func() { index = v.links["a0"].Index })
	has := func(p string) bool {
		return v.addrs[Addr{Index: index, Prefix: netip.MustParsePrefix(p)}]
	}
	v.wait(t, "an address that was there", func() bool { return has("192.0.2.1/24") })
	ip(t, ns, "address add 2001:db8::1/64 dev a0")
	ip(t, ns, "address add 192.0.2.2/24 dev a0")
	ip(t, ns, "address add 10.0.0.1 peer 10.0.0.2 dev a0")
	v.wait(t, "addresses", func() bool {
		return has("2001:db8::1/64") &&
			v.addrs[Addr{Index: index, Prefix: netip.MustParsePrefix("192.0.2.2/24"), Secondary: true}] &&
			v.addrs[Addr{Index: index, Prefix: netip.MustParsePrefix("10.0.0.1/32"), Peer: netip.MustParsePrefix("10.0.0.2/32")}]
	})
	v.wait(t, "their local route", func() bool {
		r := v.routes[RouteKey{Dst: netip.MustParsePrefix("192.0.2.2/32"), Table: TableLocal}]
		return r.Type == Local
	})
	ip(t, ns, "address del 192.0.2.1/24 dev a0")
	v.wait(t, "the end of both", func() bool {
		_, route := v.route("192.0.2.0/24", 0)
		return !has("192.0.2.1/24") && len(v.addrs) == len(slices.DeleteFunc(slices.Collect(maps.Keys(v.addrs)), func(a Addr) bool {
			return a.Prefix.Addr() == netip.MustParseAddr("192.0.2.2")
		})) && !route
	})
}

func TestNeighbours(t *testing.T) {
	t.Parallel()
	ns, peer := pair(t)
	ip(t, ns, "address add 192.0.2.1/24 dev a0")
	ip(t, ns, "address add 2001:db8::1/64 dev a0")
	ip(t, peer, "address add 192.0.2.2/24 dev b0")
	ip(t, peer, "address add 2001:db8::2/64 dev b0")
	v, f := follow(t, ns, Options{KeepAlive: func(n Neigh) bool { return true }})
	var index int
	v.do(func() { index = v.links["a0"].Index })
	var mac [6]byte
	out := peer.Run(t, "cat", "/sys/class/net/b0/address")
	fmt.Sscanf(strings.TrimSpace(out), "%02x:%02x:%02x:%02x:%02x:%02x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5])
	for _, a := range []string{"192.0.2.2", "2001:db8::2"} {
		addr := netip.MustParseAddr(a)
		if !f.Ask(index, addr) {
			t.Fatal("not asked")
		}
		if f.Ask(index, addr) {
			t.Error("asked twice in a second")
		}
		v.wait(t, a, func() bool { return v.neighs[addr].MAC == mac })
	}
	none := netip.MustParseAddr("192.0.2.99")
	f.Ask(index, none)
	ip(t, ns, "neighbour add 192.0.2.50 lladdr 02:00:00:00:00:50 dev a0 nud permanent")
	ip(t, ns, "neighbour add 192.0.2.51 lladdr 02:00:00:00:00:51 dev a0 nud stale")
	fifty, fiftyOne := netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("192.0.2.51")
	v.wait(t, "permanent and stale ones", func() bool {
		return v.neighs[fifty].State == "permanent" && v.neighs[fiftyOne].State == "stale"
	})
	ip(t, ns, "neighbour change 192.0.2.50 lladdr 02:00:00:00:00:55 dev a0 nud permanent")
	ip(t, ns, "neighbour del 192.0.2.51 dev a0")
	v.wait(t, "a new address", func() bool {
		_, there := v.neighs[fiftyOne]
		return v.neighs[fifty].MAC == [6]byte{2, 0, 0, 0, 0, 0x55} && !there
	})
	// NTF_USE would make a permanent one an ordinary one. The kernel answers questions in their order.
	for _, a := range []netip.Addr{fifty, netip.MustParseAddr("192.0.2.98")} {
		if !f.Ask(index, a) {
			t.Fatal("not asked")
		}
	}
	v.wait(t, "the second question", func() bool {
		return strings.Contains(ns.Run(t, "ip", "neighbour", "show", "to", "192.0.2.98"), "192.0.2.98")
	})
	if s := ns.Run(t, "ip", "neighbour", "show", "to", "192.0.2.50"); !strings.Contains(s, "PERMANENT") {
		t.Errorf("a permanent neighbour that was asked for has become %q", s)
	}
	v.do(func() {
		if _, there := v.neighs[none]; there {
			t.Error("a neighbour that does not answer is usable")
		}
	})
	ip(t, ns, "neighbour change 192.0.2.2 lladdr 02:00:00:00:00:02 dev a0 nud failed")
	v.wait(t, "failure", func() bool { _, there := v.neighs[netip.MustParseAddr("192.0.2.2")]; return !there })
	// A stale neighbour that is in use is checked, without traffic of the kernel's own.
	ip(t, ns, "neighbour change 2001:db8::2 lladdr "+strings.TrimSpace(out)+" dev a0 nud stale")
	six := netip.MustParseAddr("2001:db8::2")
	v.wait(t, "stale", func() bool { return v.neighs[six].State == "stale" })
	f.asks.mu.Lock()
	clear(f.asks.asked)
	f.asks.mu.Unlock()
	again := &neighbours{keep: f.opt.KeepAlive, ask: f.asks, checked: map[neighKey]time.Time{},
		known: map[neighKey]Neigh{{index, six}: {Index: index, Addr: six, State: "stale"}}}
	again.keepAlive(time.Now())
	v.wait(t, "the check", func() bool { return v.neighs[six].State != "stale" && v.neighs[six].MAC == mac })
}

// TestRoutes: each command, and what must be there afterwards. "" is no route.
func TestRoutes(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	for _, c := range []string{"address add 192.0.2.1/24 dev a0", "address add 203.0.113.1/24 dev a1", "address add 2001:db8::1/64 dev a0",
		"address add 2001:db8:1::1/64 dev a1"} {
		ip(t, ns, c)
	}
	v, _ := follow(t, ns, Options{})
	say := func(dst string, metric uint32) string {
		r, ok := v.route(dst, metric)
		if !ok {
			return ""
		}
		s := r.Type.String()
		for _, h := range r.Hops {
			name := "?"
			for n, l := range v.links {
				if l.Index == h.Index {
					name = n
				}
			}
			s += " " + name
			if h.Via.IsValid() {
				s += ">" + h.Via.String()
			}
			if h.Weight != 1 {
				s += fmt.Sprintf("*%d", h.Weight)
			}
		}
		if r.MTU != 0 {
			s += fmt.Sprintf(" mtu %d", r.MTU)
		}
		return s
	}
	type want struct {
		dst    string
		metric uint32
		say    string
	}
	steps := []struct {
		cmd  string
		want want
	}{
		{"route add 10.1.0.0/16 via 192.0.2.9", want{"10.1.0.0/16", 0, "unicast a0>192.0.2.9"}},
		{"route add 10.1.0.0/16 via 203.0.113.9 metric 5", want{"10.1.0.0/16", 5, "unicast a1>203.0.113.9"}},
		{"route replace 10.1.0.0/16 via 192.0.2.8 mtu 1300", want{"10.1.0.0/16", 0, "unicast a0>192.0.2.8 mtu 1300"}},
		{"route append 10.1.0.0/16 via 203.0.113.8", want{"10.1.0.0/16", 0, "unicast a0>192.0.2.8 mtu 1300"}},
		{"route del 10.1.0.0/16 via 192.0.2.8", want{"10.1.0.0/16", 0, "unicast a1>203.0.113.8"}},
		{"route prepend 10.1.0.0/16 via 203.0.113.7", want{"10.1.0.0/16", 0, "unicast a1>203.0.113.7"}},
		{"route del 10.1.0.0/16 via 203.0.113.7", want{"10.1.0.0/16", 0, "unicast a1>203.0.113.8"}},
		{"route del 10.1.0.0/16 via 203.0.113.8", want{"10.1.0.0/16", 0, ""}},
		{"route add 10.2.0.0/16 nexthop via 192.0.2.9 weight 3 nexthop via 203.0.113.9", want{"10.2.0.0/16", 0, "unicast a0>192.0.2.9*3 a1>203.0.113.9"}},
		{"route add 10.9.0.0/16 via inet6 2001:db8::9 dev a0", want{"10.9.0.0/16", 0, "unicast a0>2001:db8::9"}},
		{"route add blackhole 10.3.0.0/16", want{"10.3.0.0/16", 0, "blackhole"}},
		{"route add unreachable 10.4.0.0/16", want{"10.4.0.0/16", 0, "unreachable"}},
		{"route add prohibit 10.5.0.0/16", want{"10.5.0.0/16", 0, "prohibit"}},
		{"route add default via 192.0.2.9", want{"0.0.0.0/0", 0, "unicast a0>192.0.2.9"}},
		{"route add 2001:db8:100::/48 via 2001:db8::9", want{"2001:db8:100::/48", 1024, "unicast a0>2001:db8::9"}},
		{"route append 2001:db8:100::/48 via 2001:db8:1::9", want{"2001:db8:100::/48", 1024, "unicast a0>2001:db8::9 a1>2001:db8:1::9"}},
		{"route del 2001:db8:100::/48 via 2001:db8::9", want{"2001:db8:100::/48", 1024, "unicast a1>2001:db8:1::9"}},
		{"route replace 2001:db8:100::/48 via 2001:db8::7", want{"2001:db8:100::/48", 1024, "unicast a0>2001:db8::7"}},
		{"route add 2001:db8:200::/48 dev a0 metric 7", want{"2001:db8:200::/48", 7, "unicast a0"}},
		{"-6 route add default nexthop via 2001:db8::9 nexthop via 2001:db8:1::9 weight 2", want{"::/0", 1024, "unicast a0>2001:db8::9 a1>2001:db8:1::9*2"}},
		{"-6 route add blackhole 2001:db8:300::/48", want{"2001:db8:300::/48", 1024, "blackhole"}},
		{"nexthop add id 1 via 192.0.2.5 dev a0", want{}},
		{"nexthop add id 2 via 203.0.113.5 dev a1", want{}},
		{"nexthop add id 10 group 1/2", want{}},
		{"route add 10.6.0.0/16 nhid 10", want{"10.6.0.0/16", 0, "unicast a0>192.0.2.5 a1>203.0.113.5"}},
		{"nexthop replace id 1 via 192.0.2.6 dev a0", want{"10.6.0.0/16", 0, "unicast a0>192.0.2.6 a1>203.0.113.5"}},
		{"nexthop replace id 10 group 1,4/2,9", want{"10.6.0.0/16", 0, "unicast a0>192.0.2.6*4 a1>203.0.113.5*9"}},
		{"nexthop del id 1", want{"10.6.0.0/16", 0, "unicast a1>203.0.113.5"}},
		{"nexthop del id 2", want{"10.6.0.0/16", 0, ""}},
		{"link set a1 down", want{"10.2.0.0/16", 0, "unicast a0>192.0.2.9*3 a1>203.0.113.9"}},
		{"link set a0 mtu 1400", want{"203.0.113.0/24", 0, ""}},
		{"link set a1 up", want{"10.2.0.0/16", 0, "unicast a0>192.0.2.9*3 a1>203.0.113.9"}},
		{"address del 192.0.2.1/24 dev a0", want{"0.0.0.0/0", 0, ""}},
		{"link del a0", want{"2001:db8:200::/48", 7, ""}},
	}
	for _, s := range steps {
		ip(t, ns, s.cmd)
		if s.want.dst == "" {
			continue
		}
		v.wait(t, fmt.Sprintf("after `ip %s`: %v", s.cmd, s.want), func() bool { return say(s.want.dst, s.want.metric) == s.want.say })
	}
}

// TestReplay: a sink that forgot everything is told again.
func TestReplay(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	ip(t, ns, "address add 192.0.2.1/24 dev a0")
	ip(t, ns, "route add 10.1.0.0/16 via 192.0.2.9")
	ip(t, ns, "neighbour add 192.0.2.50 lladdr 02:00:00:00:00:50 dev a0 nud permanent")
	v, f := follow(t, ns, Options{})
	var links, addrs, routes int
	v.do(func() {
		links, addrs, routes = len(v.links), len(v.addrs), len(v.routes)
		clear(v.links)
		clear(v.addrs)
		clear(v.neighs)
		clear(v.routes)
		v.synced = 0
	})
	f.Replay()
	v.wait(t, "everything", func() bool {
		return v.synced == 1 && len(v.links) == links && len(v.addrs) == addrs && len(v.routes) == routes && len(v.neighs) == 1
	})
}

func batch(t *testing.T, ns *testnet.NS, lines string) {
	t.Helper()
	c := ns.Command("ip", "-batch", "-")
	c.Stdin = strings.NewReader(lines)
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("ip -batch: %v\n%s", err, out)
	}
}

// manyRoutes is an ip batch of n routes.
func manyRoutes(verb string, n int, via string) string {
	var b bytes.Buffer
	for i := range n {
		fmt.Fprintf(&b, "route %s 10.%d.%d.0/24 via %s\n", verb, i>>8, i&255, via)
	}
	return b.String()
}

func (v *view) countVia(via string) (n int) {
	a := netip.MustParseAddr(via)
	for _, r := range v.routes {
		if len(r.Hops) == 1 && r.Hops[0].Via == a {
			n++
		}
	}
	return n
}

func TestManyRoutes(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	ip(t, ns, "address add 192.0.2.1/24 dev a0")
	v, _ := follow(t, ns, Options{})
	const n = 10000
	batch(t, ns, manyRoutes("add", n, "192.0.2.9"))
	v.wait(t, "all routes", func() bool { return v.countVia("192.0.2.9") == n })
	v.do(func() { t.Logf("%d routes in %d batches", n, v.batches) })
	batch(t, ns, manyRoutes("replace", n, "192.0.2.8"))
	v.wait(t, "other gateways", func() bool { return v.countVia("192.0.2.8") == n && v.countVia("192.0.2.9") == 0 })
	ip(t, ns, "link set a0 down") // without a word about routes
	v.wait(t, "their end", func() bool { return v.countVia("192.0.2.8") == 0 })
}

func TestOverflow(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	ip(t, ns, "address add 192.0.2.1/24 dev a0")
	v := newView()
	var f *Follower
	var err error
	ns.Do(func() { f, err = New(v, Options{}) })
	if err != nil {
		t.Fatal(err)
	}
	rc, _ := f.events.f.SyscallConn()
	rc.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4096) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	defer func() { cancel(); <-done }()
	v.wait(t, "first dump", func() bool { return v.synced == 1 })
	// The sink is held up while announcements pour in.
	v.mu.Lock()
	batch(t, ns, manyRoutes("add", 2000, "192.0.2.9"))
	batch(t, ns, "neighbour add 192.0.2.50 lladdr 02:00:00:00:00:50 dev a0 nud permanent\nroute del 10.0.7.0/24\naddress add 192.0.2.77/24 dev a0\nlink set a1 mtu 1234\n")
	v.mu.Unlock()
	v.wait(t, "everything", func() bool {
		return v.synced > 1 && v.countVia("192.0.2.9") == 1999 && len(v.neighs) == 1 && v.links["a1"].MTU == 1234 &&
			v.addrs[Addr{Index: v.links["a0"].Index, Prefix: netip.MustParsePrefix("192.0.2.77/24"), Secondary: true}]
	})
}

func FuzzParse(f *testing.F) {
	f.Add(make([]byte, 40))
	f.Add(append(make([]byte, 16), 8, 0, 18, 0, 8, 0, 1, 0))
	f.Fuzz(func(t *testing.T, b []byte) {
		for m := range messages(b) {
			parseLink(m.body)
		}
		parseLink(b)
		parseAddr(b)
		parseNeigh(b)
		m := newMirror(func([]Route, []RouteKey) {})
		if m.parse(b) {
			if k := m.routeKey(m.scratch.key); !k.Dst.IsValid() || k.Dst != k.Dst.Masked() {
				t.Errorf("not masked: %v", k.Dst)
			}
			m.add(0, false)
			m.flush()
			if len(m.slots) != 1 {
				t.Error("a route that was added is not there")
			}
			m.parse(b)
			m.remove()
			m.flush()
			if len(m.slots) != 0 || len(m.by) != 0 {
				t.Error("a route that was removed is there still")
			}
		}
		parseRule(b)
		parseNetconf(b)
		parseObject(b)
	})
}
