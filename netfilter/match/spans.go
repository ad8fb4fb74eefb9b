package match

import "slices"

// A dimension is a field, or a field under a mask that makes no ranges of its values: rules' conditions become sets of ranges on dimensions.
type dimension struct {
	field int
	mask  Value // 0: none
	bits  int
	col   int // first column of the field in Keys
}

// spans is a set of values: ranges in order that neither overlap nor touch.
type spans []Range

// lowered is a rule as a conjunction over dimensions, each at most once, in their order. What is not named may be anything.
type lowered struct {
	conds []dimCond
	never bool // no packet matches it
}

type dimCond struct {
	dim int
	in  spans // neither empty nor all values
}

// plan is a list of rules ready for engines.
type plan struct {
	schema Schema
	dims   []dimension
	rules  []lowered
}

// enumerable is the width of fields, in bits, up to which a mask of any form is worked out value by value.
const enumerable = 12

// newPlan lowers rules, which have been checked.
func newPlan(s Schema, rules []Rule) *plan {
	p := &plan{schema: s, rules: make([]lowered, len(rules))}
	at := map[dimension]int{}
	for id, r := range rules {
		l := &p.rules[id]
		for i := range r {
			d, in := s.lower(&r[i])
			k, ok := at[d]
			if !ok {
				k = len(p.dims)
				at[d] = k
				p.dims = append(p.dims, d)
			}
			j, known := slices.BinarySearchFunc(l.conds, k, func(c dimCond, k int) int { return c.dim - k })
			if known {
				in = in.intersect(l.conds[j].in)
				l.conds[j].in = in
			} else if !in.all(d.bits) {
				l.conds = slices.Insert(l.conds, j, dimCond{k, in})
			}
			l.never = l.never || len(in) == 0
		}
	}
	return p
}

// lower is a condition as a set of values of a dimension.
func (s Schema) lower(c *Cond) (d dimension, in spans) {
	f := s[c.Field]
	d = dimension{field: c.Field, bits: f.Bits, col: s.Column(c.Field)}
	all := Ones(f.Bits)
	host := all.andNot(c.Mask) // bits that do not count
	switch {
	case c.Mask == (Value{}) || host == (Value{}):
		in = slices.Clone(c.Ranges)
	case host.and(host.next()) == (Value{}): // the mask is a prefix
		for _, r := range c.Ranges {
			lo, hi := r.Lo, r.Hi.or(host)
			if lo.and(host) != (Value{}) {
				if lo = lo.or(host); lo == all {
					continue
				}
				lo = lo.next()
			}
			if !hi.less(lo) {
				in = append(in, Range{lo, hi})
			}
		}
	case f.Bits <= enumerable:
		for v := (Value{}); !all.less(v); v = v.next() {
			if c.matches(v) != c.Not {
				in = append(in, Range{v, v})
			}
		}
	default:
		d.mask = c.Mask
		in = slices.Clone(c.Ranges)
	}
	in = in.normal()
	if c.Not {
		in = in.complement(f.Bits)
	}
	return d, in
}

func (s spans) all(bits int) bool { return len(s) == 1 && s[0] == Range{Hi: Ones(bits)} }

// normal sorts ranges and joins those that overlap or touch.
func (s spans) normal() spans {
	if len(s) < 2 {
		return s
	}
	slices.SortFunc(s, func(a, b Range) int { return a.Lo.compare(b.Lo) })
	out := s[:1]
	for _, r := range s[1:] {
		last := &out[len(out)-1]
		if last.Hi.less(r.Lo) && last.Hi.next().less(r.Lo) {
			out = append(out, r)
		} else if last.Hi.less(r.Hi) {
			last.Hi = r.Hi
		}
	}
	return out
}

func (s spans) complement(bits int) (out spans) {
	from, more := Value{}, true
	for _, r := range s {
		if from.less(r.Lo) {
			out = append(out, Range{from, r.Lo.prev()})
		}
		from, more = r.Hi.next(), r.Hi != Ones(bits)
	}
	if more {
		out = append(out, Range{from, Ones(bits)})
	}
	return out
}

func (s spans) intersect(t spans) (out spans) {
	for i, j := 0, 0; i < len(s) && j < len(t); {
		lo, hi := s[i].Lo, s[i].Hi
		if lo.less(t[j].Lo) {
			lo = t[j].Lo
		}
		if t[j].Hi.less(hi) {
			hi = t[j].Hi
			j++
		} else {
			i++
		}
		if !hi.less(lo) {
			out = append(out, Range{lo, hi})
		}
	}
	return out
}
