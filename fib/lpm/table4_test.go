package lpm

import (
	"bufio"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"millrace/internal/epoch"
)

// forms are the IPv4 tables: what is true of one is of the other.
var forms = []struct {
	name string
	make func(d *epoch.Domain) (V4, error)
}{
	{"table", func(d *epoch.Domain) (V4, error) { return New4(d) }},
	{"compact", func(d *epoch.Domain) (V4, error) { return NewCompact4(d) }},
}

// eachForm runs f with an empty table of each form.
func eachForm(t *testing.T, f func(t *testing.T, x V4, d *epoch.Domain)) {
	for _, form := range forms {
		t.Run(form.name, func(t *testing.T) {
			d := epoch.NewDomain()
			x, err := form.make(d)
			if err != nil {
				t.Fatal(err)
			}
			defer x.Close()
			f(t, x, d)
		})
	}
}

type key4 struct {
	addr uint32
	bits int
}

// slow4 is the obvious table: prefixes with their values.
type slow4 map[key4]uint16

func (s slow4) best(dst uint32, below int) (value uint16, bits int) {
	for b := below; b >= 0; b-- {
		if v, ok := s[key4{masked(dst, b), b}]; ok {
			return v, b
		}
	}
	return 0, 0
}

func (s slow4) value(dst uint32) uint16 {
	v, _ := s.best(dst, 32)
	return v
}

func masked(addr uint32, bits int) uint32 { return addr &^ uint32(1<<(32-bits)-1) }

// announce and withdraw change both tables.
func (s slow4) announce(x V4, addr uint32, bits int, value uint16) error {
	k := key4{masked(addr, bits), bits}
	if _, ok := s[k]; ok {
		x.Replace(k.addr, bits, value)
	} else if err := x.Insert(k.addr, bits, value); err != nil {
		return err
	}
	s[k] = value
	return nil
}

func (s slow4) withdraw(x V4, addr uint32, bits int) {
	k := key4{masked(addr, bits), bits}
	if _, ok := s[k]; !ok {
		return
	}
	delete(s, k)
	v, b := s.best(k.addr, bits-1)
	x.Remove(k.addr, bits, v, b)
}

// check compares Lookup, Find and the slow table.
func (s slow4) check(t testing.TB, x V4, dst []uint32) {
	t.Helper()
	out := make([]uint16, len(dst)+1)
	for i := 0; i < len(dst); i += 256 {
		x.Find(&dst[i], &out[i], min(256, len(dst)-i))
	}
	for i, d := range dst {
		if want, l := s.value(d), x.Lookup(d); l != want || out[i] != want {
			t.Fatalf("%v: Lookup says %d, Find %d, the slow table %d", addr4(d), l, out[i], want)
		}
	}
}

func addr4(a uint32) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], a)
	return netip.AddrFrom4(b)
}

type route4 struct {
	key4
	value uint16
}

// value4 is a value for a prefix, of 500.
func value4(k key4) uint16 {
	x := (uint64(k.addr)<<8 | uint64(k.bits)) * 0x9e3779b97f4a7c15
	return uint16((x^x>>29)*0xbf58476d1ce4e5b9>>40%500) + 1
}

func parse4(s string) key4 {
	p := netip.MustParsePrefix(s)
	a := p.Addr().As4()
	return key4{binary.BigEndian.Uint32(a[:]), p.Bits()}
}

func realFile(t testing.TB, name string) *bufio.Scanner {
	t.Helper()
	s := bgpFile(t, name)
	if s == nil {
		t.Skip("no table of prefixes")
	}
	return s
}

// internet is the table of a BGP peer.
func internet(t testing.TB) (rs []route4) {
	for s := realFile(t, "v4.txt.gz"); s.Scan(); {
		k := parse4(s.Text())
		rs = append(rs, route4{k, value4(k)})
	}
	return rs
}

// day is the updates of the day after: value 0 withdraws.
func day(t testing.TB) (us []route4) {
	rnd := rand.New(rand.NewPCG(3, 4))
	for s := realFile(t, "upd4.txt.gz"); s.Scan(); {
		u := route4{key4: parse4(s.Text()[2:])}
		if s.Text()[0] == 'A' {
			u.value = uint16(rnd.IntN(500)) + 1
		}
		us = append(us, u)
	}
	return us
}

// under is n addresses under random prefixes.
func under(rs []route4, n int, rnd *rand.Rand) []uint32 {
	dst := make([]uint32, n)
	for i := range dst {
		r := &rs[rnd.IntN(len(rs))]
		dst[i] = r.addr | uint32(uint64(rnd.Uint32())>>r.bits)
	}
	return dst
}
