package traffic

import (
	"fmt"
	"math"
	"slices"
	"time"

	"millrace/internal/yamltree"
	"millrace/packet"
)

// A conversation is compiled into one stream for each of its packets: packet k of each stream belongs to connection
// k. All have the rate of connections, and start as much later as the packet comes within its connection. No
// side waits for the other: both speak by the clock, so that what is lost does not slow down the rest.

var conversationKeys = []string{"name", "direction", "protocol", "rate", "connections", "start", "client", "server", "seen-as",
	"request", "response", "rounds", "delay", "gap", "think", "mss", "close"}

// maxSteps bounds the packets of a conversation.
const maxSteps = 512

// step is one packet of a conversation.
type step struct {
	server   bool
	at       time.Duration
	flags    uint16
	data     int // bytes of payload
	seq, ack uint32
	syn      bool
}

// talk writes down a TCP conversation. Sequence numbers are offsets from each side's first.
type talk struct {
	steps []step
	now   time.Duration
	gap   time.Duration
	delay time.Duration
	next  [2]uint32 // of client and server
}

func (t *talk) say(server bool, flags uint16, data int) {
	me, you := 0, 1
	if server {
		me, you = 1, 0
	}
	s := step{server: server, at: t.now, flags: flags, data: data, seq: t.next[me], syn: flags&syn != 0}
	if flags&ack != 0 {
		s.ack = t.next[you]
	}
	t.next[me] += uint32(data)
	if flags&(syn|fin) != 0 {
		t.next[me]++
	}
	t.steps = append(t.steps, s)
}

// send sends n bytes in segments; the other side acknowledges every second one (RFC 9293, section 3.8.6.3), and the
// last of an odd number. It returns when the last acknowledgement has arrived.
func (t *talk) send(server bool, n, mss int) {
	me, you := 0, 1
	if server {
		me, you = 1, 0
	}
	last := t.now
	for i := 0; n > 0; i++ {
		data := min(n, mss)
		flags := uint16(ack)
		if n -= data; n == 0 {
			flags |= psh
		}
		t.say(server, flags, data)
		if i%2 == 1 || n == 0 {
			last = t.now + t.delay
			t.steps = append(t.steps, step{server: !server, at: last, flags: ack, seq: t.next[you], ack: t.next[me]})
		}
		t.now += t.gap
	}
	t.now = last + t.delay
}

func (c *compiler) conversation(n node, i int) {
	before := len(c.f.Errs)
	o := n.keys(conversationKeys...)
	name := fmt.Sprintf("conversation%d", i)
	if n, ok := o.vals["name"]; ok {
		name, _ = n.text()
	}
	dir := o.word("direction", "left", "left", "right", "both")
	if dir == "both" {
		o.vals["direction"].fail("a conversation goes both ways; say on which side its clients are")
	}
	proto := o.word("protocol", "tcp", "tcp", "udp")
	rate := 1000.0
	if r, ok := o.vals["rate"]; ok {
		s, _ := r.text()
		if len(s) > 3 && s[len(s)-3:] == "cps" {
			s = s[:len(s)-3]
		}
		if rate, ok = scaled(s); !ok || rate <= 0 || rate > 1e9 {
			r.fail("%q is not a number of connections a second such as 500 or 20kcps", s)
		}
	}
	t := &talk{delay: o.duration("delay", time.Millisecond), gap: o.duration("gap", 10*time.Microsecond)}
	for key, d := range map[string]time.Duration{"delay": t.delay, "gap": t.gap} {
		if d <= 0 {
			o.vals[key].fail("has to be longer than nothing: it keeps packets in their order")
		}
	}
	think := o.duration("think", 0)
	rounds := int(o.count("rounds", 1, 0, maxSteps))
	mss := int(o.count("mss", 1460, 64, 9000))
	request, response := int(o.count("request", 64, 0, 1<<20)), int(o.count("response", 512, 0, 1<<20))
	end := o.word("close", "client", "client", "server", "reset", "none")
	v6 := c.addresses6(o)
	if proto == "udp" {
		for _, k := range []string{"mss", "close"} {
			if n, ok := o.vals[k]; ok {
				n.fail("only TCP has it")
			}
		}
		for k, x := range map[string]int{"request": request, "response": response} {
			if x > 1472 {
				o.vals[k].fail("%d bytes in one datagram; 1472 at most", x)
			}
		}
	} else if n := (request + response) / mss * rounds; n > 2*maxSteps {
		o.fail("a conversation of %d segments; %d packets at most", n, maxSteps)
	}
	if len(c.f.Errs) != before {
		return
	}
	if proto == "udp" {
		for r := range rounds {
			if r > 0 {
				t.now += think
			}
			t.say(false, 0, request)
			t.now += t.delay
			if response > 0 {
				t.say(true, 0, response)
				t.now += t.delay
			}
		}
	} else {
		t.tcp(request, response, rounds, mss, think, end)
	}
	slices.SortStableFunc(t.steps, func(a, b step) int { return int(a.at - b.at) })
	if len(t.steps) > maxSteps {
		o.fail("a conversation of %d packets; %d at most: ask for fewer bytes or rounds", len(t.steps), maxSteps)
		return
	}
	if len(t.steps) == 0 {
		o.fail("a conversation without a packet: it needs a round")
		return
	}
	start, limit := o.duration("start", 0), o.count("connections", 0, 1, 1<<53)
	c.profile.scripts = true
	for j := range t.steps {
		x := &t.steps[j]
		s := Stream{Name: fmt.Sprintf("%s.%d", name, j), Rate: Rate{rate, PPS}, Burst: 1, Frames: limit, Start: start + x.at}
		if x.server != (dir == "right") {
			s.Side = Right
		}
		c.say(&s, o, x, proto, v6, mss)
		if len(c.f.Errs) != before {
			return
		}
		if c.bytes += len(s.Template); c.bytes > maxBytes || len(c.profile.Streams) >= maxStreams {
			o.fail("more than %d streams, one for each packet of a conversation", maxStreams)
			return
		}
		c.profile.Streams = append(c.profile.Streams, s)
	}
}

func (t *talk) tcp(request, response, rounds, mss int, think time.Duration, end string) {
	t.say(false, syn, 0)
	t.now += t.delay
	t.say(true, syn|ack, 0)
	t.now += t.delay
	t.say(false, ack, 0)
	t.now += t.gap
	for r := range rounds {
		if r > 0 {
			t.now += think
		}
		t.send(false, request, mss)
		t.send(true, response, mss)
	}
	switch end {
	case "reset":
		t.say(false, rst|ack, 0)
	case "client", "server":
		server := end == "server"
		t.say(server, fin|ack, 0)
		t.now += t.delay
		t.say(!server, ack, 0)
		t.now += t.gap
		t.say(!server, fin|ack, 0)
		t.now += t.delay
		t.say(server, ack, 0)
	}
}

// addresses6: the conversation is one over IPv6.
func (c *compiler) addresses6(o object) bool {
	return slices.Contains(mappingKeys(o.vals["client"]), "ipv6") || slices.Contains(mappingKeys(o.vals["server"]), "ipv6")
}

// say compiles one packet of a conversation.
func (c *compiler) say(s *Stream, o object, x *step, proto string, v6 bool, mss int) {
	s.Seed = c.seed
	b := &builder{env: &c.env, side: s.Side, seed: c.seed, named: map[string]int{}}
	b.ether(object{node: o.node})
	clientSide := s.Side
	if x.server {
		clientSide = s.Side.Other()
	}
	addrs, ip, def := addr4, "ipv4", func(e *End) *value { return fixed(wide4(e.V4)) }
	if v6 {
		addrs, ip, def = addr6, "ipv6", func(e *End) *value { return fixed(wide6(e.V6)) }
	}
	end := func(key string) object {
		if n, ok := o.vals[key]; ok {
			return n.keys(ip, "port")
		}
		return object{node: node{f: o.f, pos: o.pos, key: yamltree.Join(o.key, key)}}
	}
	client, server := end("client"), end("server")
	ca, sa := client.get(ip, addrs, def(c.env.at(clientSide))), server.get(ip, addrs, def(c.env.at(clientSide.Other())))
	cp := client.get("port", portKind, &value{lo: wide{lo: 1024}, hi: wide{lo: 65535}, step: 1})
	port := uint64(80)
	if proto == "udp" {
		port = 53
	}
	sp := server.get("port", portKind, plain(port))
	if ca == nil || sa == nil || cp == nil || sp == nil {
		return
	}
	// Ports go round first, then the clients' addresses.
	if !ca.constant() && ca.every == 0 && ca.after == "" && cp.how == Count {
		ca.every = (cp.hi.lo-cp.lo.lo)/cp.step + 1
		if cp.every > 1 {
			ca.every *= cp.every
		}
	}
	for _, v := range []*value{ca, sa, cp, sp} {
		if v.how == Random {
			v.at.fail("random ends of a conversation would differ from packet to packet; write a range, a list or zipf")
			return
		}
		if v.after != "" {
			v.at.fail("every: a number of connections is wanted here")
			return
		}
	}
	if n, ok := o.vals["seen-as"]; ok && x.server {
		if ca = n.value(addrs); ca == nil {
			return
		}
		if !ca.constant() {
			n.fail("one address is wanted: the one that servers see")
			return
		}
	}
	src, dst, sport, dport := ca, sa, cp, sp
	if x.server {
		src, dst, sport, dport = sa, ca, sp, cp
	}
	num := map[string]uint8{"tcp": packet.ProtoTCP, "udp": packet.ProtoUDP}[proto]
	plainIP := object{node: node{f: o.f, pos: o.pos, key: yamltree.Join(o.key, ip)}}
	if v6 {
		b.etherType(plain(0x86dd))
		b.ipv6(plainIP, num)
	} else {
		b.etherType(plain(0x800))
		b.ipv4(plainIP, num)
		b.buf[b.layout.L3+6] = 0x40 // don't fragment
		b.put("ipv4.id", &value{hi: wide{lo: math.MaxUint16}, step: 1}, int(b.layout.L3)+4, 2, 0)
	}
	l3 := int(b.layout.L3)
	// Both directions draw the same numbers for the same end.
	type part struct {
		v          *value
		off, width int
		seed       uint64
	}
	ends := []part{{src, l3 + 12, 4, 1}, {dst, l3 + 16, 4, 2}}
	if v6 {
		ends[0].off, ends[0].width, ends[1].off, ends[1].width = l3+8, 16, l3+24, 16
	}
	var off int
	if proto == "tcp" {
		off = b.l4("TCP", 20, 16, true)
		if x.syn { // mss, no-op, window scale 7
			b.grow("", 2, 4, byte(mss>>8), byte(mss), 1, 3, 3, 7)
		}
		b.buf[off+12], b.buf[off+13] = byte(len(b.buf)-off)/4<<4, byte(x.flags)
		b.buf[off+14], b.buf[off+15] = 0xff, 0xff
	} else {
		off = b.l4("UDP", 8, 6, true)
		b.lens = append(b.lens, Length{uint16(off + 4), uint16(off)})
	}
	ends = append(ends, part{sport, off, 2, 3}, part{dport, off + 2, 2, 4})
	for _, e := range ends {
		seed := e.seed
		if x.server {
			seed = map[uint64]uint64{1: 2, 2: 1, 3: 4, 4: 3}[seed]
		}
		b.seed = c.seed + seed*0x9e3779b97f4a7c15 - uint64(e.off)*0x9e37 // put adds the offset
		b.put("", e.v, e.off, uint8(e.width), 0)
	}
	if proto == "tcp" {
		// First sequence numbers rise from connection to connection, as RFC 9293 wants for ports that are used again.
		first := func(server bool) uint32 {
			if server {
				return 0x53000000
			}
			return 0x43000000
		}
		seq := func(off int, server bool, x uint32) {
			v := uint64(first(server) + x)
			b.put("", &value{lo: wide{lo: v}, hi: wide{lo: math.MaxUint64}, step: 64000}, off, 4, 0)
			f := &b.fields[len(b.fields)-1]
			f.N = 0
		}
		seq(off+4, x.server, x.seq)
		if x.flags&ack != 0 {
			seq(off+8, !x.server, x.ack)
		}
	}
	if b.failed {
		return
	}
	head := len(b.buf)
	if x.data >= StampLen {
		s.Stamp = uint16(head)
	}
	all := make([]byte, max(head+x.data, minFrame-4))
	copy(all, b.buf)
	b.layout.Pad = uint16(len(all) - head - x.data)
	for i := range b.lens {
		b.lens[i].Less += b.layout.Pad
	}
	s.Sizes = []uint16{uint16(len(all) + 4)}
	s.finish(b, all)
}
