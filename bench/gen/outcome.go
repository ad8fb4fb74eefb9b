package gen

import (
	"fmt"
	"strings"
	"time"

	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

func ipLen(st *traffic.Stream) uint16 {
	if st.V6 {
		return packet.IPv6Size
	}
	return uint16(packet.IPv4(st.Template[st.L3:]).HeaderLen())
}

func etherLen(f []byte) uint16 {
	off, _, _, _, _ := packet.ParseEther(f)
	return uint16(off)
}

// outcome counts what came of a trial, by stream too.
func (g *Generator) outcome(r *run, l trial.Load) *trial.Outcome {
	o := &trial.Outcome{Load: l}
	g.streams = make([]StreamCount, len(g.o.Streams))
	var plain [2]uint64 // sent without stamps, by the side where they are expected
	for i := range g.o.Streams {
		st, c := &g.o.Streams[i], &g.streams[i]
		c.Name = st.Name
		from, to := &r.ends[st.Side], &r.ends[st.Side.Other()]
		if s := from.sources[i]; s != nil {
			c.Sent = s.k - from.back[i]
		}
		f := &to.rx.flows[i]
		c.Received, c.Duplicated, c.Reordered, c.Corrupted = f.received, f.duplicated, f.reordered, f.corrupted
		if st.Stamp == 0 {
			plain[st.Side.Other()] += c.Sent
		}
		o.Sent += c.Sent
		o.Received += c.Received
		o.Duplicated += c.Duplicated
		o.Reordered += c.Reordered
	}
	var h *hist
	var first, last uint64
	steps := 0.0
	for side := range r.ends {
		t := &r.ends[side]
		x := &t.rx
		o.Corrupted += x.corrupted
		o.Foreign += x.foreign
		got := x.plain
		if r.whole && got > plain[side] {
			o.Foreign += got - plain[side]
			got = plain[side]
		}
		o.Received += got
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
	g.share(r, plain)
	if h != nil {
		o.Latency = h.export()
	}
	if o.Sent > 0 {
		o.Elapsed = clock.Duration(last - first)
		if r.flat {
			o.Elapsed += o.Elapsed / time.Duration(max(o.Sent-1, 1))
		} else {
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

// share gives streams without stamps their part of the frames that came without, in proportion to what they sent.
func (g *Generator) share(r *run, sent [2]uint64) {
	for side := range r.ends {
		got := min(r.ends[side].rx.plain, sent[side])
		rest := sent[side]
		for i := range g.streams {
			st, c := &g.o.Streams[i], &g.streams[i]
			if st.Stamp != 0 || int(st.Side.Other()) != side || rest == 0 {
				continue
			}
			c.Received = uint64(float64(got)*float64(c.Sent)/float64(rest) + 0.5)
			got -= min(c.Received, got)
			rest -= c.Sent
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
	if !r.listen && o.Sent == 0 {
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
