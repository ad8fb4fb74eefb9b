package fib

import (
	"fmt"
	"math/bits"
	"sync"
)

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
