package afpacket

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"testing"

	"github.com/cilium/ebpf"

	"millrace/pmd"
)

var (
	testMAC   = pmd.MAC{2, 0, 0, 0, 0, 1}
	testLocal = []netip.Addr{
		netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2"),
		netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2"),
	}
	testTypes = []uint16{0x8847}
)

// frame is a frame to dst with tags, an EtherType and 80 bytes of L3 that edit fills.
func frame(dst pmd.MAC, tags []uint16, typ uint16, edit func(b []byte)) []byte {
	f := append(dst[:], 2, 0, 0, 0, 0, 9)
	for _, tpid := range tags {
		f = binary.BigEndian.AppendUint16(f, tpid)
		f = append(f, 0, 5)
	}
	f = binary.BigEndian.AppendUint16(f, typ)
	b := make([]byte, 80)
	edit(b)
	return append(f, b...)
}

func ip4(dst string, more ...func(b []byte)) func(b []byte) {
	return func(b []byte) {
		b[0], b[8], b[9] = 0x45, 64, 6
		d := netip.MustParseAddr(dst).As4()
		copy(b[16:], d[:])
		for _, f := range more {
			f(b)
		}
	}
}

func ip6(dst string, more ...func(b []byte)) func(b []byte) {
	return func(b []byte) {
		b[0], b[6], b[7] = 0x60, 6, 64
		d := netip.MustParseAddr(dst).As16()
		copy(b[24:], d[:])
		for _, f := range more {
			f(b)
		}
	}
}

func dhcp(mac pmd.MAC) func(b []byte) {
	return func(b []byte) {
		b[9], b[23] = 17, 68
		copy(b[56:], mac[:])
	}
}

func icmp6(typ byte) func(b []byte) {
	return func(b []byte) { b[6], b[40] = 58, typ }
}

type verdict struct {
	name string
	f    []byte
	host bool
}

func verdicts() []verdict {
	other := pmd.MAC{2, 0, 0, 0, 0, 2}
	nop := func([]byte) {}
	return []verdict{
		{"transit v4", frame(testMAC, nil, 0x800, ip4("203.0.113.1")), false},
		{"local v4", frame(testMAC, nil, 0x800, ip4("192.0.2.1")), true},
		{"local v4, given as mapped", frame(testMAC, nil, 0x800, ip4("192.0.2.2")), true},
		{"v4 to another MAC", frame(other, nil, 0x800, ip4("203.0.113.1")), true},
		{"v4 in a broadcast", frame(pmd.MAC{255, 255, 255, 255, 255, 255}, nil, 0x800, ip4("203.0.113.1")), true},
		{"v4 multicast", frame(testMAC, nil, 0x800, ip4("224.0.0.5")), true},
		{"v4 multicast, last", frame(testMAC, nil, 0x800, ip4("239.255.255.255")), true},
		{"v4 reserved", frame(testMAC, nil, 0x800, ip4("240.0.0.1")), false},
		{"v4 broadcast", frame(testMAC, nil, 0x800, ip4("255.255.255.255")), true},
		{"DHCP for us", frame(testMAC, nil, 0x800, ip4("203.0.113.1", dhcp(testMAC))), true},
		{"DHCP in transit", frame(testMAC, nil, 0x800, ip4("203.0.113.1", dhcp(other))), false},
		{"short v4", frame(testMAC, nil, 0x800, ip4("203.0.113.1"))[:30], true},
		{"shortest v4", frame(testMAC, nil, 0x800, ip4("203.0.113.1"))[:34], false},
		{"tagged v4", frame(testMAC, []uint16{0x8100}, 0x800, ip4("203.0.113.1")), false},
		{"tagged local v4", frame(testMAC, []uint16{0x8100}, 0x800, ip4("192.0.2.1")), true},
		{"v4 behind two tags", frame(testMAC, []uint16{0x88a8, 0x8100}, 0x800, ip4("203.0.113.1")), false},
		{"local v4 behind two tags", frame(testMAC, []uint16{0x88a8, 0x8100}, 0x800, ip4("192.0.2.1")), true},
		{"transit v6", frame(testMAC, nil, 0x86dd, ip6("2001:db8:1::1")), false},
		{"local v6", frame(testMAC, nil, 0x86dd, ip6("2001:db8::1")), true},
		{"tagged local v6", frame(testMAC, []uint16{0x8100}, 0x86dd, ip6("2001:db8::2")), true},
		{"v6 link-local", frame(testMAC, nil, 0x86dd, ip6("fe80::1")), true},
		{"v6 link-local, last", frame(testMAC, nil, 0x86dd, ip6("febf::1")), true},
		{"v6 site-local", frame(testMAC, nil, 0x86dd, ip6("fec0::1")), false},
		{"v6 multicast", frame(testMAC, nil, 0x86dd, ip6("ff02::1")), true},
		{"v6 neighbour solicitation", frame(testMAC, nil, 0x86dd, ip6("2001:db8:1::1", icmp6(135))), true},
		{"v6 router solicitation", frame(testMAC, nil, 0x86dd, ip6("2001:db8:1::1", icmp6(133))), true},
		{"v6 redirect", frame(testMAC, []uint16{0x8100}, 0x86dd, ip6("2001:db8:1::1", icmp6(137))), true},
		{"v6 echo", frame(testMAC, nil, 0x86dd, ip6("2001:db8:1::1", icmp6(128))), false},
		{"v6 ICMP 132", frame(testMAC, nil, 0x86dd, ip6("2001:db8:1::1", icmp6(132))), false},
		{"v6 ICMP 138", frame(testMAC, nil, 0x86dd, ip6("2001:db8:1::1", icmp6(138))), false},
		{"short v6", frame(testMAC, nil, 0x86dd, ip6("2001:db8:1::1"))[:53], true},
		{"ARP", frame(testMAC, nil, 0x806, nop), true},
		{"MPLS", frame(testMAC, nil, 0x8847, nop), false},
		{"tagged MPLS", frame(testMAC, []uint16{0x8100}, 0x8847, nop), false},
		{"MPLS multicast", frame(testMAC, nil, 0x8848, nop), true},
		{"LLDP", frame(pmd.MAC{1, 0x80, 0xc2, 0, 0, 0xe}, nil, 0x88cc, nop), true},
	}
}

func TestFilter(t *testing.T) {
	f := newFilter(testMAC, testLocal, testTypes)
	for _, v := range verdicts() {
		if got := f.host(v.f); got != v.host {
			t.Errorf("%s: the kernel's: %v, want %v", v.name, got, v.host)
		}
	}
	if !f.host(nil) || !f.host(make([]byte, 13)) {
		t.Error("a frame without header is not the kernel's")
	}
}

// The set of local addresses finds exactly what was put in.
func TestFilterSets(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	var local []netip.Addr
	in := map[netip.Addr]bool{}
	for range 1000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		for _, a := range []netip.Addr{netip.AddrFrom4([4]byte(b[:4])), netip.AddrFrom16(b)} {
			local = append(local, a)
			in[a] = true
		}
	}
	f := newFilter(testMAC, local, nil)
	has := func(a netip.Addr) bool {
		if a.Is4() {
			b := a.As4()
			return f.has4(binary.NativeEndian.Uint32(b[:]))
		}
		b := a.As16()
		return f.has6(binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:]))
	}
	for _, a := range local {
		if !has(a) {
			t.Fatalf("%v is missing", a)
		}
		if n := a.Next(); n.IsValid() && has(n) != in[n] {
			t.Fatalf("%v is there", n)
		}
	}
}

// short reports whether the kernel's test runner refuses a frame: it wants whole IP headers.
func short(f []byte) bool {
	switch t := binary.BigEndian.Uint16(f[12:]); t {
	case 0x800:
		return len(f) < 34
	case 0x86dd:
		return len(f) < 54
	}
	return len(f) < 15
}

// The program judges as the filter does. The kernel's test runner does not take a tag off, as
// it would on the way.
func TestProgram(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: BPF")
	}
	d, err := newDropper(false)
	if err != nil {
		t.Skip("no BPF here: ", err)
	}
	defer d.close()
	if err := d.set(testMAC, testLocal, testTypes); err != nil {
		t.Fatal(err)
	}
	run := func(f []byte) bool {
		ret, err := d.prog.Run(&ebpf.RunOptions{Data: f})
		if err != nil {
			t.Fatalf("%x: %v", f, err)
		}
		if ret != tcxDrop && int32(ret) != tcxNext {
			t.Fatalf("the program returned %d", int32(ret))
		}
		return ret != tcxDrop
	}
	for _, v := range verdicts() {
		if short(v.f) {
			continue
		}
		if got := run(v.f); got != v.host {
			t.Errorf("%s: the kernel's: %v, want %v", v.name, got, v.host)
		}
	}
	// Damaged and shortened frames: as the filter.
	f := newFilter(testMAC, testLocal, testTypes)
	r := rand.New(rand.NewPCG(3, 4))
	vs := verdicts()
	for range 3000 {
		v := vs[r.IntN(len(vs))]
		b := append([]byte(nil), v.f...)
		for range r.IntN(3) {
			b[r.IntN(len(b))] = byte(r.Uint32())
		}
		if b = b[:14+r.IntN(len(b)-13)]; short(b) {
			continue
		}
		if got, want := run(b), f.host(b); got != want {
			t.Fatalf("%x: program %v, filter %v", b, got, want)
		}
	}
	// Addresses that go away.
	if err := d.set(testMAC, testLocal[1:], nil); err != nil {
		t.Fatal(err)
	}
	if run(frame(testMAC, nil, 0x800, ip4("192.0.2.1"))) || !run(frame(testMAC, nil, 0x800, ip4("192.0.2.2"))) {
		t.Error("addresses were not replaced")
	}
	if !run(frame(testMAC, nil, 0x8847, func([]byte) {})) {
		t.Error("EtherTypes were not replaced")
	}
}
