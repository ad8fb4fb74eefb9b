package afxdp

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"millrace/packet"
)

const (
	// bindPatience is how long a bind may find the device's queue still taken: the
	// kernel frees a closed socket's memory later.
	bindPatience = 3 * time.Second
	// drainPatience is how long Stop waits for packets on their way out.
	drainPatience = 50 * time.Millisecond
)

// open gives the queue a socket, with scatter/gather where wanted and to be had.
// The port's mu is held.
func (q *queue) open() error {
	p := q.port
	a := sockaddr{ifindex: p.ifindex, queue: q.id, flags: p.mode.bind, size: p.ring, fill: p.ring}
	if p.sg {
		a.flags |= unix.XDP_USE_SG
	}
	var s socket
	var err error
	err = p.dev.inside(func() error {
		for end := time.Now().Add(bindPatience); ; time.Sleep(10 * time.Millisecond) {
			var err error
			if s, err = openSocket(p.pool, a); !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
				return err
			}
		}
	})
	switch {
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: another AF_XDP socket has the queue", err)
	case errors.Is(err, unix.ENETDOWN):
		return fmt.Errorf("%w: the interface is down", err)
	case errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("%w: raise the locked memory limit (ulimit -l, LimitMEMLOCK=infinity)", err)
	case err != nil:
		return err
	}
	if p.mode.bind&unix.XDP_ZEROCOPY != 0 && !s.zeroCopy() {
		s.close()
		return errors.New("the kernel bound the queue in copy mode")
	}
	q.s, q.dead = s, false
	return nil
}

// Start fills the fill ring and lets the filter send packets here.
func (q *queue) Start(c *packet.Cache) error {
	p := q.port
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed:
		return p.err("start queue %d: closed", q.id)
	case q.c != nil:
		return p.err("queue %d is started already", q.id)
	case c.Pool() != p.pool:
		return p.err("start queue %d: the cache is of pool %s, the port's is %s", q.id, c.Pool().Name(), p.pool.Name())
	}
	if q.s.fd < 0 {
		if err := q.open(); err != nil {
			return p.err("start queue %d: %w", q.id, err)
		}
	}
	q.c = c
	q.missing = q.target
	q.refill()
	if q.missing == q.target {
		q.stop()
		return p.err("start queue %d: pool %s has no free buffer", q.id, p.pool.Name())
	}
	if err := p.maps.xsks.Put(uint32(q.id), uint32(q.s.fd)); err != nil {
		q.stop()
		return p.err("start queue %d: %w", q.id, err)
	}
	return nil
}

// Stop sends what is queued, closes the socket and takes all buffers back.
func (q *queue) Stop() {
	if q.c == nil {
		return
	}
	// From here on the queue's packets pass to the kernel.
	_ = q.port.maps.xsks.Delete(uint32(q.id))
	for end := time.Now().Add(drainPatience); q.out != 0 && !q.dead && time.Now().Before(end); {
		q.kick()
		q.reap()
		if q.out != 0 {
			time.Sleep(time.Millisecond)
		}
	}
	q.port.mu.Lock()
	defer q.port.mu.Unlock()
	q.stop()
}

// stop is the end of Stop, under the port's mu.
func (q *queue) stop() {
	q.t.TxFailed += uint64(q.s.tx.cp - atomic.LoadUint32(q.s.tx.cons)) // never looked at
	q.past = q.xdp()
	q.s.close()
	c := q.c
	if q.head != 0 {
		c.Free1(packet.At(q.head))
	}
	for k := range q.state {
		s := q.state[k]
		if s == 0 {
			continue
		}
		q.state[k] = 0
		q.one[0] = q.first + uint32(k)*units
		if s == inRx {
			c.FreeRaw(q.one[:])
			continue
		}
		for range s {
			c.FreeSegs(q.one[:])
		}
	}
	c.FreeRaw(q.parked)
	q.parked = q.parked[:0]
	q.head, q.tail, q.out, q.missing = 0, 0, 0, 0
	q.c = nil
}

// xdp is what the kernel counted since Open, under the port's mu.
func (q *queue) xdp() xdpStats {
	s, p := q.s.stats(), q.past
	return xdpStats{
		s.rxDropped + p.rxDropped, s.rxInvalid + p.rxInvalid, s.txInvalid + p.txInvalid,
		s.rxRingFull + p.rxRingFull, s.fillEmpty + p.fillEmpty, s.txEmpty + p.txEmpty,
	}
}
