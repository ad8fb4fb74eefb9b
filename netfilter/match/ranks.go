package match

import (
	"unsafe" // tables outside the heap, which live as long as the engine that they belong to
)

// ranks finds the interval that a value lies in, and gives the number that stands for it. There are three forms:
//
//   - few: up to fewKeys bounds, each compared with 16 packets at a time;
//   - tree: a static B+ tree whose nodes are cache lines of 16 keys of 32 bits;
//   - wide: the same of 8 keys of 64 bits; of fields of 128 bits these are the upper halves of the bounds, and where several
//     bounds have it in common the lower halves are searched by bisection.
//
// A key is the value before the first of an interval, so that a value lies behind as many bounds as there are keys below
// it. The largest number fills nodes up: no value is above it.
type ranks struct {
	form   rankForm
	cols   int // columns of the value
	col    int // the first
	mask   Value
	levels int                       // of the tree, or keys of few
	level  [maxLevels]unsafe.Pointer // nodes, the root first
	vals   unsafe.Pointer            // uint32 by interval, of few fewKeys+1; of wide wideGroup
	lows   unsafe.Pointer            // wideLow
}

type rankForm uint8

const (
	rankFew rankForm = iota
	rankTree
	rankWide
)

const (
	fewKeys   = 31
	maxLevels = 10
	treeKeys  = 16
	wideKeys  = 8
)

// wideGroup is the bounds with the same upper half.
type wideGroup struct {
	hi   uint64
	val  uint32 // of the interval that begins at the last of them
	n    uint32 // their lower halves among lows; 0 where only the upper half counts
	from uint32 // the first
	_    uint32
}

// wideLow is an interval that begins at the lower half lo.
type wideLow struct {
	lo  uint64
	val uint32
	_   uint32
}

// newRanks lays out ranks for intervals of a dimension's values, which begin at starts and end before the next, the first at 0, and for which vals stand.
func newRanks(l *layout, d dimension, starts []Value, vals []uint32) *ranks {
	r := &ranks{col: d.col, mask: d.mask, cols: Field{Bits: d.bits}.columns()}
	if r.cols > 1 {
		r.wide(l, starts, vals)
		return r
	}
	keys := make([]uint32, len(starts)-1)
	for i, s := range starts[1:] {
		keys[i] = uint32(s.Lo) - 1
	}
	if len(keys) > fewKeys {
		r.form = rankTree
		r.levels = putTree(l, &r.level, keys, treeKeys)
		put(l, &r.vals, vals)
		return r
	}
	r.levels = len(keys)
	put(l, &r.level[0], append(keys, make([]uint32, fewKeys+1-len(keys))...))
	put(l, &r.vals, append(vals[:len(vals):len(vals)], make([]uint32, fewKeys+1-len(vals))...))
	return r
}

func (r *ranks) wide(l *layout, starts []Value, vals []uint32) {
	r.form = rankWide
	var groups []wideGroup
	var lows []wideLow
	for i := 0; i < len(starts); {
		g := wideGroup{hi: starts[i].Hi, from: uint32(len(lows))}
		if r.cols == 2 {
			g.hi = starts[i].Lo
		} else if starts[i].Lo != 0 {
			lows = append(lows, wideLow{0, vals[i-1], 0}) // the interval before goes on into this upper half
		}
		for first := true; i < len(starts) && (first || r.cols == 4 && starts[i].Hi == g.hi); i++ {
			first = false
			g.val = vals[i]
			if r.cols == 4 {
				lows = append(lows, wideLow{starts[i].Lo, vals[i], 0})
			}
		}
		if g.n = uint32(len(lows)) - g.from; g.n == 1 { // begins at 0
			g.n, lows = 0, lows[:g.from]
		}
		groups = append(groups, g)
	}
	keys := make([]uint64, len(groups)-1)
	for i, g := range groups[1:] {
		keys[i] = g.hi - 1
	}
	r.levels = putTree(l, &r.level, keys, wideKeys)
	put(l, &r.vals, groups)
	put(l, &r.lows, lows)
}

// putTree lays out a B+ tree of nodes of n keys over sorted keys. A node's child c > 0 holds the keys from its key c-1 on. The nodes of a
// level lie in order: child c of node i is i*(n+1)+c of the next.
func putTree[T uint32 | uint64](l *layout, level *[maxLevels]unsafe.Pointer, keys []T, n int) (levels int) {
	var all [][]T
	for first := keys; ; { // keys of a level with what is filled up, then the first key below each child of the next
		nodes := max((len(first)+n-1)/n, 1)
		if len(all) != 0 {
			nodes = (len(first) + n) / (n + 1) // first has one more a node: that of child 0
		}
		line := make([]T, nodes*n)
		for i := range line {
			line[i] = ^T(0)
		}
		var up []T
		for k := range nodes {
			if len(all) == 0 {
				copy(line[k*n:(k+1)*n], first[min(k*n, len(first)):])
				up = append(up, line[k*n])
			} else {
				copy(line[k*n:(k+1)*n], first[min(k*(n+1)+1, len(first)):])
				up = append(up, first[k*(n+1)])
			}
		}
		all = append(all, line)
		if nodes == 1 {
			break
		}
		first = up
	}
	for i := range all {
		put(l, &level[i], all[len(all)-1-i])
	}
	return len(all)
}

// find writes, or with add adds to out, what stands for the values of the positions in a lane, which is not empty. It may write elsewhere in out.
func (r *ranks) find(k Keys, lane []uint8, out *Column, add bool, s *Scratch) {
	c := k[r.col : r.col+r.cols]
	if r.mask != (Value{}) {
		c = s.masked(c, r.mask, lane)
	}
	sum := &zeros
	if add {
		sum = out
	}
	switch {
	case r.form == rankFew && wide512:
		few32(&c[0], sum, out, r.level[0], r.levels, r.vals, BatchSize)
	case r.form == rankFew:
		r.findFew(&c[0], sum, out, lane)
	case r.form == rankTree && wide512:
		tree32(&c[0], sum, out, &lane[0], len(lane), &r.level[0], r.levels, r.vals)
	case r.form == rankTree:
		r.findTree(&c[0], sum, out, lane)
	default:
		r.findWide(c, sum, out, lane, &s.rank)
	}
}

// zeros is a column that is only read.
var zeros Column

func (r *ranks) findFew(c, sum, out *Column, lane []uint8) {
	keys := unsafe.Slice((*uint32)(r.level[0]), r.levels)
	vals := (*[fewKeys + 1]uint32)(r.vals)
	for _, pos := range lane {
		v, n := c[pos], 0
		for _, key := range keys {
			if v > key {
				n++
			}
		}
		out[pos] = sum[pos] + vals[n&fewKeys]
	}
}

func (r *ranks) findTree(c, sum, out *Column, lane []uint8) {
	for _, pos := range lane {
		v, i := c[pos], 0
		for lv := range r.levels - 1 {
			i = i*(treeKeys+1) + below((*[treeKeys]uint32)(unsafe.Add(r.level[lv], i*lineBytes)), v)
		}
		i = i*treeKeys + below((*[treeKeys]uint32)(unsafe.Add(r.level[r.levels-1], i*lineBytes)), v)
		out[pos] = sum[pos] + *(*uint32)(unsafe.Add(r.vals, 4*i))
	}
}

// below is how many of 16 sorted keys are below a value.
func below(key *[treeKeys]uint32, v uint32) (n int) {
	if v > key[7] {
		n = 8
	}
	if v > key[n+3] {
		n += 4
	}
	if v > key[n+1] {
		n += 2
	}
	if v > key[n] {
		n++
	}
	if v > key[n&15] {
		n++
	}
	return n
}

func (r *ranks) findWide(c []Column, sum, out *Column, lane []uint8, rank *Column) {
	if wide512 {
		wide64(&c[0], &c[1], rank, &lane[0], len(lane), &r.level[0], r.levels)
	} else {
		for _, pos := range lane {
			rank[pos] = r.rank64(uint64(c[0][pos])<<32 | uint64(c[1][pos]))
		}
	}
	for _, pos := range lane {
		g := (*wideGroup)(unsafe.Add(r.vals, uintptr(rank[pos])*unsafe.Sizeof(wideGroup{})))
		if g.n == 0 || g.hi != uint64(c[0][pos])<<32|uint64(c[1][pos]) {
			out[pos] = sum[pos] + g.val
		} else {
			out[pos] = sum[pos] + r.low(g, uint64(c[2][pos])<<32|uint64(c[3][pos]))
		}
	}
}

// rank64 is how many keys are below a value.
func (r *ranks) rank64(v uint64) uint32 {
	i := 0 // keys before the node
	for lv := range r.levels {
		n := 0
		for _, key := range (*[wideKeys]uint64)(unsafe.Add(r.level[lv], i*8)) {
			if v > key {
				n++
			}
		}
		if lv == r.levels-1 {
			return uint32(i + n)
		}
		i = i*(wideKeys+1) + n*wideKeys
	}
	panic("match: a tree without levels")
}

// low is what stands for a value whose upper half is that of a group.
func (r *ranks) low(g *wideGroup, lo uint64) uint32 {
	lows := unsafe.Slice((*wideLow)(r.lows), g.from+g.n)[g.from:]
	i := 0 // the last that begins at lo or before
	for n := len(lows); n > 1; {
		half := n / 2
		if lows[i+half].lo <= lo {
			i += half
		}
		n -= half
	}
	return lows[i].val
}
