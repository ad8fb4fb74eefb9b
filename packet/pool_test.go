package packet

import (
	"bytes"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"unsafe"

	"millrace/internal/ring"
)

func testPool(t testing.TB, n int) (*Pool, *Cache) {
	t.Helper()
	p, err := NewPool(t.Name(), n)
	if err != nil {
		t.Fatal(err)
	}
	return p, p.NewCache()
}

// closePool checks that every buffer came home.
func closePool(t testing.TB, p *Pool, caches ...*Cache) {
	t.Helper()
	for _, c := range caches {
		c.Close()
	}
	if p.Free() != p.Size() {
		t.Errorf("pool %s: %d of %d buffers came back", p.Name(), p.Free(), p.Size())
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// chain makes a packet of the bytes, cut into segments of the given lengths; the
// rest goes into segments of DataRoom at the most.
func chain(c *Cache, b []byte, cuts ...int) *Mbuf {
	head := c.Alloc1()
	tail := head
	for first := true; first || len(b) > 0; first = false {
		n := min(len(b), DataRoom)
		if len(cuts) > 0 {
			n, cuts = min(n, cuts[0]), cuts[1:]
		}
		if !first {
			s := c.Alloc1()
			tail.SetNext(s)
			tail = s
			head.NbSegs++
		}
		tail.DataLen = uint16(n)
		copy(tail.Bytes(), b[:n])
		head.PktLen += uint32(n)
		b = b[n:]
	}
	return head
}

func content(m *Mbuf) []byte {
	b := make([]byte, m.PktLen)
	return b[:m.CopyOut(0, b)]
}

func TestPoolRounds(t *testing.T) {
	for _, n := range []int{1, 128, 129, 1000} {
		p, c := testPool(t, n)
		if p.Size()%128 != 0 || p.Size() < n {
			t.Errorf("asked for %d, got %d", n, p.Size())
		}
		all := make([]uint32, p.Size()+1)
		got := c.Alloc(all)
		if got != p.Size() {
			t.Fatalf("%d of %d buffers could be had", got, p.Size())
		}
		if p.Free() != 0 {
			t.Errorf("Free is %d with everything out", p.Free())
		}
		all = all[:got]
		slices.Sort(all)
		if len(slices.Compact(slices.Clone(all))) != got {
			t.Fatal("a buffer was given out twice")
		}
		for k, i := range all {
			m := At(i)
			switch {
			case m.Index() != i, !p.Contains(i), p.Contains(i + 1), i != p.First()+uint32(k)*Stride/64:
				t.Fatalf("buffer %d: index %d, contained %v", i, m.Index(), p.Contains(i))
			case m.BufAddr != uintptr(unsafe.Pointer(m))+HeaderSize, m.DataOff != Headroom, m.TailSpace() != DataRoom:
				t.Fatalf("buffer %d: %+v", i, m)
			case p.FromOffset(uint64(k)*Stride+DataStart+7) != i:
				t.Fatal("FromOffset does not find the buffer of a data byte")
			}
		}
		if c.Alloc1() != nil {
			t.Fatal("an empty pool gave a buffer")
		}
		c.Free(all)
		closePool(t, p, c)
	}
}

func TestPoolNumbersAreReused(t *testing.T) {
	for range 200 {
		p, c := testPool(t, 128)
		m := c.Alloc1()
		c.Free1(m)
		closePool(t, p, c)
	}
}

func TestTwoPools(t *testing.T) {
	p, c := testPool(t, 256)
	q, d := testPool(t, 128)
	a, b := make([]uint32, 256), make([]uint32, 128)
	c.Alloc(a)
	d.Alloc(b)
	for _, i := range b {
		if p.Contains(i) || !q.Contains(i) {
			t.Fatal("a buffer is claimed by the wrong pool")
		}
	}
	c.Free(b) // through the other pool's cache
	d.Free(a)
	if d.Alloc(b) != 128 || c.Alloc(a) != 256 {
		t.Error("buffers freed through another pool's cache did not go home")
	}
	d.Free(b)
	c.Free(a)
	closePool(t, p, c)
	closePool(t, q, d)
}

// TestAgainstModel does random things to packets and compares them with plain slices.
func TestAgainstModel(t *testing.T) {
	p, c := testPool(t, 512)
	r := rand.New(rand.NewPCG(9, 10))
	type pkt struct {
		m    *Mbuf
		want []byte
	}
	var live []pkt
	segments := func() (n int) {
		for _, x := range live {
			n += int(x.m.NbSegs)
		}
		return n
	}
	used := func() int {
		set := map[*Mbuf]bool{}
		for _, x := range live {
			for s := x.m; s != nil; s = s.NextSeg() {
				set[s], set[s.Direct()] = true, true
			}
		}
		return len(set)
	}
	owned := func(m *Mbuf) bool {
		for ; m != nil; m = m.NextSeg() {
			if m.Shared() {
				return false
			}
		}
		return true
	}
	for step := range 20000 {
		op := r.IntN(9)
		if segments() > 300 {
			op = 8
		}
		if len(live) == 0 {
			op = 0
		}
		k := 0
		if len(live) > 0 {
			k = r.IntN(len(live))
		}
		switch op {
		case 0:
			b := randomBytes(r, r.IntN(3000))
			live = append(live, pkt{chain(c, b, r.IntN(50), r.IntN(1800)), b})
		case 1:
			if m := c.Clone(live[k].m); m != nil {
				live = append(live, pkt{m, bytes.Clone(live[k].want)})
			}
		case 2:
			w := live[k].want
			off := r.IntN(len(w) + 1)
			n := r.IntN(len(w) - off + 1)
			if m := c.CloneRange(live[k].m, off, n); m != nil {
				live = append(live, pkt{m, bytes.Clone(w[off : off+n])})
			}
		case 3:
			x := &live[k]
			if n := r.IntN(40); !x.m.Shared() && n <= x.m.HeadSpace() {
				b := randomBytes(r, n)
				copy(x.m.Prepend(n), b)
				x.want = append(b, x.want...)
			} else if !x.m.Shared() && x.m.Prepend(x.m.HeadSpace()+1) != nil {
				t.Fatal("Prepend went beyond the headroom")
			}
		case 4:
			x := &live[k]
			if n := r.IntN(40); n <= int(x.m.DataLen) && x.m.Direct().RefCnt == 1 {
				x.m.TrimHead(n)
				x.want = x.want[n:]
			}
		case 5:
			x := &live[k]
			n := r.IntN(40)
			if owned(x.m) {
				if d := x.m.Append(n); d != nil {
					b := randomBytes(r, n)
					copy(d, b)
					x.want = append(x.want, b...)
				}
			}
		case 6:
			if x := &live[k]; owned(x.m) && len(x.want) > 0 {
				b := randomBytes(r, r.IntN(len(x.want)))
				off := r.IntN(len(x.want) - len(b) + 1)
				if x.m.CopyIn(off, b) != len(b) {
					t.Fatal("CopyIn stopped early")
				}
				copy(x.want[off:], b)
			}
		case 7:
			x := live[k]
			if len(x.want) > 0 {
				off := r.IntN(len(x.want))
				n := r.IntN(len(x.want)-off) + 1
				tmp := make([]byte, len(x.want))
				if !bytes.Equal(x.m.View(off, n, tmp), x.want[off:off+n]) {
					t.Fatal("View differs")
				}
				if x.m.View(off, len(x.want)-off+1, append(tmp, 0)) != nil {
					t.Fatal("View past the end")
				}
			}
		default:
			c.Free1(live[k].m)
			live = slices.Delete(live, k, k+1)
		}
		if step%100 == 0 {
			for _, x := range live {
				if int(x.m.PktLen) != len(x.want) || !bytes.Equal(content(x.m), x.want) {
					t.Fatalf("step %d: a packet of %d bytes differs from the model", step, len(x.want))
				}
			}
			if free, used := p.Free(), used(); free != p.Size()-used {
				t.Fatalf("step %d: %d of %d buffers free, %d in use", step, free, p.Size(), used)
			}
		}
	}
	for _, x := range live {
		c.Free1(x.m)
	}
	closePool(t, p, c)
}

func TestCloneOutlivesOriginal(t *testing.T) {
	p, c := testPool(t, 128)
	b := []byte("the quick brown fox jumps over the lazy dog")
	m := chain(c, b, 10, 10)
	x := c.Clone(m)
	y := c.Clone(x)
	if !m.Shared() || !x.Shared() {
		t.Error("cloned bytes are not marked as shared")
	}
	c.Free1(m)
	c.Free1(x)
	if !bytes.Equal(content(y), b) {
		t.Errorf("clone of a clone reads %q", content(y))
	}
	if free := p.Free(); free != p.Size()-2*int(y.NbSegs) {
		t.Errorf("%d buffers free, want all but %d", free, 2*y.NbSegs)
	}
	c.Free1(y)
	closePool(t, p, c)
}

func TestCloneWithoutBuffers(t *testing.T) {
	p, c := testPool(t, 128)
	m := chain(c, make([]byte, 100), 10, 10, 10)
	rest := make([]uint32, p.Free()-2)
	c.Alloc(rest)
	if c.Clone(m) != nil {
		t.Error("a clone of 4 segments out of 2 buffers")
	}
	if m.RefCnt != 1 || m.NextSeg().RefCnt != 1 {
		t.Error("a failed clone left references behind")
	}
	c.Free(rest)
	rest = rest[:0]
	for range p.Free() {
		rest = append(rest, c.Alloc1().Index())
	}
	if c.CloneRange(m, 0, 5) != nil {
		t.Error("a clone out of nothing")
	}
	c.Free(rest)
	c.Free1(m)
	closePool(t, p, c)
}

func TestCloneOfNothing(t *testing.T) {
	p, c := testPool(t, 128)
	m := chain(c, make([]byte, 100), 10, 30)
	for _, off := range []int{0, 5, 10, 50, 100} {
		x := c.CloneRange(m, off, 0)
		if x.NbSegs != 1 || x.PktLen != 0 || x.DataLen != 0 {
			t.Errorf("no bytes from %d on: %d segments, %d and %d bytes", off, x.NbSegs, x.PktLen, x.DataLen)
		}
		c.Free1(x)
	}
	c.Free1(m)
	closePool(t, p, c)
}

func TestFreeSegs(t *testing.T) {
	p, c := testPool(t, 128)
	m := chain(c, make([]byte, 100), 30, 30)
	var segs []uint32
	for s := m; s != nil; s = s.NextSeg() {
		segs = append(segs, s.Index())
	}
	c.FreeSegs(segs)
	closePool(t, p, c)
}

// TestThreads passes packets around a circle of goroutines, each with its own cache:
// what one allocates another frees, and clones are dropped by two at once.
func TestThreads(t *testing.T) {
	const threads, rounds = 4, 3000
	p, err := NewPool(t.Name(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	var rings [threads]*ring.Ring
	for i := range rings {
		rings[i] = ring.New(256)
	}
	var wg, produced sync.WaitGroup
	produced.Add(threads)
	done := make(chan struct{})
	go func() { produced.Wait(); close(done) }()
	for id := range threads {
		wg.Add(1)
		go func() {
			defer wg.Done()
			c := p.NewCache()
			defer c.Close()
			out, in := rings[id], rings[(id+threads-1)%threads]
			var b [32]uint32
			drain := func() int {
				n := in.Get(b[:])
				for _, i := range b[:n] {
					if m := At(i); m.Bytes()[0] != 0x5a || m.PktLen != 64 {
						t.Errorf("packet %d arrived changed", i)
					}
				}
				c.Free(b[:n])
				return n
			}
			for range rounds {
				var burst [16]uint32
				n := c.Alloc(burst[:])
				for _, i := range burst[:n] {
					m := At(i)
					m.Append(64)[0] = 0x5a
				}
				for k, i := range burst[:n] {
					if k%4 == 0 {
						if x := c.Clone(At(i)); x != nil {
							y := [1]uint32{x.Index()}
							if out.Put(y[:]) == 0 {
								c.Free(y[:])
							}
						}
					}
				}
				sent := out.Put(burst[:n])
				c.Free(burst[sent:n])
				drain()
			}
			produced.Done()
			for {
				select {
				case <-done:
					for drain() > 0 {
					}
					return
				default:
					drain()
				}
			}
		}()
	}
	wg.Wait()
	closePool(t, p)
}

func TestNoAllocs(t *testing.T) {
	p, c := testPool(t, 512)
	defer closePool(t, p, c)
	var b [64]uint32
	m := chain(c, make([]byte, 200), 10, 60)
	defer c.Free1(m)
	h := m.Bytes()
	h[0] = 0x45
	for name, f := range map[string]func(){
		"Alloc and Free": func() { c.Free(b[:c.Alloc(b[:])]) },
		"Clone":          func() { c.Free1(c.Clone(m)) },
		"SumChain":       func() { SumChain(m, 3, 150, 0) },
		"View":           func() { var tmp [40]byte; m.View(5, 30, tmp[:]) },
		"WalkIPv6":       func() { WalkIPv6(m, 0) },
		"ParseEther":     func() { ParseEther(h) },
		"Key":            func() { Key(m, 0) },
		"Prefetch":       func() { Prefetch(b[:]) },
	} {
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
}
