package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// shared is a path of the data beside the repository, which may be absent.
func shared(t *testing.T, path ...string) string {
	t.Helper()
	p, err := filepath.Abs(filepath.Join(append([]string{"..", "..", "..", "shared"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(p); err != nil {
		t.Skipf("%s is not there", filepath.Join(path...))
	}
	return p
}

// TestReplay sends all kinds of bad and odd packets at the router.
func TestReplay(t *testing.T) {
	long(t)
	need(t, "python3")
	script := shared(t, "peers", "replay.py")
	for _, driver := range []string{"afxdp", "afpacket"} {
		t.Run(driver, func(t *testing.T) {
			l := newLine(t)
			// Odd packets go somewhere.
			ip(t, l.router, "route add default via "+server4, "route add default via "+server6)
			r := runYAML(t, l.router, "ports: [{name: r0, driver: "+driver+"}, {name: r1, driver: "+driver+"}]\n")
			out, code := command(t, l.client, "python3", script, "c0", r.port("r0").Mac, routerC4, "30000")
			t.Logf("%s", out)
			if code != 0 {
				t.Errorf("%d times the router was dead", code)
			}
			pings(t, l.client, server4)
			pings(t, l.client, server6)
			r.noLeaks()
			drops := r.do("show", "drops")
			if strings.Count(drops, "\n") < 5 {
				t.Errorf("hardly a reason to drop anything:\n%s", drops)
			}
		})
	}
}
