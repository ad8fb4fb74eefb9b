package rib

import (
	"net/netip"
	"slices"
	"time"

	"millrace/fib"
)

// Resolve makes the FIB's next hops of a path's; ok is false for a path that cannot be used.
type Resolve func(p *Path) (typ fib.RouteType, hops []fib.NextHop, ok bool)

// Update changes the FIB as fib.FIB.Update does, all or nothing.
type Update func(add []fib.Route, del []fib.Key) error

// Batch is the most changes that Flush takes to the FIB at once.
const Batch = 4096

// Flush takes waiting changes to the FIB; more says that some are left. What the FIB refuses is
// left out, is not left as it was before, and is counted: see Stats. The routes' Tag is their protocol. Flush may
// be called by one goroutine at a time.
func (t *Table) Flush(resolve Resolve, update Update) (more bool) {
	t.mu.Lock()
	if t.recheck {
		t.recheck = false
		t.resolveAgain(resolve)
	}
	n := min(Batch, len(t.queue))
	batch := slices.Clone(t.queue[:n])
	clear(t.queue[:n])
	if t.queue = t.queue[n:]; len(t.queue) == 0 {
		t.queue = nil
	}
	var add []fib.Route
	var del []fib.Key
	var adding []*entry
	for _, e := range batch {
		e.queued = false
		var want *Path
		if r := e.best(); r != nil {
			if t.resolve(r.path, resolve); r.path.res.ok {
				want = r.path
			}
		}
		old, force := e.inst, e.force
		e.inst, e.force = want, false
		t.unrefuse(e)
		switch {
		case want == nil && old == nil:
		case want == nil:
			del = append(del, t.key(e, old))
		case old != nil && !force && same(old, want):
			continue
		default:
			if old != nil && old.Metric != want.Metric {
				del = append(del, t.key(e, old))
			}
			add = append(add, t.route(e, want))
			adding = append(adding, e)
		}
		if e.first.set == nil && e.inst == nil {
			t.tables[e.table].Delete(e.prefix)
			t.entries[family(e.prefix)]--
		}
	}
	more = len(t.queue) != 0
	t.applied += uint64(len(add) + len(del))
	t.mu.Unlock()
	if len(add)+len(del) == 0 || update(add, del) == nil {
		return more
	}
	t.singly(update, add, del, adding)
	return more
}

// singly takes a batch that does not fit as a whole to the FIB route by route.
func (t *Table) singly(update Update, add []fib.Route, del []fib.Key, adding []*entry) {
	err := update(nil, del)
	var bad []*entry
	for i := range add {
		if e := update(add[i:i+1], nil); e != nil {
			err = e
			// What was there before must not pass for the route.
			_ = update(nil, []fib.Key{add[i].Key()})
			bad = append(bad, adding[i])
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range bad {
		e.inst, e.bad = nil, true
	}
	t.refused += len(bad)
	if err != nil {
		t.lastErr = err
	}
}

func (t *Table) unrefuse(e *entry) {
	if e.bad {
		e.bad = false
		t.refused--
	}
}

// Retry queues what the FIB refused once more.
func (t *Table) Retry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.refused == 0 {
		t.lastErr = nil
		return
	}
	t.each(func(e *entry) {
		if e.bad {
			t.enqueue(e)
		}
	})
}

func (t *Table) key(e *entry, p *Path) fib.Key {
	return fib.Key{Table: e.table, Prefix: e.prefix, Source: t.src, Metric: p.Metric}
}

func same(a, b *Path) bool {
	return a == b || a.Metric == b.Metric && a.Protocol == b.Protocol && a.res.typ == b.res.typ && slices.Equal(a.res.hops, b.res.hops)
}

// resolve brings a path's resolution up to the table's generation.
func (t *Table) resolve(p *Path, resolve Resolve) {
	if p.res.gen == t.gen {
		return
	}
	typ, hops, ok := resolve(p)
	if p.res.gen == 0 || p.res.ok != ok || p.res.typ != typ || !slices.Equal(p.res.hops, hops) {
		p.res.typ, p.res.hops, p.res.ok, p.res.changed = typ, hops, ok, t.gen
	}
	p.res.gen = t.gen
}

// resolveAgain resolves all paths and queues the routes by those that changed.
func (t *Table) resolveAgain(resolve Resolve) {
	t.gen++
	changed := false
	check := func(p *Path) {
		t.resolve(p, resolve)
		changed = changed || p.res.changed == t.gen
	}
	for _, s := range t.sets {
		for _, p := range s.paths {
			check(p)
		}
		for p := range s.old {
			check(p)
		}
	}
	if !changed {
		return
	}
	t.each(func(e *entry) {
		if e.inst != nil && e.inst.res.changed == t.gen {
			e.force = true
		}
		if r := e.best(); r != nil && r.path.res.changed == t.gen {
			t.enqueue(e)
		}
	})
}

// Wanted calls f with all routes that the FIB should have, some thousands at a time.
func (t *Table) Wanted(resolve Resolve, f func([]fib.Route)) {
	t.mu.Lock()
	all := make([]*entry, 0, t.entries[0]+t.entries[1])
	t.each(func(e *entry) { all = append(all, e) })
	t.mu.Unlock()
	var out []fib.Route
	for part := range slices.Chunk(all, Batch) {
		out = out[:0]
		t.mu.Lock()
		for _, e := range part {
			r := e.best()
			if r == nil {
				continue
			}
			if t.resolve(r.path, resolve); r.path.res.ok {
				out = append(out, t.route(e, r.path))
			}
		}
		t.mu.Unlock()
		f(out)
	}
}

func (t *Table) route(e *entry, p *Path) fib.Route {
	return fib.Route{Table: e.table, Prefix: e.prefix, NextHops: p.res.hops, Type: p.res.typ, Source: t.src, Metric: p.Metric, Tag: uint32(p.Protocol)}
}

// Stats are the counts of a table.
type Stats struct {
	Prefixes int
	IPv4     int    // of these
	Queued   int    // changes that wait for Flush
	Applied  uint64 // changes given to the FIB
	Refused  int    // prefixes that it has no room for
	Err      error  // the last refusal while there are any
}

// Stats counts.
func (t *Table) Stats() Stats {
	t.mu.Lock()
	defer t.mu.Unlock()
	return Stats{t.entries[0] + t.entries[1], t.entries[0], len(t.queue), t.applied, t.refused, t.lastErr}
}

// SetInfo is what there is to say about a set.
type SetInfo struct {
	Name   string
	Routes int
	Stale  bool
	Since  time.Time // when it became stale
	Until  time.Time // when its routes go, unless more are taken over
}

// Sets lists the sets, oldest first.
func (t *Table) Sets() []SetInfo {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([]SetInfo, 0, len(t.sets))
	for _, s := range t.sets {
		i := SetInfo{Name: s.Name, Routes: s.n, Stale: s.stale}
		if s.stale {
			i.Since, i.Until = s.gone, s.deadline()
		}
		out = append(out, i)
	}
	return out
}

// Find is the path in use to a prefix, whether its set is stale, and the set's name; nil for none.
func (t *Table) Find(table uint32, prefix netip.Prefix) (p *Path, stale bool, set string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := t.tables[table]
	if b == nil {
		return nil, false, ""
	}
	e, ok := b.Get(prefix)
	if !ok {
		return nil, false, ""
	}
	r := e.best()
	if r == nil {
		return nil, false, ""
	}
	return r.path, r.set.stale, r.set.Name
}

// Routes calls f for each prefix with its best path and whether that is stale, in no order, until f
// returns false. f must not call the table.
func (t *Table) Routes(f func(table uint32, prefix netip.Prefix, p *Path, stale bool) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for n, b := range t.tables {
		for _, e := range b.All() {
			if r := e.best(); r != nil && !f(n, e.prefix, r.path, r.set.stale) {
				return
			}
		}
	}
}
