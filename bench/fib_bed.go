package bench

import (
	"fmt"
	"net/netip"
	"sync/atomic"
	"unsafe" // destinations written into headers of packets that the reader owns

	"millrace/bench/bgp"
	"millrace/fib"
	"millrace/internal/epoch"
	"millrace/ip/neigh"
	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// Batches of route changes that are given to the FIB at once: of a whole table as the kernel's dump gives it, and of
// a daemon's changes.
const (
	routerBatch = 4096
	updateBatch = 256
)

// fibBed is a FIB with fibHops neighbours, whose MAC addresses tell a route's value.
type fibBed[A bgp.Addr] struct {
	v4     bool
	tables *graph.Tables
	epoch  *epoch.Domain
	fib    *fib.FIB
	hops   []fib.NextHop // by value-1
}

func newFIBBed[A bgp.Addr](v4 bool) (b *fibBed[A], err error) {
	b = &fibBed[A]{v4: v4, epoch: epoch.NewDomain()}
	if b.tables, err = graph.NewTables(); err != nil {
		return nil, err
	}
	if b.fib, err = fib.New(b.tables, b.epoch, fib.Reasons{Unresolved: neigh.XUnresolved}); err != nil {
		b.tables.Close()
		return nil, err
	}
	for i := range uint16(4) {
		b.tables.Ifaces[i+1] = graph.Iface{MAC: uint64(i)<<56 | 0x02<<16, Port: i + 1, MTU: 1500, Flags: graph.IfUp}
		if err := b.fib.SetIface(i+1, fib.IfaceOptions{}); err != nil {
			return nil, err
		}
	}
	for v := uint16(1); v <= fibHops; v++ {
		via := netip.AddrFrom4([4]byte{100, 64, byte(v >> 8), byte(v)})
		if !v4 {
			via = netip.AddrFrom16([16]byte{0xfe, 0x80, 14: byte(v >> 8), 15: byte(v)})
		}
		iface := v%4 + 1
		b.hops = append(b.hops, fib.NextHop{Via: via, Iface: iface})
		if err := b.fib.SetNeighbour(iface, via, pmd.MAC{2, 0, 0, 0, byte(v >> 8), byte(v)}); err != nil {
			return nil, err
		}
	}
	return b, nil
}

func (b *fibBed[A]) Close() {
	b.fib.Close()
	b.tables.Close()
}

// change is one call of the FIB's Update.
type change struct {
	add []fib.Route
	del []fib.Key
}

// changes are batches of n changes, as a source gives them: of several to one prefix in a batch the last counts.
func (b *fibBed[A]) changes(rs []bgp.Route[A], n int) (cs []change) {
	for from := 0; from < len(rs); from += n {
		batch := rs[from:min(from+n, len(rs))]
		last := make(map[netip.Prefix]int, len(batch))
		for i := range batch {
			last[batch[i].Prefix()] = i
		}
		var c change
		for i := range batch {
			p, v := batch[i].Prefix(), batch[i].Value
			if last[p] != i {
				continue
			}
			if v == 0 {
				c.del = append(c.del, fib.Key{Prefix: p, Source: fib.SourceKernel})
			} else {
				c.add = append(c.add, fib.Route{Prefix: p, NextHops: b.hops[v-1 : v], Source: fib.SourceKernel})
			}
		}
		cs = append(cs, c)
	}
	return cs
}

func (b *fibBed[A]) apply(cs []change) error {
	for i := range cs {
		if err := b.fib.Update(cs[i].add, cs[i].del); err != nil {
			return err
		}
	}
	return nil
}

// fibReader is a worker that does nothing but look up, by the stages of the road.
type fibReader[A bgp.Addr] struct {
	b     *fibBed[A]
	slot  *epoch.Slot
	pool  *packet.Pool
	w     *graph.Worker
	idx   []uint32
	stage graph.Runner
	lane  [graph.VectorSize]uint8
	v     graph.Vector
}

func (b *fibBed[A]) newReader() (*fibReader[A], error) {
	r := &fibReader[A]{b: b, slot: b.epoch.NewSlot(), idx: make([]uint32, fibBatch)}
	var err error
	if r.pool, err = packet.NewPool("bench-fib", 2*fibBatch); err != nil {
		return nil, err
	}
	r.w = &graph.Worker{Base: packet.Base(), Tables: b.tables, Cache: r.pool.NewCache()}
	if r.w.Cache.Alloc(r.idx) != fibBatch {
		return nil, fmt.Errorf("bench: pool too small")
	}
	s := fib.LookupNextHop6(b.fib)
	if b.v4 {
		s = fib.LookupNextHop4(b.fib)
	}
	r.stage = s.New(r.w)
	for i, x := range r.idx {
		packet.At(x).Append(64)
		r.v.Idx[i] = x
		r.v.SetL3(uint8(i), 14)
		r.lane[i] = uint8(i)
	}
	return r, nil
}

func (r *fibReader[A]) close() {
	r.w.Cache.Free(r.idx)
	r.w.Cache.Close()
	r.pool.Close()
	r.slot.Close()
}

// run takes packets to fibBatch destinations through the stage.
func (r *fibReader[A]) run(dst []A) {
	v := &r.v
	v.N, v.NX = fibBatch, 0
	if d, ok := any(dst).([]uint32); ok {
		copy(v.Dst4[:], d)
		v.N4, v.Lane4 = fibBatch, r.lane
	} else {
		for i, d := range any(dst).([][16]byte)[:fibBatch] {
			*(*[16]byte)(unsafe.Add(r.w.Base, v.L3[i]+24)) = d
		}
		v.N6, v.Lane6 = fibBatch, r.lane
	}
	r.stage.Run(v)
}

// find writes the values of fibBatch destinations: those of the adjacencies that packets would leave by, 0 for packets
// that leave the road.
func (r *fibReader[A]) find(dst []A, out []uint16) {
	r.run(dst)
	clear(out)
	lane := r.v.Lane6[:r.v.N6]
	if r.b.v4 {
		lane = r.v.Lane4[:r.v.N4]
	}
	for _, i := range lane {
		mac := r.b.tables.Adjs[r.v.Adj[i]].RW0 // in memory order
		out[i] = uint16(mac>>32&0xff)<<8 | uint16(mac>>40&0xff)
	}
}

func (r *fibReader[A]) poll(dst []A, stop *uint32) (n int) {
	r.slot.Online()
	defer r.slot.Offline()
	for i := 0; atomic.LoadUint32(stop) == 0; n += fibBatch {
		r.slot.Quiesce()
		r.run(dst[i : i+fibBatch])
		if i += fibBatch; i == len(dst) {
			i = 0
		}
	}
	return n
}
