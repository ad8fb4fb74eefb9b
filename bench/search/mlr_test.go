package search_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"millrace/bench/search"
	"millrace/bench/search/sim"
)

// seeds of the searches on a simulated bed.
func seeds(t *testing.T) uint64 {
	if testing.Short() {
		return 100
	}
	return 1000
}

var tenGig = 2 * 10e9 // two directions

func mlr(t *testing.T, d *sim.DUT, o search.Options, goals ...search.Goal) *search.MLRResult {
	t.Helper()
	res, err := (&search.MLR{Sizes: []int{64}, Goals: goals}).Run(context.Background(), d, o)
	if err != nil {
		t.Fatal(err)
	}
	return &res.MLR[0]
}

// capacity spreads the seeds' capacities evenly on a logarithmic scale, from a thousandth of the line rate to all of it.
func capacity(d *sim.DUT, seed uint64) float64 {
	r := rand.New(rand.NewPCG(seed, 7))
	return d.Line(64) * math.Exp(-r.Float64()*math.Log(1000))
}

// TestKnownThroughput: with a hard edge, NDR and PDR are known to the frame, and both bounds have to hold.
func TestKnownThroughput(t *testing.T) {
	var trials, most int
	for seed := range seeds(t) {
		d := &sim.DUT{Seed: seed, Wire: tenGig}
		d.Capacity = capacity(d, seed)
		est, err := (&search.MLR{Sizes: []int{64}}).Estimate(d, search.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r := mlr(t, d, search.Options{})
		if d.Clock < est.Low-time.Second || d.Clock > est.High {
			t.Errorf("seed %d: took %v, the estimate was %v to %v", seed, d.Clock, est.Low, est.High)
		}
		trials += r.Trials
		most = max(most, r.Trials)
		for _, g := range r.Goals {
			if d.Capacity/(1-g.Goal.LossRatio) > d.Line(64) {
				if g.Regular || g.Upper != nil || g.Limited != search.LimitedByLine || g.Lower.FPS != d.Line(64) {
					t.Errorf("seed %d: %s at line rate: %+v", seed, g.Goal.Name, g)
				}
				continue
			}
			if !g.Regular || g.Lower == nil || g.Upper == nil || g.Limited != search.LimitedByDUT {
				t.Fatalf("seed %d: %s is not regular: %+v", seed, g.Goal.Name, g)
			}
			edge := d.Capacity / (1 - g.Goal.LossRatio)
			// half a frame a trial is lost in counting
			slack := 1 + 1/edge
			if g.Lower.FPS > edge*slack || g.Upper.FPS < edge/slack {
				t.Errorf("seed %d: %s is %.3f to %.3f, but is %.3f", seed, g.Goal.Name, g.Lower.FPS, g.Upper.FPS, edge)
			}
			if w := 1 - g.Lower.FPS/g.Upper.FPS; w > g.Goal.Width+1e-12 {
				t.Errorf("seed %d: %s: width %v", seed, g.Goal.Name, w)
			}
			if c := g.Conditional.FPS; c > g.Lower.FPS || c < g.Lower.FPS*(1-g.Goal.LossRatio)*(1-1e-12) {
				t.Errorf("seed %d: %s: conditional throughput %v at %v", seed, g.Goal.Name, c, g.Lower.FPS)
			}
		}
	}
	t.Logf("%.1f trials on average, at most %d", float64(trials)/float64(seeds(t)), most)
	if most > 200 {
		t.Errorf("a search took %d trials", most)
	}
}

// exceeds is the probability that a trial of a second at rate loses more than loss, by the model.
func exceeds(d *sim.DUT, rate, loss float64) float64 {
	mean := d.Ratio(rate, 64, time.Second) * rate
	if loss == 0 {
		return 1 - math.Exp(-mean)
	}
	return 0.5 * math.Erfc((loss*rate-mean)/math.Sqrt(2*mean))
}

// TestSoft: an S-curve, where trials near the bound are a matter of chance. With an exceed ratio of a half, of 21 trials, a
// load whose trials exceed the loss with probability 0.9 is a lower bound once in 100,000 times.
func TestSoft(t *testing.T) {
	n := seeds(t)
	var low, high [2]float64
	for seed := range n {
		d := &sim.DUT{Seed: seed, Wire: tenGig, Soft: 0.002}
		d.Capacity = d.Line(64) * (0.1 + 0.8*float64(seed)/float64(n))
		r := mlr(t, d, search.Options{})
		for i, g := range r.Goals {
			if !g.Regular {
				t.Fatalf("seed %d: %s: %s", seed, g.Goal.Name, g.Irregular)
			}
			l, u := exceeds(d, g.Lower.FPS, g.Goal.LossRatio), exceeds(d, g.Upper.FPS, g.Goal.LossRatio)
			low[i], high[i] = max(low[i], l), max(high[i], 1-u)
			if l > 0.9 || u < 0.1 {
				t.Errorf("seed %d: %s: trials exceed the loss with probability %.3f at the lower and %.3f at the upper bound", seed, g.Goal.Name, l, u)
			}
		}
	}
	t.Logf("NDR, PDR: lower bounds exceed with probability %.2f at most, upper ones do not with %.2f", low, high)
}

// TestNoise: the capacity differs by half a percent from trial to trial, and some trials have a spike of loss. NDR and PDR
// must still be about the median, which is what an exceed ratio of a half asks for.
func TestNoise(t *testing.T) {
	n := seeds(t)
	var off [2]int
	var worst [2]float64
	for seed := range n {
		d := &sim.DUT{Seed: seed, Wire: tenGig, Noise: 0.005, Spikes: 0.02, SpikeLoss: 0.02, Buffer: 64}
		d.Capacity = capacity(d, seed) * 0.98
		r := mlr(t, d, search.Options{})
		for i, g := range r.Goals {
			if !g.Regular {
				t.Fatalf("seed %d: %s: %s", seed, g.Goal.Name, g.Irregular)
			}
			e := d.Capacity / (1 - g.Goal.LossRatio)
			dist := max(g.Lower.FPS/e-1, 1-g.Upper.FPS/e)
			worst[i] = max(worst[i], dist)
			if dist > 3*d.Noise {
				off[i]++
			}
		}
		if r.Trials > 600 {
			t.Errorf("seed %d took %d trials", seed, r.Trials)
		}
	}
	t.Logf("NDR, PDR further than three deviations from the median: %v of %d; worst %.4f", off, n, worst)
	for i := range off {
		if off[i] > int(n)/100 {
			t.Errorf("goal %d is off in %d of %d", i, off[i], n)
		}
	}
}

// TestNonMonotonic: loss comes, goes and comes again as load grows. What MLRsearch promises then (RFC 9971, "Relevant
// Upper Bound") is that no load that was measured at or below the Relevant Lower Bound failed, and that bounds stand within
// the width: the search may not come back with a load above a failure that it saw.
func TestNonMonotonic(t *testing.T) {
	below, lowered := 0, 0
	n := seeds(t)
	parts := []float64{0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9}
	for seed := range n {
		d := &sim.DUT{Seed: seed, Wire: tenGig}
		r := rand.New(rand.NewPCG(seed, 1))
		d.Capacity = d.Line(64) * (0.3 + 0.6*r.Float64())
		for range 1 + r.IntN(4) {
			from := d.Capacity * (0.2 + 0.75*r.Float64())
			d.Windows = append(d.Windows, sim.Window{From: from, To: from * (1.002 + 0.1*r.Float64()), Loss: 0.001 + 0.05*r.Float64()})
		}
		res := mlr(t, d, search.Options{})
		for i, g := range res.Goals {
			if !g.Regular || 1-g.Lower.FPS/g.Upper.FPS > g.Goal.Width+1e-12 {
				t.Fatalf("seed %d: %s: %+v", seed, g.Goal.Name, g)
			}
			for _, l := range res.Loads {
				if l.Rate <= g.Lower.FPS && l.Class[i] == "upper" {
					t.Errorf("seed %d: %s is %.0f, above a load that failed, %.0f", seed, g.Goal.Name, g.Lower.FPS, l.Rate)
				}
			}
			// both bounds are true of the thing under test, not only of the search's memory
			if p := d.Ratio(g.Lower.FPS, 64, time.Second); p > g.Goal.LossRatio*1.05+1e-9 {
				t.Errorf("seed %d: %s: the loss at the lower bound is %v", seed, g.Goal.Name, p)
			}
			if p := d.Ratio(g.Upper.FPS, 64, time.Second); p <= g.Goal.LossRatio*0.95 {
				t.Errorf("seed %d: %s: the loss at the upper bound is %v", seed, g.Goal.Name, p)
			}
			if g.Upper.FPS < d.Capacity*0.99 {
				below++
			}
		}
		if ndr, pdr := res.Goals[0], res.Goals[1]; ndr.Lower.FPS > pdr.Lower.FPS {
			t.Errorf("seed %d: NDR %v above PDR %v", seed, ndr.Lower.FPS, pdr.Lower.FPS)
		}
		// With parts, the load at each of them passes too.
		whole, err := (&search.MLR{Sizes: []int{64}, Parts: parts}).Run(context.Background(), &sim.DUT{Seed: seed, Wire: tenGig,
			Capacity: d.Capacity, Windows: d.Windows}, search.Options{})
		if err != nil {
			t.Fatal(err)
		}
		ndr := whole.MLR[0].Goals[0]
		if !ndr.Regular || len(whole.MLR[0].Parts) != len(parts) {
			t.Fatalf("seed %d: %+v", seed, ndr)
		}
		for _, p := range whole.MLR[0].Parts {
			if p.Loss > 0 || d.Ratio(p.Rate.FPS, 64, time.Second) > 1e-6 {
				t.Errorf("seed %d: there is loss at %v of the NDR", seed, p.Part)
			}
		}
		if ndr.Lower.FPS < res.Goals[0].Lower.FPS {
			lowered++
		}
	}
	t.Logf("parts lowered the NDR in %d of %d searches", lowered, n)
	if lowered < int(n)/4 {
		t.Error("parts do not find windows")
	}
	t.Logf("a window below the capacity was found in %d of %d results", below, 2*n)
	if below == 0 {
		t.Error("no search met a window: the test tests nothing")
	}
}

// TestParts: loss in a window far below the capacity, which no search for the edge meets, is met by a part, and the result is
// then below the window.
func TestParts(t *testing.T) {
	d := &sim.DUT{Wire: tenGig, Capacity: 10e6, Delay: 20000, Windows: []sim.Window{{From: 4.9e6, To: 5.1e6, Loss: 0.01}}}
	parts := []float64{0.1, 0.5, 0.9}
	res, err := (&search.MLR{Sizes: []int{64}, Parts: parts}).Run(context.Background(), d, search.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := res.MLR[0]
	if g := r.Goals[0]; !g.Regular || g.Lower.FPS > 4.9e6 || g.Upper.FPS < 4.9e6 {
		t.Errorf("NDR %v to %v", g.Lower, g.Upper)
	}
	if len(r.Parts) != 3 {
		t.Fatalf("parts: %+v", r.Parts)
	}
	for i, p := range r.Parts {
		if p.Part != parts[i] || p.Latency == nil || p.Loss != 0 || math.Abs(p.Rate.FPS/r.Goals[0].Lower.FPS-p.Part) > 0.001 {
			t.Errorf("%+v", p)
		}
	}
}

// TestShapes: other curves, with what is known of each.
func TestShapes(t *testing.T) {
	line := (&sim.DUT{Wire: tenGig}).Line(64)
	for _, c := range []struct {
		name     string
		dut      sim.DUT
		ndr, pdr float64 // 0: even the lowest load fails; +Inf: the highest passes
	}{
		{"constant loss", sim.DUT{Capacity: 4e6, Constant: 0.0005}, 0, 4e6 / (1 - 0.0045)},
		{"line rate", sim.DUT{}, math.Inf(1), math.Inf(1)},
		{"stalls", sim.DUT{Capacity: 8e6, Every: 100 * time.Millisecond, Stall: time.Millisecond, Buffer: 1000},
			1e6, 2e6}, // 10 stalls a second lose 10(r/1000 - 1000) of r frames: none at 1e6, 0.5 % at 2e6
		{"dead", sim.DUT{Capacity: 1e-3}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := c.dut
			d.Wire = tenGig
			r := mlr(t, &d, search.Options{})
			for i, want := range []float64{c.ndr, c.pdr} {
				g := r.Goals[i]
				switch {
				case math.IsInf(want, 1):
					if g.Regular || g.Upper != nil || g.Limited != search.LimitedByLine || g.Lower == nil || g.Lower.FPS != line {
						t.Errorf("%s: %+v", g.Goal.Name, g)
					}
				case want == 0:
					if g.Regular || g.Lower != nil || g.Limited != search.LimitedByMin || g.Irregular == "" {
						t.Errorf("%s: %+v", g.Goal.Name, g)
					}
				case !g.Regular || g.Lower.FPS > want*1.0005 || g.Upper.FPS < want/1.0005:
					t.Errorf("%s: %v to %v, want %v", g.Goal.Name, g.Lower, g.Upper, want)
				}
			}
		})
	}
}

// TestGenerator: a generator that falls short never makes a low number.
func TestGenerator(t *testing.T) {
	for seed := range seeds(t) / 5 {
		d := &sim.DUT{Seed: seed, Wire: tenGig, Flaky: 0.1}
		r := rand.New(rand.NewPCG(seed, 2))
		d.Capacity = d.Line(64) * (0.2 + 0.7*r.Float64())
		d.Generator = d.Line(64) * (0.2 + 0.7*r.Float64())
		if math.Abs(d.Generator/d.Capacity-1) < 0.02 {
			continue
		}
		res := mlr(t, d, search.Options{Retries: 8})
		for _, g := range res.Goals {
			switch edge := d.Capacity / (1 - g.Goal.LossRatio); {
			case d.Generator < edge:
				if g.Regular || g.Upper != nil || g.Limited != search.LimitedByGenerator || g.Lower == nil ||
					g.Lower.FPS > d.Generator || g.Lower.FPS < d.Generator*(1-2*g.Goal.Width) {
					t.Errorf("seed %d: %s: generator %.0f, DUT %.0f: %+v", seed, g.Goal.Name, d.Generator, d.Capacity, g)
				}
			case !g.Regular || g.Lower.FPS > edge*1.0001 || g.Upper.FPS < edge/1.0001:
				t.Errorf("seed %d: %s: generator %.0f, DUT %.0f: %+v", seed, g.Goal.Name, d.Generator, d.Capacity, g)
			}
		}
		if len(res.Warnings) == 0 {
			t.Error("no warning without a self-test")
		}
	}
}

// TestResume cuts searches off at every trial, goes on, and must find what an uninterrupted one finds.
func TestResume(t *testing.T) {
	for seed := range uint64(4) {
		dut := func() *sim.DUT {
			return &sim.DUT{Seed: seed, Wire: tenGig, Capacity: 3e6 + 1e6*float64(seed), Noise: 0.003, Flaky: 0.05, Delay: 10000}
		}
		whole := &search.Memory{}
		m := &search.MLR{Sizes: []int{64, 512}}
		want, err := m.Run(context.Background(), dut(), search.Options{Journal: whole})
		if err != nil {
			t.Fatal(err)
		}
		step := 1
		if seed > 0 {
			step = 13
		}
		for cut := 0; cut < len(whole.Entries); cut += step {
			ctx, cancel := context.WithCancel(context.Background())
			j := &search.Memory{}
			part, err := m.Run(ctx, dut(), search.Options{Journal: j, Progress: func(e search.Event) {
				if e.Outcome == nil && e.Trials == cut {
					cancel()
				}
			}})
			cancel()
			if !errors.Is(err, context.Canceled) || part.Partial != "interrupted" || part.Trials != cut {
				t.Fatalf("cut at %d: %v, %+v", cut, err, part)
			}
			j.Rewind()
			d := dut()
			d.Made = cut
			got, err := m.Run(context.Background(), d, search.Options{Journal: j})
			if err != nil {
				t.Fatal(err)
			}
			if a, b := js(t, got), js(t, want); a != b {
				t.Fatalf("cut at %d:\n%s\nuninterrupted:\n%s", cut, a, b)
			}
		}
		whole.Rewind()
		_, err = (&search.MLR{Sizes: []int{128}}).Run(context.Background(), dut(), search.Options{Journal: whole})
		if !errors.Is(err, search.ErrJournal) {
			t.Errorf("a journal of another size: %v", err)
		} else if seed == 0 {
			t.Log(err)
		}
		whole.Rewind()
		d := dut()
		d.Label = "another"
		if _, err := m.Run(context.Background(), d, search.Options{Journal: whole}); !errors.Is(err, search.ErrJournal) {
			t.Errorf("a journal of another bed: %v", err)
		}
		whole.Rewind()
		if _, err := m.Run(context.Background(), dut(), search.Options{Journal: whole, Retries: -1}); !errors.Is(err, search.ErrJournal) {
			t.Errorf("a journal of a search with retries: %v", err)
		}
	}
}

// TestDies: what was found before the thing under test died is kept, and marked.
func TestDies(t *testing.T) {
	for die := 1; die < 36; die += 3 {
		d := &sim.DUT{Wire: tenGig, Capacity: 5e6, Die: die}
		res, err := (&search.MLR{Sizes: []int{64}}).Run(context.Background(), d, search.Options{})
		if !errors.Is(err, sim.ErrDead) || res.Partial == "" || res.Trials != die || len(res.MLR) != 1 {
			t.Fatalf("died at %d: %v %+v", die, err, res)
		}
		for _, g := range res.MLR[0].Goals {
			if !g.Regular && g.Irregular == "" {
				t.Errorf("died at %d: %s is not marked: %+v", die, g.Goal.Name, g)
			}
		}
	}
	d := &sim.DUT{Wire: tenGig, Capacity: 5e6}
	res, err := (&search.MLR{Sizes: []int{64}}).Run(context.Background(), d, search.Options{Limit: 20 * time.Second})
	if !errors.Is(err, search.ErrLimit) || res.Spent > 20*time.Second || res.MLR[0].Goals[0].Irregular == "" {
		t.Errorf("time limit: %v %+v", err, res)
	}
}

// TestGoals: other goals hold too, the strict one of RFC 2544 and one with short trials first.
func TestGoals(t *testing.T) {
	strict := search.RFC2544Goal()
	loose := search.PDR()
	loose.Name, loose.LossRatio, loose.Width, loose.ExceedRatio = "5%", 0.05, 0.02, 0.2
	for seed := range seeds(t) / 10 {
		d := &sim.DUT{Seed: seed, Wire: tenGig}
		d.Capacity = capacity(d, seed)
		for _, g := range mlr(t, d, search.Options{}, loose, strict).Goals {
			e := d.Capacity / (1 - g.Goal.LossRatio)
			if !g.Regular || g.Lower.FPS > e*(1+1/e) || g.Upper.FPS < e/(1+1/e) || 1-g.Lower.FPS/g.Upper.FPS > g.Goal.Width+1e-12 {
				t.Errorf("seed %d: %s: %+v, want %v", seed, g.Goal.Name, g, e)
			}
		}
	}
	for _, bad := range []func(*search.Goal){
		func(g *search.Goal) { g.LossRatio = 1 }, func(g *search.Goal) { g.ExceedRatio = math.NaN() },
		func(g *search.Goal) { g.Width = 0 }, func(g *search.Goal) { g.FinalDuration = 1 },
		func(g *search.Goal) { g.DurationSum = 1 }, func(g *search.Goal) { g.Expansion = 1 }, func(g *search.Goal) { g.Preceding = -1 },
	} {
		g := search.NDR()
		bad(&g)
		if _, err := (&search.MLR{Goals: []search.Goal{g}}).Run(context.Background(), &sim.DUT{}, search.Options{}); err == nil {
			t.Errorf("no error for %+v", g)
		}
	}
	if _, err := (&search.MLR{Goals: []search.Goal{search.NDR(), search.NDR()}}).Estimate(&sim.DUT{}, search.Options{}); err == nil {
		t.Error("no error for two goals of one name")
	}
	// without a line rate, the generator's is the highest load
	d := &sim.DUT{Capacity: 5e6, Generator: 20e6}
	if g := mlr(t, d, search.Options{}).Goals[0]; !g.Regular || g.Lower.FPS > 5e6 || g.Upper.FPS < 5e6 {
		t.Errorf("%+v", g)
	}
}

func ExampleMLR() {
	bed := &sim.DUT{Wire: 20e9, Capacity: 9.1e6}
	res, _ := (&search.MLR{Sizes: []int{64}}).Run(context.Background(), bed, search.Options{})
	for _, g := range res.MLR[0].Goals {
		fmt.Printf("%s: %.2f to %.2f Mpps, limited by %s\n", g.Goal.Name, g.Lower.FPS/1e6, g.Upper.FPS/1e6, g.Limited)
	}
	// Output:
	// NDR: 9.10 to 9.14 Mpps, limited by dut
	// PDR: 9.14 to 9.19 Mpps, limited by dut
}
