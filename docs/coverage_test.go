package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"millrace/bench"
	"millrace/bench/demo"
	"millrace/control/cli"
	"millrace/control/config"
	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"

	_ "millrace/control/router" // every driver, every reason
)

// generated compares what stands on a page between two comments with what the code says:
//
//	<!-- generated: NAME -->
//	...
//	<!-- end -->
func generated(t *testing.T, file, name, text string) {
	t.Helper()
	path := filepath.Join("..", file)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	begin, end := "<!-- generated: "+name+" -->\n", "<!-- end -->"
	head, rest, ok := strings.Cut(string(b), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for %s", file, name)
	}
	text = "\n" + text + "\n"
	if old == text {
		return
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(head+begin+text+end+tail), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s: %s is not what the code says; `go test ./docs -rewrite` writes it:\n%s", file, name, text)
}

// reasons are those of the default road, and of the pipeline itself.
func reasons() []graph.ReasonInfo {
	var l []graph.ReasonInfo
	for _, r := range graph.Reasons() {
		if r.Name != "none" {
			l = append(l, r)
		}
	}
	return l
}

func TestReasons(t *testing.T) {
	var stages []string
	for _, r := range reasons() {
		if !slices.Contains(stages, r.Stage) {
			stages = append(stages, r.Stage)
		}
	}
	slices.Sort(stages)
	var b strings.Builder
	for i, st := range stages {
		if i > 0 {
			b.WriteString("\n")
		}
		fmt.Fprintf(&b, "### %s\n\n| reason | what becomes of the packet | meaning |\n|---|---|---|\n", st)
		var rows []string
		for _, r := range reasons() {
			if r.Stage == st {
				rows = append(rows, fmt.Sprintf("| `%s/%s` | %s | %s |\n", r.Stage, r.Name, fate(r), strings.ReplaceAll(r.Doc, "|", `\|`)))
			}
		}
		slices.Sort(rows)
		b.WriteString(strings.Join(rows, ""))
	}
	generated(t, "docs/reasons.md", "reasons", b.String())
}

func fate(r graph.ReasonInfo) string {
	s := r.Kind.String()
	if r.Kind == graph.Hold {
		s += ": " + r.To
	}
	if r.ICMP4.Owed {
		s += fmt.Sprintf(", ICMP %d/%d", r.ICMP4.Type, r.ICMP4.Code)
	}
	if r.ICMP6.Owed {
		s += fmt.Sprintf(", ICMPv6 %d/%d", r.ICMP6.Type, r.ICMP6.Code)
	}
	return s
}

// text is all pages in one.
func text(t *testing.T) string {
	var b strings.Builder
	for _, p := range pages(t) {
		b.WriteString(strings.Join(p.lines, "\n") + "\n")
	}
	return b.String()
}

func TestStagesAreDescribed(t *testing.T) {
	golden, err := os.ReadFile("../pipeline/testdata/path.golden")
	if err != nil {
		t.Fatal(err)
	}
	all, n := text(t), 0
	for _, m := range regexp.MustCompile(`(?m)^  ([a-z][a-z0-9+-]+) `).FindAllStringSubmatch(string(golden), -1) {
		n++
		for _, name := range strings.Split(m[1], "+") {
			if !strings.Contains(all, "`"+name+"`") && !strings.Contains(all, "`"+m[1]+"`") {
				t.Errorf("no page mentions the stage `%s`", name)
			}
		}
	}
	if n < 10 {
		t.Errorf("only %d stages found in path.golden", n)
	}
}

// keys are all keys of a configuration, as "ports.name".
func keys(x reflect.Type, prefix string) (l []string) {
	for x.Kind() == reflect.Slice || x.Kind() == reflect.Pointer {
		x = x.Elem()
	}
	if x.Kind() != reflect.Struct {
		return nil
	}
	for i := range x.NumField() {
		f := x.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if name == "" {
			continue
		}
		l = append(l, prefix+name)
		l = append(l, keys(f.Type, prefix+name+".")...)
	}
	return l
}

func TestConfigurationKeysAreDescribed(t *testing.T) {
	all := text(t)
	l := keys(reflect.TypeFor[config.Config](), "")
	if len(l) < 40 {
		t.Fatalf("only %d keys found: %v", len(l), l)
	}
	for _, k := range l {
		if !strings.Contains(all, "`"+k+"`") {
			t.Errorf("no page mentions the configuration key `%s`", k)
		}
	}
}

func TestCommandsAreDescribed(t *testing.T) {
	root := cli.New(cli.Options{Version: "test", Add: []func(*cobra.Command){bench.Add, demo.Add}})
	all, n := text(t), 0
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" || c.Name() == "completion" {
			return
		}
		n++
		if !strings.Contains(all, c.CommandPath()) {
			t.Errorf("no page mentions `%s`", c.CommandPath())
		}
		for _, s := range c.Commands() {
			walk(s)
		}
	}
	walk(root)
	if n < 25 {
		t.Errorf("only %d commands found", n)
	}
}

// TestDriverKeys: which driver takes which key, by asking the configuration's checks and the driver.
func TestDriverKeys(t *testing.T) {
	examples := []struct{ key, value string }{
		{"queues", "2"}, {"ring", "512"}, {"mtu", "1400"}, {"mac", "02:00:5e:00:00:01"},
		{"mode", "generic"}, {"socket", "/run/x.sock"}, {"role", "client"}, {"id", "1"}, {"secret", "s"},
		{"read", "x.pcap"}, {"write", "y.pcap"}, {"loop", "2"}, {"rate", "100"},
	}
	need := map[string]string{"memif": ", socket: /run/y.sock", "mem": ", socket: w", "pcap": ", read: z.pcap"}
	var b strings.Builder
	b.WriteString("| driver | what it is | `host` if left out | own keys |\n|---|---|---|---|\n")
	for _, d := range pmd.Drivers() {
		var own []string
		for _, e := range examples[4:] {
			more := need[d.Name]
			if strings.Contains(more, e.key+":") {
				more = ""
			}
			y := fmt.Sprintf("ports: [{name: p0, driver: %s, %s: %q%s}]", d.Name, e.key, e.value, more)
			if e.key == "id" || e.key == "loop" || e.key == "rate" {
				y = strings.ReplaceAll(y, `"`, "")
			}
			if _, err := config.Parse("x", []byte(y)); err == nil {
				own = append(own, "`"+e.key+"`")
			}
		}
		p := config.Port{Driver: d.Name}
		h := p.HostFor(d.Name)
		if d.Name == "tap" {
			h = "builtin"
		}
		k := strings.Join(own, ", ")
		if k == "" {
			k = "none"
		}
		fmt.Fprintf(&b, "| `%s` | %s | `%s` | %s |\n", d.Name, d.Doc, h, k)
	}
	generated(t, "docs/ports.md", "drivers", b.String())
}

// TestCapabilities opens a port of each driver and says what it can.
func TestCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: three drivers are for kernel interfaces")
	}
	a, c := testnet.New(t), testnet.New(t)
	testnet.Veth(t, a, "v0", c, "v1")
	pool, err := packet.NewPool("caps", 8192)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	var b strings.Builder
	b.WriteString("| driver | mode | longest chain | longest frame | kernel interface beside it | host's packets kept away by a filter |\n|---|---|---|---|---|---|\n")
	dir := t.TempDir()
	for _, d := range pmd.Drivers() {
		x := pmd.Config{Name: "p0", Driver: d.Name, Pool: pool}
		switch d.Name {
		case "afxdp", "afpacket":
			x.Name = "v0"
			if d.Name == "afxdp" {
				x.Mode = "native"
			}
		case "mem":
			x.Socket = "docs"
		case "memif":
			x.Socket, x.Role = filepath.Join(dir, "s"), "server"
		case "pcap":
			x.Write = filepath.Join(dir, "w.pcapng")
		}
		var p pmd.Port
		a.Do(func() { p, err = d.Open(x) })
		if err != nil {
			t.Skipf("%s: %v: the table cannot be checked here", d.Name, err)
		}
		k := p.Caps()
		fmt.Fprintf(&b, "| `%s` | %s | %d | %d | %s | %s |\n", d.Name, k.Mode, k.Segments, k.MaxFrame, yes(k.Kernel != 0), yes(k.Filtered))
		if err := p.Close(); err != nil {
			t.Errorf("%s: %v", d.Name, err)
		}
	}
	generated(t, "docs/ports.md", "capabilities", b.String())
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

var link = regexp.MustCompile(`\]\(([^)#\s]+)(#[^)\s]*)?\)`)

func TestLinks(t *testing.T) {
	n := 0
	for _, p := range pages(t) {
		code := false
		for i, l := range p.lines {
			if strings.HasPrefix(l, "```") {
				code = !code
			}
			if code {
				continue
			}
			for _, m := range link.FindAllStringSubmatch(l, -1) {
				if strings.Contains(m[1], "://") || strings.HasPrefix(m[1], "mailto:") {
					continue
				}
				n++
				if _, err := os.Stat(filepath.Join("..", filepath.Dir(p.name), m[1])); err != nil {
					t.Errorf("%s:%d: nothing is at %s", p.name, i+1, m[1])
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d links found", n)
	}
}

// sources are the files of the tree that a page names in backticks, such as `pipeline/path.go`.
var sources = regexp.MustCompile("`([a-z0-9_/.-]+/[a-z0-9_.-]+\\.(?:go|s|golden|yaml|proto|service))`")

func TestFilesNamedExist(t *testing.T) {
	for _, p := range pages(t) {
		for i, l := range p.lines {
			for _, m := range sources.FindAllStringSubmatch(l, -1) {
				if strings.HasPrefix(m[1], "/") {
					continue
				}
				if _, err := os.Stat(filepath.Join("..", m[1])); err != nil {
					t.Errorf("%s:%d: there is no file %s", p.name, i+1, m[1])
				}
			}
		}
	}
}
