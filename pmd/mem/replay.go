package mem

import (
	"millrace/packet"
	"millrace/pmd"
)

// Replay is a port for benchmarks of one worker thread: Rx hands out the packets it
// was made with, in order, lap after lap. A lap begins when every packet of the one
// before has come back by Tx of this port or of an Out. Packets are neither
// built nor freed nor restored: what the road changed in them stays changed, and a
// packet that the road dropped stops the replay until Reset.
//
// All methods other than Stats are for the worker's thread, or for others while it
// does not run.
type Replay struct {
	Out
	idx  []uint32
	pos  int
	home int // packets of this lap that came back
	laps int // still to begin; negative: without end
	// Ahead is how many packets of the next burst Rx prefetches at most; 32 unless changed.
	Ahead int
}

// Out is a port that only transmits, into its Replay's hands.
type Out struct {
	name  string
	r     *Replay
	tally *pmd.Tally
	c     *pmd.Stats
	log   []uint32
	head  int
	mac   pmd.MAC
}

// NewReplay makes a replay of the packets with the given indices, without end of
// laps. The packets go back to the caller when it is over: when Missing is 0.
func NewReplay(name string, idx []uint32) *Replay {
	r := &Replay{idx: idx, Ahead: 32}
	r.Out.init(name, r)
	r.Reset(0)
	return r
}

// NewOut makes another port whose transmitted packets come back to r.
func (r *Replay) NewOut(name string) *Out {
	o := &Out{}
	o.init(name, r)
	return o
}

func (o *Out) init(name string, r *Replay) {
	t, err := pmd.NewTally(1)
	if err != nil {
		panic(err) // no memory for a few counters
	}
	n := 256
	for n < len(r.idx) {
		n *= 2
	}
	*o = Out{name: name, r: r, tally: t, c: t.Queue(0), log: make([]uint32, n), mac: nameMAC(name)}
}

// Reset hands all packets out anew, laps times, or without end for 0. The caller says
// by it that all of them are the replay's, restored as it wants them.
func (r *Replay) Reset(laps int) {
	r.pos, r.home, r.laps = 0, 0, laps-1
	r.head = 0
}

// Missing is the number of packets handed out in this lap that have not come back.
func (r *Replay) Missing() int { return r.pos - r.home }

// Rx hands out the next packets of the lap.
func (r *Replay) Rx(dst []uint32) int {
	if r.pos == len(r.idx) && !r.lap() {
		return 0
	}
	n := copy(dst, r.idx[r.pos:])
	r.pos += n
	next := r.idx[r.pos:]
	if len(next) == 0 {
		next = r.idx
	}
	packet.Prefetch(next[:min(r.Ahead, len(next), len(dst))])
	r.c.RxPackets += uint64(n)
	return n
}

// lap begins the next lap, if there is one and everybody is home.
func (r *Replay) lap() bool {
	if r.home < r.pos || r.laps == 0 {
		return false
	}
	if r.laps > 0 {
		r.laps--
	}
	r.pos, r.home = 0, 0
	return true
}

// Tx takes all packets.
func (o *Out) Tx(src []uint32) int {
	h, log := o.head, o.log
	if len(src) <= 32 {
		// A wide copy of what was just stored in pieces of 4 bytes waits for the store queue.
		for _, x := range src {
			log[h&(len(log)-1)] = x
			h++
		}
	} else {
		for s := src; len(s) > 0; {
			n := copy(log[h&(len(log)-1):], s)
			s = s[n:]
			h += n
		}
	}
	o.head = h
	o.r.home += len(src)
	o.c.TxPackets += uint64(len(src))
	return len(src)
}

// Sent is what came back by this port last, oldest first: as many as a lap has packets,
// or all since Reset where that is fewer.
func (o *Out) Sent() []uint32 {
	n := min(o.head, len(o.r.idx))
	s := make([]uint32, n)
	for i := range s {
		s[i] = o.log[(o.head-n+i)&(len(o.log)-1)]
	}
	return s
}

// Forget empties Sent.
func (o *Out) Forget() { o.head = 0 }

// Rx of an Out has nothing.
func (o *Out) Rx([]uint32) int { return 0 }

func (o *Out) Name() string        { return o.name }
func (o *Out) Driver() string      { return "mem" }
func (o *Out) Why() []string       { return []string{"replay of packets in memory"} }
func (o *Out) Queue(int) pmd.Queue { return o }
func (o *Out) Stats() pmd.Stats    { return o.tally.Sum() }
func (o *Out) Link() pmd.Link      { return pmd.Link{Up: true, MTU: MaxFrame - 14, MAC: o.mac} }
func (o *Out) Close() error        { o.tally.Close(); return nil }

func (o *Out) Caps() pmd.Caps {
	return pmd.Caps{Queues: 1, Segments: maxSegments, MaxFrame: MaxFrame, Mode: "replay"}
}

func (o *Out) Start(*packet.Cache) error { return nil }
func (o *Out) Stop()                     {}
func (o *Out) Fd() int                   { return -1 }
func (o *Out) Arm() bool                 { return false }

// Held is 0: the packets are the benchmark's.
func (o *Out) Held() int { return 0 }

// Queue is the replay itself.
func (r *Replay) Queue(int) pmd.Queue { return r }
