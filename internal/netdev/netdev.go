// Package netdev reads and sets the properties of kernel network interfaces that ports
// need, by ioctl. A Dev stays in the network namespace in which it was made, whatever
// thread uses it.
package netdev

import (
	"bytes"
	"fmt"
	"runtime"
	"sync"
	"unsafe" // struct ifreq, whose union has room for all that is put there

	"golang.org/x/sys/unix"
)

// Dev is a kernel interface by name; it need not exist. Its methods are safe for
// concurrent use.
type Dev struct {
	name string
	mu   sync.RWMutex // guards fd against Close
	fd   int
}

// ifreq is struct ifreq: name and union.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	data [24]byte
}

// New returns the interface with the given name in the calling thread's network namespace.
func New(name string) (*Dev, error) {
	if name == "" || len(name) >= unix.IFNAMSIZ || bytes.ContainsAny([]byte(name), "/ :") {
		return nil, fmt.Errorf("%q cannot be the name of a kernel interface: 1 to %d characters without space, slash or colon", name, unix.IFNAMSIZ-1)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	return &Dev{name: name, fd: fd}, nil
}

// Close ends the Dev; its methods fail from then on.
func (d *Dev) Close() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fd >= 0 {
		unix.Close(d.fd)
		d.fd = -1
	}
}

func (d *Dev) ioctl(req uintptr, r *ifreq) error {
	d.mu.RLock()
	defer d.mu.RUnlock()
	if d.fd < 0 {
		return unix.EBADF
	}
	copy(r.name[:], d.name)
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(d.fd), req, uintptr(unsafe.Pointer(r))); e != 0 {
		return e
	}
	return nil
}

func (r *ifreq) u32() *uint32 { return (*uint32)(unsafe.Pointer(&r.data[0])) }
func (r *ifreq) u16() *uint16 { return (*uint16)(unsafe.Pointer(&r.data[0])) }

// Index is the interface's index; ENODEV where it does not exist.
func (d *Dev) Index() (int, error) {
	var r ifreq
	err := d.ioctl(unix.SIOCGIFINDEX, &r)
	return int(*r.u32()), err
}

// MTU is in bytes of L3.
func (d *Dev) MTU() (int, error) {
	var r ifreq
	err := d.ioctl(unix.SIOCGIFMTU, &r)
	return int(*r.u32()), err
}

func (d *Dev) SetMTU(n int) error {
	var r ifreq
	*r.u32() = uint32(n)
	return d.ioctl(unix.SIOCSIFMTU, &r)
}

// MAC is the interface's address and its ARPHRD type: ARPHRD_ETHER is Ethernet.
func (d *Dev) MAC() ([6]byte, uint16, error) {
	var r ifreq
	err := d.ioctl(unix.SIOCGIFHWADDR, &r)
	return [6]byte(r.data[2:8]), *r.u16(), err
}

func (d *Dev) SetMAC(a [6]byte) error {
	var r ifreq
	*r.u16() = unix.ARPHRD_ETHER
	copy(r.data[2:], a[:])
	return d.ioctl(unix.SIOCSIFHWADDR, &r)
}

// SetQueueLen sets how many packets the kernel's side may have waiting.
func (d *Dev) SetQueueLen(n int) error {
	var r ifreq
	*r.u32() = uint32(n)
	return d.ioctl(unix.SIOCSIFTXQLEN, &r)
}

// Flags are IFF_UP and so on.
func (d *Dev) Flags() (uint16, error) {
	var r ifreq
	err := d.ioctl(unix.SIOCGIFFLAGS, &r)
	return *r.u16(), err
}

// SetUp sets the interface administratively up or down.
func (d *Dev) SetUp(up bool) error {
	f, err := d.Flags()
	if err != nil {
		return err
	}
	var r ifreq
	*r.u16() = f &^ unix.IFF_UP
	if up {
		*r.u16() |= unix.IFF_UP
	}
	return d.ioctl(unix.SIOCSIFFLAGS, &r)
}

// Mbps is the link's speed, 0 where unknown.
func (d *Dev) Mbps() int {
	// struct ethtool_cmd: the speed's halves at bytes 12 and 28.
	cmd := new([44]byte)
	*(*uint32)(unsafe.Pointer(cmd)) = unix.ETHTOOL_GSET
	var pin runtime.Pinner // the kernel finds it by an address that the compiler does not see
	pin.Pin(cmd)
	defer pin.Unpin()
	var r ifreq
	*(*uintptr)(unsafe.Pointer(&r.data)) = uintptr(unsafe.Pointer(cmd))
	if d.ioctl(unix.SIOCETHTOOL, &r) != nil {
		return 0
	}
	s := uint32(*(*uint16)(unsafe.Pointer(&cmd[12]))) | uint32(*(*uint16)(unsafe.Pointer(&cmd[28])))<<16
	if s == 1<<32-1 || s == 1<<16-1 {
		return 0
	}
	return int(s)
}
