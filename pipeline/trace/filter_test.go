package trace

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"millrace/packet"
)

// frames is a little of everything that filters tell apart.
func frames(t *testing.T) (l [][]byte) {
	add := func(s ...gopacket.SerializableLayer) {
		b := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true}, s...); err != nil {
			t.Fatal(err)
		}
		l = append(l, bytes.Clone(b.Bytes()))
	}
	eth := func(et layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{SrcMAC: []byte{2, 0, 0, 0, 0, byte(1 + len(l)%3)}, DstMAC: []byte{2, 0, 0, 0, 0, 9}, EthernetType: et}
	}
	for i := range 40 {
		ip := &layers.IPv4{Version: 4, TTL: 64, SrcIP: []byte{10, 0, byte(i % 2), byte(i % 5)}, DstIP: []byte{10, 1, 0, byte(i % 3)}}
		ip6 := &layers.IPv6{Version: 6, HopLimit: 64, SrcIP: append([]byte{0x20, 1, 0x0d, 0xb8}, make([]byte, 12)...), DstIP: append([]byte{0x20, 1, 0x0d, 0xb8, 0, 1}, append(make([]byte, 9), byte(i%4))...)}
		udp := &layers.UDP{SrcPort: layers.UDPPort(1000 + i), DstPort: layers.UDPPort(50 + i%7)}
		tcp := &layers.TCP{SrcPort: layers.TCPPort(80 + i%3), DstPort: layers.TCPPort(2000 + i), SYN: true}
		body := gopacket.Payload(make([]byte, i*20))
		switch i % 8 {
		case 0:
			ip.Protocol = layers.IPProtocolUDP
			add(eth(layers.EthernetTypeIPv4), ip, udp, body)
		case 1:
			ip.Protocol = layers.IPProtocolTCP
			add(eth(layers.EthernetTypeIPv4), ip, tcp, body)
		case 2:
			ip.Protocol = layers.IPProtocolICMPv4
			add(eth(layers.EthernetTypeIPv4), ip, &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(8, 0)}, body)
		case 3:
			ip6.NextHeader = layers.IPProtocolUDP
			add(eth(layers.EthernetTypeIPv6), ip6, udp, body)
		case 4:
			ip6.NextHeader = layers.IPProtocolTCP
			add(eth(layers.EthernetTypeIPv6), ip6, tcp, body)
		case 5:
			ip6.NextHeader = layers.IPProtocolICMPv6
			add(eth(layers.EthernetTypeIPv6), ip6, &layers.ICMPv6{TypeCode: layers.CreateICMPv6TypeCode(128, 0)}, body)
		case 6:
			add(eth(layers.EthernetTypeARP), &layers.ARP{AddrType: 1, Protocol: layers.EthernetTypeIPv4, HwAddressSize: 6, ProtAddressSize: 4, Operation: 1,
				SourceHwAddress: make([]byte, 6), SourceProtAddress: []byte{10, 0, 0, 1}, DstHwAddress: make([]byte, 6), DstProtAddress: []byte{10, 0, 0, 2}})
		case 7: // a fragment that is not the first
			ip.Protocol, ip.FragOffset = layers.IPProtocolUDP, 10
			add(eth(layers.EthernetTypeIPv4), ip, body)
		}
	}
	return l
}

// TestFilterAgainstTcpdump: the words mean what they mean to tcpdump.
func TestFilterAgainstTcpdump(t *testing.T) {
	tcpdump, err := exec.LookPath("tcpdump")
	if err != nil {
		t.Skip("tcpdump is not installed")
	}
	all := frames(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "in.pcap")
	var buf bytes.Buffer
	w := pcapgo.NewWriter(&buf)
	if err := w.WriteFileHeader(1<<16, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for i, f := range all { // the time is the frame's number
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(int64(i), 0), CaptureLength: len(f), Length: len(f)}, f); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(file, buf.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	pool, err := packet.NewPool("filter", 256)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	c := pool.NewCache()
	defer c.Close()
	for _, expr := range []string{
		"", "ip", "ip6", "arp", "icmp", "icmp6", "tcp", "udp", "host 10.0.0.1", "src host 10.0.0.0", "dst host 10.1.0.2",
		"dst 10.1.0.1", "net 10.0.1.0/24", "src net 10.0.0.0/23", "dst net 10.1.0.0/30", "ip6 and net 2001:db8:1::/48", "host 2001:db8::",
		"port 53", "src port 80", "dst port 2001", "tcp port 80", "udp dst port 53", "portrange 50-52", "udp portrange 1000-1010",
		"not udp", "tcp or udp", "ip and not icmp", "(tcp or icmp) and host 10.1.0.1", "udp and (port 53 or port 54)", "not (ip or ip6)",
		"less 100", "greater 300", "ether host 02:00:00:00:00:01", "ether src 02:00:00:00:00:02", "ether proto 0x806",
		"ip proto 17", "tcp && host 10.1.0.1", "! arp", "udp || tcp",
	} {
		out, err := exec.Command(tcpdump, "-n", "-tt", "-r", file, expr).Output()
		if err != nil {
			t.Fatalf("tcpdump %q: %v", expr, err)
		}
		want := map[int]bool{}
		for line := range strings.Lines(string(out)) {
			var n int
			if _, err := fmt.Sscanf(line, "%d.", &n); err == nil {
				want[n] = true
			}
		}
		ours := expr
		if expr == "ip proto 17" {
			ours = "ip and proto 17"
		}
		f, err := NewFilter(ours)
		if err != nil {
			t.Errorf("%q: %v", expr, err)
			continue
		}
		for i, data := range all {
			m := c.Alloc1()
			copy(m.Append(len(data)), data)
			if got := f.Match(m, -1); got != want[i] {
				t.Errorf("%q: frame %d (%s): %v, tcpdump says %v", expr, i, Summary(m, -1), got, want[i])
			}
			c.Free1(m)
		}
	}
}

func TestFilterMistakes(t *testing.T) {
	for expr, want := range map[string]string{
		"hots 10.0.0.1":     "is not a condition",
		"host":              "an address is missing",
		"host example.org":  "names are not looked up",
		"port http":         `"http" is not a port`,
		"tcp or":            "a condition is missing",
		"(tcp":              "a ) is missing",
		"tcp udp":           "is left over",
		"ether host 1:2":    "is not a MAC address",
		"ether what":        "expected host, src, dst or proto",
		"portrange 1":       "is not a portrange",
		"less many":         "is not a length",
		"net 10.0.0.0/40":   "is not an address or prefix",
		"proto 300":         "is not a protocol number",
		"vlan 5000 and tcp": "left over",
	} {
		if _, err := NewFilter(expr); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), expr) {
			t.Errorf("%q: %v, want ... %s", expr, err, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, s := range []string{"tcp and (port 80 or not host 10.0.0.1)", "vlan 7 and ip6", "ether host 02:00:00:00:00:01", "! ! udp"} {
		f.Add(s, []byte("some frame that is long enough for headers ............"))
	}
	pool, err := packet.NewPool("fuzz", 256)
	if err != nil {
		f.Fatal(err)
	}
	c := pool.NewCache()
	f.Fuzz(func(t *testing.T, expr string, data []byte) {
		x, err := NewFilter(expr)
		if err != nil {
			return
		}
		m := c.Alloc1()
		defer c.Free1(m)
		copy(m.Append(min(len(data), 1500)), data)
		_ = x.Match(m, -1)
		_ = x.Match(m, 14)
		_ = Summary(m, -1)
	})
}
