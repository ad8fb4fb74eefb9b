package graph

import (
	"net/netip"
	"sync/atomic"
	"unsafe" // tables outside the heap, given back as they were mapped

	"millrace/internal/mem"
	"millrace/packet"
	"millrace/pmd"
)

const (
	MaxIfaces = 4096    // interfaces, sub-interfaces counted; 0 is none
	MaxGroups = 1 << 15 // next-hop groups
	MaxAdjs   = 1 << 16 // adjacencies; 0 is none
	MaxPorts  = 256     // ports, TAPs counted; 0 is none
)

// Group is a next-hop group: what a route leads to. Exactly one of three: an
// adjacency; a bucket table of adjacencies, picked by flow hash; a reason to leave.
type Group struct {
	Adj  uint16 // the adjacency where Mask is 0 and Exit is 0
	Exit Reason // why packets leave here: no route, local, unresolved neighbour ...
	Mask uint16 // buckets-1, a power of two less one; 0 for a single adjacency
	_    uint16
	At   uint32 // first of the group's Buckets
	_    uint32
}

// Adj is an adjacency: how to reach one neighbour. It is written once, before any
// group leads to it, and not reused until all workers have passed a round.
type Adj struct {
	// The Ethernet header is written as two overlapping words that end at the L3
	// header: bytes -14 to -7, then -8 to -1, in memory order. For tagged interfaces
	// they hold the last 14 bytes of the header and Head holds all of it.
	RW0   uint64
	RW4   uint64 // with IPv4's EtherType
	RW6   uint64 // with IPv6's EtherType
	Port  uint16 // index of the port
	Iface uint16
	MTU   uint16 // largest L3 packet
	L2    uint8  // bytes of Ethernet header: 14, 18 or 22
	Flags uint8
	Head  [22]byte // the whole header for L2 > 14; the EtherType at its end is patched by family
	_     [10]byte
}

// Adjacency flags.
const (
	// AdjRedirect: packets that leave by the interface they came in by owe the
	// sender an ICMP redirect.
	AdjRedirect = 1 << iota
	// AdjMulticast: the destination MAC in Head and RW0 is none; each packet goes to its group's (RFC 1112 6.4, RFC 2464 7).
	AdjMulticast
)

// Iface is an interface as the hot path sees it: a port, or a VLAN of one.
type Iface struct {
	MAC   uint64 // the address in memory order, shifted left by 16: what an 8-byte load of a frame <<16 gives
	Port  uint16
	MTU   uint16
	Flags uint16
	Outer uint16 // VLAN id of the outer (or only) tag, 0 for an untagged interface
	Inner uint16 // VLAN id of the inner tag, 0 for a single one
	Table uint16 // number (not the kernel's) of the routing table of packets that come in here; 0 is main
	_     uint32
	_     uint64
}

// Interface flags.
const (
	IfUp      = 1 << iota // packets may come and go
	IfVlans               // some VLANs of the port are interfaces of their own
	IfKernel              // the kernel owns the addresses and has the interface too
	IfSeesAll             // the kernel gets a copy of every packet by itself
	IfLoose4              // IPv4 sources must be reachable (RFC 3704, loose)
	IfStrict4             // IPv4 sources must be reachable by this interface (RFC 3704, strict)
	IfLoose6              // the same for IPv6
	IfStrict6
)

// Addresses are the router's own addresses, for ICMP errors and the built-in host:
// immutable once published.
type Addresses struct {
	By map[uint16][]netip.Prefix // by interface, in the order they were added
	Is map[netip.Addr]uint16     // interface of each address
}

// Source4 and Source6 pick the address that an error about a packet from iface
// is sent from: the interface's first of global scope, else the first of any interface.
func (a *Addresses) Source4(iface uint16) netip.Addr { return a.source(iface, netip.Addr.Is4) }
func (a *Addresses) Source6(iface uint16) netip.Addr { return a.source(iface, netip.Addr.Is6) }

func (a *Addresses) source(iface uint16, family func(netip.Addr) bool) netip.Addr {
	if best, ok := global(a.By[iface], family); ok {
		return best
	}
	// Few interfaces have addresses where this one has none.
	best, lowest := netip.Addr{}, uint16(MaxIfaces)
	for i, ps := range a.By {
		if i < lowest {
			if ad, ok := global(ps, family); ok {
				best, lowest = ad, i
			}
		}
	}
	return best
}

// global is the first address of a family that means something beyond its link.
func global(ps []netip.Prefix, family func(netip.Addr) bool) (netip.Addr, bool) {
	for _, p := range ps {
		if ad := p.Addr(); family(ad) && !ad.IsLinkLocalUnicast() && !ad.IsLoopback() {
			return ad, true
		}
	}
	return netip.Addr{}, false
}

// Tables is the state that all workers read and only the control side writes:
// outside the Go heap, an entry at a time, each entry complete before anything leads to it.
type Tables struct {
	Ifaces  []Iface  // by interface, MaxIfaces
	Groups  []Group  // by next-hop group, MaxGroups
	Adjs    []Adj    // by adjacency, MaxAdjs
	Buckets []uint16 // adjacencies of multipath groups
	// Vlans finds the interface of a tagged frame: key port<<24 | outer<<12 | inner. Immutable once published.
	Vlans atomic.Pointer[map[uint64]uint16]
	Addrs atomic.Pointer[Addresses]
	// Ports by port index; set before a worker sees a packet of it.
	Ports [MaxPorts]pmd.Port
	// Taps is, by port, the port index of the TAP that shows it to the kernel; 0 for none.
	Taps []uint16
	// Multicast is, by interface, the adjacency of multicast packets; 0 while the interface is down or no
	// multicast route leads there.
	Multicast []uint16
	// Names of interfaces for people, by interface. Immutable once published.
	Names atomic.Pointer[map[uint16]string]
	// Hash picks the bucket of a multipath group for a flow. Immutable once published.
	Hash atomic.Pointer[packet.Hasher]
}

// small are the tables that share a mapping.
type small struct {
	ifaces [MaxIfaces]Iface
	taps   [MaxPorts]uint16
	mcast  [MaxIfaces]uint16
}

// MaxBuckets is the size of Tables.Buckets.
const MaxBuckets = 1 << 20

// NewTables maps empty tables.
func NewTables() (*Tables, error) {
	t := &Tables{}
	s, err := mem.Of[small](1)
	if err != nil {
		return nil, err
	}
	t.Ifaces, t.Taps, t.Multicast = s[0].ifaces[:], s[0].taps[:], s[0].mcast[:]
	if t.Groups, err = mem.Of[Group](MaxGroups); err != nil {
		return nil, err
	}
	if t.Adjs, err = mem.Of[Adj](MaxAdjs); err != nil {
		return nil, err
	}
	if t.Buckets, err = mem.Of[uint16](MaxBuckets); err != nil {
		return nil, err
	}
	t.Vlans.Store(&map[uint64]uint16{})
	t.Names.Store(&map[uint16]string{})
	t.Hash.Store(&packet.Hasher{Seed: packet.FlowSeed})
	t.Addrs.Store(&Addresses{By: map[uint16][]netip.Prefix{}, Is: map[netip.Addr]uint16{}})
	return t, nil
}

// Close unmaps the tables; no worker may be running.
func (t *Tables) Close() {
	mem.Free(unsafe.Slice((*small)(unsafe.Pointer(unsafe.SliceData(t.Ifaces))), 1))
	mem.Free(t.Groups)
	mem.Free(t.Adjs)
	mem.Free(t.Buckets)
}
