package router

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"millrace/control/config"
	"millrace/fib"
	"millrace/packet"
	"millrace/pmd"
)

// syncStatic brings what comes from the configuration and the API into the FIB: routes,
// neighbours, and the connected networks of ports with the built-in host. It is called after every
// change that may lead a gateway to another interface.
func (r *Router) syncStatic() {
	r.syncRules()
	want := map[fib.Key]fib.Route{}
	r.waiting = nil
	r.connected(want)
	for _, v := range r.cfg.VRFs {
		for _, p := range []netip.Prefix{netip.PrefixFrom(netip.IPv4Unspecified(), 0), netip.PrefixFrom(netip.IPv6Unspecified(), 0)} {
			x := fib.Route{Table: fibTable(v.Table), Prefix: p, Type: fib.Unreachable, Source: fib.SourceFile, Metric: lastResort}
			want[x.Key()] = x
		}
	}
	add := func(c *config.Route, src fib.Source) {
		x, err := r.resolve(c, src)
		if err != nil {
			r.waiting = append(r.waiting, fmt.Sprintf("route to %s: %v", c.To, err))
		}
		if len(x.NextHops) != 0 || x.Type != fib.Unicast {
			want[x.Key()] = x
		}
	}
	for i := range r.cfg.Routes {
		add(&r.cfg.Routes[i], fib.SourceConfig)
	}
	for _, k := range slices.SortedFunc(maps.Keys(r.apiRoutes), func(a, b fib.Key) int { return strings.Compare(a.Prefix.String(), b.Prefix.String()) }) {
		c := r.apiRoutes[k]
		add(&c, fib.SourceAPI)
	}
	var set []fib.Route
	var del []fib.Key
	for k, x := range want {
		if old, ok := r.static[k]; !ok || !reflect.DeepEqual(old, x) {
			set = append(set, x)
		}
	}
	for k := range r.static {
		if _, ok := want[k]; !ok {
			del = append(del, k)
		}
	}
	r.static = want
	r.update(set, del)
	r.recheckSources()
	r.syncPinned()
}

// lastResort is the metric of the route that keeps packets of a VRF from the tables of others, as the kernel's documentation of VRFs
// advises. The kernel's routes come before it.
const lastResort = 4278198272

// connected adds the networks and addresses of ports that no kernel sees.
func (r *Router) connected(want map[fib.Key]fib.Route) {
	for _, i := range r.ifaces {
		if i.port.host != "builtin" || i.port.dev == nil {
			continue
		}
		for _, a := range append(slices.Clone(i.conf), linkLocal(i.port.link.MAC)) {
			table := r.tableOf(i)
			x := fib.Route{Table: table, Prefix: netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), Type: fib.Local, Source: fib.SourceConnected}
			want[x.Key()] = x
			if a.Bits() < a.Addr().BitLen() && !a.Addr().IsLinkLocalUnicast() {
				n := fib.Route{Table: table, Prefix: a.Masked(), Source: fib.SourceConnected, NextHops: []fib.NextHop{{Iface: i.id}}}
				want[n.Key()] = n
			}
		}
	}
}

// syncConnected is syncStatic for one interface whose addresses changed.
func (r *Router) syncConnected() error {
	r.syncStatic()
	return nil
}

var configTypes = map[string]fib.RouteType{"": fib.Unicast, "unicast": fib.Unicast, "blackhole": fib.Blackhole,
	"unreachable": fib.Unreachable, "prohibit": fib.Prohibit, "throw": fib.Throw}

// resolve makes the FIB's route of a static one: it finds the interface of each gateway. With an error, the
// route has the next hops that were found.
func (r *Router) resolve(c *config.Route, src fib.Source) (fib.Route, error) {
	table, err := r.cfg.TableOf(c.Table)
	if err != nil {
		return fib.Route{}, err
	}
	x := fib.Route{Table: fibTable(table), Prefix: c.To.Masked(), Type: configTypes[c.Type], Source: src, Metric: c.Metric}
	if x.Type != fib.Unicast {
		return x, nil
	}
	hops := c.Via
	if len(hops) == 0 {
		hops = []config.NextHop{{Dev: c.Dev, Weight: 1}}
	}
	var missing []string
	for _, h := range hops {
		dev := cmpOr(h.Dev, c.Dev)
		var i *iface
		if dev != "" {
			i = r.named(dev)
		} else {
			i = r.toward(h.Addr, x.Table)
		}
		switch {
		case i == nil && dev != "":
			missing = append(missing, fmt.Sprintf("there is no interface %s", dev))
		case i == nil:
			missing = append(missing, fmt.Sprintf("gateway %s is in no network of a port", h.Addr))
		default:
			x.NextHops = append(x.NextHops, fib.NextHop{Via: h.Addr, Iface: i.id, Weight: h.Weight, MTU: c.MTU})
		}
	}
	if missing != nil {
		return x, fmt.Errorf("%s", strings.Join(missing, "; "))
	}
	return x, nil
}

var hashFields = map[string]packet.HashFields{"": packet.HashL4, "l4": packet.HashL4, "l3": packet.HashL3, "inner": packet.HashInner}

// spread tells the FIB how flows are spread over several next hops.
func (r *Router) spread() {
	m := r.cfg.Multipath
	r.fib.SetHash(packet.Hasher{Fields: hashFields[m.Hash], Symmetric: m.Symmetric, Seed: cmp.Or(uint64(m.Seed)*0x9e3779b97f4a7c15, r.seed)})
}

func (r *Router) named(name string) *iface {
	for _, i := range r.ifaces {
		if i.name == name {
			return i
		}
	}
	return nil
}

// toward is the interface with the longest network that has the address; of equal ones the first. For the table of a VRF it is one in the VRF, and
// otherwise one in none.
func (r *Router) toward(a netip.Addr, table uint32) *iface {
	if !slices.ContainsFunc(slices.Collect(maps.Values(r.ifaces)), func(i *iface) bool { return r.tableOf(i) == table }) {
		table = 0
	}
	var best *iface
	bits := -1
	for id, ps := range r.tables.Addrs.Load().By {
		for _, p := range ps {
			if p.Masked().Contains(a) && !p.Addr().IsLinkLocalUnicast() && (p.Bits() > bits || p.Bits() == bits && id < best.id) {
				if i := r.ifaces[id]; i != nil && r.tableOf(i) == table {
					best, bits = i, p.Bits()
				}
			}
		}
	}
	return best
}

// syncPinned brings the configuration's neighbours into the FIB.
func (r *Router) syncPinned() {
	want := map[neighKey]pmd.MAC{}
	for _, n := range r.cfg.Neighbours {
		if i := r.named(n.Port); i != nil {
			want[neighKey{i.id, n.Address}] = pmd.MAC(n.MAC)
		}
	}
	for k := range r.pinned {
		if _, ok := want[k]; ok {
			continue
		}
		if n, ok := r.neighs[k]; ok {
			r.note(r.fib.SetNeighbour(k.iface, k.addr, n.MAC))
		} else {
			r.note(r.fib.DelNeighbour(k.iface, k.addr))
		}
	}
	for k, m := range want {
		r.note(r.fib.SetNeighbour(k.iface, k.addr, m))
	}
	r.pinned = want
}
