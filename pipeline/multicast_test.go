package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/internal/clock"
	"millrace/ip/host"
	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
)

// Multicast on the whole road, beside a model that copies packets.

// mcastBed is a router with ports 1 to 4 and a VLAN of port 4 as interface 5.
type mcastBed struct {
	testing.TB
	*stack
	solo  *Solo
	cache *packet.Cache
	far   []pmd.Queue // by interface, from 1
	got   [64]uint32
}

func mcastMAC(iface int) pmd.MAC { return pmd.MAC{2, 0, 0, 0, 0, byte(iface)} }

func newMcastBed(t testing.TB, buffers, ports int) *mcastBed {
	b := &mcastBed{TB: t, stack: newStack(t, buffers), far: make([]pmd.Queue, 1)}
	b.cache = b.pool.NewCache()
	var err error
	if b.solo, err = NewSolo(b.options(noResolver{}, host.Config{NoReports: true})); err != nil {
		t.Fatal(err)
	}
	var open []pmd.Port
	for i := 1; i <= ports; i++ {
		near, far := mem.Pair(fmt.Sprint("p", i), fmt.Sprint("f", i), mem.Options{})
		open = append(open, near, far)
		b.tables.Ifaces[i] = graph.Iface{MAC: MACWord(mcastMAC(i)), MTU: 1500, Flags: graph.IfUp}
		if _, err := b.solo.AddPort(near, uint16(i)); err != nil {
			t.Fatal(err)
		}
		b.far = append(b.far, far.Queue(0))
		if err := far.Queue(0).Start(b.cache); err != nil {
			t.Fatal(err)
		}
		b.iface(uint16(i))
	}
	if ports == 4 {
		b.tables.Ifaces[5] = b.tables.Ifaces[4]
		b.tables.Ifaces[5].Outer = 7
		b.tables.Vlans.Store(&map[uint64]uint16{VlanKey(4, 7, 0): 5})
		b.iface(5)
	}
	t.Cleanup(func() {
		if a := b.solo.Account(); a.Missing() != 0 {
			t.Errorf("%d packets unaccounted for: %+v", a.Missing(), a)
		}
		b.solo.Close()
		for _, q := range b.far[1:] {
			q.Stop()
		}
		for _, p := range open {
			p.Close()
		}
		b.cache.Close()
		b.close(t)
	})
	return b
}

func (b *mcastBed) iface(i uint16) {
	b.Helper()
	if err := b.fib.SetIface(i, fib.IfaceOptions{Redirect: true}); err != nil {
		b.Fatal(err)
	}
}

func (b *mcastBed) route(r mcast.Route) {
	b.Helper()
	if err := b.mcast.Set(r); err != nil {
		b.Fatal(err)
	}
}

// frame puts an IP packet behind the Ethernet header that it has on the interface's wire.
func mcastFrame(iface int, src pmd.MAC, l3 []byte) []byte {
	f := make([]byte, 0, len(l3)+18)
	typ := uint16(packet.EtherIPv4)
	if l3[0]>>4 == 4 {
		f = append(f, 1, 0, 0x5e, l3[17]&0x7f, l3[18], l3[19])
	} else {
		f = append(append(f, 0x33, 0x33), l3[36:40]...)
		typ = packet.EtherIPv6
	}
	f = append(f, src[:]...)
	if iface == 5 {
		f = append(f, 0x81, 0, 0, 7)
	}
	return append(binary.BigEndian.AppendUint16(f, typ), l3...)
}

func (b *mcastBed) send(iface int, f []byte) {
	b.Helper()
	if iface == 5 {
		iface = 4
	}
	m := b.cache.Alloc1()
	copy(m.Append(len(f)), f)
	b.got[0] = m.Index()
	if b.far[iface].Tx(b.got[:1]) != 1 {
		b.Fatal("the ring is full")
	}
}

// receive gives each frame that came, and frees it then.
func (b *mcastBed) receive(f func(port int, m *packet.Mbuf)) {
	b.solo.Round()
	for p, q := range b.far {
		for q != nil {
			n := q.Rx(b.got[:])
			for _, x := range b.got[:n] {
				f(p, packet.At(x))
			}
			b.cache.Free(b.got[:n])
			if n == 0 {
				break
			}
		}
	}
}

func (b *mcastBed) drops() map[string]uint64 {
	m := map[string]uint64{}
	for r := range graph.Reasons() {
		if n := b.solo.C.Exit[r]; n != 0 {
			m[graph.Reason(r).String()] = n
		}
	}
	return m
}

var (
	mcastSources = []netip.Addr{netip.MustParseAddr("192.0.2.7"), netip.MustParseAddr("192.0.2.8"), netip.MustParseAddr("2001:db8:1::7"), netip.MustParseAddr("64:ff9b::8")}
	mcastGroups  = []netip.Addr{netip.MustParseAddr("239.129.1.2"), netip.MustParseAddr("224.0.1.1"), netip.MustParseAddr("ff0e::1:2"), netip.MustParseAddr("ff05::8001:2")}
)

// l3For makes a packet with a payload.
func l3For(src, dst netip.Addr, ttl uint8, n int) []byte {
	if dst.Is4() {
		return exit4(src.String(), dst.String(), ttl, nil, n)
	}
	return exit6(src.String(), dst.String(), ttl, n)
}

// want is what becomes of a packet, by port, and the reason for which it left.
func mcastWant(routes map[mcast.Key]mcast.Route, in int, l3 []byte, up func(uint16) bool) (out map[int][][]byte, why string) {
	k := mcast.Key{}
	ttlAt := 7
	if l3[0]>>4 == 4 {
		k.Source, k.Group = netip.AddrFrom4([4]byte(l3[12:])), netip.AddrFrom4([4]byte(l3[16:]))
		ttlAt = 8
	} else {
		k.Source, k.Group = netip.AddrFrom16([16]byte(l3[8:])), netip.AddrFrom16([16]byte(l3[24:]))
	}
	r, ok := routes[k]
	if !ok {
		if r, ok = routes[mcast.Key{Group: k.Group}]; !ok {
			return nil, "multicast/no-route"
		}
	}
	switch {
	case r.Host:
		return nil, "multicast/for-kernel"
	case int(r.In) != in:
		return nil, "multicast/wrong-interface"
	case r.Boundary:
		return nil, "multicast/boundary"
	}
	out, why = map[int][][]byte{}, "multicast/no-interface"
	ttl := l3[ttlAt]
	for _, o := range r.Out {
		if ttl <= o.TTL {
			why = "multicast/ttl-threshold"
		}
		if ttl <= o.TTL || int(o.Iface) == in || !up(o.Iface) {
			continue
		}
		c := bytes.Clone(l3)
		c[ttlAt]--
		if ttlAt == 8 {
			packet.IPv4(c).SetSum()
		}
		port := min(int(o.Iface), 4)
		out[port] = append(out[port], mcastFrame(int(o.Iface), mcastMAC(min(int(o.Iface), 4)), c))
	}
	if len(out) != 0 || r.Local {
		why = ""
	}
	return out, why
}

// TestMulticastModel changes routes and interfaces at random, sends packets at random, and wants on each wire what the model
// says, counters too.
func TestMulticastModel(t *testing.T) {
	b := newMcastBed(t, 8192, 4)
	rnd := rand.New(rand.NewPCG(3, 4))
	routes := map[mcast.Key]mcast.Route{}
	counts := map[mcast.Key]mcast.Counters{}
	up := func(i uint16) bool { return b.tables.Ifaces[i].Flags&graph.IfUp != 0 }
	rounds := 3000
	if testing.Short() {
		rounds = 500
	}
	wantDrops := map[string]uint64{}
	for range rounds {
		f := rnd.IntN(2) * 2
		k := mcast.Key{Group: mcastGroups[f+rnd.IntN(2)], Source: mcastSources[f+rnd.IntN(2)]}
		if rnd.IntN(3) == 0 {
			k.Source = netip.Addr{}
		}
		switch rnd.IntN(8) {
		case 0:
			if _, there := routes[k]; b.mcast.Del(k) != there {
				t.Fatalf("deleting %v: %v", k, !there)
			}
			delete(routes, k)
			delete(counts, k)
		case 1:
			i := uint16(1 + rnd.IntN(5))
			b.tables.Ifaces[i].Flags ^= graph.IfUp
			b.iface(i)
		default:
			r := mcast.Route{Key: k, In: uint16(1 + rnd.IntN(5)), Boundary: rnd.IntN(10) == 0, Host: rnd.IntN(10) == 0}
			for _, i := range rnd.Perm(5)[:rnd.IntN(6)] {
				r.Out = append(r.Out, mcast.Out{Iface: uint16(i + 1), TTL: uint8(rnd.IntN(3) * 30)})
			}
			b.route(r)
			routes[k] = r
		}
		want := map[int][][]byte{}
		for range rnd.IntN(12) {
			f := rnd.IntN(2) * 2
			l3 := l3For(mcastSources[f+rnd.IntN(2)], mcastGroups[f+rnd.IntN(2)], uint8(2+rnd.IntN(100)), 8+rnd.IntN(1200))
			in := 1 + rnd.IntN(3)
			b.send(in, mcastFrame(in, pmd.MAC{2, 9, 9, 9, 9, 9}, l3))
			out, why := mcastWant(routes, in, l3, up)
			for p, l := range out {
				want[p] = append(want[p], l...)
			}
			if why != "" {
				wantDrops[why]++
			}
			key, _ := b.mcast.Find(keyOf(l3))
			if r, ok := routes[key.Key]; ok {
				c := counts[key.Key]
				c.Packets++
				c.Bytes += uint64(len(l3))
				if int(r.In) != in && !r.Host {
					c.Wrong++
				}
				counts[key.Key] = c
			}
		}
		got := map[int][][]byte{}
		b.receive(func(port int, m *packet.Mbuf) {
			x := make([]byte, m.PktLen)
			m.CopyOut(0, x)
			got[port] = append(got[port], x)
		})
		for p := range b.far {
			slices.SortFunc(got[p], bytes.Compare) // packets of several ports come in the order of the ports
			slices.SortFunc(want[p], bytes.Compare)
			if !slices.EqualFunc(got[p], want[p], bytes.Equal) {
				t.Fatalf("port %d sent %d frames, the model %d\n% x\n% x", p, len(got[p]), len(want[p]), got[p], want[p])
			}
		}
	}
	list := b.mcast.Routes()
	if len(list) != len(routes) {
		t.Errorf("%d routes, want %d", len(list), len(routes))
	}
	for _, r := range list {
		if r.Counters != counts[r.Key] {
			t.Errorf("%v: counted %+v, want %+v", r.Key, r.Counters, counts[r.Key])
		}
	}
	drops := b.drops()
	for why, n := range wantDrops {
		if drops[why] != n {
			t.Errorf("%s: %d packets, want %d", why, drops[why], n)
		}
	}
	for k, r := range routes {
		if r.In != 0 && !b.mcast.Del(k) {
			t.Errorf("%v is not there", k)
		}
	}
	for i, a := range b.tables.Multicast {
		if a != 0 {
			t.Errorf("interface %d keeps adjacency %d without a route", i, a)
		}
	}
}

func keyOf(l3 []byte) mcast.Key {
	if l3[0]>>4 == 4 {
		return mcast.Key{Source: netip.AddrFrom4([4]byte(l3[12:])), Group: netip.AddrFrom4([4]byte(l3[16:]))}
	}
	return mcast.Key{Source: netip.AddrFrom16([16]byte(l3[8:])), Group: netip.AddrFrom16([16]byte(l3[24:]))}
}

// TestMulticastShares: the payload of all replicas lies in the buffer that it was received into.
func TestMulticastShares(t *testing.T) {
	b := newMcastBed(t, 1024, 4)
	for f := range 2 {
		g, s := mcastGroups[2*f], mcastSources[2*f]
		b.route(mcast.Route{Key: mcast.Key{Group: g, Source: s}, In: 1, Out: []mcast.Out{{Iface: 2}, {Iface: 3}, {Iface: 4}}})
		free := b.pool.Free()
		b.send(1, mcastFrame(1, mcastMAC(9), l3For(s, g, 9, 1000)))
		seen := map[uint32]int{}
		n := 0
		b.receive(func(port int, m *packet.Mbuf) {
			n++
			seen[m.Last().Direct().Index()]++
			if used := free - b.pool.Free(); n == 1 && used != 5 { // the packet, two heads, two that borrow
				t.Errorf("%d buffers for 3 packets", used)
			}
		})
		if n != 3 || len(seen) != 1 {
			t.Errorf("%d packets, their payload in %d buffers", n, len(seen))
		}
	}
	if a := b.solo.Account(); a.Created != 4 || a.Received != 2 || a.Sent != 6 {
		t.Errorf("account %+v", a)
	}
}

// TestMulticastSmallMTU: a replica is fragmented for its own interface only; IPv6 senders are told (RFC 4443 2.4).
func TestMulticastSmallMTU(t *testing.T) {
	b := newMcastBed(t, 1024, 4)
	b.tables.Ifaces[3].MTU = 1280
	b.iface(3)
	own := netip.MustParsePrefix("2001:db8:1::1/64")
	b.tables.Addrs.Store(&graph.Addresses{By: map[uint16][]netip.Prefix{1: {own}}, Is: map[netip.Addr]uint16{own.Addr(): 1}})
	if err := b.fib.SetNeighbour(1, mcastSources[2], mcastMAC(9)); err != nil {
		t.Fatal(err)
	}
	if err := b.fib.Update([]fib.Route{{Prefix: own.Masked(), NextHops: []fib.NextHop{{Iface: 1}}, Source: fib.SourceConnected}}, nil); err != nil {
		t.Fatal(err)
	}
	for f := range 2 {
		b.route(mcast.Route{Key: mcast.Key{Group: mcastGroups[2*f]}, In: 1, Out: []mcast.Out{{Iface: 2}, {Iface: 3}}})
		l3 := l3For(mcastSources[2*f], mcastGroups[2*f], 9, 1400)
		for i := range l3[40:] {
			l3[40+i] = byte(i)
		}
		b.send(1, mcastFrame(1, mcastMAC(9), l3))
		n := map[int]int{}
		var data []byte
		b.receive(func(port int, m *packet.Mbuf) {
			n[port]++
			x := make([]byte, m.PktLen)
			m.CopyOut(0, x)
			switch {
			case port == 3:
				data = append(data, x[34:]...)
			case port == 1:
				if c := packet.ICMP(x[54:]); c[0] != packet.ICMP6TooBig || c.Rest() != 1280 {
					t.Errorf("told % x", x[:62])
				}
			}
		})
		switch {
		case f == 0 && (n[2] != 1 || n[3] != 2 || n[1] != 0 || !bytes.Equal(data, l3[20:])):
			t.Errorf("IPv4: packets by port %v", n)
		case f == 1 && (n[2] != 1 || n[3] != 0 || n[1] != 1):
			t.Errorf("IPv6: packets by port %v", n)
		}
	}
}

// TestMulticastOptions: each replica records the interface that it leaves by.
func TestMulticastOptions(t *testing.T) {
	b := newMcastBed(t, 1024, 4)
	a := &graph.Addresses{By: map[uint16][]netip.Prefix{}, Is: map[netip.Addr]uint16{}}
	for i := range 4 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(i + 1)}), 24)
		a.By[uint16(i+1)], a.Is[p.Addr()] = []netip.Prefix{p}, uint16(i+1)
	}
	b.tables.Addrs.Store(a)
	b.route(mcast.Route{Key: mcast.Key{Group: mcastGroups[0]}, In: 1, Out: []mcast.Out{{Iface: 2}, {Iface: 3}, {Iface: 4}}})
	b.send(1, mcastFrame(1, mcastMAC(9), exit4("192.0.2.7", mcastGroups[0].String(), 9, []byte{7, 7, 4, 0, 0, 0, 0, 0}, 30)))
	n := 0
	b.receive(func(port int, m *packet.Mbuf) {
		n++
		h := packet.IPv4(m.Bytes()[14:])
		if !bytes.Equal(h[20:28], []byte{7, 7, 8, 198, 51, 100, byte(port), 0}) || !packet.IPv4(h[:h.HeaderLen()]).SumOK() {
			t.Errorf("port %d: options % x", port, h[20:28])
		}
	})
	if n != 3 {
		t.Errorf("%d packets", n)
	}
}

// TestMulticastHost: what stays on its link, has no hops left or no route is the host's, as are packets that the host wants, too.
func TestMulticastHost(t *testing.T) {
	b := newMcastBed(t, 1024, 4)
	near, far := mem.Pair("tap", "kernel", mem.Options{})
	tap, err := b.solo.AddPort(near, 6)
	if err != nil {
		t.Fatal(err)
	}
	b.solo.Tx[tap].Kind = graph.TxHost
	b.far = append(b.far, far.Queue(0))
	if err := far.Queue(0).Start(b.cache); err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	defer far.Close()
	b.tables.Taps[1] = tap
	g := mcastGroups[0]
	out := []mcast.Out{{Iface: 2}, {Iface: 3}}
	igmp := exit4("192.0.2.7", g.String(), 1, nil, 8)
	igmp[9] = packet.ProtoIGMP
	igmp.SetSum()
	for _, c := range []struct {
		name        string
		l3          []byte
		route       *mcast.Route
		host, ports int // packets
	}{
		{"no route", l3For(mcastSources[0], g, 9, 20), nil, 1, 0},
		{"link-local group", exit4("192.0.2.7", "224.0.0.5", 1, nil, 20), nil, 1, 0},
		{"link-local group 6", exit6("fe80::9", "ff02::5", 1, 20), nil, 1, 0},
		{"link-local source", exit4("169.254.1.1", "239.255.255.250", 4, nil, 20), nil, 1, 0},
		{"no hops", l3For(mcastSources[0], g, 1, 20), &mcast.Route{Out: out}, 1, 0},
		{"IGMP report", igmp, &mcast.Route{Out: out}, 1, 0},
		{"route", l3For(mcastSources[0], g, 2, 20), &mcast.Route{Out: out}, 0, 2},
		{"the host listens", l3For(mcastSources[0], g, 2, 20), &mcast.Route{Out: out, Local: true}, 1, 2},
		{"only the host listens", l3For(mcastSources[0], g, 2, 20), &mcast.Route{Local: true}, 1, 0},
	} {
		if c.route != nil {
			c.route.Key, c.route.In = mcast.Key{Group: g}, 1
			b.route(*c.route)
		}
		f := mcastFrame(1, mcastMAC(9), c.l3)
		b.send(1, f)
		host, ports := 0, 0
		b.receive(func(port int, m *packet.Mbuf) {
			if port != 5 {
				ports++
			} else if x := m.Bytes(); m.NbSegs == 1 && bytes.Equal(x, f) {
				host++
			}
		})
		if host != c.host || ports != c.ports {
			t.Errorf("%s: %d unchanged to the host and %d to ports, want %d and %d", c.name, host, ports, c.host, c.ports)
		}
		b.mcast.Del(mcast.Key{Group: g})
	}

	// A route of the kernel: a packet a second is the kernel's.
	b.route(mcast.Route{Key: mcast.Key{Group: g}, In: 1, Out: out, Kernel: true})
	count := func(in int, n int) (host, ports int) {
		for range n {
			b.send(in, mcastFrame(in, mcastMAC(9), l3For(mcastSources[0], g, 2, 20)))
		}
		b.receive(func(port int, m *packet.Mbuf) {
			if port == 5 {
				host++
			} else {
				ports++
			}
		})
		return
	}
	if h, p := count(1, 10); h != 1 || p != 18 {
		t.Errorf("%d packets to the kernel, %d forwarded", h, p)
	}
	if h, p := count(1, 10); h != 0 || p != 20 {
		t.Errorf("%d packets to the kernel, %d forwarded", h, p)
	}
	info, _ := b.mcast.Find(mcast.Key{Group: g})
	if info.Packets != 20 {
		t.Errorf("%d packets counted", info.Packets)
	}
}

// TestMulticastNoBuffers: replicas without buffers are counted, and nothing leaks.
func TestMulticastNoBuffers(t *testing.T) {
	b := newMcastBed(t, 128, 4)
	b.route(mcast.Route{Key: mcast.Key{Group: mcastGroups[0]}, In: 1, Out: []mcast.Out{{Iface: 2}, {Iface: 3}, {Iface: 4}}})
	for range 3 {
		b.send(1, mcastFrame(1, mcastMAC(9), l3For(mcastSources[0], mcastGroups[0], 9, 100)))
	}
	rest := make([]uint32, b.pool.Free()-4)
	got := b.cache.Alloc(rest)
	n := 0
	b.receive(func(int, *packet.Mbuf) { n++ })
	b.cache.Free(rest[:got])
	lost := b.drops()["multicast/no-buffer"]
	if n+int(lost) != 9 || lost == 0 {
		t.Errorf("%d sent, %d without buffers", n, lost)
	}
}

// BenchmarkMulticast is the whole road with replication to 1, 3 and 8 interfaces.
func BenchmarkMulticast(bb *testing.B) {
	for _, n := range []int{1, 3, 8} {
		for f, family := range []string{"ipv4", "ipv6"} {
			bb.Run(fmt.Sprintf("%s/%d", family, n), func(bb *testing.B) {
				b := newMcastBed(bb, 16384, 9)
				r := mcast.Route{Key: mcast.Key{Group: mcastGroups[2*f], Source: mcastSources[2*f]}, In: 1}
				for i := range n {
					r.Out = append(r.Out, mcast.Out{Iface: uint16(i + 2)})
				}
				b.route(r)
				frame := mcastFrame(1, mcastMAC(9), l3For(mcastSources[2*f], mcastGroups[2*f], 200, 1000))
				var idx, got [64]uint32
				clocks := uint64(0)
				bb.ResetTimer()
				for range bb.N {
					if b.cache.Alloc(idx[:]) != len(idx) {
						bb.Fatal("no buffers")
					}
					for _, x := range idx {
						m := packet.At(x)
						m.PktLen, m.DataLen = uint32(len(frame)), uint16(len(frame))
						copy(m.Bytes(), frame[:64])
					}
					b.far[1].Tx(idx[:])
					t0 := clock.Ticks()
					b.solo.Round()
					clocks += clock.Ticks() - t0
					for _, q := range b.far[2 : n+2] {
						k := q.Rx(got[:])
						if k != len(idx) {
							bb.Fatal(k)
						}
						b.cache.Free(got[:k])
					}
				}
				per := float64(clocks) / float64(bb.N*len(idx))
				bb.ReportMetric(per, "clocks/packet")
				bb.ReportMetric(per/float64(n), "clocks/replica")
			})
		}
	}
}

// TestMulticastNoAllocs: replication does not allocate.
func TestMulticastNoAllocs(t *testing.T) {
	b := newMcastBed(t, 4096, 4)
	b.route(mcast.Route{Key: mcast.Key{Group: mcastGroups[0]}, In: 1, Out: []mcast.Out{{Iface: 2}, {Iface: 3}, {Iface: 4}}})
	frame := mcastFrame(1, mcastMAC(9), l3For(mcastSources[0], mcastGroups[0], 200, 600))
	n := 0
	if a := testing.AllocsPerRun(200, func() {
		b.send(1, frame)
		b.receive(func(int, *packet.Mbuf) { n++ })
	}); a != 0 {
		t.Errorf("%v allocations a packet", a)
	}
	if n != 3*201 {
		t.Errorf("%d packets", n)
	}
}
