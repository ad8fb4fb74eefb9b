// Package match finds the first rule of a list that a packet fits, for whatever fields rules may look at, in batches of
// packets: the engine below every filter.
//
// A Rule is a conjunction of conditions on fields of 1 to 128 bits: ranges, values under masks, sets of these, and their
// negation. A Schema lists the fields. A Table is a list of rules made ready to match; First finds the first rule that a packet
// fits, and Next the one behind, for rules that may let a packet go on, such as a limit.
//
// # Life of a table
//
// Build makes a table, which never changes and lies outside the Go heap. Many workers may use it at the same time; nothing in it is locked
// or counted. Its owner swaps a pointer for a new one, and closes the old one when no worker uses it any more: see
// package epoch.
//
// # Batches
//
// Keys are columns of values, one a field, by position; a lane lists the positions that count. Answers are written at these positions and nowhere else. Nothing is
// allocated: what matching needs beside is in a Scratch, of which each worker has one.
//
// # Engines
//
// All give the answers of Linear, which is what "match" means; tests compare them with it.
//
//   - Vectors, bit vectors: rules are bits, packets' values select rows of bits, of which the first one common to all counts.
package match
