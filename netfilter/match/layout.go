package match

import (
	"unsafe" // tables outside the heap, found by their places in one mapping

	"millrace/internal/mem"
)

// layout collects the tables of an engine, which then move to one mapping outside the heap.
type layout struct {
	buf  []byte
	refs []ref
}

// ref is a pointer that waits for its table to move.
type ref struct {
	p  *unsafe.Pointer
	at int
}

// lineBytes is the size of a cache line. Tables begin at a multiple of it.
const lineBytes = 64

// put appends a table, of values free of Go pointers. *p, unless p is nil, will point to it.
func put[T any](l *layout, p *unsafe.Pointer, s []T) {
	if p != nil {
		l.refs = append(l.refs, ref{p, len(l.buf)})
	}
	if n := len(s) * int(unsafe.Sizeof(*new(T))); n != 0 {
		l.buf = append(l.buf, unsafe.Slice((*byte)(unsafe.Pointer(&s[0])), n)...)
	}
	l.buf = append(l.buf, make([]byte, -len(l.buf)&(lineBytes-1))...)
}

// slack is bytes behind the last table that may be read and do not count.
const slack = 8 * lineBytes

// seal moves the tables to a mapping.
func (l *layout) seal() ([]byte, error) {
	m, err := mem.Of[byte](len(l.buf) + slack)
	if err != nil {
		return nil, err
	}
	copy(m, l.buf)
	for _, r := range l.refs {
		*r.p = unsafe.Pointer(&m[r.at])
	}
	return m, nil
}
