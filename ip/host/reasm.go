package host

import (
	"bytes"
	"net/netip"

	"millrace/packet"
	"millrace/pipeline/graph"
)

const (
	maxDatagrams = 8
	// Seconds until a datagram is given up: RFC 8200 4.5; RFC 1122 3.3.2 allows 60 to 120
	// for IPv4, Linux waits 30.
	reasmSeconds6 = 60
	reasmSeconds4 = 30
)

// datagram is one that is being put together. Its fragments are copied
// and freed, so that they hold no buffers.
type datagram struct {
	used     bool
	v6       bool
	proto    uint8
	id       uint32
	src, dst netip.Addr
	in       frame
	deadline uint64

	head  int    // bytes of IP header, and of headers before the fragment header
	total int    // payload bytes, -1 as long as the last fragment is missing
	end   int    // highest payload byte seen
	units int    // of 8 bytes that are there
	first int    // bytes of the first fragment in quote, 0 where it is missing
	data  []byte // header and payload
	seen  [8192 / 64]uint64
	quote [minMTU6]byte
}

// packet is the whole datagram.
func (d *datagram) packet() []byte { return d.data[:d.head+d.total] }

// lookup finds a fragment's datagram, or starts it; nil where there are too many.
func (h *Host) lookup(v6 bool, src, dst netip.Addr, proto uint8, id uint32) *datagram {
	var free *datagram
	for i := range h.reasm {
		d := &h.reasm[i]
		switch {
		case !d.used:
			free = d
		case d.v6 == v6 && d.id == id && d.src == src && d.dst == dst && (v6 || d.proto == proto):
			return d
		}
	}
	if free == nil {
		return nil
	}
	*free = datagram{used: true, v6: v6, proto: proto, id: id, src: src, dst: dst, total: -1, data: free.data}
	seconds := uint64(reasmSeconds4)
	if v6 {
		seconds = reasmSeconds6
	}
	free.deadline = h.w.Now + seconds*h.hz
	return free
}

// add copies the payload p at byte off, without more to come if last. bad: the
// fragments contradict each other.
func (d *datagram) add(off int, p []byte, last bool) (bad bool) {
	room := len(d.data) - d.head
	if off+len(p) > room {
		return true
	}
	from, to := off/8, (off+len(p)+7)/8
	there := 0
	for u := from; u < to; u++ {
		there += int(d.seen[u>>6] >> (u & 63) & 1)
	}
	if there != 0 { // only an exact repetition may be (RFC 8200 4.5)
		return there != to-from || last != (d.total == off+len(p)) || !bytes.Equal(d.data[d.head+off:d.head+off+len(p)], p)
	}
	end := off + len(p)
	if last {
		if d.total >= 0 || end < d.end {
			return true
		}
		d.total = end
	} else if d.total >= 0 && end > d.total {
		return true
	}
	copy(d.data[d.head+off:], p)
	for u := from; u < to; u++ {
		d.seen[u>>6] |= 1 << (u & 63)
	}
	d.units += to - from
	d.end = max(d.end, end)
	return false
}

func (d *datagram) complete() bool {
	return d.total >= 0 && d.first > 0 && d.units == (d.total+7)/8
}

// fragment4 adds an IPv4 fragment (RFC 791 3.2) and returns the datagram once it is complete.
func (h *Host) fragment4(b []byte) (*datagram, graph.Reason) {
	ip := packet.IPv4(b)
	p := b[ip.HeaderLen():]
	more := ip.FlagsOff()&packet.IPv4MF != 0
	if len(p) == 0 || more && len(p)%8 != 0 || ip.FragOff()+len(p) > 0xffff-packet.IPv4Size {
		return nil, xMalformed
	}
	d := h.lookup(false, netip.AddrFrom4(ip.Src()), netip.AddrFrom4(ip.Dst()), ip.Proto(), uint32(ip.ID()))
	if d == nil {
		return nil, xFragment
	}
	// Payloads lie behind room for a header; options of the first fragment are not kept.
	d.head = packet.IPv4Size
	if d.add(ip.FragOff(), p, !more) {
		d.used = false
		return nil, xFragment
	}
	if ip.FragOff() == 0 {
		d.first = copy(d.quote[:], b)
		copy(d.data, b[:packet.IPv4Size])
	}
	if !d.complete() {
		return nil, 0
	}
	o := packet.IPv4(d.data)
	o[0] = 0x45
	o.SetTotalLen(d.head + d.total)
	o.SetFlagsOff(0)
	o.SetSum()
	return d, 0
}

// fragment6in adds an IPv6 fragment, whose fragment header is at off and named at
// nextAt, and returns the datagram once it is complete.
func (h *Host) fragment6in(f frame, b []byte, nextAt, off int) (*datagram, graph.Reason) {
	ip := packet.IPv6(b)
	word := int(b[off+2])<<8 | int(b[off+3])
	at, more := word&^7, word&1 != 0
	id := uint32(b[off+4])<<24 | uint32(b[off+5])<<16 | uint32(b[off+6])<<8 | uint32(b[off+7])
	p := b[off+8:]
	if more && len(p)%8 != 0 {
		h.error6(f, b, packet.ICMP6ParamProblem, 0, 4) // at the payload length
		return nil, xMalformed
	}
	if off-packet.IPv6Size+at+len(p) > 0xffff {
		h.error6(f, b, packet.ICMP6ParamProblem, 0, uint32(off+2)) // at the offset
		return nil, xMalformed
	}
	if len(p) == 0 {
		return nil, xMalformed
	}
	d := h.lookup(true, netip.AddrFrom16(ip.Src()), netip.AddrFrom16(ip.Dst()), 0, id)
	if d == nil {
		return nil, xFragment
	}
	if d.first == 0 { // the room before the payload, until the first fragment says how much is needed
		if d.end == 0 {
			d.head = off
		}
	}
	if at == 0 && d.first == 0 && d.head != off {
		// The first fragment has other headers in front than the one that came before it.
		if off+d.end > len(d.data) {
			d.used = false
			return nil, xFragment
		}
		copy(d.data[off:off+d.end], d.data[d.head:d.head+d.end])
		d.head = off
	}
	if d.add(at, p, !more) {
		d.used = false
		return nil, xFragment
	}
	if at == 0 && d.first == 0 {
		d.first = copy(d.quote[:], b)
		copy(d.data, b[:off])
		d.data[nextAt] = b[off]
		d.in = f
	}
	if !d.complete() {
		return nil, 0
	}
	if d.head-packet.IPv6Size+d.total > 0xffff {
		d.used = false
		return nil, xFragment
	}
	packet.IPv6(d.data).SetPayloadLen(d.head - packet.IPv6Size + d.total)
	return d, 0
}

// timeout gives a datagram up and tells its sender where the first fragment is there
// (RFC 1122 3.3.2, RFC 8200 4.5).
func (h *Host) timeout(d *datagram) {
	d.used = false
	h.w.C.Exit[nTimeout]++
	switch {
	case d.first == 0:
	case d.v6:
		h.error6(d.in, d.quote[:d.first], packet.ICMP6TimeExceeded, 1, 0)
	default:
		h.error4(d.in, d.quote[:d.first], packet.ICMPTimeExceeded, 1)
	}
}
