package overhead

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"time"

	"go.uber.org/zap"

	v1 "millrace/control/api/v1"
	"millrace/control/config"
	"millrace/control/router"
	"millrace/packet"
	"millrace/pmd"
)

// loop is a router in this process whose ports r0 and r1 are two ends of one wire: what it sends by r0 comes in
// again by r1, until the TTL ends. So one worker goes round with some packets, its queues always full, and nothing else runs:
//
//	+--- r0   router   r1 <--+
//	+------------------------+      in <-- packets, once for each run
type loop struct {
	router *router.Router
	base   string // configuration
	in     pmd.Port
	pool   *packet.Pool
	cache  *packet.Cache
	stop   func()
	done   chan error
	last   time.Duration // that the last run took
}

const (
	// inFlight packets go round: they stay in the cache.
	inFlight = 4096
	// laps of a packet before its TTL ends.
	laps = 254
)

// base is the configuration without features. The neighbours of r0 are r1 and the other way round.
func base(name string, cpu int) string {
	return fmt.Sprintf(`
ports:
  - {name: r0, driver: mem, socket: %[1]s-loop, ring: 8192, mac: "02:00:00:00:00:01", host: builtin, addresses: [192.0.2.1/24, "2001:db8:1::1/64"]}
  - {name: r1, driver: mem, socket: %[1]s-loop, ring: 8192, mac: "02:00:00:00:00:02", host: builtin, addresses: [198.51.100.1/24, "2001:db8:2::1/64"]}
  - {name: in, driver: mem, socket: %[1]s-in, ring: 8192, mac: "02:00:00:00:00:03", host: builtin}
neighbours:
  - {address: 192.0.2.2, mac: "02:00:00:00:00:02", port: r0}
  - {address: 192.0.2.3, mac: "02:00:00:00:00:02", port: r0}
  - {address: "2001:db8:1::2", mac: "02:00:00:00:00:02", port: r0}
  - {address: "2001:db8:1::3", mac: "02:00:00:00:00:02", port: r0}
  - {address: 198.51.100.2, mac: "02:00:00:00:00:01", port: r1}
  - {address: "2001:db8:2::2", mac: "02:00:00:00:00:01", port: r1}
routes:
  - {to: 198.19.0.0/16, via: [192.0.2.2]}
  - {to: "2001:2:0:8000::/49", via: ["2001:db8:1::2"]}
  - {to: 198.18.0.0/16, via: [198.51.100.2]}
  - {to: "2001:2::/49", via: ["2001:db8:2::2"]}
workers: {cores: %[2]d, poll: adaptive}
icmp: {rate: 0}
kernel: {follow: false}
`, name, cpu)
}

var gateway = pmd.MAC{2, 0, 0, 0, 0, 3} // of port in

func newLoop(ctx context.Context, cpu int) (l *loop, err error) {
	name := fmt.Sprint("overhead-", os.Getpid())
	l = &loop{base: base(name, cpu), done: make(chan error, 1)}
	cfg, err := config.Parse("overhead.yaml", []byte(l.base))
	if err != nil {
		return nil, err
	}
	if l.router, err = router.New(cfg, router.Options{Log: zap.NewNop()}); err != nil {
		return nil, err
	}
	rctx, stop := context.WithCancel(ctx)
	l.stop = stop
	ready := make(chan struct{})
	go func() { l.done <- l.router.Run(rctx, func() { close(ready) }) }()
	defer func() {
		if err != nil {
			l.close()
		}
	}()
	if l.pool, err = packet.NewPool("overhead", 2*inFlight); err != nil {
		return nil, err
	}
	l.cache = l.pool.NewCache()
	if l.in, err = open(pmd.Config{Name: "gen", Driver: "mem", Socket: name + "-in", Ring: 8192, Pool: l.pool}); err != nil {
		return nil, err
	}
	if err = l.in.Queue(0).Start(l.cache); err != nil {
		return nil, err
	}
	select {
	case <-ready:
		return l, nil
	case err = <-l.done:
		l.done <- nil
		return nil, errors.Join(err, errors.New("the router has ended"))
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func open(c pmd.Config) (pmd.Port, error) {
	d, err := pmd.Lookup(c.Driver)
	if err != nil {
		return nil, err
	}
	return d.Open(c)
}

// use applies the base configuration with a feature's laid over it.
func (l *loop) use(ctx context.Context, over string) error {
	text, err := overlay(l.base, over)
	if err != nil {
		return err
	}
	out, err := l.router.ApplyConfig(ctx, &v1.ApplyConfigRequest{Yaml: text, Path: "overhead.yaml"})
	if err == nil && len(out.NeedRestart) != 0 {
		err = fmt.Errorf("needs a restart: %v", out.NeedRestart)
	}
	return err
}

// run takes packets round until they end and returns the worker's clocks a packet.
func (l *loop) run(ctx context.Context, frames [][]byte) (clocks float64, err error) {
	before, err := l.counters(ctx)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := l.inject(ctx, frames); err != nil {
		return 0, err
	}
	// Nobody looks at the router while it works.
	sleep(ctx, l.last)
	for last := uint64(0); ; {
		now, err := l.counters(ctx)
		switch {
		case err != nil:
			return 0, err
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case now.Packets == last:
			n := now.Packets - before.Packets
			if want := uint64(len(frames)) * laps; n < want {
				return 0, fmt.Errorf("%d of %d packets came round: %s", n, want, l.drops(ctx))
			}
			return float64(now.BusyClocks-before.BusyClocks) / float64(n), nil
		}
		last = now.Packets
		l.last = time.Since(start) - 5*time.Millisecond
		sleep(ctx, 5*time.Millisecond)
	}
}

// drops says what was dropped, for errors.
func (l *loop) drops(ctx context.Context) (s string) {
	d, err := l.router.ListDrops(ctx, &v1.ListDropsRequest{})
	if err != nil {
		return err.Error()
	}
	for _, x := range d.Drops {
		if x.Count != 0 && x.Reason != "ttl" {
			s += fmt.Sprintf("%s/%s %d, ", x.Stage, x.Reason, x.Count)
		}
	}
	return s
}

func (l *loop) counters(ctx context.Context) (*v1.Worker, error) {
	w, err := l.router.ListWorkers(ctx, &v1.ListWorkersRequest{})
	if err == nil && len(w.Workers) != 1 {
		err = fmt.Errorf("%d workers", len(w.Workers))
	}
	if err != nil {
		return nil, err
	}
	return w.Workers[0], nil
}

// inject puts all frames into the router.
func (l *loop) inject(ctx context.Context, frames [][]byte) error {
	q := l.in.Queue(0)
	var b [64]uint32
	end := time.Now().Add(5 * time.Second)
	for len(frames) > 0 {
		n := l.cache.Alloc(b[:min(len(b), len(frames))])
		for k, x := range b[:n] {
			copy(packet.At(x).Append(len(frames[k])), frames[k])
		}
		sent := 0
		for sent < n {
			if sent += q.Tx(b[sent:n]); sent < n && (ctx.Err() != nil || time.Now().After(end)) {
				l.cache.Free(b[sent:n])
				return errors.Join(ctx.Err(), errors.New("the router takes no packets"))
			}
		}
		if frames = frames[n:]; n == 0 && time.Now().After(end) {
			return errors.New("packets do not come back")
		}
	}
	return nil
}

func (l *loop) close() {
	if l.in != nil {
		l.in.Queue(0).Stop()
		l.in.Close()
	}
	l.stop()
	<-l.done
	if l.pool != nil {
		l.cache.Close()
		l.pool.Close()
	}
}

func sleep(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// traffic is inFlight UDP frames of a size with FCS, of so many flows.
func traffic(v6 bool, size, flows int) [][]byte {
	r := rand.New(rand.NewPCG(1, uint64(flows)))
	make1 := func() []byte {
		size := size - 4
		if v6 {
			size = max(size, 62)
		}
		f := make([]byte, size)
		e := packet.Ethernet(f)
		e.SetDst(gateway)
		e.SetSrc([6]byte{2, 0, 0, 0, 0, 9})
		l4 := f[34:]
		if v6 {
			e.SetType(packet.EtherIPv6)
			src, dst := netip.MustParseAddr("2001:2::").As16(), netip.MustParseAddr("2001:2:0:8000::").As16()
			binary.BigEndian.PutUint64(src[8:], r.Uint64())
			binary.BigEndian.PutUint64(dst[8:], r.Uint64())
			h := packet.IPv6(f[14:54])
			h.Init(src, dst, packet.ProtoUDP, size-54)
			h.SetHopLimit(laps + 1)
			l4 = f[54:]
		} else {
			e.SetType(packet.EtherIPv4)
			h := packet.IPv4(f[14:34])
			h.Init([4]byte{198, 18, byte(r.Uint32()), byte(r.Uint32())}, [4]byte{198, 19, byte(r.Uint32()), byte(r.Uint32())}, packet.ProtoUDP, size-14)
			h.SetTTL(laps + 1)
			h.SetSum()
		}
		binary.BigEndian.PutUint16(l4, uint16(1024+r.IntN(60000)))
		binary.BigEndian.PutUint16(l4[2:], uint16(1024+r.IntN(60000)))
		binary.BigEndian.PutUint16(l4[4:], uint16(len(l4)))
		if v6 { // it needs a checksum
			h := packet.IPv6(f[14:54])
			packet.PutSum(l4[6:], ^packet.Fold(packet.Sum(l4, packet.Pseudo6(h.Src(), h.Dst(), packet.ProtoUDP, len(l4)))))
		}
		return f
	}
	all := make([][]byte, inFlight)
	for i := range all {
		if i < flows {
			all[i] = make1()
		} else {
			all[i] = all[i%flows]
		}
	}
	return all
}
