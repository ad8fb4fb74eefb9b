package cli

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"

	v1 "millrace/control/api/v1"
	"millrace/control/config"
)

var routeTypes = []string{"unicast", "blackhole", "unreachable", "prohibit", "throw"}

// parseRoute reads a route in the words of `ip route`. A complete one has a type and a
// way to go; otherwise what is not said stays empty.
func parseRoute(words []string, complete bool) (*v1.Route, error) {
	r := &v1.Route{}
	if len(words) > 0 && slices.Contains(routeTypes, words[0]) {
		r.Type, words = words[0], words[1:]
	} else if complete {
		r.Type = "unicast"
	}
	if len(words) == 0 {
		return nil, errors.New("a prefix is missing, such as 198.51.100.0/24")
	}
	to, err := config.ParseDest(words[0])
	if err != nil {
		return nil, err
	}
	isDefault := words[0] == "default"
	words = words[1:]
	hop := &v1.NextHop{} // of the words outside of `nexthop`
	cur := hop
	for len(words) > 0 {
		w := words[0]
		words = words[1:]
		if w == "nexthop" {
			cur = &v1.NextHop{Weight: 1}
			r.NextHops = append(r.NextHops, cur)
			continue
		}
		family := ""
		if w == "via" && len(words) > 0 && (words[0] == "inet" || words[0] == "inet6") {
			family, words = words[0], words[1:]
		}
		if len(words) == 0 {
			return nil, fmt.Errorf("`%s` needs a value", w)
		}
		val := words[0]
		words = words[1:]
		switch w {
		case "via":
			a, err := netip.ParseAddr(val)
			if err != nil {
				return nil, fmt.Errorf("via %q: not an IP address", val)
			}
			if a.Zone() != "" {
				return nil, fmt.Errorf("via %s: write `via %s dev %s`", a, a.WithZone(""), a.Zone())
			}
			a = a.Unmap()
			if isDefault && a.Is6() {
				to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			switch {
			case family == "inet" && !a.Is4() || family == "inet6" && a.Is4():
				return nil, fmt.Errorf("via %s %s: the address is of the other family", family, a)
			case a.Is4() && to.Addr().Is6():
				return nil, fmt.Errorf("via %s: %s needs an IPv6 gateway", a, to)
			case a.Is6() && to.Addr().Is4() && family == "":
				return nil, fmt.Errorf("via %s: for IPv4 packets by an IPv6 gateway write `via inet6 %s`", a, a)
			}
			cur.Address = a.String()
		case "dev":
			cur.Port = val
		case "weight":
			n, err := strconv.ParseUint(val, 10, 8)
			if err != nil || n == 0 || cur == hop {
				return nil, fmt.Errorf("weight %q: a number from 1 to 255, behind `nexthop`", val)
			}
			cur.Weight = uint32(n)
		case "metric", "preference", "priority":
			n, err := strconv.ParseUint(val, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("metric %q: not a number", val)
			}
			r.Metric = uint32(n)
		case "table":
			if n, err := strconv.ParseUint(val, 0, 32); err != nil {
				r.TableName = val
			} else if n == 0 {
				return nil, errors.New("table 0: tables count from 1; `table main` is the one without a name")
			} else {
				r.Table = uint32(n)
			}
		case "mtu":
			if val == "lock" && len(words) > 0 { // forwarded packets never change a route's MTU
				val, words = words[0], words[1:]
			}
			n, err := strconv.ParseUint(val, 10, 16)
			if err != nil || n == 0 {
				return nil, fmt.Errorf("mtu %q: a number of bytes, up to 65535", val)
			}
			r.Mtu = uint32(n)
		default:
			return nil, fmt.Errorf("%q: after the prefix come via, dev, table, metric, mtu, nexthop and weight", w)
		}
	}
	r.Prefix = to.String()
	if hop.Address != "" || hop.Port != "" {
		if len(r.NextHops) > 0 {
			return nil, errors.New("either `via` and `dev`, or `nexthop` for each gateway")
		}
		hop.Weight = 1
		r.NextHops = append(r.NextHops, hop)
	}
	for _, h := range r.NextHops {
		if h.Address == "" && h.Port == "" {
			return nil, errors.New("`nexthop` needs `via ADDRESS` or `dev NAME`")
		}
	}
	switch {
	case r.Type != "" && r.Type != "unicast" && len(r.NextHops) > 0:
		return nil, fmt.Errorf("a route of type %s drops packets: it has neither via nor dev", r.Type)
	case r.Type == "unicast" && len(r.NextHops) == 0 && complete:
		return nil, fmt.Errorf("where to? Write `%s via ADDRESS` or `%s dev NAME`", to, to)
	}
	return r, nil
}
