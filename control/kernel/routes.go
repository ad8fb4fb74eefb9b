package kernel

import (
	"slices"

	"golang.org/x/sys/unix"
)

// routeSet is all routes of one key in the kernel's order, of which the first counts. IPv4
// has several where `ip route append` made them; IPv6 where the same prefix is on several links.
type routeSet struct {
	all  []Route
	seen []Route // while a dump runs
}

// drop takes out what leads to a link; true where that changed the set.
func (s *routeSet) drop(index int) (changed bool) {
	onLink := func(h NextHop) bool { return h.Index == index }
	s.all = slices.DeleteFunc(s.all, func(r Route) bool {
		gone := len(r.Hops) != 0 && !slices.ContainsFunc(r.Hops, func(h NextHop) bool { return !onLink(h) })
		changed = changed || gone
		return gone
	})
	for i := range s.all {
		r := &s.all[i]
		if slices.ContainsFunc(r.Hops, onLink) {
			r.Hops = slices.DeleteFunc(slices.Clone(r.Hops), onLink)
			changed = true
		}
	}
	return changed
}

// equalCost: IPv6 routes with a gateway are next hops of one multipath route.
func equalCost(r *Route) bool {
	return r.Dst.Addr().Is6() && len(r.Hops) != 0 && r.Hops[0].Via.IsValid()
}

// addRoute takes RTM_NEWROUTE, whose flags say how the route stands to others with its key.
func (f *Follower) addRoute(r Route, flags uint16) {
	s := f.routes[r.RouteKey]
	if s == nil {
		s = &routeSet{}
		f.routes[r.RouteKey] = s
	}
	at := -1
	switch {
	case len(s.all) == 0:
	case r.Dst.Addr().Is6():
		// A multipath route is announced whole. Others are told apart by their link.
		at = slices.IndexFunc(s.all, func(o Route) bool {
			if equalCost(&r) || equalCost(&o) {
				return equalCost(&r) == equalCost(&o)
			}
			return flags&unix.NLM_F_REPLACE != 0 || slices.Equal(o.Hops, r.Hops)
		})
	default:
		at = slices.IndexFunc(s.all, func(o Route) bool { return o.equal(&r) })
		if at < 0 && flags&unix.NLM_F_REPLACE != 0 {
			at = 0
		}
	}
	if len(s.all) > 1 || len(s.all) == 1 && at < 0 {
		// The announcement does not say which one it replaces, and one that is older
		// than the last dump looks like another route.
		f.schedule(false, quiet)
	}
	switch {
	case at >= 0:
		if s.all[at].equal(&r) {
			return
		}
		s.all[at] = r
	case flags&unix.NLM_F_APPEND != 0 || r.Dst.Addr().Is6():
		s.all = append(s.all, r)
	default:
		s.all = slices.Insert(s.all, 0, r)
	}
	f.touch(r.RouteKey)
}

// removeRoute takes RTM_DELROUTE. Of an IPv6 multipath route it may name some next hops only.
func (f *Follower) removeRoute(r Route) {
	s := f.routes[r.RouteKey]
	if s == nil {
		return
	}
	same := func(a, b NextHop) bool { return a.Index == b.Index && a.Via == b.Via }
	at := slices.IndexFunc(s.all, func(o Route) bool {
		return o.Type == r.Type && slices.EqualFunc(o.Hops, r.Hops, same)
	})
	switch {
	case at >= 0:
		s.all = slices.Delete(s.all, at, at+1)
	case equalCost(&r):
		at = slices.IndexFunc(s.all, func(o Route) bool { return equalCost(&o) })
		if at < 0 {
			return
		}
		o := &s.all[at]
		o.Hops = slices.DeleteFunc(slices.Clone(o.Hops), func(h NextHop) bool {
			return slices.ContainsFunc(r.Hops, func(g NextHop) bool { return same(h, g) })
		})
		if len(o.Hops) == 0 {
			s.all = slices.Delete(s.all, at, at+1)
		}
	default:
		// Not one that is known, such as one whose next hops changed without a word.
		f.schedule(false, quiet)
		if len(s.all) != 1 {
			return
		}
		s.all = nil
	}
	f.touch(r.RouteKey)
}

// touch notes that the first route of a key may have changed.
func (f *Follower) touch(k RouteKey) {
	f.pending[k] = struct{}{}
	if len(f.pending) == batchSize {
		f.flush()
	}
}

// flush reports the pending route changes.
func (f *Follower) flush() {
	if len(f.pending) == 0 {
		return
	}
	for k := range f.pending {
		if s := f.routes[k]; s != nil && len(s.all) != 0 {
			f.set = append(f.set, s.all[0])
		} else {
			delete(f.routes, k)
			f.del = append(f.del, k)
		}
	}
	clear(f.pending)
	f.sink.RouteBatch(f.set, f.del)
	clear(f.set)
	f.set, f.del = f.set[:0], f.del[:0]
}
