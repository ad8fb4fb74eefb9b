package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// cpus are those that this process may use, in order.
func cpus() []int {
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

// twoCPUs are the first and the last of this process's CPUs, which are the least likely to be
// threads of one core.
func twoCPUs() (a, b int, err error) {
	l := cpus()
	if len(l) < 2 {
		return 0, 0, fmt.Errorf("bench: this process may use %d CPU, two are needed", len(l))
	}
	return l[0], l[len(l)-1], nil
}

// pin ties the calling thread to a CPU.
func pin(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return fmt.Errorf("pin to CPU %d: %w", cpu, err)
	}
	return nil
}

// confine keeps all threads of the process, and those to come, on the CPUs given.
func confine(l []int) {
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

// confineSelf keeps the calling thread on the CPUs given.
func confineSelf(l []int) {
	var set unix.CPUSet
	for _, c := range l {
		set.Set(c)
	}
	_ = unix.SchedSetaffinity(0, &set)
}

// prefer gives the session's processes precedence over other sessions' where the kernel
// groups processes by session (sched(7), autogroup) and lets us, until undo.
func prefer() (undo func()) {
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
