package match

import (
	"fmt"
	"math/bits"
)

// Value is a field's value as an unsigned number of up to 128 bits. Bytes of packets are read in network order: of an IPv4
// address Lo is the number whose top byte is the address's first, of an IPv6 address Hi has the first eight bytes.
type Value struct{ Hi, Lo uint64 }

// Num is a value of up to 64 bits.
func Num(x uint64) Value { return Value{Lo: x} }

// Ones is the largest value of n bits, 0 to 128.
func Ones(n int) Value {
	if n > 64 {
		return Value{1<<(n-64) - 1, ^uint64(0)}
	}
	return Value{Lo: 1<<n - 1}
}

func (v Value) less(w Value) bool { return v.Hi < w.Hi || v.Hi == w.Hi && v.Lo < w.Lo }

func (v Value) compare(w Value) int {
	switch {
	case v == w:
		return 0
	case v.less(w):
		return -1
	}
	return 1
}

func (v Value) and(w Value) Value    { return Value{v.Hi & w.Hi, v.Lo & w.Lo} }
func (v Value) or(w Value) Value     { return Value{v.Hi | w.Hi, v.Lo | w.Lo} }
func (v Value) andNot(w Value) Value { return Value{v.Hi &^ w.Hi, v.Lo &^ w.Lo} }

func (v Value) add(w Value) Value {
	lo, c := bits.Add64(v.Lo, w.Lo, 0)
	hi, _ := bits.Add64(v.Hi, w.Hi, c)
	return Value{hi, lo}
}

func (v Value) sub(w Value) Value {
	lo, b := bits.Sub64(v.Lo, w.Lo, 0)
	hi, _ := bits.Sub64(v.Hi, w.Hi, b)
	return Value{hi, lo}
}

func (v Value) next() Value { return v.add(Num(1)) }
func (v Value) prev() Value { return v.sub(Num(1)) }

func (v Value) String() string {
	if v.Hi == 0 {
		return fmt.Sprintf("%#x", v.Lo)
	}
	return fmt.Sprintf("%#x%016x", v.Hi, v.Lo)
}

// Field is one of the values that packets are judged by: a source address, a port, a mark.
type Field struct {
	Name string // for messages
	Bits int    // 1 to 128
}

// columns is how many words of 32 bits a value takes: 1, 2 or 4.
func (f Field) columns() int {
	switch {
	case f.Bits <= 32:
		return 1
	case f.Bits <= 64:
		return 2
	}
	return 4
}

// Schema lists the fields that a table's rules look at. It says how Keys are laid out.
type Schema []Field

// Column is the place of a field's first column in Keys.
func (s Schema) Column(field int) int {
	n := 0
	for _, f := range s[:field] {
		n += f.columns()
	}
	return n
}

// Columns is how many columns Keys have.
func (s Schema) Columns() int { return s.Column(len(s)) }

// Column is a word of 32 bits of each packet, by position.
type Column [BatchSize]uint32

// BatchSize is the most packets of one call, as many as a vector of the road has.
const BatchSize = 256

// Keys are the fields' values of a batch of packets, each field one, two or four columns from Schema.Column on: one for up to 32 bits, two for up to 64, else
// four, the most significant word first. Values have no bits beyond the field's.
type Keys []Column

// Set writes a field's value at a position.
func (k Keys) Set(s Schema, field int, pos uint8, v Value) {
	c := s.Column(field)
	switch s[field].columns() {
	case 1:
		k[c][pos] = uint32(v.Lo)
	case 2:
		k[c][pos], k[c+1][pos] = uint32(v.Lo>>32), uint32(v.Lo)
	default:
		k[c][pos], k[c+1][pos] = uint32(v.Hi>>32), uint32(v.Hi)
		k[c+2][pos], k[c+3][pos] = uint32(v.Lo>>32), uint32(v.Lo)
	}
}

// Value reads a field's value at a position.
func (k Keys) Value(s Schema, field int, pos uint8) (v Value) {
	c := s.Column(field)
	for _, w := range k[c : c+s[field].columns()] {
		v = Value{v.Hi<<32 | v.Lo>>32, v.Lo<<32 | uint64(w[pos])}
	}
	return v
}

// Range is the values from Lo to Hi, both included.
type Range struct{ Lo, Hi Value }

// Cond is a condition on one field: that the value, with Mask if that is not 0, lies in one of the ranges, or with Not in none.
type Cond struct {
	Field  int
	Mask   Value
	Ranges []Range
	Not    bool
}

// Rule is a conjunction of conditions, of which several may be on one field. Without any it matches every packet.
type Rule []Cond

// Equal is the condition that a field has a value.
func Equal(field int, v Value) Cond { return Cond{Field: field, Ranges: []Range{{v, v}}} }

// Between is the condition that a field lies between two values, both included.
func Between(field int, lo, hi Value) Cond { return Cond{Field: field, Ranges: []Range{{lo, hi}}} }

// Masked is the condition that a field has a value under a mask.
func Masked(field int, v, mask Value) Cond {
	return Cond{Field: field, Mask: mask, Ranges: []Range{{v, v}}}
}

// Prefix is the condition that the first n bits of a field are those of v.
func (s Schema) Prefix(field int, v Value, n int) Cond {
	host := Ones(s[field].Bits - n)
	return Between(field, v.andNot(host), v.or(host))
}

// Matches says whether a packet with these values, one for each field, fits the rule: what all engines must agree with.
func (r Rule) Matches(values []Value) bool {
	for i := range r {
		if !r[i].matches(values[r[i].Field]) {
			return false
		}
	}
	return true
}

func (c *Cond) matches(v Value) bool {
	if c.Mask != (Value{}) {
		v = v.and(c.Mask)
	}
	for _, r := range c.Ranges {
		if !v.less(r.Lo) && !r.Hi.less(v) {
			return !c.Not
		}
	}
	return c.Not
}

// None is the answer where no rule matches.
const None = ^uint32(0)

// Linear is the obvious engine: the index of the first rule from from on that matches, or None.
func Linear(rules []Rule, values []Value, from uint32) uint32 {
	for i := int(from); i < len(rules); i++ {
		if rules[i].Matches(values) {
			return uint32(i)
		}
	}
	return None
}

// checkRule finds what is wrong with a rule.
func (s Schema) checkRule(r Rule) error {
	for _, c := range r {
		if c.Field < 0 || c.Field >= len(s) {
			return fmt.Errorf("a condition on field %d of %d", c.Field, len(s))
		}
		f := s[c.Field]
		all := Ones(f.Bits)
		if c.Mask.andNot(all) != (Value{}) {
			return fmt.Errorf("%s: mask %v has more than %d bits", f.Name, c.Mask, f.Bits)
		}
		for _, x := range c.Ranges {
			if x.Hi.less(x.Lo) || all.less(x.Hi) {
				return fmt.Errorf("%s: no range of %d bits goes from %v to %v", f.Name, f.Bits, x.Lo, x.Hi)
			}
		}
	}
	return nil
}

// check finds what is wrong with a schema.
func (s Schema) check() error {
	for _, f := range s {
		if f.Bits < 1 || f.Bits > 128 {
			return fmt.Errorf("field %q has %d bits, not 1 to 128", f.Name, f.Bits)
		}
	}
	return nil
}
