package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// cpu is the time that a process has used.
func cpu(t *testing.T, pid int) time.Duration {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond // USER_HZ is 100
}

// TestIdle: an adaptive router that has nothing to do leaves the CPU to others.
func TestIdle(t *testing.T) {
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	ping(t, l.client, server4)
	const span = 2 * time.Second
	before := cpu(t, r.cmd.Process.Pid)
	time.Sleep(span)
	used := cpu(t, r.cmd.Process.Pid) - before
	t.Logf("idle: %v of CPU in %v, %.1f %% of a core", used, span, 100*used.Seconds()/span.Seconds())
	if used > span/2 {
		t.Errorf("an idle router used %v of CPU in %v", used, span)
	}
}
