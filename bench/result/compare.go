package result

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// CompareOptions of a comparison.
type CompareOptions struct {
	Confidence float64 // of each interval, below 1; 0 for 0.99
	Threshold  float64 // changes below it do not matter; 0.02 is 2 %
	// Relative compares ratios to peers also on one machine, so that what has changed on it meanwhile cancels out.
	Relative bool
}

// Verdicts on a change.
const (
	Same   = "same"   // no more than the noise, or than the threshold
	Better = "better" // beyond both
	Worse  = "worse"
	Unsure = "unsure" // too few runs, or values that make no ratio
)

// fewest values of a side that make an interval.
const fewest = 4

// Change is one result in both sides.
type Change struct {
	Name    string   `json:"name"`
	Metric  string   `json:"metric"`
	Unit    string   `json:"unit"`
	Against string   `json:"against,omitempty"` // the peer whose ratio is compared
	Base    float64  `json:"base"`              // median, or ratio to the peer
	Now     float64  `json:"now"`
	Ratio   Interval `json:"ratio"` // now to base
	Verdict string   `json:"verdict"`
	Why     string   `json:"why,omitempty"` // of an unsure one
}

// Comparison is what changed from base to now.
type Comparison struct {
	Schema     int      `json:"schema"` // 1
	Bench      string   `json:"bench"`
	Confidence float64  `json:"confidence"`
	Threshold  float64  `json:"threshold"`
	Relative   bool     `json:"relative"` // ratios to peers were compared
	Notes      []string `json:"notes,omitempty"`
	Changes    []Change `json:"changes"`
	Missing    []string `json:"missing,omitempty"` // results of base that now has not
	Added      []string `json:"added,omitempty"`
}

// Regressions are the changes for the worse.
func (c *Comparison) Regressions() (l []Change) {
	for _, x := range c.Changes {
		if x.Verdict == Worse {
			l = append(l, x)
		}
	}
	return l
}

// Compare says what changed from base to now beyond the noise. Each side is the reports of one or more runs of the same bench;
// several, made in turn, tell also the noise between runs. Of different machines only ratios to peers of the
// same run compare; without peers in common it is an error.
func Compare(base, now []*Report, o CompareOptions) (*Comparison, error) {
	if o.Confidence == 0 {
		o.Confidence = 0.99
	}
	if !(o.Confidence > 0.5 && o.Confidence < 1) || o.Threshold < 0 {
		return nil, fmt.Errorf("confidence %v and threshold %v: they must be between 0.5 and 1, and at least 0", o.Confidence, o.Threshold)
	}
	if len(base) == 0 || len(now) == 0 {
		return nil, fmt.Errorf("nothing to compare")
	}
	c := &Comparison{Schema: Schema, Bench: base[0].Bench, Confidence: o.Confidence, Threshold: o.Threshold, Relative: o.Relative}
	all := slices.Concat(base, now)
	for _, r := range all {
		if r.Bench != c.Bench {
			return nil, fmt.Errorf("results of %q and of %q do not compare", c.Bench, r.Bench)
		}
		same, changed := all[0].Machine.Same(&r.Machine)
		if !same {
			c.Relative = true
			if n := "different machines: only ratios to peers of the same run compare"; !slices.Contains(c.Notes, n) {
				c.Notes = append(c.Notes, n)
			}
		}
		for _, n := range changed {
			if n = "the machine changed: " + n; !slices.Contains(c.Notes, n) {
				c.Notes = append(c.Notes, n)
			}
		}
	}
	for i, r := range all {
		for _, w := range r.Warnings {
			c.Notes = append(c.Notes, fmt.Sprintf("%s: %s", map[bool]string{true: "base", false: "now"}[i < len(base)], w))
		}
	}
	if !slices.Equal(base[0].Data, now[0].Data) {
		c.Notes = append(c.Notes, "measured on different data: "+strings.Join(base[0].Data, "; ")+" / "+strings.Join(now[0].Data, "; "))
	}
	for i := range base[0].Results {
		x := &base[0].Results[i]
		if !has(now, x) {
			c.Missing = append(c.Missing, x.Name+" "+x.Metric)
			continue
		}
		if !c.Relative {
			c.Changes = append(c.Changes, c.change(x, "", base, now))
			continue
		}
		if x.Peer() == "" {
			continue
		}
		own := &Result{Name: x.Own(), Metric: x.Metric, Unit: x.Unit, Better: x.Better}
		if has(base, own) && has(now, own) {
			c.Changes = append(c.Changes, c.change(own, x.Peer(), base, now))
		}
	}
	for i := range now[0].Results {
		if x := &now[0].Results[i]; !has(base, x) {
			c.Added = append(c.Added, x.Name+" "+x.Metric)
		}
	}
	if len(c.Changes) == 0 {
		if c.Relative {
			return nil, fmt.Errorf("%s", strings.Join(append(c.Notes, "the two sides have no result with a peer in common"), "; "))
		}
		return nil, fmt.Errorf("the two sides have no result in common")
	}
	return c, nil
}

// has reports whether every report has a result.
func has(l []*Report, x *Result) bool {
	return !slices.ContainsFunc(l, func(r *Report) bool { return r.Find(x.Name, x.Metric) == nil })
}

func gather(l []*Report, x *Result, peer string) (s []Sample, few bool) {
	for _, r := range l {
		own := r.Find(x.Name, x.Metric)
		v := Sample{Own: own.Values}
		few = few || len(own.Values) < fewest
		if peer != "" {
			v.Peer = r.Find(x.Name+"@"+peer, x.Metric).Values
			few = few || len(v.Peer) < fewest
		}
		s = append(s, v)
	}
	return s, few
}

func level(l []*Report, x *Result, peer string) float64 {
	sum := 0.0
	for _, r := range l {
		v := r.Find(x.Name, x.Metric).Median
		if peer != "" {
			v /= r.Find(x.Name+"@"+peer, x.Metric).Median
		}
		sum += v
	}
	return sum / float64(len(l))
}

func (c *Comparison) change(x *Result, peer string, base, now []*Report) Change {
	ch := Change{Name: x.Name, Metric: x.Metric, Unit: x.Unit, Against: peer, Base: level(base, x, peer), Now: level(now, x, peer), Verdict: Unsure}
	ch.Ratio.Value = finite(ch.Now / ch.Base)
	b, few1 := gather(base, x, peer)
	n, few2 := gather(now, x, peer)
	if few1 || few2 {
		ch.Why = fmt.Sprintf("fewer than %d values", fewest)
		return ch
	}
	i := RatioOfMedians(b, n, c.Confidence)
	if math.IsNaN(i.Value) {
		ch.Why = "values that are not positive"
		return ch
	}
	if x.Better == "" {
		ch.Why = "nothing says whether more is better"
		return ch
	}
	ch.Ratio, ch.Verdict = i, Same
	if x.Better == Lower {
		i = Interval{1 / i.Value, 1 / i.High, 1 / i.Low}
	}
	switch {
	case i.High < 1 && i.Value < 1-c.Threshold:
		ch.Verdict = Worse
	case i.Low > 1 && i.Value > 1/(1-min(c.Threshold, 0.99)):
		ch.Verdict = Better
	}
	return ch
}

func finite(v float64) float64 {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	return v
}

// WriteJSON writes the comparison as JSON.
func (c *Comparison) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(c)
}

// order has what changed first.
func (c *Comparison) order() []Change {
	rank := []string{Worse, Better, Unsure, Same}
	l := slices.Clone(c.Changes)
	slices.SortStableFunc(l, func(a, b Change) int { return slices.Index(rank, a.Verdict) - slices.Index(rank, b.Verdict) })
	return l
}

func (x *Change) columns() []string {
	name := x.Name
	if x.Against != "" {
		name += " / @" + x.Against
	}
	iv := x.Why
	if x.Ratio.Low != 0 {
		iv = fmt.Sprintf("%+.1f %% to %+.1f %%", 100*(x.Ratio.Low-1), 100*(x.Ratio.High-1))
	}
	return []string{name, x.Metric, Number(x.Base), Number(x.Now), fmt.Sprintf("%+.1f %%", 100*(x.Ratio.Value-1)), iv, x.Verdict}
}

var compareHead = []string{"case", "metric", "base", "now", "change", "interval", ""}

// Summary counts the verdicts.
func (c *Comparison) Summary() string {
	n := map[string]int{}
	for _, x := range c.Changes {
		n[x.Verdict]++
	}
	s := fmt.Sprintf("%d worse, %d better, %d the same, %d unsure (%.4g %% confidence, threshold %.4g %%)", n[Worse], n[Better], n[Same], n[Unsure],
		100*c.Confidence, 100*c.Threshold)
	if len(c.Missing)+len(c.Added) > 0 {
		s += fmt.Sprintf("; %d only in base, %d only in now", len(c.Missing), len(c.Added))
	}
	return s
}

// WriteText prints what changed as a table.
func (c *Comparison) WriteText(w io.Writer) error {
	for _, n := range c.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight|tabwriter.TabIndent)
	fmt.Fprintln(t, strings.Join(compareHead, "\t")+"\t")
	for _, x := range c.order() {
		fmt.Fprintln(t, strings.Join(x.columns(), "\t")+"\t")
	}
	if err := t.Flush(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\n%s\n", c.Summary())
	return err
}

// WriteMarkdown writes it as Markdown, for a comment on a change.
func (c *Comparison) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "**%s**: %s\n\n", c.Bench, c.Summary())
	for _, n := range c.Notes {
		fmt.Fprintf(&b, "- %s\n", n)
	}
	if len(c.Notes) > 0 {
		b.WriteString("\n")
	}
	b.WriteString("| case | metric | base | now | change | interval | verdict |\n|---|---|--:|--:|--:|--:|---|\n")
	for _, x := range c.order() {
		col := x.columns()
		if x.Verdict == Worse || x.Verdict == Better {
			col[6] = "**" + col[6] + "**"
		}
		fmt.Fprintf(&b, "| %s |\n", strings.Join(col, " | "))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
