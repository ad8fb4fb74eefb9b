package lab

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// In calls f on a thread of this process in the host's namespace and returns its error. f may
// pin the thread to CPUs.
//
// The thread goes back to where it came from, and does not end: the processes that
// were started from it would end with it (prctl(2), PR_SET_PDEATHSIG).
func (h *Host) In(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		back, err := h.enter()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		if e := back(); e != nil {
			done <- errors.Join(err, e) // and the thread stays locked, for nobody
			return
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// enter moves the thread into the host's namespace, until back.
func (h *Host) enter() (back func() error, err error) {
	var cpus unix.CPUSet
	if err = unix.SchedGetaffinity(0, &cpus); err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	there, err := unix.Open("/run/netns/"+h.NS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(there, unix.CLONE_NEWNET)
		unix.Close(there)
	}
	if err != nil {
		unix.Close(home)
		return nil, fmt.Errorf("lab: enter namespace %s: %w", h.NS, err)
	}
	return func() error {
		defer unix.Close(home)
		return errors.Join(unix.Setns(home, unix.CLONE_NEWNET), unix.SchedSetaffinity(0, &cpus))
	}, nil
}
