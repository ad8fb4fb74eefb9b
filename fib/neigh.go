package fib

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"millrace/pipeline/graph"
	"millrace/pmd"
)

// link is what the FIB knows of an interface.
type link struct {
	known, up bool
	table     *table // of packets that come in here; nil for main
	redirect  bool
	iface     graph.Iface // as the adjacencies were built
}

type hopKey struct {
	iface uint16
	addr  netip.Addr
}

// uses is what of the FIB concerns an interface.
type uses struct {
	sets map[*hopset]struct{} // with some next hop there
	hops map[*hop]struct{}
}

// hop is a neighbour that is known, or that some set in use sends to.
type hop struct {
	key   hopKey
	known bool
	mac   pmd.MAC
	ways  []*way // few: routes have few different MTUs
}

// way is a neighbour as the routes with one path MTU see it: an adjacency.
type way struct {
	hop  *hop
	mtu  uint16    // 0 for the interface's
	adj  uint16    // while reachable; else 0
	sets []*hopset // with a group
}

func (f *FIB) hop(k hopKey) *hop {
	h := f.hops[k]
	if h == nil {
		h = &hop{key: k}
		f.hops[k] = h
		if u := &f.uses[k.iface]; u.hops == nil {
			u.hops = map[*hop]struct{}{h: {}}
		} else {
			u.hops[h] = struct{}{}
		}
	}
	return h
}

func (f *FIB) way(k hopKey, mtu uint16) *way {
	h := f.hop(k)
	for _, w := range h.ways {
		if w.mtu == mtu {
			return w
		}
	}
	w := &way{hop: h, mtu: mtu}
	h.ways = append(h.ways, w)
	return w
}

// reachable: the way should have an adjacency.
func (f *FIB) reachable(w *way) bool {
	return w.hop.known && len(w.sets) > 0 && f.ifs[w.hop.key.iface].up
}

// adjacency gives a way its adjacency, where it should have one and has none.
func (f *FIB) adjacency(w *way) error {
	if w.adj != 0 || !f.reachable(w) {
		return nil
	}
	a, err := f.take(f.adjs)
	if err != nil {
		return err
	}
	f.t.Adjs[a] = f.build(w)
	w.adj = uint16(a)
	return nil
}

// letGo drops a way that no set uses.
func (f *FIB) letGo(w *way) {
	if len(w.sets) > 0 {
		return
	}
	if w.adj != 0 {
		f.retired.adjs = append(f.retired.adjs, uint32(w.adj))
		w.adj = 0
	}
	if k := slices.Index(w.hop.ways, w); k >= 0 {
		w.hop.ways = slices.Delete(w.hop.ways, k, k+1)
	}
	f.drop(w.hop)
}

// drop forgets a neighbour that is not known and that nothing uses.
func (f *FIB) drop(h *hop) {
	if !h.known && len(h.ways) == 0 {
		delete(f.hops, h.key)
		delete(f.uses[h.key.iface].hops, h)
	}
}

// former is the adjacency that a way had.
type former struct {
	w   *way
	adj uint16
}

// renew gives ways whose data changed other adjacencies, or none where they are not reachable, and
// moves their groups there: the first thing to do when a next hop fails, since no packet waits
// for the rest. The former ones are to be handed to retireAdjs, or to restore to take the change back. On
// an error nothing has changed.
func (f *FIB) renew(ways []*way) ([]former, error) {
	var fresh []uint32
	for _, w := range ways {
		if f.reachable(w) {
			a, err := f.take(f.adjs)
			if err != nil {
				f.adjs.Put(fresh...)
				return nil, err
			}
			fresh = append(fresh, a)
		}
	}
	old := make([]former, len(ways))
	for i, w := range ways {
		old[i] = former{w, w.adj}
		w.adj = 0
		if f.reachable(w) {
			f.t.Adjs[fresh[0]] = f.build(w)
			w.adj = uint16(fresh[0])
			fresh = fresh[1:]
		}
	}
	f.rewrite(old)
	return old, nil
}

// restore gives ways their former adjacencies back.
func (f *FIB) restore(old []former) {
	for _, o := range old {
		if o.w.adj != 0 {
			f.retired.adjs = append(f.retired.adjs, uint32(o.w.adj))
		}
		o.w.adj = o.adj
	}
	f.rewrite(old)
}

func (f *FIB) retireAdjs(old []former) {
	for _, o := range old {
		if o.adj != 0 {
			f.retired.adjs = append(f.retired.adjs, uint32(o.adj))
		}
	}
}

// rewrite writes the groups that use the ways, once each.
func (f *FIB) rewrite(ways []former) {
	var sets []*hopset
	for _, x := range ways {
		for _, s := range x.w.sets {
			if !s.queued {
				s.queued = true
				sets = append(sets, s)
			}
		}
	}
	for _, s := range sets {
		s.queued = false
		f.write(s)
	}
}

// EtherTypes, in host order.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVlan = 0x8100 // IEEE 802.1Q customer tag
	etherQinQ = 0x88a8 // IEEE 802.1Q service tag, outer of two
)

// build makes the adjacency of a way.
func (f *FIB) build(w *way) graph.Adj {
	h := w.hop
	l := &f.ifs[h.key.iface]
	i := &l.iface
	a := graph.Adj{Port: i.Port, Iface: h.key.iface, MTU: i.MTU}
	if w.mtu != 0 {
		a.MTU = min(a.MTU, w.mtu)
	}
	if l.redirect {
		a.Flags |= graph.AdjRedirect
	}
	var src [8]byte
	binary.LittleEndian.PutUint64(src[:], i.MAC)
	b := append(a.Head[:0], h.mac[:]...)
	b = append(b, src[2:]...)
	switch {
	case i.Inner != 0:
		b = binary.BigEndian.AppendUint16(b, etherQinQ)
		b = binary.BigEndian.AppendUint16(b, i.Outer)
		b = binary.BigEndian.AppendUint16(b, etherVlan)
		b = binary.BigEndian.AppendUint16(b, i.Inner)
	case i.Outer != 0:
		b = binary.BigEndian.AppendUint16(b, etherVlan)
		b = binary.BigEndian.AppendUint16(b, i.Outer)
	}
	b = binary.BigEndian.AppendUint16(b, etherIPv4)
	a.L2 = uint8(len(b))
	last := b[len(b)-14:]
	a.RW0 = binary.LittleEndian.Uint64(last)
	a.RW4 = binary.LittleEndian.Uint64(last[6:])
	v6 := uint16(etherIPv6)
	a.RW6 = a.RW4&(1<<48-1) | uint64(v6>>8|v6<<8)<<48
	return a
}

// IfaceOptions are the wishes for an interface that Tables.Ifaces does not hold.
type IfaceOptions struct {
	Redirect bool // packets that leave by where they came in owe the sender a redirect
}

// SetIface tells the FIB of an interface, or that its entry in Tables.Ifaces has
// changed: MAC, port, MTU, VLAN tags, or IfUp, without which routes over it are not used. The
// entry must not change during the call.
func (f *FIB) SetIface(iface uint16, o IfaceOptions) error {
	if iface == 0 || iface >= graph.MaxIfaces {
		return fmt.Errorf("fib: %w: interface %d", ErrInvalid, iface)
	}
	i := f.t.Ifaces[iface]
	var t *table
	if i.Table != 0 {
		f.mu.Lock()
		if i.Table < MaxTables {
			t = f.byHot[i.Table]
		}
		f.mu.Unlock()
		if t == nil {
			return fmt.Errorf("fib: %w: interface %d has table %d, which is no number from Table", ErrInvalid, iface, i.Table)
		}
	}
	return f.setLink(iface, link{known: true, table: t, up: i.Flags&graph.IfUp != 0, redirect: o.Redirect, iface: i})
}

// DelIface forgets an interface with its neighbours. Routes over it stay, unused.
func (f *FIB) DelIface(iface uint16) error {
	if iface == 0 || iface >= graph.MaxIfaces {
		return fmt.Errorf("fib: %w: interface %d", ErrInvalid, iface)
	}
	f.mu.Lock()
	l := f.ifs[iface]
	var gone []netip.Addr
	for h := range f.uses[iface].hops {
		if h.known {
			gone = append(gone, h.key.addr)
		}
	}
	f.mu.Unlock()
	l.up = false
	if err := f.setLink(iface, l); err != nil {
		return err
	}
	for _, a := range gone {
		if err := f.DelNeighbour(iface, a); err != nil {
			return err
		}
	}
	return f.setLink(iface, link{})
}

// setLink changes what is known of an interface. First the groups follow, so that flows
// leave next hops that are gone; then the routes that have no next hop left, or have one again. The mutex
// is held throughout, so that the change can be taken back as one: no packet waits for it, but other changes do, while
// all routes of a full table turn.
func (f *FIB) setLink(iface uint16, l link) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.ifs[iface]
	if old == l {
		return nil
	}
	u := &f.uses[iface]
	f.setTable(iface, old, l)
	var ways []*way
	for h := range u.hops {
		ways = append(ways, h.ways...)
	}
	adjs, err := f.renew(ways)
	if err != nil {
		f.setTable(iface, l, old)
		_ = f.settle(func() {}) // as it was
		return err
	}
	var turned, onlink []*hopset
	if old.up != l.up {
		for s := range u.sets {
			f.ifs[iface] = old
			was := f.alive(s)
			f.ifs[iface] = l
			if f.alive(s) != was {
				turned = append(turned, s)
			}
			if s.onlink && s.users > 0 { // whom to ask may be another
				onlink = append(onlink, s)
				f.write(s)
			}
		}
	}
	for _, s := range turned {
		for _, e := range s.entriesOf() {
			f.mark(e)
		}
	}
	if old.up != l.up {
		for h := range u.hops {
			if h.known {
				f.markNear(h)
			}
		}
	}
	if err := f.settle(func() {
		f.setTable(iface, l, old)
		f.restore(adjs)
		for _, s := range onlink {
			f.write(s)
		}
	}); err != nil {
		return err
	}
	f.retireAdjs(adjs)
	f.retire()
	return f.renewMulticast(iface)
}

// setTable changes what the FIB knows of an interface, and who holds tables for it.
func (f *FIB) setTable(iface uint16, old, l link) {
	f.ifs[iface] = l
	if l.table != nil {
		f.pin(l.table)
		f.vrfs++
	}
	if old.table != nil {
		f.unpin(old.table)
		f.vrfs--
	}
	if old.table != l.table || (old.iface.Flags^l.iface.Flags)&ifChecks != 0 || old.known != l.known {
		f.stale = true
	}
}

// ifChecks are the flags of interfaces that ask for the check of sources.
const ifChecks = graph.IfLoose4 | graph.IfStrict4 | graph.IfLoose6 | graph.IfStrict6

// SetNeighbour says that addr is at mac on the interface. Routes via addr get their
// adjacency, and addr a host entry where the route to it is on-link there.
func (f *FIB) SetNeighbour(iface uint16, addr netip.Addr, mac pmd.MAC) error {
	if iface == 0 || iface >= graph.MaxIfaces || !addr.IsValid() || addr.IsUnspecified() || addr.IsMulticast() {
		return fmt.Errorf("fib: %w: neighbour %v on interface %d", ErrInvalid, addr, iface)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hop(hopKey{iface, plain(addr)})
	if h.known && h.mac == mac {
		return nil
	}
	was, oldMAC := h.known, h.mac
	h.known, h.mac = true, mac
	adjs, err := f.renew(h.ways)
	if err != nil {
		h.known, h.mac = was, oldMAC
		f.drop(h)
		f.sweep()
		return err
	}
	if was {
		f.retireAdjs(adjs)
		f.sweep()
		return nil
	}
	f.nearby(h, 1)
	return f.settle(func() {
		f.nearby(h, -1)
		h.known = false
		f.restore(adjs)
		f.drop(h)
	})
}

// DelNeighbour says that addr can no longer be reached at its Ethernet address; one that is
// not known is ignored. It may fail where the route that the address falls back to has no group
// yet and there is none left.
func (f *FIB) DelNeighbour(iface uint16, addr netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.hops[hopKey{iface, plain(addr)}]
	if h == nil || !h.known {
		return nil
	}
	h.known = false
	adjs, _ := f.renew(h.ways) // it needs none
	f.nearby(h, -1)
	if err := f.settle(func() {
		h.known = true
		f.restore(adjs)
		f.nearby(h, 1)
	}); err != nil {
		return err
	}
	f.retireAdjs(adjs)
	f.drop(h)
	f.retire()
	return nil
}

// nearby counts the neighbours at an address in all tables that have host entries for it.
func (f *FIB) nearby(h *hop, n int) {
	f.beside(f.main, h.key.addr, n)
	for _, t := range f.tables {
		if t.links[h.key.iface] {
			f.beside(t, h.key.addr, n)
		}
	}
}

// markNear marks the entries of a known neighbour.
func (f *FIB) markNear(h *hop) {
	p := netip.PrefixFrom(h.key.addr, h.key.addr.BitLen())
	if e, ok := f.main.near.Get(p); ok {
		f.mark(e)
	}
	for _, t := range f.tables {
		if e, ok := t.near.Get(p); ok {
			f.mark(e)
		}
	}
}
