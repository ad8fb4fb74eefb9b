package packet

import "encoding/binary"

// EtherTypes.
const (
	EtherIPv4  = 0x0800
	EtherARP   = 0x0806
	EtherVLAN  = 0x8100 // IEEE 802.1Q customer tag
	EtherIPv6  = 0x86dd
	EtherMPLS  = 0x8847
	EtherMPLSM = 0x8848
	EtherQinQ  = 0x88a8 // IEEE 802.1ad service tag
	EtherQinQ2 = 0x9100 // service tag of older switches
	EtherLLDP  = 0x88cc
)

// EtherSize is the length of an Ethernet header without tags.
const EtherSize = 14

// Ethernet is a view of a frame's header: at least EtherSize bytes.
type Ethernet []byte

func (e Ethernet) Dst() [6]byte      { return [6]byte(e[0:6]) }
func (e Ethernet) Src() [6]byte      { return [6]byte(e[6:12]) }
func (e Ethernet) Type() uint16      { return binary.BigEndian.Uint16(e[12:]) }
func (e Ethernet) SetDst(a [6]byte)  { copy(e[0:6], a[:]) }
func (e Ethernet) SetSrc(a [6]byte)  { copy(e[6:12], a[:]) }
func (e Ethernet) SetType(t uint16)  { binary.BigEndian.PutUint16(e[12:], t) }
func (e Ethernet) IsMulticast() bool { return e[0]&1 != 0 }
func isTag(t uint16) bool            { return t == EtherVLAN || t == EtherQinQ || t == EtherQinQ2 }
func tagID(tci uint16) uint16        { return tci & 0xfff }
func be16(b []byte) uint16           { return binary.BigEndian.Uint16(b) }
func be32(b []byte) uint32           { return binary.BigEndian.Uint32(b) }
func put16(b []byte, v uint16)       { binary.BigEndian.PutUint16(b, v) }
func put32(b []byte, v uint32)       { binary.BigEndian.PutUint32(b, v) }

// ParseEther finds the L3 header of a frame behind up to two VLAN tags: its offset,
// its EtherType and the tags' VLAN ids, outer first. A third tag is left as the
// EtherType. ok is false where the frame ends inside the header.
func ParseEther(b []byte) (l3off int, etherType uint16, tags [2]uint16, ntags int, ok bool) {
	if len(b) < EtherSize {
		return
	}
	l3off, etherType = EtherSize, be16(b[12:])
	for ntags < 2 && isTag(etherType) {
		if len(b) < l3off+4 {
			return
		}
		tags[ntags] = tagID(be16(b[l3off:]))
		etherType = be16(b[l3off+2:])
		ntags++
		l3off += 4
	}
	return l3off, etherType, tags, ntags, true
}

// ARPSize is the length of an ARP packet for IPv4 over Ethernet.
const ARPSize = 28

// ARP operations.
const (
	ARPRequest = 1
	ARPReply   = 2
)

// ARP is a view of an ARP packet for IPv4 over Ethernet (RFC 826): ARPSize bytes.
type ARP []byte

// Valid reports whether the packet is long enough and speaks of Ethernet and IPv4.
func (a ARP) Valid() bool {
	return len(a) >= ARPSize && be16(a) == 1 && be16(a[2:]) == EtherIPv4 && a[4] == 6 && a[5] == 4
}
func (a ARP) Op() uint16         { return be16(a[6:]) }
func (a ARP) SenderMAC() [6]byte { return [6]byte(a[8:14]) }
func (a ARP) SenderIP() [4]byte  { return [4]byte(a[14:18]) }
func (a ARP) TargetMAC() [6]byte { return [6]byte(a[18:24]) }
func (a ARP) TargetIP() [4]byte  { return [4]byte(a[24:28]) }

// Set writes the whole packet.
func (a ARP) Set(op uint16, smac [6]byte, sip [4]byte, tmac [6]byte, tip [4]byte) {
	put16(a, 1)
	put16(a[2:], EtherIPv4)
	a[4], a[5] = 6, 4
	put16(a[6:], op)
	copy(a[8:], smac[:])
	copy(a[14:], sip[:])
	copy(a[18:], tmac[:])
	copy(a[24:], tip[:])
}
