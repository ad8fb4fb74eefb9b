package afxdp

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe" // arguments of system calls; rings in a mapping, of the sizes that were asked for

	"golang.org/x/sys/unix"

	"millrace/packet"
)

const (
	chunkSize = 2048 // of the UMEM: what the kernel may use of a buffer, from its Mbuf on
	// kernelRoom is what the kernel leaves before the data (XDP_PACKET_HEADROOM);
	// that it is the same as DataStart makes fill addresses the buffers' own.
	kernelRoom = 256
	frameRoom  = chunkSize - kernelRoom // data bytes of one segment received

	_ = -uint(kernelRoom ^ packet.DataStart)
	_ = uint(packet.Stride - chunkSize)
)

// desc is struct xdp_desc.
type desc struct {
	addr uint64 // offset in the UMEM; in the upper 16 bits a number to add
	len  uint32
	opts uint32
}

// ring is one of a socket's four, shared with the kernel. The cached positions
// are ours: of the side that we write, exact; of the kernel's, at most stale.
type ring struct {
	prod, cons, flags *uint32
	mask              uint32
	cp, cc            uint32
	mem               []byte
}

func (r *ring) size() uint32     { return r.mask + 1 }
func (r *ring) needWakeup() bool { return atomic.LoadUint32(r.flags)&unix.XDP_RING_NEED_WAKEUP != 0 }

// socket is an AF_XDP socket with its rings; fd is -1 where there is none.
type socket struct {
	fd         int
	rx, tx     ring
	fill, done ring
	rxd, txd   []desc
	filla      []uint64
	donea      []uint64
}

// sockaddr is what openSocket binds to, and how.
type sockaddr struct {
	ifindex, queue int
	flags          uint16 // XDP_COPY or XDP_ZEROCOPY, XDP_USE_SG
	size           int    // of the rx and tx rings; a power of two
	fill           int    // of the fill ring; a power of two
}

// umemReg is struct xdp_umem_reg.
type umemReg struct {
	addr, len       uint64
	chunk, headroom uint32
	flags, txMeta   uint32
}

type ringOffsets struct{ producer, consumer, desc, flags uint64 }
type mmapOffsets struct{ rx, tx, fill, done ringOffsets }

// openSocket makes a socket with the pool as its UMEM and binds it.
func openSocket(pool *packet.Pool, a sockaddr) (s socket, err error) {
	s.fd = -1
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return s, fmt.Errorf("socket: %w", err)
	}
	s.fd = fd
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	m := pool.Memory()
	reg := umemReg{
		addr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(m)))), len: uint64(len(m)),
		chunk: chunkSize, flags: unix.XDP_UMEM_UNALIGNED_CHUNK_FLAG,
	}
	if _, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_UMEM_REG, uintptr(unsafe.Pointer(&reg)), unsafe.Sizeof(reg), 0); e != 0 {
		return s, fmt.Errorf("register %d MiB of buffers (XDP_UMEM_REG): %w", len(m)>>20, e)
	}
	for _, o := range []struct {
		name   string
		opt, n int
	}{
		{"fill ring", unix.XDP_UMEM_FILL_RING, a.fill},
		// Twice, so that packets of which the kernel has not reported the end do not stop new ones.
		{"completion ring", unix.XDP_UMEM_COMPLETION_RING, 2 * a.size},
		{"rx ring", unix.XDP_RX_RING, a.size},
		{"tx ring", unix.XDP_TX_RING, a.size},
	} {
		if err := unix.SetsockoptInt(fd, unix.SOL_XDP, o.opt, o.n); err != nil {
			return s, fmt.Errorf("%s of %d: %w", o.name, o.n, err)
		}
	}
	// In copy mode a packet on its way counts against the send buffer.
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
	// Packets that one sendto moves in copy mode; older kernels have 32.
	_ = unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, min(txBudget, a.size))

	var o mmapOffsets
	l := uint32(unsafe.Sizeof(o))
	if _, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_XDP, unix.XDP_MMAP_OFFSETS, uintptr(unsafe.Pointer(&o)), uintptr(unsafe.Pointer(&l)), 0); e != 0 {
		return s, fmt.Errorf("XDP_MMAP_OFFSETS: %w", e)
	}
	if l != uint32(unsafe.Sizeof(o)) {
		return s, fmt.Errorf("ring layout of a kernel before 5.4: %w", unix.EOPNOTSUPP)
	}
	if s.rxd, err = mapRing[desc](fd, &s.rx, o.rx, a.size, unix.XDP_PGOFF_RX_RING); err != nil {
		return s, err
	}
	if s.txd, err = mapRing[desc](fd, &s.tx, o.tx, a.size, unix.XDP_PGOFF_TX_RING); err != nil {
		return s, err
	}
	if s.filla, err = mapRing[uint64](fd, &s.fill, o.fill, a.fill, unix.XDP_UMEM_PGOFF_FILL_RING); err != nil {
		return s, err
	}
	if s.donea, err = mapRing[uint64](fd, &s.done, o.done, 2*a.size, unix.XDP_UMEM_PGOFF_COMPLETION_RING); err != nil {
		return s, err
	}
	sa := &unix.SockaddrXDP{Flags: a.flags | unix.XDP_USE_NEED_WAKEUP, Ifindex: uint32(a.ifindex), QueueID: uint32(a.queue)}
	if err = unix.Bind(fd, sa); err != nil {
		return s, fmt.Errorf("bind to queue %d: %w", a.queue, err)
	}
	return s, nil
}

func mapRing[T any](fd int, r *ring, o ringOffsets, n int, at int64) ([]T, error) {
	var t T
	m, err := unix.Mmap(fd, at, int(o.desc)+n*int(unsafe.Sizeof(t)), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map ring: %w", err)
	}
	p := unsafe.Pointer(unsafe.SliceData(m))
	r.mem, r.mask = m, uint32(n-1)
	r.prod, r.cons, r.flags = (*uint32)(unsafe.Add(p, o.producer)), (*uint32)(unsafe.Add(p, o.consumer)), (*uint32)(unsafe.Add(p, o.flags))
	return unsafe.Slice((*T)(unsafe.Add(p, o.desc)), n), nil
}

// close ends the socket: after it the kernel touches no buffer any more.
func (s *socket) close() {
	if s.fd < 0 {
		return
	}
	unix.Close(s.fd)
	for _, r := range []*ring{&s.rx, &s.tx, &s.fill, &s.done} {
		if r.mem != nil {
			unix.Munmap(r.mem)
		}
	}
	*s = socket{fd: -1}
}

// zeroCopy reports what the bind gave.
func (s *socket) zeroCopy() bool {
	v, err := unix.GetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_OPTIONS)
	return err == nil && v&unix.XDP_OPTIONS_ZEROCOPY != 0
}

// xdpStats is struct xdp_statistics.
type xdpStats struct {
	rxDropped, rxInvalid, txInvalid, rxRingFull, fillEmpty, txEmpty uint64
}

func (s *socket) stats() (st xdpStats) {
	if s.fd < 0 {
		return st
	}
	l := uint32(unsafe.Sizeof(st))
	unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_XDP, unix.XDP_STATISTICS, uintptr(unsafe.Pointer(&st)), uintptr(unsafe.Pointer(&l)), 0)
	return st
}

// send and wake are sendto and recvfrom without data: they make the kernel look at the
// tx ring and at the fill ring. They do not block, so the scheduler need not know.
func (s *socket) send() syscall.Errno {
	_, _, e := syscall.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	return e
}

func (s *socket) wake() {
	syscall.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
}
