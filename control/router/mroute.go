package router

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"go.uber.org/zap"

	"millrace/control/config"
	"millrace/control/kernel"
	"millrace/fib/mcast"
	"millrace/pmd"
)

// mroutes is the control state of multicast: routes of the configuration, the API and the kernel, in the order in which
// one comes before another for the same source and group.
type mroutes struct {
	kernel map[mcast.Key]kernel.Mroute
	api    map[mcast.Key]config.Mroute
	known  map[mcast.Key][]mroute    // all, the one that counts first
	hot    map[mcast.Key]mcast.Route // in the table
	joined map[int][]netip.Addr      // by kernel interface: groups that this host listens to
	rates  map[mcast.Key]rate

	changed bool      // since the last sync
	calm    time.Time // before it, changes wait for more
	next    time.Time // when to look at interfaces, memberships and rates again
	stop    func()    // ends the follower and waits
	said    string    // the last complaint in the log
}

// mroute is a multicast route as it came.
type mroute struct {
	key    mcast.Key
	origin string // "config", "api", "kernel"
	from   string
	to     []config.MrouteOut
	route  mcast.Route // where Millrace forwards by it
	state  string      // see v1.Mroute
	why    string
}

// rate is what a route's counters were, and how fast they rose before.
type rate struct {
	at             time.Time
	last           mcast.Counters
	packets, bytes uint64 // a second
}

func newMroutes() mroutes {
	return mroutes{kernel: map[mcast.Key]kernel.Mroute{}, api: map[mcast.Key]config.Mroute{}, known: map[mcast.Key][]mroute{},
		hot: map[mcast.Key]mcast.Route{}, rates: map[mcast.Key]rate{}, changed: true}
}

// mroutePeriod is how often interfaces and memberships are looked at, and rates measured.
const mroutePeriod = time.Second

// followMroutes starts to follow the kernel's multicast routes.
func (r *Router) followMroutes() error {
	f, err := kernel.FollowMroutes(mrouteSink{r}, r.log.Named("kernel"))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(ctx); err != nil {
			r.log.Error("following the kernel's multicast routes", zap.Error(err))
		}
	}()
	r.multicast.stop = func() { cancel(); <-done }
	return nil
}

// mrouteSink takes the kernel's multicast routes, on the follower's goroutine.
type mrouteSink struct{ *Router }

func (r mrouteSink) Mroutes(set []kernel.Mroute, del []kernel.MrouteKey) {
	r.mu.Lock()
	for _, k := range del {
		delete(r.multicast.kernel, mcast.Key{Group: k.Group, Source: k.Source})
	}
	for _, m := range set {
		r.multicast.kernel[mcast.Key{Group: m.Group, Source: m.Source}] = m
	}
	r.multicast.changed = true
	r.mu.Unlock()
	r.wake()
}

// tendMroutes is done by maintain, in the network namespace of Run.
func (r *Router) tendMroutes(now time.Time) {
	m := &r.multicast
	if now.Before(m.next) && (!m.changed || now.Before(m.calm)) {
		return
	}
	if m.changed || len(m.known) != 0 {
		joined, err := kernel.Memberships()
		if err != nil {
			r.log.Error("groups that this host has joined", zap.Error(err))
		}
		m.joined = joined
		r.syncMroutes()
		m.calm = time.Now().Add(5 * time.Since(now)) // a daemon that starts makes thousands one by one
	}
	if !now.Before(m.next) {
		r.measureMroutes(now)
		m.next = now.Add(mroutePeriod)
	}
	m.changed = false
}

func (r *Router) measureMroutes(now time.Time) {
	m := &r.multicast
	rates := make(map[mcast.Key]rate, len(m.hot))
	for _, x := range r.mcast.Routes() {
		n := rate{at: now, last: x.Counters}
		if old, ok := m.rates[x.Key]; ok && x.Packets >= old.last.Packets {
			ns := uint64(max(1, now.Sub(old.at)))
			n.packets = (x.Packets - old.last.Packets) * uint64(time.Second) / ns
			n.bytes = (x.Bytes - old.last.Bytes) * uint64(time.Second) / ns
		}
		rates[x.Key] = n
	}
	m.rates = rates
}

// syncMroutes makes the table and the ports' filters what all routes want. What becomes a route is in the table before its packets
// come, and what no longer is one stays there until they have stopped.
func (r *Router) syncMroutes() {
	m := &r.multicast
	m.known = map[mcast.Key][]mroute{}
	add := func(x mroute) { m.known[x.key] = append(m.known[x.key], x) }
	for i := range r.cfg.Multicast.Routes {
		add(r.staticMroute(&r.cfg.Multicast.Routes[i], "config"))
	}
	for _, c := range m.api {
		add(r.staticMroute(&c, "api"))
	}
	if r.cfg.Kernel.Follow {
		for k, x := range m.kernel {
			add(r.kernelMroute(k, &x))
		}
	}
	want := map[mcast.Key]mcast.Route{}
	for k, l := range m.known {
		for i := range l[1:] {
			l[i+1].state, l[i+1].why = "shadowed", "the route of the "+l[0].origin+" comes first"
		}
		if l[0].state == "forwarding" {
			want[k] = l[0].route
		}
	}
	// A source that is left to the kernel must not fall to the route for any source.
	for k, l := range m.known {
		if any, ok := want[mcast.Key{Group: k.Group}]; ok && k.Source.IsValid() && (l[0].state == "kernel" || l[0].state == "unresolved") {
			want[k] = mcast.Route{Key: k, In: any.In, Host: true}
		}
	}
	for k, x := range want {
		if old, ok := m.hot[k]; ok && reflect.DeepEqual(old, x) {
			continue
		}
		if err := r.mcast.Set(x); err != nil {
			m.known[k][0].state, m.known[k][0].why = "waiting", err.Error()
			delete(want, k)
			if e := err.Error(); e != m.said {
				r.log.Error("multicast route", zap.Error(err))
				m.said = e
			}
		}
	}
	for _, p := range r.ports {
		r.setGroups(p, want)
	}
	for k := range m.hot {
		if _, ok := want[k]; !ok {
			r.mcast.Del(k)
		}
	}
	m.hot = want
}

// setGroups tells a port which multicast is Millrace's.
func (r *Router) setGroups(p *port, want map[mcast.Key]mcast.Route) {
	f := portAs[pmd.GroupFilter](p.dev)
	if p.host != "kernel" || f == nil {
		return
	}
	var l []pmd.Group
	for k, x := range want {
		if i := r.ifaces[x.In]; i != nil && i.port == p {
			l = append(l, pmd.Group{Group: k.Group, Source: k.Source, Outer: i.outer, Inner: i.inner, Sample: x.Kernel, Pass: x.Host})
		}
	}
	slices.SortFunc(l, func(a, b pmd.Group) int {
		return cmp.Or(a.Group.Compare(b.Group), a.Source.Compare(b.Source), cmp.Compare(a.Outer, b.Outer))
	})
	if p.groupsOf == p.dev && slices.Equal(l, p.groups) {
		return
	}
	if err := f.SetGroups(l); err != nil {
		r.log.Error("multicast for Millrace", zap.String("port", p.cfg.Name), zap.Error(err))
		return
	}
	p.groups, p.groupsOf = l, p.dev
}

// portAs is what a port or one that it wraps can do beside; zero where it cannot.
func portAs[T any](dev pmd.Port) (none T) {
	for dev != nil {
		if f, ok := dev.(T); ok {
			return f
		}
		w, wraps := dev.(interface{ Unwrap() pmd.Port })
		if !wraps {
			break
		}
		dev = w.Unwrap()
	}
	return none
}

// staticMroute resolves a route of the configuration or the API.
func (r *Router) staticMroute(c *config.Mroute, origin string) mroute {
	x := mroute{key: mcast.Key{Group: c.Group, Source: c.Source.Addr}, origin: origin, from: c.From, to: c.To, state: "forwarding"}
	x.route.Key = x.key
	in := r.named(c.From)
	if in == nil {
		x.state, x.why = "waiting", "there is no interface "+c.From
		return x
	}
	x.route.In = in.id
	for _, o := range c.To {
		i := r.named(o.Dev)
		if i == nil {
			x.state, x.why = "waiting", "there is no interface "+o.Dev
			return x
		}
		x.route.Out = append(x.route.Out, mcast.Out{Iface: i.id, TTL: o.TTL})
	}
	if slices.Contains(r.multicast.joined[in.index], c.Group) && in.index != 0 {
		x.route.Local = true
	}
	r.judge(&x, in)
	if x.state == "kernel" {
		x.state = "waiting" // the kernel has no route for it
	}
	return x
}

// kernelMroute translates a route of the kernel. One that Millrace cannot follow in full is left to the kernel.
func (r *Router) kernelMroute(k mcast.Key, m *kernel.Mroute) mroute {
	x := mroute{key: k, origin: "kernel", state: "forwarding"}
	x.route = mcast.Route{Key: k, Kernel: true}
	name := func(index int) string {
		if i := r.byIndex[index]; i != nil {
			return i.name
		}
		return cmpOr(r.known[index].Name, fmt.Sprint("#", index))
	}
	leave := func(format string, args ...any) {
		if x.state == "forwarding" {
			x.state, x.why = "kernel", fmt.Sprintf(format, args...)
		}
	}
	if m.In != 0 {
		x.from = name(m.In)
	}
	in := r.byIndex[m.In]
	switch {
	case m.Unresolved || m.In == 0:
		x.state, x.why = "unresolved", "no routing daemon has said what becomes of it"
	case in == nil:
		leave("%s is not a port of Millrace", x.from)
	default:
		x.route.In = in.id
	}
	back := false
	for _, h := range m.Out {
		i := r.byIndex[h.Index]
		x.to = append(x.to, config.MrouteOut{Dev: name(h.Index), TTL: h.TTL})
		switch {
		case i == nil:
			leave("%s is not a port of Millrace", name(h.Index))
		case i == in:
			back = true // never sent back, but for the kernel a sign; see below
		default:
			x.route.Out = append(x.route.Out, mcast.Out{Iface: i.id, TTL: h.TTL})
		}
	}
	switch {
	case !k.Source.IsValid() && !back:
		// The kernel takes packets by a route for any source only from interfaces that it sends to.
		leave("%s is not among its outgoing interfaces, so that the kernel asks its daemon for each source", x.from)
	case !mcast.Forwardable(k.Group):
		leave("a route of a proxy for all groups, or of a group that stays on its link")
	case in != nil && slices.Contains(r.multicast.joined[m.In], k.Group):
		leave("this host listens to the group on %s, and the kernel must hear it", in.name)
	}
	if x.state == "forwarding" {
		r.judge(&x, in)
	}
	return x
}

// judge says why packets of a route whose interfaces are all there cannot come to Millrace, and applies the boundaries.
func (r *Router) judge(x *mroute, in *iface) {
	p := in.port
	if p.host == "kernel" && p.dev != nil {
		switch {
		case portAs[pmd.GroupFilter](p.dev) == nil:
			x.state, x.why = "kernel", fmt.Sprintf("%s (%s) leaves multicast to the kernel", p.cfg.Name, p.dev.Driver())
		case x.route.Local:
			x.state, x.why = "kernel", fmt.Sprintf("this host listens to the group on %s, and the kernel must hear it", in.name)
		}
	}
	blocked := func(id uint16) bool {
		i := r.ifaces[id]
		return i != nil && slices.ContainsFunc(r.cfg.Multicast.Boundaries, func(b config.Boundary) bool {
			return b.Port == i.name && b.Groups.Contains(x.key.Group)
		})
	}
	x.route.Boundary = blocked(x.route.In)
	x.route.Out = slices.DeleteFunc(x.route.Out, func(o mcast.Out) bool { return blocked(o.Iface) })
	if len(x.route.Out) == 0 {
		x.route.Out = nil
	}
}

// mrouteComplaints are static multicast routes that are not forwarded by.
func (r *Router) mrouteComplaints() (why []string) {
	for _, k := range slices.SortedFunc(maps.Keys(r.multicast.known), mcast.Key.Compare) {
		if x := r.multicast.known[k][0]; x.state == "waiting" {
			why = append(why, fmt.Sprintf("multicast route %s: %s", mrouteName(k), x.why))
		}
	}
	return why
}

func mrouteName(k mcast.Key) string {
	if !k.Source.IsValid() {
		return "(*, " + k.Group.String() + ")"
	}
	return fmt.Sprintf("(%s, %s)", k.Source, k.Group)
}
