package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"millrace/bench/lab"
	"millrace/bench/pin"
	"millrace/bench/report"
	"millrace/bench/trial"
	"millrace/control/cli"
	"millrace/control/config"
	"millrace/control/router"
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

// bench runs `bench ARGS`.
func bench(ctx context.Context, args ...string) (string, error) {
	root := &cobra.Command{Use: "bench", SilenceErrors: true, SilenceUsage: true}
	root.AddCommand(Commands()...)
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	return out.String(), err
}

func two(t *testing.T) {
	t.Helper()
	if len(pin.CPUs()) < 2 {
		t.Skip("this process may use one CPU, two are needed")
	}
}

func open(t *testing.T, dir string) *report.Run {
	t.Helper()
	r, err := report.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestSideBySide makes both kinds of searches of two things under test, cut short, and looks at what the folder holds.
func TestSideBySide(t *testing.T) {
	two(t)
	for _, name := range []string{"mlrsearch", "rfc2544"} {
		dir := filepath.Join(t.TempDir(), name)
		args := []string{name, "millrace/memif", "wire/memif", "--sizes", "64,128", "--limit", "1200ms", "--out", dir}
		if name == "mlrsearch" {
			args = append(args, "--quick")
		}
		out, err := bench(t.Context(), args...)
		if err != nil {
			t.Fatal(err, out)
		}
		for _, want := range []string{"size", "under test", "64 B", "128 B", "millrace/memif", "wire/memif", "warning: millrace/memif: the search was ended after 1.2s", filepath.Join(dir, "report.html")} {
			if !strings.Contains(out, want) {
				t.Errorf("%s: the table has no %q:\n%s", name, want, out)
			}
		}
		r := open(t, dir)
		if r.Bench != name || r.State != report.Complete || len(r.Searches) != 6 {
			t.Errorf("%s: %s is %s with %d searches: there are 2 things, 2 sizes and a ceiling of 2 sizes", name, r.Bench, r.State, len(r.Searches))
		}
		// The ceilings come first; then the things take turns size by size.
		var order []string
		for _, s := range r.Searches {
			order = append(order, s.Bed+" "+s.Search)
		}
		want := []string{"wire/memif self-test", "wire/memif self-test", "millrace/memif " + name, "wire/memif " + name, "millrace/memif " + name, "wire/memif " + name}
		if !slices.Equal(order, want) {
			t.Errorf("%s: the order is %q", name, order)
		}
		for i := range r.Made {
			if tr := &r.Made[i]; tr.Outcome.Sent == 0 && tr.Outcome.Invalid == "" || tr.Outcome.Size != 64 && tr.Outcome.Size != 128 {
				t.Errorf("%s: trial %d: %+v", name, i+1, tr.Outcome)
			}
		}
		for _, f := range []string{"result.json", "journal.jsonl", "trials.csv", "config.yaml", "profile.yaml", "report.html", "report.md"} {
			if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Size() == 0 {
				t.Errorf("%s: %s: %v", name, f, err)
			}
		}
		if _, err := bench(t.Context(), "resume", dir); err == nil || !strings.Contains(err.Error(), "complete") {
			t.Error("a complete run was resumed: ", err)
		}
	}
}

// TestInterruptedAndResumed ends a soak after some intervals and goes on with it: no interval is made twice.
func TestInterruptedAndResumed(t *testing.T) {
	two(t)
	dir := filepath.Join(t.TempDir(), "soak")
	a := &Ask{Bench: "soak", Under: []string{"wire/memif"}, Profile: "udp", Sizes: []int{64}, Runs: 1, Rate: "10kpps", Time: "400ms", Interval: "50ms"}
	p, err := a.plan()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	if p.Folder, err = a.folder(dir, false); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	p.Show = func(x Progress) {
		if x.Outcome != nil && x.Trials == 3 {
			stop()
		}
	}
	if err := p.Run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if err := p.Folder.Close(errors.New("interrupted")); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	if r.State != report.Partial || r.Trials != 3 || r.Partial != "interrupted" {
		t.Fatalf("%s, %q, %d trials", r.State, r.Partial, r.Trials)
	}
	first := r.Made[0].Outcome.Start
	if out, err := bench(t.Context(), "resume", dir); err != nil {
		t.Fatal(err, out)
	}
	r = open(t, dir)
	if r.State != report.Complete || r.Trials != 8 || !r.Made[0].Outcome.Start.Equal(first) {
		t.Errorf("%s, %d trials of 8, the first from %v, not %v", r.State, r.Trials, r.Made[0].Outcome.Start, first)
	}
	if s := r.Searches[0].Soak; s == nil || len(s.Intervals) != 8 {
		t.Errorf("%+v", s)
	}
}

// children are the processes that this one has started.
func children(t *testing.T) (l []int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for w := range strings.FieldsSeq(string(b)) {
			if n, err := strconv.Atoi(w); err == nil {
				l = append(l, n)
			}
		}
	}
	return l
}

// TestDead kills the router under test: what was measured of it is kept and marked, and the other thing is still tested.
func TestDead(t *testing.T) {
	two(t)
	dir := filepath.Join(t.TempDir(), "soak")
	a := &Ask{Bench: "soak", Under: []string{"millrace/memif", "wire/memif"}, Profile: "udp", Sizes: []int{64}, Runs: 1, Rate: "10kpps", Time: "200ms", Interval: "50ms"}
	p, err := a.plan()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Prepare(); err != nil {
		t.Fatal(err)
	}
	if p.Folder, err = a.folder(dir, false); err != nil {
		t.Fatal(err)
	}
	p.Show = func(x Progress) {
		if x.Outcome != nil && x.Bed == "millrace/memif" && x.Trials == 2 {
			for _, pid := range children(t) {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Error(err)
				}
			}
		}
	}
	err = p.Run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "the router has ended: signal: killed") {
		t.Fatal(err)
	}
	if err := p.Folder.Close(err); err != nil {
		t.Fatal(err)
	}
	r := open(t, dir)
	if r.State != report.Partial || len(r.Searches) != 2 {
		t.Fatalf("%s with %d searches", r.State, len(r.Searches))
	}
	if s := r.Searches[0]; s.Partial == "" || len(s.Soak.Intervals) != 2 {
		t.Errorf("%+v", s)
	}
	if s := r.Searches[1]; s.Bed != "wire/memif" || s.Partial != "" || len(s.Soak.Intervals) != 4 {
		t.Errorf("%+v", s)
	}
	if out, err := bench(t.Context(), "resume", dir); err != nil {
		t.Fatal(err, out)
	}
	if r = open(t, dir); r.State != report.Complete || r.Trials != 8 {
		t.Errorf("resumed: %s with %d trials", r.State, r.Trials)
	}
}

// TestOutside sends through a bridge that somebody else has set up, between namespaces.
func TestOutside(t *testing.T) {
	two(t)
	if os.Geteuid() != 0 {
		t.Skip("namespaces need root")
	}
	l, err := lab.New()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var h [3]*lab.Host
	for i, n := range []string{"left", "box", "right"} {
		if h[i], err = l.Host(n); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(l.Join(h[0], "e0", h[1], "b0"), l.Join(h[1], "b1", h[2], "e1")); err != nil {
		t.Fatal(err)
	}
	if err := h[1].Do("ip link add br0 type bridge", "ip link set b0 master br0", "ip link set b1 master br0", "ip link set br0 up",
		"ethtool -K b0 gro on", "ethtool -K b1 gro on"); err != nil {
		t.Skip("no bridge here: ", err)
	}
	out, err := bench(t.Context(), "gen", "box", "--left", h[0].NS+"/e0", "--right", h[2].NS+"/e1", "--profile", "imix", "--rate", "5kpps", "--time", "100ms", "--json", "-")
	if err != nil {
		t.Fatal(err, out)
	}
	var x Sent
	if err := json.Unmarshal([]byte(out), &x); err != nil {
		t.Fatal(err)
	}
	if o := x.Outcome; o.Lost != 0 || o.Received < 300 || x.Bed != "box" || len(x.Streams) != 2 || x.Latency == nil {
		t.Errorf("%s", out)
	}
}

// TestGen sends through this router by name, and writes a folder.
func TestGen(t *testing.T) {
	two(t)
	dir := filepath.Join(t.TempDir(), "gen")
	out, err := bench(t.Context(), "gen", "millrace/memif", "--profile", "mixed", "--rate", "2kpps", "--time", "200ms", "--out", dir)
	if err != nil {
		t.Fatal(err, out)
	}
	for _, want := range []string{"millrace/memif: sent ", "latency one way", "web/left", "web6/right", "dns/left", "all"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if r := open(t, dir); r.State != report.Complete || r.Trials != 1 || r.Made[0].Outcome.Lost != 0 {
		t.Errorf("%+v", r.Data)
	}
	if out, err = bench(t.Context(), "gen", "--list"); err != nil || !strings.Contains(out, "syn-flood") {
		t.Error(err, out)
	}
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("streams:\n  - sice: 64\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ args, want string }{
		{"mlrsearch vpp", `no thing under test is called "vpp"`},
		{"mlrsearch wire/memif wire/memif", "named twice"},
		{"mlrsearch wire/memif --sizes 64,x", `"x" is not a number`},
		{"mlrsearch wire/memif --sizes 20", "between 64 and"},
		{"mlrsearch wire/memif --goals zdr", "there are ndr, pdr, rfc2544"},
		{"mlrsearch wire/memif --max 50%", "write it as 1.5Mpps"},
		{"mlrsearch wire/memif --runs 0", "at least one"},
		{"mlrsearch wire/memif --limit soon", "write it as 10s"},
		{"mlrsearch wire/memif --cpus 0", "need one each"},
		{"rfc2544 wire/memif --tests jitter", "there are throughput"},
		{"soak wire/memif --rate 0", "write it as"},
		{"soak wire/memif --time 1ms --interval 1s", "not less than an interval"},
		{"gen --left eth0", "go together"},
		{"gen --left nix0 --right nix1", "there are lo"},
		{"gen a,b --left lo --right lo", "has a sign"},
		{"gen wire/memif --size 64,128", "one frame size"},
		{"gen wire/memif --profile nix", "is none of"},
		{"gen wire/memif --profile " + bad, "bad.yaml:2"},
		{"gen wire/memif --profile http --size 64", "sizes of their own"},
		{"gen wire/memif --profile ipv6 --size 64", "64"},
		{"resume " + dir, "is no folder of a run"},
	} {
		out := filepath.Join(dir, "out")
		args := strings.Fields(x.args)
		if args[0] != "resume" {
			args = append(args, "--out", out)
		}
		_, err := bench(t.Context(), args...)
		if err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v; want %q", x.args, err, x.want)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%s left a folder", x.args)
			os.RemoveAll(out)
		}
	}
}

func TestPlaceOn(t *testing.T) {
	for _, x := range []struct {
		cpus []int
		want string
	}{
		{[]int{3}, "error"}, {[]int{0, 1}, "[0] 1"}, {[]int{4, 5, 6}, "[4] 6"}, {[]int{0, 1, 2, 3}, "[0 1] 3"},
	} {
		p, err := PlaceOn(x.cpus)
		got := fmt.Sprint(p.Gen, p.DUT)
		if err != nil {
			got = "error"
		}
		if got != x.want {
			t.Errorf("%v: %s, want %s", x.cpus, got, x.want)
		}
	}
}

func TestProgressLine(t *testing.T) {
	p := Progress{Bed: "kernel", Considered: 30 * time.Second}
	p.Left.Low, p.Left.High = 20*time.Second, 40*time.Second
	p.Size, p.Phase, p.Load.Rate, p.Lower = 64, "NDR 2/3", 1.25e6, 1e6
	p.Outcome = &trial.Outcome{Sent: 100, Lost: 1}
	want := "[##########..........] 50 %  20s to 40s left  kernel 64 B NDR 2/3 1.25 Mpps: lost 1 of 100  [1.00 M, ?]"
	if got := p.line(); got != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	for d, want := range map[time.Duration]string{
		900 * time.Millisecond: "1s", 61 * time.Second: "1m1s", 12*time.Minute + 5*time.Second: "12m", 3*time.Hour + 4*time.Minute: "3h4m", 50 * time.Hour: "2d2h",
	} {
		if got := short(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}
