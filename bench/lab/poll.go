package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// PollBy makes the kernel poll a device of the host by a thread of its own (threaded NAPI), on a CPU, where
// it would poll in the softirq of whoever sends to it.
func (h *Host) PollBy(ctx context.Context, dev string, cpu int) error {
	if out, err := h.Run(ctx, "sh", "-c", "echo 1 > /sys/class/net/"+dev+"/threaded"); err != nil {
		return fmt.Errorf("lab: threaded NAPI of %s: %w: %s", dev, err, strings.TrimSpace(out))
	}
	// Kernel threads are seen from everywhere: the newest of the name is ours.
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return err
	}
	newest := 0
	for _, n := range names {
		if b, err := os.ReadFile(n); err == nil && strings.HasPrefix(string(b), "napi/"+dev+"-") {
			pid, _ := strconv.Atoi(strings.Split(n, "/")[2]) // the pattern says that it is a number
			newest = max(newest, pid)
		}
	}
	if newest == 0 {
		return fmt.Errorf("lab: no thread polls %s: threaded NAPI is missing", dev)
	}
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(newest, &set)
}
