package bgp

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// Make4 makes a table of n IPv4 prefixes like the Internet's of 2026: the lengths of its allocations, and routes inside
// routes. There are a million, of which n are taken at random. The same n always gives the same table.
func Make4(n int) []netip.Prefix {
	r := rand.New(rand.NewPCG(4, uint64(n)))
	var t []netip.Prefix
	// Weights of the lengths of prefixes that no other covers, from /8 on, and of those inside others.
	tops := newDice(8, 16, 9, 39, 90, 263, 487, 1012, 1623, 10810, 4516, 7162, 14916, 20961, 22939, 60643, 46080, 324981)
	subs := newDice(8, 0, 5, 0, 5, 34, 97, 189, 506, 2825, 3831, 6225, 10600, 24666, 29524, 53098, 61789, 332384)
	for at := uint64(1 << 24); at < 224<<24; {
		l := tops.roll(r)
		size := uint64(1) << (32 - l)
		if at&(size-1) != 0 {
			if r.IntN(3) == 0 {
				continue // another that begins here
			}
			at = (at + size - 1) &^ (size - 1) // what lies between is not announced
		}
		if o := at >> 24; o == 10 || o == 127 || at>>16 == 169<<8|254 {
			at += size
			continue
		}
		var a [16]byte
		binary.BigEndian.PutUint32(a[:], uint32(at))
		t = nest(t, r, subs, a, l, 24, 0.8, 2.2, func(a [16]byte, l int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:])), l)
		})
		at += size
	}
	return some(t, r, n)
}

// Make6 is Make4 for IPv6, of a quarter of a million.
func Make6(n int) []netip.Prefix {
	r := rand.New(rand.NewPCG(6, uint64(n)))
	var t []netip.Prefix
	tops := newDice(19, 1, 14, 3, 6, 6, 35, 12, 12, 16, 125, 5330, 428, 214, 24479, 1128, 1142, 578, 4158, 281, 1260, 259, 6923, 519, 912, 666, 7133, 763, 1904, 2179, 47455)
	subs := newDice(19, 0, 0, 0, 0, 0, 7, 0, 5, 2, 34, 63, 399, 127, 2075, 4264, 4044, 1258, 5263, 927, 1400, 1562, 16015, 1171, 2002, 785, 17525, 3739, 3725, 6718, 64247)
	// The blocks of the registries, a /12 each, and how full each is.
	regions := []uint64{0x2001, 0x2400, 0x2600, 0x2800, 0x2a00, 0x2c00}
	seen := map[netip.Prefix]bool{}
	for len(seen) < 108_000 {
		l := tops.roll(r)
		block := regions[r.IntN(len(regions))]<<48 | r.Uint64N(1<<52)&^(1<<30-1)
		if l > 34 { // provider-independent space is handed out close together
			block = block&^(1<<36-1) | r.Uint64N(1<<14)<<16
		}
		var a [16]byte
		binary.BigEndian.PutUint64(a[:], block)
		p := netip.PrefixFrom(netip.AddrFrom16(a), l).Masked()
		if seen[p] {
			continue
		}
		seen[p] = true
		t = nest(t, r, subs, p.Addr().As16(), l, 48, 0.14, 1, func(a [16]byte, l int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom16(a), l)
		})
	}
	return some(t, r, n)
}

// nest adds a prefix of l bits and random ones inside it, on average more than one, in runs as
// providers announce them; none longer than most. A share of deep has others inside, more with a larger scale.
func nest(t []netip.Prefix, r *rand.Rand, subs dice, a [16]byte, l, most int, deep, scale float64, prefix func([16]byte, int) netip.Prefix) []netip.Prefix {
	t = append(t, prefix(a, l))
	if l >= most {
		return t
	}
	// Few prefixes have many others inside, most have none.
	kids := 0
	if x := r.Float64(); x < deep {
		kids = min(int(scale/(x+0.01)), 1<<(most-l))
	}
	for kids > 0 {
		k := subs.roll(r)
		if k <= l {
			kids--
			continue
		}
		run := 1 + r.IntN(min(kids, 4))
		at := r.Uint64N(1 << min(k-l, 60))
		for range run {
			b := a
			v := binary.BigEndian.Uint64(b[:]) | at<<(64-k)
			binary.BigEndian.PutUint64(b[:], v)
			if k < most && r.IntN(4) == 0 {
				t = nest(t, r, subs, b, k, most, deep, scale, prefix)
			} else {
				t = append(t, prefix(b, k))
			}
			if at++; at == 1<<(k-l) {
				break
			}
		}
		kids -= run
	}
	return t
}

// some is n different prefixes of t at random, in order.
func some(t []netip.Prefix, r *rand.Rand, n int) []netip.Prefix {
	t = sortUnique(t)
	if n < len(t) {
		t = Sample(t, r, n)
		slices.SortFunc(t, netip.Prefix.Compare)
	}
	return t
}

func sortUnique(t []netip.Prefix) []netip.Prefix {
	slices.SortFunc(t, netip.Prefix.Compare)
	return slices.Compact(t)
}

// Sample is n prefixes of t in random order.
func Sample(t []netip.Prefix, r *rand.Rand, n int) []netip.Prefix {
	t = slices.Clone(t)
	r.Shuffle(len(t), func(i, j int) { t[i], t[j] = t[j], t[i] })
	return t[:min(n, len(t))]
}

// MakeUpdates makes n changes of a table as a day brings them: few prefixes flap all day, some go and come back, few
// are new.
func MakeUpdates(table []netip.Prefix, n int) []Update {
	r := rand.New(rand.NewPCG(uint64(n), 7))
	restless := Sample(table, r, len(table)/8+1)
	z := rand.NewZipf(r, 1.05, 20, uint64(len(restless)-1))
	var out []Update
	gone := []netip.Prefix{}
	for len(out) < n {
		p := restless[z.Uint64()]
		switch x := r.IntN(100); {
		case x < 3:
			out = append(out, Update{p, true})
			gone = append(gone, p)
		case x < 5 && len(gone) > 0:
			i := r.IntN(len(gone))
			out = append(out, Update{gone[i], false})
			gone[i] = gone[len(gone)-1]
			gone = gone[:len(gone)-1]
		case x < 6 && p.Bits() < p.Addr().BitLen()/2:
			out = append(out, Update{netip.PrefixFrom(p.Addr(), p.Bits()+1+r.IntN(2)), false})
		default:
			out = append(out, Update{p, false})
		}
	}
	return out
}

// Hosts makes n host routes in pools of some hundred within prefixes of the table, as access networks have them.
func Hosts(table []netip.Prefix, n int) []netip.Prefix {
	r := rand.New(rand.NewPCG(uint64(n), 8))
	seen := map[netip.Prefix]bool{}
	for len(seen) < n {
		pool := Inside(table[r.IntN(len(table))], r).As16()
		for range min(122, n-len(seen)) {
			a := pool
			binary.BigEndian.PutUint64(a[8:], r.Uint64())
			if table[0].Addr().Is4() { // mapped: ::ffff:a.b.c.d
				copy(a[8:15], pool[8:15])
			}
			h := netip.AddrFrom16(a).Unmap()
			seen[netip.PrefixFrom(h, h.BitLen())] = true
		}
	}
	var t []netip.Prefix
	for p := range seen {
		t = append(t, p)
	}
	return sortUnique(t)
}

// dice has the numbers from first on, by weight.
type dice struct {
	first int
	upto  []int
}

func newDice(first int, weights ...int) dice {
	sum := 0
	d := dice{first: first}
	for _, w := range weights {
		sum += w
		d.upto = append(d.upto, sum)
	}
	return d
}

func (d dice) roll(r *rand.Rand) int {
	i, _ := slices.BinarySearch(d.upto, r.IntN(d.upto[len(d.upto)-1])+1)
	return d.first + i
}
