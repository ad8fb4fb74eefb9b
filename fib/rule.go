package fib

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"millrace/pipeline/graph"
)

// Rule is a rule of policy routing, as `ip rule` has them. All its conditions must hold for a packet, or not all where
// Not is set.
type Rule struct {
	Pref           uint32 // lower ones are asked first, those of equal ones in the order of the list
	Not            bool
	From, To       netip.Prefix // zero for all
	In             []uint16     // input interfaces, of which 0 stands for packets made here; nil for all, empty for none
	OIF            bool         // the rule names an output interface, which forwarded packets do not have yet: it never holds
	Mark, Mask     uint32       // holds where the packet's mark and Mask together are Mark
	TOS, TOSMask   uint8        // holds where the byte of IPv4's TOS or IPv6's traffic class and TOSMask together are TOS
	Proto          uint8        // IP protocol, behind IPv6's extension headers; 0 for all
	SPorts, DPorts Ports        // of TCP, UDP, DCCP, SCTP and UDP-Lite; fragments have none
	L3mdev         bool         // holds for interfaces with a table other than main, and Table is that one
	Action         Action
	Table          uint32 // of Lookup, by the kernel's numbers; 0 is main
	Goto           uint32 // Pref of the rule to go on with, which is later than this
	MinBits        int    // a route of a shorter prefix is taken for none: suppress_prefixlength and one
}

// Ports is a range of ports; the zero value holds for all.
type Ports struct{ Lo, Hi uint16 }

// Action is what a rule does with the packets that it holds for.
type Action uint8

// The actions. A packet that Lookup finds no route for, or one of type Throw, goes on to the next rule.
const (
	Lookup Action = iota
	Goto
	Nop
	RuleBlackhole
	RuleUnreachable
	RuleProhibit
	numActions
)

// maxRules bounds the rules of a family.
const maxRules = 1 << 12

// ruleReasons are why packets leave by a rule.
var ruleReasons = map[Action]graph.Reason{RuleBlackhole: XRuleBlackhole, RuleUnreachable: XRuleUnreachable, RuleProhibit: XRuleProhibit}

// ruleList is the rules of a family, by Pref.
type ruleList struct {
	rules   []Rule
	tables  []*table // of Lookup rules, by rule; nil for others
	plain   bool     // nothing but lookups of local, main and default for all packets, and of the tables of VRFs
	minBits int      // the largest
}

// standardRules stand for no rules at all: each packet is looked up in its interface's table only.
func standardRules() ruleList { return ruleList{} }

// l3mdevPref is where the kernel has its rule for VRFs.
const l3mdevPref = 1000

// SetRules replaces the rules of both families, as one change for each. They mean what they do in the kernel: a packet meets
// them by their Pref until one decides; where none does there is no route. A list
// without an L3mdev rule gets one at 1000.
//
// nil stands for no rules: packets are looked up in their interface's table (graph.Iface.Table), and nowhere else.
//
// The main table of the FIB holds the local one's routes too. So a rule that looks up TableLocal for
// all packets must come before any that looks up main, and no Goto may skip it.
//
// On an error, which wraps ErrInvalid or ErrFull, nothing has changed.
func (f *FIB) SetRules(v4, v6 []Rule) error {
	var l [2]ruleList
	for fam, rs := range [][]Rule{v4, v6} {
		var err error
		if l[fam], err = newRuleList(rs, fam); err != nil {
			return err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for fam := range l {
		if err := f.hold(&l[fam]); err != nil {
			f.release(&l[0])
			f.release(&l[1])
			_ = f.settle(func() {}) // as it was
			return err
		}
	}
	f.makeBare()
	old := f.rules
	f.replaceRules(l)
	f.release(&old[0])
	f.release(&old[1])
	return f.settle(func() {
		for fam := range old {
			_ = f.hold(&old[fam]) // its tables are there yet
		}
		f.replaceRules(old)
		f.release(&l[0])
		f.release(&l[1])
	})
}

// Rules are the rules of the families as they were set, nil for none.
func (f *FIB) Rules() (v4, v6 []Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.rules[0].rules), slices.Clone(f.rules[1].rules)
}

func (f *FIB) replaceRules(l [2]ruleList) {
	for fam := range l {
		if was, is := f.rules[fam].minBits, l[fam].minBits; was != is {
			f.markShort(fam, max(was, is))
		}
	}
	f.rules = l
	f.stale = true
}

// hold pins the tables of a list.
func (f *FIB) hold(l *ruleList) error {
	l.tables = make([]*table, len(l.rules))
	for i := range l.rules {
		r := &l.rules[i]
		switch {
		case r.Action != Lookup || r.L3mdev:
		case r.Table == TableLocal:
			l.tables[i] = f.local // see wantLocal
		default:
			t, err := f.table(r.Table)
			if err != nil {
				return err
			}
			l.tables[i] = t
			f.pin(t)
		}
	}
	return nil
}

func (f *FIB) release(l *ruleList) {
	for _, t := range l.tables {
		if t != nil && t != f.local {
			f.unpin(t)
		}
	}
	l.tables = nil
}

// wantLocal: something stands between the local table and main, for some packets.
func (f *FIB) wantLocal() bool {
	for i := range f.rules {
		if l := &f.rules[i]; l.rules != nil && (!l.plain || f.vrfs > 0) {
			return true
		}
	}
	return false
}

func badRule(r *Rule, format string, a ...any) error {
	return fmt.Errorf("fib: rule %d: %w: %s", r.Pref, ErrInvalid, fmt.Sprintf(format, a...))
}

// newRuleList checks and sorts rules.
func newRuleList(rs []Rule, fam int) (l ruleList, err error) {
	if rs == nil {
		return standardRules(), nil
	}
	if len(rs) >= maxRules {
		return l, fmt.Errorf("fib: %w: %d rules, the limit is %d", ErrInvalid, len(rs), maxRules-1)
	}
	l.rules = slices.Clone(rs)
	if !slices.ContainsFunc(rs, func(r Rule) bool { return r.L3mdev }) {
		l.rules = append(l.rules, Rule{Pref: l3mdevPref, L3mdev: true})
	}
	slices.SortStableFunc(l.rules, func(a, b Rule) int { return cmp.Compare(a.Pref, b.Pref) })
	bits := []int{32, 128}[fam]
	local := -1 // the unconditional lookup of TableLocal
	for i := range l.rules {
		r := &l.rules[i]
		for _, p := range []*netip.Prefix{&r.From, &r.To} {
			if *p == (netip.Prefix{}) {
				continue
			}
			if !p.IsValid() || family(p.Addr()) != fam {
				return l, badRule(r, "%v is no prefix of IPv%d", *p, 4+2*fam)
			}
			*p = p.Masked()
		}
		switch {
		case r.Action >= numActions:
			return l, badRule(r, "action %d is not known", r.Action)
		case r.TOS&^r.TOSMask != 0 || r.Mark&^r.Mask != 0:
			return l, badRule(r, "the value has bits outside of its mask")
		case r.SPorts.Lo > r.SPorts.Hi || r.DPorts.Lo > r.DPorts.Hi || r.SPorts.Lo == 0 && r.SPorts.Hi != 0 || r.DPorts.Lo == 0 && r.DPorts.Hi != 0:
			return l, badRule(r, "ports go from 1 to 65535")
		case r.Action == Goto && r.Goto <= r.Pref:
			return l, badRule(r, "goto %d does not lead forward", r.Goto)
		case r.MinBits < 0 || r.MinBits > bits || r.MinBits != 0 && r.Action != Lookup:
			return l, badRule(r, "prefixes of at least %d bits", r.MinBits)
		case r.L3mdev && r.Action != Lookup:
			return l, badRule(r, "a rule for VRFs does nothing but look up their tables")
		}
		for _, in := range r.In {
			if in >= graph.MaxIfaces {
				return l, badRule(r, "interface %d does not exist", in)
			}
		}
		l.minBits = max(l.minBits, r.MinBits)
		if r.Action != Lookup || r.L3mdev {
			continue
		}
		if r.Table == TableLocal && r.all() && local < 0 {
			local = i
		}
		if plainTable(r.Table) == 0 && r.Table != TableLocal && local < 0 && !(r.OIF && !r.Not) {
			return l, badRule(r, "the local table must be looked up for all packets before main is")
		}
	}
	order := []uint32{TableLocal, TableMain, tableDefault}
	l.plain = true
	for i := range l.rules {
		r := &l.rules[i]
		if r.Action == Goto && i < local && r.Goto > l.rules[local].Pref {
			return l, badRule(r, "goto %d skips the lookup of the local table", r.Goto)
		}
		switch {
		case r.L3mdev && r.only():
		case r.Action == Lookup && r.all() && len(order) > 0 && r.Table == order[0]:
			order = order[1:]
		default:
			l.plain = false
		}
	}
	return l, nil
}

// all: the rule holds for all packets and takes any route.
func (r *Rule) all() bool { return r.only() && !r.L3mdev }

// only: but for L3mdev.
func (r *Rule) only() bool {
	return !r.Not && r.From.Bits() <= 0 && r.To.Bits() <= 0 && r.In == nil && !r.OIF && r.Mask == 0 && r.TOSMask == 0 && r.Proto == 0 &&
		r.SPorts.Hi == 0 && r.DPorts.Hi == 0 && r.MinBits == 0
}

// selector is what of the rule depends on the packet; nil for nothing.
func (r *Rule) selector() *selector {
	s := selector{mark: r.Mark, mask: r.Mask, sports: r.SPorts, dports: r.DPorts, proto: r.Proto, tos: r.TOS, tosMask: r.TOSMask, not: r.Not}
	s.src, s.srcMask = words(r.From)
	s.dst, s.dstMask = words(r.To)
	if s == (selector{not: r.Not}) {
		return nil
	}
	return &s
}

// words are a prefix and its mask as flows have addresses.
func words(p netip.Prefix) (w, mask [2]uint64) {
	if !p.IsValid() || p.Bits() == 0 {
		return
	}
	var b, m [16]byte
	copy(b[:], p.Addr().AsSlice())
	for i := range p.Bits() {
		m[i/8] |= 0x80 >> (i % 8)
	}
	for i := range w {
		w[i], mask[i] = binary.BigEndian.Uint64(b[8*i:]), binary.BigEndian.Uint64(m[8*i:])
	}
	return
}

// variant is the set for routes of a prefix: its own for those that rules may have to tell from longer ones. Like
// the kernel, rules take blackholes and their kind for what they are, however short the prefix.
func (f *FIB) variant(p netip.Prefix, s *hopset) *hopset {
	if p.Bits() >= f.rules[family(p.Addr())].minBits || s.typ == Blackhole || s.typ == Unreachable || s.typ == Prohibit {
		return s
	}
	k := s.key + string([]byte{'/', byte(p.Bits())})
	if o := f.sets[k]; o != nil {
		return o
	}
	o := &hopset{key: k, typ: s.typ, onlink: s.onlink, hops: s.hops, short: uint8(p.Bits() + 1)}
	f.enter(o)
	return o
}

// markShort marks the entries of prefixes with less than some bits.
func (f *FIB) markShort(fam, bits int) {
	for _, t := range f.everyTable() {
		if !t.mapped(fam) {
			continue
		}
		all := t.rib.All4()
		if fam == 1 {
			all = t.rib.All6()
		}
		for p, e := range all {
			if p.Bits() < bits {
				f.mark(e)
			}
		}
	}
}

// tell writes what rules and the check of sources want to know of a set's group, before anything leads there.
func (f *FIB) tell(s *hopset) {
	f.short[s.group] = s.short
	if s.typ != Unicast {
		f.paths[s.group].Store(nil)
		return
	}
	p := &paths{}
	for i := range s.hops {
		if n := s.hops[i].Iface; !slices.Contains(p.ifaces, n) {
			p.ifaces = append(p.ifaces, n)
		}
	}
	f.paths[s.group].Store(p)
}

// publish makes policy and checks follow interfaces, rules and tables.
func (f *FIB) publish() {
	if !f.stale {
		return
	}
	f.stale = false
	f.changed = true
	f.policy4.Store(compile(f, 0, finder[uint32](f.t4), func(t *table) finder[uint32] { return t.v4 }))
	f.policy6.Store(compile(f, 1, finder[[16]byte](f.t6), func(t *table) finder[[16]byte] { return t.v6 }))
	for fam, flags := range []uint16{graph.IfLoose4 | graph.IfStrict4, graph.IfLoose6 | graph.IfStrict6} {
		on := false
		for i := range f.ifs {
			on = on || f.ifs[i].known && f.ifs[i].iface.Flags&flags != 0
		}
		f.checks[fam].Store(on)
	}
}

// compile makes the policy of a family; nil where all packets are looked up in main.
func compile[A any](f *FIB, fam int, main finder[A], finderOf func(*table) finder[A]) *policy[A] {
	p := &policy[A]{}
	c := compiler[A]{f, fam, main, finderOf}
	l := &f.rules[fam]
	add := func(c chain[A]) uint16 {
		for i := range p.chains {
			if o := &p.chains[i]; slices.Equal(o.steps, c.steps) {
				return uint16(i)
			}
		}
		p.chains = append(p.chains, c)
		return uint16(len(p.chains) - 1)
	}
	sels := make([]*selector, len(l.rules))
	named := map[uint16]bool{0: true} // interfaces that rules treat in a way of their own
	for i := range l.rules {
		sels[i] = l.rules[i].selector()
		for _, in := range l.rules[i].In {
			named[in] = true
		}
	}
	// 0 is the way of most interfaces: of those in main that no rule names.
	p.chains = append(p.chains, c.chain(f.main, graph.MaxIfaces, sels))
	type ways struct{ by, back uint16 }
	of := map[*table]ways{f.main: {0, add(c.chain(f.main, 0, sels))}}
	for i := range p.by {
		t := f.ifs[i].table
		if t == nil {
			t = f.main
		}
		w, ok := of[t]
		if !ok {
			w = ways{add(c.chain(t, graph.MaxIfaces, sels)), add(c.chain(t, 0, sels))}
			of[t] = w
		}
		p.by[i], p.back[i] = w.by, w.back
		if named[uint16(i)] {
			p.by[i] = add(c.chain(t, i, sels))
		}
	}
	if len(p.chains) == 1 && p.chains[0].one == main {
		return nil
	}
	return p
}

type compiler[A any] struct {
	f        *FIB
	fam      int
	main     finder[A]
	finderOf func(*table) finder[A]
}

func (c *compiler[A]) chain(own *table, in int, sels []*selector) (ch chain[A]) {
	f, l := c.f, &c.f.rules[c.fam]
	table := func(t *table) finder[A] {
		if t != f.main && !(t.mapped(c.fam) && t.needs(c.fam)) {
			t = f.bare
		}
		return c.finderOf(t)
	}
	if l.rules == nil {
		ch.one = table(own)
		ch.steps = []step[A]{{table: ch.one}}
		return ch
	}
	jumps := map[int]uint32{} // step: Pref to go on with
	var prefs []uint32        // by step
	local := -1               // step that looks up the local table for all packets, where it is the last
	total := false            // some lookup is for all packets
	for i := range l.rules {
		r, sel := &l.rules[i], sels[i]
		if r.OIF || r.In != nil && !slices.Contains(r.In, uint16(in)) || r.L3mdev && own == f.main {
			if !r.Not {
				continue
			}
			sel = nil // it holds for all
		} else if r.Not && sel == nil {
			continue
		}
		s := step[A]{sel: sel, minBits: uint8(r.MinBits)}
		switch r.Action {
		case Nop:
			continue
		case Goto:
			if !slices.ContainsFunc(l.rules, func(o Rule) bool { return o.Pref == r.Goto }) {
				continue // the kernel goes on with the next, too
			}
			jumps[len(ch.steps)] = r.Goto
		case Lookup:
			t := own
			if r.L3mdev && own == f.main {
				continue // Not: there is no table to look up
			}
			if !r.L3mdev {
				t = l.tables[i]
			}
			if t != f.main && t.count[c.fam] == 0 {
				continue
			}
			s.table = table(t)
			whole := sel == nil && r.MinBits == 0
			total = total || whole
			if whole && t == f.main && local >= 0 && local == len(ch.steps)-1 {
				ch.steps[local], prefs[local] = s, r.Pref // main has the routes of both
				continue
			}
			if whole && t == f.local {
				local = len(ch.steps)
			}
		default:
			s.verdict = f.verdict[r.Action]
		}
		ch.steps, prefs = append(ch.steps, s), append(prefs, r.Pref)
		ch.keyed = ch.keyed || sel != nil
	}
	if !total {
		// Special-purpose prefixes are in all tables.
		ch.steps, prefs = append(ch.steps, step[A]{table: c.finderOf(f.bare)}), append(prefs, ^uint32(0))
	}
	for i, pref := range jumps {
		to := i + 1
		for to < len(prefs) && prefs[to] < pref {
			to++
		}
		ch.steps[i].skip = uint16(to)
	}
	if len(ch.steps) == 1 && ch.steps[0].sel == nil && ch.steps[0].minBits == 0 {
		ch.one = ch.steps[0].table
	}
	return ch
}
