package kernel

import (
	"cmp"
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// key is a RouteKey without pointers: the mirror of a full table is nothing for the collector to look into.
type key struct {
	addr   [16]byte // IPv4 mapped into IPv6
	table  uint32
	metric uint32
	from   uint16 // number of RouteKey.From
	bits   uint8
	tos    uint8
	family uint8 // AF_INET or AF_INET6
}

// slot is what the mirror knows of a key.
type slot struct {
	path uint32 // of the route in use; 0 for none, until that is reported
	told uint32 // that was reported; 0 for none
	mark uint32 // of the last dump that had it
}

// mirror is all routes of the tables that are followed.
type mirror struct {
	paths
	slots   map[key]slot
	more    map[key][]uint32 // all paths of keys that have several, in the kernel's order
	froms   []netip.Prefix   // by number; 0 is none
	fromIDs map[netip.Prefix]uint16
	pending map[key]struct{} // whose slot may have another path than was told
	mark    uint32
	scratch parsed

	counts [2]atomic.Int64 // routes reported, of IPv4 and IPv6, without those of Special prefixes

	set    []Route // gathered for report
	del    []RouteKey
	report func(set []Route, del []RouteKey)
}

func newMirror(report func(set []Route, del []RouteKey)) *mirror {
	return &mirror{report: report, paths: newPaths(), slots: map[key]slot{}, more: map[key][]uint32{}, froms: make([]netip.Prefix, 1),
		fromIDs: map[netip.Prefix]uint16{{}: 0}, pending: map[key]struct{}{}}
}

// parse reads a route into scratch.
func (m *mirror) parse(b []byte) bool {
	p := &m.scratch
	if !parseRoute(b, p) {
		return false
	}
	n, known := m.fromIDs[p.from]
	if !known {
		if len(m.froms) == 1<<16 {
			return false
		}
		n = uint16(len(m.froms))
		m.froms = append(m.froms, p.from)
		m.fromIDs[p.from] = n
	}
	p.key.from = n
	return true
}

// routeKey is the key as others see it.
func (k key) routeKey(from netip.Prefix) RouteKey {
	a := netip.AddrFrom16(k.addr)
	if k.family == unix.AF_INET {
		a = a.Unmap()
	}
	return RouteKey{Dst: netip.PrefixFrom(a, int(k.bits)), From: from, Table: k.table, Metric: k.metric, TOS: k.tos}
}

func (m *mirror) routeKey(k key) RouteKey { return k.routeKey(m.froms[k.from]) }

func (m *mirror) route(k key, path uint32) Route {
	return Route{RouteKey: m.routeKey(k), Path: m.all[path].Path}
}

// list is all paths of a key in the kernel's order, as they are after the moves: the caller's to change.
func (m *mirror) list(k key, buf []uint32) []uint32 {
	buf = buf[:0]
	if l, several := m.more[k]; several {
		buf = append(buf, l...)
	} else if p := m.slots[k].path; p != 0 {
		buf = append(buf, p)
	}
	if len(m.moved) == 0 {
		return buf
	}
	out := buf[:0]
	for _, p := range buf {
		if p = m.now(p); p != 0 && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

// put stores the paths of a key; no other routes have the key then.
func (m *mirror) put(k key, l []uint32) {
	for _, p := range l {
		m.ref(p)
	}
	s, known := m.slots[k]
	if old, several := m.more[k]; several {
		for _, p := range old {
			m.unref(p)
		}
		delete(m.more, k)
	} else if s.path != 0 {
		m.unref(s.path)
	}
	s.path = m.best(l)
	if len(l) > 1 {
		m.more[k] = slices.Clone(l)
	}
	if known || len(l) != 0 {
		m.slots[k] = s
		m.touch(k)
	}
}

// best is the path that the kernel takes of several: the first one, and of IPv6 one of the highest preference.
func (m *mirror) best(l []uint32) uint32 {
	if len(l) == 0 {
		return 0
	}
	return slices.MaxFunc(l, func(a, b uint32) int { return cmp.Compare(m.all[a].Pref, m.all[b].Pref) })
}

func (m *mirror) touch(k key) { m.pending[k] = struct{}{} }

// apply makes the routes follow what became of their paths.
func (m *mirror) apply() {
	if !m.moves() {
		return
	}
	var buf []uint32
	for k, s := range m.slots {
		stale := false
		if l, several := m.more[k]; several {
			stale = slices.ContainsFunc(l, func(p uint32) bool { _, x := m.moved[p]; return x })
		} else {
			_, stale = m.moved[s.path]
		}
		if stale {
			buf = m.list(k, buf)
			m.put(k, buf)
		}
	}
	clear(m.moved)
}

// ecmp: IPv6 routes with a gateway are next hops of one multipath route, but for those of other routers'
// announcements and of next-hop objects.
func (m *mirror) ecmp(path uint32) bool {
	e := &m.all[path]
	return e.family == unix.AF_INET6 && len(e.Hops) != 0 && e.Hops[0].Via.IsValid() && e.Object == 0 && e.Protocol != unix.RTPROT_RA
}

// add takes RTM_NEWROUTE for scratch. Its flags say how the route stands to others with its key; unsure is true where
// they do not say enough, given a mirror that may be newer than the announcement.
func (m *mirror) add(flags uint16, lagging bool) (unsure bool) {
	k, p := m.scratch.key, m.intern(&m.scratch)
	if s := m.slots[k]; s.path == p && m.more[k] == nil {
		return false
	}
	var room [4]uint32
	l := m.list(k, room[:])
	if slices.Contains(l, p) {
		return lagging && len(l) > 1
	}
	replace := flags&unix.NLM_F_REPLACE != 0
	at := -1
	switch {
	case len(l) == 0:
	case k.family == unix.AF_INET6:
		// A multipath route is announced whole. Others are told apart by their link.
		ecmp := m.ecmp(p)
		at = slices.IndexFunc(l, func(o uint32) bool {
			return m.ecmp(o) == ecmp && (ecmp || replace || slices.Equal(m.all[o].Hops, m.all[p].Hops))
		})
		if at < 0 && replace {
			at = 0
		}
		unsure = replace && len(l) > 1
	case flags&unix.NLM_F_EXCL != 0:
		l = l[:0] // there was none; those known are gone without a word
	case replace:
		at = 0
		unsure = len(l) > 1 && lagging
	default:
		unsure = lagging
	}
	switch {
	case at >= 0:
		l[at] = p
	case flags&unix.NLM_F_APPEND != 0 || k.family == unix.AF_INET6:
		l = append(l, p)
	default:
		l = slices.Insert(l, 0, p)
	}
	m.put(k, l)
	return unsure
}

// remove takes RTM_DELROUTE for scratch. Of an IPv6 multipath route it may name some next hops only. unsure is true where the
// mirror has no such route.
func (m *mirror) remove() (unsure bool) {
	k := m.scratch.key
	var room [4]uint32
	l := m.list(k, room[:])
	if len(l) == 0 {
		return false
	}
	p := m.find(&m.scratch)
	at := slices.Index(l, p)
	gone := m.scratch.path.Hops
	same := func(a, b NextHop) bool { return a.Index == b.Index && a.Via == b.Via }
	if at < 0 {
		at = slices.IndexFunc(l, func(o uint32) bool {
			e := &m.all[o]
			return e.Type == m.scratch.path.Type && slices.EqualFunc(e.Hops, gone, same)
		})
	}
	if at >= 0 {
		m.put(k, slices.Delete(l, at, at+1))
		return false
	}
	at = slices.IndexFunc(l, m.ecmp)
	if at >= 0 && len(gone) != 0 && gone[0].Via.IsValid() {
		e := &m.all[l[at]]
		left := m.scratch
		left.path, left.path.Encap = *e.Path, false
		left.path.Hops = slices.DeleteFunc(slices.Clone(e.Hops), func(h NextHop) bool {
			return slices.ContainsFunc(gone, func(g NextHop) bool { return same(h, g) })
		})
		if len(left.path.Hops) == 0 {
			l = slices.Delete(l, at, at+1)
		} else {
			l[at] = m.intern(&left)
		}
		m.put(k, l)
		return false
	}
	if len(l) == 1 { // not as it is known, such as one whose next hops changed without a word
		m.put(k, nil)
	}
	return true
}

// see takes a route of a dump, scratch: the first one of a key takes the place of all that are known.
func (m *mirror) see() {
	k := m.scratch.key
	p := m.intern(&m.scratch)
	s, known := m.slots[k]
	if !known {
		m.ref(p)
		m.slots[k] = slot{path: p, told: p, mark: m.mark}
		m.set = append(m.set, m.route(k, p))
		m.count(k, 1)
		m.send(batchSize)
		return
	}
	first := s.mark != m.mark
	if first && s.path == p && m.more[k] == nil {
		s.mark = m.mark
		m.slots[k] = s
		return
	}
	var l []uint32
	if !first {
		l = m.list(k, nil)
	}
	if !slices.Contains(l, p) { // a dump may have a route twice when others change meanwhile
		m.put(k, append(l, p))
	}
	if first {
		s = m.slots[k]
		s.mark = m.mark
		m.slots[k] = s
	}
}

// forget removes the routes of a table that the last dump did not have.
func (m *mirror) forget(family uint8, table uint32) {
	for k, s := range m.slots {
		if k.family == family && k.table == table && s.mark != m.mark {
			m.put(k, nil)
		}
	}
}

// flush reports what is pending.
func (m *mirror) flush() {
	var buf []uint32
	for k := range m.pending {
		if len(m.moved) != 0 {
			buf = m.list(k, buf)
			m.put(k, buf)
		}
		s := m.slots[k]
		switch {
		case s.path == 0:
			delete(m.slots, k)
			if s.told != 0 {
				m.del = append(m.del, m.routeKey(k))
				m.count(k, -1)
			}
		case s.path != s.told:
			m.set = append(m.set, m.route(k, s.path))
			if s.told == 0 {
				m.count(k, 1)
			}
			s.told = s.path
			m.slots[k] = s
		}
		m.send(batchSize)
	}
	clear(m.pending)
	m.send(1)
	if len(m.moved) == 0 {
		m.reclaim()
	}
}

func (m *mirror) count(k key, n int64) {
	a := netip.AddrFrom16(k.addr).Unmap()
	if Special(a) {
		return
	}
	if k.family == unix.AF_INET {
		m.counts[0].Add(n)
	} else {
		m.counts[1].Add(n)
	}
}

// Special: routes to addresses there concern the box and its links alone.
func Special(a netip.Addr) bool {
	return a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast()
}

// Routes counts the routes that were reported, without those of Special prefixes. It may be called from any goroutine.
func (f *Follower) Routes() (v4, v6 int) {
	return int(f.counts[0].Load()), int(f.counts[1].Load())
}

// send reports what is gathered, where it is as much as least.
func (m *mirror) send(least int) {
	if len(m.set)+len(m.del) < least {
		return
	}
	m.report(m.set, m.del)
	clear(m.set)
	m.set, m.del = m.set[:0], m.del[:0]
}
