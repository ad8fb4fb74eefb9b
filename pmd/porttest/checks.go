package porttest

import (
	"bytes"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/packet"
)

func checkCaps(e *env) error {
	for _, x := range e.ends() {
		c := x.port.Caps()
		switch {
		case x.port.Name() == "" || x.port.Driver() == "":
			return fmt.Errorf("%s has no name or driver", x.name)
		case c.Queues < 1 || c.Segments < 1 || c.Headroom < 0 || c.MaxFrame < 1514 || c.Mode == "":
			return fmt.Errorf("%s: caps %+v make no sense", x.name, c)
		case c.Headroom > packet.Headroom:
			return fmt.Errorf("%s asks for %d bytes of headroom, a fresh buffer has %d", x.name, c.Headroom, packet.Headroom)
		}
		for i, q := range x.qs {
			if q == nil || q != x.port.Queue(i) {
				return fmt.Errorf("%s: Queue(%d) is not one thing", x.name, i)
			}
			if n := q.Rx(nil); n != 0 {
				return fmt.Errorf("%s: Rx of nothing returns %d", x.name, n)
			}
			if n := q.Tx(nil); n != 0 {
				return fmt.Errorf("%s: Tx of nothing returns %d", x.name, n)
			}
		}
	}
	return nil
}

// exchange sends frames of the given sizes in bursts, both ways.
func (e *env) exchange(sizes []int, burst int, segs func(i, size int) []int) error {
	for _, x := range e.senders() {
		for i := 0; i < len(sizes); i += burst {
			var pkts []uint32
			var fs []frame
			for j, size := range sizes[i:min(i+burst, len(sizes))] {
				var cut []int
				if segs != nil {
					cut = segs(i+j, size)
				}
				p, f, err := x.make(size, 0, cut...)
				if err != nil {
					x.cache.Free(pkts)
					return err
				}
				pkts, fs = append(pkts, p), append(fs, f)
			}
			if err := x.send(0, pkts, fs); err != nil {
				return err
			}
			if err := x.peer.arrive(); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkSizes(e *env) error {
	var sizes []int
	for n := minFrame; n <= 1514; n++ {
		sizes = append(sizes, n)
	}
	return e.exchange(sizes, 64, nil)
}

func checkBursts(e *env) error {
	for _, burst := range []int{1, 2, 31, 32, 33, 255, 256} {
		sizes := make([]int, 2*burst)
		for i := range sizes {
			sizes[i] = minFrame + i%7*40
		}
		if err := e.exchange(sizes, burst, nil); err != nil {
			return fmt.Errorf("bursts of %d: %w", burst, err)
		}
	}
	return nil
}

// checkChains sends packets cut at awkward places: inside and behind headers, single
// bytes, many segments.
func checkChains(e *env) error {
	cuts := [][]int{{14}, {1}, {13, 1}, {34, 8}, {64}, {63, 1}, {1, 1, 1, 1}, {59}, {42, 10, 1}, {20, 20, 20, 20, 20, 20}}
	segs := min(e.a.port.Caps().Segments, e.b.port.Caps().Segments)
	if segs == 1 {
		return nil
	}
	var sizes []int
	for i := range 8 * len(cuts) {
		sizes = append(sizes, []int{60, 64, 128, 129, 590, 1500, 1513, 1514}[i/len(cuts)])
	}
	return e.exchange(sizes, 16, func(i, size int) []int {
		cut := cuts[i%len(cuts)]
		return cut[:min(len(cut), segs-1)]
	})
}

// checkJumbo sends frames up to the longest one in as few segments as it takes, and
// in as many as the port says.
func checkJumbo(e *env) error {
	most := e.frameCap()
	segs := min(e.a.port.Caps().Segments, e.b.port.Caps().Segments)
	most = min(most, segs*packet.DataRoom)
	var sizes []int
	for _, n := range []int{1515, 1600, packet.DataRoom, packet.DataRoom + 1, 2048, 2049, 3000, 4096, 9014, 9216, 16000, 32768, most - 1, most} {
		if n <= most && n >= minFrame {
			sizes = append(sizes, n)
		}
	}
	if err := e.exchange(sizes, 3, nil); err != nil {
		return err
	}
	return e.exchange(sizes, 2, func(i, size int) []int {
		k := min(segs, size)
		for size/k+1 > packet.DataRoom {
			return nil
		}
		cut := make([]int, k-1)
		for i := range cut {
			cut[i] = size / k
		}
		if last := size - (k-1)*(size/k); last > packet.DataRoom {
			return nil
		}
		return cut
	})
}

// checkClones transmits indirect segments: views of another packet's data.
func checkClones(e *env) error {
	for _, x := range e.senders() {
		segs := x.port.Caps().Segments
		var pkts []uint32
		var fs []frame
		for i := range 24 {
			var cut []int
			size := []int{60, 100, 1514, 700}[i%4]
			if segs > 1 && i%3 == 1 {
				cut = []int{30}
			}
			p, f, err := x.make(size, 0, cut...)
			if err != nil {
				return err
			}
			m := packet.At(p)
			c := x.cache.Clone(m)
			if c == nil {
				return fmt.Errorf("no buffers left")
			}
			if segs > 1 && i%3 == 2 { // own header, borrowed payload: what multicast sends
				x.cache.Free1(c)
				if c = x.headed(m, 42); c == nil {
					return fmt.Errorf("no buffers left")
				}
			}
			x.cache.Free1(m) // the clone keeps the bytes alive
			pkts, fs = append(pkts, c.Index()), append(fs, f)
		}
		if err := x.send(0, pkts, fs); err != nil {
			return err
		}
		if err := x.peer.arrive(); err != nil {
			return err
		}
	}
	return nil
}

// headed is a packet of one fresh segment with n bytes of m's, and a borrowed rest.
func (x *end) headed(m *packet.Mbuf, n int) *packet.Mbuf {
	h := x.cache.Alloc1()
	rest := x.cache.CloneRange(m, n, int(m.PktLen)-n)
	if h == nil || rest == nil {
		return nil
	}
	h.DataLen = uint16(m.CopyOut(0, room(h)[:n]))
	h.SetNext(rest)
	h.PktLen, h.NbSegs = m.PktLen, 1+rest.NbSegs
	return h
}

// checkShared transmits packets whose bytes another owner goes on reading.
func checkShared(e *env) error {
	for _, x := range e.senders() {
		var pkts, kept []uint32
		var fs []frame
		for range 16 {
			p, f, err := x.make(300, 0)
			if err != nil {
				return err
			}
			c := x.cache.Clone(packet.At(p))
			if c == nil {
				return fmt.Errorf("no buffers left")
			}
			pkts, fs, kept = append(pkts, p), append(fs, f), append(kept, c.Index())
		}
		err := x.send(0, pkts, fs)
		if err == nil {
			err = x.peer.arrive()
		}
		for i, k := range kept {
			fs[i].fill(scratch.want[:], x, x.peer)
			if m := packet.At(k); err == nil && !bytes.Equal(m.Bytes(), scratch.want[:fs[i].size]) {
				err = fmt.Errorf("%s: transmission changed bytes that another owner reads", x.name)
			}
		}
		x.cache.Free(kept)
		if err != nil {
			return err
		}
	}
	return nil
}

// checkQueues transmits on every queue, one flow at a time.
func checkQueues(e *env) error {
	for _, x := range e.senders() {
		for q := range x.qs {
			var pkts []uint32
			var fs []frame
			for range 40 {
				p, f, err := x.make(90, uint16(q))
				if err != nil {
					return err
				}
				pkts, fs = append(pkts, p), append(fs, f)
			}
			if err := x.send(q, pkts, fs); err != nil {
				return err
			}
			if err := x.peer.arrive(); err != nil {
				return fmt.Errorf("queue %d: %w", q, err)
			}
		}
	}
	return nil
}

// checkStats compares the ports' counters with the suite's own since Open.
func checkStats(e *env) error {
	for _, x := range e.senders() {
		for range 3 {
			if err := e.exchange([]int{60, 61, 1000}, 3, nil); err != nil {
				return err
			}
		}
		y := x.peer
		tx, rx := x.port.Stats(), y.port.Stats()
		err := e.until("counters have caught up", func() bool {
			tx, rx = x.port.Stats(), y.port.Stats()
			return tx.TxPackets+tx.TxFailed == x.took && rx.RxPackets == y.got+y.foreign
		})
		if err != nil {
			return fmt.Errorf("%w: %s took %d and counts %+v; %s gave %d and counts %+v", err, x.name, x.took, tx, y.name, y.got+y.foreign, rx)
		}
	}
	return nil
}

// checkFull transmits to an end that does not receive, until the port refuses.
func checkFull(e *env) error {
	for _, x := range e.senders() {
		y := x.peer
		full := x.port.Stats().TxFull
		y.noRx = true
		refused := uint64(0)
		for range e.pool.Free() / 2 / 32 {
			var pkts []uint32
			var fs []frame
			for range 32 {
				p, f, err := x.make(200, 0)
				if err != nil {
					return err
				}
				pkts, fs = append(pkts, p), append(fs, f)
			}
			n := x.qs[0].Tx(pkts)
			x.took += uint64(n)
			y.want = append(y.want, fs[:n]...)
			for i, p := range pkts[n:] { // the rest is ours, as it was
				fs[n+i].fill(scratch.want[:], x, y)
				m := packet.At(p)
				if m.RefCnt != 1 || !bytes.Equal(m.Bytes(), scratch.want[:200]) {
					return fmt.Errorf("%s: Tx touched a packet that it did not take", x.name)
				}
			}
			x.cache.Free(pkts[n:])
			refused = uint64(32 - n)
			if refused > 0 {
				break
			}
			e.pump()
		}
		if refused == 0 && !e.p.NeverFull {
			return fmt.Errorf("%s: Tx took %d packets that nobody received", x.name, len(y.want))
		}
		if n := x.port.Stats().TxFull - full; n < refused {
			return fmt.Errorf("%s: Tx refused %d packets, TxFull counts %d", x.name, refused, n)
		}
		y.noRx = false
		if e.p.NeverFull { // how many came is the wire's affair
			lossy := e.p.Lossy
			e.p.Lossy = true
			y.arrive()
			e.p.Lossy = lossy
			if err := e.wrong(); err != nil {
				return err
			}
		} else if err := y.arrive(); err != nil {
			return err
		}
		// And it goes on as before.
		if err := e.exchange([]int{60, 61, 62}, 3, nil); err != nil {
			return fmt.Errorf("after a full ring: %w", err)
		}
	}
	return nil
}

// checkWake sleeps on Fd as a worker does.
func checkWake(e *env) error {
	for _, x := range e.senders() {
		y := x.peer
		for range 3 {
			for _, q := range y.qs {
				if q.Fd() < 0 {
					return nil
				}
			}
			p, f, err := x.make(80, 0)
			if err != nil {
				return err
			}
			var fds []unix.PollFd
			for _, q := range y.qs {
				for range 100 { // something foreign may just have come
					if q.Arm() {
						break
					}
					y.poll()
				}
				fds = append(fds, unix.PollFd{Fd: int32(q.Fd()), Events: unix.POLLIN})
			}
			y.noRx = true
			err = x.send(0, []uint32{p}, []frame{f})
			if err != nil {
				return err
			}
			x.poll()
			n, err := unix.Poll(fds, int(patience.Milliseconds()))
			for err == unix.EINTR {
				n, err = unix.Poll(fds, int(patience.Milliseconds()))
			}
			y.noRx = false
			if n < 1 {
				return fmt.Errorf("%s: a packet came, and poll(2) says %d, %v", y.name, n, err)
			}
			if err := y.arrive(); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkAllocs counts Go allocations of a round trip through Rx and Tx.
func checkAllocs(e *env) error {
	x, y := e.a, e.b
	var pkts [32]uint32
	var b [64]byte
	frame{size: len(b)}.fill(b[:], x, y)
	clear(b[hdrLen:]) // no magic: y counts it as foreign and does not compare
	missing := 0
	n := testing.AllocsPerRun(50, func() {
		k := x.cache.Alloc(pkts[:])
		for _, i := range pkts[:k] {
			m := packet.At(i)
			m.DataLen, m.PktLen = 64, 64
			copy(m.Bytes(), b[:])
		}
		sent := x.qs[0].Tx(pkts[:k])
		x.took += uint64(sent)
		x.cache.Free(pkts[sent:k])
		before := y.foreign
		for range 1000 {
			e.pump()
			if int(y.foreign-before) >= sent {
				return
			}
		}
		missing++
	})
	if n > 0 {
		return fmt.Errorf("Rx and Tx of 32 packets allocate %v times", n)
	}
	if missing > 0 && !e.p.Lossy {
		// What is on its way belongs to no later check.
		e.until("late packets have come", func() bool { return !e.pump() })
	}
	return nil
}

// checkRestart moves each end to another cache, as a worker does that hands its
// queues to another one.
func checkRestart(e *env) error {
	for range 2 {
		for _, x := range e.ends() {
			if err := x.stop(); err != nil {
				return err
			}
			x.cache.Close()
			x.cache = e.pool.NewCache()
			if err := x.start(); err != nil {
				return err
			}
			if err := e.until("links are up", e.up); err != nil {
				return err
			}
			if err := e.exchange([]int{60, 1514, 61, 200}, 2, nil); err != nil {
				return fmt.Errorf("after %s was stopped and started: %w", x.name, err)
			}
		}
	}
	return nil
}
