package pipeline

import (
	"time"
	"unsafe" // arguments of a system call, alive until it returns

	"golang.org/x/sys/unix"

	"millrace/internal/clock"
)

// Poll is how workers wait for packets.
type Poll uint8

const (
	// Busy workers never sleep: the lowest latency, a whole core each.
	Busy Poll = iota
	// Adaptive workers poll while packets come and Options.Spin longer, then sleep until
	// a port's descriptor says that there are more.
	Adaptive
)

const (
	// DefaultSpin is how long an adaptive worker polls on without packets.
	DefaultSpin = 50 * time.Microsecond
	// DefaultSleep bounds a sleep of a worker that holds nothing.
	DefaultSleep = 100 * time.Millisecond
	// nap is the sleep of a worker with a port that can only be polled.
	nap = 100 * time.Microsecond
)

// rest sleeps where there has been nothing to do for long enough.
func (w *Worker) rest() {
	if w.idleSince == 0 {
		w.idleSince = w.Now
	}
	if w.Now-w.idleSince < w.spin || w.Wake {
		return
	}
	wait := w.p.opt.Sleep
	for i := range w.refill {
		if w.refill[i].Held() != 0 {
			wait = min(wait, tickPeriod)
		}
	}
	w.asleep.Store(true)
	for _, in := range w.inputs {
		if !in.q.Arm() {
			w.asleep.Store(false)
			return
		}
		if in.q.Fd() == -1 {
			wait = min(wait, nap)
		}
	}
	if w.asked.Load() || len(w.todo) != 0 {
		w.asleep.Store(false)
		return
	}
	w.C.Sleeps++
	w.slot.Offline()
	ts := unix.NsecToTimespec(int64(wait))
	for i := range w.poll {
		w.poll[i].Revents = 0
	}
	n := ppoll(w.poll, &ts)
	w.asleep.Store(false)
	w.slot.Online()
	if n > 0 {
		if w.poll[0].Revents != 0 {
			var b [8]byte
			unix.Read(w.wakeFd, b[:])
		}
		for i := 1; i < len(w.poll); i++ {
			if r := w.poll[i].Revents; r&(unix.POLLERR|unix.POLLNVAL|unix.POLLHUP) != 0 && r&unix.POLLIN == 0 {
				// A device that went away is ready for ever: do not spin on it.
				time.Sleep(nap)
				break
			}
		}
	}
	w.Now = clock.Ticks()
	w.nextTick = w.Now
}

// ppoll waits without telling the Go scheduler: the thread keeps its P, and goes on the moment
// that the kernel wakes it. Through the scheduler it would have to wait for a free P, which
// a thread on a busier core may hold. When the collector needs the P it sends a signal, which ends the wait.
func ppoll(fds []unix.PollFd, ts *unix.Timespec) int {
	n, _, e := unix.RawSyscall6(unix.SYS_PPOLL, uintptr(unsafe.Pointer(unsafe.SliceData(fds))), uintptr(len(fds)), uintptr(unsafe.Pointer(ts)), 0, 0, 0)
	if e != 0 {
		return 0 // interrupted: look around and sleep again
	}
	return int(n)
}

// pollSet rebuilds what the worker sleeps on.
func (w *Worker) pollSet() {
	w.poll = append(w.poll[:0], unix.PollFd{Fd: int32(w.wakeFd), Events: unix.POLLIN})
	for _, in := range w.inputs {
		if fd := in.q.Fd(); fd >= 0 {
			w.poll = append(w.poll, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
		}
	}
}
