package afpacket

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"unsafe" // an address compared as words, within a slice that is long enough

	"golang.org/x/sys/unix"

	"millrace/packet"
	"millrace/pmd"
)

// filter says which packets are the kernel's: the same in Rx as in the tcx program. It
// is read by queues and replaced, never changed.
type filter struct {
	whole bool   // nothing is the kernel's
	mac0  uint32 // the port's address as two loads of memory
	mac4  uint16
	mask  uint32
	v4    []uint32    // open addressing, 0 is a free place
	v6    [][2]uint64 // likewise
	types []uint16    // EtherTypes for Millrace beside IP
}

const golden = 0x9e3779b97f4a7c15

func hash4(a uint32) uint32    { return uint32(uint64(a) * golden >> 32) }
func hash6(a, b uint64) uint32 { return uint32((a ^ b*golden) * golden >> 32) }

func newFilter(mac pmd.MAC, local []netip.Addr, types []uint16) *filter {
	n := 8
	for n < 2*len(local) {
		n *= 2
	}
	f := &filter{
		mac0: binary.NativeEndian.Uint32(mac[:]), mac4: binary.NativeEndian.Uint16(mac[4:]),
		mask: uint32(n - 1), v4: make([]uint32, n), v6: make([][2]uint64, n), types: types,
	}
	for _, a := range local {
		if a = a.Unmap(); a.Is4() {
			b := a.As4()
			x := binary.NativeEndian.Uint32(b[:])
			h := hash4(x) & f.mask
			for ; f.v4[h] != 0 && f.v4[h] != x; h = (h + 1) & f.mask {
			}
			f.v4[h] = x
			continue
		}
		b := a.As16()
		x := [2]uint64{binary.NativeEndian.Uint64(b[:]), binary.NativeEndian.Uint64(b[8:])}
		h := hash6(x[0], x[1]) & f.mask
		for ; f.v6[h] != [2]uint64{} && f.v6[h] != x; h = (h + 1) & f.mask {
		}
		f.v6[h] = x
	}
	return f
}

func (f *filter) has4(x uint32) bool {
	for h := hash4(x) & f.mask; f.v4[h] != 0; h = (h + 1) & f.mask {
		if f.v4[h] == x {
			return true
		}
	}
	return false
}

func (f *filter) has6(a, b uint64) bool {
	for h := hash6(a, b) & f.mask; f.v6[h] != [2]uint64{}; h = (h + 1) & f.mask {
		if f.v6[h] == [2]uint64{a, b} {
			return true
		}
	}
	return false
}

// mine reports whether a frame is addressed to the port's MAC.
func (f *filter) mine(b []byte) bool {
	return *(*uint32)(unsafe.Pointer(&b[0])) == f.mac0 && *(*uint16)(unsafe.Pointer(&b[4])) == f.mac4
}

// host reports whether a frame is the kernel's. b is the frame without the tag that the
// kernel took off.
func (f *filter) host(b []byte) bool {
	if f.whole {
		return false
	}
	if len(b) < 14 || !f.mine(b) {
		return true
	}
	t := binary.BigEndian.Uint16(b[12:])
	l3 := b[14:]
	for range 2 {
		if t != unix.ETH_P_8021Q && t != unix.ETH_P_8021AD {
			break
		}
		if len(l3) < 4 {
			return true
		}
		t = binary.BigEndian.Uint16(l3[2:])
		l3 = l3[4:]
	}
	switch t {
	case unix.ETH_P_IP:
		return f.host4(l3)
	case unix.ETH_P_IPV6:
		return f.host6(l3)
	}
	return !slices.Contains(f.types, t)
}

func (f *filter) host4(b []byte) bool {
	if len(b) < packet.IPv4Size {
		return true
	}
	dst := binary.NativeEndian.Uint32(b[16:])
	if b[16]&0xf0 == 0xe0 || dst == 1<<32-1 {
		return true
	}
	// A DHCP offer comes to an address that the box does not have yet; the
	// client's hardware address in it tells it from one in transit.
	if b[9] == packet.ProtoUDP && b[0] == 0x45 && len(b) >= 62 &&
		binary.BigEndian.Uint16(b[22:]) == 68 && f.mine(b[56:]) {
		return true
	}
	return f.has4(dst)
}

func (f *filter) host6(b []byte) bool {
	if len(b) < packet.IPv6Size || b[24] == 0xff || b[24] == 0xfe && b[25]&0xc0 == 0x80 {
		return true
	}
	if b[6] == packet.ProtoICMPv6 && len(b) > packet.IPv6Size && b[40] >= 133 && b[40] <= 137 {
		return true
	}
	return f.has6(binary.NativeEndian.Uint64(b[24:]), binary.NativeEndian.Uint64(b[32:]))
}
