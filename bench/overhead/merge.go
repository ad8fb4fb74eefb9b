package overhead

import (
	"fmt"

	"github.com/goccy/go-yaml"
)

// overlay lays YAML over YAML: maps are joined, members of lists replace those of the same name, to or address, and all
// else is replaced.
func overlay(base, over string) (string, error) {
	var a, b any
	if err := yaml.Unmarshal([]byte(base), &a); err != nil {
		return "", err
	}
	if err := yaml.Unmarshal([]byte(over), &b); err != nil {
		return "", err
	}
	out, err := yaml.Marshal(join(a, b))
	return string(out), err
}

func join(a, b any) any {
	switch b := b.(type) {
	case nil:
		return a
	case map[string]any:
		m, ok := a.(map[string]any)
		if !ok {
			return b
		}
		for k, v := range b {
			m[k] = join(m[k], v)
		}
		return m
	case []any:
		l, ok := a.([]any)
		if !ok {
			return b
		}
		for _, x := range b {
			if i := find(l, x); i >= 0 {
				l[i] = join(l[i], x)
			} else {
				l = append(l, x)
			}
		}
		return l
	}
	return b
}

// find is where a list has a member of the same name, or -1.
func find(l []any, x any) int {
	m, ok := x.(map[string]any)
	if !ok {
		return -1
	}
	for _, key := range []string{"name", "to", "address"} {
		want, ok := m[key]
		if !ok {
			continue
		}
		for i, y := range l {
			if o, ok := y.(map[string]any); ok && fmt.Sprint(o[key]) == fmt.Sprint(want) {
				return i
			}
		}
		return -1
	}
	return -1
}
