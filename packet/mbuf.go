package packet

import (
	"unsafe" // the data of a segment, which lies outside the Go heap
)

// Mbuf is the header of a packet buffer: the layout of DPDK's rte_mbuf
// (22.11 and later, IOVA in the mbuf), so that one road serves DPDK's buffers
// and ours. It is followed by headroom and data:
//
//	0          128             256                     BufLen+128
//	| Mbuf      | headroom 128  | data, DataOff on ...  |
//	            ^ BufAddr       ^ BufAddr+DataOff
//
// A packet is a chain of one or more segments. PktLen, NbSegs, Port and OlFlags
// count in the first segment only. A buffer in a pool has RefCnt 1, NbSegs 1
// and Next 0.
type Mbuf struct {
	BufAddr   uintptr // address of the buffer's first byte
	IOVA      uint64
	DataOff   uint16 // bytes from BufAddr to the data
	RefCnt    uint16 // owners of this buffer; changed only by Free, Clone and drivers
	NbSegs    uint16 // segments in the packet
	Port      uint16 // input port
	OlFlags   uint64
	Type      uint32
	PktLen    uint32 // bytes in the whole packet
	DataLen   uint16 // bytes in this segment
	VlanTCI   uint16
	RSS       uint32
	FdirHi    uint32
	VlanOuter uint16
	BufLen    uint16  // bytes from BufAddr to the buffer's end
	PoolAddr  uintptr // DPDK's mempool; the pool's number here
	Next      uintptr // address of the next segment's Mbuf, 0 at the end
	TxOffload uint64
	Shinfo    uintptr // direct buffer that this indirect one borrows, as an address
	PrivSize  uint16
	Timesync  uint16
	Dyn       [9]uint32
}

const (
	// HeaderSize is the size of an Mbuf.
	HeaderSize = 128
	// Headroom is the space before the data of a fresh buffer.
	Headroom = 128
	// DataStart is the offset of a fresh buffer's data from its Mbuf.
	DataStart = HeaderSize + Headroom
)

// FlagIndirect marks a segment that borrows another buffer's data
// (RTE_MBUF_F_INDIRECT).
const FlagIndirect = 1 << 62

// The layout is DPDK's: a change here does not compile.
const (
	_ = -(unsafe.Sizeof(Mbuf{}) ^ 128)
	_ = -(unsafe.Offsetof(Mbuf{}.DataOff) ^ 16)
	_ = -(unsafe.Offsetof(Mbuf{}.OlFlags) ^ 24)
	_ = -(unsafe.Offsetof(Mbuf{}.PktLen) ^ 36)
	_ = -(unsafe.Offsetof(Mbuf{}.DataLen) ^ 40)
	_ = -(unsafe.Offsetof(Mbuf{}.RSS) ^ 44)
	_ = -(unsafe.Offsetof(Mbuf{}.BufLen) ^ 54)
	_ = -(unsafe.Offsetof(Mbuf{}.PoolAddr) ^ 56)
	_ = -(unsafe.Offsetof(Mbuf{}.Next) ^ 64)
	_ = -(unsafe.Offsetof(Mbuf{}.Shinfo) ^ 80)
	_ = -(unsafe.Offsetof(Mbuf{}.Dyn) ^ 92)
)

// At returns the buffer with index i. The index must be one that a pool gave
// out; the memory stays mapped as long as the pool lives.
func At(i uint32) *Mbuf { return (*Mbuf)(unsafe.Add(base, uintptr(i)<<6)) }

// Index is the reverse of At.
func (m *Mbuf) Index() uint32 { return uint32((uintptr(unsafe.Pointer(m)) - uintptr(base)) >> 6) }

// Data points to the segment's first data byte.
func (m *Mbuf) Data() unsafe.Pointer {
	return unsafe.Add(base, m.BufAddr+uintptr(m.DataOff)-uintptr(base))
}

// Bytes is the segment's data, in place. borrowed: until the packet is freed
// or handed on.
func (m *Mbuf) Bytes() []byte { return unsafe.Slice((*byte)(m.Data()), m.DataLen) }

// NextSeg is the following segment, or nil.
func (m *Mbuf) NextSeg() *Mbuf {
	if m.Next == 0 {
		return nil
	}
	return (*Mbuf)(unsafe.Add(base, m.Next-uintptr(base)))
}

// SetNext links n (or nothing, for nil) behind the segment; NbSegs and PktLen of the
// packet's head are the caller's to keep.
func (m *Mbuf) SetNext(n *Mbuf) { m.Next = uintptr(unsafe.Pointer(n)) }

// Last is the packet's last segment.
func (m *Mbuf) Last() *Mbuf {
	for m.Next != 0 {
		m = m.NextSeg()
	}
	return m
}

// HeadSpace is the number of free bytes before the segment's data.
func (m *Mbuf) HeadSpace() int { return int(m.DataOff) }

// TailSpace is the number of free bytes behind the segment's data.
func (m *Mbuf) TailSpace() int { return int(m.BufLen) - int(m.DataOff) - int(m.DataLen) }

// Shared reports whether the segment's bytes may be seen by another owner, so
// that they may not be written.
func (m *Mbuf) Shared() bool { return m.RefCnt != 1 || m.OlFlags&FlagIndirect != 0 }

// Prepend makes room for n bytes before the data and returns them, or nil where
// the headroom is too small.
func (m *Mbuf) Prepend(n int) []byte {
	if n > int(m.DataOff) {
		return nil
	}
	m.DataOff -= uint16(n)
	m.DataLen += uint16(n)
	m.PktLen += uint32(n)
	return unsafe.Slice((*byte)(m.Data()), n)
}

// TrimHead removes n bytes from the front of the first segment; false where it has fewer.
func (m *Mbuf) TrimHead(n int) bool {
	if n > int(m.DataLen) {
		return false
	}
	m.DataOff += uint16(n)
	m.DataLen -= uint16(n)
	m.PktLen -= uint32(n)
	return true
}

// Append makes room for n bytes at the end of a packet and returns them, or nil
// where the last segment's tailroom is too small.
func (m *Mbuf) Append(n int) []byte {
	l := m.Last()
	if n > l.TailSpace() {
		return nil
	}
	p := unsafe.Add(l.Data(), int(l.DataLen))
	l.DataLen += uint16(n)
	m.PktLen += uint32(n)
	return unsafe.Slice((*byte)(p), n)
}

// CopyOut copies up to len(dst) bytes of the packet from offset off, over
// segments, and returns how many there were.
func (m *Mbuf) CopyOut(off int, dst []byte) int {
	n := 0
	for ; m != nil && n < len(dst); m = m.NextSeg() {
		if off >= int(m.DataLen) {
			off -= int(m.DataLen)
			continue
		}
		n += copy(dst[n:], m.Bytes()[off:])
		off = 0
	}
	return n
}

// CopyIn overwrites up to len(src) bytes of the packet from offset off, over
// segments, and returns how many. No segment written may be Shared.
func (m *Mbuf) CopyIn(off int, src []byte) int {
	n := 0
	for ; m != nil && n < len(src); m = m.NextSeg() {
		if off >= int(m.DataLen) {
			off -= int(m.DataLen)
			continue
		}
		n += copy(m.Bytes()[off:], src[n:])
		off = 0
	}
	return n
}

// View returns n bytes of the packet at offset off: in place where one segment
// holds them, else copied into tmp (which must have room for n); nil where the
// packet is shorter.
func (m *Mbuf) View(off, n int, tmp []byte) []byte {
	if off+n <= int(m.DataLen) {
		return m.Bytes()[off : off+n]
	}
	if m.CopyOut(off, tmp[:n]) < n {
		return nil
	}
	return tmp[:n]
}
