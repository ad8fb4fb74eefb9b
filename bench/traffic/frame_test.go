package traffic

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
)

// TestFrame: fields, lengths and checksums of a stream written down by hand, as gopacket reads them.
func TestFrame(t *testing.T) {
	head, _ := hex.DecodeString("020000000102" + "020000000101" + "81000064" + "0800" +
		"4500ffff000000004011ffff" + "0a000001" + "c6120002" +
		"ffff0035" + "ffffffff")
	s := Stream{
		Sizes: []uint16{68, 1522}, Template: append(head, make([]byte, 1518-len(head))...),
		Layout: Layout{L3: 18, L4: 38, Proto: 17, SumOff: 44, Stamp: 46},
		Lens:   []Length{{20, 18}, {42, 38}},
		Fields: []Field{
			{Off: 14, Width: 2, Mask: 0xfff, Min: 100, Step: 1, N: 4},
			{Off: 30, Width: 4, Min: 0x0a000001, Step: 1, N: 256},
			{Off: 38, Width: 2, Kind: List, List: []uint64{1111, 2222}, Every: 256},
			{Off: 19, Width: 1, Mask: 0xfc, Min: 10, N: 1},
			{Off: 22, Width: 2, Kind: Random, N: 0},
		},
	}
	for _, k := range []uint64{0, 1, 5, 255, 256, 600} {
		size := s.Size(k)
		b := s.Frame(k, size)
		if len(b) != size-4 {
			t.Fatalf("packet %d: %d bytes, want %d", k, len(b), size-4)
		}
		p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
		vlan := p.Layer(layers.LayerTypeDot1Q).(*layers.Dot1Q)
		ip := p.Layer(layers.LayerTypeIPv4).(*layers.IPv4)
		udp := p.Layer(layers.LayerTypeUDP).(*layers.UDP)
		if want := uint16(100 + k%4); vlan.VLANIdentifier != want {
			t.Errorf("packet %d: vlan %d, want %d", k, vlan.VLANIdentifier, want)
		}
		if want := byte(k); ip.SrcIP[3] != want+1 {
			t.Errorf("packet %d: from %v, want .%d", k, ip.SrcIP, want+1)
		}
		if want := layers.UDPPort([]int{1111, 2222}[k/256%2]); udp.SrcPort != want {
			t.Errorf("packet %d: port %d, want %d", k, udp.SrcPort, want)
		}
		if ip.TOS != 10<<2 || int(ip.Length) != len(b)-18 || int(udp.Length) != len(b)-38 {
			t.Errorf("packet %d: tos %#x, lengths %d, %d", k, ip.TOS, ip.Length, udp.Length)
		}
		sums(t, b)
	}
	if a, b := s.Value(4, 1), s.Value(4, 2); a == b || s.Value(4, 1) != a {
		t.Error("random fields neither repeat for a packet nor differ between packets")
	}
}

// sums fails the test when a checksum of a frame is not what gopacket computes.
func sums(t testing.TB, b []byte) {
	t.Helper()
	p := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
	if e := p.ErrorLayer(); e != nil {
		t.Fatalf("%x: %v", b, e.Error())
	}
	var all []gopacket.SerializableLayer
	var network gopacket.NetworkLayer
walk:
	for _, l := range p.Layers() {
		var last []byte
		switch l := l.(type) {
		case *layers.IPv4:
			network = l
		case *layers.IPv6:
			network = l
		case *layers.UDP:
			l.SetNetworkLayerForChecksum(network)
			last = l.Payload
		case *layers.TCP:
			l.SetNetworkLayerForChecksum(network)
			last = l.Payload
		case *layers.ICMPv4:
			last = l.Payload
		case *layers.ICMPv6:
			l.SetNetworkLayerForChecksum(network)
			last = l.Payload
		}
		s, ok := l.(gopacket.SerializableLayer)
		if !ok {
			t.Fatalf("%x: cannot write %v again", b, l.LayerType())
		}
		all = append(all, s)
		if last != nil { // not what gopacket takes the payload for, by its port
			all = append(all, gopacket.Payload(last))
			break walk
		}
	}
	out := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(out, gopacket.SerializeOptions{ComputeChecksums: true}, all...); err != nil {
		t.Fatalf("%x: %v", b, err)
	}
	if got := out.Bytes(); !bytes.HasPrefix(b, got) && !bytes.HasPrefix(got, b) {
		t.Errorf("frame\n%x\nas gopacket writes it\n%x", b, got)
	}
}
