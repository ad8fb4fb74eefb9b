// Package rig drives single stages in tests: a worker's state without a worker, vectors
// made by hand, and a ledger that must balance.
package rig

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// MACs of the sender of all frames and of the router.
var (
	Peer   = [6]byte{2, 0, 0, 0, 0, 1}
	Router = [6]byte{2, 0, 0, 0, 0, 2}
)

// Rig is a worker's state with tables. Interfaces 1 and 2 are on ports 1 and 2; adjacency n is on
// interface n.
type Rig struct {
	testing.TB
	Pool *packet.Pool
	W    *graph.Worker
	V    graph.Vector
	// Wire is what was handed to ports.
	Wire []uint32
}

// New makes a rig with instances of the exit stages. Its cleanup fails the test where a buffer
// is lost.
func New(t testing.TB, buffers int, exits ...*graph.Stage) *Rig {
	t.Helper()
	pool, err := packet.NewPool("rig", buffers)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := graph.NewTables()
	if err != nil {
		t.Fatal(err)
	}
	c, err := graph.NewCounters()
	if err != nil {
		t.Fatal(err)
	}
	w := &graph.Worker{Base: packet.Base(), Cache: pool.NewCache(), Tables: tables, C: c, Now: clock.Hz() * 1000,
		Instances: map[string]graph.Runner{}}
	r := &Rig{TB: t, Pool: pool, W: w}
	for i := range w.Tx {
		w.Tx[i] = &graph.TxBuf{Q: wire{r}}
	}
	mac := binary.NativeEndian.Uint64([]byte{0, 0, 2, 0, 0, 0, 0, 2})
	for i := uint16(1); i <= 2; i++ {
		tables.Ifaces[i] = graph.Iface{MAC: mac, Port: i, MTU: 1500, Flags: graph.IfUp}
		rw := binary.NativeEndian.Uint64([]byte{2, 0, 0, 0, 9, byte(i), 2, 0})
		tables.Adjs[i] = graph.Adj{RW0: rw, Port: i, Iface: i, MTU: 1500, L2: 14}
	}
	tables.Addrs.Store(Addresses(map[uint16][]string{
		1: {"192.0.2.1/24", "2001:db8:1::1/64", "fe80::1/64"},
		2: {"198.51.100.1/24", "2001:db8:2::1/64", "fe80::2/64"},
	}))
	for _, st := range exits {
		w.Instances[st.Name] = st.New(w)
	}
	for i, info := range graph.Reasons() {
		if k, ok := w.Instances[info.To].(graph.Taker); ok && info.To != "" {
			w.Takers[i] = k
		}
	}
	t.Cleanup(func() {
		for _, x := range w.Instances {
			if s, ok := x.(graph.Source); ok {
				s.Flush()
			}
		}
		w.Flush()
		w.Cache.Free(r.Wire)
		if free := pool.Free(); free != pool.Size() {
			t.Errorf("%d buffers of %d are lost", pool.Size()-free, pool.Size())
		}
		w.Cache.Close()
		pool.Close()
		tables.Close()
		c.Close()
	})
	return r
}

// wire is a port that keeps what it is given.
type wire struct{ r *Rig }

func (q wire) Rx([]uint32) int           { return 0 }
func (q wire) Start(*packet.Cache) error { return nil }
func (q wire) Fd() int                   { return -1 }
func (q wire) Arm() bool                 { return true }
func (q wire) Stop()                     {}
func (q wire) Held() int                 { return 0 }
func (q wire) Tx(src []uint32) int {
	q.r.Wire = append(q.r.Wire, src...)
	return len(src)
}

// Addresses makes the table of the router's addresses.
func Addresses(by map[uint16][]string) *graph.Addresses {
	a := &graph.Addresses{By: map[uint16][]netip.Prefix{}, Is: map[netip.Addr]uint16{}}
	for i, l := range by {
		for _, s := range l {
			p := netip.MustParsePrefix(s)
			a.By[i] = append(a.By[i], p)
			a.Is[p.Addr()] = i
		}
	}
	return a
}

// Mbuf makes a packet of data in segments of the given sizes, the rest in a last one.
func (r *Rig) Mbuf(data []byte, sizes ...int) *packet.Mbuf {
	var head, tail *packet.Mbuf
	total, segs := len(data), uint16(0)
	for len(data) > 0 || head == nil {
		n := min(len(data), packet.DataRoom)
		if len(sizes) > 0 {
			n = min(n, sizes[0])
			sizes = sizes[1:]
		}
		m := r.W.Cache.Alloc1()
		if m == nil {
			r.Fatal("out of buffers")
		}
		copy(m.Append(n), data)
		data = data[n:]
		if head == nil {
			head = m
		} else {
			tail.SetNext(m)
		}
		tail = m
		segs++
	}
	head.PktLen, head.NbSegs = uint32(total), segs
	return head
}

// Add puts an L3 packet behind an Ethernet header, with padding, into the vector as classify
// does, received on interface 1, and returns its position.
func (r *Rig) Add(l3 []byte, pad int, sizes ...int) uint8 {
	f := make([]byte, packet.EtherSize+len(l3)+pad)
	e := packet.Ethernet(f)
	e.SetDst(Router)
	e.SetSrc(Peer)
	e.SetType(packet.EtherIPv4)
	if l3[0]>>4 == 6 {
		e.SetType(packet.EtherIPv6)
	}
	copy(f[packet.EtherSize:], l3)
	v := &r.V
	i := uint8(v.N)
	v.N++
	v.Idx[i], v.In[i], v.NH[i], v.Adj[i] = r.Mbuf(f, sizes...).Index(), 1, 0, 0
	v.From = 1
	v.SetL3(i, packet.EtherSize)
	if l3[0]>>4 == 6 {
		v.Lane6[uint8(v.N6)] = i
		v.N6++
	} else {
		v.Lane4[uint8(v.N4)] = i
		v.N4++
	}
	return i
}

// Bytes is a packet from its offset off on, in one piece.
func Bytes(idx uint32, off int) []byte {
	m := packet.At(idx)
	b := make([]byte, int(m.PktLen)-off)
	m.CopyOut(off, b)
	return b
}

// L3 is the IP packet at position i.
func (r *Rig) L3(i uint8) []byte {
	return Bytes(r.V.Idx[i], r.V.L3Off(i))[:r.V.Len[i]]
}

// Why is the reason that position i left for, or 0.
func (r *Rig) Why(i uint8) graph.Reason {
	for j := range r.V.NX {
		if r.V.XPos[uint8(j)] == i {
			return r.V.XCode[uint8(j)]
		}
	}
	return 0
}

// FreeAll settles exits without their takers and frees the rest of the vector.
func (r *Rig) FreeAll() {
	for i := range r.V.N {
		r.W.Cache.Free1(r.V.Mbuf(uint8(i)))
	}
	r.V.Reset()
}

// Leave gives the packets of the vector, all of which leave for one reason, to their taker.
func (r *Rig) Leave(why graph.Reason) {
	for i := range r.V.N {
		r.V.Exit(uint8(i), why)
	}
	r.W.Settle(&r.V)
	r.V.Reset()
}

// Refill takes everything that a stage puts back on the road: the L3 packets.
func (r *Rig) Refill(stage string) (l [][]byte) {
	s := r.W.Instances[stage].(graph.Source)
	for {
		r.V.Reset()
		if s.Refill(&r.V) == 0 {
			return l
		}
		for i := range r.V.N {
			l = append(l, r.L3(uint8(i)))
		}
		r.FreeAll()
	}
}

// UDP4 makes an IPv4 packet with options and a payload.
func UDP4(src, dst string, options []byte, payload int) packet.IPv4 {
	hl := packet.IPv4Size + len(options)
	h := packet.IPv4(make([]byte, hl+payload))
	h.Init(netip.MustParseAddr(src).As4(), netip.MustParseAddr(dst).As4(), packet.ProtoUDP, len(h))
	h[0] = 0x40 | byte(hl/4)
	copy(h[packet.IPv4Size:], options)
	for i := range payload {
		h[hl+i] = byte(i)
	}
	h.SetSum()
	return h
}

// IP6 makes an IPv6 packet.
func IP6(src, dst string, next uint8, payload []byte) packet.IPv6 {
	h := packet.IPv6(make([]byte, packet.IPv6Size+len(payload)))
	h.Init(netip.MustParseAddr(src).As16(), netip.MustParseAddr(dst).As16(), next, len(payload))
	copy(h[packet.IPv6Size:], payload)
	return h
}

// Note is how often a reason was counted.
func (r *Rig) Note(why graph.Reason) uint64 { return r.W.C.Exit[why] }
