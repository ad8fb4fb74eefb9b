package router

import (
	"cmp"
	"fmt"
	"reflect"
	"strings"

	"millrace/control/kernel"
	"millrace/fib/mcast"
)

// kernelMroutes compares the kernel's multicast routes with what is known of them. Router.mu is held.
func (a *auditor) kernelMroutes(s *findings, mroutes []kernel.Mroute) {
	r := a.r
	there := map[mcast.Key]bool{}
	for i := range mroutes {
		m := &mroutes[i]
		k := mcast.Key{Group: m.Group, Source: m.Source}
		there[k] = true
		have, known := r.multicast.kernel[k]
		switch {
		case !known:
			s.fault("mroute", mrouteName(k), "kernel", r.kernelMrouteText(m), "", "")
		case !reflect.DeepEqual(&have, m):
			s.fault("mroute", mrouteName(k), "kernel", r.kernelMrouteText(m), r.kernelMrouteText(&have), "")
		}
	}
	for k, have := range r.multicast.kernel {
		if !there[k] {
			s.fault("mroute", mrouteName(k), "kernel", "", r.kernelMrouteText(&have), "the kernel has no such multicast route")
		}
	}
}

// mroutes compares the multicast routes of all origins with those that packets meet, and names those that are not Millrace's.
func (a *auditor) mroutes(s *findings) {
	r := a.r
	r.mu.Lock()
	defer r.mu.Unlock()
	m := &r.multicast
	for k, l := range m.known {
		for i := range l {
			if x := &l[i]; x.state != "forwarding" {
				s.note("mroute", mrouteName(k), x.origin, mrouteText(x), "", cmp.Or(x.why, x.state))
			}
		}
	}
	have := map[mcast.Key]*mcast.Route{}
	for _, x := range r.mcast.Routes() {
		have[x.Key] = &x.Route
	}
	for k, want := range m.hot {
		if h := have[k]; h == nil || !reflect.DeepEqual(want, *h) {
			s.fault("mroute", mrouteName(k), m.known[k][0].origin, r.mcastText(&want), r.mcastText(h), "")
		}
		delete(have, k)
	}
	for k, h := range have {
		s.fault("mroute", mrouteName(k), "fib", "", r.mcastText(h), "nobody has such a multicast route")
	}
	r.mcast.Verify(func(k mcast.Key, want, have string) { s.fault("mroute", mrouteName(k)+" entry", "fib", want, have, "") })
}

// mrouteText tells a multicast route as it came.
func mrouteText(x *mroute) string {
	s := "from " + cmp.Or(x.from, "nowhere")
	for _, o := range x.to {
		s += " to " + o.Dev
		if o.TTL > 1 {
			s += fmt.Sprint(" ttl ", o.TTL)
		}
	}
	return s
}

func (r *Router) kernelMrouteText(m *kernel.Mroute) string {
	name := func(index int) string { return cmp.Or(r.known[index].Name, fmt.Sprint("#", index)) }
	if m.Unresolved || m.In == 0 {
		return "unresolved"
	}
	s := "from " + name(m.In)
	for _, h := range m.Out {
		s += " to " + name(h.Index)
		if h.TTL > 1 {
			s += fmt.Sprint(" ttl ", h.TTL)
		}
	}
	return s
}

// mcastText tells a multicast route of the data plane; empty for none.
func (r *Router) mcastText(x *mcast.Route) string {
	if x == nil {
		return ""
	}
	names := r.names()
	name := func(i uint16) string { return cmp.Or(names[i], fmt.Sprint(i)) }
	s := "from " + name(x.In)
	for _, o := range x.Out {
		s += " to " + name(o.Iface)
		if o.TTL > 1 {
			s += fmt.Sprint(" ttl ", o.TTL)
		}
	}
	for _, f := range []struct {
		on   bool
		word string
	}{{x.Kernel, "sampled to the kernel"}, {x.Local, "local"}, {x.Host, "left to the host"}, {x.Boundary, "boundary"}} {
		if f.on {
			s += ", " + f.word
		}
	}
	return strings.TrimSpace(s)
}
