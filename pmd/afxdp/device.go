package afxdp

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"millrace/pmd"
)

var errGone = errors.New("the interface was removed")

// device is the kernel's side of a port: netlink and ethtool sockets in its network namespace,
// and what has to be undone at the end. It is for one thread at a time.
type device struct {
	nl     *netlink.Handle
	ns     int // the namespace itself
	et     *ethtool.Ethtool
	index  int
	driver string
	undo   []func() error
	notes  []string
}

// open finds an interface, which must be up and free of other XDP programs.
func (d *device) open(name string) (err error) {
	if d.nl, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return err
	}
	if d.et, err = ethtool.NewEthtool(); err != nil {
		d.nl.Close()
		return err
	}
	if d.ns, err = unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		d.nl.Close()
		d.et.Close()
		return err
	}
	l, err := d.nl.LinkByName(name)
	if err == nil {
		d.index = l.Attrs().Index
		err = d.foreign()
	}
	if err == nil && l.Attrs().Flags&net.FlagUp == 0 {
		err = fmt.Errorf("%w: the interface is down: `ip link set %s up`", unix.ENETDOWN, name)
	}
	if err != nil {
		d.close()
		return err
	}
	if d.driver, err = d.et.DriverName(name); err != nil {
		d.driver = "unknown"
	}
	return nil
}

const threadNS = "/proc/thread-self/ns/net"

// inside calls f in the device's namespace: sockets belong to the one that they are made in, and
// interface numbers to sockets.
func (d *device) inside(f func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(home)
	var there, here unix.Stat_t
	if err := errors.Join(unix.Fstat(d.ns, &there), unix.Fstat(home, &here)); err != nil {
		return err
	}
	if there.Dev == here.Dev && there.Ino == here.Ino {
		return f()
	}
	if err := unix.Setns(d.ns, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter the interface's network namespace: %w", err)
	}
	defer func() {
		if unix.Setns(home, unix.CLONE_NEWNET) != nil {
			runtime.LockOSThread() // a thread that cannot go back ends with its goroutine
		}
	}()
	return f()
}

// link is the interface as it is now, wherever its name went.
func (d *device) link() (netlink.Link, error) {
	l, err := d.nl.LinkByIndex(d.index)
	if errors.As(err, new(netlink.LinkNotFoundError)) || errors.Is(err, unix.ENODEV) {
		return nil, errGone
	}
	return l, err
}

// foreign is an error where a program of somebody else is attached.
func (d *device) foreign() error {
	l, err := d.link()
	if err != nil {
		return err
	}
	if x := l.Attrs().Xdp; x != nil && x.Attached {
		return fmt.Errorf("%w: another XDP program (id %d, see `bpftool prog show id %d`) is attached; it is left alone: if nothing needs it, `ip link set %s xdp off`", unix.EBUSY, x.ProgId, x.ProgId, l.Attrs().Name)
	}
	return nil
}

// explainAttach gives the usual reason for which a driver refuses a program.
func (d *device) explainAttach(err error) error {
	switch {
	case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w: another XDP program is attached", err)
	case errors.Is(err, unix.ERANGE) && d.driver == "veth":
		return fmt.Errorf("%w: the peer's MTU is too large for XDP", err)
	case errors.Is(err, unix.ENOSPC) && d.driver == "veth":
		return fmt.Errorf("%w: the peer has more tx queues than this end has rx queues (ethtool -L)", err)
	case errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: driver %s has no XDP of this kind at the present MTU and features", err, d.driver)
	}
	return err
}

// virtual reports whether packets of the driver can come from a sender in the same
// kernel, or on the same host, that leaves checksums to the device.
func (d *device) virtual() bool {
	return slices.Contains([]string{"veth", "tun", "virtio_net"}, d.driver)
}

// configure sets MTU and MAC as asked for and has VLAN tags left in the packets.
func (d *device) configure(c pmd.Config) error {
	l, err := d.link()
	if err != nil {
		return err
	}
	if old := l.Attrs().MTU; c.MTU != 0 && c.MTU != old {
		if err := d.nl.LinkSetMTU(l, c.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", c.MTU, err)
		}
		d.undo = append(d.undo, func() error { return d.nl.LinkSetMTU(l, old) })
	}
	if old := slices.Clone(l.Attrs().HardwareAddr); c.MAC != (pmd.MAC{}) && c.MAC.String() != old.String() {
		if err := d.nl.LinkSetHardwareAddr(l, c.MAC[:]); err != nil {
			return fmt.Errorf("set MAC %s: %w", c.MAC, err)
		}
		d.undo = append(d.undo, func() error { return d.nl.LinkSetHardwareAddr(l, old) })
	}
	if d.virtual() {
		return nil
	}
	const strip = "rx-vlan-hw-parse"
	name := l.Attrs().Name
	f, err := d.et.FeaturesWithState(name)
	if err != nil || !f[strip].Active {
		return nil
	}
	if err := d.et.Change(name, map[string]bool{strip: false}); err != nil {
		d.notes = append(d.notes, fmt.Sprintf("the hardware takes VLAN tags out of packets, and `ethtool -K %s rxvlan off` fails (%v): tagged packets look untagged", name, err))
		return nil
	}
	d.undo = append(d.undo, func() error { return d.et.Change(name, map[string]bool{strip: true}) })
	return nil
}

// channels is the number of the device's queues, after setting it to want where that is
// not 0: packets of a queue without a socket would pass to the kernel.
func (d *device) channels(want int) (int, error) {
	l, err := d.link()
	if err != nil {
		return 0, err
	}
	name := l.Attrs().Name
	c, err := d.et.GetChannels(name)
	rx, tx := int(c.CombinedCount+c.RxCount), int(c.CombinedCount+c.TxCount)
	if err != nil || rx == 0 {
		rx, tx = sysQueues(name, d.index)
	}
	if want != 0 && (want != rx || want > tx) {
		n := c
		if c.MaxCombined != 0 {
			n.CombinedCount, n.RxCount, n.TxCount = uint32(want), 0, 0
		} else {
			n.RxCount, n.TxCount = uint32(want), uint32(want)
		}
		for end := time.Now().Add(time.Second); err == nil; time.Sleep(10 * time.Millisecond) {
			_, err = d.et.SetChannels(name, n)
			// The kernel lets go of a closed socket's queue a little later.
			if !errors.Is(err, unix.EINVAL) || want > rx || time.Now().After(end) {
				break
			}
			err = nil
		}
		if err != nil {
			return 0, fmt.Errorf("%d queues: the device has %d rx and %d tx, and setting it fails: %w", want, rx, tx, err)
		}
		d.undo = append(d.undo, func() error { _, err := d.et.SetChannels(name, c); return err })
		rx, tx = want, want
	}
	if tx < rx {
		return 0, fmt.Errorf("the device has %d rx queues and only %d tx: make them equal (ethtool -L %s, or queues)", rx, tx, name)
	}
	return rx, nil
}

// sysQueues counts queues in sysfs, which may be mounted for another namespace.
func sysQueues(name string, index int) (rx, tx int) {
	dir := "/sys/class/net/" + name
	b, err := os.ReadFile(dir + "/ifindex")
	if err != nil || strings.TrimSpace(string(b)) != fmt.Sprint(index) {
		return 1, 1
	}
	r, _ := filepath.Glob(dir + "/queues/rx-*")
	t, _ := filepath.Glob(dir + "/queues/tx-*")
	return max(len(r), 1), max(len(t), 1)
}

// state is the link's state.
func (d *device) state() (s pmd.Link, err error) {
	l, err := d.link()
	if err != nil {
		return s, err
	}
	a := l.Attrs()
	s.Up = a.Flags&net.FlagUp != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0
	s.MTU = a.MTU
	copy(s.MAC[:], a.HardwareAddr)
	if mbps, err := d.et.CmdGet(new(ethtool.EthtoolCmd), a.Name); err == nil && mbps != 1<<32-1 {
		s.Mbps = int(mbps)
	}
	return s, nil
}

// addresses are all of the box, of every interface in the namespace.
func (d *device) addresses() (as []netip.Addr, err error) {
	l, err := d.nl.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, err
	}
	for _, a := range l {
		if x, ok := netip.AddrFromSlice(a.IP); ok {
			as = append(as, x)
		}
	}
	return as, nil
}

// close undoes what was changed, the last first, unless the interface is gone.
func (d *device) close() (err error) {
	if d.nl == nil {
		return nil
	}
	if _, e := d.link(); !errors.Is(e, errGone) {
		slices.Reverse(d.undo)
		for _, f := range d.undo {
			err = errors.Join(err, f())
		}
	}
	d.undo = nil
	d.nl.Close()
	d.et.Close()
	unix.Close(d.ns)
	d.nl = nil
	return err
}
