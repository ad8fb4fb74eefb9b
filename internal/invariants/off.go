//go:build !invariants

// Package invariants holds the switch for checks that are too dear for
// production: build with the tag "invariants" to turn them on.
package invariants

// Enabled reports whether the binary was built with the tag invariants.
const Enabled = false
