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
	"millrace/internal/mem"
	"millrace/pipeline/graph"
)

// FIB is the forwarding state of a router. All methods are safe for concurrent use;
// Target, Generation and the stages take no lock.
type FIB struct {
	t       *graph.Tables
	d       *epoch.Domain
	why     Reasons
	t4      *lpm.Table4 // of the main table
	t6      *lpm.Table6
	gen     atomic.Uint64
	targets []atomic.Pointer[target] // by group
	paths   []atomic.Pointer[paths]  // by group
	short   []uint8                  // by group; see variant
	policy4 atomic.Pointer[policy[uint32]]
	policy6 atomic.Pointer[policy[[16]byte]]
	checks  [2]atomic.Bool // by family: some interface wants sources checked

	mu      sync.Mutex
	main    *table
	local   *table             // TableLocal
	bare    *table             // special-purpose prefixes only: for tables without routes of a family; made when it is needed
	tables  map[uint32]*table  // the others, by the kernel's numbers
	byHot   []*table           // by number in graph.Iface.Table
	rules   [2]ruleList        // by family
	vrfs    int                // interfaces with a table other than main
	verdict [numActions]uint16 // groups of what rules do by themselves
	born    int64              // Unix nanoseconds
	sets    map[string]*hopset
	hops    map[hopKey]*hop
	ifs     [graph.MaxIfaces]link
	mcast   [graph.MaxIfaces]int // multicast routes that lead to each interface
	uses    [graph.MaxIfaces]uses
	groups  *ids.Set
	adjs    *ids.Set
	numbers *ids.Set // of tables
	runs    runs
	key     []byte // scratch of intern
	stamp   uint8  // of the last audit

	// Of the change in progress; see settle.
	dirty   []*entry
	left    []*hopset // installed once less
	dropped []*hopset // wanted by a route once less
	touched []*table  // see touch
	undo    []saved   // what the Update in progress changed
	before  []cand    // of undo
	stale   bool      // the policy is not as interfaces, rules and tables are
	changed bool
	retired retired
}

// entry is a prefix that some source has a route for, or an address with a neighbour.
type entry struct {
	t      *table
	pfx    netip.Prefix
	cands  []cand
	inst   *hopset // what the hot table has
	want   *hopset // what it should have, while dirty
	near   int32   // interfaces on which the address is a known neighbour
	dirty  bool
	saved  bool    // in the undo list of the Update in progress
	listed bool    // scratch of hopset.entriesOf
	one    [1]cand // where cands are while there is one, as of most entries
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
	local  bool    // of TableLocal
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
		targets: make([]atomic.Pointer[target], graph.MaxGroups), paths: make([]atomic.Pointer[paths], graph.MaxGroups),
		tables: map[uint32]*table{}, byHot: make([]*table, MaxTables), rules: [2]ruleList{standardRules(), standardRules()},
		born: time.Now().UnixNano(),
		sets: map[string]*hopset{}, hops: map[hopKey]*hop{},
		groups:  ids.New("next-hop groups", 1, graph.MaxGroups),
		adjs:    ids.New("adjacencies", 1, graph.MaxAdjs),
		numbers: ids.New("routing tables", 1, MaxTables),
		runs:    runs{size: graph.MaxBuckets},
	}
	var err error
	if f.short, err = mem.Of[uint8](graph.MaxGroups); err != nil {
		return nil, fmt.Errorf("fib: %w", err)
	}
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
	for a, why := range ruleReasons {
		g, err := f.take(f.groups)
		if err != nil {
			return nil, err
		}
		f.store(g, word(0, why, 0))
		f.verdict[a] = uint16(g)
	}
	f.main = &table{always: true, v4: f.t4, v6: f.t6}
	f.byHot[0] = f.main
	f.local = &table{id: TableLocal, links: map[uint16]bool{}}
	f.special(f.main)
	f.special(f.local)
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
	f.policy4.Store(nil)
	f.policy6.Store(nil)
	for _, t := range f.everyTable() {
		if t.v4 != nil {
			t.v4.Close()
		}
		if t.v6 != nil {
			t.v6.Close()
		}
	}
	mem.Free(f.short)
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
	now := time.Now().UnixNano()
	for i := range del {
		if t := f.at(del[i].Table); t != nil {
			f.withdraw(t, &del[i])
		}
	}
	for i := range add {
		r := &add[i]
		t, err := f.table(r.Table)
		if err != nil {
			return f.fail(err)
		}
		c := cand{set: f.leads(r), src: r.Source, metric: r.Metric, tag: r.Tag, since: now, stamp: f.stamp, local: r.Table == TableLocal}
		if !r.Since.IsZero() {
			c.since = r.Since.UnixNano()
		}
		f.put(t, r.Prefix.Masked(), c)
	}
	return f.settle(f.revert)
}

// fail takes back the Update in progress, which has not come as far as settle.
func (f *FIB) fail(err error) error {
	f.revert()
	if again := f.settle(func() {}); again != nil {
		panic("fib: cannot restore the tables: " + again.Error())
	}
	return err
}

// put adds or replaces a route.
func (f *FIB) put(t *table, p netip.Prefix, c cand) {
	c.hidden = hidden(p, c.set.typ)
	e := t.entry(p)
	f.save(e)
	if i := e.find(c.src, c.metric, 0, c.local); i >= 0 {
		f.derive(e, e.cands[i], false)
	}
	f.add(e, c)
	f.derive(e, c, true)
	f.link(t, c.set)
	f.mirror(e, c, true)
}

// withdraw removes a route, where it is there.
func (f *FIB) withdraw(t *table, k *Key) {
	e, ok := t.rib.Get(k.Prefix.Masked())
	if !ok {
		return
	}
	i := e.find(k.Source, k.Metric, 0, k.Table == TableLocal)
	if i < 0 {
		return
	}
	f.save(e)
	c := e.cands[i]
	f.derive(e, c, false)
	f.remove(e, i)
	f.mirror(e, c, false)
}

// save remembers an entry that the Update in progress changes.
func (f *FIB) save(e *entry) {
	if !e.saved {
		e.saved = true
		f.undo = append(f.undo, saved{e, len(f.before), len(e.cands)})
		f.before = append(f.before, e.cands...)
	}
	f.mark(e)
}

// revert is settle's undo for Update.
func (f *FIB) revert() {
	for _, s := range f.undo {
		e, was := s.e, f.before[s.at:s.at+s.n]
		for i := range e.cands {
			f.dropped = append(f.dropped, e.cands[i].set)
		}
		f.number(e, len(was)-len(e.cands))
		e.cands = append(e.one[:0], was...)
		for i := range e.cands {
			f.refer(e, &e.cands[i])
		}
	}
}

// saved is an entry with the routes that it had: n of FIB.before.
type saved struct {
	e     *entry
	at, n int
}

// derive adds or removes what follows from a connected prefix: IPv4's broadcast
// addresses (RFC 1812 4.2.3.1), IPv6's subnet-router anycast address (RFC 4291 2.6.1).
func (f *FIB) derive(e *entry, c cand, add bool) {
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
		d := cand{src: SourceDerived, metric: c.metric, sub: uint8(bits), since: c.since, of: c.set, local: c.local}
		if add {
			h := e.t.entry(p)
			d.set, d.hidden = f.intern(typ, nil), hidden(p, typ)
			f.save(h)
			f.add(h, d)
			f.mirror(h, d, true)
		} else if h, ok := e.t.rib.Get(p); ok {
			if i := h.find(d.src, d.metric, d.sub, d.local); i >= 0 {
				f.save(h)
				f.remove(h, i)
				f.mirror(h, d, false)
			}
		}
	}
}

// mirror keeps the local table's copies of the main table's routes: c has been added to the entry, or removed.
func (f *FIB) mirror(e *entry, c cand, add bool) {
	if e.t != f.main || !c.local && c.src != SourceConnected && c.src != SourceDerived {
		return
	}
	if add && localLike(&c) {
		h := f.local.entry(e.pfx)
		f.save(h)
		f.add(h, c)
		return
	}
	if h, ok := f.local.rib.Get(e.pfx); ok {
		if i := h.find(c.src, c.metric, c.sub, c.local); i >= 0 {
			f.save(h)
			f.remove(h, i)
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

func (t *table) entry(p netip.Prefix) *entry {
	e, ok := t.rib.Get(p)
	if !ok {
		e = &entry{t: t, pfx: p}
		e.cands = e.one[:0]
		t.rib.Insert(p, e)
	}
	return e
}

func (e *entry) find(src Source, metric uint32, sub uint8, local bool) int {
	for i := range e.cands {
		if c := &e.cands[i]; c.src == src && c.metric == metric && c.sub == sub && c.local == local {
			return i
		}
	}
	return -1
}

func (f *FIB) add(e *entry, c cand) {
	f.refer(e, &c)
	if i := e.find(c.src, c.metric, c.sub, c.local); i >= 0 {
		f.dropped = append(f.dropped, e.cands[i].set)
		e.cands[i] = c
		return
	}
	e.cands = append(e.cands, c)
	if c.src != SourceMartian {
		f.number(e, 1)
	}
}

// number counts the routes of an entry's table.
func (f *FIB) number(e *entry, n int) {
	t, fam := e.t, family(e.pfx.Addr())
	if n != 0 && t != f.main {
		was := t.needs(fam)
		t.count[fam] += n
		if was != t.needs(fam) {
			f.stale = true
			f.touch(t)
		} else if t.count[0]+t.count[1] == 0 {
			f.touch(t)
		}
	}
}

func (f *FIB) remove(e *entry, i int) {
	f.dropped = append(f.dropped, e.cands[i].set)
	e.cands = slices.Delete(e.cands, i, i+1)
	f.number(e, -1)
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
			if !before(c, b) {
				continue
			}
		}
		best = i
	}
	return best
}

// before: of two routes that could be used, a is.
func before(a, b *cand) bool {
	switch {
	case a.local != b.local && a.src != SourceMartian && b.src != SourceMartian:
		return a.local
	case a.src != b.src:
		return a.src < b.src
	case a.metric != b.metric:
		return a.metric < b.metric
	}
	return a.sub < b.sub
}

// cover is the set of the route that an address falls to by longest prefix match.
func (f *FIB) cover(t *table, p netip.Prefix) *hopset {
	for _, e := range t.rib.Supernets(p) {
		if i := f.best(e); i >= 0 {
			return e.cands[i].set
		}
	}
	return nil
}

// wanted is the set that the entry should have in the hot table.
func (f *FIB) wanted(e *entry) *hopset {
	if fam := family(e.pfx.Addr()); e.t != f.main && !(e.t.mapped(fam) && e.t.needs(fam)) {
		return nil
	}
	if e.near > 0 {
		if c := f.cover(e.t, e.pfx); c != nil && c.onlink {
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
		return f.variant(e.pfx, e.cands[i].set)
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
	if e.t.near.Size() > 0 {
		for _, n := range e.t.near.Subnets(e.pfx) {
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
	f.publish()
	f.shut()
	f.sweep()
	return err
}

// apply installs before it removes, so that no destination is without a route between.
func (f *FIB) apply() error {
	if err := f.open(); err != nil {
		return err
	}
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
	if e.want.users == 1 {
		f.tell(e.want)
	}
	old := e.inst
	e.inst = e.want
	f.changed = true
	if old != nil {
		f.left = append(f.left, old)
		e.t.replace(e.pfx, g)
		return nil
	}
	if err := e.t.insert(e.pfx, g); err != nil {
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
	for p, s := range e.t.rib.Supernets(e.pfx) {
		if s.inst != nil {
			parent, bits = uint16(s.inst.group), p.Bits()
			break
		}
	}
	e.t.remove(e.pfx, parent, bits)
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
	last := f.main
	for _, e := range f.dirty {
		if e.t != last {
			last = e.t
			last.commit()
		}
		if e.want != nil {
			f.forget(e.want)
		}
		e.want, e.dirty, e.saved = nil, false, false
		if len(e.cands) == 0 && e.near == 0 && e.inst == nil {
			e.t.rib.Delete(e.pfx)
		}
	}
	f.left, f.dropped, f.dirty, f.undo, f.before = wipe(f.left), wipe(f.dropped), wipe(f.dirty), wipe(f.undo), wipe(f.before)
	f.main.commit()
	if f.changed {
		f.changed = false
		f.gen.Add(1)
	}
	f.retire()
}

// maxScratch bounds the elements that a list keeps room for from change to change.
const maxScratch = 1 << 14

func wipe[T any](l []T) []T {
	if cap(l) > maxScratch {
		return nil
	}
	clear(l)
	return l[:0]
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
			f.paths[g].Store(nil)
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
