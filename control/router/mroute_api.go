package router

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
	"millrace/fib/mcast"
)

// ListMroutes implements api.Backend.
func (r *Router) ListMroutes(_ context.Context, q *v1.ListMroutesRequest) (*v1.Mroutes, error) {
	var only netip.Addr
	if q.Group != "" {
		k, err := mrouteKey(q.Group, "")
		if err != nil {
			return nil, err
		}
		only = k.Group
	}
	switch q.Family {
	case "", "ipv4", "ipv6":
	default:
		return nil, fmt.Errorf("%w: family %q: ipv4 or ipv6", api.ErrInvalid, q.Family)
	}
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	counts := map[mcast.Key]mcast.Info{}
	for _, x := range r.mcast.Routes() {
		counts[x.Key] = x
	}
	out := &v1.Mroutes{}
	for _, k := range slices.SortedFunc(maps.Keys(r.multicast.known), mcast.Key.Compare) {
		if only.IsValid() && k.Group != only || q.Family == "ipv4" && !k.Group.Is4() || q.Family == "ipv6" && k.Group.Is4() {
			continue
		}
		for _, x := range r.multicast.known[k] {
			o := &v1.Mroute{Group: k.Group.String(), From: x.from, Origin: x.origin, State: x.state, Why: x.why}
			if k.Source.IsValid() {
				o.Source = k.Source.String()
			}
			for _, t := range x.to {
				o.To = append(o.To, &v1.MrouteOut{Port: t.Dev, Ttl: uint32(t.TTL)})
			}
			if c, ok := counts[k]; ok && x.state == "forwarding" {
				o.Packets, o.Bytes, o.WrongInterface, o.SinceUnixNs = c.Packets, c.Bytes, c.Wrong, c.Since.UnixNano()
				o.PacketsPerSecond, o.BitsPerSecond = r.multicast.rates[k].packets, 8*r.multicast.rates[k].bytes
			}
			out.Mroutes = append(out.Mroutes, o)
		}
	}
	return out, nil
}

// mrouteKey reads a group and a source, which may be empty.
func mrouteKey(group, source string) (k mcast.Key, err error) {
	if k.Group, err = netip.ParseAddr(group); err != nil || !k.Group.IsMulticast() {
		return k, fmt.Errorf("%w: %q is not a group", api.ErrInvalid, group)
	}
	if source != "" && source != "*" {
		if k.Source, err = netip.ParseAddr(source); err != nil {
			return k, fmt.Errorf("%w: %q is not an IP address", api.ErrInvalid, source)
		}
	}
	return k, nil
}

// AddMroute implements api.Backend.
func (r *Router) AddMroute(_ context.Context, q *v1.AddMrouteRequest) (*v1.AddMrouteResponse, error) {
	if q.Mroute == nil {
		return nil, fmt.Errorf("%w: no multicast route", api.ErrInvalid)
	}
	k, err := mrouteKey(q.Mroute.Group, q.Mroute.Source)
	if err != nil {
		return nil, err
	}
	c := config.Mroute{Group: k.Group, Source: config.Source{Addr: k.Source}, From: q.Mroute.From}
	for _, o := range q.Mroute.To {
		if o.Ttl > 254 {
			return nil, fmt.Errorf("%w: ttl %d: a number from 0 to 254", api.ErrInvalid, o.Ttl)
		}
		c.To = append(c.To, config.MrouteOut{Dev: o.Port, TTL: uint8(o.Ttl)})
	}
	if err := c.Check(); err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, there := r.multicast.api[k]
	if there && !q.Replace {
		return nil, fmt.Errorf("%w: a multicast route %s; use replace", api.ErrExists, mrouteName(k))
	}
	if x := r.staticMroute(&c, "api"); x.state != "forwarding" {
		return nil, fmt.Errorf("%w: multicast route %s: %s", api.ErrInvalid, mrouteName(k), x.why)
	}
	r.multicast.api[k] = c
	r.syncMroutes()
	for _, x := range r.multicast.known[k] {
		if x.origin == "api" && x.state == "waiting" { // it does not fit
			if delete(r.multicast.api, k); there {
				r.multicast.api[k] = old
			}
			r.syncMroutes()
			return nil, fmt.Errorf("%w: multicast route %s: %s", api.ErrConflict, mrouteName(k), x.why)
		}
	}
	return &v1.AddMrouteResponse{}, nil
}

// DelMroute implements api.Backend.
func (r *Router) DelMroute(_ context.Context, q *v1.DelMrouteRequest) (*v1.DelMrouteResponse, error) {
	k, err := mrouteKey(q.Group, q.Source)
	if err != nil {
		return nil, err
	}
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, ok := r.multicast.api[k]; !ok {
		return nil, fmt.Errorf("%w: no multicast route %s of the API", api.ErrNotFound, mrouteName(k))
	}
	delete(r.multicast.api, k)
	r.syncMroutes()
	return &v1.DelMrouteResponse{}, nil
}
