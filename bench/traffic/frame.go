package traffic

import (
	"encoding/binary"
	"math/bits"

	"millrace/packet"
)

// Draw is the random number of a field, below n (0 for 2^64), for packet k. It is a hash (splitmix64, Steele and others,
// OOPSLA 2014) scaled by a multiplication (Lemire, ACM TOMACS 2019).
func Draw(seed uint64, field int, k, n uint64) uint64 {
	x := seed + uint64(field)*0xd1342543de82ef95 + k*0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	if n == 0 {
		return x
	}
	hi, _ := bits.Mul64(x, n)
	return hi
}

// Size is the size of packet k in bytes with FCS.
func (s *Stream) Size(k uint64) int { return int(s.Sizes[k%uint64(len(s.Sizes))]) }

// Value is what the stream's field i holds in packet k, before it is shifted to its Mask.
func (s *Stream) Value(i int, k uint64) uint64 {
	f := &s.Fields[i]
	if f.Every > 1 {
		k /= f.Every
	}
	switch f.Kind {
	case Random:
		return f.Min + Draw(s.Seed, i, k, f.N)
	case List:
		return f.List[k%uint64(len(f.List))]
	}
	if f.N != 0 {
		k %= f.N
	}
	return f.Min + f.Step*k
}

// Frame makes packet k of size bytes with FCS, the obvious way: without FCS, its stamp all zero, lengths and checksums
// right. It is the oracle of generators. The size is one of Sizes, or another that the frame's
// headers and stamp have room in and Template covers.
func (s *Stream) Frame(k uint64, size int) []byte {
	b := append([]byte(nil), s.Template[:size-4]...)
	for _, l := range s.Lens {
		binary.BigEndian.PutUint16(b[l.Off:], uint16(len(b)-int(l.Less)))
	}
	for i := range s.Fields {
		f := &s.Fields[i]
		v, old := s.Value(i, k), uint64(0)
		at := b[f.Off : f.Off+uint16(f.Width)]
		for _, x := range at {
			old = old<<8 | uint64(x)
		}
		if f.Mask != 0 {
			v = old&^f.Mask | v<<bits.TrailingZeros64(f.Mask)&f.Mask
		}
		for j := range at {
			at[len(at)-1-j] = byte(v >> (8 * j))
		}
	}
	if s.Stamp != 0 {
		clear(b[s.Stamp:][:StampLen])
	}
	s.Seal(b)
	return b
}

// Seal writes the checksums of a frame (without FCS), the obvious way.
func (l *Layout) Seal(b []byte) {
	if l.L3 != 0 && !l.V6 {
		h := packet.IPv4(b[l.L3:])
		h.SetSum()
	}
	l.Seal4(b)
}

// Seal4 is Seal for layer 4 alone.
func (l *Layout) Seal4(b []byte) {
	if l.SumOff == 0 {
		return
	}
	p := b[l.L4 : len(b)-int(l.Pad)]
	var sum uint32
	add := func(b []byte) {
		for i, x := range b {
			if i&1 == 0 {
				sum += uint32(x) << 8
			} else {
				sum += uint32(x)
			}
			sum = sum&0xffff + sum>>16
		}
	}
	if l.Proto != packet.ProtoICMP {
		if l.V6 {
			add(b[l.L3+8 : l.L3+40])
		} else {
			add(b[l.L3+12 : l.L3+20])
		}
		add([]byte{0, l.Proto, byte(len(p) >> 8), byte(len(p))})
	}
	at := l.SumOff - l.L4
	p[at], p[at+1] = 0, 0
	add(p)
	x := ^uint16(sum)
	if x == 0 && l.Proto == packet.ProtoUDP {
		x = 0xffff
	}
	binary.BigEndian.PutUint16(p[at:], x)
}

// MeanSize is the mean of Sizes, in bytes with FCS.
func (s *Stream) MeanSize() float64 {
	var n float64
	for _, x := range s.Sizes {
		n += float64(x)
	}
	return n / float64(len(s.Sizes))
}

// wire is what a frame takes on the wire beside its bytes with FCS: preamble, start of frame, inter-frame gap.
const wire = 20

// FPS is the stream's rate in frames a second on a port of line bits a second. Without a line (0: memory), a percentage
// counts as one of 10 Gbit/s, so that streams keep their proportions.
func (s *Stream) FPS(line float64) float64 { return s.Rate.FPS(s.MeanSize(), line) }

// FPS is the rate in frames of size bytes a second; see Stream.FPS.
func (r Rate) FPS(size, line float64) float64 {
	switch r.Unit {
	case BPS:
		return r.Value / (8 * size)
	case Percent:
		if line == 0 {
			line = 10e9
		}
		return r.Value / 100 * line / (8 * (size + wire))
	}
	return r.Value
}
