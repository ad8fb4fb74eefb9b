package v1_test

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The committed Go is what generate.sh makes of the schema.
func TestGenerated(t *testing.T) {
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Skip("no protoc (apt install protobuf-compiler)")
	}
	if testing.Short() {
		t.Skip("builds two Go tools")
	}
	dir := t.TempDir()
	if out, err := exec.Command("./generate.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	names, err := filepath.Glob("*.proto")
	if err != nil || len(names) == 0 {
		t.Fatal("no schema: ", err)
	}
	for i := range 2 * len(names) {
		name := strings.TrimSuffix(names[i/2], ".proto") + []string{".pb.go", ".connect.go"}[i%2]
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(withoutVersions(got), withoutVersions(want)) {
			t.Errorf("%s is not what the schema gives: run `go generate ./control/api/v1`", name)
		}
	}
}

// withoutVersions leaves out the comment that names the tools' versions.
func withoutVersions(b []byte) []byte {
	var out [][]byte
	for _, l := range bytes.Split(b, []byte("\n")) {
		if !bytes.HasPrefix(l, []byte("// \tprotoc")) {
			out = append(out, l)
		}
	}
	return bytes.Join(out, []byte("\n"))
}
