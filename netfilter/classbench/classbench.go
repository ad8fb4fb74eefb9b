// Package classbench has rule sets to measure and test classifiers with, and packets for them: read from files of ClassBench (Taylor
// and Turner, INFOCOM 2005), or made in its manner, for IPv4 and IPv6, and a firewall of 250 rules such as people write.
package classbench

import (
	"bufio"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"millrace/netfilter/match"
)

// Rule is a conjunction over the five fields of a flow.
type Rule struct {
	Src, Dst     netip.Prefix
	Sport, Dport Ports
	Proto        uint8
	AnyProto     bool
}

// Ports are those from Lo to Hi, both included.
type Ports struct{ Lo, Hi uint16 }

var anyPort = Ports{0, 65535}

// Packet is a packet's header fields.
type Packet struct {
	Src, Dst     netip.Addr
	Sport, Dport uint16
	Proto        uint8
}

// The fields of Schema4 and Schema6.
const (
	Src = iota
	Dst
	Sport
	Dport
	Proto
)

// Schemas of rules of one family.
var (
	Schema4 = match.Schema{{Name: "ip saddr", Bits: 32}, {Name: "ip daddr", Bits: 32}, {Name: "sport", Bits: 16}, {Name: "dport", Bits: 16}, {Name: "protocol", Bits: 8}}
	Schema6 = match.Schema{{Name: "ip6 saddr", Bits: 128}, {Name: "ip6 daddr", Bits: 128}, {Name: "sport", Bits: 16}, {Name: "dport", Bits: 16}, {Name: "protocol", Bits: 8}}
)

// Schema is that of rules of the family of these.
func Schema(rs []Rule) match.Schema {
	if len(rs) > 0 && !rs[0].Src.Addr().Is4() {
		return Schema6
	}
	return Schema4
}

// Matches reports whether the packet fits the rule.
func (r *Rule) Matches(p *Packet) bool {
	return r.Src.Contains(p.Src) && r.Dst.Contains(p.Dst) && r.Sport.contain(p.Sport) && r.Dport.contain(p.Dport) && (r.AnyProto || r.Proto == p.Proto)
}

func (r Ports) contain(p uint16) bool { return r.Lo <= p && p <= r.Hi }

// Value is an address as match has it.
func Value(a netip.Addr) match.Value {
	if a.Is4() {
		b := a.As4()
		return match.Num(uint64(binary.BigEndian.Uint32(b[:])))
	}
	b := a.As16()
	return match.Value{Hi: binary.BigEndian.Uint64(b[:]), Lo: binary.BigEndian.Uint64(b[8:])}
}

// Rules are the rules as match has them.
func Rules(rs []Rule) []match.Rule {
	s := Schema(rs)
	out := make([]match.Rule, len(rs))
	for i, r := range rs {
		var m match.Rule
		for f, p := range []netip.Prefix{r.Src, r.Dst} {
			if p.Bits() > 0 {
				m = append(m, s.Prefix(f, Value(p.Addr()), p.Bits()))
			}
		}
		for f, p := range []Ports{r.Sport, r.Dport} {
			if p != anyPort {
				m = append(m, match.Between(Sport+f, match.Num(uint64(p.Lo)), match.Num(uint64(p.Hi))))
			}
		}
		if !r.AnyProto {
			m = append(m, match.Equal(Proto, match.Num(uint64(r.Proto))))
		}
		out[i] = m
	}
	return out
}

// Keys are those of packets, in batches of match.BatchSize.
func Keys(s match.Schema, ps []Packet) (all []match.Keys) {
	for i := range ps {
		pos := uint8(i % match.BatchSize)
		if pos == 0 {
			all = append(all, make(match.Keys, s.Columns()))
		}
		k := all[len(all)-1]
		for f, v := range ps[i].values() {
			k.Set(s, f, pos, v)
		}
	}
	return all
}

func (p *Packet) values() [5]match.Value {
	return [5]match.Value{Value(p.Src), Value(p.Dst), match.Num(uint64(p.Sport)), match.Num(uint64(p.Dport)), match.Num(uint64(p.Proto))}
}

// Read reads a file of ClassBench's, which may be gzipped: rules of the five fields, each once. What follows these on a line does not count.
func Read(path string) (rs []Rule, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var r io.Reader = f
	if filepath.Ext(path) == ".gz" {
		if r, err = gzip.NewReader(f); err != nil {
			return nil, fmt.Errorf("classbench: %s: %w", path, err)
		}
	}
	seen := map[Rule]bool{}
	sc := bufio.NewScanner(r)
	for n := 1; sc.Scan(); n++ {
		l := strings.TrimSpace(sc.Text())
		if l == "" || l[0] == '#' {
			continue
		}
		x, err := parse(l)
		if err != nil {
			return nil, fmt.Errorf("classbench: %s:%d: %w", path, n, err)
		}
		if !seen[x] {
			seen[x] = true
			rs = append(rs, x)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("classbench: %s: %w", path, err)
	}
	if len(rs) == 0 {
		return nil, fmt.Errorf("classbench: %s has no rules", path)
	}
	return rs, nil
}

// parse reads "@src dst lo : hi lo : hi proto/mask ...".
func parse(l string) (r Rule, err error) {
	f := strings.Fields(strings.TrimPrefix(l, "@"))
	if len(f) < 9 || f[3] != ":" || f[6] != ":" {
		return r, fmt.Errorf("%q is no rule: @source destination port : port port : port protocol/mask", l)
	}
	for i, to := range []*netip.Prefix{&r.Src, &r.Dst} {
		p, err := netip.ParsePrefix(f[i])
		if err != nil {
			return r, err
		}
		*to = p.Masked()
	}
	if r.Src.Addr().Is4() != r.Dst.Addr().Is4() {
		return r, fmt.Errorf("%q has two families", l)
	}
	var mask uint8
	_, err = fmt.Sscanf(strings.Join([]string{f[2], f[4], f[5], f[7], f[8]}, " "), "%d %d %d %d 0x%x/0x%x",
		&r.Sport.Lo, &r.Sport.Hi, &r.Dport.Lo, &r.Dport.Hi, &r.Proto, &mask)
	switch {
	case err != nil:
		return r, fmt.Errorf("%q: %w", l, err)
	case r.Sport.Hi < r.Sport.Lo || r.Dport.Hi < r.Dport.Lo:
		return r, fmt.Errorf("%q: no ports are from the higher to the lower", l)
	case mask == 0:
		r.Proto, r.AnyProto = 0, true
	case mask != 0xff:
		return r, fmt.Errorf("%q: the protocol's mask is neither 0 nor 0xff", l)
	}
	return r, nil
}

// Packets are n packets: each within a rule at random, of a hundred miss ones anywhere.
func Packets(rs []Rule, n, miss int, r *rand.Rand) []Packet {
	ps := make([]Packet, n)
	any4, any6 := netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	for i := range ps {
		x := Rule{Src: any4, Dst: any4, Sport: anyPort, Dport: anyPort, AnyProto: true}
		if len(rs) > 0 && !rs[0].Src.Addr().Is4() {
			x.Src, x.Dst = any6, any6
		}
		if len(rs) > 0 && r.IntN(100) >= miss {
			x = rs[r.IntN(len(rs))]
		}
		p := &ps[i]
		p.Src, p.Dst = within(x.Src, r), within(x.Dst, r)
		p.Sport, p.Dport = x.Sport.any(r), x.Dport.any(r)
		if p.Proto = x.Proto; x.AnyProto {
			p.Proto = [...]uint8{6, 17, 1}[r.IntN(3)]
		}
	}
	return ps
}

func (p Ports) any(r *rand.Rand) uint16 { return p.Lo + uint16(r.IntN(int(p.Hi-p.Lo)+1)) }

// within is a random address within a prefix.
func within(p netip.Prefix, r *rand.Rand) netip.Addr {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], r.Uint64())
	binary.LittleEndian.PutUint64(b[8:], r.Uint64())
	n := p.Addr().BitLen() / 8
	a := p.Addr().AsSlice()
	for i := range n {
		keep := byte(0xff)
		if left := p.Bits() - 8*i; left <= 0 {
			keep = 0
		} else if left < 8 {
			keep <<= 8 - left
		}
		a[i] = a[i]&keep | b[i]&^keep
	}
	out, _ := netip.AddrFromSlice(a)
	return out
}
