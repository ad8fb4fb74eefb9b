package fib

import (
	"net/netip"
	"slices"

	"millrace/packet"
)

// Query is a packet to look up: what rules may ask about it.
type Query struct {
	packet.FlowKey
	In   uint16 // interface that it came in by, 0 for none
	TOS  uint8
	Mark uint32
}

// Decided is the way of a packet through the rules.
type Decided struct {
	Explained
	Rule  *Rule  // that decided; nil where there are no rules, or none decides
	Table uint32 // that was looked up last; 0 for none
}

// Decide says what becomes of a packet: the rules, one after the other, and what the table says that the deciding one names.
func (f *FIB) Decide(q Query) Decided {
	fam := 0
	if q.Dst.Is6() {
		fam = 1
	}
	f.mu.Lock()
	rules := f.rules[fam].rules
	own := f.main.id
	if t := f.ifs[q.In].table; t != nil {
		own = t.id
	}
	f.mu.Unlock()
	var d Decided
	if rules == nil {
		d.Table = own
		d.Explained, _ = f.Explain(own, q.FlowKey)
		return d
	}
	k := flow{mark: q.Mark, proto: q.Proto, tos: q.TOS, sport: q.SrcPort, dport: q.DstPort}
	for _, x := range []struct {
		a    netip.Addr
		into *[2]uint64
	}{{q.Src, &k.src}, {q.Dst, &k.dst}} {
		if x.a.IsValid() {
			*x.into, _ = words(netip.PrefixFrom(x.a.WithZone(""), x.a.BitLen()))
		}
	}
	for i := 0; i < len(rules); i++ {
		r := &rules[i]
		holds := !r.OIF && (r.In == nil || slices.Contains(r.In, q.In)) && !(r.L3mdev && own == f.main.id)
		if s := r.selector(); holds && s != nil {
			plain := *s
			plain.not = false
			holds = plain.match(&k)
		}
		if holds == r.Not {
			continue
		}
		switch r.Action {
		case Nop:
		case Goto:
			if to := slices.IndexFunc(rules, func(o Rule) bool { return o.Pref == r.Goto }); to > i {
				i = to - 1
			}
		case Lookup:
			t := r.Table
			if r.L3mdev {
				if t = own; t == f.main.id {
					continue
				}
			}
			x, _ := f.Explain(t, q.FlowKey)
			switch {
			case x.Exit == XNoRoute, t == TableLocal && x.Route.Table != TableLocal && x.Route.Source != SourceMartian:
				continue
			case x.Route.Type != Blackhole && x.Route.Type != Unreachable && x.Route.Type != Prohibit && x.Route.Prefix.Bits() < r.MinBits:
				continue
			}
			d.Explained, d.Rule, d.Table = x, r, t
			return d
		default:
			d.Rule, d.Exit, d.Chosen = r, ruleReasons[r.Action], -1
			return d
		}
	}
	d.Exit, d.Chosen = XNoRoute, -1
	return d
}
