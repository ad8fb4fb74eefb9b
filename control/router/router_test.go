package router

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap/zaptest"
	"golang.org/x/sys/unix"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
	"millrace/control/kernel"
	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pmd"
)

// lab is client c0 - r0 router r1 - s0 server, whose kernel does not forward.
type lab struct{ client, router, server *testnet.NS }

func ip(t testing.TB, ns *testnet.NS, cmds ...string) {
	t.Helper()
	for _, c := range cmds {
		ns.Run(t, "ip", strings.Fields(c)...)
	}
}

func newLab(t *testing.T) *lab {
	l := &lab{testnet.New(t), testnet.New(t), testnet.New(t)}
	testnet.Veth(t, l.router, "r0", l.client, "c0")
	l.wire(t)
	ip(t, l.router, "address add 10.0.1.1/24 dev r0", "address add 2001:db8:1::1/64 dev r0")
	ip(t, l.client, "address add 10.0.1.2/24 dev c0", "address add 2001:db8:1::2/64 dev c0",
		"route add default via 10.0.1.1", "-6 route add default via 2001:db8:1::1")
	return l
}

// wire connects the server.
func (l *lab) wire(t *testing.T) {
	testnet.Veth(t, l.router, "r1", l.server, "s0")
	ip(t, l.router, "address add 10.0.2.1/24 dev r1", "address add 2001:db8:2::1/64 dev r1")
	ip(t, l.server, "address add 10.0.2.2/24 dev s0", "address add 2001:db8:2::2/64 dev s0",
		"route add default via 10.0.2.1", "-6 route add default via 2001:db8:2::1")
}

// start runs a router in a namespace until the test ends, and checks its account then.
func start(t *testing.T, ns *testnet.NS, yaml string) *Router {
	t.Helper()
	cfg, err := config.Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(cfg, Options{Log: zaptest.NewLogger(t), Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go ns.Do(func() { done <- r.Run(ctx, func() { close(ready) }) })
	select {
	case <-ready:
	case err := <-done:
		cancel()
		if err != nil && strings.Contains(err.Error(), "not supported here") {
			t.Skip(err)
		}
		t.Fatal(err)
	case <-time.After(time.Minute):
		cancel()
		<-done
		t.Fatal("not ready after a minute")
	}
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() {
		wait(t, "all packets to be accounted for", func() error {
			a, err := r.GetLeaks(ctx, &v1.GetLeaksRequest{})
			if err == nil && !a.Ok {
				err = fmt.Errorf("%v", a)
			}
			return err
		})
		wait(t, "a clean audit", func() error {
			if f := faults(t, r); len(f) != 0 {
				return errOf(f)
			}
			return nil
		})
		if t.Failed() {
			d, _ := r.ListDrops(ctx, &v1.ListDropsRequest{})
			s, _ := r.GetStatus(ctx, &v1.GetStatusRequest{})
			t.Logf("drops %v\nstatus %v", d, s)
		}
	})
	return r
}

func wait(t *testing.T, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// ping sends n echo requests, one after the other, all of which must be answered within 3 seconds.
func ping(t *testing.T, ns *testnet.NS, to string, n int) {
	t.Helper()
	for i := range n {
		if out, err := ns.Command("ping", "-n", "-c", "1", "-W", "3", to).CombinedOutput(); err != nil {
			t.Fatalf("ping %d of %s from %s: %v\n%s", i, to, ns.Name, err, out)
		}
	}
}

// pings waits until an echo request is answered, or is not any more.
func pings(t *testing.T, ns *testnet.NS, to string, want bool) {
	t.Helper()
	wait(t, fmt.Sprintf("ping %s to be answered: %v", to, want), func() error {
		out, err := ns.Command("ping", "-n", "-c", "1", "-W", "1", to).CombinedOutput()
		if (err == nil) != want {
			return fmt.Errorf("%v\n%s", err, out)
		}
		return nil
	})
}

const twoPorts = "ports: [{name: r0}, {name: r1}]\n"

func TestForward(t *testing.T) {
	for _, c := range []struct{ driver, ports string }{
		{"chosen", twoPorts},
		{"afpacket", "ports: [{name: r0, driver: afpacket}, {name: r1, driver: afpacket}]\n"},
	} {
		t.Run(c.driver, func(t *testing.T) { testForward(t, c.ports) })
	}
}

func testForward(t *testing.T, ports string) {
	l := newLab(t)
	r := start(t, l.router, ports)
	// Nobody knows any neighbour: the first packet waits for it.
	ping(t, l.client, "10.0.2.2", 3)
	ping(t, l.client, "2001:db8:2::2", 3)
	ping(t, l.client, "10.0.1.1", 2) // the kernel's
	ping(t, l.client, "2001:db8:2::1", 2)

	ctx := context.Background()
	s, err := r.GetStatus(ctx, &v1.GetStatusRequest{})
	if err != nil || !s.Forwarding || s.PortsUp != 2 || len(s.Reasons) != 0 || s.Neighbours < 4 || s.Version != "test" {
		t.Errorf("status %v, %v", s, err)
	}
	ps, err := r.ListPorts(ctx, &v1.ListPortsRequest{Names: []string{"r0"}})
	if err != nil || len(ps.Ports) != 1 || !ps.Ports[0].Up || ps.Ports[0].RxPackets < 6 || ps.Ports[0].TxPackets < 6 ||
		ps.Ports[0].Host != "kernel" || ps.Ports[0].Mtu != 1500 {
		t.Errorf("ports %v, %v", ps, err)
	}
	st, err := r.ListStages(ctx, &v1.ListStagesRequest{})
	if err != nil || st.Stages[0].Name != "classify" || st.Stages[0].Packets < 12 {
		t.Errorf("stages %v, %v", st, err)
	}
	w, err := r.ListWorkers(ctx, &v1.ListWorkersRequest{})
	if err != nil || len(w.Workers) == 0 || w.Workers[0].Packets < 12 || len(w.Workers[0].Queues) != 2 {
		t.Errorf("workers %v, %v", w, err)
	}
	n, err := r.ListNeighbours(ctx, &v1.ListNeighboursRequest{Port: "r1"})
	if err != nil || len(n.Neighbours) < 2 || n.Neighbours[0].Mac == "" || n.Neighbours[0].Source != "kernel" {
		t.Errorf("neighbours %v, %v", n, err)
	}
	if _, err := r.SetMeasure(ctx, &v1.SetMeasureRequest{On: true}); err != nil {
		t.Fatal(err)
	}
	ping(t, l.client, "10.0.2.2", 1)
	if st, err = r.ListStages(ctx, &v1.ListStagesRequest{}); err != nil || !st.Measuring || st.Stages[0].Clocks == 0 {
		t.Errorf("nothing was measured: %v, %v", st, err)
	}
}

func TestKernelChanges(t *testing.T) {
	l := newLab(t)
	r := start(t, l.router, twoPorts)
	ctx := context.Background()
	route := func(to string) *v1.Route {
		x, err := r.ListRoutes(ctx, &v1.ListRoutesRequest{Address: to})
		if err != nil {
			t.Fatal(err)
		}
		if len(x.Routes) == 0 {
			return &v1.Route{}
		}
		return x.Routes[0]
	}
	ping(t, l.client, "10.0.2.2", 1)

	t.Log("a route comes and goes")
	ip(t, l.server, "address add 198.51.100.1/32 dev lo")
	pings(t, l.client, "198.51.100.1", false)
	ip(t, l.router, "route add 198.51.100.0/24 via 10.0.2.2 proto bird")
	wait(t, "route", func() error {
		if x := route("198.51.100.1"); x.Protocol != "bird" || x.Source != "kernel" || len(x.NextHops) != 1 ||
			x.NextHops[0].Address != "10.0.2.2" || x.NextHops[0].Port != "r1" || !x.NextHops[0].Resolved {
			return fmt.Errorf("%v", x)
		}
		return nil
	})
	ping(t, l.client, "198.51.100.1", 2)
	ip(t, l.router, "route del 198.51.100.0/24")
	pings(t, l.client, "198.51.100.1", false)

	t.Log("a route by a link that is not a port is unreachable, not the default route's")
	ip(t, l.router, "route add default via 10.0.2.2", "link add x0 type veth peer name x1", "link set x0 up", "link set x1 up",
		"address add 203.0.113.1/24 dev x0")
	wait(t, "unreachable", func() error {
		if x := route("203.0.113.7"); x.Type != "unreachable" {
			return fmt.Errorf("%v", x)
		}
		return nil
	})
	pings(t, l.client, "198.51.100.1", true)
	ping(t, l.client, "203.0.113.1", 1) // the box's own

	t.Log("the server gets another MAC")
	ip(t, l.server, "link set s0 down", "link set s0 address 02:00:00:00:00:99", "link set s0 up", "route replace default via 10.0.2.1")
	ip(t, l.router, "neighbour flush dev r1")
	pings(t, l.client, "10.0.2.2", true)
	if n := route("10.0.2.2").NextHops; len(n) != 1 || n[0].Mac != "02:00:00:00:00:99" {
		t.Errorf("next hops %v", n)
	}

	t.Log("the box gets another address")
	ip(t, l.router, "address add 10.0.3.1/24 dev r1")
	pings(t, l.client, "10.0.3.1", true)
	ip(t, l.router, "address del 10.0.3.1/24 dev r1")
	pings(t, l.client, "10.0.3.1", false)

	t.Log("an address without an interface of its own")
	ip(t, l.router, "route add local 10.0.77.1 dev lo")
	pings(t, l.client, "10.0.77.1", true)
	ping(t, l.client, "10.0.77.1", 1)
	ip(t, l.router, "route del local 10.0.77.1 dev lo")
	pings(t, l.client, "10.0.77.1", false)

	t.Log("the port goes down and up")
	ip(t, l.router, "link set r1 down")
	wait(t, "no way", func() error {
		if x := route("10.0.2.2"); x.Prefix == "10.0.2.0/24" {
			return fmt.Errorf("%v", x)
		}
		return nil
	})
	ip(t, l.router, "link set r1 up")
	pings(t, l.client, "10.0.2.2", true)

	t.Log("the device is removed and comes back")
	ip(t, l.router, "link del r1")
	wait(t, "complaint", func() error {
		s, _ := r.GetStatus(ctx, &v1.GetStatusRequest{})
		if s.PortsUp != 1 || !strings.Contains(strings.Join(s.Reasons, "\n"), "port r1: the device was removed") {
			return fmt.Errorf("%v", s)
		}
		return nil
	})
	pings(t, l.client, "10.0.2.2", false)
	l.wire(t)
	pings(t, l.client, "10.0.2.2", true)
	pings(t, l.client, "2001:db8:2::2", true)
}

func apply(t *testing.T, r *Router, yaml string, confirm time.Duration) *v1.ApplyConfigResponse {
	t.Helper()
	x, err := r.ApplyConfig(context.Background(), &v1.ApplyConfigRequest{Yaml: yaml, Path: "new.yaml", ConfirmNs: int64(confirm)})
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestApply(t *testing.T) {
	l := newLab(t)
	ip(t, l.server, "address add 198.51.100.1/32 dev lo")
	r := start(t, l.router, "ports: [{name: r0}]\n")
	ctx := context.Background()
	pings(t, l.client, "10.0.2.2", false)

	x := apply(t, r, twoPorts, 0)
	if !x.Applied || len(x.Changes) != 1 {
		t.Errorf("apply: %v", x)
	}
	ping(t, l.client, "10.0.2.2", 2)

	// Traffic of untouched ports goes on while others change.
	bg := l.client.Command("ping", "-n", "-q", "-c", "200", "-i", "0.01", "10.0.2.2")
	var out strings.Builder
	bg.Stdout = &out
	if err := bg.Start(); err != nil {
		t.Fatal(err)
	}
	routed := twoPorts + "routes: [{to: 198.51.100.0/24, via: 10.0.2.2}, {to: 192.0.2.0/24, via: 192.168.7.7}]\n"
	apply(t, r, routed, 0)
	ping(t, l.client, "198.51.100.1", 1)
	s, _ := r.GetStatus(ctx, &v1.GetStatusRequest{})
	if len(s.Reasons) != 1 || !strings.Contains(s.Reasons[0], "gateway 192.168.7.7 is in no network") {
		t.Errorf("reasons %v", s.Reasons)
	}
	apply(t, r, "ports: [{name: r0}, {name: r1, addresses: [10.0.7.1/24]}]\n", 0)
	pings(t, l.client, "10.0.7.1", true)
	pings(t, l.client, "198.51.100.1", false)
	apply(t, r, twoPorts, 0)
	if a := l.router.Run(t, "ip", "address", "show", "dev", "r1"); strings.Contains(a, "10.0.7.1") {
		t.Errorf("the address stayed: %s", a)
	}
	err := bg.Wait()
	var sent, got int
	if at := strings.Index(out.String(), "200 packets"); at >= 0 {
		fmt.Sscanf(out.String()[at:], "%d packets transmitted, %d received", &sent, &got)
	}
	if err != nil || got < 199 { // ping waits for the last answer no longer than two round trips
		t.Errorf("untouched ports lost packets: %v %s", err, out.String())
	}

	// Without confirmation it is taken back.
	apply(t, r, routed, 300*time.Millisecond)
	if _, err := r.ApplyConfig(ctx, &v1.ApplyConfigRequest{Yaml: twoPorts}); err == nil || !strings.Contains(err.Error(), api.ErrConflict.Error()) {
		t.Errorf("applied while another waits: %v", err)
	}
	wait(t, "going back", func() error {
		c, _ := r.GetConfig(ctx, &v1.GetConfigRequest{})
		if strings.Contains(c.Yaml, "198.51.100.0") {
			return fmt.Errorf("%s", c.Yaml)
		}
		return nil
	})
	pings(t, l.client, "198.51.100.1", false)
	// Confirmed, it stays, until rolled back.
	apply(t, r, routed, time.Minute)
	if _, err := r.Confirm(ctx, &v1.ConfirmRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := r.Confirm(ctx, &v1.ConfirmRequest{}); err == nil {
		t.Error("confirmed twice")
	}
	ping(t, l.client, "198.51.100.1", 1)
	if x, err := r.Rollback(ctx, &v1.RollbackRequest{}); err != nil || len(x.Changes) != 2 {
		t.Errorf("rollback %v, %v", x, err)
	}
	pings(t, l.client, "198.51.100.1", false)

	// What cannot be is not applied, in whole.
	if _, err := r.ApplyConfig(ctx, &v1.ApplyConfigRequest{Yaml: "ports: [{name: r0}, {name: nosuch}]"}); err == nil || !strings.Contains(err.Error(), "nothing was changed") {
		t.Errorf("apply with a port that is not there: %v", err)
	}
	ping(t, l.client, "10.0.2.2", 1)
	x = apply(t, r, twoPorts+"pool: {buffers: 4096}\n", 0)
	if x.Applied || len(x.NeedRestart) != 1 {
		t.Errorf("pool changed: %v", x)
	}
	if _, err := r.ApplyConfig(ctx, &v1.ApplyConfigRequest{Yaml: "portz: []"}); err == nil {
		t.Error("a mistake was applied")
	}
}

// TestFollow: the kernel's routes are taken or not, as the configuration says and changes.
func TestFollow(t *testing.T) {
	l := newLab(t)
	ip(t, l.server, "address add 198.51.100.1/32 dev lo")
	ip(t, l.router, "route add 198.51.100.0/24 via 10.0.2.2")
	r := start(t, l.router, twoPorts+"kernel: {follow: false}\n")
	ping(t, l.client, "10.0.2.2", 1) // connected networks are there anyway
	pings(t, l.client, "198.51.100.1", false)
	apply(t, r, twoPorts, 0)
	pings(t, l.client, "198.51.100.1", true)
	apply(t, r, twoPorts+"kernel: {follow: false}\nneighbours: [{address: 10.0.2.2, mac: '02:00:00:00:00:77', port: r1}]\n", 0)
	pings(t, l.client, "198.51.100.1", false)
	pings(t, l.client, "10.0.2.2", false) // the configuration's neighbour comes before the kernel's
	apply(t, r, twoPorts, 0)
	pings(t, l.client, "198.51.100.1", true)
	pings(t, l.client, "10.0.2.2", true)
}

func TestWatch(t *testing.T) {
	l := newLab(t)
	r := start(t, l.router, twoPorts)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	traced := make(chan *v1.TracedPacket, 10)
	ended := make(chan error, 3)
	go func() {
		ended <- r.Trace(ctx, &v1.TraceRequest{Count: 2, Filter: "icmp", Ports: []string{"r0"}}, func(p *v1.TracedPacket) error { traced <- p; return nil })
	}()
	var both, drops strings.Builder
	go func() {
		ended <- r.Capture(ctx, &v1.CaptureRequest{Count: 4, Filter: "icmp"}, func(c *v1.CaptureChunk) error { both.Write(c.Data); return nil })
	}()
	go func() {
		ended <- r.Capture(ctx, &v1.CaptureRequest{Count: 1, Drops: true}, func(c *v1.CaptureChunk) error { drops.Write(c.Data); return nil })
	}()
	time.Sleep(100 * time.Millisecond) // until they watch
	ping(t, l.client, "10.0.2.2", 2)
	l.client.Command("ping", "-n", "-c", "1", "-W", "1", "172.31.0.1").Run()
	for range 3 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	p := <-traced
	if p.From != "r0" || len(p.Lines) == 0 || !strings.Contains(p.Summary, "10.0.1.2 > 10.0.2.2") {
		t.Errorf("traced %v", p)
	}
	if !strings.Contains(drops.String(), "/no-route: ") {
		t.Errorf("captured drops: %q", drops.String())
	}
	if !strings.Contains(both.String(), "r0") || !strings.Contains(both.String(), "r1") {
		t.Errorf("captured: %q", both.String())
	}
	if err := r.Trace(ctx, &v1.TraceRequest{Filter: "bogus"}, nil); err == nil {
		t.Error("no error for a wrong filter")
	}
	if err := r.Capture(ctx, &v1.CaptureRequest{Ports: []string{"eth7"}}, nil); err == nil {
		t.Error("no error for an unknown port")
	}
}

// TestKernelVlans: VLANs of the kernel on an adopted port. What the kernel would announce is told by hand, since
// not every kernel has VLAN interfaces.
func TestKernelVlans(t *testing.T) {
	l := newLab(t)
	r := start(t, l.router, twoPorts)
	s := sink{r}
	r0 := r.named("r0")
	mac := pmd.MAC{2, 0, 0, 0, 0, 0x10}
	link := kernel.Link{Index: 1000, Name: "r0.7", Kind: "vlan", Type: unix.ARPHRD_ETHER, MAC: r0.port.link.MAC, MTU: 1496, Up: true, Ready: true,
		Parent: r0.index, VLAN: 7, VLANProto: unix.ETH_P_8021Q}
	outer, inner := link, link
	outer.Index, outer.Name, outer.VLAN, outer.VLANProto = 1001, "r0.s", 200, unix.ETH_P_8021AD
	inner.Index, inner.Name, inner.Parent, inner.VLAN = 1002, "r0.q", 1001, 30
	links := []kernel.Link{link, outer, inner}
	for _, x := range links {
		s.LinkChanged(x)
	}
	t.Cleanup(func() { // the kernel has none of this
		for _, p := range []string{"10.7.0.0/16", "10.30.0.0/16"} {
			s.RouteBatch(nil, []kernel.RouteKey{{Dst: netip.MustParsePrefix(p), Table: kernel.TableMain}})
		}
		for _, x := range []kernel.Neigh{{Index: 1000, Addr: netip.MustParseAddr("10.7.0.2")}, {Index: 1002, Addr: netip.MustParseAddr("10.30.0.2")}} {
			s.NeighRemoved(x)
		}
		for _, x := range slices.Backward(links) {
			s.LinkRemoved(x)
		}
	})
	to := func(index int, dst, via string) {
		s.NeighChanged(kernel.Neigh{Index: index, Addr: netip.MustParseAddr(via), MAC: mac, State: "reachable"})
		s.RouteBatch([]kernel.Route{{RouteKey: kernel.RouteKey{Dst: netip.MustParsePrefix(dst), Table: kernel.TableMain}, Path: &kernel.Path{Type: kernel.Unicast,
			Hops: []kernel.NextHop{{Index: index, Via: netip.MustParseAddr(via), Weight: 1}}}}}, nil)
	}
	to(1000, "10.7.0.0/16", "10.7.0.2")
	to(1002, "10.30.0.0/16", "10.30.0.2")
	ping(t, l.client, "10.0.2.2", 1)

	ctx := context.Background()
	for _, c := range []struct {
		name, dst string
		vlan, qin uint32
		tags      string // of frames to the router
	}{
		{"r0.7", "10.7.1.1", 7, 0, "81000007"},
		{"r0.q", "10.30.1.1", 200, 30, "88a800c88100001e"},
	} {
		ps, err := r.ListPorts(ctx, &v1.ListPortsRequest{Names: []string{c.name}})
		if err != nil || !ps.Ports[0].Up || ps.Ports[0].Mtu != 1496 || ps.Ports[0].Vlan != c.vlan || ps.Ports[0].VlanInner != c.qin || ps.Ports[0].Parent != "r0" {
			t.Fatalf("%s: %v, %v", c.name, ps, err)
		}
		// Untagged in, tagged out.
		ip(t, l.server, "route replace "+c.dst+" via 10.0.2.1")
		l.server.Command("ping", "-n", "-c", "1", "-W", "1", c.dst).Run()
		// Tagged in, untagged out.
		wire, srv := l.client.Raw(t, "c0"), l.server.Raw(t, "s0")
		f := append([]byte{}, r0.port.link.MAC[:]...)
		f = append(f, wire.MAC...)
		tags, err := hex.DecodeString(c.tags + "0800")
		if err != nil {
			t.Fatal(err)
		}
		h := packet.IPv4(make([]byte, 28))
		h[0], h[8], h[9] = 0x45, 64, packet.ProtoUDP
		h[3] = 28
		h.SetSrc([4]byte{10, 7, 0, 2})
		h.SetDst([4]byte{10, 0, 2, 2})
		h.SetSum()
		if err := wire.Send(append(append(f, tags...), h...)); err != nil {
			t.Fatal(err)
		}
		if got := srv.RecvMatch(3*time.Second, func(b []byte) bool { return len(b) >= 42 && b[12] == 8 && b[13] == 0 && b[23] == packet.ProtoUDP }); got == nil {
			t.Errorf("%s: the tagged packet did not arrive", c.name)
		}
		wait(t, "counters of "+c.name, func() error {
			ps, err := r.ListPorts(ctx, &v1.ListPortsRequest{Names: []string{c.name}})
			if err == nil && (ps.Ports[0].RxPackets != 1 || ps.Ports[0].TxPackets == 0) {
				err = fmt.Errorf("%v", ps)
			}
			return err
		})
	}
	s.LinkRemoved(link)
	if _, err := r.ListPorts(ctx, &v1.ListPortsRequest{Names: []string{"r0.7"}}); err == nil {
		t.Error("a VLAN that was removed is still there")
	}
}

// TestHosts: a memif port that a TAP shows to the kernel, whose peer is a router with the
// built-in host there and a kernel's port behind it.
func TestHosts(t *testing.T) {
	l := newLab(t)
	far := testnet.New(t)
	testnet.Veth(t, l.server, "s1", far, "f0")
	ip(t, l.server, "address add 10.0.6.1/24 dev s1", "address add 2001:db8:6::1/64 dev s1")
	ip(t, far, "address add 10.0.6.2/24 dev f0", "address add 2001:db8:6::2/64 dev f0",
		"route add default via 10.0.6.1", "-6 route add default via 2001:db8:6::1")
	sock := t.TempDir() + "/m.sock"
	r := start(t, l.router, fmt.Sprintf("ports: [{name: r0}, {name: m0, driver: memif, socket: %s, host: tap, addresses: [10.0.5.1/24, '2001:db8:5::1/64']}]\n", sock))
	b := start(t, l.server, fmt.Sprintf(`
ports:
  - {name: s1}
  - {name: m1, driver: memif, socket: %s, role: client, host: builtin, addresses: [10.0.5.2/24, '2001:db8:5::2/64']}
routes: [{to: default, via: 10.0.5.1}, {to: '::/0', via: '2001:db8:5::1'}]
`, sock))
	up(t, r, "m0")
	up(t, b, "m1")
	ping(t, l.router, "10.0.5.2", 2) // from the kernel, by the TAP
	ping(t, l.router, "2001:db8:5::2", 2)
	ping(t, l.client, "10.0.5.2", 3)
	ping(t, l.client, "2001:db8:5::2", 3)
	ping(t, l.client, "10.0.5.1", 1)
	ip(t, l.router, "route add 10.0.6.0/24 via 10.0.5.2", "route add 2001:db8:6::/64 via 2001:db8:5::2")
	pings(t, l.client, "10.0.6.2", true)
	ping(t, l.client, "10.0.6.2", 3)
	ping(t, l.client, "2001:db8:6::2", 3)
	n, err := b.ListNeighbours(context.Background(), &v1.ListNeighboursRequest{Port: "m1"})
	if err != nil || len(n.Neighbours) == 0 || n.Neighbours[0].Source != "learned" || n.Neighbours[0].Mac == "" {
		t.Errorf("neighbours %v, %v", n, err)
	}
	ps, err := r.ListPorts(context.Background(), &v1.ListPortsRequest{Names: []string{"m0"}})
	if err != nil || ps.Ports[0].Host != "tap" || len(ps.Ports[0].Addresses) < 2 {
		t.Errorf("port %v, %v", ps, err)
	}
	// Link-local addresses of the box, too.
	for _, a := range ps.Ports[0].Addresses {
		if p := netip.MustParsePrefix(a); p.Addr().IsLinkLocalUnicast() {
			x, err := r.ListRoutes(context.Background(), &v1.ListRoutesRequest{Address: p.Addr().String()})
			if err != nil || len(x.Routes) != 1 || x.Routes[0].Type != "local" {
				t.Errorf("route to %s: %v, %v", p, x, err)
			}
		}
	}
}

// up waits for a port's link.
func up(t *testing.T, r *Router, name string) {
	t.Helper()
	wait(t, name, func() error {
		ps, err := r.ListPorts(context.Background(), &v1.ListPortsRequest{Names: []string{name}})
		if err == nil && !ps.Ports[0].Up {
			err = fmt.Errorf("%v", ps)
		}
		return err
	})
}

// TestVlans: tagged interfaces, single and double, between two routers whose ports no kernel sees.
func TestVlans(t *testing.T) {
	l := newLab(t)
	sock := t.TempDir() + "/m.sock"
	conf := func(first, name, role string, n int, more string) string {
		return fmt.Sprintf(`
ports:
  %s
  - name: %s
    driver: memif
    socket: %s
    role: %s
    host: builtin
    addresses: [10.0.5.%d/24]
    vlans:
      - {id: 100, addresses: [10.1.5.%d/24, '2001:db8:15::%d/64']}
      - {id: 200, inner: 30, name: %sq, addresses: [10.2.5.%d/24]}
%s`, first, name, sock, role, n, n, n, name, n, more)
	}
	a := start(t, l.router, conf("- name: r0", "m0", "server", 1, "routes: [{to: 10.1.9.0/24, via: 10.1.5.2}]\n"))
	b := start(t, l.server, conf("", "m1", "client", 2, "routes: [{to: default, via: 10.2.5.1}, {to: '::/0', via: '2001:db8:15::1'}]\n"))
	up(t, a, "m0.100")
	up(t, b, "m1q")
	ping(t, l.client, "10.0.5.2", 2)
	ping(t, l.client, "10.1.5.2", 2)
	ping(t, l.client, "10.2.5.2", 2)
	ping(t, l.client, "2001:db8:15::2", 2)
	ps, err := a.ListPorts(context.Background(), &v1.ListPortsRequest{})
	if err != nil || len(ps.Ports) != 4 {
		t.Fatalf("ports %v, %v", ps, err)
	}
	q := ps.Ports[3]
	if q.Name != "m0q" || q.Parent != "m0" || q.Vlan != 200 || q.VlanInner != 30 || q.TxPackets < 2 || q.RxPackets < 2 {
		t.Errorf("QinQ interface %v", q)
	}
	// One goes, the others stay.
	y, err := a.GetConfig(context.Background(), &v1.GetConfigRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := config.Parse("", []byte(y.Yaml))
	if err != nil {
		t.Fatal(err)
	}
	c.Ports[1].Vlans = c.Ports[1].Vlans[1:]
	c.Routes = nil
	apply(t, a, string(c.YAML()), 0)
	ping(t, l.client, "10.2.5.2", 2)
	pings(t, l.client, "10.1.5.2", false)
	if r, err := a.ListRoutes(context.Background(), &v1.ListRoutesRequest{Address: "10.1.9.1"}); err != nil || len(r.Routes) != 0 {
		t.Errorf("a route without its interface: %v, %v", r, err)
	}
}
