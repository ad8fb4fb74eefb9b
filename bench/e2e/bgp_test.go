package e2e

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"millrace/internal/testnet"
)

// bird starts a BIRD and returns what asks it.
func bird(t *testing.T, ns *testnet.NS, conf string) (ask func(args ...string) string) {
	t.Helper()
	need(t, "bird", "birdc")
	path := file(t, "bird.conf", "log stderr all;\nprotocol device {}\n"+conf)
	ctl := path + ".ctl"
	background(t, ns, "bird", "-f", "-c", path, "-s", ctl, "-P", path+".pid")
	return func(args ...string) string {
		out, _ := command(t, ns, append([]string{"birdc", "-s", ctl}, args...)...)
		return out
	}
}

// flood sends small UDP packets through the router, as fast as one thread can, until stop.
func flood(t *testing.T, from *testnet.NS, to string) (stop func() uint64) {
	t.Helper()
	var c net.Conn
	var err error
	from.Do(func() { c, err = net.Dial("udp", net.JoinHostPort(to, "9")) })
	if err != nil {
		t.Fatal(err)
	}
	var end atomic.Bool
	var n uint64
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 22)
		for !end.Load() {
			for range 64 {
				if _, err := c.Write(b); err == nil { // refused: the server's ICMP errors
					n++
				}
			}
		}
	}()
	return func() uint64 {
		end.Store(true)
		<-done
		c.Close()
		return n
	}
}

// TestBGP: a session of the router's BIRD stays up under transit traffic, and what it learns is forwarded to.
func TestBGP(t *testing.T) {
	long(t)
	l := newLine(t)
	// Behind the server; known by BGP alone.
	ip(t, l.server, "addr add 203.0.113.1/32 dev lo", "addr add 2001:db8:3::1/128 dev lo")
	r := run(t, l.router, "r0", "r1")
	session := func(local, remote string, as, peer int, static string) string {
		return fmt.Sprintf(`
router id %s;
protocol kernel k4 { ipv4 { export all; }; }
protocol kernel k6 { ipv6 { export all; }; }
%s
protocol bgp up {
  local %s as %d; neighbor %s as %d; hold time 6; connect delay time 1;
  ipv4 { import all; export where source = RTS_STATIC; };
  ipv6 { import all; export where source = RTS_STATIC; };
}`, local, static, local, as, remote, peer)
	}
	inner := bird(t, l.router, session(routerS4, server4, 65001, 65002, ""))
	outer := bird(t, l.server, session(server4, routerS4, 65002, 65001, `
protocol static s4 { ipv4; route 203.0.113.0/24 via 10.0.2.2; }
protocol static s6 { ipv6; route 2001:db8:3::/48 via 2001:db8:2::2; }`))
	up := func() error {
		if out := inner("show", "protocols", "up"); !strings.Contains(out, "Established") {
			return errors.New(out + outer("show", "protocols", "up"))
		}
		return nil
	}
	eventually(t, "the BGP session", up)
	pings(t, l.client, "203.0.113.1")
	eventually(t, "the route in the router", func() error {
		if out := r.do("show", "routes", "203.0.113.1"); !strings.Contains(out, "bird") {
			return errors.New(out)
		}
		return nil
	})
	pings(t, l.client, "2001:db8:3::1")

	before := r.port("r1").TxPackets
	since := inner("show", "protocols", "up")
	stop := flood(t, l.client, "203.0.113.1")
	time.Sleep(9 * time.Second) // half as long again as a session without packets lives
	sent := stop()
	forwarded := r.port("r1").TxPackets - before
	t.Logf("%d packets sent, %d forwarded", sent, forwarded)
	if forwarded < 1000 {
		t.Errorf("only %d packets of transit traffic", forwarded)
	}
	if now := inner("show", "protocols", "up"); !strings.Contains(now, "Established") || now != since {
		t.Errorf("the session did not stay:\n%s\n%s", since, now)
	}
	ping(t, l.client, "203.0.113.1")
	r.noLeaks()
}
