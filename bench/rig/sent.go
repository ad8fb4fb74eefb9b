package rig

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"millrace/bench/gen"
	"millrace/bench/pin"
	"millrace/bench/report"
	"millrace/bench/result"
	"millrace/bench/search"
	"millrace/bench/traffic"
	"millrace/bench/trial"
)

// Sent is what `bench gen` prints as JSON: an outcome with its latency and its streams.
type Sent struct {
	Bed     string            `json:"bed"`
	Outcome *trial.Outcome    `json:"outcome"`
	Rate    float64           `json:"achieved_fps"`
	Loss    float64           `json:"loss_ratio"`
	Latency *search.Latency   `json:"latency,omitempty"`
	Streams []gen.StreamCount `json:"streams,omitempty"`
}

func genCommand() *cobra.Command {
	a := &Ask{Bench: "gen"}
	var sizes, rate, length, out, file string
	var frames uint64
	var list bool
	c := &cobra.Command{
		Use: "gen [UNDER-TEST]", Short: "Generate traffic and count what comes through",
		Long: `Sends what a profile says, open loop at a paced rate, through a thing under test, and says what
became of each frame: received, lost, duplicated, reordered, corrupted, and when.

` + under(),
		Example: `  millrace bench gen --rate 100kpps
  millrace bench gen kernel --profile imix --rate 200kpps --time 10s
  millrace bench gen wire/memif --rate max
  millrace bench gen box --left eth1 --right eth2 --profile my.yaml --rate 1Mpps
  millrace bench gen --list`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if list {
				return listProfiles(c.OutOrStdout())
			}
			if err := a.fill(c, args, sizes); err != nil {
				return err
			}
			if len(a.Sizes) > 1 {
				return errors.New("--size: one frame size, or the profile's own")
			}
			l := trial.Load{Frames: frames}
			if len(a.Sizes) == 1 {
				l.Size = a.Sizes[0]
			}
			var err error
			if rate == "" {
				l.Rate = -1
			} else if l.Rate, err = a.fps("--rate", rate); err != nil {
				return err
			}
			if l.Duration, err = span0("--time", length); err != nil {
				return err
			}
			if frames > 0 && !c.Flags().Changed("time") {
				l.Duration = 0
			}
			return a.send(c, l, out, file)
		},
	}
	f := c.Flags()
	a.bedFlags(f)
	f.StringVar(&sizes, "size", "profile", "size of all frames in bytes with FCS")
	f.StringVar(&rate, "rate", "", "rate of all streams together, such as 1.5Mpps or 10Gbit; max for as fast as it can; by default the profile's, or 100kpps where it has none")
	f.StringVarP(&length, "time", "t", "1s", "how long to send")
	f.Uint64Var(&frames, "frames", 0, "end after so many frames")
	f.BoolVar(&list, "list", false, "list the ready profiles")
	f.StringVar(&out, "out", "", "folder for a report")
	f.StringVar(&file, "json", "", "write the outcome as JSON to this file; - for standard output, without the text")
	return c
}

// send makes one trial and prints it. A negative rate is the profile's own.
func (a *Ask) send(c *cobra.Command, l trial.Load, out, file string) error {
	kinds, err := a.kinds()
	if err != nil {
		return err
	}
	s, err := a.setup()
	if err != nil {
		return err
	}
	b, err := NewBed(kinds[0], *s)
	if err != nil {
		return err
	}
	defer b.Close()
	if l.Rate < 0 {
		if l.Rate = b.Rate(); l.Rate == 0 {
			l.Rate = 100e3
		}
	}
	ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	defer pin.Prefer()()
	if err := b.Up(ctx); err != nil {
		return err
	}
	var bed trial.Bed = b
	var run *report.Run
	if out != "" {
		if run, err = a.folder(out, false); err != nil {
			return err
		}
		bed = run.Record(b, func() string { return "gen" })
	}
	o, err := bed.Try(ctx, l)
	if run != nil {
		err = errors.Join(err, run.Close(err))
	}
	if err != nil {
		return err
	}
	x := &Sent{b.Name(), o, o.Achieved(), o.LossRatio(), search.LatencyOf(o.Latency), b.Streams()}
	if file != "" {
		if err := writeJSON(c, file, x); err != nil || file == "-" {
			return err
		}
	}
	return x.write(c.OutOrStdout(), b.MeanSize())
}

func (x *Sent) write(w io.Writer, mean float64) error {
	o := x.Outcome
	if o.Size > 0 {
		mean = float64(o.Size)
	}
	r := search.RateOf(x.Rate, mean)
	fmt.Fprintf(w, "%s: sent %d frames in %v: %s", x.Bed, o.Sent, o.Elapsed.Round(10*time.Microsecond), pps(&r))
	if r.L2 > 0 {
		fmt.Fprintf(w, ", %sbit/s of frames, %sbit/s on a wire", result.Number(r.L2), result.Number(r.L1))
	}
	fmt.Fprintln(w)
	if l := x.Latency; l != nil {
		fmt.Fprintf(w, "latency one way in µs: min %s, p50 %s, p90 %s, p99 %s, p99.9 %s, max %s\n", micro(l.Min), micro(l.P50), micro(l.P90), micro(l.P99), micro(l.P999), micro(l.Max))
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprint(t, "stream\tsent\treceived\tlost\tlost %\tduplicated\treordered\tcorrupted\t\n")
	row := func(name string, sent, got, lost, dup, re, bad uint64) {
		part := 0.0
		if sent > 0 {
			part = 100 * float64(lost) / float64(sent)
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%d\t%.3f\t%d\t%d\t%d\t\n", name, sent, got, lost, part, dup, re, bad)
	}
	if len(x.Streams) > 1 {
		for _, s := range x.Streams {
			row(s.Name, s.Sent, s.Received, s.Lost, s.Duplicated, s.Reordered, s.Corrupted)
		}
	}
	row("all", o.Sent, o.Received, o.Lost, o.Duplicated, o.Reordered, o.Corrupted)
	if err := t.Flush(); err != nil {
		return err
	}
	if o.Foreign > 0 {
		fmt.Fprintf(w, "%d frames arrived that nobody here had sent\n", o.Foreign)
	}
	var drops []string
	for k, v := range o.Drops {
		drops = append(drops, fmt.Sprintf("%s %d", k, v))
	}
	if slices.Sort(drops); len(drops) > 0 {
		fmt.Fprintf(w, "dropped by %s: %s\n", x.Bed, strings.Join(drops, ", "))
	}
	for _, n := range o.Notes {
		fmt.Fprintln(w, "note:", n)
	}
	if o.Invalid != "" {
		fmt.Fprintln(w, "warning: invalid, it says nothing about what is under test:", o.Invalid)
	}
	return nil
}

// listProfiles prints the ready profiles with what their first lines say of them.
func listProfiles(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, n := range traffic.Names() {
		text, err := traffic.Text(n)
		if err != nil {
			return err
		}
		first, _, _ := strings.Cut(string(text), "\n")
		fmt.Fprintf(t, "%s\t%s\n", n, strings.TrimPrefix(first, "# "))
	}
	return t.Flush()
}
