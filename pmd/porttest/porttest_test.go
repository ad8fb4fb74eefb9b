package porttest

import (
	"strings"
	"sync/atomic"
	"testing"

	"millrace/internal/ring"
	"millrace/packet"
	"millrace/pmd"
)

// wire is the simplest correct port: what one end transmits waits in the ring from
// which the other receives. fault breaks it on purpose.
type wire struct {
	name    string
	in, out *ring.Ring
	cache   *packet.Cache
	fault   fault
	n       int
	rx, tx  atomic.Uint64
	full    atomic.Uint64
	junk    []byte
}

type fault int

const (
	none fault = iota
	loses
	overtakes
	corrupts
	truncates
	leaks
	keepsRefused
	miscounts
	allocates
	doubles
)

func (w *wire) Name() string          { return w.name }
func (w *wire) Driver() string        { return "wire" }
func (w *wire) Why() []string         { return nil }
func (w *wire) Link() pmd.Link        { return pmd.Link{Up: true, MTU: 1500} }
func (w *wire) Queue(i int) pmd.Queue { return w }
func (w *wire) Close() error          { return nil }
func (w *wire) Fd() int               { return -1 }
func (w *wire) Arm() bool             { return w.in.Len() == 0 }
func (w *wire) Held() int {
	n := 0
	for range w.in.Len() {
		var b [1]uint32
		w.in.Get(b[:])
		n += int(packet.At(b[0]).NbSegs)
		w.in.Put(b[:])
	}
	return n
}
func (w *wire) Caps() pmd.Caps {
	return pmd.Caps{Queues: 1, Segments: 16, MaxFrame: 16384, Mode: "rings"}
}
func (w *wire) Stats() pmd.Stats {
	return pmd.Stats{RxPackets: w.rx.Load(), TxPackets: w.tx.Load(), TxFull: w.full.Load()}
}
func (w *wire) Start(c *packet.Cache) error { w.cache = c; return nil }
func (w *wire) Stop() {
	var b [64]uint32
	for n := w.in.Get(b[:]); n > 0; n = w.in.Get(b[:]) {
		w.cache.Free(b[:n])
	}
}

func (w *wire) Rx(dst []uint32) int {
	n := w.in.Get(dst)
	w.rx.Add(uint64(n))
	if w.fault == allocates {
		w.junk = make([]byte, 100)
	}
	return n
}

func (w *wire) Tx(src []uint32) int {
	n := min(len(src), w.out.Cap()-w.out.Len())
	w.tx.Add(uint64(n))
	w.full.Add(uint64(len(src) - n))
	if n < len(src) && w.fault == keepsRefused {
		packet.At(src[n]).Bytes()[20] ^= 1
	}
	for i := 0; i < n; i++ {
		w.n++
		m := packet.At(src[i])
		hit := w.n%100 == 99
		switch {
		case hit && w.fault == loses:
			w.cache.Free(src[i : i+1])
			continue
		case hit && w.fault == leaks:
			continue
		case hit && w.fault == overtakes && i+1 < n:
			src[i], src[i+1] = src[i+1], src[i]
		case hit && w.fault == corrupts:
			m.Last().Bytes()[m.Last().DataLen-1] ^= 0x80
		case hit && w.fault == truncates:
			m.Last().DataLen--
		case hit && w.fault == miscounts:
			w.tx.Add(1)
		case hit && w.fault == doubles:
			if c := w.cache.Clone(m); c != nil {
				w.out.Put([]uint32{c.Index()})
			}
		}
		w.out.Put(src[i : i+1])
	}
	return n
}

func pair(f fault) Pair {
	return Pair{Open: func(t testing.TB, pool *packet.Pool) (pmd.Port, pmd.Port) {
		x, y := ring.New(512), ring.New(512)
		return &wire{name: "a", in: x, out: y, fault: f}, &wire{name: "b", in: y, out: x, fault: f}
	}}
}

func TestSound(t *testing.T) { Run(t, pair(none)) }

// TestFaults breaks the wire in every way that the suite claims to notice.
func TestFaults(t *testing.T) {
	old := patience
	patience = 200e6
	defer func() { patience = old }()
	w := newWorker()
	defer close(w)
	for _, c := range []struct {
		fault fault
		check string
		want  string
	}{
		{loses, "sizes", "lost or overtaken"},
		{overtakes, "bursts", "overtaken"},
		{corrupts, "sizes", "byte"},
		{truncates, "chains", "PktLen"},
		{leaks, "queues", ""},
		{keepsRefused, "full", "did not take"},
		{miscounts, "stats", "counters"},
		{allocates, "allocs", "allocate"},
		{doubles, "clones", "twice"},
	} {
		p := pair(c.fault)
		e := open(t, &p, w)
		var err error
		for range 20 { // the fault strikes every hundredth packet
			for _, k := range checks {
				if k.name == c.check && err == nil {
					err = e.check(k)
				}
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("fault %d: check %s says %v, want %q", c.fault, c.check, err, c.want)
		}
		if c.fault == leaks {
			if err := e.close(); err == nil || !strings.Contains(err.Error(), "missing") {
				t.Errorf("leaked buffers: close says %v", err)
			}
		}
	}
}
