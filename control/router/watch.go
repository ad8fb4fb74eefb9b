package router

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/pipeline/graph"
	"millrace/pipeline/trace"
)

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// lookAgain is how often a stream looks whether it has all it was asked for.
const lookAgain = 20 * time.Millisecond

// filterFor compiles the filter of a request, and checks its ports.
func (r *Router) filterFor(expr string, ports []string) (*trace.Filter, error) {
	f, err := trace.NewFilter(expr)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	for _, p := range ports {
		if r.named(p) == nil {
			return nil, fmt.Errorf("%w: no port %s", api.ErrNotFound, p)
		}
	}
	return f, nil
}

// watch adds a hook and returns what takes it away, unless the pipeline is gone by then.
func (r *Router) watch(h graph.Hook) func() {
	stop := r.pipe.Watch(h)
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.pipe != nil {
			stop()
		}
	}
}

// Trace implements api.Backend.
func (r *Router) Trace(ctx context.Context, q *v1.TraceRequest, send func(*v1.TracedPacket) error) error {
	unlock, err := r.running()
	if err != nil {
		return err
	}
	f, err := r.filterFor(q.Filter, q.Ports)
	if err != nil {
		unlock()
		return err
	}
	count := int(q.Count)
	if count == 0 {
		count = math.MaxInt
	}
	packets := make(chan trace.Packet, 1024)
	t := trace.NewTracer(trace.TraceOptions{Filter: f, Count: count, Drops: q.Drops, Ports: q.Ports}, func(p trace.Packet) {
		select {
		case packets <- p:
		default: // the reader is slow
		}
	})
	stop := r.watch(t)
	unlock()
	defer stop()
	tick := time.NewTicker(lookAgain)
	defer tick.Stop()
	for sent := 0; sent < count; {
		select {
		case p := <-packets:
			if err := send(traced(&p)); err != nil {
				return err
			}
			sent++
		case <-ctx.Done():
			return ctx.Err()
		case <-r.done:
			return nil
		case <-tick.C:
		}
	}
	return nil
}

func traced(p *trace.Packet) *v1.TracedPacket {
	x := &v1.TracedPacket{TimeUnixNs: p.At.UnixNano(), Worker: uint32(p.Worker), From: p.From, Length: uint32(p.Length), Summary: p.Summary}
	for _, s := range p.Steps {
		x.Lines = append(x.Lines, &v1.TraceLine{Stage: s.Stage, Text: s.Text})
	}
	x.Fate = p.Fate()
	if p.Reason != 0 {
		x.Fate += " " + p.Reason.String()
		x.Doc = p.Reason.Info().Doc
	}
	return x
}

// sentCapture is a capture that also sees what is sent.
type sentCapture struct{ *trace.Capture }

// watchSent has all workers show what they send to the captures that want it.
func (r *Router) watchSent() {
	list := slices.Clone(r.captures)
	for _, w := range r.pipe.Workers() {
		w.Do(func() {
			w.OnTx = nil
			if len(list) == 0 {
				return
			}
			t := w.Tables
			w.OnTx = func(port uint16, pkts []uint32) {
				dev := t.Ports[port&(graph.MaxPorts-1)]
				if dev == nil {
					return
				}
				for _, c := range list {
					c.Sent(dev.Name(), pkts)
				}
			}
		})
	}
}

// chunks is the writer of a capture: it counts packets and hands pieces of the file to the stream.
type chunks struct {
	out chan []byte
	end <-chan struct{}
}

func (c *chunks) Write(b []byte) (int, error) {
	select {
	case c.out <- slices.Clone(b):
		return len(b), nil
	case <-c.end:
		return 0, context.Canceled
	}
}

// Capture implements api.Backend.
func (r *Router) Capture(ctx context.Context, q *v1.CaptureRequest, send func(*v1.CaptureChunk) error) error {
	switch q.Direction {
	case "", "rx", "tx":
	default:
		return fmt.Errorf("%w: direction %q: rx or tx", api.ErrInvalid, q.Direction)
	}
	unlock, err := r.running()
	if err != nil {
		return err
	}
	f, err := r.filterFor(q.Filter, q.Ports)
	if err != nil {
		unlock()
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := &chunks{make(chan []byte, 16), ctx.Done()}
	c, err := trace.NewCapture(trace.CaptureOptions{Filter: f, Drops: q.Drops, Count: int(q.Count), Snap: int(q.Snaplen), Ports: q.Ports,
		Direction: q.Direction}, out)
	if err != nil {
		unlock()
		return err
	}
	stop := r.watch(c)
	sc := &sentCapture{c}
	r.captures = append(r.captures, sc)
	r.watchSent()
	unlock()
	var ended atomic.Bool
	go func() {
		// Until all is taken or nobody wants it; then the rest of the queue is written.
		for !c.Done() && ctx.Err() == nil {
			select {
			case <-time.After(lookAgain):
			case <-ctx.Done():
			case <-r.done:
				cancel()
			}
		}
		stop()
		r.mu.Lock()
		r.captures = slices.DeleteFunc(r.captures, func(o *sentCapture) bool { return o == sc })
		if r.pipe != nil {
			r.watchSent()
		}
		r.mu.Unlock()
		c.Close()
		ended.Store(true)
		close(out.out)
	}()
	defer func() {
		cancel()
		for range out.out { // until the writer has ended
		}
	}()
	for {
		select {
		case b, more := <-out.out:
			if !more {
				return ctx.Err()
			}
			if err := send(&v1.CaptureChunk{Data: b, Packets: c.Written.Load(), Lost: c.Missed.Load()}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
