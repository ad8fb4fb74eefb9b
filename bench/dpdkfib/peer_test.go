//go:build dpdk

package dpdkfib

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"millrace/bench/bgp"
)

// slow is the value of the longest prefix that has the address.
func slow[A bgp.Addr](rs []bgp.Route[A], a netip.Addr) (v uint16) {
	best := -1
	for i := range rs {
		if r := &rs[i]; int(r.Bits) > best && r.Value != 0 && r.Prefix().Contains(a) {
			best, v = int(r.Bits), r.Value
		}
	}
	return v
}

func check[A bgp.Addr](t *testing.T, k Kind, table []netip.Prefix, changes bool) {
	rs := bgp.Routes[A](table, 500)
	p, err := New[A](k, len(rs))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if err := p.Load(rs); err != nil {
		t.Fatal(err)
	}
	if changes {
		gone := slices.Clone(rs[:len(rs)/2])
		for i := range gone {
			gone[i].Value = 0
		}
		if err := p.Update(gone); err != nil {
			t.Fatal(err)
		}
		rs = rs[len(gone):]
	}
	compare(t, p, rs, table)
}

func compare[A bgp.Addr](t *testing.T, p *Table[A], rs []bgp.Route[A], table []netip.Prefix) {
	dst, out := make([]A, 2048), make([]uint16, 2048)
	bgp.Trace(dst, bgp.Prefixes(table, rand.New(rand.NewPCG(1, 2))))
	p.Find(dst, out)
	for i, d := range dst {
		if want := slow(rs, bgp.Netip(d)); out[i] != want {
			t.Fatalf("%v: %d, want %d", bgp.Netip(d), out[i], want)
		}
	}
	p.Pass(dst)
	words, at, ticks := make([]uint64, 1<<17), 0, make([]uint64, len(dst)/256)
	p.PassPolluted(dst, words, &at, ticks)
	if at != len(ticks)*256*256%len(words) || slices.Contains(ticks, 0) {
		t.Errorf("at %d, ticks %v", at, ticks)
	}
}

func TestTables(t *testing.T) {
	v4, v6 := bgp.Make4(2000), bgp.Make6(2000)
	v4 = append(v4, bgp.Hosts(v4, 500)...)
	v6 = append(v6, bgp.Hosts(v6, 500)...)
	t.Run("rte_fib", func(t *testing.T) { check[uint32](t, FIB, v4, true) })
	t.Run("rte_lpm/x4", func(t *testing.T) { check[uint32](t, LPMx4, v4, false) })
	t.Run("rte_lpm/bulk", func(t *testing.T) { check[uint32](t, LPMBulk, v4, false) })
	t.Run("rte_fib6", func(t *testing.T) { check[[16]byte](t, FIB6, v6, true) })
	t.Run("rte_lpm6", func(t *testing.T) { check[[16]byte](t, LPM6, v6, false) })
}

// TestFilledAsAdded: rte_lpm's own way to add routes gives the same answers as the tables filled here.
func TestFilledAsAdded(t *testing.T) {
	table := bgp.Make4(5000)
	table = append(table, bgp.Hosts(table, 500)...)
	rs := bgp.Routes[uint32](table, 500)
	filled, err := New[uint32](LPMx4, len(rs))
	if err != nil {
		t.Fatal(err)
	}
	defer filled.Close()
	added, err := New[uint32](LPMx4, len(rs))
	if err != nil {
		t.Fatal(err)
	}
	defer added.Close()
	if err := filled.Load(rs); err != nil {
		t.Fatal(err)
	}
	if err := added.add(rs); err != nil {
		t.Fatal(err)
	}
	dst, a, b := make([]uint32, 1<<20), make([]uint16, 1<<20), make([]uint16, 1<<20)
	r := rand.New(rand.NewPCG(3, 4))
	bgp.Trace(dst[:1<<19], bgp.Prefixes(table, r))
	bgp.Trace(dst[1<<19:], bgp.Uniform(r))
	filled.Find(dst, a)
	added.Find(dst, b)
	if !slices.Equal(a, b) {
		t.Error("the tables differ")
	}
}
