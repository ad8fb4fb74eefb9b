package pipeline

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"millrace/pipeline/trace"
)

// TestTrace: a packet's way is told in words, and a dropped packet's says why.
func TestTrace(t *testing.T) {
	b := newExitBed(t)
	b.neighbour(2, "198.51.100.7", exitNext)
	all, err := trace.NewFilter("")
	if err != nil {
		t.Fatal(err)
	}
	var got []trace.Packet
	tr := trace.NewTracer(trace.TraceOptions{Filter: all, Count: 4}, func(p trace.Packet) { got = append(got, p) })
	b.solo.AddHook(tr)
	b.send(exit4("192.0.2.5", "10.1.1.1", 64, nil, 10))
	b.receive(1, 1, exitNext)
	b.send(exit4("192.0.2.5", "203.0.113.1", 64, nil, 10)) // no route: an ICMP error goes back
	b.receive(0, 1, exitPeer)
	b.send(exit6("2001:db8:1::5", "2001:db8:9::9", 64, 10)) // held
	b.receive(1, 0, exitNext)
	if len(got) != 4 {
		t.Fatalf("%d packets traced: %+v", len(got), got)
	}
	for i, want := range []struct{ fate, from, summary, last string }{
		{"sent", "near", "IP 192.0.2.5 > 10.1.1.1, ttl 64", "sent by"},
		{"dropped", "near", "IP 192.0.2.5 > 203.0.113.1", "told by ICMP: lookup/no-route"},
		{"sent", "icmp", "IP 192.0.2.1 > 192.0.2.5, ttl 65, ICMP DestinationUnreachable", "sent by"},
		{"held", "near", "IP6 2001:db8:1::5 > 2001:db8:9::9", "held by neighbour: lookup/unresolved"},
	} {
		p := got[i]
		last := p.Steps[len(p.Steps)-1]
		if p.Fate() != want.fate || p.From != want.from || !strings.Contains(p.Summary, want.summary) || !strings.Contains(last.Text, want.last) {
			t.Errorf("packet %d: %s from %s, %q, at last %q; want %+v", i, p.Fate(), p.From, p.Summary, last.Text, want)
		}
	}
	if why := got[1].Reason.Info().Doc; !strings.Contains(why, "No route") {
		t.Errorf("the reason: %q", why)
	}
	var stages []string
	for _, s := range got[0].Steps {
		stages = append(stages, s.Stage)
	}
	if s := strings.Join(stages, " "); s != "classify check4 lookup4+nexthop4 rewrite tx" {
		t.Errorf("stages: %s", s)
	}
}

// TestCaptureDrops: the file of drops holds each dropped packet with its reason as the comment.
func TestCaptureDrops(t *testing.T) {
	b := newExitBed(t)
	b.neighbour(2, "198.51.100.7", exitNext)
	all, _ := trace.NewFilter("")
	var file bytes.Buffer
	c, err := trace.NewCapture(trace.CaptureOptions{Filter: all, Drops: true}, &file)
	if err != nil {
		t.Fatal(err)
	}
	b.solo.AddHook(c)
	b.send(exit4("192.0.2.5", "10.1.1.1", 64, nil, 10))
	b.send(exit4("224.0.0.1", "10.1.1.1", 64, nil, 10))
	bad := exit4("192.0.2.5", "10.1.1.1", 64, nil, 33)
	bad[10] ^= 1
	b.send(bad)
	b.receive(1, 1, exitNext)
	c.Close()
	if c.Written.Load() != 2 || c.Missed.Load() != 0 {
		t.Fatalf("%d written, %d missed", c.Written.Load(), c.Missed.Load())
	}
	var lengths []int
	var comments []string
	for f := file.Bytes(); len(f) >= 12; {
		typ, n := binary.LittleEndian.Uint32(f), int(binary.LittleEndian.Uint32(f[4:]))
		if n < 12 || n%4 != 0 || n > len(f) || binary.LittleEndian.Uint32(f[n-4:]) != uint32(n) {
			t.Fatalf("block of type %#x has length %d", typ, n)
		}
		if typ == 6 {
			capLen := int(binary.LittleEndian.Uint32(f[20:]))
			lengths = append(lengths, capLen)
			opt := f[28+(capLen+3)/4*4:]
			if binary.LittleEndian.Uint16(opt) != 1 {
				t.Fatal("the packet has no comment")
			}
			comments = append(comments, string(opt[4:4+binary.LittleEndian.Uint16(opt[2:])]))
		}
		f = f[n:]
	}
	if len(lengths) != 2 || lengths[0] != 44 || lengths[1] != 67 {
		t.Errorf("lengths %v", lengths)
	}
	for i, want := range []string{"check4/martian-source: ", "check4/bad-checksum: "} {
		if i >= len(comments) || !strings.HasPrefix(comments[i], want) {
			t.Errorf("comments %q", comments)
		}
	}
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip("tshark is not installed: the file is not read by another program")
	}
	path := filepath.Join(t.TempDir(), "drops.pcapng")
	if err := os.WriteFile(path, file.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(tshark, "-r", path, "-T", "fields", "-e", "frame.comment", "-e", "ip.src").Output()
	if err != nil || !strings.Contains(string(out), "check4/martian-source") || !strings.Contains(string(out), "224.0.0.1") {
		t.Errorf("tshark: %v\n%s", err, out)
	}
}
