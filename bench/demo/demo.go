// Package demo shows a newcomer in a minute what Millrace does: as root, real programs
// talking through it between network namespaces; without, a capture routed
// between ports in memory.
package demo

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// Add adds `millrace demo` to the root command.
func Add(root *cobra.Command) {
	var memory bool
	var seconds int
	c := &cobra.Command{
		Use:   "demo",
		Short: "Show it: a lab on this machine, real programs, live figures",
		Long: `As root: three network namespaces, client - router - server, in which the kernel of the
router does not forward. Millrace runs in the router; ping, traceroute and iperf3
run between client and server, and a live table shows rates, clocks per packet of
each stage, and drops with their reasons. Everything is taken down at the end,
also when it is interrupted.

Without root: the same router between ports in memory, fed with a capture.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
			defer stop()
			s := &screen{out: c.OutOrStdout(), live: isTerminal(os.Stdout)}
			var err error
			if memory || os.Geteuid() != 0 {
				err = inMemory(ctx, s, seconds)
			} else {
				err = inLab(ctx, s, seconds)
			}
			if ctx.Err() != nil {
				fmt.Fprintln(c.OutOrStdout(), "\ninterrupted; everything is taken down")
				return nil
			}
			return err
		},
	}
	c.Flags().BoolVar(&memory, "memory", false, "the demo without root: ports in memory")
	c.Flags().IntVar(&seconds, "seconds", 4, "length of each measurement")
	root.AddCommand(c)
}

// screen prints the demo: headings, commands as typed, and a live table that stays in place on
// a terminal.
type screen struct {
	out   io.Writer
	live  bool
	lines int // of the live table on the screen
	step  int
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

func (s *screen) bold(t string) string {
	if s.live {
		return "\x1b[1m" + t + "\x1b[0m"
	}
	return t
}

// head starts a step.
func (s *screen) head(format string, a ...any) {
	s.step++
	s.lines = 0
	fmt.Fprintf(s.out, "\n%s\n", s.bold(fmt.Sprintf("%d. "+format, append([]any{s.step}, a...)...)))
}

func (s *screen) say(format string, a ...any) {
	s.lines = 0
	for l := range strings.Lines(fmt.Sprintf(format, a...)) {
		fmt.Fprintf(s.out, "   %s\n", strings.TrimRight(l, "\n"))
	}
}

// table shows text in place of the one shown before.
func (s *screen) table(text string) {
	if !s.live {
		return // only the last one, by say
	}
	if s.lines > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", s.lines)
	}
	s.lines = strings.Count(text, "\n")
	fmt.Fprint(s.out, text)
}

// last leaves the final table on the screen.
func (s *screen) last(text string) {
	if s.live {
		s.table(text)
	} else {
		fmt.Fprint(s.out, text)
	}
	s.lines = 0
}

// command shows a command line as a person types it.
func (s *screen) command(where string, args []string) {
	fmt.Fprintf(s.out, "   %s%s\n", where, s.bold("$ "+strings.Join(args, " ")))
	s.lines = 0
}
