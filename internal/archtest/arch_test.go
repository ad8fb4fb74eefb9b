// Package archtest holds the rules of the tree as tests: which package may import
// which, what hot packages may not import, how large files may be.
package archtest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// levels gives each part of the tree its height, by the longest prefix of a package's path. A
// package imports only what stands lower, and what stands in the same directory
// of the top level at the same height.
var levels = map[string]int{
	"internal": 0,
	"packet":   1,
	// The contracts that everything meets through.
	"pmd": 2, "pipeline/graph": 3,
	// Drivers.
	"pmd/": 4,
	// Features: they meet through the stage contract, not through each other.
	"ip": 5, "fib": 5, "mpls": 5, "qos": 5, "netfilter": 5, "rdma": 5,
	"pipeline": 6, "pipeline/": 6,
	"control": 7,
	"bench":   8,
	"docs":    9,
	"cmd":     9,
}

// hotFunc marks a file that runs for every burst: it may not format, log, ask the runtime for the
// time or the system for anything.
var hotFunc = regexp.MustCompile(`(?m)^func \(.*\) (Run\(v \*graph\.Vector\)|Rx\(\w+ \[\]uint32\)|Tx\(\w+ \[\]uint32\))`)

var slow = []string{"fmt", "log", "os", "time", "go.uber.org/zap", "net/http"}

type pkg struct {
	ImportPath string
	Imports    []string
	GoFiles    []string
	Dir        string
}

func list(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Imports,GoFiles,Dir", "millrace/...").Output()
	if err != nil {
		t.Fatal("go list: ", err)
	}
	var l []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		l = append(l, p)
	}
	if len(l) < 10 {
		t.Fatalf("only %d packages found", len(l))
	}
	return l
}

// level is the height of a package.
func level(path string) int {
	best, at := -1, -1
	for l, h := range levels {
		dir := strings.TrimSuffix(l, "/")
		if path != dir && !strings.HasPrefix(path, dir+"/") || path == dir && l != dir {
			continue
		}
		if len(l) > best {
			best, at = len(l), h
		}
	}
	return at
}

func TestImportDirections(t *testing.T) {
	for _, p := range list(t) {
		path := strings.TrimPrefix(p.ImportPath, "millrace/")
		from := level(path)
		if from < 0 {
			t.Errorf("%s stands on no level of the tree: name it in levels", path)
			continue
		}
		for _, imp := range p.Imports {
			imp, ours := strings.CutPrefix(imp, "millrace/")
			if !ours {
				continue
			}
			if to := level(imp); to > from || to == from && top(imp) != top(path) {
				t.Errorf("%s imports %s, which stands above it or beside it", path, imp)
			}
		}
	}
}

func top(p string) string { return strings.SplitN(p, "/", 2)[0] }

func TestHotFilesImportNothingSlow(t *testing.T) {
	n := 0
	for _, p := range list(t) {
		for _, f := range p.GoFiles {
			b, err := os.ReadFile(filepath.Join(p.Dir, f))
			if err != nil {
				t.Fatal(err)
			}
			if !hotFunc.Match(b) {
				continue
			}
			n++
			for _, bad := range slow {
				if bytes.Contains(b, []byte("\t\""+bad+"\"\n")) {
					t.Errorf("%s/%s is on the packets' way and imports %s", strings.TrimPrefix(p.ImportPath, "millrace/"), f, bad)
				}
			}
		}
	}
	if n < 8 {
		t.Errorf("only %d files found on the packets' way: does the pattern still fit?", n)
	}
}

// TestFileSizes: a file beyond 700 lines wants to be two.
func TestFileSizes(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			if d != nil && d.IsDir() {
				return filepath.SkipDir
			}
			return err
		}
		if d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, ".pb.go") || strings.HasSuffix(path, ".connect.go") {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n := 0
		for s := bufio.NewScanner(f); s.Scan(); {
			n++
		}
		if n > 700 {
			t.Errorf("%s has %d lines", strings.TrimPrefix(path, root+"/"), n)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
