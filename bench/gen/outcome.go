package gen

import (
	"fmt"
	"math"
	"strings"
	"time"

	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

func ipLen(frame []byte, l *traffic.Layout) uint16 {
	if l.V6 {
		return packet.IPv6Size
	}
	return uint16(packet.IPv4(frame[l.L3:]).HeaderLen())
}

func etherLen(f []byte) uint16 {
	off, _, _, _, _ := packet.ParseEther(f)
	return uint16(off)
}

// outcome counts what came of a trial, by stream too.
func (g *Generator) outcome(r *run, l trial.Load) *trial.Outcome {
	o := &trial.Outcome{Load: l}
	g.streams = make([]StreamCount, len(g.feeds))
	plain := make([]uint64, len(g.feeds)) // sent without stamps
	var plains [2]uint64                  // by the side where they are expected
	for i := range g.feeds {
		x, c := &g.feeds[i], &g.streams[i]
		c.Name = x.name
		from, to := &r.ends[x.side], &r.ends[x.side.Other()]
		if s := from.sources[i]; s != nil {
			c.Sent = s.k + s.bare - from.back[i]
		}
		f := &to.rx.flows[i]
		c.Received, c.Duplicated, c.Reordered, c.Corrupted = f.received, f.duplicated, f.reordered, f.corrupted
		plain[i] = x.unstamped(c.Sent)
		plains[x.side.Other()] += plain[i]
		o.Sent += c.Sent
		o.Received += c.Received
		o.Duplicated += c.Duplicated
		o.Reordered += c.Reordered
		if from.sources[i] == nil {
			c.Lost = f.next - f.received
		}
	}
	var h *hist
	var first, last, got, strange uint64
	steps := 0.0
	for side := range r.ends {
		t := &r.ends[side]
		x := &t.rx
		o.Corrupted += x.corrupted
		o.Foreign += x.foreign
		bare := x.plain
		if r.whole && bare > plains[side] {
			o.Foreign += bare - plains[side]
			bare = plains[side]
		}
		o.Received += bare
		got += x.arrived
		strange += x.early + uint64(x.hist.counts[histCounts-1])
		if t.sent > 0 {
			if steps == 0 || t.first < first {
				first = t.first
			}
			last = max(last, t.last)
			steps += t.steps
		}
		if x.arrived > 0 {
			if h == nil {
				h = &x.hist
			} else {
				for i, n := range x.hist.counts {
					h.counts[i] += n
				}
			}
		}
	}
	g.share(r, plain, plains)
	switch {
	case h == nil:
	case !r.whole && strange > got/2:
		o.Notes = append(o.Notes, "the frames were sent by another clock, as on another machine: there is no latency")
	default:
		o.Latency = h.export()
	}
	if o.Sent > 0 {
		o.Elapsed = clock.Duration(last - first)
		switch {
		case r.flat:
			o.Elapsed += o.Elapsed / time.Duration(max(o.Sent-1, 1))
		case r.uneven && l.Frames == 0:
			o.Elapsed = max(o.Elapsed, clock.Duration(r.length))
		default:
			o.Elapsed += time.Duration(1e9 / steps)
		}
	}
	if r.whole {
		o.Lost = o.Sent - min(o.Received, o.Sent)
		for i := range g.streams {
			c := &g.streams[i]
			c.Lost = c.Sent - min(c.Received, c.Sent)
		}
	}
	return o
}

// share gives what was sent without stamps, by feed and by the side where it is expected, its part of the frames that came
// without.
func (g *Generator) share(r *run, plain []uint64, plains [2]uint64) {
	for side := range r.ends {
		got := min(r.ends[side].rx.plain, plains[side])
		rest := plains[side]
		for i := range g.streams {
			if int(g.feeds[i].side.Other()) != side || rest == 0 {
				continue
			}
			n := uint64(float64(got)*float64(plain[i])/float64(rest) + 0.5)
			g.streams[i].Received += n
			got -= min(n, got)
			rest -= plain[i]
		}
	}
}

// judge says what a reader must know of the generator's own part, and whether the trial is valid.
func (g *Generator) judge(r *run, o *trial.Outcome, before [2]pmd.Stats) {
	var invalid []string
	note := func(format string, a ...any) { o.Notes = append(o.Notes, fmt.Sprintf(format, a...)) }
	void := func(format string, a ...any) { invalid = append(invalid, fmt.Sprintf(format, a...)) }
	for side, p := range g.ports {
		if p == nil {
			continue
		}
		t := &r.ends[side]
		s := p.Stats()
		failed := s.TxFailed - before[side].TxFailed
		if failed > 0 {
			note("port %s took %d frames and did not send them: they do not count as sent", p.Name(), failed)
			o.Sent -= min(failed, o.Sent)
			if r.whole {
				o.Lost = o.Sent - min(o.Received, o.Sent)
			}
		}
		if !p.Link().Up {
			void("the link of port %s went down", p.Name())
		}
		deaf := s.RxNoBuffer + s.RxRingFull + s.RxBad - before[side].RxNoBuffer - before[side].RxRingFull - before[side].RxBad
		switch {
		case deaf > 0 && o.Lost > 0:
			void("the generator's own port %s lost %d frames on reception", p.Name(), deaf)
		case deaf > 0:
			note("port %s lost %d frames on reception, none of the trial", p.Name(), deaf)
		}
		if t.refused > 0 {
			note("port %s was full and took %d frames less than it was given: they count as lost", p.Name(), t.refused)
		}
		if t.empty > 0 {
			note("the pool had no buffers %d times", t.empty)
		}
		if r.flat || t.planned == 0 {
			continue
		}
		done := t.sent - min(failed, t.sent)
		short := 1 - float64(done)/float64(t.planned)
		slow := float64(t.slipped) / (float64(o.Frames) / o.Rate * float64(clock.Hz()))
		why := t.why(p.Name())
		switch {
		case short > g.o.Shortfall:
			void("port %s: the generator sent %d of the %d frames that were due (%.2f %% too few)%s", p.Name(), done, t.planned, short*100, why)
		case o.Frames > 0 && slow > g.o.Shortfall:
			void("port %s: the generator took %.2f %% longer than its rate%s", p.Name(), slow*100, why)
		case t.slips > 0:
			note("port %s: %d of %d frames sent%s", p.Name(), done, t.planned, why)
		}
	}
	for i := range r.phases {
		if p := &r.phases[i]; math.Abs(p.due-p.want) > p.want*g.o.Shortfall+float64(len(g.feeds)) {
			note("%.0f frames are due in this time, where the rate has %.0f: streams or replays end, start late or come unevenly", p.due, p.want)
		}
	}
	switch heard := r.ends[0].rx.arrived + r.ends[0].rx.plain + r.ends[1].rx.arrived + r.ends[1].rx.plain; {
	case r.listen && heard == 0:
		note("no frame came within %v", g.o.Wait)
	case !r.listen && o.Sent == 0:
		void("nothing was sent")
	}
	o.Invalid = strings.Join(invalid, "; ")
}

// why says what kept the generator from its schedule.
func (t *trialEnd) why(port string) string {
	var w []string
	if t.slips > 0 {
		w = append(w, fmt.Sprintf("behind schedule by more than it catches up %d times, %v in all, %v at most", t.slips,
			clock.Duration(t.slipped).Round(time.Microsecond), clock.Duration(t.worst).Round(time.Microsecond)))
	}
	if t.waited > 0 {
		w = append(w, fmt.Sprintf("the port was full %d times", t.waited))
	}
	if t.empty > 0 {
		w = append(w, fmt.Sprintf("no buffers %d times", t.empty))
	}
	if len(w) == 0 {
		return ""
	}
	return ": " + strings.Join(w, "; ")
}

// Join makes one outcome of those of a generator that only sent and one that only received, of the same trial.
func Join(sent, received *trial.Outcome) *trial.Outcome {
	o := *sent
	o.Received, o.Duplicated, o.Reordered = received.Received, received.Duplicated, received.Reordered
	o.Corrupted, o.Foreign, o.Latency = received.Corrupted, received.Foreign, received.Latency
	o.Lost = o.Sent - min(o.Received, o.Sent)
	o.Notes = append(append([]string(nil), sent.Notes...), received.Notes...)
	switch {
	case sent.Invalid == "":
		o.Invalid = received.Invalid
	case received.Invalid != "":
		o.Invalid += "; " + received.Invalid
	}
	return &o
}
