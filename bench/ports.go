package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"millrace/bench/pin"
	"millrace/bench/result"
	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/mem"
	"millrace/pmd/memif"
)

// PortsOptions of the benchmark of ports.
type PortsOptions struct {
	Rounds int           // of each case; 0 for 5
	Window time.Duration // of one measurement; 0 for 300 ms
	Filter string
	Note   func(format string, a ...any) // what people should know about the figures
	Report func(done, total int)
}

// warmUp passes before each measurement.
const warmUp = 100 * time.Millisecond

// Ports measures what ports carry, 64-byte frames, beside the kernel's forwarding between
// the same kind of veth pairs. All cases take turns.
func Ports(ctx context.Context, o PortsOptions) (*Report, error) {
	if o.Rounds == 0 {
		o.Rounds = 5
	}
	if o.Window == 0 {
		o.Window = 300 * time.Millisecond
	}
	if o.Note == nil {
		o.Note = func(string, ...any) {}
	}
	genCPU, fwdCPU, err := pin.Two()
	if err != nil {
		return nil, err
	}
	defer pin.Prefer()()
	rep := result.New("ports")
	var jobs []*result.Job
	var veths []*chain
	if os.Geteuid() != 0 {
		o.Note("not root: only ports in memory; as root also AF_XDP, AF_PACKET and the kernel over veth pairs")
	} else {
		for _, c := range chains() {
			if !strings.Contains(c.name, o.Filter) && !strings.HasPrefix(c.name, strings.Split(o.Filter, "@")[0]+"@") {
				continue
			}
			defer c.close()
			if err := c.open(ctx, genCPU, fwdCPU); err != nil {
				return nil, fmt.Errorf("bench ports: %s: %w", c.name, err)
			}
			veths = append(veths, c)
			jobs = append(jobs, &result.Job{Name: c.name, Measure: func() (float64, error) { return c.measure(ctx, warmUp, o.Window) }})
		}
	}
	if strings.Contains("memif", o.Filter) {
		m, err := newMemifPair(genCPU, fwdCPU)
		if err != nil {
			return nil, fmt.Errorf("bench ports: memif: %w", err)
		}
		defer m.close()
		jobs = append(jobs, &result.Job{Name: "memif", Measure: func() (float64, error) { return m.measure(warmUp, o.Window) }})
	}
	if strings.Contains("mem", o.Filter) {
		jobs = append(jobs, &result.Job{Name: "mem", Measure: func() (float64, error) { return measureMem(genCPU, fwdCPU, warmUp, o.Window) }})
	}
	if len(jobs) == 0 {
		return nil, fmt.Errorf("bench ports: no case contains %q", o.Filter)
	}
	if err := (result.Turns{Rounds: o.Rounds, Report: o.Report, Note: rep.Note}).Run(ctx, jobs); err != nil {
		return nil, fmt.Errorf("bench ports: %w", err)
	}
	for _, j := range jobs {
		rep.Add(j.Name, "packets_per_second", "packets/s", true, j.Values)
	}
	for _, c := range veths {
		b, err := c.books(ctx)
		if err != nil {
			return nil, fmt.Errorf("bench ports: %s: %w", c.name, err)
		}
		text, err := b.check()
		o.Note("%s: %s", c.name, text)
		if err != nil {
			return nil, fmt.Errorf("bench ports: %s: %w", c.name, err)
		}
	}
	if len(veths) > 0 {
		o.Note("CPU %d: generator, and reception by r0; CPU %d: Millrace's worker, or with @kernel the kernel's own polling and forwarding; @kernel-inline: all on CPU %d",
			genCPU, fwdCPU, genCPU)
		for _, peer := range []string{"@kernel", "@kernel-inline"} {
			a, ok1 := rep.Value("afxdp/veth", "packets_per_second")
			k, ok2 := rep.Value("afxdp/veth"+peer, "packets_per_second")
			if ok1 && ok2 {
				o.Note("afxdp/veth is %.2f times afxdp/veth%s", a/k, peer)
			}
		}
	}
	return rep, nil
}

const burst = 128

// flood sends 64-byte frames by a queue until stop says so.
func flood(q pmd.Queue, c *packet.Cache, stop func() bool) {
	var b [burst]uint32
	for !stop() {
		n := c.Alloc(b[:])
		for _, x := range b[:n] {
			m := packet.At(x)
			m.PktLen, m.DataLen = frameSize, frameSize
		}
		k := q.Tx(b[:n])
		c.Free(b[k:n])
	}
}

// drain receives by a queue, and drops, until stop says so.
func drain(q pmd.Queue, c *packet.Cache, stop func() bool) (n uint64) {
	var b [256]uint32
	for !stop() {
		k := q.Rx(b[:])
		c.Free(b[:k])
		n += uint64(k)
	}
	return n
}

// until is a stop that looks at the clock now and then.
func until(end time.Time) func() bool {
	i := 0
	return func() bool {
		i++
		return i&63 == 0 && time.Now().After(end)
	}
}

// timed counts what a queue receives in a window, after a warm-up.
func timed(q pmd.Queue, c *packet.Cache, warm, window time.Duration) float64 {
	drain(q, c, until(time.Now().Add(warm)))
	t := time.Now()
	n := drain(q, c, until(t.Add(window)))
	return float64(n) / time.Since(t).Seconds()
}

// onCPU runs f on a thread of its own, pinned.
func onCPU(cpu int, f func()) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends with f: its affinity is changed
		err := pin.Thread(cpu)
		if err == nil {
			f()
		}
		done <- err
	}()
	return <-done
}

// measureMem is the ceiling: indices handed from one core to another.
func measureMem(txCPU, rxCPU int, warm, window time.Duration) (rate float64, err error) {
	pool, err := packet.NewPool("bench-mem", 8192)
	if err != nil {
		return 0, err
	}
	defer pool.Close()
	a, b := mem.Pair("a", "b", mem.Options{})
	defer a.Close()
	defer b.Close()
	ca, cb := pool.NewCache(), pool.NewCache()
	defer ca.Close()
	defer cb.Close()
	if err := errors.Join(a.Queue(0).Start(ca), b.Queue(0).Start(cb)); err != nil {
		return 0, err
	}
	sent := make(chan error)
	end := time.Now().Add(warm + window + 50*time.Millisecond)
	go func() { sent <- onCPU(txCPU, func() { flood(a.Queue(0), ca, until(end)) }) }()
	err = onCPU(rxCPU, func() { rate = timed(b.Queue(0), cb, warm, window) })
	err = errors.Join(err, <-sent)
	a.Queue(0).Stop()
	b.Queue(0).Stop()
	return rate, err
}

// memifPair is a memif server here and a client in a process of its own that sends all the time.
type memifPair struct {
	pool  *packet.Pool
	cache *packet.Cache
	port  pmd.Port
	peer  *exec.Cmd
	dir   string
	cpu   int
}

func newMemifPair(txCPU, rxCPU int) (m *memifPair, err error) {
	m = &memifPair{cpu: rxCPU}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	if m.dir, err = os.MkdirTemp("", "millrace-memif-"); err != nil {
		return m, err
	}
	if m.pool, err = packet.NewPool("bench-memif", 8192); err != nil {
		return m, err
	}
	m.cache = m.pool.NewCache()
	sock := filepath.Join(m.dir, "sock")
	if m.port, err = memif.Open(pmd.Config{Name: "bench", Role: "server", Socket: sock, Pool: m.pool}); err != nil {
		return m, err
	}
	if err = m.port.Queue(0).Start(m.cache); err != nil {
		return m, err
	}
	self, err := os.Executable()
	if err != nil {
		return m, err
	}
	m.peer = exec.Command(self, "bench", "memif-peer", sock, strconv.Itoa(txCPU))
	m.peer.Stderr = os.Stderr
	m.peer.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	stdin, err := m.peer.StdinPipe() // the peer ends when this end closes
	if err != nil {
		return m, err
	}
	runtime.KeepAlive(stdin)
	if err = m.peer.Start(); err != nil {
		m.peer = nil
		return m, err
	}
	// The peer floods only while it is not stopped: others want its CPU.
	for end := time.Now().Add(10 * time.Second); !m.port.Link().Up; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			return m, errors.New("the peer does not connect")
		}
	}
	return m, m.peer.Process.Signal(syscall.SIGSTOP)
}

func (m *memifPair) measure(warm, window time.Duration) (rate float64, err error) {
	if err := m.peer.Process.Signal(syscall.SIGCONT); err != nil {
		return 0, err
	}
	err = onCPU(m.cpu, func() { rate = timed(m.port.Queue(0), m.cache, warm, window) })
	return rate, errors.Join(err, m.peer.Process.Signal(syscall.SIGSTOP))
}

func (m *memifPair) close() {
	if m.peer != nil {
		m.peer.Process.Kill()
		_ = m.peer.Wait() // killed
	}
	if m.port != nil {
		m.port.Queue(0).Stop()
		m.port.Close()
	}
	if m.pool != nil {
		m.cache.Close()
		m.pool.Close()
	}
	os.RemoveAll(m.dir)
}

// memifPeer is the client's process: it sends until its standard input closes.
func memifPeer(sock string, cpu int) error {
	go func() {
		var b [1]byte
		_, _ = os.Stdin.Read(b[:]) // end of file: the parent is gone
		os.Exit(0)
	}()
	pool, err := packet.NewPool("peer", 4096)
	if err != nil {
		return err
	}
	port, err := memif.Open(pmd.Config{Name: "peer", Role: "client", Socket: sock, Pool: pool})
	if err != nil {
		return err
	}
	c := pool.NewCache()
	if err := port.Queue(0).Start(c); err != nil {
		return err
	}
	return onCPU(cpu, func() { flood(port.Queue(0), c, func() bool { return false }) })
}

func portsCommand() *cobra.Command {
	var o PortsOptions
	var out output
	c := &cobra.Command{
		Use:   "ports [CASE]",
		Short: "What ports carry, beside the kernel's own forwarding",
		Long: `Measures packets per second of 64-byte frames, best and median, all cases taking
turns:

  afxdp/veth, afpacket/veth     this router between two veth pairs (as root)
  afxdp/veth@kernel             the kernel's forwarding on one core of its own
  afxdp/veth@kernel-inline      the kernel's forwarding right where it receives, on the
                                generator's core, which saves it all handing over
  memif                         shared memory from one process to another
  mem                           rings in one process: the ceiling

The generator is the kernel's own (XDP live frames), on one CPU; the router has the
other. Everything happens in network namespaces that the bench makes and removes.`,
		Example: `  sudo millrace bench ports
  millrace bench ports memif --json -`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 1 {
				o.Filter = args[0]
			}
			var notes []string
			o.Note = func(format string, a ...any) { notes = append(notes, fmt.Sprintf(format, a...)) }
			o.Report = func(done, total int) { progress(done, total, "round") }
			r, err := Ports(c.Context(), o)
			if err != nil {
				return err
			}
			if err := out.write(c, r); err != nil || out.json == "-" {
				return err
			}
			for _, n := range notes {
				fmt.Fprintf(c.OutOrStdout(), "\n%s", n)
			}
			fmt.Fprintln(c.OutOrStdout())
			return nil
		},
	}
	c.Flags().IntVar(&o.Rounds, "rounds", 5, "measurements of each case")
	c.Flags().DurationVar(&o.Window, "window", 300*time.Millisecond, "length of one measurement")
	out.flags(c)
	return c
}

// peerCommand is the memif client's process, for Ports alone.
func peerCommand() *cobra.Command {
	return &cobra.Command{
		Use: "memif-peer SOCKET CPU", Hidden: true, Args: cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, args []string) error {
			cpu, err := strconv.Atoi(args[1])
			if err != nil {
				return err
			}
			return memifPeer(args[0], cpu)
		},
	}
}
