package traffic

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"net/netip"
	"sort"
	"strconv"
	"strings"
)

// wide is a value of up to 128 bits: an IPv6 address.
type wide struct{ hi, lo uint64 }

func (a wide) less(b wide) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

// kind is what values a header's field takes.
type kind struct {
	what  string // with an example, for messages
	bits  int    // of the value
	parse func(string) (wide, bool)
}

// num is a kind of number of some bits, which may have names.
func num(what string, bits int, names map[string]uint64) *kind {
	return &kind{what, bits, func(s string) (wide, bool) {
		if x, ok := names[strings.ToLower(s)]; ok {
			return wide{lo: x}, true
		}
		x, err := strconv.ParseUint(s, 0, 64)
		if err != nil || bits < 64 && x>>bits != 0 {
			return wide{}, false
		}
		return wide{lo: x}, true
	}}
}

var (
	addr4 = &kind{"an IPv4 address, range or prefix such as 10.0.0.1, 10.0.0.1-10.0.3.254 or 10.0.0.0/16", 32, func(s string) (wide, bool) {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			return wide{}, false
		}
		return wide4(a), true
	}}
	addr6 = &kind{"an IPv6 address, range or prefix such as 2001:db8::1, 2001:db8::1-2001:db8::ff or 2001:db8::/112", 128, func(s string) (wide, bool) {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is6() || a.Zone() != "" {
			return wide{}, false
		}
		return wide6(a), true
	}}
	mac = &kind{"a MAC address or range such as 02:00:00:00:00:01", 48, func(s string) (wide, bool) {
		h, err := net.ParseMAC(s)
		if err != nil || len(h) != 6 {
			return wide{}, false
		}
		return wideMAC([6]byte(h)), true
	}}
)

func wide4(a netip.Addr) wide {
	b := a.As4()
	return wide{lo: uint64(binary.BigEndian.Uint32(b[:]))}
}

func wide6(a netip.Addr) wide {
	b := a.As16()
	return wide{binary.BigEndian.Uint64(b[:]), binary.BigEndian.Uint64(b[8:])}
}

func wideMAC(m [6]byte) wide {
	return wide{lo: uint64(binary.BigEndian.Uint16(m[:]))<<32 | uint64(binary.BigEndian.Uint32(m[2:]))}
}

// value is what a field of a header takes, frame by frame.
type value struct {
	at     node
	how    Kind
	lo, hi wide // of Count, Random and a drawn List; both included
	list   []wide
	step   uint64
	upper  bool // step counts in the upper 64 bits
	zipf   float64
	every  uint64
	after  string // advances when this field has gone round
}

func fixed(v wide) *value { return &value{lo: v, hi: v, step: 1} }

func plain(v uint64) *value { return fixed(wide{lo: v}) }

func (v *value) constant() bool { return v.how == Count && v.lo == v.hi }

// value reads a field's value; nil where there was a mistake.
func (n node) value(k *kind) *value {
	switch {
	case n.isMap():
		return n.mapped(k)
	case n.isList():
		v := &value{at: n, how: List, step: 1}
		for _, it := range n.items() {
			s, ok := it.text()
			if !ok {
				return nil
			}
			x, ok := k.parse(s)
			if !ok {
				it.fail("%q is not %s", s, k.what)
				return nil
			}
			v.list = append(v.list, x)
		}
		if len(v.list) == 0 {
			n.fail("an empty list")
			return nil
		}
		return v
	}
	s, ok := n.text()
	if !ok {
		return nil
	}
	return n.span(s, k)
}

// span reads a word: one value, a range, a prefix, or random ones of those.
func (n node) span(s string, k *kind) *value {
	if rest, ok := strings.CutPrefix(s, "random"); ok && (rest == "" || rest[0] == ' ') {
		v := &value{at: n, hi: wide{lo: math.MaxUint64}, step: 1}
		switch {
		case strings.TrimSpace(rest) != "":
			if v = n.span(strings.TrimSpace(rest), k); v == nil {
				return nil
			}
		case k.bits > 64:
			v.hi = wide{math.MaxUint64, math.MaxUint64}
		case k.bits < 64:
			v.hi.lo = 1<<k.bits - 1
		}
		v.how = Random
		return v
	}
	v := &value{at: n, step: 1}
	if x, ok := k.parse(s); ok {
		v.lo, v.hi = x, x
		return v
	}
	if a, z, ok := strings.Cut(s, "-"); ok {
		lo, ok1 := k.parse(strings.TrimSpace(a))
		hi, ok2 := k.parse(strings.TrimSpace(z))
		if ok1 && ok2 {
			if hi.less(lo) {
				n.fail("%s: the range ends before it begins; write the lower value first", s)
				return nil
			}
			v.lo, v.hi = lo, hi
			return v
		}
	}
	if k == addr4 || k == addr6 {
		if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() == (k == addr4) {
			if p.Masked() != p {
				n.fail("%s has host bits; write %s", s, p.Masked())
				return nil
			}
			host := p.Addr().BitLen() - p.Bits()
			if k == addr4 {
				v.lo = wide4(p.Addr())
				v.hi = wide{lo: v.lo.lo | (1<<host - 1)}
				return v
			}
			v.lo = wide6(p.Addr())
			v.hi = v.lo
			if host > 64 {
				v.hi.hi |= 1<<(host-64) - 1
			}
			v.hi.lo |= 1<<min(host, 64) - 1
			return v
		}
	}
	n.fail("%q is not %s", s, k.what)
	return nil
}

func (n node) mapped(k *kind) *value {
	o := n.keys("range", "prefix", "random", "list", "zipf", "exponent", "step", "every")
	var v *value
	for _, key := range []string{"range", "prefix", "random", "list", "zipf"} {
		if !o.has(key) {
			continue
		}
		if v != nil {
			n.fail("%s beside another: write one of range, prefix, random, list, zipf", key)
			return nil
		}
		if c := o.vals[key]; key == "list" {
			if !c.isList() {
				c.fail("a list is wanted here, such as [1, 2, 3]")
				return nil
			}
			v = c.value(k)
		} else if s, ok := c.text(); ok {
			v = c.span(s, k)
		}
		if v == nil {
			return nil
		}
		v.at = n
		switch key {
		case "random":
			v.how = Random
		case "zipf":
			v.how, v.zipf = List, 1
		}
	}
	if v == nil {
		n.fail("which values? write one of range, prefix, random, list, zipf")
		return nil
	}
	if e, ok := o.vals["exponent"]; ok {
		s, _ := e.text()
		x, err := strconv.ParseFloat(s, 64)
		if err != nil || !(x > 0) || x > 10 || v.zipf == 0 {
			e.fail("%q: the exponent of zipf is a number such as 1.1, up to 10", s)
			return nil
		}
		v.zipf = x
	}
	if e, ok := o.vals["every"]; ok {
		s, ok := e.text()
		if !ok {
			return nil
		}
		if x, ok := parseCount(s); ok && x > 0 {
			v.every = x
		} else if strings.Contains(s, ".") && !ok {
			v.after = s
		} else {
			e.fail("%q is neither a number of frames nor a field that goes round first, such as udp.src", s)
			return nil
		}
	}
	if e, ok := o.vals["step"]; ok {
		s, ok := e.text()
		if !ok {
			return nil
		}
		if v.how == Random || v.how == List && v.zipf == 0 {
			e.fail("a step goes with range, prefix or zipf")
			return nil
		}
		max := k.bits
		if p, isPrefix := strings.CutPrefix(s, "/"); isPrefix && (k == addr4 || k == addr6) {
			b, err := strconv.Atoi(p)
			if err != nil || b < 1 || b > max {
				e.fail("%q is not a prefix length between /1 and /%d", s, max)
				return nil
			}
			v.upper = max == 128 && b <= 64
			v.step = 1 << ((max - b) % 64)
		} else if x, ok := parseCount(s); ok && x > 0 {
			v.step = x
		} else {
			e.fail("%q is not a step such as 2 (or /24 between addresses)", s)
			return nil
		}
	}
	return v
}

// most is how many values zipf chooses of, drawn how many it draws before it repeats.
const (
	most  = 1 << 20
	drawn = 1 << 16
)

// fields makes the fields of a value whose lowest byte is the last of width at off; base is what the template holds. In
// one of 16 bytes each half that changes is a field.
func (v *value) fields(off uint16, width uint8, mask uint64, seed uint64) (base wide, fs []Field, ok bool) {
	base = v.lo
	if v.list != nil {
		base = v.list[0]
	}
	add := func(upper bool, f Field) {
		f.Every, f.Width, f.Off, f.Mask = v.every, width, off, mask
		if width == 16 {
			f.Width = 8
			if !upper {
				f.Off += 8
			}
		}
		fs = append(fs, f)
	}
	if v.list != nil {
		var hi, lo []uint64
		moves := false
		for _, x := range v.list {
			hi, lo = append(hi, x.hi), append(lo, x.lo)
			moves = moves || x.hi != base.hi
		}
		if len(v.list) > 1 {
			if moves {
				add(true, Field{Kind: List, List: hi})
			}
			add(false, Field{Kind: List, List: lo})
		}
		return base, fs, true
	}
	if v.constant() {
		return base, nil, true
	}
	if v.how == Random && v.hi.hi != v.lo.hi && v.lo.lo == 0 && v.hi.lo == math.MaxUint64 {
		add(true, Field{Kind: Random, Min: v.lo.hi, N: v.hi.hi - v.lo.hi + 1})
		add(false, Field{Kind: Random})
		return base, fs, true
	}
	from, to := v.lo.lo, v.hi.lo
	upper := v.upper
	if v.hi.hi != v.lo.hi && v.lo.lo == v.hi.lo {
		upper = true
	}
	if upper {
		from, to = v.lo.hi, v.hi.hi
	} else if v.hi.hi != v.lo.hi {
		if v.lo.lo != 0 || v.hi.lo != math.MaxUint64 {
			v.at.fail("a range of IPv6 addresses changes either their upper or their lower 64 bits; two ranges need two streams")
			return base, nil, false
		}
		to = math.MaxUint64 // of a short prefix no counter reaches the end of the lower half
	}
	if v.step > 1 && to-from < v.step && to != from {
		v.at.fail("the step is larger than the range")
		return base, nil, false
	}
	if to == from {
		return base, nil, true
	}
	n := (to-from)/v.step + 1 // 0 for 2^64
	f := Field{Kind: v.how, Min: from, Step: v.step, N: n}
	if v.zipf != 0 {
		if n == 0 || n > most {
			v.at.fail("zipf chooses of %d values at most, not of %d", most, n)
			return base, nil, false
		}
		f = Field{Kind: List, List: zipf(int(n), v.zipf, seed)}
		for i := range f.List {
			f.List[i] = from + f.List[i]*v.step
		}
		x := f.List[0]
		if upper {
			base.hi = x
		} else {
			base.lo = x
		}
	}
	if v.how == Random {
		f.Step = 0
	}
	add(upper, f)
	return base, fs, true
}

// zipf draws numbers below n: number i with a probability in proportion to 1/(i+1)^s.
func zipf(n int, s float64, seed uint64) []uint64 {
	sum := make([]float64, n)
	total := 0.0
	for i := range sum {
		total += math.Pow(float64(i+1), -s)
		sum[i] = total
	}
	r := rand.New(rand.NewPCG(seed, 0x7a697066))
	l := make([]uint64, drawn)
	for i := range l {
		x := r.Float64() * total
		l[i] = uint64(min(sort.SearchFloat64s(sum, x), n-1))
	}
	return l
}

// period is after how many frames a field has gone round; 0 where it never does.
func (f *Field) period() uint64 {
	n := f.N
	switch f.Kind {
	case Random:
		return 0
	case List:
		n = uint64(len(f.List))
	}
	e := max(f.Every, 1)
	if n != 0 && e > math.MaxUint64/n {
		return 0
	}
	return n * e
}

func (w wide) String() string { return fmt.Sprintf("%#x:%#x", w.hi, w.lo) }
