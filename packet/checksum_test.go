package packet

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// slowSum is RFC 1071 as it is written: 16-bit big-endian words, carries folded at the end.
func slowSum(b []byte) uint16 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	for s>>16 != 0 {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// network is a checksum in memory order as the number that goes over the wire.
func network(sum uint16) uint16 {
	var b [2]byte
	PutSum(b[:], sum)
	return binary.BigEndian.Uint16(b[:])
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
		if r.IntN(3) == 0 {
			b[i] = 0xff
		}
	}
	return b
}

// same: equal in one's complement, where 0 and 0xffff are both zero.
func same(a, b uint16) bool { return a == b || a%0xffff == 0 && b%0xffff == 0 }

func TestSum(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for n := range 400 {
		b := randomBytes(r, n+7)
		for off := range 8 {
			c := b[off : off+max(0, n-off)]
			if got, want := network(Fold(Sum(c, 0))), slowSum(c); got != want {
				t.Fatalf("Sum of %d bytes at %d: %#x, want %#x", len(c), off, got, want)
			}
		}
	}
	// The example of RFC 1071, 3.
	b := []byte{0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7}
	if got := network(Fold(Sum(b, 0))); got != 0xddf2 {
		t.Errorf("RFC 1071 example: %#x, want 0xddf2", got)
	}
	if got := Fold(Sum([]byte{1, 0}, ^uint64(0))); got != Fold(Sum([]byte{1, 0}, 0)) {
		t.Errorf("the carry out of 64 bits is lost: %#x", got)
	}
}

func FuzzSum(f *testing.F) {
	f.Add([]byte{1, 2, 3}, uint8(1), uint8(1))
	f.Add(make([]byte, 100), uint8(31), uint8(33))
	f.Fuzz(func(t *testing.T, b []byte, x, y uint8) {
		want := slowSum(b)
		if got := network(Fold(Sum(b, 0))); got != want {
			t.Fatalf("Sum: %#x, want %#x", got, want)
		}
		if got := network(Checksum(b)); got != ^want {
			t.Fatalf("Checksum: %#x, want %#x", got, ^want)
		}
		if len(b) > 1500 {
			return
		}
		p, c := testPool(t, 128)
		m := chain(c, b, int(x)+1, int(y)+1)
		off := min(int(y), len(b))
		n := min(int(x)*4, len(b)-off)
		if got, want := network(Fold(SumChain(m, off, n, 0))), slowSum(b[off:off+n]); got != want {
			t.Fatalf("SumChain(%d, %d): %#x, want %#x", off, n, got, want)
		}
		c.Free1(m)
		closePool(t, p, c)
	})
}

func TestSumChain(t *testing.T) {
	p, c := testPool(t, 512)
	defer closePool(t, p, c)
	r := rand.New(rand.NewPCG(3, 4))
	for range 500 {
		b := randomBytes(r, r.IntN(300))
		var cuts []int
		for range r.IntN(5) {
			cuts = append(cuts, r.IntN(80))
		}
		m := chain(c, b, cuts...)
		off := r.IntN(len(b) + 1)
		n := r.IntN(len(b) - off + 1)
		got := network(Fold(SumChain(m, off, n, Sum([]byte{0xab, 0xcd}, 0))))
		want := slowSum(append([]byte{0xab, 0xcd}, b[off:off+n]...))
		if got != want {
			t.Fatalf("cuts %v, off %d, n %d of %d: %#x, want %#x", cuts, off, n, len(b), got, want)
		}
		if over := Fold(SumChain(m, off, 1<<20, 0)); over != Fold(Sum(b[off:], 0)) {
			t.Fatalf("a range past the end is not the range to the end")
		}
		c.Free1(m)
	}
}

func TestUpdate(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 20000 {
		b := randomBytes(r, 24)
		sum := Checksum(b)
		at := 2 * r.IntN(10)
		from := binary.NativeEndian.Uint32(b[at:])
		to := r.Uint32()
		if r.IntN(4) == 0 {
			to = []uint32{0, 0xffff, 0xffff0000, 0xffffffff}[r.IntN(4)]
		}
		binary.NativeEndian.PutUint32(b[at:], to)
		if got, want := Update32(sum, from, to), Checksum(b); !same(got, want) {
			t.Fatalf("Update32(%#x, %#x, %#x) = %#x, want %#x", sum, from, to, got, want)
		}
		sum = Checksum(b)
		from16 := binary.NativeEndian.Uint16(b[at:])
		binary.NativeEndian.PutUint16(b[at:], uint16(from))
		if got, want := Update16(sum, from16, uint16(from)), Checksum(b); !same(got, want) {
			t.Fatalf("Update16(%#x, %#x, %#x) = %#x, want %#x", sum, from16, uint16(from), got, want)
		}
	}
	// RFC 1624, 4: the case that equation 2 gets wrong.
	if got := Update16(0xdd2f, 0x5555, 0x3285); got != 0x0000 {
		t.Errorf("RFC 1624 example: %#x, want 0", got)
	}
}

func TestPseudo(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	for range 1000 {
		a := randomBytes(r, 32)
		n := r.IntN(1 << 16)
		ps := append(append([]byte{}, a[:8]...), 0, 17, byte(n>>8), byte(n))
		if got, want := network(Fold(Pseudo4([4]byte(a[:4]), [4]byte(a[4:8]), 17, n))), slowSum(ps); got != want {
			t.Fatalf("Pseudo4: %#x, want %#x", got, want)
		}
		n = int(r.Uint32() >> 4)
		ps = append(append([]byte{}, a...), byte(n>>24), byte(n>>16), byte(n>>8), byte(n), 0, 0, 0, 58)
		if got, want := network(Fold(Pseudo6([16]byte(a[:16]), [16]byte(a[16:]), 58, n))), slowSum(ps); got != want {
			t.Fatalf("Pseudo6: %#x, want %#x", got, want)
		}
	}
}

func BenchmarkSum1500(b *testing.B) {
	buf := make([]byte, 1500)
	b.SetBytes(1500)
	s := uint64(0)
	for b.Loop() {
		s = Sum(buf, s)
	}
	_ = s
}
