package ip

import (
	"math/bits"
	"net/netip"
	"strconv"
	"unsafe" // headers in the vector: classify vouches for 20 bytes in one piece

	"millrace/packet"
	"millrace/pipeline/graph"
)

// Option changes what the checks let pass.
type Option func(*policy)

type policy struct{ sourceRoute bool }

// SourceRoute lets packets with IPv4 source routes pass through: those for the
// router itself are the host's to send on, strict ones for others are refused.
func SourceRoute(p *policy) { p.sourceRoute = true }

// Check4 is the stage that judges IPv4 headers: what a router must verify (RFC 1812
// 5.2.2, 5.3.7), options, and TTL. Bytes behind the packet (Ethernet's padding) are cut off. It
// sets Vector.Dst4.
func Check4(opts ...Option) *graph.Stage {
	var p policy
	for _, o := range opts {
		o(&p)
	}
	return &graph.Stage{
		Name: "check4", Doc: "judge IPv4 headers", Lane: graph.IPv4,
		Reasons: []graph.Reason{XHeader4, XLength4, XSum4, XSplit4, XSource4, XLinkLocal4, XTTL4,
			XOptions4, XSourceRoute},
		New: func(w *graph.Worker) graph.Runner { return &check4{w: w, policy: p} },
		Trace: func(t *graph.Look) string {
			h := packet.IPv4(unsafe.Slice((*byte)(t.Vector.Header(t.Pos)), packet.IPv4Size))
			return netip.AddrFrom4(h.Src()).String() + " -> " + netip.AddrFrom4(h.Dst()).String() +
				words("proto", int(h.Proto()), "ttl", int(h.TTL()), "len", int(t.Vector.Len[t.Pos]))
		},
	}
}

// words writes names with numbers.
func words(a string, x int, b string, y int, c string, z int) string {
	return " " + a + " " + strconv.Itoa(x) + " " + b + " " + strconv.Itoa(y) + " " + c + " " + strconv.Itoa(z)
}

type check4 struct {
	w *graph.Worker
	policy
	back merge
}

// strange4 marks first bytes of source addresses that are looked at more closely: 0/8, 127/8,
// link-local ones, and from 224/4 on.
var strange4 = func() (t [256]uint8) {
	t[0], t[127], t[169] = 1, 1, 1
	for i := 224; i < 256; i++ {
		t[i] = 1
	}
	return
}()

func (s *check4) Run(v *graph.Vector) {
	n := v.N4
	v.N4, v.NOdd = 0, 0
	if vector4 {
		s.sixteens(v, n)
	} else {
		s.each(v, 0, n)
	}
	if x := v.NOdd; x != 0 {
		v.NOdd = 0
		s.odd(v, x)
	}
}

// sixteens is each for the n packets of the lane, by plain4 as far as it goes.
func (s *check4) sixteens(v *graph.Vector, n int) {
	for j := 0; j < n; {
		whole := (n - j) &^ 15
		if whole == 0 {
			s.each(v, j, n)
			return
		}
		k := v.N4
		good, mask := plain4(s.w.Base, &v.L3[0], &v.Len[0], &v.Lane4[uint8(j)], &v.Dst4[uint8(k)], whole)
		if k != j {
			copy(v.Lane4[k:k+good], v.Lane4[j:j+good])
		}
		v.N4 += good
		j += good
		if good == whole {
			continue
		}
		if mask == 0 {
			s.each(v, j, j+16)
			j += 16
			continue
		}
		k = v.N4
		for e, dst := j+16, k; j < e; j, dst, mask = j+1, dst+1, mask>>1 {
			if mask&1 == 0 {
				v.N4 = k
				s.each(v, j, j+1)
				k = v.N4
				continue
			}
			v.Lane4[uint8(k)] = v.Lane4[uint8(j)]
			v.Dst4[uint8(k)] = v.Dst4[uint8(dst)]
			k++
		}
		v.N4 = k
	}
}

// each judges the packets of the lane from the jth to before the nth: good ones go to the end of the first v.N4, others to v.Odd.
func (s *check4) each(v *graph.Vector, j, n int) {
	base, k, x := s.w.Base, v.N4, v.NOdd
	at := &s.back.at
	for ; j < n; j++ {
		i := v.Lane4[uint8(j)]
		p := unsafe.Add(base, v.L3[i])
		w0, w1, w2 := *(*uint64)(p), *(*uint64)(unsafe.Add(p, 8)), *(*uint32)(unsafe.Add(p, 16))
		if uint8(w0) != 0x45 || uint8(w1) <= 1 || strange4[uint8(w1>>32)] != 0 || sum4(w0, w1, w2) != 0xffff {
			v.Odd[uint8(x)], at[uint8(x)] = i, uint8(k)
			x++
			continue
		}
		if l, tl := v.Len[i], bits.ReverseBytes16(uint16(w0>>16)); tl != l {
			m := (*packet.Mbuf)(unsafe.Add(base, uintptr(v.Idx[i])<<6))
			if tl > l || tl < packet.IPv4Size || m.NbSegs != 1 {
				v.Odd[uint8(x)], at[uint8(x)] = i, uint8(k)
				x++
				continue
			}
			m.PktLen -= uint32(l - tl)
			m.DataLen -= l - tl
			v.Len[i] = tl
		}
		v.Lane4[uint8(k)] = i
		v.Dst4[uint8(k)] = bits.ReverseBytes32(w2)
		k++
	}
	v.N4, v.NOdd = k, x
}

// sum4 is 0xffff for a good header without options.
func sum4(w0, w1 uint64, w2 uint32) uint32 {
	s, c := bits.Add64(w0, w1, 0)
	s, c = bits.Add64(s, uint64(w2), c)
	s += c
	t := uint32((s + bits.RotateLeft64(s, 32)) >> 32)
	return (t + bits.RotateLeft32(t, 16)) >> 16
}

// odd judges the x packets that were set aside.
func (s *check4) odd(v *graph.Vector, x int) {
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
	if stay == 0 {
		return
	}
	v.N4 = s.back.into(&v.Lane4, v.N4, &v.Odd, stay)
	for j := range v.N4 {
		v.Dst4[uint8(j)] = bits.ReverseBytes32(*(*uint32)(unsafe.Add(v.Header(v.Lane4[uint8(j)]), 16)))
	}
}

// judge says why the packet must leave, or 0.
func (s *check4) judge(v *graph.Vector, i uint8) graph.Reason {
	h := packet.IPv4(unsafe.Slice((*byte)(v.Header(i)), packet.IPv4Size))
	hl, tl := h.HeaderLen(), h.TotalLen()
	if h.Version() != 4 || hl < packet.IPv4Size {
		return XHeader4
	}
	if tl < hl || tl > int(v.Len[i]) {
		return XLength4
	}
	if hl > packet.IPv4Size {
		if !inOnePiece(v.Mbuf(i), v.L3Off(i)+hl) {
			return XSplit4
		}
		h = unsafe.Slice((*byte)(v.Header(i)), hl)
	}
	if !h.SumOK() {
		return XSum4
	}
	trim(s.w, v, i, tl)
	src, dst := h.Src(), h.Dst()
	local := src[0] == 169 && src[1] == 254
	if strange4[src[0]] != 0 && src[0] != 169 {
		return XSource4
	}
	if !local && hl == packet.IPv4Size && h.TTL() > 1 {
		return 0
	}
	// The host's packets may be so; multicast and limited broadcast have no other place to go.
	if _, ours := s.w.Tables.Addrs.Load().Is[netip.AddrFrom4(dst)]; ours || hl == packet.IPv4Size && dst[0] >= 224 {
		return 0
	}
	if local {
		return XLinkLocal4
	}
	if hl > packet.IPv4Size {
		o, bad := parseOptions(h)
		switch {
		case bad != 0:
			return XOptions4
		case o.strict, o.loose && !s.sourceRoute:
			return XSourceRoute
		}
		v.Opts = v.Opts || o.record != 0 || o.stamp != 0
	}
	if h.TTL() <= 1 && dst[0] < 224 {
		return XTTL4
	}
	return 0
}

// inOnePiece sees to it that the packet's first n bytes lie in its first segment,
// to which it moves them from the next ones if they do not.
func inOnePiece(m *packet.Mbuf, n int) bool {
	if n <= int(m.DataLen) {
		return true
	}
	if m.Shared() || n-int(m.DataLen) > m.TailSpace() {
		return false
	}
	for s := m.NextSeg(); s != nil && int(m.DataLen) < n; s = s.NextSeg() {
		k := min(n-int(m.DataLen), int(s.DataLen))
		copy(unsafe.Slice((*byte)(unsafe.Add(m.Data(), int(m.DataLen))), k), s.Bytes())
		m.DataLen += uint16(k)
		s.DataOff += uint16(k)
		s.DataLen -= uint16(k)
	}
	return n <= int(m.DataLen)
}

// trim makes the packet end n bytes behind the start of its L3 header and frees the
// segments behind that.
func trim(w *graph.Worker, v *graph.Vector, i uint8, n int) {
	if int(v.Len[i]) == n {
		return
	}
	head := v.Mbuf(i)
	end := v.L3Off(i) + n
	head.PktLen = uint32(end)
	v.Len[i] = uint16(n)
	m, segs := head, uint16(1)
	for ; end > int(m.DataLen); segs++ {
		end -= int(m.DataLen)
		m = m.NextSeg()
	}
	m.DataLen = uint16(end)
	if rest := m.NextSeg(); rest != nil {
		m.SetNext(nil)
		w.Cache.Free1(rest)
	}
	head.NbSegs = segs
}

// merge puts packets back into a lane from which they were set aside.
type merge struct {
	at [graph.VectorSize]uint8 // by place in the list of odd ones: packets of the lane before it
}

// into inserts the first n of odd into the lane of have packets, each behind as
// many as stood before it, and returns how many there are now.
func (g *merge) into(lane *[graph.VectorSize]uint8, have int, odd *[graph.VectorSize]uint8, n int) int {
	from, to := have, have+n
	for j := n - 1; j >= 0; j-- {
		for from > int(g.at[uint8(j)]) {
			from--
			to--
			lane[uint8(to)] = lane[uint8(from)]
		}
		to--
		lane[uint8(to)] = odd[uint8(j)]
	}
	return have + n
}
