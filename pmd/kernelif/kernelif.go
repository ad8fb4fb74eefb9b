// Package kernelif opens a kernel interface with the driver that suits it: afxdp in the
// fastest mode that works, else afpacket.
package kernelif

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/agext/levenshtein"

	"millrace/pmd"
	_ "millrace/pmd/afpacket" // to choose from
	_ "millrace/pmd/afxdp"
)

// order is the drivers to try, the fastest first.
var order = []string{"afxdp", "afpacket"}

// Open opens the kernel interface c.Name of the calling thread's network namespace, with
// c.Driver where it is given. What was tried in vain stands first in the port's
// Why; where nothing works, the error has it all.
func Open(c pmd.Config) (pmd.Port, error) {
	if err := Exists(c.Name); err != nil {
		return nil, err
	}
	if i, err := net.InterfaceByName(c.Name); err == nil && i.Flags&net.FlagLoopback != 0 {
		return nil, fmt.Errorf("kernelif: %s is the loopback interface: nothing is forwarded by it; name interfaces that lead to other hosts", c.Name)
	}
	if c.Driver != "" {
		d, err := pmd.Lookup(c.Driver)
		if err != nil {
			return nil, err
		}
		return d.Open(c)
	}
	var errs []error
	var tried []string
	for _, name := range order {
		c := c
		d, err := pmd.Lookup(name)
		if err == nil {
			if name != "afxdp" && c.Mode != "" {
				errs = append(errs, fmt.Errorf("kernelif: %s has no mode %q", name, c.Mode))
				continue
			}
			c.Driver = name
			var p pmd.Port
			if p, err = d.Open(c); err == nil {
				if len(tried) == 0 {
					return p, nil
				}
				return with(p, tried), nil
			}
		}
		errs = append(errs, err)
		tried = append(tried, err.Error())
	}
	return nil, fmt.Errorf("kernelif: no driver works for %s: %w", c.Name, errors.Join(errs...))
}

// with adds to a port's Why what was tried before it.
func with(p pmd.Port, tried []string) pmd.Port {
	if f, ok := p.(filter); ok {
		return &filterPort{port{p, tried}, f}
	}
	return &port{p, tried}
}

type port struct {
	pmd.Port
	tried []string
}

func (p *port) Why() []string { return append(slices.Clone(p.tried), p.Port.Why()...) }

// Unwrap is the driver's own port.
func (p *port) Unwrap() pmd.Port { return p.Port }

// filter is what ports offer that leave the host's packets to the kernel.
type filter interface {
	pmd.LocalFilter
	SetTypes(types []uint16) error
}

type filterPort struct {
	port
	filter
}

// Exists is an error that names the nearest interfaces where there is none of that name.
func Exists(name string) error {
	ifs, err := net.Interfaces()
	if err != nil {
		return fmt.Errorf("kernelif: list interfaces: %w", err)
	}
	var names []string
	for _, i := range ifs {
		if i.Name == name {
			return nil
		}
		names = append(names, i.Name)
	}
	if len(names) == 0 {
		return fmt.Errorf("kernelif: no interface %q, and no other either", name)
	}
	return fmt.Errorf("kernelif: no interface %q: nearest are %s", name, strings.Join(Nearest(name, names, 3), ", "))
}

// Nearest gives at most n of names, those first that differ least from name.
func Nearest(name string, names []string, n int) []string {
	names = slices.Clone(names)
	slices.SortStableFunc(names, func(a, b string) int {
		return levenshtein.Distance(name, a, nil) - levenshtein.Distance(name, b, nil)
	})
	return names[:min(n, len(names))]
}
