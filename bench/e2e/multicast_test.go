package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "millrace/control/api/v1"
	"millrace/internal/testnet"
)

// tree is a sender behind a router, and three receivers: one behind it, two behind a second router.
//
//	sender s0 - a0 A a1 - x0 near
//	             a2 - b0 B b1 - y0 left
//	                     b2 - z0 right
type tree struct {
	sender, a, b      *testnet.NS
	near, left, right *testnet.NS
}

func newTree(t *testing.T) *tree {
	t.Helper()
	n := &tree{testnet.New(t), testnet.New(t), testnet.New(t), testnet.New(t), testnet.New(t), testnet.New(t)}
	wire := func(net int, up *testnet.NS, upName string, down *testnet.NS, downName string) {
		testnet.Veth(t, up, upName, down, downName)
		ip(t, up, fmt.Sprintf("addr add 10.0.%d.1/24 dev %s", net, upName), fmt.Sprintf("addr add 2001:db8:%d::1/64 dev %s", net, upName))
		ip(t, down, fmt.Sprintf("addr add 10.0.%d.2/24 dev %s", net, downName), fmt.Sprintf("addr add 2001:db8:%d::2/64 dev %s", net, downName))
	}
	wire(1, n.a, "a0", n.sender, "s0")
	wire(2, n.a, "a1", n.near, "x0")
	wire(3, n.a, "a2", n.b, "b0")
	wire(4, n.b, "b1", n.left, "y0")
	wire(5, n.b, "b2", n.right, "z0")
	ip(t, n.sender, "route add default via 10.0.1.1", "-6 route add default via 2001:db8:1::1")
	ip(t, n.b, "route add 10.0.1.0/24 via 10.0.3.1", "-6 route add default via 2001:db8:3::1")
	for _, r := range []*testnet.NS{n.a, n.b} {
		r.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
	}
	return n
}

// stream of a video: a packet each five milliseconds until the end of the test.
func video(t *testing.T, ns *testnet.NS, group netip.AddrPort) (sent *atomic.Uint64) {
	s := ns.Sender(t, "s0", group, 8)
	stop, done := make(chan struct{}), make(chan struct{})
	sent = &atomic.Uint64{}
	go func() {
		defer close(done)
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		b := make([]byte, 1316) // seven packets of an MPEG transport stream
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if s.Send(b) == nil {
					sent.Add(1)
				}
			}
		}
	}()
	t.Cleanup(func() { close(stop); <-done })
	return sent
}

// mroute is what a router says of a group's routes.
func (r *router) mroute(group netip.Addr) []*v1.Mroute {
	r.t.Helper()
	l, err := r.api.ListMroutes(context.Background(), &v1.ListMroutesRequest{Group: group.String()})
	if err != nil {
		r.t.Fatal(err)
	}
	return l.Mroutes
}

// flows waits until a member gets packets, at least ninety of a hundred that are sent.
func flows(t *testing.T, what string, m *testnet.Member, sent *atomic.Uint64) {
	t.Helper()
	eventually(t, what+" to get the stream", func() error {
		n, k := m.Count(), sent.Load()
		time.Sleep(500 * time.Millisecond)
		if got, all := m.Count()-n, sent.Load()-k; got < all*9/10 || all < 50 {
			return fmt.Errorf("%d of %d packets came", got, all)
		}
		return nil
	})
}

// dry waits until no packet for the group comes to an interface any more.
func dry(t *testing.T, what string, ns *testnet.NS, ifname string, group netip.Addr) {
	t.Helper()
	raw := ns.Raw(t, ifname)
	at, g := 30, group.AsSlice()
	if group.Is6() {
		at = 38
	}
	eventually(t, what+" to get nothing", func() error {
		for raw.Recv(0) != nil { // what came before
		}
		if f := raw.RecvMatch(time.Second, func(b []byte) bool {
			return len(b) > 1000 && string(b[at:at+len(g)]) == string(g)
		}); f != nil {
			return errors.New("packets still come")
		}
		return nil
	})
}

// mostlyMillrace: of a second of the stream, the router's kernel forwards a few packets at the most.
func mostlyMillrace(t *testing.T, r *router, group netip.Addr, sent *atomic.Uint64) {
	t.Helper()
	eventually(t, "Millrace to forward the group", func() error {
		count := func() (n uint64) {
			for _, m := range r.mroute(group) {
				n += m.Packets
			}
			return n
		}
		n, k := count(), sent.Load()
		time.Sleep(time.Second)
		if got, all := count()-n, sent.Load()-k; got+5 < all || all < 100 {
			return fmt.Errorf("%d of %d packets: %v", got, all, r.mroute(group))
		}
		return nil
	})
}

// TestMulticastFRR: FRR's pimd on both routers, receivers that join and leave by IGMP.
func TestMulticastFRR(t *testing.T) {
	long(t)
	t.Parallel()
	n := newTree(t)
	conf := func(ifaces ...string) string {
		var b strings.Builder
		b.WriteString("log stdout\nip pim rp 10.0.3.2 224.0.0.0/4\n")
		for _, i := range ifaces {
			fmt.Fprintf(&b, "interface %s\n ip pim\n ip pim hello 1\n ip igmp\n ip igmp last-member-query-interval 2\nexit\n", i)
		}
		return b.String()
	}
	a, b := run(t, n.a, "a0", "a1", "a2"), run(t, n.b, "b0", "b1", "b2")
	va, vb := testnet.NewFRR(t, n.a), testnet.NewFRR(t, n.b)
	va.Start("zebra", "")
	va.Start("pimd", conf("a0", "a1", "a2"))
	vb.Start("zebra", "")
	vb.Start("pimd", conf("b0", "b1", "b2"))
	eventually(t, "the PIM neighbours", func() error {
		if out := va.Vtysh("show ip pim neighbor") + vb.Vtysh("show ip pim neighbor"); !strings.Contains(out, "10.0.3.2") || !strings.Contains(out, "10.0.3.1") {
			return errors.New(out)
		}
		return nil
	})
	t.Cleanup(func() {
		if t.Failed() {
			for _, cmd := range []string{"show ip mroute", "show ip pim upstream", "show ip pim rp-info", "show ip pim nexthop"} {
				t.Logf("A: %s\n%s\nB: %s\n%s", cmd, va.Vtysh(cmd), cmd, vb.Vtysh(cmd))
			}
		}
	})
	group := netip.MustParseAddrPort("239.10.20.30:5004")
	sent := video(t, n.sender, group)
	near, left, right := n.near.Join(t, "x0", group), n.left.Join(t, "y0", group), n.right.Join(t, "z0", group)
	flows(t, "the receiver at A", near, sent)
	flows(t, "a receiver at B", left, sent)
	flows(t, "the other receiver at B", right, sent)
	mostlyMillrace(t, a, group.Addr(), sent)
	mostlyMillrace(t, b, group.Addr(), sent)
	t.Logf("%s\n%s", a.do("show", "mroutes", "-s"), b.do("show", "mroutes", "-s"))

	left.Leave()
	dry(t, "a receiver that has left", n.left, "y0", group.Addr())
	flows(t, "the other receiver at B", right, sent)
	near.Leave()
	dry(t, "the receiver at A that has left", n.near, "x0", group.Addr())
	flows(t, "the other receiver at B", right, sent)
	right.Leave()
	dry(t, "the last receiver", n.right, "z0", group.Addr())
	dry(t, "router B", n.b, "b0", group.Addr())
	again := n.left.Join(t, "y0", group)
	flows(t, "a receiver that has come back", again, sent)
}

// TestMulticastStatic: smcroute's static routes on both routers, in both families, changed by its command.
func TestMulticastStatic(t *testing.T) {
	long(t)
	t.Parallel()
	need(t, "smcrouted", "smcroutectl")
	n := newTree(t)
	a, b := run(t, n.a, "a0", "a1", "a2"), run(t, n.b, "b0", "b1", "b2")
	smc := func(ns *testnet.NS, conf string) (ctl func(...string)) {
		dir, err := os.MkdirTemp("", "smc")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		if err := os.WriteFile(dir+"/conf", []byte(conf), 0o600); err != nil {
			t.Fatal(err)
		}
		background(t, ns, "smcrouted", "-n", "-f", dir+"/conf", "-P", dir+"/pid", "-u", dir+"/sock")
		eventually(t, "smcrouted", func() error {
			_, err := os.Stat(dir + "/sock")
			return err
		})
		return func(args ...string) {
			t.Helper()
			if out, code := command(t, ns, append([]string{"smcroutectl", "-u", dir + "/sock"}, args...)...); code != 0 {
				t.Fatalf("smcroutectl %v: %s", args, out)
			}
		}
	}
	smc(n.a, "mroute from a0 group 239.10.20.31 to a1 a2\nmroute from a0 source 2001:db8:1::2 group ff0e::2031 to a1 a2\n")
	ctl := smc(n.b, "mroute from b0 source 10.0.1.2 group 239.10.20.31 to b1 b2\nmroute from b0 group ff0e::2031 to b1 b2\n")
	for _, g := range []string{"239.10.20.31:5004", "[ff0e::2031]:5004"} {
		group := netip.MustParseAddrPort(g)
		sent := video(t, n.sender, group)
		near, left, right := n.near.Join(t, "x0", group), n.left.Join(t, "y0", group), n.right.Join(t, "z0", group)
		flows(t, "the receiver at A", near, sent)
		flows(t, "a receiver at B", left, sent)
		flows(t, "the other receiver at B", right, sent)
		mostlyMillrace(t, a, group.Addr(), sent)
		mostlyMillrace(t, b, group.Addr(), sent)
		t.Logf("%s\n%s", a.do("show", "mroutes", "-s"), b.do("show", "mroutes", "-s"))
		source := "10.0.1.2"
		if group.Addr().Is6() {
			source = "2001:db8:1::2"
			ctl("remove", "b0", group.Addr().String())
		} else {
			ctl("remove", "b0", source, group.Addr().String(), "b1", "b2")
		}
		ctl("add", "b0", source, group.Addr().String(), "b2")
		dry(t, "a receiver without a route", n.left, "y0", group.Addr())
		flows(t, "the other receiver at B", right, sent)
	}
}
