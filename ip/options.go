package ip

import (
	"encoding/binary"
	"net/netip"
	"strconv"
	"unsafe" // whole IPv4 headers, which check4 has put into one piece

	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// IPv4 options (RFC 791 3.1, RFC 2113).
const (
	optEnd         = 0
	optNop         = 1
	optRecord      = 7
	optStamp       = 68
	optLoose       = 131
	optStrict      = 137
	optRouterAlert = 148

	optCopied = 0x80 // into every fragment

	stampOnly    = 0 // flags of the timestamp option
	stampAddr    = 1
	stampPrespec = 3
)

// options4 says which options a header has; offsets are from its first byte, 0 for none.
type options4 struct {
	record, stamp int
	loose, strict bool
}

// parseOptions reads the options of a whole header and judges them as Linux does.
// bad is the offset of the first wrong byte, or 0.
func parseOptions(h packet.IPv4) (o options4, bad int) {
	routed := false
	for i := packet.IPv4Size; i < len(h); {
		if h[i] == optEnd {
			break
		}
		if h[i] == optNop {
			i++
			continue
		}
		if i+2 > len(h) || h[i+1] < 2 || i+int(h[i+1]) > len(h) {
			return o, i
		}
		b := h[i : i+int(h[i+1])]
		switch b[0] {
		case optLoose, optStrict:
			switch {
			case routed:
				return o, i
			case len(b) < 3:
				return o, i + 1
			case b[2] < 4:
				return o, i + 2
			}
			routed = true
			o.loose, o.strict = b[0] == optLoose, b[0] == optStrict
		case optRecord:
			switch {
			case o.record != 0:
				return o, i
			case len(b) < 3:
				return o, i + 1
			case b[2] < 4, int(b[2]) <= len(b) && int(b[2])+3 > len(b):
				return o, i + 2
			}
			o.record = i
		case optStamp:
			switch {
			case o.stamp != 0:
				return o, i
			case len(b) < 4:
				return o, i + 1
			case b[2] < 5:
				return o, i + 2
			}
			need := stampSize(b[3])
			switch {
			case need == 0:
				return o, i + 3
			case int(b[2]) > len(b): // full: count
				if b[3]>>4 == 15 {
					return o, i + 3
				}
			case int(b[2])-1+need > len(b):
				return o, i + 2
			}
			o.stamp = i
		case optRouterAlert:
			if len(b) < 4 {
				return o, i + 1
			}
		}
		i += len(b)
	}
	return o, 0
}

// stampSize is the size of one entry of a timestamp option, 0 for an unknown kind.
func stampSize(flags byte) int {
	switch flags & 15 {
	case stampOnly:
		return 4
	case stampAddr, stampPrespec:
		return 8
	}
	return 0
}

// problem4 is the pointer of the error about a packet that left for XOptions4.
func problem4(v *graph.Vector, i uint8) uint32 {
	h := packet.IPv4(unsafe.Slice((*byte)(v.Header(i)), packet.IPv4Size))
	_, bad := parseOptions(unsafe.Slice((*byte)(v.Header(i)), h.HeaderLen()))
	return uint32(bad)
}

// Options4 is the stage behind the next hop that fills in the record route and timestamp options of
// packets on their way out, with the address of the interface that they leave by (RFC 791
// 3.1). Vectors without such packets pass it by one test.
func Options4() *graph.Stage {
	return &graph.Stage{
		Name: "options4", Doc: "record route and timestamp options", Lane: graph.Options,
		New: func(w *graph.Worker) graph.Runner { return &fill4{w} },
		Trace: func(t *graph.Look) string {
			n := int(*(*byte)(t.Vector.Header(t.Pos))&15)*4 - packet.IPv4Size
			if n == 0 {
				return ""
			}
			return strconv.Itoa(n) + " bytes of options"
		},
	}
}

type fill4 struct{ w *graph.Worker }

func (s *fill4) Run(v *graph.Vector) {
	for j := range v.N4 {
		i := v.Lane4[uint8(j)]
		if *(*byte)(v.Header(i)) != 0x45 {
			s.fill(v, i)
		}
	}
}

func (s *fill4) fill(v *graph.Vector, i uint8) {
	h := packet.IPv4(unsafe.Slice((*byte)(v.Header(i)), packet.IPv4Size))
	h = unsafe.Slice((*byte)(v.Header(i)), h.HeaderLen())
	o, bad := parseOptions(h)
	if bad != 0 || o.record == 0 && o.stamp == 0 {
		return
	}
	adj := &s.w.Tables.Adjs[v.Adj[i]]
	if v.Len[i] > adj.MTU && h.FlagsOff()&packet.IPv4DF != 0 {
		return // leaves for an error, which quotes it as it came
	}
	addrs := s.w.Tables.Addrs.Load()
	own := addrs.Source4(adj.Iface)
	if o.record != 0 && own.Is4() {
		if b := h[o.record:]; b[2] < b[1] {
			a := own.As4()
			copy(b[b[2]-1:], a[:])
			b[2] += 4
		}
	}
	if o.stamp != 0 {
		stamp(h[o.stamp:], own, addrs)
	}
	h.SetSum()
}

// stamp fills in one entry of a timestamp option, or counts that there was no room.
func stamp(b []byte, own netip.Addr, addrs *graph.Addresses) {
	if b[2] > b[1] {
		b[3] += 0x10
		return
	}
	at := b[b[2]-1:]
	switch b[3] & 15 {
	case stampAddr:
		if !own.Is4() {
			return
		}
		a := own.As4()
		copy(at, a[:])
		at = at[4:]
	case stampPrespec:
		if _, ours := addrs.Is[netip.AddrFrom4([4]byte(at))]; !ours {
			return
		}
		at = at[4:]
	}
	binary.BigEndian.PutUint32(at, clock.MillisOfDay())
	b[2] += uint8(stampSize(b[3]))
}

// LaterOptions writes those options of header h into dst that belong into every fragment
// (RFC 791 3.1), padded to 4 bytes, and returns their length. dst has room for 40 bytes.
func LaterOptions(h packet.IPv4, dst []byte) int {
	n := 0
	for i := packet.IPv4Size; i < len(h) && h[i] != optEnd; {
		if h[i] == optNop {
			i++
			continue
		}
		if i+2 > len(h) || h[i+1] < 2 || i+int(h[i+1]) > len(h) {
			break
		}
		if h[i]&optCopied != 0 {
			n += copy(dst[n:], h[i:i+int(h[i+1])])
		}
		i += int(h[i+1])
	}
	for ; n&3 != 0; n++ {
		dst[n] = optEnd
	}
	return n
}
