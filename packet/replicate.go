package packet

import (
	"sync/atomic"
	"unsafe" // headers of buffers by their addresses, which a pool gave out
)

// Replicate fills dst with packets equal to the n bytes of m from offset off on, as far as there are buffers, and
// returns how many it made. Each has its own copy of the first head bytes, behind
// fresh headroom; all share the rest with m, of which nothing is copied. m
// must hold head bytes in its first segment from off on; it stays its owner's, who may go on to write those bytes
// and what stands before them, and nothing behind them. head is at most DataRoom bytes.
func (c *Cache) Replicate(m *Mbuf, off, head, n int, dst []uint32) int {
	rest, skip, from := n-head, off+head, m
	for from != nil && skip >= int(from.DataLen) {
		skip -= int(from.DataLen)
		from = from.NextSeg()
	}
	made := c.Alloc(dst)
	src := unsafe.Slice((*byte)(unsafe.Add(m.Data(), off)), head)
	for _, i := range dst[:made] {
		h := At(i)
		copy(unsafe.Slice((*byte)(h.Data()), head), src)
		h.DataLen, h.PktLen = uint16(head), uint32(n)
		h.Port, h.Type, h.RSS = m.Port, m.Type, m.RSS
	}
	// One segment after the other, so that each is counted up once for all.
	for ; from != nil && rest > 0; from = from.NextSeg() {
		if k := min(int(from.DataLen)-skip, rest); k > 0 {
			whole := c.share(from, skip, k, dst[:made])
			c.Free(dst[whole:made]) // cannot be finished
			made, rest = whole, rest-k
		}
		skip = 0
	}
	return made
}

// share appends to each packet of dst a segment that borrows k bytes of s from offset off on, and returns for how many
// there were buffers.
func (c *Cache) share(s *Mbuf, off, k int, dst []uint32) int {
	var segs [32]uint32
	done := 0
	for done < len(dst) {
		want := min(len(dst)-done, len(segs))
		n := c.Alloc(segs[:want])
		if n > 0 {
			atomic.AddUint32(s.Direct().refWord(), uint32(n)<<16)
		}
		for j, i := range segs[:n] {
			x, head := At(i), At(dst[done+j])
			x.borrow(s, off, k)
			head.Last().SetNext(x)
			head.NbSegs++
		}
		done += n
		if n < want {
			break
		}
	}
	return done
}
