package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/zap"

	"millrace/control/api"
	"millrace/control/api/apitest"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
)

// runnable is a router that forwards until it is told to stop.
type runnable struct {
	*apitest.Router
	cfg  *config.Config
	fail error
}

func (r *runnable) Run(ctx context.Context, ready func()) error {
	if r.fail != nil {
		return r.fail
	}
	ready()
	<-ctx.Done()
	return nil
}

func runnableOptions(r *runnable) Options {
	return Options{Version: "v1.2.3", keepPrivileges: true, NewRouter: func(cfg *config.Config, log *zap.Logger, level zap.AtomicLevel) (Router, error) {
		r.cfg = cfg
		return r, nil
	}}
}

// systemd is the other end of sd_notify.
func systemd(t *testing.T) *net.UnixConn {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	t.Setenv("NOTIFY_SOCKET", path)
	return c
}

func told(t *testing.T, c *net.UnixConn, want string) {
	t.Helper()
	var b [512]byte
	n, err := c.Read(b[:])
	if err != nil || !strings.HasPrefix(string(b[:n]), want) {
		t.Fatalf("systemd heard %q, %v; want %q", b[:n], err, want)
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	socket, file := filepath.Join(dir, "m.sock"), filepath.Join(dir, "m.yaml")
	if err := os.WriteFile(file, []byte("ports: [{name: eth0}]\nlog: {level: error}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	sd := systemd(t)
	r := &runnable{Router: apitest.New()}
	type result struct {
		errs string
		code int
	}
	done := make(chan result, 1)
	go func() {
		_, errs, code := millrace(runnableOptions(r), "--socket", socket, "run", "--config", file)
		done <- result{errs, code}
	}()
	told(t, sd, "READY=1\nSTATUS=forwarding")
	if r.cfg.Ports[0].Name != "eth0" || r.cfg.API.Socket != "" {
		t.Errorf("the router got %+v", r.cfg)
	}
	if _, errs, code := millrace(Options{}, "--socket", socket, "show", "status"); code != 0 {
		t.Errorf("show status: exit %d, %s", code, errs)
	}
	if _, errs, code := millrace(runnableOptions(&runnable{}), "--socket", socket, "run", "eth1"); code != ExitError || !strings.Contains(errs, "another router has "+socket) {
		t.Errorf("a second router: exit %d, %s", code, errs)
	}
	if err := os.WriteFile(file, []byte("ports: [{name: eth0, mtu: 9000}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	signalSelf(t, syscall.SIGHUP)
	told(t, sd, "RELOADING=1\nMONOTONIC_USEC=")
	told(t, sd, "READY=1")
	calls := r.Calls()
	if q, ok := calls[len(calls)-1].(*v1.ApplyConfigRequest); !ok || q.Path != file || !strings.Contains(q.Yaml, "9000") {
		t.Errorf("SIGHUP: %v", calls[len(calls)-1])
	}
	signalSelf(t, syscall.SIGTERM)
	told(t, sd, "STOPPING=1")
	if got := <-done; got.code != 0 || got.errs != "" {
		t.Errorf("exit %d, %s", got.code, got.errs)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
}

func signalSelf(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}

func TestRunFails(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "m.sock")
	broken := &runnable{Router: apitest.New(), fail: errors.New("port eth0: no such device")}
	_, errs, code := millrace(runnableOptions(broken), "--socket", socket, "run", "eth0", "--log-level", "error")
	if code != ExitError || errs != "millrace: port eth0: no such device\n" {
		t.Errorf("exit %d, %s", code, errs)
	}
	// Metrics that cannot be served stop the router with that reason.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := filepath.Join(t.TempDir(), "m.yaml")
	if err := os.WriteFile(file, []byte("ports: [{name: eth0}]\nlog: {level: error}\nmetrics: {listen: "+l.Addr().String()+"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs, code = millrace(runnableOptions(&runnable{Router: apitest.New()}), "--socket", socket, "run", "-c", file)
	if code != ExitError || !strings.Contains(errs, "metrics") || !strings.Contains(errs, "address already in use") {
		t.Errorf("exit %d, %s", code, errs)
	}
	if _, errs, code = millrace(Options{}, "--socket", socket, "run", "eth0"); code != ExitError || !strings.Contains(errs, "cannot run a router") {
		t.Errorf("without a router: exit %d, %s", code, errs)
	}
}

func TestReloadKeeps(t *testing.T) {
	var log bytes.Buffer
	l := zap.New(zapTo(&log))
	r := &runnable{Router: apitest.New()}
	reload(context.Background(), r, filepath.Join(t.TempDir(), "none"), l)
	if len(r.Calls()) != 0 || !strings.Contains(log.String(), "configuration unchanged") {
		t.Errorf("no file: %v, %s", r.Calls(), &log)
	}
	file := filepath.Join(t.TempDir(), "m.yaml")
	if err := os.WriteFile(file, []byte("ports: [{name: eth0}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	log.Reset()
	r.Applied = &v1.ApplyConfigResponse{NeedRestart: []string{"pool"}}
	reload(context.Background(), r, file, l)
	if !strings.Contains(log.String(), "needs a restart") {
		t.Errorf("restart: %s", &log)
	}
	log.Reset()
	r.Err = api.ErrInvalid
	reload(context.Background(), r, file, l)
	if !strings.Contains(log.String(), "invalid request") {
		t.Errorf("refused: %s", &log)
	}
}
