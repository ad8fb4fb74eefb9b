package host

import (
	"fmt"
	"net/netip"
	"testing"

	"millrace/packet"
)

// solicits returns the destination MACs of the NS and ARP requests among the frames.
func solicits(l [][]byte) (dst [][6]byte) {
	for _, b := range l {
		e := packet.Ethernet(b)
		switch {
		case e.Type() == packet.EtherARP && packet.ARP(b[14:]).Op() == packet.ARPRequest, e.Type() == packet.EtherIPv6 && b[20] == 58 && b[54] == 135:
			dst = append(dst, e.Dst())
		}
	}
	return dst
}

// TestSolicit: three questions a second apart, then it is reported as lost; an answer
// ends them and is reported.
func TestSolicit(t *testing.T) {
	for _, c := range []struct {
		addr   netip.Addr
		group  [6]byte
		answer []byte
	}{
		{peer4, everybody, arp(t, 2, ourMAC, peerMAC, peer4, our4)},
		{peer6, [6]byte{0x33, 0x33, 0xff, 0, 0, 9}, nd(t, 136, naSolicited|naOverride, peer6, our6, peer6, 2, peerMAC)},
	} {
		var learned, lost []string
		r := newRig(t, Config{
			Learn: func(i uint16, a netip.Addr, m [6]byte) { learned = append(learned, fmt.Sprint(i, a, m)) },
			Lost:  func(i uint16, a netip.Addr) { lost = append(lost, fmt.Sprint(i, a)) },
		}, "192.0.2.1/24")
		r.pass(3000, nil)
		r.take()
		if !r.s.Solicit(1, c.addr) {
			t.Fatal("refused")
		}
		for _, step := range []struct{ ms, asked int }{{10, 1}, {980, 0}, {20, 1}, {1000, 1}, {2000, 0}} {
			r.pass(step.ms, nil)
			if d := solicits(r.take()); len(d) != step.asked || step.asked > 0 && d[0] != c.group {
				t.Errorf("%v: asked %x within %d ms, want %d to %x", c.addr, d, step.ms, step.asked, c.group)
			}
		}
		if want := fmt.Sprint(1, c.addr); len(lost) != 1 || lost[0] != want || len(learned) != 0 {
			t.Errorf("lost %v, learned %v", lost, learned)
		}
		r.s.Solicit(1, c.addr)
		r.pass(10, nil)
		r.inject(1, c.answer)
		r.pass(5000, nil)
		if d := solicits(r.take()); len(d) != 1 {
			t.Errorf("%v: asked %d times in spite of an answer", c.addr, len(d))
		}
		if want := fmt.Sprint(1, c.addr, peerMAC); len(learned) != 1 || learned[0] != want || len(lost) != 1 {
			t.Errorf("learned %v, lost %v", learned, lost)
		}

		// Reachable for at most 45 s; a question about a stale one goes to it alone.
		r.pass(46000, nil)
		if n := r.h.find(1, c.addr); n == nil || n.state != stale {
			t.Fatalf("%v: %+v", c.addr, n)
		}
		r.s.Solicit(1, c.addr)
		r.pass(10, nil)
		if d := solicits(r.take()); len(d) != 1 || d[0] != peerMAC {
			t.Errorf("%v: probed by %x", c.addr, d)
		}
		r.inject(1, c.answer)
		if n := r.h.find(1, c.addr); n.state != reachable {
			t.Errorf("%v: state %d after its answer", c.addr, n.state)
		}
	}
	r := newRig(t, Config{}, "192.0.2.1/24")
	for _, a := range []string{"192.0.2.1", "224.0.0.5", "ff02::1", "::", "0.0.0.0"} {
		r.h.Solicit(1, netip.MustParseAddr(a))
	}
	r.h.Solicit(0, peer4)
	r.settle()
	if len(r.take()) != 0 {
		t.Error("nonsense was solicited")
	}
}

// TestStates follows RFC 4861's appendix C: state, message, new state and address.
func TestStates(t *testing.T) {
	other := [6]byte{2, 0, 0, 0, 0, 0xc0}
	na := func(flags uint8, opt bool, m [6]byte) []byte {
		if opt {
			return nd(t, 136, flags, peer6, our6, peer6, 2, m)
		}
		return nd(t, 136, flags, peer6, our6, peer6, 0, m)
	}
	ns := func(m [6]byte) []byte { return nd(t, 135, 0, peer6, our6, our6, 1, m) }
	const S, O = naSolicited, naOverride
	for _, c := range []struct {
		name  string
		from  uint8
		frame []byte
		to    uint8
		mac   [6]byte
	}{
		{"nothing, NA", absent, na(S|O, true, peerMAC), absent, [6]byte{}},
		{"nothing, NS", absent, ns(peerMAC), stale, peerMAC},
		{"incomplete, NA without address", incomplete, na(S|O, false, peerMAC), incomplete, [6]byte{}},
		{"incomplete, NA", incomplete, na(0, true, peerMAC), stale, peerMAC},
		{"incomplete, solicited NA", incomplete, na(S, true, peerMAC), reachable, peerMAC},
		{"incomplete, NS", incomplete, ns(peerMAC), stale, peerMAC},
		{"reachable, same NA", reachable, na(0, true, peerMAC), reachable, peerMAC},
		{"reachable, other address, no override", reachable, na(S, true, other), stale, peerMAC},
		{"reachable, other address, override", reachable, na(O, true, other), stale, other},
		{"reachable, other address, solicited override", reachable, na(S|O, true, other), reachable, other},
		{"stale, other address, no override", stale, na(S, true, other), stale, peerMAC},
		{"stale, solicited without address", stale, na(S|O, false, peerMAC), reachable, peerMAC},
		{"probe, solicited", probe, na(S, true, peerMAC), reachable, peerMAC},
		{"probe, unsolicited same", probe, na(O, true, peerMAC), probe, peerMAC},
		{"probe, other address", probe, na(O, true, other), stale, other},
		{"delay, NS same", delay, ns(peerMAC), delay, peerMAC},
		{"reachable, NS other", reachable, ns(other), stale, other},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, Config{})
			if c.from != absent {
				n := r.h.create(1, peer6)
				if c.from != incomplete {
					n.mac = peerMAC
				}
				r.h.enter(n, c.from, 1)
			}
			r.inject(1, c.frame)
			n := r.h.find(1, peer6)
			if n == nil {
				if c.to != absent {
					t.Fatal("no entry")
				}
				return
			}
			to := c.to
			if c.frame[54] == 135 && to == stale { // the answer sent to it starts the delay
				to = delay
			}
			if n.state != to || n.mac != c.mac {
				t.Errorf("state %d, address %x; want %d, %x", n.state, n.mac, to, c.mac)
			}
		})
	}
}

// TestUnreachable: a stale neighbour that is sent to and does not show itself is probed
// after 5 s and forgotten after three probes.
func TestUnreachable(t *testing.T) {
	lost := 0
	r := newRig(t, Config{Lost: func(uint16, netip.Addr) { lost++ }})
	r.pass(3000, nil)
	r.inject(1, nd(t, 135, 0, peer6, our6, our6, 1, peerMAC))
	r.take()
	r.pass(4900, nil)
	if d := solicits(r.take()); len(d) != 0 {
		t.Errorf("probed too early: %x", d)
	}
	r.pass(3050, nil)
	if d := solicits(r.take()); len(d) != 3 || d[0] != peerMAC || d[2] != peerMAC {
		t.Errorf("probed by %x", d)
	}
	r.pass(1000, nil)
	if lost != 1 || r.h.find(1, peer6) != nil {
		t.Errorf("lost %d times, entry %v", lost, r.h.find(1, peer6))
	}
}

// TestWaiting: the newest answers wait for an unknown neighbour, and are dropped with a
// reason when it stays silent.
func TestWaiting(t *testing.T) {
	r := newRig(t, Config{})
	r.pass(3000, nil)
	r.take()
	for i := range maxHeld + 3 {
		r.inject(1, echo6(t, peer6, our6, i))
	}
	if r.h.Held() != maxHeld || r.w.C.Exit[xUnresolved] != 3 {
		t.Errorf("%d held, %d dropped", r.h.Held(), r.w.C.Exit[xUnresolved])
	}
	if d := solicits(r.take()); len(d) != 1 {
		t.Errorf("asked %d times", len(d))
	}
	r.pass(3100, nil)
	if r.h.Held() != 0 || r.w.C.Exit[xUnresolved] != maxHeld+3 {
		t.Errorf("%d held, %d dropped after 3 s", r.h.Held(), r.w.C.Exit[xUnresolved])
	}
	r.take()
	r.inject(1, echo6(t, peer6, our6, 1))
	r.inject(1, echo6(t, peer6, our6, 2))
	r.take()
	r.inject(1, nd(t, 136, naSolicited, peer6, our6, peer6, 2, peerMAC))
	out := r.take()
	if len(out) != 2 || len(out[0]) != 14+40+9 || len(out[1]) != 14+40+10 || packet.Ethernet(out[0]).Dst() != peerMAC {
		t.Errorf("in answer to the advertisement: %x", out)
	}
}

// TestManyNeighbours: the cache is bounded, and strangers do not displace those who answer.
func TestManyNeighbours(t *testing.T) {
	r := newRig(t, Config{})
	r.inject(1, nd(t, 135, 0, peer6, our6, our6, 1, peerMAC))
	r.inject(1, nd(t, 136, naSolicited, peer6, our6, peer6, 2, peerMAC))
	for i := range 3000 {
		a := peer6.As16()
		a[10], a[11] = byte(i>>8), byte(i)|1
		a[9] = 1
		r.inject(1, echo6(t, netip.AddrFrom16(a), our6, 1))
	}
	if n := r.h.find(1, peer6); n == nil || n.state != reachable {
		t.Error("a flood of strangers displaced a reachable neighbour")
	}
	if r.h.Held() > neighSets*neighWays*maxHeld {
		t.Errorf("%d held", r.h.Held())
	}
	r.take()
}

// TestDAD: who asks whether an address is free is told by all nodes that it is not.
func TestDAD(t *testing.T) {
	none := netip.IPv6Unspecified()
	r := newRig(t, Config{}, "2001:db8:1::1/64")
	r.pass(3000, nil)
	r.take()
	for _, target := range []netip.Addr{our6, global6} {
		f := nd(t, 135, 0, none, solicitedNode(target), target, 0, peerMAC)
		g := groupMAC(solicitedNode(target))
		copy(f, g[:])
		r.inject(1, f)
		b := one(t, r.take(), "answer")
		decode(t, b, layersEthernet)
		h := packet.IPv6(b[14:])
		if packet.Ethernet(b).Dst() != [6]byte{0x33, 0x33, 0, 0, 0, 1} || netip.AddrFrom16(h.Dst()) != allNodes || netip.AddrFrom16(h.Src()) != target ||
			h.HopLimit() != 255 || b[54] != 136 || b[58]&naSolicited != 0 || b[58]&naOverride == 0 {
			t.Errorf("%x", b)
		}
	}
	for name, f := range map[string][]byte{
		"with a source address option": nd(t, 135, 0, none, solicitedNode(our6), our6, 1, peerMAC),
		"to a unicast address":         nd(t, 135, 0, none, our6, our6, 0, peerMAC),
	} {
		r.inject(1, f)
		if out := r.take(); len(out) != 0 || r.w.C.Exit[xMalformed] == 0 {
			t.Errorf("%s: answered by %x", name, out)
		}
	}
}

// TestWorkers: what one worker's host hears, another one's waiting answers need.
func TestWorkers(t *testing.T) {
	r := newRig(t, Config{})
	q := newRig(t, Config{})
	q.h = r.s.newHost(q.w)
	r.inject(1, echo6(t, peer6, our6, 5))
	r.take()
	q.inject(1, nd(t, 136, naSolicited, peer6, our6, peer6, 2, peerMAC))
	r.pass(2, nil)
	for _, b := range r.take() {
		if b[20] == 58 && b[54] == 129 {
			return
		}
	}
	t.Error("the answer still waits")
}
