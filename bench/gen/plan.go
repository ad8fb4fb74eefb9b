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

// group is what shares a pace: streams of one side, rate, burst, start and number of frames, or a replay's frames of one
// side.
type group struct {
	beat
	side    traffic.Side
	sources []*source // none where the side's port is elsewhere
}

// groupKey is what the streams of a group have in common.
type groupKey struct {
	side   traffic.Side
	fps    float64
	burst  int
	start  time.Duration
	frames uint64
	alone  int // one more than the stream that shares with nobody
}

// catchUpFrames is a backlog that is made up for at any rate: no burst that a thing under test would not bear.
const catchUpFrames = 32

// prepare compiles a trial of one load, or of two, of which the second follows without a gap.
func (g *Generator) prepare(loads ...trial.Load) (*run, error) {
	l := loads[0]
	if l.Size != 0 && (l.Size < 0 || l.Size > math.MaxUint16) {
		return nil, fmt.Errorf("gen: a size of %d bytes", l.Size)
	}
	if l.Duration < 0 {
		return nil, fmt.Errorf("gen: a duration of %v", l.Duration)
	}
	r := &run{
		flat: l.Rate == 0, listen: true, whole: true,
		quiet: clock.FromDuration(g.o.Settle), calm: clock.FromDuration(calm), limit: clock.FromDuration(g.o.SettleMax),
		wait: clock.FromDuration(g.o.Wait),
	}
	for _, x := range loads {
		r.length += clock.FromDuration(x.Duration)
	}
	r.ready.Store(int32(len(g.threads)))
	r.sending.Store(int32(len(g.threads)))
	g.number++
	mark := stampWord(g.number - 1)
	fps, total, err := g.rates(l.Size)
	if err != nil {
		return nil, err
	}
	for side := range r.ends {
		t := &r.ends[side]
		t.sources = make([]*source, len(g.feeds))
		t.back = make([]uint64, len(g.feeds))
		t.rx.init(mark, len(g.feeds), clock.Hz())
	}
	weight, err := g.enlist(r, mark, fps, l.Size)
	if err != nil {
		return nil, err
	}
	if l.Duration == 0 && !r.listen {
		if l.Frames == 0 {
			return nil, errors.New("gen: a load needs a duration or a number of frames")
		}
		r.length = 1 << 62
	}
	r.whole = r.whole && !r.listen
	r.phase(loads, total)

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
	r.schedule(clock.FromDuration(g.o.CatchUp))
	if !r.listen && !r.flat && r.ends[0].planned+r.ends[1].planned == 0 {
		return nil, fmt.Errorf("gen: no frame is due within %v at %.4g frames/s", l.Duration, l.Rate)
	}
	return r, nil
}

// enlist tells the receivers what to expect, and makes the sources and groups. It returns the own rates of both sides.
func (g *Generator) enlist(r *run, mark uint32, fps []float64, size int) (weight [2]float64, err error) {
	hz := float64(clock.Hz())
	window := windowWords(len(g.feeds))
	groups := map[groupKey]*group{}
	var perSide [2]int
	for i := range g.feeds {
		f := &g.feeds[i]
		side := f.side
		weight[side] += fps[i]
		if g.ports[side.Other()] != nil {
			r.ends[side.Other()].rx.await(f, i, window)
		}
		x := &group{side: side}
		members := 1
		switch {
		case f.replay != nil:
			x.beat = f.replay.beat(fps[i], hz)
			x.limit = f.frames()
		default:
			st := f.stream
			k := groupKey{side: side, fps: fps[i], burst: max(st.Burst, 1), start: st.Start, frames: st.Frames}
			if k.frames%uint64(k.burst) != 0 {
				k.alone = i + 1
			}
			if y := groups[k]; y != nil {
				y.add()
				x, members = y, y.members
				break
			}
			x.beat = beat{start: st.Start.Seconds() * hz, period: float64(k.burst) * hz / k.fps, burst: k.burst, limit: f.frames(), members: 1}
			groups[k] = x
		}
		if members == 1 {
			r.groups = append(r.groups, x)
		}
		if g.ports[side] == nil {
			continue
		}
		r.listen = false
		r.whole = r.whole && g.ports[side.Other()] != nil
		s, err := f.source(uint16(i), size)
		if err != nil {
			return weight, err
		}
		if most := g.ports[side].Caps().MaxFrame; s.longest() > most {
			return weight, fmt.Errorf("gen: %s: frames of %d bytes with FCS; port %s has at most %d", f.what(), s.longest()+fcs, g.ports[side].Name(), most+fcs)
		}
		s.word0 = uint64(mark)
		s.out = uint16(perSide[side] % len(g.ends[side].lanes))
		s.group, s.place = x, len(x.sources)
		perSide[side]++
		r.ends[side].sources[i] = s
		x.sources = append(x.sources, s)
	}
	return weight, nil
}

// rates are the feeds' own rates in frames a second, and their sum.
func (g *Generator) rates(size int) (fps []float64, total float64, err error) {
	none := true
	for i := range g.feeds {
		f := &g.feeds[i]
		line, side := 0.0, f.side
		if f.replay != nil { // both sides have one pace
			side = traffic.Left
		}
		for _, p := range []traffic.Side{side.Other(), side} {
			if g.ports[p] != nil {
				line = float64(g.ports[p].Link().Mbps) * 1e6
			}
		}
		if f.replay != nil && size != 0 {
			return nil, 0, fmt.Errorf("gen: %s: a replay has frame sizes of its own; leave the size out", f.what())
		}
		v := f.fps(size, line)
		if v < 0 || math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, 0, fmt.Errorf("gen: %s: a rate of %v frames/s", f.what(), v)
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
			return nil, 0, fmt.Errorf("gen: %s: no rate, while others have one", g.feeds[i].what())
		}
	}
	return fps, total, nil
}

// Own is the load that the profile is as it stands: the rate of all streams and replays together, and the time until the last
// of them ends, 0 where one goes on without end. At this rate a trial scales nothing.
func (g *Generator) Own() (trial.Load, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	fps, total, err := g.rates(0)
	if err != nil {
		return trial.Load{}, err
	}
	l := trial.Load{Rate: total}
	for i := range g.feeds {
		end := g.feeds[i].end(fps[i])
		if end == 0 {
			l.Duration = 0
			break
		}
		l.Duration = max(l.Duration, end)
	}
	return l, nil
}

// phase is a part of a trial that has one rate: in it the profile's own time goes scale times as fast as the clock.
type phase struct {
	begin, end float64 // ticks of the trial
	scale      float64
	own        float64 // own time at begin
	due, want  float64 // frames on all sides, and as many as the rate has; 0 where a number of frames ends the trial
}

// own is the profile's own time at t.
func (r *run) own(t float64) float64 {
	for i := range r.phases {
		if p := &r.phases[i]; t < p.end || i == len(r.phases)-1 {
			return p.own + (t-p.begin)*p.scale
		}
	}
	return t
}

// clock is the time at which the profile's own time is c.
func (p *phase) clock(c float64) float64 { return p.begin + (c-p.own)/p.scale }

// phase finds the scale of each load: with all that starts late, ends early or comes unevenly, the number of frames
// that are due in it is that of its rate. At the profile's own rate the scale is 1.
func (r *run) phase(loads []trial.Load, total float64) {
	for _, x := range r.groups {
		r.uneven = r.uneven || x.at != nil || x.start > 0 || x.limit != never
	}
	begin, own := 0.0, 0.0
	for _, l := range loads {
		end := begin + float64(clock.FromDuration(l.Duration))
		if len(loads) == 1 {
			end = float64(r.length)
		}
		r.phases = append(r.phases, phase{begin: begin, end: end, scale: 1, own: own})
		p := &r.phases[len(r.phases)-1]
		if own := l.Rate == 0 || math.Abs(l.Rate/total-1) < 1e-9; !own {
			p.scale = l.Rate / total
		}
		if l.Rate > 0 && l.Frames == 0 && l.Duration > 0 {
			p.want = l.Rate * l.Duration.Seconds()
			if p.scale != 1 {
				p.scale = r.solve(p)
			}
			p.due = r.due(p, p.scale)
		}
		begin, own = end, r.own(end)
	}
}

// due is how many frames would be due in the last phase, p, at a scale.
func (r *run) due(p *phase, scale float64) (n float64) {
	defer func(was float64) { p.scale = was }(p.scale)
	p.scale = scale
	begin, end := r.own(p.begin), r.own(p.end)
	for _, x := range r.groups {
		at := r.own(x.start)
		n += float64(x.frames(end-at) - x.frames(begin-at))
	}
	return n
}

// solve is the scale of the last phase, p, at which as many frames are due in it as are wanted; p's own where there is none.
func (r *run) solve(p *phase) float64 {
	near := p.want / 1000
	for _, x := range r.groups {
		near += float64(x.burst * x.members)
	}
	if math.Abs(r.due(p, p.scale)-p.want) <= near {
		return p.scale
	}
	const most = 64
	lo, hi := p.scale/most, p.scale*most
	if r.due(p, lo) > p.want || r.due(p, hi) < p.want {
		return p.scale
	}
	for range 60 {
		if mid := math.Sqrt(lo * hi); r.due(p, mid) < p.want {
			lo = mid
		} else {
			hi = mid
		}
	}
	return hi
}

// schedule makes the ends' schedules of groups and phases.
func (r *run) schedule(catchUp uint64) {
	hz := float64(clock.Hz())
	for side := range r.ends {
		t := &r.ends[side]
		t.catchUp = catchUp
		for i := range r.phases {
			ph := &r.phases[i]
			t.steps = 0
			frames := 0.0 // a tick
			for _, x := range r.groups {
				if int(x.side) != side || len(x.sources) == 0 {
					continue
				}
				t.steps += hz / x.period * ph.scale
				frames += float64(x.burst) / x.period * ph.scale
				at := r.own(x.start)
				before := x.frames(ph.own - at)
				n := x.frames(r.own(ph.end)-at) - before
				if r.flat {
					n = x.limit
				} else {
					t.planned += n
				}
				if n > 0 {
					t.plan.push(newPace(&x.beat, ph.clock(at), ph.scale, before/uint64(x.burst), n, x.sources))
				}
			}
			if frames > 0 {
				t.catchUp = max(t.catchUp, uint64(min(catchUpFrames/frames, hz)))
			}
		}
		t.planned = min(t.planned, t.plan.left)
	}
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

func (s *source) longest() int {
	n := 0
	for i := range s.shapes {
		n = max(n, s.shapes[i].n)
	}
	return n
}
