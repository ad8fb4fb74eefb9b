package fib

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"
	"unsafe" // a group's first 64 bits stored as one word

	"millrace/internal/mem"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// hopset is what a route leads to. Equal ones are one, and share a group.
type hopset struct {
	key    string
	typ    RouteType
	onlink bool      // some hop has no Via
	hops   []NextHop // in canonical form and order
	refs   int       // routes, used or not
	users  int       // entries in the hot tables; the set has a group while there are any
	group  uint32
	short  uint8  // length of the prefix and one, for a variant
	ways   []*way // by hop, while there is a group; nil for those without Via
	run    run    // buckets, for several next hops
	share  *share // the same by member
	// Entries with a route by the set, and some that had one: see entriesOf. Only of sets with hops.
	entries []*entry
	limit   int  // of their number, until those without are dropped
	queued  bool // to be written
}

// target is what has to be resolved for a group; see FIB.Target.
type target struct {
	iface uint16
	via   netip.Addr
}

// reasonOf is the reason of a group by route type.
var reasonOf = [numTypes]graph.Reason{
	Local: XLocal, Blackhole: XBlackhole, Unreachable: XUnreachable, Prohibit: XProhibit,
	Broadcast: XDirectedBroadcast, Multicast: XMulticast,
	Throw: XNoRoute, Martian: XMartian, LinkLocal: XLinkLocal, LimitedBroadcast: XBroadcast,
}

// intern finds or makes the set of next hops.
func (f *FIB) intern(typ RouteType, hops []NextHop) *hopset {
	var one [1]NextHop
	canon := one[:0]
	if len(hops) > 1 {
		canon = make([]NextHop, 0, len(hops))
	}
	for _, h := range hops {
		mtu := h.MTU
		if mtu >= 1<<16-1 {
			mtu = 0
		}
		canon = append(canon, NextHop{Via: plain(h.Via), Iface: h.Iface, Weight: max(h.Weight, 1), MTU: mtu})
	}
	if len(canon) > 1 {
		canon = merge(canon)
	}
	if len(canon) == 1 {
		canon[0].Weight = 1
	}
	k := append(f.key[:0], byte(typ))
	for _, h := range canon {
		a := h.Via.As16()
		k = append(k, byte(h.Iface), byte(h.Iface>>8), byte(h.Via.BitLen()))
		k = append(k, a[:]...)
		k = binary.LittleEndian.AppendUint32(k, uint32(h.Weight))
		k = binary.LittleEndian.AppendUint16(k, uint16(h.MTU))
	}
	f.key = k
	if s := f.sets[string(k)]; s != nil {
		return s
	}
	s := &hopset{key: string(k), typ: typ, hops: slices.Clone(canon)}
	s.onlink = slices.ContainsFunc(s.hops, func(h NextHop) bool { return !h.Via.IsValid() })
	f.enter(s)
	return s
}

// enter makes a set known.
func (f *FIB) enter(s *hopset) {
	f.sets[s.key] = s
	for i := range s.hops {
		if u := &f.uses[s.hops[i].Iface]; u.sets == nil {
			u.sets = map[*hopset]struct{}{s: {}}
		} else {
			u.sets[s] = struct{}{}
		}
	}
}

// leads finds or makes the set that a route leads to. An MTU that is less than every link must have counts as that. Linux
// takes such routes literally, and by one of IPv6 nothing larger passes at all: hosts send packets of 1280 bytes whatever they are told.
func (f *FIB) leads(r *Route) *hopset {
	hops, least := r.NextHops, minMTU
	if r.Prefix.Addr().Is6() {
		least = minMTU6
	}
	small := func(h NextHop) bool { return h.MTU > 0 && h.MTU < least }
	if slices.ContainsFunc(hops, small) {
		hops = slices.Clone(hops)
		for i := range hops {
			if small(hops[i]) {
				hops[i].MTU = least
			}
		}
	}
	return f.intern(r.Type, hops)
}

// compare is 0 for the same way with any weight.
func (h *NextHop) compare(o *NextHop) int {
	return cmp.Or(cmp.Compare(h.Iface, o.Iface), h.Via.Compare(o.Via), cmp.Compare(h.MTU, o.MTU))
}

// merge sorts next hops, adds the weights of equal ones and divides by the common divisor.
func merge(hops []NextHop) []NextHop {
	slices.SortFunc(hops, func(a, b NextHop) int { return a.compare(&b) })
	n, div := 0, 0
	for _, h := range hops {
		if n > 0 && hops[n-1].compare(&h) == 0 {
			hops[n-1].Weight += h.Weight
			continue
		}
		hops[n] = h
		n++
	}
	for _, h := range hops[:n] {
		a, b := h.Weight, div
		for b != 0 {
			a, b = b, a%b
		}
		div = a
	}
	for i := range hops[:n] {
		hops[i].Weight /= div
	}
	return hops[:n]
}

// forget drops a set that nothing refers to.
func (f *FIB) forget(s *hopset) {
	if s.refs != 0 || s.users != 0 {
		return
	}
	delete(f.sets, s.key)
	for i := range s.hops {
		delete(f.uses[s.hops[i].Iface].sets, s)
	}
}

// refer counts a route of the entry by the sets of c.
func (f *FIB) refer(e *entry, c *cand) {
	c.set.refs++
	c.set.note(e)
	if c.of != nil {
		c.of.note(e)
	}
}

// note remembers that the entry has a route by the set. What has none any more is dropped now
// and then, so that the list costs 16 bytes a route or less, and no search.
func (s *hopset) note(e *entry) {
	if len(s.hops) == 0 {
		return
	}
	if len(s.entries) >= s.limit {
		s.limit = 2*len(s.entriesOf()) + 16
		if cap(s.entries) > 2*s.limit {
			s.entries = slices.Clone(s.entries)
		}
	}
	s.entries = append(s.entries, e)
}

// entriesOf lists the entries with a route by the set, once each. It is good until the next note.
func (s *hopset) entriesOf() []*entry {
	n := 0
	for _, e := range s.entries {
		if !e.listed && e.by(s) {
			e.listed = true
			s.entries[n] = e
			n++
		}
	}
	clear(s.entries[n:])
	s.entries = s.entries[:n]
	for _, e := range s.entries {
		e.listed = false
	}
	return s.entries
}

// by: some route of the entry is there as long as the set is.
func (e *entry) by(s *hopset) bool {
	for i := range e.cands {
		if c := &e.cands[i]; c.set == s || c.of == s {
			return true
		}
	}
	return false
}

// alive: packets could be sent this way, as far as interfaces go.
func (f *FIB) alive(s *hopset) bool {
	for i := range s.hops {
		if f.ifs[s.hops[i].Iface].up {
			return true
		}
	}
	return s.typ != Unicast
}

// use counts one more entry that leads to the set, and gives it a group. The count is
// taken back by appending the set to f.left. The entry led to old before, which may be nil:
// a set without a group takes over the flows of the next hops that are in both.
func (f *FIB) use(s, old *hopset) error {
	if s.users == 0 {
		if err := f.activate(s, old); err != nil {
			return err
		}
	}
	s.users++
	return nil
}

func (f *FIB) activate(s, old *hopset) error {
	g, err := f.take(f.groups)
	if err != nil {
		return err
	}
	s.group = g
	s.ways = make([]*way, len(s.hops))
	for i := range s.hops {
		h := &s.hops[i]
		if !h.Via.IsValid() {
			continue
		}
		w := f.way(hopKey{h.Iface, h.Via}, uint16(h.MTU))
		w.sets = append(w.sets, s)
		s.ways[i] = w
		if e := f.adjacency(w); e != nil && err == nil {
			err = e
		}
	}
	if err == nil && len(s.hops) > 1 {
		s.share = newShare(s, old)
		n := len(s.share.base)
		if s.run, err = f.runs.get(n); err != nil && f.d.Pending() > 0 {
			f.d.Wait()
			s.run, err = f.runs.get(n)
		}
	}
	if err != nil {
		f.detach(s)
		f.groups.Put(g)
		return err
	}
	f.write(s)
	return nil
}

// deactivate retires the group of a set that no entry leads to.
func (f *FIB) deactivate(s *hopset) {
	f.detach(s)
	f.retired.groups = append(f.retired.groups, s.group)
	if s.run.n > 0 {
		f.retired.runs = append(f.retired.runs, s.run)
	}
	s.group, s.run = 0, run{}
}

// detach takes the set off its next hops.
func (f *FIB) detach(s *hopset) {
	for _, w := range s.ways {
		if w == nil {
			continue
		}
		if k := slices.Index(w.sets, s); k >= 0 {
			last := len(w.sets) - 1
			w.sets[k], w.sets[last] = w.sets[last], nil
			w.sets = w.sets[:last]
		}
		f.letGo(w)
	}
	s.ways, s.share = nil, nil
}

// word is the first half of a graph.Group, which is stored and loaded at once.
func word(adj uint16, exit graph.Reason, mask uint16) uint64 {
	return uint64(adj) | uint64(exit)<<16 | uint64(mask)<<32
}

// These hold for word.
const (
	_ = -(unsafe.Offsetof(graph.Group{}.Adj) ^ 0)
	_ = -(unsafe.Offsetof(graph.Group{}.Exit) ^ 2)
	_ = -(unsafe.Offsetof(graph.Group{}.Mask) ^ 4)
)

// store publishes a group; its At must have been written before.
func (f *FIB) store(g uint32, w uint64) {
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&f.t.Groups[g])), w)
}

// write makes the set's group say what its next hops are able to.
func (f *FIB) write(s *hopset) {
	f.changed = true
	g := s.group
	if s.typ != Unicast {
		f.store(g, word(0, reasonOf[s.typ], 0))
		return
	}
	var open *NextHop // the first that could be resolved
	usable := 0
	for i := range s.hops {
		h := &s.hops[i]
		if s.adj(i) != 0 {
			usable++
		} else if f.ifs[h.Iface].up && (open == nil || !open.Via.IsValid() && h.Via.IsValid()) {
			open = h
		}
	}
	if open == nil {
		open = &s.hops[0]
	}
	f.targets[g].Store(&target{open.Iface, open.Via})
	switch {
	case usable == 0:
		f.store(g, word(0, f.why.Unresolved, 0))
	case len(s.hops) == 1:
		f.store(g, word(s.adj(0), 0, 0))
	default:
		s.share.repair(func(i int) bool { return s.adj(i) != 0 })
		out := f.t.Buckets[s.run.at:][:s.run.n]
		f.t.Groups[g].At = s.run.at
		for b, m := range s.share.owner {
			if adj := s.adj(int(m)); out[b] != adj {
				mem.Store16(&out[b], adj)
			}
		}
		f.store(g, word(0, 0, uint16(s.run.n-1)))
	}
}

// adj is the adjacency of a hop, 0 while there is none.
func (s *hopset) adj(i int) uint16 {
	if w := s.ways[i]; w != nil {
		return w.adj
	}
	return 0
}

// Target is what has to be resolved before packets can go to dst by way of an
// unresolved group: an address on an interface, which is dst itself for connected
// destinations. It may be called from workers: it takes no lock.
func (f *FIB) Target(group uint16, dst netip.Addr) (iface uint16, nextHop netip.Addr, ok bool) {
	t := f.targets[group&(graph.MaxGroups-1)].Load()
	if t == nil {
		return 0, netip.Addr{}, false
	}
	if !t.via.IsValid() {
		return t.iface, dst, true
	}
	return t.iface, t.via, true
}

// SetHash says by what of a packet the next-hop groups tell flows apart, from the next vector on:
// flows may change their ways. A seed of 0 stands for packet.FlowSeed.
func (f *FIB) SetHash(h packet.Hasher) {
	h.Seed = cmp.Or(h.Seed, packet.FlowSeed)
	f.t.Hash.Store(&h)
}
