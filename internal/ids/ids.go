// Package ids gives out numbers, and takes them back.
package ids

import (
	"errors"
	"fmt"
	"sync"
)

// ErrFull is wrapped by errors of sets that have no number left.
var ErrFull = errors.New("table full")

// Set gives out numbers from first to limit-1. It is safe for concurrent use. Its mutex is a leaf: Put
// may be called by an epoch domain under any lock.
type Set struct {
	what  string
	first uint32
	limit uint32
	mu    sync.Mutex
	next  uint32
	free  []uint32
}

// New makes a set of the numbers from first to limit-1; what names them in errors.
func New(what string, first, limit uint32) *Set {
	return &Set{what: what, first: first, next: first, limit: limit}
}

// Get takes a number out.
func (s *Set) Get() (uint32, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.free); n > 0 {
		id := s.free[n-1]
		s.free = s.free[:n-1]
		return id, nil
	}
	if s.next >= s.limit {
		return 0, fmt.Errorf("%w: all %d %s are in use", ErrFull, s.limit-s.first, s.what)
	}
	s.next++
	return s.next - 1, nil
}

// Put gives numbers back.
func (s *Set) Put(id ...uint32) {
	s.mu.Lock()
	s.free = append(s.free, id...)
	s.mu.Unlock()
}

// Used is how many are out.
func (s *Set) Used() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return int(s.next-s.first) - len(s.free)
}

// Bound leaves at most n more numbers that were never out.
func (s *Set) Bound(n uint32) {
	s.mu.Lock()
	s.limit = min(s.limit, s.next+n)
	s.mu.Unlock()
}
