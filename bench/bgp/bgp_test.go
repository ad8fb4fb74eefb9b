package bgp

import (
	"compress/gzip"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe" // the size of a struct that C has too
)

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if strings.HasSuffix(name, ".gz") {
		z := gzip.NewWriter(f)
		defer z.Close()
		_, err = z.Write([]byte(text))
	} else {
		_, err = f.WriteString(text)
	}
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRead(t *testing.T) {
	want := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("10.0.0.0/8")}
	for _, name := range []string{"t.txt", "t.txt.gz"} {
		got, err := ReadTable(write(t, name, "# a table\n192.0.2.1/24\n\n10.0.0.0/8\n"))
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
	u, err := ReadUpdates(write(t, "u.txt", "A 192.0.2.0/24\nW 10.0.0.0/8\n"))
	if err != nil || !slices.Equal(u, []Update{{want[0], false}, {want[1], true}}) {
		t.Errorf("%v, %v", u, err)
	}
	for name, text := range map[string]string{"prefix": "192.0.2.0/24\n192.0.2.0/33\n", "kind": "A 192.0.2.0/24\nX 192.0.2.0/24\n"} {
		p := write(t, name, text)
		if _, err := ReadTable(p); err == nil || !strings.Contains(err.Error(), p+":") {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := ReadUpdates(p); err == nil || !strings.Contains(err.Error(), p+":") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadTable(write(t, "no.gz", "")); err != nil {
		t.Error(err)
	}
	if _, err := ReadTable(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a file that is not there is no error")
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	if _, err := Find(dir); err == nil {
		t.Error("an empty directory is no error")
	}
	for _, n := range []string{"v4.txt", "v4.txt.gz", "upd6.txt"} {
		if err := os.WriteFile(filepath.Join(dir, n), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	f, err := Find(dir)
	if want := (Files{V4: filepath.Join(dir, "v4.txt.gz"), Updates6: filepath.Join(dir, "upd6.txt")}); err != nil || f != want {
		t.Errorf("%+v, %v", f, err)
	}
}

// TestMake: made tables have the structure that lookups feel: as many routes as the Internet's, half of them
// inside others, most as long as allowed.
func TestMake(t *testing.T) {
	for _, c := range []struct {
		name       string
		t          []netip.Prefix
		n          int
		most       int
		deep, full [2]float64 // share of routes inside others, and of the longest
	}{
		{"IPv4", Make4(1 << 20), 1 << 20, 24, [2]float64{0.4, 0.6}, [2]float64{0.55, 0.75}},
		{"IPv6", Make6(1 << 18), 250_000, 48, [2]float64{0.4, 0.65}, [2]float64{0.4, 0.6}},
	} {
		var in []netip.Prefix
		deep, full := 0, 0
		for i, p := range c.t {
			if p != p.Masked() || p.Bits() > c.most || i > 0 && c.t[i-1].Compare(p) >= 0 {
				t.Fatalf("%s: %v behind %v", c.name, p, c.t[max(i-1, 0)])
			}
			for len(in) > 0 && !in[len(in)-1].Contains(p.Addr()) {
				in = in[:len(in)-1]
			}
			if len(in) > 0 {
				deep++
			}
			in = append(in, p)
			if p.Bits() == c.most {
				full++
			}
		}
		n := float64(len(c.t))
		if d := float64(deep) / n; d < c.deep[0] || d > c.deep[1] {
			t.Errorf("%s: %.2f of the routes are inside others", c.name, d)
		}
		if d := float64(full) / n; d < c.full[0] || d > c.full[1] {
			t.Errorf("%s: %.2f of the routes are /%d", c.name, d, c.most)
		}
		if len(c.t) < c.n {
			t.Errorf("%s: %d routes", c.name, len(c.t))
		}
		hosts := Hosts(c.t, 10_000)
		if len(hosts) != 10_000 || hosts[0].Bits() != hosts[0].Addr().BitLen() || hosts[0].Addr().Is4() != c.t[0].Addr().Is4() {
			t.Errorf("%s: %d hosts, the first %v", c.name, len(hosts), hosts[0])
		}
		u := MakeUpdates(c.t, 100_000)
		gone := 0
		for _, x := range u {
			if x.Withdraw {
				gone++
			}
		}
		if len(u) != 100_000 || gone < 1000 || gone > 6000 {
			t.Errorf("%s: %d updates, %d of them withdrawals", c.name, len(u), gone)
		}
	}
	if a, b := Make4(1000), Make4(1000); len(a) != 1000 || !slices.Equal(a, b) {
		t.Error("two tables of one size differ")
	}
}

func TestTraces(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, s := range []string{"0.0.0.0/0", "192.0.2.0/24", "192.0.2.7/32", "::/0", "2001:db8::/32", "2001:db8::/64", "2001:db8::/65", "2001:db8::7/128"} {
		p := netip.MustParsePrefix(s)
		for range 100 {
			if a := Inside(p, r); !p.Contains(a) {
				t.Errorf("%v is outside of %v", a, p)
			}
		}
		if a := Last(p); !p.Contains(a) || p.Contains(a.Next()) {
			t.Errorf("%v is not the last of %v", a, p)
		}
	}
	// Each of the intervals between the bounds is hit: below, inside and above the two prefixes, and between them.
	table := []netip.Prefix{netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("2001:db8::8/125")}
	next, hit := Intervals(table, r), map[string]int{}
	for range 1000 {
		switch a := next(); {
		case table[1].Contains(a):
			hit["longer"]++
		case table[0].Contains(a) && a.Less(table[1].Addr()):
			hit["before"]++
		case table[0].Contains(a):
			hit["behind"]++
		case a.Less(table[0].Addr()):
			hit["below"]++
		default:
			hit["above"]++
		}
	}
	for _, k := range []string{"longer", "before", "behind", "below", "above"} {
		if hit[k] < 100 {
			t.Errorf("intervals hit: %v", hit)
		}
	}
	z := Zipf(Make4(10_000), r)
	seen := map[netip.Addr]int{}
	for range 10_000 {
		seen[z()]++
	}
	if n := len(seen); n < 100 || n > 9000 {
		t.Errorf("%d of 10000 destinations differ", n)
	}
}

func TestRoutes(t *testing.T) {
	if unsafe.Sizeof(Route[uint32]{}) != 8 || unsafe.Sizeof(Route[[16]byte]{}) != 20 {
		t.Error("the memory of a route is not what C expects")
	}
	table := Make4(2000)
	seen := map[uint16]int{}
	for i, r := range Routes[uint32](table, 50) {
		if r.Prefix() != table[i] || r.Value < 1 || r.Value > 50 {
			t.Fatalf("%+v for %v", r, table[i])
		}
		seen[r.Value]++
	}
	if len(seen) != 50 {
		t.Errorf("%d of 50 values", len(seen))
	}
	p := netip.MustParsePrefix("2001:db8::/32")
	c := Changes[[16]byte]([]Update{{p, false}, {p, false}, {p, true}}, 500)
	if c[0].Value == c[1].Value || c[0].Value == 0 || c[2].Value != 0 || c[2].Prefix() != p {
		t.Errorf("%+v", c)
	}
}
