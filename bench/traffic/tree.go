package traffic

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"millrace/internal/yamltree"
)

// node is a value of the profile with the path of its key. A mistake is noted where it stands, and
// reading goes on.
type node struct {
	f   *yamltree.File
	n   ast.Node // nil where the value is left empty
	pos ast.Node // where mistakes are
	key string
}

func (n node) fail(format string, args ...any) { n.f.Fail(n.pos, n.key, format, args...) }

// sub is the node of a value below n.
func (n node) sub(v, pos ast.Node, key string) (node, bool) {
	s := node{n.f, nil, pos, key}
	if v == nil {
		return s, true
	}
	if v = n.f.Plain(v, key); v == nil {
		return s, false
	}
	if _, null := v.(*ast.NullNode); !null {
		s.n, s.pos = v, v
	}
	return s, true
}

// words is the text of a value that is a single one; anything else is noted.
func (n node) text() (string, bool) {
	if n.n != nil {
		if s, ok := yamltree.Scalar(n.n); ok {
			return strings.TrimSpace(s), true
		}
		n.fail("one value is wanted here, not %s", yamltree.KindOf(n.n))
		return "", false
	}
	n.fail("a value is missing")
	return "", false
}

func (n node) isMap() bool {
	if n.n == nil {
		return false
	}
	_, ok := yamltree.Pairs(n.n)
	return ok
}

func (n node) isList() bool { _, ok := n.n.(*ast.SequenceNode); return ok }

// items are the entries of a list; a single value is a list of one.
func (n node) items() (l []node) {
	seq, ok := n.n.(*ast.SequenceNode)
	if !ok {
		if n.n != nil {
			return []node{n}
		}
		return nil
	}
	for i, v := range seq.Values {
		if s, ok := n.sub(v, v, fmt.Sprintf("%s[%d]", n.key, i)); ok {
			l = append(l, s)
		}
	}
	return l
}

// object is a mapping's values by key.
type object struct {
	node
	vals map[string]node
}

func (o object) has(key string) bool { _, ok := o.vals[key]; return ok }

// keys reads a mapping that may have some keys. A value left empty is an empty mapping.
func (n node) keys(known ...string) object {
	o := object{n, map[string]node{}}
	if n.n == nil {
		return o
	}
	pairs, ok := yamltree.Pairs(n.n)
	if !ok {
		n.fail("keys with values are wanted here (%s), not %s", strings.Join(known, ", "), yamltree.KindOf(n.n))
		return o
	}
next:
	for _, kv := range pairs {
		name := kv.Key.GetToken().Value
		key := yamltree.Join(n.key, name)
		for _, k := range known {
			if k != name {
				continue
			}
			if _, twice := o.vals[name]; twice {
				n.f.Fail(kv.Key, key, "is there twice")
			} else if v, ok := n.sub(kv.Value, kv.Key, key); ok {
				o.vals[name] = v
			}
			continue next
		}
		n.f.Fail(kv.Key, key, "%s", yamltree.Unknown(name, known))
	}
	return o
}

// word reads one of some words.
func (o object) word(key, def string, words ...string) string {
	n, ok := o.vals[key]
	if !ok {
		return def
	}
	s, ok := n.text()
	if !ok {
		return def
	}
	for _, w := range words {
		if s == w {
			return s
		}
	}
	n.fail("%s", yamltree.OneOf(s, words))
	return def
}

// on reads a switch.
func (o object) on(key string, def bool) bool {
	n, ok := o.vals[key]
	if !ok {
		return def
	}
	s, ok := n.text()
	if !ok {
		return def
	}
	switch s {
	case "true", "on", "yes":
		return true
	case "false", "off", "no":
		return false
	}
	n.fail("%q is neither on nor off", s)
	return def
}

// count reads a number with an optional k, M or G, between lo and hi.
func (o object) count(key string, def, lo, hi uint64) uint64 {
	n, ok := o.vals[key]
	if !ok {
		return def
	}
	s, ok := n.text()
	if !ok {
		return def
	}
	x, ok := parseCount(s)
	if !ok {
		n.fail("%q is not a whole number such as 1000 or 10k", s)
		return def
	}
	if x < lo || x > hi {
		n.fail("%d is not between %d and %d", x, lo, hi)
		return def
	}
	return x
}

func parseCount(s string) (uint64, bool) {
	if x, err := strconv.ParseUint(s, 0, 64); err == nil {
		return x, true
	}
	f, ok := scaled(s)
	if !ok || f != float64(uint64(f)) || f >= 1<<53 {
		return 0, false
	}
	return uint64(f), true
}

// scaled reads a number with an optional k, M, G behind it.
func scaled(s string) (float64, bool) {
	by := 1.0
	if s != "" {
		switch s[len(s)-1] {
		case 'k', 'K':
			by = 1e3
		case 'm', 'M':
			by = 1e6
		case 'g', 'G':
			by = 1e9
		}
	}
	if by != 1 {
		s = s[:len(s)-1]
	}
	if s == "" || strings.Trim(s, "0123456789.") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0, false
	}
	return f * by, true
}

// duration reads 10us, 1.5s; what is longer than a week is a mistake.
func (o object) duration(key string, def time.Duration) time.Duration {
	n, ok := o.vals[key]
	if !ok {
		return def
	}
	s, ok := n.text()
	if !ok {
		return def
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 || d > 7*24*time.Hour {
		n.fail("%q is not a time such as 10us, 5ms or 1.5s", s)
		return def
	}
	return d
}

func mappingKeys(n node) (l []string) {
	if n.n == nil {
		return nil
	}
	pairs, _ := yamltree.Pairs(n.n)
	for _, kv := range pairs {
		l = append(l, kv.Key.GetToken().Value)
	}
	return l
}
