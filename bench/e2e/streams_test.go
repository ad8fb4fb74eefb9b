package e2e

import (
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"millrace/internal/testnet"
)

// streams are UDP flows of numbered packets to one destination that several hosts have, which count what they get.
type streams struct {
	t     *testing.T
	n     int
	sent  []uint32 // by flow
	at    []*sink
	conns []net.Conn
	end   chan struct{}
	wg    sync.WaitGroup
}

// sink is what one host got.
type sink struct {
	conn net.PacketConn
	mu   sync.Mutex
	run  uint64
	got  [][]bool // by flow and number
	last []int64  // by flow: largest number so far, -1 for none
	late int      // packets that came behind one sent later
	dup  int
	all  atomic.Int64
}

const streamsPort = "4789"

// newStreams starts n flows from a host to an address, one packet each interval in turn over the flows.
func newStreams(t *testing.T, from *testnet.NS, to string, at []*testnet.NS, n int, every time.Duration) *streams {
	t.Helper()
	f := &streams{t: t, n: n, sent: make([]uint32, n), end: make(chan struct{})}
	network := "udp4" // so that streams of both families can run at a time
	if netip.MustParseAddr(to).Is6() {
		network = "udp6"
	}
	run := rand.Uint64() // tells packets of another run that come late
	for _, h := range at {
		s := &sink{run: run, got: make([][]bool, n), last: make([]int64, n)}
		for i := range s.last {
			s.last[i] = -1
		}
		var err error
		h.Do(func() { s.conn, err = net.ListenPacket(network, ":"+streamsPort) })
		if err != nil {
			t.Fatal(err)
		}
		s.conn.(*net.UDPConn).SetReadBuffer(8 << 20)
		f.at = append(f.at, s)
		f.wg.Go(s.receive)
	}
	for range n {
		var c net.Conn
		var err error
		from.Do(func() { c, err = net.Dial("udp", net.JoinHostPort(to, streamsPort)) })
		if err != nil {
			t.Fatal(err)
		}
		f.conns = append(f.conns, c)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := binary.BigEndian.AppendUint64(make([]byte, 8, 16), run)
		next := time.Now()
		for i := 0; ; i++ {
			select {
			case <-f.end:
				return
			default:
			}
			k := i % n
			binary.BigEndian.PutUint32(b, uint32(k))
			binary.BigEndian.PutUint32(b[4:], f.sent[k])
			if _, err := f.conns[k].Write(b); err == nil { // an ICMP error that came back is one that was not sent
				f.sent[k]++
			}
			next = next.Add(every)
			if d := time.Until(next); d > 0 {
				time.Sleep(d)
			}
		}
	}()
	t.Cleanup(func() {
		f.halt()
		<-done
		for _, c := range f.conns {
			c.Close()
		}
	})
	f.wg.Go(func() { <-done })
	return f
}

func (s *sink) receive() {
	b := make([]byte, 64)
	for {
		n, _, err := s.conn.ReadFrom(b)
		if err != nil {
			return
		}
		if n < 16 || binary.BigEndian.Uint64(b[8:]) != s.run {
			continue
		}
		k, seq := binary.BigEndian.Uint32(b), int64(binary.BigEndian.Uint32(b[4:]))
		s.mu.Lock()
		for int64(len(s.got[k])) <= seq {
			s.got[k] = append(s.got[k], false)
		}
		if s.got[k][seq] {
			s.dup++
		}
		s.got[k][seq] = true
		if seq < s.last[k] {
			s.late++
		}
		s.last[k] = max(s.last[k], seq)
		s.mu.Unlock()
		s.all.Add(1)
	}
}

// halt stops sending, once, and receiving a moment later.
func (f *streams) halt() {
	select {
	case <-f.end:
		return
	default:
	}
	close(f.end)
	// Until nothing comes any more: a busy machine may hold packets for a while.
	for last, end := int64(-1), time.Now().Add(10*time.Second); time.Now().Before(end); {
		n := int64(0)
		for _, s := range f.at {
			n += s.all.Load()
		}
		if n == last {
			break
		}
		last = n
		time.Sleep(500 * time.Millisecond)
	}
	for _, s := range f.at {
		s.conn.Close()
	}
	f.wg.Wait()
}

// missed is how many packets ports did not take, or did not get rid of: a busy machine's.
func (r *router) missed(ports ...string) (n uint64) {
	r.t.Helper()
	for _, p := range ports {
		x := r.port(p)
		n += x.RxNoBuffer + x.RxRingFull + x.RxBad + x.TxFailed
	}
	return n
}

// tally is what became of all packets.
type tally struct {
	sent, lost, late, dup int
	// first and last are, by flow, the host that got its first and its last packet, -1 for none; others counts
	// the flows of which a third host got some.
	first, last []int
	used        []int // flows of which each host got packets
}

// stop ends the flows and says what became of them.
func (f *streams) stop() tally {
	f.halt()
	r := tally{used: make([]int, len(f.at)), first: make([]int, f.n), last: make([]int, f.n)}
	for k := range f.n {
		r.first[k], r.last[k] = -1, -1
		for seq := range int(f.sent[k]) {
			r.sent++
			got := false
			for h, s := range f.at {
				if seq < len(s.got[k]) && s.got[k][seq] {
					got = true
					if r.first[k] < 0 {
						r.first[k] = h
					}
					r.last[k] = h
				}
			}
			if !got {
				r.lost++
			}
		}
		for h, s := range f.at {
			if s.last[k] >= 0 {
				r.used[h]++
			}
		}
	}
	for _, s := range f.at {
		r.late += s.late
		r.dup += s.dup
	}
	return r
}
