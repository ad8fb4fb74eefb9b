package pipeline

import (
	"math/bits"
	"unsafe"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// prefetchAhead is how many packets ahead of the loop their first lines are loaded.
const prefetchAhead = 32

var (
	xShort = graph.NewReason(graph.ReasonInfo{Stage: "classify", Name: "too-short",
		Doc: "The frame ends inside its Ethernet or IP header."})
	xLong = graph.NewReason(graph.ReasonInfo{Stage: "classify", Name: "too-long",
		Doc: "The frame is longer than an IP packet can be (65,535 bytes)."})
	xNotOurs = graph.NewReason(graph.ReasonInfo{Stage: "classify", Name: "not-our-mac",
		Doc: "The destination MAC address is another station's. The sender has a wrong neighbour entry, or the port hears a whole segment."})
	xNoVlan = graph.NewReason(graph.ReasonInfo{Stage: "classify", Name: "unknown-vlan",
		Doc: "The frame is tagged with a VLAN that no interface of this port has: add it under `vlans:` of the port, or with `ip link add link`."})
	xVersion = graph.NewReason(graph.ReasonInfo{Stage: "classify", Name: "wrong-version",
		Doc: "The EtherType and the version field of the IP header disagree."})
	xLinkMulticast = graph.NewReason(graph.ReasonInfo{Stage: "classify", Name: "link-multicast", Kind: graph.Host, To: "host",
		Doc: "A frame to a broadcast or multicast MAC address that does not leave its link: for the host."})
	xProtocol = graph.NewReason(graph.ReasonInfo{Stage: "classify", Name: "other-protocol", Kind: graph.Host, To: "host",
		Doc: "Neither IPv4 nor IPv6: ARP, LLDP and the like are the host's."})
)

// Classify finds the L3 header and puts each packet into its lane. A frame must be for the
// interface's own MAC address, or for a group that is forwarded; tags of 802.1Q and QinQ select a sub-interface.
var Classify = &graph.Stage{
	Name: "classify", Doc: "find the L3 header, the interface and the lane", Lane: graph.Any,
	Reasons: []graph.Reason{xShort, xLong, xNotOurs, xNoVlan, xVersion, xLinkMulticast, xProtocol},
	New:     func(w *graph.Worker) graph.Runner { return &classify{w} },
	Trace:   traceClassify,
}

type classify struct{ w *graph.Worker }

func (s *classify) Run(v *graph.Vector) {
	w, n := s.w, v.N
	mac := w.Tables.Ifaces[v.From&(graph.MaxIfaces-1)].MAC
	idx := v.Idx[:n]
	packet.Prefetch(idx[:min(prefetchAhead, n)])
	bytes, c := uint64(0), 0
	if whole := n &^ 15; vectors && whole != 0 {
		packet.Prefetch(idx[max(whole, min(prefetchAhead, n)):])
		v.N4, v.N6, v.NOdd, bytes = demux16(w.Base, mac, &v.Idx[0], &v.L3[0], &v.Len[0], &v.Lane4[0], &v.Lane6[0], &v.Odd[0], whole, prefetchAhead)
		c = whole
	}
	for c < n {
		e := min(c+prefetchAhead, n)
		if e < n {
			packet.Prefetch(idx[e:min(e+prefetchAhead, n)])
		}
		bytes += demux(w.Base, mac, v, c, e)
		c = e
	}
	rx := &w.C.Rx[v.From&(graph.MaxIfaces-1)]
	rx.Packets += uint64(n)
	rx.Bytes += bytes
	for j := 0; j < v.NOdd; j++ {
		s.odd(v, v.Odd[uint8(j)])
	}
	v.NOdd = 0
}

// demux classifies positions c to e-1: plain IPv4 and IPv6 frames to our address go
// into their lanes, everything else aside. It returns the frames' bytes.
func demux(base unsafe.Pointer, mac uint64, v *graph.Vector, c, e int) (bytes uint64) {
	n4, n6, x := v.N4, v.N6, v.NOdd
	for ; c < e; c++ {
		i := uint8(c)
		m := (*packet.Mbuf)(unsafe.Add(base, uintptr(v.Idx[i])<<6))
		off := m.BufAddr + uintptr(m.DataOff) - uintptr(base)
		d := unsafe.Add(base, off)
		et := *(*uint16)(unsafe.Add(d, 12))
		v.L3[i] = off + 14
		v.Len[i] = uint16(m.PktLen) - 14
		v.Lane4[uint8(n4)] = i
		v.Lane6[uint8(n6)] = i
		bytes += uint64(m.PktLen)
		is4 := b2i(et == 0x0008)
		is6 := b2i(et == 0xdd86)
		if *(*uint64)(d)<<16 != mac || int(m.DataLen) < 34+20*is6 || m.PktLen > 0xffff || is4|is6 == 0 {
			v.Odd[uint8(x)] = i
			x++
			continue
		}
		n4 += is4
		n6 += is6
	}
	v.N4, v.N6, v.NOdd = n4, n6, x
	return bytes
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// odd classifies what is not a plain IP frame for us: tagged, short, split early, or for others.
func (s *classify) odd(v *graph.Vector, i uint8) {
	m := v.Mbuf(i)
	var tmp [22]byte
	h := m.View(0, 14, tmp[:])
	if h == nil {
		v.Exit(i, xShort)
		return
	}
	et := uint16(h[12])<<8 | uint16(h[13])
	l2 := 14
	var tag [2]uint16
	for k := 0; k < 2 && (et == 0x8100 || et == 0x88a8); k++ {
		if h = m.View(0, l2+4, tmp[:]); h == nil {
			v.Exit(i, xShort)
			return
		}
		tag[k] = uint16(h[l2])<<8&0xf00 | uint16(h[l2+1])
		et = uint16(h[l2+2])<<8 | uint16(h[l2+3])
		l2 += 4
	}
	if tag[0] == 0 && l2 == 18 { // priority tag: the port itself
		tag[0] = tag[1]
	}
	iface := v.In[i]
	if tag[0] != 0 {
		t := s.w.Tables
		sub, ok := (*t.Vlans.Load())[VlanKey(t.Ifaces[iface].Port, tag[0], tag[1])]
		if !ok {
			v.Exit(i, xNoVlan)
			return
		}
		iface = sub
		v.In[i], v.From = sub, 0
		s.w.C.Rx[sub].Packets++
		s.w.C.Rx[sub].Bytes += uint64(m.PktLen)
	}
	if load64(h)<<16 != s.w.Tables.Ifaces[iface].MAC && !transitGroup(m, l2, h[0], et) {
		if h[0]&1 != 0 {
			v.SetL3(i, l2)
			v.Exit(i, xLinkMulticast)
		} else {
			v.Exit(i, xNotOurs)
		}
		return
	}
	need := 20
	switch et {
	case 0x0800:
	case 0x86dd:
		need = 40
	default:
		v.SetL3(i, l2)
		v.Exit(i, xProtocol)
		return
	}
	if int(m.PktLen) < l2+need {
		v.Exit(i, xShort)
		return
	}
	if int(m.PktLen)-l2 > 0xffff {
		v.Exit(i, xLong)
		return
	}
	if int(m.DataLen) < l2+need && !pullUp(m, l2+need) {
		v.Exit(i, xShort)
		return
	}
	v.Moved = v.Moved || l2 != 14
	v.SetL3(i, l2)
	if b := *(*uint8)(v.Header(i)) >> 4; (b == 4) != (et == 0x0800) || !v.Join(i) {
		v.Exit(i, xVersion)
	}
}

// transitGroup reports whether a frame to MAC address mac.. is for a group whose packets may be forwarded: an IP packet with
// hops left, from a source and to a group that mean something beyond the link. Others are the host's, which has protocols
// of its own there (routing, IGMP, MLD, neighbour discovery).
func transitGroup(m *packet.Mbuf, l2 int, mac uint8, et uint16) bool {
	var tmp [packet.IPv6Size]byte
	if mac != 0x01 && mac != 0x33 {
		return false
	}
	switch et {
	case 0x0800:
		h := packet.IPv4(m.View(l2, packet.IPv4Size, tmp[:]))
		return h != nil && h[16]>>4 == 14 && (h[16] != 224 || h[17] != 0 || h[18] != 0) &&
			h.TTL() > 1 && h.Proto() != packet.ProtoIGMP && h[12] != 0 && (h[12] != 169 || h[13] != 254)
	case 0x86dd:
		h := packet.IPv6(m.View(l2, packet.IPv6Size, tmp[:]))
		return h != nil && h[24] == 0xff && h[25]&15 > 2 && h.HopLimit() > 1 && (h[8] != 0xfe || h[9]&0xc0 != 0x80) && h[8]|h[9] != 0
	}
	return false
}

// pullUp moves the first bytes of later segments into the first one, until it holds
// n: headers only, the payload stays where it is.
func pullUp(m *packet.Mbuf, n int) bool {
	if m.Shared() || n-int(m.DataLen) > m.TailSpace() {
		return false
	}
	for s := m.NextSeg(); s != nil && int(m.DataLen) < n; s = s.NextSeg() {
		k := min(n-int(m.DataLen), int(s.DataLen))
		dst := unsafe.Slice((*byte)(unsafe.Add(m.Data(), int(m.DataLen))), k)
		copy(dst, s.Bytes())
		m.DataLen += uint16(k)
		s.DataOff += uint16(k)
		s.DataLen -= uint16(k)
	}
	return int(m.DataLen) >= n
}

// VlanKey is the key of Tables.Vlans.
func VlanKey(port, outer, inner uint16) uint64 {
	return uint64(port)<<24 | uint64(outer)<<12 | uint64(inner)
}

func load64(b []byte) uint64 { return *(*uint64)(unsafe.Pointer(unsafe.SliceData(b[:8]))) }

// MACWord is the form of an address in graph.Iface.MAC.
func MACWord(m [6]byte) uint64 {
	return bits.ReverseBytes64(uint64(m[0])<<40|uint64(m[1])<<32|uint64(m[2])<<24|uint64(m[3])<<16|uint64(m[4])<<8|uint64(m[5])) >> 16 << 16
}
