package search

import (
	"context"
	"fmt"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/trial"
)

// Soak offers one load for long, in intervals that are trials of their own: counters are read between them, never within.
type Soak struct {
	Size     int
	Rate     float64       // frames a second
	Interval time.Duration // of a trial
	Total    time.Duration // rounded up to whole intervals
	// StopAtLoss ends the soak after the first interval with loss.
	StopAtLoss bool
}

func (c *Soak) Name() string { return "soak" }

func (c *Soak) intervals() int { return int((c.Total + c.Interval - 1) / c.Interval) }

// Estimate is exact, but for StopAtLoss.
func (c *Soak) Estimate(bed trial.Bed, o Options) (Estimate, error) {
	var e Estimate
	switch highest, _ := top(bed, c.Size, o); {
	case !(c.Rate > 0):
		return e, fmt.Errorf("search: soak: the rate is %v frames a second, must be positive", c.Rate)
	case highest > 0 && c.Rate > highest*(1+1e-9):
		return e, fmt.Errorf("search: soak: the rate is %.0f frames a second, must be at most %.0f", c.Rate, highest)
	case c.Interval <= 0 || c.Total < c.Interval:
		return e, fmt.Errorf("search: soak: %v in intervals of %v: both must be positive, the total not less than an interval", c.Total, c.Interval)
	}
	n := c.intervals()
	low := n
	if c.StopAtLoss {
		low = 1
	}
	e.add(low, n, c.Interval, o.Gap)
	return e, nil
}

// Run soaks. Invalid intervals are not made again, for time runs on: they are listed, and count neither way.
func (c *Soak) Run(ctx context.Context, bed trial.Bed, o Options) (*Result, error) {
	o.Retries = -1
	r, err := start(c, bed, o)
	if err != nil {
		return nil, err
	}
	r.size = c.Size
	s := &SoakResult{Size: c.Size, Rate: r.rate(c.Rate), First: -1, Last: -1, Ceiling: o.SelfTest.At(c.Size)}
	r.res.Soak = s
	var all *hdrhistogram.Histogram
	n := c.intervals()
	for i := range n {
		var out *trial.Outcome
		if out, err = r.try(ctx, fmt.Sprintf("interval %d/%d", i+1, n), trial.Load{Rate: c.Rate, Size: c.Size, Duration: c.Interval}); err != nil {
			break
		}
		s.Intervals = append(s.Intervals, SoakInterval{At: time.Duration(i) * c.Interval, Start: out.Start, Sent: out.Sent,
			Lost: out.Lost, Loss: out.LossRatio(), Latency: LatencyOf(out.Latency), Invalid: out.Invalid})
		if out.Invalid != "" {
			s.Invalid++
			continue
		}
		s.Sent, s.Lost = s.Sent+out.Sent, s.Lost+out.Lost
		all = merge(all, out.Latency)
		if out.Lost > 0 {
			s.Lossy++
			s.Last = i
			if s.First < 0 {
				s.First = i
			}
			if c.StopAtLoss {
				s.Stopped = true
				break
			}
		}
	}
	s.sum(all)
	s.Warnings = r.unchecked()
	if w := r.near("the load", c.Rate); w != "" {
		s.Warnings = append(s.Warnings, w)
	}
	if s.Invalid > 0 {
		s.Warnings = append(s.Warnings, fmt.Sprintf("%d of %d intervals are invalid: nothing is known of them", s.Invalid, len(s.Intervals)))
	}
	return r.end(err)
}

func (s *SoakResult) sum(all *hdrhistogram.Histogram) {
	s.Latency = LatencyOf(all)
	if s.Sent > 0 {
		s.LossRatio = float64(s.Lost) / float64(s.Sent)
	}
	var loss, median []float64
	for _, i := range s.Intervals {
		if i.Invalid == "" {
			loss = append(loss, i.Loss)
			if i.Latency != nil {
				median = append(median, float64(i.Latency.P50))
			}
		}
	}
	s.Loss = SpreadOf(loss)
	if q := len(median) / 4; q > 0 {
		s.Drift = SpreadOf(median[len(median)-q:]).Median - SpreadOf(median[:q]).Median
	}
}
