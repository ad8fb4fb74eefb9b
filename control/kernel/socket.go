package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// native is the byte order of netlink's numbers.
var native = binary.NativeEndian

func utoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// socket is a NETLINK_ROUTE socket, for one goroutine at a time.
type socket struct {
	f   *os.File
	seq uint32
	buf []byte
}

// receiveBuffer is asked of the kernel for announcements: some 100,000 of them.
const receiveBuffer = 64 << 20

// open opens a socket that hears groups. A strict one has dumps filtered by the kernel.
func open(strict bool, groups ...uint32) (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("kernel: netlink socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("kernel: netlink bind: %w", err)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, receiveBuffer) != nil {
		// Without CAP_NET_ADMIN: as much as there is.
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, receiveBuffer)
	}
	if strict {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1); err != nil {
			unix.Close(fd)
			return nil, fmt.Errorf("kernel: netlink with filters, of Linux 4.20: %w", err)
		}
	}
	for _, g := range groups {
		if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_ADD_MEMBERSHIP, int(g)); err != nil && g != unix.RTNLGRP_NEXTHOP {
			unix.Close(fd)
			return nil, fmt.Errorf("kernel: netlink group %d: %w", g, err)
		}
	}
	return &socket{f: os.NewFile(uintptr(fd), "netlink"), buf: make([]byte, 256<<10)}, nil
}

func (s *socket) close() { s.f.Close() }

// errEmpty: nothing to read at the moment.
var errEmpty = errors.New("kernel: nothing to read")

// receive reads one datagram into buf. With wait it waits for one until the deadline, zero
// for none; otherwise it returns errEmpty.
func (s *socket) receive(wait bool, deadline time.Time) ([]byte, error) {
	rc, err := s.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	if wait {
		if err := s.f.SetReadDeadline(deadline); err != nil {
			return nil, err
		}
	}
	var n int
	var got error
	err = rc.Read(func(fd uintptr) bool {
		for {
			n, _, got = unix.Recvfrom(int(fd), s.buf, unix.MSG_DONTWAIT|unix.MSG_TRUNC)
			if got != unix.EINTR {
				break
			}
		}
		return got != unix.EAGAIN || !wait
	})
	switch {
	case err != nil:
		return nil, err
	case got == unix.EAGAIN:
		return nil, errEmpty
	case got != nil:
		return nil, got
	case n > len(s.buf):
		s.buf = make([]byte, n+n/2)
		return nil, unix.ENOBUFS
	}
	return s.buf[:n], nil
}

// message is one netlink message.
type message struct {
	typ, flags uint16
	seq        uint32
	body       []byte
}

// messages are those of a datagram; it ends at the first malformed one.
func messages(b []byte) iter.Seq[message] {
	return func(yield func(message) bool) {
		for len(b) >= unix.NLMSG_HDRLEN {
			n := int(native.Uint32(b))
			if n < unix.NLMSG_HDRLEN || n > len(b) {
				return
			}
			if !yield(message{native.Uint16(b[4:]), native.Uint16(b[6:]), native.Uint32(b[8:]), b[unix.NLMSG_HDRLEN:n]}) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

func align(n int) int { return (n + 3) &^ 3 }

// attrs are the attributes in b, without the flag bits of their types.
func attrs(b []byte) iter.Seq2[uint16, []byte] {
	return func(yield func(uint16, []byte) bool) {
		for len(b) >= 4 {
			n := int(native.Uint16(b))
			if n < 4 || n > len(b) {
				return
			}
			if !yield(native.Uint16(b[2:])&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), b[4:n]) {
				return
			}
			b = b[min(align(n), len(b)):]
		}
	}
}

// putAttr appends an attribute.
func putAttr(b []byte, typ uint16, v []byte) []byte {
	b = native.AppendUint16(b, uint16(4+len(v)))
	b = native.AppendUint16(b, typ)
	b = append(b, v...)
	return append(b, make([]byte, align(len(v))-len(v))...)
}

// send sends one request and returns its sequence number.
func (s *socket) send(typ, flags uint16, body []byte) (uint32, error) {
	s.seq++
	b := native.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = native.AppendUint16(b, typ)
	b = native.AppendUint16(b, unix.NLM_F_REQUEST|flags)
	b = native.AppendUint32(b, s.seq)
	b = append(native.AppendUint32(b, 0), body...)
	rc, err := s.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	var got error
	err = rc.Write(func(fd uintptr) bool {
		got = unix.Sendto(int(fd), b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		return got != unix.EAGAIN
	})
	return s.seq, errors.Join(err, got)
}

// errInterrupted: the dump is not of one moment, because something changed meanwhile.
var errInterrupted = errors.New("kernel: dump interrupted by changes")

// dumpTimeout is how long the kernel may take for the next part of a dump.
const dumpTimeout = 10 * time.Second

// dump asks for everything of a kind and calls f with each message.
func (s *socket) dump(typ uint16, body []byte, f func(message)) error {
	seq, err := s.send(typ, unix.NLM_F_DUMP, body)
	if err != nil {
		return fmt.Errorf("kernel: dump: %w", err)
	}
	interrupted := false
	for {
		b, err := s.receive(true, time.Now().Add(dumpTimeout))
		if err != nil {
			return fmt.Errorf("kernel: dump: %w", err)
		}
		for m := range messages(b) {
			if m.seq != seq {
				continue // of an earlier dump that failed
			}
			interrupted = interrupted || m.flags&unix.NLM_F_DUMP_INTR != 0
			switch m.typ {
			case unix.NLMSG_DONE:
				if interrupted {
					return errInterrupted
				}
				return nil
			case unix.NLMSG_ERROR:
				return fmt.Errorf("kernel: dump: %w", errnoOf(m.body))
			default:
				f(m)
			}
		}
	}
}

// errnoOf is the error in the body of an NLMSG_ERROR; nil for an acknowledgement.
func errnoOf(b []byte) error {
	if len(b) < 4 {
		return unix.EPROTO
	}
	if n := int32(native.Uint32(b)); n != 0 {
		return unix.Errno(-n)
	}
	return nil
}
