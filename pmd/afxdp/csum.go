package afxdp

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"millrace/packet"
)

// finishChecksum completes the TCP or UDP checksum of a packet whose sender left it to a
// device that there is not: the field then holds the folded sum of the pseudo header.
//
// A packet with a right checksum is never damaged: were its field by chance that same
// sum, what is stored is again what was there.
func finishChecksum(m *packet.Mbuf) {
	b := m.Bytes()
	off := 12
	for range 2 {
		if len(b) < off+2 {
			return
		}
		if t := binary.BigEndian.Uint16(b[off:]); t != unix.ETH_P_8021Q && t != unix.ETH_P_8021AD {
			break
		}
		off += 4
	}
	if len(b) < off+2+20 {
		return
	}
	l3 := off + 2
	var l4, n int
	var proto uint8
	var pseudo uint64
	switch h := b[l3:]; binary.BigEndian.Uint16(b[off:]) {
	case unix.ETH_P_IP:
		hl := int(h[0]&15) * 4
		if h[0]>>4 != 4 || hl < 20 || binary.BigEndian.Uint16(h[6:])&0x3fff != 0 {
			return
		}
		proto, l4, n = h[9], l3+hl, int(binary.BigEndian.Uint16(h[2:]))-hl
		if n < 0 {
			return
		}
		pseudo = packet.Pseudo4([4]byte(h[12:16]), [4]byte(h[16:20]), proto, n)
	case unix.ETH_P_IPV6:
		if len(h) < 40 || h[0]>>4 != 6 {
			return
		}
		proto, l4 = h[6], l3+40
		end := l4 + int(binary.BigEndian.Uint16(h[4:]))
		for proto == unix.IPPROTO_HOPOPTS || proto == unix.IPPROTO_DSTOPTS {
			if len(b) < l4+2 {
				return
			}
			proto, l4 = b[l4], l4+8+8*int(b[l4+1])
		}
		if n = end - l4; n < 0 {
			return
		}
		pseudo = packet.Pseudo6([16]byte(h[8:24]), [16]byte(h[24:40]), proto, n)
	default:
		return
	}
	at := l4
	switch {
	case proto == unix.IPPROTO_TCP && n >= 20:
		at += 16
	case proto == unix.IPPROTO_UDP && n >= 8:
		at += 6
	default:
		return
	}
	if l4+n > int(m.PktLen) || len(b) < at+2 {
		return
	}
	if packet.GetSum(b[at:]) != packet.Fold(pseudo) {
		return
	}
	// The field itself stands for the pseudo header.
	sum := ^packet.Fold(packet.SumChain(m, l4, n, 0))
	if sum == 0 && proto == unix.IPPROTO_UDP {
		sum = 0xffff
	}
	packet.PutSum(b[at:], sum)
}
