package pcap

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

// bench is a port with its pool and cache.
type bench struct {
	p     *Port
	q     pmd.Queue
	pool  *packet.Pool
	cache *packet.Cache
}

func start(t *testing.T, c pmd.Config) *bench {
	t.Helper()
	p, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{p: p, q: p.Queue(0)}
	if b.pool, err = packet.NewPool("pcap", 1024); err != nil {
		t.Fatal(err)
	}
	b.cache = b.pool.NewCache()
	if err := b.q.Start(b.cache); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		b.q.Stop()
		b.p.Close()
		b.cache.Close()
		if b.pool.Free() != b.pool.Size() {
			t.Errorf("leak: %d of %d buffers free", b.pool.Free(), b.pool.Size())
		}
		b.pool.Close()
	})
	return b
}

// send transmits frames, cut into segments of at most seg bytes, one by one, until all are taken.
func (b *bench) send(t *testing.T, seg int, fs ...[]byte) {
	t.Helper()
	for _, f := range fs {
		var head, tail *packet.Mbuf
		for rest := f; len(rest) > 0; {
			m := b.cache.Alloc1()
			k := min(len(rest), seg)
			copy(m.Append(k), rest)
			rest = rest[k:]
			if head == nil {
				head = m
			} else {
				tail.SetNext(m)
				head.NbSegs++
				head.PktLen += uint32(k)
			}
			tail = m
		}
		for end := time.Now().Add(20 * time.Second); b.q.Tx([]uint32{head.Index()}) == 0; {
			if time.Now().After(end) {
				t.Fatal("Tx refuses")
			}
			time.Sleep(time.Millisecond)
		}
	}
}

// receive takes up to n packets.
func (b *bench) receive(n int) (fs [][]byte) {
	pkts := make([]uint32, n)
	n = b.q.Rx(pkts)
	for _, i := range pkts[:n] {
		m := packet.At(i)
		f := make([]byte, m.PktLen)
		segs := 0
		for s := m; s != nil; s = s.NextSeg() {
			segs++
		}
		if m.CopyOut(0, f) != len(f) || segs != int(m.NbSegs) {
			f = nil
		}
		fs = append(fs, f)
	}
	b.cache.Free(pkts[:n])
	return fs
}

// What was recorded is replayed byte by byte, and gopacket reads the same.
func TestRoundTrip(t *testing.T) {
	file := filepath.Join(t.TempDir(), "out.pcapng")
	var want [][]byte
	for i := range 300 {
		want = append(want, frameOf(14+i*7, byte(i)))
	}
	want = append(want, frameOf(9014, 1), frameOf(1792, 2), frameOf(1793, 3), frameOf(65535, 4), frameOf(65534, 5))
	w := start(t, pmd.Config{Name: "w", Write: file, Ring: 1})
	for i, f := range want {
		w.send(t, []int{packet.DataRoom, 100, 1000}[i%3], f)
	}
	if err := w.p.Close(); err != nil {
		t.Fatal(err)
	}
	s := w.p.Stats()
	s.TxFull = 0 // the buffer is small here
	if s != (pmd.Stats{TxPackets: uint64(len(want))}) {
		t.Errorf("%+v", s)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	fs, times, err := oracle(b)
	if err != nil || !slices.EqualFunc(fs, want, bytes.Equal) {
		t.Errorf("gopacket reads %d of %d frames, %v", len(fs), len(want), err)
	}
	if !slices.IsSorted(times) {
		t.Error("times go back")
	}
	r := start(t, pmd.Config{Name: "r", Read: file, Rate: -1})
	var got [][]byte
	for _, n := range []int{1, 2, 100, 256, 256} {
		got = append(got, r.receive(n)...)
	}
	if !slices.EqualFunc(got, want, bytes.Equal) {
		t.Errorf("replayed %d of %d frames, or others", len(got), len(want))
	}
	if s := r.p.Stats(); s != (pmd.Stats{RxPackets: uint64(len(want))}) {
		t.Errorf("%+v", s)
	}
}

func writeFile(t *testing.T, b []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "in.pcap")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestLoop(t *testing.T) {
	fs := [][]byte{frameOf(60, 1), frameOf(61, 2), frameOf(62, 3)}
	file := writeFile(t, classic(le, 0xa1b2c3d4, 1, fs...))
	for loop, laps := range map[int]int{0: 1, 1: 1, 3: 3, -1: 7} {
		b := start(t, pmd.Config{Name: "r", Read: file, Rate: -1, Loop: loop})
		got := b.receive(20)
		if len(got) < 20 {
			got = append(got, b.receive(20)...)
		}
		var want [][]byte
		for range laps {
			want = append(want, fs...)
		}
		if loop == -1 {
			want = want[:20]
		}
		if !slices.EqualFunc(got, want, bytes.Equal) {
			t.Errorf("loop %d gives %d packets", loop, len(got))
		}
	}
}

// Packets are due at the rate, or as recorded, over laps.
func TestSchedule(t *testing.T) {
	file := writeFile(t, classic(le, 0xa1b2c3d4, 1, frameOf(60, 1), frameOf(60, 2), frameOf(60, 3))) // a second apart
	hz := float64(clock.Hz())
	for _, c := range []struct {
		rate float64
		want []float64 // seconds
	}{
		{4, []float64{0, 0.25, 0.5, 0.75, 1, 1.25}},
		{0, []float64{0, 1, 2, 3, 4, 5}},
	} {
		b := start(t, pmd.Config{Name: "r", Read: file, Rate: c.rate, Loop: 2})
		q := &b.p.q
		for i, want := range c.want {
			if !q.more() {
				t.Fatalf("rate %v: ends before packet %d", c.rate, i)
			}
			if got := q.due() / hz; got < want-1e-6 || got > want+1e-6 {
				t.Errorf("rate %v: packet %d is due at %v s, want %v", c.rate, i, got, want)
			}
			q.pos++
		}
		if q.more() {
			t.Errorf("rate %v: does not end", c.rate)
		}
	}
}

// Sleeping on the descriptor until the next packet is due.
func TestWait(t *testing.T) {
	b := start(t, pmd.Config{Name: "r", Read: writeFile(t, classic(le, 0xa1b2c3d4, 1, frameOf(60, 1), frameOf(60, 2))), Rate: 100})
	if b.q.Arm() {
		t.Error("asleep with a packet due")
	}
	got := len(b.receive(10))
	for end := time.Now().Add(10 * time.Second); got < 2 && time.Now().Before(end); got += len(b.receive(10)) {
		if b.q.Arm() {
			unix.Poll([]unix.PollFd{{Fd: int32(b.q.Fd()), Events: unix.POLLIN}}, 10000)
		}
	}
	if got != 2 {
		t.Errorf("%d packets", got)
	}
	if !b.q.Arm() {
		t.Error("work after the end")
	}
	if n, _ := unix.Poll([]unix.PollFd{{Fd: int32(b.q.Fd()), Events: unix.POLLIN}}, 0); n != 0 {
		t.Error("readable after the end")
	}
}

func TestNotes(t *testing.T) {
	f := classic(le, 0xa1b2c3d4, 1, frameOf(60, 1), frameOf(60, 1), frameOf(13, 2), frameOf(70000, 3), frameOf(60, 4))
	f = f[:len(f)-1]
	b := start(t, pmd.Config{Name: "r", Read: writeFile(t, f), Rate: -1})
	if n := len(b.receive(10)); n != 2 {
		t.Errorf("%d packets", n)
	}
	if s := b.p.Stats(); s.RxBad != 2 || s.RxPackets != 2 {
		t.Errorf("%+v", s)
	}
	if why := strings.Join(b.p.Why(), "\n"); !strings.Contains(why, "ends inside packet 5") || !strings.Contains(why, "2 packets are left out") {
		t.Error(why)
	}
	if l := b.p.Link(); l.MAC != pmd.MAC(frameOf(60, 1)[:6]) || !l.Up {
		t.Errorf("%+v", l)
	}
}

// The pool runs empty: the packet comes later.
func TestNoBuffers(t *testing.T) {
	b := start(t, pmd.Config{Name: "r", Read: writeFile(t, classic(le, 0xa1b2c3d4, 1, frameOf(60, 1), frameOf(9000, 2))), Rate: -1})
	all := make([]uint32, 1024)
	n := b.cache.Alloc(all)
	b.cache.Free(all[:3])
	var pkts [4]uint32
	if k := b.q.Rx(pkts[:]); k != 1 {
		t.Errorf("%d packets out of 3 buffers", k)
	}
	b.cache.Free(pkts[:1])
	b.cache.Free(all[3:n])
	if fs := b.receive(4); len(fs) != 1 || !bytes.Equal(fs[0], frameOf(9000, 2)) {
		t.Error("the packet did not come when there were buffers")
	}
}

// slow is a file that lets nothing through until open is closed, and then fails, or not.
type slow struct {
	bytes.Buffer
	open chan struct{}
	err  error
	n    int
}

func (s *slow) Write(b []byte) (int, error) {
	if s.n++; s.n > 1 {
		<-s.open
		if s.err != nil {
			return 0, s.err
		}
	}
	return s.Buffer.Write(b)
}

func (s *slow) Close() error { return nil }

// recordTo puts a recorder on a file of the test's under a port.
func recordTo(t *testing.T, f *slow) *bench {
	b := start(t, pmd.Config{Name: "w", Write: filepath.Join(t.TempDir(), "x")})
	b.p.rec.close()
	rec, err := newRecorderTo(f, "w", 0)
	if err != nil {
		t.Fatal(err)
	}
	b.p.rec, b.p.q.rec = rec, rec
	return b
}

func TestFull(t *testing.T) {
	for _, fail := range []error{nil, errors.New("disk on fire")} {
		f := &slow{open: make(chan struct{}), err: fail}
		b := recordTo(t, f)
		pkts := make([]uint32, 256)
		taken, refused := 0, 0
		for refused == 0 {
			b.cache.Alloc(pkts)
			for _, i := range pkts {
				copy(packet.At(i).Append(1000), frameOf(1000, 1))
			}
			n := b.q.Tx(pkts)
			b.cache.Free(pkts[n:])
			taken += n
			refused += len(pkts) - n
		}
		if s := b.p.Stats(); s.TxFull != uint64(refused) || s.TxPackets != 0 {
			t.Errorf("%+v, refused %d", s, refused)
		}
		close(f.open)
		err := b.p.Close()
		s := b.p.Stats()
		if fail == nil {
			fs, _, e := oracle(f.Bytes())
			if err != nil || e != nil || len(fs) != taken || s.TxPackets != uint64(taken) {
				t.Errorf("%d of %d packets were written: %v, %v, %+v", len(fs), taken, err, e, s)
			}
			continue
		}
		if !errors.Is(err, fail) || s.TxFailed != uint64(taken) || s.TxPackets != 0 {
			t.Errorf("after an error: %v, %+v, taken %d", err, s, taken)
		}
		if b.p.Link().Up || !strings.Contains(strings.Join(b.p.Why(), ""), "on fire") {
			t.Errorf("%+v %v", b.p.Link(), b.p.Why())
		}
	}
}

func TestSink(t *testing.T) {
	b := start(t, pmd.Config{Name: "r", Read: writeFile(t, classic(le, 0xa1b2c3d4, 1, frameOf(60, 1)))})
	b.send(t, 100, frameOf(500, 1))
	if s := b.p.Stats(); s != (pmd.Stats{TxPackets: 1}) {
		t.Errorf("%+v", s)
	}
}

func TestOpenErrors(t *testing.T) {
	dir := t.TempDir()
	file := writeFile(t, classic(le, 0xa1b2c3d4, 1, frameOf(60, 1)))
	junk := filepath.Join(dir, "junk")
	os.WriteFile(junk, []byte("this is not a capture"), 0o600)
	for _, c := range []struct {
		c    pmd.Config
		want string
	}{
		{pmd.Config{}, "must name a file"},
		{pmd.Config{Read: filepath.Join(dir, "none")}, "none: no such file"},
		{pmd.Config{Read: junk}, "junk: not a pcap"},
		{pmd.Config{Write: filepath.Join(dir, "none", "x")}, "no such file"},
		{pmd.Config{Read: file, Write: file}, "same file"},
		{pmd.Config{Write: file, Rate: 1}, "without a file to read"},
		{pmd.Config{Read: file, Rate: -2}, "rate"},
		{pmd.Config{Read: file, Loop: -2}, "loop"},
		{pmd.Config{Read: file, Queues: 2}, "queues"},
		{pmd.Config{Read: file, Socket: "s"}, "socket"},
		{pmd.Config{Read: file, Mode: "native"}, "mode"},
	} {
		p, err := Open(c.c)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.c, err, c.want)
		}
		if p != nil {
			p.Close()
		}
	}
}

func TestNoAllocs(t *testing.T) {
	dir := t.TempDir()
	b := start(t, pmd.Config{Name: "x", Read: writeFile(t, classic(le, 0xa1b2c3d4, 1, frameOf(60, 1), frameOf(4000, 2))), Rate: -1, Loop: -1,
		Write: filepath.Join(dir, "out")})
	var pkts [32]uint32
	if n := testing.AllocsPerRun(100, func() {
		n := b.q.Rx(pkts[:])
		k := b.q.Tx(pkts[:n])
		b.cache.Free(pkts[k:n])
	}); n >= 1 { // the writing goroutine allocates now and then
		t.Errorf("%v allocations a burst", n)
	}
}
