// Package lpm has tables for longest prefix match: from an IP address to a 15-bit value, by the
// longest prefix that has it.
//
// # Life of a prefix
//
// Insert adds one that is not there, Replace changes the value of one that is, Remove takes one out;
// the caller (package fib) keeps the prefixes themselves and says which shorter one an
// address falls to. Commit ends a batch.
//
// # Synchronisation
//
// One writer at a time, under the caller's lock. Readers (Lookup, Find) run beside it without
// locks: each store leads from one right state to another, and memory that was unlinked is used
// again after all readers have passed a poll round (package epoch). A reader sees the old or
// the new value of an address at any moment, and no other.
package lpm

import "millrace/internal/ids"

// ErrFull is wrapped by errors of changes for which there is no room. Nothing of such a change is seen by readers.
var ErrFull = ids.ErrFull

// MaxValue is the largest value.
const MaxValue = 1<<15 - 1

// V4 is an IPv4 table: Table4 for the Internet's routes, Compact4 for small ones. Addresses are in host order.
type V4 interface {
	// Insert adds a prefix that is not in the table, with a value that is not 0. On an error, which wraps ErrFull, no reader sees a change.
	Insert(addr uint32, bits int, value uint16) error
	// Replace gives a prefix of the table another value.
	Replace(addr uint32, bits int, value uint16)
	// Remove takes a prefix out: its destinations fall to the next shorter prefix of the table, of
	// parentBits and the value parent, or to value 0.
	Remove(addr uint32, bits int, parent uint16, parentBits int)
	// Commit ends a batch of changes.
	Commit()
	// Lookup is the value of one destination.
	Lookup(dst uint32) uint16
	// Find writes the values of n destinations to out.
	Find(dst *uint32, out *uint16, n int)
	// Bytes is the memory that readers look at, and that only the writer does.
	Bytes() (hot, shadow int)
	// Close unmaps the table; nobody may be reading.
	Close()
}
