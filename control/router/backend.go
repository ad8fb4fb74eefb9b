package router

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
	"millrace/control/kernel"
	"millrace/control/rule"
	"millrace/fib"
	"millrace/internal/clock"
	"millrace/pipeline"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

var _ api.Backend = (*Router)(nil)

// running locks the router for a method that needs it to run.
func (r *Router) running() (unlock func(), err error) {
	r.mu.Lock()
	if r.pipe == nil {
		r.mu.Unlock()
		return nil, fmt.Errorf("%w: the router is starting or stopping", api.ErrConflict)
	}
	return r.mu.Unlock, nil
}

// GetStatus implements api.Backend.
func (r *Router) GetStatus(context.Context, *v1.GetStatusRequest) (*v1.Status, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := &v1.Status{
		Version: r.opt.Version, Pid: uint32(os.Getpid()), StartedUnixNs: r.started.UnixNano(), UptimeNs: int64(time.Since(r.started)),
		ConfigPath: r.cfg.File(), Ports: uint32(len(r.cfg.Ports)), Measuring: r.measure, ClockHz: clock.Hz(),
		Forwarding: r.forwarding(), Reasons: r.complaints(),
	}
	if r.pipe == nil {
		return s, nil
	}
	for _, p := range r.ports {
		if p.dev != nil && p.link.Up {
			s.PortsUp++
		}
	}
	s.Workers = uint32(len(r.pipe.Workers()))
	if r.follower != nil {
		v4, v6 := r.follower.Routes()
		s.RoutesIpv4, s.RoutesIpv6 = uint64(v4), uint64(v6)
	}
	for k := range r.static {
		if kernel.Special(k.Prefix.Addr()) {
			continue
		}
		if k.Prefix.Addr().Is4() {
			s.RoutesIpv4++
		} else {
			s.RoutesIpv6++
		}
	}
	n4, n6 := r.sourcePrefixes()
	s.RoutesIpv4 += n4
	s.RoutesIpv6 += n6
	for _, n := range r.fib.Neighbours() {
		if n.Known {
			s.Neighbours++
		}
	}
	if !r.confirm.IsZero() {
		s.ConfirmLeftNs = max(1, int64(time.Until(r.confirm)))
	}
	return s, nil
}

// complaints are what is not as the configuration wants it.
func (r *Router) complaints() (why []string) {
	if r.pipe == nil {
		return []string{"starting or stopping"}
	}
	if r.knownToKernel() && !r.synced {
		why = append(why, "the kernel's routes are still being read")
	}
	for _, p := range r.ports {
		switch {
		case p.dev == nil && p.err != nil:
			why = append(why, fmt.Sprintf("port %s: %v", p.cfg.Name, p.err))
		case p.dev == nil:
			why = append(why, fmt.Sprintf("port %s is not open", p.cfg.Name))
		case !p.link.Up:
			why = append(why, fmt.Sprintf("port %s: the link is down", p.cfg.Name))
		}
	}
	why = append(why, r.waiting...)
	why = append(why, r.oddRules...)
	if r.ruleErr != "" {
		why = append(why, "the rules are not those of the kernel: "+r.ruleErr)
	}
	if n := len(r.odd); n != 0 {
		why = append(why, fmt.Sprintf("%s of the kernel cannot be followed; see `millrace audit`", plural(n, "route", "routes")))
	}
	why = append(why, r.mrouteComplaints()...)
	why = append(why, r.sourceComplaints()...)
	if r.fibErr != "" {
		why = append(why, "forwarding table: "+r.fibErr)
	}
	return why
}

// ListPorts implements api.Backend.
func (r *Router) ListPorts(_ context.Context, q *v1.ListPortsRequest) (*v1.Ports, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := &v1.Ports{}
	addrs := r.tables.Addrs.Load()
	for _, p := range r.ports {
		for _, i := range append([]*iface{p.main}, p.subs...) {
			if len(q.Names) != 0 && !slices.Contains(q.Names, i.name) {
				continue
			}
			x := &v1.Port{Name: i.name, Index: uint32(i.id), Host: p.host, Driver: p.cfg.Driver, Gone: p.link.Gone}
			for _, a := range addrs.By[i.id] {
				x.Addresses = append(x.Addresses, a.String())
			}
			for _, w := range r.pipe.Workers() {
				x.RxPackets += w.C.Rx[i.id].Packets
				x.RxBytes += w.C.Rx[i.id].Bytes
				x.TxPackets += w.C.Tx[i.id].Packets
				x.TxBytes += w.C.Tx[i.id].Bytes
			}
			e := &r.tables.Ifaces[i.id]
			x.Up, x.Mtu = e.Flags&graph.IfUp != 0, uint32(e.MTU)
			if i != p.main {
				x.Parent, x.Vlan, x.VlanInner = p.main.name, uint32(i.outer), uint32(i.inner)
			}
			if p.dev != nil {
				r.describe(x, p, i == p.main)
			} else if p.err != nil {
				x.Why = []string{p.err.Error()}
			}
			out.Ports = append(out.Ports, x)
		}
	}
	if len(q.Names) != 0 && len(out.Ports) == 0 {
		return nil, fmt.Errorf("%w: no port %s", api.ErrNotFound, strings.Join(q.Names, ", "))
	}
	return out, nil
}

// describe adds what an open port says about itself.
func (r *Router) describe(x *v1.Port, p *port, main bool) {
	caps := p.dev.Caps()
	x.Driver, x.Mode, x.Why = p.dev.Driver(), caps.Mode, p.dev.Why()
	x.Mbps, x.Mac, x.Queues = uint32(max(0, p.link.Mbps)), p.link.MAC.String(), uint32(caps.Queues)
	if !main {
		return
	}
	s := p.dev.Stats()
	x.RxNoBuffer, x.RxRingFull, x.RxBad, x.TxFull, x.TxFailed = s.RxNoBuffer, s.RxRingFull, s.RxBad, s.TxFull, s.TxFailed
}

// ListStages implements api.Backend.
func (r *Router) ListStages(context.Context, *v1.ListStagesRequest) (*v1.Stages, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := &v1.Stages{Measuring: r.measure}
	held := r.pipe.Account().Held
	path := r.pipe.Path()
	for k, st := range path.Stages {
		x := &v1.Stage{Name: st.Name, Doc: st.Doc, Lane: st.Lane.String(), Held: uint64(held[st.Name])}
		for _, w := range r.pipe.Workers() {
			c := &w.C.Stage[k]
			x.Calls += c.Calls
			x.Packets += c.Packets
			x.Clocks += c.Clocks
			x.Measured += c.Measured
		}
		out.Stages = append(out.Stages, x)
	}
	drops := r.pipe.Drops()
	for _, st := range path.Exits {
		x := &v1.Stage{Name: st.Name, Doc: st.Doc, Lane: graph.Exits.String(), Exit: true, Held: uint64(held[st.Name])}
		for k, info := range graph.Reasons() {
			if info.To == st.Name {
				x.Packets += drops[k]
			}
		}
		out.Stages = append(out.Stages, x)
	}
	return out, nil
}

// ListRoutes implements api.Backend.
func (r *Router) ListRoutes(_ context.Context, q *v1.ListRoutesRequest) (*v1.Routes, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := &v1.Routes{}
	mac := map[neighKey]pmd.MAC{}
	for _, n := range r.fib.Neighbours() {
		if n.Known {
			mac[neighKey{n.Iface, n.Addr}] = n.MAC
		}
	}
	if q.Address != "" {
		if q.Table != "" {
			return nil, fmt.Errorf("%w: address and table: ask Explain for the way in one table", api.ErrInvalid)
		}
		a, err := netip.ParseAddr(q.Address)
		if err != nil {
			return nil, fmt.Errorf("%w: %q is not an IP address", api.ErrInvalid, q.Address)
		}
		if x := r.fib.Lookup(a); x.Route.Prefix.IsValid() {
			out.Routes, out.Total = []*v1.Route{r.showRoute(&x.Route, mac, a)}, 1
		}
		return out, nil
	}
	table := uint32(0)
	if q.Table != "" {
		if table, err = r.tableNamed(q.Table); err != nil {
			return nil, err
		}
	}
	var in netip.Prefix
	if q.Prefix != "" {
		if in, err = config.ParseDest(q.Prefix); err != nil {
			return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
		}
	}
	switch q.Family {
	case "", "ipv4", "ipv6":
	default:
		return nil, fmt.Errorf("%w: family %q: ipv4 or ipv6", api.ErrInvalid, q.Family)
	}
	for _, x := range r.fib.Routes() {
		switch {
		case !x.Active && table == 0 && q.Source != fib.SourceFPM.String() && q.Source != fib.SourceFile.String(),
			q.Family == "ipv4" && !x.Prefix.Addr().Is4(), q.Family == "ipv6" && x.Prefix.Addr().Is4(),
			table != 0 && table != cmp.Or(x.Table, kernel.TableMain),
			in.IsValid() && (in.Bits() > x.Prefix.Bits() || !in.Contains(x.Prefix.Addr())),
			q.Source != "" && q.Source != r.sourceOf(&x.Route):
			continue
		case q.Source == "" && (x.Source == fib.SourceMartian || x.Source == fib.SourceDerived):
			continue // shown when asked for
		}
		out.Total++
		if q.Limit == 0 || len(out.Routes) < int(q.Limit) {
			o := r.showRoute(&x.Route, mac, netip.Addr{})
			o.Unused = !x.Active
			out.Routes = append(out.Routes, o)
		}
	}
	return out, nil
}

// showRoute tells a route; to is the destination asked for, where there was one.
func (r *Router) showRoute(x *fib.Route, mac map[neighKey]pmd.MAC, to netip.Addr) *v1.Route {
	o := &v1.Route{Prefix: x.Prefix.String(), Type: x.Type.String(), Metric: x.Metric, Source: r.sourceOf(x), Table: cmp.Or(x.Table, kernel.TableMain)}
	if x.Tag&tagKernel != 0 {
		o.Protocol = kernel.ProtocolName(uint8(x.Tag))
	}
	r.sourceRoute(x, o)
	for _, h := range x.NextHops {
		o.Mtu = uint32(h.MTU)
		n := &v1.NextHop{Weight: uint32(max(1, h.Weight))}
		if i := r.ifaces[h.Iface]; i != nil {
			n.Port = i.name
		}
		via := to
		if h.Via.IsValid() {
			n.Address = h.Via.String()
			via = h.Via
		}
		if m, ok := mac[neighKey{h.Iface, via}]; ok {
			n.Resolved, n.Mac = true, m.String()
		}
		o.NextHops = append(o.NextHops, n)
	}
	return o
}

// sourceOf names who brought a route. For the FIB the kernel's local table is connected.
func (r *Router) sourceOf(x *fib.Route) string {
	if x.Tag&tagKernel != 0 {
		return "kernel"
	}
	return x.Source.String()
}

// ListNeighbours implements api.Backend.
func (r *Router) ListNeighbours(_ context.Context, q *v1.ListNeighboursRequest) (*v1.Neighbours, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := &v1.Neighbours{}
	for _, n := range r.fib.Neighbours() {
		i := r.ifaces[n.Iface]
		if i == nil || q.Port != "" && q.Port != i.name {
			continue
		}
		x := &v1.Neighbour{Address: n.Addr.String(), Port: i.name, State: "incomplete", Source: "kernel"}
		if i.port.host == "builtin" {
			x.Source = "learned"
		}
		k := neighKey{n.Iface, n.Addr}
		if n.Known {
			x.Mac, x.State = n.MAC.String(), "reachable"
		}
		if o, ok := r.neighs[k]; ok {
			x.State = o.State
		}
		if _, ok := r.pinned[k]; ok {
			x.Source, x.State = "config", "permanent"
		}
		out.Neighbours = append(out.Neighbours, x)
	}
	return out, nil
}

// ListDrops implements api.Backend.
func (r *Router) ListDrops(_ context.Context, q *v1.ListDropsRequest) (*v1.Drops, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := &v1.Drops{}
	counts := r.pipe.Drops()
	for k, info := range graph.Reasons() {
		if k == 0 || counts[k] == 0 && !q.All || q.Stage != "" && q.Stage != info.Stage {
			continue
		}
		out.Drops = append(out.Drops, &v1.Drop{Stage: info.Stage, Reason: info.Name, Doc: info.Doc, Kind: info.Kind.String(), Count: counts[k]})
	}
	return out, nil
}

// GetLeaks implements api.Backend.
func (r *Router) GetLeaks(context.Context, *v1.GetLeaksRequest) (*v1.Leaks, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	return leaks(r.pipe.Account(), r.pool.Pages().String()), nil
}

func leaks(a pipeline.Account, pages string) *v1.Leaks {
	out := &v1.Leaks{
		Received: a.Received, FromHost: a.FromHost, Created: a.Created, Sent: a.Sent, ToHost: a.ToHost, Dropped: a.Dropped,
		Difference: a.Missing(), Ok: !a.Leaks(),
	}
	for _, place := range sortedKeys(a.Held) {
		out.Held = append(out.Held, &v1.Held{Place: place, Packets: uint64(a.Held[place])})
	}
	for _, p := range a.Pools {
		x := &v1.Pool{Name: p.Name, Size: uint64(p.Size), Free: uint64(p.Free), Missing: int64(p.Lost), Pages: pages}
		for _, n := range p.Ports {
			x.InPorts += uint64(n)
		}
		x.InPackets = uint64(p.Size - p.Free - p.Lost - int(x.InPorts))
		out.Pools = append(out.Pools, x)
	}
	return out
}

// ListWorkers implements api.Backend.
func (r *Router) ListWorkers(context.Context, *v1.ListWorkersRequest) (*v1.Workers, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := &v1.Workers{}
	ws := r.pipe.Workers()
	for _, w := range ws {
		x := &v1.Worker{Id: uint32(w.ID), Core: int32(w.Core()), Rounds: w.C.Rounds, IdleRounds: w.C.Idle, Sleeps: w.C.Sleeps,
			BusyClocks: w.C.Busy, TotalClocks: clock.Ticks() - r.ticks, Packets: w.C.Received, Poll: cmpOr(r.cfg.Workers.Poll, "adaptive")}
		for _, p := range r.ports {
			if p.dev == nil {
				continue
			}
			// As Pipeline.AddPort deals them out.
			for q := w.ID; q < p.dev.Caps().Queues; q += len(ws) {
				x.Queues = append(x.Queues, fmt.Sprintf("%s/%d", p.cfg.Name, q))
			}
		}
		out.Workers = append(out.Workers, x)
	}
	return out, nil
}

// SetMeasure implements api.Backend.
func (r *Router) SetMeasure(_ context.Context, q *v1.SetMeasureRequest) (*v1.SetMeasureResponse, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	r.measure = q.On
	r.pipe.Measure(q.On)
	return &v1.SetMeasureResponse{}, nil
}

// AddRoute implements api.Backend.
func (r *Router) AddRoute(_ context.Context, q *v1.AddRouteRequest) (*v1.AddRouteResponse, error) {
	c, err := routeOf(q.Route)
	if err != nil {
		return nil, err
	}
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	table, err := r.tableAsked(q.Route)
	if err != nil {
		return nil, err
	}
	c.Table = fmt.Sprint(table)
	k := fib.Key{Table: fibTable(table), Prefix: c.To, Source: fib.SourceAPI, Metric: c.Metric}
	if _, there := r.apiRoutes[k]; there && !q.Replace {
		return nil, fmt.Errorf("%w: a route to %s with metric %d in table %s; use replace", api.ErrExists, c.To, c.Metric, rule.TableName(table))
	}
	x, err := r.resolve(&c, fib.SourceAPI)
	if err != nil {
		return nil, fmt.Errorf("%w: route to %s: %w", api.ErrInvalid, c.To, err)
	}
	if err := r.fib.Update([]fib.Route{x}, nil); err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	r.static[k] = x
	r.apiRoutes[k] = c
	return &v1.AddRouteResponse{}, nil
}

// DelRoute implements api.Backend.
func (r *Router) DelRoute(_ context.Context, q *v1.DelRouteRequest) (*v1.DelRouteResponse, error) {
	if q.Route == nil {
		return nil, fmt.Errorf("%w: no route", api.ErrInvalid)
	}
	to, err := config.ParseDest(q.Route.Prefix)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	table, err := r.tableAsked(q.Route)
	if err != nil {
		return nil, err
	}
	out := &v1.DelRouteResponse{}
	elsewhere := ""
	for k, c := range r.apiRoutes {
		if k.Prefix == to && k.Table != fibTable(table) {
			elsewhere = fmt.Sprintf("; there is one in table %s", rule.TableName(cmp.Or(k.Table, kernel.TableMain)))
		}
		if k.Prefix != to || k.Table != fibTable(table) || q.Route.Metric != 0 && k.Metric != q.Route.Metric || !sameHops(q.Route.NextHops, c) {
			continue
		}
		delete(r.apiRoutes, k)
		out.Deleted++
	}
	if out.Deleted == 0 {
		return nil, fmt.Errorf("%w: no such route of the API to %s in table %s%s", api.ErrNotFound, to, rule.TableName(table), elsewhere)
	}
	r.syncStatic()
	return out, nil
}

// tableAsked is the table that a request's route is for.
func (r *Router) tableAsked(q *v1.Route) (uint32, error) {
	if q.TableName != "" {
		return r.tableNamed(q.TableName)
	}
	return cmp.Or(q.Table, kernel.TableMain), nil
}

// tableNamed is the number of a table of the configuration or of a VRF of the kernel.
func (r *Router) tableNamed(s string) (uint32, error) {
	t, err := r.cfg.TableOf(s)
	if err == nil {
		return t, nil
	}
	var vrfs []string
	for _, v := range r.cfg.VRFs {
		vrfs = append(vrfs, v.Name)
	}
	for _, l := range r.known {
		if l.Table != 0 && l.Kind == "vrf" {
			if l.Name == s {
				return l.Table, nil
			}
			vrfs = append(vrfs, l.Name)
		}
	}
	slices.Sort(vrfs)
	return 0, fmt.Errorf("%w: table %q: a number, main, local, default, or a VRF: %s", api.ErrInvalid, s, cmpOr(strings.Join(slices.Compact(vrfs), ", "), "there is none"))
}

// sameHops: the next hops asked for, if any, are the route's.
func sameHops(q []*v1.NextHop, c config.Route) bool {
	if len(q) == 0 {
		return true
	}
	if len(c.Via) == 0 {
		return len(q) == 1 && q[0].Address == "" && q[0].Port == c.Dev
	}
	return len(q) == len(c.Via) && !slices.ContainsFunc(q, func(h *v1.NextHop) bool {
		return !slices.ContainsFunc(c.Via, func(n config.NextHop) bool {
			return h.Address == n.Addr.String() && (h.Port == "" || h.Port == cmpOr(n.Dev, c.Dev))
		})
	})
}

// routeOf makes a configuration's route of the API's.
func routeOf(q *v1.Route) (c config.Route, err error) {
	if q == nil {
		return c, fmt.Errorf("%w: no route", api.ErrInvalid)
	}
	if c.To, err = config.ParseDest(q.Prefix); err != nil {
		return c, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	c.Metric, c.Type, c.MTU = q.Metric, q.Type, int(q.Mtu)
	typ, known := configTypes[q.Type]
	switch {
	case !known:
		return c, fmt.Errorf("%w: type %q: unicast, blackhole, unreachable, prohibit or throw", api.ErrInvalid, q.Type)
	case typ != fib.Unicast && len(q.NextHops) != 0:
		return c, fmt.Errorf("%w: a route of type %s has no next hops", api.ErrInvalid, q.Type)
	case typ == fib.Unicast && len(q.NextHops) == 0:
		return c, fmt.Errorf("%w: a route needs a next hop", api.ErrInvalid)
	case typ != fib.Unicast && q.Mtu != 0:
		return c, fmt.Errorf("%w: a route of type %s has no path, and so no mtu", api.ErrInvalid, q.Type)
	case q.Mtu > 65535:
		return c, fmt.Errorf("%w: mtu %d: up to 65535 bytes", api.ErrInvalid, q.Mtu)
	}
	for _, h := range q.NextHops {
		if h.Address == "" {
			if len(q.NextHops) > 1 || h.Port == "" {
				return c, fmt.Errorf("%w: a next hop needs an address; a connected network has one next hop, a port", api.ErrInvalid)
			}
			c.Dev = h.Port
			continue
		}
		a, err := netip.ParseAddr(h.Address)
		if err != nil {
			return c, fmt.Errorf("%w: %q is not a gateway's address", api.ErrInvalid, h.Address)
		}
		c.Via = append(c.Via, config.NextHop{Addr: a.Unmap(), Dev: h.Port, Weight: int(max(1, h.Weight))})
	}
	return c, nil
}
