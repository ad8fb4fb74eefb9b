package router

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/kernel"
	"millrace/control/rule"
	"millrace/fib"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

const (
	// auditEvery is how often the router audits itself, so that a difference's age is known; auditShare is
	// how many times longer than an audit takes it waits at least.
	auditEvery = time.Minute
	auditShare = 100
	// auditSettle is how long a difference must last to be one: longer than a change is on its way.
	auditSettle = 400 * time.Millisecond
)

// auditor compares what the kernel, daemons and the configuration want with the data plane. Its lock is held
// for a whole audit, and taken before all others.
type auditor struct {
	r      *Router
	mu     sync.Mutex
	dumper *kernel.Dumper // there while Router.follower is
	closed bool           // the tables are gone
	since  map[diffKey]time.Time
	clean  time.Time // when nothing but notes was found last
	last   time.Time // when the last audit began
	faulty bool      // the last audit found faults
}

// diffKey names a difference.
type diffKey struct{ what, name, source string }

// findings are what one pass found.
type findings struct {
	rep   v1.AuditReport
	diffs map[diffKey]*v1.Difference
}

func (s *findings) add(d *v1.Difference) {
	s.diffs[diffKey{d.What, d.Name, d.Source}] = d
}

func (s *findings) fault(what, name, source, want, have, why string) {
	s.add(&v1.Difference{What: what, Name: name, Source: source, Want: want, Have: have, Why: why})
}

func (s *findings) note(what, name, source, want, have, why string) {
	s.add(&v1.Difference{What: what, Name: name, Source: source, Want: want, Have: have, Why: why, Note: true})
}

// Audit implements api.Backend.
func (r *Router) Audit(ctx context.Context, q *v1.AuditRequest) (*v1.AuditReport, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	unlock()
	rep, err := r.auditor.audit(ctx)
	if err == nil && q.Limit != 0 && len(rep.Differences) > int(q.Limit) {
		rep.Differences = rep.Differences[:q.Limit]
	}
	return rep, err
}

// patrol audits from time to time until ctx ends.
func (a *auditor) patrol(ctx context.Context) {
	wait := auditEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		rep, err := a.audit(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			a.r.log.Error("audit", zap.Error(err))
			continue
		}
		wait = max(auditEvery, auditShare*time.Duration(rep.DurationNs))
	}
}

// audit looks twice where the first look finds faults: what is told was there both times.
func (a *auditor) audit(ctx context.Context) (*v1.AuditReport, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, fmt.Errorf("%w: the router is stopping", api.ErrConflict)
	}
	start := time.Now()
	s, err := a.pass()
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(values(s.diffs), func(d *v1.Difference) bool { return !d.Note }) {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(auditSettle):
		}
		first := s.diffs
		if s, err = a.pass(); err != nil {
			return nil, err
		}
		for k, d := range s.diffs {
			if !d.Note && first[k] == nil {
				delete(s.diffs, k)
			}
		}
	}
	rep := &s.rep
	seen := map[diffKey]time.Time{}
	for k, d := range s.diffs {
		t, known := a.since[k]
		if !known {
			t = start
		}
		seen[k] = t
		d.SinceUnixNs = t.UnixNano()
		rep.Differences = append(rep.Differences, d)
		if d.Note {
			rep.Notes++
		} else {
			rep.Faults++
		}
	}
	a.since, a.last = seen, start
	if rep.Faults == 0 {
		a.clean = start
	}
	if faulty := rep.Faults != 0; faulty != a.faulty {
		a.faulty = faulty
		if faulty {
			a.r.log.Error("audit: the data plane differs from what it should be; see `millrace audit`", zap.Uint64("faults", rep.Faults))
		} else {
			a.r.log.Info("audit: in order again")
		}
	}
	if !a.clean.IsZero() {
		rep.CleanUnixNs = a.clean.UnixNano()
	}
	rep.StartedUnixNs, rep.DurationNs = start.UnixNano(), int64(time.Since(start))
	slices.SortFunc(rep.Differences, func(a, b *v1.Difference) int {
		switch {
		case a.Note != b.Note:
			return cmp.Compare(b2i(a.Note), b2i(b.Note))
		case a.What != b.What:
			return cmp.Compare(a.What, b.What)
		case a.Name != b.Name:
			return cmp.Compare(a.Name, b.Name)
		}
		return cmp.Compare(a.Source, b.Source)
	})
	return rep, nil
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func values[K comparable, V any](m map[K]V) []V {
	out := make([]V, 0, len(m))
	for _, v := range m {
		out = append(out, v)
	}
	return out
}

// close waits for an audit that runs, and allows no other.
func (a *auditor) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	if a.dumper != nil {
		a.dumper.Close()
	}
}

// pass compares once.
func (a *auditor) pass() (*findings, error) {
	s := &findings{diffs: map[diffKey]*v1.Difference{}}
	routes := a.r.fib.AuditRoutes()
	if err := a.kernel(s, routes); err != nil {
		return nil, err
	}
	a.static(s, routes)
	a.sources(s, routes)
	a.mroutes(s)
	v := a.r.fib.Verify(func(f fib.Fault) { s.fault(f.What, f.Name, "fib", f.Want, f.Have, "") })
	s.rep.TableEntries, s.rep.Groups = uint64(v.Entries), uint64(v.Groups)
	return s, nil
}

// kernel compares with what the kernel has.
func (a *auditor) kernel(s *findings, routes *fib.RouteAudit) error {
	r := a.r
	r.mu.Lock()
	follows := r.follower != nil && r.synced
	var tables []uint32
	if follows {
		tables = r.follower.Used()
	}
	r.mu.Unlock()
	if !follows {
		return nil
	}
	var foreign map[string]*strays
	begin := func() {
		foreign = map[string]*strays{}
		s.rep.KernelRoutes = 0
		for k, d := range s.diffs {
			if d.Source == "kernel" {
				delete(s.diffs, k)
			}
		}
	}
	begin()
	var unfit []fib.Key
	d, err := a.dumper.Read(tables, func(batch []kernel.Route) {
		s.rep.KernelRoutes += uint64(len(batch))
		r.mu.Lock()
		defer r.mu.Unlock()
		want := make([]fib.Route, 0, len(batch))
		for i := range batch {
			if r.unfit(&batch[i].RouteKey) {
				strayed(foreign, "of some packets only", whyUnfit, batch[i].Dst)
				continue
			}
			x, ok := r.translate(&batch[i])
			if !ok {
				unfit = append(unfit, x.Key())
				continue
			}
			want = append(want, x)
			r.stray(&batch[i], foreign)
		}
		routes.Check(want, func(want, have *fib.Route) {
			s.fault("route", r.routeName(want), "kernel", r.routeText(want), r.routeText(have), r.whyNot(want))
		})
	}, begin)
	if err != nil {
		return err
	}
	s.rep.Unsettled = d.Unsettled
	for _, src := range []fib.Source{fib.SourceKernel, fib.SourceConnected} {
		for _, have := range routes.Rest(src) {
			if src == fib.SourceConnected && r.isStatic(have.Key()) {
				continue
			}
			s.fault("route", r.routeName(&have), "kernel", "", r.routeText(&have), "the kernel has no such route")
		}
	}
	for _, f := range foreign {
		have := "unreachable"
		if f.why == whyUnfit {
			have = ""
		}
		s.note("route", f.name, "kernel", plural(f.n, "route", "routes")+" such as "+f.example.String(), have, f.why)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	a.rules(s, d.Rules)
	a.links(s, d.Links)
	a.addresses(s, d.Addrs)
	a.neighbours(s, d.Neighs)
	a.kernelMroutes(s, d.Mroutes)
	return nil
}

// strays are routes that cannot be as the kernel has them.
type strays struct {
	name    string
	why     string
	n       int
	example netip.Prefix
}

// stray counts a route by links that are none of the ports.
func (r *Router) stray(k *kernel.Route, by map[string]*strays) {
	if _, special := kernelTypes[k.Type]; special {
		return
	}
	for _, h := range k.Hops {
		if r.byIndex[h.Index] != nil && !h.Encap {
			continue
		}
		l := r.known[h.Index]
		why := "it is none of Millrace's ports: packets for these destinations are answered with unreachable"
		if h.Encap {
			why = "the next hop encapsulates, which is not supported: packets for these destinations are answered with unreachable"
		}
		strayed(by, "by "+cmp.Or(l.Name, fmt.Sprint("interface ", h.Index)), why, k.Dst)
	}
}

func strayed(by map[string]*strays, name, why string, dst netip.Prefix) {
	f := by[name+why]
	if f == nil {
		f = &strays{name: name, why: why, example: dst}
		by[name+why] = f
	}
	f.n++
}

// whyUnfit is why Router.unfit is true.
const whyUnfit = "it is for packets of one type of service or source only, which is not supported: these packets take the route of all others"

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// rules compares the rules.
func (a *auditor) rules(s *findings, rules []rule.Rule) {
	r := a.r
	for _, k := range rules {
		if !slices.Contains(r.rules, k) {
			s.fault("rule", k.String(), "kernel", k.String(), "", "")
		}
	}
	for _, k := range r.rules {
		if !slices.Contains(rules, k) {
			s.fault("rule", k.String(), "kernel", "", k.String(), "the kernel has no such rule")
		}
	}
	for _, o := range r.oddRules {
		s.note("rule", o, "kernel", "", "", "packets that it is meant for take the way of all others")
	}
	if r.ruleErr != "" {
		s.fault("rules", "all", "kernel", "", "those before", r.ruleErr)
	}
	v4, v6 := r.fib.Rules()
	if have := [2][]fib.Rule{v4, v6}; !holds(have[0], r.given[0]) || !holds(have[1], r.given[1]) {
		s.fault("rules", "of the forwarding table", "kernel", fmt.Sprint(r.given), fmt.Sprint(have), "")
	}
}

// holds: the list has all rules of another; it may have that of VRFs besides.
func holds(have, want []fib.Rule) bool {
	return !slices.ContainsFunc(want, func(w fib.Rule) bool {
		return !slices.ContainsFunc(have, func(h fib.Rule) bool { return reflect.DeepEqual(h, w) })
	})
}

// links compares state, address and MTU of the kernel's interfaces with what packets meet.
func (a *auditor) links(s *findings, links []kernel.Link) {
	r := a.r
	there := map[int]bool{}
	for _, l := range links {
		there[l.Index] = true
		i := r.byIndex[l.Index]
		if i == nil || i.port.dev == nil || i.port.host != "kernel" {
			continue
		}
		e := &r.tables.Ifaces[i.id]
		var mac [8]byte
		for k := range l.MAC {
			mac[k] = l.MAC[k]
		}
		have := fmt.Sprintf("up %v", e.Flags&graph.IfUp != 0)
		want := fmt.Sprintf("up %v", l.Up && l.Ready)
		if want != have {
			s.fault("link", l.Name, "kernel", want, have, "")
		}
		if k := r.known[l.Index]; k.Table != l.Table || k.RPFilter != l.RPFilter {
			say := func(l kernel.Link) string { return fmt.Sprintf("table %d rp_filter %d", l.Table, l.RPFilter) }
			s.fault("link", l.Name+" policy", "kernel", say(l), say(k), "")
		}
		if flags := r.checkFlags(i); e.Table != r.hot[r.tableOf(i)] || e.Flags&ifChecks != flags {
			s.fault("link", l.Name+" policy", "fib", fmt.Sprintf("table %d checks %#x", r.hot[r.tableOf(i)], flags), fmt.Sprintf("table %d checks %#x", e.Table, e.Flags&ifChecks), "")
		}
		if l.MTU < 1<<16 && i == i.port.main && l.MTU != int(e.MTU) {
			s.fault("link", l.Name+" mtu", "kernel", fmt.Sprint(l.MTU), fmt.Sprint(e.MTU), "")
		}
	}
	for index, i := range r.byIndex {
		if !there[index] {
			s.fault("link", i.name, "kernel", "", "interface "+fmt.Sprint(i.id), "the kernel has no such link")
		}
	}
}

func (a *auditor) addresses(s *findings, addrs []kernel.Addr) {
	have := map[kernel.Addr]bool{}
	for _, x := range a.r.addrs {
		have[x] = true
	}
	for _, x := range addrs {
		if !have[x] {
			s.fault("address", x.Prefix.String(), "kernel", a.r.linkName(x.Index), "", "")
		}
		delete(have, x)
	}
	for x := range have {
		s.fault("address", x.Prefix.String(), "kernel", "", a.r.linkName(x.Index), "the kernel has no such address")
	}
}

func (a *auditor) neighbours(s *findings, neighs []kernel.Neigh) {
	r := a.r
	have := map[neighKey]pmd.MAC{}
	for _, n := range r.fib.Neighbours() {
		if i := r.ifaces[n.Iface]; n.Known && i != nil && i.index != 0 && i.port.host != "builtin" {
			if _, fixed := r.pinned[neighKey{n.Iface, n.Addr}]; !fixed {
				have[neighKey{n.Iface, n.Addr}] = n.MAC
			}
		}
	}
	s.rep.Neighbours = uint64(len(have))
	for _, n := range neighs {
		i := r.byIndex[n.Index]
		if i == nil || n.MAC == (pmd.MAC{}) {
			continue
		}
		k := neighKey{i.id, n.Addr.WithZone("")}
		if _, fixed := r.pinned[k]; fixed {
			continue
		}
		if m, ok := have[k]; !ok || m != n.MAC {
			was := ""
			if ok {
				was = m.String()
			}
			s.fault("neighbour", fmt.Sprintf("%v on %s", n.Addr, i.name), "kernel", n.MAC.String(), was, "")
		}
		delete(have, k)
	}
	for k, m := range have {
		s.fault("neighbour", fmt.Sprintf("%v on %s", k.addr, r.ifaces[k.iface].name), "kernel", "", m.String(), "the kernel does not have it")
	}
}

// static compares with the configuration and the API.
func (a *auditor) static(s *findings, routes *fib.RouteAudit) {
	r := a.r
	r.mu.Lock()
	defer r.mu.Unlock()
	want := values(r.static)
	s.rep.OtherRoutes += uint64(len(want))
	routes.Check(want, func(want, have *fib.Route) {
		s.fault("route", r.routeName(want), want.Source.String(), r.routeText(want), r.routeText(have), r.whyNot(want))
	})
	for _, w := range r.waiting {
		s.note("route", w, "config", "", "", "it is used as soon as an interface leads there")
	}
}

func (r *Router) isStatic(k fib.Key) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	_, ok := r.static[k]
	return ok
}

// whyNot is what is known about a route that should be there.
func (r *Router) whyNot(x *fib.Route) string {
	if r.fibErr != "" {
		return "a change of the forwarding table failed: " + r.fibErr
	}
	return ""
}

func (r *Router) linkName(index int) string {
	return "on " + cmp.Or(r.known[index].Name, fmt.Sprint("interface ", index))
}

// names are those of the interfaces.
func (r *Router) names() map[uint16]string { return *r.tables.Names.Load() }

// routeName names a route as `ip route` would.
func (r *Router) routeName(x *fib.Route) string {
	s := x.Prefix.String()
	if x.Metric != 0 {
		s += fmt.Sprint(" metric ", x.Metric)
	}
	if x.Table != 0 && x.Table != kernel.TableMain {
		s += fmt.Sprint(" table ", x.Table)
	}
	return s
}

// routeText tells a route's way; empty for none.
func (r *Router) routeText(x *fib.Route) string {
	if x == nil {
		return ""
	}
	if x.Type != fib.Unicast {
		return x.Type.String()
	}
	names, s := r.names(), ""
	for i, h := range x.NextHops {
		if i > 0 {
			s += ", "
		}
		if h.Via.IsValid() {
			s += "via " + h.Via.String() + " "
		}
		s += "dev " + cmp.Or(names[h.Iface], fmt.Sprint(h.Iface))
		if len(x.NextHops) > 1 {
			s += fmt.Sprint(" weight ", max(1, h.Weight))
		}
		if h.MTU != 0 {
			s += fmt.Sprint(" mtu ", h.MTU)
		}
	}
	return s
}
