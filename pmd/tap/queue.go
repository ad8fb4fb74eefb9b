package tap

import (
	"slices"
	"syscall"
	"unsafe" // arguments of system calls, alive until they return

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

type queue struct {
	fd    int
	c     *pmd.Stats
	v     *vectors
	cache *packet.Cache
	gone  bool // the device was removed
}

func (q *queue) Start(c *packet.Cache) error {
	q.cache = c
	return nil
}

func (q *queue) Stop() { q.cache = nil }

// Held is 0: packets are copied.
func (q *queue) Held() int { return 0 }
func (q *queue) Fd() int   { return q.fd }

// Arm has nothing to do: poll(2) reports what waits.
func (q *queue) Arm() bool { return true }

// Rx ends with a system call that finds nothing.
func (q *queue) Rx(dst []uint32) int {
	n := 0
	for n < len(dst) && !q.gone {
		m := q.cache.Alloc1()
		if m == nil {
			break // what waits stays in the device
		}
		q.v.rx[0] = iovec{uintptr(m.Data()), packet.DataRoom}
		q.v.rx[1] = iovec{uintptr(unsafe.Pointer(&q.v.tail)), maxFrame}
		k, _, e := unix.Syscall(unix.SYS_READV, uintptr(q.fd), uintptr(unsafe.Pointer(&q.v.rx)), 2)
		if e != 0 || k == 0 {
			q.cache.Free1(m)
			if e == unix.EINTR {
				continue
			}
			if e == unix.EBADFD {
				q.leave()
			}
			break
		}
		m.RSS = 0
		m.PktLen, m.DataLen = uint32(k), uint16(min(k, packet.DataRoom))
		if k > packet.DataRoom && !q.long(m) {
			q.cache.Free1(m)
			continue
		}
		dst[n] = m.Index()
		n++
	}
	q.c.RxPackets += uint64(n)
	return n
}

// leave puts a descriptor that never is readable in the place of that of a device which is
// gone, which would wake the thread for ever.
func (q *queue) leave() {
	q.gone = true
	if fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC); err == nil {
		unix.Dup3(fd, q.fd, unix.O_CLOEXEC)
		unix.Close(fd)
	}
}

// long appends what lies in the tail; false, counted, where there is no room.
func (q *queue) long(m *packet.Mbuf) bool {
	if m.PktLen > maxFrame {
		q.c.RxBad++
		return false
	}
	rest := q.v.tail[:m.PktLen-packet.DataRoom]
	for last := m; len(rest) > 0; {
		s := q.cache.Alloc1()
		if s == nil {
			q.c.RxNoBuffer++
			return false
		}
		s.DataLen = uint16(min(len(rest), packet.DataRoom))
		copy(s.Bytes(), rest)
		rest = rest[s.DataLen:]
		last.SetNext(s)
		last = s
		m.NbSegs++
	}
	return true
}

func (q *queue) Tx(src []uint32) int {
	n := 0
	for n < len(src) && !q.gone {
		k := q.gather(packet.At(src[n]))
		if k == 0 { // more segments than Caps says
			q.c.TxFailed++
			n++
			continue
		}
		_, _, e := unix.Syscall(unix.SYS_WRITEV, uintptr(q.fd), uintptr(unsafe.Pointer(&q.v.tx)), uintptr(k))
		if e == unix.EINTR {
			continue
		}
		if slices.Contains(refusals, e) {
			break
		}
		if e != 0 { // this packet: shorter than a header, longer than the kernel takes
			q.c.TxFailed++
		} else {
			q.c.TxPackets++
		}
		n++
	}
	q.cache.Free(src[:n])
	q.c.TxFull += uint64(len(src) - n)
	return n
}

// refusals are errors of the device, not of a packet: full, down (EIO), gone (EBADFD).
var refusals = []syscall.Errno{unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EIO, unix.EBADFD, unix.EBADF, unix.ENETDOWN}

// gather describes a packet's segments and returns how many they are, 0 for too many.
func (q *queue) gather(m *packet.Mbuf) int {
	n := 0
	for ; m != nil; m = m.NextSeg() {
		if n == maxSegs {
			return 0
		}
		q.v.tx[n] = iovec{uintptr(m.Data()), uintptr(m.DataLen)}
		n++
	}
	return n
}
