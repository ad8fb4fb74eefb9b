package afpacket

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"golang.org/x/sys/unix"

	"millrace/packet"
)

func vnetHeader(flags, gso byte, mss, start, at int) vnet {
	v := make(vnet, vnetSize)
	v[0], v[1] = flags, gso
	binary.NativeEndian.PutUint16(v[4:], uint16(mss))
	binary.NativeEndian.PutUint16(v[6:], uint16(start))
	binary.NativeEndian.PutUint16(v[8:], uint16(at))
	return v
}

func serialize(t testing.TB, l ...gopacket.SerializableLayer) []byte {
	t.Helper()
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
		t.Fatal(err)
	}
	f := bytes.Clone(b.Bytes())
	// gopacket pads short frames as the wire does.
	if l3, typ, _, _, _ := packet.ParseEther(f); typ == packet.EtherIPv4 {
		f = f[:l3+packet.IPv4(f[l3:]).TotalLen()]
	}
	return f
}

// whole is a super-packet whose checksums are right.
func whole(t testing.TB, v6, tcp, vlan bool, payload int) []byte {
	eth := &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, 9}, DstMAC: testMAC[:], EthernetType: layers.EthernetTypeIPv4}
	l := []gopacket.SerializableLayer{eth}
	typ := &eth.EthernetType
	if vlan {
		q := &layers.Dot1Q{VLANIdentifier: 7, Type: layers.EthernetTypeIPv4}
		eth.EthernetType = layers.EthernetTypeDot1Q
		l, typ = append(l, q), &q.Type
	}
	proto := layers.IPProtocolUDP
	if tcp {
		proto = layers.IPProtocolTCP
	}
	var net gopacket.NetworkLayer
	if v6 {
		*typ = layers.EthernetTypeIPv6
		ip := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: proto, SrcIP: bytes.Repeat([]byte{0x20}, 16), DstIP: bytes.Repeat([]byte{0x21}, 16)}
		l, net = append(l, ip), ip
	} else {
		ip := &layers.IPv4{Version: 4, TTL: 64, Id: 0xfffe, Flags: layers.IPv4DontFragment, Protocol: proto, SrcIP: []byte{10, 0, 0, 1}, DstIP: []byte{10, 0, 0, 2}}
		l, net = append(l, ip), ip
	}
	if tcp {
		h := &layers.TCP{SrcPort: 1, DstPort: 2, Seq: 0xfffffff0, Ack: 5, ACK: true, PSH: true, FIN: true, CWR: true, Window: 9,
			Options: []layers.TCPOption{{OptionType: layers.TCPOptionKindTimestamps, OptionLength: 10, OptionData: make([]byte, 8)}}}
		h.SetNetworkLayerForChecksum(net)
		l = append(l, h)
	} else {
		h := &layers.UDP{SrcPort: 1, DstPort: 2}
		h.SetNetworkLayerForChecksum(net)
		l = append(l, h)
	}
	p := make(gopacket.Payload, payload)
	for i := range p {
		p[i] = byte(i*i>>5 + i)
	}
	return serialize(t, append(l, p)...)
}

func gsoType(v6, tcp bool) byte {
	switch {
	case !tcp:
		return unix.VIRTIO_NET_HDR_GSO_UDP_L4
	case v6:
		return unix.VIRTIO_NET_HDR_GSO_TCPV6
	}
	return unix.VIRTIO_NET_HDR_GSO_TCPV4
}

// Each segment must be what a sender would have sent without offload: built here by gopacket from its
// own fields, byte for byte.
func TestSegments(t *testing.T) {
	for i := range 8 {
		v6, tcp, vlan := i&1 != 0, i&2 != 0, i&4 != 0
		for _, size := range []int{1, 99, 1000, 1001, 3000, 60000} {
			t.Run(fmt.Sprintf("v6 %v tcp %v vlan %v %d bytes", v6, tcp, vlan, size), func(t *testing.T) {
				f := whole(t, v6, tcp, vlan, size)
				var s super
				const mss = 1000
				if !s.parse(f, vnetHeader(1, gsoType(v6, tcp)|unix.VIRTIO_NET_HDR_GSO_ECN, mss, 0, 0), tag{}) {
					t.Fatal("not parsed")
				}
				want := f[len(f)-size:]
				n := (size + mss - 1) / mss
				for k := range n {
					head, payload := s.next()
					got := append(bytes.Clone(head), payload...)
					off := k * mss
					if p := want[off:min(off+mss, size)]; !bytes.Equal(payload, p) {
						t.Fatalf("segment %d has other payload", k)
					}
					if w := segment(t, f, k, n, off, payload); !bytes.Equal(got, w) {
						t.Fatalf("segment %d of %d is\n%x, want\n%x", k, n, got, w)
					}
				}
				if len(s.payload) != 0 {
					t.Errorf("%d bytes too many", len(s.payload))
				}
			})
		}
	}
}

// segment is the k-th of n segments of f by gopacket.
func segment(t *testing.T, f []byte, k, n, off int, payload []byte) []byte {
	p := gopacket.NewPacket(f, layers.LayerTypeEthernet, gopacket.Default)
	var l []gopacket.SerializableLayer
	for _, x := range p.Layers() {
		switch h := x.(type) {
		case *layers.IPv4:
			h.Id += uint16(k)
			l = append(l, h)
		case *layers.TCP:
			h.Seq += uint32(off)
			h.CWR = h.CWR && k == 0
			h.PSH = h.PSH && k == n-1
			h.FIN = h.FIN && k == n-1
			h.SetNetworkLayerForChecksum(p.NetworkLayer())
			l = append(l, h)
		case *layers.UDP:
			h.SetNetworkLayerForChecksum(p.NetworkLayer())
			l = append(l, h)
		case gopacket.SerializableLayer:
			if x.LayerType() != gopacket.LayerTypePayload && x.LayerType() != layers.LayerTypeDNS {
				l = append(l, h)
			}
		}
	}
	return serialize(t, append(l, gopacket.Payload(payload))...)
}

// A checksum that was left to hardware becomes the one that gopacket computes.
func TestFinish(t *testing.T) {
	for i := range 8 {
		v6, tcp, vlan := i&1 != 0, i&2 != 0, i&4 != 0
		for _, size := range []int{0, 1, 2, 777} {
			want := whole(t, v6, tcp, vlan, size)
			l3 := 14
			if vlan {
				l3 = 18
			}
			l4, at := l3+20, 6
			if v6 {
				l4 = l3 + 40
			}
			if tcp {
				at = 16
			}
			f := bytes.Clone(want)
			var sum uint64
			if v6 {
				proto := uint8(packet.ProtoUDP)
				if tcp {
					proto = packet.ProtoTCP
				}
				sum = packet.IPv6(f[l3:]).Pseudo(proto, len(f)-l4)
			} else {
				sum = packet.IPv4(f[l3:]).Pseudo(len(f) - l4)
			}
			packet.PutSum(f[l4+at:], packet.Fold(sum))
			if !finish(f, vnetHeader(1, 0, 0, l4, at)) || !bytes.Equal(f, want) {
				t.Errorf("v6 %v tcp %v vlan %v %d bytes: other checksum", v6, tcp, vlan, size)
			}
		}
	}
	for _, v := range []vnet{vnetHeader(1, 0, 0, 60, 16), vnetHeader(1, 0, 0, 65535, 65535), vnetHeader(1, 0, 0, 0, 59)} {
		if finish(make([]byte, 60), v) {
			t.Errorf("%x was accepted", v)
		}
	}
}

// No packet and no header may do harm: segments stay within bounds and end.
func FuzzSegments(f *testing.F) {
	for i := range 8 {
		f.Add(whole(f, i&1 != 0, i&2 != 0, i&4 != 0, 200), gsoType(i&1 != 0, i&2 != 0), uint16(60), uint16(34), uint16(16))
	}
	f.Fuzz(func(t *testing.T, frame []byte, gso byte, mss, start, at uint16) {
		v := vnetHeader(1, gso, int(mss), int(start), int(at))
		finish(bytes.Clone(frame), v)
		var s super
		if !s.parse(frame, v, tag{}) {
			return
		}
		total, n := len(s.payload), 0
		for len(s.payload) > 0 {
			head, payload := s.next()
			if len(payload) == 0 || len(payload) > int(mss) || len(head) > len(s.head) {
				t.Fatalf("a segment of %d+%d bytes", len(head), len(payload))
			}
			n += len(payload)
		}
		if n != total {
			t.Fatalf("%d of %d bytes", n, total)
		}
	})
}
