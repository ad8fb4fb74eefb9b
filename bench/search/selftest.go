package search

import (
	"context"
	"fmt"
	"time"

	"millrace/bench/trial"
)

// SelfTest finds the generator's ceiling at each frame size, on a bed where the generator stands against itself (its
// ports joined, nothing between them). Give the result to Options.SelfTest of the searches that follow.
type SelfTest struct {
	Sizes      []int
	Duration   time.Duration // of a trial; 0 for a second
	Resolution float64       // as a part of the line rate; 0 for 0.01
}

func (c *SelfTest) Name() string { return "self-test" }

func (c *SelfTest) test() ThroughputTest {
	t := ThroughputTest{Duration: c.Duration, Resolution: c.Resolution, Verify: 2}
	if t.Duration == 0 {
		t.Duration = time.Second
	}
	if t.Resolution == 0 {
		t.Resolution = 0.01
	}
	return t
}

// Estimate is that of a throughput test with one trial more.
func (c *SelfTest) Estimate(bed trial.Bed, o Options) (Estimate, error) {
	t := c.test()
	e, err := (&RFC2544{Sizes: c.Sizes, Throughput: t}).Estimate(bed, o)
	n := len(sizesOf(c.Sizes))
	e.add(0, n, t.Duration, o.Gap)
	return e, err
}

// Run finds the ceilings. A generator that loses frames at any rate has a ceiling of 0, and every result
// beside it carries a warning.
func (c *SelfTest) Run(ctx context.Context, bed trial.Bed, o Options) (*Result, error) {
	o.SelfTest = nil
	r, err := start(c, bed, o)
	if err != nil {
		return nil, err
	}
	s := &SelfTestResult{Bed: bed.Name()}
	r.res.SelfTest = s
	for _, size := range sizesOf(c.Sizes) {
		r.size = size
		line := bed.Line(size)
		highest, why, err := r.top(ctx, c.test().Duration)
		if err != nil {
			return r.end(err)
		}
		t, err := r.throughput(ctx, c.test(), highest, why, "self-test")
		if err != nil {
			return r.end(err) // bounds that were not met are not a ceiling
		}
		ceiling := Ceiling{Size: size, Line: line}
		if t.Rate != nil {
			ceiling.Rate = *t.Rate
			ceiling.Full = line > 0 && t.Rate.FPS >= line
			half, err := r.try(ctx, "self-test latency", trial.Load{Rate: t.Rate.FPS / 2, Size: size, Duration: c.test().Duration})
			if err != nil {
				return r.end(err)
			}
			if half.Invalid == "" {
				ceiling.Floor = LatencyOf(half.Latency)
			}
		} else {
			r.res.Warnings = append(r.res.Warnings, fmt.Sprintf("%d bytes: the generator loses frames against itself even at %.0f frames a second", size, t.Resolution))
		}
		s.Ceilings = append(s.Ceilings, ceiling)
	}
	return r.end(nil)
}

var _ = []Search{(*MLR)(nil), (*RFC2544)(nil), (*Soak)(nil), (*SelfTest)(nil)}
