package lpm

import (
	"sync/atomic"

	"millrace/internal/epoch"
	"millrace/internal/mem"
)

// Table4 finds the value of an IPv4 destination: DIR-24-8 (Gupta, Lin, McKeown: Routing Lookups in Hardware at Memory
// Access Speeds, INFOCOM 1998) with 2-byte entries. An entry holds the value of a /24, deep4 with the number of a block of 256
// entries, or 0 where no prefix longer than shortBits covers it.
type Table4 struct {
	tbl24  *[1 << 24]uint16
	blocks *Blocks4

	// spread: the routes cover more of tbl24 than stays in a core's cache, so that
	// lookups should prefetch.
	spread atomic.Bool

	_     [64]byte
	short shorts

	// Written and read by the writer only: length of the prefix each entry comes from.
	len24 []uint8
	lines int // cache lines of tbl24 that routes cover, overlaps counted twice
	base  int // of these, covered by routes whose destinations carry no traffic
}

// spreadLines is the number of cache lines of tbl24 from which prefetching pays: a
// quarter of a small second-level cache.
const spreadLines = 2048

// New4 makes an empty table: all destinations have value 0.
func New4(d *epoch.Domain) (*Table4, error) {
	b, err := newBlocks4(d, regions4)
	if err != nil { // address space is short here
		if b, err = newBlocks4(d, 1); err != nil {
			return nil, err
		}
	}
	t := &Table4{blocks: b}
	a, err := mem.Of[uint16](1 << 24)
	if err != nil {
		b.close()
		return nil, err
	}
	t.tbl24 = (*[1 << 24]uint16)(a)
	if t.len24, err = mem.Of[uint8](1 << 24); err != nil {
		b.close()
		mem.Free(a)
		return nil, err
	}
	return t, nil
}

// Close unmaps the table; nobody may be reading.
func (t *Table4) Close() {
	mem.Free(t.tbl24[:])
	mem.Free(t.len24)
	t.blocks.close()
}

// Lookup is the value of a destination in host order.
func (t *Table4) Lookup(dst uint32) uint16 {
	for {
		version := t.short.version.Load()
		e := t.tbl24[dst>>8]
		if e&deep4 != 0 {
			e = t.blocks.value(dst, e)
		}
		if e != 0 {
			return e
		}
		if e = short(t.short.at(version), dst); t.short.version.Load() == version {
			return e
		}
	}
}

// Insert adds a prefix that is not in the table, with a value from 1 to MaxValue. On an error nothing has changed.
func (t *Table4) Insert(addr uint32, bits int, value uint16) error {
	if bits <= shortBits {
		t.short.set(addr, bits, value)
		return nil
	}
	if bits > 24 {
		at := addr >> 8
		e := t.tbl24[at]
		if e&deep4 == 0 {
			var err error
			if e, err = t.blocks.get(at, e, t.len24[at]); err != nil {
				return err
			}
			t.len24[at] = deepLen
			mem.Store16(&t.tbl24[at], e)
		}
		t.blocks.use(at, e)
	}
	t.fill(addr, bits, shorter(bits), value, uint8(bits))
	t.cover(bits, 1)
	return nil
}

// Replace gives a prefix of the table another value.
func (t *Table4) Replace(addr uint32, bits int, value uint16) {
	if bits <= shortBits {
		t.short.set(addr, bits, value)
		return
	}
	t.fill(addr, bits, exactly(bits), value, uint8(bits))
}

// Remove takes a prefix out: its destinations fall to the next shorter prefix of
// the table, of parentBits and parent, or to value 0.
func (t *Table4) Remove(addr uint32, bits int, parent uint16, parentBits int) {
	if bits <= shortBits {
		t.short.set(addr, bits, 0)
		return
	}
	if parentBits <= shortBits {
		parent, parentBits = 0, 0
	}
	t.fill(addr, bits, exactly(bits), parent, uint8(parentBits))
	if bits > 24 {
		t.blocks.leave(addr>>8, t.tbl24[addr>>8])
	}
	t.cover(bits, -1)
}

func (t *Table4) cover(bits, sign int) {
	t.lines += sign * (1 << max(0, 24-5-bits)) // 32 entries a line
	if s := t.lines-t.base > spreadLines; s != t.spread.Load() {
		t.spread.Store(s)
	}
}

// fill gives the destinations of addr/bits that come from a prefix of a length in m another value.
func (t *Table4) fill(addr uint32, bits int, m match, value uint16, length uint8) {
	at := addr >> 8
	if bits >= 24 {
		if e := t.tbl24[at]; e&deep4 != 0 {
			t.blocks.fill(addr, bits, e, m, value, length)
		} else if m.has(t.len24[at]) {
			t.tbl24[at], t.len24[at] = value, length
		}
		return
	}
	n := uint32(1) << (24 - bits)
	lens := t.len24[at : at+n]
	m.fill(t.tbl24[at:at+n], lens, value, length)
	for i := nextDeep(lens, 0); i < len(lens); i = nextDeep(lens, i+1) {
		k := at + uint32(i)
		t.blocks.fill(k<<8, 24, t.tbl24[k], m, value, length)
	}
}

// Commit ends a batch of changes: blocks without long prefixes leave the table, to be used again
// when no reader can be in them.
func (t *Table4) Commit() {
	t.blocks.commit(
		func(at uint32) uint16 { return t.tbl24[at] },
		func(at uint32, value uint16, length uint8) {
			t.len24[at] = length
			mem.Store16(&t.tbl24[at], value)
		})
}

// Calm says that the prefixes so far carry no traffic: they do not count for Spread.
func (t *Table4) Calm() {
	t.base = t.lines
	t.spread.Store(false)
}

// Spread reports whether the prefixes cover more of the table than a core's cache holds.
func (t *Table4) Spread() bool { return t.spread.Load() }

// Blocks are the blocks of 256 entries, for prefixes beyond /24.
func (t *Table4) Blocks() *Blocks4 { return t.blocks }

// Bytes is the memory of the table and of the writer's shadow.
func (t *Table4) Bytes() (hot, shadow int) {
	hot, shadow = t.blocks.bytes()
	return hot + 2<<24, shadow + 1<<24
}

var _ V4 = (*Table4)(nil)
