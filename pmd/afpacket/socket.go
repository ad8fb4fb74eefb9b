package afpacket

import (
	"fmt"
	"unsafe" // arguments of system calls, alive until they return

	"golang.org/x/sys/unix"
)

const (
	vnetSize = 10 // struct virtio_net_hdr
	// slotHead bounds what precedes the frame in a slot: tpacket2_hdr, address,
	// virtio_net_hdr and alignment.
	slotHead = 128
	// blockSize is what the kernel allocates a ring in; slots do not cross it.
	blockSize = 1 << 16
	rcvBuf    = 8 << 20 // bytes of packets too long for a slot that may wait
	sndBuf    = 8 << 20
)

// socket is one receive socket with its ring.
type socket struct {
	fd   int
	mem  []byte
	slot []uint32 // offsets of slots in mem
}

// htons is in network byte order what the kernel wants so.
func htons(v uint16) int { return int(v<<8 | v>>8) }

// rxSocket makes a socket with a ring of at least n slots for frames of size bytes, not
// yet bound. It works in the calling thread's network namespace.
func rxSocket(n, size int) (s *socket, err error) {
	s = &socket{}
	// Protocol 0 receives nothing until bind.
	if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return nil, fmt.Errorf("AF_PACKET socket: %w", err)
	}
	for _, o := range []struct {
		name     string
		opt, val int
	}{
		{"PACKET_VERSION", unix.PACKET_VERSION, unix.TPACKET_V2},
		{"PACKET_VNET_HDR", unix.PACKET_VNET_HDR, 1},
		{"PACKET_IGNORE_OUTGOING", unix.PACKET_IGNORE_OUTGOING, 1},
		{"PACKET_COPY_THRESH", unix.PACKET_COPY_THRESH, 1},
	} {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, o.opt, o.val); err != nil {
			s.close()
			return nil, fmt.Errorf("%s: %w", o.name, err)
		}
	}
	setBuf(s.fd, unix.SO_RCVBUFFORCE, unix.SO_RCVBUF, rcvBuf)
	frame := (size + slotHead + unix.TPACKET_ALIGNMENT - 1) &^ (unix.TPACKET_ALIGNMENT - 1)
	block := blockSize
	for block < frame {
		block *= 2
	}
	per := block / frame
	blocks := (n + per - 1) / per
	// struct tpacket_req
	req := [4]uint32{uint32(block), uint32(blocks), uint32(frame), uint32(blocks * per)}
	if err := sockopt(s.fd, unix.PACKET_RX_RING, unsafe.Pointer(&req), unsafe.Sizeof(req)); err != nil {
		s.close()
		return nil, fmt.Errorf("PACKET_RX_RING of %d slots of %d bytes: %w", blocks*per, frame, err)
	}
	if s.mem, err = unix.Mmap(s.fd, 0, block*blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		s.close()
		return nil, fmt.Errorf("map the ring: %w", err)
	}
	for b := range blocks {
		for i := range per {
			s.slot = append(s.slot, uint32(b*block+i*frame))
		}
	}
	return s, nil
}

func sockopt(fd, opt int, p unsafe.Pointer, n uintptr) error {
	if _, _, e := unix.Syscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_PACKET, uintptr(opt), uintptr(p), n, 0); e != 0 {
		return e
	}
	return nil
}

// setBuf asks for a socket buffer beyond the system's limit, and else for what that allows.
func setBuf(fd, force, plain, n int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, n) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, n)
	}
}

// bind begins reception. With more than one queue the socket joins the fanout group *group,
// which the first one (*group negative) makes.
func (s *socket) bind(ifindex, queues int, group *int) error {
	if err := unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: uint16(htons(unix.ETH_P_ALL)), Ifindex: ifindex}); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	if queues == 1 {
		return nil
	}
	mode := unix.PACKET_FANOUT_HASH | unix.PACKET_FANOUT_FLAG_IGNORE_OUTGOING
	id := *group
	if id < 0 {
		id, mode = 0, mode|unix.PACKET_FANOUT_FLAG_UNIQUEID
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_FANOUT, id|mode<<16); err != nil {
		return fmt.Errorf("PACKET_FANOUT: %w", err)
	}
	v, err := unix.GetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_FANOUT)
	if err != nil {
		return fmt.Errorf("PACKET_FANOUT: %w", err)
	}
	*group = v & 0xffff
	return nil
}

// drops returns and resets the number of packets that found the ring full.
func (s *socket) drops() uint64 {
	var st [2]uint32 // struct tpacket_stats: packets, drops
	n := uint32(unsafe.Sizeof(st))
	_, _, e := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(s.fd), unix.SOL_PACKET, unix.PACKET_STATISTICS,
		uintptr(unsafe.Pointer(&st)), uintptr(unsafe.Pointer(&n)), 0)
	if e != 0 {
		return 0
	}
	return uint64(st[1])
}

func (s *socket) close() {
	if s.mem != nil {
		unix.Munmap(s.mem)
		s.mem = nil
	}
	if s.fd >= 0 {
		unix.Close(s.fd)
		s.fd = -1
	}
}

// txSocket makes a socket that only sends. It works in the calling thread's network namespace.
func txSocket(ifindex int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("AF_PACKET socket: %w", err)
	}
	unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1) // without it the way is longer, no other
	setBuf(fd, unix.SO_SNDBUFFORCE, unix.SO_SNDBUF, sndBuf)
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: ifindex}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("bind for transmission: %w", err)
	}
	return fd, nil
}
