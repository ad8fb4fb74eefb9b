// Package bench measures Millrace, and its peers in the same run, and prints what it
// measured for people and as JSON.
package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"millrace/internal/clock"
)

// Report is one run of a benchmark: what all `millrace bench ... --json` write.
type Report struct {
	Schema  int      `json:"schema"` // 1
	Bench   string   `json:"bench"`
	Machine Machine  `json:"machine"`
	Data    []string `json:"data,omitempty"` // what was measured on, where that is not the bench's own
	Results []Result `json:"results"`
}

// Machine is where it ran: results of different machines do not compare.
type Machine struct {
	CPU    string  `json:"cpu"`
	Cores  int     `json:"cores"`
	TSCGHz float64 `json:"tsc_ghz"`
	Kernel string  `json:"kernel"`
	Go     string  `json:"go"`
	GOAMD  string  `json:"goamd64,omitempty"`
	Pages  string  `json:"pages,omitempty"` // of the packet buffers
}

// Result is one measured value. Name is feature/case/variant, with @peer for a peer measured
// in the same run.
type Result struct {
	Name   string  `json:"name"`
	Metric string  `json:"metric"`
	Unit   string  `json:"unit"`
	Best   float64 `json:"best"`
	Median float64 `json:"median"`
	Runs   int     `json:"runs"`
	higher bool    // more is better
}

// NewReport starts a report about this machine.
func NewReport(name string) *Report {
	m := Machine{Cores: runtime.NumCPU(), TSCGHz: math.Round(float64(clock.Hz())/1e7) / 100, Go: runtime.Version()}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for l := range strings.Lines(string(b)) {
			if k, v, ok := strings.Cut(l, ":"); ok && strings.TrimSpace(k) == "model name" {
				m.CPU = strings.TrimSpace(v)
				break
			}
		}
	}
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		m.Kernel = unix.ByteSliceToString(u.Release[:])
	}
	m.GOAMD = goamd64()
	return &Report{Schema: 1, Bench: name, Machine: m}
}

// Add records runs of one value; higher says whether more is better.
func (r *Report) Add(name, metric, unit string, higher bool, runs []float64) {
	if len(runs) == 0 {
		return
	}
	s := slices.Clone(runs)
	slices.Sort(s)
	best := s[0]
	if higher {
		best = s[len(s)-1]
	}
	r.Results = append(r.Results, Result{name, metric, unit, best, s[len(s)/2], len(s), higher})
}

// source names where the data is from, if it is known.
func (r *Report) source(s string) {
	if s != "" {
		r.Data = append(r.Data, "source of the data: "+s)
	}
}

// Value finds a result's best value.
func (r *Report) Value(name, metric string) (float64, bool) {
	for _, x := range r.Results {
		if x.Name == name && x.Metric == metric {
			return x.Best, true
		}
	}
	return 0, false
}

// WriteJSON writes the report to a file, or to standard output for "-".
func (r *Report) WriteJSON(path string) error {
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
	m := r.Machine
	fmt.Fprintf(w, "%s: %s, %d cores, TSC %.2f GHz, Linux %s, %s", r.Bench, m.CPU, m.Cores, m.TSCGHz, m.Kernel, m.Go)
	if m.Pages != "" {
		fmt.Fprintf(w, ", buffers in %s", m.Pages)
	}
	fmt.Fprint(w, "\n")
	for _, d := range r.Data {
		fmt.Fprintln(w, d)
	}
	fmt.Fprint(w, "\n")
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight|tabwriter.TabIndent)
	peers := slices.ContainsFunc(r.Results, func(x Result) bool { return r.ratio(&x) != 0 })
	fmt.Fprint(t, "case\tmetric\tbest\tmedian\truns\t")
	if peers {
		fmt.Fprint(t, "millrace\t")
	}
	fmt.Fprintln(t)
	for i := range r.Results {
		x := &r.Results[i]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t", x.Name, x.Metric, number(x.Best), number(x.Median), x.Runs)
		if v := r.ratio(x); v != 0 {
			fmt.Fprintf(t, "%.2f x\t", v)
		} else if peers {
			fmt.Fprint(t, "\t")
		}
		fmt.Fprintln(t)
	}
	return t.Flush()
}

// ratio is how many times better Millrace's median is than that of a peer, 0 for what is no peer's result.
func (r *Report) ratio(peer *Result) float64 {
	name, _, ok := strings.Cut(peer.Name, "@")
	if !ok {
		return 0
	}
	for i := range r.Results {
		x := &r.Results[i]
		if x.Name != name || x.Metric != peer.Metric || x.Median == 0 || peer.Median == 0 {
			continue
		}
		if peer.higher {
			return x.Median / peer.Median
		}
		return peer.Median / x.Median
	}
	return 0
}

func number(v float64) string {
	switch {
	case v >= 1e6:
		return fmt.Sprintf("%.2f M", v/1e6)
	case v >= 1e4:
		return fmt.Sprintf("%.1f k", v/1e3)
	case v < 1:
		return fmt.Sprintf("%.3f", v)
	}
	return fmt.Sprintf("%.1f", v)
}

// goamd64 is the instruction set level that the binary was built for.
func goamd64() string {
	return buildSetting("GOAMD64")
}
