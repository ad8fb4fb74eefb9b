package pipeline

import (
	"math/rand/v2"
	"testing"

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// BenchmarkClassify measures classify alone: packets whose first lines lie in the second-level cache, or in memory, in random order.
func BenchmarkClassify(b *testing.B) {
	for _, c := range []struct {
		name string
		pool int
		mix  bool
	}{{"near", 256, false}, {"hot", 4096, false}, {"mixed", 4096, true}, {"cold", 65536, false}} {
		b.Run(c.name, func(b *testing.B) {
			tab, err := graph.NewTables()
			if err != nil {
				b.Fatal(err)
			}
			defer tab.Close()
			pool, err := packet.NewPool("bench", c.pool+64)
			if err != nil {
				b.Fatal(err)
			}
			defer pool.Close()
			w := &graph.Worker{Base: packet.Base(), Tables: tab, Cache: pool.NewCache(), C: new(graph.Counters)}
			mac := [6]byte{2, 0, 0, 0, 0, 1}
			tab.Ifaces[1].MAC = MACWord(mac)
			idx := make([]uint32, c.pool)
			w.Cache.Alloc(idx)
			r := rand.New(rand.NewPCG(1, 2))
			r.Shuffle(len(idx), func(i, j int) { idx[i], idx[j] = idx[j], idx[i] })
			for _, x := range idx {
				f := packet.At(x).Append(64)
				copy(f, mac[:])
				f[12], f[13] = 0x08, 0
				if c.mix && r.IntN(2) == 0 {
					f[12], f[13] = 0x86, 0xdd
				}
			}
			run := Classify.New(w)
			v := new(graph.Vector)
			best := ^uint64(0)
			for b.Loop() {
				spent := uint64(0)
				for k := 0; k < len(idx); k += 256 {
					copy(v.Idx[:], idx[k:k+256])
					begin(v, 1, 256)
					t := clock.Ticks()
					run.Run(v)
					spent += clock.Ticks() - t
				}
				best = min(best, spent)
			}
			if v.N4+v.N6 != 256 {
				b.Fatal("packets left")
			}
			b.ReportMetric(float64(best)/float64(len(idx)), "clocks/packet")
			w.Cache.Free(idx)
			w.Cache.Close()
		})
	}
}
