package lpm

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"millrace/internal/epoch"
	"millrace/internal/ids"
)

// withAndWithout runs f with the assembly, where this machine can, and without.
func withAndWithout(t *testing.T, f func(t *testing.T)) {
	if had := gather4; had {
		t.Run("gather", f)
		defer noGather()()
	}
	t.Run("go", f)
}

// some is a prefix near others: nested, of all lengths, at the borders of nodes, blocks and the address space.
func some(rnd *rand.Rand) (addr uint32, bits int) {
	at := [...]uint32{0, 10 << 24, 10<<24 | 0x1fff00, 0x0bffff00, 0x7fffe000, 0x80000000, 0xc0a80000, 0xffffff00, 0xf0000000}
	addr = at[rnd.IntN(len(at))] + rnd.Uint32N(1<<(8*rnd.UintN(3)+4))
	switch rnd.IntN(10) {
	case 0:
		bits = rnd.IntN(9)
	case 1, 2, 3:
		bits = 9 + rnd.IntN(15)
	default:
		bits = 17 + rnd.IntN(16)
	}
	if bits < 12 && rnd.IntN(4) > 0 { // these take long
		bits += 12
	}
	return masked(addr, bits), bits
}

// TestModel4 changes prefixes at random and compares with the obvious table.
func TestModel4(t *testing.T) {
	withAndWithout(t, func(t *testing.T) {
		eachForm(t, func(t *testing.T, x V4, d *epoch.Domain) {
			rnd := rand.New(rand.NewPCG(7, 8))
			s := slow4{}
			fresh, _ := x.Bytes()
			for round := range 60 {
				for range 60 {
					if addr, bits := some(rnd); rnd.IntN(3) > 0 {
						if err := s.announce(x, addr, bits, uint16(1+rnd.IntN(3+round%2*MaxValue/2))); err != nil {
							t.Fatal(err)
						}
					} else {
						s.withdraw(x, addr, bits)
					}
					if rnd.IntN(5) == 0 {
						x.Commit()
					}
				}
				if round%7 == 6 { // most leave
					for k := range s {
						if rnd.IntN(10) > 0 {
							s.withdraw(x, k.addr, k.bits)
						}
					}
				}
				dst := make([]uint32, 0, 1500)
				for k := range s {
					dst = append(dst, k.addr-1, k.addr, k.addr+uint32(1<<(32-k.bits)-1), k.addr+uint32(1<<(32-k.bits)))
				}
				for range 600 {
					a, _ := some(rnd)
					dst = append(dst, a+rnd.Uint32N(512), rnd.Uint32())
				}
				s.check(t, x, dst)
			}
			for k := range s {
				s.withdraw(x, k.addr, k.bits)
			}
			x.Commit()
			d.Wait()
			s.check(t, x, []uint32{0, 1, 10 << 24, 10<<24 | 255, 1 << 31, 0xffffffff})
			empty(t, x)
			if hot, _ := x.Bytes(); hot > fresh+1<<21 {
				t.Errorf("%d bytes after all prefixes are gone, %d before any came", hot, fresh)
			}
		})
	})
}

// empty fails where something of a table without prefixes is in use.
func empty(t *testing.T, x V4) {
	t.Helper()
	switch x := x.(type) {
	case *Table4:
		if n := x.Blocks().Used(); n != 0 || x.lines != 0 {
			t.Errorf("%d blocks, %d lines in use", n, x.lines)
		}
	case *Compact4:
		if n := x.Blocks().Used(); n != 0 || x.runs.live != 0 || x.lines != 0 {
			t.Errorf("%d blocks, %d leaves, %d lines in use", n, x.runs.live, x.lines)
		}
		for n, w := range x.nodes {
			if w != 0 || x.len19[n] != 0 {
				t.Fatalf("node %d is %#x, of length %d", n, w, x.len19[n])
			}
		}
	}
}

// TestFind4: Find says what Lookup does, for all numbers and places of destinations, and writes nothing else.
func TestFind4(t *testing.T) {
	withAndWithout(t, func(t *testing.T) {
		eachForm(t, func(t *testing.T, x V4, _ *epoch.Domain) {
			rnd := rand.New(rand.NewPCG(5, 6))
			s := slow4{}
			s.announce(x, 0, 0, MaxValue)
			for range 3000 {
				a, b := some(rnd)
				s.announce(x, a, b, uint16(1+rnd.IntN(MaxValue)))
			}
			s.withdraw(x, 0, 0)
			dst, out := make([]uint32, 320), make([]uint16, 320)
			for _, mode := range []string{"hosts", "few hosts", "routes", "one"} {
				for i := range dst {
					switch dst[i], _ = some(rnd); {
					case mode == "one":
						dst[i] = 10<<24 | 1
					case mode == "routes" || mode == "few hosts" && rnd.IntN(40) > 0:
						dst[i] = rnd.Uint32()
					}
				}
				for n := range 301 {
					from, to := rnd.IntN(16), rnd.IntN(16)
					for i := range out {
						out[i] = 0xfefe
					}
					x.Find(&dst[from], &out[to], n)
					for i, v := range out {
						want := uint16(0xfefe)
						if i >= to && i < to+n {
							want = x.Lookup(dst[from+i-to])
						}
						if v != want {
							t.Fatalf("%s, %d destinations: number %d (%v) has %#x, want %#x", mode, n, i-to, addr4(dst[(from+i-to)&255]), v, want)
						}
					}
				}
			}
		})
	})
}

// TestShort4: what a default route and other short prefixes change is seen at once everywhere, and only there.
func TestShort4(t *testing.T) {
	eachForm(t, func(t *testing.T, x V4, _ *epoch.Domain) {
		s := slow4{}
		dst := []uint32{0, 1 << 24, 10<<24 | 77, 10<<24 | 0x10000, 0x40000000, 0x80000001, 0xdfffffff, 0xe0000000, 0xffffffff}
		do := func(addr uint32, bits int, value uint16) {
			t.Helper()
			if value == 0 {
				s.withdraw(x, addr, bits)
			} else if err := s.announce(x, addr, bits, value); err != nil {
				t.Fatal(err)
			}
			s.check(t, x, dst)
			s.check(t, x, append(dst, dst...)) // by gather
		}
		do(0, 0, 1)
		do(10<<24, 8, 2)
		do(10<<24|77, 32, 3)
		do(0, 0, 4)
		do(0xe0000000, 4, 5)
		do(0, 1, 6)
		do(0, 0, 0)
		do(10<<24, 8, 0)
		do(10<<24|64, 26, 7)
		do(0, 1, 0) // the parent of what is in a block
		do(0, 0, 8)
		do(10<<24|64, 26, 0)
		do(10<<24|77, 32, 0)
		do(0xe0000000, 4, 0)
		do(0, 0, 0)
		x.Commit()
		empty(t, x)
	})
}

// TestReaders4: a reader beside the writer sees the value before or after a change, never a third, and never what
// was retired.
func TestReaders4(t *testing.T) {
	poisoned = true
	defer func() { poisoned = false }()
	eachForm(t, func(t *testing.T, x V4, d *epoch.Domain) {
		// By destination: the values it may have. Each changes one prefix between two values, or away from one to its parent's.
		const n = 64
		var dst [n]uint32
		for i := range dst {
			dst[i] = 10<<24 | uint32(i)<<10 | uint32(i)
		}
		for i, k := range []key4{{0, 0}, {10 << 24, 8}} {
			if err := x.Insert(k.addr, k.bits, uint16(i+1)); err != nil {
				t.Fatal(err)
			}
		}
		ok := func(v uint16) bool { return v >= 1 && v <= 9 }
		var stop atomic.Bool
		var wg sync.WaitGroup
		var reads atomic.Int64
		for range 2 {
			slot := d.NewSlot()
			wg.Go(func() {
				defer slot.Close()
				slot.Online()
				var out [n]uint16
				for k := 0; !stop.Load(); k++ {
					slot.Quiesce()
					x.Find(&dst[0], &out[0], n-k%60)
					for i, v := range out[:n-k%60] {
						if l := x.Lookup(dst[i]); !ok(v) || !ok(l) {
							t.Errorf("%v has %d and then %d", addr4(dst[i]), v, l)
							stop.Store(true)
						}
					}
					reads.Add(1)
					runtime.Gosched()
				}
			})
		}
		rnd := rand.New(rand.NewPCG(1, 1))
		s := slow4{{0, 0}: 1, {10 << 24, 8}: 2}
		changes := 60_000
		if testing.Short() {
			changes = 10_000
		}
		for c := 0; c < changes && !stop.Load() || reads.Load() < 100; c++ {
			bits := 9 + rnd.IntN(24)
			a := dst[rnd.IntN(n)]
			switch {
			case c%50 == 0:
				s.announce(x, 0, 0, uint16(1+rnd.IntN(9)))
				s.announce(x, 10<<24, 8, uint16(1+rnd.IntN(9)))
			case rnd.IntN(2) == 0:
				if err := s.announce(x, a, bits, uint16(1+rnd.IntN(9))); err != nil {
					t.Fatal(err)
				}
			default:
				s.withdraw(x, a, bits)
			}
			x.Commit()
		}
		stop.Store(true)
		wg.Wait()
		x.Commit()
		s.check(t, x, dst[:])
	})
}

// TestVersions4: a reader never joins a short prefix of one time with the lack of a longer one of another.
func TestVersions4(t *testing.T) {
	withAndWithout(t, func(t *testing.T) {
		eachForm(t, func(t *testing.T, x V4, d *epoch.Domain) {
			x.Insert(0, 0, 1)
			var stop atomic.Bool
			var wg sync.WaitGroup
			var reads atomic.Int64
			slot := d.NewSlot()
			wg.Go(func() {
				defer slot.Close()
				slot.Online()
				var dst [256]uint32
				var out [256]uint16
				for i := range dst {
					dst[i] = 10<<24 | uint32(i)<<12
				}
				for n := 1; !stop.Load(); n = n%256 + 1 {
					slot.Quiesce()
					x.Find(&dst[0], &out[0], n)
					for i, v := range out[:n] {
						if v != 1 && v != 2 {
							t.Errorf("%v has %d", addr4(dst[i]), v)
							stop.Store(true)
						}
					}
					if reads.Add(1)%16 == 0 {
						runtime.Gosched()
					}
				}
			})
			for c := 0; (c < 20_000 || reads.Load() < 1000) && !stop.Load(); c++ {
				x.Insert(10<<24, 12, 2)
				if c&1 == 0 {
					x.Replace(0, 0, 3) // whoever sees the /12 does not see this
					x.Replace(0, 0, 1)
				} else {
					x.Remove(0, 0, 0, 0)
					x.Insert(0, 0, 1)
				}
				x.Remove(10<<24, 12, 1, 0)
				if c%64 == 0 {
					x.Commit()
				}
			}
			stop.Store(true)
			wg.Wait()
		})
	})
}

// TestFull4: what has no room is refused, nothing has changed then, and what went before can be taken back.
func TestFull4(t *testing.T) {
	eachForm(t, func(t *testing.T, x V4, d *epoch.Domain) {
		s := slow4{}
		s.announce(x, 10<<24, 8, 1)
		s.announce(x, 10<<24, 20, 2)
		var dst []uint32
		for i := range uint32(2000) {
			dst = append(dst, 10<<24|i<<8, 10<<24|i<<8|1)
		}
		try := func(what string, bits, n int) {
			t.Helper()
			before := len(s)
			var added []key4
			var err error
			for i := 0; i < n && err == nil; i++ {
				k := key4{10<<24 | uint32(i)<<8 | 1<<(32-bits)&0xff, bits}
				if err = s.announce(x, k.addr, k.bits, uint16(3+i)); err == nil {
					added = append(added, k)
				}
				s.announce(x, 10<<24, 20, uint16(i+5))
			}
			if !errors.Is(err, ErrFull) {
				t.Fatalf("%s: %v after %d", what, err, len(added))
			}
			s.check(t, x, dst)
			s.announce(x, 10<<24, 20, 2)
			for _, k := range added {
				s.withdraw(x, k.addr, k.bits)
			}
			x.Commit()
			d.Wait()
			s.check(t, x, dst)
			if len(s) != before {
				t.Errorf("%s: %d prefixes, before %d", what, len(s), before)
			}
		}
		switch x := x.(type) {
		case *Table4:
			x.Blocks().Bound(100)
		case *Compact4:
			x.runs.limit = 300
			try("leaves", 24, 1000)
			x.runs.limit = maxLeaves4
			x.Blocks().Bound(100)
		}
		try("blocks", 32, 101)
		try("blocks again", 32, 101)
	})
}

// TestHosts4: host routes in more /24s than an entry has numbers for.
func TestHosts4(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	x, err := New4(epoch.NewDomain())
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	rnd := rand.New(rand.NewPCG(2, 2))
	s := slow4{}
	for range 100_000 {
		if err := s.announce(x, rnd.Uint32(), 32, uint16(1+rnd.IntN(MaxValue))); err != nil {
			if len(x.blocks.regions) == 1 {
				t.Skip(err)
			}
			t.Fatal(err)
		}
	}
	var dst []uint32
	for k := range s {
		dst = append(dst, k.addr, k.addr^1)
	}
	s.check(t, x, dst)
}

// TestSmallCompact4: what tables of a few routes take, by their own account and by the kernel's.
func TestSmallCompact4(t *testing.T) {
	const tables = 50
	before := resident(t)
	hot, shadow := 0, 0
	for range tables {
		x, err := NewCompact4(epoch.NewDomain())
		if err != nil {
			t.Fatal(err)
		}
		defer x.Close()
		for i, k := range []string{"0.0.0.0/0", "0.0.0.0/8", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "192.0.2.0/24", "192.0.2.1/32", "198.51.100.0/24",
			"224.0.0.0/4", "240.0.0.0/4", "255.255.255.255/32"} {
			p := parse4(k)
			if err := x.Insert(p.addr, p.bits, uint16(i+1)); err != nil {
				t.Fatal(err)
			}
		}
		x.Commit()
		hot, shadow = x.Bytes()
		if hot+shadow > 256<<10 {
			t.Fatalf("%d bytes for readers, %d for the writer", hot, shadow)
		}
	}
	if n := (resident(t) - before) / tables; n > hot+shadow+64<<10 {
		t.Errorf("each takes %d bytes, and says %d", n, hot+shadow)
	}
}

// resident is the memory of this process.
func resident(t *testing.T) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skip(err)
	}
	var size int
	if _, err := fmt.Sscan(string(b), &size, &n); err != nil {
		t.Fatal(err)
	}
	return n * os.Getpagesize()
}

// TestInternet4 is the oracle over a real table and the updates of a day.
func TestInternet4(t *testing.T) {
	if testing.Short() {
		t.Skip("takes long")
	}
	rs := internet(t)
	us := day(t)
	rnd := rand.New(rand.NewPCG(9, 9))
	eachForm(t, func(t *testing.T, x V4, d *epoch.Domain) {
		s := slow4{}
		for _, r := range rs {
			if err := s.announce(x, r.addr, r.bits, r.value); err != nil {
				t.Fatal(err)
			}
		}
		x.Commit()
		for i, u := range us {
			if u.value == 0 {
				s.withdraw(x, u.addr, u.bits)
			} else if err := s.announce(x, u.addr, u.bits, u.value); err != nil {
				t.Fatal(err)
			}
			if i&63 == 63 {
				x.Commit()
			}
		}
		x.Commit()
		dst := under(rs, 50_000, rnd)
		for k := range s { // in random order
			if dst = append(dst, k.addr); len(dst) == 150_000 {
				break
			}
		}
		for range 100_000 {
			dst = append(dst, rnd.Uint32())
		}
		s.check(t, x, dst)
		hot, shadow := x.Bytes()
		if hot > 40<<20 || shadow > 64<<20 {
			t.Errorf("%.1f MiB for readers, %.1f for the writer", float64(hot)/(1<<20), float64(shadow)/(1<<20))
		}
	})
}

func TestNoAllocs4(t *testing.T) {
	withAndWithout(t, func(t *testing.T) {
		eachForm(t, func(t *testing.T, x V4, _ *epoch.Domain) {
			x.Insert(10<<24, 8, 1)
			x.Insert(10<<24|5, 32, 2)
			dst, out := make([]uint32, 300), make([]uint16, 300)
			for i := range dst {
				dst[i] = 10<<24 | uint32(i)
			}
			for _, n := range []int{1, 15, 16, 256, 300} {
				if a := testing.AllocsPerRun(20, func() { x.Find(&dst[0], &out[0], n) }); a != 0 {
					t.Errorf("Find of %d allocates %v times", n, a)
				}
			}
		})
	})
}

// FuzzTable4 takes changes from its input: six bytes each.
func FuzzTable4(f *testing.F) {
	f.Add([]byte{0, 0, 0, 0, 0, 1, 10, 0, 0, 0, 8, 2, 10, 0, 0, 1, 32, 3, 10, 0, 0, 1, 160, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 6*64 {
			return
		}
		for _, form := range forms {
			x, err := form.make(epoch.NewDomain())
			if err != nil {
				t.Fatal(err)
			}
			s := slow4{}
			dst := make([]uint32, 0, 400)
			for b := b; len(b) >= 6; b = b[6:] {
				a, bits := uint32(b[0])<<24|uint32(b[1])<<16|uint32(b[2])<<8|uint32(b[3]), int(b[4]&63)%33
				if b[4]&128 == 0 {
					if err := s.announce(x, a, bits, uint16(b[5])+1); err != nil {
						t.Fatal(err)
					}
				} else {
					s.withdraw(x, a, bits)
				}
				if b[4]&64 != 0 {
					x.Commit()
				}
				a = masked(a, bits)
				dst = append(dst, a, a-1, a|uint32(1<<(32-bits)-1), a+uint32(1<<(32-bits)))
			}
			if len(dst) > 0 {
				s.check(t, x, dst)
			}
			x.Close()
		}
	})
}

// take gets a number; where none is free it waits for those that readers may still use.
func take(s *ids.Set, d *epoch.Domain) (uint32, error) {
	n, err := s.Get()
	if err != nil && d.Pending() > 0 {
		d.Wait()
		n, err = s.Get()
	}
	return n, err
}
