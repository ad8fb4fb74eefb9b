// Package porttest is the conformance suite of pmd.Port: what the road relies on,
// checked the same way for every driver.
//
// A driver's test opens two ports joined by some wire and calls Run. The suite
// drives both ends from one thread, as workers would, with IPv4/UDP frames that
// carry a sequence number and a pattern made from it, so that every received
// byte is checked. Frames that are not the suite's, such as a kernel's neighbour
// discovery, are freed and ignored.
package porttest

import (
	"runtime"
	"testing"

	"millrace/packet"
	"millrace/pmd"
)

// Pair is a driver under test.
type Pair struct {
	// Open opens two ports joined to each other, with their buffers in pool. It
	// fails or skips the test by itself. The suite closes the ports; what else there is to
	// remove belongs into t.Cleanup.
	Open func(t testing.TB, pool *packet.Pool) (a, b pmd.Port)

	Buffers  int // in the pool; 0 means 8192
	MaxFrame int // longest frame to try in bytes; 0 means the lower of both Caps.MaxFrame

	Lossy     bool // packets may vanish on the wire: at least half must arrive
	Reorders  bool // packets of one flow may overtake each other
	OneWay    bool // only A transmits and only B receives
	NeverFull bool // the wire takes packets that nobody receives and loses them

	// Skip gives the reason for each check, by name, that cannot hold for the driver.
	Skip map[string]string
}

// check is one property. It returns what is wrong.
type check struct {
	name string
	run  func(*env) error
}

// checks run in this order over one pair of ports.
var checks = []check{
	{"caps", checkCaps},
	{"sizes", checkSizes},
	{"bursts", checkBursts},
	{"chains", checkChains},
	{"jumbo", checkJumbo},
	{"clones", checkClones},
	{"shared", checkShared},
	{"queues", checkQueues},
	{"stats", checkStats},
	{"full", checkFull},
	{"wake", checkWake},
	{"allocs", checkAllocs},
	{"restart", checkRestart},
}

// Run checks a driver. Each check is a subtest; the last, "leaks", closes the ports
// and counts the pool's buffers.
func Run(t *testing.T, p Pair) {
	w := newWorker()
	defer close(w)
	e := open(t, &p, w)
	for _, c := range checks {
		if e == nil {
			e = open(t, &p, w)
		}
		t.Run(c.name, func(t *testing.T) {
			if why := p.Skip[c.name]; why != "" {
				t.Skip(why)
			}
			if err := w.do(func() error { return e.check(c) }); err != nil {
				t.Error(err)
				w.do(e.close) // what it finds follows from the failure
				e = nil
			}
		})
	}
	t.Run("leaks", func(t *testing.T) {
		if e == nil {
			t.Skip("the check before failed")
		}
		if err := w.do(e.close); err != nil {
			t.Error(err)
		}
	})
}

// worker is the one thread that touches queues, as in the road: subtests have
// goroutines of their own.
type worker chan func()

func newWorker() worker {
	w := make(worker)
	go func() {
		runtime.LockOSThread()
		for f := range w {
			f()
		}
	}()
	return w
}

func (w worker) do(f func() error) error {
	done := make(chan error)
	w <- func() { done <- f() }
	return <-done
}

// check runs one check and verifies that every buffer is accounted for after it.
func (e *env) check(c check) error {
	if err := c.run(e); err != nil {
		return err
	}
	return e.settle()
}

// open makes the pool and the ports, and starts all queues on the worker.
func open(t testing.TB, p *Pair, w worker) *env {
	t.Helper()
	n := p.Buffers
	if n == 0 {
		n = 8192
	}
	pool, err := packet.NewPool("porttest", n)
	if err != nil {
		t.Fatal(err)
	}
	pa, pb := p.Open(t, pool)
	e := &env{p: p, pool: pool}
	e.a, e.b = newEnd(e, "A", pa), newEnd(e, "B", pb)
	e.a.peer, e.b.peer = e.b, e.a
	err = w.do(func() error {
		for _, x := range e.ends() {
			if err := x.start(); err != nil {
				return err
			}
		}
		return e.until("both links are up", e.up)
	})
	if err != nil {
		t.Fatalf("%v: A %+v %v, B %+v %v", err, pa.Link(), pa.Why(), pb.Link(), pb.Why())
	}
	return e
}

func (e *env) up() bool { return e.a.port.Link().Up && e.b.port.Link().Up }
