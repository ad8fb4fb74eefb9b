package pipeline

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// BenchmarkRewrite measures rewrite alone: packets to one neighbour, and to several on four ports in no order.
func BenchmarkRewrite(b *testing.B) {
	tab, err := graph.NewTables()
	if err != nil {
		b.Fatal(err)
	}
	defer tab.Close()
	pool, err := packet.NewPool("bench", 4096)
	if err != nil {
		b.Fatal(err)
	}
	defer pool.Close()
	w := &graph.Worker{Base: packet.Base(), Tables: tab, Cache: pool.NewCache(), C: new(graph.Counters)}
	for p := range 5 {
		w.Tx[p] = &graph.TxBuf{}
	}
	for a := range 257 {
		tab.Adjs[a] = graph.Adj{MTU: 1500, L2: 14, Port: uint16(a&3 + 1), Iface: uint16(a&3 + 1), RW0: uint64(a), RW4: 8 << 48}
	}
	idx := make([]uint32, 256)
	w.Cache.Alloc(idx)
	r := rand.New(rand.NewPCG(1, 2))
	run := Rewrite(MTUReasons{}, nil).New(w)
	for _, n := range []int{1, 4, 16, 256} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			const vs = 64
			v := new(graph.Vector)
			var adj [vs][256]uint16
			for k := range adj {
				for i := range adj[k] {
					adj[k][i] = uint16(r.IntN(n) + 1)
				}
			}
			v.Reset()
			for i, x := range idx {
				m := packet.At(x)
				if m.Bytes() == nil || len(m.Bytes()) == 0 {
					m.Append(64)
				}
				h := packet.IPv4(m.Bytes()[14:])
				h.Init([4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 2}, packet.ProtoUDP, 50)
				v.Idx[i] = x
				v.SetL3(uint8(i), 14)
				v.N++
				v.Join(uint8(i))
			}
			best, spent, k := ^uint64(0), uint64(0), 0
			for b.Loop() {
				v.Adj = adj[k%vs]
				k++
				t := clock.Ticks()
				run.Run(v)
				spent += clock.Ticks() - t
				for p := range 5 {
					w.Tx[p].N = 0
				}
				w.ND = 0
				if k%vs == 0 {
					best, spent = min(best, spent), 0
				}
			}
			b.ReportMetric(float64(best)/vs/256, "clocks/packet")
		})
	}
	w.Cache.Free(idx)
	w.Cache.Close()
}
