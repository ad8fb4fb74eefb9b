package config

import (
	"fmt"
	"strconv"

	"millrace/control/rule"
)

// VRF is a routing table for the packets that come in by some ports (`ports[].vrf`).
type VRF struct {
	Name  string `yaml:"name"`
	Table uint32 `yaml:"table"` // by the kernel's numbers
}

// TableOf is the number of a routing table that is written as a number, as main, local or default, or as the name of
// a VRF of this configuration; "" is main.
func (c *Config) TableOf(s string) (uint32, error) {
	switch s {
	case "", "main":
		return rule.Main, nil
	case "local":
		return rule.Local, nil
	case "default":
		return rule.Default, nil
	}
	if t, ok := c.vrfTable(s); ok {
		return t, nil
	}
	n, err := strconv.ParseUint(s, 0, 32)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is neither a table's number, nor main, local, default or the name of a VRF in `vrfs`", s)
	}
	return uint32(n), nil
}

func (c *Config) vrfTable(name string) (uint32, bool) {
	for _, v := range c.VRFs {
		if v.Name == name {
			return v.Table, true
		}
	}
	return 0, false
}

// mainPref is the preference of the rule that looks up main.
const mainPref = 32766

// ParsedRules are the rules of a configuration that was checked. Those without a preference come before
// that of main, in the order of the file.
func (c *Config) ParsedRules() []rule.Rule {
	var rs []rule.Rule
	var unset []int
	for _, text := range c.Rules {
		r, set, err := rule.Parse(text, c.vrfTable)
		if err != nil {
			continue
		}
		if !set {
			unset = append(unset, len(rs))
		}
		rs = append(rs, r)
	}
	for i, at := range unset {
		rs[at].Pref = uint32(mainPref - len(unset) + i)
	}
	return rs
}

// maxRules bounds the rules of a configuration: a family has 4,096 in all.
const maxRules = 2000

func (k *checker) policy() {
	tables, names := map[uint32]string{}, map[string]string{}
	for i, v := range k.c.VRFs {
		key := fmt.Sprintf("vrfs[%d]", i)
		if k.need(v.Name != "", key, "name") {
			if _, err := strconv.ParseUint(v.Name, 0, 32); err == nil || v.Name == "main" || v.Name == "local" || v.Name == "default" || len(v.Name) > 15 {
				k.fail(key+".name", "%q cannot be a VRF's name: up to 15 characters, no number, and not main, local or default", v.Name)
			}
			if o := names[v.Name]; o != "" {
				k.fail(key+".name", "%q is the name of %s already", v.Name, o)
			}
			names[v.Name] = key
		}
		if !k.need(v.Table != 0, key, "table") {
			continue
		}
		if v.Table >= rule.Default && v.Table <= rule.Local {
			k.fail(key+".table", "%d is the table %s of those in no VRF; take another number", v.Table, rule.TableName(v.Table))
		}
		if o := tables[v.Table]; o != "" {
			k.fail(key+".table", "%d is the table of %s already", v.Table, o)
		}
		tables[v.Table] = key
	}
	if len(k.c.Rules) > maxRules {
		k.fail("rules", "%d rules are more than %d", len(k.c.Rules), maxRules)
	}
	seen := map[string]int{}
	for i, text := range k.c.Rules {
		key := fmt.Sprintf("rules[%d]", i)
		if _, _, err := rule.Parse(text, k.c.vrfTable); err != nil {
			k.fail(key, "%s", err)
		} else if o, twice := seen[text]; twice {
			k.fail(key, "rules[%d] says the same", o)
		}
		seen[text] = i
	}
}

// inVRF checks the keys of ports and VLANs that say where their packets are looked up.
func (k *checker) inVRF(vrf, filter, key string) {
	if vrf != "" {
		if _, ok := k.c.vrfTable(vrf); !ok {
			k.fail(key+".vrf", "there is no VRF %q in `vrfs`; VRFs of the kernel are followed without this key", vrf)
		}
	}
	k.oneOf(filter, key+".rp_filter", "off", "loose", "strict")
}
