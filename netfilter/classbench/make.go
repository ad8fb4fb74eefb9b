package classbench

import (
	"cmp"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
)

// profile is what tells one kind of rule sets from another: how specific addresses are, how many different ones there are, which ports
// and protocols rules name.
type profile struct {
	// lens are pairs of lengths of source and destination prefixes with their weights, for IPv4.
	lens []lens
	// sites are the networks of 2^12 addresses in which the prefixes from /13 on lie, as a share of the rules
	// to the power sitesPower.
	srcSites, dstSites float64
	sitesPower         float64
	// reuse is how often, of 100 times, an address is one that another rule has.
	srcReuse, dstReuse int
	// pairReuse is how often both addresses are those of another rule.
	pairReuse int
	ports     []ports
	// well are ports that rules name, the more often the earlier.
	well []uint16
}

type lens struct{ src, dst, weight int }

// ports is what rules say of ports and protocol. Source and destination are a letter each: * any port, = one, h those from
// 1024 on, - a range.
type ports struct {
	form   string
	proto  int // -1 any
	weight int
}

var profiles = map[string]profile{
	// Access lists: pairs of hosts and small networks, few destinations, destination ports only.
	"acl1": {
		lens: []lens{{32, 32, 290}, {31, 32, 145}, {32, 31, 130}, {31, 31, 48}, {32, 30, 38}, {32, 22, 32}, {23, 32, 32}, {31, 22, 22}, {30, 32, 20}, {32, 24, 19},
			{31, 23, 19}, {24, 31, 15}, {30, 22, 12}, {32, 21, 10}, {30, 23, 10}, {24, 32, 10}, {32, 25, 8}, {29, 23, 7}, {22, 32, 7}, {32, 5, 14}, {32, 15, 12}, {32, 0, 5}, {8, 32, 3}, {0, 31, 3}},
		srcSites: 0.8, dstSites: 0.12, sitesPower: 0.55, srcReuse: 40, dstReuse: 97, pairReuse: 30,
		ports: []ports{{"*=", 6, 603}, {"**", 6, 159}, {"*-", 6, 112}, {"**", -1, 82}, {"**", 1, 33}, {"*=", 17, 10}, {"*-", 17, 1}},
		well: []uint16{1521, 1526, 1221, 1433, 1525, 14753, 135, 1704, 1711, 1712, 1724, 5555, 7648, 5631, 1717, 1550, 1489, 1432, 3268, 445, 88, 389, 53, 21, 32200, 6789,
			20, 22, 23, 80, 443, 8080, 8000, 8443, 2000, 2001, 2200, 3000, 3001, 3306, 3389, 4000, 5000, 5432, 5632, 5900, 6000, 6790, 6889, 7001, 7002, 9000, 9001, 9100, 10000, 10001,
			12345, 15000, 16000, 16001, 19856, 19857, 20000, 25000, 30000, 31000, 32000, 33000, 40000, 41000, 50000, 60000},
	},
	// Firewalls: one side open, or nearly, the other one of many different hosts and small networks; ports on both sides.
	"fw1": {
		lens: []lens{{0, 31, 200}, {0, 32, 150}, {1, 32, 120}, {1, 31, 75}, {0, 30, 66}, {31, 0, 50}, {32, 0, 39}, {32, 1, 34}, {2, 32, 30}, {30, 0, 23}, {31, 1, 23}, {32, 32, 20},
			{31, 32, 10}, {29, 0, 9}, {32, 31, 9}, {32, 2, 8}, {28, 0, 8}, {27, 0, 13}, {20, 31, 16}, {22, 30, 14}, {0, 28, 10}, {0, 21, 16}, {11, 32, 9}, {0, 0, 2}, {1, 0, 2}, {0, 1, 2}},
		srcSites: 1, dstSites: 1, sitesPower: 1, srcReuse: 3, dstReuse: 3, pairReuse: 3,
		ports: []ports{{"*=", 6, 430}, {"*=", 17, 143}, {"=*", 17, 106}, {"**", 6, 93}, {"**", 47, 55}, {"hh", 6, 41}, {"**", 1, 34}, {"==", 17, 23}, {"=h", 17, 23}, {"hh", 17, 20}, {"h=", 17, 20},
			{"**", -1, 10}, {"-h", 17, 1}, {"h-", 17, 1}},
		well: []uint16{22, 80, 25, 53, 123, 2105, 750, 544, 21, 161, 23, 88, 69, 119, 443, 24032, 514, 513, 110, 143, 5999, 7648, 2401, 8080, 1503, 1720, 3128, 79, 113, 20, 70, 543, 109, 194, 515},
	},
	// Chains of a packet filter in between: networks of all sizes, of which many rules have the same.
	"ipc1": {
		lens: []lens{{32, 32, 68}, {31, 32, 37}, {24, 32, 35}, {23, 32, 31}, {32, 31, 24}, {25, 32, 21}, {23, 24, 21}, {24, 24, 18}, {25, 31, 17}, {24, 31, 17}, {0, 32, 17}, {32, 24, 16}, {1, 32, 16},
			{32, 25, 16}, {23, 0, 15}, {0, 31, 15}, {24, 23, 15}, {24, 0, 12}, {24, 25, 12}, {23, 25, 11}, {16, 32, 25}, {17, 24, 25}, {31, 31, 20}, {25, 16, 20}, {26, 16, 20}, {22, 26, 30}, {27, 15, 20},
			{26, 26, 20}, {28, 17, 15}, {30, 30, 10}, {15, 29, 8}, {0, 24, 14}, {1, 25, 12}, {32, 0, 20}, {31, 1, 12}, {0, 0, 2}},
		srcSites: 3.2, dstSites: 2.3, sitesPower: 0.5, srcReuse: 80, dstReuse: 85, pairReuse: 35,
		ports: []ports{{"**", -1, 300}, {"*=", 17, 239}, {"*=", 6, 147}, {"=*", 17, 89}, {"=*", 6, 80}, {"*h", 17, 45}, {"**", 6, 23}, {"*-", 6, 19}, {"-*", 6, 17}, {"**", 1, 14}, {"*-", 17, 7}, {"==", 17, 4},
			{"**", 17, 4}, {"-*", 17, 4}, {"h*", 17, 3}, {"**", 47, 3}, {"**", 51, 1}},
		well: []uint16{69, 514, 80, 161, 9003, 53, 25, 1433, 137, 22, 162, 143, 113, 5550, 5540, 5500, 123, 21, 23, 443, 1098, 7000, 110, 119, 6000, 2049, 111, 139, 445},
	},
}

// Kinds are the kinds of rule sets that Make knows.
var Kinds = []string{"acl1", "fw1", "ipc1"}

// Make makes up to n different rules of a kind, the most specific first, by the seed. It makes fewer where the kind has no more.
func Make(kind string, n int, six bool, seed uint64) []Rule {
	p, ok := profiles[kind]
	if !ok {
		panic(fmt.Sprintf("classbench: no kind %q; there are %s", kind, strings.Join(Kinds, ", ")))
	}
	r := rand.New(rand.NewPCG(seed, uint64(n)))
	src := p.newPlaces(n, p.srcSites, p.srcReuse, six, r)
	dst := p.newPlaces(n, p.dstSites, p.dstReuse, six, r)
	seen := make(map[Rule]bool, n)
	rs := make([]Rule, 0, n)
	for tries := 0; len(rs) < n && tries < 20*n; tries++ {
		l := pick(p.lens, func(l lens) int { return l.weight }, r)
		f := pick(p.ports, func(f ports) int { return f.weight }, r)
		x := Rule{Sport: p.port(f.form[0], min(len(p.well), 12), r), Dport: p.port(f.form[1], len(p.well), r)}
		if len(rs) > 0 && r.IntN(100) < p.pairReuse {
			old := &rs[r.IntN(len(rs))]
			x.Src, x.Dst = old.Src, old.Dst
		} else {
			x.Src, x.Dst = src.prefix(l.src), dst.prefix(l.dst)
		}
		if x.AnyProto = f.proto < 0; !x.AnyProto {
			x.Proto = uint8(f.proto)
		}
		if !seen[x] {
			seen[x] = true
			rs = append(rs, x)
		}
	}
	slices.SortStableFunc(rs, func(a, b Rule) int { return cmp.Compare(b.Src.Bits()+b.Dst.Bits(), a.Src.Bits()+a.Dst.Bits()) })
	return rs
}

// pick picks one of a list by weights.
func pick[T any](l []T, weight func(T) int, r *rand.Rand) T {
	sum := 0
	for _, x := range l {
		sum += weight(x)
	}
	at := r.IntN(sum)
	for _, x := range l {
		if at -= weight(x); at < 0 {
			return x
		}
	}
	panic("classbench: unreachable")
}

// port is a range of ports of a form, by one of the first well-known ones.
func (p *profile) port(form byte, first int, r *rand.Rand) Ports {
	low := min(r.IntN(first), r.IntN(first), r.IntN(first))
	switch one := p.well[low]; form {
	case '*':
		return anyPort
	case 'h':
		return Ports{1024, 65535}
	case '-':
		return Ports{one, one + min(uint16(1+low), 65535-one)}
	default:
		return Ports{one, one}
	}
}

// places are where the prefixes of one side lie.
type places struct {
	six   bool
	reuse int
	sites []netip.Addr
	used  map[int][]netip.Prefix // by length
	r     *rand.Rand
}

func (p *profile) newPlaces(n int, sites float64, reuse int, six bool, r *rand.Rand) *places {
	q := &places{six: six, reuse: reuse, used: map[int][]netip.Prefix{}, r: r}
	all, bits := netip.MustParsePrefix("0.0.0.0/0"), 20
	if six {
		all, bits = netip.MustParsePrefix("2000::/3"), length6(bits)
	}
	for range max(int(sites*math.Pow(float64(n), p.sitesPower)), 4) {
		s, _ := within(all, r).Prefix(bits)
		q.sites = append(q.sites, s.Addr())
	}
	return q
}

// length6 is a length of an IPv6 prefix that is used as one of IPv4: up to /8 the same, /20 for a site, /31 for a network, /32 for a host.
func length6(n int) int {
	switch {
	case n <= 8:
		return n
	case n <= 20:
		return 8 + (n-8)*40/12
	case n < 32:
		return 48 + (n-20)*16/11
	}
	return 128
}

// prefix is one of a length, as for IPv4.
func (q *places) prefix(bits int) netip.Prefix {
	if q.six {
		bits = length6(bits)
	}
	if old := q.used[bits]; len(old) > 0 && q.r.IntN(100) < q.reuse {
		return old[q.r.IntN(len(old))]
	}
	site := q.sites[q.r.IntN(len(q.sites))]
	at := 20
	if q.six {
		at = length6(at)
	}
	p, _ := within(netip.PrefixFrom(site, at), q.r).Prefix(bits)
	q.used[bits] = append(q.used[bits], p)
	return p
}

// Firewall is a firewall of 250 rules such as people write for a small site: blocked sources, addresses that no packet should come from, a network of
// 30 servers, what those inside may use, ports that nobody may.
func Firewall() (rs []Rule) {
	v4 := func(a, b, c, d, bits int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(a), byte(b), byte(c), byte(d)}), bits)
	}
	all := netip.MustParsePrefix("0.0.0.0/0")
	add := func(src, dst netip.Prefix, sport, dport Ports, proto int) {
		rs = append(rs, Rule{src, dst, sport, dport, uint8(max(proto, 0)), proto < 0})
	}
	for i := range 40 {
		a, b, c, d := 45+i%7, i*37%256, i*91%256, i*13%256
		if i%3 == 0 {
			add(v4(a, b, c, 0, 24), all, anyPort, anyPort, -1)
		} else {
			add(v4(a, b, c, d, 32), all, anyPort, anyPort, -1)
		}
	}
	for _, s := range []string{"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16",
		"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "100.64.0.0/10"} {
		add(netip.MustParsePrefix(s), all, anyPort, anyPort, -1)
	}
	one := func(p int) Ports { return Ports{uint16(p), uint16(p)} }
	services := [][2]int{{6, 80}, {6, 443}, {6, 25}, {17, 53}, {6, 22}, {6, 993}, {17, 123}, {6, 8080}, {6, 3306}, {17, 500}}
	for s := range 30 {
		for k := range 5 {
			x, src := services[(s*3+k*2+k/2)%10], all
			if k == 4 {
				src = v4(10, s%8, 0, 0, 16)
			}
			add(src, v4(20, 1, s/6, 10+s%6, 32), anyPort, one(x[1]), x[0])
		}
	}
	for i := range 20 {
		port, proto := []int{80, 443, 53, 25, 110, 143, 993, 995, 587, 22}[i%10], 6
		if port == 53 {
			proto = 17
		}
		add(v4(10, i/10, 0, 0, 16), all, anyPort, one(port), proto)
	}
	for _, p := range []Ports{{135, 139}, {445, 445}, {1433, 1434}, {3389, 3389}, {6000, 6063}, {111, 111}, {2049, 2049}, {161, 162}} {
		add(all, all, anyPort, p, 6)
		add(all, all, anyPort, p, 17)
	}
	servers := v4(20, 1, 0, 0, 16)
	for i := range 7 {
		add(v4(60, i, 0, 0, 16), servers, anyPort, Ports{uint16(8000 + 100*i), uint16(8099 + 100*i)}, 6)
	}
	add(all, all, anyPort, anyPort, 1)
	add(all, servers, Ports{1024, 65535}, Ports{33434, 33534}, 17)
	add(v4(10, 0, 0, 0, 8), all, anyPort, anyPort, -1)
	return rs
}
