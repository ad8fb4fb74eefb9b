package router

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/rule"
	"millrace/fib"
	"millrace/packet"
	"millrace/pmd"
)

// Explain implements api.Backend.
func (r *Router) Explain(_ context.Context, q *v1.ExplainRequest) (*v1.Explanation, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	k := fib.Query{FlowKey: packet.FlowKey{SrcPort: uint16(q.Sport), DstPort: uint16(q.Dport), Proto: uint8(q.Proto), Label: q.FlowLabel}, TOS: uint8(q.Tos), Mark: q.Mark}
	if k.Dst, err = netip.ParseAddr(q.To); err != nil {
		return nil, fmt.Errorf("%w: %q is not an IP address", api.ErrInvalid, q.To)
	}
	k.Dst = k.Dst.Unmap()
	if q.From != "" {
		if k.Src, err = netip.ParseAddr(q.From); err != nil {
			return nil, fmt.Errorf("%w: %q is not an IP address", api.ErrInvalid, q.From)
		}
		if k.Src = k.Src.Unmap(); k.Src.Is4() != k.Dst.Is4() {
			return nil, fmt.Errorf("%w: %s and %s are of two families", api.ErrInvalid, k.Src, k.Dst)
		}
	}
	if q.Iif != "" {
		i := r.named(q.Iif)
		if i == nil {
			return nil, fmt.Errorf("%w: no interface %s", api.ErrNotFound, q.Iif)
		}
		k.In = i.id
	}
	table := q.Table
	if q.TableName != "" {
		if table, err = r.tableNamed(q.TableName); err != nil {
			return nil, err
		}
	}
	var d fib.Decided
	if table != 0 {
		d.Table = table
		d.Explained, _ = r.fib.Explain(table, k.FlowKey)
	} else {
		d = r.fib.Decide(k)
	}
	o := &v1.Explanation{Table: d.Table, Group: uint32(d.Group), Neighbour: d.Neighbour, Hash: hashText(d.Hash)}
	if o.Table == 0 && d.Route.Prefix.IsValid() {
		o.Table = fib.TableMain
	}
	if x := d.Rule; x != nil {
		o.Pref, o.Rule = x.Pref, actionText(x)
	}
	if d.Exit != 0 {
		o.Exit, o.ExitDoc = d.Exit.String(), d.Exit.Info().Doc
	} else {
		o.Adjacency, o.Mtu = uint32(d.Adj), uint32(d.MTU)
		if i := r.ifaces[d.Iface]; i != nil {
			o.Port = i.name
		}
	}
	if !d.Route.Prefix.IsValid() {
		return o, nil
	}
	mac := map[neighKey]pmd.MAC{}
	for _, n := range r.fib.Neighbours() {
		if n.Known {
			mac[neighKey{n.Iface, n.Addr}] = n.MAC
		}
	}
	o.Route, o.AgeNs = r.showRoute(&d.Route, mac, k.Dst), int64(time.Since(d.Route.Since))
	o.Buckets, o.Bucket = uint32(d.Buckets), uint32(d.Bucket)
	for i, m := range d.Members {
		x := &v1.Member{Weight: uint32(max(1, m.Weight)), Buckets: uint32(m.Buckets), Chosen: i == d.Chosen}
		if p := r.ifaces[m.Iface]; p != nil {
			x.Port = p.name
		}
		switch {
		case !m.Up:
			x.State = "down"
		case !m.Via.IsValid():
			x.State = "direct"
		case m.Known:
			x.State, x.Mac = "reachable", m.MAC.String()
		default:
			x.State = "unresolved"
		}
		if m.Via.IsValid() {
			x.Address = m.Via.String()
		}
		o.Members = append(o.Members, x)
	}
	return o, nil
}

func hashText(h packet.Hasher) string {
	s := [...]string{packet.HashL4: "l4", packet.HashL3: "l3", packet.HashInner: "inner"}[h.Fields]
	if h.Symmetric {
		s += ", symmetric"
	}
	return s
}

// actionText is what a rule does, in the words of `ip rule`.
func actionText(x *fib.Rule) string {
	switch {
	case x.Action == fib.RuleBlackhole:
		return "blackhole"
	case x.Action == fib.RuleUnreachable:
		return "unreachable"
	case x.Action == fib.RuleProhibit:
		return "prohibit"
	case x.L3mdev:
		return "lookup [l3mdev-table]"
	case x.Table == 0:
		return "lookup main"
	}
	return "lookup " + rule.TableName(x.Table)
}
