package cli

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	v1 "millrace/control/api/v1"
)

// minWatch is the shortest time between two audits of --watch: each reads all routes.
const minWatch = time.Second

func (a *app) audit() *cobra.Command {
	var asJSON, quiet bool
	var watch time.Duration
	var q v1.AuditRequest
	c := &cobra.Command{
		Use: "audit", Short: "Compare kernel, daemons, configuration and data plane", GroupID: groupSee,
		Long: `Reads what the kernel, the routing daemons and the configuration want, and compares all of
it with what packets meet: routes, rules, addresses, neighbours, links, the entries of the lookup tables, next-hop
groups. Whatever differs twice within a moment is told, with since when and why.

A fault is a difference that should not be. A note is something that Millrace cannot or shall not do as
the kernel would, such as a route by an interface that is none of its ports.

The exit code is 0 where there is no fault, 1 where there is one, 3 if no router answers.`,
		Example: `  millrace audit
  millrace audit --watch
  millrace audit --json | jq '.differences[] | select(.note == false)'`,
		Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			w := c.OutOrStdout()
			tell := func(r *v1.AuditReport) error {
				switch {
				case asJSON && watch == 0:
					return printJSON(w, r)
				case asJSON:
					_, err := w.Write(jsonLine(r))
					return err
				}
				printAudit(w, r, quiet)
				return nil
			}
			if watch == 0 {
				r, err := a.dial().Audit(c.Context(), &q)
				if err == nil {
					err = tell(r)
				}
				if err == nil && r.Faults != 0 {
					err = &exitError{code: ExitNo}
				}
				return err
			}
			if watch < minWatch {
				return usage("--watch %v: at least %v", watch, minWatch)
			}
			ctx, stop := untilStopped(c.Context())
			defer stop()
			faults := false
			for {
				r, err := a.dial().Audit(ctx, &q)
				if ctx.Err() != nil {
					break
				}
				if err != nil {
					return err
				}
				if !asJSON {
					fmt.Fprintf(w, "%s  ", time.Unix(0, r.StartedUnixNs).Format("15:04:05"))
				}
				if err := tell(r); err != nil {
					return err
				}
				faults = r.Faults != 0
				select {
				case <-ctx.Done():
				case <-time.After(watch):
				}
			}
			if faults {
				return &exitError{code: ExitNo}
			}
			return nil
		},
	}
	f := c.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON; with --watch one object a line")
	f.BoolVarP(&quiet, "quiet", "q", false, "tell faults only, no notes")
	f.Uint32Var(&q.Limit, "limit", 100, "most differences to tell; 0 for all")
	f.DurationVar(&watch, "watch", 0, "audit again and again until Ctrl-C, with so much time between")
	f.Lookup("watch").NoOptDefVal = "5s"
	return c
}

func printAudit(w io.Writer, r *v1.AuditReport, quiet bool) {
	switch {
	case r.Faults == 0:
		fmt.Fprintf(w, "in order: ")
	default:
		fmt.Fprintf(w, "%s: ", plural(r.Faults, "fault", "faults"))
	}
	fmt.Fprintf(w, "%d kernel routes, %d others, %d entries of lookup tables, %d groups, %d neighbours compared in %s",
		r.KernelRoutes, r.OtherRoutes, r.TableEntries, r.Groups, r.Neighbours, time.Duration(r.DurationNs).Round(100*time.Microsecond))
	if r.Notes != 0 {
		fmt.Fprintf(w, "; %s", plural(r.Notes, "note", "notes"))
	}
	fmt.Fprintln(w)
	if r.Unsettled {
		fmt.Fprintln(w, "The kernel's tables kept changing while they were read: what is told may be on its way.")
	}
	told := uint64(0)
	for _, d := range r.Differences {
		if d.Note && quiet {
			continue
		}
		told++
		word := "FAULT"
		if d.Note {
			word = "note "
		}
		fmt.Fprintf(w, "%s  %s %s, since %s\n", word, d.What, d.Name, age(r.StartedUnixNs+r.DurationNs-d.SinceUnixNs))
		fmt.Fprintf(w, "       %-11s %s\n", d.Source+":", dash(d.Want))
		fmt.Fprintf(w, "       %-11s %s\n", "data plane:", dash(d.Have))
		if d.Why != "" {
			fmt.Fprintf(w, "       %s\n", strings.TrimSpace(d.Why))
		}
	}
	all := r.Faults + r.Notes
	if quiet {
		all = r.Faults
	}
	if all > told {
		fmt.Fprintf(w, "%d more; all of them with --limit 0\n", all-told)
	}
}
