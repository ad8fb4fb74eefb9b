package host

import (
	"bytes"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"millrace/internal/testnet"
	"millrace/packet"
)

// comparableTo leaves out of an IP packet what two hosts may do differently: TTL, IPv4's
// identification and DF, IPv6's class and label, and the checksums that follow from them.
func comparableTo(p []byte) []byte {
	p = bytes.Clone(p)
	if p[0]>>4 == 4 {
		clear(p[4:8])
		p[8] = 0
		clear(p[10:12])
		return p[:packet.IPv4(p).TotalLen()]
	}
	copy(p, []byte{0x60, 0, 0, 0})
	p[7] = 0
	return p[:40+packet.IPv6(p).PayloadLen()]
}

// answer reports whether an IP packet is more than what hosts send unasked.
func answer(p []byte) bool {
	return p[0]>>4 == 4 || p[0]>>4 == 6 && p[6] != 0 && !(p[6] == 58 && (p[40] == 133 || p[40] == 135 || p[40] == 143))
}

// TestLikeLinux sends the same frames to this host and to Linux.
func TestLikeLinux(t *testing.T) {
	node, far := testnet.New(t), testnet.New(t)
	testnet.Veth(t, node, "h0", far, "p0")
	far.Run(t, "sysctl", "-qw", "net.ipv6.conf.p0.disable_ipv6=1")
	for _, c := range []string{
		"ip link set h0 address 00:11:22:33:44:56", "ethtool -K h0 tx off", "ip addr add 192.0.2.1/24 dev h0", "ip addr add 2001:db8:1::1/64 dev h0",
		"ip addr add fe80::211:22ff:fe33:4456/64 dev h0",
		"ip route add 2001:db8:ffff::/48 dev h0", "ip neigh add 192.0.2.9 lladdr 02:00:00:00:00:09 dev h0",
		"ip neigh add 2001:db8:ffff::9 lladdr 02:00:00:00:00:09 dev h0", "ip neigh add fe80::9 lladdr 02:00:00:00:00:09 dev h0",
		"sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.h0.rp_filter=0",
	} {
		if out, err := node.Command("sh", "-c", c).CombinedOutput(); err != nil && !strings.Contains(string(out), "exists") {
			t.Skipf("cannot set up the Linux host: %s: %s", c, out)
		}
	}
	sock := far.Raw(t, "p0")
	for sock.Recv(300*time.Millisecond) != nil {
	}

	udp := &layers.UDP{SrcPort: 4000, DstPort: 53}
	with4 := func(change func(*layers.IPv4, *layers.Ethernet), l ...gopacket.SerializableLayer) []byte {
		e, ip := eth(ourMAC, layers.EthernetTypeIPv4), ip4(layers.IPProtocolUDP)
		if change != nil {
			change(ip, e)
		}
		udp.SetNetworkLayerForChecksum(ip)
		return pack(t, append([]gopacket.SerializableLayer{e, ip}, l...)...)
	}
	tcp := func(v6 bool, x layers.TCP, n int) []byte {
		x.SrcPort, x.DstPort, x.Window = 1234, 179, 1000
		if v6 {
			ip := ip6(farAway6, global6, 6)
			x.SetNetworkLayerForChecksum(ip)
			return pack(t, eth(ourMAC, layers.EthernetTypeIPv6), ip, &x, gopacket.Payload(pattern(n)))
		}
		ip := ip4(6)
		x.SetNetworkLayerForChecksum(ip)
		return pack(t, eth(ourMAC, layers.EthernetTypeIPv4), ip, &x, gopacket.Payload(pattern(n)))
	}
	heads := func(next uint8, p []byte, sumAt int, l ...[]byte) []byte {
		f := raw6(farAway6, global6, next, p, sumAt)
		var x []byte
		for i, h := range l {
			after := next
			if i+1 < len(l) {
				after = l[i+1][0]
			}
			x = append(append(x, after), h[1:]...)
		}
		f[20] = l[0][0]
		f = append(f[:54:54], append(x, f[54:]...)...)
		packet.IPv6(f[14:]).SetPayloadLen(len(f) - 54)
		return f
	}
	echo := append([]byte{128, 0, 0, 0, 0, 5, 0, 6}, pattern(8)...)
	toGroup := echo6(t, peer6, allNodes, 8)
	copy(toGroup, []byte{0x33, 0x33, 0, 0, 0, 1})
	withTOS := with4(nil, udp, gopacket.Payload(pattern(30)))
	body := gopacket.Payload(pattern(1200))
	overlap := append(cut4(echo4(t, 400), 9, 96)[:1], cut4(echo4(t, 400), 9, 80)[1:]...)

	for _, c := range []struct {
		name   string
		frames [][]byte
	}{
		{"echo", [][]byte{echo4(t, 56)}},
		{"long echo", cut4(echo4(t, 1400), 1, 480)},
		{"echo backwards", reversed(cut4(echo4(t, 1000), 2, 480))},
		{"overlap", overlap},
		{"broadcast echo", [][]byte{with4(func(i *layers.IPv4, e *layers.Ethernet) {
			i.DstIP, e.DstMAC, i.Protocol = net.IP{192, 0, 2, 255}, hw(everybody), 1
		}, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}, gopacket.Payload(pattern(40)))}},
		{"udp", [][]byte{withTOS}},
		{"long udp", [][]byte{with4(nil, udp, body)}},
		{"unknown protocol", [][]byte{with4(func(i *layers.IPv4, _ *layers.Ethernet) { i.Protocol = 250 }, body)}},
		{"udp to the broadcast MAC", [][]byte{with4(func(_ *layers.IPv4, e *layers.Ethernet) { e.DstMAC = hw(everybody) }, udp, body)}},
		{"an error", [][]byte{with4(func(i *layers.IPv4, _ *layers.Ethernet) { i.Protocol = 1 }, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(3, 1)}, body)}},
		{"syn", [][]byte{tcp(false, layers.TCP{SYN: true, Seq: 77}, 0)}},
		{"ack with data", [][]byte{tcp(false, layers.TCP{ACK: true, Seq: 77, Ack: 99}, 10)}},
		{"fin", [][]byte{tcp(false, layers.TCP{FIN: true, Seq: 77}, 10)}},
		{"rst", [][]byte{tcp(false, layers.TCP{RST: true, Seq: 77}, 0)}},
		{"IPv6 syn", [][]byte{tcp(true, layers.TCP{SYN: true, Seq: 77}, 4)}},
		{"IPv6 ack", [][]byte{tcp(true, layers.TCP{ACK: true, Seq: 77, Ack: 99}, 10)}},
		{"IPv6 echo", [][]byte{echo6(t, farAway6, global6, 56)}},
		{"IPv6 echo in one fragment", cut6(echo6(t, farAway6, global6, 56), 3, 2000)},
		{"IPv6 long echo", cut6(echo6(t, farAway6, global6, 1400), 4, 480)},
		{"IPv6 echo backwards", reversed(cut6(echo6(t, farAway6, global6, 1000), 5, 480))},
		{"echo to all nodes", [][]byte{toGroup}},
		{"IPv6 udp", [][]byte{raw6(farAway6, global6, 17, append([]byte{0x0f, 0xa0, 0, 53, 0, 16, 0, 0}, pattern(8)...), 6)}},
		{"unknown next header", [][]byte{raw6(farAway6, global6, 200, pattern(40), -1)}},
		{"unknown behind options", [][]byte{heads(200, pattern(9), -1, []byte{60, 0, 1, 4, 0, 0, 0, 0})}},
		{"option 10", [][]byte{heads(58, echo, 2, []byte{60, 0, 0x87, 4, 0, 0, 0, 0})}},
		{"option 11 in hop-by-hop", [][]byte{heads(58, echo, 2, []byte{0, 0, 0xc7, 4, 0, 0, 0, 0})}},
		{"option 01", [][]byte{heads(58, echo, 2, []byte{60, 0, 0x47, 4, 0, 0, 0, 0})}},
		{"routing type 0", [][]byte{heads(58, echo, 2, []byte{43, 0, 0, 1, 0, 0, 0, 0})}},
		{"routing type 0 done", [][]byte{heads(58, echo, 2, []byte{43, 0, 0, 0, 0, 0, 0, 0})}},
		{"fragment of 15 bytes", [][]byte{heads(17, pattern(15), -1, []byte{44, 0, 0, 1, 0, 0, 0, 7})}},
		{"fragment too far out", [][]byte{heads(17, pattern(16), -1, []byte{44, 0, 0xff, 0xf8, 0, 0, 0, 7})}},
		{"option behind an error", [][]byte{heads(58, append([]byte{1, 4, 0, 0}, pattern(20)...), 2, []byte{60, 0, 0x87, 4, 0, 0, 0, 0})}},
		{"solicitation", [][]byte{toMulticast(nd(t, 135, 0, peer6, solicitedNode(our6), our6, 1, peerMAC))}},
		{"duplicate address detection", [][]byte{toMulticast(nd(t, 135, 0, netip.IPv6Unspecified(), solicitedNode(our6), our6, 0, peerMAC))}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
			r.inject(1, nd(t, 135, 0, peer6, our6, our6, 1, peerMAC))
			r.take()
			var want, got []string
			for _, f := range c.frames {
				r.inject(1, f)
				if err := sock.Send(f); err != nil {
					t.Fatal(err)
				}
			}
			ours := r.takeRoad()
			for _, f := range r.take() {
				ours = append(ours, f[14:])
			}
			for _, p := range ours {
				if answer(p) {
					got = append(got, string(comparableTo(p)))
				}
			}
			patience := 150 * time.Millisecond
			for {
				f := sock.Recv(patience)
				if f == nil {
					break
				}
				if packet.Ethernet(f).Src() == ourMAC && packet.Ethernet(f).Type() != packet.EtherARP && answer(f[14:]) {
					want = append(want, string(comparableTo(f[14:])))
				}
			}
			// The R flag of advertisements: this host is a router.
			for i, p := range got {
				if b := []byte(p); b[0]>>4 == 6 && b[6] == 58 && b[40] == 136 {
					b[44] &^= naRouter
					clear(b[42:44])
					got[i] = string(b)
				}
			}
			for i, p := range want {
				if b := []byte(p); b[0]>>4 == 6 && b[6] == 58 && b[40] == 136 {
					clear(b[42:44])
					want[i] = string(b)
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("this host answers\n%x\nLinux answers\n%x", got, want)
			}
		})
	}
}

// toMulticast makes a frame's destination that of its IPv6 group.
func toMulticast(f []byte) []byte {
	copy(f, []byte{0x33, 0x33})
	copy(f[2:], f[50:54])
	return f
}

func reversed(l [][]byte) [][]byte { slices.Reverse(l); return l }
