package pipeline

import (
	"net/netip"
	"testing"

	"millrace/fib"
	"millrace/packet"
)

// TestIPv4ByIPv6: IPv4 packets go to a next hop that is known by its IPv6 address (RFC 8950), as IPv4 frames; while
// it is not resolved they are held and it is asked for by IPv6.
func TestIPv4ByIPv6(t *testing.T) {
	b := newExitBed(t)
	via := netip.MustParseAddr("fe80::77")
	if err := b.fib.Update([]fib.Route{{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Source: fib.SourceConfig,
		NextHops: []fib.NextHop{{Via: via, Iface: 2}}}}, nil); err != nil {
		t.Fatal(err)
	}
	b.send(exit4("192.0.2.5", "13.0.0.1", 64, nil, 10))
	b.receive(1, 0, exitNext)
	if len(b.fib.asked) == 0 || b.fib.asked[0] != via {
		t.Errorf("asked for %v, want %v", b.fib.asked, via)
	}
	b.neighbour(2, via.String(), exitNext)
	b.send(exit4("192.0.2.5", "13.0.0.2", 64, nil, 20))
	came := map[[4]byte]bool{}
	for i, p := range b.receive(1, 2, exitNext) {
		h := packet.IPv4(p)
		if h[0] != 0x45 || h.TTL() != 63 || !h.SumOK() {
			t.Errorf("packet %d: % x", i, p)
		}
		came[h.Dst()] = true
	}
	if !came[[4]byte{13, 0, 0, 1}] || !came[[4]byte{13, 0, 0, 2}] {
		t.Errorf("packets to %v came", came)
	}
}

// TestPathMTU: a route's own MTU fragments, and tells senders, where the interface's would not; other routes by
// the same neighbour keep the interface's.
func TestPathMTU(t *testing.T) {
	b := newExitBed(t)
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	if err := b.fib.Update([]fib.Route{
		{Prefix: p("13.0.0.0/8"), NextHops: []fib.NextHop{{Via: a("198.51.100.7"), Iface: 2, MTU: 600}}, Source: fib.SourceConfig},
		{Prefix: p("14.0.0.0/8"), NextHops: []fib.NextHop{{Via: a("198.51.100.7"), Iface: 2}}, Source: fib.SourceConfig},
		{Prefix: p("2001:db8:d::/48"), NextHops: []fib.NextHop{{Via: a("2001:db8:2::7"), Iface: 2, MTU: 1300}}, Source: fib.SourceConfig},
	}, nil); err != nil {
		t.Fatal(err)
	}
	b.neighbour(2, "198.51.100.7", exitNext)
	b.neighbour(2, "2001:db8:2::7", exitNext)
	b.send(exit4("192.0.2.5", "13.0.0.1", 64, nil, 1000))
	sum := 0
	for _, x := range b.receive(1, 2, exitNext) {
		h := packet.IPv4(x)
		if h.TotalLen() > 600 || !h.IsFragment() {
			t.Errorf("% x", x[:20])
		}
		sum += h.TotalLen() - 20
	}
	if sum != 1000 {
		t.Errorf("the fragments carry %d bytes of 1000", sum)
	}
	b.send(exit4("192.0.2.5", "14.0.0.1", 64, nil, 1000))
	b.receive(1, 1, exitNext)
	df := exit4("192.0.2.5", "13.0.0.1", 64, nil, 1000)
	df[6] |= 0x40
	df.SetSum()
	b.send(df)
	if x := b.receive(0, 1, exitPeer)[0]; x[20] != packet.ICMPUnreachable || x[21] != 4 || int(x[26])<<8|int(x[27]) != 600 {
		t.Errorf("ICMP % x, want fragmentation needed, MTU 600", x[20:28])
	}
	b.send(exit6("2001:db8:1::5", "2001:db8:d::1", 64, 1270))
	if x := b.receive(0, 1, exitPeer)[0]; x[40] != packet.ICMP6TooBig || packet.ICMP(x[40:]).Rest() != 1300 {
		t.Errorf("ICMPv6 % x, want packet too big, MTU 1300", x[40:48])
	}
	b.send(exit6("2001:db8:1::5", "2001:db8:d::1", 64, 1260))
	b.receive(1, 1, exitNext)
}
