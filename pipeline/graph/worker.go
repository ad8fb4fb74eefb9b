package graph

import (
	"unsafe" // packet.Base; counters outside the heap

	"millrace/internal/mem"
	"millrace/packet"
	"millrace/pmd"
)

// Worker is what stages share on one core. Everything in it belongs to the worker's
// thread; others may read Counters.
type Worker struct {
	ID     int
	Base   unsafe.Pointer // packet.Base()
	Cache  *packet.Cache
	Tables *Tables
	Now    uint64 // clock.Ticks at the start of the round
	C      *Counters
	Tx     [MaxPorts]*TxBuf // by port index, never nil
	Dirty  [MaxPorts]uint16 // ports with packets in their TxBuf
	ND     int              // how many are Dirty
	Takers [MaxReasons]Taker
	// Wake asks for Refill of all sources before the round ends. A source sets it when it
	// parks a packet that may go on, and leaves it set while it waits for
	// something that only Refill can find out.
	Wake bool
	// OnTx, where set, sees what is about to be sent: packet capture.
	OnTx func(port uint16, pkts []uint32)
	// Instances are the worker's Runners by stage name, complete once the first vector runs; for
	// stages that need another while they are made, exits come first, in the order of their list.
	Instances map[string]Runner
	leave     Vector // of Leave
}

// TxBuf collects what a round sends to one port.
type TxBuf struct {
	N    int
	Q    pmd.Queue
	Kind TxKind
	// Segments is the longest chain that the port transmits, 0 for any.
	Segments int
	Buf      [VectorSize]uint32
}

// TxKind says in which account of the conservation law a TxBuf's packets end.
type TxKind uint8

const (
	TxWire    TxKind = iota // sent
	TxHost                  // handed to the host, by a TAP
	TxHandoff               // given to the worker that owns the port, which counts them
	TxNone                  // there is no such port, or no more: dropped
)

// Count is packets and bytes (of whole frames without FCS).
type Count struct{ Packets, Bytes uint64 }

// StageCount is a stage's account.
type StageCount struct {
	Calls, Packets uint64
	Clocks         uint64 // spent while measuring was on
	Measured       uint64 // packets while measuring was on
}

// MaxStages bounds the stages of a road, exits not counted.
const MaxStages = 48

// Counters are a worker's, outside the Go heap: written by its thread with plain
// stores, read by anyone; each number is 64 bits and never torn on 64-bit machines.
//
//	Received + FromHost + Created = Sent + ToHost + dropped + held
//
// where dropped is the sum of Exit over reasons of kind Drop. A Taker that keeps a packet of kind
// Hold, or hands one of kind Host on, counts it where it ends: in ToHost, by
// Discard, or back on the road in Sent. Created counts packets made here, such as ICMP errors, and
// each fragment beyond the first.
type Counters struct {
	Rounds, Idle, Sleeps uint64 // poll rounds; those that found nothing; sleeps
	Busy                 uint64 // clocks of rounds that found packets
	Received, Sent       uint64
	FromHost, ToHost     uint64
	Created              uint64
	Exit                 [MaxReasons]uint64
	Stage                [MaxStages]StageCount
	Rx, Tx               [MaxIfaces]Count
}

// NewCounters maps zeroed counters.
func NewCounters() (*Counters, error) {
	c, err := mem.Of[Counters](1)
	if err != nil {
		return nil, err
	}
	return &c[0], nil
}

// Close unmaps the counters.
func (c *Counters) Close() { mem.Free(unsafe.Slice(c, 1)) }

// XTxFull is given to packets that the port did not take.
var XTxFull = NewReason(ReasonInfo{Stage: "tx", Name: "queue-full", Doc: "The port's transmit queue was full: it sends more slowly than packets arrive for it."})

// XClosing is given to packets that stages still hold when their worker stops.
var XClosing = NewReason(ReasonInfo{Stage: "road", Name: "closing", Doc: "A stage held the packet when the worker stopped."})

// XNoPort is given to packets for a port that was removed.
var XNoPort = NewReason(ReasonInfo{Stage: "tx", Name: "no-port", Doc: "The port that the packet should leave by was removed while it was on its way."})

// Flush sends what TxBufs hold and drops what ports do not take.
func (w *Worker) Flush() {
	for _, p := range w.Dirty[:w.ND] {
		b := w.Tx[p&(MaxPorts-1)]
		if w.OnTx != nil {
			w.OnTx(p, b.Buf[:b.N])
		}
		n := b.Q.Tx(b.Buf[:b.N])
		switch b.Kind {
		case TxWire:
			w.C.Sent += uint64(n)
		case TxHost:
			w.C.ToHost += uint64(n)
		}
		if n < b.N {
			why := XTxFull
			if b.Kind == TxNone {
				why = XNoPort
			}
			w.C.Exit[why] += uint64(b.N - n)
			w.Cache.Free(b.Buf[n:b.N])
		}
		b.N = 0
	}
	w.ND = 0
}

// Send puts one complete frame into a port's TxBuf, past the road: for what the
// host side makes. The packet is the port's from then on, or dropped.
func (w *Worker) Send(port uint16, idx uint32) {
	b := w.Tx[port&(MaxPorts-1)]
	if b.N == VectorSize {
		w.Flush()
	}
	if b.N == 0 {
		w.Dirty[w.ND&(MaxPorts-1)] = port
		w.ND++
	}
	b.Buf[b.N] = idx
	b.N++
}

// Discard drops a packet that is no longer on the road, for a reason of kind Drop.
func (w *Worker) Discard(idx uint32, why Reason) {
	b := [1]uint32{idx}
	w.C.Exit[why]++
	w.Cache.Free(b[:])
}

// Leave settles one packet that is off the road, held by a stage: by why, as if
// it had left the road for it now, with the ICMP error that is owed.
func (w *Worker) Leave(p Parked, why Reason) {
	v := &w.leave
	v.Reset()
	i := v.Unpark(p)
	v.Exit(i, why)
	w.Settle(v)
}

// Settle ends what left the road in this round: counts each reason, frees drops and gives the rest to
// their Takers, in runs of one reason.
func (w *Worker) Settle(v *Vector) {
	for j := 0; j < v.NX; {
		why := v.XCode[uint8(j)]
		k := j + 1
		for k < v.NX && v.XCode[uint8(k)] == why {
			k++
		}
		w.C.Exit[why&(MaxReasons-1)] += uint64(k - j)
		if t := w.Takers[why&(MaxReasons-1)]; t != nil {
			t.Take(v, v.XPos[j:k], why)
		} else {
			for ; j < k; j++ {
				w.free(v.Idx[v.XPos[uint8(j)]])
			}
		}
		j = k
	}
	v.NX = 0
}

func (w *Worker) free(i uint32) {
	b := [1]uint32{i}
	w.Cache.Free(b[:])
}
