package e2e

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// TestChurn: while the kernel's tables change as fast as they can, in all the ways that daemons and people have, each packet goes by
// an old or a new route and none elsewhere; after quiet, the audit is clean.
func TestChurn(t *testing.T) {
	long(t)
	f := newFork(t)
	ip(t, f.router, "route add 203.0.113.0/24 via "+leftServer4, "route add 198.51.100.0/24 via "+leftServer4)
	for _, s := range f.server {
		ip(t, s, "route add local 203.0.113.0/24 dev lo", "route add local 198.51.100.0/24 dev lo")
	}
	r := run(t, f.router, "r0", "r1", "r2")
	for _, a := range []string{leftServer4, rightServer4, "203.0.113.9"} {
		pings(t, f.client, a)
	}
	// One destination whose way never changes, and one whose way always does.
	still := newStreams(t, f.client, "203.0.113.9", f.server[:], 16, time.Millisecond)
	before := r.counts()
	var wg sync.WaitGroup
	var stop sync.Once
	end := make(chan struct{})
	halt := func() { stop.Do(func() { close(end) }) }
	defer halt()
	wg.Go(func() {
		for k := 0; ; k++ {
			select {
			case <-end:
				return
			default:
			}
			via := leftServer4
			if k%2 == 0 {
				via = rightServer4
			}
			f.router.Command("ip", "route", "replace", "198.51.100.0/24", "via", via).Run()
		}
	})
	const n = 100_000
	for round := range 2 {
		batch(t, f.router, func(line func(string, ...any)) {
			for i := range n {
				line("route add %s via %s metric %d", prefix4(i), leftServer4, round)
			}
		})
		batch(t, f.router, func(line func(string, ...any)) {
			for i := range n {
				line("route replace %s via %s metric %d", prefix4(i), rightServer4, round)
			}
		})
		batch(t, f.router, func(line func(string, ...any)) {
			for i := range n / 2 {
				line("route del %s metric %d", prefix4(2*i), round)
			}
		})
	}
	// Next-hop objects: a group under many routes changes, and is deleted before them.
	ip(t, f.router, "nexthop add id 1 via "+leftServer4+" dev r1", "nexthop add id 2 via "+rightServer4+" dev r2", "nexthop add id 10 group 1/2")
	batch(t, f.router, func(line func(string, ...any)) {
		for i := range 20_000 {
			line("route add 100.%d.%d.0/24 nhid 10", 64+i>>8, i&255)
		}
	})
	ip(t, f.router, "nexthop replace id 10 group 1", "nexthop replace id 10 group 2", "nexthop replace id 2 via 10.0.3.77 dev r2", "nexthop del id 10")
	// Sources that contradict each other.
	r.do("set", "route", "add", prefix4(1), "via", leftServer4)
	r.do("set", "route", "add", "blackhole", prefix4(2))
	// A link that flaps a hundred times a second.
	batch(t, f.router, func(line func(string, ...any)) {
		for range 200 {
			line("link set r2 down")
			line("link set r2 up")
		}
	})
	ip(t, f.router, "addr replace 2001:db8:3::1/64 dev r2")
	halt()
	wg.Wait()
	x := still.stop()
	t.Logf("%d packets to the destination at rest: %d lost", x.sent, x.lost)
	missed := uint64(0)
	for _, p := range []string{"r0", "r1"} {
		y := r.port(p)
		missed += y.RxNoBuffer + y.RxRingFull + y.RxBad + y.TxFailed
	}
	for k, c := range r.counts() {
		if c != before[k] {
			t.Logf("    %s %d", k, c-before[k])
		}
	}
	if x.lost > int(missed) || x.used[1] != 0 {
		t.Errorf("%d packets lost, %d missed by busy ports; %d flows went astray", x.lost, missed, x.used[1])
	}
	r.clean()

	// The way that always changes: no packet is lost between two routes.
	pings(t, f.client, rightServer4)
	ip(t, f.router, "route replace 198.51.100.0/24 via "+leftServer4)
	pings(t, f.client, "198.51.100.9")
	both := newStreams(t, f.client, "198.51.100.9", f.server[:], 16, time.Millisecond)
	for k := range 200 {
		via := leftServer4
		if k%2 == 0 {
			via = rightServer4
		}
		ip(t, f.router, "route replace 198.51.100.0/24 via "+via)
	}
	y := both.stop()
	t.Logf("%d packets while their route changed 200 times: %d lost, flows at the left %d, at the right %d", y.sent, y.lost, y.used[0], y.used[1])
	if y.lost != 0 || y.late != 0 || y.used[0] == 0 || y.used[1] == 0 {
		t.Errorf("%s", fmt.Sprintf("%d lost, %d late, %v", y.lost, y.late, y.used))
	}
	r.clean()
	r.noLeaks()
}
