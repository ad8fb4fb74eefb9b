package pipeline

import (
	"flag"
	"net/netip"
	"os"
	"testing"

	"millrace/ip/host"
)

var rewriteGolden = flag.Bool("rewrite", false, "write the golden files anew")

type noResolver struct{}

func (noResolver) Target(uint16, netip.Addr) (uint16, netip.Addr, bool) {
	return 0, netip.Addr{}, false
}
func (noResolver) Ask(uint16, netip.Addr) {}
func (noResolver) Generation() uint64     { return 0 }

// TestPath: the printed path is a file under review, so that a changed way through the
// router shows.
func TestPath(t *testing.T) {
	st := newStack(t, 128)
	defer st.close(t)
	got := st.options(noResolver{}, host.Config{}).Path.String()
	const file = "testdata/path.golden"
	if *rewriteGolden {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the road has changed; if it should, run `go test ./pipeline -run TestPath -rewrite`:\n%s", got)
	}
}
