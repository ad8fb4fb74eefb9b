package pcap

import (
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

func init() {
	pmd.Register(pmd.Driver{
		Name: "pcap",
		Doc:  "capture files: replays the one named by read, records to the one named by write",
		Open: func(c pmd.Config) (pmd.Port, error) {
			p, err := Open(c)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
	})
}

const (
	maxSegs = 1024
	// slot is what the buffer of a recording has for each packet of the field ring, in bytes.
	slot        = 2048
	defaultRing = 2048
)

// Port replays one capture file and records to another.
type Port struct {
	name   string
	mac    pmd.MAC
	mtu    int
	why    []string
	tally  *pmd.Tally
	q      queue
	closed sync.Once

	mu  sync.Mutex // guards what Close changes
	rec *recorder
	end *recorder // rec, after Close
	err error     // of the recording, after Close
}

// Open loads the file c.Read, if given, and begins the file c.Write, if given.
func Open(c pmd.Config) (*Port, error) {
	bad := func(format string, args ...any) error {
		return fmt.Errorf("pcap: port %s: %w", c.Name, fmt.Errorf(format, args...))
	}
	if err := c.Check("pcap", "read", "write", "loop", "rate"); err != nil {
		return nil, err
	}
	switch {
	case c.Read == "" && c.Write == "":
		return nil, bad("read, write or both must name a file")
	case c.Read == "" && (c.Loop != 0 || c.Rate != 0):
		return nil, bad("loop and rate mean nothing without a file to read")
	case c.Queues < 0 || c.Queues > 1:
		return nil, bad("queues: a file has one, not %d", c.Queues)
	case c.Loop < -1:
		return nil, bad("loop: %d; it is how often, or -1 for without end", c.Loop)
	case c.Rate < 0 && c.Rate != -1 || math.IsNaN(c.Rate) || math.IsInf(c.Rate, 0):
		return nil, bad("rate: %v; it is packets a second, 0 for as recorded, or -1 for as fast as it goes", c.Rate)
	case c.Ring < 0 || c.Ring > 1<<20 || c.MTU < 0 || c.MTU > maxFrame-14:
		return nil, bad("allowed are ring up to %d and mtu up to %d", 1<<20, maxFrame-14)
	case c.Read != "" && sameFile(c.Read, c.Write):
		return nil, bad("read and write are the same file %s", c.Read)
	}
	p := &Port{name: c.Name, mac: c.MAC, mtu: c.MTU}
	if p.mtu == 0 {
		p.mtu = maxFrame - 14
	}
	t, err := pmd.NewTally(1)
	if err != nil {
		return nil, bad("%w", err)
	}
	p.tally = t
	p.q = queue{c: t.Queue(0), fd: -1}
	if err := p.open(c); err != nil {
		p.Close()
		return nil, bad("%w", err)
	}
	return p, nil
}

// sameFile reports whether both names lead to one file.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	if err != nil {
		return a == b
	}
	y, err := os.Stat(b)
	return err == nil && os.SameFile(x, y)
}

func (p *Port) open(c pmd.Config) error {
	if c.Read != "" {
		cap, err := load(c.Read)
		if err != nil {
			return err
		}
		p.q.cap = cap
		p.notes(c.Read)
		p.q.c.RxBad = uint64(cap.bad)
		p.q.schedule(c)
	}
	if p.mac == (pmd.MAC{}) {
		p.mac = p.guessMAC()
	}
	if c.Write != "" {
		ring := c.Ring
		if ring == 0 {
			ring = defaultRing
		}
		rec, err := newRecorder(c.Write, c.Name, ring*slot)
		if err != nil {
			return err
		}
		p.rec, p.q.rec = rec, rec
	}
	var err error
	if p.q.fd, err = unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC); err != nil {
		return fmt.Errorf("timer: %w", err)
	}
	return nil
}

func (p *Port) notes(file string) {
	c := p.q.cap
	if c.note != "" {
		p.why = append(p.why, file+": "+c.note)
	}
	for _, n := range []struct {
		n    int
		text string
	}{
		{c.bad, "left out for their length: shorter than 14 or longer than 65535 bytes"},
		{c.other, "left out: not Ethernet"},
		{c.cut, "replayed without their end, which the capture does not have"},
	} {
		if n.n > 0 {
			p.why = append(p.why, fmt.Sprintf("%s: %d packets are %s", file, n.n, n.text))
		}
	}
}

// guessMAC is the unicast address that most frames of the capture go to, or one that follows
// from the port's name.
func (p *Port) guessMAC() pmd.MAC {
	count := map[pmd.MAC]int{}
	var best pmd.MAC
	if c := p.q.cap; c != nil {
		for _, r := range c.recs {
			if m := pmd.MAC(c.data[r.off : r.off+6]); m[0]&1 == 0 {
				if count[m]++; count[m] > count[best] {
					best = m
				}
			}
		}
	}
	if best == (pmd.MAC{}) {
		h := fnv.New64a()
		h.Write([]byte(p.name))
		s := h.Sum64()
		best = pmd.MAC{0x02, byte(s), byte(s >> 8), byte(s >> 16), byte(s >> 24), byte(s >> 32)}
	}
	return best
}

func (p *Port) Name() string        { return p.name }
func (p *Port) Driver() string      { return "pcap" }
func (p *Port) Queue(int) pmd.Queue { return &p.q }

func (p *Port) Caps() pmd.Caps {
	return pmd.Caps{Queues: 1, Segments: maxSegs, MaxFrame: maxFrame, Mode: "file"}
}

// failure is the recording's error, or nil.
func (p *Port) failure() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.rec != nil {
		if e := p.rec.err.Load(); e != nil {
			return *e
		}
	}
	return p.err
}

func (p *Port) Why() []string {
	why := append([]string(nil), p.why...)
	if err := p.failure(); err != nil {
		why = append(why, "recording ended: "+err.Error())
	}
	return why
}

func (p *Port) Link() pmd.Link { return pmd.Link{Up: p.failure() == nil, MTU: p.mtu, MAC: p.mac} }

func (p *Port) Stats() pmd.Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := p.tally.Sum()
	if r := p.end; r != nil {
		s.TxPackets += r.written.Load()
		s.TxFailed += r.failed.Load()
	} else if r := p.rec; r != nil {
		s.TxPackets += r.written.Load()
		s.TxFailed += r.failed.Load()
	}
	return s
}

// Close writes what the recording's buffer holds and returns its error.
func (p *Port) Close() error {
	p.closed.Do(func() {
		if p.rec != nil {
			err := p.rec.close()
			p.mu.Lock()
			p.end, p.rec, p.err = p.rec, nil, err
			p.mu.Unlock()
		}
		if p.q.cap != nil {
			p.q.cap.free()
		}
		if p.q.fd >= 0 {
			unix.Close(p.q.fd)
		}
		p.tally.Close()
	})
	if err := p.failure(); err != nil {
		return fmt.Errorf("pcap: port %s: %w", p.name, err)
	}
	return nil
}

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
