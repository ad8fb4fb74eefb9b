package dut

import (
	"fmt"
	"net"
	"net/netip"
	"strings"

	"millrace/bench/lab"
	"millrace/pmd"
)

// Outside are a generator's ports to a thing under test that somebody else has set up: a box behind
// two NICs, a router in namespaces, a process behind two sockets.
type Outside struct {
	// Ports are left and right: "IF", a kernel interface; "NETNS/IF", one in a named network namespace; "memif:PATH", a memif
	// socket to which it connects.
	Ports [2]string
	// Peers are the Ethernet addresses of the thing's ports; zero for the generator's other port (a wire, a bridge).
	Peers [2]pmd.MAC
}

// Networks are those behind the left and the right end, IPv4 and IPv6: the blocks for benchmarks (RFC 2544 appendix C, RFC 5180
// section 8).
func Networks() (n [2][2]netip.Prefix) {
	for i := range nets {
		n[i] = [2]netip.Prefix{nets[i].v4, nets[i].v6}
	}
	return n
}

// OpenOutside makes a thing under test of what stands between two ports. name is for reports.
func OpenOutside(name string, o Outside) (*DUT, error) {
	d := &DUT{Name: name, Doc: "what stands between " + o.Ports[0] + " and " + o.Ports[1], CPU: -1}
	for i, spec := range o.Ports {
		e := &d.Ends[i]
		e.Name, e.Net4, e.Net6 = [2]string{"left", "right"}[i], nets[i].v4, nets[i].v6
		if path, ok := strings.CutPrefix(spec, "memif:"); ok {
			e.MAC = links[i].generator
			e.Open = openMemifPort(pmd.Config{Name: e.Name, Role: "client", Socket: path, MAC: e.MAC})
			continue
		}
		h, dev := &lab.Host{}, spec
		if ns, in, ok := strings.Cut(spec, "/"); ok {
			h, dev = &lab.Host{Name: ns, NS: ns}, in
		}
		var err error
		if e.MAC, err = mac(h, dev); err != nil {
			return nil, fmt.Errorf("port %s: %w%s", spec, err, interfaces(h))
		}
		e.Open = openVeth(h, dev)
	}
	for i, p := range o.Peers {
		if d.Ends[i].Gateway = p; p == (pmd.MAC{}) {
			d.Ends[i].Gateway = d.Ends[1-i].MAC
		}
	}
	return d, nil
}

// interfaces tells which there are, for errors.
func interfaces(h *lab.Host) string {
	var names []string
	err := h.In(func() error {
		l, err := net.Interfaces()
		for _, i := range l {
			names = append(names, i.Name)
		}
		return err
	})
	if err != nil || len(names) == 0 {
		return ""
	}
	return "; there are " + strings.Join(names, ", ")
}
