package ip

import (
	"math/bits"
	"net/netip"
	"unsafe" // headers in the vector: classify vouches for 40 bytes in one piece

	"millrace/packet"
	"millrace/pipeline/graph"
)

// Check6 is the stage that judges IPv6 headers (RFC 8200, RFC 4291 2.5 and 2.7) and
// hop-by-hop options. Bytes behind the packet (Ethernet's padding) are cut off.
func Check6() *graph.Stage {
	return &graph.Stage{
		Name: "check6", Doc: "judge IPv6 headers", Lane: graph.IPv6,
		Reasons: []graph.Reason{XHeader6, XLength6, XJumbo, XSource6, XLinkLocal6, XHopLimit6, XHopByHop,
			XManyOptions, XDiscard6, XOption6},
		New: func(w *graph.Worker) graph.Runner { return &check6{w: w} },
		Trace: func(t *graph.Look) string {
			h := packet.IPv6(unsafe.Slice((*byte)(t.Vector.Header(t.Pos)), packet.IPv6Size))
			return netip.AddrFrom16(h.Src()).String() + " -> " + netip.AddrFrom16(h.Dst()).String() +
				words("next", int(h.Next()), "hop limit", int(h.HopLimit()), "len", int(t.Vector.Len[t.Pos]))
		},
	}
}

type check6 struct {
	w    *graph.Worker
	back merge
}

// plain6 is the number of leading 16-bit words that plain unicast source addresses
// have: 1 to 0xfe7f. ::/16 and what is from fe80::/10 on are looked at more closely.
const plain6 = 0xfe7f

func (s *check6) Run(v *graph.Vector) {
	base, n, k, x := s.w.Base, v.N6, 0, 0
	at := &s.back.at
	for j := 0; j < n; j++ {
		i := v.Lane6[uint8(j)]
		p := unsafe.Add(base, v.L3[i])
		w := *(*uint64)(p) // version, class, label; length, next header, hop limit
		src := bits.ReverseBytes16(*(*uint16)(unsafe.Add(p, 8)))
		if uint8(w)&0xf0 != 0x60 || w>>56 <= 1 || uint8(w>>48) == packet.ProtoHopByHop || src-1 >= plain6 {
			v.Odd[uint8(x)], at[uint8(x)] = i, uint8(k)
			x++
			continue
		}
		if l, tl := uint32(v.Len[i]), uint32(bits.ReverseBytes16(uint16(w>>32)))+packet.IPv6Size; tl != l {
			m := (*packet.Mbuf)(unsafe.Add(base, uintptr(v.Idx[i])<<6))
			if tl > l || m.NbSegs != 1 {
				v.Odd[uint8(x)], at[uint8(x)] = i, uint8(k)
				x++
				continue
			}
			m.PktLen -= l - tl
			m.DataLen -= uint16(l - tl)
			v.Len[i] = uint16(tl)
		}
		v.Lane6[uint8(k)] = i
		k++
	}
	v.N6 = k
	if x != 0 {
		s.odd(v, x)
	}
}

func (s *check6) odd(v *graph.Vector, x int) {
	stay := 0
	for j := range x {
		i := v.Odd[uint8(j)]
		if why := s.judge(v, i); why != 0 {
			v.Exit(i, why)
			continue
		}
		v.Odd[uint8(stay)], s.back.at[uint8(stay)] = i, s.back.at[uint8(j)]
		stay++
	}
	v.N6 = s.back.into(&v.Lane6, v.N6, &v.Odd, stay)
}

// judge says why the packet must leave, or 0.
func (s *check6) judge(v *graph.Vector, i uint8) graph.Reason {
	h := packet.IPv6(unsafe.Slice((*byte)(v.Header(i)), packet.IPv6Size))
	if h.Version() != 6 {
		return XHeader6
	}
	tl := h.PayloadLen() + packet.IPv6Size
	if tl > int(v.Len[i]) {
		return XLength6
	}
	hops := h.Next() == packet.ProtoHopByHop
	if hops && h.PayloadLen() == 0 {
		return XJumbo
	}
	trim(s.w, v, i, tl)
	src, dst := netip.AddrFrom16(h.Src()), netip.AddrFrom16(h.Dst())
	if src.IsMulticast() || src.IsUnspecified() || src.IsLoopback() || src.Is4In6() {
		return XSource6
	}
	local := src.IsLinkLocalUnicast()
	if !local && !hops && h.HopLimit() > 1 {
		return 0
	}
	// The host's packets may be so; multicast of the link has no other place to go.
	if _, ours := s.w.Tables.Addrs.Load().Is[dst]; ours || !hops && dst.IsMulticast() && h[25]&15 <= 2 {
		return 0
	}
	if local {
		return XLinkLocal6
	}
	if hops {
		if x, _ := hopByHop(v.Mbuf(i), v.L3Off(i), dst.IsMulticast()); x != hopPass {
			return hopReasons[x]
		}
	}
	if h.HopLimit() <= 1 && !dst.IsMulticast() {
		return XHopLimit6
	}
	return 0
}

const (
	// maxHopByHop and maxHopOptions bound what a router reads of hop-by-hop
	// options: bytes, and options without padding (RFC 9673 5).
	maxHopByHop   = 256
	maxHopOptions = 8

	optPad1  = 0x00
	optPadN  = 0x01
	optAlert = 0x05 // router alert (RFC 2711): forwarded as any other packet (RFC 6398)
	optJumbo = 0xc2
)

// verdict is what hop-by-hop options say about their packet.
type verdict uint8

const (
	hopPass verdict = iota
	hopBad
	hopMany
	hopJumbo
	hopDiscard
	hopError
)

var hopReasons = [...]graph.Reason{hopPass: 0, hopBad: XHopByHop, hopMany: XManyOptions, hopJumbo: XJumbo,
	hopDiscard: XDiscard6, hopError: XOption6}

// hopByHop walks the hop-by-hop options of the packet whose IPv6 header is at l3off; at is,
// for hopError, the offset of the option from the IPv6 header.
func hopByHop(m *packet.Mbuf, l3off int, multicast bool) (x verdict, at uint32) {
	var tmp [maxHopByHop]byte
	off := l3off + packet.IPv6Size
	b := m.View(off, 2, tmp[:])
	if b == nil {
		return hopBad, 0
	}
	n := (int(b[1]) + 1) * 8
	if n > maxHopByHop {
		return hopMany, 0
	}
	if b = m.View(off, n, tmp[:]); b == nil {
		return hopBad, 0
	}
	for i, count := 2, 0; i < n; {
		typ := b[i]
		if typ == optPad1 {
			i++
			continue
		}
		if i+2 > n || i+2+int(b[i+1]) > n {
			return hopBad, 0
		}
		size := 2 + int(b[i+1])
		if typ != optPadN {
			if count++; count > maxHopOptions {
				return hopMany, 0
			}
		}
		switch {
		case typ == optPadN, typ == optAlert, typ>>6 == 0:
		case typ == optJumbo:
			return hopJumbo, 0
		case typ>>6 == 1, typ>>6 == 3 && multicast:
			return hopDiscard, 0
		default:
			return hopError, uint32(packet.IPv6Size + i)
		}
		i += size
	}
	return hopPass, 0
}

// problem6 is the pointer of the error about a packet that left for XOption6.
func problem6(v *graph.Vector, i uint8) uint32 {
	h := packet.IPv6(unsafe.Slice((*byte)(v.Header(i)), packet.IPv6Size))
	_, at := hopByHop(v.Mbuf(i), v.L3Off(i), h[24] == 0xff)
	return at
}
