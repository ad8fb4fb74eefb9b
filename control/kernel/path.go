package kernel

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Path is what a route does with packets. Routes that do the same share one; it never changes.
type Path struct {
	Type     RouteType
	Protocol uint8 // RTPROT_*: who brought it
	Pref     int8  // of IPv6, by RFC 4191: 1 high, 0 medium, -1 low
	Hops     []NextHop
	Src      netip.Addr // preferred source, or zero
	MTU      int        // of the path, 0 where the route sets none
	Locked   bool       // path MTU discovery does not change MTU
	Encap    bool       // some next hop encapsulates (MPLS, seg6 ...)
	Object   uint32     // next-hop object or group (`ip nexthop`) that Hops stands for, or 0
}

// NextHop is one way that a route may take; while its link is down it is none. It is comparable.
type NextHop struct {
	Index  int        // link
	Via    netip.Addr // gateway; zero for a connected prefix. It may be of the other family (RFC 8950)
	Weight int        // 1 and more
	OnLink bool       // Via is a neighbour though no prefix of the link has it
	Encap  bool
}

func (p *Path) equal(o *Path) bool {
	return p.Type == o.Type && p.Protocol == o.Protocol && p.Pref == o.Pref && p.Src == o.Src && p.MTU == o.MTU && p.Locked == o.Locked &&
		p.Encap == o.Encap && p.Object == o.Object && slices.Equal(p.Hops, o.Hops)
}

// parsed is a route as a message tells it. Its slices are reused by the next.
type parsed struct {
	key  key
	from netip.Prefix // key.from stands for it
	path Path
	odd  []byte // attributes that tell routes apart and mean nothing here
}

// paths numbers all different Paths of each family, from 1. Where a route's Object changes, its path gets another number.
type paths struct {
	by      map[string]uint32
	all     []pathEntry
	free    []uint32
	scratch []byte
	last    uint32
	lastKey string

	objects  map[uint32]object
	byObject map[uint32][]uint32 // paths by their Object
	altered  map[uint32]bool     // objects that changed since the last moves
	moved    map[uint32]uint32   // paths that became others, or 0: gone
	unused   []uint32            // paths whose refs were 0 at some time
}

type pathEntry struct {
	*Path
	family uint8  // AF_INET or AF_INET6
	key    string // in by; "" for one that no route gets any more
	refs   int
}

func newPaths() paths {
	return paths{by: map[string]uint32{}, all: make([]pathEntry, 1), objects: map[uint32]object{}, byObject: map[uint32][]uint32{},
		altered: map[uint32]bool{}, moved: map[uint32]uint32{}}
}

// encode writes what tells a path from others into scratch. The next hops of an object are not part of it.
func (ps *paths) encode(p *parsed) {
	b := append(ps.scratch[:0], p.key.family, byte(p.path.Type), p.path.Protocol, byte(p.path.Pref), bit(p.path.Locked))
	b = native.AppendUint32(b, uint32(p.path.MTU))
	b = native.AppendUint32(b, p.path.Object)
	b = addrBytes(b, p.path.Src)
	if p.path.Object == 0 {
		for i := range p.path.Hops {
			h := &p.path.Hops[i]
			b = native.AppendUint32(b, uint32(h.Index))
			b = native.AppendUint32(b, uint32(h.Weight))
			b = append(b, bit(h.OnLink)|bit(h.Encap)<<1)
			b = addrBytes(b, h.Via)
		}
	}
	ps.scratch = append(b, p.odd...)
}

func bit(b bool) byte {
	if b {
		return 1
	}
	return 0
}

func addrBytes(b []byte, a netip.Addr) []byte {
	switch {
	case !a.IsValid():
		return append(b, 0)
	case a.Is4():
		x := a.As4()
		return append(append(b, 4), x[:]...)
	}
	x := a.As16()
	return append(append(b, 6), x[:]...)
}

// find is the number of a path, or 0.
func (ps *paths) find(p *parsed) uint32 {
	ps.encode(p)
	if ps.last != 0 && string(ps.scratch) == ps.lastKey {
		return ps.last
	}
	return ps.by[string(ps.scratch)]
}

// intern is the number of a path, which it gets if it has none.
func (ps *paths) intern(p *parsed) uint32 {
	id := ps.find(p)
	if id == 0 {
		k, x := string(ps.scratch), p.path
		x.Hops = slices.Clone(p.path.Hops)
		if x.Object != 0 {
			ps.expand(&x)
		}
		id = ps.add(p.key.family, k, &x)
		if x.Object != 0 {
			ps.byObject[x.Object] = append(ps.byObject[x.Object], id)
		}
	}
	ps.last, ps.lastKey = id, ps.all[id].key
	return id
}

func (ps *paths) add(family uint8, key string, p *Path) (id uint32) {
	for _, h := range p.Hops {
		p.Encap = p.Encap || h.Encap
	}
	if n := len(ps.free); n != 0 {
		id, ps.free = ps.free[n-1], ps.free[:n-1]
	} else {
		id = uint32(len(ps.all))
		ps.all = append(ps.all, pathEntry{})
	}
	ps.all[id] = pathEntry{Path: p, family: family, key: key}
	if key != "" {
		ps.by[key] = id
	}
	ps.unused = append(ps.unused, id)
	return id
}

func (ps *paths) ref(id uint32) { ps.all[id].refs++ }

func (ps *paths) unref(id uint32) {
	if ps.all[id].refs--; ps.all[id].refs == 0 {
		ps.unused = append(ps.unused, id)
	}
}

// reclaim frees the numbers that no route has, when nobody remembers them.
func (ps *paths) reclaim() {
	for _, id := range ps.unused {
		e := &ps.all[id]
		if e.refs != 0 || e.Path == nil {
			continue
		}
		ps.retire(id)
		*e = pathEntry{}
		ps.free = append(ps.free, id)
	}
	ps.unused = ps.unused[:0]
}

// retire makes a path that no other route will have.
func (ps *paths) retire(id uint32) {
	e := &ps.all[id]
	if e.key == "" {
		return
	}
	delete(ps.by, e.key)
	e.key = ""
	if ps.last == id {
		ps.last = 0
	}
	if o := e.Object; o != 0 {
		if left := slices.DeleteFunc(ps.byObject[o], func(p uint32) bool { return p == id }); len(left) == 0 {
			delete(ps.byObject, o)
		} else {
			ps.byObject[o] = left
		}
	}
}

// expand gives a path the next hops of its object. Those that the message named stay where the object is not
// known: it is about to be announced.
func (ps *paths) expand(p *Path) {
	o, known := ps.objects[p.Object]
	if !known {
		return
	}
	var hole bool
	p.Hops, hole = o.hops(ps.objects)
	if hole {
		p.Type, p.Hops = Blackhole, nil
	}
}

// hops is what a next-hop object stands for: itself, or the members of a group that are there.
func (o *object) hops(all map[uint32]object) (hs []NextHop, blackhole bool) {
	if len(o.group) == 0 {
		if o.hop.Index == 0 {
			return nil, o.blackhole
		}
		return []NextHop{o.hop}, o.blackhole
	}
	for _, m := range o.group {
		x := all[m.id]
		if x.blackhole {
			return nil, true
		}
		if h := x.hop; h.Index != 0 {
			h.Weight = m.weight
			hs = append(hs, h)
		}
	}
	if len(hs) == 1 {
		hs[0].Weight = 1 // it has no one to share with
	}
	return hs, false
}

// setObject takes an object that the kernel has.
func (ps *paths) setObject(id uint32, o object) {
	if old, known := ps.objects[id]; known && old.equal(&o) {
		return
	}
	ps.objects[id] = o
	ps.altered[id] = true
}

// delObject takes the end of an object: the kernel removes its routes without a word (IPv4, and IPv6
// where nexthop_compat_mode is off), and those that it gets later are of another object by the same number.
func (ps *paths) delObject(id uint32) {
	delete(ps.objects, id)
	ps.altered[id] = true // groups may have it
	for _, p := range slices.Clone(ps.byObject[id]) {
		ps.lose(p)
	}
}

// setObjects takes the whole list.
func (ps *paths) setObjects(all map[uint32]object) {
	for id := range ps.objects {
		if _, there := all[id]; !there {
			ps.delObject(id)
		}
	}
	for id, o := range all {
		ps.setObject(id, o)
	}
}

// leave says that a link is gone, and with it all next hops by it. What becomes of a path of several
// is found by no message of the kernel before a dump says how it tells it.
func (ps *paths) leave(index int) {
	gone := func(h NextHop) bool { return h.Index == index }
	for id := uint32(1); id < uint32(len(ps.all)); id++ {
		e := ps.all[id]
		if _, done := ps.moved[id]; done || e.Path == nil || !slices.ContainsFunc(e.Hops, gone) {
			continue
		}
		x := *e.Path
		x.Hops = slices.DeleteFunc(slices.Clone(x.Hops), gone)
		ps.lose(id)
		if len(x.Hops) != 0 {
			ps.moved[id] = ps.add(e.family, "", &x)
		}
	}
}

// lose says that the routes of a path are gone. Those that come are of another.
func (ps *paths) lose(id uint32) {
	ps.moved[id] = 0
	ps.retire(id)
}

// lose4 says that the IPv4 routes are gone whose path which names.
func (ps *paths) lose4(which func(*Path) bool) {
	for id := uint32(1); id < uint32(len(ps.all)); id++ {
		if e := &ps.all[id]; e.Path != nil && e.family == unix.AF_INET && which(e.Path) {
			if _, done := ps.moved[id]; !done {
				ps.lose(id)
			}
		}
	}
}

// now is what became of a path; 0 where it is gone.
func (ps *paths) now(id uint32) uint32 {
	for {
		n, moved := ps.moved[id]
		if !moved {
			return id
		}
		id = n
	}
}

// moves works out what became of the paths of altered objects; true where some path is another.
func (ps *paths) moves() bool {
	if len(ps.altered) != 0 {
		for object, ids := range ps.byObject {
			o, known := ps.objects[object]
			if !known || !ps.altered[object] && !slices.ContainsFunc(o.group, func(m member) bool { return ps.altered[m.id] }) {
				continue
			}
			for _, id := range slices.Clone(ids) {
				e := ps.all[id]
				x := *e.Path
				if x.Type == Blackhole {
					x.Type = Unicast
				}
				ps.expand(&x)
				x.Encap = slices.ContainsFunc(x.Hops, func(h NextHop) bool { return h.Encap })
				if x.equal(e.Path) {
					continue
				}
				ps.retire(id)
				ps.moved[id] = ps.add(e.family, e.key, &x)
				ps.byObject[object] = append(ps.byObject[object], ps.moved[id])
			}
		}
		clear(ps.altered)
	}
	return len(ps.moved) != 0
}

// object is a next-hop object or group (RTM_NEWNEXTHOP).
type object struct {
	hop       NextHop
	blackhole bool
	group     []member
}

type member struct {
	id     uint32
	weight int
}

func (o *object) equal(x *object) bool {
	return o.hop == x.hop && o.blackhole == x.blackhole && slices.Equal(o.group, x.group)
}

// linux/rtnetlink.h and linux/nexthop.h.
const (
	rtaNhID      = 30
	sizeofNhMsg  = 8
	nhaID        = 1
	nhaGroup     = 2
	nhaBlackhole = 4
	nhaOIF       = 5
	nhaGateway   = 6
	nhaEncapType = 7
	nhaFDB       = 11
)

// parseObject reads an nhmsg; id is 0 where it is none of those that routes use.
func parseObject(b []byte) (id uint32, o object) {
	if len(b) < sizeofNhMsg {
		return 0, o
	}
	o.hop.Weight = 1
	o.hop.OnLink = native.Uint32(b[4:])&unix.RTNH_F_ONLINK != 0
	for t, v := range attrs(b[sizeofNhMsg:]) {
		switch t {
		case nhaID:
			id = u32(v)
		case nhaGroup:
			// struct nexthop_grp; its weight has 16 bits where the kernel has any in the third field.
			for ; len(v) >= 8; v = v[8:] {
				o.group = append(o.group, member{u32(v), int(v[4]) + 1 + int(v[5])<<8})
			}
		case nhaBlackhole:
			o.blackhole = true
		case nhaOIF:
			o.hop.Index = int(u32(v))
		case nhaGateway:
			o.hop.Via = ipAddr(v)
		case nhaEncapType:
			o.hop.Encap = true
		case nhaFDB: // of VXLAN: no route's
			return 0, object{}
		}
	}
	return id, o
}
