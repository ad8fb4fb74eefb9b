package lpm

import "unsafe" // the caller's arrays of n destinations and values; tables outside the heap

// Find writes the values of n destinations, in host order.
//
// Where the table is spread over more than a core's cache, a pass of prefetches over the whole batch comes first. A load that
// misses stays in the reorder buffer until its data has come, so a plain loop has no more misses
// under way than the loads that fit in there, with all that stands between them, and then stalls; a prefetch retires at
// once, so that the pass keeps all of the core's miss buffers busy. The loads after it find most lines there or on
// their way. To prefetch some way ahead inside the loop of loads does not do it: there the loads stall the prefetches.
func (t *Table4) Find(dst *uint32, out *uint16, n int) {
	if n >= gatherMin {
		t.many(dst, out, n)
		return
	}
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	tbl := t.tbl24
	for {
		version := t.short.version.Load()
		s, all := t.short.at(version), uint16(0)
		for i, d := range ds {
			e, v := tbl[d>>8], short(s, d)
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

func (t *Table4) many(dst *uint32, out *uint16, n int) {
	if t.spread.Load() {
		prefetch24(unsafe.Pointer(t.tbl24), dst, n)
	}
	for {
		version := t.short.version.Load()
		s := t.short.at(version)
		var all uint32
		if gather4 {
			all = gather24(unsafe.Pointer(t.tbl24), s, dst, out, n)
		} else {
			all = t.scan(s, dst, out, n)
		}
		if all&deep4 != 0 {
			t.blocks.follow(s, dst, out, n)
		}
		if t.short.version.Load() == version {
			return
		}
	}
}

// gatherMin is the number of destinations from which gathers and prefetches pay: the misses of fewer all fit in the
// reorder buffer. The gathers need 16.
const gatherMin = 16

// scan writes the entries of tbl24, and values where they are 0. It returns all of them OR-ed.
func (t *Table4) scan(s *[1 << shortBits]uint32, dst *uint32, out *uint16, n int) (all uint32) {
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	tbl := t.tbl24
	for i, d := range ds {
		e, v := tbl[d>>8], short(s, d)
		if e == 0 {
			e = v
		}
		all |= uint32(e)
		vs[i] = e
	}
	return all
}

// follow replaces entries in out that lead to blocks by values. Gathers are slower here: few entries
// lead to blocks as a rule, and where all do, independent loads overlap as well.
func (b *Blocks4) follow(s *[1 << shortBits]uint32, dst *uint32, out *uint16, n int) {
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	vals, mask := unsafe.Pointer(unsafe.SliceData(b.vals)), b.mask
	for i, e := range vs {
		if e&deep4 == 0 {
			continue
		}
		d := ds[i]
		at := uint64(d>>23&mask<<15|uint32(e&(deep4-1)))<<8 | uint64(d&0xff)
		if e = *(*uint16)(unsafe.Add(vals, 2*at)); e == 0 {
			e = short(s, d)
		}
		vs[i] = e
	}
}
