// Package yamltree reads YAML strictly: what it gives has positions, and each mistake names file, line,
// key and what would be right.
package yamltree

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	yaml "github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// Error is one mistake in a file.
type Error struct {
	File      string
	Line, Col int    // from 1; 0 where there is no file
	Key       string // such as ports[1].mtu; "" for the whole file
	Msg       string // what is wrong and what would be right
}

func (e *Error) Error() string {
	s := Position{e.Line, e.Col}.In(e.File) + ": "
	if e.Key != "" {
		s += e.Key + ": "
	}
	return s + e.Msg
}

// Errors are all mistakes in a file, in its order.
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

// Sort puts mistakes into the order of the file.
func (e Errors) Sort() {
	slices.SortStableFunc(e, func(a, b *Error) int { return a.Line - b.Line })
}

// Position is a line and a column, from 1.
type Position struct{ Line, Col int }

// In is file:line:col.
func (p Position) In(file string) string {
	if p.Line == 0 {
		return file
	}
	return fmt.Sprintf("%s:%d:%d", file, p.Line, p.Col)
}

// File is a file that is being read, with the mistakes found so far.
type File struct {
	Name string
	Errs Errors

	anchors map[string]ast.Node
}

// Parse reads a file of one document (what: "a configuration is") and returns its root, nil where it is empty
// or there were mistakes.
func (f *File) Parse(text []byte, what string) ast.Node {
	f.anchors = map[string]ast.Node{}
	t, err := parser.ParseBytes(text, 0)
	if err != nil {
		e := &Error{File: f.Name, Msg: err.Error()}
		var y yaml.Error
		if errors.As(err, &y) {
			e.Msg = y.GetMessage()
			if t := y.GetToken(); t != nil && t.Position != nil {
				e.Line, e.Col = t.Position.Line, t.Position.Column
			}
		}
		f.Errs = append(f.Errs, e)
		return nil
	}
	docs := slices.DeleteFunc(slices.Clone(t.Docs), func(d *ast.DocumentNode) bool { return d.Body == nil })
	if len(docs) > 1 {
		f.Fail(docs[1].Body, "", "a second document: %s one YAML document", what)
		return nil
	}
	if len(docs) == 0 {
		return nil
	}
	return docs[0].Body
}

// At is where a node stands in its file.
func At(n ast.Node) Position {
	if m, ok := n.(*ast.MappingNode); ok && len(m.Values) > 0 && !m.IsFlowStyle {
		n = m.Values[0].Key
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return Position{t.Position.Line, t.Position.Column}
	}
	return Position{}
}

// Fail notes a mistake at a node.
func (f *File) Fail(n ast.Node, key, format string, args ...any) {
	p := At(n)
	f.Errs = append(f.Errs, &Error{f.Name, p.Line, p.Col, key, fmt.Sprintf(format, args...)})
}

// Plain follows anchors and aliases; nil, with a mistake noted, where they lead nowhere.
func (f *File) Plain(n ast.Node, key string) ast.Node {
	for range 16 {
		switch t := n.(type) {
		case *ast.AnchorNode:
			f.anchors[t.Name.GetToken().Value] = t.Value
			n = t.Value
		case *ast.AliasNode:
			name := t.Value.GetToken().Value
			a, ok := f.anchors[name]
			if !ok {
				f.Fail(n, key, "*%s: there is no &%s before it", name, name)
				return nil
			}
			n = a
		default:
			return n
		}
	}
	f.Fail(n, key, "aliases go in a circle")
	return nil
}

// Scalar is the text of a node that is a single word.
func Scalar(n ast.Node) (string, bool) {
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

// Pairs are a mapping's keys with their values; false where the node is none.
func Pairs(n ast.Node) ([]*ast.MappingValueNode, bool) {
	switch t := n.(type) {
	case *ast.MappingNode:
		return t.Values, true
	case *ast.MappingValueNode:
		return []*ast.MappingValueNode{t}, true
	}
	return nil, false
}

// KindOf words what a node is.
func KindOf(n ast.Node) string {
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

// Join is the path of a key in another.
func Join(key, name string) string {
	if key == "" {
		return name
	}
	return key + "." + name
}

// Unknown words a key that is none of keys.
func Unknown(name string, keys []string) string {
	if n := Nearest(name, keys); n != "" {
		return fmt.Sprintf("unknown key; did you mean %q?", n)
	}
	return "unknown key; there are " + strings.Join(keys, ", ")
}

// Nearest is the word that s is most likely a misspelling of, or "".
func Nearest(s string, words []string) string {
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

// OneOf words a wrong choice.
func OneOf(s string, words []string) string {
	msg := fmt.Sprintf("%q is none of %s", s, strings.Join(words, ", "))
	if n := Nearest(s, words); n != "" {
		msg += fmt.Sprintf("; did you mean %q?", n)
	}
	return msg
}
