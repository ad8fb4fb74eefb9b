package pipeline

import (
	"net/netip"
	"testing"

	"millrace/fib"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// TestVRF: packets of an interface in a VRF, held ones and the errors about them find their way in the VRF's table.
func TestVRF(t *testing.T) {
	b := newExitBed(t)
	p, a := netip.MustParsePrefix, netip.MustParseAddr
	// The sender's address is elsewhere in the main table, and the destination is nowhere.
	if err := b.fib.Update([]fib.Route{
		{Prefix: p("203.0.113.0/24"), Type: fib.Blackhole, Source: fib.SourceConfig},
		{Table: 10, Prefix: p("203.0.113.0/24"), NextHops: []fib.NextHop{{Via: a("192.0.2.7"), Iface: 1}}, Source: fib.SourceConfig},
		{Table: 10, Prefix: p("13.0.0.0/8"), NextHops: []fib.NextHop{{Via: a("198.51.100.7"), Iface: 2}}, Source: fib.SourceConfig},
	}, nil); err != nil {
		t.Fatal(err)
	}
	hot, err := b.fib.Table(10)
	if err != nil {
		t.Fatal(err)
	}
	e := &b.solo.Tables.Ifaces[1]
	e.Table, e.Flags = hot, e.Flags|graph.IfStrict4
	if err := b.fib.SetIface(1, fib.IfaceOptions{}); err != nil {
		t.Fatal(err)
	}
	b.send(exit4("203.0.113.5", "13.0.0.1", 64, nil, 10)) // held
	b.receive(1, 0, exitNext)
	b.neighbour(2, "198.51.100.7", exitNext)
	if h := packet.IPv4(b.receive(1, 1, exitNext)[0]); h.Dst() != a("13.0.0.1").As4() {
		t.Errorf("% x", h)
	}
	b.send(exit4("203.0.113.5", "10.0.0.1", 64, nil, 10)) // of the main table only
	if h := packet.IPv4(b.receive(0, 1, exitPeer)[0]); h.Proto() != packet.ProtoICMP || h[20] != packet.ICMPUnreachable || h.Dst() != a("203.0.113.5").As4() {
		t.Errorf("% x", h)
	}
	b.send(exit4("13.0.0.9", "13.0.0.1", 64, nil, 10)) // comes by a way that does not lead back
	b.receive(1, 0, exitNext)
	if n := b.solo.C.Exit[fib.XStrict]; n != 1 {
		t.Errorf("%d packets left for %v", n, fib.XStrict)
	}
}
