package lpm

import (
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"
	"unsafe" // tables outside the heap; the caller's arrays of n destinations and values

	"millrace/internal/epoch"
	"millrace/internal/mem"
)

const (
	dirBits  = 20
	dirBytes = 4 << dirBits
	space6   = dirBytes + mem.HugeSize + lineSpace

	prefixes6 = 4 << 20 // prefixes beyond dirBits, at most: lines for them always fit
	limboMax  = 1 << 15 // retired lines that may wait while the table is small
)

// Table6 finds the value of an IPv6 destination. The first 20 bits pick a tree; 32 bits are looked for
// in it, which is all for routes of the Internet. A line of a tree is a cache line, whose keys are compared
// at once where there is AVX-512:
//
//	directory     | reference of a tree's line | x 2^20, 4 bytes each
//	                   v
//	fan-out       | 15 keys of 32 bits                              | offset of 16 lines |
//	fan-out                            v        three levels of fan-out lines; more on
//	fan-out                            v        top of a tree with more than 45,000 values
//	leaf          | 10 keys of 32 bits          | 11 values of 16 bits           |
//	                                               v  deep values only
//	              | 16 references |   of a tree of the same kind for the next 32 bits, or
//	run           | 5 keys of 80 bits                       | 6 values | .. 8 lines
//
// A key is the last that goes left of it, so that a line without so many has keys that no address is beyond.
// A change writes a block of leaf lines anew and, where its lines cover other keys than before, the block of lines that
// leads to it, and shows them by one store; where only values differ it stores those.
//
// What no prefix covers has the value 0, for which a lookup gives that of ::/0: so that a
// change of the default route is one store.
//
// The writer keeps spans, the table as a sorted list, applies each change to them at
// once, and at Commit makes the lines follow. Table6 is shared as Table4 is; readers see changes at Commit.
type Table6 struct {
	dir  *[1 << dirBits]uint32
	base unsafe.Pointer // of the first line
	def  uint32         // value of ::/0, read by readers at any time

	// The writer's.
	lines   lines
	d       *epoch.Domain
	spans   *spans
	trees   []rooted          // by place in the directory
	chains  map[uint16]*chain // trees of one value, by it
	valueOf map[uint32]*chain // by reference
	dirty   [][2]uint32       // places in the directory, first and last
	wantDef uint32
	pages   [dirBytes / 4096 / 64]uint64 // of the directory, that were written to
	retired []uint32                     // blocks
	want    int                          // lines that the changes since Commit may take
	gathers [4]gathered
	scratch [fan + bucketMax/fan]line
	size    Prefixes
}

type rooted struct {
	place uint32
	tree  *tree6
}

// chain is the tree of places in the directory that have one value.
type chain struct {
	ref   uint32
	value uint16
	uses  int
}

// Prefixes counts prefixes longer than 20 bits, which are what takes room.
type Prefixes struct{ used, limit int }

// Used is how many there are.
func (p *Prefixes) Used() int { return p.used }

// Bound leaves room for at most n more.
func (p *Prefixes) Bound(n int) { p.limit = min(p.limit, p.used+n) }

// New6 makes an empty table: all destinations have value 0. It takes memory as it fills.
func New6(d *epoch.Domain) (*Table6, error) {
	p, err := mem.Reserve(space6)
	if err != nil {
		return nil, err
	}
	if err := mem.SmallAt(p, dirBytes+mem.HugeSize); err != nil {
		mem.Unmap(unsafe.Slice((*byte)(p), space6))
		return nil, err
	}
	t := &Table6{
		dir: (*[1 << dirBits]uint32)(p), base: unsafe.Add(p, dirBytes+mem.HugeSize-smallLines*lineBytes), d: d,
		spans: newSpans(), chains: map[uint16]*chain{}, valueOf: map[uint32]*chain{}, size: Prefixes{limit: prefixes6},
	}
	t.lines.base, t.lines.mapped, t.lines.next = t.base, smallLines, 1<<blockOrder
	t.lines.state = make([]uint8, 1<<blockOrder)
	c := &chain{uses: 1}
	writeChain(t.at(0), 0, 0) // what an empty directory refers to
	t.chains[0], t.valueOf[0] = c, c
	return t, nil
}

// Close unmaps the table; nobody may be reading.
func (t *Table6) Close() {
	t.lines.mu.Lock()
	t.lines.unusable = true
	t.lines.mu.Unlock()
	mem.Unmap(unsafe.Slice((*byte)(unsafe.Pointer(t.dir)), space6))
}

func (t *Table6) at(n uint32) *line { return (*line)(unsafe.Add(t.base, uintptr(n)*lineBytes)) }

// Insert adds a prefix that is not in the table, with a value from 1. On an error, which wraps ErrFull, nothing has changed.
// What Inserts and Replaces of a batch did can be taken back in the same batch.
func (t *Table6) Insert(addr [16]byte, bits int, value uint16) error {
	if bits > dirBits {
		if t.size.used >= t.size.limit {
			return fmt.Errorf("%w: all %d IPv6 prefixes beyond /%d are in use", ErrFull, t.size.limit, dirBits)
		}
		t.want++ // routes of the Internet take a fifth of a line
		if bits > dirBits+32 {
			t.want += 2
		}
		if err := t.lines.room(1<<10 + t.want); err != nil {
			return err
		}
		t.size.used++
	}
	t.paint(addr, bits, false, value, bits)
	return nil
}

// Replace gives a prefix of the table another value.
func (t *Table6) Replace(addr [16]byte, bits int, value uint16) {
	t.paint(addr, bits, true, value, bits)
}

// Remove takes a prefix out: its destinations fall to the next shorter prefix of
// the table, of parentBits and parent, or to value 0.
func (t *Table6) Remove(addr [16]byte, bits int, parent uint16, parentBits int) {
	if parentBits == 0 {
		parent = 0 // or ::/0, by way of it
	}
	t.paint(addr, bits, true, parent, parentBits)
	if bits > dirBits {
		t.size.used--
	}
}

func (t *Table6) paint(addr [16]byte, bits int, exact bool, value uint16, length int) {
	if bits == 0 {
		t.wantDef = uint32(value)
		return
	}
	a, b := prefixRange(number(addr), bits)
	t.spans.paint(a, b, uint8(bits), exact, value, uint8(length), t.mark)
}

// mark says that the values of the addresses in [a, b] may have changed.
func (t *Table6) mark(a, b u128) {
	p0, p1 := uint32(a.hi>>(64-dirBits)), uint32(b.hi>>(64-dirBits))
	i := t.place(p0)
	if p0 == p1 {
		t.plant(i, p0)
		tr := t.trees[i].tree
		if !tr.marked {
			tr.marked = true
			t.dirty = append(t.dirty, [2]uint32{p0, p0})
		}
		tr.mark(a, b)
		return
	}
	t.dirty = append(t.dirty, [2]uint32{p0, p1})
	for ; i < len(t.trees) && t.trees[i].place <= p1; i++ {
		tr := t.trees[i].tree
		lo, hi := tr.first(0), tr.end(noKey)
		if lo.less(a) {
			lo = a
		}
		if b.less(hi) {
			hi = b
		}
		tr.mark(lo, hi)
	}
}

// place is where the tree of a place in the directory stands among the trees, or would stand.
func (t *Table6) place(p uint32) int {
	lo, hi := 0, len(t.trees)
	for lo < hi {
		m := int(uint(lo+hi) / 2)
		if t.trees[m].place < p {
			lo = m + 1
		} else {
			hi = m
		}
	}
	return lo
}

// plant makes sure that a place, which place says stands at i, has a tree.
func (t *Table6) plant(i int, p uint32) {
	if i == len(t.trees) || t.trees[i].place != p {
		t.trees = slices.Insert(t.trees, i, rooted{p, newTree(u128{uint64(p) << (64 - dirBits), 0}, 0)})
	}
}

// Commit shows readers the changes since the last one. A batch that changes ::/0 shows that first: what goes
// from it to another prefix in the same batch may be seen with its new value between.
func (t *Table6) Commit() {
	if t.def != t.wantDef {
		atomic.StoreUint32(&t.def, t.wantDef)
	}
	for _, r := range t.dirty {
		t.follow(r[0], r[1])
	}
	t.want = 0
	if len(t.dirty) > 0 {
		t.dirty = t.dirty[:0]
		for v, c := range t.chains {
			if c.uses == 0 {
				t.retire(c.ref / lineBytes)
				delete(t.chains, v)
				delete(t.valueOf, c.ref)
			}
		}
	}
	t.flush()
}

// follow makes places in the directory follow the spans.
func (t *Table6) follow(p, last uint32) {
	for {
		c := t.spans.seek(u128{uint64(p) << (64 - dirBits), 0})
		v := c.span().value
		next := uint32(1 << dirBits) // the first place that has another value somewhere
		if c.turn() {
			next = uint32(c.span().start.hi >> (64 - dirBits))
		}
		if next > p {
			t.uniform(p, min(next-1, last), v)
			p = next
		} else {
			i := t.place(p)
			t.plant(i, p)
			if tr := t.trees[i].tree; tr.dirty {
				tr.marked = false
				t.build(tr)
				t.setDir(p, tr.ref())
			}
			p++
		}
		if len(t.retired) > 1<<12 {
			t.flush()
		}
		if p > last {
			return
		}
	}
}

// uniform gives places in the directory one value.
func (t *Table6) uniform(p, last uint32, v uint16) {
	i := t.place(p)
	j := i
	for ; j < len(t.trees) && t.trees[j].place <= last; j++ {
		t.drop(t.trees[j].tree)
	}
	t.trees = slices.Delete(t.trees, i, j)
	c := t.chains[v]
	if c == nil {
		b := t.block(levels6 + 1)
		writeChain(t.at(b), b, v)
		c = &chain{ref: b * lineBytes, value: v}
		t.chains[v], t.valueOf[c.ref] = c, c
	}
	for ; p <= last; p++ {
		t.setDir(p, c.ref)
	}
}

// setDir publishes an entry of the directory.
func (t *Table6) setDir(p, ref uint32) {
	old := t.dir[p]
	if old == ref {
		return
	}
	if c := t.valueOf[old]; c != nil && old != 0 {
		c.uses--
	}
	if c := t.valueOf[ref]; c != nil && ref != 0 {
		c.uses++
	}
	atomic.StoreUint32(&t.dir[p], ref)
	t.pages[p>>16] |= 1 << (p >> 10 & 63)
}

// writeChain writes a tree of one value in the block b, whose lines start at l.
func writeChain(l *line, b uint32, v uint16) {
	for i := range uint32(levels6 + 1) {
		x := (*line)(unsafe.Add(unsafe.Pointer(l), i*lineBytes))
		for j := range x {
			x[j] = noKey
		}
		if i < levels6 {
			x[base6] = (b + i + 1) * lineUnits
			continue
		}
		for j := leafHalf; j < 32; j++ {
			halves(x)[j] = v
		}
	}
}

// block takes out a block of at least n lines.
func (t *Table6) block(n int) uint32 {
	b, err := t.lines.get(n)
	if err != nil {
		t.d.Wait() // for lines that are retired
		if b, err = t.lines.get(n); err != nil {
			panic("lpm: " + err.Error())
		}
	}
	return b
}

// retire keeps a block, which may be 0 for none, until flush: it may be in the table until then.
func (t *Table6) retire(b uint32) {
	if b != 0 {
		t.retired = append(t.retired, b)
	}
}

// flush gives retired blocks back once no reader can be in them.
func (t *Table6) flush() {
	if len(t.retired) == 0 {
		return
	}
	blocks := slices.Clone(t.retired)
	t.retired = t.retired[:0]
	much := t.lines.retire(blocks)
	t.d.Retire(func() { t.lines.free(blocks) })
	if much {
		t.d.Wait()
	}
}

// Prefixes counts the prefixes longer than 20 bits.
func (t *Table6) Prefixes() *Prefixes { return &t.size }

// Lookup is the value of a destination.
func (t *Table6) Lookup(dst [16]byte) uint16 {
	a := number(dst)
	v := t.walk(t.dir[a.hi>>(64-dirBits)], a, 0)
	if v == 0 {
		v = uint16(atomic.LoadUint32(&t.def))
	}
	return v
}

// walk is the value of an address in what a reference leads to; 0 where no prefix but ::/0 has it.
func (t *Table6) walk(ref uint32, a u128, round int) uint16 {
	for ; ref&inRun == 0; round++ {
		key, at := key6(a, round), ref/lineBytes*lineUnits
		for range levels6 + ref&(inRun-1) {
			at = t.step(at, key)
		}
		v := t.leaf(at, key)
		if v&deep == 0 {
			return v
		}
		ref = t.deeper(at, v)
	}
	return findRun(t.at(ref/lineBytes), int(ref%inRun)+1, a.hi, a.lo)
}

// deeper is the reference that a deep value of the leaf line at an offset, in units, leads to.
func (t *Table6) deeper(at uint32, v uint16) uint32 {
	return *(*uint32)(unsafe.Add(t.base, uintptr(at)*unit6+uintptr(v&^deep)*4))
}

// step is the offset, in units, of the line that a fan-out line leads a key to.
func (t *Table6) step(at, key uint32) uint32 {
	l := (*line)(unsafe.Add(t.base, uintptr(at)*unit6))
	i := beyond(key, l[7]) << 3
	i += beyond(key, l[i+3]) << 2
	i += beyond(key, l[i+1]) << 1
	i += beyond(key, l[i&15])
	return l[base6] + i*lineUnits
}

// leaf is the value of a key in a leaf line.
func (t *Table6) leaf(at, key uint32) uint16 {
	l := (*line)(unsafe.Add(t.base, uintptr(at)*unit6))
	i := beyond(key, l[4]) * 5
	i += beyond(key, l[i+2]) * 3
	i += beyond(key, l[i&15]) + beyond(key, l[(i+1)&15])
	return halves(l)[(leafHalf+i)&31]
}

// beyond is 1 where a > b, without a branch.
func beyond(a, b uint32) uint32 { return uint32((uint64(b) - uint64(a)) >> 63) }

// Bytes is the memory of the table and of the writer's shadow. It is for the writer.
func (t *Table6) Bytes() (hot, shadow int) {
	used, limbo, state := t.lines.usage()
	nodes, pages := 0, 0
	for _, x := range t.pages {
		pages += bits.OnesCount64(x)
	}
	for _, r := range t.trees {
		nodes += r.tree.root.bytes()
	}
	return (used-limbo)*lineBytes + pages*4096, t.spans.bytes() + state + nodes
}
