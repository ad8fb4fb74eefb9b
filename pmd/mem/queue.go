package mem

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"millrace/internal/ring"
	"millrace/packet"
	"millrace/pmd"
)

// lane is one direction between two queues.
type lane struct {
	r     *ring.Ring
	armed atomic.Uint32 // the receiver sleeps, or is about to
	mu    sync.Mutex    // guards efd against Close
	efd   int
}

func (l *lane) close() {
	l.mu.Lock()
	if l.efd >= 0 {
		unix.Close(l.efd)
		l.efd = -1
	}
	l.mu.Unlock()
}

var one = [8]byte{1}

// wake makes the receiver's descriptor readable.
func (l *lane) wake() {
	l.mu.Lock()
	if l.armed.Swap(0) != 0 && l.efd >= 0 {
		unix.Write(l.efd, one[:])
	}
	l.mu.Unlock()
}

type queue struct {
	rx    lane
	tx    *lane // the peer's rx
	c     *pmd.Stats
	wire  *wire
	peer  *queue
	slept bool // Arm was called since the last Rx
	state atomic.Uint32
	cache *packet.Cache
	tmp   [64]uint32
	word  [8]byte
}

var errRunning = errors.New("mem: queue is already running")

const (
	fresh = iota
	running
	stopped
)

func (q *queue) Start(c *packet.Cache) error {
	q.wire.mu.Lock()
	defer q.wire.mu.Unlock()
	if q.state.Load() == running {
		return errRunning
	}
	q.cache = c
	q.state.Store(running)
	return nil
}

// Stop frees what waits in the queue's ring, and in the peer's where that does not run.
func (q *queue) Stop() {
	q.wire.mu.Lock()
	defer q.wire.mu.Unlock()
	if q.state.Load() != running {
		return
	}
	q.state.Store(stopped)
	q.drain(q.rx.r)
	if q.peer.state.Load() != running {
		q.drain(q.tx.r)
	}
	q.cache = nil
}

func (q *queue) drain(r *ring.Ring) {
	for {
		n := r.Get(q.tmp[:])
		if n == 0 {
			return
		}
		q.cache.Free(q.tmp[:n])
	}
}

func (q *queue) Rx(dst []uint32) int {
	if q.slept {
		q.awake()
	}
	n := q.rx.r.Get(dst)
	packet.Prefetch(q.rx.r.Ahead(32))
	q.c.RxPackets += uint64(n)
	return n
}

// awake ends what Arm began.
func (q *queue) awake() {
	q.slept = false
	q.rx.armed.Store(0)
	if q.rx.efd >= 0 {
		unix.Read(q.rx.efd, q.word[:])
	}
}

func (q *queue) Tx(src []uint32) int {
	n := 0
	if q.wire.up.Load() && q.peer.state.Load() != stopped {
		n = q.tx.r.Put(src)
		if q.tx.armed.Load() != 0 {
			q.tx.wake()
		}
	}
	q.c.TxPackets += uint64(n)
	q.c.TxFull += uint64(len(src) - n)
	return n
}

// Fd is an eventfd, made at the first call.
func (q *queue) Fd() int {
	q.rx.mu.Lock()
	defer q.rx.mu.Unlock()
	if q.rx.efd < 0 {
		fd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			return -1
		}
		q.rx.efd = fd
	}
	return q.rx.efd
}

func (q *queue) Arm() bool {
	q.slept = true
	q.rx.armed.Store(1)
	if q.rx.r.Len() > 0 {
		q.awake()
		return false
	}
	return true
}

func (q *queue) Held() int {
	n := 0
	count := func(i uint32) { n += int(packet.At(i).NbSegs) }
	if q.state.Load() == running {
		q.rx.r.Each(count)
	}
	if q.peer.state.Load() != running {
		q.tx.r.Each(count)
	}
	return n
}
