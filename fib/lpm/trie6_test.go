package lpm

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe" // nodes by number, in mapped memory outside the heap

	"millrace/internal/epoch"
	"millrace/internal/ids"
	"millrace/internal/mem"
)

const (
	nodes6    = 1 << 22 // most nodes
	node6bit  = 1 << 31 // in an entry: the rest is the number of a node
	chunk6    = mem.HugeSize / 1024
	nodeBytes = 1024
)

// trieNode is 256 entries. An entry is a node's number with node6bit, or a value with the length of
// the prefix that it comes from in bits 16 to 23.
type trieNode = [256]uint32

// trie6 is a plain trie beside which Table6 is measured and tested: its root takes 16 bits
// and its nodes take 8 each.
type trie6 struct {
	root  *[1 << 16]uint32
	nodes unsafe.Pointer // address space for nodes6 nodes; those below mapped have memory

	mapped uint32
	uses   []uint32 // by node: prefixes that end in it, and nodes below it
	slot   []uint64 // by node: the entry that leads to it: place in the root, or 1<<40 | node<<8 | byte
	ids    *ids.Set
	d      *epoch.Domain
	unused []uint32
}

const inNode = 1 << 40

// newTrie6 makes an empty table: all destinations have value 0.
func newTrie6(d *epoch.Domain) (*trie6, error) {
	t := &trie6{ids: ids.New("IPv6 trie nodes", 0, nodes6), d: d}
	r, err := mem.Of[uint32](1 << 16)
	if err != nil {
		return nil, err
	}
	t.root = (*[1 << 16]uint32)(r)
	if t.nodes, err = mem.Reserve(nodes6 * nodeBytes); err != nil {
		return nil, err
	}
	return t, nil
}

// Close unmaps the table; nobody may be reading.
func (t *trie6) Close() {
	mem.Free(t.root[:])
	mem.Unmap(unsafe.Slice((*byte)(t.nodes), nodes6*nodeBytes))
}

func (t *trie6) node(n uint32) *trieNode {
	return (*trieNode)(unsafe.Add(t.nodes, uintptr(n&^node6bit)*nodeBytes))
}

func (t *trie6) entry(slot uint64) *uint32 {
	if slot&inNode != 0 {
		return &t.node(uint32(slot >> 8))[uint8(slot)]
	}
	return &t.root[uint16(slot)]
}

// Lookup is the value of a destination.
func (t *trie6) Lookup(dst [16]byte) uint16 {
	e := t.root[binary.BigEndian.Uint16(dst[:])]
	for i := 2; e&node6bit != 0; i++ {
		e = t.node(e)[dst[i&15]]
	}
	return uint16(e)
}

// Insert adds a prefix that is not in the table. On an error no lookup has changed.
func (t *trie6) Insert(addr [16]byte, bits int, value uint16) error {
	slots, n, err := t.walk(addr, bits, true)
	if err != nil {
		return err
	}
	if bits > 16 {
		t.uses[n]++
	}
	t.fill(slots, uint32(bits), false, trieLeaf(value, bits))
	return nil
}

// Replace gives a prefix of the table another value.
func (t *trie6) Replace(addr [16]byte, bits int, value uint16) {
	slots, _, _ := t.walk(addr, bits, false)
	t.fill(slots, uint32(bits), true, trieLeaf(value, bits))
}

// Remove takes a prefix out: its destinations fall to the next shorter prefix of
// the table, of parentBits and parent, or to value 0.
func (t *trie6) Remove(addr [16]byte, bits int, parent uint16, parentBits int) {
	slots, n, _ := t.walk(addr, bits, false)
	t.fill(slots, uint32(bits), true, trieLeaf(parent, parentBits))
	if bits > 16 {
		t.leave(n)
	}
}

func trieLeaf(value uint16, bits int) uint32 { return uint32(bits)<<16 | uint32(value) }

// walk finds the entries that a prefix covers at the level where it ends, and their node.
func (t *trie6) walk(addr [16]byte, bits int, create bool) ([]uint32, uint32, error) {
	first := binary.BigEndian.Uint16(addr[:])
	if bits <= 16 {
		return t.root[first:][:1<<(16-bits)], 0, nil
	}
	slot := uint64(first)
	for at := 16; ; at += 8 {
		e := t.entry(slot)
		if *e&node6bit == 0 {
			if !create {
				panic("lpm: the IPv6 table lost a prefix")
			}
			if err := t.grow(slot, *e); err != nil {
				return nil, 0, err
			}
		}
		n := *e &^ node6bit
		b := addr[at/8]
		if bits <= at+8 {
			return t.node(n)[b:][:1<<(at+8-bits)], n, nil
		}
		slot = inNode | uint64(n)<<8 | uint64(b)
	}
}

// grow puts a node full of the entry e behind it.
func (t *trie6) grow(slot uint64, e uint32) error {
	n, err := take(t.ids, t.d)
	if err == nil && n >= t.mapped {
		_, _, err = mem.MapAt(unsafe.Add(t.nodes, uintptr(t.mapped)*nodeBytes), mem.HugeSize)
		if err == nil {
			t.mapped += chunk6
			t.uses = append(t.uses, make([]uint32, chunk6)...)
			t.slot = append(t.slot, make([]uint64, chunk6)...)
		} else {
			t.ids.Put(n)
			err = fmt.Errorf("%w: no memory for IPv6 trie nodes: %w", ids.ErrFull, err)
		}
	}
	if err != nil {
		return err
	}
	nd := t.node(n)
	for i := range nd {
		nd[i] = e
	}
	t.uses[n], t.slot[n] = 0, slot
	if slot&inNode != 0 {
		t.uses[uint32(slot>>8)]++
	}
	t.unused = append(t.unused, n) // until a prefix ends in it
	atomic.StoreUint32(t.entry(slot), node6bit|n)
	return nil
}

func (t *trie6) leave(n uint32) {
	if t.uses[n]--; t.uses[n] == 0 {
		t.unused = append(t.unused, n)
	}
}

// fill sets the entries that come from a prefix of from bits, or, where exact is false,
// of at most from bits.
func (t *trie6) fill(slots []uint32, from uint32, exact bool, e uint32) {
	for i, s := range slots {
		if s&node6bit != 0 {
			t.fill(t.node(s)[:], from, exact, e)
		} else if l := s >> 16; l == from || !exact && l < from {
			slots[i] = e
		}
	}
}

// Commit ends a batch of changes: nodes that nothing needs leave the table, to be used again
// when no reader can be in them.
func (t *trie6) Commit() {
	var freed []uint32
	for len(t.unused) > 0 {
		n := t.unused[len(t.unused)-1]
		t.unused = t.unused[:len(t.unused)-1]
		e := t.entry(t.slot[n])
		if t.uses[n] != 0 || *e != node6bit|n {
			continue // in use, or listed twice
		}
		up := t.slot[n]
		atomic.StoreUint32(e, t.node(n)[0])
		freed = append(freed, n)
		if up&inNode != 0 {
			t.leave(uint32(up &^ inNode >> 8))
		}
	}
	if freed != nil {
		t.d.Retire(func() { t.ids.Put(freed...) })
	}
}

// Nodes is the set of nodes.
func (t *trie6) Nodes() *ids.Set { return t.ids }

// Find writes the values of n destinations, in network order.
func (t *trie6) Find(dst *[16]byte, out *uint16, n int) {
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	for i := range ds {
		vs[i] = t.Lookup(ds[i])
	}
}

// Bytes is the memory of the table and of the writer's shadow.
func (t *trie6) Bytes() (hot, shadow int) {
	n := t.ids.Used()
	return 4<<16 + n*nodeBytes, 12 * n
}
