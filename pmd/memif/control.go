package memif

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	handshake  = 5 * time.Second        // for each message of a handshake
	watchEvery = 100 * time.Millisecond // how soon a fault found by a worker is acted on
	backoffMin = 50 * time.Millisecond
	backoffMax = 2 * time.Second

	maxStrangers = 32 // connections on a socket beyond one for each interface
)

// session is a control channel.
type session struct {
	c   *net.UnixConn
	buf [256]byte // longer than a message, so that a longer one shows
	oob [256]byte
}

// send transmits a message, with a descriptor unless fd is negative.
func (s *session) send(m message, fd int) error {
	var w wire
	m.put(&w)
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	s.c.SetWriteDeadline(time.Now().Add(handshake))
	_, _, err := s.c.WriteMsgUnix(w[:], oob, nil)
	return err
}

// refuse tells the peer why the connection ends.
func (s *session) refuse(why error) { s.send(disconnect{1, why.Error()}, -1) }

// recv waits for a message and its descriptor, -1 where there is none.
func (s *session) recv(d time.Duration) (message, int, error) {
	s.c.SetReadDeadline(time.Now().Add(d))
	n, on, flags, _, err := s.c.ReadMsgUnix(s.buf[:], s.oob[:])
	fds := rights(s.oob[:on])
	fail := func(err error) (message, int, error) {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, -1, err
	}
	switch {
	case err != nil:
		return fail(err)
	case n == 0:
		return fail(io.EOF)
	case flags&unix.MSG_CTRUNC != 0 || len(fds) > 1:
		return fail(errors.New("more than one descriptor in a message"))
	}
	m, err := parse(s.buf[:n])
	if err != nil {
		return fail(err)
	}
	if len(fds) == 1 {
		return m, fds[0], nil
	}
	return m, -1, nil
}

// rights are the descriptors in control data.
func rights(oob []byte) []int {
	var fds []int
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range msgs {
		f, err := unix.ParseUnixRights(&msgs[i])
		if err == nil {
			fds = append(fds, f...)
		}
	}
	return fds
}

// watch publishes a connection and returns, when it has ended and been taken back, why.
func (p *port) watch(s *session, c *conn) error {
	p.connect(c)
	stop := context.AfterFunc(p.ctx, func() { s.c.SetReadDeadline(time.Now()) })
	defer stop()
	var err error
	for err == nil {
		var m message
		var fd int
		m, fd, err = s.recv(watchEvery)
		if fd >= 0 {
			unix.Close(fd)
		}
		switch m := m.(type) {
		case disconnect:
			err = fmt.Errorf("peer disconnects: %s", m.text)
		case nil:
			if errors.Is(err, os.ErrDeadlineExceeded) {
				err = nil
			}
			if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
				err = errors.New("peer is gone")
			} else if err != nil {
				s.refuse(err)
			}
		default:
			err = fmt.Errorf("unexpected message %T", m)
			s.refuse(err)
		}
		if f := c.fault.Load(); f != 0 && err == nil {
			err = errors.New(faults[f])
			s.refuse(err)
		}
		if p.ctx.Err() != nil && err == nil {
			err = errClosed
			s.refuse(err)
		}
	}
	p.note("disconnected from %s: %v", c.peer, err)
	p.retire(c)
	return err
}

// listener is a server's socket, shared by the interfaces with one path.
type listener struct {
	path string
	ln   *net.UnixListener
	wg   sync.WaitGroup

	mu       sync.Mutex
	ports    map[uint32]*port
	sessions map[*session]*port // nil while it is not known for whom
}

var listeners struct {
	sync.Mutex
	by map[string]*listener
}

// listen makes p reachable on the socket.
func listen(path string, p *port) (*listener, error) {
	listeners.Lock()
	defer listeners.Unlock()
	if l := listeners.by[path]; l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		if other := l.ports[p.cfg.ID]; other != nil {
			return nil, fmt.Errorf("interface id %d on %s is taken by port %s", p.cfg.ID, path, other.cfg.Name)
		}
		l.ports[p.cfg.ID] = p
		return l, nil
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l := &listener{path: path, ln: ln, ports: map[uint32]*port{p.cfg.ID: p}, sessions: map[*session]*port{}}
	if listeners.by == nil {
		listeners.by = map[string]*listener{}
	}
	listeners.by[path] = l
	l.wg.Go(l.accept)
	return l, nil
}

// removeStale removes the socket of a server that is no more.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if path[0] == '@' || errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("%s exists and is no socket", path)
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err == nil {
		c.Close()
		return fmt.Errorf("%s is in use by another process", path)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("%s: %w", path, err)
	}
	return os.Remove(path)
}

// leave takes p from the socket, and the socket away after the last one.
func (l *listener) leave(p *port) error {
	listeners.Lock()
	defer listeners.Unlock()
	l.mu.Lock()
	delete(l.ports, p.cfg.ID)
	last := len(l.ports) == 0
	for s, q := range l.sessions {
		if q == nil && last {
			s.c.Close() // a stranger in the middle of a handshake
		}
	}
	l.mu.Unlock()
	if !last {
		return nil
	}
	delete(listeners.by, l.path)
	err := l.ln.Close()
	l.wg.Wait()
	return err
}

func (l *listener) find(id uint32) *port {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ports[id]
}

func (l *listener) accept() {
	for {
		c, err := l.ln.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of descriptors, for example
			time.Sleep(backoffMin)
			continue
		}
		l.wg.Go(func() { l.serve(&session{c: c}) })
	}
}

// greet is what this side can do: the client takes the lower of its and our numbers.
func (l *listener) greet() hello {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 1
	for _, p := range l.ports {
		n = max(n, len(p.queues))
	}
	return hello{
		name: "millrace", minVersion: version, maxVersion: version,
		maxRegion: maxRegions - 1, maxS2C: uint16(n - 1), maxC2S: uint16(n - 1), maxLog: maxLog,
	}
}

// serve lives as long as a client is connected.
func (l *listener) serve(s *session) {
	l.mu.Lock()
	closing := len(l.ports) == 0 || len(l.sessions) >= len(l.ports)+maxStrangers
	l.sessions[s] = nil
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		delete(l.sessions, s)
		l.mu.Unlock()
		s.c.Close()
	}()
	if closing {
		return
	}
	u := &setup{find: l.find}
	defer u.abandon()
	if err := s.send(l.greet(), -1); err != nil {
		return
	}
	for !u.done {
		m, fd, err := s.recv(handshake)
		var answer message
		if err == nil {
			answer, err = u.handle(m, fd)
		}
		if u.port != nil && u.port.ctx.Err() != nil {
			err = errClosed
		}
		if err == nil {
			err = s.send(answer, -1)
		}
		if err != nil {
			s.refuse(err)
			if u.port != nil {
				u.port.note("client %s refused: %v", u.peer, err)
			}
			return
		}
	}
	p := u.port
	if !p.enter() {
		s.refuse(errClosed)
		return
	}
	defer p.wg.Done()
	l.mu.Lock()
	l.sessions[s] = p
	l.mu.Unlock()
	u.port = nil // the connection is the port's
	p.watch(s, u.conn)
	p.busy.Store(false)
}

// enter adds the calling goroutine to those that Close waits for, unless it is too late.
func (p *port) enter() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.wg.Add(1)
	return true
}

// dialLoop keeps a client connected until Close.
func (p *port) dialLoop() {
	wait := backoffMin
	for p.ctx.Err() == nil {
		start := time.Now()
		if err := p.dial(); err != nil {
			p.note("%v", err)
		} else {
			wait = backoffMin
		}
		if time.Since(start) > 2*backoffMax {
			wait = backoffMin // it was connected
		}
		select {
		case <-p.ctx.Done():
		case <-time.After(wait):
		}
		wait = min(2*wait, backoffMax)
	}
}

// dial connects once. Its error is why there was no connection; nil says that
// there was one, and it has ended.
func (p *port) dial() error {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: p.cfg.Socket, Net: "unixpacket"})
	if err != nil {
		return fmt.Errorf("connect to %s: %w", p.cfg.Socket, err)
	}
	s := &session{c: c}
	defer c.Close()
	stop := context.AfterFunc(p.ctx, func() { c.Close() })
	cn, err := p.offerTo(s)
	stop()
	if err != nil {
		return fmt.Errorf("%s: %w", p.cfg.Socket, err)
	}
	p.watch(s, cn)
	return nil
}

// offerTo is the client's side of the handshake.
func (p *port) offerTo(s *session) (*conn, error) {
	m, err := s.expect()
	if err != nil {
		return nil, err
	}
	h, ok := m.(hello)
	if !ok {
		return nil, s.fail(fmt.Errorf("%T instead of HELLO", m))
	}
	if version < h.minVersion || version > h.maxVersion {
		return nil, s.fail(fmt.Errorf("memif version 2.0 is not supported by %s, which speaks %d.%d to %d.%d", h.name,
			h.minVersion>>8, h.minVersion&0xff, h.maxVersion>>8, h.maxVersion&0xff))
	}
	n := min(len(p.queues), int(h.maxS2C)+1, int(h.maxC2S)+1)
	log := min(p.log, h.maxLog)
	if 1<<log < minRing {
		return nil, s.fail(fmt.Errorf("%s allows rings of 2^%d descriptors, this side needs %d", h.name, h.maxLog, minRing))
	}
	c, err := newClient(n, log)
	if err != nil {
		return nil, s.fail(err)
	}
	if err := p.introduce(s, c, log); err != nil {
		c.free()
		return nil, err
	}
	c.peer = h.name + c.peer
	c.offer()
	unix.Close(c.memfd)
	c.memfd = -1
	return c, nil
}

// introduce tells the server about the memory and the rings.
func (p *port) introduce(s *session, c *conn, log uint8) error {
	steps := []struct {
		m  message
		fd int
	}{
		{initiate{version: version, id: p.cfg.ID, mode: modeEthernet, secret: p.secret(), name: "millrace"}, -1},
		{addRegion{0, c.regions[0].size}, c.memfd},
	}
	for dir, rings := range [][]*ring{c.rx, c.tx} {
		for i, r := range rings {
			off := uintptr(r.desc) - ringHeader - uintptr(c.regions[0].base)
			m := addRing{flags: uint16(dir) * ringC2S, index: uint16(i), offset: uint32(off), log: log}
			steps = append(steps, struct {
				m  message
				fd int
			}{m, r.efd})
		}
	}
	for _, step := range steps {
		if err := s.send(step.m, step.fd); err != nil {
			return s.last(err)
		}
		m, err := s.expect()
		if err != nil {
			return err
		}
		if _, ok := m.(ack); !ok {
			return s.fail(fmt.Errorf("%T instead of ACK", m))
		}
	}
	if err := s.send(connect{p.cfg.Name}, -1); err != nil {
		return s.last(err)
	}
	m, err := s.expect()
	if err != nil {
		return err
	}
	done, ok := m.(connected)
	if !ok {
		return s.fail(fmt.Errorf("%T instead of CONNECTED", m))
	}
	c.peer = " " + done.name
	return nil
}

// fail tells the peer and returns the error.
func (s *session) fail(err error) error {
	s.refuse(err)
	return err
}

// last is the reason that a server gave before it closed the socket, or err.
func (s *session) last(err error) error {
	if _, e := s.expect(); e != nil && !errors.Is(e, io.EOF) {
		return e
	}
	return err
}

// expect receives one message of a handshake; a DISCONNECT is an error.
func (s *session) expect() (message, error) {
	m, fd, err := s.recv(handshake)
	if fd >= 0 {
		unix.Close(fd)
	}
	if d, ok := m.(disconnect); ok {
		return nil, fmt.Errorf("peer refuses: %s", d.text)
	}
	return m, err
}
