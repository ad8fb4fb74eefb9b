// Package kernel follows the Linux kernel's links, addresses, neighbours and routes by
// rtnetlink, and asks it to resolve neighbours.
//
// # Life of a Follower
//
// New opens the sockets in the network namespace of the calling thread. Run first dumps
// everything to the Sink and calls its Synced, then reports each change as the kernel announces
// it, until its context ends.
//
// # Where announcements are not enough
//
// The follower mirrors what it has reported, so that a dump becomes a list of differences. It
// dumps again after the socket overflowed (ENOBUFS) or failed, and where the kernel changes
// routes without a word: links that go up or down, IPv4 addresses that go away, next-hop
// objects, and announcements that do not say which of several equal routes they mean. Such
// dumps are put off by a few milliseconds, so that a storm of changes causes one.
//
// # Concurrency
//
// All Sink methods are called from Run, one at a time, in the kernel's order. Ask may be called
// from any goroutine; it never blocks.
package kernel

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"millrace/pmd"
)

// Sink receives what the kernel has. Slices are the sink's to read until it returns.
type Sink interface {
	// LinkChanged is called for a new link and after any change of its fields.
	LinkChanged(Link)
	// LinkRemoved comes after its addresses, neighbours and routes are gone.
	LinkRemoved(Link)
	AddrAdded(Addr)
	AddrRemoved(Addr)
	// NeighChanged is called for a neighbour whose link-layer address can be used, when it is new or
	// changed in any field; NeighRemoved when it is gone or can be used no more.
	NeighChanged(Neigh)
	NeighRemoved(Neigh)
	// RouteBatch sets routes and removes others: first del, then set. A route in set takes the
	// place of one with the same key.
	RouteBatch(set []Route, del []RouteKey)
	// Synced is called behind every full dump: the sink has what the kernel has.
	Synced()
}

// Link is a network interface. It is comparable.
type Link struct {
	Index  int
	Name   string
	Kind   string // of a virtual link: "veth", "vlan", "bridge" ...; "" for a device
	Type   uint16 // ARPHRD_*
	MAC    pmd.MAC
	MTU    int
	Up     bool // administratively (IFF_UP)
	Ready  bool // has a carrier and may send (IFF_RUNNING)
	Master int  // index of the bridge, bond or VRF that it belongs to

	// Of a VLAN: the link below it, the tag and the tag's EtherType, 0x8100 or 0x88a8.
	Parent    int
	VLAN      uint16
	VLANProto uint16
}

// Addr is an address of a link. It is comparable.
type Addr struct {
	Index     int
	Prefix    netip.Prefix // the address itself, with the length of its network
	Peer      netip.Prefix // the far end of a point-to-point address, or zero
	Secondary bool         // an IPv4 address of a network of which there is an earlier one
	Tentative bool         // IPv6: duplicate address detection is not done
}

// Neigh is a neighbour. It is comparable.
type Neigh struct {
	Index int
	Addr  netip.Addr
	MAC   pmd.MAC
	State string // "reachable", "stale", "delay", "probe", "permanent", "noarp"
}

// RouteType is what happens to packets that a route matches.
type RouteType uint8

// The types that decide about packets here; routes of other types are not reported.
const (
	Unicast     RouteType = unix.RTN_UNICAST
	Local       RouteType = unix.RTN_LOCAL
	Broadcast   RouteType = unix.RTN_BROADCAST
	Anycast     RouteType = unix.RTN_ANYCAST
	Multicast   RouteType = unix.RTN_MULTICAST
	Blackhole   RouteType = unix.RTN_BLACKHOLE
	Unreachable RouteType = unix.RTN_UNREACHABLE
	Prohibit    RouteType = unix.RTN_PROHIBIT
	Throw       RouteType = unix.RTN_THROW
)

var typeNames = map[RouteType]string{Unicast: "unicast", Local: "local", Broadcast: "broadcast", Anycast: "anycast",
	Multicast: "multicast", Blackhole: "blackhole", Unreachable: "unreachable", Prohibit: "prohibit", Throw: "throw"}

func (t RouteType) String() string { return typeNames[t] }

// Tables that every lookup goes through where no rules say otherwise.
const (
	TableDefault = unix.RT_TABLE_DEFAULT
	TableMain    = unix.RT_TABLE_MAIN
	TableLocal   = unix.RT_TABLE_LOCAL
)

// RouteKey names a route. Routes for one type of service (TOS, DSCP) only are not reported.
type RouteKey struct {
	Dst    netip.Prefix // masked
	Table  uint32
	Metric uint32
}

// Route is a route. Of several with the same key it is the one that the kernel uses.
type Route struct {
	RouteKey
	Type     RouteType
	Protocol uint8 // RTPROT_*: who brought it
	Hops     []NextHop
	Src      netip.Addr // preferred source, or zero
	MTU      int        // of the path, 0 where the route sets none
	Encap    bool       // some next hop encapsulates (MPLS, seg6 ...)
}

// NextHop is one way that a route may take. It is comparable.
type NextHop struct {
	Index  int        // link
	Via    netip.Addr // gateway; zero for a connected prefix. It may be of the other family (RFC 5549)
	Weight int        // 1 and more
	Dead   bool       // its link is down
	OnLink bool
	Encap  bool
}

func (r *Route) equal(o *Route) bool {
	return r.RouteKey == o.RouteKey && r.Type == o.Type && r.Protocol == o.Protocol && r.Src == o.Src &&
		r.MTU == o.MTU && r.Encap == o.Encap && slices.Equal(r.Hops, o.Hops)
}

var protocols = map[uint8]string{
	unix.RTPROT_REDIRECT: "redirect", unix.RTPROT_KERNEL: "kernel", unix.RTPROT_BOOT: "boot", unix.RTPROT_STATIC: "static",
	unix.RTPROT_RA: "ra", unix.RTPROT_MROUTED: "mrouted", unix.RTPROT_ZEBRA: "zebra", unix.RTPROT_BIRD: "bird",
	unix.RTPROT_DHCP: "dhcp", unix.RTPROT_KEEPALIVED: "keepalived", unix.RTPROT_BABEL: "babel", unix.RTPROT_BGP: "bgp",
	unix.RTPROT_ISIS: "isis", unix.RTPROT_OSPF: "ospf", unix.RTPROT_RIP: "rip", unix.RTPROT_EIGRP: "eigrp",
}

// ProtocolName is the name that `ip route` prints for a protocol, or its number.
func ProtocolName(p uint8) string {
	if s, ok := protocols[p]; ok {
		return s
	}
	return utoa(uint32(p))
}
