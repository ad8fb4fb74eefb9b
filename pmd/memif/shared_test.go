package memif

import (
	"encoding/binary"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	"millrace/packet"
	"millrace/pmd"
)

// TestSharedRing has four threads transmit to a peer that has one ring: each thread's
// packets arrive whole and in order.
func TestSharedRing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	pool := newPool(t, 8192)
	const queues, each = 4, 5000
	for _, many := range []string{"server", "client"} {
		one := map[string]string{"server": "client", "client": "server"}[many]
		p := open(t, pmd.Config{Role: many, Socket: path, Queues: queues})
		e := start(t, open(t, pmd.Config{Role: one, Socket: path, Ring: 128}), pool)
		wait(t, "links", func() bool { return p.Link().Up && e.port.Link().Up })
		var wg sync.WaitGroup
		for i := range queues {
			wg.Go(func() {
				cache, q := pool.NewCache(), p.Queue(i)
				defer cache.Close()
				if err := q.Start(cache); err != nil {
					t.Error(err)
				}
				defer q.Stop()
				for sent := 0; sent < each; {
					var tx [32]uint32
					k := cache.Alloc(tx[:min(each-sent, len(tx))])
					for j, x := range tx[:k] {
						b := packet.At(x).Append(64)
						binary.BigEndian.PutUint32(b, uint32(i))
						binary.BigEndian.PutUint32(b[60:], uint32(sent+j))
					}
					n := q.Tx(tx[:k])
					sent += n
					cache.Free(tx[n:k])
					if n == 0 {
						runtime.Gosched()
					}
				}
			})
		}
		var next [queues]uint32
		got := 0
		var rx [64]uint32
		wait(t, "all packets", func() bool {
			for range 1000 {
				n := e.q.Rx(rx[:])
				for _, x := range rx[:n] {
					b := packet.At(x).Bytes()
					from, seq := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[60:])
					if len(b) != 64 || from >= queues || seq != next[from] {
						t.Errorf("%d bytes, number %d from thread %d, want %d", len(b), seq, from, next[from%queues])
					}
					next[from%queues] = seq + 1
				}
				e.cache.Free(rx[:n])
				got += n
				runtime.Gosched()
			}
			return got == queues*each
		})
		wg.Wait()
		if n := p.Stats().TxPackets; n != queues*each {
			t.Errorf("TxPackets is %d", n)
		}
		e.stop()
		e.port.Close()
		p.Close()
	}
}

// TestUnsendable transmits what no memif can carry: it is taken, counted and freed.
func TestUnsendable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	pool := newPool(t, 1024)
	s := start(t, open(t, pmd.Config{Role: "server", Socket: path}), pool)
	c := start(t, open(t, pmd.Config{Role: "client", Socket: path}), pool)
	wait(t, "links", func() bool { return s.port.Link().Up && c.port.Link().Up })
	for _, pair := range [][2]*end{{s, c}, {c, s}} {
		from, to := pair[0], pair[1]
		from.q.Rx(nil)
		to.q.Rx(nil)
		var pkts [4]uint32
		from.cache.Alloc(pkts[:])
		packet.At(pkts[0]).Append(60)
		for n := 0; n <= maxFrame; n += 1800 { // packet 2; packet 1 is empty
			m := packet.At(pkts[2])
			if n > 0 {
				m.Last().SetNext(from.cache.Alloc1())
				m.NbSegs++
			}
			m.Append(1800)
		}
		packet.At(pkts[3]).Append(60)
		for _, i := range []int{0, 3} {
			b := packet.At(pkts[i]).Bytes()
			b[0], b[59] = 7, 7
		}
		if n := from.q.Tx(pkts[:]); n != 4 {
			t.Errorf("Tx took %d of 4", n)
			from.cache.Free(pkts[n:])
		}
		if st := from.port.Stats(); st.TxPackets != 2 || st.TxFailed != 2 {
			t.Errorf("%+v", st)
		}
		to.receive(t, 2, 7)
	}
}
