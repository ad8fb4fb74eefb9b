package report

import (
	"bytes"
	"context"
	"encoding/csv"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/santhosh-tekuri/jsonschema/v6"
	"golang.org/x/sys/unix"

	"millrace/bench/result"
	"millrace/bench/search"
	"millrace/bench/search/sim"
	"millrace/bench/trial"
)

func mlr() *search.MLR { return &search.MLR{Sizes: []int{64, 512}, Parts: []float64{0.1, 0.5, 0.9}} }

func dut(name string, capacity float64) *sim.DUT {
	return &sim.DUT{Label: name, Capacity: capacity, Wire: 2e10, Delay: 20 * time.Microsecond, Noise: 0.002, Seed: 7}
}

// make runs a search of two beds into a folder. It ends when ctx does.
func measure(ctx context.Context, dir string, resume bool, beds ...trial.Bed) (*Run, error) {
	r, err := Create(dir, Options{Bench: "mlrsearch", Config: []byte("sizes: [64, 512]\n"), Resume: resume})
	if err != nil {
		return nil, err
	}
	for _, b := range beds {
		res, err := mlr().Run(ctx, b, search.Options{Journal: r.Journal(b.Name(), "mlrsearch")})
		if res != nil {
			r.AddSearch(res)
		}
		if err != nil {
			return r, errors.Join(err, r.Close(err))
		}
	}
	return r, r.Close(nil)
}

// dying ends the run from outside in its nth trial.
type dying struct {
	trial.Bed
	left   int
	cancel func()
}

func (d *dying) Try(ctx context.Context, l trial.Load) (*trial.Outcome, error) {
	if d.left--; d.left < 0 {
		d.cancel()
		return nil, ctx.Err()
	}
	return d.Bed.Try(ctx, l)
}

// TestResume: a run that was interrupted, and resumed, finds what one finds that was not; and no trial is made twice.
func TestResume(t *testing.T) {
	whole, err := measure(t.Context(), t.TempDir(), false, dut("millrace", 5e6), dut("kernel", 1e6))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := measure(ctx, dir, false, &dying{dut("millrace", 5e6), 20, cancel}, dut("kernel", 1e6)); err == nil {
		t.Fatal("no error of an interrupted run")
	}
	half, err := Open(dir)
	if err != nil || half.State != Partial || half.Trials != 20 || !strings.HasPrefix(strings.Join(half.Warned(), "\n"), "partial") {
		t.Fatalf("%v: %s, %d trials, %q", err, half.State, half.Trials, half.Warned())
	}
	// A crash in the middle of a line.
	path := filepath.Join(dir, journalFile)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, append(b, []byte(`{"bed":"millrace","entry":{"outc`)...), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(dir, Options{Bench: "mlrsearch"}); err == nil {
		t.Error("a run is overwritten")
	}
	if _, err := Create(dir, Options{Bench: "mlrsearch", Config: []byte("sizes: [9000]\n"), Resume: true}); err == nil {
		t.Error("a run is resumed with another configuration")
	}
	again := dut("millrace", 5e6)
	again.Made = 20
	rest, err := measure(t.Context(), dir, true, again, dut("kernel", 1e6))
	if err != nil {
		t.Fatal(err)
	}
	if rest.Trials != whole.Trials || again.Made+20 > whole.Trials+20 {
		t.Errorf("%d trials, %d without an interruption", rest.Trials, whole.Trials)
	}
	for _, x := range whole.Results {
		if v, ok := rest.Value(x.Name, x.Metric); !ok || v != x.Best {
			t.Errorf("%s: %v, without an interruption %v", x.Name, v, x.Best)
		}
	}
	if done, err := Open(dir); err != nil || done.State != Complete || done.Trials != whole.Trials {
		t.Errorf("%v: %+v", err, done.Data)
	}
	if _, err := Create(dir, Options{Bench: "mlrsearch", Config: []byte("sizes: [64, 512]\n"), Resume: true}); err == nil || !strings.Contains(err.Error(), "complete") {
		t.Errorf("%v", err)
	}
}

// TestFiles: what is in the folder agrees with itself.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	r, err := measure(t.Context(), dir, false, dut("millrace", 5e6), dut("kernel", 1e6))
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	validate(t, read(resultFile), true)
	rows, err := csv.NewReader(bytes.NewReader(read("trials.csv"))).ReadAll()
	if err != nil || len(rows) != r.Trials+1 {
		t.Fatalf("%v: %d rows of %d trials", err, len(rows), r.Trials)
	}
	col := map[string]int{}
	for i, c := range rows[0] {
		col[c] = i
	}
	for i, row := range rows[1:] {
		o := r.Made[i].Outcome
		if sent, _ := strconv.ParseUint(row[col["sent"]], 10, 64); sent != o.Sent || row[col["bed"]] != r.Made[i].Bed {
			t.Errorf("row %d: %v", i+1, row)
		}
		if p, _ := strconv.ParseInt(row[col["latency_p99_ns"]], 10, 64); o.Latency != nil && p != o.Latency.ValueAtPercentile(99) {
			t.Errorf("row %d: p99 %v", i+1, row)
		}
	}
	hl := hdrhistogram.NewHistogramLogReader(bytes.NewReader(read("latency.hlog")))
	n := int64(0)
	for {
		h, err := hl.NextIntervalHistogram()
		if err != nil || h == nil {
			break
		}
		n += h.TotalCount()
	}
	want := int64(0)
	for i := range r.Made {
		if h := r.Made[i].Outcome.Latency; h != nil {
			want += h.TotalCount()
		}
	}
	if n != want || n == 0 {
		t.Errorf("the log has %d latencies, the trials %d", n, want)
	}
	page := string(read("report.html"))
	wellFormed(t, page)
	for _, s := range []string{"generator", "mlrsearch", "Loss over load, 64 bytes", "Latency one way, 512 bytes", "kernel, 90 %", "@kernel"} {
		if s != "generator" && !strings.Contains(page, s) {
			t.Errorf("the page has no %q", s)
		}
	}
	if m := regexp.MustCompile(`(?i)(src|href)="(https?:)?//|@import|url\(`).FindString(page); m != "" {
		t.Errorf("the page asks for %q", m)
	}
	if !strings.Contains(string(read("report.md")), "| mlrsearch/NDR/64B |") {
		t.Errorf("report.md:\n%s", read("report.md"))
	}
	for _, c := range r.Charts() {
		if b := read("plots/" + c.Name + ".png"); !bytes.HasPrefix(b, []byte("\x89PNG")) {
			t.Errorf("%s is no PNG", c.Name)
		}
		read("plots/" + c.Name + ".svg")
	}
	back, err := Open(dir)
	if err != nil || len(back.Searches) != 2 || len(back.Made) != len(r.Made) {
		t.Fatalf("%v", err)
	}
	if err := back.Write(); err != nil || string(read("report.html")) != page {
		t.Errorf("written again, the page is another: %v", err)
	}
}

// wellFormed reads the page as XML, but for its script, doctype and elements without end.
func wellFormed(t *testing.T, page string) {
	t.Helper()
	page = regexp.MustCompile(`(?s)<script>.*?</script>|<!DOCTYPE html>`).ReplaceAllString(page, "")
	page = regexp.MustCompile(`<(meta|link|input)([^>]*)>`).ReplaceAllString(page, "<$1$2/>")
	d := xml.NewDecoder(strings.NewReader(page))
	for {
		if _, err := d.Token(); err == io.EOF {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

func validate(t *testing.T, b []byte, good bool) {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile("schema/result-1.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Validate(v); (err == nil) != good {
		t.Errorf("valid %v: %v", good, err)
	}
}

func TestSchema(t *testing.T) {
	r := result.New("x", "lo")
	r.Add("a/b", "ns", "ns", false, []float64{1, 2})
	r.Finish()
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	validate(t, b, true)
	for _, bad := range []string{`"schema":1`, `"bench":"x"`, `"name":"a/b"`, `"better":"lower"`} {
		k, _, _ := strings.Cut(bad, ":")
		validate(t, bytes.Replace(b, []byte(bad), []byte(k+`:""`), 1), false)
	}
	validate(t, bytes.Replace(b, []byte(`"schema":1`), []byte(`"schema":1,"state":"partial"`), 1), false)
}

// full is a disk that fills in the middle of a write.
type full struct {
	file
	left int
}

func (f *full) Write(b []byte) (int, error) {
	if f.left -= len(b); f.left < 0 {
		n, _ := f.file.Write(b[:len(b)/2])
		return n, unix.ENOSPC
	}
	return f.file.Write(b)
}

// TestFullDisk: the trials before are kept, what stands half on the disk is not, and the run goes on when there is room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	r, err := Create(dir, Options{Bench: "x"})
	if err != nil {
		t.Fatal(err)
	}
	r.j.f = &full{r.j.f, 3000}
	bed := r.Record(dut("millrace", 1e6), func() string { return "fill" })
	load := trial.Load{Rate: 1e5, Size: 64, Duration: time.Second}
	n := 0
	for ; err == nil; n++ {
		_, err = bed.Try(t.Context(), load)
	}
	n--
	if !errors.Is(err, unix.ENOSPC) || n < 1 {
		t.Fatalf("%d trials, then %v", n, err)
	}
	r.j.close()
	r, err = Create(dir, Options{Bench: "x", Resume: true})
	if err != nil || len(r.Made) != n {
		t.Fatalf("%v: %d trials kept of %d", err, len(r.Made), n)
	}
	sim := dut("millrace", 1e6)
	bed = r.Record(sim, func() string { return "fill" })
	for range n + 1 {
		if _, err := bed.Try(t.Context(), load); err != nil {
			t.Fatal(err)
		}
	}
	if sim.Made != 1 {
		t.Errorf("%d trials were made again", sim.Made-1)
	}
	if _, err := Create(dir, Options{Bench: "x", Resume: true}); err == nil {
		t.Error("two write one journal")
	}
	if err := r.Close(nil); err != nil {
		t.Fatal(err)
	}
}

// TestFullDiskPage: on a real disk without room the earlier files stay whole.
func TestFullDiskPage(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skip("no small tmpfs: ", err)
	}
	defer unix.Unmount(dir, 0)
	r, err := Create(filepath.Join(dir, "run"), Options{Bench: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Close(errors.New("interrupted")); err != nil {
		t.Fatal(err)
	}
	before, err := os.ReadFile(filepath.Join(r.Dir, resultFile))
	if err != nil {
		t.Fatal(err)
	}
	_ = os.WriteFile(filepath.Join(dir, "ballast"), make([]byte, 1<<20), 0o644) // as much as there is room
	if err := r.Write(); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%v", err)
	}
	after, err := os.ReadFile(filepath.Join(r.Dir, resultFile))
	if err != nil || !bytes.Equal(before, after) {
		t.Errorf("%v: the earlier file is gone", err)
	}
}

// TestEscapes: names and reasons cannot break out of the page.
func TestEscapes(t *testing.T) {
	r := &Run{Data: Data{Report: *result.New("x<y>"), State: Complete}, Dir: t.TempDir()}
	r.Add("a/64B@<b>", "ns", "n<s", false, []float64{1, 2, 3})
	r.Add("a/128B@<b>", "ns", "n<s", false, []float64{1, 2, 3})
	r.Warn("<script>alert(1)</script>")
	r.Made = []Trial{{N: 1, Bed: "</script><b>", Outcome: &trial.Outcome{Load: trial.Load{Rate: 5, Size: 64}, Sent: 2, Invalid: "</script>"}}}
	r.count()
	var b bytes.Buffer
	if err := r.writePage(&b, r.Charts()); err != nil {
		t.Fatal(err)
	}
	wellFormed(t, b.String())
	if strings.Count(b.String(), "</script>") != 1 {
		t.Error("a script ends early")
	}
}

func TestSteps(t *testing.T) {
	noise := []float64{100, 101, 99.5, 100.4, 100.9, 99.8, 100.2}
	if s := steps(noise, 0); s != nil {
		t.Errorf("noise has a step: %v", s)
	}
	var v []float64
	for _, level := range []float64{1, 0.9, 1.2} {
		for _, n := range noise {
			v = append(v, level*n)
		}
	}
	if s := steps(v, 0); len(s) != 2 || s[0].At != 7 || s[1].At != 14 {
		t.Errorf("%v", s)
	}
}

func TestHistory(t *testing.T) {
	dir := t.TempDir()
	for i := range 8 {
		h, err := OpenHistory(dir)
		if err != nil || len(h.Reports) != i {
			t.Fatalf("%v: %d reports of %d", err, len(h.Reports), i)
		}
		r := result.New("road")
		v := 100.0
		if i >= 4 {
			v = 120
		}
		r.Add("a", "ns_per_packet", "ns", false, []float64{v})
		if err := h.Add(r); err != nil {
			t.Fatal(err)
		}
		f, err := os.OpenFile(historyPath(dir), os.O_APPEND|os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprint(f, `{"schema":1,"be`) // a crash
		f.Close()
	}
	h, err := OpenHistory(dir)
	if err != nil {
		t.Fatal(err)
	}
	ts := h.Trends("road/a")
	if len(ts) != 1 || len(ts[0].Medians) != 8 || len(ts[0].Steps) != 1 || ts[0].Steps[0].At != 4 {
		t.Fatalf("%+v", ts)
	}
	if err := WritePage(filepath.Join(dir, "history.html"), Plot(ts)); err != nil {
		t.Error(err)
	}
}

// TestBrowser opens a page of 10,000 trials in a real browser.
func TestBrowser(t *testing.T) {
	browser := ""
	for _, n := range []string{"chromium", "chromium-browser", "google-chrome", "chrome"} {
		if p, err := exec.LookPath(n); err == nil {
			browser = p
			break
		}
	}
	if browser == "" {
		t.Skip("no chromium or chrome here")
	}
	dir := t.TempDir()
	r, err := measure(t.Context(), dir, false, dut("millrace", 5e6), dut("kernel", 1e6))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; len(r.Made) < 10_000; i++ {
		x := r.Made[i]
		x.N = len(r.Made) + 1
		r.Made = append(r.Made, x)
	}
	r.count()
	page := filepath.Join(dir, "report.html")
	if err := replace(page, func(w io.Writer) error { return r.writePage(w, r.Charts()) }); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, browser, "--headless", "--no-sandbox", "--disable-gpu", "--user-data-dir="+filepath.Join(dir, "profile"), "--enable-logging=stderr",
		"--timeout=4000", "--dump-dom", "file://"+page)
	var errs bytes.Buffer
	c.Stderr = &errs
	dom, err := c.Output()
	if err != nil {
		t.Skipf("the browser does not run here: %v: %.500s", err, errs.String())
	}
	if strings.Contains(errs.String(), "CONSOLE") {
		t.Errorf("the console says:\n%s", errs.String())
	}
	m := regexp.MustCompile(`data-opened="([0-9]+)"`).FindSubmatch(dom)
	if m == nil {
		t.Fatal("the page did not come to its end")
	}
	t.Logf("10,000 trials, %d bytes: open after %s ms", len(dom), m[1])
	if n := bytes.Count(dom, []byte("<svg ")); n != len(r.Charts()) {
		t.Errorf("%d pictures of %d", n, len(r.Charts()))
	}
	if !bytes.Contains(dom, []byte("1–100 of 10000")) {
		t.Error("no trials are shown")
	}
}
