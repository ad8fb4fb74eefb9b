// Package bgp has full tables of the Internet and days of changes to them, read from files or made, and
// what benchmarks and tests want of them: next hops, host routes, destinations.
//
// # Files
//
// A table is a text file of one prefix a line ("192.0.2.0/24"), a stream of changes one of announcements and
// withdrawals ("A 192.0.2.0/24", "W 192.0.2.0/24"). Empty lines and those that begin with # do not count; a name that ends
// in .gz is of a gzipped file. Files of this form are made from the raw data of route collectors such as RIPE NCC RIS:
// bgpdump -m, then the prefix's column.
package bgp

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
)

// Env names the environment variable with the directory of the data: see Find.
const Env = "MILLRACE_BGP"

// Files are the paths of tables and streams; empty where there is none.
type Files struct {
	V4, V6, Updates4, Updates6 string
}

// Find looks for the files v4, v6, upd4 and upd6, .txt or .txt.gz, in a directory. It is an error if there is no table.
func Find(dir string) (f Files, err error) {
	for name, to := range map[string]*string{"v4": &f.V4, "v6": &f.V6, "upd4": &f.Updates4, "upd6": &f.Updates6} {
		for _, ext := range []string{".txt.gz", ".txt"} {
			p := filepath.Join(dir, name+ext)
			if _, err := os.Stat(p); err == nil {
				*to = p
				break
			} else if !errors.Is(err, fs.ErrNotExist) {
				return f, err
			}
		}
	}
	if f.V4 == "" && f.V6 == "" {
		return f, fmt.Errorf("bgp: neither v4.txt, v4.txt.gz, v6.txt nor v6.txt.gz in %s", dir)
	}
	return f, nil
}

// Update is a change of a table: an announcement, or a withdrawal.
type Update struct {
	Prefix   netip.Prefix
	Withdraw bool
}

// ReadTable reads the prefixes of a file, masked, in its order.
func ReadTable(path string) (t []netip.Prefix, err error) {
	err = read(path, func(l string) error {
		p, err := netip.ParsePrefix(l)
		t = append(t, p.Masked())
		return err
	})
	return t, err
}

// ReadUpdates reads a stream of changes.
func ReadUpdates(path string) (u []Update, err error) {
	err = read(path, func(l string) error {
		kind, rest, _ := strings.Cut(l, " ")
		if kind != "A" && kind != "W" {
			return fmt.Errorf("%q is neither A nor W", kind)
		}
		p, err := netip.ParsePrefix(strings.TrimSpace(rest))
		u = append(u, Update{p.Masked(), kind == "W"})
		return err
	})
	return u, err
}

// read gives a file's lines to f.
func read(path string, f func(string) error) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	var r io.Reader = bufio.NewReader(file)
	if strings.HasSuffix(path, ".gz") {
		if r, err = gzip.NewReader(r); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
	}
	s := bufio.NewScanner(r)
	for n := 1; s.Scan(); n++ {
		l := strings.TrimSpace(s.Text())
		if l == "" || l[0] == '#' {
			continue
		}
		if err := f(l); err != nil {
			return fmt.Errorf("%s:%d: %w", path, n, err)
		}
	}
	if err := s.Err(); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Addr is an address as tables for longest-prefix match take it: IPv4 in host order, IPv6 in network order.
type Addr interface{ uint32 | [16]byte }

// Route is a prefix and its value. Its memory is the same in C.
type Route[A Addr] struct {
	Addr  A
	Value uint16 // 0 in a change: withdrawn
	Bits  uint8
	_     uint8
}

// From is the address as A.
func From[A Addr](a netip.Addr) (to A) {
	switch p := any(&to).(type) {
	case *uint32:
		b := a.As4()
		*p = binary.BigEndian.Uint32(b[:])
	case *[16]byte:
		*p = a.As16()
	}
	return to
}

// Prefix is the route's prefix.
func (r *Route[A]) Prefix() netip.Prefix { return netip.PrefixFrom(Netip(r.Addr), int(r.Bits)) }

// Netip is an address in the standard library's form.
func Netip[A Addr](a A) netip.Addr {
	switch a := any(a).(type) {
	case uint32:
		var b [4]byte
		binary.BigEndian.PutUint32(b[:], a)
		return netip.AddrFrom4(b)
	case [16]byte:
		return netip.AddrFrom16(a)
	}
	panic("unreachable")
}

// Routes gives each prefix one of n values from 1 on, by a hash.
func Routes[A Addr](t []netip.Prefix, n int) []Route[A] {
	rs := make([]Route[A], len(t))
	for i, p := range t {
		rs[i] = Route[A]{Addr: From[A](p.Addr()), Bits: uint8(p.Bits()), Value: Value(p, 0, n)}
	}
	return rs
}

// Changes gives each announcement a value, in most cases another than the one before: each changes the way of packets.
func Changes[A Addr](u []Update, n int) []Route[A] {
	rs := make([]Route[A], len(u))
	for i, x := range u {
		rs[i] = Route[A]{Addr: From[A](x.Prefix.Addr()), Bits: uint8(x.Prefix.Bits())}
		if !x.Withdraw {
			rs[i].Value = Value(x.Prefix, uint64(i+1), n)
		}
	}
	return rs
}

// Value is a hash of a prefix and a salt, from 1 to n.
func Value(p netip.Prefix, salt uint64, n int) uint16 {
	a := p.Addr().As16()
	x := mix(binary.BigEndian.Uint64(a[:8])+salt*0x9e3779b97f4a7c15) ^ binary.BigEndian.Uint64(a[8:])
	return uint16(mix(x+uint64(p.Bits()))%uint64(n)) + 1
}

// mix is the finalizer of MurmurHash3 (Appleby).
func mix(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
