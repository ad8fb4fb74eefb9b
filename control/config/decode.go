package config

import (
	"encoding"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/agext/levenshtein"
	yaml "github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Error is one mistake in a configuration.
type Error struct {
	File      string
	Line, Col int    // from 1; 0 where there is no file
	Key       string // such as ports[1].mtu; "" for the whole file
	Msg       string // what is wrong and what would be right
}

func (e *Error) Error() string {
	s := position{e.Line, e.Col}.in(e.File) + ": "
	if e.Key != "" {
		s += e.Key + ": "
	}
	return s + e.Msg
}

// Errors are all mistakes in a configuration, in the order of the file.
type Errors []*Error

func (e Errors) Error() string {
	s := make([]string, len(e))
	for i := range e {
		s[i] = e[i].Error()
	}
	return strings.Join(s, "\n")
}

// Unwrap gives errors.As the single mistakes.
func (e Errors) Unwrap() []error {
	s := make([]error, len(e))
	for i := range e {
		s[i] = e[i]
	}
	return s
}

type position struct{ line, col int }

func (p position) in(file string) string {
	if p.line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d:%d", file, p.line, p.col)
}

// source is the file that a Config came from, with the position of each key.
type source struct {
	file string
	pos  map[string]position
}

// find gives the position of a key, or of the nearest one that holds it.
func (s *source) find(key string) (position, bool) {
	for {
		if p, ok := s.pos[key]; ok {
			return p, true
		}
		i := strings.LastIndexAny(key, ".[")
		if i < 0 {
			return position{}, false
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
	d := decoder{src: source{file: path, pos: map[string]position{}}, anchors: map[string]ast.Node{}}
	f, err := parser.ParseBytes(text, 0)
	if err != nil {
		d.syntax(err)
		return nil, d.errs
	}
	docs := slices.DeleteFunc(slices.Clone(f.Docs), func(d *ast.DocumentNode) bool { return d.Body == nil })
	if len(docs) > 1 {
		d.fail(docs[1].Body, "", "a second document: a configuration is one YAML document")
		return nil, d.errs
	}
	if len(docs) == 1 {
		d.decode(docs[0].Body, reflect.ValueOf(c).Elem(), "", "")
	}
	c.src = d.src
	c.fill()
	if len(d.errs) == 0 {
		c.check(&d.errs)
	}
	if len(d.errs) != 0 {
		slices.SortStableFunc(d.errs, func(a, b *Error) int { return a.Line - b.Line })
		return nil, d.errs
	}
	return c, nil
}

type decoder struct {
	src     source
	errs    Errors
	anchors map[string]ast.Node
	depth   int
}

func (d *decoder) syntax(err error) {
	e := &Error{File: d.src.file, Msg: err.Error()}
	var y yaml.Error
	if errors.As(err, &y) {
		e.Msg = y.GetMessage()
		if t := y.GetToken(); t != nil && t.Position != nil {
			e.Line, e.Col = t.Position.Line, t.Position.Column
		}
	}
	d.errs = append(d.errs, e)
}

func at(n ast.Node) position {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		n = m.Values[0].Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return position{t.Position.Line, t.Position.Column}
	}
	return position{}
}

func (d *decoder) fail(n ast.Node, key, format string, args ...any) {
	p := at(n)
	d.errs = append(d.errs, &Error{d.src.file, p.line, p.col, key, fmt.Sprintf(format, args...)})
}

// plain follows anchors and aliases.
func (d *decoder) plain(n ast.Node, key string) ast.Node {
	for range 16 {
		switch t := n.(type) {
		case *ast.AnchorNode:
			d.anchors[t.Name.GetToken().Value] = t.Value
			n = t.Value
		case *ast.AliasNode:
			name := t.Value.GetToken().Value
			a, ok := d.anchors[name]
			if !ok {
				d.fail(n, key, "*%s: there is no &%s before it", name, name)
				return nil
			}
			n = a
		default:
			return n
		}
	}
	d.fail(n, key, "aliases go in a circle")
	return nil
}

// decode stores node n in v. Mistakes are collected; what is wrong stays as it was.
func (d *decoder) decode(n ast.Node, v reflect.Value, key, form string) {
	if n = d.plain(n, key); n == nil {
		return
	}
	if d.depth++; d.depth > 32 {
		d.fail(n, key, "nested too deeply")
		return
	}
	defer func() { d.depth-- }()
	if _, ok := n.(*ast.NullNode); ok {
		return
	}
	if key != "" {
		if _, ok := d.src.pos[key]; !ok {
			d.src.pos[key] = at(n)
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
	s, ok := scalar(n)
	if !ok {
		hint := ""
		if m, ok := n.(*ast.MappingNode); ok && len(m.Values) == 1 {
			hint = "; a value with colons inside brackets needs quotes, such as \"2001:db8::1/64\""
		}
		d.fail(n, key, "one value is wanted here, not %s%s", kindOf(n), hint)
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
		d.fail(n, key, "%s", err)
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

func scalar(n ast.Node) (string, bool) {
	switch t := n.(type) {
	case *ast.StringNode:
		return t.Value, true
	case *ast.LiteralNode:
		return t.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "keys with values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.TagNode:
		return "a YAML tag"
	}
	return "a single value"
}

func (d *decoder) list(n ast.Node, v reflect.Value, key, form string) {
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		// A single gateway or address needs no brackets.
		if _, ok := scalar(n); ok && v.Type().Elem().Kind() == reflect.Struct && isValue(v.Type().Elem()) {
			e := reflect.New(v.Type().Elem()).Elem()
			before := len(d.errs)
			if d.decode(n, e, key, form); len(d.errs) == before {
				v.Set(reflect.Append(v, e))
			}
			return
		}
		d.fail(n, key, "a list is wanted here, not %s: write each entry on a line of its own behind `- `", kindOf(n))
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
	var pairs []*ast.MappingValueNode
	switch t := n.(type) {
	case *ast.MappingNode:
		pairs = t.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{t}
	default:
		d.fail(n, key, "keys with values are wanted here (%s), not %s", strings.Join(keysOf(v.Type()), ", "), kindOf(n))
		return
	}
	for _, kv := range pairs {
		name := kv.Key.GetToken().Value
		sub := join(key, name)
		f, form, ok := field(v, name)
		if !ok {
			d.fail(kv.Key, sub, "%s", unknown(v.Type(), name))
			continue
		}
		d.decode(kv.Value, f, sub, form)
	}
}

func join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
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

func unknown(t reflect.Type, name string) string {
	keys := keysOf(t)
	if n := nearest(name, keys); n != "" {
		return fmt.Sprintf("unknown key; did you mean %q?", n)
	}
	return "unknown key; there are " + strings.Join(keys, ", ")
}

// nearest is the word that s is most likely a misspelling of, or "".
func nearest(s string, words []string) string {
	best, dist := "", 4
	for _, w := range words {
		n := levenshtein.Distance(strings.ToLower(s), w, nil)
		if strings.HasPrefix(w, strings.ToLower(s)) && len(s) >= 2 || strings.HasPrefix(strings.ToLower(s), w) && len(w) >= 3 {
			n = min(n, 1)
		}
		if n < dist && n*2 <= max(len(w), len(s)) {
			best, dist = w, n
		}
	}
	return best
}

// oneOf words a wrong choice.
func oneOf(s string, words []string) string {
	msg := fmt.Sprintf("%q is none of %s", s, strings.Join(words, ", "))
	if n := nearest(s, words); n != "" {
		msg += fmt.Sprintf("; did you mean %q?", n)
	}
	return msg
}
