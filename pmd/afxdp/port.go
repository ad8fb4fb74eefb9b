package afxdp

import (
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"millrace/internal/mem"
	"millrace/packet"
	"millrace/pmd"
)

const (
	defaultRing = 2048
	maxRing     = 8192
	// copySegs is the longest chain in copy mode: an sk_buff's linear part and its fragments
	// (MAX_SKB_FRAGS). zeroSegs is what every driver with multi-buffer zero-copy sends.
	copySegs = 17
	zeroSegs = 8
)

func init() {
	pmd.Register(pmd.Driver{
		Name: "afxdp",
		Doc:  "kernel interface by AF_XDP; the kernel keeps what is addressed to the box",
		Open: func(c pmd.Config) (pmd.Port, error) {
			p, err := Open(c)
			if err != nil {
				return nil, err
			}
			return p, nil
		},
	})
}

// mode is one way of running.
type mode struct {
	config string // in Config.Mode
	name   string // in Caps.Mode
	attach link.XDPAttachFlags
	bind   uint16
}

var modes = []mode{
	{"zero-copy", "zero-copy", link.XDPDriverMode, unix.XDP_ZEROCOPY},
	{"native", "native copy", link.XDPDriverMode, unix.XDP_COPY},
	{"generic", "generic copy", link.XDPGenericMode, unix.XDP_COPY},
}

// Port is a kernel interface.
type Port struct {
	dev     device
	name    string
	ifindex int
	pool    *packet.Pool
	ring    int
	queues  []*queue
	tally   *pmd.Tally
	why     []string

	mode    mode
	sg      bool
	whole   bool // nothing is left to the kernel
	virt    bool // packets may have unfinished checksums
	lastMAC pmd.MAC

	mu     sync.Mutex // guards what follows, the filter's maps and opening and closing of sockets
	maps   maps
	prog   *ebpf.Program
	frags  bool
	xdp    link.Link
	closed bool
	last   pmd.Stats // after Close
}

func (p *Port) err(format string, args ...any) error {
	return fmt.Errorf("afxdp: %s: %w", p.name, fmt.Errorf(format, args...))
}

// Open opens the kernel interface c.Name of the calling thread's network namespace.
//
// It changes the interface as little as the configuration asks for (MTU, MAC, number of channels), takes VLAN
// tags back from the hardware, attaches an XDP program, and undoes all of that at Close; the program goes with the
// process in any case.
func Open(c pmd.Config) (port *Port, err error) {
	p := &Port{name: c.Name, pool: c.Pool, ring: c.Ring, whole: c.Whole}
	if err := p.check(c); err != nil {
		return nil, err
	}
	if err := p.dev.open(c.Name); err != nil {
		return nil, p.err("%w", err)
	}
	p.ifindex = p.dev.index
	defer func() {
		if err != nil {
			p.Close()
		}
	}()
	p.virt = p.dev.virtual()
	if err := p.dev.configure(c); err != nil {
		return nil, p.err("%w", err)
	}
	n, err := p.dev.channels(c.Queues)
	if err != nil {
		return nil, p.err("%w", err)
	}
	if p.tally, err = pmd.NewTally(n); err != nil {
		return nil, p.err("%w", err)
	}
	memlock()
	if p.maps, err = newMaps(n); err != nil {
		return nil, p.err("%w", privilege(err))
	}
	if p.prog, p.frags, err = p.maps.load(p.whole); err != nil {
		return nil, p.err("%w", privilege(err))
	}
	l, err := p.dev.state()
	if err != nil {
		return nil, p.err("%w", err)
	}
	if err := p.setMAC(l.MAC); err != nil {
		return nil, p.err("%w", err)
	}
	p.lastMAC = l.MAC
	addrs, err := p.dev.addresses()
	if err != nil {
		return nil, p.err("addresses of the box: %w", err)
	}
	if err := p.setLocal(addrs); err != nil {
		return nil, err
	}
	p.makeQueues(n)
	if err := p.choose(c.Mode); err != nil {
		return nil, err
	}
	p.explain(n)
	return p, nil
}

// check verifies the configuration.
func (p *Port) check(c pmd.Config) error {
	switch {
	case c.Pool == nil:
		return p.err("no pool")
	case c.Socket != "" || c.Role != "" || c.ID != 0 || c.Secret != "":
		return p.err("socket, role, id and secret are memif's")
	case c.Read != "" || c.Write != "" || c.Loop != 0 || c.Rate != 0:
		return p.err("read, write, loop and rate are pcap's")
	case c.Mode != "" && !slices.ContainsFunc(modes, func(m mode) bool { return m.config == c.Mode }):
		return p.err("mode %q: there are zero-copy, native and generic", c.Mode)
	case c.Ring == 0:
		p.ring = defaultRing
	case c.Ring < 64 || c.Ring > maxRing || bits.OnesCount(uint(c.Ring)) != 1:
		return p.err("ring of %d: a power of two from 64 to %d", c.Ring, maxRing)
	}
	return nil
}

func (p *Port) makeQueues(n int) {
	target := p.ring
	if p.ring == defaultRing {
		// Ports may not hold so much of a small pool that nothing is left to work with.
		target = max(min(target, p.pool.Size()/(8*n)), 64)
	}
	for i := range n {
		p.queues = append(p.queues, &queue{
			s: socket{fd: -1}, t: p.tally.Queue(i), port: p, id: i, target: target, lack: min(fillBatch, target/4),
			first: p.pool.First(), span: uint32(p.pool.Size()) * units,
			base:  uint64(uintptr(packet.Base())) + uint64(p.pool.First())<<6,
			state: make([]uint16, p.pool.Size()), finish: p.virt,
		})
	}
}

// choose tries the modes in turn and keeps the first that works.
func (p *Port) choose(only string) error {
	var errs []error
	for _, m := range modes {
		if only != "" && m.config != only {
			continue
		}
		err := p.try(m)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", m.name, err))
		p.why = append(p.why, fmt.Sprintf("%s: %v", m.name, err))
	}
	return p.err("%w", privilege(errors.Join(errs...)))
}

// try attaches the program and binds every queue.
func (p *Port) try(m mode) (err error) {
	if m.bind&unix.XDP_ZEROCOPY != 0 && p.pool.Pages() != mem.Huge {
		return errors.New("the pool lies in " + p.pool.Pages().String() + ", across which the device cannot be given buffers: needs 2 MiB huge pages (vm.nr_hugepages)")
	}
	p.mode = m
	if err := p.dev.foreign(); err != nil {
		return err
	}
	if p.xdp, err = link.AttachXDP(link.XDPOptions{Program: p.prog, Interface: p.ifindex, Flags: m.attach}); err != nil {
		return fmt.Errorf("attach XDP program: %w", p.dev.explainAttach(err))
	}
	for _, p.sg = range []bool{true, false} {
		if err = p.bindAll(); err == nil || !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			break
		}
	}
	if err != nil {
		p.detach()
		return err
	}
	for _, q := range p.queues {
		q.zc, q.segs, q.shift = m.bind&unix.XDP_ZEROCOPY != 0, 1, 63
		switch {
		case q.zc:
			q.shift = uint(bits.TrailingZeros(mem.HugeSize))
			if p.sg {
				q.segs = zeroSegs
			}
		case p.sg:
			q.segs = copySegs
		}
	}
	return nil
}

func (p *Port) bindAll() error {
	for _, q := range p.queues {
		if err := q.open(); err != nil {
			for _, q := range p.queues {
				q.s.close()
			}
			return err
		}
	}
	return nil
}

func (p *Port) detach() {
	if p.xdp != nil {
		p.xdp.Close()
		p.xdp = nil
	}
}

// explain tells why the port runs as it does.
func (p *Port) explain(n int) {
	queues := "1 queue"
	if n != 1 {
		queues = fmt.Sprintf("%d queues", n)
	}
	p.why = append(p.why, fmt.Sprintf("%s: works on %s of driver %s", p.mode.name, queues, p.dev.driver))
	if !p.sg {
		p.why = append(p.why, fmt.Sprintf("packets longer than %d bytes are lost: no scatter/gather (XDP_USE_SG) from this kernel and driver", frameRoom))
	}
	if !p.frags {
		p.why = append(p.why, "the kernel knows no multi-buffer XDP programs (before Linux 5.18)")
	}
	if p.virt {
		p.why = append(p.why, "unfinished TCP and UDP checksums of a virtual peer are finished on reception: `ethtool -K PEER tx off` there saves the work",
			"a VLAN device on a virtual peer passes its tag beside the packet, out of sight: `ethtool -K PEER tx-vlan-offload off` there puts it in")
	}
	p.why = append(p.why, p.dev.notes...)
}

func (p *Port) Name() string   { return p.name }
func (p *Port) Driver() string { return "afxdp" }

func (p *Port) Why() []string { return slices.Clone(p.why) }

// Caps says what the port can do with the interface's present MTU.
func (p *Port) Caps() pmd.Caps {
	c := pmd.Caps{
		Queues: len(p.queues), Segments: p.queues[0].segs, Mode: p.mode.name, Kernel: p.ifindex, Filtered: true,
		MaxFrame: frameRoom,
	}
	if p.whole {
		c.Kernel, c.Filtered = 0, false
	}
	if p.sg {
		c.MaxFrame = c.Segments * frameRoom
	}
	if l := p.Link(); l.MTU > 0 {
		// Ethernet header, and one tag, which devices allow beyond the MTU.
		c.MaxFrame = min(c.MaxFrame, l.MTU+18)
	}
	return c
}

// Link asks the kernel. A new MAC is made known to the filter at the same time.
func (p *Port) Link() pmd.Link {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return pmd.Link{}
	}
	l, err := p.dev.state()
	if err != nil {
		return pmd.Link{Gone: errors.Is(err, errGone), MAC: p.lastMAC}
	}
	if l.MAC != p.lastMAC && p.setMAC(l.MAC) == nil {
		p.lastMAC = l.MAC
	}
	return l
}

func (p *Port) Queue(i int) pmd.Queue { return p.queues[i] }

// Stats adds what the kernel counted: packets for which there was no buffer, or no room in the
// rx ring, and descriptors that it refused to send.
func (p *Port) Stats() pmd.Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return p.last
	}
	s := p.tally.Sum()
	for _, q := range p.queues {
		x := q.xdp()
		// Without scatter/gather rxDropped has the too long ones as well.
		s.RxNoBuffer += x.rxDropped
		s.RxRingFull += x.rxRingFull
		s.RxBad += x.rxInvalid
		s.TxFailed += x.txInvalid
	}
	return s
}

// Close leaves the interface as it was before Open. Every queue must be stopped.
func (p *Port) Close() error {
	if p.tally != nil {
		last := p.Stats()
		p.mu.Lock()
		p.last = last
		p.mu.Unlock()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	for _, q := range p.queues {
		if q.c != nil {
			return p.err("close: queue %d is not stopped", q.id)
		}
	}
	p.closed = true
	for _, q := range p.queues {
		q.s.close()
	}
	p.detach()
	p.prog.Close()
	p.maps.close()
	if p.tally != nil {
		p.tally.Close()
	}
	if err := p.dev.close(); err != nil {
		return p.err("close: %w", err)
	}
	return nil
}

var (
	_ pmd.LocalFilter = (*Port)(nil)
	_ pmd.TakeFilter  = (*Port)(nil)
)

// privilege adds to an error of the kernel what the process lacks, where it is that.
func privilege(err error) error {
	switch {
	case errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES):
		return fmt.Errorf("%w: %w: needs the capabilities CAP_NET_ADMIN, CAP_NET_RAW and CAP_BPF (CAP_SYS_ADMIN before Linux 5.8)", pmd.ErrNotSupported, err)
	case errors.Is(err, unix.EAFNOSUPPORT):
		return fmt.Errorf("%w: %w: a kernel without AF_XDP (CONFIG_XDP_SOCKETS)", pmd.ErrNotSupported, err)
	case errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) || errors.Is(err, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", pmd.ErrNotSupported, err)
	}
	return err
}

// memlock lifts the limit of locked memory, against which kernels charge the buffers of
// processes without CAP_IPC_LOCK. Where it cannot, registering the buffers will say so.
func memlock() {
	_ = unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY})
}
