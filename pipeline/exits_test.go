package pipeline

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"
	"time"

	"millrace/fib"
	"millrace/ip/host"
	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
)

// The exits of package ip on the whole road: what a station on either wire sees.

// asking is a FIB that remembers what it was asked for.
type asking struct {
	*fib.FIB
	asked []netip.Addr
}

func (a *asking) Ask(_ uint16, nh netip.Addr) { a.asked = append(a.asked, nh) }

var (
	exitRouter = pmd.MAC{2, 0, 0, 0, 0, 1}
	exitPeer   = pmd.MAC{2, 0, 0, 0, 9, 1} // on interface 1
	exitNext   = pmd.MAC{2, 0, 0, 0, 9, 2} // on interface 2
)

type exitBed struct {
	*testing.T
	solo  *Solo
	fib   *asking
	cache *packet.Cache
	far   [2]pmd.Queue
}

// newExitBed is a router with 192.0.2.1/24 on interface 1 and 198.51.100.1/24, with an MTU of 1400, on
// interface 2, and likewise for IPv6. 10.0.0.0/8 and 2001:db8:9::/48 are behind interface 2,
// 11.0.0.0/8 and 2001:db8:b::/48 behind another router on interface 1.
func newExitBed(t *testing.T) *exitBed {
	st := newStack(t, 1024)
	pool, tables, f := st.pool, st.tables, st.fib
	b := &exitBed{T: t, fib: &asking{FIB: f}, cache: pool.NewCache()}
	var err error
	if b.solo, err = NewSolo(st.options(b.fib, host.Config{})); err != nil {
		t.Fatal(err)
	}
	var ports []pmd.Port
	for i, mtu := range []uint16{1500, 1400} {
		near, far := mem.Pair("near", "far", mem.Options{})
		ports = append(ports, near, far)
		tables.Ifaces[i+1] = graph.Iface{MAC: MACWord(exitRouter), MTU: mtu, Flags: graph.IfUp}
		if _, err := b.solo.AddPort(near, uint16(i+1)); err != nil {
			t.Fatal(err)
		}
		if err := f.SetIface(uint16(i+1), fib.IfaceOptions{Redirect: true}); err != nil {
			t.Fatal(err)
		}
		b.far[i] = far.Queue(0)
		if err := b.far[i].Start(b.cache); err != nil {
			t.Fatal(err)
		}
	}
	own := &graph.Addresses{By: map[uint16][]netip.Prefix{}, Is: map[netip.Addr]uint16{}}
	var routes []fib.Route
	for i, l := range [][]string{{"192.0.2.1/24", "2001:db8:1::1/64", "fe80::1/64"}, {"198.51.100.1/24", "2001:db8:2::1/64", "fe80::2/64"}} {
		for _, s := range l {
			p := netip.MustParsePrefix(s)
			own.By[uint16(i+1)] = append(own.By[uint16(i+1)], p)
			own.Is[p.Addr()] = uint16(i + 1)
			routes = append(routes, fib.Route{Prefix: netip.PrefixFrom(p.Addr(), p.Addr().BitLen()), Type: fib.Local, Source: fib.SourceConnected})
			if !p.Addr().IsLinkLocalUnicast() {
				routes = append(routes, fib.Route{Prefix: p.Masked(), NextHops: []fib.NextHop{{Iface: uint16(i + 1)}}, Source: fib.SourceConnected})
			}
		}
	}
	tables.Addrs.Store(own)
	for _, r := range []struct {
		to, via string
		iface   uint16
	}{
		{"10.0.0.0/8", "198.51.100.7", 2}, {"2001:db8:9::/48", "2001:db8:2::7", 2},
		{"11.0.0.0/8", "192.0.2.7", 1}, {"2001:db8:b::/48", "fe80::7", 1},
	} {
		routes = append(routes, fib.Route{Prefix: netip.MustParsePrefix(r.to), Source: fib.SourceConfig,
			NextHops: []fib.NextHop{{Via: netip.MustParseAddr(r.via), Iface: r.iface}}})
	}
	if err := f.Update(routes, nil); err != nil {
		t.Fatal(err)
	}
	for _, s := range []string{"192.0.2.5", "192.0.2.7", "2001:db8:1::5", "fe80::7"} {
		b.neighbour(1, s, exitPeer)
	}
	t.Cleanup(func() {
		if a := b.solo.Account(); a.Missing() != 0 {
			t.Errorf("%d packets unaccounted for: %+v", a.Missing(), a)
		}
		b.solo.Close()
		for _, q := range b.far {
			q.Stop()
		}
		for _, p := range ports {
			p.Close()
		}
		b.cache.Close()
		st.mcast.Close()
		f.Close()
		tables.Close()
		if pool.Free() != pool.Size() {
			t.Errorf("%d buffers are lost", pool.Size()-pool.Free())
		}
		pool.Close()
	})
	return b
}

func (b *exitBed) neighbour(iface uint16, addr string, mac pmd.MAC) {
	b.Helper()
	if err := b.fib.SetNeighbour(iface, netip.MustParseAddr(addr), mac); err != nil {
		b.Fatal(err)
	}
}

// send puts a packet on interface 1's wire.
func (b *exitBed) send(l3 []byte) {
	m := b.cache.Alloc1()
	e := packet.Ethernet(m.Append(14))
	e.SetDst(exitRouter)
	e.SetSrc(exitPeer)
	e.SetType(packet.EtherIPv4)
	if l3[0]>>4 == 6 {
		e.SetType(packet.EtherIPv6)
	}
	copy(m.Append(len(l3)), l3)
	one := [1]uint32{m.Index()}
	if b.far[0].Tx(one[:]) != 1 {
		b.Fatal("the ring is full")
	}
}

// receive runs the router until n packets have come on a wire and returns all that came; fewer
// only after a second.
func (b *exitBed) receive(wire, n int, to pmd.MAC) (l [][]byte) {
	b.Helper()
	var got [64]uint32
	for end := time.Now().Add(time.Second); ; {
		b.solo.Round()
		k := b.far[wire].Rx(got[:])
		for _, x := range got[:k] {
			m := packet.At(x)
			f := make([]byte, m.PktLen)
			m.CopyOut(0, f)
			if f[0]&1 != 0 {
				continue // the host's own: MLD, ND
			}
			if e := packet.Ethernet(f); e.Dst() != to || e.Src() != exitRouter {
				b.Errorf("frame % x", f[:14])
			}
			if v6 := f[14]>>4 == 6; v6 != (packet.Ethernet(f).Type() == packet.EtherIPv6) || !v6 && packet.Ethernet(f).Type() != packet.EtherIPv4 {
				b.Errorf("EtherType of frame % x", f[:15])
			}
			l = append(l, f[14:])
		}
		b.cache.Free(got[:k])
		if k == 0 && (len(l) >= n || time.Now().After(end)) {
			if len(l) != n {
				b.Fatalf("%d packets came, want %d", len(l), n)
			}
			return l
		}
	}
}

func exit4(src, dst string, ttl uint8, options []byte, n int) packet.IPv4 {
	h := packet.IPv4(make([]byte, 20+len(options)+n))
	h.Init(netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4(), 17, len(h))
	h[0] += byte(len(options) / 4)
	copy(h[20:], options)
	h.SetTTL(ttl)
	h.SetSum()
	return h
}

func exit6(src, dst string, hops uint8, n int) packet.IPv6 {
	h := packet.IPv6(make([]byte, 40+n))
	h.Init(netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16(), 17, n)
	h.SetHopLimit(hops)
	return h
}

// TestFirstPing: packets for a neighbour that is not known yet are held, and none is lost.
func TestFirstPing(t *testing.T) {
	b := newExitBed(t)
	for i := range 3 {
		h := exit4("192.0.2.5", "198.51.100.33", 64, nil, 10)
		h.SetID(uint16(i))
		h.SetSum()
		b.send(h)
	}
	b.send(exit6("2001:db8:1::5", "2001:db8:9::9", 64, 10))
	b.receive(1, 0, exitNext)
	if want := []netip.Addr{netip.MustParseAddr("198.51.100.33"), netip.MustParseAddr("2001:db8:2::7")}; !slices.Equal(b.fib.asked, want) {
		t.Fatalf("asked for %v, want %v", b.fib.asked, want)
	}
	if n := b.solo.Account().Held["neighbour"]; n != 4 {
		t.Fatalf("%d are held", n)
	}
	b.neighbour(2, "198.51.100.33", exitNext)
	for i, p := range b.receive(1, 3, exitNext) {
		if h := packet.IPv4(p); int(h.ID()) != i || h.TTL() != 63 || !h.SumOK() {
			t.Errorf("packet %d: % x", i, p)
		}
	}
	b.neighbour(2, "2001:db8:2::7", exitNext)
	if p := b.receive(1, 1, exitNext)[0]; p[7] != 63 {
		t.Errorf("% x", p)
	}
}

func TestExitErrors(t *testing.T) {
	b := newExitBed(t)
	cases := []struct {
		name            string
		p               []byte
		typ, code, word int
	}{
		{"ttl", exit4("192.0.2.5", "10.0.0.1", 1, nil, 10), 11, 0, 0},
		{"no route", exit4("192.0.2.5", "12.0.0.1", 9, nil, 10), 3, 0, 0},
		{"too big", func() []byte {
			h := exit4("192.0.2.5", "10.0.0.1", 9, nil, 1450)
			h.SetFlagsOff(packet.IPv4DF)
			h.SetSum()
			return h
		}(), 3, 4, 1400},
		{"bad option", exit4("192.0.2.5", "10.0.0.1", 9, []byte{7, 2, 0, 0}, 10), 12, 0, 21 << 24},
		{"hop limit", exit6("2001:db8:1::5", "2001:db8:9::9", 1, 10), 3, 0, 0},
		{"no route 6", exit6("2001:db8:1::5", "2001:dba::9", 9, 10), 1, 0, 0},
		{"too big 6", exit6("2001:db8:1::5", "2001:db8:9::9", 9, 1400), 2, 0, 1400},
		{"link-local", exit6("fe80::5", "2001:db8:9::9", 9, 10), 1, 2, 0},
	}
	b.neighbour(2, "198.51.100.7", exitNext)
	b.neighbour(2, "2001:db8:2::7", exitNext)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			b.T = t
			b.send(c.p)
			p := b.receive(0, 1, exitPeer)[0]
			m := packet.ICMP(p[20:])
			if p[0]>>4 == 6 {
				h := packet.IPv6(p)
				if m = packet.ICMP(p[40:]); h.HopLimit() != 64 || h.Dst() != packet.IPv6(c.p).Src() || packet.Fold(packet.Sum(m, h.Pseudo(58, len(m)))) != 0xffff {
					t.Errorf("% x", p)
				}
			} else if h := packet.IPv4(p); h.TTL() != 64 || !h.SumOK() || h.Dst() != packet.IPv4(c.p).Src() || packet.Fold(packet.Sum(m, 0)) != 0xffff {
				t.Errorf("% x", p)
			}
			if int(m[0]) != c.typ || int(m[1]) != c.code || int(m.Rest()) != c.word || !bytes.HasPrefix(c.p, m[8:]) {
				t.Errorf("type %d, code %d, word %d, want %d, %d, %d", m[0], m[1], m.Rest(), c.typ, c.code, c.word)
			}
		})
	}
	b.T = t
}

func TestExitFragments(t *testing.T) {
	b := newExitBed(t)
	b.neighbour(2, "198.51.100.7", exitNext)
	h := exit4("192.0.2.5", "10.0.0.1", 9, []byte{7, 7, 4, 0, 0, 0, 0, 0}, 1470)
	for i := range h[28:] {
		h[28+i] = byte(i * 7)
	}
	b.send(h)
	l := b.receive(1, 2, exitNext)
	var data []byte
	for _, p := range l {
		f := packet.IPv4(p)
		if len(p) > 1400 || f.TTL() != 8 || !f.SumOK() || f.FragOff() != len(data) {
			t.Errorf("fragment % x", p[:40])
		}
		data = append(data, p[f.HeaderLen():]...)
	}
	if !bytes.Equal(data, h[28:]) {
		t.Error("the fragments hold something else")
	}
	// The route was recorded before.
	if !bytes.Equal(l[0][20:28], []byte{7, 7, 8, 198, 51, 100, 1, 0}) {
		t.Errorf("options % x", l[0][20:28])
	}
}

func TestExitRedirects(t *testing.T) {
	b := newExitBed(t)
	p4, p6 := exit4("192.0.2.5", "11.0.0.1", 9, nil, 10), exit6("2001:db8:1::5", "2001:db8:b::9", 9, 10)
	b.send(p4)
	b.send(p6)
	var seen int
	for _, p := range b.receive(0, 4, exitPeer) {
		switch {
		case p[0]>>4 == 4 && p[9] == 17:
			seen |= 1
			if p[8] != 8 {
				t.Errorf("sent on with TTL %d", p[8])
			}
		case p[0]>>4 == 4:
			seen |= 2
			if m := p[20:]; m[0] != 5 || m[1] != 1 || !bytes.Equal(m[4:8], []byte{192, 0, 2, 7}) || !bytes.Equal(m[8:], p4) {
				t.Errorf("redirect % x", p)
			}
		case p[6] == 17:
			seen |= 4
			if p[7] != 8 {
				t.Errorf("sent on with hop limit %d", p[7])
			}
		default:
			seen |= 8
			if m := p[40:]; p[7] != 255 || m[0] != 137 || netip.AddrFrom16([16]byte(m[8:])) != netip.MustParseAddr("fe80::7") {
				t.Errorf("redirect % x", p)
			}
			if q := p[40+8+32+8+8:]; !bytes.Equal(q, p6[:len(q)]) || len(q) != len(p6)&^7 {
				t.Errorf("quotes % x", q)
			}
		}
	}
	if seen != 15 {
		t.Errorf("saw %b", seen)
	}
}
