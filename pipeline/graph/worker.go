package graph

import (
	"unsafe"

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
	Tx     [MaxPorts]*TxBuf // by port index
	Dirty  []uint16         // ports with packets in their TxBuf
	Takers [MaxReasons]Taker
}

// TxBuf collects what a round sends to one port.
type TxBuf struct {
	N     int
	Bytes uint64
	Q     pmd.Queue
	Buf   [VectorSize]uint32
}

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
//	Received + Created = Sent + ToHost + dropped + held
//
// where dropped is the sum of Exit over reasons of kind Drop. A Taker that keeps a packet of kind
// Hold, or hands one of kind Host on, counts it where it ends: in ToHost, by
// Discard, or back on the road in Sent. Created counts packets made here, such as ICMP errors, and
// each fragment beyond the first.
type Counters struct {
	Rounds, Idle, Sleeps uint64 // poll rounds; those that found nothing; sleeps
	Busy                 uint64 // clocks of rounds that found packets
	Received, Sent       uint64
	Created, ToHost      uint64
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

// Flush sends what TxBufs hold and drops what ports do not take.
func (w *Worker) Flush() {
	for _, p := range w.Dirty {
		b := w.Tx[p]
		n := b.Q.Tx(b.Buf[:b.N])
		w.C.Sent += uint64(n)
		if n < b.N {
			w.C.Exit[XTxFull] += uint64(b.N - n)
			w.Cache.Free(b.Buf[n:b.N])
		}
		b.N, b.Bytes = 0, 0
	}
	w.Dirty = w.Dirty[:0]
}

// Discard drops a packet that is no longer on the road, for a reason of kind Drop.
func (w *Worker) Discard(idx uint32, why Reason) {
	b := [1]uint32{idx}
	w.C.Exit[why]++
	w.Cache.Free(b[:])
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
