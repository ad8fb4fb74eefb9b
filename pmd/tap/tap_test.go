package tap_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"golang.org/x/sys/unix"

	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/porttest"
	"millrace/pmd/tap"
)

func open(t testing.TB, ns *testnet.NS, c pmd.Config) *tap.Port {
	t.Helper()
	var p *tap.Port
	var err error
	ns.Do(func() { p, err = tap.Open(c) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// join makes the kernel send out of one device what it receives on the other.
func join(t testing.TB, ns *testnet.NS, from, to int) {
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(to)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
	}})
	if err != nil {
		t.Skip("no BPF here: ", err)
	}
	defer prog.Close()
	var l link.Link
	ns.Do(func() {
		l, err = link.AttachTCX(link.TCXOptions{Interface: from, Program: prog, Attach: ebpf.AttachTCXIngress})
	})
	if err != nil {
		t.Skip("no tcx here: ", err)
	}
	t.Cleanup(func() { l.Close() })
}

func TestPort(t *testing.T) {
	for _, c := range []pmd.Config{{}, {MTU: 9000}, {MTU: 65521}, {Queues: 3, Ring: 500}} {
		t.Run(fmt.Sprintf("mtu %d, queues %d", c.MTU, c.Queues), func(t *testing.T) {
			porttest.Run(t, porttest.Pair{
				NeverFull: true,
				Open: func(t testing.TB, _ *packet.Pool) (pmd.Port, pmd.Port) {
					ns := testnet.New(t)
					c.Name, c.MAC = "a", pmd.MAC{2, 0, 0, 0, 0, 0xa}
					a := open(t, ns, c)
					c.Name, c.MAC = "b", pmd.MAC{2, 0, 0, 0, 0, 0xb}
					b := open(t, ns, c)
					join(t, ns, a.Caps().Kernel, b.Caps().Kernel)
					join(t, ns, b.Caps().Kernel, a.Caps().Kernel)
					return a, b
				},
			})
		})
	}
}

// The kernel's ping over the device is answered here.
func TestPing(t *testing.T) {
	ns := testnet.New(t)
	p := open(t, ns, pmd.Config{Name: "t0", MAC: pmd.MAC{2, 1, 2, 3, 4, 5}, MTU: 4000})
	if l := p.Link(); !l.Up || l.Gone || l.MTU != 4000 || l.MAC != (pmd.MAC{2, 1, 2, 3, 4, 5}) {
		t.Errorf("%+v", l)
	}
	ns.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "t0")
	pool, err := packet.NewPool("tap", 512)
	if err != nil {
		t.Fatal(err)
	}
	c := pool.NewCache()
	q := p.Queue(0)
	if err := q.Start(c); err != nil {
		t.Fatal(err)
	}
	cmd := ns.Command("ping", "-c", "3", "-i", "0.01", "-s", "3900", "-W", "10", "192.0.2.2")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for err = os.ErrDeadlineExceeded; err == os.ErrDeadlineExceeded; {
		select {
		case err = <-done:
		default:
			var pkts [8]uint32
			n := q.Rx(pkts[:])
			for _, i := range pkts[:n] {
				answer(c, packet.At(i), q)
			}
			if n == 0 {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	if err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	ns.Run(t, "ip", "link", "set", "t0", "down")
	if p.Link().Up {
		t.Error("up after it was set down")
	}
	m := c.Alloc1()
	clear(m.Append(60))
	b := []uint32{m.Index()}
	if n := q.Tx(b); n != 0 {
		t.Errorf("a device that is down took %d", n)
	}
	ns.Run(t, "ip", "link", "set", "t0", "up")
	if n := q.Tx(b); n != 1 {
		t.Errorf("a device that is up took %d", n)
	}
	m = c.Alloc1()
	m.Append(5)
	if n := q.Tx([]uint32{m.Index()}); n != 1 || p.Stats().TxFailed != 1 {
		t.Errorf("a frame of 5 bytes: took %d, %+v", n, p.Stats())
	}
	// The device goes away under the port.
	ns.Run(t, "ip", "link", "del", "t0")
	if !p.Link().Gone {
		t.Error("not gone")
	}
	m = c.Alloc1()
	clear(m.Append(60))
	b[0] = m.Index()
	if n := q.Rx(make([]uint32, 4)) + q.Tx(b); n != 0 {
		t.Errorf("a device that is gone gave or took %d", n)
	}
	c.Free(b)
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(q.Fd()), Events: unix.POLLIN}}, 0); !q.Arm() || n != 0 {
		t.Error("a device that is gone wakes the thread")
	}
	q.Stop()
	p.Close()
	c.Close()
	if pool.Free() != pool.Size() {
		t.Errorf("leak: %d of %d buffers free", pool.Free(), pool.Size())
	}
	pool.Close()
}

// answer sends back what an ARP or echo request asks for, and frees everything else.
func answer(c *packet.Cache, m *packet.Mbuf, q pmd.Queue) {
	us := []byte{2, 9, 9, 9, 9, 9}
	b := m.Bytes()
	switch binary.BigEndian.Uint16(b[12:]) {
	case 0x806:
		if b[21] != 1 || !bytes.Equal(b[38:42], []byte{192, 0, 2, 2}) {
			c.Free1(m)
			return
		}
		b[21] = 2
		copy(b[32:42], b[22:32])
		copy(b[22:28], us)
		copy(b[28:32], []byte{192, 0, 2, 2})
	case 0x800:
		if b[23] != 1 || b[34] != 8 {
			c.Free1(m)
			return
		}
		var src [4]byte
		copy(src[:], b[26:30])
		copy(b[26:30], b[30:34])
		copy(b[30:34], src[:])
		b[34] = 0
		packet.PutSum(b[36:], packet.Update16(packet.GetSum(b[36:]), binary.NativeEndian.Uint16([]byte{8, b[35]}), binary.NativeEndian.Uint16([]byte{0, b[35]})))
	default:
		c.Free1(m)
		return
	}
	copy(b[:6], b[6:12])
	copy(b[6:12], us)
	if q.Tx([]uint32{m.Index()}) == 0 {
		c.Free1(m)
	}
}

func TestOpenErrors(t *testing.T) {
	ns := testnet.New(t)
	open(t, ns, pmd.Config{Name: "there"})
	for _, c := range []struct {
		c    pmd.Config
		want string
	}{
		{pmd.Config{Name: "there"}, "exists already"},
		{pmd.Config{Name: "lo"}, "port lo"},
		{pmd.Config{Name: "a/b"}, "cannot be the name"},
		{pmd.Config{Name: "x", Socket: "s"}, "socket"},
		{pmd.Config{Name: "x", Read: "f"}, "read"},
		{pmd.Config{Name: "x", MTU: 1 << 20}, "mtu"},
		{pmd.Config{Name: "x", MAC: pmd.MAC{1, 0, 0, 0, 0, 0}}, "set MAC"},
	} {
		ns.Do(func() {
			p, err := tap.Open(c.c)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v, want %q", c.c, err, c.want)
			}
			if p != nil {
				p.Close()
			}
		})
	}
	if out := ns.Run(t, "ip", "-o", "link"); strings.Contains(out, " x:") {
		t.Error("a failed Open left a device behind: ", out)
	}
}
