package lpm

import (
	"slices"
	"sync/atomic"
	"unsafe" // lines of blocks outside the heap, written before they are published

	"millrace/internal/mem"
)

const (
	fan        = 16 // lines that one line leads to, at most
	leafValues = 11 // values of a leaf line
	leafKeys   = leafValues - 1
	leafHalf   = 20 // the first value of a leaf line, in halves of words
	base6      = 15 // word of a fan-out line: offset of the lines it leads to, in units
	deep       = 1 << 15
	inRun      = 1 << 5 // in a reference: it leads to a run
	levels6    = 3      // fan-out lines above a leaf, at least

	bucketMax  = fan * leafValues
	bucketFill = 15 * leafValues // of a bucket that was split off
	bucketJoin = 8 * leafValues  // neighbours with no more values become one
	nodeJoin   = fan / 2
)

// noKey fills up the keys of a line: no address is beyond it.
const noKey = ^uint32(0)

// tree6 is what the writer knows of a tree: a B+ tree in buckets (level 0, whose blocks hold leaf
// lines and behind them the references of their deep values) and nodes, whose blocks hold the lines
// of those below.
type tree6 struct {
	base  u128
	round uint8 // which 32 bits are its keys: see key
	dirty bool  // some address may have changed

	marked bool   // in Table6.dirty
	at     uint32 // block of the root's line
	root   *node6
}

// node6 is a bucket or a node of a tree. Its own line stands in the block of the node above.
type node6 struct {
	start uint32 // the first key below it
	at    uint32 // its block; 0 for none yet
	n     uint8  // lines in the block, without references
	level uint8
	dirty bool
	count uint16   // level 0: values
	line  line     // its own
	kids  []*node6 // level > 0
	subs  []sub6   // level 0: by key
}

// sub6 is what a deep value leads to: a tree for the next 32 bits, or a run.
type sub6 struct {
	key  uint32
	ref  uint32 // as the reference in the table
	tree *tree6 // nil for a run
}

// ent is a value of a bucket, for the addresses from key on.
type ent struct {
	key   uint32
	value uint16 // deep: the next of the subs
}

// key is the part of an address that a tree looks at: 32 bits behind those that lead to the tree.
func (t *tree6) key(a u128) uint32 { return key6(a, int(t.round)) }

func key6(a u128, round int) uint32 {
	switch round {
	case 0:
		return uint32(a.hi >> 12)
	case 1:
		return uint32(a.hi<<20 | a.lo>>44)
	case 2:
		return uint32(a.lo >> 12)
	}
	return uint32(a.lo) << 20
}

// first and end are the bounds of the addresses of a key.
func (t *tree6) first(k uint32) u128 {
	a, x := t.base, uint64(k)
	switch t.round {
	case 0:
		a.hi |= x << 12
	case 1:
		a.hi |= x >> 20
		a.lo = x << 44
	case 2:
		a.lo |= x << 12
	default:
		a.lo |= x >> 20
	}
	return a
}

func (t *tree6) end(k uint32) u128 {
	a := t.first(k)
	switch t.round {
	case 0:
		a.hi |= 1<<12 - 1
		a.lo = ^uint64(0)
	case 1:
		a.lo |= 1<<44 - 1
	case 2:
		a.lo |= 1<<12 - 1
	}
	return a
}

// ref is the reference to a tree: the offset of its root's line, and the levels beyond levels6.
func (t *tree6) ref() uint32 { return t.at*lineBytes | uint32(t.root.level+1-levels6) }

// newTree is a tree that has to be built by build.
func newTree(base u128, round uint8) *tree6 {
	n := &node6{dirty: true}
	for l := uint8(1); l < levels6; l++ {
		n = &node6{level: l, dirty: true, kids: []*node6{n}}
	}
	return &tree6{base: base, round: round, dirty: true, root: n}
}

// mark says that the values of the addresses in [a, b] may have changed, all of which are the tree's.
func (t *tree6) mark(a, b u128) {
	t.dirty = true
	t.root.mark(t, t.key(a), t.key(b), a, b)
}

func (n *node6) mark(t *tree6, k0, k1 uint32, a, b u128) {
	n.dirty = true
	for i, k := range n.kids {
		if k.start <= k1 && (i+1 == len(n.kids) || n.kids[i+1].start > k0) {
			k.mark(t, k0, k1, a, b)
		}
	}
	for i := range n.subs {
		if s := &n.subs[i]; s.tree != nil && s.key >= k0 && s.key <= k1 {
			lo, hi := t.first(s.key), t.end(s.key)
			if lo.less(a) {
				lo = a
			}
			if b.less(hi) {
				hi = b
			}
			s.tree.mark(lo, hi)
		}
	}
}

// build makes the lines of a dirty tree follow the spans. Its reference may change.
func (t *Table6) build(tr *tree6) {
	tr.dirty = false
	top := []*node6{tr.root}
	top = append(top, t.refresh(tr, tr.root, noKey)...)
	for len(top) > 1 {
		n := &node6{level: top[0].level + 1}
		top = append([]*node6{n}, t.setKids(n, top)...)
	}
	old := tr.root
	tr.root = top[0]
	for tr.root.level >= levels6 && len(tr.root.kids) == 1 {
		t.retire(tr.root.at)
		tr.root = tr.root.kids[0]
	}
	r := &tr.root.line
	if tr.at != 0 && old == tr.root && sameKeys(r, t.at(tr.at)) {
		storeWord(t.at(tr.at), base6, r[base6])
		return
	}
	t.retire(tr.at)
	tr.at = t.block(1)
	*t.at(tr.at) = *r
}

// bytes is the memory of a node and what is below, but for the lines.
func (n *node6) bytes() int {
	sum := int(unsafe.Sizeof(*n)) + 8*cap(n.kids) + 16*cap(n.subs)
	for _, k := range n.kids {
		sum += k.bytes()
	}
	for _, s := range n.subs {
		if s.tree != nil {
			sum += int(unsafe.Sizeof(*s.tree)) + s.tree.root.bytes()
		}
	}
	return sum
}

// drop retires all blocks of a tree.
func (t *Table6) drop(tr *tree6) {
	t.retire(tr.at)
	t.dropNode(tr.root)
}

func (t *Table6) dropNode(n *node6) {
	t.retire(n.at)
	for _, k := range n.kids {
		t.dropNode(k)
	}
	t.dropSubs(n.subs)
}

func (t *Table6) dropSubs(subs []sub6) {
	for i := range subs {
		if s := &subs[i]; s.tree != nil {
			t.drop(s.tree)
		} else {
			t.retire(s.ref / lineBytes)
		}
	}
}

// refresh makes a dirty node, of keys up to end, follow the spans, and what is dirty below. It returns
// nodes to stand behind it, where it had to be split.
func (t *Table6) refresh(tr *tree6, n *node6, end uint32) []*node6 {
	n.dirty = false
	if n.level == 0 {
		return t.fillBucket(tr, n, end)
	}
	kids := n.kids
	for i := 0; i < len(kids); i++ {
		k := kids[i]
		if !k.dirty {
			continue
		}
		if more := t.refresh(tr, k, keysEnd(kids, i, end)); more != nil {
			kids = slices.Insert(kids, i+1, more...)
			i += len(more)
		}
	}
	for i := 0; i+1 < len(kids); {
		if !t.join(tr, kids[i], kids[i+1], keysEnd(kids, i+1, end)) {
			i++
			continue
		}
		kids = slices.Delete(kids, i+1, i+2)
	}
	return t.setKids(n, kids)
}

func keysEnd(kids []*node6, i int, end uint32) uint32 {
	if i+1 < len(kids) {
		return kids[i+1].start - 1
	}
	return end
}

// join moves what is below b, of keys up to end, to its small neighbour a before it.
func (t *Table6) join(tr *tree6, a, b *node6, end uint32) bool {
	if a.level > 0 {
		if len(a.kids)+len(b.kids) > nodeJoin {
			return false
		}
		t.retire(b.at)
		t.setKids(a, append(a.kids, b.kids...))
		return true
	}
	if a.count+b.count > bucketJoin {
		return false
	}
	t.retire(b.at)
	a.subs = append(a.subs, b.subs...)
	t.fillBucket(tr, a, end)
	return true
}

// setKids gives a node the nodes below it, and writes their lines; those for which it has no
// room go to nodes behind it.
func (t *Table6) setKids(n *node6, kids []*node6) (more []*node6) {
	parts := (len(kids) + fan - 1) / fan
	size := (len(kids) + parts - 1) / parts
	for i := 1; i < parts; i++ {
		m := &node6{level: n.level}
		t.writeKids(m, slices.Clone(kids[i*size:min((i+1)*size, len(kids))]), false)
		more = append(more, m)
	}
	t.writeKids(n, kids[:min(size, len(kids))], parts == 1)
	return more
}

func (t *Table6) writeKids(n *node6, kids []*node6, whole bool) {
	own := line{base6: n.line[base6]}
	for j := range base6 {
		own[j] = noKey
		if j+1 < len(kids) {
			own[j] = kids[j+1].start - 1
		}
	}
	same := whole && n.at != 0 && int(n.n) == len(kids) && sameKeys(&own, &n.line)
	for j := 0; same && j < len(kids); j++ {
		same = sameKeys(&kids[j].line, t.at(n.at+uint32(j)))
	}
	n.kids, n.start, n.n = kids, kids[0].start, uint8(len(kids))
	if same {
		for j, k := range kids {
			storeWord(t.at(n.at+uint32(j)), base6, k.line[base6])
		}
		return
	}
	t.retire(n.at)
	n.at = t.block(len(kids))
	for j, k := range kids {
		*t.at(n.at + uint32(j)) = k.line
	}
	own[base6] = n.at * lineUnits
	n.line = own
}

func sameKeys(a, b *line) bool { return [base6]uint32(a[:]) == [base6]uint32(b[:]) }

// storeWord publishes a word of a line that readers may be in.
func storeWord(l *line, i int, v uint32) {
	if l[i] != v {
		atomic.StoreUint32(&l[i], v)
	}
}

func halves(l *line) *[32]uint16 { return (*[32]uint16)(unsafe.Pointer(l)) }

// fillBucket makes a bucket, of keys up to end, follow the spans, and returns buckets to stand
// behind it for what it has no room for.
func (t *Table6) fillBucket(tr *tree6, n *node6, end uint32) (more []*node6) {
	ents, subs := t.gather(tr, n.start, end, n.subs)
	parts := 1
	if len(ents) > bucketMax {
		parts = (len(ents) + bucketFill - 1) / bucketFill
	}
	size := (len(ents) + parts - 1) / parts
	size = (size + leafValues - 1) / leafValues * leafValues
	for first := n; len(ents) > 0; {
		b := first
		if b == nil {
			b = &node6{start: ents[0].key}
			more = append(more, b)
		}
		e := ents[:min(size, len(ents))]
		d := 0
		for i := range e {
			d += int(e[i].value >> 15)
		}
		t.writeBucket(b, e, subs[:d], parts == 1)
		ents, subs, first = ents[len(e):], subs[d:], nil
	}
	return more
}

// writeBucket writes the leaf lines of a bucket, in place where only values change.
func (t *Table6) writeBucket(n *node6, ents []ent, subs []sub6, whole bool) {
	nl := (len(ents) + leafValues - 1) / leafValues
	all := t.scratch[:nl+(len(subs)+fan-1)/fan]
	own := line{base6: n.line[base6]}
	for j := range base6 {
		own[j] = noKey
	}
	d := 0 // deep values so far
	for i, e := 0, ents; i < nl; i, e = i+1, e[min(leafValues, len(e)):] {
		if i > 0 {
			own[i-1] = e[0].key - 1
		}
		l := &all[i]
		h := halves(l)
		h[31] = 0
		for j := range leafValues {
			if j >= len(e) {
				l[j-1] = noKey
				h[leafHalf+j] = h[leafHalf+j-1]
				continue
			}
			if j > 0 {
				l[j-1] = e[j].key - 1
			}
			h[leafHalf+j] = e[j].value
			if e[j].value&deep != 0 { // where its reference is, in words from here
				h[leafHalf+j] = deep | uint16((nl-i)*16+d)
				d++
			}
		}
	}
	for i := range subs {
		all[nl+i/fan][i%fan] = subs[i].ref
	}
	for i := len(subs); i%fan != 0; i++ {
		all[nl+i/fan][i%fan] = 0
	}
	n.subs = append(n.subs[:0], subs...)
	n.count, n.dirty = uint16(len(ents)), false
	if whole && n.at != 0 && int(n.n) == nl && sameKeys(&own, &n.line) && t.inPlace(n.at, nl, all) {
		return
	}
	t.retire(n.at)
	n.n, n.at = uint8(nl), t.block(len(all))
	for i := range all {
		*t.at(n.at + uint32(i)) = all[i]
	}
	own[base6] = n.at * lineUnits
	n.line = own
}

// inPlace turns a published block into the lines given, of which the first nl are leaves, where
// each address goes from its old value to its new one by one store; otherwise it does nothing.
func (t *Table6) inPlace(at uint32, nl int, lines []line) bool {
	for i := range nl {
		old := t.at(at + uint32(i))
		if [leafKeys]uint32(old[:]) != [leafKeys]uint32(lines[i][:]) {
			return false
		}
		a, b := halves(old), halves(&lines[i])
		for j := leafHalf; j < leafHalf+leafValues; j++ {
			if a[j] != b[j] && (a[j]|b[j])&deep != 0 {
				return false
			}
		}
	}
	for i := range lines {
		old := t.at(at + uint32(i))
		if i >= nl {
			for j := range old {
				storeWord(old, j, lines[i][j])
			}
			continue
		}
		a, b := halves(old), halves(&lines[i])
		for j := leafHalf; j < leafHalf+leafValues; j++ {
			if a[j] != b[j] {
				mem.Store16(&a[j], b[j])
			}
		}
	}
	return true
}

// gather lists the values of the keys from k0 to k1 of a tree, and what the deep ones lead to; old
// is what they led to. Trees below that are dirty are built. The lists are good until the next call for a tree
// of the same round.
func (t *Table6) gather(tr *tree6, k0, k1 uint32, old []sub6) ([]ent, []sub6) {
	g := &t.gathers[tr.round]
	g.ents, g.subs = g.ents[:0], g.subs[:0]
	last := tr.end(k1)
	c := t.spans.seek(tr.first(k0))
	v := c.span().value
	g.put(k0, v)
	more := c.turn()
	for {
		if more {
			v = g.plain(tr, &c, v, last, old)
		}
		// The next span of another value, or the next old tree, if it comes first.
		var s *span
		var k uint32
		here := more
		if here {
			s = c.span()
			k = tr.key(s.start)
			here = !last.less(s.start)
		}
		if len(old) > 0 && (!here || old[0].key <= k) {
			s := old[0]
			old = old[1:]
			switch {
			case s.tree == nil && here && s.key == k && t.keepRun(tr, s, v, c):
			case s.tree == nil:
				t.retire(s.ref / lineBytes)
				continue
			case s.tree.dirty && t.shallow(tr, s.key):
				t.drop(s.tree)
				continue
			case s.tree.dirty:
				t.build(s.tree)
				s.ref = s.tree.ref()
			}
			g.sub(s)
			v, more = t.leave(tr, &c, g, s.key, k1)
			continue
		}
		if !here {
			return g.ents, g.subs
		}
		next := c
		another := next.turn()
		if tr.round == 3 || s.start == tr.first(k) && !(another && tr.key(next.span().start) == k && !tr.end(k).less(next.span().start)) {
			v = s.value
			g.put(k, v)
			c, more = next, another
			continue
		}
		g.sub(t.newSub(tr, k, v, c))
		v, more = t.leave(tr, &c, g, k, k1)
	}
}

// gathered is scratch of gather, for the trees of one round.
type gathered struct {
	ents []ent
	subs []sub6
}

// plain lists the values of spans in a chunk, from the cursor's on, as long as nothing is deep; v is the value
// before. The rest, of which the cursor points at the first, is for gather.
func (g *gathered) plain(tr *tree6, c *cursor, v uint16, last u128, old []sub6) uint16 {
	ch, i := c.ch, c.i
	for {
		x := &ch[i]
		j := i + 1
		for j < len(ch) && ch[j].value == x.value {
			j++
		}
		if j >= len(ch) || last.less(x.start) {
			break
		}
		k := tr.key(x.start)
		if len(old) > 0 && old[0].key <= k || x.start != tr.first(k) || !tr.end(k).less(ch[j].start) {
			break
		}
		v = x.value
		g.put(k, v)
		i = j
	}
	c.i = i
	return v
}

func (g *gathered) put(k uint32, v uint16) {
	n := len(g.ents)
	if n > 0 && g.ents[n-1].key == k {
		n--
	}
	g.ents = g.ents[:n]
	if n == 0 || g.ents[n-1].value != v {
		g.ents = append(g.ents, ent{k, v})
	}
}

func (g *gathered) sub(s sub6) {
	n := len(g.ents)
	if n > 0 && g.ents[n-1].key == s.key {
		n--
	}
	g.ents = append(g.ents[:n], ent{s.key, deep})
	g.subs = append(g.subs, s)
}

// leave goes on behind the addresses of a key: it lists their value, and the cursor points at the next other one.
func (t *Table6) leave(tr *tree6, c *cursor, g *gathered, k, k1 uint32) (v uint16, more bool) {
	if k == k1 {
		return 0, false
	}
	*c = t.spans.seek(tr.first(k + 1))
	v = c.span().value
	g.put(k+1, v)
	return v, c.turn()
}

// shallow reports whether the addresses of a key have so few values that they want no tree.
func (t *Table6) shallow(tr *tree6, k uint32) bool {
	end, n := tr.end(k), 0
	for c := t.spans.seek(tr.first(k)); c.turn() && !end.less(c.span().start); n++ {
		if n == runKeep {
			return false
		}
	}
	return true
}
