package kernel

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"millrace/control/rule"
)

// Options of a Follower.
type Options struct {
	Log *zap.Logger // nil for none
	// Tables are routing tables to follow beside those that the kernel uses.
	Tables []uint32
	// KeepAlive says which stale neighbours the kernel shall check from time to time:
	// those that only Millrace sends to, whose replies the kernel does not see. nil for none.
	// It is called from Run.
	KeepAlive func(Neigh) bool
}

const (
	// quiet is how long a dump that changes asked for is put off.
	quiet = 20 * time.Millisecond
	// batchSize is the most route changes reported at once.
	batchSize = 4096
	// dumpShare is how many times longer than a dump takes the time between two is.
	dumpShare = 4
	// keepAlivePeriod is how often a stale neighbour is checked, and keepAliveMost how
	// many are in each tenth of that time.
	keepAlivePeriod = 30 * time.Second
	keepAliveMost   = 256
)

// Follower follows the kernel of one network namespace.
type Follower struct {
	sink   Sink
	opt    Options
	log    *zap.Logger
	events *socket // announcements
	dumps  *socket
	asks   *asker
	tables map[uint32]bool // in use
	extra  atomic.Pointer[[]uint32]
	used   atomic.Pointer[[]uint32] // tables, in order

	links   map[int]Link  // as announced
	told    map[int]Link  // with what others say about them
	filters map[int]uint8 // rp_filter by link; netconfAll
	addrs   map[addrKey]Addr
	near    *neighbours
	rules   []rule.Rule
	*mirror

	rulesDue   bool          // to be read again, because they changed
	objectsDue bool          // the same of next-hop objects
	lagging    bool          // announcements may be older than the last dump
	cost       time.Duration // of the last dump of routes
	ended      time.Time     // of the last dump of routes

	due    time.Time // of the next dump, zero for none
	full   bool      // it is to be of everything, not only of routes
	tries  int       // dumps that failed in a row
	replay atomic.Pointer[replay]
}

type addrKey struct {
	index  int
	prefix netip.Prefix
}

type neighKey struct {
	index int
	addr  netip.Addr
}

// New opens a follower in the network namespace of the calling thread.
func New(sink Sink, o Options) (*Follower, error) {
	f := &Follower{sink: sink, opt: o, log: o.Log, tables: map[uint32]bool{},
		links: map[int]Link{}, told: map[int]Link{}, filters: map[int]uint8{}, addrs: map[addrKey]Addr{},
		mirror: newMirror(sink.RouteBatch)}
	if f.log == nil {
		f.log = zap.NewNop()
	}
	f.extra.Store(&o.Tables)
	var err error
	if f.events, err = open(false, unix.RTNLGRP_LINK, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV4_RULE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV4_NETCONF, unix.RTNLGRP_NEXTHOP); err != nil {
		return nil, err
	}
	if f.dumps, err = open(true); err != nil {
		f.events.close()
		return nil, err
	}
	if f.asks, err = newAsker(f.log); err != nil {
		f.events.close()
		f.dumps.close()
		return nil, err
	}
	if f.near, err = newNeighbours(sink, &f.opt, f.log, f.asks); err != nil {
		f.events.close()
		f.dumps.close()
		f.asks.close()
		return nil, err
	}
	return f, nil
}

// Run follows until ctx ends, and closes the follower.
func (f *Follower) Run(ctx context.Context) error {
	defer f.dumps.close()
	defer f.asks.close()
	defer f.events.close()
	defer f.near.close()
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.near.run(ctx)
	}()
	defer func() { cancel(); <-done }()
	stop := context.AfterFunc(ctx, func() { _ = f.events.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	f.schedule(true, 0)
	for ctx.Err() == nil {
		now := time.Now()
		if r := f.replay.Swap(nil); r != nil {
			f.tellAll()
			close(r.done)
		}
		if !f.due.IsZero() && !now.Before(f.due) {
			f.resync()
		}
		until := now.Add(wakePeriod)
		if !f.due.IsZero() && f.due.Before(until) {
			until = f.due
		}
		if f.replay.Load() != nil || ctx.Err() != nil {
			continue
		}
		b, err := f.events.receive(true, until)
		for n := 0; err == nil; n++ {
			for m := range messages(b) {
				f.event(m)
			}
			if n == batchSize {
				break
			}
			b, err = f.events.receive(false, time.Time{})
		}
		f.settle()
		switch {
		case err == nil:
		case errors.Is(err, errEmpty):
			f.lagging = false
		case errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, unix.ENOBUFS):
			f.log.Warn("announcements of the kernel were lost, reading everything again")
			f.schedule(true, 0)
		case errors.Is(err, os.ErrClosed):
			return err
		default:
			f.log.Error("netlink, reading everything again", zap.Error(err))
			f.schedule(true, 100*time.Millisecond)
		}
	}
	return nil
}

// wakePeriod bounds how late Run notices that its context ended or that Replay was called.
const wakePeriod = 100 * time.Millisecond

// Replay has Run report all that the kernel has once more, as new, and then Synced: for a sink that
// came to care for more than before. The channel is closed when it is done; while Run does not run, never.
func (f *Follower) Replay() <-chan struct{} {
	r := &replay{make(chan struct{})}
	for !f.replay.CompareAndSwap(nil, r) {
		if asked := f.replay.Load(); asked != nil { // and not begun: it serves both
			return asked.done
		}
	}
	_ = f.events.f.SetReadDeadline(time.Unix(1, 0))
	return r.done
}

// replay is a wish for one, and when it is done.
type replay struct{ done chan struct{} }

func (f *Follower) tellAll() {
	f.flush()
	for _, l := range byIndex(f.told) {
		f.sink.LinkChanged(l)
	}
	for _, a := range f.addrs {
		f.sink.AddrAdded(a)
	}
	<-f.near.again()
	f.sink.RulesChanged(f.rules)
	for k, s := range f.slots {
		if s.told != 0 {
			f.set = append(f.set, f.route(k, s.told))
			f.send(batchSize)
		}
	}
	f.send(1)
	f.sink.Synced()
}

// Neighbours has all neighbours told once more, as new: for a sink that came to care for another link.
func (f *Follower) Neighbours() { f.near.again() }

// Tables names the routing tables to follow beside those that the kernel uses. It may be called from any goroutine.
func (f *Follower) Tables(ts []uint32) {
	f.extra.Store(&ts)
	_ = f.events.f.SetReadDeadline(time.Unix(1, 0))
}

// Used are the tables that are followed at the moment. It may be called from any goroutine.
func (f *Follower) Used() []uint32 {
	if l := f.used.Load(); l != nil {
		return *l
	}
	return nil
}

// retable works out which tables are in use, forgets what others had, and returns those that are new.
func (f *Follower) retable() (fresh []uint32) {
	used := map[uint32]bool{TableLocal: true, TableMain: true, TableDefault: true}
	for _, t := range *f.extra.Load() {
		used[t] = true
	}
	for i := range f.rules {
		if t := f.rules[i].Table; t != 0 {
			used[t] = true
		}
	}
	for _, l := range f.links {
		if l.Table != 0 {
			used[l.Table] = true
		}
	}
	if maps.Equal(used, f.tables) {
		return nil
	}
	for t := range used {
		if !f.tables[t] {
			fresh = append(fresh, t)
		}
	}
	gone := slices.ContainsFunc(slices.Collect(maps.Keys(f.tables)), func(t uint32) bool { return !used[t] })
	f.tables = used
	list := slices.Sorted(maps.Keys(used))
	f.used.Store(&list)
	if gone {
		for k := range f.slots {
			if !used[k.table] {
				f.put(k, nil)
			}
		}
		f.flush()
	}
	return fresh
}

// schedule asks for a dump, of routes only or of everything, after a delay. Dumps that follow one another
// leave most of the time to announcements.
func (f *Follower) schedule(full bool, after time.Duration) {
	f.full = f.full || full
	at, next := time.Now().Add(after), f.ended.Add(dumpShare*f.cost)
	if full {
		next = f.ended.Add(f.cost)
	}
	if at.Before(next) {
		at = next
	}
	if f.due.IsZero() || full && at.Before(f.due) {
		f.due = at
	}
}

// settle makes routes follow what else changed, and reports.
func (f *Follower) settle() {
	if f.objectsDue {
		f.objectsDue = false
		if err := f.dumpObjects(); err != nil {
			f.schedule(true, quiet)
		}
	}
	if f.rulesDue {
		if err := f.readRules(); err != nil {
			f.schedule(true, quiet)
		}
	}
	f.apply()
	f.flush()
	if f.mark == 0 {
		return // nothing is known yet
	}
	if fresh := f.retable(); len(fresh) != 0 {
		if err := f.dumpRoutes(fresh); err != nil {
			f.schedule(false, quiet)
		}
	}
}

func (f *Follower) event(m message) {
	switch m.typ {
	case unix.RTM_NEWLINK:
		if l, ok := parseLink(m.body); ok {
			f.setLink(l)
		}
	case unix.RTM_DELLINK:
		if l, ok := parseLink(m.body); ok {
			f.delLink(l.Index)
		}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		if a, ok := parseAddr(m.body); ok && m.typ == unix.RTM_NEWADDR {
			f.setAddr(a)
		} else if a.Prefix.IsValid() {
			f.delAddr(addrKey{a.Index, a.Prefix})
		}
	case unix.RTM_NEWROUTE:
		if f.parse(m.body) && f.tables[f.scratch.key.table] && f.add(m.flags, f.lagging) {
			f.schedule(false, quiet)
		}
	case unix.RTM_DELROUTE:
		if f.parse(m.body) && f.tables[f.scratch.key.table] && f.remove() {
			f.schedule(false, quiet)
		}
	case unix.RTM_NEWRULE, unix.RTM_DELRULE:
		f.rulesDue = true
	case unix.RTM_NEWNETCONF:
		if i, v, ok := parseNetconf(m.body); ok {
			f.setFilter(i, v)
		}
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		if id, o := parseObject(m.body); id == 0 {
		} else if m.typ == unix.RTM_NEWNEXTHOP {
			f.setObject(id, o)
		} else {
			f.delObject(id)
		}
	}
	if len(f.pending) >= batchSize {
		f.flush()
	}
}

func (f *Follower) setLink(l Link) {
	old, known := f.links[l.Index]
	if known && old == l {
		return
	}
	f.links[l.Index] = l
	if known && old.Up && !l.Up {
		f.lose4(func(p *Path) bool {
			return p.Type != Local && len(p.Hops) != 0 && !slices.ContainsFunc(p.Hops, func(h NextHop) bool { return f.links[h.Index].Up })
		})
	}
	if known && (old.Up != l.Up || old.Ready != l.Ready) {
		f.objectsDue = true
		if old.Up != l.Up {
			f.schedule(false, quiet)
		}
	}
	f.tell(l.Index)
	if l.Kind == "vrf" && (!known || l.Table != old.Table) {
		f.tellMembers(l.Index)
	}
}

// tell reports a link with what others say about it.
func (f *Follower) tell(index int) {
	l := f.links[index].with(f.links, f.filters)
	if old, known := f.told[index]; known && old == l {
		return
	}
	f.flush()
	f.told[index] = l
	f.sink.LinkChanged(l)
}

// with is the link with what its VRF and the filters say about it.
func (l Link) with(links map[int]Link, filters map[int]uint8) Link {
	if m := links[l.Master]; m.Kind == "vrf" && l.Master != 0 {
		l.Table = m.Table
	}
	l.RPFilter = max(filters[netconfAll], filters[l.Index])
	return l
}

func (f *Follower) tellMembers(master int) {
	for i, l := range f.links {
		if l.Master == master {
			f.tell(i)
		}
	}
}

// setFilter takes the reverse-path filter of a link, or of netconfAll.
func (f *Follower) setFilter(index int, v uint8) {
	if f.filters[index] == v {
		return
	}
	f.filters[index] = v
	for i := range f.links {
		if i == index || index == netconfAll {
			f.tell(i)
		}
	}
}

// delLink removes a link with all that is on it.
func (f *Follower) delLink(index int) {
	_, known := f.links[index]
	if !known {
		return
	}
	for k := range f.addrs {
		if k.index == index {
			f.delAddr(k)
		}
	}
	f.leave(index)
	f.apply()
	f.flush()
	l := f.told[index]
	delete(f.links, index)
	delete(f.told, index)
	delete(f.filters, index)
	f.sink.LinkRemoved(l)
	f.tellMembers(index)
	f.objectsDue = true
	f.schedule(false, quiet)
}

func (f *Follower) setAddr(a Addr) {
	k := addrKey{a.Index, a.Prefix}
	old, known := f.addrs[k]
	if known && old == a {
		return
	}
	f.flush()
	if known {
		f.sink.AddrRemoved(old)
	}
	f.addrs[k] = a
	f.sink.AddrAdded(a)
}

func (f *Follower) delAddr(k addrKey) {
	a, known := f.addrs[k]
	if !known {
		return
	}
	f.flush()
	delete(f.addrs, k)
	f.sink.AddrRemoved(a)
	if ip := k.prefix.Addr(); ip.Is4() {
		for o := range f.addrs {
			if o.prefix.Addr() == ip {
				return // it is the box's still
			}
		}
		f.lose4(func(p *Path) bool { return p.Src == ip && p.Type != Local })
		f.schedule(false, quiet)
	}
}
