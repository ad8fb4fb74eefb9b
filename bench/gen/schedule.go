package gen

import (
	"math"
	"sort"
)

// schedule says when frames are due. Times are in ticks since the trial's begin.
//
// Streams of the same rate, burst, start and number of frames share a pace and take turns in it: n streams of one rate
// cost what one does, and are spread evenly among each other. A heap holds the paces.
type schedule struct {
	heap []*pace // the one with the least due first
	stop uint64  // no frame is due from here on
	left uint64  // frames until the trial's last
}

// pace is the schedule of some sources: each step is one burst of the source whose turn it is, or one frame of a capture.
type pace struct {
	due, frac    uint64 // of the step, and 2^-32 ticks
	gap, gapFrac uint64 // to the next step; of a capture, the length of a round
	burst        int    // frames of a step
	open         int    // frames of this step that are not made yet
	left         uint64 // frames until the last, of all sources
	turn         int
	sources      []*source
	round        uint64   // of a capture: when this round began
	at           []uint64 // when each frame of a round is due, from its begin
	pos          int      // frame of this step
}

// never is due after everything.
const never = math.MaxUint64

// beat is when the steps of a group are due in the profile's own time: ticks from its start, as if nothing were scaled.
type beat struct {
	start   float64   // ticks of the trial
	period  float64   // from a step to the next, on average
	at      []float64 // of a capture: when each frame of a round is due, from its begin
	burst   int
	limit   uint64 // frames of all members, never for none
	members int
}

// add makes room for one more stream of the same kind.
func (b *beat) add() {
	n := float64(b.members)
	b.period *= n / (n + 1)
	if b.limit != never {
		b.limit += b.limit / uint64(b.members)
	}
	b.members++
}

// slack is the part of a step by which rounding may put it before the time at which it is due.
const slack = 1e-6

// frames is how many frames are due before c.
func (b *beat) frames(c float64) uint64 {
	if c <= 0 {
		return 0
	}
	steps := c / b.period
	if b.at == nil {
		steps = math.Ceil(steps - slack)
	} else {
		n := float64(len(b.at))
		rounds := math.Floor(steps/n + slack/n)
		rest := c - b.period*slack - rounds*b.period*n
		steps = rounds*n + float64(sort.SearchFloat64s(b.at, rest))
	}
	if steps *= float64(b.burst); steps < float64(b.limit) {
		return uint64(steps)
	}
	return b.limit
}

// due is when step n is due.
func (b *beat) due(n uint64) float64 {
	if b.at == nil {
		return float64(n) * b.period
	}
	l := uint64(len(b.at))
	return float64(n/l)*b.period*float64(l) + b.at[n%l]
}

// newPace makes the pace of a beat from step from on, of left frames. Its own time 0 is at start, and goes scale times as
// fast as the clock.
func newPace(b *beat, start, scale float64, from, left uint64, sources []*source) *pace {
	p := &pace{burst: b.burst, open: b.burst, left: left, sources: sources, turn: int(from % uint64(len(sources)))}
	gap := b.period / scale
	if b.at == nil {
		start += float64(from) * gap
	} else {
		n := uint64(len(b.at))
		gap *= float64(n)
		start += float64(from/n) * gap
		p.pos = int(from % n)
		p.at = make([]uint64, n)
		for i, t := range b.at {
			p.at[i] = uint64(t / scale)
		}
	}
	// A round may have begun before the trial did.
	p.due, p.frac = parts(start)
	p.gap, p.gapFrac = parts(gap)
	if p.at != nil {
		p.round = p.due
		p.due += p.at[p.pos]
	}
	return p
}

// parts are whole ticks, modulo 2^64, and 2^-32 ticks.
func parts(t float64) (whole, frac uint64) {
	w := math.Floor(t)
	return uint64(int64(w)), uint64((t - w) * (1 << 32))
}

// take returns the source of the next frames that are due at now, and how many in a row it has, at most room; 0 if
// nothing is due. The frames count as made.
func (s *schedule) take(now uint64, room int) (*source, int) {
	if len(s.heap) == 0 || s.left == 0 {
		return nil, 0
	}
	p := s.heap[0]
	if p.due > now || p.due >= s.stop {
		return nil, 0
	}
	room = int(min(uint64(room), s.left, p.left))
	src := p.sources[p.turn]
	n := 0
	for n < room {
		k := min(p.open, room-n)
		n += k
		if p.open -= k; p.open > 0 {
			break
		}
		p.step()
		if len(p.sources) > 1 || p.due > now || p.due >= s.stop {
			break
		}
	}
	s.left -= uint64(n)
	if p.left != never {
		if p.left -= uint64(n); p.left == 0 {
			p.due = never
		}
	}
	s.sift()
	return src, n
}

// step goes on to the next step.
func (p *pace) step() {
	p.open = p.burst
	if p.at != nil {
		p.frame()
		return
	}
	p.frac += p.gapFrac
	p.due += p.gap + p.frac>>32
	p.frac &= 1<<32 - 1
	if p.turn++; p.turn == len(p.sources) {
		p.turn = 0
	}
}

// frame goes on to the next frame of a capture.
func (p *pace) frame() {
	if p.pos++; p.pos == len(p.at) {
		p.pos = 0
		p.frac += p.gapFrac
		p.round += p.gap + p.frac>>32
		p.frac &= 1<<32 - 1
	}
	p.due = p.round + p.at[p.pos]
}

// due is when the next frame is due; never if there is none any more.
func (s *schedule) due() uint64 {
	if len(s.heap) == 0 || s.left == 0 || s.heap[0].due >= s.stop {
		return never
	}
	return s.heap[0].due
}

// sift restores the heap after its first pace has moved on.
func (s *schedule) sift() {
	h := s.heap
	i := 0
	for {
		c := 2*i + 1
		if c >= len(h) {
			return
		}
		if c+1 < len(h) && h[c+1].due < h[c].due {
			c++
		}
		if h[i].due <= h[c].due {
			return
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
}

// push adds a pace.
func (s *schedule) push(p *pace) {
	s.heap = append(s.heap, p)
	h := s.heap
	for i := len(h) - 1; i > 0 && h[i].due < h[(i-1)/2].due; i = (i - 1) / 2 {
		h[i], h[(i-1)/2] = h[(i-1)/2], h[i]
	}
}
