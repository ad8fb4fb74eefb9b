package fpm

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/control/rib"
	"millrace/fib"
	"millrace/internal/epoch"
	"millrace/pipeline/graph"
)

// A small zebra: it writes what FRR 8.4 was seen to write.

func attr(b []byte, typ uint16, v ...byte) []byte {
	b = native.AppendUint16(b, uint16(4+len(v)))
	b = native.AppendUint16(b, typ)
	b = append(b, v...)
	return append(b, make([]byte, (4-len(v)%4)%4)...)
}

func num(n uint32) []byte { return native.AppendUint32(nil, n) }

func nlmsg(typ uint16, body []byte) []byte {
	b := native.AppendUint32(nil, uint32(16+len(body)))
	b = native.AppendUint16(b, typ)
	b = native.AppendUint16(b, 0x501)
	return append(append(b, make([]byte, 8)...), body...)
}

func frame(msgs ...[]byte) []byte {
	all := bytes.Join(msgs, nil)
	return append(binary.BigEndian.AppendUint16([]byte{1, 1}, uint16(4+len(all))), all...)
}

func rtmsg(p netip.Prefix, proto, typ byte, attrs ...byte) []byte {
	family := byte(unix.AF_INET)
	if p.Addr().Is6() {
		family = unix.AF_INET6
	}
	b := []byte{family, byte(p.Bits()), 0, 0, 254, proto, 0, typ, 0, 0, 0, 0}
	b = attr(b, unix.RTA_DST, p.Addr().AsSlice()...)
	return append(attr(b, unix.RTA_PRIORITY, num(20)...), attrs...)
}

const protoStatic = 196

// newRoute is a route by an object.
func newRoute(p string, object uint32) []byte {
	return nlmsg(unix.RTM_NEWROUTE, rtmsg(netip.MustParsePrefix(p), protoStatic, unix.RTN_UNICAST, attr(nil, 30, num(object)...)...))
}

// viaRoute is a route with a next hop of its own.
func viaRoute(p netip.Prefix, index uint32, via netip.Addr) []byte {
	return nlmsg(unix.RTM_NEWROUTE, rtmsg(p, unix.RTPROT_BGP, unix.RTN_UNICAST, attr(attr(nil, unix.RTA_GATEWAY, via.AsSlice()...), unix.RTA_OIF, num(index)...)...))
}

func delRoute(p string) []byte {
	return nlmsg(unix.RTM_DELROUTE, rtmsg(netip.MustParsePrefix(p), protoStatic, 0))
}

func newHop(id, index uint32, via string) []byte {
	b := attr([]byte{unix.AF_INET, 0, 11, 0, 0, 0, 0, 0}, 1, num(id)...)
	if via != "" {
		b = attr(b, 6, netip.MustParseAddr(via).AsSlice()...)
	}
	return nlmsg(unix.RTM_NEWNEXTHOP, attr(b, 5, num(index)...))
}

func newGroup(id uint32, members ...uint32) []byte {
	var g []byte
	for _, m := range members {
		g = append(append(g, num(m)...), 0, 0, 0, 0)
	}
	return nlmsg(unix.RTM_NEWNEXTHOP, attr(attr([]byte{0, 0, 11, 0, 0, 0, 0, 0}, 1, num(id)...), 2, g...))
}

func delHop(id uint32) []byte {
	return nlmsg(unix.RTM_DELNEXTHOP, attr(make([]byte, 8), 1, num(id)...))
}

// bed is a reader over a table.
func bed() (*rib.Table, *reader) {
	t := rib.New(fib.SourceFPM, 100)
	r := &reader{set: t.NewSet("test"), n: &counts{}, takes: func(n uint32) bool { return n == 0 }}
	r.init()
	return t, r
}

// list is the table in words.
func list(t *rib.Table) string {
	var out []string
	for _, p := range []string{"0.0.0.0/0", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "2001:db8:1::/48"} {
		x, stale, _ := t.Find(0, netip.MustParsePrefix(p))
		if x == nil {
			continue
		}
		s := p + " " + ProtocolName(x.Protocol)
		if x.Type != fib.Unicast {
			s += " " + x.Type.String()
		}
		for _, h := range x.Hops {
			s += fmt.Sprintf(" %v@%d", h.Via, h.Index)
			if h.Weight != 1 {
				s += fmt.Sprintf("*%d", h.Weight)
			}
			if h.Encap {
				s += "+encap"
			}
		}
		if stale {
			s += " stale"
		}
		out = append(out, s)
	}
	return strings.Join(out, ", ")
}

func TestMessages(t *testing.T) {
	all, r := bed()
	step := func(want string, frames ...[]byte) {
		t.Helper()
		b := bytes.Join(frames, nil)
		if used, err := r.frames(b); err != nil || used != len(b) {
			t.Fatalf("%d of %d bytes: %v", used, len(b), err)
		}
		r.flush()
		if got := list(all); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	step("", frame(newHop(1, 3, "192.0.2.2")), frame(newHop(2, 3, "192.0.2.3")), frame(newGroup(7, 1, 2)))
	step("10.1.0.0/16 static 192.0.2.2@3", frame(newRoute("10.1.0.0/16", 1)))
	step("10.1.0.0/16 static 192.0.2.2@3 192.0.2.3@3", frame(delRoute("10.1.0.0/16"), newRoute("10.1.0.0/16", 7)))
	// A member of the group changes, another goes.
	step("10.1.0.0/16 static 192.0.2.2@3 192.0.2.9@4", frame(newHop(2, 4, "192.0.2.9")))
	step("10.1.0.0/16 static 192.0.2.9@4", frame(delHop(1)))
	// An object that goes takes its routes' way not away; when its number comes back it is another one.
	step("10.1.0.0/16 static 192.0.2.9@4", frame(delHop(7)))
	step("10.1.0.0/16 static 192.0.2.9@4, 10.2.0.0/16 static 192.0.2.7@5", frame(newHop(7, 5, "192.0.2.7")), frame(newRoute("10.2.0.0/16", 7)))
	// A route before its object.
	step("10.1.0.0/16 static, 10.2.0.0/16 static 192.0.2.7@5", frame(newRoute("10.1.0.0/16", 50)))
	step("10.1.0.0/16 static 192.0.2.5@6, 10.2.0.0/16 static 192.0.2.7@5", frame(newHop(50, 6, "192.0.2.5")))
	step("10.2.0.0/16 static 192.0.2.7@5", frame(delRoute("10.1.0.0/16")))
	// The kernel's take the place of a daemon's.
	step("", frame(nlmsg(unix.RTM_NEWROUTE, rtmsg(netip.MustParsePrefix("10.2.0.0/16"), unix.RTPROT_KERNEL, unix.RTN_UNICAST, attr(nil, 30, num(7)...)...))))
	step("10.3.0.0/16 static blackhole", frame(nlmsg(unix.RTM_NEWROUTE, rtmsg(netip.MustParsePrefix("10.3.0.0/16"), protoStatic, unix.RTN_BLACKHOLE))))
	step("10.3.0.0/16 bgp 192.0.2.8@3", frame(viaRoute(netip.MustParsePrefix("10.3.0.0/16"), 3, netip.MustParseAddr("192.0.2.8"))))
	// Multipath without objects, one member with labels.
	hops := append([]byte{16, 0, 0, 4}, num(3)...)
	hops = attr(hops, unix.RTA_GATEWAY, 192, 0, 2, 2)
	hop2 := append([]byte{0, 0, 0, 0}, num(4)...)
	hop2 = attr(attr(hop2, unix.RTA_GATEWAY, 192, 0, 2, 3), unix.RTA_ENCAP_TYPE, 1, 0)
	hop2[0] = byte(len(hop2))
	step("10.3.0.0/16 ospf 192.0.2.2@3*5 192.0.2.3@4+encap",
		frame(nlmsg(unix.RTM_NEWROUTE, rtmsg(netip.MustParsePrefix("10.3.0.0/16"), unix.RTPROT_OSPF, unix.RTN_UNICAST, attr(nil, unix.RTA_MULTIPATH, append(hops, hop2...)...)...))))
	step("0.0.0.0/0 bgp 192.0.2.8@3, 2001:db8:1::/48 bgp fe80::1@3", frame(delRoute("10.3.0.0/16")),
		frame(viaRoute(netip.MustParsePrefix("2001:db8:1::/48"), 3, netip.MustParseAddr("fe80::1")), viaRoute(netip.MustParsePrefix("0.0.0.0/0"), 3, netip.MustParseAddr("192.0.2.8"))))
	// What is not taken is counted.
	other := rtmsg(netip.MustParsePrefix("10.1.0.0/16"), protoStatic, unix.RTN_UNICAST, attr(attr(nil, unix.RTA_TABLE, num(1000)...), unix.RTA_OIF, num(3)...)...)
	label := rtmsg(netip.MustParsePrefix("10.1.0.0/16"), protoStatic, unix.RTN_UNICAST)
	label[0] = unix.AF_MPLS
	step("0.0.0.0/0 bgp 192.0.2.8@3, 2001:db8:1::/48 bgp fe80::1@3", frame(nlmsg(unix.RTM_NEWROUTE, other), nlmsg(unix.RTM_NEWROUTE, label), nlmsg(unix.RTM_NEWNEIGH, make([]byte, 12)),
		viaRoute(netip.MustParsePrefix("2001:db8:2::/48"), 3, netip.MustParseAddr("192.0.2.8")), viaRoute(netip.MustParsePrefix("10.1.0.0/16"), 3, netip.MustParseAddr("224.0.0.1"))))
	n := r.n.load()
	if n.Tables != 1 || n.Labels != 1 || n.Other != 1 || n.Invalid != 2 || n.Kernel != 1 {
		t.Errorf("counts %+v", n)
	}
}

// However the stream is cut, the same comes out; what is wrong is refused.
func TestFrames(t *testing.T) {
	stream := bytes.Join([][]byte{frame(newHop(1, 3, "192.0.2.2")), frame(newRoute("10.1.0.0/16", 1)), frame(delRoute("10.1.0.0/16"), newRoute("10.2.0.0/16", 1)), frame()}, nil)
	for cut := range len(stream) {
		all, r := bed()
		buf := stream[:cut]
		used, err := r.frames(bytes.Clone(buf))
		if err != nil {
			t.Fatal(err)
		}
		if more, err := r.frames(bytes.Clone(stream[used:])); err != nil || used+more != len(stream) {
			t.Fatalf("cut at %d: %d and %d of %d: %v", cut, used, more, len(stream), err)
		}
		r.flush()
		if got := list(all); got != "10.2.0.0/16 static 192.0.2.2@3" {
			t.Fatalf("cut at %d: %s", cut, got)
		}
	}
	for _, c := range []struct {
		b   []byte
		err string
	}{
		{[]byte("GET / HTTP/1.1"), "version 71"},
		{[]byte{1, 2, 0, 8, 0, 0, 0, 0}, "protobuf"},
		{[]byte{1, 9, 0, 8, 0, 0, 0, 0}, "type 9"},
		{[]byte{1, 1, 0, 3}, "3 bytes"},
		{frame([]byte{1, 2, 3}), "no netlink message"},
		{frame(nlmsg(unix.RTM_NEWROUTE, make([]byte, 11))), "too short"},
		{frame(nlmsg(unix.RTM_NEWROUTE, append(make([]byte, 12), 9, 0, 1, 0))), "attributes"},
		{frame(append(num(15), make([]byte, 12)...)), "15 bytes"},
		{frame(append(num(200), make([]byte, 12)...)), "200 bytes"},
	} {
		_, r := bed()
		if _, err := r.frames(c.b); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%x: %v, want %q", c.b, err, c.err)
		}
	}
}

func FuzzFrames(f *testing.F) {
	f.Add(frame(newHop(1, 3, "192.0.2.2"), newGroup(2, 1, 1)), 9)
	f.Add(frame(newRoute("10.1.0.0/16", 1), delRoute("10.1.0.0/16")), 20)
	f.Add(frame(viaRoute(netip.MustParsePrefix("2001:db8::/32"), 3, netip.MustParseAddr("fe80::1")), delHop(1)), 33)
	f.Fuzz(func(t *testing.T, b []byte, cut int) {
		// All at once, and cut in two, must be the same.
		one, r1 := bed()
		used1, err1 := r1.frames(bytes.Clone(b))
		r1.flush()
		two, r2 := bed()
		cut = max(0, min(cut, len(b)))
		used2, err2 := r2.frames(bytes.Clone(b[:cut]))
		if err2 == nil {
			var n int
			n, err2 = r2.frames(bytes.Clone(b[used2:]))
			used2 += n
		}
		r2.flush()
		if used1 != used2 || fmt.Sprint(err1) != fmt.Sprint(err2) || r1.n.load() != r2.n.load() {
			t.Fatalf("%d %v %+v at once, %d %v %+v cut at %d", used1, err1, r1.n.load(), used2, err2, r2.n.load(), cut)
		}
		dump := func(t *rib.Table) map[string]string {
			m := map[string]string{}
			t.Routes(func(table uint32, p netip.Prefix, x *rib.Path, _ bool) bool {
				m[fmt.Sprint(table, p)] = fmt.Sprint(x.Attrs, x.Hops)
				return true
			})
			return m
		}
		a, c := dump(one), dump(two)
		if fmt.Sprint(a) != fmt.Sprint(c) {
			t.Fatalf("%v at once, %v cut", a, c)
		}
		for k := range a {
			if strings.Contains(k, "invalid") {
				t.Fatal(k)
			}
		}
	})
}

// serve runs a server and a loop that keeps a map of what the FIB would have.
func serve(t testing.TB, o Options, limit int) (*Server, *rib.Table, func() net.Conn, func() int) {
	t.Helper()
	tab := rib.New(fib.SourceFPM, limit)
	s := New(tab, o)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	dial := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	total := func() int { return tab.Stats().Prefixes }
	return s, tab, dial, total
}

func wait(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("after 10 s not: ", what)
		}
	}
}

// Two daemons have routes of their own; one that dies keeps them until it is back; one that speaks
// nonsense is thrown out, and its routes stay too.
func TestConnections(t *testing.T) {
	s, tab, dial, total := serve(t, Options{Stale: time.Hour, Quiet: time.Hour}, 100)
	a, b := dial(), dial()
	a.Write(bytes.Join([][]byte{frame(newHop(1, 3, "192.0.2.2")), frame(newRoute("10.1.0.0/16", 1)), frame(newRoute("10.2.0.0/16", 1))}, nil))
	wait(t, "two routes", func() bool { return total() == 2 })
	b.Write(bytes.Join([][]byte{frame(newHop(1, 4, "192.0.2.3")), frame(newRoute("10.2.0.0/16", 1)), frame(newRoute("10.3.0.0/16", 1))}, nil))
	wait(t, "three routes", func() bool { return total() == 3 })
	// Half a frame, then nothing.
	a.Write(newRoute("10.4.0.0/16", 1)[:9])
	a.Close()
	wait(t, "the end", func() bool { return len(s.Status().Ended) == 1 })
	wait(t, "stale routes behind live ones", func() bool {
		return list(tab) == "10.1.0.0/16 static 192.0.2.2@3 stale, 10.2.0.0/16 static 192.0.2.3@4, 10.3.0.0/16 static 192.0.2.3@4"
	})
	a = dial()
	a.Write(bytes.Join([][]byte{frame(newHop(5, 3, "192.0.2.2")), frame(newRoute("10.1.0.0/16", 5))}, nil))
	wait(t, "back again", func() bool {
		return list(tab) == "10.1.0.0/16 static 192.0.2.2@3, 10.2.0.0/16 static 192.0.2.3@4, 10.3.0.0/16 static 192.0.2.3@4"
	})
	b.Write([]byte("nonsense"))
	wait(t, "thrown out", func() bool {
		st := s.Status()
		return len(st.Ended) == 2 && strings.Contains(st.Ended[1].Why, "version 110") && len(st.Clients) == 1
	})
	if got := list(tab); got != "10.1.0.0/16 static 192.0.2.2@3, 10.2.0.0/16 static 192.0.2.3@4 stale, 10.3.0.0/16 static 192.0.2.3@4 stale" {
		t.Error(got)
	}
	if st := s.Status(); st.Served != 3 || st.Total.Added != 5 || st.Clients[0].Objects != 1 {
		t.Errorf("%+v", st)
	}
}

func TestTooManyConnections(t *testing.T) {
	s, _, dial, _ := serve(t, Options{}, 100)
	for range maxClients {
		dial()
	}
	wait(t, "all of them", func() bool { return len(s.Status().Clients) == maxClients })
	c := dial()
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err == nil || strings.Contains(err.Error(), "timeout") {
		t.Errorf("one more is not closed: %v", err)
	}
}

// fullTable writes n routes as zebra does, each by one of 500 objects.
func fullTable(n int) []byte {
	var b []byte
	for i := range uint32(500) {
		b = append(b, frame(newHop(100+i, 3, netip.AddrFrom4([4]byte{192, 0, byte(2 + i/250), byte(1 + i%250)}).String()))...)
	}
	for i := range uint32(n) {
		a := [4]byte{}
		binary.BigEndian.PutUint32(a[:], 1<<24+i<<8)
		p := netip.PrefixFrom(netip.AddrFrom4(a), 24)
		b = append(b, frame(nlmsg(unix.RTM_NEWROUTE, rtmsg(p, unix.RTPROT_BGP, unix.RTN_UNICAST, attr(nil, 30, num(100+i%500)...)...)))...)
	}
	return b
}

func BenchmarkReceive(b *testing.B) {
	const n = 200_000
	stream := fullTable(n)
	for b.Loop() {
		b.StopTimer()
		_, _, dial, total := serve(b, Options{}, 1<<22)
		c := dial()
		b.StartTimer()
		if _, err := c.Write(stream); err != nil {
			b.Fatal(err)
		}
		wait(b, "all", func() bool { return total() == n })
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "routes/s")
}

// BenchmarkFIB is from the socket into the FIB's tables: a million routes by 500 next-hop objects.
func BenchmarkFIB(b *testing.B) {
	const n = 1_000_000
	stream := fullTable(n)
	for b.Loop() {
		b.StopTimer()
		gt, err := graph.NewTables()
		if err != nil {
			b.Fatal(err)
		}
		f, err := fib.New(gt, epoch.NewDomain(), fib.Reasons{})
		if err != nil {
			b.Fatal(err)
		}
		gt.Ifaces[1] = graph.Iface{Flags: graph.IfUp, MTU: 1500}
		if err := f.SetIface(1, fib.IfaceOptions{}); err != nil {
			b.Fatal(err)
		}
		_, tab, dial, total := serve(b, Options{}, 1<<22)
		resolve := func(p *rib.Path) (fib.RouteType, []fib.NextHop, bool) {
			return fib.Unicast, []fib.NextHop{{Via: p.Hops[0].Via, Iface: 1, Weight: 1}}, true
		}
		c := dial()
		b.StartTimer()
		go c.Write(stream)
		for total() < n || tab.Stats().Queued != 0 {
			<-tab.Wake()
			for tab.Flush(resolve, f.Update) {
			}
		}
		b.StopTimer()
		if s := tab.Stats(); s.Refused != 0 {
			b.Fatal(s.Err)
		}
		f.Close()
		gt.Close()
		b.StartTimer()
	}
	b.ReportMetric(n*float64(b.N)/b.Elapsed().Seconds(), "routes/s")
}
