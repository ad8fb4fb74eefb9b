package memif

import (
	"context"
	"encoding/binary"
	"reflect"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

// handshakeMessages is a client's side of a good connection with two queue pairs.
func handshakeMessages() []message {
	ms := []message{
		initiate{version: version, id: 5, name: "fuzz"},
		addRegion{0, 1 << 20},
	}
	for i := range 4 {
		ms = append(ms, addRing{flags: uint16(i & 1), index: uint16(i / 2), offset: uint32(i * ringBytes(8)), log: 8})
	}
	return append(ms, connect{"fuzz0"})
}

func FuzzMessage(f *testing.F) {
	for _, m := range append(handshakeMessages(), ack{}, connected{"x"}, disconnect{1, "why"},
		hello{"peer", version, version, 1, 2, 3, 4}) {
		var w wire
		m.put(&w)
		f.Add(w[:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parse(b)
		if err != nil {
			return
		}
		var w wire
		m.put(&w)
		again, err := parse(w[:])
		if err != nil || !reflect.DeepEqual(m, again) {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}

// FuzzSetup plays a client that says anything. Every message is preceded by a byte
// that chooses the descriptor sent with it.
func FuzzSetup(f *testing.F) {
	var good []byte
	for _, m := range handshakeMessages() {
		var w wire
		m.put(&w)
		kind := byte(0)
		switch m.(type) {
		case addRegion:
			kind = 1
		case addRing:
			kind = 2
		}
		good = append(append(good, kind), w[:]...)
	}
	f.Add(good)
	for i := 0; i < len(good); i += 129 { // each message missing, and each doubled
		f.Add(append(append([]byte(nil), good[:i]...), good[i+129:]...))
		f.Add(append(append([]byte(nil), good[:i+129]...), good[i:]...))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		before := descriptors(t)
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		p := &port{cfg: pmd.Config{Name: "fuzz"}, queues: make([]*queue, 2), ctx: ctx}
		u := &setup{find: func(id uint32) *port {
			if id == 5 {
				return p
			}
			return nil
		}}
		for ; len(b) >= 129 && !u.done; b = b[129:] {
			m, err := parse(b[1:129])
			if err != nil {
				break
			}
			answer, err := u.handle(m, passed(t, b[0]))
			if (answer == nil) == (err == nil) && err == nil {
				t.Fatalf("no answer to %+v", m)
			}
			if err != nil {
				break
			}
		}
		if u.done {
			for _, r := range append(u.conn.rx, u.conn.tx...) {
				from := uintptr(unsafe.Pointer(r.word)) - 4
				inside := false
				for _, g := range u.conn.regions {
					off := from - uintptr(g.base)
					inside = inside || off < uintptr(g.size) && off+ringHeader+descSize*uintptr(r.size) <= uintptr(g.size)
				}
				if !inside || r.size != r.mask+1 {
					t.Errorf("accepted a ring outside all regions: %+v", r)
				}
			}
			if len(u.conn.rx) > 2 || len(u.conn.tx) > 2 {
				t.Errorf("accepted %d and %d rings for 2 queues", len(u.conn.rx), len(u.conn.tx))
			}
		}
		u.abandon()
		if p.busy.Load() {
			t.Error("the interface stays taken")
		}
		if n := descriptors(t); n != before {
			t.Errorf("%d descriptors open, %d before", n, before)
		}
	})
}

// passed is a descriptor as a peer might send it.
func passed(t *testing.T, kind byte) int {
	fd, err := -1, error(nil)
	switch kind % 5 {
	case 1, 3: // memory with ring cookies; 3 is too short
		if fd, err = unix.MemfdCreate("fuzz", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING); err == nil {
			size := int64(1 << 20)
			if kind%5 == 3 {
				size = 4096
			}
			err = unix.Ftruncate(fd, size)
			for i := int64(0); i < 4 && err == nil; i++ {
				_, err = unix.Pwrite(fd, binary.LittleEndian.AppendUint32(nil, cookie), i*int64(ringBytes(8)))
			}
		}
	case 2:
		fd, err = unix.Eventfd(0, unix.EFD_CLOEXEC)
	case 4:
		fd, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

func descriptors(t *testing.T) int {
	n := 0
	for fd := range 512 {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err == nil {
			n++
		}
	}
	return n
}

// arena is a client's region between two pages that nobody may touch, seen from both sides.
type arena struct {
	client *conn
	mem    []byte
	clean  []byte
	rings  int // bytes of rings at the start of mem
}

func newArena(t testing.TB) *arena {
	t.Helper()
	c, err := newClient(1, 6)
	if err != nil {
		t.Fatal(err)
	}
	size := uintptr(c.regions[0].size)
	const page = 4096
	guard, err := unix.MmapPtr(-1, 0, nil, size+2*page, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	at, err := unix.MmapPtr(c.memfd, 0, unsafe.Add(guard, page), size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_FIXED)
	if err != nil {
		t.Fatal(err)
	}
	a := &arena{client: c, mem: unsafe.Slice((*byte)(at), size), rings: 2 * ringBytes(6)}
	a.clean = append([]byte(nil), a.mem...)
	t.Cleanup(func() {
		c.free()
		unix.MunmapPtr(guard, size+2*page)
	})
	return a
}

// victim is a fresh connection over the arena, as the client or the server sees it.
func (a *arena) victim(client bool) *conn {
	copy(a.mem, a.clean)
	at := unsafe.Pointer(unsafe.SliceData(a.mem))
	c := &conn{memfd: -1, regions: []region{{at, uint64(len(a.mem))}}}
	for i, old := range []*ring{a.client.tx[0], a.client.rx[0]} {
		rx := (i == 1) == client
		r := c.newRing(client, rx, 0, i*ringBytes(6), 6, old.efd)
		if client {
			r.off, r.bufs = old.off, unsafe.Add(at, old.off)
		}
		if rx {
			c.rx = append(c.rx, r)
		} else {
			c.tx = append(c.tx, r)
		}
	}
	if client {
		c.offer()
	} else {
		c.tx[0].word.Add(64 << 16)
	}
	return c
}

// FuzzRings lets a peer write anything into the rings between bursts. A read or
// write outside the region hits a guard page and ends the test binary.
func FuzzRings(f *testing.F) {
	op := func(kind byte, off uint16, val uint64) []byte {
		return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16([]byte{kind}, off), val)
	}
	cat := func(ops ...[]byte) (b []byte) {
		for _, o := range ops {
			b = append(b, o...)
		}
		return b
	}
	const head, tail, desc = 6, 64, 128
	s2c := uint16(ringBytes(6))
	for _, side := range []byte{0, 1} {
		f.Add(cat([]byte{side}, op(2, head, 3), op(0, 0, 10), op(1, 0, 10)))
		f.Add(cat([]byte{side}, op(2, head, 500), op(0, 0, 10)))                                // head jumps
		f.Add(cat([]byte{side}, op(2, s2c+tail, 1000), op(0, 0, 10)))                           // tail jumps
		f.Add(cat([]byte{side}, op(3, desc, 64<<32|7<<16), op(2, head, 1), op(0, 0, 1)))        // no such region
		f.Add(cat([]byte{side}, op(3, desc+8, 0xfffffff0), op(2, head, 1), op(0, 0, 1)))        // offset
		f.Add(cat([]byte{side}, op(3, desc, 0xffffffff<<32), op(2, head, 1), op(0, 0, 1)))      // length
		f.Add(cat([]byte{side}, op(3, s2c+desc, 0xffff<<32), op(2, s2c+tail, 1), op(0, 0, 1)))  // length, to the client
		f.Add(cat([]byte{side}, op(3, s2c+desc, 5000<<32), op(1, 1, 31), op(1, 2, 200)))        // buffers
		f.Add(cat([]byte{side}, op(4, 0, 1), op(2, head, 64), op(0, 0, 64)))                    // all chained
		f.Add(cat([]byte{side}, op(4, s2c, 1), op(2, s2c+tail, 64), op(0, 0, 64), op(1, 2, 9))) // all chained
		f.Add(cat([]byte{side}, op(3, desc, 2048<<32|1), op(3, desc+16, 2000<<32), op(2, head, 2), op(0, 0, 64)))
	}
	a, pool := newArena(f), newPool(f, 1024)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		client := b[0]&1 == 1
		c := a.victim(client)
		stats := pmd.Stats{}
		q, err := newQueue(0, &stats)
		if err != nil {
			t.Fatal(err)
		}
		q.next.Store(c)
		cache := pool.NewCache()
		q.Start(cache)
		var pkts [64]uint32
		got, sent := uint64(0), uint64(0)
		for b = b[1:]; len(b) >= 11; b = b[11:] {
			off, val := int(binary.LittleEndian.Uint16(b[1:])), binary.LittleEndian.Uint64(b[3:])
			switch b[0] % 5 {
			case 0:
				n := q.Rx(pkts[:min(val, 64)])
				for _, i := range pkts[:n] {
					checkWhole(t, packet.At(i))
				}
				got += uint64(n)
				cache.Free(pkts[:n])
			case 1:
				n := cache.Alloc(pkts[:min(val, 64)])
				for _, i := range pkts[:n] {
					m := packet.At(i)
					clear(m.Append(off%1800 + 1))
					for range off % 5 {
						if s := cache.Alloc1(); s != nil {
							clear(s.Append(packet.DataRoom))
							m.Last().SetNext(s)
							m.NbSegs, m.PktLen = m.NbSegs+1, m.PktLen+packet.DataRoom
						}
					}
				}
				k := q.Tx(pkts[:n])
				sent += uint64(k)
				cache.Free(pkts[k:n])
			case 2:
				binary.LittleEndian.PutUint16(a.mem[off%a.rings&^1:], uint16(val))
			case 3:
				binary.LittleEndian.PutUint64(a.mem[off%a.rings&^7:], val)
			case 4:
				for i := off % a.rings &^ 15; i < a.rings; i += 16 {
					a.mem[i] ^= byte(val)
				}
			}
		}
		if stats.RxPackets != got || stats.TxPackets+stats.TxFailed != sent {
			t.Errorf("got %d, sent %d, counted %+v", got, sent, stats)
		}
		if c.fault.Load() != 0 && (stats.RxBad == 0 || q.Rx(pkts[:]) != 0) {
			t.Errorf("fault %s: counted %d, or still receiving", faults[c.fault.Load()], stats.RxBad)
		}
		q.Stop()
		q.close()
		cache.Close()
		if pool.Free() != pool.Size() {
			t.Fatalf("%d buffers are missing", pool.Size()-pool.Free())
		}
	})
}

// checkWhole verifies that a packet's numbers fit its segments.
func checkWhole(t *testing.T, m *packet.Mbuf) {
	t.Helper()
	total, segs := 0, 0
	for s := m; s != nil; s = s.NextSeg() {
		if int(s.DataOff)+int(s.DataLen) > int(s.BufLen) {
			t.Errorf("segment of %d bytes at %d in a buffer of %d", s.DataLen, s.DataOff, s.BufLen)
		}
		total += int(s.DataLen)
		segs++
	}
	if total != int(m.PktLen) || segs != int(m.NbSegs) || total == 0 || total > maxFrame {
		t.Errorf("packet of %d bytes in %d segments says %d in %d", total, segs, m.PktLen, m.NbSegs)
	}
}
