package afpacket

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"millrace/internal/mem"
	"millrace/internal/netdev"
	"millrace/pmd"
)

func init() {
	pmd.Register(pmd.Driver{
		Name: "afpacket",
		Doc:  "a kernel interface by AF_PACKET rings, where there is no AF_XDP; the interface keeps its addresses",
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
	defaultRing = 2048
	maxQueues   = 64
)

// Port is a kernel interface.
type Port struct {
	name   string
	dev    *netdev.Dev
	queues []*queue
	batch  []batch
	tally  *pmd.Tally
	filter atomic.Pointer[filter]
	index  atomic.Int64
	gone   atomic.Bool
	mtu    atomic.Int64 // the last known
	ring   int
	want   pmd.Config

	mu     sync.Mutex // guards what follows
	mac    pmd.MAC
	local  []netip.Addr
	types  []uint16
	drop   *dropper // nil where the kernel has no tcx
	why    []string
	full   uint64 // ring drops so far
	undo   []func()
	closed bool

	netns int
	stop  chan struct{}
	done  sync.WaitGroup
}

// Open opens the kernel interface c.Name of the calling thread's network namespace.
func Open(c pmd.Config) (*Port, error) {
	if err := check(c); err != nil {
		return nil, err
	}
	dev, err := netdev.New(c.Name)
	if err != nil {
		return nil, fmt.Errorf("afpacket: %w", err)
	}
	p := &Port{name: c.Name, dev: dev, want: c, netns: -1, stop: make(chan struct{}), ring: c.Ring}
	if p.ring == 0 {
		p.ring = defaultRing
	}
	if err := p.open(); err != nil {
		p.Close()
		return nil, fmt.Errorf("afpacket: port %s: %w", c.Name, err)
	}
	return p, nil
}

func check(c pmd.Config) error {
	if err := c.Check("afpacket", "whole"); err != nil {
		return err
	}
	if c.Queues < 0 || c.Queues > maxQueues || c.Ring < 0 || c.Ring > 1<<17 || c.MTU < 0 || c.MTU > maxFrame-18 {
		return fmt.Errorf("afpacket: port %s: allowed are queues up to %d, ring up to %d, mtu up to %d", c.Name, maxQueues, 1<<17, maxFrame-18)
	}
	return nil
}

func (p *Port) open() error {
	index, err := p.dev.Index()
	if err != nil {
		return fmt.Errorf("no such kernel interface: %w", err)
	}
	if err := p.configure(true); err != nil {
		return err
	}
	if p.netns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	n := max(p.want.Queues, 1)
	if p.tally, err = pmd.NewTally(n); err != nil {
		return err
	}
	if p.batch, err = mem.Of[batch](n); err != nil {
		return err
	}
	p.local = hostAddrs()
	p.setFilter()
	ss, err := p.sockets(index, n)
	if err != nil {
		return err
	}
	for i, s := range ss {
		q := &queue{p: p, i: i, rx: s.rx, fd: s.rx.fd, txfd: s.tx, c: p.tally.Queue(i), b: &p.batch[i], long: make([]byte, scratch)}
		p.queues = append(p.queues, q)
	}
	p.index.Store(int64(index))
	if p.drop, err = newDropper(p.want.Whole); err == nil {
		if err = p.drop.set(p.mac, p.local, p.types); err == nil {
			err = p.drop.attach(index)
		}
	}
	if err != nil {
		if p.drop != nil {
			p.drop.close()
			p.drop = nil
		}
		p.why = append(p.why, fmt.Sprintf("without tcx the kernel sees transit traffic too: set net.ipv4.ip_forward and net.ipv6.conf.all.forwarding to 0 (%v)", err))
	}
	return p.watch()
}

// hostAddrs are the addresses of the namespace, which the kernel keeps until SetLocal says better.
func hostAddrs() (l []netip.Addr) {
	addrs, _ := net.InterfaceAddrs() // none is a filter that knows none
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				l = append(l, ip.Unmap())
			}
		}
	}
	return l
}

// configure sets what the configuration asks of the device, reads the rest, and, the
// first time, notes how to restore it.
func (p *Port) configure(first bool) error {
	mac, typ, err := p.dev.MAC()
	if err != nil {
		return fmt.Errorf("read MAC: %w", err)
	}
	if typ != unix.ARPHRD_ETHER {
		return fmt.Errorf("%w: not an Ethernet device (ARPHRD type %d)", pmd.ErrNotSupported, typ)
	}
	p.mac = mac
	if p.want.MAC != (pmd.MAC{}) && p.want.MAC != p.mac {
		if err := p.dev.SetMAC(p.want.MAC); err != nil {
			return fmt.Errorf("set MAC %v: %w", p.want.MAC, err)
		}
		p.mac = p.want.MAC
		if first {
			p.undo = append(p.undo, func() { p.dev.SetMAC(mac) })
		}
	}
	mtu, err := p.dev.MTU()
	if err != nil {
		return fmt.Errorf("read MTU: %w", err)
	}
	if p.want.MTU != 0 && p.want.MTU != mtu {
		if err := p.dev.SetMTU(p.want.MTU); err != nil {
			return fmt.Errorf("set MTU %d: %w", p.want.MTU, err)
		}
		if first {
			old := mtu
			p.undo = append(p.undo, func() { p.dev.SetMTU(old) })
		}
		mtu = p.want.MTU
	}
	p.mtu.Store(int64(mtu))
	return nil
}

// sockets makes all sockets for n queues, bound to the interface. It works in the
// calling thread's network namespace.
func (p *Port) sockets(index, n int) (ss []*sockets, err error) {
	defer func() {
		if err != nil {
			for _, s := range ss {
				s.close()
			}
		}
	}()
	group := -1
	size := min(int(p.mtu.Load())+14+8, maxFrame)
	for range n {
		s := &sockets{tx: -1}
		if s.rx, err = rxSocket(p.ring, size); err != nil {
			return ss, err
		}
		ss = append(ss, s)
		if s.tx, err = txSocket(index); err != nil {
			return ss, err
		}
		if err = s.rx.bind(index, n, &group); err != nil {
			if n > 1 {
				err = fmt.Errorf("%w (several queues need the interface to be up)", err)
			}
			return ss, err
		}
	}
	return ss, nil
}

func (s *sockets) close() {
	s.rx.close()
	if s.tx >= 0 {
		unix.Close(s.tx)
	}
}

// watch follows the device.
func (p *Port) watch() error {
	ch := make(chan netlink.LinkUpdate, 16)
	err := netlink.LinkSubscribeWithOptions(ch, p.stop, netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}})
	if err != nil {
		return fmt.Errorf("subscribe to link changes: %w", err)
	}
	p.done.Go(func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		in := unix.Setns(p.netns, unix.CLONE_NEWNET) == nil
		for {
			select {
			case <-p.stop:
				// Unread updates would hold the subscription's goroutine.
				go func() {
					for range ch {
					}
				}()
				return
			case u, ok := <-ch:
				if !ok {
					return
				}
				if in && u.Link.Attrs().Name == p.name || int64(u.Index) == p.index.Load() {
					p.refresh()
				}
			}
		}
	})
	return nil
}

// refresh takes over what became of the device. The thread is in the port's network namespace.
func (p *Port) refresh() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	index, err := p.dev.Index()
	if err != nil {
		p.gone.Store(true)
		return
	}
	if int64(index) == p.index.Load() {
		p.gone.Store(false)
		if mac, _, err := p.dev.MAC(); err == nil && p.mac != mac {
			p.mac = mac
			p.apply()
		}
		if mtu, err := p.dev.MTU(); err == nil {
			p.mtu.Store(int64(mtu))
		}
		return
	}
	if err := p.configure(false); err != nil {
		return // the next change of the device tries again
	}
	ss, err := p.sockets(index, len(p.queues))
	if err != nil {
		return
	}
	p.index.Store(int64(index))
	p.apply()
	if p.drop != nil {
		if err := p.drop.attach(index); err != nil {
			p.why = append(p.why, err.Error())
		}
	}
	for i, q := range p.queues {
		if old := q.next.Swap(ss[i]); old != nil {
			old.close()
		}
	}
	p.gone.Store(false)
}

// apply makes the filters those of p's fields.
func (p *Port) apply() error {
	var err error
	if p.drop != nil {
		err = p.drop.set(p.mac, p.local, p.types)
	}
	p.setFilter()
	return err
}

func (p *Port) setFilter() {
	f := newFilter(p.mac, p.local, p.types)
	f.whole = p.want.Whole
	p.filter.Store(f)
}

// SetLocal makes exactly these the addresses of the box: what is sent to them is the
// kernel's. Before the first call they are those that the namespace had at Open.
func (p *Port) SetLocal(addrs []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("afpacket: port %s: closed", p.name)
	}
	p.local = slices.Clone(addrs)
	if err := p.apply(); err != nil {
		return fmt.Errorf("afpacket: port %s: %w", p.name, err)
	}
	return nil
}

// SetTypes makes exactly these EtherTypes come to Millrace beside IPv4 and IPv6, such as
// 0x8847 for MPLS; without a call there are none.
func (p *Port) SetTypes(types []uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("afpacket: port %s: closed", p.name)
	}
	p.types = slices.Clone(types)
	if err := p.apply(); err != nil {
		return fmt.Errorf("afpacket: port %s: %w", p.name, err)
	}
	return nil
}

func (p *Port) Name() string          { return p.name }
func (p *Port) Driver() string        { return "afpacket" }
func (p *Port) Queue(i int) pmd.Queue { return p.queues[i] }

func (p *Port) Why() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.why)
}

func (p *Port) Caps() pmd.Caps {
	c := pmd.Caps{
		Queues: len(p.queues), Segments: maxSegs, MaxFrame: min(int(p.mtu.Load())+14, maxFrame),
		Mode: "TPACKET_V2",
	}
	if !p.want.Whole {
		c.Kernel, c.Filtered = int(p.index.Load()), true
	}
	return c
}

func (p *Port) Link() pmd.Link {
	l := pmd.Link{MTU: int(p.mtu.Load()), Gone: p.gone.Load()}
	p.mu.Lock()
	l.MAC = p.mac
	p.mu.Unlock()
	f, err := p.dev.Flags()
	if err != nil {
		l.Gone = true
		return l
	}
	l.Up = f&unix.IFF_UP != 0 && f&unix.IFF_RUNNING != 0 && !l.Gone
	l.Mbps = p.dev.Mbps()
	if mtu, err := p.dev.MTU(); err == nil {
		l.MTU = mtu
		p.mtu.Store(int64(mtu))
	}
	return l
}

func (p *Port) Stats() pmd.Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.countDrops()
	}
	s := p.tally.Sum()
	s.RxRingFull += p.full
	return s
}

func (p *Port) countDrops() {
	for _, q := range p.queues {
		s := socket{fd: q.fd}
		p.full += s.drops()
	}
}

// Close detaches from the interface, whose MTU and MAC are as before Open.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.countDrops()
	p.closed = true
	p.mu.Unlock()
	close(p.stop)
	p.done.Wait()
	if p.drop != nil {
		p.drop.close()
	}
	for _, q := range p.queues {
		if s := q.next.Swap(nil); s != nil {
			s.close()
		}
		q.rx.close()
		unix.Close(q.txfd)
	}
	for _, f := range slices.Backward(p.undo) {
		f()
	}
	p.dev.Close()
	if p.netns >= 0 {
		unix.Close(p.netns)
	}
	if p.tally != nil {
		p.tally.Close()
	}
	if p.batch != nil {
		mem.Free(p.batch)
	}
	return nil
}
