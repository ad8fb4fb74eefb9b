package lpm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"millrace/internal/epoch"
)

// slow6 is the obvious table: a map of prefixes, and all lengths that there are tried.
type slow6 struct {
	m    map[netip.Prefix]uint16
	lens [129]int
}

func newSlow6() *slow6 { return &slow6{m: map[netip.Prefix]uint16{}} }

func (s *slow6) lookup(a netip.Addr, below int) (value uint16, bits int) {
	for n := below - 1; n >= 0; n-- {
		if s.lens[n] == 0 {
			continue
		}
		p, _ := a.Prefix(n)
		if v, ok := s.m[p]; ok {
			return v, n
		}
	}
	return 0, 0
}

func (s *slow6) set(p netip.Prefix, v uint16) {
	if _, ok := s.m[p]; !ok {
		s.lens[p.Bits()]++
	}
	s.m[p] = v
}

func (s *slow6) del(p netip.Prefix) {
	delete(s.m, p)
	s.lens[p.Bits()]--
}

// rig6 is a table beside the slow one.
type rig6 struct {
	t testing.TB
	*Table6
	slow *slow6
	twin *trie6 // gets the same changes, where set
}

func newRig6(t testing.TB) *rig6 {
	t.Helper()
	tab, err := New6(epoch.NewDomain())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		tab.d.Wait()
		tab.Close()
	})
	return &rig6{t, tab, newSlow6(), nil}
}

// set gives a prefix a value; 0 takes it out.
func (r *rig6) set(p netip.Prefix, v uint16) error {
	a, bits := p.Addr().As16(), p.Bits()
	_, ok := r.slow.m[p]
	switch {
	case v == 0 && ok:
		r.slow.del(p)
		parent, n := r.slow.lookup(p.Addr(), bits)
		r.Remove(a, bits, parent, n)
		if r.twin != nil {
			r.twin.Remove(a, bits, parent, n)
		}
	case v == 0:
	case ok:
		r.Replace(a, bits, v)
		if r.twin != nil {
			r.twin.Replace(a, bits, v)
		}
		r.slow.set(p, v)
	default:
		if err := r.Insert(a, bits, v); err != nil {
			return err
		}
		if r.twin != nil {
			if err := r.twin.Insert(a, bits, v); err != nil {
				r.t.Fatal(err)
			}
		}
		r.slow.set(p, v)
	}
	return nil
}

func (r *rig6) must(p netip.Prefix, v uint16) {
	r.t.Helper()
	if err := r.set(p, v); err != nil {
		r.t.Fatal(err)
	}
}

// same compares addresses with the slow table, by Lookup and by Find.
func (r *rig6) same(addrs []netip.Addr) {
	r.t.Helper()
	dst := make([][16]byte, len(addrs)+1)
	out := make([]uint16, len(addrs)+1)
	for i, a := range addrs {
		dst[i] = a.As16()
	}
	r.Find(&dst[0], &out[0], len(addrs))
	for i, a := range addrs {
		want, _ := r.slow.lookup(a, 129)
		if got := r.Lookup(dst[i]); got != want || out[i] != want {
			r.t.Fatalf("%v: Lookup %d, Find %d, want %d", a, got, out[i], want)
		}
	}
}

// edges6 are the first and last address of a prefix, and those beside it.
func edges6(p netip.Prefix) []netip.Addr {
	a, b := prefixRange(number(p.Addr().As16()), p.Bits())
	out := []netip.Addr{addr6(a), addr6(b)}
	if a != (u128{}) {
		out = append(out, addr6(a.prev()))
	}
	if b != maxAddr {
		out = append(out, addr6(b.next()))
	}
	return out
}

func addr6(a u128) netip.Addr {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], a.hi)
	binary.BigEndian.PutUint64(b[8:], a.lo)
	return netip.AddrFrom16(b)
}

// sound checks what the writer keeps, after a Commit: spans in order, each of their ends seen
// by readers, and all blocks that are out in the table.
func (r *rig6) sound() {
	r.t.Helper()
	t := r.Table6
	t.d.Wait()
	def := uint16(t.def)
	var last *span
	n := 0
	for i, ch := range t.spans.chunks {
		if len(ch) == 0 || ch[0].start != t.spans.starts[i] || len(ch) > chunkMax {
			r.t.Fatalf("chunk %d of %d spans", i, len(ch))
		}
		for j := range ch {
			x := &ch[j]
			n++
			if last != nil && !last.start.less(x.start) || j > 0 && last.value == x.value && last.bits == x.bits {
				r.t.Fatalf("span %v after %v", *x, *last)
			}
			want := x.value
			if x.bits == 0 {
				want = def
			}
			if got := r.Lookup(addr6(x.start).As16()); got != want {
				r.t.Fatalf("%v: %d, want %d", addr6(x.start), got, want)
			}
			if last != nil {
				want = last.value
				if last.bits == 0 {
					want = def
				}
				if got := r.Lookup(addr6(x.start.prev()).As16()); got != want {
					r.t.Fatalf("%v: %d, want %d", addr6(x.start.prev()), got, want)
				}
			}
			last = x
		}
	}
	used := 0
	block := func(b uint32, lines int) {
		if t.lines.state[b] != order(lines) {
			r.t.Fatalf("block %d of %d lines has state %d", b, lines, t.lines.state[b])
		}
		used += 1 << order(lines)
	}
	var tree func(tr *tree6)
	var node func(n *node6)
	tree = func(tr *tree6) {
		if tr.dirty || tr.marked || tr.root.level < levels6-1 || tr.root.level >= levels6 && len(tr.root.kids) == 1 {
			r.t.Fatalf("tree at %v: %+v", addr6(tr.base), tr)
		}
		block(tr.at, 1)
		node(tr.root)
	}
	node = func(n *node6) {
		if n.level == 0 {
			block(n.at, int(n.n)+(len(n.subs)+15)/16)
		} else {
			block(n.at, len(n.kids))
		}
		if n.dirty || n.line[base6] != n.at*lineUnits || n.level > 0 && (int(n.n) != len(n.kids) || len(n.kids) > fan || len(n.kids) == 0 || n.kids[0].start != n.start) || n.count > bucketMax {
			r.t.Fatalf("node %+v", n)
		}
		for i, k := range n.kids {
			if k.level != n.level-1 || *t.at(n.at + uint32(i)) != k.line {
				r.t.Fatalf("node %+v below %+v", k, n)
			}
			node(k)
		}
		for _, s := range n.subs {
			if s.tree != nil {
				if s.ref != s.tree.ref() {
					r.t.Fatalf("reference %x to a tree %x", s.ref, s.tree.ref())
				}
				tree(s.tree)
			} else {
				block(s.ref/lineBytes, int(s.ref%inRun)+1)
			}
		}
	}
	for _, x := range t.trees {
		if t.dir[x.place] != x.tree.ref() {
			r.t.Fatalf("directory at %x: %x, want %x", x.place, t.dir[x.place], x.tree.ref())
		}
		tree(x.tree)
	}
	for v, c := range t.chains {
		if v != 0 {
			block(c.ref/lineBytes, levels6+1)
		}
	}
	if u, limbo, _ := t.lines.usage(); u != used || limbo != 0 {
		r.t.Fatalf("%d lines are out, %d of them retired; the table has %d", u, limbo, used)
	}
	long := 0
	for p := range r.slow.m {
		if p.Bits() > dirBits {
			long++
		}
	}
	if t.Prefixes().Used() != long {
		r.t.Fatalf("%d prefixes counted, there are %d", t.Prefixes().Used(), long)
	}
}

// dense6 picks prefixes of all lengths that nest, touch and fill some places.
func dense6(x *rand.Rand) netip.Prefix {
	bits := x.IntN(129)
	switch x.IntN(8) {
	case 0:
		bits = 20 + 32*x.IntN(4) + x.IntN(3) - 1
	case 1:
		bits = 126 + x.IntN(3)
	case 2:
		bits = 48
	}
	p, _ := denseAddr6(x).Prefix(min(bits, 128))
	return p
}

// denseAddr6 has few values in each part, the outermost among them.
func denseAddr6(x *rand.Rand) netip.Addr {
	var a [16]byte
	kind := x.IntN(4)
	for i := range a {
		switch kind {
		case 0:
			a[i] = []byte{0, 0xff}[x.IntN(2)]
		case 1:
			a[i] = byte(x.IntN(3)) * 0x7f
		case 2:
			if i < 6 {
				a[i] = []byte{0x20, 0x01, 0x0d, 0xb8, 0, 1}[i]
			} else {
				a[i] = byte(x.Uint32()) & 0x81
			}
		case 3:
			if i < 10 {
				a[i] = 0xff
			} else {
				a[i] = byte(x.Uint32())
			}
		}
	}
	if x.IntN(3) == 0 {
		a[2+x.IntN(14)] = byte(x.Uint32())
	}
	return netip.AddrFrom16(a)
}

// churn changes n prefixes of pick at random and commits now and then.
func (r *rig6) churn(x *rand.Rand, n, keep int, pick func() netip.Prefix) {
	r.t.Helper()
	var look []netip.Addr
	var have []netip.Prefix
	for i := range n {
		p := pick()
		if len(have) > 0 && x.IntN(3) == 0 {
			p = have[x.IntN(len(have))]
		}
		v := uint16(0)
		if x.IntN(len(r.slow.m)+keep) < keep {
			v = uint16(x.IntN(6)) + 1
			if x.IntN(20) == 0 {
				v = MaxValue
			}
		}
		r.must(p, v)
		have = append(have, p)
		look = append(look, edges6(p)...)
		if x.IntN(9) == 0 || i == n-1 {
			r.Commit()
			for range 8 {
				look = append(look, denseAddr6(x))
			}
			r.same(look)
			look = look[:0]
			if len(have) > 4*keep {
				have = have[:0]
			}
		}
	}
}

// clear takes all prefixes out, in no order.
func (r *rig6) clear() {
	r.t.Helper()
	for p := range r.slow.m {
		r.must(p, 0)
	}
	r.Commit()
	r.sound()
	if u, _, _ := r.lines.usage(); u != 0 || len(r.trees) != 0 || len(r.spans.chunks) != 1 {
		r.t.Fatalf("empty table: %d lines, %d trees, %d chunks of spans", u, len(r.trees), len(r.spans.chunks))
	}
}

func TestModel6(t *testing.T) {
	for _, c := range []struct {
		name string
		keep int
		pick func(*rand.Rand) netip.Prefix
	}{
		{"all lengths", 300, dense6},
		{"crowded", 3000, dense6},
		{"routes", 2000, func(x *rand.Rand) netip.Prefix { return randomRoute6(x) }},
		{"hosts in one /64", 3000, func(x *rand.Rand) netip.Prefix {
			p, _ := addr6(u128{0x2001_0db8_0000_0001, x.Uint64N(1<<14) * (1 + x.Uint64N(2)<<50)}).Prefix(128 - x.IntN(2))
			return p
		}},
		{"one window", 2000, func(x *rand.Rand) netip.Prefix {
			p, _ := addr6(u128{0x2001_0db8_0000_0000 | x.Uint64N(1<<36), 0}).Prefix(28 + x.IntN(25))
			return p
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig6(t)
			x := rand.New(rand.NewPCG(1, 2))
			n := 12_000
			if testing.Short() {
				n = 4_000
			}
			for round := range 2 {
				r.churn(x, n, c.keep, func() netip.Prefix { return c.pick(x) })
				r.sound()
				if round == 0 {
					r.clear()
				}
			}
		})
	}
}

func randomRoute6(x *rand.Rand) netip.Prefix {
	hi := []uint64{0x2001_0600, 0x2804_0000, 0x2a02_8000, 0x2400_c000}[x.IntN(4)]<<32 | x.Uint64N(1<<44)
	p, _ := addr6(u128{hi, 0}).Prefix(20 + x.IntN(29))
	return p
}

func FuzzTable6(f *testing.F) {
	f.Add(uint64(1), []byte{0, 1, 2, 3})
	f.Add(uint64(2), slices.Repeat([]byte{255, 128, 48}, 40))
	f.Fuzz(func(t *testing.T, seed uint64, ops []byte) {
		r := newRig6(t)
		x := rand.New(rand.NewPCG(seed, 1))
		var look []netip.Addr
		for i := 0; i+2 < len(ops) && i < 600; i += 3 {
			// The first byte repeated makes an address; the others change one byte of it, and give a length.
			var a [16]byte
			for j := range a {
				a[j] = ops[i]
			}
			a[ops[i+1]&15] ^= ops[i+1] >> 4
			p, _ := netip.AddrFrom16(a).Prefix(int(ops[i+2]) % 129)
			r.must(p, uint16(x.IntN(4)))
			look = append(look, edges6(p)...)
			if x.IntN(4) == 0 {
				r.Commit()
				r.same(look)
			}
		}
		r.Commit()
		r.same(look)
		r.sound()
		r.clear()
	})
}

// TestFindCounts6: Find is Lookup for any number of destinations, writes nothing beyond them, and is the same without
// vectors.
func TestFindCounts6(t *testing.T) {
	r := newRig6(t)
	x := rand.New(rand.NewPCG(3, 3))
	r.churn(x, 3000, 1000, func() netip.Prefix { return dense6(x) })
	r.must(netip.MustParsePrefix("::/0"), 77)
	r.Commit()
	dst := make([][16]byte, 1024)
	for i := range dst {
		dst[i] = denseAddr6(x).As16()
	}
	for _, vectors := range []bool{vector6, false} {
		defer func(v bool) { vector6 = v }(vector6)
		vector6 = vectors
		for n := range 301 {
			out := slices.Repeat([]uint16{0xaaaa}, 1024)
			r.Find(&dst[n], &out[0], n)
			for i, v := range out {
				want := uint16(0xaaaa)
				if i < n {
					want = r.Lookup(dst[n+i])
				}
				if v != want {
					t.Fatalf("vectors %v, destination %d of %d: %d, want %d", vectors, i, n, v, want)
				}
			}
		}
		out := make([]uint16, 1024)
		if a := testing.AllocsPerRun(50, func() { r.Find(&dst[0], &out[0], 1024) }); a != 0 {
			t.Errorf("Find allocates %v times", a)
		}
	}
}

// TestDefault6: ::/0 is one store, whatever there is.
func TestDefault6(t *testing.T) {
	r := newRig6(t)
	def := netip.MustParsePrefix("::/0")
	r.must(netip.MustParsePrefix("2000::/3"), 9)
	r.must(netip.MustParsePrefix("2001:db8::1/128"), 3)
	r.Commit()
	look := []netip.Addr{netip.MustParseAddr("::"), netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"), netip.MustParseAddr("ffff::")}
	for _, v := range []uint16{5, 6, 0, 7} {
		used, _, _ := r.lines.usage()
		r.must(def, v)
		if len(r.dirty) != 0 {
			t.Error("a change of ::/0 makes work")
		}
		r.Commit()
		if u, _, _ := r.lines.usage(); u != used {
			t.Errorf("a change of ::/0 takes %d lines", u-used)
		}
		r.same(look)
	}
	r.must(netip.MustParsePrefix("2000::/3"), 0)
	r.Commit()
	r.same(look)
	r.sound()
	r.clear()
}

// TestFull6: what does not fit is refused, and a batch that failed can be taken back.
func TestFull6(t *testing.T) {
	r := newRig6(t)
	x := rand.New(rand.NewPCG(5, 5))
	r.churn(x, 2000, 500, func() netip.Prefix { return dense6(x) })
	before := fmt.Sprint(r.slow.m)
	var look []netip.Addr
	for p := range r.slow.m {
		look = append(look, edges6(p)...)
	}
	r.Prefixes().Bound(40)
	for range 50 {
		undo := map[netip.Prefix]uint16{}
		var err error
		for err == nil {
			p := dense6(x)
			old := r.slow.m[p]
			v := uint16(x.IntN(9)) + 1
			if err = r.set(p, v); err == nil {
				if _, ok := undo[p]; !ok {
					undo[p] = old
				}
			}
		}
		if !errors.Is(err, ErrFull) {
			t.Fatal(err)
		}
		for p, v := range undo {
			r.must(p, v)
		}
		r.Commit()
		r.same(look)
		r.sound()
	}
	if fmt.Sprint(r.slow.m) != before {
		t.Error("the model is not what it was")
	}
	if r.Prefixes().Used()+40 != r.Prefixes().limit {
		t.Errorf("%d of %d prefixes", r.Prefixes().Used(), r.Prefixes().limit)
	}
}

// TestSmall6: many tables with few routes cost little.
func TestSmall6(t *testing.T) {
	d := epoch.NewDomain()
	for i := range 1000 {
		tab, err := New6(d)
		if err != nil {
			t.Fatal(err)
		}
		defer tab.Close()
		for _, p := range []string{"::/0", "::/128", "::1/128", "fe80::/10", "ff00::/8", "2001:db8:1::/48", "2001:db8:1:2::/64", "2001:db8:1:2::1/128"} {
			p := netip.MustParsePrefix(p)
			if err := tab.Insert(p.Addr().As16(), p.Bits(), uint16(i+1)); err != nil {
				t.Fatal(err)
			}
		}
		tab.Commit()
		if got := tab.Lookup(netip.MustParseAddr("2001:db8:1:2::1").As16()); got != uint16(i+1) {
			t.Fatalf("table %d: %d", i, got)
		}
		if hot, shadow := tab.Bytes(); hot > 64<<10 || shadow > 64<<10 {
			t.Fatalf("%d and %d bytes", hot, shadow)
		}
	}
}

// TestNoMemory6: without memory for lines an Insert fails, and nothing has changed.
func TestNoMemory6(t *testing.T) {
	r := newRig6(t)
	p := netip.MustParsePrefix("2001:db8::/32")
	r.must(p, 3)
	r.Commit()
	mapped, next := r.lines.mapped, r.lines.next
	r.lines.mapped = lineSpace/lineBytes - hugeLines
	r.lines.next = r.lines.mapped - 32
	if err := r.set(netip.MustParsePrefix("2001:db8:1::/48"), 4); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	r.lines.mapped, r.lines.next = mapped, next
	r.Commit()
	r.sound()
	r.same(edges6(p))
}
