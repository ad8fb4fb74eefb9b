// Package pin says on which CPUs the threads of a bench run, and gives them precedence.
package pin

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// CPUs are those that this process may use, in order.
func CPUs() []int {
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return nil
	}
	var l []int
	for c := range len(set) * 64 {
		if set.IsSet(c) {
			l = append(l, c)
		}
	}
	return l
}

// Two are the first and the last of this process's CPUs, which are the least likely to be
// threads of one core.
func Two() (a, b int, err error) {
	l := CPUs()
	if len(l) < 2 {
		return 0, 0, fmt.Errorf("this process may use %d CPU, two are needed", len(l))
	}
	return l[0], l[len(l)-1], nil
}

// Thread ties the calling thread to a CPU.
func Thread(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	return nil
}

// All keeps all threads of the process, and those to come, on the CPUs given.
func All(l []int) {
	var set unix.CPUSet
	for _, c := range l {
		set.Set(c)
	}
	dir, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, e := range dir {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			_ = unix.SchedSetaffinity(tid, &set) // the thread may have ended
		}
	}
}

// Self keeps the calling thread on the CPUs given.
func Self(l []int) {
	var set unix.CPUSet
	for _, c := range l {
		set.Set(c)
	}
	_ = unix.SchedSetaffinity(0, &set)
}

// Prefer gives the session's processes precedence over other sessions' where the kernel
// groups processes by session (sched(7), autogroup) and lets us, until undo.
func Prefer() (undo func()) {
	const file = "/proc/self/autogroup"
	b, err := os.ReadFile(file)
	if err != nil {
		return func() {}
	}
	f := strings.Fields(string(b)) // "/autogroup-12 nice 0"
	if len(f) == 0 || os.WriteFile(file, []byte("-20"), 0) != nil {
		return func() {}
	}
	return func() { _ = os.WriteFile(file, []byte(f[len(f)-1]), 0) }
}
