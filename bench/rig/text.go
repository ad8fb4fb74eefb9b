package rig

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"millrace/bench/report"
	"millrace/bench/result"
	"millrace/bench/search"
)

// Line is what a search found, on a line.
func Line(s *search.Result) string {
	var parts []string
	add := func(format string, a ...any) { parts = append(parts, fmt.Sprintf(format, a...)) }
	for i := range s.MLR {
		m := &s.MLR[i]
		add("%s", sized(m.Size))
		for k := range m.Goals {
			add("%s %s", m.Goals[k].Goal.Name, goal(&m.Goals[k]))
		}
	}
	for i := range s.RFC2544 {
		r := &s.RFC2544[i]
		add("%s", sized(r.Size))
		if t := r.Throughput; t != nil && t.Rate != nil {
			add("throughput %s", pps(t.Rate))
		}
	}
	if c := s.SelfTest; c != nil {
		for i := range c.Ceilings {
			add("%s the generator alone %s", sized(c.Ceilings[i].Size), pps(&c.Ceilings[i].Rate))
		}
	}
	if k := s.Soak; k != nil {
		add("%s %s: lost %d of %d frames, in %d of %d intervals", sized(k.Size), pps(&k.Rate), k.Lost, k.Sent, k.Lossy, len(k.Intervals))
	}
	if s.Partial != "" {
		add("partial: %s", s.Partial)
	}
	return fmt.Sprintf("%s %s: %s (%d trials)", s.Bed, s.Search, strings.Join(parts, ", "), s.Trials)
}

func sized(size int) string {
	if size == 0 {
		return "profile"
	}
	return fmt.Sprintf("%d B", size)
}

// pps is a rate as people read it.
func pps(r *search.Rate) string {
	if r == nil {
		return "none"
	}
	return strings.TrimSpace(result.Number(r.FPS)) + "pps"
}

func goal(g *search.GoalResult) string {
	switch {
	case g.Conditional == nil:
		return "none"
	case g.Limited == search.LimitedByGenerator || g.Limited == search.LimitedByLine:
		return "≥ " + pps(g.Conditional)
	}
	return pps(g.Conditional)
}

// micro is nanoseconds as microseconds.
func micro(ns int64) string { return fmt.Sprintf("%.1f", float64(ns)/1000) }

// Table prints what a run found, sizes below each other and things under test side by side in lines, with the generator's own
// ceiling and the latencies; then the warnings.
func Table(w io.Writer, r *report.Run) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight|tabwriter.TabIndent)
	mlr, rfc := rows(r, func(s *search.Result) int { return len(s.MLR) }), rows(r, func(s *search.Result) int { return len(s.RFC2544) })
	if len(mlr) > 0 {
		fmt.Fprint(t, "size\tunder test\t")
		for i := range mlr[0].MLR[0].Goals {
			fmt.Fprintf(t, "%s\t", mlr[0].MLR[0].Goals[i].Goal.Name)
		}
		fmt.Fprint(t, "generator\t")
		for _, p := range mlr[0].MLR[0].Parts {
			fmt.Fprintf(t, "p50/p99 µs at %.0f %%\t", p.Part*100)
		}
		fmt.Fprintln(t)
		for _, s := range mlr {
			m := &s.MLR[0]
			fmt.Fprintf(t, "%s\t%s\t", sized(m.Size), s.Bed)
			for i := range m.Goals {
				fmt.Fprintf(t, "%s\t", goal(&m.Goals[i]))
			}
			fmt.Fprintf(t, "%s\t", ceiling(m.Ceiling))
			latencies(t, m.Parts)
			fmt.Fprintln(t)
		}
	}
	if len(rfc) > 0 {
		fmt.Fprint(t, "size\tunder test\tthroughput\tgenerator\t")
		for _, p := range rfc[0].RFC2544[0].Latency {
			fmt.Fprintf(t, "p50/p99 µs at %.0f %%\t", p.Part*100)
		}
		fmt.Fprint(t, "loss at the highest rate\tback-to-back\trecovery\t\n")
		for _, s := range rfc {
			m := &s.RFC2544[0]
			through := "none"
			if m.Throughput != nil {
				through = pps(m.Throughput.Rate)
			}
			fmt.Fprintf(t, "%s\t%s\t%s\t%s\t", sized(m.Size), s.Bed, through, ceiling(m.Ceiling))
			latencies(t, m.Latency)
			if l := m.LossRate; len(l) > 0 && l[0].Invalid == "" {
				fmt.Fprintf(t, "%.2f %% of %s\t", l[0].Loss*100, pps(&l[0].Rate))
			} else {
				fmt.Fprint(t, "-\t")
			}
			switch b := m.BackToBack; {
			case b == nil || b.Invalid != "":
				fmt.Fprint(t, "-\t")
			default:
				fmt.Fprintf(t, "%.0f frames\t", b.Mean)
			}
			switch x := m.Recovery; {
			case x == nil || x.Invalid != "":
				fmt.Fprint(t, "-\t")
			default:
				fmt.Fprintf(t, "%v\t", x.Mean.Round(10*time.Microsecond))
			}
			fmt.Fprintln(t)
		}
	}
	for _, s := range r.Searches {
		if k := s.Soak; k != nil {
			fmt.Fprintf(t, "%s\n", Line(s))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, s := range r.Warned() {
		if _, err := fmt.Fprintln(w, "warning:", s); err != nil {
			return err
		}
	}
	return nil
}

// rows are the searches with something to print, by frame size.
func rows(r *report.Run, n func(*search.Result) int) (l []*search.Result) {
	for _, s := range r.Searches {
		if n(s) > 0 {
			l = append(l, s)
		}
	}
	size := func(s *search.Result) int {
		if len(s.MLR) > 0 {
			return s.MLR[0].Size
		}
		return s.RFC2544[0].Size
	}
	slices.SortStableFunc(l, func(a, b *search.Result) int { return size(a) - size(b) })
	return l
}

func ceiling(c *search.Ceiling) string {
	if c == nil {
		return "unknown"
	}
	return pps(&c.Rate)
}

func latencies(w io.Writer, l []search.LatencyPoint) {
	for _, p := range l {
		if p.Latency == nil || p.Invalid != "" {
			fmt.Fprint(w, "-\t")
			continue
		}
		fmt.Fprintf(w, "%s/%s\t", micro(p.Latency.P50), micro(p.Latency.P99))
	}
}
