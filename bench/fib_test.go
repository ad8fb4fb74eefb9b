package bench

import (
	"slices"
	"strings"
	"testing"
)

func TestFIB(t *testing.T) {
	o := FIBOptions{Runs: 1, Routes: 20_000, Note: func(f string, a ...any) { t.Logf(f, a...) }}
	if testing.Short() {
		o.Filter = "prefixes"
	}
	r, err := FIB(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"ipv4/", "ipv6/"} {
		third := map[string]string{"ipv4/": "uniform", "ipv6/": "intervals"}[f]
		has(t, r, "lookups_per_second", f+"prefixes", f+"prefixes@bart", f+"prefixes/polluted", f+"prefixes/1k")
		if testing.Short() {
			continue
		}
		has(t, r, "lookups_per_second", f+"zipf", f+"zipf@bart", f+third, f+third+"/polluted@bart", f+"hosts", f+"hosts@bart")
		if f == "ipv4/" {
			has(t, r, "lookups_per_second", f+"compact/prefixes", f+"compact/hosts")
			has(t, r, "updates_per_second", f+"compact/updates")
		}
		has(t, r, "mebibytes", f+"memory", f+"memory/table", f+"memory/shadow", f+"memory@bart")
		has(t, r, "build_seconds", f+"build", f+"build/table", f+"build/table@bart")
		has(t, r, "updates_per_second", f+"updates", f+"updates@bart", f+"fib-updates")
	}
	if len(r.Data) != 4 || !strings.Contains(r.Data[0], "20000 routes") {
		t.Errorf("%q", r.Data)
	}
	if _, err := FIB(FIBOptions{Runs: 1, Routes: 1000, Filter: "no such case"}); err == nil {
		t.Error("a filter that fits nothing is no error")
	}
	// A filter selects a contender alone.
	if r, err = FIB(FIBOptions{Runs: 1, Routes: 1000, Filter: "zipf@bart"}); err != nil {
		t.Fatal(err)
	}
	for _, x := range r.Results {
		if !strings.HasSuffix(x.Name, "zipf@bart") {
			t.Errorf("the filter lets %s through", x.Name)
		}
	}
}

// TestFIBDisagree: a contender with a wrong answer fails the bench.
func TestFIBDisagree(t *testing.T) {
	defer func(was []contender[uint32]) { peers4 = was }(peers4)
	peers4 = append(slices.Clone(peers4), contender[uint32]{peer: "wrong", make: func(n int) (fibTable[uint32], error) {
		b, err := newBart4(n)
		return wrong{b}, err
	}})
	_, err := FIB(FIBOptions{Runs: 1, Routes: 1000, Filter: "ipv4/prefixes"})
	if err == nil || !strings.Contains(err.Error(), "ipv4/table@wrong") {
		t.Errorf("%v", err)
	}
}

type wrong struct{ fibTable[uint32] }

func (w wrong) Find(dst []uint32, out []uint16) {
	w.fibTable.Find(dst, out)
	out[len(out)/2]++
}
