package router

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	v1 "millrace/control/api/v1"
	"millrace/internal/testnet"
)

// mrouteOf is the first route of a group, by who made it.
func mrouteOf(t *testing.T, r *Router, group netip.Addr) *v1.Mroute {
	t.Helper()
	l, err := r.ListMroutes(context.Background(), &v1.ListMroutesRequest{Group: group.String()})
	if err != nil {
		t.Fatal(err)
	}
	if len(l.Mroutes) == 0 {
		return &v1.Mroute{}
	}
	return l.Mroutes[0]
}

func waitMroute(t *testing.T, r *Router, group netip.Addr, state string) *v1.Mroute {
	t.Helper()
	var m *v1.Mroute
	wait(t, fmt.Sprint(group, " to be ", state), func() error {
		if m = mrouteOf(t, r, group); m.State != state {
			return fmt.Errorf("%v", m)
		}
		return nil
	})
	return m
}

// flow sends n packets, a millisecond apart.
func flow(t *testing.T, s *testnet.Sender, n int) {
	t.Helper()
	for range n {
		if err := s.Send([]byte("to whom it may concern")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
}

// arrives waits until a member has exactly n packets.
func arrives(t *testing.T, m *testnet.Member, n uint64) {
	t.Helper()
	wait(t, "packets of the group", func() error {
		if k := m.Count(); k != n {
			return fmt.Errorf("%d came, want %d", k, n)
		}
		return nil
	})
	time.Sleep(20 * time.Millisecond) // and no more
	if k := m.Count(); k != n {
		t.Fatalf("%d packets came, want %d", k, n)
	}
}

func TestMulticast(t *testing.T) {
	for _, port := range []string{
		"ports: [{name: r0}, {name: r1}]\n",
		"ports: [{name: r0, driver: afpacket}, {name: r1, driver: afpacket}]\n",
	} {
		t.Run(strings.Trim(strings.Fields(port)[2], "{},"), func(t *testing.T) { testMulticast(t, port) })
	}
}

func testMulticast(t *testing.T, yaml string) {
	l := newLab(t)
	// Multicast routing alone makes the kernel forward multicast: nothing else does.
	l.router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
	taken := !strings.Contains(yaml, "afpacket")
	r := start(t, l.router, yaml)
	m := l.router.Mrouter(t, "r0", "r1")
	for _, g := range []string{"239.1.1.1:5000", "[ff0e::1:1]:5000"} {
		group := netip.MustParseAddrPort(g)
		a := group.Addr()
		s := l.client.Sender(t, "c0", group, 5)
		w := l.server.Join(t, "s0", group)

		// Nobody knows the source: the kernel does, and asks its daemon.
		flow(t, s, 1)
		waitMroute(t, r, a, "unresolved")
		// The daemon answers; what waited goes by the kernel.
		m.Add(s.Source(), a, "r0", 1, "r1")
		state := map[bool]string{true: "forwarding", false: "kernel"}[taken]
		waitMroute(t, r, a, state)
		arrives(t, w, 1)
		before := kernelPackets(t, l.router, a)
		flow(t, s, 100)
		arrives(t, w, 101)
		x := mrouteOf(t, r, a)
		kernel := kernelPackets(t, l.router, a) - before
		if x.Packets+kernel != 100 || taken && (kernel < 1 || kernel > 3) || !taken && kernel != 100 {
			t.Errorf("%v: of 100 packets Millrace had %d, the kernel %d", a, x.Packets, kernel)
		}
		if x.From != "r0" || len(x.To) != 1 || x.To[0].Port != "r1" || x.Origin != "kernel" {
			t.Errorf("%v", x)
		}

		// By another interface: the kernel notes it, nothing is sent.
		m.Add(s.Source(), a, "r1", 1, "r0")
		wait(t, "the change", func() error {
			if x := mrouteOf(t, r, a); x.From != "r1" {
				return fmt.Errorf("%v", x)
			}
			return nil
		})
		flow(t, s, 10)
		arrives(t, w, 101)
		m.Add(s.Source(), a, "r0", 1, "r1")
		waitMroute(t, r, a, state)

		// This host listens, too.
		here := l.router.Join(t, "r0", group)
		waitMroute(t, r, a, "kernel")
		flow(t, s, 10)
		arrives(t, w, 111)
		arrives(t, here, 10)
		here.Leave()
		waitMroute(t, r, a, state)

		// The last receiver leaves.
		m.Add(s.Source(), a, "r0", 1)
		wait(t, "no interface", func() error {
			if x := mrouteOf(t, r, a); len(x.To) != 0 {
				return fmt.Errorf("%v", x)
			}
			return nil
		})
		flow(t, s, 10)
		arrives(t, w, 111)
		m.Del(s.Source(), a)
		wait(t, "the route to go", func() error {
			if x := mrouteOf(t, r, a); x.Group != "" {
				return fmt.Errorf("%v", x)
			}
			return nil
		})
	}
}

// TestMulticastLeft: a source whose route is left to the kernel does not take the route for any source.
func TestMulticastLeft(t *testing.T) {
	l := newLab(t)
	testnet.Veth(t, l.router, "r2", l.server, "s2")
	r := start(t, l.router, twoPorts) // r2 is none of them
	m := l.router.Mrouter(t, "r0", "r1", "r2")
	group := netip.MustParseAddrPort("239.1.1.1:5000")
	a := group.Addr()
	s := l.client.Sender(t, "c0", group, 5)
	w, there := l.server.Join(t, "s0", group), l.server.Join(t, "s2", group)
	m.Add(netip.IPv4Unspecified(), a, "r0", 1, "r0", "r1")
	waitMroute(t, r, a, "forwarding")
	m.Add(s.Source(), a, "r0", 1, "r1", "r2")
	wait(t, "the second route", func() error {
		if l, err := r.ListMroutes(context.Background(), &v1.ListMroutesRequest{}); err != nil || len(l.Mroutes) != 2 || l.Mroutes[1].State != "kernel" {
			return fmt.Errorf("%v, %v", l, err)
		}
		return nil
	})
	flow(t, s, 20)
	arrives(t, w, 20)
	arrives(t, there, 20)
	if n := mrouteOf(t, r, a).Packets; n != 0 {
		t.Errorf("%d packets took the route for any source", n)
	}
	m.Del(s.Source(), a)
	wait(t, "the route for any source to be taken", func() error {
		flow(t, s, 1)
		if n := mrouteOf(t, r, a).Packets; n == 0 {
			return fmt.Errorf("%d packets", n)
		}
		return nil
	})
}

// kernelPackets is what the kernel counts for a group.
func kernelPackets(t *testing.T, ns *testnet.NS, group netip.Addr) (n uint64) {
	t.Helper()
	mine := false
	for line := range strings.Lines(ns.Run(t, "ip", map[bool]string{true: "-4", false: "-6"}[group.Is4()], "-s", "mroute")) {
		if line[0] == '(' {
			mine = strings.Contains(line, ","+group.String()+")")
		} else if mine {
			fmt.Sscan(line, &n)
		}
	}
	return n
}

// TestStaticMulticast: routes of the configuration and the API, without any multicast routing in the kernel.
func TestStaticMulticast(t *testing.T) {
	l := newLab(t)
	testnet.Veth(t, l.router, "r2", l.server, "s2")
	ip(t, l.router, "address add 10.0.3.1/24 dev r2")
	ip(t, l.server, "address add 10.0.3.2/24 dev s2")
	const conf = `
ports: [{name: r0}, {name: r1}, {name: r2}]
multicast:
  routes:
    - {group: 239.1.1.1, from: r0, to: [r1, r2 ttl 16]}
    - {group: 239.255.1.1, from: r0, to: [r1, r2]}
  boundaries:
    - {port: r2, groups: 239.255.0.0/16}
`
	r := start(t, l.router, conf)
	ctx := context.Background()
	g1, g2, g3 := netip.MustParseAddrPort("239.1.1.1:5000"), netip.MustParseAddrPort("239.255.1.1:5001"), netip.MustParseAddrPort("[ff0e::2]:5002")
	waitMroute(t, r, g1.Addr(), "forwarding")
	low, high, scoped := l.client.Sender(t, "c0", g1, 16), l.client.Sender(t, "c0", g1, 17), l.client.Sender(t, "c0", g2, 64)
	near, far := l.server.Join(t, "s0", g1), l.server.Join(t, "s2", g1)
	in, out := l.server.Join(t, "s0", g2), l.server.Join(t, "s2", g2)
	flow(t, low, 10)
	flow(t, high, 10)
	flow(t, scoped, 10)
	arrives(t, near, 20)
	arrives(t, far, 10)
	arrives(t, in, 10)
	arrives(t, out, 0)

	six := l.client.Sender(t, "c0", g3, 64)
	w := l.server.Join(t, "s0", g3)
	route := &v1.Mroute{Group: g3.Addr().String(), Source: six.Source().String(), From: "r0", To: []*v1.MrouteOut{{Port: "r1"}}}
	if _, err := r.AddMroute(ctx, &v1.AddMrouteRequest{Mroute: route}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddMroute(ctx, &v1.AddMrouteRequest{Mroute: route}); err == nil {
		t.Error("a route was added twice")
	}
	bad := &v1.Mroute{Group: "239.1.1.9", From: "r0", To: []*v1.MrouteOut{{Port: "r9"}}}
	if _, err := r.AddMroute(ctx, &v1.AddMrouteRequest{Mroute: bad}); err == nil || !strings.Contains(err.Error(), "no interface r9") {
		t.Errorf("a route to an interface that is not there: %v", err)
	}
	flow(t, six, 10)
	arrives(t, w, 10)
	wait(t, "a rate", func() error {
		flow(t, six, 1)
		if x := mrouteOf(t, r, g3.Addr()); x.PacketsPerSecond == 0 || x.BitsPerSecond == 0 {
			return fmt.Errorf("%v", x)
		}
		return nil
	})
	if _, err := r.DelMroute(ctx, &v1.DelMrouteRequest{Group: route.Group, Source: route.Source}); err != nil {
		t.Fatal(err)
	}
	n := w.Count()
	flow(t, six, 5)
	arrives(t, w, n)

	// An interface goes, and comes back.
	ip(t, l.router, "link set r1 down")
	wait(t, "r1 to be down", func() error {
		if ps, err := r.ListPorts(ctx, &v1.ListPortsRequest{Names: []string{"r1"}}); err != nil || ps.Ports[0].Up {
			return fmt.Errorf("%v, %v", ps, err)
		}
		return nil
	})
	flow(t, high, 5)
	arrives(t, far, 15)
	ip(t, l.router, "link set r1 up", "address replace 10.0.2.1/24 dev r1")
	up(t, r, "r1")
	flow(t, high, 5)
	arrives(t, near, 25)

	apply(t, r, strings.Replace(conf, "to: [r1, r2 ttl 16]", "to: r2", 1), 0)
	flow(t, high, 5)
	arrives(t, near, 25)
	arrives(t, far, 25)
}
