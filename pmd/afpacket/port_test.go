package afpacket_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/afpacket"
	"millrace/pmd/porttest"
)

// open opens a port in a namespace, and closes it with the test.
func open(t testing.TB, ns *testnet.NS, c pmd.Config) *afpacket.Port {
	t.Helper()
	var p *afpacket.Port
	var err error
	ns.Do(func() { p, err = afpacket.Open(c) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestPort(t *testing.T) {
	for _, c := range []struct {
		mtu    string
		queues int
	}{{"1500", 1}, {"9000", 1}, {"1500", 2}} {
		t.Run(fmt.Sprintf("mtu %s, %d queues", c.mtu, c.queues), func(t *testing.T) {
			porttest.Run(t, porttest.Pair{
				NeverFull: true,
				Open: func(t testing.TB, _ *packet.Pool) (pmd.Port, pmd.Port) {
					x, y := testnet.New(t), testnet.New(t)
					testnet.Veth(t, x, "p", y, "q", "mtu", c.mtu)
					return open(t, x, pmd.Config{Name: "p", Queues: c.queues}), open(t, y, pmd.Config{Name: "q", Queues: c.queues})
				},
			})
		})
	}
}

// rig is a port whose far end is a kernel in a namespace of its own.
type rig struct {
	router, far *testnet.NS
	port        *afpacket.Port
	q           pmd.Queue
	raw         *testnet.Raw
	pool        *packet.Pool
	cache       *packet.Cache
}

func newRig(t *testing.T, c pmd.Config) *rig {
	r := &rig{router: testnet.New(t), far: testnet.New(t)}
	testnet.Veth(t, r.router, "p", r.far, "far")
	r.router.Run(t, "ip", "addr", "add", "192.0.2.1/24", "dev", "p")
	r.router.Run(t, "ip", "addr", "add", "2001:db8::1/64", "dev", "p")
	r.raw = r.far.Raw(t, "far")
	c.Name = "p"
	r.port = open(t, r.router, c)
	r.q = r.port.Queue(0)
	var err error
	if r.pool, err = packet.NewPool("afpacket", 2048); err != nil {
		t.Fatal(err)
	}
	r.cache = r.pool.NewCache()
	if err := r.q.Start(r.cache); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.q.Stop()
		r.cache.Close()
		if r.pool.Free() != r.pool.Size() {
			t.Errorf("leak: %d of %d buffers free", r.pool.Free(), r.pool.Size())
		}
		r.pool.Close()
	})
	return r
}

// recv is the next packet of the port, or nil.
func (r *rig) recv(d time.Duration) []byte {
	var b [1]uint32
	for end := time.Now().Add(d); ; {
		if r.q.Rx(b[:]) == 1 {
			m := packet.At(b[0])
			f := make([]byte, m.PktLen)
			m.CopyOut(0, f)
			r.cache.Free(b[:])
			return f
		}
		if time.Now().After(end) {
			return nil
		}
		time.Sleep(50 * time.Microsecond)
	}
}

// udp is a frame from the far end to the port's MAC.
func (r *rig) udp(dst string, payload int, tags ...uint16) []byte {
	mac := r.port.Link().MAC
	f := append(mac[:], r.raw.MAC...)
	for i, t := range tags {
		tpid := uint16(0x8100)
		if len(tags) == 2 && i == 0 {
			tpid = 0x88a8
		}
		f = binary.BigEndian.AppendUint16(f, tpid)
		f = binary.BigEndian.AppendUint16(f, t)
	}
	a := netip.MustParseAddr(dst)
	if a.Is4() {
		f = append(f, 8, 0)
		ip := make([]byte, 28+payload)
		packet.IPv4(ip).Init([4]byte{198, 51, 100, 1}, a.As4(), packet.ProtoUDP, len(ip))
		binary.BigEndian.PutUint16(ip[24:], uint16(8+payload))
		for i := range payload {
			ip[28+i] = byte(i)
		}
		packet.IPv4(ip).SetSum()
		return append(f, ip...)
	}
	f = append(f, 0x86, 0xdd)
	ip := make([]byte, 48+payload)
	packet.IPv6(ip).Init(netip.MustParseAddr("2001:db8:1::1").As16(), a.As16(), packet.ProtoUDP, 8+payload)
	binary.BigEndian.PutUint16(ip[44:], uint16(8+payload))
	return append(f, ip...)
}

func (r *rig) send(t *testing.T, f []byte) {
	t.Helper()
	if err := r.raw.Send(f); err != nil {
		t.Fatal(err)
	}
}

// Tags that the kernel takes off come back.
func TestVLAN(t *testing.T) {
	r := newRig(t, pmd.Config{})
	for _, tags := range [][]uint16{nil, {5}, {0xe005}, {7, 8}} {
		for _, payload := range []int{20, 1400, 1472 - 4*len(tags)} {
			f := r.udp("203.0.113.9", payload, tags...)
			r.send(t, f)
			if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
				t.Errorf("tags %x, %d bytes: received\n%x, want\n%x", tags, payload, got, f)
			}
		}
	}
}

// What is the kernel's does not come to Rx, and what is in transit does not come to the kernel.
func TestOwner(t *testing.T) {
	r := newRig(t, pmd.Config{})
	if why := r.port.Why(); len(why) > 0 {
		t.Skip("no tcx here: ", why)
	}
	r.far.Run(t, "ip", "addr", "add", "192.0.2.2/24", "dev", "far")
	r.far.Run(t, "ip", "addr", "add", "2001:db8::2/64", "dev", "far")
	for _, a := range []string{"192.0.2.1", "2001:db8::1"} {
		r.far.Run(t, "ping", "-c", "1", "-W", "5", a)
	}
	if f := r.recv(0); f != nil {
		t.Errorf("the kernel's packet came to Rx: %x", f)
	}
	// The router's kernel forwards to an interface that counts what it gets.
	r.router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	testnet.Veth(t, r.router, "sink", r.far, "sunk")
	r.router.Run(t, "ip", "addr", "add", "10.9.9.1/24", "dev", "sink")
	r.router.Run(t, "ip", "route", "add", "203.0.113.0/24", "dev", "sink", "via", "10.9.9.2")
	r.router.Run(t, "ip", "neigh", "add", "10.9.9.2", "lladdr", "02:00:00:00:00:09", "dev", "sink")
	r.router.Run(t, "sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.p.rp_filter=0")
	sunk := r.far.Raw(t, "sunk")
	forwarded := func(d time.Duration) bool {
		return sunk.RecvMatch(d, func(b []byte) bool { return b[12] == 8 && b[13] == 0 && b[23] == packet.ProtoUDP }) != nil
	}
	for range 10 {
		f := r.udp("203.0.113.9", 100)
		r.send(t, f)
		if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
			t.Fatalf("received %x", got)
		}
	}
	if forwarded(0) {
		t.Error("the kernel forwarded transit traffic")
	}
	// The same destination as a local address passes to the kernel, and only there.
	if err := r.port.SetLocal([]netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:9::9")}); err != nil {
		t.Fatal(err)
	}
	r.send(t, r.udp("203.0.113.9", 100))
	r.send(t, r.udp("2001:db8:9::9", 100))
	f := r.udp("203.0.113.10", 99)
	r.send(t, f)
	if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
		t.Errorf("a local packet came to Rx: %x", got)
	}
	if !forwarded(10 * time.Second) {
		t.Error("a local packet did not come to the kernel")
	}
	// MPLS is Millrace's when asked for.
	mac := r.port.Link().MAC
	mpls := append(append(mac[:], r.raw.MAC...), 0x88, 0x47)
	mpls = append(mpls, make([]byte, 60)...)
	r.send(t, mpls)
	r.send(t, f)
	if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
		t.Errorf("MPLS came unasked: %x", got)
	}
	if err := r.port.SetTypes([]uint16{0x8847}); err != nil {
		t.Fatal(err)
	}
	r.send(t, mpls)
	if got := r.recv(5 * time.Second); !bytes.Equal(got, mpls) {
		t.Errorf("MPLS: received %x", got)
	}
}

func waitFor(cond func() bool) error {
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			return os.ErrDeadlineExceeded
		}
	}
	return nil
}

func TestLink(t *testing.T) {
	r := newRig(t, pmd.Config{MTU: 2000, MAC: pmd.MAC{2, 9, 9, 9, 9, 9}})
	l := r.port.Link()
	if !l.Up || l.Gone || l.MTU != 2000 || l.MAC != (pmd.MAC{2, 9, 9, 9, 9, 9}) {
		t.Errorf("%+v", l)
	}
	f := r.udp("203.0.113.9", 100)
	r.send(t, f)
	if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
		t.Errorf("received %x", got)
	}
	send := func() int {
		m := r.cache.Alloc1()
		copy(room(m, len(f)), f)
		b := []uint32{m.Index()}
		n := r.q.Tx(b)
		r.cache.Free(b[n:])
		return n
	}
	r.far.Run(t, "ip", "link", "set", "far", "down")
	if err := waitFor(func() bool { return !r.port.Link().Up }); err != nil {
		t.Error("the link stayed up")
	}
	if n := send(); n != 0 {
		t.Errorf("a link that is down took %d", n)
	}
	r.far.Run(t, "ip", "link", "set", "far", "up")
	if err := waitFor(func() bool { return r.port.Link().Up }); err != nil {
		t.Error("the link stayed down")
	}
	if err := waitFor(func() bool { return send() == 1 }); err != nil {
		t.Error("nothing is sent after the link came up")
	}
	r.raw = r.far.Raw(t, "far")
	// A new MAC, set by somebody else.
	r.router.Run(t, "ip", "link", "set", "p", "address", "02:00:00:00:00:77")
	if err := waitFor(func() bool { return r.port.Link().MAC == pmd.MAC{2, 0, 0, 0, 0, 0x77} }); err != nil {
		t.Fatal("the MAC did not change")
	}
	f = r.udp("203.0.113.9", 100)
	r.send(t, f)
	if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
		t.Errorf("received %x", got)
	}
	r.port.Close()
	if s := r.router.Run(t, "ip", "-o", "link", "show", "p"); !strings.Contains(s, "mtu 1500") {
		t.Error("Close did not restore the MTU: ", s)
	}
}

// The MTU grew after Open: frames no longer fit the ring's slots.
func TestLong(t *testing.T) {
	r := newRig(t, pmd.Config{})
	r.router.Run(t, "ip", "link", "set", "p", "mtu", "9000")
	r.far.Run(t, "ip", "link", "set", "far", "mtu", "9000")
	for _, tags := range [][]uint16{nil, {5}, {7, 8}} {
		for _, payload := range []int{100, 1800, 2200, 8960} {
			f := r.udp("203.0.113.9", payload, tags...)
			r.send(t, f)
			if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
				t.Errorf("tags %x, payload %d: received %d bytes, or others", tags, payload, len(got))
			}
		}
	}
	// The kernel's long frames leave no trace in the order of ours.
	if err := r.port.SetLocal([]netip.Addr{netip.MustParseAddr("203.0.113.8")}); err != nil {
		t.Fatal(err)
	}
	r.send(t, r.udp("203.0.113.8", 8000))
	f := r.udp("203.0.113.9", 8001)
	r.send(t, f)
	if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
		t.Errorf("received %d bytes", len(got))
	}
	if c := r.port.Caps(); c.MaxFrame != 9014 {
		t.Errorf("%+v", c)
	}
}

// Every packet that is not received is counted.
func TestLoss(t *testing.T) {
	r := newRig(t, pmd.Config{Ring: 64})
	f := r.udp("203.0.113.9", 1000)
	const sent = 500
	for range sent {
		r.send(t, f)
	}
	n := uint64(0)
	for r.recv(200*time.Millisecond) != nil {
		n++
	}
	s := r.port.Stats()
	if s.RxPackets != n || n == 0 || s.RxRingFull == 0 || s.RxPackets+s.RxRingFull != sent {
		t.Errorf("received %d of %d, %+v", n, sent, s)
	}
	if again := r.port.Stats(); again != s {
		t.Errorf("%+v, then %+v", s, again)
	}
	all := make([]uint32, r.pool.Size())
	k := r.cache.Alloc(all)
	r.send(t, f)
	err := waitFor(func() bool { r.q.Rx(make([]uint32, 1)); return r.port.Stats().RxNoBuffer == 1 })
	r.cache.Free(all[:k])
	if err != nil {
		t.Errorf("no buffers: %+v", r.port.Stats())
	}
	r.send(t, f)
	if got := r.recv(5 * time.Second); !bytes.Equal(got, f) {
		t.Error("nothing received after the pool was empty")
	}
}

// room makes n bytes of a fresh buffer its data.
func room(m *packet.Mbuf, n int) []byte { return m.Append(n) }

// The device goes away, and comes back.
func TestGone(t *testing.T) {
	for _, queues := range []int{1, 2} {
		r := newRig(t, pmd.Config{Queues: queues})
		if queues == 2 {
			if err := r.port.Queue(1).Start(r.cache); err != nil {
				t.Fatal(err)
			}
		}
		fd := r.q.Fd()
		poll := func() []byte {
			var b [4]uint32
			for i := range queues {
				if n := r.port.Queue(i).Rx(b[:]); n > 0 {
					m := packet.At(b[0])
					f := make([]byte, m.PktLen)
					m.CopyOut(0, f)
					r.cache.Free(b[:n])
					return f
				}
			}
			return nil
		}
		r.router.Run(t, "ip", "link", "del", "p")
		if err := waitFor(func() bool { return r.port.Link().Gone }); err != nil {
			t.Fatal("not gone")
		}
		m := r.cache.Alloc1()
		copy(room(m, 60), make([]byte, 60))
		b := []uint32{m.Index()}
		if n := r.q.Tx(b); n != 0 {
			t.Errorf("a device that is gone took %d", n)
		}
		r.cache.Free(b)
		poll()
		testnet.Veth(t, r.router, "p", r.far, "far")
		if err := waitFor(func() bool { return r.port.Link().Up }); err != nil {
			t.Fatal("did not come back")
		}
		r.raw = r.far.Raw(t, "far")
		f := r.udp("203.0.113.9", 100)
		if err := waitFor(func() bool {
			r.send(t, f)
			return bytes.Equal(poll(), f)
		}); err != nil {
			t.Error("nothing received after the device came back")
		}
		for poll() != nil {
		}
		if r.q.Fd() != fd {
			t.Error("the descriptor changed")
		}
		if s := r.port.Stats(); s.RxPackets == 0 {
			t.Errorf("%+v", s)
		}
	}
}

func TestOpenErrors(t *testing.T) {
	ns := testnet.New(t)
	for _, c := range []struct {
		c    pmd.Config
		want string
	}{
		{pmd.Config{Name: "lo"}, "not an Ethernet device"},
		{pmd.Config{Name: "none"}, "no such kernel interface"},
		{pmd.Config{Name: "a name"}, "cannot be the name"},
		{pmd.Config{Name: "lo", Socket: "s"}, "socket"},
		{pmd.Config{Name: "lo", Mode: "native"}, "mode"},
		{pmd.Config{Name: "lo", Loop: 1}, "loop"},
		{pmd.Config{Name: "lo", MTU: 1 << 20}, "mtu"},
	} {
		ns.Do(func() {
			if p, err := afpacket.Open(c.c); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%+v: %v, want %q", c.c, err, c.want)
				if p != nil {
					p.Close()
				}
			}
		})
	}
}

// TestForward stands between two kernels and carries what their sockets send, with
// all offloads on: super-packets of TCP and UDP, unfinished checksums.
func TestForward(t *testing.T) {
	a, router, b := testnet.New(t), testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "eth", router, "pa")
	testnet.Veth(t, b, "eth", router, "pb")
	pa, pb := open(t, router, pmd.Config{Name: "pa"}), open(t, router, pmd.Config{Name: "pb"})
	mac := func(ns *testnet.NS) string {
		return strings.TrimSpace(ns.Run(t, "cat", "/sys/class/net/eth/address"))
	}
	macs := map[*testnet.NS]string{a: mac(a), b: mac(b)}
	for i, ns := range []*testnet.NS{a, b} {
		gw := []*afpacket.Port{pa, pb}[i].Link().MAC.String()
		for _, v := range []string{"10.%d.0.%d/24", "2001:db8:%d::%d/64"} {
			ns.Run(t, "ip", "addr", "add", fmt.Sprintf(v, i+1, 2), "dev", "eth")
		}
		ns.Run(t, "ip", "neigh", "add", fmt.Sprintf("10.%d.0.1", i+1), "lladdr", gw, "dev", "eth")
		ns.Run(t, "ip", "neigh", "add", fmt.Sprintf("2001:db8:%d::1", i+1), "lladdr", gw, "dev", "eth")
		ns.Run(t, "ip", "route", "add", "default", "via", fmt.Sprintf("10.%d.0.1", i+1))
		ns.Run(t, "ip", "-6", "route", "add", "default", "via", fmt.Sprintf("2001:db8:%d::1", i+1))
	}
	pool, err := packet.NewPool("forward", 4096)
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	longest := 0
	wg.Go(func() {
		runtime.LockOSThread()
		cache := pool.NewCache()
		defer cache.Close()
		qa, qb := pa.Queue(0), pb.Queue(0)
		qa.Start(cache)
		qb.Start(cache)
		defer qa.Stop()
		defer qb.Stop()
		hop := func(from, to pmd.Queue, src pmd.MAC, dst string) int {
			var pkts [64]uint32
			n := from.Rx(pkts[:])
			d, _ := net.ParseMAC(dst)
			for _, i := range pkts[:n] {
				m := packet.At(i)
				longest = max(longest, int(m.PktLen))
				copy(m.Bytes(), d)
				copy(m.Bytes()[6:], src[:])
			}
			cache.Free(pkts[to.Tx(pkts[:n]):n])
			return n
		}
		ma, mb := pa.Link().MAC, pb.Link().MAC
		for {
			select {
			case <-stop:
				return
			default:
			}
			if hop(qa, qb, mb, macs[b])+hop(qb, qa, ma, macs[a]) == 0 {
				time.Sleep(20 * time.Microsecond)
			}
		}
	})
	for _, v := range []struct{ from, to string }{{"10.1.0.2", "10.2.0.2"}, {"[2001:db8:1::2]", "[2001:db8:2::2]"}} {
		t.Run("tcp "+v.to, func(t *testing.T) { tcp(t, a, b, v.to+":7000") })
		t.Run("udp "+v.to, func(t *testing.T) { udpSegments(t, a, b, v.to+":7001") })
	}
	close(stop)
	wg.Wait()
	if longest > 1514 {
		t.Errorf("a packet of %d bytes came out of an interface with MTU 1500", longest)
	}
	for _, p := range []*afpacket.Port{pa, pb} {
		if s := p.Stats(); s.RxBad+s.RxNoBuffer+s.TxFailed > 0 {
			t.Errorf("%s: %+v", p.Name(), s)
		}
	}
	if pool.Free() != pool.Size() {
		t.Errorf("leak: %d of %d buffers free", pool.Free(), pool.Size())
	}
	pool.Close()
}

// tcp sends 4 MiB from a to b and compares their hashes.
func tcp(t *testing.T, a, b *testnet.NS, addr string) {
	var l net.Listener
	var err error
	b.Do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sum := make(chan [32]byte, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		h := sha256.New()
		io.Copy(h, c)
		sum <- [32]byte(h.Sum(nil))
	}()
	var c net.Conn
	a.Do(func() { c, err = net.DialTimeout("tcp", addr, 10*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, 4<<20)
	for i := range data {
		data[i] = byte(i * i >> 8)
	}
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write(data); err != nil {
		t.Fatal(err)
	}
	c.(*net.TCPConn).CloseWrite()
	select {
	case got := <-sum:
		if got != sha256.Sum256(data) {
			t.Error("other bytes arrived")
		}
	case <-time.After(30 * time.Second):
		t.Error("the transfer did not end")
	}
}

// udpSegments sends datagrams that the kernel is to cut itself (UDP_SEGMENT).
func udpSegments(t *testing.T, a, b *testnet.NS, addr string) {
	var in net.PacketConn
	var out net.Conn
	var err error
	b.Do(func() { in, err = net.ListenPacket("udp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	a.Do(func() { out, err = net.Dial("udp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	for _, size := range []struct{ segment, total int }{{1001, 20*1001 + 77}, {300, 1100}} {
		udpSend(t, out, in, size.segment, size.total)
	}
}

func udpSend(t *testing.T, out net.Conn, in net.PacketConn, segment, total int) {
	raw, err := out.(*net.UDPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_UDP, unix.UDP_SEGMENT, segment)
	})
	if err != nil {
		t.Skip("no UDP_SEGMENT: ", err)
	}
	data := make([]byte, total)
	for i := range data {
		data[i] = byte(i * 7 >> 3)
	}
	if _, err := out.Write(data); err != nil {
		t.Fatal(err)
	}
	in.SetDeadline(time.Now().Add(10 * time.Second))
	got := []byte{}
	for buf := make([]byte, 2000); len(got) < len(data); {
		n, _, err := in.ReadFrom(buf)
		if err != nil {
			t.Fatalf("%d of %d bytes arrived: %v", len(got), len(data), err)
		}
		got = append(got, buf[:n]...)
	}
	if !bytes.Equal(got, data) {
		t.Error("other bytes arrived")
	}
}
