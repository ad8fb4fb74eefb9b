package dut

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"

	"millrace/bench/lab"
	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/memif"
)

// Addresses of the links on both sides, and the Ethernet addresses where there is no kernel to choose them.
var links = [2]struct {
	router4, router6, addr4, addr6 string
	net4                           string
	router, generator              pmd.MAC
}{
	{lab.RouterC4, lab.RouterC6, lab.Client4, lab.Client6, lab.ClientNet4, pmd.MAC{2, 0, 0, 0, 0, 1}, pmd.MAC{2, 0, 0, 0, 0, 2}},
	{lab.RouterS4, lab.RouterS6, lab.Server4, lab.Server6, lab.ServerNet4, pmd.MAC{2, 0, 0, 0, 1, 1}, pmd.MAC{2, 0, 0, 0, 1, 2}},
}

// names of the thing's ports.
var portNames = [2]string{"r0", "r1"}

// routing is what Millrace needs to forward without a kernel's help.
func routing() (s string) {
	s = "neighbours:\n"
	for i, l := range links {
		for _, a := range []string{l.addr4, l.addr6} {
			s += fmt.Sprintf("  - {address: %q, mac: %q, port: %s}\n", a, l.generator, portNames[i])
		}
	}
	s += "routes:\n"
	for i, l := range links {
		s += fmt.Sprintf("  - {to: %q, via: %q}\n  - {to: %q, via: %q}\n", nets[i].v4, l.addr4, nets[i].v6, l.addr6)
	}
	return s
}

func openMemif(ctx context.Context, o Options) (d *DUT, err error) {
	d = &DUT{CPU: o.CPU}
	defer d.undo(&err)
	dir, err := os.MkdirTemp("", "millrace-dut-")
	if err != nil {
		return nil, err
	}
	d.onClose(func() { os.RemoveAll(dir) })
	config := "ports:\n"
	for i, l := range links {
		socket := filepath.Join(dir, portNames[i]+".memif")
		config += fmt.Sprintf("  - {name: %s, driver: memif, socket: %q, role: server, host: builtin, mac: %q, addresses: [\"%s/24\", \"%s/64\"]}\n",
			portNames[i], socket, l.router, l.router4, l.router6)
		d.Ends[i] = End{MAC: l.generator, Gateway: l.router, Addr4: netip.MustParseAddr(l.addr4), Addr6: netip.MustParseAddr(l.addr6),
			Open: openMemifPort(pmd.Config{Name: portNames[i], Role: "client", Socket: socket, MAC: l.generator})}
	}
	config += routing() + fmt.Sprintf("workers: {cores: %d, poll: busy}\nkernel: {follow: false}\n", o.CPU) + o.Config
	return d, startRouter(ctx, d, dir, config, here)
}

// openMemifPort opens a client, which connects in its own time.
func openMemifPort(c pmd.Config) func(*packet.Pool) (pmd.Port, error) {
	return func(pool *packet.Pool) (pmd.Port, error) {
		c.Pool = pool
		return memif.Open(c)
	}
}

// undo closes what a failed constructor has opened.
func (d *DUT) undo(err *error) {
	if *err != nil {
		d.Close()
	}
}

func openWireMemif(ctx context.Context, o Options) (d *DUT, err error) {
	d = &DUT{CPU: -1, Wire: true}
	defer d.undo(&err)
	dir, err := os.MkdirTemp("", "millrace-dut-")
	if err != nil {
		return nil, err
	}
	d.onClose(func() { os.RemoveAll(dir) })
	for i, l := range links {
		d.Ends[i] = End{MAC: l.generator, Gateway: links[1-i].generator, Addr4: netip.MustParseAddr(l.addr4), Addr6: netip.MustParseAddr(l.addr6),
			Open: openMemifPort(pmd.Config{Name: portNames[i], Role: [2]string{"server", "client"}[i], Socket: filepath.Join(dir, "wire.memif"), MAC: l.generator})}
	}
	return d, nil
}
