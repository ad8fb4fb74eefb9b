package memif

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/bits"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"millrace/pmd"
)

const _ = uint(minRing/2*bufSize - maxFrame) // half of the shortest ring holds a frame

const (
	defaultRing = 1024
	minRing     = 64
	maxQueues   = 64
	// maxSegments bounds chains on transmission; they are copied, so it is generous.
	maxSegments = 255
	whyLines    = 8

	// maxFrame is the longest frame in bytes, without FCS.
	maxFrame = 65535
)

func init() {
	pmd.Register(pmd.Driver{
		Name: "memif",
		Doc:  "shared memory with VPP, DPDK, containers and other routers on this machine (memif 2.0)",
		Open: Open,
	})
}

// port is a memif interface.
type port struct {
	cfg    pmd.Config
	client bool
	log    uint8
	mac    pmd.MAC
	mtu    int
	queues []*queue
	tally  *pmd.Tally

	up   atomic.Bool
	busy atomic.Bool // a server has a client, or one that is connecting

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines of the port
	listen *listener      // server

	mu     sync.Mutex
	why    []string
	closed bool
}

// Open opens a memif interface. Config: Socket is the path, or @name for an abstract
// one; Role "server" or "client"; ID the interface's number on the socket, where servers
// may share one; Secret up to 24 bytes. Ring is rounded up to a power of two
// between 64 and 16384. It returns at once: the link comes up when the peer is there.
func Open(cfg pmd.Config) (pmd.Port, error) {
	p := &port{cfg: cfg, client: cfg.Role == "client", mac: cfg.MAC, mtu: cfg.MTU}
	wrong := func(format string, args ...any) error {
		return fmt.Errorf("memif: port %s: "+format, append([]any{cfg.Name}, args...)...)
	}
	switch {
	case cfg.Role != "client" && cfg.Role != "server":
		return nil, wrong("role is %q, must be server or client", cfg.Role)
	case cfg.Socket == "" || cfg.Socket == "@":
		return nil, wrong("socket is missing: a path, or @name for an abstract one")
	case len(cfg.Socket) > 107:
		return nil, wrong("socket %q is longer than 107 bytes", cfg.Socket)
	case len(cfg.Secret) > secretLen:
		return nil, wrong("secret has %d bytes, at most are %d", len(cfg.Secret), secretLen)
	case cfg.Queues < 0 || cfg.Queues > maxQueues:
		return nil, wrong("%d queues, at most are %d", cfg.Queues, maxQueues)
	case cfg.Ring < 0 || cfg.Ring > 1<<maxLog:
		return nil, wrong("ring of %d descriptors, at most are %d", cfg.Ring, 1<<maxLog)
	case cfg.Read != "" || cfg.Write != "" || cfg.Loop != 0 || cfg.Rate != 0 || cfg.Mode != "":
		return nil, wrong("read, write, loop, rate and mode are not for this driver")
	case cfg.MTU < 0 || cfg.MTU > maxFrame-18:
		return nil, wrong("MTU %d, at most is %d", cfg.MTU, maxFrame-18)
	}
	if p.mtu == 0 {
		p.mtu = 1500
	}
	if cfg.Ring == 0 {
		cfg.Ring = defaultRing
	}
	p.log = uint8(bits.Len(uint(max(cfg.Ring, minRing) - 1)))
	if p.mac == (pmd.MAC{}) {
		p.mac = p.inventMAC()
	}
	n := max(cfg.Queues, 1)
	tally, err := pmd.NewTally(n)
	if err != nil {
		return nil, wrong("%w", err)
	}
	p.tally = tally
	for i := range n {
		q, err := newQueue(i, tally.Queue(i))
		if err != nil {
			p.release()
			return nil, wrong("%w", err)
		}
		p.queues = append(p.queues, q)
	}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	if p.client {
		p.wg.Go(p.dialLoop)
		return p, nil
	}
	if p.listen, err = listen(cfg.Socket, p); err != nil {
		p.cancel()
		p.release()
		return nil, wrong("%w", err)
	}
	p.note("listening on %s, interface %d", cfg.Socket, cfg.ID)
	return p, nil
}

// inventMAC is a locally administered address that stays the same over restarts.
func (p *port) inventMAC() pmd.MAC {
	h := fnv.New64a()
	host, _ := os.Hostname()
	fmt.Fprint(h, host, "\n", p.cfg.Name, "\n", p.cfg.Role, "\n", p.cfg.Socket, "\n", p.cfg.ID)
	s := h.Sum64()
	return pmd.MAC{2, 0xfe, byte(s), byte(s >> 8), byte(s >> 16), byte(s >> 24)}
}

func (p *port) release() {
	for _, q := range p.queues {
		q.close()
	}
	p.tally.Close()
}

func (p *port) secret() (s [secretLen]byte) {
	copy(s[:], p.cfg.Secret)
	return s
}

// note remembers an event for Why, with repetitions in one line.
func (p *port) note(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.why); n > 0 && p.why[n-1] == s {
		return
	}
	if len(p.why) == whyLines {
		p.why = append(p.why[:0], p.why[1:]...)
	}
	p.why = append(p.why, s)
}

func (p *port) Name() string   { return p.cfg.Name }
func (p *port) Driver() string { return "memif" }

func (p *port) Why() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.why...)
}

func (p *port) Caps() pmd.Caps {
	return pmd.Caps{
		Queues: len(p.queues), Segments: maxSegments, MaxFrame: maxFrame,
		Mode: "shared memory, " + p.cfg.Role,
	}
}

func (p *port) Link() pmd.Link        { return pmd.Link{Up: p.up.Load(), MTU: p.mtu, MAC: p.mac} }
func (p *port) Queue(i int) pmd.Queue { return p.queues[i] }
func (p *port) Stats() pmd.Stats      { return p.tally.Sum() }

// Close disconnects the peer and takes the socket away. A second Close does nothing.
func (p *port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	var err error
	p.cancel()
	if p.listen != nil {
		err = p.listen.leave(p)
	}
	p.wg.Wait()
	p.release()
	return err
}

// publish gives the queues a connection, or nil, and wakes those that sleep.
func (p *port) publish(c *conn) {
	for _, q := range p.queues {
		q.next.Store(c)
	}
	p.up.Store(c != nil)
	for _, q := range p.queues {
		unix.Write(q.wake, one[:])
	}
}

// connect publishes a new connection.
func (p *port) connect(c *conn) {
	n := len(p.queues)
	for _, r := range c.tx {
		r.shared = len(c.tx) < n
	}
	c.register(p.queues)
	p.publish(c)
	p.note("connected to %s: %d rings to receive, %d to transmit", c.peer, len(c.rx), len(c.tx))
}

// retire takes a connection from the queues and unmaps it when none uses it any more.
func (p *port) retire(c *conn) {
	p.publish(nil)
	p.wg.Go(func() {
		// After Close every queue has stopped; one that has not keeps its memory.
		for wait, late := time.Millisecond, 0; p.used(c); wait = min(2*wait, 50*time.Millisecond) {
			time.Sleep(wait)
			if p.ctx.Err() != nil {
				if late++; late > 20 {
					return
				}
			}
		}
		c.unregister(p.queues)
		c.free()
	})
}

func (p *port) used(c *conn) bool {
	for _, q := range p.queues {
		if q.using.Load() == c {
			return true
		}
	}
	return false
}

// errClosed ends the port's goroutines.
var errClosed = errors.New("interface closed")
