package bgp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
)

// Inside is a random address of a prefix.
func Inside(p netip.Prefix, r *rand.Rand) netip.Addr {
	return fill(p, r.Uint64(), r.Uint64())
}

// Last is the last address of a prefix.
func Last(p netip.Prefix) netip.Addr { return fill(p, ^uint64(0), ^uint64(0)) }

// fill is the prefix with the bits behind it taken from hi and lo.
func fill(p netip.Prefix, hi, lo uint64) netip.Addr {
	a := p.Addr().As16()
	n := p.Bits()
	if p.Addr().Is4() {
		n += 96
	}
	h, l := binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])
	// A shift by 64 or more gives 0.
	h |= hi & (^uint64(0) >> min(n, 64))
	l |= lo & (^uint64(0) >> max(n-64, 0))
	binary.BigEndian.PutUint64(a[:8], h)
	binary.BigEndian.PutUint64(a[8:], l)
	if b := netip.AddrFrom16(a); !p.Addr().Is4() {
		return b
	}
	return netip.AddrFrom4([4]byte(a[12:]))
}

// Trace fills a list of destinations from next.
func Trace[A Addr](dst []A, next func() netip.Addr) {
	for i := range dst {
		dst[i] = From[A](next())
	}
}

// Prefixes gives addresses inside random prefixes of the table, each prefix as likely as any other.
func Prefixes(t []netip.Prefix, r *rand.Rand) func() netip.Addr {
	return func() netip.Addr { return Inside(t[r.IntN(len(t))], r) }
}

// Zipf gives 2^18 such addresses again and again, with the frequencies of Zipf's law (exponent 1.1), as traffic has them.
func Zipf(t []netip.Prefix, r *rand.Rand) func() netip.Addr {
	under := Prefixes(t, r)
	flows := make([]netip.Addr, 1<<18)
	for i := range flows {
		flows[i] = under()
	}
	z := rand.NewZipf(r, 1.1, 1, uint64(len(flows)-1))
	return func() netip.Addr { return flows[z.Uint64()] }
}

// Uniform gives IPv4 addresses, each as likely as any other.
func Uniform(r *rand.Rand) func() netip.Addr {
	return func() netip.Addr { return Netip(r.Uint32()) }
}

// Intervals gives IPv6 addresses in random ones of the intervals between the bounds of the prefixes: what
// uniform is for IPv4, where addresses would nearly all have no route.
func Intervals(t []netip.Prefix, r *rand.Rand) func() netip.Addr {
	bounds := [][16]byte{{}}
	for _, p := range t {
		bounds = append(bounds, p.Masked().Addr().As16(), Last(p).Next().As16()) // the zero Addr behind the last one is ::
	}
	slices.SortFunc(bounds, func(a, b [16]byte) int { return bytes.Compare(a[:], b[:]) })
	bounds = slices.Compact(bounds)
	return func() netip.Addr {
		i := r.IntN(len(bounds))
		end := [16]byte{}
		if i+1 < len(bounds) {
			end = bounds[i+1]
		}
		from, to := binary.BigEndian.Uint64(bounds[i][:]), binary.BigEndian.Uint64(end[:])
		low := binary.BigEndian.Uint64(bounds[i][8:])
		a := bounds[i]
		if n := to - from; n == 0 { // both bounds inside a /64
			if m := binary.BigEndian.Uint64(end[8:]) - low; m != 0 {
				low += r.Uint64N(m)
			}
		} else if k := r.Uint64N(n); k != 0 || low == 0 {
			from += k
			low = r.Uint64()
		}
		binary.BigEndian.PutUint64(a[:], from)
		binary.BigEndian.PutUint64(a[8:], low)
		return netip.AddrFrom16(a)
	}
}
