package match

import (
	"math/bits"
	"slices"
)

// classes are the sets of rules that a dimension's values fit: values with the same set are one class.
type classes struct {
	starts []Value  // interval k is the values from starts[k] to the next; starts[0] is 0
	class  []uint32 // of each interval; neighbours differ
	n      int
	words  int
	bits   []uint64 // n rows of words: bit r of a row is set where rule r, by its place in the plan, fits
}

func (c *classes) row(k int) []uint64 { return c.bits[k*c.words : (k+1)*c.words] }

// hash128 is a hash of a set of rules.
type hash128 struct{ a, b uint64 }

func mix(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func (h *hash128) toggle(rule int) {
	h.a ^= mix(uint64(2 * rule))
	h.b ^= mix(uint64(2*rule + 1))
}

type edge struct {
	at   Value
	rule int32
}

// newClasses are the classes of a dimension; rows have words words.
func newClasses(p *plan, dim, words int) *classes {
	c := &classes{words: words}
	row := make([]uint64, words)
	var h hash128
	toggle := func(r int) {
		row[r>>6] ^= 1 << (r & 63)
		h.toggle(r)
	}
	all := Ones(p.dims[dim].bits)
	var edges []edge
	for r := range p.rules {
		if p.rules[r].never {
			continue
		}
		in := p.rules[r].on(dim)
		if in == nil {
			toggle(r)
			continue
		}
		for _, x := range in {
			edges = append(edges, edge{x.Lo, int32(r)})
			if x.Hi != all {
				edges = append(edges, edge{x.Hi.next(), int32(r)})
			}
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return a.at.compare(b.at) })
	ids := map[hash128]uint32{}
	begin := func(at Value) {
		id := c.add(ids, h, row)
		if k := len(c.class); k > 0 && c.class[k-1] == id {
			return
		}
		c.starts = append(c.starts, at)
		c.class = append(c.class, id)
	}
	if len(edges) == 0 || edges[0].at != (Value{}) {
		begin(Value{})
	}
	for i := 0; i < len(edges); {
		at := edges[i].at
		for ; i < len(edges) && edges[i].at == at; i++ {
			toggle(int(edges[i].rule))
		}
		begin(at)
	}
	return c
}

// add is the class of a row, of which h is a hash.
func (c *classes) add(ids map[hash128]uint32, h hash128, row []uint64) uint32 {
	for ; ; h.b++ {
		id, ok := ids[h]
		if !ok {
			ids[h] = uint32(c.n)
			c.n++
			c.bits = append(c.bits, row...)
			return uint32(c.n - 1)
		}
		if slices.Equal(c.row(int(id)), row) {
			return id
		}
	}
}

// on is the rule's condition on a dimension, nil for none.
func (r *lowered) on(dim int) spans {
	for i := range r.conds {
		if r.conds[i].dim == dim {
			return r.conds[i].in
		}
	}
	return nil
}

// cross are the classes of pairs of classes: table[i*b.n+j] is that of i and j.
func cross(a, b *classes) (table []uint32, out *classes) {
	out = &classes{words: a.words}
	table = make([]uint32, a.n*b.n)
	ids := map[hash128]uint32{}
	row := make([]uint64, a.words)
	for i := range a.n {
		ra := a.row(i)
		for j := range b.n {
			rb := b.row(j)
			var h hash128
			for k := range row {
				w := ra[k] & rb[k]
				row[k] = w
				if w != 0 {
					hi, lo := bits.Mul64(w^0xa0761d6478bd642f, 0xe7037ed1a0b428db+uint64(k)<<1)
					h.a = (h.a ^ hi ^ lo) * 0x9e3779b97f4a7c15
					h.b = bits.RotateLeft64(h.b, 27) ^ lo + hi
				}
			}
			table[i*b.n+j] = out.add(ids, h, row)
		}
	}
	return table, out
}
