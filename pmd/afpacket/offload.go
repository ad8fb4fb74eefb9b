package afpacket

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"millrace/packet"
)

// vnet is a struct virtio_net_hdr as AF_PACKET writes it, in host byte order.
type vnet []byte

func (v vnet) needsSum() bool { return v[0]&unix.VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 }
func (v vnet) gso() byte      { return v[1] &^ unix.VIRTIO_NET_HDR_GSO_ECN }
func (v vnet) mss() int       { return int(binary.NativeEndian.Uint16(v[4:])) }
func (v vnet) sumStart() int  { return int(binary.NativeEndian.Uint16(v[6:])) }
func (v vnet) sumAt() int     { return int(binary.NativeEndian.Uint16(v[8:])) }

// finish computes the checksum that the sender left to hardware; false where the header
// makes no sense.
func finish(frame []byte, v vnet) bool {
	start, at := v.sumStart(), v.sumStart()+v.sumAt()
	if start > len(frame) || at+2 > len(frame) {
		return false
	}
	// The field holds the pseudo header's sum.
	sum := ^packet.Fold(packet.Sum(frame[start:], 0))
	if sum == 0 {
		sum = 0xffff
	}
	packet.PutSum(frame[at:], sum)
	return true
}

// super is a super-packet on its way to being cut: TCP or UDP, all headers in front
// of the payload.
type super struct {
	head    [256]byte // of the whole packet, up to the payload
	n       int       // bytes of head
	payload []byte    // rest to cut; borrowed from a ring slot or the scratch buffer
	mss     int
	l3, l4  int
	v6      bool
	dst     [16]byte // IPv6: the last destination
	tcp     bool
	id      uint16 // of the next IPv4 segment
	seq     uint32 // of the next TCP segment
	last    uint8  // flags for the last TCP segment
	first   bool
	tag     tag
}

// tag is a VLAN tag that the kernel took off.
type tag struct {
	on        bool
	tpid, tci uint16
}

// parse prepares frame to be cut; false where it is not what its vnet header says.
func (s *super) parse(frame []byte, v vnet, t tag) bool {
	*s = super{mss: v.mss(), first: true, tag: t}
	l3, typ, _, _, ok := packet.ParseEther(frame)
	if !ok || s.mss == 0 {
		return false
	}
	s.l3 = l3
	proto := uint8(packet.ProtoTCP)
	switch v.gso() {
	case unix.VIRTIO_NET_HDR_GSO_TCPV4, unix.VIRTIO_NET_HDR_GSO_TCPV6:
		s.tcp = true
	case unix.VIRTIO_NET_HDR_GSO_UDP_L4:
		proto = packet.ProtoUDP
	default:
		return false
	}
	b := frame[l3:]
	switch typ {
	case unix.ETH_P_IP:
		h := packet.IPv4(b)
		if !h.Valid() || h.Proto() != proto || h.IsFragment() || h.HeaderLen() > h.TotalLen() {
			return false
		}
		s.l4, s.id = l3+h.HeaderLen(), h.ID()
		if h.TotalLen() <= len(b) { // without the padding of short frames
			frame = frame[:l3+h.TotalLen()]
		}
	case unix.ETH_P_IPV6:
		h := packet.IPv6(b)
		if !h.Valid() {
			return false
		}
		s.v6 = true
		next, off := h.Next(), packet.IPv6Size
		s.dst = h.Dst()
		for next != proto { // extension headers that stay as they are
			if off+8 > len(b) {
				return false
			}
			end := off + 8 + int(b[off+1])*8
			switch next {
			case packet.ProtoHopByHop, packet.ProtoDstOpts:
			case packet.ProtoRouting:
				// The checksum covers the last destination: of segment routing (type 4) and
				// Mobile IPv6 (type 2) the first address of the list.
				if left := b[off+3]; left > 0 {
					if typ := b[off+2]; typ != 4 && typ != 2 || off+24 > len(b) {
						return false
					}
					s.dst = [16]byte(b[off+8 : off+24])
				}
			default:
				return false
			}
			next, off = b[off], end
		}
		s.l4 = l3 + off
	default:
		return false
	}
	s.n = s.l4 + packet.UDPSize
	if s.tcp {
		if len(frame) < s.l4+packet.TCPSize {
			return false
		}
		h := packet.TCP(frame[s.l4:])
		s.n, s.seq = s.l4+h.HeaderLen(), h.Seq()
		if h.HeaderLen() < packet.TCPSize {
			return false
		}
	}
	if s.n > len(s.head) || s.n >= len(frame) {
		return false
	}
	copy(s.head[:], frame[:s.n])
	s.payload = frame[s.n:]
	return true
}

// next is the next segment: its headers, complete with checksums, and its payload.
func (s *super) next() (head, payload []byte) {
	k := min(s.mss, len(s.payload))
	payload, s.payload = s.payload[:k], s.payload[k:]
	h, l4 := s.head[:s.n], s.head[s.l4:s.n]
	var sum uint64
	if s.v6 {
		ip := packet.IPv6(h[s.l3:])
		ip.SetPayloadLen(s.n - s.l3 - packet.IPv6Size + k)
		proto := uint8(packet.ProtoUDP)
		if s.tcp {
			proto = packet.ProtoTCP
		}
		sum = packet.Pseudo6(ip.Src(), s.dst, proto, len(l4)+k)
	} else {
		ip := packet.IPv4(h[s.l3:])
		ip.SetTotalLen(s.n - s.l3 + k)
		ip.SetID(s.id)
		ip.SetSum()
		s.id++
		sum = ip.Pseudo(len(l4) + k)
	}
	at := 6
	if s.tcp {
		at = 16
		t := packet.TCP(l4)
		t.SetSeq(s.seq)
		s.seq += uint32(k)
		s.flags(t)
	} else {
		packet.UDP(l4).SetLen(len(l4) + k)
	}
	l4[at], l4[at+1] = 0, 0
	c := ^packet.Fold(packet.Sum(payload, packet.Sum(l4, sum)))
	if c == 0 && !s.tcp {
		c = 0xffff
	}
	packet.PutSum(l4[at:], c)
	s.first = false
	return h, payload
}

// lastFlags of a TCP header go with the last segment, CWR with the first.
const lastFlags = packet.TCPFin | packet.TCPPsh

func (s *super) flags(t packet.TCP) {
	if s.first {
		s.last = t.Flags() & lastFlags
		t.SetFlags(t.Flags() &^ lastFlags)
	} else {
		t.SetFlags(t.Flags() &^ packet.TCPCwr)
	}
	if len(s.payload) == 0 {
		t.SetFlags(t.Flags() | s.last)
	}
}
