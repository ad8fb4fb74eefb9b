package search

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/trial"
)

// MLR is a Multiple Loss Ratio search (RFC 9971), for each frame size.
type MLR struct {
	Sizes []int  // none for the profile's sizes
	Goals []Goal // none for NDR and PDR
	// Min is the lowest load in frames a second (Min Load); 0 for a ten-thousandth of the highest, but 10 frames in
	// the shortest trial. The highest (Max Load) is the line rate or what Options say.
	Min float64
	// Parts of the lower bound of the goal with the lowest loss at which a trial is made afterwards, for the latency there
	// (0.1, 0.5 and 0.9 in reports). A part that fails the goal is decided, and the search goes on below it: this is
	// what finds loss that grows less with the load.
	Parts []float64
}

func (m *MLR) Name() string { return "mlrsearch" }

func (m *MLR) goals() []Goal {
	if len(m.Goals) == 0 {
		return []Goal{NDR(), PDR()}
	}
	return m.Goals
}

func sizesOf(s []int) []int {
	if len(s) == 0 {
		return []int{0}
	}
	return s
}

func (m *MLR) check() error {
	names := map[string]bool{}
	for _, g := range m.goals() {
		if err := g.Check(); err != nil {
			return err
		}
		if names[g.Name] {
			return fmt.Errorf("search: two goals have the name %q", g.Name)
		}
		names[g.Name] = true
	}
	for _, p := range m.Parts {
		if !(p > 0 && p <= 1) {
			return fmt.Errorf("search: a part of the throughput is %v, must be more than 0, at most 1", p)
		}
	}
	if !(m.Min >= 0) || math.IsInf(m.Min, 0) {
		return fmt.Errorf("search: the lowest load is %v frames a second, must be 0 or more", m.Min)
	}
	return nil
}

// Run searches.
func (m *MLR) Run(ctx context.Context, bed trial.Bed, o Options) (*Result, error) {
	r, err := start(m, bed, o)
	if err != nil {
		return nil, err
	}
	for _, size := range sizesOf(m.Sizes) {
		r.size = size
		if err := m.one(ctx, r); err != nil {
			return r.end(err)
		}
	}
	return r.end(nil)
}

func (m *MLR) one(ctx context.Context, r *run) error {
	goals := m.goals()
	shortest := goals[0].InitialDuration
	for _, g := range goals {
		shortest = min(shortest, g.InitialDuration)
	}
	before := r.res.Trials
	highest, why, err := r.top(ctx, shortest)
	if err != nil {
		return err
	}
	lowest := m.Min
	if lowest == 0 {
		lowest = math.Max(highest/1e4, 10/shortest.Seconds())
	}
	if lowest >= highest {
		return fmt.Errorf("search: the lowest load, %.0f frames a second, is not below the highest, %.0f", lowest, highest)
	}
	s := &mlr{run: r, goals: goals, grid: newGrid(lowest, highest, goals), at: map[int]*load{}}
	err = s.search(ctx)
	var parts []LatencyPoint
	if err == nil {
		parts, err = s.parts(ctx, m.Parts)
	}
	out := s.result(err, why)
	out.Parts = parts
	out.Trials = r.res.Trials - before
	out.Ceiling = r.o.SelfTest.At(r.size)
	out.Warnings = append(out.Warnings, r.unchecked()...)
	r.res.MLR = append(r.res.MLR, out)
	return err
}

// grid has the loads that a search may offer: they stand evenly on a logarithmic scale, several to a goal's
// width, so that widths can be halved and doubled in whole steps and goals share loads.
type grid struct {
	min, max float64
	n        int // the index of max
	step     float64
}

const stepsPerWidth = 8

func newGrid(lowest, highest float64, goals []Goal) grid {
	w := math.Inf(1)
	for _, g := range goals {
		w = math.Min(w, -math.Log1p(-g.Width))
	}
	span := math.Log(highest / lowest)
	n := max(int(math.Ceil(span*stepsPerWidth/w)), 1)
	return grid{lowest, highest, n, span / float64(n)}
}

func (g *grid) rate(i int) float64 {
	switch i {
	case 0:
		return g.min
	case g.n:
		return g.max
	}
	return g.min * math.Exp(float64(i)*g.step)
}

// floor is the highest load that is not above fps.
func (g *grid) floor(fps float64) int {
	if fps <= g.min {
		return 0
	}
	return min(int(math.Log(fps/g.min)/g.step), g.n)
}

// steps is the widest distance that is within width.
func (g *grid) steps(width float64) int {
	return max(int(-math.Log1p(-width)/g.step+1e-9), 1)
}

// class is a load's classification for a target.
type class uint8

const (
	undecided class = iota
	lowerBound
	upperBound
	untestable
)

var classNames = [...]string{"undecided", "lower", "upper", "untestable"}

// sums has the durations of the trials at one load, as RFC 9971's appendix A names them, in seconds.
type sums struct{ fullLow, fullHigh, shortLow, shortHigh float64 }

func (s *sums) add(t *target, loss float64, d time.Duration) {
	sec := d.Seconds()
	switch full, high := d >= t.duration, loss > t.loss; {
	case full && high:
		s.fullHigh += sec
	case full:
		s.fullLow += sec
	case high:
		s.shortHigh += sec
	default:
		s.shortLow += sec
	}
}

// classify is the Load Classification of RFC 9971, appendix A: a load is a bound as soon as neither the best nor the
// worst of what the rest of the duration sum could bring would change it.
func (s *sums) classify(t *target) class {
	const rounding = 1e-9 // of seconds: sums of durations that are not whole
	balancing := s.shortLow * t.exceed / (1 - t.exceed)
	high := s.fullHigh + math.Max(0, s.shortHigh-balancing)
	whole := math.Max(s.fullLow+high, t.sum.Seconds())
	quantile := whole*t.exceed + rounding
	pessimistic := whole-s.fullLow <= quantile
	optimistic := high <= quantile
	switch {
	case pessimistic && optimistic:
		return lowerBound
	case !pessimistic && !optimistic:
		return upperBound
	}
	return undecided
}

// target is a goal, or one of the coarser ones before it.
type target struct {
	goal      int
	phase     string
	loss      float64
	exceed    float64
	duration  time.Duration
	sum       time.Duration
	width     int // steps of the grid
	expansion int
}

// targets of a goal, the coarsest first: durations grow by a constant factor from the initial one to the sum, while
// widths are halved.
func targets(i int, g Goal, gr *grid) []target {
	out := make([]target, g.Preceding+1)
	factor := 1.0
	if g.Preceding > 0 {
		factor = math.Pow(g.InitialDuration.Seconds()/g.DurationSum.Seconds(), 1/float64(g.Preceding))
	}
	for k := range out {
		sum := time.Duration(math.Round(float64(g.DurationSum) * math.Pow(factor, float64(k))))
		if k == g.Preceding && k > 0 {
			sum = g.InitialDuration
		}
		out[g.Preceding-k] = target{goal: i, phase: fmt.Sprintf("%s %d/%d", g.Name, g.Preceding-k+1, g.Preceding+1),
			loss: g.LossRatio, exceed: g.ExceedRatio, duration: min(g.FinalDuration, sum), sum: sum,
			width: min(gr.steps(g.Width)<<k, max(gr.n, 1)), expansion: g.Expansion}
	}
	return out
}

// load is what was measured at one load.
type load struct {
	rate     float64
	loss     []float64
	duration []time.Duration
	received float64 // frames
	sending  float64 // seconds
	invalid  int
	dead     bool // untestable
	achieved float64
	hist     *hdrhistogram.Histogram
}

func (l *load) class(t *target) class {
	if l.dead {
		return untestable
	}
	var s sums
	for i, d := range l.duration {
		s.add(t, l.loss[i], d)
	}
	return s.classify(t)
}

func (l *load) forwarding() float64 {
	if l.sending == 0 {
		return 0
	}
	return l.received / l.sending
}

// conditional is the Conditional Throughput of RFC 9971, appendix B.
func (l *load) conditional(t *target) float64 {
	type full struct{ loss, seconds float64 }
	var fulls []full
	var sum float64
	for i, d := range l.duration {
		if d >= t.duration {
			fulls = append(fulls, full{l.loss[i], d.Seconds()})
			sum += d.Seconds()
		}
	}
	slices.SortFunc(fulls, func(a, b full) int {
		switch {
		case a.loss < b.loss:
			return -1
		case a.loss > b.loss:
			return 1
		}
		return 0
	})
	remaining := math.Max(t.sum.Seconds(), sum) * (1 - t.exceed)
	quantile := 1.0
	for _, f := range fulls {
		if remaining <= 1e-9 {
			break
		}
		quantile, remaining = f.loss, remaining-f.seconds
	}
	if remaining > 1e-9 {
		quantile = 1
	}
	return l.rate * (1 - quantile)
}

// mlr is the state of a search at one frame size.
type mlr struct {
	*run
	order []int // of goals, by loss
	goals []Goal
	grid  grid
	at    map[int]*load
	index []int // of at, ascending
	final []target
}

// search meets the targets of each goal, the goal with the lowest loss first: its trials serve the others too. A trial
// for one goal can turn the bound of another, so all are looked at again until none has anything left to measure.
func (s *mlr) search(ctx context.Context) error {
	order := make([]int, len(s.goals))
	s.order = order
	all := make([][]target, len(s.goals))
	s.final = make([]target, len(s.goals))
	for i, g := range s.goals {
		order[i], all[i] = i, targets(i, g, &s.grid)
		s.final[i] = all[i][len(all[i])-1]
	}
	sort.SliceStable(order, func(a, b int) bool { return s.goals[order[a]].LossRatio < s.goals[order[b]].LossRatio })
	if err := s.initial(ctx, &all[order[0]][0]); err != nil {
		return err
	}
	for _, g := range order {
		var hints []int
		for k := range all[g] {
			t := &all[g][k]
			if _, err := s.meet(ctx, t, hints); err != nil {
				return err
			}
			lo, hi := s.bounds(t)
			hints = []int{lo, hi}
		}
	}
	return s.settle(ctx)
}

// settle meets all goals until no trial is missing.
func (s *mlr) settle(ctx context.Context) error {
	for again := true; again; {
		again = false
		for _, g := range s.order {
			n, err := s.meet(ctx, &s.final[g], nil)
			if err != nil {
				return err
			}
			again = again || n > 0
		}
	}
	return nil
}

// parts makes a trial at each part of the lower bound of the strictest goal. One that fails is decided; where it is an
// upper bound, the search goes on below it, and parts begin anew.
func (s *mlr) parts(ctx context.Context, parts []float64) ([]LatencyPoint, error) {
	t := &s.final[s.order[0]]
anew:
	lo, _ := s.bounds(t)
	if lo < 0 {
		return nil, nil
	}
	var out []LatencyPoint
	for _, part := range parts {
		i := s.grid.floor(s.grid.rate(lo) * part)
		l := trial.Load{Rate: s.grid.rate(i), Size: s.size, Duration: t.duration}
		o, err := s.try(ctx, fmt.Sprintf("%.0f %% of %s", part*100, s.goals[t.goal].Name), l)
		if err != nil {
			return out, err
		}
		s.load(i).add(o)
		if o.Invalid == "" && o.LossRatio() > t.loss {
			if at, err := s.decide(ctx, t, i); err != nil {
				return out, err
			} else if at.class(t) == upperBound {
				if err := s.settle(ctx); err != nil {
					return out, err
				}
				goto anew
			}
		}
		p := LatencyPoint{Part: part, Rate: s.rate(l.Rate), Loss: o.LossRatio(), Invalid: o.Invalid}
		if o.Invalid == "" {
			p.runs([]*hdrhistogram.Histogram{o.Latency})
		}
		out = append(out, p)
	}
	return out, nil
}

// initial makes the first trials: at the highest load, then where its forwarding rate says that the bound may be.
func (s *mlr) initial(ctx context.Context, t *target) error {
	l, err := s.decide(ctx, t, s.grid.n)
	if err != nil {
		return err
	}
	at := s.grid.n
	for range 2 {
		next := 0
		switch l.class(t) {
		case upperBound:
			next = min(s.grid.floor(l.forwarding()/(1-t.loss)), at-1)
		case untestable:
			next = min(s.grid.floor(l.achieved), at-t.width)
		default:
			if at == s.grid.n {
				return nil
			}
			next = min(at+t.width, s.grid.n)
		}
		next = max(next, 0)
		if s.at[next] != nil {
			return nil
		}
		if l, err = s.decide(ctx, t, next); err != nil {
			return err
		}
		at = next
	}
	return nil
}

// bounds are the relevant ones for a target, as far as is known: -1 and n+1 where there is none. For the search, but not
// for results, a load that the generator cannot offer bounds like an upper one.
func (s *mlr) bounds(t *target) (lo, hi int) {
	lo, hi = -1, s.grid.n+1
	for _, i := range s.index {
		switch s.at[i].class(t) {
		case lowerBound:
			lo = i
		case upperBound, untestable:
			return lo, i
		}
	}
	return lo, hi
}

// meet measures until the bounds of t are as narrow as it wants, or one of them cannot be had. It returns the number of
// loads that it measured. hints are loads that were bounds of a coarser target.
func (s *mlr) meet(ctx context.Context, t *target, hints []int) (int, error) {
	step := t.width
	for n := 0; ; n++ {
		lo, hi := s.bounds(t)
		s.lower, s.upper = 0, 0
		if lo >= 0 {
			s.lower = s.grid.rate(lo)
		}
		if hi <= s.grid.n {
			s.upper = s.grid.rate(hi)
		}
		next := -1
		for _, h := range hints {
			if h > lo && h < hi && h >= 0 && h <= s.grid.n {
				next = h
				break
			}
		}
		switch {
		case lo >= 0 && hi <= s.grid.n && hi-lo <= t.width, lo == s.grid.n, hi == 0:
			return n, nil
		case next >= 0:
		case lo >= 0 && hi <= s.grid.n: // internal search: halves that are the width times a power of two
			half := t.width
			for half*2 < hi-lo {
				half *= 2
			}
			next = lo + half
		case lo >= 0: // external search upwards
			next = min(lo+step, s.grid.n)
			step *= t.expansion
		default: // and downwards
			next = max(hi-step, 0)
			step *= t.expansion
		}
		if _, err := s.decide(ctx, t, next); err != nil {
			return n, err
		}
	}
}

// decide makes trials at load i until t classifies it.
func (s *mlr) decide(ctx context.Context, t *target, i int) (*load, error) {
	l := s.load(i)
	for l.class(t) == undecided {
		before := s.res.Invalid
		o, err := s.try(ctx, t.phase, trial.Load{Rate: l.rate, Size: s.size, Duration: t.duration})
		l.invalid += s.res.Invalid - before
		if err != nil {
			return l, err
		}
		if o.Invalid != "" {
			l.dead, l.achieved = true, o.Achieved()
			break
		}
		l.add(o)
	}
	return l, nil
}

// load is what was measured at load i.
func (s *mlr) load(i int) *load {
	l := s.at[i]
	if l == nil {
		l = &load{rate: s.grid.rate(i)}
		s.at[i] = l
		at, _ := slices.BinarySearch(s.index, i)
		s.index = slices.Insert(s.index, at, i)
	}
	return l
}

// add counts a valid trial.
func (l *load) add(o *trial.Outcome) {
	if o.Invalid != "" {
		return
	}
	l.loss = append(l.loss, o.LossRatio())
	l.duration = append(l.duration, o.Duration)
	l.received += float64(o.Received)
	l.sending += o.Duration.Seconds()
	l.hist = merge(l.hist, o.Latency)
}

// merge adds b to a, which it makes where it is nil; b stays as it is.
func merge(a, b *hdrhistogram.Histogram) *hdrhistogram.Histogram {
	switch {
	case b == nil:
		return a
	case a == nil:
		return b.Clone()
	}
	a.Merge(b)
	return a
}

// result has the Goal Results. err is why the search ended early.
func (s *mlr) result(err error, why Limited) MLRResult {
	out := MLRResult{Size: s.size, Max: s.grid.max, Min: s.grid.min}
	for _, i := range s.index {
		l := s.at[i]
		p := LoadPoint{Rate: l.rate, Trials: len(l.loss), Invalid: l.invalid, Loss: l.loss, Received: l.forwarding()}
		for g := range s.final {
			p.Class = append(p.Class, classNames[l.class(&s.final[g])])
		}
		out.Loads = append(out.Loads, p)
	}
	for g := range s.goals {
		out.Goals = append(out.Goals, s.goal(g, err, why))
	}
	return out
}

func (s *mlr) goal(g int, err error, why Limited) GoalResult {
	r := GoalResult{Goal: s.goals[g], Limited: LimitedByDUT}
	t := &s.final[g]
	lo, hi := s.bounds(t)
	cut := hi <= s.grid.n && s.at[hi].dead // the generator's limit stands where the upper bound should
	if lo >= 0 {
		l := s.at[lo]
		r.Lower, r.Trials, r.Latency = rateAt(l.rate, s.bytes()), len(l.loss), LatencyOf(l.hist)
		r.Conditional = rateAt(l.conditional(t), s.bytes())
		r.LossRatio = mean(l.loss)
		if w := s.near(r.Goal.Name, l.rate); w != "" {
			r.Warnings = append(r.Warnings, w)
		}
	}
	if hi <= s.grid.n && !cut {
		r.Upper = rateAt(s.grid.rate(hi), s.bytes())
	}
	switch {
	case lo >= 0 && r.Upper != nil && hi-lo <= t.width:
		r.Regular = true
	case cut:
		r.Limited = LimitedByGenerator
		r.Irregular = "limited by the generator, which could not offer more: the thing under test may do more"
	case lo == s.grid.n:
		r.Limited = why
		r.Irregular = "no upper bound: the highest load that was allowed passed"
		if why == LimitedByGenerator {
			r.Irregular = "limited by the generator: its ceiling passed; the thing under test may do more"
		}
	case hi == 0:
		r.Limited = LimitedByMin
		r.Irregular = "no lower bound: even the lowest load failed"
	case errors.Is(err, ErrLimit):
		r.Irregular = "the time limit was reached before the bounds were as narrow as the goal's width"
	default:
		r.Irregular = "the search was not finished"
	}
	return r
}

func mean(x []float64) float64 {
	var sum float64
	for _, v := range x {
		sum += v
	}
	return sum / math.Max(float64(len(x)), 1)
}

// Estimate counts loads and trials: at least one load has to be decided at each size, at most each target has both of
// its bounds searched for from scratch.
func (m *MLR) Estimate(bed trial.Bed, o Options) (Estimate, error) {
	var e Estimate
	if err := m.check(); err != nil {
		return e, err
	}
	for _, size := range sizesOf(m.Sizes) {
		highest, _ := top(bed, size, o)
		if highest == 0 {
			highest = 1e8 // unknown: only the logarithm of the span counts
			e.add(1, 1, m.goals()[0].InitialDuration, o.Gap)
		}
		lowest := m.Min
		if lowest == 0 || lowest >= highest {
			lowest = highest / 1e4
		}
		gr := newGrid(lowest, highest, m.goals())
		low := Estimate{}
		for i, g := range m.goals() {
			ts := targets(i, g, &gr)
			for k := range ts {
				t := &ts[k]
				most := int(math.Ceil(float64(t.sum) / float64(t.duration)))
				loads := 4 // the bounds of the coarser target, one load between them, and one that noise asks for
				if k == 0 {
					external := math.Log(float64(gr.n)/float64(t.width)) / math.Log(float64(t.expansion))
					loads = 3 + int(math.Ceil(external)) + bits(t.expansion)
				}
				e.add(0, loads*most, t.duration, o.Gap)
			}
			t := &ts[len(ts)-1]
			fewest := int(math.Ceil((1 - t.exceed) * float64(t.sum) / float64(t.duration)))
			if up := int(math.Floor(t.exceed*float64(t.sum)/float64(t.duration))) + 1; up < fewest {
				fewest = up
			}
			one := Estimate{}
			one.add(fewest, 0, t.duration, o.Gap)
			low.Low = max(low.Low, one.Low)
		}
		e.Low += low.Low
		final := m.goals()[0].FinalDuration
		e.add(len(m.Parts), len(m.Parts), final, o.Gap)
	}
	return e, nil
}

func bits(n int) int { return int(math.Ceil(math.Log2(float64(n)))) }
