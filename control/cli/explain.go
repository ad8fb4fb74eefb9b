package cli

import (
	"fmt"
	"io"
	"net/netip"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	v1 "millrace/control/api/v1"
)

var ipProtocols = map[string]uint32{"icmp": 1, "tcp": 6, "udp": 17, "ipv6-icmp": 58, "icmp6": 58, "sctp": 132, "gre": 47, "esp": 50}

// parseFlow reads a flow in the words of `ip route get`.
func parseFlow(words []string) (*v1.ExplainRequest, error) {
	q := &v1.ExplainRequest{To: words[0]}
	words = words[1:]
	for len(words) > 0 {
		w := words[0]
		if words = words[1:]; len(words) == 0 {
			return nil, usage("`%s` needs a value", w)
		}
		val := words[0]
		words = words[1:]
		number := func(bits int, into *uint32) error {
			n, err := strconv.ParseUint(val, 0, bits)
			if err != nil {
				return usage("%s %q: a number up to %d", w, val, uint64(1)<<bits-1)
			}
			*into = uint32(n)
			return nil
		}
		var err error
		switch w {
		case "from":
			if _, perr := netip.ParseAddr(val); perr != nil {
				err = usage("from %q: not an IP address", val)
			}
			q.From = val
		case "iif":
			q.Iif = val
		case "ipproto", "proto":
			if n, known := ipProtocols[val]; known {
				q.Proto = n
			} else {
				err = number(8, &q.Proto)
			}
		case "sport":
			err = number(16, &q.Sport)
		case "dport":
			err = number(16, &q.Dport)
		case "flowlabel":
			err = number(20, &q.FlowLabel)
		case "tos", "dsfield":
			err = number(8, &q.Tos)
		case "mark":
			err = number(32, &q.Mark)
		case "table":
			if n, perr := strconv.ParseUint(val, 0, 32); perr == nil && n != 0 {
				q.Table = uint32(n)
			} else {
				q.TableName = val
			}
		default:
			err = usage("%q: behind the address come from, iif, ipproto, sport, dport, flowlabel, tos, mark and table", w)
		}
		if err != nil {
			return nil, err
		}
	}
	if (q.Sport != 0 || q.Dport != 0) && q.Proto == 0 {
		return nil, usage("ports need a protocol: `ipproto tcp` or `ipproto udp`")
	}
	return q, nil
}

func printExplanation(w io.Writer, x *v1.Explanation) {
	if r := x.Route; r != nil {
		if x.Buckets != 0 { // its next hops are told below
			r = proto.Clone(r).(*v1.Route)
			r.NextHops = nil
		}
		printRoute(w, r)
	}
	line := func(format string, a ...any) { fmt.Fprintf(w, "    "+format+"\n", a...) }
	if x.Rule != "" && !(x.Pref == 0 || x.Pref == 32766) {
		line("by rule %d: %s", x.Pref, x.Rule)
	}
	if x.Neighbour {
		line("the destination is a neighbour with an entry of its own")
	}
	if x.Buckets != 0 {
		line("group %d: %d buckets by %s hash; this flow has bucket %d", x.Group, x.Buckets, x.Hash, x.Bucket)
		for _, m := range x.Members {
			sign := " "
			if m.Chosen {
				sign = "*"
			}
			s := ""
			if m.Address != "" {
				s = "via " + m.Address + " "
			}
			state := m.State
			if m.Mac != "" {
				state = "lladdr " + m.Mac
			}
			line("%s %sdev %s weight %d: %s, %s", sign, s, m.Port, m.Weight, plural(uint64(m.Buckets), "bucket", "buckets"), state)
		}
	}
	switch {
	case x.Exit == "":
		line("sent by %s, MTU %d (group %d, adjacency %d)", x.Port, x.Mtu, x.Group, x.Adjacency)
	case x.Route != nil || !strings.HasSuffix(x.Exit, "/no-route"):
		line("leaves the road: %s", x.Exit)
		line("%s", x.ExitDoc)
	}
}
