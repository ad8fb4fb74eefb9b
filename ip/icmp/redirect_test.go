package icmp

import (
	"bytes"
	"net/netip"
	"testing"

	"millrace/ip/internal/rig"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// router is a neighbour stage that sends everything by one next hop.
type router struct{ nh string }

func (router) Run(*graph.Vector) {}
func (r router) Target(group uint16, dst netip.Addr) (uint16, netip.Addr, bool) {
	if r.nh == "" {
		return 0, netip.Addr{}, false
	}
	if r.nh == "dst" {
		return 1, dst, true
	}
	return 1, netip.MustParseAddr(r.nh), true
}

func redirect(r *rig.Rig, nh string, p []byte) {
	r.W.Instances["neighbour"] = router{nh}
	i := r.Add(p, 0)
	if r.V.Adj[i] == 0 {
		r.V.Adj[i] = 1
	}
	Redirector(r.W)(&r.V, i)
	r.FreeAll()
}

func TestRedirect4(t *testing.T) {
	cases := []struct {
		name, src, dst, nh string
		options            []byte
		want               string // gateway told
	}{
		{"gateway", "192.0.2.5", "10.9.9.9", "192.0.2.7", nil, "192.0.2.7"},
		{"on link", "192.0.2.5", "192.0.2.9", "dst", nil, "192.0.2.9"},
		{"sender not on link", "203.0.113.5", "10.9.9.9", "192.0.2.7", nil, ""},
		{"gateway not on link", "192.0.2.5", "10.9.9.9", "203.0.113.7", nil, ""},
		{"back to the sender", "192.0.2.5", "10.9.9.9", "192.0.2.5", nil, ""},
		{"gateway of IPv6", "192.0.2.5", "10.9.9.9", "fe80::9", nil, ""},
		{"source route", "192.0.2.5", "10.9.9.9", "192.0.2.7", []byte{1, 131, 3, 4}, ""},
		{"no such group", "192.0.2.5", "10.9.9.9", "", nil, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, 128, Stage(Limits{}))
			p := rig.UDP4(c.src, c.dst, c.options, 100)
			redirect(r, c.nh, p)
			l := r.Refill("icmp")
			if (len(l) == 1) != (c.want != "") {
				t.Fatalf("%d sent", len(l))
			}
			if c.want == "" {
				return
			}
			m := check4(t, l[0], p)
			gw := netip.AddrFrom4([4]byte(m[4:8]))
			if m[0] != 5 || m[1] != 1 || gw.String() != c.want || packet.IPv4(l[0]).Src() != [4]byte{192, 0, 2, 1} {
				t.Errorf("% x", l[0][:28])
			}
		})
	}
	t.Run("other interface", func(t *testing.T) {
		r := rig.New(t, 128, Stage(Limits{}))
		r.W.Tables.Adjs[1].Iface = 2
		redirect(r, "192.0.2.7", rig.UDP4("192.0.2.5", "10.9.9.9", nil, 8))
		if len(r.Refill("icmp")) != 0 {
			t.Error("sent")
		}
	})
	t.Run("several ways", func(t *testing.T) {
		r := rig.New(t, 128, Stage(Limits{}))
		r.W.Tables.Groups[0].Mask = 7
		redirect(r, "192.0.2.7", rig.UDP4("192.0.2.5", "10.9.9.9", nil, 8))
		if len(r.Refill("icmp")) != 0 {
			t.Error("sent")
		}
	})
	t.Run("rate", func(t *testing.T) {
		r := rig.New(t, 128, Stage(Limits{}))
		for range 20 {
			redirect(r, "192.0.2.7", rig.UDP4("192.0.2.5", "10.9.9.9", nil, 8))
		}
		if n := len(r.Refill("icmp")); n != HostBurst || r.Note(XLimited) != 20-HostBurst {
			t.Errorf("%d sent, %d limited", n, r.Note(XLimited))
		}
	})
}

func TestRedirect6(t *testing.T) {
	cases := []struct {
		name, src, dst, nh string
		size               int
		want               string // target told
	}{
		{"router", "2001:db8:1::5", "2001:db8:9::9", "fe80::7", 8, "fe80::7"},
		{"long", "2001:db8:1::5", "2001:db8:9::9", "fe80::7", 1401, "fe80::7"},
		{"on link", "2001:db8:1::5", "2001:db8:1::9", "dst", 15, "2001:db8:1::9"},
		{"router without a link-local address", "2001:db8:1::5", "2001:db8:9::9", "2001:db8:1::7", 8, ""},
		{"sender not on link", "2001:db8:8::5", "2001:db8:9::9", "fe80::7", 8, ""},
		{"to many", "2001:db8:1::5", "ff0e::9", "fe80::7", 8, ""},
		{"no such group", "2001:db8:1::5", "2001:db8:9::9", "", 8, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			r := rig.New(t, 128, Stage(Limits{}))
			p := rig.IP6(c.src, c.dst, 17, make([]byte, c.size))
			redirect(r, c.nh, p)
			l := r.Refill("icmp")
			if (len(l) == 1) != (c.want != "") {
				t.Fatalf("%d sent", len(l))
			}
			if c.want == "" {
				return
			}
			h := packet.IPv6(l[0])
			m := packet.ICMP(l[0][40:])
			if packet.Fold(packet.Sum(m, h.Pseudo(58, len(m)))) != 0xffff || len(l[0]) > 1280 || h.PayloadLen() != len(m) {
				t.Errorf("% x", l[0])
			}
			// The rewrite stage takes one from the hop limit: it must be 255 then.
			if h.HopLimit()-1 != 255 || netip.AddrFrom16(h.Src()).String() != "fe80::1" || netip.AddrFrom16(h.Dst()).String() != c.src {
				t.Errorf("header % x", l[0][:40])
			}
			if m[0] != 137 || m[1] != 0 || netip.AddrFrom16([16]byte(m[8:])).String() != c.want || netip.AddrFrom16([16]byte(m[24:])).String() != c.dst {
				t.Errorf("message % x", m[:40])
			}
			if o := m[40:]; !bytes.Equal(o[:8], []byte{2, 1, 2, 0, 0, 0, 9, 1}) {
				t.Errorf("target option % x", o[:8])
			}
			o := m[48:]
			if o[0] != 4 || int(o[1])*8 != len(o) || !bytes.Equal(o[8:], p[:len(o)-8]) || len(o)-8 < min(len(p)&^7, 1180) {
				t.Errorf("redirected header % x", o)
			}
		})
	}
}
