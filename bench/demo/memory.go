package demo

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.uber.org/zap"

	v1 "millrace/control/api/v1"
	"millrace/control/config"
	"millrace/control/router"
)

// What client and server of the lab sent through a router: ping, traceroute, HTTP, DNS-like UDP,
// fragments, and some that go nowhere.
var (
	//go:embed client.pcap
	clientCapture []byte
	//go:embed server.pcap
	serverCapture []byte
)

const memoryPicture = `
   client.pcap                                             server.pcap
   +----------+          +----------------------+         +----------+
   |  replay  +----------+ in   Millrace    out +---------+  replay  |
   +----------+          +----------------------+         +----------+
   192.0.2.2                                               198.51.100.2
   2001:db8:1::2                                           2001:db8:2::2
`

const memoryConfig = `
ports:
  - {name: in, driver: pcap, read: %[1]s/client.pcap, loop: forever, rate: max, mac: "02:00:00:00:00:01", host: builtin, addresses: [192.0.2.1/24, "2001:db8:1::1/64"]}
  - {name: out, driver: pcap, read: %[1]s/server.pcap, loop: forever, rate: max, mac: "02:00:00:00:01:01", host: builtin, addresses: [198.51.100.1/24, "2001:db8:2::1/64"]}
neighbours:
  - {address: 192.0.2.2, mac: "02:00:00:00:00:02", port: in}
  - {address: "2001:db8:1::2", mac: "02:00:00:00:00:02", port: in}
  - {address: 198.51.100.2, mac: "02:00:00:00:01:02", port: out}
  - {address: "2001:db8:2::2", mac: "02:00:00:00:01:02", port: out}
kernel: {follow: false}
`

// inMemory is the demo without root.
func inMemory(ctx context.Context, s *screen, seconds int) (err error) {
	fmt.Fprintf(s.out, "%s\n%s", s.bold("Millrace without root: a capture routed between ports in memory, as fast as it goes."), memoryPicture)
	dir, err := os.MkdirTemp("", "millrace-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for name, data := range map[string][]byte{"client.pcap": clientCapture, "server.pcap": serverCapture} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	cfg, err := config.Parse("demo.yaml", fmt.Appendf(nil, memoryConfig, dir))
	if err != nil {
		return err
	}
	r, err := router.New(cfg, router.Options{Log: zap.NewNop()})
	if err != nil {
		return err
	}
	rctx, stop := context.WithCancel(ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.Run(rctx, func() { close(ready) }) }()
	defer func() {
		stop()
		if e := <-done; err == nil && ctx.Err() == nil {
			err = e
		}
	}()
	select {
	case <-ready:
	case e := <-done:
		done <- nil
		return e
	}
	s.head("The road, measured stage by stage for %d seconds", seconds)
	if _, err := r.SetMeasure(ctx, &v1.SetMeasureRequest{On: true}); err != nil {
		return err
	}
	begin, err := take(ctx, r)
	if err != nil {
		return err
	}
	last, text := begin, ""
	for range seconds * 2 {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
		now, err := take(ctx, r)
		if err != nil {
			return err
		}
		text = now.text(last)
		last = now
		s.table(text)
	}
	s.last(text)

	s.head("Why is a packet dropped? Ask the router")
	s.command("", []string{"millrace", "trace", "-n", "1", "dst", "host", "203.0.113.7"})
	tctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	err = r.Trace(tctx, &v1.TraceRequest{Count: 1, Filter: "dst host 203.0.113.7"}, func(p *v1.TracedPacket) error {
		s.say("%s", traced(p))
		return nil
	})
	if err != nil && tctx.Err() == nil {
		return err
	}
	leaks, err := r.GetLeaks(ctx, &v1.GetLeaksRequest{})
	if err != nil {
		return err
	}
	s.head("Summary")
	d := last.at.Sub(begin.at).Seconds()
	var n uint64
	for i, p := range last.ports.Ports {
		n += p.TxPackets - begin.ports.Ports[i].TxPackets
	}
	s.say("%.2f million packets a second forwarded, on one core", float64(n)/d/1e6)
	s.say("%s", accounts(leaks))
	s.say("As root, `make demo` shows ping, traceroute and iperf3 through network namespaces.")
	if !leaks.Ok {
		return fmt.Errorf("demo: packets are unaccounted for")
	}
	return nil
}
