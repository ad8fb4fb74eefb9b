package bench

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync/atomic"

	"github.com/gaissmai/bart"

	"millrace/bench/bgp"
	"millrace/fib/lpm"
	"millrace/internal/clock"
	"millrace/internal/epoch"
)

// Contenders in Go.

var own4 = []contender[uint32]{
	{make: func(int) (fibTable[uint32], error) {
		return newOwn(func(d *epoch.Domain) (lpmTable[uint32], error) { return lpm.New4(d) })
	}},
	{kind: "compact", make: func(int) (fibTable[uint32], error) {
		return newOwn(func(d *epoch.Domain) (lpmTable[uint32], error) { return lpm.NewCompact4(d) })
	}},
}

var own6 = []contender[[16]byte]{
	{make: func(int) (fibTable[[16]byte], error) {
		return newOwn(func(d *epoch.Domain) (lpmTable[[16]byte], error) { return lpm.New6(d) })
	}},
}

// lpmTable is what the tables of package lpm have in common.
type lpmTable[A bgp.Addr] interface {
	Insert(addr A, bits int, value uint16) error
	Replace(addr A, bits int, value uint16)
	Remove(addr A, bits int, parent uint16, parentBits int)
	Commit()
	Find(dst *A, out *uint16, n int)
	Bytes() (hot, shadow int)
	Close()
}

// ownTable is a table of package lpm with the rule table that its changes need.
type ownTable[A bgp.Addr] struct {
	t     lpmTable[A]
	rules bart.Table[uint16]
	d     *epoch.Domain
	slot  *epoch.Slot
	out   [fibBatch]uint16
}

func newOwn[A bgp.Addr](make func(*epoch.Domain) (lpmTable[A], error)) (fibTable[A], error) {
	o := &ownTable[A]{d: epoch.NewDomain()}
	o.slot = o.d.NewSlot()
	var err error
	o.t, err = make(o.d)
	return o, err
}

func (o *ownTable[A]) Load(rs []bgp.Route[A]) error {
	for i := range rs {
		r := &rs[i]
		if err := o.t.Insert(r.Addr, int(r.Bits), r.Value); err != nil {
			return err
		}
	}
	o.t.Commit()
	return nil
}

func (o *ownTable[A]) Find(dst []A, out []uint16) {
	for i := 0; i < len(dst); i += fibBatch {
		o.t.Find(&dst[i], &out[i], fibBatch)
	}
}

func (o *ownTable[A]) Pass(dst []A) {
	for i := 0; i < len(dst); i += fibBatch {
		o.t.Find(&dst[i], &o.out[0], fibBatch)
	}
}

func (o *ownTable[A]) Polluted(dst []A, ring *fibRing, ticks []uint64) {
	for i := range ticks {
		ring.touch()
		t := clock.Ticks()
		o.t.Find(&dst[i*fibBatch], &o.out[0], fibBatch)
		ticks[i] = clock.Ticks() - t
	}
}

func (o *ownTable[A]) Bytes() (hot, shadow int) { return o.t.Bytes() }

func (o *ownTable[A]) Close() {
	o.slot.Close()
	o.d.Wait()
	o.t.Close()
}

// commitEvery is the number of changes between two commits, as a router gets them from its sources.
const commitEvery = 64

func (o *ownTable[A]) Update(rs []bgp.Route[A]) error {
	if o.rules.Size() == 0 {
		return fmt.Errorf("no rules")
	}
	for i := range rs {
		r := &rs[i]
		p, bits := r.Prefix(), int(r.Bits)
		_, old := o.rules.Get(p)
		switch {
		case r.Value == 0 && old:
			o.rules.Delete(p)
			parent, v, ok := o.rules.LookupPrefixLPM(p)
			if !ok {
				parent = netip.Prefix{}
			}
			o.t.Remove(r.Addr, bits, v, max(parent.Bits(), 0))
		case r.Value != 0 && old:
			o.rules.Insert(p, r.Value)
			o.t.Replace(r.Addr, bits, r.Value)
		case r.Value != 0:
			o.rules.Insert(p, r.Value)
			if err := o.t.Insert(r.Addr, bits, r.Value); err != nil {
				return err
			}
		}
		if i%commitEvery == commitEvery-1 {
			o.t.Commit()
		}
	}
	o.t.Commit()
	return nil
}

// Prepare fills the rule table, which lookups do not need.
func (o *ownTable[A]) Prepare(rs []bgp.Route[A]) {
	for i := range rs {
		o.rules.Insert(rs[i].Prefix(), rs[i].Value)
	}
}

func (o *ownTable[A]) Poll(dst []A, stop *uint32) (n int) {
	o.slot.Online()
	defer o.slot.Offline()
	var out [fibBatch]uint16
	for i := 0; atomic.LoadUint32(stop) == 0; n += fibBatch {
		o.slot.Quiesce()
		o.t.Find(&dst[i], &out[0], fibBatch)
		if i += fibBatch; i == len(dst) {
			i = 0
		}
	}
	return n
}

// bartTable is bart's fastest form. It is changed by copies, which is its way beside readers.
type bartTable[A bgp.Addr] struct {
	t    atomic.Pointer[bart.Fast[uint16]]
	find func(t *bart.Fast[uint16], dst []A, out []uint16)
	out  [fibBatch]uint16
}

func newBart4(int) (fibTable[uint32], error) {
	return newBart(func(t *bart.Fast[uint16], dst []uint32, out []uint16) {
		for i, d := range dst {
			out[i], _ = t.Lookup(netip.AddrFrom4([4]byte{byte(d >> 24), byte(d >> 16), byte(d >> 8), byte(d)}))
		}
	})
}

func newBart6(int) (fibTable[[16]byte], error) {
	return newBart(func(t *bart.Fast[uint16], dst [][16]byte, out []uint16) {
		for i := range dst {
			out[i], _ = t.Lookup(netip.AddrFrom16(dst[i]))
		}
	})
}

func newBart[A bgp.Addr](find func(*bart.Fast[uint16], []A, []uint16)) (fibTable[A], error) {
	b := &bartTable[A]{find: find}
	b.t.Store(new(bart.Fast[uint16]))
	return b, nil
}

func (b *bartTable[A]) Load(rs []bgp.Route[A]) error {
	t := b.t.Load()
	for i := range rs {
		t.Insert(rs[i].Prefix(), rs[i].Value)
	}
	return nil
}

func (b *bartTable[A]) Find(dst []A, out []uint16) { b.find(b.t.Load(), dst, out) }

func (b *bartTable[A]) Pass(dst []A) {
	t := b.t.Load()
	for i := 0; i < len(dst); i += fibBatch {
		b.find(t, dst[i:i+fibBatch], b.out[:])
	}
}

func (b *bartTable[A]) Polluted(dst []A, ring *fibRing, ticks []uint64) {
	table := b.t.Load()
	for i := range ticks {
		ring.touch()
		t := clock.Ticks()
		b.find(table, dst[i*fibBatch:][:fibBatch], b.out[:])
		ticks[i] = clock.Ticks() - t
	}
}

// Bytes measures what the heap shrinks by without the table: a copy of it is made and dropped.
func (b *bartTable[A]) Bytes() (hot, shadow int) {
	var with, without runtime.MemStats
	c := b.t.Load().Clone()
	runtime.GC()
	runtime.ReadMemStats(&with)
	runtime.KeepAlive(c)
	c = nil
	runtime.GC()
	runtime.ReadMemStats(&without)
	return int(with.HeapAlloc - without.HeapAlloc), 0
}

func (b *bartTable[A]) Close() { b.t.Store(nil) }

func (b *bartTable[A]) Update(rs []bgp.Route[A]) error {
	for i := range rs {
		t, p := b.t.Load(), rs[i].Prefix()
		if rs[i].Value != 0 {
			t = t.InsertPersist(p, rs[i].Value)
		} else {
			t = t.DeletePersist(p)
		}
		b.t.Store(t)
	}
	return nil
}

func (b *bartTable[A]) Poll(dst []A, stop *uint32) (n int) {
	var out [fibBatch]uint16
	for i := 0; atomic.LoadUint32(stop) == 0; n += fibBatch {
		b.find(b.t.Load(), dst[i:i+fibBatch], out[:])
		if i += fibBatch; i == len(dst) {
			i = 0
		}
	}
	return n
}
