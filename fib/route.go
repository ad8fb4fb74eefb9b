package fib

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"millrace/internal/ids"
	"millrace/pipeline/graph"
)

// NextHop is one way to a route's destinations.
type NextHop struct {
	// Via is the router to send to. Invalid: the destinations are neighbours
	// themselves (on-link). An IPv4 route may have an IPv6 Via (RFC 8950).
	Via    netip.Addr
	Iface  uint16
	Weight int // share of the flows among several next hops; 0 counts as 1
	MTU    int // of the path by this next hop; 0, or more than the interface's, for the interface's; less than 68 (IPv4) or 1280 (IPv6) counts as that
}

// RouteType says what becomes of packets.
type RouteType uint8

const (
	Unicast     RouteType = iota
	Local                 // to the host
	Blackhole             // dropped silently
	Unreachable           // dropped, ICMP host unreachable
	Prohibit              // dropped, ICMP administratively prohibited
	Broadcast             // directed broadcast, dropped
	Multicast             // to the host
	Throw                 // no route in this table: the rules go on
	// Only from New:
	Martian
	LinkLocal
	LimitedBroadcast
	numTypes
)

func (t RouteType) String() string {
	return [...]string{"unicast", "local", "blackhole", "unreachable", "prohibit", "broadcast", "multicast", "throw",
		"martian", "link-local", "limited-broadcast"}[t]
}

// Source says where a route came from. Of several routes to one prefix the one with the
// lowest source wins, then the one with the lowest metric.
type Source uint8

const (
	SourceMartian   Source = iota // special-purpose prefixes, given by New
	SourceConnected               // the router's own addresses and their prefixes
	SourceConfig                  // the configuration file
	SourceAPI                     // the API
	SourceKernel                  // the kernel's tables
	SourceFPM                     // a routing daemon, by the forwarding plane manager's protocol
	SourceFile                    // a file of routes
	SourceDerived                 // follows from a connected prefix: its broadcast or anycast address
)

func (s Source) String() string {
	return [...]string{"martian", "connected", "config", "api", "kernel", "fpm", "file", "derived"}[s]
}

// Key names a route: a second one with the same key replaces the first.
type Key struct {
	Table  uint32 // by the kernel's numbers; 0 is main
	Prefix netip.Prefix
	Source Source
	Metric uint32
}

// Route is what a source wants done with the destinations in Prefix.
type Route struct {
	Table    uint32 // by the kernel's numbers; 0 is main
	Prefix   netip.Prefix
	NextHops []NextHop // for Unicast, at least one; otherwise none
	Type     RouteType
	Source   Source
	Metric   uint32
	Tag      uint32    // kept for the source; it means nothing to the FIB
	Since    time.Time // when it last changed; zero in Update means now
}

// Key is the route's key.
func (r *Route) Key() Key { return Key{r.Table, r.Prefix.Masked(), r.Source, r.Metric} }

var (
	// ErrFull is wrapped by errors of updates that did not fit into the tables.
	// Nothing of such an update has been applied.
	ErrFull = ids.ErrFull
	// ErrInvalid is wrapped by errors of updates that make no sense. Nothing of
	// such an update has been applied.
	ErrInvalid = errors.New("invalid")
)

// maxHops bounds the next hops of a route.
const maxHops = 1024

// The least MTUs of IPv4 (RFC 791) and IPv6 (RFC 8200 5).
const (
	minMTU  = 68
	minMTU6 = 1280
)

// maxWeight bounds a next hop's weight.
const maxWeight = 1 << 16

func invalid(what any, format string, a ...any) error {
	return fmt.Errorf("fib: route %v: %w: %s", what, ErrInvalid, fmt.Sprintf(format, a...))
}

func (k Key) check() error {
	switch {
	case !k.Prefix.IsValid():
		return invalid(k.Prefix, "not a prefix")
	case k.Source == SourceMartian || k.Source >= SourceDerived:
		return invalid(k.Prefix, "source %d is not for use by others", k.Source)
	}
	return nil
}

func (r *Route) check() error {
	if err := r.Key().check(); err != nil {
		return err
	}
	switch {
	case r.Type > Throw:
		return invalid(r.Prefix, "type %d is not for use by others", r.Type)
	case r.Type != Unicast && len(r.NextHops) != 0:
		return invalid(r.Prefix, "a route of type %v has no next hops", r.Type)
	case r.Type == Unicast && len(r.NextHops) == 0:
		return invalid(r.Prefix, "a unicast route needs a next hop")
	case len(r.NextHops) > maxHops:
		return invalid(r.Prefix, "%d next hops, the limit is %d", len(r.NextHops), maxHops)
	}
	for _, h := range r.NextHops {
		switch {
		case h.Iface == 0 || h.Iface >= graph.MaxIfaces:
			return invalid(r.Prefix, "interface %d does not exist", h.Iface)
		case h.Weight < 0 || h.Weight > maxWeight:
			return invalid(r.Prefix, "weight %d is not in 0 to %d", h.Weight, maxWeight)
		case h.MTU < 0:
			return invalid(r.Prefix, "an MTU of %d", h.MTU)
		case h.Via.Is4() && !r.Prefix.Addr().Is4():
			return invalid(r.Prefix, "an IPv6 route has no IPv4 next hop (%v)", h.Via)
		case h.Via.IsUnspecified() || h.Via.IsMulticast():
			return invalid(r.Prefix, "%v is no next hop", h.Via)
		}
	}
	return nil
}

// plain is the form in which addresses are compared: IPv4 as such, without zone.
func plain(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }
