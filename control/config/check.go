package config

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"millrace/fib/mcast"
	"millrace/internal/yamltree"
	"millrace/pmd"
)

// fill gives names to what has none.
func (c *Config) fill() {
	for i := range c.Ports {
		p := &c.Ports[i]
		for j := range p.Vlans {
			v := &p.Vlans[j]
			if v.Name == "" {
				v.Name = fmt.Sprintf("%s.%d", p.Name, v.ID)
				if v.Inner != 0 {
					v.Name += fmt.Sprintf(".%d", v.Inner)
				}
			}
		}
	}
}

// Check says whether the configuration makes sense; the error is of type Errors. Load has done it.
func (c *Config) Check() error {
	var errs Errors
	c.fill()
	c.check(&errs)
	if len(errs) != 0 {
		return errs
	}
	return nil
}

type checker struct {
	c     *Config
	errs  *Errors
	names map[string]string     // port and VLAN names; the key of each
	addrs map[netip.Addr]string // own addresses; the key of each
	links []netip.Prefix        // connected prefixes
}

func (c *Config) check(errs *Errors) {
	k := checker{c: c, errs: errs, names: map[string]string{}, addrs: map[netip.Addr]string{}}
	if len(c.Ports) == 0 {
		k.fail("ports", "no ports: name at least one, such as `ports: [{name: eth0}]`")
	}
	memifs, wires := map[string]string{}, map[string][]string{}
	for i := range c.Ports {
		k.port(&c.Ports[i], fmt.Sprintf("ports[%d]", i), memifs, wires)
	}
	k.rest()
	k.rings()
	k.policy()
	for i := range c.Routes {
		k.route(&c.Routes[i], fmt.Sprintf("routes[%d]", i))
	}
	k.routesOnce()
	k.multicast()
	k.routeFiles()
	seen := map[string]string{}
	for i := range c.Neighbours {
		n, key := &c.Neighbours[i], fmt.Sprintf("neighbours[%d]", i)
		k.need(n.Address.IsValid(), key, "address")
		if k.need(n.MAC != MAC{}, key, "mac") && n.MAC[0]&1 != 0 {
			k.fail(key+".mac", "%s is a group address; a neighbour has a unicast one", n.MAC)
		}
		if k.need(n.Port != "", key, "port") {
			k.device(n.Port, key+".port")
		}
		id := n.Port + " " + n.Address.String()
		if o := seen[id]; o != "" {
			k.fail(key, "%s on %s is there already, as %s", n.Address, n.Port, o)
		}
		seen[id] = key
	}
}

func (k *checker) fail(key, format string, args ...any) {
	p, _ := k.c.src.find(key)
	*k.errs = append(*k.errs, &Error{File: k.c.src.file, Line: p.Line, Col: p.Col, Key: key, Msg: fmt.Sprintf(format, args...)})
}

func (k *checker) need(ok bool, key, name string) bool {
	if !ok {
		k.fail(key, "%q is missing", name)
	}
	return ok
}

func (k *checker) oneOf(s, key string, words ...string) bool {
	if s == "" || slices.Contains(words, s) {
		return true
	}
	k.fail(key, "%s", yamltree.OneOf(s, words))
	return false
}

func (k *checker) between(n int, key string, lo, hi int) {
	if n != 0 && (n < lo || n > hi) {
		k.fail(key, "%d is not between %d and %d", n, lo, hi)
	}
}

// drivers that a configuration may name, whether or not this build has them all.
func drivers() []string {
	names := []string{"afpacket", "afxdp", "mem", "memif", "pcap", "tap"}
	for _, d := range pmd.Drivers() {
		if !slices.Contains(names, d.Name) {
			names = append(names, d.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (k *checker) name(name, key string) {
	if name == "" {
		k.fail(key, "%q is missing", "name")
		return
	}
	if len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, " \t\n/:") {
		k.fail(key+".name", "%q cannot be an interface's name: up to 15 characters without blanks, / and :", name)
	}
	if o := k.names[name]; o != "" {
		k.fail(key+".name", "%q is the name of %s already", name, o)
		return
	}
	k.names[name] = key
}

func (k *checker) port(p *Port, key string, memifs map[string]string, wires map[string][]string) {
	k.name(p.Name, key)
	if d := drivers(); !k.oneOf(p.Driver, key+".driver", d...) {
		return
	}
	k.between(p.Queues, key+".queues", 1, 256)
	k.between(p.Ring, key+".ring", 64, 32768)
	if p.Ring&(p.Ring-1) != 0 {
		k.fail(key+".ring", "%d is not a power of two", p.Ring)
	}
	k.between(p.MTU, key+".mtu", 68, 65535)
	if p.MAC[0]&1 != 0 {
		k.fail(key+".mac", "%s is a group address; a port has a unicast one", p.MAC)
	}
	k.oneOf(p.Host, key+".host", "kernel", "tap", "builtin")
	if p.Driver == "" || p.Driver == "afxdp" || p.Driver == "afpacket" {
		if p.Host == "tap" {
			k.fail(key+".host", "%q: the kernel has this interface and needs no TAP; leave the key out, or write builtin to keep the kernel out", p.Host)
		}
	} else {
		if p.Host == "kernel" {
			k.fail(key+".host", "the kernel cannot see a port of driver %s: use tap or builtin", p.Driver)
		}
	}
	for _, f := range []struct {
		key, driver string
		set         bool
	}{
		{"mode", "afxdp", p.Mode != ""}, {"socket", "memif", p.Socket != ""}, {"role", "memif", p.Role != ""},
		{"id", "memif", p.ID != 0}, {"secret", "memif", p.Secret != ""}, {"read", "pcap", p.Read != ""},
		{"write", "pcap", p.Write != ""}, {"loop", "pcap", p.Loop != 0}, {"rate", "pcap", p.Rate != 0},
	} {
		switch {
		case !f.set || p.Driver == f.driver || f.key == "mode" && p.Driver == "" || f.key == "socket" && p.Driver == "mem":
		case f.key == "socket":
			k.fail(key+"."+f.key, "only ports with `driver: memif` or `driver: mem` have this")
		default:
			k.fail(key+"."+f.key, "only ports with `driver: %s` have this", f.driver)
		}
	}
	k.oneOf(p.Mode, key+".mode", "zero-copy", "native", "generic")
	k.oneOf(p.Role, key+".role", "server", "client")
	switch p.Driver {
	case "memif":
		if k.need(p.Socket != "", key, "socket") {
			id := fmt.Sprintf("%s %d", p.Socket, p.ID)
			if o := memifs[id]; o != "" {
				k.fail(key+".id", "%s has socket %s and id %d already", o, p.Socket, p.ID)
			}
			memifs[id] = key
		}
		if len(p.Secret) > 24 {
			k.fail(key+".secret", "longer than 24 bytes")
		}
	case "mem":
		if k.need(p.Socket != "", key, "socket") {
			if w := wires[p.Socket]; len(w) == 2 {
				k.fail(key+".socket", "%s and %s are the two ends of the wire %s already", w[0], w[1], p.Socket)
			}
			wires[p.Socket] = append(wires[p.Socket], key)
		}
	case "afxdp":
		if p.Ring > maxRingXDP {
			k.fail(key+".ring", "%d is more than the %d of driver afxdp", p.Ring, maxRingXDP)
		}
	case "pcap":
		if p.Read == "" && p.Write == "" {
			k.fail(key, "%q or %q is missing", "read", "write")
		}
	}
	k.inVRF(p.VRF, p.RPFilter, key)
	k.addresses(p.Addresses, key, p.MTU)
	tags := map[[2]uint16]string{}
	for j := range p.Vlans {
		v, vkey := &p.Vlans[j], fmt.Sprintf("%s.vlans[%d]", key, j)
		if k.need(v.ID != 0, vkey, "id") {
			k.between(int(v.ID), vkey+".id", 1, 4094)
		}
		k.between(int(v.Inner), vkey+".inner", 1, 4094)
		if o := tags[[2]uint16{v.ID, v.Inner}]; o != "" {
			k.fail(vkey, "%s has these tags already", o)
		} else {
			k.name(v.Name, vkey)
		}
		tags[[2]uint16{v.ID, v.Inner}] = vkey
		k.inVRF(v.VRF, v.RPFilter, vkey)
		k.addresses(v.Addresses, vkey, p.MTU)
	}
}

func (k *checker) addresses(ps []netip.Prefix, key string, mtu int) {
	for i, p := range ps {
		akey := fmt.Sprintf("%s.addresses[%d]", key, i)
		a := p.Addr()
		switch {
		case a.Is4In6():
			k.fail(akey, "write the IPv4 address as %s", a.Unmap())
		case a.IsMulticast(), a.IsUnspecified(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			k.fail(akey, "%s is not a unicast address", a)
		case a.Is4() && p.Bits() < 31 && p.Masked().Addr() == a:
			k.fail(akey, "%s is the subnet itself; give the router an address in it", p)
		}
		if a.Is6() && mtu != 0 && mtu < 1280 {
			k.fail(akey, "IPv6 needs an MTU of at least 1280, and the port has %d", mtu)
		}
		if o := k.addrs[a]; o != "" && !a.IsLinkLocalUnicast() {
			k.fail(akey, "%s is there already, as %s", a, o)
			continue
		}
		k.addrs[a] = akey
		k.links = append(k.links, p.Masked())
	}
}

func (k *checker) device(name, key string) {
	if k.names[name] != "" {
		return
	}
	var names []string
	for n := range k.names {
		names = append(names, n)
	}
	slices.Sort(names)
	if n := yamltree.Nearest(name, names); n != "" {
		k.fail(key, "there is no port or VLAN %q; did you mean %q?", name, n)
		return
	}
	k.fail(key, "there is no port or VLAN %q; there are %s", name, strings.Join(names, ", "))
}

// knowsLinks: the file names all addresses of the router, so that a gateway that
// is in none of its subnets is a mistake.
func (k *checker) knowsLinks() bool {
	for i := range k.c.Ports {
		switch p := &k.c.Ports[i]; p.HostFor(p.Driver) {
		case "builtin":
		case "tap": // addresses may be given to the TAP
			if k.c.Kernel.Follow {
				return false
			}
		default:
			return false
		}
		if k.c.Ports[i].Driver == "" {
			return false
		}
	}
	return true
}

func (k *checker) route(r *Route, key string) {
	if !k.need(r.To.IsValid(), key, "to") || !k.oneOf(r.Type, key+".type", "unicast", "blackhole", "unreachable", "prohibit", "throw") {
		return
	}
	if r.To.Addr().IsMulticast() {
		k.fail(key+".to", "%s is multicast; routes here are unicast", r.To)
	}
	if _, err := k.c.TableOf(r.Table); err != nil {
		k.fail(key+".table", "%s", err)
	}
	k.between(r.MTU, key+".mtu", 1, 65535)
	if r.Type != "" && r.Type != "unicast" {
		if r.MTU != 0 {
			k.fail(key+".mtu", "a route of type %s has no path", r.Type)
		}
		if len(r.Via) != 0 || r.Dev != "" {
			k.fail(key, "a route of type %s drops packets: it has neither via nor dev", r.Type)
		}
		return
	}
	if len(r.Via) == 0 && r.Dev == "" {
		k.fail(key, "%q is missing: a gateway, or `dev NAME`, or `type: blackhole`", "via")
	}
	if r.Dev != "" {
		k.device(r.Dev, key+".dev")
	}
	for i, n := range r.Via {
		vkey := fmt.Sprintf("%s.via[%d]", key, i)
		if !n.Addr.IsValid() {
			continue
		}
		dev := n.Dev
		if dev == "" {
			dev = r.Dev
		} else {
			k.device(dev, vkey)
			if r.Dev != "" && r.Dev != dev {
				k.fail(vkey, "dev %s here, and dev %s for the route", dev, r.Dev)
			}
		}
		switch {
		case n.Addr.Is4() && !r.To.Addr().Is4():
			k.fail(vkey, "an IPv4 gateway for the IPv6 prefix %s", r.To)
		case n.Addr.Is6() && !n.Inet6 && r.To.Addr().Is4() && r.To.Bits() == 0:
			k.fail(vkey, "an IPv6 gateway for %s: for the default route of IPv6 write `to: ::/0`, for IPv4 packets by this gateway `via: inet6 %s`", r.To, n)
		case n.Addr.IsUnspecified() || n.Addr.IsMulticast():
			k.fail(vkey, "%s is not a unicast address", n.Addr)
		case k.addrs[n.Addr] != "":
			k.fail(vkey, "%s is the router itself (%s)", n.Addr, k.addrs[n.Addr])
		case dev == "" && n.Addr.IsLinkLocalUnicast():
			k.fail(vkey, "%s is link-local: write `%s dev NAME`", n.Addr, n.Addr)
		case dev == "" && k.knowsLinks() && !slices.ContainsFunc(k.links, func(p netip.Prefix) bool { return p.Contains(n.Addr) }):
			k.fail(vkey, "%s is not reachable: it is in no subnet of the ports; add an address to a port, or write `%s dev NAME`", n.Addr, n.Addr)
		}
	}
}

func (k *checker) multicast() {
	seen := map[[2]netip.Addr]string{}
	for i := range k.c.Multicast.Routes {
		r, key := &k.c.Multicast.Routes[i], fmt.Sprintf("multicast.routes[%d]", i)
		if k.need(r.Group.IsValid(), key, "group") {
			if err := r.Check(); err != nil {
				k.fail(key, "%v", err)
			}
		}
		if k.need(r.From != "", key, "from") {
			k.device(r.From, key+".from")
		}
		for j, o := range r.To {
			k.device(o.Dev, fmt.Sprintf("%s.to[%d]", key, j))
		}
		id := [2]netip.Addr{r.Group, r.Source.Addr}
		if o := seen[id]; o != "" {
			k.fail(key, "%s has this source and group already", o)
		}
		seen[id] = key
	}
	for i := range k.c.Multicast.Boundaries {
		b, key := &k.c.Multicast.Boundaries[i], fmt.Sprintf("multicast.boundaries[%d]", i)
		if k.need(b.Port != "", key, "port") {
			k.device(b.Port, key+".port")
		}
		if k.need(b.Groups.IsValid(), key, "groups") && !b.Groups.Addr().IsMulticast() {
			k.fail(key+".groups", "%s are no groups: 224.0.0.0/4 and ff00::/8 are", b.Groups)
		}
	}
}

// Check says whether the route's addresses and interfaces go together.
func (r *Mroute) Check() error {
	switch g, s := r.Group, r.Source.Addr; {
	case !g.IsMulticast():
		return fmt.Errorf("%s is not a group: 224.0.0.0/4 and ff00::/8 are", g)
	case !mcast.Forwardable(g):
		return fmt.Errorf("packets to %s never leave their link", g)
	case s.IsValid() && s.Is4() != g.Is4():
		return fmt.Errorf("source %s and group %s are of different families", s, g)
	case s.IsValid() && (s.IsMulticast() || s.IsUnspecified() || s.IsLinkLocalUnicast()):
		return fmt.Errorf("%s cannot be the source of packets that are forwarded; leave the key out for any source", s)
	case len(r.To) > mcast.MaxOut:
		return fmt.Errorf("%d outgoing interfaces are more than %d", len(r.To), mcast.MaxOut)
	}
	for i, o := range r.To {
		if o.Dev == r.From || slices.ContainsFunc(r.To[:i], func(p MrouteOut) bool { return p.Dev == o.Dev }) {
			return fmt.Errorf("%s is there twice: packets never go back by the interface that they came in by", o.Dev)
		}
	}
	return nil
}

// maxRingXDP is the longest ring of the driver afxdp.
const maxRingXDP = 8192

// rings says where pool.buffers is too small for what the receive rings hold of it: those
// of AF_XDP are full of empty buffers. Rings of a length that is not said adapt to the pool.
func (k *checker) rings() {
	const spare = 1024 // for packets on their way
	held, n := 0, 0
	for i := range k.c.Ports {
		if p := &k.c.Ports[i]; p.Ring != 0 && (p.Driver == "" || p.Driver == "afxdp") {
			held += max(1, p.Queues) * p.Ring
			n++
		}
	}
	if b := k.c.Pool.Buffers; b != 0 && held != 0 && held+spare > b {
		k.fail("pool.buffers", "%d are too few: the receive rings of %d %s alone hold %d; leave the key out, or write %d or more", b, n, plural(n, "port", "ports"), held, held+spare)
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func (k *checker) routesOnce() {
	type id struct {
		to     netip.Prefix
		metric uint32
		table  uint32
	}
	seen := map[id]int{}
	for i, r := range k.c.Routes {
		table, _ := k.c.TableOf(r.Table)
		n := id{r.To, r.Metric, table}
		if o, ok := seen[n]; ok && r.To.IsValid() {
			k.fail(fmt.Sprintf("routes[%d]", i), "routes[%d] goes to %s with metric %d already; list all gateways in one `via`, or give another metric", o, r.To, r.Metric)
			continue
		}
		seen[n] = i
	}
}

func (k *checker) rest() {
	c := k.c
	k.between(c.Pool.Buffers, "pool.buffers", 1024, 1<<26)
	k.oneOf(c.Workers.Poll, "workers.poll", "adaptive", "busy")
	if c.ICMP.Rate < 0 {
		k.fail("icmp.rate", "%d is negative; 0 sends no errors", c.ICMP.Rate)
	}
	if c.ICMP.Burst < 1 && c.ICMP.Rate > 0 {
		k.fail("icmp.burst", "%d is less than 1", c.ICMP.Burst)
	}
	k.oneOf(c.Multipath.Hash, "multipath.hash", "l4", "l3", "inner")
	k.fpm()
	k.oneOf(c.Log.Level, "log.level", "debug", "info", "warn", "error")
	if l := c.Metrics.Listen; l != "" {
		host, port, err := net.SplitHostPort(l)
		n, perr := strconv.ParseUint(port, 10, 16)
		switch {
		case err != nil || perr != nil || n == 0 && port != "0":
			k.fail("metrics.listen", "%q is not an address with a port such as 127.0.0.1:9101", l)
		case host == "":
			k.fail("metrics.listen", "%q: say where: 127.0.0.1:%s for this machine only, [::]:%s for everybody", l, port, port)
		}
	}
}
