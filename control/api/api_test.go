package api_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"millrace/control/api"
	"millrace/control/api/apitest"
	v1 "millrace/control/api/v1"
)

// start serves a router on a socket of its own until the test ends.
func start(t *testing.T, r api.Backend) (*api.Client, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "m.sock")
	l, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, r) }()
	c := api.Dial(path)
	t.Cleanup(func() {
		c.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Serve: %v", err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the socket is still there: %v", err)
		}
	})
	return c, path
}

// What a router answers is what the client gets.
func TestCalls(t *testing.T) {
	r := apitest.New()
	c, _ := start(t, r)
	ctx := context.Background()
	call := func(name string, want proto.Message, got proto.Message, err error) {
		t.Helper()
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v\n got %v\nwant %v", name, err, got, want)
		}
	}
	m1, err := c.GetStatus(ctx, &v1.GetStatusRequest{})
	call("GetStatus", r.Status, m1, err)
	m2, err := c.ListPorts(ctx, &v1.ListPortsRequest{})
	call("ListPorts", r.Ports, m2, err)
	m3, err := c.ListStages(ctx, &v1.ListStagesRequest{})
	call("ListStages", r.Stages, m3, err)
	m4, err := c.ListRoutes(ctx, &v1.ListRoutesRequest{Address: "10.0.0.1"})
	call("ListRoutes", r.Routes, m4, err)
	m5, err := c.ListNeighbours(ctx, &v1.ListNeighboursRequest{})
	call("ListNeighbours", r.Neighbours, m5, err)
	m6, err := c.ListDrops(ctx, &v1.ListDropsRequest{})
	call("ListDrops", r.Drops, m6, err)
	m7, err := c.GetLeaks(ctx, &v1.GetLeaksRequest{})
	call("GetLeaks", r.Leaks, m7, err)
	m8, err := c.ListWorkers(ctx, &v1.ListWorkersRequest{})
	call("ListWorkers", r.Workers, m8, err)
	m9, err := c.GetConfig(ctx, &v1.GetConfigRequest{})
	call("GetConfig", r.Config, m9, err)
	apply := &v1.ApplyConfigRequest{Yaml: "ports: []", ConfirmNs: 5, DryRun: true}
	m10, err := c.ApplyConfig(ctx, apply)
	call("ApplyConfig", r.Applied, m10, err)
	m11, err := c.Rollback(ctx, &v1.RollbackRequest{})
	call("Rollback", r.Applied, m11, err)
	m12, err := c.Confirm(ctx, &v1.ConfirmRequest{})
	call("Confirm", &v1.ConfirmResponse{}, m12, err)
	m13, err := c.AddRoute(ctx, &v1.AddRouteRequest{Route: r.Routes.Routes[1], Replace: true})
	call("AddRoute", &v1.AddRouteResponse{}, m13, err)
	m14, err := c.DelRoute(ctx, &v1.DelRouteRequest{Route: r.Routes.Routes[0]})
	call("DelRoute", &v1.DelRouteResponse{Deleted: 1}, m14, err)
	m15, err := c.SetMeasure(ctx, &v1.SetMeasureRequest{On: true})
	call("SetMeasure", &v1.SetMeasureResponse{}, m15, err)
	m16, err := c.Audit(ctx, &v1.AuditRequest{Limit: 3})
	call("Audit", r.Report, m16, err)
	m17, err := c.GetFPM(ctx, &v1.GetFPMRequest{})
	call("GetFPM", r.FPM, m17, err)
	m18, err := c.ListRouteFiles(ctx, &v1.ListRouteFilesRequest{})
	call("ListRouteFiles", r.Files, m18, err)
	m19, err := c.LoadRoutes(ctx, &v1.LoadRoutesRequest{File: "/x"})
	call("LoadRoutes", &v1.LoadRoutesResponse{Routes: 1_042_325, DurationNs: 1_500_000_000}, m19, err)
	m20, err := c.UnloadRoutes(ctx, &v1.UnloadRoutesRequest{File: "/x"})
	call("UnloadRoutes", &v1.UnloadRoutesResponse{Routes: 1_042_325}, m20, err)
	m21, err := c.Explain(ctx, &v1.ExplainRequest{To: "10.0.0.1"})
	call("Explain", r.Explained, m21, err)
	m22, err := c.ListRules(ctx, &v1.ListRulesRequest{Family: "ipv4"})
	call("ListRules", r.Rules, m22, err)
	calls := r.Calls()
	if len(calls) != 22 || !proto.Equal(calls[9], apply) || !calls[14].(*v1.SetMeasureRequest).On {
		t.Errorf("the router was asked %v", calls)
	}
}

func TestStreams(t *testing.T) {
	r := apitest.New()
	c, _ := start(t, r)
	n := 0
	if err := c.Trace(context.Background(), &v1.TraceRequest{Count: 5}, func(p *v1.TracedPacket) error {
		if !proto.Equal(p, r.Traced[n%2]) {
			t.Errorf("packet %d: %v", n, p)
		}
		n++
		return nil
	}); err != nil || n != 5 {
		t.Errorf("%d packets, %v", n, err)
	}
	var got []byte
	if err := c.Capture(context.Background(), &v1.CaptureRequest{}, func(k *v1.CaptureChunk) error {
		got = append(got, k.Data...)
		return nil
	}); err != nil || string(got) != "\n\r\r\nblock oneblock two" {
		t.Errorf("%q, %v", got, err)
	}
}

// A stream ends on both sides when the client leaves, and when its receiver fails.
func TestStreamLeft(t *testing.T) {
	var ended atomic.Int32
	c, _ := start(t, tracing{apitest.New(), &ended})
	ctx, cancel := context.WithCancel(context.Background())
	err := c.Trace(ctx, &v1.TraceRequest{}, func(*v1.TracedPacket) error { cancel(); return nil })
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	full := errors.New("disk full")
	if err := c.Trace(context.Background(), &v1.TraceRequest{}, func(*v1.TracedPacket) error { return full }); !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	for deadline := time.Now().Add(10 * time.Second); ended.Load() < 2; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the router still traces for clients that left")
		}
	}
}

type tracing struct {
	*apitest.Router
	ended *atomic.Int32
}

func (r tracing) Trace(ctx context.Context, q *v1.TraceRequest, send func(*v1.TracedPacket) error) error {
	defer r.ended.Add(1)
	return r.Router.Trace(ctx, q, send)
}

// Serve ends streams that have no end.
func TestServeEndsStreams(t *testing.T) {
	path := filepath.Join(t.TempDir(), "m.sock")
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	l, err := api.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Serve(ctx, apitest.New()) }()
	c := api.Dial(path)
	defer c.Close()
	if err := c.Trace(context.Background(), &v1.TraceRequest{}, func(*v1.TracedPacket) error { cancel(); return nil }); err == nil {
		t.Error("the stream ended as if complete")
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	r := apitest.New()
	c, _ := start(t, r)
	plain := errors.New("table full")
	for _, kind := range []error{api.ErrInvalid, api.ErrNotFound, api.ErrExists, api.ErrConflict, api.ErrNotSupported, plain} {
		r.Err = fmt.Errorf("route 10.0.0.0/8: %w", kind)
		_, err := c.AddRoute(context.Background(), &v1.AddRouteRequest{})
		if err == nil || err.Error() != r.Err.Error() {
			t.Errorf("%v: got %v", r.Err, err)
		}
		if kind != plain && !errors.Is(err, kind) {
			t.Errorf("%v: lost its meaning", kind)
		}
		err = c.Trace(context.Background(), &v1.TraceRequest{Count: 1}, func(*v1.TracedPacket) error { return nil })
		if err == nil || err.Error() != r.Err.Error() || kind != plain && !errors.Is(err, kind) {
			t.Errorf("stream, %v: got %v", r.Err, err)
		}
	}
}

func TestNoRouter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.sock")
	c := api.Dial(path)
	_, err := c.GetStatus(context.Background(), &v1.GetStatusRequest{})
	if !errors.Is(err, api.ErrUnavailable) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "millrace run eth0 eth1") {
		t.Errorf("got %v", err)
	}
	err = c.Trace(context.Background(), &v1.TraceRequest{}, func(*v1.TracedPacket) error { return nil })
	if !errors.Is(err, api.ErrUnavailable) {
		t.Errorf("stream: got %v", err)
	}
}

// hung is a router that answers no more.
type hung struct{ *apitest.Router }

func (hung) GetStatus(ctx context.Context, _ *v1.GetStatusRequest) (*v1.Status, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestHungRouter(t *testing.T) {
	c, path := start(t, hung{apitest.New()})
	ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	_, err := c.GetStatus(ctx, &v1.GetStatusRequest{})
	if !errors.Is(err, api.ErrUnavailable) || !strings.Contains(err.Error(), path+" did not answer in time") {
		t.Errorf("got %v", err)
	}
}

func TestListen(t *testing.T) {
	t.Run("permission", func(t *testing.T) {
		old := syscall.Umask(0)
		defer syscall.Umask(old)
		path := filepath.Join(t.TempDir(), "m.sock")
		l, err := api.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o660 {
			t.Errorf("%v, %v", st.Mode(), err)
		}
	})
	t.Run("second router", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "m.sock")
		l, err := api.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		_, err = api.Listen(path)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("another router has %s (process %d)", path, os.Getpid())) {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("the first one lost its socket: %v", err)
		}
	})
	t.Run("left by a crash", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "m.sock")
		old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		old.SetUnlinkOnClose(false)
		old.Close()
		l, err := api.Listen(path)
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
	})
	t.Run("another program", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "m.sock")
		other, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if _, err := api.Listen(path); err == nil || !strings.Contains(err.Error(), "another program listens") {
			t.Errorf("got %v", err)
		}
	})
	t.Run("a file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "m.sock")
		if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := api.Listen(path); err == nil || !strings.Contains(err.Error(), "is not a socket") {
			t.Errorf("got %v", err)
		}
		if b, _ := os.ReadFile(path); string(b) != "precious" {
			t.Error("the file was changed")
		}
	})
	t.Run("no directory", func(t *testing.T) {
		if _, err := api.Listen(filepath.Join(t.TempDir(), "no/m.sock")); err == nil || !strings.Contains(err.Error(), "--socket") {
			t.Errorf("got %v", err)
		}
	})
}

// plainHTTP talks to a socket without the client.
func plainHTTP(path string) *http.Client {
	return &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
}

func TestJSON(t *testing.T) {
	_, path := start(t, apitest.New())
	resp, err := plainHTTP(path).Post("http://millrace/millrace.v1.Router/ListDrops", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var got struct {
		Drops []struct{ Stage, Reason, Count string }
	}
	if err := json.NewDecoder(resp.Body).Decode(&got); err != nil || len(got.Drops) != 3 || got.Drops[0].Reason != "no-route" || got.Drops[0].Count != "17" {
		t.Errorf("%+v, %v", got, err)
	}
}

func get(t *testing.T, c *http.Client, url string) (int, string) {
	t.Helper()
	resp, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func TestMetrics(t *testing.T) {
	r := apitest.New()
	_, path := start(t, r)
	c := plainHTTP(path)
	code, text := get(t, c, "http://millrace/metrics")
	if code != 200 {
		t.Fatalf("%d %s", code, text)
	}
	for _, want := range []string{
		"millrace_forwarding 1",
		`millrace_build_info{version="v1.2.3"} 1`,
		"millrace_start_time_seconds 1.7672256e+09",
		`millrace_routes{family="ipv4"} 3`,
		`millrace_port_up{driver="memif",mode="server",port="lan1"} 0`,
		`millrace_port_speed_bits_per_second{port="eth0"} 1e+10`,
		`millrace_port_transmit_packets_total{port="eth0"} 990`,
		`millrace_port_receive_packets_total{port="eth0.100"} 7`,
		`millrace_port_receive_missed_total{cause="ring-full",port="eth0"} 4`,
		`millrace_port_transmit_failed_total{cause="queue-full",port="eth0"} 5`,
		`millrace_road_exits_total{kind="drop",reason="no-route",stage="lookup4"} 17`,
		`millrace_stage_clocks_total{stage="lookup4"} 18000`,
		`millrace_stage_held_packets{stage="neighbour"} 2`,
		`millrace_worker_busy_clocks_total{core="2",worker="0"} 50000`,
		"go_goroutines ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s", want)
		}
	}
	if strings.Contains(text, `port_receive_missed_total{cause="bad",port="eth0.100"}`) {
		t.Error("a VLAN has no rings")
	}
	r.Drops.Drops[0].Count++
	if _, text := get(t, c, "http://millrace/metrics"); !strings.Contains(text, `stage="lookup4"} 18`) {
		t.Error("the second scrape shows old counters")
	}
	// What cannot be read is left out; the rest stays.
	r.Err = errors.New("stopping")
	if code, text := get(t, c, "http://millrace/metrics"); code != 200 || strings.Contains(text, "millrace_forwarding 1") || !strings.Contains(text, "go_goroutines") {
		t.Errorf("%d: %.200s", code, text)
	}
}

func TestProfilesAreLocal(t *testing.T) {
	r := apitest.New()
	_, path := start(t, r)
	if code, text := get(t, plainHTTP(path), "http://millrace/debug/pprof/"); code != 200 || !strings.Contains(text, "goroutine") {
		t.Errorf("%d", code)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- api.ServeMetrics(ctx, addr, r) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	c := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no metrics by TCP")
		}
	}
	if code, text := get(t, c, "http://"+addr+"/metrics"); code != 200 || !strings.Contains(text, "millrace_forwarding 1") {
		t.Errorf("metrics: %d", code)
	}
	for _, p := range []string{"/debug/pprof/", "/millrace.v1.Router/GetStatus"} {
		if code, _ := get(t, c, "http://"+addr+p); code != 404 {
			t.Errorf("%s by TCP: %d", p, code)
		}
	}
}

func TestDefaultSocket(t *testing.T) {
	p := api.DefaultSocket()
	if os.Geteuid() == 0 && p != "/run/millrace.sock" {
		t.Errorf("for root: %s", p)
	}
	if !filepath.IsAbs(p) {
		t.Errorf("%s is relative", p)
	}
}
