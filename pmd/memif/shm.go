package memif

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe" // rings in shared memory, at places checked against their region

	"golang.org/x/sys/unix"

	"millrace/pmd"
)

const (
	ringHeader = 128  // bytes before the descriptors
	descSize   = 16   // bytes of a descriptor
	bufSize    = 2048 // bytes of a buffer that a client offers; DPDK's server assumes no more
	// bufStride keeps the buffers from meeting in few cache sets.
	bufStride  = bufSize + 64
	maxRegions = 256
)

// region is shared memory of a connection, mapped here.
type region struct {
	base unsafe.Pointer
	size uint64
}

// ring is one direction of a queue pair. Its positions belong to the thread of the
// queue that holds it.
type ring struct {
	own  *atomic.Uint32 // the word with our index: head for the client, tail for the server
	peer *atomic.Uint32 // the word with the peer's
	word *atomic.Uint32 // flags and head
	desc unsafe.Pointer
	bufs unsafe.Pointer // the client's: buffer of slot 0; nil for the server
	off  uint32         // offset of bufs in region 0
	size uint32         // descriptors
	mask uint32
	pos  uint16 // next descriptor to use here
	efd  int    // wakes the receiver

	client bool
	shared bool          // several queues transmit on it
	lock   atomic.Uint32 // held while transmitting on a shared ring
}

// conn is one connection's shared memory. Nothing in it but its rings' positions
// changes once it is published.
type conn struct {
	peer    string // name and interface of the peer, for people
	regions []region
	rx, tx  []*ring
	fault   atomic.Uint32 // first thing that a worker found wrong, see faults
	maps    [][]byte
	memfd   int // the client's region while connecting, else -1
}

// What a worker may find wrong.
const (
	faultIndex = 1 + iota
	faultRegion
	faultLength
	faultChain
)

var faults = [...]string{
	faultIndex:  "ring index out of range",
	faultRegion: "descriptor points outside its region",
	faultLength: "descriptor with an impossible length",
	faultChain:  "chain of descriptors without an end",
}

// free gives everything back. No queue may use the connection.
func (c *conn) free() {
	for _, r := range append(c.rx[:len(c.rx):len(c.rx)], c.tx...) {
		if r != nil && r.efd >= 0 {
			unix.Close(r.efd)
		}
	}
	for _, m := range c.maps {
		unix.Munmap(m)
	}
	if c.memfd >= 0 {
		unix.Close(c.memfd)
	}
	c.rx, c.tx, c.maps, c.regions, c.memfd = nil, nil, nil, nil, -1
}

func (c *conn) mapRegion(fd int, size uint64) error {
	m, err := unix.Mmap(fd, 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map region %d of %d bytes: %w", len(c.regions), size, err)
	}
	c.maps = append(c.maps, m)
	c.regions = append(c.regions, region{unsafe.Pointer(unsafe.SliceData(m)), size})
	return nil
}

// newRing is a view of the ring at an offset of a region, which must hold it.
// rx says that this side receives from it.
func (c *conn) newRing(client, rx bool, reg, off int, log uint8, efd int) *ring {
	h := unsafe.Add(c.regions[reg].base, off)
	r := &ring{
		word: (*atomic.Uint32)(unsafe.Add(h, 4)),
		desc: unsafe.Add(h, ringHeader),
		size: 1 << log, mask: 1<<log - 1, efd: efd, client: client,
	}
	tail := (*atomic.Uint32)(unsafe.Add(h, 64))
	if client {
		r.own, r.peer = r.word, tail
	} else {
		r.own, r.peer = tail, r.word
	}
	if rx {
		r.word.Or(maskInt)
	}
	return r
}

func ringBytes(log uint8) int { return ringHeader + descSize<<log }

// newClient allocates the memory of a client's connection.
func newClient(queues int, log uint8) (*conn, error) {
	c := &conn{memfd: -1}
	size := 1 << log
	bufs := (2*queues*ringBytes(log) + 4095) &^ 4095
	total := bufs + 2*queues*size*bufStride
	fd, err := unix.MemfdCreate("memif region 0", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory for the region: %w", err)
	}
	c.memfd = fd
	if err := unix.Ftruncate(fd, int64(total)); err != nil {
		c.free()
		return nil, fmt.Errorf("memory for the region: %w", err)
	}
	// Peers must be able to trust that the memory does not go away.
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW); err != nil {
		c.free()
		return nil, fmt.Errorf("seal the region: %w", err)
	}
	if err := c.mapRegion(fd, uint64(total)); err != nil {
		c.free()
		return nil, err
	}
	for i := range 2 * queues {
		efd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
		if err != nil {
			c.free()
			return nil, fmt.Errorf("eventfd: %w", err)
		}
		off := i * ringBytes(log)
		*(*uint32)(unsafe.Add(c.regions[0].base, off)) = cookie
		rx := i >= queues
		r := c.newRing(true, rx, 0, off, log, efd)
		r.off = uint32(bufs + i*size*bufStride)
		r.bufs = unsafe.Add(c.regions[0].base, r.off)
		for s := range size {
			d := (*[2]uint64)(unsafe.Add(r.desc, s*descSize))
			d[0] = bufSize << 32
			d[1] = uint64(r.off) + uint64(s*bufStride)
		}
		if rx {
			c.rx = append(c.rx, r)
		} else {
			c.tx = append(c.tx, r)
		}
	}
	return c, nil
}

// offer gives all buffers of the receive rings to the server. It comes after
// CONNECTED: DPDK's server resets the indices when it connects.
func (c *conn) offer() {
	for _, r := range c.rx {
		r.own.Add(r.size << 16)
	}
}

// setup is the server's side of a connection being made: it judges what a client sends.
type setup struct {
	find func(id uint32) *port // who has this interface
	port *port                 // after INIT
	conn *conn
	peer string
	c2s  map[uint16]addedRing
	s2c  map[uint16]addedRing
	done bool
}

type addedRing struct {
	addRing
	efd int
}

// handle takes one message with its descriptor (-1 for none), which belongs to it from
// then on, and returns the answer. Its error is for the peer to read, too.
func (u *setup) handle(m message, fd int) (message, error) {
	answer, kept, err := u.judge(m, fd)
	if fd >= 0 && !kept {
		unix.Close(fd)
	}
	return answer, err
}

func (u *setup) judge(m message, fd int) (answer message, kept bool, err error) {
	_, first := m.(initiate)
	if first != (u.port == nil) || u.done {
		return nil, false, fmt.Errorf("unexpected message %T", m)
	}
	switch m := m.(type) {
	case initiate:
		return ack{}, false, u.init(m)
	case addRegion:
		return ack{}, false, u.addRegion(m, fd)
	case addRing:
		err := u.addRing(m, fd)
		return ack{}, err == nil, err
	case connect:
		u.peer += " " + m.name
		if err := u.connect(); err != nil {
			return nil, false, err
		}
		u.done = true
		return connected{u.port.cfg.Name}, false, nil
	case disconnect:
		return nil, false, fmt.Errorf("peer disconnects: %s", m.text)
	}
	return nil, false, fmt.Errorf("unexpected message %T", m)
}

func (u *setup) init(m initiate) error {
	if m.version != version {
		return fmt.Errorf("memif version %d.%d is not supported, this side speaks 2.0", m.version>>8, m.version&0xff)
	}
	if m.mode != modeEthernet {
		return fmt.Errorf("interface mode %d is not supported, only Ethernet (0)", m.mode)
	}
	p := u.find(m.id)
	if p == nil {
		return fmt.Errorf("no interface with id %d on this socket", m.id)
	}
	if want := p.secret(); want != [secretLen]byte{} && subtle.ConstantTimeCompare(want[:], m.secret[:]) == 0 {
		p.note("client %s refused: wrong secret", m.name)
		return errors.New("wrong secret")
	}
	if !p.busy.CompareAndSwap(false, true) {
		return fmt.Errorf("interface %d already has a client", m.id)
	}
	u.port, u.peer = p, m.name
	u.conn = &conn{memfd: -1}
	u.c2s, u.s2c = map[uint16]addedRing{}, map[uint16]addedRing{}
	return nil
}

func (u *setup) addRegion(m addRegion, fd int) error {
	switch {
	case fd < 0:
		return errors.New("ADD_REGION without a descriptor")
	case int(m.index) != len(u.conn.regions) || m.index >= maxRegions:
		return fmt.Errorf("region %d where %d would be next", m.index, len(u.conn.regions))
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	if err == nil && seals&unix.F_SEAL_SHRINK == 0 {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK)
	}
	if err != nil {
		return fmt.Errorf("region %d is not sealed against shrinking, and cannot be: %v", m.index, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("region %d: %v", m.index, err)
	}
	size := min(m.size, 1<<32) // offsets have 32 bits
	if size == 0 || int64(size) > st.Size {
		return fmt.Errorf("region %d is said to have %d bytes and has %d", m.index, m.size, st.Size)
	}
	return u.conn.mapRegion(fd, size)
}

func (u *setup) addRing(m addRing, fd int) error {
	rings := u.s2c
	if m.flags&ringC2S != 0 {
		rings = u.c2s
	}
	_, twice := rings[m.index]
	switch {
	case fd < 0:
		return errors.New("ADD_RING without an eventfd")
	case int(m.index) >= len(u.port.queues):
		return fmt.Errorf("ring index %d: this side has %d queues", m.index, len(u.port.queues))
	case twice:
		return fmt.Errorf("ring %d twice", m.index)
	case m.log > maxLog:
		return fmt.Errorf("ring of 2^%d descriptors, longest is 2^%d", m.log, maxLog)
	case m.private != 0:
		return fmt.Errorf("private header of %d bytes is not supported", m.private)
	case int(m.region) >= len(u.conn.regions):
		return fmt.Errorf("ring in region %d of %d", m.region, len(u.conn.regions))
	case m.offset&7 != 0:
		return fmt.Errorf("ring at offset %d, which is no multiple of 8", m.offset)
	case uint64(m.offset)+uint64(ringBytes(m.log)) > u.conn.regions[m.region].size:
		return fmt.Errorf("ring at offset %d reaches beyond region %d", m.offset, m.region)
	case !isEventfd(fd):
		return errors.New("ADD_RING with a descriptor that is no eventfd")
	}
	unix.SetNonblock(fd, true)
	rings[m.index] = addedRing{m, fd}
	return nil
}

// isEventfd guards the worker, which will write to fd.
func isEventfd(fd int) bool {
	s, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	return err == nil && s == "anon_inode:[eventfd]"
}

func (u *setup) connect() error {
	if len(u.c2s)+len(u.s2c) == 0 {
		return errors.New("CONNECT without rings")
	}
	for rx, rings := range map[bool]map[uint16]addedRing{true: u.c2s, false: u.s2c} {
		for i := range len(rings) {
			m, ok := rings[uint16(i)]
			if !ok {
				return fmt.Errorf("ring %d is missing", i)
			}
			if *(*uint32)(unsafe.Add(u.conn.regions[m.region].base, m.offset)) != cookie {
				return fmt.Errorf("ring %d has a wrong cookie", i)
			}
		}
		for i := range len(rings) {
			m := rings[uint16(i)]
			r := u.conn.newRing(false, rx, int(m.region), int(m.offset), m.log, m.efd)
			if rx {
				u.conn.rx = append(u.conn.rx, r)
			} else {
				u.conn.tx = append(u.conn.tx, r)
			}
			delete(rings, uint16(i)) // the eventfd is the ring's now
		}
	}
	u.conn.peer = u.peer
	return nil
}

// abandon gives back what a setup holds that came to nothing.
func (u *setup) abandon() {
	if u.port == nil {
		return
	}
	for _, rings := range []map[uint16]addedRing{u.c2s, u.s2c} {
		for _, m := range rings {
			unix.Close(m.efd)
		}
	}
	u.conn.free()
	u.port.busy.Store(false)
	u.port = nil
}

// register makes the eventfds of a connection's receive rings wake the queues.
func (c *conn) register(qs []*queue) {
	for i, r := range c.rx {
		ev := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET}
		unix.EpollCtl(qs[i].epoll, unix.EPOLL_CTL_ADD, r.efd, &ev)
	}
}

// unregister is the reverse: a peer may keep the eventfd open and go on writing.
func (c *conn) unregister(qs []*queue) {
	for i, r := range c.rx {
		unix.EpollCtl(qs[i].epoll, unix.EPOLL_CTL_DEL, r.efd, nil)
	}
}

var _ pmd.Port = (*port)(nil)
