package router

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"

	"go.uber.org/zap"

	"millrace/control/config"
	"millrace/control/rule"
	"millrace/fib"
	"millrace/pipeline/graph"
)

// syncRules brings the rules of the kernel and of the configuration into the FIB, and says which tables of the kernel
// are wanted. It is called after every change of rules, and of interfaces, which rules name.
func (r *Router) syncRules() {
	all, tables := r.allRules()
	if r.follower != nil && !slices.Equal(tables, r.extra) {
		r.extra = tables
		r.follower.Tables(tables)
	}
	var lists [2][]fib.Rule
	var odd []string
	for i := range all {
		x, why := r.fibRule(&all[i])
		if why != "" {
			odd = append(odd, fmt.Sprintf("rule %s: %s", all[i], why))
			continue
		}
		if all[i].Family != 6 {
			lists[0] = append(lists[0], x)
		}
		if all[i].Family != 4 {
			lists[1] = append(lists[1], x)
		}
	}
	for _, o := range odd {
		if !slices.Contains(r.oddRules, o) {
			r.log.Warn("a rule that cannot be followed", zap.String("why", o))
		}
	}
	r.oddRules = odd
	if reflect.DeepEqual(lists, r.given) {
		return
	}
	// Without rules packets would find nothing, and the FIB takes nil for tables without rules.
	err := r.fib.SetRules(slices.Concat([]fib.Rule{}, lists[0]), slices.Concat([]fib.Rule{}, lists[1]))
	r.ruleErr = ""
	if err != nil {
		r.ruleErr = err.Error()
		r.log.Error("the rules cannot be followed; those before stay in force", zap.Error(err))
		return
	}
	r.given = lists
}

// allRules are the rules of the kernel, or those that every kernel has, and of the configuration, by preference, and the tables that the
// configuration names.
func (r *Router) allRules() (all []rule.Rule, tables []uint32) {
	if r.cfg.Kernel.Follow && len(r.rules) != 0 {
		all = slices.Clone(r.rules)
	} else {
		all = rule.Standard()
	}
	own := r.cfg.ParsedRules()
	// Of equal preference those of the configuration come first.
	all = append(own, all...)
	slices.SortStableFunc(all, func(a, b rule.Rule) int { return cmp.Compare(a.Pref, b.Pref) })
	used := map[uint32]bool{}
	for _, v := range r.cfg.VRFs {
		used[v.Table] = true
	}
	for i := range own {
		if own[i].Table != 0 {
			used[own[i].Table] = true
		}
	}
	return all, slices.Sorted(maps.Keys(used))
}

var ruleActions = map[rule.Action]fib.Action{rule.Lookup: fib.Lookup, rule.Goto: fib.Goto, rule.Nop: fib.Nop,
	rule.Blackhole: fib.RuleBlackhole, rule.Unreachable: fib.RuleUnreachable, rule.Prohibit: fib.RuleProhibit}

// fibRule makes the FIB's rule; why is not empty for one that the FIB cannot have.
func (r *Router) fibRule(k *rule.Rule) (x fib.Rule, why string) {
	x = fib.Rule{Pref: k.Pref, Not: k.Not, From: k.From, To: k.To, OIF: k.OIF != "", Mark: k.Mark, Mask: k.Mask, TOS: k.TOS, TOSMask: k.TOSMask,
		Proto: k.Proto, SPorts: fib.Ports(k.SPorts), DPorts: fib.Ports(k.DPorts), L3mdev: k.L3mdev, Action: ruleActions[k.Action],
		Table: fibTable(k.Table), Goto: k.Goto, MinBits: k.SuppressBits + 1}
	switch {
	case k.Unknown != "":
		return x, "a condition that is not known here: " + k.Unknown
	case k.TunID != 0:
		return x, "tun_id is not supported"
	case k.SuppressGroup >= 0:
		return x, "suppress_ifgroup is not supported"
	case k.L3mdev && k.Action == rule.Lookup && k.SuppressBits >= 0:
		return x, "l3mdev with suppress_prefixlength is not supported"
	}
	if k.UID && k.UIDLo > 0 {
		x.OIF = true // forwarded packets count as root's
	}
	if k.IIF != "" {
		x.In = r.ifacesOf(k.IIF)
	}
	if k.L3mdev && k.Action != rule.Lookup {
		if k.IIF != "" {
			return x, "l3mdev with iif and an action is not supported"
		}
		x.L3mdev, x.In = false, r.inVRFs()
	}
	return x, ""
}

// fibTable is a table's number for the FIB, where main is 0.
func fibTable(t uint32) uint32 {
	if t == rule.Main {
		return 0
	}
	return t
}

// ifacesOf are the interfaces that a rule means by a name: one, those in a VRF, or by lo those of no packet that comes in.
// The result is not nil.
func (r *Router) ifacesOf(name string) []uint16 {
	in := []uint16{}
	if name == "lo" {
		return append(in, 0)
	}
	for _, id := range slices.Sorted(maps.Keys(r.ifaces)) {
		if i := r.ifaces[id]; i.name == name || i.index != 0 && r.known[i.index].Name == name || r.vrfOf(i) == name {
			in = append(in, id)
		}
	}
	return in
}

// inVRFs are all interfaces in VRFs; not nil.
func (r *Router) inVRFs() []uint16 {
	in := []uint16{}
	for _, id := range slices.Sorted(maps.Keys(r.ifaces)) {
		if r.tableOf(r.ifaces[id]) != 0 {
			in = append(in, id)
		}
	}
	return in
}

// vrfOf is the name of the VRF that an interface is in; "" for none.
func (r *Router) vrfOf(i *iface) string {
	if i.vrf != "" {
		return i.vrf
	}
	if m := r.known[r.known[i.index].Master]; i.index != 0 && m.Kind == "vrf" {
		return m.Name
	}
	return ""
}

// tableOf is the routing table, by the kernel's number, of packets that come in by an interface; 0 for main.
func (r *Router) tableOf(i *iface) uint32 {
	if i.vrf != "" {
		t, _ := r.cfg.TableOf(i.vrf)
		return fibTable(t)
	}
	if k, known := r.known[i.index]; known && i.index != 0 {
		return fibTable(k.Table)
	}
	return 0
}

// hotTable is the number of tableOf in the tables; ok is false where there is no room for it.
func (r *Router) hotTable(i *iface) (n uint16, ok bool) {
	t := r.tableOf(i)
	if t == 0 {
		return 0, true
	}
	n, held := r.hot[t]
	if !held {
		var err error
		if n, err = r.fib.Table(t); err != nil {
			r.note(err)
			return 0, false
		}
		r.hot[t] = n
	}
	return n, true
}

// freeTables gives back the tables that no interface is in any more.
func (r *Router) freeTables() {
	for t := range r.hot {
		used := false
		for _, i := range r.ifaces {
			used = used || r.tableOf(i) == t
		}
		if !used {
			delete(r.hot, t)
			r.fib.FreeTable(t)
		}
	}
}

const ifChecks = graph.IfLoose4 | graph.IfLoose6 | graph.IfStrict4 | graph.IfStrict6

// checkFlags say how the sources of an interface's packets are checked.
func (r *Router) checkFlags(i *iface) (flags uint16) {
	switch i.check {
	case "strict":
		return graph.IfStrict4 | graph.IfStrict6
	case "loose":
		return graph.IfLoose4 | graph.IfLoose6
	case "off":
		return 0
	}
	if k, known := r.known[i.index]; known && i.index != 0 && r.cfg.Kernel.Follow {
		switch k.RPFilter {
		case 1:
			return graph.IfStrict4
		case 2:
			return graph.IfLoose4
		}
	}
	return 0
}

// configure gives an interface what the configuration says of it, without its addresses.
func (i *iface) configure(p *config.Port) {
	i.vrf, i.check = p.VRF, p.RPFilter
	if i == i.port.main {
		return
	}
	i.vrf, i.check = "", ""
	for _, v := range p.Vlans {
		if v.Name == i.name {
			i.vrf, i.check = v.VRF, v.RPFilter
		}
	}
}
