package match

import (
	"fmt"
	"math/bits"
	"slices"
	"unsafe" // rows of bits outside the heap

	"millrace/internal/mem"
)

// vectors is the engine of bit vectors (Lakshman and Stiliadis, SIGCOMM 1998, with the aggregation of dimensions of Gupta and
// McKeown's recursive flow classification, SIGCOMM 1999). A value's class in each group of dimensions has a row with a bit for each rule
// that it fits: the first bit that is set in the rows of all groups is the first rule that matches.
type vectors struct {
	rules  int
	lines  int // of a row: 1, 2, 4 or 8
	groups []group
	base   unsafe.Pointer
	m      []byte
}

// group is dimensions whose classes have been combined.
type group struct {
	dims  []*ranks       // the sum of what they find is a place in combo, or a row's offset from base if there is none
	combo unsafe.Pointer // uint32: offsets of rows
}

const (
	maxGroups = 8
	// maxVectors is the most rules that bit vectors hold: eight lines.
	maxVectors = 8 * 8 * lineBytes
	// crossCells is how large a table of pairs of classes may be, crossCellsMax if there are more than goodGroups groups otherwise.
	crossCells    = 1 << 11
	crossCellsMax = 1 << 16
	goodGroups    = 3
)

// part is a group while it is built.
type part struct {
	dims   []int
	stride []uint32 // what a class of each dimension counts in table
	table  []uint32 // class of each combination
	c      *classes
}

// newVectors builds the engine.
func newVectors(p *plan) (*vectors, error) {
	if len(p.rules) > maxVectors || len(p.dims) == 0 {
		return nil, fmt.Errorf("match: no bit vectors of %d rules on %d fields: they hold %d", len(p.rules), len(p.dims), maxVectors)
	}
	v := &vectors{rules: len(p.rules), lines: 1}
	for v.lines*8*lineBytes < len(p.rules) {
		v.lines *= 2
	}
	single := make([]*classes, len(p.dims))
	var parts []*part
	for d := range p.dims {
		c := newClasses(p, d, v.lines*lineBytes/8)
		single[d] = c
		if c.n > 1 || d == len(p.dims)-1 && len(parts) == 0 {
			t := make([]uint32, c.n)
			for i := range t {
				t[i] = uint32(i)
			}
			parts = append(parts, &part{[]int{d}, []uint32{1}, t, c})
		}
	}
	parts = combine(parts)
	if len(parts) > maxGroups {
		return nil, fmt.Errorf("match: the rules' %d dimensions make more than %d groups of bit vectors", len(p.dims), maxGroups)
	}
	var l layout
	v.groups = make([]group, len(parts))
	for i, pt := range parts {
		g := &v.groups[i]
		for i := range pt.table {
			pt.table[i] = uint32(len(l.buf)) + pt.table[i]*uint32(v.lines*lineBytes)
		}
		put(&l, nil, pt.c.bits)
		for j, d := range pt.dims {
			vals := make([]uint32, len(single[d].class))
			for k, c := range single[d].class {
				vals[k] = c * pt.stride[j]
				if len(pt.dims) == 1 {
					vals[k] = pt.table[c]
				}
			}
			g.dims = append(g.dims, newRanks(&l, p.dims[d], single[d].starts, vals))
		}
		if len(pt.dims) > 1 {
			put(&l, &g.combo, pt.table)
		}
	}
	var err error
	if v.m, err = l.seal(); err != nil {
		return nil, err
	}
	v.base = unsafe.Pointer(&v.m[0])
	return v, nil
}

func (v *vectors) close() { mem.Free(v.m) }

// combine combines dimensions, those of the fewest classes first.
func combine(parts []*part) []*part {
	for len(parts) > 1 {
		slices.SortStableFunc(parts, func(a, b *part) int { return len(a.table) - len(b.table) })
		a, b := parts[0], parts[1]
		limit := crossCells
		if len(parts) > goodGroups {
			limit = crossCellsMax
		}
		if len(a.table)*len(b.table) > limit {
			break
		}
		pairs, c := cross(a.c, b.c)
		n := &part{dims: append(a.dims, b.dims...), table: make([]uint32, 0, len(a.table)*len(b.table)), c: c}
		for _, s := range a.stride {
			n.stride = append(n.stride, s*uint32(len(b.table)))
		}
		n.stride = append(n.stride, b.stride...)
		for _, x := range a.table {
			for _, y := range b.table {
				n.table = append(n.table, pairs[int(x)*b.c.n+int(y)])
			}
		}
		parts = append(parts[2:], n)
	}
	return parts
}

// find writes, for the positions of a lane, the first rule from that in from on; nil is from the first of all.
func (v *vectors) find(k Keys, lane []uint8, from, out *Column, s *Scratch) {
	if len(lane) == 0 {
		return
	}
	for i := range v.groups {
		g := &v.groups[i]
		off := &s.off[i]
		for j, d := range g.dims {
			d.find(k, lane, off, j > 0, s)
		}
		switch {
		case g.combo == nil:
		case wide512:
			combine32(g.combo, off, &lane[0], len(lane))
		default:
			for _, pos := range lane {
				off[pos] = *(*uint32)(unsafe.Add(g.combo, 4*uintptr(off[pos])))
			}
		}
	}
	if wide512 && from == nil {
		switch len(v.groups) {
		case 1:
			s.off[1] = s.off[0]
			fallthrough
		case 2:
			and2(v.base, &s.off[0], &lane[0], len(lane), out, v.lines)
			return
		case 3:
			and3(v.base, &s.off[0], &lane[0], len(lane), out, v.lines)
			return
		case 4:
			and4(v.base, &s.off[0], &lane[0], len(lane), out, v.lines)
			return
		}
	}
	v.and(lane, from, out, s)
}

// and looks for the first bit that is set in all rows.
func (v *vectors) and(lane []uint8, from, out *Column, s *Scratch) {
	for _, pos := range lane {
		at := uint32(0)
		if from != nil {
			at = from[pos]
		}
		mask := ^uint64(0) << (at & 63)
		out[pos] = None
		for w := at / 64; w < uint32(v.lines*lineBytes/8); w++ {
			x := mask
			for g := range v.groups {
				x &= *(*uint64)(unsafe.Add(v.base, s.off[g][pos]+w*8))
			}
			if x != 0 {
				out[pos] = w*64 + uint32(bits.TrailingZeros64(x))
				break
			}
			mask = ^uint64(0)
		}
	}
}
