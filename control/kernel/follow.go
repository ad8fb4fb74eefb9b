package kernel

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// Options of a Follower.
type Options struct {
	Log *zap.Logger // nil for none
	// Tables are the routing tables to follow; empty for local, main and default.
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
	tables map[uint32]bool

	links   map[int]Link
	addrs   map[addrKey]Addr
	neighs  map[neighKey]Neigh
	routes  map[RouteKey]*routeSet
	objects map[uint32]object

	set     []Route // reported at the next flush
	del     []RouteKey
	pending map[RouteKey]struct{} // keys of set and del

	lastHops []NextHop // of the route before: see share

	due     time.Time // of the next dump, zero for none
	full    bool      // it is to be of everything, not only of routes
	tries   int       // dumps that failed in a row
	replay  atomic.Pointer[replay]
	nextAge time.Time
	checked map[neighKey]time.Time
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
		links: map[int]Link{}, addrs: map[addrKey]Addr{}, neighs: map[neighKey]Neigh{}, routes: map[RouteKey]*routeSet{},
		objects: map[uint32]object{}, pending: map[RouteKey]struct{}{}, checked: map[neighKey]time.Time{}}
	if f.log == nil {
		f.log = zap.NewNop()
	}
	if len(o.Tables) == 0 {
		o.Tables = []uint32{TableLocal, TableMain, TableDefault}
	}
	for _, t := range o.Tables {
		f.tables[t] = true
	}
	var err error
	if f.events, err = open(unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV6_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_NEXTHOP); err != nil {
		return nil, err
	}
	if f.dumps, err = open(); err != nil {
		f.events.close()
		return nil, err
	}
	if f.asks, err = newAsker(f.log); err != nil {
		f.events.close()
		f.dumps.close()
		return nil, err
	}
	return f, nil
}

// Run follows until ctx ends, and closes the follower.
func (f *Follower) Run(ctx context.Context) error {
	defer f.dumps.close()
	defer f.asks.close()
	defer f.events.close()
	stop := context.AfterFunc(ctx, func() { _ = f.events.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	f.schedule(true, 0)
	f.nextAge = time.Now().Add(keepAlivePeriod / 10)
	for ctx.Err() == nil {
		now := time.Now()
		if r := f.replay.Swap(nil); r != nil {
			f.tellAll()
			close(r.done)
		}
		if !f.due.IsZero() && !now.Before(f.due) {
			f.resync()
		}
		if !now.Before(f.nextAge) {
			f.keepAlive(now)
			f.nextAge = now.Add(keepAlivePeriod / 10)
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
		f.flush()
		switch {
		case err == nil, errors.Is(err, errEmpty), errors.Is(err, os.ErrDeadlineExceeded):
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
	for _, l := range byIndex(f.links) {
		f.sink.LinkChanged(l)
	}
	for _, a := range f.addrs {
		f.sink.AddrAdded(a)
	}
	for _, n := range f.neighs {
		f.sink.NeighChanged(n)
	}
	for k := range f.routes {
		f.touch(k)
	}
	f.flush()
	f.sink.Synced()
}

// schedule asks for a dump, of routes only or of everything, after a delay.
func (f *Follower) schedule(full bool, after time.Duration) {
	f.full = f.full || full
	if at := time.Now().Add(after); f.due.IsZero() || full && at.Before(f.due) {
		f.due = at
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
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		n, usable, ok := parseNeigh(m.body)
		if ok && usable && m.typ == unix.RTM_NEWNEIGH {
			f.setNeigh(n)
		} else if ok {
			f.delNeigh(neighKey{n.Index, n.Addr})
		}
	case unix.RTM_NEWROUTE:
		if r, ok := parseRoute(m.body, f.expand); ok && f.tables[r.Table] {
			f.share(&r)
			f.addRoute(r, m.flags)
		}
	case unix.RTM_DELROUTE:
		if r, ok := parseRoute(m.body, f.expand); ok && f.tables[r.Table] {
			f.removeRoute(r)
		}
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		if id, o := parseObject(m.body); m.typ == unix.RTM_NEWNEXTHOP {
			f.objects[id] = o
		} else {
			delete(f.objects, id)
		}
		f.schedule(false, quiet)
	}
}

// share lets a route have its next hops in common with the one before, as most do in a full table. They are
// never changed in place.
func (f *Follower) share(r *Route) {
	if slices.Equal(r.Hops, f.lastHops) {
		r.Hops = f.lastHops
	} else {
		f.lastHops = r.Hops
	}
}

// expand is what a next-hop object stands for.
func (f *Follower) expand(id uint32) (hs []NextHop, blackhole bool) {
	o := f.objects[id]
	if len(o.group) == 0 {
		if o.blackhole {
			return nil, true
		}
		if o.hop.Index == 0 {
			return nil, false
		}
		return []NextHop{o.hop}, false
	}
	for _, m := range o.group {
		h := f.objects[m.id].hop
		if h.Index != 0 {
			h.Weight = m.weight
			hs = append(hs, h)
		}
	}
	return hs, len(hs) == 0
}

func (f *Follower) setLink(l Link) {
	old, known := f.links[l.Index]
	if known && old == l {
		return
	}
	f.flush()
	f.links[l.Index] = l
	f.sink.LinkChanged(l)
	if known && (old.Up != l.Up || old.Ready != l.Ready) {
		f.schedule(false, quiet)
	}
}

// delLink removes a link with all that is on it.
func (f *Follower) delLink(index int) {
	l, known := f.links[index]
	if !known {
		return
	}
	for k := range f.neighs {
		if k.index == index {
			f.delNeigh(k)
		}
	}
	for k := range f.addrs {
		if k.index == index {
			f.delAddr(k)
		}
	}
	for k, s := range f.routes {
		if s.drop(index) {
			f.touch(k)
		}
	}
	f.flush()
	delete(f.links, index)
	f.sink.LinkRemoved(l)
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
	if k.prefix.Addr().Is4() {
		f.schedule(false, quiet)
	}
}

func (f *Follower) setNeigh(n Neigh) {
	k := neighKey{n.Index, n.Addr}
	if old, known := f.neighs[k]; known && old == n {
		return
	}
	f.flush()
	f.neighs[k] = n
	f.sink.NeighChanged(n)
}

func (f *Follower) delNeigh(k neighKey) {
	n, known := f.neighs[k]
	if !known {
		return
	}
	f.flush()
	delete(f.neighs, k)
	delete(f.checked, k)
	f.sink.NeighRemoved(n)
}

// keepAlive has the kernel check stale neighbours that Options.KeepAlive names.
func (f *Follower) keepAlive(now time.Time) {
	if f.opt.KeepAlive == nil {
		return
	}
	n := 0
	for k, nb := range f.neighs {
		if nb.State != "stale" || now.Sub(f.checked[k]) < keepAlivePeriod || !f.opt.KeepAlive(nb) {
			continue
		}
		f.checked[k] = now
		f.Ask(k.index, k.addr)
		if n++; n == keepAliveMost {
			return
		}
	}
}
