package pipeline

import (
	"fmt"
	"strings"

	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/ip"
	"millrace/ip/frag"
	"millrace/ip/host"
	"millrace/ip/icmp"
	"millrace/ip/neigh"
	"millrace/pipeline/graph"
)

// Parts are what the stages of the default path stand on.
type Parts struct {
	FIB       *fib.FIB
	Multicast *mcast.Table
	Neighbour neigh.Resolver
	Host      *host.Service // of ports that no kernel sees
	ICMP      icmp.Limits   // of errors and redirects
}

// Default is the road: this list is the only place that says which stages there are and
// in which order a packet meets them. A stage that is not listed costs nothing.
func Default(d Parts) Path {
	return Path{
		Stages: []*graph.Stage{
			Classify,
			ip.Check4(),
			ip.Check6(),
			fib.RPF4(d.FIB),
			fib.RPF6(d.FIB),
			fib.LookupNextHop4(d.FIB),
			fib.LookupNextHop6(d.FIB),
			ip.Options4(),
			Rewrite(MTUReasons{frag.XFragment, frag.XDF, frag.X6TooBig}, icmp.Redirector),
			Transmit,
		},
		// The exits to the right: they take what leaves by reason, in no order.
		Exits: []*graph.Stage{
			icmp.Stage(d.ICMP),
			neigh.Stage(d.Neighbour),
			mcast.Stage(d.Multicast),
			frag.Stage(),
			d.Host.Stage(),
			HostExit,
		},
	}
}

// Path is an ordered list of stages, and the exit stages beside it.
type Path struct {
	Stages []*graph.Stage
	Exits  []*graph.Stage
}

// resume finds the step at which packets of a Source go on. A fused stage answers to
// the names of both of its halves, and "lookup" is the first lookup of any family.
func (p Path) resume(st *graph.Stage) (int, error) {
	for i, s := range p.Stages {
		if st.Resume == "" {
			if s == st {
				return i + 1, nil
			}
			continue
		}
		for part := range strings.SplitSeq(s.Name, "+") {
			if part == st.Resume || strings.TrimRight(part, "46") == st.Resume {
				return i, nil
			}
		}
	}
	if st.Resume == "" {
		return 0, fmt.Errorf("exit stage %s does not say where its packets go on", st.Name)
	}
	return 0, fmt.Errorf("stage %s goes on at %q, which is not in the path", st.Name, st.Resume)
}

// gives reports whether a stage of the path can give the reason.
func (p Path) gives(r graph.Reason) bool {
	for _, l := range [][]*graph.Stage{p.Stages, p.Exits} {
		for _, st := range l {
			for _, x := range st.Reasons {
				if x == r {
					return true
				}
			}
		}
	}
	return false
}

// String prints the road as a picture: the stages downwards, the exits to the right.
func (p Path) String() string {
	var b strings.Builder
	exits := func(st *graph.Stage, bar string) {
		for _, r := range st.Reasons {
			x := r.Info()
			to := x.Kind.String()
			switch {
			case x.Kind == graph.Hold || x.Kind == graph.Host:
				to += ": " + x.To
			case x.To != "":
				to += ", " + icmpText(x)
			}
			fmt.Fprintf(&b, "  %s      +--> %-32s %s\n", bar, r, to)
		}
	}
	b.WriteString("  rx\n")
	for _, st := range p.Stages {
		fmt.Fprintf(&b, "  |\n  v\n  %-22s %-5s %s\n", st.Name, st.Lane, st.Doc)
		exits(st, "|")
	}
	b.WriteString("\nexits\n")
	for _, st := range p.Exits {
		back := ""
		if st.Resume != "" {
			back = " -> " + st.Resume
		}
		fmt.Fprintf(&b, "  %-22s %s%s\n", st.Name, st.Doc, back)
		exits(st, " ")
	}
	return b.String()
}

func icmpText(x *graph.ReasonInfo) string {
	var l []string
	if x.ICMP4.Owed {
		l = append(l, fmt.Sprintf("ICMP %d/%d", x.ICMP4.Type, x.ICMP4.Code))
	}
	if x.ICMP6.Owed {
		l = append(l, fmt.Sprintf("ICMPv6 %d/%d", x.ICMP6.Type, x.ICMP6.Code))
	}
	return strings.Join(l, ", ")
}
