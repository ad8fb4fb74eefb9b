package config

import (
	"encoding"
	"fmt"
	"math"
	"net/netip"
	"os"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"

	"millrace/internal/yamltree"
)

// Error is one mistake in a configuration.
type Error = yamltree.Error

// Errors are all mistakes in a configuration, in the order of the file.
type Errors = yamltree.Errors

// source is the file that a Config came from, with the position of each key.
type source struct {
	file string
	pos  map[string]yamltree.Position
}

// find gives the position of a key, or of the nearest one that holds it.
func (s *source) find(key string) (yamltree.Position, bool) {
	for {
		if p, ok := s.pos[key]; ok {
			return p, true
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return yamltree.Position{}, false
		}
		key = key[:i]
	}
}

// Load reads, decodes and checks a file.
func Load(path string) (*Config, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	return Parse(path, b)
}

// Parse decodes and checks a configuration; path is for messages. The error is of
// type Errors.
func Parse(path string, text []byte) (*Config, error) {
	c := Default()
	d := decoder{File: yamltree.File{Name: path}, pos: map[string]yamltree.Position{}}
	root := d.Parse(text, "a configuration is")
	if len(d.Errs) != 0 {
		return nil, d.Errs
	}
	if root != nil {
		d.decode(root, reflect.ValueOf(c).Elem(), "", "")
	}
	c.src = source{path, d.pos}
	c.fill()
	if len(d.Errs) == 0 {
		c.check(&d.Errs)
	}
	if len(d.Errs) != 0 {
		d.Errs.Sort()
		return nil, d.Errs
	}
	return c, nil
}

type decoder struct {
	yamltree.File
	pos   map[string]yamltree.Position
	depth int
}

// decode stores node n in v. Mistakes are collected; what is wrong stays as it was.
func (d *decoder) decode(n ast.Node, v reflect.Value, key, form string) {
	if n = d.Plain(n, key); n == nil {
		return
	}
	if d.depth++; d.depth > 32 {
		d.Fail(n, key, "nested too deeply")
		return
	}
	defer func() { d.depth-- }()
	if _, ok := n.(*ast.NullNode); ok {
		return
	}
	if key != "" {
		if _, ok := d.pos[key]; !ok {
			d.pos[key] = yamltree.At(n)
		}
	}
	if done := d.value(n, v, key, form); done {
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, key)
	case reflect.Slice:
		d.list(n, v, key, form)
	default:
		panic("config: no way to decode " + v.Type().String())
	}
}

// value decodes what is written as one word; false where v is a struct or list.
func (d *decoder) value(n ast.Node, v reflect.Value, key, form string) bool {
	_, isText := v.Addr().Interface().(encoding.TextUnmarshaler)
	if k := v.Kind(); !isText && (k == reflect.Struct || k == reflect.Slice) {
		return false
	}
	s, ok := yamltree.Scalar(n)
	if !ok {
		hint := ""
		if m, ok := n.(*ast.MappingNode); ok && len(m.Values) == 1 {
			hint = "; a value with colons inside brackets needs quotes, such as \"2001:db8::1/64\""
		}
		d.Fail(n, key, "one value is wanted here, not %s%s", yamltree.KindOf(n), hint)
		return true
	}
	var err error
	switch p := v.Addr().Interface().(type) {
	case *netip.Prefix:
		var x netip.Prefix
		if form == "dest" {
			x, err = ParseDest(s)
		} else {
			x, err = parsePrefix(s)
		}
		if err == nil {
			*p = x
		}
	case *netip.Addr:
		var x netip.Addr
		if x, err = parseAddr(s); err == nil {
			*p = x
		}
	case *time.Duration:
		var x time.Duration
		if x, err = parseDuration(s); err == nil {
			*p = x
		}
	case encoding.TextUnmarshaler:
		err = p.UnmarshalText([]byte(s))
	case *string:
		*p = s
	case *bool:
		switch s {
		case "true", "on", "yes":
			*p = true
		case "false", "off", "no":
			*p = false
		default:
			err = fmt.Errorf("%q is neither true nor false", s)
		}
	case *int:
		err = number(s, v, math.MinInt32, math.MaxInt32)
	case *uint16:
		err = number(s, v, 0, math.MaxUint16)
	case *uint32:
		err = number(s, v, 0, math.MaxUint32)
	default:
		panic("config: no way to decode " + v.Type().String())
	}
	if err != nil {
		d.Fail(n, key, "%s", err)
	}
	return true
}

func number(s string, v reflect.Value, lo, hi int64) error {
	x, err := strconv.ParseInt(s, 0, 64)
	if err != nil {
		return fmt.Errorf("%q is not a whole number", s)
	}
	if x < lo || x > hi {
		return fmt.Errorf("%d is not between %d and %d", x, lo, hi)
	}
	if v.CanInt() {
		v.SetInt(x)
	} else {
		v.SetUint(uint64(x))
	}
	return nil
}

func (d *decoder) list(n ast.Node, v reflect.Value, key, form string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		// A single gateway or address needs no brackets.
		if _, ok := yamltree.Scalar(n); ok && v.Type().Elem().Kind() == reflect.Struct && isValue(v.Type().Elem()) {
			e := reflect.New(v.Type().Elem()).Elem()
			before := len(d.Errs)
			if d.decode(n, e, key, form); len(d.Errs) == before {
				v.Set(reflect.Append(v, e))
			}
			return
		}
		d.Fail(n, key, "a list is wanted here, not %s: write each entry on a line of its own behind `- `", yamltree.KindOf(n))
		return
	}
	for i, item := range seq.Values {
		e := reflect.New(v.Type().Elem()).Elem()
		d.decode(item, e, fmt.Sprintf("%s[%d]", key, i), form)
		v.Set(reflect.Append(v, e))
	}
}

func isValue(t reflect.Type) bool {
	return reflect.PointerTo(t).Implements(reflect.TypeFor[encoding.TextUnmarshaler]())
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, key string) {
	pairs, ok := yamltree.Pairs(n)
	if !ok {
		d.Fail(n, key, "keys with values are wanted here (%s), not %s", strings.Join(keysOf(v.Type()), ", "), yamltree.KindOf(n))
		return
	}
	for _, kv := range pairs {
		name := kv.Key.GetToken().Value
		sub := yamltree.Join(key, name)
		f, form, ok := field(v, name)
		if !ok {
			d.Fail(kv.Key, sub, "%s", yamltree.Unknown(name, keysOf(v.Type())))
			continue
		}
		d.decode(kv.Value, f, sub, form)
	}
}

func keysOf(t reflect.Type) []string {
	var s []string
	for i := range t.NumField() {
		if name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); name != "" {
			s = append(s, name)
		}
	}
	return s
}

func field(v reflect.Value, name string) (f reflect.Value, form string, ok bool) {
	t := v.Type()
	for i := range t.NumField() {
		if n, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ","); n == name && n != "" {
			return v.Field(i), t.Field(i).Tag.Get("form"), true
		}
	}
	return f, "", false
}
