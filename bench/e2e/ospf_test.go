package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// cutWire is how many packets may be on a wire of 2,000 packets a second when it is cut, until the kernel tells: 50 ms.
const cutWire = 100

// TestOSPF: the router's BIRD learns a network from two neighbours of unequal cost, in both families, and the better one is lost in two ways, with
// UDP flows and a TCP transfer of iperf3 under way. What is lost is counted.
func TestOSPF(t *testing.T) {
	long(t)
	need(t, "bird", "birdc", "iperf3")
	f := newFork(t)
	for _, s := range f.server {
		ip(t, s, "route add local 203.0.113.0/24 dev lo", "-6 route add local 2001:db8:ff::/48 dev lo")
	}
	r := run(t, f.router, "r0", "r1", "r2")
	ospf := func(ifaces, stub string) string {
		return fmt.Sprintf(`
protocol ospf v2 o4 { ipv4 { import all; export none; }; area 0 { %s %s }; }
protocol ospf v3 o6 { ipv6 { import all; export none; }; area 0 { %[1]s %[3]s }; }
`, ifaces, strings.ReplaceAll(stub, "NET", "203.0.113.0/24"), strings.ReplaceAll(stub, "NET", "2001:db8:ff::/48"))
	}
	link := func(name string, cost int) string {
		return fmt.Sprintf(`interface "%s" { type ptp; hello 1; dead count 3; cost %d; };`, name, cost)
	}
	bird(t, f.router, "router id 10.0.1.1;\nprotocol kernel k4 { ipv4 { export all; }; }\nprotocol kernel k6 { ipv6 { export all; }; }\n"+
		ospf(link("r1", 10)+link("r2", 20), ""))
	var ask [2]func(...string) string
	for k, s := range f.server {
		ask[k] = bird(t, s, fmt.Sprintf("router id 10.0.%d.2;\n", k+2)+ospf(link("s0", 10), "stubnet NET;"))
	}
	leads := func(to, dev string) {
		t.Helper()
		eventually(t, "the route to "+to+" by "+dev, func() error {
			if out, _ := r.try("show", "routes", to); !strings.Contains(out, "dev "+dev+" ") || !strings.Contains(out, "bird") {
				return errors.New(out)
			}
			return nil
		})
	}
	both := func(dev string) {
		t.Helper()
		leads("203.0.113.9", dev)
		leads("2001:db8:ff::9", dev)
	}
	both("r1")
	pings(t, f.client, "203.0.113.9")
	pings(t, f.client, "2001:db8:ff::9")
	pings(t, f.client, rightServer4)
	r.clean()

	// TCP to an address of the right neighbour, which is reached all the time.
	background(t, f.server[1], "iperf3", "-s", "-1")
	listening(t, f.server[1], "5201")
	tcp, report := background(t, f.client, "iperf3", "-c", rightServer4, "-t", "15", "-b", "50M")
	_, monitor := background(t, f.router, "ip", "-ts", "-o", "monitor", "route", "link")
	ports := []string{"r0", "r1", "r2"}
	for _, c := range []struct {
		what    string
		do      func()
		dev     string
		at      int
		harmful bool // packets are lost until the network has noticed
	}{
		{"the better neighbour's daemon leaves", func() { ask[0]("disable", "o4"); ask[0]("disable", "o6") }, "r2", 1, false},
		{"it is back", func() { ask[0]("enable", "o4"); ask[0]("enable", "o6") }, "r1", 0, false},
		{"the better link fails", func() { ip(t, f.server[0], "link set s0 down") }, "r2", 1, true},
	} {
		before, missed, told := r.counts(), r.missed(ports...), len(monitor.String())
		tos := []string{"203.0.113.9", "2001:db8:ff::9"}
		var fl []*streams
		for _, to := range tos {
			fl = append(fl, newStreams(t, f.client, to, f.server[:], 16, time.Millisecond))
		}
		time.Sleep(300 * time.Millisecond)
		start := time.Now()
		c.do()
		both(c.dev)
		took := time.Since(start)
		time.Sleep(300 * time.Millisecond)
		lost := 0
		for i, to := range tos {
			x := fl[i].stop()
			lost += x.lost
			t.Logf("%s, %s: %d packets sent, %d lost, %d late; converged in %v", c.what, to, x.sent, x.lost, x.late, took.Round(time.Millisecond))
			if x.late+x.dup != 0 {
				t.Errorf("%s, %s: %d packets out of order, %d twice", c.what, to, x.late, x.dup)
			}
			for k := range x.last {
				if x.last[k] != c.at {
					t.Errorf("%s, %s: flow %d ended at %d", c.what, to, k, x.last[k])
				}
			}
		}
		for k, n := range r.counts() {
			if n -= before[k]; n != 0 {
				t.Logf("    %s %d", k, n)
				if !strings.HasPrefix(k, "icmp/") && k != "lookup/unresolved" {
					if lost -= int(n); !c.harmful {
						t.Errorf("%s: %d packets dropped: %s", c.what, n, k)
					}
				}
			}
		}
		m := int(r.missed(ports...) - missed)
		t.Logf("    missed by busy ports: %d; the kernel's routes and links:\n%s", m, monitor.String()[told:])
		if lost -= m; lost > 0 && !c.harmful || lost > cutWire {
			t.Errorf("%s: %d packets were lost that no counter has", c.what, lost)
		}
	}
	if err := tcp.Wait(); err != nil {
		t.Errorf("iperf3: %v\n%s", err, report)
	}
	r.clean()
	r.noLeaks()
}
