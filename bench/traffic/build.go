package traffic

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"strings"

	"millrace/packet"
)

// builder writes the headers of one stream, outermost first.
type builder struct {
	env    *Env
	side   Side
	mirror bool // sources and destinations change places
	seed   uint64

	buf    []byte
	names  []string // of the headers, for messages
	lens   []Length
	fields []Field
	named  map[string]int // fields by what profiles call them, such as udp.src
	waits  []wait
	layout Layout
	failed bool
}

// wait is a field that advances when another has gone round.
type wait struct {
	fields []int
	v      *value
}

// put writes a value of width bytes at off and notes how it changes.
func (b *builder) put(name string, v *value, off int, width uint8, mask uint64) {
	if v == nil {
		b.failed = true
		return
	}
	base, fs, ok := v.fields(uint16(off), width, mask, b.seed+uint64(off)*0x9e37)
	if !ok {
		b.failed = true
		return
	}
	var w wait
	for _, f := range fs {
		b.named[name] = len(b.fields)
		w.fields = append(w.fields, len(b.fields))
		b.fields = append(b.fields, f)
	}
	if v.after != "" && len(fs) > 0 {
		w.v = v
		b.waits = append(b.waits, w)
	}
	at := b.buf[off:][:width]
	x := base.lo
	switch {
	case width == 16:
		binary.BigEndian.PutUint64(at, base.hi)
		binary.BigEndian.PutUint64(at[8:], x)
		return
	case mask != 0:
		var old uint64
		for _, c := range at {
			old = old<<8 | uint64(c)
		}
		shift := 0
		for mask>>shift&1 == 0 {
			shift++
		}
		x = old&^mask | x<<shift&mask
	}
	for i := range at {
		at[len(at)-1-i] = byte(x >> (8 * i))
	}
}

// resolve makes fields advance when those that they wait for have gone round.
func (b *builder) resolve() {
	for range len(b.waits) + 1 {
		again := false
		for i := range b.waits {
			w := &b.waits[i]
			j, ok := b.named[w.v.after]
			if !ok {
				w.v.at.fail("every: %s is no field of this stream that changes", w.v.after)
				b.failed = true
				return
			}
			p := b.fields[j].period()
			if p == 0 {
				w.v.at.fail("every: %s never goes round; write a number of frames", w.v.after)
				b.failed = true
				return
			}
			for _, k := range w.fields {
				if b.fields[k].Every != p {
					b.fields[k].Every, again = p, true
				}
			}
		}
		if !again {
			return
		}
	}
	b.waits[0].v.at.fail("every: fields wait for each other in a circle")
	b.failed = true
}

func (b *builder) grow(name string, bytes ...byte) int {
	off := len(b.buf)
	b.buf = append(b.buf, bytes...)
	if name != "" {
		b.names = append(b.names, name)
	}
	return off
}

// get is a key's value, or what stands for it.
func (o object) get(key string, k *kind, def *value) *value {
	n, ok := o.vals[key]
	if !ok {
		return def
	}
	return n.value(k)
}

// pair is a source and a destination, in the order in which they stand in the header.
func (b *builder) pair(o object, k *kind, src, dst *value) (*value, *value) {
	s, d := o.get("src", k, src), o.get("dst", k, dst)
	if b.mirror {
		return d, s
	}
	return s, d
}

// ends are the generator's own end and the other, from the side that the profile speaks of.
func (b *builder) ends() (here, there *End) {
	side := b.side
	if b.mirror {
		side = side.Other()
	}
	return b.env.at(side), b.env.at(side.Other())
}

func (b *builder) ether(o object) {
	off := b.grow("Ethernet", make([]byte, 14)...)
	me := b.env.at(b.side)
	src, dst := fixed(wideMAC(me.MAC)), fixed(wideMAC(me.Peer))
	if b.mirror { // both are of the port where the frame enters
		src, dst = dst, src
	}
	src, dst = b.pair(o, mac, src, dst)
	b.mac("ether.dst", dst, off)
	b.mac("ether.src", src, off+6)
}

// mac writes an address of which the lower 4 bytes may change.
func (b *builder) mac(name string, v *value, off int) {
	if v == nil {
		b.failed = true
		return
	}
	binary.BigEndian.PutUint16(b.buf[off:], uint16(v.lo.lo>>32))
	same := v.lo.lo>>32 == v.hi.lo>>32
	for _, x := range v.list {
		binary.BigEndian.PutUint16(b.buf[off:], uint16(x.lo>>32))
		same = same && x.lo>>32 == v.list[0].lo>>32
	}
	if v.how == Random && !same && v.lo.lo == 0 { // any: a unicast address, locally administered
		binary.BigEndian.PutUint16(b.buf[off:], 0x0200)
		v = &value{at: v.at, how: Random, hi: wide{lo: 1<<32 - 1}, step: 1, every: v.every, after: v.after}
		same = true
	}
	if !same {
		v.at.fail("MAC addresses of one stream have equal first two bytes")
		b.failed = true
		return
	}
	low := *v
	low.lo.lo, low.hi.lo = uint64(uint32(v.lo.lo)), uint64(uint32(v.hi.lo))
	low.list = nil
	for _, x := range v.list {
		low.list = append(low.list, wide{lo: uint64(uint32(x.lo))})
	}
	b.put(name, &low, off+2, 4, 0)
}

// etherType writes the type of what follows behind the last header of layer 2.
func (b *builder) etherType(v *value) { b.put("ether.type", v, len(b.buf)-2, 2, 0) }

func (b *builder) vlans(n node) {
	tags := n.items()
	if len(tags) == 0 {
		n.fail("no VLAN: write an id, or a list of them from the outside in")
	}
	for i, t := range tags {
		tpid := uint64(0x8100)
		if i+1 < len(tags) {
			tpid = 0x88a8
		}
		name := "vlan"
		if len(tags) > 1 {
			name = fmt.Sprintf("vlan%d", i)
		}
		id, prio, dei := (*value)(nil), plain(0), plain(0)
		typ := plain(tpid)
		if t.isMap() && !ranged(t) {
			o := t.keys("id", "prio", "dei", "type")
			if !o.has("id") {
				t.fail("id is missing: the VLAN id of 0 to 4095")
				b.failed = true
				return
			}
			id, prio, dei, typ = o.get("id", vlanKind, nil), o.get("prio", prioKind, prio), o.get("dei", num("0 or 1", 1, nil), dei), o.get("type", etherKind, typ)
		} else {
			id = t.value(vlanKind)
		}
		b.etherType(typ)
		off := b.grow("VLAN", 0, 0, 0, 0)
		b.put(name+".prio", prio, off, 2, 0xe000)
		b.put(name+".dei", dei, off, 2, 0x1000)
		b.put(name+".id", id, off, 2, 0x0fff)
	}
}

// ranged: the mapping is one of values, not of a header's keys.
func ranged(n node) bool {
	for _, kv := range mappingKeys(n) {
		switch kv {
		case "range", "prefix", "random", "list", "zipf":
			return true
		}
	}
	return false
}

func (b *builder) mpls(n node) {
	b.etherType(plain(0x8847))
	labels := n.items()
	if len(labels) == 0 {
		n.fail("no label: write one, or a list from the outside in")
	}
	for i, t := range labels {
		name := "mpls"
		if len(labels) > 1 {
			name = fmt.Sprintf("mpls%d", i)
		}
		label, tc, ttl := (*value)(nil), plain(0), plain(64)
		if t.isMap() && !ranged(t) {
			o := t.keys("label", "tc", "ttl")
			if !o.has("label") {
				t.fail("label is missing")
				b.failed = true
				return
			}
			label, tc, ttl = o.get("label", labelKind, nil), o.get("tc", prioKind, tc), o.get("ttl", byteKind, ttl)
		} else {
			label = t.value(labelKind)
		}
		off := b.grow("MPLS", 0, 0, 0, 0)
		if i+1 == len(labels) {
			b.buf[off+2] = 1 // bottom of stack
		}
		b.put(name+".label", label, off, 4, 0xfffff000)
		b.put(name+".tc", tc, off, 4, 0xe00)
		b.put(name+".ttl", ttl, off, 4, 0xff)
	}
}

var keys4 = []string{"src", "dst", "ttl", "dscp", "ecn", "tos", "id", "flags", "fragment-offset", "proto", "options"}

// ipv4 writes a header and says whether layer 4 follows: not in a later fragment.
func (b *builder) ipv4(o object, proto uint8) (l4, whole bool) {
	opts := b.options4(o)
	off := b.grow("IPv4", make([]byte, 20)...)
	b.grow("", opts...)
	b.layout.L3, b.layout.Proto = uint16(off), proto
	h := b.buf[off:]
	h[0] = 0x40 | byte(20+len(opts))/4
	b.lens = append(b.lens, Length{uint16(off + 2), uint16(off)})
	b.tos("ipv4", o, off+1, 1, 0)
	b.put("ipv4.id", o.get("id", wordKind, plain(0)), off+4, 2, 0)
	frag := o.offset()
	for _, f := range o.list("flags", "df", "mf") {
		frag |= map[string]uint16{"df": packet.IPv4DF, "mf": packet.IPv4MF}[f]
	}
	binary.BigEndian.PutUint16(h[6:], frag)
	b.put("ipv4.ttl", o.get("ttl", byteKind, plain(64)), off+8, 1, 0)
	b.put("ipv4.proto", o.get("proto", protoKind, plain(uint64(proto))), off+9, 1, 0)
	here, there := b.ends()
	src, dst := b.pair(o, addr4, fixed(wide4(here.V4)), fixed(wide4(there.V4)))
	b.put("ipv4.src", src, off+12, 4, 0)
	b.put("ipv4.dst", dst, off+16, 4, 0)
	return frag&packet.IPv4OffMask == 0, frag&(packet.IPv4OffMask|packet.IPv4MF) == 0
}

// offset reads the fragment offset, in bytes, and returns it in units of 8.
func (o object) offset() uint16 {
	x := o.count("fragment-offset", 0, 0, 65528)
	if x%8 != 0 {
		o.vals["fragment-offset"].fail("%d is no multiple of 8; offsets of fragments are", x)
	}
	return uint16(x / 8)
}

// tos writes DSCP and ECN, or the whole byte; shift is where its lowest bit is in width bytes at off.
func (b *builder) tos(name string, o object, off int, width uint8, shift int) {
	whole := "tos"
	if name == "ipv6" {
		whole = "traffic-class"
	}
	if n, ok := o.vals[whole]; ok && (o.has("dscp") || o.has("ecn")) {
		n.fail("%s beside dscp or ecn, which are parts of it", whole)
		b.failed = true
		return
	}
	if o.has(whole) {
		b.put(name+"."+whole, o.get(whole, byteKind, nil), off, width, 0xff<<shift)
		return
	}
	b.put(name+".dscp", o.get("dscp", dscpKind, plain(0)), off, width, 0xfc<<shift)
	b.put(name+".ecn", o.get("ecn", ecnKind, plain(0)), off, width, 3<<shift)
}

// list reads words of which some are known: a list, or one value with commas.
func (o object) list(key string, known ...string) (l []string) {
	n, ok := o.vals[key]
	if !ok {
		return nil
	}
	for _, it := range n.items() {
		s, ok := it.text()
		if !ok {
			return nil
		}
	next:
		for w := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ',' || r == ' ' || r == '|' }) {
			for _, k := range known {
				if strings.ToLower(w) == k {
					l = append(l, k)
					continue next
				}
			}
			it.fail("%q is none of %s", w, strings.Join(known, ", "))
		}
	}
	return l
}

func (b *builder) options4(o object) []byte {
	opts := b.opts(o, 40, func(name, arg string) ([]byte, string) {
		switch {
		case name == "router-alert" && arg == "":
			return []byte{148, 4, 0, 0}, ""
		case name == "nop" && arg == "":
			return []byte{1}, ""
		case name == "record-route":
			n, ok := parseCount(arg)
			if arg == "" {
				n, ok = 9, true
			}
			if !ok || n < 1 || n > 9 {
				return nil, "record-route has room for 1 to 9 addresses"
			}
			return append([]byte{7, byte(3 + 4*n), 4}, make([]byte, 4*n)...), ""
		}
		return nil, "router-alert, record-route N, nop or hex digits are wanted"
	})
	for len(opts)%4 != 0 {
		opts = append(opts, 0)
	}
	return opts
}

// opts reads a list of options, each a name with a number or hex digits.
func (b *builder) opts(o object, most int, make func(name, arg string) ([]byte, string)) (all []byte) {
	n, ok := o.vals["options"]
	if !ok {
		return nil
	}
	for _, it := range n.items() {
		s, ok := it.text()
		if !ok {
			b.failed = true
			return nil
		}
		name, arg, _ := strings.Cut(s, " ")
		x, msg := make(name, strings.TrimSpace(arg))
		if msg != "" {
			if h, err := hex.DecodeString(strings.ReplaceAll(strings.TrimPrefix(s, "0x"), " ", "")); err == nil && len(h) > 0 {
				x = h
			} else {
				it.fail("%q: %s", s, msg)
				b.failed = true
				return nil
			}
		}
		all = append(all, x...)
	}
	if !wellFormed(all) {
		n.fail("option lengths that do not fit: an option is 01, or its kind, its length with both, and its data")
		b.failed = true
		return nil
	}
	if len(all) > most {
		n.fail("%d bytes of options; there is room for %d", len(all), most)
		b.failed = true
		return nil
	}
	return all
}

// wellFormed: the options of IPv4 or TCP end where they say.
func wellFormed(p []byte) bool {
	for len(p) > 0 {
		switch {
		case p[0] == 0:
			return true
		case p[0] == 1:
			p = p[1:]
		case len(p) < 2 || p[1] < 2 || int(p[1]) > len(p):
			return false
		default:
			p = p[p[1]:]
		}
	}
	return true
}

// wellFormed6 is wellFormed for options of IPv6.
func wellFormed6(p []byte) bool {
	for len(p) > 0 {
		switch {
		case p[0] == 0:
			p = p[1:]
		case len(p) < 2 || int(p[1])+2 > len(p):
			return false
		default:
			p = p[2+int(p[1]):]
		}
	}
	return true
}

var keys6 = []string{"src", "dst", "hop-limit", "ttl", "dscp", "ecn", "traffic-class", "flow-label", "next-header", "hop-by-hop", "fragment"}

// ipv6 writes the header and its extension headers.
func (b *builder) ipv6(o object, proto uint8) (l4, whole bool) {
	off := b.grow("IPv6", make([]byte, 40)...)
	b.layout.L3, b.layout.V6, b.layout.Proto = uint16(off), true, proto
	b.buf[off] = 0x60
	b.lens = append(b.lens, Length{uint16(off + 4), uint16(off + 40)})
	b.tos("ipv6", o, off, 4, 20)
	b.put("ipv6.flow-label", o.get("flow-label", flowKind, plain(0)), off, 4, 0xfffff)
	limit := "hop-limit"
	if o.has("ttl") {
		limit = "ttl"
		if n, ok := o.vals["hop-limit"]; ok {
			n.fail("hop-limit beside ttl: they are the same")
			b.failed = true
		}
	}
	b.put("ipv6.hop-limit", o.get(limit, byteKind, plain(64)), off+7, 1, 0)
	here, there := b.ends()
	src, dst := b.pair(o, addr6, fixed(wide6(here.V6)), fixed(wide6(there.V6)))
	b.put("ipv6.src", src, off+8, 16, 0)
	b.put("ipv6.dst", dst, off+24, 16, 0)

	next := off + 6 // where the type of what follows is written
	if n, ok := o.vals["hop-by-hop"]; ok {
		s, _ := n.text()
		x := []byte{5, 2, 0, 0} // router alert, RFC 2711
		if s != "router-alert" {
			var err error
			if x, err = hex.DecodeString(strings.ReplaceAll(s, " ", "")); err != nil || len(x) == 0 || len(x) > 2040 || !wellFormed6(x) {
				n.fail("%q is neither router-alert nor options in hex digits", s)
				b.failed = true
				return true, true
			}
		}
		b.buf[next] = packet.ProtoHopByHop
		next = b.grow("hop-by-hop", 0, 0)
		b.grow("", x...)
		switch pad := -(len(b.buf) - next) & 7; pad { // Pad1, PadN
		case 0:
		case 1:
			b.grow("", 0)
		default:
			b.grow("", append([]byte{1, byte(pad - 2)}, make([]byte, pad-2)...)...)
		}
		b.buf[next+1] = byte((len(b.buf)-next)/8 - 1)
	}
	l4, whole = true, true
	if n, ok := o.vals["fragment"]; ok {
		f := n.keys("offset", "more", "id")
		x := f.count("offset", 0, 0, 65528)
		if x%8 != 0 {
			f.vals["offset"].fail("%d is no multiple of 8; offsets of fragments are", x)
			b.failed = true
		}
		b.buf[next] = packet.ProtoFragment
		next = b.grow("fragment", make([]byte, 8)...)
		bits := uint16(x)
		if f.on("more", false) {
			bits |= 1
		}
		binary.BigEndian.PutUint16(b.buf[next+2:], bits)
		b.put("ipv6.fragment.id", f.get("id", longKind, plain(0)), next+4, 4, 0)
		l4, whole = x == 0, bits == 0
	}
	b.put("ipv6.next-header", o.get("next-header", protoKind, plain(uint64(proto))), next, 1, 0)
	return l4, whole
}

// l4 starts a header of layer 4.
func (b *builder) l4(name string, n, sum int, whole bool) int {
	off := b.grow(name, make([]byte, n)...)
	b.layout.L4 = uint16(off)
	if whole {
		b.layout.SumOff = uint16(off + sum)
	}
	return off
}

func (b *builder) ports(name string, o object, src *value, dst uint64, off int) {
	s, d := b.pair(o, portKind, src, plain(dst))
	b.put(name+".src", s, off, 2, 0)
	b.put(name+".dst", d, off+2, 2, 0)
}

func (b *builder) udp(o object, whole bool) {
	off := b.l4("UDP", 8, 6, whole)
	b.ports("udp", o, plain(49152), 9, off) // discard, as RFC 2544 has it in appendix C
	if o.has("length") {
		b.put("udp.length", o.get("length", wordKind, nil), off+4, 2, 0)
		b.layout.SumOff = 0 // it covers what is not in this frame
	} else {
		b.lens = append(b.lens, Length{uint16(off + 4), uint16(off)})
	}
	if !o.on("checksum", true) {
		b.layout.SumOff = 0
	}
}

func (b *builder) tcp(o object, whole bool) {
	opts := b.opts(o, 40, func(name, arg string) ([]byte, string) {
		x, ok := parseCount(arg)
		switch {
		case name == "mss" && ok && x <= 65535:
			return []byte{2, 4, byte(x >> 8), byte(x)}, ""
		case name == "wscale" && ok && x <= 14:
			return []byte{1, 3, 3, byte(x)}, ""
		case name == "sackok" && arg == "":
			return []byte{1, 1, 4, 2}, ""
		case name == "nop" && arg == "":
			return []byte{1}, ""
		}
		return nil, "mss N, wscale N, sackok, nop or hex digits are wanted"
	})
	for len(opts)%4 != 0 {
		opts = append(opts, 0)
	}
	off := b.l4("TCP", 20, 16, whole)
	b.grow("", opts...)
	b.ports("tcp", o, plain(49152), 80, off)
	b.put("tcp.seq", o.get("seq", longKind, plain(0)), off+4, 4, 0)
	b.put("tcp.ack", o.get("ack", longKind, plain(0)), off+8, 4, 0)
	b.buf[off+12] = byte(20+len(opts)) / 4 << 4
	b.buf[off+13] = byte(o.flags(ack))
	b.put("tcp.window", o.get("window", wordKind, plain(65535)), off+14, 2, 0)
	b.put("tcp.urgent", o.get("urgent", wordKind, plain(0)), off+18, 2, 0)
}

// flags reads flags of TCP by name (syn,ack) or by letters (SA).
func (o object) flags(def uint16) (bits uint16) {
	n, ok := o.vals["flags"]
	if !ok {
		return def
	}
	var names []string
	for _, f := range tcpFlags {
		names = append(names, f.name)
	}
	if s, ok := "", true; !n.isList() && n.n != nil {
		if s, ok = n.text(); !ok {
			return def
		}
		letters := s != ""
		for _, c := range []byte(s) {
			known := false
			for _, f := range tcpFlags {
				if f.letter == c {
					bits |= f.bit
					known = true
				}
			}
			letters = letters && known
		}
		if letters {
			return bits
		}
		if s == "none" {
			return 0
		}
		bits = 0
	}
	for _, w := range o.list("flags", names...) {
		for _, f := range tcpFlags {
			if f.name == w {
				bits |= f.bit
			}
		}
	}
	return bits
}

func (b *builder) icmp(o object, whole bool) {
	types, echo := icmpKind, uint64(8)
	if b.layout.V6 {
		types, echo = icmp6Kind, 128
	}
	off := b.l4("ICMP", 8, 2, whole)
	b.put("icmp.type", o.get("type", types, plain(echo)), off, 1, 0)
	b.put("icmp.code", o.get("code", byteKind, plain(0)), off+1, 1, 0)
	b.put("icmp.id", o.get("id", wordKind, plain(1)), off+4, 2, 0)
	b.put("icmp.seq", o.get("seq", wordKind, &value{hi: wide{lo: 65535}, step: 1}), off+6, 2, 0)
}

// payload reads what stands right behind the headers, and how the rest is filled.
func (b *builder) payload(n node) (text []byte, fill func([]byte)) {
	zero := func([]byte) {}
	if n.pos == nil {
		return nil, zero
	}
	if !n.isMap() {
		s, ok := n.text()
		if !ok {
			b.failed = true
		}
		if s == "random" {
			return nil, b.noise
		}
		return []byte(s), zero
	}
	o := n.keys("text", "hex", "fill")
	if t, ok := o.vals["text"]; ok {
		s, _ := t.text()
		text = []byte(s)
	}
	if t, ok := o.vals["hex"]; ok {
		s, _ := t.text()
		x, err := hex.DecodeString(strings.NewReplacer(" ", "", "\n", "", ":", "").Replace(strings.TrimPrefix(s, "0x")))
		if err != nil {
			t.fail("%q: hex digits are wanted, two a byte", s)
			b.failed = true
		}
		text = append(text, x...)
	}
	if f, ok := o.vals["fill"]; ok {
		s, _ := f.text()
		if s == "random" {
			return text, b.noise
		}
		x, ok := parseCount(s)
		if !ok || x > 255 {
			f.fail("%q is neither random nor a byte such as 0x55", s)
			b.failed = true
		}
		return text, func(b []byte) {
			for i := range b {
				b[i] = byte(x)
			}
		}
	}
	return text, zero
}

func (b *builder) noise(p []byte) {
	r := rand.New(rand.NewPCG(b.seed, 0x66696c6c))
	for i := range p {
		p[i] = byte(r.Uint32())
	}
}
