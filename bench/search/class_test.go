package search

import (
	"math"
	"testing"
	"time"
)

// TestClassify is the example of RFC 9971, appendix C: four goals, six points in time, one load. For the goal "20% exceed"
// the example's table says Lower Bound at points 5 and 6, beside exceed ratios of 42.857 % and 27.273 %, which are above
// 20 %: by the code of appendix A, which is what specifies, the load is an Upper Bound.
func TestClassify(t *testing.T) {
	goals := []target{
		{phase: "RFC2544", duration: 60 * time.Second, sum: 60 * time.Second},
		{phase: "TST009", duration: 60 * time.Second, sum: 120 * time.Second, exceed: 0.5},
		{phase: "1s final", duration: time.Second, sum: 120 * time.Second, loss: 0.005, exceed: 0.5},
		{phase: "20% exceed", duration: 60 * time.Second, sum: 60 * time.Second, loss: 0.005, exceed: 0.2},
	}
	l := load{rate: 1e6}
	add := func(n int, d time.Duration, loss float64) {
		for range n {
			l.loss, l.duration = append(l.loss, loss), append(l.duration, d)
		}
	}
	const u, up, lo = undecided, upperBound, lowerBound
	for i, p := range []struct {
		n    int
		d    time.Duration
		loss float64
		want [4]class
	}{
		{59, time.Second, 0, [4]class{u, u, u, u}},
		{1, time.Second, 0.01, [4]class{up, u, u, u}},
		{59, time.Second, 0.01, [4]class{up, u, u, up}},
		{1, time.Second, 0, [4]class{up, u, lo, up}},
		{1, 60 * time.Second, 0.001, [4]class{up, u, lo, up}},
		{1, 60 * time.Second, 0, [4]class{up, lo, lo, up}},
	} {
		add(p.n, p.d, p.loss)
		for g := range goals {
			if got := l.class(&goals[g]); got != p.want[g] {
				t.Errorf("point %d, goal %s: %s, want %s", i+1, goals[g].phase, classNames[got], classNames[p.want[g]])
			}
		}
	}
	for g, want := range map[int]float64{1: 1e6, 2: 1e6, 3: 999e3} {
		if got := l.conditional(&goals[g]); math.Abs(got-want) > 1e-6 {
			t.Errorf("conditional throughput of %s: %v, want %v", goals[g].phase, got, want)
		}
	}
}

// TestTargets: CSIT's two preceding targets for 21 s.
func TestTargets(t *testing.T) {
	gr := newGrid(1e3, 1e7, []Goal{NDR()})
	ts := targets(0, NDR(), &gr)
	want := []time.Duration{time.Second, 4582575695, 21 * time.Second}
	for i, w := range want {
		if ts[i].sum != w || ts[i].duration != time.Second || ts[i].width != ts[2].width<<(2-i) {
			t.Errorf("%d: %+v, want a sum of %v", i, ts[i], w)
		}
	}
	if w := 1 - gr.rate(100)/gr.rate(100+ts[2].width); w > 0.005 || w < 0.004 {
		t.Errorf("width %v", w)
	}
	for i := 0; i <= gr.n; i++ {
		if f := gr.floor(gr.rate(i) * (1 + 1e-12)); f != i {
			t.Fatalf("floor of load %d is %d", i, f)
		}
	}
}
