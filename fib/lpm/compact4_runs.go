package lpm

import "sync"

// runs4 gives out places for the leaves of nodes, by class of size.
type runs4 struct {
	live  int // leaves in nodes
	limit int
	next  [len(runSizes)]uint32 // runs that have been in use
	free  [len(runSizes)][]uint32
	left  []run4 // since the last commit

	mu   sync.Mutex // a leaf: runs come back under any lock
	back []run4
}

// run4 is a run that readers may still look at.
type run4 struct {
	at    uint32
	class uint8
}

// class4 is the class of a run by its size, and runBase the place of the first run of a class.
var class4, runBase = func() (class [33]uint8, base [len(runSizes)]uint32) {
	at := uint32(runsAt)
	for c, size := range runSizes {
		base[c] = at
		at += size * runsEach
		for n := size; n > 0 && (c == 0 || n > runSizes[c-1]); n-- {
			class[n] = uint8(c)
		}
	}
	return class, base
}()

// get is the place of a free run. There is always one: fewer nodes than runs can be in use at a time, and where
// all others wait for readers, get does too.
func (r *runs4) get(t *Compact4, class uint8) uint32 {
	r.live += int(runSizes[class])
	for {
		free := &r.free[class]
		if n := len(*free); n > 0 {
			at := (*free)[n-1]
			*free = (*free)[:n-1]
			return at
		}
		if r.collect() && len(*free) > 0 {
			continue
		}
		if n := r.next[class]; n < runsEach {
			r.next[class]++
			return runBase[class] + n*runSizes[class]
		}
		r.commit(t)
		t.d.Wait()
	}
}

// collect makes the runs that came back free; it returns false where there are none.
func (r *runs4) collect() bool {
	r.mu.Lock()
	back := r.back
	r.back = nil
	r.mu.Unlock()
	for _, x := range back {
		r.free[x.class] = append(r.free[x.class], x.at)
	}
	return len(back) > 0
}

// leave takes a run out of use that no node leads to any more. A large batch uses its own runs
// again, so that it does not spread the leaves over more memory than they need.
func (r *runs4) leave(t *Compact4, at uint32, class uint8) {
	r.live -= int(runSizes[class])
	if r.left = append(r.left, run4{at, class}); len(r.left) == 256 {
		r.commit(t)
	}
}

// commit has the runs that were left come back after an epoch.
func (r *runs4) commit(t *Compact4) {
	if len(r.left) == 0 {
		return
	}
	left := r.left
	r.left = nil
	t.d.Retire(func() {
		if poisoned {
			for _, x := range left {
				for i := range runSizes[x.class] {
					t.leaves[x.at+i] = poison
				}
			}
		}
		r.mu.Lock()
		r.back = append(r.back, left...)
		r.mu.Unlock()
	})
}
