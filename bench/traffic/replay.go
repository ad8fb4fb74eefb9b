package traffic

import (
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"millrace/packet"
	"millrace/pmd/pcap"
)

var replayKeys = []string{"name", "file", "rate", "loops", "start", "direction", "left", "macs", "stamp"}

// replay reads a capture that is sent again.
func (c *compiler) replay(n node, i int) {
	o := n.keys(replayKeys...)
	r := Replay{Name: fmt.Sprintf("replay%d", i), Loops: o.count("loops", 1, 0, 1<<40), Start: o.duration("start", 0)}
	if n, ok := o.vals["name"]; ok {
		r.Name, _ = n.text()
	}
	f, ok := o.vals["file"]
	if !ok {
		n.fail("file is missing: the name of a pcap or pcapng file")
		return
	}
	name, ok := f.text()
	if !ok {
		return
	}
	times := 1.0
	if n, ok := o.vals["rate"]; ok {
		s, _ := n.text()
		if x, isTimes := strings.CutSuffix(s, "x"); isTimes {
			v, err := strconv.ParseFloat(x, 64)
			if err != nil || !(v > 1e-6) || v > 1e6 {
				n.fail("%q is not a multiple of the recorded speed such as 2x or 0.5x", s)
				return
			}
			times = v
		} else if s != "recorded" {
			if r.Rate, ok = ParseRate(s); !ok {
				n.fail("%q is none of recorded, a multiple such as 2x, or a rate such as 10kpps or 1Gbps", s)
				return
			}
		}
	}
	dir := o.word("direction", "left", "left", "right", "both")
	var inside []netip.Prefix
	if n, ok := o.vals["left"]; ok {
		if dir != "both" {
			n.fail("the networks of the left side go with `direction: both`")
		}
		for _, it := range n.items() {
			s, _ := it.text()
			p, err := netip.ParsePrefix(s)
			if err != nil {
				it.fail("%q is not a prefix such as 192.0.2.0/24", s)
				return
			}
			inside = append(inside, p.Masked())
		}
	}
	macs, stamp := o.on("macs", true), o.on("stamp", false)
	if !filepath.IsAbs(name) && c.env.Dir != "" {
		name = filepath.Join(c.env.Dir, name)
	}
	frames, _, err := pcap.Read(name)
	if err != nil {
		f.fail("%s", err)
		return
	}
	if len(frames) == 0 {
		f.fail("%s has no Ethernet frames", name)
		return
	}
	var first [6]byte // the source of the first frame, for captures that do not say what is left
	copy(first[:], frames[0].Data[6:12])
	begin, last := frames[0].Time, time.Duration(0)
	for _, x := range frames {
		t := float64(x.Time.Sub(begin)) / times
		if t > math.MaxInt64/2 {
			f.fail("%s lasts too long for this speed", name)
			return
		}
		last = max(last, time.Duration(t)) // of captures of several queues, times may fall
		rec := Recorded{At: last, Data: x.Data, Layout: layout(x.Data)}
		switch {
		case dir == "right":
			rec.Side = Right
		case dir == "both" && !fromLeft(&rec, inside, first):
			rec.Side = Right
		}
		if macs {
			e := c.env.at(rec.Side)
			if rec.Data[0]&1 == 0 { // groups stay
				copy(rec.Data, e.Peer[:])
			}
			copy(rec.Data[6:], e.MAC[:])
		}
		if !stamp {
			rec.Stamp = 0
		}
		r.Frames = append(r.Frames, rec)
	}
	r.Round = last + last/time.Duration(max(1, len(frames)-1))
	if r.Round == 0 {
		r.Round = time.Millisecond
	}
	c.profile.Replays = append(c.profile.Replays, r)
}

func fromLeft(r *Recorded, inside []netip.Prefix, first [6]byte) bool {
	if inside == nil {
		return [6]byte(r.Data[6:12]) == first
	}
	if r.L3 == 0 {
		return true
	}
	var src netip.Addr
	if r.V6 {
		src = netip.AddrFrom16([16]byte(r.Data[r.L3+8:][:16]))
	} else {
		src = netip.AddrFrom4([4]byte(r.Data[r.L3+12:][:4]))
	}
	for _, p := range inside {
		if p.Contains(src) {
			return true
		}
	}
	return false
}

// layout finds the headers of a captured frame. Only what is whole and has room for it gets a stamp: UDP, TCP and ICMP
// in an IP packet that is no fragment and that the capture has all of; at the end of the payload, where it does
// least harm.
func layout(b []byte) (l Layout) {
	off, typ := 14, int(b[12])<<8|int(b[13])
	for (typ == 0x8100 || typ == 0x88a8) && len(b) >= off+4 {
		typ = int(b[off+2])<<8 | int(b[off+3])
		off += 4
	}
	var end, l4 int
	switch {
	case typ == 0x800 && len(b) >= off+20:
		h := packet.IPv4(b[off:])
		end, l4 = off+h.TotalLen(), off+h.HeaderLen()
		if h.Version() != 4 || h.HeaderLen() < 20 || end > len(b) || l4 > end {
			return l
		}
		l.L3, l.Proto = uint16(off), h.Proto()
		if h.IsFragment() {
			return l
		}
	case typ == 0x86dd && len(b) >= off+40:
		end, l4 = off+40+(int(b[off+4])<<8|int(b[off+5])), off+40
		if b[off]>>4 != 6 || end > len(b) {
			return l
		}
		l.L3, l.V6, l.Proto = uint16(off), true, b[off+6]
	default:
		return l
	}
	head, sum := 0, 0
	switch {
	case l.Proto == packet.ProtoUDP:
		head, sum = 8, 6
	case l.Proto == packet.ProtoTCP && l4+20 <= end:
		head, sum = int(b[l4+12]>>4)*4, 16
	case l.Proto == packet.ProtoICMP && !l.V6 || l.Proto == packet.ProtoICMPv6 && l.V6:
		head, sum = 8, 2
	}
	if head < 8 || l4+head > end {
		return l
	}
	l.L4, l.SumOff, l.Pad = uint16(l4), uint16(l4+sum), uint16(len(b)-end)
	if at := end - StampLen - (end-l4)%2; at >= l4+head { // at an even distance from the header, for its sum
		l.Stamp = uint16(at)
	}
	return l
}
