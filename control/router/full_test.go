package router

import (
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "millrace/control/api/v1"
	"millrace/control/config"
	"millrace/internal/testnet"
)

// fullTable are the prefixes of a real table, or as many of the same lengths where there is none.
func fullTable(n int) (out []netip.Prefix) {
	if f, err := os.Open(filepath.Join("..", "..", "..", "shared", "data", "bgp", "v4.txt.gz")); err == nil {
		defer f.Close()
		if z, err := gzip.NewReader(f); err == nil {
			for s := bufio.NewScanner(z); s.Scan() && len(out) < n; {
				if p, err := netip.ParsePrefix(s.Text()); err == nil && !p.Addr().IsLoopback() && p.Bits() > 7 {
					out = append(out, p)
				}
			}
			return out
		}
	}
	for i := range n {
		out = append(out, netip.PrefixFrom(netip.AddrFrom4([4]byte{byte(16 + i>>16), byte(i >> 8), byte(i), 0}), 24))
	}
	return out
}

// loadTable gives a namespace's kernel routes, over 500 gateways.
func loadTable(tb testing.TB, ns *testnet.NS, verb string, ps []netip.Prefix, shift int) {
	tb.Helper()
	if err := batchTable(ns, verb, ps, shift); err != nil {
		tb.Fatal(err)
	}
}

func batchTable(ns *testnet.NS, verb string, ps []netip.Prefix, shift int) error {
	var b strings.Builder
	for i, p := range ps {
		gw := (i*7919 + shift) % 500
		fmt.Fprintf(&b, "route %s %s via 10.0.%d.%d dev r1\n", verb, p, 8+gw/250, 1+gw%250)
	}
	c := ns.Command("ip", "-batch", "-")
	c.Stdin = strings.NewReader(b.String())
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("ip -batch: %w\n%s", err, out)
	}
	return nil
}

// TestFlood: routes come faster than they can be read, and change while they do; when it is quiet, nothing differs.
func TestFlood(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	n := 30_000
	if os.Getenv("MILLRACE_TEST_FULL") != "" {
		n = 1 << 20
	}
	l := newLab(t)
	ip(t, l.router, "address add 10.0.8.254/21 dev r1")
	ps := fullTable(n)
	r := start(t, l.router, twoPorts)
	began := time.Now()
	loadTable(t, l.router, "add", ps, 0)
	loaded := time.Since(began)
	settled := func(what string) {
		t.Helper()
		end := time.Now().Add(60 * time.Second)
		for {
			if f := faults(t, r); len(f) == 0 {
				return
			} else if time.Now().After(end) {
				t.Fatalf("%s: %d faults, such as %q", what, len(f), f[:min(5, len(f))])
			}
		}
	}
	settled("after the flood")
	t.Logf("%d routes in %v, followed and audited after %v", len(ps), loaded.Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
	began = time.Now()
	loading := make(chan error, 1)
	go func() { loading <- batchTable(l.router, "replace", ps, 13) }()
	for i := range 100 {
		ip(t, l.router, "link set r0 "+[]string{"down", "up"}[i%2])
	}
	if err := <-loading; err != nil {
		t.Fatal(err)
	}
	settled("after other gateways, and links that flap")
	t.Logf("replaced and audited after %v", time.Since(began).Round(time.Millisecond))
	s, err := r.GetStatus(context.Background(), &v1.GetStatusRequest{})
	if err != nil || int(s.RoutesIpv4) < len(ps) {
		t.Errorf("%v, %v", s, err)
	}
	ip(t, l.router, "link set r1 down")
	settled("after all routes are gone")
	if v4, _ := r.follower.Routes(); v4 > 100 {
		t.Errorf("%d routes are left", v4)
	}
	ip(t, l.router, "link set r1 up")
}

// BenchmarkFullTable is the time from the start of a router until it forwards by a kernel's full table.
func BenchmarkFullTable(b *testing.B) {
	ns, peer := testnet.New(b), testnet.New(b)
	testnet.Veth(b, ns, "r1", peer, "s0")
	ip(b, ns, "address add 10.0.8.254/21 dev r1")
	ps := fullTable(1 << 20)
	loadTable(b, ns, "add", ps, 0)
	for b.Loop() {
		var before, after runtime.MemStats
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&before)
		b.StartTimer()
		stop := run(b, ns, "ports: [{name: r1}]\n")
		b.StopTimer()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/(1<<20), "MiB")
		stop()
		b.StartTimer()
	}
	b.ReportMetric(float64(len(ps))*float64(b.N)/b.Elapsed().Seconds(), "routes/s")
}

// run starts a router and returns when it forwards.
func run(tb testing.TB, ns *testnet.NS, yaml string) (stop func()) {
	tb.Helper()
	cfg, err := config.Parse("test.yaml", []byte(yaml))
	if err != nil {
		tb.Fatal(err)
	}
	r, err := New(cfg, Options{})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go ns.Do(func() { done <- r.Run(ctx, func() { close(ready) }) })
	select {
	case <-ready:
	case err := <-done:
		cancel()
		tb.Fatal(err)
	}
	return func() { cancel(); <-done }
}
