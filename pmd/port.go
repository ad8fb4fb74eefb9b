// Package pmd is the contract between the road and what packets come from and
// go to: a Port with Queues that receive and transmit bursts of mbuf indices.
//
// # Life of a port
//
// A driver registers itself (Register) under its name. Open returns a port that is
// not yet running; the road gives every queue to one worker thread, which calls
// Start, then Rx and Tx in turn, and Stop. Close comes after the last Stop and
// leaves the world as it was before Open.
//
// # Ownership
//
// Rx hands over packets; Tx takes as many as it returns, from the front, and the rest stay
// the caller's. A driver allocates and frees only through the Cache that Start gave.
//
// # Concurrency
//
// A queue's methods, other than Stats, are for one thread. A port's methods are safe for concurrent
// use, beside running queues.
package pmd

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"millrace/packet"
)

// Port is one network port.
type Port interface {
	// Name is the port's name in the configuration.
	Name() string
	// Driver is the driver's name and, in Why, the reason that it runs the way it
	// does, such as each mode tried before and its error.
	Driver() string
	Why() []string
	Caps() Caps
	Link() Link
	// Queue returns queue i of Caps().Queues.
	Queue(i int) Queue
	// Stats are totals of all queues since Open. They never go backwards.
	Stats() Stats
	Close() error
}

// Queue is one receive queue with its transmit queue.
type Queue interface {
	// Start prepares the queue for the calling thread, which polls it from now on.
	Start(c *packet.Cache) error
	// Rx receives up to len(dst) packets and returns their number. It also does
	// what transmission left to do, such as freeing sent packets, and never blocks.
	Rx(dst []uint32) int
	// Tx sends packets and returns how many it took; it never blocks.
	Tx(src []uint32) int
	// Fd is a descriptor that poll(2) reports as readable when Rx has work, or -1
	// where the queue can only be polled.
	Fd() int
	// Arm is called before the thread sleeps on Fd; it returns false where there
	// is work already.
	Arm() bool
	// Stop gives all buffers that the queue holds back to the cache.
	Stop()
	// Held is the number of mbufs in the driver's hands: empty ones waiting for
	// reception and full ones on their way out.
	Held() int
}

// Caps is what a port can do.
type Caps struct {
	Queues   int    // receive (and transmit) queues
	Headroom int    // bytes of headroom it needs on transmission
	Segments int    // longest chain it transmits, at least 1
	MaxFrame int    // largest frame in bytes, without FCS
	Mode     string // how it runs: "zero-copy", "native copy", "generic copy", ...
	// Kernel is the index of the kernel interface that stays up beside the
	// port and owns its addresses; 0 where the kernel cannot see the port.
	Kernel int
	// Filtered: packets for the host never reach Rx, the kernel has taken them
	// (AF_XDP). Where Kernel is set and Filtered is not, the kernel gets a copy of
	// everything and Rx sees everything (AF_PACKET).
	Filtered bool
}

// Link is a port's state at the moment.
type Link struct {
	Up   bool
	Mbps int // 0 where unknown
	MTU  int // largest L3 packet in bytes
	MAC  MAC
	Gone bool // the device was removed; it may come back
}

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// Stats are a port's counters.
type Stats struct {
	RxPackets, TxPackets uint64
	// Lost before the road saw them: ring full, no buffer, bad descriptor of a peer.
	RxNoBuffer, RxRingFull, RxBad uint64
	// TxFull counts packets that Tx refused; TxFailed those taken and then not sent.
	TxFull, TxFailed uint64
}

// LocalFilter is implemented by ports that leave the host's packets to the kernel
// (Caps.Filtered): what is addressed to these, beside ARP, neighbour discovery,
// broadcast and multicast, passes by Millrace.
type LocalFilter interface {
	SetLocal(addrs []netip.Addr) error
}

// TakeFilter is implemented by ports that can tell a part of what is addressed to the box
// from the rest: exactly what SetTaken names comes to Millrace, such as NAT's ports and tunnels.
type TakeFilter interface {
	SetTaken(taken []Taken) error
}

// Taken is a protocol of one of the box's addresses, or one TCP or UDP port, or the replies to
// one identifier of IPv4 echo requests.
type Taken struct {
	Addr  netip.Addr
	Proto uint8  // of IP
	Port  uint16 // destination port or identifier, 0 for the whole protocol
}

// GroupFilter is implemented by ports that leave multicast to the kernel (Caps.Filtered): exactly the packets that SetGroups
// names come to Millrace, but for those with a TTL (hop limit) of 1, IGMP and ICMPv6. Without a call there are none.
type GroupFilter interface {
	SetGroups(groups []Group) error
}

// Group is multicast that comes in by a port.
type Group struct {
	Group  netip.Addr
	Source netip.Addr // the zero Addr for any
	Outer  uint16     // VLAN id of the outer (or only) tag, 0 for untagged frames
	Inner  uint16     // of the inner tag, 0 for none
	// Sample: about one packet a second passes to the kernel instead, which has a route for it too: so
	// that its counters rise, and daemons that look at them keep the route.
	Sample bool
	// Pass: packets of this source pass to the kernel, though those of any other come.
	Pass bool
}

// Config asks for a port. Fields that a driver does not know are errors.
type Config struct {
	Name   string
	Driver string // "" finds one for the kernel interface Name
	Queues int    // 0 lets the driver choose
	Ring   int    // descriptors a ring, 0 lets the driver choose
	MTU    int    // 0 leaves it
	MAC    MAC    // zero lets the driver choose
	Pool   *packet.Pool

	Socket string // memif: path of the UNIX socket
	Role   string // memif: "server" or "client"
	ID     uint32 // memif: interface id on the socket
	Secret string // memif

	Read, Write string  // pcap: files to replay from and record to
	Loop        int     // pcap: times to replay, 0 for once, -1 without end
	Rate        float64 // pcap: packets a second; 0 as recorded, -1 as fast as it goes

	// Whole gives a port of a kernel interface everything that arrives there, what is addressed
	// to the box too, and the kernel nothing: Caps().Kernel is 0 then.
	Whole bool

	Mode string // afxdp: "", "zero-copy", "native", "generic"
}

// ErrNotSupported is wrapped by errors of things that this kernel, device or
// build cannot do; a test skips on it, and automatic choice goes on to the next driver.
var ErrNotSupported = errors.New("not supported here")

// Driver opens ports of one kind.
type Driver struct {
	Name string
	Doc  string // one line
	Open func(Config) (Port, error)
}

var (
	mu      sync.Mutex
	drivers []Driver
)

// Register makes a driver known; drivers call it from init.
func Register(d Driver) {
	mu.Lock()
	defer mu.Unlock()
	drivers = append(drivers, d)
	slices.SortFunc(drivers, func(a, b Driver) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
}

// Drivers lists the registered drivers by name.
func Drivers() []Driver {
	mu.Lock()
	defer mu.Unlock()
	return slices.Clone(drivers)
}

// Lookup finds a driver by name.
func Lookup(name string) (Driver, error) {
	var names []string
	for _, d := range Drivers() {
		if d.Name == name {
			return d, nil
		}
		names = append(names, d.Name)
	}
	return Driver{}, fmt.Errorf("pmd: no driver %q in this build: there are %v", name, names)
}
