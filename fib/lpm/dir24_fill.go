package lpm

import (
	"bytes"
	"sync/atomic"
	"unsafe" // eight neighbouring entries at once; their place is a multiple of eight in page-aligned tables
)

// match is a range of prefix lengths: a fill changes the entries that come from a prefix of such a length.
type match struct{ from, to uint8 }

// shorter matches what a prefix of that many bits that is added takes over, exactly what one of the table has.
func shorter(bits int) match { return match{0, uint8(bits - 1)} }
func exactly(bits int) match { return match{uint8(bits), uint8(bits)} }

func (m match) has(l uint8) bool { return l-m.from <= m.to-m.from }

// fill gives the entries with matching lengths another value and length. Readers see each change, or not yet. Eight
// entries of one length, the usual thing in long runs, are done at once.
func (m match) fill(vals []uint16, lens []uint8, value uint16, length uint8) {
	vals = vals[:len(lens)]
	i := 0
	if len(lens) >= 8 { // a power of two, and so is its place
		v, l := uint64(value)*0x0001_0001_0001_0001, uint64(length)*ones8
		for ; i+8 <= len(lens); i += 8 {
			eight := (*uint64)(unsafe.Pointer(&lens[i]))
			if w := *eight; w == uint64(uint8(w))*ones8 {
				if m.has(uint8(w)) {
					p := (*[2]uint64)(unsafe.Pointer(&vals[i]))
					p[0], p[1] = v, v
					*eight = l
				}
				continue
			}
			m.each(vals[i:i+8], lens[i:i+8], value, length)
		}
		return
	}
	m.each(vals, lens, value, length)
}

const ones8 = 0x0101_0101_0101_0101

func (m match) each(vals []uint16, lens []uint8, value uint16, length uint8) {
	vals = vals[:len(lens)]
	for i, l := range lens {
		if m.has(l) {
			vals[i], lens[i] = value, length
		}
	}
}

// shorts are the prefixes of at most shortBits bits, the default route among them. In the tables of longer ones
// value 0 stands for them all, so that one that comes or goes is a store in a single cache line
// instead of millions of entries.
//
// A lookup reads two places then, the table and this. So that it never joins what was there at different times (a default route
// that came after a longer prefix did, with the time before the longer one), each change is a version: readers take the
// version, read the table, and begin again where there is another version afterwards. The values of the version before last
// are overwritten, those of the last two are not.
type shorts struct {
	version atomic.Uint32
	vals    [2][1 << shortBits]uint32    // for the hot path: by version, and the upper bits of the destination
	routes  [1 << (shortBits + 1)]uint16 // of the writer: value of addr/bits at 1<<bits | addr>>(32-bits)
}

const shortBits = 4

// set gives a short prefix a value; 0 takes it out.
func (s *shorts) set(addr uint32, bits int, value uint16) {
	s.routes[1<<bits|uint64(addr)>>(32-bits)] = value
	next := s.version.Load() + 1
	for i := range 1 << shortBits {
		v := uint16(0)
		for at := 1<<shortBits | i; at > 0 && v == 0; at >>= 1 {
			v = s.routes[at]
		}
		atomic.StoreUint32(&s.vals[next&1][i], uint32(v))
	}
	s.version.Store(next)
}

// at are the values of a version.
func (s *shorts) at(version uint32) *[1 << shortBits]uint32 { return &s.vals[version&1] }

// short is the value of the longest short prefix of a destination.
func short(vals *[1 << shortBits]uint32, dst uint32) uint16 {
	return uint16(atomic.LoadUint32(&vals[dst>>(32-shortBits)]))
}

// nextDeep is the place of the next entry, at from or behind, that leads to a block; len(lens) where there is none.
func nextDeep(lens []uint8, from int) int {
	if i := bytes.IndexByte(lens[from:], deepLen); i >= 0 {
		return from + i
	}
	return len(lens)
}
