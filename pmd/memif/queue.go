package memif

import (
	"sync/atomic"
	"unsafe" // shared memory: what a peer wrote is read once, then checked against the region

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

// queue is one queue pair. All but next, using, wake and epoll are its thread's.
type queue struct {
	next  atomic.Pointer[conn] // published by the port
	_     [56]byte
	using atomic.Pointer[conn] // what the thread may touch

	cur    *conn
	rx, tx *ring // of cur; nil while there is none
	cache  *packet.Cache
	stats  *pmd.Stats
	index  int
	left   uint32 // descriptors still to take from a connection that has ended
	ending bool
	armed  bool
	wake   int // eventfd
	epoll  int // of wake and the ring's eventfd, edge-triggered: nothing is ever read
	events [4]unix.EpollEvent
}

// one is what is written to an eventfd.
var one = [8]byte{1}

func newQueue(index int, stats *pmd.Stats) (*queue, error) {
	q := &queue{stats: stats, index: index, wake: -1}
	var err error
	if q.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, err
	}
	if q.wake, err = unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err != nil {
		q.close()
		return nil, err
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
	if err = unix.EpollCtl(q.epoll, unix.EPOLL_CTL_ADD, q.wake, &ev); err != nil {
		q.close()
		return nil, err
	}
	return q, nil
}

func (q *queue) close() {
	unix.Close(q.epoll)
	if q.wake >= 0 {
		unix.Close(q.wake)
	}
}

// Start takes the queue into the calling thread's hands.
func (q *queue) Start(c *packet.Cache) error {
	q.cache = c
	return nil
}

// Stop lets go of the connection. The queue holds no buffers: packets are copied.
func (q *queue) Stop() {
	q.disarm()
	q.cur, q.rx, q.tx, q.ending = nil, nil, nil, false
	q.using.Store(nil)
	q.cache = nil
}

// Held is always 0.
func (q *queue) Held() int { return 0 }

// Fd is readable when packets come or the connection changes, once Arm was called.
func (q *queue) Fd() int { return q.epoll }

// Arm asks the peer for an interrupt.
func (q *queue) Arm() bool {
	if q.next.Load() != q.cur {
		return false
	}
	q.armed = true
	if q.rx == nil {
		return true
	}
	q.rx.word.And(^uint32(maskInt))
	if q.rx.ready() != 0 {
		q.disarm()
		return false
	}
	return true
}

// disarm ends what Arm began.
func (q *queue) disarm() {
	if !q.armed {
		return
	}
	q.armed = false
	if q.rx != nil {
		q.rx.word.Or(maskInt)
	}
	unix.EpollWait(q.epoll, q.events[:], 0)
}

// change takes up a new connection, after what the old one left.
func (q *queue) change() {
	q.disarm()
	next := q.next.Load()
	if next == q.cur {
		return
	}
	if q.rx != nil {
		if !q.ending {
			q.ending, q.left, q.tx = true, q.rx.size, nil
		}
		if q.left > 0 && q.rx.ready() != 0 {
			return
		}
	}
	q.ending = false
	for {
		// Only what next still points to after using does is safe from being unmapped.
		q.using.Store(next)
		now := q.next.Load()
		if now == next {
			break
		}
		next = now
	}
	q.cur, q.rx, q.tx = next, nil, nil
	if next == nil || next.fault.Load() != 0 {
		return
	}
	if q.index < len(next.rx) {
		q.rx = next.rx[q.index]
	}
	if n := len(next.tx); n > 0 {
		q.tx = next.tx[q.index%n]
	}
}

// broken remembers the first fault of a connection and stops using it. The port's
// goroutine disconnects the peer.
func (q *queue) broken(fault uint32) {
	q.stats.RxBad++
	q.cur.fault.CompareAndSwap(0, fault)
	q.rx, q.tx = nil, nil
}

// index is the peer's position: head for the server, tail for the client.
func (r *ring) index() uint16 {
	if r.client {
		return uint16(r.peer.Load())
	}
	return uint16(r.peer.Load() >> 16)
}

// publish moves our position to pos, which is n further.
func (r *ring) publish(pos uint16, n uint32) {
	r.pos = pos
	if r.client {
		r.own.Add(n << 16)
	} else {
		r.own.Store(uint32(pos))
	}
}

// ready is the number of descriptors to receive from, more than size where the peer errs.
func (r *ring) ready() uint32 { return uint32(r.index() - r.pos) }

// room is the number of descriptors to transmit in, more than size where the peer errs.
func (r *ring) room() uint32 {
	if r.client {
		if n := uint32(r.pos - r.index()); n <= r.size {
			return r.size - n
		}
		return ^uint32(0)
	}
	return uint32(r.index() - r.pos)
}

// descriptor is the one at a position: flags, region and length in the first word,
// offset and metadata in the second.
func (r *ring) descriptor(pos uint16) *[2]uint64 {
	return (*[2]uint64)(unsafe.Add(r.desc, uintptr(uint32(pos)&r.mask)*descSize))
}

// Rx copies packets out of the ring.
func (q *queue) Rx(dst []uint32) int {
	if q.next.Load() != q.cur || q.armed {
		q.change()
	}
	r := q.rx
	if r == nil {
		return 0
	}
	ready := r.ready()
	if ready == 0 || len(dst) == 0 {
		return 0
	}
	if ready > r.size {
		q.broken(faultIndex)
		return 0
	}
	n := q.cache.AllocRaw(dst[:min(int(ready), len(dst))])
	dst = dst[:n]
	regions := q.cur.regions
	r.prefetch(r.pos, n, regions, false)
	packet.Prefetch(dst)
	pos, end := r.pos, r.pos+uint16(ready)
	k, fault := 0, uint32(0)
	for k < n && pos != end && fault == 0 {
		for pos != end && k < n { // packets of one descriptor and one segment
			d := r.descriptor(pos)
			lo := atomic.LoadUint64(&d[0])
			size := lo >> 32
			if lo&descNext != 0 || size-1 >= packet.DataRoom {
				break
			}
			var src unsafe.Pointer
			if r.client {
				src = unsafe.Add(r.bufs, uintptr(uint32(pos)&r.mask)*bufStride)
				d[0] = bufSize << 32
			} else {
				reg, off := lo>>16&0xffff, atomic.LoadUint64(&d[1])&0xffffffff
				if reg >= uint64(len(regions)) || off+size > regions[reg].size {
					break
				}
				src = unsafe.Add(regions[reg].base, off)
			}
			m := packet.At(dst[k])
			m.DataOff, m.DataLen, m.PktLen, m.OlFlags = packet.Headroom, uint16(size), uint32(size), 0
			to := unsafe.Add(unsafe.Pointer(m), packet.DataStart)
			if size-64 <= 448 { // 64 to 512
				last := uintptr(size) - 64
				for i := uintptr(0); i < last; i += 64 {
					*(*[64]byte)(unsafe.Add(to, i)) = *(*[64]byte)(unsafe.Add(src, i))
				}
				*(*[64]byte)(unsafe.Add(to, last)) = *(*[64]byte)(unsafe.Add(src, last))
			} else if size-32 < 32 {
				*(*[32]byte)(to) = *(*[32]byte)(src)
				*(*[32]byte)(unsafe.Add(to, size-32)) = *(*[32]byte)(unsafe.Add(src, size-32))
			} else {
				copy(unsafe.Slice((*byte)(to), size), unsafe.Slice((*byte)(src), size))
			}
			pos++
			k++
		}
		if pos == end || k == n {
			break
		}
		var used uint32
		var ok bool
		used, ok, fault = q.receiveChain(r, packet.At(dst[k]), pos, uint32(end-pos))
		if used == 0 {
			break
		}
		pos += uint16(used)
		if ok {
			k++
		}
	}
	q.cache.FreeRaw(dst[k:])
	if done := uint32(pos - r.pos); done > 0 {
		r.publish(pos, done)
		q.left -= min(q.left, done)
	}
	if fault != 0 {
		q.broken(fault)
	}
	q.stats.RxPackets += uint64(k)
	return k
}

// bounds finds the bytes of a descriptor that the server has read.
func bounds(regions []region, lo, hi uint64) (unsafe.Pointer, uint32) {
	reg, off, size := lo>>16&0xffff, hi&0xffffffff, lo>>32
	if reg >= uint64(len(regions)) || off+size > regions[reg].size {
		return nil, faultRegion
	}
	return unsafe.Add(regions[reg].base, off), 0
}

// receiveChain receives one packet of any shape into head, an empty buffer, and buffers
// behind it. used is the number of descriptors done with, 0 where the packet has to
// wait for buffers; ok says that head holds it, and otherwise head is as it was.
func (q *queue) receiveChain(r *ring, head *packet.Mbuf, pos uint16, ready uint32) (used uint32, ok bool, fault uint32) {
	head.DataOff, head.DataLen, head.PktLen, head.OlFlags = packet.Headroom, 0, 0, 0
	total, tail := uint64(0), head
	give := func() {
		if rest := head.NextSeg(); rest != nil {
			head.SetNext(nil)
			q.cache.Free1(rest)
		}
		head.NbSegs = 1
	}
	for more := true; more; used++ {
		if used == ready {
			give()
			return used, false, faultChain
		}
		d := r.descriptor(pos + uint16(used))
		lo := atomic.LoadUint64(&d[0])
		more = lo&descNext != 0
		size := uint32(lo >> 32)
		var src unsafe.Pointer
		if r.client {
			src = unsafe.Add(r.bufs, uintptr(uint32(pos+uint16(used))&r.mask)*bufStride)
			if size > bufSize {
				fault = faultLength
			}
		} else {
			src, fault = bounds(q.cur.regions, lo, atomic.LoadUint64(&d[1]))
		}
		if fault != 0 {
			give()
			return used + 1, false, fault
		}
		total += uint64(size)
		if total > maxFrame {
			continue // counted below; its descriptors are walked to its end
		}
		for size > 0 {
			room := uint32(tail.TailSpace())
			if room == 0 {
				s := q.cache.Alloc1()
				if s == nil {
					give()
					return 0, false, 0
				}
				tail.SetNext(s)
				head.NbSegs++
				tail, room = s, uint32(s.TailSpace())
			}
			k := min(room, size)
			copy(unsafe.Slice((*byte)(unsafe.Add(tail.Data(), int(tail.DataLen))), k), unsafe.Slice((*byte)(src), k))
			tail.DataLen += uint16(k)
			src, size = unsafe.Add(src, k), size-k
		}
	}
	for i := range used {
		d := r.descriptor(pos + uint16(i))
		if r.client {
			atomic.StoreUint64(&d[0], bufSize<<32)
		} else if lo := atomic.LoadUint64(&d[0]); lo&descNext != 0 {
			// DPDK's client does not clear the flag when it uses the descriptor again.
			atomic.StoreUint64(&d[0], lo&^descNext)
		}
	}
	if total == 0 || total > maxFrame {
		give()
		q.stats.RxBad++
		return used, false, 0
	}
	head.PktLen = uint32(total)
	return used, true, 0
}

// Tx copies packets into the ring.
func (q *queue) Tx(src []uint32) int {
	if q.next.Load() != q.cur {
		q.change()
	}
	r := q.tx
	if r == nil || len(src) == 0 {
		q.stats.TxFull += uint64(len(src))
		return 0
	}
	if r.shared && !r.take() {
		q.stats.TxFull += uint64(len(src))
		return 0
	}
	n := q.transmit(r, src)
	if r.shared {
		r.lock.Store(0)
	}
	q.stats.TxFull += uint64(len(src) - n)
	return n
}

// take locks a ring that several queues transmit on; it gives up soon.
func (r *ring) take() bool {
	for range 200 {
		if r.lock.CompareAndSwap(0, 1) {
			return true
		}
	}
	return false
}

func (q *queue) transmit(r *ring, src []uint32) int {
	room := r.room()
	if room > r.size {
		q.broken(faultIndex)
		return 0
	}
	regions := q.cur.regions
	r.prefetch(r.pos, min(int(room), len(src)), regions, true)
	pos, end := r.pos, r.pos+uint16(room)
	k, failed, fault := 0, 0, uint32(0)
	for k < len(src) && pos != end && fault == 0 {
		for k < len(src) && pos != end { // packets of one segment that fit one buffer
			m := packet.At(src[k])
			size := uint64(m.DataLen)
			if m.Next != 0 || size == 0 {
				break
			}
			d := r.descriptor(pos)
			var to unsafe.Pointer
			reg := uint64(0)
			if r.client {
				if size > bufSize {
					break
				}
				to = unsafe.Add(r.bufs, uintptr(uint32(pos)&r.mask)*bufStride)
			} else {
				lo, off := atomic.LoadUint64(&d[0]), atomic.LoadUint64(&d[1])&0xffffffff
				reg = lo >> 16 & 0xffff
				if size > lo>>32 || reg >= uint64(len(regions)) || off+lo>>32 > regions[reg].size {
					break
				}
				to = unsafe.Add(regions[reg].base, off)
			}
			from := m.Data()
			if size-64 <= 448 { // never a byte more: what lies behind is not the peer's to see
				last := uintptr(size) - 64
				for i := uintptr(0); i < last; i += 64 {
					*(*[64]byte)(unsafe.Add(to, i)) = *(*[64]byte)(unsafe.Add(from, i))
				}
				*(*[64]byte)(unsafe.Add(to, last)) = *(*[64]byte)(unsafe.Add(from, last))
			} else if size-32 < 32 {
				*(*[32]byte)(to) = *(*[32]byte)(from)
				*(*[32]byte)(unsafe.Add(to, size-32)) = *(*[32]byte)(unsafe.Add(from, size-32))
			} else {
				copy(unsafe.Slice((*byte)(to), size), unsafe.Slice((*byte)(from), size))
			}
			atomic.StoreUint64(&d[0], size<<32|reg<<16)
			pos++
			k++
		}
		if k == len(src) || pos == end {
			break
		}
		var used uint32
		var ok bool
		used, ok, fault = q.transmitChain(r, packet.At(src[k]), pos, uint32(end-pos))
		if fault != 0 || used == 0 && ok {
			break
		}
		if !ok {
			failed++
		}
		pos += uint16(used)
		k++
	}
	if pos != r.pos {
		r.publish(pos, uint32(pos-r.pos))
		if r.word.Load()&maskInt == 0 {
			unix.Write(r.efd, one[:])
		}
	}
	q.cache.Free(src[:k])
	q.stats.TxPackets += uint64(k - failed)
	q.stats.TxFailed += uint64(failed)
	if fault != 0 {
		q.broken(fault)
	}
	return k
}

// transmitChain sends one packet of any shape in as many descriptors as it takes. used is
// how many; 0 with ok means that there is no room now, and not ok that the packet can never
// be sent.
func (q *queue) transmitChain(r *ring, m *packet.Mbuf, pos uint16, room uint32) (used uint32, ok bool, fault uint32) {
	total := uint32(0)
	for s := m; s != nil; s = s.NextSeg() {
		total += uint32(s.DataLen)
	}
	if total == 0 || total > maxFrame {
		return 0, false, 0
	}
	// The server's buffers have the sizes that the client says, so room is summed first:
	// a length that was written over cannot be offered again.
	for have := uint32(0); have < total; used++ {
		if used == room {
			return 0, room < r.size, 0
		}
		size, _, _, fault := q.space(r, pos+uint16(used))
		if fault != 0 {
			return 0, false, fault
		}
		have += size
	}
	need := used
	from, left := m.Data(), uint32(m.DataLen)
	for used = 0; total > 0; used++ {
		size, to, reg, fault := q.space(r, pos+uint16(used))
		if used == need && fault == 0 {
			fault = faultLength // it was changed since
		}
		if fault != 0 {
			return 0, false, fault
		}
		size = min(size, total)
		total -= size
		lo := uint64(size)<<32 | reg<<16
		if total > 0 {
			lo |= descNext
		}
		for size > 0 {
			for left == 0 {
				m = m.NextSeg()
				from, left = m.Data(), uint32(m.DataLen)
			}
			k := min(size, left)
			copy(unsafe.Slice((*byte)(to), k), unsafe.Slice((*byte)(from), k))
			to, from = unsafe.Add(to, k), unsafe.Add(from, k)
			size, left = size-k, left-k
		}
		atomic.StoreUint64(&r.descriptor(pos + uint16(used))[0], lo)
	}
	return used, true, 0
}

// space is the buffer at a position to transmit in.
func (q *queue) space(r *ring, pos uint16) (size uint32, to unsafe.Pointer, reg uint64, fault uint32) {
	if r.client {
		return bufSize, unsafe.Add(r.bufs, uintptr(uint32(pos)&r.mask)*bufStride), 0, 0
	}
	d := r.descriptor(pos)
	lo := atomic.LoadUint64(&d[0])
	to, fault = bounds(q.cur.regions, lo, atomic.LoadUint64(&d[1]))
	size = uint32(lo >> 32)
	if size == 0 && fault == 0 {
		fault = faultLength
	}
	return min(size, maxFrame), to, lo >> 16 & 0xffff, fault
}

// prefetch starts loading the buffers of n descriptors. What a peer wrote into them
// may be any address: prefetching does not fault.
func (r *ring) prefetch(pos uint16, n int, regions []region, write bool) {
	if n > 0 && len(regions) > 0 {
		prefetch(r.desc, uint64(pos), uint64(r.mask), n, regions[0].base, write)
	}
}
