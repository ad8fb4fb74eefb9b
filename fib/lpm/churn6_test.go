package lpm

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/epoch"
)

// TestDay6 replays a day's updates in batches, and compares the table with the trie at each prefix and at many random
// places, and with the slow table at some.
func TestDay6(t *testing.T) {
	if testing.Short() {
		t.Skip("a full table and its updates take seconds")
	}
	table := table6(t)
	r := newRig6(t)
	var err error
	if r.twin, err = newTrie6(r.d); err != nil {
		t.Fatal(err)
	}
	defer r.twin.Close()
	for _, p := range table {
		r.must(p, valueOf6(p))
	}
	for i := range 300 { // beyond what the Internet has
		p, _ := table[i*37%len(table)].Addr().Prefix(64 + i%65)
		r.must(p, uint16(i+1))
	}
	r.Commit()
	r.sound()
	x := rand.New(rand.NewPCG(1, 1))
	for _, u := range day6(t, table, 1<<30) {
		r.must(u.p, u.v)
		if x.IntN(500) == 0 {
			r.Commit()
			if x.IntN(4) == 0 {
				r.same(edges6(u.p))
			}
		}
	}
	r.Commit()
	r.sound()
	var dst [][16]byte
	for p := range r.slow.m {
		for _, a := range edges6(p) {
			dst = append(dst, a.As16())
		}
	}
	for range 1_000_000 {
		p := table[x.IntN(len(table))]
		a := number(p.Addr().As16())
		dst = append(dst, addr6(u128{a.hi ^ x.Uint64()>>(16+x.IntN(48)), x.Uint64()}).As16())
	}
	got, want := make([]uint16, len(dst)), make([]uint16, len(dst))
	r.Find(&dst[0], &got[0], len(dst))
	r.twin.Find(&dst[0], &want[0], len(dst))
	for i, v := range got {
		if v != want[i] {
			t.Fatalf("%v: %d, want %d", netip.AddrFrom16(dst[i]), v, want[i])
		}
	}
	var look []netip.Addr
	for range 20_000 {
		look = append(look, netip.AddrFrom16(dst[x.IntN(len(dst))]))
	}
	r.same(look)
}

// setTrap makes retired lines lead to MaxValue.
func (r *rig6) setTrap() {
	r.t.Helper()
	b, err := r.lines.get(1 << blockOrder)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := range uint32(1) << blockOrder {
		*r.at(b + i) = trapLine(b)
	}
	r.lines.mu.Lock()
	r.lines.trap = b
	r.lines.mu.Unlock()
}

// reader6 polls a table and counts values that the destinations never had.
type reader6 struct {
	looked, bad atomic.Int64
	first       atomic.Uint64
}

func (rd *reader6) poll(t *Table6, s *epoch.Slot, stop *atomic.Bool, dst [][16]byte, ok func(i int, v uint16) bool) {
	s.Online()
	defer s.Close()
	var out [batch6]uint16
	for i := 0; !stop.Load(); i = (i + batch6) % len(dst) {
		s.Quiesce()
		n := min(batch6, len(dst)-i)
		t.Find(&dst[i], &out[0], n)
		for j, v := range out[:n] {
			if !ok(i+j, v) {
				rd.first.CompareAndSwap(0, uint64(i+j)<<16|uint64(v))
				rd.bad.Add(1)
			}
		}
		rd.looked.Add(int64(n))
	}
	s.Offline()
}

// TestReaders6 changes a table under readers: a prefix has always one of two values of its own, come and go what may
// around it, and what is retired is a trap.
func TestReaders6(t *testing.T) {
	r := newRig6(t)
	r.setTrap()
	x := rand.New(rand.NewPCG(9, 1))
	var fixed []netip.Prefix
	for len(fixed) < 600 {
		p := dense6(x)
		if len(fixed)%2 == 0 {
			p = randomRoute6(x)
		}
		if _, ok := r.slow.m[p]; !ok && p.Bits() >= 24 {
			r.must(p, uint16(2*len(fixed)+2))
			fixed = append(fixed, p)
		}
	}
	r.Commit()
	// Destinations that fall to a fixed prefix, and to no longer one.
	var dst [][16]byte
	var of []uint16
	for i, p := range fixed {
		for _, a := range edges6(p)[:2] {
			if _, bits := r.slow.lookup(a, 129); bits == p.Bits() {
				dst = append(dst, a.As16())
				of = append(of, uint16(2*i+2))
			}
		}
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	var rd reader6
	for range 2 {
		s := r.d.NewSlot()
		wg.Go(func() {
			rd.poll(r.Table6, s, &stop, dst, func(i int, v uint16) bool { return v == of[i] || v == of[i]+1 })
		})
	}
	inUse := func(p netip.Prefix) bool { // it would cover a destination
		for _, d := range dst {
			if p.Contains(netip.AddrFrom16(d)) {
				return true
			}
		}
		return false
	}
	end := time.Now().Add(2 * time.Second)
	if testing.Short() {
		end = time.Now().Add(300 * time.Millisecond)
	}
	have := map[netip.Prefix]bool{}
	for steps := 0; time.Now().Before(end) || rd.looked.Load() < 1000; steps++ {
		p := dense6(x)
		switch k := x.IntN(len(fixed)); x.IntN(4) {
		case 0:
			r.must(fixed[k], uint16(2*k+2+x.IntN(2)))
			continue
		case 1: // shorter than a fixed one, which stays
			p, _ = fixed[k].Addr().Prefix(x.IntN(fixed[k].Bits()))
			if _, ok := r.slow.m[p]; ok && !have[p] {
				continue
			}
		default:
			if _, ok := r.slow.m[p]; ok && !have[p] || inUse(p) {
				continue
			}
			if x.IntN(4) == 0 { // many neighbours, to split and join
				b := number(p.Addr().As16())
				for j := range uint64(200) {
					q := netip.PrefixFrom(addr6(u128{b.hi, b.lo ^ j<<1}), 128)
					if _, ok := r.slow.m[q]; ok && !have[q] || inUse(q) {
						continue
					}
					if have[q] = !have[q]; have[q] {
						r.must(q, uint16(2000+j))
					} else {
						r.must(q, 0)
					}
				}
			}
		}
		// A prefix between a fixed one and its destinations would not do.
		if inUse(p) {
			longer := false
			for i, d := range dst {
				longer = longer || p.Contains(netip.AddrFrom16(d)) && p.Bits() > fixed[of[i]/2-1].Bits()
			}
			if longer {
				continue
			}
		}
		if have[p] = !have[p]; have[p] {
			r.must(p, uint16(3000+x.IntN(9)))
		} else {
			r.must(p, 0)
		}
		if x.IntN(10) == 0 {
			r.Commit()
		}
	}
	r.Commit()
	stop.Store(true)
	wg.Wait()
	if n := rd.bad.Load(); n > 0 {
		i, v := rd.first.Load()>>16, uint16(rd.first.Load())
		t.Errorf("%d of %d values seen were never right, as %d for %v, of %v", n, rd.looked.Load(), v, netip.AddrFrom16(dst[i]), fixed[of[i]/2-1])
	}
	r.lines.trap = 0
	r.d.Wait()
	t.Logf("%d values seen", rd.looked.Load())
}

// threadTime is the processor time of this thread: what others use of the machine does not count.
func threadTime(t testing.TB) time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		t.Fatal(err)
	}
	return time.Duration(ts.Nano())
}

// BenchmarkUpdate6 applies the day's updates to a full table, in batches, beside a reader that polls.
func BenchmarkUpdate6(b *testing.B) {
	table := table6(b)
	day := day6(b, table, 400_000)
	// What an update does, with the parent that the FIB knows, is worked out before.
	type op struct {
		a          [16]byte
		bits       int
		v          uint16
		kind       int
		parentBits int
	}
	slow := newSlow6()
	for _, p := range table {
		slow.set(p, valueOf6(p))
	}
	var ops []op
	for _, u := range day {
		_, ok := slow.m[u.p]
		o := op{a: u.p.Addr().As16(), bits: u.p.Bits(), v: u.v, kind: 1}
		switch {
		case u.v == 0 && !ok:
			continue
		case u.v == 0:
			slow.del(u.p)
			o.kind = 2
			o.v, o.parentBits = slow.lookup(u.p.Addr(), u.p.Bits())
		default:
			if !ok {
				o.kind = 0
			}
			slow.set(u.p, u.v)
		}
		ops = append(ops, o)
	}
	for name, batch := range map[string]int{"one-by-one": 1, "by-100": 100, "by-1000": 1000} {
		for _, polling := range []bool{true, false} {
			if !polling {
				name += "/no-reader"
			}
			b.Run(name, func(b *testing.B) {
				t, err := New6(epoch.NewDomain())
				if err != nil {
					b.Fatal(err)
				}
				defer t.Close()
				fill6(b, t, table)
				dst := traces6(table, 1<<14)["prefixes"]
				var stop atomic.Bool
				var wg sync.WaitGroup
				var rd reader6
				if polling {
					s := t.d.NewSlot()
					wg.Go(func() { rd.poll(t, s, &stop, dst, func(i int, v uint16) bool { return true }) })
				}
				n := 0
				runtime.LockOSThread()
				defer runtime.UnlockOSThread()
				b.ResetTimer()
				start := threadTime(b)
				for range b.N {
					if n == len(ops) {
						b.Skip("the day is over")
					}
					o := &ops[n]
					switch o.kind {
					case 0:
						t.Insert(o.a, o.bits, o.v)
					case 1:
						t.Replace(o.a, o.bits, o.v)
					case 2:
						t.Remove(o.a, o.bits, o.v, o.parentBits)
					}
					if n++; n%batch == 0 {
						t.Commit()
					}
				}
				t.Commit()
				b.ReportMetric(float64(n)/(threadTime(b)-start).Seconds()/1e6, "M/s")
				stop.Store(true)
				wg.Wait()
				t.d.Wait()
				hot, _ := t.Bytes()
				b.ReportMetric(float64(hot)/(1<<20), "hot-MiB")
			})
		}
	}
}
