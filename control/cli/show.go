package cli

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/rule"
)

func (a *app) show() *cobra.Command {
	c := group(&cobra.Command{
		Use: "show", Short: "Show status, ports, the road, routes, drops ...", GroupID: groupSee,
		Long: `Shows what a running router knows and counts. Counters are totals since it started.
With --json the same is printed for scripts: the messages of the API, every field present.`,
		Example: `  millrace show status
  millrace show ports eth0
  millrace show routes 198.51.100.7
  millrace show drops --json | jq '.drops[] | select(.kind == "drop")'`,
	}, a.showStatus(), a.showPorts(), a.showStages(), a.showPath(), a.showRoutes(), a.showRules(), a.showMroutes(), a.showNeighbours(), a.showDrops(), a.showLeaks(), a.showWorkers(), a.showFPM(), a.showRouteFiles())
	c.PersistentFlags().Bool("json", false, "print JSON")
	return c
}

// showing makes a command that asks for a message, prints it, and judges it.
func showing[M proto.Message](a *app, c *cobra.Command, ask func(ctx context.Context, b api.Backend, args []string) (M, error),
	print func(w io.Writer, m M), judge func(m M) error,
) *cobra.Command {
	if c.Args == nil {
		c.Args = args(cobra.NoArgs)
	}
	c.RunE = func(c *cobra.Command, words []string) error {
		m, err := ask(c.Context(), a.dial(), words)
		if err != nil {
			return err
		}
		if asJSON, _ := c.Flags().GetBool("json"); asJSON { // the flag is the parent's
			err = printJSON(c.OutOrStdout(), m)
		} else {
			print(c.OutOrStdout(), m)
		}
		if err == nil && judge != nil {
			err = judge(m)
		}
		return err
	}
	return c
}

func (a *app) showStatus() *cobra.Command {
	return showing(a, &cobra.Command{
		Use: "status", Short: "Is it forwarding? Exits with 0 if so",
		Long: `Says whether the router forwards packets, and what it lacks. The exit code is 0 if it
forwards, 1 if it does not, 3 if no router answers.`,
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.Status, error) {
		return b.GetStatus(ctx, &v1.GetStatusRequest{})
	}, func(w io.Writer, s *v1.Status) {
		f := "yes"
		if !s.Forwarding {
			f = "no"
		}
		fmt.Fprintf(w, "forwarding  %s\n", f)
		indent(w, "            ", s.Reasons...)
		fmt.Fprintf(w, "version     %s, process %d, up %s\n", s.Version, s.Pid, age(s.UptimeNs))
		fmt.Fprintf(w, "config      %s\n", dash(s.ConfigPath))
		if s.ConfirmLeftNs > 0 {
			fmt.Fprintf(w, "            waits for `millrace config confirm`, else taken back in %s\n", age(s.ConfirmLeftNs))
		}
		fmt.Fprintf(w, "ports       %d of %d up\n", s.PortsUp, s.Ports)
		fmt.Fprintf(w, "workers     %d\n", s.Workers)
		fmt.Fprintf(w, "routes      %d IPv4, %d IPv6\n", s.RoutesIpv4, s.RoutesIpv6)
		fmt.Fprintf(w, "neighbours  %d\n", s.Neighbours)
		if len(s.Features) > 0 {
			fmt.Fprintf(w, "features    %s\n", strings.Join(s.Features, ", "))
		}
	}, func(s *v1.Status) error {
		if s.Forwarding {
			return nil
		}
		return no("not forwarding: %s", dash(strings.Join(s.Reasons, "; ")))
	})
}

func (a *app) showPorts() *cobra.Command {
	var named bool
	return showing(a, &cobra.Command{
		ValidArgsFunction: a.portNames,
		Use:               "ports [NAME...]", Aliases: []string{"port"}, Short: "Ports: driver, link, counters; with names, in detail", Args: cobra.ArbitraryArgs,
		Long: `Lists the ports and VLANs. MISSED are packets lost before the road saw them (no
buffer, ring full, bad descriptor), FAILED those that the port did not send. With names,
everything about these ports, such as why a driver runs in the mode that it does.`,
	}, func(ctx context.Context, b api.Backend, names []string) (*v1.Ports, error) {
		named = len(names) > 0
		return b.ListPorts(ctx, &v1.ListPortsRequest{Names: names})
	}, func(w io.Writer, l *v1.Ports) {
		if named {
			for i, p := range l.Ports {
				if i > 0 {
					fmt.Fprintln(w)
				}
				printPort(w, p)
			}
			return
		}
		t := newTable("PORT", "DRIVER", "MODE", "LINK", ">SPEED", ">MTU", ">RX-PACKETS", ">TX-PACKETS", ">MISSED", ">FAILED", "ADDRESSES")
		for _, p := range l.Ports {
			driver, mode := p.Driver, p.Mode
			if p.Parent != "" {
				driver, mode = "vlan", tags(p)
			}
			t.row(p.Name, driver, dash(mode), linkWord(p), speed(p.Mbps), p.Mtu, p.RxPackets, p.TxPackets,
				p.RxNoBuffer+p.RxRingFull+p.RxBad, p.TxFull+p.TxFailed, dash(strings.Join(p.Addresses, " ")))
		}
		t.print(w)
	}, nil)
}

func linkWord(p *v1.Port) string {
	switch {
	case p.Gone:
		return "gone"
	case p.Up:
		return "up"
	}
	return "down"
}

func tags(p *v1.Port) string {
	s := fmt.Sprintf("%s id %d", p.Parent, p.Vlan)
	if p.VlanInner != 0 {
		s += fmt.Sprintf(" inner %d", p.VlanInner)
	}
	return s
}

func printPort(w io.Writer, p *v1.Port) {
	fmt.Fprintf(w, "%s: %s, %s, mtu %d, %s\n", p.Name, linkWord(p), speed(p.Mbps), p.Mtu, dash(p.Mac))
	if p.Parent != "" {
		fmt.Fprintf(w, "    vlan       %s\n", tags(p))
	} else {
		fmt.Fprintf(w, "    driver     %s, %s, %s\n", p.Driver, dash(p.Mode), plural(uint64(p.Queues), "queue", "queues"))
		indent(w, "               ", p.Why...)
	}
	fmt.Fprintf(w, "    host       %s\n", dash(p.Host))
	fmt.Fprintf(w, "    addresses  %s\n", dash(strings.Join(p.Addresses, " ")))
	fmt.Fprintf(w, "    received   %s, %s\n", plural(p.RxPackets, "packet", "packets"), plural(p.RxBytes, "byte", "bytes"))
	fmt.Fprintf(w, "    sent       %s, %s\n", plural(p.TxPackets, "packet", "packets"), plural(p.TxBytes, "byte", "bytes"))
	if p.Parent == "" {
		fmt.Fprintf(w, "    missed     %d no buffer, %d ring full, %d bad\n", p.RxNoBuffer, p.RxRingFull, p.RxBad)
		fmt.Fprintf(w, "    failed     %d queue full, %d not sent\n", p.TxFull, p.TxFailed)
	}
}

func (a *app) showStages() *cobra.Command {
	return showing(a, &cobra.Command{
		Use: "stages", Short: "The road's stages in order, with counters and clocks per packet",
		Long: `Lists the stages that packets go through, in order, then the exits beside the road.
PER CALL is the mean number of packets that a stage handles at once: the higher the
load, the higher it is. Clocks per packet are measured while ` + "`millrace set measure on`" + `.`,
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.Stages, error) {
		return b.ListStages(ctx, &v1.ListStagesRequest{})
	}, func(w io.Writer, l *v1.Stages) {
		t := newTable("STAGE", "PACKETS-OF", ">CALLS", ">PACKETS", ">PER-CALL", ">CLOCKS/PACKET", ">HELD")
		for _, exit := range []bool{false, true} {
			for _, s := range l.Stages {
				if s.Exit != exit {
					continue
				}
				if exit {
					t.row(s.Name, "exits", "-", "-", "-", "-", s.Held)
				} else {
					t.row(s.Name, s.Lane, s.Calls, s.Packets, ratio(s.Packets, s.Calls), ratio(s.Clocks, s.Measured), s.Held)
				}
			}
		}
		t.print(w)
		if !l.Measuring && !slices.ContainsFunc(l.Stages, func(s *v1.Stage) bool { return s.Measured > 0 }) {
			fmt.Fprintln(w, "\nClocks are not being measured; `millrace set measure on` starts it.")
		}
	}, nil)
}

func (a *app) showPath() *cobra.Command {
	return showing(a, &cobra.Command{
		Use: "path", Short: "The way of a packet: every stage and what it does",
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.Stages, error) {
		return b.ListStages(ctx, &v1.ListStagesRequest{})
	}, func(w io.Writer, l *v1.Stages) {
		width := 0
		for _, s := range l.Stages {
			width = max(width, len(s.Name))
		}
		for _, exit := range []bool{false, true} {
			title := "The road:"
			if exit {
				title = "\nBeside the road, for packets that leave it:"
			}
			for _, s := range l.Stages {
				if s.Exit != exit {
					continue
				}
				if title != "" {
					fmt.Fprintln(w, title)
					title = ""
				}
				lane := s.Lane
				if exit || lane == "any" {
					lane = ""
				}
				fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("  %-*s  %-5s %s", width, s.Name, lane, s.Doc), " "))
			}
		}
	}, nil)
}

func (a *app) showRoutes() *cobra.Command {
	var r v1.ListRoutesRequest
	var asked string
	c := showing(a, &cobra.Command{
		Use: "routes [PREFIX | ADDRESS [from ADDRESS] [iif PORT] [ipproto NAME sport N dport N] ...]", Aliases: []string{"route"},
		Short: "Routes; with an address, the way that its packets take and why", Args: cobra.ArbitraryArgs,
		Long: `Lists the forwarding table in the manner of ` + "`ip route`" + `; with a prefix, it and all in it.

With an address, the way of a packet to it: the rule that decides, the route that matches, the next hops of its group with
what they have of the buckets, the bucket of the flow, and how the packet is sent or why not. What more is said of the flow (as for
` + "`ip route get`" + `: from, iif, ipproto, sport, dport, flowlabel, tos, mark, table) decides among several next hops and rules. The
exit code is 1 if there is no route.`,
		Example: `  millrace show routes 198.51.100.7
  millrace show routes 198.51.100.7 from 192.0.2.2 iif eth0 ipproto tcp sport 40000 dport 443
  millrace show routes 2001:db8::/32
  millrace show routes --table blue
  millrace show routes -6 --source config`,
	}, func(ctx context.Context, b api.Backend, words []string) (*v1.Routes, error) {
		if len(words) == 1 {
			asked = words[0]
			if asked == "default" {
				return nil, usage("write 0.0.0.0/0 or ::/0 for all IPv4 or IPv6 routes")
			}
			p, err := netip.ParsePrefix(asked)
			if err != nil {
				return nil, usage("%q is neither an address nor a prefix", asked)
			}
			r.Prefix = p.Masked().String()
		}
		return b.ListRoutes(ctx, &r)
	}, func(w io.Writer, l *v1.Routes) {
		for _, r := range l.Routes {
			printRoute(w, r)
		}
		if n := uint64(len(l.Routes)); n < l.Total {
			fmt.Fprintf(w, "... %d of %d; --limit 0 shows all\n", n, l.Total)
		}
	}, func(l *v1.Routes) error {
		if len(l.Routes) == 0 && asked != "" {
			return no("no route for %s", asked)
		}
		return nil
	})
	list := c.RunE
	c.RunE = func(c *cobra.Command, words []string) error {
		if len(words) == 0 {
			return list(c, words)
		}
		if _, err := netip.ParseAddr(words[0]); err != nil {
			if len(words) > 1 {
				return usage("%q: behind a prefix comes nothing; a flow begins with an address", words[1])
			}
			return list(c, words)
		}
		if r.Table != "" {
			words = append(words, "table", r.Table)
		}
		q, err := parseFlow(words)
		if err != nil {
			return err
		}
		x, err := a.dial().Explain(c.Context(), q)
		if err != nil {
			return err
		}
		if asJSON, _ := c.Flags().GetBool("json"); asJSON {
			err = printJSON(c.OutOrStdout(), x)
		} else {
			printExplanation(c.OutOrStdout(), x)
		}
		if err == nil && x.Route == nil {
			err = no("no route for %s", words[0])
		}
		return err
	}
	c.Flags().Uint32Var(&r.Limit, "limit", 1000, "show at most so many; 0 for all")
	c.Flags().StringVar(&r.Source, "source", "", "only those from kernel, config, api, connected, fpm or file")
	c.Flags().StringVar(&r.Table, "table", "", "only those of a table, also unused ones: a number, main, local, default, or a VRF's name")
	oneFamily(c, &r.Family)
	return c
}

// oneFamily gives a command the flags -4 and -6.
func oneFamily(c *cobra.Command, family *string) {
	v4, v6 := c.Flags().BoolP("ipv4", "4", false, "only IPv4"), c.Flags().BoolP("ipv6", "6", false, "only IPv6")
	c.PreRunE = func(*cobra.Command, []string) error {
		switch {
		case *v4 && *v6:
			return usage("-4 and -6 together")
		case *v4:
			*family = "ipv4"
		case *v6:
			*family = "ipv6"
		}
		return nil
	}
}

func printRoute(w io.Writer, r *v1.Route) {
	s := r.Prefix
	if r.Type != "" && r.Type != "unicast" {
		s = r.Type + " " + s
	}
	one := len(r.NextHops) == 1
	if one {
		s += hopWords(r.NextHops[0])
	}
	if r.Table != 0 && r.Table != rule.Main {
		s += " table " + rule.TableName(r.Table)
	}
	if r.Protocol != "" {
		s += " proto " + r.Protocol
	}
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.Mtu != 0 {
		s += fmt.Sprintf(" mtu %d", r.Mtu)
	}
	s += " from " + dash(r.Source)
	if r.Stale {
		s += " stale"
	}
	if r.Unused {
		s += " unused"
	}
	if one {
		s += reach(r.NextHops[0])
	}
	fmt.Fprintln(w, s)
	if !one {
		for _, h := range r.NextHops {
			fmt.Fprintf(w, "    nexthop%s weight %d%s\n", hopWords(h), max(h.Weight, 1), reach(h))
		}
	}
}

func hopWords(h *v1.NextHop) string {
	s := ""
	if h.Address != "" {
		s += " via " + h.Address
	}
	if h.Port != "" {
		s += " dev " + h.Port
	}
	return s
}

func reach(h *v1.NextHop) string {
	switch {
	case h.Address == "":
		return ""
	case h.Mac != "":
		return " lladdr " + h.Mac
	case h.Resolved:
		return ""
	}
	return " unresolved"
}

func (a *app) showNeighbours() *cobra.Command {
	var port string
	c := showing(a, &cobra.Command{
		Use: "neighbours", Aliases: []string{"neighbors", "neighbour", "neigh"}, Short: "Neighbours: addresses, MACs, states",
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.Neighbours, error) {
		return b.ListNeighbours(ctx, &v1.ListNeighboursRequest{Port: port})
	}, func(w io.Writer, l *v1.Neighbours) {
		t := newTable("ADDRESS", "PORT", "MAC", "STATE", "FROM", ">HELD")
		for _, n := range l.Neighbours {
			t.row(n.Address, n.Port, dash(n.Mac), n.State, n.Source, n.Held)
		}
		t.print(w)
	}, nil)
	c.Flags().StringVar(&port, "port", "", "only those on this port")
	a.completePorts(c)
	return c
}

func (a *app) showDrops() *cobra.Command {
	var r v1.ListDropsRequest
	c := showing(a, &cobra.Command{
		Use: "drops", Aliases: []string{"drop"}, Short: "Why packets left the road, with counters",
		Long: `Lists the reasons for which packets left the road before transmission: "drop" is a loss,
"host" went to this machine's kernel, "hold" waited for something, "note" counts an event
by which no packet left. To see the packets themselves: ` + "`millrace trace --drops` and `millrace capture --drops`.",
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.Drops, error) {
		return b.ListDrops(ctx, &r)
	}, func(w io.Writer, l *v1.Drops) {
		t := newTable(">PACKETS", "WHAT", "STAGE/REASON", "MEANING")
		for _, d := range l.Drops {
			t.row(d.Count, d.Kind, d.Stage+"/"+d.Reason, d.Doc)
		}
		t.print(w)
	}, nil)
	c.Flags().BoolVar(&r.All, "all", false, "also reasons that have not occurred")
	c.Flags().StringVar(&r.Stage, "stage", "", "only those of this stage")
	return c
}

func (a *app) showLeaks() *cobra.Command {
	return showing(a, &cobra.Command{
		Use: "leaks", Short: "Account for every packet and buffer; exits with 1 if any is missing",
		Long: `Compares what came in with what went out, and the buffers of each pool with those that
somebody has:

  received + from host + created = sent + to host + dropped + held

The exit code is 0 where both hold exactly, 1 where packets or buffers are missing.`,
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.Leaks, error) {
		return b.GetLeaks(ctx, &v1.GetLeaksRequest{})
	}, func(w io.Writer, l *v1.Leaks) {
		var held uint64
		for _, h := range l.Held {
			held += h.Packets
		}
		t := newTable("IN", ">PACKETS", "OUT", ">PACKETS")
		t.row("received", l.Received, "sent", l.Sent)
		t.row("from host", l.FromHost, "to host", l.ToHost)
		t.row("created", l.Created, "dropped", l.Dropped)
		t.row("", "", "held", held)
		t.row("sum", l.Received+l.FromHost+l.Created, "sum", l.Sent+l.ToHost+l.Dropped+held)
		t.print(w)
		for _, h := range l.Held {
			if h.Packets != 0 {
				fmt.Fprintf(w, "%s holds %s\n", h.Place, plural(h.Packets, "packet", "packets"))
			}
		}
		fmt.Fprintln(w)
		p := newTable("POOL", "PAGES", ">BUFFERS", ">FREE", ">IN-PORTS", ">IN-PACKETS", ">MISSING")
		for _, x := range l.Pools {
			p.row(x.Name, dash(x.Pages), x.Size, x.Free, x.InPorts, x.InPackets, x.Missing)
		}
		p.print(w)
		if l.Ok {
			fmt.Fprintln(w, "\nEvery packet and buffer is accounted for.")
		}
	}, func(l *v1.Leaks) error {
		if l.Ok {
			return nil
		}
		what := []string{}
		if l.Difference != 0 {
			what = append(what, fmt.Sprintf("packets in minus packets out: %d", l.Difference))
		}
		for _, p := range l.Pools {
			if p.Missing != 0 {
				what = append(what, fmt.Sprintf("buffers missing from pool %s: %d", p.Name, p.Missing))
			}
		}
		return no("not accounted for: %s", strings.Join(what, "; "))
	})
}

func (a *app) showWorkers() *cobra.Command {
	return showing(a, &cobra.Command{
		Use: "workers", Aliases: []string{"worker"}, Short: "Workers: cores, load, what they poll",
		Long: `Lists the threads that move packets. LOAD is the part of all clocks spent in rounds
that found packets; CLOCKS/PACKET is what a packet costs there from reception to
transmission.`,
	}, func(ctx context.Context, b api.Backend, _ []string) (*v1.Workers, error) {
		return b.ListWorkers(ctx, &v1.ListWorkersRequest{})
	}, func(w io.Writer, l *v1.Workers) {
		t := newTable(">WORKER", ">CORE", ">NUMA", "POLL", ">LOAD", ">IDLE-ROUNDS", ">SLEEPS", ">PACKETS", ">CLOCKS/PACKET", "QUEUES")
		for _, x := range l.Workers {
			core, numa := dashInt(x.Core), dashInt(x.NumaNode)
			t.row(x.Id, core, numa, dash(x.Poll), percent(x.BusyClocks, x.TotalClocks), percent(x.IdleRounds, x.Rounds), x.Sleeps, x.Packets,
				ratio(x.BusyClocks, x.Packets), dash(strings.Join(x.Queues, " ")))
		}
		t.print(w)
	}, nil)
}

func dashInt(n int32) string {
	if n < 0 {
		return "-"
	}
	return fmt.Sprint(n)
}
