package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tea "charm.land/bubbletea/v2"
	"google.golang.org/protobuf/proto"

	"millrace/control/api"
	"millrace/control/api/apitest"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
)

var rewrite = flag.Bool("rewrite", false, "write what commands print into testdata")

func TestMain(m *testing.M) {
	time.Local = time.UTC
	os.Exit(m.Run())
}

// millrace runs one command line and returns its output, errors and exit code.
func millrace(o Options, words ...string) (out, errs string, code int) {
	var stdout, stderr bytes.Buffer
	root := New(o)
	root.SetArgs(words)
	root.SetOut(&stdout)
	root.SetErr(&stderr)
	err := root.ExecuteContext(context.Background())
	printError(&stderr, err)
	return stdout.String(), stderr.String(), ExitCode(err)
}

func with(r *apitest.Router) Options {
	return Options{Version: "v1.2.3", Dial: func(string) api.Backend { return r }}
}

func sick() *apitest.Router {
	r := apitest.New()
	r.Status.Forwarding, r.Status.Reasons, r.Status.PortsUp, r.Status.ConfirmLeftNs = false, []string{"eth0: no such device", "lan1: link down"}, 0, 42e9
	r.Leaks.Ok, r.Leaks.Difference = false, 3
	r.Leaks.Received += 3
	r.Leaks.Pools[0].Free, r.Leaks.Pools[0].Missing = 61435, 3
	r.Stages = &v1.Stages{Stages: []*v1.Stage{{Name: "classify", Lane: "any"}}}
	r.Routes, r.Drops = &v1.Routes{}, &v1.Drops{}
	r.Applied = &v1.ApplyConfigResponse{Changes: []string{"pool: buffers 0 -> 4096"}, NeedRestart: []string{"pool"}}
	return r
}

// Transcripts: each line of testdata/*.txt that starts with "$ " is run, and what follows it is
// what it prints, to either output, what it asked of the router, and its exit code.
func TestTranscripts(t *testing.T) {
	refused := apitest.New()
	refused.Err = fmt.Errorf("%w: 10.0.0.0/8 metric 0", api.ErrExists)
	for name, o := range map[string]Options{
		"show": with(apitest.New()), "change": with(apitest.New()), "usage": with(apitest.New()), "sick": with(sick()), "refused": with(refused),
		"down": {Version: "v1.2.3"},
	} {
		t.Run(name, func(t *testing.T) {
			file, err := filepath.Abs(filepath.Join("testdata", name+".txt"))
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			t.Chdir("testdata/files")
			t.Setenv("XDG_RUNTIME_DIR", "/run/user")
			var got bytes.Buffer
			for l := range strings.Lines(string(want)) {
				if !strings.HasPrefix(l, "$ ") {
					continue
				}
				words := strings.Fields(l)[2:]
				before := 0
				r, _ := Options.dialed(o).(*apitest.Router)
				if r != nil {
					before = len(r.Calls())
				}
				out, errs, code := millrace(o, words...)
				fmt.Fprintf(&got, "%s%s%s", l, neutral(out), neutral(errs))
				if r != nil && name == "change" {
					for _, c := range r.Calls()[before:] {
						fmt.Fprintf(&got, "[%s %s]\n", c.ProtoReflect().Descriptor().Name(), jsonOf(c))
					}
				}
				fmt.Fprintf(&got, "[exit %d]\n\n", code)
			}
			if *rewrite {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got.String() != string(want) {
				t.Errorf("%s differs (-rewrite accepts it)\n%s", file, firstDifference(got.String(), string(want)))
			}
		})
	}
}

func (o Options) dialed() api.Backend {
	if o.Dial == nil {
		return nil
	}
	return o.Dial("")
}

// neutral takes out what depends on the user who runs the test.
func neutral(s string) string { return strings.ReplaceAll(s, api.DefaultSocket(), "SOCKET") }

func jsonOf(m proto.Message) string {
	var set []string
	f := m.ProtoReflect().Descriptor().Fields()
	for i := range f.Len() {
		if m.ProtoReflect().Has(f.Get(i)) {
			var b []byte
			one := m.ProtoReflect().New()
			one.Set(f.Get(i), m.ProtoReflect().Get(f.Get(i)))
			b = appendMessage(b, one)
			var all map[string]json.RawMessage
			if err := json.Unmarshal(b, &all); err != nil {
				panic(err)
			}
			set = append(set, fmt.Sprintf("%s=%s", f.Get(i).Name(), all[string(f.Get(i).Name())]))
		}
	}
	return strings.Join(set, " ")
}

func firstDifference(got, want string) string {
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d\n got %s\nwant %s", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// --json is valid JSON with numbers as numbers, over every show command.
func TestJSON(t *testing.T) {
	for _, what := range []string{"status", "ports", "stages", "path", "routes", "neighbours", "drops", "leaks", "workers", "fpm"} {
		out, errs, code := millrace(with(apitest.New()), "show", what, "--json")
		d := json.NewDecoder(strings.NewReader(out))
		d.UseNumber()
		var v map[string]any
		if err := d.Decode(&v); err != nil || code != 0 || errs != "" {
			t.Errorf("%s: %v, exit %d, %s", what, err, code, errs)
		}
		if what == "ports" {
			p := v["ports"].([]any)[0].(map[string]any)
			if p["rx_packets"] != json.Number("18446744073709551000") {
				t.Errorf("rx_packets %v", p["rx_packets"])
			}
		}
	}
}

func TestJSONStrings(t *testing.T) {
	b := jsonLine(&v1.Drop{Doc: "a \"quote\", <tag>\n\x00 and ü"})
	var v struct{ Doc string }
	if err := json.Unmarshal(b, &v); err != nil || v.Doc != "a \"quote\", <tag>\n\x00 and ü" {
		t.Errorf("%s: %v", b, err)
	}
}

// The whole way: command, socket, service and back.
func TestOverSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	l, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, apitest.New()) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	near, _, _ := millrace(with(apitest.New()), "show", "ports")
	far, errs, code := millrace(Options{}, "--socket", path, "show", "ports")
	if near != far || code != 0 {
		t.Errorf("exit %d, %s\n got %s\nwant %s", code, errs, far, near)
	}
	if _, errs, code := millrace(Options{}, "--socket", path, "show", "ports", "eth7"); code != ExitError || !strings.Contains(errs, `there is no port "eth7"`) {
		t.Errorf("exit %d, %s", code, errs)
	}
}

func TestCapture(t *testing.T) {
	const want = "\n\r\r\nblock oneblock two"
	file := filepath.Join(t.TempDir(), "out.pcapng")
	out, errs, code := millrace(with(apitest.New()), "capture", "-w", file)
	b, err := os.ReadFile(file)
	if err != nil || string(b) != want || out != "" || code != 0 || errs != "3 packets captured, 1 lost\n" {
		t.Errorf("file %q, %v, output %q, %q, exit %d", b, err, out, errs, code)
	}
	if out, _, code = millrace(with(apitest.New()), "capture", "-w", "-"); out != want || code != 0 {
		t.Errorf("%q, exit %d", out, code)
	}
	r := apitest.New()
	r.Err = fmt.Errorf("%w: filter: no such word", api.ErrInvalid)
	if _, errs, code = millrace(with(r), "capture", "-w", file, "gibberish"); code != ExitError || !strings.Contains(errs, "no such word") {
		t.Errorf("%q, exit %d", errs, code)
	}
}

func TestCaptureKeepsOldFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out.pcapng")
	if err := os.WriteFile(file, []byte("old"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := apitest.New()
	r.Err = api.ErrInvalid
	millrace(with(r), "capture", "-w", file)
	if b, err := os.ReadFile(file); err != nil || string(b) != "old" {
		t.Errorf("%q, %v", b, err)
	}
	if _, errs, code := millrace(with(apitest.New()), "capture", "-w", "/nonexistent/x"); code != ExitError || !strings.Contains(errs, "no such file") {
		t.Errorf("exit %d, %s", code, errs)
	}
}

func FuzzRoute(f *testing.F) {
	f.Add("add 10.0.0.0/8 via 192.0.2.9 dev eth0 metric 5")
	f.Add("default nexthop via fe80::1 dev e weight 2")
	f.Add("blackhole 2001:db8::/32")
	f.Fuzz(func(t *testing.T, s string) {
		for _, complete := range []bool{false, true} {
			r, err := parseRoute(strings.Fields(s), complete)
			if err != nil {
				continue
			}
			p, perr := netip.ParsePrefix(r.Prefix)
			if perr != nil || p != p.Masked() || complete && r.Type == "unicast" && len(r.NextHops) == 0 {
				t.Errorf("%q gives %v", s, r)
			}
			for _, h := range r.NextHops {
				if a, err := netip.ParseAddr(h.Address); h.Address != "" && (err != nil || a.Is4() != p.Addr().Is4()) {
					t.Errorf("%q gives gateway %v", s, h)
				}
			}
		}
	})
}

func TestSampleCommand(t *testing.T) {
	out, _, code := millrace(Options{}, "config", "sample")
	if out != config.Sample() || code != 0 {
		t.Errorf("exit %d, %.40q", code, out)
	}
}

func TestExitCode(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, ExitOK},
		{no("x"), ExitNo},
		{usage("x"), ExitUsage},
		{fmt.Errorf("a: %w", config.Errors{{Msg: "x"}}), ExitNo},
		{fmt.Errorf("a: %w", api.ErrUnavailable), ExitUnavailable},
		{api.ErrNotFound, ExitError},
		{io.ErrUnexpectedEOF, ExitError},
	} {
		if got := ExitCode(tc.err); got != tc.want {
			t.Errorf("%v: %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestCompletion(t *testing.T) {
	out, _, code := millrace(Options{}, "__complete", "show", "r")
	if code != 0 || !strings.Contains(out, "routes\tRoutes; with an address") {
		t.Errorf("exit %d: %s", code, out)
	}
	for _, line := range [][]string{{"show", "ports", ""}, {"trace", "--port", ""}, {"capture", "--port", ""}, {"show", "neighbours", "--port", ""}} {
		out, _, _ := millrace(with(apitest.New()), append([]string{"__complete"}, line...)...)
		if !strings.HasPrefix(out, "eth0\neth0.100\nlan1\n") {
			t.Errorf("%v: %s", line, out)
		}
	}
	for _, sh := range []string{"bash", "zsh", "fish"} {
		if out, _, code := millrace(Options{}, "completion", sh); code != 0 || !strings.Contains(out, "millrace") {
			t.Errorf("%s: exit %d", sh, code)
		}
	}
}

// later is the fixed router's answers a while later.
func later(a *snapshot) *snapshot {
	b := &snapshot{at: a.at.Add(2 * time.Second), status: a.status, stages: proto.Clone(a.stages).(*v1.Stages)}
	for _, p := range a.ports {
		q := proto.Clone(p).(*v1.Port)
		q.RxPackets += 400
		q.TxPackets += 2_980_000
		q.TxBytes += 2_980_000 * 64
		q.RxRingFull += 10
		b.ports = append(b.ports, q)
	}
	for _, s := range b.stages.Stages {
		if !s.Exit {
			s.Calls, s.Packets, s.Measured, s.Clocks = s.Calls+100, s.Packets+6400, s.Measured+6400, s.Clocks+6400*21
		}
	}
	for _, d := range a.drops {
		e := proto.Clone(d).(*v1.Drop)
		if e.Reason == "queue-full" {
			e.Count += 1000
		}
		b.drops = append(b.drops, e)
	}
	b.drops = append(b.drops, &v1.Drop{Stage: "filter", Reason: "denied", Doc: "A rule denies it.", Kind: "drop", Count: 40})
	for _, w := range a.workers {
		x := proto.Clone(w).(*v1.Worker)
		x.TotalClocks += 4_000_000
		x.BusyClocks += 1_000_000
		x.Packets += 6400
		b.workers = append(b.workers, x)
	}
	return b
}

func TestTop(t *testing.T) {
	a, err := sample(context.Background(), apitest.New())
	if err != nil {
		t.Fatal(err)
	}
	got := renderTop(a, later(a))
	file := "testdata/top.golden"
	if *rewrite {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs (-rewrite accepts it)\n%s", file, got)
	}
	// A router that restarted: no rate is negative or huge.
	if s := renderTop(later(a), a); strings.Contains(s, "-1") || strings.Contains(s, "E") && strings.Contains(s, "e+") {
		t.Errorf("after a restart:\n%s", s)
	}
	out, _, code := millrace(with(apitest.New()), "top", "--once", "--every", "100ms", "--measure")
	if code != 0 || !strings.Contains(out, "millrace v1.2.3  up 1d2h3m4s  forwarding  routes 3 + 1") {
		t.Errorf("--once: exit %d\n%s", code, out)
	}
}

// The live view on a terminal that is a pipe: it draws, and q ends it.
func TestTopLive(t *testing.T) {
	keys, typed := io.Pipe()
	screen := &firstDraw{want: []byte("lookup4"), seen: make(chan struct{})}
	go func() {
		<-screen.seen
		typed.Write([]byte("q")) //nolint:errcheck // the view may have ended with an error, which the test sees
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	err := topLive(ctx, apitest.New(), 100*time.Millisecond, tea.WithInput(keys), tea.WithOutput(screen), tea.WithWindowSize(100, 40), tea.WithoutSignals(), tea.WithEnvironment([]string{"TERM=xterm"}))
	if err != nil {
		t.Errorf("%v\n%q", err, screen.all.Bytes())
	}
}

// firstDraw says when something was drawn.
type firstDraw struct {
	all  bytes.Buffer
	want []byte
	seen chan struct{}
	done bool
}

func (f *firstDraw) Write(b []byte) (int, error) {
	f.all.Write(b)
	if !f.done && bytes.Contains(f.all.Bytes(), f.want) {
		f.done = true
		close(f.seen)
	}
	return len(b), nil
}

func TestTopKeys(t *testing.T) {
	r := apitest.New()
	a, err := sample(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	m := &topModel{ctx: context.Background(), b: r, every: time.Second, now: a}
	if !strings.Contains(m.text(), "measuring") {
		t.Error("nothing to see before the second sample")
	}
	m.Update(tea.WindowSizeMsg{Width: 40, Height: 10})
	m.Update(sampled{s: later(a)})
	lines := strings.Split(m.text(), "\n")
	if len(lines) > 10 || !strings.HasPrefix(lines[0], "\x1b[1mmillrace v1.2.3") {
		t.Errorf("%d lines in a window of 10:\n%s", len(lines), m.text())
	}
	key := func(s string) tea.Cmd {
		_, cmd := m.Update(tea.KeyPressMsg{Code: []rune(s)[0], Text: s})
		return cmd
	}
	key(" ")
	old := m.now
	m.Update(sampled{s: a})
	if m.now != old || !strings.Contains(m.text(), "PAUSED") {
		t.Error("space does not pause")
	}
	key("m")()
	calls := r.Calls()
	if q, ok := calls[len(calls)-1].(*v1.SetMeasureRequest); !ok || q.On {
		t.Errorf("m: %v", calls[len(calls)-1])
	}
	if cmd := key("q"); cmd == nil || cmd() != tea.Quit() {
		t.Error("q does not quit")
	}
	gone := errors.New("gone")
	if _, cmd := m.Update(sampled{err: gone}); cmd() != tea.Quit() || m.err != gone {
		t.Error("the view goes on without a router")
	}
}

func TestWords(t *testing.T) {
	for x, want := range map[float64]string{0: "0", 7: "7", 0.5: "0.50", 12.34: "12.3", 999: "999", 999.6: "1.00k", 1490000: "1.49M", 14_880_952: "14.9M", 148_800_000: "149M", 1e10: "10.0G", 2.5e15: "2.50P"} {
		if got := si(x); got != want {
			t.Errorf("si(%v) = %s, want %s", x, got, want)
		}
	}
	for m, want := range map[uint32]string{0: "-", 10: "10M", 1000: "1G", 2500: "2.5G", 100000: "100G", 1234: "1234M"} {
		if got := speed(m); got != want {
			t.Errorf("speed(%d) = %s, want %s", m, got, want)
		}
	}
}
