// Package dut sets up things under test between two ports of a generator: this router, the
// kernel's forwarding, a bridge, an XDP program, or nothing but a wire, for the generator's
// own ceiling.
//
//	generator --left-- thing under test --right-- generator
//
// What needs the kernel lives in network namespaces that are made for it and
// removed with it.
package dut

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"millrace/packet"
	"millrace/pmd"
)

// End is one of the generator's two ends.
type End struct {
	Name string // "left", "right"
	// MAC is the generator's address there, Gateway what its frames are addressed to.
	MAC, Gateway pmd.MAC
	// Addr4 and Addr6 are the generator's own on the link; Net4 and Net6 are routed to it: any number of
	// addresses to send from and to.
	Addr4, Addr6 netip.Addr
	Net4, Net6   netip.Prefix
	// Open opens the generator's port. It is called once, with the pool of its buffers.
	Open func(pool *packet.Pool) (pmd.Port, error)
}

// DUT is a thing under test, ready to forward.
type DUT struct {
	Name string // of its kind, "millrace/afxdp"
	Doc  string
	// Ends are left and right.
	Ends [2]End
	// CPU is where it forwards, -1 where that is not known.
	CPU int
	// Wire says that there is nothing between the ends: frames of one are addressed to the other.
	Wire bool

	ready func(context.Context) error
	drops func(context.Context) (map[string]uint64, error)
	alive func() error
	close []func()
}

// Options of Open.
type Options struct {
	// CPU is for the thing under test; the generator has another.
	CPU int
	// Config is added to the configuration of Millrace: features whose price is asked.
	Config string
	// Setup are commands, run in the namespace of a thing under test of the kernel's.
	Setup []string
}

// Networks behind the ends: the blocks for benchmarks (RFC 2544 appendix C, RFC 5180 section 8).
var nets = [2]struct{ v4, v6 netip.Prefix }{
	{netip.MustParsePrefix("198.18.0.0/16"), netip.MustParsePrefix("2001:2::/49")},
	{netip.MustParsePrefix("198.19.0.0/16"), netip.MustParsePrefix("2001:2:0:8000::/49")},
}

// kind is one kind of thing under test.
type kind struct {
	name, doc string
	root      bool
	open      func(ctx context.Context, o Options) (*DUT, error)
}

func kinds() []kind {
	return []kind{
		{"millrace/memif", "this router in a process of its own, over shared memory", false, openMemif},
		{"millrace/afxdp", "this router in a namespace, AF_XDP over veth", true, millrace("afxdp")},
		{"millrace/afpacket", "this router in a namespace, AF_PACKET over veth", true, millrace("afpacket")},
		{"kernel", "the kernel's forwarding, polled by a thread on a CPU of its own", true, openKernel},
		{"bridge", "the kernel's bridge, polled the same way", true, openBridge},
		{"xdp", "an XDP program that forwards by the kernel's routes, polled the same way", true, openXDP},
		{"wire/memif", "nothing but shared memory: the generator against itself", false, openWireMemif},
		{"wire/veth", "nothing but a veth pair: the generator against itself", true, openWireVeth},
	}
}

// Kinds lists the names, each with a line about it.
func Kinds() (names, docs []string) {
	for _, k := range kinds() {
		names, docs = append(names, k.name), append(docs, k.doc)
	}
	return names, docs
}

// Resolve finds the kind that a user means: "millrace" is the fastest of its kinds that this user may run.
func Resolve(name string, root bool) (string, error) {
	if name == "millrace" {
		name = "millrace/memif"
		if root {
			name = "millrace/afxdp"
		}
	}
	for _, k := range kinds() {
		if k.name != name {
			continue
		}
		if k.root && !root {
			return "", fmt.Errorf("%s needs root, for network namespaces; as this user there is millrace/memif", name)
		}
		return name, nil
	}
	names, _ := Kinds()
	return "", fmt.Errorf("no thing under test is called %q: there are %s", name, strings.Join(names, ", "))
}

// WireOf is the kind with nothing between the same ports: its rate is the generator's own ceiling.
func WireOf(name string) string {
	switch name {
	case "millrace/memif", "wire/memif":
		return "wire/memif"
	}
	return "wire/veth"
}

// Open sets one up. It is closed when ctx ends before it is ready.
func Open(ctx context.Context, name string, o Options) (*DUT, error) {
	i := slices.IndexFunc(kinds(), func(k kind) bool { return k.name == name })
	if i < 0 {
		_, err := Resolve(name, true)
		return nil, err
	}
	k := kinds()[i]
	d, err := k.open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	d.Name, d.Doc = k.name, k.doc
	for i := range d.Ends {
		e := &d.Ends[i]
		e.Name = [2]string{"left", "right"}[i]
		e.Net4, e.Net6 = nets[i].v4, nets[i].v6
	}
	return d, nil
}

// Ready waits until the generator's ports, whose queues must be running, have a link, and the thing under test has its
// routes and neighbours.
func (d *DUT) Ready(ctx context.Context, ports ...pmd.Port) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("not ready after 20 s"))
	defer cancel()
	for !up(ports) {
		if err := d.wait(ctx); err != nil {
			return fmt.Errorf("%s: the generator's ports have no link: %w", d.Name, err)
		}
	}
	if d.ready == nil {
		return nil
	}
	for {
		err := d.ready(ctx)
		if err == nil {
			return nil
		}
		if e := d.wait(ctx); e != nil {
			return fmt.Errorf("%s: %w: %w", d.Name, e, err)
		}
	}
}

func up(ports []pmd.Port) bool {
	for _, p := range ports {
		if !p.Link().Up {
			return false
		}
	}
	return true
}

// wait passes some time, unless there is nothing to wait for any more.
func (d *DUT) wait(ctx context.Context) error {
	if err := d.Alive(); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(5 * time.Millisecond):
		return nil
	}
}

// Drops are the thing's own counters of what it dropped, by name, since it was opened; nil where it has none. They are
// read between trials.
func (d *DUT) Drops(ctx context.Context) (map[string]uint64, error) {
	if d.drops == nil {
		return nil, nil
	}
	m, err := d.drops(ctx)
	// What has just ended does not answer any more, and is known to have ended a little later.
	for range 100 {
		if err == nil || d.Alive() != nil {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	return m, errors.Join(d.Alive(), err)
}

// Alive is an error, with what it said last, when the thing under test has ended.
func (d *DUT) Alive() error {
	if d.alive == nil {
		return nil
	}
	return d.alive()
}

// Close takes it down. The generator's ports must be closed before.
func (d *DUT) Close() {
	for _, f := range slices.Backward(d.close) {
		f()
	}
	d.close = nil
}

func (d *DUT) onClose(f func()) { d.close = append(d.close, f) }
