package router

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/rule"
)

// ListRules implements api.Backend.
func (r *Router) ListRules(_ context.Context, q *v1.ListRulesRequest) (*v1.Rules, error) {
	if q.Family != "" && q.Family != "ipv4" && q.Family != "ipv6" {
		return nil, fmt.Errorf("%w: family %q is neither ipv4 nor ipv6", api.ErrInvalid, q.Family)
	}
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, _ := r.allRules()
	o := &v1.Rules{Error: r.ruleErr}
	for _, f := range []uint8{4, 6} {
		name := fmt.Sprintf("ipv%d", f)
		if q.Family != "" && q.Family != name {
			continue
		}
		// Of equal rules those of the configuration come first.
		own := map[rule.Rule]int{}
		for _, x := range r.cfg.ParsedRules() {
			own[x]++
		}
		vrf := len(r.hot) != 0
		for i := range all {
			vrf = vrf && !(all[i].L3mdev && (all[i].Family == f || all[i].Family == 0))
		}
		say := func(k rule.Rule, source, why string) {
			_, text, _ := strings.Cut(k.String(), ": ")
			o.Rules = append(o.Rules, &v1.Rule{Family: name, Pref: k.Pref, Text: text, Table: k.Table, Source: source, Why: why})
		}
		const vrfPref = 1000
		for i := range all {
			k := all[i]
			if vrf && k.Pref > vrfPref {
				// The FIB has it where nobody gave one, as the kernel does with its first VRF.
				say(rule.Rule{Family: f, Pref: vrfPref, L3mdev: true, SuppressBits: -1, SuppressGroup: -1}, "standard", "")
				vrf = false
			}
			if k.Family != 0 && k.Family != f {
				continue
			}
			source := "kernel"
			switch {
			case own[k] > 0:
				own[k]--
				source = "config"
			case slices.Contains(rule.Standard(), stripped(k)):
				source = "standard"
			}
			_, why := r.fibRule(&all[i])
			say(k, source, why)
		}
	}
	return o, nil
}

// stripped is a rule without who brought it.
func stripped(k rule.Rule) rule.Rule {
	k.Protocol = 0
	return k
}
