package search_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/search"
	"millrace/bench/search/sim"
	"millrace/bench/trial"
)

func TestJournalFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "trials.jsonl")
	open := func() *search.File {
		t.Helper()
		j, err := search.OpenFile(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { j.Close() })
		return j
	}
	j := open()
	h := hdrhistogram.New(1, 1e6, 1)
	h.RecordValue(1234)
	h.RecordValue(5678)
	for i := range 3 {
		e := &search.Entry{Schema: search.Schema, Search: "x", Outcome: &trial.Outcome{Load: trial.Load{Rate: float64(i+1) / 3, Size: 64}, Sent: 2, Received: 2, Latency: h}}
		if err := j.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	j.Close()
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	// cut off anywhere, what is left are the whole lines, and the next trial follows them
	for cut := 0; cut < len(whole); cut += 3 {
		if err := os.WriteFile(path, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		j, err := search.OpenFile(path)
		if err != nil {
			t.Fatalf("cut at %d: %v", cut, err)
		}
		n := strings.Count(string(whole[:cut]), "\n")
		if len(j.Entries) != n {
			t.Fatalf("cut at %d: %d entries, want %d", cut, len(j.Entries), n)
		}
		for i := range n {
			e, err := j.Next(trial.Load{Rate: float64(i+1) / 3, Size: 64})
			if err != nil || e == nil || !e.Outcome.Latency.Equals(h) || e.Outcome.Sent != 2 {
				t.Fatalf("%+v %v", e, err)
			}
		}
		if e, err := j.Next(trial.Load{}); e != nil || err != nil {
			t.Fatal(e, err)
		}
		short := &search.Entry{Schema: search.Schema, Outcome: &trial.Outcome{}}
		if err := j.Add(short); err != nil {
			t.Fatal(err)
		}
		j.Close()
		if b, _ := os.ReadFile(path); !strings.HasSuffix(string(b), "}\n") || strings.Count(string(b), "\n") != n+1 || !strings.HasPrefix(string(b), string(whole[:strings.LastIndexByte(string(whole[:cut]), 10)+1])) {
			t.Fatalf("cut at %d:\n%s", cut, b)
		}
	}
	for text, want := range map[string]string{"{}\n": "line 1", "\nno\n": "line 2", `{"schema":99,"outcome":{}}` + "\n": "schema 99"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := search.OpenFile(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

// full is a journal on a full disk.
type full struct {
	search.Memory
	room int
}

var errFull = errors.New("no space left on device")

func (f *full) Add(e *search.Entry) error {
	if len(f.Entries) >= f.room {
		return errFull
	}
	return f.Memory.Add(e)
}

func TestDiskFull(t *testing.T) {
	f := &full{room: 10}
	m := &search.MLR{Sizes: []int{64}}
	res, err := m.Run(context.Background(), &sim.DUT{Wire: tenGig, Capacity: 5e6}, search.Options{Journal: f})
	if !errors.Is(err, errFull) || res.Trials != 10 || !strings.Contains(res.Partial, "no space") || len(res.MLR) != 1 {
		t.Fatalf("%v %+v", err, res)
	}
	f.Rewind()
	f.room = 1e6
	if res, err = m.Run(context.Background(), &sim.DUT{Wire: tenGig, Capacity: 5e6, Made: 10}, search.Options{Journal: f}); err != nil || !res.MLR[0].Goals[0].Regular {
		t.Fatalf("%v %+v", err, res)
	}
}

func TestProgress(t *testing.T) {
	d := &sim.DUT{Wire: tenGig, Capacity: 5e6}
	var before, after int
	var spent time.Duration
	_, err := (&search.MLR{Sizes: []int{64}}).Run(context.Background(), d, search.Options{Progress: func(e search.Event) {
		if e.Outcome == nil {
			before++
		} else {
			after++
			if e.Trials != after || e.Spent < spent || e.Outcome.Load != e.Load {
				t.Errorf("%+v", e)
			}
			spent = e.Spent
		}
		if e.Phase == "" || e.Size != 64 || e.Estimate.High == 0 || (e.Upper > 0 && e.Lower > e.Upper) {
			t.Errorf("%+v", e)
		}
	}})
	if err != nil || before != after || before != d.Made || spent.Round(time.Millisecond) != d.Clock.Round(time.Millisecond) {
		t.Errorf("%v: %d before, %d after, %d made; %v spent, %v by the clock", err, before, after, d.Made, spent, d.Clock)
	}
}
