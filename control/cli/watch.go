package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	v1 "millrace/control/api/v1"
)

const filterHelp = `FILTER is written as for tcpdump: "icmp", "host 192.0.2.7 and tcp port 80", "ip6 and udp".`

// untilStopped is a context that Ctrl-C ends; a stream ended in this way is no error.
func untilStopped(ctx context.Context) (context.Context, context.CancelFunc) {
	return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
}

func streamEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func (a *app) trace() *cobra.Command {
	var r v1.TraceRequest
	var asJSON bool
	c := &cobra.Command{
		Use: "trace [FILTER]", Short: "Follow packets stage by stage, in words", GroupID: groupSee,
		Long: `Follows packets down the road and tells what each stage did to them, and what became
of them. Only the packets traced pay for it.

` + filterHelp,
		Example: `  millrace trace -n 1 icmp
  millrace trace --drops
  millrace trace --port eth0 host 192.0.2.7 and tcp port 80`,
		RunE: func(c *cobra.Command, words []string) error {
			r.Filter = strings.Join(words, " ")
			ctx, stop := untilStopped(c.Context())
			defer stop()
			w := c.OutOrStdout()
			return streamEnd(ctx, a.dial().Trace(ctx, &r, func(p *v1.TracedPacket) error {
				if asJSON {
					_, err := w.Write(jsonLine(p))
					return err
				}
				return printTrace(w, p)
			}))
		},
	}
	f := c.Flags()
	f.Uint32VarP(&r.Count, "count", "n", 20, "packets to follow; 0 until Ctrl-C")
	f.StringSliceVar(&r.Ports, "port", nil, "only packets that come in by these ports")
	a.completePorts(c)
	f.BoolVar(&r.Drops, "drops", false, "only packets that are dropped")
	f.BoolVar(&asJSON, "json", false, "print one JSON object a line")
	return c
}

func printTrace(w io.Writer, p *v1.TracedPacket) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "%s  %s, %d bytes, worker %d: %s\n", time.Unix(0, p.TimeUnixNs).Format("15:04:05.000000"), p.From, p.Length, p.Worker, p.Summary)
	width := 0
	for _, l := range p.Lines {
		width = max(width, len(l.Stage))
	}
	for _, l := range p.Lines {
		fmt.Fprintln(b, strings.TrimRight(fmt.Sprintf("    %-*s  %s", width, l.Stage, l.Text), " "))
	}
	fmt.Fprintf(b, "    => %s\n", p.Fate)
	if p.Doc != "" {
		fmt.Fprintf(b, "       %s\n", p.Doc)
	}
	fmt.Fprintln(b)
	return b.Flush()
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (a *app) capture() *cobra.Command {
	var r v1.CaptureRequest
	var file string
	c := &cobra.Command{
		Use: "capture [FILTER]", Short: "Write packets as pcapng, for Wireshark and tcpdump", GroupID: groupSee,
		Long: `Captures packets where they enter the road and where they leave it, as pcapng: to a
file, or to standard output for a pipe. With --drops, the packets that are dropped, each
with the reason as its comment.

` + filterHelp,
		Example: `  millrace capture -w out.pcapng -n 1000
  millrace capture host 192.0.2.7 | tcpdump -nr -
  millrace capture --drops | wireshark -k -i -
  ssh router millrace capture --port eth0 | wireshark -k -i -`,
		RunE: func(c *cobra.Command, words []string) error {
			r.Filter = strings.Join(words, " ")
			switch r.Direction {
			case "", "rx", "tx":
			default:
				return usage("--direction %s: rx or tx", r.Direction)
			}
			out := c.OutOrStdout()
			if (file == "" || file == "-") && isTerminal(out) {
				return usage("pcapng is not for a terminal: name a file with -w, or pipe it, `| tcpdump -nr -`")
			}
			var f *os.File
			ctx, stop := untilStopped(c.Context())
			defer stop()
			var packets, lost uint64
			err := streamEnd(ctx, a.dial().Capture(ctx, &r, func(k *v1.CaptureChunk) error {
				packets, lost = k.Packets, k.Lost
				if f == nil && file != "" && file != "-" {
					// Not before the router has agreed: a mistake in the filter costs no old file.
					var err error
					if f, err = os.Create(file); err != nil {
						return err
					}
					out = f
				}
				_, err := out.Write(k.Data)
				return err
			}))
			if f != nil {
				if e := f.Close(); err == nil {
					err = e
				}
			}
			if errors.Is(err, syscall.EPIPE) {
				err = nil // the reader has seen enough
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(c.ErrOrStderr(), "%s captured, %d lost\n", plural(packets, "packet", "packets"), lost)
			return nil
		},
	}
	f := c.Flags()
	f.StringVarP(&file, "write", "w", "", "file to write; - is standard output")
	f.Uint32VarP(&r.Count, "count", "n", 0, "packets to capture; 0 until Ctrl-C")
	f.Uint32VarP(&r.Snaplen, "snaplen", "s", 0, "bytes to keep of each packet; 0 for all")
	f.StringSliceVar(&r.Ports, "port", nil, "only packets of these ports")
	a.completePorts(c)
	f.StringVar(&r.Direction, "direction", "", "rx or tx; default both")
	f.BoolVar(&r.Drops, "drops", false, "packets that are dropped, with the reason")
	return c
}
