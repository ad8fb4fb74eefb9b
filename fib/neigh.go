package fib

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"millrace/pipeline/graph"
	"millrace/pmd"
)

// link is what the FIB knows of an interface.
type link struct {
	known, up bool
	redirect  bool
	iface     graph.Iface // as the adjacencies were built
}

type hopKey struct {
	iface uint16
	addr  netip.Addr
}

// hop is a neighbour that is known, or that some set in use sends to.
type hop struct {
	key   hopKey
	known bool
	mac   pmd.MAC
	adj   uint16    // while known, in use and the interface up; else 0
	sets  []*hopset // with a group
}

func (f *FIB) hop(k hopKey) *hop {
	h := f.hops[k]
	if h == nil {
		h = &hop{key: k}
		f.hops[k] = h
	}
	return h
}

// adjacency gives a neighbour its adjacency, where it should have one and has none.
func (f *FIB) adjacency(h *hop) error {
	if h.adj != 0 || !h.known || len(h.sets) == 0 || !f.ifs[h.key.iface].up {
		return nil
	}
	a, err := f.take(f.adjs)
	if err != nil {
		return err
	}
	f.t.Adjs[a] = f.build(h)
	h.adj = uint16(a)
	return nil
}

// letGo drops what a neighbour no longer needs.
func (f *FIB) letGo(h *hop) {
	if len(h.sets) > 0 {
		return
	}
	if h.adj != 0 {
		f.retired.adjs = append(f.retired.adjs, uint32(h.adj))
		h.adj = 0
	}
	if !h.known {
		delete(f.hops, h.key)
	}
}

// refresh gives a neighbour whose data changed a new adjacency, and moves its groups there before the
// old one is retired. On an error nothing has changed.
func (f *FIB) refresh(h *hop) error {
	old := h.adj
	h.adj = 0
	if err := f.adjacency(h); err != nil {
		h.adj = old
		return err
	}
	if h.adj != old {
		for _, s := range h.sets {
			f.write(s)
		}
	}
	if old != 0 {
		f.retired.adjs = append(f.retired.adjs, uint32(old))
	}
	return nil
}

// EtherTypes, in host order.
const (
	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherVlan = 0x8100 // IEEE 802.1Q customer tag
	etherQinQ = 0x88a8 // IEEE 802.1Q service tag, outer of two
)

// build makes the adjacency of a neighbour.
func (f *FIB) build(h *hop) graph.Adj {
	l := &f.ifs[h.key.iface]
	i := &l.iface
	a := graph.Adj{Port: i.Port, Iface: h.key.iface, MTU: i.MTU}
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
	return f.setLink(iface, link{known: true, up: i.Flags&graph.IfUp != 0, redirect: o.Redirect, iface: i})
}

// DelIface forgets an interface with its neighbours. Routes over it stay, unused.
func (f *FIB) DelIface(iface uint16) error {
	if iface == 0 || iface >= graph.MaxIfaces {
		return fmt.Errorf("fib: %w: interface %d", ErrInvalid, iface)
	}
	f.mu.Lock()
	var gone []netip.Addr
	for k, h := range f.hops {
		if k.iface == iface && h.known {
			gone = append(gone, k.addr)
		}
	}
	f.mu.Unlock()
	for _, a := range gone {
		if err := f.DelNeighbour(iface, a); err != nil {
			return err
		}
	}
	return f.setLink(iface, link{})
}

func (f *FIB) setLink(iface uint16, l link) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.ifs[iface]
	if old == l {
		return nil
	}
	f.ifs[iface] = l
	if l.up { // adjacencies before routes that lead to them
		if err := f.rebuild(iface); err != nil {
			f.ifs[iface] = old
			f.sweep()
			return err
		}
	}
	if old.up != l.up {
		for _, e := range f.rib.All() {
			for i := range e.cands {
				if c := &e.cands[i]; c.set.over(iface) || c.of != nil && c.of.over(iface) {
					f.mark(e)
					break
				}
			}
		}
	}
	err := f.settle(func() {
		f.ifs[iface] = old
		if l.up {
			_ = f.rebuild(iface) // it was down: nothing to build
		}
	})
	if err == nil && !l.up {
		err = f.rebuild(iface)
		f.sweep()
	}
	if err == nil {
		err = f.renewMulticast(iface)
	}
	return err
}

// rebuild gives the neighbours of an interface adjacencies by its present state, or takes them
// away. On an error nothing has changed.
func (f *FIB) rebuild(iface uint16) error {
	var hops []*hop
	var fresh []uint32
	for k, h := range f.hops {
		if k.iface != iface || len(h.sets) == 0 || !h.known {
			continue
		}
		hops = append(hops, h)
		if f.ifs[iface].up {
			a, err := f.take(f.adjs)
			if err != nil {
				f.adjs.Put(fresh...)
				return err
			}
			fresh = append(fresh, a)
		}
	}
	for i, h := range hops {
		old := h.adj
		h.adj = 0
		if f.ifs[iface].up {
			f.t.Adjs[fresh[i]] = f.build(h)
			h.adj = uint16(fresh[i])
		}
		if old != 0 {
			f.retired.adjs = append(f.retired.adjs, uint32(old))
		}
	}
	for _, s := range f.sets {
		if s.users > 0 && s.over(iface) {
			f.write(s)
		}
	}
	return nil
}

// over: some next hop leaves by the interface.
func (s *hopset) over(iface uint16) bool {
	for i := range s.hops {
		if s.hops[i].Iface == iface {
			return true
		}
	}
	return false
}

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
	if err := f.refresh(h); err != nil {
		h.known, h.mac = was, oldMAC
		f.letGo(h)
		f.sweep()
		return err
	}
	if was {
		f.sweep()
		return nil
	}
	f.nearby(h, 1)
	return f.settle(func() {
		f.nearby(h, -1)
		f.lose(h)
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
	f.nearby(h, -1)
	if err := f.settle(func() {
		h.known = true
		f.nearby(h, 1)
	}); err != nil {
		return err
	}
	f.lose(h)
	f.sweep()
	return nil
}

// lose makes a neighbour unknown.
func (f *FIB) lose(h *hop) {
	h.known = false
	if h.adj != 0 {
		f.retired.adjs = append(f.retired.adjs, uint32(h.adj))
		h.adj = 0
		for _, s := range h.sets {
			f.write(s)
		}
	}
	f.letGo(h)
}

// nearby counts the neighbours at an address and marks its entry. Link-local addresses have none:
// they are never forwarded to.
func (f *FIB) nearby(h *hop, n int) {
	a := h.key.addr
	if a.IsLinkLocalUnicast() {
		return
	}
	p := netip.PrefixFrom(a, a.BitLen())
	e := f.entry(p)
	e.near += n
	if e.near == 0 {
		f.near.Delete(p)
	} else if e.near == n {
		f.near.Insert(p, e)
	}
	f.mark(e)
}
