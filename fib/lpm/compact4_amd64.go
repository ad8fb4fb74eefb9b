package lpm

import "unsafe" // tables, for assembly

// gather19 writes the leaves of n destinations, from 16 to stage4, and short prefixes' values where they are 0. It returns all of them
// OR-ed. With spread it prefetches before each stage.
//
//go:noescape
func gather19(nodes, leaves unsafe.Pointer, short *[1 << shortBits]uint32, dst *uint32, out *uint16, n int, spread bool) uint32

// prefetch19 starts loading the nodes of n destinations.
//
//go:noescape
func prefetch19(nodes unsafe.Pointer, dst *uint32, n int)
