package router

import (
	"cmp"
	"context"
	"fmt"
	"net"

	"go.uber.org/zap"

	v1 "millrace/control/api/v1"
	"millrace/control/fpm"
	"millrace/control/kernel"
	"millrace/control/rib"
	"millrace/fib"
)

// sources are where routes come from beside kernel, configuration and API calls: daemons by FPM, and
// files. Their tables have locks of their own, which are taken after Router.mu.
type sources struct {
	fpm    *rib.Table
	files  *rib.Table
	server *fpm.Server // nil while nothing listens
	listen string      // what it listens on; "" for nothing
	addr   net.Addr
	stop   func() // ends the server and waits
	loads  []*load
	feed   context.Context
}

// maxPrefixes bounds the prefixes of each of the two.
const maxPrefixes = 4 << 20

// newSources is called before anything runs.
func (r *Router) newSources(ctx context.Context) {
	r.src.fpm, r.src.files = rib.New(fib.SourceFPM, maxPrefixes), rib.New(fib.SourceFile, maxPrefixes)
	r.src.feed = ctx
}

// feedSources takes what daemons and files bring to the FIB, until ctx ends.
func (r *Router) feedSources(ctx context.Context) {
	for {
		t := r.src.fpm
		select {
		case <-ctx.Done():
			return
		case <-t.Wake():
		case <-r.src.files.Wake():
			t = r.src.files
		}
		for more := true; more && ctx.Err() == nil; {
			r.mu.Lock()
			more = t.Flush(r.resolvePath, r.fib.Update)
			r.mu.Unlock()
		}
	}
}

// recheckSources has their routes find their interfaces again.
func (r *Router) recheckSources() {
	if r.src.fpm != nil {
		r.src.fpm.Recheck()
		r.src.files.Recheck()
	}
}

// resolvePath makes the FIB's next hops of a path. As for routes of the kernel, one by interfaces that
// are not ours, or with an encapsulation, is unreachable; but one that names gateways only waits for an
// interface.
func (r *Router) resolvePath(p *rib.Path) (typ fib.RouteType, hops []fib.NextHop, ok bool) {
	if p.Type != fib.Unicast {
		return p.Type, nil, true
	}
	wait := true
	for _, h := range p.Hops {
		var i *iface
		switch {
		case h.Index != 0:
			i, wait = r.byIndex[h.Index], false
		case h.Dev != "":
			i = r.named(h.Dev)
		default:
			i = r.toward(h.Via, 0)
		}
		if i != nil && !h.Encap {
			hops = append(hops, fib.NextHop{Via: h.Via, Iface: i.id, Weight: h.Weight, MTU: p.MTU})
		}
	}
	if len(hops) != 0 {
		return fib.Unicast, hops, true
	}
	return fib.Unreachable, nil, !wait || len(p.Hops) == 0
}

// syncSources listens and loads what the configuration says. It is called on Run's goroutine, whose network
// namespace the listener is in.
func (r *Router) syncSources() error {
	if r.src.fpm == nil {
		return nil
	}
	r.syncFiles()
	c := r.cfg.FPM
	if r.src.listen == c.Listen && (r.src.server == nil || r.src.server.Options().Stale == c.Stale && r.src.server.Options().Quiet == c.Quiet) {
		return nil
	}
	r.stopFPM()
	if c.Listen == "" {
		r.src.fpm.Clear()
		return nil
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("fpm.listen: %w", err)
	}
	s := fpm.New(r.src.fpm, fpm.Options{Log: r.log.Named("fpm"), Stale: c.Stale, Quiet: c.Quiet, Takes: func(table uint32) bool { return table != kernel.TableLocal }})
	ctx, cancel := context.WithCancel(r.src.feed)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Serve(ctx, l); err != nil {
			r.log.Error("fpm", zap.Error(err))
		}
	}()
	r.src.server, r.src.listen, r.src.addr, r.src.stop = s, c.Listen, l.Addr(), func() { cancel(); <-done }
	r.log.Info("routing daemons may connect", zap.Stringer("fpm", l.Addr()))
	return nil
}

// stopFPM closes listener and connections; the routes are stale from then on.
func (r *Router) stopFPM() {
	if r.src.stop != nil {
		r.src.stop()
	}
	r.src.server, r.src.listen, r.src.addr, r.src.stop = nil, "", nil, nil
}

// sourceComplaints are what did not get into the forwarding table, for people.
func (r *Router) sourceComplaints() (why []string) {
	if r.src.fpm == nil {
		return nil
	}
	for _, t := range []*rib.Table{r.src.fpm, r.src.files} {
		if s := t.Stats(); s.Refused != 0 {
			why = append(why, fmt.Sprintf("forwarding table: %d routes do not fit: %v", s.Refused, s.Err))
		}
	}
	for _, l := range r.src.loads {
		if l.err != nil {
			why = append(why, fmt.Sprintf("routes of a file: %v", l.err))
		}
	}
	return why
}

// sourceRoute adds to a route what its source knows of it.
func (r *Router) sourceRoute(x *fib.Route, o *v1.Route) {
	if x.Source != fib.SourceFPM {
		return
	}
	o.Protocol, o.Table = fpm.ProtocolName(uint8(x.Tag)), cmp.Or(x.Table, kernel.TableMain)
	_, o.Stale, _ = r.src.fpm.Find(x.Table, x.Prefix)
}

// sourcePrefixes counts the prefixes that daemons and files have routes to.
func (r *Router) sourcePrefixes() (ipv4, ipv6 uint64) {
	for _, t := range []*rib.Table{r.src.fpm, r.src.files} {
		s := t.Stats()
		ipv4 += uint64(s.IPv4)
		ipv6 += uint64(s.Prefixes - s.IPv4)
	}
	return ipv4, ipv6
}

// GetFPM implements api.Backend.
func (r *Router) GetFPM(context.Context, *v1.GetFPMRequest) (*v1.FPM, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	t := r.src.fpm.Stats()
	out := &v1.FPM{Prefixes: uint64(t.Prefixes), Waiting: uint64(t.Queued), Applied: t.Applied, Refused: uint64(t.Refused)}
	if t.Err != nil {
		out.Error = t.Err.Error()
	}
	for _, s := range r.src.fpm.Sets() {
		if s.Stale {
			out.Stale = append(out.Stale, &v1.StaleRoutes{Name: s.Name, Routes: uint64(s.Routes), SinceUnixNs: s.Since.UnixNano(), UntilUnixNs: s.Until.UnixNano()})
		}
	}
	if r.src.server == nil {
		return out, nil
	}
	out.Listen = r.src.addr.String()
	st := r.src.server.Status()
	out.Connections, out.Total = st.Served, showCounts(st.Total)
	for _, c := range st.Clients {
		out.Clients = append(out.Clients, &v1.FPMClient{Name: c.Name, SinceUnixNs: c.Since.UnixNano(), Routes: uint64(c.Routes), Objects: uint64(c.Objects), Counts: showCounts(c.Counts)})
	}
	for _, e := range st.Ended {
		out.Ended = append(out.Ended, &v1.FPMEnd{Name: e.Name, AtUnixNs: e.At.UnixNano(), Why: e.Why})
	}
	return out, nil
}

func showCounts(c fpm.Counts) *v1.FPMCounts {
	return &v1.FPMCounts{Bytes: c.Bytes, Frames: c.Frames, Added: c.Added, Removed: c.Removed, Objects: c.Objects, Labels: c.Labels,
		Kernel: c.Kernel, Tables: c.Tables, Other: c.Other, Invalid: c.Invalid, BeyondLimit: c.Refused}
}

// sources compares the routes of daemons and files with the FIB's.
func (a *auditor) sources(s *findings, routes *fib.RouteAudit) {
	r := a.r
	for src, t := range map[fib.Source]*rib.Table{fib.SourceFPM: r.src.fpm, fib.SourceFile: r.src.files} {
		name := src.String()
		r.mu.Lock()
		t.Wanted(r.resolvePath, func(want []fib.Route) {
			s.rep.OtherRoutes += uint64(len(want))
			routes.Check(want, func(want, have *fib.Route) {
				s.fault("route", r.routeName(want), name, r.routeText(want), r.routeText(have), r.whyNot(want))
			})
			r.mu.Unlock() // others may have it between two batches
			r.mu.Lock()
		})
		r.mu.Unlock()
		for _, have := range routes.Rest(src) {
			s.fault("route", r.routeName(&have), name, "", r.routeText(&have), "nobody brought such a route")
		}
	}
}
