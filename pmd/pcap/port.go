package pcap

import (
	"fmt"
	"hash/fnv"
	"math"
	"os"
	"sync"

	"golang.org/x/sys/unix"

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
