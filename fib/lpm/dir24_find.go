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
	if n < gatherMin {
		t.few(dst, out, n)
		return
	}
	if t.spread.Load() {
		prefetch24(unsafe.Pointer(t.tbl24), dst, n)
	}
	var deep uint32
	if gather4 {
		deep = gather24(unsafe.Pointer(t.tbl24), &t.short.vals, dst, out, n)
	} else {
		deep = t.scan(dst, out, n)
	}
	if deep&deep4 != 0 {
		t.blocks.follow(&t.short, dst, out, n)
	}
}

// gatherMin is the number of destinations from which batches pay; the gathers need at least 16.
const gatherMin = 16

// few is Find for vectors of a few packets, whose misses all fit in the reorder buffer.
func (t *Table4) few(dst *uint32, out *uint16, n int) {
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	for i, d := range ds {
		vs[i] = t.Lookup(d)
	}
}

// scan writes the entries of tbl24, and values where they are 0. It returns all of them OR-ed.
func (t *Table4) scan(dst *uint32, out *uint16, n int) (all uint32) {
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	tbl := t.tbl24
	for i, d := range ds {
		e, s := tbl[d>>8], t.short.value(d)
		if e == 0 {
			e = s
		}
		all |= uint32(e)
		vs[i] = e
	}
	return all
}

// follow replaces entries in out that lead to blocks by values.
func (b *Blocks4) follow(s *shorts, dst *uint32, out *uint16, n int) {
	if gather4 {
		gather8(unsafe.Pointer(unsafe.SliceData(b.vals)), &s.vals, dst, out, n, b.mask)
		return
	}
	ds, vs := unsafe.Slice(dst, n), unsafe.Slice(out, n)
	for i, e := range vs {
		if e&deep4 != 0 {
			if e = b.value(ds[i], e); e == 0 {
				e = s.value(ds[i])
			}
			vs[i] = e
		}
	}
}
