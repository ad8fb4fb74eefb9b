package afxdp

import (
	"errors"
	"testing"

	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/porttest"
)

// openIn opens a port in a namespace; the test skips where this machine cannot.
func openIn(t testing.TB, ns *testnet.NS, c pmd.Config) *Port {
	t.Helper()
	p, err := tryOpen(ns, c)
	if errors.Is(err, pmd.ErrNotSupported) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func tryOpen(ns *testnet.NS, c pmd.Config) (p *Port, err error) {
	ns.Do(func() { p, err = Open(c) })
	return p, err
}

func newPool(t testing.TB, n int) *packet.Pool {
	t.Helper()
	p, err := packet.NewPool(t.Name(), n)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name string
		pmd.Config
		mtu string
	}{
		{"native", pmd.Config{Mode: "native"}, "9000"},
		{"generic", pmd.Config{Mode: "generic"}, "9000"},
		{"small rings", pmd.Config{Ring: 512}, "1500"},
	} {
		t.Run(c.name, func(t *testing.T) {
			porttest.Run(t, porttest.Pair{
				Buffers: 16384,
				// The kernel gives a packet up whose receiver's rings are full.
				NeverFull: true,
				Open: func(t testing.TB, pool *packet.Pool) (a, b pmd.Port) {
					na, nb := testnet.New(t), testnet.New(t)
					testnet.Veth(t, na, "a0", nb, "b0", "mtu", c.mtu)
					ca, cb := c.Config, c.Config
					ca.Name, ca.Pool, cb.Name, cb.Pool = "a0", pool, "b0", pool
					return openIn(t, na, ca), openIn(t, nb, cb)
				},
			})
		})
	}
}
