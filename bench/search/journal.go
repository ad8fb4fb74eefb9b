package search

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/trial"
)

// Entry is one trial in a journal.
type Entry struct {
	Schema  int            `json:"schema"`
	Search  string         `json:"search"`
	Bed     string         `json:"bed"`
	Phase   string         `json:"phase"`
	Attempt int            `json:"attempt,omitempty"`
	Outcome *trial.Outcome `json:"outcome"`
	// Recovery is set where the trial was one of system recovery.
	Recovery *Recovery `json:"recovery,omitempty"`
	// Latency is Outcome.Latency, as the V2 compressed encoding of HdrHistogram in base64.
	Latency []byte `json:"latency,omitempty"`
}

// MarshalJSON puts the histogram into Latency.
func (e *Entry) MarshalJSON() ([]byte, error) {
	type plain Entry
	p := plain(*e)
	if p.Outcome != nil && p.Outcome.Latency != nil && p.Latency == nil {
		var err error
		if p.Latency, err = p.Outcome.Latency.Encode(hdrhistogram.V2CompressedEncodingCookieBase); err != nil {
			return nil, err
		}
	}
	return json.Marshal(p)
}

// UnmarshalJSON takes the histogram out of Latency.
func (e *Entry) UnmarshalJSON(b []byte) error {
	type plain Entry
	var p plain
	if err := json.Unmarshal(b, &p); err != nil {
		return err
	}
	if p.Outcome == nil {
		return errors.New("no outcome")
	}
	if len(p.Latency) > 0 {
		h, err := hdrhistogram.Decode(p.Latency)
		if err != nil {
			return fmt.Errorf("latency: %w", err)
		}
		p.Outcome.Latency, p.Latency = h, nil
	}
	*e = Entry(p)
	return nil
}

// Journal keeps the trials of a search, so that it can go on after an interruption: a search asks Next for each trial
// until it is used up, and gives Add each one that it made. A journal serves one run of one search at a time.
type Journal interface {
	// Next is the next trial of the earlier run, nil where there is none left. It is an error where that trial was of
	// another load: the journal is of another search.
	Next(l trial.Load) (*Entry, error)
	// Add keeps a trial. An error (a full disk) ends the search.
	Add(e *Entry) error
}

// ErrJournal is the cause of all errors about a journal that does not fit the search.
var ErrJournal = errors.New("search: the journal is of another search")

// Same says whether a and b are the same load; rates may differ by rounding.
func Same(a, b trial.Load) bool {
	return a.Size == b.Size && a.Duration == b.Duration && a.Frames == b.Frames &&
		math.Abs(a.Rate-b.Rate) <= 1e-9*math.Max(a.Rate, b.Rate)
}

// Memory is a journal in memory.
type Memory struct {
	Entries []*Entry
	next    int
}

// Rewind makes m ready for another run.
func (m *Memory) Rewind() { m.next = 0 }

func (m *Memory) Next(l trial.Load) (*Entry, error) {
	if m.next >= len(m.Entries) {
		return nil, nil
	}
	e := m.Entries[m.next]
	if e.Outcome == nil {
		return nil, fmt.Errorf("%w: trial %d has no outcome", ErrJournal, m.next+1)
	}
	if !Same(e.Outcome.Load, l) {
		return nil, fmt.Errorf("%w, of other parameters, or of another version: its trial %d offered %s, where this search offers %s",
			ErrJournal, m.next+1, text(e.Outcome.Load), text(l))
	}
	m.next++
	return e, nil
}

func (m *Memory) Add(e *Entry) error {
	m.Entries, m.next = append(m.Entries, e), m.next+1
	return nil
}

func text(l trial.Load) string {
	s := fmt.Sprintf("%.3f frames a second of %d bytes for %v", l.Rate, l.Size, l.Duration)
	if l.Frames > 0 {
		s += fmt.Sprintf(" or %d frames", l.Frames)
	}
	return s
}

// File is a journal of JSON lines in a file. Each trial is written when it ends; a line that was cut off by a
// crash is dropped when the file is opened again.
type File struct {
	Memory
	f *os.File
}

// OpenFile opens the journal at path, or makes it.
func OpenFile(path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	j := &File{f: f}
	if err := j.read(); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return j, nil
}

func (j *File) read() error {
	var at int64
	in := bufio.NewReaderSize(j.f, 1<<16)
	for n := 1; ; n++ {
		line, err := in.ReadBytes('\n')
		if err == io.EOF {
			break // what stands after the last newline was cut off
		}
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(line)) > 0 {
			e := new(Entry)
			if err := json.Unmarshal(line, e); err != nil {
				return fmt.Errorf("line %d is not a trial: %w", n, err)
			}
			if e.Schema != Schema {
				return fmt.Errorf("line %d has schema %d, this version reads %d", n, e.Schema, Schema)
			}
			j.Entries = append(j.Entries, e)
		}
		at += int64(len(line))
	}
	if err := j.f.Truncate(at); err != nil {
		return err
	}
	_, err := j.f.Seek(at, io.SeekStart)
	return err
}

// Add writes e. After an error the file ends with the last whole trial.
func (j *File) Add(e *Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	at, err := j.f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := j.f.Write(append(line, '\n')); err != nil {
		j.f.Truncate(at)
		j.f.Seek(at, io.SeekStart)
		return err
	}
	return j.Memory.Add(e)
}

// Close closes the file.
func (j *File) Close() error { return j.f.Close() }

// Recovery is what came of a trial of system recovery.
type Recovery struct {
	// Under is the load after the overload.
	Under trial.Load `json:"under"`
	// Time from the reduction of the load to the last lost frame; 0 where nothing was lost afterwards.
	Time time.Duration `json:"time_ns"`
	// Stopped: the loss stopped before Under's duration ended. Where it did not, Time says at least.
	Stopped bool `json:"stopped"`
}

// Recoverer is a Bed that can make trials of system recovery (RFC 2544, 26.5).
type Recoverer interface {
	trial.Bed
	// Recover offers over, then under without a gap. The outcome counts the frames of both.
	Recover(ctx context.Context, over, under trial.Load) (*trial.Outcome, *Recovery, error)
}
