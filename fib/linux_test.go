package fib

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// words are the rule in the words of ip rule; ok is false for what the kernel does not take from there.
func ruleWords(r *Rule) (l []string, ok bool) {
	say := func(w ...string) { l = append(l, w...) }
	if r.Not {
		say("not")
	}
	if r.From.IsValid() {
		say("from", r.From.String())
	} else {
		say("from", "all")
	}
	if r.To.IsValid() {
		say("to", r.To.String())
	}
	if r.In != nil {
		say("iif", append([]string{"lo"}, linuxIfaces...)[r.In[0]])
	}
	if r.OIF {
		say("oif", linuxIfaces[0])
	}
	if r.Mask != 0 {
		say("fwmark", fmt.Sprintf("%d/%d", r.Mark, r.Mask))
	}
	if r.Proto != 0 {
		say("ipproto", fmt.Sprint(r.Proto))
	}
	if r.SPorts.Hi != 0 {
		say("sport", fmt.Sprintf("%d-%d", r.SPorts.Lo, r.SPorts.Hi))
	}
	if r.DPorts.Hi != 0 {
		say("dport", fmt.Sprintf("%d-%d", r.DPorts.Lo, r.DPorts.Hi))
	}
	say("pref", fmt.Sprint(r.Pref))
	switch r.Action {
	case Lookup:
		table := r.Table
		if table == 0 {
			table = TableMain
		}
		say("lookup", fmt.Sprint(table))
		if r.MinBits != 0 {
			say("suppress_prefixlength", fmt.Sprint(r.MinBits-1))
		}
	case Goto:
		say("goto", fmt.Sprint(r.Goto))
	default:
		say(map[Action]string{Nop: "nop", RuleBlackhole: "blackhole", RuleUnreachable: "unreachable", RuleProhibit: "prohibit"}[r.Action])
	}
	return l, r.TOSMask == 0 && !r.L3mdev
}

var linuxIfaces = []string{"w1", "w2", "w3", "w4"}

// TestLinux: what the kernel says of packets by `ip route get`, by the same rules and routes, and with rp_filter.
func TestLinux(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	for fam, family := range []string{"-4", "-6"} {
		t.Run(family, func(t *testing.T) { testLinux(t, fam, family) })
	}
}

func testLinux(t *testing.T, fam int, family string) {
	ns := testnet.New(t)
	testnet.Veth(t, ns, "w1", ns, "w2")
	testnet.Veth(t, ns, "w3", ns, "w4")
	for _, s := range []string{"net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0"} {
		ns.Run(t, "sysctl", "-qw", s)
	}
	r := newRig(t)
	rnd := rand.New(rand.NewPCG(7, 8+uint64(fam)))
	w := &ruleWorld{rnd, fam == 1}
	j := &judge{vrf: map[uint16]uint32{}}
	for i, d := range linuxIfaces {
		net := fmt.Sprintf("100.%d.0.1/24", i+1)
		if fam == 1 {
			net = fmt.Sprintf("2001:db8:a%d::1/64", i+1)
		}
		ns.Run(t, "ip", "addr", "add", net, "dev", d)
		ns.Run(t, "sysctl", "-qw", "net.ipv4.conf."+d+".rp_filter=0")
		r.iface(uint16(i+1), true)
	}
	via := func(iface uint16, n byte) netip.Addr {
		if fam == 1 {
			return netip.AddrFrom16([16]byte{0x20, 1, 0x0d, 0xb8, 4: 0, 5: 0xa0 + byte(iface), 15: n + 1})
		}
		return netip.AddrFrom4([4]byte{100, byte(iface), 0, n + 1})
	}
	for i := range uint16(4) {
		for n := range byte(2) {
			h := NextHop{Via: via(i+1, n+1), Iface: i + 1}
			r.SetNeighbour(h.Iface, h.Via, macOf(h))
		}
	}
	l := newLane(t, r.tab, graph.VectorSize)
	rs := runners(l.w, RPF4(r.FIB), RPF6(r.FIB), LookupNextHop4(r.FIB), LookupNextHop6(r.FIB))
	asked, rules := map[string]int{}, 0
	for range 6 {
		// Standard rules first: the kernel looks for the gateways of routes by them.
		ns.Run(t, "ip", family, "rule", "flush")
		ns.Command("ip", family, "rule", "add", "pref", "32767", "lookup", "default").Run()
		ns.Command("ip", family, "rule", "add", "pref", "32766", "lookup", "main").Run()
		for k := range 6 {
			x := w.route()
			if x.Table == 0 && k > 3 {
				x.Table = 100
			}
			for i := range x.NextHops {
				h := &x.NextHops[i]
				h.Via = via(h.Iface, byte(1+rnd.IntN(2)))
			}
			x.NextHops = x.NextHops[:min(len(x.NextHops), 1)] // the kernel spreads flows in a way of its own
			table := x.Table
			if table == 0 {
				table = TableMain
			}
			if slices.ContainsFunc(j.routes, func(o Route) bool { return o.Prefix == x.Prefix && o.Table == x.Table }) {
				continue
			}
			args := []string{family, "route", "add"}
			if x.Type != Unicast {
				args = append(args, x.Type.String())
			}
			args = append(args, x.Prefix.String(), "table", fmt.Sprint(table))
			if x.Type == Local {
				args = append(args, "dev", "lo")
			}
			for _, h := range x.NextHops {
				args = append(args, "via", h.Via.String(), "dev", linuxIfaces[h.Iface-1])
			}
			ns.Run(t, "ip", args...)
			j.routes = append(j.routes, x)
			if err := r.Update([]Route{x}, nil); err != nil {
				t.Fatal(err)
			}
		}
		list := []Rule{{Table: TableLocal}, {Pref: 32766}, {Pref: 32767, Table: 253}}
		for range 5 {
			x := w.rule()
			x.Pref %= 30000
			x.Pref++
			words, ok := ruleWords(&x)
			if !ok || x.Action == Goto && x.Goto <= x.Pref || slices.ContainsFunc(list, func(o Rule) bool { return o.Pref == x.Pref }) {
				continue
			}
			rules++
			ns.Run(t, "ip", append([]string{family, "rule", "add"}, words...)...)
			list = append(list, x)
		}
		j.rules[fam] = list
		if err := r.SetRules(j.rules[0], j.rules[1]); err != nil {
			t.Fatal(err)
		}
		for i := range uint16(4) { // IPv6 has no rp_filter
			filter := rnd.IntN(3) * (1 - fam)
			ns.Run(t, "sysctl", "-qw", fmt.Sprintf("net.ipv4.conf.%s.rp_filter=%d", linuxIfaces[i], filter))
			r.tab.Ifaces[i+1].Flags = graph.IfUp | []uint16{0, graph.IfStrict4, graph.IfLoose4}[filter]
			r.SetIface(i+1, IfaceOptions{})
		}
		for range 25 {
			p := pkt{in: uint16(1 + rnd.IntN(4)), src: w.addr(), dst: w.addr(), mark: uint32(rnd.IntN(4)), proto: packet.ProtoUDP, sport: uint16(1 + rnd.IntN(8)), dport: uint16(1 + rnd.IntN(8))}
			if slices.ContainsFunc(j.routes, func(o Route) bool { return o.Type == Local && o.Prefix.Contains(p.src) }) {
				continue // the router's own addresses are no sources to Linux, with or without rp_filter
			}
			l.fillRuled([]pkt{p})
			got := l.fates(t, r, rs)[0]
			if got != j.fate(p, r.tab.Ifaces[p.in].Flags) {
				t.Fatalf("%+v: %s, the evaluator says %s", p, got, j.fate(p, r.tab.Ifaces[p.in].Flags))
			}
			args := []string{"netns", "exec", ns.Name, "ip", family, "route", "get", p.dst.String(), "from", p.src.String(), "iif", linuxIfaces[p.in-1],
				"mark", fmt.Sprint(p.mark), "ipproto", "udp", "sport", fmt.Sprint(p.sport), "dport", fmt.Sprint(p.dport)}
			out, _ := ns.Command("ip", args[4:]...).CombinedOutput()
			want := linuxFate(string(out), linuxIfaces)
			asked[want]++
			if strings.HasPrefix(got, "rpf/") && want != "source" && want != "invalid" {
				got = j.fate(p, 0) // the kernel judges the destination first
			}
			switch {
			case want == "invalid" && (got == XRuleBlackhole.String() || got == XBlackhole.String()):
			case want == "unreachable" && (got == XNoRoute.String() || got == XRuleUnreachable.String() || got == XUnreachable.String()):
			case want == "prohibit" && (got == XRuleProhibit.String() || got == XProhibit.String()):
			case strings.HasPrefix(got, "rpf/"): // Linux 6.14 and later call these invalid
			case want == "local" && got == XLocal.String():
			case want == got[:1]:
			default:
				t.Errorf("%+v: %s, the kernel says %s: %s\nrules %+v\nroutes %+v", p, got, want, out, list, j.routes)
				t.Log(ns.Run(t, "ip", family, "rule"))
				return
			}
		}
	}
	t.Log(rules, "rules", asked)
	if rules < 10 || len(asked) < 5 {
		t.Errorf("%d rules, answers %v", rules, asked)
	}
}

// linuxFate reads what `ip route get` printed.
func linuxFate(out string, ifaces []string) string {
	switch {
	case strings.Contains(out, "Invalid cross-device link"):
		return "source"
	case strings.Contains(out, "Invalid argument"), strings.HasPrefix(out, "blackhole"):
		return "invalid"
	case strings.Contains(out, "Permission denied"), strings.HasPrefix(out, "prohibit"):
		return "prohibit"
	case strings.Contains(out, "unreachable"), strings.Contains(out, "No route to host"):
		return "unreachable"
	case strings.HasPrefix(out, "local"):
		return "local"
	}
	for i, d := range ifaces {
		if strings.Contains(out, "dev "+d+" ") {
			return fmt.Sprint(i + 1)
		}
	}
	return out
}
