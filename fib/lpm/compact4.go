package lpm

import (
	"fmt"
	"math/bits"
	"sync/atomic"
	"unsafe" // fields of one mapping, at places that are multiples of their size

	"millrace/internal/epoch"
	"millrace/internal/mem"
)

// Compact4 finds the value of an IPv4 destination in little memory: a node for each /19, a word of
//
//	base<<32 | starts
//
// where bit j of starts says that another leaf begins at the j-th /24 of the node. The leaf of a /24 is that number base + (number of
// starts up to it); node 0 leads to leaf 0, which is 0. Leaves are as the entries of Table4. (The idea of counting bits is
// Poptrie's: Asai, Ohara, SIGCOMM 2015.)
//
// The memory behind an address is there once something is written to it: an empty table takes
// a few pages, the Internet's some 7 MiB.
//
// # Changes
//
// A node with other starts is published by one store of its word, with leaves of its own at a new place; the old leaves are used
// again after an epoch. Where the starts stay as they are, leaves are stored in place. Leaves of nodes are taken by
// size, and address space is there for all nodes to have leaves of any size, so that only Insert
// is ever refused: when the leaves exceed maxLeaves4, or for lack of blocks.
type Compact4 struct {
	nodes  *[nodes4]uint64
	leaves *[leaves4]uint16
	blocks *Blocks4

	spread atomic.Bool // as in Table4

	_     [64]byte
	short shorts

	// Written and read by the writer only: lengths of the prefixes that the /24s of a node come from, mixed where they differ.
	len19 *[nodes4]uint8
	len24 *[nodes4][32]uint8 // of nodes that are mixed
	runs  runs4
	d     *epoch.Domain
	hot   []byte
	cold  []byte

	shared    [(1 << 15) / 2048]bool // pages of leaves for nodes of one value that are in use
	nodePages [nodes4 / 512]bool
	lenPages  [nodes4 / 128]bool
	lines     int
	base      int
}

const (
	nodes4  = 1 << 19
	mixed   = 0xfe    // in len19
	single4 = 1 << 15 // leaves for nodes of one value: leaf v+1 is v
	// maxLeaves4 bounds the leaves, 8 MiB of them: three times the Internet's.
	maxLeaves4 = 4 << 20
	// spreadNodes is the number of cache lines of nodes from which prefetching pays.
	spreadNodes = 2048
)

// runSizes are the sizes that leaves of a node are taken in; each has address space for all nodes, and for
// those that readers still look at.
var runSizes = [...]uint32{2, 3, 4, 6, 8, 12, 16, 24, 32}

const (
	runsEach = nodes4 + 1<<10
	runSum   = 2 + 3 + 4 + 6 + 8 + 12 + 16 + 24 + 32
	runsAt   = 2 * single4 // where runs begin among leaves
	leaves4  = runsAt + runSum*runsEach
)

// NewCompact4 makes an empty table: all destinations have value 0.
func NewCompact4(d *epoch.Domain) (*Compact4, error) {
	t := &Compact4{d: d}
	var err error
	if t.blocks, err = newBlocks4(d, 1); err != nil {
		return nil, err
	}
	if t.hot, err = mem.Lazy[byte](8*nodes4 + 2*leaves4); err != nil {
		t.blocks.close()
		return nil, err
	}
	if t.cold, err = mem.Lazy[byte](nodes4 + 32*nodes4); err != nil {
		t.blocks.close()
		mem.FreeLazy(t.hot)
		return nil, err
	}
	t.nodes = (*[nodes4]uint64)(unsafe.Pointer(&t.hot[0]))
	t.leaves = (*[leaves4]uint16)(unsafe.Pointer(&t.hot[8*nodes4]))
	t.len19 = (*[nodes4]uint8)(unsafe.Pointer(&t.cold[0]))
	t.len24 = (*[nodes4][32]uint8)(unsafe.Pointer(&t.cold[nodes4]))
	t.runs.limit = maxLeaves4
	return t, nil
}

// Close unmaps the table; nobody may be reading.
func (t *Compact4) Close() {
	mem.FreeLazy(t.hot)
	mem.FreeLazy(t.cold)
	t.blocks.close()
}

// place is where the leaf of the /24 number at is, by its node's word.
func place(w uint64, at uint32) uint32 {
	return uint32(w>>32) + uint32(bits.OnesCount32(uint32(w)<<(^at&31)))
}

// Lookup is the value of a destination in host order.
func (t *Compact4) Lookup(dst uint32) uint16 {
	for {
		version := t.short.version.Load()
		e := t.leaves[place(atomic.LoadUint64(&t.nodes[dst>>13]), dst>>8)]
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

// leaf is the leaf of the /24 number at.
func (t *Compact4) leaf(at uint32) uint16 { return t.leaves[place(t.nodes[at>>5], at)] }

// Insert adds a prefix that is not in the table, with a value from 1 to MaxValue. On an error nothing has changed.
func (t *Compact4) Insert(addr uint32, bits int, value uint16) error {
	if bits <= shortBits {
		t.short.set(addr, bits, value)
		return nil
	}
	if t.runs.live >= t.runs.limit {
		return fmt.Errorf("%w: all %d leaves of a compact IPv4 table are in use", ErrFull, t.runs.limit)
	}
	if bits > 24 {
		at := addr >> 8
		e := t.leaf(at)
		if e&deep4 == 0 {
			length := t.len19[at>>5]
			if length == mixed {
				length = t.len24[at>>5][at&31]
			}
			var err error
			if e, err = t.blocks.get(at, e, length); err != nil {
				return err
			}
			t.set(at, e, deepLen)
		}
		t.blocks.use(at, e)
	}
	t.fill(addr, bits, shorter(bits), value, uint8(bits))
	t.cover(bits, 1)
	return nil
}

// Replace gives a prefix of the table another value.
func (t *Compact4) Replace(addr uint32, bits int, value uint16) {
	if bits <= shortBits {
		t.short.set(addr, bits, value)
		return
	}
	t.fill(addr, bits, exactly(bits), value, uint8(bits))
}

// Remove takes a prefix out: its destinations fall to the next shorter prefix of
// the table, of parentBits and parent, or to value 0.
func (t *Compact4) Remove(addr uint32, bits int, parent uint16, parentBits int) {
	if bits <= shortBits {
		t.short.set(addr, bits, 0)
		return
	}
	if parentBits <= shortBits {
		parent, parentBits = 0, 0
	}
	t.fill(addr, bits, exactly(bits), parent, uint8(parentBits))
	if bits > 24 {
		t.blocks.leave(addr>>8, t.leaf(addr>>8))
	}
	t.cover(bits, -1)
}

func (t *Compact4) cover(bits, sign int) {
	t.lines += sign * (1 << max(0, 19-3-bits)) // 8 nodes a line
	if s := t.lines-t.base > spreadNodes; s != t.spread.Load() {
		t.spread.Store(s)
	}
}

// Calm says that the prefixes so far carry no traffic: they do not count for prefetching.
func (t *Compact4) Calm() {
	t.base = t.lines
	t.spread.Store(false)
}

// Spread reports whether the prefixes cover more nodes than a core's cache holds.
func (t *Compact4) Spread() bool { return t.spread.Load() }

// Blocks are the blocks of 256 entries, for prefixes beyond /24.
func (t *Compact4) Blocks() *Blocks4 { return t.blocks }

// fill gives the destinations of addr/bits that come from a prefix of a length in m another value.
func (t *Compact4) fill(addr uint32, bits int, m match, value uint16, length uint8) {
	at := addr >> 8
	switch {
	case bits > 24:
		t.blocks.fill(addr, bits, t.leaf(at), m, value, length)
	case bits > 19:
		t.fillNode(at>>5, at&31, 1<<(24-bits), m, value, length)
	default:
		for n, end := at>>5, at>>5+1<<(19-bits); n < end; n++ {
			if l := t.len19[n]; l != mixed && m.has(l) {
				t.len19[n] = length
				t.uniform(n, value)
			} else if l == mixed {
				t.fillNode(n, 0, 32, m, value, length)
			}
		}
	}
}

// lens are the lengths of a node's /24s, as an array of its own for each.
func (t *Compact4) lens(n uint32) *[32]uint8 {
	ls := &t.len24[n]
	if l := t.len19[n]; l != mixed {
		for j := range ls {
			ls[j] = l
		}
		t.len19[n] = mixed
		t.lenPages[n/128] = true
	}
	return ls
}

// tidy notes where all lengths of a node are the same.
func (t *Compact4) tidy(n uint32, ls *[32]uint8) {
	w := (*[4]uint64)(unsafe.Pointer(ls))
	if l := ls[0]; l != deepLen && w[0] == uint64(l)*ones8 && w[0] == w[1] && w[0] == w[2] && w[0] == w[3] {
		t.len19[n] = l
	}
}

// expand writes the leaves of a node's /24s.
func (t *Compact4) expand(n uint32, vs *[32]uint16) {
	w := t.nodes[n]
	i, starts := uint32(w>>32), uint32(w)
	for j := range vs {
		i += starts >> j & 1
		vs[j] = t.leaves[i]
	}
}

// fillNode is fill for count /24s of one node from the from-th on.
func (t *Compact4) fillNode(n, from, count uint32, m match, value uint16, length uint8) {
	if l := t.len19[n]; l != mixed && !m.has(l) {
		return
	}
	ls := t.lens(n)
	var vs [32]uint16
	t.expand(n, &vs)
	for j := from; j < from+count; j++ {
		if l := ls[j&31]; m.has(l) {
			ls[j&31], vs[j&31] = length, value
		} else if l == deepLen {
			t.blocks.fill((n<<5|j)<<8, 24, vs[j&31], m, value, length)
		}
	}
	t.tidy(n, ls)
	t.publish(n, &vs)
}

// set gives one /24 a leaf.
func (t *Compact4) set(at uint32, e uint16, length uint8) {
	n := at >> 5
	ls := t.lens(n)
	var vs [32]uint16
	t.expand(n, &vs)
	ls[at&31], vs[at&31] = length, e
	t.tidy(n, ls)
	t.publish(n, &vs)
}

// publish makes readers see the leaves of a node's /24s.
func (t *Compact4) publish(n uint32, vs *[32]uint16) {
	starts, size := uint32(1), 1
	for j := 1; j < 32; j++ {
		if vs[j] != vs[j-1] {
			starts |= 1 << j
			size++
		}
	}
	if size == 1 {
		t.uniform(n, vs[0])
		return
	}
	old := t.nodes[n]
	oldSize := bits.OnesCount32(uint32(old))
	if starts&^uint32(old) == 0 && oldSize > 1 && class4[size] == class4[oldSize] {
		// Each old leaf has one new value.
		i := uint32(old >> 32)
		for s := uint32(old); s != 0; s &= s - 1 {
			if i++; t.leaves[i] != vs[bits.TrailingZeros32(s)] {
				mem.Store16(&t.leaves[i], vs[bits.TrailingZeros32(s)])
			}
		}
		return
	}
	at := t.runs.get(t, class4[size])
	i := at
	for s := starts; s != 0; s &= s - 1 {
		t.leaves[i] = vs[bits.TrailingZeros32(s)]
		i++
	}
	t.store(n, uint64(at-1)<<32|uint64(starts))
}

// uniform gives all /24s of a node one value.
func (t *Compact4) uniform(n uint32, value uint16) {
	w := uint64(0)
	if value != 0 {
		w = uint64(value)<<32 | 1
		if t.leaves[value+1] != value {
			t.leaves[value+1] = value
			t.shared[value>>11] = true
		}
	}
	if t.nodes[n] != w {
		t.store(n, w)
	}
}

// store publishes the word of a node and takes its old leaves back.
func (t *Compact4) store(n uint32, w uint64) {
	old := t.nodes[n]
	atomic.StoreUint64(&t.nodes[n], w)
	t.nodePages[n/512] = true
	if size := bits.OnesCount32(uint32(old)); size > 1 {
		t.runs.leave(t, uint32(old>>32)+1, class4[size])
	}
}

// Commit ends a batch of changes: blocks without long prefixes leave the table, and what has left it is used again
// when no reader can be in it.
func (t *Compact4) Commit() {
	t.blocks.commit(t.leaf, t.set)
	t.runs.commit(t)
}

// Bytes is the memory of the table and of the writer's shadow, in the pages that have been used.
func (t *Compact4) Bytes() (hot, shadow int) {
	hot, shadow = t.blocks.bytes()
	for i := 0; i < len(t.nodePages); i += 8 {
		n := 0
		for _, x := range t.nodePages[i : i+8] {
			n += b2i(x) * 4096
		}
		hot, shadow = hot+n, shadow+min(n, 4096) // of len19
	}
	for _, x := range t.shared {
		hot += b2i(x) * 4096
	}
	for _, x := range t.lenPages {
		shadow += b2i(x) * 4096
	}
	for c, n := range t.runs.next {
		hot += pages(int(n * runSizes[c] * 2))
	}
	return hot, shadow + int(unsafe.Sizeof(*t))
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

var _ V4 = (*Compact4)(nil)
