package packet

import (
	"bytes"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"unsafe"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

func serialize(t *testing.T, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func mac(r *rand.Rand) net.HardwareAddr { return randomBytes(r, 6) }

// TestViews reads with the views what gopacket wrote, and the other way round.
func TestViews(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 12))
	for range 300 {
		eth := &layers.Ethernet{SrcMAC: mac(r), DstMAC: mac(r), EthernetType: layers.EthernetTypeIPv4}
		ip := &layers.IPv4{Version: 4, IHL: 5, TOS: uint8(r.Uint32()), Id: uint16(r.Uint32()), TTL: uint8(r.Uint32()),
			Flags: layers.IPv4Flag(r.IntN(4)), FragOffset: uint16(r.IntN(0x2000)), Protocol: layers.IPProtocolTCP, SrcIP: randomBytes(r, 4), DstIP: randomBytes(r, 4)}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(r.Uint32()), DstPort: layers.TCPPort(r.Uint32()), Seq: r.Uint32(), Ack: r.Uint32(),
			SYN: r.IntN(2) == 0, ACK: r.IntN(2) == 0, RST: r.IntN(2) == 0, Window: uint16(r.Uint32())}
		tcp.SetNetworkLayerForChecksum(ip)
		payload := randomBytes(r, r.IntN(50))
		b := serialize(t, eth, ip, tcp, gopacket.Payload(payload))
		b = b[:14+20+20+len(payload)] // less the padding to 60 bytes

		e := Ethernet(b)
		if s, d := e.Src(), e.Dst(); !bytes.Equal(s[:], eth.SrcMAC) || !bytes.Equal(d[:], eth.DstMAC) || e.Type() != EtherIPv4 {
			t.Fatalf("Ethernet: %x", b[:14])
		}
		h := IPv4(b[14:])
		if s, d := h.Src(), h.Dst(); !h.Valid() || h.TOS() != ip.TOS || h.ID() != ip.Id || h.TTL() != ip.TTL || h.FragOff() != int(ip.FragOffset)*8 ||
			h.FlagsOff() != uint16(ip.Flags)<<13|ip.FragOffset || h.Proto() != ProtoTCP || !bytes.Equal(s[:], ip.SrcIP) || !bytes.Equal(d[:], ip.DstIP) ||
			h.TotalLen() != len(b)-14 || h.HeaderLen() != 20 || h.IsFragment() != (ip.Flags&1 != 0 || ip.FragOffset != 0) {
			t.Fatalf("IPv4: %x", b[14:34])
		}
		if !h.SumOK() {
			t.Fatal("gopacket's IPv4 checksum is not accepted")
		}
		x := TCP(b[34:])
		want := uint8(0)
		for bit, on := range map[uint8]bool{TCPSyn: tcp.SYN, TCPAck: tcp.ACK, TCPRst: tcp.RST} {
			if on {
				want |= bit
			}
		}
		if x.SrcPort() != uint16(tcp.SrcPort) || x.DstPort() != uint16(tcp.DstPort) || x.Seq() != tcp.Seq || x.Ack() != tcp.Ack || x.Flags() != want || x.Window() != tcp.Window || x.HeaderLen() != 20 {
			t.Fatalf("TCP: %x", b[34:54])
		}
		if got := Fold(Sum(b[34:], h.Pseudo(len(b)-34))); got != 0xffff {
			t.Fatalf("TCP checksum: %#x", got)
		}

		// Written by the views, read by gopacket.
		w := make([]byte, 20+8)
		g := IPv4(w)
		g.Init(h.Src(), h.Dst(), ProtoUDP, len(w))
		g.SetTOS(ip.TOS)
		g.SetID(ip.Id)
		g.SetFlagsOff(IPv4DF)
		g.SetTTL(ip.TTL)
		u := UDP(w[20:])
		u.SetSrcPort(1234)
		u.SetDstPort(4321)
		u.SetLen(8)
		PutSum(w[26:], ^Fold(Sum(w[20:], g.Pseudo(8))))
		g.SetSum()
		p := gopacket.NewPacket(w, layers.LayerTypeIPv4, gopacket.Default)
		i, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		d, ok2 := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if !ok || !ok2 || !i.SrcIP.Equal(ip.SrcIP) || i.TTL != ip.TTL || i.Id != ip.Id || i.TOS != ip.TOS || i.Flags != layers.IPv4DontFragment || d.SrcPort != 1234 || d.DstPort != 4321 {
			t.Fatalf("gopacket reads %v", p)
		}
		was := d.Checksum
		d.SetNetworkLayerForChecksum(i)
		if again := serialize(t, i, d); !bytes.Equal(again, w) {
			t.Fatalf("gopacket would write %x (sum %#x) and not %x", again, was, w)
		}
	}
}

func TestViews6(t *testing.T) {
	r := rand.New(rand.NewPCG(13, 14))
	for range 200 {
		ip := &layers.IPv6{Version: 6, TrafficClass: uint8(r.Uint32()), FlowLabel: r.Uint32N(1 << 20), NextHeader: layers.IPProtocolICMPv6, HopLimit: uint8(r.Uint32()), SrcIP: randomBytes(r, 16), DstIP: randomBytes(r, 16)}
		icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
		icmp.SetNetworkLayerForChecksum(ip)
		b := serialize(t, ip, icmp, gopacket.Payload(randomBytes(r, 4+r.IntN(40))))
		h := IPv6(b)
		if s, d := h.Src(), h.Dst(); !h.Valid() || h.Class() != ip.TrafficClass || h.Label() != ip.FlowLabel || h.Next() != ProtoICMPv6 || h.HopLimit() != ip.HopLimit ||
			!bytes.Equal(s[:], ip.SrcIP) || !bytes.Equal(d[:], ip.DstIP) || h.PayloadLen() != len(b)-40 {
			t.Fatalf("IPv6: %x", b[:40])
		}
		if got := Fold(Sum(b[40:], h.Pseudo(58, len(b)-40))); got != 0xffff {
			t.Fatalf("ICMPv6 checksum: %#x", got)
		}
		w := make([]byte, 40)
		g := IPv6(w)
		g.Init(h.Src(), h.Dst(), 58, len(b)-40)
		g.SetHopLimit(ip.HopLimit)
		g.SetClass(ip.TrafficClass)
		g.SetLabel(ip.FlowLabel)
		if !bytes.Equal(w, b[:40]) {
			t.Fatalf("wrote %x, gopacket %x", w, b[:40])
		}
	}
}

func TestParseEther(t *testing.T) {
	macs := "\x01\x02\x03\x04\x05\x06\x11\x12\x13\x14\x15\x16"
	for _, c := range []struct {
		in    string
		off   int
		typ   uint16
		tags  [2]uint16
		ntags int
		ok    bool
	}{
		{macs + "\x08\x00", 14, EtherIPv4, [2]uint16{}, 0, true},
		{macs + "\x81\x00\xe0\x05\x86\xdd", 18, EtherIPv6, [2]uint16{5}, 1, true},
		{macs + "\x88\xa8\x0f\xff\x81\x00\x00\x07\x08\x06", 22, EtherARP, [2]uint16{4095, 7}, 2, true},
		{macs + "\x88\xa8\x00\x01\x81\x00\x00\x02\x81\x00\x00\x03\x08\x00", 22, EtherVLAN, [2]uint16{1, 2}, 2, true},
		{macs + "\x08", 0, 0, [2]uint16{}, 0, false},
		{macs + "\x81\x00\x00\x01\x08", 14, EtherVLAN, [2]uint16{}, 0, false},
		{"", 0, 0, [2]uint16{}, 0, false},
	} {
		off, typ, tags, n, ok := ParseEther([]byte(c.in))
		if ok != c.ok || ok && (off != c.off || typ != c.typ || tags != c.tags || n != c.ntags) {
			t.Errorf("%x: %d %#x %v %d %v", c.in, off, typ, tags, n, ok)
		}
	}
}

func TestARP(t *testing.T) {
	a := make(ARP, ARPSize)
	a.Set(ARPReply, [6]byte{1, 2, 3, 4, 5, 6}, [4]byte{192, 0, 2, 1}, [6]byte{6, 5, 4, 3, 2, 1}, [4]byte{192, 0, 2, 2})
	p := gopacket.NewPacket(a, layers.LayerTypeARP, gopacket.Default)
	x, ok := p.Layer(layers.LayerTypeARP).(*layers.ARP)
	if !ok || !a.Valid() || x.Operation != 2 || !bytes.Equal(x.SourceHwAddress, []byte{1, 2, 3, 4, 5, 6}) || !bytes.Equal(x.SourceProtAddress, []byte{192, 0, 2, 1}) ||
		!bytes.Equal(x.DstHwAddress, []byte{6, 5, 4, 3, 2, 1}) || !bytes.Equal(x.DstProtAddress, []byte{192, 0, 2, 2}) {
		t.Errorf("gopacket reads %v", p)
	}
	if a.Op() != 2 || a.SenderIP() != [4]byte{192, 0, 2, 1} || a.TargetIP() != [4]byte{192, 0, 2, 2} || a.SenderMAC()[0] != 1 || a.TargetMAC()[0] != 6 {
		t.Errorf("%x", []byte(a))
	}
	if (ARP(a[:27])).Valid() {
		t.Error("a cut ARP packet is valid")
	}
}

// ext builds an IPv6 packet with the headers given as (type, bytes behind the next
// header byte).
func ext(final uint8, payload []byte, heads ...any) []byte {
	b := make([]byte, 40)
	types := []uint8{}
	var bodies [][]byte
	for i := 0; i < len(heads); i += 2 {
		types = append(types, uint8(heads[i].(int)))
		bodies = append(bodies, heads[i+1].([]byte))
	}
	types = append(types, final)
	IPv6(b).Init([16]byte{0x20, 1}, [16]byte{0x20, 2}, types[0], 0)
	for i, x := range bodies {
		b = append(append(b, types[i+1]), x...)
	}
	b = append(b, payload...)
	IPv6(b).SetPayloadLen(len(b) - 40)
	return b
}

func TestWalkIPv6(t *testing.T) {
	hbh := []byte{0, 1, 4, 0, 0, 0, 0}
	long := append([]byte{1}, make([]byte, 14)...)
	ah := append([]byte{4}, make([]byte, 22)...)
	first := []byte{0, 0, 1, 0, 0, 0, 9}
	later := []byte{0, 0x05, 0xa9, 0, 0, 0, 9}
	pay := []byte("12345678")
	for _, c := range []struct {
		name string
		b    []byte
		want Walk
		ok   bool
	}{
		{"plain", ext(17, pay), Walk{Proto: 17, Off: 40, NextOff: 6}, true},
		{"hop-by-hop", ext(6, pay, 0, hbh), Walk{Proto: 6, Off: 48, NextOff: 40}, true},
		{"all", ext(58, pay, 0, hbh, 60, long, 43, hbh, 51, ah), Walk{Proto: 58, Off: 40 + 8 + 16 + 8 + 24, NextOff: 72}, true},
		{"first fragment", ext(17, pay, 0, hbh, 44, first, 60, hbh), Walk{Proto: 17, Off: 64, NextOff: 56, HasFrag: true, FragAt: 48, More: true, ID: 9}, true},
		{"later fragment", ext(60, pay, 44, later), Walk{Proto: 60, Off: 48, NextOff: 40, HasFrag: true, FragAt: 40, FragOff: 0x05a8, More: true, ID: 9}, true},
		{"esp ends it", ext(50, pay, 60, hbh), Walk{Proto: 50, Off: 48, NextOff: 40}, true},
		{"no next header", ext(59, nil), Walk{Proto: 59, Off: 40, NextOff: 6}, true},
		{"cut", ext(17, nil, 60, hbh)[:46], Walk{}, false},
		{"length beyond the end", ext(17, pay, 60, []byte{9, 0, 0, 0, 0, 0, 0}), Walk{}, false},
		{"short header", ext(17, nil)[:30], Walk{}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, k := testPool(t, 256)
			defer closePool(t, p, k)
			for cut := range len(c.b) + 1 {
				frame := append(make([]byte, 14), c.b...)
				m := chain(k, frame, 14+cut)
				w, ok := WalkIPv6(m, 14)
				want := c.want
				want.Off, want.NextOff = want.Off+14, want.NextOff+14
				if want.HasFrag {
					want.FragAt += 14
				}
				if ok != c.ok || ok && w != want {
					t.Errorf("segments cut at %d: %+v %v, want %+v", cut, w, ok, want)
				}
				k.Free1(m)
			}
		})
	}
	endless := []any{}
	for range 40 {
		endless = append(endless, 60, hbh)
	}
	p, k := testPool(t, 128)
	m := chain(k, ext(17, pay, endless...))
	if _, ok := WalkIPv6(m, 0); ok {
		t.Error("40 extension headers were walked")
	}
	k.Free1(m)
	closePool(t, p, k)
}

func FuzzWalkIPv6(f *testing.F) {
	f.Add(ext(17, []byte("12345678"), 0, []byte{0, 1, 4, 0, 0, 0, 0}, 44, []byte{0, 0, 1, 0, 0, 0, 9}), uint16(45))
	f.Fuzz(func(t *testing.T, b []byte, cut uint16) {
		if len(b) > 1500 {
			return
		}
		p, c := testPool(t, 128)
		m := chain(c, b, int(cut))
		one := chain(c, b)
		w, ok := WalkIPv6(m, 0)
		if w2, ok2 := WalkIPv6(one, 0); w != w2 || ok != ok2 {
			t.Errorf("segmentation changes the result: %+v %v, %+v %v", w, ok, w2, ok2)
		}
		if ok && (w.Off > len(b) || w.NextOff >= len(b) || b[w.NextOff] != w.Proto) {
			t.Errorf("%+v points outside of %d bytes", w, len(b))
		}
		k, ok := Key(m, 0)
		if k2, ok2 := Key(one, 0); k != k2 || ok != ok2 {
			t.Errorf("segmentation changes the flow: %v, %v", k, k2)
		}
		c.Free1(m)
		c.Free1(one)
		closePool(t, p, c)
	})
}

func TestKey(t *testing.T) {
	p, c := testPool(t, 128)
	defer closePool(t, p, c)
	v4 := make([]byte, 28)
	IPv4(v4).Init([4]byte{192, 0, 2, 1}, [4]byte{198, 51, 100, 2}, ProtoUDP, 28)
	UDP(v4[20:]).SetSrcPort(53)
	UDP(v4[20:]).SetDstPort(4000)
	frag := bytes.Clone(v4)
	IPv4(frag).SetFlagsOff(IPv4MF)
	v6 := ext(17, v4[20:], 60, []byte{0, 1, 4, 0, 0, 0, 0})
	IPv6(v6).SetLabel(0x54321)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.2")
	a6, b6 := netip.MustParseAddr("2001::"), netip.MustParseAddr("2002::")
	for _, x := range []struct {
		name string
		b    []byte
		want FlowKey
	}{
		{"udp", v4, FlowKey{a, b, 53, 4000, 17, 0}},
		{"fragment", frag, FlowKey{a, b, 0, 0, 17, 0}},
		{"ipv6 with options", v6, FlowKey{a6, b6, 53, 4000, 17, 0x54321}},
	} {
		if x.name == "ipv6 with options" {
			a6 := [16]byte{0x20, 1}
			b6 := [16]byte{0x20, 2}
			x.want.Src, x.want.Dst = netip.AddrFrom16(a6), netip.AddrFrom16(b6)
		}
		m := chain(c, x.b, 21)
		if k, ok := Key(m, 0); !ok || k != x.want {
			t.Errorf("%s: %+v, want %+v", x.name, k, x.want)
		}
		c.Free1(m)
	}
	k := FlowKey{a, b, 1, 2, 6, 0}
	if k.Reverse().Reverse() != k || k.Reverse().Src != b || k.Reverse().SrcPort != 2 {
		t.Errorf("Reverse: %+v", k.Reverse())
	}
}

// chi2 is the chi-square statistic of counts against a uniform spread, per degree of freedom.
func chi2(counts []int, total int) float64 {
	e := float64(total) / float64(len(counts))
	x := 0.0
	for _, n := range counts {
		x += (float64(n) - e) * (float64(n) - e) / e
	}
	return x / float64(len(counts)-1)
}

// TestFlowHashSpread: keys that differ in few bits, as real flows do, spread over
// buckets as evenly as chance would, by low bits and by high bits.
func TestFlowHashSpread(t *testing.T) {
	v4, v6 := make([]byte, 28), make([]byte, 48)
	IPv4(v4).Init([4]byte{10, 0, 0, 1}, [4]byte{10, 1, 0, 1}, ProtoTCP, 28)
	IPv6(v6).Init([16]byte{0x20, 1, 0xd, 0xb8, 15: 1}, [16]byte{0x20, 1, 0xd, 0xb8, 1, 15: 1}, ProtoTCP, 8)
	h4 := func() uint32 { return FlowHash4(FlowSeed, unsafe.Pointer(&v4[0]), 28) }
	h6 := func() uint32 { return FlowHash6(FlowSeed, unsafe.Pointer(&v6[0]), 48) }
	s4 := func() uint32 { return SymHash4(FlowSeed, unsafe.Pointer(&v4[0]), 28) }
	s6 := func() uint32 { return SymHash6(FlowSeed, unsafe.Pointer(&v6[0]), 48) }
	for _, c := range []struct {
		name string
		hash func() uint32
		set  func(i int)
	}{
		{"v4 source port", h4, func(i int) { put16(v4[20:], uint16(i)) }},
		{"v4 ports together", h4, func(i int) { put16(v4[20:], uint16(i)); put16(v4[22:], uint16(i)) }},
		{"v4 destination", h4, func(i int) { put32(v4[16:], 10<<24|uint32(i)) }},
		{"v4 both addresses", h4, func(i int) { put16(v4[14:], uint16(i>>8)); put16(v4[18:], uint16(i&255)) }},
		{"v4 network", h4, func(i int) { put16(v4[12:], uint16(i)) }},
		{"v6 source port", h6, func(i int) { put16(v6[40:], uint16(i)) }},
		{"v6 label", h6, func(i int) { IPv6(v6).SetLabel(uint32(i + 1)) }},
		{"v6 interface ids", h6, func(i int) { IPv6(v6).SetLabel(0); put16(v6[22:], uint16(i>>8)); put16(v6[38:], uint16(i&255)) }},
		{"v6 prefixes", h6, func(i int) { put16(v6[12:], uint16(i)) }},
		{"symmetric v4 ports", s4, func(i int) { put16(v4[20:], uint16(i)) }},
		{"symmetric v4 addresses", s4, func(i int) { put16(v4[14:], uint16(i>>8)); put16(v4[18:], uint16(i&255)) }},
		{"symmetric v6 ports", s6, func(i int) { put16(v6[40:], uint16(i)) }},
		{"symmetric v6 addresses", s6, func(i int) { put16(v6[22:], uint16(i>>8)); put16(v6[38:], uint16(i&255)) }},
	} {
		const n = 1 << 16
		for _, buckets := range []int{2, 8, 256, 1000} {
			low, high := make([]int, buckets), make([]int, buckets)
			for i := range n {
				c.set(i)
				h := c.hash()
				low[h%uint32(buckets)]++
				high[uint64(h)*uint64(buckets)>>32]++
			}
			// For 255 degrees of freedom 1.5 is beyond 5 sigma, for 1 degree 20 is.
			limit := 1.5
			if buckets < 16 {
				limit = 20
			}
			if x, y := chi2(low, n), chi2(high, n); x > limit || y > limit {
				t.Errorf("%s over %d buckets: chi-square per degree of freedom %.2f by low bits, %.2f by high bits", c.name, buckets, x, y)
			}
		}
	}
}

// TestFlowHashSees: the hash depends on the flow and on nothing else.
func TestFlowHashSees(t *testing.T) {
	r := rand.New(rand.NewPCG(15, 16))
	for range 2000 {
		v4 := randomBytes(r, 28)
		v4[0], v4[9] = 0x45, []byte{6, 17, 1, 47, 50, 132}[r.IntN(6)]
		put16(v4[6:], []uint16{0, IPv4DF, IPv4MF, 5}[r.IntN(4)])
		p := unsafe.Pointer(&v4[0])
		before, sym := FlowHash4(FlowSeed, p, 28), SymHash4(FlowSeed, p, 28)
		ports := portMask[v4[9]] != 0 && !IPv4(v4).IsFragment()
		for i := range v4 {
			v4[i] ^= 0x10
			if i == 0 || i == 6 || i == 7 || i == 9 {
				v4[i] ^= 0x10
				continue
			}
			seen := FlowHash4(FlowSeed, p, 28) != before
			if want := i >= 12 && i < 20 || ports && i >= 20 && i < 24; seen != want {
				t.Fatalf("byte %d of %x changes the hash: %v, want %v", i, v4, seen, want)
			}
			v4[i] ^= 0x10
		}
		w := bytes.Clone(v4)
		copy(w[12:], v4[16:20])
		copy(w[16:], v4[12:16])
		if hasPorts(v4[9]) {
			copy(w[20:], v4[22:24])
			copy(w[22:], v4[20:22])
		}
		if SymHash4(FlowSeed, unsafe.Pointer(&w[0]), 28) != sym {
			t.Fatalf("SymHash4 of %x depends on the direction", v4)
		}

		v6 := randomBytes(r, 48)
		v6[0], v6[6] = 0x60, 6
		if r.IntN(2) == 0 {
			IPv6(v6).SetLabel(0)
		}
		p = unsafe.Pointer(&v6[0])
		before, sym = FlowHash6(FlowSeed, p, 48), SymHash6(FlowSeed, p, 48)
		labelled := IPv6(v6).Label() != 0
		for i := range v6 {
			if i <= 3 || i == 6 {
				continue
			}
			v6[i] ^= 0x10
			seen := FlowHash6(FlowSeed, p, 48) != before
			if want := i >= 8 && i < 40 || !labelled && i >= 40 && i < 44; seen != want {
				t.Fatalf("byte %d of %x changes the hash: %v, want %v", i, v6, seen, want)
			}
			v6[i] ^= 0x10
		}
		IPv6(v6).SetClass(0xff)
		if FlowHash6(FlowSeed, p, 48) != before {
			t.Fatal("the traffic class enters the flow hash")
		}
		w = bytes.Clone(v6)
		copy(w[8:], v6[24:40])
		copy(w[24:], v6[8:24])
		copy(w[40:], v6[42:44])
		copy(w[42:], v6[40:42])
		if SymHash6(FlowSeed, unsafe.Pointer(&w[0]), 48) != sym {
			t.Fatalf("SymHash6 of %x depends on the direction", v6)
		}
	}
}

var sink uint32

func BenchmarkFlowHash4(b *testing.B) {
	v4 := make([]byte, 28)
	IPv4(v4).Init([4]byte{10, 0, 0, 1}, [4]byte{10, 1, 0, 1}, ProtoTCP, 28)
	p := unsafe.Pointer(&v4[0])
	for b.Loop() {
		sink += FlowHash4(FlowSeed, p, 28)
	}
}

func BenchmarkFlowHash6(b *testing.B) {
	v6 := make([]byte, 48)
	IPv6(v6).Init([16]byte{0x20, 1, 0xd, 0xb8, 15: 1}, [16]byte{0x20, 1, 0xd, 0xb8, 1, 15: 1}, ProtoTCP, 8)
	p := unsafe.Pointer(&v6[0])
	for b.Loop() {
		sink += FlowHash6(FlowSeed, p, 48)
	}
}
