package e2e

import (
	"fmt"
	"testing"
	"time"

	"millrace/internal/testnet"
)

// newFan is client c0 - r0 router, whose r1 to rN lead to servers 10.0.(k+1).2 that all have 203.0.113.0/24 and 2001:db8:ff::/48.
func newFan(t *testing.T, n int) (client, router *testnet.NS, servers []*testnet.NS) {
	t.Helper()
	client, router = testnet.New(t), testnet.New(t)
	testnet.Veth(t, router, "r0", client, "c0")
	ip(t, router, "addr add "+routerC4+"/24 dev r0", "addr add "+routerC6+"/64 dev r0")
	ip(t, client, "addr add "+client4+"/24 dev c0", "addr add "+client6+"/64 dev c0",
		"route add default via "+routerC4, "route add default via "+routerC6)
	for k := range n {
		s := testnet.New(t)
		testnet.Veth(t, router, fmt.Sprint("r", k+1), s, "s0")
		ip(t, router, fmt.Sprintf("addr add 10.0.%d.1/24 dev r%d", k+2, k+1), fmt.Sprintf("addr add 2001:db8:%d::1/64 dev r%d", k+2, k+1))
		ip(t, s, fmt.Sprintf("addr add 10.0.%d.2/24 dev s0", k+2), fmt.Sprintf("addr add 2001:db8:%d::2/64 dev s0", k+2),
			fmt.Sprintf("route add default via 10.0.%d.1", k+2), fmt.Sprintf("route add default via 2001:db8:%d::1", k+2),
			"route add local 203.0.113.0/24 dev lo", "-6 route add local 2001:db8:ff::/48 dev lo")
		servers = append(servers, s)
	}
	router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0", "net.ipv6.route.skip_notify_on_dev_down=0")
	return client, router, servers
}

// chiSquare is the statistic of observed counts against equal shares.
func chiSquare(counts []int) float64 {
	sum := 0
	for _, c := range counts {
		sum += c
	}
	want, x := float64(sum)/float64(len(counts)), 0.0
	for _, c := range counts {
		d := float64(c) - want
		x += d * d / want
	}
	return x
}

// TestMultipath: flows spread evenly over four ways, none takes two at a time, and when one of them goes only its flows move, to all
// the others; when it comes back, only as many as it takes move.
func TestMultipath(t *testing.T) {
	long(t)
	client, ns, servers := newFan(t, 4)
	r := run(t, ns, "r0", "r1", "r2", "r3", "r4")
	hops := func(family, prefix string, but int) string {
		s := fmt.Sprintf("%s route replace %s", family, prefix)
		for k := range servers {
			if k == but {
				continue
			}
			via := fmt.Sprintf("10.0.%d.2", k+2)
			if family == "-6" {
				via = fmt.Sprintf("2001:db8:%d::2", k+2)
			}
			s += " nexthop via " + via
		}
		return s
	}
	const n = 1024
	for _, c := range []struct{ family, prefix, to string }{
		{"-4", "203.0.113.0/24", "203.0.113.9"},
		{"-6", "2001:db8:ff::/48", "2001:db8:ff::9"},
	} {
		ip(t, ns, hops(c.family, c.prefix, -1))
		pings(t, client, c.to)
		for k := range servers { // all are known before flows begin
			via := fmt.Sprintf("10.0.%d.2", k+2)
			if c.family == "-6" {
				via = fmt.Sprintf("2001:db8:%d::2", k+2)
			}
			pings(t, client, via)
		}
		r.clean()
		for _, ch := range []struct {
			what       string
			gone       int
			down, back func()
		}{
			{"a route without it", 2, func() { ip(t, ns, hops(c.family, c.prefix, 2)) }, func() { ip(t, ns, hops(c.family, c.prefix, -1)) }},
			{"its link down", 1, func() { ip(t, servers[1], "link set s0 down") }, nil},
		} {
			fl := newStreams(t, client, c.to, servers, n, 100*time.Microsecond)
			time.Sleep(500 * time.Millisecond)
			ch.down()
			time.Sleep(500 * time.Millisecond)
			x := fl.stop()
			counts := make([]int, len(servers))
			moved := make([]int, len(servers))
			for k := range n {
				counts[x.first[k]]++
				switch {
				case x.first[k] == ch.gone && x.last[k] == ch.gone:
					t.Errorf("%s, %s: flow %d stayed", c.family, ch.what, k)
				case x.first[k] == ch.gone:
					moved[x.last[k]]++
				case x.first[k] != x.last[k]:
					t.Errorf("%s, %s: flow %d went from %d to %d", c.family, ch.what, k, x.first[k], x.last[k])
				}
			}
			t.Logf("%s, %s: flows by member %v, chi-square %.1f; moved %v; %d packets, %d lost, %d late", c.family, ch.what, counts, chiSquare(counts), moved, x.sent, x.lost, x.late)
			if v := chiSquare(counts); v > 30.7 { // one in a million, three degrees of freedom
				t.Errorf("%s: chi-square %v of %v", c.family, v, counts)
			}
			if x.late+x.dup != 0 {
				t.Errorf("%s, %s: %d packets out of order, %d twice", c.family, ch.what, x.late, x.dup)
			}
			if ch.back == nil {
				if x.lost > 200 { // 20 ms, until the kernel has told of the link
					t.Errorf("%s, %s: %d packets lost", c.family, ch.what, x.lost)
				}
				ip(t, servers[1], "link set s0 up", fmt.Sprintf("addr replace 2001:db8:3::2/64 dev s0"),
					"route replace default via 10.0.3.1", "route replace default via 2001:db8:3::1")
				ip(t, ns, "addr replace 2001:db8:3::1/64 dev r2")
				pings(t, client, "10.0.3.2")
				pings(t, client, "2001:db8:3::2")
				continue
			}
			if x.lost != 0 {
				t.Errorf("%s, %s: %d packets lost", c.family, ch.what, x.lost)
			}
			fl = newStreams(t, client, c.to, servers, n, 100*time.Microsecond)
			time.Sleep(500 * time.Millisecond)
			ch.back()
			time.Sleep(500 * time.Millisecond)
			y, took := fl.stop(), 0
			for k := range n {
				switch {
				case y.last[k] == y.first[k]:
				case y.last[k] == ch.gone:
					took++
				default:
					t.Errorf("%s, back: flow %d went from %d to %d", c.family, k, y.first[k], y.last[k])
				}
			}
			if took < n/8 || took > n*3/8 || y.lost != 0 || y.late != 0 {
				t.Errorf("%s, back: %d of %d flows came back, %d lost, %d late", c.family, took, n, y.lost, y.late)
			}
		}
	}
	r.noLeaks()
	r.clean()
}
