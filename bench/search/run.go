package search

import (
	"context"
	"errors"
	"fmt"
	"time"

	"millrace/bench/trial"
)

// Search is one kind of search, with its parameters.
type Search interface {
	// Name is Result.Search.
	Name() string
	// Estimate is the time it would take on bed; it makes no trial.
	Estimate(bed trial.Bed, o Options) (Estimate, error)
	// Run makes the search. Where it ends early, the result has what was found until then and says why in Partial, and
	// the error is the cause. Only an error in the parameters gives no result.
	Run(ctx context.Context, bed trial.Bed, o Options) (*Result, error)
}

// Options are what all searches share.
type Options struct {
	// Journal has the outcomes of an earlier run of the same search and takes those of this one; nil for neither.
	Journal Journal
	// Retries is how often an invalid trial is made again before its load counts as one that the generator cannot
	// offer; 0 for 3, negative for none.
	Retries int
	// Tolerance is how far the rate of sending may be from the load, as a part of it; 0 for 0.005. A trial beyond it is
	// invalid, whatever its bed says.
	Tolerance float64
	// SelfTest has the generator's ceilings: searches do not go above them.
	SelfTest *SelfTestResult
	// Max is the highest rate to offer, in frames a second; 0 for the line rate.
	Max float64
	// Growth is how many bytes a frame grows by inside the thing under test (translation, tunnels), so that neither
	// side is offered more than its line rate (RFC 8219, section 5.1).
	Growth int
	// MeanSize is the mean frame size in bytes where Size is 0 (IMIX); 0 where unknown: bits are not counted then.
	MeanSize float64
	// Gap is the time that the bed needs between trials, for the Estimate.
	Gap time.Duration
	// Limit on the durations of trials, summed: a search that meets it stops with what it has. 0 for none.
	Limit time.Duration
	// Progress is called before and after each trial, from the search's goroutine; nil for nobody.
	Progress func(Event)
}

// Event tells of a search under way.
type Event struct {
	Search string
	Phase  string // "NDR 2/3", "latency 50 %", ...
	Size   int
	Load   trial.Load
	// Outcome is nil before the trial, and what came of it afterwards.
	Outcome  *trial.Outcome
	Replayed bool // from the journal
	Attempt  int  // 0, or the number of the retry
	Trials   int  // so far, this one not counted before it
	Spent    time.Duration
	Estimate Estimate
	// Lower and Upper are the bounds so far of what Phase looks for, in frames a second; 0 where there is none.
	Lower, Upper float64
}

// Estimate is how long a search takes on a bed that behaves: Low where all is decided at once, High where all
// takes long. Noise, retries and a thing under test that dies can take longer.
type Estimate struct {
	Low  time.Duration `json:"low_ns"`
	High time.Duration `json:"high_ns"`
}

func (e *Estimate) add(trialsLow, trialsHigh int, each, gap time.Duration) {
	e.Low += time.Duration(trialsLow) * (each + gap)
	e.High += time.Duration(trialsHigh) * (each + gap)
}

// Left is what remains of the estimate after spent.
func (e Estimate) Left(spent time.Duration) Estimate {
	return Estimate{max(e.Low-spent, 0), max(e.High-spent, 0)}
}

// ErrLimit ends a search at Options.Limit.
var ErrLimit = errors.New("search: the time limit was reached")

// maxTrials stops a search that would not end: no bed that gives the same outcomes for the same loads comes near.
const maxTrials = 1_000_000

// run is the state of one search.
type run struct {
	bed  trial.Bed
	o    Options
	res  *Result
	est  Estimate
	live bool // the journal is used up

	size         int
	lower, upper float64 // for events
}

func start(s Search, bed trial.Bed, o Options) (*run, error) {
	est, err := s.Estimate(bed, o)
	if err != nil {
		return nil, err
	}
	if o.Retries == 0 {
		o.Retries = 3
	}
	if o.Tolerance == 0 {
		o.Tolerance = 0.005
	}
	return &run{bed: bed, o: o, est: est, live: o.Journal == nil,
		res: &Result{Schema: Schema, Search: s.Name(), Bed: bed.Name()}}, nil
}

// end writes down why a search ended, and gives what Run returns.
func (r *run) end(err error) (*Result, error) {
	switch {
	case err == nil:
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		r.res.Partial = "interrupted"
	default:
		r.res.Partial = err.Error()
	}
	return r.res, err
}

func (r *run) bytes() float64 { return sizeOf(r.size, r.o) }

func sizeOf(size int, o Options) float64 {
	if size == 0 {
		return o.MeanSize
	}
	return float64(size)
}

func (r *run) rate(fps float64) Rate { return RateOf(fps, r.bytes()) }

// top is the highest rate to offer for frames of size bytes, 0 where nothing limits it, and what limits it.
func top(bed trial.Bed, size int, o Options) (float64, Limited) {
	line := bed.Line(size)
	if o.Growth > 0 && size > 0 {
		if grown := bed.Line(size + o.Growth); grown > 0 && (line == 0 || grown < line) {
			line = grown
		}
	}
	if o.Max > 0 && (line == 0 || o.Max < line) {
		line = o.Max
	}
	if c := o.SelfTest.At(size); c != nil && !c.Full && c.Rate.FPS > 0 && (line == 0 || c.Rate.FPS < line) {
		return c.Rate.FPS, LimitedByGenerator
	}
	return line, LimitedByLine
}

// top finds what top does, by a trial as fast as the generator can where there is no limit to know.
func (r *run) top(ctx context.Context, d time.Duration) (float64, Limited, error) {
	if fps, why := top(r.bed, r.size, r.o); fps > 0 {
		return fps, why, nil
	}
	o, err := r.try(ctx, "highest rate", trial.Load{Size: r.size, Duration: d})
	if err != nil {
		return 0, "", err
	}
	if o.Invalid != "" || o.Achieved() <= 0 {
		return 0, "", fmt.Errorf("search: no line rate is known for %d bytes, and the generator sent nothing as fast as it can: %s", r.size, o.Invalid)
	}
	return o.Achieved(), LimitedByGenerator, nil
}

// near is the warning for a rate above the trusted part of the generator's ceiling; "" below.
func (r *run) near(what string, fps float64) string {
	c := r.o.SelfTest.At(r.size)
	if c == nil || c.Rate.FPS <= 0 || c.Full || fps <= NearCeiling*c.Rate.FPS {
		return ""
	}
	return fmt.Sprintf("%s is at %.1f %% of what the generator can do against itself (%.0f frames a second): it may be the generator's limit",
		what, 100*fps/c.Rate.FPS, c.Rate.FPS)
}

// unchecked is the warning of a result without a self-test, or with one that failed.
func (r *run) unchecked() []string {
	switch c := r.o.SelfTest.At(r.size); {
	case c == nil:
		return []string{"no self-test: the generator's own ceiling is not known"}
	case c.Rate.FPS <= 0:
		return []string{"the self-test failed: the generator loses frames against itself at any rate, so no loss can be laid at the thing under test"}
	}
	return nil
}

// try makes a trial, with retries. The outcome is invalid only where all retries were.
func (r *run) try(ctx context.Context, phase string, l trial.Load) (*trial.Outcome, error) {
	for attempt := 0; ; attempt++ {
		e, err := r.entry(ctx, phase, l, attempt, func() (*Entry, error) {
			o, err := r.bed.Try(ctx, l)
			if err != nil {
				return nil, err
			}
			if o == nil {
				return nil, errors.New("search: the bed returned no outcome")
			}
			return &Entry{Outcome: o}, nil
		})
		if err != nil {
			return nil, err
		}
		if e.Outcome.Invalid == "" || attempt >= r.o.Retries {
			return e.Outcome, nil
		}
	}
}

// entry has one trial from the journal or from make, and counts it.
func (r *run) entry(ctx context.Context, phase string, l trial.Load, attempt int, make func() (*Entry, error)) (*Entry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if r.o.Limit > 0 && r.res.Spent+sending(l) > r.o.Limit {
		return nil, ErrLimit
	}
	if r.res.Trials >= maxTrials {
		return nil, fmt.Errorf("search: stopped after %d trials", maxTrials)
	}
	ev := Event{Search: r.res.Search, Phase: phase, Size: l.Size, Load: l, Attempt: attempt, Trials: r.res.Trials,
		Spent: r.res.Spent, Estimate: r.est, Lower: r.lower, Upper: r.upper}
	var e *Entry
	if !r.live {
		var err error
		if e, err = r.o.Journal.Next(l); err != nil {
			return nil, err
		}
		r.live = e == nil
		if e != nil && (e.Search != r.res.Search || e.Bed != r.res.Bed || e.Attempt != attempt) {
			return nil, fmt.Errorf("%w: its trial %d is of %s on %s, attempt %d; this is %s on %s, attempt %d", ErrJournal,
				r.res.Trials+1, e.Search, e.Bed, e.Attempt+1, r.res.Search, r.res.Bed, attempt+1)
		}
		ev.Replayed = e != nil
	}
	r.emit(ev)
	if e == nil {
		var err error
		if e, err = make(); err != nil {
			return nil, err
		}
		e.Schema, e.Search, e.Bed, e.Phase, e.Attempt = Schema, r.res.Search, r.res.Bed, phase, attempt
		e.Outcome.Load = l
		r.check(e.Outcome, e.Recovery)
		if r.o.Journal != nil {
			if err := r.o.Journal.Add(e); err != nil {
				return nil, fmt.Errorf("search: a trial could not be kept, and the search stops here: %w", err)
			}
		}
	}
	r.res.Trials++
	r.res.Spent += sending(l)
	if e.Recovery != nil {
		r.res.Spent += e.Recovery.Under.Duration
	}
	if e.Outcome.Invalid != "" {
		r.res.Invalid++
	}
	ev.Outcome, ev.Trials, ev.Spent = e.Outcome, r.res.Trials, r.res.Spent
	r.emit(ev)
	return e, nil
}

func (r *run) emit(ev Event) {
	if r.o.Progress != nil {
		r.o.Progress(ev)
	}
}

// check marks an outcome invalid that says nothing about the thing under test, whatever the bed thinks of it.
func (r *run) check(o *trial.Outcome, y *Recovery) {
	if o.Invalid != "" {
		return
	}
	// The first and the last frame of a trial may be anywhere in the bursts that a generator sends.
	const burst = 64
	s, n := o.Elapsed.Seconds(), float64(o.Sent)
	want := o.Rate * o.Duration.Seconds()
	if y != nil { // Elapsed may be of both loads
		s, want = 0, want+y.Under.Rate*y.Under.Duration.Seconds()
	}
	switch {
	case o.Sent == 0:
		o.Invalid = "no frame was sent"
	case o.Received > o.Sent || o.Lost != o.Sent-o.Received:
		o.Invalid = fmt.Sprintf("the counts do not add up: %d sent, %d received, %d lost", o.Sent, o.Received, o.Lost)
	case o.Frames > 0 && o.Sent != o.Frames:
		o.Invalid = fmt.Sprintf("%d frames were sent instead of %d", o.Sent, o.Frames)
	case o.Rate > 0 && s > 0 && ((n+burst)/s < o.Rate*(1-r.o.Tolerance) || (n-burst)/s > o.Rate*(1+r.o.Tolerance)):
		o.Invalid = fmt.Sprintf("sent at %.0f frames a second instead of %.0f", o.Achieved(), o.Rate)
	case o.Rate > 0 && o.Frames == 0 && (n+burst < want*(1-r.o.Tolerance) || n-burst > want*(1+r.o.Tolerance)):
		o.Invalid = fmt.Sprintf("sent %d frames instead of %.0f", o.Sent, want)
	}
}

// sending is how long a load is offered.
func sending(l trial.Load) time.Duration {
	if l.Frames > 0 && l.Rate > 0 {
		return min(time.Duration(float64(l.Frames)/l.Rate*1e9), l.Duration)
	}
	return l.Duration
}
