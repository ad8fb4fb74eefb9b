package afpacket

import (
	"sync/atomic"
	"unsafe" // slots of the mapped ring; arguments of system calls

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

const (
	txBatch  = 64 // packets a system call
	maxSegs  = 64 // segments a packet
	maxFrame = 65535
	txVecs   = 256 // segments a system call
	scratch  = 1<<16 + 1<<12
)

// The structures of sendmmsg(2), without Go pointers.
type iovec struct{ base, n uintptr }

type mmsghdr struct {
	name    uintptr
	namelen uint32
	_       uint32
	iov     uintptr
	iovlen  uintptr
	control uintptr
	ctllen  uintptr
	flags   uint32
	_       uint32
	n       uint32
	_       uint32
}

// batch is what one sendmmsg sends; it lies outside the Go heap.
type batch struct {
	msg [txBatch]mmsghdr
	vec [txVecs + maxSegs]iovec
}

type queue struct {
	p      *Port
	i      int
	rx     *socket
	fd     int // rx.fd: it stays the same over the port's life
	txfd   int
	next   atomic.Pointer[sockets] // after the device came back
	pos    int                     // next slot
	c      *pmd.Stats
	cache  *packet.Cache
	b      *batch
	cut    super
	inRing bool   // cut.payload lies in slot pos
	long   []byte // packets that were too long for a slot: vnet header and frame
}

// sockets of a device that came back.
type sockets struct {
	rx *socket
	tx int
}

func (q *queue) Start(c *packet.Cache) error {
	q.cache = c
	return nil
}

func (q *queue) Stop() { q.cache = nil }

// Held is 0: packets are copied.
func (q *queue) Held() int { return 0 }

func (q *queue) Fd() int { return q.fd }

func (q *queue) Arm() bool {
	if q.next.Load() != nil {
		return false
	}
	// An error that waits, such as that the device is down, would wake the thread for ever.
	unix.GetsockoptInt(q.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	return len(q.cut.payload) == 0 && atomic.LoadUint32(&q.slot().Status)&unix.TP_STATUS_USER == 0
}

func (q *queue) slot() *unix.Tpacket2Hdr {
	return (*unix.Tpacket2Hdr)(unsafe.Pointer(&q.rx.mem[q.rx.slot[q.pos]]))
}

// release gives the slot back to the kernel.
func (q *queue) release(h *unix.Tpacket2Hdr) {
	atomic.StoreUint32(&h.Status, unix.TP_STATUS_KERNEL)
	if q.pos++; q.pos == len(q.rx.slot) {
		q.pos = 0
	}
}

// swap takes over the sockets of a device that came back.
func (q *queue) swap(s *sockets) {
	unix.Dup3(s.rx.fd, q.fd, unix.O_CLOEXEC)
	unix.Close(s.rx.fd)
	unix.Munmap(q.rx.mem)
	s.rx.fd = q.fd
	q.rx, q.pos = s.rx, 0
	q.cut.payload, q.inRing = nil, false
	unix.Dup3(s.tx, q.txfd, unix.O_CLOEXEC)
	unix.Close(s.tx)
}

func (q *queue) Rx(dst []uint32) int {
	if q.next.Load() != nil {
		if s := q.next.Swap(nil); s != nil {
			q.swap(s)
		}
	}
	f := q.p.filter.Load()
	n := 0
	for n < len(dst) {
		if len(q.cut.payload) > 0 {
			n += q.segments(dst[n:])
			continue
		}
		h := q.slot()
		st := atomic.LoadUint32(&h.Status)
		if st&unix.TP_STATUS_USER == 0 {
			break
		}
		frame := unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(h), int(h.Mac))), h.Snaplen)
		if f.host(frame) {
			if st&unix.TP_STATUS_COPY != 0 {
				q.readLong()
			}
			q.release(h)
			continue
		}
		v := vnet(unsafe.Slice((*byte)(unsafe.Add(unsafe.Pointer(h), int(h.Mac)-vnetSize)), vnetSize))
		if v[0]|v[1] == 0 && st&(unix.TP_STATUS_COPY|unix.TP_STATUS_VLAN_VALID) == 0 && h.Len <= packet.DataRoom && h.Snaplen == h.Len {
			if m := q.cache.Alloc1(); m != nil {
				m.PktLen, m.DataLen, m.RSS = h.Len, uint16(h.Len), 0
				copy(m.Bytes(), frame)
				dst[n] = m.Index()
				n++
			} else {
				q.c.RxNoBuffer++
			}
			q.release(h)
			continue
		}
		if m := q.odd(h, st, frame, v); m != nil {
			dst[n] = m.Index()
			n++
		}
	}
	q.c.RxPackets += uint64(n)
	return n
}

// odd receives a packet that is unfinished, long or tagged, and releases its slot. It
// returns nil where the packet is lost, or where it is in q.cut now.
func (q *queue) odd(h *unix.Tpacket2Hdr, st uint32, frame []byte, v vnet) *packet.Mbuf {
	var t tag
	if st&unix.TP_STATUS_VLAN_VALID != 0 {
		t = tag{true, unix.ETH_P_8021Q, h.Vlan_tci}
		if st&unix.TP_STATUS_VLAN_TPID_VALID != 0 {
			t.tpid = h.Vlan_tpid
		}
	}
	inRing := true
	switch {
	case st&unix.TP_STATUS_COPY != 0:
		inRing = false
		b := q.readLong()
		if len(b) < vnetSize+14 {
			q.c.RxBad++
			q.release(h)
			return nil
		}
		v, frame = b[:vnetSize], b[vnetSize:]
	case h.Snaplen < h.Len: // too long for the slot, and the socket's queue was full
		q.c.RxRingFull++
		q.release(h)
		return nil
	}
	if v.gso() != unix.VIRTIO_NET_HDR_GSO_NONE {
		switch {
		case !q.cut.parse(frame, v, t):
			q.c.RxBad++
			q.cut.payload = nil
			q.release(h)
		case inRing: // released with the last segment
			q.inRing = true
		default:
			q.release(h)
		}
		return nil
	}
	var m *packet.Mbuf
	if v.needsSum() && !finish(frame, v) || len(frame) > maxFrame-4 {
		q.c.RxBad++
	} else if m = q.build(frame, nil, t); m == nil {
		q.c.RxNoBuffer++
	}
	q.release(h)
	return m
}

// readLong reads the oldest packet of the socket's queue, into which the kernel put a copy of
// each packet that is marked with TP_STATUS_COPY; empty where there is none.
func (q *queue) readLong() []byte {
	n, _, e := unix.Syscall6(unix.SYS_RECVFROM, uintptr(q.fd), uintptr(unsafe.Pointer(unsafe.SliceData(q.long))), uintptr(len(q.long)), unix.MSG_DONTWAIT|unix.MSG_TRUNC, 0, 0)
	if e != 0 || n > uintptr(len(q.long)) {
		return nil
	}
	return q.long[:n]
}

// segments cuts the super-packet on its way into up to len(dst) packets and returns
// how many.
func (q *queue) segments(dst []uint32) int {
	n := 0
	for n < len(dst) && len(q.cut.payload) > 0 {
		head, payload := q.cut.next()
		m := q.build(head, payload, q.cut.tag)
		if m == nil {
			q.c.RxNoBuffer++
			continue
		}
		dst[n] = m.Index()
		n++
	}
	if len(q.cut.payload) == 0 && q.inRing {
		q.inRing = false
		q.release(q.slot())
	}
	return n
}

// build makes a packet of two pieces, the first of which begins with an Ethernet header,
// and puts the tag back; nil where the pool has too few buffers.
func (q *queue) build(a, b []byte, t tag) *packet.Mbuf {
	head := q.cache.Alloc1()
	if head == nil {
		return nil
	}
	head.RSS = 0
	tail := head
	if t.on {
		d := q.room(head, 16)
		copy(d, a[:12])
		d[12], d[13], d[14], d[15] = byte(t.tpid>>8), byte(t.tpid), byte(t.tci>>8), byte(t.tci)
		head.PktLen = 16
		a = a[12:]
	}
	for range 2 {
		for len(a) > 0 {
			k := min(packet.DataRoom-int(tail.DataLen), len(a))
			if k == 0 {
				s := q.cache.Alloc1()
				if s == nil {
					q.cache.Free1(head)
					return nil
				}
				tail.SetNext(s)
				head.NbSegs++
				tail = s
				continue
			}
			copy(q.room(tail, k), a)
			head.PktLen += uint32(k)
			a = a[k:]
		}
		a = b
	}
	return head
}

// room makes n bytes more of a fresh segment its data and returns them.
func (q *queue) room(m *packet.Mbuf, n int) []byte {
	d := unsafe.Slice((*byte)(unsafe.Add(m.Data(), int(m.DataLen))), n)
	m.DataLen += uint16(n)
	return d
}

func (q *queue) Tx(src []uint32) int {
	done := 0
	for done < len(src) {
		k := q.gather(src[done:])
		if k == 0 { // more segments than Caps says
			q.c.TxFailed++
			q.cache.Free(src[done : done+1])
			done++
			continue
		}
		n := q.send(k)
		q.cache.Free(src[done : done+n])
		done += n
		if n < k {
			break
		}
	}
	q.c.TxFull += uint64(len(src) - done)
	return done
}

// gather describes packets from the front of src in the batch and returns how many.
func (q *queue) gather(src []uint32) (n int) {
	b, vecs := q.b, 0
	for n < len(src) && n < txBatch && vecs < txVecs {
		m := packet.At(src[n])
		first := vecs
		for ; m != nil && vecs < len(b.vec) && vecs-first < maxSegs; m = m.NextSeg() {
			b.vec[vecs] = iovec{uintptr(m.Data()), uintptr(m.DataLen)}
			vecs++
		}
		if m != nil {
			return n
		}
		b.msg[n].iov, b.msg[n].iovlen = uintptr(unsafe.Pointer(&b.vec[first])), uintptr(vecs-first)
		n++
	}
	return n
}

// send transmits the first n messages of the batch and returns how many it is done with:
// sent, or failed in a way that no repetition mends.
func (q *queue) send(n int) int {
	done := 0
	for done < n {
		k, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(q.txfd), uintptr(unsafe.Pointer(&q.b.msg[done])), uintptr(n-done), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			done += int(k)
			q.c.TxPackets += uint64(k)
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS, unix.ENETDOWN, unix.ENXIO, unix.ENODEV, unix.EBADF:
			return done
		default: // this packet: longer than the MTU, shorter than a header
			q.c.TxFailed++
			done++
		}
	}
	return done
}
