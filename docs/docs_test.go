// Package docs holds the documentation, and tests that keep it true: the examples run, what
// exists is described, links lead somewhere.
//
// # Examples
//
// A fenced block says behind its language what becomes of it:
//
//	```console lab     run as root, in a lab of client - router - server (package lab)
//	```console run     run everywhere, in an empty directory with the page's files
//	```console lab loose, run loose   numbers match other numbers there
//	```yaml NAME       a configuration, which must have no mistakes; the examples find it as NAME.
//	                   NAME.traffic.yaml is a traffic profile
//
// Lines that begin with a prompt (`$ `, `router$ `) are commands; what follows is what they print. In it,
// `...` stands for anything, also for any number of lines; numbers with a decimal point, clock times, MAC
// and link-local addresses match others of their kind; blanks match any number of
// blanks. A command that ends with `&` goes on until the end of its page, and
// `[exit 1]` is the exit code of one that fails. `go test ./docs -rewrite` writes
// what commands really print over what does not match.
package docs

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/bench/lab"
	"millrace/bench/traffic"
	"millrace/control/config"
)

var rewrite = flag.Bool("rewrite", false, "write what examples print, and generated tables, into the pages")

// page is a page with its fenced blocks.
type page struct {
	name   string // relative to the root of the tree
	lines  []string
	blocks []block
}

// block is a fenced block: lines from+1 to to-1 of its page are its body.
type block struct {
	lang, mark string
	from, to   int
}

// is reports whether the block is an example of a mark.
func (b block) is(mark string) bool {
	return b.lang == "console" && strings.TrimSuffix(b.mark, " loose") == mark
}

func (p *page) body(b block) []string { return p.lines[b.from+1 : b.to] }

func pages(t *testing.T) []*page {
	t.Helper()
	var names []string
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && strings.HasPrefix(d.Name(), ".") && d.Name() != ".." {
			return filepath.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			names = append(names, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	var all []*page
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		p := &page{name: strings.TrimPrefix(filepath.ToSlash(n), "../"), lines: strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")}
		open := -1
		for i, l := range p.lines {
			if !strings.HasPrefix(l, "```") {
				continue
			}
			if open < 0 {
				open = i
				continue
			}
			lang, mark, _ := strings.Cut(strings.TrimPrefix(p.lines[open], "```"), " ")
			p.blocks = append(p.blocks, block{lang, mark, open, i})
			open = -1
		}
		if open >= 0 {
			t.Errorf("%s:%d: a fenced block does not end", p.name, open+1)
		}
		all = append(all, p)
	}
	if len(all) < 10 {
		t.Fatalf("only %d pages found", len(all))
	}
	return all
}

// command is one command of an example with what it prints.
type command struct {
	host, text string
	at, end    int // its first line in the page, and the line behind its output
	want       []string
	loose      bool
}

var prompt = regexp.MustCompile(`^(?:(client|router|server))?\$ (.*)$`)

func (p *page) commands(b block) (l []command) {
	for i := b.from + 1; i < b.to; i++ {
		m := prompt.FindStringSubmatch(p.lines[i])
		if m == nil {
			if len(l) != 0 {
				c := &l[len(l)-1]
				c.want, c.end = append(c.want, p.lines[i]), i+1
			}
			continue
		}
		c := command{host: m[1], text: m[2], at: i, loose: strings.HasSuffix(b.mark, " loose")}
		for strings.HasSuffix(c.text, `\`) && i+1 < b.to {
			i++
			c.text = strings.TrimSuffix(c.text, `\`) + p.lines[i]
		}
		c.end = i + 1
		l = append(l, c)
	}
	return l
}

// binary builds the program once and returns a directory with it, as a script that adds the
// socket of the example.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "millrace-docs-")
	if err != nil {
		return "", err
	}
	real := filepath.Join(dir, "real")
	c := exec.Command("go", "build", "-o", real, "millrace/cmd/millrace")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go build: %w: %s", err, out)
	}
	script := "#!/bin/sh\nexec " + real + " --socket \"$DOCS_SOCKET\" \"$@\"\n"
	return dir, os.WriteFile(filepath.Join(dir, "millrace"), []byte(script), 0o755)
})

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if dir, _ := binary(); dir != "" {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

// runner runs a page's examples.
type runner struct {
	t    *testing.T
	p    *page
	dir  string
	env  []string
	line *lab.Line // nil for examples that run everywhere
	back []*exec.Cmd
	logs map[*exec.Cmd]*output
	news map[int][]string // what commands printed, by the line of the command; with -rewrite
}

// output is what a command in the background prints; it may be read meanwhile.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(b)
}

func (o *output) lines() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return split(o.b.String())
}

func split(s string) []string {
	s = strings.TrimRight(s, "\n")
	if s == "" {
		return nil
	}
	return strings.Split(s, "\n")
}

func newRunner(t *testing.T, p *page) *runner {
	bin, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, b := range p.blocks {
		if b.lang == "yaml" && b.mark != "" {
			if err := os.WriteFile(filepath.Join(dir, b.mark), []byte(strings.Join(p.body(b), "\n")+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	return &runner{t: t, p: p, dir: dir, logs: map[*exec.Cmd]*output{}, news: map[int][]string{},
		env: append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH")+":/usr/sbin:/sbin", "DOCS_SOCKET="+filepath.Join(dir, "sock"), "LC_ALL=C")}
}

func (r *runner) cmd(ctx context.Context, c command, text string) *exec.Cmd {
	var x *exec.Cmd
	switch c.host {
	case "client":
		x = r.line.Client.Command(ctx, "sh", "-c", text)
	case "router":
		x = r.line.Router.Command(ctx, "sh", "-c", text)
	case "server":
		x = r.line.Server.Command(ctx, "sh", "-c", text)
	default:
		x = exec.CommandContext(ctx, "sh", "-c", text)
	}
	x.Dir, x.Env = r.dir, r.env
	return x
}

// patience is how long a running router may take to show what an example shows.
const patience = 20 * time.Second

func (r *runner) run(c command) {
	r.t.Helper()
	if text, ok := strings.CutSuffix(c.text, " &"); ok {
		r.start(c, text)
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	var got []string
	// What asks a running router is asked again until it has come so far.
	again := strings.HasPrefix(c.text, "millrace show ") && r.line != nil
	for end := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		out, err := r.cmd(ctx, c, c.text).CombinedOutput()
		got = split(string(out))
		if x, ok := err.(*exec.ExitError); ok {
			got = append(got, fmt.Sprintf("[exit %d]", x.ExitCode()))
		} else if err != nil {
			r.t.Fatalf("%s:%d: %s: %v", r.p.name, c.at+1, c.text, err)
		}
		if match(c.want, got, c.loose) {
			return
		}
		if !again || *rewrite && len(c.want) == 0 || time.Now().After(end) { // what is not yet so is not written over what will be
			break
		}
	}
	r.differs(c, got)
}

func (r *runner) differs(c command, got []string) {
	r.t.Helper()
	if *rewrite {
		r.news[c.at] = got
		return
	}
	r.t.Errorf("%s:%d: %s\nprints\n\t%s\nand the page says\n\t%s", r.p.name, c.at+1, c.text, strings.Join(got, "\n\t"), strings.Join(c.want, "\n\t"))
}

// start starts a command in the background; a router is waited for.
func (r *runner) start(c command, text string) {
	r.t.Helper()
	x := r.cmd(context.Background(), c, "exec "+text)
	o := &output{}
	x.Stdout, x.Stderr = o, o
	h := map[string]*lab.Host{"client": r.line.Client, "router": r.line.Router, "server": r.line.Server}[c.host]
	if err := h.Start(x); err != nil {
		r.t.Fatal(err)
	}
	router := strings.HasPrefix(text, "millrace run")
	ready := func() bool {
		return !router || r.cmd(context.Background(), command{host: c.host}, "millrace show status").Run() == nil
	}
	end := time.Now().Add(patience)
	for !ready() || !match(c.want, o.lines(), c.loose) {
		if time.Now().After(end) {
			if !ready() {
				r.t.Fatalf("%s:%d: %s does not forward:\n%s", r.p.name, c.at+1, c.text, strings.Join(o.lines(), "\n"))
			}
			r.differs(c, o.lines())
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (r *runner) finish() {
	if len(r.news) == 0 {
		return
	}
	var out []string
	skip := -1
	ends := map[int]int{}
	for _, b := range r.p.blocks {
		for _, c := range r.p.commands(b) {
			ends[c.at] = c.end
		}
	}
	for i, l := range r.p.lines {
		if i < skip {
			continue
		}
		out = append(out, l)
		if got, ok := r.news[i]; ok {
			out = append(out, got...)
			skip = ends[i]
		}
	}
	r.p.write(r.t, out)
}

func (p *page) write(t *testing.T, lines []string) {
	if err := os.WriteFile(filepath.Join("..", p.name), []byte(strings.Join(lines, "\n")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (p *page) has(mark string) bool {
	for _, b := range p.blocks {
		if b.is(mark) {
			return true
		}
	}
	return false
}

func TestExamples(t *testing.T) {
	n := 0
	for _, p := range pages(t) {
		if !p.has("run") {
			continue
		}
		n++
		t.Run(p.name, func(t *testing.T) {
			r := newRunner(t, p)
			for _, b := range p.blocks {
				if b.is("run") {
					for _, c := range p.commands(b) {
						r.run(c)
					}
				}
			}
			r.finish()
		})
	}
	if n == 0 {
		t.Error("no examples found")
	}
}

var program = regexp.MustCompile(`/usr/lib/\S+`)

// missing is a program that the page's examples in the lab name by a path where there is none.
func (p *page) missing() string {
	for _, b := range p.blocks {
		if !b.is("lab") {
			continue
		}
		for _, x := range program.FindAllString(strings.Join(p.body(b), "\n"), -1) {
			if _, err := os.Stat(x); err != nil {
				return x
			}
		}
	}
	return ""
}

func TestLabExamples(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: the examples run in network namespaces")
	}
	if testing.Short() {
		t.Skip("-short: each page's lab takes seconds")
	}
	n := 0
	for _, p := range pages(t) {
		if !p.has("lab") {
			continue
		}
		n++
		t.Run(p.name, func(t *testing.T) {
			if x := p.missing(); x != "" {
				t.Skipf("needs %s, which is not installed", x)
			}
			line, err := lab.NewLine()
			if err != nil {
				t.Skip(err)
			}
			defer line.Close()
			r := newRunner(t, p)
			r.line = line
			for _, b := range p.blocks {
				if b.is("lab") {
					for _, c := range p.commands(b) {
						if c.host == "" {
							t.Fatalf("%s:%d: a command of a lab needs a host: `router$ `", p.name, c.at+1)
						}
						r.run(c)
					}
				}
			}
			r.finish()
		})
	}
	if n == 0 {
		t.Error("no examples found")
	}
}

// TestConfigurations: every configuration on a page is one without mistakes.
func TestConfigurations(t *testing.T) {
	n := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang != "yaml" {
				continue
			}
			n++
			if strings.HasSuffix(b.mark, ".traffic.yaml") {
				_, err := traffic.Parse(p.name, []byte(strings.Join(p.body(b), "\n")), traffic.Env{Dir: "../bench/demo"})
				if bad := strings.HasPrefix(b.mark, "bad"); bad == (err == nil) {
					t.Errorf("%s, block at line %d: %s: %v", p.name, b.from+1, b.mark, err)
				} else if bad && !strings.Contains(strings.Join(p.lines, "\n"), strings.TrimPrefix(err.Error(), p.name+":")) {
					t.Errorf("%s, block at line %d: the page does not say %v", p.name, b.from+1, err)
				}
				continue
			}
			if _, err := config.Parse(p.name, []byte(strings.Join(p.body(b), "\n"))); err != nil && !strings.HasPrefix(b.mark, "bad") {
				t.Errorf("%s, block at line %d:\n%v", p.name, b.from+1, err)
			} else if err == nil && strings.HasPrefix(b.mark, "bad") {
				t.Errorf("%s, block at line %d: %s has no mistakes", p.name, b.from+1, b.mark)
			}
		}
	}
	if n < 5 {
		t.Errorf("only %d configurations found", n)
	}
}

// kinds of words of which one stands for any other.
var kinds = []struct{ is, as *regexp.Regexp }{
	{regexp.MustCompile(`^\d\d:\d\d:\d\d\.\d+$`), nil},
	{regexp.MustCompile(`^([0-9a-f]{2}:){5}[0-9a-f]{2}$`), nil},
	{regexp.MustCompile(`^fe80::[0-9a-f:]+(/\d+)?$`), nil},
	{regexp.MustCompile(`^[0-9]+\.[0-9]+$`), nil},
}

// number is one, with its unit, that stands for any other where numbers do not matter.
var number = regexp.MustCompile(`(^|[ (])(?:-|[0-9]+(?:\.[0-9]+)?(?:[kMG%]|[0-9hms]*[hms])?)([ ,);]|$)`)

var word = regexp.MustCompile(`[0-9a-f:/.]*[0-9a-f]`)

// pattern is the expression that a line of a page stands for.
func pattern(line string, loose bool) *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`^`)
	for i, part := range strings.Split(strings.Join(strings.Fields(line), " "), "...") {
		if i > 0 {
			b.WriteString(`.*`)
		}
		if loose {
			part = number.ReplaceAllString(part, "${1}\x00${2}")
			part = number.ReplaceAllString(part, "${1}\x00${2}")
		}
		at := 0
		for _, m := range word.FindAllStringIndex(part, -1) {
			b.WriteString(regexp.QuoteMeta(part[at:m[0]]))
			w := regexp.QuoteMeta(part[m[0]:m[1]])
			for _, k := range kinds {
				if k.is.MatchString(part[m[0]:m[1]]) {
					w = strings.Trim(k.is.String(), "^$")
				}
			}
			b.WriteString(w)
			at = m[1]
		}
		b.WriteString(regexp.QuoteMeta(part[at:]))
	}
	b.WriteString(`$`)
	if loose {
		return regexp.MustCompile(strings.ReplaceAll(b.String(), "\x00", `(-|[0-9][0-9.]*[a-zA-Z%]*([0-9]+[a-z])*)`))
	}
	return regexp.MustCompile(b.String())
}

// match reports whether a command prints what the page says.
func match(want, got []string, loose bool) bool {
	for len(want) > 0 {
		if strings.TrimSpace(want[0]) == "..." {
			for k := range len(got) + 1 {
				if match(want[1:], got[k:], loose) {
					return true
				}
			}
			return false
		}
		if strings.TrimSpace(want[0]) == "" && (len(got) == 0 || strings.TrimSpace(got[0]) != "") {
			want = want[1:] // blank lines only set examples apart
			continue
		}
		if len(got) == 0 || !pattern(want[0], loose).MatchString(strings.Join(strings.Fields(got[0]), " ")) {
			return false
		}
		want, got = want[1:], got[1:]
	}
	for len(got) > 0 && strings.TrimSpace(got[0]) == "" {
		got = got[1:]
	}
	return len(got) == 0
}

func TestMatch(t *testing.T) {
	for _, c := range []struct {
		want, got string
		ok, loose bool
	}{
		{"a b", "a   b", true, false},
		{"a b", "a c", false, false},
		{"a ... d", "a b c d", true, false},
		{"a\n...\nd", "a\nb\nc\nd", true, false},
		{"a\n...", "a", true, false},
		{"...", "", true, false},
		{"a", "a\nb", false, false},
		{"time 0.5 ms", "time 12.25 ms", true, false},
		{"3 received", "4 received", false, false},
		{"198.51.100.2", "198.51.100.3", false, false},
		{"lladdr 02:00:00:00:00:01", "lladdr aa:bb:cc:dd:ee:ff", true, false},
		{"10.9", "10x9", false, false},
		{"fe80::1/64 x", "fe80::1234:5/64 x", true, false},
		{"a\n\nb", "a\nb", true, false},
		{"a.b (c)", "a.b (c)", true, false},
		{"a.b", "axb", false, false},
		{"sent 3 (0.5%) 1.20k up 3s r0 -", "sent 412 (12.0%) 7 up 1m4s r0 9", true, true},
		{"sent 3 on r0", "sent 4 on r1", false, true},
		{"198.51.100.2 3", "198.51.100.3 3", false, true},
	} {
		if got := match(split(c.want), split(c.got), c.loose); got != c.ok {
			t.Errorf("%q, printed %q: %v", c.want, c.got, got)
		}
	}
}
