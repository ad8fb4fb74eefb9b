package fib

import (
	"fmt"
	"math/bits"
	"sync"
)

// ids gives out numbers from first to limit-1. Its mutex is a leaf: put is called by the
// epoch domain, perhaps under FIB.mu.
type ids struct {
	what  string
	first uint32
	limit uint32
	mu    sync.Mutex
	next  uint32
	free  []uint32
}

func newIDs(what string, first, limit uint32) *ids {
	return &ids{what: what, first: first, next: first, limit: limit}
}

func (s *ids) get() (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		id := s.free[n-1]
		s.free = s.free[:n-1]
		return id, nil
	}
	if s.next >= s.limit {
		return 0, fmt.Errorf("fib: %w: all %d %s are in use", ErrFull, s.limit-s.first, s.what)
	}
	s.next++
	return s.next - 1, nil
}

func (s *ids) put(id ...uint32) {
	s.mu.Lock()
	s.free = append(s.free, id...)
	s.mu.Unlock()
}

// used is how many are given out.
func (s *ids) used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.next-s.first) - len(s.free)
}

// runs gives out runs of buckets whose lengths are powers of two.
type runs struct {
	mu   sync.Mutex
	next uint32
	size uint32
	free [32][]uint32 // by log2 of the length
	out  int
}

// run is a piece of Tables.Buckets.
type run struct {
	at uint32
	n  int
}

func (r *runs) get(n int) (run, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := bits.TrailingZeros(uint(n))
	if k := len(r.free[c]); k > 0 {
		at := r.free[c][k-1]
		r.free[c] = r.free[c][:k-1]
		r.out += n
		return run{at, n}, nil
	}
	if r.next+uint32(n) <= r.size {
		at := r.next
		r.next += uint32(n)
		r.out += n
		return run{at, n}, nil
	}
	for big := c + 1; big < len(r.free); big++ { // split a longer one
		if k := len(r.free[big]); k > 0 {
			at := r.free[big][k-1]
			r.free[big] = r.free[big][:k-1]
			for s := big - 1; s >= c; s-- {
				r.free[s] = append(r.free[s], at+1<<s)
			}
			r.out += n
			return run{at, n}, nil
		}
	}
	return run{}, fmt.Errorf("fib: %w: no %d of %d multipath buckets are free in one piece", ErrFull, n, r.size)
}

func (r *runs) put(x run) {
	r.mu.Lock()
	c := bits.TrailingZeros(uint(x.n))
	r.free[c] = append(r.free[c], x.at)
	r.out -= x.n
	r.mu.Unlock()
}

func (r *runs) used() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.out
}
