package testnet

import (
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Sender sends UDP packets to a group.
type Sender struct{ c *net.UDPConn }

// Sender opens a socket that sends to a group by an interface of the namespace.
func (n *NS) Sender(t testing.TB, ifname string, group netip.AddrPort, ttl int) *Sender {
	t.Helper()
	s := &Sender{}
	n.Do(func() {
		ifi, err := net.InterfaceByName(ifname)
		if err != nil {
			t.Fatal(err)
		}
		d := net.Dialer{Control: func(_, _ string, rc syscall.RawConn) error {
			return rc.Control(func(fd uintptr) {
				if group.Addr().Is4() {
					unix.SetsockoptIPMreqn(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(ifi.Index)})
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, ttl)
				} else {
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, ifi.Index)
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, ttl)
				}
			})
		}}
		c, err := d.Dial("udp", group.String())
		if err != nil {
			t.Fatal(err)
		}
		s.c = c.(*net.UDPConn)
	})
	t.Cleanup(func() { s.c.Close() })
	return s
}

// Send sends one packet.
func (s *Sender) Send(b []byte) error {
	_, err := s.c.Write(b)
	return err
}

// Source is the address that the packets come from.
func (s *Sender) Source() netip.Addr {
	return s.c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}

// Member is a member of a group that counts what it receives.
type Member struct {
	c    *net.UDPConn
	n    atomic.Uint64
	done chan struct{}
}

// Join makes a member of a group on an interface of the namespace, until Leave or the end of the test.
func (n *NS) Join(t testing.TB, ifname string, group netip.AddrPort) *Member {
	t.Helper()
	m := &Member{done: make(chan struct{})}
	n.Do(func() {
		ifi, err := net.InterfaceByName(ifname)
		if err == nil {
			network := "udp4"
			if group.Addr().Is6() {
				network = "udp6"
			}
			m.c, err = net.ListenMulticastUDP(network, ifi, net.UDPAddrFromAddrPort(group))
		}
		if err == nil { // not what others of the host have joined on other interfaces
			var rc syscall.RawConn
			if rc, err = m.c.SyscallConn(); err == nil {
				rc.Control(func(fd uintptr) {
					if group.Addr().Is4() {
						err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
					} else {
						err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0)
					}
				})
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	})
	go func() {
		defer close(m.done)
		b := make([]byte, 1<<16)
		for {
			if _, err := m.c.Read(b); err != nil {
				return
			}
			m.n.Add(1)
		}
	}()
	t.Cleanup(m.Leave)
	return m
}

// Count is how many packets came.
func (m *Member) Count() uint64 { return m.n.Load() }

// Leave leaves the group.
func (m *Member) Leave() {
	m.c.Close()
	<-m.done
}
