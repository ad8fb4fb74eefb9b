package traffic

import (
	"math/rand/v2"
	"strconv"
	"strings"
)

const (
	minFrame = 64    // of Ethernet, with FCS
	maxFrame = 16000 // letter j of RFC 6985
)

// genome are the sizes of RFC 6985, section 4; z, the MTU, is what the profile says.
var genome = map[rune]uint64{'a': 64, 'b': 128, 'c': 256, 'd': 512, 'e': 1024, 'f': 1280, 'g': 1518, 'h': 2112, 'i': 9000, 'j': 16000}

// imix is the simple IMIX.
var imix = []weighted{{64, 7}, {594, 4}, {1518, 1}}

type weighted struct{ size, weight uint64 }

// sizes reads frame sizes with FCS: a number, range, list, imix, genome, or sizes with weights.
func (n node) sizes(seed uint64) []uint16 {
	switch {
	case n.isList():
		var l []uint16
		for _, it := range n.items() {
			s, ok := it.text()
			if !ok {
				return nil
			}
			x, ok := it.size(s)
			if !ok {
				return nil
			}
			l = append(l, x)
		}
		if len(l) == 0 {
			n.fail("an empty list")
		}
		return l
	case n.isMap():
		return n.sizeMap(seed)
	}
	s, ok := n.text()
	if !ok {
		return nil
	}
	if s == "imix" {
		return spread(imix)
	}
	rest, random := strings.CutPrefix(s, "random ")
	if a, z, ok := strings.Cut(strings.TrimSpace(rest), "-"); ok {
		lo, ok1 := n.size(strings.TrimSpace(a))
		if !ok1 {
			return nil
		}
		hi, ok2 := n.size(strings.TrimSpace(z))
		if !ok2 {
			return nil
		}
		return n.between(lo, hi, random, seed)
	}
	if !random && s != "" && strings.Trim(s, "abcdefghijz") == "" {
		return n.genome(s, nil)
	}
	x, ok := n.size(s)
	if !ok {
		return nil
	}
	return []uint16{x}
}

func (n node) between(lo, hi uint16, random bool, seed uint64) (l []uint16) {
	if hi < lo {
		n.fail("the range ends before it begins; write the lower size first")
		return nil
	}
	if !random {
		for x := int(lo); x <= int(hi); x++ {
			l = append(l, uint16(x))
		}
		return l
	}
	r := rand.New(rand.NewPCG(seed, 0x73697a65))
	for range drawn {
		l = append(l, lo+uint16(r.IntN(int(hi-lo)+1)))
	}
	return l
}

func (n node) size(s string) (uint16, bool) {
	x, err := strconv.ParseUint(s, 0, 32)
	if err != nil {
		n.fail("%q is not a frame size in bytes with FCS, a range such as 64-1518, random 64-1518, imix, or a genome such as aafg", s)
		return 0, false
	}
	if x < minFrame || x > maxFrame {
		n.fail("%d is not between %d and %d bytes, FCS included", x, minFrame, maxFrame)
		return 0, false
	}
	return uint16(x), true
}

func (n node) genome(s string, own map[rune]uint16) (l []uint16) {
	for _, c := range s {
		x, ok := own[c]
		if !ok {
			var y uint64
			if y, ok = genome[c]; !ok {
				if c == 'z' || c >= 'A' && c <= 'Z' {
					n.fail("what size is %c? write {genome: %s, %c: 9018}", c, s, c)
				} else {
					n.fail("%q is no letter of RFC 6985: a to j, z, and A to Z with sizes of their own", c)
				}
				return nil
			}
			x = uint16(y)
		}
		l = append(l, x)
	}
	return l
}

func (n node) sizeMap(seed uint64) []uint16 {
	names := mappingKeys(n)
	if len(names) > 0 && strings.Trim(names[0], "0123456789") == "" { // sizes with weights
		o := n.keys(names...)
		var l []weighted
		total := uint64(0)
		for _, k := range names {
			x, ok := o.vals[k].size(k)
			if !ok {
				return nil
			}
			w := o.count(k, 1, 1, 10000)
			total += w
			l = append(l, weighted{uint64(x), w})
		}
		if total > drawn {
			n.fail("the weights come to %d; %d at most", total, drawn)
			return nil
		}
		return spread(l)
	}
	known := []string{"genome", "random"}
	for c := 'A'; c <= 'Z'; c++ {
		known = append(known, string(c))
	}
	known = append(known, "z")
	o := n.keys(known...)
	if r, ok := o.vals["random"]; ok {
		s, ok := r.text()
		if !ok {
			return nil
		}
		return node{r.f, r.n, r.pos, r.key}.randomSizes(s, seed)
	}
	g, ok := o.vals["genome"]
	if !ok {
		n.fail("write {genome: aafz, z: 9018} or sizes with weights such as {64: 7, 594: 4, 1518: 1}")
		return nil
	}
	s, ok := g.text()
	if !ok {
		return nil
	}
	own := map[rune]uint16{}
	for k, v := range o.vals {
		if len(k) != 1 {
			continue
		}
		t, ok := v.text()
		if !ok {
			return nil
		}
		x, ok := v.size(t)
		if !ok {
			return nil
		}
		own[rune(k[0])] = x
	}
	if len(s) == 0 || len(s) > drawn {
		g.fail("a genome has 1 to %d letters", drawn)
		return nil
	}
	return g.genome(s, own)
}

func (n node) randomSizes(s string, seed uint64) []uint16 {
	a, z, ok := strings.Cut(s, "-")
	if !ok {
		n.fail("%q is not a range such as 64-1518", s)
		return nil
	}
	lo, ok1 := n.size(strings.TrimSpace(a))
	hi, ok2 := n.size(strings.TrimSpace(z))
	if !ok1 || !ok2 {
		return nil
	}
	return n.between(lo, hi, true, seed)
}

// spread orders sizes so that each comes as evenly as its weight allows.
func spread(l []weighted) (out []uint16) {
	div, total := l[0].weight, uint64(0)
	for _, w := range l {
		div = gcd(div, w.weight)
	}
	for _, w := range l {
		total += w.weight / div
	}
	credit := make([]int64, len(l))
	for range total {
		best := 0
		for i, w := range l {
			if credit[i] += int64(w.weight / div); credit[i] > credit[best] {
				best = i
			}
		}
		credit[best] -= int64(total)
		out = append(out, uint16(l[best].size))
	}
	return out
}

func gcd(a, b uint64) uint64 {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

// units of rates: what ip, tc, ethtool and iperf3 write. All bits are bits of frames with FCS.
var units = map[string]struct {
	by   float64
	unit Unit
}{
	"pps": {1, PPS}, "kpps": {1e3, PPS}, "mpps": {1e6, PPS}, "gpps": {1e9, PPS},
	"fps": {1, PPS}, "kfps": {1e3, PPS}, "mfps": {1e6, PPS},
	"bit": {1, BPS}, "kbit": {1e3, BPS}, "mbit": {1e6, BPS}, "gbit": {1e9, BPS}, "tbit": {1e12, BPS},
	"bps": {1, BPS}, "kbps": {1e3, BPS}, "mbps": {1e6, BPS}, "gbps": {1e9, BPS}, "tbps": {1e12, BPS},
	"bit/s": {1, BPS}, "kbit/s": {1e3, BPS}, "mbit/s": {1e6, BPS}, "gbit/s": {1e9, BPS},
	"k": {1e3, BPS}, "m": {1e6, BPS}, "g": {1e9, BPS},
	"%": {1, Percent},
}

// ParseRate reads 10kpps, 1.5Mpps, 10Mbit, 1Gbps, 10G, 25% or line.
func ParseRate(s string) (Rate, bool) {
	if s == "line" || s == "max" {
		return Rate{100, Percent}, true
	}
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.' || s[i] == '_') {
		i++
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s[:i], "_", ""), 64)
	u, ok := units[strings.ToLower(strings.TrimSpace(s[i:]))]
	if err != nil || !ok || !(f > 0) || f*u.by > 1e15 || u.unit == Percent && f > 100 {
		return Rate{}, false
	}
	return Rate{f * u.by, u.unit}, true
}

// rate reads a rate.
func (n node) rate() (Rate, bool) {
	s, ok := n.text()
	if !ok {
		return Rate{}, false
	}
	r, ok := ParseRate(s)
	if !ok {
		if _, err := strconv.ParseFloat(s, 64); err == nil && !strings.HasSuffix(s, "%") {
			n.fail("%s what? write %spps for frames or %sbit for bits a second", s, s, s)
		} else {
			n.fail("%q is not a rate such as 10kpps, 1.5Mpps, 10Mbit, 1Gbps, 25%% or line", s)
		}
	}
	return r, ok
}
