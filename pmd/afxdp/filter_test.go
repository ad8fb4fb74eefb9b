package afxdp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pmd"
)

// rig is a port under test, "a0" in its namespace, with a raw socket at the peer's end, "b0".
type rig struct {
	*Port
	t      testing.TB
	pool   *packet.Pool
	a, b   *testnet.NS
	caches []*packet.Cache
	peer   *testnet.Raw
}

func newRig(t testing.TB, c pmd.Config, opts ...string) *rig {
	r := &rig{t: t, pool: newPool(t, 4096), a: testnet.New(t), b: testnet.New(t)}
	testnet.Veth(t, r.a, "a0", r.b, "b0", opts...)
	r.a.Run(t, "ip", "addr", "add", "10.0.0.1/24", "dev", "a0")
	r.a.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "a0")
	r.b.Run(t, "ip", "addr", "add", "10.0.0.2/24", "dev", "b0")
	r.b.Run(t, "ip", "addr", "add", "2001:db8::2/64", "dev", "b0")
	r.peer = r.b.Raw(t, "b0")
	c.Name, c.Pool = "a0", r.pool
	r.Port = openIn(t, r.a, c)
	for i := range r.Caps().Queues {
		k := r.pool.NewCache()
		r.caches = append(r.caches, k)
		if err := r.queues[i].Start(k); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// end stops and closes all and counts the buffers.
func (r *rig) end() {
	r.t.Helper()
	for _, q := range r.queues {
		q.Stop()
		if q.Held() != 0 {
			r.t.Errorf("queue %d holds %d buffers after Stop", q.id, q.Held())
		}
	}
	if err := r.Close(); err != nil {
		r.t.Error(err)
	}
	for _, c := range r.caches {
		c.Close()
	}
	if r.pool.Free() != r.pool.Size() {
		r.t.Errorf("%d of %d buffers free", r.pool.Free(), r.pool.Size())
	} else {
		r.pool.Close()
	}
}

// recv polls until a packet comes for which f holds; nil where none does within d. Its bytes
// are copied, its buffers freed.
func (r *rig) recv(d time.Duration, f func([]byte) bool) []byte {
	var pk [64]uint32
	for end := time.Now().Add(d); ; time.Sleep(100 * time.Microsecond) {
		var got []byte
		for i, q := range r.queues {
			n := q.Rx(pk[:])
			for _, p := range pk[:n] {
				if b := flat(r.t, packet.At(p)); got == nil && f(b) {
					got = b
				}
			}
			r.caches[i].Free(pk[:n])
		}
		if got != nil || time.Now().After(end) {
			return got
		}
	}
}

// flat copies a packet's bytes and checks its lengths.
func flat(t testing.TB, m *packet.Mbuf) []byte {
	t.Helper()
	b := make([]byte, m.PktLen)
	if n := m.CopyOut(0, b); n != len(b) {
		t.Errorf("packet of %d bytes has %d", len(b), n)
	}
	segs, total := 0, 0
	for s := m; s != nil; s = s.NextSeg() {
		segs++
		total += int(s.DataLen)
		if s.DataOff != packet.Headroom || s.RefCnt != 1 || s.OlFlags != 0 {
			t.Errorf("segment %d: offset %d, %d owners, flags %x", segs, s.DataOff, s.RefCnt, s.OlFlags)
		}
	}
	if segs != int(m.NbSegs) || total != len(b) {
		t.Errorf("packet says %d segments and %d bytes, has %d and %d", m.NbSegs, len(b), segs, total)
	}
	return b
}

// send transmits one packet, in segments of at most seg bytes.
func (r *rig) send(b []byte, seg int) {
	r.t.Helper()
	m := chain(r.t, r.caches[0], b, seg)
	i := []uint32{m.Index()}
	for end := time.Now().Add(5 * time.Second); r.queues[0].Tx(i) == 0; {
		if time.Now().After(end) {
			r.t.Fatal("Tx takes nothing")
		}
		r.recv(0, func([]byte) bool { return false })
	}
}

func chain(t testing.TB, c *packet.Cache, b []byte, seg int) *packet.Mbuf {
	t.Helper()
	var head, tail *packet.Mbuf
	total := len(b)
	for head == nil || len(b) > 0 {
		m := c.Alloc1()
		if m == nil {
			t.Fatal("no buffer")
		}
		n := copy(m.Append(min(seg, len(b))), b)
		b = b[n:]
		if head == nil {
			head = m
		} else {
			tail.SetNext(m)
			head.NbSegs++
		}
		tail = m
	}
	head.PktLen = uint32(total)
	return head
}

func eth(dst, src []byte, types ...uint16) []byte {
	b := append(slices.Clone(dst), src...)
	for i, t := range types {
		b = binary.BigEndian.AppendUint16(b, t)
		if i < len(types)-1 {
			b = append(b, 0, byte(10+i)) // TCI
		}
	}
	return b
}

// types is the EtherTypes of a frame, one more than it has tags.
func types(b []byte) (ts []uint16) {
	for off := 12; ; off += 4 {
		t := binary.BigEndian.Uint16(b[off:])
		if ts = append(ts, t); t != 0x8100 && t != 0x88a8 {
			return ts
		}
	}
}

func ip4(dst string, proto uint8, payload []byte) []byte {
	b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, proto, 0, 0, 10, 0, 0, 2}
	b = append(b, netip.MustParseAddr(dst).AsSlice()...)
	binary.BigEndian.PutUint16(b[2:], uint16(20+len(payload)))
	packet.PutSum(b[10:], packet.Checksum(b))
	return append(b, payload...)
}

func ip6(dst string, next uint8, payload []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0x60, 0, 0, 0}, uint16(len(payload)))
	b = append(b, next, 255)
	b = append(b, netip.MustParseAddr("2001:db8::2").AsSlice()...)
	b = append(b, netip.MustParseAddr(dst).AsSlice()...)
	return append(b, payload...)
}

func udp(sport, dport uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, sport)
	b = binary.BigEndian.AppendUint16(b, dport)
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	return append(append(b, 0, 0), data...)
}

func TestFilter(t *testing.T) {
	for _, mode := range []string{"native", "generic"} {
		t.Run(mode, func(t *testing.T) { testFilter(t, mode) })
	}
}

func testFilter(t *testing.T, mode string) {
	r := newRig(t, pmd.Config{Mode: mode})
	defer r.end()
	kernel := r.a.Raw(t, "a0")
	mac, src := []byte(kernel.MAC), []byte(r.peer.MAC)
	if err := r.SetLocal([]netip.Addr{
		netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("::ffff:192.0.2.77"), netip.MustParseAddr("2001:db8::1"),
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.SetTypes([]uint16{0x8847}); err != nil {
		t.Fatal(err)
	}
	box4, box6 := netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("2001:db8::1")
	if err := r.SetTaken([]pmd.Taken{
		{Addr: box4, Proto: 50}, {Addr: box4, Proto: 17, Port: 4789}, {Addr: box4, Proto: 6, Port: 40000}, {Addr: box4, Proto: 1, Port: 777},
		{Addr: box6, Proto: 47}, {Addr: box6, Proto: 17, Port: 4791},
	}); err != nil {
		t.Fatal(err)
	}
	if err := r.SetTaken([]pmd.Taken{{Addr: box4, Proto: 50, Port: 7}}); err == nil {
		t.Error("took a port of ESP")
	}
	options := func(port uint16) []byte { // an IPv4 header with options
		p := ip4("10.0.0.1", 17, append([]byte{1, 1, 1, 1}, udp(9, port, []byte("options"))...))
		p[0] = 0x46
		return append(eth(mac, src, 0x0800), p...)
	}
	echo := func(typ byte, id uint16) []byte {
		return []byte{typ, 0, 0, 0, byte(id >> 8), byte(id), 0, 1, 'p', 'i', 'n', 'g'}
	}
	about := func(typ, proto byte, l4 []byte) []byte { // an error about a packet that the box sent
		return append(eth(mac, src, 0x0800), ip4("10.0.0.1", 1, append([]byte{typ, 0, 0, 0, 0, 0, 0, 0}, ip4("203.0.113.1", proto, l4)...))...)
	}
	piece := ip4("10.0.0.1", 17, udp(9, 4789, []byte("piece")))
	piece[6] = 0x20
	bc := bytes.Repeat([]byte{0xff}, 6)
	mc := []byte{1, 0, 0x5e, 0, 0, 5}
	other := []byte{2, 9, 9, 9, 9, 9}
	u := udp(1, 2, bytes.Repeat([]byte("data"), 10))
	icmp6 := func(typ byte) []byte { return append([]byte{typ, 0, 0, 0}, make([]byte, 40)...) }
	dhcp := func(chaddr []byte) []byte {
		d := make([]byte, 240)
		d[0] = 2
		copy(d[28:], chaddr)
		return udp(67, 68, d)
	}
	frag := ip4("10.0.0.1", 17, u)
	frag[7] = 1
	v4, v6 := uint16(0x0800), uint16(0x86dd)
	for _, c := range []struct {
		name  string
		frame []byte
		take  bool // comes to Rx
	}{
		{"ipv4 transit", append(eth(mac, src, v4), ip4("198.51.100.1", 17, u)...), true},
		{"ipv4 transit, ttl 1", func() []byte {
			p := ip4("198.51.100.1", 17, u)
			p[8] = 1
			return append(eth(mac, src, v4), p...)
		}(), true},
		{"ipv4 to the box", append(eth(mac, src, v4), ip4("10.0.0.1", 17, u)...), false},
		{"ipv4 to a mapped address", append(eth(mac, src, v4), ip4("192.0.2.77", 17, u)...), false},
		{"ipv4 fragment to the box", append(eth(mac, src, v4), frag...), false},
		{"ipv4 multicast address", append(eth(mac, src, v4), ip4("224.0.0.5", 89, u)...), false},
		{"ipv4 broadcast address", append(eth(mac, src, v4), ip4("255.255.255.255", 17, u)...), false},
		{"ipv4 transit in one tag", append(eth(mac, src, 0x8100, v4), ip4("198.51.100.2", 17, u)...), true},
		{"ipv4 to the box in one tag", append(eth(mac, src, 0x8100, v4), ip4("10.0.0.1", 17, u)...), false},
		{"ipv4 transit in two tags", append(eth(mac, src, 0x88a8, 0x8100, v4), ip4("198.51.100.3", 17, u)...), true},
		{"ipv4 to the box in two tags", append(eth(mac, src, 0x88a8, 0x8100, v4), ip4("10.0.0.1", 17, u)...), false},
		{"ipv4 in three tags", append(eth(mac, src, 0x88a8, 0x8100, 0x8100, v4), ip4("198.51.100.3", 17, u)...), false},
		{"dhcp offer to the box", append(eth(mac, src, v4), ip4("10.0.0.99", 17, dhcp(mac))...), false},
		{"dhcp in transit", append(eth(mac, src, v4), ip4("10.0.7.99", 17, dhcp(other))...), true},
		{"ipv6 transit", append(eth(mac, src, v6), ip6("2001:db8:9::1", 17, u)...), true},
		{"ipv6 to the box", append(eth(mac, src, v6), ip6("2001:db8::1", 17, u)...), false},
		{"ipv6 link-local", append(eth(mac, src, v6), ip6("fe80::1", 17, u)...), false},
		{"ipv6 fec0 transit", append(eth(mac, src, v6), ip6("fec0::1", 17, u)...), true},
		{"ipv6 multicast address", append(eth(mac, src, v6), ip6("ff02::1", 17, u)...), false},
		{"ipv6 transit in one tag", append(eth(mac, src, 0x8100, v6), ip6("2001:db8:9::1", 17, u)...), true},
		{"ipv6 to the box in two tags", append(eth(mac, src, 0x88a8, 0x8100, v6), ip6("2001:db8::1", 17, u)...), false},
		{"router solicitation", append(eth(mac, src, v6), ip6("2001:db8:9::1", 58, icmp6(133))...), false},
		{"neighbour advertisement", append(eth(mac, src, v6), ip6("2001:db8:9::1", 58, icmp6(136))...), false},
		{"redirect", append(eth(mac, src, v6), ip6("2001:db8:9::1", 58, icmp6(137))...), false},
		{"icmpv6 echo in transit", append(eth(mac, src, v6), ip6("2001:db8:9::1", 58, icmp6(128))...), true},
		{"icmpv6 138 in transit", append(eth(mac, src, v6), ip6("2001:db8:9::1", 58, icmp6(138))...), true},
		{"taken protocol", append(eth(mac, src, v4), ip4("10.0.0.1", 50, u)...), true},
		{"taken protocol, other address", append(eth(mac, src, v4), ip4("192.0.2.77", 50, u)...), false},
		{"taken port", append(eth(mac, src, v4), ip4("10.0.0.1", 17, udp(9, 4789, u))...), true},
		{"taken port in a tag", append(eth(mac, src, 0x8100, v4), ip4("10.0.0.1", 17, udp(9, 4789, u))...), true},
		{"taken port as source", append(eth(mac, src, v4), ip4("10.0.0.1", 17, udp(4789, 9, u))...), false},
		{"taken port behind options", options(4789), true},
		{"other port behind options", options(4790), false},
		{"taken port, fragment", append(eth(mac, src, v4), piece...), false},
		{"taken port, other protocol", append(eth(mac, src, v4), ip4("10.0.0.1", 6, udp(9, 4789, u))...), false},
		{"taken tcp port", append(eth(mac, src, v4), ip4("10.0.0.1", 6, udp(9, 40000, u))...), true},
		{"taken port, cut short", append(eth(mac, src, v4), ip4("10.0.0.1", 17, []byte{0, 9, 0x12})...), false},
		{"echo reply, taken", append(eth(mac, src, v4), append(ip4("10.0.0.1", 1, echo(0, 777)), make([]byte, 30)...)...), true},
		{"echo reply, other", append(eth(mac, src, v4), append(ip4("10.0.0.1", 1, echo(0, 778)), make([]byte, 30)...)...), false},
		{"echo request", append(eth(mac, src, v4), append(ip4("10.0.0.1", 1, echo(8, 777)), make([]byte, 30)...)...), false},
		{"unreachable, taken port", about(3, 17, udp(4789, 53, u)), true},
		{"unreachable, other port", about(3, 17, udp(4790, 53, u)), false},
		{"unreachable, taken port as destination", about(3, 17, udp(53, 4789, u)), false},
		{"time exceeded, taken tcp port", about(11, 6, udp(40000, 53, u)), true},
		{"time exceeded, taken identifier", about(11, 1, echo(8, 777)), true},
		{"time exceeded, other identifier", about(11, 1, echo(8, 776)), false},
		{"icmp redirect", about(5, 17, udp(4789, 53, u)), false},
		{"error cut short", about(3, 17, []byte{0x12}), false},
		{"taken ipv6 protocol", append(eth(mac, src, v6), ip6("2001:db8::1", 47, u)...), true},
		{"taken ipv6 port", append(eth(mac, src, v6), ip6("2001:db8::1", 17, udp(9, 4791, u))...), true},
		{"other ipv6 port", append(eth(mac, src, v6), ip6("2001:db8::1", 17, udp(9, 4790, u))...), false},
		{"arp", append(eth(mac, src, 0x0806), make([]byte, 46)...), false},
		{"lldp", append(eth([]byte{1, 0x80, 0xc2, 0, 0, 14}, src, 0x88cc), make([]byte, 46)...), false},
		{"eapol to the port", append(eth(mac, src, 0x888e), make([]byte, 46)...), false},
		{"unknown type", append(eth(mac, src, 0x88b5), make([]byte, 46)...), false},
		{"mpls asked for", append(eth(mac, src, 0x8847), make([]byte, 46)...), true},
		{"mpls in a tag", append(eth(mac, src, 0x8100, 0x8847), make([]byte, 46)...), true},
		{"broadcast frame", append(eth(bc, src, v4), ip4("198.51.100.1", 17, u)...), false},
		{"multicast frame", append(eth(mc, src, v4), ip4("198.51.100.1", 17, u)...), false},
		{"another's frame", append(eth(other, src, v4), ip4("198.51.100.1", 17, u)...), false},
		{"ipv4 cut short", append(eth(mac, src, v4), 0x45, 0, 0), false},
		{"ipv6 cut short", append(eth(mac, src, v6), make([]byte, 39)...), false},
		{"bare header", eth(mac, src, v4), false},
	} {
		// The end of each frame is unlike all others.
		f := append(c.frame, []byte(fmt.Sprintf("/%s/%s", mode, c.name))...)
		if len(c.frame) < 60 && !c.take { // cut short: the mark must not make it whole
			f = c.frame
		}
		if err := r.peer.Send(f); err != nil {
			t.Fatal(err)
		}
		// A raw socket shows a tag that the kernel took out of the frame beside it.
		same := func(b []byte) bool {
			return bytes.Equal(b, f) || len(types(f)) > 1 && len(b) == len(f)-4 && bytes.Equal(b[12:], f[16:])
		}
		var inRx, inKernel bool
		if c.take {
			inRx = r.recv(3*time.Second, same) != nil
			inKernel = kernel.RecvMatch(0, same) != nil
		} else {
			inKernel = kernel.RecvMatch(3*time.Second, same) != nil
			inRx = r.recv(0, same) != nil
		}
		if inRx != c.take || inKernel == c.take {
			t.Errorf("%s: in Rx %t, in the kernel %t; want in Rx %t", c.name, inRx, inKernel, c.take)
		}
	}

	// Addresses go as they come.
	if err := r.SetLocal([]netip.Addr{netip.MustParseAddr("198.51.100.1")}); err != nil {
		t.Fatal(err)
	}
	f := append(eth(mac, src, v4), ip4("10.0.0.1", 17, append(u, "gone"...))...)
	r.peer.Send(f)
	if r.recv(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
		t.Error("an address that is no longer local still passes to the kernel")
	}
	f = append(eth(mac, src, v4), ip4("198.51.100.1", 17, append(u, "new"...))...)
	r.peer.Send(f)
	if kernel.RecvMatch(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
		t.Error("a new local address does not pass to the kernel")
	}
	many := []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	for range maxAddrs {
		many = append(many, many[len(many)-1].Next())
	}
	if err := r.SetLocal(many[1:]); err != nil {
		t.Error(err)
	}
	if err := r.SetLocal(many); err == nil {
		t.Error("took more addresses than the filter has room for")
	}
}

// TestHost: the kernel goes on answering for the box while transit comes to Rx.
func TestHost(t *testing.T) {
	r := newRig(t, pmd.Config{})
	defer r.end()
	r.b.Run(t, "ping", "-c", "1", "-W", "3", "10.0.0.1")
	r.b.Run(t, "ping", "-6", "-c", "1", "-W", "3", "2001:db8::1")
	r.b.Run(t, "ip", "route", "add", "default", "via", "10.0.0.1")
	go r.b.Command("ping", "-c", "1", "-W", "1", "203.0.113.5").Run()
	echo := func(b []byte) bool {
		return b[12] == 8 && b[13] == 0 && b[23] == 1 && bytes.Equal(b[30:34], []byte{203, 0, 113, 5})
	}
	if r.recv(5*time.Second, echo) == nil {
		t.Error("an echo request in transit did not come")
	}
}
