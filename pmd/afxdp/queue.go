package afxdp

import (
	"sync/atomic"
	"unsafe" // an mbuf header written as words

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

const (
	txBudget  = 256 // packets that one sendto may move in copy mode
	fillBatch = 64  // empty buffers given to the kernel at a time
	lookAhead = 16  // descriptors of the next burst whose buffers Rx prefetches

	addrBits = 48 // of a descriptor's address; an offset stands above them
	addrMask = 1<<addrBits - 1
	units    = packet.Stride >> 6 // index distance of neighbouring buffers

	// inRx marks a buffer of which the kernel has the empty chunk; the bits under it count
	// how often it is being sent. A buffer with neither is not in this queue's hands.
	inRx = 1 << 15
)

// queue is a socket and what the kernel holds of the pool through it.
type queue struct {
	s     socket
	c     *packet.Cache // nil while stopped
	t     *pmd.Stats
	first uint32 // index of the pool's first buffer
	span  uint32 // indices of the pool
	base  uint64 // address of the pool's memory
	state []uint16

	segs   int  // longest chain that the kernel sends
	shift  uint // a chunk or packet may not lie across multiples of 1<<shift
	zc     bool
	finish bool // packets may have unfinished checksums
	dead   bool // the device is gone

	target  int // empty buffers to keep with the kernel
	missing int // how many of them it lacks
	lack    int // how many may be missing before Rx gives new ones
	out     int // descriptors being sent
	// A packet of which the kernel has not delivered the end, by its first and last
	// segment; 0 for none.
	head, tail uint32
	parked     []uint32 // buffers that the kernel cannot take, see shift
	buf        [fillBatch]uint32
	// pre and one are scratch that must not lie on the stack of a hot call.
	pre [lookAhead]uint32
	one [1]uint32

	port *Port
	id   int
	past xdpStats // of sockets closed before, under port.mu
}

// Rx receives packets, from where the kernel wrote them.
func (q *queue) Rx(dst []uint32) int {
	if q.c == nil {
		return 0
	}
	if q.out != 0 {
		q.reap()
		if t := &q.s.tx; t.cp != atomic.LoadUint32(t.cons) {
			q.kick()
		}
	}
	if q.missing >= q.lack {
		q.refill()
	}
	r := &q.s.rx
	avail := atomic.LoadUint32(r.prod) - r.cc
	if avail == 0 {
		if q.s.fill.needWakeup() && !q.dead {
			q.s.wake()
		}
		return 0
	}
	ring, state, first, mask := q.s.rxd, q.state, q.first, uint32(len(q.s.rxd)-1)
	cc, end := r.cc, r.cc+avail
	n, bad := 0, 0
	head, tail := q.head, q.tail
	for cc != end && n < len(dst) {
		d := ring[cc&mask]
		cc++
		at := d.addr & addrMask
		k := at / packet.Stride
		if k >= uint64(len(state)) || state[k] != inRx {
			bad++
			continue
		}
		state[k] = 0
		i := first + uint32(k)*units
		m := packet.At(i)
		off := at + d.addr>>addrBits - k*packet.Stride - packet.HeaderSize
		// Whole words: DataOff, RefCnt 1, NbSegs 1, Port 0; flags; Type 0, PktLen;
		// DataLen, no tag, no hash.
		w := (*[6]uint64)(unsafe.Pointer(m))
		w[2] = off | 1<<16 | 1<<32
		w[3] = 0
		w[4] = uint64(d.len) << 32
		w[5] = uint64(d.len & 0xffff)
		if head != 0 {
			h := packet.At(head)
			h.NbSegs++
			h.PktLen += d.len
			packet.At(tail).SetNext(m)
		} else {
			head = i
		}
		tail = i
		if d.opts&unix.XDP_PKT_CONTD == 0 {
			dst[n] = head
			n++
			head = 0
		}
	}
	q.head, q.tail = head, tail
	q.missing += int(cc-r.cc) - bad
	r.cc = cc
	atomic.StoreUint32(r.cons, cc)
	q.t.RxPackets += uint64(n)
	q.t.RxBad += uint64(bad)
	if q.finish {
		for _, i := range dst[:n] {
			finishChecksum(packet.At(i))
		}
	}
	q.ahead(cc, end)
	return n
}

// ahead prefetches the buffers of descriptors that the next Rx will take.
func (q *queue) ahead(cc, end uint32) {
	n := min(end-cc, lookAhead)
	mask := uint32(len(q.s.rxd) - 1)
	for j := range n {
		k := (q.s.rxd[(cc+j)&mask].addr & addrMask) / packet.Stride
		q.pre[j%lookAhead] = q.first + uint32(k)*units
	}
	packet.Prefetch(q.pre[:n])
}

// refill gives the kernel empty buffers in the place of those that it filled.
func (q *queue) refill() {
	r := &q.s.fill
	mask := uint32(len(q.s.filla) - 1)
	for q.missing > 0 {
		n := q.c.AllocRaw(q.buf[:min(q.missing, fillBatch)])
		cp := r.cp
		for _, i := range q.buf[:n] {
			d := i - q.first
			at := uint64(d) << 6
			if (at^(at+chunkSize-1))>>q.shift != 0 {
				q.park(i)
				continue
			}
			q.state[d/units] = inRx
			q.s.filla[cp&mask] = at
			cp++
		}
		q.missing -= int(cp - r.cp)
		r.cp = cp
		atomic.StoreUint32(r.prod, cp)
		if n < fillBatch {
			break
		}
	}
	if r.needWakeup() {
		q.s.wake()
	}
}

// park keeps a buffer that crosses a border of pages, until Stop.
func (q *queue) park(i uint32) { q.parked = append(q.parked, i) }

// reap takes back what the kernel has sent.
func (q *queue) reap() {
	r := &q.s.done
	end := atomic.LoadUint32(r.prod)
	if end == r.cc {
		return
	}
	mask := uint32(len(q.s.donea) - 1)
	j := 0
	for cc := r.cc; cc != end; cc++ {
		a := q.s.donea[cc&mask]
		k := (a&addrMask + a>>addrBits) / packet.Stride
		if k >= uint64(len(q.state)) || q.state[k]&^inRx == 0 {
			continue
		}
		q.state[k]--
		q.out--
		q.buf[j%fillBatch] = q.first + uint32(k)*units
		if j++; j == fillBatch {
			q.c.FreeSegs(q.buf[:])
			j = 0
		}
	}
	q.c.FreeSegs(q.buf[:j])
	r.cc = end
	atomic.StoreUint32(r.cons, end)
}

// Tx sends packets from where they lie.
func (q *queue) Tx(src []uint32) int {
	if q.out != 0 {
		q.reap()
	}
	if q.dead || q.c == nil {
		q.t.TxFull += uint64(len(src))
		return 0
	}
	r := &q.s.tx
	free := r.size() - (r.cp - r.cc)
	if int(free) < len(src)+q.segs {
		r.cc = atomic.LoadUint32(r.cons)
		free = r.size() - (r.cp - r.cc)
	}
	n, failed := 0, 0
	for {
		ring, state, first, span, base := q.s.txd, q.state, q.first, q.span, q.base
		mask, shift := uint32(len(ring)-1), q.shift
		cp, end := r.cp, r.cp+free
		for n < len(src) && cp != end {
			d := src[n] - first
			m := packet.At(src[n])
			at := uint64(m.BufAddr) + uint64(m.DataOff) - base
			l := uint64(m.DataLen)
			k := int(d / units)
			if d >= span || m.Next != 0 || m.OlFlags&packet.FlagIndirect != 0 || l == 0 || (at^(at+l-1))>>shift != 0 || k >= len(state) {
				break
			}
			state[k]++
			ring[cp&mask] = desc{addr: at, len: uint32(l)}
			cp++
			n++
		}
		q.out += int(cp - r.cp)
		free -= cp - r.cp
		r.cp = cp
		if n == len(src) || free == 0 {
			break
		}
		used, ok := q.txOdd(packet.At(src[n]), int(free))
		if used < 0 {
			break
		}
		n++
		free -= uint32(used)
		if !ok {
			failed++
		}
	}
	atomic.StoreUint32(r.prod, r.cp)
	if r.cp != r.cc {
		q.kick()
	}
	q.t.TxPackets += uint64(n - failed)
	q.t.TxFailed += uint64(failed)
	q.t.TxFull += uint64(len(src) - n)
	return n
}

// txOdd queues a packet that is not one plain buffer of the pool: a chain, a clone, or one that must be
// copied. It returns the descriptors used, negative where the ring has no room; false where
// the packet cannot be sent and was freed.
func (q *queue) txOdd(m *packet.Mbuf, free int) (used int, ok bool) {
	segs, fits := 0, true
	for s := m; s != nil; s = s.NextSeg() {
		if s.DataLen != 0 {
			segs++
			fits = fits && q.sendable(s)
		}
	}
	if segs == 0 {
		q.c.Free1(m)
		return 0, false
	}
	if !fits || segs > q.segs {
		if free < q.segs {
			return -1, false
		}
		if m = q.copied(m); m == nil {
			return 0, false
		}
		segs = int(m.NbSegs)
	}
	if free < segs {
		return -1, false
	}
	mask := uint32(len(q.s.txd) - 1)
	cp := q.s.tx.cp
	for left := segs; m != nil; {
		next := m.NextSeg()
		if m.DataLen == 0 {
			q.freeSeg(m)
			m = next
			continue
		}
		left--
		d := desc{addr: uint64(m.BufAddr) + uint64(m.DataOff) - q.base, len: uint32(m.DataLen)}
		if left != 0 {
			d.opts = unix.XDP_PKT_CONTD
		}
		owner := m
		if m.OlFlags&packet.FlagIndirect != 0 {
			owner = m.Detach()
			q.freeSeg(m)
		}
		q.state[(owner.Index()-q.first)/units]++
		q.s.txd[cp&mask] = d
		cp++
		m = next
	}
	q.out += segs
	q.s.tx.cp = cp
	return segs, true
}

// sendable reports whether the kernel can send a segment from where it lies.
func (q *queue) sendable(s *packet.Mbuf) bool {
	if s.OlFlags&packet.FlagIndirect != 0 && s.RefCnt != 1 {
		return false
	}
	at := uint64(s.BufAddr) + uint64(s.DataOff) - q.base
	return s.Direct().Index()-q.first < q.span && s.DataLen <= chunkSize && (at^(at+uint64(s.DataLen)-1))>>q.shift == 0
}

// copied moves a packet's bytes into as few buffers of the pool as they need and
// frees it; nil where that is still too many, or there are no buffers.
func (q *queue) copied(m *packet.Mbuf) *packet.Mbuf {
	var head, tail *packet.Mbuf
	total := int(m.PktLen)
	segs := (total + packet.DataRoom - 1) / packet.DataRoom
	ok := segs <= q.segs
	for off := 0; ok && off < total; {
		s := q.alloc()
		if s == nil {
			ok = false
			break
		}
		if head == nil {
			head = s
		} else {
			tail.SetNext(s)
		}
		tail = s
		n := min(packet.DataRoom, total-off)
		s.DataLen = uint16(n)
		ok = m.CopyOut(off, s.Bytes()) == n
		off += n
	}
	q.c.Free1(m)
	if !ok {
		if head != nil {
			q.c.Free1(head)
		}
		return nil
	}
	head.NbSegs, head.PktLen = uint16(segs), uint32(total)
	return head
}

// alloc is a fresh buffer that the kernel can take.
func (q *queue) alloc() *packet.Mbuf {
	for {
		m := q.c.Alloc1()
		if m == nil {
			return nil
		}
		at := uint64(m.Index()-q.first) << 6
		if (at^(at+packet.Stride-1))>>q.shift == 0 {
			return m
		}
		q.park(m.Index())
	}
}

func (q *queue) freeSeg(m *packet.Mbuf) {
	q.one[0] = m.Index()
	q.c.FreeSegs(q.one[:])
}

// kick makes the kernel send what stands in the tx ring. In copy mode that happens in
// the call, some packets at a time; what the device has no room for stays for later.
func (q *queue) kick() {
	r := &q.s.tx
	if !r.needWakeup() {
		return
	}
	for stuck := 0; stuck < 2; {
		before := atomic.LoadUint32(r.cons)
		if before == r.cp {
			return
		}
		switch q.s.send() {
		case unix.ENXIO, unix.ENODEV, unix.EBADF:
			q.dead = true
			return
		case unix.ENETDOWN:
			return
		}
		if q.zc {
			return
		}
		q.reap()
		if atomic.LoadUint32(r.cons) == before {
			stuck++
		}
	}
}

// Fd is the socket: readable when its rx ring holds packets.
func (q *queue) Fd() int { return q.s.fd }

// Arm also sends what is still queued: a sleeping thread does not.
func (q *queue) Arm() bool {
	if q.c == nil {
		return true
	}
	if q.out != 0 {
		q.reap()
		q.kick()
	}
	if q.missing > 0 {
		q.refill()
	}
	return atomic.LoadUint32(q.s.rx.prod) == q.s.rx.cc
}

// Held counts buffers in the kernel's hands, and those of a packet half received.
func (q *queue) Held() int {
	if q.c == nil {
		return 0
	}
	n := q.target - q.missing + q.out + len(q.parked)
	if q.head != 0 {
		n += int(packet.At(q.head).NbSegs)
	}
	return n
}
