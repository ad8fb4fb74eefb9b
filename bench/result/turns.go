package result

import (
	"context"
	"fmt"
	"strings"
)

// Turns lets what is compared take turns, A B C, A B C, ..., so that a disturbance of the machine hits them all, and
// place k of everybody's values is of the same round.
type Turns struct {
	Rounds int
	WarmUp bool                    // a round before the first that does not count
	Report func(done, total int)   // after each round; may be nil
	Note   func(string, ...any)    // what a reader of the values should know; may be nil
	Leave  func(job *Job, e error) // an error of a job takes it out of the contest; nil: it ends it
}

// Job is one contestant.
type Job struct {
	Name    string
	Measure func() (float64, error)
	Values  []float64 // of the rounds, without the warm-up
	out     bool
}

// Jobs are contestants whose measuring cannot fail.
func Jobs(n int, name func(i int) string, measure func(i int) float64) []*Job {
	jobs := make([]*Job, n)
	for i := range jobs {
		jobs[i] = &Job{Name: name(i), Measure: func() (float64, error) { return measure(i), nil }}
	}
	return jobs
}

// Run takes the jobs through the rounds. When ctx ends, so do the rounds, with ctx's error and what has been measured.
func (t Turns) Run(ctx context.Context, jobs []*Job) error {
	steal := make([]float64, 0, t.Rounds)
	for round := range t.Rounds + 1 {
		if round == 0 && !t.WarmUp {
			continue
		}
		before := procStat()
		for _, j := range jobs {
			if err := ctx.Err(); err != nil {
				return err
			}
			if j.out {
				continue
			}
			v, err := j.Measure()
			switch {
			case err != nil && t.Leave != nil && ctx.Err() == nil:
				j.out = true
				t.Leave(j, err)
			case err != nil:
				return fmt.Errorf("%s: %w", j.Name, err)
			case round > 0:
				j.Values = append(j.Values, v)
			}
		}
		if round > 0 {
			after, share := procStat(), 0.0
			if all := after.all - before.all; all > 0 {
				share = 100 * (after.steal - before.steal) / all
			}
			steal = append(steal, share)
		}
		if t.Report != nil {
			t.Report(round, t.Rounds)
		}
	}
	if t.Note != nil {
		t.notes(jobs, steal)
	}
	return nil
}

// manyNotes is how many outliers are told one by one.
const manyNotes = 5

func (t Turns) notes(jobs []*Job, steal []float64) {
	hit := map[int][]string{} // by round
	for _, j := range jobs {
		if len(j.Values) != t.Rounds {
			continue
		}
		m := Median(j.Values)
		for _, k := range Outliers(j.Values) {
			hit[k] = append(hit[k], fmt.Sprintf("%s %+.0f %%", j.Name, 100*(j.Values[k]/m-1)))
		}
	}
	for k := range t.Rounds {
		l := hit[k]
		if len(l) == 0 && steal[k] < muchSteal {
			continue
		}
		s := fmt.Sprintf("round %d", k+1)
		if steal[k] >= muchSteal {
			s += fmt.Sprintf(", with %.0f %% of the CPUs' time stolen", steal[k])
		}
		if n := len(l); n > manyNotes {
			s += fmt.Sprintf(": %d of %d are outliers", n, len(jobs))
		} else if n > 0 {
			s += ": outliers " + strings.Join(l, ", ")
		}
		t.Note("%s", s)
	}
}

// Note adds a note: a function for Turns.
func (r *Report) Note(format string, a ...any) { r.Notes = append(r.Notes, fmt.Sprintf(format, a...)) }
