package e2e

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "millrace/control/api/v1"
	"millrace/internal/testnet"
)

// TestFPMTable: a full table by BGP into FRR's bgpd, and from zebra by FPM alone, is forwarded to, survives zebra's death, and is taken over by the
// zebra that comes after it. Without a packet lost.
func TestFPMTable(t *testing.T) {
	long(t)
	need(t, "bird", "birdc")
	f := newFork(t)
	conf := file(t, "fpm.yaml", "ports: [{name: r0}, {name: r1}, {name: r2}]\nkernel: {follow: false}\nfpm: {listen: 127.0.0.1:2620, stale: 10m, quiet: 30s}\n")
	r := run(t, f.router, "--config", conf)
	var routes strings.Builder
	for i := range fullTable {
		fmt.Fprintf(&routes, "route %s blackhole;\n", prefix4(i))
	}
	bird(t, f.server[0], fmt.Sprintf(`
router id 10.0.2.2;
protocol static all4 { ipv4; %s }
protocol bgp up { local 10.0.2.2 as 65002; neighbor 10.0.2.1 as 65001; connect delay time 1; ipv4 { import none; export all; next hop self; }; }
`, routes.String()))
	frr := testnet.NewFRR(t, f.router)
	start := func() {
		// -K: zebra does not spend its first minute with taking its old routes out of the kernel.
		frr.Start("zebra", "fpm address 127.0.0.1 port 2620\n", "-M", "dplane_fpm_nl", "-K", "600", "-s", "90000000")
		frr.Start("bgpd", `
router bgp 65001
 bgp router-id 10.0.1.1
 no bgp ebgp-requires-policy
 neighbor 10.0.2.2 remote-as 65002
 neighbor 10.0.2.2 timers connect 1
`)
	}
	// fpm waits until the server has live and stale routes in these numbers, and the FIB all of them.
	fpm := func(what string, live, stale int) time.Duration {
		t.Helper()
		begin := time.Now()
		for {
			s, err := r.api.GetFPM(t.Context(), &v1.GetFPMRequest{})
			var l, st uint64
			if err == nil {
				for _, c := range s.Clients {
					l += c.Routes
				}
				for _, c := range s.Stale {
					st += c.Routes
				}
				if int(l) == live && int(st) == stale && int(s.Prefixes) == live+stale && s.Waiting == 0 {
					return time.Since(begin)
				}
			}
			if time.Since(begin) > 5*time.Minute {
				t.Fatalf("%s: %d routes, %d stale, %v: %v", what, l, st, err, s)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	start()
	t.Logf("%d routes by FPM %v after the daemons' start", fullTable, fpm("the table", fullTable, 0).Round(10*time.Millisecond))
	r.clean()
	for _, i := range []int{0, fullTable / 2, fullTable - 1} {
		ping(t, f.client, host4(i))
	}
	missed, counts := r.missed("r0", "r1"), r.counts()
	fl := newStreams(t, f.client, host4(77), f.server[:1], 16, time.Millisecond)
	time.Sleep(300 * time.Millisecond)
	frr.Kill("zebra")
	t.Logf("zebra killed: all routes stale after %v", fpm("stale", 0, fullTable).Round(time.Millisecond))
	frr.Kill("bgpd")
	eventually(t, "a route that is stale", func() error {
		if out, _ := r.try("show", "routes", host4(fullTable/2)); !strings.Contains(out, "via "+leftServer4+" dev r1") {
			return errors.New(out)
		}
		return nil
	})
	r.clean()
	start()
	t.Logf("started again: all taken over after %v", fpm("the takeover", fullTable, 0).Round(10*time.Millisecond))
	r.clean()
	time.Sleep(300 * time.Millisecond)
	x, m := fl.stop(), int(r.missed("r0", "r1")-missed)
	t.Logf("%d packets sent meanwhile, %d lost, %d missed by busy ports", x.sent, x.lost, m)
	if x.lost > m || x.late+x.dup != 0 {
		t.Errorf("%d packets lost, %d out of order, %d twice", x.lost, x.late, x.dup)
	}
	for k, n := range r.counts() {
		if n != counts[k] && strings.HasPrefix(k, "lookup/") && k != "lookup/unresolved" {
			t.Errorf("%d packets: %s", n-counts[k], k)
		}
	}
	for _, i := range []int{0, fullTable / 2, fullTable - 1} {
		ping(t, f.client, host4(i))
	}
	r.noLeaks()
}
