package router

import (
	"context"
	"net/netip"

	"go.uber.org/zap"

	"millrace/pmd"
)

// wish is a neighbour that packets wait for.
type wish struct {
	iface uint16
	addr  netip.Addr
}

// lesson is what the built-in host found out about a neighbour.
type lesson struct {
	wish
	mac   pmd.MAC
	known bool
}

// resolver is the neigh.Resolver of the workers.
type resolver struct{ r *Router }

func (s resolver) Target(group uint16, dst netip.Addr) (uint16, netip.Addr, bool) {
	return s.r.fib.Target(group, dst)
}

func (s resolver) Generation() uint64 { return s.r.fib.Generation() }

// Ask hands the wish to the resolver's goroutine, or forgets it where 4,096 wait.
func (s resolver) Ask(iface uint16, nh netip.Addr) {
	select {
	case s.r.asks <- wish{iface, nh}:
	default:
	}
}

// learn and lost are called by the built-in host, on workers' threads.
func (r *Router) learn(iface uint16, addr netip.Addr, mac [6]byte) {
	r.teach(lesson{wish{iface, addr}, mac, true})
}

func (r *Router) lost(iface uint16, addr netip.Addr) { r.teach(lesson{wish: wish{iface, addr}}) }

func (r *Router) teach(l lesson) {
	select {
	case r.learned <- l:
	default: // it is learned again when packets wait for it
	}
}

// resolver serves the workers' wishes and lessons.
func (r *Router) resolver(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-r.asks:
			r.mu.Lock()
			r.ask(w)
			r.mu.Unlock()
		case l := <-r.learned:
			r.mu.Lock()
			r.lesson(l)
			r.mu.Unlock()
		}
	}
}

// ask has a neighbour resolved by whoever is the host of the interface.
func (r *Router) ask(w wish) {
	i := r.ifaces[w.iface]
	switch {
	case i == nil || i.port.dev == nil:
	case i.port.host == "builtin":
		r.host.Solicit(w.iface, w.addr)
	case r.follower != nil && i.index != 0:
		r.follower.Ask(i.index, w.addr)
	}
}

func (r *Router) lesson(l lesson) {
	i := r.ifaces[l.iface]
	if i == nil || i.port.host != "builtin" || r.pipe == nil {
		return
	}
	if _, fixed := r.pinned[neighKey{l.iface, l.addr}]; fixed {
		return
	}
	if !l.known {
		r.note(r.fib.DelNeighbour(l.iface, l.addr))
		return
	}
	r.log.Debug("neighbour", zap.String("interface", i.name), zap.Stringer("address", l.addr), zap.Stringer("mac", l.mac))
	r.note(r.fib.SetNeighbour(l.iface, l.addr, l.mac))
}
