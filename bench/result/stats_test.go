package result

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestQuantile(t *testing.T) {
	v := []float64{4, 1, 3, 2}
	for q, want := range map[float64]float64{0: 1, 0.25: 1.75, 0.5: 2.5, 1: 4} {
		if got := Quantile(v, q); got != want {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	if v[0] != 4 {
		t.Error("the values were sorted in place")
	}
	if !math.IsNaN(Median(nil)) {
		t.Error("a median of nothing")
	}
}

// TestStudent against the tables.
func TestStudent(t *testing.T) {
	for _, c := range []struct{ tail, nu, want float64 }{
		{0.005, 4, 4.604}, {0.005, 8, 3.355}, {0.005, 16, 2.921}, {0.025, 8, 2.306}, {0.025, 38, 2.024}, {0.05, 8, 1.860},
	} {
		if got := student(c.tail, c.nu); math.Abs(got-c.want) > 0.02*c.want {
			t.Errorf("t(%v, %v) = %.3f, want %.3f", c.tail, c.nu, got, c.want)
		}
	}
}

func TestOutliers(t *testing.T) {
	if o := Outliers([]float64{100, 101, 99, 100.5, 140, 100}); len(o) != 1 || o[0] != 4 {
		t.Errorf("%v", o)
	}
	if o := Outliers([]float64{100, 100, 100, 100, 100.5}); o != nil {
		t.Errorf("noise of half a percent is an outlier: %v", o)
	}
}

// Noise of benchmarks: even, and with a tail on one side, as disturbances make it.
var noises = map[string]func(r *rand.Rand) float64{
	"normal": func(r *rand.Rand) float64 { return 100 * math.Exp(0.03*r.NormFloat64()) },
	"tail":   func(r *rand.Rand) float64 { return 100 + 3*r.ExpFloat64() },
	"spikes": func(r *rand.Rand) float64 {
		v := 100 * math.Exp(0.01*r.NormFloat64())
		if r.IntN(5) == 0 {
			v *= 1.3
		}
		return v
	},
}

func samples(r *rand.Rand, n int, noise func(*rand.Rand) float64, times float64) []Sample {
	s := make([]float64, n)
	for i := range s {
		s[i] = times * noise(r)
	}
	return []Sample{{Own: s}}
}

// TestCoverage: intervals of nothing but noise contain 1 about as often as they say, and those of a great
// change do not.
func TestCoverage(t *testing.T) {
	trials := 100
	if testing.Short() {
		trials = 40
	}
	for name, noise := range noises {
		for _, n := range []int{5, 9, 20} {
			r := rand.New(rand.NewPCG(7, uint64(n)))
			const confidence = 0.95
			alarms, found := 0, 0
			for range trials {
				base := samples(r, n, noise, 1)
				if i := RatioOfMedians(base, samples(r, n, noise, 1), confidence); i.Low > 1 || i.High < 1 {
					alarms++
				}
				i := RatioOfMedians(base, samples(r, n, noise, 1.3), confidence)
				if i.Low > 1 {
					found++
				}
				if i.Low > i.Value || i.Value > i.High {
					t.Errorf("%s: %+v is no interval", name, i)
				}
			}
			rate, power := float64(alarms)/float64(trials), float64(found)/float64(trials)
			t.Logf("%s, %d values: false alarms %.3f, a change of 30 %% found %.3f", name, n, rate, power)
			// Three standard deviations of a binomial above the rate that is promised.
			if most := 0.05 + 3*math.Sqrt(0.05*0.95/float64(trials)); rate > most {
				t.Errorf("%s, %d values: %.3f false alarms, want at most %.3f", name, n, rate, most)
			}
			if name != "spikes" && power < 0.95 || n >= 9 && power < 0.7 {
				t.Errorf("%s, %d values: only %.3f of the changes found", name, n, power)
			}
		}
	}
}

// TestRuns: where whole runs differ, only several runs a side tell noise from change.
func TestRuns(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	runs := func(k int) (s []Sample) {
		for range k {
			level := math.Exp(0.03 * r.NormFloat64())
			s = append(s, samples(r, 9, func(r *rand.Rand) float64 { return 100 * math.Exp(0.003*r.NormFloat64()) }, level)...)
		}
		return s
	}
	alarms := map[int]int{}
	const trials = 100
	for _, k := range []int{1, 4} {
		for range trials {
			if i := RatioOfMedians(runs(k), runs(k), 0.95); i.Low > 1 || i.High < 1 {
				alarms[k]++
			}
		}
	}
	if alarms[1] < trials/2 || alarms[4] > 13 {
		t.Errorf("false alarms of %d comparisons: %d with one run a side, %d with four", trials, alarms[1], alarms[4])
	}
}

// TestPaired: what disturbs own and peer alike cancels out.
func TestPaired(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	side := func() []Sample {
		var s Sample
		for range 9 {
			d := math.Exp(0.2 * r.NormFloat64())
			s.Own, s.Peer = append(s.Own, 100*d), append(s.Peer, 150*d*math.Exp(0.001*r.NormFloat64()))
		}
		return []Sample{s}
	}
	if i := RatioOfMedians(side(), side(), 0.99); i.High/i.Low > 2.5 {
		t.Errorf("%+v", i)
	}
	if i := RatioOfMedians([]Sample{{Own: []float64{1, 0, 2}}}, side(), 0.99); !math.IsNaN(i.Value) {
		t.Errorf("a ratio of what is not positive: %+v", i)
	}
}
