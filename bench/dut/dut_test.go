package dut

import (
	"context"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"millrace/control/cli"
	"millrace/control/config"
	"millrace/control/router"
	"millrace/packet"
	"millrace/pmd"

	"go.uber.org/zap"
)

// The test's own program is the router that a thing under test starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "run" {
		os.Exit(cli.Main(cli.Options{Version: "test", NewRouter: func(cfg *config.Config, log *zap.Logger, level zap.AtomicLevel) (cli.Router, error) {
			return router.New(cfg, router.Options{Log: log, Level: level})
		}}))
	}
	os.Exit(m.Run())
}

// frame is a UDP frame from an end to an address.
func frame(from *End, to netip.Addr, k byte) []byte {
	src, n := from.Net4.Addr().Next(), 60
	if to.Is6() {
		src, n = from.Net6.Addr().Next(), 70
	}
	b := make([]byte, n)
	e := packet.Ethernet(b)
	e.SetDst(from.Gateway)
	e.SetSrc(from.MAC)
	if to.Is4() {
		e.SetType(packet.EtherIPv4)
		h := packet.IPv4(b[14:34])
		h.Init(src.As4(), to.As4(), packet.ProtoUDP, n-14)
		h.SetTTL(64)
		h.SetSum()
	} else {
		e.SetType(packet.EtherIPv6)
		h := packet.IPv6(b[14:54])
		h.Init(src.As16(), to.As16(), packet.ProtoUDP, n-54)
		h.SetHopLimit(64)
	}
	b[n-1] = k
	return b
}

// TestKinds sends frames of both families both ways through every kind of thing under test, and looks at each that comes out.
func TestKinds(t *testing.T) {
	names, _ := Kinds()
	for _, name := range names {
		t.Run(name, func(t *testing.T) {
			if _, err := Resolve(name, os.Geteuid() == 0); err != nil {
				t.Skip(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			d, err := Open(ctx, name, Options{CPU: runtime.NumCPU() - 1})
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			pool, err := packet.NewPool("test", 16384)
			if err != nil {
				t.Fatal(err)
			}
			defer pool.Close()
			cache := pool.NewCache()
			defer cache.Close()
			var ports [2]pmd.Port
			for i := range ports {
				if ports[i], err = d.Ends[i].Open(pool); err != nil {
					t.Fatal(err)
				}
				defer ports[i].Close()
				if err := ports[i].Queue(0).Start(cache); err != nil {
					t.Fatal(err)
				}
				defer ports[i].Queue(0).Stop()
			}
			if err := d.Ready(ctx, ports[:]...); err != nil {
				t.Fatal(err)
			}
			for i := range ports {
				a, b := &d.Ends[i], &d.Ends[1-i]
				for _, to := range []netip.Addr{b.Net4.Addr().Next(), b.Net6.Addr().Next()} {
					hop := byte(63)
					if d.Wire || name == "bridge" {
						hop = 64
					}
					got := exchange(t, cache, ports[i], ports[1-i], frame(a, to, 7))
					want := slices.Clone(frame(a, to, 7))
					e := packet.Ethernet(want)
					e.SetDst(b.MAC)
					if hop == 63 {
						e.SetSrc(b.Gateway)
						if to.Is4() {
							packet.IPv4(want[14:34]).SetTTL(hop)
							packet.IPv4(want[14:34]).SetSum()
						} else {
							packet.IPv6(want[14:54]).SetHopLimit(hop)
						}
					}
					if !slices.Equal(got, want) {
						t.Errorf("from %s to %v:\n got %x\nwant %x", a.Name, to, got, want)
					}
				}
			}
			if m, err := d.Drops(ctx); err != nil || len(m) > 0 {
				t.Error("drops: ", m, err)
			}
			if err := d.Alive(); err != nil {
				t.Error(err)
			}
		})
	}
}

// exchange sends a frame, again and again, until it comes out.
func exchange(t *testing.T, c *packet.Cache, from, to pmd.Port, f []byte) []byte {
	t.Helper()
	var b [32]uint32
	var got []byte
	end := time.Now().Add(10 * time.Second)
	for try := 0; time.Now().Before(end); try++ {
		if try%200 == 0 {
			m := c.Alloc1()
			copy(m.Append(len(f)), f)
			if from.Queue(0).Tx([]uint32{m.Index()}) == 0 {
				c.Free1(m)
			}
		}
		n := from.Queue(0).Rx(b[:])
		c.Free(b[:n])
		n = to.Queue(0).Rx(b[:])
		for _, i := range b[:n] {
			if m := packet.At(i); int(m.DataLen) == len(f) && m.Bytes()[len(f)-1] == f[len(f)-1] {
				got = slices.Clone(m.Bytes())
			}
		}
		c.Free(b[:n])
		if got != nil {
			// What is still on its way belongs to nobody.
			for quiet := time.Now().Add(20 * time.Millisecond); time.Now().Before(quiet); time.Sleep(time.Millisecond) {
				c.Free(b[:to.Queue(0).Rx(b[:])])
			}
			return got
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("no frame came out within 10 s")
	return nil
}

func TestResolve(t *testing.T) {
	for _, x := range []struct {
		name string
		root bool
		want string
	}{
		{"millrace", true, "millrace/afxdp"}, {"millrace", false, "millrace/memif"}, {"kernel", true, "kernel"},
		{"kernel", false, ""}, {"vpp", true, ""},
	} {
		got, err := Resolve(x.name, x.root)
		if got != x.want || (err == nil) != (x.want != "") {
			t.Errorf("Resolve(%q, %v) = %q, %v", x.name, x.root, got, err)
		}
	}
}
