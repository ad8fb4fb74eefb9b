// Package pipeline is the road that packets take, and the workers that take them
// down it.
//
// path.go lists the stages in their order. Each Worker is a polling loop on its own
// core with its own instances of all stages; workers share nothing but read-only
// tables. A port's receive queues are dealt out to the workers; a worker without a queue of
// a port hands what it has for the port to one that has.
package pipeline

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/clock"
	"millrace/internal/epoch"
	"millrace/internal/ring"
	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// tickPeriod is about how often Tickers are called.
const tickPeriod = time.Millisecond

// Options of a pipeline.
type Options struct {
	Pool   *packet.Pool
	Tables *graph.Tables
	Epoch  *epoch.Domain
	Path   Path
	// Cores to pin one worker to each; empty for one worker that is not pinned.
	Cores []int
	Poll  Poll
	Spin  time.Duration // how long an adaptive worker polls without packets before it sleeps; 0 for DefaultSpin
	Sleep time.Duration // longest sleep of an adaptive worker; 0 for DefaultSleep
	Burst int           // packets a vector, 1 to 256; 0 for 256
}

// Pipeline is a set of workers with their ports.
type Pipeline struct {
	opt     Options
	workers []*Worker
	nowhere *graph.TxBuf

	mu     sync.Mutex // guards what follows and all changes of ports
	ports  [graph.MaxPorts]*portState
	closed bool
}

type portState struct {
	port   pmd.Port
	host   bool
	inputs map[*Worker][]*input
}

// New makes a pipeline and starts its workers, without ports.
func New(o Options) (*Pipeline, error) {
	if o.Burst == 0 {
		o.Burst = graph.VectorSize
	}
	if o.Spin == 0 {
		o.Spin = DefaultSpin
	}
	if o.Sleep == 0 {
		o.Sleep = DefaultSleep
	}
	cores := o.Cores
	if len(cores) == 0 {
		cores = []int{-1}
	}
	p := &Pipeline{opt: o, nowhere: &graph.TxBuf{Q: nowhere{}, Kind: graph.TxNone}}
	// The runtime needs threads beside those that never yield.
	if need := len(cores) + 2; runtime.GOMAXPROCS(0) < need {
		runtime.GOMAXPROCS(need)
	}
	for i, core := range cores {
		w, err := p.newWorker(i, core)
		if err == nil {
			p.workers = append(p.workers, w)
			ready := make(chan error)
			go w.loop(ready)
			err = <-ready
		}
		if err != nil {
			p.Close()
			return nil, fmt.Errorf("pipeline: worker %d on core %d: %w", i, core, err)
		}
	}
	return p, nil
}

func (p *Pipeline) newWorker(id, core int) (*Worker, error) {
	w := &Worker{core: core, p: p, todo: make(chan func(), 64), done: make(chan struct{}), size: p.opt.Burst}
	c, err := graph.NewCounters()
	if err != nil {
		return nil, err
	}
	fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	w.wakeFd, w.slot = fd, p.opt.Epoch.NewSlot()
	w.tickEvery, w.spin = clock.FromDuration(tickPeriod), clock.FromDuration(p.opt.Spin)
	w.Worker = graph.Worker{
		ID: id, Base: packet.Base(), Cache: p.opt.Pool.NewCache(), Tables: p.opt.Tables, C: c, Now: clock.Ticks(),
		Instances: map[string]graph.Runner{},
	}
	for i := range w.Tx {
		w.Tx[i] = p.nowhere
	}
	if err := w.build(p.opt.Path); err != nil {
		return nil, err
	}
	w.pollSet()
	return w, nil
}

// build makes the worker's instances of the path.
func (w *Worker) build(path Path) error {
	var made []*graph.Stage
	for _, st := range slices.Concat(path.Exits, path.Stages) {
		r := st.New(&w.Worker)
		w.Instances[st.Name] = r
		made = append(made, st)
		if t, ok := r.(graph.Ticker); ok {
			w.tickers = append(w.tickers, t)
		}
	}
	for _, st := range path.Stages {
		if len(w.road) == graph.MaxStages {
			return fmt.Errorf("more than %d stages", graph.MaxStages)
		}
		w.road = append(w.road, step{w.Instances[st.Name], st.Lane, &w.C.Stage[len(w.road)], st})
		if st.On != nil {
			w.turned = append(w.turned, turn{on: st.On})
		}
	}
	w.steps = make([]step, 0, len(w.road))
	for _, st := range made {
		s, ok := w.Instances[st.Name].(graph.Source)
		if !ok {
			continue
		}
		at, err := path.resume(st)
		if err != nil {
			return err
		}
		w.refill = append(w.refill, source{s, at, at, st.Name})
	}
	for r, info := range graph.Reasons() {
		if info.To == "" {
			continue
		}
		if t, ok := w.Instances[info.To].(graph.Taker); ok {
			w.Takers[r] = t
		} else if info.Kind == graph.Hold && path.gives(graph.Reason(r)) {
			return fmt.Errorf("reason %s/%s needs the exit stage %q, which is not in the path", info.Stage, info.Name, info.To)
		}
	}
	w.lay()
	return nil
}

// Workers lists the workers.
func (p *Pipeline) Workers() []*Worker { return p.workers }

// Path is the path that the workers run.
func (p *Pipeline) Path() Path { return p.opt.Path }

// AddPort gives a port's queues to the workers, which poll them from now on, and returns
// its index. iface is the interface that its packets come in by, whose entry in
// Tables.Ifaces gets the port index here.
func (p *Pipeline) AddPort(port pmd.Port, iface uint16) (uint16, error) {
	return p.add(port, iface, 0)
}

// AddTap adds the TAP that shows a port to the kernel: what the road has for the host on the
// port goes there, and what the kernel sends by the TAP leaves by the port as it is.
func (p *Pipeline) AddTap(tap pmd.Port, port uint16) (uint16, error) {
	idx, err := p.add(tap, 0, port)
	if err == nil {
		p.opt.Tables.Taps[port] = idx
	}
	return idx, err
}

// add adds a port of an interface, or with iface 0 the TAP of the port with index of.
func (p *Pipeline) add(port pmd.Port, iface, of uint16) (uint16, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, errors.New("pipeline: closed")
	}
	idx := 1
	for idx < len(p.ports) && p.ports[idx] != nil {
		idx++
	}
	if idx == len(p.ports) {
		return 0, fmt.Errorf("pipeline: port %s: more than %d ports", port.Name(), len(p.ports)-1)
	}
	ps := &portState{port: port, host: iface == 0, inputs: map[*Worker][]*input{}}
	p.ports[idx] = ps
	t := p.opt.Tables
	t.Ports[idx] = port
	if iface != 0 {
		t.Ifaces[iface].Port = uint16(idx)
	}
	nq := port.Caps().Queues
	owners := make([]*Worker, nq)
	var err error
	for q := range nq {
		w := p.workers[q%len(p.workers)]
		owners[q] = w
		in := &input{q: port.Queue(q), port: uint16(idx), iface: iface, name: port.Name(), host: iface == 0}
		if in.host {
			in.port = of
		}
		ps.inputs[w] = append(ps.inputs[w], in)
		w.Do(func() {
			if err = in.q.Start(w.Cache); err == nil {
				w.addInput(in)
			}
		})
		if err != nil {
			p.removeLocked(uint16(idx))
			return 0, fmt.Errorf("pipeline: port %s queue %d: %w", port.Name(), q, err)
		}
	}
	kind := graph.TxWire
	if ps.host {
		kind = graph.TxHost
	}
	for _, w := range p.workers {
		b := &graph.TxBuf{Kind: kind, Segments: port.Caps().Segments}
		if own := ps.inputs[w]; own != nil {
			b.Q = own[0].q
		} else {
			o := owners[w.ID%nq]
			h := &handoff{ring.New(handoffSize), o}
			in := &input{q: h, port: uint16(idx), name: port.Name() + " from worker"}
			ps.inputs[o] = append(ps.inputs[o], in)
			o.Do(func() { o.addInput(in) })
			b.Q, b.Kind = h, graph.TxHandoff
		}
		w.Do(func() { w.Tx[idx] = b })
	}
	return uint16(idx), nil
}

func (w *Worker) addInput(in *input) {
	w.inputs = append(w.inputs, in)
	w.pollSet()
}

// RemovePort takes a port's queues from the workers; the port can be closed then.
func (p *Pipeline) RemovePort(idx uint16) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.removeLocked(idx)
}

func (p *Pipeline) removeLocked(idx uint16) {
	ps := p.ports[idx]
	if ps == nil {
		return
	}
	t := p.opt.Tables
	t.Taps[idx] = 0
	for i := range t.Taps {
		if t.Taps[i] == idx {
			t.Taps[i] = 0
		}
	}
	// First nobody sends to it any more, then nobody polls it.
	for _, w := range p.workers {
		w.Do(func() { w.Tx[idx] = p.nowhere })
	}
	for w, ins := range ps.inputs {
		w.Do(func() {
			w.inputs = slices.DeleteFunc(w.inputs, func(in *input) bool {
				if !slices.Contains(ins, in) {
					return false
				}
				in.q.Stop()
				return true
			})
			w.pollSet()
		})
	}
	t.Ports[idx] = nil
	p.ports[idx] = nil
}

// Ports are the ports by index.
func (p *Pipeline) Ports() map[uint16]pmd.Port {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := map[uint16]pmd.Port{}
	for i, ps := range p.ports {
		if ps != nil {
			m[uint16(i)] = ps.port
		}
	}
	return m
}

// Close stops the workers. Ports are the caller's to close.
func (p *Pipeline) Close() {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return
	}
	p.closed = true
	for i := range p.ports {
		p.removeLocked(uint16(i))
	}
	p.mu.Unlock()
	for _, w := range p.workers {
		w.Do(func() { w.stopped = true })
		<-w.done
		w.Cache.Close()
	}
}

// Account is where all packets are: see graph.Counters for the law.
type Account struct {
	Received, FromHost, Created uint64
	Sent, ToHost, Dropped       uint64
	Held                        map[string]int // by stage or port: packets on their way
	Pools                       []PoolAccount
}

// PoolAccount says where a pool's buffers are.
type PoolAccount struct {
	Name             string
	Size, Free, Lost int
	Ports            map[string]int // in the hands of drivers, empty or full
}

// Missing is the number of packets that came in or were made and are nowhere: 0 unless there is a bug.
func (a *Account) Missing() int64 {
	held := 0
	for _, n := range a.Held {
		held += n
	}
	return int64(a.Received + a.FromHost + a.Created - a.Sent - a.ToHost - a.Dropped - uint64(held))
}

// Leaks reports whether any packet or buffer is unaccounted for.
func (a *Account) Leaks() bool {
	for _, p := range a.Pools {
		if p.Lost != 0 {
			return true
		}
	}
	return a.Missing() != 0
}

// pause holds all workers between two rounds while f runs.
func (p *Pipeline) pause(f func()) {
	var arrived, left sync.WaitGroup
	release := make(chan struct{})
	for _, w := range p.workers {
		arrived.Add(1)
		left.Add(1)
		go func() {
			defer left.Done()
			in := false
			w.Do(func() {
				in = true
				arrived.Done()
				<-release
			})
			if !in { // it has stopped
				arrived.Done()
			}
		}()
	}
	arrived.Wait()
	f()
	close(release)
	left.Wait()
}

// Account counts every packet and buffer, with the workers halted for some microseconds.
func (p *Pipeline) Account() (a Account) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pause(func() { a = p.account() })
	return a
}

// account is Account while no worker runs.
func (p *Pipeline) account() Account {
	a := Account{Held: map[string]int{}}
	infos := graph.Reasons()
	pool := PoolAccount{Name: p.opt.Pool.Name(), Size: p.opt.Pool.Size(), Ports: map[string]int{}}
	for _, w := range p.workers {
		a.Received += w.C.Received
		a.FromHost += w.C.FromHost
		a.Created += w.C.Created
		a.Sent += w.C.Sent
		a.ToHost += w.C.ToHost
		for r := range infos {
			if infos[r].Kind == graph.Drop {
				a.Dropped += w.C.Exit[r]
			}
		}
		for _, s := range w.refill {
			if n := s.Held(); n != 0 {
				a.Held[s.name] += n
			}
		}
		for _, in := range w.inputs {
			n := in.q.Held()
			if _, ok := in.q.(*handoff); ok {
				a.Held["handoff"] += n
			} else {
				pool.Ports[in.name] += n
			}
		}
	}
	pool.Free = p.opt.Pool.Free()
	pool.Lost = pool.Size - pool.Free
	for _, n := range pool.Ports {
		pool.Lost -= n
	}
	for _, n := range a.Held {
		pool.Lost -= n
	}
	a.Pools = []PoolAccount{pool}
	return a
}

// Drops sums the exits of all workers by reason; index is the graph.Reason.
func (p *Pipeline) Drops() []uint64 {
	n := make([]uint64, len(graph.Reasons()))
	for _, w := range p.workers {
		for r := range n {
			n[r] += w.C.Exit[r]
		}
	}
	return n
}
