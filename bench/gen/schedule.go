package gen

import "math"

// schedule says when frames are due. Times are in ticks since the trial's begin.
//
// Streams of the same rate, burst, start and number of frames share a pace and take turns in it: n streams of one rate
// cost what one does, and are spread evenly among each other. A heap holds the paces.
type schedule struct {
	heap []*pace // the one with the least due first
	stop uint64  // no frame is due from here on
	left uint64  // frames until the trial's last
}

// pace is the schedule of some sources: each step is one burst of the source whose turn it is.
type pace struct {
	due, frac     uint64 // of the step, and 2^-32 ticks
	gap, gapFrac  uint64 // to the next step
	burst         int    // frames of a step
	open          int    // frames of this step that are not made yet
	left          uint64 // frames until the last, of all sources
	turn          int
	sources       []*source
	start, period float64 // what due and gap were made of, ticks
}

// never is due after everything.
const never = math.MaxUint64

// newPace makes a pace whose steps, of burst frames, follow each other by period ticks from start on.
func newPace(start, period float64, burst int, frames uint64, sources ...*source) *pace {
	whole, part := math.Modf(period)
	p := &pace{
		due: uint64(start), gap: uint64(whole), gapFrac: uint64(part * (1 << 32)),
		burst: burst, open: burst, left: frames, sources: sources, start: start, period: period,
	}
	if frames == 0 {
		p.left = never
	}
	return p
}

// planned is how many frames are due before stop.
func (p *pace) planned(stop float64) uint64 {
	if stop <= p.start {
		return 0
	}
	steps := math.Ceil((stop-p.start)/p.period - 1e-6) // a step that rounding alone put before stop is at stop
	return min(uint64(steps*float64(p.burst)), p.left)
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
	p.frac += p.gapFrac
	p.due += p.gap + p.frac>>32
	p.frac &= 1<<32 - 1
	if p.turn++; p.turn == len(p.sources) {
		p.turn = 0
	}
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

// order makes a heap of paces that were changed.
func (s *schedule) order() {
	h := s.heap
	s.heap = h[:0]
	for _, p := range h {
		s.push(p)
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
