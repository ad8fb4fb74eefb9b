package pipeline

import (
	"math/rand/v2"
	"slices"
	"testing"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// TestDemuxWays compares demux16 with demux: whole vectors with few and many frames that are for others, tagged, short, long, early
// split or of another protocol, at random places in their buffers.
func TestDemuxWays(t *testing.T) {
	if !vectors {
		t.Skip("no AVX-512 here")
	}
	pool, err := packet.NewPool("demux", graph.VectorSize)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	cache := pool.NewCache()
	defer cache.Close()
	var idx [graph.VectorSize]uint32
	cache.Alloc(idx[:])
	defer cache.Free(idx[:])
	for _, x := range idx {
		packet.At(x).Append(64)
	}
	r := rand.New(rand.NewPCG(8, 9))
	for round := range 600 {
		rare := []int{1 << 20, 100, 10, 2}[round%4]
		mac := [6]byte{2, byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32())}
		bytes := uint64(0)
		for _, x := range idx {
			m := packet.At(x)
			m.DataOff = uint16(r.IntN(256))
			m.DataLen = uint16(54 + r.IntN(200))
			m.PktLen = uint32(m.DataLen) + uint32(r.IntN(9000))
			m.VlanTCI, m.RSS = uint16(r.Uint32()), r.Uint32()
			f := m.Bytes()
			for k := range f[:54] {
				f[k] = byte(r.Uint32())
			}
			copy(f, mac[:])
			f[12], f[13] = 0x08, 0
			if r.IntN(3) == 0 {
				f[12], f[13] = 0x86, 0xdd
			}
			if r.IntN(rare) == 0 {
				switch r.IntN(7) {
				case 0:
					f[r.IntN(6)] ^= 1 << r.IntN(8)
				case 1:
					f[12+r.IntN(2)] ^= 1 << r.IntN(8)
				case 2:
					m.DataLen = uint16(r.IntN(56))
				case 3:
					m.DataLen = uint16(33 + r.IntN(2) + 20*r.IntN(2))
				case 4:
					m.PktLen = 0xfffe + uint32(r.IntN(4))
				case 5:
					m.PktLen = r.Uint32()
				case 6:
					f[12], f[13] = 0x81, 0
				}
			}
			bytes += uint64(m.PktLen)
		}
		n := graph.VectorSize
		if round%3 == 0 {
			n = 16 * (1 + r.IntN(16))
		}
		var one, two graph.Vector
		begin(&one, 1, n)
		r.Shuffle(len(idx), func(i, j int) { idx[i], idx[j] = idx[j], idx[i] })
		one.Idx = idx
		two = one
		by1 := demux(packet.Base(), MACWord(mac), &one, 0, n)
		v := &two
		var by2 uint64
		v.N4, v.N6, v.NOdd, by2 = demux16(packet.Base(), MACWord(mac), &v.Idx[0], &v.L3[0], &v.Len[0], &v.Lane4[0], &v.Lane6[0], &v.Odd[0], n, 32*r.IntN(3))
		if by1 != by2 || n == graph.VectorSize && by1 != bytes || one.N4 != v.N4 || one.N6 != v.N6 || one.NOdd != v.NOdd || one.L3 != v.L3 || one.Len != v.Len ||
			!slices.Equal(one.Lane4[:one.N4], v.Lane4[:v.N4]) || !slices.Equal(one.Lane6[:one.N6], v.Lane6[:v.N6]) ||
			!slices.Equal(one.Odd[:one.NOdd], v.Odd[:v.NOdd]) {
			t.Fatalf("round %d, %d frames: demux finds %d, %d and %d aside, %d bytes; demux16 %d, %d and %d aside, %d bytes, or others",
				round, n, one.N4, one.N6, one.NOdd, by1, v.N4, v.N6, v.NOdd, by2)
		}
	}
	for _, x := range idx { // as the pool gave them
		m := packet.At(x)
		m.DataOff, m.DataLen, m.PktLen = packet.Headroom, 0, 0
	}
}
