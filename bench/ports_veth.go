package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"

	"millrace/bench/lab"
	"millrace/bench/live"
	"millrace/bench/pin"
	"millrace/bench/result"
	"millrace/control/api"
	v1 "millrace/control/api/v1"
)

// chain is generator - router - sink in namespaces of its own, with one kind of router. Chains
// wait side by side, so that changing from one to the other only means to change where
// packets go.
type chain struct {
	name   string // of its results
	driver string // of Millrace; "" for the kernel
	setup  []string
	own    bool // the kernel receives and forwards on the forwarder's CPU, by threaded NAPI

	*lab.Line
	genCPU, fwdCPU int
	gen            *live.Flood
	sink           *live.Sink

	dir string
	cmd *exec.Cmd
	log bytes.Buffer
	api *api.Client
}

const frameSize = 64

// chains are the routers that are compared. The kernel forwards in two ways: by a thread on the CPU
// that Millrace's worker has otherwise, and at once where it receives, on the generator's CPU.
func chains() []*chain {
	forward := []string{"sysctl -qw net.ipv4.ip_forward=1"}
	return []*chain{
		{name: "afxdp/veth", driver: "afxdp"},
		{name: "afpacket/veth", driver: "afpacket"},
		{name: "afxdp/veth@kernel", setup: forward, own: true},
		{name: "afxdp/veth@kernel-inline", setup: forward},
	}
}

// open builds the chain and starts its router.
func (c *chain) open(ctx context.Context, genCPU, fwdCPU int) (err error) {
	c.genCPU, c.fwdCPU = genCPU, fwdCPU
	if c.Line, err = lab.NewLine(); err != nil {
		return err
	}
	var client, sink, in *net.Interface
	for _, x := range []struct {
		h    *lab.Host
		name string
		to   **net.Interface
	}{{c.Client, "c0", &client}, {c.Server, "s0", &sink}, {c.Router, "r0", &in}} {
		if err = x.h.In(func() (err error) { *x.to, err = net.InterfaceByName(x.name); return err }); err != nil {
			return err
		}
	}
	// A veth takes XDP frames from its peer only while it polls: GRO or an XDP program makes it.
	if err = c.Router.Do(append([]string{
		"ethtool -K r0 gro on",
		"ip neigh replace " + lab.Server4 + " lladdr " + sink.HardwareAddr.String() + " dev r1 nud permanent",
		"ip neigh replace " + lab.Client4 + " lladdr " + client.HardwareAddr.String() + " dev r0 nud permanent",
		"ip route add 198.18.0.0/24 via " + lab.Server4,
	}, c.setup...)...); err != nil {
		return err
	}
	src, dst := netip.MustParseAddr(lab.Client4), netip.MustParseAddr("198.18.0.0")
	frame := live.NewFrame([6]byte(in.HardwareAddr), frameSize, src.As16(), dst.As16(), false)
	if c.gen, err = live.NewFlood(frame, client.Index); err != nil {
		return err
	}
	if err = c.Server.In(func() (err error) {
		c.sink, err = live.NewSink(frame, sink.Index)
		return err
	}); err != nil {
		return err
	}
	if c.own {
		return c.Router.PollBy(ctx, "r0", c.fwdCPU)
	}
	if c.driver != "" {
		return c.run(ctx)
	}
	return nil
}

// run starts this program as the router.
func (c *chain) run(ctx context.Context) (err error) {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if c.dir, err = os.MkdirTemp("", "millrace-bench-"); err != nil {
		return err
	}
	file, sock := filepath.Join(c.dir, "config.yaml"), filepath.Join(c.dir, "sock")
	text := fmt.Sprintf("ports:\n  - {name: r0, driver: %s}\n  - {name: r1, driver: %s}\nworkers: {cores: %d}\n", c.driver, c.driver, c.fwdCPU)
	if err = os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	c.cmd = c.Router.Command(ctx, self, "run", "--log-level", "warn", "--socket", sock, "--config", file)
	c.cmd.Stdout, c.cmd.Stderr = &c.log, &c.log
	if err = c.Router.Start(c.cmd); err != nil {
		return err
	}
	c.api = api.Dial(sock)
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		st, err := c.api.GetStatus(ctx, &v1.GetStatusRequest{})
		switch {
		case err == nil && st.Forwarding && st.PortsUp == 2:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case time.Now().After(end):
			return fmt.Errorf("the router does not forward: %v %v\n%s", err, st.GetReasons(), c.log.String())
		}
	}
}

// flood sends from the generator's CPU until stop, and returns then.
func (c *chain) flood(stop *atomic.Bool) error {
	return c.Client.In(func() error {
		if err := pin.Thread(c.genCPU); err != nil {
			return err
		}
		for !stop.Load() {
			if err := c.gen.Run(live.RunLength); err != nil {
				return err
			}
		}
		return nil
	})
}

// measure counts packets at the sink for some time, under full load.
func (c *chain) measure(ctx context.Context, warm, window time.Duration) (rate float64, err error) {
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() { done <- c.flood(&stop) }()
	sleep(ctx, warm)
	n0, err0 := c.sink.Got.Read()
	t0 := time.Now()
	sleep(ctx, window)
	n1, err1 := c.sink.Got.Read()
	d := time.Since(t0)
	stop.Store(true)
	err = errors.Join(<-done, err0, err1, ctx.Err())
	return float64(n1-n0) / d.Seconds(), err
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// books are where the packets of a chain went.
type books struct {
	sent, wire, got uint64 // by the generator; those that reached the router's interface; at the sink
	router          *v1.Leaks
	in, out         *v1.Port
}

// books waits until nothing moves and counts.
func (c *chain) books(ctx context.Context) (b books, err error) {
	for last := uint64(1); b.got != last && err == nil; {
		last = b.got
		sleep(ctx, 50*time.Millisecond)
		b.got, err = c.sink.Got.Read()
	}
	if err != nil {
		return b, err
	}
	if b.sent, err = c.gen.Sent.Read(); err != nil {
		return b, err
	}
	if err = c.Router.In(func() error {
		l, err := netlink.LinkByName("r0")
		if err == nil {
			b.wire = l.Attrs().Statistics.RxPackets
		}
		return err
	}); err != nil || c.api == nil {
		return b, err
	}
	if b.router, err = c.api.GetLeaks(ctx, &v1.GetLeaksRequest{}); err != nil {
		return b, err
	}
	ports, err := c.api.ListPorts(ctx, &v1.ListPortsRequest{})
	if err != nil {
		return b, err
	}
	for _, p := range ports.Ports {
		switch p.Name {
		case "r0":
			b.in = p
		case "r1":
			b.out = p
		}
	}
	if b.in == nil || b.out == nil {
		return b, errors.New("the router has no ports")
	}
	return b, nil
}

// check says where the router's packets are, and whether any is missing.
func (b *books) check() (text string, err error) {
	if b.router == nil {
		return fmt.Sprintf("%s sent, %s reached r0, %s came out", count(b.sent), count(b.wire), count(b.got)), nil
	}
	lost := b.in.RxRingFull + b.in.RxNoBuffer + b.in.RxBad
	text = fmt.Sprintf("%s sent, %s reached r0 (%s came in, %s found the ring full), %s dropped, %s came out",
		count(b.sent), count(b.wire), count(b.in.RxPackets), count(lost), count(b.router.Dropped), count(b.got))
	switch {
	case !b.router.Ok:
		err = fmt.Errorf("the router misses %d packets", b.router.Difference)
	case b.out.TxPackets < b.got:
		err = fmt.Errorf("%d packets at the sink, of which the router sent %d", b.got, b.out.TxPackets)
	}
	return text, err
}

func count(n uint64) string { return strings.ReplaceAll(result.Number(float64(n)), " ", "") }

// close takes the chain down.
func (c *chain) close() {
	if c.gen != nil {
		c.gen.Close()
	}
	if c.sink != nil {
		c.sink.Close()
	}
	if c.api != nil {
		c.api.Close()
	}
	if c.Line != nil {
		c.Line.Close()
	}
	if c.dir != "" {
		os.RemoveAll(c.dir)
	}
}
