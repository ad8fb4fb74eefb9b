package mem

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

func pool(t *testing.T, n int) *packet.Pool {
	t.Helper()
	p, err := packet.NewPool(t.Name(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.Free() != p.Size() {
			t.Errorf("leak: %d of %d buffers free", p.Free(), p.Size())
		}
		p.Close()
	})
	return p
}

func start(t *testing.T, q pmd.Queue, c *packet.Cache) {
	t.Helper()
	if err := q.Start(c); err != nil {
		t.Fatal(err)
	}
}

func TestPair(t *testing.T) {
	p := pool(t, 512)
	c := p.NewCache()
	defer c.Close()
	a, b := Pair("a", "b", Options{Queues: 2, Ring: 64})
	defer a.Close()
	defer b.Close()
	for i := range 2 {
		start(t, a.Queue(i), c)
		start(t, b.Queue(i), c)
		defer a.Queue(i).Stop()
		defer b.Queue(i).Stop()
	}
	src := make([]uint32, 100)
	if c.Alloc(src) != 100 {
		t.Fatal("no buffers")
	}
	if n := a.Queue(1).Tx(src); n != 64 {
		t.Fatalf("a ring of 64 took %d", n)
	}
	c.Free(src[64:])
	if n := b.Queue(1).Held(); n != 64 {
		t.Errorf("Held() = %d, want 64", n)
	}
	dst := make([]uint32, 256)
	if n := b.Queue(0).Rx(dst); n != 0 {
		t.Errorf("queue 0 got %d packets of queue 1", n)
	}
	if n := b.Queue(1).Rx(dst[:10]); n != 10 {
		t.Errorf("Rx of 10: %d", n)
	}
	if n := b.Queue(1).Rx(dst[10:]); n != 54 {
		t.Errorf("Rx of the rest: %d", n)
	}
	if !slices.Equal(dst[:64], src[:64]) {
		t.Error("other packets, or another order")
	}
	if n := b.Queue(1).Tx(dst[:64]); n != 64 {
		t.Errorf("back: %d", n)
	}
	if got, want := a.Stats(), (pmd.Stats{TxPackets: 64, TxFull: 36}); got != want {
		t.Errorf("a: %+v, want %+v", got, want)
	}
	if got, want := b.Stats(), (pmd.Stats{RxPackets: 64, TxPackets: 64}); got != want {
		t.Errorf("b: %+v, want %+v", got, want)
	}
}

// Whichever end stops last frees what nobody will receive, in either order.
func TestStop(t *testing.T) {
	for _, first := range []string{"sender", "receiver"} {
		t.Run(first, func(t *testing.T) {
			p := pool(t, 256)
			c := p.NewCache()
			defer c.Close()
			a, b := Pair("a", "b", Options{})
			defer a.Close()
			defer b.Close()
			qa, qb := a.Queue(0), b.Queue(0)
			start(t, qa, c)
			start(t, qb, c)
			src := make([]uint32, 10)
			c.Alloc(src)
			qa.Tx(src)
			if first == "sender" {
				qa.Stop()
				if qb.Held() != 10 || qa.Held() != 0 {
					t.Errorf("held by sender %d, by receiver %d", qa.Held(), qb.Held())
				}
				qb.Stop()
			} else {
				qb.Stop()
				c.Alloc(src)
				if n := qa.Tx(src); n != 0 {
					t.Errorf("a stopped queue was sent %d packets", n)
				}
				c.Free(src)
				qa.Stop()
			}
			if qa.Held()+qb.Held() != 0 {
				t.Error("packets are held after Stop")
			}
		})
	}
	t.Run("never started", func(t *testing.T) {
		p := pool(t, 256)
		c := p.NewCache()
		defer c.Close()
		a, b := Pair("a", "b", Options{})
		defer a.Close()
		defer b.Close()
		start(t, a.Queue(0), c)
		src := make([]uint32, 10)
		c.Alloc(src)
		a.Queue(0).Tx(src)
		if n := a.Queue(0).Held(); n != 10 {
			t.Errorf("Held() = %d", n)
		}
		a.Queue(0).Stop()
	})
}

func TestLinkDown(t *testing.T) {
	p := pool(t, 128)
	c := p.NewCache()
	defer c.Close()
	a, b := Pair("a", "b", Options{})
	defer a.Close()
	defer b.Close()
	start(t, a.Queue(0), c)
	defer a.Queue(0).Stop()
	b.SetLink(false)
	if a.Link().Up || b.Link().Up {
		t.Error("the link is up")
	}
	m := []uint32{c.Alloc1().Index()}
	if n := a.Queue(0).Tx(m); n != 0 {
		t.Errorf("a link that is down took %d", n)
	}
	a.SetLink(true)
	if n := a.Queue(0).Tx(m); n != 1 {
		t.Errorf("a link that is up took %d", n)
	}
}

func readable(fd int, ms int) bool {
	f := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(f, ms)
		if err != unix.EINTR {
			return n == 1
		}
	}
}

func TestSleep(t *testing.T) {
	p := pool(t, 1024)
	ca, cb := p.NewCache(), p.NewCache()
	defer ca.Close()
	defer cb.Close()
	a, b := Pair("a", "b", Options{Ring: 8})
	defer a.Close()
	defer b.Close()
	start(t, a.Queue(0), ca)
	start(t, b.Queue(0), cb)
	defer a.Queue(0).Stop()
	defer b.Queue(0).Stop()
	const total = 5000
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; n < total; {
			m := ca.Alloc1()
			if m == nil || a.Queue(0).Tx([]uint32{m.Index()}) == 0 {
				if m != nil {
					ca.Free1(m)
				}
				time.Sleep(10 * time.Microsecond)
				continue
			}
			n++
		}
	})
	q := b.Queue(0)
	fd := q.Fd()
	dst := make([]uint32, 32)
	for got := 0; got < total; {
		n := q.Rx(dst)
		cb.Free(dst[:n])
		got += n
		if n == 0 && q.Arm() && !readable(fd, 20000) {
			t.Fatalf("asleep after %d packets, Held %d", got, q.Held())
		}
	}
	wg.Wait()
	for q.Rx(dst) != 0 {
	}
	if !q.Arm() || readable(fd, 0) {
		t.Error("readable without packets")
	}
}

func TestOpen(t *testing.T) {
	for _, c := range []struct {
		c    pmd.Config
		want string
	}{
		{pmd.Config{Name: "x"}, "socket"},
		{pmd.Config{Name: "x", Socket: "w", Role: "server"}, "role"},
		{pmd.Config{Name: "x", Socket: "w", ID: 1}, "id"},
		{pmd.Config{Name: "x", Socket: "w", Secret: "s"}, "secret"},
		{pmd.Config{Name: "x", Socket: "w", Read: "f"}, "read"},
		{pmd.Config{Name: "x", Socket: "w", Write: "f"}, "write"},
		{pmd.Config{Name: "x", Socket: "w", Loop: 1}, "loop"},
		{pmd.Config{Name: "x", Socket: "w", Rate: 1}, "rate"},
		{pmd.Config{Name: "x", Socket: "w", Mode: "native"}, "mode"},
		{pmd.Config{Name: "x", Socket: "w", MTU: 70000}, "mtu"},
	} {
		if _, err := open(c.c); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: error %v, want one about %s", c.c, err, c.want)
		}
	}
	d, err := pmd.Lookup("mem")
	if err != nil {
		t.Fatal(err)
	}
	a, err := d.Open(pmd.Config{Name: "a", Socket: "w"})
	if err != nil {
		t.Fatal(err)
	}
	if a.Link().Up {
		t.Error("up before the other end is open")
	}
	if _, err := d.Open(pmd.Config{Name: "b", Socket: "w", Queues: 4}); err == nil {
		t.Error("four queues were joined with one")
	}
	b, err := d.Open(pmd.Config{Name: "b", Socket: "w", MTU: 9000})
	if err != nil {
		t.Fatal(err)
	}
	if !a.Link().Up || !b.Link().Up || b.Link().MTU != 9000 || a.Why()[0] != "joined in memory with b" {
		t.Errorf("a %+v, b %+v, %v", a.Link(), b.Link(), a.Why())
	}
	a.Close()
	if b.Link().Up {
		t.Error("up after the other end closed")
	}
	b.Close()
	// An end that never met its other frees the wire's name.
	for range 2 {
		x, err := d.Open(pmd.Config{Name: "x", Socket: "w"})
		if err != nil {
			t.Fatal(err)
		}
		if x.Link().Up {
			t.Error("joined with a closed port")
		}
		x.Close()
	}
}

func TestReplay(t *testing.T) {
	p := pool(t, 512)
	c := p.NewCache()
	defer c.Close()
	idx := make([]uint32, 300)
	c.Alloc(idx)
	r := NewReplay("r", idx)
	defer r.Close()
	out := r.NewOut("out")
	defer out.Close()
	var got []uint32
	dst := make([]uint32, 256)
	for range 6 { // three laps
		n := r.Queue(0).Rx(dst)
		got = append(got, dst[:n]...)
		k := n / 3
		r.Queue(0).Tx(dst[:k])
		if m := r.Rx(dst[255:]); r.pos == len(idx) && m != 0 {
			t.Fatal("a lap began while packets were out")
		} else if m == 1 {
			got = append(got, dst[255])
			out.Tx(dst[255:])
		}
		out.Queue(0).Tx(dst[k:n])
	}
	want := append(append(slices.Clone(idx), idx...), idx...)
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("packet %d is %d, want %d", i, got[i], want[i])
		}
	}
	if s := r.Stats().TxPackets + out.Stats().TxPackets; s != uint64(len(got)) || s != r.Stats().RxPackets {
		t.Errorf("sent %d of %d", s, len(got))
	}
	if r.Missing() != 0 {
		t.Errorf("missing %d", r.Missing())
	}

	r.Reset(2)
	out.Forget()
	n := 0
	for k := r.Rx(dst); k > 0; k = r.Rx(dst) {
		n += out.Tx(dst[:k])
	}
	if n != 600 || !slices.Equal(out.Sent(), idx) {
		t.Errorf("two laps of 300 gave %d packets", n)
	}

	r.Reset(0)
	n = r.Rx(dst)
	out.Tx(dst[:n-1]) // one is lost
	n = r.Rx(dst)
	out.Tx(dst[:n])
	if n = r.Rx(dst); n != 0 || r.Missing() != 1 {
		t.Errorf("with a packet missing (%d), Rx gave %d", r.Missing(), n)
	}
	c.Free(idx)
}

func TestNoAllocs(t *testing.T) {
	a, b := Pair("a", "b", Options{})
	defer a.Close()
	defer b.Close()
	p := pool(t, 256)
	c := p.NewCache()
	defer c.Close()
	qa, qb := a.Queue(0), b.Queue(0)
	start(t, qa, c)
	start(t, qb, c)
	defer qa.Stop()
	defer qb.Stop()
	idx := make([]uint32, 32)
	c.Alloc(idx)
	defer c.Free(idx)
	r := NewReplay("r", idx)
	defer r.Close()
	if n := testing.AllocsPerRun(100, func() {
		qa.Tx(idx)
		qb.Rx(idx)
		r.Tx(idx[:r.Rx(idx)])
	}); n != 0 {
		t.Errorf("%v allocations a burst", n)
	}
}
