package kernel

import (
	"errors"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"millrace/control/rule"
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
	if err == nil && full {
		err = f.readRules()
	}
	if err == nil {
		f.apply()
		f.flush()
		f.retable()
		start := time.Now()
		err = f.dumpRoutes(slices.Sorted(maps.Keys(f.tables)))
		f.ended = time.Now()
		f.cost = f.ended.Sub(start)
	}
	if err != nil {
		f.tries++
		f.full = f.full || full
		if !errors.Is(err, errInterrupted) {
			f.log.Error("reading the kernel's state", zap.Error(err))
		}
		f.schedule(full, min(time.Duration(f.tries)*quiet, time.Second))
		return
	}
	f.tries = 0
	if full {
		<-f.near.again()
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

// dumpLinks reads links and addresses.
func (f *Follower) dumpLinks() error {
	links, err := readLinks(f.dumps)
	if err != nil {
		return err
	}
	addrs, err := readAddrs(f.dumps)
	if err != nil {
		return err
	}
	filters, err := readFilters(f.dumps)
	if err != nil {
		return err
	}
	f.filters = filters
	for i := range f.links {
		if _, there := links[i]; !there {
			f.delLink(i)
		}
	}
	for _, l := range byIndex(links) {
		f.setLink(l)
	}
	for i := range f.links {
		f.tell(i) // its filter or VRF may be another
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
	return nil
}

func readLinks(s *socket) (map[int]Link, error) {
	links := map[int]Link{}
	return links, s.dump(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(m message) {
		if l, ok := parseLink(m.body); ok && m.typ == unix.RTM_NEWLINK {
			links[l.Index] = l
		}
	})
}

func readAddrs(s *socket) (addrs []Addr, err error) {
	err = s.dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), func(m message) {
		if a, ok := parseAddr(m.body); ok && m.typ == unix.RTM_NEWADDR {
			addrs = append(addrs, a)
		}
	})
	return addrs, err
}

// readNeighs reads the neighbours that can be used.
func readNeighs(s *socket) (neighs []Neigh, err error) {
	err = s.dump(unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg), func(m message) {
		if n, usable, ok := parseNeigh(m.body); ok && usable && m.typ == unix.RTM_NEWNEIGH {
			neighs = append(neighs, n)
		}
	})
	return neighs, err
}

// readFilters reads the reverse-path filters.
func readFilters(s *socket) (map[int]uint8, error) {
	filters := map[int]uint8{}
	return filters, s.dump(unix.RTM_GETNETCONF, []byte{unix.AF_INET, 0, 0, 0}, func(m message) {
		if i, v, ok := parseNetconf(m.body); ok {
			filters[i] = v
		}
	})
}

// dumpObjects reads next-hop objects; kernels before 5.3 have none.
func (f *Follower) dumpObjects() error {
	objects, err := readObjects(f.dumps)
	if err == nil {
		f.setObjects(objects)
	}
	return err
}

func readObjects(s *socket) (map[uint32]object, error) {
	objects := map[uint32]object{}
	err := s.dump(unix.RTM_GETNEXTHOP, make([]byte, sizeofNhMsg), func(m message) {
		if m.typ == unix.RTM_NEWNEXTHOP {
			if id, o := parseObject(m.body); id != 0 {
				objects[id] = o
			}
		}
	})
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	return objects, err
}

// readRules reads the rules anew.
func (f *Follower) readRules() error {
	rules, err := readRules(f.dumps)
	if err != nil {
		return err
	}
	f.rulesDue = false
	if !slices.Equal(rules, f.rules) {
		f.rules = rules
		f.sink.RulesChanged(rules)
	}
	return nil
}

func readRules(s *socket) (rules []rule.Rule, err error) {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, sizeofRuleHdr)
		body[0] = family
		if err := s.dump(unix.RTM_GETRULE, body, func(m message) {
			if r, ok := parseRule(m.body); ok && m.typ == unix.RTM_NEWRULE {
				rules = append(rules, r)
			}
		}); err != nil && !errors.Is(err, unix.EAFNOSUPPORT) {
			return nil, err
		}
	}
	return rules, nil
}

// dumpRoutes reads the routes of tables.
func (f *Follower) dumpRoutes(tables []uint32) error {
	f.flush()
	f.mark++
	f.lagging = true
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		for _, t := range tables {
			err := f.dumps.routes(family, t, func(b []byte) {
				if f.parse(b) && f.scratch.key.table == t {
					f.see()
				}
			})
			if err == nil {
				f.forget(family, t)
			}
			f.flush()
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// routes dumps the routes of a table. What the kernel adds of other tables, where it cannot tell them apart, is
// for the caller to leave out.
func (s *socket) routes(family byte, table uint32, f func(body []byte)) error {
	body := make([]byte, unix.SizeofRtMsg)
	body[0] = family
	err := s.dump(unix.RTM_GETROUTE, putAttr(body, unix.RTA_TABLE, native.AppendUint32(nil, table)), func(m message) {
		if m.typ == unix.RTM_NEWROUTE {
			f(m.body)
		}
	})
	if errors.Is(err, unix.ENOENT) {
		return nil // there is no such table
	}
	return err
}

// byIndex puts links in order: a VLAN comes after what it is on.
func byIndex(links map[int]Link) []Link {
	return slices.SortedFunc(maps.Values(links), func(a, b Link) int { return a.Index - b.Index })
}
