package fib

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/gaissmai/bart"

	"millrace/fib/lpm"
	"millrace/internal/epoch"
)

// Tables that have a meaning of their own, by the kernel's numbers.
const (
	TableMain    = 254 // also by the number 0
	TableLocal   = 255 // the router's own addresses, which rules ask before all else
	tableDefault = 253
)

// MaxTables bounds the routing tables that hold routes or are in use.
const MaxTables = 1 << 12

// table is a routing table. Its routes stand in rib, whether packets are looked up in it or not; it has tables
// of the hot path while an interface or a rule leads packets to it.
//
// The main table (TableMain) also holds the routes of the local one, so that packets without rules need one lookup.
// TableLocal holds the router's own addresses a second time, for lists of rules in which
// something stands between the two.
type table struct {
	id     uint32 // by the kernel's numbers; 0 for main
	hot    uint16 // in graph.Iface.Table; 0 for main
	rib    bart.Table[*entry]
	near   bart.Table[*entry] // entries of addresses with neighbours
	links  map[uint16]bool    // interfaces whose neighbours are in near; nil for all
	held   bool               // by Table
	always bool               // main and bare
	pins   int                // interfaces and rules that lead packets here
	count  [2]int             // routes, special-purpose prefixes not counted, by family
	v4     lpm.V4             // nil while not in use, or without IPv4 routes
	v6     *lpm.Table6
	moved  bool // in FIB.touched
}

// family is 0 for IPv4 and 1 for IPv6.
func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// mapped: the table has one of the hot path for the family.
func (t *table) mapped(family int) bool {
	if family == 0 {
		return t.v4 != nil
	}
	return t.v6 != nil
}

// needs: it should have one.
func (t *table) needs(family int) bool { return t.always || t.pins > 0 && t.count[family] > 0 }

func (t *table) lookup(a netip.Addr) uint16 {
	switch {
	case a.Is4() && t.v4 != nil:
		return t.v4.Lookup(addr4(a))
	case !a.Is4() && t.v6 != nil:
		return t.v6.Lookup(a.As16())
	}
	return 0
}

func (t *table) insert(p netip.Prefix, g uint16) error {
	if a := p.Addr(); a.Is4() {
		return t.v4.Insert(addr4(a), p.Bits(), g)
	} else {
		return t.v6.Insert(a.As16(), p.Bits(), g)
	}
}

func (t *table) replace(p netip.Prefix, g uint16) {
	if a := p.Addr(); a.Is4() {
		t.v4.Replace(addr4(a), p.Bits(), g)
	} else {
		t.v6.Replace(a.As16(), p.Bits(), g)
	}
}

func (t *table) remove(p netip.Prefix, parent uint16, bits int) {
	if a := p.Addr(); a.Is4() {
		t.v4.Remove(addr4(a), p.Bits(), parent, bits)
	} else {
		t.v6.Remove(a.As16(), p.Bits(), parent, bits)
	}
}

// plainTable is the number by which tables are kept: 0 for main, and for local, whose routes main holds.
func plainTable(id uint32) uint32 {
	if id == TableMain || id == TableLocal {
		return 0
	}
	return id
}

// at is the table of a number, or nil where there is none.
func (f *FIB) at(id uint32) *table {
	if id = plainTable(id); id == 0 {
		return f.main
	}
	return f.tables[id]
}

// table finds or makes a table.
func (f *FIB) table(id uint32) (*table, error) {
	if t := f.at(id); t != nil {
		return t, nil
	}
	n, err := f.take(f.numbers)
	if err != nil {
		return nil, err
	}
	t := &table{id: id, hot: uint16(n), links: map[uint16]bool{}}
	f.tables[id], f.byHot[n] = t, t
	f.special(t)
	f.touch(t)
	return t, nil
}

// special gives a table the special-purpose prefixes.
func (f *FIB) special(t *table) {
	for _, m := range martians {
		e := t.entry(netip.MustParsePrefix(m.prefix))
		f.add(e, cand{set: f.intern(m.typ, nil), src: SourceMartian, since: f.born})
		f.mark(e)
	}
}

// touch says that the table may need other tables of the hot path, or none, or be of no more use.
func (f *FIB) touch(t *table) {
	if !t.moved {
		t.moved = true
		f.touched = append(f.touched, t)
	}
}

// makeBare makes the table that stands for those without routes of a family.
func (f *FIB) makeBare() {
	if f.bare == nil {
		f.bare = &table{always: true, links: map[uint16]bool{}}
		f.special(f.bare)
		f.touch(f.bare)
	}
}

func (f *FIB) pin(t *table) {
	t.pins++
	f.touch(t)
}

func (f *FIB) unpin(t *table) {
	t.pins--
	f.touch(t)
}

// open maps what touched tables need. Their entries are marked.
func (f *FIB) open() error {
	if want := f.wantLocal(); want != (f.local.pins > 0) {
		f.local.pins = 1 - f.local.pins
		f.touch(f.local)
		f.stale = true
	}
	for i := 0; i < len(f.touched); i++ {
		t := f.touched[i]
		if t.pins > 0 {
			f.makeBare()
		}
		for fam := range 2 {
			if t.mapped(fam) || !t.needs(fam) {
				continue
			}
			var err error
			if fam == 0 {
				t.v4, err = newV4(f.d)
			} else {
				t.v6, err = lpm.New6(f.d)
			}
			if err != nil {
				if fam == 0 {
					t.v4 = nil
				} else {
					t.v6 = nil
				}
				return fmt.Errorf("fib: table %d: %w: %w", t.id, ErrFull, err)
			}
			f.stale = true
			f.markAll(t, fam)
		}
	}
	return nil
}

// markAll marks the entries of a family.
func (f *FIB) markAll(t *table, fam int) {
	all := t.rib.All4()
	if fam == 1 {
		all = t.rib.All6()
	}
	for _, e := range all {
		f.mark(e)
	}
}

// shut takes back what touched tables do not need. The hot path must have been told by publish that it is gone.
func (f *FIB) shut() {
	for i := 0; i < len(f.touched); i++ {
		t := f.touched[i]
		t.moved = false
		for fam := range 2 {
			if !t.mapped(fam) || t.needs(fam) {
				continue
			}
			all := t.rib.All4()
			if fam == 1 {
				all = t.rib.All6()
			}
			for _, e := range all {
				if e.inst != nil {
					f.left = append(f.left, e.inst)
					e.inst = nil
				}
			}
			if v4 := t.v4; fam == 0 {
				t.v4 = nil
				f.d.Retire(v4.Close)
			} else {
				f.d.Retire(t.v6.Close)
				t.v6 = nil
			}
		}
		if t.always || t == f.local || t.held || t.pins+t.count[0]+t.count[1] > 0 {
			continue
		}
		for _, e := range t.rib.All() {
			for i := range e.cands {
				f.dropped = append(f.dropped, e.cands[i].set)
			}
		}
		delete(f.tables, t.id)
		f.byHot[t.hot] = nil
		f.d.Retire(func() { f.numbers.Put(uint32(t.hot)) })
	}
	clear(f.touched)
	f.touched = f.touched[:0]
}

// newV4 makes the IPv4 table of a table other than main.
func newV4(d *epoch.Domain) (lpm.V4, error) { return lpm.NewCompact4(d) }

// Table is the number of a routing table, given by the kernel's number, for graph.Iface.Table: packets that come in by
// such an interface are looked up there, and SetIface holds the table from then on. Table makes
// the table where there is none and keeps it until FreeTable. The error wraps ErrFull.
func (f *FIB) Table(id uint32) (hot uint16, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t, err := f.table(id)
	if err != nil {
		return 0, err
	}
	t.held = true
	return t.hot, f.settle(func() {})
}

// FreeTable says that no interface will be given the number that Table gave. The table
// goes when it is empty and neither interfaces nor rules lead to it.
func (f *FIB) FreeTable(id uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t := f.at(id); t != nil {
		t.held = false
		f.touch(t)
		_ = f.settle(func() {}) // it needs nothing
	}
}

// link says that the route's neighbours are those of an interface: a table with on-link routes by it has
// host entries for its neighbours.
func (f *FIB) link(t *table, s *hopset) {
	if !s.onlink || t.links == nil {
		return
	}
	for i := range s.hops {
		h := &s.hops[i]
		if h.Via.IsValid() || t.links[h.Iface] {
			continue
		}
		t.links[h.Iface] = true
		for k, n := range f.hops {
			if k.iface == h.Iface && n.known {
				f.beside(t, k.addr, 1)
			}
		}
	}
}

// beside counts the neighbours at an address in one table, and marks its entry. Link-local addresses have none:
// they are never forwarded to.
func (f *FIB) beside(t *table, a netip.Addr, n int) {
	if a.IsLinkLocalUnicast() {
		return
	}
	p := netip.PrefixFrom(a, a.BitLen())
	e := t.entry(p)
	e.near += int32(n)
	if e.near == 0 {
		t.near.Delete(p)
	} else if int(e.near) == n {
		t.near.Insert(p, e)
	}
	f.mark(e)
}

// localLike: a route of the main table that the local one holds too.
func localLike(c *cand) bool {
	switch {
	case c.local:
		return true
	case c.src == SourceDerived:
		return true
	case c.src == SourceConnected:
		return c.set.typ == Local || c.set.typ == Broadcast || c.set.typ == Multicast
	}
	return false
}

// everyTable lists all tables, main first.
func (f *FIB) everyTable() []*table {
	l := []*table{f.main, f.local}
	if f.bare != nil {
		l = append(l, f.bare)
	}
	for _, id := range slices.Sorted(maps.Keys(f.tables)) {
		l = append(l, f.tables[id])
	}
	return l
}

// commit ends a batch of changes in the tables of the hot path.
func (t *table) commit() {
	if t.v4 != nil {
		t.v4.Commit()
	}
	if t.v6 != nil {
		t.v6.Commit()
	}
}
