package packet

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"
	"unsafe"
)

func hashOf(h *Hasher, b []byte) uint32 {
	if b[0]>>4 == 6 {
		return h.Hash6(unsafe.Pointer(&b[0]), uint16(len(b)))
	}
	return h.Hash4(unsafe.Pointer(&b[0]), uint16(len(b)))
}

// flows4 and flows6 are UDP packets of a flow, with ports 1000 and 2000.
func flows4() []byte {
	b := make([]byte, 28)
	IPv4(b).Init([4]byte{10, 0, 0, 1}, [4]byte{10, 1, 0, 1}, ProtoUDP, 28)
	put16(b[20:], 1000)
	put16(b[22:], 2000)
	return b
}

func flows6() []byte {
	b := make([]byte, 48)
	IPv6(b).Init([16]byte{0x20, 1, 0xd, 0xb8, 15: 1}, [16]byte{0x20, 1, 0xd, 0xb8, 1, 15: 1}, ProtoUDP, 8)
	put16(b[40:], 1000)
	put16(b[42:], 2000)
	return b
}

func carry4(proto uint8, inner ...[]byte) []byte {
	in := bytes.Join(inner, nil)
	b := append(make([]byte, 20), in...)
	IPv4(b).Init([4]byte{192, 0, 2, 1}, [4]byte{192, 0, 2, 2}, proto, len(b))
	return b
}

func carry6(proto uint8, inner ...[]byte) []byte {
	in := bytes.Join(inner, nil)
	b := append(make([]byte, 40), in...)
	IPv6(b).Init([16]byte{0xfd, 15: 1}, [16]byte{0xfd, 15: 2}, proto, len(in))
	IPv6(b).SetLabel(77)
	return b
}

// TestInner: what tunnels carry is found, and cut, odd or fragmented ones count as themselves.
func TestInner(t *testing.T) {
	gre := func(flags byte, ether uint16) []byte {
		b := make([]byte, 4, 16)
		b[0] = flags
		put16(b[2:], ether)
		for f := flags & 0xb0; f != 0; f &= f - 1 {
			b = append(b, 1, 2, 3, 4)
		}
		return b
	}
	eth := func(ether uint16) []byte {
		b := make([]byte, 14)
		put16(b[12:], ether)
		return b
	}
	vxlan := make([]byte, 16)
	put16(vxlan, 50000)
	put16(vxlan[2:], 4789)
	vxlan[8] = 8
	f4, f6 := flows4(), flows6()
	for _, c := range []struct {
		name string
		b    []byte
		in   []byte // nil: the packet itself
	}{
		{"IP in IP", carry4(ProtoIPIP, f4), f4},
		{"6in4", carry4(ProtoIPv6, f6), f6},
		{"IP6 in IP6", carry6(ProtoIPv6, f6), f6},
		{"4in6", carry6(ProtoIPIP, f4), f4},
		{"GRE", carry4(ProtoGRE, gre(0, 0x0800), f4), f4},
		{"GRE with all", carry6(ProtoGRE, gre(0xb0, 0x86dd), f6), f6},
		{"GRE with key, Ethernet", carry4(ProtoGRE, gre(0x20, 0x6558), eth(0x86dd), f6), f6},
		{"VXLAN", carry4(ProtoUDP, vxlan, eth(0x0800), f4), f4},
		{"VXLAN over IPv6", carry6(ProtoUDP, vxlan, eth(0x86dd), f6), f6},
		{"plain", f4, nil},
		{"plain IPv6", f6, nil},
		{"GRE with routing", carry4(ProtoGRE, gre(0x40, 0x0800), f4), nil},
		{"GRE version 1", carry4(ProtoGRE, []byte{0, 1, 8, 0}, f4), nil},
		{"GRE of ARP", carry4(ProtoGRE, gre(0, 0x0806), f4), nil},
		{"tagged VXLAN", carry4(ProtoUDP, vxlan, eth(0x8100), f4), nil},
		{"wrong version", carry4(ProtoIPIP, f6), nil},
	} {
		v6 := c.b[0]>>4 == 6
		check := func(what string, b, want []byte) {
			t.Helper()
			q, n, is6 := Inner(unsafe.Pointer(&b[0]), uint16(len(b)), v6)
			if got := unsafe.Slice((*byte)(q), n); !bytes.Equal(got, want) || is6 != (want[0]>>4 == 6) {
				t.Errorf("%s%s: % x, want % x", c.name, what, got, want)
			}
		}
		if c.in == nil {
			check("", c.b, c.b)
			continue
		}
		check("", c.b, c.in)
		head := 20
		if c.in[0]>>4 == 6 {
			head = 40
		}
		for n := len(c.b) - len(c.in) + head - 1; n >= 20 && (!v6 || n >= 40); n-- {
			short := bytes.Clone(c.b[:n:n])
			check(" cut", short, short)
		}
		if !v6 {
			frag := bytes.Clone(c.b)
			frag[6] |= 0x20
			check(" fragmented", frag, frag)
		}
		h, plain := Hasher{Fields: HashInner, Seed: 3}, Hasher{Seed: 3}
		if hashOf(&h, c.b) != hashOf(&plain, c.in) || hashOf(&plain, c.b) == hashOf(&plain, c.in) {
			t.Errorf("%s: not hashed as what it carries", c.name)
		}
	}
}

// FuzzInner: it stays inside any packet, and inside what it returns there is a header.
func FuzzInner(f *testing.F) {
	f.Add(carry4(ProtoIPIP, flows4()), false)
	f.Add(carry6(ProtoGRE, []byte{0xb0, 0, 0x65, 0x58}), true)
	f.Fuzz(func(t *testing.T, b []byte, v6 bool) {
		if len(b) < 20 || v6 && len(b) < 40 || len(b) > 1<<15 {
			return
		}
		b = bytes.Clone(b)
		p := unsafe.Pointer(&b[0])
		q, n, is6 := Inner(p, uint16(len(b)), v6)
		off := uintptr(q) - uintptr(p)
		if off > uintptr(len(b)) || off+uintptr(n) != uintptr(len(b)) || !is6 && n < 20 || is6 && n < 40 {
			t.Errorf("offset %d, %d bytes, IPv6 %v", off, n, is6)
		}
	})
}

// TestHasher: each choice sees what it should and nothing else; Key agrees with the packet.
func TestHasher(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	for _, fields := range []HashFields{HashL4, HashL3, HashInner} {
		for _, sym := range []bool{false, true} {
			for _, b := range [][]byte{flows4(), flows6()} {
				v6 := b[0]>>4 == 6
				at, size, ports := 12, 4, 20
				if v6 {
					at, size, ports = 8, 16, 40
				}
				h := &Hasher{fields, sym, rnd.Uint64()}
				before := hashOf(h, b)
				sees := func(i int) bool {
					b[i] ^= 1
					defer func() { b[i] ^= 1 }()
					return hashOf(h, b) != before
				}
				for i := at; i < at+2*size; i++ {
					if !sees(i) {
						t.Errorf("%+v does not see byte %d of an address", h, i)
					}
				}
				for i := ports; i < ports+4; i++ {
					if sees(i) != (fields != HashL3) {
						t.Errorf("%+v sees byte %d: %v", h, i, sees(i))
					}
				}
				other := *h
				other.Seed++
				if hashOf(&other, b) == before {
					t.Errorf("%+v does not depend on its seed", h)
				}
				k := FlowKey{Proto: ProtoUDP, SrcPort: 1000, DstPort: 2000}
				src, _ := netip.AddrFromSlice(b[at : at+size])
				dst, _ := netip.AddrFromSlice(b[at+size : at+2*size])
				k.Src, k.Dst = src, dst
				if v6 && !sym {
					k.Label = 5
					IPv6(b).SetLabel(5)
					if before == hashOf(h, b) != (fields == HashL3) {
						t.Errorf("%+v and the flow label", h)
					}
				}
				if h.Key(k) != hashOf(h, b) {
					t.Errorf("%+v: the key hashes otherwise than the packet", h)
				}
				k.Label = 0
				if v6 {
					IPv6(b).SetLabel(0)
				}
				if (h.Key(k.Reverse()) == h.Key(k)) != sym {
					t.Errorf("%+v: directions are alike: %v", h, !sym)
				}
			}
		}
	}
}
