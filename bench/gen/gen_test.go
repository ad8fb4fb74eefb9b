package gen

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/packet"
	"millrace/pmd/mem"
)

// frame makes a template: Ethernet with tags, IPv4 or IPv6, and a protocol; the stamp is the payload's begin.
type frame struct {
	v6    bool
	tags  int
	proto uint8
	size  int // with FCS
	pad   int
}

func (f frame) stream(name string) traffic.Stream {
	b := make([]byte, f.size-4)
	copy(b, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
	off := 12
	for i := range f.tags {
		binary.BigEndian.PutUint16(b[off:], packet.EtherVLAN)
		binary.BigEndian.PutUint16(b[off+2:], uint16(100+i))
		off += 4
	}
	l3 := off + 2
	s := traffic.Stream{Name: name, Rate: traffic.Rate{Value: 1}, Sizes: []uint16{uint16(f.size)}, Template: b}
	s.L3, s.V6, s.Proto, s.Pad = uint16(l3), f.v6, f.proto, uint16(f.pad)
	end := len(b) - f.pad
	l4 := l3 + 20
	if f.v6 {
		l4 = l3 + 40
		binary.BigEndian.PutUint16(b[off:], packet.EtherIPv6)
		packet.IPv6(b[l3:]).Init([16]byte{0x20, 1, 0xd, 0xb8, 15: 1}, [16]byte{0x20, 1, 0xd, 0xb8, 1, 15: 2}, f.proto, end-l4)
		s.Lens = append(s.Lens, traffic.Length{Off: uint16(l3 + 4), Less: uint16(l4 + f.pad)})
	} else {
		binary.BigEndian.PutUint16(b[off:], packet.EtherIPv4)
		packet.IPv4(b[l3:]).Init([4]byte{10, 0, 0, 1}, [4]byte{10, 0, 1, 1}, f.proto, end-l3)
		s.Lens = append(s.Lens, traffic.Length{Off: uint16(l3 + 2), Less: uint16(l3 + f.pad)})
	}
	s.L4 = uint16(l4)
	p := b[l4:]
	head := 8
	switch f.proto {
	case packet.ProtoUDP:
		packet.UDP(p).SetSrcPort(1024)
		packet.UDP(p).SetDstPort(9)
		packet.UDP(p).SetLen(end - l4)
		s.Lens = append(s.Lens, traffic.Length{Off: uint16(l4 + 4), Less: uint16(l4 + f.pad)})
		s.SumOff = uint16(l4 + 6)
	case packet.ProtoTCP:
		head = 20
		p[12] = 5 << 4
		packet.TCP(p).SetFlags(packet.TCPAck)
		s.SumOff = uint16(l4 + 16)
	case packet.ProtoICMP:
		p[0] = packet.ICMPEcho
		s.SumOff = uint16(l4 + 2)
	case packet.ProtoICMPv6:
		p[0] = packet.ICMP6Echo
		s.SumOff = uint16(l4 + 2)
	}
	for i := l4 + head; i < end; i++ {
		b[i] = byte(i)
	}
	s.Stamp = uint16(l4 + head)
	return s
}

func pool(t testing.TB, n int) *packet.Pool {
	t.Helper()
	p, err := packet.NewPool(t.Name(), n)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.Free() != p.Size() {
			t.Errorf("leak: %d of %d buffers free", p.Free(), p.Size())
		}
		p.Close()
	})
	return p
}

// sentBy is the bytes that a source makes of its next n frames, whole packets.
func sentBy(t *testing.T, s *source, c *packet.Cache, n int, now uint64) [][]byte {
	t.Helper()
	var out [][]byte
	var idx [8]uint32
	scratch := make([]byte, 1<<16)
	for len(out) < n {
		k := min(1+len(out)%len(idx), n-len(out))
		if s.big {
			x, ok := s.writeBig(c, scratch, now)
			if !ok {
				t.Fatal("no buffers")
			}
			idx[0], k = x, 1
		} else {
			if c.AllocRaw(idx[:k]) != k {
				t.Fatal("no buffers")
			}
			s.write(idx[:k], now)
		}
		for _, x := range idx[:k] {
			m := packet.At(x)
			b := make([]byte, m.PktLen)
			if m.CopyOut(0, b) != len(b) {
				t.Fatal("a packet is shorter than it says")
			}
			out = append(out, b)
		}
		c.Free(idx[:k])
	}
	return out
}

// randomStream makes a stream with fields anywhere between the Ethernet header and the end.
func randomStream(r *rand.Rand) traffic.Stream {
	f := frame{v6: r.IntN(2) == 0, tags: r.IntN(3), size: 150 + r.IntN(1400)}
	if r.IntN(8) == 0 {
		f.size = 2000 + r.IntN(7000)
	}
	f.proto = []uint8{packet.ProtoUDP, packet.ProtoTCP, packet.ProtoICMP, packet.ProtoICMPv6, 253}[r.IntN(5)]
	st := f.stream("random")
	st.Seed = r.Uint64()
	least := 140
	st.Sizes = nil
	for range 1 + r.IntN(4) {
		st.Sizes = append(st.Sizes, uint16(least+r.IntN(f.size-least+1)))
	}
	busy := make([]bool, least)
	mark := func(off, n int) {
		for i := range n {
			busy[off+i] = true
		}
	}
	mark(int(st.Stamp), stampLen)
	if st.SumOff != 0 {
		mark(int(st.SumOff), 2)
	}
	for _, l := range st.Lens {
		mark(int(l.Off), 2)
	}
	if !f.v6 {
		mark(int(st.L3), 1)    // the header's length stays
		mark(int(st.L3)+10, 2) // checksum
	}
	for range r.IntN(6) {
		w := 1 << r.IntN(4)
		off := 12 + r.IntN(least-4-12-w)
		free := true
		for i := range w {
			free = free && !busy[off+i]
		}
		if !free {
			continue
		}
		mark(off, w)
		x := traffic.Field{
			Off: uint16(off), Width: uint8(w), Kind: traffic.Kind(r.IntN(3)), Min: r.Uint64(), Step: r.Uint64() >> r.IntN(64),
			N: uint64(r.IntN(9)), Every: uint64(r.IntN(4)),
		}
		for range 1 + r.IntN(7) {
			x.List = append(x.List, r.Uint64())
		}
		if r.IntN(3) == 0 {
			x.Mask = r.Uint64() >> (64 - 8*w) & ^uint64(0)
			if x.Mask != 0 && r.IntN(2) == 0 { // and its neighbour in the same bytes
				y := x
				y.Kind, y.N = traffic.Random, 0
				y.Mask = ^x.Mask >> (64 - 8*w) << (64 - 8*w) >> (64 - 8*w)
				y.Mask &= ^uint64(0) >> (64 - 8*w)
				y.Mask &^= x.Mask
				if y.Mask != 0 {
					st.Fields = append(st.Fields, y)
				}
			}
		}
		st.Fields = append(st.Fields, x)
	}
	return st
}

// Every byte of every frame is what the obvious generator makes, and stamps are right.
func TestFrames(t *testing.T) {
	p := pool(t, 256)
	c := p.NewCache()
	defer c.Close()
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 400 {
		st := randomStream(r)
		id, now, tr := uint16(r.Uint32()), r.Uint64(), uint16(r.Uint32())
		s, err := compile(&st, id, st.Sizes)
		if err != nil {
			t.Fatal(err)
		}
		s.word0 = uint64(stampWord(tr))
		for k, got := range sentBy(t, s, c, 40, now) {
			want := st.Frame(uint64(k), st.Size(uint64(k)))
			w := want[st.Stamp:]
			le := binary.LittleEndian
			le.PutUint16(w, stampMagic)
			le.PutUint16(w[2:], tr)
			le.PutUint32(w[4:], uint32(k))
			le.PutUint16(w[8:], id)
			le.PutUint64(w[10:], now&timeMask|uint64(le.Uint16(w[16:]))<<48)
			sum := uint32(0)
			for i := 0; i < 16; i += 2 {
				sum += uint32(le.Uint16(w[i:]))
			}
			for sum > 0xffff {
				sum = sum>>16 + sum&0xffff
			}
			le.PutUint16(w[16:], ^uint16(sum))
			if string(got) != string(want) {
				t.Fatalf("stream %d %+v, packet %d:\n%x\nwant\n%x", round, st, k, got, want)
			}
			sealed := append([]byte(nil), got...)
			st.Seal(sealed)
			if string(got) != string(sealed) {
				t.Fatalf("stream %d, packet %d: with its stamp the checksums are others:\n%x\nwant\n%x", round, k, got, sealed)
			}
		}
	}
}

// pair is two generator ports in memory, joined.
func pair(t testing.TB, ring int) (a, b *mem.Port) {
	a, b = mem.Pair("left", "right", mem.Options{Ring: ring})
	t.Cleanup(func() { a.Close(); b.Close() })
	return a, b
}

func start(t testing.TB, o Options) *Generator {
	t.Helper()
	g, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.Close() })
	return g
}

// Both directions, many kinds of frames: all arrive once.
func TestTry(t *testing.T) {
	p := pool(t, 4096)
	a, b := pair(t, 1024)
	var streams []traffic.Stream
	for i, f := range []frame{
		{proto: packet.ProtoUDP, size: 64}, {v6: true, proto: packet.ProtoUDP, size: 84}, {proto: packet.ProtoTCP, size: 1518},
		{v6: true, proto: packet.ProtoTCP, size: 9000}, {proto: packet.ProtoICMP, size: 64}, {v6: true, proto: packet.ProtoICMPv6, size: 100, tags: 2},
		{proto: packet.ProtoUDP, size: 100, tags: 1, pad: 7}, {proto: 253, size: 77},
	} {
		st := f.stream(fmt.Sprint("s", i))
		st.Side = traffic.Side(i & 1)
		st.Rate.Value = float64(1 + i)
		if i == 7 {
			st.Stamp = 0
		}
		streams = append(streams, st)
	}
	g := start(t, Options{Left: a, Right: b, Streams: streams, Pool: p})
	for _, l := range []trial.Load{
		{Rate: 100e3, Duration: 50 * time.Millisecond},
		{Duration: 20 * time.Millisecond},
		{Rate: 1e6, Frames: 10000},
		{Frames: 20000},
	} {
		o, err := g.Try(context.Background(), l)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%+v: %.0f frames/s, %v", l, o.Achieved(), o)
		if o.Sent == 0 || o.Received != o.Sent || o.Lost+o.Duplicated+o.Reordered+o.Corrupted+o.Foreign != 0 {
			t.Errorf("%+v: %+v", l, o)
		}
		if l.Frames > 0 && o.Sent != l.Frames {
			t.Errorf("%+v: %d sent", l, o.Sent)
		}
		for i, c := range g.Streams() {
			share := float64(o.Sent) * float64(1+i) / 36
			if c.Received != c.Sent || l.Rate > 0 && math.Abs(float64(c.Sent)-share) > share/20+2 {
				t.Errorf("%+v: stream %s sent %d (%f), received %d", l, c.Name, c.Sent, share, c.Received)
			}
		}
	}
}
