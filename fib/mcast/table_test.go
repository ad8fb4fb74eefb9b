package mcast

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"

	"millrace/internal/epoch"
)

// held are Adjacencies that count.
type held struct {
	mu   sync.Mutex
	n    map[uint16]int
	deny uint16
}

func (h *held) HoldMulticast(i uint16) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i == h.deny {
		return errors.New("no")
	}
	h.n[i]++
	return nil
}

func (h *held) LetMulticast(i uint16) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n[i]--
}

func randomKey(r *rand.Rand, n int) Key {
	k, i := Key{}, r.IntN(n)
	if i%2 == 0 {
		k.Group = netip.AddrFrom4([4]byte{239, byte(i >> 16), byte(i >> 8), byte(i)})
		k.Source = netip.AddrFrom4([4]byte{10, 0, byte(r.IntN(2)), 1})
	} else {
		k.Group = netip.AddrFrom16([16]byte{0: 0xff, 1: 0x0e, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)})
		k.Source = netip.AddrFrom16([16]byte{0: 0x20, 15: byte(1 + r.IntN(2))})
	}
	if r.IntN(3) == 0 {
		k.Source = netip.Addr{}
	}
	return k
}

// TestTable compares the hash table with a map, over many changes that fill it, empty it and fill it again.
func TestTable(t *testing.T) {
	h := &held{n: map[uint16]int{}, deny: 99}
	tab := New(h, epoch.NewDomain())
	r := rand.New(rand.NewPCG(1, 2))
	model := map[Key]Route{}
	for step := range 60000 {
		k := randomKey(r, 4000)
		if step/10000%2 == 0 && r.IntN(4) != 0 || r.IntN(4) == 0 {
			x := Route{Key: k, In: 1, Out: []Out{{Iface: uint16(2 + r.IntN(3)), TTL: uint8(r.IntN(200))}}}
			if err := tab.Set(x); err != nil {
				t.Fatal(err)
			}
			model[k] = x
		} else if _, there := model[k]; tab.Del(k) != there {
			t.Fatalf("deleting %v: there is %v", k, there)
		} else {
			delete(model, k)
		}
		k = randomKey(r, 4000)
		hot := k.hot()
		e := tab.slots.Load().find(&hot)
		if want, ok := model[k]; ok != (e != nil) || ok && (e.route.Out[0] != want.Out[0] || e.route.Key != k) {
			t.Fatalf("%v: found %+v, want %+v", k, e, want)
		}
	}
	refused := Route{Key: randomKey(r, 4000), In: 1, Out: []Out{{Iface: 5}, {Iface: 99}}}
	if err := tab.Set(refused); err == nil {
		t.Error("a route without adjacency")
	}
	n := 0
	for _, x := range tab.Routes() {
		if model[x.Key].Out[0] != x.Out[0] {
			t.Errorf("%v lists %v", x.Key, x.Out)
		}
		n++
		tab.Del(x.Key)
	}
	if n != len(model) {
		t.Errorf("%d routes listed, want %d", n, len(model))
	}
	for i, c := range h.n {
		if c != 0 {
			t.Errorf("interface %d is held %d times by no route", i, c)
		}
	}
	if tab.cells.Used() != 0 {
		t.Errorf("%d counters are in use by no route", tab.cells.Used())
	}
}

// TestReaders: while routes come, change and go, a reader finds each route that stays, and never half of a change.
func TestReaders(t *testing.T) {
	d := epoch.NewDomain()
	tab := New(&held{n: map[uint16]int{}}, d)
	stays := Key{Group: netip.MustParseAddr("239.255.1.1"), Source: netip.MustParseAddr("10.0.0.1")}
	set := func(n uint8) {
		if err := tab.Set(Route{Key: stays, In: uint16(n) + 1, Out: []Out{{Iface: 300, TTL: n}}}); err != nil {
			t.Fatal(err)
		}
	}
	set(0)
	stop, done := make(chan struct{}), make(chan error, 1)
	slot := d.NewSlot()
	go func() {
		defer slot.Close()
		slot.Online()
		defer slot.Offline()
		k := stays.hot()
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			slot.Quiesce()
			e := tab.slots.Load().find(&k)
			if e == nil || e.in != uint16(e.out[0].TTL)+1 {
				done <- fmt.Errorf("found %+v", e)
				return
			}
			runtime.Gosched()
		}
	}()
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 20000 {
		k := randomKey(r, 500)
		if r.IntN(2) == 0 {
			if err := tab.Set(Route{Key: k, In: 1}); err != nil {
				t.Fatal(err)
			}
		} else {
			tab.Del(k)
		}
		set(uint8(i))
	}
	close(stop)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestFull(t *testing.T) {
	tab := New(&held{n: map[uint16]int{}}, epoch.NewDomain())
	key := func(i int) Key {
		return Key{Group: netip.AddrFrom4([4]byte{239, byte(i >> 16), byte(i >> 8), byte(i)})}
	}
	for i := range MaxRoutes {
		if err := tab.Set(Route{Key: key(i), In: 1}); err != nil {
			t.Fatal(i, err)
		}
	}
	if err := tab.Set(Route{Key: key(MaxRoutes), In: 1}); !errors.Is(err, ErrFull) {
		t.Errorf("one more: %v", err)
	}
	if !tab.Del(key(5)) || tab.Set(Route{Key: key(MaxRoutes), In: 1}) != nil {
		t.Error("no room after a route went")
	}
}

func TestCheck(t *testing.T) {
	tab := New(&held{n: map[uint16]int{}}, epoch.NewDomain())
	a := netip.MustParseAddr
	for _, r := range []Route{
		{Key: Key{Group: a("10.0.0.1")}, In: 1},
		{Key: Key{Group: a("224.0.0.5")}, In: 1},
		{Key: Key{Group: a("ff02::5")}, In: 1},
		{Key: Key{Group: a("ff01::5")}, In: 1},
		{Key: Key{Group: a("::ffff:239.1.1.1")}, In: 1},
		{Key: Key{Group: a("239.1.1.1"), Source: a("2001:db8::1")}, In: 1},
		{Key: Key{Group: a("239.1.1.1"), Source: a("239.1.1.2")}, In: 1},
		{Key: Key{Group: a("239.1.1.1"), Source: a("0.0.0.0")}, In: 1},
		{Key: Key{Group: a("ff0e::1"), Source: a("fe80::1")}, In: 1},
		{Key: Key{Group: a("239.1.1.1")}},
		{Key: Key{Group: a("239.1.1.1")}, In: 1, Out: []Out{{Iface: 2}, {Iface: 2}}},
		{Key: Key{Group: a("239.1.1.1")}, In: 1, Out: []Out{{}}},
		{Key: Key{Group: a("239.1.1.1")}, In: 1, Out: make([]Out, MaxOut+1)},
	} {
		if err := tab.Set(r); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if tab.Del(Key{}) || len(tab.Routes()) != 0 {
		t.Error("something is there")
	}
}
