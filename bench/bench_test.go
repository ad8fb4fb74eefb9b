package bench

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"millrace/bench/pin"
	"millrace/control/cli"
	"millrace/control/config"
	"millrace/control/router"
)

// The test binary is millrace too: the router under test and the memif peer are processes of it.
func TestMain(m *testing.M) {
	const mark = "MILLRACE_BENCH_TEST"
	if os.Getenv(mark) != "" {
		os.Exit(cli.Main(cli.Options{
			Version: "test",
			Add:     []func(*cobra.Command){Add},
			NewRouter: func(cfg *config.Config, log *zap.Logger, level zap.AtomicLevel) (cli.Router, error) {
				return router.New(cfg, router.Options{Log: log, Level: level})
			},
		}))
	}
	os.Setenv(mark, "1")
	os.Exit(m.Run())
}

// has checks that a report holds a positive value for each name and metric.
func has(t *testing.T, r *Report, metric string, names ...string) {
	t.Helper()
	for _, n := range names {
		if v, ok := r.Value(n, metric); !ok || v <= 0 {
			t.Errorf("%s of %s: %v, present %v", metric, n, v, ok)
		}
	}
}

func TestRoad(t *testing.T) {
	for _, filter := range []string{"ipv4/64B/hot", "exits", "mix", "vector-1", "overhead"} {
		r, err := Road(RoadOptions{Runs: 2, Filter: filter})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range r.Results {
			if x.Best <= 0 && !strings.HasPrefix(x.Name, "overhead/") || x.Median < x.Best || x.Runs != 2 {
				t.Errorf("%+v", x)
			}
		}
		if filter == "ipv4/64B/hot" {
			has(t, r, "clocks_per_packet", filter, filter+"/classify", filter+"/check4", filter+"/rewrite", filter+"/tx")
			has(t, r, "ns_per_packet", filter)
		}
	}
	if _, err := Road(RoadOptions{Filter: "no such case"}); err == nil {
		t.Error("a filter that fits nothing is no error")
	}
}

// TestRoadExits: what leaves the road in the benchmark is a twentieth, and none of it is lost.
func TestRoadExits(t *testing.T) {
	for _, c := range roadCases() {
		if c.name != "exits/64B/hot" {
			continue
		}
		b, err := newRoadBed(c, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer b.close()
		for range 20 {
			b.restore(1)
			b.timed()
		}
		a := b.solo.Account()
		if a.Missing() != 0 {
			t.Errorf("%d packets missing: %+v", a.Missing(), a)
		}
		if share := float64(a.Dropped) / float64(a.Received); share < 0.03 || share > 0.07 {
			t.Errorf("%.3f of the packets left, want about 0.05", share)
		}
	}
}

func TestPorts(t *testing.T) {
	if len(pin.CPUs()) < 2 {
		t.Skip("two CPUs are needed")
	}
	var notes []string
	r, err := Ports(context.Background(), PortsOptions{Rounds: 1, Window: 200 * time.Millisecond,
		Note: func(f string, a ...any) { notes = append(notes, fmt.Sprintf(f, a...)) }})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r, "packets_per_second", "memif", "mem")
	if os.Geteuid() != 0 {
		if !strings.Contains(strings.Join(notes, "\n"), "not root") {
			t.Errorf("notes: %q", notes)
		}
		t.Skip("not root: nothing over veth pairs")
	}
	has(t, r, "packets_per_second", "afxdp/veth", "afpacket/veth", "afxdp/veth@kernel", "afxdp/veth@kernel-inline")
}

func TestJitter(t *testing.T) {
	if len(pin.CPUs()) < 2 {
		t.Skip("two CPUs are needed")
	}
	r, err := Jitter(context.Background(), JitterOptions{Runs: 1, Window: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	has(t, r, "gap_max_us", "idle", "churn")
	has(t, r, "gap_p999_us", "idle", "churn")
	has(t, r, "latency_p50_us", "wake")
	has(t, r, "cpu_percent", "idle-cpu/busy")
}
