package lpm

import (
	"fmt"
	"sync"
	"unsafe" // lines by number, in mapped memory outside the heap

	"millrace/internal/ids"
	"millrace/internal/mem"
)

const (
	lineBytes  = 64
	unit6      = 8 // bytes: fan-out lines give the offsets of others in such units
	lineUnits  = lineBytes / unit6
	lineSpace  = 1 << 32 // address space for lines: offsets have 32 bits
	blockOrder = 5       // blocks have 1 to 1<<blockOrder lines
	smallLines = 4096    // of an empty table, in small pages; what follows is in huge ones
	hugeLines  = mem.HugeSize / lineBytes
	freeBlock  = 0x80 // in lines.state: the block that starts here is free
)

// line is a cache line of the table; see Table6.
type line [16]uint32

// lines gives out blocks of 1, 2, 4 ... 32 lines: a buddy allocator (Knuth, The Art of Computer
// Programming 2.5). Free blocks are linked through their own first line. free may run
// in any goroutine, under any lock but its own.
type lines struct {
	base unsafe.Pointer // of the first line

	mu       sync.Mutex
	mapped   uint32 // lines below have memory
	next     uint32 // lines from here on were never out
	used     int    // lines in blocks that are out
	limbo    int    // of these, retired
	heads    [blockOrder + 1]uint32
	state    []uint8 // by line that starts a block: its order, and freeBlock
	trap     uint32  // tests: freed lines lead to this block, 0 for none
	unusable bool    // unmapped
}

func (l *lines) at(n uint32) *line { return (*line)(unsafe.Add(l.base, uintptr(n)*lineBytes)) }

// order is that of the least block of n lines.
func order(n int) uint8 {
	o := uint8(0)
	for 1<<o < n {
		o++
	}
	return o
}

// room makes sure that n lines more can be given out without asking the system.
func (l *lines) room(n int) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for int(l.mapped-l.next) < n {
		if err := l.grow(); err != nil {
			return err
		}
	}
	return nil
}

func (l *lines) grow() error {
	if l.mapped >= lineSpace/lineBytes-hugeLines {
		return fmt.Errorf("%w: all IPv6 table lines are in use", ids.ErrFull)
	}
	if _, _, err := mem.MapAt(unsafe.Pointer(l.at(l.mapped)), mem.HugeSize); err != nil {
		return fmt.Errorf("%w: no memory for IPv6 table lines: %w", ids.ErrFull, err)
	}
	l.mapped += hugeLines
	return nil
}

// get takes a block of at least n lines out.
func (l *lines) get(n int) (uint32, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	want := order(n)
	o := want
	for o <= blockOrder && l.heads[o] == 0 {
		o++
	}
	var b uint32
	if o <= blockOrder {
		b = l.heads[o]
		l.unlink(b, o)
	} else {
		if l.next+1<<blockOrder > l.mapped {
			if err := l.grow(); err != nil {
				return 0, err
			}
		}
		b, o = l.next, blockOrder
		l.next += 1 << blockOrder
		for len(l.state) < int(l.next) {
			l.state = append(l.state, make([]uint8, 4096)...)
		}
	}
	for o > want {
		o--
		l.link(b+1<<o, o)
	}
	l.state[b] = want
	l.used += 1 << want
	return b, nil
}

// free gives retired blocks back.
func (l *lines) free(blocks []uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.unusable {
		return
	}
	for _, b := range blocks {
		o := l.state[b]
		l.used -= 1 << o
		l.limbo -= 1 << o
		if l.trap != 0 {
			for i := range uint32(1) << o {
				*l.at(b + i) = trapLine(l.trap)
			}
		}
		for ; o < blockOrder; o++ {
			buddy := b ^ 1<<o
			if l.state[buddy] != freeBlock|o {
				break
			}
			l.unlink(buddy, o)
			b = min(b, buddy)
		}
		l.link(b, o)
	}
}

func (l *lines) link(b uint32, o uint8) {
	x := l.at(b)
	x[0], x[1] = l.heads[o], 0
	if x[0] != 0 {
		l.at(x[0])[1] = b
	}
	l.heads[o] = b
	l.state[b] = freeBlock | o
}

func (l *lines) unlink(b uint32, o uint8) {
	next, prev := l.at(b)[0], l.at(b)[1]
	if prev != 0 {
		l.at(prev)[0] = next
	} else {
		l.heads[o] = next
	}
	if next != 0 {
		l.at(next)[1] = prev
	}
	l.state[b] = 0
}

// retire counts blocks that readers may still be in, to be given to free. It reports whether so many
// wait that it is time to wait for readers.
func (l *lines) retire(blocks []uint32) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, b := range blocks {
		l.limbo += 1 << l.state[b]
	}
	return l.limbo > max(limboMax, l.used/2)
}

// usage is the lines in blocks that are out, those of them that are retired, and the bytes that it takes to know.
func (l *lines) usage() (used, limbo, shadow int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.used, l.limbo, cap(l.state)
}

// trapLine is a line that leads to the value MaxValue and to the block trap, whatever it is taken for.
func trapLine(trap uint32) (x line) {
	for i := range x {
		x[i] = MaxValue<<16 | MaxValue
		if i < 10 {
			x[i] = ^uint32(0)
		}
	}
	x[base6] = trap * lineUnits
	return x
}
