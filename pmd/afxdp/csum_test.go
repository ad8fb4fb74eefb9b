package afxdp

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

// slowSum is the one's complement sum, as RFC 1071 writes it.
func slowSum(b []byte) uint16 {
	s := uint32(0)
	for i, x := range b {
		s += uint32(x) << (8 * (1 - i&1))
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

// l4 finds a frame's upper layer: its offset, its checksum field and the pseudo header.
func l4(f []byte) (off, field int, pseudo []byte) {
	ts := types(f)
	l3 := 14 + 4*(len(ts)-1)
	h := f[l3:]
	var proto byte
	if ts[len(ts)-1] == 0x0800 {
		off, proto = l3+int(h[0]&15)*4, h[9]
		pseudo = append(pseudo, h[12:20]...)
	} else {
		off, proto = l3+40, h[6]
		if proto == 0 || proto == 60 {
			off, proto = off+8, h[40]
		}
		pseudo = append(pseudo, h[8:40]...)
	}
	pseudo = binary.BigEndian.AppendUint32(pseudo, uint32(len(f)-off))
	pseudo = append(pseudo, 0, 0, 0, proto)
	if field = off + 6; proto == 6 {
		field = off + 16
	}
	return off, field, pseudo
}

// whole is whether a frame's upper-layer checksum is right.
func whole(f []byte) bool {
	off, _, pseudo := l4(f)
	return slowSum(append(pseudo, f[off:]...)) == 0xffff
}

func TestFinishChecksum(t *testing.T) {
	pool := newPool(t, 128)
	c := pool.NewCache()
	rnd := rand.New(rand.NewPCG(1, 2))
	mac := []byte{2, 2, 2, 2, 2, 2}
	hop := func(next byte, p []byte) []byte { return append([]byte{next, 0, 1, 4, 0, 0, 0, 0}, p...) }
	frag := func(p []byte) []byte { p[6] = 0x20; return p }
	tcp := func(d []byte) []byte {
		return append([]byte{0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0x50, 0, 0, 0, 0, 0, 0, 0}, d...)
	}
	for _, k := range []struct {
		name   string
		make   func(d []byte) []byte
		finish bool
	}{
		{"udp4", func(d []byte) []byte { return append(eth(mac, mac, 0x800), ip4("192.0.2.1", 17, udp(1, 2, d))...) }, true},
		{"tcp4", func(d []byte) []byte { return append(eth(mac, mac, 0x800), ip4("192.0.2.1", 6, tcp(d))...) }, true},
		{"udp6", func(d []byte) []byte {
			return append(eth(mac, mac, 0x86dd), ip6("2001:db8::7", 17, udp(1, 2, d))...)
		}, true},
		{"tcp6 behind options", func(d []byte) []byte {
			return append(eth(mac, mac, 0x86dd), ip6("2001:db8::7", 0, hop(6, tcp(d)))...)
		}, true},
		{"udp4 in a tag", func(d []byte) []byte {
			return append(eth(mac, mac, 0x8100, 0x800), ip4("192.0.2.1", 17, udp(1, 2, d))...)
		}, true},
		{"tcp6 in two tags", func(d []byte) []byte {
			return append(eth(mac, mac, 0x88a8, 0x8100, 0x86dd), ip6("2001:db8::7", 6, tcp(d))...)
		}, true},
		{"udp4 fragment", func(d []byte) []byte {
			return append(eth(mac, mac, 0x800), frag(ip4("192.0.2.1", 17, udp(1, 2, d)))...)
		}, false},
		{"icmp", func(d []byte) []byte { return append(eth(mac, mac, 0x800), ip4("192.0.2.1", 1, udp(1, 2, d))...) }, false},
	} {
		for range 200 {
			d := make([]byte, rnd.IntN(3000))
			for i := range d {
				d[i] = byte(rnd.Uint32())
			}
			f := k.make(d)
			off, field, pseudo := l4(f)
			binary.BigEndian.PutUint16(f[field:], slowSum(pseudo))
			pad := make([]byte, rnd.IntN(20)) // after the packet, as short frames have
			for i := range pad {
				pad[i] = byte(rnd.Uint32())
			}
			m := chain(t, c, append(bytes.Clone(f), pad...), 100+rnd.IntN(1700))
			finishChecksum(m)
			got := make([]byte, m.PktLen)
			m.CopyOut(0, got)
			c.Free1(m)
			got = got[:len(f)]
			if k.finish != whole(got) && k.finish {
				t.Fatalf("%s: %d bytes: checksum % x is wrong", k.name, len(f), got[field:field+2])
			}
			if !k.finish && !bytes.Equal(got, f) {
				t.Fatalf("%s: changed", k.name)
			}
			got[field], got[field+1] = f[field], f[field+1]
			if !bytes.Equal(got, f) {
				t.Fatalf("%s: changed more than the checksum", k.name)
			}
			// A finished one stays.
			if k.finish {
				binary.BigEndian.PutUint16(f[field:], 0)
				binary.BigEndian.PutUint16(f[field:], ^slowSum(append(pseudo, f[off:]...)))
				m = chain(t, c, f, 100+rnd.IntN(1700))
				finishChecksum(m)
				got = make([]byte, m.PktLen)
				m.CopyOut(0, got)
				c.Free1(m)
				if !bytes.Equal(got, f) {
					t.Fatalf("%s: a right checksum was damaged", k.name)
				}
			}
		}
	}
	c.Close()
	if pool.Free() != pool.Size() {
		t.Errorf("%d of %d buffers free", pool.Free(), pool.Size())
	}
}

// FuzzFinishChecksum: nothing but two bytes ever changes, whatever the bytes are.
func FuzzFinishChecksum(f *testing.F) {
	mac := []byte{2, 2, 2, 2, 2, 2}
	f.Add(append(eth(mac, mac, 0x800), ip4("192.0.2.1", 17, udp(1, 2, []byte("data")))...), uint16(20))
	f.Add(append(eth(mac, mac, 0x8100, 0x86dd), ip6("2001:db8::7", 6, make([]byte, 20))...), uint16(100))
	f.Add(append(eth(mac, mac, 0x86dd), ip6("2001:db8::7", 0, []byte{17, 200})...), uint16(100))
	pool, err := packet.NewPool("fuzz", 1024)
	if err != nil {
		f.Fatal(err)
	}
	c := pool.NewCache()
	f.Fuzz(func(t *testing.T, b []byte, seg uint16) {
		if len(b) == 0 || len(b) > 4000 {
			return
		}
		m := chain(t, c, b, max(14, int(seg)%packet.DataRoom))
		finishChecksum(m)
		got := make([]byte, m.PktLen)
		m.CopyOut(0, got)
		c.Free1(m)
		first := -1
		for i := range b {
			if got[i] == b[i] {
				continue
			}
			if first < 0 {
				first = i
			}
			if i > first+1 {
				t.Fatalf("bytes %d and %d changed", first, i)
			}
		}
	})
}

// TestUnfinished: what a real sender behind a virtual pair leaves unfinished arrives whole.
func TestUnfinished(t *testing.T) {
	r := newRig(t, pmd.Config{}, "mtu", "9000")
	defer r.end()
	r.b.Run(t, "ip", "route", "add", "default", "via", "10.0.0.1")
	r.b.Run(t, "ip", "-6", "route", "add", "default", "via", "2001:db8::1")
	send := func(typ int, to unix.Sockaddr, n int) {
		r.b.Do(func() {
			fam := unix.AF_INET
			if _, ok := to.(*unix.SockaddrInet6); ok {
				fam = unix.AF_INET6
			}
			fd, err := unix.Socket(fam, typ|unix.SOCK_NONBLOCK, 0)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Close(fd) })
			if err := unix.Connect(fd, to); err != nil && err != unix.EINPROGRESS {
				t.Fatal(err)
			}
			if typ == unix.SOCK_DGRAM {
				if _, err := unix.Write(fd, bytes.Repeat([]byte("x"), n)); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	v4 := &unix.SockaddrInet4{Port: 5, Addr: [4]byte{203, 0, 113, 5}}
	v6 := &unix.SockaddrInet6{Port: 5, Addr: [16]byte{0x20, 1, 0xd, 0xb8, 9, 15: 1}}
	for _, c := range []struct {
		name  string
		typ   int
		to    unix.Sockaddr
		size  int
		etype uint16
		proto byte
	}{
		{"udp4", unix.SOCK_DGRAM, v4, 100, 0x0800, 17},
		{"udp4 jumbo", unix.SOCK_DGRAM, v4, 7001, 0x0800, 17},
		{"tcp4", unix.SOCK_STREAM, v4, 0, 0x0800, 6},
		{"udp6", unix.SOCK_DGRAM, v6, 333, 0x86dd, 17},
		{"tcp6", unix.SOCK_STREAM, v6, 0, 0x86dd, 6},
	} {
		send(c.typ, c.to, c.size)
		b := r.recv(5*time.Second, func(b []byte) bool {
			if len(b) < c.size || types(b)[0] != c.etype {
				return false
			}
			proto := b[20]
			if c.etype == 0x0800 {
				proto = b[23]
			}
			return proto == c.proto
		})
		if b == nil {
			t.Errorf("%s: did not come", c.name)
		} else if !whole(b) {
			t.Errorf("%s: %d bytes, checksum is wrong", c.name, len(b))
		}
	}
}
