package gen

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/pcapgo"

	"millrace/bench/traffic"
	"millrace/bench/trial"
	"millrace/packet"
	"millrace/pmd"
	"millrace/pmd/pcap"
)

// capture writes a capture of many kinds of frames between two hosts, unevenly timed, and returns its name and frames.
func capture(t testing.TB) (name string, frames [][]byte, at []time.Duration) {
	t.Helper()
	seal := func(st traffic.Stream) []byte {
		payload := int(st.Stamp)
		st.Stamp = 0
		b := st.Frame(0, int(st.Sizes[0]))
		for i := payload; i < len(b)-int(st.Pad); i++ {
			b[i] = byte(i * 7)
		}
		st.Seal(b)
		return b
	}
	add := func(right bool, gap time.Duration, b []byte) {
		if right {
			copy(b, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
		} else {
			copy(b, []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2})
		}
		last := time.Duration(0)
		if len(at) > 0 {
			last = at[len(at)-1]
		}
		at = append(at, last+gap)
		frames = append(frames, b)
	}
	for i, f := range []frame{
		{proto: packet.ProtoUDP, size: 64}, {v6: true, proto: packet.ProtoUDP, size: 84}, {proto: packet.ProtoTCP, size: 1518, tags: 1},
		{v6: true, proto: packet.ProtoTCP, size: 97}, {proto: packet.ProtoICMP, size: 64}, {v6: true, proto: packet.ProtoICMPv6, size: 101, tags: 2},
		{proto: packet.ProtoUDP, size: 101, tags: 1, pad: 6}, {proto: packet.ProtoUDP, size: 3000}, {proto: packet.ProtoTCP, size: 58 + 4},
	} {
		add(i%3 == 1, time.Duration(i)*300*time.Microsecond, seal(f.stream("s")))
	}
	arp := make([]byte, 42)
	arp[12], arp[13] = 8, 6
	add(true, 0, arp)
	add(false, time.Millisecond, append(make([]byte, 12), append([]byte{0x88, 0xb5}, make([]byte, 80)...)...))
	mistake := seal(frame{proto: packet.ProtoTCP, size: 66}.stream("offloaded")) // no room for a stamp, as all of this
	mistake[14+20+16] ^= 0x55
	add(false, 0, mistake)
	none := seal(frame{proto: packet.ProtoUDP, size: 60}.stream("no checksum"))
	none[14+20+6], none[14+20+7] = 0, 0
	add(true, 50*time.Microsecond, none)
	header := seal(frame{proto: packet.ProtoUDP, size: 60}.stream("bad header"))
	header[14+8]--
	add(false, 100*time.Microsecond, header)
	fragment := seal(frame{proto: packet.ProtoUDP, size: 200}.stream("fragment"))
	fragment[14+6] = 0x20 // more fragments
	packet.IPv4(fragment[14:]).SetSum()
	add(false, 100*time.Microsecond, fragment)

	name = filepath.Join(t.TempDir(), "c.pcap")
	var file bytes.Buffer
	w := pcapgo.NewWriterNanos(&file)
	w.WriteFileHeader(65535, 1)
	for i, b := range frames {
		w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1700000000, 0).Add(at[i]), CaptureLength: len(b), Length: len(b)}, b)
	}
	if err := os.WriteFile(name, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return name, frames, at
}

// replayOf compiles a profile with one replay.
func replayOf(t testing.TB, name, keys string) *traffic.Profile {
	t.Helper()
	p, err := traffic.Parse("p.yaml", []byte(fmt.Sprintf("replays:\n  - {file: %s, direction: both%s}\n", name, keys)), traffic.Env{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// tape is a port that keeps what is sent.
type tape struct {
	*sink
	sent [][]byte
}

func (x *tape) Queue(int) pmd.Queue { return x }
func (x *tape) Tx(src []uint32) int {
	for _, i := range src {
		m := packet.At(i)
		b := make([]byte, m.PktLen)
		m.CopyOut(0, b)
		x.sent = append(x.sent, b)
	}
	return x.sink.Tx(src)
}

// TestReplay: what is sent of a capture, on each side, is what one gets by going through it frame by frame.
func TestReplay(t *testing.T) {
	name, _, _ := capture(t)
	for _, c := range []struct {
		keys string
		rate float64 // times the own rate
		long time.Duration
	}{
		{"", 1, time.Second},
		{", loops: 3, start: 2ms", 1, time.Second},
		{", loops: 0", 1, 50 * time.Millisecond},
		{", loops: 0, stamp: on, rate: 3x", 2.5, 70 * time.Millisecond},
		{", loops: 4, stamp: on, rate: 20kpps, start: 1ms", 1, time.Second},
		{", loops: 0, stamp: on, rate: 5Mbps", 0.5, 100 * time.Millisecond},
	} {
		p := replayOf(t, name, c.keys)
		x := &p.Replays[0]
		left, right := &tape{sink: newSink()}, &tape{sink: newSink()}
		g := start(t, Options{Left: left, Right: right, Replays: p.Replays, Pool: pool(t, 1024), CatchUp: time.Hour, Settle: time.Microsecond})
		g.SetTrial(77)
		own, err := g.Own()
		if err != nil {
			t.Fatal(err)
		}
		l := trial.Load{Rate: own.Rate * c.rate, Duration: c.long}
		if own.Duration > 0 {
			l.Duration = own.Duration
		}
		o, r, err := g.try(context.Background(), l)
		if err != nil {
			t.Fatal(err)
		}
		scale := r.phases[0].scale
		if c.rate == 1 && scale != 1 {
			t.Errorf("%s: at its own rate the capture is played %f times as fast", c.keys, scale)
		}
		n := float64(len(x.Frames))
		fps := x.Rate.Value
		switch {
		case fps == 0:
			fps = n / x.Round.Seconds()
		case x.Rate.Unit == traffic.BPS:
			bits := 0
			for _, f := range x.Frames {
				bits += 8 * (len(f.Data) + 4)
			}
			fps /= float64(bits) / n
		}
		if math.Abs(own.Rate/fps-1) > 1e-9 {
			t.Errorf("%s: own rate %f, want %f", c.keys, own.Rate, fps)
		}
		var want [2][][]byte
		stamped := [2]uint32{}
		for k := uint64(0); x.Loops == 0 || k < x.Loops*uint64(n); k++ {
			f := &x.Frames[k%uint64(n)]
			due := float64(k) / fps
			if x.Rate.Value == 0 {
				due = float64(k/uint64(n))*x.Round.Seconds() + f.At.Seconds()
			}
			if due = x.Start.Seconds() + due/scale; x.Loops == 0 && due > l.Duration.Seconds()-1e-9 {
				break
			}
			b := bytes.Clone(f.Data)
			if f.Stamp != 0 {
				s := b[f.Stamp:][:stampLen]
				clear(s)
				f.Seal4(b)
				le := binary.LittleEndian
				le.PutUint16(s, stampMagic)
				le.PutUint16(s[2:], 77)
				le.PutUint32(s[4:], stamped[f.Side])
				stamped[f.Side]++
				le.PutUint16(s[8:], uint16(f.Side))
			}
			want[f.Side] = append(want[f.Side], b)
		}
		if x.Loops > 0 && math.Abs(own.Duration.Seconds()-x.Start.Seconds()-float64(x.Loops)*n/fps) > 1e-6 {
			t.Errorf("%s: lasts %v", c.keys, own.Duration)
		}
		for side, got := range [][][]byte{left.sent, right.sent} {
			if len(got) != len(want[side]) || len(got) < 5 {
				t.Errorf("%s, %v: %d frames, want %d", c.keys, traffic.Side(side), len(got), len(want[side]))
				continue
			}
			place := map[string]*traffic.Recorded{}
			i := 0
			for _, f := range x.Frames {
				if int(f.Side) == side {
					place[fmt.Sprint(i)] = &f
					i++
				}
			}
			for k, b := range got {
				f := place[fmt.Sprint(k%i)]
				w := want[side][k]
				if f.Stamp != 0 && len(b) == len(w) { // the time is as it is, and the fix with it
					copy(w[f.Stamp+10:][:8], b[f.Stamp+10:][:8])
					if fold16(halves(binary.LittleEndian.Uint64(b[f.Stamp:]))+stampTail(b[f.Stamp:])) != 0xffff {
						t.Errorf("%s, %v: frame %d: the stamp does not add up: %x", c.keys, traffic.Side(side), k, b[f.Stamp:])
					}
				}
				if !bytes.Equal(b, w) {
					t.Fatalf("%s, %v: frame %d is\n%x, want\n%x", c.keys, traffic.Side(side), k, b, w)
				}
			}
		}
		if o.Sent != uint64(len(left.sent)+len(right.sent)) || o.Lost != o.Sent {
			t.Errorf("%s: %+v", c.keys, o)
		}
		if asked := l.Rate * l.Duration.Seconds(); x.Start == 0 && c.rate != 1 && math.Abs(float64(o.Sent)-asked) > max(2, asked/500) {
			t.Errorf("%s: %d sent, %f asked for", c.keys, o.Sent, asked)
		}
		g.Close()
	}
}

func stampTail(b []byte) uint64 {
	return halves(binary.LittleEndian.Uint64(b[8:])) + uint64(binary.LittleEndian.Uint16(b[16:]))
}

// TestReplayCounted: over a wire, each frame of a capture is received once, with a stamp or without; those that go the other
// way, a stream beside them, and wrong checksums that were captured do not matter. What is lost is counted.
func TestReplayCounted(t *testing.T) {
	name, frames, _ := capture(t)
	p := pool(t, 4096)
	for _, keys := range []string{"", ", stamp: on", ", stamp: on, rate: 50kpps"} {
		x := replayOf(t, name, keys+", loops: 0")
		a, b := pair(t, 1024)
		drop := &lossy{Port: b}
		streams := []traffic.Stream{frame{proto: packet.ProtoTCP, size: 200}.stream("s")}
		streams[0].Rate.Value = 3000
		g := start(t, Options{Left: a, Right: drop, Streams: streams, Replays: x.Replays, Pool: p, CatchUp: time.Hour, Refused: Again})
		o, err := g.Try(context.Background(), trial.Load{Rate: 50e3, Duration: 60 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		if o.Sent < 10*uint64(len(frames)) || o.Received != o.Sent || o.Lost+o.Duplicated+o.Reordered+o.Corrupted+o.Foreign != 0 {
			t.Errorf("%s: %+v", keys, o)
		}
		c := g.Streams()
		if len(c) != 3 || c[0].Name != "s" || c[1].Name != "replay0/left" || c[2].Name != "replay0/right" {
			t.Fatalf("%+v", c)
		}
		for _, c := range c {
			if c.Received != c.Sent || c.Sent == 0 {
				t.Errorf("%s: %+v", keys, c)
			}
		}
		drop.drop = func(n uint64) bool { return n%10 == 3 }
		if o, err = g.Try(context.Background(), trial.Load{Rate: 50e3, Duration: 60 * time.Millisecond}); err != nil {
			t.Fatal(err)
		}
		if o.Lost != drop.dropped || o.Received != o.Sent-o.Lost || o.Lost == 0 || o.Duplicated+o.Corrupted+o.Foreign != 0 {
			t.Errorf("%s: %d dropped: %+v", keys, drop.dropped, o)
		}
		if _, err := g.Try(context.Background(), trial.Load{Rate: 1000, Size: 64, Duration: time.Millisecond}); err == nil {
			t.Error("a size for all frames is no error")
		}
		g.Close()
	}
}

// lossy is a port that drops what comes in, as it is told.
type lossy struct {
	pmd.Port
	drop    func(n uint64) bool // of frame n; nil drops nothing
	n       uint64
	dropped uint64
}

type lossyQueue struct {
	pmd.Queue
	p *lossy
	c *packet.Cache
}

func (p *lossy) Queue(i int) pmd.Queue { return &lossyQueue{Queue: p.Port.Queue(i), p: p} }

func (q *lossyQueue) Start(c *packet.Cache) error {
	q.c = c
	return q.Queue.Start(c)
}

func (q *lossyQueue) Rx(dst []uint32) int {
	k := 0
	for i, x := range dst[:q.Queue.Rx(dst)] {
		q.p.n++
		if q.p.drop != nil && q.p.drop(q.p.n-1) {
			q.p.dropped++
			q.c.Free(dst[i : i+1])
			continue
		}
		dst[k] = x
		k++
	}
	return k
}

// TestReplayFile: what a port of a capture file records is the capture, as two other programs read it.
func TestReplayFile(t *testing.T) {
	name, frames, at := capture(t)
	x := replayOf(t, name, ", loops: 2, macs: off")
	dir := t.TempDir()
	var ports [2]pmd.Port
	for i, n := range []string{"left", "right"} {
		p, err := pcap.Open(pmd.Config{Name: n, Write: filepath.Join(dir, n+".pcap")})
		if err != nil {
			t.Fatal(err)
		}
		ports[i] = p
	}
	g := start(t, Options{Left: ports[0], Right: ports[1], Replays: x.Replays, Pool: pool(t, 1024), CatchUp: time.Hour, Settle: time.Microsecond})
	own, err := g.Own()
	if err != nil {
		t.Fatal(err)
	}
	o, err := g.Try(context.Background(), own)
	if err != nil || o.Sent != 2*uint64(len(frames)) {
		t.Fatalf("%+v, %v", o, err)
	}
	g.Close()
	prog, _ := exec.LookPath("tshark")
	read := func(prog, file string) []string {
		args := []string{"-r", file, "-n", "-T", "fields"}
		for _, p := range []string{"ip", "tcp", "udp"} {
			args = append(args, "-o", p+".check_checksum:TRUE", "-e", p+".checksum.status")
		}
		for _, f := range []string{"frame.len", "eth.src", "frame.protocols", "ip.id", "tcp.seq", "icmp.checksum.status"} {
			args = append(args, "-e", f)
		}
		out, err := exec.Command(prog, args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	}
	for i, n := range []string{"left", "right"} {
		ports[i].Close()
		var want [][]byte
		for range 2 {
			for k, f := range frames {
				if right := f[11] == 1; right == (i == 1) {
					want = append(want, frames[k])
				}
			}
		}
		file := filepath.Join(dir, n+".pcap")
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		rd, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
		if err != nil {
			t.Fatal(err)
		}
		for k, w := range want {
			b, _, err := rd.ReadPacketData()
			if err != nil || !bytes.Equal(b, w) {
				t.Fatalf("%s: frame %d is\n%x, %v, want\n%x", n, k, b, err, w)
			}
		}
		if prog == "" {
			continue
		}
		var told []string
		for k, l := range read(prog, name) {
			if right := frames[k][11] == 1; right == (i == 1) {
				told = append(told, l)
			}
		}
		// Of the second round it remarks that it is a repetition.
		if got := read(prog, file); len(got) != 2*len(told) || !slices.Equal(got[:len(told)], told) {
			t.Errorf("tshark reads of %s\n%s\nwant\n%s", n, strings.Join(got, "\n"), strings.Join(told, "\n"))
		}
	}
	if own.Duration < 2*at[len(at)-1] {
		t.Errorf("twice a capture of %v takes %v", at[len(at)-1], own.Duration)
	}
}

// TestReplayErrors: captures that cannot be sent are refused.
func TestReplayErrors(t *testing.T) {
	name, _, _ := capture(t)
	p := pool(t, 256)
	for i, spoil := range []func(r *traffic.Replay){
		func(r *traffic.Replay) { r.Frames = nil },
		func(r *traffic.Replay) { r.Frames[0].Data = r.Frames[0].Data[:13] },
		func(r *traffic.Replay) { r.Frames[3].At = 0 },
		func(r *traffic.Replay) { r.Round = r.Frames[5].At },
		func(r *traffic.Replay) { r.Rate.Value = math.NaN() },
		func(r *traffic.Replay) { r.Frames[1].Side = 2 },
		func(r *traffic.Replay) { r.Frames[2].Stamp = uint16(len(r.Frames[2].Data) - 17) },
		func(r *traffic.Replay) { r.Frames[2].Stamp-- },
		func(r *traffic.Replay) { r.Frames[2].SumOff = r.Frames[2].Stamp },
		func(r *traffic.Replay) { r.Frames[2].L3 = uint16(len(r.Frames[2].Data) - 10) },
		func(r *traffic.Replay) { r.Frames[2].Pad = uint16(len(r.Frames[2].Data)) },
	} {
		x := replayOf(t, name, ", stamp: on")
		spoil(&x.Replays[0])
		a, b := pair(t, 64)
		if g, err := New(Options{Left: a, Right: b, Replays: x.Replays, Pool: p}); err == nil {
			g.Close()
			t.Errorf("mistake %d is none", i)
		}
	}
}
