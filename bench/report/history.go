package report

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"millrace/bench/plot"
	"millrace/bench/result"
)

// History is a folder with the reports of many runs, one a line of history.jsonl, to which is only added.
type History struct {
	Dir     string
	Reports []*result.Report // in the order they were added
}

func historyPath(dir string) string { return filepath.Join(dir, "history.jsonl") }

// OpenHistory reads a history; a folder without one is empty.
func OpenHistory(dir string) (*History, error) {
	h := &History{Dir: dir}
	f, err := os.Open(historyPath(dir))
	if errors.Is(err, os.ErrNotExist) {
		return h, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	in := bufio.NewReader(f)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			return h, nil // a line without an end was cut off while it was added
		} else if err != nil {
			return nil, err
		}
		r := &result.Report{}
		if err := json.Unmarshal(line, r); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", f.Name(), n, err)
		}
		h.Reports = append(h.Reports, r)
	}
}

// Add adds a report. What an earlier crash has cut off is dropped first.
func (h *History) Add(r *result.Report) error {
	if err := os.MkdirAll(h.Dir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(historyPath(h.Dir), os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	old, err := io.ReadAll(f)
	if err != nil {
		return err
	}
	size := int64(strings.LastIndexByte(string(old), '\n') + 1)
	b, err := json.Marshal(r)
	if err == nil {
		if err = f.Truncate(size); err == nil {
			_, err = f.Write(append(b, '\n'))
		}
	}
	if err == nil {
		err = f.Sync()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("%s: %w", f.Name(), err), f.Truncate(size))
	}
	h.Reports = append(h.Reports, r)
	return nil
}

// Trend is one result over the runs of one machine.
type Trend struct {
	Bench, Name, Metric, Unit, Better string
	Machine                           string
	Times                             []time.Time
	Medians                           []float64
	Steps                             []Step
}

// Step is where the level changes: from before run At to it and those behind.
type Step struct {
	At            int
	Before, After float64
}

// Trends are all results that have been measured twice or more, by name.
func (h *History) Trends(filter string) (l []*Trend) {
	by := map[string]*Trend{}
	for _, r := range h.Reports {
		m := r.Machine.ID
		if m == "" {
			m = r.Machine.CPU
		}
		for i := range r.Results {
			x := &r.Results[i]
			if !strings.Contains(r.Bench+"/"+x.Name, filter) {
				continue
			}
			k := strings.Join([]string{r.Bench, x.Name, x.Metric, m}, "\x00")
			if by[k] == nil {
				by[k] = &Trend{Bench: r.Bench, Name: x.Name, Metric: x.Metric, Unit: x.Unit, Better: x.Better, Machine: m}
				l = append(l, by[k])
			}
			by[k].Times, by[k].Medians = append(by[k].Times, r.Started), append(by[k].Medians, x.Median)
		}
	}
	l = slices.DeleteFunc(l, func(t *Trend) bool { return len(t.Medians) < 2 })
	for _, t := range l {
		t.Steps = steps(t.Medians, 0)
	}
	return l
}

const (
	besideStep = 3    // runs that a level needs
	leastStep  = 0.02 // of the level
	noiseStep  = 4    // times the noise
)

// steps cuts a series where its level changes most, again and again, while that is more than the noise: four times the median
// distance of neighbours, and 2 %.
func steps(v []float64, base int) []Step {
	if len(v) < 2*besideStep {
		return nil
	}
	var d []float64
	for i := 1; i < len(v); i++ {
		d = append(d, math.Abs(v[i]-v[i-1]))
	}
	noise := result.Median(d)
	best, at := 0.0, 0
	for k := besideStep; k <= len(v)-besideStep; k++ {
		// The standard error weighs a cut near an end less.
		a, b := result.Median(v[:k]), result.Median(v[k:])
		if s := math.Abs(b-a) * math.Sqrt(float64(k)*float64(len(v)-k)/float64(len(v))); s > best {
			best, at = s, k
		}
	}
	if at == 0 {
		return nil
	}
	a, b := result.Median(v[:at]), result.Median(v[at:])
	if math.Abs(b-a) < max(noiseStep*noise, leastStep*math.Abs(a)) {
		return nil
	}
	return slices.Concat(steps(v[:at], base), []Step{{base + at, a, b}}, steps(v[at:], base+at))
}

// Plot draws trends, one chart each.
func Plot(ts []*Trend) (l []*plot.Chart) {
	for _, t := range ts {
		c := &plot.Chart{Name: strings.Trim(odd.ReplaceAllString(t.Bench+"-"+t.Name+"-"+t.Metric, "-"), "-"), Title: t.Bench + " " + t.Name,
			Note: fmt.Sprintf("%s, medians; machine %s", strings.ReplaceAll(t.Metric, "_", " "), t.Machine),
			X:    plot.Axis{Label: "run"}, Y: plot.Axis{Label: t.Unit}}
		s := plot.Series{Kind: plot.Line}
		for i, v := range t.Medians {
			s.X, s.Y = append(s.X, float64(i+1)), append(s.Y, v)
		}
		c.Series = []plot.Series{s}
		for _, st := range t.Steps {
			c.Note += fmt.Sprintf("; run %d: %+.1f %%", st.At+1, 100*(st.After/st.Before-1))
			c.Series = append(c.Series, plot.Series{Kind: plot.Ceiling, Role: 1, X: []float64{float64(st.At) + 0.5, float64(st.At) + 0.5},
				Y: []float64{slices.Min(t.Medians), slices.Max(t.Medians)}})
		}
		l = append(l, c)
	}
	return l
}

// WritePage writes a page of trends.
func WritePage(path string, charts []*plot.Chart) error {
	return replace(path, func(w io.Writer) error {
		r := &Run{Data: Data{Report: result.Report{Bench: "history"}, State: Complete}}
		return r.writePage(w, charts)
	})
}
