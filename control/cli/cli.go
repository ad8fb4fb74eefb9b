// Package cli is the millrace command: everything that people and scripts type.
//
// Commands that ask a running router do so through api.Backend, over its socket. Package
// main puts in what is not known here: how a router is made, and further commands.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
)

// Router is what `run` starts. Its Backend methods may be called before Run and
// until Run has returned.
type Router interface {
	api.Backend
	// Run opens the ports and forwards until ctx ends, calling ready once
	// packets are forwarded. It returns when everything is closed.
	Run(ctx context.Context, ready func()) error
}

// Options is what a build puts into the command.
type Options struct {
	Version string
	// NewRouter makes a router; it opens nothing yet. level can be changed while it runs.
	NewRouter func(cfg *config.Config, log *zap.Logger, level zap.AtomicLevel) (Router, error)
	// Add lists functions that add commands of other packages to the root.
	Add []func(root *cobra.Command)
	// Dial reaches the router at a socket; nil is api.Dial.
	Dial func(socket string) api.Backend

	keepPrivileges bool // for tests, whose process lives on
}

// Exit codes.
const (
	ExitOK          = 0 // done; and where something was asked: yes
	ExitNo          = 1 // the answer is no: not forwarding, packets unaccounted for, a failed check, mistakes in a file
	ExitUsage       = 2 // the command line is wrong
	ExitUnavailable = 3 // no router answers
	ExitError       = 4 // anything else that failed
)

// exitError is an error with its exit code. An empty text prints nothing: the
// output has said it already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func no(format string, args ...any) error {
	return &exitError{ExitNo, fmt.Errorf(format, args...)}
}

// No is an error with the code ExitNo, for commands of Options.Add.
func No(format string, args ...any) error { return no(format, args...) }

func usage(format string, args ...any) error {
	return &exitError{ExitUsage, fmt.Errorf(format, args...)}
}

// ExitCode is the code for a command's error.
func ExitCode(err error) int {
	var e *exitError
	var cfg config.Errors
	switch {
	case err == nil:
		return ExitOK
	case errors.As(err, &e):
		return e.code
	case errors.As(err, &cfg):
		return ExitNo
	case errors.Is(err, api.ErrUnavailable):
		return ExitUnavailable
	}
	return ExitError
}

// Main runs the command line of the process and returns its exit code.
func Main(o Options) int {
	err := New(o).Execute()
	printError(os.Stderr, err)
	return ExitCode(err)
}

// printError prints an error as compilers do: mistakes in files begin with the file.
func printError(w io.Writer, err error) {
	var cfg config.Errors
	switch {
	case err == nil || err.Error() == "":
	case errors.As(err, &cfg) && err.Error() == cfg.Error():
		fmt.Fprintln(w, cfg)
	default:
		fmt.Fprintf(w, "millrace: %v\n", err)
	}
}

type app struct {
	Options
	socket string
}

func (a *app) dial() api.Backend {
	if a.Dial != nil {
		return a.Dial(a.socket)
	}
	return api.Dial(a.socket)
}

const (
	groupRun  = "run"
	groupSee  = "see"
	groupSet  = "set"
	groupAdd  = "add" // commands of Options.Add that name none
	groupElse = "else"
)

// New builds the command tree.
func New(o Options) *cobra.Command {
	a := &app{Options: o}
	root := &cobra.Command{
		Use:   "millrace",
		Short: "A fast packet router",
		Long: `Millrace forwards IPv4 and IPv6 packets between network ports, on CPU cores of its
own that poll them. Addresses, routes and daemons stay where they are: in the kernel,
which Millrace follows.

  sudo millrace doctor eth0 eth1     is this machine ready?
  sudo millrace run eth0 eth1        forward between two interfaces, until Ctrl-C
  millrace show status               and from another terminal: is it forwarding?
  millrace top                       what goes through it, live
  millrace show drops                what is lost, and why
  millrace trace icmp                follow single packets, step by step

For more than interfaces' names, write a file: ` + "`millrace config sample`" + ` prints
one with every key explained.

Exit codes: 0 done, and the answer is yes; 1 the answer is no (not forwarding, packets
unaccounted for, a check that failed, mistakes in a file); 2 wrong command line;
3 no router answers; 4 anything else.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.Help()
			}
			return unknownCommand(c, args[0])
		},
	}
	root.AddGroup(&cobra.Group{ID: groupRun, Title: "Run a router:"}, &cobra.Group{ID: groupSee, Title: "See what it does:"},
		&cobra.Group{ID: groupSet, Title: "Change it while it runs:"})
	if len(o.Add) > 0 {
		root.AddGroup(&cobra.Group{ID: groupAdd, Title: "Try it, measure it:"})
	}
	root.AddGroup(&cobra.Group{ID: groupElse, Title: "Others:"})
	root.SetHelpCommandGroupID(groupElse)
	root.SetCompletionCommandGroupID(groupElse)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage("%w; see `%s --help`", err, c.CommandPath())
	})
	root.PersistentFlags().StringVar(&a.socket, "socket", api.DefaultSocket(), "control socket of the router")
	root.AddCommand(a.run(), a.doctor(), a.show(), a.top(), a.audit(), a.trace(), a.capture(), a.configCmd(), a.set(), a.version())
	for _, add := range o.Add {
		add(root)
	}
	for _, c := range root.Commands() {
		if c.GroupID == "" {
			c.GroupID = groupAdd
		}
	}
	return root
}

// group makes a command that only holds others.
func group(c *cobra.Command, subs ...*cobra.Command) *cobra.Command {
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return unknownCommand(c, args[0])
	}
	c.AddCommand(subs...)
	return c
}

func unknownCommand(c *cobra.Command, name string) error {
	if c.SuggestionsMinimumDistance == 0 {
		c.SuggestionsMinimumDistance = 2
	}
	if s := c.SuggestionsFor(name); len(s) > 0 {
		return usage("there is no `%s %s`; did you mean `%s %s`?", c.CommandPath(), name, c.CommandPath(), s[0])
	}
	return usage("there is no `%s %s`; see `%s --help`", c.CommandPath(), name, c.CommandPath())
}

// args wraps cobra's checks of arguments into usage errors.
func args(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(c *cobra.Command, a []string) error {
		if err := check(c, a); err != nil {
			return usage("%w; usage: %s", err, c.UseLine())
		}
		return nil
	}
}

func (a *app) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of this command and of the running router", GroupID: groupElse, Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintf(c.OutOrStdout(), "millrace %s\n", a.Version)
			if s, err := a.dial().GetStatus(c.Context(), &v1.GetStatusRequest{}); err == nil && s.Version != a.Version {
				fmt.Fprintf(c.OutOrStdout(), "router   %s\n", s.Version)
			}
			return nil
		},
	}
}

// portNames completes names of the running router's ports.
func (a *app) portNames(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.Context()), time.Second)
	defer cancel()
	l, err := a.dial().ListPorts(ctx, &v1.ListPortsRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, p := range l.Ports {
		names = append(names, p.Name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completePorts completes the flag --port.
func (a *app) completePorts(c *cobra.Command) {
	if err := c.RegisterFlagCompletionFunc("port", a.portNames); err != nil {
		panic("cli: " + err.Error())
	}
}

// indent prefixes each line.
func indent(w io.Writer, prefix string, lines ...string) {
	for _, l := range lines {
		fmt.Fprintf(w, "%s%s\n", prefix, strings.TrimRight(l, "\n"))
	}
}
