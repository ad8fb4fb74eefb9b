package fib

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// pkt is a packet as rules see it.
type pkt struct {
	in           uint16
	src, dst     netip.Addr
	mark         uint32
	tos, proto   uint8
	sport, dport uint16
	frag         bool
}

// judge is the obvious evaluator: all rules in turn, all routes of a table in turn.
type judge struct {
	routes []Route
	vrf    map[uint16]uint32 // by interface, where it is not main
	rules  [2][]Rule         // nil for none
}

func contains(p netip.Prefix, a netip.Addr) bool { return !p.IsValid() || p.Contains(a) }

// holds: the rule is for the packet.
func (j *judge) holds(r *Rule, p pkt, vrf uint32) bool {
	sport, dport := p.sport, p.dport
	if p.frag || p.proto != packet.ProtoUDP && p.proto != packet.ProtoTCP {
		sport, dport = 0, 0
	}
	in := func(r Ports, n uint16) bool { return r == Ports{} || r.Lo <= n && n <= r.Hi }
	ok := contains(r.From, p.src) && contains(r.To, p.dst) && (r.In == nil || slices.Contains(r.In, p.in)) && !r.OIF &&
		p.mark&r.Mask == r.Mark && p.tos&r.TOSMask == r.TOS && (r.Proto == 0 || r.Proto == p.proto) &&
		in(r.SPorts, sport) && in(r.DPorts, dport) && (!r.L3mdev || vrf != 0)
	return ok != r.Not
}

// in is the best route of a table; nil where there is none, or where it counts for none.
func (j *judge) in(table uint32, a netip.Addr, minBits int) *Route {
	var best *Route
	for i := range j.routes {
		r := &j.routes[i]
		if r.Table == table && r.Prefix.Contains(a) && (best == nil || r.Prefix.Bits() > best.Prefix.Bits()) {
			best = r
		}
	}
	if best == nil || best.Type == Throw {
		return nil
	}
	if drops := best.Type == Blackhole || best.Type == Unreachable || best.Type == Prohibit; !drops && best.Prefix.Bits() < minBits {
		return nil
	}
	return best
}

// decide is the route that a packet takes, or the reason why it has none.
func (j *judge) decide(p pkt, vrf uint32) (*Route, graph.Reason) {
	fam := family(p.dst)
	if j.rules[fam] == nil {
		if vrf == 0 {
			if r := j.in(TableLocal, p.dst, 0); r != nil {
				return r, 0
			}
		}
		return j.in(vrf, p.dst, 0), XNoRoute
	}
	rules := slices.Clone(j.rules[fam])
	if !slices.ContainsFunc(rules, func(r Rule) bool { return r.L3mdev }) {
		rules = append(rules, Rule{Pref: 1000, L3mdev: true})
	}
	slices.SortStableFunc(rules, func(a, b Rule) int { return int(a.Pref) - int(b.Pref) })
	from := uint32(0)
	for i := range rules {
		r := &rules[i]
		if r.Pref < from || !j.holds(r, p, vrf) {
			continue
		}
		switch r.Action {
		case Goto:
			if slices.ContainsFunc(rules, func(o Rule) bool { return o.Pref == r.Goto }) {
				from = r.Goto
			}
		case RuleBlackhole:
			return nil, XRuleBlackhole
		case RuleUnreachable:
			return nil, XRuleUnreachable
		case RuleProhibit:
			return nil, XRuleProhibit
		case Lookup:
			table := r.Table
			if r.L3mdev {
				if table = vrf; vrf == 0 {
					continue
				}
			}
			if x := j.in(table, p.dst, r.MinBits); x != nil {
				return x, 0
			}
		}
	}
	return nil, XNoRoute
}

// fate is what becomes of the packet, in the words of rig.way.
func (j *judge) fate(p pkt, flags uint16) string {
	loose, strict := uint16(graph.IfLoose4), uint16(graph.IfStrict4)
	if family(p.dst) == 1 {
		loose, strict = graph.IfLoose6, graph.IfStrict6
	}
	if flags&(loose|strict) != 0 {
		q := p
		q.src, q.dst, q.sport, q.dport, q.mark, q.in = p.dst, p.src, p.dport, p.sport, 0, 0
		r, _ := j.decide(q, j.vrf[p.in])
		if r == nil || r.Type != Unicast {
			if flags&strict != 0 {
				return XStrict.String()
			}
			return XLoose.String()
		}
		if flags&strict != 0 && !slices.ContainsFunc(r.NextHops, func(h NextHop) bool { return h.Iface == p.in }) {
			return XStrict.String()
		}
	}
	r, why := j.decide(p, j.vrf[p.in])
	switch {
	case r == nil:
		return why.String()
	case r.Type != Unicast:
		return reasonOf[r.Type].String()
	}
	var ways []string
	for _, h := range r.NextHops {
		ways = append(ways, fmt.Sprintf("%d/%v", h.Iface, macOf(h)))
	}
	return strings.Join(ways, " ")
}

func macOf(h NextHop) pmd.MAC {
	b := h.Via.As16()
	return pmd.MAC{2, 0, 0, 0, byte(h.Iface), b[15]}
}

// world of rules: a few addresses, so that rules, routes and packets meet.
type ruleWorld struct {
	rnd *rand.Rand
	six bool
}

func (w *ruleWorld) addr() netip.Addr {
	n := byte(w.rnd.IntN(32))
	if w.six {
		return netip.AddrFrom16([16]byte{0x20, 1, 13, 0xb8, 6: n >> 3, 15: n & 7})
	}
	return netip.AddrFrom4([4]byte{20, n >> 3, 0, n & 7})
}

func (w *ruleWorld) prefix() netip.Prefix {
	bits := []int{0, 8, 14, 16, 16, 29, 31, 32}
	if w.six {
		bits = []int{0, 32, 54, 56, 56, 125, 127, 128}
	}
	return netip.PrefixFrom(w.addr(), bits[w.rnd.IntN(len(bits))]).Masked()
}

func (w *ruleWorld) ports() Ports {
	lo := uint16(1 + w.rnd.IntN(6))
	return Ports{lo, lo + uint16(w.rnd.IntN(3))}
}

func (w *ruleWorld) rule() Rule {
	r := Rule{Pref: uint32(1 + w.rnd.IntN(40000)), Table: []uint32{0, 10, 20, 100, 100, 200, 300}[w.rnd.IntN(7)]}
	one := func(n int) bool { return w.rnd.IntN(n) == 0 }
	r.Not = one(6)
	if one(3) {
		r.From = w.prefix()
	}
	if one(4) {
		r.To = w.prefix()
	}
	if one(5) {
		r.In = []uint16{uint16(w.rnd.IntN(5))}
	}
	if one(5) {
		r.Mask = uint32(1 + w.rnd.IntN(3))
		r.Mark = w.rnd.Uint32() & r.Mask
	}
	if one(8) {
		r.TOSMask, r.TOS = 0xfc, uint8(w.rnd.IntN(3))<<2
	}
	if one(8) {
		r.Proto = []uint8{packet.ProtoTCP, packet.ProtoUDP, 1}[w.rnd.IntN(3)]
	}
	if one(8) {
		r.SPorts = w.ports()
	}
	if one(8) {
		r.DPorts = w.ports()
	}
	r.OIF = one(20)
	if one(3) {
		r.MinBits = w.prefix().Bits()%32 + 1
	}
	switch w.rnd.IntN(16) {
	case 0:
		r.Action, r.Goto, r.MinBits = Goto, r.Pref+1+uint32(w.rnd.IntN(20000)), 0
	case 1, 2, 3, 4:
		r.Action, r.MinBits = []Action{Nop, RuleBlackhole, RuleUnreachable, RuleProhibit}[w.rnd.IntN(4)], 0
	case 5:
		r.L3mdev, r.Table = true, 0
	}
	return r
}

// list is a list of rules, with those that each kernel has.
func (w *ruleWorld) list() []Rule {
	if w.rnd.IntN(6) == 0 {
		return nil
	}
	l := []Rule{{Table: TableLocal}, {Pref: 32766}, {Pref: 32767, Table: 253}}
	for range w.rnd.IntN(7) {
		l = append(l, w.rule())
	}
	for i := range l { // so that some lead somewhere
		if r := &l[i]; r.Action == Goto && w.rnd.IntN(3) > 0 {
			if o := l[w.rnd.IntN(len(l))]; o.Pref > r.Pref {
				r.Goto = o.Pref
			}
		}
	}
	return l
}

func (w *ruleWorld) route() Route {
	r := Route{Table: []uint32{0, 0, 10, 20, 100, 200}[w.rnd.IntN(6)], Prefix: w.prefix(), Source: SourceKernel}
	switch w.rnd.IntN(10) {
	case 0:
		r.Type = []RouteType{Blackhole, Unreachable, Prohibit}[w.rnd.IntN(3)]
	case 1, 2:
		r.Type = Throw
	case 3:
		r.Type, r.Table, r.Prefix = Local, TableLocal, netip.PrefixFrom(w.addr(), w.addr().BitLen())
	default:
		for range 1 + w.rnd.IntN(5)/4 {
			r.NextHops = append(r.NextHops, NextHop{Via: netip.AddrFrom16([16]byte{0xfe, 0x80, 15: byte(1 + w.rnd.IntN(2))}), Iface: uint16(1 + w.rnd.IntN(4))})
		}
	}
	return r
}

// fillRuled makes the vector one of the packets.
func (l *lane) fillRuled(ps []pkt) {
	addrs := make([]netip.Addr, len(ps))
	for i := range ps {
		addrs[i] = ps[i].dst
	}
	l.fill(addrs, 0)
	v := &l.v
	same := true
	for i := range ps {
		p := &ps[i]
		b := packet.At(l.m[i]).Bytes()[14:]
		at := 20
		if p.dst.Is4() {
			h := packet.IPv4(b)
			h.Init(p.src.As4(), p.dst.As4(), p.proto, 50)
			h.SetTOS(p.tos)
			if p.frag {
				b[6], b[7] = 0x20, 0
			}
		} else {
			h := packet.IPv6(b)
			h.Init(p.src.As16(), p.dst.As16(), p.proto, 10)
			binary.BigEndian.PutUint32(b, 6<<28|uint32(p.tos)<<20)
			if at = 40; p.frag {
				b[6], b[40], b[41], b[42], b[43] = packet.ProtoFragment, p.proto, 0, 0, 1
				at = 46
			}
		}
		binary.BigEndian.PutUint16(b[at:], p.sport)
		binary.BigEndian.PutUint16(b[at+2:], p.dport)
		v.In[i], v.Mark[i] = p.in, p.mark
		same = same && p.in == ps[0].in
	}
	if v.Marks = true; same {
		v.From = ps[0].in
	}
}

// TestRules: the stages do with random packets by random rules and routes what the obvious evaluator says.
func TestRules(t *testing.T) {
	rounds := 120
	if testing.Short() {
		rounds = 40
	}
	testRules(t, 1, 2, rounds)
}

func FuzzRules(f *testing.F) {
	f.Add(uint64(3), uint64(4))
	f.Fuzz(func(t *testing.T, a, b uint64) { testRules(t, a, b, 8) })
}

func testRules(t *testing.T, a, b uint64, rounds int) {
	r := newRig(t)
	fresh := r.Stats()
	rnd := rand.New(rand.NewPCG(a, b))
	j := &judge{vrf: map[uint16]uint32{}}
	l := newLane(t, r.tab, graph.VectorSize)
	rs := runners(l.w, RPF4(r.FIB), RPF6(r.FIB), LookupNextHop4(r.FIB), LookupNextHop6(r.FIB))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint16(4) {
		must(r.iface(i+1, true))
		for n := range byte(2) {
			h := NextHop{Via: netip.AddrFrom16([16]byte{0xfe, 0x80, 15: n + 1}), Iface: i + 1}
			must(r.SetNeighbour(h.Iface, h.Via, macOf(h)))
		}
	}
	seen := map[string]int{}
	refused := 0
	for n := range rounds {
		w := &ruleWorld{rnd, n&1 == 1}
		// Other routes, interfaces and rules, in part.
		var add []Route
		var del []Key
		for range 6 {
			if len(j.routes) > 30 || len(j.routes) > 0 && rnd.IntN(3) == 0 {
				i := rnd.IntN(len(j.routes))
				if k := j.routes[i].Key(); !slices.ContainsFunc(add, func(x Route) bool { return x.Key() == k }) {
					del = append(del, k)
					j.routes = slices.Delete(j.routes, i, i+1)
				}
				continue
			}
			x := w.route()
			add = append(add, x)
			j.routes = slices.DeleteFunc(j.routes, func(o Route) bool { return o.Key() == x.Key() })
			j.routes = append(j.routes, x)
		}
		must(r.Update(add, del))
		if i := uint16(1 + rnd.IntN(4)); rnd.IntN(2) == 0 {
			j.vrf[i] = []uint32{0, 10, 20}[rnd.IntN(3)]
			hot, err := r.Table(j.vrf[i])
			must(err)
			e := &r.tab.Ifaces[i]
			e.Table = hot
			e.Flags = graph.IfUp | []uint16{0, 0, graph.IfLoose4, graph.IfStrict4, graph.IfLoose6, graph.IfStrict6, graph.IfStrict4 | graph.IfStrict6}[rnd.IntN(7)]
			must(r.SetIface(i, IfaceOptions{}))
			r.FreeTable(j.vrf[i])
		}
		if rnd.IntN(2) == 0 {
			rules := j.rules
			rules[n&1] = w.list()
			if err := r.SetRules(rules[0], rules[1]); err == nil {
				j.rules = rules
			} else if errors.Is(err, ErrInvalid) && strings.Contains(err.Error(), "local") {
				refused++
			} else {
				t.Fatal(err)
			}
		}
		ps := make([]pkt, []int{1, 3, 64, 256}[rnd.IntN(4)])
		in, one := uint16(1+rnd.IntN(4)), rnd.IntN(2) == 0
		for i := range ps {
			if !one {
				in = uint16(rnd.IntN(5))
			}
			ps[i] = pkt{in: in, src: w.addr(), dst: w.addr(), mark: uint32(rnd.IntN(4)), tos: uint8(rnd.IntN(12)), proto: []uint8{packet.ProtoTCP, packet.ProtoUDP, 1}[rnd.IntN(3)],
				sport: uint16(1 + rnd.IntN(8)), dport: uint16(1 + rnd.IntN(8)), frag: rnd.IntN(8) == 0}
		}
		l.fillRuled(ps)
		for i, got := range l.fates(t, r, rs) {
			want := j.fate(ps[i], r.tab.Ifaces[ps[i].in].Flags)
			if !slices.Contains(strings.Split(want, " "), got) {
				t.Fatalf("round %d: %+v: %s, want %s\nrules %+v\nroutes %+v", n, ps[i], got, want, j.rules[n&1], j.routes)
			}
			if p := ps[i]; !p.frag && !strings.HasPrefix(got, "rpf/") {
				q := Query{FlowKey: packet.FlowKey{Src: p.src, Dst: p.dst, Proto: p.proto}, In: p.in, TOS: p.tos, Mark: p.mark}
				if p.proto != 1 {
					q.SrcPort, q.DstPort = p.sport, p.dport
				}
				d := r.Decide(q)
				if d.Exit != 0 && d.Exit.String() != got || d.Exit == 0 && (strings.Contains(got, "lookup/") || d.Adj != l.v.Adj[i]) {
					t.Fatalf("round %d: %+v: %s, and Decide says %v, adjacency %d by rule %+v and table %d\nrules %+v\nroutes %+v", n, p, got, d.Exit, d.Adj, d.Rule, d.Table, j.rules[n&1], j.routes)
				}
			}
			seen[strings.Split(got, "/")[0]+got[strings.Index(got, "/"):][:2]]++
			if strings.Contains(got, "lookup/") || strings.Contains(got, "rpf/") {
				seen[got]++
			}
		}
	}
	if rounds >= 120 {
		for _, x := range []graph.Reason{XRuleBlackhole, XRuleProhibit, XRuleUnreachable, XNoRoute, XLocal, XLoose, XStrict, XBlackhole} {
			if seen[x.String()] == 0 {
				t.Errorf("no packet left for %v", x)
			}
		}
	}
	// Nothing is left when everything is taken away.
	must(r.SetRules(nil, nil))
	var del []Key
	for i := range j.routes {
		del = append(del, j.routes[i].Key())
	}
	must(r.Update(nil, del))
	for i := range uint16(4) {
		must(r.DelIface(i + 1))
	}
	r.dom.Wait()
	s := r.Stats()
	if r.bare != nil { // it stays
		s.Mapped -= 2
	}
	if s != fresh || r.policy4.Load() != nil || r.policy6.Load() != nil {
		t.Errorf("after removing everything:\n%+v, a new FIB has\n%+v", s, fresh)
	}
}
