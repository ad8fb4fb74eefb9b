package kernel

import (
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// resync dumps what is due and reports the differences from what was reported before. Changes that
// are announced meanwhile wait in the socket, and are at worst reported twice.
func (f *Follower) resync() {
	full := f.full
	f.due, f.full = time.Time{}, false
	if full {
		f.drain()
	}
	err := f.dumpObjects()
	if err == nil && full {
		err = f.dumpLinks()
	}
	if err == nil {
		err = f.dumpRoutes()
	}
	if err != nil {
		f.tries++
		if !errors.Is(err, errInterrupted) {
			f.log.Error("reading the kernel's state", zap.Error(err))
		}
		f.schedule(full, min(time.Duration(f.tries)*quiet, time.Second))
		return
	}
	f.tries = 0
	if full {
		f.sink.Synced()
	}
}

// drain throws away announcements that are older than the dump to come: where the socket overflowed, what
// contradicts them may be lost.
func (f *Follower) drain() {
	for {
		if _, err := f.events.receive(false, time.Time{}); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return
		}
	}
}

// dumpLinks reads links, addresses and neighbours.
func (f *Follower) dumpLinks() error {
	links := map[int]Link{}
	if err := f.dumps.dump(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(m message) {
		if l, ok := parseLink(m.body); ok && m.typ == unix.RTM_NEWLINK {
			links[l.Index] = l
		}
	}); err != nil {
		return err
	}
	var addrs []Addr
	if err := f.dumps.dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), func(m message) {
		if a, ok := parseAddr(m.body); ok && m.typ == unix.RTM_NEWADDR {
			addrs = append(addrs, a)
		}
	}); err != nil {
		return err
	}
	neighs := map[neighKey]Neigh{}
	if err := f.dumps.dump(unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg), func(m message) {
		if n, usable, ok := parseNeigh(m.body); ok && usable && m.typ == unix.RTM_NEWNEIGH {
			neighs[neighKey{n.Index, n.Addr}] = n
		}
	}); err != nil {
		return err
	}
	for i := range f.links {
		if _, there := links[i]; !there {
			f.delLink(i)
		}
	}
	for _, l := range byIndex(links) {
		f.setLink(l)
	}
	known := map[addrKey]bool{}
	for _, a := range addrs {
		known[addrKey{a.Index, a.Prefix}] = true
		f.setAddr(a)
	}
	for k := range f.addrs {
		if !known[k] {
			f.delAddr(k)
		}
	}
	for k := range f.neighs {
		if _, there := neighs[k]; !there {
			f.delNeigh(k)
		}
	}
	for _, n := range neighs {
		f.setNeigh(n)
	}
	return nil
}

// dumpObjects reads next-hop objects; kernels before 5.3 have none.
func (f *Follower) dumpObjects() error {
	objects := map[uint32]object{}
	err := f.dumps.dump(unix.RTM_GETNEXTHOP, make([]byte, sizeofNhMsg), func(m message) {
		if m.typ == unix.RTM_NEWNEXTHOP {
			id, o := parseObject(m.body)
			objects[id] = o
		}
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	if err == nil {
		f.objects = objects
	}
	return err
}

func (f *Follower) dumpRoutes() error {
	f.flush()
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, unix.SizeofRtMsg)
		body[0] = family
		err := f.dumps.dump(unix.RTM_GETROUTE, body, func(m message) {
			r, ok := parseRoute(m.body, f.expand)
			if !ok || m.typ != unix.RTM_NEWROUTE || !f.tables[r.Table] {
				return
			}
			f.share(&r)
			s := f.routes[r.RouteKey]
			if s == nil {
				s = &routeSet{}
				f.routes[r.RouteKey] = s
			}
			s.seen = append(s.seen, r)
		})
		for k, s := range f.routes {
			if k.Dst.Addr().Is4() != (family == unix.AF_INET) {
				continue
			}
			if err == nil && !slices.EqualFunc(s.all, s.seen, func(a, b Route) bool { return a.equal(&b) }) {
				s.all = s.seen
				f.touch(k)
			} else if len(s.all) == 0 {
				delete(f.routes, k)
			}
			s.seen = nil
		}
		f.flush()
		if err != nil {
			return err
		}
	}
	return nil
}

// byIndex puts links in order: a VLAN comes after what it is on.
func byIndex(links map[int]Link) []Link {
	return slices.SortedFunc(maps.Values(links), func(a, b Link) int { return a.Index - b.Index })
}
