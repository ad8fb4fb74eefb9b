package graph

import (
	"math/bits"
	"unsafe" // headers by their offset from packet.Base, inside a living buffer

	"millrace/packet"
)

// VectorSize is the most packets that go down the road together.
const VectorSize = 256

// Vector is a burst of packets on the road: a struct of arrays indexed by position.
// The arrays never move; lanes are lists of positions. A stage reads and writes
// the fields of the positions in its lane, takes a position off the lane when the
// packet leaves (Exit, Again or Done), and leaves everything else alone.
//
// Every position below N is at any moment in exactly one lane, or has left.
type Vector struct {
	N     int    // packets: positions 0 to N-1
	N4    int    // positions in Lane4
	N6    int    // positions in Lane6
	NX    int    // exits marked so far
	NA    int    // positions marked to go round again
	NOdd  int    // scratch of the stage that runs
	Moved bool   // some frame's L2 header is, or will be, other than 14 bytes
	Opts  bool   // some IPv4 packet may have options to be filled in when it is forwarded
	Marks bool   // Mark holds the packets' marks; otherwise all are 0
	From  uint16 // interface that all packets came in by, 0 where they differ or were made here

	Lane4 [VectorSize]uint8
	Lane6 [VectorSize]uint8
	Odd   [VectorSize]uint8  // scratch of the stage that runs
	Dst4  [VectorSize]uint32 // by place in Lane4: destination, host order; set by check4

	Idx  [VectorSize]uint32  // the packet
	L3   [VectorSize]uintptr // bytes from packet.Base() to the L3 header, which lies in one piece in the first segment
	Len  [VectorSize]uint16  // bytes from the L3 header to the end of the packet, over all segments
	In   [VectorSize]uint16  // input interface; of a packet made here, that of the packet it answers, or 0
	NH   [VectorSize]uint16  // next-hop group; set by lookup
	Adj  [VectorSize]uint16  // adjacency; set by nexthop
	Mark [VectorSize]uint32  // firewall mark, where Marks is set

	XPos  [VectorSize]uint8
	XCode [VectorSize]Reason
	APos  [VectorSize]uint8
}

// Reset empties the vector.
func (v *Vector) Reset() {
	v.N, v.N4, v.N6, v.NX, v.NA, v.NOdd, v.Moved, v.Opts, v.Marks, v.From = 0, 0, 0, 0, 0, 0, false, false, false, 0
}

// Exit marks that position i leaves the road for a reason. The stage must also take
// i off its lane. The packet is settled at the end of the round.
func (v *Vector) Exit(i uint8, why Reason) {
	x := uint8(v.NX)
	v.XPos[x] = i
	v.XCode[x] = why
	v.NX++
}

// Again marks that position i, whose L3, Len and In the stage has set to the inner
// packet's, goes down the road again from the stages behind classify: what
// decapsulation needs. The stage must also take i off its lane.
func (v *Vector) Again(i uint8) {
	v.APos[uint8(v.NA)] = i
	v.NA++
}

// Header is the L3 header of position i.
func (v *Vector) Header(i uint8) unsafe.Pointer { return unsafe.Add(packet.Base(), v.L3[i]) }

// Mbuf is the first segment of position i.
func (v *Vector) Mbuf(i uint8) *packet.Mbuf { return packet.At(v.Idx[i]) }

// L3Off is the offset of the L3 header from the start of the packet's data.
func (v *Vector) L3Off(i uint8) int {
	m := v.Mbuf(i)
	return int(v.L3[i] + uintptr(packet.Base()) - m.BufAddr - uintptr(m.DataOff))
}

// SetL3 says that the L3 header of position i is off bytes into the packet's data.
func (v *Vector) SetL3(i uint8, off int) {
	m := v.Mbuf(i)
	v.L3[i] = m.BufAddr + uintptr(m.DataOff) + uintptr(off) - uintptr(packet.Base())
	v.Len[i] = uint16(int(m.PktLen) - off)
}

// Join puts position i at the end of the lane of its IP version, with what check4 would
// set; false where it has none.
func (v *Vector) Join(i uint8) bool {
	switch *(*uint8)(v.Header(i)) >> 4 {
	case 4:
		v.Lane4[uint8(v.N4)] = i
		v.Dst4[uint8(v.N4)] = bits.ReverseBytes32(*(*uint32)(unsafe.Add(v.Header(i), 16)))
		v.N4++
	case 6:
		v.Lane6[uint8(v.N6)] = i
		v.N6++
	default:
		return false
	}
	return true
}

// Parked is a packet off the road with the fields that stages share, held until it
// goes on.
type Parked struct {
	L3   uintptr
	Idx  uint32
	Len  uint16
	In   uint16
	NH   uint16
	Adj  uint16
	Mark uint32
}

// Park copies the fields of position i, which the stage then marks with an exit of
// kind Hold, or takes off its lane.
func (v *Vector) Park(i uint8) Parked {
	p := Parked{v.L3[i], v.Idx[i], v.Len[i], v.In[i], v.NH[i], v.Adj[i], 0}
	if v.Marks {
		p.Mark = v.Mark[i]
	}
	return p
}

// Unpark appends a parked packet to the vector and its lane and returns its
// position. The vector must not be full.
func (v *Vector) Unpark(p Parked) uint8 {
	i := uint8(v.N)
	v.N++
	v.L3[i], v.Idx[i], v.Len[i], v.In[i], v.NH[i], v.Adj[i] = p.L3, p.Idx, p.Len, p.In, p.NH, p.Adj
	v.Mark[i] = p.Mark
	v.Moved, v.Opts, v.Marks = true, true, v.Marks || p.Mark != 0
	v.Join(i)
	return i
}

// ParkNew is the Parked of a packet made here, whose L3 header is off bytes into its data.
func ParkNew(m *packet.Mbuf, off int) Parked {
	return Parked{
		L3:  m.BufAddr + uintptr(m.DataOff) + uintptr(off) - uintptr(packet.Base()),
		Idx: m.Index(), Len: uint16(int(m.PktLen) - off),
	}
}

// ParkQueue is a bounded first-in first-out queue of parked packets of one worker.
type ParkQueue struct {
	buf  []Parked
	head uint32
	tail uint32
}

// NewParkQueue makes a queue for n packets, rounded up to a power of two.
func NewParkQueue(n int) *ParkQueue {
	size := 1
	for size < n {
		size *= 2
	}
	return &ParkQueue{buf: make([]Parked, size)}
}

// Put appends a packet; false where the queue is full.
func (q *ParkQueue) Put(p Parked) bool {
	if q.head-q.tail == uint32(len(q.buf)) {
		return false
	}
	q.buf[q.head&uint32(len(q.buf)-1)] = p
	q.head++
	return true
}

// Len is the number of packets inside.
func (q *ParkQueue) Len() int { return int(q.head - q.tail) }

// Refill appends packets to the vector until it is full or the queue empty, and
// returns how many.
func (q *ParkQueue) Refill(v *Vector) int {
	n := 0
	for q.tail != q.head && v.N < VectorSize {
		v.Unpark(q.buf[q.tail&uint32(len(q.buf)-1)])
		q.tail++
		n++
	}
	return n
}

// Get takes the oldest packet; false where the queue is empty.
func (q *ParkQueue) Get() (Parked, bool) {
	if q.tail == q.head {
		return Parked{}, false
	}
	p := q.buf[q.tail&uint32(len(q.buf)-1)]
	q.tail++
	return p, true
}
