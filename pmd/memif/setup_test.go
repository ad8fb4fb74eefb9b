package memif

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

// TestRefusedSetups offers a server memory and rings that it must not use.
func TestRefusedSetups(t *testing.T) {
	memfd := func(flags int, size int64) int {
		fd, err := unix.MemfdCreate("test", flags|unix.MFD_CLOEXEC)
		if err == nil {
			err = unix.Ftruncate(fd, size)
		}
		if err != nil {
			t.Fatal(err)
		}
		return fd
	}
	good := func() int { return passed(t, 1) }
	event := func() int { return passed(t, 2) }
	ring := func(m addRing) addRing {
		if m.log == 0 {
			m.log = 8
		}
		return m
	}
	for _, c := range []struct {
		name string
		m    message
		fd   int
		want string
	}{
		{"file", addRegion{0, 4096}, func() int {
			f, err := os.Create(filepath.Join(t.TempDir(), "f"))
			if err != nil {
				t.Fatal(err)
			}
			f.Truncate(4096)
			defer f.Close()
			fd, _ := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
			return fd
		}(), "not sealed"},
		{"memory that cannot be sealed", addRegion{0, 4096}, memfd(0, 4096), "not sealed"},
		{"short memory", addRegion{0, 8192}, memfd(unix.MFD_ALLOW_SEALING, 4096), "is said to have 8192 bytes and has 4096"},
		{"no memory", addRegion{0, 0}, good(), "is said to have 0 bytes"},
		{"region out of turn", addRegion{2, 4096}, good(), "where 1 would be next"},
		{"ring without eventfd", ring(addRing{}), -1, "without an eventfd"},
		{"ring with memory as eventfd", ring(addRing{}), good(), "is no eventfd"},
		{"third queue", ring(addRing{index: 2}), event(), "this side has 2 queues"},
		{"long ring", addRing{log: 15}, event(), "longest is 2^14"},
		{"private header", ring(addRing{private: 8}), event(), "private header"},
		{"other region", ring(addRing{region: 1}), event(), "region 1 of 1"},
		{"crooked ring", ring(addRing{offset: 4}), event(), "no multiple of 8"},
		{"ring over the edge", ring(addRing{offset: 1<<20 - 8}), event(), "reaches beyond"},
		{"no cookie", connect{}, -1, "wrong cookie"},
	} {
		p := &port{cfg: pmd.Config{Name: c.name}, queues: make([]*queue, 2), ctx: context.Background()}
		u := &setup{find: func(uint32) *port { return p }}
		ask := func(m message, fd int) error {
			_, err := u.handle(m, fd)
			return err
		}
		err := ask(initiate{version: version}, -1)
		if m, region := c.m.(addRegion); err == nil && (!region || m.index > 0) {
			err = ask(addRegion{0, 1 << 20}, good())
		}
		if _, ok := c.m.(connect); err == nil && ok {
			err = ask(addRing{flags: ringC2S, offset: 1 << 19, log: 8}, event())
		}
		if err != nil {
			t.Fatal(err)
		}
		err = ask(c.m, c.fd)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		u.abandon()
		if c.fd >= 0 {
			if _, err := unix.FcntlInt(uintptr(c.fd), unix.F_GETFD, 0); err == nil {
				t.Errorf("%s: the descriptor stays open", c.name)
			}
		}
	}
}

// TestWake sleeps on the queue's descriptor while the link comes, packets come from
// another thread, and the link goes.
func TestWake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	pool := newPool(t, 1024)
	for _, role := range []string{"server", "client"} {
		other := map[string]string{"server": "client", "client": "server"}[role]
		p := open(t, pmd.Config{Role: role, Socket: path})
		e := start(t, p, pool)
		sleep := func(what string, until func() bool) {
			t.Helper()
			for !until() {
				if !e.q.Arm() {
					e.q.Rx(nil)
					continue
				}
				n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.q.Fd()), Events: unix.POLLIN}}, 10000)
				if err != unix.EINTR && (n != 1 || err != nil) {
					t.Fatalf("%s: not woken when %s: %d, %v", role, what, n, err)
				}
				e.q.Rx(nil)
			}
		}
		peer := make(chan pmd.Port)
		go func() {
			q, err := Open(pmd.Config{Name: other, Role: other, Socket: path})
			if err != nil {
				t.Error(err)
			}
			peer <- q
		}()
		sleep("the link comes", up(p))
		q := <-peer
		wait(t, "the other side's link", up(q))
		f := start(t, q, pool)
		for i := range 20 {
			wait(t, "nothing to do", func() bool { return e.q.Rx(nil) == 0 && e.q.Arm() })
			done := make(chan int)
			go func() {
				var pkt [1]uint32
				f.cache.Alloc(pkt[:])
				packet.At(pkt[0]).Append(60)
				f.q.Rx(nil)
				done <- f.q.Tx(pkt[:])
			}()
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.q.Fd()), Events: unix.POLLIN}}, 10000)
			if n != 1 && err != unix.EINTR {
				t.Fatalf("%s: packet %d: poll says %d, %v", role, i, n, err)
			}
			if n := <-done; n != 1 {
				t.Fatalf("Tx took %d", n)
			}
			var rx [1]uint32
			wait(t, "the packet", func() bool { return e.q.Rx(rx[:]) == 1 })
			e.cache.Free(rx[:])
		}
		f.stop()
		go q.Close()
		sleep("the link goes", down(p))
		e.stop()
		p.Close()
		q.Close()
	}
}
