package lpm

import (
	"encoding/binary"
	"math/bits"
	"unsafe" // lines of blocks outside the heap, written before they are published
)

const (
	runLines = 8                   // lines of a run, at most
	runMax   = runLines * runSteps // addresses at which the values of a run change
	runKeep  = runMax / 2          // with no more, a tree becomes a run again
)

const runSteps = 5

// runLine is a line of a run: six values, and for all but the last of them the last address that has it, less
// what is above bit 80, which all addresses that get here share. Where values are
// fewer the last addresses are those of noKey bits.
type runLine struct {
	lo     [runSteps]uint64
	hi     [runSteps]uint16
	values [runSteps + 1]uint16
	_      uint16
}

var _ = [1]byte{unsafe.Sizeof(runLine{}) - lineBytes: 0}

// findRun is the value of an address in a run of n lines.
func findRun(first *line, n int, hi, lo uint64) uint16 {
	l := (*runLine)(unsafe.Pointer(first))
	h := hi & 0xffff
	for ; n > 1; n-- {
		_, c := bits.Sub64(l.lo[runSteps-1], lo, 0)
		_, c = bits.Sub64(uint64(l.hi[runSteps-1]), h, c)
		if c == 0 { // not beyond this line
			break
		}
		l = (*runLine)(unsafe.Add(unsafe.Pointer(l), lineBytes))
	}
	i := uint64(0)
	for j := range runSteps {
		_, c := bits.Sub64(l.lo[j], lo, 0)
		_, c = bits.Sub64(uint64(l.hi[j]), h, c)
		i += c
	}
	return l.values[i&7%(runSteps+1)]
}

// cutRun writes the lines of a run for the addresses of a key, of which the first have the value v and
// those from c on others; 0 where the values change too often.
func (t *Table6) cutRun(tr *tree6, k uint32, v uint16, c cursor) int {
	out := (*[runLines]runLine)(unsafe.Pointer(&t.scratch))
	end := tr.end(k)
	n := 0
	if first := tr.first(k); c.span().start == first {
		v = c.span().value
		if !c.turn() {
			return 0
		}
	}
	for more := true; more && !end.less(c.span().start); more = c.turn() {
		if n == runMax {
			return 0
		}
		l := &out[n/runSteps]
		if n%runSteps == 0 {
			*l = runLine{}
		}
		last := c.span().start.prev()
		l.lo[n%runSteps], l.hi[n%runSteps] = last.lo, uint16(last.hi)
		l.values[n%runSteps] = v
		v = c.span().value
		l.values[n%runSteps+1] = v
		n++
	}
	for i := n; i%runSteps != 0; i++ {
		l := &out[i/runSteps]
		l.lo[i%runSteps], l.hi[i%runSteps] = ^uint64(0), ^uint16(0)
		l.values[i%runSteps+1] = v
	}
	return (n + runSteps - 1) / runSteps
}

// newSub makes what a deep value for the key leads to; v and c are as in cutRun.
func (t *Table6) newSub(tr *tree6, k uint32, v uint16, c cursor) sub6 {
	n := t.cutRun(tr, k, v, c)
	if n == 0 {
		sub := newTree(tr.first(k), tr.round+1)
		t.build(sub)
		return sub6{k, sub.ref(), sub}
	}
	b := t.block(n)
	for i := range n {
		*t.at(b + uint32(i)) = t.scratch[i]
	}
	return sub6{k, b*lineBytes | inRun | uint32(n-1), nil}
}

// keepRun reports whether a run is what newSub would make.
func (t *Table6) keepRun(tr *tree6, s sub6, v uint16, c cursor) bool {
	n := t.cutRun(tr, s.key, v, c)
	if n == 0 || n != int(s.ref%inRun)+1 {
		return false
	}
	for i := range n {
		if *t.at(s.ref/lineBytes + uint32(i)) != t.scratch[i] {
			return false
		}
	}
	return true
}

func number(a [16]byte) u128 {
	return u128{binary.BigEndian.Uint64(a[:8]), binary.BigEndian.Uint64(a[8:])}
}
