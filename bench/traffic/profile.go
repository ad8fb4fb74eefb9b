package traffic

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"millrace/internal/yamltree"
	"millrace/packet"
)

// Load reads a profile from a file and compiles it for env; see Parse.
func Load(path string, env Env) (*Profile, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("traffic: %w", err)
	}
	if env.Dir == "" {
		env.Dir = filepath.Dir(path)
	}
	return Parse(path, b, env)
}

// Parse compiles a profile for env; name stands in messages. The error is of type yamltree.Errors: all mistakes,
// each with its line.
func Parse(name string, text []byte, env Env) (*Profile, error) { return parse(name, text, env, 0) }

// At is the profile with all streams at one frame size, in bytes with FCS; 0 is the profile itself. An error says
// which stream has no room in it.
func (p *Profile) At(size int) (*Profile, error) {
	if size == 0 {
		return p, nil
	}
	if size < minFrame || size > maxFrame {
		return nil, fmt.Errorf("traffic: frames of %d bytes: between %d and %d are possible", size, minFrame, maxFrame)
	}
	if len(p.Replays) != 0 {
		return nil, errors.New("traffic: a replay has frame sizes of its own; leave the size out")
	}
	if p.scripts {
		return nil, errors.New("traffic: conversations have frame sizes of their own; leave the size out")
	}
	return parse(p.Name, p.text, p.env, size)
}

var (
	profileKeys = []string{"name", "rate", "size", "direction", "seed", "streams", "conversations", "replays"}
	streamKeys  = []string{"name", "direction", "rate", "weight", "burst", "frames", "start", "size", "stamp", "flows",
		"ether", "vlan", "mpls", "ipv4", "ipv6", "udp", "tcp", "icmp", "payload"}
)

// maxStreams bounds what a profile makes a generator do for each packet, maxBytes the frames that are kept for it.
const (
	maxStreams = 4096
	maxBytes   = 64 << 20
)

// compiler is a profile on its way.
type compiler struct {
	f       *yamltree.File
	env     Env
	force   int // size of all frames, 0 for the profile's
	seed    uint64
	profile Profile

	rate   Rate // of streams without a rate of their own, together and in each direction
	size   node // of streams without a size of their own
	dir    string
	shares []share
	bytes  int
}

// share is a stream that has a share of the profile's rate.
type share struct {
	stream int
	weight float64
}

func parse(name string, text []byte, env Env, force int) (*Profile, error) {
	env.fill()
	f := &yamltree.File{Name: name}
	c := &compiler{f: f, env: env, force: force, seed: 1, rate: Rate{100, Percent}, dir: "left"}
	c.profile = Profile{Name: name, text: text, env: env}
	root := f.Parse(text, "a profile is")
	if len(f.Errs) == 0 {
		n := node{f: f, n: root, pos: root}
		if root != nil {
			n, _ = node{f: f}.sub(root, root, "")
		}
		c.all(n.keys(profileKeys...))
	}
	if len(f.Errs) != 0 {
		f.Errs.Sort()
		return nil, f.Errs
	}
	return &c.profile, nil
}

func (c *compiler) all(o object) {
	if n, ok := o.vals["name"]; ok {
		if s, ok := n.text(); ok {
			c.profile.Name = s
		}
	}
	c.seed = o.count("seed", 1, 0, 1<<53)
	if n, ok := o.vals["rate"]; ok {
		c.rate, _ = n.rate()
	}
	c.size = o.vals["size"]
	c.dir = o.word("direction", "left", "left", "right", "both")

	list := func(key string, each func(node, int)) {
		n, ok := o.vals[key]
		if !ok {
			return
		}
		if n.n != nil && !n.isList() {
			n.fail("a list is wanted here, not %s: write each entry behind `- `", yamltree.KindOf(n.n))
			return
		}
		for i, it := range n.items() {
			if len(c.profile.Streams) > maxStreams {
				it.fail("more than %d streams", maxStreams)
				return
			}
			each(it, i)
		}
	}
	list("streams", c.stream)
	list("conversations", c.conversation)
	list("replays", c.replay)
	if !o.has("streams") && !o.has("conversations") && !o.has("replays") {
		c.stream(node{f: c.f, pos: o.pos, key: "streams[0]"}, 0)
	} else if len(c.profile.Streams)+len(c.profile.Replays) == 0 && len(c.f.Errs) == 0 {
		o.fail("nothing is sent: name a stream, a conversation or a replay")
	}
	if len(c.f.Errs) == 0 {
		c.divide()
	}
}

// divide gives streams without a rate of their own their share of the profile's, for each side by weight: weights are
// of frames, whatever unit the rate is in.
func (c *compiler) divide() {
	cost := func(s *Stream) float64 {
		switch c.rate.Unit {
		case BPS:
			return s.MeanSize()
		case Percent:
			return s.MeanSize() + wire
		}
		return 1
	}
	var total [2]float64
	for _, x := range c.shares {
		s := &c.profile.Streams[x.stream]
		total[s.Side] += x.weight * cost(s)
	}
	for _, x := range c.shares {
		s := &c.profile.Streams[x.stream]
		s.Rate = Rate{c.rate.Value * x.weight * cost(s) / total[s.Side], c.rate.Unit}
	}
}

func (c *compiler) stream(n node, i int) {
	o := n.keys(streamKeys...)
	sides, mirror := []Side{Left}, false
	switch o.word("direction", c.dir, "left", "right", "both") {
	case "right":
		sides[0] = Right
	case "both":
		sides, mirror = []Side{Left, Right}, true
	}
	s := Stream{Name: fmt.Sprintf("stream%d", i), Burst: 1, Frames: o.count("frames", 0, 1, 1<<53), Start: o.duration("start", 0)}
	if n, ok := o.vals["name"]; ok {
		s.Name, _ = n.text()
	}
	weight := o.count("weight", 1, 1, 1e6)
	own := o.has("rate")
	if own {
		s.Rate, _ = o.vals["rate"].rate()
		if w, ok := o.vals["weight"]; ok {
			w.fail("a weight beside a rate: streams with a weight share the profile's rate")
		}
	}
	var gap time.Duration
	if b, ok := o.vals["burst"]; ok {
		if b.isMap() {
			m := b.keys("packets", "gap")
			s.Burst = int(m.count("packets", 1, 1, 1<<20))
			gap = m.duration("gap", 0)
			if g, ok := m.vals["gap"]; ok && own {
				g.fail("a gap beside a rate: either says how often bursts come")
			}
		} else if x, ok := b.text(); ok {
			y, ok := parseCount(x)
			if !ok || y < 1 || y > 1<<20 {
				b.fail("%q is not a number of frames such as 32, or {packets: 32, gap: 1ms}", x)
			}
			s.Burst = int(y)
		}
	}
	before := len(c.f.Errs)
	for j, side := range sides {
		x := s
		x.Side = side
		if mirror {
			x.Name += "/" + side.String()
		}
		x.Seed = c.seed*0x9e3779b97f4a7c15 + uint64(len(c.profile.Streams)+1)*0xbf58476d1ce4e5b9
		if c.frames(&x, o, j == 1); len(c.f.Errs) != before {
			return // a mistake in one direction is one in the other
		}
		if gap > 0 {
			t := gap.Seconds()
			if c.env.Line > 0 {
				t += float64(s.Burst) * 8 * (x.MeanSize() + wire) / c.env.Line
			}
			x.Rate = Rate{float64(s.Burst) / t, PPS}
		} else if !own {
			c.shares = append(c.shares, share{len(c.profile.Streams), float64(weight)})
		}
		c.profile.Streams = append(c.profile.Streams, x)
	}
}

// frames compiles the headers, payload and sizes of a stream.
func (c *compiler) frames(s *Stream, o object, mirror bool) {
	b := &builder{env: &c.env, side: s.Side, mirror: mirror, seed: s.Seed, named: map[string]int{}}
	text, fill, ok := b.stack(o)
	if !ok {
		return
	}
	if n, ok := o.vals["flows"]; ok {
		b.flows(n, o)
	}
	if b.resolve(); b.failed {
		return
	}
	head := len(b.buf)
	stamp := o.on("stamp", true)
	if stamp && len(text)%2 != 0 {
		text = append(text, 0) // a stamp begins at an even distance from the header, for its sum
	}
	least := head + len(text)
	if stamp {
		s.Stamp = uint16(least)
		least += StampLen
	}
	least += 4
	n, given := o.vals["size"]
	if !given && c.size.n != nil {
		n, given = c.size, true
	}
	switch {
	case c.force != 0:
		s.Sizes, n = []uint16{uint16(c.force)}, node{f: o.f, pos: o.pos, key: o.key}
	case given:
		s.Sizes = n.sizes(s.Seed)
	default:
		s.Sizes, n = []uint16{uint16(max(minFrame, least))}, o.node
	}
	if len(s.Sizes) == 0 {
		return
	}
	if x := int(slices.Min(s.Sizes)); x < least {
		n.fail("%s", tooSmall(x, head, len(text), s.Stamp != 0, b.names))
		return
	}
	if least > maxFrame {
		o.fail("a frame of %d bytes; %d at most", least, maxFrame)
		return
	}
	b.buf = append(b.buf, text...)
	all := make([]byte, int(slices.Max(s.Sizes))-4)
	if c.bytes += len(all) + 2*len(s.Sizes); c.bytes > maxBytes {
		o.fail("the frames of all streams take more than %d MB", maxBytes>>20)
		return
	}
	fill(all[copy(all, b.buf):])
	s.finish(b, all)
}

// finish takes over what was built.
func (s *Stream) finish(b *builder, all []byte) {
	stamp := s.Stamp
	s.Template, s.Layout, s.Lens, s.Fields = all, b.layout, b.lens, b.fields
	s.Stamp = stamp
	if s.L4 == 0 {
		s.SumOff = 0
	}
	for _, l := range s.Lens {
		n := len(all) - int(l.Less)
		all[l.Off], all[l.Off+1] = byte(n>>8), byte(n)
	}
	s.Seal(all)
}

// tooSmall words that a size has no room for a frame, and what has.
func tooSmall(size, head, text int, stamp bool, names []string) string {
	what := fmt.Sprintf("%d bytes are too small: %s take %d", size, join(names), head)
	if text > 0 {
		what += fmt.Sprintf(", the payload %d", text)
	}
	bare := max(minFrame, head+text+4)
	if !stamp {
		return fmt.Sprintf("%s, the FCS 4; write %d at least", what, bare)
	}
	what += fmt.Sprintf(", the stamp %d, the FCS 4; write %d at least", StampLen, head+text+StampLen+4)
	if size >= bare {
		what += ", or `stamp: off` to send without sequence numbers and latency"
	}
	return what
}

func join(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}

// stack writes the headers, and reads the payload.
func (b *builder) stack(o object) (text []byte, fill func([]byte), ok bool) {
	before := len(o.f.Errs)
	one := func(keys ...string) string {
		found := ""
		for _, k := range keys {
			if o.has(k) {
				if found != "" {
					o.vals[k].fail("%s beside %s: a frame has one of %s", k, found, strings.Join(keys, ", "))
				}
				found = k
			}
		}
		return found
	}
	l3, l4 := one("ipv4", "ipv6"), one("udp", "tcp", "icmp")
	e := node{f: o.f, pos: o.pos, key: yamltree.Join(o.key, "ether")}
	if o.has("ether") {
		e = o.vals["ether"]
	}
	ether := e.keys("src", "dst", "type")
	if t, ok := ether.vals["type"]; ok && l3+l4 != "" {
		t.fail("the type follows from %s; leave it out", l3+l4)
	}
	if l3 == "" && !ether.has("type") {
		l3 = "ipv4"
	}
	b.ether(ether)
	if n, ok := o.vals["vlan"]; ok {
		b.vlans(n)
	}
	if n, ok := o.vals["mpls"]; ok {
		b.mpls(n)
	} else if l3 == "" {
		b.etherType(ether.get("type", etherKind, nil))
	} else {
		b.etherType(plain(map[string]uint64{"ipv4": 0x800, "ipv6": 0x86dd}[l3]))
	}
	ip := node{f: o.f, pos: o.pos, key: yamltree.Join(o.key, l3)}
	if o.has(l3) {
		ip = o.vals[l3]
	}
	first, whole := true, true
	v6 := l3 == "ipv6"
	switch l3 {
	case "ipv4", "ipv6":
		var h object
		own := "proto"
		if v6 {
			h, own = ip.keys(keys6...), "next-header"
		} else {
			h = ip.keys(keys4...)
		}
		if n, ok := h.vals[own]; ok && l4 != "" {
			n.fail("it follows from %s; leave it out", l4)
		}
		if l4 == "" && !h.has(own) {
			l4 = "udp"
		}
		proto := map[string]uint8{"udp": packet.ProtoUDP, "tcp": packet.ProtoTCP, "icmp": packet.ProtoICMP, "": packet.ProtoNoNext}[l4]
		if v6 {
			if l4 == "icmp" {
				proto = packet.ProtoICMPv6
			}
			first, whole = b.ipv6(h, proto)
		} else {
			first, whole = b.ipv4(h, proto)
		}
	}
	if !first {
		if o.has(l4) {
			o.vals[l4].fail("a fragment behind the first has no %s header; leave it out, its protocol goes by `proto`", l4)
		}
		l4 = ""
	}
	if l4 != "" {
		n := node{f: o.f, pos: o.pos, key: yamltree.Join(o.key, l4)}
		if o.has(l4) {
			n = o.vals[l4]
		}
		switch l4 {
		case "udp":
			b.udp(n.keys("src", "dst", "length", "checksum"), whole)
		case "tcp":
			b.tcp(n.keys("src", "dst", "seq", "ack", "flags", "window", "urgent", "options"), whole)
		case "icmp":
			b.icmp(n.keys("type", "code", "id", "seq"), whole)
		}
	}
	text, fill = b.payload(o.vals["payload"])
	return text, fill, len(o.f.Errs) == before && !b.failed
}
