package cli

import (
	"errors"
	"fmt"
	"syscall"
	"unsafe" // arguments of a system call, alive until it returns

	"golang.org/x/sys/unix"
)

// keptCaps are the capabilities that a running router uses: a device that comes back
// or a port that is added is opened at any time.
const keptCaps = 1<<unix.CAP_NET_ADMIN | // interfaces, routes, TAPs
	1<<unix.CAP_NET_RAW | // packet and XDP sockets
	1<<unix.CAP_BPF | 1<<unix.CAP_PERFMON | // XDP programs and maps
	1<<unix.CAP_IPC_LOCK | 1<<unix.CAP_SYS_RESOURCE | // locked memory
	1<<unix.CAP_SYS_NICE // pinning

// dropPrivileges gives up all capabilities but those, in all threads, for good:
// not even running a set-uid program brings any back.
func dropPrivileges() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	keep := uint64(keptCaps)
	if data[1].Permitted&(1<<(unix.CAP_BPF-32)) == 0 {
		keep |= 1 << unix.CAP_SYS_ADMIN // stands for CAP_BPF on kernels before 5.8
	}
	for i := range data {
		mask := uint32(keep >> (32 * i))
		data[i].Permitted &= mask
		data[i].Effective &= mask
		data[i].Inheritable = 0
	}
	if _, _, e := syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0); e == syscall.ENOTSUP {
		return errors.New("a build with cgo cannot change all its threads")
	} else if e != 0 {
		return fmt.Errorf("prctl(PR_SET_NO_NEW_PRIVS): %w", e)
	}
	if _, _, e := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&data[0])), 0); e != 0 {
		return fmt.Errorf("capset: %w", e)
	}
	return nil
}
