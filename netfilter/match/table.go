package match

import (
	"fmt"
)

// Engine names a way to match.
type Engine string

// Engines. Auto is the one that is the fastest with the rules at hand.
const (
	Auto    Engine = ""
	Vectors Engine = "vectors"
)

// Options of a table.
type Options struct {
	Engine Engine
}

// Table is a list of rules in a form for matching, immutable and outside the Go heap. Any number of workers may match by it at the same
// time, each with a Scratch of its own.
type Table struct {
	schema Schema
	kind   Engine
	e      engine
}

// Build makes the table of a list of rules.
func Build(s Schema, rules []Rule, o Options) (*Table, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("match: %w", err)
	}
	for i, r := range rules {
		if err := s.checkRule(r); err != nil {
			return nil, fmt.Errorf("match: rule %d: %w", i, err)
		}
	}
	p := newPlan(s, rules)
	e, err := newVectors(p)
	if err != nil {
		return nil, err
	}
	return &Table{schema: s, kind: Vectors, e: e}, nil
}

// First writes, for the positions of a lane, the index of the first rule that matches, or None.
func (t *Table) First(k Keys, lane []uint8, out *Column, s *Scratch) {
	t.e.find(k, lane, nil, out, s)
}

// Next writes the next rule behind the one that out has at a position.
func (t *Table) Next(k Keys, lane []uint8, out *Column, s *Scratch) {
	for _, pos := range lane {
		if s.from[pos] = out[pos]; out[pos] != None {
			s.from[pos]++
		}
	}
	t.e.find(k, lane, &s.from, out, s)
}

// Close gives the table's memory back. Nobody may be matching by it.
func (t *Table) Close() { t.e.close() }
