package bench

import (
	"cmp"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"millrace/bench/bgp"
)

// dataFlags are the flags that name tables and streams of changes.
type dataFlags struct {
	dir   string
	files bgp.Files
}

func (d *dataFlags) flags(c *cobra.Command, source *string) {
	f := c.Flags()
	f.StringVar(&d.dir, "data", os.Getenv(bgp.Env), "directory of v4.txt, v6.txt, upd4.txt and upd6.txt, each of which may be gzipped (.gz); by default that of $"+bgp.Env)
	f.StringVar(&d.files.V4, "v4", "", "IPv4 table: one prefix a line, may be gzipped")
	f.StringVar(&d.files.V6, "v6", "", "IPv6 table")
	f.StringVar(source, "source", "", "where the data is from, for the report")
}

func (d *dataFlags) updateFlags(c *cobra.Command) {
	c.Flags().StringVar(&d.files.Updates4, "updates4", "", `changes of the IPv4 table: lines "A prefix" and "W prefix"`)
	c.Flags().StringVar(&d.files.Updates6, "updates6", "", "changes of the IPv6 table")
}

// find is the files by name, else those of the directory.
func (d *dataFlags) find() (bgp.Files, error) {
	if d.dir == "" {
		return d.files, nil
	}
	in, err := bgp.Find(d.dir)
	f := d.files
	return bgp.Files{V4: cmp.Or(f.V4, in.V4), V6: cmp.Or(f.V6, in.V6),
		Updates4: cmp.Or(f.Updates4, in.Updates4), Updates6: cmp.Or(f.Updates6, in.Updates6)}, err
}

func fibCommand() *cobra.Command {
	var o FIBOptions
	var out output
	var data dataFlags
	c := &cobra.Command{
		Use:   "fib [CASE]",
		Short: "Longest-prefix match in full tables, and changes to them, beside peers",
		Long: `Measures the forwarding tables with a table of the Internet, or one made like it, and
with the same routes and destinations in the same run their peers: bart, and in the
build with DPDK (make build-dpdk) rte_fib, rte_lpm, rte_fib6 and rte_lpm6.

  prefixes, zipf     destinations under random prefixes, and with the frequencies of traffic
  uniform, intervals every address, or every interval between two prefixes, as likely
  .../polluted       with 64 MiB of packets touched between batches, whose time does not count
  prefixes/1k ...    parts of the table
  hosts              500,000 host routes beside the table
  memory             what lookups read, and what only changes need
  build              a whole table through the FIB; build/table alone
  updates            a day's changes while another thread looks up
  fib-updates        the same through the FIB, as a router's sources give them

All contenders look up in batches of 256 and must give the same answers. Rates are
by the CPU time of the thread, updates_per_second by the clock. CASE selects the
cases whose name contains it.`,
		Example: `  millrace bench fib
  millrace bench fib ipv4/zipf --runs 15
  millrace bench fib --data bgp/ --source "RIPE NCC RIS, AS3333, 2026-05-11" --json fib.json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) (err error) {
			if len(args) == 1 {
				o.Filter = args[0]
			}
			if o.Data, err = data.find(); err != nil {
				return err
			}
			if o.Runs < 1 || o.Routes < 1000 {
				return fmt.Errorf("--runs must be at least 1, --routes at least 1000")
			}
			o.Note = func(format string, a ...any) { fmt.Fprintf(c.ErrOrStderr(), format+"\n", a...) }
			o.Report = func(done, total int) { progress(done, total, "run") }
			r, err := FIB(o)
			if err != nil {
				return err
			}
			return out.write(c, r)
		},
	}
	c.Flags().IntVar(&o.Runs, "runs", 9, "runs of each case")
	c.Flags().IntVar(&o.Routes, "routes", 1<<20, "routes of an IPv4 table that is made; one of IPv6 has a quarter of it")
	data.flags(c, &o.Source)
	data.updateFlags(c)
	out.flags(c)
	return c
}
