package e2e

import (
	"fmt"
	"strings"
	"testing"

	"millrace/internal/testnet"
)

// TestFirstPacket: nobody knows any neighbour, and yet nothing is lost.
func TestFirstPacket(t *testing.T) {
	l := newLine(t)
	run(t, l.router, "r0", "r1")
	ping(t, l.client, server4)
	ping(t, l.client, server6)
	// The kernel's own addresses go on answering, near and far.
	for _, a := range []string{routerC4, routerS4, routerC6, routerS6} {
		ping(t, l.client, a)
	}
}

// hops runs traceroute and returns its lines that have an address. Probes go one at a time: Linux
// answers six of a burst with ICMP errors, which need not be those of the nearest hops.
func hops(t *testing.T, ns *testnet.NS, to string, opts ...string) []string {
	t.Helper()
	need(t, "traceroute")
	out, code := command(t, ns, append(append([]string{"traceroute", "-n", "-q", "1", "-N", "1", "-w", "3"}, opts...), to)...)
	var l []string
	for _, line := range strings.Split(out, "\n")[1:] {
		if f := strings.Fields(line); len(f) > 1 {
			l = append(l, f[1])
		}
	}
	if code != 0 {
		t.Fatalf("traceroute %s: %s", to, out)
	}
	return l
}

func TestTraceroute(t *testing.T) {
	l := newLine(t)
	run(t, l.router, "r0", "r1")
	for _, c := range []struct{ to, by, opt string }{
		{server4, routerC4, "-U"}, {server6, routerC6, "-U"}, {server4, routerC4, "-I"}, {server6, routerC6, "-I"}, {server4, routerC4, "-T"},
	} {
		if got, want := fmt.Sprint(hops(t, l.client, c.to, c.opt)), fmt.Sprint([]string{c.by, c.to}); got != want {
			t.Errorf("traceroute %s %s: %s, want %s", c.opt, c.to, got, want)
		}
	}
}

// TestPathMTU: the link behind the router takes less than the one before it.
func TestPathMTU(t *testing.T) {
	need(t, "tracepath")
	l := newLine(t)
	ip(t, l.router, "link set r1 mtu 1400")
	ip(t, l.server, "link set s0 mtu 1400")
	run(t, l.router, "r0", "r1")
	for _, to := range []string{server4, server6} {
		out, _ := command(t, l.client, "tracepath", "-n", "-m", "4", to)
		if !strings.Contains(out, "Resume: pmtu 1400 ") {
			t.Errorf("tracepath did not learn the MTU of 1400:\n%s", out)
		}
	}
	// Without DF the router cuts, and the server puts together.
	ip(t, l.client, "route flush cache")
	ping(t, l.client, server4, "-M", "dont", "-s", "1472")
	ping(t, l.client, server4, "-M", "dont", "-s", "9000") // fragments of fragments
	// IPv6 is never cut on the way: the first is answered by an error, and the client cuts then.
	ip(t, l.client, "-6 route flush cache")
	if out, _ := command(t, l.client, "ping", "-n", "-c", "1", "-W", "3", "-M", "do", "-s", "1452", server6); !strings.Contains(out, "mtu=1400") && !strings.Contains(out, "mtu: 1400") {
		t.Errorf("no packet too big for IPv6:\n%s", out)
	}
	ping(t, l.client, server6, "-s", "1452")
	ping(t, l.client, server6, "-s", "5000")
}

func TestIperf(t *testing.T) {
	long(t)
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	for _, to := range []string{server4, server6} {
		if x := runIperf(t, l.client, l.server, to, "-t", "1"); x.End.SumReceived.Bytes < 1e6 {
			t.Errorf("TCP to %s: %.0f bytes", to, x.End.SumReceived.Bytes)
		}
		if x := runIperf(t, l.client, l.server, to, "-t", "1", "-R"); x.End.SumReceived.Bytes < 1e6 {
			t.Errorf("TCP from %s: %.0f bytes", to, x.End.SumReceived.Bytes)
		}
		if x := runIperf(t, l.client, l.server, to, "-t", "1", "-u", "-b", "50M"); x.End.Sum.Packets < 1000 || x.End.Sum.Lost > x.End.Sum.Packets/2 {
			t.Errorf("UDP to %s: %+v", to, x.End.Sum)
		}
		// Datagrams that the client has to cut.
		if x := runIperf(t, l.client, l.server, to, "-t", "1", "-u", "-b", "50M", "-l", "8000"); x.End.Sum.Packets < 100 || x.End.Sum.Lost > x.End.Sum.Packets/2 {
			t.Errorf("fragmented UDP to %s: %+v", to, x.End.Sum)
		}
	}
	r.noLeaks()
}

func TestJumbo(t *testing.T) {
	l := newLine(t, "mtu", "9000")
	r := run(t, l.router, "r0", "r1")
	if m := r.port("r0").Mtu; m != 9000 {
		t.Errorf("MTU %d", m)
	}
	ping(t, l.client, server4, "-M", "do", "-s", "8000")
	ping(t, l.client, server6, "-M", "do", "-s", "8000")
	ping(t, l.client, server4, "-M", "do", "-s", "8972") // just what fits
	if testing.Short() {
		return
	}
	for _, to := range []string{server4, server6} {
		if x := runIperf(t, l.client, l.server, to, "-t", "1"); x.End.SumReceived.Bytes < 1e6 {
			t.Errorf("TCP to %s: %.0f bytes", to, x.End.SumReceived.Bytes)
		}
	}
	// From a jumbo link to an ordinary one.
	ip(t, l.router, "link set r1 mtu 1500")
	ip(t, l.server, "link set s0 mtu 1500")
	eventually(t, "the new MTU", func() error {
		if m := r.port("r1").Mtu; m != 1500 {
			return fmt.Errorf("%d", m)
		}
		return nil
	})
	ping(t, l.client, server4, "-M", "dont", "-s", "8000")
	if x := runIperf(t, l.client, l.server, server4, "-t", "1"); x.End.SumReceived.Bytes < 1e6 {
		t.Errorf("TCP to the smaller MTU: %.0f bytes", x.End.SumReceived.Bytes)
	}
}
