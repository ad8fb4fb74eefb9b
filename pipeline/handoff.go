package pipeline

import (
	"millrace/internal/ring"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// handoff carries packets from a worker that has no queue of a port to the one that
// has: the transmit side belongs to the first, the receive side to the second.
type handoff struct {
	*ring.Ring
	owner *Worker
}

const handoffSize = 1024

// wokenByPeer is the Fd of inputs whose producer wakes the worker itself.
const wokenByPeer = -2

func (h *handoff) Tx(src []uint32) int {
	n := h.Put(src)
	if n != 0 {
		h.owner.wakeUp()
	}
	return n
}

func (h *handoff) Rx(dst []uint32) int         { return h.Get(dst) }
func (h *handoff) Start(c *packet.Cache) error { return nil }
func (h *handoff) Fd() int                     { return wokenByPeer }
func (h *handoff) Arm() bool                   { return h.Len() == 0 }
func (h *handoff) Held() int                   { return h.Len() }

// Stop drops what is still inside; the owner calls it.
func (h *handoff) Stop() {
	var b [64]uint32
	for n := h.Get(b[:]); n > 0; n = h.Get(b[:]) {
		h.owner.C.Exit[graph.XNoPort] += uint64(n)
		h.owner.Cache.Free(b[:n])
	}
}

// nowhere is the queue of ports that do not exist: it takes nothing.
type nowhere struct{}

func (nowhere) Rx([]uint32) int           { return 0 }
func (nowhere) Tx([]uint32) int           { return 0 }
func (nowhere) Start(*packet.Cache) error { return nil }
func (nowhere) Fd() int                   { return wokenByPeer }
func (nowhere) Arm() bool                 { return true }
func (nowhere) Held() int                 { return 0 }
func (nowhere) Stop()                     {}
