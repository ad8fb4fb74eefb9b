package lpm

import "slices"

// u128 is an IPv6 address as a number.
type u128 struct{ hi, lo uint64 }

func (a u128) less(b u128) bool { return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo }

func (a u128) next() u128 {
	a.lo++
	if a.lo == 0 {
		a.hi++
	}
	return a
}

func (a u128) prev() u128 {
	if a.lo == 0 {
		a.hi--
	}
	a.lo--
	return a
}

var maxAddr = u128{^uint64(0), ^uint64(0)}

// prefixRange is the first and the last address of a prefix.
func prefixRange(a u128, bits int) (first, last u128) {
	var mask u128 // of the host part
	if bits < 64 {
		mask = u128{^uint64(0) >> bits, ^uint64(0)}
	} else {
		mask = u128{0, ^uint64(0) >> (bits - 64)} // 128: a shift by 64 gives 0
	}
	return u128{a.hi &^ mask.hi, a.lo &^ mask.lo}, u128{a.hi | mask.hi, a.lo | mask.lo}
}

// span is a run of addresses, to the next span, that fall to prefixes of one length and
// value; length 0 where no prefix but ::/0 has them.
type span struct {
	start u128
	value uint16
	bits  uint8
}

// spans cut the address space at the ends of prefixes: what the writer knows of the table. They are
// a sorted list in chunks, with the least address of each chunk beside it.
type spans struct {
	starts []u128
	chunks [][]span
	out    []span // scratch of paintChunk
}

const chunkMax = 128 // spans in a chunk

func newSpans() *spans {
	s := &spans{}
	s.put(0, []span{{}})
	return s
}

// put makes a new chunk the c-th.
func (s *spans) put(c int, content []span) {
	s.starts = slices.Insert(s.starts, c, content[0].start)
	s.chunks = slices.Insert(s.chunks, c, append(make([]span, 0, chunkMax), content...))
}

// chunk is the number of the chunk that covers an address.
func (s *spans) chunk(a u128) int {
	lo, hi := 1, len(s.starts) // the first chunk starts at ::
	for lo < hi {
		m := int(uint(lo+hi) / 2)
		if a.less(s.starts[m]) {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo - 1
}

// in is the place of the span of a chunk that covers an address.
func in(ch []span, a u128) int {
	lo, hi := 1, len(ch)
	for lo < hi {
		m := int(uint(lo+hi) / 2)
		if a.less(ch[m].start) {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return lo - 1
}

// paint gives value and bits to those addresses of [a, b] that fall to prefixes of from
// bits or, where exact is false, of at most from bits. It calls changed with ranges that hold
// all addresses of which the value changed.
func (s *spans) paint(a, b u128, from uint8, exact bool, value uint16, bits uint8, changed func(a, b u128)) {
	for {
		c := s.chunk(a)
		end := b
		if c+1 < len(s.starts) && !b.less(s.starts[c+1]) {
			end = s.starts[c+1].prev()
		}
		s.paintChunk(c, a, end, from, exact, value, bits, changed)
		if end == b {
			return
		}
		a = end.next()
	}
}

// paintChunk is paint inside one chunk.
func (s *spans) paintChunk(c int, a, b u128, from uint8, exact bool, value uint16, bits uint8, changed func(a, b u128)) {
	ch := s.chunks[c]
	i := in(ch, a)
	i0 := max(i-1, 0)
	out := append(s.out[:0], ch[i0:i]...)
	put := func(start u128, value uint16, bits uint8) {
		if n := len(out); n == 0 || out[n-1].value != value || out[n-1].bits != bits {
			out = append(out, span{start, value, bits})
		}
	}
	hit, first, last := false, u128{}, u128{}
	any := false
	j := i
	for ; j < len(ch) && !b.less(ch[j].start); j++ {
		x := ch[j]
		if x.bits != from && (exact || x.bits > from) {
			put(x.start, x.value, x.bits)
			continue
		}
		any = true
		at, end := x.start, b
		if at.less(a) {
			put(at, x.value, x.bits)
			at = a
		}
		put(at, value, bits)
		if j+1 < len(ch) && !b.less(ch[j+1].start) {
			end = ch[j+1].start.prev()
		} else if rest := b.next(); b != maxAddr && (j+1 == len(ch) || rest.less(ch[j+1].start)) && !(j+1 == len(ch) && s.startsAt(c+1, rest)) {
			put(rest, x.value, x.bits)
		}
		if x.value != value {
			if !hit {
				hit, first = true, at
			}
			last = end
		}
	}
	if !any {
		return
	}
	if j < len(ch) {
		put(ch[j].start, ch[j].value, ch[j].bits)
		j++
	}
	s.out = out
	if len(ch)-(j-i0)+len(out) > chunkMax {
		all := slices.Concat(ch[:i0], out, ch[j:])
		half := len(all) / 2
		s.chunks[c] = append(ch[:0], all[:half]...)
		s.put(c+1, all[half:])
	} else {
		s.chunks[c] = slices.Replace(ch, i0, j, out...)
		s.join(c)
	}
	if hit {
		changed(first, last)
	}
}

func (s *spans) startsAt(c int, a u128) bool { return c < len(s.starts) && s.starts[c] == a }

// join makes one chunk of a small one and the one behind or before it.
func (s *spans) join(c int) {
	n := len(s.chunks[c])
	if n > chunkMax/4 || len(s.chunks) == 1 {
		return
	}
	if c+1 == len(s.chunks) || c > 0 && len(s.chunks[c-1]) < len(s.chunks[c+1]) {
		c--
	}
	a, b := s.chunks[c], s.chunks[c+1]
	if len(a)+len(b) > chunkMax/2 {
		return
	}
	if l := a[len(a)-1]; l.value == b[0].value && l.bits == b[0].bits {
		b = b[1:]
	}
	s.chunks[c] = append(a, b...)
	s.starts = slices.Delete(s.starts, c+1, c+2)
	s.chunks = slices.Delete(s.chunks, c+1, c+2)
}

// cursor goes over spans in order. A change of the spans ends its life.
type cursor struct {
	s  *spans
	ch []span
	i  int // in ch
	c  int // of ch
}

// seek points at the span that covers an address.
func (s *spans) seek(a u128) cursor {
	c := s.chunk(a)
	return cursor{s, s.chunks[c], in(s.chunks[c], a), c}
}

func (k *cursor) span() *span { return &k.ch[k.i] }

// turn goes on to the next span of another value; false where there is none.
func (k *cursor) turn() bool {
	v := k.ch[k.i].value
	for i := k.i + 1; i < len(k.ch); i++ {
		if k.ch[i].value != v {
			k.i = i
			return true
		}
	}
	for c := k.c + 1; c < len(k.s.chunks); c++ {
		for i, x := range k.s.chunks[c] {
			if x.value != v {
				k.ch, k.c, k.i = k.s.chunks[c], c, i
				return true
			}
		}
	}
	return false
}

// bytes is the memory of the spans.
func (s *spans) bytes() int { return len(s.chunks) * (chunkMax*24 + 16 + 24) }
