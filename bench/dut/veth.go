package dut

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"

	"millrace/bench/lab"
	"millrace/packet"
	"millrace/pmd"
	_ "millrace/pmd/afxdp" // the generator's ports
)

// The generator's ends of veth pairs are c0 and s0, those of the thing under test r0 and r1.

// veths makes the namespaces and fills the ends in; through is what lies between them for frames: a
// router's addresses (true), or the other end's (false).
func veths(d *DUT, routed bool) (n *lab.Line, err error) {
	if n, err = lab.NewLine(); err != nil {
		return nil, err
	}
	d.onClose(n.Close)
	ends := [2]struct {
		h    *lab.Host
		name string
	}{{n.Client, "c0"}, {n.Server, "s0"}}
	var gen, dut [2]pmd.MAC
	for i, e := range ends {
		if gen[i], err = mac(e.h, e.name); err != nil {
			return nil, err
		}
		if dut[i], err = mac(n.Router, portNames[i]); err != nil {
			return nil, err
		}
	}
	for i, e := range ends {
		// Nobody but the generator may speak here.
		if err := e.h.Do("ip -4 addr flush dev "+e.name, "ip -6 addr flush dev "+e.name, "sysctl -qw net.ipv6.conf."+e.name+".disable_ipv6=1"); err != nil {
			return nil, err
		}
		l := links[i]
		d.Ends[i] = End{MAC: gen[i], Gateway: gen[1-i], Addr4: netip.MustParseAddr(l.addr4), Addr6: netip.MustParseAddr(l.addr6), Open: openVeth(e.h, e.name)}
		if routed {
			d.Ends[i].Gateway = dut[i]
		}
		r := portNames[i]
		if err := n.Router.Do(
			// A veth takes XDP frames from its peer only while it polls: GRO or an XDP program makes it.
			"ethtool -K "+r+" gro on",
			fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", l.addr4, gen[i], r),
			fmt.Sprintf("ip neigh replace %s lladdr %s dev %s nud permanent", l.addr6, gen[i], r),
			fmt.Sprintf("ip route add %s via %s", nets[i].v4, l.addr4),
			fmt.Sprintf("ip route add %s via %s", nets[i].v6, l.addr6)); err != nil {
			return nil, err
		}
	}
	return n, nil
}

func mac(h *lab.Host, dev string) (m pmd.MAC, err error) {
	err = h.In(func() error {
		i, err := net.InterfaceByName(dev)
		if err == nil {
			m = pmd.MAC(i.HardwareAddr)
		}
		return err
	})
	return m, err
}

func openVeth(h *lab.Host, dev string) func(*packet.Pool) (pmd.Port, error) {
	return func(pool *packet.Pool) (p pmd.Port, err error) {
		d, err := pmd.Lookup("afxdp")
		if err != nil {
			return nil, err
		}
		err = h.In(func() error {
			p, err = d.Open(pmd.Config{Name: dev, Pool: pool, Whole: true, Ring: 2048})
			return err
		})
		return p, err
	}
}

// millrace opens this router over veth by a driver.
func millrace(driver string) func(context.Context, Options) (*DUT, error) {
	return func(ctx context.Context, o Options) (d *DUT, err error) {
		d = &DUT{CPU: o.CPU}
		defer d.undo(&err)
		n, err := veths(d, true)
		if err != nil {
			return nil, err
		}
		if err := n.Router.Do(o.Setup...); err != nil {
			return nil, err
		}
		dir, err := os.MkdirTemp("", "millrace-dut-")
		if err != nil {
			return nil, err
		}
		d.onClose(func() { os.RemoveAll(dir) })
		config := fmt.Sprintf("ports:\n  - {name: r0, driver: %[1]s}\n  - {name: r1, driver: %[1]s}\nworkers: {cores: %[2]d}\n", driver, o.CPU) + o.Config
		in := func(args ...string) *exec.Cmd { return n.Router.Command(context.Background(), args...) }
		return d, startRouter(ctx, d, dir, config, in)
	}
}

// polled makes the kernel poll the thing's devices by threads on the CPU of the thing under test.
func polled(ctx context.Context, n *lab.Line, cpu int) error {
	for _, dev := range portNames {
		if err := n.Router.PollBy(ctx, dev, cpu); err != nil {
			return err
		}
	}
	return nil
}

func openKernel(ctx context.Context, o Options) (d *DUT, err error) {
	d = &DUT{CPU: o.CPU}
	defer d.undo(&err)
	n, err := veths(d, true)
	if err != nil {
		return nil, err
	}
	if err := n.Router.Do(append([]string{"sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1"}, o.Setup...)...); err != nil {
		return nil, err
	}
	d.drops = devDrops(n)
	return d, polled(ctx, n, o.CPU)
}

func openBridge(ctx context.Context, o Options) (d *DUT, err error) {
	d = &DUT{CPU: o.CPU}
	defer d.undo(&err)
	n, err := veths(d, false)
	if err != nil {
		return nil, err
	}
	if err := n.Router.Do("ip link add br0 type bridge mcast_snooping 0", "sysctl -qw net.ipv6.conf.br0.disable_ipv6=1", "ip link set r0 master br0", "ip link set r1 master br0", "ip link set br0 up"); err != nil {
		if strings.Contains(err.Error(), "nknown device type") {
			err = errors.New("this kernel has no bridge")
		}
		return nil, err
	}
	for i := range portNames { // what it would learn
		if err := n.Router.Do(fmt.Sprintf("bridge fdb replace %s dev %s master static", d.Ends[i].MAC, portNames[i])); err != nil {
			return nil, err
		}
	}
	if err := n.Router.Do(o.Setup...); err != nil {
		return nil, err
	}
	d.drops = devDrops(n)
	return d, polled(ctx, n, o.CPU)
}

func openWireVeth(ctx context.Context, o Options) (d *DUT, err error) {
	d = &DUT{CPU: -1, Wire: true}
	defer d.undo(&err)
	l, err := lab.New()
	if err != nil {
		return nil, err
	}
	d.onClose(l.Close)
	var h [2]*lab.Host
	for i, name := range []string{"client", "server"} {
		if h[i], err = l.Host(name); err != nil {
			return nil, err
		}
	}
	devs := [2]string{"c0", "s0"}
	if err := l.Join(h[0], devs[0], h[1], devs[1]); err != nil {
		return nil, err
	}
	var macs [2]pmd.MAC
	for i := range h {
		if err := h[i].Do("sysctl -qw net.ipv6.conf." + devs[i] + ".disable_ipv6=1"); err != nil {
			return nil, err
		}
		if macs[i], err = mac(h[i], devs[i]); err != nil {
			return nil, err
		}
	}
	for i := range h {
		d.Ends[i] = End{MAC: macs[i], Gateway: macs[1-i], Addr4: netip.MustParseAddr(links[i].addr4), Addr6: netip.MustParseAddr(links[i].addr6), Open: openVeth(h[i], devs[i])}
	}
	return d, nil
}

// devDrops counts what the devices of a thing of the kernel's dropped.
func devDrops(n *lab.Line) func(context.Context) (map[string]uint64, error) {
	return func(context.Context) (map[string]uint64, error) {
		m := map[string]uint64{}
		err := n.Router.In(func() error { return linkDrops(m) })
		return m, err
	}
}
