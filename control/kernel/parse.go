package kernel

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// parseLink reads an ifinfomsg; ok is false for messages about something else, such as bridge ports.
func parseLink(b []byte) (l Link, ok bool) {
	if len(b) < unix.SizeofIfInfomsg || b[0] != unix.AF_UNSPEC {
		return l, false
	}
	flags := native.Uint32(b[8:])
	l = Link{Type: native.Uint16(b[2:]), Index: int(int32(native.Uint32(b[4:]))),
		Up: flags&unix.IFF_UP != 0, Ready: flags&unix.IFF_RUNNING != 0}
	parent, foreign := 0, false
	for t, v := range attrs(b[unix.SizeofIfInfomsg:]) {
		switch t {
		case unix.IFLA_IFNAME:
			l.Name = text(v)
		case unix.IFLA_ADDRESS:
			if len(v) == 6 {
				l.MAC = [6]byte(v)
			}
		case unix.IFLA_MTU:
			l.MTU = int(u32(v))
		case unix.IFLA_LINK:
			parent = int(u32(v))
		case unix.IFLA_LINK_NETNSID:
			foreign = true
		case unix.IFLA_MASTER:
			l.Master = int(u32(v))
		case unix.IFLA_LINKINFO:
			parseLinkInfo(&l, v)
		}
	}
	if l.Kind == "vlan" && !foreign {
		l.Parent = parent
	}
	return l, true
}

func parseLinkInfo(l *Link, b []byte) {
	var data []byte
	for t, v := range attrs(b) {
		switch t {
		case unix.IFLA_INFO_KIND:
			l.Kind = text(v)
		case unix.IFLA_INFO_DATA:
			data = v
		}
	}
	if l.Kind != "vlan" {
		return
	}
	l.VLANProto = 0x8100
	for t, v := range attrs(data) {
		switch {
		case t == unix.IFLA_VLAN_ID && len(v) >= 2:
			l.VLAN = native.Uint16(v)
		case t == unix.IFLA_VLAN_PROTOCOL && len(v) >= 2:
			l.VLANProto = binary.BigEndian.Uint16(v)
		}
	}
}

// parseAddr reads an ifaddrmsg; ok is false for addresses that are not the box's, because
// another host has them.
func parseAddr(b []byte) (a Addr, ok bool) {
	if len(b) < unix.SizeofIfAddrmsg {
		return a, false
	}
	bits, flags := int(b[1]), uint32(b[2])
	a.Index = int(native.Uint32(b[4:]))
	var local, addr netip.Addr
	for t, v := range attrs(b[unix.SizeofIfAddrmsg:]) {
		switch t {
		case unix.IFA_LOCAL:
			local = ipAddr(v)
		case unix.IFA_ADDRESS:
			addr = ipAddr(v)
		case unix.IFA_FLAGS:
			flags = u32(v)
		}
	}
	if local.IsValid() && addr.IsValid() && local != addr {
		a.Peer = netip.PrefixFrom(addr, bits)
		bits = local.BitLen()
	}
	if !local.IsValid() {
		local = addr
	}
	a.Prefix = netip.PrefixFrom(local, bits)
	a.Secondary = local.Is4() && flags&unix.IFA_F_SECONDARY != 0
	a.Tentative = flags&unix.IFA_F_TENTATIVE != 0
	return a, a.Prefix.IsValid() && flags&unix.IFA_F_DADFAILED == 0
}

var neighStates = map[uint16]string{unix.NUD_REACHABLE: "reachable", unix.NUD_STALE: "stale", unix.NUD_DELAY: "delay",
	unix.NUD_PROBE: "probe", unix.NUD_PERMANENT: "permanent", unix.NUD_NOARP: "noarp"}

// parseNeigh reads an ndmsg. usable is false where it has no link-layer address to send to.
func parseNeigh(b []byte) (n Neigh, usable, ok bool) {
	if len(b) < unix.SizeofNdMsg || b[0] != unix.AF_INET && b[0] != unix.AF_INET6 {
		return n, false, false
	}
	n.Index = int(int32(native.Uint32(b[4:])))
	n.State = neighStates[native.Uint16(b[8:])]
	usable = n.State != ""
	if b[10]&unix.NTF_PROXY != 0 {
		return n, false, false
	}
	mac := false
	for t, v := range attrs(b[unix.SizeofNdMsg:]) {
		switch {
		case t == unix.NDA_DST:
			n.Addr = ipAddr(v)
		case t == unix.NDA_LLADDR && len(v) == 6:
			n.MAC, mac = [6]byte(v), true
		}
	}
	return n, usable && mac, n.Addr.IsValid() && !n.Addr.IsMulticast()
}

// parseRoute reads an rtmsg. hops finds what a next-hop object stands for. ok is false for routes that
// are not reported.
func parseRoute(b []byte, hops func(id uint32) (nhs []NextHop, blackhole bool)) (r Route, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	family, bits, tos, flags := b[0], int(b[1]), b[3], native.Uint32(b[8:])
	r.Table, r.Protocol, r.Type = uint32(b[4]), b[5], RouteType(b[7])
	if _, known := typeNames[r.Type]; !known || flags&unix.RTM_F_CLONED != 0 || tos != 0 || b[2] != 0 {
		return r, false // also: source-specific (RFC 8519's use is rare), cached
	}
	var dst netip.Addr
	switch family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return r, false
	}
	one := NextHop{Weight: 1}
	setFlags(&one, flags)
	var multi []byte
	var id uint32
	for t, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch t {
		case unix.RTA_DST:
			dst = ipAddr(v)
		case unix.RTA_TABLE:
			r.Table = u32(v)
		case unix.RTA_PRIORITY:
			r.Metric = u32(v)
		case unix.RTA_PREFSRC:
			r.Src = ipAddr(v)
		case unix.RTA_METRICS:
			for t, v := range attrs(v) {
				if t == unix.RTAX_MTU {
					r.MTU = int(u32(v))
				}
			}
		case unix.RTA_MULTIPATH:
			multi = v
		case rtaNhID:
			id = u32(v)
		default:
			hopAttr(&one, t, v)
		}
	}
	r.Dst = netip.PrefixFrom(dst, bits).Masked()
	if !r.Dst.IsValid() {
		return r, false
	}
	switch {
	case multi != nil:
		r.Hops = parseHops(multi)
	case one.Index != 0 || one.Via.IsValid():
		r.Hops = []NextHop{one}
	case id != 0:
		var hole bool
		if r.Hops, hole = hops(id); hole {
			r.Type = Blackhole
		}
	}
	if r.Type >= Blackhole { // IPv6 names the loopback there
		r.Hops = nil
	}
	if family == unix.AF_INET6 && len(r.Hops) > 1 {
		// Announced with the one first that changed: put them into an order of their own.
		slices.SortFunc(r.Hops, func(a, b NextHop) int { return cmp.Or(a.Index-b.Index, a.Via.Compare(b.Via)) })
	}
	for _, h := range r.Hops {
		r.Encap = r.Encap || h.Encap
	}
	return r, true
}

// hopAttr takes an attribute that routes and the next hops of a multipath route share.
func hopAttr(h *NextHop, t uint16, v []byte) {
	switch t {
	case unix.RTA_OIF:
		h.Index = int(u32(v))
	case unix.RTA_GATEWAY:
		h.Via = ipAddr(v)
	case unix.RTA_VIA:
		if len(v) > 2 {
			h.Via = ipAddr(v[2:])
		}
	case unix.RTA_ENCAP_TYPE:
		h.Encap = true
	}
}

func setFlags(h *NextHop, flags uint32) {
	h.Dead = flags&unix.RTNH_F_DEAD != 0
	h.OnLink = flags&unix.RTNH_F_ONLINK != 0
}

// parseHops reads the rtnexthop list of RTA_MULTIPATH.
func parseHops(b []byte) (hs []NextHop) {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			break
		}
		h := NextHop{Index: int(int32(native.Uint32(b[4:]))), Weight: int(b[3]) + 1}
		setFlags(&h, uint32(b[2]))
		for t, v := range attrs(b[unix.SizeofRtNexthop:n]) {
			if t != unix.RTA_OIF {
				hopAttr(&h, t, v)
			}
		}
		hs = append(hs, h)
		b = b[min(align(n), len(b)):]
	}
	return hs
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
)

func parseObject(b []byte) (id uint32, o object) {
	if len(b) < sizeofNhMsg {
		return 0, o
	}
	o.hop.Weight = 1
	setFlags(&o.hop, native.Uint32(b[4:]))
	for t, v := range attrs(b[sizeofNhMsg:]) {
		switch t {
		case nhaID:
			id = u32(v)
		case nhaGroup:
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
		}
	}
	return id, o
}

func u32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return native.Uint32(b)
}

func ipAddr(b []byte) netip.Addr {
	a, _ := netip.AddrFromSlice(b)
	return a
}

func text(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return string(b)
}
