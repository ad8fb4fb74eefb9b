package fib

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"
	"unsafe" // a group's first 64 bits stored as one word

	"millrace/internal/mem"
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
	run    run // buckets, for several next hops
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
	Martian: XMartian, LinkLocal: XLinkLocal, LimitedBroadcast: XBroadcast,
}

// intern finds or makes the set of next hops.
func (f *FIB) intern(typ RouteType, hops []NextHop) *hopset {
	var one [1]NextHop
	canon := one[:0]
	if len(hops) > 1 {
		canon = make([]NextHop, 0, len(hops))
	}
	for _, h := range hops {
		canon = append(canon, NextHop{Via: plain(h.Via), Iface: h.Iface, Weight: max(h.Weight, 1)})
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
	}
	f.key = k
	if s := f.sets[string(k)]; s != nil {
		return s
	}
	s := &hopset{key: string(k), typ: typ, hops: slices.Clone(canon)}
	s.onlink = slices.ContainsFunc(s.hops, func(h NextHop) bool { return !h.Via.IsValid() })
	f.sets[s.key] = s
	return s
}

// merge sorts next hops, adds the weights of equal ones and divides by the common divisor.
func merge(hops []NextHop) []NextHop {
	slices.SortFunc(hops, func(a, b NextHop) int {
		return cmp.Or(cmp.Compare(a.Iface, b.Iface), a.Via.Compare(b.Via))
	})
	n, div := 0, 0
	for _, h := range hops {
		if n > 0 && hops[n-1].Iface == h.Iface && hops[n-1].Via == h.Via {
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
	if s.refs == 0 && s.users == 0 {
		delete(f.sets, s.key)
	}
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
// taken back by appending the set to f.left.
func (f *FIB) use(s *hopset) error {
	if s.users == 0 {
		if err := f.activate(s); err != nil {
			return err
		}
	}
	s.users++
	return nil
}

func (f *FIB) activate(s *hopset) error {
	g, err := f.take(f.groups)
	if err != nil {
		return err
	}
	s.group = g
	for i := range s.hops {
		h := &s.hops[i]
		if !h.Via.IsValid() {
			continue
		}
		n := f.hop(hopKey{h.Iface, h.Via})
		n.sets = append(n.sets, s)
		if e := f.adjacency(n); e != nil && err == nil {
			err = e
		}
	}
	if err == nil && len(s.hops) > 1 {
		n := buckets(s.hops)
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
	for i := range s.hops {
		if h := &s.hops[i]; h.Via.IsValid() {
			n := f.hops[hopKey{h.Iface, h.Via}]
			if k := slices.Index(n.sets, s); k >= 0 {
				last := len(n.sets) - 1
				n.sets[k], n.sets[last] = n.sets[last], nil
				n.sets = n.sets[:last]
			}
			f.letGo(n)
		}
	}
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
	adjs := make([]uint16, len(s.hops))
	for i := range s.hops {
		h := &s.hops[i]
		if h.Via.IsValid() {
			adjs[i] = f.hops[hopKey{h.Iface, h.Via}].adj
		}
		if adjs[i] != 0 {
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
		f.store(g, word(adjs[0], 0, 0))
	default:
		out := f.t.Buckets[s.run.at:][:s.run.n]
		f.t.Groups[g].At = s.run.at
		share(s.hops, adjs, usable, func(b int, adj uint16) {
			if out[b] != adj {
				mem.Store16(&out[b], adj)
			}
		})
		f.store(g, word(0, 0, uint16(s.run.n-1)))
	}
}

// buckets is the length of the bucket table of a set: eight for each unit of weight, so
// that flows stay near their shares when next hops fail, within bounds.
func buckets(hops []NextHop) int {
	sum := 0
	for _, h := range hops {
		sum += h.Weight
	}
	n := 16
	for n < 8*sum && n < 2048 {
		n *= 2
	}
	return n
}

// share deals the buckets of a set. Each next hop owns its share, whether usable or not; only
// buckets of those that are not usable go to the others, so that flows of the rest stay where
// they are.
func share(hops []NextHop, adjs []uint16, usable int, set func(bucket int, adj uint16)) {
	n := buckets(hops)
	deal := func(n int, take func(i int) bool, give func(k, i int)) {
		sum, acc := 0, 0
		for i := range hops {
			if take(i) {
				sum += hops[i].Weight
			}
		}
		k := 0
		for i := range hops {
			if !take(i) {
				continue
			}
			acc += hops[i].Weight
			for ; k < (acc*n+sum/2)/sum; k++ {
				give(k, i)
			}
		}
	}
	var orphans []int
	deal(n, func(int) bool { return true }, func(k, i int) {
		if adjs[i] != 0 {
			set(k, adjs[i])
		} else {
			orphans = append(orphans, k)
		}
	})
	deal(len(orphans), func(i int) bool { return adjs[i] != 0 }, func(k, i int) {
		set(orphans[k], adjs[i])
	})
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
