package packet

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestReplicate: replicas hold what a copy would, own their heads, share the rest, and all buffers come back
// in whatever order packets are freed.
func TestReplicate(t *testing.T) {
	p, c := testPool(t, 512)
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		b := make([]byte, 60+rnd.IntN(4000))
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		off := rnd.IntN(20)
		head := rnd.IntN(41)
		m := chain(c, b, off+head+rnd.IntN(3), rnd.IntN(50), 1+rnd.IntN(900))
		n := head + rnd.IntN(len(b)-off-head+1)
		if rnd.IntN(2) == 0 { // of a packet that shares already
			x := c.Clone(m)
			c.Free1(m)
			m = x
		}
		dst := make([]uint32, rnd.IntN(9))
		if made := c.Replicate(m, off, head, n, dst); made != len(dst) {
			t.Fatalf("%d of %d replicas", made, len(dst))
		}
		all := []*Mbuf{m}
		for _, i := range dst {
			x := At(i)
			all = append(all, x)
			if got := content(x); !bytes.Equal(got, b[off:off+n]) {
				t.Fatalf("%d bytes from %d on behind a head of %d: got %d bytes that differ", n, off, head, len(got))
			}
			segs := 0
			for s := x; s != nil; s = s.NextSeg() {
				segs++
				if s != x && s.OlFlags&FlagIndirect == 0 {
					t.Fatal("a copied payload")
				}
			}
			if segs != int(x.NbSegs) || x.Shared() || int(x.DataLen) != head || x.HeadSpace() < Headroom {
				t.Fatalf("%d segments, %d counted; head of %d bytes, shared %v", segs, x.NbSegs, x.DataLen, x.Shared())
			}
			for k := range x.Bytes() { // nobody sees it
				x.Bytes()[k] ^= 0xff
			}
		}
		rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, x := range all {
			c.Free1(x)
		}
		if p.Free() != p.Size() {
			t.Fatalf("%d of %d buffers are free", p.Free(), p.Size())
		}
	}
	closePool(t, p, c)
}

// TestReplicateWithoutBuffers: what cannot be made whole is not made, and leaves nothing behind.
func TestReplicateWithoutBuffers(t *testing.T) {
	p, c := testPool(t, 128)
	b := bytes.Repeat([]byte("abc"), 100)
	m := chain(c, b, 50, 50)
	for left := range 14 {
		rest := make([]uint32, p.Free()-left)
		c.Alloc(rest)
		dst := make([]uint32, 3)
		made := c.Replicate(m, 0, 20, len(b), dst)
		if made > left/4 || left >= 12 && made != 3 {
			t.Errorf("%d replicas of 4 buffers out of %d", made, left)
		}
		for _, i := range dst[:made] {
			if !bytes.Equal(content(At(i)), b) {
				t.Errorf("replica differs with %d buffers", left)
			}
		}
		c.Free(dst[:made])
		if p.Free() != left {
			t.Errorf("%d buffers are free of %d", p.Free(), left)
		}
		for s := m; s != nil; s = s.NextSeg() {
			if s.RefCnt != 1 {
				t.Errorf("%d owners are left of %d buffers", s.RefCnt, left)
			}
		}
		c.Free(rest)
	}
	c.Free1(m)
	closePool(t, p, c)
}

func BenchmarkReplicate(b *testing.B) {
	p, c := testPool(b, 4096)
	m := chain(c, make([]byte, 1400))
	dst := make([]uint32, 8)
	for b.Loop() {
		c.Replicate(m, 14, 20, 1386, dst)
		c.Free(dst)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/8, "ns/replica")
	c.Free1(m)
	closePool(b, p, c)
}
