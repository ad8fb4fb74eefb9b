package ip

import (
	"bytes"
	"testing"

	"millrace/ip/internal/rig"
	"millrace/packet"
)

func TestParseOptions(t *testing.T) {
	cases := []struct {
		name string
		o    []byte
		bad  int // offset behind the fixed header, -1 for good
	}{
		{"end", []byte{0, 0xff, 0xff, 0xff}, -1},
		{"unknown", []byte{0x9e, 4, 1, 2}, -1},
		{"length 0", []byte{1, 0x9e, 0, 2}, 1},
		{"length 1", []byte{0x9e, 1, 0, 2}, 0},
		{"too long", []byte{1, 1, 0x9e, 3}, 2},
		{"no length", []byte{1, 1, 1, 0x9e}, 3},
		{"record", []byte{7, 7, 4, 0, 0, 0, 0, 0}, -1},
		{"record, full", []byte{7, 7, 8, 1, 1, 1, 1, 0}, -1},
		{"record, length 2", []byte{7, 2, 0, 0}, 1},
		{"record, pointer 3", []byte{7, 7, 3, 0, 0, 0, 0, 0}, 2},
		{"record, pointer astray", []byte{7, 7, 6, 0, 0, 0, 0, 0}, 2},
		{"record twice", []byte{7, 3, 4, 7, 3, 4, 0, 0}, 3},
		{"routes twice", []byte{131, 3, 4, 137, 3, 4, 0, 0}, 3},
		{"route, length 2", []byte{131, 2, 4, 0}, 1},
		{"route, pointer 3", []byte{131, 3, 3, 0}, 2},
		{"stamp", []byte{68, 8, 5, 0, 0, 0, 0, 0}, -1},
		{"stamp, length 3", []byte{68, 3, 5, 0}, 1},
		{"stamp, pointer 4", []byte{68, 8, 4, 0, 0, 0, 0, 0}, 2},
		{"stamp, no room", []byte{68, 8, 6, 0, 0, 0, 0, 0}, 2},
		{"stamp and address, no room", []byte{68, 8, 5, 1, 0, 0, 0, 0}, 2},
		{"stamp, kind", []byte{68, 8, 5, 2, 0, 0, 0, 0}, 3},
		{"stamp, full", []byte{68, 8, 9, 0xe0, 0, 0, 0, 0}, -1},
		{"stamp, overflow", []byte{68, 8, 9, 0xf0, 0, 0, 0, 0}, 3},
		{"alert, short", []byte{148, 2, 0, 0}, 1},
	}
	for _, c := range cases {
		h := rig.UDP4("203.0.113.5", "198.51.100.9", c.o, 8)
		_, bad := parseOptions(h[:h.HeaderLen()])
		want := 0
		if c.bad >= 0 {
			want = 20 + c.bad
		}
		if bad != want {
			t.Errorf("%s: bad byte %d, want %d", c.name, bad, want)
		}
	}
}

func TestFillOptions(t *testing.T) {
	own := []byte{198, 51, 100, 1} // of interface 2
	cases := []struct {
		name     string
		in, want []byte // * in want, as 0xee: any byte of a time
	}{
		{"record", []byte{7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}, []byte{7, 11, 8, own[0], own[1], own[2], own[3], 0, 0, 0, 0, 0}},
		{"record again", []byte{1, 7, 11, 8, 1, 2, 3, 4, 0, 0, 0, 0}, []byte{1, 7, 11, 12, 1, 2, 3, 4, own[0], own[1], own[2], own[3]}},
		{"record, full", []byte{7, 7, 8, 1, 2, 3, 4, 0}, []byte{7, 7, 8, 1, 2, 3, 4, 0}},
		{"stamp", []byte{68, 8, 5, 0, 0, 0, 0, 0}, []byte{68, 8, 9, 0, 0xee, 0xee, 0xee, 0xee}},
		{"stamp, full", []byte{68, 8, 9, 0x20, 0, 0, 0, 0}, []byte{68, 8, 9, 0x30, 0, 0, 0, 0}},
		{"stamp and address", []byte{68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0}, []byte{68, 12, 13, 1, own[0], own[1], own[2], own[3], 0xee, 0xee, 0xee, 0xee}},
		{"stamp of ours", []byte{68, 12, 5, 3, 192, 0, 2, 1, 0, 0, 0, 0}, []byte{68, 12, 13, 3, 192, 0, 2, 1, 0xee, 0xee, 0xee, 0xee}},
		{"stamp of others", []byte{68, 12, 5, 3, 192, 0, 2, 9, 0, 0, 0, 0}, []byte{68, 12, 5, 3, 192, 0, 2, 9, 0, 0, 0, 0}},
	}
	r := rig.New(t, 128)
	check, fill := Check4().New(r.W), Options4().New(r.W)
	for _, c := range cases {
		i := r.Add(rig.UDP4("203.0.113.5", "198.51.100.9", c.in, 8), 0)
		r.V.Adj[i] = 2
		check.Run(&r.V)
		fill.Run(&r.V)
		h := packet.IPv4(r.L3(i))
		got := bytes.Clone(h[20:h.HeaderLen()])
		ms := uint32(0)
		for k := range c.want {
			if c.want[k] == 0xee {
				ms = ms<<8 | uint32(got[k])
				got[k] = 0xee
			}
		}
		if !bytes.Equal(got, c.want) || !h.SumOK() || ms >= 24*3600*1000 {
			t.Errorf("%s: % x, want % x, checksum ok %v, %d ms", c.name, got, c.want, h.SumOK(), ms)
		}
		r.FreeAll()
	}
}

func TestFillLeavesWhatIsTooBig(t *testing.T) {
	r := rig.New(t, 128)
	r.W.Tables.Adjs[2].MTU = 100
	check, fill := Check4().New(r.W), Options4().New(r.W)
	h := change4(rig.UDP4("203.0.113.5", "198.51.100.9", []byte{7, 7, 4, 0, 0, 0, 0, 0}, 80), func(h packet.IPv4) { h.SetFlagsOff(packet.IPv4DF) })
	i := r.Add(h, 0)
	r.V.Adj[i] = 2
	check.Run(&r.V)
	fill.Run(&r.V)
	if !bytes.Equal(r.L3(i), h) {
		t.Error("a packet that will be quoted in an error was changed")
	}
	r.FreeAll()
}

func TestLaterOptions(t *testing.T) {
	in := []byte{1, 7, 7, 4, 0, 0, 0, 0, 148, 4, 0, 0, 68, 4, 5, 0, 0x9e, 3, 7, 0}
	h := rig.UDP4("203.0.113.5", "198.51.100.9", in, 0)
	var b [40]byte
	n := LaterOptions(h, b[:])
	if want := []byte{148, 4, 0, 0, 0x9e, 3, 7, 0}; !bytes.Equal(b[:n], want) {
		t.Errorf("% x, want % x", b[:n], want)
	}
}
