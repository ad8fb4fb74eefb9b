package pipeline

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// TestRewriteWays takes random lanes to random adjacencies by runs and packet by packet: frames, ports, counters, packets
// that do not fit and what is reported must be equal.
func TestRewriteWays(t *testing.T) {
	tab, err := graph.NewTables()
	if err != nil {
		t.Fatal(err)
	}
	defer tab.Close()
	pool, err := packet.NewPool("rewrite", 256)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	cache := pool.NewCache()
	defer cache.Close()
	var idx [graph.VectorSize]uint32
	cache.Alloc(idx[:])
	defer cache.Free(idx[:])
	r := rand.New(rand.NewPCG(5, 6))
	type ways struct {
		runs, single func(*graph.Worker, *graph.Vector) (bool, bool)
		lane         func(*graph.Vector) (*[graph.VectorSize]uint8, *int)
		version      uint8
	}
	families := []ways{
		{rewrite4, func(w *graph.Worker, v *graph.Vector) (bool, bool) {
			heads4(w, v)
			return collect(w, v, &v.Lane4, v.N4)
		}, func(v *graph.Vector) (*[graph.VectorSize]uint8, *int) { return &v.Lane4, &v.N4 }, 4},
		{rewrite6, func(w *graph.Worker, v *graph.Vector) (bool, bool) {
			heads6(w, v)
			return collect(w, v, &v.Lane6, v.N6)
		}, func(v *graph.Vector) (*[graph.VectorSize]uint8, *int) { return &v.Lane6, &v.N6 }, 6},
	}
	run := func(f ways, way func(*graph.Worker, *graph.Vector) (bool, bool), v graph.Vector, seed uint64) (s []string) {
		w := &graph.Worker{Base: packet.Base(), Tables: tab, C: new(graph.Counters)}
		for p := range w.Tx {
			w.Tx[p] = &graph.TxBuf{}
		}
		w.Tx[3].N, w.Dirty[0], w.ND = 2, 3, 1 // sent before
		bytes := rand.New(rand.NewPCG(seed, 7))
		for _, x := range idx {
			m := packet.At(x)
			b := m.Bytes()
			for i := range b {
				b[i] = byte(bytes.Uint32())
			}
		}
		back, tagged := way(w, &v)
		s = append(s, fmt.Sprint(back, tagged, v.Odd[:v.NOdd], w.Dirty[:w.ND]))
		for p, b := range w.Tx {
			s = append(s, fmt.Sprint("port ", p, b.Buf[:b.N]))
		}
		for i, c := range w.C.Tx {
			s = append(s, fmt.Sprint("interface ", i, c))
		}
		for _, x := range idx {
			s = append(s, fmt.Sprintf("frame %x", packet.At(x).Bytes()[:40]))
		}
		return s
	}
	for _, x := range idx {
		packet.At(x).Append(64)
	}
	for k := range 300 {
		f := families[k%2]
		odd := k%3 == 0 // adjacencies of all kinds
		for a := range 64 {
			// Interface 9 is a VLAN of port 2.
			tab.Adjs[a] = graph.Adj{MTU: 1500, L2: 14, Port: uint16(a%5 + 1), Iface: uint16(a%5 + 1), RW0: r.Uint64(), RW4: r.Uint64(), RW6: r.Uint64()}
			if odd && r.IntN(4) == 0 {
				tab.Adjs[a].MTU = 900
				tab.Adjs[a].Flags = uint8(r.IntN(4))
			}
			if odd && a%5 == 1 && r.IntN(2) == 0 {
				tab.Adjs[a].Iface, tab.Adjs[a].L2 = 9, 18
			}
		}
		var v graph.Vector
		v.Reset()
		v.N, v.From, v.Moved = graph.VectorSize, uint16(r.IntN(7)), k%7 == 0
		lane, n := f.lane(&v)
		neighbours := 1 + r.IntN(64)
		for i := range v.N {
			v.Idx[i] = idx[i]
			v.SetL3(uint8(i), 14)
			v.Len[i] = uint16(40 + r.IntN(1461))
			v.Adj[i] = uint16(r.IntN(neighbours))
			if r.IntN(8) != 0 {
				lane[*n] = uint8(i)
				*n++
			}
		}
		*n = r.IntN(*n)
		seed := r.Uint64()
		one, two := run(f, f.runs, v, seed), run(f, f.single, v, seed)
		for l := range one {
			if one[l] != two[l] {
				t.Fatalf("IPv%d, %d packets to %d neighbours: by runs %s, packet by packet %s", f.version, *n, neighbours, one[l], two[l])
			}
		}
	}
	// Which way is taken.
	var v graph.Vector
	for i := range graph.VectorSize {
		v.Lane4[i], v.Adj[i] = uint8(i), uint16(i/40)
	}
	if !inRuns(&v, &v.Lane4, graph.VectorSize) {
		t.Error("runs of 40 packets are not seen")
	}
	for i := range v.Adj {
		v.Adj[i] = uint16(r.IntN(4))
	}
	if inRuns(&v, &v.Lane4, graph.VectorSize) || !inRuns(&v, &v.Lane4, 15) {
		t.Error("packets in no order, or a short lane, are misjudged")
	}
}
