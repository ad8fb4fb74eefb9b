package result

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// report has a case of Millrace and a peer's with values around levels.
func report(cpu string, own, peer float64) *Report {
	r := &Report{Schema: 1, Bench: "x", Machine: Machine{CPU: cpu, Cores: 2, TSCGHz: 2, Kernel: "6.1"}}
	var a, b []float64
	for _, d := range []float64{1, 1.002, 0.998, 1.001, 0.999, 1.003, 1} {
		a, b = append(a, own*d), append(b, peer*d)
	}
	r.Add("a/b", "ns_per_packet", "ns", false, a)
	r.Add("a/b@kernel", "ns_per_packet", "ns", false, b)
	r.Add("a/rate", "packets_per_second", "packets/s", true, []float64{1e9 / own, 1e9 / own, 1e9 / own, 1e9 / own})
	r.Add("a/few", "ns_per_packet", "ns", false, []float64{own, own})
	return r
}

func verdicts(c *Comparison) map[string]string {
	m := map[string]string{}
	for _, x := range c.Changes {
		m[x.Name] = x.Verdict
	}
	return m
}

func TestCompare(t *testing.T) {
	one := func(r *Report) []*Report { return []*Report{r} }
	for _, tc := range []struct {
		name      string
		base, now *Report
		o         CompareOptions
		want      map[string]string
	}{
		{"same", report("A", 100, 300), report("A", 100.1, 300), CompareOptions{Threshold: 0.02},
			map[string]string{"a/b": Same, "a/b@kernel": Same, "a/rate": Same, "a/few": Unsure}},
		{"slower", report("A", 100, 300), report("A", 110, 300), CompareOptions{Threshold: 0.02},
			map[string]string{"a/b": Worse, "a/b@kernel": Same, "a/rate": Worse, "a/few": Unsure}},
		{"faster", report("A", 100, 300), report("A", 90, 300), CompareOptions{Threshold: 0.02},
			map[string]string{"a/b": Better, "a/b@kernel": Same, "a/rate": Better, "a/few": Unsure}},
		{"below the threshold", report("A", 100, 300), report("A", 110, 300), CompareOptions{Threshold: 0.2},
			map[string]string{"a/b": Same, "a/b@kernel": Same, "a/rate": Same, "a/few": Unsure}},
		// Twice as fast a machine: only the ratio counts, and it fell.
		{"other machine", report("A", 100, 300), report("B", 50, 100), CompareOptions{Threshold: 0.02},
			map[string]string{"a/b": Worse}},
		// The machine slowed down for both.
		{"relative", report("A", 100, 300), report("A", 150, 450), CompareOptions{Threshold: 0.02, Relative: true},
			map[string]string{"a/b": Same}},
	} {
		c, err := Compare(one(tc.base), one(tc.now), tc.o)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		if got := verdicts(c); fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
		worse := 0
		for _, v := range tc.want {
			if v == Worse {
				worse++
			}
		}
		if len(c.Regressions()) != worse {
			t.Errorf("%s: regressions %v", tc.name, c.Regressions())
		}
		var text, md, js bytes.Buffer
		if err := errors.Join(c.WriteText(&text), c.WriteMarkdown(&md), c.WriteJSON(&js)); err != nil {
			t.Error(err)
		}
		var back Comparison
		if err := json.Unmarshal(js.Bytes(), &back); err != nil || len(back.Changes) != len(tc.want) {
			t.Errorf("%v: %s", err, js.String())
		}
		if n := strings.Count(md.String(), "\n| "); n != len(tc.want)+1 {
			t.Errorf("%d rows of Markdown:\n%s", n, md.String())
		}
		if tc.name == "other machine" && !strings.Contains(text.String(), "different machines") {
			t.Errorf("no word of different machines:\n%s", text.String())
		}
	}
}

func TestCompareRefuses(t *testing.T) {
	a := report("A", 100, 300)
	lone := &Report{Schema: 1, Bench: "x", Machine: Machine{CPU: "B"}}
	lone.Add("a/b", "ns_per_packet", "ns", false, []float64{1, 1, 1, 1})
	if _, err := Compare([]*Report{a}, []*Report{lone}, CompareOptions{}); err == nil || !strings.Contains(err.Error(), "different machines") {
		t.Errorf("absolute numbers of different machines: %v", err)
	}
	other := report("A", 1, 1)
	other.Bench = "y"
	if _, err := Compare([]*Report{a}, []*Report{other}, CompareOptions{}); err == nil {
		t.Error("different benches compare")
	}
	if _, err := Compare([]*Report{a}, []*Report{a}, CompareOptions{Confidence: 99}); err == nil {
		t.Error("a confidence of 99")
	}
	changed := report("A", 100, 300)
	changed.Machine.Kernel = "6.2"
	c, err := Compare([]*Report{a}, []*Report{changed}, CompareOptions{})
	if err != nil || !slices.Contains(c.Notes, "the machine changed: kernel: 6.2, was 6.1") {
		t.Errorf("%v %+v", err, c)
	}
}

func TestTurns(t *testing.T) {
	var order []string
	var notes []string
	job := func(name string, fail int) *Job {
		n := 0
		return &Job{Name: name, Measure: func() (float64, error) {
			order = append(order, name)
			if n++; n == fail {
				return 0, errors.New("broke")
			}
			if name == "a" && n == 4 {
				return 50, nil // the third that counts
			}
			return 10, nil
		}}
	}
	a, b := job("a", 0), job("b", 0)
	turns := Turns{Rounds: 6, WarmUp: true, Note: func(f string, x ...any) { notes = append(notes, fmt.Sprintf(f, x...)) }}
	if err := turns.Run(t.Context(), []*Job{a, b}); err != nil {
		t.Fatal(err)
	}
	if strings.Join(order, "") != strings.Repeat("ab", 7) || len(a.Values) != 6 || len(b.Values) != 6 {
		t.Errorf("%v %v %v", order, a.Values, b.Values)
	}
	if !slices.ContainsFunc(notes, func(s string) bool { return strings.HasPrefix(s, "round 3") && strings.Contains(s, "a +400 %") }) {
		t.Errorf("notes: %q", notes)
	}
	if err := turns.Run(t.Context(), []*Job{job("c", 2)}); err == nil || !strings.HasPrefix(err.Error(), "c: ") {
		t.Errorf("%v", err)
	}
	left := ""
	turns.Leave = func(j *Job, err error) { left = j.Name }
	d := job("d", 0)
	if err := turns.Run(t.Context(), []*Job{job("c", 2), d}); err != nil || left != "c" || len(d.Values) != 6 {
		t.Errorf("%v %q %v", err, left, d.Values)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := turns.Run(ctx, []*Job{d}); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestMachine: what is read, and that nothing private is.
func TestMachine(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/cpuinfo": "model name\t: Some CPU\nmicrocode\t: 0x1f\nphysical id\t: 0\nflags\t\t: fpu hypervisor\n",
		"proc/cmdline": "BOOT_IMAGE=/vmlinuz root=UUID=secret ip=192.0.2.1::host1 isolcpus=2-3 nohz_full=2-3 mitigations=off -- --token secret isolcpus=9\n",
		"proc/meminfo": "MemTotal:       16384000 kB\n",
		"sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance\n",
		"sys/devices/system/cpu/cpufreq/policy1/scaling_governor": "powersave\n",
		"sys/devices/system/cpu/isolated":                         "2-3\n",
		"sys/devices/system/cpu/nohz_full":                        "(null)\n",
		"sys/kernel/mm/transparent_hugepage/enabled":              "always [madvise] never\n",
		"sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages":   "128\n",
		"sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "100\n",
		"etc/machine-id": "0123456789abcdef0123456789abcdef\n",
	} {
		p := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(p), 0o755), os.WriteFile(p, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	var m Machine
	m.facts(root)
	if m.CPU != "Some CPU" || m.Microcode != "0x1f" || !m.Virtual || m.Governor != "performance,powersave" || m.NoHZFull != "" ||
		m.THP != "madvise" || m.MemoryMiB != 16000 || !slices.Equal(m.HugePages, []string{"2048 kB: 128, 100 free"}) {
		t.Errorf("%+v", m)
	}
	if !slices.Equal(m.Cmdline, []string{"isolcpus=2-3", "nohz_full=2-3", "mitigations=off"}) {
		t.Errorf("command line: %q", m.Cmdline)
	}
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	for _, private := range []string{"secret", "192.0.2.1", "host1", "0123456789abcdef"} {
		if bytes.Contains(b, []byte(private)) {
			t.Errorf("%q leaks: %s", private, b)
		}
	}
	if len(m.ID) != 12 {
		t.Errorf("id %q", m.ID)
	}
	m.Cores = 2
	m.During = During{Seconds: 10, LoadStart: 3, StealPercent: 4, OthersPercent: 30}
	if w := m.Warnings(); len(w) != 4 {
		t.Errorf("warnings: %q", w)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	here := ThisMachine("lo", "../../etc", "no-such-port")
	if len(here.NICs) != 1 || here.NICs[0].MTU == 0 {
		t.Errorf("%+v", here.NICs)
	}
	b, _ = json.Marshal(here)
	if len(host) > 4 && bytes.Contains(b, []byte(host)) {
		t.Errorf("the host's name leaks: %s", b)
	}
}

func TestCPUTimes(t *testing.T) {
	c := readCPUTimes("cpu  100 100 200 1000 0 0 0 50 30 0\ncpu0 1 1\n")
	if c.user != 2 || c.steal != 0.5 || c.all != 14.5 {
		t.Errorf("%+v", c)
	}
	if c := readCPUTimes("nonsense"); c.all != 0 {
		t.Errorf("%+v", c)
	}
}
