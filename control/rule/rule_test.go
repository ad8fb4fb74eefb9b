package rule

import (
	"strings"
	"testing"
)

func vrf(name string) (uint32, bool) { return 10, name == "blue" }

// TestParse: words, and how the rule is told.
func TestParse(t *testing.T) {
	for in, want := range map[string]string{
		"from 10.0.0.0/8 lookup 100":                         "0: from 10.0.0.0/8 lookup 100",
		"from 10.0.0.0/8 to 192.0.2.1 pref 5 table main":     "5: from 10.0.0.0/8 to 192.0.2.1 lookup main",
		"iif eth0 fwmark 0x1 table 5":                        "0: from all fwmark 0x1 iif eth0 lookup 5",
		"not fwmark 0x10/0xf0 priority 7 lookup blue":        "7: not from all fwmark 0x10/0xf0 lookup 10",
		"ipproto tcp dport 80-443 sport 1024-65535 lookup 7": "0: from all ipproto tcp sport 1024-65535 dport 80-443 lookup 7",
		"ipproto ospf prohibit":                              "0: from all ipproto ospf prohibit",
		"-4 tos 0x10 lookup 3":                               "0: from all tos 0x10 lookup 3",
		"from 2001:db8::/32 dsfield 0xb8 blackhole":          "0: from 2001:db8::/32 tos 0xb8 blackhole",
		"dscp 46 unreachable":                                "0: from all dscp 46 unreachable",
		"l3mdev pref 1000":                                   "1000: from all lookup [l3mdev-table]",
		"order 10 to 10.0.0.0/8 goto 20":                     "10: from all to 10.0.0.0/8 goto 20",
		"nop":                                                "0: from all nop",
		"lookup main suppress_prefixlength 0":                "0: from all lookup main suppress_prefixlength 0",
		"from all to all dev eth1 lookup default":            "0: from all iif eth1 lookup default",
		"-6 from ::/0 lookup local":                          "0: from all lookup local",
	} {
		r, _, err := Parse(in, vrf)
		if err != nil || r.String() != want {
			t.Errorf("%s: %q, %v, want %q", in, r, err, want)
		}
	}
	if r, _, _ := Parse("from 0.0.0.0/0 lookup 5", nil); r.Family != 4 || r.From.IsValid() {
		t.Errorf("family of 0.0.0.0/0: %+v", r)
	}
	if _, set, _ := Parse("pref 9 lookup 5", nil); !set {
		t.Error("pref is set and not said")
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                     "does nothing",
		"from 10.0.0.0/8":                      "does nothing",
		"from 10.0.0.1/8 lookup 5":             "write 10.0.0.0/8",
		"from lookup 5":                        "neither a prefix",
		"from 10.0.0.0/8 to 2001:db8::/32 nop": "one is IPv4",
		"-6 from 10.0.0.0/8 nop":               "-6: 10.0.0.0/8 is IPv4",
		"nop -6":                               "in front",
		"fro 10.0.0.0/8 lookup 5":              `"fro" is none of`,
		"lookup red":                           "name of a VRF",
		"lookup 0":                             "number from 1",
		"lookup 5 lookup 6":                    "twice",
		"lookup 5 prohibit":                    "something else already",
		"lookup":                               "missing behind",
		"fwmark 0x10/0x1 lookup 5":             "never holds",
		"fwmark 0x1ffffffff lookup 5":          "whole number",
		"tos 0x11 lookup 5":                    "ECN",
		"-4 tos 0xb8 lookup 5":                 "dscp 46",
		"tos 8 dscp 2 lookup 5":                "same bits",
		"dscp 64 lookup 5":                     "between 0 and 63",
		"ipproto foo lookup 5":                 "whole number between 0 and 255",
		"ipproto icmp dport 5 lookup 5":        "no ports",
		"dport 9-5 lookup 5":                   "write 5-9",
		"dport 0 lookup 5":                     "neither a port",
		"uidrange 0-5 lookup 5":                "sockets",
		"oif eth0 lookup 5":                    "before the lookup",
		"goto 5":                               "pref of its own",
		"pref 5 goto 5":                        "later",
		"pref 0 lookup 5":                      "own addresses",
		"prohibit suppress_prefixlength 3":     "look up a table",
		"lookup 5 suppress_prefixlength 200":   "that long",
		"from ::ffff:10.0.0.0/104 lookup 5":    "as such",
	} {
		_, _, err := Parse(in, vrf)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want something with %q", in, err, want)
		}
	}
}

// FuzzParse: what is parsed and told parses to the same.
func FuzzParse(f *testing.F) {
	f.Add("from 10.0.0.0/8 to 192.0.2.1 pref 5 table main")
	f.Add("not fwmark 0x10/0xf0 ipproto tcp dport 80-443 goto 9 pref 3")
	f.Fuzz(func(t *testing.T, s string) {
		r, set, err := Parse(s, vrf)
		if err != nil || r.L3mdev {
			return
		}
		pref, text, _ := strings.Cut(r.String(), ": ")
		if set {
			text = "pref " + pref + " " + text
		}
		if r.Family != 0 {
			text = "-" + string('0'+r.Family) + " " + text
		}
		again, _, err := Parse(text, vrf)
		if err != nil || again != r {
			t.Errorf("%q is told as %q: %+v, %v", s, text, again, err)
		}
	})
}
