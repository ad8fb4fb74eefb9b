package frag

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"millrace/ip/internal/rig"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// slow is RFC 791's procedure, byte by byte: the packet's fragments for an MTU.
func slow(p []byte, mtu int) (out [][]byte) {
	hl := int(p[0]&15) * 4
	data := p[hl:]
	word := binary.BigEndian.Uint16(p[6:])
	var later []byte
	for i := 20; i < hl && p[i] != 0; {
		if p[i] == 1 {
			i++
			continue
		}
		if i+2 > hl || p[i+1] < 2 || i+int(p[i+1]) > hl {
			break
		}
		if p[i]&0x80 != 0 {
			later = append(later, p[i:i+int(p[i+1])]...)
		}
		i += int(p[i+1])
	}
	for len(later)%4 != 0 {
		later = append(later, 0)
	}
	options := p[20:hl]
	for off := 0; off < len(data); {
		head := append(slices.Clone(p[:20]), options...)
		head[0] = 0x40 | byte(len(head)/4)
		n := len(data) - off
		last := n+len(head) <= mtu
		if !last {
			n = (mtu - len(head)) / 8 * 8
		}
		w := word&0x8000 | (word&0x1fff + uint16(off/8))
		if !last || word&0x2000 != 0 {
			w |= 0x2000
		}
		f := append(head, data[off:off+n]...)
		binary.BigEndian.PutUint16(f[2:], uint16(len(f)))
		binary.BigEndian.PutUint16(f[6:], w)
		packet.IPv4(f).SetSum()
		out = append(out, f)
		off += n
		options = later
	}
	return out
}

// reassemble joins fragments, in any order, into the whole payload.
func reassemble(t testing.TB, l [][]byte) []byte {
	var whole []byte
	end, have := -1, 0
	for _, f := range l {
		h := packet.IPv4(f)
		data := f[h.HeaderLen():]
		at := h.FragOff()
		if n := at + len(data); n > len(whole) {
			whole = append(whole, make([]byte, n-len(whole))...)
		}
		copy(whole[at:], data)
		have += len(data)
		if h.FlagsOff()&packet.IPv4MF == 0 {
			end = at + len(data)
		}
	}
	if end != len(whole) || have != len(whole) {
		t.Errorf("fragments have %d bytes of %d, the last ends at %d", have, len(whole), end)
	}
	return whole
}

func (c testCase) packet() packet.IPv4 {
	h := rig.UDP4("203.0.113.5", "198.51.100.9", c.options, c.payload)
	h.SetID(0x1234)
	h.SetFlagsOff(c.word)
	h.SetSum()
	return h
}

type testCase struct {
	name    string
	options []byte
	payload int
	word    uint16
	mtu     uint16
	cut     []int
}

func TestFragment(t *testing.T) {
	opts := []byte{1, 7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0}
	cases := []testCase{
		{"two", nil, 1480, 0, 1400, nil},
		{"exact", nil, 2 * 1376, 0, 1396, nil},
		{"one byte over", nil, 1381, 0, 1400, nil},
		{"smallest", nil, 1000, 0, 68, nil},
		{"largest", nil, 65515, 0, 1500, nil},
		{"options", opts, 3000, 0, 576, nil},
		{"chain", opts, 3000, 0, 576, []int{60, 1, 700, 3, 1500}},
		{"middle", nil, 1480, packet.IPv4MF | 185, 600, nil},
		{"last", nil, 1480, 370, 600, nil},
		{"reserved bit", nil, 1480, 0x8000, 600, nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, 4096, Stage())
			r.W.Tables.Adjs[2].MTU = c.mtu
			p := c.packet()
			i := r.Add(p, 0, c.cut...)
			r.V.Adj[i] = 2
			r.Leave(XFragment)
			held := r.W.Instances["fragment"].(graph.Source).Held()
			got := r.Refill("fragment")
			want := slow(p, int(c.mtu))
			if len(got) != len(want) || held != len(want) {
				t.Fatalf("%d fragments, %d held, want %d", len(got), held, len(want))
			}
			for k := range got {
				if !bytes.Equal(got[k], want[k]) {
					t.Fatalf("fragment %d:\n% x\nwant\n% x", k, got[k][:60], want[k][:60])
				}
				if len(got[k]) > int(c.mtu) {
					t.Errorf("fragment %d has %d bytes", k, len(got[k]))
				}
				g := gopacket.NewPacket(got[k], layers.LayerTypeIPv4, gopacket.NoCopy)
				if l, ok := g.Layer(layers.LayerTypeIPv4).(*layers.IPv4); !ok || int(l.Length) != len(got[k]) || l.Id != 0x1234 {
					t.Errorf("fragment %d does not decode: %v", k, g.ErrorLayer())
				}
			}
			if c.word&0x3fff == 0 && !bytes.Equal(reassemble(t, got), p[p.HeaderLen():]) {
				t.Error("reassembled payload differs")
			}
			if n := r.W.C.Created; n != uint64(len(want)-1) {
				t.Errorf("%d created, want %d", n, len(want)-1)
			}
		})
	}
}

// TestNoCopy: fragments borrow the payload, keep what the rewrite stage needs, and have
// room for any Ethernet header.
func TestNoCopy(t *testing.T) {
	r := rig.New(t, 256, Stage())
	r.W.Tables.Adjs[2].MTU = 600
	i := r.Add(testCase{payload: 1400}.packet(), 0)
	orig := r.V.Mbuf(i)
	r.V.Adj[i], r.V.NH[i] = 2, 7
	r.Leave(XFragment)
	r.W.Instances["fragment"].(graph.Source).Refill(&r.V)
	for k := range r.V.N {
		m := r.V.Mbuf(uint8(k))
		if m.NbSegs != 2 || m.NextSeg().Direct() != orig || m.Shared() || m.HeadSpace() < 22 {
			t.Errorf("fragment %d: %d segments, %d bytes of headroom", k, m.NbSegs, m.HeadSpace())
		}
		if r.V.Adj[k] != 2 || r.V.NH[k] != 7 || r.V.In[k] != 1 {
			t.Errorf("fragment %d: adjacency %d, group %d, from %d", k, r.V.Adj[k], r.V.NH[k], r.V.In[k])
		}
	}
	r.FreeAll()
}

func TestShortChains(t *testing.T) {
	r := rig.New(t, 256, Stage())
	r.W.Tables.Adjs[2].MTU = 600
	r.W.Tx[2].Segments = 1
	p := testCase{payload: 1400}.packet()
	i := r.Add(p, 0, 500, 300)
	r.V.Adj[i] = 2
	r.Leave(XFragment)
	r.W.Instances["fragment"].(graph.Source).Refill(&r.V)
	var got [][]byte
	for k := range r.V.N {
		if n := r.V.Mbuf(uint8(k)).NbSegs; n != 1 {
			t.Errorf("fragment %d has %d segments", k, n)
		}
		got = append(got, r.L3(uint8(k)))
	}
	if !slices.EqualFunc(got, slow(p, 600), bytes.Equal) {
		t.Error("copied fragments differ")
	}
	r.FreeAll()
}

func TestRefused(t *testing.T) {
	cases := []struct {
		name string
		mtu  uint16
		p    packet.IPv4
		want graph.Reason
	}{
		{"no room", 27, testCase{payload: 100}.packet(), XMTU},
		{"too many", 28, testCase{payload: 20000}.packet(), XMTU},
		{"beyond the end", 600, testCase{payload: 1400, word: 0x1fff}.packet(), XOffset},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, 8192, Stage())
			r.W.Tables.Adjs[2].MTU = c.mtu
			i := r.Add(c.p, 0)
			r.V.Adj[i] = 2
			r.Leave(XFragment)
			if r.Note(c.want) != 1 || r.W.C.Created != 0 || len(r.Refill("fragment")) != 0 {
				t.Errorf("%d dropped for %v, %d created", r.Note(c.want), c.want, r.W.C.Created)
			}
			if r.Pool.Free() != r.Pool.Size() {
				t.Errorf("%d buffers are lost", r.Pool.Size()-r.Pool.Free())
			}
		})
	}
}

// TestExhausted lets buffers run out at each allocation.
func TestExhausted(t *testing.T) {
	r := rig.New(t, 256, Stage())
	r.W.Tables.Adjs[2].MTU = 600
	var all []uint32
	for range 256 {
		i := r.Add(testCase{payload: 1400}.packet(), 0)
		_ = i
		all = append(all, r.V.Idx[i])
		r.V.Reset()
	}
	drops := uint64(0)
	for spare := range 6 {
		idx := all[0]
		all = all[1:]
		for r.Pool.Free() < spare {
			r.W.Cache.Free(all[:1])
			all = all[1:]
		}
		m := packet.At(idx)
		p := graph.ParkNew(m, 14)
		p.Adj = 2
		r.W.Leave(p, XFragment)
		drops++
		if r.Note(XNoBuffer) != drops {
			t.Fatalf("with %d buffers: dropped %d", spare, r.Note(XNoBuffer))
		}
		if free := r.Pool.Free(); free != spare+1 {
			t.Fatalf("%d free, want %d", free, spare+1)
		}
		for r.Pool.Free() > spare {
			all = append(all, r.W.Cache.Alloc1().Index())
		}
	}
	r.W.Cache.Free(all)
}

func TestQueueFull(t *testing.T) {
	r := rig.New(t, 16384, Stage())
	r.W.Tables.Adjs[2].MTU = 68
	for range 10 {
		i := r.Add(testCase{payload: 40000}.packet(), 0) // 834 fragments
		r.V.Adj[i] = 2
	}
	r.Leave(XFragment)
	if r.Note(XNoBuffer) != 6 {
		t.Errorf("%d dropped, want 6", r.Note(XNoBuffer))
	}
	if n := len(r.Refill("fragment")); n != 4*834 || r.W.C.Created != 4*833 {
		t.Errorf("%d fragments, %d created", n, r.W.C.Created)
	}
}

func TestNoAllocs(t *testing.T) {
	r := rig.New(t, 512, Stage())
	r.W.Tables.Adjs[2].MTU = 600
	p := testCase{payload: 1400, options: []byte{148, 4, 0, 0}}.packet()
	s := r.W.Instances["fragment"].(graph.Source)
	n := testing.AllocsPerRun(100, func() {
		m := r.W.Cache.Alloc1()
		copy(m.Append(len(p)), p)
		k := graph.ParkNew(m, 0)
		k.Adj = 2
		r.W.Leave(k, XFragment)
		r.V.Reset()
		s.Refill(&r.V)
		r.FreeAll()
	})
	if n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

func FuzzFragment(f *testing.F) {
	f.Add([]byte{1, 7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0}, uint16(3000), uint16(0), uint16(576), uint64(1))
	f.Add([]byte{}, uint16(65515), uint16(packet.IPv4MF), uint16(1500), uint64(2))
	r := rig.New(f, 16384, Stage())
	f.Fuzz(func(t *testing.T, options []byte, payload, word, mtu uint16, seed uint64) {
		options = options[:min(len(options), 40)&^3]
		word &^= packet.IPv4DF
		c := testCase{options: options, payload: int(payload) % (65516 - len(options)), word: word, mtu: mtu}
		p := c.packet()
		if len(p) <= int(mtu) {
			return
		}
		rnd := rand.New(rand.NewPCG(seed, 0))
		cut := []int{14 + p.HeaderLen()}
		for range rnd.IntN(6) {
			cut = append(cut, 1+rnd.IntN(1500))
		}
		r.W.Tables.Adjs[2].MTU = mtu
		i := r.Add(p, 0, cut...)
		r.V.Adj[i] = 2
		drops := r.Note(XMTU) + r.Note(XOffset) + r.Note(XNoBuffer)
		r.Leave(XFragment)
		got := r.Refill("fragment")
		if r.Note(XMTU)+r.Note(XOffset)+r.Note(XNoBuffer) != drops {
			if int(mtu) >= 68 && p.FragOff()+len(p)-p.HeaderLen() <= 0xffff {
				t.Errorf("dropped a good packet of %d bytes at MTU %d", len(p), mtu)
			}
		} else if !slices.EqualFunc(got, slow(p, int(mtu)), bytes.Equal) {
			t.Errorf("%d bytes, MTU %d: fragments differ from the slow way", len(p), mtu)
		}
		if r.Pool.Free() != r.Pool.Size() {
			t.Errorf("%d buffers are lost", r.Pool.Size()-r.Pool.Free())
		}
	})
}
