package memif

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/porttest"
)

func open(t testing.TB, cfg pmd.Config) pmd.Port {
	t.Helper()
	if cfg.Name == "" {
		cfg.Name = cfg.Role
	}
	p, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func newPool(t testing.TB, n int) *packet.Pool {
	t.Helper()
	pool, err := packet.NewPool(t.Name(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if pool.Free() != pool.Size() {
			t.Errorf("%d buffers of %d are missing", pool.Size()-pool.Free(), pool.Size())
			return
		}
		pool.Close()
	})
	return pool
}

// wait polls for something that another goroutine or process does.
func wait(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func up(p pmd.Port) func() bool   { return func() bool { return p.Link().Up } }
func down(p pmd.Port) func() bool { return func() bool { return !p.Link().Up } }

func says(p pmd.Port, what string) func() bool {
	return func() bool { return strings.Contains(strings.Join(p.Why(), "\n"), what) }
}

func TestConformance(t *testing.T) {
	for _, c := range []struct {
		name           string
		server, client pmd.Config
		clientFirst    bool
	}{
		{"default", pmd.Config{}, pmd.Config{}, false},
		{"three queues, short rings", pmd.Config{Queues: 3}, pmd.Config{Queues: 3, Ring: 64}, true},
		{"server has more queues", pmd.Config{Queues: 4}, pmd.Config{Queues: 2}, false},
		{"client has more queues", pmd.Config{Queues: 1}, pmd.Config{Queues: 3, Ring: 256}, false},
		{"abstract socket, secret", pmd.Config{Secret: "sesame", ID: 7}, pmd.Config{Secret: "sesame", ID: 7, Ring: 4096}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "memif.sock")
			if c.server.Secret != "" {
				path = fmt.Sprintf("@millrace-memif-%d", os.Getpid())
			}
			porttest.Run(t, porttest.Pair{
				Buffers: 16384,
				Open: func(t testing.TB, pool *packet.Pool) (a, b pmd.Port) {
					s, k := c.server, c.client
					s.Role, s.Socket, s.Pool = "server", path, pool
					k.Role, k.Socket, k.Pool = "client", path, pool
					if c.clientFirst {
						b = open(t, k)
						return open(t, s), b
					}
					a = open(t, s)
					return a, open(t, k)
				},
			})
		})
	}
}

func TestConfig(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	for _, c := range []struct {
		cfg  pmd.Config
		want string
	}{
		{pmd.Config{Socket: path}, "server or client"},
		{pmd.Config{Role: "master", Socket: path}, "server or client"},
		{pmd.Config{Role: "server"}, "socket is missing"},
		{pmd.Config{Role: "server", Socket: "@"}, "socket is missing"},
		{pmd.Config{Role: "server", Socket: strings.Repeat("x", 108)}, "longer"},
		{pmd.Config{Role: "server", Socket: path, Secret: strings.Repeat("x", 25)}, "secret has 25"},
		{pmd.Config{Role: "server", Socket: path, Queues: 65}, "65 queues"},
		{pmd.Config{Role: "server", Socket: path, Ring: 16385}, "ring of 16385"},
		{pmd.Config{Role: "server", Socket: path, MTU: 65536}, "MTU 65536"},
		{pmd.Config{Role: "server", Socket: path, Mode: "native"}, "not for this driver"},
		{pmd.Config{Role: "server", Socket: filepath.Join(path, "none", "s")}, "no such file"},
		{pmd.Config{Role: "server", Socket: "memif_test.go"}, "is no socket"},
	} {
		p, err := Open(c.cfg)
		if err == nil {
			p.Close()
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q", c.cfg, err, c.want)
		}
	}
}

func TestRefusals(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	server := open(t, pmd.Config{Role: "server", Socket: path, ID: 1, Secret: "right"})
	if _, err := Open(pmd.Config{Name: "twice", Role: "server", Socket: path, ID: 1}); err == nil || !strings.Contains(err.Error(), "taken by port server") {
		t.Errorf("the same id twice: %v", err)
	}
	other := open(t, pmd.Config{Name: "other", Role: "server", Socket: path, ID: 2})
	for _, c := range []struct {
		cfg  pmd.Config
		want string
	}{
		{pmd.Config{ID: 1, Secret: "wrong"}, "wrong secret"},
		{pmd.Config{ID: 1}, "wrong secret"},
		{pmd.Config{ID: 3}, "no interface with id 3"},
	} {
		c.cfg.Role, c.cfg.Socket = "client", path
		p := open(t, c.cfg)
		wait(t, c.want, says(p, c.want))
		if p.Link().Up {
			t.Errorf("%+v is up", c.cfg)
		}
		p.Close()
	}
	wait(t, "the server to say why", says(server, "wrong secret"))
	good := open(t, pmd.Config{Role: "client", Socket: path, ID: 1, Secret: "right"})
	free := open(t, pmd.Config{Role: "client", Socket: path, ID: 2, Secret: "not asked for"})
	for _, p := range []pmd.Port{server, other, good, free} {
		wait(t, "links", up(p))
	}
	third := open(t, pmd.Config{Role: "client", Socket: path, ID: 2})
	wait(t, "refusal of a second client", says(third, "already has a client"))
	free.Close()
	wait(t, "the next client's turn", up(third))
	wait(t, "the reason", says(other, "interface closed"))
}

// TestStale starts a server where a dead one left its socket, and not where one lives.
func TestStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	server := open(t, pmd.Config{Role: "server", Socket: path})
	server.(*port).listen.ln.SetUnlinkOnClose(false)
	listeners.Lock() // as another process would see it
	saved := listeners.by[path]
	delete(listeners.by, path)
	listeners.Unlock()
	if _, err := Open(pmd.Config{Role: "server", Socket: path}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("socket of a living server: %v", err)
	}
	listeners.Lock()
	listeners.by[path] = saved
	listeners.Unlock()
	server.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatal(err)
	}
	open(t, pmd.Config{Role: "server", Socket: path}).Close()
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("Close leaves the socket: %v", err)
	}
}

// end is a port with one queue being polled by the test's thread.
type end struct {
	port  pmd.Port
	q     pmd.Queue
	cache *packet.Cache
}

func start(t testing.TB, p pmd.Port, pool *packet.Pool) *end {
	t.Helper()
	e := &end{p, p.Queue(0), pool.NewCache()}
	if err := e.q.Start(e.cache); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.stop)
	return e
}

func (e *end) stop() {
	if e.cache != nil {
		e.q.Stop()
		e.cache.Close()
		e.cache = nil
	}
}

// send transmits n frames whose bytes are all the given one.
func (e *end) send(t testing.TB, n int, fill byte) {
	t.Helper()
	pkts := make([]uint32, n)
	if e.cache.Alloc(pkts) != n {
		t.Fatal("no buffers")
	}
	for _, i := range pkts {
		b := packet.At(i).Append(60)
		for j := range b {
			b[j] = fill
		}
	}
	if k := e.q.Tx(pkts); k != n {
		e.cache.Free(pkts[k:])
		t.Fatalf("Tx took %d of %d", k, n)
	}
}

// receive waits for n frames like those of send.
func (e *end) receive(t testing.TB, n int, fill byte) {
	t.Helper()
	var rx [64]uint32
	wait(t, fmt.Sprintf("%d frames", n), func() bool {
		k := e.q.Rx(rx[:min(n, 64)])
		for _, i := range rx[:k] {
			if b := packet.At(i).Bytes(); len(b) != 60 || b[0] != fill || b[59] != fill {
				t.Errorf("frame of %d bytes, %x, want 60 of %x", len(b), b, fill)
			}
		}
		e.cache.Free(rx[:k])
		n -= k
		return n == 0
	})
}

// TestReconnect lets each side go and come back while the other runs, and looks at
// what is left in the rings.
func TestReconnect(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	pool := newPool(t, 4096)
	server := open(t, pmd.Config{Role: "server", Socket: path})
	s := start(t, server, pool)
	for i := range byte(3) {
		client := open(t, pmd.Config{Role: "client", Socket: path})
		c := start(t, client, pool)
		wait(t, "links", func() bool { return server.Link().Up && client.Link().Up })
		c.q.Rx(nil)
		s.q.Rx(nil)
		c.send(t, 50, i)
		s.send(t, 40, i)
		c.receive(t, 40, i)
		s.receive(t, 20, i)
		c.stop()
		client.Close()
		wait(t, "link down", down(server))
		s.receive(t, 30, i) // what the client left is not lost
		var none [1]uint32
		if n := s.q.Rx(none[:]); n != 0 || s.q.Tx(nil) != 0 {
			t.Fatal("packets from nowhere")
		}
	}
	s.stop()
	client := open(t, pmd.Config{Role: "client", Socket: path})
	c := start(t, client, pool)
	wait(t, "links", up(client))
	server.Close()
	wait(t, "link down", down(client))
	var pkt [1]uint32
	c.cache.Alloc(pkt[:])
	packet.At(pkt[0]).Append(60)
	before := client.Stats().TxFull
	c.q.Rx(nil)
	if c.q.Tx(pkt[:]) != 0 || client.Stats().TxFull != before+1 {
		t.Error("a port without a link takes packets")
	}
	c.cache.Free(pkt[:])
	server = open(t, pmd.Config{Role: "server", Socket: path})
	s = start(t, server, pool)
	wait(t, "links", func() bool { return client.Link().Up && server.Link().Up })
	c.q.Rx(nil)
	c.send(t, 10, 9)
	s.receive(t, 10, 9)
	s.stop()
	c.stop()
	if n := mappings(t); n == 0 {
		t.Error("no region is mapped while connected")
	}
	client.Close()
	server.Close()
	if n := mappings(t); n != 0 {
		t.Errorf("%d regions are still mapped after Close", n)
	}
}

// mappings counts the regions in this process.
func mappings(t *testing.T) int {
	b, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "memif region")
}
