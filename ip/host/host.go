package host

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"millrace/internal/clock"
	"millrace/ip"
	"millrace/packet"
	"millrace/pipeline/graph"
)

const (
	// Name is the stage's name, by which Worker.Instances finds a worker's Host.
	Name = "builtin-host"
	// Resume is where on the road answers go on: at the first lookup.
	Resume = "lookup"
)

var (
	xMalformed = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "malformed",
		Doc: "A packet for the built-in host has a bad checksum or length, an address of the host's as its source, or breaks a rule of its protocol (such as neighbour discovery's hop limit of 255)."})
	xNotLocal = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "not-local",
		Doc: "The packet is addressed to nothing that the built-in host has: most often a multicast group that it has not joined."})
	xProtocol = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "other-protocol",
		Doc: "Neither ARP nor IP: the built-in host knows nothing else (LLDP, spanning tree ...)."})
	xOption = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "option",
		Doc: "An IPv6 option or routing header that the built-in host does not know asks for the packet to be dropped (RFC 8200 4.2)."})
	xFragment = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "fragment",
		Doc: "The fragment overlaps another one of its datagram, which is given up for it (RFC 5722), or too many datagrams are being reassembled."})
	xUnresolved = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "unresolved",
		Doc: "An answer waited for its neighbour, which did not answer three solicitations, or more answers waited than are kept."})
	xQueue = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "queue-full",
		Doc: "More answers were ready for the road than it takes in one round."})
	nBuffer = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "no-buffer", Kind: graph.Note,
		Doc: "There was no packet buffer for an answer."})
	nLimited = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "rate-limited", Kind: graph.Note,
		Doc: "An ICMP error or a TCP reset was not sent: there were more of them than the limit allows."})
	nTimeout = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "reassembly-timeout", Kind: graph.Note,
		Doc: "A fragmented datagram for the host did not become complete in time."})
	nConflict = graph.NewReason(graph.ReasonInfo{Stage: Name, Name: "address-conflict", Kind: graph.Note,
		Doc: "Another station claims an address of this router by ARP or neighbour discovery: one of the two is configured wrongly."})
)

// Config changes what a Service does. The zero value serves.
type Config struct {
	// Learn is told each neighbour address that was resolved or changed, and Lost each that no longer
	// answers: on a worker's thread, so they must neither block nor allocate much, and
	// by each worker that knows the neighbour, so the same may be told more than once.
	Learn func(iface uint16, addr netip.Addr, mac [6]byte)
	Lost  func(iface uint16, addr netip.Addr)
	// NoReset leaves TCP segments unanswered.
	NoReset bool
	// NoReports keeps group memberships to itself: rigs that count each packet want nothing
	// that was not asked for.
	NoReports bool
	// ErrorRate and ErrorBurst limit ICMP errors and resets a second of each worker; 0 is 1000 and 50.
	ErrorRate, ErrorBurst int
}

// Service is the built-in host of a router: one Host for each worker.
type Service struct {
	config Config
	mu     sync.Mutex
	hosts  atomic.Pointer[[]*Host] // immutable once stored; written under mu
}

// New makes a Service.
func New(c Config) *Service {
	if c.ErrorRate == 0 {
		c.ErrorRate = 1000
	}
	if c.ErrorBurst == 0 {
		c.ErrorBurst = 50
	}
	s := &Service{config: c}
	s.hosts.Store(&[]*Host{})
	return s
}

// Stage is the exit stage to put into the path.
func (s *Service) Stage() *graph.Stage {
	return &graph.Stage{
		Name: Name, Doc: "answer ARP, ND, echo on ports that no kernel sees", Resume: Resume,
		Reasons: []graph.Reason{xMalformed, xNotLocal, xProtocol, xOption, xFragment, xUnresolved, xQueue, nBuffer, nLimited, nTimeout, nConflict},
		New:     func(w *graph.Worker) graph.Runner { return s.newHost(w) },
	}
}

// Solicit asks for the neighbour addr of an interface by ARP or neighbour discovery: up
// to three times a second apart, then Lost is called. It is safe for any
// thread and never blocks; false where no worker runs or too much is asked.
func (s *Service) Solicit(iface uint16, addr netip.Addr) bool {
	l := *s.hosts.Load()
	return len(l) > 0 && l[0].post(event{kind: evSolicit, iface: iface, addr: addr})
}

// event is what Hosts tell each other.
type event struct {
	kind  uint8
	iface uint16
	flags uint8
	hasLL bool
	mac   [6]byte
	addr  netip.Addr
	wait  uint64 // of a query: the maximum response delay, milliseconds
	old   bool   // of a query: of version 1
}

const (
	evSolicit   = iota
	evAdvertise // a neighbour advertisement or ARP reply
	evSource    // the sender of a solicitation or ARP request
	evQuery     // an MLD query
)

// Host is one worker's instance. Its methods are for the worker's thread.
type Host struct {
	s    *Service
	w    *graph.Worker
	hz   uint64
	in   chan event
	rand *rand.Rand
	ids  *ip.IDs

	parked *graph.ParkQueue
	cache  cache
	reasm  [maxDatagrams]datagram
	tokens uint64 // of the bucket, in ticks
	filled uint64 // when the bucket was filled last
	mld    mld

	rx, tx, cut []byte // one packet each, from the IP header on: received, to be sent, a fragment of it
}

// maxPacket is the longest IP packet: a 65,535 byte payload behind an IPv6 header.
const maxPacket = packet.IPv6Size + 0xffff

func (s *Service) newHost(w *graph.Worker) *Host {
	h := &Host{
		s: s, w: w, hz: clock.Hz(), in: make(chan event, 256), ids: ip.NewIDs(),
		rand:   rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64())),
		parked: graph.NewParkQueue(graph.VectorSize),
		rx:     make([]byte, maxPacket), tx: make([]byte, maxPacket), cut: make([]byte, maxPacket),
	}
	h.cache.next = never
	h.mld.next = never
	for i := range h.reasm {
		h.reasm[i].data = make([]byte, maxPacket)
	}
	h.tokens = uint64(s.config.ErrorBurst) * h.hz
	s.mu.Lock()
	defer s.mu.Unlock()
	l := append(slices.Clone(*s.hosts.Load()), h)
	s.hosts.Store(&l)
	return h
}

// never is a deadline that does not come.
const never = ^uint64(0)

// post hands an event to the host's worker; false where it has too many waiting.
func (h *Host) post(e event) bool {
	select {
	case h.in <- e:
		return true
	default:
		return false
	}
}

// tell hands what was learned to the other workers' hosts.
func (h *Host) tell(e event) {
	for _, o := range *h.s.hosts.Load() {
		if o != h {
			o.post(e)
		}
	}
}

// Run is never called: the host is an exit stage.
func (h *Host) Run(*graph.Vector) {}

// Take answers packets. Their L3 offset is set, and what stands before it is an
// Ethernet header, unless the packet was decapsulated.
func (h *Host) Take(v *graph.Vector, pos []uint8, _ graph.Reason) {
	for _, i := range pos {
		idx := v.Idx[i]
		if why := h.input(packet.At(idx), v.L3Off(i), v.In[i]); why != 0 {
			h.w.Discard(idx, why)
			continue
		}
		h.w.C.ToHost++
		h.w.Cache.Free(v.Idx[i : int(i)+1])
	}
}

// frame is what the handlers know of the packet that they answer.
type frame struct {
	iface     uint16
	src       [6]byte
	multicast bool // the frame was sent to a group or to everyone
}

func (h *Host) input(m *packet.Mbuf, off int, iface uint16) graph.Reason {
	n := int(m.PktLen) - off
	if n <= 0 || n > maxPacket {
		return xMalformed
	}
	var tmp [22]byte
	f := frame{iface: iface}
	var typ uint16
	if l2 := m.View(0, min(off, len(tmp)), tmp[:]); len(l2) >= packet.EtherSize {
		if o, t, _, _, ok := packet.ParseEther(l2); ok && o == off {
			typ = t
			f.src = packet.Ethernet(l2).Src()
			f.multicast = packet.Ethernet(l2).IsMulticast()
		}
	}
	b := m.View(off, n, h.rx)
	if b == nil {
		return xMalformed
	}
	if typ == 0 { // decapsulated
		switch b[0] >> 4 {
		case 4:
			typ = packet.EtherIPv4
		case 6:
			typ = packet.EtherIPv6
		}
	}
	switch typ {
	case packet.EtherARP:
		return h.arp(f, b)
	case packet.EtherIPv4:
		return h.ipv4(f, b)
	case packet.EtherIPv6:
		return h.ipv6(f, b)
	}
	return xProtocol
}

// Refill puts answers on the road.
func (h *Host) Refill(v *graph.Vector) int {
	n := h.parked.Refill(v)
	if h.parked.Len() > 0 {
		h.w.Wake = true
	}
	return n
}

// Held is the number of packets that wait for the road or for a neighbour.
func (h *Host) Held() int { return h.parked.Len() + h.cache.held }

// Flush drops what is held: the worker stops.
func (h *Host) Flush() {
	for p, ok := h.parked.Get(); ok; p, ok = h.parked.Get() {
		h.w.Discard(p.Idx, graph.XClosing)
	}
	for i := range h.cache.set {
		h.drop(&h.cache.set[i], graph.XClosing)
	}
	for i := range h.reasm {
		h.reasm[i].used = false
	}
	h.s.mu.Lock()
	defer h.s.mu.Unlock()
	l := slices.DeleteFunc(slices.Clone(*h.s.hosts.Load()), func(o *Host) bool { return o == h })
	h.s.hosts.Store(&l)
}

// Tick does what is due.
func (h *Host) Tick() {
	for {
		select {
		case e := <-h.in:
			h.event(e)
			continue
		default:
		}
		break
	}
	if h.w.Now >= h.cache.next {
		h.expire()
	}
	for i := range h.reasm {
		if d := &h.reasm[i]; d.used && h.w.Now >= d.deadline {
			h.timeout(d)
		}
	}
	h.mldTick()
}

func (h *Host) event(e event) {
	switch e.kind {
	case evSolicit:
		h.Solicit(e.iface, e.addr)
	case evAdvertise:
		h.advertised(e, false)
	case evSource:
		h.heard(e, false)
	case evQuery:
		h.queried(e)
	}
}

// allow takes one error from the token bucket.
func (h *Host) allow() bool {
	c := &h.s.config
	now, full := h.w.Now, uint64(c.ErrorBurst)*h.hz
	if h.filled == 0 || now < h.filled {
		h.filled = now
	}
	h.tokens = min(full, h.tokens+min(now-h.filled, full)*uint64(c.ErrorRate))
	h.filled = now
	if h.tokens < h.hz {
		h.w.C.Exit[nLimited]++
		return false
	}
	h.tokens -= h.hz
	return true
}

// mine reports whether the host of the interface has the unicast address.
func (h *Host) mine(iface uint16, a netip.Addr) bool {
	addrs := h.w.Tables.Addrs.Load()
	if a.Is6() && a.IsLinkLocalUnicast() {
		return a == h.linkLocal(iface) || slices.ContainsFunc(addrs.By[iface], func(p netip.Prefix) bool { return p.Addr() == a })
	}
	_, ok := addrs.Is[a]
	return ok
}

// linkLocal is the interface's link-local IPv6 address.
func (h *Host) linkLocal(iface uint16) netip.Addr {
	for _, p := range h.w.Tables.Addrs.Load().By[iface] {
		if a := p.Addr(); a.Is6() && a.IsLinkLocalUnicast() {
			return a
		}
	}
	m := h.mac(iface)
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// mac is the interface's Ethernet address.
func (h *Host) mac(iface uint16) (m [6]byte) {
	w := h.w.Tables.Ifaces[iface&(graph.MaxIfaces-1)].MAC >> 16
	for i := range m {
		m[i] = byte(w >> (8 * i))
	}
	return m
}
