package gen

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestSchedule: by a clock that jumps, every frame is made when it is due, none before, and none is forgotten.
func TestSchedule(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 200 {
		var s schedule
		s.stop, s.left = 1_000_000+r.Uint64N(1_000_000), never
		type book struct {
			p        *pace
			n, limit uint64
		}
		books := map[*source]*book{}
		planned := uint64(0)
		for range 1 + r.IntN(6) {
			var src []*source
			burst, frames := 1+r.IntN(3)*r.IntN(10), uint64(0)
			n := 1 + r.IntN(3)
			if r.IntN(3) == 0 {
				frames = uint64(burst * n * r.IntN(50))
			}
			p := newPace(float64(r.IntN(1000)), 60+r.ExpFloat64()*20_000, burst, frames)
			for range n {
				x := &source{}
				src = append(src, x)
				books[x] = &book{p: p, limit: frames / uint64(n)}
			}
			p.sources = src
			planned += p.planned(float64(s.stop))
			s.push(p)
		}
		now, made := uint64(0), uint64(0)
		order := map[*pace]uint64{}
		for s.due() != never {
			now += uint64(r.ExpFloat64() * 500)
			for {
				src, n := s.take(now, 1+r.IntN(64))
				if n == 0 {
					break
				}
				b := books[src]
				for range n {
					k := order[b.p]
					order[b.p]++
					made++
					b.n++
					step := k / uint64(b.p.burst)
					if due := b.p.start + float64(step)*b.p.period; due > float64(now)+1 || due >= float64(s.stop)+1 {
						t.Fatalf("frame %d of start %f period %f burst %d made at %d", k, b.p.start, b.p.period, b.p.burst, now)
					}
					if want := b.p.sources[int(step)%len(b.p.sources)]; want != src {
						t.Fatalf("frame %d is another stream's turn", k)
					}
				}
			}
			if d := s.due(); d <= now {
				t.Fatalf("at %d nothing is made, though a frame is due at %d", now, d)
			}
		}
		if d := int64(made - planned); d < -6 || d > 6 { // a due time beside stop may round either way
			t.Errorf("%d frames made, %d planned", made, planned)
		}
		for _, b := range books {
			if b.p.left != never && b.n > b.limit {
				t.Errorf("%d frames of a stream that has %d", b.n, b.limit)
			}
		}
	}
}

// TestDrift: after 10^9 frames the schedule is where it should be to a tick.
func TestDrift(t *testing.T) {
	for _, hz := range []float64{1e9, 2596141234} {
		for _, rate := range []float64{1000, 14_880_952.38, 40e6} {
			p := newPace(0, hz/rate, 1, 0, &source{})
			const steps = 1e9
			exact := steps * hz / rate
			got := float64(p.gap)*steps + float64(p.gapFrac)*steps/(1<<32)
			if math.Abs(got-exact) > 1 {
				t.Errorf("%g Hz, %g frames/s: off by %g ticks", hz, rate, got-exact)
			}
			for range 1000 {
				p.step()
			}
			if d := float64(p.due) - 1000*hz/rate; math.Abs(d) > 1 {
				t.Errorf("%g Hz, %g frames/s: off by %g ticks after 1000 frames", hz, rate, d)
			}
		}
	}
}
