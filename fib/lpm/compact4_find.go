package lpm

import "unsafe" // the caller's arrays of n destinations and values; tables outside the heap

// Find writes the values of n destinations, in host order. Each stage of the way, nodes and then leaves, is gone for
// the whole batch before the next, so that its misses are under way at the same time; see Table4.Find.
func (t *Compact4) Find(dst *uint32, out *uint16, n int) {
	if n >= gatherMin {
		t.many(dst, out, n)
		return
	}
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	nodes, leaves := t.nodes, t.leaves
	for {
		version := t.short.version.Load()
		s := t.short.at(version)
		all := uint16(0)
		for i, d := range ds {
			e, v := leaves[place(nodes[d>>13], d>>8)], short(s, d)
			if e == 0 {
				e = v
			}
			all |= e
			vs[i] = e
		}
		if all&deep4 != 0 {
			t.blocks.follow(s, dst, out, n)
		}
		if t.short.version.Load() == version {
			return
		}
	}
}

func (t *Compact4) many(dst *uint32, out *uint16, n int) {
	for n > 0 {
		k := n
		if k > stage4 {
			k = stage4
			if n < stage4+gatherMin { // leave enough for the last
				k -= gatherMin
			}
		}
		t.find(dst, out, k)
		n -= k
		if n == 0 {
			break
		}
		dst, out = (*uint32)(unsafe.Add(unsafe.Pointer(dst), 4*k)), (*uint16)(unsafe.Add(unsafe.Pointer(out), 2*k))
	}
}

// stage4 is the most destinations that go through the stages at a time.
const stage4 = 256

func (t *Compact4) find(dst *uint32, out *uint16, n int) {
	for {
		version := t.short.version.Load()
		s := t.short.at(version)
		var deep uint32
		if gather4 {
			deep = gather19(unsafe.Pointer(t.nodes), unsafe.Pointer(t.leaves), s, dst, out, n, t.spread.Load())
		} else {
			deep = t.scan(s, dst, out, n)
		}
		if deep&deep4 != 0 {
			t.blocks.follow(s, dst, out, n)
		}
		if t.short.version.Load() == version {
			return
		}
	}
}

// scan writes the leaves of up to stage4 destinations, and values where they are 0. It returns all of them OR-ed.
func (t *Compact4) scan(s *[1 << shortBits]uint32, dst *uint32, out *uint16, n int) (all uint32) {
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	var places [stage4]uint32
	nodes, leaves := t.nodes, t.leaves
	if t.spread.Load() {
		prefetch19(unsafe.Pointer(nodes), dst, n)
	}
	for i, d := range ds {
		places[uint8(i)] = place(nodes[d>>13], d>>8)
	}
	for i, d := range ds {
		e, v := leaves[places[uint8(i)]], short(s, d)
		if e == 0 {
			e = v
		}
		all |= uint32(e)
		vs[i] = e
	}
	return all
}
