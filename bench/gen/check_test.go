package gen

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"millrace/bench/traffic"
	"millrace/packet"
)

// put makes a packet of a frame, cut into segments at random places.
func put(t *testing.T, c *packet.Cache, r *rand.Rand, f []byte) uint32 {
	t.Helper()
	cuts := []int{len(f)}
	for range r.IntN(4) * r.IntN(2) {
		cuts = append(cuts, 1+r.IntN(len(f)-1))
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	for i := 0; i < len(cuts); i++ { // no segment is larger than a buffer
		from := 0
		if i > 0 {
			from = cuts[i-1]
		}
		if cuts[i]-from > packet.DataRoom {
			cuts = slices.Insert(cuts, i, from+packet.DataRoom)
		}
	}
	var head, last *packet.Mbuf
	from := 0
	for _, to := range cuts {
		m := c.Alloc1()
		if m == nil {
			t.Fatal("no buffers")
		}
		m.DataLen = uint16(to - from)
		copy(m.Bytes(), f[from:to])
		from = to
		if head == nil {
			head = m
		} else {
			last.SetNext(m)
		}
		last = m
	}
	head.PktLen, head.NbSegs = uint32(len(f)), uint16(len(cuts))
	return head.Index()
}

// change does to a frame what a thing under test may do, with right checksums.
func change(r *rand.Rand, st *traffic.Stream, f []byte) []byte {
	f = slices.Clone(f)
	l := st.Layout
	switch r.IntN(3) {
	case 0: // tag it
		f = slices.Insert(f, 12, 0x81, 0, 0, 77)
		shift(&l, 4)
	case 1: // take a tag off
		if f[12] == 0x81 {
			f = slices.Delete(f, 12, 16)
			shift(&l, -4)
		}
	}
	copy(f, []byte{2, 9, 9, 9, 9, 9, 2, 8, 8, 8, 8, 8})
	if l.V6 {
		h := packet.IPv6(f[l.L3:])
		h.SetHopLimit(h.HopLimit() - 1)
		h.SetSrc([16]byte{0: 0xfc, 15: byte(r.Uint32())}) // NAT66
	} else {
		h := packet.IPv4(f[l.L3:])
		h.SetTTL(h.TTL() - 1)
		h.SetSrc([4]byte{192, 0, 2, byte(r.Uint32())})
	}
	l.Seal(f)
	return tunnel(r, f, &l)
}

// shift moves a layout by n bytes.
func shift(l *traffic.Layout, n int) {
	for _, p := range []*uint16{&l.L3, &l.L4, &l.SumOff, &l.Stamp} {
		if *p != 0 {
			*p = uint16(int(*p) + n)
		}
	}
}

// tunnel puts the frame's packet into another, sometimes.
func tunnel(r *rand.Rand, f []byte, l *traffic.Layout) []byte {
	var outer []byte
	inner := f[l.L3 : len(f)-int(l.Pad)]
	kind := uint16(packet.EtherIPv4)
	proto := byte(packet.ProtoIPIP)
	if l.V6 {
		kind, proto = packet.EtherIPv6, packet.ProtoIPv6
	}
	switch r.IntN(8) {
	case 0: // IP in IP
		outer = make([]byte, 20)
	case 1: // GRE with a key
		outer = make([]byte, 28)
		proto = packet.ProtoGRE
		outer[20] = 0x20
		binary.BigEndian.PutUint16(outer[22:], kind)
	case 2: // VXLAN
		outer = make([]byte, 36)
		proto = packet.ProtoUDP
		binary.BigEndian.PutUint16(outer[22:], 4789)
		outer[28] = 8
		inner = f[:len(f)-int(l.Pad)]
		binary.BigEndian.PutUint16(outer[24:], uint16(16+len(inner)))
	case 3: // MPLS
		b := slices.Concat(f[:12], []byte{0x88, 0x47, 0, 1, 0, 64, 0, 2, 1, 64}, inner)
		return b
	default:
		return f
	}
	h := packet.IPv4(outer)
	h.Init([4]byte{1, 1, 1, 1}, [4]byte{2, 2, 2, 2}, proto, len(outer)+len(inner))
	h.SetSum()
	return slices.Concat(f[:12], []byte{8, 0}, outer, inner)
}

// TestCheck: frames that were lost, repeated, delayed, corrupted and changed on their way, and strangers among them, are
// counted as one that remembers every number counts them.
func TestCheck(t *testing.T) {
	p := pool(t, 8192)
	c := p.NewCache()
	defer c.Close()
	r := rand.New(rand.NewPCG(3, 4))
	var streams []traffic.Stream
	for _, f := range []frame{
		{proto: packet.ProtoUDP, size: 64}, {v6: true, proto: packet.ProtoUDP, size: 84}, {proto: packet.ProtoTCP, size: 1518, tags: 1},
		{v6: true, proto: packet.ProtoTCP, size: 9000}, {proto: packet.ProtoICMP, size: 64}, {v6: true, proto: packet.ProtoICMPv6, size: 101, tags: 2},
		{proto: packet.ProtoUDP, size: 101, tags: 1, pad: 6}, {proto: 253, size: 77},
	} {
		streams = append(streams, f.stream("s"))
	}
	late := frame{proto: packet.ProtoUDP, size: 128}.stream("stamp at the end")
	late.Stamp += 64
	streams = append(streams, late)
	for round := range 20 {
		const now, trip = 1 << 40, 2600
		rx := &receiver{}
		rx.init(stampWord(7), len(streams)+1, 1e9)
		type arrival struct {
			stream int
			k      uint64
			data   []byte
			bad    bool
		}
		var line []arrival
		for i := range streams {
			st := &streams[i]
			rx.await(&feed{stream: st}, i, 1024)
			s, err := compile(st, uint16(i), st.Sizes)
			if err != nil {
				t.Fatal(err)
			}
			s.word0 = uint64(stampWord(7))
			base := uint64(0)
			if round&1 == 1 { // the sequence goes round
				base = 1<<32 - 50
				s.k, rx.flows[i].next = base, base
			}
			for k, f := range sentBy(t, s, c, 150, now) {
				a := arrival{i, base + uint64(k), f, false}
				switch r.IntN(20) {
				case 0:
					continue // lost
				case 1:
					line = append(line, a)
				case 2: // one bit of what checksums cover
					a.data = slices.Clone(f)
					end := len(f) - int(st.Pad)
					from := int(st.L4)
					if st.SumOff == 0 {
						from, end = int(st.Stamp)+2, int(st.Stamp)+stampLen
					}
					a.data[from+r.IntN(end-from)] ^= 1 << r.IntN(8)
					a.bad = true
				case 3, 4, 5, 6:
					if !a.bad {
						a.data = change(r, st, f)
					}
				}
				line = append(line, a)
			}
		}
		// Frames of all streams mix; some come later than they should.
		pos := make([]float64, len(line))
		for i, a := range line {
			pos[i] = float64(uint32(a.k)-uint32(streamBase(round))) + float64(a.stream)/100
			if r.IntN(15) == 0 {
				pos[i] += r.Float64() * 40
			}
		}
		order := make([]int, len(line))
		for i := range order {
			order[i] = i
		}
		slices.SortStableFunc(order, func(a, b int) int {
			if pos[a] < pos[b] {
				return -1
			} else if pos[a] > pos[b] {
				return 1
			}
			return 0
		})
		want := make([]flow, len(streams))
		seen := map[[2]uint64]bool{}
		var corrupted, strangers uint64
		var idx []uint32
		flush := func() {
			n := rx.take(idx, now+trip)
			rx.foreign += uint64(n)
			c.Free(idx)
			idx = idx[:0]
		}
		for _, i := range order {
			a := line[i]
			f := &want[a.stream]
			switch key := [2]uint64{uint64(a.stream), a.k}; {
			case a.bad:
				corrupted++
			case seen[key]:
				f.duplicated++
			default:
				seen[key] = true
				f.received++
				if a.k+1 < f.next {
					f.reordered++
				}
				f.next = max(f.next, a.k+1)
			}
			idx = append(idx, put(t, c, r, a.data))
			if r.IntN(50) == 0 { // of another trial, and of nobody
				g := slices.Clone(a.data)
				if !a.bad && r.IntN(2) == 0 {
					st := &streams[0]
					s, _ := compile(st, 0, st.Sizes)
					s.word0 = uint64(stampWord(6))
					g = sentBy(t, s, c, 1, now)[0]
				} else {
					g = make([]byte, 60)
					copy(g[12:], []byte{8, 6})
				}
				strangers++
				idx = append(idx, put(t, c, r, g))
			}
			if r.IntN(40) == 0 || len(idx) > 120 {
				flush()
			}
		}
		flush()
		for i := range want {
			got, w := &rx.flows[i], &want[i]
			if got.received != w.received || got.duplicated != w.duplicated || got.reordered != w.reordered || got.next != w.next {
				t.Errorf("round %d, stream %d: received %d, duplicated %d, reordered %d, next %d; want %d, %d, %d, %d", round, i,
					got.received, got.duplicated, got.reordered, got.next, w.received, w.duplicated, w.reordered, w.next)
			}
		}
		if rx.corrupted+rx.foreign != corrupted+strangers || rx.corrupted < corrupted*9/10 {
			t.Errorf("round %d: corrupted %d, foreign %d; want %d, %d", round, rx.corrupted, rx.foreign, corrupted, strangers)
		}
		h := rx.hist.export()
		if h.TotalCount() != int64(rx.arrived) || h.Max() < trip-2 || h.Min() > trip || h.Max() > trip+2 {
			t.Errorf("latency of %d: %d to %d, want %d", h.TotalCount(), h.Min(), h.Max(), trip)
		}
	}
}

func streamBase(round int) uint64 {
	if round&1 == 1 {
		return 1<<32 - 50
	}
	return 0
}

// TestWindow: the bitmap of a stream is a set of its last numbers.
func TestWindow(t *testing.T) {
	const words = 4
	r := rand.New(rand.NewPCG(5, 6))
	for range 200 {
		rx := &receiver{}
		rx.init(stampWord(0), 1, 1e9)
		rx.flows[0].seen = make([]uint64, words)
		f := &rx.flows[0]
		seen := map[uint64]bool{}
		var top, received, duplicated uint64
		for range 2000 {
			k := top
			switch r.IntN(6) {
			case 0:
				k += r.Uint64N(words * 64 * 2)
			case 1:
				k += r.Uint64N(5)
			case 2:
				k -= min(k, r.Uint64N(words*64*2))
			}
			switch old := top > 0 && (top-1)>>6-k>>6 >= words && k < top; {
			case old || seen[k]:
				duplicated++
			default:
				seen[k] = true
				received++
			}
			top = max(top, k+1)
			rx.odd(f, k<<32, 0, 0)
			if f.received != received || f.duplicated != duplicated || f.next != top {
				t.Fatalf("number %d: received %d, duplicated %d, next %d; want %d, %d, %d", k, f.received, f.duplicated, f.next, received, duplicated, top)
			}
		}
	}
}
