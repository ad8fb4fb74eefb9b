package result

import (
	"bytes"
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestReport(t *testing.T) {
	r := New("x")
	r.Add("a/b", "ns", "ns", false, []float64{3, 1, 2})
	r.Add("a/c", "pps", "packets/s", true, []float64{3e6, 1e6, 2e6})
	if v, ok := r.Value("a/b", "ns"); !ok || v != 1 || r.Results[0].Median != 2 {
		t.Errorf("%+v", r.Results)
	}
	if v, _ := r.Value("a/c", "pps"); v != 3e6 {
		t.Errorf("%+v", r.Results)
	}
	file := t.TempDir() + "/r.json"
	if err := r.WriteJSON(file); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b, &back); err != nil || back.Schema != 1 || len(back.Results) != 2 || back.Machine.Cores < 1 {
		t.Errorf("%v: %s", err, b)
	}
	var text bytes.Buffer
	if err := r.WriteText(&text); err != nil || !strings.Contains(text.String(), "3.00 M") {
		t.Errorf("%v: %s", err, text.String())
	}
}

func TestRatios(t *testing.T) {
	r := New("x")
	r.Add("a/b", "ops_per_second", "ops/s", true, []float64{300})
	r.Add("a/b@peer", "ops_per_second", "ops/s", true, []float64{100})
	r.Add("a/b", "ns", "ns", false, []float64{10})
	r.Add("a/b@peer", "ns", "ns", false, []float64{25})
	r.Add("a/c@peer", "ns", "ns", false, []float64{25})
	var want []float64
	for i := range r.Results {
		want = append(want, r.Ratio(&r.Results[i]))
	}
	if !slices.Equal(want, []float64{0, 3, 0, 2.5, 0}) {
		t.Errorf("%v", want)
	}
	var b bytes.Buffer
	if err := r.WriteText(&b); err != nil || !strings.Contains(b.String(), "3.00 x") || !strings.Contains(b.String(), "2.50 x") {
		t.Errorf("%v:\n%s", err, b.String())
	}
}
