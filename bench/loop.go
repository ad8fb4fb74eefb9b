package bench

import (
	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/internal/clock"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
)

// What runs on the polling loop under measurement.

// gapPort is a port without packets whose Rx, called once a round, records the time since
// the last round, weighted by itself: quantiles are over time, as a packet that arrives at a random moment
// meets them, not over rounds.
type gapPort struct {
	*mem.Out
	last uint64
	hist *hdrhistogram.Histogram // ticks
	lost uint64                  // ticks in gaps of more than lostGap
}

// lostGap is the gap, in seconds, from which time counts as lost to the loop.
const lostGap = 10e-6

func newGapPort() *gapPort {
	return &gapPort{Out: mem.NewReplay("none", nil).NewOut("gaps"), hist: hdrhistogram.New(1, 1<<40, 3)}
}

func (g *gapPort) Queue(int) pmd.Queue { return g }

func (g *gapPort) Rx([]uint32) int {
	now := clock.Ticks()
	d := now - g.last
	g.last = now
	_ = g.hist.RecordValues(int64(d), int64(d)) // beyond 2^40 ticks there is nothing
	if float64(d) > lostGap*float64(clock.Hz()) {
		g.lost += d
	}
	return 0
}

// bounce sends every packet out where it came in.
var bounce = &graph.Stage{Name: "bounce", Doc: "send back", Lane: graph.Any, New: func(w *graph.Worker) graph.Runner { return bouncer{w} }}

type bouncer struct{ w *graph.Worker }

func (s bouncer) Run(v *graph.Vector) {
	port := s.w.Tables.Ifaces[v.From&(graph.MaxIfaces-1)].Port
	for i := range v.N {
		s.w.Send(port, v.Idx[uint8(i)])
	}
	v.N = 0
}
