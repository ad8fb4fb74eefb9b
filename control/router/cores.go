package router

import (
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"
)

// mostWorkers bounds the workers that are started where the configuration does not say how many.
const mostWorkers = 8

// chooseCores picks the CPUs for workers, of those that the process may use: what the configuration asks for, or half
// of them from the top. nil stands for one worker that is not pinned. All other threads
// of the process leave these CPUs as long as some are left; undo lets them back.
func chooseCores(want []int) (cores []int, undo func()) {
	undo = func() {}
	var set unix.CPUSet
	if unix.SchedGetaffinity(0, &set) != nil {
		return want, undo
	}
	var may []int
	for c := range len(set) * 64 {
		if set.IsSet(c) {
			may = append(may, c)
		}
	}
	switch {
	case len(want) != 0:
		cores = want
	case len(may) < 2:
		return nil, undo
	default:
		n := min(max(1, len(may)/2), mostWorkers)
		cores = slices.Clone(may[len(may)-n:])
	}
	rest := set
	for _, c := range cores {
		rest.Clear(c)
	}
	if rest.Count() == 0 {
		return cores, undo
	}
	confine(&rest)
	return cores, func() { confine(&set) }
}

// confine sets the affinity of all threads there are; those to come inherit it.
func confine(set *unix.CPUSet) {
	dir, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, e := range dir {
		if tid, err := strconv.Atoi(e.Name()); err == nil {
			_ = unix.SchedSetaffinity(tid, set) // the thread may have ended
		}
	}
}
