package kernel

// ParseRoute reads the body of RTM_NEWROUTE or RTM_DELROUTE from somebody who speaks rtnetlink as the
// kernel does, such as a routing daemon. hops finds what a next-hop object stands for; it is called
// only for a route that names one and has no next hops of its own. ok is false for routes that are not
// reported: cached ones, and those for one type of service or source only. The body may be anything;
// attributes behind a malformed one are not seen.
func ParseRoute(body []byte, hops func(id uint32) (nhs []NextHop, blackhole bool)) (r Route, ok bool) {
	var p parsed
	if !parseRoute(body, &p) || p.key.tos != 0 || p.from.IsValid() {
		return r, false
	}
	if p.path.Object != 0 && len(p.path.Hops) == 0 && p.path.Type < Blackhole {
		var hole bool
		if p.path.Hops, hole = hops(p.path.Object); hole {
			p.path.Type, p.path.Hops = Blackhole, nil
		}
	}
	for _, h := range p.path.Hops {
		p.path.Encap = p.path.Encap || h.Encap
	}
	return Route{p.key.routeKey(p.from), &p.path}, true
}

// Object is a next-hop object: a next hop, a blackhole, or a group of other objects.
type Object struct {
	Hop       NextHop
	Blackhole bool
	Group     []Member
}

// Member is an object's share in a group.
type Member struct {
	ID     uint32
	Weight int
}

// ParseObject reads the body of RTM_NEWNEXTHOP or RTM_DELNEXTHOP. The number is 0 where the
// message has none.
func ParseObject(body []byte) (id uint32, o Object) {
	id, p := parseObject(body)
	o = Object{Hop: p.hop, Blackhole: p.blackhole}
	for _, m := range p.group {
		o.Group = append(o.Group, Member{m.id, m.weight})
	}
	return id, o
}
