package gen

import (
	"sync/atomic"

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

const (
	rxBurst = 128
	txBurst = 64
	// sendRound bounds the frames that an end makes before its thread looks at reception again.
	sendRound = 2 * txBurst
)

// run is one trial, compiled: Try makes it and hands it to the threads, which hand it back.
type run struct {
	length uint64 // of the sending, ticks
	phases []phase
	groups []*group
	quiet  uint64 // ticks without a frame after which none is expected, where some are missing
	calm   uint64 // the same where none is
	limit  uint64 // ticks after the sending when waiting ends in any case
	flat   bool   // as fast as it goes: due is an order, not a time
	uneven bool   // frames do not follow at one rate from the trial's begin to its end
	wait   uint64 // ticks until which a first frame is waited for, where nothing is sent here
	listen bool   // nothing is sent here: frames come from elsewhere, for the length
	whole  bool   // what is sent here is received here, so that it is known what is missing
	ends   [2]trialEnd

	cancel  atomic.Bool   // stop at once
	ready   atomic.Int32  // threads that have not taken it up
	begin   atomic.Uint64 // ticks, when all have
	sending atomic.Int32  // threads that have not sent everything
	heard   atomic.Uint64 // ticks of the first frame that came, where nothing is sent here
	sent    atomic.Uint64 // frames of threads that have
	arrived [2]atomic.Uint64
}

// trialEnd is what a trial has to do with one end.
type trialEnd struct {
	plan    schedule
	planned uint64    // frames that are due
	catchUp uint64    // ticks of backlog that are made up for
	steps   float64   // a second, of all paces
	sources []*source // by stream, nil for those that do not start here
	rx      receiver

	begin       uint64   // run.begin and what the schedule slipped by
	first, last uint64   // ticks of the first and the last burst that the port took
	sent        uint64   // frames that the port took or lost
	refused     uint64   // those lost
	back        []uint64 // by stream: frames that were made and not sent in the end
	slips       uint64   // times that the schedule was moved, by slipped ticks in all, worst at once
	moved       [64]slip // the first of them; the last has those beyond, too
	slipped     uint64
	worst       uint64
	late        uint64 // the longest backlog that was made up for, ticks
	waited      uint64 // bursts that the port did not take whole at first
	empty       uint64 // times that the pool had no buffers
}

// lane is a transmit queue and what it has not taken yet.
type lane struct {
	q   pmd.Queue
	n   int
	buf [txBurst]uint32
	ids [txBurst]uint16 // streams
}

// end is one port.
type end struct {
	port     pmd.Port
	side     int
	lanes    []*lane
	lossy    bool // what the port refuses is lost
	fill     int  // the most that a lane holds
	cache    *packet.Cache
	scratch  []byte
	rx       [rxBurst]uint32
	answer   responder
	answered uint64
	t        *trialEnd // nil between trials
}

// poll receives from all queues once; false if there was nothing.
func (e *end) poll() bool {
	any := false
	for _, l := range e.lanes {
		n := l.q.Rx(e.rx[:])
		if n == 0 {
			continue
		}
		any = true
		others := n
		if e.t != nil {
			others = e.t.rx.take(e.rx[:n], clock.Ticks())
		}
		if others > 0 {
			e.others(l.q, e.rx[:others])
		}
		e.cache.Free(e.rx[:n])
	}
	return any
}

// send makes and sends what is due at now, a moment of the clock; false when everything is sent.
func (e *end) send(r *run, now uint64) bool {
	t := e.t
	if !e.flush(r, now) {
		return true
	}
	at := uint64(never - 1)
	if !r.flat {
		at = now - t.begin
		if due := t.plan.due(); due < at {
			if at-due > t.catchUp {
				at = t.slip(due, at-due-t.catchUp, at)
			}
			t.late = max(t.late, at-due)
		}
	}
	for made := 0; made < sendRound; {
		if e.fill > txBurst/2 {
			if !e.flush(r, now) {
				return true
			}
			now = clock.Ticks()
		}
		src, n := t.plan.take(at, txBurst-e.fill)
		if n == 0 {
			break
		}
		made += n
		if !e.make(src, n, now) {
			break
		}
	}
	return !e.flush(r, now) || t.plan.due() != never
}

// slip is a move of the schedule: what was due at from and later comes by ticks later.
type slip struct{ from, by uint64 }

// slip moves the schedule from a moment on by d ticks, which nobody makes up for: the trial's end stays. It returns the
// schedule's time.
func (t *trialEnd) slip(from, d, at uint64) uint64 {
	m := &t.moved[min(t.slips, uint64(len(t.moved)-1))]
	m.from = from
	m.by += d
	t.slips++
	t.slipped += d
	t.worst = max(t.worst, d)
	t.begin += d
	t.plan.stop -= min(d, t.plan.stop)
	return at - d
}

// make makes n frames of a source into its lane, which has room for them; false where there were too few buffers.
func (e *end) make(s *source, n int, now uint64) bool {
	l := e.lanes[s.out]
	dst := l.buf[l.n : l.n+n]
	got := 0
	if s.big {
		for got < n {
			x, ok := s.writeBig(e.cache, e.scratch, now)
			if !ok {
				break
			}
			dst[got] = x
			got++
		}
	} else {
		got = e.cache.AllocRaw(dst)
		s.write(dst[:got], now)
	}
	for i := range got {
		l.ids[l.n+i] = s.id
	}
	l.n += got
	e.fill = max(e.fill, l.n)
	if got < n {
		e.t.empty++
	}
	return got == n
}

// flush gives the port what waits; false if it did not take everything.
func (e *end) flush(r *run, now uint64) bool {
	if e.fill == 0 {
		return true
	}
	t := e.t
	e.fill = 0
	for _, l := range e.lanes {
		if l.n == 0 {
			continue
		}
		k := l.q.Tx(l.buf[:l.n])
		if k < l.n && e.lossy && !r.flat {
			t.refused += uint64(l.n - k)
			e.cache.Free(l.buf[k:l.n])
			k = l.n
		}
		if k > 0 {
			if t.sent == 0 {
				t.first = now
			}
			t.last = now
			t.sent += uint64(k)
		}
		if l.n -= k; l.n > 0 {
			t.waited++
			copy(l.buf[:], l.buf[k:k+l.n])
			copy(l.ids[:], l.ids[k:k+l.n])
			e.fill = max(e.fill, l.n)
		}
	}
	return e.fill == 0
}

// giveUp takes back what the port has not taken.
func (e *end) giveUp() {
	for _, l := range e.lanes {
		for _, id := range l.ids[:l.n] {
			e.t.back[id]++
		}
		e.cache.Free(l.buf[:l.n])
		l.n = 0
	}
	e.fill = 0
}

// play runs one trial on the ends of one thread.
func play(r *run, ends []*end) {
	if r.ready.Add(-1) == 0 {
		r.begin.Store(clock.Ticks() + r.calm/8)
	}
	begin := uint64(0)
	for begin == 0 || clock.Ticks() < begin {
		for _, e := range ends {
			e.poll()
		}
		if begin = r.begin.Load(); r.cancel.Load() {
			break
		}
	}
	for _, e := range ends {
		e.t.begin = begin
	}
	end := begin + r.length
	for open := true; open && !r.cancel.Load(); {
		open = false
		for _, e := range ends {
			e.poll()
			now := clock.Ticks()
			if r.listen {
				open = r.hearing(e.t, begin, now)
			} else if e.send(r, now) && now < end+2*e.t.catchUp && !(r.flat && now >= end) {
				open = true
			}
		}
	}
	for _, e := range ends {
		e.giveUp()
		r.sent.Add(e.t.sent)
	}
	r.sending.Add(-1)
	settle(r, ends)
}

// hearing reports whether frames may still be sent elsewhere.
func (r *run) hearing(t *trialEnd, begin, now uint64) bool {
	first := r.heard.Load()
	switch {
	case first != 0:
		return now-first < r.length
	case t.rx.arrived+t.rx.plain > 0:
		r.heard.CompareAndSwap(0, now)
		return true
	}
	return now-begin < r.wait
}

// settle polls until nothing comes any more.
func settle(r *run, ends []*end) {
	start := clock.Ticks()
	last := start
	for !r.cancel.Load() {
		now := clock.Ticks()
		for _, e := range ends {
			if e.poll() && e.t.rx.last > last {
				last = e.t.rx.last
			}
			r.arrived[e.side].Store(e.t.rx.arrived + e.t.rx.plain)
		}
		if r.sending.Load() > 0 {
			start, last = now, now
			continue
		}
		quiet := r.quiet
		if r.whole && r.arrived[0].Load()+r.arrived[1].Load() >= r.sent.Load() {
			quiet = r.calm
		}
		if int64(now-last) > int64(quiet) || now-start > r.limit && !r.listen {
			return
		}
	}
}
