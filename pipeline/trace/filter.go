package trace

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"millrace/packet"
)

// Filter selects packets by an expression in the words of tcpdump (pcap-filter(7)):
//
//	host A, src host A, dst net P, port N, src port N, portrange N-M,
//	ip, ip6, arp, icmp, icmp6, tcp, udp, sctp, proto N, vlan [ID],
//	ether host MAC, ether proto N, less N, greater N, and, or, not, ( )
//
// Names of hosts are not looked up. A Filter is immutable.
type Filter struct {
	expr  string
	match func(*facts) bool
}

// facts is what filters ask about a packet.
type facts struct {
	eth   []byte // nil where the packet has no Ethernet header yet
	et    uint16
	vlans [2]uint16
	nv    int
	ip    bool
	key   packet.FlowKey
	// The addresses of IP packets and of ARP.
	src, dst netip.Addr
	n        int
}

// learn gathers a packet's facts; l3 is the offset of its L3 header, or -1 where
// the frame is to be parsed from its start.
func learn(m *packet.Mbuf, l3 int, tmp *[64]byte) facts {
	f := facts{n: int(m.PktLen)}
	var arp [packet.ARPSize]byte
	if l3 < 0 || l3 >= 14 {
		if f.eth = m.View(0, min(f.n, 22), tmp[:]); len(f.eth) >= 14 {
			off, et, tags, nt, ok := packet.ParseEther(f.eth)
			if ok {
				f.et, f.vlans, f.nv = et, tags, nt
				if a := packet.ARP(m.View(off, packet.ARPSize, arp[:])); et == packet.EtherARP && a.Valid() {
					f.src, f.dst = netip.AddrFrom4(a.SenderIP()), netip.AddrFrom4(a.TargetIP())
				}
				if l3 < 0 && (et == packet.EtherIPv4 || et == packet.EtherIPv6) {
					l3 = off
				}
			}
		} else {
			f.eth = nil
		}
	}
	if l3 >= 0 {
		f.key, f.ip = packet.Key(m, l3)
		f.src, f.dst = f.key.Src, f.key.Dst
	}
	return f
}

// NewFilter compiles an expression; the empty one selects everything.
func NewFilter(expr string) (*Filter, error) {
	f := &Filter{expr: expr}
	words := strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ", "!", " not ", "&&", " and ", "||", " or ").Replace(expr))
	if len(words) == 0 {
		f.match = func(*facts) bool { return true }
		return f, nil
	}
	p := &parser{words: words}
	m, err := p.or()
	if err == nil && p.at < len(words) {
		err = fmt.Errorf("%q is left over; join conditions by `and` or `or`", strings.Join(words[p.at:], " "))
	}
	if err != nil {
		return nil, fmt.Errorf("filter %q: %w", expr, err)
	}
	f.match = m
	return f, nil
}

// Match reports whether the packet is selected; l3 is the offset of its L3 header, -1 where unknown.
func (f *Filter) Match(m *packet.Mbuf, l3 int) bool {
	if f.expr == "" {
		return true
	}
	var tmp [64]byte
	x := learn(m, l3, &tmp)
	return f.match(&x)
}

type cond = func(*facts) bool

type parser struct {
	words []string
	at    int
}

func (p *parser) peek() string {
	if p.at < len(p.words) {
		return p.words[p.at]
	}
	return ""
}

func (p *parser) take(what string) (string, error) {
	if p.at == len(p.words) {
		return "", fmt.Errorf("%s is missing at the end", what)
	}
	p.at++
	return p.words[p.at-1], nil
}

func (p *parser) or() (cond, error) {
	a, err := p.and()
	for err == nil && p.peek() == "or" {
		p.at++
		var b cond
		if b, err = p.and(); err == nil {
			l := a
			a = func(f *facts) bool { return l(f) || b(f) }
		}
	}
	return a, err
}

func (p *parser) and() (cond, error) {
	a, err := p.not()
	for err == nil && p.peek() == "and" {
		p.at++
		var b cond
		if b, err = p.not(); err == nil {
			l := a
			a = func(f *facts) bool { return l(f) && b(f) }
		}
	}
	return a, err
}

func (p *parser) not() (cond, error) {
	switch p.peek() {
	case "not":
		p.at++
		a, err := p.not()
		return func(f *facts) bool { return !a(f) }, err
	case "(":
		p.at++
		a, err := p.or()
		if err == nil && p.peek() != ")" {
			return nil, fmt.Errorf("a ) is missing")
		}
		p.at++
		return a, err
	}
	return p.primitive()
}

// protos are the words that name a protocol, by IP protocol number.
var protos = map[string]uint8{"icmp": 1, "igmp": 2, "tcp": 6, "udp": 17, "gre": 47, "esp": 50, "ah": 51, "icmp6": 58, "pim": 103, "sctp": 132}

func (p *parser) primitive() (cond, error) {
	w, err := p.take("a condition")
	if err != nil {
		return nil, err
	}
	if n, ok := protos[w]; ok {
		c := func(f *facts) bool { return f.ip && f.key.Proto == n }
		switch p.peek() { // "tcp port 80"
		case "port", "portrange", "src", "dst":
			d, err := p.primitive()
			return func(f *facts) bool { return c(f) && d(f) }, err
		}
		return c, nil
	}
	switch w {
	case "ip":
		return func(f *facts) bool { return f.ip && f.key.Src.Is4() }, nil
	case "ip6":
		return func(f *facts) bool { return f.ip && f.key.Src.Is6() }, nil
	case "arp":
		return func(f *facts) bool { return f.et == packet.EtherARP }, nil
	case "vlan":
		id, err := strconv.ParseUint(p.peek(), 10, 12)
		if err != nil {
			return func(f *facts) bool { return f.nv > 0 }, nil
		}
		p.at++
		return func(f *facts) bool {
			return f.nv > 0 && f.vlans[0]&0xfff == uint16(id) || f.nv > 1 && f.vlans[1]&0xfff == uint16(id)
		}, nil
	case "proto":
		n, err := p.number("a protocol number", 255)
		return func(f *facts) bool { return f.ip && f.key.Proto == uint8(n) }, err
	case "less":
		n, err := p.number("a length", 1<<16)
		return func(f *facts) bool { return f.n <= n }, err
	case "greater":
		n, err := p.number("a length", 1<<16)
		return func(f *facts) bool { return f.n >= n }, err
	case "ether":
		return p.ether()
	case "src", "dst":
		kind, err := p.take("host, net or port")
		if err != nil {
			return nil, err
		}
		switch kind {
		case "host", "net", "port", "portrange":
		default: // "src 10.0.0.1"
			p.at--
			kind = "host"
		}
		return p.side(kind, w)
	case "host", "net", "port", "portrange":
		return p.side(w, "")
	}
	if _, err := netip.ParseAddr(w); err == nil { // "10.0.0.1" alone, as people type it
		p.at--
		return p.side("host", "")
	}
	return nil, fmt.Errorf("%q is not a condition; try `host 192.0.2.1`, `port 80`, `icmp`, `net 198.51.100.0/24`, `vlan 7`", w)
}

func (p *parser) number(what string, most int) (int, error) {
	w, err := p.take(what)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(w, 0, 31)
	if err != nil || int(n) > most {
		return 0, fmt.Errorf("%q is not %s", w, what)
	}
	return int(n), nil
}

func (p *parser) ether() (cond, error) {
	kind, err := p.take("host, src, dst or proto")
	if err != nil {
		return nil, err
	}
	if kind == "proto" {
		n, err := p.number("an EtherType", 0xffff)
		return func(f *facts) bool { return int(f.et) == n }, err
	}
	if kind != "host" && kind != "src" && kind != "dst" {
		return nil, fmt.Errorf("`ether %s`: expected host, src, dst or proto", kind)
	}
	w, err := p.take("a MAC address")
	if err != nil {
		return nil, err
	}
	var mac [6]byte
	if n, err := fmt.Sscanf(w, "%x:%x:%x:%x:%x:%x", &mac[0], &mac[1], &mac[2], &mac[3], &mac[4], &mac[5]); n != 6 || err != nil {
		return nil, fmt.Errorf("%q is not a MAC address", w)
	}
	return func(f *facts) bool {
		return f.eth != nil && (kind != "dst" && [6]byte(f.eth[6:12]) == mac || kind != "src" && [6]byte(f.eth[:6]) == mac)
	}, nil
}

// side compiles what exists in a source and a destination form.
func (p *parser) side(kind, dir string) (cond, error) {
	both := func(src, dst cond) cond {
		switch dir {
		case "src":
			return src
		case "dst":
			return dst
		}
		return func(f *facts) bool { return src(f) || dst(f) }
	}
	switch kind {
	case "host", "net":
		w, err := p.take("an address")
		if err != nil {
			return nil, err
		}
		pre, err := netip.ParsePrefix(w)
		if a, e := netip.ParseAddr(w); e == nil {
			pre, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("%q is not an address or prefix (names are not looked up)", w)
		}
		return both(func(f *facts) bool { return pre.Contains(f.src) },
			func(f *facts) bool { return pre.Contains(f.dst) }), nil
	}
	w, err := p.take("a port")
	if err != nil {
		return nil, err
	}
	lo, hi, ok := strings.Cut(w, "-")
	if !ok {
		hi = lo
	}
	a, e1 := strconv.ParseUint(lo, 10, 16)
	b, e2 := strconv.ParseUint(hi, 10, 16)
	if e1 != nil || e2 != nil || ok != (kind == "portrange") {
		return nil, fmt.Errorf("%q is not a %s", w, kind)
	}
	in := func(n uint16) bool { return uint64(n) >= a && uint64(n) <= b }
	return both(func(f *facts) bool { return f.key.SrcPort != 0 && in(f.key.SrcPort) },
		func(f *facts) bool { return f.key.DstPort != 0 && in(f.key.DstPort) }), nil
}
