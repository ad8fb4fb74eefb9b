package classbench

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"millrace/netfilter/match"
)

// slow is the first rule that a packet fits.
func slow(rs []Rule, p *Packet) uint32 {
	if i := slices.IndexFunc(rs, func(r Rule) bool { return r.Matches(p) }); i >= 0 {
		return uint32(i)
	}
	return match.None
}

func TestMake(t *testing.T) {
	for _, kind := range Kinds {
		for _, six := range []bool{false, true} {
			rs := Make(kind, 1000, six, 1)
			if len(rs) < 990 {
				t.Errorf("%s, IPv6 %v: %d rules", kind, six, len(rs))
			}
			if !slices.Equal(rs, Make(kind, 1000, six, 1)) || slices.Equal(rs, Make(kind, 1000, six, 2)) {
				t.Errorf("%s: rules must follow from the seed", kind)
			}
			if rs[0].Src.Addr().Is4() == six {
				t.Errorf("%s, IPv6 %v: %v", kind, six, rs[0].Src)
			}
			checkPackets(t, kind, rs)
		}
	}
}

// checkPackets: packets within rules hit some rule, and match's rules say the same as these.
func checkPackets(t *testing.T, name string, rs []Rule) {
	t.Helper()
	ps := Packets(rs, 600, 0, rand.New(rand.NewPCG(1, 2)))
	rules, hit := Rules(rs), map[uint32]bool{}
	for i := range ps {
		want := slow(rs, &ps[i])
		if want == match.None {
			t.Fatalf("%s: %v is within no rule", name, ps[i])
		}
		hit[want] = true
		v := ps[i].values()
		if got := match.Linear(rules, v[:], 0); got != want {
			t.Fatalf("%s: %v fits rule %d, as match has them %d", name, ps[i], want, got)
		}
	}
	if len(hit) < 100 {
		t.Errorf("%s: only %d rules are hit", name, len(hit))
	}
	s := Schema(rs)
	for i, k := range Keys(s, ps) {
		for pos := range min(match.BatchSize, len(ps)-i*match.BatchSize) {
			for f, v := range ps[i*match.BatchSize+pos].values() {
				if got := k.Value(s, f, uint8(pos)); got != v {
					t.Fatalf("%s: %s of packet %d is %v, want %v", name, s[f].Name, i*match.BatchSize+pos, got, v)
				}
			}
		}
	}
}

func TestFirewall(t *testing.T) {
	rs := Firewall()
	if len(rs) != 250 {
		t.Errorf("%d rules", len(rs))
	}
	checkPackets(t, "firewall", rs)
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "rules")
	write := func(s string) {
		if err := os.WriteFile(path, []byte(s), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("# two\n@10.1.2.3/8\t192.0.2.0/24\t0 : 65535\t80 : 80\t0x06/0xFF\t0x0000/0x0200\t\n\n" +
		"@10.0.0.0/8\t192.0.2.0/24\t0 : 65535\t80 : 80\t0x06/0xFF\t0x1000/0x1000\t\n@2001:db8::/32 ::/0 1 : 2 0 : 65535 0x00/0x00\n")
	rs, err := Read(path)
	if err != nil || len(rs) != 2 {
		t.Fatal(rs, err)
	}
	if r := rs[0]; r.Src.String() != "10.0.0.0/8" || r.Dst.String() != "192.0.2.0/24" || r.Sport != anyPort || r.Dport != (Ports{80, 80}) || r.Proto != 6 || r.AnyProto {
		t.Errorf("%+v", r)
	}
	if r := rs[1]; !r.AnyProto || r.Sport != (Ports{1, 2}) {
		t.Errorf("%+v", r)
	}
	for _, bad := range []string{"", "@10.0.0.0/8 192.0.2.0/24 0 : 65535 80 : 80", "@10.0.0.0/8 ::/0 0 : 1 0 : 1 0x06/0xFF", "@10.0.0.0/8 1.0.0.0/8 2 : 1 0 : 1 0x06/0xFF",
		"@10.0.0.0/8 1.0.0.0/8 0 : 65536 0 : 1 0x06/0xFF", "@10.0.0.0/8 1.0.0.0/8 0 : 1 0 : 1 0x06/0x0F", "@10.0.0/8 1.0.0.0/8 0 : 1 0 : 1 0x06/0xFF"} {
		write(bad)
		if rs, err := Read(path); err == nil {
			t.Errorf("%q: %v", bad, rs)
		} else if bad != "" && !strings.Contains(err.Error(), ":1:") {
			t.Errorf("%q: %v names no line", bad, err)
		}
	}
}
