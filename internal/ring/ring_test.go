package ring

import (
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"
)

// A ring is a bounded queue: compared with a slice.
func TestQueue(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for _, size := range []int{1, 2, 5, 64} {
		q := New(size)
		if q.Cap() < size || q.Cap() >= 2*size {
			t.Errorf("New(%d).Cap() = %d", size, q.Cap())
		}
		var want []uint32
		next := uint32(0)
		for range 20000 {
			if r.IntN(2) == 0 {
				src := make([]uint32, r.IntN(q.Cap()+3))
				for i := range src {
					src[i] = next + uint32(i)
				}
				n := q.Put(src)
				if n != min(len(src), q.Cap()-len(want)) {
					t.Fatalf("Put of %d with %d of %d inside: %d", len(src), len(want), q.Cap(), n)
				}
				want = append(want, src[:n]...)
				next += uint32(n)
			} else {
				dst := make([]uint32, r.IntN(q.Cap()+3))
				n := q.Get(dst)
				if n != min(len(dst), len(want)) || !slices.Equal(dst[:n], want[:n]) {
					t.Fatalf("Get of %d with %d inside: %d, %v", len(dst), len(want), n, dst[:n])
				}
				want = want[n:]
				if a := q.Ahead(8); len(a) > 8 || len(a) > len(want) || !slices.Equal(a, want[:len(a)]) {
					t.Fatalf("Ahead: %v of %v", a, want)
				}
			}
			var all []uint32
			q.Each(func(x uint32) { all = append(all, x) })
			if q.Len() != len(want) || !slices.Equal(all, want) {
				t.Fatalf("Len %d, Each %v, want %v", q.Len(), all, want)
			}
		}
	}
}

// Between two threads everything arrives once, in order.
func TestThreads(t *testing.T) {
	const total = 200000
	q := New(64)
	var wg sync.WaitGroup
	wg.Go(func() {
		var src [17]uint32
		for n := 0; n < total; {
			k := min(len(src), total-n)
			for i := range src[:k] {
				src[i] = uint32(n + i)
			}
			m := q.Put(src[:k])
			n += m
			if m == 0 {
				runtime.Gosched()
			}
		}
	})
	var dst [23]uint32
	for n := 0; n < total; {
		k := q.Get(dst[:])
		for i, x := range dst[:k] {
			if x != uint32(n+i) {
				t.Fatalf("got %d, want %d", x, n+i)
			}
		}
		n += k
		if k == 0 {
			runtime.Gosched()
		}
	}
	wg.Wait()
}
