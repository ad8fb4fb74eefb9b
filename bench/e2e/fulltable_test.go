package e2e

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "millrace/control/api/v1"
	"millrace/internal/testnet"
)

// fullTable is how many routes there are.
var fullTable = tableSize()

// prefixes4 are n prefixes of IPv4, all /24, from 32.0.0.0 on.
func prefix4(i int) string { return fmt.Sprintf("%d.%d.%d.0/24", 32+i>>16, i>>8&255, i&255) }

// host4 is an address in prefix4(i).
func host4(i int) string { return fmt.Sprintf("%d.%d.%d.9", 32+i>>16, i>>8&255, i&255) }

// fork is client c0 - r0 router, whose r1 and r2 lead to two servers that both have all destinations.
type fork struct {
	client, router *testnet.NS
	server         [2]*testnet.NS
}

// Addresses of a fork: the routers' ends are .1.
const (
	leftServer4, rightServer4 = "10.0.2.2", "10.0.3.2"
	leftServer6, rightServer6 = "2001:db8:2::2", "2001:db8:3::2"
)

func newFork(t *testing.T) *fork {
	t.Helper()
	f := &fork{testnet.New(t), testnet.New(t), [2]*testnet.NS{testnet.New(t), testnet.New(t)}}
	testnet.Veth(t, f.router, "r0", f.client, "c0")
	ip(t, f.router, "addr add "+routerC4+"/24 dev r0", "addr add "+routerC6+"/64 dev r0")
	ip(t, f.client, "addr add "+client4+"/24 dev c0", "addr add "+client6+"/64 dev c0",
		"route add default via "+routerC4, "route add default via "+routerC6)
	for k, s := range f.server {
		testnet.Veth(t, f.router, fmt.Sprint("r", k+1), s, "s0")
		ip(t, f.router, fmt.Sprintf("addr add 10.0.%d.1/24 dev r%d", k+2, k+1), fmt.Sprintf("addr add 2001:db8:%d::1/64 dev r%d", k+2, k+1))
		ip(t, s, fmt.Sprintf("addr add 10.0.%d.2/24 dev s0", k+2), fmt.Sprintf("addr add 2001:db8:%d::2/64 dev s0", k+2),
			fmt.Sprintf("route add default via 10.0.%d.1", k+2), fmt.Sprintf("route add default via 2001:db8:%d::1", k+2),
			"route add local 32.0.0.0/3 dev lo") // every destination answers
	}
	f.router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
	return f
}

// clean: an audit finds no fault.
func (r *router) clean() {
	r.t.Helper()
	var out string
	end := time.Now().Add(90 * time.Second)
	for {
		var code int
		if out, code = r.try("audit", "--quiet"); code == 0 {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("the audit finds faults:\n%.3000s", out)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// routes waits until the router has at least n IPv4 routes, and returns how long that took.
func (r *router) routes(n int) time.Duration {
	r.t.Helper()
	start := time.Now()
	for {
		s, err := r.api.GetStatus(r.t.Context(), &v1.GetStatusRequest{})
		if err == nil && s.RoutesIpv4 >= uint64(n) {
			return time.Since(start)
		}
		if time.Since(start) > 4*time.Minute {
			r.t.Fatalf("%d routes did not arrive: %v, %v", n, s, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// batch runs a file of `ip` commands.
func batch(t *testing.T, ns *testnet.NS, lines func(line func(format string, a ...any))) {
	t.Helper()
	var b strings.Builder
	lines(func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) })
	path := file(t, "batch", b.String())
	defer os.Remove(path)
	if out, code := command(t, ns, "ip", "-batch", path); code != 0 {
		t.Fatalf("ip -batch: %.500s", out)
	}
}

// TestFullTable: all routes by BGP through a routing daemon and the kernel, from two neighbours of equal worth; one of which is
// then lost, in each of the ways that there are. What is lost is counted, and the audit is clean.
func TestFullTable(t *testing.T) {
	long(t)
	need(t, "bird", "birdc")
	t.Run("BIRD", func(t *testing.T) {
		testFullTable(t, func(f *fork) (all func() error) {
			inner := bird(t, f.router, `
router id 10.0.1.1;
protocol kernel k4 { ipv4 { export all; }; scan time 600; merge paths on; }
protocol bgp left { local 10.0.2.1 as 65001; neighbor 10.0.2.2 as 65002; hold time 9; connect delay time 1;
  ipv4 { import all; export none; }; }
protocol bgp right { local 10.0.3.1 as 65001; neighbor 10.0.3.2 as 65002; hold time 9; connect delay time 1;
  ipv4 { import all; export none; }; }
`)
			return func() error {
				if out := inner("show", "route", "count"); !strings.Contains(out, fmt.Sprint(2*fullTable)) {
					return errors.New(out)
				}
				return nil
			}
		})
	})
	t.Run("FRR", func(t *testing.T) {
		testFullTable(t, func(f *fork) (all func() error) {
			inner := testnet.NewFRR(t, f.router)
			inner.Start("zebra", "")
			inner.Start("bgpd", `
router bgp 65001
 bgp router-id 10.0.1.1
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 10.0.2.2 remote-as 65002
 neighbor 10.0.3.2 remote-as 65002
 neighbor 10.0.2.2 timers 3 9
 neighbor 10.0.3.2 timers 3 9
 neighbor 10.0.2.2 timers connect 1
 neighbor 10.0.3.2 timers connect 1
`)
			return func() error {
				out := inner.Vtysh("show bgp ipv4 unicast summary")
				if strings.Count(out, fmt.Sprint(fullTable)) < 2 {
					return errors.New(out)
				}
				return nil
			}
		})
	})
}

func testFullTable(t *testing.T, start func(*fork) (all func() error)) {
	f := newFork(t)
	r := run(t, f.router, "r0", "r1", "r2")
	var routes strings.Builder
	for i := range fullTable {
		fmt.Fprintf(&routes, "route %s blackhole;\n", prefix4(i))
	}
	var ask [2]func(...string) string
	for k, s := range f.server {
		ask[k] = bird(t, s, fmt.Sprintf(`
router id 10.0.%d.2;
protocol static all4 { ipv4; %s }
protocol bgp up { local 10.0.%[1]d.2 as 65002; neighbor 10.0.%[1]d.1 as 65001; hold time 9; connect delay time 1;
  ipv4 { import none; export all; next hop self; }; }
`, k+2, routes.String()))
	}
	all := start(f)
	t.Logf("%d routes after %v", fullTable, r.routes(fullTable).Round(10*time.Millisecond))
	end := time.Now().Add(4 * time.Minute)
	for err := all(); err != nil; err = all() {
		if time.Now().After(end) {
			t.Fatal("not everything came from both neighbours: ", err)
		}
		time.Sleep(time.Second)
	}
	r.clean()
	for _, i := range []int{0, 1, fullTable / 2, fullTable - 1} {
		ping(t, f.client, host4(i))
	}
	// withFlows does something while 64 flows run, and sees that every lost packet was counted somewhere.
	withFlows := func(what string, do func()) tally {
		t.Helper()
		missed := func() uint64 { return r.missed("r0", "r1", "r2") }
		sent := func() uint64 { return r.port("r1").TxPackets + r.port("r2").TxPackets }
		before, m, tx := r.counts(), missed(), sent()
		fl := newStreams(t, f.client, host4(77), f.server[:], 64, 200*time.Microsecond)
		time.Sleep(300 * time.Millisecond)
		start := time.Now()
		do()
		took := time.Since(start)
		time.Sleep(time.Second)
		x := fl.stop()
		m = missed() - m
		wire := int64(sent()-tx) - int64(x.sent-x.lost) // sent to a link that was just cut
		dropped := uint64(0)
		for k, n := range r.counts() {
			if n -= before[k]; n != 0 && !strings.HasPrefix(k, "icmp/") && k != "lookup/unresolved" {
				t.Logf("    %s %d", k, n)
				dropped += n
			}
		}
		t.Logf("%s: %d packets sent, %d lost: %d missed by busy ports, %d dropped, %d on a wire that was cut; %d late; flows at the left %d, at the right %d; the change took %v",
			what, x.sent, x.lost, m, dropped, max(0, wire), x.late, x.used[0], x.used[1], took.Round(time.Millisecond))
		if int64(x.lost) > int64(m+dropped)+max(0, wire) {
			t.Errorf("%s: %d packets lost, and only %d counted", what, x.lost, m+dropped)
		}
		if x.late+x.dup != 0 {
			t.Errorf("%s: %d packets out of order, %d twice", what, x.late, x.dup)
		}
		return x
	}
	// leads waits until the route to host4(i) leads to both servers, or only to the right one.
	leads := func(i int, both bool) {
		t.Helper()
		end := time.Now().Add(2 * time.Minute)
		for {
			out := r.do("show", "routes", host4(i))
			if strings.Contains(out, "via "+rightServer4+" ") && strings.Contains(out, "via "+leftServer4+" ") == both {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("the route to %s stays %s", host4(i), out)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	x := withFlows("both up", func() {})
	if x.used[0] < 16 || x.used[1] < 16 || x.used[0]+x.used[1] != 64 {
		t.Errorf("64 flows went to %v", x.used)
	}
	moved := func(y tally) {
		t.Helper()
		for k := range y.first {
			if y.last[k] != 1 {
				t.Errorf("flow %d ended at %d", k, y.last[k])
			}
		}
	}
	moved(withFlows("the left neighbour withdraws all routes", func() {
		ask[0]("disable", "up")
		leads(77, false)
		leads(fullTable-1, false)
	}))
	withFlows("the left neighbour is back", func() {
		ask[0]("enable", "up")
		leads(77, true)
		leads(fullTable-1, true)
	})
	r.clean()
	moved(withFlows("the left link fails under all routes", func() {
		ip(t, f.server[0], "link set s0 down")
		leads(fullTable-1, false)
	}))
	r.clean()
	r.noLeaks()
}

// tableSize is a quarter of a full table, for it takes minutes, or what MILLRACE_ROUTES says.
func tableSize() int {
	if n, err := strconv.Atoi(os.Getenv("MILLRACE_ROUTES")); err == nil {
		return n
	}
	return 1 << 18
}
