package testnet

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Raw is an AF_PACKET socket on one interface: whole Ethernet frames, as the far
// end of a cable sends and sees them.
type Raw struct {
	MAC net.HardwareAddr // of the interface
	fd  int
	buf []byte
}

// Raw opens a socket on an interface of the namespace, for one thread's use.
func (n *NS) Raw(t testing.TB, ifname string) *Raw {
	t.Helper()
	r := &Raw{buf: make([]byte, 1<<17)}
	n.Do(func() {
		ifi, err := net.InterfaceByName(ifname)
		if err != nil {
			t.Fatal(err)
		}
		r.MAC = ifi.HardwareAddr
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network byte order
		// Protocol 0 until bound: no packet of another interface gets in.
		if r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			t.Fatal(err)
		}
		unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 16<<20)
		unix.SetsockoptInt(r.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1)
		if err := unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: ifi.Index}); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(r.fd) })
	return r
}

// Send sends one frame, without FCS.
func (r *Raw) Send(frame []byte) error {
	for {
		_, err := unix.Write(r.fd, frame)
		if err != unix.ENOBUFS && err != unix.EAGAIN && err != unix.EINTR {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// Recv returns the next frame that reached the interface, or nil where none came
// within d. The caller owns the slice.
func (r *Raw) Recv(d time.Duration) []byte {
	end := time.Now().Add(d)
	for {
		n, _, err := unix.Recvfrom(r.fd, r.buf, unix.MSG_DONTWAIT)
		if err == nil {
			return append([]byte(nil), r.buf[:n]...)
		}
		left := time.Until(end)
		if left <= 0 {
			return nil
		}
		unix.Poll([]unix.PollFd{{Fd: int32(r.fd), Events: unix.POLLIN}}, int(left/time.Millisecond)+1)
	}
}

// RecvMatch returns the next frame for which f holds, dropping others; nil where none
// came within d.
func (r *Raw) RecvMatch(d time.Duration, f func(frame []byte) bool) []byte {
	end := time.Now().Add(d)
	for {
		b := r.Recv(max(time.Until(end), 0))
		if b == nil || f(b) {
			return b
		}
	}
}
