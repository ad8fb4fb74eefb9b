package cli

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// The test runs itself again, since what it drops is gone for good.
func TestDropPrivileges(t *testing.T) {
	const env = "MILLRACE_TEST_DROP"
	if os.Getenv(env) == "" {
		if os.Geteuid() != 0 {
			t.Skip("needs root: there is nothing to drop")
		}
		cmd := exec.Command(os.Args[0], "-test.run=^TestDropPrivileges$", "-test.v")
		cmd.Env = append(os.Environ(), env+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		if strings.Contains(string(out), "cgo") {
			t.Skip("a build with cgo")
		}
		return
	}
	stop := make(chan bool)
	defer close(stop)
	for range 3 { // threads like those of workers
		go func() { runtime.LockOSThread(); <-stop }()
	}
	if err := dropPrivileges(); err != nil {
		if strings.Contains(err.Error(), "cgo") {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 3 {
		t.Fatalf("%d threads, %v", len(tasks), err)
	}
	for _, f := range tasks {
		b, err := os.ReadFile(f)
		if err != nil {
			continue // the thread has ended
		}
		for _, field := range []string{"CapEff", "CapPrm"} {
			_, v, _ := strings.Cut(string(b), field+":\t")
			caps, err := strconv.ParseUint(v[:16], 16, 64)
			if err != nil {
				t.Fatal(err)
			}
			if caps&^keptCaps != 0 || caps&(1<<unix.CAP_NET_ADMIN) == 0 {
				t.Errorf("%s: %s %x", f, field, caps)
			}
		}
		if !strings.Contains(string(b), "NoNewPrivs:\t1") {
			t.Errorf("%s: new privileges can be had", f)
		}
	}
	if out, err := exec.Command("sh", "-c", "grep CapPrm /proc/self/status").Output(); err != nil || strings.TrimSpace(string(out)) != fmt.Sprintf("CapPrm:\t%016x", permitted(t)) {
		t.Errorf("a program gets %s, %v; want %x", out, err, permitted(t))
	}
}

func permitted(t *testing.T) uint64 {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		t.Fatal(err)
	}
	return uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
}
