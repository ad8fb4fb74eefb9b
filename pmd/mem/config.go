package mem

import (
	"fmt"
	"sync"

	"millrace/pmd"
)

// waiting are the second ends of wires whose first end is open, by wire.
var (
	waitMu  sync.Mutex
	waiting = map[string]*Port{}
)

func open(c pmd.Config) (pmd.Port, error) {
	if err := c.Check("mem", "socket"); err != nil {
		return nil, err
	}
	switch {
	case c.Socket == "":
		return nil, fmt.Errorf("mem: port %s: socket: a name for the wire is missing; the two ports that give the same one are joined", c.Name)
	case c.Queues < 0 || c.Ring < 0 || c.MTU < 0 || c.MTU > MaxFrame-14:
		return nil, fmt.Errorf("mem: port %s: queues, ring and mtu must not be negative, and mtu at most %d", c.Name, MaxFrame-14)
	}
	waitMu.Lock()
	defer waitMu.Unlock()
	if h := waiting[c.Socket]; h != nil {
		if c.Queues != 0 && c.Queues != len(h.queues) {
			return nil, fmt.Errorf("mem: port %s: queues: %d here and %d at the wire's other end %s", c.Name, c.Queues, len(h.queues), h.peer.name)
		}
		delete(waiting, c.Socket)
		p := h
		p.name, p.mac = c.Name, c.MAC
		if p.mac == (pmd.MAC{}) {
			p.mac = nameMAC(c.Name)
		}
		if c.MTU != 0 {
			p.mtu.Store(int32(c.MTU))
		}
		p.wire.up.Store(true)
		return p, nil
	}
	p, far := Pair(c.Name, "("+c.Socket+")", Options{Queues: c.Queues, Ring: c.Ring, MTU: c.MTU, MAC: [2]pmd.MAC{c.MAC}})
	p.wire.up.Store(false)
	p.socket = c.Socket
	waiting[c.Socket] = far
	return p, nil
}

// unlist forgets a wire whose second end was never opened.
func unlist(p *Port) {
	waitMu.Lock()
	defer waitMu.Unlock()
	if h := waiting[p.socket]; h != nil && h == p.peer {
		delete(waiting, p.socket)
		h.tally.Close()
	}
}
