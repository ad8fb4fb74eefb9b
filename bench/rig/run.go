package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"millrace/bench/dut"
	"millrace/bench/pin"
	"millrace/bench/report"
	"millrace/bench/search"
)

// Plan is searches to be made of several things under test side by side.
type Plan struct {
	Kinds []string
	Setup Setup // of all beds
	Runs  int   // of each search; in turn, so that a disturbance hits everybody
	// Search makes the search for some frame sizes; none for the profile's own.
	Search func(sizes []int) search.Search
	// SelfTest finds the generator's ceilings first. Trial is how long its trials take.
	SelfTest bool
	Trial    time.Duration
	Max      float64       // highest rate to offer, in frames a second; 0 for what the ports and the generator can
	Limit    time.Duration // of each search
	Folder   *report.Run
	Show     func(Progress) // before and after each trial
	Log      io.Writer      // lines about what ended; nil for nobody

	todo []task
}

// Progress tells how far a plan is.
type Progress struct {
	search.Event
	Bed        string
	Done       int // searches
	Searches   int
	Left       search.Estimate // of the whole plan
	Considered time.Duration   // of the whole plan: Left and what was spent
}

// task is one search of one bed.
type task struct {
	bed    *Bed
	search search.Search
	sizes  []int
	est    search.Estimate
	wire   string // its self-test's bed; "" for a self-test
}

// tasks are the searches in their order: ceilings first, then size by size, bed after bed.
func (p *Plan) tasks() (l []task, err error) {
	groups := [][]int{nil}
	if len(p.Setup.Sizes) > 0 {
		groups = nil
		for _, s := range p.Setup.Sizes {
			groups = append(groups, []int{s})
		}
	}
	add := func(t task) error {
		t.est, err = t.search.Estimate(t.bed, search.Options{MeanSize: t.bed.MeanSize(), Max: p.Max, Gap: gap})
		if p.Limit > 0 {
			t.est.Low, t.est.High = min(t.est.Low, p.Limit), min(t.est.High, p.Limit)
		}
		l = append(l, t)
		return err
	}
	beds := map[string]*Bed{}
	open := func(kind string) (b *Bed, err error) {
		if b = beds[kind]; b == nil {
			b, err = NewBed(kind, p.Setup)
			if err == nil && p.Setup.Outside != nil {
				err = b.Up(context.Background()) // for its line rate, and to fail before anything is written
			}
			beds[kind] = b
		}
		return b, err
	}
	for _, kind := range p.Kinds {
		wire := p.wire(kind)
		if wire == "" || beds[wire] != nil {
			continue
		}
		b, err := open(wire)
		if err != nil {
			return nil, err
		}
		for _, g := range groups {
			if err := add(task{bed: b, search: &search.SelfTest{Sizes: g, Duration: p.Trial}, sizes: g}); err != nil {
				return nil, err
			}
		}
	}
	for range p.Runs {
		for _, g := range groups {
			for _, kind := range p.Kinds {
				b, err := open(kind)
				if err != nil {
					return nil, err
				}
				if err := add(task{bed: b, search: p.Search(g), sizes: g, wire: p.wire(kind)}); err != nil {
					return nil, err
				}
			}
		}
	}
	return l, nil
}

// wire is the bed that shows the generator's ceiling for a kind; "" for none.
func (p *Plan) wire(kind string) string {
	if !p.SelfTest || p.Setup.Outside != nil {
		return ""
	}
	return dut.WireOf(kind)
}

// gap is what a bed needs between trials: waiting for the last frames, keeping the outcome.
const gap = 30 * time.Millisecond

// Prepare finds what is to be done, and how long it takes.
func (p *Plan) Prepare() (e search.Estimate, err error) {
	p.todo, err = p.tasks()
	for _, t := range p.todo {
		e.Low, e.High = e.Low+t.est.Low, e.High+t.est.High
	}
	return e, err
}

// Run makes the plan, which Prepare has prepared. A thing under test that fails is left out from then on, and the others go on; what was measured is in
// the folder, also when ctx ends. The error joins all that went wrong.
func (p *Plan) Run(ctx context.Context) error {
	defer pin.Prefer()()
	var left search.Estimate
	for _, t := range p.todo {
		left.Low, left.High = left.Low+t.est.Low, left.High+t.est.High
	}
	ceilings := map[string]*search.SelfTestResult{}
	failed := map[*Bed]bool{}
	var spent time.Duration
	var errs []error
	var up *Bed
	defer func() {
		if up != nil {
			up.Rest()
		}
	}()
	for i, t := range p.todo {
		if failed[t.bed] {
			continue
		}
		if up != t.bed && up != nil {
			up.Rest()
		}
		up = t.bed
		show := func(e search.Event) {
			if p.Show == nil {
				return
			}
			now := left
			now.Low, now.High = left.Low-min(e.Spent, t.est.Low), left.High-min(e.Spent, t.est.High)
			p.Show(Progress{Event: e, Bed: t.bed.Name(), Done: i, Searches: len(p.todo), Left: now, Considered: spent + e.Spent})
		}
		o := search.Options{Journal: p.Folder.Journal(t.bed.Name(), t.search.Name()), SelfTest: ceilings[t.wire], Max: p.Max, Limit: p.Limit,
			MeanSize: t.bed.MeanSize(), Gap: gap, Progress: show}
		res, err := t.search.Run(ctx, t.bed, o)
		left.Low, left.High = left.Low-t.est.Low, left.High-t.est.High
		if res != nil {
			spent += res.Spent
			p.Folder.AddSearch(res)
			if s := res.SelfTest; s != nil {
				c := ceilings[t.bed.Name()]
				if c == nil {
					c = &search.SelfTestResult{Bed: s.Bed}
					ceilings[t.bed.Name()] = c
				}
				c.Ceilings = append(c.Ceilings, s.Ceilings...)
			}
		}
		switch {
		case ctx.Err() != nil:
			return errors.Join(append(errs, context.Cause(ctx))...)
		case errors.Is(err, search.ErrLimit):
			p.Folder.Warn("%s: the search was ended after %v", t.bed.Name(), p.Limit)
		case err != nil:
			failed[t.bed] = true
			errs = append(errs, err)
			p.Folder.Warn("%s failed and was left out from then on: %v", t.bed.Name(), err)
			p.logf("%s failed: %v\n", t.bed.Name(), err)
			t.bed.Rest()
			if slices.ContainsFunc(p.Kinds, func(k string) bool { return p.wire(k) == t.bed.Name() }) {
				p.Folder.Warn("no ceiling of the generator is known for what was to be compared with %s", t.bed.Name())
			}
		default:
			p.logf("%s\n", Line(res))
		}
	}
	return errors.Join(errs...)
}

func (p *Plan) logf(format string, a ...any) {
	if p.Log != nil {
		fmt.Fprintf(p.Log, format, a...)
	}
}
