package gen

import (
	"net/netip"

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

// Host is addresses that the generator answers ARP and neighbour solicitations for.
type Host struct {
	Prefix netip.Prefix
	MAC    pmd.MAC // zero for the port's
}

// responder answers address resolution on one port.
type responder struct {
	hosts []Host
}

// mac is the Ethernet address of an IP address.
func (r *responder) mac(a netip.Addr) (pmd.MAC, bool) {
	for i := range r.hosts {
		if r.hosts[i].Prefix.Contains(a) {
			return r.hosts[i].MAC, true
		}
	}
	return pmd.MAC{}, false
}

// others takes what is not of the trial: questions are answered, and in a trial the rest is counted. The packets stay
// the caller's.
func (e *end) others(q pmd.Queue, idx []uint32) {
	for _, x := range idx {
		m := packet.At(x)
		if e.reply(q, m) {
			e.answered++
			continue
		}
		if e.t == nil {
			continue
		}
		if r := &e.t.rx; r.unstamped {
			if _, ok := parse(m); ok || r.bare {
				r.plain++
				r.last = clock.Ticks()
				continue
			}
		}
		e.t.rx.foreign++
	}
}

// maxQuestion is the longest frame that may be a question.
const maxQuestion = 256

// reply answers m if it is a question for one of the responder's hosts.
func (e *end) reply(q pmd.Queue, m *packet.Mbuf) bool {
	if len(e.answer.hosts) == 0 || m.PktLen > maxQuestion || m.PktLen < packet.EtherSize+packet.ARPSize {
		return false
	}
	var tmp [maxQuestion]byte
	f := tmp[:m.CopyOut(0, tmp[:m.PktLen])]
	off, kind, _, _, ok := packet.ParseEther(f)
	if !ok {
		return false
	}
	switch kind {
	case packet.EtherARP:
		f, ok = e.answer.arp(f, off)
	case packet.EtherIPv6:
		f, ok = e.answer.solicitation(f, off)
	default:
		return false
	}
	if !ok {
		return false
	}
	a := e.cache.Alloc1()
	if a == nil {
		return true
	}
	copy(a.Append(len(f)), f)
	if b := [1]uint32{a.Index()}; q.Tx(b[:]) == 0 {
		e.cache.Free1(a)
	}
	return true
}

// arp turns a request into its reply, in place.
func (r *responder) arp(f []byte, off int) ([]byte, bool) {
	a := packet.ARP(f[off:])
	if !a.Valid() || a.Op() != packet.ARPRequest {
		return nil, false
	}
	mac, ok := r.mac(netip.AddrFrom4(a.TargetIP()))
	if !ok {
		return nil, false
	}
	a.Set(packet.ARPReply, mac, a.TargetIP(), a.SenderMAC(), a.SenderIP())
	copy(f, a[18:24])
	copy(f[6:], mac[:])
	return f, true
}

// solicitation turns a neighbour solicitation into the advertisement that answers it (RFC 4861 7.2.4), in place.
func (r *responder) solicitation(f []byte, off int) ([]byte, bool) {
	const size = 32 // of an advertisement with the target's link-layer address
	h := packet.IPv6(f[off:])
	if !h.Valid() || h.Next() != packet.ProtoICMPv6 || h.HopLimit() != 255 || h.PayloadLen() < 24 ||
		len(h) < packet.IPv6Size+h.PayloadLen() {
		return nil, false
	}
	p := h[packet.IPv6Size:][:h.PayloadLen()]
	if p[0] != packet.ICMP6NS || packet.Fold(packet.Sum(p, h.Pseudo(packet.ProtoICMPv6, len(p)))) != 0xffff {
		return nil, false
	}
	target, asks := [16]byte(p[8:24]), h.Src()
	mac, ok := r.mac(netip.AddrFrom16(target))
	if !ok {
		return nil, false
	}
	copy(f, f[6:12])
	copy(f[6:], mac[:])
	f = append(f[:off+packet.IPv6Size+24], make([]byte, 8)...)
	flags := byte(0x60) // solicited, override
	h = packet.IPv6(f[off:])
	if asks == ([16]byte{}) { // duplicate address detection: all nodes are told
		asks, flags = [16]byte{0: 0xff, 1: 2, 15: 1}, 0x20
		copy(f, []byte{0x33, 0x33, 0, 0, 0, 1})
	}
	h.Init(target, asks, packet.ProtoICMPv6, size)
	h.SetHopLimit(255)
	p = h[packet.IPv6Size:]
	clear(p[:8])
	p[0], p[4] = packet.ICMP6NA, flags
	p[24], p[25] = 2, 1
	copy(p[26:], mac[:])
	packet.PutSum(p[2:], ^packet.Fold(packet.Sum(p, h.Pseudo(packet.ProtoICMPv6, size))))
	return f, true
}
