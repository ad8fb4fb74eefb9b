package memif

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

// The test binary runs itself as the peer: MEMIF_CHILD is what to do, "echo" or "flood".
func TestMain(m *testing.M) {
	if what := os.Getenv("MEMIF_CHILD"); what != "" {
		if err := child(what); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// child runs until its standard input ends.
func child(what string) error {
	done := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(done)
	}()
	runtime.LockOSThread()
	if cpu := os.Getenv("MEMIF_CPU"); cpu != "" {
		pin(1)
	}
	pool, err := packet.NewPool("child", 4096)
	if err != nil {
		return err
	}
	p, err := Open(pmd.Config{Name: "child", Role: os.Getenv("MEMIF_ROLE"), Socket: os.Getenv("MEMIF_SOCKET")})
	if err != nil {
		return err
	}
	fmt.Println("ready")
	cache, q := pool.NewCache(), p.Queue(0)
	if err := q.Start(cache); err != nil {
		return err
	}
	var pkts [256]uint32
	for idle := 0; ; {
		n := q.Rx(pkts[:])
		if what == "flood" {
			cache.Free(pkts[:n])
			n = cache.Alloc(pkts[:128])
			for _, i := range pkts[:n] {
				m := packet.At(i)
				m.DataLen, m.PktLen = 64, 64
			}
		}
		k := q.Tx(pkts[:n])
		for k < n && what == "echo" && p.Link().Up { // echo loses nothing
			k += q.Tx(pkts[k:n])
		}
		cache.Free(pkts[k:n])
		if idle++; n > 0 && what == "echo" {
			idle = 0
		}
		if idle&0xff == 0xff {
			select {
			case <-done:
				q.Stop()
				cache.Close()
				if err := p.Close(); err != nil {
					return err
				}
				if pool.Free() != pool.Size() {
					return fmt.Errorf("child: %d buffers are missing", pool.Size()-pool.Free())
				}
				return nil
			default:
				runtime.Gosched()
			}
		}
	}
}

// pin ties the thread to a processor, for benchmarks.
func pin(cpu int) {
	var set unix.CPUSet
	set.Set(cpu % runtime.NumCPU())
	unix.SchedSetaffinity(0, &set)
}

// spawn starts a child and waits until its port is open. stop ends it and reports how it went.
func spawn(t testing.TB, what, role, path string, env ...string) (c *exec.Cmd, stop func() error) {
	t.Helper()
	c = exec.Command(os.Args[0])
	c.Env = append(append(os.Environ(), "MEMIF_CHILD="+what, "MEMIF_ROLE="+role, "MEMIF_SOCKET="+path), env...)
	c.Stderr = os.Stderr
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := false
	stop = func() error {
		if ended {
			return nil
		}
		ended = true
		in.Close()
		return c.Wait()
	}
	t.Cleanup(func() {
		if !ended {
			c.Process.Kill()
			stop()
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); strings.TrimSpace(line) != "ready" {
		t.Fatalf("child says %q, %v", line, err)
	}
	return c, stop
}

// TestTwoProcesses sends numbered packets to another process and back, kills it
// in the middle of traffic, and goes on with the next one.
func TestTwoProcesses(t *testing.T) {
	for _, role := range []string{"server", "client"} {
		t.Run(role, func(t *testing.T) {
			other := map[string]string{"server": "client", "client": "server"}[role]
			path := filepath.Join(t.TempDir(), "s")
			pool := newPool(t, 4096)
			p := open(t, pmd.Config{Role: role, Socket: path})
			e := start(t, p, pool)
			for round := range 3 {
				cmd, stop := spawn(t, "echo", other, path)
				wait(t, "link", up(p))
				e.q.Rx(nil)
				kill := round == 1
				e.echo(t, 20000, 5000, func(got int) {
					if kill && got > 5000 {
						kill = false
						cmd.Process.Kill()
					}
				}, round == 1)
				err := stop()
				if round != 1 && err != nil {
					t.Error(err)
				}
				wait(t, "link down", down(p))
				var rx [64]uint32
				for n := 1; n > 0; { // what was in the ring
					n = e.q.Rx(rx[:])
					e.cache.Free(rx[:n])
				}
			}
			if s := p.Stats(); s.RxBad != 0 || s.TxFailed != 0 {
				t.Errorf("%+v", s)
			}
		})
	}
}

// echo sends n numbered packets of many sizes, every fifth a chain, and wants them back in
// order, byte for byte behind the MAC addresses; where the peer dies it stops when the
// link is down.
func (e *end) echo(t *testing.T, n, longest int, progress func(got int), dies bool) {
	t.Helper()
	var rx, tx [64]uint32
	var want, have [maxFrame]byte
	sent, got := 0, 0
	frame := func(i int) []byte {
		b := want[:60+i*37%(longest-59)]
		for j := range b {
			b[j] = byte(i + j)
		}
		binary.BigEndian.PutUint64(b[len(b)-8:], uint64(i))
		return b
	}
	wait(t, fmt.Sprintf("%d echoes", n), func() bool {
		for range 1000 {
			k := e.q.Rx(rx[:])
			for _, i := range rx[:k] {
				b := frame(got)
				m := packet.At(i)
				if k := m.CopyOut(0, have[:]); k != len(b) || k != int(m.PktLen) || !bytes.Equal(b[12:], have[12:k]) {
					t.Fatalf("echo %d: got %d bytes %x, want %d bytes %x", got, k, have[12:k], len(b), b[12:])
				}
				got++
			}
			e.cache.Free(rx[:k])
			progress(got)
			room := min(n-sent, len(tx), 100-(sent-got))
			if room <= 0 {
				continue
			}
			k = 0
			for ; k < room; k++ {
				b := frame(sent + k)
				cut := min(len(b), packet.DataRoom)
				if (sent+k)%5 == 0 {
					cut = len(b) / 2
				}
				m := e.cache.Alloc1()
				copy(m.Append(min(cut, packet.DataRoom)), b)
				for b = b[m.DataLen:]; len(b) > 0; b = b[min(len(b), packet.DataRoom):] {
					s := e.cache.Alloc1()
					m.Last().SetNext(s)
					m.NbSegs++
					copy(m.Append(min(len(b), packet.DataRoom)), b)
				}
				tx[k] = m.Index()
			}
			j := e.q.Tx(tx[:k])
			sent += j
			e.cache.Free(tx[j:k])
		}
		return got == n || dies && !e.port.Link().Up
	})
	if dies && got == n {
		t.Log("the peer died too late to lose anything")
	}
}

// BenchmarkReceive counts packets of 64 bytes that another process sends as fast as it can, on
// another processor where there are two.
func BenchmarkReceive(b *testing.B) {
	for _, role := range []string{"server", "client"} {
		b.Run(role, func(b *testing.B) {
			other := map[string]string{"server": "client", "client": "server"}[role]
			path := filepath.Join(b.TempDir(), "s")
			pool := newPool(b, 4096)
			p := open(b, pmd.Config{Role: role, Socket: path})
			e := start(b, p, pool)
			_, stop := spawn(b, "flood", other, path, "MEMIF_CPU=1")
			wait(b, "link", up(p))
			runtime.LockOSThread()
			defer runtime.UnlockOSThread()
			var old unix.CPUSet
			unix.SchedGetaffinity(0, &old)
			pin(0)
			defer unix.SchedSetaffinity(0, &old)
			var rx [256]uint32
			e.q.Rx(nil)
			for b.Loop() {
				for n := 0; n == 0; {
					n = e.q.Rx(rx[:128])
					e.cache.Free(rx[:n])
				}
			}
			b.ReportMetric(float64(p.Stats().RxPackets)/b.Elapsed().Seconds()/1e6, "Mpps")
			b.ReportMetric(float64(p.Stats().RxPackets)/float64(b.N), "packets/burst")
			e.stop()
			if err := stop(); err != nil {
				b.Error(err)
			}
		})
	}
}

// BenchmarkCopy moves bursts through both ends on one processor: the cost of Tx and Rx together.
func BenchmarkCopy(b *testing.B) {
	for _, size := range []int{60, 64, 512, 1514} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "s")
			pool := newPool(b, 4096)
			s := start(b, open(b, pmd.Config{Role: "server", Socket: path}), pool)
			c := start(b, open(b, pmd.Config{Role: "client", Socket: path}), pool)
			wait(b, "links", func() bool { return s.port.Link().Up && c.port.Link().Up })
			var pkts, rx [128]uint32
			s.q.Rx(nil)
			for b.Loop() {
				n := c.cache.Alloc(pkts[:])
				for _, i := range pkts[:n] {
					m := packet.At(i)
					m.DataLen, m.PktLen = uint16(size), uint32(size)
				}
				c.q.Tx(pkts[:n])
				s.cache.Free(rx[:s.q.Rx(rx[:])])
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/128, "ns/packet")
		})
	}
}
