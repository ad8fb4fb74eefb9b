package testnet

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// Mrouter holds the kernel's multicast routing sockets of a namespace, as a routing daemon does (linux/mroute.h,
// linux/mroute6.h): what it sets are routes of the kernel. Its interfaces have the numbers of their place, from 0.
type Mrouter struct {
	t      testing.TB
	fds    [2]int // IPv4, IPv6
	ifaces []string
}

// Options of both families have the same numbers.
const (
	mrtInit   = 200
	mrtDone   = 201
	mrtAddVif = 202
	mrtAddMfc = 204
	mrtDelMfc = 205
)

var mrtLevel = [2]int{unix.IPPROTO_IP, unix.IPPROTO_IPV6}

// Mrouter makes the namespace's kernel a multicast router on the interfaces; the test is skipped where it cannot be. The
// routes go with the test.
func (n *NS) Mrouter(t testing.TB, ifaces ...string) *Mrouter {
	t.Helper()
	m := &Mrouter{t: t, ifaces: ifaces}
	n.Do(func() {
		for f, s := range [2][2]int{{unix.AF_INET, unix.IPPROTO_IGMP}, {unix.AF_INET6, unix.IPPROTO_ICMPV6}} {
			fd, err := unix.Socket(s[0], unix.SOCK_RAW|unix.SOCK_CLOEXEC, s[1])
			if err != nil {
				t.Fatal(err)
			}
			m.fds[f] = fd
			t.Cleanup(func() { unix.Close(fd) })
			if err := unix.SetsockoptInt(fd, mrtLevel[f], mrtInit, 1); err != nil {
				t.Skip("needs multicast routing in the kernel (CONFIG_IP_MROUTE, CONFIG_IPV6_MROUTE): ", err)
			}
		}
		for i, name := range ifaces {
			x, err := net.InterfaceByName(name)
			if err != nil {
				t.Fatal(err)
			}
			v4, v6 := make([]byte, 16), make([]byte, 12)
			binary.NativeEndian.PutUint16(v4, uint16(i))
			v4[2], v4[3] = 8, 1 // VIFF_USE_IFINDEX, threshold
			binary.NativeEndian.PutUint32(v4[8:], uint32(x.Index))
			binary.NativeEndian.PutUint16(v6, uint16(i))
			v6[3] = 1
			binary.NativeEndian.PutUint16(v6[4:], uint16(x.Index))
			m.set(0, mrtAddVif, v4)
			m.set(1, mrtAddVif, v6)
		}
	})
	return m
}

func (m *Mrouter) set(family, opt int, b []byte) {
	m.t.Helper()
	if err := unix.SetsockoptString(m.fds[family], mrtLevel[family], opt, string(b)); err != nil {
		m.t.Fatalf("multicast routing option %d of level %d: %v", opt, mrtLevel[family], err)
	}
}

// Add sets a route from one interface to others with a TTL threshold each (IPv4; for IPv6 it is 1).
func (m *Mrouter) Add(source, group netip.Addr, from string, ttl uint8, to ...string) {
	m.t.Helper()
	m.route(mrtAddMfc, source, group, from, ttl, to)
}

// Del removes a route.
func (m *Mrouter) Del(source, group netip.Addr) {
	m.t.Helper()
	m.route(mrtDelMfc, source, group, m.ifaces[0], 0, nil)
}

func (m *Mrouter) route(opt int, source, group netip.Addr, from string, ttl uint8, to []string) {
	m.t.Helper()
	in := slices.Index(m.ifaces, from)
	if group.Is4() {
		b := make([]byte, 60) // struct mfcctl
		copy(b, source.AsSlice())
		copy(b[4:], group.AsSlice())
		binary.NativeEndian.PutUint16(b[8:], uint16(in))
		for _, name := range to {
			b[10+slices.Index(m.ifaces, name)] = ttl
		}
		m.set(0, opt, b)
		return
	}
	b := make([]byte, 92) // struct mf6cctl: two struct sockaddr_in6 first
	for k, a := range []netip.Addr{source, group} {
		binary.NativeEndian.PutUint16(b[28*k:], unix.AF_INET6)
		copy(b[28*k+8:], a.AsSlice())
	}
	binary.NativeEndian.PutUint16(b[56:], uint16(in))
	for _, name := range to {
		i := slices.Index(m.ifaces, name)
		b[60+i/8] |= 1 << (i % 8)
	}
	m.set(1, opt, b)
}
