package report

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"millrace/bench/result"
	"millrace/control/cli"
)

// CompareCommand is `millrace bench compare`.
func CompareCommand() *cobra.Command {
	o := result.CompareOptions{}
	var threshold, confidence float64
	var format string
	c := &cobra.Command{
		Use: "compare BASE NOW", Short: "What changed between two runs beyond the noise; exit code 1 for a regression",
		Long: `Compares the results of two runs: JSON files of a bench, or folders of runs. A side may be
several runs, with commas between them, made in turn: then the noise between runs
counts too. For each result the ratio of the medians is printed with its interval
(bootstrapped). It is worse or better only if the whole interval says so, and if the
change is beyond the threshold.

Absolute numbers of different machines are not compared: only ratios to peers that
were measured in the same run. --relative does so on one machine too.`,
		Example: `  millrace bench compare old.json new.json
  millrace bench compare a1.json,a2.json,a3.json b1.json,b2.json,b3.json --threshold 5 --markdown`,
		Args: cobra.ExactArgs(2),
		RunE: func(c *cobra.Command, args []string) error {
			var sides [2][]*result.Report
			for i := range sides {
				for p := range strings.SplitSeq(args[i], ",") {
					r, err := result.Read(p)
					if err != nil {
						return err
					}
					sides[i] = append(sides[i], r)
				}
			}
			o.Threshold, o.Confidence = threshold/100, confidence/100
			cmp, err := result.Compare(sides[0], sides[1], o)
			if err != nil {
				return err
			}
			write := map[string]func() error{
				"text":     func() error { return cmp.WriteText(c.OutOrStdout()) },
				"json":     func() error { return cmp.WriteJSON(c.OutOrStdout()) },
				"markdown": func() error { return cmp.WriteMarkdown(c.OutOrStdout()) },
			}[format]
			if write == nil {
				return fmt.Errorf("--format %s: must be text, json or markdown", format)
			}
			if err := write(); err != nil {
				return err
			}
			if n := len(cmp.Regressions()); n > 0 {
				return cli.No("%d of %d results are worse", n, len(cmp.Changes))
			}
			return nil
		},
	}
	f := c.Flags()
	f.Float64Var(&threshold, "threshold", 2, "smallest change that matters, in percent")
	f.Float64Var(&confidence, "confidence", 99, "confidence of the intervals, in percent")
	f.BoolVar(&o.Relative, "relative", false, "compare ratios to peers, also on one machine")
	f.StringVar(&format, "format", "text", "text, json or markdown")
	return c
}

// ReportCommand is `millrace bench report`.
func ReportCommand() *cobra.Command {
	var out string
	c := &cobra.Command{
		Use: "report RUN", Short: "Write the page, tables and plots of a run, whole or interrupted",
		Long: `Writes report.html, report.md, trials.csv, latency.hlog and plots/ from a run's folder,
also of a run that was interrupted, or from the JSON of any bench.`,
		Example: `  millrace bench report runs/2026-05-11
  millrace bench road --json road.json && millrace bench report road.json --out road`,
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			r, err := Open(args[0])
			if err != nil {
				return err
			}
			if st, err := os.Stat(args[0]); out == "" && err == nil && !st.IsDir() {
				out = strings.TrimSuffix(args[0], filepath.Ext(args[0])) + ".report"
			}
			if out != "" {
				r.Dir = out
				if err := os.MkdirAll(out, 0o755); err != nil {
					return err
				}
			}
			if err := r.Write(); err != nil {
				return err
			}
			for _, w := range r.Warned() {
				fmt.Fprintln(c.OutOrStdout(), "warning:", w)
			}
			fmt.Fprintln(c.OutOrStdout(), filepath.Join(r.Dir, "report.html"))
			return nil
		},
	}
	c.Flags().StringVar(&out, "out", "", "folder to write to; by default the run's, or FILE.report of a file")
	return c
}

// HistoryCommand is `millrace bench history`.
func HistoryCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{Use: "history", Short: "Keep runs, and draw how results change over time"}
	c.PersistentFlags().StringVar(&dir, "dir", "bench-history", "folder of the history")
	add := &cobra.Command{
		Use: "add RUN...", Short: "Add runs: JSON files of benches, or folders", Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			h, err := OpenHistory(dir)
			if err != nil {
				return err
			}
			for _, p := range args {
				r, err := result.Read(p)
				if err != nil {
					return err
				}
				if err := h.Add(r); err != nil {
					return err
				}
			}
			return nil
		},
	}
	list := &cobra.Command{
		Use: "list", Short: "List the runs", Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			h, err := OpenHistory(dir)
			if err != nil {
				return err
			}
			for i, r := range h.Reports {
				fmt.Fprintf(c.OutOrStdout(), "%d  %s  %s  %d results  revision %s  %d warnings\n", i+1, r.Started.UTC().Format(time.DateTime), r.Bench,
					len(r.Results), r.Machine.Revision, len(r.Warnings))
			}
			return nil
		},
	}
	plot := &cobra.Command{
		Use: "plot [CASE]", Short: "Draw trends, and print where levels changed", Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			h, err := OpenHistory(dir)
			if err != nil {
				return err
			}
			ts := h.Trends(strings.Join(args, ""))
			if len(ts) == 0 {
				return fmt.Errorf("%s has no result twice", dir)
			}
			for _, t := range ts {
				for _, s := range t.Steps {
					fmt.Fprintf(c.OutOrStdout(), "%s %s %s: run %d: %s to %s, %+.1f %%\n", t.Bench, t.Name, t.Metric, s.At+1,
						result.Number(s.Before), result.Number(s.After), 100*(s.After/s.Before-1))
				}
			}
			path := filepath.Join(dir, "history.html")
			if err := WritePage(path, Plot(ts)); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), path)
			return nil
		},
	}
	c.AddCommand(add, list, plot)
	return c
}
