package fib

import (
	"fmt"

	"millrace/internal/mem"
	"millrace/pipeline/graph"
)

// An interface has one adjacency for all groups (graph.AdjMulticast): the rewrite stage takes the destination MAC
// from the packet. It stands in graph.Tables.Multicast as long as multicast routes lead to the interface.

// HoldMulticast says that one more multicast route leads to the interface; LetMulticast takes it back. On an
// error, which wraps ErrInvalid or ErrFull, nothing has changed.
func (f *FIB) HoldMulticast(iface uint16) error {
	if iface == 0 || iface >= graph.MaxIfaces {
		return fmt.Errorf("fib: %w: interface %d", ErrInvalid, iface)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mcast[iface]++
	if f.mcast[iface] > 1 {
		return nil
	}
	err := f.renewMulticast(iface)
	if err != nil {
		f.mcast[iface]--
	}
	return err
}

// LetMulticast undoes one HoldMulticast.
func (f *FIB) LetMulticast(iface uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mcast[iface]--; f.mcast[iface] == 0 {
		f.setMulticast(iface, 0)
	}
}

// renewMulticast gives the interface a multicast adjacency of its present state, where it should have one. Where there is no
// room for another it has none.
func (f *FIB) renewMulticast(iface uint16) error {
	if f.mcast[iface] == 0 || !f.ifs[iface].up {
		f.setMulticast(iface, 0)
		return nil
	}
	a, err := f.take(f.adjs)
	if err == nil {
		f.t.Adjs[a] = f.multicastAdj(iface)
	}
	f.setMulticast(iface, uint16(a))
	return err
}

// multicastAdj is the interface's multicast adjacency as it should be.
func (f *FIB) multicastAdj(iface uint16) graph.Adj {
	x := f.build(&way{hop: &hop{key: hopKey{iface: iface}}})
	x.Flags = x.Flags&^graph.AdjRedirect | graph.AdjMulticast
	return x
}

// setMulticast publishes the interface's adjacency and retires the one before.
func (f *FIB) setMulticast(iface, adj uint16) {
	old := f.t.Multicast[iface]
	mem.Store16(&f.t.Multicast[iface], adj)
	if old != 0 {
		f.retired.adjs = append(f.retired.adjs, uint32(old))
		f.retire()
	}
}
