// Package epoch says when memory that workers read without locks may be used again:
// when every worker has begun a new poll round since it was unlinked.
//
// # Life of a retired thing
//
// A writer unlinks it from the tables and calls Retire. Each worker passes a
// quiescent point at the start of every round (Slot.Quiesce), at which it holds
// nothing that it read from the tables before. The function given to Retire runs
// once all online workers have passed one; it runs in whichever goroutine calls Retire, Reclaim
// or Wait next. Workers do nothing but compare one counter per round.
//
// # Concurrency
//
// A Slot is for one thread. A Domain is safe for concurrent use. Functions given
// to Retire run one at a time without the Domain's lock, and may not wait for the Domain.
package epoch

import (
	"sync"
	"sync/atomic"
	"time"
)

// maxLimbo bounds the retired functions that wait; Retire blocks beyond.
const maxLimbo = 1 << 14

// offline is the epoch of a slot that reads nothing.
const offline = ^uint64(0)

// Domain is a set of readers and what was retired from under them.
type Domain struct {
	_     [64]byte
	now   atomic.Uint64 // read by every worker in every round
	_     [64]byte
	mu    sync.Mutex
	slots []*Slot
	limbo []retired // oldest first
	run   sync.Mutex
}

type retired struct {
	epoch uint64
	free  func()
}

// Slot is one reader's place in a Domain. It starts offline.
type Slot struct {
	_    [64]byte
	seen atomic.Uint64
	d    *Domain
	_    [64]byte
}

// NewDomain returns a domain without readers: what is retired is freed at once.
func NewDomain() *Domain {
	d := &Domain{}
	d.now.Store(1)
	return d
}

// NewSlot adds a reader, which is offline until it calls Online.
func (d *Domain) NewSlot() *Slot {
	s := &Slot{d: d}
	s.seen.Store(offline)
	d.mu.Lock()
	d.slots = append(d.slots, s)
	d.mu.Unlock()
	return s
}

// Close removes the reader, which must have stopped reading.
func (s *Slot) Close() {
	d := s.d
	d.mu.Lock()
	for i, o := range d.slots {
		if o == s {
			d.slots = append(d.slots[:i], d.slots[i+1:]...)
			break
		}
	}
	d.mu.Unlock()
	d.Reclaim()
}

// Quiesce says that the reader, which is online, holds nothing it read before: the
// start of a poll round.
func (s *Slot) Quiesce() {
	if e := s.d.now.Load(); e != s.seen.Load() {
		s.seen.Store(e)
	}
}

// Offline says that the reader reads nothing until Online: it goes to sleep.
func (s *Slot) Offline() { s.seen.Store(offline) }

// Online says that the reader is about to read.
func (s *Slot) Online() { s.seen.Store(s.d.now.Load()) }

// Retire runs free when every online reader has passed a quiescent point. It blocks
// while too many retired things wait, so a reader must not call it while online.
func (d *Domain) Retire(free func()) {
	d.mu.Lock()
	d.limbo = append(d.limbo, retired{d.now.Add(1), free})
	d.mu.Unlock()
	for wait := time.Microsecond; d.Reclaim() > maxLimbo; wait = min(2*wait, time.Millisecond) {
		time.Sleep(wait)
	}
}

// Reclaim runs what may run and returns how many still wait. It never blocks for readers.
func (d *Domain) Reclaim() int {
	d.run.Lock()
	defer d.run.Unlock()
	d.mu.Lock()
	passed := d.passed()
	n := 0
	for n < len(d.limbo) && d.limbo[n].epoch <= passed {
		n++
	}
	ready := d.limbo[:n:n]
	d.limbo = d.limbo[n:]
	left := len(d.limbo)
	if left == 0 {
		d.limbo = nil
	}
	d.mu.Unlock()
	for i := range ready {
		ready[i].free()
		ready[i].free = nil
	}
	return left
}

// passed is the epoch that all readers have reached.
func (d *Domain) passed() uint64 {
	p := uint64(offline)
	for _, s := range d.slots {
		p = min(p, s.seen.Load())
	}
	return p
}

// Wait returns when every online reader has passed a quiescent point since the call
// and all that was retired before it has been freed.
func (d *Domain) Wait() {
	d.mu.Lock()
	e := d.now.Add(1)
	d.mu.Unlock()
	for wait := time.Microsecond; ; wait = min(2*wait, time.Millisecond) {
		d.mu.Lock()
		ok := d.passed() >= e
		d.mu.Unlock()
		if ok {
			break
		}
		time.Sleep(wait)
	}
	d.Reclaim()
}

// Pending is the number of retired things that wait.
func (d *Domain) Pending() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.limbo)
}
