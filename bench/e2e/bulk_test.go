package e2e

import (
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"millrace/internal/testnet"
)

// transfer sends n random bytes in each direction of one connection at the same time, as a copy
// over SSH does, and compares what arrived.
func transfer(t *testing.T, from, at *testnet.NS, to string, n int64) {
	t.Helper()
	var l net.Listener
	var err error
	at.Do(func() { l, err = net.Listen("tcp", net.JoinHostPort(to, "0")) })
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	server := make(chan net.Conn, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			t.Error(err)
		}
		server <- c
	}()
	var c net.Conn
	from.Do(func() { c, err = net.DialTimeout("tcp", l.Addr().String(), 10*time.Second) })
	if err != nil {
		t.Fatal(err)
	}
	s := <-server
	if s == nil {
		return
	}
	defer c.Close()
	defer s.Close()
	end := time.Now().Add(60 * time.Second)
	c.SetDeadline(end)
	s.SetDeadline(end)
	var wg sync.WaitGroup
	sent, got := [2]hash.Hash{sha256.New(), sha256.New()}, [2]hash.Hash{sha256.New(), sha256.New()}
	for k, pair := range [][2]net.Conn{{c, s}, {s, c}} {
		wg.Go(func() {
			src := io.LimitReader(rand.NewChaCha8([32]byte{byte(k)}), n)
			if _, err := io.Copy(io.MultiWriter(pair[0], sent[k]), src); err != nil {
				t.Errorf("direction %d: send: %v", k, err)
			}
			pair[0].(*net.TCPConn).CloseWrite()
		})
		wg.Go(func() {
			if m, err := io.Copy(got[k], pair[1]); err != nil || m != n {
				t.Errorf("direction %d: %d of %d bytes received, %v", k, m, n, err)
			}
		})
	}
	wg.Wait()
	for k := range sent {
		if a, b := fmt.Sprintf("%x", sent[k].Sum(nil)), fmt.Sprintf("%x", got[k].Sum(nil)); a != b {
			t.Errorf("direction %d: sent %s, received %s", k, a, b)
		}
	}
}

// TestBulk: 50 MB in both directions at once arrive as they were sent.
func TestBulk(t *testing.T) {
	long(t)
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	transfer(t, l.client, l.server, server4, 50e6)
	transfer(t, l.client, l.server, server6, 50e6)
	r.noLeaks()
}
