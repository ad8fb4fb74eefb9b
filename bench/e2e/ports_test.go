package e2e

import (
	"fmt"
	"path/filepath"
	"testing"

	"millrace/internal/testnet"
)

// TestAFPacket: the same service where there is no XDP.
func TestAFPacket(t *testing.T) {
	l := newLine(t)
	r := runYAML(t, l.router, "ports: [{name: r0, driver: afpacket}, {name: r1, driver: afpacket}]\n")
	if d := r.port("r0").Driver; d != "afpacket" {
		t.Errorf("driver %s", d)
	}
	ping(t, l.client, server4)
	ping(t, l.client, server6)
	ping(t, l.client, routerS4)
	ping(t, l.client, server4, "-s", "4000")
	ping(t, l.client, server6, "-s", "4000")
	if testing.Short() {
		return
	}
	for _, to := range []string{server4, server6} {
		if x := runIperf(t, l.client, l.server, to, "-t", "1"); x.End.SumReceived.Bytes < 1e6 {
			t.Errorf("TCP to %s: %.0f bytes", to, x.End.SumReceived.Bytes)
		}
		if x := runIperf(t, l.client, l.server, to, "-t", "1", "-u", "-b", "20M"); x.End.Sum.Packets < 500 || x.End.Sum.Lost > x.End.Sum.Packets/2 {
			t.Errorf("UDP to %s: %+v", to, x.End.Sum)
		}
	}
	transfer(t, l.client, l.server, server4, 10e6)
}

// TestMemif: two routers joined by shared memory, each with a TAP that shows the port to its kernel.
func TestMemif(t *testing.T) {
	client, r1, r2, server := testnet.New(t), testnet.New(t), testnet.New(t), testnet.New(t)
	testnet.Veth(t, r1, "r0", client, "c0")
	testnet.Veth(t, r2, "r1", server, "s0")
	ip(t, r1, "addr add "+routerC4+"/24 dev r0", "addr add "+routerC6+"/64 dev r0")
	ip(t, r2, "addr add "+routerS4+"/24 dev r1", "addr add "+routerS6+"/64 dev r1")
	ip(t, client, "addr add "+client4+"/24 dev c0", "addr add "+client6+"/64 dev c0", "route add default via "+routerC4, "route add default via "+routerC6)
	ip(t, server, "addr add "+server4+"/24 dev s0", "addr add "+server6+"/64 dev s0", "route add default via "+routerS4, "route add default via "+routerS6)
	socket := filepath.Join(filepath.Dir(file(t, "x", "")), "m.sock")
	conf := func(port, role string, me, peer int, net4, net6 string) string {
		return fmt.Sprintf(`
ports:
  - name: %s
  - {name: m0, driver: memif, socket: %s, role: %s, host: tap, addresses: [10.0.9.%d/24, "2001:db8:9::%d/64"]}
routes:
  - {to: %s, via: 10.0.9.%d}
  - {to: "%s", via: "2001:db8:9::%d"}
`, port, socket, role, me, me, net4, peer, net6, peer)
	}
	a := launch(t, r1, "--config", file(t, "a.yaml", conf("r0", "server", 1, 2, "10.0.2.0/24", "2001:db8:2::/64")))
	b := run(t, r2, "--config", file(t, "b.yaml", conf("r1", "client", 2, 1, "10.0.1.0/24", "2001:db8:1::/64")))
	pings(t, client, server4)
	pings(t, client, server6)
	ping(t, client, server4)
	ping(t, client, server6)
	// What the kernels themselves send takes the kernels' routes.
	ip(t, r1, "route add 10.0.2.0/24 via 10.0.9.2", "route add 2001:db8:2::/64 via 2001:db8:9::2")
	ip(t, r2, "route add 10.0.1.0/24 via 10.0.9.1", "route add 2001:db8:1::/64 via 2001:db8:9::1")
	for _, to := range []string{"10.0.9.1", "10.0.9.2", "2001:db8:9::1", "2001:db8:9::2"} {
		ping(t, client, to)
	}
	ping(t, r1, "10.0.9.2") // from the one kernel to the other
	ping(t, r2, "2001:db8:9::1")
	if !testing.Short() {
		transfer(t, client, server, server4, 10e6)
	}
	a.noLeaks()
	b.noLeaks()
	a.stop()
}
