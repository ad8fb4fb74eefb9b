// Package router is the running router: it opens the ports of a configuration, feeds the
// FIB from the kernel, the configuration and the API, keeps both going, and answers
// for all of it as api.Backend.
//
// # Life
//
// New takes a configuration and opens nothing. Run makes pool, tables, FIB and pipeline, opens
// the ports, follows the kernel and returns when its context ended and all is as it was before: ports
// closed, addresses and interfaces that the configuration added taken away. After a SIGKILL
// the kernel itself takes XDP programs, TAPs and sockets away.
//
// # Who does what
//
//   - Run's goroutine opens and closes ports and applies configurations: everything that
//     belongs to the network namespace of Run's thread.
//   - The follower's goroutine (package kernel) brings what the kernel has.
//   - The resolver's goroutine asks for neighbours and takes what the built-in host learned.
//   - Calls of the API read under the lock, or have Run's goroutine do the work.
//
// Router.mu guards the control state. It may be held while workers are asked to do
// something (pipeline.Worker.Do), so that workers never take it. The order of locks is auditor.mu, Router.mu, those of
// the tables (rib.Table, mcast.Table), that of the FIB: what a table calls under its own lock takes none of those before.
//
// # What of the kernel is not followed
//
// Routes for one type of service or source only; rules with conditions that the FIB does not know (fibRule). They are told by
// `show status` and `audit`. Encapsulating next hops, and links that are not ports, make a route
// unreachable for forwarded packets.
//
// # Privileges
//
// A port whose device came back is opened again at any time, so the process
// keeps CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK as long as it runs.
package router

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"millrace/control/config"
	"millrace/control/kernel"
	"millrace/control/rule"
	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/internal/clock"
	"millrace/internal/epoch"
	"millrace/ip/host"
	"millrace/ip/icmp"
	"millrace/ip/neigh"
	"millrace/packet"
	"millrace/pipeline"
	"millrace/pipeline/graph"
	"millrace/pmd"
)

// Options of a router.
type Options struct {
	Log     *zap.Logger     // nil for none
	Level   zap.AtomicLevel // of Log, where it can be changed; else the zero value
	Version string
}

// Router is one router. See the package comment.
type Router struct {
	opt     Options
	log     *zap.Logger
	started time.Time
	ticks   uint64 // clock.Ticks at the start

	calls   chan func() // for Run's goroutine
	kick    chan struct{}
	asks    chan wish
	learned chan lesson
	done    chan struct{} // closed when Run returns

	pool      *packet.Pool
	tables    *graph.Tables
	domain    *epoch.Domain
	fib       *fib.FIB
	mcast     *mcast.Table
	host      *host.Service
	links     *netlink.Handle // in the network namespace of Run
	freeCores func()          // lets other threads back onto the workers' CPUs
	cores     []int

	mu       sync.Mutex
	cfg      *config.Config
	last     *config.Config // what Rollback goes back to
	confirm  time.Time      // when the pending configuration is taken back; zero for none
	pipe     *pipeline.Pipeline
	follower *kernel.Follower
	nextAsk  time.Time
	stopKern func() // ends the follower and waits
	ready    func()
	measure  bool

	ports   []*port
	ids     map[string]uint16 // interface numbers by name; kept when an interface goes, for when it comes back
	ifaces  map[uint16]*iface
	byIndex map[int]*iface // by the kernel's index
	known   map[int]kernel.Link
	addrs   []kernel.Addr       // of all links, in the order they were added
	locals  map[netip.Addr]bool // host routes of the kernel's local table: addresses, anycast, and what `ip route add local` made
	neighs  map[neighKey]kernel.Neigh
	pinned  map[neighKey]pmd.MAC // neighbours of the configuration
	foreign map[int]bool         // links that routes lead to and that are not ours, told once
	synced  bool
	// replayed is closed when the kernel's state was told anew for ports that apply added; nil otherwise.
	replayed <-chan struct{}

	apiRoutes map[fib.Key]config.Route
	static    map[fib.Key]fib.Route        // of configuration and API, as given to the FIB
	seed      uint64                       // of multipath where the configuration has none: routers in a row have different ones
	waiting   []string                     // static routes that no interface leads to, in words
	fibErr    string                       // what did not fit, for people
	rules     []rule.Rule                  // of the kernel
	ways      map[*kernel.Path]way         // of the kernel's paths while byIndex is what it was
	given     [2][]fib.Rule                // that the FIB has, by family
	oddRules  []string                     // rules that it cannot have, and why
	ruleErr   string                       // why it has not taken them all
	extra     []uint32                     // tables that the follower was told of
	hot       map[uint32]uint16            // numbers of the tables of interfaces, by the kernel's numbers
	odd       map[kernel.RouteKey]struct{} // routes of the kernel that the FIB cannot have
	captures  []*sentCapture
	auditor   auditor
	multicast mroutes
	src       sources
}

type neighKey struct {
	iface uint16
	addr  netip.Addr
}

// New makes a router that is to run a configuration, which belongs to it from now on.
func New(cfg *config.Config, o Options) (*Router, error) {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	r := &Router{
		opt: o, log: o.Log, started: time.Now(), ticks: clock.Ticks(), cfg: cfg,
		calls: make(chan func()), kick: make(chan struct{}, 1), done: make(chan struct{}),
		asks: make(chan wish, 4096), learned: make(chan lesson, 4096),
		ids: map[string]uint16{}, ifaces: map[uint16]*iface{}, byIndex: map[int]*iface{}, known: map[int]kernel.Link{}, locals: map[netip.Addr]bool{},
		neighs: map[neighKey]kernel.Neigh{}, pinned: map[neighKey]pmd.MAC{}, foreign: map[int]bool{},
		multicast: newMroutes(),
		seed:      rand.Uint64(),
		apiRoutes: map[fib.Key]config.Route{}, static: map[fib.Key]fib.Route{}, ways: map[*kernel.Path]way{}, odd: map[kernel.RouteKey]struct{}{}, hot: map[uint32]uint16{},
	}
	r.auditor.r = r
	return r, cfg.Check()
}

// upkeep is how often ports are looked at.
const upkeep = 100 * time.Millisecond

// askGateways is how often next hops of routes in use are asked for while they are not known.
const askGateways = time.Second

// Run forwards until ctx ends. ready, which may be nil, is called once packets are forwarded. Run
// may be called once; everything happens in the network namespace of the calling thread.
func (r *Router) Run(ctx context.Context, ready func()) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(r.done)
	if os.Getenv("GOGC") == "" {
		defer debug.SetGCPercent(debug.SetGCPercent(400))
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		// With so much garbage allowed, a burst of routes could take a small machine's memory.
		var si unix.Sysinfo_t
		if unix.Sysinfo(&si) == nil {
			defer debug.SetMemoryLimit(debug.SetMemoryLimit(int64(uint64(si.Totalram) * uint64(si.Unit) / 4)))
		}
	}
	if err := checkRights(r.cfg); err != nil {
		return err
	}
	r.ready = ready
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer func() { err = errors.Join(err, r.stop()) }()
	r.newSources(ctx)
	if err := r.start(); err != nil {
		return err
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { r.resolver(ctx) })
	wg.Go(func() { r.auditor.patrol(ctx) })
	wg.Go(func() { r.feedSources(ctx) })
	defer cancel()
	if err := r.openAll(); err != nil {
		return err
	}
	if err := r.follow(); err != nil {
		return err
	}
	r.mu.Lock()
	err = r.syncSources()
	r.mu.Unlock()
	if err != nil {
		return err
	}
	r.checkReady()
	tick := time.NewTicker(upkeep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case f := <-r.calls:
			f()
		case <-r.kick:
		case <-tick.C:
		}
		r.maintain(time.Now())
	}
}

// start makes everything but ports.
func (r *Router) start() error {
	var err error
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.links, err = netlink.NewHandle(); err != nil {
		return fmt.Errorf("router: netlink: %w", err)
	}
	r.cores, r.freeCores = chooseCores(r.cfg.Workers.Cores)
	if r.pool, err = packet.NewPool("main", poolSize(r.cfg, max(1, len(r.cores)))); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	if r.tables, err = graph.NewTables(); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	r.domain = epoch.NewDomain()
	if r.fib, err = fib.New(r.tables, r.domain, fib.Reasons{Unresolved: neigh.XUnresolved}); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	r.spread()
	r.mcast = mcast.New(r.fib, r.domain)
	n := max(1, len(r.cores))
	limits := icmp.Limits{Rate: max(1, r.cfg.ICMP.Rate/n), Burst: max(1, r.cfg.ICMP.Burst/n), None: r.cfg.ICMP.Rate == 0}
	r.host = host.New(host.Config{Learn: r.learn, Lost: r.lost, ErrorRate: limits.Rate, ErrorBurst: limits.Burst})
	path := pipeline.Default(pipeline.Parts{FIB: r.fib, Multicast: r.mcast, Neighbour: resolver{r}, Host: r.host, ICMP: limits})
	o := pipeline.Options{Pool: r.pool, Tables: r.tables, Epoch: r.domain, Path: path, Cores: r.cores, Spin: r.cfg.Workers.Spin, Sleep: r.cfg.Workers.Sleep}
	if r.cfg.Workers.Poll != "busy" {
		o.Poll = pipeline.Adaptive
	}
	if r.pipe, err = pipeline.New(o); err != nil {
		return fmt.Errorf("router: %w", err)
	}
	for i := range r.cfg.Ports {
		r.ports = append(r.ports, r.newPort(r.cfg.Ports[i]))
	}
	r.syncRules()
	return nil
}

// poolSize is how many buffers the ports' rings need, with as many again for packets on
// their way and for ports that are added later.
func poolSize(c *config.Config, workers int) int {
	if c.Pool.Buffers != 0 {
		return c.Pool.Buffers
	}
	n := 8192 * workers
	for _, p := range c.Ports {
		q, ring := p.Queues, p.Ring
		if q == 0 {
			q = workers
		}
		if ring == 0 {
			ring = 2048
		}
		n += 2 * 2 * q * ring
	}
	return max(n, 32768)
}

// stop undoes what Run did.
func (r *Router) stop() error {
	r.auditor.close()
	r.stopFPM()
	r.mu.Lock()
	kern, mkern := r.stopKern, r.multicast.stop
	r.mu.Unlock()
	if mkern != nil {
		mkern()
	}
	if kern != nil {
		kern()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var errs []error
	for _, p := range r.ports {
		errs = append(errs, r.closePort(p, true))
	}
	if r.pipe != nil {
		r.pipe.Close()
		r.pipe = nil
	}
	if r.freeCores != nil {
		r.freeCores()
	}
	if r.mcast != nil {
		r.mcast.Close()
	}
	if r.fib != nil {
		r.fib.Close()
	}
	if r.tables != nil {
		r.tables.Close()
	}
	if r.pool != nil {
		if n := r.pool.Size() - r.pool.Free(); n != 0 {
			errs = append(errs, fmt.Errorf("router: %d packet buffers were not given back", n))
		} else {
			errs = append(errs, r.pool.Close())
		}
	}
	if r.links != nil {
		r.links.Close()
	}
	return errors.Join(errs...)
}

// do has Run's goroutine call f.
func (r *Router) do(ctx context.Context, f func() error) error {
	res := make(chan error, 1)
	select {
	case r.calls <- func() { res <- f() }:
		return <-res
	case <-r.done:
		return errors.New("the router is stopping")
	case <-ctx.Done():
		return ctx.Err()
	}
}

// wake has Run's goroutine look at the ports soon.
func (r *Router) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// follow starts to follow the kernel, where a port has to do with it.
func (r *Router) follow() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.followLocked()
}

// knownToKernel: some port has its addresses in the kernel.
func (r *Router) knownToKernel() bool {
	return slices.ContainsFunc(r.ports, func(p *port) bool { return p.host != "builtin" })
}

func (r *Router) followLocked() error {
	if r.follower != nil || !r.knownToKernel() {
		return nil
	}
	f, err := kernel.New(sink{r}, kernel.Options{
		Log: r.log.Named("kernel"), KeepAlive: r.keepAlive,
	})
	if err != nil {
		return err
	}
	if r.auditor.dumper, err = kernel.NewDumper(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := f.Run(ctx); err != nil {
			r.log.Error("following the kernel", zap.Error(err))
		}
	}()
	r.extra = nil
	r.follower, r.stopKern = f, func() { cancel(); <-done }
	r.syncRules()
	return r.followMroutes()
}

// checkReady calls ready once packets are forwarded.
func (r *Router) checkReady() {
	r.mu.Lock()
	f := r.ready
	if f == nil || !r.forwarding() {
		r.mu.Unlock()
		return
	}
	r.ready = nil
	r.mu.Unlock()
	f()
}

// forwarding: some port is polled, and the kernel's routes are there.
func (r *Router) forwarding() bool {
	if r.pipe == nil || r.knownToKernel() && !r.synced {
		return false
	}
	return slices.ContainsFunc(r.ports, func(p *port) bool { return p.dev != nil })
}

// maintain does what is due: devices that went away or came back, links, wishes for
// gateways, a configuration that nobody confirmed.
func (r *Router) maintain(now time.Time) {
	r.mu.Lock()
	if r.pipe == nil {
		r.mu.Unlock()
		return
	}
	for _, p := range r.ports {
		r.tend(p, now)
	}
	if now.After(r.nextAsk) {
		r.nextAsk = now.Add(askGateways)
		for _, n := range r.fib.Unresolved() {
			r.ask(wish{n.Iface, n.Addr})
		}
	}
	r.tendMroutes(now)
	r.domain.Reclaim()
	expired := !r.confirm.IsZero() && now.After(r.confirm)
	r.mu.Unlock()
	if expired {
		r.log.Warn("the configuration was not confirmed: going back to the one before")
		if _, err := r.rollback(); err != nil {
			r.log.Error("going back", zap.Error(err))
		}
	}
	r.checkReady()
}
