package bench

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"millrace/bench/report"
	"millrace/bench/result"
	"millrace/bench/rig"
)

// Report is what all benches give: see package result.
type Report = result.Report

// Add adds `millrace bench` to the root command.
func Add(root *cobra.Command) {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure the road, the forwarding tables, the ports and the polling loop",
		Long: `Measures Millrace on this machine, and its peers in the same run: results compare as
ratios within a run, not across machines or days. Every bench writes a table, and with
--json FILE (- for standard output) the same as JSON.`,
	}
	c.AddCommand(roadCommand(), fibCommand(), portsCommand(), jitterCommand(), peerCommand())
	c.AddCommand(rig.Commands()...)
	c.AddCommand(report.CompareCommand(), report.ReportCommand(), report.HistoryCommand())
	root.AddCommand(c)
}

// output is the flags that all benches share.
type output struct{ json string }

func (o *output) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.json, "json", "", "write the results as JSON to this file; - for standard output, without the table")
}

func (o *output) write(c *cobra.Command, r *Report) error {
	if o.json != "" {
		if err := r.WriteJSON(o.json); err != nil || o.json == "-" {
			return err
		}
	}
	return r.WriteText(c.OutOrStdout())
}

// progress shows how far a bench is on a terminal.
func progress(done, total int, what string) {
	if st, err := os.Stderr.Stat(); err != nil || st.Mode()&os.ModeCharDevice == 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "\r\x1b[K%s %d/%d", what, done, total)
	if done == total {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}

func roadCommand() *cobra.Command {
	var o RoadOptions
	var out output
	var data dataFlags
	c := &cobra.Command{
		Use:   "road [CASE]",
		Short: "The whole road between ports in memory, and each of its stages",
		Long: `Takes packets down the whole road between ports in memory, again and again, on one
core, and prints TSC clocks and nanoseconds per packet: best and median of the runs.

hot keeps 4,096 packets in flight, which stay in the cache; cold 65,536, which do
not. full-table has a table of the Internet, from files or made. Figures of single
stages contain the reading of the clock. CASE selects the cases whose name
contains it.`,
		Example: `  millrace bench road
  millrace bench road ipv4/64B/hot --runs 20
  millrace bench road full-table --data bgp/ --json road.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Filter = args[0]
			}
			var err error
			if o.Data, err = data.find(); err != nil {
				return err
			}
			o.Report = func(done, total int) { progress(done, total, "run") }
			r, err := Road(o)
			if err != nil {
				return err
			}
			return out.write(c, r)
		},
	}
	c.Flags().IntVar(&o.Runs, "runs", 9, "runs of each case")
	c.Flags().StringVar(&data.files.V4, "table", "", "the same as --v4")
	data.flags(c, &o.Source)
	out.flags(c)
	return c
}
