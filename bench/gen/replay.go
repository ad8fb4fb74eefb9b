package gen

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"sort"

	"millrace/bench/traffic"
	"millrace/packet"
)

// replay is a capture's frames of one side, compiled.
type replay struct {
	of     *traffic.Replay
	pos    []uint32 // the frames' places in the capture
	shapes []shape
	plain  []uint32 // how many of the frames before each one have no stamp; one entry more than shapes
	big    bool
	// What a receiver has to know.
	places   [][2]uint16 // (protocol, place) of stamps behind layer 4
	bare     bool        // some frames without a stamp are not IP
	mistakes bool        // some of them have wrong checksums
}

// checkReplay: the frames and times can be sent, and stamps and checksums lie within frames.
func checkReplay(x *traffic.Replay) error {
	switch n := len(x.Frames); {
	case n == 0:
		return errors.New("no frames")
	case n > math.MaxUint32:
		return fmt.Errorf("%d frames", n)
	case x.Rate.Value < 0 || math.IsNaN(x.Rate.Value) || math.IsInf(x.Rate.Value, 0):
		return fmt.Errorf("a rate of %v", x.Rate.Value)
	case x.Rate.Value == 0 && (x.Frames[0].At < 0 || x.Round <= 0 || x.Round < x.Frames[n-1].At):
		return fmt.Errorf("a round of %v; its frames lie between %v and %v", x.Round, x.Frames[0].At, x.Frames[n-1].At)
	}
	for i := range x.Frames {
		f := &x.Frames[i]
		n := len(f.Data)
		l3, l4, end := int(f.L3), int(f.L4), n-int(f.Pad)
		head := packet.IPv4Size
		if f.V6 {
			head = packet.IPv6Size
		}
		switch {
		case n < packet.EtherSize || n > math.MaxUint16:
			return fmt.Errorf("frame %d has %d bytes", i, n)
		case i > 0 && f.At < x.Frames[i-1].At:
			return fmt.Errorf("frame %d comes before the one before it", i)
		case f.Side > traffic.Right:
			return fmt.Errorf("frame %d enters on no side", i)
		case l3 != 0 && (l3+head > end || !f.V6 && (packet.IPv4(f.Data[l3:]).HeaderLen() < head || l3+packet.IPv4(f.Data[l3:]).HeaderLen() > end)),
			f.SumOff != 0 && (l3 == 0 || l4 < l3+head || int(f.SumOff) < l4 || int(f.SumOff)+2 > end),
			f.Stamp != 0 && (l3 == 0 || l4 < l3+head || int(f.Stamp) < l4 || int(f.Stamp)+stampLen > end || (f.Stamp-f.L4)&1 != 0),
			f.Stamp != 0 && f.SumOff != 0 && f.SumOff+2 > f.Stamp:
			return fmt.Errorf("frame %d of %d bytes has another layout than %+v", i, n, f.Layout)
		}
	}
	return nil
}

// newReplay compiles the frames of one side.
func newReplay(x *traffic.Replay, side traffic.Side) *replay {
	r := &replay{of: x, plain: []uint32{0}}
	room := 0
	each := func(f func(i int, x *traffic.Recorded)) {
		for i := range x.Frames {
			if x.Frames[i].Side == side {
				f(i, &x.Frames[i])
			}
		}
	}
	each(func(_ int, f *traffic.Recorded) {
		if borrows(f) {
			return
		}
		room += (len(f.Data) + 63) &^ 63
	})
	all := make([]byte, room)
	known := map[[2]uint16]bool{}
	plain := uint32(0)
	each(func(i int, f *traffic.Recorded) {
		sh := shape{data: f.Data, n: len(f.Data), stamp: f.Stamp}
		if !borrows(f) {
			n := (len(f.Data) + 63) &^ 63
			sh.data, all = all[:n:n], all[n:]
			copy(sh.data, f.Data)
		}
		if f.Stamp != 0 {
			b := sh.data[:sh.n]
			clear(b[f.Stamp:][:stampLen])
			f.Seal4(b)
			if p := [2]uint16{uint16(f.Proto), place(f)}; !known[p] {
				known[p] = true
				r.places = append(r.places, p)
			}
		} else {
			plain++
			r.bare = r.bare || f.L3 == 0
			r.mistakes = r.mistakes || f.L3 != 0 && wrong(f)
		}
		r.pos = append(r.pos, uint32(i))
		r.shapes = append(r.shapes, sh)
		r.plain = append(r.plain, plain)
		r.big = r.big || sh.n > packet.DataRoom
	})
	return r
}

// borrows: the frame is sent from the capture itself.
func borrows(f *traffic.Recorded) bool { return f.Stamp == 0 && len(f.Data) >= 64 }

// wrong: the frame was captured with a wrong checksum. UDP over IPv4 need not have one.
func wrong(f *traffic.Recorded) bool {
	l := f.Layout
	if l.Proto == packet.ProtoUDP && !l.V6 && l.SumOff != 0 && f.Data[l.SumOff]|f.Data[l.SumOff+1] == 0 {
		l.SumOff = 0
	}
	b := bytes.Clone(f.Data)
	l.Seal(b)
	return !bytes.Equal(b, f.Data)
}

// tailPlace stands for the end of layer 4, or the byte before it: an even distance from its begin.
const tailPlace = noStamp - 1

// place is where a captured frame's stamp is behind layer 4.
func place(f *traffic.Recorded) uint16 {
	size := uint16(len(f.Data)) - f.Pad - f.L4
	if at := f.Stamp - f.L4; at != (size-stampLen)&^1 {
		return at
	}
	return tailPlace
}

func (x *replay) await(r *receiver) {
	for _, p := range x.places {
		r.expect(uint8(p[0]), p[1])
	}
	r.unstamped = r.unstamped || x.plain[len(x.plain)-1] > 0
	r.bare = r.bare || x.bare
	r.mistakes = r.mistakes || x.mistakes
}

func (x *replay) source(id uint16) *source {
	return &source{id: id, word1: uint64(id), shapes: x.shapes, big: x.big}
}

// fps is the rate of this side's frames.
func (x *replay) fps(line float64) float64 {
	n := float64(len(x.of.Frames))
	all := n / x.of.Round.Seconds()
	if x.of.Rate.Value != 0 {
		size := 0.0
		for i := range x.of.Frames {
			size += float64(len(x.of.Frames[i].Data) + fcs)
		}
		all = x.of.Rate.FPS(size/n, line)
	}
	return all * float64(len(x.shapes)) / n
}

// beat is when the frames are due, at their own rate of fps, in ticks of hz a second.
func (x *replay) beat(fps, hz float64) beat {
	b := beat{start: x.of.Start.Seconds() * hz, period: hz / fps, burst: 1, members: 1, at: make([]float64, len(x.pos))}
	step := b.period * float64(len(x.pos)) / float64(len(x.of.Frames))
	for i, p := range x.pos {
		if x.of.Rate.Value != 0 {
			b.at[i] = float64(p) * step
		} else {
			b.at[i] = x.of.Frames[p].At.Seconds() * hz
		}
	}
	return b
}

// unstamped is how many of the first n frames have no stamp.
func (x *replay) unstamped(n uint64) uint64 {
	l := uint64(len(x.shapes))
	return n/l*uint64(x.plain[l]) + uint64(x.plain[n%l])
}

// stamped is the place of number k of the frames with a stamp.
func (x *replay) stamped(k uint64) uint64 {
	l := len(x.shapes)
	n := uint64(l) - uint64(x.plain[l]) // with a stamp, in each round
	i := sort.Search(l, func(i int) bool { return uint64(i+1)-uint64(x.plain[i+1]) > k%n })
	return k/n*uint64(l) + uint64(i)
}
