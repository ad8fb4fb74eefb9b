package testnet

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// FRR is FRRouting's daemons in a namespace. They end with the test, whose log has theirs where it fails.
type FRR struct {
	t     testing.TB
	ns    *NS
	dir   string
	procs map[string]*frrDaemon
}

type frrDaemon struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

const frrPath = "/usr/lib/frr/"

// NewFRR makes room for daemons; it starts none. It skips the test where FRR is not installed.
func NewFRR(t testing.TB, ns *NS) *FRR {
	t.Helper()
	u, err := user.Lookup("frr")
	if err == nil {
		_, err = exec.LookPath("vtysh")
	}
	if err != nil {
		t.Skip("needs FRR (apt install frr): ", err)
	}
	// Not t.TempDir, which is closed to other users and whose path may be too long for a socket's.
	dir, err := os.MkdirTemp("", "frr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	uid, _ := strconv.Atoi(u.Uid)
	gid, _ := strconv.Atoi(u.Gid)
	if err := errors.Join(os.Chown(dir, uid, gid), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	return &FRR{t, ns, dir, map[string]*frrDaemon{}}
}

// Start starts a daemon with a configuration, zebra first, and waits until it listens. It skips the test where the daemon, or
// zebra's module of an option -M, is not installed.
func (f *FRR) Start(daemon, conf string, opts ...string) {
	f.t.Helper()
	if _, err := os.Stat(frrPath + daemon); err != nil {
		f.t.Skipf("needs FRR's %s (apt install frr)", daemon)
	}
	for i, o := range opts {
		if o != "-M" {
			continue
		}
		if m, _ := filepath.Glob("/usr/lib/*/frr/modules/" + opts[i+1] + ".so"); len(m) == 0 {
			f.t.Skipf("needs FRR with %s (apt install frr)", opts[i+1])
		}
	}
	at := func(suffix string) string { return filepath.Join(f.dir, daemon+suffix) }
	if err := os.WriteFile(at(".conf"), []byte(conf+"\n"), 0o644); err != nil {
		f.t.Fatal(err)
	}
	out, err := os.OpenFile(at(".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		f.t.Fatal(err)
	}
	defer out.Close()
	// Without `ip netns exec`, whose process would not be the daemon's.
	c := exec.Command(frrPath+daemon, append([]string{"-f", at(".conf"), "-u", "frr", "-g", "frr", "-i", at(".pid"),
		"-z", filepath.Join(f.dir, "zserv"), "--vty_socket", f.dir, "--log", "stdout"}, opts...)...)
	c.Stdout, c.Stderr = out, out
	f.ns.Do(func() { err = c.Start() })
	if err != nil {
		f.t.Fatal(err)
	}
	d := &frrDaemon{c, make(chan struct{})}
	f.procs[daemon] = d
	go func() { c.Wait(); close(d.ended) }()
	f.t.Cleanup(func() {
		c.Process.Kill()
		<-d.ended
		if f.t.Failed() {
			b, _ := os.ReadFile(at(".out"))
			f.t.Logf("%s: %s", daemon, b)
		}
	})
	end := time.Now().Add(20 * time.Second)
	for {
		s, err := net.Dial("unix", at(".vty"))
		if err == nil {
			s.Close()
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("%s does not listen: %v", daemon, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Kill ends a daemon as a crash would.
func (f *FRR) Kill(daemon string) {
	f.t.Helper()
	d := f.procs[daemon]
	d.cmd.Process.Kill()
	<-d.ended
}

// Vtysh runs commands of FRR's shell.
func (f *FRR) Vtysh(commands ...string) string {
	f.t.Helper()
	args := []string{"--vty_socket", f.dir}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := exec.Command("vtysh", args...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("vtysh %s: %v\n%s", strings.Join(commands, "; "), err, out)
	}
	return string(out)
}
