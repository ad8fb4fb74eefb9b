package gen

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"millrace/bench/traffic"
	"millrace/packet"
)

// compile makes the source of a stream whose frames have the sizes given, in bytes with FCS, in turn.
func compile(st *traffic.Stream, id uint16, sizes []uint16) (*source, error) {
	s := &source{id: id, word1: uint64(id)}
	fail := func(format string, a ...any) (*source, error) {
		return nil, fmt.Errorf("gen: stream %s: %s", st.Name, fmt.Sprintf(format, a...))
	}
	if len(sizes) == 0 {
		return fail("no sizes")
	}
	least := 1 << 16
	for _, n := range sizes {
		least = min(least, int(n)-fcs)
	}
	need := 14
	for _, f := range st.Fields {
		need = max(need, int(f.Off)+int(f.Width))
	}
	ihl := 0
	if st.L3 != 0 {
		need = max(need, int(st.L3)+20)
		if st.V6 {
			need = max(need, int(st.L3)+40)
		} else if need <= len(st.Template) {
			ihl = packet.IPv4(st.Template[st.L3:]).HeaderLen()
			need = max(need, int(st.L3)+ihl)
		}
	}
	if st.SumOff != 0 {
		need = max(need, int(st.SumOff)+2)
	}
	if st.Stamp != 0 {
		need = max(need, int(st.Stamp)+stampLen)
	}
	need += int(st.Pad)
	switch {
	case least < need:
		return fail("a size of %d bytes with FCS: its headers and stamp take %d", least+fcs, need+fcs)
	case st.SumOff != 0 && st.SumOff < st.L4:
		return fail("the checksum stands before layer 4")
	case st.SumOff != 0 && (st.SumOff-st.L4|st.L4-st.L3)&1 != 0:
		return fail("layer 4 or its checksum is at an odd place")
	case st.SumOff != 0 && st.Stamp != 0 && (st.Stamp-st.L4)&1 != 0:
		return fail("the stamp is at an odd place of layer 4")
	}
	if err := s.compileFields(st, ihl); err != nil {
		return fail("%v", err)
	}
	made := map[uint16]*shape{}
	for _, size := range sizes {
		sh := made[size]
		if sh == nil {
			n := int(size) - fcs
			if n > len(st.Template) {
				return fail("a size of %d bytes with FCS: the template ends at %d", size, len(st.Template)+fcs)
			}
			sh = s.shape(st, n, ihl)
			made[size] = sh
		}
		s.shapes = append(s.shapes, *sh)
		s.big = s.big || sh.n > packet.DataRoom
	}
	return s, nil
}

const fcs = 4

// compileFields also finds which checksums change from frame to frame.
func (s *source) compileFields(st *traffic.Stream, ihl int) error {
	taken := make([]uint8, len(st.Template)) // bits that fields write
	if st.Stamp != 0 {
		for i := range stampLen {
			taken[int(st.Stamp)+i] = 0xff
		}
	}
	if st.SumOff != 0 {
		taken[st.SumOff], taken[st.SumOff+1] = 0xff, 0xff
	}
	if ihl != 0 {
		taken[st.L3+10], taken[st.L3+11] = 0xff, 0xff
	}
	lens := map[int]bool{}
	for _, l := range st.Lens {
		lens[int(l.Off)], lens[int(l.Off)+1] = true, true
	}
	for i, f := range st.Fields {
		name := fmt.Sprintf("field %d at byte %d", i, f.Off)
		if f.Width != 1 && f.Width != 2 && f.Width != 4 && f.Width != 8 {
			return fmt.Errorf("%s: width %d; 1, 2, 4 or 8 are possible", name, f.Width)
		}
		all := ^uint64(0) >> (64 - 8*f.Width)
		h := field{
			off: uintptr(f.Off), width: f.Width, kind: f.Kind, min: f.Min, step: f.Step, n: f.N, v: f.Min,
			every: max(f.Every, 1), left: max(f.Every, 1), list: f.List, mask: all,
			seed: st.Seed + uint64(i)*0xd1342543de82ef95,
		}
		if f.Mask != 0 {
			h.mask, h.shift = f.Mask&all, uint8(bits.TrailingZeros64(f.Mask))
		}
		if f.Kind == traffic.List {
			if len(f.List) == 0 {
				return fmt.Errorf("%s: an empty list", name)
			}
			h.n = uint64(len(f.List))
		}
		if (int(f.Off)-int(st.L3))&1 != 0 {
			h.rot = 8
		}
		h.fixed = loadBig(st.Template[f.Off:], f.Width) &^ h.mask
		for b := range int(f.Width) {
			at := int(f.Off) + b
			mask := uint8(h.mask >> (8 * (int(f.Width) - 1 - b)))
			if taken[at]&mask != 0 {
				return fmt.Errorf("%s: byte %d is also written by a checksum, a stamp or another field", name, at)
			}
			if lens[at] && mask != 0xff {
				return fmt.Errorf("%s: byte %d is part of a length", name, at)
			}
			taken[at] |= mask
			covered := uint64(0xff) << (8 * b)
			if ihl != 0 && at >= int(st.L3) && at < int(st.L3)+ihl {
				h.m3 |= covered
			}
			if st.SumOff != 0 && (at >= int(st.L4) || st.Proto != packet.ProtoICMP && inAddrs(st, at)) {
				h.m4 |= covered
			}
		}
		h.m3, h.m4 = bits.RotateLeft64(h.m3, int(h.rot)), bits.RotateLeft64(h.m4, int(h.rot))
		s.fields = append(s.fields, h)
	}
	// Fields that share bytes leave the others' bits alone, and what is fixed there is in the shape.
	for i := range s.fields {
		for j := range s.fields[:i] {
			a, b := &s.fields[i], &s.fields[j]
			if a.off < b.off+uintptr(b.width) && b.off < a.off+uintptr(a.width) {
				a.merge, b.merge = true, true
				a.fixed, b.fixed = 0, 0
			}
		}
	}
	return nil
}

// inAddrs reports whether a byte belongs to the addresses in the pseudo header.
func inAddrs(st *traffic.Stream, at int) bool {
	at -= int(st.L3)
	if st.V6 {
		return at >= 8 && at < 40
	}
	return at >= 12 && at < 20
}

// shape makes what frames of n bytes without FCS have in common.
func (s *source) shape(st *traffic.Stream, n, ihl int) *shape {
	b := make([]byte, max(n, 64))
	copy(b, st.Template[:n])
	f := b[:n]
	for _, l := range st.Lens {
		binary.BigEndian.PutUint16(f[l.Off:], uint16(n-int(l.Less)))
	}
	if st.Stamp != 0 {
		clear(f[st.Stamp:][:stampLen])
	}
	if st.SumOff != 0 {
		f[st.SumOff], f[st.SumOff+1] = 0, 0
	}
	if ihl != 0 {
		f[st.L3+10], f[st.L3+11] = 0, 0
	}
	// Fields write whole bytes, so those are zero here, but where they share bytes: there only their bits are.
	for _, x := range s.fields {
		mask := x.mask
		if !x.merge {
			mask = ^uint64(0)
		}
		for i := range uintptr(x.width) {
			f[x.off+i] &^= byte(mask >> (8 * (uintptr(x.width) - 1 - i)))
		}
	}
	sh := &shape{data: b, n: n, stamp: st.Stamp}
	for _, x := range s.fields {
		if x.m3 != 0 {
			sh.sum3 = st.L3 + 10
		}
		if x.m4 != 0 {
			sh.sum4 = st.SumOff
		}
	}
	if st.Proto == packet.ProtoUDP {
		sh.zero = 0xffff
	}
	if ihl != 0 {
		h := f[st.L3:][:ihl]
		sh.base3 = uint64(packet.Fold(packet.Sum(h, 0)))
		packet.PutSum(h[10:], ^uint16(sh.base3))
	}
	if st.SumOff != 0 {
		p := f[st.L4 : n-int(st.Pad)]
		sum := packet.Sum(p, 0)
		if st.Proto != packet.ProtoICMP {
			if st.V6 {
				sum = packet.Add(sum, packet.IPv6(f[st.L3:]).Pseudo(st.Proto, len(p)))
			} else {
				h := packet.IPv4(f[st.L3:])
				sum = packet.Add(sum, packet.Pseudo4(h.Src(), h.Dst(), st.Proto, len(p)))
			}
		}
		sh.base4 = uint64(packet.Fold(sum))
		sum4 := ^uint16(sh.base4)
		if sum4 == 0 {
			sum4 = sh.zero
		}
		packet.PutSum(f[st.SumOff:], sum4)
	}
	return sh
}
