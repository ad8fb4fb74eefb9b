package router

import (
	"context"
	"fmt"
	"hash/maphash"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"time"

	"go.uber.org/zap"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
	"millrace/control/rib"
	"millrace/control/routefile"
	"millrace/fib"
)

// load is a file of routes, of the configuration or the API. Its goroutine reads the file, and then all
// routes come in or none.
type load struct {
	cfg    config.RouteFile
	api    bool
	set    *rib.Set
	done   chan struct{} // closed when the file was read
	err    error         // why it was not
	at     time.Time     // when
	routes int
	unfit  int // of another family than all gateways
}

// syncFiles loads and unloads files as the configuration says.
func (r *Router) syncFiles() {
	for _, l := range slices.Clone(r.src.loads) {
		if !l.api && !slices.ContainsFunc(r.cfg.Files, func(c config.RouteFile) bool { return reflect.DeepEqual(c, l.cfg) }) {
			r.unload(l)
		}
	}
	for _, c := range r.cfg.Files {
		if !slices.ContainsFunc(r.src.loads, func(l *load) bool { return !l.api && l.cfg.File == c.File }) {
			r.load(c, false)
		}
	}
}

func (r *Router) load(c config.RouteFile, byAPI bool) *load {
	l := &load{cfg: c, api: byAPI, set: r.src.files.NewSet(c.File), done: make(chan struct{})}
	r.src.loads = append(r.src.loads, l)
	go func() {
		defer close(l.done)
		start := time.Now()
		var peer netip.Addr
		if c.Peer != "" {
			peer = netip.MustParseAddr(c.Peer) // the configuration's check has seen it
		}
		routes, err := routefile.Load(c.File, peer)
		unfit := l.fill(routes)
		r.mu.Lock()
		defer r.mu.Unlock()
		if !slices.Contains(r.src.loads, l) {
			return // unloaded meanwhile
		}
		l.at, l.err = time.Now(), err
		if err != nil {
			r.log.Error("routes of a file", zap.Error(err))
			return
		}
		l.routes, l.unfit = l.set.Len(), unfit
		r.log.Info("routes of a file", zap.String("file", c.File), zap.Int("routes", l.routes), zap.Duration("read in", time.Since(start)))
	}()
	return l
}

// unload takes a file's routes away.
func (r *Router) unload(l *load) {
	l.set.Remove()
	r.src.loads = slices.DeleteFunc(r.src.loads, func(o *load) bool { return o == l })
}

// fill puts a file's routes into the set, and returns how many cannot be.
func (l *load) fill(routes []routefile.Route) (unfit int) {
	v4, v6 := gateways(l.cfg.Via, true), gateways(l.cfg.Via, false)
	if len(v4) == 0 {
		v4 = v6 // RFC 8950
	}
	seed := maphash.MakeSeed()
	changes := make([]rib.Change, 0, rib.Batch)
	var hop [1]rib.Hop
	for _, x := range routes {
		hop[0] = rib.Hop{Via: x.Via, Weight: 1}
		if len(l.cfg.Via) != 0 {
			all := v4
			if x.Prefix.Addr().Is6() {
				all = v6
			}
			if len(all) == 0 {
				unfit++
				continue
			}
			hop[0] = all[maphash.Comparable(seed, x.Prefix)%uint64(len(all))]
		}
		if !hop[0].Via.IsValid() || hop[0].Via.IsUnspecified() || hop[0].Via.IsMulticast() {
			unfit++
			continue
		}
		changes = append(changes, rib.Change{Prefix: x.Prefix, Path: l.set.Path(rib.Attrs{Type: fib.Unicast}, hop[:])})
		if len(changes) == cap(changes) {
			unfit += l.set.Apply(changes)
			changes = changes[:0]
		}
	}
	return unfit + l.set.Apply(changes)
}

// gateways are those of a family, each as often as its weight says.
func gateways(via []config.NextHop, is4 bool) (out []rib.Hop) {
	for _, h := range via {
		for range h.Weight {
			if h.Addr.Is4() == is4 {
				out = append(out, rib.Hop{Via: h.Addr, Dev: h.Dev, Weight: 1})
			}
		}
	}
	return out
}

// ListRouteFiles implements api.Backend.
func (r *Router) ListRouteFiles(context.Context, *v1.ListRouteFilesRequest) (*v1.RouteFiles, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	out := &v1.RouteFiles{}
	for _, l := range r.src.loads {
		x := &v1.RouteFile{File: l.cfg.File, Source: fib.SourceConfig.String(), State: "loaded", Routes: uint64(l.routes), Unreachable: uint64(l.unfit + l.set.Waiting())}
		if l.api {
			x.Source = fib.SourceAPI.String()
		}
		switch {
		case l.at.IsZero():
			x.State = "reading"
		case l.err != nil:
			x.State, x.Error = "failed", l.err.Error()
		default:
			x.LoadedUnixNs = l.at.UnixNano()
		}
		out.Files = append(out.Files, x)
	}
	return out, nil
}

// LoadRoutes implements api.Backend.
func (r *Router) LoadRoutes(ctx context.Context, q *v1.LoadRoutesRequest) (*v1.LoadRoutesResponse, error) {
	c := config.RouteFile{File: q.File, Peer: q.Peer}
	if !filepath.IsAbs(q.File) {
		return nil, fmt.Errorf("%w: %q is not an absolute path", api.ErrInvalid, q.File)
	}
	if _, err := netip.ParseAddr(q.Peer); q.Peer != "" && err != nil {
		return nil, fmt.Errorf("%w: %q is not a peer's IP address", api.ErrInvalid, q.Peer)
	}
	for _, h := range q.Via {
		a, err := netip.ParseAddr(h.Address)
		if err != nil || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() {
			return nil, fmt.Errorf("%w: %q is not a gateway's address", api.ErrInvalid, h.Address)
		}
		c.Via = append(c.Via, config.NextHop{Addr: a.Unmap(), Dev: h.Port, Weight: int(min(max(1, h.Weight), 256))})
	}
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	start := time.Now()
	old := r.loaded(q.File)
	if old != nil && !old.api {
		unlock()
		return nil, fmt.Errorf("%w: %s is in the configuration", api.ErrExists, q.File)
	}
	l := r.load(c, true)
	unlock()
	select {
	case <-l.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if l.err != nil {
		r.unload(l)
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, l.err)
	}
	if old != nil && slices.Contains(r.src.loads, old) {
		r.unload(old)
	}
	return &v1.LoadRoutesResponse{Routes: uint64(l.routes), DurationNs: int64(time.Since(start))}, nil
}

// loaded finds a file.
func (r *Router) loaded(file string) *load {
	for _, l := range r.src.loads {
		if l.cfg.File == file {
			return l
		}
	}
	return nil
}

// UnloadRoutes implements api.Backend.
func (r *Router) UnloadRoutes(_ context.Context, q *v1.UnloadRoutesRequest) (*v1.UnloadRoutesResponse, error) {
	unlock, err := r.running()
	if err != nil {
		return nil, err
	}
	defer unlock()
	l := r.loaded(q.File)
	switch {
	case l == nil:
		return nil, fmt.Errorf("%w: no routes of %s", api.ErrNotFound, q.File)
	case !l.api:
		return nil, fmt.Errorf("%w: %s is in the configuration: take it out there", api.ErrConflict, q.File)
	}
	r.unload(l)
	return &v1.UnloadRoutesResponse{Routes: uint64(l.routes)}, nil
}
