package fib

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gaissmai/bart"

	"millrace/fib/lpm"
	"millrace/internal/epoch"
	"millrace/internal/ids"
	"millrace/pipeline/graph"
)

// FIB is the forwarding state of a router. All methods are safe for concurrent use;
// Target, Generation and the stages take no lock.
type FIB struct {
	t       *graph.Tables
	d       *epoch.Domain
	why     Reasons
	t4      *lpm.Table4
	t6      *lpm.Table6
	gen     atomic.Uint64
	targets []atomic.Pointer[target] // by group

	mu     sync.Mutex
	rib    bart.Table[*entry]
	near   bart.Table[*entry] // entries of addresses with neighbours
	sets   map[string]*hopset
	hops   map[hopKey]*hop
	ifs    [graph.MaxIfaces]link
	mcast  [graph.MaxIfaces]int // multicast routes that lead to each interface
	uses   [graph.MaxIfaces]uses
	groups *ids.Set
	adjs   *ids.Set
	runs   runs
	key    []byte // scratch of intern
	stamp  uint8  // of the last audit

	// Of the change in progress; see settle.
	dirty   []*entry
	left    []*hopset // installed once less
	dropped []*hopset // wanted by a route once less
	changed bool
	retired retired
}

// entry is a prefix that some source has a route for, or an address with a neighbour.
type entry struct {
	pfx   netip.Prefix
	cands []cand
	inst  *hopset // what the hot table has
	want  *hopset // what it should have, while dirty
	near  int     // interfaces on which the address is a known neighbour
	dirty bool
	saved bool // in the undo list of the Update in progress

	listed bool // scratch of hopset.entriesOf
}

// cand is a route of an entry.
type cand struct {
	set    *hopset
	since  int64 // Unix nanoseconds
	metric uint32
	tag    uint32
	src    Source
	sub    uint8   // SourceDerived: length of the connected prefix
	stamp  uint8   // of the last audit that saw it
	hidden bool    // inside a special-purpose prefix, so never used
	of     *hopset // SourceDerived: of the connected prefix, without which there is none
}

// retired is what workers may still read.
type retired struct {
	groups, adjs []uint32
	runs         []run
}

// special-purpose prefixes; see RFC 6890 and its registry. Real routes inside them are
// not used, unless of a type that is let in.
var martians = []struct {
	prefix string
	typ    RouteType
	let    []RouteType
}{
	{"0.0.0.0/8", Martian, nil},
	{"127.0.0.0/8", Martian, nil},
	{"169.254.0.0/16", LinkLocal, []RouteType{Local}},
	{"224.0.0.0/4", Multicast, []RouteType{Multicast}},
	{"240.0.0.0/4", Martian, nil},
	{"255.255.255.255/32", LimitedBroadcast, nil},
	{"::/128", Martian, nil},
	{"::1/128", Martian, nil},
	{"::ffff:0:0/96", Martian, nil},
	{"fe80::/10", LinkLocal, []RouteType{Local}},
	{"ff00::/8", Multicast, []RouteType{Multicast}},
}

// New makes a FIB that knows the special-purpose prefixes and no other route. It writes
// Groups, Adjs and Buckets of t, and reads Ifaces.
func New(t *graph.Tables, d *epoch.Domain, why Reasons) (*FIB, error) {
	f := &FIB{
		t: t, d: d, why: why,
		targets: make([]atomic.Pointer[target], graph.MaxGroups),
		sets:    map[string]*hopset{}, hops: map[hopKey]*hop{},
		groups: ids.New("next-hop groups", 1, graph.MaxGroups),
		adjs:   ids.New("adjacencies", 1, graph.MaxAdjs),
		runs:   runs{size: graph.MaxBuckets},
	}
	var err error
	if f.t4, err = lpm.New4(d); err != nil {
		return nil, fmt.Errorf("fib: %w", err)
	}
	if f.t6, err = lpm.New6(d); err != nil {
		f.t4.Close()
		return nil, fmt.Errorf("fib: %w", err)
	}
	f.store(0, word(0, XNoRoute, 0))
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now().UnixNano()
	for _, m := range martians {
		e := f.entry(netip.MustParsePrefix(m.prefix))
		f.add(e, cand{set: f.intern(m.typ, nil), src: SourceMartian, since: now})
		f.mark(e)
	}
	if err := f.settle(func() {}); err != nil {
		return nil, err
	}
	f.t4.Calm()
	return f, nil
}

// Close unmaps the tables; no worker may be running.
func (f *FIB) Close() {
	f.d.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	f.t4.Close()
	f.t6.Close()
}

// Generation changes whenever destinations may be reached in another way than before: a
// reason to look at held packets again.
func (f *FIB) Generation() uint64 { return f.gen.Load() }

// Update removes the routes named by del and then adds those in add, as one change: a prefix
// that is in both goes from old to new without a gap. A route to add with the
// key of an existing one replaces it; a key to delete that is not there is ignored. On an
// error, which wraps ErrInvalid or ErrFull, nothing has changed.
func (f *FIB) Update(add []Route, del []Key) error {
	for i := range add {
		if err := add[i].check(); err != nil {
			return err
		}
	}
	for _, k := range del {
		if err := k.check(); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var undo []saved
	save := func(e *entry) {
		if !e.saved {
			e.saved = true
			undo = append(undo, saved{e, slices.Clone(e.cands)})
		}
		f.mark(e)
	}
	now := time.Now().UnixNano()
	for _, k := range del {
		if e, ok := f.rib.Get(k.Prefix.Masked()); ok {
			if i := e.find(k.Source, k.Metric, 0); i >= 0 {
				save(e)
				f.derive(save, e, e.cands[i], false)
				f.remove(e, i)
			}
		}
	}
	for i := range add {
		r := &add[i]
		e := f.entry(r.Prefix.Masked())
		c := cand{set: f.intern(r.Type, r.NextHops), src: r.Source, metric: r.Metric, tag: r.Tag, since: now, stamp: f.stamp}
		if !r.Since.IsZero() {
			c.since = r.Since.UnixNano()
		}
		c.hidden = hidden(e.pfx, r.Type)
		save(e)
		if i := e.find(c.src, c.metric, 0); i >= 0 {
			f.derive(save, e, e.cands[i], false)
		}
		f.add(e, c)
		f.derive(save, e, c, true)
	}
	return f.settle(func() {
		for _, s := range undo {
			for _, c := range s.e.cands {
				f.dropped = append(f.dropped, c.set)
			}
			s.e.cands = s.cands
			for i := range s.cands {
				f.refer(s.e, &s.cands[i])
			}
		}
	})
}

type saved struct {
	e     *entry
	cands []cand
}

// derive adds or removes what follows from a connected prefix: IPv4's broadcast
// addresses (RFC 1812 4.2.3.1), IPv6's subnet-router anycast address (RFC 4291 2.6.1).
func (f *FIB) derive(save func(*entry), e *entry, c cand, add bool) {
	bits := e.pfx.Bits()
	if c.src != SourceConnected || c.set.typ != Unicast || !c.set.onlink || bits >= e.pfx.Addr().BitLen()-1 {
		return
	}
	addrs, typ := []netip.Addr{e.pfx.Addr()}, Local
	if e.pfx.Addr().Is4() {
		addrs, typ = append(addrs, lastAddr4(e.pfx)), Broadcast
	}
	for _, a := range addrs {
		p := netip.PrefixFrom(a, a.BitLen())
		if add {
			h := f.entry(p)
			save(h)
			f.add(h, cand{set: f.intern(typ, nil), src: SourceDerived, metric: c.metric, sub: uint8(bits), since: c.since, hidden: hidden(p, typ), of: c.set})
		} else if h, ok := f.rib.Get(p); ok {
			if i := h.find(SourceDerived, c.metric, uint8(bits)); i >= 0 {
				save(h)
				f.remove(h, i)
			}
		}
	}
}

func lastAddr4(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	v := binary.BigEndian.Uint32(a[:]) | uint32(1<<(32-p.Bits())-1)
	binary.BigEndian.PutUint32(a[:], v)
	return netip.AddrFrom4(a)
}

var martianTable = func() *bart.Table[[]RouteType] {
	t := &bart.Table[[]RouteType]{}
	for _, m := range martians {
		t.Insert(netip.MustParsePrefix(m.prefix), m.let)
	}
	return t
}()

// hidden: the prefix is special-purpose and the type is not let in.
func hidden(p netip.Prefix, t RouteType) bool {
	let, ok := martianTable.LookupPrefix(p)
	return ok && !slices.Contains(let, t)
}

func (f *FIB) entry(p netip.Prefix) *entry {
	e, ok := f.rib.Get(p)
	if !ok {
		e = &entry{pfx: p}
		f.rib.Insert(p, e)
	}
	return e
}

func (e *entry) find(src Source, metric uint32, sub uint8) int {
	for i := range e.cands {
		if c := &e.cands[i]; c.src == src && c.metric == metric && c.sub == sub {
			return i
		}
	}
	return -1
}

func (f *FIB) add(e *entry, c cand) {
	f.refer(e, &c)
	if i := e.find(c.src, c.metric, c.sub); i >= 0 {
		f.dropped = append(f.dropped, e.cands[i].set)
		e.cands[i] = c
		return
	}
	e.cands = append(e.cands, c)
}

func (f *FIB) remove(e *entry, i int) {
	f.dropped = append(f.dropped, e.cands[i].set)
	e.cands = slices.Delete(e.cands, i, i+1)
}

// best is the index of the entry's route to use; -1 where there is none.
func (f *FIB) best(e *entry) int {
	best := -1
	for i := range e.cands {
		c := &e.cands[i]
		if c.hidden || !f.alive(c.set) || c.of != nil && !f.alive(c.of) {
			continue
		}
		if best >= 0 {
			b := &e.cands[best]
			if c.src > b.src || c.src == b.src && (c.metric > b.metric || c.metric == b.metric && c.sub >= b.sub) {
				continue
			}
		}
		best = i
	}
	return best
}

// cover is the set of the route that an address falls to by longest prefix match.
func (f *FIB) cover(p netip.Prefix) *hopset {
	for _, e := range f.rib.Supernets(p) {
		if i := f.best(e); i >= 0 {
			return e.cands[i].set
		}
	}
	return nil
}

// wanted is the set that the entry should have in the hot table.
func (f *FIB) wanted(e *entry) *hopset {
	if e.near > 0 {
		if c := f.cover(e.pfx); c != nil && c.onlink {
			for _, h := range c.hops {
				if h.Via.IsValid() || !f.ifs[h.Iface].up {
					continue
				}
				if n := f.hops[hopKey{h.Iface, e.pfx.Addr()}]; n != nil && n.known {
					return f.intern(Unicast, []NextHop{{Via: e.pfx.Addr(), Iface: h.Iface, MTU: h.MTU}})
				}
			}
		}
	}
	if i := f.best(e); i >= 0 {
		return e.cands[i].set
	}
	return nil
}

// mark says that the entry, and the neighbours below it, may want something else.
func (f *FIB) mark(e *entry) {
	if e.dirty {
		return
	}
	e.dirty = true
	f.dirty = append(f.dirty, e)
	if f.near.Size() > 0 {
		for _, n := range f.near.Subnets(e.pfx) {
			if !n.dirty {
				n.dirty = true
				f.dirty = append(f.dirty, n)
			}
		}
	}
}

// settle makes the hot tables follow the dirty entries, or calls undo, which takes the
// change back, and makes them follow again. Nothing is freed before the end,
// so that the way back needs nothing that is not there.
func (f *FIB) settle(undo func()) error {
	err := f.apply()
	if err != nil {
		for _, e := range f.dirty {
			if e.want != nil { // it may be wanted no more
				e.want.refs++
				f.dropped = append(f.dropped, e.want)
			}
		}
		undo()
		if again := f.apply(); again != nil {
			panic("fib: cannot restore the tables: " + again.Error())
		}
	}
	f.sweep()
	return err
}

// apply installs before it removes, so that no destination is without a route between.
func (f *FIB) apply() error {
	for _, e := range f.dirty {
		e.want = f.wanted(e)
		if e.want != nil {
			if err := f.install(e); err != nil {
				return err
			}
		}
	}
	for _, e := range f.dirty {
		if e.want == nil && e.inst != nil {
			f.uninstall(e)
		}
	}
	return nil
}

func (f *FIB) install(e *entry) error {
	if e.want == e.inst {
		return nil
	}
	if err := f.use(e.want, e.inst); err != nil {
		return fmt.Errorf("%w (at %v)", err, e.pfx)
	}
	g := uint16(e.want.group)
	old := e.inst
	e.inst = e.want
	f.changed = true
	if old != nil {
		f.left = append(f.left, old)
		if a := e.pfx.Addr(); a.Is4() {
			f.t4.Replace(addr4(a), e.pfx.Bits(), g)
		} else {
			f.t6.Replace(a.As16(), e.pfx.Bits(), g)
		}
		return nil
	}
	var err error
	if a := e.pfx.Addr(); a.Is4() {
		err = f.t4.Insert(addr4(a), e.pfx.Bits(), g)
	} else {
		err = f.t6.Insert(a.As16(), e.pfx.Bits(), g)
	}
	if err != nil {
		f.left = append(f.left, e.inst)
		e.inst = nil
		return fmt.Errorf("%w (at %v)", err, e.pfx)
	}
	return nil
}

func (f *FIB) uninstall(e *entry) {
	f.left = append(f.left, e.inst)
	e.inst = nil
	f.changed = true
	parent, bits := uint16(0), 0
	for p, s := range f.rib.Supernets(e.pfx) {
		if s.inst != nil {
			parent, bits = uint16(s.inst.group), p.Bits()
			break
		}
	}
	if a := e.pfx.Addr(); a.Is4() {
		f.t4.Remove(addr4(a), e.pfx.Bits(), parent, bits)
	} else {
		f.t6.Remove(a.As16(), e.pfx.Bits(), parent, bits)
	}
}

func addr4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}

// sweep lets go of what the change left over, and publishes its generation.
func (f *FIB) sweep() {
	for _, s := range f.left {
		if s.users--; s.users == 0 {
			f.deactivate(s)
		}
		f.forget(s)
	}
	for _, s := range f.dropped {
		s.refs--
		f.forget(s)
	}
	for _, e := range f.dirty {
		if e.want != nil {
			f.forget(e.want)
		}
		e.want, e.dirty, e.saved = nil, false, false
		if len(e.cands) == 0 && e.near == 0 && e.inst == nil {
			f.rib.Delete(e.pfx)
		}
	}
	clear(f.left)
	clear(f.dropped)
	clear(f.dirty)
	f.left, f.dropped, f.dirty = f.left[:0], f.dropped[:0], f.dirty[:0]
	f.t4.Commit()
	f.t6.Commit()
	if f.changed {
		f.changed = false
		f.gen.Add(1)
	}
	f.retire()
}

// retire gives numbers back once no worker reads what they name.
func (f *FIB) retire() {
	r := f.retired
	if len(r.groups)+len(r.adjs)+len(r.runs) == 0 {
		return
	}
	f.retired = retired{}
	f.d.Retire(func() {
		for _, g := range r.groups {
			f.targets[g].Store(nil)
		}
		f.groups.Put(r.groups...)
		f.adjs.Put(r.adjs...)
		for _, x := range r.runs {
			f.runs.put(x)
		}
	})
}

// take gets a number; where none is free it waits for those that workers may still
// read.
func (f *FIB) take(s *ids.Set) (uint32, error) {
	id, err := s.Get()
	if err != nil && f.d.Pending() > 0 {
		f.d.Wait()
		id, err = s.Get()
	}
	if err != nil {
		err = fmt.Errorf("fib: %w", err)
	}
	return id, err
}
