package router

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"millrace/control/kernel"
	"millrace/control/rule"
	"millrace/fib"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// sink takes what the kernel has. Its methods run on the follower's goroutine.
type sink struct{ *Router }

func (r sink) LinkChanged(l kernel.Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.known[l.Index] = l
	i := r.byIndex[l.Index]
	if i == nil {
		i = r.adopt(l)
	}
	if i == nil || i.port.dev == nil {
		r.wake() // the device of a port may have come back
		return
	}
	i.port.link = i.port.dev.Link()
	r.refresh(i.port)
	r.syncRules() // the link may be in another VRF
}

// adopt finds what a link of the kernel is to us: a port's device that came back, or a VLAN of a
// port; nil for neither.
func (r *Router) adopt(l kernel.Link) *iface {
	for _, p := range r.ports {
		if p.host == "kernel" && p.cfg.Name == l.Name {
			r.bind(p.main, l.Index) // before its routes come
			p.next = time.Time{}
			return p.main
		}
	}
	if l.VLAN == 0 {
		return nil
	}
	parent := r.byIndex[l.Parent]
	outer, inner := l.VLAN, uint16(0)
	if parent == nil { // a VLAN in a VLAN?
		s, ok := r.known[l.Parent]
		if !ok || s.VLAN == 0 || r.byIndex[s.Parent] == nil {
			return nil
		}
		parent, outer, inner = r.byIndex[s.Parent], s.VLAN, l.VLAN
		if s.VLANProto != unix.ETH_P_8021AD || l.VLANProto != unix.ETH_P_8021Q {
			r.log.Warn("a double-tagged interface must be 802.1Q in 802.1ad to be forwarded to", zap.String("interface", l.Name))
			return nil
		}
	} else if l.VLANProto == unix.ETH_P_8021AD {
		return nil // the outer tag of others
	}
	p := parent.port
	if parent != p.main || p.dev == nil {
		return nil
	}
	for _, i := range p.subs {
		if i.outer == outer && i.inner == inner {
			r.bind(i, l.Index)
			return i
		}
	}
	i := r.addVlan(p, l.Name, outer, inner)
	if i != nil {
		r.bind(i, l.Index)
		r.log.Info("VLAN interface", zap.String("interface", l.Name), zap.String("port", p.cfg.Name), zap.Uint16("vlan", outer), zap.Uint16("inner", inner))
	}
	return i
}

func (r sink) LinkRemoved(l kernel.Link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.known, l.Index)
	delete(r.foreign, l.Index)
	i := r.byIndex[l.Index]
	if i == nil {
		return
	}
	if i == i.port.main {
		r.bind(i, 0)
		r.wake() // closes the port
		return
	}
	i.made = false
	r.note(r.dropVlan(i, false))
}

func (r sink) AddrAdded(a kernel.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.addrs, a) { // a replay brings what is known
		r.addrs = append(r.addrs, a)
	}
	r.publishAddrs()
	r.syncStatic()
}

func (r sink) AddrRemoved(a kernel.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addrs = slices.DeleteFunc(r.addrs, func(o kernel.Addr) bool { return o == a })
	r.publishAddrs()
	r.syncStatic()
}

// publishAddrs tells everybody the router's own addresses.
func (r *Router) publishAddrs() {
	t := &graph.Addresses{By: map[uint16][]netip.Prefix{}, Is: map[netip.Addr]uint16{}}
	add := func(id uint16, p netip.Prefix) {
		if id != 0 && !slices.Contains(t.By[id], p) {
			t.By[id] = append(t.By[id], p)
		}
		if _, there := t.Is[p.Addr()]; !there || id != 0 {
			t.Is[p.Addr()] = id
		}
	}
	for _, a := range r.addrs {
		id := uint16(0)
		if i := r.byIndex[a.Index]; i != nil {
			id = i.id
		}
		if !a.Prefix.Addr().IsLoopback() {
			add(id, a.Prefix)
		}
	}
	for _, i := range r.ifaces {
		if i.port.host == "builtin" && i.port.dev != nil {
			for _, a := range i.conf {
				add(i.id, a)
			}
			add(i.id, linkLocal(i.port.link.MAC))
		}
	}
	r.tables.Addrs.Store(t)
	r.tellLocal()
}

// setLocal tells a port which packets to leave to the kernel.
func (r *Router) setLocal(dev pmd.Port) {
	f := portAs[pmd.LocalFilter](dev)
	if f == nil {
		return
	}
	if r.follower == nil || !r.synced {
		return // the driver has read them itself when it opened
	}
	set := maps.Clone(r.locals)
	for _, a := range r.addrs {
		set[a.Prefix.Addr()] = true
	}
	all := slices.Collect(maps.Keys(set))
	if err := f.SetLocal(all); err != nil {
		r.log.Error("addresses that stay with the kernel", zap.String("port", dev.Name()), zap.Error(err))
	}
}

// linkLocal is the address that an interface has by itself (RFC 4291 2.5.1).
func linkLocal(m pmd.MAC) netip.Prefix {
	a := [16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

func (r sink) NeighChanged(n kernel.Neigh) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.byIndex[n.Index]
	if i == nil || n.MAC == (pmd.MAC{}) {
		return
	}
	k := neighKey{i.id, n.Addr}
	r.neighs[k] = n
	if _, fixed := r.pinned[k]; !fixed {
		r.note(r.fib.SetNeighbour(i.id, n.Addr, n.MAC))
	}
}

func (r sink) NeighRemoved(n kernel.Neigh) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := r.byIndex[n.Index]
	if i == nil {
		return
	}
	k := neighKey{i.id, n.Addr}
	delete(r.neighs, k)
	if _, fixed := r.pinned[k]; !fixed {
		r.note(r.fib.DelNeighbour(i.id, n.Addr))
	}
}

// keepAlive has the kernel check neighbours that it does not itself send to.
func (r *Router) keepAlive(n kernel.Neigh) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.byIndex[n.Index] != nil
}

func (r sink) RouteBatch(set []kernel.Route, del []kernel.RouteKey) {
	r.mu.Lock()
	defer r.mu.Unlock()
	add := make([]fib.Route, 0, len(set))
	gone := make([]fib.Key, 0, len(del))
	before := len(r.locals)
	grew := false
	for i := range del {
		k := &del[i]
		if k.Table == kernel.TableLocal && k.Dst.IsSingleIP() {
			delete(r.locals, k.Dst.Addr())
		}
		if r.unfit(k) {
			delete(r.odd, *k)
		} else {
			gone = append(gone, keyOf(k))
		}
	}
	for i := range set {
		k := &set[i]
		if r.unfit(&k.RouteKey) {
			r.odd[k.RouteKey] = struct{}{}
			continue
		}
		x, ok := r.translate(k)
		if !ok {
			gone = append(gone, x.Key())
			continue
		}
		add = append(add, x)
		if a := x.Prefix.Addr(); k.Table == kernel.TableLocal && x.Prefix.IsSingleIP() && x.Type == fib.Local && !r.locals[a] {
			r.locals[a], grew = true, true
		}
	}
	if grew || len(r.locals) != before {
		r.tellLocal() // before the FIB: what is ours must not come here
	}
	r.update(add, gone)
}

// tellLocal tells all ports which packets to leave to the kernel.
func (r *Router) tellLocal() {
	for _, p := range r.ports {
		if p.dev != nil {
			r.setLocal(p.dev)
		}
	}
}

// unfit: the route is one that the FIB cannot have, because it is for some packets to its destination only. Such are
// counted in odd.
func (r *Router) unfit(k *kernel.RouteKey) bool {
	return k.TOS != 0 || k.From.IsValid()
}

func (r sink) RulesChanged(rules []rule.Rule) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.rules = slices.Clone(rules)
	r.syncRules()
}

func (r sink) Synced() {
	r.mu.Lock()
	first := !r.synced
	r.synced = true
	if first {
		r.publishAddrs()
	}
	r.mu.Unlock()
	if first {
		r.wake()
	}
}

// update changes the FIB; what does not fit is left out and told.
func (r *Router) update(add []fib.Route, del []fib.Key) {
	if len(add)+len(del) == 0 {
		return
	}
	if r.fib.Update(add, del) == nil {
		return
	}
	r.note(r.fib.Update(nil, del))
	for i := range add {
		r.note(r.fib.Update(add[i:i+1], nil))
	}
}

// note remembers an error of the FIB for `show status`, and logs the first of its kind.
func (r *Router) note(err error) {
	if err == nil {
		return
	}
	if r.fibErr == "" {
		r.log.Error("forwarding table", zap.Error(err))
	}
	r.fibErr = err.Error()
}

// keyOf is the FIB's key of a kernel's route. The local table comes before all else, as
// in the kernel.
func keyOf(k *kernel.RouteKey) fib.Key {
	src := fib.SourceKernel
	if k.Table == kernel.TableLocal {
		src = fib.SourceConnected
	}
	return fib.Key{Table: fibTable(k.Table), Prefix: k.Dst, Source: src, Metric: k.Metric}
}

// tagKernel is in the tag of a kernel's route in the FIB, with its protocol.
const tagKernel = 1 << 31

var kernelTypes = map[kernel.RouteType]fib.RouteType{
	kernel.Local: fib.Local, kernel.Anycast: fib.Local, kernel.Broadcast: fib.Broadcast, kernel.Multicast: fib.Multicast,
	kernel.Blackhole: fib.Blackhole, kernel.Unreachable: fib.Unreachable, kernel.Prohibit: fib.Prohibit, kernel.Throw: fib.Throw,
}

// way is what the FIB does for a kernel's path.
type way struct {
	typ  fib.RouteType
	hops []fib.NextHop
	ok   bool // it is to be used
}

// maxWays bounds the paths whose way is remembered.
const maxWays = 1 << 16

// translate makes the FIB's route of the kernel's; ok is false for one that is not to be used.
//
// A route by links that are not ours, or with an encapsulation, becomes unreachable: its packets must not take a less specific
// route, and the sender should know.
func (r *Router) translate(k *kernel.Route) (x fib.Route, ok bool) {
	w, known := r.ways[k.Path]
	if !known {
		w = r.wayOf(k)
		if len(r.ways) >= maxWays {
			clear(r.ways)
		}
		r.ways[k.Path] = w
	}
	key := keyOf(&k.RouteKey)
	x = fib.Route{Table: key.Table, Prefix: key.Prefix, Source: key.Source, Metric: key.Metric, Type: w.typ, NextHops: w.hops, Tag: tagKernel | uint32(k.Protocol)}
	return x, w.ok
}

func (r *Router) wayOf(k *kernel.Route) way {
	own := k.Protocol == unix.RTPROT_KERNEL // its addresses and their networks
	if t, special := kernelTypes[k.Type]; special {
		return way{typ: t, ok: r.cfg.Kernel.Follow || own || k.Table == kernel.TableLocal}
	}
	if !r.cfg.Kernel.Follow && !(own && len(k.Hops) == 1 && !k.Hops[0].Via.IsValid()) {
		return way{}
	}
	w := way{ok: true}
	for _, h := range k.Hops {
		if i := r.byIndex[h.Index]; i == nil || h.Encap {
			r.tellForeign(h, k.Dst)
		} else {
			w.hops = append(w.hops, fib.NextHop{Via: h.Via, Iface: i.id, Weight: h.Weight, MTU: k.MTU})
		}
	}
	if w.hops == nil {
		w.typ = fib.Unreachable
	}
	return w
}

// tellForeign logs once for each link that routes lead to and that Millrace does not have.
func (r *Router) tellForeign(h kernel.NextHop, dst netip.Prefix) {
	l := r.known[h.Index]
	if r.foreign[h.Index] || l.Type == unix.ARPHRD_LOOPBACK {
		return
	}
	r.foreign[h.Index] = true
	why := "not a port of Millrace"
	if h.Encap {
		why = "the next hop encapsulates, which is not supported"
	}
	r.log.Warn("routes by this interface are unreachable for forwarded packets",
		zap.String("interface", cmpOr(l.Name, fmt.Sprint(h.Index))), zap.String("why", why), zap.Stringer("such as", dst))
}

func cmpOr(s, t string) string {
	if s == "" {
		return t
	}
	return s
}
