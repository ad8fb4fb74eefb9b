package bench

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"

	"millrace/bench/bgp"
)

// fullData is a full table and a day's changes: those of $MILLRACE_BGP or of a directory beside the tree, otherwise made
// ones of a fifth of the size.
func fullData(t *testing.T, v4 bool) (table []netip.Prefix, day []bgp.Update) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes seconds")
	}
	f, err := bgp.Find(cmp.Or(os.Getenv(bgp.Env), filepath.Join("..", "..", "shared", "data", "bgp")))
	path, changes, make, n := f.V4, f.Updates4, bgp.Make4, 200_000
	if !v4 {
		path, changes, make, n = f.V6, f.Updates6, bgp.Make6, 50_000
	}
	if err != nil || path == "" || changes == "" {
		t.Logf("a made table of %d routes: no data: %v", n, err)
		table = make(n)
		return table, bgp.MakeUpdates(table, n)
	}
	if table, err = bgp.ReadTable(path); err != nil {
		t.Fatal(err)
	}
	if day, err = bgp.ReadUpdates(changes); err != nil {
		t.Fatal(err)
	}
	return table, day
}

// rib is the obvious table: what each prefix has.
type rib map[netip.Prefix]uint16

func (m rib) change(p netip.Prefix, v uint16) {
	if v == 0 {
		delete(m, p)
	} else {
		m[p] = v
	}
}

// below finds the value of an address by the longest prefix of fewer than bits bits.
func (m rib) below(a netip.Addr, bits int) (value uint16, length int) {
	for l := bits - 1; l >= 0; l-- {
		p, _ := a.Prefix(l)
		if v := m[p]; v != 0 {
			return v, l
		}
	}
	return 0, -1
}

// sweep gives the values of addresses, which it sorts, by going through prefixes and addresses together: the
// prefixes that an address is in are a stack, the longest on top.
func sweep(sorted []netip.Prefix, m rib, addrs []netip.Addr) []uint16 {
	slices.SortFunc(addrs, netip.Addr.Compare)
	out := make([]uint16, len(addrs))
	var in []netip.Prefix
	next := 0
	leave := func(a netip.Addr) {
		for len(in) > 0 && !in[len(in)-1].Contains(a) {
			in = in[:len(in)-1]
		}
	}
	for i, a := range addrs {
		for next < len(sorted) && sorted[next].Addr().Compare(a) <= 0 {
			leave(sorted[next].Addr())
			in = append(in, sorted[next])
			next++
		}
		if leave(a); len(in) > 0 {
			out[i] = m[in[len(in)-1]]
		}
	}
	return out
}

// subject is something that answers lookups and takes changes.
type subject[A bgp.Addr] struct {
	name   string
	change func([]bgp.Route[A]) error // of prefixes that do not overlap, as one
	find   func(dst []A, out []uint16)
	round  func() // the reader of find holds nothing
	on     func(bool)
	close  func()
}

// subjects are the FIB, seen through the stage that workers run, and the tables by themselves.
func subjects[A bgp.Addr](t *testing.T, v4 bool, own []contender[A], table []bgp.Route[A]) (l []subject[A]) {
	b, err := newFIBBed[A](v4)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.apply(b.changes(table, routerBatch)); err != nil {
		t.Fatal(err)
	}
	r, err := b.newReader()
	if err != nil {
		t.Fatal(err)
	}
	l = append(l, subject[A]{
		name:   "fib",
		change: func(rs []bgp.Route[A]) error { return b.apply(b.changes(rs, len(rs))) },
		find:   r.find,
		round:  r.slot.Quiesce,
		on:     online(r.slot.Online, r.slot.Offline),
		close: func() {
			r.close()
			b.Close()
		},
	})
	for _, c := range own {
		tab, err := c.make(len(table))
		if err != nil {
			t.Fatal(err)
		}
		if err := tab.Load(table); err != nil {
			t.Fatal(err)
		}
		o := tab.(*ownTable[A])
		o.Prepare(table)
		l = append(l, subject[A]{
			name: c.name("lpm", "table"), change: o.Update, find: o.Find, close: o.Close,
			round: o.slot.Quiesce, on: online(o.slot.Online, o.slot.Offline),
		})
	}
	return l
}

func online(on, off func()) func(bool) {
	return func(yes bool) {
		if yes {
			on()
		} else {
			off()
		}
	}
}

// step is a change of the answer for an address.
type step struct {
	at    int32 // changes made by then
	value uint16
}

// probe is an address with its answers over the day.
type probe[A bgp.Addr] struct {
	dst   A
	steps []step
}

// probes chooses addresses in prefixes that change, and finds their answers by replaying the day in m.
func probes[A bgp.Addr](m rib, day []bgp.Route[A], n int) []probe[A] {
	r := rand.New(rand.NewPCG(11, 12))
	seen := map[netip.Prefix]bool{}
	var addrs []netip.Addr
	for _, k := range r.Perm(len(day)) {
		if p := day[k].Prefix(); !seen[p] && len(addrs) < n {
			seen[p] = true
			addrs = append(addrs, bgp.Inside(p, r))
		}
	}
	slices.SortFunc(addrs, netip.Addr.Compare)
	addrs = slices.Compact(addrs)
	addrs = addrs[:len(addrs)/fibBatch*fibBatch]
	ps := make([]probe[A], len(addrs))
	length := make([]int, len(addrs))
	for i, a := range addrs {
		v, l := m.below(a, a.BitLen()+1)
		length[i] = l
		ps[i] = probe[A]{bgp.From[A](a), []step{{0, v}}}
	}
	for k := range day {
		p, v := day[k].Prefix(), day[k].Value
		m.change(p, v)
		i, _ := slices.BinarySearchFunc(addrs, p.Addr(), netip.Addr.Compare)
		for ; i < len(addrs) && p.Contains(addrs[i]); i++ {
			switch {
			case p.Bits() < length[i]:
				continue
			case v != 0:
				length[i] = p.Bits()
			case p.Bits() == length[i]:
				v, length[i] = m.below(addrs[i], p.Bits())
			default:
				continue // withdrawn without having been there
			}
			if s := ps[i].steps; s[len(s)-1].value != v {
				ps[i].steps = append(s, step{int32(k + 1), v})
			}
			v = day[k].Value
		}
	}
	return ps
}

// disjoint cuts the day into batches of changes whose prefixes do not overlap: for each address one of them
// counts at most, so that it has an answer before and an answer after the batch and no other.
func disjoint[A bgp.Addr](day []bgp.Route[A], most int) (ends []int) {
	from := 0
	for i := range day {
		p := day[i].Prefix()
		if i-from == most || slices.ContainsFunc(day[from:i], func(r bgp.Route[A]) bool { return r.Prefix().Overlaps(p) }) {
			ends = append(ends, i)
			from = i
		}
	}
	return append(ends, len(day))
}

// TestFullTable: while a day's changes are made, a reader never gets an answer but the one before or the one after the
// change in flight; at the end of the day the data plane equals a slow table at both ends of every prefix and
// at ten million random addresses.
func TestFullTable(t *testing.T) {
	t.Run("ipv4", func(t *testing.T) {
		fullTable(t, true, own4, func(_ []netip.Prefix, r *rand.Rand) func() netip.Addr { return bgp.Uniform(r) })
	})
	t.Run("ipv6", func(t *testing.T) { fullTable(t, false, own6, bgp.Intervals) })
}

func fullTable[A bgp.Addr](t *testing.T, v4 bool, own []contender[A], wide func([]netip.Prefix, *rand.Rand) func() netip.Addr) {
	prefixes, updates := fullData(t, v4)
	table, day := bgp.Routes[A](prefixes, fibHops), bgp.Changes[A](updates, fibHops)
	m := rib{}
	for i := range table {
		m[table[i].Prefix()] = table[i].Value
	}
	ps := probes(m, day, 1<<13)
	ends := disjoint(day, 16)
	var sorted []netip.Prefix
	for p := range m {
		sorted = append(sorted, p)
	}
	slices.SortFunc(sorted, netip.Prefix.Compare)
	subs := subjects(t, v4, own, table)
	for _, s := range subs {
		defer s.close()
		replay(t, &s, day, ends, ps)
	}

	var addrs []netip.Addr
	compare := func() {
		want := sweep(sorted, m, addrs)
		n := (len(addrs) + fibBatch - 1) / fibBatch * fibBatch
		dst, out := make([]A, n), make([]uint16, n)
		for i, a := range addrs {
			dst[i] = bgp.From[A](a)
		}
		for _, s := range subs {
			for i := 0; i < n; i += fibBatch {
				s.find(dst[i:i+fibBatch], out[i:i+fibBatch])
			}
			for i := range want {
				if out[i] != want[i] {
					t.Fatalf("%s: %v at the end of the day: %d, want %d", s.name, addrs[i], out[i], want[i])
				}
			}
		}
	}
	for part := range slices.Chunk(sorted, 1<<19) {
		addrs = addrs[:0]
		for _, p := range part {
			addrs = append(addrs, p.Addr(), bgp.Last(p))
		}
		compare()
	}
	r := rand.New(rand.NewPCG(13, 14))
	next := []func() netip.Addr{wide(sorted, r), bgp.Prefixes(sorted, r)}
	for k := range 10 {
		addrs = addrs[:0]
		for range 1_000_000 {
			addrs = append(addrs, next[k&1]())
		}
		compare()
	}
}

// replay makes the day's changes beside a reader that judges every answer.
func replay[A bgp.Addr](t *testing.T, s *subject[A], day []bgp.Route[A], ends []int, ps []probe[A]) {
	t.Helper()
	var begun, done atomic.Int32
	var stop atomic.Bool
	type tally struct{ answers, either, wrong int }
	result := make(chan tally)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		s.on(true)
		defer s.on(false)
		var n tally
		at := make([]int, len(ps)) // the last step that was made for sure
		var dst [fibBatch]A
		var out [fibBatch]uint16
		for i := 0; !stop.Load(); i = (i + fibBatch) % len(ps) {
			s.round()
			for j := range dst {
				dst[j] = ps[i+j].dst
			}
			before := done.Load()
			s.find(dst[:], out[:])
			after := begun.Load()
			for j, v := range out {
				steps, k := ps[i+j].steps, at[i+j]
				for k+1 < len(steps) && steps[k+1].at <= before {
					k++
				}
				at[i+j] = k
				ok, open := steps[k].value == v, 0
				for k++; k < len(steps) && steps[k].at <= after; k++ {
					ok = ok || steps[k].value == v
					open++
				}
				n.answers++
				n.either += min(open, 1)
				if !ok {
					if n.wrong++; n.wrong < 5 {
						t.Errorf("%s: %v after %d to %d changes: %d, want one of %v", s.name, bgp.Netip(dst[j]), before, after, v, steps[at[i+j]:k])
					}
				}
			}
		}
		result <- n
	}()
	from := 0
	for _, to := range ends {
		begun.Store(int32(to))
		if err := s.change(day[from:to]); err != nil {
			t.Error(err)
			break
		}
		done.Store(int32(to))
		from = to
	}
	stop.Store(true)
	n := <-result
	t.Logf("%s: %d changes, %d answers checked, %d of them beside a change of theirs, %d wrong", s.name, len(day), n.answers, n.either, n.wrong)
}
