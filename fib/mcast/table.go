package mcast

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"millrace/internal/epoch"
	"millrace/internal/ids"
	"millrace/internal/mem"
	"millrace/packet"
	"millrace/pipeline/graph"
)

const (
	// MaxRoutes bounds the multicast routes of all tables and both families.
	MaxRoutes = 16384
	// MaxOut bounds the outgoing interfaces of a route.
	MaxOut = 255
)

// Errors that Set wraps, beside those of Adjacencies.
var (
	ErrInvalid = errors.New("not a multicast route")
	ErrFull    = ids.ErrFull
)

// Key names a route.
type Key struct {
	Table  uint16 // routing table's number, as in graph.Iface.Table; 0 is main
	Group  netip.Addr
	Source netip.Addr // the zero Addr for (*,G)
}

// Out is an outgoing interface of a route.
type Out struct {
	Iface uint16
	TTL   uint8 // threshold: packets whose TTL (hop limit) on arrival is larger are sent
}

// Route is a multicast route.
type Route struct {
	Key
	In  uint16 // the interface that leads to the source, or to the rendezvous point
	Out []Out
	// Kernel: the kernel has the route too. On interfaces that it sees by a TAP it gets a packet a second, and what comes
	// in by a wrong interface, so that its counters rise and its daemons are told.
	Kernel bool
	// Local: the router itself listens to the group on In. The host gets a packet too.
	Local bool
	// Host: packets are the host's, though there is a route for any source of the group.
	Host bool
	// Boundary: In is a boundary of the group's scope, so that all packets are dropped.
	Boundary bool
}

// Counters of a route.
type Counters struct {
	Packets, Bytes uint64 // that came; bytes of IP packets
	Wrong          uint64 // of these by a wrong interface
}

// Info is a route as it stands in the table.
type Info struct {
	Route
	Counters
	Since time.Time // when the key was added
}

// Adjacencies gives interfaces the adjacency that graph.Tables.Multicast holds: fib.FIB.
type Adjacencies interface {
	HoldMulticast(iface uint16) error
	LetMulticast(iface uint16)
}

// Table is the multicast routing table. Its methods are safe for concurrent use.
type Table struct {
	adjs  Adjacencies
	d     *epoch.Domain
	slots atomic.Pointer[slots]

	mu      sync.Mutex
	routes  map[key]*entry
	used    int // slots that are not nil
	cells   *ids.Set
	workers [][]cell
}

// key is a Key for the hot path: addresses as two words each, in memory order; no source is 0.
type key struct{ table, g0, g1, s0, s1 uint64 }

// entry is a route in the table; all but base is immutable.
type entry struct {
	key   key
	in    uint16
	flags uint8
	cell  uint32
	out   []Out

	route Route
	since time.Time
	base  Counters // what the cell had counted before
}

// Flags of an entry.
const (
	fKernel = 1 << iota
	fLocal
	fBoundary
	fHost
)

// gone marks the place of a removed route. No packet has its key.
var gone = &entry{}

// cell is a worker's account of a route.
type cell struct {
	Counters
	next uint64 // clock at which the kernel may have a packet again
}

type slots struct {
	mask uint32
	at   []atomic.Pointer[entry]
}

func newSlots(n int) *slots {
	size := 64
	for size < 4*n {
		size *= 2
	}
	return &slots{uint32(size - 1), make([]atomic.Pointer[entry], size)}
}

func (k *key) hash() uint32 {
	return packet.Mix(k.g1^k.s1<<32^k.s1>>32^k.table, k.g0^k.s0<<1^k.s1)
}

// find is the entry of a key, or nil.
func (s *slots) find(k *key) *entry {
	for h := k.hash(); ; h++ {
		e := s.at[h&s.mask].Load()
		if e == nil || e.key == *k {
			return e
		}
	}
}

// put stores an entry whose key is not there, in the first place that is free or was freed, and reports
// whether it was free.
func (s *slots) put(e *entry) bool {
	for h := e.key.hash(); ; h++ {
		p := &s.at[h&s.mask]
		if o := p.Load(); o == nil || o == gone {
			p.Store(e)
			return o == nil
		}
	}
}

// swap puts e in the place of old.
func (s *slots) swap(old, e *entry) {
	h := old.key.hash()
	for s.at[h&s.mask].Load() != old {
		h++
	}
	s.at[h&s.mask].Store(e)
}

// New makes an empty table. d is the workers' domain.
func New(adjs Adjacencies, d *epoch.Domain) *Table {
	t := &Table{adjs: adjs, d: d, routes: map[key]*entry{}, cells: ids.New("multicast routes", 0, MaxRoutes)}
	t.slots.Store(newSlots(0))
	return t
}

// Close removes all routes and frees the counters; no worker may be running.
func (t *Table) Close() {
	t.d.Wait()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range t.routes {
		t.letGo(e.out)
	}
	clear(t.routes)
	t.slots.Store(newSlots(0))
	for _, c := range t.workers {
		mem.Free(c)
	}
	t.workers = nil
}

// worker makes a worker's cells.
func (t *Table) worker() []cell {
	c, err := mem.Of[cell](MaxRoutes)
	if err != nil {
		panic("mcast: " + err.Error()) // there is no router without counters
	}
	t.mu.Lock()
	t.workers = append(t.workers, c)
	t.mu.Unlock()
	return c
}

// Forwardable reports whether packets to a group may leave their link: not 224.0.0.0/24 (RFC 5771 4), nor IPv6 scopes up to
// link-local (RFC 4291 2.7).
func Forwardable(g netip.Addr) bool {
	b := g.As16()
	if g.Is4() {
		return b[12]>>4 == 14 && (b[12] != 224 || b[13] != 0 || b[14] != 0)
	}
	return b[0] == 0xff && b[1]&15 > 2
}

func (k *Key) check() error {
	g, s := k.Group, k.Source
	switch {
	case g.Is4In6() || s.Is4In6() || g.Zone() != "" || s.Zone() != "":
		return fmt.Errorf("mcast: %w: %v from %v", ErrInvalid, g, s)
	case !Forwardable(g):
		return fmt.Errorf("mcast: %w: %v is no group that is forwarded", ErrInvalid, g)
	case s.IsValid() && (s.IsMulticast() || s.IsUnspecified() || s.IsLinkLocalUnicast() || s.Is4() != g.Is4()):
		return fmt.Errorf("mcast: %w: %v cannot be a source of %v", ErrInvalid, s, g)
	}
	return nil
}

// hot is the key in words.
func (k *Key) hot() key {
	g, x := k.Group.As16(), key{table: uint64(k.Table)}
	x.g0, x.g1 = binary.NativeEndian.Uint64(g[:]), binary.NativeEndian.Uint64(g[8:])
	if k.Source.IsValid() {
		s := k.Source.As16()
		x.s0, x.s1 = binary.NativeEndian.Uint64(s[:]), binary.NativeEndian.Uint64(s[8:])
	}
	return x
}

func (r *Route) check() error {
	if err := r.Key.check(); err != nil {
		return err
	}
	if r.In == 0 || r.In >= graph.MaxIfaces || len(r.Out) > MaxOut {
		return fmt.Errorf("mcast: %w: to %v by interface %d and out by %d; a route has one to come in by and %d to go out by at most", ErrInvalid, r.Group, r.In, len(r.Out), MaxOut)
	}
	for i, o := range r.Out {
		if o.Iface == 0 || o.Iface >= graph.MaxIfaces || slices.ContainsFunc(r.Out[:i], func(p Out) bool { return p.Iface == o.Iface }) {
			return fmt.Errorf("mcast: %w: to %v out by interface %d, which is none, or there twice", ErrInvalid, r.Group, o.Iface)
		}
	}
	return nil
}

// Set adds a route, or puts it in the place of the one of its key, whose counters and age it keeps. On an error
// nothing has changed.
func (t *Table) Set(r Route) error {
	if err := r.check(); err != nil {
		return err
	}
	r.Out = slices.Clone(r.Out)
	e := &entry{key: r.Key.hot(), in: r.In, out: r.Out, route: r, flags: r.flags(), since: time.Now()}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, o := range r.Out {
		if err := t.adjs.HoldMulticast(o.Iface); err != nil {
			t.letGo(r.Out[:i])
			return fmt.Errorf("mcast: %w", err)
		}
	}
	if old := t.routes[e.key]; old != nil {
		e.cell, e.base, e.since = old.cell, old.base, old.since
		t.routes[e.key] = e
		t.slots.Load().swap(old, e)
		t.letGo(old.out)
		return nil
	}
	c, err := t.cells.Get()
	if err != nil && t.d.Pending() > 0 {
		t.d.Wait()
		c, err = t.cells.Get()
	}
	if err != nil {
		t.letGo(r.Out)
		return fmt.Errorf("mcast: %w", err)
	}
	e.cell = c
	e.base = t.sum(c)
	t.routes[e.key] = e
	s := t.slots.Load()
	if 2*(t.used+1) > len(s.at) {
		s = newSlots(len(t.routes))
		for _, o := range t.routes {
			s.put(o)
		}
		t.used = len(t.routes)
		t.slots.Store(s)
		return nil
	}
	if s.put(e) {
		t.used++
	}
	return nil
}

// Del removes a route and reports whether there was one.
func (t *Table) Del(k Key) bool {
	if k.check() != nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	h := k.hot()
	e := t.routes[h]
	if e == nil {
		return false
	}
	delete(t.routes, h)
	t.slots.Load().swap(e, gone)
	t.letGo(e.out)
	t.d.Retire(func() { t.cells.Put(e.cell) }) // nobody counts there any more
	return true
}

func (t *Table) letGo(out []Out) {
	for _, o := range out {
		t.adjs.LetMulticast(o.Iface)
	}
}

// sum adds up a cell over all workers.
func (t *Table) sum(c uint32) (n Counters) {
	for _, w := range t.workers {
		n.Packets += atomic.LoadUint64(&w[c].Packets)
		n.Bytes += atomic.LoadUint64(&w[c].Bytes)
		n.Wrong += atomic.LoadUint64(&w[c].Wrong)
	}
	return n
}

func (t *Table) info(e *entry) Info {
	n := t.sum(e.cell)
	r := e.route
	r.Out = slices.Clone(r.Out)
	return Info{Route: r, Since: e.since,
		Counters: Counters{n.Packets - e.base.Packets, n.Bytes - e.base.Bytes, n.Wrong - e.base.Wrong}}
}

// Routes lists all routes with their counters: IPv4 first, by group and source.
func (t *Table) Routes() []Info {
	t.mu.Lock()
	l := make([]Info, 0, len(t.routes))
	for _, e := range t.routes {
		l = append(l, t.info(e))
	}
	t.mu.Unlock()
	slices.SortFunc(l, func(a, b Info) int { return a.Key.Compare(b.Key) })
	return l
}

// Compare orders keys by table, family, group and source.
func (k Key) Compare(o Key) int {
	return cmp.Or(cmp.Compare(k.Table, o.Table), k.Group.Compare(o.Group), k.Source.Compare(o.Source))
}

// Find is the route that packets from a source to a group take.
func (t *Table) Find(k Key) (Info, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := k.hot()
	e := t.routes[h]
	if e == nil {
		h.s0, h.s1 = 0, 0
		if e = t.routes[h]; e == nil {
			return Info{}, false
		}
	}
	return t.info(e), true
}
