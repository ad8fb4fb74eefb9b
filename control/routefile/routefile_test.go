package routefile

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
)

// record writes an MRT record.
func record(typ, sub uint16, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, 1_700_000_000)
	b = binary.BigEndian.AppendUint16(b, typ)
	b = binary.BigEndian.AppendUint16(b, sub)
	return append(binary.BigEndian.AppendUint32(b, uint32(len(body))), body...)
}

var peers = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8::1")}

func index() []byte {
	b := append([]byte{1, 2, 3, 4, 0, 2}, "vw"...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(peers)))
	for _, p := range peers {
		typ := byte(2) // AS of four bytes
		if p.Is6() {
			typ |= 1
		}
		b = append(append(append(b, typ, 9, 9, 9, 9), p.AsSlice()...), 0, 0, 0, 7)
	}
	return record(mrtTableDumpV2, mrtPeerIndexTable, b)
}

// said is what a peer says: its number, the length of the AS path, the next hop.
type said struct {
	peer, length int
	via          string
}

func rib(prefix string, addPath bool, all ...said) []byte {
	p := netip.MustParsePrefix(prefix)
	sub := uint16(mrtRIB4)
	if p.Addr().Is6() {
		sub = mrtRIB6
	}
	if addPath {
		sub += 6
	}
	b := append([]byte{0, 0, 0, 1, byte(p.Bits())}, p.Addr().AsSlice()[:(p.Bits()+7)/8]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(all)))
	for _, s := range all {
		a := append([]byte{0x40, 1, 1, 0, 0x50, attrASPath, 0, byte(2 + 4*s.length), 2, byte(s.length)}, make([]byte, 4*s.length)...)
		via := netip.MustParseAddr(s.via)
		if via.Is4() {
			a = append(append(a, 0x40, attrNextHop, 4), via.AsSlice()...)
		} else {
			a = append(append(a, 0x80, attrMPReach, 17, 16), via.AsSlice()...)
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(s.peer)), 0, 0, 0, 0)
		if addPath {
			b = append(b, 0, 0, 0, 5)
		}
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(a))), a...)
	}
	return record(mrtTableDumpV2, sub, b)
}

func dump() []byte {
	return bytes.Join([][]byte{
		index(),
		rib("10.0.0.0/8", false, said{0, 3, "192.0.2.1"}, said{1, 2, "192.0.2.2"}),
		record(16, 4, []byte("an update")), // BGP4MP
		rib("192.0.2.128/25", true, said{0, 1, "192.0.2.3"}),
		rib("2001:db8:7::/48", false, said{1, 1, "2001:db8::9"}),
		rib("0.0.0.0/0", false, said{1, 1, "192.0.2.4"}),
	}, nil)
}

func TestMRT(t *testing.T) {
	const all = "[{10.0.0.0/8 192.0.2.2} {192.0.2.128/25 192.0.2.3} {2001:db8:7::/48 2001:db8::9} {0.0.0.0/0 192.0.2.4}]"
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(dump())
	w.Close()
	for _, in := range [][]byte{dump(), z.Bytes()} {
		if got, err := Read(bytes.NewReader(in), netip.Addr{}); err != nil || fmt.Sprint(got) != all {
			t.Errorf("%v, %v", got, err)
		}
	}
	if got, err := Read(bytes.NewReader(dump()), peers[0]); err != nil || fmt.Sprint(got) != "[{10.0.0.0/8 192.0.2.1} {192.0.2.128/25 192.0.2.3}]" {
		t.Errorf("of one peer: %v, %v", got, err)
	}
	if _, err := Read(bytes.NewReader(dump()), netip.MustParseAddr("10.9.9.9")); err == nil || !strings.Contains(err.Error(), "no peer 10.9.9.9") {
		t.Error(err)
	}
	whole := map[int]bool{}
	for at, n := 0, 0; at <= len(dump()); at += 12 + n {
		whole[at] = true
		if at == len(dump()) {
			break
		}
		n = int(binary.BigEndian.Uint32(dump()[at+8:]))
	}
	for cut := 6; cut < len(dump()); cut++ {
		if _, err := Read(bytes.NewReader(dump()[:cut]), netip.Addr{}); (err == nil) != whole[cut] {
			t.Fatalf("cut at %d: %v", cut, err)
		}
	}
}

func TestList(t *testing.T) {
	got, err := Read(strings.NewReader("# a list\n10.0.0.0/8 via 192.0.2.1\n\n2001:db8::/32  # by none\n192.0.2.7\n"), netip.Addr{})
	if err != nil || fmt.Sprint(got) != "[{10.0.0.0/8 192.0.2.1} {2001:db8::/32 invalid IP} {192.0.2.7/32 invalid IP}]" {
		t.Errorf("%v, %v", got, err)
	}
	for in, want := range map[string]string{
		"10.0.0.0/8\nroot:x:0\n":             "line 2: no prefix",
		"10.0.0.1/8":                         "write 10.0.0.0/8",
		"10.0.0.0/8 dev eth0":                "only `via ADDRESS`",
		"10.0.0.0/8 via x":                   "no IP address",
		"2001:db8::/32 via 192.0.2.1":        "IPv4 gateway",
		"::ffff:10.0.0.0/104 via 2001:db8::": "write IPv4 prefixes as such",
	} {
		if got, err := Read(strings.NewReader(in), netip.Addr{}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "root") {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(dump())
	f.Add([]byte("10.0.0.0/8 via 192.0.2.1\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Read(bytes.NewReader(b), netip.Addr{})
		if err != nil && got != nil {
			t.Fatal("routes with an error")
		}
		for _, r := range got {
			if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() {
				t.Fatal(r)
			}
		}
	})
}
