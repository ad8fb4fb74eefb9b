package config

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"

	yaml "github.com/goccy/go-yaml"
)

// Op says what happens to a thing.
type Op uint8

const (
	Added Op = iota
	Removed
	Changed
)

func (o Op) String() string { return [...]string{"added", "removed", "changed"}[o] }

// Change is one difference between two configurations.
type Change struct {
	Op Op
	// Kind is "port", "vlan", "route", "route file", "neighbour", or the key of a section: "pool", "workers", ...
	Kind string
	// Name is the port's or VLAN's name, the route's destination, the neighbour's address and port; "" for sections.
	Name string
	// Key is the changed key of the thing, for Changed: "mtu".
	Key      string
	Old, New string // as in the file; "" where there is nothing
}

// String tells the change in words: "port eth0: mtu 1500 -> 9000".
func (c Change) String() string {
	thing := c.Kind
	if c.Name != "" {
		thing += " " + c.Name
	}
	switch {
	case c.Op == Added:
		return strings.TrimSuffix(fmt.Sprintf("%s added: %s", thing, c.New), ": ")
	case c.Op == Removed:
		return strings.TrimSuffix(fmt.Sprintf("%s removed: %s", thing, c.Old), ": ")
	case c.Old == "":
		return fmt.Sprintf("%s: %s set to %s", thing, c.Key, c.New)
	case c.New == "":
		return fmt.Sprintf("%s: %s %s removed", thing, c.Key, c.Old)
	}
	return fmt.Sprintf("%s: %s %s -> %s", thing, c.Key, c.Old, c.New)
}

// Diff lists what changes from one configuration to another: removals first,
// in the order in which they can be applied. Ports and VLANs are compared by name,
// routes by destination and metric, neighbours by address and port.
func Diff(from, to *Config) []Change {
	var d differ
	things(&d, "neighbour", from.Neighbours, to.Neighbours, func(n *Neighbour) string { return n.Address.String() + " on " + n.Port })
	things(&d, "rule", ruleLines(from), ruleLines(to), func(r *ruleLine) string { return r.Text })
	things(&d, "route", from.Routes, to.Routes, routeName)
	things(&d, "route file", from.Files, to.Files, func(f *RouteFile) string { return f.File })
	things(&d, "multicast route", from.Multicast.Routes, to.Multicast.Routes, mrouteName)
	things(&d, "boundary", from.Multicast.Boundaries, to.Multicast.Boundaries, func(b *Boundary) string { return b.Port + " for " + b.Groups.String() })
	things(&d, "vlan", vlans(from), vlans(to), func(v *vlanOf) string { return v.Name })
	things(&d, "vrf", from.VRFs, to.VRFs, func(v *VRF) string { return fmt.Sprintf("%s table %d", v.Name, v.Table) })
	things(&d, "port", from.Ports, to.Ports, func(p *Port) string { return p.Name })
	for _, s := range []struct {
		kind string
		a, b any
	}{
		{"pool", from.Pool, to.Pool}, {"workers", from.Workers, to.Workers}, {"icmp", from.ICMP, to.ICMP}, {"multipath", from.Multipath, to.Multipath}, {"kernel", from.Kernel, to.Kernel},
		{"fpm", from.FPM, to.FPM},
		{"api", from.API, to.API}, {"metrics", from.Metrics, to.Metrics}, {"log", from.Log, to.Log},
	} {
		d.fields(s.kind, "", reflect.ValueOf(s.a), reflect.ValueOf(s.b))
	}
	slices.SortStableFunc(d.removed, func(a, b Change) int { return rank(a) - rank(b) })
	slices.SortStableFunc(d.rest, func(a, b Change) int { return rank(b) - rank(a) })
	return append(d.removed, d.rest...)
}

// rank orders kinds by what they use: what is used comes later.
func rank(c Change) int {
	return slices.Index([]string{"neighbour", "route", "route file", "multicast route", "boundary", "rule", "vlan", "port", "vrf"}, c.Kind)
}

func routeName(r *Route) string {
	s := r.To.String()
	if r.Metric != 0 {
		s += fmt.Sprintf(" metric %d", r.Metric)
	}
	if r.Table != "" {
		s += " table " + r.Table
	}
	return s
}

func mrouteName(r *Mroute) string {
	if !r.Source.IsValid() {
		return "(*, " + r.Group.String() + ")"
	}
	return fmt.Sprintf("(%s, %s)", r.Source, r.Group)
}

// ruleLine is a rule with its place among those that have no preference of their own.
type ruleLine struct {
	Text  string `yaml:"name"`
	Place string `yaml:"place"`
}

func ruleLines(c *Config) []ruleLine {
	l := make([]ruleLine, len(c.Rules))
	for i, r := range c.ParsedRules() {
		l[i] = ruleLine{c.Rules[i], fmt.Sprint("pref ", r.Pref)}
	}
	return l
}

// vlanOf is a VLAN as a thing of its own.
type vlanOf struct {
	Port string `yaml:"port"`
	Vlan `yaml:",inline"`
}

func vlans(c *Config) []vlanOf {
	var vs []vlanOf
	for _, p := range c.Ports {
		for _, v := range p.Vlans {
			vs = append(vs, vlanOf{p.Name, v})
		}
	}
	return vs
}

type differ struct{ removed, rest []Change }

func things[T any](d *differ, kind string, from, to []T, name func(*T) string) {
	find := func(in []T, n string) *T {
		for i := range in {
			if name(&in[i]) == n {
				return &in[i]
			}
		}
		return nil
	}
	for i := range from {
		if n := name(&from[i]); find(to, n) == nil {
			d.removed = append(d.removed, Change{Op: Removed, Kind: kind, Name: n, Old: summary(reflect.ValueOf(from[i]))})
		}
	}
	for i := range to {
		n := name(&to[i])
		if o := find(from, n); o == nil {
			d.rest = append(d.rest, Change{Op: Added, Kind: kind, Name: n, New: summary(reflect.ValueOf(to[i]))})
		} else {
			d.fields(kind, n, reflect.ValueOf(*o), reflect.ValueOf(to[i]))
		}
	}
}

// identity are the keys that name a thing: they stand in Change.Name. Those of multicast have others.
var (
	identity = []string{"name", "to", "file", "metric", "table", "address", "vlans"}
	mroutes  = []string{"group", "source", "port", "groups"}
)

func identityOf(t reflect.Type) []string {
	switch t {
	case reflect.TypeFor[Mroute](), reflect.TypeFor[Boundary]():
		return mroutes
	}
	return identity
}

func (d *differ) fields(kind, name string, a, b reflect.Value) {
	for i := range a.NumField() {
		f := a.Type().Field(i)
		if f.Anonymous {
			d.fields(kind, name, a.Field(i), b.Field(i))
			continue
		}
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if slices.Contains(identityOf(a.Type()), key) {
			continue
		}
		x, y := fieldText(f, a.Field(i)), fieldText(f, b.Field(i))
		if x == y {
			continue
		}
		if f.Name == "Secret" {
			x, y = hide(x), hide(y)
		}
		d.rest = append(d.rest, Change{Op: Changed, Kind: kind, Name: name, Key: key, Old: x, New: y})
	}
}

func hide(s string) string {
	if s == "" {
		return ""
	}
	return "(secret)"
}

// summary is a thing in one line, without what names it.
func summary(v reflect.Value) string {
	var s []string
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if f.Anonymous {
			if t := summary(v.Field(i)); t != "" {
				s = append(s, t)
			}
			continue
		}
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		t := fieldText(f, v.Field(i))
		if slices.Contains(identityOf(v.Type()), key) || t == "" {
			continue
		}
		if f.Name == "Secret" {
			t = hide(t)
		}
		s = append(s, key+" "+t)
	}
	return strings.Join(s, ", ")
}

// fieldText is a field as it is written in the file; "" for one that would be left out.
func fieldText(f reflect.StructField, v reflect.Value) string {
	if v.IsZero() && strings.Contains(f.Tag.Get("yaml"), ",omit") || v.Kind() == reflect.Slice && v.Len() == 0 {
		return ""
	}
	return text(v)
}

func text(v reflect.Value) string {
	if x, ok := v.Interface().(encoding.TextMarshaler); ok {
		b, err := x.MarshalText()
		if err != nil {
			return err.Error()
		}
		return string(b)
	}
	if v.Kind() != reflect.Slice {
		return fmt.Sprint(v.Interface())
	}
	s := make([]string, v.Len())
	for i := range s {
		s[i] = text(v.Index(i))
	}
	if len(s) == 1 {
		return s[0]
	}
	return "[" + strings.Join(s, ", ") + "]"
}

// YAML writes the configuration as a file that Parse reads back.
func (c *Config) YAML() []byte {
	b, err := yaml.MarshalWithOptions(c, yaml.IndentSequence(true))
	if err != nil {
		panic("config: " + err.Error())
	}
	return b
}
