package fib

import (
	"net/netip"

	"millrace/packet"
	"millrace/pmd"
)

// Explained is the way of one flow: what a lookup finds, and what the next-hop stage makes of it.
type Explained struct {
	Result
	Hash    packet.Hasher // by which flows are told apart
	Buckets int           // of the group; 0 for a single next hop
	Bucket  int           // the flow's; meaningless without Buckets
	Adj     uint16        // adjacency that the flow's packets leave by; 0 where Exit is set
	Iface   uint16        // with Adj: where they leave
	MTU     int           // with Adj: the largest packet
	Chosen  int           // the flow's place in Members; -1 where there is no Adj
	Members []Member      // next hops of the group, in the order of the route's NextHops
}

// Member is a next hop of a group.
type Member struct {
	NextHop
	Up      bool    // the interface is
	MAC     pmd.MAC // of the neighbour, where Known
	Known   bool    // the neighbour is resolved
	Adj     uint16  // 0 while it cannot be sent to, or where destinations are neighbours themselves
	Buckets int     // that it has at present; 0 in a group of one
}

// Explain says which way packets of a flow to k.Dst take by a table, by the kernel's number. Of the key
// only Dst is needed: another source is another flow of those that the next hops share. ok is
// false where the table does not exist or nothing leads to it.
func (f *FIB) Explain(table uint32, k packet.FlowKey) (x Explained, ok bool) {
	k.Dst = k.Dst.WithZone("")
	k.Src = k.Src.WithZone("")
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.at(table)
	if t == nil || !k.Dst.IsValid() {
		return x, false
	}
	if !k.Src.IsValid() || k.Src.Is4() != k.Dst.Is4() {
		if k.Src = netip.IPv6Unspecified(); k.Dst.Is4() {
			k.Src = netip.IPv4Unspecified()
		}
	}
	x.Result, x.Chosen = f.result(t, k.Dst), -1
	x.Hash = *f.t.Hash.Load()
	if g := &f.t.Groups[x.Group]; g.Exit == 0 {
		x.Adj = g.Adj
		if g.Mask != 0 {
			x.Buckets = int(g.Mask) + 1
			x.Bucket = int(x.Hash.Key(k) & uint32(g.Mask))
			x.Adj = f.t.Buckets[int(g.At)+x.Bucket]
		}
		a := &f.t.Adjs[x.Adj]
		x.Iface, x.MTU = a.Iface, int(a.MTU)
	}
	var s *hopset
	for _, e := range t.rib.Supernets(netip.PrefixFrom(k.Dst, k.Dst.BitLen())) {
		if e.inst != nil {
			s = e.inst
			break
		}
	}
	if s == nil || uint16(s.group) != x.Group {
		return x, t.mapped(family(k.Dst))
	}
	for i, h := range s.hops {
		m := Member{NextHop: h, Up: f.ifs[h.Iface].up, Adj: s.adj(i)}
		if n := f.hops[hopKey{h.Iface, h.Via}]; n != nil {
			m.Known, m.MAC = n.known, n.mac
		}
		if s.share != nil && m.Adj != 0 {
			for _, o := range s.share.owner {
				if int(o) == i {
					m.Buckets++
				}
			}
		}
		if x.Adj != 0 && m.Adj == x.Adj {
			x.Chosen = i
		}
		x.Members = append(x.Members, m)
	}
	return x, t.mapped(family(k.Dst))
}
