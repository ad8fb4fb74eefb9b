package host

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// sequences finds the packet sequences of the TAHI conformance tests, beside the
// repository.
func sequences(t *testing.T) []sequence {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "..", "..", "shared", "data", "ipv6-sequences", "sequences.json"))
	if err != nil {
		t.Skip("the conformance sequences are not there: ", err)
	}
	var l []sequence
	if err := json.Unmarshal(b, &l); err != nil {
		t.Fatal(err)
	}
	return l
}

type sequence struct {
	Name  string
	Steps []struct {
		Cmd string
		T   any
		Arg *string
		Pkt *string
	}
}

// normal leaves out of an IPv6 packet what may differ: class and label, the hop limit
// where nothing depends on it, ICMPv6's checksum (which follows from the rest).
func normal(p []byte) []byte {
	p = bytes.Clone(p)
	if p[0]>>4 != 6 {
		return p
	}
	copy(p, []byte{0x60, 0, 0, 0})
	if p[6] != 58 {
		p[7] = 0
	} else if len(p) > 44 {
		switch p[40] {
		case 1, 2, 3, 4, 128, 129:
			p[7] = 0
		}
		p[42], p[43] = 0, 0
	}
	return p
}

func ticks(v any) int {
	switch v := v.(type) {
	case float64:
		return int(v)
	case string:
		n, _ := strconv.Atoi(v)
		return n
	}
	return 0
}

// unwanted is the ICMPv6 type that an N_CHECK names: "(char *)NS".
func unwanted(arg *string) byte {
	if arg == nil {
		return 0
	}
	name := strings.TrimSpace((*arg)[strings.LastIndex(*arg, ")")+1:])
	return map[string]byte{"NS": 135, "NA": 136, "RS": 133, "ER": 129}[name]
}

// TestSequences replays injected packets and waits for the ones that must, or must not,
// follow: with the patience that a Linux host needs, which passes them all.
func TestSequences(t *testing.T) {
	const tick = 20 // milliseconds
	for _, s := range sequences(t) {
		t.Run(s.Name, func(t *testing.T) {
			ra := false
			for _, x := range s.Steps {
				if (x.Cmd == "INJECT" || x.Cmd == "CHECK") && x.Pkt == nil || x.Cmd == "REBOOT" || x.Cmd == "CHECK_V6REQUEST" {
					t.Skip("not for a replay")
				}
				if x.Cmd == "INJECT" {
					b, _ := hex.DecodeString(*x.Pkt)
					ra = ra || len(b) > 55 && b[20] == 58 && b[54] == 134
				}
			}
			if ra {
				t.Skip("for hosts that take router advertisements")
			}
			r := newRig(t, Config{})
			r.pass(3000, nil)
			r.take()
			for k, x := range s.Steps {
				var b []byte
				if x.Pkt != nil {
					b, _ = hex.DecodeString(*x.Pkt)
				}
				switch x.Cmd {
				case "CLEANUP":
					return
				case "INJECT":
					r.inject(1, b)
				case "WAIT":
					r.pass(min(ticks(x.T)*tick, 1000), nil)
				case "DUMP":
					r.take()
				case "CHECK":
					want := normal(b[14:])
					ms := max(250, ticks(x.T)*tick)
					if want[6] == 58 && want[40] == 135 {
						ms += 1200
					}
					seen := func() bool {
						for j, p := range r.out {
							if bytes.Equal(normal(p[14:]), want) {
								if !bytes.Equal(p[:14], b[:14]) {
									t.Fatalf("step %d: Ethernet header %x, want %x", k, p[:14], b[:14])
								}
								r.out = r.out[j+1:]
								return true
							}
						}
						return false
					}
					got := false
					r.pass(ms, func() bool { got = got || seen(); return got })
					if !got && !seen() {
						t.Fatalf("step %d: %x was not sent but %x", k, want, r.out)
					}
				case "N_CHECK":
					r.pass(120, nil)
					typ := unwanted(x.Arg)
					if typ == 0 {
						t.Fatalf("step %d: unknown %q", k, *x.Arg)
					}
					for _, p := range r.out {
						if p[20] == 58 && p[54] == typ {
							t.Fatalf("step %d: %x was sent", k, p)
						}
					}
				}
			}
		})
	}
}
