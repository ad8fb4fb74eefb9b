package lpm

import (
	"sync/atomic"
	"unsafe" // the caller's arrays of n destinations and values

	"millrace/internal/epoch"
	"millrace/internal/ids"
	"millrace/internal/mem"
)

const (
	blocks4 = 1 << 15 // blocks in tbl8
	deep4   = 1 << 15 // in tbl24: the rest is the number of a block
)

// Table4 finds the value of an IPv4 destination: DIR-24-8.
type Table4 struct {
	tbl24 *[1 << 24]uint16
	tbl8  *[blocks4][256]uint16

	// spread: the routes cover more of tbl24 than stays in a core's cache, so that
	// lookups should prefetch.
	spread atomic.Bool

	// Written and read by the writer only: length of the prefix each entry comes from.
	len24 []uint8
	len8  [][256]uint8
	uses  []uint16 // by block: prefixes longer than 24 bits in it
	at    []uint32 // by block: its place in tbl24
	lines int      // cache lines of tbl24 that routes cover, overlaps counted twice
	base  int      // of these, covered by routes whose destinations carry no traffic

	blocks *ids.Set
	d      *epoch.Domain
	unused []uint32 // blocks that may have become useless
}

// spreadLines is the number of cache lines of tbl24 from which prefetching pays: a
// quarter of a small second-level cache.
const spreadLines = 2048

// New4 makes an empty table: all destinations have value 0.
func New4(d *epoch.Domain) (*Table4, error) {
	t := &Table4{
		uses: make([]uint16, blocks4), at: make([]uint32, blocks4),
		blocks: ids.New("blocks of 256 IPv4 host entries", 0, blocks4), d: d,
	}
	a, err := mem.Of[uint16](1 << 24)
	if err != nil {
		return nil, err
	}
	t.tbl24 = (*[1 << 24]uint16)(a)
	b, err := mem.Of[[256]uint16](blocks4)
	if err != nil {
		return nil, err
	}
	t.tbl8 = (*[blocks4][256]uint16)(b)
	if t.len24, err = mem.Of[uint8](1 << 24); err != nil {
		return nil, err
	}
	if t.len8, err = mem.Of[[256]uint8](blocks4); err != nil {
		return nil, err
	}
	return t, nil
}

// Close unmaps the table; nobody may be reading.
func (t *Table4) Close() {
	mem.Free(t.tbl24[:])
	mem.Free(t.tbl8[:])
	mem.Free(t.len24)
	mem.Free(t.len8)
}

// Lookup is the value of a destination in host order.
func (t *Table4) Lookup(dst uint32) uint16 {
	e := t.tbl24[dst>>8]
	if e&deep4 != 0 {
		e = t.tbl8[e&(deep4-1)][uint8(dst)]
	}
	return e
}

// Insert adds a prefix that is not in the table. On an error nothing has changed.
func (t *Table4) Insert(addr uint32, bits int, value uint16) error {
	if bits > 24 {
		b, err := t.block(addr >> 8)
		if err != nil {
			return err
		}
		t.uses[b]++
	}
	t.fill(addr, bits, uint8(bits), false, value, uint8(bits))
	t.cover(bits, 1)
	return nil
}

// Replace gives a prefix of the table another value.
func (t *Table4) Replace(addr uint32, bits int, value uint16) {
	t.fill(addr, bits, uint8(bits), true, value, uint8(bits))
}

// Remove takes a prefix out: its destinations fall to the next shorter prefix of
// the table, of parentBits and parent, or to value 0.
func (t *Table4) Remove(addr uint32, bits int, parent uint16, parentBits int) {
	t.fill(addr, bits, uint8(bits), true, parent, uint8(parentBits))
	if bits > 24 {
		b := uint32(t.tbl24[addr>>8] & (deep4 - 1))
		if t.uses[b]--; t.uses[b] == 0 {
			t.unused = append(t.unused, b)
		}
	}
	t.cover(bits, -1)
}

func (t *Table4) cover(bits, sign int) {
	t.lines += sign * (1 << max(0, 24-5-bits)) // 32 entries a line
	t.spread.Store(t.lines-t.base > spreadLines)
}

// fill sets the entries in addr/bits that come from a prefix of from bits, or, where exact is
// false, of at most from bits.
func (t *Table4) fill(addr uint32, bits int, from uint8, exact bool, value uint16, length uint8) {
	if bits > 24 {
		b := t.tbl24[addr>>8] & (deep4 - 1)
		at := int(uint8(addr))
		fillRun(t.tbl8[b][at:at+1<<(32-bits)], t.len8[b][at:at+1<<(32-bits)], from, exact, value, length)
		return
	}
	at, n := int(addr>>8), 1<<(24-bits)
	tbl, lens := t.tbl24[at:at+n], t.len24[at:at+n]
	for i := range tbl {
		if e := tbl[i]; e&deep4 != 0 {
			b := e & (deep4 - 1)
			fillRun(t.tbl8[b][:], t.len8[b][:], from, exact, value, length)
		} else if l := lens[i]; l == from || !exact && l < from {
			tbl[i], lens[i] = value, length
		}
	}
}

func fillRun(tbl []uint16, lens []uint8, from uint8, exact bool, value uint16, length uint8) {
	for i := range tbl {
		if l := lens[i]; l == from || !exact && l < from {
			tbl[i], lens[i] = value, length
		}
	}
}

// block is the block behind an entry of tbl24, made where there is none.
func (t *Table4) block(at uint32) (uint32, error) {
	e := t.tbl24[at]
	if e&deep4 != 0 {
		return uint32(e & (deep4 - 1)), nil
	}
	b, err := take(t.blocks, t.d)
	if err != nil {
		return 0, err
	}
	for i := range 256 {
		t.tbl8[b][i], t.len8[b][i] = e, t.len24[at]
	}
	t.at[b] = at
	mem.Store16(&t.tbl24[at], deep4|uint16(b))
	return b, nil
}

// Commit ends a batch of changes: blocks without long prefixes leave the table, to be used again
// when no reader can be in them.
func (t *Table4) Commit() {
	var freed []uint32
	for _, b := range t.unused {
		at := t.at[b]
		if t.uses[b] != 0 || t.tbl24[at] != deep4|uint16(b) {
			continue // in use again, or listed twice
		}
		t.len24[at] = t.len8[b][0]
		mem.Store16(&t.tbl24[at], t.tbl8[b][0])
		freed = append(freed, b)
	}
	t.unused = t.unused[:0]
	if freed != nil {
		t.d.Retire(func() { t.blocks.Put(freed...) })
	}
}

// Calm says that the prefixes so far carry no traffic: they do not count for Spread.
func (t *Table4) Calm() {
	t.base = t.lines
	t.spread.Store(false)
}

// Spread reports whether the prefixes cover more of the table than a core's cache holds.
func (t *Table4) Spread() bool { return t.spread.Load() }

// Blocks is the set of blocks of 256 entries, for prefixes beyond /24.
func (t *Table4) Blocks() *ids.Set { return t.blocks }

// Find writes the values of n destinations, in host order.
func (t *Table4) Find(dst *uint32, out *uint16, n int) {
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	if t.spread.Load() {
		prefetch16(unsafe.Pointer(t.tbl24), dst, n)
	}
	tbl, any := t.tbl24, uint16(0)
	for i, d := range ds {
		e := tbl[d>>8]
		any |= e
		vs[i] = e
	}
	if any&deep4 != 0 {
		for i, e := range vs {
			if e&deep4 != 0 {
				vs[i] = t.tbl8[e&(deep4-1)][uint8(ds[i])]
			}
		}
	}
}

// Bytes is the memory of the table and of the writer's shadow.
func (t *Table4) Bytes() (hot, shadow int) {
	n := t.blocks.Used() * 256
	return 2<<24 + 2*n, 1<<24 + n + 6*blocks4
}

var _ V4 = (*Table4)(nil)
