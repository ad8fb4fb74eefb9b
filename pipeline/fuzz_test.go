package pipeline

import (
	"net/netip"
	"testing"

	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/ip/host"
	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
)

// FuzzRoad sends any bytes, in any segments, down the whole road: counted, never a crash, and no
// packet or buffer lost.
func FuzzRoad(f *testing.F) {
	st := newStack(f, 4096)
	pool, tables, fb := st.pool, st.tables, st.fib
	solo, err := NewSolo(st.options(noResolver{}, host.Config{}))
	if err != nil {
		f.Fatal(err)
	}
	mac := pmd.MAC{2, 0, 0, 0, 0, 1}
	a, af := mem.Pair("in", "in-far", mem.Options{})
	b, bf := mem.Pair("out", "out-far", mem.Options{})
	for i, p := range []pmd.Port{a, b} {
		tables.Ifaces[i+1] = graph.Iface{MAC: MACWord(mac), MTU: uint16(1500 - 900*i), Flags: graph.IfUp}
		if _, err := solo.AddPort(p, uint16(i+1)); err != nil {
			f.Fatal(err)
		}
		if err := fb.SetIface(uint16(i+1), fib.IfaceOptions{Redirect: true}); err != nil {
			f.Fatal(err)
		}
	}
	tables.Ifaces[3] = tables.Ifaces[1]
	tables.Ifaces[3].Outer = 1
	if err := fb.SetIface(3, fib.IfaceOptions{}); err != nil {
		f.Fatal(err)
	}
	tables.Vlans.Store(&map[uint64]uint16{VlanKey(1, 1, 0): 3})
	own := map[uint16][]netip.Prefix{1: {netip.MustParsePrefix("10.0.0.1/24"), netip.MustParsePrefix("2001:db8::1/64")}}
	is := map[netip.Addr]uint16{netip.MustParseAddr("10.0.0.1"): 1, netip.MustParseAddr("2001:db8::1"): 1}
	tables.Addrs.Store(&graph.Addresses{By: own, Is: is})
	nh := func(s string, iface uint16) []fib.NextHop {
		ad := netip.MustParseAddr(s)
		if err := fb.SetNeighbour(iface, ad, mac); err != nil {
			f.Fatal(err)
		}
		return []fib.NextHop{{Via: ad, Iface: iface}}
	}
	if err := fb.Update([]fib.Route{
		{Prefix: netip.MustParsePrefix("0.0.0.0/0"), NextHops: nh("10.9.0.1", 2), Source: fib.SourceConfig},
		{Prefix: netip.MustParsePrefix("64.0.0.0/2"), NextHops: append(nh("10.9.0.1", 2), nh("10.0.0.9", 3)...), Source: fib.SourceConfig},
		{Prefix: netip.MustParsePrefix("::/0"), NextHops: nh("2001:db8:9::1", 2), Source: fib.SourceConfig},
		{Prefix: netip.MustParsePrefix("10.0.0.1/32"), Type: fib.Local, Source: fib.SourceConnected},
		{Prefix: netip.MustParsePrefix("2001:db8::1/128"), Type: fib.Local, Source: fib.SourceConnected},
		{Prefix: netip.MustParsePrefix("10.0.0.0/24"), NextHops: []fib.NextHop{{Iface: 1}}, Source: fib.SourceConnected},
	}, nil); err != nil {
		f.Fatal(err)
	}
	for _, g := range []string{"239.1.0.0", "ff0e::1"} {
		if err := st.mcast.Set(mcast.Route{Key: mcast.Key{Group: netip.MustParseAddr(g)}, In: 1, Out: []mcast.Out{{Iface: 2}, {Iface: 3, TTL: 20}}}); err != nil {
			f.Fatal(err)
		}
		f.Add(mcastFrame(1, mac, l3For(netip.MustParseAddr(map[bool]string{true: "192.0.2.1", false: "2001:db8::9"}[g[0] == '2']), netip.MustParseAddr(g), 30, 700)), uint8(40))
	}
	cache := pool.NewCache()
	qs := []pmd.Queue{af.Queue(0), bf.Queue(0)}
	for _, q := range qs {
		if err := q.Start(cache); err != nil {
			f.Fatal(err)
		}
	}
	for _, fr := range trafficMix(mac)[:200] {
		f.Add(fr, uint8(0))
		f.Add(fr, uint8(17))
	}
	f.Fuzz(func(t *testing.T, data []byte, cut uint8) {
		if len(data) > 9000 {
			data = data[:9000]
		}
		m := chainOf(cache, data, int(cut))
		if m == nil {
			t.Skip("the chain would have too many segments")
		}
		if len(data) >= 6 && data[0]&2 == 0 { // mostly to us
			m.CopyIn(0, mac[:])
		}
		one := [1]uint32{m.Index()}
		if qs[0].Tx(one[:]) != 1 {
			t.Fatal("ring full")
		}
		var out [64]uint32
		for n := 0; n < 4; n++ {
			solo.Round()
			for _, q := range qs {
				k := q.Rx(out[:])
				for _, x := range out[:k] {
					if p := packet.At(x); int(p.PktLen) < 14 {
						t.Errorf("sent a frame of %d bytes", p.PktLen)
					}
				}
				cache.Free(out[:k])
			}
		}
		if a := solo.Account(); a.Missing() != 0 {
			t.Fatalf("%d packets missing: %+v", a.Missing(), a)
		}
		held := 0
		acc := solo.Account()
		for _, n := range acc.Held {
			held += n
		}
		if free := pool.Free() + held; free != pool.Size() {
			t.Fatalf("%d buffers lost: %+v", pool.Size()-free, acc)
		}
	})
}

// chainOf makes a packet of data with a first segment of cut bytes and others of some more; 0 cuts
// only where a buffer is full.
func chainOf(c *packet.Cache, data []byte, cut int) *packet.Mbuf {
	var head, tail *packet.Mbuf
	for head == nil || len(data) > 0 {
		s := c.Alloc1()
		if s == nil {
			return nil
		}
		n := min(len(data), packet.DataRoom)
		if cut > 0 {
			n = min(n, cut)
			cut = cut*3 + 1
		}
		copy(s.Append(n), data[:n])
		data = data[n:]
		if head == nil {
			head = s
		} else {
			tail.SetNext(s)
			head.NbSegs++
			head.PktLen += uint32(n)
		}
		tail = s
	}
	return head
}
