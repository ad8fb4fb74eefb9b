package pipeline

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"millrace/internal/clock"
	"millrace/internal/epoch"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// Worker is one polling loop, pinned to a core.
type Worker struct {
	graph.Worker
	core int // CPU number, -1 for not pinned
	p    *Pipeline
	slot *epoch.Slot

	inputs  []*input
	road    []step // of all stages
	steps   []step // of those that are switched on
	entry   int    // step behind classify: where Again goes on
	turned  []turn // stages that can be switched
	refill  []source
	tickers []graph.Ticker
	hooks   []graph.Hook
	measure bool
	watched bool // hooks or measure

	tickEvery, nextTick uint64
	idleSince           uint64 // ticks; 0 while there is work
	worked              bool   // the last round found packets

	todo    chan func() // between rounds, by Do
	asked   atomic.Bool // todo may hold something
	asleep  atomic.Bool
	wakeFd  int
	poll    []unix.PollFd // the wake descriptor, then one of each input that has one
	spin    uint64        // ticks without packets before the worker sleeps
	stopped bool
	done    chan struct{}

	size int // packets a burst, VectorSize but for tests
	vec  graph.Vector
}

// step is one stage in a worker's road.
type step struct {
	run  graph.Runner
	lane graph.Lane
	c    *graph.StageCount
	st   *graph.Stage
}

// packets is the number of packets in the stage's lane.
func (s *step) packets(v *graph.Vector) int {
	switch s.lane {
	case graph.IPv4:
		return v.N4
	case graph.IPv6:
		return v.N6
	case graph.Options:
		return v.N4 * b2i(v.Opts)
	}
	return v.N
}

// on: the stage is on the road.
func (s *step) on() bool { return s.st.On == nil || s.st.On.Load() }

// turn is a switch of a stage, as it was when the road was laid.
type turn struct {
	on  *atomic.Bool
	was bool
}

// source is a Source with the step at which its packets go on.
type source struct {
	graph.Source
	step int // of the whole road
	at   int // the same of the steps that are switched on
	name string
}

// input is a receive queue that a worker polls.
type input struct {
	q     pmd.Queue
	port  uint16
	iface uint16
	name  string
	// host is set for the host's face of a port: what the kernel sends goes out
	// by the port as it is.
	host bool
}

// loop runs until stopped. It never allocates while it forwards.
func (w *Worker) loop(ready chan<- error) {
	runtime.LockOSThread()
	if w.core >= 0 {
		var set unix.CPUSet
		set.Set(w.core)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			ready <- err
			close(w.done)
			return
		}
	}
	ready <- nil
	w.slot.Online()
	for !w.stopped {
		w.slot.Quiesce()
		w.round()
	}
	w.close()
	w.slot.Offline()
	close(w.done)
	// The thread's affinity is changed: let it end with the goroutine.
}

// round polls every input once.
func (w *Worker) round() {
	now := clock.Ticks()
	if w.worked {
		w.C.Busy += now - w.Now
	}
	w.Now = now
	for k := range w.turned {
		if t := &w.turned[k]; t.on.Load() != t.was {
			w.lay()
			break
		}
	}
	got := 0
	for _, in := range w.inputs {
		v := &w.vec
		n := in.q.Rx(v.Idx[:w.size])
		if n == 0 {
			continue
		}
		got += n
		w.receive(in, n)
	}
	// What stages parked goes on in the same round, so that what it refers to cannot be freed.
	for k := 0; w.Wake && k < maxRefills; k++ {
		w.Wake = false
		n := w.sources()
		got += n
		if n == 0 {
			break
		}
	}
	if w.ND != 0 {
		w.Flush()
	}
	if w.asked.Load() {
		w.obey()
	}
	w.C.Rounds++
	if w.Now >= w.nextTick {
		w.tick()
	}
	if w.worked = got != 0; w.worked {
		w.idleSince = 0
		return
	}
	w.C.Idle++
	if w.p.opt.Poll == Adaptive {
		w.rest()
	}
}

// lay makes the road of the stages that are switched on. It does not allocate.
func (w *Worker) lay() {
	for k := range w.turned {
		w.turned[k].was = w.turned[k].on.Load()
	}
	var at [graph.MaxStages + 1]int // by step of the whole road
	w.steps = w.steps[:0]
	for k := range w.road {
		at[k] = len(w.steps)
		if st := &w.road[k]; st.on() {
			w.steps = append(w.steps, *st)
		}
	}
	at[len(w.road)] = len(w.steps)
	w.entry = at[min(1, len(w.road))]
	for k := range w.refill {
		w.refill[k].at = at[w.refill[k].step]
	}
}

// receive takes n packets, which lie in the vector's Idx, down the road.
func (w *Worker) receive(in *input, n int) {
	v := &w.vec
	if in.iface == 0 {
		w.pass(in, v.Idx[:n])
		return
	}
	begin(v, in.iface, n)
	w.C.Received += uint64(n)
	if w.watched {
		w.begin(v, in.name)
	}
	w.run(v, 0)
}

// begin makes a vector of the first n packets in v.Idx, which came in by iface.
func begin(v *graph.Vector, iface uint16, n int) {
	v.N, v.N4, v.N6, v.NX, v.NA, v.Moved, v.Opts, v.Marks, v.From = n, 0, 0, 0, 0, false, false, false, iface
	// The input interface of all positions, four by one store.
	four := uint64(iface) * 0x0001_0001_0001_0001
	for i := 0; i < n; i += 4 {
		*(*uint64)(unsafe.Pointer(&v.In[uint8(i)])) = four
	}
}

// pass sends what does not go down the road: the kernel's own packets from a TAP, or
// packets that another worker hands over.
func (w *Worker) pass(in *input, idx []uint32) {
	if in.host {
		w.C.FromHost += uint64(len(idx))
	}
	for _, x := range idx {
		w.Send(in.port, x)
	}
	w.Flush()
}

// run takes the vector down the road from a step on, round again as often as
// decapsulation asks, and settles what left.
func (w *Worker) run(v *graph.Vector, from int) {
	for rounds := 0; ; rounds++ {
		if w.watched {
			w.runWatched(v, from)
		} else {
			for s := from; s < len(w.steps); s++ {
				st := &w.steps[s]
				k := st.packets(v)
				if k == 0 {
					continue
				}
				st.c.Calls++
				st.c.Packets += uint64(k)
				st.run.Run(v)
			}
		}
		if v.NX != 0 {
			if w.watched {
				w.end(v)
			}
			w.Settle(v)
		}
		if v.NA == 0 {
			break
		}
		w.again(v, rounds)
		from = w.entry
	}
	if w.ND != 0 {
		w.Flush()
	}
}

// maxRefills bounds how often sources are asked in one round: more vectors than any of
// them holds packets that keep an adjacency.
const maxRefills = 32

// maxAgain bounds how often a packet goes round: tunnels within tunnels.
const maxAgain = 8

var xLoop = graph.NewReason(graph.ReasonInfo{Stage: "road", Name: "too-many-rounds",
	Doc: "The packet was decapsulated more than eight times: tunnels inside tunnels, or a loop."})

// again puts the positions that go round once more into their lanes.
func (w *Worker) again(v *graph.Vector, rounds int) {
	n := v.NA
	v.N4, v.N6, v.NX, v.NA = 0, 0, 0, 0
	v.Moved, v.Opts, v.From = true, false, 0
	for j := range n {
		i := v.APos[uint8(j)]
		if rounds == maxAgain {
			v.Exit(i, xLoop)
		} else if !v.Join(i) {
			v.Exit(i, xVersion)
		}
	}
}

// sources takes what stages parked on along the road.
func (w *Worker) sources() (got int) {
	v := &w.vec
	for k := range w.refill {
		s := &w.refill[k]
		v.Reset()
		n := s.Refill(v)
		if n == 0 {
			continue
		}
		got += n
		if n == graph.VectorSize {
			w.Wake = true
		}
		if w.watched {
			w.begin(v, s.name)
		}
		w.run(v, s.at)
	}
	return got
}

// tick gives time to the stages that need it, about once a millisecond.
func (w *Worker) tick() {
	w.nextTick = w.Now + w.tickEvery
	for _, t := range w.tickers {
		t.Tick()
	}
	w.sources()
	if w.ND != 0 {
		w.Flush()
	}
}

// Do runs f on the worker's thread, between two rounds, and returns when it is done.
// It must not be called from the worker's own thread.
func (w *Worker) Do(f func()) {
	fin := make(chan struct{})
	select {
	case w.todo <- func() { f(); close(fin) }:
	case <-w.done:
		return
	}
	w.asked.Store(true)
	w.wakeUp()
	select {
	case <-fin:
	case <-w.done:
	}
}

func (w *Worker) obey() {
	w.asked.Store(false)
	for {
		select {
		case f := <-w.todo:
			f()
		default:
			return
		}
	}
}

// wakeUp ends the worker's sleep, if it sleeps.
func (w *Worker) wakeUp() {
	if w.asleep.Load() {
		one := [8]byte{1}
		unix.Write(w.wakeFd, one[:])
	}
}

// close gives back everything the worker holds.
func (w *Worker) close() {
	w.obey()
	for _, s := range w.refill {
		s.Flush()
	}
	if w.ND != 0 {
		w.Flush()
	}
	for _, in := range w.inputs {
		in.q.Stop()
	}
	w.inputs = nil
	for i := range w.Tx {
		w.Tx[i] = w.p.nowhere
	}
	unix.Close(w.wakeFd)
}

// Core is the CPU that the worker is pinned to, -1 for none.
func (w *Worker) Core() int { return w.core }
