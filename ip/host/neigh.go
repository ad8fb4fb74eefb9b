package host

import (
	"net/netip"

	"millrace/packet"
	"millrace/pipeline/graph"
)

const (
	neighSets = 64
	neighWays = 4
	// maxHeld is how many packets wait for one neighbour; a further one drops the oldest.
	maxHeld = 8

	maxSolicit     = 3  // MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT
	retransSeconds = 1  // RETRANS_TIMER
	reachSeconds   = 30 // REACHABLE_TIME, times 0.5 to 1.5
	delaySeconds   = 5  // DELAY_FIRST_PROBE_TIME
)

// The states of RFC 4861 7.3.2.
const (
	absent = iota
	incomplete
	reachable
	stale
	delay
	probe
)

// neighbour is an entry of the neighbour cache, for ARP and ND alike.
type neighbour struct {
	addr  netip.Addr
	at    uint64 // when the state ends, never for stale
	used  uint64
	iface uint16
	mac   [6]byte
	state uint8
	tries uint8
	nheld uint8
	held  [maxHeld]uint32 // complete frames, but for the destination
}

// cache is set associative: what does not fit displaces what was not resolved, or is
// longest unused.
type cache struct {
	set  [neighSets * neighWays]neighbour
	next uint64 // earliest deadline of any entry
	held int
}

func ways(c *cache, iface uint16, a netip.Addr) []neighbour {
	b := a.As16()
	x := uint32(iface)
	for _, v := range b {
		x = (x ^ uint32(v)) * 16777619
	}
	s := (x ^ x>>15) % neighSets * neighWays
	return c.set[s : s+neighWays]
}

func (h *Host) find(iface uint16, a netip.Addr) *neighbour {
	w := ways(&h.cache, iface, a)
	for i := range w {
		if n := &w[i]; n.state != absent && n.iface == iface && n.addr == a {
			return n
		}
	}
	return nil
}

// create makes an entry, in a state to be set.
func (h *Host) create(iface uint16, a netip.Addr) *neighbour {
	w := ways(&h.cache, iface, a)
	rank := func(n *neighbour) uint64 {
		switch n.state {
		case absent:
			return 0
		case incomplete:
			return 1 + n.used>>2
		case stale:
			return 1<<62 + n.used>>2
		}
		return 1<<63 + n.used>>2
	}
	n := &w[0]
	for i := range w {
		if rank(&w[i]) < rank(n) {
			n = &w[i]
		}
	}
	h.drop(n, xUnresolved)
	*n = neighbour{addr: a, iface: iface, used: h.w.Now, at: never}
	return n
}

// drop ends what waits for a neighbour.
func (h *Host) drop(n *neighbour, why graph.Reason) {
	for _, i := range n.held[:n.nheld] {
		h.w.Discard(i, why)
	}
	h.cache.held -= int(n.nheld)
	n.nheld = 0
}

func (h *Host) enter(n *neighbour, state uint8, seconds uint64) {
	n.state = state
	n.at = never
	if seconds != 0 {
		n.at = h.w.Now + seconds*h.hz
		h.cache.next = min(h.cache.next, n.at)
	}
}

func (h *Host) enterReachable(n *neighbour) {
	h.enter(n, reachable, 1)
	n.at = h.w.Now + reachSeconds*h.hz/2 + h.rand.Uint64N(reachSeconds*h.hz)
}

// Solicit asks for a neighbour: see Service.Solicit. A neighbour that is known already is probed.
func (h *Host) Solicit(iface uint16, a netip.Addr) {
	a = a.WithZone("")
	if !a.IsValid() || a.IsMulticast() || a.IsUnspecified() || iface == 0 || iface >= graph.MaxIfaces || h.mine(iface, a) {
		return
	}
	n := h.find(iface, a)
	if n == nil {
		n = h.create(iface, a)
		h.resolve(n)
		return
	}
	n.used = h.w.Now
	if n.state == stale || n.state == delay {
		n.tries = 0
		h.ask(n, probe)
	}
}

func (h *Host) resolve(n *neighbour) {
	n.tries = 0
	h.ask(n, incomplete)
}

// ask sends one solicitation and waits for its answer.
func (h *Host) ask(n *neighbour, state uint8) {
	h.enter(n, state, retransSeconds)
	n.tries++
	if n.addr.Is4() {
		h.sendARPRequest(n, state == probe)
	} else {
		h.sendNS(n, state == probe)
	}
}

// expire does what is due in the neighbour cache.
func (h *Host) expire() {
	h.cache.next = never
	for i := range h.cache.set {
		n := &h.cache.set[i]
		if n.state == absent {
			continue
		}
		if n.at <= h.w.Now {
			switch n.state {
			case reachable:
				h.enter(n, stale, 0)
			case delay:
				n.tries = 0
				h.ask(n, probe)
			case incomplete, probe:
				if n.tries < maxSolicit {
					h.ask(n, n.state)
					break
				}
				h.drop(n, xUnresolved)
				n.state, n.at = absent, never
				if h.s.config.Lost != nil {
					h.s.config.Lost(n.iface, n.addr)
				}
			}
		}
		h.cache.next = min(h.cache.next, n.at)
	}
}

// toNeighbour sends a frame, whose destination is still open, to a neighbour on the
// interface, or lets it wait for it.
func (h *Host) toNeighbour(iface uint16, a netip.Addr, m *packet.Mbuf) {
	n := h.find(iface, a)
	if n == nil {
		n = h.create(iface, a)
		h.hold(n, m)
		h.resolve(n)
		return
	}
	n.used = h.w.Now
	switch n.state {
	case incomplete:
		h.hold(n, m)
		return
	case stale:
		h.enter(n, delay, delaySeconds)
	}
	h.sendTo(iface, n.mac, m)
}

func (h *Host) hold(n *neighbour, m *packet.Mbuf) {
	if n.nheld == maxHeld {
		h.w.Discard(n.held[0], xUnresolved)
		copy(n.held[:], n.held[1:])
		n.nheld--
		h.cache.held--
	}
	n.held[n.nheld] = m.Index()
	n.nheld++
	h.cache.held++
}

// setMAC stores a neighbour's address and sends what waits for it.
func (h *Host) setMAC(n *neighbour, mac [6]byte) {
	if n.state == absent || n.state == incomplete || n.mac != mac {
		n.mac = mac
		if h.s.config.Learn != nil {
			h.s.config.Learn(n.iface, n.addr, mac)
		}
	}
	k := n.nheld
	n.nheld = 0
	h.cache.held -= int(k)
	for _, i := range n.held[:k] {
		h.sendTo(n.iface, mac, packet.At(i))
	}
}

// heard takes the sender of a solicitation or ARP request into the cache
// (RFC 4861 7.2.3); first is set on the worker that received it.
func (h *Host) heard(e event, first bool) {
	if e.mac[0]&1 != 0 || e.mac == [6]byte{} {
		return
	}
	if first {
		h.tell(e)
	}
	n := h.find(e.iface, e.addr)
	if n == nil {
		n = h.create(e.iface, e.addr)
	}
	if n.state != absent && n.state != incomplete && n.mac == e.mac {
		return
	}
	h.setMAC(n, e.mac)
	h.enter(n, stale, 0)
}

// Flags of a neighbour advertisement.
const (
	naRouter    = 0x80
	naSolicited = 0x40
	naOverride  = 0x20
)

// advertised takes a neighbour advertisement or ARP reply (RFC 4861 7.2.5).
func (h *Host) advertised(e event, first bool) {
	if e.hasLL && (e.mac[0]&1 != 0 || e.mac == [6]byte{}) {
		return
	}
	if first {
		h.tell(e)
	}
	n := h.find(e.iface, e.addr)
	if n == nil {
		return
	}
	if n.state == incomplete {
		if !e.hasLL {
			return
		}
		h.setMAC(n, e.mac)
		h.confirmed(n, e.flags, true)
		return
	}
	changed := e.hasLL && e.mac != n.mac
	if changed && e.flags&naOverride == 0 {
		if n.state == reachable {
			h.enter(n, stale, 0)
		}
		return
	}
	if changed {
		h.setMAC(n, e.mac)
	}
	h.confirmed(n, e.flags, changed)
}

func (h *Host) confirmed(n *neighbour, flags uint8, changed bool) {
	switch {
	case flags&naSolicited != 0:
		h.enterReachable(n)
	case changed:
		h.enter(n, stale, 0)
	}
}
