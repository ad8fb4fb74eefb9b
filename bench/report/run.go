// Package report keeps runs of the rig: a folder each, with results, trials, latencies, configuration and a page that
// shows them all.
//
//	result.json    results, searches, the machine's facts, warnings: see schema/result-1.schema.json
//	journal.jsonl  every trial when it ended, in the order they were made; all else is made from it
//	trials.csv     the trials as a table
//	latency.hlog   histograms of latency, as HdrHistogram's tools read them
//	config.yaml    what the run was asked for; profile.yaml: what the generator sent
//	report.html    the page: one file, which needs nothing else
//	report.md      its tables
//	plots/         its charts, as SVG and PNG
//
// # Life of a run
//
// Create makes the folder and its journal, which one process has open at a time. Each trial is appended and on the disk
// before the next begins. Close writes all other files, each by way of a second one that takes its place, so that a full
// disk leaves what was there. A run that was killed has no other files than the journal: Open reads it as what it is, partial.
// A run that is Created again with Resume gives the trials of the journal back instead of making them.
package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/result"
	"millrace/bench/search"
	"millrace/bench/trial"
)

// Data is result.json: a report of a bench, and where it was a rig's run, what was searched and tried.
type Data struct {
	result.Report
	State    string           `json:"state"`             // Complete or Partial
	Partial  string           `json:"partial,omitempty"` // why it is
	Searches []*search.Result `json:"searches,omitempty"`
	Trials   int              `json:"trials"`
	Invalid  int              `json:"invalid_trials"`
}

// Values of Data.State.
const (
	Complete = "complete"
	Partial  = "partial" // interrupted; what it holds was measured
)

// Trial is one trial of a run.
type Trial struct {
	N       int            `json:"trial"` // from 1
	Bed     string         `json:"bed"`
	Search  string         `json:"search,omitempty"`
	Phase   string         `json:"phase,omitempty"` // of the search
	Outcome *trial.Outcome `json:"outcome"`         // with its Latency
}

// Run is a folder, open for writing or only read.
type Run struct {
	Data
	Dir    string
	Made   []Trial // and replayed, in their order
	j      *journal
	own    string         // the bed whose results are Millrace's own
	replay map[string]int // by bed and search: how many of Made have been given back
	old    int            // trials of an earlier run
}

// Options of a run.
type Options struct {
	Bench   string
	Ports   []string // the kernel's interfaces that packets go by
	Config  []byte   // what the run was asked for, in YAML
	Profile []byte   // of the generator
	Resume  bool     // go on with a run that was interrupted
}

const (
	ConfigFile  = "config.yaml" // what the run was asked for
	profileFile = "profile.yaml"
	resultFile  = "result.json"
	journalFile = "journal.jsonl"
)

// Create makes the folder of a run, or opens an interrupted one to resume it: then the configuration must be the same.
func Create(dir string, o Options) (*Run, error) {
	r := &Run{Data: Data{Report: *result.New(o.Bench, o.Ports...)}, Dir: dir, replay: map[string]int{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	path := filepath.Join(dir, journalFile)
	_, err := os.Stat(path)
	switch {
	case err == nil && !o.Resume:
		return nil, fmt.Errorf("%s holds a run already", dir)
	case errors.Is(err, os.ErrNotExist) && o.Resume:
		return nil, fmt.Errorf("%s holds no run to resume", dir)
	}
	for _, f := range []struct {
		name string
		want []byte
	}{{ConfigFile, o.Config}, {profileFile, o.Profile}} {
		p := filepath.Join(dir, f.name)
		if !o.Resume {
			if f.want != nil {
				if err := replace(p, func(w io.Writer) error { _, err := w.Write(f.want); return err }); err != nil {
					return nil, err
				}
			}
			continue
		}
		if have, err := os.ReadFile(p); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		} else if !bytes.Equal(have, f.want) {
			return nil, fmt.Errorf("%s is not that of the run to resume: its trials would be of something else", p)
		}
	}
	if r.j, err = openJournal(path, true); err != nil {
		return nil, err
	}
	if err := r.load(); err != nil {
		r.j.close()
		return nil, err
	}
	if h := r.j.head; h != nil && h.Bench != o.Bench {
		r.j.close()
		return nil, fmt.Errorf("%s is a run of %s, not of %s", dir, h.Bench, o.Bench)
	}
	if r.j.done {
		r.j.close()
		return nil, fmt.Errorf("%s is complete: there is nothing to resume", dir)
	}
	if r.j.head == nil {
		err = r.j.append(&record{Journal: &head{Version: 1, Bench: o.Bench, Started: r.Started}})
	} else {
		r.Note("resumed with %d trials of a run that was started %s", len(r.Made), r.j.head.Started.Format(time.DateTime))
		r.Started = r.j.head.Started
	}
	if err != nil {
		r.j.close()
		return nil, err
	}
	r.old = len(r.Made)
	return r, nil
}

// Open reads a run, whole or interrupted, or a single file of a bench's JSON.
func Open(path string) (*Run, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	r := &Run{Dir: path}
	file := path
	if st.IsDir() {
		file = filepath.Join(path, resultFile)
		if r.j, err = openJournal(filepath.Join(path, journalFile), false); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	b, err := os.ReadFile(file)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &r.Data); err != nil {
			return nil, fmt.Errorf("%s: %w", file, err)
		}
		if r.Schema != result.Schema {
			return nil, fmt.Errorf("%s: schema %d, this program reads %d", file, r.Schema, result.Schema)
		}
	case r.j == nil || r.j.head == nil:
		return nil, err
	default:
		r.Data.Report = result.Report{Schema: result.Schema, Bench: r.j.head.Bench, Started: r.j.head.Started}
	}
	if r.State == "" && r.j == nil {
		r.State = Complete // a bench's JSON is written at its end
	}
	if r.j != nil {
		if err := r.load(); err != nil {
			return nil, err
		}
		if !r.j.done {
			r.State = Partial
			if r.Partial == "" {
				r.Partial = "the run did not end"
			}
		}
	}
	r.count()
	return r, nil
}

// load takes the journal's trials.
func (r *Run) load() error {
	for i, rec := range r.j.trials {
		t := Trial{N: i + 1, Bed: rec.Bed}
		var e entry
		if err := json.Unmarshal(rec.Entry, &e); err != nil {
			return fmt.Errorf("%s: trial %d: %w", r.j.path, i+1, err)
		}
		if e.Outcome == nil {
			return fmt.Errorf("%s: trial %d has no outcome", r.j.path, i+1)
		}
		if len(e.Latency) > 0 {
			h, err := hdrhistogram.Decode(e.Latency)
			if err != nil {
				return fmt.Errorf("%s: the latencies of trial %d: %w", r.j.path, i+1, err)
			}
			e.Outcome.Latency = h
		}
		t.Search, t.Phase, t.Outcome = e.Search, e.Phase, e.Outcome
		r.Made = append(r.Made, t)
	}
	r.count()
	return nil
}

func (r *Run) count() {
	if r.Made == nil {
		return
	}
	r.Trials, r.Invalid = len(r.Made), 0
	for i := range r.Made {
		if r.Made[i].Outcome.Invalid != "" {
			r.Invalid++
		}
	}
}

// AddSearch records what a search found: its whole result, and its figures among the results. The first bed whose name
// is "millrace" or begins with "millrace/" is Millrace; others are its peers.
func (r *Run) AddSearch(s *search.Result) {
	r.Searches = append(r.Searches, s)
	peer := ""
	if r.own == "" && isOwn(s.Bed) {
		r.own = s.Bed
	}
	if s.Bed != r.own {
		peer = "@" + s.Bed
	}
	add := func(kind string, size int, v float64) {
		name := s.Search + "/" + kind + "/profile"
		if size > 0 {
			name = fmt.Sprintf("%s/%s/%dB", s.Search, kind, size)
		}
		name += peer
		if old := r.Find(name, "frames_per_second"); old != nil {
			old.Values = append(old.Values, v) // a repetition
			old.Best, old.Median, old.Runs = slices.Max(old.Values), result.Median(old.Values), len(old.Values)
			return
		}
		r.Add(name, "frames_per_second", "frames/s", true, []float64{v})
	}
	for i := range s.MLR {
		m := &s.MLR[i]
		for k := range m.Goals {
			if g := &m.Goals[k]; g.Conditional != nil {
				add(g.Goal.Name, m.Size, g.Conditional.FPS)
			}
		}
	}
	for i := range s.RFC2544 {
		if t := s.RFC2544[i].Throughput; t != nil && t.Rate != nil {
			add("throughput", s.RFC2544[i].Size, t.Rate.FPS)
		}
	}
}

func isOwn(bed string) bool {
	return bed == "millrace" || len(bed) > 9 && bed[:9] == "millrace/"
}

// Close ends a run: because names why it did so early, nil where it is complete. It writes all files; what cannot be written is an
// error, and the journal stays to resume from.
func (r *Run) Close(because error) error {
	defer r.j.close()
	r.count()
	r.State, r.Partial = Complete, ""
	if because != nil {
		r.State, r.Partial = Partial, because.Error()
	}
	r.Finish()
	if err := r.Write(); err != nil {
		return err
	}
	if because != nil {
		return nil
	}
	return r.j.append(&record{Done: true})
}

// Warned are all warnings about the run, the gravest first; they stand above everything else. One that holds for several
// things under test or frame sizes is said once.
func (r *Run) Warned() (l []string) {
	add := func(format string, a ...any) {
		if w := fmt.Sprintf(format, a...); !slices.Contains(l, w) {
			l = append(l, w)
		}
	}
	if r.State == Partial {
		add("partial: %s. What stands here was measured, but the run is not whole.", r.Partial)
	}
	type of struct{ search, text string }
	var said []of
	where := map[of]map[string][]int{} // sizes by bed; none for all
	beds := map[of][]string{}
	for _, s := range r.Searches {
		about := func(size int, text string) {
			o := of{s.Search, text}
			if where[o] == nil {
				where[o] = map[string][]int{}
				said = append(said, o)
			}
			if !slices.Contains(beds[o], s.Bed) {
				beds[o] = append(beds[o], s.Bed)
			}
			if !slices.Contains(where[o][s.Bed], size) {
				where[o][s.Bed] = append(where[o][s.Bed], size)
			}
		}
		if s.Partial != "" {
			about(-1, "partial: "+s.Partial)
		}
		for _, w := range s.Warnings {
			about(-1, w)
		}
		sized := func(size int, ws ...string) {
			for _, w := range ws {
				about(size, w)
			}
		}
		for i := range s.MLR {
			m := &s.MLR[i]
			sized(m.Size, m.Warnings...)
			for k := range m.Goals {
				g := &m.Goals[k]
				sized(m.Size, g.Warnings...)
				if g.Irregular != "" {
					sized(m.Size, g.Goal.Name+" is irregular: "+g.Irregular)
				}
			}
		}
		for i := range s.RFC2544 {
			sized(s.RFC2544[i].Size, s.RFC2544[i].Warnings...)
		}
		if s.Soak != nil {
			sized(s.Soak.Size, s.Soak.Warnings...)
		}
	}
	for _, o := range said {
		var places []string
		for _, b := range beds[o] {
			places = append(places, b+sizesText(where[o][b]))
		}
		add("%s of %s: %s", o.search, strings.Join(places, "; "), o.text)
	}
	if r.Invalid > 0 {
		why := ""
		for i := range r.Made {
			if why = r.Made[i].Outcome.Invalid; why != "" {
				break
			}
		}
		add("%d of %d trials are invalid and say nothing about the thing under test: %s", r.Invalid, r.Trials, why)
	}
	for _, w := range r.Warnings {
		add("%s", w)
	}
	return l
}

// sizesText says at which frame sizes; -1 stands for no size in particular.
func sizesText(sizes []int) string {
	var n []string
	for _, s := range sizes {
		switch s {
		case -1:
			return ""
		case 0:
			return ", the profile's sizes"
		}
		n = append(n, strconv.Itoa(s))
	}
	return ", " + strings.Join(n, ", ") + " bytes"
}

func sizeText(size int) string {
	if size == 0 {
		return "the profile's sizes"
	}
	return fmt.Sprintf("%d bytes", size)
}
