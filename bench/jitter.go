package bench

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"millrace/bench/pin"
	"millrace/bench/result"
	"millrace/fib"
	"millrace/internal/clock"
	"millrace/internal/epoch"
	"millrace/ip/neigh"
	"millrace/packet"
	"millrace/pipeline"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
)

// JitterOptions of the benchmark of the polling loop.
type JitterOptions struct {
	Runs   int           // of each case; 0 for 3
	Window time.Duration // of each run; 0 for 2 s
	Report func(done, total int)
}

// loopBed is a router with one worker.
type loopBed struct {
	pool   *packet.Pool
	tables *graph.Tables
	fib    *fib.FIB
	p      *pipeline.Pipeline
}

func newLoopBed(cpu int, poll pipeline.Poll, path pipeline.Path) (b *loopBed, err error) {
	b = &loopBed{}
	if b.pool, err = packet.NewPool("jitter", 1024); err != nil {
		return nil, err
	}
	if b.tables, err = graph.NewTables(); err != nil {
		return nil, err
	}
	d := epoch.NewDomain()
	if b.fib, err = fib.New(b.tables, d, fib.Reasons{Unresolved: neigh.XUnresolved}); err != nil {
		return nil, err
	}
	b.p, err = pipeline.New(pipeline.Options{Pool: b.pool, Tables: b.tables, Epoch: d, Path: path, Cores: []int{cpu}, Poll: poll})
	return b, err
}

func (b *loopBed) close() {
	if b.p != nil {
		b.p.Close()
	}
	if b.fib != nil {
		b.fib.Close()
	}
	if b.tables != nil {
		b.tables.Close()
	}
	if b.pool != nil {
		b.pool.Close()
	}
}

// cpuTime is the CPU time that the worker's thread has used.
func (b *loopBed) cpuTime() (d time.Duration) {
	b.p.Workers()[0].Do(func() {
		var u unix.Rusage
		if unix.Getrusage(unix.RUSAGE_THREAD, &u) == nil {
			d = time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	})
	return d
}

// Jitter measures how evenly a busy loop turns, alone and beside a control plane at work, and what an
// adaptive one costs and how fast it wakes.
func Jitter(ctx context.Context, o JitterOptions) (*Report, error) {
	if o.Runs == 0 {
		o.Runs = 3
	}
	if o.Window == 0 {
		o.Window = 2 * time.Second
	}
	first, last, err := pin.Two()
	if err != nil {
		return nil, err
	}
	all := pin.CPUs()
	pin.All(all[:len(all)-1]) // the last is the worker's
	defer pin.All(all)
	defer pin.Prefer()()
	rep := result.New("jitter")
	steps, done := 4*o.Runs, 0
	step := func() {
		if done++; o.Report != nil {
			o.Report(done, steps)
		}
	}
	for _, churn := range []bool{false, true} {
		if err := gaps(ctx, rep, o, last, churn, step); err != nil {
			return nil, err
		}
	}
	if err := adaptive(ctx, rep, o, first, last, step); err != nil {
		return nil, err
	}
	return rep, nil
}

func gaps(ctx context.Context, rep *Report, o JitterOptions, worker int, churn bool, step func()) error {
	b, err := newLoopBed(worker, pipeline.Busy, pipeline.Path{Stages: []*graph.Stage{pipeline.Classify}})
	if err != nil {
		return err
	}
	defer b.close()
	g := newGapPort()
	if _, err := b.p.AddPort(g, 1); err != nil {
		return err
	}
	name := "idle"
	if churn {
		name = "churn"
		cctx, stop := context.WithCancel(ctx)
		var wg sync.WaitGroup
		wg.Add(2)
		go func() { defer wg.Done(); churnRoutes(cctx, b.fib) }()
		go func() { defer wg.Done(); churnHeap(cctx) }()
		defer wg.Wait()
		defer stop()
	}
	w := b.p.Workers()[0]
	us := func(ticks int64) float64 { return float64(ticks) / float64(clock.Hz()) * 1e6 }
	var p50, p999, most, lost []float64
	for range o.Runs {
		w.Do(func() { g.hist.Reset(); g.lost = 0; g.last = clock.Ticks() })
		sleep(ctx, o.Window)
		w.Do(func() {
			p50 = append(p50, us(g.hist.ValueAtQuantile(50)))
			p999 = append(p999, us(g.hist.ValueAtQuantile(99.9)))
			most = append(most, us(g.hist.Max()))
			lost = append(lost, 100*float64(g.lost)/float64(clock.Hz())/o.Window.Seconds())
			g.last = clock.Ticks()
		})
		step()
	}
	rep.Add(name, "gap_p50_us", "us", false, p50)
	rep.Add(name, "gap_p999_us", "us", false, p999)
	rep.Add(name, "gap_max_us", "us", false, most)
	rep.Add(name, "time_lost_percent", "percent", false, lost)
	return ctx.Err()
}

// churnRoutes adds and removes routes in batches, about 100,000 changes a second.
func churnRoutes(ctx context.Context, f *fib.FIB) {
	const batch = 1000
	for n := uint32(0); ctx.Err() == nil; n++ {
		var add []fib.Route
		var del []fib.Key
		for i := range uint32(batch) {
			var a, was [4]byte
			binary.BigEndian.PutUint32(a[:], 20<<24|(n*batch+i)<<8&0xffff00)
			binary.BigEndian.PutUint32(was[:], 20<<24|((n-8)*batch+i)<<8&0xffff00)
			add = append(add, fib.Route{Prefix: netip.PrefixFrom(netip.AddrFrom4(a), 24), Type: fib.Blackhole, Source: fib.SourceKernel})
			del = append(del, fib.Key{Prefix: netip.PrefixFrom(netip.AddrFrom4(was), 24), Source: fib.SourceKernel})
		}
		if f.Update(add, del) != nil {
			return
		}
		sleep(ctx, 20*time.Millisecond)
	}
}

// churnHeap allocates about a million small objects a second and keeps some of them.
func churnHeap(ctx context.Context) {
	keep := make([]*[64]byte, 1<<18)
	for n := 0; ctx.Err() == nil; {
		for range 10000 {
			keep[n&(len(keep)-1)] = new([64]byte)
			n++
		}
		sleep(ctx, 10*time.Millisecond)
	}
	runtime.KeepAlive(keep)
}

func adaptive(ctx context.Context, rep *Report, o JitterOptions, cpu, worker int, step func()) error {
	var wake50, wake99, idle, busy []float64
	for _, poll := range []pipeline.Poll{pipeline.Adaptive, pipeline.Busy} {
		b, err := newLoopBed(worker, poll, pipeline.Path{Stages: []*graph.Stage{bounce}})
		if err != nil {
			return err
		}
		defer b.close()
		near, far := mem.Pair("near", "far", mem.Options{})
		if _, err := b.p.AddPort(near, 1); err != nil {
			return err
		}
		c := b.pool.NewCache()
		q := far.Queue(0)
		if err := q.Start(c); err != nil {
			return err
		}
		for range o.Runs {
			t0, c0 := time.Now(), b.cpuTime()
			sleep(ctx, o.Window/2)
			used := 100 * float64(b.cpuTime()-c0) / float64(time.Since(t0))
			if poll == pipeline.Busy {
				busy = append(busy, used)
				continue
			}
			idle = append(idle, used)
			h := hdrhistogram.New(1, 1<<40, 3)
			if err := onCPU(cpu, func() { wake(ctx, q, c, h, o.Window/2) }); err != nil {
				return err
			}
			wake50 = append(wake50, float64(h.ValueAtQuantile(50))/float64(clock.Hz())*1e6)
			wake99 = append(wake99, float64(h.ValueAtQuantile(99))/float64(clock.Hz())*1e6)
			step()
		}
		if poll == pipeline.Busy {
			for range o.Runs {
				step()
			}
		}
		b.p.Close()
		q.Stop()
		c.Close()
		near.Close()
		far.Close()
	}
	rep.Add("wake", "latency_p50_us", "us", false, wake50)
	rep.Add("wake", "latency_p99_us", "us", false, wake99)
	rep.Add("idle-cpu/adaptive", "cpu_percent", "percent", false, idle)
	rep.Add("idle-cpu/busy", "cpu_percent", "percent", false, busy)
	return ctx.Err()
}

// wake sends single packets to a worker that sleeps and records when they come back.
func wake(ctx context.Context, q pmd.Queue, c *packet.Cache, h *hdrhistogram.Histogram, window time.Duration) {
	var one, back [1]uint32
	for end := time.Now().Add(window); time.Now().Before(end) && ctx.Err() == nil; {
		time.Sleep(2 * time.Millisecond) // until it sleeps
		if c.Alloc(one[:]) == 0 {
			return
		}
		m := packet.At(one[0])
		m.PktLen, m.DataLen = frameSize, frameSize
		t := clock.Ticks()
		if q.Tx(one[:]) == 0 {
			c.Free(one[:])
			continue
		}
		for q.Rx(back[:]) == 0 {
			if time.Now().After(end.Add(time.Second)) {
				return
			}
		}
		_ = h.RecordValue(int64(clock.Ticks() - t))
		c.Free(back[:])
	}
}

func jitterCommand() *cobra.Command {
	var o JitterOptions
	var out output
	c := &cobra.Command{
		Use:   "jitter",
		Short: "How evenly the polling loop turns; what idling costs; how fast it wakes",
		Long: `Measures the polling loop on the last CPU:

  idle, churn         gaps between rounds of a busy loop, alone, and beside a control
                      plane that changes 50,000 routes and allocates a million objects
                      a second; and the time lost in gaps of more than 10 us
  wake                from a packet's arrival at a sleeping worker until it is sent
  idle-cpu            CPU time of a worker without packets, adaptive and busy`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Report = func(done, total int) { progress(done, total, "run") }
			r, err := Jitter(c.Context(), o)
			if err != nil {
				return fmt.Errorf("bench jitter: %w", err)
			}
			return out.write(c, r)
		},
	}
	c.Flags().IntVar(&o.Runs, "runs", 3, "runs of each case")
	c.Flags().DurationVar(&o.Window, "window", 2*time.Second, "length of one run")
	out.flags(c)
	return c
}
