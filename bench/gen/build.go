package gen

import (
	"encoding/binary"
	"math/bits"
	"unsafe" // fresh buffers, of DataRoom bytes, and templates rounded up to whole lines: compile bounds all offsets

	"millrace/bench/traffic"
	"millrace/packet"
)

// source makes the frames of one feed, compiled for one trial. It has the oracle traffic.Stream.Frame; a capture's frames
// are shapes without fields.
type source struct {
	k      uint64 // number of the next packet with a stamp
	bare   uint64 // packets without a stamp that were made
	word0  uint64 // first word of a stamp, without sequence
	word1  uint64 // second word, without time
	shapes []shape
	turn   int // shape of the next packet
	fields []field
	id     uint16
	out    uint16 // queue
	big    bool   // a shape does not fit one buffer
	group  *group
	place  int // in the group
}

// shape is what frames of one size have in common, or one frame of a capture.
type shape struct {
	data  []byte // the frame with lengths and checksums, fields and stamp zero; at least 64 bytes
	n     int    // its length
	base3 uint64 // partial sum under the IPv4 header's checksum, without the fields
	base4 uint64 // the same for layer 4
	stamp uint16 // offset, 0 for none
	sum3  uint16 // offset of the IPv4 header's checksum; 0 where data has it
	sum4  uint16 // the same for layer 4
	zero  uint16 // what stands for a checksum of 0 in layer 4
}

// field writes one traffic.Field.
type field struct {
	off    uintptr
	j      uint64 // the field's own count, modulo n where that is not 0
	v      uint64 // Count: the value
	left   uint64 // frames until the next value
	m3, m4 uint64 // the bytes of it, in memory order, that the sums cover
	mask   uint64
	fixed  uint64 // what stands beside the mask
	width  uint8
	kind   traffic.Kind
	shift  uint8
	rot    uint8 // 8 where it stands at an odd place of the sums
	merge  bool  // another field writes into the same bytes
	min    uint64
	step   uint64
	n      uint64
	every  uint64
	seed   uint64
	list   []uint64
}

// write makes the next frames of the stream in fresh buffers (of AllocRaw), stamped with the time now.
func (s *source) write(idx []uint32, now uint64) {
	w1 := s.word1 | now<<16
	c := fold16(halves(s.word0) + halves(w1))
	for _, x := range idx {
		sh := &s.shapes[s.turn]
		if s.turn++; s.turn == len(s.shapes) {
			s.turn = 0
		}
		m := packet.At(x)
		m.DataOff, m.OlFlags = packet.Headroom, 0
		m.PktLen, m.DataLen = uint32(sh.n), uint16(sh.n)
		d := unsafe.Add(unsafe.Pointer(m), packet.DataStart)
		p := unsafe.Pointer(unsafe.SliceData(sh.data))
		*(*[64]byte)(d) = *(*[64]byte)(p)
		if sh.n > 64 {
			copy(unsafe.Slice((*byte)(d), sh.n)[64:], sh.data[64:])
		}
		s.finish(d, sh, w1, c)
	}
}

// finish writes what differs from frame to frame. w1 is the stamp's second word and c the folded sum of both words
// without sequence.
func (s *source) finish(d unsafe.Pointer, sh *shape, w1, c uint64) {
	a, b := sh.base3, sh.base4
	for i := range s.fields {
		f := &s.fields[i]
		w := f.put(d)
		w = bits.RotateLeft64(w, int(f.rot))
		a += halves(w & f.m3)
		b += halves(w & f.m4)
	}
	if sh.stamp != 0 {
		seq := s.k & 0xffffffff
		st := unsafe.Add(d, sh.stamp)
		*(*uint64)(st) = s.word0 | seq<<32
		*(*uint64)(unsafe.Add(st, 8)) = w1
		t := c + seq>>16 + seq&0xffff
		t = t>>16 + t&0xffff
		t = t>>16 + t&0xffff
		*(*uint16)(unsafe.Add(st, 16)) = ^uint16(t)
		s.k++
	} else {
		s.bare++
	}
	if sh.sum3 != 0 {
		*(*uint16)(unsafe.Add(d, sh.sum3)) = ^uint16(fold16(a))
	}
	if sh.sum4 != 0 {
		t := ^uint16(fold16(b))
		if t == 0 {
			t = sh.zero
		}
		*(*uint16)(unsafe.Add(d, sh.sum4)) = t
	}
}

// put writes the field's next value and returns what it added to the frame, as it lies in memory.
func (f *field) put(d unsafe.Pointer) uint64 {
	v := f.v
	switch f.kind {
	case traffic.Random:
		x := f.seed + f.j*0x9e3779b97f4a7c15 // traffic.Draw
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x = (x ^ x>>27) * 0x94d049bb133111eb
		x ^= x >> 31
		if f.n != 0 {
			x, _ = bits.Mul64(x, f.n)
		}
		v = f.min + x
	case traffic.List:
		v = f.list[f.j]
	}
	if f.left--; f.left == 0 {
		f.left = f.every
		f.j++
		f.v += f.step
		if f.kind != traffic.Random && f.j == f.n {
			f.j, f.v = 0, f.min
		}
	}
	v = v<<f.shift&f.mask | f.fixed
	w := bits.ReverseBytes64(v) >> ((64 - 8*f.width) & 63)
	p := unsafe.Add(d, f.off)
	if f.merge {
		return f.or(p, w)
	}
	switch f.width {
	case 1:
		*(*uint8)(p) = uint8(w)
	case 2:
		*(*uint16)(p) = uint16(w)
	case 4:
		*(*uint32)(p) = uint32(w)
	default:
		*(*uint64)(p) = w
	}
	return w
}

// or adds bits to bytes in which those of the field are zero.
func (f *field) or(p unsafe.Pointer, w uint64) uint64 {
	b := unsafe.Slice((*byte)(p), f.width)
	for i := range b {
		b[i] |= byte(w >> (8 * i))
	}
	return w
}

// writeBig is write for one frame that may take several buffers; scratch has room for any frame. It
// returns false where there are too few buffers.
func (s *source) writeBig(c *packet.Cache, scratch []byte, now uint64) (uint32, bool) {
	sh := &s.shapes[s.turn]
	var idx [64]uint32
	need := (sh.n + packet.DataRoom - 1) / packet.DataRoom
	if got := c.Alloc(idx[:need]); got < need {
		c.Free(idx[:got])
		return 0, false
	}
	if s.turn++; s.turn == len(s.shapes) {
		s.turn = 0
	}
	copy(scratch, sh.data[:sh.n])
	w1 := s.word1 | now<<16
	s.finish(unsafe.Pointer(unsafe.SliceData(scratch)), sh, w1, fold16(halves(s.word0)+halves(w1)))
	rest := scratch[:sh.n]
	head := packet.At(idx[0])
	last := head
	for i, x := range idx[:need] {
		m := packet.At(x)
		m.DataLen = uint16(min(len(rest), packet.DataRoom))
		rest = rest[copy(m.Bytes(), rest):]
		if i > 0 {
			last.SetNext(m)
			last = m
		}
	}
	head.PktLen, head.NbSegs = uint32(sh.n), uint16(need)
	return idx[0], true
}

// loadBig reads a big-endian value of width bytes.
func loadBig(b []byte, width uint8) uint64 {
	var t [8]byte
	copy(t[8-width:], b[:width])
	return binary.BigEndian.Uint64(t[:])
}
