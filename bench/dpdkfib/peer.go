//go:build dpdk

// Package dpdkfib has DPDK's tables for longest-prefix match as peers in benchmarks: rte_fib, rte_lpm and their like for
// IPv6, of the system's libdpdk. Loops over destinations are in C, so that a call of a method costs what one call of C
// costs, whatever the number of destinations.
package dpdkfib

/*
#cgo pkg-config: libdpdk
#cgo CFLAGS: -O3 -march=x86-64-v3 -DALLOW_EXPERIMENTAL_API
#include "peer.h"
*/
import "C"

import (
	"fmt"
	"sync"
	"syscall"
	"unsafe" // slices of plain values handed to C for the time of a call

	"golang.org/x/sys/unix"

	"millrace/bench/bgp"
)

// Kind is one of DPDK's tables.
type Kind C.enum_kind

const (
	FIB     Kind = C.FIB      // rte_fib, DIR-24-8 with two-byte entries, AVX-512 where there is
	LPMx4   Kind = C.LPM_X4   // rte_lpm, rte_lpm_lookupx4
	LPMBulk Kind = C.LPM_BULK // rte_lpm, rte_lpm_lookup_bulk
	FIB6    Kind = C.FIB6     // rte_fib6, a trie, AVX-512 where there is
	LPM6    Kind = C.LPM6     // rte_lpm6
)

// memoryMiB is the size of DPDK's heap. Memory is used as tables need it.
const memoryMiB = 6 << 10

// start starts DPDK, once a process. It makes threads and signal handlers, which stay.
var start = sync.OnceValue(func() error {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return err
	}
	cpu := 0
	for !set.IsSet(cpu) {
		cpu++
	}
	if e := C.eal_start(C.int(cpu), memoryMiB); e != 0 {
		return fmt.Errorf("dpdk: EAL: %w", syscall.Errno(-e))
	}
	return nil
})

// Table is a table of DPDK's. Destinations are in batches of 256.
type Table[A bgp.Addr] struct{ p *C.struct_peer }

// New makes an empty table with room for n routes.
func New[A bgp.Addr](k Kind, n int) (*Table[A], error) {
	if err := start(); err != nil {
		return nil, err
	}
	p := C.peer_new(C.enum_kind(k), C.uint(n))
	if p == nil {
		return nil, fmt.Errorf("dpdk: no table for %d routes: %w", n, syscall.Errno(C.peer_errno()))
	}
	return &Table[A]{p}, nil
}

// AVX512 reports whether lookups use AVX-512, where the kind has such a form.
func (t *Table[A]) AVX512() bool { return C.peer_avx512(t.p) != 0 }

func pointer[T any](s []T) unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(s)) }

func failed(what string, e C.int) error {
	if e == 0 {
		return nil
	}
	return fmt.Errorf("dpdk: %s: %w", what, syscall.Errno(-e))
}

// Load adds routes to the empty table.
func (t *Table[A]) Load(rs []bgp.Route[A]) error {
	return failed("load", C.peer_load(t.p, pointer(rs), C.size_t(len(rs))))
}

// Update makes changes in order; only for FIB and FIB6.
func (t *Table[A]) Update(rs []bgp.Route[A]) error {
	return failed("update", C.peer_update(t.p, pointer(rs), C.size_t(len(rs))))
}

// Find writes the values of destinations.
func (t *Table[A]) Find(dst []A, out []uint16) {
	C.peer_find(t.p, pointer(dst), (*C.uint16_t)(pointer(out)), C.size_t(len(dst)))
}

// Pass looks destinations up and leaves the answers, as the table gives them, in one batch's room.
func (t *Table[A]) Pass(dst []A) { C.peer_pass(t.p, pointer(dst), C.size_t(len(dst))) }

// PassPolluted is Pass with packets in a ring of words touched before each batch, from word *at on. It writes the ticks that each batch took.
func (t *Table[A]) PassPolluted(dst []A, words []uint64, at *int, ticks []uint64) {
	*at = int(C.peer_polluted(t.p, pointer(dst), (*C.uint64_t)(pointer(words)), C.size_t(len(words)), C.size_t(*at),
		(*C.uint64_t)(pointer(ticks)), C.size_t(len(dst))))
}

// Poll looks destinations up until *stop is not 0, and returns how many.
func (t *Table[A]) Poll(dst []A, stop *uint32) int {
	return int(C.peer_poll(t.p, pointer(dst), C.size_t(len(dst)), (*C.uint32_t)(stop)))
}

// Bytes is what the table took from DPDK's heap, rules included.
func (t *Table[A]) Bytes() (hot, shadow int) { return int(C.peer_bytes(t.p)), 0 }

// Close frees the table.
func (t *Table[A]) Close() { C.peer_free(t.p) }

// add adds routes to a table of rte_lpm by its own function.
func (t *Table[A]) add(rs []bgp.Route[A]) error {
	return failed("add", C.peer_add(t.p, pointer(rs), C.size_t(len(rs))))
}
