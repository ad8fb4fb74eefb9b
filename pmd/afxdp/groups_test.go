package afxdp

import (
	"bytes"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"millrace/pmd"
)

// TestGroups: of what is sent to groups exactly what SetGroups names comes to Rx, and what is to be sampled goes to the kernel
// once a second.
func TestGroups(t *testing.T) {
	for _, mode := range []string{"native", "generic"} {
		t.Run(mode, func(t *testing.T) { testGroups(t, mode) })
	}
}

func testGroups(t *testing.T, mode string) {
	r := newRig(t, pmd.Config{Mode: mode})
	defer r.end()
	kernel := r.a.Raw(t, "a0")
	src := []byte(r.peer.MAC)
	a := netip.MustParseAddr
	groups := []pmd.Group{
		{Group: a("239.1.1.1"), Source: a("10.0.0.2")},
		{Group: a("239.1.1.2")},
		{Group: a("239.1.1.2"), Source: a("10.0.0.9"), Pass: true},
		{Group: a("239.1.1.5")},
		{Group: a("239.1.1.5"), Source: a("10.0.0.2"), Pass: true},
		{Group: a("239.1.1.3"), Source: a("10.0.0.2"), Outer: 10},
		{Group: a("239.1.1.3"), Source: a("10.0.0.2"), Outer: 10, Inner: 11},
		{Group: a("239.1.1.4"), Source: a("10.0.0.3")},
		{Group: a("ff0e::1"), Source: a("2001:db8::2")},
		{Group: a("ff0e::2")},
		{Group: a("ff0e::3"), Outer: 10},
	}
	if err := r.SetGroups(groups); err != nil {
		t.Fatal(err)
	}
	u := udp(1, 2, bytes.Repeat([]byte("data"), 10))
	v4, v6 := uint16(0x0800), uint16(0x86dd)
	m4 := func(g string, ttl, proto uint8, types ...uint16) []byte {
		d := a(g).As4()
		p := ip4(g, proto, u)
		p[8] = ttl
		return append(eth([]byte{1, 0, 0x5e, d[1] & 0x7f, d[2], d[3]}, src, types...), p...)
	}
	m6 := func(g string, hops, next uint8, types ...uint16) []byte {
		d := a(g).As16()
		p := ip6(g, next, u)
		p[7] = hops
		return append(eth([]byte{0x33, 0x33, d[12], d[13], d[14], d[15]}, src, types...), p...)
	}
	send := func(name string, f []byte, take bool) {
		t.Helper()
		f = append(f, []byte(fmt.Sprintf("/%s/%s", mode, name))...)
		if err := r.peer.Send(f); err != nil {
			t.Fatal(err)
		}
		same := func(b []byte) bool {
			return bytes.Equal(b, f) || len(types(f)) > 1 && len(b) == len(f)-4 && bytes.Equal(b[12:], f[16:])
		}
		var inRx, inKernel bool
		if take {
			inRx = r.recv(3*time.Second, same) != nil
			inKernel = kernel.RecvMatch(0, same) != nil
		} else {
			inKernel = kernel.RecvMatch(3*time.Second, same) != nil
			inRx = r.recv(0, same) != nil
		}
		if inRx != take || inKernel == take {
			t.Errorf("%s: in Rx %t, in the kernel %t; want in Rx %t", name, inRx, inKernel, take)
		}
	}
	for _, c := range []struct {
		name  string
		frame []byte
		take  bool
	}{
		{"source and group", m4("239.1.1.1", 9, 17, v4), true},
		{"source and group, ttl 2", m4("239.1.1.1", 2, 17, v4), true},
		{"source and group, ttl 1", m4("239.1.1.1", 1, 17, v4), false},
		{"source and group, IGMP", m4("239.1.1.1", 9, 2, v4), false},
		{"source and group, tagged", m4("239.1.1.1", 9, 17, 0x8100, v4), false},
		{"any source", m4("239.1.1.2", 9, 17, v4), true},
		{"any source but this", m4("239.1.1.5", 9, 17, v4), false},
		{"one tag", m4("239.1.1.3", 9, 17, 0x8100, v4), true},
		{"two tags", m4("239.1.1.3", 9, 17, 0x88a8, 0x8100, v4), true},
		{"no tag", m4("239.1.1.3", 9, 17, v4), false},
		{"three tags", m4("239.1.1.3", 9, 17, 0x88a8, 0x8100, 0x8100, v4), false},
		{"another source", m4("239.1.1.4", 9, 17, v4), false},
		{"another group", m4("239.129.1.1", 9, 17, v4), false}, // with the MAC address of 239.1.1.1
		{"routing protocol", m4("224.0.0.5", 1, 89, v4), false},
		{"ipv6 source and group", m6("ff0e::1", 9, 17, v6), true},
		{"ipv6 hop limit 1", m6("ff0e::1", 1, 17, v6), false},
		{"ipv6 ICMPv6", m6("ff0e::1", 9, 58, v6), false},
		{"ipv6 any source", m6("ff0e::2", 9, 17, v6), true},
		{"ipv6 one tag", m6("ff0e::3", 9, 17, 0x8100, v6), true},
		{"ipv6 no tag", m6("ff0e::3", 9, 17, v6), false},
		{"ipv6 another group", m6("ff0e::4", 9, 17, v6), false},
		{"cut short", append(eth([]byte{1, 0, 0x5e, 1, 1, 2}, src, v4), 0x45), false},
	} {
		send(c.name, c.frame, c.take)
	}

	// Sampled: the first is the kernel's, and others a second later.
	groups[1].Sample = true
	if err := r.SetGroups(groups[1:]); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	send("first sample", m4("239.1.1.2", 9, 17, v4), false)
	send("second", m4("239.1.1.2", 9, 17, v4), time.Since(start) < time.Second)
	if err := r.SetGroups(groups[1:]); err != nil { // keeps the time
		t.Fatal(err)
	}
	send("third", m4("239.1.1.2", 9, 17, v4), time.Since(start) < time.Second)
	time.Sleep(time.Until(start.Add(1100 * time.Millisecond)))
	send("after a second", m4("239.1.1.2", 9, 17, v4), false)
	send("a group that is gone", m4("239.1.1.1", 9, 17, v4), false)
	if err := r.SetGroups([]pmd.Group{{Group: a("10.0.0.1")}}); err == nil {
		t.Error("took a unicast address as a group")
	}
	if err := r.SetGroups(make([]pmd.Group, 0)); err != nil {
		t.Error(err)
	}
	send("no groups", m6("ff0e::1", 9, 17, v6), false)
}
