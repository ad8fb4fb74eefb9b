package fib

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"millrace/pipeline/graph"
	"millrace/pmd"
)

// RouteInfo is a route as the FIB sees it.
type RouteInfo struct {
	Route
	Active   bool   // in the hot tables
	Shadowed bool   // inside a special-purpose prefix, so never used
	Group    uint16 // while active
}

func (f *FIB) info(e *entry, i int, best int) RouteInfo {
	c := &e.cands[i]
	r := RouteInfo{Route: Route{
		Table: e.t.id, Prefix: e.pfx, NextHops: slices.Clone(c.set.hops), Type: c.set.typ,
		Source: c.src, Metric: c.metric, Tag: c.tag, Since: time.Unix(0, c.since),
	}, Shadowed: c.hidden}
	if c.local {
		r.Table = TableLocal
	}
	if i == best && e.inst != nil && e.inst == f.variant(e.pfx, c.set) {
		r.Active, r.Group = true, uint16(e.inst.group)
	}
	return r
}

// Routes lists the routes of all tables, main first; of a table IPv4 first, by prefix and then by preference.
func (f *FIB) Routes() []RouteInfo {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]RouteInfo, 0, f.main.rib.Size())
	for _, t := range f.everyTable() {
		if t == f.bare || t == f.local {
			continue // copies
		}
		for _, e := range t.rib.AllSorted() {
			from, best := len(out), f.best(e)
			for i := range e.cands {
				out = append(out, f.info(e, i, best))
			}
			slices.SortStableFunc(out[from:], func(a, b RouteInfo) int {
				return cmp.Or(cmp.Compare(b2i(b.Table == TableLocal), b2i(a.Table == TableLocal)), cmp.Compare(a.Source, b.Source), cmp.Compare(a.Metric, b.Metric))
			})
		}
	}
	return out
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// Result is where packets to an address go.
type Result struct {
	Route     Route // zero where there is none
	Group     uint16
	Exit      graph.Reason // why they leave the road; 0 where they are sent
	Adjs      []uint16     // adjacencies that their flows are spread over; one, for a single next hop
	Neighbour bool         // the address is a resolved neighbour with a host entry of its own
}

// Lookup explains what the hot tables do with packets to an address that are looked up in the main table.
func (f *FIB) Lookup(a netip.Addr) Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.result(f.main, a)
}

// LookupIn is Lookup for a table, by the kernel's number. A table that neither interfaces nor rules
// lead to has routes and no groups: ok is false, as for one that does not exist.
func (f *FIB) LookupIn(id uint32, a netip.Addr) (r Result, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.at(id)
	if t == nil || !a.IsValid() {
		return r, false
	}
	return f.result(t, a), t.mapped(family(a))
}

func (f *FIB) result(t *table, a netip.Addr) Result {
	a = a.WithZone("")
	var r Result
	if !a.IsValid() {
		return r
	}
	r.Group = t.lookup(a)
	for _, e := range t.rib.Supernets(netip.PrefixFrom(a, a.BitLen())) {
		best := f.best(e)
		if best < 0 {
			continue
		}
		r.Route = f.info(e, best, best).Route
		break
	}
	if e, ok := t.near.Get(netip.PrefixFrom(a, a.BitLen())); ok && e.inst != nil {
		i := f.best(e)
		r.Neighbour = i < 0 || e.cands[i].set != e.inst
	}
	g := &f.t.Groups[r.Group]
	r.Exit = g.Exit
	switch {
	case g.Exit != 0:
	case g.Mask == 0:
		r.Adjs = []uint16{g.Adj}
	default:
		for _, b := range f.t.Buckets[g.At:][:int(g.Mask)+1] {
			if !slices.Contains(r.Adjs, b) {
				r.Adjs = append(r.Adjs, b)
			}
		}
	}
	return r
}

// Neighbour is a neighbour of the router.
type Neighbour struct {
	Iface  uint16
	Addr   netip.Addr
	MAC    pmd.MAC // zero while not Known
	Known  bool
	Adj    uint16 // 0 while no route in use needs it; one of several where routes differ in MTU
	Groups int    // next-hop groups that send to it
}

// Neighbours lists neighbours that are known or that routes in use send to, by interface and address.
func (f *FIB) Neighbours() []Neighbour {
	f.mu.Lock()
	out := make([]Neighbour, 0, len(f.hops))
	for k, h := range f.hops {
		n := Neighbour{Iface: k.iface, Addr: k.addr, MAC: h.mac, Known: h.known}
		for _, w := range h.ways {
			n.Groups += len(w.sets)
			n.Adj = cmp.Or(n.Adj, w.adj)
		}
		out = append(out, n)
	}
	f.mu.Unlock()
	slices.SortFunc(out, func(a, b Neighbour) int {
		if a.Iface != b.Iface {
			return int(a.Iface) - int(b.Iface)
		}
		return a.Addr.Compare(b.Addr)
	})
	return out
}

// Unresolved lists the next hops of routes in use whose neighbour is not known: to be
// asked for ahead of packets, and the only way to those of multipath groups of which others work.
func (f *FIB) Unresolved() []Neighbour {
	return slices.DeleteFunc(f.Neighbours(), func(n Neighbour) bool { return n.Known })
}

// Stats are the sizes of the tables.
type Stats struct {
	Tables      int // that hold routes or are in use
	Mapped      int // tables of the hot path, of both families
	Prefixes    int // that have a route or a neighbour
	Installed   int // in the hot tables
	NextHopSets int
	Neighbours  int
	Groups      int // numbers given out, those not yet free for use included
	Adjs        int
	Buckets     int
	Blocks4     int  // of 256 entries each, for IPv4 prefixes beyond /24
	Prefixes6   int  // IPv6 prefixes beyond /20, which take room
	Prefetch    bool // IPv4 lookups prefetch: the routes cover more than a cache holds
}

// Stats counts; with many routes it takes a while.
func (f *FIB) Stats() Stats {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := Stats{
		Tables: 1 + len(f.tables), NextHopSets: len(f.sets), Neighbours: len(f.hops),
		Groups: f.groups.Used(), Adjs: f.adjs.Used(), Buckets: f.runs.used(),
		Blocks4: f.t4.Blocks().Used(), Prefixes6: f.t6.Prefixes().Used(), Prefetch: f.t4.Spread(),
	}
	for _, t := range f.everyTable() {
		if t != f.bare && t != f.local {
			s.Prefixes += t.rib.Size()
			for _, e := range t.rib.All() {
				if e.inst != nil {
					s.Installed++
				}
			}
		}
		for fam := range 2 {
			if t.mapped(fam) {
				s.Mapped++
			}
		}
	}
	return s
}

func traceGroup(t *graph.Look) string {
	g := t.Vector.NH[t.Pos]
	if x := t.Worker.Tables.Groups[g&(graph.MaxGroups-1)].Exit; x != 0 {
		return fmt.Sprintf("group %d: %v", g, x)
	}
	return fmt.Sprintf("group %d", g)
}

func traceRPF(flags uint16) func(t *graph.Look) string {
	return func(t *graph.Look) string {
		if t.Worker.Tables.Ifaces[t.Vector.In[t.Pos]].Flags&flags == 0 {
			return ""
		}
		return "the source is reachable"
	}
}

func traceAdj(t *graph.Look) string {
	a := t.Vector.Adj[t.Pos]
	adj := &t.Worker.Tables.Adjs[a]
	name, ok := (*t.Worker.Tables.Names.Load())[adj.Iface]
	if !ok {
		name = fmt.Sprint("interface ", adj.Iface)
	}
	rw := binary.LittleEndian.AppendUint64(nil, adj.RW0)
	mac := pmd.MAC(rw[:6])
	if adj.L2 > 14 {
		mac = pmd.MAC(adj.Head[:6])
	}
	return fmt.Sprintf("next hop %s on %s, MTU %d (group %d, adjacency %d)", mac, name, adj.MTU, t.Vector.NH[t.Pos], a)
}
