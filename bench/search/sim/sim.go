// Package sim is a simulated thing under test: a trial.Bed of known throughput and loss that answers in no time, for the
// tests of searches and of what shows their results.
package sim

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/search"
	"millrace/bench/trial"
)

// Window is a range of loads in which some loss is added: a way to be non-monotonic.
type Window struct {
	From, To float64 // frames a second
	Loss     float64
}

// DUT is a simulated bed. The zero value of each part switches it off. The outcome of trial k is a function of the fields,
// the load, and k alone. It is not safe for concurrent use.
type DUT struct {
	Label string
	Seed  uint64
	// Capacity is what it forwards, in frames a second; Bits limits it in bits a second of frames with FCS too.
	Capacity, Bits float64
	// Wire is the ports' speed in bits a second, over all directions; 0 for memory.
	Wire float64
	// Soft widens the edge into an S-curve: loss begins about so much (as a part of the load) below Capacity.
	Soft float64
	// Constant loss ratio at any load.
	Constant float64
	Windows  []Window
	// Buffer takes so many frames before any is lost to Capacity or to a stall.
	Buffer float64
	// Every so often it forwards nothing for Stall.
	Every, Stall time.Duration
	// Noise is the standard deviation of the capacity from trial to trial, as a part of it.
	Noise float64
	// Spikes is the probability that a trial loses SpikeLoss whatever its load.
	Spikes, SpikeLoss float64
	// Generator is the highest rate that the generator can send, 0 for any; Flaky is the probability that a trial is
	// invalid although the load is not too high.
	Generator, Flaky float64
	// Delay without load; queues add to it near Capacity. No latency is measured where it is 0.
	Delay time.Duration
	// Settle is the time that recovery takes beside the emptying of Buffer.
	Settle time.Duration
	// Die ends all trials from number Die on with ErrDead, where it is not 0.
	Die int

	// Made is the number of trials so far; a test that resumes a search sets it.
	Made int
	// Clock is the time that trials took.
	Clock time.Duration
}

// ErrDead is what a dead DUT's trials return.
var ErrDead = errors.New("sim: the thing under test died")

func (d *DUT) Name() string {
	if d.Label == "" {
		return "simulated"
	}
	return d.Label
}

func (d *DUT) Close() error { return nil }

func (d *DUT) Line(size int) float64 {
	if size == 0 {
		size = 64
	}
	return d.Wire / 8 / float64(size+trial.Overhead)
}

// Limit is the capacity for frames of size bytes, in frames a second.
func (d *DUT) Limit(size int) float64 {
	c := d.Capacity
	if size == 0 {
		size = 64
	}
	if b := d.Bits / 8 / float64(size); d.Bits > 0 && (b < c || c == 0) {
		c = b
	}
	if l := d.Line(size); l > 0 && (c == 0 || l < c) {
		c = l
	}
	return c
}

// Ratio is the loss ratio to expect at rate frames a second of size bytes over t, without noise, spikes and chance.
func (d *DUT) Ratio(rate float64, size int, t time.Duration) float64 {
	return d.ratio(rate, d.Limit(size), t, 1)
}

func (d *DUT) ratio(rate, c float64, t time.Duration, stalls float64) float64 {
	if rate <= 0 {
		return 0
	}
	x := 1 - c/rate
	var p float64
	if d.Soft > 0 {
		p = d.Soft * math.Log1p(math.Exp(x/d.Soft))
	} else {
		p = max(x, 0)
	}
	frames := rate * t.Seconds()
	p = max(p-d.Buffer/frames, 0)
	if d.Stall > 0 {
		n := t.Seconds() / d.Every.Seconds() * stalls
		p += max(rate*d.Stall.Seconds()-d.Buffer, 0) * n / frames
	}
	for _, w := range d.Windows {
		if rate >= w.From && rate < w.To {
			p += w.Loss
		}
	}
	return min(p+d.Constant, 1)
}

func (d *DUT) random() *rand.Rand { return rand.New(rand.NewPCG(d.Seed, uint64(d.Made))) }

// lost draws how many of n frames are lost, each with probability p.
func lost(r *rand.Rand, n uint64, p float64) uint64 {
	switch m := float64(n) * p; {
	case p <= 0:
		return 0
	case p >= 1:
		return n
	case m < 30: // Poisson
		k, limit := uint64(0), math.Exp(-m)
		for x := r.Float64(); x > limit; x *= r.Float64() {
			k++
		}
		return min(k, n)
	default:
		return uint64(min(max(math.Round(m+r.NormFloat64()*math.Sqrt(m*(1-p))), 0), float64(n)))
	}
}

func (d *DUT) Try(ctx context.Context, l trial.Load) (*trial.Outcome, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := d.random()
	d.Made++
	if d.Die > 0 && d.Made > d.Die {
		return nil, ErrDead
	}
	o := &trial.Outcome{Load: l, Start: time.Unix(1_700_000_000, 0).UTC().Add(d.Clock)}
	can := d.Generator
	if line := d.Line(l.Size); line > 0 && (can == 0 || line < can) {
		can = line
	}
	rate := l.Rate
	if rate == 0 {
		if rate = can; rate == 0 {
			rate = 1e8
		}
	} else if can > 0 && rate > can*(1+1e-9) {
		o.Invalid, rate = fmt.Sprintf("the generator sent at %.0f frames a second instead of %.0f", can, rate), can
	}
	if d.Flaky > 0 && r.Float64() < d.Flaky {
		o.Invalid = "the generator was not scheduled for 80 ms"
	}
	t := l.Duration
	o.Sent = uint64(math.Round(rate * t.Seconds()))
	if l.Frames > 0 && (t == 0 || l.Frames < o.Sent) {
		o.Sent = l.Frames
	}
	o.Elapsed = time.Duration(float64(o.Sent) / rate * 1e9)
	d.Clock += o.Elapsed
	c := d.Limit(l.Size)
	if d.Noise > 0 {
		c *= 1 + d.Noise*r.NormFloat64()
	}
	stalls := 1.0
	if d.Stall > 0 { // as many whole stalls as fall into the trial, by chance of phase
		n := o.Elapsed.Seconds() / d.Every.Seconds()
		whole := math.Floor(n)
		if r.Float64() < n-whole {
			whole++
		}
		stalls = whole / n
	}
	if c > 0 && o.Sent > 0 {
		p := d.ratio(rate, c, o.Elapsed, stalls)
		if d.hard() {
			o.Lost = min(uint64(math.Round(p*float64(o.Sent))), o.Sent)
		} else {
			o.Lost = lost(r, o.Sent, p)
		}
		if d.Spikes > 0 && r.Float64() < d.Spikes {
			o.Lost = min(o.Lost+uint64(d.SpikeLoss*float64(o.Sent)), o.Sent)
		}
	}
	o.Received = o.Sent - o.Lost
	if d.Delay > 0 {
		o.Latency = d.delays(r, rate, c)
	}
	return o, nil
}

// hard: the number of lost frames is a matter of counting, not of chance.
func (d *DUT) hard() bool { return d.Soft == 0 && d.Constant == 0 && len(d.Windows) == 0 }

func (d *DUT) delays(r *rand.Rand, rate, c float64) *hdrhistogram.Histogram {
	h := hdrhistogram.New(1, int64(time.Second), 2)
	queue := 50.0 // of service times, when full
	if c > 0 && rate < c {
		queue = min(queue, 1/(1-rate/c))
	}
	for range 200 {
		h.RecordValue(int64(float64(d.Delay) * (1 + 0.02*queue*r.ExpFloat64())))
	}
	return h
}

// Recover offers over, then under. Loss lasts until the queue is short again and Settle is over.
func (d *DUT) Recover(ctx context.Context, over, under trial.Load) (*trial.Outcome, *search.Recovery, error) {
	if over.Rate <= 0 || under.Rate <= 0 {
		return nil, nil, errors.New("sim: recovery needs rates")
	}
	a, err := d.Try(ctx, over)
	if err != nil {
		return nil, nil, err
	}
	c := d.Limit(over.Size)
	after := d.Settle
	if under.Rate < c && over.Rate > c {
		after += time.Duration(d.Buffer / (c - under.Rate) * 1e9)
	}
	if over.Rate <= c {
		after = 0
	}
	stopped := under.Rate < c && after < under.Duration
	if !stopped {
		after = under.Duration
	}
	sent := uint64(under.Rate * under.Duration.Seconds())
	d.Clock += under.Duration
	gone := min(uint64(after.Seconds()*under.Rate*0.1), sent)
	a.Sent, a.Lost = a.Sent+sent, a.Lost+gone
	a.Received = a.Sent - a.Lost
	return a, &search.Recovery{Under: under, Time: after, Stopped: stopped}, nil
}

var _ search.Recoverer = (*DUT)(nil)
