package host

import (
	"net/netip"
	"slices"
	"testing"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// sink is a queue that keeps what is sent to it.
type sink struct{ idx []uint32 }

func (q *sink) Start(*packet.Cache) error { return nil }
func (q *sink) Rx([]uint32) int           { return 0 }
func (q *sink) Tx(src []uint32) int       { q.idx = append(q.idx, src...); return len(src) }
func (q *sink) Fd() int                   { return -1 }
func (q *sink) Arm() bool                 { return true }
func (q *sink) Stop()                     {}
func (q *sink) Held() int                 { return 0 }

// rig is one worker's host with a virtual clock: interface 1 is port 1, interface 2
// a VLAN of port 2, interface 3 a QinQ one.
type rig struct {
	t     testing.TB
	pool  *packet.Pool
	w     *graph.Worker
	h     *Host
	s     *Service
	ports [3]*sink
	in    uint64   // packets injected
	out   [][]byte // frames sent by ports, as they were taken
	road  [][]byte // IP packets put on the road, one TTL less
	v     graph.Vector
}

var ourMAC = [6]byte{0x00, 0x11, 0x22, 0x33, 0x44, 0x56}

func macWord(m [6]byte) (w uint64) {
	for i, b := range m {
		w |= uint64(b) << (8 * i)
	}
	return w << 16
}

func newRig(t testing.TB, c Config, prefixes ...string) *rig {
	t.Helper()
	pool, err := packet.NewPool("host-test", 1024)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := graph.NewTables()
	if err != nil {
		t.Fatal(err)
	}
	counters, err := graph.NewCounters()
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, pool: pool, s: New(c)}
	for i := range 3 {
		tables.Ifaces[i+1] = graph.Iface{MAC: macWord(ourMAC), Port: uint16(i + 1), MTU: 1500, Flags: graph.IfUp}
	}
	tables.Ifaces[2].Outer = 100
	tables.Ifaces[3].Outer, tables.Ifaces[3].Inner, tables.Ifaces[3].Port = 200, 300, 2
	r.w = &graph.Worker{Base: packet.Base(), Cache: pool.NewCache(), Tables: tables, C: counters, Now: 1}
	for i := range r.w.Tx {
		q := &sink{}
		if i < len(r.ports) {
			r.ports[i] = q
		}
		r.w.Tx[i] = &graph.TxBuf{Q: q}
	}
	r.addresses(1, prefixes...)
	r.h = r.s.Stage().New(r.w).(*Host)
	t.Cleanup(r.close)
	return r
}

// addresses publishes the prefixes as those of an interface, beside the ones there are.
func (r *rig) addresses(iface uint16, prefixes ...string) {
	old := r.w.Tables.Addrs.Load()
	a := &graph.Addresses{By: map[uint16][]netip.Prefix{}, Is: map[netip.Addr]uint16{}}
	for i, ps := range old.By {
		a.By[i] = ps
	}
	a.By[iface] = nil
	for _, p := range prefixes {
		a.By[iface] = append(a.By[iface], netip.MustParsePrefix(p))
	}
	for i, ps := range a.By {
		for _, p := range ps {
			a.Is[p.Addr()] = i
		}
	}
	r.w.Tables.Addrs.Store(a)
}

// close checks that every packet is accounted for and every buffer came back.
func (r *rig) close() {
	r.settle()
	r.h.Flush()
	r.settle()
	drops := uint64(0)
	for i, x := range graph.Reasons() {
		if x.Kind == graph.Drop {
			drops += r.w.C.Exit[i]
		}
	}
	if r.h.Held() != 0 {
		r.t.Errorf("%d packets are held after Flush", r.h.Held())
	}
	if c := r.w.C; r.in+c.Created != c.Sent+uint64(len(r.road))+c.ToHost+drops {
		r.t.Errorf("received %d + created %d != sent %d + road %d + host %d + dropped %d", r.in, c.Created, c.Sent, len(r.road), c.ToHost, drops)
	}
	r.w.Cache.Close()
	if r.pool.Free() != r.pool.Size() {
		r.t.Errorf("%d of %d buffers came back", r.pool.Free(), r.pool.Size())
	}
	r.pool.Close()
	r.w.Tables.Close()
	r.w.C.Close()
}

// settle collects what was sent and what goes on the road.
func (r *rig) settle() {
	r.w.Flush()
	for _, q := range r.ports {
		for _, i := range q.idx {
			m := packet.At(i)
			b := make([]byte, m.PktLen)
			m.CopyOut(0, b)
			r.out = append(r.out, b)
		}
		r.w.Cache.Free(q.idx)
		q.idx = nil
	}
	for r.w.Wake {
		r.w.Wake = false
		r.v.Reset()
		n := r.h.Refill(&r.v)
		for i := range n {
			m := r.v.Mbuf(uint8(i))
			b := make([]byte, r.v.Len[i])
			m.CopyOut(r.v.L3Off(uint8(i)), b)
			if b[0]>>4 == 4 {
				b[8]--
			} else {
				b[7]--
			}
			r.road = append(r.road, b)
		}
		if r.v.N4+r.v.N6 != n {
			r.t.Error("a packet for the road is neither IPv4 nor IPv6")
		}
		r.w.Cache.Free(r.v.Idx[:n])
	}
}

// inject gives the host a frame, cut into segments of the given lengths.
func (r *rig) inject(iface uint16, b []byte, cuts ...int) {
	var head, tail *packet.Mbuf
	l3 := 14
	for rest := b; head == nil || len(rest) > 0; {
		s := r.w.Cache.Alloc1()
		if s == nil {
			r.t.Fatal("no buffer")
		}
		n := min(len(rest), s.TailSpace())
		if len(cuts) > 0 {
			n, cuts = min(n, cuts[0]), cuts[1:]
		}
		s.DataLen = uint16(n)
		copy(s.Bytes(), rest[:n])
		rest = rest[n:]
		if head == nil {
			head = s
		} else {
			tail.SetNext(s)
			head.NbSegs++
		}
		tail = s
	}
	head.PktLen = uint32(len(b))
	if o, _, _, _, ok := packet.ParseEther(b); ok {
		l3 = o
	}
	r.v.Reset()
	r.v.N = 1
	r.v.Idx[0], r.v.In[0] = head.Index(), iface
	r.v.SetL3(0, l3)
	r.in++
	r.h.Take(&r.v, []uint8{0}, 0)
	r.settle()
}

// pass lets time go by, a tick each millisecond, until something is sent or it is over.
func (r *rig) pass(ms int, until func() bool) {
	for range ms {
		if until != nil && until() {
			return
		}
		r.w.Now += r.h.hz / 1000
		r.h.Tick()
		r.settle()
	}
}

// take returns the frames sent so far and forgets them.
func (r *rig) take() [][]byte {
	o := r.out
	r.out = nil
	return o
}

func (r *rig) takeRoad() [][]byte {
	r.settle()
	o := slices.Clone(r.road)
	return o
}
