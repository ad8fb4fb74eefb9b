package lab

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// In calls f on a thread of this process in the host's namespace, of a host without a name in this process's, and returns its
// error. The thread ends with f, so f may do with it what it likes.
func (h *Host) In(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread cannot be given to anybody else
		done <- h.enter(f)
	}()
	return <-done
}

func (h *Host) enter(f func() error) error {
	if h.NS == "" {
		return f()
	}
	fd, err := unix.Open("/run/netns/"+h.NS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("lab: enter namespace %s: %w", h.NS, err)
	}
	return f()
}
