package mem

import (
	"hash/fnv"
	"sync"
	"sync/atomic"

	"millrace/internal/ring"
	"millrace/pmd"
)

func init() {
	pmd.Register(pmd.Driver{
		Name: "mem",
		Doc:  "a wire in memory: the two ports that name the same wire in socket are joined",
		Open: open,
	})
}

// Options are those of both ends of a wire. Zero values choose.
type Options struct {
	Queues int // of each port; 1
	Ring   int // packets each ring holds, rounded up to a power of two; 1024
	MTU    int // bytes of L3; 1500
	MAC    [2]pmd.MAC
}

// MaxFrame is the largest frame of a port in memory, in bytes.
const MaxFrame = 65535

// maxSegments is the longest chain: 64 bytes in each segment of the largest frame.
const maxSegments = 1024

// wire is what two ports share.
type wire struct {
	up atomic.Bool
	mu sync.Mutex // Start and Stop of both ends' queues exclude each other
}

// Port is one end of a wire.
type Port struct {
	name   string
	mac    pmd.MAC
	mtu    atomic.Int32
	wire   *wire
	peer   *Port
	queues []*queue
	tally  *pmd.Tally
	socket string // the wire's name in the configuration
	closed sync.Once
}

// Pair makes two ports joined by a wire. The link is up.
func Pair(a, b string, o Options) (*Port, *Port) {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.Ring == 0 {
		o.Ring = 1024
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	w := &wire{}
	w.up.Store(true)
	x, y := newPort(a, w, o, 0), newPort(b, w, o, 1)
	x.peer, y.peer = y, x
	for i := range x.queues {
		p, q := x.queues[i], y.queues[i]
		p.peer, q.peer = q, p
		p.tx, q.tx = &q.rx, &p.rx
	}
	return x, y
}

func newPort(name string, w *wire, o Options, end int) *Port {
	p := &Port{name: name, wire: w, mac: o.MAC[end]}
	if p.mac == (pmd.MAC{}) {
		p.mac = nameMAC(name)
	}
	p.mtu.Store(int32(o.MTU))
	var err error
	if p.tally, err = pmd.NewTally(o.Queues); err != nil {
		panic(err) // no memory for a few counters
	}
	for i := range o.Queues {
		q := &queue{c: p.tally.Queue(i), wire: w}
		q.rx.r, q.rx.efd = ring.New(o.Ring), -1
		p.queues = append(p.queues, q)
	}
	return p
}

// nameMAC is a locally administered address that follows from the name.
func nameMAC(name string) pmd.MAC {
	h := fnv.New64a()
	h.Write([]byte(name))
	s := h.Sum64()
	return pmd.MAC{0x02, byte(s), byte(s >> 8), byte(s >> 16), byte(s >> 24), byte(s >> 32)}
}

func (p *Port) Name() string          { return p.name }
func (p *Port) Driver() string        { return "mem" }
func (p *Port) Queue(i int) pmd.Queue { return p.queues[i] }

func (p *Port) Why() []string {
	waitMu.Lock() // an end that waits for its port gets its name late
	defer waitMu.Unlock()
	return []string{"joined in memory with " + p.peer.name}
}

func (p *Port) Caps() pmd.Caps {
	return pmd.Caps{Queues: len(p.queues), Segments: maxSegments, MaxFrame: MaxFrame, Mode: "memory"}
}

func (p *Port) Link() pmd.Link {
	return pmd.Link{Up: p.wire.up.Load(), MTU: int(p.mtu.Load()), MAC: p.mac}
}

// SetLink takes the wire down, or up again, for both ends. Packets in its rings still
// arrive; those sent while it is down are refused.
func (p *Port) SetLink(up bool) { p.wire.up.Store(up) }

// SetMTU changes the MTU that Link reports for this end.
func (p *Port) SetMTU(n int) { p.mtu.Store(int32(n)) }

func (p *Port) Stats() pmd.Stats { return p.tally.Sum() }

// Close takes the link down.
func (p *Port) Close() error {
	p.closed.Do(func() {
		p.wire.up.Store(false)
		unlist(p)
		for _, q := range p.queues {
			q.rx.close()
		}
		p.tally.Close()
	})
	return nil
}
