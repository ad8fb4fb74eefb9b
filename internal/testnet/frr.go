package testnet

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// FRR is FRRouting's daemons in a namespace.
type FRR struct {
	t     testing.TB
	ns    *NS
	dir   string
	procs map[string]*exec.Cmd
}

const frrPath = "/usr/lib/frr/"

// NewFRR starts zebra with the given options and then the daemons of conf, which has their configuration by name, zebra's
// too. It skips the test where a daemon is not installed. All end with the test.
func NewFRR(t testing.TB, ns *NS, conf map[string]string, zebra ...string) *FRR {
	t.Helper()
	daemons := []string{"zebra"}
	for name := range conf {
		if name != "zebra" {
			daemons = append(daemons, name)
		}
	}
	slices.Sort(daemons[1:])
	for _, d := range daemons {
		if _, err := os.Stat(frrPath + d); err != nil {
			t.Skipf("needs FRRouting's %s", d)
		}
	}
	if _, err := exec.LookPath("vtysh"); err != nil {
		t.Skip("needs FRRouting's vtysh")
	}
	// Not t.TempDir, whose path may be too long for a socket's.
	dir, err := os.MkdirTemp("", "frr")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	os.Chmod(dir, 0o777) // the daemons give up root
	f := &FRR{t, ns, dir, map[string]*exec.Cmd{}}
	t.Cleanup(func() {
		for _, c := range f.procs {
			c.Process.Kill()
			c.Wait()
		}
	})
	for _, d := range daemons {
		if err := os.WriteFile(filepath.Join(dir, d+".conf"), []byte(conf[d]+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		var opts []string
		if d == "zebra" {
			opts = zebra
		}
		f.Start(d, opts...)
	}
	return f
}

// Start starts a daemon, with the configuration that it was given.
func (f *FRR) Start(daemon string, opts ...string) {
	f.t.Helper()
	log, err := os.OpenFile(filepath.Join(f.dir, daemon+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		f.t.Fatal(err)
	}
	defer log.Close()
	c := f.ns.Command(frrPath+daemon, append([]string{"-f", filepath.Join(f.dir, daemon+".conf"), "-u", "frr", "-g", "frr",
		"-i", filepath.Join(f.dir, daemon+".pid"), "-z", filepath.Join(f.dir, "zserv"), "--vty_socket", f.dir, "--log", "stdout"}, opts...)...)
	c.Stdout, c.Stderr = log, log
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		f.t.Fatal(err)
	}
	f.procs[daemon] = c
	end := time.Now().Add(20 * time.Second)
	for {
		if _, err := os.Stat(filepath.Join(f.dir, daemon+".vty")); err == nil {
			return
		}
		if time.Now().After(end) {
			f.t.Fatalf("%s does not start:\n%s", daemon, f.Log(daemon))
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// Kill ends a daemon as a crash would.
func (f *FRR) Kill(daemon string) {
	f.t.Helper()
	c := f.procs[daemon]
	c.Process.Kill()
	c.Wait()
	delete(f.procs, daemon)
	os.Remove(filepath.Join(f.dir, daemon+".vty"))
}

// Log is what a daemon has said.
func (f *FRR) Log(daemon string) string {
	b, _ := os.ReadFile(filepath.Join(f.dir, daemon+".log"))
	return string(b)
}

// Vtysh runs commands of FRR's shell.
func (f *FRR) Vtysh(commands ...string) string {
	f.t.Helper()
	args := []string{"--vty_socket", f.dir}
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out, err := f.ns.Command("vtysh", args...).CombinedOutput()
	if err != nil {
		f.t.Fatalf("vtysh %s: %v\n%s", strings.Join(commands, "; "), err, out)
	}
	return string(out)
}
