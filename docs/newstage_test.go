package docs

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestNewStage: what scripts/new-stage writes is gofmt'ed, and its test passes, without a file in
// the tree.
func TestNewStage(t *testing.T) {
	root, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	tmp := t.TempDir()
	c := exec.Command(filepath.Join(root, "scripts/new-stage"), "drop-self")
	c.Dir, c.Env = root, append(os.Environ(), "NEW_STAGE_ROOT="+tmp)
	out, err := c.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "\tdropself.Stage(),\n") {
		t.Fatalf("%v: %s", err, out)
	}
	dir := filepath.Join(tmp, "ip/dropself")
	if out, err := exec.Command("gofmt", "-l", dir).CombinedOutput(); err != nil || len(out) != 0 {
		t.Errorf("gofmt: %v: %s", err, out)
	}
	replace := map[string]string{}
	for _, f := range []string{"stage.go", "stage_test.go"} {
		replace[filepath.Join(root, "ip/dropself", f)] = filepath.Join(dir, f)
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	overlay := filepath.Join(tmp, "overlay.json")
	if err := os.WriteFile(overlay, b, 0o600); err != nil {
		t.Fatal(err)
	}
	// The package's directory is not there: no vet, and the test runs elsewhere.
	test := filepath.Join(tmp, "dropself.test")
	c = exec.Command("go", "test", "-c", "-vet=off", "-overlay", overlay, "-o", test, "millrace/ip/dropself")
	c.Dir = root
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command(test).CombinedOutput(); err != nil || string(out) != "PASS\n" {
		t.Errorf("%v: %s", err, out)
	}

	c = exec.Command(filepath.Join(root, "scripts/new-stage"), "drop-self")
	c.Dir, c.Env = root, append(os.Environ(), "NEW_STAGE_ROOT="+tmp)
	if out, err := c.CombinedOutput(); err == nil || !strings.Contains(string(out), "exists already") {
		t.Errorf("a second time: %v: %s", err, out)
	}
	for _, name := range []string{"Drop", "9x", "a_b", "x-"} {
		c := exec.Command(filepath.Join(root, "scripts/new-stage"), name)
		c.Dir, c.Env = root, append(os.Environ(), "NEW_STAGE_ROOT="+tmp)
		if out, err := c.CombinedOutput(); err == nil {
			t.Errorf("%s is taken for a name: %s", name, out)
		}
	}
}
