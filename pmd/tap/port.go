package tap

import (
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"millrace/internal/mem"
	"millrace/internal/netdev"
	"millrace/pmd"
)

func init() {
	pmd.Register(pmd.Driver{
		Name: "tap",
		Doc:  "a TAP device: the host's face of a port that the kernel cannot see",
		Open: func(c pmd.Config) (pmd.Port, error) {
			p, err := Open(c)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
	})
}

const (
	maxQueues = 64    // of the kernel: 256
	maxSegs   = 64    // segments a packet on transmission
	maxFrame  = 65535 // bytes
	maxMTU    = maxFrame - 14
)

// Port is a TAP device.
type Port struct {
	name   string
	dev    *netdev.Dev
	index  int
	mac    pmd.MAC
	mtu    int // at Open
	queues []*queue
	vecs   []vectors
	tally  *pmd.Tally
	closed sync.Once
}

// vectors are a queue's arguments of readv and writev, outside the Go heap.
type vectors struct {
	rx [2]iovec
	tx [maxSegs]iovec
	// tail takes what of a long frame the first buffer has no room for.
	tail [maxFrame]byte
}

type iovec struct{ base, n uintptr }

// Open makes the device c.Name in the calling thread's network namespace, with c.Queues
// queues (1), the MAC c.MAC (the kernel's choice), c.MTU (1500) and room for c.Ring packets
// that Rx has not read (1000), and sets it up.
func Open(c pmd.Config) (*Port, error) {
	if err := c.Check("tap"); err != nil {
		return nil, err
	}
	if c.Queues < 0 || c.Queues > maxQueues || c.Ring < 0 || c.MTU < 0 || c.MTU > maxMTU {
		return nil, fmt.Errorf("tap: port %s: allowed are queues up to %d and mtu up to %d", c.Name, maxQueues, maxMTU)
	}
	dev, err := netdev.New(c.Name)
	if err != nil {
		return nil, fmt.Errorf("tap: %w", err)
	}
	p := &Port{name: c.Name, dev: dev}
	if err := p.open(c); err != nil {
		p.Close()
		return nil, fmt.Errorf("tap: port %s: %w", c.Name, err)
	}
	return p, nil
}

func (p *Port) open(c pmd.Config) (err error) {
	n := max(c.Queues, 1)
	if p.tally, err = pmd.NewTally(n); err != nil {
		return err
	}
	if p.vecs, err = mem.Of[vectors](n); err != nil {
		return err
	}
	for i := range n {
		// Only the first queue makes the device.
		flags := uint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_MULTI_QUEUE)
		if i == 0 {
			flags |= unix.IFF_TUN_EXCL
		}
		fd, err := attach(c.Name, flags)
		if err != nil {
			return err
		}
		p.queues = append(p.queues, &queue{fd: fd, c: p.tally.Queue(i), v: &p.vecs[i]})
	}
	if c.MAC != (pmd.MAC{}) {
		if err := p.dev.SetMAC(c.MAC); err != nil {
			return fmt.Errorf("set MAC %v: %w", c.MAC, err)
		}
	}
	if c.MTU != 0 {
		if err := p.dev.SetMTU(c.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", c.MTU, err)
		}
	}
	if c.Ring != 0 {
		if err := p.dev.SetQueueLen(c.Ring); err != nil {
			return fmt.Errorf("set queue length %d: %w", c.Ring, err)
		}
	}
	if err := p.dev.SetUp(true); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	mac, _, err := p.dev.MAC()
	if err != nil {
		return fmt.Errorf("read MAC: %w", err)
	}
	p.mac = mac
	if p.mtu, err = p.dev.MTU(); err != nil {
		return fmt.Errorf("read MTU: %w", err)
	}
	if p.index, err = p.dev.Index(); err != nil {
		return fmt.Errorf("read index: %w", err)
	}
	return nil
}

// attach opens one more queue of a device.
func attach(name string, flags uint16) (int, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
		return -1, fmt.Errorf("%w: open /dev/net/tun: %w (module tun)", pmd.ErrNotSupported, err)
	}
	if err != nil {
		return -1, fmt.Errorf("open /dev/net/tun: %w", err)
	}
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(flags)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r)
	}
	if err != nil {
		unix.Close(fd)
		if errors.Is(err, unix.EBUSY) {
			return -1, fmt.Errorf("an interface of this name exists already: %w", err)
		}
		return -1, fmt.Errorf("make the device: %w", err)
	}
	return fd, nil
}

func (p *Port) Name() string          { return p.name }
func (p *Port) Driver() string        { return "tap" }
func (p *Port) Why() []string         { return nil }
func (p *Port) Queue(i int) pmd.Queue { return p.queues[i] }
func (p *Port) Stats() pmd.Stats      { return p.tally.Sum() }

func (p *Port) Caps() pmd.Caps {
	return pmd.Caps{
		Queues: len(p.queues), Segments: maxSegs, MaxFrame: min(p.Link().MTU+14, maxFrame),
		Mode: "TAP", Kernel: p.index,
	}
}

// Link is the state of the kernel's side: whoever sets the device down takes down the link.
func (p *Port) Link() pmd.Link {
	l := pmd.Link{MTU: p.mtu, MAC: p.mac}
	f, err := p.dev.Flags()
	if err != nil {
		l.Gone = true
		return l
	}
	l.Up = f&unix.IFF_UP != 0
	if mac, _, err := p.dev.MAC(); err == nil {
		l.MAC = mac
	}
	if mtu, err := p.dev.MTU(); err == nil {
		l.MTU = mtu
	}
	return l
}

// Close removes the device.
func (p *Port) Close() error {
	p.closed.Do(func() {
		for _, q := range p.queues {
			unix.Close(q.fd)
		}
		p.dev.Close()
		if p.tally != nil {
			p.tally.Close()
		}
		if p.vecs != nil {
			mem.Free(p.vecs)
		}
	})
	return nil
}
