package search_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"millrace/bench/search"
	"millrace/bench/search/sim"
	"millrace/bench/trial"
)

func TestSizes(t *testing.T) {
	for mtu, want := range map[int]int{1500: 7, 1499: 6, 9000: 8, 8982: 8, 8981: 7, 100: 1, 20: 0} {
		if got := search.SizesFor(mtu); len(got) != want {
			t.Errorf("MTU %d: %v", mtu, got)
		}
	}
	if len(search.StandardSizes) != 7 {
		t.Error("the standard sizes were overwritten")
	}
}

// TestThroughput: the binary search finds the known capacity within its resolution, at all sizes.
func TestThroughput(t *testing.T) {
	c := &search.RFC2544{Sizes: search.SizesFor(9000), Throughput: search.ThroughputTest{Duration: 60 * time.Second, Resolution: 0.002}}
	for seed := range seeds(t) / 5 {
		r := rand.New(rand.NewPCG(seed, 3))
		d := &sim.DUT{Seed: seed, Wire: tenGig, Capacity: 30e6 * r.Float64(), Bits: 1e9 + 20e9*r.Float64()}
		c.Throughput.Loss = []float64{0, 0.001}[seed%2]
		est, err := c.Estimate(d, search.Options{})
		if err != nil {
			t.Fatal(err)
		}
		res, err := c.Run(context.Background(), d, search.Options{})
		if err != nil || len(res.RFC2544) != len(c.Sizes) {
			t.Fatal(err, res)
		}
		if res.Spent < est.Low || res.Spent > est.High {
			t.Errorf("seed %d: %v, the estimate was %v to %v", seed, res.Spent, est.Low, est.High)
		}
		for _, s := range res.RFC2544 {
			p, want := s.Throughput, d.Limit(s.Size)/(1-c.Throughput.Loss)
			if s.Max != d.Line(s.Size) {
				t.Errorf("%d bytes: highest rate %v", s.Size, s.Max)
			}
			switch {
			case want >= s.Max:
				if p.Upper != nil || p.Limited != search.LimitedByLine || p.Rate.FPS != s.Max || math.Abs(p.Rate.L1-tenGig) > 1 {
					t.Errorf("seed %d, %d bytes, line rate: %+v", seed, s.Size, p)
				}
			case want < p.Resolution:
				if p.Rate != nil || p.Limited != search.LimitedByMin {
					t.Errorf("seed %d, %d bytes, none passes: %+v", seed, s.Size, p)
				}
			case p.Rate.FPS > want+1 || p.Upper.FPS < want-1 || p.Upper.FPS-p.Rate.FPS > p.Resolution*1.0001 || p.Limited != search.LimitedByDUT:
				t.Errorf("seed %d, %d bytes: %v to %v, want %v", seed, s.Size, p.Rate, p.Upper, want)
			}
		}
	}
}

// TestThroughputNonMonotonic: what a binary search measured is true of the thing under test: Rate passes and Upper, one
// resolution above, fails. Loss verification keeps a rate that one lossy trial in ten would have cost.
func TestThroughputNonMonotonic(t *testing.T) {
	lowered := [2]int{}
	for seed := range seeds(t) {
		r := rand.New(rand.NewPCG(seed, 4))
		d := &sim.DUT{Seed: seed, Wire: tenGig, Capacity: 5e6 + 20e6*r.Float64()}
		for range 3 {
			from := d.Capacity * r.Float64()
			d.Windows = append(d.Windows, sim.Window{From: from, To: from * 1.2, Loss: 0.01})
		}
		c := &search.RFC2544{Sizes: []int{64}, Throughput: search.ThroughputTest{Duration: time.Second, Resolution: 0.005}}
		res, err := c.Run(context.Background(), d, search.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := res.RFC2544[0].Throughput
		if d.Ratio(p.Rate.FPS, 64, time.Second) != 0 || d.Ratio(p.Upper.FPS, 64, time.Second) == 0 || p.Upper.FPS-p.Rate.FPS > p.Resolution*1.0001 {
			t.Errorf("seed %d: %+v", seed, p)
		}
		for i, verify := range []int{0, 3} {
			d := &sim.DUT{Seed: seed, Wire: tenGig, Capacity: d.Capacity, Spikes: 0.1, SpikeLoss: 0.01}
			c.Throughput.Verify = verify
			res, err := c.Run(context.Background(), d, search.Options{})
			if err != nil {
				t.Fatal(err)
			}
			if got := res.RFC2544[0].Throughput.Rate; got == nil || got.FPS < d.Capacity-2*p.Resolution {
				lowered[i]++
			}
		}
	}
	t.Logf("spikes lower the result in %d of %d searches, with verification in %d", lowered[0], seeds(t), lowered[1])
	if lowered[0] < int(seeds(t))/10 || lowered[1] > int(seeds(t))/100 {
		t.Error(lowered)
	}
}

func quick(t *testing.T, d trial.Bed, c *search.RFC2544, o search.Options) *search.RFC2544Result {
	t.Helper()
	res, err := c.Run(context.Background(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	return &res.RFC2544[0]
}

// TestAll2544: all tests on a bed where the answer to each is known.
func TestAll2544(t *testing.T) {
	d := &sim.DUT{Wire: tenGig, Capacity: 12e6, Buffer: 3000, Delay: 20 * time.Microsecond, Settle: 5 * time.Millisecond}
	line := d.Line(64)
	c := search.QuickRFC2544([]int{64})
	c.BackToBack.Resolution = 0
	r := quick(t, d, c, search.Options{})

	fps := r.Throughput.Rate.FPS
	// a buffer of 3000 takes as many frames more in a trial of a second
	if want := 12e6 + 3000; fps > want || fps < want-r.Throughput.Resolution {
		t.Errorf("throughput %v", fps)
	}
	if len(r.Latency) != 4 {
		t.Fatalf("latency %+v", r.Latency)
	}
	for i, p := range r.Latency {
		l := p.Latency
		if p.Part != c.Latency.Parts[i] || len(p.Means) != 3 || l.N != 600 || p.Loss != 0 || p.Invalid != "" ||
			l.Min < 19900 || l.PDV != l.P999-l.Min || p.TL.N != 3 || p.WCL.Median < p.TL.Median || p.PDV.Median <= 0 {
			t.Errorf("latency: %+v", p)
		}
		if i > 0 && p.Mean >= r.Latency[i-1].Mean {
			t.Errorf("latency at %v is %v, at %v %v", p.Part, p.Mean, r.Latency[i-1].Part, r.Latency[i-1].Mean)
		}
	}
	// 100 % to 50 % of 29.76 Mpps lose, 40 % and 30 % do not
	if n := len(r.LossRate); n != 8 {
		t.Errorf("frame loss rate: %d points: %+v", n, r.LossRate)
	}
	for _, p := range r.LossRate {
		if want := d.Ratio(p.Rate.FPS, 64, time.Second); math.Abs(p.Loss-want) > 1e-6 {
			t.Errorf("loss at %v: %v, want %v", p.Part, p.Loss, want)
		}
	}
	// n frames at line rate fill the buffer by n(1 - capacity/line); half a frame is lost in counting
	want := 3000 / (1 - 12e6/line)
	if b := r.BackToBack; math.Abs(b.Mean-want) > 2 || b.Min != b.Max || b.StdDev != 0 || b.AtLeast || len(b.Runs) != 5 || b.Rate.FPS != line {
		t.Errorf("back to back %+v, want %v", b, want)
	} else {
		implied := b.Mean / line
		if math.Abs(b.Implied.Seconds()-implied) > 1e-8 || math.Abs(b.Corrected.Seconds()-implied*(1-fps/line)) > 1e-8 {
			t.Errorf("buffer times %v %v", b.Implied, b.Corrected)
		}
		// which is what the buffer is: 3000 frames at the line rate
		if buffer := 3000 / line; math.Abs(b.Corrected.Seconds()/buffer-1) > 0.01 {
			t.Errorf("corrected buffer time %v, want %v", b.Corrected, buffer)
		}
	}
	over := fps * 1.1
	if y := r.Recovery; y.Invalid != "" || len(y.Runs) != 1 || math.Abs(y.Over.FPS/over-1) > 1e-9 || math.Abs(y.Under.FPS/over-0.5) > 1e-9 ||
		math.Abs(y.Mean.Seconds()-(0.005+3000/(12e6-over/2))) > 1e-6 || y.Worst != y.Mean {
		t.Errorf("recovery %+v", y)
	}
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "self-test") {
		t.Errorf("warnings %q", r.Warnings)
	}

	// line rate: nothing can be overloaded, and no buffer filled
	r = quick(t, &sim.DUT{Wire: tenGig}, c, search.Options{})
	if !r.BackToBack.AtLeast || r.BackToBack.Invalid == "" || len(r.BackToBack.Runs) > 0 || r.Recovery.Invalid == "" || len(r.LossRate) != 2 {
		t.Errorf("line rate: %+v %+v %+v", r.BackToBack, r.Recovery, r.LossRate)
	}
	// nothing passes: no latency, no recovery, and no crash
	r = quick(t, &sim.DUT{Wire: tenGig, Constant: 0.1, Capacity: 20e6}, c, search.Options{})
	if r.Throughput.Rate != nil || r.Latency != nil || r.Recovery != nil || len(r.LossRate) != 10 || r.BackToBack.Mean > 16 {
		t.Errorf("constant loss: %+v", r)
	}
	// it never recovers
	r = quick(t, &sim.DUT{Wire: tenGig, Capacity: 10e6, Settle: time.Hour}, c, search.Options{})
	if r.Recovery.Invalid == "" || r.Recovery.Worst != c.Recovery.Watch {
		t.Errorf("no recovery: %+v", r.Recovery)
	}
	// a bed that cannot change its load
	r = quick(t, struct{ trial.Bed }{&sim.DUT{Wire: tenGig, Capacity: 10e6}}, c, search.Options{})
	if r.Recovery.Invalid == "" || r.Recovery.Runs != nil {
		t.Errorf("recovery on a plain bed: %+v", r.Recovery)
	}
}

// TestSelfTest: the ceiling is found, searches do not go above it, results near it are flagged, and a generator that
// fails its self-test leaves no result without a warning.
func TestSelfTest(t *testing.T) {
	sizes := []int{64, 1518}
	self := func(d *sim.DUT) *search.Result {
		res, err := (&search.SelfTest{Sizes: sizes}).Run(context.Background(), d, search.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return res
	}
	st := self(&sim.DUT{Label: "loop", Wire: tenGig, Generator: 10e6, Delay: 3 * time.Microsecond}).SelfTest
	c := st.At(64)
	if c == nil || c.Rate.FPS > 10e6 || c.Rate.FPS < 9.7e6 || c.Full || c.Floor == nil || c.Floor.P50 < 3000 || st.At(65) != nil {
		t.Fatalf("%+v", c)
	}
	if big := st.At(1518); !big.Full || big.Rate.FPS != big.Line {
		t.Errorf("%+v", big)
	}
	for _, c := range []struct {
		capacity float64
		limited  search.Limited
		near     bool
	}{{5e6, search.LimitedByDUT, false}, {9.6e6, search.LimitedByDUT, true}, {20e6, search.LimitedByGenerator, true}} {
		d := &sim.DUT{Wire: tenGig, Capacity: c.capacity, Generator: 10e6, Delay: 5 * time.Microsecond}
		o := search.Options{SelfTest: st}
		g := mlr(t, d, o).Goals[0]
		r := quick(t, d, search.QuickRFC2544([]int{64}), o)
		if g.Limited != c.limited || len(g.Warnings) > 0 != c.near || r.Throughput.Limited != c.limited ||
			slices.ContainsFunc(r.Warnings, func(s string) bool { return strings.Contains(s, "ceiling") || strings.Contains(s, "generator's limit") }) != c.near {
			t.Errorf("capacity %v: %+v, %+v %q", c.capacity, g, r.Throughput, r.Warnings)
		}
		if r.Max != st.At(64).Rate.FPS {
			t.Errorf("the highest rate is %v, above the ceiling %v", r.Max, st.At(64).Rate.FPS)
		}
		if r.Ceiling == nil || r.BackToBack.Invalid == "" {
			t.Errorf("bursts at the line rate of a generator that cannot: %+v", r.BackToBack)
		}
		if !slices.ContainsFunc(r.Warnings, func(s string) bool { return strings.Contains(s, "generator alone") }) {
			t.Errorf("no warning of a latency near the generator's own: %q", r.Warnings)
		}
		for _, p := range append(r.LossRate, search.LossPoint{}) {
			if p.Rate.FPS > c.capacity*1.001 && p.Loss == 0 && p.Invalid == "" && p.Rate.FPS > 9.9e6 {
				t.Errorf("offered %v", p.Rate.FPS)
			}
		}
	}
	broken := self(&sim.DUT{Wire: tenGig, Constant: 0.01})
	if len(broken.Warnings) != len(sizes) || broken.SelfTest.At(64).Rate.FPS != 0 {
		t.Errorf("%+v", broken)
	}
	r := mlr(t, &sim.DUT{Wire: tenGig, Capacity: 5e6}, search.Options{SelfTest: broken.SelfTest})
	if len(r.Warnings) != 1 || !strings.Contains(r.Warnings[0], "self-test failed") {
		t.Errorf("%q", r.Warnings)
	}
}

// TestFallsShort: beds whose outcomes cannot be right never make a number.
func TestFallsShort(t *testing.T) {
	c := &search.RFC2544{Sizes: []int{64}, Throughput: search.ThroughputTest{Duration: time.Second, Resolution: 0.01}}
	for name, bend := range map[string]func(*trial.Outcome){
		"slow":         func(o *trial.Outcome) { o.Elapsed = o.Elapsed * 11 / 10 },
		"fast":         func(o *trial.Outcome) { o.Elapsed = o.Elapsed * 9 / 10 },
		"short":        func(o *trial.Outcome) { o.Sent, o.Received, o.Elapsed = o.Sent/2, o.Received/2, o.Elapsed/2 },
		"sent nothing": func(o *trial.Outcome) { o.Sent, o.Received, o.Lost = 0, 0, 0 },
		"sums":         func(o *trial.Outcome) { o.Received++ },
	} {
		res, err := c.Run(context.Background(), &bent{DUT: &sim.DUT{Wire: tenGig}, bend: bend}, search.Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := res.RFC2544[0].Throughput
		if p.Rate != nil || p.Upper != nil || p.Limited != search.LimitedByGenerator || res.Invalid != res.Trials || res.Invalid%4 != 0 {
			t.Errorf("%s: %+v %+v", name, res, p)
		}
	}
	_, err := c.Run(context.Background(), &bent{DUT: &sim.DUT{}, bend: func(o *trial.Outcome) { o.Sent, o.Received, o.Lost = 0, 0, 0 }}, search.Options{})
	if err == nil {
		t.Error("no highest rate, and no error")
	}
}

type bent struct {
	*sim.DUT
	bend func(*trial.Outcome)
}

func (b *bent) Try(ctx context.Context, l trial.Load) (*trial.Outcome, error) {
	o, err := b.DUT.Try(ctx, l)
	b.bend(o)
	return o, err
}

func TestSoak(t *testing.T) {
	run := func(c *search.Soak, d *sim.DUT) *search.SoakResult {
		t.Helper()
		res, err := c.Run(context.Background(), d, search.Options{})
		if err != nil {
			t.Fatal(err)
		}
		est, _ := c.Estimate(d, search.Options{})
		if res.Spent < est.Low || res.Spent > est.High {
			t.Errorf("took %v, estimate %+v", res.Spent, est)
		}
		return res.Soak
	}
	c := &search.Soak{Size: 64, Rate: 5e6, Interval: 10 * time.Second, Total: 995 * time.Second}
	d := &sim.DUT{Wire: tenGig, Capacity: 6e6, Spikes: 0.1, SpikeLoss: 0.001, Delay: 10 * time.Microsecond, Seed: 5}
	s := run(c, d)
	lossy, first, last := 0, -1, -1
	var lost uint64
	for i, x := range s.Intervals {
		if x.Lost > 0 {
			lossy, last, lost = lossy+1, i, lost+x.Lost
			if first < 0 {
				first = i
			}
		}
		if x.At != time.Duration(i)*c.Interval || x.Sent != 50e6 || x.Latency == nil {
			t.Errorf("%+v", x)
		}
	}
	if len(s.Intervals) != 100 || lossy < 3 || s.Lossy != lossy || s.First != first || s.Last != last || s.Lost != lost ||
		s.Loss.Median != 0 || s.Loss.Max != 0.001 || s.Loss.N != 100 || math.Abs(s.LossRatio-float64(lossy)*1e-5) > 1e-9 || s.Latency.N != 20_000 {
		t.Errorf("%+v", s)
	}
	c.StopAtLoss = true
	d.Made = 0
	if s := run(c, d); !s.Stopped || len(s.Intervals) != first+1 || s.Lossy != 1 {
		t.Errorf("%+v", s)
	}
	c.StopAtLoss = false
	s = run(c, &sim.DUT{Wire: tenGig, Flaky: 0.2, Seed: 1})
	if s.Invalid < 5 || s.First != -1 || s.Last != -1 || s.Loss.N != 100-s.Invalid || len(s.Warnings) != 2 {
		t.Errorf("%+v", s)
	}
	for _, bad := range []search.Soak{{Rate: 1e9, Interval: 1, Total: 1}, {Interval: 1, Total: 1}, {Rate: 1, Total: 1}, {Rate: 1, Interval: 2, Total: 1}} {
		if _, err := bad.Run(context.Background(), d, search.Options{}); err == nil {
			t.Errorf("no error for %+v", bad)
		}
	}
}

// TestResumeAll cuts the other searches off at every trial and goes on, at some with the journal in a file.
func TestResumeAll(t *testing.T) {
	dut := func() *sim.DUT {
		return &sim.DUT{Seed: 3, Wire: tenGig, Capacity: 12e6, Buffer: 500, Noise: 0.01, Flaky: 0.05, Delay: 10000, Settle: time.Millisecond}
	}
	q := search.QuickRFC2544([]int{512, 64})
	q.BackToBack.Repeats = 2
	for _, c := range []search.Search{q, &search.SelfTest{Sizes: []int{64, 128}},
		&search.Soak{Size: 64, Rate: 11.9e6, Interval: time.Second, Total: 20 * time.Second}} {
		want, err := c.Run(context.Background(), dut(), search.Options{})
		if err != nil {
			t.Fatal(err)
		}
		step := 1
		if testing.Short() {
			step = 7
		}
		for cut := 0; cut < want.Trials; cut += step {
			path := fmt.Sprintf("%s/%s-%d", t.TempDir(), c.Name(), cut)
			memory := &search.Memory{}
			run := func(ctx context.Context, made int, p func(search.Event)) (*search.Result, error) {
				var j search.Journal = memory
				memory.Rewind()
				if cut%29 == 0 {
					f, err := search.OpenFile(path)
					if err != nil {
						t.Fatal(err)
					}
					defer f.Close()
					j = f
				}
				d := dut()
				d.Made = made

				return c.Run(ctx, d, search.Options{Journal: j, Progress: p})
			}
			ctx, cancel := context.WithCancel(context.Background())
			part, err := run(ctx, 0, func(e search.Event) {
				if e.Outcome == nil && e.Trials == cut {
					cancel()
				}
			})
			cancel()
			if !errors.Is(err, context.Canceled) || part.Trials != cut {
				t.Fatalf("%s cut at %d: %v, %d trials", c.Name(), cut, err, part.Trials)
			}
			replayed := 0
			got, err := run(context.Background(), cut, func(e search.Event) {
				if e.Outcome != nil && e.Replayed {
					replayed++
				}
			})
			if err != nil || replayed != cut {
				t.Fatalf("%s cut at %d: %v, %d replayed", c.Name(), cut, err, replayed)
			}
			if s := got.Soak; s != nil { // the clock began anew
				for i := range s.Intervals {
					s.Intervals[i].Start = want.Soak.Intervals[i].Start
				}
			}
			if a, b := js(t, got), js(t, want); a != b {
				t.Fatalf("%s cut at %d:\n%s\nuninterrupted:\n%s", c.Name(), cut, a, b)
			}
		}
	}
}

func TestBad2544(t *testing.T) {
	for i, bad := range []func(*search.RFC2544){
		func(c *search.RFC2544) { c.Throughput.Duration = 0 }, func(c *search.RFC2544) { c.Throughput.Loss = 1 },
		func(c *search.RFC2544) { c.Throughput.Resolution = math.NaN() }, func(c *search.RFC2544) { c.Latency.Repeats = 0 },
		func(c *search.RFC2544) { c.Latency.Parts = []float64{1.1} }, func(c *search.RFC2544) { c.LossRate.Step = 0 },
		func(c *search.RFC2544) { c.BackToBack.Longest = 0 }, func(c *search.RFC2544) { c.Recovery.Under = 2 },
	} {
		c := search.QuickRFC2544(nil)
		bad(c)
		if res, err := c.Run(context.Background(), &sim.DUT{Wire: tenGig}, search.Options{}); err == nil || res != nil {
			t.Errorf("%d: no error for %+v", i, c)
		}
	}
	// what grows inside is not offered above the line rate of the larger side
	d := &sim.DUT{Wire: tenGig}
	if r := quick(t, d, &search.RFC2544{Sizes: []int{64}, Throughput: search.ThroughputTest{Duration: time.Second, Resolution: 0.01}}, search.Options{Growth: 20}); r.Max != d.Line(84) {
		t.Errorf("highest rate %v, want %v", r.Max, d.Line(84))
	}
}
