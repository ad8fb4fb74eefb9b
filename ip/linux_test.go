package ip_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"millrace/internal/testnet"
	"millrace/ip"
	"millrace/ip/frag"
	"millrace/ip/icmp"
	"millrace/ip/internal/rig"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// What Linux does with a packet is an oracle: the stages of this package and those below, with a
// lookup between them that knows one way out, must forward the same bytes and send the
// same errors. Left out is where Linux differs from the RFCs and is not followed: it
// forwards packets from 240/4 and from IPv4-mapped addresses, drops source routes without an
// error, quotes packets with its own entry in record route, and puts the receiving interface's
// address into timestamps.

const mtuOut = 1400

// result is what became of one packet: IP packets that left by interface 2, and ICMP
// messages that went back by interface 1.
type result struct {
	out, back [][]byte
}

// linux is a kernel router between two raw sockets.
type linux struct {
	in, out *testnet.Raw
	mac     []byte // of the router's inner interface
	seq     uint16
}

func newLinux(t *testing.T) *linux {
	a, k, b := testnet.New(t), testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "in", k, "left")
	testnet.Veth(t, k, "right", b, "out")
	l := &linux{in: a.Raw(t, "in"), out: b.Raw(t, "out")}
	l.mac = k.Raw(t, "left").MAC
	for _, s := range []string{"net.ipv4.ip_forward=1", "net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0", "net.ipv4.icmp_msgs_per_sec=100000",
		"net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.left.rp_filter=0",
		"net.ipv6.conf.left.accept_dad=0", "net.ipv6.conf.right.accept_dad=0"} {
		k.Run(t, "sysctl", "-qw", s)
	}
	mac := l.in.MAC.String()
	for _, c := range [][]string{
		{"link", "set", "right", "mtu", fmt.Sprint(mtuOut)},
		{"addr", "add", "192.0.2.1/24", "dev", "left"}, {"addr", "add", "198.51.100.1/24", "dev", "right"},
		{"addr", "add", "2001:db8:1::1/64", "dev", "left", "nodad"}, {"addr", "add", "2001:db8:2::1/64", "dev", "right", "nodad"},
		{"addr", "add", "fe80::1/64", "dev", "left", "nodad"},
		{"neigh", "replace", "192.0.2.5", "lladdr", mac, "dev", "left"}, {"neigh", "replace", "2001:db8:1::5", "lladdr", mac, "dev", "left"},
		{"neigh", "replace", "fe80::5", "lladdr", mac, "dev", "left"},
		{"neigh", "replace", "198.51.100.7", "lladdr", l.out.MAC.String(), "dev", "right"}, {"neigh", "replace", "2001:db8:2::7", "lladdr", l.out.MAC.String(), "dev", "right"},
		{"route", "add", "10.9.9.0/24", "via", "198.51.100.7"}, {"route", "add", "2001:db8:9::/64", "via", "2001:db8:2::7"},
	} {
		k.Run(t, "ip", c...)
	}
	return l
}

// send shows the kernel a packet, then an echo request: when that is answered, the packet has been
// dealt with. It waits longer for as many packets sent on as are expected.
func (l *linux) send(t *testing.T, p []byte, expect int) (r result) {
	t.Helper()
	frame := func(p []byte) []byte {
		f := append(append(bytes.Clone(l.mac), l.in.MAC...), 8, 0)
		if p[0]>>4 == 6 {
			f[12], f[13] = 0x86, 0xdd
		}
		return append(f, p...)
	}
	l.seq++
	ping := rig.UDP4("192.0.2.5", "192.0.2.1", nil, 40)
	ping[9] = 1
	ping.SetSum()
	c := packet.ICMP(ping[20:])
	clear(c)
	c[0] = 8
	c.SetRest(uint32(l.seq))
	packet.PutSum(c[2:], packet.Checksum(c))
	l.in.Send(frame(p))
	l.in.Send(frame(ping))
	for {
		f := l.in.Recv(5 * time.Second)
		if f == nil {
			t.Fatal("the kernel does not answer")
		}
		b := f[14:]
		if f[13] == 0 && f[12] == 8 && b[9] == 1 {
			if m := packet.ICMP(b[b[0]&15*4:]); m[0] == 0 {
				if m.Rest() == uint32(l.seq) {
					break
				}
			} else {
				r.back = append(r.back, b)
			}
		} else if f[12] == 0x86 && b[6] == 58 && b[40] < 128 {
			r.back = append(r.back, b)
		}
	}
	for {
		wait := 5 * time.Millisecond
		if len(r.out) < expect {
			wait = 2 * time.Second
		}
		f := l.out.Recv(wait)
		if f == nil {
			return r
		}
		if b := f[14:]; f[12] == 8 && f[13] == 0 || f[12] == 0x86 && b[6] != 58 && !bytes.HasPrefix(b[24:], []byte{0xff}) {
			r.out = append(r.out, b)
		}
	}
}

// road is the stages with a lookup for 10.9.9.0/24 and 2001:db8:9::/64.
type road struct {
	*rig.Rig
	c4, c6, fill graph.Runner
}

func newRoad(t *testing.T) *road {
	r := &road{Rig: rig.New(t, 4096, icmp.Stage(icmp.Limits{}), frag.Stage())}
	r.c4, r.c6, r.fill = ip.Check4().New(r.W), ip.Check6().New(r.W), ip.Options4().New(r.W)
	r.W.Tables.Adjs[2].MTU = mtuOut
	return r
}

var xLocal = graph.NewReason(graph.ReasonInfo{Stage: "test", Name: "local", Doc: "For the router."})

func (r *road) send(p []byte) (res result) {
	v := &r.V
	i := r.Add(p, 0)
	r.W.Now += 1 << 40
	r.c4.Run(v)
	r.c6.Run(v)
	if v.N4+v.N6 != 0 {
		v.Adj[i] = 2
		dst := netip.AddrFrom4([4]byte(r.L3(i)[16:20]))
		if v.N6 != 0 {
			dst = netip.AddrFrom16([16]byte(r.L3(i)[24:40]))
		}
		_, ours := r.W.Tables.Addrs.Load().Is[dst]
		big := v.Len[i] > mtuOut
		r.fill.Run(v)
		switch {
		case ours || dst.IsMulticast():
			v.Exit(i, xLocal)
		case big && v.N6 != 0:
			v.Exit(i, frag.X6TooBig)
		case big && p[6]&0x40 != 0:
			v.Exit(i, frag.XDF)
		case big:
			v.Exit(i, frag.XFragment)
		default:
			res.out = append(res.out, r.L3(i))
			r.W.Cache.Free1(v.Mbuf(i))
		}
	}
	r.W.Settle(v)
	v.Reset()
	res.out = append(res.out, r.Refill("fragment")...)
	for _, f := range res.out {
		if f[0]>>4 == 4 {
			h := packet.IPv4(f)
			h.SetTTL(h.TTL() - 1)
			h.SetSum()
		} else {
			f[7]--
		}
	}
	res.back = r.Refill("icmp")
	r.W.Flush()
	for _, x := range r.Wire {
		res.back = append(res.back, rig.Bytes(x, 14))
	}
	r.W.Cache.Free(r.Wire)
	r.Wire = nil
	return res
}

// same clears what may differ between two errors: identification, TTL, and, for IPv4, options that Linux
// echoes, by which its quote is shorter.
func same(a, b []byte) bool {
	if a[0]>>4 != b[0]>>4 {
		return false
	}
	if a[0]>>4 == 6 {
		return bytes.Equal(a[4:7], b[4:7]) && bytes.Equal(a[8:], b[8:])
	}
	ca, cb := a[a[0]&15*4:], b[b[0]&15*4:]
	n := min(len(ca), len(cb))
	if a[0] == b[0] && len(ca) != len(cb) {
		return false
	}
	if len(ca) == len(cb) && !bytes.Equal(ca[2:4], cb[2:4]) {
		return false
	}
	return a[1]&0xfc == b[1]&0xfc && bytes.Equal(a[12:20], b[12:20]) && bytes.Equal(ca[:2], cb[:2]) && bytes.Equal(ca[4:n], cb[4:n])
}

func TestLinux(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	const a4, b4, a6, b6 = "192.0.2.5", "10.9.9.9", "2001:db8:1::5", "2001:db8:9::9"
	with := func(h packet.IPv4, f func(packet.IPv4)) []byte { f(h); h.SetSum(); return h }
	with6 := func(h packet.IPv6, f func(packet.IPv6)) []byte { f(h); return h }
	ttl := func(n uint8) func(packet.IPv4) { return func(h packet.IPv4) { h.SetTTL(n) } }
	word := func(w uint16) func(packet.IPv4) { return func(h packet.IPv4) { h.SetFlagsOff(w); h.SetID(77) } }
	hops := func(options ...byte) []byte {
		b := append([]byte{17, 0}, options...)
		for len(b)%8 != 0 {
			b = append(b, 0)
		}
		b[1] = byte(len(b)/8 - 1)
		return append(b, make([]byte, 8)...)
	}
	udp := make([]byte, 16)
	cases := []struct {
		name string
		p    []byte
	}{
		{"plain", rig.UDP4(a4, b4, nil, 100)},
		{"ttl 2", with(rig.UDP4(a4, b4, nil, 100), ttl(2))},
		{"ttl 1", with(rig.UDP4(a4, b4, nil, 100), ttl(1))},
		{"ttl 1, long", with(rig.UDP4(a4, b4, nil, 1300), ttl(1))},
		{"ttl 1, tos", with(rig.UDP4(a4, b4, nil, 100), func(h packet.IPv4) { h.SetTTL(1); h.SetTOS(0x48) })},
		{"ttl 1, later fragment", with(rig.UDP4(a4, b4, nil, 100), func(h packet.IPv4) { h.SetTTL(1); h.SetFlagsOff(9) })},
		{"ttl 1, error", with(rig.UDP4(a4, b4, nil, 100), func(h packet.IPv4) { h.SetTTL(1); h[9] = 1; h[20] = 3 })},
		{"ttl 1, echo", with(rig.UDP4(a4, b4, nil, 100), func(h packet.IPv4) { h.SetTTL(1); h[9] = 1; h[20] = 8 })},
		{"ttl 1, router alert", with(rig.UDP4(a4, b4, []byte{148, 4, 0, 0}, 100), ttl(1))},
		{"checksum", func() []byte { h := rig.UDP4(a4, b4, nil, 8); h[10] ^= 1; return h }()},
		{"too long", with(rig.UDP4(a4, b4, nil, 100), func(h packet.IPv4) { h.SetTotalLen(200) })},
		{"from loopback", rig.UDP4("127.0.0.1", b4, nil, 8)},
		{"from multicast", rig.UDP4("224.0.0.9", b4, nil, 8)},
		{"too big, DF", with(rig.UDP4(a4, b4, nil, 1480), word(packet.IPv4DF))},
		{"too big", with(rig.UDP4(a4, b4, nil, 1480), word(0))},
		{"too big, middle", with(rig.UDP4(a4, b4, nil, 1480), word(packet.IPv4MF|370))},
		{"too big, options", with(rig.UDP4(a4, b4, []byte{148, 4, 0, 0, 0x9e, 4, 9, 1}, 1440), word(0))},
		{"record", rig.UDP4(a4, b4, []byte{7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 8)},
		{"record, full", rig.UDP4(a4, b4, []byte{7, 7, 8, 1, 2, 3, 4, 0}, 8)},
		{"record, length 2", rig.UDP4(a4, b4, []byte{7, 2, 0, 0}, 8)},
		{"record, pointer 3", rig.UDP4(a4, b4, []byte{7, 7, 3, 0, 0, 0, 0, 0}, 8)},
		{"record, pointer astray", rig.UDP4(a4, b4, []byte{7, 7, 6, 0, 0, 0, 0, 0}, 8)},
		{"record twice", rig.UDP4(a4, b4, []byte{7, 3, 4, 7, 3, 4, 0, 0}, 8)},
		{"stamp", rig.UDP4(a4, b4, []byte{68, 8, 5, 0, 0, 0, 0, 0}, 8)},
		{"stamp, full", rig.UDP4(a4, b4, []byte{68, 8, 9, 0x20, 0, 0, 0, 0}, 8)},
		{"stamp, overflow", rig.UDP4(a4, b4, []byte{68, 8, 9, 0xf0, 0, 0, 0, 0}, 8)},
		{"stamp of ours", rig.UDP4(a4, b4, []byte{68, 12, 5, 3, 198, 51, 100, 1, 0, 0, 0, 0}, 8)},
		{"stamp of others", rig.UDP4(a4, b4, []byte{68, 12, 5, 3, 10, 9, 9, 9, 0, 0, 0, 0}, 8)},
		{"stamp, length 3", rig.UDP4(a4, b4, []byte{68, 3, 5, 0}, 8)},
		{"stamp, pointer 4", rig.UDP4(a4, b4, []byte{68, 8, 4, 0, 0, 0, 0, 0}, 8)},
		{"stamp, no room", rig.UDP4(a4, b4, []byte{68, 8, 6, 0, 0, 0, 0, 0}, 8)},
		{"unknown option", rig.UDP4(a4, b4, []byte{0x9e, 3, 9, 1}, 8)},
		{"option too long", rig.UDP4(a4, b4, []byte{1, 1, 0x9e, 3}, 8)},

		{"plain 6", rig.IP6(a6, b6, 17, udp)},
		{"hop limit", with6(rig.IP6(a6, b6, 17, udp), func(h packet.IPv6) { h.SetHopLimit(1) })},
		{"hop limit, long", with6(rig.IP6(a6, b6, 17, make([]byte, 1345)), func(h packet.IPv6) { h.SetHopLimit(1) })},
		{"hop limit, error", with6(rig.IP6(a6, b6, 58, []byte{3, 0, 0, 0, 0, 0, 0, 0}), func(h packet.IPv6) { h.SetHopLimit(1) })},
		{"too big 6", rig.IP6(a6, b6, 17, make([]byte, 1400))},
		{"too big 6, later fragment", rig.IP6(a6, b6, 44, append([]byte{17, 0, 1, 0, 0, 0, 0, 7}, make([]byte, 1400)...))},
		{"from link-local", rig.IP6("fe80::5", b6, 17, udp)},
		{"from loopback 6", rig.IP6("::1", b6, 17, udp)},
		{"from multicast 6", rig.IP6("ff0e::1", b6, 17, udp)},
		{"too long 6", with6(rig.IP6(a6, b6, 17, udp), func(h packet.IPv6) { h.SetPayloadLen(17) })},
		{"option, skip", rig.IP6(a6, b6, 0, hops(0x1e, 4, 0, 0, 0, 0))},
		{"option, discard", rig.IP6(a6, b6, 0, hops(0x5e, 4, 0, 0, 0, 0))},
		{"option, error", rig.IP6(a6, b6, 0, hops(1, 0, 0x9e, 2, 0, 0))},
		{"option, error unless multicast", rig.IP6(a6, b6, 0, hops(0xde, 4, 0, 0, 0, 0))},
		{"option behind the header", rig.IP6(a6, b6, 0, hops(0x1e, 5, 0, 0, 0, 0))},
	}
	k, r := newLinux(t), newRoad(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			got := r.send(c.p)
			want := k.send(t, c.p, len(got.out))
			if len(got.out) != len(want.out) || len(got.back) != len(want.back) {
				t.Fatalf("%d sent on, %d errors; Linux: %d, %d", len(got.out), len(got.back), len(want.out), len(want.back))
			}
			for i := range got.out {
				if !bytes.Equal(untimed(got.out[i]), untimed(want.out[i])) {
					t.Errorf("sent on:\n% x\nLinux:\n% x", got.out[i][:min(80, len(got.out[i]))], want.out[i][:min(80, len(want.out[i]))])
				}
			}
			for i := range got.back {
				if !same(got.back[i], want.back[i]) {
					t.Errorf("error:\n% x\nLinux:\n% x", got.back[i], want.back[i])
				}
			}
		})
	}
}

// untimed is the packet with its timestamps, if they are of about now, set to all ones.
func untimed(p []byte) []byte {
	h := packet.IPv4(bytes.Clone(p))
	if h.Version() != 4 || h.HeaderLen() < 28 || h[20] != 68 {
		return p
	}
	now := uint32(time.Now().UnixMilli() % 86400000)
	for i := 24; i+4 <= 20+int(h[21]); i += 4 {
		if d := int32(now - binary.BigEndian.Uint32(h[i:])); d >= 0 && d < 60000 {
			binary.BigEndian.PutUint32(h[i:], 0xffffffff)
		}
	}
	h.SetSum()
	return h
}
