package ip

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"millrace/ip/internal/rig"
	"millrace/packet"
	"millrace/pipeline/graph"
)

func change4(h packet.IPv4, f func(h packet.IPv4)) packet.IPv4 {
	f(h)
	if hl := h.HeaderLen(); hl >= 20 && hl <= len(h) {
		h.SetSum()
	}
	return h
}

func TestCheck4(t *testing.T) {
	const a, b = "203.0.113.5", "198.51.100.9"
	ttl := func(n uint8) func(packet.IPv4) { return func(h packet.IPv4) { h.SetTTL(n) } }
	nothing := func(packet.IPv4) {}
	cases := []struct {
		name string
		l3   []byte
		pad  int
		cut  []int
		want graph.Reason
	}{
		{"plain", rig.UDP4(a, b, nil, 100), 0, nil, 0},
		{"padded", rig.UDP4(a, b, nil, 6), 20, nil, 0},
		{"padded chain", rig.UDP4(a, b, nil, 6), 20, []int{34, 3, 3, 2}, 0},
		{"ttl 2", change4(rig.UDP4(a, b, nil, 8), ttl(2)), 0, nil, 0},
		{"ttl 1", change4(rig.UDP4(a, b, nil, 8), ttl(1)), 0, nil, XTTL4},
		{"ttl 0", change4(rig.UDP4(a, b, nil, 8), ttl(0)), 0, nil, XTTL4},
		{"ttl 1 for us", change4(rig.UDP4(a, "192.0.2.1", nil, 8), ttl(1)), 0, nil, 0},
		{"ttl 1 multicast", change4(rig.UDP4(a, "224.0.0.5", nil, 8), ttl(1)), 0, nil, 0},
		{"from 0/8", rig.UDP4("0.1.2.3", b, nil, 8), 0, nil, XSource4},
		{"from 127/8", rig.UDP4("127.0.0.1", b, nil, 8), 0, nil, XSource4},
		{"from multicast", rig.UDP4("224.0.0.1", b, nil, 8), 0, nil, XSource4},
		{"from class E", rig.UDP4("240.0.0.1", b, nil, 8), 0, nil, XSource4},
		{"from broadcast", rig.UDP4("255.255.255.255", b, nil, 8), 0, nil, XSource4},
		{"from 223", rig.UDP4("223.255.255.255", b, nil, 8), 0, nil, 0},
		{"from link-local", rig.UDP4("169.254.0.1", b, nil, 8), 0, nil, XLinkLocal4},
		{"from link-local for us", rig.UDP4("169.254.0.1", "192.0.2.1", nil, 8), 0, nil, 0},
		{"from 169.253", rig.UDP4("169.253.0.1", b, nil, 8), 0, nil, 0},
		{"version", change4(rig.UDP4(a, b, nil, 8), func(h packet.IPv4) { h[0] = 0x55 }), 0, nil, XHeader4},
		{"ihl 4", change4(rig.UDP4(a, b, nil, 8), func(h packet.IPv4) { h[0] = 0x44 }), 0, nil, XHeader4},
		{"too long", change4(rig.UDP4(a, b, nil, 8), func(h packet.IPv4) { h.SetTotalLen(29) }), 0, nil, XLength4},
		{"shorter than header", change4(rig.UDP4(a, b, nil, 8), func(h packet.IPv4) { h.SetTotalLen(19) }), 0, nil, XLength4},
		{"options longer than packet", change4(rig.UDP4(a, b, nil, 8), func(h packet.IPv4) { h[0] = 0x4f }), 0, nil, XLength4},
		{"checksum", func() []byte { h := rig.UDP4(a, b, nil, 8); h[10] ^= 1; return h }(), 0, nil, XSum4},
		{"nops", change4(rig.UDP4(a, b, []byte{1, 1, 1, 0}, 8), nothing), 0, nil, 0},
		{"options over segments", rig.UDP4(a, b, []byte{7, 7, 4, 0, 0, 0, 0, 0}, 80), 0, []int{36, 3, 40}, 0},
		{"bad options", rig.UDP4(a, b, []byte{7, 2, 4, 0}, 8), 0, nil, XOptions4},
		{"bad options for us", rig.UDP4(a, "198.51.100.1", []byte{7, 2, 4, 0}, 8), 0, nil, 0},
		{"loose route", rig.UDP4(a, b, []byte{131, 7, 4, 1, 1, 1, 1, 0}, 8), 0, nil, XSourceRoute},
		{"strict route", rig.UDP4(a, b, []byte{137, 7, 4, 1, 1, 1, 1, 0}, 8), 0, nil, XSourceRoute},
		{"router alert", rig.UDP4(a, b, []byte{148, 4, 0, 0}, 8), 0, nil, 0},
		{"router alert, ttl 1", change4(rig.UDP4(a, b, []byte{148, 4, 0, 0}, 8), ttl(1)), 0, nil, XTTL4},
	}
	r := rig.New(t, 256)
	run := Check4().New(r.W)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			i := r.Add(c.l3, c.pad, c.cut...)
			run.Run(&r.V)
			if got := r.Why(i); got != c.want {
				t.Errorf("left for %v, want %v", got, c.want)
			}
			if n := r.V.N4; (n == 1) != (c.want == 0) {
				t.Errorf("%d packets in the lane", n)
			}
			if c.want == 0 {
				m := r.V.Mbuf(i)
				if int(m.PktLen) != 14+len(c.l3) || !bytes.Equal(r.L3(i), c.l3) {
					t.Errorf("packet of %d bytes, want %d with the contents unchanged", m.PktLen-14, len(c.l3))
				}
				n, segs := 0, 0
				for s := m; s != nil; s = s.NextSeg() {
					n += int(s.DataLen)
					segs++
				}
				if n != int(m.PktLen) || segs != int(m.NbSegs) {
					t.Errorf("segments hold %d bytes in %d, header says %d in %d", n, segs, m.PktLen, m.NbSegs)
				}
				if d := packet.IPv4(c.l3).Dst(); netip.AddrFrom4(d) != netip.AddrFrom4([4]byte{byte(r.V.Dst4[0] >> 24), byte(r.V.Dst4[0] >> 16), byte(r.V.Dst4[0] >> 8), byte(r.V.Dst4[0])}) {
					t.Errorf("Dst4 %x, want %v", r.V.Dst4[0], d)
				}
			}
			r.FreeAll()
		})
	}
}

func TestSourceRoute(t *testing.T) {
	r := rig.New(t, 128)
	run := Check4(SourceRoute).New(r.W)
	loose := r.Add(rig.UDP4("203.0.113.5", "198.51.100.9", []byte{131, 7, 4, 1, 1, 1, 1, 0}, 8), 0)
	strict := r.Add(rig.UDP4("203.0.113.5", "198.51.100.9", []byte{137, 7, 4, 1, 1, 1, 1, 0}, 8), 0)
	run.Run(&r.V)
	if r.Why(loose) != 0 || r.Why(strict) != XSourceRoute {
		t.Errorf("loose: %v, strict: %v", r.Why(loose), r.Why(strict))
	}
	r.FreeAll()
}

// slow4 is check4 for one packet of l bytes in one segment, rule by rule.
func slow4(b []byte, own map[netip.Addr]uint16) (graph.Reason, int) {
	if b[0]>>4 != 4 || b[0]&15 < 5 {
		return XHeader4, 0
	}
	hl, tl := int(b[0]&15)*4, int(b[2])<<8|int(b[3])
	if tl < hl || tl > len(b) {
		return XLength4, 0
	}
	sum := uint32(0)
	for i := 0; i < hl; i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum != 0xffff {
		return XSum4, 0
	}
	src, dst := netip.AddrFrom4([4]byte(b[12:])), netip.AddrFrom4([4]byte(b[16:]))
	if src.As4()[0] == 0 || src.IsLoopback() || src.As4()[0] >= 224 {
		return XSource4, 0
	}
	_, ours := own[dst]
	group := dst.As4()[0] >= 224
	if ours {
		return 0, tl
	}
	if src.IsLinkLocalUnicast() && !(group && hl == 20) {
		return XLinkLocal4, 0
	}
	o, bad := parseOptions(b[:hl])
	if bad != 0 {
		return XOptions4, 0
	}
	if o.loose || o.strict {
		return XSourceRoute, 0
	}
	if b[8] < 2 && !group {
		return XTTL4, 0
	}
	return 0, tl
}

// TestCheck4Random compares whole vectors of half-broken packets with slow4, in order.
func TestCheck4Random(t *testing.T) {
	r := rig.New(t, 1024)
	run := Check4().New(r.W)
	rnd := rand.New(rand.NewPCG(1, 2))
	own := r.W.Tables.Addrs.Load().Is
	tops := []byte{0, 10, 127, 169, 192, 223, 224, 240, 255}
	for range 200 {
		type want struct {
			why graph.Reason
			len int
		}
		var wants []want
		n := 1 + rnd.IntN(256)
		for range n {
			opts := make([]byte, 0)
			if rnd.IntN(5) == 0 {
				opts = make([]byte, 4*rnd.IntN(11))
				for i := range opts {
					opts[i] = []byte{0, 1, 2, 3, 4, 5, 7, 8, 68, 131, 137, 148}[rnd.IntN(12)]
				}
			}
			h := rig.UDP4("203.0.113.5", "198.51.100.9", opts, rnd.IntN(40))
			if rnd.IntN(3) == 0 {
				h[12], h[13] = tops[rnd.IntN(len(tops))], 254
			}
			if rnd.IntN(3) == 0 {
				h.SetDst([][4]byte{{192, 0, 2, 1}, {224, 0, 0, 1}, {255, 255, 255, 255}, {8, 8, 8, 8}}[rnd.IntN(4)])
			}
			h.SetTTL(uint8(rnd.IntN(5)))
			h.SetSum()
			if rnd.IntN(8) == 0 {
				h[rnd.IntN(20)] ^= 1 << rnd.IntN(8)
				if rnd.IntN(2) == 0 && h.HeaderLen() <= len(h) && h.HeaderLen() >= 20 {
					h.SetSum()
				}
				if h[0]>>4 == 6 { // classify would not call it IPv4
					h[0] ^= 0x20
				}
			}
			pad := 0
			if rnd.IntN(3) == 0 {
				pad = rnd.IntN(20)
			}
			r.Add(h, pad)
			w, l := slow4(append(slices.Clone(h), make([]byte, pad)...), own)
			wants = append(wants, want{w, l})
		}
		run.Run(&r.V)
		k := 0
		for i, w := range wants {
			p := uint8(i)
			if got := r.Why(p); got != w.why {
				t.Fatalf("packet % x: %v, want %v", r.L3(p), got, w.why)
			}
			if w.why != 0 {
				continue
			}
			if r.V.Lane4[uint8(k)] != p || int(r.V.Len[p]) != w.len || int(r.V.Mbuf(p).PktLen) != w.len+14 {
				t.Fatalf("place %d: position %d of %d bytes, want %d of %d", k, r.V.Lane4[uint8(k)], r.V.Len[p], p, w.len)
			}
			if d := packet.IPv4(r.L3(p)).Dst(); r.V.Dst4[uint8(k)] != uint32(d[0])<<24|uint32(d[1])<<16|uint32(d[2])<<8|uint32(d[3]) {
				t.Fatalf("place %d: Dst4 is of another packet", k)
			}
			k++
		}
		if r.V.N4 != k {
			t.Fatalf("%d packets in the lane, want %d", r.V.N4, k)
		}
		r.FreeAll()
	}
}

// TestCheck4Ways compares sixteens with each: whole vectors, with few and many packets that need a closer look and gaps in the lane.
func TestCheck4Ways(t *testing.T) {
	if !vector4 {
		t.Skip("no AVX-512 here")
	}
	r := rig.New(t, 1024)
	rnd := rand.New(rand.NewPCG(3, 4))
	for round := range 400 {
		rare := []int{1 << 20, 200, 40, 5}[round%4]
		lane := 0
		for i := range 1 + rnd.IntN(graph.VectorSize) {
			h := rig.UDP4("203.0.113.5", "198.51.100.9", nil, rnd.IntN(40))
			for _, k := range []int{1, 4, 5, 6, 7, 9, 13, 14, 15, 16, 17, 18, 19} {
				h[k] = byte(rnd.Uint32())
			}
			h.SetTTL(uint8(2 + rnd.IntN(254)))
			h[12] = byte(1 + rnd.IntN(126))
			pad := 0
			if rnd.IntN(rare) == 0 {
				switch rnd.IntN(5) {
				case 0:
					pad = 1 + rnd.IntN(9)
				case 1:
					h[12] = byte(rnd.Uint32())
				case 2:
					h.SetTTL(uint8(rnd.IntN(3)))
				case 3:
					h.SetTotalLen(h.TotalLen() + rnd.IntN(3) - 1)
				case 4:
					h[0] = 0x40 + byte(rnd.IntN(16))
				}
			}
			h[10], h[11] = 0, 0
			sum := uint32(0)
			for k := 0; k < 20; k += 2 {
				sum += uint32(h[k])<<8 | uint32(h[k+1])
			}
			sum = sum>>16 + sum&0xffff
			sum = ^(sum>>16 + sum)
			h[10], h[11] = byte(sum>>8), byte(sum)
			if rnd.IntN(rare) == 0 {
				h[rnd.IntN(20)] ^= 1 << rnd.IntN(8)
			}
			r.Add(h, pad)
			if rnd.IntN(4*rare) != 0 {
				r.V.Lane4[lane] = uint8(i)
				lane++
			}
		}
		v := r.V
		v.NOdd = 0
		one, two := check4{w: r.W}, check4{w: r.W}
		v.N4 = 0
		w := v
		type cut struct{ pkt, data uint32 }
		cuts := make([]cut, v.N) // each trims padding: put it back
		for i := range cuts {
			m := v.Mbuf(uint8(i))
			cuts[i] = cut{m.PktLen, uint32(m.DataLen)}
		}
		one.each(&v, 0, lane)
		for i, c := range cuts {
			m := v.Mbuf(uint8(i))
			cuts[i] = cut{m.PktLen, uint32(m.DataLen)}
			m.PktLen, m.DataLen = c.pkt, uint16(c.data)
		}
		two.sixteens(&w, lane)
		if v.N4 != w.N4 || v.NOdd != w.NOdd || v.Len != w.Len || !slices.Equal(v.Lane4[:v.N4], w.Lane4[:v.N4]) ||
			!slices.Equal(v.Dst4[:v.N4], w.Dst4[:v.N4]) || !slices.Equal(v.Odd[:v.NOdd], w.Odd[:v.NOdd]) ||
			!slices.Equal(one.back.at[:v.NOdd], two.back.at[:v.NOdd]) {
			t.Fatalf("round %d: lane of %d: each finds %d good and %d to look at, sixteens %d and %d, or others",
				round, lane, v.N4, v.NOdd, w.N4, w.NOdd)
		}
		for i, c := range cuts {
			if m := w.Mbuf(uint8(i)); m.PktLen != c.pkt || uint32(m.DataLen) != c.data {
				t.Fatalf("round %d: position %d: %d bytes behind sixteens, want %d", round, i, m.PktLen, c.pkt)
			}
		}
		r.FreeAll()
	}
	// Positions that wrap are not consecutive.
	for i := range 256 {
		r.Add(rig.UDP4("203.0.113.5", "198.51.100.9", nil, 26), 0)
		r.V.Lane4[i] = uint8(i + 248)
	}
	s := check4{w: r.W}
	r.V.N4, r.V.NOdd = 0, 0
	if s.sixteens(&r.V, 256); r.V.N4 != 256 || r.V.Lane4[8] != 0 {
		t.Errorf("a lane that wraps: %d good", r.V.N4)
	}
	r.FreeAll()
}

func FuzzCheck4(f *testing.F) {
	f.Add([]byte(rig.UDP4("203.0.113.5", "198.51.100.9", []byte{68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0}, 8)))
	f.Add([]byte(rig.UDP4("203.0.113.5", "198.51.100.9", nil, 8)))
	r := rig.New(f, 128)
	run, fill := Check4().New(r.W), Options4().New(r.W)
	own := r.W.Tables.Addrs.Load().Is
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 20 || len(b) > 1500 {
			return
		}
		if h := packet.IPv4(b); h.Valid() {
			h.SetSum()
		}
		b[0] = 0x40 | b[0]&15
		i := r.Add(b, 0)
		r.V.Adj[i] = 2
		run.Run(&r.V)
		why, n := slow4(b, own)
		if got := r.Why(i); got != why || why == 0 && int(r.V.Len[i]) != n {
			t.Errorf("%v, %d bytes, want %v, %d", got, r.V.Len[i], why, n)
		}
		if r.V.N4 == 1 {
			fill.Run(&r.V)
			if h := packet.IPv4(r.L3(i)); !h.SumOK() {
				t.Error("checksum is wrong behind options4")
			}
		}
		r.FreeAll()
	})
}

func TestNoAllocs(t *testing.T) {
	r := rig.New(t, 1024)
	c4, c6, fill := Check4().New(r.W), Check6().New(r.W), Options4().New(r.W)
	l4 := [][]byte{rig.UDP4("203.0.113.5", "198.51.100.9", nil, 8), change4(rig.UDP4("203.0.113.5", "198.51.100.9", nil, 8), func(h packet.IPv4) { h.SetTTL(1) }),
		rig.UDP4("203.0.113.5", "198.51.100.9", []byte{7, 7, 4, 0, 0, 0, 0, 0}, 8)}
	l6 := [][]byte{rig.IP6("2001:db8::5", "2001:db8:2::9", 17, make([]byte, 20)), rig.IP6("fe80::5", "2001:db8:2::9", 17, make([]byte, 20)),
		rig.IP6("2001:db8::5", "2001:db8:2::9", 0, []byte{17, 0, 5, 2, 0, 0, 1, 0})}
	for _, b := range append(l4, l6...) {
		r.Add(b, 0)
	}
	n := testing.AllocsPerRun(100, func() {
		v := &r.V
		v.N4, v.N6, v.NX = 0, 0, 0
		for i := range v.N {
			v.Join(uint8(i))
		}
		c4.Run(v)
		c6.Run(v)
		fill.Run(v)
	})
	if n != 0 {
		t.Errorf("%v allocations a vector", n)
	}
	r.FreeAll()
}

func TestIDs(t *testing.T) {
	g := NewIDs()
	src, dst := [4]byte{192, 0, 2, 1}, [4]byte{198, 51, 100, 7}
	seen := map[uint16]bool{}
	for range 1 << 16 {
		id := g.Next(src, dst, 17)
		if seen[id] {
			t.Fatalf("%d twice within 65,536", id)
		}
		seen[id] = true
	}
	near := 0
	for i := range 256 {
		a, b := g.Next(src, [4]byte{10, 0, 0, byte(i)}, 17), g.Next(src, [4]byte{10, 0, 1, byte(i)}, 17)
		if d := int16(a - b); d > -64 && d < 64 {
			near++
		}
	}
	if near > 64 {
		t.Errorf("%d of 256 pairs of receivers get neighbouring numbers", near)
	}
}

func BenchmarkCheck4(b *testing.B) {
	for name, pad := range map[string]int{"64B": 0, "padded": 6} {
		b.Run(name, func(b *testing.B) {
			r := rig.New(b, 512)
			run := Check4().New(r.W)
			l := rig.UDP4("203.0.113.5", "198.51.100.9", nil, 26-pad)
			for range 256 {
				r.Add(l, pad)
			}
			for range b.N {
				v := &r.V
				v.N4 = 256
				for i := range 256 {
					v.Lane4[i] = uint8(i)
					if pad != 0 {
						m := v.Mbuf(uint8(i))
						m.PktLen, m.DataLen, v.Len[i] = 60, 60, 46
					}
				}
				run.Run(v)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/packet")
			r.FreeAll()
		})
	}
}

func BenchmarkCheck6(b *testing.B) {
	r := rig.New(b, 512)
	run := Check6().New(r.W)
	l := rig.IP6("2001:db8::5", "2001:db8:2::9", 17, make([]byte, 26))
	for range 256 {
		r.Add(l, 0)
	}
	for range b.N {
		v := &r.V
		v.N6 = 256
		for i := range 256 {
			v.Lane6[i] = uint8(i)
		}
		run.Run(v)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/256, "ns/packet")
	r.FreeAll()
}
