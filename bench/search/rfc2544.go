package search

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/trial"
)

// StandardSizes are the frame sizes of RFC 2544 (9.1) for Ethernet, in bytes with FCS.
var StandardSizes = []int{64, 128, 256, 512, 1024, 1280, 1518}

// Jumbo is the frame size that SizesFor adds where it fits.
const Jumbo = 9000

// SizesFor are the standard sizes that fit an interface's mtu (bytes of layer 3), and Jumbo where it does.
func SizesFor(mtu int) []int {
	var out []int
	for _, s := range append(StandardSizes[:len(StandardSizes):len(StandardSizes)], Jumbo) {
		if s <= mtu+14+trial.FCS {
			out = append(out, s)
		}
	}
	return out
}

// RFC2544 are the tests of RFC 2544, section 26, for each frame size. Parts that are nil are not made; the throughput is
// always found, for others start from it.
type RFC2544 struct {
	Sizes      []int
	Throughput ThroughputTest
	Latency    *LatencyTest
	LossRate   *LossRateTest
	BackToBack *BackToBackTest
	Recovery   *RecoveryTest
}

// ThroughputTest is 26.1: a binary search.
type ThroughputTest struct {
	Duration   time.Duration // of a trial; at least 60 s (24)
	Loss       float64       // acceptable loss ratio; RFC 2544 accepts none
	Resolution float64       // as a part of the highest rate
	// Verify repeats a trial with loss up to so often, and one that passes counts (the loss verification of ETSI GS
	// NFV-TST 009, 12.3.3). RFC 2544 has none.
	Verify int
}

// LatencyTest is 26.2. Every frame is measured, not one tagged frame of each trial.
type LatencyTest struct {
	Duration time.Duration // at least 120 s
	Parts    []float64     // of the throughput; RFC 2544 asks for all of it
	Repeats  int           // at least 20
}

// LossRateTest is 26.3: from the highest rate down by Step until two trials in a row lose nothing.
type LossRateTest struct {
	Duration time.Duration
	Step     float64 // as a part of the highest rate; at most 0.1
}

// BackToBackTest is 26.4, with the calculations of RFC 9004.
type BackToBackTest struct {
	Longest time.Duration // of a burst; at least 2 s
	Repeats int           // at least 50
	// Resolution of the burst's length, as a part of it; but one frame at least.
	Resolution float64
	Verify     int // as ThroughputTest's (RFC 9004, section 6.2)
}

// RecoveryTest is 26.5: overload, then half the load.
type RecoveryTest struct {
	Over     float64       // of the throughput: 1.1; at most the highest rate
	Duration time.Duration // of the overload: at least 60 s
	Under    float64       // of the overload: 0.5
	Watch    time.Duration // how long the loss is watched afterwards
	Repeats  int
}

// FullRFC2544 has all tests with the durations and repetitions of RFC 2544: it takes days.
func FullRFC2544(sizes []int) *RFC2544 {
	return &RFC2544{
		Sizes:      sizes,
		Throughput: ThroughputTest{Duration: 60 * time.Second, Resolution: 0.005},
		Latency:    &LatencyTest{Duration: 120 * time.Second, Parts: []float64{1, 0.9, 0.5, 0.1}, Repeats: 20},
		LossRate:   &LossRateTest{Duration: 60 * time.Second, Step: 0.1},
		BackToBack: &BackToBackTest{Longest: 2 * time.Second, Repeats: 50, Resolution: 0.001},
		Recovery:   &RecoveryTest{Over: 1.1, Duration: 60 * time.Second, Under: 0.5, Watch: 60 * time.Second, Repeats: 3},
	}
}

// QuickRFC2544 has all tests with trials of a second and few repetitions, for development: its results are not to be called
// RFC 2544's.
func QuickRFC2544(sizes []int) *RFC2544 {
	return &RFC2544{
		Sizes:      sizes,
		Throughput: ThroughputTest{Duration: time.Second, Resolution: 0.005},
		Latency:    &LatencyTest{Duration: time.Second, Parts: []float64{1, 0.9, 0.5, 0.1}, Repeats: 3},
		LossRate:   &LossRateTest{Duration: time.Second, Step: 0.1},
		BackToBack: &BackToBackTest{Longest: 2 * time.Second, Repeats: 5, Resolution: 0.01},
		Recovery:   &RecoveryTest{Over: 1.1, Duration: 3 * time.Second, Under: 0.5, Watch: 3 * time.Second, Repeats: 1},
	}
}

func (c *RFC2544) Name() string { return "rfc2544" }

func (c *RFC2544) check() error {
	bad := func(what string, v any, want string) error {
		return fmt.Errorf("search: rfc2544: %s is %v, must be %s", what, v, want)
	}
	part := func(x float64) bool { return x > 0 && x <= 1 }
	t, l, f, b, y := c.Throughput, c.Latency, c.LossRate, c.BackToBack, c.Recovery
	switch {
	case t.Duration <= 0:
		return bad("the duration of throughput's trials", t.Duration, "positive")
	case !(t.Loss >= 0 && t.Loss < 1):
		return bad("the acceptable loss", t.Loss, "from 0 up, less than 1")
	case !(t.Resolution >= 1e-6 && t.Resolution <= 0.5):
		return bad("the resolution of throughput", t.Resolution, "0.000001 to 0.5")
	case l != nil && (l.Duration <= 0 || l.Repeats < 1):
		return bad("the duration and number of latency's trials", fmt.Sprint(l.Duration, " × ", l.Repeats), "positive")
	case f != nil && (f.Duration <= 0 || !part(f.Step)):
		return bad("the duration and step of the frame loss rate", fmt.Sprint(f.Duration, ", ", f.Step), "positive, the step at most 1")
	case b != nil && (b.Longest <= 0 || b.Repeats < 1 || !(b.Resolution >= 0 && b.Resolution < 1)):
		return bad("the longest burst, repetitions and resolution of back-to-back", fmt.Sprint(b.Longest, ", ", b.Repeats, ", ", b.Resolution), "positive, the resolution less than 1")
	case y != nil && (y.Duration <= 0 || y.Watch <= 0 || y.Repeats < 1 || !(y.Over > 0) || !part(y.Under)):
		return bad("recovery", fmt.Sprintf("%+v", *y), "of positive values, Under at most 1")
	}
	if l != nil {
		for _, p := range l.Parts {
			if !part(p) {
				return bad("a part of the throughput for latency", p, "more than 0, at most 1")
			}
		}
	}
	return nil
}

// Run makes the tests, size by size.
func (c *RFC2544) Run(ctx context.Context, bed trial.Bed, o Options) (*Result, error) {
	r, err := start(c, bed, o)
	if err != nil {
		return nil, err
	}
	for _, size := range sizesOf(c.Sizes) {
		r.size = size
		s := &rfc2544{run: r, out: RFC2544Result{Size: size, Ceiling: o.SelfTest.At(size)}}
		before := r.res.Trials
		err := s.all(ctx, c)
		s.out.Trials = r.res.Trials - before
		s.out.Warnings = append(s.out.Warnings, r.unchecked()...)
		r.res.RFC2544 = append(r.res.RFC2544, s.out)
		if err != nil {
			return r.end(err)
		}
	}
	return r.end(nil)
}

type rfc2544 struct {
	*run
	out RFC2544Result
	why Limited // what limits out.Max
}

func (s *rfc2544) all(ctx context.Context, c *RFC2544) (err error) {
	if s.out.Max, s.why, err = s.top(ctx, c.Throughput.Duration); err != nil {
		return err
	}
	if s.out.Throughput, err = s.throughput(ctx, c.Throughput, s.out.Max, s.why, "throughput"); err != nil {
		return err
	}
	var fps float64
	if r := s.out.Throughput.Rate; r != nil {
		fps = r.FPS
		if w := s.near("the throughput", fps); w != "" {
			s.out.Warnings = append(s.out.Warnings, w)
		}
	}
	s.lower, s.upper = 0, 0
	if c.Latency != nil && fps > 0 {
		if err := s.latency(ctx, c.Latency, fps); err != nil {
			return err
		}
	}
	if c.LossRate != nil {
		if err := s.lossRate(ctx, c.LossRate); err != nil {
			return err
		}
	}
	if c.BackToBack != nil {
		if err := s.backToBack(ctx, c.BackToBack, fps); err != nil {
			return err
		}
	}
	if c.Recovery != nil && fps > 0 {
		return s.recovery(ctx, c.Recovery, fps)
	}
	return nil
}

// passes makes the trial at l until one is within loss, up to verify times more.
func (r *run) passes(ctx context.Context, phase string, l trial.Load, loss float64, verify int) (ok, valid bool, err error) {
	for range verify + 1 {
		o, err := r.try(ctx, phase, l)
		if err != nil || o.Invalid != "" {
			return false, false, err
		}
		if o.LossRatio() <= loss {
			return true, true, nil
		}
	}
	return false, true, nil
}

// throughput is the binary search: rates are whole multiples of the resolution, the highest is tried first. What it
// promises is what it measured: Rate passed, Upper failed, and they stand one resolution apart. Between and below them
// loss may do what it likes.
func (r *run) throughput(ctx context.Context, c ThroughputTest, highest float64, why Limited, phase string) (*Throughput, error) {
	n := int(math.Ceil(1 / c.Resolution))
	out := &Throughput{Resolution: highest / float64(n), Loss: c.Loss, Limited: LimitedByDUT}
	at := func(i int) float64 { return highest * float64(i) / float64(n) }
	lo, hi, dead := 0, n+1, false // dead: the generator could not offer hi
	done := func(err error) (*Throughput, error) {
		if lo > 0 {
			out.Rate = rateAt(at(lo), r.bytes())
		}
		switch {
		case hi > n:
			out.Limited = why
		case dead:
			out.Limited = LimitedByGenerator
		default:
			out.Upper = rateAt(at(hi), r.bytes())
			if lo == 0 {
				out.Limited = LimitedByMin
			}
		}
		return out, err
	}
	for next := n; hi-lo > 1; next = (lo + hi) / 2 {
		r.lower, r.upper = at(lo), 0
		if hi <= n {
			r.upper = at(hi)
		}
		ok, valid, err := r.passes(ctx, phase, trial.Load{Rate: at(next), Size: r.size, Duration: c.Duration}, c.Loss, c.Verify)
		if err != nil {
			return done(err)
		}
		if ok {
			lo = next
		} else {
			hi, dead = next, !valid
		}
	}
	return done(nil)
}

func (s *rfc2544) latency(ctx context.Context, c *LatencyTest, fps float64) error {
	for _, part := range c.Parts {
		p := LatencyPoint{Part: part, Rate: s.rate(fps * part)}
		phase := fmt.Sprintf("latency %.0f %%", part*100)
		var hs []*hdrhistogram.Histogram
		var sent, lost uint64
		var err error
		for range c.Repeats {
			var o *trial.Outcome
			if o, err = s.try(ctx, phase, trial.Load{Rate: fps * part, Size: s.size, Duration: c.Duration}); err != nil {
				break
			}
			if o.Invalid != "" {
				p.Invalid = o.Invalid
				continue
			}
			hs = append(hs, o.Latency)
			sent, lost = sent+o.Sent, lost+o.Lost
		}
		if sent > 0 {
			p.Loss = float64(lost) / float64(sent)
		}
		p.runs(hs)
		if p.Latency != nil && len(p.Means) < c.Repeats && p.Invalid != "" {
			p.Invalid = fmt.Sprintf("%d of %d repetitions are missing: %s", c.Repeats-len(p.Means), c.Repeats, p.Invalid)
		}
		if len(hs) > 0 || p.Invalid != "" {
			s.out.Latency = append(s.out.Latency, p)
		}
		if err != nil {
			return err
		}
		if c := s.out.Ceiling; c != nil && c.Floor != nil && p.Latency != nil && part == 0.5 && 2*c.Floor.P50 > p.Latency.P50 {
			s.out.Warnings = append(s.out.Warnings, fmt.Sprintf("the median latency at 50 %%, %d ns, is near that of the generator alone, %d ns", p.Latency.P50, c.Floor.P50))
		}
	}
	return nil
}

func (s *rfc2544) lossRate(ctx context.Context, c *LossRateTest) error {
	n := int(math.Round(1 / c.Step))
	for i, clean := 0, 0; i < n && clean < 2; i++ {
		part := 1 - float64(i)*c.Step
		if part <= 1e-9 {
			break
		}
		o, err := s.try(ctx, fmt.Sprintf("frame loss at %.0f %%", part*100), trial.Load{Rate: s.out.Max * part, Size: s.size, Duration: c.Duration})
		if err != nil {
			return err
		}
		p := LossPoint{Part: part, Rate: s.rate(s.out.Max * part), Invalid: o.Invalid}
		switch {
		case o.Invalid != "":
		case o.Lost == 0:
			clean++
		default:
			p.Loss, clean = o.LossRatio(), 0
		}
		s.out.LossRate = append(s.out.LossRate, p)
	}
	return nil
}

// backToBack looks for the longest burst without loss, each time from scratch: lengths double until one fails, then halve.
func (s *rfc2544) backToBack(ctx context.Context, c *BackToBackTest, throughput float64) error {
	b := &BackToBack{Rate: s.rate(s.out.Max)}
	s.out.BackToBack = b
	if s.why == LimitedByGenerator {
		b.Invalid = "the generator cannot send bursts at the line rate"
		return nil
	}
	if throughput >= s.out.Max {
		b.AtLeast, b.Invalid = true, "the throughput is the highest rate, so that buffers are not filled (RFC 9004, section 6.1)"
		return nil
	}
	longest := max(uint64(s.out.Max*c.Longest.Seconds()), 1)
	defer func() { b.sum(s.out.Max, throughput) }()
	for range c.Repeats {
		lo, hi := uint64(0), longest+1
		for next := min(uint64(16), longest); ; {
			s.lower, s.upper = float64(lo), float64(hi)
			l := trial.Load{Rate: s.out.Max, Size: s.size, Frames: next, Duration: time.Duration(float64(next)/s.out.Max*2e9) + 10*time.Millisecond}
			ok, valid, err := s.passes(ctx, "back-to-back", l, 0, c.Verify)
			if err != nil {
				return err
			}
			if !valid {
				b.Invalid = fmt.Sprintf("a burst of %d frames could not be sent", next)
				return nil
			}
			if ok {
				lo = next
			} else {
				hi = next
			}
			if hi-lo <= 1 || float64(hi-lo) <= c.Resolution*float64(lo) {
				break
			}
			if hi > longest {
				next = min(lo*2, longest)
			} else {
				next = lo + (hi-lo)/2
			}
		}
		b.AtLeast = b.AtLeast || lo == longest
		b.Runs = append(b.Runs, lo)
	}
	return nil
}

// sum makes the calculations of RFC 9004, section 6.4.
func (b *BackToBack) sum(line, throughput float64) {
	if len(b.Runs) == 0 {
		return
	}
	b.Min, b.Max = b.Runs[0], b.Runs[0]
	var sum, squares float64
	for _, n := range b.Runs {
		b.Min, b.Max, sum = min(b.Min, n), max(b.Max, n), sum+float64(n)
	}
	b.Mean = sum / float64(len(b.Runs))
	for _, n := range b.Runs {
		squares += (float64(n) - b.Mean) * (float64(n) - b.Mean)
	}
	if len(b.Runs) > 1 {
		b.StdDev = math.Sqrt(squares / float64(len(b.Runs)-1))
	}
	implied := b.Mean / line * 1e9
	b.Implied = time.Duration(implied)
	b.Corrected = time.Duration(implied - implied*throughput/line)
}

func (s *rfc2544) recovery(ctx context.Context, c *RecoveryTest, fps float64) error {
	over := math.Min(fps*c.Over, s.out.Max)
	y := &RecoveryResult{Over: s.rate(over), Under: s.rate(over * c.Under)}
	s.out.Recovery = y
	bed, ok := s.bed.(Recoverer)
	switch {
	case !ok && s.live:
		y.Invalid = "this bed cannot change its load within a trial"
		return nil
	case over <= fps:
		y.Invalid = "the throughput is the highest rate: there is no overload"
		return nil
	}
	first := trial.Load{Rate: over, Size: s.size, Duration: c.Duration}
	second := trial.Load{Rate: over * c.Under, Size: s.size, Duration: c.Watch}
	for range c.Repeats {
		var e *Entry
		for attempt := 0; ; attempt++ {
			var err error
			e, err = s.entry(ctx, "recovery", first, attempt, func() (*Entry, error) {
				if bed == nil {
					return nil, fmt.Errorf("search: the bed cannot make trials of recovery, of which the journal has some")
				}
				o, rec, err := bed.Recover(ctx, first, second)
				if err != nil {
					return nil, err
				}
				return &Entry{Outcome: o, Recovery: rec}, nil
			})
			if err != nil {
				return err
			}
			if e.Recovery == nil {
				return fmt.Errorf("%w: a trial of recovery has no recovery", ErrJournal)
			}
			if e.Outcome.Invalid == "" || attempt >= s.o.Retries {
				break
			}
		}
		if e.Outcome.Invalid != "" {
			y.Invalid = e.Outcome.Invalid
			return nil
		}
		if !e.Recovery.Stopped {
			y.Invalid = fmt.Sprintf("the loss did not stop within %v", c.Watch)
		}
		y.Runs = append(y.Runs, e.Recovery.Time)
		y.Worst = max(y.Worst, e.Recovery.Time)
		y.Mean = 0
		for _, d := range y.Runs {
			y.Mean += d / time.Duration(len(y.Runs))
		}
	}
	return nil
}

// Estimate: the throughput takes one trial to as many as its resolution has bits; bursts are as short as their buffers.
func (c *RFC2544) Estimate(bed trial.Bed, o Options) (Estimate, error) {
	var e Estimate
	if err := c.check(); err != nil {
		return e, err
	}
	for _, size := range sizesOf(c.Sizes) {
		fps, _ := top(bed, size, o)
		if fps == 0 {
			fps = 1e8
			e.add(1, 1, c.Throughput.Duration, o.Gap)
		}
		e.add(1, (2+bits(int(math.Ceil(1/c.Throughput.Resolution))))*(1+c.Throughput.Verify), c.Throughput.Duration, o.Gap)
		if l := c.Latency; l != nil {
			n := len(l.Parts) * l.Repeats
			e.add(0, n, l.Duration, o.Gap) // none where even the lowest rate fails
		}
		if f := c.LossRate; f != nil {
			n := int(math.Round(1 / f.Step))
			e.add(min(2, n), n, f.Duration, o.Gap)
		}
		if b := c.BackToBack; b != nil {
			frames := math.Max(fps*b.Longest.Seconds(), 1)
			n := 2 + 2*int(math.Ceil(math.Log2(frames)))
			e.add(0, b.Repeats*n, 0, o.Gap)
			// doubling up to the longest takes as long as that twice, each halving about as long again
			halvings := math.Log2(math.Max(1/math.Max(b.Resolution, 1/frames), 2))
			e.High += time.Duration(float64(b.Repeats*(1+b.Verify)) * (2 + halvings) * float64(b.Longest))
		}
		if y := c.Recovery; y != nil {
			e.add(0, y.Repeats, y.Duration+y.Watch, o.Gap)
		}
	}
	return e, nil
}
