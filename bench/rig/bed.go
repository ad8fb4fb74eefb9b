// Package rig puts a generator and a thing under test together, makes searches on them side by side, and keeps what
// came of it in the folder of a run.
//
//	bed       a generator, a thing under test, and what was measured of both between trials
//	run       searches of several beds in turn, with the generator's own ceiling first
//	commands  `millrace bench gen`, `rfc2544`, `mlrsearch`, `soak`
package rig

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"millrace/bench/dut"
	"millrace/bench/gen"
	"millrace/bench/pin"
	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/packet"
	"millrace/pmd"
)

// Place says on which CPUs a bed works.
type Place struct {
	Gen []int // of the generator: one for both ports, or one each
	DUT int   // of the thing under test
}

// PlaceOn spreads a bed over CPUs: the thing under test has the last for itself, the generator the first, or the first
// two where there are more than three.
func PlaceOn(cpus []int) (Place, error) {
	switch n := len(cpus); {
	case n < 2:
		return Place{}, fmt.Errorf("this process may use %d CPU: the generator and the thing under test need one each", n)
	case n < 4:
		return Place{cpus[:1], cpus[n-1]}, nil
	default:
		return Place{cpus[:2], cpus[n-1]}, nil
	}
}

// Setup is what a bed is made of.
type Setup struct {
	// Profile is a ready profile's name or a file; Sizes are the frame sizes that will be asked for, in bytes with FCS;
	// none for the profile's own.
	Profile string
	Sizes   []int
	Place   Place
	Options dut.Options // of the thing under test; its CPU is Place's
	// Outside are the generator's ports where the thing under test stands outside this machine, or was set up by somebody else.
	Outside *dut.Outside
}

// Bed is a generator with a thing under test. It comes up at the first trial, and again after Rest: beds that take
// turns leave each other the CPUs. One goroutine uses it.
type Bed struct {
	kind  string
	setup Setup

	dut   *dut.DUT
	gen   *gen.Generator
	pool  *packet.Pool
	ports []pmd.Port
	mean  float64 // frame size of the profile
	rate  float64 // of the profile in frames a second, 0 where a stream has a part of the line
	line  [2]float64
	drops map[string]uint64
}

// NewBed makes a bed of a kind of thing under test. It opens nothing yet, but looks at the profile.
func NewBed(kind string, s Setup) (*Bed, error) {
	b := &Bed{kind: kind, setup: s}
	p, err := traffic.Open(s.Profile, environment(nil))
	if err != nil {
		return nil, err
	}
	for _, size := range s.Sizes {
		if _, err := p.At(size); err != nil {
			return nil, err
		}
	}
	var sum, all float64
	line := false
	for i := range p.Streams {
		st := &p.Streams[i]
		line = line || st.Rate.Unit == traffic.Percent
		sum += st.MeanSize() * max(st.FPS(0), 1)
		all += max(st.FPS(0), 1)
	}
	if all > 0 {
		b.mean = sum / all
	}
	if !line {
		b.rate = all
	}
	return b, nil
}

// Name is that of the thing under test.
func (b *Bed) Name() string { return b.kind }

// MeanSize is the profile's own, in bytes with FCS; 0 where nothing is known of it.
func (b *Bed) MeanSize() float64 { return b.mean }

// Rate is the profile's own in frames a second; 0 where it depends on the line.
func (b *Bed) Rate() float64 { return b.rate }

// Line is the rate that the ports' speed allows, 0 for memory and veth pairs, whose speed is nobody's.
func (b *Bed) Line(size int) float64 {
	n := float64(size)
	if size == 0 {
		n = b.mean
	}
	if b.setup.Outside == nil || n == 0 {
		return 0
	}
	if err := b.Up(context.Background()); err != nil {
		return 0 // the first trial will say why
	}
	return (b.line[0] + b.line[1]) / 8 / (n + trial.Overhead)
}

// Streams is what became of each stream in the last trial.
func (b *Bed) Streams() []gen.StreamCount {
	if b.gen == nil {
		return nil
	}
	return b.gen.Streams()
}

// Try makes a trial; see trial.Bed. The thing's own counters are read before and after it.
func (b *Bed) Try(ctx context.Context, l trial.Load) (*trial.Outcome, error) {
	if err := b.Up(ctx); err != nil {
		return nil, err
	}
	o, err := b.gen.Try(ctx, l)
	if err != nil {
		return nil, errors.Join(err, b.dut.Alive())
	}
	return o, b.look(ctx, o)
}

// look takes the thing's counters after a trial, and sees whether it lives.
func (b *Bed) look(ctx context.Context, o *trial.Outcome) error {
	if err := b.dut.Alive(); err != nil {
		return err
	}
	now, err := b.dut.Drops(ctx)
	if err != nil {
		return err
	}
	for k, v := range now {
		if v > b.drops[k] {
			if o.Drops == nil {
				o.Drops = map[string]uint64{}
			}
			o.Drops[k] = v - b.drops[k]
		}
	}
	b.drops = now
	return nil
}

// environment is what a profile is compiled for on a thing under test; nil before there is one.
func environment(d *dut.DUT) traffic.Env {
	nets := dut.Networks()
	e := traffic.Env{}
	for side, end := range []*traffic.End{&e.Left, &e.Right} {
		end.V4, end.V6 = host(nets[side][0]), host(nets[side][1])
		if d != nil {
			end.MAC, end.Peer = d.Ends[side].MAC, d.Ends[side].Gateway
		}
	}
	return e
}

// host is the second address of a network: the first that no router likes to have.
func host(p netip.Prefix) netip.Addr { return p.Addr().Next().Next() }

// buffers of a generator's pool: two rings each way for both ports, and what is on its way.
const buffers = 1 << 15

// Up brings the generator and the thing under test up, where they are not.
func (b *Bed) Up(ctx context.Context) (err error) {
	if b.gen != nil {
		return nil
	}
	defer func() {
		if err != nil {
			b.Rest()
		}
	}()
	b.setup.Options.CPU = b.setup.Place.DUT
	if b.setup.Outside != nil {
		b.dut, err = dut.OpenOutside(b.kind, *b.setup.Outside)
	} else {
		b.dut, err = dut.Open(ctx, b.kind, b.setup.Options)
	}
	if err != nil {
		return err
	}
	profile, err := traffic.Open(b.setup.Profile, environment(b.dut))
	if err != nil {
		return err
	}
	largest := 0 // streams are cut to smaller sizes
	for _, s := range b.setup.Sizes {
		largest = max(largest, s)
	}
	if profile, err = profile.At(largest); err != nil {
		return err
	}
	if b.pool, err = packet.NewPool("generator", buffers); err != nil {
		return err
	}
	o := gen.Options{Streams: profile.Streams, Pool: b.pool, CPUs: b.setup.Place.Gen}
	for side := range b.dut.Ends {
		e := &b.dut.Ends[side]
		p, err := e.Open(b.pool)
		if err != nil {
			return fmt.Errorf("%s: the generator's port %s: %w", b.kind, e.Name, err)
		}
		b.ports = append(b.ports, p)
		for _, a := range []netip.Prefix{e.Net4, e.Net6, single(e.Addr4), single(e.Addr6)} {
			if a.IsValid() {
				o.Hosts[side] = append(o.Hosts[side], gen.Host{Prefix: a, MAC: e.MAC})
			}
		}
	}
	o.Left, o.Right = b.ports[0], b.ports[1]
	if b.gen, err = gen.New(o); err != nil {
		return err
	}
	if err := b.dut.Ready(ctx, b.ports...); err != nil {
		return err
	}
	b.line = [2]float64{}
	for i := range profile.Streams {
		side := profile.Streams[i].Side
		b.line[side] = float64(b.ports[side].Link().Mbps) * 1e6
	}
	return b.warm(ctx)
}

func single(a netip.Addr) netip.Prefix {
	if !a.IsValid() {
		return netip.Prefix{}
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// warm waits until frames come through, and then fills caches, tables and buffers by some at full rate. None of it counts.
func (b *Bed) warm(ctx context.Context) error {
	const patience = 10 * time.Second
	size := 0
	if len(b.setup.Sizes) > 0 {
		size = b.setup.Sizes[0]
	}
	for end := time.Now().Add(patience); ; {
		o, err := b.gen.Try(ctx, trial.Load{Rate: 2000, Size: size, Duration: 20 * time.Millisecond})
		if err != nil {
			return errors.Join(err, b.dut.Alive())
		}
		if o.Received > 0 && o.Lost == 0 {
			break
		}
		if time.Now().After(end) {
			_ = b.look(ctx, o) // for the drops; it says itself if it is dead
			return errors.Join(b.dut.Alive(), fmt.Errorf("%s: of 40 frames at 2000 a second %d come through after %v; dropped there: %v", b.kind, o.Received, patience, o.Drops))
		}
	}
	if _, err := b.gen.Try(ctx, trial.Load{Size: size, Duration: 200 * time.Millisecond}); err != nil {
		return errors.Join(err, b.dut.Alive())
	}
	var err error
	b.drops, err = b.dut.Drops(ctx)
	return err
}

// Rest takes the generator and the thing under test down; the next trial brings them up again.
func (b *Bed) Rest() {
	if b.gen != nil {
		b.gen.Close()
		b.gen = nil
	}
	for _, p := range b.ports {
		p.Close()
	}
	b.ports = nil
	if b.dut != nil {
		b.dut.Close()
		b.dut = nil
	}
	if b.pool != nil {
		b.pool.Close()
		b.pool = nil
	}
}

// Close takes all down.
func (b *Bed) Close() error {
	b.Rest()
	return nil
}

// place is where beds work on this machine.
func place() (Place, error) { return PlaceOn(pin.CPUs()) }
