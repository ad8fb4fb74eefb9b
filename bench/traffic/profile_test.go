package traffic

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

func TestErrors(t *testing.T) {
	for _, c := range []struct{ yaml, want string }{
		{"streams:\n  - {siez: 64}", `p.yaml:2:6: streams[0].siez: unknown key; did you mean "size"?`},
		{"streams:\n  - size: 84\n    ipv6:\n    tcp: {flags: syn}",
			"p.yaml:2:11: streams[0].size: 84 bytes are too small: Ethernet, IPv6 and TCP take 74, the stamp 18, the FCS 4; write 96 at least, or `stamp: off` to send without sequence numbers and latency"},
		{"streams:\n  - {size: 64, ipv6: , stamp: off, payload: 0123456789}", "p.yaml:2:12: streams[0].size: 64 bytes are too small: Ethernet, IPv6 and UDP take 62, the payload 10, the FCS 4; write 76 at least"},
		{"rate: 1000", "p.yaml:1:7: rate: 1000 what? write 1000pps for frames or 1000bit for bits a second"},
		{"streams:\n  - ipv4: {src: 10.0.0.9-10.0.0.1}", "p.yaml:2:17: streams[0].ipv4.src: 10.0.0.9-10.0.0.1: the range ends before it begins; write the lower value first"},
		{"streams:\n  - ipv4: {src: 10.0.0.1/8}", "p.yaml:2:17: streams[0].ipv4.src: 10.0.0.1/8 has host bits; write 10.0.0.0/8"},
		{"streams:\n  - udp:\n    tcp:", "p.yaml:3:5: streams[0].tcp: tcp beside udp: a frame has one of udp, tcp, icmp"},
		{"streams:\n  - udp: {dst: {range: 1-9, every: udp.dst}}", "p.yaml:2:16: streams[0].udp.dst: every: fields wait for each other in a circle"},
		{"streams:\n  - ipv4: {fragment-offset: 1480}\n    udp:", "p.yaml:3:5: streams[0].udp: a fragment behind the first has no udp header; leave it out, its protocol goes by `proto`"},
		{"streams:\n  - flows: 64513\n    udp: {dst: 53}", "p.yaml:2:12: streams[0].flows: 64513 flows cannot be made of udp.src; 64512 at most"},
		{"streams:\n  - size: aaz", "p.yaml:2:11: streams[0].size: what size is z? write {genome: aaz, z: 9018}"},
		{"conversations:\n  - client: {port: random}", "p.yaml:2:20: conversations[0].client.port: random ends of a conversation would differ from packet to packet; write a range, a list or zipf"},
		{"streams: []", "p.yaml:1:1: nothing is sent: name a stream, a conversation or a replay"},
	} {
		_, err := Parse("p.yaml", []byte(c.yaml), Env{})
		if err == nil || err.Error() != c.want {
			t.Errorf("%s\ngives %v\nwant  %s", c.yaml, err, c.want)
		}
	}
}

func parsed(t testing.TB, yaml string) *Profile {
	t.Helper()
	p, err := Parse("p.yaml", []byte(yaml), Env{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefault(t *testing.T) {
	for _, y := range []string{"", "streams:\n  - {}", "streams:\n  - udp:"} {
		p := parsed(t, y)
		if len(p.Streams) != 1 {
			t.Fatalf("%q: %d streams", y, len(p.Streams))
		}
		s := &p.Streams[0]
		if s.Size(0) != 64 || s.Proto != 17 || s.Rate != (Rate{100, Percent}) || s.Stamp != 42 {
			t.Errorf("%q: size %d, protocol %d, rate %v, stamp at %d", y, s.Size(0), s.Proto, s.Rate, s.Stamp)
		}
		check(t, p, 3)
	}
}

// TestMirror: the other direction has ports, addresses and MACs swapped, and the same flows.
func TestMirror(t *testing.T) {
	p := parsed(t, "streams:\n  - direction: both\n    flows: 12\n    vlan: [7, 9]\n    ipv4: {src: 10.0.0.1-10.0.0.5, dst: random 10.1.0.0/16}\n    udp: {dst: 53}")
	l, r := &p.Streams[0], &p.Streams[1]
	if l.Side != Left || r.Side != Right {
		t.Fatal("sides")
	}
	for k := range uint64(100) {
		a, b := l.Frame(k, 72), r.Frame(k, 72)
		if string(a[34:38]) != string(b[38:42]) || string(a[42:44]) != string(b[44:46]) || string(a[44:46]) != string(b[42:44]) {
			t.Fatalf("packet %d:\n%x\n%x", k, a, b)
		}
	}
	check(t, p, 30)
}

// TestFlows counts the flows that streams have.
func TestFlows(t *testing.T) {
	for yaml, want := range map[string]int{
		"streams:\n  - flows: 1000":                     1000,
		"streams:\n  - flows: 100k":                     100000,
		"streams:\n  - flows: 300\n    ipv6: ":          300,
		"streams:\n  - flows: 300\n    icmp:":           300,
		"streams:\n  - {flows: 70, ipv4: {proto: gre}}": 70,
		"streams:\n  - ipv4: {src: 10.0.0.1-10.0.0.7, dst: {range: 10.1.0.0/29, every: ipv4.src}}":                                          56,
		"streams:\n  - udp: {src: {range: 1-3, every: udp.dst}, dst: {range: 1-5, every: ipv4.src}}\n    ipv4: {src: [10.0.0.1, 10.0.0.2]}": 30,
	} {
		p := parsed(t, yaml)
		s := &p.Streams[0]
		seen := map[string]bool{}
		for k := range uint64(want * 2) {
			b := s.Frame(k, s.Size(k))
			for i := 24; i < 26 && !s.V6; i++ { // IPv4 checksum
				b[i] = 0
			}
			if s.SumOff != 0 {
				b[s.SumOff], b[s.SumOff+1] = 0, 0
			}
			if s.Proto == 1 {
				b[s.L4+6], b[s.L4+7] = 0, 0
			}
			seen[string(b)] = true
		}
		if len(seen) != want {
			t.Errorf("%s\nhas %d flows, want %d", yaml, len(seen), want)
		}
	}
}

func TestSizes(t *testing.T) {
	for size, want := range map[string][]uint16{
		"imix":                          {64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 594, 64},
		"aafz":                          nil,
		"aafg":                          {64, 64, 1280, 1518},
		"{genome: aAz, A: 70, z: 9018}": {64, 70, 9018},
		"[64, 128]":                     {64, 128},
		"64-67":                         {64, 65, 66, 67},
		"{100: 1, 200: 3}":              {200, 200, 100, 200},
	} {
		p, err := Parse("p.yaml", []byte("size: "+size), Env{})
		if want == nil {
			if err == nil {
				t.Errorf("%s: no error", size)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		got := p.Streams[0].Sizes
		a, b := map[uint16]int{}, map[uint16]int{}
		for i := range max(len(got), len(want)) {
			if len(got) != len(want) {
				break
			}
			a[got[i]]++
			b[want[i]]++
		}
		for x := range b {
			if a[x] != b[x] {
				t.Errorf("%s: %v, want %v", size, got, want)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%s: %v, want %v", size, got, want)
		}
		q, err := p.At(512)
		if err != nil || q.Streams[0].Size(5) != 512 || len(q.Streams[0].Frame(0, 512)) != 508 {
			t.Errorf("%s at 512: %v", size, err)
		}
	}
}

// TestRates: weights are of frames, whatever the rate is in.
func TestRates(t *testing.T) {
	for _, rate := range []string{"10Mbit", "30%", "9kpps"} {
		p := parsed(t, "rate: "+rate+"\nstreams:\n  - {weight: 2, size: 64}\n  - {size: 1518}\n  - {direction: right}\n  - {rate: 5pps}")
		a, b, c := p.Streams[0].FPS(1e9), p.Streams[1].FPS(1e9), p.Streams[2].FPS(1e9)
		if d := a/b - 2; d > 1e-9 || d < -1e-9 {
			t.Errorf("%s: %g and %g frames a second, want 2 to 1", rate, a, b)
		}
		r, _ := ParseRate(rate)
		if want := r.FPS(64, 1e9); c != want {
			t.Errorf("%s: the other side has %g, want %g", rate, c, want)
		}
		sum := map[Unit]float64{PPS: a + b, BPS: 8 * (a*64 + b*1518), Percent: 100 * 8 * (a*84 + b*1538) / 1e9}[r.Unit]
		if d := sum/r.Value - 1; d > 1e-9 || d < -1e-9 {
			t.Errorf("%s: together %g, want %g", rate, sum, r.Value)
		}
	}
}

// TestReplay: a capture of two streams is sent again with its times, sides and MACs, stamped.
func TestReplay(t *testing.T) {
	dir := t.TempDir()
	p := parsed(t, "streams:\n  - {direction: both, size: 100, vlan: 5, udp: }")
	f, err := os.Create(filepath.Join(dir, "x.pcap"))
	if err != nil {
		t.Fatal(err)
	}
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	for k := range 6 {
		b := p.Streams[k%2].Frame(uint64(k), 100)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, int64(k)*1e6), CaptureLength: len(b), Length: len(b)}, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	env := DefaultEnv()
	env.Left.MAC[5], env.Dir = 77, dir
	p, err = Parse("p.yaml", []byte("replays:\n  - {file: x.pcap, rate: 2x, direction: both, stamp: on, loops: 0}\n  - {file: x.pcap, rate: 10kpps, direction: both, left: 198.19.0.0/16}"), env)
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range p.Replays {
		if len(r.Frames) != 6 || r.Round < 2500*time.Microsecond {
			t.Fatalf("%d frames in %v", len(r.Frames), r.Round)
		}
		for k, x := range r.Frames {
			want := time.Duration(k) * time.Millisecond / 2
			if i == 1 {
				want *= 2
			}
			if x.At != want || x.Side != Side((k+i)%2) || [6]byte(x.Data[6:12]) != env.at(x.Side).MAC || (x.Stamp != 0) != (i == 0) {
				t.Errorf("replay %d, frame %d: at %v on the %v, stamp %d", i, k, x.At, x.Side, x.Stamp)
			}
			if i == 0 {
				copy(x.Data[x.Stamp:], "eighteen bytes ...")
				x.Seal4(x.Data)
				sums(t, x.Data)
			}
		}
	}
	if p.Replays[0].Loops != 0 || p.Replays[1].Rate != (Rate{10000, PPS}) || p.Replays[0].Rate.Value != 0 {
		t.Errorf("loops %d, rates %v, %v", p.Replays[0].Loops, p.Replays[0].Rate, p.Replays[1].Rate)
	}
}

// FuzzParse: no text brings the compiler down, and what it accepts are frames that gopacket reads.
func FuzzParse(f *testing.F) {
	for _, n := range Names() {
		b, err := Text(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(b))
	}
	f.Add("streams:\n  - {vlan: [{id: 1-9, prio: 3}, 7], mpls: [16, {label: random, ttl: 1-3}], ipv6: {src: {prefix: 2001:db8::/32, step: /48}, hop-by-hop: router-alert, fragment: {offset: 0, more: on}}, icmp: {id: random}}")
	f.Add("streams:\n  - {ether: {src: random, type: 0x88b5}, payload: {hex: 00ff, fill: 0x55}, size: {genome: aAz, A: 99, z: 2000}, burst: {packets: 3, gap: 1ms}}")
	f.Add("streams:\n  - {ipv4: {options: [router-alert, record-route 3], flags: [df]}, tcp: {flags: SA, options: [mss 1460, wscale 7, sackok]}, flows: {count: 10, zipf: 1.1}}")
	f.Fuzz(func(t *testing.T, text string) {
		if strings.Contains(text, "replays") {
			return // of files
		}
		p, err := Parse("p.yaml", []byte(text), Env{})
		if err != nil {
			return
		}
		for i := range p.Streams {
			s := &p.Streams[i]
			for _, k := range []uint64{0, 1, 77, 1 << 40} {
				b := s.Frame(k, s.Size(k))
				if s.SumOff != 0 {
					sums(t, b)
				}
			}
		}
	})
}
