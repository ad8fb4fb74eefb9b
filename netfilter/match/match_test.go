package match

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// maker makes rules and packets at random.
type maker struct {
	*rand.Rand
	s Schema
}

// schemas that tests use: of IPv4 and IPv6 firewalls, and of odd widths.
var schemas = []Schema{
	{{"saddr", 32}, {"daddr", 32}, {"sport", 16}, {"dport", 16}, {"protocol", 8}},
	{{"saddr", 128}, {"daddr", 128}, {"sport", 16}, {"dport", 16}, {"protocol", 8}},
	{{"saddr", 32}, {"daddr", 32}, {"sport", 16}, {"dport", 16}, {"protocol", 8}, {"iif", 32}, {"oif", 32}, {"mark", 32},
		{"ct state", 8}, {"tcp flags", 8}, {"icmp type", 8}, {"length", 16}, {"dscp", 6}},
	{{"ether saddr", 48}, {"daddr", 128}, {"one", 1}, {"odd", 33}, {"id", 64}, {"wide", 65}, {"mark", 32}},
}

func (m maker) value(bits int) Value {
	v := Value{m.Uint64(), m.Uint64()}
	switch m.IntN(6) {
	case 0:
		v = Value{}
	case 1:
		v = Ones(128)
	case 2:
		v = Num(m.Uint64N(8))
	}
	return v.and(Ones(bits))
}

// cond is a random condition on a field; pool and masks have what occurs in others.
func (m maker) cond(f int, pool []Value, masks [2]Value) Cond {
	b := m.s[f].Bits
	pick := func() Value {
		if m.IntN(3) > 0 {
			return pool[m.IntN(len(pool))]
		}
		return m.value(b)
	}
	switch m.IntN(8) {
	case 0, 1:
		return Equal(f, pick())
	case 2, 3, 4:
		return m.s.Prefix(f, pick(), m.IntN(b+1))
	case 5:
		lo, hi := pick(), pick()
		if hi.less(lo) {
			lo, hi = hi, lo
		}
		return Between(f, lo, hi)
	case 6:
		mask := masks[m.IntN(2)]
		lo := pick().and(mask)
		return Cond{Field: f, Mask: mask, Ranges: []Range{{lo, lo.or(m.value(b).and(mask))}}, Not: m.IntN(2) == 0}
	}
	c := Cond{Field: f, Not: m.IntN(3) == 0}
	for range m.IntN(5) {
		lo := pick()
		c.Ranges = append(c.Ranges, Range{lo, lo.or(Ones(m.IntN(b + 1)))})
	}
	return c
}

func (m maker) rules(n int) []Rule {
	pools := make([][]Value, len(m.s))
	for f := range pools {
		for range 1 + m.IntN(1+n/2) {
			pools[f] = append(pools[f], m.value(m.s[f].Bits))
		}
	}
	rules := make([]Rule, n)
	few := 1 + m.IntN(len(m.s))
	masks := make([][2]Value, len(m.s))
	for f := range masks {
		masks[f] = [2]Value{m.value(m.s[f].Bits), m.value(m.s[f].Bits)}
	}
	for i := range rules {
		for f := range m.s {
			if m.IntN(few+1) == 0 {
				rules[i] = append(rules[i], m.cond(f, pools[f], masks[f]))
			}
		}
		if m.IntN(20) == 0 && len(rules[i]) > 0 {
			f := rules[i][0].Field
			rules[i] = append(rules[i], m.cond(f, pools[f], masks[f]))
		}
	}
	return rules
}

// packet has random values, or such as lie at the bounds of a rule's conditions.
func (m maker) packet(rules []Rule) []Value {
	v := make([]Value, len(m.s))
	for f := range v {
		v[f] = m.value(m.s[f].Bits)
	}
	if len(rules) == 0 || m.IntN(8) == 0 {
		return v
	}
	for _, c := range rules[m.IntN(len(rules))] {
		if len(c.Ranges) == 0 {
			continue
		}
		r := c.Ranges[m.IntN(len(c.Ranges))]
		x := r.Lo
		switch m.IntN(5) {
		case 0:
			x = r.Hi
		case 1:
			x = r.Lo.prev()
		case 2:
			x = r.Hi.next()
		}
		v[c.Field] = x.and(Ones(m.s[c.Field].Bits))
	}
	return v
}

// batch is keys of n random packets in a lane, with other values elsewhere.
func (m maker) batch(rules []Rule, n int) (k Keys, lane []uint8, values [][]Value) {
	k = make(Keys, m.s.Columns())
	values = make([][]Value, BatchSize)
	for pos := range BatchSize {
		values[pos] = m.packet(rules)
		for f, x := range values[pos] {
			k.Set(m.s, f, uint8(pos), x)
		}
	}
	for _, pos := range m.Perm(BatchSize)[:n] {
		lane = append(lane, uint8(pos))
	}
	return k, lane, values
}

// makers are how engines are made that tests compare with the oracle.
var makers = map[string]func(*plan) (engine, error){
	"vectors": func(p *plan) (engine, error) { return newVectors(p) },
}

// compare checks an engine's answers, the first match and the next behind each.
func compare(t *testing.T, name string, e engine, m maker, rules []Rule, batches int) {
	t.Helper()
	s := new(Scratch)
	for range batches {
		k, lane, values := m.batch(rules, m.IntN(BatchSize+1))
		var out, from Column
		for i := range out {
			out[i] = 0xabcd
		}
		e.find(k, lane, nil, &out, s)
		in := map[uint8]bool{}
		for _, pos := range lane {
			in[pos] = true
			if want := Linear(rules, values[pos], 0); out[pos] != want {
				t.Fatalf("%s: rule %d, want %d for %v\n%v", name, out[pos], want, values[pos], tell(rules, out[pos], want))
			}
			from[pos] = out[pos]
			if out[pos] != None && m.IntN(10) > 0 {
				from[pos]++
			}
		}
		for pos := range BatchSize {
			if !in[uint8(pos)] && out[pos] != 0xabcd {
				t.Fatalf("%s writes outside of the lane", name)
			}
		}
		e.find(k, lane, &from, &out, s)
		for _, pos := range lane {
			want := None
			if from[pos] != None {
				want = Linear(rules, values[pos], from[pos])
			}
			if out[pos] != want {
				t.Fatalf("%s: rule %d from %d on, want %d for %v\n%v", name, out[pos], from[pos], want, values[pos], tell(rules, out[pos], want))
			}
		}
	}
}

func tell(rules []Rule, ids ...uint32) (s string) {
	for _, i := range ids {
		if int(i) < len(rules) {
			s += fmt.Sprintf("%d: %+v\n", i, rules[i])
		}
	}
	return s
}

// eachKernel calls f with the kernels of this machine, and with none.
func eachKernel(f func(name string)) {
	defer func(w bool) { wide512 = w }(wide512)
	for _, wide512 = range []bool{wide512, false} {
		name := " in Go"
		if wide512 {
			name = " in AVX-512"
		}
		f(name)
		if !wide512 {
			return
		}
	}
}

func TestEnginesAgree(t *testing.T) {
	for i, s := range schemas {
		for _, n := range []int{0, 1, 5, 31, 64, 65, 200, 512, 513, 1500} {
			m := maker{rand.New(rand.NewPCG(uint64(i), uint64(n))), s}
			rules := m.rules(n)
			p := newPlan(s, rules)
			for name, mk := range makers {
				e, err := mk(p)
				if err != nil {
					t.Logf("%s, schema %d, %d rules: %v", name, i, n, err)
					continue
				}
				eachKernel(func(kernel string) {
					compare(t, fmt.Sprintf("%s%s, schema %d, %d rules", name, kernel, i, n), e, m, rules, 3)
				})
				e.close()
			}
		}
	}
}
