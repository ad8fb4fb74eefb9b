package router

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	v1 "millrace/control/api/v1"
	"millrace/internal/testnet"
)

// routeTo is the route that packets to an address take, in words.
func routeTo(t *testing.T, r *Router, addr string) string {
	t.Helper()
	l, err := r.ListRoutes(context.Background(), &v1.ListRoutesRequest{Address: addr})
	if err != nil {
		t.Fatal(err)
	}
	s := "none"
	for _, x := range l.Routes {
		s = fmt.Sprintf("%s %s %s %s", x.Type, x.Prefix, x.Source, x.Protocol)
		for _, h := range x.NextHops {
			s += fmt.Sprintf(" %s@%s", h.Address, h.Port)
		}
		if x.Stale {
			s += " stale"
		}
	}
	return s
}

func wantRoute(t *testing.T, r *Router, addr, want string) {
	t.Helper()
	wait(t, "the route to "+addr, func() error {
		if got := routeTo(t, r, addr); got != want {
			return fmt.Errorf("got %q, want %q", got, want)
		}
		return nil
	})
}

const zebraConf = "fpm address 127.0.0.1 port 2620\n"

// FRR feeds the router by FPM alone; killed with -9 under traffic and started again it costs no packet.
func TestFRR(t *testing.T) {
	l := newLab(t)
	f := testnet.NewFRR(t, l.router)
	ip(t, l.router, "route add 198.18.0.0/24 via 10.0.2.9")
	ip(t, l.server, "address add 203.0.113.1/32 dev lo", "address add 2001:db8:f::1/128 dev lo", "address add 10.0.2.3/24 dev s0")
	r := start(t, l.router, "ports: [{name: r0}, {name: r1}]\nkernel: {follow: false}\nfpm: {listen: 127.0.0.1:2620, stale: 1m, quiet: 2s}\n")
	pings(t, l.client, "203.0.113.1", false)
	f.Start("zebra", zebraConf, "-M", "dplane_fpm_nl")
	f.Start("staticd", "ip route 203.0.113.0/24 10.0.2.2\nip route 198.51.100.0/24 10.0.2.2\nip route 198.18.7.0/24 blackhole\nipv6 route 2001:db8:f::/48 2001:db8:2::2\n")
	wantRoute(t, r, "203.0.113.1", "unicast 203.0.113.0/24 fpm static 10.0.2.2@r1")
	wantRoute(t, r, "198.18.7.1", "blackhole 198.18.7.0/24 fpm static")
	wantRoute(t, r, "198.18.0.1", "none") // the kernel's own, which is not followed, and not zebra's to tell
	ping(t, l.client, "203.0.113.1", 3)
	ping(t, l.client, "2001:db8:f::1", 3)

	f.Vtysh("configure terminal", "ip route 203.0.113.0/24 10.0.2.3")
	wantRoute(t, r, "203.0.113.1", "unicast 203.0.113.0/24 fpm static 10.0.2.2@r1 10.0.2.3@r1")
	f.Vtysh("configure terminal", "no ip route 203.0.113.0/24 10.0.2.2")
	wantRoute(t, r, "203.0.113.1", "unicast 203.0.113.0/24 fpm static 10.0.2.3@r1")
	ping(t, l.client, "203.0.113.1", 1)

	// Under traffic.
	out := make(chan string, 1)
	go func() {
		b, _ := l.client.Command("ping", "-n", "-q", "-i", "0.01", "-c", "600", "-W", "2", "203.0.113.1").CombinedOutput()
		out <- string(b)
	}()
	time.Sleep(500 * time.Millisecond)
	f.Kill("zebra")
	f.Kill("staticd")
	wantRoute(t, r, "203.0.113.1", "unicast 203.0.113.0/24 fpm static 10.0.2.3@r1 stale")
	wantRoute(t, r, "198.51.100.1", "unicast 198.51.100.0/24 fpm static 10.0.2.2@r1 stale")
	ip(t, l.router, "route del 198.51.100.0/24") // zebra would find it in the kernel and call it its own
	f.Start("zebra", zebraConf, "-M", "dplane_fpm_nl")
	f.Start("staticd", "ip route 203.0.113.0/24 10.0.2.3\n")
	wantRoute(t, r, "203.0.113.1", "unicast 203.0.113.0/24 fpm static 10.0.2.3@r1")
	wantRoute(t, r, "198.51.100.1", "none") // nobody confirms it
	if s := <-out; !strings.Contains(s, "600 packets transmitted, 600 received, 0% packet loss") {
		t.Error(s)
	}
	s, err := r.GetFPM(context.Background(), &v1.GetFPMRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Clients) != 1 || len(s.Ended) != 1 || len(s.Stale) != 0 || s.Connections != 2 || s.Total.Invalid+s.Total.Tables != 0 || s.Total.Kernel == 0 {
		t.Errorf("%v", s)
	}
	f.Vtysh("configure terminal", "no ip route 203.0.113.0/24 10.0.2.3")
	wantRoute(t, r, "203.0.113.1", "none")
}

// Without next-hop objects, and with the kernel followed, whose route to the same prefix goes first.
func TestFRRBesideKernel(t *testing.T) {
	l := newLab(t)
	f := testnet.NewFRR(t, l.router)
	r := start(t, l.router, "ports: [{name: r0}, {name: r1}]\nfpm: {listen: 127.0.0.1:2620}\n")
	f.Start("zebra", "no fpm use-next-hop-groups\n"+zebraConf, "-M", "dplane_fpm_nl")
	f.Start("staticd", "ip route 203.0.113.0/24 10.0.2.2\nip route 203.0.113.0/24 10.0.1.2\n")
	wantRoute(t, r, "203.0.113.1", "unicast 203.0.113.0/24 kernel 196 10.0.1.2@r0 10.0.2.2@r1")
	wait(t, "the daemon's route beside it", func() error {
		x, err := r.ListRoutes(context.Background(), &v1.ListRoutesRequest{Source: "fpm"})
		if err == nil && (len(x.Routes) != 1 || !x.Routes[0].Unused || len(x.Routes[0].NextHops) != 2) {
			err = fmt.Errorf("%v", x)
		}
		return err
	})
}

// What the configuration says about FPM can change while the router runs.
func TestFPMConfiguration(t *testing.T) {
	ns := testnet.New(t)
	const ports = "ports: [{name: m0, driver: mem, socket: w, addresses: [10.0.1.1/24]}]\n"
	r := start(t, ns, ports)
	apply := func(yaml string) error {
		_, err := r.ApplyConfig(context.Background(), &v1.ApplyConfigRequest{Yaml: yaml})
		return err
	}
	dial := func() (c net.Conn, err error) {
		ns.Do(func() { c, err = net.Dial("tcp", "127.0.0.1:2620") })
		return c, err
	}
	if _, err := dial(); err == nil {
		t.Fatal("something listens")
	}
	if err := apply(ports + "fpm: {listen: 127.0.0.1:2620}\n"); err != nil {
		t.Fatal(err)
	}
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := apply(ports + "fpm: {listen: 192.0.2.77:2620, insecure: true}\n"); err == nil || !strings.Contains(err.Error(), "192.0.2.77:2620") {
		t.Error("listens on an address that there is not: ", err)
	}
	if c, err := dial(); err != nil {
		t.Error("the old configuration is not in force: ", err)
	} else {
		c.Close()
	}
	if err := apply(ports); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(); err == nil {
		t.Error("still listens")
	}
}
