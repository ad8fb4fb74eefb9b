package memif

import (
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/packet"
	"millrace/pmd"
)

// TestHostile lets one side break the rules of the rings while connected. The other
// counts it, says why to both, and takes the next connection.
func TestHostile(t *testing.T) {
	word := func(r *ring, pos, i int, v uint64) { r.descriptor(uint16(pos))[i] = v }
	for _, c := range []struct {
		name   string
		victim string // role
		attack func(c *conn)
		send   bool // found while transmitting
		want   string
	}{
		{"head jumps", "server", func(c *conn) { c.tx[0].own.Add(5000 << 16) }, false, "index out of range"},
		{"head goes back", "server", func(c *conn) { c.tx[0].own.Add(0xffff << 16) }, false, "index out of range"},
		{"no such region", "server", func(c *conn) { word(c.tx[0], 0, 0, 64<<32|9<<16); c.tx[0].own.Add(1 << 16) }, false, "outside its region"},
		{"offset", "server", func(c *conn) {
			word(c.tx[0], 0, 0, 64<<32)
			word(c.tx[0], 0, 1, c.regions[0].size-63)
			c.tx[0].own.Add(1 << 16)
		}, false, "outside its region"},
		{"endless chain", "server", func(c *conn) {
			for i := range 10 {
				word(c.tx[0], i, 0, 64<<32|descNext)
			}
			c.tx[0].own.Add(10 << 16)
		}, false, "without an end"},
		{"offered too much", "server", func(c *conn) { c.rx[0].own.Add(7 << 16) }, true, "index out of range"},
		{"offered nothing", "server", func(c *conn) { word(c.rx[0], 0, 0, 0) }, true, "impossible length"},
		{"offered outside", "server", func(c *conn) { word(c.rx[0], 0, 1, 0xffffffff) }, true, "outside its region"},
		{"tail jumps", "client", func(c *conn) { c.tx[0].own.Store(5000) }, false, "index out of range"},
		{"length", "client", func(c *conn) { word(c.tx[0], 0, 0, (bufSize+1)<<32); c.tx[0].own.Store(1) }, false, "impossible length"},
		{"tail before head", "client", func(c *conn) { c.rx[0].own.Store(1) }, true, "index out of range"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			pool := newPool(t, 1024)
			ports := map[string]pmd.Port{
				"server": open(t, pmd.Config{Role: "server", Socket: path}),
				"client": open(t, pmd.Config{Role: "client", Socket: path}),
			}
			victim, villain := ports[c.victim], ports["client"]
			if c.victim == "client" {
				villain = ports["server"]
			}
			v, w := start(t, victim, pool), start(t, villain, pool)
			wait(t, "links", func() bool { return victim.Link().Up && villain.Link().Up })
			var rx [64]uint32
			v.q.Rx(rx[:])
			w.q.Rx(nil) // takes up the connection, so that it stays mapped
			c.attack(villain.(*port).queues[0].cur)
			if c.send {
				pkt := rx[:1]
				v.cache.Alloc(pkt)
				packet.At(pkt[0]).Append(60)
				if n := v.q.Tx(pkt); n != 0 {
					t.Errorf("Tx took %d", n)
				}
				v.cache.Free(pkt)
			} else if n := v.q.Rx(rx[:]); n != 0 {
				t.Errorf("received %d packets", n)
				v.cache.Free(rx[:n])
			}
			if n := victim.Stats().RxBad; n != 1 {
				t.Errorf("RxBad is %d", n)
			}
			wait(t, "the victim's reason", says(victim, c.want))
			wait(t, "the villain's reason", says(villain, "peer disconnects: "+faultText(c.want)))
			wait(t, "a new connection", func() bool {
				v.q.Rx(nil)
				w.q.Rx(nil)
				return victim.Link().Up && villain.Link().Up && victim.(*port).queues[0].rx != nil && villain.(*port).queues[0].rx != nil
			})
			w.send(t, 3, 5)
			v.receive(t, 3, 5)
			v.send(t, 3, 6)
			w.receive(t, 3, 6)
		})
	}
}

func faultText(part string) string {
	for _, f := range faults {
		if strings.Contains(f, part) {
			return f
		}
	}
	return part
}

// TestStrangers sends a server what is no client's.
func TestStrangers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	server := open(t, pmd.Config{Role: "server", Socket: path})
	for _, c := range []struct {
		name string
		say  []message
		want string
	}{
		{"old version", []message{initiate{version: 0x0100}}, "version 1.0 is not supported"},
		{"IP mode", []message{initiate{version: version, mode: 1}}, "mode 1 is not supported"},
		{"no INIT", []message{addRegion{0, 4096}}, "unexpected message"},
		{"INIT twice", []message{initiate{version: version}, initiate{version: version}}, "unexpected message"},
		{"region without memory", []message{initiate{version: version}, addRegion{0, 4096}}, "without a descriptor"},
		{"nothing to connect", []message{initiate{version: version}, connect{"x"}}, "without rings"},
		{"HELLO", []message{initiate{version: version}, hello{}}, "unexpected message"},
	} {
		s := dialRaw(t, path)
		if m, _, err := s.recv(handshake); err != nil {
			t.Fatal(err)
		} else if h, ok := m.(hello); !ok || h.minVersion != version || h.maxVersion != version {
			t.Errorf("greeting %+v", m)
		}
		var err error
		for _, m := range c.say {
			if err = s.send(m, -1); err == nil {
				_, err = s.expect()
			}
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		s.c.Close()
	}
	s := dialRaw(t, path)
	s.recv(handshake)
	s.c.Write([]byte("GET / HTTP/1.1\r\n"))
	if _, err := s.expect(); err == nil || !strings.Contains(err.Error(), "message of 16 bytes") {
		t.Errorf("noise: %v", err)
	}
	if server.Link().Up || server.(*port).busy.Load() {
		t.Error("the server takes a stranger for a client")
	}
}

func dialRaw(t *testing.T, path string) *session {
	t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &session{c: c}
}

// TestWrongServer lets a client meet servers that it cannot use.
func TestWrongServer(t *testing.T) {
	for _, c := range []struct {
		name  string
		greet message
		want  string
		told  bool // the client says so
	}{
		{"version", hello{name: "new", minVersion: 0x300, maxVersion: 0x301, maxLog: 14}, "speaks 3.0 to 3.1", true},
		{"rings", hello{name: "tiny", minVersion: version, maxVersion: version, maxLog: 3}, "rings of 2^3", true},
		{"not HELLO", connected{"x"}, "instead of HELLO", true},
		{"refusal", disconnect{1, "go away"}, "go away", false},
	} {
		path := filepath.Join(t.TempDir(), "s")
		ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err != nil {
			t.Fatal(err)
		}
		client := open(t, pmd.Config{Role: "client", Socket: path})
		ln.SetDeadline(time.Now().Add(10 * time.Second))
		conn, err := ln.AcceptUnix()
		if err != nil {
			t.Fatal(err)
		}
		s := &session{c: conn}
		if err := s.send(c.greet, -1); err != nil {
			t.Fatal(err)
		}
		_, err = s.expect()
		if c.told && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: server hears %v, want %q", c.name, err, c.want)
		}
		if !c.told && !errors.Is(err, io.EOF) {
			t.Errorf("%s: server hears %v", c.name, err)
		}
		wait(t, "the client's reason", says(client, c.want))
		client.Close()
		conn.Close()
		ln.Close()
	}
}
