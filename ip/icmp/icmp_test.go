package icmp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"millrace/internal/clock"
	"millrace/ip"
	"millrace/ip/frag"
	"millrace/ip/internal/rig"
	"millrace/packet"
	"millrace/pipeline/graph"
)

var (
	xNoRoute = graph.NewReason(graph.ReasonInfo{Stage: "test", Name: "no-route", Doc: "No route.", ICMP4: graph.Owe(3, 0), ICMP6: graph.Owe(1, 0)})
	xSilent  = graph.NewReason(graph.ReasonInfo{Stage: "test", Name: "silent", Doc: "Nothing is owed to IPv6.", ICMP4: graph.Owe(3, 13)})
)

const (
	src4, dst4 = "203.0.113.5", "10.9.9.9"
	src6, dst6 = "2001:db8:1::5", "2001:db8:9::9"
)

// check4 verifies what holds for all IPv4 messages and returns the ICMP part.
func check4(t testing.TB, m, about []byte) packet.ICMP {
	t.Helper()
	h := packet.IPv4(m)
	if !h.Valid() || !h.SumOK() || h.TotalLen() != len(m) || h.TTL() != 65 || h.HeaderLen() != 20 {
		t.Errorf("header % x", m[:20])
	}
	if len(m) > 576 || len(m) < 576 && len(m) != 28+len(about) {
		t.Errorf("%d bytes about a packet of %d", len(m), len(about))
	}
	if h.TOS() != 0xc0|about[1]&0x1c || h.FlagsOff() != 0 {
		t.Errorf("TOS %#x, flags %#x", h.TOS(), h.FlagsOff())
	}
	if h.Dst() != packet.IPv4(about).Src() {
		t.Errorf("to %v", h.Dst())
	}
	c := packet.ICMP(m[20:])
	if packet.Fold(packet.Sum(c, 0)) != 0xffff {
		t.Error("ICMP checksum")
	}
	if !bytes.Equal(c[8:], about[:len(c)-8]) {
		t.Errorf("quotes % x", c[8:])
	}
	g := gopacket.NewPacket(m, layers.LayerTypeIPv4, gopacket.Default)
	if l, ok := g.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); !ok || l.TypeCode.Type() != c[0] || l.TypeCode.Code() != c[1] {
		t.Errorf("does not decode: %v", g.ErrorLayer())
	}
	return c
}

// check6 is check4 for IPv6.
func check6(t testing.TB, m, about []byte, hops uint8) packet.ICMP {
	t.Helper()
	h := packet.IPv6(m)
	if !h.Valid() || h.PayloadLen() != len(m)-40 || h.HopLimit() != hops || h.Next() != packet.ProtoICMPv6 {
		t.Errorf("header % x", m[:40])
	}
	if len(m) > 1280 || len(m) < 1280 && len(m) != 48+len(about) {
		t.Errorf("%d bytes about a packet of %d", len(m), len(about))
	}
	if h.Dst() != packet.IPv6(about).Src() {
		t.Errorf("to %v", h.Dst())
	}
	c := packet.ICMP(m[40:])
	if packet.Fold(packet.Sum(c, h.Pseudo(packet.ProtoICMPv6, len(c)))) != 0xffff {
		t.Error("ICMPv6 checksum")
	}
	if !bytes.Equal(c[8:], about[:len(c)-8]) {
		t.Errorf("quotes % x", c[8:])
	}
	g := gopacket.NewPacket(m, layers.LayerTypeIPv6, gopacket.Default)
	if l, ok := g.Layer(layers.LayerTypeICMPv6).(*layers.ICMPv6); !ok || l.TypeCode.Type() != c[0] || l.TypeCode.Code() != c[1] {
		t.Errorf("does not decode: %v", g.ErrorLayer())
	}
	return c
}

func TestErrors4(t *testing.T) {
	tos := rig.UDP4(src4, dst4, nil, 100)
	tos.SetTOS(0xbf)
	tos.SetSum()
	cases := []struct {
		name string
		p    []byte
		why  graph.Reason
		pad  int
		cut  []int
		mtu  uint16
		typ  uint8
		code uint8
		word uint32
	}{
		{"no route", rig.UDP4(src4, dst4, nil, 100), xNoRoute, 0, nil, 0, 3, 0, 0},
		{"ttl", tos, ip.XTTL4, 0, nil, 0, 11, 0, 0},
		{"long", rig.UDP4(src4, dst4, nil, 1400), ip.XTTL4, 0, nil, 0, 11, 0, 0},
		{"chain", rig.UDP4(src4, dst4, nil, 1400), ip.XTTL4, 0, []int{34, 1, 200, 7}, 0, 11, 0, 0},
		{"options", rig.UDP4(src4, dst4, []byte{1, 7, 2, 0}, 100), ip.XOptions4, 0, nil, 0, 12, 0, 22 << 24},
		{"source route", rig.UDP4(src4, dst4, []byte{131, 3, 4, 0}, 100), ip.XSourceRoute, 0, nil, 0, 3, 5, 0},
		{"too big", rig.UDP4(src4, dst4, nil, 1480), frag.XDF, 0, nil, 1400, 3, 4, 1400},
		{"too big for nearly nothing", rig.UDP4(src4, dst4, nil, 1480), frag.XDF, 0, nil, 40, 3, 4, 68},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, 128, Stage(Limits{}))
			i := r.Add(c.p, c.pad, c.cut...)
			r.V.Len[i] = uint16(len(c.p))
			r.V.Adj[i] = 2
			r.W.Tables.Adjs[2].MTU = c.mtu
			r.Leave(c.why)
			if !r.W.Wake {
				t.Error("the worker was not woken")
			}
			l := r.Refill("icmp")
			if len(l) != 1 || r.W.C.Created != 1 || r.Note(XSent) != 1 || r.Note(c.why) != 1 {
				t.Fatalf("%d errors, %d created", len(l), r.W.C.Created)
			}
			m := check4(t, l[0], c.p)
			if m[0] != c.typ || m[1] != c.code || m.Rest() != c.word {
				t.Errorf("type %d, code %d, word %#x, want %d, %d, %#x", m[0], m[1], m.Rest(), c.typ, c.code, c.word)
			}
			if packet.IPv4(l[0]).Src() != [4]byte{192, 0, 2, 1} {
				t.Errorf("from %v", packet.IPv4(l[0]).Src())
			}
		})
	}
}

func TestErrors6(t *testing.T) {
	option := rig.IP6(src6, dst6, 0, []byte{17, 0, 0x9e, 0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	many := rig.IP6(src6, "ff0e::9", 0, []byte{17, 0, 0x9e, 0, 1, 2, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	long := rig.IP6(src6, dst6, 17, make([]byte, 1400))
	cases := []struct {
		name string
		p    []byte
		why  graph.Reason
		cut  []int
		mtu  uint16
		typ  uint8
		code uint8
		word uint32
	}{
		{"no route", rig.IP6(src6, dst6, 17, make([]byte, 8)), xNoRoute, nil, 0, 1, 0, 0},
		{"hop limit", long, ip.XHopLimit6, nil, 0, 3, 0, 0},
		{"chain", long, ip.XHopLimit6, []int{54, 300, 1, 9}, 0, 3, 0, 0},
		{"option", option, ip.XOption6, nil, 0, 4, 2, 42},
		{"option to many", many, ip.XOption6, nil, 0, 4, 2, 42},
		{"too big", long, frag.X6TooBig, nil, 1400, 2, 0, 1400},
		{"too big for too small", long, frag.X6TooBig, nil, 1000, 2, 0, 1280},
		{"too big to many", rig.IP6(src6, "ff0e::9", 17, make([]byte, 1400)), frag.X6TooBig, nil, 1400, 2, 0, 1400},
		{"fragment", rig.IP6(src6, dst6, 44, append([]byte{58, 0, 1, 0, 0, 0, 0, 1}, make([]byte, 80)...)), xNoRoute, nil, 0, 1, 0, 0},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, 128, Stage(Limits{}))
			i := r.Add(c.p, 0, c.cut...)
			r.V.Adj[i] = 2
			r.W.Tables.Adjs[2].MTU = c.mtu
			r.Leave(c.why)
			l := r.Refill("icmp")
			if len(l) != 1 || r.W.C.Created != 1 {
				t.Fatalf("%d errors, %d created", len(l), r.W.C.Created)
			}
			m := check6(t, l[0], c.p, 65)
			if m[0] != c.typ || m[1] != c.code || m.Rest() != c.word {
				t.Errorf("type %d, code %d, word %d, want %d, %d, %d", m[0], m[1], m.Rest(), c.typ, c.code, c.word)
			}
			if got := netip.AddrFrom16(packet.IPv6(l[0]).Src()); got != netip.MustParseAddr("2001:db8:1::1") {
				t.Errorf("from %v", got)
			}
		})
	}
}

// TestLinkLocal: a link-local sender is answered straight back on its link.
func TestLinkLocal(t *testing.T) {
	r := rig.New(t, 128, Stage(Limits{}))
	p := rig.IP6("fe80::5", dst6, 17, make([]byte, 8))
	r.Add(p, 0)
	r.Leave(ip.XLinkLocal6)
	r.W.Flush()
	if len(r.Wire) != 1 || r.W.C.Created != 1 || r.W.C.Sent != 1 || r.W.C.Tx[1].Packets != 1 {
		t.Fatalf("%d frames, %d created, %d sent", len(r.Wire), r.W.C.Created, r.W.C.Sent)
	}
	f := rig.Bytes(r.Wire[0], 0)
	e := packet.Ethernet(f)
	if e.Dst() != rig.Peer || e.Src() != rig.Router || e.Type() != packet.EtherIPv6 {
		t.Errorf("frame % x", f[:14])
	}
	m := check6(t, f[14:], p, 64)
	if m[0] != 1 || m[1] != 2 || netip.AddrFrom16(packet.IPv6(f[14:]).Src()) != netip.MustParseAddr("fe80::1") {
		t.Errorf("error % x", f[14:60])
	}
}

func TestNotOwed(t *testing.T) {
	icmp4 := func(typ byte) []byte {
		p := rig.UDP4(src4, dst4, nil, 8)
		p[9], p[20] = 1, typ
		p.SetSum()
		return p
	}
	later := rig.UDP4(src4, dst4, nil, 8)
	later.SetFlagsOff(185)
	icmp6 := func(typ byte) []byte { return rig.IP6(src6, dst6, 58, []byte{typ, 0, 0, 0, 0, 0, 0, 0}) }
	udp := make([]byte, 8)
	cases := []struct {
		name string
		p    []byte
		why  graph.Reason
		sent bool
	}{
		{"echo", icmp4(8), xNoRoute, true},
		{"echo reply", icmp4(0), xNoRoute, true},
		{"unreachable", icmp4(3), xNoRoute, false},
		{"quench", icmp4(4), xNoRoute, false},
		{"redirect", icmp4(5), xNoRoute, false},
		{"time exceeded", icmp4(11), xNoRoute, false},
		{"parameter problem", icmp4(12), xNoRoute, false},
		{"later fragment", later, xNoRoute, false},
		{"ICMP cut off", func() []byte { p := rig.UDP4(src4, dst4, nil, 0); p[9] = 1; p.SetSum(); return p }(), xNoRoute, false},
		{"from 0", rig.UDP4("0.0.0.0", dst4, nil, 8), xNoRoute, false},
		{"from loopback", rig.UDP4("127.0.0.1", dst4, nil, 8), xNoRoute, false},
		{"from multicast", rig.UDP4("224.1.1.1", dst4, nil, 8), xNoRoute, false},
		{"from class E", rig.UDP4("241.1.1.1", dst4, nil, 8), xNoRoute, false},
		{"from broadcast", rig.UDP4("192.0.2.255", dst4, nil, 8), xNoRoute, false},
		{"to multicast", rig.UDP4(src4, "224.1.1.1", nil, 8), xNoRoute, false},
		{"to all", rig.UDP4(src4, "255.255.255.255", nil, 8), xNoRoute, false},
		{"to broadcast", rig.UDP4(src4, "192.0.2.255", nil, 8), xNoRoute, false},
		{"echo 6", icmp6(128), xNoRoute, true},
		{"error 6", icmp6(1), xNoRoute, false},
		{"unknown error 6", icmp6(100), xNoRoute, false},
		{"redirect 6", icmp6(137), xNoRoute, false},
		{"error 6 behind options", rig.IP6(src6, dst6, 60, []byte{58, 0, 1, 4, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0}), xNoRoute, false},
		{"too big about error", icmp6(2), frag.X6TooBig, false},
		{"from nobody", rig.IP6("::", dst6, 17, udp), xNoRoute, false},
		{"from loopback 6", rig.IP6("::1", dst6, 17, udp), xNoRoute, false},
		{"from multicast 6", rig.IP6("ff02::1", dst6, 17, udp), xNoRoute, false},
		{"to multicast 6", rig.IP6(src6, "ff0e::1", 17, udp), xNoRoute, false},
		{"hop limit, multicast", rig.IP6(src6, "ff0e::1", 17, udp), ip.XHopLimit6, false},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, 128, Stage(Limits{}))
			r.Add(c.p, 0)
			r.Leave(c.why)
			want, note := 0, uint64(1)
			if c.sent {
				want, note = 1, 0
			}
			if n := len(r.Refill("icmp")); n != want || r.Note(XNotOwed) != note || r.Note(c.why) != 1 {
				t.Errorf("%d sent, %d not owed", n, r.Note(XNotOwed))
			}
		})
	}
	t.Run("group frame", func(t *testing.T) {
		r := rig.New(t, 128, Stage(Limits{}))
		i := r.Add(rig.UDP4(src4, dst4, nil, 8), 0)
		r.V.Mbuf(i).Bytes()[0] |= 1
		r.Leave(xNoRoute)
		if len(r.Refill("icmp")) != 0 || r.Note(XNotOwed) != 1 {
			t.Error("answered")
		}
	})
	t.Run("other family", func(t *testing.T) {
		r := rig.New(t, 128, Stage(Limits{}))
		r.Add(rig.IP6(src6, dst6, 17, udp), 0)
		r.Leave(xSilent)
		if len(r.Refill("icmp")) != 0 || r.Note(xSilent) != 1 {
			t.Error("answered")
		}
	})
}

func TestRates(t *testing.T) {
	r := rig.New(t, 1024, Stage(Limits{}))
	hz := clock.Hz()
	hit := func(n int, p []byte, why graph.Reason) int {
		for range n {
			r.Add(p, 0)
		}
		r.Leave(why)
		return len(r.Refill("icmp"))
	}
	one, two := rig.UDP4(src4, dst4, nil, 8), rig.UDP4("203.0.113.6", dst4, nil, 8)
	if n := hit(20, one, xNoRoute); n != HostBurst {
		t.Errorf("%d at once to one host, want %d", n, HostBurst)
	}
	if n := hit(3, two, xNoRoute); n != 3 {
		t.Errorf("%d to another", n)
	}
	if n := hit(20, one, frag.XDF); n != 20 {
		t.Errorf("%d of 20 about what is too big", n)
	}
	if r.Note(XLimited) != 20-HostBurst || r.Note(xNoRoute) != 23 {
		t.Errorf("%d limited, %d dropped", r.Note(XLimited), r.Note(xNoRoute))
	}
	r.W.Now += hz + hz/10
	if n := hit(20, one, xNoRoute); n != 1 {
		t.Errorf("%d after a second", n)
	}
	r.W.Now += 60 * hz
	if n := hit(20, one, xNoRoute); n != HostBurst {
		t.Errorf("%d after a minute", n)
	}
	r.W.Now += 60 * hz
	all := 0
	for i := range 200 {
		p := rig.UDP4("203.0.113.5", dst4, nil, 8)
		p.SetSrc([4]byte{10, 1, 0, byte(i)})
		p.SetSum()
		all += hit(1, p, xNoRoute)
	}
	if all != GlobalBurst {
		t.Errorf("%d at once to 200 hosts, want %d", all, GlobalBurst)
	}
	r.W.Now += hz / 100
	all = 0
	for i := range 56 {
		p := rig.IP6(src6, dst6, 17, make([]byte, 8))
		p[23] = byte(i)
		all += hit(1, p, xNoRoute)
	}
	if want := GlobalRate / 100; all < want-1 || all > want+1 {
		t.Errorf("%d in a hundredth of a second, want %d", all, want)
	}
}

func TestLimits(t *testing.T) {
	for _, c := range []struct {
		l              Limits
		errors, tooBig int
	}{{Limits{}, GlobalBurst, 100}, {Limits{Rate: 10, Burst: 7}, 7, 100}, {Limits{None: true}, 0, 0}} {
		r := rig.New(t, 1024, Stage(c.l))
		for _, x := range []struct {
			why  graph.Reason
			want int
		}{{frag.XDF, c.tooBig}, {xNoRoute, c.errors}} {
			for i := range 100 {
				p := rig.UDP4(src4, dst4, nil, 8)
				p.SetSrc([4]byte{10, 1, 0, byte(i + 1)})
				p.SetSum()
				r.Add(p, 0)
			}
			r.Leave(x.why)
			if n := len(r.Refill("icmp")); n != x.want {
				t.Errorf("%+v: %d of 100 for %v, want %d", c.l, n, x.why, x.want)
			}
		}
	}
}

func TestNoAddress(t *testing.T) {
	r := rig.New(t, 128, Stage(Limits{}))
	r.W.Tables.Addrs.Store(rig.Addresses(nil))
	r.Add(rig.UDP4(src4, dst4, nil, 8), 0)
	r.Add(rig.IP6(src6, dst6, 17, make([]byte, 8)), 0)
	r.Leave(xNoRoute)
	l := r.Refill("icmp")
	if len(l) != 1 || packet.IPv4(l[0]).Src() != [4]byte{192, 0, 0, 8} || r.Note(XNoSource) != 1 {
		t.Errorf("%d sent, %d without a source", len(l), r.Note(XNoSource))
	}
}

func TestNoBuffers(t *testing.T) {
	r := rig.New(t, 128, Stage(Limits{}))
	var all []uint32
	r.Add(rig.UDP4(src4, dst4, nil, 8), 0)
	r.Add(rig.IP6(src6, dst6, 17, make([]byte, 8)), 0)
	for m := r.W.Cache.Alloc1(); m != nil; m = r.W.Cache.Alloc1() {
		all = append(all, m.Index())
	}
	r.V.Exit(1, xNoRoute) // IPv6 first: its buffer is the next one's
	r.V.Exit(0, xNoRoute)
	r.W.Settle(&r.V)
	r.V.Reset()
	if n := len(r.Refill("icmp")); n != 1 || r.Note(XNoBuffer) != 1 || r.W.C.Created != 1 {
		t.Errorf("%d sent, %d without a buffer", n, r.Note(XNoBuffer))
	}
	r.W.Cache.Free(all)
}

func TestQueueFull(t *testing.T) {
	r := rig.New(t, 1024, Stage(Limits{}))
	p := rig.UDP4(src4, dst4, nil, 8)
	for range 2 {
		for range 200 {
			r.Add(p, 0)
		}
		r.Leave(frag.XDF)
	}
	if n := len(r.Refill("icmp")); n != queueSize || r.Note(XNoBuffer) != 400-queueSize || r.W.C.Created != queueSize {
		t.Errorf("%d sent, %d refused, %d created", n, r.Note(XNoBuffer), r.W.C.Created)
	}
}

func TestNoAllocs(t *testing.T) {
	r := rig.New(t, 1024, Stage(Limits{}))
	l := [][]byte{rig.UDP4(src4, dst4, nil, 8), rig.IP6(src6, dst6, 17, make([]byte, 8)), rig.IP6("fe80::5", dst6, 17, make([]byte, 8))}
	s := r.W.Instances["icmp"].(graph.Source)
	r.Wire = make([]uint32, 0, 1024)
	n := testing.AllocsPerRun(100, func() {
		r.W.Now += clock.Hz() * 2
		for _, p := range l {
			m := r.W.Cache.Alloc1()
			copy(m.Append(14), []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd})
			copy(m.Append(len(p)), p)
			k := graph.ParkNew(m, 14)
			k.In = 1
			r.W.Leave(k, xNoRoute)
		}
		r.V.Reset()
		s.Refill(&r.V)
		r.FreeAll()
		r.W.Flush()
		r.W.Cache.Free(r.Wire)
		r.Wire = r.Wire[:0]
	})
	if n != 0 {
		t.Errorf("%v allocations for three errors", n)
	}
}

// FuzzErrors: whatever the packet, an error is well formed and never about what it may not be.
func FuzzErrors(f *testing.F) {
	f.Add([]byte(rig.UDP4(src4, dst4, []byte{1, 7, 2, 0}, 8)), byte(0))
	f.Add([]byte(rig.IP6(src6, dst6, 60, []byte{58, 0, 1, 4, 0, 0, 0, 0, 128, 0, 0, 0, 0, 0, 0, 0})), byte(3))
	r := rig.New(f, 256, Stage(Limits{}))
	whys := []graph.Reason{xNoRoute, ip.XTTL4, ip.XOptions4, ip.XHopLimit6, frag.XDF, frag.X6TooBig}
	f.Fuzz(func(t *testing.T, b []byte, why byte) {
		if len(b) < 40 || len(b) > 1500 {
			return
		}
		six := b[0]&0x10 != 0
		if b[0] = 0x60 | b[0]&15; !six {
			b[0] = 0x40 | max(b[0]&15, 5)
			if int(b[0]&15)*4 > len(b) {
				return
			}
		}
		r.W.Now += 60 * clock.Hz()
		i := r.Add(b, 0)
		r.V.Adj[i] = 1
		r.Leave(whys[int(why)%len(whys)])
		l := r.Refill("icmp")
		r.W.Flush()
		for _, x := range r.Wire {
			check6(t, rig.Bytes(x, 14), b, 64)
		}
		r.W.Cache.Free(r.Wire)
		r.Wire = nil
		for _, m := range l {
			switch {
			case six:
				check6(t, m, b, 65)
				if b[8] == 0xff || b[6] == 58 && b[40] < 128 {
					t.Errorf("an error about % x", b)
				}
			default:
				check4(t, m, b)
				if binary.BigEndian.Uint16(b[6:])&0x1fff != 0 || b[12] >= 224 || b[16] >= 224 || b[12] == 127 || b[12] == 0 {
					t.Errorf("an error about % x", b)
				}
			}
		}
		if r.Pool.Free() != r.Pool.Size() {
			t.Errorf("%d buffers are lost", r.Pool.Size()-r.Pool.Free())
		}
	})
}
