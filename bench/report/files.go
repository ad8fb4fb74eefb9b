package report

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/plot"
)

// replace writes a file whole or not at all.
func replace(path string, write func(w io.Writer) error) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	b := bufio.NewWriter(f)
	err = write(b)
	if err == nil {
		err = errors.Join(b.Flush(), f.Chmod(0o644), f.Sync())
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Write writes all files of the run's folder but the journal and the configuration.
func (r *Run) Write() error {
	charts := r.Charts()
	if err := os.MkdirAll(filepath.Join(r.Dir, "plots"), 0o755); err != nil {
		return err
	}
	var errs []error
	put := func(name string, write func(w io.Writer) error) {
		errs = append(errs, replace(filepath.Join(r.Dir, name), write))
	}
	put(resultFile, func(w io.Writer) error {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(&r.Data)
	})
	if len(r.Made) > 0 {
		put("trials.csv", r.WriteCSV)
	}
	if slices.ContainsFunc(r.Made, func(t Trial) bool { return t.Outcome.Latency != nil }) {
		put("latency.hlog", r.WriteLog)
	}
	put("report.html", func(w io.Writer) error { return r.writePage(w, charts) })
	put("report.md", r.WriteMarkdown)
	for _, c := range charts {
		put("plots/"+c.Name+".svg", func(w io.Writer) error { _, err := io.WriteString(w, c.SVGFile()); return err })
		put("plots/"+c.Name+".png", c.PNG)
	}
	errs = append(errs, r.sweep(charts))
	return errors.Join(errs...)
}

// sweep removes charts of an earlier writing.
func (r *Run) sweep(charts []*plot.Chart) error {
	dir := filepath.Join(r.Dir, "plots")
	l, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range l {
		name := strings.TrimSuffix(strings.TrimSuffix(e.Name(), ".svg"), ".png")
		if !slices.ContainsFunc(charts, func(c *plot.Chart) bool { return c.Name == name }) && name != e.Name() {
			err = errors.Join(err, os.Remove(filepath.Join(dir, e.Name())))
		}
	}
	return err
}

var columns = []string{"trial", "bed", "search", "phase", "start", "size_bytes", "rate_fps", "duration_s", "elapsed_s", "sent", "received", "lost", "loss_ratio",
	"achieved_fps", "duplicated", "reordered", "corrupted", "foreign", "latency_p50_ns", "latency_p90_ns", "latency_p99_ns", "latency_p999_ns", "latency_max_ns",
	"invalid", "notes", "drops"}

// WriteCSV writes the trials as a table (RFC 4180), with a head. What was not measured is empty.
func (r *Run) WriteCSV(w io.Writer) error {
	c := csv.NewWriter(w)
	if err := c.Write(columns); err != nil {
		return err
	}
	f := func(v float64) string { return strconv.FormatFloat(v, 'g', -1, 64) }
	u := func(v uint64) string { return strconv.FormatUint(v, 10) }
	for i := range r.Made {
		t := &r.Made[i]
		o := t.Outcome
		row := []string{strconv.Itoa(t.N), t.Bed, t.Search, t.Phase, o.Start.UTC().Format(time.RFC3339Nano), strconv.Itoa(o.Size), f(o.Rate),
			f(o.Duration.Seconds()), f(o.Elapsed.Seconds()), u(o.Sent), u(o.Received), u(o.Lost), f(o.LossRatio()), f(o.Achieved()),
			u(o.Duplicated), u(o.Reordered), u(o.Corrupted), u(o.Foreign)}
		if h := o.Latency; h != nil && h.TotalCount() > 0 {
			for _, p := range []float64{50, 90, 99, 99.9} {
				row = append(row, strconv.FormatInt(h.ValueAtPercentile(p), 10))
			}
			row = append(row, strconv.FormatInt(h.Max(), 10))
		} else {
			row = append(row, "", "", "", "", "")
		}
		var drops []string
		for k, v := range o.Drops {
			drops = append(drops, fmt.Sprintf("%s=%d", k, v))
		}
		slices.Sort(drops)
		if err := c.Write(append(row, o.Invalid, strings.Join(o.Notes, "; "), strings.Join(drops, "; "))); err != nil {
			return err
		}
	}
	c.Flush()
	return c.Error()
}

// tag names what a histogram is of, in HdrHistogram's log: no commas and blanks.
func (t *Trial) tag() string {
	s := t.Bed
	for _, p := range []string{t.Search, t.Phase} {
		if p != "" {
			s += "|" + p
		}
	}
	if t.Outcome.Size > 0 {
		s += fmt.Sprintf("|%dB", t.Outcome.Size)
	}
	return strings.NewReplacer(",", ";", " ", "-", "\n", "-", "\r", "-").Replace(s)
}

// WriteLog writes the latencies as HdrHistogram's log, version 1.3: a line for each trial, in nanoseconds, tagged by bed, search,
// phase and frame size.
func (r *Run) WriteLog(w io.Writer) error {
	l := hdrhistogram.NewHistogramLogWriter(w)
	if err := errors.Join(l.OutputComment("[Latency one way, in nanoseconds; maxima in ms; tags: bed|search|phase|frame size]"),
		l.OutputLogFormatVersion(), l.OutputStartTime(r.Started.UnixMilli()), l.OutputLegend()); err != nil {
		return err
	}
	for i := range r.Made {
		t := &r.Made[i]
		h := t.Outcome.Latency
		if h == nil {
			continue
		}
		h.SetTag(t.tag())
		h.SetStartTimeMs(t.Outcome.Start.UnixMilli())
		h.SetEndTimeMs(t.Outcome.Start.Add(max(t.Outcome.Elapsed, time.Millisecond)).UnixMilli())
		if err := l.OutputIntervalHistogram(h); err != nil {
			return err
		}
	}
	return nil
}
