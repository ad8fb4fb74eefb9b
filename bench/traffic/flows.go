package traffic

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// dial is a field that tells flows apart, with how many values it has room for.
type dial struct {
	name  string
	off   uint16
	width uint8
	min   uint64
	room  uint64
	n     uint64 // values that it takes
}

// dials are the fields that the profile leaves alone: ports or ids; where there are none, the source address.
func (b *builder) dials(o object) (l []dial) {
	free := func(name string) bool {
		head, key, _ := strings.Cut(name, ".")
		return !slices.Contains(mappingKeys(o.vals[head]), key)
	}
	add := func(name string, off, width int, min, room uint64) {
		if free(name) {
			l = append(l, dial{name: name, off: uint16(off), width: uint8(width), min: min, room: room})
		}
	}
	l3, l4 := int(b.layout.L3), int(b.layout.L4)
	src := 0
	if b.mirror {
		src = 1 // what the profile calls the source stands where destinations are
	}
	switch last := b.names[len(b.names)-1]; last {
	case "UDP", "TCP":
		name := strings.ToLower(last)
		add(name+".src", l4+2*src, 2, 1024, 64512)
		add(name+".dst", l4+2-2*src, 2, 1024, 64512)
	case "ICMP":
		add("icmp.id", l4+4, 2, 0, 65536)
	}
	if l3 != 0 && len(l) == 0 {
		name, off := "ipv4.src", l3+12+4*src
		if b.layout.V6 {
			name, off = "ipv6.src", l3+20+16*src
		}
		add(name, off, 4, uint64(be32(b.buf[off:])), 1<<24)
	}
	return l
}

// share gives the dials numbers of values whose product is count.
func shareOut(l []dial, count uint64) bool {
	for i := range l {
		d := &l[i]
		for d.n = min(d.room, count); count%d.n != 0; d.n-- {
		}
		count /= d.n
	}
	return count == 1
}

// flows makes a stream of many flows.
func (b *builder) flows(n node, o object) {
	count, how, exponent := uint64(0), Count, 0.0
	fail := func(n node, format string, args ...any) {
		n.fail(format, args...)
		b.failed = true
	}
	if n.isMap() {
		m := n.keys("count", "random", "zipf")
		if !m.has("count") {
			fail(n, "count is missing: how many flows?")
			return
		}
		if count = m.count("count", 0, 1, 1<<32); count == 0 {
			b.failed = true
			return
		}
		if m.on("random", false) {
			how = Random
		}
		if z, ok := m.vals["zipf"]; ok {
			s, _ := z.text()
			x, err := strconv.ParseFloat(s, 64)
			switch {
			case err != nil || !(x > 0) || x > 10:
				fail(z, "%q: the exponent of zipf is a number such as 1.1, up to 10", s)
			case how == Random:
				fail(z, "zipf beside random: one of them chooses the flow")
			case count > most:
				fail(z, "zipf chooses of %d flows at most", most)
			}
			how, exponent = List, x
		}
	} else if s, ok := n.text(); ok {
		if count, ok = parseCount(s); !ok || count < 1 || count > 1<<32 {
			fail(n, "%q is not a number of flows such as 1000 or 100k", s)
		}
	} else {
		b.failed = true
	}
	if b.failed {
		return
	}
	l := b.dials(o)
	if len(l) == 0 {
		fail(n, "flows differ by ports, ids or source addresses, and the stream gives all of them; leave one out")
		return
	}
	if !shareOut(l, count) {
		room, names := uint64(1), []string{}
		for _, d := range l {
			room *= d.room
			names = append(names, d.name)
		}
		what := fmt.Sprintf("%d flows cannot be made of %s", count, join(names))
		if count > room {
			fail(n, "%s; %d at most", what, room)
		} else {
			parts := (count + l[0].room - 1) / l[0].room
			fail(n, "%s; %d can", what, count/parts*parts)
		}
		return
	}
	var drawn []uint64
	if how == List {
		drawn = zipf(int(count), exponent, b.seed)
	}
	stride := uint64(1)
	for _, d := range l {
		if d.n > 1 {
			f := Field{Off: d.off, Width: d.width, Kind: how, Min: d.min, N: d.n}
			switch how {
			case Count:
				f.Step, f.Every = 1, stride
			case List:
				f.Min, f.N = 0, 0
				for _, x := range drawn {
					f.List = append(f.List, d.min+x/stride%d.n)
				}
			}
			b.named[d.name] = len(b.fields)
			b.fields = append(b.fields, f)
		}
		stride *= d.n
	}
}
