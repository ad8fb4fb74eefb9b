package gen

import (
	"errors"
	"fmt"
	"math"
	"time"

	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/internal/clock"
)

// paceKey is what streams have in common that share a pace.
type paceKey struct {
	side   traffic.Side
	fps    float64
	burst  int
	start  time.Duration
	frames uint64
	alone  int // one more than the stream that shares with nobody
}

// catchUpFrames is a backlog that is made up for at any rate: no burst that a thing under test would not bear.
const catchUpFrames = 32

// prepare compiles a trial.
func (g *Generator) prepare(l trial.Load) (*run, error) {
	if l.Duration <= 0 && l.Frames == 0 {
		return nil, errors.New("gen: a load needs a duration or a number of frames")
	}
	if l.Size != 0 && (l.Size < 0 || l.Size > math.MaxUint16) {
		return nil, fmt.Errorf("gen: a size of %d bytes", l.Size)
	}
	hz := float64(clock.Hz())
	r := &run{
		length: 1 << 62, flat: l.Rate == 0, listen: true, whole: true,
		quiet: clock.FromDuration(g.o.Settle), calm: clock.FromDuration(calm), limit: clock.FromDuration(g.o.SettleMax),
	}
	if l.Duration > 0 {
		r.length = clock.FromDuration(l.Duration)
	}
	r.ready.Store(int32(len(g.threads)))
	r.sending.Store(int32(len(g.threads)))
	g.number++
	mark := stampWord(g.number - 1)

	fps, total, err := g.rates(l)
	if err != nil {
		return nil, err
	}
	scale := 1.0
	if !r.flat {
		scale = l.Rate / total
	}
	window := windowWords(len(g.o.Streams))
	var weight [2]float64
	var perSide [2]int
	var keys []paceKey
	groups := map[paceKey][]*source{}
	for side := range r.ends {
		t := &r.ends[side]
		t.sources = make([]*source, len(g.o.Streams))
		t.back = make([]uint64, len(g.o.Streams))
		t.rx.init(mark, len(g.o.Streams), clock.Hz())
	}
	for i := range g.o.Streams {
		st := &g.o.Streams[i]
		weight[st.Side] += fps[i]
		if g.ports[st.Side.Other()] != nil {
			r.ends[st.Side.Other()].rx.await(st, i, window)
		}
		if g.ports[st.Side] == nil {
			continue
		}
		r.listen = false
		r.whole = r.whole && g.ports[st.Side.Other()] != nil
		sizes := st.Sizes
		if l.Size != 0 {
			sizes = []uint16{uint16(l.Size)}
		}
		s, err := compile(st, uint16(i), sizes)
		if err != nil {
			return nil, err
		}
		if most := g.ports[st.Side].Caps().MaxFrame; s.longest() > most {
			return nil, fmt.Errorf("gen: stream %s: frames of %d bytes with FCS; port %s has at most %d", st.Name, s.longest()+fcs, g.ports[st.Side].Name(), most+fcs)
		}
		s.word0 = uint64(mark)
		s.out = uint16(perSide[st.Side] % len(g.ends[st.Side].lanes))
		perSide[st.Side]++
		r.ends[st.Side].sources[i] = s
		k := paceKey{side: st.Side, fps: fps[i], burst: max(st.Burst, 1), start: st.Start, frames: st.Frames}
		if k.frames%uint64(k.burst) != 0 {
			k.alone = i + 1
		}
		if groups[k] == nil {
			keys = append(keys, k)
		}
		groups[k] = append(groups[k], s)
	}
	r.whole = r.whole && !r.listen
	left := l.Frames
	for side := range r.ends {
		p := &r.ends[side].plan
		p.stop, p.left = r.length, never
		if r.flat {
			p.stop = never - 1
		}
		if l.Frames > 0 {
			p.left = left
			if side == 0 && weight[1] > 0 {
				p.left = uint64(math.Round(float64(l.Frames) * weight[0] / (weight[0] + weight[1])))
			}
			left -= p.left
		}
	}
	for _, k := range keys {
		src := groups[k]
		period := float64(k.burst) * hz / (k.fps * scale) / float64(len(src))
		r.ends[k.side].plan.push(newPace(k.start.Seconds()*hz, period, k.burst, k.frames*uint64(len(src)), src...))
	}
	for side := range r.ends {
		t := &r.ends[side]
		frames := 0.0 // a tick
		for _, p := range t.plan.heap {
			n := p.planned(float64(r.length))
			t.planned += n
			t.steps += hz / p.period
			frames += float64(p.burst) / p.period
			if !r.flat {
				p.left = n
				if n == 0 {
					p.due = never
				}
			}
		}
		t.plan.order()
		t.catchUp = clock.FromDuration(g.o.CatchUp)
		if frames > 0 {
			t.catchUp = max(t.catchUp, uint64(min(catchUpFrames/frames, hz)))
		}
		t.planned = min(t.planned, t.plan.left)
	}
	if !r.listen && !r.flat && r.ends[0].planned+r.ends[1].planned == 0 {
		return nil, fmt.Errorf("gen: no frame is due within %v at %.4g frames/s", l.Duration, l.Rate)
	}
	return r, nil
}

// rates are the streams' own rates in frames a second, and their sum.
func (g *Generator) rates(l trial.Load) (fps []float64, total float64, err error) {
	none := true
	for i := range g.o.Streams {
		st := &g.o.Streams[i]
		line := 0.0
		for _, p := range []int{int(st.Side.Other()), int(st.Side)} {
			if g.ports[p] != nil {
				line = float64(g.ports[p].Link().Mbps) * 1e6
			}
		}
		v := st.FPS(line)
		if l.Size != 0 {
			v = st.Rate.FPS(float64(l.Size), line)
		}
		if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, 0, fmt.Errorf("gen: stream %s: a rate of %v frames/s", st.Name, v)
		}
		fps = append(fps, v)
		total += v
		none = none && v == 0
	}
	for i := range fps {
		switch {
		case none: // streams without rates share
			fps[i] = 1e6
			total += 1e6
		case fps[i] == 0:
			return nil, 0, fmt.Errorf("gen: stream %s: no rate, while others have one", g.o.Streams[i].Name)
		}
	}
	return fps, total, nil
}

// windowWords is the size of the window, in words of 64 packets, in which a stream's duplicates are told from late
// frames: 64 k packets for each of up to 2048 streams, less for more.
func windowWords(streams int) int {
	w := 1024
	for w > 16 && w*8*streams > 16<<20 {
		w /= 2
	}
	return w
}

// await makes the receiver expect a stream.
func (r *receiver) await(st *traffic.Stream, id, window int) {
	r.flows[id].seen = make([]uint64, window)
	clear(r.flows[id].seen) // its pages are touched here, not in the trial
	if st.Stamp == 0 {
		r.unstamped = true
		return
	}
	switch {
	case st.L3 == 0:
		r.raw = append(r.raw, st.Stamp-etherLen(st.Template))
	case st.L4 != 0:
		r.expect(st.Proto, st.Stamp-st.L4)
	default:
		r.expect(st.Proto, st.Stamp-st.L3-ipLen(st))
	}
}

func (s *source) longest() int {
	n := 0
	for _, sh := range s.shapes {
		n = max(n, sh.n)
	}
	return n
}
