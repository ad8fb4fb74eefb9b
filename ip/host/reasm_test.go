package host

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/google/gopacket/layers"

	"millrace/packet"
	"millrace/pipeline/graph"
)

var layersEthernet = layers.LayerTypeEthernet

// cut4 and cut6 fragment a frame into pieces of size bytes.
func cut4(f []byte, id uint16, size int) (out [][]byte) {
	body := f[34:]
	for off := 0; off < len(body); off += size {
		k := min(size, len(body)-off)
		g := append(bytes.Clone(f[:34]), body[off:off+k]...)
		h := packet.IPv4(g[14:])
		h.SetID(id)
		h.SetTotalLen(20 + k)
		more := uint16(packet.IPv4MF)
		if off+k == len(body) {
			more = 0
		}
		h.SetFlagsOff(more | uint16(off/8))
		h.SetSum()
		out = append(out, g)
	}
	return out
}

func cut6(f []byte, id uint32, size int) (out [][]byte) {
	body := f[54:]
	for off := 0; off < len(body); off += size {
		k := min(size, len(body)-off)
		h := []byte{f[20], 0, byte(off >> 8), byte(off), 0, 0, 0, 0}
		if off+k < len(body) {
			h[3] |= 1
		}
		binary.BigEndian.PutUint32(h[4:], id)
		g := append(append(bytes.Clone(f[:54]), h...), body[off:off+k]...)
		g[20] = 44
		packet.IPv6(g[14:]).SetPayloadLen(8 + k)
		out = append(out, g)
	}
	return out
}

// TestReassembly: fragments in any order, repeated, of several datagrams at once, give the
// same answers as the whole.
func TestReassembly(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 1))
	for round := range 60 {
		r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
		var frames [][]byte
		sizes := map[int]bool{}
		for k := range 1 + rnd.IntN(4) {
			n := rnd.IntN(3000) + 1 + 3001*k
			sizes[n] = true
			size := 8 * (1 + rnd.IntN(170))
			if k == 0 && round == 0 {
				n, size = 65507-8, 1480
				clear(sizes)
				sizes[n] = true
			}
			if round%2 == 0 {
				frames = append(frames, cut4(echo4(t, n), uint16(k), size)...)
			} else {
				frames = append(frames, cut6(echo6(t, farAway6, global6, n), uint32(k), size)...)
			}
			if round == 0 {
				break
			}
		}
		// A datagram's last fragment repeated after its completion would start a new one.
		for _, f := range slices.Clone(frames) {
			if rnd.IntN(4) == 0 && round%3 == 0 {
				frames = append(frames, f)
			}
		}
		rnd.Shuffle(len(frames), func(i, j int) { frames[i], frames[j] = frames[j], frames[i] })
		for _, f := range frames {
			r.inject(1, f, 20+rnd.IntN(40))
		}
		got := map[int]bool{}
		for _, b := range join(t, r.takeRoad()) {
			n := 0
			if b[0]>>4 == 4 {
				n = len(b) - 28
				if !bytes.Equal(b[28:], pattern(n)) || b[20] != 0 || packet.Fold(packet.Sum(b[20:], 0)) != 0xffff {
					t.Fatalf("round %d: wrong echo of %d bytes", round, n)
				}
			} else {
				n = len(b) - 48
				if !bytes.Equal(b[48:], pattern(n)) || b[40] != 129 || packet.Fold(packet.Sum(b[40:], packet.IPv6(b).Pseudo(58, len(b)-40))) != 0xffff {
					t.Fatalf("round %d: wrong echo of %d bytes", round, n)
				}
			}
			got[n] = true
		}
		if len(got) != len(sizes) {
			t.Errorf("round %d: echoes of %v, want %v", round, got, sizes)
		}
	}
}

// join puts the host's own IPv6 fragments together again, the obvious way.
func join(t *testing.T, l [][]byte) (out [][]byte) {
	parts := map[uint32][]byte{}
	for _, b := range l {
		if b[0]>>4 == 4 || b[6] != 44 {
			out = append(out, b)
			continue
		}
		if len(b) > 1500 {
			t.Errorf("a fragment of %d bytes", len(b))
		}
		id := binary.BigEndian.Uint32(b[44:])
		word := int(b[42])<<8 | int(b[43])
		whole := parts[id]
		if whole == nil {
			whole = bytes.Clone(b[:40])
			whole[6] = b[40]
		}
		if len(whole)-40 != word&^7 {
			t.Errorf("fragments out of order: %d after %d", word&^7, len(whole)-40)
		}
		whole = append(whole, b[48:]...)
		parts[id] = whole
		if word&1 == 0 {
			packet.IPv6(whole).SetPayloadLen(len(whole) - 40)
			out = append(out, whole)
			delete(parts, id)
		}
	}
	if len(parts) != 0 {
		t.Errorf("%d datagrams without their last fragment", len(parts))
	}
	return out
}

// TestOverlap: fragments that contradict each other end their datagram silently (RFC 5722).
func TestOverlap(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
		var a, b [][]byte
		if v6 {
			f := echo6(t, farAway6, global6, 400)
			a, b = cut6(f, 7, 96), cut6(f, 7, 80)
		} else {
			f := echo4(t, 400)
			a, b = cut4(f, 7, 96), cut4(f, 7, 80)
		}
		for _, x := range a { // what it leaves behind in memory agrees with what overlaps next
			r.inject(1, x)
		}
		if n := len(r.takeRoad()); n != 1 {
			t.Fatalf("v6 %v: %d answers to the whole", v6, n)
		}
		r.inject(1, a[0])
		r.inject(1, b[1]) // from 80, a[0] reached to 96
		if r.w.C.Exit[xFragment] != 1 || r.h.Held() != 0 {
			t.Errorf("v6 %v: %d fragments dropped for their overlap", v6, r.w.C.Exit[xFragment])
		}
		for _, d := range r.h.reasm {
			if d.used {
				t.Errorf("v6 %v: the datagram is still there", v6)
			}
		}
		for _, x := range a[1:] {
			r.inject(1, x)
		}
		if n := len(r.takeRoad()) + len(r.take()); n != 1 {
			t.Errorf("v6 %v: %d answers, one of them to the whole", v6, n)
		}
	}
}

// TestEnds: a last fragment that ends before, or another that reaches beyond, what is known of
// the datagram's length.
func TestEnds(t *testing.T) {
	f := echo4(t, 400)
	p := cut4(f, 7, 96)
	early := bytes.Clone(p[1])
	h := packet.IPv4(early[14:])
	h.SetFlagsOff(96 / 8)
	h.SetSum()
	for name, order := range map[string][][]byte{"early end": {p[0], p[2], early}, "beyond the end": {early, p[2], p[0]}, "two ends": {early, p[4], p[0]}} {
		r := newRig(t, Config{}, "192.0.2.1/24")
		for _, x := range order {
			r.inject(1, x)
		}
		if r.w.C.Exit[xFragment] != 1 || len(r.takeRoad()) != 0 {
			t.Errorf("%s: %d dropped, %d answers", name, r.w.C.Exit[xFragment], len(r.road))
		}
	}
}

// TestTooMany: datagrams in reassembly are bounded; time frees them, and tells their
// senders where the first fragment is known.
func TestTooMany(t *testing.T) {
	for _, c := range []struct {
		v6      bool
		seconds int
	}{{false, reasmSeconds4}, {true, reasmSeconds6}} {
		r := newRig(t, Config{}, "192.0.2.1/24", "2001:db8:1::1/64")
		piece := func(id, k int) []byte {
			if c.v6 {
				return cut6(echo6(t, farAway6, global6, 400), uint32(id), 96)[k]
			}
			return cut4(echo4(t, 400), uint16(id), 96)[k]
		}
		for id := range maxDatagrams + 2 {
			r.inject(1, piece(id, id%2))
		}
		if r.w.C.Exit[xFragment] != 2 {
			t.Errorf("%d dropped, want 2", r.w.C.Exit[xFragment])
		}
		r.pass(c.seconds*1000-10, nil)
		if r.w.C.Exit[nTimeout] != 0 {
			t.Error("given up too early")
		}
		r.pass(20, nil)
		out := r.takeRoad()
		if r.w.C.Exit[nTimeout] != maxDatagrams || len(out) != maxDatagrams/2 {
			t.Fatalf("%d timeouts, %d errors", r.w.C.Exit[nTimeout], len(out))
		}
		quoted := 0
		for _, b := range out {
			for id := 0; id < maxDatagrams; id += 2 {
				first := piece(id, 0)[14:]
				if c.v6 {
					x := decode(t, b, layers.LayerTypeIPv6).Layer(layers.LayerTypeIPv6).(*layers.IPv6).Payload
					if x[0] == 3 && x[1] == 1 && bytes.Equal(x[8:], first) {
						quoted++
					}
				} else if x := decode(t, b, layers.LayerTypeIPv4).Layer(layers.LayerTypeICMPv4).(*layers.ICMPv4); x.TypeCode == layers.CreateICMPv4TypeCode(11, 1) && bytes.Equal(x.Payload, first) {
					quoted++
				}
			}
		}
		if quoted != len(out) {
			t.Errorf("%d of %d errors quote a first fragment", quoted, len(out))
		}
	}
}

// TestMLD: the groups of addresses are reported twice, and again when asked for.
func TestMLD(t *testing.T) {
	r := newRig(t, Config{}, "2001:db8:1::1/64", "2001:db8:2::1/64", "192.0.2.1/24")
	r.w.Tables.Ifaces[2].Flags |= graph.IfKernel
	r.w.Tables.Ifaces[3].Flags = 0 // down
	groups := func(l [][]byte) (out []string) {
		for _, b := range l {
			h := packet.IPv6(b[14:])
			if h.Next() != 0 || b[60] != 0 && b[60] != 1 {
				continue
			}
			p := b[62:]
			if h.HopLimit() != 1 || !bytes.Equal(b[54:62], []byte{58, 0, 5, 2, 0, 0, 1, 0}) || packet.Fold(packet.Sum(p, h.Pseudo(58, len(p)))) != 0xffff || netip.AddrFrom16(h.Src()) != our6 {
				t.Errorf("report %x", b)
			}
			switch p[0] {
			case 143:
				if netip.AddrFrom16(h.Dst()) != mldRouters || packet.Ethernet(b).Dst() != groupMAC(mldRouters) {
					t.Errorf("report %x", b)
				}
				for i := range int(p[7]) {
					q := p[8+20*i:]
					out = append(out, string('0'+rune(q[0]))+" "+netip.AddrFrom16([16]byte(q[4:20])).String())
				}
			case 131:
				out = append(out, "v1 "+netip.AddrFrom16([16]byte(p[8:24])).String())
			}
		}
		slices.Sort(out)
		return out
	}
	check := func(what string, want ...string) {
		t.Helper()
		if got := groups(r.take()); !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	r.pass(500, nil)
	check("at once", "4 ff02::1:ff00:1", "4 ff02::1:ff33:4456")
	r.pass(700, nil)
	check("after a second", "4 ff02::1:ff00:1", "4 ff02::1:ff33:4456")
	r.pass(3000, nil)
	check("no more")

	query := func(n int, delay uint16) []byte {
		p := make([]byte, 8+n)
		copy(p, []byte{58, 0, 5, 2, 0, 0, 1, 0, 130})
		binary.BigEndian.PutUint16(p[12:], delay)
		b := raw6(peer6, allNodes, 0, p, -1)
		h := packet.IPv6(b[14:])
		h.SetHopLimit(1)
		packet.PutSum(b[64:], ^packet.Fold(packet.Sum(b[62:], h.Pseudo(58, n))))
		copy(b, []byte{0x33, 0x33, 0, 0, 0, 1})
		return b
	}
	r.inject(1, query(28, 500))
	r.pass(510, nil)
	check("query of version 2", "2 ff02::1:ff00:1", "2 ff02::1:ff33:4456")
	r.inject(1, query(24, 100))
	r.pass(110, nil)
	check("query of version 1", "v1 ff02::1:ff00:1", "v1 ff02::1:ff33:4456")
	r.inject(1, query(28, 0))
	r.pass(10, nil)
	check("query of version 2 again", "2 ff02::1:ff00:1", "2 ff02::1:ff33:4456")
	far := query(28, 0)
	far[21] = 2
	r.inject(1, far)
	r.pass(10, nil)
	check("query from off the link")

	// A query that another worker receives.
	q := newRig(t, Config{})
	q.w.ID = 1
	q.h = r.s.newHost(q.w)
	q.inject(1, query(28, 0))
	r.pass(10, nil)
	check("another worker's query", "2 ff02::1:ff00:1", "2 ff02::1:ff33:4456")
	r.w.Tables.Ifaces[3].Flags = graph.IfUp
	r.pass(200, nil)
	l := r.take()
	if len(l) != 1 || packet.Ethernet(l[0]).Type() != packet.EtherQinQ {
		t.Errorf("an interface came up: %x", l)
	}
	r.w.Tables.Ifaces[3].Flags = 0
	r.pass(1500, nil)
	r.take()

	r.addresses(1, "2001:db8:1::1/64", "2001:db8:2::77/64")
	r.pass(10, nil)
	check("a new address", "4 ff02::1:ff00:1", "4 ff02::1:ff00:77", "4 ff02::1:ff33:4456")
}

func TestNoReports(t *testing.T) {
	r := newRig(t, Config{NoReports: true}, "2001:db8:1::1/64")
	r.pass(3000, nil)
	if l := r.take(); len(l) != 0 {
		t.Errorf("sent unasked: %x", l)
	}
}
