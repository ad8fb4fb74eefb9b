package afxdp

import (
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pmd"
)

// transit is a frame from the peer to beyond the port, of n bytes, that carries a number.
func (r *rig) transit(n, serial int) []byte {
	d := bytes.Repeat([]byte{byte(serial)}, n-14-20-8)
	binary.BigEndian.PutUint32(d, uint32(serial))
	l := r.Link()
	return append(eth(l.MAC[:], r.peer.MAC, 0x0800), ip4("198.51.100.9", 17, udp(7, 9, d))...)
}

func (r *rig) outgoing(n, serial int) []byte {
	b := r.transit(n, serial)
	copy(b, r.peer.MAC)
	copy(b[6:], bytes.Repeat([]byte{2}, 6))
	return b
}

// TestJumbo: chains both ways at MTU 9000, and around every segment's end.
func TestJumbo(t *testing.T) {
	r := newRig(t, pmd.Config{}, "mtu", "9000")
	defer r.end()
	if c := r.Caps(); c.MaxFrame != 9018 || c.Segments != copySegs {
		t.Errorf("%+v", c)
	}
	for i, n := range []int{60, 1514, frameRoom - 1, frameRoom, frameRoom + 1, 2 * frameRoom, 2*frameRoom + 1, 4096, 5*frameRoom - 1, 9014} {
		f := r.transit(n, i)
		if err := r.peer.Send(f); err != nil {
			t.Fatal(err)
		}
		if r.recv(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("a frame of %d bytes did not come: %+v", n, r.Stats())
		}
		f = r.outgoing(n, i)
		r.send(f, packet.DataRoom)
		if r.peer.RecvMatch(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("a frame of %d bytes was not sent: %+v", n, r.Stats())
		}
	}
	// 9000 bytes in segments of 1 to 300: more than the kernel takes in one chain.
	for _, seg := range []int{300, 536, 600} {
		f := r.outgoing(9000, seg)
		r.send(f, seg)
		if r.peer.RecvMatch(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("a frame in segments of %d bytes was not sent: %+v", seg, r.Stats())
		}
	}
	if s := r.Stats(); s.TxFailed+s.RxBad+s.RxNoBuffer+s.RxRingFull != 0 {
		t.Errorf("%+v", s)
	}
}

// TestOdd: packets that are not plain buffers of the pool.
func TestOdd(t *testing.T) {
	r := newRig(t, pmd.Config{})
	defer r.end()
	c, q := r.caches[0], r.queues[0]
	sent := func(what string, f []byte) {
		t.Helper()
		if r.peer.RecvMatch(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("%s: not sent: %+v", what, r.Stats())
		}
	}
	tx := func(m *packet.Mbuf) {
		t.Helper()
		if q.Tx([]uint32{m.Index()}) != 1 {
			t.Fatal("Tx took nothing")
		}
	}

	f := r.outgoing(200, 1)
	m := chain(t, c, f, 50)
	// Empty segments in front, between and behind.
	for _, at := range []*packet.Mbuf{m, m.NextSeg(), m.Last()} {
		e := c.Alloc1()
		e.SetNext(at.NextSeg())
		at.SetNext(e)
		m.NbSegs++
	}
	e := c.Alloc1()
	e.SetNext(m)
	e.PktLen, e.NbSegs = m.PktLen, m.NbSegs+1
	tx(e)
	sent("empty segments", f)

	// The clone goes first, then the original while the clone may be on its way.
	f = r.outgoing(300, 2)
	m = chain(t, c, f, 120)
	for range 3 {
		tx(c.Clone(m))
		sent("clone", f)
	}
	part := c.CloneRange(m, 0, 100)
	tx(part)
	sent("part", f[:100])
	tx(m)
	sent("original", f)

	// A header with two owners cannot be taken apart.
	m = c.Alloc1()
	copy(m.Append(len(f)), f)
	k := c.Clone(m)
	kk := c.Clone(k)
	c.Free1(m)
	tx(k)
	sent("clone of a freed packet", f)
	tx(kk)
	sent("clone of a clone", f)

	other := newPool(t, 128)
	oc := other.NewCache()
	f = r.outgoing(1000, 3)
	tx(chain(t, oc, f, 400))
	sent("another pool's", f)
	oc.Close()
	if other.Free() != other.Size() {
		t.Errorf("other pool: %d of %d buffers free", other.Free(), other.Size())
	}
	other.Close()

	before := r.Stats()
	tx(c.Alloc1()) // no bytes at all
	if s := r.Stats(); s.TxFailed != before.TxFailed+1 || s.TxPackets != before.TxPackets {
		t.Errorf("an empty packet: %+v, before %+v", s, before)
	}
}

// TestBorders: buffers across borders that the device cannot cross, as in zero-copy mode.
func TestBorders(t *testing.T) {
	r := newRig(t, pmd.Config{})
	defer r.end()
	q := r.queues[0]
	q.Stop()
	q.shift = 16
	if err := q.Start(r.caches[0]); err != nil {
		t.Fatal(err)
	}
	for i := range 600 {
		f := r.transit(1000+i%400, i)
		r.peer.Send(f)
		if r.recv(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Fatalf("frame %d did not come", i)
		}
		f = r.outgoing(1000+i%400, i)
		r.send(f, 1500)
		if r.peer.RecvMatch(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Fatalf("frame %d was not sent", i)
		}
	}
	if len(q.parked) == 0 {
		t.Error("no buffer crossed a border: the test tests nothing")
	}
	for k, s := range q.state {
		if at := uint64(k) * packet.Stride; s == inRx && (at^(at+chunkSize-1))>>q.shift != 0 {
			t.Errorf("buffer %d crosses a border and is with the kernel", k)
		}
	}
}

// TestNoChains: a kernel without XDP_USE_SG.
func TestNoChains(t *testing.T) {
	r := newRig(t, pmd.Config{}, "mtu", "3000")
	defer r.end()
	q := r.queues[0]
	q.Stop()
	r.sg, q.segs = false, 1
	if err := q.Start(r.caches[0]); err != nil {
		t.Fatal(err)
	}
	if c := r.Caps(); c.MaxFrame != frameRoom || c.Segments != 1 {
		t.Errorf("%+v", c)
	}
	for i, n := range []int{60, 1514, frameRoom} {
		f := r.transit(n, i)
		r.peer.Send(f)
		if r.recv(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("a frame of %d bytes did not come: %+v", n, r.Stats())
		}
		f = r.outgoing(n, i)
		r.send(f, 100) // longer chains than it has
		if r.peer.RecvMatch(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("a frame of %d bytes was not sent: %+v", n, r.Stats())
		}
	}
	before := r.Stats()
	r.peer.Send(r.transit(frameRoom+1, 9))
	r.send(r.outgoing(packet.DataRoom+1, 9), 1000)
	for end := time.Now().Add(3 * time.Second); r.Stats().RxNoBuffer == before.RxNoBuffer && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	s := r.Stats()
	if s.RxNoBuffer != before.RxNoBuffer+1 || s.TxFailed != before.TxFailed+1 || s.TxPackets != before.TxPackets {
		t.Errorf("too long packets: %+v, before %+v", s, before)
	}
	q.Stop()
	if n := q.Rx(make([]uint32, 8)); n != 0 {
		t.Errorf("a stopped queue receives %d", n)
	}
	if n := q.Tx(make([]uint32, 8)); n != 0 || !q.Arm() || q.Fd() != -1 {
		t.Errorf("a stopped queue sends %d, has descriptor %d", n, q.Fd())
	}
}

// TestGone: the interface is removed while packets move.
func TestGone(t *testing.T) {
	r := newRig(t, pmd.Config{})
	defer r.end()
	var pk [32]uint32
	burst := func() int {
		for i := range pk {
			pk[i] = chain(t, r.caches[0], r.outgoing(100, i), 100).Index()
		}
		n := r.queues[0].Tx(pk[:])
		r.caches[0].Free(pk[n:])
		r.recv(0, func([]byte) bool { return false })
		return n
	}
	f := r.transit(100, 1)
	for range 20 {
		r.peer.Send(f)
		burst()
	}
	r.b.Run(t, "ip", "link", "del", "b0")
	n := 1
	for end := time.Now().Add(5 * time.Second); n != 0 && time.Now().Before(end); {
		n = burst()
	}
	full := r.Stats().TxFull
	if n != 0 || burst() != 0 {
		t.Error("Tx still takes packets")
	}
	if now := r.Stats().TxFull; now != full+uint64(len(pk)) {
		t.Errorf("TxFull went from %d to %d for %d packets", full, now, len(pk))
	}
	if l := r.Link(); !l.Gone || l.Up {
		t.Errorf("link is %+v", l)
	}
	r.queues[0].Arm()
	r.Caps()
	if err := r.SetLocal(nil); err != nil {
		t.Error(err)
	}
}

// TestChanges: MTU, MAC and link state change while the port runs.
func TestChanges(t *testing.T) {
	r := newRig(t, pmd.Config{})
	defer r.end()
	comes := func(what string, n int) {
		t.Helper()
		f := r.transit(n, n)
		r.peer.Send(f)
		if r.recv(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("%s: a frame of %d bytes did not come: %+v", what, n, r.Stats())
		}
		f = r.outgoing(n, n)
		r.send(f, 1500)
		if r.peer.RecvMatch(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("%s: a frame of %d bytes was not sent: %+v", what, n, r.Stats())
		}
	}
	comes("at first", 1000)
	r.a.Run(t, "ip", "link", "set", "a0", "mtu", "4000")
	r.b.Run(t, "ip", "link", "set", "b0", "mtu", "4000")
	if c := r.Caps(); c.MaxFrame != 4018 || r.Link().MTU != 4000 {
		t.Errorf("after the MTU changed: %+v, %+v", c, r.Link())
	}
	comes("new MTU", 4014)
	r.a.Run(t, "ip", "link", "set", "a0", "address", "02:00:00:00:00:42")
	if m := r.Link().MAC; m != (pmd.MAC{2, 5: 0x42}) {
		t.Errorf("MAC is %s", m)
	}
	comes("new MAC", 1000)
	r.a.Run(t, "ip", "link", "set", "a0", "down")
	if l := r.Link(); l.Up || l.Gone {
		t.Errorf("link is %+v", l)
	}
	r.queues[0].Arm()
	r.a.Run(t, "ip", "link", "set", "a0", "up")
	comes("down and up", 1000)
}

func describe(t *testing.T, ns *testnet.NS) string {
	t.Helper()
	s := ns.Run(t, "ip", "-d", "link", "show", "a0")
	for _, cmd := range [][]string{{"ethtool", "-k", "a0"}, {"ethtool", "-l", "a0"}} {
		out, _ := ns.Command(cmd[0], cmd[1:]...).CombinedOutput()
		s += string(out)
	}
	return s
}

// TestReopen: Close leaves the interface as it was, and it can be opened at once again.
func TestReopen(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "a0", b, "b0", "mtu", "3000", "numrxqueues", "2", "numtxqueues", "2")
	pool := newPool(t, 4096)
	before := describe(t, a)
	for i := range 3 {
		c := pmd.Config{Name: "a0", Pool: pool, MTU: 2000, MAC: pmd.MAC{2, 0, 0, 0, 0, 7}, Queues: 1 + i%2}
		p := openIn(t, a, c)
		if l := p.Link(); l.MTU != 2000 || l.MAC != c.MAC || !l.Up {
			t.Errorf("link is %+v", l)
		}
		if n := p.Caps().Queues; n != c.Queues {
			t.Errorf("%d queues, want %d", n, c.Queues)
		}
		if s := describe(t, a); !strings.Contains(s, "xdp") {
			t.Error("no XDP program:\n" + s)
		}
		cache := pool.NewCache()
		for i := range c.Queues {
			if err := p.Queue(i).Start(cache); err != nil {
				t.Fatal(err)
			}
			if err := p.Queue(i).Start(cache); err == nil {
				t.Error("started twice")
			}
		}
		if err := p.Close(); err == nil {
			t.Error("closed with running queues")
		}
		for i := range c.Queues {
			p.Queue(i).Stop()
			p.Queue(i).Stop()
		}
		cache.Close()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if err := p.Queue(0).Start(cache); err == nil {
			t.Error("started after Close")
		}
		p.Stats()
		if l := p.Link(); l.Up {
			t.Errorf("link of a closed port is %+v", l)
		}
		if s := describe(t, a); s != before {
			t.Errorf("the interface is not as before:\n%s\nbefore:\n%s", s, before)
		}
	}
	if pool.Free() != pool.Size() {
		t.Errorf("%d of %d buffers free", pool.Free(), pool.Size())
	}
}

// TestForeign: another's XDP program stays.
func TestForeign(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "a0", b, "b0")
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R0, xdpPass), asm.Return(),
	}})
	if err != nil {
		t.Skip(err)
	}
	defer prog.Close()
	a.Do(func() {
		i, err := net.InterfaceByName("a0")
		if err != nil {
			t.Fatal(err)
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: i.Index})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { l.Close() })
	})
	before := describe(t, a)
	_, err = tryOpen(a, pmd.Config{Name: "a0", Pool: newPool(t, 1024)})
	if err == nil || !strings.Contains(err.Error(), "another XDP program") {
		t.Errorf("got %v", err)
	}
	if s := describe(t, a); s != before {
		t.Errorf("changed:\n%s\nbefore:\n%s", s, before)
	}
}

// TestKilled: the program leaves with a process that had no time to clean up. The test runs itself as that process.
func TestKilled(t *testing.T) {
	if os.Getenv("AFXDP_HOLD") != "" {
		p, err := Open(pmd.Config{Name: "a0", Pool: newPool(t, 1024)})
		if err != nil {
			t.Fatal(err)
		}
		os.Stdout.WriteString("holding " + p.Caps().Mode + "\n")
		time.Sleep(time.Minute)
		return
	}
	a, b := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "a0", b, "b0")
	before := describe(t, a)
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilled$")
	cmd.Env = append(os.Environ(), "AFXDP_HOLD=1")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	a.Do(func() { err = cmd.Start() }) // a child is in its parent thread's namespace
	if err != nil {
		t.Fatal(err)
	}
	var line [7]byte
	out.Read(line[:])
	held := describe(t, a)
	cmd.Process.Kill()
	cmd.Wait()
	if string(line[:]) != "holding" {
		t.Skip("the other process could not open the port")
	}
	if !strings.Contains(held, "xdp") {
		t.Error("no program while the port was open:\n" + held)
	}
	var after string
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if after = describe(t, a); after == before {
			return
		}
	}
	t.Errorf("after the kill:\n%s\nbefore:\n%s", after, before)
}

// TestForward: one pool, two ports; what came in by one goes out by the other, from the same buffer.
func TestForward(t *testing.T) {
	pool := newPool(t, 4096)
	r, pa, pb := testnet.New(t), testnet.New(t), testnet.New(t)
	testnet.Veth(t, r, "r0", pa, "a0", "mtu", "9000")
	testnet.Veth(t, r, "r1", pb, "b0", "mtu", "9000")
	src, dst := pa.Raw(t, "a0"), pb.Raw(t, "b0")
	cache := pool.NewCache()
	var qs [2]pmd.Queue
	var ports [2]*Port
	for i, name := range []string{"r0", "r1"} {
		ports[i] = openIn(t, r, pmd.Config{Name: name, Pool: pool})
		qs[i] = ports[i].Queue(0)
		if err := qs[i].Start(cache); err != nil {
			t.Fatal(err)
		}
	}
	const count = 3000
	mac := ports[0].Link().MAC
	frame := func(i int) []byte {
		d := bytes.Repeat([]byte{byte(i)}, 20+i*37%1400)
		if i%10 == 0 {
			d = bytes.Repeat([]byte{byte(i)}, 8000-i%7)
		}
		binary.BigEndian.PutUint32(d, uint32(i))
		return append(eth(mac[:], src.MAC, 0x0800), ip4("198.51.100.9", 17, udp(7, 9, d))...)
	}
	seen := 0
	var pk [64]uint32
	pump := func() {
		n := qs[0].Rx(pk[:])
		sent := 0
		for sent < n {
			sent += qs[1].Tx(pk[sent:n])
		}
		n = qs[1].Rx(pk[:]) // what the far end says by itself
		cache.Free(pk[:n])
	}
	check := func(wait time.Duration) {
		for {
			b := dst.RecvMatch(wait, func(b []byte) bool { return b[12] == 8 && b[13] == 0 && b[23] == 17 })
			if b == nil {
				return
			}
			i := int(binary.BigEndian.Uint32(b[42:]))
			if i != seen || !bytes.Equal(b, frame(i)) {
				t.Fatalf("got frame %d of %d bytes, want %d", i, len(b), seen)
			}
			seen++
		}
	}
	for i := range count {
		if err := src.Send(frame(i)); err != nil {
			t.Fatal(err)
		}
		if i%16 == 15 {
			pump()
			check(0)
		}
	}
	for end := time.Now().Add(5 * time.Second); seen < count && time.Now().Before(end); {
		pump()
		check(time.Millisecond)
	}
	if seen != count {
		t.Errorf("%d of %d frames arrived: %+v, %+v", seen, count, ports[0].Stats(), ports[1].Stats())
	}
	for i := range qs {
		qs[i].Stop()
		ports[i].Close()
	}
	if s := ports[0].Stats(); s.RxPackets < count {
		t.Errorf("statistics after Close: %+v", s)
	}
	cache.Close()
	if pool.Free() != pool.Size() {
		t.Errorf("%d of %d buffers free", pool.Free(), pool.Size())
	}
}

// TestQueues: every queue has its socket.
func TestQueues(t *testing.T) {
	r := newRig(t, pmd.Config{}, "numrxqueues", "2", "numtxqueues", "2")
	defer r.end()
	if len(r.queues) != 2 {
		t.Fatalf("%d queues, want 2", len(r.queues))
	}
	for i, q := range r.queues {
		f := r.outgoing(100, i)
		m := chain(t, r.caches[i], f, 100)
		if q.Tx([]uint32{m.Index()}) != 1 {
			t.Fatal("Tx took nothing")
		}
		if r.peer.RecvMatch(3*time.Second, func(b []byte) bool { return bytes.Equal(b, f) }) == nil {
			t.Errorf("queue %d sends nothing", i)
		}
		// Rx by queue: the peer's tx queue i ends in our rx queue i.
		for range 50 {
			r.peer.Send(r.transit(100, i))
		}
	}
	got := 0
	for got < 100 && r.recv(3*time.Second, func(b []byte) bool { return b[12] == 8 }) != nil {
		got = int(r.queues[0].t.RxPackets + r.queues[1].t.RxPackets)
	}
	if got < 100 {
		t.Errorf("%d of 100 frames came", got)
	}
}

// TestTags: tags are taken back from hardware that strips them, until Close.
func TestTags(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "a0", b, "b0")
	before := describe(t, a)
	if !strings.Contains(before, "rx-vlan-offload: on") {
		t.Skip("the pair does not strip tags")
	}
	var d device
	a.Do(func() {
		if err := d.open("a0"); err != nil {
			t.Fatal(err)
		}
	})
	d.driver = "hardware"
	if err := d.configure(pmd.Config{}); err != nil {
		t.Fatal(err)
	}
	if s := describe(t, a); !strings.Contains(s, "rx-vlan-offload: off") {
		t.Errorf("%s\n%q", s, d.notes)
	}
	if err := d.close(); err != nil {
		t.Error(err)
	}
	if s := describe(t, a); s != before {
		t.Errorf("not as before:\n%s\nbefore:\n%s", s, before)
	}
}

func TestConfig(t *testing.T) {
	a, b := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "a0", b, "b0")
	pool := newPool(t, 1024)
	a.Run(t, "ip", "link", "add", "down0", "type", "veth", "peer", "name", "down1")
	for name, c := range map[string]struct {
		c    pmd.Config
		want string
	}{
		"pool":  {pmd.Config{Name: "a0"}, "no pool"},
		"memif": {pmd.Config{Name: "a0", Pool: pool, Socket: "/x"}, "memif"},
		"pcap":  {pmd.Config{Name: "a0", Pool: pool, Rate: 1}, "pcap"},
		"mode":  {pmd.Config{Name: "a0", Pool: pool, Mode: "fast"}, "zero-copy, native and generic"},
		"ring":  {pmd.Config{Name: "a0", Pool: pool, Ring: 100}, "power of two"},
		"name":  {pmd.Config{Name: "zz0", Pool: pool}, "zz0"},
		"down":  {pmd.Config{Name: "down0", Pool: pool}, "ip link set down0 up"},
		"mtu":   {pmd.Config{Name: "a0", Pool: pool, MTU: 1 << 20}, "MTU"},
		"queue": {pmd.Config{Name: "a0", Pool: pool, Queues: 99}, "99 queues"},
		"zero":  {pmd.Config{Name: "a0", Pool: pool, Mode: "zero-copy"}, "zero-copy"},
	} {
		p, err := tryOpen(a, c.c)
		if err == nil {
			p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want something with %q", name, err, c.want)
		}
	}
	if pool.Free() != pool.Size() {
		t.Errorf("%d of %d buffers free", pool.Free(), pool.Size())
	}
}
