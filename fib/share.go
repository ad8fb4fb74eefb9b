package fib

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// A group of several next hops has a table of buckets, each dealt to one member. A flow's hash
// picks the bucket, so a flow changes its way when its bucket changes hands, and only then.
//
//   - Shares are exact: a member has its weight's part of the buckets rounded to a whole number.
//   - While a member does not work the others have its buckets, by their weights; when it is
//     back it takes its own and leaves theirs. While several do not work, one that comes back takes
//     what it lacks from the buckets of those still away, too.
//   - A set of next hops that replaces another starts from the buckets of that one, so that
//     members in both keep their flows up to their new share.
//   - Without such a start each member takes buckets in an order of its own, which follows from
//     its address: sets that differ little are dealt little different tables (as Maglev does:
//     Eisenbud et al., NSDI 2016), where they are of one size.
//
// Rendezvous hashing proper would need some thousand buckets a member for shares this close.

const (
	nobody     = ^uint16(0) // of a bucket's member: dealt to none
	minBuckets = 128
	maxBuckets = 1 << 15
	perMember  = 32 // buckets, at least, where maxBuckets has room
	closeTo    = 32 // shares come within 1/closeTo of what weights ask, where maxBuckets has room
)

// buckets is the length of the bucket table for the weights: a power of two.
func buckets(weight []int) int {
	n := minBuckets
	for n < perMember*len(weight) && n < maxBuckets {
		n *= 2
	}
	none := make([]int, len(weight))
	for ; n < maxBuckets; n *= 2 {
		if near(n, weight, quotas(n, weight, none)) {
			break
		}
	}
	return n
}

func near(n int, weight, quota []int) bool {
	sum := total(weight)
	for i, w := range weight {
		if d := quota[i]*sum - n*w; max(d, -d)*closeTo > n*w {
			return false
		}
	}
	return true
}

func total(weight []int) (sum int) {
	for _, w := range weight {
		sum += w
	}
	return sum
}

// quotas says how many of n buckets each member should have: its weight's part, rounded down or up
// but at least one. Of those that could be rounded up, members that have as much come first.
// Members of weight 0 get none; some weight must not be 0, and n no less than the members.
func quotas(n int, weight, have []int) []int {
	q := make([]int, len(weight))
	sum := total(weight)
	for more := true; more; { // shares below one bucket are one, and leave the rest less
		more = false
		for i, w := range weight {
			if w > 0 && q[i] == 0 && n*w < sum {
				q[i], more = 1, true
				n, sum = n-1, sum-w
			}
		}
	}
	const room = 16 // bits for the member's number
	up := make([]uint64, 0, len(weight))
	left := n
	for i, w := range weight {
		if w == 0 || q[i] != 0 {
			continue
		}
		q[i] = n * w / sum
		left -= q[i]
		if rest := n * w % sum; rest != 0 {
			k := uint64(rest)<<room | uint64(len(weight)-1-i)
			if have[i] > q[i] {
				k |= 1 << 63
			}
			up = append(up, k)
		}
	}
	slices.Sort(up)
	for _, k := range up[len(up)-left:] {
		q[len(weight)-1-int(k&(1<<room-1))]++
	}
	return q
}

// deal gives each member its quota of the buckets, of which owner has those that are dealt already.
// They stay where they are up to the quota. With base only members that are back take from others,
// and only what is not theirs by base, as far as there is such. Owners must have a weight; len(owner) is a power of two.
func deal(owner []uint16, weight []int, id []uint64, base []uint16, back []bool) {
	n := len(owner)
	have := make([]int, len(weight))
	free := 0
	for _, m := range owner {
		if m == nobody {
			free++
		} else {
			have[m]++
		}
	}
	need := quotas(n, weight, have)
	type taker struct{ member, at, step int }
	var takers []taker
	for i := range need {
		if need[i] -= have[i]; need[i] > 0 {
			takers = append(takers, taker{i, int(id[i]>>32) & (n - 1), int(id[i]&uint64(n-1)) | 1})
		}
	}
	t := 0
	take := func(b int) {
		m := takers[t].member
		owner[b] = uint16(m)
		if need[m]--; need[m] == 0 {
			takers = slices.Delete(takers, t, t+1)
		} else {
			t++
		}
		if t >= len(takers) {
			t = 0
		}
	}
	if free < n {
		for b := range owner { // in any order: a bucket here or there is a flow here or there
			if owner[b] == nobody {
				take(b)
			}
		}
	}
	if base != nil {
		takers, t = slices.DeleteFunc(takers, func(x taker) bool { return !back[x.member] }), 0
	}
	for len(takers) > 0 {
		x := &takers[t]
		for tries := n; ; tries-- {
			if tries == 0 {
				takers, t = slices.Delete(takers, t, t+1), 0
				break
			}
			b := x.at
			x.at = (b + x.step) & (n - 1)
			m := owner[b]
			if m != nobody {
				if need[m] >= 0 || base != nil && base[b] == m {
					continue
				}
				need[m]++ // one of those that are too many
			}
			take(b)
			break
		}
	}
}

// share is the bucket table of a set.
type share struct {
	weight []int
	id     []uint64
	base   []uint16 // member of each bucket while all work
	owner  []uint16 // member of each bucket
	works  []bool   // what owner was dealt for
}

// newShare deals the buckets of a set that takes the place of another, which may be nil.
func newShare(s, old *hopset) *share {
	k := len(s.hops)
	d := &share{weight: make([]int, k), id: make([]uint64, k), works: make([]bool, k)}
	for i := range s.hops {
		d.weight[i], d.id[i] = s.hops[i].Weight, identity(&s.hops[i])
	}
	n := buckets(d.weight)
	was, same := []uint16{nobody}, []uint16{}
	if old != nil && len(old.hops) > 0 && old.users > 0 {
		was, same = []uint16{0}, matches(old.hops, s.hops)
		if old.share != nil {
			was = old.share.owner
		}
		if m := len(was); m > n && m <= 4*n {
			n = m // a shorter table would move flows
		}
	}
	d.base = make([]uint16, n)
	for b := range d.base {
		d.base[b] = nobody
		if m := was[b&(len(was)-1)]; m != nobody {
			d.base[b] = same[m]
		}
	}
	deal(d.base, d.weight, d.id, nil, nil)
	d.owner = slices.Repeat([]uint16{nobody}, n)
	return d
}

// matches says which hop of to each hop of from is, nobody for none. Both are in order.
func matches(from, to []NextHop) []uint16 {
	out := make([]uint16, len(from))
	for i, k := 0, 0; i < len(from); i++ {
		for k < len(to) && to[k].compare(&from[i]) < 0 {
			k++
		}
		out[i] = nobody
		if k < len(to) && to[k].compare(&from[i]) == 0 {
			out[i] = uint16(k)
		}
	}
	return out
}

// identity is a hash of what tells a next hop from others.
func identity(h *NextHop) uint64 {
	a := h.Via.As16()
	const k0, k1 = 0xa0761d6478bd642f, 0xe7037ed1a0b428db
	hi, lo := bits.Mul64(binary.BigEndian.Uint64(a[:])^uint64(h.Iface)^k0, binary.BigEndian.Uint64(a[8:])^uint64(h.MTU)<<48^k1)
	hi, lo = bits.Mul64(hi^lo^k0, uint64(h.Iface)<<16^uint64(h.MTU)^lo^k1)
	return hi ^ lo
}

// repair deals the buckets of members that do not work to those that do, and gives those back that
// belong to members that work again. Some member must work.
func (d *share) repair(works func(i int) bool) {
	same := true
	weight, back := make([]int, len(d.weight)), make([]bool, len(d.weight))
	for i := range d.works {
		w := works(i)
		same = same && w == d.works[i]
		back[i] = w && !d.works[i]
		if d.works[i] = w; w {
			weight[i] = d.weight[i]
		}
	}
	if same {
		return
	}
	for b, m := range d.base {
		if d.works[m] {
			d.owner[b] = m
		} else if o := d.owner[b]; o != nobody && !d.works[o] {
			d.owner[b] = nobody
		}
	}
	deal(d.owner, weight, d.id, d.base, back)
}
