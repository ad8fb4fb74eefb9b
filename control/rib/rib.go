// Package rib keeps the routes of one source that come from several places, such as connections of
// routing daemons or files, and keeps the FIB equal to the best of them.
//
// # Life of a route
//
// Each place has a Set. Apply changes it and returns at once; what changed waits in a queue, each
// prefix once however often it changes, until Flush takes it to the FIB in batches. So a daemon never
// waits for the FIB, and a flood of changes costs the FIB what is left of it.
//
// # Graceful restart
//
// A set whose place is gone is made stale: its routes stay in use, after those of all live sets. A set that is
// younger takes a stale route over by a change of the same prefix; where both lead the same way the FIB is not
// touched. What nobody took over goes when Retain ends: see Expire.
//
// # Concurrency
//
// All methods may be called from any goroutine. Flush calls its Resolve with the table locked,
// its Update without the lock: Apply never waits for the FIB.
package rib

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/gaissmai/bart"

	"millrace/fib"
)

// Hop is a next hop as its source names it. It is comparable.
type Hop struct {
	Via    netip.Addr // gateway; zero for a connected prefix
	Index  int        // of the kernel's interface; 0 where Dev or Via decides
	Dev    string     // name of the interface; "" where Index or Via decides
	Weight int        // 1 and more
	OnLink bool       // Via is a neighbour whatever the addresses say
	Encap  bool       // with an encapsulation
}

// Attrs are what routes have beside their next hops.
type Attrs struct {
	Type     fib.RouteType
	Protocol uint8 // RTPROT_*, 0 for none
	Metric   uint32
	MTU      int // bytes; 0 for the interfaces'
}

// Path is where routes lead. It is shared by the routes of a set that lead the same way.
type Path struct {
	Attrs
	Hops []Hop

	key  pathKey
	refs int // routes of the set
	res  resolved
}

// resolved is what a path is for the FIB.
type resolved struct {
	gen     uint64 // of the table, when it was resolved
	changed uint64 // gen at which it last changed
	typ     fib.RouteType
	hops    []fib.NextHop
	ok      bool // it can be used
}

type pathKey struct {
	attrs  Attrs
	object uint32
	hops   string
}

// route is a set's route to the prefix of an entry.
type route struct {
	path *Path
	set  *Set
	next *route
}

// entry is a prefix that some set has a route to, or the FIB has.
type entry struct {
	prefix netip.Prefix
	table  uint32
	queued bool
	force  bool  // the path in the FIB resolves to something else
	bad    bool  // the FIB refused it
	inst   *Path // what the FIB has; nil for nothing
	first  route // valid where first.set is not nil
}

// Table is the routes of one source.
type Table struct {
	src   fib.Source
	limit int
	wake  chan struct{}

	mu      sync.Mutex
	tables  map[uint32]*bart.Table[*entry]
	sets    []*Set // in the order they were made
	serial  uint64
	ended   uint64
	entries [2]int // prefixes of IPv4 and IPv6
	queue   []*entry
	gen     uint64
	recheck bool // paths may resolve to something else
	refused int  // entries that the FIB has no room for
	lastErr error
	applied uint64 // changes of the FIB
}

// Set is the routes from one place.
type Set struct {
	Name string // for people

	t       *Table
	serial  uint64
	n       int
	paths   map[pathKey]*Path
	objects map[uint32]int // paths by each object
	old     map[*Path]bool // of objects that were forgotten, while routes have them
	last    *Path
	key     []byte // scratch of Path
	dropped bool
	stale   bool
	gone    time.Time // when it became stale
	goneAt  uint64    // serial of the newest set at that moment
	ended   uint64    // how many sets had become stale then
	first   time.Time // when a stale route was first taken over; zero for never
	latest  time.Time // when one last was
	retain  time.Duration
	settled time.Duration
}

// New makes a table whose routes enter the FIB with a source. limit bounds its prefixes.
func New(src fib.Source, limit int) *Table {
	return &Table{src: src, limit: limit, wake: make(chan struct{}, 1), tables: map[uint32]*bart.Table[*entry]{}, gen: 1}
}

// Wake is ready to receive when Flush has something to do.
func (t *Table) Wake() <-chan struct{} { return t.wake }

func (t *Table) ring() {
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// NewSet adds an empty set.
func (t *Table) NewSet(name string) *Set {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.serial++
	s := &Set{Name: name, t: t, serial: t.serial, paths: map[pathKey]*Path{}, objects: map[uint32]int{}, old: map[*Path]bool{}}
	t.sets = append(t.sets, s)
	return s
}

// Path finds or makes the path with these attributes and next hops, which are not kept.
func (s *Set) Path(a Attrs, hops []Hop) *Path {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if p := s.last; p != nil && p.Attrs == a && p.key.object == 0 && slices.Equal(p.Hops, hops) {
		return p
	}
	k := s.key[:0]
	for i := range hops {
		h := &hops[i]
		b := h.Via.As16()
		k = append(append(k, b[:]...), byte(h.Via.BitLen()), byte(len(h.Dev)), flag(h.OnLink)|flag(h.Encap)<<1)
		k = binary.LittleEndian.AppendUint32(k, uint32(h.Index))
		k = binary.LittleEndian.AppendUint32(k, uint32(h.Weight))
		k = append(k, h.Dev...)
	}
	s.key = k
	return s.intern(pathKey{attrs: a, hops: string(k)}, hops)
}

// Object finds or makes the path by a next-hop object; hops is what it stands for, asked for where the path
// is new. SetObject says when the object changes.
func (s *Set) Object(a Attrs, object uint32, hops func() []Hop) *Path {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	k := pathKey{attrs: a, object: object}
	if p := s.last; p != nil && p.key == k {
		return p
	}
	if p := s.paths[k]; p != nil {
		s.last = p
		return p
	}
	return s.intern(k, hops())
}

func flag(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func (s *Set) intern(k pathKey, hops []Hop) *Path {
	p := s.paths[k]
	if p == nil {
		p = &Path{Attrs: k.attrs, Hops: slices.Clone(hops), key: k}
		s.keep(p)
	}
	s.last = p
	return p
}

func (s *Set) keep(p *Path) {
	s.paths[p.key] = p
	if p.key.object != 0 {
		s.objects[p.key.object]++
	}
}

func (s *Set) forget(p *Path) {
	if s.last == p {
		s.last = nil
	}
	if s.paths[p.key] != p {
		return
	}
	delete(s.paths, p.key)
	if o := p.key.object; o != 0 {
		if s.objects[o]--; s.objects[o] == 0 {
			delete(s.objects, o)
		}
	}
}

// SetObject gives routes by an object its new next hops; forget says that the number may stand for
// something else from now on, and leaves the routes as they are.
func (s *Set) SetObject(object uint32, hops []Hop, forget bool) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	if s.objects[object] == 0 {
		return
	}
	fresh := map[*Path]*Path{}
	for k, p := range s.paths {
		switch {
		case k.object != object:
		case forget:
			s.forget(p)
			if p.refs > 0 {
				s.old[p] = true
			}
		case !slices.Equal(p.Hops, hops):
			n := &Path{Attrs: p.Attrs, Hops: slices.Clone(hops), key: k}
			s.forget(p)
			s.keep(n)
			fresh[p] = n
		}
	}
	if len(fresh) == 0 {
		return
	}
	s.t.each(func(e *entry) {
		for r := e.head(); r != nil; r = r.next {
			if n := fresh[r.path]; n != nil {
				r.path.refs--
				n.refs++
				r.path = n
				s.t.enqueue(e)
			}
		}
	})
}

// Change sets or removes the set's route to a prefix.
type Change struct {
	Table  uint32 // by the kernel's numbers; 0 is main
	Prefix netip.Prefix
	Path   *Path // of the set; nil removes
}

// Apply makes changes as one: Flush sees none of them or all. It returns how many were refused, because the
// table holds its limit of prefixes or the set was taken away; these are not there then.
func (s *Set) Apply(changes []Change) (refused int) {
	t := s.t
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.dropped {
		return len(changes)
	}
	for i := range changes {
		c := &changes[i]
		b := t.tables[c.Table]
		if b == nil {
			if c.Path == nil {
				continue
			}
			b = &bart.Table[*entry]{}
			t.tables[c.Table] = b
		}
		e, ok := b.Get(c.Prefix)
		switch {
		case !ok && c.Path == nil:
			continue
		case !ok && t.entries[0]+t.entries[1] >= t.limit:
			if refused++; c.Path.refs == 0 {
				s.forget(c.Path)
			}
			continue
		case !ok:
			e = &entry{prefix: c.Prefix, table: c.Table}
			b.Insert(c.Prefix, e)
			t.entries[family(c.Prefix)]++
		}
		if c.Path == nil {
			e.cut(s)
		} else {
			s.put(e, c.Path)
		}
		if e.first.next != nil || c.Path == nil {
			s.takeOver(e)
		}
		t.enqueue(e)
	}
	return refused
}

func (s *Set) put(e *entry, p *Path) {
	if p.refs++; p.refs == 1 {
		if s.paths[p.key] == nil { // it was let go since it was made
			s.keep(p)
		}
	}
	if mine := e.find(s); mine != nil {
		old := mine.path
		mine.path = p
		s.unref(old)
		return
	}
	e.add(route{path: p, set: s})
	s.n++
}

// takeOver takes the routes of stale sets that are older off an entry that this one said something about.
func (s *Set) takeOver(e *entry) {
	for r := e.head(); r != nil; {
		o := r.set
		r = r.next
		if o == s || !o.stale || s.serial <= o.goneAt {
			continue
		}
		o.latest = time.Now()
		if o.first.IsZero() {
			o.first = o.latest
		}
		e.cut(o)
	}
}

// Len is how many routes the set has.
func (s *Set) Len() int {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	return s.n
}

// Retain makes the set stale: its routes stay for so long, or, once a younger set has begun to take them over,
// until none was taken over for the time settled, but no longer than retain from then on. With nothing to retain they
// go at once.
func (s *Set) Retain(retain, settled time.Duration) {
	s.t.mu.Lock()
	s.t.ended++
	s.ended = s.t.ended
	s.stale, s.gone, s.goneAt, s.retain, s.settled = true, time.Now(), s.t.serial, retain, settled
	s.t.each(func(e *entry) {
		if e.find(s) != nil && e.first.next != nil { // another may be better
			s.t.enqueue(e)
		}
	})
	s.t.mu.Unlock()
	s.t.Expire(time.Now())
}

// Remove takes the set and its routes away.
func (s *Set) Remove() {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	s.t.drop(s)
}

// Clear takes all sets away; those who have one must use it no more.
func (t *Table) Clear() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range slices.Clone(t.sets) {
		t.drop(s)
	}
}

// Waiting is how many of the set's routes cannot be used, by what Flush found out.
func (s *Set) Waiting() (n int) {
	s.t.mu.Lock()
	defer s.t.mu.Unlock()
	for _, p := range s.paths {
		if p.res.gen != 0 && !p.res.ok {
			n += p.refs
		}
	}
	return n
}

// deadline is when a stale set goes.
func (s *Set) deadline() time.Time {
	if s.first.IsZero() {
		return s.gone.Add(s.retain)
	}
	at := s.latest.Add(s.settled)
	if most := s.first.Add(s.retain); most.Before(at) {
		return most
	}
	return at
}

// Expire takes away stale sets whose time is over, and returns how many of their routes nobody took over.
func (t *Table) Expire(now time.Time) (swept int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range slices.Clone(t.sets) {
		if s.stale && (s.n == 0 || !now.Before(s.deadline())) {
			swept += s.n
			t.drop(s)
		}
	}
	return swept
}

func (t *Table) drop(s *Set) {
	s.dropped = true
	t.sets = slices.DeleteFunc(t.sets, func(o *Set) bool { return o == s })
	if s.n == 0 {
		return
	}
	t.each(func(e *entry) {
		if e.cut(s) {
			t.enqueue(e)
		}
	})
}

// Recheck has the next Flush resolve all paths anew: interfaces or addresses changed.
func (t *Table) Recheck() {
	t.mu.Lock()
	t.recheck = true
	t.mu.Unlock()
	t.ring()
}

// each calls f for all entries; f does not add or remove any.
func (t *Table) each(f func(*entry)) {
	for _, b := range t.tables {
		for _, e := range b.All() {
			f(e)
		}
	}
}

func (t *Table) enqueue(e *entry) {
	if e.queued {
		return
	}
	e.queued = true
	t.queue = append(t.queue, e)
	if len(t.queue) == 1 {
		t.ring()
	}
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

func (e *entry) head() *route {
	if e.first.set == nil {
		return nil
	}
	return &e.first
}

func (e *entry) find(s *Set) *route {
	for r := e.head(); r != nil; r = r.next {
		if r.set == s {
			return r
		}
	}
	return nil
}

func (e *entry) add(r route) {
	if e.first.set != nil {
		old := e.first
		r.next = &old
	}
	e.first = r
}

// cut removes a set's route; false where there is none.
func (e *entry) cut(s *Set) bool {
	for at := e.head(); at != nil; at = at.next {
		if at.set != s {
			continue
		}
		s.unref(at.path)
		s.n--
		if at.next != nil {
			*at = *at.next
			return true
		}
		// The last one: end the list before it.
		if at == &e.first {
			e.first = route{}
			return true
		}
		for p := &e.first; ; p = p.next {
			if p.next == at {
				p.next = nil
				return true
			}
		}
	}
	return false
}

func (s *Set) unref(p *Path) {
	if p.refs--; p.refs == 0 {
		s.forget(p)
		delete(s.old, p)
	}
}

// best is the route to use: of a live set or else the one that ended last, of the lowest metric, of the oldest set.
func (e *entry) best() *route {
	var best *route
	for r := e.head(); r != nil; r = r.next {
		if best == nil || better(r, best) {
			best = r
		}
	}
	return best
}

func better(a, b *route) bool {
	switch {
	case a.set.stale != b.set.stale:
		return b.set.stale
	case a.set.stale && a.set.ended != b.set.ended:
		return a.set.ended > b.set.ended // what was said last
	case a.path.Metric != b.path.Metric:
		return a.path.Metric < b.path.Metric
	}
	return a.set.serial < b.set.serial
}
