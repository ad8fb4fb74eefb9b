package lpm

import (
	"sync/atomic"
	"unsafe" // the caller's arrays of n destinations and values
)

const (
	batch6 = 256 // destinations at a time
	few6   = 32  // so many take less scratch
)

// lanes6 is scratch of a lookup: offsets of lines and keys, by lane.
type lanes6 struct{ at, key [batch6]uint32 }

// Find writes the values of n destinations, in network order.
func (t *Table6) Find(dst *[16]byte, out *uint16, n int) {
	for ; n > batch6; n -= batch6 {
		t.find(dst, out, batch6)
		dst = (*[16]byte)(unsafe.Add(unsafe.Pointer(dst), batch6*16))
		out = (*uint16)(unsafe.Add(unsafe.Pointer(out), batch6*2))
	}
	if n > few6 {
		t.find(dst, out, n)
	} else if n > 0 {
		t.findFew(dst, out, n)
	}
}

func (t *Table6) find(dst *[16]byte, out *uint16, n int) {
	var s lanes6
	t.lanes(dst, out, &s.at[0], &s.key[0], n)
}

func (t *Table6) findFew(dst *[16]byte, out *uint16, n int) {
	var at, key [few6]uint32
	t.lanes(dst, out, &at[0], &key[0], n)
}

// lanes is Find with scratch of n elements each.
func (t *Table6) lanes(dst *[16]byte, out *uint16, at, key *uint32, n int) {
	def := atomic.LoadUint32(&t.def)
	if !vector6 {
		t.lanesGo(unsafe.Slice(dst, n), unsafe.Slice(out, n), unsafe.Slice(at, n), unsafe.Slice(key, n), uint16(def))
		return
	}
	keys6(dst, at, key, n)
	if left := down6(unsafe.Pointer(t.dir), t.base, at, key, n); left > 0 {
		t.downTall(unsafe.Slice(at, n)[n-left:], unsafe.Slice(key, n)[n-left:])
	}
	if leaf6(t.base, at, key, out, n, def) != 0 {
		t.deep(unsafe.Slice(dst, n), unsafe.Slice(out, n), unsafe.Slice(at, n), uint16(def))
	}
}

// downTall is down6 where some trees are tall.
func (t *Table6) downTall(at, key []uint32) {
	for i, place := range at {
		at[i] = atomic.LoadUint32(&t.dir[place%(1<<dirBits)])
	}
	t.tall(at, key)
	walk6(t.base, &at[0], &key[0], len(at))
}

// tall takes the lanes of tall trees down to where levels6 levels are left.
func (t *Table6) tall(at, key []uint32) {
	for i, ref := range at {
		a := ref / lineBytes * lineUnits
		for range ref % lineBytes {
			a = t.step(a, key[i])
		}
		at[i] = a * unit6
	}
}

// deep follows the references of the lanes with deep values, whose leaf lines are at at.
func (t *Table6) deep(dst [][16]byte, out []uint16, at []uint32, def uint16) {
	var (
		s    lanes6
		lane [batch6]uint8
		val  [batch6]uint16
		n    int
	)
	for i, v := range out {
		if v&deep != 0 {
			s.at[n&(batch6-1)], lane[n&(batch6-1)] = t.deeper(at[i], v), uint8(i)
			n++
		}
	}
	for round := 1; n > 0; round++ {
		prefetch6(t.base, &s.at[0], n)
		m, any := 0, uint32(0)
		for j := range n {
			i, ref := lane[j], s.at[j]
			a := number(dst[i])
			if ref&inRun == 0 {
				any |= ref
				s.at[m], s.key[m], lane[m] = ref, key6(a, round), i
				m++
			} else if v := findRun(t.at(ref/lineBytes), int(ref%inRun)+1, a.hi, a.lo); v != 0 {
				out[i] = v
			} else {
				out[i] = def
			}
		}
		if n = 0; m == 0 {
			return
		}
		if any%lineBytes != 0 {
			t.tall(s.at[:m], s.key[:m])
		}
		walk6(t.base, &s.at[0], &s.key[0], m)
		leaf6(t.base, &s.at[0], &s.key[0], &val[0], m, uint32(def))
		for j, v := range val[:m] {
			if v&deep != 0 {
				s.at[n], lane[n] = t.deeper(s.at[j], v), lane[j]
				n++
			} else {
				out[lane[j]] = v
			}
		}
	}
}

// lanesGo goes level by level, so that the processor has many lanes to work on at once: nothing in its
// loops depends on the outcome of a compare but addresses.
func (t *Table6) lanesGo(dst [][16]byte, out []uint16, at, key []uint32, def uint16) {
	out, at, key = out[:len(dst)], at[:len(dst)], key[:len(dst)]
	any := uint32(0)
	for i := range dst {
		a := number(dst[i])
		ref := t.dir[a.hi>>(64-dirBits)]
		at[i], key[i] = ref, key6(a, 0)
		any |= ref
	}
	if any%lineBytes != 0 {
		t.tall(at, key)
	}
	for i := range at {
		at[i] /= unit6
	}
	for range levels6 {
		for i, k := range key {
			at[i] = t.step(at[i], k)
		}
	}
	for i, k := range key {
		v := t.leaf(at[i], k)
		if v&deep != 0 {
			v = t.walk(t.deeper(at[i], v), number(dst[i]), 1)
		}
		if v == 0 {
			v = def
		}
		out[i] = v
	}
}
