package router

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.uber.org/zap"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
)

// GetConfig implements api.Backend.
func (r *Router) GetConfig(context.Context, *v1.GetConfigRequest) (*v1.Config, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return &v1.Config{Yaml: string(r.cfg.YAML()), Path: r.cfg.File()}, nil
}

// needsRestart says whether a change cannot be made while the router runs.
func needsRestart(c config.Change) bool {
	switch c.Kind {
	case "pool", "workers", "api", "metrics":
		return true
	case "icmp":
		return c.Key != "redirects"
	}
	return false
}

// ApplyConfig implements api.Backend. Ports, routes and neighbours that both configurations have
// alike are not touched. Where a port of the new one cannot be opened, the old one stays in force.
func (r *Router) ApplyConfig(ctx context.Context, q *v1.ApplyConfigRequest) (*v1.ApplyConfigResponse, error) {
	c, err := config.Parse(cmpOr(q.Path, "request"), []byte(q.Yaml))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", api.ErrInvalid, err)
	}
	if q.ConfirmNs < 0 {
		return nil, fmt.Errorf("%w: a negative time to confirm", api.ErrInvalid)
	}
	out := &v1.ApplyConfigResponse{}
	return out, r.reconfigure(ctx, func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.pipe == nil {
			return fmt.Errorf("%w: the router is stopping", api.ErrConflict)
		}
		if !r.confirm.IsZero() && !q.DryRun {
			return fmt.Errorf("%w: the configuration applied before waits for being confirmed: confirm it or roll it back first", api.ErrConflict)
		}
		old := r.cfg
		if c.API.Socket == "" { // where the router chose one, it stays
			c.API.Socket = old.API.Socket
		}
		for _, d := range config.Diff(old, c) {
			out.Changes = append(out.Changes, d.String())
			if needsRestart(d) {
				out.NeedRestart = append(out.NeedRestart, d.String())
			}
		}
		if q.DryRun || len(out.NeedRestart) != 0 {
			return nil
		}
		if err := r.apply(c); err != nil {
			return err
		}
		out.Applied, r.last = true, old
		if q.ConfirmNs != 0 {
			r.confirm = time.Now().Add(time.Duration(q.ConfirmNs))
		}
		r.log.Info("configuration applied", zap.Strings("changes", out.Changes), zap.Duration("confirm within", time.Duration(q.ConfirmNs)))
		return nil
	})
}

// reconfigure is do for a change of the configuration: new ports have the kernel's routes when it returns.
func (r *Router) reconfigure(ctx context.Context, f func() error) error {
	var replayed <-chan struct{}
	err := r.do(ctx, func() error {
		err := f()
		replayed, r.replayed = r.replayed, nil
		return err
	})
	if replayed != nil {
		select {
		case <-replayed:
		case <-r.done:
		case <-ctx.Done():
		}
	}
	return err
}

// Confirm implements api.Backend.
func (r *Router) Confirm(context.Context, *v1.ConfirmRequest) (*v1.ConfirmResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.confirm.IsZero() {
		return nil, fmt.Errorf("%w: no configuration waits for being confirmed", api.ErrConflict)
	}
	r.confirm = time.Time{}
	return &v1.ConfirmResponse{}, nil
}

// Rollback implements api.Backend.
func (r *Router) Rollback(ctx context.Context, _ *v1.RollbackRequest) (*v1.ApplyConfigResponse, error) {
	out := &v1.ApplyConfigResponse{}
	return out, r.reconfigure(ctx, func() error {
		changes, err := r.rollback()
		out.Changes, out.Applied = changes, err == nil
		return err
	})
}

// rollback goes back to the configuration before the last apply. It is called on Run's goroutine.
func (r *Router) rollback() (changes []string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		return nil, fmt.Errorf("%w: no configuration was applied before this one", api.ErrConflict)
	}
	to := r.last
	for _, d := range config.Diff(r.cfg, to) {
		changes = append(changes, d.String())
	}
	r.confirm, r.last = time.Time{}, nil
	if err := r.apply(to); err != nil {
		return nil, err
	}
	r.log.Info("configuration rolled back", zap.Strings("changes", changes))
	return changes, nil
}

// apply makes a configuration the one in force; on an error the old one is, as far as the world lets it.
func (r *Router) apply(c *config.Config) error {
	old := r.cfg
	err := r.change(c)
	if err == nil {
		return nil
	}
	if back := r.change(old); back != nil {
		return fmt.Errorf("%w; and going back: %w", err, back)
	}
	return fmt.Errorf("nothing was changed: %w", err)
}

func (r *Router) change(c *config.Config) error {
	fresh := c.Kernel.Follow != r.cfg.Kernel.Follow // the kernel has something that was not taken before
	r.cfg = c
	clear(r.ways)
	var errs []error
	find := func(name string) *config.Port {
		for i := range c.Ports {
			if c.Ports[i].Name == name {
				return &c.Ports[i]
			}
		}
		return nil
	}
	// What goes, goes first: a new port may want its name, socket or device.
	kept := r.ports[:0:0]
	for _, p := range r.ports {
		if n := find(p.cfg.Name); n != nil && alike(&p.cfg, n) {
			kept = append(kept, p)
			continue
		}
		if err := r.closePort(p, true); err != nil {
			r.log.Error("closing", zap.String("port", p.cfg.Name), zap.Error(err))
		}
		r.note(r.fib.DelIface(p.main.id))
		delete(r.ifaces, p.main.id)
	}
	old := r.ports
	r.ports = kept
	for i := range c.Ports {
		n := &c.Ports[i]
		at := slices.IndexFunc(old, func(p *port) bool { return p.cfg.Name == n.Name })
		if at >= 0 && slices.Contains(kept, old[at]) {
			p := old[at]
			p.cfg, p.main.conf = *n, n.Addresses
			if p.dev != nil {
				errs = append(errs, r.syncVlans(p), r.syncAddrs(p.main))
				r.refresh(p)
			}
			continue
		}
		p := r.newPort(*n)
		r.ports = append(r.ports, p)
		if err := r.openPort(p); err != nil {
			errs = append(errs, err)
		}
		fresh = true
	}
	slices.SortStableFunc(r.ports, func(a, b *port) int { return place(c, a) - place(c, b) })
	r.publishNames()
	r.publishAddrs()
	r.spread()
	r.syncStatic()
	r.multicast.changed = true
	r.syncMroutes()
	for _, p := range r.ports { // the redirects that the FIB was told of
		if p.dev != nil {
			r.refresh(p)
		}
	}
	if r.opt.Level != (zap.AtomicLevel{}) {
		l, err := zap.ParseAtomicLevel(cmpOr(c.Log.Level, "info"))
		if err == nil {
			r.opt.Level.SetLevel(l.Level())
		}
		errs = append(errs, err)
	}
	errs = append(errs, r.syncSources())
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if r.follower != nil {
		if fresh {
			r.replayed = r.follower.Replay()
		}
		return nil
	}
	return r.followLocked()
}

// place is the port's place in the configuration.
func place(c *config.Config, p *port) int {
	return slices.IndexFunc(c.Ports, func(n config.Port) bool { return n.Name == p.cfg.Name })
}

// alike: the port can go on with the new configuration; addresses and VLANs change while it runs.
func alike(a, b *config.Port) bool {
	x, y := *a, *b
	x.Addresses, y.Addresses, x.Vlans, y.Vlans = nil, nil, nil, nil
	x.VRF, y.VRF, x.RPFilter, y.RPFilter = "", "", "", ""
	none := &config.Config{Ports: []config.Port{x}}
	return len(config.Diff(none, &config.Config{Ports: []config.Port{y}})) == 0
}
