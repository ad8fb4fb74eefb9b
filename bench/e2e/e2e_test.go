package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/internal/testnet"
)

// millrace is the binary under test.
var millrace string

func TestMain(m *testing.M) { os.Exit(build(m)) }

func build(m *testing.M) int {
	if os.Geteuid() != 0 {
		return m.Run() // everything skips
	}
	dir, err := os.MkdirTemp("", "millrace-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	flag.Set("test.parallel", "6") // of tests that mostly wait
	millrace = filepath.Join(dir, "millrace")
	c := exec.Command("go", "build", "-o", millrace, "millrace/cmd/millrace")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build the binary: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// need skips the test where a program is missing.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs the program %s", p)
		}
	}
}

// long skips the test in short mode.
func long(t *testing.T) {
	t.Helper()
	if testing.Short() {
		t.Skip("takes longer than -short allows")
	}
}

// Addresses of a line.
const (
	client4, routerC4, routerS4, server4 = "10.0.1.2", "10.0.1.1", "10.0.2.1", "10.0.2.2"
	client6, routerC6, routerS6, server6 = "2001:db8:1::2", "2001:db8:1::1", "2001:db8:2::1", "2001:db8:2::2"
)

// line is client c0 - r0 router r1 - s0 server; the router's kernel does not forward.
type line struct{ client, router, server *testnet.NS }

func newLine(t *testing.T, vethOpts ...string) *line {
	t.Helper()
	l := &line{testnet.New(t), testnet.New(t), testnet.New(t)}
	l.wireClient(t, vethOpts...)
	l.wireServer(t, vethOpts...)
	l.router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
	return l
}

func (l *line) wireClient(t *testing.T, opts ...string) {
	t.Helper()
	testnet.Veth(t, l.router, "r0", l.client, "c0", opts...)
	ip(t, l.router, "addr add "+routerC4+"/24 dev r0", "addr add "+routerC6+"/64 dev r0")
	ip(t, l.client, "addr add "+client4+"/24 dev c0", "addr add "+client6+"/64 dev c0",
		"route add default via "+routerC4, "route add default via "+routerC6)
}

func (l *line) wireServer(t *testing.T, opts ...string) {
	t.Helper()
	testnet.Veth(t, l.router, "r1", l.server, "s0", opts...)
	ip(t, l.router, "addr add "+routerS4+"/24 dev r1", "addr add "+routerS6+"/64 dev r1")
	ip(t, l.server, "addr add "+server4+"/24 dev s0", "addr add "+server6+"/64 dev s0",
		"route add default via "+routerS4, "route add default via "+routerS6)
}

// ip runs `ip` commands, each a line of words.
func ip(t *testing.T, ns *testnet.NS, commands ...string) {
	t.Helper()
	for _, c := range commands {
		ns.Run(t, "ip", strings.Fields(c)...)
	}
}

// router is a running millrace.
type router struct {
	t      *testing.T
	ns     *testnet.NS
	cmd    *exec.Cmd
	socket string
	api    *api.Client
	log    *buffer
	ended  chan error
}

// buffer is a log that is read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// launch starts `millrace run` without waiting for it.
func launch(t *testing.T, ns *testnet.NS, args ...string) *router {
	t.Helper()
	// Not t.TempDir, whose path may be too long for a socket's.
	dir, err := os.MkdirTemp("", "mr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &router{t: t, ns: ns, socket: filepath.Join(dir, "sock"), log: &buffer{}, ended: make(chan error, 1)}
	r.cmd = ns.Command(millrace, append([]string{"run", "--socket", r.socket}, args...)...)
	r.cmd.Stdout, r.cmd.Stderr = r.log, r.log
	r.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := r.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	r.api = api.Dial(r.socket)
	go func() { r.ended <- r.cmd.Wait() }()
	t.Cleanup(func() {
		r.cmd.Process.Kill() // where the test has not stopped it
		<-r.ended
		if t.Failed() {
			t.Logf("the router's log:\n%s", r.log)
		}
	})
	return r
}

// run starts `millrace run ARGS` and waits until it forwards with all ports up. At the end of the test the
// account of packets must be in order, and SIGTERM must end it cleanly.
func run(t *testing.T, ns *testnet.NS, args ...string) *router {
	t.Helper()
	r := launch(t, ns, args...)
	eventually(t, "the router to forward", func() error {
		select {
		case err := <-r.ended:
			r.ended <- err
			t.Fatalf("the router ended: %v\n%s", err, r.log)
		default:
		}
		s, err := r.api.GetStatus(context.Background(), &v1.GetStatusRequest{})
		if err == nil && (!s.Forwarding || s.PortsUp != s.Ports) {
			err = fmt.Errorf("%v", s)
		}
		return err
	})
	t.Cleanup(func() {
		if !r.alive() {
			return
		}
		r.noLeaks()
		if t.Failed() {
			out, _ := r.try("show", "drops")
			ports, _ := r.try("show", "ports")
			t.Logf("%s\n%s", out, ports)
		}
		r.stop()
	})
	return r
}

// runYAML is run with a configuration file.
func runYAML(t *testing.T, ns *testnet.NS, yaml string) *router {
	t.Helper()
	return run(t, ns, "--config", file(t, "millrace.yaml", yaml))
}

// file writes a file for the test.
func file(t *testing.T, name, text string) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func (r *router) alive() bool {
	select {
	case err := <-r.ended:
		r.ended <- err
		return false
	default:
		return true
	}
}

// noLeaks: `show leaks` is content, once nothing is under way.
func (r *router) noLeaks() {
	r.t.Helper()
	eventually(r.t, "every packet to be accounted for", func() error {
		out, code := r.try("show", "leaks")
		if code != 0 {
			return errors.New(out)
		}
		return nil
	})
}

// stop ends the router by SIGTERM.
func (r *router) stop() {
	r.t.Helper()
	r.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-r.ended:
		if err != nil {
			r.t.Errorf("the router ended with %v\n%s", err, r.log)
		}
		r.ended <- err
	case <-time.After(15 * time.Second):
		r.t.Errorf("SIGTERM did not end the router\n%s", r.log)
	}
}

// try runs a millrace command against the router and returns all its output and its exit code.
func (r *router) try(args ...string) (string, int) {
	r.t.Helper()
	return command(r.t, r.ns, append([]string{millrace, "--socket", r.socket}, args...)...)
}

// do is try for a command that must succeed.
func (r *router) do(args ...string) string {
	r.t.Helper()
	out, code := r.try(args...)
	if code != 0 {
		r.t.Fatalf("millrace %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// counts are the drops and notes so far, as "stage/reason".
func (r *router) counts() map[string]uint64 {
	r.t.Helper()
	d, err := r.api.ListDrops(context.Background(), &v1.ListDropsRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	m := map[string]uint64{}
	for _, x := range d.Drops {
		m[x.Stage+"/"+x.Reason] = x.Count
	}
	return m
}

func (r *router) port(name string) *v1.Port {
	r.t.Helper()
	l, err := r.api.ListPorts(context.Background(), &v1.ListPortsRequest{Names: []string{name}})
	if err != nil {
		r.t.Fatal(err)
	}
	return l.Ports[0]
}

// command runs a command in a namespace to its end.
func command(t *testing.T, ns *testnet.NS, args ...string) (out string, code int) {
	t.Helper()
	c := ns.Command(args[0], args[1:]...)
	stuck := time.AfterFunc(time.Minute, func() {
		if c.Process != nil {
			c.Process.Kill()
		}
	})
	defer stuck.Stop()
	b, err := c.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return string(b), c.ProcessState.ExitCode()
}

// background starts a command that ends with the test, at the latest.
func background(t *testing.T, ns *testnet.NS, args ...string) (*exec.Cmd, *buffer) {
	t.Helper()
	c, out := ns.Command(args[0], args[1:]...), &buffer{}
	c.Stdout, c.Stderr = out, out
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
	})
	return c, out
}

// eventually tries f until it succeeds.
func eventually(t *testing.T, what string, f func() error) {
	t.Helper()
	end := time.Now().Add(20 * time.Second)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("waiting for %s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// ping sends one echo request after the other, each of which must be answered.
func ping(t *testing.T, ns *testnet.NS, to string, opts ...string) {
	t.Helper()
	for i := range 3 {
		if out, code := command(t, ns, append(append([]string{"ping", "-n", "-c", "1", "-W", "5"}, opts...), to)...); code != 0 {
			t.Fatalf("echo request %d from %s to %s is not answered:\n%s", i+1, ns.Name, to, out)
		}
	}
}

// pings waits until an echo request is answered.
func pings(t *testing.T, ns *testnet.NS, to string) {
	t.Helper()
	eventually(t, "an answer from "+to, func() error {
		if out, code := command(t, ns, "ping", "-n", "-c", "1", "-W", "1", to); code != 0 {
			return errors.New(out)
		}
		return nil
	})
}

// silent: an echo request is not answered.
func silent(t *testing.T, ns *testnet.NS, to string) {
	t.Helper()
	if out, code := command(t, ns, "ping", "-n", "-c", "1", "-W", "1", to); code == 0 {
		t.Errorf("%s answers:\n%s", to, out)
	}
}

// stream is a ping that goes on while other things happen.
type stream struct {
	t   *testing.T
	cmd *exec.Cmd
	out *buffer
}

func startStream(t *testing.T, ns *testnet.NS, to string) *stream {
	t.Helper()
	c, out := background(t, ns, "ping", "-n", "-i", "0.01", to)
	s := &stream{t, c, out}
	eventually(t, "the ping to be under way", func() error {
		if !strings.Contains(out.String(), "icmp_seq=3 ") {
			return errors.New(out.String())
		}
		return nil
	})
	return s
}

var seq = regexp.MustCompile(`icmp_seq=(\d+) ttl`)

// lost ends the ping and returns how many of its requests were not answered, but for the last few.
func (s *stream) lost() (lost int) {
	s.t.Helper()
	s.cmd.Process.Signal(os.Interrupt)
	s.cmd.Wait()
	next := 1
	for _, m := range seq.FindAllStringSubmatch(s.out.String(), -1) {
		n, _ := strconv.Atoi(m[1])
		lost += max(0, n-next)
		next = n + 1
	}
	if next < 4 {
		s.t.Errorf("the ping hardly ran:\n%s", s.out)
	}
	return lost
}

// iperf is what matters of iperf3's report.
type iperf struct {
	Start struct {
		Error string `json:"error"`
	} `json:"start"`
	Error string `json:"error"`
	End   struct {
		SumReceived struct {
			Bytes float64 `json:"bytes"`
		} `json:"sum_received"`
		Sum struct {
			Packets float64 `json:"packets"`
			Lost    float64 `json:"lost_packets"`
		} `json:"sum"`
	} `json:"end"`
}

// runIperf runs iperf3 from one namespace to a server in another.
func runIperf(t *testing.T, from, at *testnet.NS, to string, args ...string) *iperf {
	t.Helper()
	need(t, "iperf3")
	srv, _ := background(t, at, "iperf3", "-s", "-1")
	listening(t, at, "5201")
	out, code := command(t, from, append([]string{"iperf3", "-J", "-c", to}, args...)...)
	var r iperf
	_, body, _ := strings.Cut(out, "{") // behind warnings
	if err := json.Unmarshal([]byte("{"+body), &r); err != nil || code != 0 {
		t.Fatalf("iperf3 %v: exit code %d, %v\n%.2000s", args, code, err, out)
	}
	srv.Wait()
	return &r
}

// listening waits for a TCP server.
func listening(t *testing.T, ns *testnet.NS, port string) {
	t.Helper()
	eventually(t, "a server on port "+port, func() error {
		if out, _ := command(t, ns, "ss", "-Htln", "sport", "=", ":"+port); !strings.Contains(out, port) {
			return errors.New("nobody listens")
		}
		return nil
	})
}
