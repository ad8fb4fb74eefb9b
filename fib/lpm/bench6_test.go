package lpm

import (
	"bufio"
	"cmp"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"millrace/internal/epoch"
)

// bgpFile opens a file of real routes, in shared/data/bgp beside the repository or above; nil where there is none.
func bgpFile(t testing.TB, name string) *bufio.Scanner {
	for dir := ".."; len(dir) < 20; dir += "/.." {
		f, err := os.Open(filepath.Join(dir, "shared", "data", "bgp", name))
		if err != nil {
			continue
		}
		t.Cleanup(func() { f.Close() })
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		return bufio.NewScanner(z)
	}
	return nil
}

// valueOf6 gives a prefix one of 500 next hops.
func valueOf6(p netip.Prefix) uint16 {
	a := p.Addr().As16()
	h := binary.BigEndian.Uint64(a[:8])*0x9e3779b97f4a7c15 ^ uint64(p.Bits())*0xff51afd7ed558ccd
	h ^= h >> 32
	return uint16(h*0xc4ceb9fe1a85ec53>>40%500) + 1
}

// table6 is a real full table, or one of that size and kind.
func table6(t testing.TB) (out []netip.Prefix) {
	t.Helper()
	s := bgpFile(t, "v6.txt.gz")
	if s == nil {
		x := rand.New(rand.NewPCG(6, 6))
		seen := map[netip.Prefix]bool{}
		for len(out) < 200_000 {
			if p := madeRoute6(x); !seen[p] {
				seen[p] = true
				out = append(out, p)
			}
		}
		return out
	}
	for s.Scan() {
		out = append(out, netip.MustParsePrefix(s.Text()))
	}
	return out
}

// madeRoute6 is a prefix as the Internet has them: nearly half are /48, some /32, and few places have most.
func madeRoute6(x *rand.Rand) netip.Prefix {
	bits := []int{48, 48, 48, 48, 32, 32, 40, 44, 36, 29 + x.IntN(20)}[x.IntN(10)]
	place := uint64(math.Pow(x.Float64(), 3)*30_000) * 0x9e3779b97f4a7c15 >> 44
	hi := 0x2000<<48 | place<<32 | x.Uint64N(1<<10)<<22
	p, _ := addr6(u128{hi | x.Uint64N(1<<8)<<16, 0}).Prefix(bits)
	return p
}

type update6 struct {
	p netip.Prefix
	v uint16 // 0: withdrawn
}

// day6 is a day's updates of the table, or made ones.
func day6(t testing.TB, table []netip.Prefix, limit int) (out []update6) {
	x := rand.New(rand.NewPCG(3, 4))
	s := bgpFile(t, "upd6.txt.gz")
	if s == nil {
		for len(out) < min(limit, 200_000) {
			u := update6{table[int(x.Float64()*x.Float64()*float64(len(table)))], uint16(x.IntN(500)) + 1}
			if x.IntN(4) == 0 {
				u.v = 0
			}
			out = append(out, u)
		}
		return out
	}
	for s.Scan() && len(out) < limit {
		u := update6{p: netip.MustParsePrefix(s.Text()[2:])}
		if s.Text()[0] == 'A' {
			u.v = uint16(x.IntN(500)) + 1
		}
		out = append(out, u)
	}
	return out
}

// finder is what is measured.
type finder interface {
	Insert(addr [16]byte, bits int, value uint16) error
	Commit()
	Find(dst *[16]byte, out *uint16, n int)
	Bytes() (hot, shadow int)
	Close()
}

func fill6(t testing.TB, f finder, table []netip.Prefix) {
	t.Helper()
	for _, p := range table {
		if err := f.Insert(p.Addr().As16(), p.Bits(), valueOf6(p)); err != nil {
			t.Fatal(err)
		}
	}
	f.Commit()
}

// traces6 are destinations: under prefixes at random, under prefixes by Zipf's law, and in each
// interval between two ends of prefixes alike.
func traces6(table []netip.Prefix, n int) map[string][][16]byte {
	x := rand.New(rand.NewPCG(8, 8))
	under := func(p netip.Prefix) [16]byte {
		a, b := prefixRange(number(p.Addr().As16()), p.Bits())
		return addr6(u128{a.hi | x.Uint64()&(a.hi^b.hi), a.lo | x.Uint64()&(a.lo^b.lo)}).As16()
	}
	var ends []u128
	for _, p := range table {
		a, b := prefixRange(number(p.Addr().As16()), p.Bits())
		ends = append(ends, a, b.next())
	}
	slices.SortFunc(ends, func(a, b u128) int { return cmp.Or(cmp.Compare(a.hi, b.hi), cmp.Compare(a.lo, b.lo)) })
	ends = slices.Compact(ends)
	order := x.Perm(len(table))
	zipf := rand.NewZipf(x, 1.1, 8, uint64(len(table)-1))
	out := map[string][][16]byte{}
	for range n {
		out["prefixes"] = append(out["prefixes"], under(table[x.IntN(len(table))]))
		out["zipf"] = append(out["zipf"], under(table[order[zipf.Uint64()]]))
		e := ends[x.IntN(len(ends))]
		out["intervals"] = append(out["intervals"], addr6(u128{e.hi, e.lo | x.Uint64()>>16}).As16())
	}
	out["one"] = slices.Repeat(out["prefixes"][:1], batch6)
	return out
}

// hosts6 are n host routes: spread over /64s, or all in one.
func hosts6(n int, one bool) (out []netip.Prefix) {
	x := rand.New(rand.NewPCG(7, 7))
	seen := map[u128]bool{}
	for len(out) < n {
		a := u128{0x2001_0db8_0000_0000 | x.Uint64N(1<<12)<<8, x.Uint64()}
		if one {
			a.hi = 0x2001_0db8_0000_0001
		}
		if !seen[a] {
			seen[a] = true
			out = append(out, netip.PrefixFrom(addr6(a), 128))
		}
	}
	return out
}

// benchFind reports the median of many short times: other threads of the machine do not count. Between two batches
// packets of four lines in buffers of 2 KiB pass through the ring and the caches; the destinations
// themselves are fresh, as headers are that the stages before have read.
func benchFind(b *testing.B, f finder, dst [][16]byte, batch int, ring []byte) {
	var out [batch6]uint16
	var now [batch6][16]byte
	for i := 0; i+batch <= len(dst); i += batch { // all pages and caches as they will be
		f.Find(&dst[i], &out[0], batch)
	}
	var times []float64
	i, at := 0, 0
	for b.Loop() {
		i = (i + batch) % (len(dst) - len(dst)%batch)
		if ring == nil {
			t := time.Now()
			for range 8192 / batch {
				f.Find(&dst[i], &out[0], batch)
				i = (i + batch) % (len(dst) - len(dst)%batch)
			}
			times = append(times, float64(time.Since(t).Nanoseconds())/8192)
			continue
		}
		for range batch {
			for j := range 4 {
				ring[at+64*j]++
			}
			at = (at + 2048) % len(ring)
		}
		copy(now[:], dst[i:][:batch])
		t := time.Now()
		f.Find(&now[0], &out[0], batch)
		times = append(times, float64(time.Since(t).Nanoseconds())/float64(batch))
	}
	slices.Sort(times)
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(1e3/times[len(times)/2], "M/s")
}

// BenchmarkFind6 looks up destinations in a full table and among host routes, 256 at a time, Table6
// beside the trie; with a ring of packets that passes through the caches between; and few at a time.
func BenchmarkFind6(b *testing.B) {
	table := table6(b)
	ring := make([]byte, 64<<20)
	traces := traces6(table, 1<<18)
	run := func(b *testing.B, f finder, traces map[string][][16]byte, suffix string, ring []byte, batch int) {
		for _, name := range []string{"prefixes", "zipf", "intervals", "one", "hosts"} {
			if dst := traces[name]; dst != nil {
				b.Run(name+suffix, func(b *testing.B) { benchFind(b, f, dst, batch, ring) })
			}
		}
	}
	tab, err := New6(epoch.NewDomain())
	if err != nil {
		b.Fatal(err)
	}
	defer tab.Close()
	fill6(b, tab, table)
	run(b, tab, traces, "", nil, batch6)
	run(b, tab, traces, "/ring", ring, batch6)
	run(b, tab, traces, "/read", ring[:2048], batch6)
	for _, n := range []int{1, 2, 4, 8, 16, 32} {
		run(b, tab, map[string][][16]byte{"prefixes": traces["prefixes"]}, fmt.Sprintf("/by-%d", n), nil, n)
	}
	for name, one := range map[string]bool{"/spread": false, "/in-one-64": true} {
		f, err := New6(epoch.NewDomain())
		if err != nil {
			b.Fatal(err)
		}
		hosts := hosts6(500_000, one)
		fill6(b, f, hosts)
		dst := map[string][][16]byte{"hosts": traces6(hosts, 1<<18)["prefixes"]}
		run(b, f, dst, name, nil, batch6)
		run(b, f, dst, name+"/ring", ring, batch6)
		f.Close()
	}
	was := vector6
	vector6 = false
	run(b, tab, traces, "/go", nil, batch6)
	vector6 = was
	trie, err := newTrie6(epoch.NewDomain())
	if err != nil {
		b.Fatal(err)
	}
	defer trie.Close()
	fill6(b, trie, table)
	run(b, trie, traces, "@trie", nil, batch6)
	run(b, trie, traces, "@trie/ring", ring, batch6)
}

// BenchmarkBuild6 makes a full table in one batch.
func BenchmarkBuild6(b *testing.B) {
	table := table6(b)
	for _, c := range []struct {
		name string
		p    []netip.Prefix
	}{{"table", table}, {"hosts", hosts6(500_000, false)}, {"hosts-in-one-64", hosts6(500_000, true)}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				t, err := New6(epoch.NewDomain())
				if err != nil {
					b.Fatal(err)
				}
				fill6(b, t, c.p)
				hot, shadow := t.Bytes()
				b.ReportMetric(float64(hot)/(1<<20), "hot-MiB")
				b.ReportMetric(float64(shadow)/(1<<20), "shadow-MiB")
				t.Close()
			}
		})
	}
}
