package pipeline

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/internal/epoch"
	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
)

// The contract is proven here against the hard cases with stages made for the purpose: one that
// holds packets and needs time, one that sends packets round again, one that
// finishes asynchronously on another thread, one with per-core state, exits to the host.

var (
	xTestHold = graph.NewReason(graph.ReasonInfo{Stage: "test", Name: "hold", Doc: "Held.", Kind: graph.Hold, To: "test-hold"})
	xTestLate = graph.NewReason(graph.ReasonInfo{Stage: "test", Name: "late", Doc: "Held for too long."})
	xTestHost = graph.NewReason(graph.ReasonInfo{Stage: "test", Name: "host", Doc: "For the host.", Kind: graph.Host, To: "host"})
)

type runFunc func(v *graph.Vector)

func (f runFunc) Run(v *graph.Vector) { f(v) }

// toAdj is a stage that sends everything to adjacency 1.
func toAdj() *graph.Stage {
	return &graph.Stage{Name: "lookup4", Doc: "all to adjacency 1", Lane: graph.Any, New: func(w *graph.Worker) graph.Runner {
		return runFunc(func(v *graph.Vector) {
			for i := range v.N {
				v.Adj[i] = 1
			}
		})
	}}
}

func rewriteStage() *graph.Stage { return Rewrite(MTUReasons{xTestLate, xTestLate, xTestLate}, nil) }

// testRig is a pipeline between two ports in memory, and the far ends of their wires.
type testRig struct {
	t      *testing.T
	pool   *packet.Pool
	cache  *packet.Cache
	tables *graph.Tables
	p      *Pipeline
	in     pmd.Queue // what is put here arrives at the router
	out    pmd.Queue // what the router sends
	ports  []pmd.Port
	first  []uint16
	one    [1]uint32
	many   [32]uint32
}

func newRig(t *testing.T, o Options, stages, exits []*graph.Stage) *testRig {
	t.Helper()
	pool, err := packet.NewPool(t.Name(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := graph.NewTables()
	if err != nil {
		t.Fatal(err)
	}
	o.Pool, o.Tables, o.Epoch = pool, tables, epoch.NewDomain()
	o.Path = Path{Stages: stages, Exits: exits}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r := &testRig{t: t, pool: pool, cache: pool.NewCache(), tables: tables, p: p}
	a, b := mem.Pair("a", "a-far", mem.Options{})
	c, d := mem.Pair("c", "c-far", mem.Options{})
	r.ports = []pmd.Port{a, b, c, d}
	for i, port := range []pmd.Port{a, c} {
		mac := port.Link().MAC
		tables.Ifaces[i+1] = graph.Iface{MAC: MACWord(mac), MTU: 1500, Flags: graph.IfUp}
		idx, err := p.AddPort(port, uint16(i+1))
		if err != nil {
			t.Fatal(err)
		}
		r.first = append(r.first, idx)
	}
	tables.Names.Store(&map[uint16]string{1: "a", 2: "c"})
	tables.Adjs[1] = graph.Adj{RW0: 0x0101010101010101, RW4: 0x0008_010101010101 << 0, RW6: 0xdd86_010101010101, Port: r.first[1], Iface: 2, MTU: 1500, L2: 14}
	r.in, r.out = b.Queue(0), d.Queue(0)
	for _, q := range []pmd.Queue{r.in, r.out} {
		if err := q.Start(r.cache); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(r.close)
	return r
}

// close checks that every packet and buffer is accounted for, and that none is lost.
func (r *testRig) close() {
	a := r.p.Account()
	if a.Missing() != 0 {
		r.t.Errorf("%d packets are unaccounted for: %+v", a.Missing(), a)
	}
	r.p.Close()
	r.in.Stop()
	r.out.Stop()
	r.cache.Close()
	for _, p := range r.ports {
		p.Close()
	}
	if r.pool.Free() != r.pool.Size() {
		r.t.Errorf("%d of %d buffers are back in the pool", r.pool.Free(), r.pool.Size())
	}
	r.pool.Close()
	r.tables.Close()
}

// frame makes an IPv4 frame to the router with n bytes of payload.
func (r *testRig) frame(ttl uint8, n int) *packet.Mbuf {
	m := r.cache.Alloc1()
	if m == nil {
		r.t.Fatal("pool empty")
	}
	b := m.Append(14 + 20 + n)
	mac := r.ports[0].Link().MAC
	copy(b, mac[:])
	copy(b[6:], "\x02\x00\x00\x00\x00\x01\x08\x00")
	h := packet.IPv4(b[14:34])
	h.Init([4]byte{10, 0, 0, 1}, [4]byte{10, 0, 1, 1}, 17, 20+n)
	h.SetTTL(ttl)
	h.SetSum()
	return m
}

func (r *testRig) send(ms ...*packet.Mbuf) {
	for _, m := range ms {
		r.one[0] = m.Index()
		for r.in.Tx(r.one[:]) == 0 {
			runtime.Gosched()
		}
	}
}

// receive waits for n packets and returns their TTLs, freeing them.
func (r *testRig) receive(n int) (ttls []uint8) {
	r.t.Helper()
	var b [32]uint32
	for end := time.Now().Add(10 * time.Second); len(ttls) < n; {
		k := r.out.Rx(b[:])
		for _, x := range b[:k] {
			m := packet.At(x)
			h := packet.IPv4(m.Bytes()[14:34])
			if !h.SumOK() {
				r.t.Error("bad header checksum")
			}
			ttls = append(ttls, h.TTL())
		}
		r.cache.Free(b[:k])
		if k == 0 {
			if time.Now().After(end) {
				r.t.Fatalf("%d of %d packets arrived; drops %v", len(ttls), n, r.drops())
			}
			time.Sleep(100 * time.Microsecond)
		}
	}
	return ttls
}

func (r *testRig) drops() map[string]uint64 {
	d := map[string]uint64{}
	for x, n := range r.p.Drops() {
		if n != 0 {
			d[graph.Reason(x).String()] = n
		}
	}
	return d
}

func TestStraight(t *testing.T) {
	for _, poll := range []Poll{Busy, Adaptive} {
		t.Run([]string{"busy", "adaptive"}[poll], func(t *testing.T) {
			r := newRig(t, Options{Poll: poll}, []*graph.Stage{Classify, toAdj(), rewriteStage()}, nil)
			for range 500 {
				r.send(r.frame(64, 26))
			}
			for _, ttl := range r.receive(500) {
				if ttl != 63 {
					t.Fatalf("TTL %d", ttl)
				}
			}
			w := r.p.Workers()[0]
			if w.C.Received != 500 || w.C.Sent != 500 || w.C.Rx[1] != (graph.Count{Packets: 500, Bytes: 500 * 60}) || w.C.Tx[2] != (graph.Count{Packets: 500, Bytes: 500 * 60}) {
				t.Errorf("received %d, sent %d, %+v, %+v", w.C.Received, w.C.Sent, w.C.Rx[1], w.C.Tx[2])
			}
		})
	}
}

// holder holds each packet for some ticks: a stage that waits.
type holder struct {
	w    *graph.Worker
	q    *graph.ParkQueue
	wait int
	due  int
}

func (h *holder) Run(*graph.Vector) {}
func (h *holder) Take(v *graph.Vector, pos []uint8, why graph.Reason) {
	for _, i := range pos {
		if !h.q.Put(v.Park(i)) {
			h.w.Discard(v.Idx[i], xTestLate)
		}
	}
	h.due = h.wait
}
func (h *holder) Tick() {
	if h.due > 0 {
		if h.due--; h.due == 0 {
			h.w.Wake = true
		}
	}
}
func (h *holder) Refill(v *graph.Vector) int {
	if h.due > 0 {
		return 0
	}
	return h.q.Refill(v)
}
func (h *holder) Held() int { return h.q.Len() }
func (h *holder) Flush() {
	for p, ok := h.q.Get(); ok; p, ok = h.q.Get() {
		h.w.Discard(p.Idx, xTestLate)
	}
}

func holdStage(wait int) (road, exit *graph.Stage) {
	road = &graph.Stage{Name: "test-gate", Doc: "hold packets of TTL 9", Lane: graph.IPv4, Reasons: []graph.Reason{xTestHold},
		New: func(w *graph.Worker) graph.Runner {
			return runFunc(func(v *graph.Vector) {
				k := 0
				for j := range v.N4 {
					i := v.Lane4[j]
					if v.In[i] != 0 && packet.IPv4(v.Mbuf(i).Bytes()[14:34]).TTL() == 9 {
						v.Exit(i, xTestHold)
						continue
					}
					v.Lane4[k] = i
					k++
				}
				v.N4 = k
			})
		}}
	exit = &graph.Stage{Name: "test-hold", Doc: "hold for some ticks", Resume: "lookup4", Reasons: []graph.Reason{xTestLate},
		New: func(w *graph.Worker) graph.Runner {
			return &holder{w: w, q: graph.NewParkQueue(64), wait: wait}
		}}
	return road, exit
}

// TestHold: held packets come back after others that came later, and overflow and closing are accounted for.
func TestHold(t *testing.T) {
	road, exit := holdStage(20)
	r := newRig(t, Options{Poll: Adaptive}, []*graph.Stage{Classify, road, toAdj(), rewriteStage()}, []*graph.Stage{exit})
	r.send(r.frame(9, 26), r.frame(64, 26), r.frame(9, 26))
	ttls := r.receive(3)
	if ttls[0] != 63 || ttls[1] != 8 || ttls[2] != 8 {
		t.Errorf("TTLs in order of arrival: %v", ttls)
	}
	road, exit = holdStage(1 << 30) // for ever: closing the router drops what is held
	r = newRig(t, Options{}, []*graph.Stage{Classify, road, toAdj(), rewriteStage()}, []*graph.Stage{exit})
	for range 70 {
		r.send(r.frame(9, 26))
	}
	r.send(r.frame(64, 26))
	r.receive(1)
	a := r.p.Account()
	if a.Held["test-hold"] != 64 || a.Dropped != 6 {
		t.Errorf("held %v, dropped %d, want 64 and 6", a.Held, a.Dropped)
	}
}

// TestAgain: IP in IP, unwrapped as often as it is nested, up to the bound.
func TestAgain(t *testing.T) {
	decap := &graph.Stage{Name: "test-decap", Doc: "unwrap protocol 4", Lane: graph.IPv4, New: func(w *graph.Worker) graph.Runner {
		return runFunc(func(v *graph.Vector) {
			k := 0
			for j := range v.N4 {
				i := v.Lane4[j]
				m, off := v.Mbuf(i), v.L3Off(i)
				if packet.IPv4(m.Bytes()[off:]).Proto() == 4 {
					m.TrimHead(off + 20)
					v.SetL3(i, 0)
					v.Again(i)
					continue
				}
				v.Lane4[k] = i
				k++
			}
			v.N4 = k
		})
	}}
	nested := func(r *testRig, depth int) *packet.Mbuf {
		m := r.frame(64, 26)
		m.TrimHead(14)
		for range depth {
			h := packet.IPv4(m.Prepend(20))
			h.Init([4]byte{10, 0, 0, 9}, [4]byte{10, 0, 0, 8}, 4, int(m.PktLen))
			h.SetTTL(99)
			h.SetSum()
		}
		mac := r.ports[0].Link().MAC
		b := m.Prepend(14)
		copy(b, mac[:])
		copy(b[6:], "\x02\x00\x00\x00\x00\x01\x08\x00")
		return m
	}
	r := newRig(t, Options{}, []*graph.Stage{Classify, decap, toAdj(), rewriteStage()}, nil)
	big := func(depth int) *packet.Mbuf { // deep nests need more headroom
		m := nested(r, min(depth, 4))
		return m
	}
	r.send(big(0), big(1), big(4))
	for _, ttl := range r.receive(3) {
		if ttl != 63 {
			t.Errorf("TTL %d of the inner packet, want 63", ttl)
		}
	}
	// A loop: the packet that never ends being wrapped.
	m := r.cache.Alloc1()
	b := m.Append(14 + 20*12)
	mac := r.ports[0].Link().MAC
	copy(b, mac[:])
	copy(b[6:], "\x02\x00\x00\x00\x00\x01\x08\x00")
	for k := range 12 {
		h := packet.IPv4(b[14+20*k:])
		h.Init([4]byte{1, 1, 1, 1}, [4]byte{2, 2, 2, 2}, 4, 20*(12-k))
	}
	r.send(m, r.frame(64, 26))
	r.receive(1)
	if d := r.drops(); d["road/too-many-rounds"] != 1 {
		t.Errorf("drops %v", d)
	}
}

// remote is a stage whose work is done by another thread, in its own time and order.
type remote struct {
	w    *graph.Worker
	work chan graph.Parked
	back chan graph.Parked
	out  int
	mu   sync.Mutex
	full bool
}

func (s *remote) Run(v *graph.Vector) {
	k := 0
	for j := range v.N4 {
		i := v.Lane4[j]
		select {
		case s.work <- v.Park(i):
			s.out++
		default:
			v.Exit(i, xTestLate)
		}
	}
	v.N4 = k
	s.w.Wake = true
}

func (s *remote) Refill(v *graph.Vector) int {
	n := 0
	for v.N < graph.VectorSize {
		select {
		case p := <-s.back:
			v.Unpark(p)
			s.out--
			n++
			continue
		default:
		}
		break
	}
	s.w.Wake = s.w.Wake || s.out > 0
	return n
}
func (s *remote) Held() int { return s.out }
func (s *remote) Flush() {
	for ; s.out > 0; s.out-- {
		p := <-s.back
		s.w.Discard(p.Idx, xTestLate)
	}
}

func TestAsync(t *testing.T) {
	var wg sync.WaitGroup
	var works []chan graph.Parked
	async := &graph.Stage{Name: "test-async", Doc: "work on another thread", Lane: graph.IPv4, New: func(w *graph.Worker) graph.Runner {
		s := &remote{w: w, work: make(chan graph.Parked, 512), back: make(chan graph.Parked, 512)}
		works = append(works, s.work)
		wg.Add(1)
		go func() {
			defer wg.Done()
			for p := range s.work {
				m := packet.At(p.Idx)
				h := packet.IPv4(m.Bytes()[14:34])
				h.SetTTL(h.TTL() + 10)
				h.SetSum()
				s.back <- p
			}
		}()
		return s
	}}
	r := newRig(t, Options{Poll: Adaptive}, []*graph.Stage{Classify, async, toAdj(), rewriteStage()}, nil)
	for k := range 300 {
		r.send(r.frame(uint8(20+k%100), 26))
	}
	sum := 0
	for _, ttl := range r.receive(300) {
		sum += int(ttl)
	}
	want := 0
	for k := range 300 {
		want += 20 + k%100 + 10 - 1
	}
	if sum != want {
		t.Errorf("sum of TTLs %d, want %d", sum, want)
	}
	r.p.Close()
	for _, c := range works {
		close(c)
	}
	wg.Wait()
}

// TestPerCore: each worker has its own instance, and a packet that comes in at one worker leaves by
// a port that another owns.
func TestPerCore(t *testing.T) {
	var made atomic.Int32
	counts := make([]int, 2)
	count := &graph.Stage{Name: "test-count", Doc: "count by core", Lane: graph.Any, New: func(w *graph.Worker) graph.Runner {
		made.Add(1)
		n := &counts[w.ID]
		return runFunc(func(v *graph.Vector) { *n += v.N })
	}}
	r := newRig(t, Options{Cores: []int{-1, -1}, Poll: Adaptive}, []*graph.Stage{Classify, count, toAdj(), rewriteStage()}, nil)
	// Another port, with two queues: one for each worker.
	a, b := mem.Pair("e", "e-far", mem.Options{Queues: 2})
	r.ports = append(r.ports, a, b)
	mac := a.Link().MAC
	r.tables.Ifaces[3] = graph.Iface{MAC: MACWord(mac), MTU: 1500, Flags: graph.IfUp}
	if _, err := r.p.AddPort(a, 3); err != nil {
		t.Fatal(err)
	}
	for q := range 2 {
		if err := b.Queue(q).Start(r.cache); err != nil {
			t.Fatal(err)
		}
		defer b.Queue(q).Stop()
	}
	for k := range 100 {
		m := r.frame(64, 26)
		copy(m.Bytes(), mac[:])
		one := [1]uint32{m.Index()}
		if b.Queue(k%2).Tx(one[:]) != 1 {
			t.Fatal("ring full")
		}
	}
	r.receive(100)
	r.p.pause(func() {
		if made.Load() != 2 || counts[0] != 50 || counts[1] != 50 {
			t.Errorf("%d instances saw %v packets", made.Load(), counts)
		}
	})
}

// TestHost: packets for the host go to the TAP's port where there is one, are counted where the
// kernel saw them itself, and what comes from the TAP goes out as it is.
func TestHost(t *testing.T) {
	toHost := &graph.Stage{Name: "test-local", Doc: "all for the host", Lane: graph.IPv4, Reasons: []graph.Reason{xTestHost}, New: func(w *graph.Worker) graph.Runner {
		return runFunc(func(v *graph.Vector) {
			for j := range v.N4 {
				v.Exit(v.Lane4[j], xTestHost)
			}
			v.N4 = 0
		})
	}}
	r := newRig(t, Options{Poll: Adaptive}, []*graph.Stage{Classify, toHost, toAdj(), rewriteStage()}, []*graph.Stage{HostExit})
	tap, far := mem.Pair("tap", "tap-far", mem.Options{})
	r.ports = append(r.ports, tap, far)
	if _, err := r.p.AddTap(tap, r.first[0]); err != nil {
		t.Fatal(err)
	}
	kernel := far.Queue(0)
	if err := kernel.Start(r.cache); err != nil {
		t.Fatal(err)
	}
	defer kernel.Stop()
	r.send(r.frame(1, 26))
	var b [4]uint32
	n := 0
	for end := time.Now().Add(10 * time.Second); n == 0 && time.Now().Before(end); {
		n = kernel.Rx(b[:])
	}
	if n != 1 || packet.IPv4(packet.At(b[0]).Bytes()[14:34]).TTL() != 1 {
		t.Fatalf("%d packets at the TAP", n)
	}
	// The kernel answers through the TAP: out of the port's wire, untouched.
	if kernel.Tx(b[:1]) != 1 {
		t.Fatal("TAP takes nothing")
	}
	for end := time.Now().Add(10 * time.Second); ; {
		if k := r.in.Rx(b[:]); k == 1 {
			if packet.IPv4(packet.At(b[0]).Bytes()[14:34]).TTL() != 1 {
				t.Error("the road touched the host's packet")
			}
			r.cache.Free(b[:1])
			break
		}
		if time.Now().After(end) {
			t.Fatal("nothing came out")
		}
	}
	a := r.p.Account()
	if a.ToHost != 1 || a.FromHost != 1 {
		t.Errorf("to host %d, from host %d", a.ToHost, a.FromHost)
	}
}

// TestPortRemoved: packets for a port that is gone are drops with a reason, and the rest goes on.
func TestPortRemoved(t *testing.T) {
	r := newRig(t, Options{Poll: Adaptive}, []*graph.Stage{Classify, toAdj(), rewriteStage()}, nil)
	r.send(r.frame(64, 26))
	r.receive(1)
	r.p.RemovePort(r.first[1])
	r.send(r.frame(64, 26))
	for end := time.Now().Add(10 * time.Second); r.drops()["tx/no-port"] != 1; {
		if time.Now().After(end) {
			t.Fatalf("drops %v", r.drops())
		}
		time.Sleep(time.Millisecond)
	}
	idx, err := r.p.AddPort(r.ports[2], 2)
	if err != nil {
		t.Fatal(err)
	}
	if idx != r.first[1] {
		t.Errorf("index %d, want %d again", idx, r.first[1])
	}
	r.send(r.frame(64, 26))
	r.receive(1)
}

func TestNoAllocs(t *testing.T) {
	r := newRig(t, Options{}, []*graph.Stage{Classify, toAdj(), rewriteStage()}, nil)
	r.send(r.frame(64, 26))
	r.receive(1)
	w := r.p.Workers()[0]
	var before, after runtime.MemStats
	w.Do(func() { runtime.ReadMemStats(&before) })
	for range 100 {
		for range 10 {
			r.send(r.frame(64, 26))
		}
		for n := 0; n < 10; {
			k := r.out.Rx(r.many[:])
			r.cache.Free(r.many[:k])
			n += k
		}
	}
	w.Do(func() { runtime.ReadMemStats(&after) })
	if n := after.Mallocs - before.Mallocs; n > 50 { // the two Do's and the runtime's own
		t.Errorf("%d allocations for 1000 packets", n)
	}
}
