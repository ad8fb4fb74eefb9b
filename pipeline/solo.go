package pipeline

import (
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// Solo is a worker that the caller drives, round by round, on its own thread: for benchmarks and
// tests that need to know exactly what ran.
type Solo struct {
	*Worker
	n   uint16
	all []step
}

// NewSolo makes a worker that does not run by itself. Options.Cores and Poll do not count.
func NewSolo(o Options) (*Solo, error) {
	if o.Burst == 0 {
		o.Burst = graph.VectorSize
	}
	o.Poll = Busy
	p := &Pipeline{opt: o, nowhere: &graph.TxBuf{Q: nowhere{}, Kind: graph.TxNone}}
	w, err := p.newWorker(0, -1)
	if err != nil {
		return nil, err
	}
	p.workers = []*Worker{w}
	w.slot.Online()
	return &Solo{w, 0, w.road}, nil
}

// AddPort gives queue 0 of a port to the worker; see Pipeline.AddPort.
func (s *Solo) AddPort(port pmd.Port, iface uint16) (uint16, error) {
	s.n++
	q := port.Queue(0)
	if err := q.Start(s.Cache); err != nil {
		return 0, err
	}
	s.Tables.Ports[s.n] = port
	s.Tables.Ifaces[iface].Port = s.n
	s.Tx[s.n] = &graph.TxBuf{Q: q, Segments: port.Caps().Segments}
	s.addInput(&input{q: q, port: s.n, iface: iface, name: port.Name()})
	return s.n, nil
}

// Round polls all inputs once and returns how many packets it took.
func (s *Solo) Round() int {
	before := s.C.Received
	s.slot.Quiesce()
	s.round()
	return int(s.C.Received - before)
}

// RoundBare is Round for the first input without all that surrounds the stages in a worker: no clock, no
// epoch, no counters of stages, no hooks, no sources. What Round takes longer is the price of those.
func (s *Solo) RoundBare() int {
	in, v := s.inputs[0], &s.vec
	n := in.q.Rx(v.Idx[:s.size])
	if n == 0 {
		return 0
	}
	begin(v, in.iface, n)
	for k := range s.steps {
		if st := &s.steps[k]; st.packets(v) != 0 {
			st.run.Run(v)
		}
	}
	if v.NX != 0 {
		s.Settle(v)
	}
	return n
}

// Use takes out of the road the stages for which f is false, until the next Use. It is for traffic that no
// stage holds: where held packets go on is not adapted.
func (s *Solo) Use(f func(stage string) bool) {
	s.steps = nil
	for _, st := range s.all {
		if st.on() && f(st.st.Name) {
			s.steps = append(s.steps, st)
		}
	}
}

// Account counts every packet and buffer.
func (s *Solo) Account() Account { return s.p.account() }

// SetBurst changes the largest vector.
func (s *Solo) SetBurst(n int) { s.size = n }

// SetMeasure switches the clocks of each stage.
func (s *Solo) SetMeasure(on bool) { s.measure, s.watched = on, on || len(s.hooks) != 0 }

// AddHook makes a hook see all vectors.
func (s *Solo) AddHook(h graph.Hook) { s.hooks, s.watched = append(s.hooks, h), true }

// Stages are the names of the whole road's stages, in the order of their counters.
func (s *Solo) Stages() (names []string) {
	for _, st := range s.all {
		names = append(names, st.st.Name)
	}
	return names
}

// Close ends the worker and its ports' queues.
func (s *Solo) Close() {
	s.close()
	s.slot.Offline()
	s.Cache.Close()
}
