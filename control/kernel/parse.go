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
	if l.Kind == "vrf" {
		for t, v := range attrs(data) {
			if t == unix.IFLA_VRF_TABLE {
				l.Table = u32(v)
			}
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

// parseRoute reads an rtmsg into r; false for what is no route to be reported.
func parseRoute(b []byte, r *parsed) bool {
	if len(b) < unix.SizeofRtMsg {
		return false
	}
	family, bits, flags := b[0], int(b[1]), native.Uint32(b[8:])
	r.key = key{family: family, tos: b[3], table: uint32(b[4])}
	r.path = Path{Type: RouteType(b[7]), Protocol: b[5], Hops: r.path.Hops[:0]}
	r.odd = append(r.odd[:0], b[6]) // scope
	r.from = netip.Prefix{}
	if _, known := typeNames[r.path.Type]; !known || flags&unix.RTM_F_CLONED != 0 {
		return false // also: cached
	}
	var dst netip.Addr
	switch family {
	case unix.AF_INET:
		dst = netip.IPv4Unspecified()
	case unix.AF_INET6:
		dst = netip.IPv6Unspecified()
	default:
		return false
	}
	one := NextHop{Weight: 1, OnLink: flags&unix.RTNH_F_ONLINK != 0}
	var multi []byte
	for t, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch t {
		case unix.RTA_DST:
			dst = ipAddr(v)
		case unix.RTA_SRC:
			r.from = netip.PrefixFrom(ipAddr(v), int(b[2])).Masked()
		case unix.RTA_TABLE:
			r.key.table = u32(v)
		case unix.RTA_PRIORITY:
			r.key.metric = u32(v)
		case unix.RTA_PREFSRC:
			r.path.Src = ipAddr(v)
		case unix.RTA_METRICS:
			r.odd = append(r.odd, v...)
			for t, v := range attrs(v) {
				switch t {
				case unix.RTAX_MTU:
					r.path.MTU = int(u32(v))
				case unix.RTAX_LOCK:
					r.path.Locked = u32(v)&(1<<unix.RTAX_MTU) != 0
				}
			}
		case unix.RTA_FLOW:
			r.odd = append(r.odd, v...)
		case unix.RTA_PREF:
			if len(v) == 1 {
				r.path.Pref = prefOf(v[0])
			}
		case unix.RTA_MULTIPATH:
			multi = v
		case rtaNhID:
			r.path.Object = u32(v)
		default:
			hopAttr(&one, t, v)
		}
	}
	p := netip.PrefixFrom(dst, bits).Masked()
	if !p.IsValid() || p.Addr().Is4() != (family == unix.AF_INET) || b[2] != 0 && !r.from.IsValid() {
		return false
	}
	r.key.addr, r.key.bits = p.Addr().As16(), uint8(bits)
	switch {
	case multi != nil:
		r.path.Hops = parseHops(r.path.Hops, multi)
	case one.Index != 0 || one.Via.IsValid():
		r.path.Hops = append(r.path.Hops, one)
	}
	if r.path.Type >= Blackhole { // IPv6 names the loopback there
		r.path.Hops = r.path.Hops[:0]
	}
	if family == unix.AF_INET6 && len(r.path.Hops) > 1 {
		// Announced with the one first that changed: put them into an order of their own.
		slices.SortFunc(r.path.Hops, func(a, b NextHop) int { return cmp.Or(a.Index-b.Index, a.Via.Compare(b.Via)) })
	}
	return true
}

// prefOf is a router preference: two bits with a sign (RFC 4191 2.1), of which -2 is reserved and counts as medium.
func prefOf(b byte) int8 {
	switch b & 3 {
	case 1:
		return 1
	case 3:
		return -1
	}
	return 0
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

// parseHops appends the rtnexthop list of RTA_MULTIPATH.
func parseHops(hs []NextHop, b []byte) []NextHop {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			break
		}
		h := NextHop{Index: int(int32(native.Uint32(b[4:]))), Weight: int(b[3]) + 1, OnLink: b[2]&unix.RTNH_F_ONLINK != 0}
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

// parseNetconf reads a netconfmsg of IPv4; ok is false where it says nothing of the reverse-path filter.
func parseNetconf(b []byte) (index int, filter uint8, ok bool) {
	if len(b) < sizeofNetconf || b[0] != unix.AF_INET {
		return 0, 0, false
	}
	seen := 0
	for t, v := range attrs(b[sizeofNetconf:]) {
		switch t {
		case netconfaIfindex:
			index, seen = int(int32(u32(v))), seen|1
		case netconfaRPFilter:
			filter, seen = uint8(u32(v)), seen|2
		}
	}
	return index, filter, seen == 3
}

// linux/netconf.h
const (
	sizeofNetconf    = 4 // with padding
	netconfaIfindex  = 1
	netconfaRPFilter = 3
	netconfAll       = -1
)

func text(b []byte) string {
	for len(b) > 0 && b[len(b)-1] == 0 {
		b = b[:len(b)-1]
	}
	return string(b)
}
