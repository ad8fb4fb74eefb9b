package fpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"millrace/control/kernel"
	"millrace/control/rib"
	"millrace/fib"
)

// Frame header: fpm/fpm.h of FRR.
const (
	headerSize   = 4
	version      = 1
	typeNetlink  = 1
	typeProtobuf = 2
)

// native is the byte order of netlink's numbers.
var native = binary.NativeEndian

// reader makes changes of a set of the messages of one connection. It is for one goroutine.
type reader struct {
	set   *rib.Set
	n     *counts
	takes func(table uint32) bool

	objects map[uint32]kernel.Object
	parents map[uint32][]uint32 // groups by the objects that they name
	members int                 // of all groups
	known   atomic.Int64        // len(objects)

	changes []rib.Change
	hops    []rib.Hop
	object  uint32 // that the route being read names
	hopsOf  func(uint32) ([]kernel.NextHop, bool)
}

func (r *reader) init() {
	r.objects, r.parents = map[uint32]kernel.Object{}, map[uint32][]uint32{}
	r.hopsOf = func(id uint32) ([]kernel.NextHop, bool) {
		r.object = id
		return nil, false
	}
}

// changesMost is when changes are handed on while there are still frames to read: zebra may say that a route
// goes and then comes in one frame, so that a frame is never split.
const changesMost = 1024

// frames takes the whole frames at the start of b and returns how many bytes they are. An error says
// why the connection cannot go on.
func (r *reader) frames(b []byte) (used int, err error) {
	for len(b)-used >= headerSize {
		h := b[used:]
		n := int(binary.BigEndian.Uint16(h[2:]))
		switch {
		case h[0] != version:
			return used, fmt.Errorf("fpm: a frame of version %d, not 1: is this the forwarding plane manager's protocol?", h[0])
		case h[1] == typeProtobuf:
			return used, errors.New("fpm: the daemon sends protobuf, netlink is wanted: run zebra with -M dplane_fpm_nl, or `-M fpm:netlink`")
		case h[1] != typeNetlink:
			return used, fmt.Errorf("fpm: a frame of type %d, not 1 (netlink)", h[1])
		case n < headerSize:
			return used, fmt.Errorf("fpm: a frame of %d bytes, less than its header", n)
		}
		if len(h) < n {
			break
		}
		if err := r.messages(h[headerSize:n]); err != nil {
			return used, err
		}
		r.n.frames.Add(1)
		used += n
		if len(r.changes) >= changesMost {
			r.flush()
		}
	}
	return used, nil
}

// flush hands on the changes so far.
func (r *reader) flush() {
	if len(r.changes) == 0 {
		return
	}
	if refused := r.set.Apply(r.changes); refused != 0 {
		r.n.refused.Add(uint64(refused))
	}
	clear(r.changes)
	r.changes = r.changes[:0]
}

// messages takes the netlink messages of a frame.
func (r *reader) messages(b []byte) error {
	for len(b) > 0 {
		if len(b) < unix.NLMSG_HDRLEN {
			return fmt.Errorf("fpm: %d bytes at the end of a frame are no netlink message", len(b))
		}
		n := int(native.Uint32(b))
		if n < unix.NLMSG_HDRLEN || n > len(b) {
			return fmt.Errorf("fpm: a netlink message of %d bytes where the frame has %d", n, len(b))
		}
		if err := r.message(native.Uint16(b[4:]), b[unix.NLMSG_HDRLEN:n]); err != nil {
			return err
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return nil
}

func (r *reader) message(typ uint16, body []byte) error {
	head := unix.SizeofRtMsg
	switch typ {
	case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
		head = sizeofNhMsg
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
	default:
		r.n.other.Add(1)
		return nil
	}
	if len(body) < head {
		return fmt.Errorf("fpm: a netlink message of type %d and %d bytes is too short", typ, len(body))
	}
	if !wellFormed(body[head:]) {
		return fmt.Errorf("fpm: the attributes of a netlink message of type %d do not fit it", typ)
	}
	switch typ {
	case unix.RTM_NEWNEXTHOP:
		return r.setObject(kernel.ParseObject(body))
	case unix.RTM_DELNEXTHOP:
		id, _ := kernel.ParseObject(body)
		r.delObject(id)
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		if body[0] == unix.AF_MPLS {
			r.n.labels.Add(1)
			return nil
		}
		r.route(body, typ == unix.RTM_NEWROUTE)
	}
	return nil
}

const sizeofNhMsg = 8 // linux/nexthop.h

// wellFormed: attributes fill b.
func wellFormed(b []byte) bool {
	for len(b) > 0 {
		if len(b) < 4 {
			return false
		}
		n := int(native.Uint16(b))
		if n < 4 || n > len(b) {
			return false
		}
		b = b[min((n+3)&^3, len(b)):]
	}
	return true
}

// types that a daemon may give routes of. Local and broadcast addresses are the kernel's to tell.
var types = map[kernel.RouteType]fib.RouteType{kernel.Unicast: fib.Unicast, kernel.Blackhole: fib.Blackhole,
	kernel.Unreachable: fib.Unreachable, kernel.Prohibit: fib.Prohibit}

// route takes RTM_NEWROUTE, with add, or RTM_DELROUTE, of which only prefix and table count: zebra has one route to a prefix.
func (r *reader) route(body []byte, add bool) {
	if !add {
		body[7] = unix.RTN_UNICAST // zebra leaves it out
	}
	r.object = 0
	k, ok := kernel.ParseRoute(body, r.hopsOf)
	if !ok {
		r.n.invalid.Add(1)
		return
	}
	if k.Table == kernel.TableMain || k.Table == unix.RT_TABLE_UNSPEC {
		k.Table = 0
	}
	typ, known := types[k.Type]
	if !known || !sane(&k) {
		r.n.invalid.Add(1)
		return
	}
	c := rib.Change{Table: k.Table, Prefix: k.Dst}
	switch {
	case !r.takes(k.Table):
		r.n.tables.Add(1)
		return
	case !add:
		r.n.removed.Add(1)
	case k.Protocol == unix.RTPROT_KERNEL:
		r.n.kernel.Add(1) // and it takes the place of one that was not the kernel's
	default:
		r.n.added.Add(1)
		a := rib.Attrs{Type: typ, Protocol: k.Protocol, Metric: k.Metric, MTU: k.MTU}
		if r.object != 0 && typ == fib.Unicast {
			c.Path = r.byObject(a, r.object)
		} else {
			r.hops = appendHops(r.hops[:0], k.Hops)
			c.Path = r.set.Path(a, r.hops)
		}
	}
	r.changes = append(r.changes, c)
}

// sane: the next hops are such as routes of the prefix's family can have.
func sane(k *kernel.Route) bool {
	return len(k.Hops) <= maxHops && !slices.ContainsFunc(k.Hops, func(h kernel.NextHop) bool { return !saneHop(h.Via, k.Dst.Addr().Is4()) })
}

func saneHop(via netip.Addr, is4 bool) bool {
	return !via.IsValid() || !via.IsUnspecified() && !via.IsMulticast() && !via.Is4In6() && (is4 || !via.Is4())
}

func appendHops(out []rib.Hop, hs []kernel.NextHop) []rib.Hop {
	for _, h := range hs {
		out = append(out, rib.Hop{Via: h.Via, Index: h.Index, Weight: h.Weight, OnLink: h.OnLink, Encap: h.Encap})
	}
	return out
}

func (r *reader) byObject(a rib.Attrs, id uint32) *rib.Path {
	if r.objects[id].Blackhole {
		a.Type = fib.Blackhole
	}
	return r.set.Object(a, id, func() []rib.Hop { return r.expand(id) })
}

// expand is what an object stands for. A group's members are not groups.
func (r *reader) expand(id uint32) []rib.Hop {
	o := r.objects[id]
	if len(o.Group) == 0 {
		if o.Hop.Index == 0 && !o.Hop.Via.IsValid() {
			return nil
		}
		return appendHops(nil, []kernel.NextHop{o.Hop})
	}
	var out []rib.Hop
	for _, m := range o.Group {
		if h := r.objects[m.ID].Hop; h.Index != 0 || h.Via.IsValid() {
			h.Weight = m.Weight
			out = appendHops(out, []kernel.NextHop{h})
		}
	}
	return out
}

func (r *reader) setObject(id uint32, o kernel.Object) error {
	r.n.objects.Add(1)
	if id == 0 || len(o.Group) > maxHops || !saneHop(o.Hop.Via, true) {
		r.n.invalid.Add(1)
		return nil
	}
	r.unlink(id)
	r.objects[id] = o
	r.known.Store(int64(len(r.objects)))
	for _, m := range o.Group {
		r.parents[m.ID] = append(r.parents[m.ID], id)
	}
	r.members += len(o.Group)
	if len(r.objects) > maxObjects || r.members > maxObjects {
		return fmt.Errorf("fpm: more than %d next-hop objects and members of groups", maxObjects)
	}
	r.tell(id)
	return nil
}

func (r *reader) delObject(id uint32) {
	r.n.objects.Add(1)
	if _, ok := r.objects[id]; !ok {
		return
	}
	r.unlink(id)
	delete(r.objects, id)
	r.known.Store(int64(len(r.objects)))
	r.flush()
	r.set.SetObject(id, nil, true)
	r.tellParents(id)
}

// unlink takes a group off its members.
func (r *reader) unlink(id uint32) {
	for _, m := range r.objects[id].Group {
		r.parents[m.ID] = slices.DeleteFunc(r.parents[m.ID], func(p uint32) bool { return p == id })
		if len(r.parents[m.ID]) == 0 {
			delete(r.parents, m.ID)
		}
	}
	r.members -= len(r.objects[id].Group)
}

// tell has the routes by an object follow it.
func (r *reader) tell(id uint32) {
	r.flush()
	r.set.SetObject(id, r.expand(id), false)
	r.tellParents(id)
}

func (r *reader) tellParents(id uint32) {
	for _, p := range slices.Clone(r.parents[id]) {
		r.set.SetObject(p, r.expand(p), false)
	}
}

// isClosed: the far end closed the connection, or this one did.
func isClosed(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, syscall.ECONNRESET)
}

var protocols = map[uint8]string{190: "ripng", 191: "nhrp", 193: "ldp", 194: "sharp", 195: "pbr", 196: "static", 197: "openfabric", 198: "srte"}

// ProtocolName is a protocol's name, zebra's own beside the kernel's.
func ProtocolName(p uint8) string {
	if s, ok := protocols[p]; ok {
		return s
	}
	return kernel.ProtocolName(p)
}
