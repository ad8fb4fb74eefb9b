package gen

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// randomGroup is of streams or a capture's frames.
func randomGroup(r *rand.Rand) *group {
	x := &group{beat: beat{period: 60 + r.ExpFloat64()*20_000, burst: 1, limit: never, members: 1}}
	if r.IntN(2) == 0 {
		x.start = float64(r.IntN(100_000))
	}
	if r.IntN(2) == 0 {
		n := 1 + r.IntN(20)
		round := x.period * float64(n)
		for range n {
			x.at = append(x.at, float64(r.IntN(int(round)))*float64(r.IntN(2)))
		}
		slices.Sort(x.at)
		if r.IntN(3) == 0 {
			x.limit = uint64(n * r.IntN(30))
		}
	} else {
		x.burst = 1 + r.IntN(3)*r.IntN(10)
		if r.IntN(3) == 0 {
			x.limit = uint64(x.burst * r.IntN(50))
		}
		for range r.IntN(3) {
			x.add()
		}
	}
	for range x.members {
		x.sources = append(x.sources, &source{})
	}
	return x
}

// dueTimes is when each step of x before the end of the trial is due, walking from step to step.
func dueTimes(x *group, phases []phase) (l []float64) {
	t, c := x.start, 0.0
	i := 0
	for n := uint64(0); n*uint64(x.burst) < x.limit; n++ {
		next := float64(n) * x.period
		if x.at != nil {
			k := uint64(len(x.at))
			next = float64(n/k)*x.period*float64(k) + x.at[n%k]
		}
		for i < len(phases) && (t >= phases[i].end || (phases[i].end-t)*phases[i].scale <= next-c) {
			c += max(phases[i].end-t, 0) * phases[i].scale
			t = max(t, phases[i].end)
			i++
		}
		if i == len(phases) {
			break
		}
		t += (next - c) / phases[i].scale
		c = next
		l = append(l, t)
	}
	return l
}

// TestSchedule: by a clock that jumps, every frame is made when it is due, none before, and none is forgotten, though the rate
// changes within the trial.
func TestSchedule(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for round := range 300 {
		run := &run{}
		type book struct {
			x    *group
			due  []float64 // of steps
			made uint64
		}
		books := map[*source]*book{}
		for range 1 + r.IntN(6) {
			x := randomGroup(r)
			run.groups = append(run.groups, x)
		}
		end := 0.0
		for range 1 + r.IntN(2) {
			begin := end
			end += 500_000 + float64(r.IntN(1_000_000))
			run.phases = append(run.phases, phase{begin: begin, end: end, scale: math.Exp(r.NormFloat64()), own: run.own(begin)})
		}
		total := uint64(0)
		for _, x := range run.groups {
			b := &book{x: x, due: dueTimes(x, run.phases)}
			total += uint64(min(len(b.due)*x.burst, int(min(x.limit, 1<<40))))
			for _, s := range x.sources {
				books[s] = b
			}
		}
		s := &run.ends[0].plan
		s.stop, s.left = uint64(end), never
		run.schedule(0)
		if d := int64(run.ends[0].planned - total); d != 0 {
			t.Fatalf("round %d: %d frames planned, %d are due", round, run.ends[0].planned, total)
		}
		now, made := uint64(0), uint64(0)
		for s.due() != never {
			now += uint64(r.ExpFloat64() * 500)
			for {
				src, n := s.take(now, 1+r.IntN(64))
				if n == 0 {
					break
				}
				b := books[src]
				for range n {
					step := b.made / uint64(b.x.burst)
					b.made++
					made++
					if due := b.due[step]; due > float64(now)+2 {
						t.Fatalf("round %d: step %d, due at %f, made at %d", round, step, due, now)
					}
					if want := b.x.sources[int(step)%len(b.x.sources)]; want != src {
						t.Fatalf("round %d: step %d is another stream's turn", round, step)
					}
				}
			}
			for _, b := range books {
				if i := b.made / uint64(b.x.burst); i < uint64(len(b.due)) && b.due[i] < float64(now)-2 {
					t.Fatalf("round %d: at %d step %d is not made, though due at %f", round, now, i, b.due[i])
				}
			}
		}
		if made != total {
			t.Errorf("round %d: %d frames made, %d are due", round, made, total)
		}
	}
}

// TestDrift: after 10^9 frames the schedule is where it should be to a tick.
func TestDrift(t *testing.T) {
	for _, hz := range []float64{1e9, 2596141234} {
		for _, rate := range []float64{1000, 14_880_952.38, 40e6} {
			p := newPace(&beat{period: hz / rate, burst: 1}, 0, 1, 0, never, []*source{{}})
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
