package lpm

import (
	"fmt"
	"sync"

	"millrace/internal/epoch"
	"millrace/internal/invariants"
	"millrace/internal/mem"
)

const (
	deep4    = 1 << 15 // in an entry for a /24: the rest is the number of a block, in the region of the /24
	deepLen  = 0xff    // the length of such an entry: longer than any prefix, so that no fill takes it for its own
	regions4 = 1 << 9  // regions of 2^15 /24s, a block number for each
	region4  = 1 << 15

	// maxBlocks4 bounds the memory of a table's blocks: 512 MiB, and half of that for the writer.
	maxBlocks4 = 1 << 20
)

// Blocks4 are the entries of single addresses, for prefixes longer than 24 bits: 256 for each /24 that has one. An entry
// has 15 bits for the number of its block. Blocks are numbered in each region of 2^15 /24s anew, so that there is one for
// every /24 of the address space; a page has memory once a block in it is used.
type Blocks4 struct {
	vals []uint16 // block b from b<<8 on
	mask uint32   // regions - 1

	// Written and read by the writer only.
	lens    []uint8 // lengths of the prefixes that vals come from
	regions []region
	unused  []uint32 // blocks that may have become useless
	d       *epoch.Domain

	mu    sync.Mutex // a leaf: blocks come back under any lock
	used  int
	fresh int // blocks that may be used beyond those that have been
	most  int
}

type region struct {
	at   []uint32 // by block: the number of its /24
	uses []uint16 // by block: prefixes longer than 24 bits in it
	free []uint32 // guarded by mu
}

// newBlocks4 makes room for the blocks of the whole address space in regions, a power of two, of region4 blocks each.
func newBlocks4(d *epoch.Domain, regions int) (*Blocks4, error) {
	n := regions * region4
	b := &Blocks4{mask: uint32(regions - 1), regions: make([]region, regions), d: d, fresh: min(n, maxBlocks4), most: min(n, maxBlocks4)}
	var err error
	if b.vals, err = mem.Lazy[uint16](n << 8); err != nil {
		return nil, err
	}
	if b.lens, err = mem.Lazy[uint8](n << 8); err != nil {
		mem.FreeLazy(b.vals)
		return nil, err
	}
	return b, nil
}

func (b *Blocks4) close() {
	mem.FreeLazy(b.vals)
	mem.FreeLazy(b.lens)
}

// id is the block that an entry for the /24 number at leads to.
func (b *Blocks4) id(at uint32, e uint16) uint32 {
	return at>>15&b.mask<<15 | uint32(e&(deep4-1))
}

// value is what an entry that leads to a block says of a destination.
func (b *Blocks4) value(dst uint32, e uint16) uint16 {
	return b.vals[uint64(b.id(dst>>8, e))<<8|uint64(dst&0xff)]
}

// get takes a block for the /24 number at, all of whose entries are value, from a prefix of a length. It
// returns the entry that leads to the block, for the caller to publish.
func (b *Blocks4) get(at uint32, value uint16, length uint8) (uint16, error) {
	n, ok := b.number(at)
	if !ok && b.d.Pending() > 0 {
		b.d.Wait()
		n, ok = b.number(at)
	}
	if !ok {
		return 0, fmt.Errorf("%w: all %d blocks of 256 IPv4 host entries are in use", ErrFull, b.most)
	}
	e := deep4 | uint16(n)
	i := uint64(b.id(at, e)) << 8
	vals, lens := b.vals[i:i+256], b.lens[i:i+256]
	for j := range vals {
		vals[j], lens[j] = value, length
	}
	r := &b.regions[at>>15&b.mask]
	r.at[n], r.uses[n] = at, 0
	return e, nil
}

func (b *Blocks4) number(at uint32) (n uint32, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	r := &b.regions[at>>15&b.mask]
	if k := len(r.free); k > 0 {
		n, r.free = r.free[k-1], r.free[:k-1]
	} else {
		if n = uint32(len(r.at)); n == region4 || b.fresh == 0 {
			return 0, false
		}
		b.fresh--
		r.at, r.uses = append(r.at, 0), append(r.uses, 0)
	}
	b.used++
	return n, true
}

// use counts a prefix longer than 24 bits in the block that an entry for the /24 number at leads to.
func (b *Blocks4) use(at uint32, e uint16) {
	b.regions[at>>15&b.mask].uses[e&(deep4-1)]++
}

// leave takes use back.
func (b *Blocks4) leave(at uint32, e uint16) {
	u := &b.regions[at>>15&b.mask].uses[e&(deep4-1)]
	if *u--; *u == 0 {
		b.unused = append(b.unused, b.id(at, e))
	}
}

// fill gives the addresses of addr/bits, all in one block, that come from a prefix of a length in m another value.
func (b *Blocks4) fill(addr uint32, bits int, e uint16, m match, value uint16, length uint8) {
	i, n := uint64(b.id(addr>>8, e))<<8, uint64(256)
	if bits > 24 {
		i, n = i|uint64(addr&0xff), 1<<(32-bits)
	}
	m.fill(b.vals[i:i+n], b.lens[i:i+n], value, length)
}

// commit unlinks the blocks that no long prefix uses: entry is the entry for a /24, and restore replaces it by
// a value and the length of its prefix.
func (b *Blocks4) commit(entry func(at uint32) uint16, restore func(at uint32, value uint16, length uint8)) {
	if len(b.unused) == 0 {
		return
	}
	var freed []uint32
	for _, id := range b.unused {
		r, n := &b.regions[id>>15], id&(region4-1)
		at := r.at[n]
		if r.uses[n] != 0 || entry(at) != deep4|uint16(n) {
			continue // in use again, or listed twice
		}
		restore(at, b.vals[uint64(id)<<8], b.lens[uint64(id)<<8])
		freed = append(freed, id)
	}
	b.unused = b.unused[:0]
	if freed != nil {
		b.d.Retire(func() { b.put(freed) })
	}
}

// poisoned turns on, for tests, what the build tag invariants does: memory that no reader may look at any more holds poison.
var poisoned = invariants.Enabled

// poison is a value that routes seldom have.
const poison = MaxValue - 1

func (b *Blocks4) put(ids []uint32) {
	if poisoned {
		for _, id := range ids {
			for i := range 256 {
				b.vals[uint64(id)<<8|uint64(i)] = poison
			}
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, id := range ids {
		r := &b.regions[id>>15]
		r.free = append(r.free, id&(region4-1))
	}
	b.used -= len(ids)
}

// Used is how many blocks are in use.
func (b *Blocks4) Used() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Bound leaves at most n more blocks that were never in use.
func (b *Blocks4) Bound(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.most -= b.fresh - min(b.fresh, n)
	b.fresh = min(b.fresh, n)
}

// bytes is the memory of blocks that are or were in use, for readers and for the writer.
func (b *Blocks4) bytes() (hot, shadow int) {
	for i := range b.regions {
		n := len(b.regions[i].at)
		hot += pages(n << 9)
		shadow += pages(n<<8) + 6*n
	}
	return hot, shadow
}

// pages rounds up to whole pages.
func pages(n int) int { return (n + 4095) &^ 4095 }
