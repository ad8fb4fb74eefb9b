package porttest

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"time"

	"millrace/packet"
	"millrace/pmd"
)

// patience is how long the suite waits for something that should come at once; its own tests shorten it.
var patience = 10 * time.Second

// env is a pair of open ports and the pool they share.
type env struct {
	p    *Pair
	pool *packet.Pool
	a, b *end
	seq  uint32
}

// end is one port with everything that a worker would have.
type end struct {
	e     *env
	name  string
	port  pmd.Port
	qs    []pmd.Queue
	cache *packet.Cache
	peer  *end
	addr  pmd.MAC

	want    []frame // sent by the peer and not yet received, in order
	lost    int     // given up while waiting for what came behind them
	got     uint64  // frames of the suite received
	foreign uint64  // other frames received
	took    uint64  // frames that the port took for transmission
	bad     error   // first wrong frame received
	noRx    bool    // do not receive: lets the peer's ring fill
	rx      [256]uint32
}

// frame says what a frame must contain.
type frame struct {
	seq  uint32
	size int
	flow uint16
}

func newEnd(e *env, name string, p pmd.Port) *end {
	x := &end{e: e, name: name, port: p, cache: e.pool.NewCache()}
	for i := range p.Caps().Queues {
		x.qs = append(x.qs, p.Queue(i))
	}
	return x
}

func (e *env) ends() []*end { return []*end{e.a, e.b} }

func (x *end) start() error {
	for i, q := range x.qs {
		if err := q.Start(x.cache); err != nil {
			return fmt.Errorf("%s: start queue %d: %w", x.name, i, err)
		}
	}
	return nil
}

func (x *end) stop() error {
	for i, q := range x.qs {
		q.Stop()
		if n := q.Held(); n != 0 {
			return fmt.Errorf("%s: queue %d holds %d buffers after Stop", x.name, i, n)
		}
	}
	return nil
}

// close stops and closes all, twice, and counts the buffers.
func (e *env) close() error {
	var first error
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	for _, x := range e.ends() {
		keep(x.stop())
	}
	for _, x := range e.ends() {
		if err := x.port.Close(); err != nil {
			keep(fmt.Errorf("%s: close: %w", x.name, err))
		}
		x.port.Close() // must be harmless
		x.cache.Close()
	}
	if n := e.pool.Free(); n != e.pool.Size() {
		keep(fmt.Errorf("%d of %d buffers are missing after Close", e.pool.Size()-n, e.pool.Size()))
		return first // the pool stays mapped: somebody may still write to it
	}
	keep(e.pool.Close())
	return first
}

// settle waits until all buffers are free or in the drivers' hands.
func (e *env) settle() error {
	var held, free int
	err := e.until("buffers are accounted for", func() bool {
		held, free = 0, e.pool.Free()
		for _, x := range e.ends() {
			for _, q := range x.qs {
				held += q.Held()
			}
		}
		return free+held == e.pool.Size()
	})
	if err != nil {
		return fmt.Errorf("%w: %d free + %d held of %d", err, free, held, e.pool.Size())
	}
	return nil
}

// pump polls both ends once and reports whether anything of the suite's came.
func (e *env) pump() bool {
	n := e.a.got + e.b.got
	e.a.poll()
	e.b.poll()
	return e.a.got+e.b.got != n
}

// until pumps until cond holds, or a frame comes that is wrong.
func (e *env) until(what string, cond func() bool) error {
	deadline := time.Now().Add(patience)
	for idle := 0; !cond(); idle++ {
		if e.pump() {
			idle = 0
			deadline = time.Now().Add(patience)
		}
		if err := e.wrong(); err != nil {
			return err
		}
		runtime.Gosched()
		if idle > 100 {
			time.Sleep(100 * time.Microsecond)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("waited in vain until %s", what)
		}
	}
	return e.wrong()
}

func (e *env) wrong() error {
	if e.a.bad != nil {
		return e.a.bad
	}
	return e.b.bad
}

// poll receives on all queues and compares what came with what was sent.
func (x *end) poll() {
	if x.noRx {
		return
	}
	for _, q := range x.qs {
		n := q.Rx(x.rx[:])
		for _, i := range x.rx[:n] {
			x.receive(packet.At(i))
		}
		x.cache.Free(x.rx[:n])
	}
}

// Layout of a test frame: Ethernet, IPv4, UDP, then magic and sequence number.
const (
	hdrLen   = 14 + 20 + 8
	magic    = 0x6d696c6c
	minFrame = 60
)

// fill writes the frame's bytes: its headers, its number, and a pattern that
// differs in every position and every frame.
func (f frame) fill(b []byte, from, to *end) {
	b = b[:f.size]
	src, dst := from.mac(2), to.mac(4)
	copy(b, dst[:])
	copy(b[6:], src[:])
	b[12], b[13] = 8, 0
	ip := b[14:34]
	clear(ip)
	ip[0], ip[8], ip[9] = 0x45, 64, 17
	binary.BigEndian.PutUint16(ip[2:], uint16(f.size-14))
	binary.BigEndian.PutUint16(ip[4:], uint16(f.seq))
	copy(ip[12:], []byte{198, 18, 0, 1, 198, 19, 0, 1})
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(ip[i])<<8 | uint32(ip[i+1])
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
	udp := b[34:42]
	binary.BigEndian.PutUint16(udp, 40000+f.flow)
	binary.BigEndian.PutUint16(udp[2:], 7)
	binary.BigEndian.PutUint16(udp[4:], uint16(f.size-34))
	udp[6], udp[7] = 0, 0 // no checksum
	binary.BigEndian.PutUint32(b[hdrLen:], magic)
	binary.BigEndian.PutUint32(b[hdrLen+4:], f.seq)
	x := f.seq*2654435761 + 1
	for i := hdrLen + 8; i < len(b); i++ {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
}

// mac is the port's address, or an invented one for ports without.
func (x *end) mac(n byte) pmd.MAC {
	if x.addr == (pmd.MAC{}) {
		x.addr = x.port.Link().MAC
	}
	if x.addr == (pmd.MAC{}) {
		x.addr = pmd.MAC{2, 0, 0, 0, 0, n}
	}
	return x.addr
}

// scratch holds the two sides of a comparison; the suite has one thread.
var scratch struct{ got, want [65536]byte }

// receive judges one packet; the caller frees it.
func (x *end) receive(m *packet.Mbuf) {
	total, segs := 0, 0
	for s := m; s != nil; s = s.NextSeg() {
		total += int(s.DataLen)
		segs++
	}
	b := scratch.got[:min(total, len(scratch.got))]
	m.CopyOut(0, b)
	if len(b) < hdrLen+8 || binary.BigEndian.Uint32(b[hdrLen:]) != magic {
		x.foreign++
		return
	}
	x.got++
	seq := binary.BigEndian.Uint32(b[hdrLen+4:])
	if total != int(m.PktLen) || segs != int(m.NbSegs) {
		x.fail("frame %d: %d bytes in %d segments, but PktLen %d, NbSegs %d", seq, total, segs, m.PktLen, m.NbSegs)
		return
	}
	at := -1
	for i := range x.want {
		if x.want[i].seq == seq {
			at = i
			break
		}
	}
	switch {
	case at < 0:
		x.fail("frame %d came twice or was never sent", seq)
		return
	case at > 0 && !x.e.p.Reorders && !x.e.p.Lossy:
		x.fail("frame %d came before frame %d: lost or overtaken", seq, x.want[0].seq)
		return
	}
	f := x.want[at]
	if x.e.p.Reorders {
		x.want = append(x.want[:at], x.want[at+1:]...)
	} else {
		x.lost += at
		x.want = x.want[at+1:]
	}
	f.fill(scratch.want[:], x.peer, x)
	if total != f.size {
		x.fail("frame %d has %d bytes, sent were %d", seq, total, f.size)
		return
	}
	for i := range b {
		if b[i] != scratch.want[i] {
			x.fail("frame %d of %d bytes: byte %d is %#02x, sent was %#02x", seq, f.size, i, b[i], scratch.want[i])
			return
		}
	}
}

func (x *end) fail(format string, args ...any) {
	if x.bad == nil {
		x.bad = fmt.Errorf(x.name+": "+format, args...)
	}
}

// make builds a frame of the given segment lengths (one of the whole size where
// there are none) and returns its index. The rest of size goes into the last segments.
func (x *end) make(size int, flow uint16, segs ...int) (uint32, frame, error) {
	x.e.seq++
	f := frame{x.e.seq, size, flow}
	f.fill(scratch.want[:], x, x.peer)
	m, err := x.chain(scratch.want[:size], segs)
	if err != nil {
		return 0, f, err
	}
	return m.Index(), f, nil
}

func (x *end) chain(b []byte, segs []int) (*packet.Mbuf, error) {
	var head, tail *packet.Mbuf
	for total := len(b); len(b) > 0 || head == nil; {
		n := min(len(b), packet.DataRoom)
		if len(segs) > 0 {
			n = min(segs[0], n)
			segs = segs[1:]
		}
		s := x.cache.Alloc1()
		if s == nil {
			if head != nil {
				x.cache.Free1(head)
			}
			return nil, fmt.Errorf("%s: no buffers left in the pool", x.name)
		}
		if head == nil {
			head = s
			head.PktLen = uint32(total)
		} else {
			tail.SetNext(s)
			head.NbSegs++
		}
		tail = s
		s.DataLen = uint16(copy(room(s)[:n], b))
		b = b[n:]
	}
	return head, nil
}

// room is the whole data room of a fresh buffer.
func room(m *packet.Mbuf) []byte {
	m.DataLen = packet.DataRoom
	return m.Bytes()
}

// send transmits packets on queue q until the port has taken all, and notes that
// the peer must receive them. The packets are the port's after it, or freed on an error.
func (x *end) send(q int, pkts []uint32, fs []frame) error {
	x.peer.want = append(x.peer.want, fs...)
	for len(pkts) > 0 {
		err := x.e.until(x.name+" takes packets", func() bool {
			n := x.qs[q].Tx(pkts)
			x.took += uint64(n)
			pkts = pkts[n:]
			return n > 0 || len(pkts) == 0
		})
		if err != nil {
			x.cache.Free(pkts)
			return err
		}
	}
	return nil
}

// arrive waits until everything sent has come. Where packets may be lost it waits
// for silence and wants half of them.
func (x *end) arrive() error {
	sent := len(x.want)
	if !x.e.p.Lossy {
		err := x.e.until("all frames have arrived", func() bool { return len(x.want) == 0 })
		if err != nil && len(x.want) > 0 && x.e.wrong() == nil {
			err = fmt.Errorf("%s: %w: %d are missing, first number %d of %d bytes", x.name, err, len(x.want), x.want[0].seq, x.want[0].size)
		}
		return err
	}
	for quiet := time.Now(); len(x.want) > 0 && time.Since(quiet) < 300*time.Millisecond; {
		if x.e.pump() {
			quiet = time.Now()
		}
		runtime.Gosched()
	}
	x.lost += len(x.want)
	x.want = x.want[:0]
	lost := x.lost
	x.lost = 0
	if lost > sent/2+1 {
		return fmt.Errorf("%s: %d of %d frames were lost", x.name, lost, sent)
	}
	return x.e.wrong()
}

// frameCap is the longest frame that the pair can carry.
func (e *env) frameCap() int {
	n := min(e.a.port.Caps().MaxFrame, e.b.port.Caps().MaxFrame, 65535)
	if e.p.MaxFrame > 0 {
		n = min(n, e.p.MaxFrame)
	}
	return n
}

// senders are the ends that transmit.
func (e *env) senders() []*end {
	if e.p.OneWay {
		return []*end{e.a}
	}
	return e.ends()
}
