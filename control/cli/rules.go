package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
)

func (a *app) showRules() *cobra.Command {
	var q v1.ListRulesRequest
	c := showing(a, &cobra.Command{
		Use: "rules", Aliases: []string{"rule"}, Short: "Rules of policy routing, in the order in which packets meet them",
		Long: `Lists the rules of the kernel and of the configuration in the manner of ` + "`ip rule`" + `, IPv4's before IPv6's. Those of
the configuration say so; those that Millrace cannot have, and packets therefore pass by, are marked with why.`,
		Example: `  millrace show rules -4
  millrace show rules --json | jq '.rules[] | select(.why != "")'`,
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.Rules, error) {
		return b.ListRules(ctx, &q)
	}, printRules, nil)
	oneFamily(c, &q.Family)
	return c
}

func printRules(w io.Writer, l *v1.Rules) {
	if l.Error != "" {
		fmt.Fprintf(w, "not in force, those before them are: %s\n", l.Error)
	}
	for _, f := range []string{"ipv4", "ipv6"} {
		for _, r := range l.Rules {
			if r.Family != f {
				continue
			}
			word := "-4"
			if f == "ipv6" {
				word = "-6"
			}
			fmt.Fprintf(w, "%s %d:\t%s", word, r.Pref, r.Text)
			if r.Source == "config" {
				fmt.Fprint(w, " [config]")
			}
			if r.Why != "" {
				fmt.Fprintf(w, " [passed by: %s]", r.Why)
			}
			fmt.Fprintln(w)
		}
	}
}
