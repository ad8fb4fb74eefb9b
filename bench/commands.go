package bench

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
)

// Add adds `millrace bench` to the root command.
func Add(root *cobra.Command) {
	c := &cobra.Command{
		Use:   "bench",
		Short: "Measure the road, the ports and the polling loop",
		Long: `Measures Millrace on this machine, and its peers in the same run: results compare as
ratios within a run, not across machines or days. Every bench writes a table, and with
--json FILE (- for standard output) the same as JSON.`,
	}
	c.AddCommand(roadCommand(), portsCommand(), jitterCommand(), peerCommand())
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
	var table string
	c := &cobra.Command{
		Use:   "road [CASE]",
		Short: "The whole road between ports in memory, and each of its stages",
		Long: `Takes packets down the whole road between ports in memory, again and again, on one
core, and prints TSC clocks and nanoseconds per packet: best and median of the runs.

hot keeps 4,096 packets in flight, which stay in the cache; cold 65,536, which do
not. Figures of single stages contain the reading of the clock. CASE selects the
cases whose name contains it.`,
		Example: `  millrace bench road
  millrace bench road ipv4/64B/hot --runs 20
  millrace bench road full-table --table v4.txt.gz --json road.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Filter = args[0]
			}
			if table != "" {
				var err error
				if o.Table, err = readLines(table); err != nil {
					return err
				}
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
	c.Flags().StringVar(&table, "table", "", "prefixes of the full table, one a line, may be gzipped; a made table of a million otherwise")
	out.flags(c)
	return c
}

// readLines reads a text file, which may be gzipped.
func readLines(path string) (lines []string, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	s := bufio.NewScanner(r)
	for s.Scan() {
		lines = append(lines, s.Text())
	}
	return lines, s.Err()
}
