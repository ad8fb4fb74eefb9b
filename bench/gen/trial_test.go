package gen

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/internal/clock"
	"millrace/packet"
	"millrace/pmd"
)

// TestTshark: another program finds no fault in the frames, and their checksums right.
func TestTshark(t *testing.T) {
	prog, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not here")
	}
	p := pool(t, 512)
	c := p.NewCache()
	defer c.Close()
	var pcap bytes.Buffer
	w := pcapgo.NewWriter(&pcap)
	w.WriteFileHeader(65535, 1)
	n := 0
	for i, f := range []frame{
		{proto: packet.ProtoUDP, size: 64}, {v6: true, proto: packet.ProtoUDP, size: 84}, {proto: packet.ProtoTCP, size: 1518, tags: 1},
		{v6: true, proto: packet.ProtoTCP, size: 9000}, {proto: packet.ProtoICMP, size: 64}, {v6: true, proto: packet.ProtoICMPv6, size: 101, tags: 2},
		{proto: packet.ProtoUDP, size: 101, tags: 1, pad: 6},
	} {
		st := f.stream("s")
		src, dst := st.L3+12, st.L3+16
		if f.v6 {
			src, dst = st.L3+20, st.L3+36
		}
		st.Fields = []traffic.Field{
			{Off: src, Width: 4, Kind: traffic.Random, Min: 0x14000000, N: 1 << 20},
			{Off: dst + 2, Width: 2, Step: 3, N: 999},
		}
		s, err := compile(&st, uint16(i), []uint16{uint16(f.size), uint16(f.size), uint16(max(f.size-1, 80))}[:1+min(2, f.size/100*2)])
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range sentBy(t, s, c, 30, clock.Ticks()) {
			w.WritePacket(gopacket.CaptureInfo{CaptureLength: len(b), Length: len(b)}, b)
			n++
			g := gopacket.NewPacket(b, layers.LayerTypeEthernet, gopacket.Default)
			if g.ErrorLayer() != nil {
				t.Errorf("gopacket: %v", g.ErrorLayer().Error())
			}
		}
	}
	file := filepath.Join(t.TempDir(), "f.pcap")
	if err := os.WriteFile(file, pcap.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"-r", file, "-n", "-T", "fields"}
	for _, o := range []string{"ip.check_checksum", "udp.check_checksum", "tcp.check_checksum"} {
		args = append(args, "-o", o+":TRUE")
	}
	for _, f := range []string{"ip.checksum.status", "udp.checksum.status", "tcp.checksum.status", "icmp.checksum.status", "icmpv6.checksum.status", "_ws.malformed"} {
		args = append(args, "-e", f)
	}
	out, err := exec.Command(prog, args...).Output()
	if err != nil {
		if x, ok := err.(*exec.ExitError); ok {
			err = fmt.Errorf("%w: %s", err, x.Stderr)
		}
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != n {
		t.Fatalf("%d frames told of, want %d", len(lines), n)
	}
	for i, l := range lines {
		col := strings.Split(l, "\t")
		ok := 0
		for _, c := range col[:5] {
			switch c {
			case "1", "Good":
				ok++
			case "":
			default:
				t.Errorf("frame %d: checksum status %q: %q", i+1, c, l)
			}
		}
		if ok == 0 || len(col) > 5 && col[5] != "" {
			t.Errorf("frame %d: %q", i+1, l)
		}
	}
}

// TestHistogram: the counts become the HDR histogram that recording the same nanoseconds makes.
func TestHistogram(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	h, want := &hist{mult: 1 << 32}, hdrhistogram.New(1, histMax, 3)
	for range 100_000 {
		v := r.Uint64() >> (28 + r.IntN(36)) // up to 2^36
		v = min(v, histMax)
		n := int64(1 + r.IntN(3))
		h.add(v, n)
		if err := want.RecordValues(int64(v), n); err != nil {
			t.Fatal(err)
		}
	}
	if !h.export().Equals(want) {
		t.Error("another histogram")
	}
	h.add(1<<47, 1) // beyond the end
	if got := h.export(); got.TotalCount() != want.TotalCount()+1 {
		t.Errorf("%d values, want %d", got.TotalCount(), want.TotalCount()+1)
	}
}

// full is a port that takes few frames.
type full struct {
	*sink
	every, n int
}

func (f *full) Queue(int) pmd.Queue { return f }
func (f *full) Tx(src []uint32) int {
	if f.n++; f.n%f.every != 0 {
		return 0
	}
	return f.sink.Tx(src[:1])
}

// TestFull: frames that a port does not take are lost or make the trial invalid, as asked for; at no rate they wait.
func TestFull(t *testing.T) {
	p := pool(t, 1024)
	st := frame{proto: packet.ProtoUDP, size: 64}.stream("s")
	for _, mode := range []Refused{Lost, Again} {
		g := start(t, Options{Left: &full{sink: newSink(), every: 50}, Right: newSink(), Streams: []traffic.Stream{st}, Pool: p, Refused: mode, Settle: time.Millisecond})
		o, err := g.Try(context.Background(), trial.Load{Rate: 5e6, Duration: 30 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if mode == Again && !strings.Contains(o.Invalid, "the port was full") {
			t.Errorf("a port that takes little gives a valid trial: %+v", o)
		}
		if mode == Lost && !strings.Contains(strings.Join(o.Notes, ";"), "count as lost") {
			t.Errorf("lost frames are not told: %+v", o)
		}
		if o.Received != 0 || o.Lost != o.Sent || o.Latency != nil {
			t.Errorf("%+v", o)
		}
		o, err = g.Try(context.Background(), trial.Load{Frames: 500})
		if err != nil || o.Sent != 500 || o.Invalid != "" {
			t.Errorf("%+v, %v", o, err)
		}
		g.Close()
	}
}

// TestApart: one generator sends and another receives, each with threads of its own; then one that has a thread for each port.
func TestApart(t *testing.T) {
	p := pool(t, 8192)
	a, b := pair(t, 4096)
	var streams []traffic.Stream
	for _, n := range []string{"x", "y"} {
		streams = append(streams, frame{proto: packet.ProtoUDP, size: 64}.stream(n))
	}
	streams[1].Frames = 100
	l := trial.Load{Rate: 100e3, Duration: 100 * time.Millisecond}
	tx := start(t, Options{Left: a, Streams: streams, Pool: p})
	rx := start(t, Options{Right: b, Streams: streams, Pool: p})
	for n := range uint16(3) {
		tx.SetTrial(n * 1000)
		rx.SetTrial(n * 1000)
		got := make(chan *trial.Outcome)
		go func() {
			o, err := rx.Try(context.Background(), l)
			if err != nil {
				t.Error(err)
			}
			got <- o
		}()
		time.Sleep(20 * time.Millisecond)
		s, err := tx.Try(context.Background(), l)
		if err != nil {
			t.Fatal(err)
		}
		o := Join(s, <-got)
		if s.Lost != 0 || o.Sent == 0 || o.Received != o.Sent || o.Foreign != 0 {
			t.Errorf("%+v", o)
		}
		if c := rx.Streams(); c[0].Received+c[1].Received != o.Received || c[1].Received > 100 {
			t.Errorf("%+v", c)
		}
	}
	tx.Close()
	rx.Close()
	if p.Free() != p.Size() {
		t.Errorf("%d of %d buffers free after Close", p.Free(), p.Size())
	}
	cpus := []int{0, 0}
	g := start(t, Options{Left: a, Right: b, Streams: streams, Pool: p, CPUs: cpus})
	o, err := g.Try(context.Background(), l)
	if err != nil || o.Received != o.Sent || o.Sent == 0 {
		t.Errorf("%+v, %v", o, err)
	}
	g.Close()
	if p.Free() != p.Size() {
		t.Errorf("%d of %d buffers free after Close", p.Free(), p.Size())
	}
}

// TestCancel: a trial ends with its context, and the next one works.
func TestCancel(t *testing.T) {
	p := pool(t, 4096)
	a, b := pair(t, 1024)
	g := start(t, Options{Left: a, Right: b, Streams: []traffic.Stream{frame{proto: packet.ProtoUDP, size: 64}.stream("s")}, Pool: p})
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if o, err := g.Try(ctx, trial.Load{Rate: 1000, Duration: time.Hour}); err == nil {
		t.Errorf("a trial of an hour: %+v", o)
	}
	if o, err := g.Try(context.Background(), trial.Load{Frames: 300}); err != nil || o.Received != 300 || o.Foreign > 100 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, l := range []trial.Load{{}, {Rate: 1, Size: 40, Duration: time.Second}, {Rate: 1, Size: 65, Duration: time.Second}, {Rate: 1, Duration: -1}} {
		if o, err := g.Try(context.Background(), l); err == nil {
			t.Errorf("%+v is no error: %+v", l, o)
		}
	}
	a.SetLink(false)
	if _, err := g.Try(context.Background(), trial.Load{Frames: 1}); err == nil {
		t.Error("a link that is down is no error")
	}
}

// TestAnswer: address resolution is answered as its askers check it, between trials.
func TestAnswer(t *testing.T) {
	p := pool(t, 1024)
	a, b := pair(t, 64)
	mac := pmd.MAC{2, 0, 0, 0, 0, 9}
	start(t, Options{Left: a, Streams: []traffic.Stream{frame{proto: packet.ProtoUDP, size: 64}.stream("s")}, Pool: p, Hosts: [2][]Host{{
		{Prefix: netip.MustParsePrefix("10.0.0.0/24")}, {Prefix: netip.MustParsePrefix("2001:db8::/64"), MAC: mac},
	}}})
	c := p.NewCache()
	defer c.Close()
	q := b.Queue(0)
	if err := q.Start(c); err != nil {
		t.Fatal(err)
	}
	defer q.Stop()
	me := [6]byte{2, 7, 7, 7, 7, 7}
	arp := func(target [4]byte) []byte {
		f := make([]byte, 60)
		copy(f, []byte{255, 255, 255, 255, 255, 255})
		copy(f[6:], me[:])
		f[12], f[13] = 8, 6
		packet.ARP(f[14:]).Set(packet.ARPRequest, me, [4]byte{10, 0, 0, 1}, [6]byte{}, target)
		return f
	}
	solicit := func(src string, target string) []byte {
		f := make([]byte, 86)
		copy(f, []byte{0x33, 0x33, 0xff, 0, 0, 5})
		copy(f[6:], me[:])
		f[12], f[13] = 0x86, 0xdd
		to := netip.MustParseAddr(target).As16()
		h := packet.IPv6(f[14:])
		h.Init(netip.MustParseAddr(src).As16(), [16]byte{0: 0xff, 1: 2, 11: 1, 12: 0xff, 15: 5}, packet.ProtoICMPv6, 32)
		h.SetHopLimit(255)
		m := h[40:]
		m[0], m[24], m[25] = packet.ICMP6NS, 1, 1
		copy(m[8:], to[:])
		copy(m[26:], me[:])
		packet.PutSum(m[2:], ^packet.Fold(packet.Sum(m, h.Pseudo(packet.ProtoICMPv6, 32))))
		return f
	}
	ask := func(f []byte) gopacket.Packet {
		m := c.Alloc1()
		copy(m.Append(len(f)), f)
		q.Tx([]uint32{m.Index()})
		var idx [1]uint32
		for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if q.Rx(idx[:]) == 1 {
				defer c.Free(idx[:])
				return gopacket.NewPacket(bytes.Clone(packet.At(idx[0]).Bytes()), layers.LayerTypeEthernet, gopacket.Default)
			}
		}
		return nil
	}
	own := a.Link().MAC
	g := ask(arp([4]byte{10, 0, 0, 77}))
	if g == nil {
		t.Fatal("no reply")
	}
	x, _ := g.Layer(layers.LayerTypeARP).(*layers.ARP)
	if x == nil || x.Operation != 2 || !bytes.Equal(x.SourceHwAddress, own[:]) || !bytes.Equal(x.SourceProtAddress, []byte{10, 0, 0, 77}) || !bytes.Equal(x.DstHwAddress, me[:]) {
		t.Errorf("reply %v", g)
	}
	if g := ask(arp([4]byte{10, 0, 1, 77})); g != nil {
		t.Errorf("a reply for another's address: %v", g)
	}
	for _, from := range []string{"2001:db8::1", "::"} {
		g := ask(solicit(from, "2001:db8::5"))
		if g == nil {
			t.Fatal("no advertisement")
		}
		ip, _ := g.Layer(layers.LayerTypeIPv6).(*layers.IPv6)
		na, _ := g.Layer(layers.LayerTypeICMPv6NeighborAdvertisement).(*layers.ICMPv6NeighborAdvertisement)
		if na == nil || ip.HopLimit != 255 || na.TargetAddress.String() != "2001:db8::5" || na.Solicited() != (from != "::") || !bytes.Equal(na.Options[0].Data, mac[:]) {
			t.Errorf("advertisement %v", g)
		}
		raw := packet.IPv6(g.Data()[14:])
		if packet.Fold(packet.Sum(raw[40:72], raw.Pseudo(packet.ProtoICMPv6, 32))) != 0xffff {
			t.Error("wrong checksum")
		}
	}
	if g := ask(solicit("2001:db8::1", "2001:db8:1::5")); g != nil {
		t.Errorf("an advertisement for another's address: %v", g)
	}
}

// TestHotFiles: what runs for each burst does not format, log, or ask the runtime for the time.
func TestHotFiles(t *testing.T) {
	slow := regexp.MustCompile(`\t"(fmt|log|os|time)"\n`)
	for _, f := range []string{"build.go", "check.go", "hist.go", "loop.go", "schedule.go", "stamp.go"} {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if m := slow.FindSubmatch(b); m != nil {
			t.Errorf("%s imports %s", f, m[1])
		}
	}
}

// TestNoAllocs: a round of sending, receiving, checking allocates nothing.
func TestNoAllocs(t *testing.T) {
	a, b := pair(t, 1024)
	st := randomStream(rand.New(rand.NewPCG(11, 12)))
	_, r, ends := rig(t, Options{Left: a, Right: b, Streams: []traffic.Stream{st, frame{proto: packet.ProtoTCP, size: 300}.stream("tcp")}})
	if n := testing.AllocsPerRun(200, func() {
		for _, e := range ends {
			e.poll()
			e.send(r, clock.Ticks())
		}
	}); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
	for ends[1].poll() {
	}
	if f := ends[1].t.rx.flows; f[0].received+f[1].received != ends[0].t.sent {
		t.Errorf("received %d and %d of %d", f[0].received, f[1].received, ends[0].t.sent)
	}
}
