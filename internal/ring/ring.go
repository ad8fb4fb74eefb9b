// Package ring is a bounded queue of packet indices between one producer thread
// and one consumer thread, without locks.
package ring

import "sync/atomic"

// Ring is a single-producer single-consumer queue. Put is the producer's, Get the
// consumer's; Len is exact for neither and safe for all.
type Ring struct {
	buf  []uint32
	mask uint32
	_    [32]byte
	head atomic.Uint32 // next place to fill
	seen uint32        // the producer's last sight of tail
	_    [56]byte
	tail atomic.Uint32 // next place to take
	know uint32        // the consumer's last sight of head
	_    [56]byte
}

// New makes a ring for n indices, rounded up to a power of two.
func New(n int) *Ring {
	size := 1
	for size < n {
		size *= 2
	}
	return &Ring{buf: make([]uint32, size), mask: uint32(size - 1)}
}

// Put appends as many of src as there is room for, from the front, and returns how many.
func (r *Ring) Put(src []uint32) int {
	h := r.head.Load()
	if room := uint32(len(r.buf)) - (h - r.seen); room < uint32(len(src)) {
		r.seen = r.tail.Load()
		if room = uint32(len(r.buf)) - (h - r.seen); room < uint32(len(src)) {
			src = src[:room]
		}
	}
	if len(src) == 0 {
		return 0
	}
	for i, x := range src {
		r.buf[(h+uint32(i))&r.mask] = x
	}
	r.head.Store(h + uint32(len(src)))
	return len(src)
}

// Get moves up to len(dst) indices to dst and returns how many.
func (r *Ring) Get(dst []uint32) int {
	t := r.tail.Load()
	if r.know-t < uint32(len(dst)) {
		r.know = r.head.Load()
	}
	n := min(r.know-t, uint32(len(dst)))
	if n == 0 {
		return 0
	}
	i := t & r.mask
	k := copy(dst[:n], r.buf[i:])
	copy(dst[k:n], r.buf)
	r.tail.Store(t + n)
	return int(n)
}

// Ahead is up to n of the indices that the consumer will get next, as far as it knows
// of them and they lie in one piece. borrowed: until the next Get.
func (r *Ring) Ahead(n int) []uint32 {
	t := r.tail.Load()
	i := t & r.mask
	k := min(r.know-t, uint32(len(r.buf))-i, uint32(n))
	return r.buf[i : i+k]
}

// Len is the number of indices inside, at some moment during the call.
func (r *Ring) Len() int { return int(r.head.Load() - r.tail.Load()) }

// Cap is the number of indices that fit.
func (r *Ring) Cap() int { return len(r.buf) }

// Each calls f for every index inside, oldest first, and leaves it there. It is the
// consumer's, or the producer's while nobody consumes.
func (r *Ring) Each(f func(uint32)) {
	h := r.head.Load()
	for t := r.tail.Load(); t != h; t++ {
		f(r.buf[t&r.mask])
	}
}
