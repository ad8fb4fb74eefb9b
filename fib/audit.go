package fib

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"millrace/pipeline/graph"
)

// RouteAudit compares the routes that the FIB holds with those that it should hold: Check for all that it
// should, then Rest for what it holds beyond. One at a time for a FIB.
type RouteAudit struct {
	f     *FIB
	stamp uint8
}

// AuditRoutes begins a comparison.
func (f *FIB) AuditRoutes() *RouteAudit {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stamp++; f.stamp == 0 {
		f.stamp = 1 // 0 is for routes that were never checked
	}
	return &RouteAudit{f, f.stamp}
}

// Check calls differs for each route that the FIB does not hold, with have nil, or holds with another type or other next
// hops. It is called under the FIB's lock, so differs may not call the FIB, nor take a lock under which others call it.
func (a *RouteAudit) Check(want []Route, differs func(want, have *Route)) {
	f := a.f
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range want {
		r := &want[i]
		e := f.find(r.Table, r.Prefix.Masked())
		k := -1
		if e != nil {
			k = e.find(r.Source, r.Metric, 0, r.Table == TableLocal)
		}
		if k < 0 {
			differs(r, nil)
			continue
		}
		c := &e.cands[k]
		c.stamp = a.stamp
		if s := f.leads(r); s != c.set {
			have := f.info(e, k, -1).Route
			differs(r, &have)
			f.forget(s)
		}
	}
}

// Rest returns the routes of a source that Check did not see since the audit began and that were not added since.
func (a *RouteAudit) Rest(src Source) (surplus []Route) {
	f := a.f
	f.each(func(e *entry) {
		if e.t == f.local {
			return // copies
		}
		for i := range e.cands {
			if c := &e.cands[i]; c.src == src && c.stamp != a.stamp {
				surplus = append(surplus, f.info(e, i, -1).Route)
			}
		}
	})
	return surplus
}

// Fault is something in the tables of the hot path that is not as the FIB's routes and neighbours say.
type Fault struct {
	What string // "entry", "group" or "adjacency"
	Name string
	Want string
	Have string
}

// Verified is what Verify looked at.
type Verified struct{ Entries, Groups, Adjacencies int }

// Verify compares the tables that packets meet with routes and neighbours: at the first and last address of each prefix what a
// lookup finds, and what groups and adjacencies hold. Changes wait meanwhile only for pieces of it. It calls tell under the FIB's
// lock, as Check does differs.
func (f *FIB) Verify(tell func(Fault)) (v Verified) {
	f.each(func(e *entry) {
		v.Entries++
		if w := f.wanted(e); w != e.inst {
			tell(Fault{"entry", e.pfx.String(), describe(w), describe(e.inst)})
			return
		}
		first := e.pfx.Addr()
		for _, a := range []netip.Addr{first, lastAddr(e.pfx)} {
			if want, have := f.expect(e, a), f.look(e, a); want != have {
				tell(Fault{"entry", fmt.Sprintf("%v of %v", a, e.pfx), fmt.Sprint("group ", want), fmt.Sprint("group ", have)})
			}
			if e.pfx.IsSingleIP() {
				break
			}
		}
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sets {
		if s.users == 0 {
			continue
		}
		v.Groups++
		if want, have := f.verifyGroup(s); want != have {
			tell(Fault{"group", fmt.Sprintf("%d (%s)", s.group, describe(s)), want, have})
		}
	}
	for i, n := range f.mcast {
		have := uint32(f.t.Multicast[i])
		if up := n != 0 && f.ifs[i].up; up != (have != 0) {
			tell(Fault{"adjacency", fmt.Sprintf("of multicast on interface %d", i), fmt.Sprint("there: ", up), fmt.Sprint("number ", have)})
		} else if have != 0 {
			v.Adjacencies++
			if want, is := f.multicastAdj(uint16(i)), f.t.Adjs[have]; want != is {
				tell(Fault{"adjacency", fmt.Sprintf("%d (multicast on interface %d)", have, i), fmt.Sprintf("%+v", want), fmt.Sprintf("%+v", is)})
			}
		}
	}
	for _, h := range f.hops {
		for _, w := range h.ways {
			if w.adj == 0 {
				continue
			}
			v.Adjacencies++
			if want, have := f.build(w), f.t.Adjs[w.adj]; want != have {
				tell(Fault{"adjacency", fmt.Sprintf("%d (%v on interface %d)", w.adj, h.key.addr, h.key.iface),
					fmt.Sprintf("port %d, header % x, MTU %d", want.Port, want.Head[:want.L2], want.MTU),
					fmt.Sprintf("port %d, header % x, MTU %d", have.Port, have.Head[:min(int(have.L2), len(have.Head))], have.MTU)})
			}
		}
	}
	return v
}

// verifyGroup says what the set's group should hold and does, in words that are equal where it is right.
func (f *FIB) verifyGroup(s *hopset) (want, have string) {
	g := f.t.Groups[s.group]
	if s.typ != Unicast {
		return reasonOf[s.typ].String(), exitOf(g)
	}
	var usable []uint16
	for i := range s.hops {
		if a := s.adj(i); a != 0 {
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		return f.why.Unresolved.String(), exitOf(g)
	}
	want = fmt.Sprint("adjacencies among ", usable)
	used := []uint16{g.Adj}
	if g.Mask != 0 {
		used = f.t.Buckets[g.At:][:int(g.Mask)+1]
	}
	if g.Exit != 0 {
		return want, exitOf(g)
	}
	for b, a := range used {
		if !slices.Contains(usable, a) || g.Mask != 0 && s.adj(int(s.share.owner[b])) != a {
			return want, fmt.Sprintf("adjacency %d in bucket %d", a, b)
		}
	}
	return want, want
}

func exitOf(g graph.Group) string {
	if g.Exit == 0 {
		return fmt.Sprintf("adjacency %d, %d buckets", g.Adj, int(g.Mask)+1)
	}
	return g.Exit.String()
}

// describe tells a set in words; nil is no route.
func describe(s *hopset) string {
	if s == nil {
		return "no route"
	}
	if s.typ != Unicast {
		return s.typ.String()
	}
	var l []string
	for _, h := range s.hops {
		via := "on-link"
		if h.Via.IsValid() {
			via = "via " + h.Via.String()
		}
		l = append(l, fmt.Sprintf("%s interface %d weight %d", via, h.Iface, h.Weight))
	}
	return strings.Join(l, ", ")
}

// expect is the group that an address of the entry's table should find.
func (f *FIB) expect(e *entry, a netip.Addr) uint16 {
	for _, s := range e.t.rib.Supernets(netip.PrefixFrom(a, a.BitLen())) {
		if s.inst != nil {
			return uint16(s.inst.group)
		}
	}
	return 0
}

// look is the group that an address of the entry's table finds.
func (f *FIB) look(e *entry, a netip.Addr) uint16 { return e.t.lookup(a) }

func (f *FIB) find(table uint32, p netip.Prefix) *entry {
	t := f.at(table)
	if t == nil {
		return nil
	}
	e, _ := t.rib.Get(p)
	return e
}

// auditPiece is how many entries are looked at while changes wait.
const auditPiece = 1024

// each calls do for all entries, under the lock, a piece at a time.
func (f *FIB) each(do func(e *entry)) {
	type place struct {
		t *table
		p netip.Prefix
	}
	f.mu.Lock()
	all := make([]place, 0, f.main.rib.Size())
	for _, t := range f.everyTable() {
		if t == f.bare || t == f.local && t.pins == 0 {
			continue
		}
		for p := range t.rib.All() {
			all = append(all, place{t, p})
		}
	}
	f.mu.Unlock()
	for part := range slices.Chunk(all, auditPiece) {
		f.mu.Lock()
		for _, x := range part {
			if e, ok := x.t.rib.Get(x.p); ok {
				do(e)
			}
		}
		f.mu.Unlock()
	}
}

// lastAddr is the last address of a prefix.
func lastAddr(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return lastAddr4(p)
	}
	a := p.Addr().As16()
	for i := p.Bits(); i < 128; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom16(a)
}
