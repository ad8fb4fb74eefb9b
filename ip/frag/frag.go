// Package frag fragments IPv4 packets that are larger than the MTU of their way out
// (RFC 791 3.2, RFC 1812 4.2.2.7).
//
// A fragment is a new buffer with its header, chained to indirect buffers that
// borrow their part of the payload from the packet: no payload is copied, except for ports
// that cannot send a chain so long.
//
// Fragments go on at the rewrite stage with the adjacency that the packet had. The stage's
// state belongs to one worker.
package frag

import (
	"unsafe" // headers in the vector, which the check stages have judged

	"millrace/ip"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// Reasons for the rewrite stage to give to packets larger than their adjacency's MTU.
var (
	XFragment = graph.NewReason(graph.ReasonInfo{Stage: "rewrite", Name: "fragment", Kind: graph.Hold, To: "fragment",
		Doc: "The packet is larger than the MTU of its way out and is sent on in fragments. It costs several times a packet's price: let hosts do path MTU discovery, or clamp the MSS of TCP."})
	XDF = graph.NewReason(graph.ReasonInfo{Stage: "rewrite", Name: "dont-fragment",
		Doc:   "The packet is larger than the MTU of its way out and may not be fragmented (DF). The sender learns the MTU from the ICMP error (RFC 1191); if it goes on, something drops the errors.",
		ICMP4: graph.Owe(3, 4)})
	X6TooBig = graph.NewReason(graph.ReasonInfo{Stage: "rewrite", Name: "too-big",
		Doc:   "The packet is larger than the MTU of its way out, and routers do not fragment IPv6. The sender learns the MTU from the ICMPv6 error (RFC 8201); if it goes on, something drops the errors.",
		ICMP6: graph.Owe(2, 0)})
)

// Why packets to be fragmented are dropped.
var (
	XNoBuffer = graph.NewReason(graph.ReasonInfo{Stage: "fragment", Name: "no-buffer",
		Doc: "No buffers were left for a packet's fragments, or too many fragments waited. Make the pool larger."})
	XMTU = graph.NewReason(graph.ReasonInfo{Stage: "fragment", Name: "mtu-too-small",
		Doc: "The MTU leaves no room for 8 bytes behind the header, or would make more than 2,048 fragments: IPv4 needs an MTU of at least 68."})
	XOffset = graph.NewReason(graph.ReasonInfo{Stage: "fragment", Name: "bad-offset",
		Doc: "A fragment that ends behind byte 65,535 of its packet: an attack on what reassembles it."})
)

const (
	queueSize    = 4096 // fragments that wait for the next round, a power of two
	maxFragments = 2048 // of one packet; 65,535 bytes at an MTU of 68 make 1,365
	maxHeader    = 60
)

// Stage is the exit stage "fragment". Its packets go on at "rewrite".
func Stage() *graph.Stage {
	return &graph.Stage{
		Name: "fragment", Doc: "fragment IPv4 packets for their way's MTU",
		Reasons: []graph.Reason{XNoBuffer, XMTU, XOffset}, Resume: "rewrite",
		New: func(w *graph.Worker) graph.Runner {
			return &fragmenter{w: w, queue: graph.NewParkQueue(queueSize)}
		},
	}
}

type fragmenter struct {
	w     *graph.Worker
	queue *graph.ParkQueue
	made  [maxFragments]uint32 // of the packet at hand
	first [maxHeader]byte      // header of the first fragment, options and all
	later [maxHeader]byte      // and of the others
}

func (f *fragmenter) Run(*graph.Vector) {}

func (f *fragmenter) Take(v *graph.Vector, pos []uint8, _ graph.Reason) {
	for _, i := range pos {
		if why := f.split(v, i); why != 0 {
			f.w.Discard(v.Idx[i], why)
		}
	}
	f.w.Wake = true
}

// split queues the fragments of the packet at position i and frees it; or says why it
// cannot, and leaves nothing behind.
func (f *fragmenter) split(v *graph.Vector, i uint8) graph.Reason {
	w, m, l3 := f.w, v.Mbuf(i), v.L3Off(i)
	adj := &w.Tables.Adjs[v.Adj[i]]
	head := packet.IPv4(unsafe.Slice((*byte)(v.Header(i)), packet.IPv4Size))
	hl := head.HeaderLen()
	first := packet.IPv4(f.first[:hl])
	if m.CopyOut(l3, first) < hl {
		return XMTU
	}
	later := packet.IPv4(f.later[:packet.IPv4Size+ip.LaterOptions(first, f.later[packet.IPv4Size:])])
	copy(later, first[:packet.IPv4Size])
	later[0] = 0x40 | uint8(len(later)/4)

	mtu, all, start := int(adj.MTU), first.TotalLen()-hl, first.FragOff()
	if start+all > 0xffff {
		return XOffset
	}
	if mtu < hl+8 {
		return XMTU
	}
	segments := w.Tx[adj.Port&(graph.MaxPorts-1)].Segments
	room := queueSize - f.queue.Len()
	n := 0
	why := graph.Reason(0)
	for off := 0; off < all; n++ {
		h := later
		if n == 0 {
			h = first
		}
		size := all - off
		if size > mtu-len(h) {
			size = (mtu - len(h)) &^ 7
		}
		if n == maxFragments {
			why = XMTU
			break
		}
		if n == room {
			why = XNoBuffer
			break
		}
		x := f.one(m, l3+hl+off, size, h, segments)
		if x == nil {
			why = XNoBuffer
			break
		}
		b := packet.IPv4(x.Bytes())
		b.SetTotalLen(len(h) + size)
		fo := first.FlagsOff()&^packet.IPv4OffMask | uint16((start+off)>>3)
		if off += size; off < all {
			fo |= packet.IPv4MF
		}
		b.SetFlagsOff(fo)
		b.SetSum()
		f.made[n] = x.Index()
	}
	if why != 0 {
		w.Cache.Free(f.made[:n])
		return why
	}
	for _, x := range f.made[:n] {
		p := graph.ParkNew(packet.At(x), 0)
		p.In, p.NH, p.Adj = v.In[i], v.NH[i], v.Adj[i]
		f.queue.Put(p)
	}
	w.C.Created += uint64(n - 1)
	w.Cache.Free1(m)
	return 0
}

// one makes a fragment of size payload bytes at offset off of m, behind header h, for a port that sends
// chains of so many segments, 0 for any; nil where there are no buffers.
func (f *fragmenter) one(m *packet.Mbuf, off, size int, h packet.IPv4, segments int) *packet.Mbuf {
	c := f.w.Cache
	x := c.Alloc1()
	if x == nil {
		return nil
	}
	x.Port, x.Type, x.RSS = m.Port, m.Type, m.RSS
	copy(x.Append(len(h)), h)
	body := c.CloneRange(m, off, size)
	if body == nil {
		c.Free1(x)
		return nil
	}
	if segments != 0 && 1+int(body.NbSegs) > segments && size <= x.TailSpace() {
		c.Free1(body)
		m.CopyOut(off, x.Append(size))
		return x
	}
	x.SetNext(body)
	x.NbSegs = 1 + body.NbSegs
	x.PktLen += uint32(size)
	return x
}

func (f *fragmenter) Refill(v *graph.Vector) int { return f.queue.Refill(v) }

func (f *fragmenter) Held() int { return f.queue.Len() }

func (f *fragmenter) Flush() {
	for p, ok := f.queue.Get(); ok; p, ok = f.queue.Get() {
		f.w.Discard(p.Idx, graph.XClosing)
	}
}
