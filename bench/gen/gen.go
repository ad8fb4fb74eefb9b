package gen

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

// Options of a generator. Zero values choose.
type Options struct {
	// Left and Right are the ports on the two sides of what is under test; either may be nil: its frames are
	// then sent, or received, by another generator with the same Streams and Replays. They stay the caller's to close.
	Left, Right pmd.Port
	// Streams and Replays are what is sent, a traffic.Profile's. They are not changed, and may not be.
	Streams []traffic.Stream
	Replays []traffic.Replay
	// Pool is what frames are made in; of ports that have a pool of their own, that one.
	Pool *packet.Pool
	// CPUs: none leaves the one thread unpinned; one is for all ports; of two, the first is for Left.
	CPUs []int
	// Hosts are the addresses whose ARP requests and neighbour solicitations are answered, by side.
	Hosts [2][]Host
	// CatchUp bounds the backlog that is sent at once after the generator was held up; 250 us. 32 frames are sent
	// at any rate.
	CatchUp time.Duration
	// Shortfall is the part of the frames that may be missing for a trial to be valid; 0.005.
	Shortfall float64
	// Settle is how long nothing must arrive for a trial to be over, when frames are missing; 50 ms. SettleMax
	// bounds the waiting after the generator's own sending; 2 s (RFC 2544 23).
	Settle, SettleMax time.Duration
	// Wait is how long a trial in which nothing is sent here waits for its first frame; 2 s.
	Wait time.Duration
	// Refused says what frames are that a port does not take because it is full: lost, as on a wire to a
	// receiver that does not keep up, or to be offered again, so that the trial is invalid if they pile up. By
	// default they are lost on ports in memory (mem, memif), whose rings are those of the thing under test.
	Refused Refused
}

// Refused says what becomes of frames that a port does not take.
type Refused uint8

const (
	ByDriver Refused = iota
	Lost
	Again
)

// Generator sends and receives on one or two ports.
type Generator struct {
	o       Options
	ports   [2]pmd.Port
	ends    [2]*end // nil where there is no port
	threads []*thread
	feeds   []feed
	number  uint16
	streams []StreamCount
	mu      sync.Mutex // one trial at a time
}

// StreamCount is what became of one stream's frames in a trial, or of a replay's frames of one side. Where they are sent
// elsewhere, Lost is what is missing up to the last one that came.
type StreamCount struct {
	Name                             string
	Sent, Received, Lost             uint64
	Duplicated, Reordered, Corrupted uint64
}

// thread is a polling thread with its ends.
type thread struct {
	cpu  int // -1 for any
	ends []*end
	work chan *run
	done chan struct{}
	quit chan struct{}
	err  chan error // of the start
}

// idle is how often threads poll between trials.
const idle = 200 * time.Microsecond

// calm is how long a trial of which nothing is missing is listened to, for what arrives twice.
const calm = 2 * time.Millisecond

// New starts a generator's threads.
func New(o Options) (*Generator, error) {
	g := &Generator{o: o, ports: [2]pmd.Port{o.Left, o.Right}}
	if o.CatchUp == 0 {
		g.o.CatchUp = 250 * time.Microsecond
	}
	if o.Shortfall == 0 {
		g.o.Shortfall = 0.005
	}
	if o.Settle == 0 {
		g.o.Settle = 50 * time.Millisecond
	}
	if o.SettleMax == 0 {
		g.o.SettleMax = 2 * time.Second
	}
	if o.Wait == 0 {
		g.o.Wait = 2 * time.Second
	}
	switch {
	case o.Left == nil && o.Right == nil:
		return nil, errors.New("gen: a port is needed")
	case o.Pool == nil:
		return nil, errors.New("gen: a pool is needed")
	case len(o.Streams)+len(o.Replays) == 0:
		return nil, errors.New("gen: no streams")
	case len(o.Streams)+2*len(o.Replays) > math.MaxUint16:
		return nil, fmt.Errorf("gen: %d streams and replays; %d are possible", len(o.Streams)+len(o.Replays), math.MaxUint16)
	case len(o.CPUs) > 2:
		return nil, fmt.Errorf("gen: %d CPUs; a port is one thread's, and there are at most two", len(o.CPUs))
	}
	if err := g.feed(); err != nil {
		return nil, err
	}
	for side, p := range g.ports {
		if p == nil {
			continue
		}
		e := &end{port: p, side: side, scratch: make([]byte, math.MaxUint16+64)}
		e.lossy = o.Refused == Lost || o.Refused == ByDriver && (p.Driver() == "mem" || p.Driver() == "memif")
		for i := range p.Caps().Queues {
			e.lanes = append(e.lanes, &lane{q: p.Queue(i)})
		}
		for _, h := range o.Hosts[side] {
			if h.MAC == (pmd.MAC{}) {
				h.MAC = p.Link().MAC
			}
			e.answer.hosts = append(e.answer.hosts, h)
		}
		g.ends[side] = e
		if k := len(g.threads); k == 1 && len(o.CPUs) < 2 {
			g.threads[0].ends = append(g.threads[0].ends, e)
		} else {
			t := &thread{cpu: -1, ends: []*end{e}, work: make(chan *run), done: make(chan struct{}), quit: make(chan struct{}), err: make(chan error)}
			if len(o.CPUs) > 0 {
				t.cpu = o.CPUs[min(side, len(o.CPUs)-1)]
			}
			g.threads = append(g.threads, t)
		}
	}
	clock.Hz()
	for i, t := range g.threads {
		go t.main(g.o.Pool)
		if err := <-t.err; err != nil {
			for _, s := range g.threads[:i] {
				s.stop()
			}
			return nil, fmt.Errorf("gen: %w", err)
		}
	}
	return g, nil
}

// Close ends the threads and stops the ports' queues. The ports and the pool are the caller's.
func (g *Generator) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, t := range g.threads {
		t.stop()
	}
	g.threads = nil
	return nil
}

func (t *thread) stop() {
	close(t.quit)
	<-t.done
}

// main is the thread: it owns its ends from here to the end.
func (t *thread) main(pool *packet.Pool) {
	runtime.LockOSThread() // for good: the thread's affinity is changed
	if t.cpu >= 0 {
		var set unix.CPUSet
		set.Set(t.cpu)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			t.err <- fmt.Errorf("pin to CPU %d: %w", t.cpu, err)
			return
		}
	}
	cache := pool.NewCache()
	defer close(t.done)
	defer cache.Close()
	for _, e := range t.ends {
		e.cache = cache
		for _, l := range e.lanes {
			if err := l.q.Start(cache); err != nil {
				t.err <- fmt.Errorf("port %s: %w", e.port.Name(), err)
				return
			}
			defer l.q.Stop()
		}
	}
	t.err <- nil
	for {
		select {
		case r := <-t.work:
			for _, e := range t.ends {
				e.t = &r.ends[e.side]
			}
			play(r, t.ends)
			for _, e := range t.ends {
				e.t = nil
			}
			t.done <- struct{}{}
		case <-t.quit:
			return
		default:
			some := false
			for _, e := range t.ends {
				some = e.poll() || some
			}
			if !some {
				time.Sleep(idle)
			}
		}
	}
}

// SetTrial numbers the next trial; each one after it has the next number. Two generators that are each
// other's receivers give their trials the same numbers.
func (g *Generator) SetTrial(n uint16) {
	g.mu.Lock()
	g.number = n
	g.mu.Unlock()
}

// Streams is what became of each stream in the last trial, and then of each replay, by side.
func (g *Generator) Streams() []StreamCount {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.streams
}

// Try makes one trial. It sends what enters at a port that is here, and receives what is expected at one.
//
// Load.Rate is the mean over the trial. All streams and replays are sent as much faster or slower than their own rates as it
// takes: streams that start late, or end, and captures that are played by their own timing count with the frames
// that are due in the trial. Starts and bursts stay as they are.
//
// Where nothing is sent here it waits for the first frame and listens for the load's duration, which may be 0, and until
// frames stop coming. Where nothing is received here the outcome has no losses; see Join.
func (g *Generator) Try(ctx context.Context, l trial.Load) (*trial.Outcome, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	o, _, err := g.try(ctx, l)
	return o, err
}

// try makes a trial of loads that follow each other.
func (g *Generator) try(ctx context.Context, loads ...trial.Load) (*trial.Outcome, *run, error) {
	if g.threads == nil {
		return nil, nil, errors.New("gen: closed")
	}
	r, err := g.prepare(loads...)
	if err != nil {
		return nil, nil, err
	}
	var before [2]pmd.Stats
	for i, p := range g.ports {
		if p != nil {
			before[i] = p.Stats()
			if !p.Link().Up {
				return nil, nil, fmt.Errorf("gen: the link of port %s is down", p.Name())
			}
		}
	}
	start := time.Now()
	for _, t := range g.threads {
		t.work <- r
	}
	for _, t := range g.threads {
		select {
		case <-t.done:
		case <-ctx.Done():
			r.cancel.Store(true)
			<-t.done
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	o := g.outcome(r, loads[0])
	o.Start = start
	g.judge(r, o, before)
	return o, r, nil
}
