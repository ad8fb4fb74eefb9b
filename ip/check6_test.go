package ip

import (
	"bytes"
	"net/netip"
	"testing"

	"millrace/ip/internal/rig"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// hop makes a hop-by-hop header of options, padded to 8 bytes, with an UDP header behind.
func hop(options ...byte) []byte {
	b := append([]byte{packet.ProtoUDP, 0}, options...)
	for len(b)%8 != 0 {
		b = append(b, 0)
	}
	b[1] = byte(len(b)/8 - 1)
	return append(b, make([]byte, 8)...)
}

func many(n int, option ...byte) (b []byte) {
	for range n {
		b = append(b, option...)
	}
	return b
}

func TestCheck6(t *testing.T) {
	const a, b, ours = "2001:db8:1::5", "2001:db8:9::9", "2001:db8:2::1"
	udp := make([]byte, 20)
	with := func(h packet.IPv6, f func(packet.IPv6)) packet.IPv6 { f(h); return h }
	hops := func(n uint8) func(packet.IPv6) { return func(h packet.IPv6) { h.SetHopLimit(n) } }
	cases := []struct {
		name    string
		l3      []byte
		pad     int
		cut     []int
		want    graph.Reason
		pointer uint32
	}{
		{"plain", rig.IP6(a, b, 17, udp), 0, nil, 0, 0},
		{"padded", rig.IP6(a, b, 59, nil), 6, nil, 0, 0},
		{"padded chain", rig.IP6(a, b, 17, udp), 6, []int{54, 18, 4, 3}, 0, 0},
		{"hop limit 2", with(rig.IP6(a, b, 17, udp), hops(2)), 0, nil, 0, 0},
		{"hop limit 1", with(rig.IP6(a, b, 17, udp), hops(1)), 0, nil, XHopLimit6, 0},
		{"hop limit 0", with(rig.IP6(a, b, 17, udp), hops(0)), 0, nil, XHopLimit6, 0},
		{"hop limit 1 for us", with(rig.IP6(a, ours, 17, udp), hops(1)), 0, nil, 0, 0},
		{"hop limit 1 multicast", with(rig.IP6(a, "ff02::1", 17, udp), hops(1)), 0, nil, 0, 0},
		{"too long", with(rig.IP6(a, b, 17, udp), func(h packet.IPv6) { h.SetPayloadLen(21) }), 0, nil, XLength6, 0},
		{"version", with(rig.IP6(a, b, 17, udp), func(h packet.IPv6) { h[0] = 0x70 }), 0, nil, XHeader6, 0},
		{"from multicast", rig.IP6("ff0e::1", b, 17, udp), 0, nil, XSource6, 0},
		{"from nobody", rig.IP6("::", b, 17, udp), 0, nil, XSource6, 0},
		{"from loopback", rig.IP6("::1", b, 17, udp), 0, nil, XSource6, 0},
		{"from mapped", rig.IP6("::ffff:192.0.2.1", b, 17, udp), 0, nil, XSource6, 0},
		{"from NAT64", rig.IP6("64:ff9b::192.0.2.1", b, 17, udp), 0, nil, 0, 0},
		{"from low", rig.IP6("::2:0:0:1", b, 17, udp), 0, nil, 0, 0},
		{"from ULA", rig.IP6("fdff::1", b, 17, udp), 0, nil, 0, 0},
		{"from site-local", rig.IP6("fec0::1", b, 17, udp), 0, nil, 0, 0},
		{"from link-local", rig.IP6("fe80::5", b, 17, udp), 0, nil, XLinkLocal6, 0},
		{"from link-local for us", rig.IP6("fe80::5", "fe80::1", 17, udp), 0, nil, 0, 0},
		{"from link-local to the link", rig.IP6("fe80::5", "ff02::1", 17, udp), 0, nil, 0, 0},
		{"from link-local to the site", rig.IP6("fe80::5", "ff05::1", 17, udp), 0, nil, XLinkLocal6, 0},
		{"padding options", rig.IP6(a, b, 0, hop(1, 4, 0, 0, 0, 0)), 0, nil, 0, 0},
		{"router alert", rig.IP6(a, b, 0, hop(5, 2, 0, 0, 1, 0)), 0, nil, 0, 0},
		{"skip", rig.IP6(a, b, 0, hop(0x1e, 1, 9)), 0, nil, 0, 0},
		{"discard", rig.IP6(a, b, 0, hop(0, 0x5e, 0)), 0, nil, XDiscard6, 0},
		{"error", rig.IP6(a, b, 0, hop(0, 0x9e, 0)), 0, nil, XOption6, 43},
		{"error, split", rig.IP6(a, b, 0, hop(0, 0, 0x9e, 0)), 0, []int{55, 2}, XOption6, 44},
		{"error, multicast", rig.IP6(a, "ff0e::1", 0, hop(0x9e, 0)), 0, nil, XOption6, 42},
		{"error unless multicast", rig.IP6(a, b, 0, hop(0xde, 0)), 0, nil, XOption6, 42},
		{"error unless multicast, multicast", rig.IP6(a, "ff0e::1", 0, hop(0xde, 0)), 0, nil, XDiscard6, 0},
		{"error for us", rig.IP6(a, ours, 0, hop(0x9e, 0)), 0, nil, 0, 0},
		{"jumbo", rig.IP6(a, b, 0, hop(0xc2, 4, 0, 1, 0, 0)), 0, nil, XJumbo, 0},
		{"jumbo, length 0", with(rig.IP6(a, b, 0, hop(0xc2, 4, 0, 1, 0, 0)), func(h packet.IPv6) { h.SetPayloadLen(0) }), 0, nil, XJumbo, 0},
		{"eight options", rig.IP6(a, b, 0, hop(many(8, 0x1e, 0)...)), 0, nil, 0, 0},
		{"nine options", rig.IP6(a, b, 0, hop(many(9, 0x1e, 0)...)), 0, nil, XManyOptions, 0},
		{"256 bytes", rig.IP6(a, b, 0, hop(many(2, append([]byte{0x1e, 120}, make([]byte, 120)...)...)...)), 0, nil, 0, 0},
		{"264 bytes", rig.IP6(a, b, 0, hop(many(2, append([]byte{0x1e, 126}, make([]byte, 126)...)...)...)), 0, nil, XManyOptions, 0},
		{"option behind the header", rig.IP6(a, b, 0, hop(0x1e, 5, 0, 0, 0, 0)), 0, nil, XHopByHop, 0},
		{"header behind the packet", rig.IP6(a, b, 0, []byte{17, 1, 1, 4, 0, 0, 0, 0}), 0, nil, XHopByHop, 0},
		{"no header", rig.IP6(a, b, 0, []byte{17}), 0, nil, XHopByHop, 0},
		{"options and hop limit", with(rig.IP6(a, b, 0, hop(5, 2, 0, 0, 1, 0)), hops(1)), 0, nil, XHopLimit6, 0},
	}
	r := rig.New(t, 256)
	run := Check6().New(r.W)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			v := &r.V
			i := r.Add(c.l3, c.pad, c.cut...)
			if v.N6 == 0 {
				v.N4, v.N6, v.Lane6[0] = 0, 1, i
			}
			run.Run(v)
			if got := r.Why(i); got != c.want {
				t.Fatalf("left for %v, want %v", got, c.want)
			}
			if (v.N6 == 1) != (c.want == 0) {
				t.Errorf("%d packets in the lane", v.N6)
			}
			if c.want == 0 && !bytes.Equal(r.L3(i), c.l3) {
				t.Errorf("the packet changed: % x", r.L3(i))
			}
			if c.want == 0 && int(v.Mbuf(i).PktLen) != len(c.l3)+14 {
				t.Errorf("%d bytes left, want %d", v.Mbuf(i).PktLen, len(c.l3)+14)
			}
			if c.want == XOption6 {
				if p := XOption6.Info().Arg(v, i); p != c.pointer {
					t.Errorf("pointer %d, want %d", p, c.pointer)
				}
			}
			r.FreeAll()
		})
	}
}

// TestCheck6Order: what is set aside and stays keeps its place.
func TestCheck6Order(t *testing.T) {
	r := rig.New(t, 512)
	run := Check6().New(r.W)
	var want []uint8
	for i := range 256 {
		src := []string{"2001:db8:1::5", "64:ff9b::1", "fe80::1", "2001:db8:1::5"}[i*7%11%4]
		r.Add(rig.IP6(src, "2001:db8:9::9", 17, make([]byte, 8)), 0)
		if src != "fe80::1" {
			want = append(want, uint8(i))
		}
	}
	run.Run(&r.V)
	if got := r.V.Lane6[:r.V.N6]; !bytes.Equal(got, want) {
		t.Errorf("lane %v, want %v", got, want)
	}
	r.FreeAll()
}

// slow6 is the expectation for one packet from its rules, without hop-by-hop options.
func slow6(b []byte, own map[netip.Addr]uint16) graph.Reason {
	n := int(b[4])<<8 | int(b[5])
	src, dst := netip.AddrFrom16([16]byte(b[8:])), netip.AddrFrom16([16]byte(b[24:]))
	_, ours := own[dst]
	switch {
	case n+40 > len(b):
		return XLength6
	case b[6] == 0 && n == 0:
		return XJumbo
	case src.IsMulticast(), src.IsUnspecified(), src.IsLoopback(), src.Is4In6():
		return XSource6
	case ours:
		return 0
	case src.IsLinkLocalUnicast():
		if dst.IsMulticast() && b[25]&15 <= 2 && b[6] != 0 {
			return 0
		}
		return XLinkLocal6
	case b[7] < 2 && !dst.IsMulticast() && b[6] != 0:
		return XHopLimit6
	}
	return 0
}

func FuzzCheck6(f *testing.F) {
	f.Add([]byte(rig.IP6("2001:db8:1::5", "2001:db8:9::9", 0, hop(0x9e, 0))))
	f.Add([]byte(rig.IP6("fe80::5", "ff02::9", 17, hop(0x9e, 0))))
	r := rig.New(f, 128)
	run := Check6().New(r.W)
	own := r.W.Tables.Addrs.Load().Is
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 40 || len(b) > 1500 {
			return
		}
		b[0] = 0x60 | b[0]&15
		i := r.Add(b, 0)
		run.Run(&r.V)
		got, want := r.Why(i), slow6(b, own)
		if hopReason := got == XHopByHop || got == XManyOptions || got == XDiscard6 || got == XOption6 || got == XJumbo || got == XHopLimit6; got != want &&
			!(b[6] == 0 && want == 0 && hopReason) {
			t.Errorf("%v, want %v", got, want)
		}
		if got == XOption6 {
			if p := int(XOption6.Info().Arg(&r.V, i)); p < 42 || p >= len(b) || b[p]>>6 < 2 {
				t.Errorf("pointer %d is at no such option", p)
			}
		}
		r.FreeAll()
	})
}
