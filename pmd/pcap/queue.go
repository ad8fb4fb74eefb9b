package pcap

import (
	"unsafe" // room behind a segment's data; aligned words of the recorder's ring

	"golang.org/x/sys/unix"

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

type queue struct {
	c     *pmd.Stats
	cache *packet.Cache
	cap   *capture // nil without replay
	rec   *recorder
	fd    int // a timer

	rate  float64
	begin uint64  // ticks of the replay's begin, 0 before
	pos   int     // next record
	laps  int     // still to come after this one; negative is without end
	base  float64 // ticks from begin to the lap's begin
	lap   float64 // ticks of a lap
	tick  float64 // ticks a nanosecond as recorded, or a packet at a rate
}

// schedule fixes when which packet is due.
func (q *queue) schedule(c pmd.Config) {
	q.rate = c.Rate
	if q.laps = c.Loop - 1; c.Loop <= 0 {
		q.laps = c.Loop
	}
	hz := float64(clock.Hz())
	n := len(q.cap.recs)
	switch {
	case c.Rate > 0:
		q.tick = hz / c.Rate
		q.lap = q.tick * float64(n)
	case c.Rate == 0 && n > 1:
		// Between laps is the mean distance of two packets.
		q.tick = hz / 1e9
		span := q.tick * float64(q.cap.recs[n-1].time-q.cap.recs[0].time)
		q.lap = max(span, 0) * float64(n) / float64(n-1)
	}
}

// due is when the next packet is to come, in ticks from the begin.
func (q *queue) due() float64 {
	if q.rate > 0 {
		return q.base + q.tick*float64(q.pos)
	}
	r := q.cap.recs
	return q.base + q.tick*float64(r[q.pos].time-r[0].time)
}

// more goes on to the next lap where one ended; false at the end of the replay.
func (q *queue) more() bool {
	if q.cap == nil || len(q.cap.recs) == 0 {
		return false
	}
	if q.pos < len(q.cap.recs) {
		return true
	}
	if q.laps == 0 {
		return false
	}
	if q.laps > 0 {
		q.laps--
	}
	q.pos = 0
	q.base += q.lap
	return true
}

func (q *queue) Start(c *packet.Cache) error {
	q.cache = c
	return nil
}

func (q *queue) Stop() { q.cache = nil }

// Held is 0: packets are copied.
func (q *queue) Held() int { return 0 }

func (q *queue) Fd() int { return q.fd }

// Arm sets the timer to when the next packet is due.
func (q *queue) Arm() bool {
	if !q.more() {
		unix.TimerfdSettime(q.fd, 0, &unix.ItimerSpec{}, nil)
		return true
	}
	if q.rate == -1 || q.begin == 0 {
		return false
	}
	wait := q.due() - float64(clock.Ticks()-q.begin)
	if wait <= 0 {
		return false
	}
	ns := int64(min(wait/float64(clock.Hz())*1e9, 1e18)) + 1
	unix.TimerfdSettime(q.fd, 0, &unix.ItimerSpec{Value: unix.NsecToTimespec(ns)}, nil)
	return true
}

func (q *queue) Rx(dst []uint32) int {
	n := 0
	now := float64(0)
	if q.rate != -1 {
		t := clock.Ticks()
		if q.begin == 0 {
			q.begin = t
		}
		now = float64(t - q.begin)
	}
	for n < len(dst) && q.more() && (q.rate == -1 || q.due() <= now) {
		r := &q.cap.recs[q.pos]
		m := q.copy(q.cap.data[r.off : r.off+uint64(r.n)])
		if m == nil {
			break // it stays the next one
		}
		q.pos++
		dst[n] = m.Index()
		n++
	}
	q.c.RxPackets += uint64(n)
	return n
}

// copy makes a packet of b; nil where the pool has too few buffers.
func (q *queue) copy(b []byte) *packet.Mbuf {
	head := q.cache.Alloc1()
	if head == nil {
		return nil
	}
	head.RSS, head.PktLen = 0, uint32(len(b))
	for tail := head; ; head.NbSegs++ {
		k := min(len(b), packet.DataRoom)
		tail.DataLen = uint16(k)
		copy(unsafe.Slice((*byte)(tail.Data()), k), b)
		if b = b[k:]; len(b) == 0 {
			return head
		}
		s := q.cache.Alloc1()
		if s == nil {
			q.cache.Free1(head)
			return nil
		}
		tail.SetNext(s)
		tail = s
	}
}

func (q *queue) Tx(src []uint32) int {
	if q.rec == nil {
		q.cache.Free(src)
		q.c.TxPackets += uint64(len(src))
		return len(src)
	}
	n := 0
	now := clock.Ticks()
	for n < len(src) {
		m := packet.At(src[n])
		if m.PktLen > maxFrame {
			q.c.TxFailed++
		} else if !q.rec.put(m, now) {
			break
		}
		n++
	}
	q.cache.Free(src[:n])
	q.c.TxFull += uint64(len(src) - n)
	return n
}

func (r *recorder) u64(at uint64) *uint64 { return (*uint64)(unsafe.Pointer(&r.buf[at])) }

// put copies a packet into the buffer; false where that is full.
func (r *recorder) put(m *packet.Mbuf, now uint64) bool {
	h := r.head.Load()
	n := uint64(m.PktLen)
	need := entryHead + (n+7)&^7
	size := r.mask + 1
	at := h & r.mask
	rest := uint64(0) // unused at the end
	if at+need > size {
		rest = size - at
	}
	if h+rest+need-r.seen > size {
		if r.seen = r.tail.Load(); h+rest+need-r.seen > size {
			return false
		}
	}
	if rest > 0 {
		if rest >= entryHead {
			*r.u64(at + 8) = skip
		}
		at = 0
	}
	*r.u64(at) = now
	*r.u64(at + 8) = n
	for to := r.buf[at+entryHead : at+entryHead+n]; m != nil; m = m.NextSeg() {
		to = to[copy(to, m.Bytes()):]
	}
	r.head.Store(h + rest + need)
	return true
}
