package rig

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"millrace/bench/dut"
	"millrace/bench/report"
	"millrace/bench/traffic"
)

// Commands are `millrace bench gen`, `rfc2544`, `mlrsearch`, `soak` and `resume`.
func Commands() []*cobra.Command {
	return []*cobra.Command{genCommand(), rfc2544Command(), mlrCommand(), soakCommand(), resumeCommand()}
}

// under describes what can be tested, for help.
func under() string {
	var b strings.Builder
	b.WriteString("What can be under test, one or several:\n")
	names, docs := dut.Kinds()
	for i := range names {
		fmt.Fprintf(&b, "  %-18s %s\n", names[i], docs[i])
	}
	b.WriteString(`millrace alone is the fastest of its kinds that this user may run. With --left and --right it is
whatever stands between these ports, under the name that you give it.`)
	return b.String()
}

// bedFlags are those that say what is under test and what is sent.
func (a *Ask) bedFlags(f *pflag.FlagSet) {
	f.StringVar(&a.Profile, "profile", usualProfile, "what to send: "+strings.Join(traffic.Names(), ", ")+", or a file")
	f.IntSliceVar(&a.CPUs, "cpus", nil, "CPUs to use; the last is for the thing under test")
	f.StringVar(&a.Left, "left", "", "the generator's left port: an interface, NETNS/INTERFACE or memif:SOCKET")
	f.StringVar(&a.Right, "right", "", "its right port")
	f.StringVar(&a.LeftPeer, "left-peer", "", "MAC address that frames are sent to on the left; by default the right port's")
	f.StringVar(&a.RightPeer, "right-peer", "", "the same on the right")
	f.StringVar(&a.Config, "config", "", "file with YAML to add to the configuration of the Millrace under test")
	f.StringArrayVar(&a.Setup, "setup", nil, "command to run in the namespace of what is under test, such as 'nft -f rules.nft'")
}

// fill takes what flags cannot give as it is.
func (a *Ask) fill(c *cobra.Command, args []string, sizes string) error {
	a.Under = args
	if len(args) == 0 {
		a.Under = []string{"millrace"}
		if a.Left != "" {
			a.Under = []string{"outside"}
		}
	}
	switch {
	case sizes == "profile" || sizes == "" && c.Flags().Changed("profile"):
	case sizes == "":
		a.Sizes = usual
	default:
		for s := range strings.SplitSeq(sizes, ",") {
			n, err := strconv.Atoi(strings.TrimSpace(s))
			if err != nil {
				return fmt.Errorf("--sizes %s: %q is not a number of bytes", sizes, s)
			}
			a.Sizes = append(a.Sizes, n)
		}
	}
	if a.Config != "" {
		b, err := os.ReadFile(a.Config)
		if err != nil {
			return err
		}
		a.Config = string(b)
	}
	if strings.ContainsAny(a.Profile, "./") {
		p, err := filepath.Abs(a.Profile) // a run may be resumed from elsewhere
		if err != nil {
			return err
		}
		a.Profile = p
	}
	return nil
}

// searchFlags are those of all searches.
func (a *Ask) searchFlags(f *pflag.FlagSet) {
	f.IntVar(&a.Runs, "runs", 1, "how often to make each search, in turn")
	f.BoolVar(&a.SelfTest, "self-test", true, "find the generator's own ceiling first")
	f.StringVar(&a.Max, "max", "", "highest rate to offer, such as 10Mpps")
	f.StringVar(&a.Limit, "limit", "", "longest time of one search")
}

// searchCommand is a command that makes searches.
func searchCommand(bench, short, long, example string, flags func(*Ask, *pflag.FlagSet)) *cobra.Command {
	a := &Ask{Bench: bench}
	var sizes, out, file string
	c := &cobra.Command{
		Use: bench + " [UNDER-TEST...]", Short: short, Long: long + "\n\n" + under(), Example: example,
		RunE: func(c *cobra.Command, args []string) error {
			if err := a.fill(c, args, sizes); err != nil {
				return err
			}
			if out == "" {
				out = filepath.Join("runs", bench+"-"+time.Now().Format("2006-01-02-150405"))
			}
			return a.run(c, out, file, false)
		},
	}
	a.bedFlags(c.Flags())
	c.Flags().StringVar(&sizes, "sizes", "", "frame sizes in bytes with FCS, such as 64,1518, or 'profile' for the profile's own, the default with --profile")
	flags(a, c.Flags())
	a.searchFlags(c.Flags())
	c.Flags().StringVar(&out, "out", "", "folder of the run, by default runs/"+bench+"-TIME")
	c.Flags().StringVar(&file, "json", "", "write result.json here too; - for standard output, without the table")
	return c
}

func rfc2544Command() *cobra.Command {
	return searchCommand("rfc2544", "Make the tests of RFC 2544: throughput, latency, loss, back-to-back, recovery",
		`Makes the tests of RFC 2544 with RFC 9004's back-to-back frames, of one or several things
under test side by side, and writes a folder with the report. Short trials and few
repetitions are the default; --full has the durations of the RFC and takes days.`,
		`  millrace bench rfc2544
  millrace bench rfc2544 millrace kernel xdp --sizes 64,1518 --tests throughput,latency
  millrace bench rfc2544 my-router --left eth1 --right eth2 --left-peer 02:00:00:00:00:01 --right-peer 02:00:00:00:00:02`,
		func(a *Ask, f *pflag.FlagSet) {
			f.BoolVar(&a.Full, "full", false, "durations and repetitions of the RFC")
			f.StringSliceVar(&a.Tests, "tests", nil, "only some: "+strings.Join(testNames, ", "))
		})
}

func mlrCommand() *cobra.Command {
	return searchCommand("mlrsearch", "Find NDR and PDR together (RFC 9971)",
		`Finds the rates that are forwarded without loss (NDR) and with half a percent of loss (PDR),
as FD.io CSIT does: trials of a second that sum up to 21, bounds 0.5 % apart, half of
the trials at a bound may be bad. Latency at 10, 50 and 90 % of the NDR.`,
		`  millrace bench mlrsearch millrace kernel bridge
  millrace bench mlrsearch --quick --sizes 64
  millrace bench mlrsearch --profile imix --goals ndr`,
		func(a *Ask, f *pflag.FlagSet) {
			f.BoolVar(&a.Quick, "quick", false, "trials of 0.2 s that sum up to 2, bounds 2 % apart: to look, not to publish")
			f.StringSliceVar(&a.Goals, "goals", nil, "what to find: "+strings.Join(goalNames, ", ")+" (default ndr,pdr)")
		})
}

func soakCommand() *cobra.Command {
	return searchCommand("soak", "Offer one rate for a long time",
		`Offers one rate in intervals, each of which is a trial of its own, and says in which frames
were lost and how the latency drifts.`,
		`  millrace bench soak --rate 500kpps --time 12h --sizes 64
  millrace bench soak kernel --rate 200kpps --time 10m --interval 10s --stop-at-loss`,
		func(a *Ask, f *pflag.FlagSet) {
			f.StringVar(&a.Rate, "rate", "100kpps", "rate of all streams together")
			f.StringVarP(&a.Time, "time", "t", "1m", "time in all")
			f.StringVar(&a.Interval, "interval", "1s", "time of an interval")
			f.BoolVar(&a.StopAtLoss, "stop-at-loss", false, "end after the first interval with loss")
		})
}

func resumeCommand() *cobra.Command {
	var file string
	c := &cobra.Command{
		Use: "resume RUN", Short: "Go on with a run that was interrupted", Args: cobra.ExactArgs(1),
		Long: `Goes on with a search that was interrupted, in its folder: trials that were made are not
made again.`,
		RunE: func(c *cobra.Command, args []string) error {
			a, err := asked(filepath.Join(args[0], report.ConfigFile))
			if err != nil {
				return fmt.Errorf("%s is no folder of a run: %w", args[0], err)
			}
			return a.run(c, args[0], file, true)
		},
	}
	c.Flags().StringVar(&file, "json", "", "write result.json here too; - for standard output, without the table")
	return c
}

// run makes what was asked for.
func (a *Ask) run(c *cobra.Command, dir, file string, resume bool) error {
	p, err := a.plan()
	if err != nil {
		return err
	}
	est, err := p.Prepare()
	if err != nil {
		return err
	}
	if p.Folder, err = a.folder(dir, resume); err != nil {
		return err
	}
	bar := NewBar()
	p.Show, p.Log = bar.Show, bar
	fmt.Fprintf(bar, "%s of %s: %s, into %s\n", a.Bench, strings.Join(p.Kinds, ", "), span(est), dir)
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := p.Run(ctx)
	bar.Clear()
	because := run
	if ctx.Err() != nil {
		because = errors.New("interrupted")
	}
	if err := p.Folder.Close(because); err != nil {
		return errors.Join(run, err)
	}
	if file != "" {
		if err := writeJSON(c, file, &p.Folder.Data); err != nil {
			return err
		}
	}
	if file != "-" {
		if err := Table(c.OutOrStdout(), p.Folder); err != nil {
			return err
		}
		fmt.Fprintln(c.OutOrStdout(), filepath.Join(dir, "report.html"))
	}
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("interrupted; what was measured is kept: `millrace bench resume %s` goes on", dir)
	case run != nil:
		return fmt.Errorf("not all was measured; `millrace bench resume %s` tries the rest: %w", dir, run)
	}
	return nil
}

// writeJSON writes v to a file, or to standard output for "-".
func writeJSON(c *cobra.Command, path string, v any) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if path == "-" {
		_, err = c.OutOrStdout().Write(b)
		return err
	}
	return os.WriteFile(path, b, 0o644)
}
