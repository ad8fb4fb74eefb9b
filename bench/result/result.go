// Package result has what all benches write: a report of measured values with the facts of the machine, and what
// is asked of such reports: intervals, comparison of two of them.
//
// Values of one run compare; so do runs of one machine, with more noise. Runs of different machines compare only
// as ratios to a peer that was measured in the same run.
package result

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Schema is the version of the JSON. It rises when a reader of an older one would be misled; fields may be added without.
const Schema = 1

// Report is one run of a benchmark: what all `millrace bench ... --json` write.
type Report struct {
	Schema   int       `json:"schema"` // 1
	Bench    string    `json:"bench"`
	Started  time.Time `json:"started,omitzero"`
	Ended    time.Time `json:"ended,omitzero"`
	Machine  Machine   `json:"machine"`
	Data     []string  `json:"data,omitempty"`     // what was measured on, where that is not the bench's own
	Warnings []string  `json:"warnings,omitempty"` // why the figures may mislead
	Notes    []string  `json:"notes,omitempty"`    // what a reader should know: outliers, disturbances
	Results  []Result  `json:"results"`

	watch *watch // of the machine, until Finish
}

// Result is one measured value. Name is feature/case/variant, with @peer for a peer measured
// in the same run.
type Result struct {
	Name   string  `json:"name"`
	Metric string  `json:"metric"`
	Unit   string  `json:"unit"`
	Better string  `json:"better,omitempty"` // Higher or Lower
	Best   float64 `json:"best"`
	Median float64 `json:"median"`
	Runs   int     `json:"runs"`
	// Values are the single runs' in their order. What took turns has the same round at the same place.
	Values []float64 `json:"values,omitempty"`
}

// Values of Result.Better.
const (
	Higher = "higher"
	Lower  = "lower"
)

// Own is the name without a peer.
func (x *Result) Own() string { n, _, _ := strings.Cut(x.Name, "@"); return n }

// Peer is who was measured, "" for Millrace.
func (x *Result) Peer() string { _, p, _ := strings.Cut(x.Name, "@"); return p }

// New starts a report about this machine. ports are the kernel's interfaces that packets go by.
func New(name string, ports ...string) *Report {
	return &Report{Schema: Schema, Bench: name, Started: time.Now().UTC().Round(time.Millisecond), Machine: ThisMachine(ports...), watch: startWatch()}
}

// Finish notes the end and what else the machine did since New. WriteJSON and WriteText do it; only the first call counts.
func (r *Report) Finish() {
	if r.watch == nil {
		return
	}
	r.Ended = time.Now().UTC().Round(time.Millisecond)
	r.Machine.During = r.watch.end()
	r.watch = nil
	for _, w := range r.Machine.Warnings() {
		r.Warn("%s", w)
	}
}

// Warn adds a warning, once.
func (r *Report) Warn(format string, a ...any) {
	if w := fmt.Sprintf(format, a...); !slices.Contains(r.Warnings, w) {
		r.Warnings = append(r.Warnings, w)
	}
}

// Add records runs of one value; higher says whether more is better.
func (r *Report) Add(name, metric, unit string, higher bool, runs []float64) {
	if len(runs) == 0 {
		return
	}
	better, best := Lower, slices.Min(runs)
	if higher {
		better, best = Higher, slices.Max(runs)
	}
	r.Results = append(r.Results, Result{name, metric, unit, better, best, Median(runs), len(runs), slices.Clone(runs)})
}

// Source names where the data is from, if it is known.
func (r *Report) Source(s string) {
	if s != "" {
		r.Data = append(r.Data, "source of the data: "+s)
	}
}

// Find finds a result, nil where there is none.
func (r *Report) Find(name, metric string) *Result {
	for i := range r.Results {
		if x := &r.Results[i]; x.Name == name && x.Metric == metric {
			return x
		}
	}
	return nil
}

// Value finds a result's best value.
func (r *Report) Value(name, metric string) (float64, bool) {
	if x := r.Find(name, metric); x != nil {
		return x.Best, true
	}
	return 0, false
}

// Read reads a report from a file, or from result.json of a run's folder.
func Read(path string) (*Report, error) {
	if st, err := os.Stat(path); err == nil && st.IsDir() {
		path = filepath.Join(path, "result.json")
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &Report{}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if r.Schema != Schema {
		return nil, fmt.Errorf("%s: schema %d, this program reads %d", path, r.Schema, Schema)
	}
	return r, nil
}

// WriteJSON writes the report to a file, or to standard output for "-".
func (r *Report) WriteJSON(path string) error {
	r.Finish()
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if path == "-" {
		_, err = os.Stdout.Write(b)
		return err
	}
	return os.WriteFile(path, b, 0o644)
}

// WriteText prints the report as a table.
func (r *Report) WriteText(w io.Writer) error {
	r.Finish()
	m := r.Machine
	fmt.Fprintf(w, "%s: %s, %d cores, TSC %.2f GHz, Linux %s, %s", r.Bench, m.CPU, m.Cores, m.TSCGHz, m.Kernel, m.Go)
	if m.Pages != "" {
		fmt.Fprintf(w, ", buffers in %s", m.Pages)
	}
	fmt.Fprint(w, "\n")
	for _, d := range r.Data {
		fmt.Fprintln(w, d)
	}
	for _, s := range r.Warnings {
		fmt.Fprintln(w, "warning:", s)
	}
	fmt.Fprint(w, "\n")
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight|tabwriter.TabIndent)
	peers := slices.ContainsFunc(r.Results, func(x Result) bool { return r.Ratio(&x) != 0 })
	fmt.Fprint(t, "case\tmetric\tbest\tmedian\truns\t")
	if peers {
		fmt.Fprint(t, "millrace\t")
	}
	fmt.Fprintln(t)
	for i := range r.Results {
		x := &r.Results[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t", x.Name, x.Metric, Number(x.Best), Number(x.Median), x.Runs)
		if v := r.Ratio(x); v != 0 {
			fmt.Fprintf(t, "%.2f x\t", v)
		} else if peers {
			fmt.Fprint(t, "\t")
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// Ratio is how many times better Millrace's median is than that of a peer, 0 for what is no peer's result.
func (r *Report) Ratio(peer *Result) float64 {
	if peer.Peer() == "" {
		return 0
	}
	x := r.Find(peer.Own(), peer.Metric)
	if x == nil || x.Median == 0 || peer.Median == 0 {
		return 0
	}
	if peer.Better == Higher {
		return x.Median / peer.Median
	}
	return peer.Median / x.Median
}

// Number is a value as people read it: three or four digits and a power of a thousand.
func Number(v float64) string {
	switch a := max(v, -v); {
	case a >= 1e9:
		return fmt.Sprintf("%.2f G", v/1e9)
	case a >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case a >= 1e4:
		return fmt.Sprintf("%.1f k", v/1e3)
	case a < 1:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.1f", v)
}
