package pcap

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"
)

// classic is a pcap file by hand.
func classic(bo binary.ByteOrder, magic uint32, link uint32, frames ...[]byte) []byte {
	u32 := func(b []byte, v ...uint32) []byte {
		for _, x := range v {
			var t [4]byte
			bo.PutUint32(t[:], x)
			b = append(b, t[:]...)
		}
		return b
	}
	b := u32(nil, magic)
	var v [4]byte
	bo.PutUint16(v[:], 2)
	bo.PutUint16(v[2:], 4)
	b = u32(append(b, v[:]...), 0, 0, 262144, link)
	for i, f := range frames {
		b = append(u32(b, uint32(10+i), 5, uint32(len(f)), uint32(len(f))), f...)
	}
	return b
}

// block is a pcapng block.
func block(bo binary.ByteOrder, typ uint32, body ...any) []byte {
	var b bytes.Buffer
	for _, x := range body {
		if err := binary.Write(&b, bo, x); err != nil {
			panic(err)
		}
	}
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
	n := uint32(b.Len() + 12)
	var out bytes.Buffer
	binary.Write(&out, bo, []uint32{typ, n})
	out.Write(b.Bytes())
	binary.Write(&out, bo, n)
	return out.Bytes()
}

func section(bo binary.ByteOrder) []byte {
	return block(bo, ngSection, uint32(0x1a2b3c4d), uint16(1), uint16(0), int64(-1))
}

func frameOf(n int, seed byte) []byte {
	f := make([]byte, n)
	for i := range f {
		f[i] = byte(i)*31 + seed
	}
	if n > 0 {
		f[0] &^= 1
	}
	return f
}

func parse(b []byte) (*capture, error) {
	c := &capture{data: b}
	err := c.parse(b)
	return c, err
}

func frames(c *capture) (fs [][]byte) {
	for _, r := range c.recs {
		fs = append(fs, c.data[r.off:r.off+uint64(r.n)])
	}
	return fs
}

var le, be binary.ByteOrder = binary.LittleEndian, binary.BigEndian

func TestParseClassic(t *testing.T) {
	fs := [][]byte{frameOf(60, 1), frameOf(61, 2), frameOf(1514, 3)}
	for _, c := range []struct {
		name  string
		b     []byte
		times [2]int64 // of the first packet, from the second on
	}{
		{"little", classic(le, 0xa1b2c3d4, 1, fs...), [2]int64{10e9 + 5000, 11e9 + 5000}},
		{"big", classic(be, 0xa1b2c3d4, 1, fs...), [2]int64{10e9 + 5000, 11e9 + 5000}},
		{"little, nanoseconds", classic(le, 0xa1b23c4d, 1, fs...), [2]int64{10e9 + 5, 11e9 + 5}},
		{"big, nanoseconds", classic(be, 0xa1b23c4d, 1, fs...), [2]int64{10e9 + 5, 11e9 + 5}},
	} {
		got, err := parse(c.b)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if !slices.EqualFunc(frames(got), fs, bytes.Equal) || got.note != "" {
			t.Errorf("%s: other frames; %s", c.name, got.note)
		}
		if got.recs[0].time != c.times[0] || got.recs[1].time != c.times[1] {
			t.Errorf("%s: times %d, %d", c.name, got.recs[0].time, got.recs[1].time)
		}
	}
	// With FCS of 4 bytes, as the header says.
	got, err := parse(classic(le, 0xa1b2c3d4, 1|1<<26|2<<28, fs...))
	if err != nil || !bytes.Equal(frames(got)[2], fs[2][:1510]) {
		t.Errorf("FCS: %v", err)
	}
	// Odd sizes.
	got, err = parse(classic(le, 0xa1b2c3d4, 1, frameOf(13, 1), frameOf(14, 2), frameOf(65535, 3), frameOf(65536, 4)))
	if err != nil || len(got.recs) != 2 || got.bad != 2 {
		t.Errorf("odd sizes: %d good, %d bad, %v", len(got.recs), got.bad, err)
	}
	// Every place to cut the file off.
	b := classic(le, 0xa1b2c3d4, 1, fs[:2]...)
	for n := 24; n <= len(b); n++ {
		got, err := parse(b[:n])
		want, whole := 0, n == 24 || n == 24+16+60 || n == len(b)
		if n >= 24+16+60 {
			want++
		}
		if n == len(b) {
			want++
		}
		if err != nil || len(got.recs) != want || whole != (got.note == "") {
			t.Fatalf("cut at %d: %d packets, note %q, %v", n, len(got.recs), got.note, err)
		}
	}
}

func TestParseNg(t *testing.T) {
	a, b, c := frameOf(60, 1), frameOf(99, 2), frameOf(1500, 3)
	for _, bo := range []binary.ByteOrder{le, be} {
		iface := func(link uint16, snap uint32, opts ...any) []byte {
			return block(bo, ngInterface, append([]any{link, uint16(0), snap}, opts...)...)
		}
		pkt := func(i uint32, stamp uint64, f []byte) []byte {
			return block(bo, ngPacket, i, uint32(stamp>>32), uint32(stamp), uint32(len(f)), uint32(len(f)), f)
		}
		file := slices.Concat(section(bo),
			iface(1, 0), // microseconds
			iface(113, 0),
			iface(1, 0, uint16(9), uint16(1), []byte{9, 0, 0, 0}, uint16(0), uint16(0)),                      // nanoseconds
			iface(1, 0, uint16(9), uint16(1), []byte{0x80 | 10, 0, 0, 0}, uint16(14), uint16(8), int64(100)), // 1/1024 s, 100 s later
			iface(1, 0, uint16(13), uint16(1), []byte{4, 0, 0, 0}),                                           // FCS
			block(bo, 0x5555, []byte("unknown")),
			pkt(0, 7e6, a), pkt(1, 7e6, b), pkt(2, 8e9+3, b), pkt(3, 512, c), pkt(4, 9e6, c),
			block(bo, ngOldPacket, uint16(0), uint16(3), uint32(0), uint32(5), uint32(len(a)), uint32(2000), a),
			section(be), // a second section in its own order
			block(be, ngInterface, uint16(1), uint16(0), uint32(64)),
			block(be, ngSimple, uint32(len(b)), b[:64]),
		)
		got, err := parse(file)
		if err != nil {
			t.Fatal(bo, err)
		}
		if want := [][]byte{a, b, c, c[:1496], a, b[:64]}; !slices.EqualFunc(frames(got), want, bytes.Equal) {
			t.Errorf("%v: other frames: %d", bo, len(got.recs))
		}
		var times []int64
		for _, r := range got.recs {
			times = append(times, r.time)
		}
		if want := []int64{7e9, 8e9 + 3, 100e9 + 5e8, 9e9, 5000, 5000}; !slices.Equal(times, want) {
			t.Errorf("%v: times %v, want %v", bo, times, want)
		}
		if got.other != 1 || got.cut != 2 || got.note != "" {
			t.Errorf("%v: other %d, cut %d, %q", bo, got.other, got.cut, got.note)
		}
		if got, err := parse(file[:len(file)-5]); err != nil || len(got.recs) != 5 || !strings.Contains(got.note, "packet 7") {
			t.Errorf("%v: cut off: %v %q", bo, err, got.note)
		}
	}
}

func TestParseErrors(t *testing.T) {
	good := section(le)
	eth := block(le, ngInterface, uint16(1), uint16(0), uint32(0))
	long := classic(le, 0xa1b2c3d4, 1, frameOf(60, 1), frameOf(60, 2))
	le.PutUint32(long[24+76+8:], 1<<20)
	for _, c := range []struct {
		b    []byte
		want string
	}{
		{nil, "not a pcap"},
		{[]byte("hello, world"), "not a pcap"},
		{classic(le, 0xa1b2c3d4, 1)[:20], "header is cut off"},
		{classic(le, 0xa1b2c3d4, 113), "link type 113"},
		{long, "packet 2, at byte 100"},
		{slices.Concat(good, block(le, ngPacket, uint32(0), uint32(0), uint32(0), uint32(0), uint32(0))), "there are 0"},
		{slices.Concat(good, eth, block(le, ngPacket, uint32(0), uint32(0), uint32(0), uint32(99), uint32(99))), "99 bytes of packet"},
		{slices.Concat(good, []byte{6, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0, 0}), "a block of 11 bytes"},
		{slices.Concat(good, []byte{9, 0, 0, 0, 12, 0, 0, 0, 13, 0, 0, 0}), "at its end"},
		{slices.Concat(good, block(le, ngInterface, uint16(1), uint16(0), uint32(0), uint16(9), uint16(1), []byte{99, 0, 0, 0})), "time resolution"},
		{slices.Concat(good, block(le, ngInterface, uint16(1), uint16(0), uint32(0), uint16(2), uint16(50))), "option longer"},
		{block(le, ngSection, uint32(0x1a2b3c4d), uint16(2), uint16(0), int64(-1)), "pcapng version 2"},
		{block(le, ngSection, uint32(1), uint16(2), uint16(0), int64(-1)), "byte order"},
		{slices.Concat(good, block(le, ngInterface, uint16(113), uint16(0), uint32(0)),
			block(le, ngPacket, uint32(0), uint32(0), uint32(0), uint32(0), uint32(0))), "only Ethernet"},
	} {
		if _, err := parse(c.b); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%x: %v, want %q", c.b, err, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	b := classic(le, 0xa1b2c3d4, 1, frameOf(60, 1), frameOf(777, 2))
	var z bytes.Buffer
	w := gzip.NewWriter(&z)
	w.Write(b)
	w.Close()
	for _, c := range []struct {
		name string
		b    []byte
		n    int
	}{{"plain", b, 2}, {"gz", z.Bytes(), 2}, {"gz cut off", z.Bytes()[:z.Len()-9], -1}} {
		file := filepath.Join(dir, c.name)
		if err := os.WriteFile(file, c.b, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := load(file)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if c.n >= 0 && len(got.recs) != c.n {
			t.Errorf("%s: %d packets", c.name, len(got.recs))
		}
		got.free()
	}
	for name, want := range map[string]string{"missing": "no such file", "empty": "empty: not a pcap"} {
		if name == "empty" {
			os.WriteFile(filepath.Join(dir, name), nil, 0o600)
		}
		if _, err := load(filepath.Join(dir, name)); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// oracle reads a file with gopacket.
func oracle(b []byte) (fs [][]byte, times []int64, err error) {
	var r interface {
		ReadPacketData() ([]byte, gopacket.CaptureInfo, error)
	}
	if r, err = pcapgo.NewReader(bytes.NewReader(b)); err != nil {
		if r, err = pcapgo.NewNgReader(bytes.NewReader(b), pcapgo.DefaultNgReaderOptions); err != nil {
			return nil, nil, err
		}
	}
	for {
		f, ci, err := r.ReadPacketData()
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return fs, times, nil
		}
		if err != nil {
			return nil, nil, err
		}
		fs, times = append(fs, f), append(times, ci.Timestamp.UnixNano())
	}
}

// What gopacket writes is read as gopacket reads it.
func TestOracle(t *testing.T) {
	for _, ng := range []bool{false, true} {
		var b bytes.Buffer
		var write func(ci gopacket.CaptureInfo, f []byte) error
		if ng {
			w, err := pcapgo.NewNgWriter(&b, layers.LinkTypeEthernet)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Flush()
			write = func(ci gopacket.CaptureInfo, f []byte) error { w.WritePacket(ci, f); return w.Flush() }
		} else {
			w := pcapgo.NewWriterNanos(&b)
			w.WriteFileHeader(65536, layers.LinkTypeEthernet)
			write = w.WritePacket
		}
		for i := range 50 {
			f := frameOf(14+i*17, byte(i))
			if err := write(gopacket.CaptureInfo{Timestamp: time.Unix(1e9, int64(i)*12345), CaptureLength: len(f), Length: len(f)}, f); err != nil {
				t.Fatal(err)
			}
		}
		fs, times, err := oracle(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		c, err := parse(b.Bytes())
		if err != nil {
			t.Fatal(err)
		}
		if len(fs) != 50 || !slices.EqualFunc(frames(c), fs, bytes.Equal) {
			t.Errorf("ng %v: other frames", ng)
		}
		for i, r := range c.recs {
			if r.time != times[i] {
				t.Fatalf("ng %v: packet %d at %d, want %d", ng, i, r.time, times[i])
			}
		}
	}
}

// No file may do harm.
func FuzzParse(f *testing.F) {
	f.Add(classic(le, 0xa1b2c3d4, 1, frameOf(60, 1), frameOf(61, 2)))
	f.Add(classic(be, 0xa1b23c4d, 1|1<<26|2<<28, frameOf(60, 1)))
	f.Add(slices.Concat(section(le), block(le, ngInterface, uint16(1), uint16(0), uint32(0), uint16(9), uint16(1), []byte{9, 0, 0, 0}),
		block(le, ngPacket, uint32(0), uint32(0), uint32(0), uint32(60), uint32(60), frameOf(60, 1)),
		block(le, ngSimple, uint32(60), frameOf(60, 1))))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parse(b)
		end := uint64(0)
		for _, r := range c.recs {
			if r.off < end || r.off+uint64(r.n) > uint64(len(b)) || r.n < minFrame || r.n > maxFrame {
				t.Fatalf("a record at %d+%d of %d, %v", r.off, r.n, len(b), err)
			}
			end = r.off + uint64(r.n)
		}
	})
}

// Real captures, where there are any, are read as gopacket reads them.
func TestCaptures(t *testing.T) {
	dir := os.Getenv("MILLRACE_DATA")
	if dir == "" {
		dir = "../../../shared/data"
	}
	dir = filepath.Join(dir, "captures")
	if _, err := os.Stat(dir); err != nil {
		t.Skip("no captures: ", err)
	}
	n, refused := 0, 0
	filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if st, serr := os.Stat(name); err != nil || serr != nil || !st.Mode().IsRegular() || st.Size() > 4<<20 || n >= 500 {
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil || len(b) < 4 {
			return nil
		}
		want, times, err := oracle(b)
		c, perr := parse(b)
		if err != nil || perr != nil {
			if perr != nil {
				refused++
				t.Logf("%s: %v (gopacket: %v)", filepath.Base(name), perr, err)
			}
			return nil
		}
		n++
		if c.bad+c.other > 0 {
			return nil
		}
		if !slices.EqualFunc(frames(c), want, bytes.Equal) {
			t.Errorf("%s: %d frames, gopacket reads %d, or others", name, len(c.recs), len(want))
			return nil
		}
		for i, r := range c.recs {
			if r.time != times[i] && times[i] > 0 {
				t.Errorf("%s: packet %d at %d, gopacket says %d", name, i+1, r.time, times[i])
				break
			}
		}
		return nil
	})
	t.Logf("%d captures compared, %d refused", n, refused)
	if n == 0 {
		t.Error("no capture could be compared")
	}
}
