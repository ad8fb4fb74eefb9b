package trace

import (
	"io"
	"sync"
	"sync/atomic"
	"time"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// CaptureOptions say what to capture.
type CaptureOptions struct {
	Filter *Filter
	Drops  bool // only dropped packets, each with the reason as its comment
	Count  int  // stop after so many packets; 0 for no limit
	Snap   int  // bytes of each packet to keep; 0 for all
	Ports  []string
	// Direction is "rx" for what ports receive, "tx" for what they send, "" for both. What is sent is
	// given to Sent.
	Direction string
}

// Capture is a hook that writes packets as pcapng: as received, or as dropped.
//
// Frames are copied on the worker's thread into a bounded queue; what does not fit is
// counted in Missed, and no packet waits for the writer.
type Capture struct {
	o      CaptureOptions
	queue  chan frame
	left   atomic.Int64
	Missed atomic.Uint64
	// Written counts the packets in the file so far.
	Written atomic.Uint64
	once    sync.Once
	done    chan struct{}
}

type frame struct {
	data    []byte
	length  int
	from    string
	comment string
	at      time.Time
}

// captureQueue bounds the frames waiting for the writer.
const captureQueue = 4096

// NewCapture starts to write to out; Close ends it.
func NewCapture(o CaptureOptions, out io.Writer) (*Capture, error) {
	c := &Capture{o: o, queue: make(chan frame, captureQueue), done: make(chan struct{})}
	c.left.Store(int64(o.Count))
	if o.Count == 0 {
		c.left.Store(1 << 62)
	}
	if o.Snap == 0 {
		c.o.Snap = 1 << 17
	}
	w, err := newWriter(out)
	if err != nil {
		return nil, err
	}
	go func() {
		defer close(c.done)
		failed := false
		for f := range c.queue {
			if failed {
				continue
			}
			if err := w.write(f); err != nil {
				failed = true
				c.left.Store(0)
			} else {
				c.Written.Add(1)
			}
			if len(c.queue) == 0 {
				w.flush()
			}
		}
		w.flush()
	}()
	return c, nil
}

// Done reports whether the packets asked for have been taken, or the reader went away.
func (c *Capture) Done() bool { return c.left.Load() <= 0 }

// Close ends the capture, after the hook was taken off the workers.
func (c *Capture) Close() {
	c.once.Do(func() { close(c.queue) })
	<-c.done
}

// Begin captures what is received.
func (c *Capture) Begin(w *graph.Worker, v *graph.Vector, from string) {
	// Lanes that are filled already: packets that went on after a hold, or were made here.
	if c.o.Drops || c.o.Direction == "tx" || v.N4+v.N6 > 0 || !c.wants(from) {
		return
	}
	for i := range v.N {
		c.take(v.Mbuf(uint8(i)), from, "")
	}
}

// Sent captures what a worker is about to send by a port: see graph.Worker.OnTx.
func (c *Capture) Sent(port string, pkts []uint32) {
	if c.o.Drops || c.o.Direction == "rx" || !c.wants(port) {
		return
	}
	for _, i := range pkts {
		c.take(packet.At(i), port, "")
	}
}

// After does nothing.
func (c *Capture) After(*graph.Worker, *graph.Vector, *graph.Stage) {}

// End captures what was dropped.
func (c *Capture) End(w *graph.Worker, v *graph.Vector) {
	if !c.o.Drops {
		return
	}
	for j := range v.NX {
		i, why := v.XPos[uint8(j)], v.XCode[uint8(j)]
		x := why.Info()
		if x.Kind != graph.Drop {
			continue
		}
		from := (*w.Tables.Names.Load())[v.In[i]]
		if c.wants(from) {
			c.take(v.Mbuf(i), from, why.String()+": "+x.Doc)
		}
	}
}

func (c *Capture) wants(from string) bool {
	if len(c.o.Ports) == 0 {
		return true
	}
	for _, p := range c.o.Ports {
		if p == from {
			return true
		}
	}
	return false
}

func (c *Capture) take(m *packet.Mbuf, from, comment string) {
	if !c.o.Filter.Match(m, -1) || c.left.Add(-1) < 0 {
		return
	}
	b := make([]byte, min(int(m.PktLen), c.o.Snap))
	m.CopyOut(0, b)
	select {
	case c.queue <- frame{b, int(m.PktLen), from, comment, time.Now()}:
	default:
		c.Missed.Add(1)
	}
}
