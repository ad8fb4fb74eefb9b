package pmd

import (
	"sync"

	"millrace/internal/mem"
)

// Tally is the Stats of a port's queues. They lie outside the Go heap: each queue's thread
// writes its own with plain stores, and any thread reads them all.
type Tally struct {
	mu    sync.Mutex
	lines []*tallyLine
	final Stats // after Close
}

// tallyLine is one queue's Stats on a cache line of their own.
type tallyLine struct {
	Stats
	_ [8]byte
}

var tallies struct {
	sync.Mutex
	free []*tallyLine
}

// NewTally makes zeroed Stats for a number of queues.
func NewTally(queues int) (*Tally, error) {
	tallies.Lock()
	defer tallies.Unlock()
	for len(tallies.free) < queues {
		more, err := mem.Of[tallyLine](mem.HugeSize / 64)
		if err != nil {
			return nil, err
		}
		for i := range more {
			tallies.free = append(tallies.free, &more[i])
		}
	}
	n := len(tallies.free) - queues
	t := &Tally{lines: append([]*tallyLine(nil), tallies.free[n:]...)}
	tallies.free = tallies.free[:n]
	for _, l := range t.lines {
		*l = tallyLine{}
	}
	return t, nil
}

// Queue is queue i's Stats, for its thread to add to until Close.
func (t *Tally) Queue(i int) *Stats { return &t.lines[i].Stats }

// Sum is the total of all queues, also after Close.
func (t *Tally) Sum() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.final
	for _, l := range t.lines {
		s.Add(l.Stats)
	}
	return s
}

// Close keeps the sum and gives the memory back; no queue may count any more.
func (t *Tally) Close() {
	s := t.Sum()
	t.mu.Lock()
	lines := t.lines
	t.lines, t.final = nil, s
	t.mu.Unlock()
	tallies.Lock()
	tallies.free = append(tallies.free, lines...)
	tallies.Unlock()
}

// Add adds o to s.
func (s *Stats) Add(o Stats) {
	s.RxPackets += o.RxPackets
	s.TxPackets += o.TxPackets
	s.RxNoBuffer += o.RxNoBuffer
	s.RxRingFull += o.RxRingFull
	s.RxBad += o.RxBad
	s.TxFull += o.TxFull
	s.TxFailed += o.TxFailed
}
