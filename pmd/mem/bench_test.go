package mem

import (
	"testing"

	"millrace/packet"
)

// BenchmarkReplay is what ports cost in a benchmark of the road: Rx and Tx of a vector.
func BenchmarkReplay(b *testing.B) {
	p, err := packet.NewPool("bench", 4096)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	c := p.NewCache()
	defer c.Close()
	idx := make([]uint32, 4096)
	c.Alloc(idx)
	defer c.Free(idx)
	r := NewReplay("r", idx)
	defer r.Close()
	for _, n := range []int{1, 32, 256} {
		b.Run([]string{1: "1", 32: "32", 256: "256"}[n], func(b *testing.B) {
			dst := make([]uint32, n)
			r.Reset(0)
			for range b.N {
				r.Tx(dst[:r.Rx(dst)])
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/pkt")
		})
	}
}

func BenchmarkPair(b *testing.B) {
	x, y := Pair("x", "y", Options{})
	defer x.Close()
	defer y.Close()
	p, err := packet.NewPool("bench", 256)
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	c := p.NewCache()
	defer c.Close()
	qx, qy := x.Queue(0), y.Queue(0)
	qx.Start(c)
	qy.Start(c)
	defer qx.Stop()
	defer qy.Stop()
	for _, n := range []int{1, 32, 256} {
		b.Run([]string{1: "1", 32: "32", 256: "256"}[n], func(b *testing.B) {
			idx := make([]uint32, n)
			c.Alloc(idx)
			for range b.N {
				qx.Tx(idx)
				qy.Rx(idx)
			}
			c.Free(idx)
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/pkt")
		})
	}
}
