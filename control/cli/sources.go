package cli

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
)

func (a *app) showFPM() *cobra.Command {
	return showing(a, &cobra.Command{
		Use: "fpm", Short: "Routing daemons connected by FPM, what they sent, stale routes",
		Long: `Lists the connections of routing daemons by the forwarding plane manager's protocol (FRR's
zebra with -M dplane_fpm_nl), the routes that are kept of connections that ended, and what was not
taken. The routes are shown by ` + "`millrace show routes --source fpm`" + `.`,
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.FPM, error) {
		return b.GetFPM(ctx, &v1.GetFPMRequest{})
	}, func(w io.Writer, f *v1.FPM) {
		if f.Listen == "" {
			fmt.Fprintln(w, "Nothing listens: the configuration has no `fpm: {listen: 127.0.0.1:2620}`.")
			if len(f.Stale) == 0 {
				return
			}
		} else {
			fmt.Fprintf(w, "listening   on %s, %s so far\n", f.Listen, plural(f.Connections, "connection", "connections"))
		}
		fmt.Fprintf(w, "prefixes    %d, %s of the forwarding table, %d waiting\n", f.Prefixes, plural(f.Applied, "change", "changes"), f.Waiting)
		if f.Refused != 0 {
			fmt.Fprintf(w, "refused     %d: %s\n", f.Refused, f.Error)
		}
		if c := f.Total; c != nil {
			fmt.Fprintf(w, "received    %d routes set, %d removed, %d next-hop objects; %d bytes\n", c.Added, c.Removed, c.Objects, c.Bytes)
			fmt.Fprintf(w, "not taken   %d of the kernel, %d of other tables, %d for labels, %d invalid, %d beyond the limit, %d other messages\n",
				c.Kernel, c.Tables, c.Labels, c.Invalid, c.BeyondLimit, c.Other)
		}
		fmt.Fprintln(w)
		t := newTable("CONNECTION", "STATE", ">ROUTES", ">OBJECTS", "SINCE", "")
		for _, c := range f.Clients {
			t.row(c.Name, "connected", c.Routes, c.Objects, stamp(c.SinceUnixNs), "")
		}
		for _, s := range f.Stale {
			t.row(s.Name, "stale", s.Routes, "-", stamp(s.SinceUnixNs), "until "+stamp(s.UntilUnixNs))
		}
		for _, e := range f.Ended {
			t.row(e.Name, "ended", "-", "-", stamp(e.AtUnixNs), e.Why)
		}
		t.print(w)
	}, nil)
}

func stamp(ns int64) string { return time.Unix(0, ns).Format(time.DateTime) }

func (a *app) showRouteFiles() *cobra.Command {
	return showing(a, &cobra.Command{
		Use: "route-files", Aliases: []string{"route-file"}, Short: "Files of routes: state, routes",
		Long: `Lists the files of routes that the configuration names or that ` + "`millrace set route load`" + ` brought. UNUSABLE are
routes whose gateway is in no network of a port, or of the other family. The exit code is 1 where a file could
not be read.`,
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.RouteFiles, error) {
		return b.ListRouteFiles(ctx, &v1.ListRouteFilesRequest{})
	}, func(w io.Writer, l *v1.RouteFiles) {
		t := newTable("FILE", "FROM", "STATE", ">ROUTES", ">UNUSABLE", "")
		for _, f := range l.Files {
			t.row(f.File, f.Source, f.State, f.Routes, f.Unreachable, f.Error)
		}
		t.print(w)
	}, func(l *v1.RouteFiles) error {
		for _, f := range l.Files {
			if f.Error != "" {
				return no("%s", f.Error)
			}
		}
		return nil
	})
}

func (a *app) loadRoutes() *cobra.Command {
	var via []string
	var q v1.LoadRoutesRequest
	c := &cobra.Command{
		Use: "load FILE", Short: "Load a file of routes: an MRT dump or a list of prefixes", Args: args(cobra.ExactArgs(1)),
		Long: `Has the router read a file of routes, for labs: an MRT dump of type TABLE_DUMP_V2, or a list with one prefix a line
and ` + "`via ADDRESS`" + ` behind it, plain, .gz or .bz2. With --via each prefix goes by one of the gateways, chosen by a
hash; otherwise by the file's own next hops. The routes come in when all of the file was read, in place of those of the same file, and go
with ` + "`millrace set route unload`" + ` or a restart.`,
		Example: `  millrace set route load rib.mrt.gz --via 192.0.2.9 --via 192.0.2.10 --via '2001:db8::9 dev eth0'
  millrace set route load rib.mrt.gz --peer 203.0.113.5`,
		RunE: func(c *cobra.Command, words []string) error {
			var err error
			if q.File, err = filepath.Abs(words[0]); err != nil {
				return err
			}
			for _, v := range via {
				var h config.NextHop
				if err := h.UnmarshalText([]byte(v)); err != nil {
					return usage("--via: %w", err)
				}
				q.Via = append(q.Via, &v1.NextHop{Address: h.Addr.String(), Port: h.Dev, Weight: uint32(h.Weight)})
			}
			r, err := a.dial().LoadRoutes(c.Context(), &q)
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s in %v\n", plural(r.Routes, "route", "routes"), time.Duration(r.DurationNs).Round(10*time.Millisecond))
			return nil
		},
	}
	c.Flags().StringArrayVar(&via, "via", nil, "gateway, `ADDRESS [dev NAME] [weight N]`; may be given several times")
	c.Flags().StringVar(&q.Peer, "peer", "", "of an MRT dump only the routes of this peer, by its `ADDRESS`")
	return c
}

func (a *app) unloadRoutes() *cobra.Command {
	return &cobra.Command{
		Use: "unload FILE", Short: "Take the routes of a file away", Args: args(cobra.ExactArgs(1)),
		RunE: func(c *cobra.Command, words []string) error {
			file, err := filepath.Abs(words[0])
			if err != nil {
				return err
			}
			r, err := a.dial().UnloadRoutes(c.Context(), &v1.UnloadRoutesRequest{File: file})
			if err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "%s fewer\n", plural(r.Routes, "route", "routes"))
			return nil
		},
	}
}
