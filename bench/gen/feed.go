package gen

import (
	"fmt"
	"time"

	"millrace/bench/traffic"
)

// feed is what is counted as one: a stream, or a replay's frames of one side. Its place in Generator.feeds is its number in
// stamps.
type feed struct {
	name   string
	side   traffic.Side
	stream *traffic.Stream // nil for a replay
	replay *replay
}

// feed makes the feeds of streams and replays, and checks them.
func (g *Generator) feed() error {
	for i := range g.o.Streams {
		st := &g.o.Streams[i]
		if _, err := compile(st, 0, st.Sizes); err != nil {
			return err
		}
		g.feeds = append(g.feeds, feed{name: st.Name, side: st.Side, stream: st})
	}
	for i := range g.o.Replays {
		x := &g.o.Replays[i]
		if err := checkReplay(x); err != nil {
			return fmt.Errorf("gen: replay %s: %w", x.Name, err)
		}
		sides := [2]*replay{newReplay(x, traffic.Left), newReplay(x, traffic.Right)}
		for side, r := range sides {
			if len(r.shapes) == 0 {
				continue
			}
			name := x.Name
			if len(sides[0].shapes) > 0 && len(sides[1].shapes) > 0 {
				name += "/" + traffic.Side(side).String()
			}
			g.feeds = append(g.feeds, feed{name: name, side: traffic.Side(side), replay: r})
		}
	}
	return nil
}

// what names the feed in messages.
func (f *feed) what() string {
	if f.replay != nil {
		return "replay " + f.replay.of.Name
	}
	return "stream " + f.name
}

// source makes the frames of the feed in one trial, all of a size if that is not 0.
func (f *feed) source(id uint16, size int) (*source, error) {
	if f.replay != nil {
		return f.replay.source(id), nil
	}
	sizes := f.stream.Sizes
	if size != 0 {
		sizes = []uint16{uint16(size)}
	}
	return compile(f.stream, id, sizes)
}

// fps is the feed's own rate on a port of line bits a second, 0 where it has none; all frames of a size if that is not 0.
func (f *feed) fps(size int, line float64) float64 {
	switch {
	case f.replay != nil:
		return f.replay.fps(line)
	case size != 0:
		return f.stream.Rate.FPS(float64(size), line)
	}
	return f.stream.FPS(line)
}

// frames is how many frames the feed has, never where it goes on without end.
func (f *feed) frames() uint64 {
	n, loops := uint64(1), uint64(0)
	if f.replay != nil {
		n, loops = uint64(len(f.replay.shapes)), f.replay.of.Loops
	} else {
		loops = f.stream.Frames
	}
	if loops == 0 || loops > never/n {
		return never
	}
	return n * loops
}

// end is when the feed has sent its last frame at a rate, 0 where it goes on without end.
func (f *feed) end(fps float64) time.Duration {
	n := f.frames()
	if n == never {
		return 0
	}
	start := time.Duration(0)
	if f.replay != nil {
		start = f.replay.of.Start
	} else {
		start = f.stream.Start
	}
	return start + time.Duration(float64(n)/fps*1e9) + 1
}

// stamped is the place, among all of the feed's frames, of number k of those with a stamp.
func (f *feed) stamped(k uint64) uint64 {
	if f.replay != nil {
		return f.replay.stamped(k)
	}
	return k
}

// unstamped is how many of the feed's first n frames have no stamp.
func (f *feed) unstamped(n uint64) uint64 {
	switch {
	case f.replay != nil:
		return f.replay.unstamped(n)
	case f.stream.Stamp == 0:
		return n
	}
	return 0
}

// await makes the receiver expect a feed.
func (r *receiver) await(f *feed, id, window int) {
	r.flows[id].seen = make([]uint64, window)
	clear(r.flows[id].seen) // its pages are touched here, not in the trial
	if f.replay != nil {
		f.replay.await(r)
		return
	}
	st := f.stream
	if st.Stamp == 0 {
		r.unstamped = true
		r.bare = r.bare || st.L3 == 0
		return
	}
	switch {
	case st.L3 == 0:
		r.raw = append(r.raw, st.Stamp-etherLen(st.Template))
	case st.L4 != 0:
		r.expect(st.Proto, st.Stamp-st.L4)
	default:
		r.expect(st.Proto, st.Stamp-st.L3-ipLen(st.Template, &st.Layout))
	}
}
