// Package fpm is a server of the forwarding plane manager's protocol, by which FRR's zebra gives its
// routes away as rtnetlink messages (zebra -M dplane_fpm_nl).
//
//	zebra --TCP--> frame: version 1, type 1, length (16 bits, big endian, header included)
//	                 `- netlink messages: RTM_NEWROUTE, RTM_DELROUTE, RTM_NEWNEXTHOP, RTM_DELNEXTHOP
//
// # Life of a connection
//
// Each connection has a set of routes of its own (package rib). Zebra sends all that it has when it connects, then what changes. It says neither
// who it is nor when it has sent everything: so the routes of a connection that ended stay, stale, until a younger
// connection has taken them over or their time is over (rib.Set.Retain).
//
// # What is not taken
//
// Routes of the kernel's own protocol: they are connected prefixes and others that zebra has from the kernel, of which it tells
// beginnings and no ends. Routes for labels (LSPs), neighbours and MACs of EVPN are counted only.
//
// # Trust
//
// The protocol knows no authentication: whoever connects decides where packets go. What arrives is nevertheless
// checked: a connection that does not keep to the format is closed, and what it may have the server keep is bounded.
package fpm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"millrace/control/rib"
)

// DefaultPort is where zebra connects to if it is told no other port.
const DefaultPort = 2620

// Options of a Server.
type Options struct {
	Log *zap.Logger // nil for none
	// Stale is how long the routes of a connection that ended stay.
	Stale time.Duration
	// Quiet is for how long nothing was taken over from them by a younger connection when they go earlier.
	Quiet time.Duration
	// Takes says whether routes of a table (by the kernel's number, 0 for main) are of use; nil for main only.
	Takes func(table uint32) bool
}

const (
	// maxClients bounds the connections at once.
	maxClients = 16
	// maxObjects bounds the next-hop objects of a connection, and the members of all its groups.
	maxObjects = 1 << 20
	// maxHops bounds the next hops of a route.
	maxHops = 512
	// halfFrame is how long the rest of a frame may take.
	halfFrame = 30 * time.Second
	// retry is how often the FIB is offered again what it had no room for.
	retry = 10 * time.Second
)

// Server accepts connections of daemons.
type Server struct {
	t   *rib.Table
	o   Options
	log *zap.Logger

	mu      sync.Mutex
	clients []*client
	total   Counts // of connections that ended
	served  uint64 // connections ever
	ended   []Ended
}

// Counts are what a connection sent.
type Counts struct {
	Bytes, Frames uint64
	Added         uint64 // routes set
	Removed       uint64 // routes removed
	Objects       uint64 // changes of next-hop objects
	Labels        uint64 // routes for labels, not taken
	Kernel        uint64 // routes of the kernel's protocol, not taken
	Tables        uint64 // routes of tables that nothing is looked up in, not taken
	Other         uint64 // messages of other kinds, not taken
	Invalid       uint64 // routes that make no sense, not taken
	Refused       uint64 // routes beyond the limit
}

// Ended is how a connection came to its end.
type Ended struct {
	Name string
	At   time.Time
	Why  string
}

// client is a connection.
type client struct {
	conn  net.Conn
	set   *rib.Set
	since time.Time
	n     counts
	reader
}

// counts are Counts while they are written.
type counts struct {
	bytes, frames, added, removed, objects, labels, kernel, tables, other, invalid, refused atomic.Uint64
}

func (c *counts) load() Counts {
	return Counts{c.bytes.Load(), c.frames.Load(), c.added.Load(), c.removed.Load(), c.objects.Load(), c.labels.Load(), c.kernel.Load(),
		c.tables.Load(), c.other.Load(), c.invalid.Load(), c.refused.Load()}
}

func (c *Counts) add(o Counts) {
	c.Bytes += o.Bytes
	c.Frames += o.Frames
	c.Added += o.Added
	c.Removed += o.Removed
	c.Objects += o.Objects
	c.Labels += o.Labels
	c.Kernel += o.Kernel
	c.Tables += o.Tables
	c.Other += o.Other
	c.Invalid += o.Invalid
	c.Refused += o.Refused
}

// New makes a server that puts routes into a table.
func New(t *rib.Table, o Options) *Server {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	if o.Takes == nil {
		o.Takes = func(table uint32) bool { return table == 0 }
	}
	return &Server{t: t, o: o, log: o.Log}
}

// Options are those that the server was made with.
func (s *Server) Options() Options { return s.o }

// Serve accepts connections until ctx ends, and closes the listener and all connections, whose routes
// stay as after any other end of a connection.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	wg.Go(func() { s.tend(ctx) })
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			if err == nil {
				conn.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("fpm: %w", err)
			}
			s.log.Error("accepting a connection", zap.Error(err)) // such as too many open files: it may pass
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
			continue
		}
		c := s.admit(conn)
		if c == nil {
			conn.Close()
			continue
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			s.end(c, c.read(), ctx.Err() != nil)
		})
	}
}

// tend ends what is stale for too long, and offers the FIB again what it refused.
func (s *Server) tend(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	next := time.Now().Add(retry)
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			if n := s.t.Expire(now); n != 0 {
				s.log.Info("routes that no daemon confirmed are gone", zap.Int("routes", n))
			}
			if now.After(next) {
				next = now.Add(retry)
				s.t.Retry()
			}
		}
	}
}

func (s *Server) admit(conn net.Conn) *client {
	name := conn.RemoteAddr().String()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.clients) == maxClients {
		s.log.Error("too many connections, this one is refused", zap.String("client", name), zap.Int("limit", maxClients))
		return nil
	}
	c := &client{conn: conn, set: s.t.NewSet(name), since: time.Now()}
	c.reader = reader{set: c.set, n: &c.n, takes: s.o.Takes}
	c.reader.init()
	s.clients = append(s.clients, c)
	s.served++
	s.log.Info("daemon connected", zap.String("client", name))
	return c
}

// endedMost is how many ends are remembered.
const endedMost = 8

func (s *Server) end(c *client, err error, stopping bool) {
	c.conn.Close()
	routes := c.set.Len()
	why := "closed by the daemon"
	switch {
	case stopping:
		why = "stopped listening"
	case err != nil:
		why = err.Error()
		s.log.Error("connection of a daemon closed", zap.String("client", c.set.Name), zap.Error(err), zap.Int("routes", routes), zap.Duration("kept for", s.o.Stale))
	default:
		s.log.Warn("daemon disconnected", zap.String("client", c.set.Name), zap.Int("routes", routes), zap.Duration("kept for", s.o.Stale))
	}
	c.set.Retain(s.o.Stale, s.o.Quiet)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clients = slices.DeleteFunc(s.clients, func(o *client) bool { return o == c })
	s.total.add(c.n.load())
	s.ended = append(s.ended, Ended{c.set.Name, time.Now(), why})
	s.ended = s.ended[max(0, len(s.ended)-endedMost):]
}

// bufferSize holds four frames of the largest size.
const bufferSize = 256 << 10

// read takes frames until the connection ends; the error says what was wrong with it.
func (c *client) read() error {
	buf := make([]byte, bufferSize)
	have := 0
	for {
		at := time.Time{}
		if have != 0 {
			at = time.Now().Add(halfFrame)
		}
		if err := c.conn.SetReadDeadline(at); err != nil {
			return err
		}
		n, err := c.conn.Read(buf[have:])
		c.n.bytes.Add(uint64(n))
		have += n
		used, bad := c.frames(buf[:have])
		c.flush()
		if bad != nil {
			return bad
		}
		have = copy(buf, buf[used:have])
		switch {
		case err == nil:
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fmt.Errorf("fpm: the rest of a frame did not come within %v", halfFrame)
		case have != 0:
			return fmt.Errorf("fpm: the connection ended inside a frame, after %d bytes of it", have)
		case isClosed(err):
			return nil
		default:
			return fmt.Errorf("fpm: %w", err)
		}
	}
}

// Client is what there is to say about a connection.
type Client struct {
	Name    string
	Since   time.Time
	Routes  int
	Objects int // next-hop objects
	Counts
}

// Status is what there is to say about a server.
type Status struct {
	Served  uint64 // connections since the start
	Clients []Client
	Total   Counts // of all connections ever
	Ended   []Ended
}

// Status tells about connections, present and past.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Served: s.served, Total: s.total, Ended: slices.Clone(s.ended)}
	for _, c := range s.clients {
		n := c.n.load()
		out.Clients = append(out.Clients, Client{c.set.Name, c.since, c.set.Len(), int(c.reader.known.Load()), n})
		out.Total.add(n)
	}
	return out
}
