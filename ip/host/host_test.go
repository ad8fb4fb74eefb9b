package host

import (
	"bytes"
	"net"
	"net/netip"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"millrace/packet"
	"millrace/pipeline/graph"
)

var (
	peerMAC   = [6]byte{0x02, 0, 0, 0, 0, 9}
	peer4     = netip.MustParseAddr("192.0.2.9")
	our4      = netip.MustParseAddr("192.0.2.1")
	peer6     = netip.MustParseAddr("fe80::9")
	our6      = netip.MustParseAddr("fe80::211:22ff:fe33:4456")
	global6   = netip.MustParseAddr("2001:db8:1::1")
	farAway6  = netip.MustParseAddr("2001:db8:ffff::9")
	everybody = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
)

func hw(m [6]byte) net.HardwareAddr { return m[:] }

func pack(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	buf := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(buf, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	return bytes.Clone(buf.Bytes())
}

func eth(dst [6]byte, typ layers.EthernetType) *layers.Ethernet {
	return &layers.Ethernet{SrcMAC: hw(peerMAC), DstMAC: hw(dst), EthernetType: typ}
}

func ip4(proto layers.IPProtocol) *layers.IPv4 {
	return &layers.IPv4{Version: 4, TTL: 3, TOS: 0x28, Id: 77, Protocol: proto, SrcIP: peer4.AsSlice(), DstIP: our4.AsSlice()}
}

func ip6(src, dst netip.Addr, next layers.IPProtocol) *layers.IPv6 {
	return &layers.IPv6{Version: 6, HopLimit: 255, NextHeader: next, SrcIP: src.AsSlice(), DstIP: dst.AsSlice()}
}

func echo4(t testing.TB, n int) []byte {
	return pack(t, eth(ourMAC, layers.EthernetTypeIPv4), ip4(layers.IPProtocolICMPv4),
		&layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0), Id: 5, Seq: 6}, gopacket.Payload(pattern(n)))[:14+20+8+n]
}

func echo6(t testing.TB, src, dst netip.Addr, n int) []byte {
	ip := ip6(src, dst, layers.IPProtocolICMPv6)
	icmp := &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}
	icmp.SetNetworkLayerForChecksum(ip)
	return pack(t, eth(ourMAC, layers.EthernetTypeIPv6), ip, icmp, gopacket.Payload(append([]byte{0, 5, 0, 6}, pattern(n)...)))
}

func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i * 7)
	}
	return b
}

func arp(t testing.TB, op uint16, dst [6]byte, smac [6]byte, sip netip.Addr, tip netip.Addr) []byte {
	b := make([]byte, 14+packet.ARPSize, 60)
	packet.Ethernet(b).SetDst(dst)
	packet.Ethernet(b).SetSrc(smac)
	packet.Ethernet(b).SetType(packet.EtherARP)
	packet.ARP(b[14:]).Set(op, smac, sip.As4(), [6]byte{}, tip.As4())
	return b[:60]
}

// nd builds an NS or NA whose checksum is right.
func nd(t testing.TB, typ, flags uint8, src, dst, target netip.Addr, opt uint8, mac [6]byte) []byte {
	p := make([]byte, 24, 32)
	p[0], p[4] = typ, flags
	a := target.As16()
	copy(p[8:], a[:])
	if opt != 0 {
		p = append(append(p, opt, 1), mac[:]...)
	}
	return raw6(src, dst, 58, p, 2)
}

// raw6 builds an IPv6 frame with the upper layer given, whose checksum lies at sumAt.
func raw6(src, dst netip.Addr, next uint8, p []byte, sumAt int) []byte {
	b := make([]byte, 54+len(p))
	packet.Ethernet(b).SetDst(ourMAC)
	packet.Ethernet(b).SetSrc(peerMAC)
	packet.Ethernet(b).SetType(packet.EtherIPv6)
	h := packet.IPv6(b[14:])
	h.Init(src.As16(), dst.As16(), next, len(p))
	h.SetHopLimit(255)
	copy(b[54:], p)
	if sumAt >= 0 {
		packet.PutSum(b[54+sumAt:], ^packet.Fold(packet.Sum(b[54:], h.Pseudo(next, len(p)))))
	}
	return b
}

// decode checks lengths and checksums of a packet that the host made.
func decode(t testing.TB, b []byte, first gopacket.LayerType) gopacket.Packet {
	t.Helper()
	p := gopacket.NewPacket(b, first, gopacket.DecodeOptions{NoCopy: true})
	if e := p.ErrorLayer(); e != nil {
		t.Fatalf("%x: %v", b, e.Error())
	}
	if ip, ok := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4); ok {
		if ip.Protocol == layers.IPProtocolICMPv4 && packet.Fold(packet.Sum(ip.Payload, 0)) != 0xffff {
			t.Errorf("ICMP checksum of %x", b)
		}
		if ip.Protocol == layers.IPProtocolTCP && packet.Fold(packet.Sum(ip.Payload, packet.IPv4(ip.Contents).Pseudo(len(ip.Payload)))) != 0xffff {
			t.Errorf("TCP checksum of %x", b)
		}
	}
	if ip, ok := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6); ok && (ip.NextHeader == 58 || ip.NextHeader == 6) {
		if packet.Fold(packet.Sum(ip.Payload, packet.IPv6(ip.Contents).Pseudo(uint8(ip.NextHeader), len(ip.Payload)))) != 0xffff {
			t.Errorf("checksum of %x", b)
		}
	}
	return p
}

func one(t testing.TB, l [][]byte, what string) []byte {
	t.Helper()
	if len(l) != 1 {
		t.Fatalf("%s: %d packets instead of one: %x", what, len(l), l)
	}
	return l[0]
}

func TestARP(t *testing.T) {
	none := netip.AddrFrom4([4]byte{})
	other := netip.MustParseAddr("192.0.2.77")
	for _, c := range []struct {
		name     string
		frame    []byte
		reply    bool
		learned  bool
		conflict bool
	}{
		{"request", arp(t, 1, everybody, peerMAC, peer4, our4), true, true, false},
		{"unicast request", arp(t, 1, ourMAC, peerMAC, peer4, our4), true, true, false},
		{"probe", arp(t, 1, everybody, peerMAC, none, our4), true, false, false},
		{"for another", arp(t, 1, everybody, peerMAC, peer4, other), false, false, false},
		{"announcement", arp(t, 1, everybody, peerMAC, peer4, peer4), false, false, false},
		{"unasked reply", arp(t, 2, ourMAC, peerMAC, peer4, our4), false, false, false},
		{"our address claimed", arp(t, 1, everybody, peerMAC, our4, our4), false, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			learned := 0
			r := newRig(t, Config{Learn: func(i uint16, a netip.Addr, m [6]byte) {
				if i != 1 || a != peer4 || m != peerMAC {
					t.Errorf("learned %d %v %x", i, a, m)
				}
				learned++
			}}, "192.0.2.1/24")
			r.inject(1, c.frame)
			out := r.take()
			if c.reply {
				b := one(t, out, "reply")
				a := packet.ARP(b[14:])
				if packet.Ethernet(b).Dst() != peerMAC || packet.Ethernet(b).Src() != ourMAC || a.Op() != 2 || a.SenderMAC() != ourMAC ||
					netip.AddrFrom4(a.SenderIP()) != our4 || a.TargetMAC() != peerMAC || a.TargetIP() != packet.ARP(c.frame[14:]).SenderIP() {
					t.Errorf("reply %x", b)
				}
			} else if len(out) != 0 {
				t.Errorf("answered by %x", out)
			}
			if learned == 1 != c.learned || r.w.C.Exit[nConflict] == 1 != c.conflict {
				t.Errorf("learned %d, conflicts %d", learned, r.w.C.Exit[nConflict])
			}
		})
	}
}

func TestVlans(t *testing.T) {
	r := newRig(t, Config{})
	r.addresses(2, "192.0.2.1/24")
	for iface, tags := range map[uint16][]byte{
		2: {0x81, 0, 0, 100},
		3: {0x88, 0xa8, 0, 200, 0x81, 0, 1, 44},
	} {
		f := arp(t, 1, everybody, peerMAC, peer4, our4)
		f = append(f[:12:12], append(bytes.Clone(tags), f[12:]...)...)
		r.inject(iface, f)
		if b := one(t, r.take(), "reply"); !bytes.Equal(b[12:12+len(tags)], tags) || !packet.ARP(b[14+len(tags):]).Valid() {
			t.Errorf("interface %d: %x", iface, b)
		}
	}
}

func TestEcho4(t *testing.T) {
	for _, n := range []int{0, 1, 56, 1472, 5000, 65507} {
		r := newRig(t, Config{}, "192.0.2.1/24")
		f := echo4(t, n)
		r.inject(1, f, 30, 1, 800)
		b := one(t, r.takeRoad(), "reply")
		p := decode(t, b, layers.LayerTypeIPv4)
		ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		icmp := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
		if ip.TTL != 64 || ip.TOS != 0x28 || !ip.SrcIP.Equal(our4.AsSlice()) || !ip.DstIP.Equal(peer4.AsSlice()) || icmp.TypeCode != 0 ||
			icmp.Id != 5 || icmp.Seq != 6 || !bytes.Equal(icmp.Payload, pattern(n)) {
			t.Errorf("%d bytes: %v", n, p)
		}
	}
}

// TestMalformed: what is broken is dropped and not answered.
func TestMalformed(t *testing.T) {
	v4, v6 := echo4(t, 20), echo6(t, farAway6, global6, 20)
	damage := func(f []byte, at int, x byte) []byte {
		f = bytes.Clone(f)
		f[at] ^= x
		return f
	}
	own := bytes.Clone(v4)
	packet.IPv4(own[14:]).SetSrc(our4.As4())
	packet.IPv4(own[14:]).SetSum()
	for name, f := range map[string][]byte{
		"header checksum":   damage(v4, 24, 1),
		"ICMP checksum":     damage(v4, 40, 1),
		"header length":     damage(v4, 14, 1),
		"total length":      damage(v4, 16, 4),
		"cut":               v4[:40],
		"own source":        own,
		"ICMPv6 checksum":   damage(v6, 70, 1),
		"IPv6 length":       damage(v6, 18, 4),
		"IPv6 cut":          v6[:60],
		"empty":             v4[:14],
		"version":           damage(v6, 14, 0x50),
		"IPv6 group source": damage(v6, 22, 0xdf),
	} {
		r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
		r.inject(1, f)
		if n := len(r.takeRoad()) + len(r.take()); n != 0 || r.w.C.Exit[xMalformed] != 1 {
			t.Errorf("%s: %d answers, %d dropped as malformed", name, n, r.w.C.Exit[xMalformed])
		}
	}
}

func TestEchoBySummedHeader(t *testing.T) {
	r := newRig(t, Config{}, "192.0.2.1/24")
	r.inject(1, echo4(t, 10))
	r.settle()
	b := r.road[0]
	b[8]++ // as it goes on the road
	if !packet.IPv4(b).SumOK() {
		t.Errorf("header checksum of %x", b[:20])
	}
}

func TestEcho6(t *testing.T) {
	for _, n := range []int{0, 1, 56, 1448} {
		r := newRig(t, Config{}, "2001:db8:1::1/64")
		r.inject(1, echo6(t, farAway6, global6, n), 30, 1, 800)
		b := one(t, r.takeRoad(), "reply")
		p := decode(t, b, layers.LayerTypeIPv6)
		ip := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
		if ip.HopLimit != 64 || !ip.SrcIP.Equal(global6.AsSlice()) || !ip.DstIP.Equal(farAway6.AsSlice()) || ip.Payload[0] != 129 || !bytes.Equal(ip.Payload[8:], pattern(n)) {
			t.Errorf("%d bytes: %v", n, p)
		}
	}
}

// TestEchoToGroups: all-nodes is answered as Linux does, broadcasts are not.
func TestEchoToGroups(t *testing.T) {
	r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
	r.inject(1, nd(t, 135, 0, peer6, our6, our6, 1, peerMAC)) // now the neighbour is known
	r.take()
	f := echo6(t, peer6, allNodes, 8)
	copy(f, []byte{0x33, 0x33, 0, 0, 0, 1})
	r.inject(1, f)
	b := one(t, r.take(), "reply to an echo to all nodes")
	if src := packet.IPv6(b[14:]).Src(); netip.AddrFrom16(src) != our6 {
		t.Errorf("answered from %v", netip.AddrFrom16(src))
	}
	for _, dst := range []string{"192.0.2.255", "255.255.255.255", "224.0.0.1"} {
		f := echo4(t, 8)
		copy(f, everybody[:])
		h := packet.IPv4(f[14:])
		h.SetDst(netip.MustParseAddr(dst).As4())
		h.SetSum()
		before := r.w.C.ToHost
		r.inject(1, f)
		if len(r.take())+len(r.takeRoad()) != 0 || r.w.C.ToHost != before+1 {
			t.Errorf("an echo to %s was answered, or not taken", dst)
		}
	}
}

// TestErrors4 and TestErrors6: what is owed for what cannot be delivered, and what is not.
func TestErrors4(t *testing.T) {
	udp := &layers.UDP{SrcPort: 4000, DstPort: 53}
	with := func(change func(*layers.IPv4, *layers.Ethernet), l ...gopacket.SerializableLayer) []byte {
		e, ip := eth(ourMAC, layers.EthernetTypeIPv4), ip4(layers.IPProtocolUDP)
		if change != nil {
			change(ip, e)
		}
		udp.SetNetworkLayerForChecksum(ip)
		return pack(t, append([]gopacket.SerializableLayer{e, ip}, l...)...)
	}
	body := gopacket.Payload(pattern(1200))
	for _, c := range []struct {
		name  string
		frame []byte
		code  int // -1: silence
	}{
		{"udp", with(nil, udp, body), 3},
		{"unknown protocol", with(func(i *layers.IPv4, _ *layers.Ethernet) { i.Protocol = 250 }, body), 2},
		{"to the broadcast MAC", with(func(_ *layers.IPv4, e *layers.Ethernet) { e.DstMAC = hw(everybody) }, udp, body), -1},
		{"to the broadcast address", with(func(i *layers.IPv4, _ *layers.Ethernet) { i.DstIP = net.IP{192, 0, 2, 255} }, udp, body), -1},
		{"from a group", with(func(i *layers.IPv4, _ *layers.Ethernet) { i.SrcIP = net.IP{224, 0, 0, 5} }, udp, body), -1},
		{"an error", with(func(i *layers.IPv4, _ *layers.Ethernet) { i.Protocol = 1 }, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, body), -1},
		{"IGMP", with(func(i *layers.IPv4, _ *layers.Ethernet) { i.Protocol = 2 }, body), -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{}, "192.0.2.1/24")
			r.inject(1, c.frame, 50)
			if c.code < 0 {
				if n := len(r.takeRoad()) + len(r.take()); n != 0 {
					t.Errorf("%d answers", n)
				}
				return
			}
			b := one(t, r.takeRoad(), "error")
			p := decode(t, b, layers.LayerTypeIPv4)
			ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
			icmp := p.Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4)
			if icmp.TypeCode != layers.CreateICMPv4TypeCode(3, uint8(c.code)) || ip.TOS != 0xc8 || len(b) != 576 || !bytes.Equal(icmp.Payload, c.frame[14:14+548]) {
				t.Errorf("%v", p)
			}
		})
	}
}

func TestErrors6(t *testing.T) {
	udp := append([]byte{0x0f, 0xa0, 0, 53, 0, 16, 0, 0}, pattern(8)...)
	echo := append([]byte{128, 0, 0, 0, 0, 5, 0, 6}, pattern(8)...)
	chain := func(next uint8, p []byte, heads ...[]byte) []byte { // heads start with their own type
		f := raw6(farAway6, global6, next, p, map[uint8]int{17: 6, 58: 2, 6: 16}[next]-1+1)
		if next != 17 && next != 58 {
			f = raw6(farAway6, global6, next, p, -1)
		}
		var x []byte
		for i, h := range heads {
			after := next
			if i+1 < len(heads) {
				after = heads[i+1][0]
			}
			x = append(append(x, after), h[1:]...)
		}
		if len(heads) > 0 {
			f[20] = heads[0][0]
		}
		f = append(f[:54:54], append(x, f[54:]...)...)
		packet.IPv6(f[14:]).SetPayloadLen(len(f) - 54)
		return f
	}
	bad := bytes.Clone(chain(17, udp))
	bad[60] ^= 1
	group := chain(17, udp)
	copy(group, []byte{0x33, 0x33, 0, 0, 0, 1})
	noSum := raw6(farAway6, global6, 17, udp, -1)
	for _, c := range []struct {
		name      string
		frame     []byte
		typ, code int // -1: silence
		arg       uint32
	}{
		{"udp", chain(17, udp), 1, 4, 0},
		{"udp, wrong checksum", bad, -1, 0, 0},
		{"udp without checksum", noSum, -1, 0, 0},
		{"udp to a group's MAC", group, -1, 0, 0},
		{"unknown next header", chain(200, udp), 4, 1, 6},
		{"unknown behind options", chain(200, udp, []byte{60, 0, 1, 4, 0, 0, 0, 0}), 4, 1, 40},
		{"late hop-by-hop", chain(58, echo, []byte{60, 0, 1, 4, 0, 0, 0, 0}, []byte{0, 0, 1, 4, 0, 0, 0, 0}), 4, 1, 40},
		{"option 10", chain(58, echo, []byte{60, 0, 0x87, 4, 0, 0, 0, 0}), 4, 2, 42},
		{"option 11", chain(58, echo, []byte{0, 0, 0, 0xc7, 3, 0, 0, 0}), 4, 2, 43},
		{"option 01", chain(58, echo, []byte{60, 0, 0x47, 4, 0, 0, 0, 0}), -1, 0, 0},
		{"option 00", chain(17, udp, []byte{60, 0, 0x07, 4, 0, 0, 0, 0}), 1, 4, 0},
		{"option beyond its header", chain(58, echo, []byte{60, 0, 0x07, 5, 0, 0, 0, 0}), -1, 0, 0},
		{"routing type 0", chain(58, echo, []byte{43, 0, 0, 1, 0, 0, 0, 0}), 4, 0, 42},
		{"routing, no segments left", chain(17, udp, []byte{43, 0, 0, 0, 0, 0, 0, 0}), 1, 4, 0},
		{"fragment of 15 bytes", chain(17, udp[:15], []byte{44, 0, 0, 1, 0, 0, 0, 7}), 4, 0, 4},
		{"fragment too far out", chain(17, udp, []byte{44, 0, 0xff, 0xf8, 0, 0, 0, 7}), 4, 0, 42},
		{"an error", chain(58, append([]byte{1, 4, 0, 0}, pattern(20)...)), -1, 0, 0},
		{"behind an error", chain(58, append([]byte{1, 4, 0, 0}, pattern(20)...), []byte{60, 0, 0x87, 4, 0, 0, 0, 0}), -1, 0, 0},
		{"no next header", chain(59, udp), -1, 0, 0},
		{"cut header", chain(60, []byte{17, 9, 0, 0, 0, 0, 0, 0}), -1, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{}, "2001:db8:1::1/64")
			r.inject(1, c.frame, 47)
			if c.typ < 0 {
				if n := len(r.takeRoad()) + len(r.take()); n != 0 {
					t.Errorf("%d answers: %x", n, r.road)
				}
				return
			}
			b := one(t, r.takeRoad(), "error")
			p := decode(t, b, layers.LayerTypeIPv6)
			x := p.Layer(layers.LayerTypeIPv6).(*layers.IPv6).Payload
			if int(x[0]) != c.typ || int(x[1]) != c.code || packet.ICMP(x).Rest() != c.arg || !bytes.Equal(x[8:], c.frame[14:]) {
				t.Errorf("type %d code %d argument %d, want %d %d %d: %x", x[0], x[1], packet.ICMP(x).Rest(), c.typ, c.code, c.arg, x)
			}
		})
	}
}

func TestReset(t *testing.T) {
	for _, c := range []struct {
		name     string
		tcp      layers.TCP
		body     int
		seq, ack uint32
		flags    uint8
	}{
		{"syn", layers.TCP{SYN: true, Seq: 1000}, 0, 0, 1001, packet.TCPRst | packet.TCPAck},
		{"syn with data", layers.TCP{SYN: true, Seq: 0xffffffff}, 5, 0, 5, packet.TCPRst | packet.TCPAck},
		{"fin", layers.TCP{FIN: true, Seq: 7}, 3, 0, 11, packet.TCPRst | packet.TCPAck},
		{"ack", layers.TCP{ACK: true, Seq: 5, Ack: 99}, 3, 99, 0, packet.TCPRst},
		{"rst", layers.TCP{RST: true, Seq: 5}, 0, 0, 0, 0},
	} {
		for _, v6 := range []bool{false, true} {
			r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
			tcp := c.tcp
			tcp.SrcPort, tcp.DstPort = 1234, 179
			var f []byte
			if v6 {
				ip := ip6(farAway6, global6, 6)
				tcp.SetNetworkLayerForChecksum(ip)
				f = pack(t, eth(ourMAC, layers.EthernetTypeIPv6), ip, &tcp, gopacket.Payload(pattern(c.body)))
			} else {
				ip := ip4(6)
				tcp.SetNetworkLayerForChecksum(ip)
				f = pack(t, eth(ourMAC, layers.EthernetTypeIPv4), ip, &tcp, gopacket.Payload(pattern(c.body)))
			}
			r.inject(1, f)
			out := r.takeRoad()
			if c.flags == 0 {
				if len(out) != 0 {
					t.Errorf("%s was answered", c.name)
				}
				continue
			}
			b := one(t, out, c.name)
			first := gopacket.Decoder(layers.LayerTypeIPv4)
			if v6 {
				first = layers.LayerTypeIPv6
			}
			x := decode(t, b, first.(gopacket.LayerType)).Layer(layers.LayerTypeTCP).(*layers.TCP)
			if packet.TCP(x.Contents).Flags() != c.flags || x.Seq != c.seq || x.Ack != c.ack || x.SrcPort != 179 || x.DstPort != 1234 {
				t.Errorf("%s: %+v", c.name, x)
			}
		}
	}
	r := newRig(t, Config{NoReset: true}, "192.0.2.1/24")
	ip, tcp := ip4(6), &layers.TCP{SYN: true}
	tcp.SetNetworkLayerForChecksum(ip)
	r.inject(1, pack(t, eth(ourMAC, layers.EthernetTypeIPv4), ip, tcp))
	if len(r.takeRoad()) != 0 {
		t.Error("a reset in spite of NoReset")
	}
}

func TestRateLimit(t *testing.T) {
	r := newRig(t, Config{ErrorRate: 10, ErrorBurst: 5}, "2001:db8:1::1/64")
	f := raw6(farAway6, global6, 200, pattern(8), -1)
	count := func(n int) int {
		before := len(r.takeRoad())
		for range n {
			r.inject(1, f)
		}
		return len(r.takeRoad()) - before
	}
	if n := count(20); n != 5 || r.w.C.Exit[nLimited] != 15 {
		t.Errorf("a burst of %d errors, want 5; %d limited", n, r.w.C.Exit[nLimited])
	}
	r.pass(310, nil)
	if n := count(20); n != 3 {
		t.Errorf("%d errors after 0.3 s, want 3", n)
	}
	r.pass(60000, nil)
	if n := count(20); n != 5 {
		t.Errorf("%d errors after a minute, want 5", n)
	}
	before := len(r.takeRoad())
	for range 20 {
		r.inject(1, echo6(t, farAway6, global6, 8))
	}
	if n := len(r.takeRoad()) - before; n != 20 {
		t.Errorf("%d of 20 echoes: they are not limited", n)
	}
}

func TestFull(t *testing.T) {
	r := newRig(t, Config{}, "192.0.2.1/24")
	all := make([]uint32, r.pool.Size())
	n := r.w.Cache.Alloc(all)
	// Keep one buffer for the request and none for its answer.
	r.w.Cache.Free(all[:1])
	r.inject(1, echo4(t, 8))
	if r.w.C.Exit[nBuffer] != 1 || len(r.takeRoad()) != 0 {
		t.Errorf("%d notes of no buffer, %d answers", r.w.C.Exit[nBuffer], len(r.road))
	}
	r.w.Cache.Free(all[1:n])

	// More answers than the road takes in one round.
	var v graph.Vector
	f := echo4(t, 8)
	for range graph.VectorSize + 10 {
		m := r.w.Cache.Alloc1()
		copy(m.Append(len(f)), f)
		v.Reset()
		v.N, v.Idx[0], v.In[0] = 1, m.Index(), 1
		v.SetL3(0, 14)
		r.in++
		r.h.Take(&v, []uint8{0}, 0)
	}
	if r.w.C.Exit[xQueue] != 10 {
		t.Errorf("%d answers were dropped, want 10", r.w.C.Exit[xQueue])
	}
}

func TestNoAllocs(t *testing.T) {
	r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
	var v graph.Vector
	var free [8]uint32
	for name, f := range map[string][]byte{
		"echo":          echo4(t, 56),
		"echo6":         echo6(t, farAway6, global6, 56),
		"arp":           arp(t, 1, everybody, peerMAC, peer4, our4),
		"solicitation":  nd(t, 135, 0, peer6, our6, our6, 1, peerMAC),
		"unknown next":  raw6(farAway6, global6, 200, pattern(8), -1),
		"advertisement": nd(t, 136, 0x60, peer6, our6, peer6, 2, peerMAC),
	} {
		n := testing.AllocsPerRun(50, func() {
			m := r.w.Cache.Alloc1()
			copy(m.Append(len(f)), f)
			v.Reset()
			v.N, v.Idx[0], v.In[0] = 1, m.Index(), 1
			v.SetL3(0, 14)
			r.in++
			r.h.Take(&v, []uint8{0}, 0)
			r.w.Now += r.h.hz / 1000
			r.h.Tick()
			// The sink would grow: count and free what is sent.
			for _, p := range r.w.Dirty[:r.w.ND] {
				b := r.w.Tx[p]
				r.w.C.Sent += uint64(b.N)
				r.w.Cache.Free(b.Buf[:b.N])
				b.N = 0
			}
			r.w.ND = 0
			for x, ok := r.h.parked.Get(); ok; x, ok = r.h.parked.Get() {
				free[0] = x.Idx
				r.w.Cache.Free(free[:1])
				r.w.C.Sent++
			}
		})
		if n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}

// FuzzHost feeds any bytes, as frames of any kind and as several fragments of one: nothing
// may crash, leak or be lost from the account (which rig.close checks).
func FuzzHost(f *testing.F) {
	for _, b := range [][]byte{
		echo4(f, 8), echo6(f, peer6, our6, 8), arp(f, 1, everybody, peerMAC, peer4, our4),
		nd(f, 135, 0, peer6, our6, our6, 1, peerMAC), nd(f, 136, 0x60, peer6, our6, peer6, 2, peerMAC),
		raw6(peer6, our6, 0, append([]byte{44, 0, 5, 2, 0, 0, 1, 0, 58, 0, 0, 1, 0, 0, 0, 1}, pattern(16)...), -1),
		raw6(farAway6, global6, 43, append([]byte{17, 0, 0, 1, 0, 0, 0, 0}, pattern(16)...), -1),
	} {
		f.Add(b, uint8(20), uint8(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, cut, flip uint8) {
		if len(b) > 4000 || len(b) < 14 {
			return
		}
		r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
		for k := range 4 {
			r.inject(uint16(k%3+1), b, int(cut), int(cut))
			// What passes the checksums goes deeper.
			fix(b)
			r.inject(1, b)
			b[int(flip)%len(b)] ^= 1 << k
			r.pass(700, func() bool { r.w.Now += r.h.hz / 5; return false })
		}
		r.take()
	})
}

// fix makes addresses and checksums of a frame right.
func fix(b []byte) {
	switch p := b[14:]; {
	case len(b) < 42:
	case b[12] == 8 && p[0]>>4 == 4 && p[0]&15 >= 5 && len(p) >= int(p[0]&15)*4+8:
		h := packet.IPv4(p)
		h.SetDst(our4.As4())
		h.SetTotalLen(len(p))
		h.SetSum()
		if q := p[h.HeaderLen():]; h.Proto() == 1 {
			packet.PutSum(q[2:], 0)
			packet.PutSum(q[2:], packet.Checksum(q))
		}
	case b[12] == 0x86 && p[0]>>4 == 6 && len(p) >= 48:
		h := packet.IPv6(p)
		h.SetDst(our6.As16())
		h.SetPayloadLen(len(p) - 40)
		if h.Next() == 58 {
			packet.PutSum(p[42:], 0)
			packet.PutSum(p[42:], ^packet.Fold(packet.Sum(p[40:], h.Pseudo(58, len(p)-40))))
		}
	}
}
