package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
)

func (a *app) showMroutes() *cobra.Command {
	var q v1.ListMroutesRequest
	var stats bool
	c := showing(a, &cobra.Command{
		Use: "mroutes [GROUP]", Aliases: []string{"mroute"}, Short: "Multicast routes, of one group or all", Args: args(cobra.MaximumNArgs(1)),
		Long: `Lists the multicast routes in the manner of ` + "`ip mroute`" + `, with who made them. State "forwarding" is Millrace's own;
"kernel" is left to the kernel, and why; "unresolved" waits for a routing daemon; "waiting" for an interface;
"shadowed" stands behind a route of another origin: those of the configuration come first, then those of
` + "`millrace set mroute`" + `, then the kernel's. With --stats, packets, bytes and rates.`,
		Example: `  millrace show mroutes -s
  millrace show mroutes 239.1.1.1
  millrace show mroutes -6 --json`,
	}, func(ctx context.Context, b api.Backend, words []string) (*v1.Mroutes, error) {
		if len(words) == 1 {
			q.Group = words[0]
		}
		return b.ListMroutes(ctx, &q)
	}, func(w io.Writer, l *v1.Mroutes) {
		for _, m := range l.Mroutes {
			printMroute(w, m, stats)
		}
	}, func(l *v1.Mroutes) error {
		if len(l.Mroutes) == 0 && q.Group != "" {
			return no("no multicast route for %s", q.Group)
		}
		return nil
	})
	c.Flags().BoolVarP(&stats, "stats", "s", false, "packets, bytes and rates of each")
	oneFamily(c, &q.Family)
	return c
}

func printMroute(w io.Writer, m *v1.Mroute, stats bool) {
	source := m.Source
	if source == "" {
		source = "*"
	}
	oifs := ""
	for _, o := range m.To {
		oifs += " " + o.Port
		if o.Ttl > 1 {
			oifs += fmt.Sprintf("(ttl %d)", o.Ttl)
		}
	}
	fmt.Fprintf(w, "%-32s Iif: %-10s Oifs:%s  State: %s  From: %s\n", "("+source+","+m.Group+")", dash(m.From), oifs, m.State, m.Origin)
	if m.Why != "" {
		fmt.Fprintf(w, "  %s\n", m.Why)
	}
	if stats && m.State == "forwarding" {
		fmt.Fprintf(w, "  %s, %s, %d arrived on wrong iif; %s packets/s, %sbit/s\n", plural(m.Packets, "packet", "packets"), plural(m.Bytes, "byte", "bytes"),
			m.WrongInterface, si(float64(m.PacketsPerSecond)), si(float64(m.BitsPerSecond)))
	}
}

// parseMroute reads GROUP [source ADDR] from NAME [to NAME [ttl N]]...
func parseMroute(words []string, complete bool) (*v1.Mroute, error) {
	if len(words) == 0 {
		return nil, errors.New("a group is missing, such as 239.1.1.1")
	}
	m := &v1.Mroute{Group: words[0]}
	if g, err := netip.ParseAddr(m.Group); err != nil || !g.IsMulticast() {
		return nil, fmt.Errorf("%q is not a group: 224.0.0.0/4 and ff00::/8 are", m.Group)
	}
	for words = words[1:]; len(words) > 0; words = words[2:] {
		if len(words) == 1 {
			return nil, fmt.Errorf("`%s` needs a value", words[0])
		}
		val := words[1]
		switch words[0] {
		case "source":
			if _, err := netip.ParseAddr(val); err != nil && val != "*" {
				return nil, fmt.Errorf("source %q: not an IP address", val)
			}
			m.Source = strings.TrimPrefix(val, "*")
		case "from":
			m.From = val
		case "to":
			m.To = append(m.To, &v1.MrouteOut{Port: val})
		case "ttl":
			n, err := strconv.ParseUint(val, 10, 8)
			if err != nil || n > 254 || len(m.To) == 0 {
				return nil, fmt.Errorf("ttl %q: a number from 0 to 254, behind `to NAME`", val)
			}
			m.To[len(m.To)-1].Ttl = uint32(n)
		default:
			return nil, fmt.Errorf("%q: after the group come source, from, to and ttl", words[0])
		}
	}
	if complete && m.From == "" {
		return nil, fmt.Errorf("where do the packets come from? Write `%s from NAME to NAME`", m.Group)
	}
	return m, nil
}

func (a *app) setMroute() *cobra.Command {
	sub := func(verb, use, short string, do func(context.Context, *v1.Mroute) error) *cobra.Command {
		return &cobra.Command{
			Use: verb + " GROUP [source ADDR]" + use, Short: short, DisableFlagsInUseLine: true,
			RunE: func(c *cobra.Command, words []string) error {
				m, err := parseMroute(words, verb != "del")
				if err != nil {
					return usage("%w", err)
				}
				return do(c.Context(), m)
			},
		}
	}
	add := func(replace bool) func(context.Context, *v1.Mroute) error {
		return func(ctx context.Context, m *v1.Mroute) error {
			_, err := a.dial().AddMroute(ctx, &v1.AddMrouteRequest{Mroute: m, Replace: replace})
			return err
		}
	}
	const use = " from NAME [to NAME [ttl N]]..."
	return group(&cobra.Command{
		Use: "mroute", Short: "Add, replace and delete multicast routes",
		Long: `Changes multicast routes. Packets that come in by the interface "from" are sent to each interface "to" if their
TTL is larger than "ttl"; those that come in by another are dropped. Without "source", any sender counts.`,
		Example: `  millrace set mroute add 239.1.1.1 source 192.0.2.9 from eth0 to lan1 to lan2 ttl 16
  millrace set mroute replace ff0e::1 from eth0 to lan1
  millrace set mroute del 239.1.1.1 source 192.0.2.9`,
	}, sub("add", use, "Add a multicast route", add(false)), sub("replace", use, "Add a multicast route in place of one of the same source and group", add(true)),
		sub("del", "", "Delete a multicast route", func(ctx context.Context, m *v1.Mroute) error {
			_, err := a.dial().DelMroute(ctx, &v1.DelMrouteRequest{Group: m.Group, Source: m.Source})
			return err
		}))
}
