package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	v1 "millrace/control/api/v1"
	"millrace/control/config"
)

func (a *app) configCmd() *cobra.Command {
	return group(&cobra.Command{
		Use: "config", Short: "Write, check, compare and apply configurations", GroupID: groupSet,
		Long: `A configuration is one YAML file. Nothing in it is guessed: an unknown key or a value that
makes no sense is an error with its place and what would be right.

To change a running router without risk of locking yourself out:

  millrace config diff new.yaml
  sudo millrace config apply --confirm 60s new.yaml
  sudo millrace config confirm          within 60 seconds, or all is as before`,
	}, a.configSample(), a.configCheck(), a.configShow(), a.configDiff(), a.configApply(), a.configConfirm(), a.configRollback())
}

func (a *app) configSample() *cobra.Command {
	return &cobra.Command{
		Use: "sample", Short: "Print a configuration with every key explained", Args: args(cobra.NoArgs),
		Example: "  millrace config sample | sudo tee /etc/millrace.yaml",
		RunE: func(c *cobra.Command, _ []string) error {
			_, err := io.WriteString(c.OutOrStdout(), config.Sample())
			return err
		},
	}
}

// readConfig reads and checks a file; "-" is standard input.
func readConfig(c *cobra.Command, path string) (*config.Config, []byte, error) {
	var text []byte
	var err error
	if path == "-" {
		path = "standard input"
		text, err = io.ReadAll(c.InOrStdin())
	} else {
		text, err = os.ReadFile(path)
	}
	if err != nil {
		return nil, nil, err
	}
	cfg, err := config.Parse(path, text)
	return cfg, text, err
}

func (a *app) configCheck() *cobra.Command {
	return &cobra.Command{
		Use: "check FILE", Short: "Say what is wrong with a file; exits with 1 if anything is", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, words []string) error {
			cfg, _, err := readConfig(c, words[0])
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s: %s, %s: no mistakes\n", cfg.File(), plural(uint64(len(cfg.Ports)), "port", "ports"), plural(uint64(len(cfg.Routes)), "route", "routes"))
			return nil
		},
	}
}

func (a *app) configShow() *cobra.Command {
	return &cobra.Command{
		Use: "show", Short: "Print the configuration of the running router", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			cfg, err := a.dial().GetConfig(c.Context(), &v1.GetConfigRequest{})
			if err != nil {
				return err
			}
			_, err = io.WriteString(c.OutOrStdout(), cfg.Yaml)
			return err
		},
	}
}

func (a *app) configDiff() *cobra.Command {
	return &cobra.Command{
		Use: "diff [OLD] NEW", Short: "Say what a file would change, in words", Args: args(cobra.RangeArgs(1, 2)),
		Long: `Compares the running router's configuration with a file, or two files.`,
		RunE: func(c *cobra.Command, words []string) error {
			var old *config.Config
			if len(words) == 2 {
				var err error
				if old, _, err = readConfig(c, words[0]); err != nil {
					return err
				}
			} else {
				run, err := a.dial().GetConfig(c.Context(), &v1.GetConfigRequest{})
				if err != nil {
					return err
				}
				if old, err = config.Parse("running configuration", []byte(run.Yaml)); err != nil {
					return fmt.Errorf("the running router's configuration is not for this version of millrace: %w", err)
				}
			}
			cfg, _, err := readConfig(c, words[len(words)-1])
			if err != nil {
				return err
			}
			changes := config.Diff(old, cfg)
			for _, ch := range changes {
				fmt.Fprintln(c.OutOrStdout(), ch)
			}
			if len(changes) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "no differences")
			}
			return nil
		},
	}
}

func (a *app) configApply() *cobra.Command {
	var confirm time.Duration
	var dry bool
	c := &cobra.Command{
		Use: "apply FILE", Short: "Change the running router to a file's configuration", Args: args(cobra.ExactArgs(1)),
		Long: `Changes the running router to the configuration of a file, all or nothing: where a part
needs a restart, nothing is changed. With --confirm, everything is taken back unless
` + "`millrace config confirm`" + ` follows in time.`,
		Example: `  sudo millrace config apply --confirm 60s /etc/millrace.yaml && sudo millrace config confirm`,
		RunE: func(c *cobra.Command, words []string) error {
			if confirm < 0 {
				return usage("--confirm %s is in the past", confirm)
			}
			cfg, text, err := readConfig(c, words[0])
			if err != nil {
				return err
			}
			res, err := a.dial().ApplyConfig(c.Context(), &v1.ApplyConfigRequest{Yaml: string(text), Path: cfg.File(), ConfirmNs: int64(confirm), DryRun: dry})
			if err != nil {
				return err
			}
			if err := printApplied(c, res, dry); err != nil {
				return err
			}
			if confirm > 0 && res.Applied {
				fmt.Fprintf(c.OutOrStdout(), "Taken back in %s unless you type: millrace config confirm\n", confirm)
			}
			return nil
		},
	}
	c.Flags().DurationVar(&confirm, "confirm", 0, "take the change back after this time, such as 60s, unless confirmed")
	c.Flags().BoolVar(&dry, "dry-run", false, "only say what would change")
	return c
}

func printApplied(c *cobra.Command, res *v1.ApplyConfigResponse, dry bool) error {
	indent(c.OutOrStdout(), "", res.Changes...)
	if len(res.Changes) == 0 && len(res.NeedRestart) == 0 {
		fmt.Fprintln(c.OutOrStdout(), "no differences")
	}
	if len(res.NeedRestart) > 0 {
		fmt.Fprintln(c.OutOrStdout(), "needs a restart:")
		indent(c.OutOrStdout(), "  ", res.NeedRestart...)
		if !dry && !res.Applied {
			return no("nothing was changed: restart the router with this configuration instead")
		}
	}
	return nil
}

func (a *app) configConfirm() *cobra.Command {
	return &cobra.Command{
		Use: "confirm", Short: "Keep what was applied with --confirm", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			if _, err := a.dial().Confirm(c.Context(), &v1.ConfirmRequest{}); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "confirmed")
			return nil
		},
	}
}

func (a *app) configRollback() *cobra.Command {
	return &cobra.Command{
		Use: "rollback", Short: "Go back to the configuration before the last apply", Args: args(cobra.NoArgs),
		RunE: func(c *cobra.Command, _ []string) error {
			res, err := a.dial().Rollback(c.Context(), &v1.RollbackRequest{})
			if err != nil {
				return err
			}
			return printApplied(c, res, false)
		},
	}
}

func (a *app) set() *cobra.Command {
	return group(&cobra.Command{
		Use: "set", Short: "Add and remove routes, turn measuring on and off", GroupID: groupSet,
		Long: `Changes the running router. What is set here is gone after a restart; put it into the
configuration to keep it.`,
	}, a.setRoute(), a.setMroute(), a.setMeasure())
}

func (a *app) setMeasure() *cobra.Command {
	return &cobra.Command{
		Use: "measure on|off", Short: "Measure the clocks of each stage", Args: args(cobra.ExactArgs(1)), ValidArgs: []string{"on", "off"},
		Long: `Turns the measuring of clocks per stage on or off. It costs some clocks per vector
while it is on. ` + "`millrace show stages`" + ` shows the result.`,
		RunE: func(c *cobra.Command, words []string) error {
			if words[0] != "on" && words[0] != "off" {
				return usage("measure %s: on or off", words[0])
			}
			_, err := a.dial().SetMeasure(c.Context(), &v1.SetMeasureRequest{On: words[0] == "on"})
			return err
		},
	}
}

func (a *app) setRoute() *cobra.Command {
	sub := func(verb, short string, do func(context.Context, *v1.Route) error) *cobra.Command {
		return &cobra.Command{
			Use: verb + " [TYPE] PREFIX [via ADDR] [dev NAME] [table N|NAME] [metric N] [mtu N] [nexthop via ADDR [dev NAME] [weight N]]...", Short: short,
			DisableFlagsInUseLine: true,
			RunE: func(c *cobra.Command, words []string) error {
				r, err := parseRoute(words, verb != "del")
				if err != nil {
					return usage("%w", err)
				}
				return do(c.Context(), r)
			},
		}
	}
	add := func(replace bool) func(context.Context, *v1.Route) error {
		return func(ctx context.Context, r *v1.Route) error {
			_, err := a.dial().AddRoute(ctx, &v1.AddRouteRequest{Route: r, Replace: replace})
			return err
		}
	}
	return group(&cobra.Command{
		Use: "route", Short: "Add, replace and delete routes, in the words of `ip route`; load files of them",
		Long: "Changes routes in the words of `ip route`. They stand beside those of the kernel and of the\nconfiguration. Among routes to one prefix those of the configuration come first, then those set here, then\nthe kernel's; among those of one origin the lowest metric wins.",
		Example: `  millrace set route add 198.51.100.0/24 via 192.0.2.9
  millrace set route replace 2001:db8:9::/48 via fe80::1 dev eth0 metric 5
  millrace set route add 10.0.0.0/8 nexthop via 192.0.2.9 weight 2 nexthop via 192.0.2.10
  millrace set route add 0.0.0.0/0 via 192.0.2.9 table blue mtu 1400
  millrace set route add blackhole 192.168.0.0/16
  millrace set route del 198.51.100.0/24`,
	}, sub("add", "Add a route", add(false)), sub("replace", "Add a route in place of one of the same table, prefix and metric", add(true)),
		sub("del", "Delete a route", func(ctx context.Context, r *v1.Route) error {
			_, err := a.dial().DelRoute(ctx, &v1.DelRouteRequest{Route: r})
			return err
		}), a.loadRoutes(), a.unloadRoutes())
}
