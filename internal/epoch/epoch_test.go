package epoch

import (
	"sync"
	"sync/atomic"
	"testing"
)

func TestRetire(t *testing.T) {
	d := NewDomain()
	ran := 0
	retire := func() { d.Retire(func() { ran++ }) }
	check := func(when string, want int) {
		t.Helper()
		d.Reclaim()
		if ran != want {
			t.Fatalf("%s: %d freed, want %d", when, ran, want)
		}
	}
	retire()
	check("no readers", 1)

	a, b := d.NewSlot(), d.NewSlot()
	retire()
	check("all offline", 2)

	a.Online()
	b.Online()
	retire()
	check("nobody passed", 2)
	a.Quiesce()
	check("one of two passed", 2)
	b.Quiesce()
	check("both passed", 3)

	retire()
	a.Quiesce()
	b.Offline()
	check("the other sleeps", 4)
	b.Online()
	retire()
	a.Quiesce()
	check("the other woke up", 4)
	if d.Pending() != 1 {
		t.Fatalf("%d pending, want 1", d.Pending())
	}
	b.Close()
	check("the other is gone", 5)
	a.Offline()
	d.Wait()
}

// TestReaders has readers follow a pointer whose old target is poisoned when freed.
func TestReaders(t *testing.T) {
	type thing struct{ alive atomic.Bool }
	var cur atomic.Pointer[thing]
	fresh := func() *thing { x := &thing{}; x.alive.Store(true); return x }
	cur.Store(fresh())

	d := NewDomain()
	var stop atomic.Bool
	var bad, reads atomic.Int64
	var wg sync.WaitGroup
	for id := range 3 {
		s := d.NewSlot()
		wg.Go(func() {
			s.Online()
			for n := 0; !stop.Load(); n++ {
				s.Quiesce()
				x := cur.Load()
				for range 50 {
					if !x.alive.Load() {
						bad.Add(1)
					}
				}
				reads.Add(1)
				if (n+id)%64 == 0 {
					s.Offline()
					s.Online()
				}
			}
			s.Close()
		})
	}
	freed := 0
	const total = 3 * maxLimbo
	for range total {
		old := cur.Swap(fresh())
		d.Retire(func() { old.alive.Store(false); freed++ })
		if d.Pending() > maxLimbo {
			t.Error("limbo grows without bound")
		}
	}
	for reads.Load() == 0 {
		d.Wait()
	}
	d.Wait()
	if freed != total {
		t.Errorf("%d freed after Wait, want %d", freed, total)
	}
	stop.Store(true)
	wg.Wait()
	if bad.Load() != 0 {
		t.Errorf("%d reads of freed things", bad.Load())
	}
}

func TestNoAllocs(t *testing.T) {
	s := NewDomain().NewSlot()
	if n := testing.AllocsPerRun(100, func() { s.Online(); s.Quiesce(); s.Offline() }); n != 0 {
		t.Errorf("a round allocates %v times", n)
	}
}
