package gen

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/mem"
)

// sink is a queue that takes everything and frees it.
type sink struct {
	*mem.Out
	c *packet.Cache
}

func newSink() *sink                        { return &sink{Out: mem.NewReplay("sink", nil).NewOut("sink")} }
func (s *sink) Queue(int) pmd.Queue         { return s }
func (s *sink) Start(c *packet.Cache) error { s.c = c; return nil }
func (s *sink) Tx(src []uint32) int         { s.c.Free(src); return len(src) }

// benchCases are streams of 64-byte frames.
func benchCases() map[string]traffic.Stream {
	udp := frame{proto: packet.ProtoUDP, size: 64}.stream("udp4")
	ports := udp
	ports.Fields = []traffic.Field{{Off: 34, Width: 2, Min: 1024, Step: 1, N: 30000}}
	addrs := udp
	addrs.Fields = []traffic.Field{{Off: 30, Width: 4, Kind: traffic.Random, Min: 0x0a010000, N: 65536}, {Off: 34, Width: 2, Min: 1024, Step: 1, N: 30000}}
	udp6 := frame{v6: true, proto: packet.ProtoUDP, size: 84}.stream("udp6")
	imix := frame{proto: packet.ProtoUDP, size: 1518}.stream("imix")
	imix.Sizes = []uint16{64, 64, 64, 594, 64, 64, 594, 64, 594, 64, 594, 1518}
	return map[string]traffic.Stream{"udp4": udp, "udp4-port": ports, "udp4-address-port": addrs, "udp6": udp6, "imix": imix}
}

// rig is a generator's ends without its threads.
func rig(b testing.TB, o Options) (*Generator, *run, []*end) {
	b.Helper()
	if o.Pool == nil {
		o.Pool = pool(b, 4096)
	}
	g, err := New(o)
	if err != nil {
		b.Fatal(err)
	}
	g.Close()
	c := o.Pool.NewCache()
	b.Cleanup(c.Close)
	r, err := g.prepare(trial.Load{Duration: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	var ends []*end
	for _, e := range g.ends {
		if e == nil {
			continue
		}
		e.cache, e.t = c, &r.ends[e.side]
		for _, l := range e.lanes {
			l.q.Start(c)
			b.Cleanup(l.q.Stop)
		}
		ends = append(ends, e)
	}
	return g, r, ends
}

// BenchmarkSend makes and sends 64-byte frames into a sink, which frees them: transmission alone.
func BenchmarkSend(b *testing.B) {
	for name, st := range benchCases() {
		b.Run(name, func(b *testing.B) {
			_, r, ends := rig(b, Options{Left: newSink(), Streams: []traffic.Stream{st}})
			e := ends[0]
			b.ResetTimer()
			for e.t.sent < uint64(b.N) {
				e.send(r, clock.Ticks())
			}
			mpps(b, e.t.sent)
		})
	}
}

// BenchmarkLoop sends into a wire in memory, receives, checks and counts at its other end, all in one thread.
func BenchmarkLoop(b *testing.B) {
	for name, st := range benchCases() {
		b.Run(name, func(b *testing.B) {
			x, y := pair(b, 1024)
			_, r, ends := rig(b, Options{Left: x, Right: y, Streams: []traffic.Stream{st}})
			b.ResetTimer()
			for ends[0].t.sent < uint64(b.N) {
				for _, e := range ends {
					e.poll()
					e.send(r, clock.Ticks())
				}
			}
			for ends[1].poll() {
			}
			b.StopTimer()
			mpps(b, ends[0].t.sent)
			if f := &ends[1].t.rx.flows[0]; f.received != ends[0].t.sent || f.reordered+f.duplicated != 0 {
				b.Fatalf("received %d of %d", f.received, ends[0].t.sent)
			}
		})
	}
}

func mpps(b *testing.B, n uint64) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/frame")
	b.ReportMetric(float64(n)/b.Elapsed().Seconds()/1e6, "Mpps")
}

// BenchmarkCheck is reception's check alone, of frames that are in the cache.
func BenchmarkCheck(b *testing.B) {
	for name, st := range benchCases() {
		b.Run(name, func(b *testing.B) {
			_, r, ends := rig(b, Options{Left: newSink(), Right: newSink(), Streams: []traffic.Stream{st}})
			s := r.ends[0].sources[0]
			var idx [rxBurst]uint32
			c := ends[0].cache
			c.AllocRaw(idx[:])
			defer c.Free(idx[:])
			s.write(idx[:], clock.Ticks())
			rx := &r.ends[1].rx
			n := 0
			b.ResetTimer()
			for n < b.N {
				rx.flows[0].next = 0
				clear(rx.flows[0].seen[:2])
				rx.take(idx[:], clock.Ticks())
				n += len(idx)
			}
			b.StopTimer()
			mpps(b, uint64(n))
			if rx.arrived != uint64(n) {
				b.Fatalf("%d of %d", rx.arrived, n)
			}
		})
	}
}

// BenchmarkHistogram is what one latency costs: ours beside hdrhistogram-go's.
func BenchmarkHistogram(b *testing.B) {
	var v [4096]uint64
	r := rand.New(rand.NewPCG(1, 2))
	for i := range v {
		v[i] = uint64(5000 + r.ExpFloat64()*20000)
	}
	b.Run("own", func(b *testing.B) {
		h := &hist{mult: 1 << 32}
		for i := range b.N {
			h.add(v[i&(len(v)-1)], 1)
		}
	})
	b.Run("hdrhistogram-go", func(b *testing.B) {
		h := hdrhistogram.New(1, histMax, 3)
		for i := range b.N {
			_ = h.RecordValue(int64(v[i&(len(v)-1)]))
		}
	})
}

// BenchmarkPace tells how far the rate that was sent is from the rate that was asked for, in millionths, how late the
// generator was at most, and the part of trials that were invalid, of trials of 1 s on a wire in memory.
func BenchmarkPace(b *testing.B) {
	for _, rate := range []float64{1e3, 10e3, 100e3, 1e6, 10e6, 20e6} {
		b.Run(fmt.Sprintf("%gkpps", rate/1e3), func(b *testing.B) {
			x, y := pair(b, 1024)
			g, err := New(Options{Left: x, Right: y, Pool: pool(b, 4096), Streams: []traffic.Stream{benchCases()["udp4"]}})
			if err != nil {
				b.Fatal(err)
			}
			defer g.Close()
			var off, invalid, p50, p99 float64
			for range b.N {
				o, err := g.Try(context.Background(), trial.Load{Rate: rate, Duration: time.Second})
				if err != nil {
					b.Fatal(err)
				}
				if o.Invalid != "" {
					invalid++
				}
				if o.Lost > 0 {
					b.Error(o.Lost, "lost")
				}
				for _, n := range append(o.Notes, o.Invalid) {
					b.Log(n)
				}
				off = max(off, math.Abs(o.Achieved()/rate-1)*1e6)
				p50, p99 = float64(o.Latency.ValueAtQuantile(50)), float64(o.Latency.ValueAtQuantile(99))
			}
			b.ReportMetric(off, "ppm-off")
			b.ReportMetric(invalid/float64(b.N), "invalid")
			b.ReportMetric(p50, "p50-ns")
			b.ReportMetric(p99, "p99-ns")
		})
	}
}
