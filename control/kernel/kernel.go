// Package kernel follows the Linux kernel's links, addresses, neighbours, rules and routes by
// rtnetlink, and asks it to resolve neighbours.
//
// # Life of a Follower
//
// New opens the sockets in the network namespace of the calling thread. Run first dumps
// everything to the Sink and calls its Synced, then reports each change as the kernel announces
// it, until its context ends.
//
// # Tables
//
// Followed are the tables that packets can come to: local, main and default, those of VRFs, those that rules
// name, and those that Options or Tables name.
//
// # Where announcements are not enough
//
// The follower mirrors what it has reported, so that a dump becomes a list of differences. It
// dumps again after the socket overflowed (ENOBUFS) or failed, and where the kernel changes
// routes without a word: links that go up or down, IPv4 addresses that go away. What the kernel does then is done here at once, and the dump, put off
// so that a storm of changes causes few, makes sure. Next-hop objects that change or go change their routes here as there, of
// which the kernel says nothing or, by its setting nexthop_compat_mode, everything once more. While announcements are read that may be
// older than the last dump, those that do not say which of several equal routes they mean cause another one.
//
// # Memory
//
// The mirror has no pointers: a key and three numbers for each route. What routes do (Path) is kept once for all that do
// the same.
//
// # Concurrency
//
// Sink methods are called one at a time, in the kernel's order, by two goroutines: one for
// neighbours, which packets wait for, and one for all else. Ask may be called
// from any goroutine; it never blocks.
package kernel

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"millrace/control/rule"
	"millrace/pmd"
)

// Sink receives what the kernel has. Slices are the sink's to read until it returns.
type Sink interface {
	// LinkChanged is called for a new link and after any change of its fields.
	LinkChanged(Link)
	// LinkRemoved comes after its addresses and routes are gone.
	LinkRemoved(Link)
	AddrAdded(Addr)
	AddrRemoved(Addr)
	// NeighChanged is called for a neighbour whose link-layer address can be used, when it is new or
	// changed in any field; NeighRemoved when it is gone or can be used no more.
	NeighChanged(Neigh)
	NeighRemoved(Neigh)
	// RulesChanged gives all rules of both families, in the kernel's order, when they are others than before.
	RulesChanged([]rule.Rule)
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
	Up     bool   // administratively (IFF_UP)
	Ready  bool   // has a carrier and may send (IFF_RUNNING)
	Master int    // index of the bridge, bond or VRF that it belongs to
	Table  uint32 // of the VRF that it is or belongs to; 0 for none
	// RPFilter is what the kernel checks of IPv4 packets' sources, of `all` and of the link the larger: 0 nothing, 1 that the
	// best way back is this link (strict), 2 that there is one (loose).
	RPFilter uint8

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

// RouteKey names a route.
type RouteKey struct {
	Dst    netip.Prefix // masked
	From   netip.Prefix // IPv6: only for packets from there; zero for all
	Table  uint32
	Metric uint32
	TOS    uint8 // IPv4: only for packets of this type of service; 0 for all
}

// Route is a route. Of several with the same key it is the one that the kernel uses.
type Route struct {
	RouteKey
	*Path
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
