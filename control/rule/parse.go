package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// words of a rule, for messages.
var words = []string{"not", "from", "to", "iif", "oif", "fwmark", "tos", "dscp", "ipproto", "sport", "dport", "l3mdev", "pref",
	"lookup", "goto", "nop", "blackhole", "unreachable", "prohibit", "suppress_prefixlength"}

// aliases of words that `ip rule` knows.
var aliases = map[string]string{"dev": "iif", "dsfield": "tos", "priority": "pref", "preference": "pref", "order": "pref",
	"table": "lookup", "sup_pl": "suppress_prefixlength", "suppress_prefixlen": "suppress_prefixlength"}

// refused are words of `ip rule` that mean nothing here.
var refused = map[string]string{
	"uidrange":         "is about sockets of this box's users; no forwarded packet has one",
	"oif":              "is about packets that this box sends itself; forwarded ones have no output interface before the lookup",
	"tun_id":           "is not supported: use `iif` with the tunnel's interface",
	"suppress_ifgroup": "is not supported: there are no interface groups here",
	"realms":           "is not supported", "nat": "is not supported", "protocol": "says who brought a rule; leave it out",
}

// Parse reads a rule in the words of `ip rule add`. Tables other than local, main and default may have names, which tables
// resolves. A rule without addresses is for both families, unless -4 or -6 stands in front. Without a pref, Pref is 0 and set false.
func Parse(text string, tables func(name string) (uint32, bool)) (r Rule, set bool, err error) {
	p := parser{words: strings.Fields(text), tables: tables}
	p.r.SuppressBits, p.r.SuppressGroup = -1, -1
	for len(p.words) != 0 {
		if err := p.word(); err != nil {
			return Rule{}, false, err
		}
	}
	switch {
	case p.r.From.IsValid() && p.r.To.IsValid() && p.r.From.Addr().Is4() != p.r.To.Addr().Is4():
		return Rule{}, false, fmt.Errorf("from %s to %s: one is IPv4, the other IPv6", p.r.From, p.r.To)
	case !p.action:
		return Rule{}, false, errors.New("the rule does nothing: end it with `lookup TABLE`, `goto PREF`, `blackhole`, `unreachable` or `prohibit`")
	case p.r.Action == Goto && p.seen["pref"] && p.r.Goto <= p.r.Pref:
		return Rule{}, false, fmt.Errorf("goto %d: must be later than this rule's pref %d", p.r.Goto, p.r.Pref)
	case p.r.Action == Goto && !p.seen["pref"]:
		return Rule{}, false, errors.New("a rule with goto needs a pref of its own")
	case p.r.SuppressBits >= 0 && p.r.Action != Lookup:
		return Rule{}, false, errors.New("suppress_prefixlength: only for rules that look up a table")
	case (p.seen["sport"] || p.seen["dport"]) && !slices.Contains([]uint8{0, 6, 17, 132, 136}, p.r.Proto):
		return Rule{}, false, fmt.Errorf("ipproto %s has no ports", protoName(p.r.Proto))
	}
	for _, at := range []*netip.Prefix{&p.r.From, &p.r.To} {
		a := *at
		if !a.IsValid() {
			continue
		}
		if a.Bits() == 0 {
			*at = netip.Prefix{}
		}
		f := uint8(6)
		if a.Addr().Is4() {
			f = 4
		}
		if p.r.Family != 0 && p.r.Family != f {
			return Rule{}, false, fmt.Errorf("-%d: %s is IPv%d", p.r.Family, a, f)
		}
		p.r.Family = f
	}
	if p.r.Family == 4 && p.seen["tos"] {
		p.r.TOSMask = tosMask4
		if p.r.TOS&^tosMask4 != 0 {
			return Rule{}, false, fmt.Errorf("tos %#x: in IPv4 it has the bits %#x only; for the others write `dscp %d`", p.r.TOS, tosMask4, p.r.TOS>>2)
		}
	}
	return p.r, p.seen["pref"], nil
}

// tosMask4 are the bits of the TOS byte that IPv4's rules compare (RFC 1349 without the lowest).
const tosMask4 = 0x1c

type parser struct {
	words  []string
	tables func(string) (uint32, bool)
	r      Rule
	seen   map[string]bool
	action bool
}

// next takes the argument of a word.
func (p *parser) next(of string) (string, error) {
	if len(p.words) == 0 {
		return "", fmt.Errorf("%s: something is missing behind it", of)
	}
	s := p.words[0]
	p.words = p.words[1:]
	return s, nil
}

// word takes one word with its argument.
func (p *parser) word() error {
	w := p.words[0]
	p.words = p.words[1:]
	if w == "-4" || w == "-6" {
		if p.seen != nil {
			return fmt.Errorf("%s: write it in front of the rule", w)
		}
		p.r.Family = w[1] - '0'
		return nil
	}
	if a, ok := aliases[w]; ok {
		w = a
	}
	if why := refused[w]; why != "" {
		return fmt.Errorf("%s %s", w, why)
	}
	if !slices.Contains(words, w) {
		return fmt.Errorf("%q is none of %s", w, strings.Join(words, ", "))
	}
	if p.seen == nil {
		p.seen = map[string]bool{}
	}
	if p.seen[w] {
		return fmt.Errorf("%s: twice", w)
	}
	p.seen[w] = true
	switch w {
	case "not":
		p.r.Not = true
		return nil
	case "l3mdev":
		p.r.L3mdev = true
		return p.act(Lookup, w)
	case "nop", "blackhole", "unreachable", "prohibit":
		return p.act(Action(slices.Index(actions[:], w)), w)
	}
	arg, err := p.next(w)
	if err != nil {
		return err
	}
	if err := p.argument(w, arg); err != nil {
		return fmt.Errorf("%s %s: %w", w, arg, err)
	}
	return nil
}

func (p *parser) act(a Action, w string) error {
	if p.action {
		return fmt.Errorf("%s: the rule does something else already", w)
	}
	p.r.Action, p.action = a, true
	return nil
}

func (p *parser) argument(w, arg string) (err error) {
	var n uint64
	switch w {
	case "from":
		p.r.From, err = parsePrefix(arg)
	case "to":
		p.r.To, err = parsePrefix(arg)
	case "iif":
		if len(arg) > 15 {
			return errors.New("not the name of an interface")
		}
		p.r.IIF = arg
	case "fwmark":
		mark, mask, both := strings.Cut(arg, "/")
		p.r.Mask = ^uint32(0)
		if n, err = number(mark, 32); err != nil {
			return err
		}
		p.r.Mark = uint32(n)
		if both {
			if n, err = number(mask, 32); err != nil {
				return err
			}
			p.r.Mask = uint32(n)
		}
		if p.r.Mark&^p.r.Mask != 0 {
			return errors.New("never holds: the mark has bits that the mask has not")
		}
	case "tos", "dscp":
		if p.r.TOSMask != 0 {
			return errors.New("tos and dscp are the same bits: write one")
		}
		p.r.TOSMask = 0xfc
		bits := 8
		if w == "dscp" {
			bits = 6
		}
		if n, err = number(arg, bits); err != nil {
			return err
		}
		if p.r.TOS = uint8(n); w == "dscp" {
			p.r.TOS <<= 2
		} else if n&3 != 0 {
			return errors.New("the two lowest bits are ECN, which no rule looks at")
		}
	case "ipproto":
		if i := slices.IndexFunc(protocols, func(k struct {
			name string
			n    uint8
		}) bool {
			return k.name == arg
		}); i >= 0 {
			p.r.Proto = protocols[i].n
			return nil
		}
		if n, err = number(arg, 8); err == nil && n == 0 {
			err = errors.New("is for all protocols: leave it out")
		}
		p.r.Proto = uint8(n)
	case "sport":
		p.r.SPorts, err = parsePorts(arg)
	case "dport":
		p.r.DPorts, err = parsePorts(arg)
	case "pref":
		if n, err = number(arg, 32); err == nil && n == 0 {
			err = errors.New("0 is the rule for the box's own addresses")
		}
		p.r.Pref = uint32(n)
	case "lookup":
		if p.r.Table, err = p.table(arg); err == nil {
			err = p.act(Lookup, w)
		}
	case "goto":
		if n, err = number(arg, 32); err == nil {
			err = p.act(Goto, w)
		}
		p.r.Goto = uint32(n)
	case "suppress_prefixlength":
		n, err = number(arg, 8)
		if err == nil && n > 128 {
			err = errors.New("no prefix is that long")
		}
		p.r.SuppressBits = int(n)
	}
	return err
}

func (p *parser) table(s string) (uint32, error) {
	for _, t := range []uint32{Local, Main, Default} {
		if s == TableName(t) {
			return t, nil
		}
	}
	if p.tables != nil {
		if t, ok := p.tables(s); ok {
			return t, nil
		}
	}
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || n == 0 {
		return 0, errors.New("neither a number from 1, nor local, main, default or the name of a VRF")
	}
	return uint32(n), nil
}

func number(s string, bits int) (uint64, error) {
	n, err := strconv.ParseUint(s, 0, bits)
	if err != nil {
		return 0, fmt.Errorf("%q is not a whole number between 0 and %d", s, uint64(1)<<bits-1)
	}
	return n, nil
}

func parsePrefix(s string) (p netip.Prefix, err error) {
	if s == "all" || s == "any" {
		return p, nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err = netip.ParsePrefix(s)
	switch {
	case err != nil:
		return p, errors.New("neither a prefix such as 10.0.0.0/8 nor `all`")
	case p != p.Masked():
		return p, fmt.Errorf("has bits beyond its length; write %s", p.Masked())
	case p.Addr().Is4In6():
		return p, errors.New("write an IPv4 prefix as such")
	}
	return p, nil
}

func parsePorts(s string) (Ports, error) {
	lo, hi, both := strings.Cut(s, "-")
	if !both {
		hi = lo
	}
	a, err1 := strconv.ParseUint(lo, 10, 16)
	z, err2 := strconv.ParseUint(hi, 10, 16)
	switch {
	case err1 != nil || err2 != nil || a == 0:
		return Ports{}, errors.New("neither a port from 1 to 65535 nor a range such as 1024-65535")
	case z < a:
		return Ports{}, fmt.Errorf("ends before it begins; write %d-%d", z, a)
	}
	return Ports{uint16(a), uint16(z)}, nil
}
