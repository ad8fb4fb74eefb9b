// Package neigh holds packets whose next hop has no link-layer address yet, while it is asked
// for (RFC 826, RFC 4861 7.2.2), so that the first packet of a conversation is not lost.
//
// # Life of a held packet
//
// The lookup leads to a group that is unresolved: the packet leaves for XUnresolved and
// waits in the queue of its neighbour. When the Resolver's generation changes all waiting
// packets go down the road again from the lookup, at most 250,000 a second: they are
// forwarded, or come back to the same queue, whose clock goes on. After HoldSeconds the queue's packets are
// dropped with the error that is owed.
//
// # Bounds
//
// All state is bounded and made in advance, for each worker: MaxNeighbours queues, PerNeighbour
// packets in one, MaxHeld in all. A full queue gives up its oldest packet (RFC 4861
// 7.2.2: the newest is the one still wanted); where the worker's limits are reached the
// newest is refused, so that a scan of an empty subnet cannot push out what others wait for.
package neigh

import (
	"encoding/binary"
	"net/netip"
	"unsafe" // headers of packets on the road, which the check stages have judged

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// Resolver knows next hops. Its methods are called on workers' threads: they may not
// block or allocate.
type Resolver interface {
	// Target is whom a packet for dst that was routed to a group must reach, resolved or
	// not: the gateway, or dst itself on a connected network. For a group of several, any. ok is
	// false where the group is no more, or leads to no neighbour.
	Target(group uint16, dst netip.Addr) (iface uint16, nh netip.Addr, ok bool)
	// Ask wants the neighbour resolved. It may forget the wish where many wait: it is asked again.
	Ask(iface uint16, nh netip.Addr)
	// Generation is another number after any neighbour was resolved or failed, or any
	// route changed, and the tables say so.
	Generation() uint64
}

const (
	// MaxNeighbours, PerNeighbour and MaxHeld bound what a worker holds. Linux holds 101 packets of
	// full size for a neighbour; 64 are the burst in which a window of TCP arrives.
	MaxNeighbours = 1024
	PerNeighbour  = 64
	MaxHeld       = 4096
	// HoldSeconds is how long a packet waits: three requests a second apart
	// (RFC 4861 10, MAX_MULTICAST_SOLICIT and RETRANS_TIMER).
	HoldSeconds = 3
	// askSeconds is the time between two wishes for one neighbour.
	askSeconds = 1

	scansPerSecond = 100 // looks at clocks of queues
	// An empty queue whose packets went to try again is forgotten when none came
	// back for a fiftieth of a second.
	forgetPerSecond = 50
	// triesPerSecond bounds how many packets go to try again, so that a scan and many
	// changes of routes at once do not take the core.
	triesPerSecond = 250000
)

// Reasons.
var (
	// XUnresolved is for lookups to give to packets whose next hop is not resolved.
	XUnresolved = graph.NewReason(graph.ReasonInfo{Stage: "lookup", Name: "unresolved", Kind: graph.Hold, To: "neighbour",
		Doc: "The next hop's link-layer address is not known yet: the packet waits for ARP or neighbour discovery."})
	XUnreachable = graph.NewReason(graph.ReasonInfo{Stage: "neighbour", Name: "unreachable",
		Doc:   "The next hop did not answer ARP or neighbour discovery for 3 seconds. Is it up, and on this network? `ip neigh` shows what the kernel knows.",
		ICMP4: graph.Owe(3, 1), ICMP6: graph.Owe(1, 3)})
	XQueueFull = graph.NewReason(graph.ReasonInfo{Stage: "neighbour", Name: "queue-full",
		Doc: "64 newer packets wait for the same neighbour: the oldest gave way. Senders are faster than the neighbour answers; normal for the first moment of a burst."})
	XTableFull = graph.NewReason(graph.ReasonInfo{Stage: "neighbour", Name: "table-full",
		Doc: "Packets wait for 1,024 neighbours, or 4,096 packets wait, on this worker: most likely somebody scans a connected network. Make it smaller, or filter."})
	XGone = graph.NewReason(graph.ReasonInfo{Stage: "neighbour", Name: "route-gone",
		Doc: "The route of a packet that had to wait for a neighbour was removed at that moment. The next packet takes the new one."})
)

// Stage is the exit stage "neighbour". Its packets go on at "lookup".
func Stage(r Resolver) *graph.Stage {
	return &graph.Stage{
		Name: "neighbour", Doc: "hold packets until their next hop is resolved",
		Reasons: []graph.Reason{XUnreachable, XQueueFull, XTableFull, XGone}, Resume: "lookup",
		New: func(w *graph.Worker) graph.Runner { return newHold(w, r) },
	}
}

// hold is a worker's instance. Queues are lists in slots; none is the end of a list.
type hold struct {
	w   *graph.Worker
	r   Resolver
	gen uint64
	hz  uint64

	heads   [MaxNeighbours]int16 // hash table of queues, by Mix
	queues  [MaxNeighbours]queue
	active  [MaxNeighbours]int16 // queues in use, then free ones
	nActive int

	slots [MaxHeld]slot
	free  int16
	held  int // slots in use

	ready    *graph.ParkQueue // packets on their way to try again
	nextTry  uint64
	nextScan uint64
}

const none = -1

type queue struct {
	nh         netip.Addr
	iface      uint16
	n          int16
	head, tail int16 // slots, oldest first
	next       int16 // in the hash table
	place      int16 // in active
	first      uint64
	asked      uint64
	tried      uint64 // when the packets last went to try again
}

type slot struct {
	graph.Parked
	next int16
}

func newHold(w *graph.Worker, r Resolver) *hold {
	h := &hold{w: w, r: r, hz: clock.Hz(), ready: graph.NewParkQueue(MaxHeld), gen: r.Generation()}
	for i := range h.queues {
		h.heads[i], h.active[i], h.queues[i].place = none, int16(i), int16(i)
	}
	for i := range h.slots {
		h.slots[i].next = int16(i) + 1
	}
	h.slots[MaxHeld-1].next = none
	return h
}

func (h *hold) Run(*graph.Vector) {}

// Target is the Resolver's, for ICMP redirects.
func (h *hold) Target(group uint16, dst netip.Addr) (uint16, netip.Addr, bool) {
	return h.r.Target(group, dst)
}

func (h *hold) Take(v *graph.Vector, pos []uint8, _ graph.Reason) {
	for _, i := range pos {
		iface, nh, ok := h.r.Target(v.NH[i], dst(v.Header(i)))
		if !ok {
			h.w.Discard(v.Idx[i], XGone)
			continue
		}
		q := h.find(iface, nh)
		if q == none {
			if h.nActive == MaxNeighbours || h.free == none {
				h.w.Discard(v.Idx[i], XTableFull)
				continue
			}
			q = h.open(iface, nh)
		}
		if h.queues[q].n == PerNeighbour {
			h.w.Discard(h.pop(q).Idx, XQueueFull)
		}
		if h.free == none {
			h.w.Discard(v.Idx[i], XTableFull)
			continue
		}
		h.push(q, v.Park(i))
	}
}

// dst is the destination of the IP packet at p.
func dst(p unsafe.Pointer) netip.Addr {
	if *(*byte)(p)>>4 == 4 {
		return netip.AddrFrom4(*(*[4]byte)(unsafe.Add(p, 16)))
	}
	return netip.AddrFrom16(*(*[16]byte)(unsafe.Add(p, 24)))
}

func bucket(iface uint16, nh netip.Addr) uint32 {
	a := nh.As16()
	return packet.Mix(binary.NativeEndian.Uint64(a[:])^uint64(iface)<<32, binary.NativeEndian.Uint64(a[8:])) % MaxNeighbours
}

func (h *hold) find(iface uint16, nh netip.Addr) int16 {
	for q := h.heads[bucket(iface, nh)]; q != none; q = h.queues[q].next {
		if e := &h.queues[q]; e.iface == iface && e.nh == nh {
			return q
		}
	}
	return none
}

// open starts a neighbour's queue.
func (h *hold) open(iface uint16, nh netip.Addr) int16 {
	q := h.active[h.nActive]
	h.nActive++
	b, e := bucket(iface, nh), &h.queues[q]
	e.nh, e.iface, e.n, e.head, e.tail = nh, iface, 0, none, none
	e.first, e.asked, e.tried = h.w.Now, h.w.Now, 0
	e.next, h.heads[b] = h.heads[b], q
	h.r.Ask(iface, nh)
	return q
}

// shut forgets a neighbour whose queue is empty.
func (h *hold) shut(q int16) {
	e := &h.queues[q]
	at := &h.heads[bucket(e.iface, e.nh)]
	for *at != q {
		at = &h.queues[*at].next
	}
	*at = e.next
	e.nh = netip.Addr{}
	h.nActive--
	last := h.active[h.nActive]
	h.active[e.place], h.active[h.nActive] = last, q
	h.queues[last].place, e.place = e.place, int16(h.nActive)
}

func (h *hold) push(q int16, p graph.Parked) {
	s, e := h.free, &h.queues[q]
	h.free = h.slots[s].next
	h.slots[s] = slot{p, none}
	if e.n == 0 {
		e.head = s
	} else {
		h.slots[e.tail].next = s
	}
	e.tail = s
	e.n++
	h.held++
}

// pop takes the oldest packet of a queue that is not empty.
func (h *hold) pop(q int16) graph.Parked {
	e := &h.queues[q]
	s := e.head
	e.head = h.slots[s].next
	h.slots[s].next, h.free = h.free, s
	e.n--
	h.held--
	return h.slots[s].Parked
}

// Refill puts all packets on the road again when something became of any neighbour.
func (h *hold) Refill(v *graph.Vector) int {
	if h.held != 0 && h.ready.Len() == 0 && h.w.Now >= h.nextTry {
		if gen := h.r.Generation(); gen != h.gen {
			h.gen = gen
			h.retry()
		}
	}
	return h.ready.Refill(v)
}

func (h *hold) retry() {
	h.nextTry = h.w.Now + uint64(h.held)*h.hz/triesPerSecond
	for _, q := range h.active[:h.nActive] {
		for h.queues[q].n != 0 {
			h.ready.Put(h.pop(q))
		}
		h.queues[q].tried = h.w.Now
	}
}

// Tick gives up what has waited long enough, and asks again for the rest.
func (h *hold) Tick() {
	now := h.w.Now
	if h.nActive == 0 || now < h.nextScan {
		return
	}
	h.nextScan = now + h.hz/scansPerSecond
	for k := h.nActive - 1; k >= 0; k-- {
		q := h.active[k]
		e := &h.queues[q]
		switch {
		case e.n == 0:
			if h.ready.Len() == 0 && now-e.tried > h.hz/forgetPerSecond {
				h.shut(q)
			}
		case now-e.first > HoldSeconds*h.hz:
			for e.n != 0 {
				h.w.Leave(h.pop(q), XUnreachable)
			}
			h.shut(q)
		case now-e.asked > askSeconds*h.hz:
			e.asked = now
			h.r.Ask(e.iface, e.nh)
		}
	}
}

func (h *hold) Held() int { return h.held + h.ready.Len() }

func (h *hold) Flush() {
	for _, q := range h.active[:h.nActive] {
		for h.queues[q].n != 0 {
			h.w.Discard(h.pop(q).Idx, graph.XClosing)
		}
	}
	for p, ok := h.ready.Get(); ok; p, ok = h.ready.Get() {
		h.w.Discard(p.Idx, graph.XClosing)
	}
}
