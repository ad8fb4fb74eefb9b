package afxdp

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"millrace/pmd"
)

// SetLocal makes exactly these the addresses of the box: what is sent to them passes
// to the kernel. Addresses that stay are never missing in between.
func (p *Port) SetLocal(addrs []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.setLocal(addrs)
}

func (p *Port) setLocal(addrs []netip.Addr) error {
	if p.closed {
		return p.err("closed")
	}
	var v4, v6 []any
	for _, a := range addrs {
		switch a = a.Unmap(); {
		case a.Is4():
			v4 = append(v4, a.As4())
		case a.Is6():
			v6 = append(v6, a.As16())
		default:
			return p.err("local addresses: one is not valid")
		}
	}
	if err := replace[[4]byte](p.maps.v4, v4); err != nil {
		return p.err("local IPv4 addresses: %w", err)
	}
	if err := replace[[16]byte](p.maps.v6, v6); err != nil {
		return p.err("local IPv6 addresses: %w", err)
	}
	return nil
}

// SetTypes makes exactly these EtherTypes come to Millrace beside IPv4 and IPv6, such as
// 0x8847 for MPLS; without a call there are none.
func (p *Port) SetTypes(types []uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.err("closed")
	}
	var keys []any
	for _, t := range types {
		keys = append(keys, uint32(be(t)))
	}
	if err := replace[uint32](p.maps.types, keys); err != nil {
		return p.err("EtherTypes: %w", err)
	}
	return nil
}

// SetTaken makes exactly this the part of what is addressed to the box that comes to
// Millrace. Fragments of it pass to the kernel, unless the whole protocol is taken, and
// so does what stands behind IPv6 extension headers. With an IPv4 port come the ICMP errors
// about packets sent from it; ICMPv6 errors pass.
func (p *Port) SetTaken(taken []pmd.Taken) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.err("closed")
	}
	var v4, v6 []any
	for _, t := range taken {
		port := [2]byte{byte(t.Port >> 8), byte(t.Port)}
		switch a := t.Addr.Unmap(); {
		case t.Port != 0 && t.Proto != unix.IPPROTO_TCP && t.Proto != unix.IPPROTO_UDP && (t.Proto != unix.IPPROTO_ICMP || !a.Is4()):
			return p.err("take port %d of protocol %d: only TCP, UDP and ICMP echo have ports", t.Port, t.Proto)
		case a.Is4():
			v4 = append(v4, taken4{Addr: a.As4(), Proto: t.Proto, Port: port})
		case a.Is6():
			v6 = append(v6, taken6{Addr: a.As16(), Proto: t.Proto, Port: port})
		default:
			return p.err("take a part of an address that is not valid")
		}
	}
	if err := replace[taken4](p.maps.own4, v4); err != nil {
		return p.err("what is taken of IPv4 addresses: %w", err)
	}
	if err := replace[taken6](p.maps.own6, v6); err != nil {
		return p.err("what is taken of IPv6 addresses: %w", err)
	}
	return nil
}

// replace makes keys the keys of m: first the new ones, then without the old ones.
func replace[K comparable](m *ebpf.Map, keys []any) error {
	want := make(map[K]bool, len(keys))
	for _, k := range keys {
		want[k.(K)] = true
	}
	if len(want) > int(m.MaxEntries()) {
		return fmt.Errorf("%d are more than the filter's %d", len(want), m.MaxEntries())
	}
	var k K
	var v uint8
	var old []K
	for it := m.Iterate(); it.Next(&k, &v); {
		if want[k] {
			delete(want, k)
		} else {
			old = append(old, k)
		}
	}
	put := func() error {
		for k := range want {
			if err := m.Put(k, uint8(1)); err != nil {
				return err
			}
			delete(want, k)
		}
		return nil
	}
	err := put()
	for _, k := range old {
		if err := m.Delete(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
	}
	if err != nil { // the old ones took the room
		return put()
	}
	return nil
}

// setMAC tells the filter which frames are the port's.
func (p *Port) setMAC(m pmd.MAC) error {
	var v [8]byte
	copy(v[:], m[:])
	return p.maps.port.Put(uint32(0), v)
}
